//! Where a protected machine stands between its two sites.
//!
//! Owns the stages and which event leads from one to another. Pure: no IO, no clock. Invariants: a machine's source is
//! fenced exactly while something else may be the machine ([`Lifecycle::is_fenced`]); only the job that began a stage ends
//! it; every event may be repeated.
//!
//! ```text
//!                 BeginFailover                 Switch                    Commit
//!   protected -------------------> failing-over ----------> failed-over ----------> committed
//!     ^  ^  ^       AbandonFailover    |   ^     Unswitch     |    (Switch again changes the point of either)
//!     |  |  +--------------------------+   +------------------+             |  |  ^
//!     |  |                                                                  |  |  | AbandonReprotect
//!     |  +---- Resume (what the target wrote is given up; from failed-over, |  |  |
//!     |                committed and protected-reversed) <------------------+  v  |
//!     |                                                     BeginReprotect  re-protecting
//!     |                                                                        |
//!     | FailedBack                  BeginFailback                              | Reprotected
//!     +------------- failing-back <----------------- protected-reversed <------+
//!                         |                              ^
//!                         +------- AbandonFailback ------+
//! ```
//!
//! A **test failover** is beside all that: it runs on a copy, in any stage, several at a time (`BeginTest`, `EndTest`).
//! Left of the switch the source is the machine and replicates; from the switch on it is fenced, and a branch of the
//! history at the point is the machine. Commit deletes nothing: it only says that cancel is not wanted any more.
//!
//! Persisted as JSON in the catalog and in the machine's description: variants are only ever appended, fields only added
//! with a default. One that cannot be read is an error, never taken for `protected`: that would let an old source in.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use holdfast_common::ids::{DiskId, Generation, JobId, PointId, Sequence};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where a machine stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    /// Its stage.
    pub stage: Stage,
    /// The test failovers that are under way or stand, at most [`TESTS_MAX`].
    #[serde(default)]
    pub tests: BTreeSet<JobId>,
    /// Where the source's own lines of history end, of disks whose logs have another writer since. While the source is fenced only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lines: BTreeMap<DiskId, SourceLine>,
}

/// The end of what a source has sent of a disk that was compared as a whole: where the source has written nothing since, the disk
/// holds what the log has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLine {
    /// Its generation.
    pub generation: Generation,
    /// Its last frame.
    pub end: Sequence,
}

/// Stages; see the module's drawing. `job` is the failover that made the machine run at its target, `point` where its
/// branch begins, `by` the job that is on its way to the next stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "stage")]
pub enum Stage {
    /// The source runs and is replicated.
    #[default]
    Protected,
    /// A failover has begun; the source is still the machine.
    FailingOver {
        /// The failover.
        job: JobId,
    },
    /// The target is the machine; cancel goes back.
    FailedOver {
        /// The failover.
        job: JobId,
        /// Its point.
        point: PointId,
    },
    /// The target is the machine for good.
    Committed {
        /// The failover.
        job: JobId,
        /// Its point.
        point: PointId,
    },
    /// Replication the other way is being set up.
    Reprotecting {
        /// The failover.
        job: JobId,
        /// Its point.
        point: PointId,
        /// The re-protection.
        by: JobId,
    },
    /// The target is the machine and is replicated.
    ProtectedReversed {
        /// The failover.
        job: JobId,
        /// Its point.
        point: PointId,
    },
    /// The machine is on its way back to its source.
    FailingBack {
        /// The failover.
        job: JobId,
        /// Its point.
        point: PointId,
        /// The failback.
        by: JobId,
    },
}

/// What happens to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifecycleEvent {
    /// A failover begins.
    BeginFailover(JobId),
    /// It is given up before the switch, or after it was switched back.
    AbandonFailover(JobId),
    /// The target becomes the machine at this point, or goes on from another one.
    Switch(JobId, PointId),
    /// The source becomes the machine again.
    Unswitch(JobId),
    /// The operator keeps the target.
    Commit,
    /// The source becomes the machine again, for good; what the target has written is given up.
    Resume,
    /// Re-protection begins.
    BeginReprotect(JobId),
    /// It is given up.
    AbandonReprotect(JobId),
    /// The target is replicated.
    Reprotected(JobId),
    /// Failback begins.
    BeginFailback(JobId),
    /// It is given up.
    AbandonFailback(JobId),
    /// The source is the machine again, with what the target wrote.
    FailedBack(JobId),
    /// A test failover begins.
    BeginTest(JobId),
    /// It is cleaned up.
    EndTest(JobId),
}

/// Why something cannot be done with a machine now; the text says what to do.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the machine is {stage}, so {verb} is not possible now; {advice}")]
pub struct LifecycleRefusal {
    /// Its stage, for people.
    pub stage: &'static str,
    /// What was asked for.
    pub verb: &'static str,
    /// What to do.
    pub advice: String,
}

impl Stage {
    /// The stage's name, as in the persisted form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Protected => "protected",
            Self::FailingOver { .. } => "failing-over",
            Self::FailedOver { .. } => "failed-over",
            Self::Committed { .. } => "committed",
            Self::Reprotecting { .. } => "re-protecting",
            Self::ProtectedReversed { .. } => "protected-reversed",
            Self::FailingBack { .. } => "failing-back",
        }
    }

    /// The job that made the target what it is, or is about to.
    #[must_use]
    pub const fn failover(self) -> Option<JobId> {
        match self {
            Self::Protected => None,
            Self::FailingOver { job }
            | Self::FailedOver { job, .. }
            | Self::Committed { job, .. }
            | Self::Reprotecting { job, .. }
            | Self::ProtectedReversed { job, .. }
            | Self::FailingBack { job, .. } => Some(job),
        }
    }

    /// The point where the target's branch begins.
    #[must_use]
    pub const fn point(self) -> Option<PointId> {
        match self {
            Self::Protected | Self::FailingOver { .. } => None,
            Self::FailedOver { point, .. }
            | Self::Committed { point, .. }
            | Self::Reprotecting { point, .. }
            | Self::ProtectedReversed { point, .. }
            | Self::FailingBack { point, .. } => Some(point),
        }
    }

    /// Whether only an operator or a failback leads back to the source.
    #[must_use]
    pub const fn is_target_for_good(self) -> bool {
        matches!(
            self,
            Self::Committed { .. }
                | Self::Reprotecting { .. }
                | Self::ProtectedReversed { .. }
                | Self::FailingBack { .. }
        )
    }

    /// Whether points of the target are made.
    #[must_use]
    pub const fn is_target_replicated(self) -> bool {
        matches!(self, Self::ProtectedReversed { .. } | Self::FailingBack { .. })
    }

    /// What can be done now.
    #[must_use]
    pub fn advice(self) -> String {
        match self {
            Self::Protected => "begin with `holdfast failover` or `holdfast test-failover`".to_owned(),
            Self::FailingOver { job } => {
                format!("wait for job {job} or end it: `holdfast job show {job}`, `holdfast cancel MACHINE`")
            }
            Self::FailedOver { .. } => {
                "`holdfast commit MACHINE` keeps the failover, `holdfast change-point MACHINE` goes \
                 to another point, `holdfast cancel MACHINE` goes back to the source"
                    .to_owned()
            }
            Self::Committed { .. } => {
                "`holdfast change-point MACHINE` goes to another point, `holdfast reprotect MACHINE` \
                 replicates the way back, `holdfast resume MACHINE` gives up what the target wrote"
                    .to_owned()
            }
            Self::Reprotecting { by, .. } | Self::FailingBack { by, .. } => {
                format!("wait for job {by} or end it: `holdfast job show {by}`, `holdfast job cancel {by}`")
            }
            Self::ProtectedReversed { .. } => {
                "`holdfast failback MACHINE` goes back to the source".to_owned()
            }
        }
    }
}

/// For the record of who changed what.
impl fmt::Display for LifecycleEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeginFailover(job) => write!(f, "failover {job} begins"),
            Self::AbandonFailover(job) => write!(f, "failover {job} is given up"),
            Self::Switch(job, point) => write!(f, "failover {job} goes on from point {point}"),
            Self::Unswitch(job) => write!(f, "failover {job} is taken back"),
            Self::Commit => f.write_str("the failover is kept"),
            Self::Resume => f.write_str("what the target has written is given up"),
            Self::BeginReprotect(job) => write!(f, "re-protection {job} begins"),
            Self::AbandonReprotect(job) => write!(f, "re-protection {job} is given up"),
            Self::Reprotected(job) => write!(f, "re-protection {job} is done"),
            Self::BeginFailback(job) => write!(f, "failback {job} begins"),
            Self::AbandonFailback(job) => write!(f, "failback {job} is given up"),
            Self::FailedBack(job) => write!(f, "failback {job} is done"),
            Self::BeginTest(job) => write!(f, "test failover {job} begins"),
            Self::EndTest(job) => write!(f, "test failover {job} is cleaned up"),
        }
    }
}

impl LifecycleEvent {
    const fn verb(self) -> &'static str {
        match self {
            Self::BeginFailover(_) => "failover",
            Self::AbandonFailover(_) | Self::Unswitch(_) => "cancel",
            Self::Switch(..) => "change of point",
            Self::Commit => "commit",
            Self::Resume => "resume",
            Self::BeginReprotect(_) | Self::AbandonReprotect(_) | Self::Reprotected(_) => "reprotect",
            Self::BeginFailback(_) | Self::AbandonFailback(_) | Self::FailedBack(_) => "failback",
            Self::BeginTest(_) => "test failover",
            Self::EndTest(_) => "cleanup",
        }
    }
}

impl Lifecycle {
    /// Whether the source is not the machine: nothing of it is taken.
    #[must_use]
    pub const fn is_fenced(&self) -> bool {
        !matches!(self.stage, Stage::Protected | Stage::FailingOver { .. })
    }

    /// Where the machine stands after an event.
    ///
    /// # Errors
    /// Not possible in this stage; the text says what is.
    pub fn after(&self, event: LifecycleEvent) -> Result<Self, LifecycleRefusal> {
        use LifecycleEvent as Event;
        let mut after = self.clone();
        match event {
            Event::BeginTest(job) => {
                after.tests.insert(job);
                if after.tests.len() > TESTS_MAX {
                    return Err(LifecycleRefusal {
                        stage: "under test many times already",
                        verb: event.verb(),
                        advice: "end those tests with `holdfast test-failover MACHINE --cleanup`".to_owned(),
                    });
                }
            }
            Event::EndTest(job) => _ = after.tests.remove(&job),
            _ => {
                after.stage = next(self.stage, event).ok_or_else(|| LifecycleRefusal {
                    stage: self.stage.name(),
                    verb: event.verb(),
                    advice: self.stage.advice(),
                })?;
            }
        }
        if !after.is_fenced() {
            after.lines.clear();
        }
        Ok(after)
    }
}

fn next(stage: Stage, event: LifecycleEvent) -> Option<Stage> {
    use LifecycleEvent as Event;
    match event {
        Event::BeginFailover(_) | Event::AbandonFailover(_) | Event::Switch(..) | Event::Unswitch(_) => {
            there(stage, event)
        }
        Event::Commit => match stage {
            Stage::FailedOver { job, point } => Some(Stage::Committed { job, point }),
            Stage::Committed { .. } => Some(stage),
            _ => None,
        },
        Event::Resume => match stage {
            Stage::Protected
            | Stage::FailedOver { .. }
            | Stage::Committed { .. }
            | Stage::ProtectedReversed { .. } => Some(Stage::Protected),
            _ => None,
        },
        _ => back(stage, event),
    }
}

/// From the source to the target.
fn there(stage: Stage, event: LifecycleEvent) -> Option<Stage> {
    use LifecycleEvent as Event;
    match (stage, event) {
        (Stage::Protected, Event::BeginFailover(job)) => Some(Stage::FailingOver { job }),
        (Stage::FailingOver { job }, Event::BeginFailover(by) | Event::Unswitch(by)) if job == by => {
            Some(stage)
        }
        (Stage::FailingOver { job }, Event::AbandonFailover(by)) if job == by => Some(Stage::Protected),
        // Somebody else's failover is not touched; one that never began here has nothing to give up.
        (_, Event::AbandonFailover(by) | Event::Unswitch(by)) if stage.failover() != Some(by) => Some(stage),
        (Stage::FailingOver { job } | Stage::FailedOver { job, .. }, Event::Switch(by, point))
            if job == by =>
        {
            Some(Stage::FailedOver { job, point })
        }
        (Stage::Committed { job, .. }, Event::Switch(by, point)) if job == by => {
            Some(Stage::Committed { job, point })
        }
        (Stage::FailedOver { job, .. }, Event::Unswitch(_)) => Some(Stage::FailingOver { job }),
        // What was committed stays, whatever becomes of what the job holds.
        (Stage::Committed { .. }, Event::AbandonFailover(_) | Event::Unswitch(_)) => Some(stage),
        _ => None,
    }
}

/// From the target to the source.
fn back(stage: Stage, event: LifecycleEvent) -> Option<Stage> {
    use LifecycleEvent as Event;
    match (stage, event) {
        (Stage::Committed { job, point }, Event::BeginReprotect(by)) => {
            Some(Stage::Reprotecting { job, point, by })
        }
        (Stage::Reprotecting { job, point, by }, event) => match event {
            Event::BeginReprotect(of) if of == by => Some(stage),
            Event::AbandonReprotect(of) if of == by => Some(Stage::Committed { job, point }),
            Event::Reprotected(of) if of == by => Some(Stage::ProtectedReversed { job, point }),
            Event::AbandonReprotect(_) => Some(stage),
            _ => None,
        },
        (Stage::ProtectedReversed { job, point }, Event::BeginFailback(by)) => {
            Some(Stage::FailingBack { job, point, by })
        }
        (Stage::FailingBack { job, point, by }, event) => match event {
            Event::BeginFailback(of) if of == by => Some(stage),
            Event::AbandonFailback(of) if of == by => Some(Stage::ProtectedReversed { job, point }),
            Event::FailedBack(of) if of == by => Some(Stage::Protected),
            Event::AbandonFailback(_) => Some(stage),
            _ => None,
        },
        // Repeated after they were done, or given up without having begun.
        (Stage::ProtectedReversed { .. }, Event::Reprotected(_))
        | (Stage::Protected, Event::FailedBack(_))
        | (_, Event::AbandonReprotect(_) | Event::AbandonFailback(_)) => Some(stage),
        _ => None,
    }
}

/// Test failovers of one machine at a time.
pub const TESTS_MAX: usize = 16;

#[cfg(test)]
mod tests;
