//! One sample of everything that is sent besides frames: for golden bytes and as seeds of fuzzing.
//!
//! Owns the samples. Invariant: a sample never changes, since committed bytes were made of it; a new variant or field gets
//! a new sample. The names come from exhaustive matches, so a new variant does not compile until it has one.

use holdfast_common::{
    clock::Timestamp,
    ids::{DiskId, Generation, GroupCutId, GroupId, Interval, JobId, MachineId, PointId, Sequence},
    units::{BlockCount, BlockIndex, BlockRange},
    wire::{
        AgentMessage, AnswerStep, Applications, Assignment, AuditAnswer, AuditDigests, AuditOrder, Capture,
        CoordinatorMessage, CutVoided, DataStreamStart, DiskHealth, DiskIdentity, DiskInventory, DiskReport,
        DiskStart, EnrolReply, EnrolRequest, FileSystemInventory, Firmware, GroupAnswer, GroupArm,
        GroupOrder, Hello, Inventory, MachineSettings, MarkOrder, NetworkCard, OrderStep, PartitionInventory,
        PartitionTable, Platform, Refusal, RefusalCode, RenewReply, RenewRequest, ScanAnswer, ScanQuestion,
        SourceAnswer, SourceOrder, SourceRun, SourceStep, TrustLoss, Welcome,
    },
};

const DISK: DiskId = DiskId::from_bytes([0x11; 16]);
const JOB: JobId = JobId::from_bytes([0x66; 16]);
const MACHINE: MachineId = MachineId::from_bytes([0x22; 16]);
const POINT: PointId = PointId::from_bytes([0x33; 16]);
const GROUP: GroupId = GroupId::from_bytes([0x44; 16]);
const CUT: GroupCutId = GroupCutId::from_bytes([0x55; 16]);

/// What identifies the sample disk; every field is set.
#[must_use]
pub fn identity() -> DiskIdentity {
    DiskIdentity {
        wwid: Some("naa.5000c500a1b2c3d4".into()),
        serial: Some("S1".into()),
        table_id: Some("9d1f0e4c".into()),
        backing_file: None,
        bus_path: Some("pci-0000:00:04.0".into()),
    }
}

/// A machine with one disk.
#[must_use]
pub fn inventory() -> Inventory {
    Inventory {
        host_name: "web-1".into(),
        operating_system: "Debian GNU/Linux 12 (bookworm)".into(),
        kernel: "6.1.0-25-amd64".into(),
        boot_id: "b6c1".into(),
        firmware: Firmware::Uefi,
        platform: Platform::Kvm,
        hardware: "QEMU".into(),
        hardware_uuid: String::new(),
        processors: 2,
        memory_bytes: 4 << 30,
        network_cards: vec![NetworkCard {
            name: "eth0".into(),
            mac: "52:54:00:12:34:56".into(),
            driver: "virtio_net".into(),
            addresses: vec!["192.0.2.7/24".into()],
        }],
        disks: vec![DiskInventory {
            path: "/dev/vda".into(),
            identity: identity(),
            size_bytes: 20 << 30,
            logical_block_bytes: 512,
            read_only: false,
            model: String::new(),
            driver: "virtio_blk".into(),
            table: PartitionTable::Gpt,
            partitions: vec![PartitionInventory {
                number: 1,
                start_bytes: 1 << 20,
                size_bytes: 1 << 30,
                kind: "83".into(),
            }],
            file_systems: vec![FileSystemInventory {
                device: "/dev/vda1".into(),
                kind: "ext4".into(),
                mount_points: vec!["/".into()],
            }],
        }],
        drivers: vec!["virtio_blk".into()],
    }
}

fn report(health: DiskHealth) -> AgentMessage {
    AgentMessage::DiskReport(DiskReport {
        disk: DISK,
        health,
        capture: "tracked".into(),
        path: "/dev/vda".into(),
        marked: BlockCount(300),
        unacknowledged_bytes: 70_000,
        scanned_to: BlockIndex(5_242_880),
        written_bytes: 1 << 33,
        at: Timestamp(1_700_000_000_000_000),
    })
}

fn group_answer(step: AnswerStep) -> AgentMessage {
    AgentMessage::GroupCut(GroupAnswer { cut: CUT, step })
}

fn group_order(step: OrderStep) -> CoordinatorMessage {
    CoordinatorMessage::GroupCut(Box::new(GroupOrder { cut: CUT, step }))
}

fn source_order(step: SourceStep) -> CoordinatorMessage {
    CoordinatorMessage::Source(SourceOrder { request: 251, step })
}

const fn audited(result: Result<AuditDigests, String>) -> AgentMessage {
    AgentMessage::Audited(AuditAnswer { order: 251, disk: DISK, generation: Generation(3), result })
}

/// Every message of an agent, and every state of a disk in it.
#[must_use]
pub fn agent_messages() -> Vec<AgentMessage> {
    let hello = Hello {
        protocol_version: 1,
        agent_version: "0.1.0".into(),
        inventory: inventory(),
        disks: vec![DiskStart { disk: DISK, generation: Generation(3), acknowledged: Sequence(400) }],
    };
    let question = ScanQuestion {
        question: 9,
        disk: DISK,
        generation: Generation(3),
        start: BlockIndex(128),
        count: BlockCount(65),
        digests: vec![[0xd1; 32], [0xd2; 32]],
    };
    let lost = TrustLoss { disk: DISK, generation: Generation(3), reason: "restarted".into() };
    let voided = CutVoided { request: Some(5), at: Timestamp(-1), reason: "no".into() };
    vec![
        AgentMessage::Hello(Box::new(hello)),
        report(DiskHealth::Protected),
        report(DiskHealth::Scanning),
        report(DiskHealth::Missing),
        report(DiskHealth::Resized { size_bytes: 1 << 34 }),
        report(DiskHealth::Failed("unreadable".into())),
        AgentMessage::TrustLost(lost),
        AgentMessage::ScanQuestion(question),
        AgentMessage::CutVoided(voided),
        AgentMessage::Renew(RenewRequest { request_der: vec![0x30, 0x03, 0x02, 0x01, 0x00] }),
        AgentMessage::Inventory(Box::new(inventory())),
        AgentMessage::Closing,
        group_answer(AnswerStep::Armed),
        group_answer(AnswerStep::Held { hold: POINT, took_us: 4_000 }),
        group_answer(AnswerStep::Released { hold: POINT, marked: true, held_us: 9_000 }),
        group_answer(AnswerStep::Declined { reason: "no".into() }),
        AgentMessage::Source(SourceAnswer { request: 251, result: Ok("done".into()) }),
        AgentMessage::Source(SourceAnswer { request: 251, result: Err("no".into()) }),
        audited(Ok(AuditDigests { interval: Interval(41), digests: vec![[0xd1; 32]] })),
        audited(Err("no".into())),
    ]
}

/// Name of a message's sample.
#[must_use]
pub const fn agent_name(message: &AgentMessage) -> &'static str {
    match message {
        AgentMessage::Hello(_) => "agent/hello",
        AgentMessage::DiskReport(report) => match report.health {
            DiskHealth::Protected => "agent/disk-report/protected",
            DiskHealth::Scanning => "agent/disk-report/scanning",
            DiskHealth::Missing => "agent/disk-report/missing",
            DiskHealth::Resized { .. } => "agent/disk-report/resized",
            DiskHealth::Failed(_) => "agent/disk-report/failed",
        },
        AgentMessage::TrustLost(_) => "agent/trust-lost",
        AgentMessage::ScanQuestion(_) => "agent/scan-question",
        AgentMessage::CutVoided(_) => "agent/cut-voided",
        AgentMessage::Renew(_) => "agent/renew",
        AgentMessage::Inventory(_) => "agent/inventory",
        AgentMessage::Closing => "agent/closing",
        AgentMessage::GroupCut(answer) => match answer.step {
            AnswerStep::Armed => "agent/group-cut/armed",
            AnswerStep::Held { .. } => "agent/group-cut/held",
            AnswerStep::Released { .. } => "agent/group-cut/released",
            AnswerStep::Declined { .. } => "agent/group-cut/declined",
        },
        AgentMessage::Source(answer) => match answer.result {
            Ok(_) => "agent/source/done",
            Err(_) => "agent/source/refused",
        },
        AgentMessage::Audited(answer) => match answer.result {
            Ok(_) => "agent/audited/digests",
            Err(_) => "agent/audited/refused",
        },
    }
}

fn assignment() -> Assignment {
    Assignment {
        settings: MachineSettings {
            cut_interval_ms: 10_000,
            hold_ms_max: 2_000,
            send_bytes_per_second_max: 0,
            scan_bytes_per_second_max: 50_000_000,
        },
        disks: vec![Capture {
            disk: DISK,
            identity: identity(),
            path: "/dev/vda".into(),
            size_bytes: 20 << 30,
            generation: Generation(3),
            durable: Sequence(400),
            interval: Interval(41),
            scanned_to: BlockIndex(64),
            scan_complete: false,
            replica_empty: true,
        }],
    }
}

/// Every message of a coordinator.
#[must_use]
pub fn coordinator_messages() -> Vec<CoordinatorMessage> {
    let welcome = Welcome {
        protocol_version: 1,
        coordinator_version: "0.1.0".into(),
        machine: MACHINE,
        now: Timestamp(1_700_000_000_000_000),
        assignment: assignment(),
    };
    let arm = GroupArm {
        group: GROUP,
        ready_ms_max: 5_000,
        wait_ms_max: 500,
        application: Applications::Consistent,
    };
    let mark = MarkOrder {
        hold: POINT,
        since_held_us: 300,
        spread_us: 70_000,
        group: GROUP,
        name: "shop".into(),
        members: vec![MACHINE],
    };
    let answer = ScanAnswer { question: 9, disk: DISK, differs: vec![true, false] };
    vec![
        CoordinatorMessage::Welcome(Box::new(welcome)),
        CoordinatorMessage::Assign(assignment()),
        CoordinatorMessage::Acknowledge { disk: DISK, sequence: Sequence(u64::MAX) },
        CoordinatorMessage::ScanAnswer(answer),
        CoordinatorMessage::MakePoint { request: 251 },
        CoordinatorMessage::SendAgain { disk: DISK, ranges: vec![BlockRange::new(7, 70_000)] },
        CoordinatorMessage::Renewed(RenewReply { certificate_der: vec![0x30, 0x00] }),
        CoordinatorMessage::Refused(Refusal::new(RefusalCode::STORAGE, "full")),
        group_order(OrderStep::Arm(arm)),
        group_order(OrderStep::Hold),
        group_order(OrderStep::Mark(mark)),
        group_order(OrderStep::Cancel { reason: "late".into() }),
        CoordinatorMessage::MakeApplicationPoint { request: 251, strict: true },
        source_order(SourceStep::Stop { limit_ms: 251, hold_ms: 70_000 }),
        source_order(SourceStep::Prove { hold_ms: 60_000 }),
        source_order(SourceStep::Resume),
        source_order(SourceStep::Run(SourceRun {
            job: JOB,
            step: 7,
            program: "drain".into(),
            arguments: vec!["now".into()],
            environment: vec![("HOLDFAST_PLAN".into(), "shop".into())],
            limit_ms: 70_000,
        })),
        source_order(SourceStep::EndRun { job: JOB, step: 7 }),
        CoordinatorMessage::Audit(AuditOrder {
            order: 251,
            disk: DISK,
            generation: Generation(3),
            start: BlockIndex(128),
            count: BlockCount(65),
            digest_blocks: 64,
        }),
    ]
}

/// Name of a message's sample.
#[must_use]
pub const fn coordinator_name(message: &CoordinatorMessage) -> &'static str {
    match message {
        CoordinatorMessage::Welcome(_) => "coordinator/welcome",
        CoordinatorMessage::Assign(_) => "coordinator/assign",
        CoordinatorMessage::Acknowledge { .. } => "coordinator/acknowledge",
        CoordinatorMessage::ScanAnswer(_) => "coordinator/scan-answer",
        CoordinatorMessage::MakePoint { .. } => "coordinator/make-point",
        CoordinatorMessage::SendAgain { .. } => "coordinator/send-again",
        CoordinatorMessage::Renewed(_) => "coordinator/renewed",
        CoordinatorMessage::Refused(_) => "coordinator/refused",
        CoordinatorMessage::GroupCut(order) => match order.step {
            OrderStep::Arm(_) => "coordinator/group-cut/arm",
            OrderStep::Hold => "coordinator/group-cut/hold",
            OrderStep::Mark(_) => "coordinator/group-cut/mark",
            OrderStep::Cancel { .. } => "coordinator/group-cut/cancel",
        },
        CoordinatorMessage::MakeApplicationPoint { .. } => "coordinator/make-application-point",
        CoordinatorMessage::Audit(_) => "coordinator/audit",
        CoordinatorMessage::Source(order) => match order.step {
            SourceStep::Stop { .. } => "coordinator/source/stop",
            SourceStep::Prove { .. } => "coordinator/source/prove",
            SourceStep::Resume => "coordinator/source/resume",
            SourceStep::Run(_) => "coordinator/source/run",
            SourceStep::EndRun { .. } => "coordinator/source/end-run",
        },
    }
}

/// A request of enrolment.
#[must_use]
pub fn enrol_request() -> EnrolRequest {
    EnrolRequest { secret: [0x5a; 32], request_der: vec![0x30, 0x00], host_name: "web-1".into() }
}

/// Every answer to it.
#[must_use]
pub fn enrol_replies() -> Vec<EnrolReply> {
    vec![
        EnrolReply::Enrolled { machine: MACHINE, certificate_der: vec![0x30], authority_der: vec![0x31] },
        EnrolReply::Refused(Refusal::new(RefusalCode::TOKEN, "used")),
    ]
}

/// Name of an answer's sample.
#[must_use]
pub const fn enrol_name(reply: &EnrolReply) -> &'static str {
    match reply {
        EnrolReply::Enrolled { .. } => "enrol/enrolled",
        EnrolReply::Refused(_) => "enrol/refused",
    }
}

/// The beginning of a data stream.
#[must_use]
pub const fn data_stream_start() -> DataStreamStart {
    DataStreamStart { disk: DISK, generation: Generation(3) }
}
