//! Why newer cuts were not chosen.
//!
//! Owns the wording. Pure.
//! Limit: [`PASSED_SHOWN`] cuts are told; of the others the number.

use holdfast_common::{clock::Timestamp, frame::cut::Consistency, ids::PointId};

use super::{Candidate, CandidateState, Choice, Selection};

/// Newer cuts that are told one by one, the newest.
pub const PASSED_SHOWN: usize = 20;

/// A cut that is newer than the chosen one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The point that it makes, or would make.
    pub point: PointId,
    /// The source's wall clock at the cut.
    pub at: Timestamp,
    /// Why it was not chosen.
    pub why: String,
}

/// All cuts that are newer than the chosen one in the logs' order: the newest [`PASSED_SHOWN`], and the number of all.
#[must_use]
pub fn passed(candidates: &[Candidate], choice: &Choice, selection: Selection) -> (Vec<Passed>, usize) {
    let newer = || candidates.iter().rev().take_while(|candidate| candidate.point != choice.point);
    let told = newer().take(PASSED_SHOWN).map(|candidate| Passed {
        point: candidate.point,
        at: candidate.at,
        why: why(candidate, selection),
    });
    (told.collect(), newer().count())
}

/// Why a candidate was not chosen.
fn why(candidate: &Candidate, selection: Selection) -> String {
    match &candidate.state {
        CandidateState::Arriving { disks_missing: 1 } => {
            "incomplete: the cut of 1 disk has not arrived".to_owned()
        }
        CandidateState::Arriving { disks_missing } => {
            format!("incomplete: the cuts of {disks_missing} disks have not arrived")
        }
        CandidateState::Void { reason } => format!("void: {reason}"),
        CandidateState::Damaged { detail } => format!("damaged: {detail}"),
        CandidateState::Pending if selection == Selection::LatestProcessed => {
            "complete, but not yet processed".to_owned()
        }
        CandidateState::Pending | CandidateState::Processed => unwanted(candidate, selection),
    }
}

fn unwanted(candidate: &Candidate, selection: Selection) -> String {
    let is_app = candidate.consistency == Consistency::App;
    match selection {
        Selection::LatestAppConsistent | Selection::LatestMultiVmAppConsistent if !is_app => {
            "crash-consistent only".to_owned()
        }
        Selection::LatestMultiVm | Selection::LatestMultiVmAppConsistent if candidate.group.is_none() => {
            "of this machine alone, not of its group".to_owned()
        }
        Selection::LatestMultiVm | Selection::LatestMultiVmAppConsistent => {
            "not every machine of the group has it".to_owned()
        }
        Selection::AtOrBefore(_) => "newer than the time asked for".to_owned(),
        _ => "another point was asked for".to_owned(),
    }
}

#[cfg(test)]
mod tests;
