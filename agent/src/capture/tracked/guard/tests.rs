//! The guard's arithmetic, alone and over random histories.

use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

use super::*;

const REST: Reading = Reading { completed: 1000, in_flight: 0, slots_in_use: 0, issued: 40 };

#[test]
fn a_baseline_needs_rest() {
    assert_eq!(baseline(&[REST; 3]), Some(960));
    assert_eq!(baseline(&[]), None);
    for other in [
        Reading { in_flight: 1, ..REST },
        Reading { slots_in_use: 1, ..REST },
        Reading { issued: 48, ..REST },
        Reading { completed: 1008, ..REST },
    ] {
        assert_eq!(baseline(&[REST, REST, other]), None, "{other:?}");
        assert_eq!(baseline(&[other, REST, REST]), None, "{other:?}");
    }
}

#[test]
fn a_baseline_holds_when_the_program_counted_more_than_the_kernel() {
    let reading = Reading { completed: 8, issued: 32, ..REST };
    let base = baseline(&[reading]);
    assert_eq!(compare(base, 8, 32), Verdict::Complete);
    assert_eq!(compare(base, 16, 40), Verdict::Complete);
    assert_eq!(compare(base, 24, 40), Verdict::Missed(8));
}

#[test]
fn without_a_baseline_nothing_is_claimed() {
    assert_eq!(compare(None, 1_000_000, 0), Verdict::Unknown);
}

/// A history: requests are issued (seen or missed by the program) and completed in any order.
fn history() -> impl proptest::strategy::Strategy<Value = Vec<(u64, bool, usize)>> {
    proptest::collection::vec((1_u64..2048, proptest::bool::weighted(0.95), 0_usize..8), 1..200)
}

proptest! {
    #[test]
    fn no_false_alarm_and_no_miss_at_rest(history in history(), start in 0_u64..u64::MAX) {
        let (mut issued, mut completed, mut missed) = (0_u64, start, 0_u64);
        let mut in_flight = vec![];
        for (sectors, is_seen, finish) in history {
            issued += if is_seen { sectors } else { 0 };
            missed += if is_seen { 0 } else { sectors };
            in_flight.push(sectors);
            for _ in 0..finish.min(in_flight.len()) {
                completed = completed.wrapping_add(in_flight.remove(0));
            }
            let verdict = compare(Some(start), completed, issued);
            prop_assert!(missed > 0 || !matches!(verdict, Verdict::Missed(_)), "false alarm: {verdict:?}");
            prop_assert!(missed > 0 || (verdict == Verdict::Complete) == in_flight.is_empty());
        }
        completed = in_flight.drain(..).fold(completed, u64::wrapping_add);
        let expected = if missed > 0 { Verdict::Missed(missed) } else { Verdict::Complete };
        prop_assert_eq!(compare(Some(start), completed, issued), expected);
    }
}
