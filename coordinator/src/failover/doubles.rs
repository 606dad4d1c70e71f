//! Doubles of everything that jobs use, with faults on demand; for tests.
//!
//! Invariant: what survives a crash of the coordinator is kept apart from what does not (see `World::crash`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use holdfast_common::{
    clock::Timestamp,
    frame::cut::Consistency,
    ids::{DiskId, JobId, MachineId, PointId},
    units::BlockRange,
    wire::{Firmware, Inventory, Platform, WrittenBack},
};
use tokio::sync::watch;

use super::{
    job::{JobSpec, StepKind},
    log::{self, Event, Record, Then},
    plan::course::Course,
    plans::failover::Services,
    port::{
        JobStore, LifecycleError, Lifecycles, LogRecord, PointSource, PointsError, ScriptRequest, Scripts,
        SourceError, SourceFacts, Sources, StoreError, WayBack, WayBackError,
    },
    step::{Context, Outcome, Plan, Plans, Step, StepError},
};
use crate::{
    compute::{
        branch::Origin,
        machines::{MachineRequest, Machines, StartedMachine, Stop, Suited},
        port::{
            Attach, BoxFuture, ComputeError, DiskView, Endpoint, ImageFile, ImageRequest, Task, WriteImage,
        },
    },
    drills::{DrillBook, DrillRecord},
    points::{
        selection::{Candidate, CandidateState},
        view::{BlockView, ViewError, ViewExtent},
    },
    registry::lifecycle::{Lifecycle, LifecycleEvent, Stage},
};

/// A store in memory that can die: from a chosen append on nothing is answered any more.
#[derive(Debug, Default)]
pub(super) struct MemoryStore {
    records: Mutex<BTreeMap<(JobId, u64), LogRecord>>,
    appends_left: Mutex<Option<usize>>,
    died: watch::Sender<bool>,
}

impl MemoryStore {
    pub(super) fn die_after(&self, appends: usize) {
        *self.appends_left.lock().unwrap() = Some(appends);
    }

    pub(super) fn revive(&self) {
        *self.appends_left.lock().unwrap() = None;
        self.died.send_replace(false);
    }

    /// Waits until an append is not answered.
    pub(super) async fn dies(&self) {
        self.died.subscribe().wait_for(|died| *died).await.unwrap();
    }

    pub(super) fn len(&self) -> usize {
        self.records.lock().unwrap().len()
    }

    /// Adds a job that is over before anything else happens.
    pub(super) fn put_over(&self, job: JobId, spec: JobSpec, steps: Vec<StepKind>) {
        let by = "test".to_owned();
        let created = Event::Created { spec, by: by.clone(), steps, holds: true };
        for (number, event) in (1..).zip([created, Event::CancelRequested { by }]) {
            let record = log::encode(&Record { job, number, at: Timestamp(0), event }).unwrap();
            self.records.lock().unwrap().insert((job, number), record);
        }
    }

    fn alive(&self) -> bool {
        let mut left = self.appends_left.lock().unwrap();
        match left.as_mut() {
            Some(0) => return false,
            Some(left) => *left -= 1,
            None => {}
        }
        true
    }
}

impl JobStore for MemoryStore {
    fn append(&self, record: LogRecord) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            if !self.alive() {
                self.died.send_replace(true);
                std::future::pending::<()>().await;
            }
            let (job, number) = (record.job, record.number);
            let mut records = self.records.lock().unwrap();
            if records.contains_key(&(job, number)) {
                return Err(StoreError::Taken { job, number });
            }
            records.insert((job, number), record);
            Ok(())
        })
    }

    fn load(&self) -> BoxFuture<'_, Result<Vec<LogRecord>, StoreError>> {
        Box::pin(async move { Ok(self.records.lock().unwrap().values().cloned().collect()) })
    }

    fn forget(&self, job: JobId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.records.lock().unwrap().retain(|(of, _), _| *of != job);
            Ok(())
        })
    }
}

/// Points, devices and images in memory.
#[derive(Debug, Default)]
pub(super) struct World {
    inner: Mutex<Things>,
    /// Where machines stood before the job.
    before: BTreeMap<MachineId, Lifecycle>,
    drills: Mutex<Vec<DrillRecord>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Things {
    pub leases: BTreeSet<(JobId, PointId)>,
    pub processed: BTreeSet<PointId>,
    pub served: BTreeSet<String>,
    /// Branches of served disks: the point, and the turn that began it.
    pub branches: BTreeMap<String, (PointId, u32)>,
    pub images: BTreeMap<PathBuf, String>,
    pub newest: u8,
    /// Defined machines, with their points.
    pub machines: BTreeMap<String, PointId>,
    pub running: BTreeSet<String>,
    pub lifecycles: BTreeMap<MachineId, Lifecycle>,
    /// Machines whose source is stopped.
    pub stopped: BTreeSet<MachineId>,
    /// Machines without a point.
    pub without_point: BTreeSet<MachineId>,
    /// Programs that plans have run, and those that fail.
    pub ran: Vec<String>,
    pub failing: BTreeSet<String>,
    /// What the source does.
    pub source: Source,
    /// Points that were served or shown by a machine, in order.
    pub shown: Vec<PointId>,
    /// Targets on their way back. The failover of a machine has its bytes here ([`failover_of`]).
    ways: BTreeMap<[u8; 16], Way>,
    /// Whether clients use the disks of a target that is to go back.
    pub clients: bool,
}

/// A target on its way back.
#[derive(Clone, Debug, Default)]
pub(super) struct Way {
    /// It is followed.
    pub followed: bool,
    /// It takes no more writes.
    pub sealed: bool,
    /// What the failover made is gone.
    pub ended: bool,
    /// Its points, and whether it could write no more when they were made.
    pub points: BTreeMap<PointId, bool>,
    /// What the source's disks hold.
    pub source_holds: Option<PointId>,
}

impl Things {
    /// Where the machine stands, of which there is one in most tests.
    pub(super) fn lifecycle(&self) -> Lifecycle {
        self.lifecycles.values().next().cloned().unwrap_or_default()
    }

    pub(super) fn of(&self, machine: MachineId) -> Lifecycle {
        self.lifecycles.get(&machine).cloned().unwrap_or_default()
    }

    /// The way back of a machine.
    pub(super) fn way(&self, machine: MachineId) -> Way {
        self.ways.get(&machine.into_bytes()).cloned().unwrap_or_default()
    }

    fn way_mut(&mut self, of: [u8; 16]) -> &mut Way {
        self.ways.entry(of).or_default()
    }

    /// Whether the machine is protected at its target.
    pub(super) fn is_protected_there(&self, machine: MachineId) -> bool {
        let way = self.way(machine);
        matches!(self.of(machine).stage, Stage::ProtectedReversed { .. })
            && way.followed
            && !way.points.is_empty()
    }

    /// Whether the machine is back at its source, with all that its target wrote, and cannot run there too.
    pub(super) fn is_back(&self, machine: MachineId) -> bool {
        let way = self.way(machine);
        let complete = way.source_holds.and_then(|point| way.points.get(&point).copied());
        self.of(machine) == Lifecycle::default() && complete == Some(true) && (way.sealed || way.ended)
    }
}

/// The failover that made a machine run at its target, before the job that leads it back.
pub(super) fn failover_of(machine: MachineId) -> JobId {
    JobId::from_bytes(machine.into_bytes())
}

/// The sources of the machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Source {
    pub disconnected: bool,
    /// It writes although it is stopped.
    pub writes_on: bool,
    /// It answers nothing.
    pub hangs: bool,
}

impl World {
    pub(super) fn things(&self) -> MutexGuard<'_, Things> {
        self.inner.lock().unwrap()
    }

    /// As it is before a job of this kind. Of a plan that leads back, the last machine is at its source.
    pub(super) fn where_begins(spec: &JobSpec) -> Self {
        let machines = match spec {
            JobSpec::Failover(_) => return Self::default(),
            JobSpec::Reprotect(spec) | JobSpec::Failback(spec) => vec![spec.machine],
            JobSpec::Plan(spec) if spec.mode.failover().is_some() => return Self::default(),
            JobSpec::Plan(spec) => {
                let mut machines: Vec<_> = spec.members().map(|(_, member)| member.machine).collect();
                machines.pop();
                machines
            }
        };
        let is_followed = match spec {
            JobSpec::Plan(spec) => spec.mode == Course::Failback,
            spec => matches!(spec, JobSpec::Failback(_)),
        };
        let mut things = Things { newest: 50, ..Things::default() };
        for machine in machines {
            let (job, point) = (failover_of(machine), point(1));
            let stage = if is_followed {
                Stage::ProtectedReversed { job, point }
            } else {
                Stage::Committed { job, point }
            };
            things.lifecycles.insert(machine, Lifecycle { stage, ..Lifecycle::default() });
            things.way_mut(machine.into_bytes()).followed = is_followed;
        }
        let before = things.lifecycles.clone();
        Self { inner: Mutex::new(things), before, drills: Mutex::default() }
    }

    /// The machines that ran at their targets before the job.
    pub(super) fn were_there(&self) -> Vec<MachineId> {
        self.before.keys().copied().collect()
    }

    /// What a crash of the coordinator takes away: the devices. Machines run on.
    pub(super) fn crash(&self) {
        self.things().served.clear();
    }

    /// The source connects again if it may, and goes on if it was stopped before it was fenced.
    pub(super) fn let_in(&self) {
        let mut things = self.things();
        let lifecycles = things.lifecycles.clone();
        let is_fenced = |machine: &MachineId| lifecycles.get(machine).is_some_and(Lifecycle::is_fenced);
        things.stopped.retain(is_fenced);
    }

    /// Whether nothing of any job is left, and each machine is where it was before, or what cannot be taken back is whole.
    pub(super) fn is_clean(&self) -> bool {
        let things = self.things();
        let made = things.served.is_empty()
            && things.branches.is_empty()
            && things.images.is_empty()
            && things.machines.is_empty();
        let as_before = |machine: MachineId| {
            let (before, way) = (self.before.get(&machine).cloned().unwrap_or_default(), things.way(machine));
            things.of(machine) == before && !way.sealed && !way.ended
        };
        let whole = |machine: &MachineId| {
            as_before(*machine) || things.is_back(*machine) || things.is_protected_there(*machine)
        };
        made && things.running.is_empty()
            && things.leases.is_empty()
            && things.lifecycles.keys().all(whole)
            && things.stopped.is_empty()
    }
}

#[derive(Debug)]
struct Empty;

impl BlockView for Empty {
    fn size_bytes(&self) -> u64 {
        4096
    }

    fn read(&self, _offset: u64, buffer: &mut [u8]) -> Result<(), ViewError> {
        buffer.fill(0);
        Ok(())
    }

    fn extents(&self, range: BlockRange) -> Result<Vec<ViewExtent>, ViewError> {
        Ok(vec![ViewExtent { range, hole: true }])
    }
}

pub(super) fn point(number: u8) -> PointId {
    PointId::from_bytes([number; 16])
}

impl PointSource for World {
    /// One pending point, and a newer one each time it is asked for.
    fn candidates(&self, machine: MachineId) -> BoxFuture<'_, Result<Vec<Candidate>, PointsError>> {
        Box::pin(async move {
            let mut things = self.things();
            if things.without_point.contains(&machine) {
                return Ok(Vec::new());
            }
            things.newest += 1;
            let candidate = |number: u8| Candidate {
                point: point(number),
                at: Timestamp(i64::from(number)),
                consistency: Consistency::Crash,
                state: CandidateState::Pending,
                group: None,
            };
            Ok((1..=things.newest).map(candidate).collect())
        })
    }

    fn process(
        &self,
        _machine: MachineId,
        point: PointId,
        _task: Arc<Task>,
    ) -> BoxFuture<'_, Result<(), PointsError>> {
        Box::pin(async move {
            self.things().processed.insert(point);
            Ok(())
        })
    }

    fn lease(
        &self,
        _machine: MachineId,
        point: PointId,
        job: JobId,
    ) -> BoxFuture<'_, Result<(), PointsError>> {
        Box::pin(async move {
            self.things().leases.insert((job, point));
            Ok(())
        })
    }

    fn release(&self, job: JobId) -> BoxFuture<'_, Result<(), PointsError>> {
        Box::pin(async move {
            self.things().leases.retain(|(of, _)| *of != job);
            Ok(())
        })
    }

    fn keep(&self, job: JobId, point: PointId) -> BoxFuture<'_, Result<(), PointsError>> {
        Box::pin(async move {
            self.things().leases.retain(|(of, held)| *of != job || *held == point);
            Ok(())
        })
    }

    fn open(&self, _machine: MachineId, point: PointId) -> BoxFuture<'_, Result<Vec<DiskView>, PointsError>> {
        Box::pin(async move {
            let mut things = self.things();
            assert!(things.processed.contains(&point), "opened before it was processed");
            assert!(things.leases.iter().any(|(_, held)| *held == point), "opened without a lease");
            if things.shown.last() != Some(&point) {
                things.shown.push(point);
            }
            let disk = DiskId::from_bytes([1; 16]);
            Ok(vec![DiskView { disk, name: "sda".into(), view: Arc::new(Empty) }])
        })
    }
}

impl Attach for World {
    fn attach(
        &self,
        name: String,
        disks: Vec<DiskView>,
        writable: Option<Origin>,
    ) -> BoxFuture<'_, Result<Vec<Endpoint>, ComputeError>> {
        Box::pin(async move {
            let endpoint = |disk: DiskView| Endpoint {
                disk: disk.disk,
                uri: format!("{name}/{}", disk.name),
                name: disk.name,
                size_bytes: 4096,
            };
            let endpoints = disks.into_iter().map(endpoint).collect();
            let mut things = self.things();
            if let Some(Origin { point, turn }) = writable {
                let found = things.branches.get(&name).copied();
                match (found, turn) {
                    (Some((of, _)), None) => assert_eq!(of, point, "a branch goes on over another point"),
                    (None, None) => panic!("what was written is gone"),
                    (_, Some(turn)) => _ = things.branches.insert(name.clone(), (point, turn)),
                }
            }
            things.served.insert(name);
            drop(things);
            Ok(endpoints)
        })
    }

    fn detach(&self, name: String) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async move {
            self.things().served.remove(&name);
            Ok(())
        })
    }

    fn discard(&self, name: String) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async move {
            let mut things = self.things();
            things.served.remove(&name);
            things.branches.remove(&name);
            Ok(())
        })
    }
}

impl WayBack for World {
    fn check(&self, _machine: MachineId, _failover: JobId) -> BoxFuture<'_, Result<(), WayBackError>> {
        Box::pin(async { Ok(()) })
    }

    fn begin(&self, machine: MachineId, _failover: JobId) -> BoxFuture<'_, Result<(), WayBackError>> {
        Box::pin(async move {
            self.things().way_mut(machine.into_bytes()).followed = true;
            Ok(())
        })
    }

    fn point(
        &self,
        machine: MachineId,
        _failover: JobId,
        _task: Arc<Task>,
    ) -> BoxFuture<'_, Result<PointId, WayBackError>> {
        Box::pin(async move {
            let mut things = self.things();
            assert!(things.of(machine).is_fenced(), "two write to one log");
            let way = things.way(machine);
            if !way.followed {
                return Err(WayBackError::Refused("it is not followed".into()));
            }
            things.newest += 1;
            let made = point(things.newest);
            things.way_mut(machine.into_bytes()).points.insert(made, way.sealed);
            Ok(made)
        })
    }

    fn clients(&self, _failover: JobId) -> BoxFuture<'_, usize> {
        Box::pin(async { usize::from(self.things().clients) })
    }

    fn seal(&self, failover: JobId, sealed: bool) -> BoxFuture<'_, Result<(), WayBackError>> {
        Box::pin(async move {
            let mut things = self.things();
            let of = failover.into_bytes();
            assert!(things.of(MachineId::from_bytes(of)).is_fenced(), "there are two machines");
            things.way_mut(of).sealed = sealed;
            Ok(())
        })
    }

    fn source_ready(&self, _machine: MachineId, _limit: Duration) -> BoxFuture<'_, Result<(), WayBackError>> {
        Box::pin(async { Ok(()) })
    }

    fn write_back(
        &self,
        machine: MachineId,
        point: PointId,
        _task: Arc<Task>,
    ) -> BoxFuture<'_, Result<WrittenBack, WayBackError>> {
        Box::pin(async move {
            let mut things = self.things();
            assert!(things.of(machine).is_fenced(), "the machine's own disks are written to");
            assert!(things.leases.iter().any(|(_, held)| *held == point), "written back without a lease");
            things.way_mut(machine.into_bytes()).source_holds = Some(point);
            Ok(WrittenBack::default())
        })
    }

    fn release(&self, machine: MachineId) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.things().way_mut(machine.into_bytes()).followed = false })
    }

    fn end_target(&self, failover: JobId) -> BoxFuture<'_, Result<(), WayBackError>> {
        Box::pin(async move {
            let mut things = self.things();
            let of = failover.into_bytes();
            assert!(!things.of(MachineId::from_bytes(of)).is_fenced(), "there is no machine any more");
            things.way_mut(of).ended = true;
            Ok(())
        })
    }
}

impl WriteImage for World {
    fn write(
        &self,
        request: ImageRequest,
        task: Arc<Task>,
    ) -> BoxFuture<'_, Result<ImageFile, ComputeError>> {
        Box::pin(async move {
            let path = request.folder.join(&request.disk.name);
            self.things().images.insert(path.clone(), request.owner);
            task.add_total_bytes(4096);
            task.add_done_bytes(4096);
            Ok(ImageFile { disk: request.disk.disk, path, size_bytes: 4096, data_bytes: 4096 })
        })
    }

    fn discard(&self, folder: PathBuf, owner: String) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async move {
            self.things().images.retain(|path, by| !(path.starts_with(&folder) && *by == owner));
            Ok(())
        })
    }
}

impl Lifecycles for World {
    fn now(&self, machine: MachineId) -> Option<Lifecycle> {
        Some(self.things().of(machine))
    }

    fn advance(
        &self,
        machine: MachineId,
        event: LifecycleEvent,
        _job: JobId,
    ) -> BoxFuture<'_, Result<Lifecycle, LifecycleError>> {
        Box::pin(async move {
            let mut things = self.things();
            let after = things.of(machine).after(event)?;
            things.lifecycles.insert(machine, after.clone());
            Ok(after)
        })
    }
}

impl World {
    async fn source(&self, machine: MachineId) -> Result<MutexGuard<'_, Things>, SourceError> {
        if self.things().source.hangs {
            std::future::pending::<()>().await;
        }
        let things = self.things();
        // A fenced source is not connected.
        if things.source.disconnected || things.of(machine).is_fenced() {
            return Err(SourceError::NotConnected);
        }
        Ok(things)
    }
}

impl Sources for World {
    fn facts(&self, _machine: MachineId) -> Option<SourceFacts> {
        let connected = !self.things().source.disconnected;
        let inventory = Inventory {
            host_name: "web-1".into(),
            operating_system: String::new(),
            kernel: String::new(),
            boot_id: String::new(),
            firmware: Firmware::Bios,
            platform: Platform::Kvm,
            hardware: String::new(),
            hardware_uuid: String::new(),
            processors: 1,
            memory_bytes: 1 << 30,
            network_cards: Vec::new(),
            disks: Vec::new(),
            drivers: Vec::new(),
        };
        Some(SourceFacts {
            name: "web-1".into(),
            connected,
            inventory: Some(inventory),
            suited: Suited::default(),
        })
    }

    fn cut(&self, machine: MachineId, _limit: Duration) -> BoxFuture<'_, Result<PointId, SourceError>> {
        Box::pin(async move {
            let mut things = self.source(machine).await?;
            things.newest += 1;
            Ok(point(things.newest))
        })
    }

    fn stop(
        &self,
        machine: MachineId,
        _limit: Duration,
        _hold: Duration,
    ) -> BoxFuture<'_, Result<String, SourceError>> {
        Box::pin(async move {
            self.source(machine).await?.stopped.insert(machine);
            Ok("stopped".into())
        })
    }

    fn resume(&self, machine: MachineId) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            self.source(machine).await?.stopped.remove(&machine);
            Ok(())
        })
    }

    fn run(&self, machine: MachineId, request: ScriptRequest) -> BoxFuture<'_, Result<String, SourceError>> {
        Box::pin(async move {
            let mut things = self.source(machine).await?;
            let program = request.command.first().cloned().unwrap_or_default();
            let told = request.environment.get("HOLDFAST_MACHINE").cloned().unwrap_or_default();
            things.ran.push(format!("{program} on {told}"));
            if things.failing.contains(&program) {
                return Err(SourceError::Refused { text: "failed (exit status: 1)".into() });
            }
            Ok(String::new())
        })
    }

    fn end_run(&self, machine: MachineId, _job: JobId, _step: u32) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move { self.source(machine).await.map(drop) })
    }

    fn prove_last(&self, machine: MachineId, _point: PointId) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            let things = self.source(machine).await?;
            if things.stopped.contains(&machine) && !things.source.writes_on {
                Ok(())
            } else {
                Err(SourceError::Refused { text: "8 blocks were written since; stop what writes".into() })
            }
        })
    }
}

impl Machines for World {
    fn define(&self, request: MachineRequest) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async move {
            let mut things = self.things();
            assert!(things.served.contains(&request.owner), "defined before its disks were served");
            if things.machines.insert(request.owner.clone(), request.point) != Some(request.point) {
                things.running.remove(&request.owner);
            }
            Ok(())
        })
    }

    fn start(&self, owner: String) -> BoxFuture<'_, Result<StartedMachine, ComputeError>> {
        Box::pin(async move {
            let mut things = self.things();
            assert!(
                things.machines.contains_key(&owner) && things.served.contains(&owner),
                "started before defined"
            );
            things.running.insert(owner);
            Ok(StartedMachine::default())
        })
    }

    fn is_running(&self, owner: String) -> BoxFuture<'_, Result<bool, ComputeError>> {
        Box::pin(async move { Ok(self.things().running.contains(&owner)) })
    }

    fn stop(&self, owner: String, _how: Stop) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async move {
            self.things().running.remove(&owner);
            Ok(())
        })
    }

    fn stream(&self, _owner: String, _task: Arc<Task>) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async { Ok(()) })
    }

    fn console_text(&self, owner: String) -> BoxFuture<'_, Result<Vec<u8>, ComputeError>> {
        Box::pin(async move {
            Ok(if self.things().running.contains(&owner) { b"debian login: ".to_vec() } else { Vec::new() })
        })
    }

    fn destroy(&self, owner: String) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async move {
            let mut things = self.things();
            things.running.remove(&owner);
            things.machines.remove(&owner);
            Ok(())
        })
    }
}

impl World {
    pub(super) fn drills(&self) -> Vec<DrillRecord> {
        self.drills.lock().unwrap().clone()
    }
}

impl DrillBook for World {
    fn screenshot(&self, _machine: MachineId, job: JobId) -> std::io::Result<PathBuf> {
        Ok(format!("/pictures/{job}.png").into())
    }

    fn record(&self, _machine: MachineId, drill: DrillRecord) -> BoxFuture<'_, std::io::Result<()>> {
        Box::pin(async move {
            let mut drills = self.drills.lock().unwrap();
            drills.retain(|known| known.job != drill.job);
            drills.insert(0, drill);
            Ok(())
        })
    }

    fn list(&self, _machine: MachineId) -> Vec<DrillRecord> {
        self.drills()
    }
}

impl Scripts for World {
    /// Whoever is told that it runs after its machines sees all of their disks; before them, none of their points.
    fn run(&self, request: ScriptRequest, _task: Arc<Task>) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(async move {
            let told = |name: &str| request.environment.get(name).cloned().unwrap_or_default();
            let (machines, disks) = (told("HOLDFAST_MACHINES"), told("HOLDFAST_DISKS"));
            let mut things = self.things();
            let is_served = |machine: &str| disks.contains(&format!("{machine}/sda="));
            let has_point = |machine: &str| told("HOLDFAST_POINTS").contains(&format!("{machine}="));
            match told("HOLDFAST_WHEN").as_str() {
                "before" => assert_eq!(told("HOLDFAST_POINTS"), "", "it runs before its machines"),
                // Those that were left alone have no point of the plan.
                _ => assert!(
                    machines.split(' ').all(|name| is_served(name) == has_point(name)),
                    "{machines}: {disks}"
                ),
            }
            let program = request.command.first().cloned().unwrap_or_default();
            things.ran.push(program.clone());
            if things.failing.contains(&program) {
                Err("failed with exit code 1".into())
            } else {
                Ok("done".into())
            }
        })
    }

    fn end(&self, _job: JobId, _step: u32) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// What goes wrong with which step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing.
    None,
    /// Every run and every undo happens twice.
    Twice,
    /// The run of this step does its work and then fails, this often.
    Run(StepKind, u32),
    /// The undo of this step does its work and then fails, this often.
    Undo(StepKind, u32),
    /// This step runs until it is cancelled.
    Hang(StepKind),
}

/// The real plans over doubles, with a fault.
#[derive(Clone, Debug)]
pub(super) struct FaultyPlans {
    pub services: Services,
    pub fault: Arc<Mutex<Fault>>,
}

impl Plans for FaultyPlans {
    fn plan(&self, spec: &JobSpec) -> Plan {
        self.services.plan(spec)
    }

    fn step(&self, kind: StepKind) -> Arc<dyn Step> {
        let fault = Arc::clone(&self.fault);
        Arc::new(FaultyStep { kind, step: self.services.step(kind), fault })
    }
}

#[derive(Debug)]
struct FaultyStep {
    kind: StepKind,
    step: Arc<dyn Step>,
    fault: Arc<Mutex<Fault>>,
}

impl FaultyStep {
    /// Takes one failure of this step off the fault, if there is one left.
    fn fails(&self, undo: bool) -> bool {
        let mut fault = self.fault.lock().unwrap();
        match &mut *fault {
            Fault::Run(kind, left) if !undo && *kind == self.kind && *left > 0 => *left -= 1,
            Fault::Undo(kind, left) if undo && *kind == self.kind && *left > 0 => *left -= 1,
            _ => return false,
        }
        true
    }

    fn is(&self, fault: Fault) -> bool {
        *self.fault.lock().unwrap() == fault
    }
}

impl Step for FaultyStep {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            if self.is(Fault::Twice) {
                self.step.run(context).await?;
            }
            let outcome = self.step.run(context).await?;
            if self.is(Fault::Hang(self.kind)) {
                while !context.task.is_cancelled() {
                    tokio::task::yield_now().await;
                }
            }
            if self.fails(false) {
                return Err(StepError { message: "made to fail".into(), then: Then::Hold });
            }
            Ok(outcome)
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            if self.is(Fault::Twice) {
                self.step.undo(context).await?;
            }
            self.step.undo(context).await?;
            if self.fails(true) {
                return Err(StepError { message: "made to fail".into(), then: Then::Hold });
            }
            Ok(())
        })
    }

    fn restore<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        self.step.restore(context)
    }
}

/// No hypervisor: every machine that is asked for is refused with what to do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NoMachines;

fn none<T>() -> Result<T, ComputeError> {
    let detail = "this coordinator runs no machines; fail over to devices (--attach) or images (--image), and start the \
                  machine from those"
        .to_owned();
    Err(ComputeError::Invalid { detail })
}

impl Machines for NoMachines {
    fn ready(&self) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async { none() })
    }

    fn define(&self, _request: MachineRequest) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async { none() })
    }

    fn start(&self, _owner: String) -> BoxFuture<'_, Result<StartedMachine, ComputeError>> {
        Box::pin(async { none() })
    }

    fn is_running(&self, _owner: String) -> BoxFuture<'_, Result<bool, ComputeError>> {
        Box::pin(async { Ok(false) })
    }

    fn stop(&self, _owner: String, _how: Stop) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async { Ok(()) })
    }

    fn stream(&self, _owner: String, _task: Arc<Task>) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async { none() })
    }

    fn destroy(&self, _owner: String) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async { Ok(()) })
    }
}
