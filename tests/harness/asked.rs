//! What whoever runs the tests has asked for, by environment variables.

use holdfast_common::entropy::{Entropy as _, SystemEntropy};

/// A number, if one was asked for.
///
/// # Panics
/// The variable is set to something else: a typing mistake is not to be taken for the default.
#[must_use]
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var_os(variable)?;
    let number = text.to_str().and_then(|text| text.parse().ok());
    Some(number.unwrap_or_else(|| panic!("{variable} must be a number, and is {}", text.display())))
}

/// The seed of a run: `HOLDFAST_TEST_SEED`, or another one each time. Printed, so that the run can be repeated.
#[must_use]
pub fn seed() -> u64 {
    let seed = number("HOLDFAST_TEST_SEED").unwrap_or_else(|| SystemEntropy::new().next_u64());
    eprintln!("HOLDFAST_TEST_SEED={seed}");
    seed
}

/// Whether all faults are to be tried, not a choice of them: `HOLDFAST_TEST_FAULTS` is set.
#[must_use]
pub fn all_faults() -> bool {
    std::env::var_os("HOLDFAST_TEST_FAULTS").is_some()
}
