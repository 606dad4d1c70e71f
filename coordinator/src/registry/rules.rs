//! Bounds and defaults of policies.
//!
//! Owns the numbers and their checks. Pure.

use std::time::Duration;

use holdfast_common::{
    ids::MachineId,
    wire::limits::{CUT_INTERVAL_MS_DEFAULT, CUT_INTERVAL_MS_MIN, HOLD_MS_MAX_DEFAULT},
};

use super::RegistryError;
use crate::{
    catalog::record::PolicyRecord,
    drills::DrillPolicy,
    points::retention::{RetentionRule, RuleError},
};

/// How long points are kept if the operator does not say.
pub const RETENTION_DEFAULT: Duration = Duration::from_hours(24);
/// Shortest interval of app-consistent points.
pub const APPLICATION_INTERVAL_MS_MIN: u64 = 60_000;
/// Shortest time between drills.
pub const DRILL_EVERY_MS_MIN: u64 = 3_600_000;
/// Longest interval of cuts (a day).
pub const CUT_INTERVAL_MS_MAX: u64 = 24 * 3600 * 1000;

/// The policy of a machine for which nothing was said.
#[must_use]
pub fn default_policy(machine: MachineId) -> PolicyRecord {
    PolicyRecord {
        machine,
        interval_ms: CUT_INTERVAL_MS_DEFAULT,
        retention_seconds: RETENTION_DEFAULT.as_secs(),
        retention_tiers: Vec::new(),
        hold_ms_max: HOLD_MS_MAX_DEFAULT,
        send_bytes_per_second_max: 0,
        scan_bytes_per_second_max: 0,
        application_interval_ms: 0,
        application_strict: false,
        drill: DrillPolicy::default(),
    }
}

/// How long a policy keeps points.
///
/// # Errors
/// The rule contradicts itself; a policy that passed [`check_policy`] does not.
pub fn retention_rule(policy: &PolicyRecord) -> Result<RetentionRule, RuleError> {
    RetentionRule::new(policy.retention_seconds, policy.retention_tiers.clone())
}

/// Checks a policy's bounds.
///
/// # Errors
/// A value is out of its range; the text names both.
pub fn check_policy(policy: &PolicyRecord) -> Result<(), RegistryError> {
    if !(CUT_INTERVAL_MS_MIN..=CUT_INTERVAL_MS_MAX).contains(&policy.interval_ms) {
        return Err(RegistryError::Setting(format!(
            "an interval of {} ms is out of range; use 1s to 24h",
            policy.interval_ms
        )));
    }
    retention_rule(policy).map_err(|error| RegistryError::Setting(error.to_string()))?;
    let application = policy.application_interval_ms;
    if application != 0 && !(APPLICATION_INTERVAL_MS_MIN..=CUT_INTERVAL_MS_MAX).contains(&application) {
        return Err(RegistryError::Setting(format!(
            "an interval of app-consistent points of {application} ms is out of range; use 1m to 24h, or 0s for none"
        )));
    }
    if policy.drill.every_ms != 0 && policy.drill.every_ms < DRILL_EVERY_MS_MIN {
        return Err(RegistryError::Setting(format!(
            "a drill every {} ms is out of range; use 1h and more, daily, weekly or off",
            policy.drill.every_ms
        )));
    }
    policy.drill.drill.expression().map_err(RegistryError::Setting)?;
    if !(10..=60_000).contains(&policy.hold_ms_max) {
        return Err(RegistryError::Setting(format!(
            "a longest hold of {} ms is out of range; use 10ms to 60s",
            policy.hold_ms_max
        )));
    }
    Ok(())
}
