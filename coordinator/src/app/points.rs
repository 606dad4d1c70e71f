//! The points of machines, as jobs see them.
//!
//! Owns the translation between the job engine's contract, the catalog of points and the views of the store.

use std::{collections::HashSet, sync::Arc};

use holdfast_common::{
    clock::Timestamp,
    frame::GroupMark,
    ids::{DiskId, JobId, MachineId, PointId},
};

use super::{checks::Checks, logs::Logs};
use crate::{
    catalog::{
        CatalogError, ROWS_MAX,
        record::{PointRecord, PointState},
    },
    compute::port::{BoxFuture, DiskView, Task},
    failover::port::{PointSource, PointsError},
    points::{
        catalog::PointCatalog,
        damage::{DamageLedger, DiskDamage},
        frame_cache::FrameCache,
        point_view::PointView,
        selection::{Candidate, CandidateState, GroupCut},
    },
    registry::Registry,
};

/// Points out of catalog, registry, index and store.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) points: Arc<PointCatalog>,
    pub(super) registry: Arc<Registry>,
    pub(super) logs: Arc<Logs>,
    pub(super) cache: Arc<FrameCache>,
    pub(super) damage: Arc<DamageLedger>,
    pub(super) checks: Arc<Checks>,
}

impl Source {
    pub(super) async fn point(&self, machine: MachineId, point: PointId) -> Result<PointRecord, PointsError> {
        let found = self.points.get(point).await.map_err(failed("read the catalog of points"))?;
        found.filter(|found| found.machine == machine).ok_or(PointsError::PointUnknown { point })
    }

    pub(super) async fn all(&self, machine: MachineId) -> Result<Vec<Candidate>, PointsError> {
        if self.registry.machine(machine).is_none() {
            return Err(PointsError::MachineUnknown { machine });
        }
        let mut records =
            self.points.list(machine, ROWS_MAX).await.map_err(failed("read the catalog of points"))?;
        records.reverse();
        let mut candidates: Vec<Candidate> = records.iter().map(|point| self.candidate(point)).collect();
        candidates.extend(self.points.arriving(machine).into_iter().map(|arriving| Candidate {
            point: arriving.record.point,
            at: arriving.record.at,
            consistency: arriving.record.consistency,
            state: CandidateState::Arriving {
                disks_missing: u32::try_from(arriving.missing.len()).unwrap_or(u32::MAX),
            },
            group: arriving.record.more.group.as_ref().map(group_cut),
        }));
        Ok(candidates)
    }

    fn candidate(&self, point: &PointRecord) -> Candidate {
        let mut candidate = candidate(point);
        let damage = self.damage.point(point);
        if !damage.is_empty() && point.state != PointState::Void {
            let disk = |(disk, damage): &(DiskId, DiskDamage)| {
                let path = self.registry.disk(*disk).map(|disk| disk.record.path).unwrap_or_default();
                format!("{damage} of {path}")
            };
            let detail = damage.iter().map(disk).collect::<Vec<_>>().join("; ");
            candidate.state = CandidateState::Damaged { detail: format!("stored data is damaged: {detail}") };
        }
        candidate
    }

    /// Indexes all members of a point up to their cuts.
    pub(super) async fn index(&self, point: &PointRecord) -> Result<(), PointsError> {
        for member in &point.disks {
            let (disk, cut) = (member.disk, member.sequence);
            let index =
                self.logs.index(disk).ok_or_else(|| broken("open the disk's log", "it does not exist"))?;
            // An older point does not wait for the backlog behind it.
            let work = move || if index.cut(cut).is_some() { Ok(cut) } else { index.catch_up() };
            let done = tokio::task::spawn_blocking(work);
            let done = done.await.map_err(|error| broken("process the point", error))?;
            let up_to = done.map_err(|error| broken("process the point", error))?;
            if up_to < cut {
                return Err(broken("process the point", "the disk's log ends before the point"));
            }
            self.points.indexed(disk, up_to).await.map_err(failed("record that the point is processed"))?;
        }
        Ok(())
    }

    pub(super) fn views(&self, point: &PointRecord) -> Result<Vec<DiskView>, PointsError> {
        let mut names = HashSet::new();
        let mut views = Vec::new();
        for member in &point.disks {
            let index = self
                .logs
                .index(member.disk)
                .ok_or_else(|| broken("open the disk's log", "it does not exist"))?;
            let view = PointView::at_cut(&index, Arc::clone(&self.cache), member.sequence)
                .map_err(|error| broken("open the point", error))?;
            let path = self.registry.disk(member.disk).map(|disk| disk.record.path).unwrap_or_default();
            let mut name = plain_name(&path);
            if !names.insert(name.clone()) {
                name = format!("{name}-{}", member.disk);
                names.insert(name.clone());
            }
            views.push(DiskView { disk: member.disk, name, view: Arc::new(view) });
        }
        Ok(views)
    }
}

impl PointSource for Source {
    fn candidates(&self, machine: MachineId) -> BoxFuture<'_, Result<Vec<Candidate>, PointsError>> {
        Box::pin(self.all(machine))
    }

    fn process(
        &self,
        machine: MachineId,
        point: PointId,
        _task: Arc<Task>,
    ) -> BoxFuture<'_, Result<(), PointsError>> {
        Box::pin(async move {
            let record = self.point(machine, point).await?;
            if record.state == PointState::Pending { self.index(&record).await } else { Ok(()) }
        })
    }

    fn lease(
        &self,
        machine: MachineId,
        point: PointId,
        job: JobId,
    ) -> BoxFuture<'_, Result<(), PointsError>> {
        Box::pin(async move {
            self.point(machine, point).await?;
            let leased = self.points.lease(point, holder(job)).await;
            let leased = leased.map_err(failed("record that the point is needed"))?;
            if leased { Ok(()) } else { Err(PointsError::PointUnknown { point }) }
        })
    }

    fn release(&self, job: JobId) -> BoxFuture<'_, Result<(), PointsError>> {
        Box::pin(async move {
            let released = self.points.release(holder(job)).await;
            released.map_err(failed("record that the job's points are needed no more"))
        })
    }

    fn keep(&self, job: JobId, point: PointId) -> BoxFuture<'_, Result<(), PointsError>> {
        Box::pin(async move {
            let kept = self.points.keep(holder(job), point).await;
            kept.map_err(failed("record that the job's other points are needed no more"))
        })
    }

    fn open(&self, machine: MachineId, point: PointId) -> BoxFuture<'_, Result<Vec<DiskView>, PointsError>> {
        Box::pin(async move {
            let record = self.point(machine, point).await?;
            // After a restart the index may have to be made again before it has the cut.
            self.index(&record).await?;
            // Reads are verified anyway; this finds damage before somebody runs into it.
            self.checks.hurry(&record);
            self.views(&record)
        })
    }
}

fn candidate(point: &PointRecord) -> Candidate {
    Candidate {
        point: point.id,
        at: Timestamp(point.cut_at.0),
        consistency: point.consistency,
        state: match point.state {
            PointState::Pending => CandidateState::Pending,
            PointState::Processed => CandidateState::Processed,
            PointState::Void => {
                CandidateState::Void { reason: point.void_reason.clone().unwrap_or_default() }
            }
        },
        group: point.more.group.as_ref().map(group_cut),
    }
}

fn group_cut(mark: &GroupMark) -> GroupCut {
    GroupCut { cut: mark.cut.0, group: mark.group.0, members: mark.members.clone() }
}

/// The last part of a device node or file name, in letters that files and exports may have.
fn plain_name(path: &str) -> String {
    let last = path.rsplit('/').next().unwrap_or_default();
    let plain: String =
        last.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect();
    if plain.trim_matches('.').is_empty() { "disk".to_owned() } else { plain }
}

fn holder(job: JobId) -> String {
    format!("job {job}")
}

fn failed(action: &'static str) -> impl Fn(CatalogError) -> PointsError {
    move |error| PointsError::Failed { action, source: Box::new(error) }
}

pub(super) fn broken(
    action: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> PointsError {
    PointsError::Failed { action, source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::plain_name;

    #[test]
    fn names_are_plain() {
        assert_eq!(plain_name("/dev/vda"), "vda");
        assert_eq!(plain_name("/srv/my disk.img"), "my_disk.img");
        assert_eq!([plain_name("/dev/.."), plain_name("")], ["disk", "disk"]);
    }
}
