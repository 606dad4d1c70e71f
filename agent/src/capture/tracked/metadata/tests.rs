//! The record, and the reasons for which it is refused.

use super::*;

const IDENTITY: Identity =
    Identity { boot: 1, device: 2, sectors: 3, start_sector: 0, disk_sequence: 5, slots: 8 << 32 | 1 };

fn words() -> Vec<AtomicU64> {
    (0..WORDS).map(|_| AtomicU64::new(0)).collect()
}

#[test]
fn a_record_comes_back_as_it_was_written() {
    let words = words();
    let record = Metadata(&words);
    assert!(record.read().unwrap_err().contains("not completed"));
    record.write(&IDENTITY, 77);
    assert_eq!(record.read().unwrap(), IDENTITY);
    assert_eq!((record.incarnation(), record.baseline()), (77, None));
    record.set_baseline(0);
    assert_eq!(record.baseline(), Some(0));
    record.distrust();
    assert!(record.read().unwrap_err().contains("incomplete"));
}

#[test]
fn another_version_is_refused() {
    let words = words();
    let record = Metadata(&words);
    record.write(&IDENTITY, 1);
    words[0].fetch_add(1, SeqCst);
    assert!(record.read().unwrap_err().contains("another version"));
}

#[test]
fn every_difference_is_named() {
    assert_eq!(IDENTITY.difference(&IDENTITY), None);
    for (other, word) in [
        (Identity { boot: 9, ..IDENTITY }, "restarted"),
        (Identity { device: 9, ..IDENTITY }, "device number"),
        (Identity { sectors: 9, ..IDENTITY }, "size"),
        (Identity { start_sector: 9, ..IDENTITY }, "first sector"),
        (Identity { disk_sequence: 9, ..IDENTITY }, "replaced"),
        (Identity { slots: 9, ..IDENTITY }, "hardware queues"),
    ] {
        let reason = IDENTITY.difference(&other).unwrap();
        assert!(reason.contains(word), "{reason}");
    }
}
