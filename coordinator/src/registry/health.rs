//! Health of machines and disks: what is wrong, how badly, and what to do.
//!
//! Owns the rules. Pure: facts in, findings out; reads no clock.
//! Invariant: every finding above healthy has a reason and an advice.

use std::time::Duration;

use holdfast_common::wire::DiskHealth;
use serde::{Deserialize, Serialize};

use super::{
    lifecycle::Stage,
    thresholds::{Ages, Thresholds},
};

/// A disk that is silent for longer is worth a warning, in reports' own rhythm of a few seconds.
const SILENT: Duration = Duration::from_secs(60);
/// A gap between points is worth a warning for so long after its end.
const GAP_FRESH: Duration = Duration::from_hours(1);

/// How well something is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// All is well.
    #[default]
    Healthy,
    /// Protection goes on, but somebody should look.
    Warning,
    /// Protection does not go on, or is behind by far.
    Critical,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad.
    pub level: Level,
    /// What is.
    pub reason: String,
    /// What to do.
    pub advice: String,
}

/// What is known of a protected disk.
#[derive(Clone, Debug)]
pub struct DiskFacts {
    /// Whether the machine is connected.
    pub connected: bool,
    /// What the agent last said, and how long ago.
    pub report: Option<(DiskHealth, Duration)>,
    /// Size of the replica.
    pub size_bytes: u64,
    /// Line of history, if it is not the first: tracking was lost or the disk protected again.
    pub compared_anew_because: Option<String>,
}

/// What is known of a machine.
#[derive(Clone, Debug, Default)]
pub struct MachineFacts {
    /// Whether it was revoked.
    pub revoked: bool,
    /// Its stage, if the target is the machine: then its source's silence is as it should be.
    pub failed_over: Option<FailedOver>,
    /// Whether it is connected.
    pub connected: bool,
    /// Whether it has ever been.
    pub ever_connected: bool,
    /// Protected disks.
    pub disk_count: usize,
    /// Whether all of them have been compared to the end.
    pub scans_complete: bool,
    /// Age of the newest complete point.
    pub point_age: Option<Duration>,
    /// Time between cuts.
    pub interval: Duration,
    /// Cuts that were voided since the newest point.
    pub voided_since: u32,
    /// Why the last of them was.
    pub voided_because: Option<String>,
    /// RPO of the newest complete point.
    pub rpo: Option<Duration>,
    /// Age of the newest app-consistent point.
    pub app_age: Option<Duration>,
    /// The newest time without points, if there was one: as text with its exact extent, and how long ago it ended.
    pub gap: Option<(String, Duration)>,
    /// What speaks against its booting at the target, in short.
    pub unready: Option<String>,
    /// What the last drills say against it, in short.
    pub undrilled: Option<String>,
    /// When these are worth a warning.
    pub thresholds: Thresholds,
}

/// A machine that runs at its target.
#[derive(Clone, Debug)]
pub struct FailedOver {
    /// Its stage.
    pub stage: Stage,
    /// How long ago its source was told that it is fenced.
    pub told: Option<Duration>,
}

/// What the health of a group is judged by.
#[derive(Clone, Debug, Default)]
pub struct GroupFacts {
    /// Its machines.
    pub machines: usize,
    /// Those that are not connected, by name.
    pub away: Vec<String>,
    /// Age of its newest point.
    pub point_age: Option<Duration>,
    /// Since when there is the group.
    pub exists_for: Duration,
    /// Time between its cuts.
    pub interval: Duration,
    /// Ages that are worth a warning and critical; by its interval if none are set.
    pub lag: Option<Ages>,
    /// Why the last cut was void, if it was.
    pub void_because: Option<String>,
}

/// What is wrong with a disk.
#[must_use]
pub fn disk_findings(facts: &DiskFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &facts.report {
        None if facts.connected => findings.push(warning(
            "the agent has not reported on this disk yet",
            "wait a few seconds; if it stays, look at the agent's log",
        )),
        None => {}
        Some((health, age)) => {
            findings.extend(reported(health, facts));
            if facts.connected && *age > SILENT {
                findings.push(warning(
                    format!("the agent has not reported on this disk for {} s", age.as_secs()),
                    "look at the agent's log on the machine; restart holdfast-agent if it hangs",
                ));
            }
        }
    }
    findings
}

fn reported(health: &DiskHealth, facts: &DiskFacts) -> Option<Finding> {
    match health {
        DiskHealth::Protected => None,
        DiskHealth::Scanning => {
            let why = facts.compared_anew_because.as_deref().unwrap_or("first copy");
            Some(warning(
                format!("source and replica are being compared ({why})"),
                "nothing; no new points are made until it is done, older ones stay good",
            ))
        }
        DiskHealth::Missing => Some(critical(
            "the disk is missing: it cannot be found on the machine",
            "attach the disk again, or end its protection with `holdfast unprotect`",
        )),
        DiskHealth::Resized { size_bytes } => Some(critical(
            format!("the disk was resized: it now has {size_bytes} bytes, its replica {}", facts.size_bytes),
            "run `holdfast protect` for the disk again: it begins a new line of history with the new size",
        )),
        DiskHealth::Failed(text) => Some(critical(
            format!("the disk cannot be captured: {text}"),
            "follow the text; protection goes on by itself once the cause is gone",
        )),
    }
}

/// What is wrong with a machine as a whole.
#[must_use]
pub fn machine_findings(facts: &MachineFacts) -> Vec<Finding> {
    if facts.revoked {
        return vec![critical(
            "the machine is revoked: it may not connect",
            "enrol it again with a token of `holdfast token create --machine NAME`, or leave it",
        )];
    }
    if !facts.ever_connected {
        return vec![warning(
            "the machine has never connected",
            "start the agent on it: `holdfast-agent run`",
        )];
    }
    if facts.disk_count == 0 {
        return vec![warning(
            "no disk of the machine is protected",
            "choose disks with `holdfast machine show` and `holdfast protect`",
        )];
    }
    let mut findings = Vec::new();
    if let Some(failed_over) = &facts.failed_over {
        findings.extend(at_target(failed_over));
        if failed_over.stage.is_target_replicated() {
            findings
                .extend(lag(facts, "look at the coordinator's log for why no points of the target are made"));
        }
        return findings;
    }
    if !facts.connected {
        findings.push(critical(
            "the machine is not connected",
            "check that it runs, that holdfast-agent runs on it, and that it reaches the coordinator's UDP port",
        ));
    }
    findings.extend(lag(
        facts,
        "look whether the link or the source's disks are overloaded (`holdfast status` shows what is pending)",
    ));
    findings.extend(rpo(facts));
    findings.extend(app(facts));
    if facts.voided_since >= facts.thresholds.voided() {
        let because = facts.voided_because.as_deref().unwrap_or("no reason is known");
        findings.push(warning(
            format!("the last {} cuts were void; the newest: {because}", facts.voided_since),
            "`holdfast points` shows all; a longer `--hold` or a longer interval may help",
        ));
    }
    if let Some(reason) = &facts.unready {
        findings.push(warning(
            reason.clone(),
            "`holdfast readiness MACHINE` says all that was found and what to do; points go on meanwhile",
        ));
    }
    if let Some(reason) = &facts.undrilled {
        findings.push(warning(
            reason.clone(),
            "`holdfast drill MACHINE --history` has all drills, `holdfast job show ID` what one did; `holdfast drill MACHINE` \
             tries again",
        ));
    }
    if let Some((text, _)) = facts.gap.as_ref().filter(|(_, ended)| *ended < GAP_FRESH) {
        findings.push(warning(
            text.clone(),
            "points go on; look at what the source and its link did then (`holdfast points` lists all gaps)",
        ));
    }
    findings
}

/// What an operator has to know of a machine that runs at its target; nothing, where it is as well protected as at its source.
fn at_target(failed_over: &FailedOver) -> Option<Finding> {
    let stage = failed_over.stage;
    let protection = match stage {
        Stage::ProtectedReversed { .. } => return None,
        _ if stage.is_target_replicated() => "is replicated from there",
        _ => "is not replicated",
    };
    let source = match failed_over.told {
        Some(age) => format!("its source was told {} s ago that it is fenced", age.as_secs()),
        None => "its source is fenced and has not been heard of".to_owned(),
    };
    let reason = format!("the machine is {}: it runs at the target and {protection}; {source}", stage.name());
    Some(warning(reason, stage.advice()))
}

/// What is older than its thresholds allow.
fn older(age: Duration, (warn, bad): (Duration, Duration), reason: String, advice: &str) -> Option<Finding> {
    if age > bad {
        Some(critical(reason, advice))
    } else if age > warn {
        Some(warning(reason, advice))
    } else {
        None
    }
}

fn rpo(facts: &MachineFacts) -> Option<Finding> {
    let (rpo, ages) = (facts.rpo?, facts.thresholds.rpo?);
    let reason = format!("the newest point took {} s from its cut until it was durable here", rpo.as_secs());
    let advice =
        "look whether the link carries the churn (`holdfast status`), or raise its bound with `--send-rate`";
    older(rpo, ages.pair(), reason, advice)
}

fn app(facts: &MachineFacts) -> Option<Finding> {
    let ages = facts.thresholds.app?;
    let advice = "look at the hooks' messages with `holdfast points`, and at the agent's log";
    match facts.app_age {
        None if facts.scans_complete => Some(warning("the machine has no app-consistent point", advice)),
        None => None,
        Some(age) => {
            let reason = format!("the newest app-consistent point is {} s old", age.as_secs());
            older(age, ages.pair(), reason, advice)
        }
    }
}

/// What is wrong with a group of machines.
#[must_use]
pub fn group_findings(facts: &GroupFacts) -> Vec<Finding> {
    if facts.machines == 0 {
        return Vec::new();
    }
    let lag = Thresholds { lag: facts.lag, ..Thresholds::default() };
    let ages = lag.lag(facts.interval);
    let advice = if facts.away.is_empty() {
        match &facts.void_because {
            Some(reason) => format!("the last group cut was void: {reason}"),
            None => "look at the group's machines in `holdfast status`".to_owned(),
        }
    } else {
        let away = facts.away.join(", ");
        format!("{away} are not connected: start their agents, or take them out with `holdfast group remove`")
    };
    let (age, reason) = match facts.point_age {
        Some(age) => (age, format!("the newest point of the whole group is {} s old", age.as_secs())),
        None => (facts.exists_for, "there is no point of the whole group yet".to_owned()),
    };
    older(age, ages, reason, &advice).into_iter().collect()
}

/// A point is expected every interval plus the time to send it.
fn lag(facts: &MachineFacts, advice: &str) -> Option<Finding> {
    let Some(age) = facts.point_age else {
        return facts.scans_complete.then(|| {
            warning(
                "the machine has no complete point yet",
                "wait for the next interval, or look at the agent's log",
            )
        });
    };
    let reason = format!(
        "the newest point is {} s old, with an interval of {} s",
        age.as_secs(),
        facts.interval.as_secs()
    );
    older(age, facts.thresholds.lag(facts.interval), reason, advice)
}

/// The worst of some findings.
#[must_use]
pub fn worst<'a>(findings: impl IntoIterator<Item = &'a Finding>) -> Level {
    findings.into_iter().map(|finding| finding.level).max().unwrap_or(Level::Healthy)
}

fn warning(reason: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { level: Level::Warning, reason: reason.into(), advice: advice.into() }
}

fn critical(reason: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { level: Level::Critical, reason: reason.into(), advice: advice.into() }
}
