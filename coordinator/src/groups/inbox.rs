//! What machines say about group cuts, on its way to whoever cuts.
//!
//! Owns the queue. Limit: [`HEARD_MAX`]; what does not fit is dropped, which costs the group cut it belonged to.

use holdfast_common::{ids::MachineId, wire::GroupAnswer};
use tokio::sync::mpsc;

/// Most that waits. Each member says at most four things per group cut.
pub const HEARD_MAX: usize = 4096;

/// Something heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The machine said this.
    Answer(GroupAnswer),
    /// Its session ended; the text is for people.
    Lost(String),
}

/// The way in. Clones lead to the same queue.
#[derive(Clone, Debug)]
pub struct GroupInbox(mpsc::Sender<(MachineId, Heard)>);

/// The way out.
pub type HeardQueue = mpsc::Receiver<(MachineId, Heard)>;

impl GroupInbox {
    /// A queue.
    #[must_use]
    pub fn new() -> (Self, HeardQueue) {
        let (sender, receiver) = mpsc::channel(HEARD_MAX);
        (Self(sender), receiver)
    }

    /// Puts something in. Never waits.
    pub fn put(&self, machine: MachineId, heard: Heard) {
        if self.0.try_send((machine, heard)).is_err() {
            tracing::debug!(%machine, "an answer about a group cut was dropped");
        }
    }
}
