//! The programs' own command lines, run as a user would, and shown as they run.
//!
//! Owns where the programs are and how their JSON is read. The quickstart knows the product only through this.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{interrupt::Interrupt, scenery::run};

/// The three programs, and the coordinator they talk to.
#[derive(Debug)]
pub(super) struct Commands {
    folder: PathBuf,
    socket: PathBuf,
    quiet: bool,
    interrupt: Interrupt,
}

/// A recovery point in the list.
#[derive(Clone, Debug)]
pub(super) struct Point {
    pub(super) id: String,
    pub(super) rpo_ms: f64,
    pub(super) hold_ms: f64,
}

/// A point that is being served.
#[derive(Clone, Debug)]
pub(super) struct Attachment {
    pub(super) job: String,
    pub(super) socket: PathBuf,
    pub(super) export: String,
}

impl Commands {
    /// The programs beside the running one.
    pub(super) fn beside_this(socket: &Path, quiet: bool, interrupt: Interrupt) -> Result<Self> {
        let this = std::env::current_exe().context("where this program is")?;
        let folder = this.parent().context("where this program is")?.to_owned();
        for name in ["holdfast", "holdfast-agent", "holdfast-coordinator"] {
            if !folder.join(name).is_file() {
                bail!(
                    "{name} is not beside this program in {}; build all with: cargo build --release",
                    folder.display()
                );
            }
        }
        Ok(Self { folder, socket: socket.to_owned(), quiet, interrupt })
    }

    /// Path of a program.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Shows a command as a user would type it.
    pub(super) fn show(&self, command: &str) {
        if !self.quiet {
            println!("  $ {command}");
        }
    }

    /// Tells what happens next.
    pub(super) fn say(&self, text: &str) {
        if !self.quiet {
            println!("{text}");
        }
    }

    /// Runs `holdfast ARGUMENTS` and reads its JSON.
    pub(super) fn ask(&self, arguments: &[&str]) -> Result<Value> {
        ensure!(!self.interrupt.happened(), "interrupted");
        self.ask_at_the_end(arguments)
    }

    /// Like `ask`, also after an interrupt: for what takes things down.
    pub(super) fn ask_at_the_end(&self, arguments: &[&str]) -> Result<Value> {
        let socket = self.socket.to_string_lossy();
        let mut all = vec!["--coordinator", socket.as_ref(), "--json"];
        all.extend(arguments);
        let text = run(&self.program("holdfast").to_string_lossy(), all)?;
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(&text)
            .or_else(|_| serde_json::from_str(last))
            .context("reading the command's JSON")
    }

    /// Like `ask`, and shows the command.
    pub(super) fn tell(&self, arguments: &[&str]) -> Result<Value> {
        self.show(&format!("holdfast {}", arguments.join(" ")));
        self.ask(arguments)
    }

    /// The machine's complete points, oldest first.
    pub(super) fn points(&self, machine: &str) -> Result<Vec<Point>> {
        let listed = self.ask(&["points", machine])?;
        let list = listed.as_array().or_else(|| listed["points"].as_array()).context("the list of points")?;
        let mut points: Vec<_> = list.iter().collect();
        points.sort_by_key(|point| point["at_us"].as_i64());
        let read = |point: &&Value| {
            Some(Point {
                id: point["id"].as_str()?.to_owned(),
                rpo_ms: point["rpo_us"].as_f64()? / 1000.0,
                hold_ms: point["hold_us"].as_f64()? / 1000.0,
            })
        };
        points.iter().map(|point| read(point).context("reading the list of points")).collect()
    }

    /// Attaches a point of a machine with one disk.
    pub(super) fn attach(&self, machine: &str, point: &str) -> Result<Attachment> {
        let answer = self.ask(&["test-failover", machine, "--point", point, "--attach"])?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let export = &answer["exports"][0];
        Ok(Attachment {
            job: text(&answer["id"]).context("the job's id")?,
            socket: text(&export["socket"]).context("the export's socket")?.into(),
            export: text(&export["name"]).context("the export's name")?,
        })
    }

    /// Waits until `condition` gives a value.
    pub(super) fn wait<T>(
        &self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let step = Duration::from_millis(50);
        let mut waited = Duration::ZERO;
        loop {
            ensure!(!self.interrupt.happened(), "interrupted");
            if let Some(value) = condition()? {
                return Ok(value);
            }
            if waited >= limit {
                bail!("waited {} s for {what}", limit.as_secs());
            }
            std::thread::sleep(step);
            waited += step;
        }
    }
}
