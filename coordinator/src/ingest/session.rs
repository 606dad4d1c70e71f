//! The coordinator's half of a session, without IO and without a clock.
//!
//! Owns, for one connection, which disks and generations are taken, up to which frame, and what was acknowledged. Does not
//! know quinn, the store or the registry: it is told what is durable and what is assigned.
//! Invariant: of each disk, exactly the frame after the last accepted one is accepted; never one of another generation.
//! Limits: [`DISKS_PER_MACHINE_MAX`] disks, [`SCAN_QUESTIONS_MAX`] open questions per disk.
//!
//! ```text
//! Waiting --Hello--> Preparing --welcome--> Open
//! ```
//! While `Preparing`, older connections of the machine are ended and the logs are settled; nothing is accepted.

use std::collections::BTreeMap;

use holdfast_common::{
    clock::Timestamp,
    frame::FrameHeader,
    ids::{DiskId, Generation, MachineId, Sequence},
    wire::{
        AgentMessage, Assignment, AuditAnswer, CoordinatorMessage, CutVoided, DataStreamStart, DiskReport,
        GroupAnswer, Hello, Inventory, PROTOCOL_VERSION, Refusal, RefusalCode, RenewRequest, ScanQuestion,
        SourceAnswer, TrustLoss, Welcome,
        limits::{DISKS_PER_MACHINE_MAX, SCAN_CHUNK_BLOCKS, SCAN_DIGESTS_MAX, SCAN_QUESTIONS_MAX},
    },
};

/// What the connection's shell is to do about a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Prepare the session, then call [`CoordinatorSession::welcome`].
    Prepare(Box<Hello>),
    /// Record the state of a disk.
    Report(DiskReport),
    /// Raise the generation, then reassign.
    TrustLost(TrustLoss),
    /// Compare and answer; then call [`CoordinatorSession::answered`].
    Compare(ScanQuestion),
    /// Record that a cut could not be made.
    Voided(CutVoided),
    /// Tell whoever cuts groups.
    GroupCut(GroupAnswer),
    /// Tell whoever wants something of the source.
    Source(SourceAnswer),
    /// Tell whoever audits the disk.
    Audited(AuditAnswer),
    /// Sign and answer.
    Renew(RenewRequest),
    /// Record the inventory.
    Inventory(Box<Inventory>),
    /// The agent goes in order: close when all it sent was taken.
    Close,
    /// Nothing: the message is out of date.
    Nothing,
}

/// Whether a frame is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Append it.
    Append,
    /// It was there before: ignore it.
    Duplicate,
    /// Its line of history was replaced while it was on its way: ignore it, end the stream.
    Fenced,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Preparing,
    Open,
}

/// One disk in this session.
#[derive(Clone, Copy, Debug)]
struct Line {
    generation: Generation,
    accepted: Sequence,
    durable: Sequence,
    acknowledged: Sequence,
    streaming: bool,
    questions: usize,
    /// The generation is being replaced; nothing is taken until the next assignment.
    fenced: bool,
}

/// One connection's session.
#[derive(Debug)]
pub struct CoordinatorSession {
    machine: MachineId,
    phase: Phase,
    lines: BTreeMap<DiskId, Line>,
}

impl CoordinatorSession {
    /// A session of a machine whose certificate was admitted.
    #[must_use]
    pub const fn new(machine: MachineId) -> Self {
        Self { machine, phase: Phase::Waiting, lines: BTreeMap::new() }
    }

    /// The agent said something.
    ///
    /// # Errors
    /// The connection is to be closed with this.
    pub fn message(&mut self, message: AgentMessage) -> Result<Request, Refusal> {
        match (self.phase, message) {
            (Phase::Waiting, AgentMessage::Hello(hello)) => self.hello(hello),
            (Phase::Waiting, _) => Err(protocol("the first message must be a hello")),
            (_, AgentMessage::Hello(_)) => Err(protocol("a second hello")),
            (_, AgentMessage::Closing) => Ok(Request::Close),
            (Phase::Preparing, _) => Err(protocol("a message before the welcome")),
            (Phase::Open, message) => self.open_message(message),
        }
    }

    fn hello(&mut self, hello: Box<Hello>) -> Result<Request, Refusal> {
        if hello.protocol_version != PROTOCOL_VERSION {
            return Err(version(hello.protocol_version));
        }
        if hello.disks.len() > DISKS_PER_MACHINE_MAX || hello.inventory.disks.len() > DISKS_PER_MACHINE_MAX {
            return Err(limit(format!("more than {DISKS_PER_MACHINE_MAX} disks")));
        }
        self.phase = Phase::Preparing;
        Ok(Request::Prepare(hello))
    }

    fn open_message(&mut self, message: AgentMessage) -> Result<Request, Refusal> {
        match message {
            AgentMessage::DiskReport(report) => Ok(if self.lines.contains_key(&report.disk) {
                Request::Report(report)
            } else {
                Request::Nothing
            }),
            AgentMessage::TrustLost(loss) => Ok(self.trust_lost(loss)),
            AgentMessage::ScanQuestion(question) => self.question(question),
            AgentMessage::CutVoided(voided) => Ok(Request::Voided(voided)),
            AgentMessage::GroupCut(answer) => Ok(Request::GroupCut(answer)),
            AgentMessage::Source(answer) => Ok(Request::Source(answer)),
            AgentMessage::Audited(answer) => self.audited(answer),
            AgentMessage::Renew(renew) => Ok(Request::Renew(renew)),
            AgentMessage::Inventory(inventory) if inventory.disks.len() > DISKS_PER_MACHINE_MAX => {
                Err(limit(format!("more than {DISKS_PER_MACHINE_MAX} disks")))
            }
            AgentMessage::Inventory(inventory) => Ok(Request::Inventory(inventory)),
            AgentMessage::Hello(_) | AgentMessage::Closing => Ok(Request::Nothing),
        }
    }

    fn trust_lost(&self, loss: TrustLoss) -> Request {
        // A loss of an older generation was answered already; the answer is on its way.
        let current = self.lines.get(&loss.disk).is_some_and(|line| line.generation == loss.generation);
        if current { Request::TrustLost(loss) } else { Request::Nothing }
    }

    fn audited(&self, answer: AuditAnswer) -> Result<Request, Refusal> {
        let digests = answer.result.as_ref().map_or(0, |digests| digests.digests.len());
        if digests > SCAN_DIGESTS_MAX {
            return Err(limit(format!("an answer of an audit has {digests} digests")));
        }
        let current = self.lines.get(&answer.disk).is_some_and(|line| line.generation == answer.generation);
        Ok(if current { Request::Audited(answer) } else { Request::Nothing })
    }

    fn question(&mut self, question: ScanQuestion) -> Result<Request, Refusal> {
        let chunks = question.count.0.div_ceil(SCAN_CHUNK_BLOCKS);
        if question.digests.is_empty() || question.digests.len() > SCAN_DIGESTS_MAX {
            return Err(limit(format!("a scan question has {} digests", question.digests.len())));
        }
        if chunks != question.digests.len() as u64 {
            return Err(protocol("a scan question whose digests do not cover its range"));
        }
        let Some(line) = self.lines.get_mut(&question.disk) else { return Ok(Request::Nothing) };
        if line.generation != question.generation {
            return Ok(Request::Nothing);
        }
        if line.questions == SCAN_QUESTIONS_MAX {
            return Err(limit(format!("more than {SCAN_QUESTIONS_MAX} open scan questions of one disk")));
        }
        line.questions += 1;
        Ok(Request::Compare(question))
    }

    /// A scan question was answered, or its answer is not wanted any more.
    pub fn answered(&mut self, disk: DiskId) {
        if let Some(line) = self.lines.get_mut(&disk) {
            line.questions = line.questions.saturating_sub(1);
        }
    }

    /// Opens the session. The disks' logs are settled: `durable` of each disk is all there is.
    pub fn welcome(&mut self, assignment: Assignment, now: Timestamp, version: &str) -> CoordinatorMessage {
        self.phase = Phase::Open;
        self.take_over(&assignment);
        CoordinatorMessage::Welcome(Box::new(Welcome {
            protocol_version: PROTOCOL_VERSION,
            coordinator_version: version.to_owned(),
            machine: self.machine,
            now,
            assignment,
        }))
    }

    /// Stops taking frames of every disk that the assignment removes or gives another generation; says which disks'
    /// streams must be ended and whose logs must be settled before [`Self::reassign`]. New disks are among them.
    pub fn fence(&mut self, assignment: &Assignment) -> Vec<DiskId> {
        let wanted: BTreeMap<DiskId, Generation> =
            assignment.disks.iter().map(|capture| (capture.disk, capture.generation)).collect();
        let mut changed = Vec::new();
        for (disk, line) in &mut self.lines {
            if wanted.get(disk) != Some(&line.generation) {
                line.fenced = true;
                changed.push(*disk);
            }
        }
        changed.extend(wanted.keys().filter(|disk| !self.lines.contains_key(*disk)));
        changed
    }

    /// Whether this assignment changes no generation beyond what [`Self::fence`] has stopped already.
    #[must_use]
    pub fn is_fenced_for(&self, assignment: &Assignment, settled: &[DiskId]) -> bool {
        assignment.disks.iter().all(|capture| {
            settled.contains(&capture.disk)
                || self.lines.get(&capture.disk).is_some_and(|line| line.generation == capture.generation)
        })
    }

    /// Takes the assignment over and says what to tell the agent. Disks whose generation stays go on undisturbed.
    pub fn reassign(&mut self, assignment: Assignment) -> CoordinatorMessage {
        self.take_over(&assignment);
        CoordinatorMessage::Assign(assignment)
    }

    fn take_over(&mut self, assignment: &Assignment) {
        self.lines.retain(|disk, _| assignment.disks.iter().any(|capture| capture.disk == *disk));
        for capture in &assignment.disks {
            let known = self.lines.get(&capture.disk);
            if known.is_some_and(|line| line.generation == capture.generation && !line.fenced) {
                continue;
            }
            let line = Line {
                generation: capture.generation,
                accepted: capture.durable,
                durable: capture.durable,
                acknowledged: capture.durable,
                streaming: false,
                questions: known.map_or(0, |line| line.questions),
                fenced: false,
            };
            self.lines.insert(capture.disk, line);
        }
    }

    /// A data stream begins. `Fenced` if its disk or generation was replaced while it was on its way.
    ///
    /// # Errors
    /// The stream breaks the protocol.
    pub fn stream(&mut self, start: DataStreamStart) -> Result<Verdict, Refusal> {
        if self.phase != Phase::Open {
            return Err(protocol("a data stream before the welcome"));
        }
        let Some(line) = self.lines.get_mut(&start.disk) else { return Ok(Verdict::Fenced) };
        if start.generation > line.generation {
            return Err(protocol("a data stream of a generation that does not exist"));
        }
        if start.generation < line.generation || line.fenced {
            return Ok(Verdict::Fenced);
        }
        if std::mem::replace(&mut line.streaming, true) {
            return Err(protocol("a second data stream of the same disk"));
        }
        Ok(Verdict::Append)
    }

    /// Judges a verified frame that arrived on the stream of `start`. If it is to be appended, it counts as
    /// accepted from now on.
    ///
    /// # Errors
    /// The frame is not of this stream, or leaves a gap.
    pub fn frame(&mut self, start: DataStreamStart, header: &FrameHeader) -> Result<Verdict, Refusal> {
        if header.disk != start.disk {
            return Err(Refusal::new(RefusalCode::UNAUTHORIZED, "a frame of another disk than its stream's"));
        }
        if header.generation != start.generation {
            return Err(Refusal::new(RefusalCode::FENCED, "a frame of another generation than its stream's"));
        }
        let Some(line) = self.lines.get_mut(&start.disk) else { return Ok(Verdict::Fenced) };
        if line.generation != start.generation || line.fenced {
            return Ok(Verdict::Fenced);
        }
        if header.sequence <= line.accepted {
            return Ok(Verdict::Duplicate);
        }
        if header.sequence != line.accepted.next() {
            let text = format!("frame {} came after frame {}", header.sequence, line.accepted);
            return Err(Refusal::new(RefusalCode::SEQUENCE, text));
        }
        line.accepted = header.sequence;
        Ok(Verdict::Append)
    }

    /// The store says that frames up to this one are durable. Returns whether there is something to acknowledge.
    pub fn durable(&mut self, disk: DiskId, durable: Sequence) -> bool {
        let Some(line) = self.lines.get_mut(&disk) else { return false };
        line.durable = line.durable.max(durable);
        line.pending_acknowledgement().is_some()
    }

    /// The acknowledgements to send now; each disk's newest one only.
    pub fn acknowledgements(&mut self) -> Vec<CoordinatorMessage> {
        let mut messages = Vec::new();
        for (disk, line) in &mut self.lines {
            if let Some(sequence) = line.pending_acknowledgement() {
                line.acknowledged = sequence;
                messages.push(CoordinatorMessage::Acknowledge { disk: *disk, sequence });
            }
        }
        messages
    }

    /// Disks of the session.
    pub fn disks(&self) -> impl Iterator<Item = DiskId> + '_ {
        self.lines.keys().copied()
    }
}

impl Line {
    /// What may be acknowledged: durable, of this generation, and sent in this session (never more than was accepted,
    /// whoever else may write to the log).
    fn pending_acknowledgement(&self) -> Option<Sequence> {
        let sequence = self.durable.min(self.accepted);
        (sequence > self.acknowledged && !self.fenced).then_some(sequence)
    }
}

fn protocol(text: &str) -> Refusal {
    Refusal::new(RefusalCode::PROTOCOL, text)
}

fn limit(text: String) -> Refusal {
    Refusal::new(RefusalCode::LIMIT, text)
}

/// To a peer of another version.
pub(super) fn version(theirs: u32) -> Refusal {
    let text = format!(
        "the agent speaks version {theirs}, this coordinator {PROTOCOL_VERSION}: upgrade the older one"
    );
    Refusal::new(RefusalCode::VERSION, text)
}
