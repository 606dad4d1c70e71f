//! Failover jobs with the real devices and images: a point in memory becomes an NBD export or a file, over a restart.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_common::{
    clock::{SystemClock, Timestamp},
    entropy::SystemEntropy,
    frame::cut::Consistency,
    ids::{DiskId, JobId, MachineId, PointId},
    wire::WrittenBack,
};
use holdfast_coordinator::{
    compute::{
        image::writer::ImageWriter,
        nbd::{
            attach::NbdAttach,
            server::{LogDamage, Settings},
        },
        port::{BoxFuture, DiskView, ImageFormat, Task},
        vm::{
            MachineSettings, QemuMachines,
            definition::{Accelerator, USER},
        },
    },
    failover::{
        job::{FailoverSpec, JobSpec, Mode, Output, StepKind, Target},
        machine::State,
        plans::failover::Services,
        port::{
            JobStore, LifecycleError, Lifecycles, LogRecord, PointSource, PointsError, ScriptRequest,
            Scripts, SourceError, SourceFacts, Sources, StoreError, WayBack, WayBackError,
        },
        runner::{Command, JobView, Jobs, Parts},
    },
    points::selection::{Candidate, CandidateState, Selection},
    registry::lifecycle::{Lifecycle, LifecycleEvent},
};
use holdfast_tests::{
    memory_view::MemoryView,
    program::{installed, run, run_ok},
};
use tempfile::TempDir;

/// One machine with one point of two disks.
#[derive(Debug)]
struct OnePoint(Vec<(String, Arc<MemoryView>)>);

impl PointSource for OnePoint {
    fn candidates(&self, _machine: MachineId) -> BoxFuture<'_, Result<Vec<Candidate>, PointsError>> {
        let point = PointId::from_bytes([1; 16]);
        let state = CandidateState::Pending;
        let candidate =
            Candidate { point, at: Timestamp(1), consistency: Consistency::Crash, state, group: None };
        Box::pin(async move { Ok(vec![candidate]) })
    }

    fn process(
        &self,
        _machine: MachineId,
        _point: PointId,
        _task: Arc<Task>,
    ) -> BoxFuture<'_, Result<(), PointsError>> {
        Box::pin(async { Ok(()) })
    }

    fn lease(
        &self,
        _machine: MachineId,
        _point: PointId,
        _job: JobId,
    ) -> BoxFuture<'_, Result<(), PointsError>> {
        Box::pin(async { Ok(()) })
    }

    fn release(&self, _job: JobId) -> BoxFuture<'_, Result<(), PointsError>> {
        Box::pin(async { Ok(()) })
    }

    fn keep(&self, _job: JobId, _point: PointId) -> BoxFuture<'_, Result<(), PointsError>> {
        Box::pin(async { Ok(()) })
    }

    fn open(
        &self,
        _machine: MachineId,
        _point: PointId,
    ) -> BoxFuture<'_, Result<Vec<DiskView>, PointsError>> {
        let disk = |(number, (name, view)): (usize, &(String, Arc<MemoryView>))| DiskView {
            disk: DiskId::from_bytes([u8::try_from(number).unwrap(); 16]),
            name: name.clone(),
            view: view.clone(),
        };
        let disks = self.0.iter().enumerate().map(disk).collect();
        Box::pin(async move { Ok(disks) })
    }
}

impl Lifecycles for OnePoint {
    fn now(&self, _machine: MachineId) -> Option<Lifecycle> {
        Some(Lifecycle::default())
    }

    fn advance(
        &self,
        _machine: MachineId,
        event: LifecycleEvent,
        _job: JobId,
    ) -> BoxFuture<'_, Result<Lifecycle, LifecycleError>> {
        Box::pin(async move { Ok(Lifecycle::default().after(event)?) })
    }
}

/// Nor has it programs run.
impl Scripts for OnePoint {
    fn run(&self, _request: ScriptRequest, _task: Arc<Task>) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(async { Err("is not run here".to_owned()) })
    }

    fn end(&self, _job: JobId, _step: u32) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// A test failover wants nothing of the source.
impl Sources for OnePoint {
    fn facts(&self, _machine: MachineId) -> Option<SourceFacts> {
        None
    }

    fn cut(&self, _machine: MachineId, _limit: Duration) -> BoxFuture<'_, Result<PointId, SourceError>> {
        Box::pin(async { Err(SourceError::NotConnected) })
    }

    fn stop(
        &self,
        _machine: MachineId,
        _limit: Duration,
        _hold: Duration,
    ) -> BoxFuture<'_, Result<String, SourceError>> {
        Box::pin(async { Err(SourceError::NotConnected) })
    }

    fn resume(&self, _machine: MachineId) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async { Err(SourceError::NotConnected) })
    }

    fn run(
        &self,
        _machine: MachineId,
        _request: ScriptRequest,
    ) -> BoxFuture<'_, Result<String, SourceError>> {
        Box::pin(async { Err(SourceError::NotConnected) })
    }

    fn end_run(
        &self,
        _machine: MachineId,
        _job: JobId,
        _step: u32,
    ) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async { Ok(()) })
    }

    fn prove_last(&self, _machine: MachineId, _point: PointId) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async { Err(SourceError::NotConnected) })
    }
}

#[derive(Debug, Default)]
struct MemoryStore(Mutex<BTreeMap<(JobId, u64), LogRecord>>);

impl JobStore for MemoryStore {
    fn append(&self, record: LogRecord) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.0.lock().unwrap().insert((record.job, record.number), record);
            Ok(())
        })
    }

    fn load(&self) -> BoxFuture<'_, Result<Vec<LogRecord>, StoreError>> {
        Box::pin(async move { Ok(self.0.lock().unwrap().values().cloned().collect()) })
    }

    fn forget(&self, _job: JobId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }
}

/// These jobs go one way only.
#[derive(Debug)]
struct NoWayBack;

fn no_way<T: Send + 'static>() -> BoxFuture<'static, Result<T, WayBackError>> {
    Box::pin(async { Err(WayBackError::Refused("there is none here".to_owned())) })
}

impl WayBack for NoWayBack {
    fn check(&self, _machine: MachineId, _failover: JobId) -> BoxFuture<'_, Result<(), WayBackError>> {
        no_way()
    }

    fn begin(&self, _machine: MachineId, _failover: JobId) -> BoxFuture<'_, Result<(), WayBackError>> {
        no_way()
    }

    fn point(
        &self,
        _machine: MachineId,
        _failover: JobId,
        _task: Arc<Task>,
    ) -> BoxFuture<'_, Result<PointId, WayBackError>> {
        no_way()
    }

    fn clients(&self, _failover: JobId) -> BoxFuture<'_, usize> {
        Box::pin(async { 0 })
    }

    fn seal(&self, _failover: JobId, _sealed: bool) -> BoxFuture<'_, Result<(), WayBackError>> {
        no_way()
    }

    fn source_ready(&self, _machine: MachineId, _limit: Duration) -> BoxFuture<'_, Result<(), WayBackError>> {
        no_way()
    }

    fn write_back(
        &self,
        _machine: MachineId,
        _point: PointId,
        _task: Arc<Task>,
    ) -> BoxFuture<'_, Result<WrittenBack, WayBackError>> {
        no_way()
    }

    fn release(&self, _machine: MachineId) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    fn end_target(&self, _failover: JobId) -> BoxFuture<'_, Result<(), WayBackError>> {
        no_way()
    }
}

async fn engine(store: &Arc<MemoryStore>, points: &Arc<OnePoint>, sockets: &Path) -> Jobs {
    let attach =
        NbdAttach::new(sockets.into(), sockets.join("branches"), Settings::default(), Arc::new(LogDamage));
    let images = ImageWriter::new(2);
    let machines = QemuMachines::new(MachineSettings {
        folder: sockets.join("vm"),
        sockets: sockets.into(),
        overrides: sockets.join("hardware"),
        accelerator: Accelerator::Auto,
        network: USER.to_owned(),
    });
    let services = Services {
        points: points.clone(),
        attach: Arc::new(attach),
        images: Arc::new(images),
        machines: Arc::new(machines),
        lifecycles: points.clone(),
        sources: points.clone(),
        scripts: points.clone(),
        way_back: Arc::new(NoWayBack),
        drills: Arc::new(holdfast_coordinator::drills::DrillFolder::new(std::env::temp_dir())),
    };
    let parts = Parts {
        store: store.clone(),
        plans: Arc::new(services),
        clock: Arc::new(SystemClock::new()),
        entropy: Arc::new(SystemEntropy::new()),
    };
    Jobs::start(parts).await.unwrap()
}

async fn settled(jobs: &Jobs, job: JobId) -> JobView {
    let mut watch = jobs.watch(job).unwrap();
    let settled = tokio::time::timeout(Duration::from_secs(60), watch.wait_for(JobView::is_settled)).await;
    settled.expect("the job settles").unwrap().clone()
}

fn point() -> Arc<OnePoint> {
    let disk = |name: &str, seed| (name.to_owned(), Arc::new(MemoryView::patchy(seed, 8 << 20)));
    Arc::new(OnePoint(vec![disk("sda", 1), disk("sdb", 2)]))
}

fn spec(target: Target) -> JobSpec {
    let machine = MachineId::from_bytes([9; 16]);
    let (selection, mode) = (Selection::Latest, Mode::Test);
    let networks = BTreeMap::new();
    JobSpec::Failover(FailoverSpec {
        machine,
        selection,
        target,
        mode,
        stop_source: false,
        networks,
        drill: None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_point_is_served_until_it_is_cancelled() {
    if !installed(&["nbdcopy", "nbdinfo"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (store, points) = (Arc::default(), point());
    let jobs = engine(&store, &points, folder.path()).await;
    let job = jobs.submit(spec(Target::Attach), "test").await.unwrap();
    let view = settled(&jobs, job).await;
    assert_eq!(view.job.status.state, State::Holding, "{view:?}");
    let Some(Output::Attached { endpoints, rto_us: 1.. }) = view.job.output(StepKind::Attach) else {
        panic!("{view:?}")
    };
    let copy = folder.path().join("copy").display().to_string();
    let copied = |endpoints: &[holdfast_coordinator::compute::port::Endpoint]| {
        for (endpoint, (name, disk)) in endpoints.iter().zip(&points.0) {
            assert_eq!(&endpoint.name, name);
            let _text = run_ok("nbdcopy", &[&endpoint.uri, &copy]);
            assert!(fs::read(&copy).unwrap() == disk.bytes());
            fs::remove_file(&copy).unwrap();
        }
    };
    copied(endpoints);

    // A coordinator that starts again serves it again, in the same place. The first is gone by then, its socket with it.
    jobs.stop().await;
    drop(jobs);
    let jobs = engine(&store, &points, folder.path()).await;
    let deadline = std::iter::repeat_n((), 200);
    for () in deadline {
        if run("nbdinfo", &["--size", &endpoints[0].uri]).status.success() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    copied(endpoints);
    jobs.command(job, Command::Cancel, "test").await.unwrap();
    assert_eq!(settled(&jobs, job).await.job.status.state, State::Cancelled);
    assert!(!run("nbdinfo", &["--size", &endpoints[0].uri]).status.success());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "no socket is left");
}

/// What clients wrote outlives the coordinator, a change of the point gives it up, and so does a cancel.
#[tokio::test(flavor = "multi_thread")]
async fn a_branch_of_a_point_keeps_what_is_written_to_it() {
    if !installed(&["qemu-io", "nbdcopy"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (store, points) = (Arc::default(), point());
    let jobs = engine(&store, &points, folder.path()).await;
    let job = jobs.submit(spec(Target::Branch), "test").await.unwrap();
    let view = settled(&jobs, job).await;
    assert_eq!(view.job.status.state, State::Holding, "{view:?}");
    let Some(Output::Attached { endpoints, .. }) = view.job.output(StepKind::Attach) else {
        panic!("{view:?}")
    };
    let uri = &endpoints[0].uri;
    let copied = || {
        let copy = folder.path().join("copy");
        let _text = run_ok("nbdcopy", &[uri, &copy.display().to_string()]);
        let bytes = fs::read(&copy).unwrap();
        fs::remove_file(&copy).unwrap();
        bytes
    };
    let before = points.0[0].1.bytes();
    let mut written = before.to_vec();
    written[5000..9000].fill(0x41);
    let _text = run_ok("qemu-io", &["-f", "raw", "-c", "write -P 0x41 5000 4000", uri]);
    assert!(copied() == written);

    jobs.stop().await;
    drop(jobs);
    let jobs = engine(&store, &points, folder.path()).await;
    for () in std::iter::repeat_n((), 200) {
        if run("nbdinfo", &["--size", uri]).status.success() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(copied() == written, "after a restart");

    let same = Selection::Point(view.job.point().unwrap());
    jobs.command(job, Command::ChangePoint(same), "test").await.unwrap();
    assert_eq!(settled(&jobs, job).await.job.status.state, State::Holding);
    assert!(copied() == before, "a change of the point gives up what was written");

    jobs.command(job, Command::Cancel, "test").await.unwrap();
    assert_eq!(settled(&jobs, job).await.job.status.state, State::Cancelled);
    assert_eq!(fs::read_dir(folder.path().join("branches")).unwrap().count(), 0, "no branch is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_becomes_images() {
    let folder = TempDir::new().unwrap();
    let (store, points) = (Arc::default(), point());
    let jobs = engine(&store, &points, folder.path()).await;
    let images = folder.path().join("images");
    let target = Target::Image { folder: images.clone(), format: ImageFormat::Raw, update: false };
    let job = jobs.submit(spec(target), "test").await.unwrap();
    let view = settled(&jobs, job).await;
    assert_eq!(view.job.status.state, State::Succeeded, "{view:?}");
    for (name, disk) in &points.0 {
        assert!(fs::read(images.join(format!("{name}.raw"))).unwrap() == disk.bytes());
    }
    let relative = Target::Image { folder: "images".into(), format: ImageFormat::Raw, update: false };
    let job = jobs.submit(spec(relative), "test").await.unwrap();
    let view = settled(&jobs, job).await;
    assert_eq!(view.job.status.state, State::Failed);
    assert!(view.job.messages[0].text.contains("absolute"), "{view:?}");
}
