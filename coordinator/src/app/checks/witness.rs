//! Witness: what agents hashed while writes were held is compared with the copy here.
//!
//! Owns the comparing. What follows from a difference is [`super::super::damage`]'s. Does not know rates: a point has few blocks.
//! Invariant: a point is recorded as witnessed only after every block was compared, and what differs was noted first.

use std::{collections::BTreeMap, sync::Arc};

use holdfast_common::{
    causes::in_one_line,
    frame::{WITNESS_BLOCKS_MAX, Witness, WitnessBlock},
    ids::{DiskId, PointId, Sequence},
};

use super::Checks;
use crate::{
    catalog::record::{PointRecord, WitnessRecord},
    index::DiskIndex,
    points::{
        point_view::PointView,
        view::ViewError,
        witness::{Compared, compare},
    },
};

/// Points compared in one step.
const POINTS_AT_ONCE: usize = 16;

impl Checks {
    /// Compares the next points' witnesses; `false` if none is open that can be compared now.
    pub(super) fn witness_next(&self) -> bool {
        let open = self.points.unwitnessed();
        let mut any = false;
        for point in open.iter().filter(|point| !self.is_compared(point.id)).take(POINTS_AT_ONCE) {
            if let Some(outcome) = self.witness(point) {
                any = true;
                self.state().witnessed.insert(point.id, outcome);
            }
        }
        any
    }

    fn is_compared(&self, point: PointId) -> bool {
        self.state().witnessed.contains_key(&point)
    }

    /// What comes of a point's witness; `None` while one of its disks is not indexed so far, or cannot be read now.
    fn witness(&self, point: &PointRecord) -> Option<WitnessRecord> {
        let mut indexes: BTreeMap<DiskId, (Arc<DiskIndex>, Sequence)> = BTreeMap::new();
        for member in &point.disks {
            let index = self.logs.index(member.disk)?;
            index.cut(member.sequence)?;
            indexes.insert(member.disk, (index, member.sequence));
        }
        let (index, cut) = indexes.values().next()?;
        let frame = match index.log().read(*cut) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::warn!(point = %point.id, error = %in_one_line(&error), "what a cut witnessed cannot be read; it counts as not witnessed");
                return Some(WitnessRecord::default());
            }
        };
        let witness: Witness =
            frame.cut_record().ok().and_then(|record| record.more.witness).unwrap_or_default();
        let blocks = witness.blocks.get(..WITNESS_BLOCKS_MAX).unwrap_or(&witness.blocks);
        let mut total = Compared::default();
        for (disk, (index, cut)) in &indexes {
            let of_disk: Vec<WitnessBlock> =
                blocks.iter().filter(|block| block.disk == *disk).copied().collect();
            match self.compare(index, *cut, &of_disk) {
                Ok(compared) => {
                    self.note_differing(point, index, *cut, &compared);
                    total.add(compared);
                }
                Err(error) => {
                    tracing::warn!(%disk, point = %point.id, error = %in_one_line(&error), "a point's witness cannot be compared now; it is tried again");
                    return None;
                }
            }
        }
        Some(WitnessRecord {
            blocks: total.blocks,
            compared_at: Some(self.clock.wall()),
            differed: total.differed(),
        })
    }

    fn compare(
        &self,
        index: &Arc<DiskIndex>,
        cut: Sequence,
        blocks: &[WitnessBlock],
    ) -> Result<Compared, ViewError> {
        if blocks.is_empty() {
            return Ok(Compared::default());
        }
        let failed =
            |error| ViewError::Io { place: "index".to_owned(), source: std::io::Error::other(error) };
        let view = PointView::at_cut(index, Arc::clone(&self.cache), cut).map_err(failed)?;
        let here = view.witness_digests(blocks.iter().map(|block| block.block))?;
        Ok(compare(blocks, &here))
    }

    fn note_differing(&self, point: &PointRecord, index: &DiskIndex, cut: Sequence, compared: &Compared) {
        if compared.differing.is_empty() {
            return;
        }
        let log = index.log();
        let new = log.differences().note(cut, &compared.differing, self.clock.wall());
        tracing::error!(disk = %log.disk(), point = %point.id, blocks = new, "the copy differs from what its source had at a cut");
    }
}
