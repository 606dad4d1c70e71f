//! Assignments: settling the disks' logs before a session is told where to go on.
//!
//! Owns the order fence, drain, settle, ask. Does not decide what is assigned.
//! Invariant: a position is told only when no stream feeds the disk's log and all that was appended is durable.
//! Limit: [`ROUNDS_MAX`] rounds, if the assignment changes while logs are being settled.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use holdfast_common::{
    ids::{DiskId, Sequence},
    wire::{Assignment, Refusal, RefusalCode},
};
use tokio::task::JoinSet;

use super::{connection::Context, port::FrameSink};

/// Most rounds of settling for one assignment.
const ROUNDS_MAX: usize = 20;

/// Pause before a directory that lags behind the logs is asked again.
const LAG_PAUSE: Duration = Duration::from_millis(50);

impl Context {
    /// The machine's assignment, with the logs of all its disks settled; for the beginning of a session.
    pub(super) async fn settled_assignment(
        self: &Arc<Self>,
        tasks: &mut JoinSet<Result<(), Refusal>>,
    ) -> Result<Assignment, Refusal> {
        let mut settled = BTreeMap::new();
        for _ in 0..ROUNDS_MAX {
            let assignment = self.ask().await?;
            let lacking: Vec<DiskId> =
                assignment.disks.iter().map(|c| c.disk).filter(|disk| !settled.contains_key(disk)).collect();
            if lacking.is_empty() && agrees(&assignment, &settled) {
                return Ok(assignment);
            }
            self.settle(&lacking, &mut settled, tasks).await?;
            if lacking.is_empty() {
                tokio::time::sleep(LAG_PAUSE).await;
            }
        }
        Err(unsettled())
    }

    /// The assignment changed: stops what was replaced, settles it, and tells the agent.
    pub(super) async fn reassign(
        self: &Arc<Self>,
        tasks: &mut JoinSet<Result<(), Refusal>>,
    ) -> Result<(), Refusal> {
        let mut settled = BTreeMap::new();
        for _ in 0..ROUNDS_MAX {
            let assignment = self.ask().await?;
            let changed = self.fence(&assignment).await;
            let lacking: Vec<DiskId> =
                changed.into_iter().filter(|disk| !settled.contains_key(disk)).collect();
            if lacking.is_empty() && agrees(&assignment, &settled) {
                let message = self.session().reassign(assignment);
                self.say(message);
                self.forget_unassigned();
                return Ok(());
            }
            self.settle(&lacking, &mut settled, tasks).await?;
            if lacking.is_empty() {
                tokio::time::sleep(LAG_PAUSE).await;
            }
        }
        Err(unsettled())
    }

    async fn ask(&self) -> Result<Assignment, Refusal> {
        let asked = self.hall.ports.directory.assignment(self.machine).await;
        asked.map_err(|error| self.port_refusal(error))
    }

    /// Stops taking frames of replaced lines, and waits until those under way are with their sinks.
    async fn fence(&self, assignment: &Assignment) -> Vec<DiskId> {
        let (changed, stopped) = {
            let mut session = self.session();
            let changed = session.fence(assignment);
            let mut lines = self.lines();
            let stopped: Vec<_> = changed.iter().filter_map(|disk| lines.streams.remove(disk)).collect();
            (changed, stopped)
        };
        for stream in stopped {
            stream.stop.cancel();
            // An error is how the stream says that it is done.
            let _done = stream.done.await;
        }
        changed
    }

    /// Opens these disks' logs if need be and waits until what they hold is durable.
    async fn settle(
        self: &Arc<Self>,
        disks: &[DiskId],
        settled: &mut BTreeMap<DiskId, Sequence>,
        tasks: &mut JoinSet<Result<(), Refusal>>,
    ) -> Result<(), Refusal> {
        for disk in disks {
            let sink = self.sink(*disk, tasks).await?;
            let durable = sink.settle().await.map_err(|error| self.port_refusal(error))?;
            settled.insert(*disk, durable);
        }
        Ok(())
    }

    fn forget_unassigned(&self) {
        let session = self.session();
        self.lines().sinks.retain(|disk, _| session.disks().any(|assigned| assigned == *disk));
    }

    async fn sink(
        self: &Arc<Self>,
        disk: DiskId,
        tasks: &mut JoinSet<Result<(), Refusal>>,
    ) -> Result<Arc<dyn FrameSink>, Refusal> {
        if let Some(sink) = self.lines().sinks.get(&disk) {
            return Ok(Arc::clone(sink));
        }
        let opened = self.hall.ports.store.open(disk).await;
        let sink = opened.map_err(|error| self.port_refusal(error))?;
        self.lines().sinks.insert(disk, Arc::clone(&sink));
        tasks.spawn(watch(Arc::clone(self), disk, Arc::clone(&sink)));
        Ok(sink)
    }
}

/// Follows a sink's durable position and has it acknowledged.
async fn watch(context: Arc<Context>, disk: DiskId, sink: Arc<dyn FrameSink>) -> Result<(), Refusal> {
    let mut durable = sink.durable();
    loop {
        let sequence = *durable.borrow_and_update();
        if context.session().durable(disk, sequence) {
            context.acknowledge.notify_one();
        }
        tokio::select! {
            () = context.ending.asked() => return Ok(()),
            changed = durable.changed() => if changed.is_err() {
                if !context.session().disks().any(|assigned| assigned == disk) {
                    // Protected no more; its log may well be closed.
                    return Ok(());
                }
                return Err(Refusal::new(RefusalCode::STORAGE, format!("the log of disk {disk} has failed")));
            },
        }
    }
}

/// Whether the directory knows all that is durable in the settled logs.
fn agrees(assignment: &Assignment, settled: &BTreeMap<DiskId, Sequence>) -> bool {
    assignment
        .disks
        .iter()
        .all(|capture| settled.get(&capture.disk).is_none_or(|durable| capture.durable == *durable))
}

fn unsettled() -> Refusal {
    Refusal::new(
        RefusalCode::BUSY,
        "the disks' logs and the machine's assignment do not agree yet; try again",
    )
}
