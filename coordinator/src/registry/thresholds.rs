//! When a machine's state is worth a warning, and when it is critical.
//!
//! Owns the numbers, their defaults and their bounds. Pure.
//! Format: persisted and sent as JSON of [`Thresholds`]; fields are only added, and one that is missing is not set.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::RegistryError;

/// Intervals of lag that are worth a warning if nothing is set, and that are critical.
const LAG_INTERVALS: (u32, u32) = (3, 10);
/// Time that sending may take on top of them.
const LAG_SLACK: Duration = Duration::from_secs(5);
/// Voided cuts in a row that are worth a warning if nothing is set.
const VOIDED_DEFAULT: u32 = 3;
/// Longest threshold (a year).
const THRESHOLD_MAX: Duration = Duration::from_hours(24 * 366);

/// Two ages of the same thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ages {
    /// Older is worth a warning.
    pub warning_ms: u64,
    /// Older is critical; not less than the warning.
    pub critical_ms: u64,
}

/// Thresholds of a machine; what is not set has the default that stands beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Thresholds {
    /// Age of the newest point: what a failover would lose. Default: 3 and 10 intervals and 5 s.
    pub lag: Option<Ages>,
    /// RPO of the newest point: from its cut until it was durable. Default: none.
    pub rpo: Option<Ages>,
    /// Age of the newest app-consistent point. Default: none.
    pub app: Option<Ages>,
    /// Cuts that are void in a row, worth a warning. Default: 3.
    pub voided: Option<u32>,
}

impl Thresholds {
    /// The ages of lag that hold with an interval of cuts.
    #[must_use]
    pub fn lag(&self, interval: Duration) -> (Duration, Duration) {
        let (warning, critical) = LAG_INTERVALS;
        self.lag.map_or((interval * warning + LAG_SLACK, interval * critical + LAG_SLACK), Ages::pair)
    }

    /// Voided cuts in a row that are worth a warning.
    #[must_use]
    pub fn voided(&self) -> u32 {
        self.voided.unwrap_or(VOIDED_DEFAULT)
    }

    /// Checks bounds.
    ///
    /// # Errors
    /// A value is out of them; the text names it.
    pub fn check(&self) -> Result<(), RegistryError> {
        let named = [("lag", self.lag), ("rpo", self.rpo), ("app", self.app)];
        for (name, ages) in named {
            let Some(ages) = ages else { continue };
            let (warning, critical) = ages.pair();
            if warning.is_zero() || warning > critical || critical > THRESHOLD_MAX {
                let text = format!(
                    "the thresholds of {name} ({} ms, {} ms) are out of range; give two ages, the smaller first, up to 366d",
                    ages.warning_ms, ages.critical_ms
                );
                return Err(RegistryError::Setting(text));
            }
        }
        if self.voided == Some(0) {
            return Err(RegistryError::Setting("voided cuts are counted from 1".to_owned()));
        }
        Ok(())
    }
}

impl Ages {
    /// As durations: warning, critical.
    #[must_use]
    pub const fn pair(self) -> (Duration, Duration) {
        (Duration::from_millis(self.warning_ms), Duration::from_millis(self.critical_ms))
    }
}
