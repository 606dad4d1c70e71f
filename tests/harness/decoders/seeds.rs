//! Valid inputs of every decoder, small, so that changing them reaches every field.
//!
//! Owns the choice. Invariant: the same at every call.

use std::sync::Arc;

use holdfast_common::{
    clock::{ManualClock, Timestamp},
    codec,
    entropy::SeededEntropy,
    frame::{
        ApplicationFreeze, Consistency, CutMethod, CutMore, CutRecord, Extent, FrameIdentity, FrameSealer,
        GroupMark, ScanRecord,
        seal::{seal_cut, seal_scan},
    },
    ids::{Generation, GroupCutId, GroupId, Interval, JobId, MachineId, PointId, Sequence},
    tls::MachineKey,
    token::{EnrolToken, Fingerprint, OperatorToken},
    units::{BLOCK_BYTES, BlockIndex, BlockRange},
    wire::envelope,
};
use holdfast_coordinator::{
    authority::{Authority, MACHINE_LIFE_DEFAULT},
    failover::{
        job::{Output, StepKind},
        log::{self, Event, Record, Then},
    },
    index::{
        entry::IndexEntry,
        records::{EndState, Loss, RunRecords, ScanHead},
        run_format::RunName,
        run_writer::RunWriter,
    },
    journal::{format::SegmentHeader, writer::SegmentWriter},
    store::{Kept, NeededCuts},
};
use tempfile::TempDir;

use super::messages::NBD_EXPORT;
use crate::{
    hive::{self, List, Tree},
    journal::{DISK, frame, manifest},
    samples,
};

fn folder() -> TempDir {
    TempDir::new().expect("a folder")
}

fn identity(sequence: u64) -> FrameIdentity {
    FrameIdentity {
        disk: DISK,
        generation: Generation(1),
        sequence: Sequence(sequence),
        interval: Interval(1),
    }
}

/// A cut record with all that may stand behind it.
fn marked_cut() -> CutRecord {
    let machine = manifest().machine;
    let mark = GroupMark {
        cut: GroupCutId::from_bytes([4; 16]),
        group: GroupId::from_bytes([5; 16]),
        name: "shop".into(),
        members: vec![machine],
        since_held_us: 300,
        waited_us: 400,
        spread_us: 7,
    };
    let application = ApplicationFreeze { hooks: vec!["10-postgresql".into()], frozen_us: 9 };
    CutRecord {
        point: PointId::from_bytes([6; 16]),
        machine,
        at: Timestamp(1),
        hold_us: 5,
        method: CutMethod::Freeze,
        consistency: Consistency::App,
        members: Vec::new(),
        notes: Vec::new(),
        request: None,
        more: CutMore { group: Some(mark), application: Some(application), witness: None },
    }
}

/// Frames of every kind and compression.
pub(super) fn frames() -> Vec<Vec<u8>> {
    let extents = [
        Extent::data(BlockRange::new(3, 1)),
        Extent::zero(BlockRange::new(9, 500)),
        Extent::data(BlockRange::new(1 << 30, 1)),
    ];
    let mut sealer = FrameSealer::new(Some(1)).expect("zstd");
    let plain = [[0x42; BLOCK_BYTES], [0x43; BLOCK_BYTES]].concat();
    let packed = sealer.seal_data(identity(2), &extents, &plain).expect("valid extents");
    let zeroes = sealer.seal_data(identity(3), &[Extent::zero(BlockRange::new(0, 8))], &[]);
    let scan = ScanRecord { scanned_to: BlockIndex(64), complete: false };
    let scan = seal_scan(identity(4), &scan).expect("a small record");
    vec![
        frame(1).bytes().to_vec(),
        frame(10).bytes().to_vec(),
        packed.to_vec(),
        zeroes.expect("valid extents").to_vec(),
        scan.to_vec(),
        seal_cut(identity(5), &marked_cut()).expect("a small record").to_vec(),
    ]
}

/// All of them one after the other, in small and in large pieces.
pub(super) fn frame_streams() -> Vec<Vec<u8>> {
    let stream = frames().concat();
    [3, 255].iter().map(|size| [&[*size], stream.as_slice()].concat()).collect()
}

/// Every message.
pub(super) fn messages() -> Vec<Vec<u8>> {
    let agent = samples::agent_messages();
    let coordinator = samples::coordinator_messages();
    let replies = samples::enrol_replies();
    let encoded = agent
        .iter()
        .map(codec::encode)
        .chain(coordinator.iter().map(codec::encode))
        .chain(replies.iter().map(codec::encode))
        .chain([codec::encode(&samples::enrol_request()), codec::encode(&samples::data_stream_start())]);
    encoded.map(|bytes| bytes.expect("samples are small")).collect()
}

/// Each direction's messages behind their lengths.
pub(super) fn message_streams() -> Vec<Vec<u8>> {
    let agent = samples::agent_messages();
    let coordinator = samples::coordinator_messages();
    let seal_agent = agent.iter().map(|message| envelope::seal(message).expect("small").to_vec());
    let seal_coordinator = coordinator.iter().map(|message| envelope::seal(message).expect("small").to_vec());
    let start = envelope::seal(&samples::data_stream_start()).expect("small");
    vec![
        [vec![2], seal_agent.collect::<Vec<_>>().concat()].concat(),
        [vec![200], seal_coordinator.collect::<Vec<_>>().concat()].concat(),
        [&[0], start.as_ref()].concat(),
    ]
}

/// A machine's certificate and its request.
pub(super) fn certificates() -> Vec<Vec<u8>> {
    let folder = folder();
    let clock = ManualClock::default();
    clock.step_wall(Timestamp(1_800_000_000_000_000));
    let entropy = SeededEntropy::new(7);
    let key = MachineKey::generate(&entropy).expect("a key");
    let request = key.request_der().expect("a request");
    let authority = Authority::open(folder.path(), MACHINE_LIFE_DEFAULT, Arc::new(clock), Arc::new(entropy));
    let machine = MachineId::from_bytes([0x22; 16]);
    let signed = authority.expect("a CA").sign_machine(machine, &request).expect("a certificate");
    vec![signed.der, request]
}

/// A token.
pub(super) fn tokens() -> Vec<Vec<u8>> {
    let token = EnrolToken { secret: [0x5a; 32], authority: Fingerprint([0xc3; 32]) };
    let operator = OperatorToken { secret: token.secret, authority: token.authority };
    vec![token.to_text().into_bytes(), operator.to_text().into_bytes(), b"hf2.00.00.00".to_vec()]
}

/// Negotiations of several kinds, each with requests behind them.
pub(super) fn nbd() -> Vec<Vec<u8>> {
    let option = |number: u32, data: &[u8]| {
        let length = u32::try_from(data.len()).unwrap_or(0);
        [b"IHAVEOPT", &number.to_be_bytes()[..], &length.to_be_bytes(), data].concat()
    };
    let text = |text: &str| [&u32::try_from(text.len()).unwrap_or(0).to_be_bytes(), text.as_bytes()].concat();
    let go = [text(NBD_EXPORT), vec![0, 1, 0, 3]].concat();
    let contexts = [text(NBD_EXPORT), vec![0, 0, 0, 1], text("base:allocation")].concat();
    let request = |command: u16, length: u32| {
        let head = [0x25, 0x60, 0x95, 0x13, 0, 0];
        let place = [[0, 0, 0, 0, 0, 0, 0, 7], 4096_u64.to_be_bytes()].concat();
        [&head, &command.to_be_bytes()[..], &place, &length.to_be_bytes()].concat()
    };
    let requests =
        [request(0, 65_536), request(7, 4096), request(1, 3), vec![1, 2, 3], request(2, 0)].concat();
    let flags = [0, 0, 0, 3];
    let modern = [&flags[..], &option(8, &[]), &option(10, &contexts), &option(7, &go), &requests].concat();
    let old = [&flags[..], &option(3, &[]), &option(1, NBD_EXPORT.as_bytes()), &requests].concat();
    let asking =
        [&flags[..], &option(6, &go), &option(9, &contexts), &option(5, &[]), &option(2, &[])].concat();
    vec![modern, old, asking]
}

/// Segments open and sealed.
pub(super) fn segments() -> Vec<Vec<u8>> {
    let folder = folder();
    let path = folder.path().join("segment");
    let header = SegmentHeader {
        disk: DISK,
        first_sequence: Sequence(1),
        base_interval: Interval(0),
        base_generation: Generation(0),
    };
    let mut writer = SegmentWriter::create(&path, header).expect("a segment");
    let read = || std::fs::read(&path).expect("the segment");
    let zeroes = Extent::zero(BlockRange::new(0, 8));
    let small = |sequence| {
        let mut sealer = FrameSealer::new(None).expect("a sealer");
        let bytes = sealer.seal_data(identity(sequence), &[zeroes], &[]).expect("a frame");
        holdfast_common::frame::Frame::verify(bytes).expect("a good frame")
    };
    writer.append_group(&[small(1), small(2)]).expect("space");
    writer.append_group(&[frame(10)]).expect("space");
    let open = read();
    writer.append_group(&[frame(11)]).expect("space");
    writer.seal().expect("space");
    vec![open, read()]
}

/// Runs with and without entries.
pub(super) fn runs() -> Vec<Vec<u8>> {
    [0, 2, 300].into_iter().map(run).collect()
}

fn run(entries: u64) -> Vec<u8> {
    let folder = folder();
    let name =
        RunName { part: entries == 2, level: 1, last_cut: 4, from: Sequence(10), to: Sequence(20 + entries) };
    let mut writer = RunWriter::create(folder.path(), DISK, name).expect("a run");
    for number in 0..entries {
        let plain = (number % 3 > 0).then_some(5);
        let entry =
            IndexEntry { start: number * 10, count: 1 + number % 9, sequence: Sequence(11 + number), plain };
        writer.push(entry).expect("space");
    }
    let records = RunRecords {
        scan: Some(ScanHead {
            sequence: Sequence(12),
            generation: Generation(2),
            record: ScanRecord { scanned_to: BlockIndex(1), complete: true },
        }),
        losses: vec![Loss { first: Sequence(13), last: Sequence(14) }],
        end: EndState { unhealed: Some(Generation(2)), loss_open: false, frames: 8 },
        ..RunRecords::default()
    };
    let written = writer.finish(&records).expect("space");
    let path = written.settle().expect("space");
    std::fs::read(path).expect("the run")
}

/// A disk's manifest.
pub(super) fn manifests() -> Vec<Vec<u8>> {
    let folder = folder();
    let path = folder.path().join("manifest");
    manifest().store(&path).expect("space");
    vec![std::fs::read(path).expect("the manifest")]
}

/// What of a log is kept.
pub(super) fn kept() -> Vec<Vec<u8>> {
    let cuts = [10, 20, 300, 70_000].map(Sequence).to_vec();
    let needed = NeededCuts { horizon: Sequence(70_000), cuts };
    let frames = (11..19).chain(400..1000).chain([60_000, 60_002]).map(Sequence).collect();
    vec![Kept::default().to_bytes(), Kept::default().with(needed, frames).to_bytes()]
}

/// Events of a job.
pub(super) fn job_events() -> Vec<Vec<u8>> {
    let selected =
        Output::Selected { point: PointId::from_bytes([3; 16]), at: Timestamp(5), remarks: vec!["a".into()] };
    let created = r#"{"version":1,"event":{"type":"created","spec":{"kind":"failover","machine":"02020202-0202-0202-0202-020202020202","selection":{"point":"03030303-0303-0303-0303-030303030303"},"target":{"image":{"folder":"/images","format":"qcow2"}}},"by":"root","steps":["check"],"holds":false}}"#;
    let events = [
        Event::StepDone { step: 1, output: selected },
        Event::StepFailed { step: 1, message: "no".into(), then: Then::Hold },
        Event::StepWaits { step: 2, reason: format!("{:?}", StepKind::Attach) },
    ];
    let texts = events.into_iter().map(|event| {
        let record = Record { job: JobId::from_bytes([1; 16]), number: 1, at: Timestamp(1), event };
        log::encode(&record).expect("small").body.into_bytes()
    });
    texts.chain([created.as_bytes().to_vec()]).collect()
}

/// A mount table, a swap table, partition tables of both kinds.
pub(super) fn machine_tables() -> Vec<Vec<u8>> {
    let mounts = b"36 35 98:0 / /mnt\\040x rw,noatime shared:1 - ext4 /dev/root rw,errors=continue\n\
        23 1 0:21 / /sys rw - sysfs sysfs rw\n";
    let swaps = b"Filename Type Size Used Priority\n/dev/sda2 partition 1 2 -2\n/swap\\040file file 1 0 -3\n";
    let mut mbr = vec![0; 512];
    mbr[440..444].copy_from_slice(&[1, 2, 3, 4]);
    mbr[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0]);
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    vec![mounts.to_vec(), swaps.to_vec(), mbr, gpt()]
}

/// A GPT with one partition of four entries.
fn gpt() -> Vec<u8> {
    let mut disk = vec![0; 512 * 3];
    disk[450] = 0xee;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut entries = vec![0; 512];
    entries[..16].fill(0x33);
    entries[32] = 34;
    entries[40] = 99;
    let mut header = vec![0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[12] = 92;
    header[56..72].fill(0x44);
    header[72] = 2;
    header[80] = 4;
    header[84] = 128;
    header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
    let checksum = crc32(&header);
    header[16..20].copy_from_slice(&checksum.to_le_bytes());
    disk[512..604].copy_from_slice(&header);
    disk[1024..].copy_from_slice(&entries);
    disk
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// A pinned record, and a small set of kernel types with a struct inside a struct.
pub(super) fn tracking_records() -> Vec<Vec<u8>> {
    let words = [0x4846_5452_4143_0001_u64, 1, 2, 3, 4, 5, 6, 7, 8, 1, 9, 0, 0, 0, 0, 0];
    let record = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let strings = b"\0request\0bio\0btf_trace_block_rq_issue\0";
    let types: [u32; 19] = [
        // 1: struct { bio at bit 32 }; 2: struct request { anonymous 1 at bit 32 }; 3: typedef of 2.
        0,
        4 << 24 | 1,
        8,
        9,
        2,
        32, //
        1,
        4 << 24 | 1,
        16,
        0,
        1,
        32, //
        13,
        8 << 24,
        2, //
        0,
        1 << 24,
        4,
        32,
    ];
    let mut kernel = [0x9f_u8, 0xeb, 1, 0].to_vec();
    let (types_bytes, strings_bytes) = (u32::try_from(types.len() * 4), u32::try_from(strings.len()));
    let (types_bytes, strings_bytes) = (types_bytes.unwrap_or(0), strings_bytes.unwrap_or(0));
    for word in [24, 0, types_bytes, types_bytes, strings_bytes].iter().chain(&types) {
        kernel.extend_from_slice(&word.to_ne_bytes());
    }
    kernel.extend_from_slice(strings);
    vec![record, kernel]
}

/// An MBR with a logical partition, and a GPT.
pub(super) fn partition_tables() -> Vec<Vec<u8>> {
    let mut mbr = vec![0; 4096];
    let mut entry = |at: usize, kind: u8, first: u8, count: u8| {
        (mbr[at + 4], mbr[at + 8], mbr[at + 12]) = (kind, first, count);
    };
    entry(446, 0x83, 1, 1);
    entry(462, 0x05, 2, 4);
    entry(1024 + 446, 0x83, 1, 1);
    entry(1024 + 462, 0x05, 2, 1);
    entry(2048 + 446, 0x83, 1, 1);
    for sector in [0, 1024, 2048] {
        mbr[sector + 510..sector + 512].copy_from_slice(&[0x55, 0xaa]);
    }
    let mut gpt = vec![0; 4096];
    gpt[450] = 0xee;
    gpt[510..512].copy_from_slice(&[0x55, 0xaa]);
    gpt[512..520].copy_from_slice(b"EFI PART");
    (gpt[512 + 72], gpt[512 + 80], gpt[512 + 84]) = (2, 4, 128);
    gpt[1024..1040].copy_from_slice(b"Hah!IdontNeedEFI");
    (gpt[1024 + 32], gpt[1024 + 40]) = (34, 40);
    vec![mbr, gpt]
}

/// A FAT16 with `\EFI\BOOT\BOOTX64.EFI`, and a FAT32 by its size.
pub(super) fn fats() -> Vec<Vec<u8>> {
    let seed = |sectors: u32, root_entries: u8, table_sectors: u8| {
        let mut bytes = vec![0; 16 << 10];
        (bytes[12], bytes[13], bytes[14], bytes[16], bytes[17]) = (2, 1, 1, 1, root_entries);
        bytes[32..36].copy_from_slice(&sectors.to_le_bytes());
        if root_entries == 0 {
            (bytes[36], bytes[44]) = (table_sectors, 2);
        } else {
            bytes[22] = table_sectors;
        }
        let data = 512 * (1 + usize::from(table_sectors)) + usize::from(root_entries) * 32;
        let mut folder = |at: usize, name: &[u8; 11], kind: u8, cluster: u8| {
            bytes[at..at + 11].copy_from_slice(name);
            (bytes[at + 11], bytes[at + 26]) = (kind, cluster);
        };
        folder(512 * (1 + usize::from(table_sectors)), b"EFI        ", 0x10, 3);
        folder(data + 512, b"BOOT       ", 0x10, 4);
        folder(data + 1024, b"BOOTX64 EFI", 0x20, 5);
        // Chains of two clusters and a circle.
        bytes[518..522].copy_from_slice(&[4, 0, 3, 0]);
        bytes
    };
    vec![seed(20_000, 16, 2), seed(200_000, 0, 2), seed(100, 16, 1)]
}

/// Plain, and packed by zstd.
pub(super) fn initramfs() -> Vec<Vec<u8>> {
    let plain = crate::system_disk::archive(&[
        ("lib/modules/6.1/modules.builtin", b"kernel/drivers/block/virtio_blk.ko\n"),
        ("lib/modules/6.1/kernel/drivers/sd_mod.ko.xz", b"module"),
    ]);
    let gzip = crate::system_disk::initramfs(&["virtio_blk"], crate::system_disk::Packed::Gzip);
    [Some(plain), gzip.ok()].into_iter().flatten().collect()
}

/// A small registry.
pub(super) fn hive() -> Vec<u8> {
    tree(3).hive(List::Lh)
}

fn tree(start: u32) -> Tree {
    let mut tree = Tree::default();
    tree.set("Select", "Current", hive::dword(1));
    for name in ["alpha", "Beta", "gamma"] {
        tree.set(&format!(r"Services\{name}"), "Start", hive::dword(start));
    }
    tree.set("Services", "Image", hive::path("x.sys"));
    tree.set("Services", "Several", hive::texts(&["one", "two"]));
    tree
}

/// With all kinds of lists, and with data in segments.
pub(super) fn hives() -> Vec<Vec<u8>> {
    let mut large = tree(0);
    large.set("Services", "Blob", hive::binary(&[7; 17_000]));
    vec![tree(3).hive(List::Li), tree(3).hive(List::Lf), hive(), tree(3).hive(List::Ri), large.hive(List::Lh)]
}

/// One change, and two.
pub(super) fn hive_logs() -> Vec<Vec<u8>> {
    let steps = [tree(3), tree(4), tree(0)].map(|tree| tree.hive(List::Lh));
    let steps: Vec<&[u8]> = steps.iter().map(Vec::as_slice).collect();
    vec![hive::log_of(&steps[..2], 8), hive::log_of(&steps, 8)]
}
