//! Holdfast's benches: every figure as a ratio to a limit measured in the same run.

mod applications;
mod groups;
mod index;
mod failback;
mod lifecycle;
mod attach;
mod boot;
mod debian;
mod machine;
mod materialize;
mod nbd;
mod process;
mod peers;
mod plan;
mod plot;
mod protection;
mod quic;
mod reclaim;
mod report;
mod sending;
mod stages;
mod store;
mod tracking;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::Parser;

use report::Row;

/// Measures Holdfast on this machine and prints each figure beside its limit.
#[derive(Debug, Parser)]
struct Arguments {
    /// Shorter runs: less than ten minutes in all.
    #[arg(long)]
    quick: bool,
    /// Also writes the figures to this file, as a list of JSON objects; anew after each bench.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also draws the peers' times into this file, as SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Only the loads whose name has this text in it, of benches that have several (hold, process).
    #[arg(long, value_name = "TEXT")]
    load: Option<String>,
    /// Names the benches and ends.
    #[arg(long)]
    list: bool,
    /// Processes the journal in this store once, and prints the peak of resident memory in bytes.
    #[arg(long, value_name = "DIR", hide = true)]
    process_once: Option<PathBuf>,
    /// Benches to run; all if none is named.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// What a bench needs to know about the run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    /// Whether to keep it short.
    pub(crate) quick: bool,
    /// Where to draw the peers' times.
    pub(crate) plot: Option<&'a std::path::Path>,
    /// Text that the name of a load must have in it.
    pub(crate) load: Option<&'a str>,
}

impl Run<'_> {
    /// Whether a load of this name is wanted.
    pub(crate) fn wants(self, load: &str) -> bool {
        self.load.is_none_or(|text| load.contains(text))
    }
}

type Bench = fn(Run<'_>) -> anyhow::Result<Vec<Row>>;

/// All benches, in the order in which they run.
const BENCHES: &[(&str, Bench)] = &[
    ("sending", sending::sending),
    ("store", store::store),
    ("rpo", protection::rpo),
    ("memory", protection::memory),
    ("hold", protection::hold),
    ("group", groups::group),
    ("applications", applications::applications),
    ("nbd", nbd::nbd),
    ("tracking", tracking::tracking),
    ("reclaim", reclaim::reclaim),
    ("process", process::process),
    ("ingest", store::ingest),
    ("index", index::index),
    ("materialize", materialize::materialize),
    ("attach", attach::attach),
    ("lifecycle", lifecycle::lifecycle),
    ("boot", boot::boot),
    ("failback", failback::failback),
    ("plan", plan::plan),
    ("peers", peers::peers),
];

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(place) = &arguments.process_once {
        process::once(place)?;
        println!("{}", machine::own_peak_bytes()?);
        return Ok(());
    }
    if arguments.list {
        BENCHES.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    }
    for name in &arguments.names {
        if !BENCHES.iter().any(|(known, _)| known == name) {
            bail!("there is no bench named {name}; --list names them");
        }
    }
    let mut rows = Vec::new();
    for (name, bench) in BENCHES {
        if arguments.names.is_empty() || arguments.names.iter().any(|wanted| wanted == name) {
            eprintln!("== {name}");
            let run = Run {
                quick: arguments.quick,
                plot: arguments.plot.as_deref(),
                load: arguments.load.as_deref(),
            };
            let measured = bench(run).with_context(|| format!("bench {name}"))?;
            println!("{}", report::table(&measured));
            rows.extend(measured);
            // After each bench, so that one that fails or is stopped does not cost what came before it.
            if let Some(path) = &arguments.json {
                let text = serde_json::to_string_pretty(&rows)?;
                std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
    }
    Ok(())
}
