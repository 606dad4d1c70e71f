//! Audit: ranges of the source are read and hashed for a comparison that the coordinator makes.
//!
//! Owns the reading. When it is done is the cycle's to say: only between cuts, so that all of a range was read in one interval.
//! Limit: [`AUDIT_ORDERS_MAX`] orders wait per disk, each of [`AUDIT_BLOCKS_MAX`] blocks at most; what goes beyond is refused.

use holdfast_common::{
    ids::DiskId,
    units::BLOCK_BYTES,
    wire::{
        AgentMessage, AuditAnswer, AuditDigests, AuditOrder,
        limits::{AUDIT_BLOCKS_MAX, AUDIT_ORDERS_MAX, SCAN_CHUNK_BLOCKS, SCAN_DIGESTS_MAX},
    },
};

use super::{Engine, copy::BATCH_FRAMES, disk::Disk};
use crate::{batch::FRAME_BLOCKS, capture::cycle::Audited};

impl Engine {
    /// Takes an order, or says why not.
    pub(super) fn audit_ordered(&mut self, order: AuditOrder) {
        let refusal = match self.disks.get_mut(&order.disk) {
            None => Some("the disk is not open".to_owned()),
            Some(disk) => match disk.refuses(&order) {
                None => {
                    disk.audits.push_back(order);
                    None
                }
                refusal => refusal,
            },
        };
        if let Some(reason) = refusal {
            let AuditOrder { order, disk, generation, .. } = order;
            let answer = AuditAnswer { order, disk, generation, result: Err(reason) };
            self.messages.send(AgentMessage::Audited(answer));
        }
    }

    /// Reads what the next order asks for, and answers it.
    pub(super) fn audit(&mut self, id: DiskId) -> Audited {
        let now = self.clock.monotonic();
        let ready_at = self.scan_rate.ready_at(now);
        if ready_at > now {
            return Audited::Later { until: ready_at };
        }
        let Some(disk) = self.disks.get_mut(&id) else { return Audited::Done };
        let Some(order) = disk.audits.front().copied() else { return Audited::Done };
        let parts = order.parts();
        let part_frames =
            usize::try_from(order.digest_blocks).unwrap_or(usize::MAX).div_ceil(FRAME_BLOCKS).max(1);
        let at_a_time = self.buffers.available().min(BATCH_FRAMES) / part_frames;
        if at_a_time == 0 {
            return Audited::Blocked;
        }
        disk.audits.pop_front();
        let mut digests = Vec::with_capacity(parts.len());
        let mut failure = None;
        for some in parts.chunks(at_a_time) {
            match disk.digest(&self.buffers, some, &mut self.zeroes) {
                Ok((some, _)) => digests.extend(some),
                Err(error) => {
                    failure = Some(format!("{error} ({})", error.source));
                    break;
                }
            }
        }
        self.scan_rate.spend(now, order.count.0 * BLOCK_BYTES as u64);
        let result = match failure {
            None => Ok(AuditDigests { interval: disk.interval, digests }),
            Some(reason) => Err(reason),
        };
        let answer = AuditAnswer { order: order.order, disk: id, generation: disk.generation(), result };
        self.messages.send(AgentMessage::Audited(answer));
        Audited::Done
    }
}

impl Disk {
    fn refuses(&self, order: &AuditOrder) -> Option<String> {
        let end = order.start.0.checked_add(order.count.0);
        if self.generation() != order.generation {
            Some(format!("the disk is in generation {} by now", self.generation()))
        } else if self.scan.is_some() {
            Some("the disk is being compared with its replica already".to_owned())
        } else if end.is_none_or(|end| end > self.size().0)
            || !(1..=AUDIT_BLOCKS_MAX).contains(&order.count.0)
            || !(1..=SCAN_CHUNK_BLOCKS).contains(&order.digest_blocks)
            || order.count.0.div_ceil(order.digest_blocks) > SCAN_DIGESTS_MAX as u64
        {
            Some("the order does not fit the disk or the protocol's limits".to_owned())
        } else if self.audits.len() >= AUDIT_ORDERS_MAX {
            Some(format!("{AUDIT_ORDERS_MAX} ranges wait already"))
        } else {
            None
        }
    }
}
