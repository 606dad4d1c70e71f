//! Shapes of requests and answers about recovery plans. Fields are only ever added.

use serde::{Deserialize, Serialize};

use super::shapes::{JobShape, LifecycleShape, ModeShape, TargetShape};
use crate::failover::plan::read::Mistake;

/// A plan's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// Its text (TOML).
    pub text: String,
}

/// What was found wrong with a plan; nothing: it can be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanCheckShape {
    /// Its name, as far as it has one.
    pub name: String,
    /// Groups and machines that were understood.
    pub groups: usize,
    /// The same of machines.
    pub machines: usize,
    /// Every mistake, by line.
    pub mistakes: Vec<Mistake>,
}

/// A plan.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PlanShape {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Points that it takes if nothing is said.
    pub point: String,
    /// What it makes of them if nothing is said; null if the text is not understood any more.
    pub target: Option<TargetShape>,
    /// Its groups, as in the file.
    pub groups: Vec<PlanGroupShape>,
    /// Names of groups that are failed over side by side, in the order of a failover.
    pub order: Vec<Vec<String>>,
    /// What is wrong with it now (a machine that is gone, a program).
    pub mistakes: Vec<Mistake>,
    /// Where its machines stand, by the names that the plan has for them.
    #[serde(default)]
    pub stages: Vec<PlanStageShape>,
    /// When it was last applied.
    pub changed_at: String,
    /// By whom.
    pub changed_by: String,
    /// Its runs that are not over, newest first.
    pub jobs: Vec<String>,
    /// Its file.
    pub text: String,
}

/// A group of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanGroupShape {
    /// Its name.
    pub name: String,
    /// Names of the groups that come before it.
    pub needs: Vec<String>,
    /// Its machines.
    pub machines: Vec<String>,
    /// Names of the actions before its machines.
    pub before: Vec<String>,
    /// And after them.
    pub after: Vec<String>,
    /// How long its machines may take.
    pub time_limit_ms: u64,
    /// "stop" or "continue".
    pub on_error: String,
}

/// Begins a run of a plan.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRunRequest {
    /// What it means for the sources.
    #[serde(default)]
    pub mode: ModeShape,
    /// As in a failover's request; the plan's own if not said. A planned failover takes what it makes.
    #[serde(default)]
    pub point: Option<String>,
    /// What to make of each; the plan's own if not said.
    #[serde(default)]
    pub target: Option<TargetShape>,
    /// Whether the sources are asked to stop first; a planned failover always does.
    #[serde(default)]
    pub stop_source: bool,
}

/// What a run would do with a machine of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanTurnShape {
    /// Its group.
    pub group: String,
    /// The machine, as the plan names it.
    pub name: String,
    /// Where it stands.
    pub stage: String,
    /// "goes", "stays" or "cannot".
    pub turn: String,
    /// Why, if it does not go.
    pub reason: String,
}

/// What was ended of a plan.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PlanEndedShape {
    /// The plan.
    pub name: String,
    /// Its runs that are over now.
    pub jobs: Vec<JobShape>,
}

/// Where the machines of a plan stand.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PlanStagesShape {
    /// The plan.
    pub name: String,
    /// Its machines that were changed.
    pub machines: Vec<PlanStageShape>,
}

/// Where a machine of a plan stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PlanStageShape {
    /// The machine.
    pub name: String,
    /// Where it stands.
    pub lifecycle: LifecycleShape,
}
