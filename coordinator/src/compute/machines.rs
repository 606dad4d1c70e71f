//! What failover uses of a hypervisor: machines that run from a recovery point.
//!
//! Owns the contract only; knows no hypervisor and no job. Whatever is made for a machine is made under the name that the
//! caller gives (a job's id), and found again by it after a restart of the coordinator.
//! Invariants of all implementations: every call may be repeated with the same arguments, also after it was interrupted
//! anywhere, and then gives the same answer; [`Machines::destroy`] also follows calls that never ran or ran half; disks
//! that are served read-only are only ever read: what the machine writes goes to overlays of its own.
//!
//! ```text
//!   absent --define--> defined --start--> running --power_off--> defined --destroy--> absent
//!                                            \--stream--> running, from its own images
//! ```

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use holdfast_common::{
    ids::{DiskId, MachineId, PointId},
    units::BlockRange,
    wire::{Firmware, Inventory},
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::port::{BoxFuture, ComputeError, Endpoint, Task};
use crate::points::view::BlockView;

/// A machine to be made.
#[derive(Clone, Debug)]
pub struct MachineRequest {
    /// Names everything that is made: a job's id.
    pub owner: String,
    /// The protected machine that it is made of; what operators have set for it is found by this.
    pub machine: MachineId,
    /// What its disks are of: a machine that is defined again from another point begins anew.
    pub point: PointId,
    /// Its name, for people, windows and logs.
    pub name: String,
    /// What it is, as its agent told last: processors, memory, firmware, network cards, order of disks.
    pub inventory: Inventory,
    /// What a look into its replica has found that it starts on.
    pub suited: Suited,
    /// Its disks in the order of the point, served for as long as the machine exists or until it was
    /// [streamed](Machines::stream). A restart of the coordinator interrupts that for some seconds.
    pub disks: Vec<Endpoint>,
    /// Whether the machine writes to what is served. If not, what it writes goes to overlays of its own, and it can be
    /// streamed.
    pub writable: bool,
    /// Whether it must not reach the network of the real one: a test failover.
    pub isolated: bool,
    /// Networks of its cards by the names that they have at the source, `*` for any other: "user", "isolated" or a bridge's
    /// name. They go before everything else that is said about networks.
    pub networks: BTreeMap<String, String>,
}

/// Hardware on which what lies on a machine's disks starts, as far as that is known. Persisted in records of readiness: fields are
/// only ever added, with a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Suited {
    /// Firmware that finds something to start; empty if that is not known.
    pub firmware: Vec<Firmware>,
    /// Controllers that it has drivers for at boot, by their names in hardware files; empty if that is not known.
    pub disk_models: Vec<String>,
}

/// A controller that a hypervisor has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// Its name in hardware files.
    pub model: String,
    /// Drivers of Linux that it takes to find a file system on its disks.
    pub drivers: Vec<String>,
}

/// What a machine would be made of, for looking whether its system has the drivers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Planned {
    /// How it boots; `None` if nobody can tell.
    pub firmware: Option<Firmware>,
    /// What its disks hang on, for people.
    pub disk_model: String,
    /// Drivers of Linux that it takes to find a file system on them.
    pub disk_drivers: Vec<String>,
    /// What names of its disks begin with in Linux ("sd").
    pub node_prefix: String,
    /// Its network cards.
    pub cards: Vec<PlannedCard>,
    /// What could not be kept as it was.
    pub remarks: Vec<String>,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedCard {
    /// Hardware address.
    pub mac: String,
    /// Drivers of Linux that it takes.
    pub drivers: Vec<String>,
}

/// A machine that was started. Persisted in jobs' logs: fields are only ever added, with a default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedMachine {
    /// What runs it, for people ("QEMU 7.2, TCG, virtio").
    #[serde(default)]
    pub runs_as: String,
    /// Socket of its serial console.
    #[serde(default)]
    pub console: Option<PathBuf>,
    /// File that its serial console is logged to.
    #[serde(default)]
    pub console_log: Option<PathBuf>,
    /// What the operator should know (a device that was replaced, a network that is missing).
    #[serde(default)]
    pub remarks: Vec<String>,
}

/// How a machine is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// Asks its operating system to shut down; takes the power away when that takes longer than this.
    ShutDown {
        /// Milliseconds.
        limit_ms: u64,
    },
    /// Takes the power away.
    PowerOff,
}

/// A hypervisor.
pub trait Machines: fmt::Debug + Send + Sync {
    /// Whether machines can run here at all; asked before anything is begun.
    fn ready(&self) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async { Ok(()) })
    }

    /// The controllers that disks can hang on here.
    fn controllers(&self) -> Vec<Controller> {
        Vec::new()
    }

    /// What the machine would be made of if it were defined now. Makes nothing.
    ///
    /// # Errors
    /// It cannot be run here as it is wanted; the text says what to do.
    fn plan(&self, request: &MachineRequest) -> Result<Planned, ComputeError> {
        let _ = request;
        Ok(Planned::default())
    }

    /// Works out the definition of the machine and makes an empty overlay for each disk. Nothing runs yet. Defined
    /// already from the same point is success, and keeps what is in the overlays; one of another point is stopped, and its
    /// overlays are begun anew.
    fn define(&self, request: MachineRequest) -> BoxFuture<'_, Result<(), ComputeError>>;

    /// Starts a defined machine; returns when it has read the first block of a disk. Running already is success.
    fn start(&self, owner: String) -> BoxFuture<'_, Result<StartedMachine, ComputeError>>;

    /// Whether it runs now.
    fn is_running(&self, owner: String) -> BoxFuture<'_, Result<bool, ComputeError>>;

    /// Ends it; it stays defined and keeps what it has written. Not running is success.
    fn stop(&self, owner: String, how: Stop) -> BoxFuture<'_, Result<(), ComputeError>>;

    /// Moves a running machine to images of its own, behind its back; it needs the served disks no more when this
    /// returns. Reports to `task`, and ends soon when that is cancelled; can be repeated then, and goes on.
    fn stream(&self, owner: String, task: Arc<Task>) -> BoxFuture<'_, Result<(), ComputeError>>;

    /// The end of what its serial console has printed since it was defined.
    fn console_text(&self, owner: String) -> BoxFuture<'_, Result<Vec<u8>, ComputeError>> {
        let _ = owner;
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Takes a picture of its screen (PNG) into this file.
    fn screenshot(&self, owner: String, file: PathBuf) -> BoxFuture<'_, Result<(), ComputeError>> {
        let _ = (owner, file);
        Box::pin(async {
            Err(ComputeError::Invalid { detail: "this hypervisor takes no pictures".to_owned() })
        })
    }

    /// Ends it and removes everything that was made for it. Nothing there is success.
    fn destroy(&self, owner: String) -> BoxFuture<'_, Result<(), ComputeError>>;
}

/// An instant of a machine that what is written afterwards is counted from. Means something to who made it only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark(pub String);

/// What a machine's disks hold at one instant.
#[derive(Debug)]
pub struct MachineInstant {
    /// When it was, or a little before.
    pub at: Instant,
    /// The machine's writes waited no longer for it.
    pub hold: Duration,
    /// For asking at a later instant what was written since this one; `None` if that cannot be known.
    pub mark: Option<Mark>,
    /// All its disks.
    pub disks: Vec<InstantDisk>,
}

/// A disk at an instant.
#[derive(Debug)]
pub struct InstantDisk {
    /// The disk.
    pub disk: DiskId,
    /// What it holds; readable until the instant is ended.
    pub view: Arc<dyn BlockView>,
    /// What was written to it by then.
    pub written: Written,
}

/// What is known of the blocks that were written. Blocks that were not may be among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// Those of after the mark that was asked for.
    SinceMark(Vec<BlockRange>),
    /// Those of after the point that the machine was made of.
    SincePoint(Vec<BlockRange>),
    /// It was lost: any block may have been.
    Unknown,
}

/// What machines write to images of their own, for following it while they run. Invariants: an instant is the same one for all
/// disks of a machine, and its writes wait no longer for it than it takes to begin; whatever becomes of the coordinator, the machine
/// goes on; what is not known to be unwritten counts as written.
pub trait OwnImages: fmt::Debug + Send + Sync {
    /// The disks of a machine that writes to images of its own; empty if there is none, or it writes to what is served.
    fn own_disks(&self, owner: String) -> BoxFuture<'_, Result<Vec<DiskId>, ComputeError>>;

    /// Takes an instant of the machine, running or not. One that was not ended is over. Asking with the mark of the newest instant
    /// tells what was written since; one with none, or with another, makes all marks void.
    fn instant(
        &self,
        owner: String,
        since: Option<Mark>,
    ) -> BoxFuture<'_, Result<MachineInstant, ComputeError>>;

    /// Ends an instant: it costs the machine nothing any more. None there is success.
    fn end_instant(&self, owner: String) -> BoxFuture<'_, Result<(), ComputeError>>;

    /// A sealed machine is not [started](Machines::start) any more, which is success all the same; with `false` it is again. Durable.
    fn seal(&self, owner: String, sealed: bool) -> BoxFuture<'_, Result<(), ComputeError>>;

    /// Whether it is sealed.
    fn is_sealed(&self, owner: String) -> BoxFuture<'_, Result<bool, ComputeError>>;
}
