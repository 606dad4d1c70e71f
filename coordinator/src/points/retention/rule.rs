//! How long points are kept, as operators say it.
//!
//! Owns the text and its checks. Pure. Invariants: ages and spacings ascend, and each spacing is a multiple of the one
//! before. Limit: [`TIERS_MAX`] tiers, [`RETENTION_MAX`] in all.
//!
//! ```text
//! rule = TIME { "," TIME ":" TIME }        24h                    every point for a day
//! TIME = number ( s | m | h | d )          24h,1h:30d,1d:365d     then one an hour until they are 30 days old,
//!                                                                 then one a day until they are a year old
//! ```

use std::{fmt, str::FromStr, time::Duration};

use thiserror::Error;

use crate::catalog::record::RetentionTier;

/// Shortest time for which every point is kept.
pub const RETENTION_MIN: Duration = Duration::from_mins(1);
/// Longest time that points are kept (ten years).
pub const RETENTION_MAX: Duration = Duration::from_hours(24 * 3660);
/// Most tiers behind the time in which every point is kept.
pub const TIERS_MAX: usize = 8;

/// How long points are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionRule {
    dense_seconds: u64,
    tiers: Vec<RetentionTier>,
}

/// Why a rule is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RuleError {
    /// The text cannot be read.
    #[error(
        "`{0}` is no retention; write how long every point is kept and then, if you want, SPACING:AGE for older ones, such as 24h or 24h,1h:30d,1d:365d (units s, m, h, d)"
    )]
    Text(String),
    /// A time is out of range.
    #[error("a retention of {} is out of range; use 1m to 3660d", show(*.0))]
    Range(u64),
    /// A tier ends before it begins.
    #[error("`{tier}` ends at {}, which is not later than what is kept before it ({}); let ages ascend", show(tier.until_seconds), show(*.before_seconds))]
    Order {
        /// The tier.
        tier: RetentionTier,
        /// Age at which it would begin.
        before_seconds: u64,
    },
    /// A spacing does not fit the one before.
    #[error("the spacing of `{tier}` is not a multiple of the {} before it, so what is kept there would be missing here; use a multiple", show(*.before_seconds))]
    Multiple {
        /// The tier.
        tier: RetentionTier,
        /// The spacing before.
        before_seconds: u64,
    },
    /// A tier is shorter than its spacing.
    #[error(
        "`{0}` is shorter than its own spacing, so it may keep nothing; let it reach further, or leave it out"
    )]
    Short(RetentionTier),
    /// Too many tiers.
    #[error("{0} tiers are too many; use at most {TIERS_MAX}")]
    Count(usize),
}

impl RetentionRule {
    /// Checks a rule.
    ///
    /// # Errors
    /// It contradicts itself; the text says how.
    pub fn new(dense_seconds: u64, tiers: Vec<RetentionTier>) -> Result<Self, RuleError> {
        if tiers.len() > TIERS_MAX {
            return Err(RuleError::Count(tiers.len()));
        }
        let last = tiers.last().map_or(dense_seconds, |tier| tier.until_seconds);
        for seconds in [dense_seconds, last] {
            if !(RETENTION_MIN..=RETENTION_MAX).contains(&Duration::from_secs(seconds)) {
                return Err(RuleError::Range(seconds));
            }
        }
        let (mut age, mut spacing) = (dense_seconds, 0);
        for tier in &tiers {
            if tier.until_seconds <= age {
                return Err(RuleError::Order { tier: *tier, before_seconds: age });
            }
            if tier.every_seconds == 0 || tier.until_seconds - age < tier.every_seconds {
                return Err(RuleError::Short(*tier));
            }
            if spacing > 0 && (tier.every_seconds <= spacing || !tier.every_seconds.is_multiple_of(spacing)) {
                return Err(RuleError::Multiple { tier: *tier, before_seconds: spacing });
            }
            (age, spacing) = (tier.until_seconds, tier.every_seconds);
        }
        Ok(Self { dense_seconds, tiers })
    }

    /// Age up to which every point is kept.
    #[must_use]
    pub const fn dense(&self) -> Duration {
        Duration::from_secs(self.dense_seconds)
    }

    /// What is kept of older ones, by ascending age.
    #[must_use]
    pub fn tiers(&self) -> &[RetentionTier] {
        &self.tiers
    }
}

impl FromStr for RetentionRule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let wrong = || RuleError::Text(text.to_owned());
        let mut parts = text.split(',').map(str::trim);
        let dense = parts.next().and_then(seconds).ok_or_else(wrong)?;
        let tiers: Option<Vec<RetentionTier>> = parts
            .map(|part| {
                let (every, until) = part.split_once(':')?;
                Some(RetentionTier { every_seconds: seconds(every)?, until_seconds: seconds(until)? })
            })
            .collect();
        Self::new(dense, tiers.ok_or_else(wrong)?)
    }
}

impl fmt::Display for RetentionRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(self.dense_seconds))?;
        self.tiers.iter().try_for_each(|tier| write!(f, ",{tier}"))
    }
}

impl fmt::Display for RetentionTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", show(self.every_seconds), show(self.until_seconds))
    }
}

/// Units, largest first.
const UNITS: [(u64, char); 4] = [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')];

fn seconds(text: &str) -> Option<u64> {
    let unit = text.chars().next_back()?;
    let (length, _) = UNITS.into_iter().find(|(_, letter)| *letter == unit)?;
    let digits = text.strip_suffix(unit).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse::<u64>().ok()?.checked_mul(length)
}

/// A time in the largest unit that says it exactly; up to two days in hours, as people do.
fn show(seconds: u64) -> String {
    let fits = |length: u64| {
        seconds.is_multiple_of(length) && (length < 86_400 || seconds > 2 * 86_400 || seconds == length)
    };
    let unit = UNITS.into_iter().filter(|_| seconds > 0).find(|(length, _)| fits(*length));
    let (length, letter) = unit.unwrap_or((1, 's'));
    format!("{}{letter}", seconds / length)
}

#[cfg(test)]
mod tests {
    use super::{RetentionRule, RuleError};

    fn error(text: &str) -> String {
        text.parse::<RetentionRule>().unwrap_err().to_string()
    }

    #[test]
    fn rules_are_read_and_written() {
        for text in ["24h", "1m", "72h,1d:30d", "36h,1h:30d,1d:365d", "10m,20s:1h,40s:2h,2m:48h"] {
            let rule: RetentionRule = text.parse().unwrap();
            let again: RetentionRule = rule.to_string().parse().unwrap();
            assert_eq!(rule, again, "{text} {rule}");
        }
        let rule: RetentionRule = " 24h, 1h:720h ,1d:365d".parse().unwrap();
        assert_eq!(rule.dense().as_secs(), 86_400);
        assert_eq!((rule.tiers()[1].every_seconds, rule.tiers()[1].until_seconds), (86_400, 31_536_000));
        assert_eq!(rule.to_string(), "1d,1h:30d,1d:365d");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for text in [
            "",
            "24",
            "h",
            "24h,",
            "24h,1h",
            "24h:1h",
            "1.5h",
            "-1h",
            "24h,1h:30d:2",
            "99999999999999999999d",
        ] {
            assert!(matches!(text.parse::<RetentionRule>(), Err(RuleError::Text(_))), "{text}");
        }
        assert!(error("30s").contains("30s is out of range; use 1m to 3660d"));
        assert!(error("24h,1h:3661d").contains("3661d is out of range"));
        assert!(error("24h,1h:12h").contains("let ages ascend"));
        assert!(error("24h,1h:30d,90m:60d").contains("not a multiple of the 1h before it"));
        assert!(error("24h,1h:30d,1h:60d").contains("not a multiple"));
        assert!(error("24h,1d:25h").contains("shorter than its own spacing"));
        assert!(error("24h,0s:25h").contains("shorter than its own spacing"));
        let many = (1..=9).map(|n| format!(",{}s:{}d", 1 << n, n + 1)).collect::<String>();
        assert!(error(&format!("24h{many}")).contains("9 tiers are too many"));
    }
}
