//! Shapes of requests and answers about machines that run from a recovery point.

use serde::{Deserialize, Serialize};

/// A machine that runs from a recovery point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunsShape {
    /// What runs it.
    pub runs_as: String,
    /// Socket of its serial console, on the coordinator's host.
    pub console: Option<String>,
    /// File that its serial console is logged to, there too.
    pub console_log: Option<String>,
}

/// The console of a machine that runs from a recovery point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConsoleShape {
    /// The job that runs it.
    pub job: String,
    /// "failover", "planned-failover", "test-failover".
    pub kind: String,
    /// What runs it, and where its console is.
    pub runs: RunsShape,
    /// The end of what its serial console printed.
    pub log: String,
}
