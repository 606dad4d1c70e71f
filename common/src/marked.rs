//! Processes that a plan's step has started, found by their environment.
//!
//! Owns the marks' names and the search. Whoever started them may have been killed, so nothing but the environment that they have
//! inherited says whose they are.

use std::{collections::HashSet, fmt, fs, thread, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

use crate::ids::JobId;

/// Names the job in the environment of what a step starts.
const JOB: &str = "HOLDFAST_JOB";
/// Names the step, counted from zero.
const STEP: &str = "HOLDFAST_STEP";
/// Names who has started it: several agents of one host may work for the same step.
const STARTED_BY: &str = "HOLDFAST_STARTED_BY";
/// Looks for what is left, until there is nothing.
const LOOKS_MAX: usize = 100;
/// Pause between two of them.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// The kernel's flag of its own threads (`PF_KTHREAD` in `include/linux/sched.h`).
const KERNEL_THREAD: u64 = 0x0020_0000;

/// What tells the processes of one step on one side from all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The plan's job.
    pub job: JobId,
    /// Its step, counted from zero.
    pub step: u32,
    /// Who starts them; no other on this host has the same name.
    pub by: String,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} of job {}", self.step, self.job)
    }
}

impl Mark {
    /// The variables that a process is to be started with.
    #[must_use]
    pub fn variables(&self) -> [(&'static str, String); 3] {
        [(JOB, self.job.to_string()), (STEP, self.step.to_string()), (STARTED_BY, self.by.clone())]
    }

    /// Kills all processes with this mark, those as well that they start meanwhile, and gives how many: looks until there is none,
    /// [`LOOKS_MAX`] times at most. Blocks.
    #[must_use]
    pub fn end(&self) -> usize {
        let mut killed = HashSet::new();
        for _ in 0..LOOKS_MAX {
            if !self.look(&mut killed) {
                break;
            }
            thread::sleep(LOOK_PAUSE);
        }
        killed.len()
    }

    /// Kills those that can be seen now; whether more may be left. One that is just becoming another program may be ours: what is
    /// in its environment cannot be seen in that moment.
    fn look(&self, killed: &mut HashSet<Pid>) -> bool {
        let marks = self.variables().map(|(name, value)| format!("{name}={value}"));
        let mut is_left = false;
        let Ok(processes) = fs::read_dir("/proc") else { return false };
        for entry in processes.flatten() {
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            let Some(id) = id else { continue };
            // Those of others cannot be read, and are not ours.
            let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
            let has =
                |mark: &String| environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes());
            if environment.is_empty() {
                let status = fs::read_to_string(entry.path().join("stat"));
                is_left |= status.is_ok_and(|status| is_between_programs(&status));
            } else if marks.iter().all(has) && kill_process(id, Signal::KILL).is_ok() {
                killed.insert(id);
                is_left = true;
            }
        }
        is_left
    }
}

/// Whether a process has left its program and not yet got the next: the kernel notes where the environment is only when it has laid it
/// out, which takes as long as reading the program takes. `status` is `/proc/PID/stat` (see proc_pid_stat(5)).
fn is_between_programs(status: &str) -> bool {
    let Some((_, rest)) = status.rsplit_once(')') else { return false };
    // The first field behind the name is the third.
    let field = |number: usize| rest.split_whitespace().nth(number - 3);
    let number = |index| field(index).and_then(|text| text.parse::<u64>().ok());
    let is_alive = field(3).is_some_and(|state| !matches!(state, "Z" | "X" | "x"));
    let is_kernel = number(9).is_none_or(|flags| flags & KERNEL_THREAD != 0);
    is_alive && !is_kernel && number(51) == Some(0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{Mark, is_between_programs};
    use crate::ids::JobId;

    fn mark(by: &str) -> Mark {
        Mark { job: JobId::from_bytes([3; 16]), step: 4, by: by.to_owned() }
    }

    #[test]
    fn those_of_another_on_the_same_host_are_left_alone() {
        let mut child = Command::new("sleep").arg("1000").envs(mark("one").variables()).spawn().unwrap();
        assert_eq!(mark("two").end(), 0);
        assert_eq!(child.try_wait().unwrap(), None);
        assert_eq!(mark("one").end(), 1);
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_process_without_environment_is_told_from_one_whose_environment_cannot_be_seen_yet() {
        let status = |state: &str, flags: u64, end: u64| {
            let between = "0 ".repeat(41);
            format!("7 (a ) b) {state} 1 1 1 0 -1 {flags} {between}{end} 0")
        };
        assert!(is_between_programs(&status("R", 0x0040_0000, 0)));
        assert!(!is_between_programs(&status("R", 0x0040_0000, 4096)));
        assert!(!is_between_programs(&status("Z", 0x0040_0000, 0)));
        assert!(!is_between_programs(&status("I", 0x0020_8040, 0)));
        assert!(!is_between_programs("not a status"));
    }
}
