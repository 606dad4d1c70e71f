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

/// Why a test that boots guests for long does not run: nobody has asked for it by `HOLDFAST_TEST_FULL_LIFE`. `takes` says how long it is.
#[must_use]
pub fn not_for_full_life(takes: &str) -> Option<String> {
    const FULL_LIFE: &str = "HOLDFAST_TEST_FULL_LIFE";
    std::env::var_os(FULL_LIFE).is_none().then(|| format!("takes {takes}; set {FULL_LIFE}=1"))
}
