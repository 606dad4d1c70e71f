//! The way back, wired: what jobs ask for, and the points of machines that are protected at their targets.
//!
//! Owns who follows which target. Invariants: a machine's logs are written to by one follower at a time, and by none once it was
//! released; points are made at the policy's interval only while the machine's stage says that its target is protected.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use holdfast_common::{
    clock::Clock,
    entropy::Entropy,
    ids::{DiskId, Interval, JobId, MachineId, PointId, Sequence},
    units::BlockIndex,
    wire::{Capture, WrittenBack},
};
use tokio::{runtime::Handle, sync::OwnedMutexGuard, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{logs::Logs, sources::RegistryLifecycles};
use crate::{
    catalog::record::PointRecord,
    compute::{
        branch::Branch,
        machines::OwnImages,
        port::{BoxFuture, Branches, ComputeError, Task},
    },
    failover::{
        port::{Lifecycles as _, PointSource, PointsError, WayBack, WayBackError},
        runner::{Command, JobError, JobView, Jobs},
    },
    points::{catalog::PointCatalog, frame_cache::FrameCache, view::HistoryPlace},
    registry::{Registry, lifecycle::Stage},
    reverse::{
        desk::{Apart, Desk, RoundDisk, RoundEnd},
        follow::{FollowError, Follower, Target, TargetDisk},
    },
};

/// How often it is looked whether something has come to pass that others do.
const LOOK: Duration = Duration::from_millis(250);
/// How often it is looked which machines run at their targets: the shortest interval.
const MACHINES_LOOK: Duration = Duration::from_secs(1);
/// Longest wait for a point that was made to be listed.
const LISTED_MAX: Duration = Duration::from_mins(2);
/// Pause after a point that could not be made.
const FAILED_PAUSE: Duration = Duration::from_secs(10);
/// Plain bytes of frames in memory while logs are compared with targets.
const CACHE_BYTES: usize = 16 << 20;

/// What a source is known to hold: it was brought to a point, and held since.
#[derive(Clone, Debug)]
struct Brought {
    point: PointId,
    cuts: HashMap<DiskId, Sequence>,
    holds: HashMap<DiskId, u64>,
}

/// One machine at its target.
#[derive(Debug, Default)]
struct Followed {
    /// None until the target was looked at since the start, and once it was released.
    follower: Option<Follower>,
    /// Released: nobody follows until it is begun again.
    released: bool,
}

/// The way back.
#[derive(Debug)]
pub(super) struct Reverse {
    parts: ReverseParts,
    cache: Arc<FrameCache>,
    /// The jobs, once they run.
    pub(super) jobs: OnceLock<Weak<Jobs>>,
    machines: Mutex<HashMap<MachineId, Arc<tokio::sync::Mutex<Followed>>>>,
    /// When the next point of each is due.
    due: Mutex<HashMap<MachineId, Instant>>,
    brought: Mutex<HashMap<MachineId, Brought>>,
}

/// What the way back works with.
#[derive(Debug)]
pub(super) struct ReverseParts {
    pub(super) registry: Arc<Registry>,
    pub(super) logs: Arc<Logs>,
    pub(super) points: Arc<PointCatalog>,
    pub(super) source: Arc<dyn PointSource>,
    pub(super) branches: Arc<dyn Branches>,
    pub(super) images: Arc<dyn OwnImages>,
    pub(super) desk: Arc<Desk>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
}

/// What a failover's machine writes to, and the disks in the order of that.
#[derive(Debug)]
enum Writes {
    Branches(Vec<DiskId>, Vec<Arc<Branch>>),
    Images(Vec<DiskId>),
}

impl Writes {
    fn disks(&self) -> &[DiskId] {
        match self {
            Self::Branches(disks, _) | Self::Images(disks) => disks,
        }
    }
}

fn refused(text: impl Into<String>) -> WayBackError {
    WayBackError::Refused(text.into())
}

fn failed(action: &'static str) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> WayBackError {
    move |source| WayBackError::Failed { action, source }
}

fn points_failed(error: PointsError) -> WayBackError {
    failed("open the point")(Box::new(error))
}

impl Reverse {
    pub(super) fn new(parts: ReverseParts) -> Arc<Self> {
        Arc::new(Self {
            parts,
            cache: FrameCache::new(CACHE_BYTES),
            jobs: OnceLock::new(),
            machines: Mutex::default(),
            due: Mutex::default(),
            brought: Mutex::default(),
        })
    }

    /// Makes the points of machines that are protected at their targets, until `closing`.
    pub(super) async fn run(self: Arc<Self>, closing: CancellationToken) {
        loop {
            let now = Instant::now();
            let mut next = now + MACHINES_LOOK;
            for (machine, failover, interval) in self.parts.registry.at_their_targets() {
                let due = self.due().get(&machine).copied().filter(|due| *due > now);
                next = next.min(due.unwrap_or_else(|| self.begin_point(machine, failover, now, interval)));
            }
            tokio::select! {
                () = closing.cancelled() => return,
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Begins to make a point, unless one is being made. Says when to look again.
    fn begin_point(
        self: &Arc<Self>,
        machine: MachineId,
        failover: JobId,
        now: Instant,
        interval: Duration,
    ) -> Instant {
        let Ok(followed) = self.followed(machine).try_lock_owned() else { return now + LOOK };
        let due = now + interval;
        self.due().insert(machine, due);
        tokio::spawn(Arc::clone(self).keep(machine, failover, interval, followed));
        due
    }

    fn due(&self) -> MutexGuard<'_, HashMap<MachineId, Instant>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a point, if there is something to make it of.
    async fn keep(
        self: Arc<Self>,
        machine: MachineId,
        failover: JobId,
        interval: Duration,
        mut followed: OwnedMutexGuard<Followed>,
    ) {
        if followed.released {
            return;
        }
        let sealed = match self.writes(failover).await {
            Ok(None) => {
                // Its job's devices come back some moments after a start.
                self.due().insert(machine, Instant::now() + LOOK);
                return;
            }
            Ok(Some(Writes::Branches(_, branches))) => Ok(branches.iter().any(|branch| branch.is_sealed())),
            Ok(Some(Writes::Images(_))) => self.parts.images.is_sealed(failover.to_string()).await,
            Err(error) => Err(error),
        };
        match sealed {
            // Its last point is the failback's.
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%machine, error = &error as &dyn std::error::Error, "no point of the machine at its target");
                self.due().insert(machine, Instant::now() + FAILED_PAUSE.max(interval));
                return;
            }
        }
        if let Err(error) = self.make(machine, failover, Arc::default(), &mut followed).await {
            tracing::warn!(%machine, error = &error as &dyn std::error::Error, "no point of the machine at its target");
            self.due().insert(machine, Instant::now() + FAILED_PAUSE.max(interval));
        }
    }

    /// What a failover's machine writes to; `None` if nothing is known of that (yet).
    async fn writes(&self, failover: JobId) -> Result<Option<Writes>, ComputeError> {
        let served = self.parts.branches.served(failover.to_string()).await;
        if !served.is_empty() {
            let (disks, branches) = served.into_iter().map(|served| (served.disk, served.branch)).unzip();
            return Ok(Some(Writes::Branches(disks, branches)));
        }
        let disks = self.parts.images.own_disks(failover.to_string()).await?;
        Ok((!disks.is_empty()).then_some(Writes::Images(disks)))
    }

    fn followed(&self, machine: MachineId) -> Arc<tokio::sync::Mutex<Followed>> {
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(machines.entry(machine).or_default())
    }

    /// Makes a point with the follower that is there, or a new one.
    async fn make(
        &self,
        machine: MachineId,
        failover: JobId,
        task: Arc<Task>,
        followed: &mut Followed,
    ) -> Result<PointId, WayBackError> {
        if followed.released {
            return Err(refused("the target is not followed any more"));
        }
        let mut follower = match followed.follower.take() {
            Some(follower) => follower,
            None => {
                let (disks, target) = self.target(machine, failover).await?;
                Follower::new(
                    machine,
                    disks,
                    target,
                    Arc::clone(&self.cache),
                    Arc::clone(&self.parts.clock),
                    Arc::clone(&self.parts.entropy),
                )
            }
        };
        let runtime = Handle::current();
        let made = tokio::task::spawn_blocking(move || {
            let made = follower.point(&runtime, &task);
            (follower, made)
        });
        let (follower, made) = made.await.map_err(|error| failed("follow the target")(error.into()))?;
        followed.follower = Some(follower);
        match made {
            Ok(made) => {
                tracing::debug!(%machine, point = %made.point, made.blocks, made.hold_us, "a point of the machine at its target");
                Ok(made.point)
            }
            Err(FollowError::Cancelled) => Err(WayBackError::Cancelled),
            Err(error) => Err(failed("follow the target")(error.into())),
        }
    }

    async fn record(&self, point: PointId) -> Result<PointRecord, WayBackError> {
        let found = self.parts.points.get(point).await;
        let found = found.map_err(|error| failed("look for the point")(error.into()))?;
        found.ok_or_else(|| refused(format!("there is no point {point} any more")))
    }

    /// The disks of a target, as they are followed.
    async fn target(
        &self,
        machine: MachineId,
        failover: JobId,
    ) -> Result<(Vec<TargetDisk>, Target), WayBackError> {
        let writes = self.writes(failover).await;
        let writes = writes.map_err(|error| failed("look at the target's disks")(error.into()))?;
        let writes = writes.ok_or_else(|| {
            refused(
                "the failover made nothing that is written to and can be seen from here, so nothing is known of what was written: \
                 only failovers with `--attach --writable` or `--vm` can be protected at the target",
            )
        })?;
        let stage = RegistryLifecycles(Arc::clone(&self.parts.registry))
            .now(machine)
            .map(|lifecycle| lifecycle.stage);
        let point = stage.and_then(Stage::point).ok_or_else(|| refused("the machine is not failed over"))?;
        let record = self.record(point).await?;
        let protected = self.parts.registry.protected_disks(machine);
        if protected.len() != writes.disks().len() {
            return Err(refused(format!(
                "the machine has {} protected disks and {} at the target; protect or unprotect disks so that they are the same",
                protected.len(),
                writes.disks().len()
            )));
        }
        let mut disks = Vec::with_capacity(protected.len());
        for disk in writes.disks().iter().copied() {
            let known = protected.iter().find(|known| known.record.id == disk);
            let cut = record.disks.iter().find(|member| member.disk == disk).map(|member| member.sequence);
            let (Some(known), Some(cut), Some(index)) = (known, cut, self.parts.logs.index(disk)) else {
                return Err(refused(format!(
                    "disk {disk} of the target is not protected any more; protect it again"
                )));
            };
            let generation = known.record.generation;
            disks.push(TargetDisk { disk, begins: HistoryPlace { point, cut }, index, generation });
        }
        match writes {
            Writes::Branches(_, branches) => {
                // Held in one order always.
                let mut both: Vec<_> = disks.into_iter().zip(branches).collect();
                both.sort_by_key(|(disk, _)| disk.disk);
                let (disks, branches) = both.into_iter().unzip();
                Ok((disks, Target::Branches(branches)))
            }
            Writes::Images(_) => {
                let (images, owner) = (Arc::clone(&self.parts.images), failover.to_string());
                Ok((disks, Target::Images { images, owner }))
            }
        }
    }

    /// What the source's agent is told of the disks, and what they are to hold.
    async fn round(&self, machine: MachineId, point: &PointRecord) -> Result<Vec<RoundDisk>, WayBackError> {
        let brought = {
            let all = self.brought.lock().unwrap_or_else(PoisonError::into_inner);
            all.get(&machine).cloned()
        };
        let lifecycle = RegistryLifecycles(Arc::clone(&self.parts.registry)).now(machine).unwrap_or_default();
        let begins = match lifecycle.stage.point() {
            Some(begins) => self.parts.points.get(begins).await.ok().flatten(),
            None => None,
        };
        let cut_of = |of: &PointRecord, disk| {
            of.disks.iter().find(|member| member.disk == disk).map(|member| member.sequence)
        };
        let mut disks = Vec::new();
        for opened in self.parts.source.open(machine, point.id).await.map_err(points_failed)? {
            let state = self.parts.registry.disk(opened.disk);
            let state =
                state.ok_or_else(|| refused(format!("disk {} is not known any more", opened.disk)))?;
            let since = brought.as_ref().and_then(|brought| {
                let (hold, cut) = (*brought.holds.get(&opened.disk)?, *brought.cuts.get(&opened.disk)?);
                let changes = opened.view.changes_from(HistoryPlace { point: brought.point, cut }).ok()??;
                Some((hold, changes))
            });
            let apart = begins.as_ref().and_then(|begins| {
                let cut = cut_of(begins, opened.disk)?;
                let changes = opened.view.changes_from(HistoryPlace { point: begins.id, cut }).ok()??;
                Some(Apart { begins: cut, changes, line: lifecycle.lines.get(&opened.disk).copied() })
            });
            let capture = Capture {
                disk: opened.disk,
                identity: state.record.identity.clone(),
                path: state.record.path.clone(),
                size_bytes: opened.view.size_bytes(),
                generation: state.record.generation,
                durable: cut_of(point, opened.disk).unwrap_or_default(),
                interval: Interval(0),
                scanned_to: BlockIndex(0),
                scan_complete: false,
                replica_empty: false,
            };
            disks.push(RoundDisk { capture, view: opened.view, since, apart });
        }
        Ok(disks)
    }
}

impl WayBack for Reverse {
    fn check(&self, machine: MachineId, failover: JobId) -> BoxFuture<'_, Result<(), WayBackError>> {
        Box::pin(async move { self.target(machine, failover).await.map(drop) })
    }

    fn begin(&self, machine: MachineId, failover: JobId) -> BoxFuture<'_, Result<(), WayBackError>> {
        Box::pin(async move {
            let followed = self.followed(machine);
            let mut followed = followed.lock().await;
            *followed = Followed::default();
            let taken =
                self.parts.registry.take_over(machine, format!("protected at its target by job {failover}"));
            taken.await.map_err(|error| failed("begin a new line of history")(error.into()))
        })
    }

    fn point(
        &self,
        machine: MachineId,
        failover: JobId,
        task: Arc<Task>,
    ) -> BoxFuture<'_, Result<PointId, WayBackError>> {
        Box::pin(async move {
            let mut listed = self.parts.points.subscribe();
            let followed = self.followed(machine);
            let point = self.make(machine, failover, task, &mut *followed.lock().await).await?;
            let deadline = Instant::now() + LISTED_MAX;
            while !self.parts.points.is_known(point) {
                if Instant::now() >= deadline {
                    return Err(refused(
                        "the point was made and is not listed; look at `holdfast status`, then retry",
                    ));
                }
                let _changed_or_time = tokio::time::timeout(LOOK, listed.changed()).await;
            }
            Ok(point)
        })
    }

    fn clients(&self, failover: JobId) -> BoxFuture<'_, usize> {
        self.parts.branches.clients(failover.to_string())
    }

    fn seal(&self, failover: JobId, sealed: bool) -> BoxFuture<'_, Result<(), WayBackError>> {
        Box::pin(async move {
            let owner = failover.to_string();
            let done = match self.parts.images.own_disks(owner.clone()).await {
                Ok(disks) if disks.is_empty() => self.parts.branches.seal(owner, sealed).await,
                Ok(_) => self.parts.images.seal(owner, sealed).await,
                Err(error) => Err(error),
            };
            done.map_err(|error| failed("end the writing to the target's disks")(error.into()))
        })
    }

    fn source_ready(&self, machine: MachineId, limit: Duration) -> BoxFuture<'_, Result<(), WayBackError>> {
        Box::pin(async move {
            let deadline = Instant::now() + limit;
            while !self.parts.desk.is_standing_by(machine) {
                if Instant::now() >= deadline {
                    return Err(refused(
                        "the source does not stand by: start its agent (`holdfast-agent run`) there, on the old machine booted from \
                         something else than the disks that are to be written, or on the host that has them; then try again",
                    ));
                }
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        })
    }

    fn write_back(
        &self,
        machine: MachineId,
        point: PointId,
        task: Arc<Task>,
    ) -> BoxFuture<'_, Result<WrittenBack, WayBackError>> {
        Box::pin(async move {
            let record = self.record(point).await?;
            let disks = self.round(machine, &record).await?;
            match self.parts.desk.round(machine, disks, task).await {
                None => Err(WayBackError::Cancelled),
                Some(RoundEnd::Failed(text)) => Err(refused(format!("{text} (`holdfast job retry`)"))),
                Some(RoundEnd::Done(done)) => {
                    let mut sum = WrittenBack::default();
                    for (_, written) in done.values() {
                        sum.compared += written.compared;
                        sum.written += written.written;
                        sum.received_bytes += written.received_bytes;
                    }
                    let brought = Brought {
                        point,
                        cuts: record.disks.iter().map(|disk| (disk.disk, disk.sequence)).collect(),
                        holds: done.into_iter().map(|(disk, (hold, _))| (disk, hold)).collect(),
                    };
                    self.brought.lock().unwrap_or_else(PoisonError::into_inner).insert(machine, brought);
                    Ok(sum)
                }
            }
        })
    }

    fn release(&self, machine: MachineId) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let followed = self.followed(machine);
            *followed.lock().await = Followed { released: true, ..Followed::default() };
            self.brought.lock().unwrap_or_else(PoisonError::into_inner).remove(&machine);
        })
    }

    fn end_target(&self, failover: JobId) -> BoxFuture<'_, Result<(), WayBackError>> {
        Box::pin(async move {
            let jobs = self.jobs.get().and_then(Weak::upgrade);
            let jobs = jobs.ok_or_else(|| refused("the coordinator ends"))?;
            let Some(mut watched) = jobs.watch(failover) else { return Ok(()) };
            match jobs.command(failover, Command::Cancel, "failback").await {
                // Over, or being taken back already.
                Ok(()) | Err(JobError::NotNow(_) | JobError::Unknown(_)) => {}
                Err(error) => return Err(failed("end the failover's job")(error.into())),
            }
            let ended = watched.wait_for(JobView::is_settled).await;
            let ended = ended.map_err(|error| failed("end the failover's job")(error.into()))?;
            if ended.job.status.state.is_over() {
                return Ok(());
            }
            Err(refused(format!(
                "job {failover} of the failover could not be taken back; look at it, then retry"
            )))
        })
    }
}
