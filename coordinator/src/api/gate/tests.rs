//! Failures are told, then counted, then told again; the audit does not grow without bound.

use std::{net::IpAddr, time::Duration};

use super::{ADDRESSES_MAX, FAILURES_MAX, Gate, NOTES_MAX, NOTES_WINDOW, Verdict, WINDOW, network};

fn address(number: u32) -> IpAddr {
    IpAddr::from(number.to_be_bytes())
}

fn told(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Tell { .. })
}

#[test]
fn an_address_is_told_a_few_times_per_window() {
    let mut gate = Gate::default();
    for _ in 0..FAILURES_MAX {
        assert_eq!(gate.failed(address(1), Duration::from_secs(10)), Verdict::Tell { note: Some(0) });
    }
    let later = Duration::from_secs(20);
    let retry_after = WINDOW - Duration::from_secs(10);
    assert_eq!(gate.failed(address(1), later), Verdict::TooMany { retry_after });
    assert!(told(gate.failed(address(2), later)), "another address is not held up");
    // The entry after the window says how many were not written.
    gate.failed(address(1), later);
    assert_eq!(gate.failed(address(1), Duration::from_secs(10) + WINDOW), Verdict::Tell { note: Some(1) });
}

#[test]
fn entries_are_bounded_over_all_addresses() {
    let mut gate = Gate::default();
    let written = (0..2 * NOTES_MAX)
        .filter(|number| {
            matches!(gate.failed(address(*number), Duration::ZERO), Verdict::Tell { note: Some(_) })
        })
        .count();
    assert_eq!(written, NOTES_MAX as usize);
    assert_eq!(gate.note(NOTES_WINDOW), Some(u64::from(NOTES_MAX)));
}

#[test]
fn addresses_are_bounded_and_make_room() {
    let mut gate = Gate::default();
    for number in 0..u32::try_from(ADDRESSES_MAX).unwrap() {
        gate.failed(address(number), Duration::ZERO);
    }
    let one_more = address(u32::MAX);
    assert!(!told(gate.failed(one_more, WINDOW / 2)));
    assert!(told(gate.failed(address(7), WINDOW / 2)), "a known one is counted on");
    assert!(told(gate.failed(one_more, WINDOW)));
    assert!(gate.addresses.len() <= ADDRESSES_MAX);
}

#[test]
fn a_host_is_one_address() {
    let parse = |text: &str| network(text.parse().unwrap());
    assert_eq!(parse("2001:db8::1"), parse("2001:db8::ffff:1"));
    assert_ne!(parse("2001:db8::1"), parse("2001:db8:0:1::1"));
    assert_eq!(parse("::ffff:10.0.0.1"), parse("10.0.0.1"));
}
