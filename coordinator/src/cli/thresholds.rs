//! The command about thresholds of health.
//!
//! Owns their text forms: ask, change, print.

use std::time::Duration;

use holdfast_coordinator::registry::thresholds::{Ages, Thresholds};

use crate::{
    arguments::ThresholdOptions,
    client::{Client, escape},
    duration,
    output::{Failure, Output},
};

/// A new value of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Set(pub(crate) Option<Ages>);

/// Reads "30s,5m" or "default".
pub(crate) fn parse_ages(text: &str) -> Result<Set, String> {
    if text == "default" {
        return Ok(Set(None));
    }
    let (warning, critical) = text
        .split_once(',')
        .ok_or_else(|| format!("`{text}` is no pair of ages; write 30s,5m or default"))?;
    let millis = |text: &str| {
        duration::parse_duration(text.trim()).map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    };
    Ok(Set(Some(Ages { warning_ms: millis(warning)?, critical_ms: millis(critical)? })))
}

pub(crate) async fn thresholds(
    client: &Client,
    output: Output,
    options: ThresholdOptions,
) -> Result<(), Failure> {
    let path = format!("/v1/machines/{}/thresholds", escape(&options.machine));
    let mut thresholds: Thresholds = client.get(&path).await?;
    let before = thresholds;
    for (new, field) in [
        (options.lag, &mut thresholds.lag),
        (options.rpo, &mut thresholds.rpo),
        (options.app, &mut thresholds.app),
    ] {
        if let Some(Set(ages)) = new {
            *field = ages;
        }
    }
    thresholds.voided = options.voided.or(thresholds.voided);
    if thresholds != before {
        thresholds = client.post(&path, &thresholds).await?;
    }
    output.answer(&thresholds, describe)
}

fn describe(thresholds: &Thresholds) -> String {
    let show = |millis| duration::show(Duration::from_millis(millis));
    let ages = |ages: Option<Ages>, otherwise: &str| match ages {
        Some(ages) => {
            format!("warning over {}, critical over {}", show(ages.warning_ms), show(ages.critical_ms))
        }
        None => otherwise.to_owned(),
    };
    format!(
        "lag     {}\nrpo     {}\napp     {}\nvoided  warning at {} in a row",
        ages(thresholds.lag, "3 and 10 intervals (default)"),
        ages(thresholds.rpo, "not watched (default)"),
        ages(thresholds.app, "not watched (default)"),
        thresholds.voided(),
    )
}

#[cfg(test)]
mod tests {
    use super::{Ages, Set, parse_ages};

    #[test]
    fn pairs_of_ages_are_read() {
        assert_eq!(parse_ages("30s,5m"), Ok(Set(Some(Ages { warning_ms: 30_000, critical_ms: 300_000 }))));
        assert_eq!(parse_ages("default"), Ok(Set(None)));
        for wrong in ["", "30s", "30s;5m", "30,5m", "a,b"] {
            assert!(parse_ages(wrong).is_err(), "{wrong}");
        }
    }
}
