//! A plan's file as it is read, with the lines of what may be wrong in it.
//!
//! Owns the types and the order of groups. Pure. The format is in docs/plans.md; `read` makes it of text.

use std::{collections::BTreeMap, path::PathBuf};

use super::{Action, OnError, Place, What, When, course::Direction};
use crate::points::selection::Selection;

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanFile {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Which points, if nothing is said at the failover.
    pub selection: Selection,
    /// What is made of them, if nothing is said.
    pub target: FileTarget,
    /// Networks at the target by the sources' cards.
    pub networks: BTreeMap<String, String>,
    /// The same in a test.
    pub test_networks: BTreeMap<String, String>,
    /// Lines of both, for what is wrong with a network.
    pub network_lines: Vec<(String, usize)>,
    /// Groups.
    pub groups: Vec<FileGroup>,
}

/// What a plan makes of points.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FileTarget {
    /// Devices.
    #[default]
    Attach,
    /// Devices that are written to.
    Writable,
    /// Machines; moved to images of their own or not.
    Machine {
        /// Moved.
        stream: bool,
    },
    /// Images below a folder, one folder per machine.
    Image {
        /// The folder.
        folder: PathBuf,
        /// "raw" or "qcow2".
        format: String,
    },
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileGroup {
    /// Its name.
    pub name: String,
    /// Where it begins.
    pub line: usize,
    /// Names or ids of machines, with their lines.
    pub machines: Vec<(String, usize)>,
    /// Numbers of the groups that come before.
    pub needs: Vec<usize>,
    /// How long its machines may take, in milliseconds.
    pub time_limit_ms: u64,
    /// What follows if one fails.
    pub on_error: OnError,
    /// Actions before its machines.
    pub before: Vec<FileAction>,
    /// Actions after them.
    pub after: Vec<FileAction>,
}

/// An action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileAction {
    /// The action.
    pub action: Action,
    /// The only direction in which it is done, if there is one.
    pub direction: Option<Direction>,
    /// Where it stands.
    pub line: usize,
}

impl FileGroup {
    /// The actions on one side of its machines.
    #[must_use]
    pub fn actions(&self, when: When) -> &[FileAction] {
        match when {
            When::Before => &self.before,
            When::After => &self.after,
        }
    }
}

impl PlanFile {
    /// The groups in the order in which they move: all of a wave side by side, each after everything that it needs.
    ///
    /// # Errors
    /// Groups that need each other.
    pub fn waves(&self) -> Result<Vec<Vec<usize>>, Vec<usize>> {
        let mut waves: Vec<Vec<usize>> = Vec::new();
        let mut done = vec![false; self.groups.len()];
        loop {
            let ready = |(number, group): (usize, &FileGroup)| {
                let waits = group.needs.iter().any(|need| !done.get(*need).copied().unwrap_or(true));
                (!waits && !done.get(number).copied().unwrap_or(true)).then_some(number)
            };
            let wave: Vec<usize> = self.groups.iter().enumerate().filter_map(ready).collect();
            if wave.is_empty() {
                break;
            }
            for number in &wave {
                if let Some(done) = done.get_mut(*number) {
                    *done = true;
                }
            }
            waves.push(wave);
        }
        let left: Vec<usize> =
            done.iter().enumerate().filter(|(_, done)| !**done).map(|(number, _)| number).collect();
        if left.is_empty() { Ok(waves) } else { Err(left) }
    }

    /// All agents that run programs for it, each with the line of an action.
    pub fn agents(&self) -> impl Iterator<Item = (&str, usize)> {
        let actions = self.groups.iter().flat_map(|group| group.before.iter().chain(&group.after));
        actions.filter_map(|action| match &action.action.what {
            What::Script { on: Place::Agent(name), .. } => Some((name.as_str(), action.line)),
            _ => None,
        })
    }

    /// All machines that it names, in order.
    pub fn machines(&self) -> impl Iterator<Item = &str> {
        self.groups.iter().flat_map(|group| group.machines.iter().map(|(name, _)| name.as_str()))
    }
}
