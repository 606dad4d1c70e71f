//! The capture thread: does what the cycle asks for, with the machine's disks.
//!
//! Owns the open disks, the sets of blocks to read, the numbering of frames, and the buffers. Does not decide when
//! something is done ([`crate::capture::cycle`] does), and knows neither the network nor how freezing works.
//! Invariants: of one disk only one batch is read at a time, and it is numbered after it was read; a block leaves the
//! set of blocks to read only when its bytes are in a buffer that will be sent; what was read for a cut that turned
//! out void goes back into the set.
//! Limits: [`Budget`].

mod copy;
mod cut;
mod disk;
mod group_hold;
mod host;
mod audit;
mod incarnation;
mod linux;
mod report;
mod scan;
mod witness;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, select};
use holdfast_common::{
    clock::Clock,
    entropy::Entropy,
    ids::DiskId,
    wire::{AgentMessage, AnswerStep, CutVoided},
};

pub use host::{Held, HoldCheck, Host, HostDisk, Mechanism};
pub use incarnation::Incarnations;
pub use linux::{LinuxHost, LinuxParts};
pub use report::{DiskStatus, StatusBoard, StatusReport};

use crate::{
    batch::{BufferPool, HandOver, SinkClosed},
    capture::{
        cycle::{Action, Cycle, Event, Trouble},
        rate::RateLimit,
    },
    group::Marks,
    ship::port::Inbound,
};
use disk::Disk;

/// How much memory the engine may use for blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Buffers of 64 KiB for blocks on their way to sealing.
    pub copy_buffers: usize,
    /// Buffers of 64 KiB for what is read while writes are held; made as they are needed.
    pub residue_buffers: usize,
}

impl Default for Budget {
    /// 8 MiB and 40 MiB.
    fn default() -> Self {
        Self { copy_buffers: 128, residue_buffers: 640 }
    }
}

/// Where messages to the coordinator go. Must not wait; what cannot be delivered is dropped, since everything said this
/// way is said again.
pub trait MessageSink: Send {
    /// Says it.
    fn send(&mut self, message: AgentMessage);
}

/// What an engine is made of.
pub struct EngineParts {
    /// The machine.
    pub host: Box<dyn Host>,
    /// The way of frames to ship.
    pub hand_over: Box<dyn HandOver>,
    /// The way of messages to ship.
    pub messages: Box<dyn MessageSink>,
    /// Clocks.
    pub clock: Arc<dyn Clock>,
    /// Where point ids come from.
    pub entropy: Arc<dyn Entropy>,
    /// Memory for blocks.
    pub budget: Budget,
    /// Where the state is shown.
    pub status: StatusBoard,
    /// Where the orders of group cuts arrive while writes are held.
    pub marks: Marks,
}

/// The capture thread's state.
pub struct Engine {
    cycle: Cycle,
    disks: BTreeMap<DiskId, Disk>,
    host: Box<dyn Host>,
    hand_over: Box<dyn HandOver>,
    messages: Box<dyn MessageSink>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    buffers: BufferPool,
    residue: cut::ResidueStore,
    witnesses: witness::Witnesses,
    scan_rate: RateLimit,
    zeroes: scan::ZeroDigests,
    reporter: report::Reporter,
    marks: Marks,
    /// The assignment changed: tracking of other disks is ended when there is time.
    tidy: bool,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("cycle", &self.cycle).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine that protects nothing until it is told to.
    #[must_use]
    pub fn new(parts: EngineParts) -> Self {
        let ready = parts.budget.copy_buffers;
        Self {
            cycle: Cycle::new(),
            disks: BTreeMap::new(),
            host: parts.host,
            hand_over: parts.hand_over,
            messages: parts.messages,
            clock: parts.clock,
            entropy: parts.entropy,
            buffers: BufferPool::new(ready, ready),
            residue: cut::ResidueStore::new(parts.budget.residue_buffers),
            witnesses: witness::Witnesses::new(),
            scan_rate: RateLimit::new(0),
            zeroes: scan::ZeroDigests::default(),
            reporter: report::Reporter::new(parts.status),
            marks: parts.marks,
            tidy: false,
        }
    }

    /// Works until `stop` is closed or told, or the way to ship ends.
    ///
    /// # Errors
    /// The way to ship ended by itself; the program should end.
    pub fn run(
        mut self,
        inbound: &Receiver<Inbound>,
        wake: &Receiver<()>,
        stop: &Receiver<()>,
    ) -> Result<(), SinkClosed> {
        loop {
            for event in inbound.try_iter() {
                self.deliver(event);
            }
            if !matches!(stop.try_recv(), Err(crossbeam_channel::TryRecvError::Empty)) {
                return Ok(());
            }
            let Some(until) = self.step()? else { continue };
            let timeout = until.saturating_sub(self.clock.monotonic());
            select! {
                recv(inbound) -> event => match event {
                    Ok(event) => self.deliver(event),
                    Err(_) => return Err(SinkClosed { reason: "the link has ended".into() }),
                },
                recv(wake) -> _ => {}
                recv(stop) -> _ => return Ok(()),
                default(timeout) => {}
            }
        }
    }

    /// Takes what the link reports.
    pub fn deliver(&mut self, inbound: Inbound) {
        let now = self.clock.monotonic();
        self.cycle.inbound(&inbound, now);
        self.scan_rate.set(self.cycle.settings().scan_bytes_per_second_max);
        self.tidy |= matches!(inbound, Inbound::Connected(_) | Inbound::Assigned(_));
        match inbound {
            Inbound::ScanAnswer(answer) => {
                if let Some(disk) = self.disks.get_mut(&answer.disk) {
                    disk.scan_answered(&answer);
                }
            }
            Inbound::SendAgain { disk, ranges } => {
                let Some(disk) = self.disks.get_mut(&disk) else { return };
                ranges.into_iter().for_each(|range| disk.source.mark(range));
            }
            Inbound::Audit(order) => self.audit_ordered(order),
            Inbound::Acknowledged { disk, sequence } => {
                if let Some(disk) = self.disks.get_mut(&disk) {
                    disk.acknowledged(sequence);
                }
            }
            Inbound::Fenced(reason) => self.reporter.fenced(Some(reason)),
            Inbound::Connected(_) | Inbound::Disconnected => {
                for disk in self.disks.values_mut() {
                    disk.audits.clear();
                    disk.scan.iter_mut().for_each(|scan| scan.disconnected());
                }
                self.reporter.connected(matches!(inbound, Inbound::Connected(_)));
            }
            _ => {}
        }
    }

    /// Does the next thing. Returns until when there is nothing to do, if so.
    ///
    /// # Errors
    /// The way to ship has ended.
    pub fn step(&mut self) -> Result<Option<Duration>, SinkClosed> {
        let now = self.clock.monotonic();
        self.report(now);
        let action = self.cycle.next(now);
        self.marks.occupy(self.cycle.is_in_turn() || matches!(action, Action::Cut { .. }));
        if let Action::Wait { until } = action {
            if std::mem::take(&mut self.tidy) {
                let disks: Vec<DiskId> = self.cycle.disks().map(|(capture, _)| capture.disk).collect();
                self.host.keep_only(&disks);
            }
            return Ok(Some(until.min(self.reporter.due())));
        }
        if let Some(event) = self.perform(action)? {
            self.cycle.on(event, self.clock.monotonic());
        }
        Ok(None)
    }

    /// The engine's decisions, for reports and tests.
    #[must_use]
    pub const fn cycle(&self) -> &Cycle {
        &self.cycle
    }

    fn perform(&mut self, action: Action) -> Result<Option<Event>, SinkClosed> {
        let event = match action {
            Action::Open(capture) => {
                let result = self.open(&capture);
                Event::Opened { disk: capture.disk, result }
            }
            Action::Close { disk } => {
                self.disks.remove(&disk);
                self.host.close(disk);
                return Ok(None);
            }
            Action::Take { disk, interval } => Event::Taken { disk, result: self.take(disk, interval) },
            Action::Copy { disk } => Event::Copied { disk, result: self.copy(disk)? },
            Action::Scan { disk } => Event::Scanned { disk, result: self.scan(disk)? },
            Action::Audit { disk } => Event::Audited { disk, result: self.audit(disk) },
            Action::PlanHold => Event::HoldPlanned(self.plan_hold()),
            Action::Sync => Event::Synced(self.host.sync()),
            Action::Cut { disks, bound, group, strict } => {
                Event::CutTried(Box::new(self.cut(&disks, bound, group.map(|turn| *turn), strict)))
            }
            Action::FreezeHooks => Event::Hooks(self.host.freeze_hooks()),
            Action::AskHooks => Event::Hooks(self.host.ask_hooks()),
            Action::ThawHooks => {
                if let Some(Err(reason)) = self.host.thaw_hooks() {
                    tracing::warn!(reason, "freeze hooks were not thawed in order");
                }
                return Ok(None);
            }
            Action::SendResidue { disk } => self.send_residue(disk)?,
            Action::SendCut { disk, record } => self.send_cut(disk, &record)?,
            Action::Acknowledge { disk, interval } => {
                if let Some(disk) = self.disks.get_mut(&disk) {
                    disk.source.acknowledged(interval);
                }
                return Ok(None);
            }
            Action::TellTrustLost(loss) => {
                tracing::warn!(disk = %loss.disk, reason = loss.reason, "tracking lost; a resync is asked for");
                self.host.distrust(loss.disk);
                self.messages.send(AgentMessage::TrustLost(loss));
                return Ok(None);
            }
            Action::TellGroup(answer) => {
                if answer.step == AnswerStep::Armed {
                    // When the order to hold comes, others may hold already.
                    self.residue.make_ready();
                }
                self.messages.send(AgentMessage::GroupCut(answer));
                return Ok(None);
            }
            Action::Void { request, reason } => {
                tracing::warn!(reason, "cut is void");
                self.reporter.voided(&reason);
                let voided = CutVoided { request, at: self.clock.wall(), reason };
                self.messages.send(AgentMessage::CutVoided(voided));
                return Ok(None);
            }
            Action::Wait { .. } => return Ok(None),
        };
        Ok(Some(event))
    }

    fn open(&mut self, capture: &holdfast_common::wire::Capture) -> Result<(), Trouble> {
        let opened = self.host.open(capture)?;
        tracing::info!(disk = %capture.disk, path = opened.path, "capturing");
        self.disks.insert(capture.disk, Disk::new(opened, capture));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
