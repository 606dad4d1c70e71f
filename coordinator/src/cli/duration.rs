//! Durations as operators write them.
//!
//! Owns printing; reading is the library's. Pure.

use std::time::Duration;

pub(crate) use holdfast_coordinator::duration::parse_duration;

/// A duration in the largest unit that leaves two digits or more of meaning.
pub(crate) fn show(duration: Duration) -> String {
    let micros = duration.as_micros();
    match micros {
        0..1_000 => format!("{micros} us"),
        1_000..10_000 => format!("{:.1} ms", duration.as_secs_f64() * 1000.0),
        10_000..1_000_000 => format!("{} ms", micros / 1_000),
        1_000_000..10_000_000 => format!("{:.1} s", duration.as_secs_f64()),
        10_000_000..120_000_000 => format!("{} s", micros / 1_000_000),
        120_000_000..7_200_000_000 => format!("{} min", micros / 60_000_000),
        7_200_000_000..172_800_000_000 => format!("{} h", micros / 3_600_000_000),
        _ => format!("{} d", micros / 86_400_000_000),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{parse_duration, show};

    #[test]
    fn units_are_read() {
        let read = |text| parse_duration(text).map(|duration| duration.as_millis());
        assert_eq!(read("500ms"), Ok(500));
        assert_eq!(read("10s"), Ok(10_000));
        assert_eq!(read("15m"), Ok(900_000));
        assert_eq!(read("24h"), Ok(86_400_000));
        assert_eq!(read("7d"), Ok(604_800_000));
        for wrong in ["", "10", "s", "-1s", "1.5h", "1w", "99999999999999999999s", "18446744073709551615d"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_short() {
        let shown = |millis| show(Duration::from_millis(millis));
        assert_eq!([shown(0), shown(4), shown(420), shown(4_200)], ["0 us", "4.0 ms", "420 ms", "4.2 s"]);
        assert_eq!([shown(42_000), shown(420_000), shown(86_400_000)], ["42 s", "7 min", "24 h"]);
    }
}
