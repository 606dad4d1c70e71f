//! One choice for several machines.
//!
//! Owns the rule. Pure. Members of a replication group go to the newest point that all machines of the group have; a
//! machine of no group goes to its own newest, as the others would if they were in none.
//! Invariant: two machines of one group never get points of different group cuts from a choice for groups.

use std::collections::BTreeMap;

use holdfast_common::{frame::cut::Consistency, ids::MachineId};
use uuid::Uuid;

use super::{Candidate, Choice, GroupCut, Refusal, Selection, choose, chosen, is_good};

/// What each machine may be given: those to choose for, and the other machines of their groups.
pub type Candidates = BTreeMap<MachineId, Vec<Candidate>>;

/// Chooses a point for each machine of `set`. Candidates are in the order of the logs, oldest first.
#[must_use]
pub fn choose_set(
    set: &[MachineId],
    all: &Candidates,
    selection: Selection,
) -> BTreeMap<MachineId, Result<Choice, Refusal>> {
    let each = |machine: &MachineId| {
        let candidates = all.get(machine).map(Vec::as_slice).unwrap_or_default();
        (*machine, choose_one(candidates, all, selection))
    };
    set.iter().map(each).collect()
}

fn choose_one(candidates: &[Candidate], all: &Candidates, selection: Selection) -> Result<Choice, Refusal> {
    let (wanted, alone) = match selection {
        Selection::LatestMultiVm => (Wanted::Any, Selection::Latest),
        Selection::LatestMultiVmAppConsistent => (Wanted::App, Selection::LatestAppConsistent),
        own => return choose(candidates, own),
    };
    match candidates.iter().rev().find_map(|candidate| candidate.group.as_ref()) {
        None => choose(candidates, alone),
        Some(newest) => common(candidates, newest, all, wanted),
    }
}

#[derive(Clone, Copy)]
enum Wanted {
    Any,
    App,
}

/// The newest cut of the group that is a good point of all its machines.
fn common(
    candidates: &[Candidate],
    newest: &GroupCut,
    all: &Candidates,
    wanted: Wanted,
) -> Result<Choice, Refusal> {
    for candidate in candidates.iter().rev() {
        let Some(cut) = candidate.group.as_ref().filter(|cut| cut.group == newest.group) else { continue };
        if is_common(cut, all, wanted) && is_good(candidate) {
            let own = candidates.iter().rev().take_while(|newer| newer.point != candidate.point).count();
            let remark = format!("the newest point in common; the machine itself has {own} newer cuts");
            return Ok(chosen(candidate, if own > 0 { vec![remark] } else { Vec::new() }));
        }
    }
    let wanted = match wanted {
        Wanted::Any => "common",
        Wanted::App => "common app-consistent",
    };
    Err(Refusal::NoneCommon { wanted, machines: newest.members.len() })
}

fn is_common(cut: &GroupCut, all: &Candidates, wanted: Wanted) -> bool {
    cut.members.iter().all(|member| {
        let found = all.get(member).and_then(|candidates| part(candidates, cut.cut));
        found.is_some_and(|found| {
            is_good(found) && (matches!(wanted, Wanted::Any) || found.consistency == Consistency::App)
        })
    })
}

/// A machine's part of a group cut.
fn part(candidates: &[Candidate], cut: Uuid) -> Option<&Candidate> {
    candidates.iter().rev().find(|candidate| candidate.group.as_ref().is_some_and(|found| found.cut == cut))
}

/// The other machines whose candidates a choice for `candidates` needs.
#[must_use]
pub fn mates(candidates: &[Candidate]) -> Vec<MachineId> {
    let groups = candidates.iter().filter_map(|candidate| candidate.group.as_ref());
    let mut mates: Vec<MachineId> = groups.flat_map(|cut| cut.members.iter().copied()).collect();
    mates.sort_unstable();
    mates.dedup();
    mates
}

#[cfg(test)]
mod tests;
