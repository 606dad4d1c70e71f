//! The world: an agent, a coordinator, connections between them, and everything that may happen.
//!
//! Owns the order of events (from the seed) and the network. The session machines are the real ones; what their
//! shells do is modelled here in a few lines each.
//! Faults it may inject: connections lost at any step, noticed by each side at its own time; any delay and any order
//! between streams; restart of either side; a crash that loses the tail of the store that is not durable; frames that arrive
//! twice; lost tracking; a store that forgets durable frames. Streams themselves keep their order, as QUIC does.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use holdfast_agent::ship::{
    port::{Inbound, OutgoingFrame},
    session::{Action, AgentSession, NextFrame},
    window::Pushed,
};
use holdfast_common::{
    clock::Timestamp,
    entropy::{Entropy as _, SeededEntropy},
    frame::{Compression, FrameHeader, FrameIdentity, FrameKind},
    ids::{DiskId, Generation, Interval, MachineId},
    wire::{AgentMessage, Assignment, CoordinatorMessage, DataStreamStart, Refusal, TrustLoss},
};
use holdfast_coordinator::ingest::session::{CoordinatorSession, Request, Verdict};
use holdfast_tests::transport;

use super::model::{Engine, Log};

/// Frames of 1 byte that the window holds.
const WINDOW_FRAMES: usize = 12;

/// Frames that the network holds per stream.
const STREAM_FRAMES: usize = 6;

/// Steps after which a healed world must be at rest.
const HEAL_STEPS: u32 = 20_000;

type Line = (DiskId, Generation);

pub(crate) struct World {
    random: SeededEntropy,
    trace: blake3::Hasher,
    agent: AgentSession,
    engines: BTreeMap<DiskId, Engine>,
    /// The agent's current connection.
    current: Option<u64>,
    connections: BTreeMap<u64, Connection>,
    next_number: u64,
    logs: BTreeMap<DiskId, Log>,
    generations: BTreeMap<DiskId, Generation>,
    healthy: bool,
}

/// One connection: what is on its way, and the coordinator's session.
struct Connection {
    up: VecDeque<AgentMessage>,
    down: VecDeque<CoordinatorMessage>,
    /// Streams by line, and whether the coordinator has seen their start.
    streams: BTreeMap<Line, Stream>,
    session: CoordinatorSession,
    preparing: bool,
    reassign: bool,
}

#[derive(Default)]
struct Stream {
    frames: VecDeque<OutgoingFrame>,
    started: bool,
    refused: bool,
    sending: bool,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let random = SeededEntropy::new(seed);
        let count = 1 + random.next_u64() % 3;
        let disks = (0..count).map(|index| DiskId::from_bytes([index as u8 + 1; 16]));
        let generations: BTreeMap<DiskId, Generation> = disks.map(|disk| (disk, Generation(1))).collect();
        Self {
            random,
            trace: blake3::Hasher::new(),
            agent: AgentSession::new(WINDOW_FRAMES),
            engines: BTreeMap::new(),
            current: None,
            connections: BTreeMap::new(),
            next_number: 0,
            logs: generations.keys().map(|disk| (*disk, Log::default())).collect(),
            generations,
            healthy: false,
        }
    }

    /// Frames in all logs.
    pub(crate) fn frames(&self) -> usize {
        self.logs.values().map(|log| log.entries().len()).sum()
    }

    pub(crate) fn trace(&self) -> [u8; 32] {
        *self.trace.finalize().as_bytes()
    }

    /// One thing happens.
    pub(crate) fn step(&mut self) {
        // Faults are rare enough that much happens between two of them.
        let what = if self.healthy { self.below(960) } else { self.below(1000) };
        self.trace.update(&what.to_le_bytes());
        match what {
            0..40 => self.connect(),
            40..180 => self.coordinator_reads_message(),
            180..320 => self.agent_reads_message(),
            320..480 => self.capture_makes_frame(),
            480..640 => self.agent_sends_frame(),
            640..800 => self.coordinator_reads_frame(false),
            800..840 => self.store_syncs(),
            840..900 => self.coordinator_acknowledges(),
            900..960 => self.coordinator_prepares(),
            960..968 => self.agent_loses_connection(),
            968..972 => self.coordinator_loses_connection(),
            972..974 => self.agent_restarts(),
            974..978 => self.coordinator_restarts(),
            978..992 => self.coordinator_reads_frame(true),
            992..996 => self.tracking_is_lost(),
            _ => self.store_forgets(),
        }
    }

    /// No more faults: everything that capture made must become durable and acknowledged.
    pub(crate) fn heal(&mut self) {
        self.healthy = true;
        for _ in 0..HEAL_STEPS {
            self.step();
            if self.is_at_rest() {
                return self.check_all_arrived();
            }
        }
        panic!("the world does not come to rest: {:?}", self.agent);
    }

    /// Everything that was said was heard, and nothing waits for an acknowledgement.
    fn is_at_rest(&self) -> bool {
        let connection = self.current.and_then(|number| self.connections.get(&number));
        let quiet =
            connection.is_some_and(|c| c.up.is_empty() && c.down.is_empty() && !c.preparing && !c.reassign);
        let all = self.engines.len() == self.logs.len();
        quiet && all && self.agent.is_open() && self.agent.window().held_bytes() == 0
    }

    fn check_all_arrived(&mut self) {
        for (disk, engine) in &self.engines {
            let log = self.logs.get(disk).unwrap();
            log.check_promises();
            self.trace.update(&(log.entries().len() as u64).to_le_bytes());
            for (sequence, content) in &engine.made {
                assert_eq!(
                    log.get(*sequence),
                    Some((engine.generation, *content)),
                    "frame {sequence} of {disk}"
                );
                assert!(*sequence <= log.durable(), "frame {sequence} of {disk} is not durable");
            }
            assert!(log.entries().is_sorted_by_key(|entry| entry.0));
        }
    }

    // The agent and its shell.

    fn connect(&mut self) {
        if self.current.is_some() {
            return;
        }
        self.next_number += 1;
        let mut connection = Connection {
            up: VecDeque::new(),
            down: VecDeque::new(),
            streams: BTreeMap::new(),
            session: CoordinatorSession::new(MachineId::from_bytes([0xcc; 16])),
            preparing: false,
            reassign: false,
        };
        let Action::Send(hello) = self.agent.connected(transport::inventory("sim"), "sim") else {
            panic!("no hello")
        };
        connection.up.push_back(hello);
        self.connections.insert(self.next_number, connection);
        self.current = Some(self.next_number);
    }

    fn agent_reads_message(&mut self) {
        let Some(connection) = self.current.and_then(|number| self.connections.get_mut(&number)) else {
            return;
        };
        let Some(message) = connection.down.pop_front() else { return };
        match self.agent.message(message) {
            Ok(actions) => self.act(actions),
            Err(refusal) => panic!("the agent refuses: {refusal}"),
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            let connection = self.current.and_then(|number| self.connections.get_mut(&number));
            match (action, connection) {
                (Action::Send(message), Some(connection)) => connection.up.push_back(message),
                (Action::OpenStream(disk, generation), Some(connection)) => {
                    connection
                        .streams
                        .insert((disk, generation), Stream { sending: true, ..Stream::default() });
                }
                (Action::Deliver(event), _) => self.capture_hears(event),
                _ => {}
            }
        }
    }

    fn capture_hears(&mut self, event: Inbound) {
        match event {
            Inbound::Connected(welcome) => self.capture_assigned(&welcome.assignment),
            Inbound::Assigned(assignment) => self.capture_assigned(&assignment),
            Inbound::Acknowledged { disk, sequence } => {
                if let Some(engine) = self.engines.get(&disk) {
                    self.logs.get_mut(&disk).unwrap().promise(engine, sequence);
                }
            }
            Inbound::HistoryLost { disk, reason } => self.say_trust_lost(disk, reason),
            _ => {}
        }
    }

    fn capture_assigned(&mut self, assignment: &Assignment) {
        for capture in &assignment.disks {
            let known = self.engines.get(&capture.disk).is_some_and(|e| e.generation == capture.generation);
            if !known {
                self.engines.insert(capture.disk, Engine::new(capture.generation, capture.durable));
            }
        }
    }

    fn say_trust_lost(&mut self, disk: DiskId, reason: String) {
        let Some(engine) = self.engines.get(&disk) else { return };
        let loss = TrustLoss { disk, generation: engine.generation, reason };
        let (_, action) = self.agent.say(AgentMessage::TrustLost(loss));
        self.act(action.into_iter().collect());
    }

    fn tracking_is_lost(&mut self) {
        if let Some(disk) = self.any_disk() {
            self.say_trust_lost(disk, "simulated".to_owned());
        }
    }

    fn capture_makes_frame(&mut self) {
        // A healed world comes to rest only if capture does.
        if self.healthy || !self.agent.has_room(1) {
            return;
        }
        let Some(disk) = self.any_disk() else { return };
        let content = self.random.next_u64();
        let Some(engine) = self.engines.get_mut(&disk) else { return };
        let (generation, sequence) = (engine.generation, engine.next);
        let identity = FrameIdentity { disk, generation, sequence, interval: Interval(1) };
        let bytes = Bytes::copy_from_slice(&content.to_le_bytes()).slice(..1);
        let pushed =
            self.agent.push(OutgoingFrame { identity, bytes }).expect("capture numbers without gaps");
        engine.next = engine.next.next();
        if pushed == Pushed::Held {
            engine.made.insert(sequence, u64::from(content.to_le_bytes()[0]));
        }
    }

    fn agent_sends_frame(&mut self) {
        let Some(number) = self.current else { return };
        let connection = self.connections.get_mut(&number).unwrap();
        let lines: Vec<Line> =
            connection.streams.iter().filter(|(_, s)| s.sending).map(|(l, _)| *l).collect();
        let Some(line) = pick(&self.random, &lines) else { return };
        let stream = connection.streams.get_mut(&line).unwrap();
        if stream.frames.len() == STREAM_FRAMES {
            return;
        }
        match self.agent.next_frame(line.0, line.1) {
            NextFrame::Send(frame) => stream.frames.push_back(frame),
            NextFrame::Wait => {}
            NextFrame::End => stream.sending = false,
        }
    }

    fn agent_loses_connection(&mut self) {
        if self.current.take().is_some() {
            let action = self.agent.disconnected();
            self.act(action.into_iter().collect());
        }
    }

    fn agent_restarts(&mut self) {
        self.current = None;
        self.engines.clear();
        self.agent = AgentSession::new(WINDOW_FRAMES);
    }

    // The coordinator and its shell.

    fn coordinator_reads_message(&mut self) {
        let Some(number) = self.any_connection() else { return };
        let connection = self.connections.get_mut(&number).unwrap();
        // A real shell does not read on while it prepares or reassigns.
        if connection.preparing || connection.reassign {
            return;
        }
        let Some(message) = connection.up.pop_front() else { return };
        match connection.session.message(message) {
            Ok(Request::Prepare(_)) => connection.preparing = true,
            Ok(Request::TrustLost(loss)) => {
                let generation = self.generations.get_mut(&loss.disk).unwrap();
                if *generation == loss.generation {
                    *generation = Generation(generation.0 + 1);
                }
                connection.reassign = true;
            }
            Ok(_) => {}
            Err(refusal) => self.coordinator_refuses(number, &refusal),
        }
    }

    /// Ends older connections, settles the logs, welcomes; or settles and reassigns.
    fn coordinator_prepares(&mut self) {
        let Some(number) = self.any_connection() else { return };
        let (preparing, reassign) = {
            let connection = self.connections.get(&number).unwrap();
            (connection.preparing, connection.reassign)
        };
        if preparing {
            if self.connections.iter().any(|(other, c)| *other > number && c.preparing) {
                return self.end(number);
            }
            let older: Vec<u64> = self.connections.keys().copied().filter(|other| *other != number).collect();
            older.into_iter().filter(|other| *other < number).for_each(|other| self.end(other));
            self.logs.values_mut().for_each(|log| _ = log.sync());
            let assignment = self.assignment();
            let connection = self.connections.get_mut(&number).unwrap();
            connection.preparing = false;
            connection.down.push_back(connection.session.welcome(assignment, Timestamp(0), "sim"));
        } else if reassign {
            let changed = {
                let assignment = self.assignment();
                self.connections.get_mut(&number).unwrap().session.fence(&assignment)
            };
            changed.iter().for_each(|disk| _ = self.logs.get_mut(disk).unwrap().sync());
            let assignment = self.assignment();
            let connection = self.connections.get_mut(&number).unwrap();
            assert!(connection.session.is_fenced_for(&assignment, &changed));
            connection.reassign = false;
            connection.down.push_back(connection.session.reassign(assignment));
        }
    }

    fn coordinator_reads_frame(&mut self, twice: bool) {
        let Some(number) = self.any_connection() else { return };
        let connection = self.connections.get_mut(&number).unwrap();
        let lines: Vec<Line> = connection
            .streams
            .iter()
            .filter(|(_, s)| !s.refused && !s.frames.is_empty())
            .map(|(l, _)| *l)
            .collect();
        let Some(line) = pick(&self.random, &lines) else { return };
        let stream = connection.streams.get_mut(&line).unwrap();
        let start = DataStreamStart { disk: line.0, generation: line.1 };
        if !stream.started {
            stream.started = true;
            stream.refused = connection.session.stream(start).expect("stream accepted") == Verdict::Fenced;
            return;
        }
        let frame = if twice { stream.frames.front().cloned() } else { stream.frames.pop_front() };
        let frame = frame.expect("there is one");
        match connection.session.frame(start, &header(&frame)) {
            Ok(Verdict::Append) => {
                let content = u64::from(frame.bytes[0]);
                self.logs.get_mut(&line.0).unwrap().append(
                    line.0,
                    frame.identity.sequence,
                    (line.1, content),
                );
            }
            Ok(Verdict::Duplicate) => {}
            Ok(Verdict::Fenced) => stream.refused = true,
            Err(refusal) => self.coordinator_refuses(number, &refusal),
        }
    }

    fn coordinator_refuses(&mut self, _number: u64, refusal: &Refusal) {
        panic!("the coordinator refuses an agent that does nothing wrong: {refusal}");
    }

    fn store_syncs(&mut self) {
        let Some(disk) = pick(&self.random, &self.logs.keys().copied().collect::<Vec<_>>()) else { return };
        let durable = self.logs.get_mut(&disk).unwrap().sync();
        for connection in self.connections.values_mut() {
            connection.session.durable(disk, durable);
        }
    }

    fn coordinator_acknowledges(&mut self) {
        let Some(number) = self.any_connection() else { return };
        let connection = self.connections.get_mut(&number).unwrap();
        if !connection.preparing {
            let messages = connection.session.acknowledgements();
            connection.down.extend(messages);
        }
    }

    fn coordinator_loses_connection(&mut self) {
        if let Some(number) = self.any_connection() {
            self.end(number);
        }
    }

    /// The coordinator ends a connection; the agent notices at once if it is its current one and still there.
    fn end(&mut self, number: u64) {
        if self.current == Some(number) {
            self.agent_loses_connection();
        }
        self.connections.remove(&number);
    }

    fn coordinator_restarts(&mut self) {
        let disks: Vec<DiskId> = self.logs.keys().copied().collect();
        for disk in disks {
            let extra = self.below(4) as usize;
            self.logs.get_mut(&disk).unwrap().crash(extra);
        }
        let numbers: Vec<u64> = self.connections.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.end(number));
    }

    /// Only now and then, and only as a whole: the coordinator is down while its store is damaged.
    fn store_forgets(&mut self) {
        if self.below(4) != 0 {
            return;
        }
        self.coordinator_restarts();
        let Some(disk) = pick(&self.random, &self.logs.keys().copied().collect::<Vec<_>>()) else { return };
        let keep = self.below(5);
        let log = self.logs.get_mut(&disk).unwrap();
        log.roll_back(log.entries().len().saturating_sub(keep as usize));
    }

    fn assignment(&self) -> Assignment {
        let durable = |disk: &DiskId| self.logs.get(disk).unwrap().durable();
        let capture = |(disk, generation): (&DiskId, &Generation)| {
            transport::capture(*disk, *generation, durable(disk))
        };
        transport::assignment(self.generations.iter().map(capture).collect())
    }

    fn any_disk(&self) -> Option<DiskId> {
        pick(&self.random, &self.engines.keys().copied().collect::<Vec<_>>())
    }

    fn any_connection(&self) -> Option<u64> {
        pick(&self.random, &self.connections.keys().copied().collect::<Vec<_>>())
    }

    fn below(&self, limit: u64) -> u64 {
        self.random.next_u64() % limit
    }
}

fn pick<T: Copy>(random: &SeededEntropy, from: &[T]) -> Option<T> {
    if from.is_empty() {
        return None;
    }
    from.get((random.next_u64() % from.len() as u64) as usize).copied()
}

fn header(frame: &OutgoingFrame) -> FrameHeader {
    FrameHeader {
        kind: FrameKind::Data,
        compression: Compression::None,
        disk: frame.identity.disk,
        generation: frame.identity.generation,
        sequence: frame.identity.sequence,
        interval: frame.identity.interval,
        extent_count: 1,
        plain_bytes: 0,
        stored_bytes: 0,
        digest: [0; 32],
    }
}
