//! What of a plan is wrong here and now: machines that are not known, programs that cannot be run, groups that need each other.
//!
//! Owns the rules; what there is comes through [`Surroundings`]. Pure but for that.

use std::{collections::BTreeMap, path::Path};

use holdfast_common::ids::MachineId;

use super::{Place, What, file::PlanFile, read::Mistake};

/// What a plan is checked against.
pub trait Surroundings {
    /// The machine of a name or id; why not, and what to do, if there is no single one.
    ///
    /// # Errors
    /// There is none.
    fn machine(&self, name: &str) -> Result<MachineId, String>;

    /// The machine of an agent, whether it is protected or not; why not, and what to do, if there is no single one.
    ///
    /// # Errors
    /// There is none.
    fn agent(&self, name: &str) -> Result<MachineId, String>;

    /// Whether a program may and can be run.
    ///
    /// # Errors
    /// Not; the text says why.
    fn program(&self, path: &Path) -> Result<(), String>;

    /// Whether there is such a network here.
    ///
    /// # Errors
    /// Not; the text says why.
    fn network(&self, name: &str) -> Result<(), String>;
}

/// Every mistake that can be seen without running the plan, by line; and the machines that its names stand for.
#[must_use]
pub fn check(file: &PlanFile, here: &dyn Surroundings) -> (Vec<Mistake>, BTreeMap<String, MachineId>) {
    let mut mistakes = Vec::new();
    let mut say = |line: usize, text: String| mistakes.push(Mistake { line, text });
    let mut known: BTreeMap<String, MachineId> = BTreeMap::new();
    let mut placed: BTreeMap<MachineId, (&str, usize)> = BTreeMap::new();
    for group in &file.groups {
        for (name, line) in &group.machines {
            match here.machine(name) {
                Err(error) => say(*line, error),
                Ok(machine) => {
                    if let Some((first, at)) = placed.get(&machine) {
                        say(*line, format!("machine {name} is in the plan already, as {first} in line {at}"));
                    } else {
                        placed.insert(machine, (name, *line));
                        known.insert(name.clone(), machine);
                    }
                }
            }
        }
        for action in group.before.iter().chain(&group.after) {
            if let What::Script { on: Place::Coordinator, command, .. } = &action.action.what
                && let Some(program) = command.first().filter(|program| program.starts_with('/'))
                && let Err(error) = here.program(Path::new(program))
            {
                say(action.line, error);
            }
        }
    }
    for (name, line) in file.agents() {
        if let Err(error) = here.agent(name) {
            say(line, error);
        }
    }
    if let Err(left) = file.waves() {
        let groups: Vec<_> = left.iter().filter_map(|number| file.groups.get(*number)).collect();
        let names: Vec<&str> = groups.iter().map(|group| &*group.name).collect();
        let text = format!("groups {} need each other, so none of them can be first", names.join(", "));
        say(groups.first().map_or(1, |group| group.line), text);
    }
    for (network, line) in &file.network_lines {
        if !["user", "isolated"].contains(&&**network)
            && let Err(error) = here.network(network)
        {
            say(*line, error);
        }
    }
    mistakes.sort();
    (mistakes, known)
}
