//! What differs between two points of a machine, from the indexes of its disks alone.
//!
//! Owns the translation between points and their disks' histories. Reads no payload; costs what was written between the
//! two points. Limit: the number of ranges that the caller asks for.

use std::sync::Arc;

use holdfast_common::{
    ids::{DiskId, MachineId, PointId, Sequence},
    units::{BlockCount, BlockRange},
};

use super::points::{Source, broken};
use crate::{
    api::{
        port::{DiffRefusal, PointDiff},
        shapes::{DiffShape, DiskDiffShape, RangeShape},
        time_text,
    },
    catalog::record::PointRecord,
    compute::port::BoxFuture,
    failover::port::PointsError,
    points::{
        point_view::PointView,
        selection::{self, Selection},
        view::{BlockView as _, HistoryPlace, ViewError},
    },
};

impl PointDiff for Source {
    fn diff(
        &self,
        machine: MachineId,
        from: Selection,
        to: Selection,
        ranges_max: usize,
    ) -> BoxFuture<'_, Result<DiffShape, DiffRefusal>> {
        Box::pin(async move {
            let from = self.select(machine, from).await?;
            let to = self.select(machine, to).await?;
            let mut disks = Vec::new();
            for member in &to.disks {
                let before = from.disks.iter().find(|other| other.disk == member.disk);
                let before = before.map(|other| other.sequence);
                disks
                    .push(self.disk_diff(member.disk, (from.id, before), member.sequence, ranges_max).await?);
            }
            let gone = from.disks.iter().filter(|old| !to.disks.iter().any(|disk| disk.disk == old.disk));
            Ok(DiffShape {
                machine: machine.to_string(),
                from: from.id.to_string(),
                from_at: time_text(from.cut_at),
                to: to.id.to_string(),
                to_at: time_text(to.cut_at),
                changed_bytes: disks.iter().map(|disk| disk.changed_bytes).sum(),
                disks,
                disks_only_in_from: gone.map(|disk| self.path(disk.disk)).collect(),
            })
        })
    }
}

impl Source {
    async fn select(&self, machine: MachineId, selection: Selection) -> Result<PointRecord, DiffRefusal> {
        let candidates = self.all(machine).await?;
        let choice = selection::choose(&candidates, selection)
            .map_err(|refusal| DiffRefusal::Unknown(refusal.to_string()))?;
        let record = self.point(machine, choice.point).await?;
        self.index(&record).await?;
        Ok(record)
    }

    fn path(&self, disk: DiskId) -> String {
        self.registry.disk(disk).map_or_else(|| disk.to_string(), |found| found.record.path)
    }

    async fn disk_diff(
        &self,
        disk: DiskId,
        (point, before): (PointId, Option<Sequence>),
        cut: Sequence,
        ranges_max: usize,
    ) -> Result<DiskDiffShape, PointsError> {
        let index =
            self.logs.index(disk).ok_or_else(|| broken("open the disk's log", "it does not exist"))?;
        let cache = Arc::clone(&self.cache);
        let found = tokio::task::spawn_blocking(move || {
            let view =
                PointView::at_cut(&index, cache, cut).map_err(|error| broken("open the point", error))?;
            let changes = match before {
                Some(cut) => view.changes_from(HistoryPlace { point, cut }),
                None => Ok(None),
            };
            let changes = changes.map_err(|error| broken("compare the points", error))?;
            let found = match changes {
                Some(changes) => collect(view.size_bytes(), ranges_max, |rest| changes.changed(rest)),
                None => collect(view.size_bytes(), ranges_max, |rest| Ok((vec![rest], rest.end().0))),
            };
            found.map_err(|error| broken("compare the points", error))
        });
        let found = found.await.map_err(|error| broken("compare the points", error))??;
        Ok(DiskDiffShape {
            disk: disk.to_string(),
            path: self.path(disk),
            in_both: before.is_some(),
            ..found
        })
    }
}

/// Adds up what changed, and keeps the first ranges.
fn collect(
    size_bytes: u64,
    ranges_max: usize,
    mut changed: impl FnMut(BlockRange) -> Result<(Vec<BlockRange>, u64), ViewError>,
) -> Result<DiskDiffShape, ViewError> {
    let blocks = BlockCount::covering(size_bytes).0;
    let mut found = DiskDiffShape { size_bytes, ..DiskDiffShape::default() };
    let (mut at, mut last_end) = (0, None);
    while at < blocks {
        let (ranges, end) = changed(BlockRange::new(at, blocks - at))?;
        for range in ranges {
            let offset = range.start.byte_offset();
            // The last block may be a partial one.
            let bytes = range.bytes().min(size_bytes - offset);
            found.changed_bytes += bytes;
            let joins = last_end.replace(offset + bytes) == Some(offset);
            match found.ranges.last_mut().filter(|last| last.offset + last.bytes == offset) {
                Some(last) if joins => last.bytes += bytes,
                _ => {
                    found.ranges_total += u64::from(!joins);
                    if found.ranges.len() < ranges_max && !joins {
                        found.ranges.push(RangeShape { offset, bytes });
                    }
                }
            }
        }
        at = end;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{BlockRange, RangeShape, collect};

    #[test]
    fn neighbours_are_joined_and_counted_once() {
        // One block at a time: 0, 1, 3, and the partial block 5.
        let changed = |rest: BlockRange| {
            let at = rest.start.0;
            let ranges = if [0, 1, 3, 5].contains(&at) { vec![BlockRange::new(at, 1)] } else { Vec::new() };
            Ok((ranges, at + 1))
        };
        let found = collect(5 * 4096 + 10, 1, changed).unwrap();
        assert_eq!((found.changed_bytes, found.ranges_total), (3 * 4096 + 10, 3));
        assert_eq!(found.ranges, [RangeShape { offset: 0, bytes: 8192 }]);
    }
}
