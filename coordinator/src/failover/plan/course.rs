//! What a run of a plan does, which way it leads, and what that means for a machine where it stands now.
//!
//! Owns the rules of which machines a run moves, leaves alone or cannot move. Pure. A plan's check, its run and what is shown before
//! it ask here, so they say the same.
//! Format: a course is part of a job's log; the three failovers are named there as [`Mode`] names them.

use holdfast_common::ids::JobId;
use serde::{Deserialize, Serialize};

use crate::{
    failover::job::Mode,
    registry::lifecycle::{Lifecycle, LifecycleEvent, Stage},
};

/// What a run does with the plan's machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Course {
    /// A failover on copies.
    Test,
    /// A failover that goes on whatever fails.
    Unplanned,
    /// A failover that loses nothing.
    Planned,
    /// Machines at their targets are protected there.
    Reprotect,
    /// Machines at their targets go back to their sources.
    Failback,
}

/// Which way machines move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From source to target.
    ToTarget,
    /// Back.
    ToSource,
}

/// What a run would do with a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is the run's to move.
    Goes,
    /// There is nothing to do; why.
    Stays(String),
    /// It cannot be moved from where it stands; why, and what to do.
    Cannot(String),
}

impl Direction {
    /// As scripts are told, and as a plan's file says it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ToTarget => "to-target",
            Self::ToSource => "to-source",
        }
    }
}

impl From<Mode> for Course {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Test => Self::Test,
            Mode::Unplanned => Self::Unplanned,
            Mode::Planned => Self::Planned,
        }
    }
}

impl Course {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Test, Self::Unplanned, Self::Planned, Self::Reprotect, Self::Failback];

    /// The verb, as the command and scripts name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Test => "test-failover",
            Self::Unplanned => "failover",
            Self::Planned => "planned-failover",
            Self::Reprotect => "reprotect",
            Self::Failback => "failback",
        }
    }

    /// What its machines' failovers are, if they are failed over.
    #[must_use]
    pub const fn failover(self) -> Option<Mode> {
        match self {
            Self::Test => Some(Mode::Test),
            Self::Unplanned => Some(Mode::Unplanned),
            Self::Planned => Some(Mode::Planned),
            Self::Reprotect | Self::Failback => None,
        }
    }

    /// Which way it leads.
    #[must_use]
    pub const fn direction(self) -> Direction {
        match self {
            Self::Test | Self::Unplanned | Self::Planned => Direction::ToTarget,
            Self::Reprotect | Self::Failback => Direction::ToSource,
        }
    }

    /// What it does with a machine that stands there, on behalf of a job.
    #[must_use]
    pub fn turn(self, now: &Lifecycle, job: JobId) -> Turn {
        let stage = now.stage;
        let stays = |where_it_runs: &str| {
            Turn::Stays(format!(
                "it is {} already: it runs at its {where_it_runs} and is left as it is",
                stage.name()
            ))
        };
        let event = match self {
            Self::Test => LifecycleEvent::BeginTest(job),
            // Who is on the way back is at neither side for good.
            Self::Unplanned | Self::Planned => match stage {
                Stage::FailingBack { .. } => LifecycleEvent::BeginFailover(job),
                _ if now.is_fenced() => return stays("target"),
                _ => LifecycleEvent::BeginFailover(job),
            },
            Self::Reprotect => match stage {
                Stage::Protected => return stays("source"),
                Stage::ProtectedReversed { .. } => return stays("target"),
                _ => LifecycleEvent::BeginReprotect(job),
            },
            Self::Failback if stage == Stage::Protected => return stays("source"),
            Self::Failback => LifecycleEvent::BeginFailback(job),
        };
        match now.after(event) {
            Ok(_) => Turn::Goes,
            Err(refusal) => Turn::Cannot(refusal.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_common::ids::PointId;

    use super::{Course, JobId, Lifecycle, Stage, Turn};

    /// Whichever side a machine is on, a run either moves it, leaves it or says what to do.
    #[test]
    fn what_a_run_does_follows_from_where_a_machine_stands() {
        let (job, by, point) =
            (JobId::from_bytes([1; 16]), JobId::from_bytes([2; 16]), PointId::from_bytes([3; 16]));
        let stages = [
            Stage::Protected,
            Stage::FailingOver { job },
            Stage::FailedOver { job, point },
            Stage::Committed { job, point },
            Stage::Reprotecting { job, point, by },
            Stage::ProtectedReversed { job, point },
            Stage::FailingBack { job, point, by },
        ];
        let turn = |course: Course, stage: Stage| {
            let now = Lifecycle { stage, ..Lifecycle::default() };
            match course.turn(&now, JobId::from_bytes([9; 16])) {
                Turn::Goes => 'g',
                Turn::Stays(why) => {
                    assert!(why.contains(stage.name()), "{why}");
                    's'
                }
                Turn::Cannot(why) => {
                    assert!(why.contains("holdfast") && why.contains("not possible"), "{why}");
                    'c'
                }
            }
        };
        for (course, expected) in [
            (Course::Test, "ggggggg"),
            (Course::Unplanned, "gcssssc"),
            (Course::Planned, "gcssssc"),
            (Course::Reprotect, "sccgcsc"),
            (Course::Failback, "sccccgc"),
        ] {
            let found: String = stages.iter().map(|stage| turn(course, *stage)).collect();
            assert_eq!(found, expected, "{course:?}");
        }
    }
}
