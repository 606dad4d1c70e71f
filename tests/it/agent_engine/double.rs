//! The engine in this process, and a double of everything behind it: replicas in memory, acknowledgements at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam_channel::{Sender, bounded};
use holdfast_agent::{
    batch::{BufferPool, DiskFile, FRAME_BLOCKS, FrameSink, ReaderPool, SealPool, SealSettings, SinkClosed},
    capture::{
        cycle::Trouble,
        freeze::{FreezeSettings, GuardianCommand},
        scan::chunks,
        tracked::{TrackedOptions, TrackedSource},
    },
    engine::{
        Budget, Engine, EngineParts, Held, HoldCheck, Host, HostDisk, Incarnations, LinuxHost, LinuxParts,
        MessageSink, StatusBoard,
    },
    hooks::HookSettings,
    inventory::Roots,
    ship::port::{INBOUND_MAX, Inbound, OutgoingFrame},
};
use holdfast_common::{
    clock::{Clock as _, SystemClock},
    entropy::{Entropy as _, SystemEntropy},
    frame::{CutRecord, ExtentKind, Frame, FrameKind, PlainReader},
    ids::{DiskId, Generation, Interval, MachineId, PointId, Sequence},
    units::{BlockIndex, BlockRange},
    wire::{
        AgentMessage, Assignment, Capture, DiskIdentity, MachineSettings, ScanAnswer, ScanQuestion, Welcome,
    },
};
use holdfast_tests::site::program;
use tempfile::TempDir;

/// Longest wait for points.
const PATIENCE: Duration = Duration::from_secs(90);

/// A complete point.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) record: CutRecord,
    /// Whether the replica was what the disks were while held.
    pub(crate) is_equal: bool,
}

struct Replica {
    capture: Capture,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Coordinator {
    replicas: BTreeMap<DiskId, Replica>,
    cuts: BTreeMap<PointId, BTreeMap<DiskId, [u8; 32]>>,
    /// What the disks were in each hold.
    held: BTreeSet<Vec<[u8; 32]>>,
    points: Vec<Point>,
    voids: Vec<String>,
    to_agent: Option<Sender<Inbound>>,
    interval: Duration,
}

type Shared = Arc<Mutex<Coordinator>>;

fn lock(coordinator: &Shared) -> MutexGuard<'_, Coordinator> {
    coordinator.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An engine and its double.
pub(crate) struct Rig {
    coordinator: Shared,
    paths: Vec<PathBuf>,
    state: TempDir,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Rig {
    /// Protects these disks from scratch.
    pub(crate) fn start(paths: &[&Path], interval: Duration) -> Self {
        let (clock, entropy) = (SystemClock::new(), SystemEntropy::new());
        let mut coordinator = Coordinator { interval, ..Coordinator::default() };
        for path in paths {
            let size_bytes = DiskFile::open(path).expect("the disk").size_bytes();
            let capture = Capture {
                disk: DiskId(entropy.uuid(clock.wall())),
                identity: DiskIdentity::default(),
                path: path.display().to_string(),
                size_bytes,
                generation: Generation(1),
                durable: Sequence(0),
                interval: Interval(1),
                scanned_to: BlockIndex(0),
                scan_complete: false,
                replica_empty: true,
            };
            let bytes = vec![0; usize::try_from(size_bytes).expect("a small disk")];
            coordinator.replicas.insert(capture.disk, Replica { capture, bytes });
        }
        let mut rig = Self {
            coordinator: Arc::new(Mutex::new(coordinator)),
            paths: paths.iter().map(|path| path.to_path_buf()).collect(),
            state: tempfile::tempdir().expect("a folder"),
            stop: None,
            thread: None,
        };
        rig.start_engine();
        rig
    }

    fn start_engine(&mut self) {
        let (inbound, events) = bounded(INBOUND_MAX);
        let (wake, woken) = bounded(1);
        let (stop, stopped) = bounded(1);
        let clock = Arc::new(SystemClock::new());
        let entropy = Arc::new(SystemEntropy::new());
        let sink =
            Box::new(Double { coordinator: Arc::clone(&self.coordinator), reader: PlainReader::new() });
        let settings = SealSettings { threads: 1, nice: 5, slots: 128, level: None };
        let guardian =
            GuardianCommand { program: program("holdfast-agent"), arguments: vec!["guardian".into()] };
        let host = LinuxHost::new(LinuxParts {
            incarnations: Incarnations::load(self.state.path().join("incarnations.json")),
            images: self.paths.clone(),
            readers: ReaderPool::new(4).expect("threads"),
            tracking: TrackedOptions::default(),
            freezing: FreezeSettings { guardian, roots: Roots::default(), ..FreezeSettings::default() },
            hooks: HookSettings::new("/nonexistent".into(), self.state.path()),
            clock: clock.clone(),
            entropy: entropy.clone(),
        });
        let disks = self.paths.iter().map(|path| DiskFile::open(path).expect("the disk")).collect();
        let host = HashingHost { inner: host, disks, coordinator: Arc::clone(&self.coordinator) };
        let engine = Engine::new(EngineParts {
            host: Box::new(host),
            hand_over: Box::new(SealPool::new(settings, sink, wake).expect("threads")),
            messages: Box::new(Messages(Arc::clone(&self.coordinator))),
            clock,
            entropy,
            budget: Budget::default(),
            status: StatusBoard::default(),
            marks: holdfast_agent::group::Marks::default(),
        });
        let mut coordinator = lock(&self.coordinator);
        let welcome = Welcome {
            protocol_version: 1,
            coordinator_version: String::new(),
            machine: MachineId::from_bytes([9; 16]),
            now: SystemClock::new().wall(),
            assignment: coordinator.assignment(),
        };
        inbound.send(Inbound::Connected(Box::new(welcome))).expect("room");
        coordinator.to_agent = Some(inbound);
        drop(coordinator);
        self.stop = Some(stop);
        self.thread = Some(thread::spawn(move || {
            engine.run(&events, &woken, &stopped).expect("the engine ends when it is told to");
        }));
    }

    /// Drops everything that is only in memory, as a kill does; tracking stays.
    pub(crate) fn kill_and_restart(&mut self) {
        self.end();
        self.start_engine();
    }

    fn end(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the capture thread");
        }
    }

    /// Waits until there are so many points.
    pub(crate) fn wait_for_points(&mut self, count: usize) -> Vec<Point> {
        let started = Instant::now();
        loop {
            let points = self.points();
            if points.len() >= count {
                return points;
            }
            let is_over = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(!is_over, "the engine has ended");
            assert!(
                started.elapsed() < PATIENCE,
                "{} of {count} points; void: {:?}",
                points.len(),
                self.voids()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn points(&self) -> Vec<Point> {
        lock(&self.coordinator).points.clone()
    }

    pub(crate) fn voids(&self) -> Vec<String> {
        lock(&self.coordinator).voids.clone()
    }

    pub(crate) fn generation(&self) -> u32 {
        lock(&self.coordinator)
            .replicas
            .values()
            .map(|replica| replica.capture.generation.0)
            .max()
            .unwrap_or(0)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for disk in lock(&self.coordinator).replicas.keys() {
            let _ = TrackedSource::remove(*disk, &TrackedOptions::default());
        }
    }
}

impl Coordinator {
    fn assignment(&self) -> Assignment {
        Assignment {
            settings: MachineSettings {
                cut_interval_ms: u64::try_from(self.interval.as_millis()).expect("short"),
                hold_ms_max: 5_000,
                send_bytes_per_second_max: 0,
                scan_bytes_per_second_max: 0,
            },
            disks: self.replicas.values().map(|replica| replica.capture.clone()).collect(),
        }
    }

    fn tell(&self, event: Inbound) {
        if let Some(agent) = &self.to_agent {
            // A full queue in these small tests means that the engine hangs; the wait for points says so.
            let _ = agent.try_send(event);
        }
    }

    fn apply(&mut self, frame: &Frame, reader: &mut PlainReader) {
        let header = frame.header();
        let Some(replica) = self.replicas.get_mut(&header.disk) else { return };
        if header.generation != replica.capture.generation {
            return;
        }
        assert_eq!(header.sequence, replica.capture.durable.next(), "frames follow each other");
        replica.capture.durable = header.sequence;
        replica.capture.replica_empty = false;
        match header.kind {
            FrameKind::Data => replica.write(frame, reader),
            FrameKind::Scan => {
                let record = frame.scan_record().expect("a record");
                replica.capture.scanned_to = record.scanned_to;
                replica.capture.scan_complete = record.complete;
            }
            FrameKind::Cut => {
                replica.capture.interval = header.interval.next();
                let digest = *blake3::hash(&replica.bytes).as_bytes();
                let record = frame.cut_record().expect("a record");
                let cut = self.cuts.entry(record.point).or_default();
                cut.insert(header.disk, digest);
                if cut.len() == record.members.len() {
                    let is_equal = self.held.contains(&cut.values().copied().collect::<Vec<_>>());
                    self.points.push(Point { record, is_equal });
                }
            }
        }
        self.tell(Inbound::Acknowledged { disk: header.disk, sequence: header.sequence });
    }

    fn answer(&self, question: &ScanQuestion) {
        let Some(replica) = self.replicas.get(&question.disk) else { return };
        let asked = chunks(BlockRange { start: question.start, count: question.count });
        let differs = asked.iter().zip(&question.digests).map(|(chunk, digest)| {
            let mut bytes = replica.bytes.get(span(*chunk, replica.bytes.len())).unwrap_or_default().to_vec();
            bytes.resize(usize::try_from(chunk.bytes()).expect("a chunk"), 0);
            blake3::hash(&bytes).as_bytes() != digest
        });
        let differs = differs.collect();
        let answer = ScanAnswer { question: question.question, disk: question.disk, differs };
        self.tell(Inbound::ScanAnswer(answer));
    }

    fn raise(&mut self, disk: DiskId, generation: Generation) {
        let Some(replica) = self.replicas.get_mut(&disk) else { return };
        if replica.capture.generation == generation {
            replica.capture.generation = generation.next();
            replica.capture.scanned_to = BlockIndex(0);
            replica.capture.scan_complete = false;
        }
        self.tell(Inbound::Assigned(self.assignment()));
    }
}

impl Replica {
    fn write(&mut self, frame: &Frame, reader: &mut PlainReader) {
        let mut plain = Vec::new();
        reader.read(frame, &mut plain).expect("payload");
        let mut rest = plain.as_slice();
        let size = self.bytes.len();
        for extent in frame.extents() {
            let place = self.bytes.get_mut(span(extent.range, size)).unwrap_or_default();
            match extent.kind {
                ExtentKind::Zero => place.fill(0),
                ExtentKind::Data => {
                    let (own, others) =
                        rest.split_at(usize::try_from(extent.range.bytes()).expect("a frame"));
                    place.copy_from_slice(own.get(..place.len()).unwrap_or_default());
                    rest = others;
                }
            }
        }
    }
}

/// Bytes of a range on a disk of `size` bytes.
fn span(range: BlockRange, size: usize) -> std::ops::Range<usize> {
    let offset = |block: BlockIndex| usize::try_from(block.byte_offset()).unwrap_or(usize::MAX).min(size);
    offset(range.start)..offset(range.end())
}

struct Double {
    coordinator: Shared,
    reader: PlainReader,
}

impl FrameSink for Double {
    fn push(&mut self, frame: OutgoingFrame) -> Result<(), SinkClosed> {
        let frame = Frame::verify(frame.bytes).expect("frames are whole");
        lock(&self.coordinator).apply(&frame, &mut self.reader);
        Ok(())
    }
}

struct Messages(Shared);

impl MessageSink for Messages {
    fn send(&mut self, message: AgentMessage) {
        let mut coordinator = lock(&self.0);
        match message {
            AgentMessage::TrustLost(loss) => coordinator.raise(loss.disk, loss.generation),
            AgentMessage::ScanQuestion(question) => coordinator.answer(&question),
            AgentMessage::CutVoided(voided) => coordinator.voids.push(voided.reason),
            _ => {}
        }
    }
}

/// The real host; hashes all disks while they are held.
struct HashingHost {
    inner: LinuxHost,
    disks: Vec<DiskFile>,
    coordinator: Shared,
}

impl Host for HashingHost {
    fn open(&mut self, capture: &Capture) -> Result<HostDisk, Trouble> {
        self.inner.open(capture)
    }

    fn close(&mut self, disk: DiskId) {
        self.inner.close(disk);
    }

    /// Other tests of this program track disks at the same time.
    fn keep_only(&mut self, _: &[DiskId]) {}

    fn plan_hold(&mut self, disks: &[DiskId]) -> Result<bool, String> {
        self.inner.plan_hold(disks)
    }

    fn swap_areas(&self, disk: DiskId) -> Vec<BlockRange> {
        self.inner.swap_areas(disk)
    }

    fn sync(&mut self) -> Result<Duration, String> {
        self.inner.sync()
    }

    fn hold(&mut self, bound: Duration, section: &mut dyn FnMut(&mut HoldCheck<'_>)) -> Result<Held, String> {
        let buffers = BufferPool::new(1, 1);
        let mut buffer = buffers.take().expect("a buffer");
        let mut before = Vec::with_capacity(self.disks.len());
        let mut after = Vec::with_capacity(self.disks.len());
        let disks = &self.disks;
        let held = self.inner.hold(bound, &mut |check| {
            before.extend(disks.iter().map(|disk| digest(disk, buffer.bytes_mut())));
            section(check);
            after.extend(disks.iter().map(|disk| digest(disk, buffer.bytes_mut())));
        });
        // Where nothing is frozen, a write just before or after the section would make the comparison meaningless.
        if before != after {
            return Err("written while the test hashed the disks".into());
        }
        lock(&self.coordinator).held.insert(before);
        held
    }
}

fn digest(disk: &DiskFile, buffer: &mut [u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let size = disk.size().0;
    for start in (0..size).step_by(FRAME_BLOCKS) {
        let run = BlockRange::new(start, (FRAME_BLOCKS as u64).min(size - start));
        let buffer = &mut buffer[..usize::try_from(run.bytes()).expect("a buffer")];
        disk.read_run(run, buffer).expect("a read");
        let valid =
            usize::try_from(disk.size_bytes() - run.start.byte_offset()).expect("small").min(buffer.len());
        hasher.update(&buffer[..valid]);
    }
    *hasher.finalize().as_bytes()
}
