//! What a bench reports: figures, each beside the limit it was held against in the same run.
//!
//! Owns the row and its two renderings. Does not know what is measured.

use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Row {
    /// What was measured ("sending: agent to durable acknowledgement").
    pub(crate) name: String,
    /// The figure.
    pub(crate) value: f64,
    /// Its unit.
    pub(crate) unit: String,
    /// The limit or target it is held against, in the same unit.
    pub(crate) limit: Option<f64>,
    /// `value / limit`.
    pub(crate) ratio: Option<f64>,
    /// What the limit is: a physical pass, another program, or a target.
    pub(crate) peer: Option<String>,
    /// How it was measured; distribution.
    pub(crate) note: String,
}

impl Row {
    /// A figure without a limit.
    pub(crate) fn new(name: impl Into<String>, value: f64, unit: &str) -> Self {
        Self { name: name.into(), value, unit: unit.to_owned(), ..Self::default() }
    }

    /// Holds the figure against a limit.
    pub(crate) fn against(mut self, limit: f64, peer: &str) -> Self {
        self.limit = Some(limit);
        self.ratio = Some(self.value / limit);
        self.peer = Some(peer.to_owned());
        self
    }

    /// Says how it was measured.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }
}

/// The rows as a table for people.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut lines = Vec::new();
    for row in rows {
        let against = match (row.limit, row.ratio, &row.peer) {
            (Some(limit), Some(ratio), Some(peer)) => format!("  {ratio:.2} of {limit:.3} ({peer})"),
            _ => String::new(),
        };
        lines.push(format!("{:<56} {:>12.3} {}{against}", row.name, row.value, row.unit));
        if !row.note.is_empty() {
            lines.push(format!("    {}", row.note));
        }
    }
    lines.join("\n")
}

/// Percentile (0 to 100) of some samples, by the nearest-rank method; zero without samples.
pub(crate) fn percentile(samples: &[f64], percent: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = ((percent / 100.0) * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).or(sorted.last()).copied().unwrap_or(0.0)
}
