//! What operators see of the checks, and what they may ask for.

use holdfast_common::{
    clock::Timestamp,
    ids::{DiskId, Sequence},
};

use super::Checks;
use crate::{
    api::port::{CheckFigures, PassFigures, StoreChecks},
    store::ScrubPass,
};

impl StoreChecks for Checks {
    fn figures(&self, disk: DiskId) -> Option<CheckFigures> {
        let log = self.logs.store.disk(disk)?;
        let journal_bytes = log.journal_bytes();
        let state = self.state();
        let known = state.disks.get(&disk)?;
        Some(CheckFigures {
            verified: Sequence(known.record.verified_to),
            unverified_bytes: log.bytes_after(Sequence(known.record.verified_to)),
            journal_bytes,
            pass: known.record.pass.map(pass),
            last: known.record.last.map(pass),
            next_at: Timestamp(known.record.due_us(self.policy.period_us())),
            bytes_per_second: known.rate.filter(|_| known.record.pass.is_some()),
            damaged_frames: log.bad_frames().list().len() as u64,
        })
    }

    fn start(&self, disk: DiskId) -> bool {
        let Some(log) = self.logs.store.disk(disk) else { return false };
        let (last, now) = (log.tail().sequence, self.clock.wall());
        if last == Sequence(0) || !self.state().disks.contains_key(&disk) {
            return false;
        }
        self.with(disk, |state| match &mut state.record.pass {
            // A pass that goes on slowly goes on fast.
            Some(pass) => pass.asked = true,
            None => state.record.begin_pass(last, now, true),
        });
        self.record(&log, true);
        self.woken.notify_one();
        true
    }
}

fn pass(pass: ScrubPass) -> PassFigures {
    PassFigures {
        started_at: Timestamp(pass.started_us),
        ended_at: Some(Timestamp(pass.ended_us)).filter(|at| at.0 > 0),
        good_bytes: pass.good_bytes,
        bad_frames: pass.bad_frames,
        position: pass.position,
        up_to: pass.up_to,
    }
}
