//! Bounds and defaults of policies.
//!
//! Owns the numbers and their checks. Pure.

use std::time::Duration;

use holdfast_common::{
    ids::MachineId,
    wire::limits::{CUT_INTERVAL_MS_DEFAULT, CUT_INTERVAL_MS_MIN, HOLD_MS_MAX_DEFAULT},
};

use super::RegistryError;
use crate::catalog::record::PolicyRecord;

/// How long points are kept if the operator does not say.
pub const RETENTION_DEFAULT: Duration = Duration::from_hours(24);
/// Shortest time that points are kept.
pub const RETENTION_MIN: Duration = Duration::from_mins(1);
/// Longest time that points are kept (ten years).
pub const RETENTION_MAX: Duration = Duration::from_hours(24 * 3660);
/// Longest interval of cuts (a day).
pub const CUT_INTERVAL_MS_MAX: u64 = 24 * 3600 * 1000;

/// The policy of a machine for which nothing was said.
#[must_use]
pub fn default_policy(machine: MachineId) -> PolicyRecord {
    PolicyRecord {
        machine,
        interval_ms: CUT_INTERVAL_MS_DEFAULT,
        retention_seconds: RETENTION_DEFAULT.as_secs(),
        hold_ms_max: HOLD_MS_MAX_DEFAULT,
        send_bytes_per_second_max: 0,
        scan_bytes_per_second_max: 0,
    }
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
    let retention = Duration::from_secs(policy.retention_seconds);
    if !(RETENTION_MIN..=RETENTION_MAX).contains(&retention) {
        return Err(RegistryError::Setting(format!(
            "a retention of {} s is out of range; use 1m to 3660d",
            policy.retention_seconds
        )));
    }
    if !(10..=60_000).contains(&policy.hold_ms_max) {
        return Err(RegistryError::Setting(format!(
            "a longest hold of {} ms is out of range; use 10ms to 60s",
            policy.hold_ms_max
        )));
    }
    Ok(())
}
