//! The agent's half of a session, without IO and without a clock.
//!
//! Owns what was said and what may be said next, across connections. Does not know quinn, capture or devices.
//! Invariant: frames of a disk are given out only between a welcome and the end of its connection, in order, starting
//! right behind what the coordinator has.
//! Limits: the window's byte budget; [`REMEMBERED_MAX`] messages wait for the next connection.
//!
//! ```text
//! Offline --connected--> Greeting --Welcome--> Open --disconnected--> Offline
//!                            \--anything else--> refused (the link closes the connection)
//! ```
//! In `Offline` and `Greeting` the window only grows; in `Open` streams are told what to send by [`AgentSession::next_frame`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use holdfast_common::{
    ids::{DiskId, Generation, Sequence},
    wire::{
        AgentMessage, Assignment, CoordinatorMessage, CutVoided, DiskStart, Hello, Inventory,
        PROTOCOL_VERSION, Refusal, RefusalCode, RenewReply, SourceOrder, TrustLoss, Welcome,
    },
};

use super::{
    port::{Inbound, OutgoingFrame, Strictness},
    window::{PushError, Pushed, Resumed, Window},
};

/// Most voided cuts remembered for the next connection; the oldest is dropped first.
pub const REMEMBERED_MAX: usize = 64;

/// What the link is to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Send this on the control stream.
    Send(AgentMessage),
    /// Open a data stream for this disk and send what [`AgentSession::next_frame`] gives.
    OpenStream(DiskId, Generation),
    /// Hand this to capture.
    Deliver(Inbound),
    /// Send at most this many bytes per second (zero: no bound).
    Limit(u64),
    /// Hand this to whoever is the source.
    Source(SourceOrder),
    /// Use this certificate from the next connection on.
    Renewed(RenewReply),
}

/// What a disk's stream is to do.
#[derive(Clone, Debug)]
pub enum NextFrame {
    /// Send it.
    Send(OutgoingFrame),
    /// Nothing now; ask again after a push.
    Wait,
    /// This line of history is over: end the stream.
    End,
}

/// What became of a message that capture wants to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It goes out, now or at the next connection.
    Accepted,
    /// There is no session and the message would be stale in the next one: dropped.
    Offline,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Offline,
    Greeting,
    Open,
}

/// The agent's session over all connections of a process.
#[derive(Debug)]
pub struct AgentSession {
    phase: Phase,
    window: Window,
    /// Disks whose streams may send.
    streams: BTreeSet<DiskId>,
    /// Losses of trust that no assignment has answered yet.
    losses: BTreeMap<DiskId, TrustLoss>,
    /// Voided cuts that could not be told.
    voided: VecDeque<CutVoided>,
}

impl AgentSession {
    /// A session without a connection, whose window holds at most `window_bytes_max`.
    #[must_use]
    pub const fn new(window_bytes_max: usize) -> Self {
        Self {
            phase: Phase::Offline,
            window: Window::new(window_bytes_max),
            streams: BTreeSet::new(),
            losses: BTreeMap::new(),
            voided: VecDeque::new(),
        }
    }

    /// A connection is up: what to say first.
    pub fn connected(&mut self, inventory: Inventory, agent_version: &str) -> Action {
        self.phase = Phase::Greeting;
        self.streams.clear();
        let disks = self.window.positions();
        let disks =
            disks.map(|(disk, generation, acknowledged)| DiskStart { disk, generation, acknowledged });
        Action::Send(AgentMessage::Hello(Box::new(Hello {
            protocol_version: PROTOCOL_VERSION,
            agent_version: agent_version.to_owned(),
            inventory,
            disks: disks.collect(),
        })))
    }

    /// The connection is gone.
    pub fn disconnected(&mut self) -> Option<Action> {
        self.streams.clear();
        let was_open = self.phase == Phase::Open;
        self.phase = Phase::Offline;
        was_open.then_some(Action::Deliver(Inbound::Disconnected))
    }

    /// The coordinator said something.
    ///
    /// # Errors
    /// What it said breaks the protocol; the connection is to be closed with this code.
    pub fn message(&mut self, message: CoordinatorMessage) -> Result<Vec<Action>, Refusal> {
        match (self.phase, message) {
            (Phase::Offline, _) => Ok(Vec::new()),
            (_, CoordinatorMessage::Refused(refusal)) => Err(refusal),
            (Phase::Greeting, CoordinatorMessage::Welcome(welcome)) => self.welcome(welcome),
            (Phase::Greeting, _) => Err(protocol("the coordinator spoke before its welcome")),
            (Phase::Open, message) => self.open_message(message),
        }
    }

    fn open_message(&mut self, message: CoordinatorMessage) -> Result<Vec<Action>, Refusal> {
        match message {
            CoordinatorMessage::Assign(assignment) => Ok(self.assign(assignment)),
            CoordinatorMessage::Acknowledge { disk, sequence } => self.acknowledge(disk, sequence),
            CoordinatorMessage::ScanAnswer(answer) => Ok(vec![Action::Deliver(Inbound::ScanAnswer(answer))]),
            CoordinatorMessage::MakePoint { request } => {
                Ok(vec![Action::Deliver(Inbound::MakePoint { request, application: None })])
            }
            CoordinatorMessage::MakeApplicationPoint { request, strict } => {
                let application = Some(if strict { Strictness::Strict } else { Strictness::Lenient });
                Ok(vec![Action::Deliver(Inbound::MakePoint { request, application })])
            }
            CoordinatorMessage::SendAgain { disk, ranges } => {
                Ok(vec![Action::Deliver(Inbound::SendAgain { disk, ranges })])
            }
            CoordinatorMessage::Audit(order) => Ok(vec![Action::Deliver(Inbound::Audit(order))]),
            CoordinatorMessage::GroupCut(order) => Ok(vec![Action::Deliver(Inbound::GroupCut(order))]),
            CoordinatorMessage::Source(order) => Ok(vec![Action::Source(order)]),
            CoordinatorMessage::Renewed(reply) => Ok(vec![Action::Renewed(reply)]),
            CoordinatorMessage::Welcome(_) => Err(protocol("the coordinator welcomed twice")),
            CoordinatorMessage::Refused(refusal) => Err(refusal),
        }
    }

    fn welcome(&mut self, welcome: Box<Welcome>) -> Result<Vec<Action>, Refusal> {
        if welcome.protocol_version != PROTOCOL_VERSION {
            return Err(version(welcome.protocol_version));
        }
        self.phase = Phase::Open;
        let assignment = welcome.assignment.clone();
        let limit = assignment.settings.send_bytes_per_second_max;
        let mut actions = vec![Action::Limit(limit), Action::Deliver(Inbound::Connected(welcome))];
        self.forget_unassigned(&assignment);
        for capture in &assignment.disks {
            match self.window.resume(capture.disk, capture.generation, capture.durable) {
                Resumed::Ready => actions.extend(self.open_stream(capture.disk, capture.generation)),
                Resumed::HistoryLost(reason) => {
                    actions.push(Action::Deliver(Inbound::HistoryLost { disk: capture.disk, reason }));
                }
            }
        }
        actions.extend(self.losses.values().cloned().map(AgentMessage::TrustLost).map(Action::Send));
        actions.extend(self.voided.drain(..).map(AgentMessage::CutVoided).map(Action::Send));
        Ok(actions)
    }

    fn assign(&mut self, assignment: Assignment) -> Vec<Action> {
        self.forget_unassigned(&assignment);
        let mut actions = vec![Action::Limit(assignment.settings.send_bytes_per_second_max)];
        for capture in &assignment.disks {
            if self.window.generation(capture.disk) != Some(capture.generation) {
                self.window.begin(capture.disk, capture.generation, capture.durable);
                self.streams.remove(&capture.disk);
                actions.extend(self.open_stream(capture.disk, capture.generation));
            }
        }
        actions.push(Action::Deliver(Inbound::Assigned(assignment)));
        actions
    }

    fn open_stream(&mut self, disk: DiskId, generation: Generation) -> Option<Action> {
        self.streams.insert(disk).then_some(Action::OpenStream(disk, generation))
    }

    /// Drops what belongs to disks that are protected no more, and losses of trust that were answered.
    fn forget_unassigned(&mut self, assignment: &Assignment) {
        let assigned: BTreeMap<DiskId, Generation> =
            assignment.disks.iter().map(|capture| (capture.disk, capture.generation)).collect();
        self.window.retain(|disk| assigned.contains_key(&disk));
        self.streams.retain(|disk| assigned.contains_key(disk));
        self.losses.retain(|disk, loss| assigned.get(disk) == Some(&loss.generation));
    }

    fn acknowledge(&mut self, disk: DiskId, sequence: Sequence) -> Result<Vec<Action>, Refusal> {
        match self.window.acknowledge(disk, sequence) {
            Ok(true) => Ok(vec![Action::Deliver(Inbound::Acknowledged { disk, sequence })]),
            Ok(false) => Ok(Vec::new()),
            Err(error) => Err(protocol(&error.to_string())),
        }
    }

    /// Capture wants to say something.
    pub fn say(&mut self, message: AgentMessage) -> (Said, Option<Action>) {
        if let AgentMessage::TrustLost(loss) = &message {
            self.losses.insert(loss.disk, loss.clone());
        }
        if self.phase == Phase::Open {
            return (Said::Accepted, Some(Action::Send(message)));
        }
        match message {
            AgentMessage::TrustLost(_) => (Said::Accepted, None),
            AgentMessage::CutVoided(voided) => {
                if self.voided.len() == REMEMBERED_MAX {
                    self.voided.pop_front();
                }
                self.voided.push_back(voided);
                (Said::Accepted, None)
            }
            _ => (Said::Offline, None),
        }
    }

    /// Whether a frame of this size may be pushed now.
    #[must_use]
    pub const fn has_room(&self, bytes: usize) -> bool {
        self.window.has_room(bytes)
    }

    /// Capture hands a frame over.
    ///
    /// # Errors
    /// It does not follow the last one: a mistake in capture.
    pub fn push(&mut self, frame: OutgoingFrame) -> Result<Pushed, PushError> {
        self.window.push(frame)
    }

    /// What the stream of this disk and generation is to do.
    pub fn next_frame(&mut self, disk: DiskId, generation: Generation) -> NextFrame {
        let live = self.streams.contains(&disk) && self.window.generation(disk) == Some(generation);
        if self.phase != Phase::Open || !live {
            return NextFrame::End;
        }
        self.window.next(disk, generation).map_or(NextFrame::Wait, NextFrame::Send)
    }

    /// Whether a welcome was received on the connection that is up.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// The frames that are not acknowledged yet.
    #[must_use]
    pub const fn window(&self) -> &Window {
        &self.window
    }
}

fn protocol(text: &str) -> Refusal {
    Refusal::new(RefusalCode::PROTOCOL, text)
}

/// To a peer of another version.
pub(super) fn version(theirs: u32) -> Refusal {
    let text = format!(
        "the coordinator speaks version {theirs}, this agent {PROTOCOL_VERSION}: upgrade the older one"
    );
    Refusal::new(RefusalCode::VERSION, text)
}
