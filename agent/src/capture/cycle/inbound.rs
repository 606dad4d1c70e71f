//! What the coordinator says, and what it means for the cycle.

use std::time::Duration;

use holdfast_common::{
    ids::{DiskId, Sequence},
    wire::Assignment,
};

use super::{
    Cycle, Phase, REQUESTS_MAX,
    action::{Action, Trouble},
    disk::{Disk, Standing},
};
use crate::ship::port::{Inbound, Strictness};

impl Cycle {
    /// Takes note of what the link reports. Scan answers and ranges to send again are the executor's.
    pub fn inbound(&mut self, inbound: &Inbound, now: Duration) {
        match inbound {
            Inbound::Connected(welcome) => {
                self.machine = Some(welcome.machine);
                self.fenced = false;
                self.assign(&welcome.assignment, now);
            }
            Inbound::Assigned(assignment) => self.assign(assignment, now),
            Inbound::Acknowledged { disk, sequence } => self.acknowledged(*disk, *sequence),
            Inbound::HistoryLost { disk, reason } => {
                self.trouble(*disk, Trouble::Distrust(reason.clone()), now);
            }
            Inbound::MakePoint { request, application } => self.make_point(*request, *application),
            Inbound::ScanAnswer(answer) => self.wake_scan(answer.disk),
            Inbound::Audit(order) => self.audit_ordered(order.disk),
            Inbound::GroupCut(order) => self.group_order(order, now),
            Inbound::Disconnected => {
                self.turn = None;
                self.audits_forgotten();
                let disks: Vec<DiskId> = self.disks.keys().copied().collect();
                disks.into_iter().for_each(|disk| self.wake_scan(disk));
            }
            Inbound::Fenced(_) => self.fenced = true,
            Inbound::LetGo => {
                let disks: Vec<DiskId> = self.disks.keys().copied().collect();
                disks.into_iter().for_each(|disk| self.forget(disk));
            }
            Inbound::SendAgain { .. } => {}
        }
    }

    fn assign(&mut self, assignment: &Assignment, now: Duration) {
        if assignment.settings.cut_interval_ms != self.settings.cut_interval_ms {
            self.due = now;
        }
        self.settings = assignment.settings.clone();
        let wanted = |id: DiskId| assignment.disks.iter().any(|capture| capture.disk == id);
        let gone: Vec<DiskId> = self.disks.keys().copied().filter(|id| !wanted(*id)).collect();
        gone.into_iter().for_each(|id| self.forget(id));
        for capture in &assignment.disks {
            let known = self.disks.get_mut(&capture.disk);
            match known.filter(|disk| disk.capture.generation == capture.generation) {
                Some(disk) => {
                    capture.path.clone_into(&mut disk.capture.path);
                    if let Standing::Distrusted { reason } = &disk.standing {
                        // The first report may have been lost with its session.
                        let loss = disk.trust_loss(reason.clone());
                        self.outbox.push_back(Action::TellTrustLost(loss));
                    }
                    self.acknowledged(capture.disk, capture.durable);
                }
                None => {
                    self.forget(capture.disk);
                    self.disks.insert(capture.disk, Disk::new(capture.clone(), now));
                    self.start_over();
                }
            }
        }
    }

    /// A disk is protected no more, or in another generation.
    fn forget(&mut self, id: DiskId) {
        if self.disks.remove(&id).is_some() {
            self.outbox.push_back(Action::Close { disk: id });
            self.start_over();
        }
        if let Phase::Sending(sending) = &mut self.phase {
            if sending.left.front() == Some(&id) {
                sending.drained = false;
            }
            sending.left.retain(|left| *left != id);
        }
    }

    /// The members changed: a cut that was under way begins anew, unless it is made already.
    fn start_over(&mut self) {
        if !matches!(self.phase, Phase::Sending(_)) {
            self.release_hooks();
        }
        match &self.phase {
            Phase::Sending(_) => {}
            Phase::Settle(settle) => {
                if let Some(request) = settle.request {
                    self.requests.push_front(request);
                }
                self.phase = Phase::Gather { untaken: Vec::new() };
            }
            _ => self.phase = Phase::Gather { untaken: Vec::new() },
        }
    }

    fn acknowledged(&mut self, id: DiskId, sequence: Sequence) {
        let Some(disk) = self.disks.get_mut(&id) else { return };
        for interval in disk.acknowledged(sequence) {
            self.outbox.push_back(Action::Acknowledge { disk: id, interval });
        }
    }

    fn make_point(&mut self, request: u64, application: Option<Strictness>) {
        if self.requests.len() < REQUESTS_MAX {
            if let Some(strictness) = application {
                self.application_requests.insert(request, strictness);
            }
            self.requests.push_back(request);
        } else {
            let reason = format!("{REQUESTS_MAX} points are asked for already: wait until they are made");
            self.outbox.push_back(Action::Void { request: Some(request), reason });
        }
    }

    fn wake_scan(&mut self, id: DiskId) {
        if let Some(Disk { standing: Standing::Scanning { idle_until }, .. }) = self.disks.get_mut(&id) {
            *idle_until = Duration::ZERO;
        }
    }
}
