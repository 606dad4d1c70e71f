//! Recovery plans: machines in groups that are failed over in an order, with actions before and after each group.
//!
//! Owns what is frozen of a plan into its job ([`PlanSpec`]), and [`compile`], which makes it of a file. Pure. A plan that is
//! changed or removed while it runs does not change its run: the job knows all that it needs.
//! Invariant: step `i` of the job is `steps[i]`, whatever a later version would make of the same file.
//! Format: part of a job's log (`failover/log`): variants are only ever appended, fields only added with a default.
//!
//! ```text
//!   check -> WAVE -> WAVE -> ... -> end
//!
//!   WAVE:   before-actions of its groups, one after another
//!        -> machines of its groups, side by side: each an ordinary failover job of its own
//!        -> after-actions of its groups, one after another
//! ```
//! On the way back the waves come in the same order: what a group needs is up at the side it goes to before the group is.
//! Re-protection moves nothing: all machines at once, without actions.
//! A wave holds all groups whose needs are in earlier waves. Where no group says what it `needs`, each needs the one before,
//! and a wave is a group.

// The file, as it is read.
pub mod file;
// From text to a file, with every mistake and its line.
pub mod read;
// What of it is wrong here and now.
pub mod check;
// What a run does, and with which machines.
pub mod course;

use std::collections::BTreeMap;

use holdfast_common::ids::{JobId, MachineId};
use serde::{Deserialize, Serialize};

use self::{
    course::{Course, Direction},
    file::{FileAction, PlanFile},
};
use super::job::{StepKind, Target};
use crate::points::selection::Selection;

/// A run of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanSpec {
    /// The plan's name.
    pub plan: String,
    /// What it does.
    pub mode: Course,
    /// Whether sources are stopped first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop_source: bool,
    /// What was asked for, for people; members have their own. Of no meaning on the way back.
    pub selection: Selection,
    /// The same.
    pub target: Target,
    /// Networks of the machines' cards in this mode.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, String>,
    /// Its groups, as in the file.
    pub groups: Vec<PlanGroup>,
    /// What is done, in order.
    pub steps: Vec<PlanStep>,
    /// What the names of agents that run programs stood for when it began.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub agents: BTreeMap<String, MachineId>,
}

/// A group of machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanGroup {
    /// Its name.
    pub name: String,
    /// Its machines.
    pub members: Vec<Member>,
    /// How long its machines may take, in milliseconds.
    pub time_limit_ms: u64,
    /// What follows if one fails. An unplanned failover goes on whatever this says.
    pub on_error: OnError,
}

/// A machine of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The machine.
    pub machine: MachineId,
    /// Its name in the plan.
    pub name: String,
    /// Which point; of no meaning on the way back, as the target.
    pub selection: Selection,
    /// What is made of it.
    pub target: Target,
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// The plan stops there and keeps what it has, until it is retried or cancelled.
    #[default]
    Stop,
    /// It goes on.
    Continue,
}

/// A step of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum PlanStep {
    /// Whether it can be run.
    Check,
    /// An action of a group.
    Action {
        /// The group's number.
        group: u32,
        /// On which side of its machines.
        when: When,
        /// What.
        action: Action,
    },
    /// The machines of these groups.
    Machines {
        /// The groups' numbers.
        groups: Vec<u32>,
    },
    /// What the plan itself held is given back.
    End,
}

/// On which side of a group's machines an action stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// Before they are failed over.
    Before,
    /// After.
    After,
}

impl When {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// An action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// What it is called.
    pub name: String,
    /// What follows if it fails; if nothing is said, what the group says (and an unplanned failover goes on).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_error: Option<OnError>,
    /// What it does.
    pub what: What,
}

/// What an action does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Runs a program.
    Script {
        /// Where.
        #[serde(default, skip_serializing_if = "Place::is_coordinator")]
        on: Place,
        /// The program and its arguments.
        command: Vec<String>,
        /// How long it may take, in milliseconds.
        time_limit_ms: u64,
    },
    /// Waits for somebody who does this.
    Manual {
        /// What is to be done.
        text: String,
    },
}

/// Where a program runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// On the coordinator's host; the program is a full path.
    #[default]
    Coordinator,
    /// On the source of every machine of the group, by its agent; the program is a name in the agent's folder of actions.
    Source,
    /// On the host of this agent, whatever that host is to the plan; the same. What the name stood for is in [`PlanSpec::agents`].
    Agent(String),
}

impl Place {
    const fn is_coordinator(&self) -> bool {
        matches!(self, Self::Coordinator)
    }
}

/// What came of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberOutcome {
    /// The machine.
    pub machine: MachineId,
    /// Its name in the plan.
    pub name: String,
    /// Its job, if one was begun.
    pub job: Option<JobId>,
    /// How it ended.
    pub state: MemberState,
    /// Why, if it is not what was asked for; at most [`REASON_BYTES_MAX`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// How a machine of a plan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// As asked for.
    Done,
    /// There was nothing to do where it stands.
    Skipped,
    /// Not as asked for.
    Failed,
}

/// Bytes of a reason, at most: outcomes of thousands of machines fit one event.
pub const REASON_BYTES_MAX: usize = 300;

/// How a run differs from the file.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it does.
    pub course: Course,
    /// Whether sources are stopped first (a planned failover always does).
    pub stop_source: bool,
    /// Which points.
    pub selection: Selection,
    /// What is made of them.
    pub target: Target,
    /// What the names of agents stand for.
    pub agents: BTreeMap<String, MachineId>,
}

/// Freezes a plan. `members` gives what a machine's name stands for; a machine without is left out.
#[must_use]
pub fn compile(file: &PlanFile, run: &Run, members: &BTreeMap<String, Member>) -> PlanSpec {
    let mut steps = vec![PlanStep::Check];
    if run.course == Course::Reprotect {
        // No machine starts, stops or moves, so nothing waits for anything.
        steps.push(PlanStep::Machines { groups: (0..file.groups.len()).map(number).collect() });
    } else {
        steps.extend(waves(file, run.course));
    }
    steps.push(PlanStep::End);
    let groups = file.groups.iter().map(|group| PlanGroup {
        name: group.name.clone(),
        members: group.machines.iter().filter_map(|(name, _)| members.get(name)).cloned().collect(),
        time_limit_ms: group.time_limit_ms,
        on_error: group.on_error,
    });
    let networks = if run.course == Course::Test { &file.test_networks } else { &file.networks };
    PlanSpec {
        plan: file.name.clone(),
        mode: run.course,
        stop_source: run.stop_source,
        selection: run.selection,
        target: run.target.clone(),
        networks: networks.clone(),
        groups: groups.collect(),
        steps,
        agents: run.agents.clone(),
    }
}

/// The steps of all waves, without the actions of the other direction.
fn waves(file: &PlanFile, course: Course) -> Vec<PlanStep> {
    let mut steps = Vec::new();
    for wave in file.waves().unwrap_or_default() {
        steps.extend(actions(file, &wave, When::Before, course.direction()));
        steps.push(PlanStep::Machines { groups: wave.iter().map(|group| number(*group)).collect() });
        steps.extend(actions(file, &wave, When::After, course.direction()));
    }
    steps
}

/// The actions of a wave's groups, one after another.
fn actions(file: &PlanFile, wave: &[usize], when: When, direction: Direction) -> Vec<PlanStep> {
    let mut steps = Vec::new();
    for group in wave {
        let of_group = file.groups.get(*group).map(|group| group.actions(when)).unwrap_or_default();
        let meant = of_group.iter().filter(|action| action.direction.is_none_or(|only| only == direction));
        steps.extend(meant.map(|FileAction { action, .. }| PlanStep::Action {
            group: number(*group),
            when,
            action: action.clone(),
        }));
    }
    steps
}

fn number(group: usize) -> u32 {
    u32::try_from(group).unwrap_or(u32::MAX)
}

impl PlanSpec {
    /// The kinds of its steps.
    #[must_use]
    pub fn kinds(&self) -> Vec<StepKind> {
        let kind = |step: &PlanStep| match step {
            PlanStep::Check => StepKind::PlanCheck,
            PlanStep::Action { action: Action { what: What::Script { .. }, .. }, .. } => StepKind::PlanScript,
            PlanStep::Action { action: Action { what: What::Manual { .. }, .. }, .. } => StepKind::PlanManual,
            PlanStep::Machines { .. } => StepKind::PlanMachines,
            PlanStep::End => StepKind::PlanEnd,
        };
        self.steps.iter().map(kind).collect()
    }

    /// A step.
    #[must_use]
    pub fn step(&self, step: u32) -> Option<&PlanStep> {
        self.steps.get(usize::try_from(step).ok()?)
    }

    /// A group.
    #[must_use]
    pub fn group(&self, group: u32) -> Option<&PlanGroup> {
        self.groups.get(usize::try_from(group).ok()?)
    }

    /// All machines with their groups.
    pub fn members(&self) -> impl Iterator<Item = (&PlanGroup, &Member)> {
        self.groups.iter().flat_map(|group| group.members.iter().map(move |member| (group, member)))
    }

    /// A step's title for people; none for those whose kind says all.
    #[must_use]
    pub fn title(&self, step: u32) -> Option<String> {
        match self.step(step)? {
            PlanStep::Action { group, when, action } => {
                Some(format!("{} {}: {}", when.name(), self.group(*group)?.name, action.name))
            }
            PlanStep::Machines { groups } => {
                let names: Vec<&str> =
                    groups.iter().filter_map(|group| self.group(*group)).map(|group| &*group.name).collect();
                Some(format!("machines of {}", names.join(", ")))
            }
            PlanStep::Check | PlanStep::End => None,
        }
    }
}

#[cfg(test)]
mod tests;
