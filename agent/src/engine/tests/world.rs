//! The modelled machine, a link that breaks, and a modelled coordinator that applies frames and checks every point.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use holdfast_common::{
    clock::{Clock as _, ManualClock, Timestamp},
    entropy::SeededEntropy,
    frame::{
        CutMethod, CutRecord, ExtentKind, Frame, FrameIdentity, FrameKind, FrameSealer, PlainReader,
        witness_digest,
    },
    ids::{DiskId, Generation, Interval, MachineId, PointId, Sequence},
    units::{BLOCK_BYTES, BlockCount, BlockIndex, BlockRange},
    wire::{
        AgentMessage, Assignment, AuditAnswer, AuditDigests, AuditOrder, Capture, DiskIdentity,
        MachineSettings, ScanAnswer, ScanQuestion, Welcome,
    },
};

use super::model::{BLOCKS, Model, ModelHost, Plan, Random, Shared, disk_id, index_of, lock};
use crate::{
    batch::{HandOver, SinkClosed, queue::Payload, seal::seal},
    capture::scan::chunks,
    engine::{Budget, Engine, EngineParts, MessageSink, StatusBoard},
    ship::port::Inbound,
};

/// Frames that the link holds.
const WINDOW: usize = 24;

type Queue<T> = Arc<Mutex<VecDeque<T>>>;

struct Window(Queue<(FrameIdentity, Bytes)>, FrameSealer);

impl HandOver for Window {
    fn room(&self) -> Result<usize, SinkClosed> {
        Ok(WINDOW - queue(&self.0).len().min(WINDOW))
    }

    fn submit(&mut self, identity: FrameIdentity, payload: Payload) -> Result<(), SinkClosed> {
        let bytes = seal(&mut self.1, identity, payload)?;
        queue(&self.0).push_back((identity, bytes));
        Ok(())
    }

    fn waiting_bytes(&self) -> u64 {
        0
    }
}

struct Messages(Queue<AgentMessage>);

impl MessageSink for Messages {
    fn send(&mut self, message: AgentMessage) {
        queue(&self.0).push_back(message);
    }
}

fn queue<T>(queue: &Queue<T>) -> std::sync::MutexGuard<'_, VecDeque<T>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Replica {
    capture: Capture,
    blocks: Vec<u64>,
    /// Cuts that are open for the agent: sent and not acknowledged to it.
    acknowledged: Sequence,
    /// Blocks that frames of the open interval hold.
    written: BTreeSet<u64>,
    /// Ranges of audits that were read in the open interval or later, and what was read.
    audited: Vec<(BlockRange, u64, AuditDigests)>,
}

struct OpenPoint {
    record: CutRecord,
    images: BTreeMap<DiskId, Vec<u64>>,
}

pub(super) struct World {
    model: Shared,
    clock: ManualClock,
    random: Random,
    engine: Option<Engine>,
    window: Queue<(FrameIdentity, Bytes)>,
    messages: Queue<AgentMessage>,
    inbound: VecDeque<Inbound>,
    connected: bool,
    replicas: Vec<Replica>,
    open: BTreeMap<PointId, OpenPoint>,
    points: Vec<CutRecord>,
    voids: Vec<String>,
    reader: PlainReader,
    holds_acknowledgements: bool,
    tolerant: bool,
    mistakes: usize,
    /// Orders of audits that are not answered.
    audits: BTreeMap<u64, AuditOrder>,
    next_audit: u64,
    judged: usize,
    changed: usize,
    audit_differs: usize,
    refused_audits: usize,
    witnessed: usize,
    differing: usize,
    most_open: u64,
    interval: Duration,
    seed: u64,
}

impl World {
    pub(super) fn new(seed: u64, plan: Plan) -> Self {
        let clock = ManualClock::default();
        clock.step_wall(Timestamp(1_000_000_000));
        let (disks, interval) = (plan.disks, plan.interval);
        let model = Arc::new(Mutex::new(Model::new(seed, plan, clock.clone())));
        let replica = |index| Replica {
            capture: Capture {
                disk: disk_id(index),
                identity: DiskIdentity::default(),
                path: format!("/dev/model{index}"),
                size_bytes: BLOCKS * BLOCK_BYTES as u64,
                generation: Generation(1),
                durable: Sequence(0),
                interval: Interval(1),
                scanned_to: BlockIndex(0),
                scan_complete: false,
                replica_empty: true,
            },
            blocks: vec![0; BLOCKS as usize],
            acknowledged: Sequence(0),
            written: BTreeSet::new(),
            audited: Vec::new(),
        };
        let mut world = Self {
            model,
            clock,
            random: Random(seed ^ 0xface),
            engine: None,
            window: Queue::default(),
            messages: Queue::default(),
            inbound: VecDeque::new(),
            connected: false,
            replicas: (0..disks).map(replica).collect(),
            open: BTreeMap::new(),
            points: Vec::new(),
            voids: Vec::new(),
            reader: PlainReader::new(),
            holds_acknowledgements: false,
            tolerant: false,
            mistakes: 0,
            audits: BTreeMap::new(),
            next_audit: 1,
            judged: 0,
            changed: 0,
            audit_differs: 0,
            refused_audits: 0,
            witnessed: 0,
            differing: 0,
            most_open: 0,
            interval,
            seed,
        };
        world.start_agent();
        world.connect();
        world
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.clock.monotonic() + time;
        while self.clock.monotonic() < end {
            self.disturb();
            self.ask_audit();
            self.coordinate();
            let engine = self.engine.as_mut().expect("an agent runs");
            for event in self.inbound.drain(..) {
                engine.deliver(event);
            }
            let wait = engine.step().expect("the way to ship stands");
            let pause = wait.map_or(Duration::from_millis(1), |until| {
                until
                    .saturating_sub(self.clock.monotonic())
                    .clamp(Duration::from_millis(1), Duration::from_millis(50))
            });
            self.clock.advance(pause);
        }
    }

    /// Kills, disconnects, losses.
    fn disturb(&mut self) {
        let (kills, disconnects, losses) = {
            let model = lock(&self.model);
            (model.plan.kills, model.plan.disconnects, model.plan.losses)
        };
        let chance = self.random.below(2000);
        if chance < kills {
            self.start_agent();
            self.connected = false;
        } else if chance < kills + disconnects && self.connected {
            self.connected = false;
            queue(&self.messages).clear();
            self.inbound.push_back(Inbound::Disconnected);
        } else if chance < kills + disconnects + losses && self.random.below(20) == 0 {
            lock(&self.model).lose_marks();
        }
        if !self.connected && self.random.below(60) == 0 {
            self.connect();
        }
    }

    /// A new process: what was only in memory is gone.
    fn start_agent(&mut self) {
        queue(&self.window).clear();
        queue(&self.messages).clear();
        self.inbound.clear();
        let seed = self.random.next();
        self.engine = Some(Engine::new(EngineParts {
            host: Box::new(ModelHost(Arc::clone(&self.model))),
            hand_over: Box::new(Window(Arc::clone(&self.window), FrameSealer::new(None).expect("a sealer"))),
            messages: Box::new(Messages(Arc::clone(&self.messages))),
            clock: Arc::new(self.clock.clone()),
            entropy: Arc::new(SeededEntropy::new(seed)),
            budget: Budget { copy_buffers: 16, residue_buffers: 96 },
            status: StatusBoard::default(),
            marks: crate::group::Marks::default(),
        }));
    }

    /// Ranges of all sizes are asked for, now and then.
    fn ask_audit(&mut self) {
        if !self.connected || self.random.below(12) > 0 || self.audits.len() >= 8 {
            return;
        }
        let at = self.random.below(self.replicas.len() as u64) as usize;
        let start = self.random.below(BLOCKS);
        let digest_blocks = if self.random.below(2) == 0 { 1 } else { 64 };
        let count = (1 + self.random.below(digest_blocks * 3)).min(BLOCKS - start);
        let capture = &self.replicas[at].capture;
        let order = AuditOrder {
            order: self.next_audit,
            disk: capture.disk,
            generation: capture.generation,
            start: BlockIndex(start),
            count: BlockCount(count),
            digest_blocks,
        };
        self.next_audit += 1;
        self.audits.insert(order.order, order);
        self.inbound.push_back(Inbound::Audit(order));
    }

    fn audit_answered(&mut self, answer: AuditAnswer) {
        let Some(order) = self.audits.remove(&answer.order) else { return };
        let replica = &mut self.replicas[index_of(answer.disk)];
        match answer.result {
            Ok(_) if answer.generation != replica.capture.generation => {}
            Ok(digests) => {
                assert_eq!(digests.digests.len(), order.parts().len());
                replica.audited.push((order.range(), order.digest_blocks, digests));
            }
            Err(_) => self.refused_audits += 1,
        }
    }

    /// The cut of an interval has come: what was read in it, and was not written in it, is what the replica holds.
    fn judge_audits(&mut self, disk: DiskId, interval: Interval) {
        let replica = &mut self.replicas[index_of(disk)];
        let written = std::mem::take(&mut replica.written);
        let audited = std::mem::take(&mut replica.audited);
        for (range, digest_blocks, digests) in audited {
            if digests.interval != interval {
                assert!(digests.interval > interval, "seed {}: an audit of a past interval", self.seed);
                replica.audited.push((range, digest_blocks, digests));
                continue;
            }
            let parts = AuditOrder {
                order: 0,
                disk,
                generation: replica.capture.generation,
                start: range.start,
                count: range.count,
                digest_blocks,
            };
            for (part, digest) in parts.parts().into_iter().zip(digests.digests) {
                if (part.start.0..part.end().0).any(|block| written.contains(&block)) {
                    self.changed += 1;
                    continue;
                }
                let mut hasher = blake3::Hasher::new();
                for block in part.start.0..part.end().0 {
                    let mut bytes = vec![0; BLOCK_BYTES];
                    bytes[..8].copy_from_slice(&replica.blocks[block as usize].to_le_bytes());
                    hasher.update(&bytes);
                }
                let same = *hasher.finalize().as_bytes() == digest;
                assert!(
                    same || self.tolerant,
                    "seed {}: {part} of {disk} differs from what was audited",
                    self.seed
                );
                self.judged += 1;
                self.audit_differs += usize::from(!same);
            }
        }
    }

    /// Parts of audits: judged, written meanwhile, differing.
    pub(super) const fn audits(&self) -> (usize, usize, usize) {
        (self.judged, self.changed, self.audit_differs)
    }

    fn connect(&mut self) {
        self.audits.clear();
        self.connected = true;
        let welcome = Welcome {
            protocol_version: 1,
            coordinator_version: String::new(),
            machine: MachineId::from_bytes([9; 16]),
            now: self.clock.wall(),
            assignment: self.assignment(),
        };
        self.inbound.push_back(Inbound::Connected(Box::new(welcome)));
    }

    fn assignment(&self) -> Assignment {
        Assignment {
            settings: MachineSettings {
                cut_interval_ms: u64::try_from(self.interval.as_millis()).expect("short"),
                hold_ms_max: 2000,
                send_bytes_per_second_max: 0,
                scan_bytes_per_second_max: 0,
            },
            disks: self.replicas.iter().map(|replica| replica.capture.clone()).collect(),
        }
    }

    /// The coordinator takes some frames and messages.
    fn coordinate(&mut self) {
        if !self.connected {
            return;
        }
        for _ in 0..self.random.below(6) {
            let Some((identity, bytes)) = queue(&self.window).pop_front() else { break };
            self.apply(identity, bytes);
        }
        let messages: Vec<AgentMessage> = queue(&self.messages).drain(..).collect();
        for message in messages {
            match message {
                AgentMessage::TrustLost(loss) => self.raise(loss.disk, loss.generation),
                AgentMessage::ScanQuestion(question) => self.answer(&question),
                AgentMessage::Audited(answer) => self.audit_answered(answer),
                AgentMessage::CutVoided(voided) => self.voids.push(voided.reason),
                _ => {}
            }
        }
        let open = |replica: &Replica| replica.capture.interval.0;
        let now = self.replicas.iter().map(open).max().unwrap_or(0);
        if !self.holds_acknowledgements {
            self.most_open = now;
            for replica in &mut self.replicas {
                if replica.acknowledged < replica.capture.durable {
                    replica.acknowledged = replica.capture.durable;
                    let (disk, sequence) = (replica.capture.disk, replica.acknowledged);
                    self.inbound.push_back(Inbound::Acknowledged { disk, sequence });
                }
            }
        }
    }

    fn raise(&mut self, disk: DiskId, generation: Generation) {
        let capture = &mut self.replicas[index_of(disk)].capture;
        if capture.generation != generation {
            return;
        }
        capture.generation = generation.next();
        capture.scanned_to = BlockIndex(0);
        capture.scan_complete = false;
        self.replicas[index_of(disk)].audited.clear();
        queue(&self.window).retain(|(identity, _)| identity.disk != disk);
        let assignment = self.assignment();
        self.inbound.push_back(Inbound::Assigned(assignment));
    }

    fn answer(&mut self, question: &ScanQuestion) {
        let replica = &self.replicas[index_of(question.disk)];
        if replica.capture.generation != question.generation {
            return;
        }
        let asked = chunks(BlockRange { start: question.start, count: question.count });
        let digest = |chunk: &BlockRange| {
            let mut hasher = blake3::Hasher::new();
            for block in chunk.start.0..chunk.end().0 {
                let mut bytes = vec![0; BLOCK_BYTES];
                bytes[..8].copy_from_slice(&replica.blocks[block as usize].to_le_bytes());
                hasher.update(&bytes);
            }
            *hasher.finalize().as_bytes()
        };
        let differs =
            asked.iter().zip(&question.digests).map(|(chunk, asked)| digest(chunk) != *asked).collect();
        let answer = ScanAnswer { question: question.question, disk: question.disk, differs };
        self.inbound.push_back(Inbound::ScanAnswer(answer));
    }

    fn apply(&mut self, identity: FrameIdentity, bytes: Bytes) {
        let replica = &mut self.replicas[index_of(identity.disk)];
        if identity.generation != replica.capture.generation {
            return;
        }
        let frame = Frame::verify(bytes).expect("frames are whole");
        assert_eq!(identity.sequence, replica.capture.durable.next(), "seed {}: a gap", self.seed);
        assert_eq!(identity.interval, replica.capture.interval, "seed {}: interval", self.seed);
        replica.capture.durable = identity.sequence;
        replica.capture.replica_empty = false;
        match frame.header().kind {
            FrameKind::Data => {
                let mut plain = Vec::new();
                self.reader.read(&frame, &mut plain).expect("payload");
                let mut values = plain.chunks_exact(BLOCK_BYTES);
                for extent in frame.extents() {
                    for block in extent.range.start.0..extent.range.end().0 {
                        let value = match extent.kind {
                            ExtentKind::Zero => 0,
                            ExtentKind::Data => {
                                let bytes = values.next().expect("a block's bytes");
                                u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))
                            }
                        };
                        replica.blocks[block as usize] = value;
                        replica.written.insert(block);
                    }
                }
            }
            FrameKind::Scan => {
                let record = frame.scan_record().expect("a record");
                replica.capture.scanned_to = record.scanned_to;
                replica.capture.scan_complete = record.complete;
            }
            FrameKind::Cut => {
                assert!(
                    replica.capture.scan_complete,
                    "seed {}: cut before the scan was complete",
                    self.seed
                );
                replica.capture.interval = identity.interval.next();
                let record = frame.cut_record().expect("a record");
                let image = replica.blocks.clone();
                self.judge_audits(identity.disk, identity.interval);
                let point = self.open.entry(record.point);
                let point = point.or_insert_with(|| OpenPoint { record, images: BTreeMap::new() });
                point.images.insert(identity.disk, image);
                if point.images.len() == point.record.members.len() {
                    let id = point.record.point;
                    self.complete(id);
                }
            }
        }
    }

    /// All members' cuts are here: the oracle.
    fn complete(&mut self, id: PointId) {
        let Some(point) = self.open.remove(&id) else { return };
        let images: Vec<Vec<u64>> = point.images.into_values().collect();
        let good = lock(&self.model).is_a_state(point.record.at, &images);
        assert!(good || self.tolerant, "seed {}: a point is no state the disks had", self.seed);
        self.mistakes += usize::from(!good);
        self.compare_witness(&point.record, &images);
        self.points.push(point.record);
    }

    /// What the agent witnessed is what the replica has: always, unless tracking misses something.
    fn compare_witness(&mut self, record: &CutRecord, images: &[Vec<u64>]) {
        let Some(witness) = &record.more.witness else { return };
        for block in &witness.blocks {
            let mut bytes = vec![0; BLOCK_BYTES];
            let value = images[index_of(block.disk)][block.block.0 as usize];
            bytes[..8].copy_from_slice(&value.to_le_bytes());
            let same = witness_digest(&bytes) == block.digest;
            assert!(same || self.tolerant, "seed {}: a block differs from its witness", self.seed);
            self.witnessed += 1;
            self.differing += usize::from(!same);
        }
    }

    pub(super) const fn witnessed(&self) -> usize {
        self.witnessed
    }

    pub(super) const fn differing(&self) -> usize {
        self.differing
    }

    pub(super) fn model<T>(&self, change: impl FnOnce(&mut Model) -> T) -> T {
        change(&mut lock(&self.model))
    }

    pub(super) fn tolerate(&mut self) {
        self.tolerant = true;
    }

    pub(super) const fn mistakes(&self) -> usize {
        self.mistakes
    }

    pub(super) const fn points(&self) -> usize {
        self.points.len()
    }

    pub(super) fn voids(&self) -> Vec<String> {
        self.voids.clone()
    }

    pub(super) fn notes(&self) -> Vec<String> {
        self.points.iter().flat_map(|record| record.notes.clone()).collect()
    }

    pub(super) fn last_method(&self) -> Option<CutMethod> {
        self.points.last().map(|record| record.method)
    }

    pub(super) fn last_request(&self) -> Option<u64> {
        self.points.last().and_then(|record| record.request)
    }

    pub(super) fn generation(&self) -> Generation {
        self.replicas[0].capture.generation
    }

    pub(super) fn ask_for_point(&mut self, request: u64) {
        self.inbound.push_back(Inbound::MakePoint { request, application: None });
    }

    pub(super) const fn hold_acknowledgements(&mut self, hold: bool) {
        self.holds_acknowledgements = hold;
    }

    /// Intervals that the agent has opened since acknowledgements were held, the one it was in included.
    pub(super) fn most_open_intervals(&self) -> u64 {
        let now = self.replicas.iter().map(|replica| replica.capture.interval.0).max().unwrap_or(0);
        now - self.most_open
    }

    pub(super) fn damage_replica_and_ask_again(&mut self, range: BlockRange) {
        let replica = &mut self.replicas[0];
        for block in range.start.0..range.end().0 {
            replica.blocks[block as usize] = 666;
        }
        let disk = replica.capture.disk;
        self.inbound.push_back(Inbound::SendAgain { disk, ranges: vec![range] });
    }

    pub(super) fn assert_replica_is_equal(&self) {
        let state = lock(&self.model).state();
        for (replica, state) in self.replicas.iter().zip(state) {
            assert!(replica.blocks == state);
        }
    }

    /// What happened, for the comparison of two runs.
    pub(super) fn history(&self) -> Vec<(PointId, Timestamp, usize)> {
        self.points.iter().map(|record| (record.point, record.at, record.members.len())).collect()
    }
}
