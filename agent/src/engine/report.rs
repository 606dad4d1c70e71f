//! What the engine tells about itself: disk reports to the coordinator, and a board that `status` reads.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use holdfast_common::{
    clock::Timestamp,
    ids::DiskId,
    units::{BLOCK_BYTES, BlockCount, BlockIndex},
    wire::{AgentMessage, DiskHealth, DiskReport},
};
use serde::{Deserialize, Serialize};

use super::Engine;

/// Time between reports.
const REPORT_EVERY: Duration = Duration::from_secs(3);

/// Bytes of a sector as the kernel counts them.
const SECTOR_BYTES: u64 = 512;

/// State of a disk, for people and programs on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// The disk.
    pub disk: DiskId,
    /// Device node.
    pub path: String,
    /// Whether it can be captured.
    pub health: DiskHealth,
    /// Mechanism in use.
    pub capture: String,
    /// Line of history that is written.
    pub generation: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bytes marked as changed and not yet captured.
    pub marked_bytes: u64,
    /// Bytes captured and not yet acknowledged.
    pub unacknowledged_bytes: u64,
    /// Bytes that have been compared with the replica.
    pub scanned_bytes: u64,
}

/// State of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Whether a session with the coordinator is open.
    pub connected: bool,
    /// When the last cut was made, in microseconds since 1970.
    pub last_cut_at_us: Option<i64>,
    /// How long writes were held for it, in microseconds.
    pub last_hold_us: Option<u64>,
    /// Why the last void cut was void.
    pub last_void: Option<String>,
    /// Why this source must not go on, if the machine runs elsewhere.
    #[serde(default)]
    pub fenced: Option<String>,
    /// Cuts that wait for an acknowledgement.
    pub unacknowledged_cuts: usize,
    /// The disks.
    pub disks: Vec<DiskStatus>,
}

/// Where the newest state hangs. Clones show the same.
#[derive(Clone, Debug, Default)]
pub struct StatusBoard(Arc<Mutex<StatusReport>>);

impl StatusBoard {
    /// The newest state.
    #[must_use]
    pub fn read(&self) -> StatusReport {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut StatusReport)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// When and where it is reported.
#[derive(Debug)]
pub(super) struct Reporter {
    board: StatusBoard,
    due: Duration,
    told: Vec<(DiskId, DiskHealth)>,
}

impl Reporter {
    pub(super) const fn new(board: StatusBoard) -> Self {
        Self { board, due: Duration::ZERO, told: Vec::new() }
    }

    pub(super) const fn due(&self) -> Duration {
        self.due
    }

    pub(super) fn connected(&mut self, connected: bool) {
        self.board.change(|status| status.connected = connected);
        if connected {
            self.fenced(None);
            self.due = Duration::ZERO;
        }
    }

    pub(super) fn fenced(&self, reason: Option<String>) {
        self.board.change(|status| status.fenced = reason);
    }

    pub(super) fn cut(&self, at: Timestamp, held: Duration) {
        self.board.change(|status| {
            status.last_cut_at_us = Some(at.0);
            status.last_hold_us = Some(u64::try_from(held.as_micros()).unwrap_or(u64::MAX));
        });
    }

    pub(super) fn voided(&self, reason: &str) {
        self.board.change(|status| status.last_void = Some(reason.to_owned()));
    }
}

impl Engine {
    /// Reports every few seconds, and at once when a disk's health changed.
    pub(super) fn report(&mut self, now: Duration) {
        let health: Vec<(DiskId, DiskHealth)> =
            self.cycle.disks().map(|(capture, health)| (capture.disk, health)).collect();
        if now < self.reporter.due && health == self.reporter.told {
            return;
        }
        self.reporter.due = now + REPORT_EVERY;
        self.reporter.told = health;
        let at = self.clock.wall();
        let mut status = Vec::new();
        for (capture, health) in self.cycle.disks() {
            let disk = self.disks.get_mut(&capture.disk);
            let report = disk.map_or_else(|| closed_report(capture, at), |disk| disk.report(at));
            let report = DiskReport { health, ..report };
            status.push(DiskStatus {
                disk: report.disk,
                path: report.path.clone(),
                health: report.health.clone(),
                capture: report.capture.clone(),
                generation: capture.generation.0,
                size_bytes: capture.size_bytes,
                marked_bytes: report.marked.bytes(),
                unacknowledged_bytes: report.unacknowledged_bytes,
                scanned_bytes: report.scanned_to.byte_offset().min(capture.size_bytes),
            });
            self.messages.send(AgentMessage::DiskReport(report));
        }
        let cuts = self.cycle.unacknowledged_cuts();
        self.reporter.board.change(|board| {
            board.disks = status;
            board.unacknowledged_cuts = cuts;
        });
    }
}

impl super::disk::Disk {
    fn report(&mut self, at: Timestamp) -> DiskReport {
        let sectors = self.source.counters().map(|counters| counters.sectors).ok();
        let written = match (self.sectors_reported, sectors) {
            (Some(before), Some(now)) => now.saturating_sub(before) * SECTOR_BYTES,
            _ => 0,
        };
        self.sectors_reported = sectors.or(self.sectors_reported);
        let residue: usize = self.residue.iter().map(|frame| frame.plan.blocks() * BLOCK_BYTES).sum();
        DiskReport {
            disk: self.id(),
            health: DiskHealth::Protected,
            capture: self.host.mechanism.name().into(),
            path: self.host.path.clone(),
            marked: BlockCount(self.source.marked().0 + self.pending.count().0),
            unacknowledged_bytes: self.unacknowledged_bytes() + residue as u64,
            scanned_to: self.scan.as_ref().map_or(BlockIndex(self.size().0), |scan| scan.scanned_to()),
            written_bytes: written,
            at,
        }
    }
}

fn closed_report(capture: &holdfast_common::wire::Capture, at: Timestamp) -> DiskReport {
    DiskReport {
        disk: capture.disk,
        health: DiskHealth::Missing,
        capture: String::new(),
        path: capture.path.clone(),
        marked: BlockCount(0),
        unacknowledged_bytes: 0,
        scanned_to: capture.scanned_to,
        written_bytes: 0,
        at,
    }
}
