//! Advice for what the kernel answers.

use super::*;

#[test]
fn refusals_come_with_what_to_do() {
    for (number, locked, word) in [
        (libc::EPERM, false, "CAP_PERFMON"),
        (libc::EPERM, true, "lockdown"),
        (libc::ENOMEM, false, "memory"),
        (libc::EINVAL, false, "5.17"),
    ] {
        let text = advice(&io::Error::from_raw_os_error(number), locked);
        assert!(text.contains(word), "{text}");
    }
}
