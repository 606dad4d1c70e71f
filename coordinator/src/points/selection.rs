//! Which recovery point an operator's choice means.
//!
//! Owns the choices and the rule for each; of a set of machines in [`set`], and why others were not chosen in
//! [`passed`]. Pure: candidates in, choice or refusal out; knows no catalog and no clock.
//! Invariant: an interval that has not fully arrived, or a void cut, is never chosen, by no selection.
//! Format: `Selection` is persisted in jobs' logs; variants are only ever appended.

pub mod passed;
pub mod set;

use std::{fmt, str::FromStr};

use holdfast_common::{
    clock::Timestamp,
    frame::cut::Consistency,
    ids::{MachineId, PointId},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// What the operator asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// The newest complete cut received; it is processed first if it is still pending. Least data lost.
    Latest,
    /// The newest point that is already processed. Least time lost.
    LatestProcessed,
    /// This point.
    Point(PointId),
    /// The newest point whose cut was at this time or before.
    AtOrBefore(Timestamp),
    /// The newest app-consistent point; it is processed first if it is still pending.
    LatestAppConsistent,
    /// The newest point that all machines of the group have in common; a machine of no group goes to its latest.
    LatestMultiVm,
    /// The newest app-consistent point that all machines of the group have in common; a machine of no group goes to its
    /// latest app-consistent one.
    LatestMultiVmAppConsistent,
}

/// A cut that the coordinator knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The point that the cut makes.
    pub point: PointId,
    /// The source's wall clock at the cut. Not used for ordering, since it may step.
    pub at: Timestamp,
    /// What the point may be called.
    pub consistency: Consistency,
    /// How far it has come.
    pub state: CandidateState,
    /// The group cut that it is a part of, if it is one.
    pub group: Option<GroupCut>,
}

/// A cut of several machines at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupCut {
    /// The cut; the same in the candidates of all its machines.
    pub cut: Uuid,
    /// The group.
    pub group: Uuid,
    /// All machines of the cut. Only what each of them has is a point of the group.
    pub members: Vec<MachineId>,
}

/// How far a cut has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CandidateState {
    /// Some disks' frames have not arrived yet.
    Arriving {
        /// Disks whose cut is not durable here.
        disks_missing: u32,
    },
    /// Complete and durable, not yet processed.
    Pending,
    /// Verified and attachable at once.
    Processed,
    /// The cut failed on the source.
    Void {
        /// Why, for the operator.
        reason: String,
    },
    /// Complete, but some stored bytes are damaged; these ranges give errors when read.
    Damaged {
        /// What is damaged, for the operator.
        detail: String,
    },
}

/// The point that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The point.
    pub point: PointId,
    /// The source's wall clock at its cut.
    pub at: Timestamp,
    /// Whether it has to be processed before it can be opened.
    pub pending: bool,
    /// What the operator should know (newer points that were passed over, damage).
    pub remarks: Vec<String>,
}

/// Why no point was chosen. The text says what to do.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// There is nothing to choose from.
    #[error("the machine has no complete recovery point yet; {arriving} still arriving")]
    NoneComplete {
        /// Cuts that have not fully arrived.
        arriving: usize,
    },
    /// Points exist, but none of the wanted kind.
    #[error("none of the machine's {complete} complete points is {wanted}; choose `latest` or a point's id")]
    NoneOfKind {
        /// What was asked for.
        wanted: &'static str,
        /// Complete points.
        complete: usize,
    },
    /// Every complete point needs stored bytes that are damaged.
    #[error(
        "all {complete} complete points of the machine are damaged (the newest, {newest}: {detail}); if the source lives, \
         connect it and wait for a new point, otherwise choose a point by its id: damaged ranges give IO errors, the \
         rest is good"
    )]
    AllDamaged {
        /// Complete points.
        complete: usize,
        /// The newest of them.
        newest: PointId,
        /// What is damaged of it.
        detail: String,
    },
    /// All points are newer than the wanted time.
    #[error("the machine's oldest point is newer than the time asked for; choose one from `holdfast points`")]
    NoneSoOld,
    /// Its group has no common point that all its machines have.
    #[error(
        "the machine's group has no {wanted} point that all its {machines} machines have; wait for one, or choose `latest` \
         for each machine"
    )]
    NoneCommon {
        /// What was asked for.
        wanted: &'static str,
        /// Machines of the newest group cut.
        machines: usize,
    },
    /// A choice for a group was asked of one machine alone.
    #[error(
        "a point of a group is chosen for all its machines together; use `holdfast failover` with `--point {wanted}`"
    )]
    NeedsSet {
        /// What was asked for.
        wanted: &'static str,
    },
    /// The machine has no such point.
    #[error("the machine has no point {point}; `holdfast points` lists them")]
    Unknown {
        /// What was asked for.
        point: PointId,
    },
    /// The point has not fully arrived.
    #[error(
        "point {point} has not fully arrived ({disks_missing} disks missing); wait, or choose an older one"
    )]
    Incomplete {
        /// What was asked for.
        point: PointId,
        /// Disks whose cut is not durable here.
        disks_missing: u32,
    },
    /// The cut failed.
    #[error("the cut of point {point} is void ({reason}); choose another one")]
    Void {
        /// What was asked for.
        point: PointId,
        /// Why, as the source said.
        reason: String,
    },
}

/// Chooses a point. `candidates` are the machine's cuts in the order of their disks' logs, oldest first.
///
/// # Errors
/// Nothing fits; the refusal says why and what to do.
pub fn choose(candidates: &[Candidate], selection: Selection) -> Result<Choice, Refusal> {
    match selection {
        Selection::Point(point) => by_id(candidates, point),
        Selection::Latest => newest(candidates, "complete", |_| true),
        Selection::LatestProcessed => {
            newest(candidates, "processed", |candidate| candidate.state == CandidateState::Processed)
        }
        Selection::LatestAppConsistent => newest(candidates, "app-consistent and undamaged", |candidate| {
            candidate.consistency == Consistency::App
        }),
        Selection::AtOrBefore(time) => {
            let old_enough = |candidate: &Candidate| candidate.at <= time;
            newest(candidates, "undamaged and old enough", old_enough).map_err(|refusal| match refusal {
                Refusal::NoneOfKind { .. } if !candidates.iter().any(old_enough) => Refusal::NoneSoOld,
                other => other,
            })
        }
        Selection::LatestMultiVm => Err(Refusal::NeedsSet { wanted: "latest-multi-vm" }),
        Selection::LatestMultiVmAppConsistent => {
            Err(Refusal::NeedsSet { wanted: "latest-multi-vm-app-consistent" })
        }
    }
}

/// The newest usable candidate that is wanted. Damaged ones are passed over, with a remark, since an operator who names
/// no point wants one that works.
fn newest(
    candidates: &[Candidate],
    wanted_name: &'static str,
    wanted: impl Fn(&Candidate) -> bool,
) -> Result<Choice, Refusal> {
    let mut remarks = Vec::new();
    for candidate in candidates.iter().rev() {
        match &candidate.state {
            CandidateState::Arriving { .. } | CandidateState::Void { .. } => {}
            CandidateState::Damaged { detail } if remarks.len() < REMARKS_MAX => {
                remarks.push(format!("point {} was passed over: {detail}", candidate.point));
            }
            CandidateState::Pending | CandidateState::Processed if wanted(candidate) => {
                return Ok(chosen(candidate, remarks));
            }
            _ => {}
        }
    }
    let complete = candidates.iter().filter(|candidate| is_complete(candidate)).count();
    if complete == 0 {
        return Err(Refusal::NoneComplete { arriving: candidates.iter().filter(|c| is_arriving(c)).count() });
    }
    let is_damaged = |candidate: &&Candidate| matches!(candidate.state, CandidateState::Damaged { .. });
    let damaged = candidates.iter().filter(is_damaged).count();
    match candidates.iter().rev().find(is_damaged) {
        Some(Candidate { point, state: CandidateState::Damaged { detail }, .. }) if damaged == complete => {
            Err(Refusal::AllDamaged { complete, newest: *point, detail: detail.clone() })
        }
        _ => Err(Refusal::NoneOfKind { wanted: wanted_name, complete }),
    }
}

/// The point with this id, also if it is damaged: it may be the only one, and damaged ranges give errors, not wrong data.
fn by_id(candidates: &[Candidate], point: PointId) -> Result<Choice, Refusal> {
    let Some(candidate) = candidates.iter().find(|candidate| candidate.point == point) else {
        return Err(Refusal::Unknown { point });
    };
    match &candidate.state {
        CandidateState::Arriving { disks_missing } => {
            Err(Refusal::Incomplete { point, disks_missing: *disks_missing })
        }
        CandidateState::Void { reason } => Err(Refusal::Void { point, reason: reason.clone() }),
        CandidateState::Damaged { detail } => Ok(chosen(candidate, vec![format!("damaged: {detail}")])),
        CandidateState::Pending | CandidateState::Processed => Ok(chosen(candidate, Vec::new())),
    }
}

fn chosen(candidate: &Candidate, remarks: Vec<String>) -> Choice {
    let pending = candidate.state == CandidateState::Pending;
    Choice { point: candidate.point, at: candidate.at, pending, remarks }
}

fn is_arriving(candidate: &Candidate) -> bool {
    matches!(candidate.state, CandidateState::Arriving { .. })
}

/// Whether it can be had without damage.
fn is_good(candidate: &Candidate) -> bool {
    matches!(candidate.state, CandidateState::Pending | CandidateState::Processed)
}

fn is_complete(candidate: &Candidate) -> bool {
    !matches!(candidate.state, CandidateState::Arriving { .. } | CandidateState::Void { .. })
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::LatestProcessed => f.write_str("latest-processed"),
            Self::LatestAppConsistent => f.write_str("latest-app-consistent"),
            Self::LatestMultiVm => f.write_str("latest-multi-vm"),
            Self::LatestMultiVmAppConsistent => f.write_str("latest-multi-vm-app-consistent"),
            Self::Point(point) => point.fmt(f),
            Self::AtOrBefore(time) => match jiff::Timestamp::from_microsecond(time.0) {
                Ok(time) => write!(f, "{time}"),
                Err(_) => write!(f, "{} us", time.0),
            },
        }
    }
}

/// The text names no selection.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "`{text}` is no selection: use latest, latest-processed, latest-app-consistent, latest-multi-vm, \
     latest-multi-vm-app-consistent, a point's id, or a time (2026-11-25T22:00:00Z: the newest point at or before it)"
)]
pub struct SelectionUnknown {
    /// What was given.
    pub text: String,
}

impl FromStr for Selection {
    type Err = SelectionUnknown;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "latest" => Ok(Self::Latest),
            "latest-processed" => Ok(Self::LatestProcessed),
            "latest-app-consistent" => Ok(Self::LatestAppConsistent),
            "latest-multi-vm" => Ok(Self::LatestMultiVm),
            "latest-multi-vm-app-consistent" => Ok(Self::LatestMultiVmAppConsistent),
            other => {
                let time = other.parse::<jiff::Timestamp>().map(|time| Timestamp(time.as_microsecond()));
                other
                    .parse()
                    .map(Self::Point)
                    .or(time.map(Self::AtOrBefore))
                    .map_err(|_| SelectionUnknown { text: other.chars().take(80).collect() })
            }
        }
    }
}

/// Remarks about passed-over points that a choice carries at most.
const REMARKS_MAX: usize = 8;

#[cfg(test)]
mod tests;
