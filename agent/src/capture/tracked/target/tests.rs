//! Reading of sysfs texts.

use super::*;

#[test]
fn statistics_add_writes_and_discards() {
    let text = " 1 2 3 4 50 6 700 8 9 10 11 12000 13 14000 15 16 17\n";
    assert_eq!(parse_statistics(text), Some(Statistics { sectors: 14700, in_flight: 9 }));
    assert_eq!(parse_statistics("1 2 3 4 50 6 700 8 9"), Some(Statistics { sectors: 700, in_flight: 9 }));
    assert_eq!(parse_statistics("1 2 3"), None);
    assert_eq!(parse_statistics(""), None);
}

#[test]
fn what_is_no_block_device_is_refused_with_advice() {
    let error = Target::find(Path::new("/proc/version")).unwrap_err().to_string();
    assert!(error.contains("not a block device") && error.contains("scan"), "{error}");
    let error = Target::find(Path::new("/dev/no-such-disk")).unwrap_err();
    assert!(matches!(error, CaptureError::Missing { .. }), "{error}");
}
