//! Decoders of what lies in our own files, which may be damaged, or another version's.
//!
//! Owns how bytes become files for decoders that want one: unnamed files in memory, or one folder per thread.

use std::{
    cell::RefCell,
    fs::{self, File},
    io::Write as _,
};

use holdfast_common::{
    clock::Timestamp,
    ids::{JobId, Sequence},
    units::BlockRange,
};
use holdfast_coordinator::{
    failover::{log, port::LogRecord},
    index::{
        merge::{Layer, merge},
        records::RunRecords,
        run::Run,
        run_format::{RunHeader, RunName},
    },
    journal::{
        format, recovery,
        segment::{self, SealedSegment},
        tables,
        walk::Walk,
    },
    readiness::hive::Hive,
    store::{DiskManifest, Kept},
};
use tempfile::TempDir;

use super::{repair, seeds};
use crate::journal::DISK;

/// A segment file as recovery and readers see it.
pub(super) fn segment(bytes: &[u8]) {
    read_segment(bytes);
    let _ = tables::SegmentTables::parse(
        Sequence(1),
        bytes.get(..16).unwrap_or_default(),
        bytes.get(16..).unwrap_or_default().to_vec(),
    );
    let mut repaired = bytes.to_vec();
    repair::segment(&mut repaired, DISK);
    read_segment(&repaired);
    // What the file's name says is not in doubt, so the header is one of the right segment or damaged.
    open_segment(&repaired);
}

fn read_segment(bytes: &[u8]) {
    let first = format::SegmentHeader::parse(bytes).map_or(Sequence(1), |header| header.first_sequence);
    if let Ok(plan) = recovery::plan(bytes, DISK, first) {
        assert!(plan.keep_bytes <= plan.file_bytes, "recovery lengthens the file");
        assert!(plan.damage.iter().all(|hole| hole.from <= hole.to), "damage ends before it begins");
        let _ = plan.tables.heads_after(Sequence(0), usize::MAX);
        let _ = plan.tables.frame_bytes_after(Sequence(3));
    }
    if let Ok((_, entries)) = segment::read_footer(bytes, first) {
        let _ = tables::find_entry(&entries, first, Sequence(3));
    }
    for first in [Sequence(0), Sequence(u64::MAX)] {
        if let Ok(mut walk) = Walk::new(bytes, DISK, first) {
            while let Ok(Some(_)) = walk.next_part() {}
        }
    }
    let _ = segment::read_frame(bytes, DISK, Sequence(1), 160, Some(9000));
}

fn open_segment(bytes: &[u8]) {
    let first = format::SegmentHeader::parse(bytes).map_or(Sequence(1), |header| header.first_sequence);
    let name = c"segment";
    let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).map(File::from);
    let mut file = file.expect("files in memory");
    file.write_all(bytes).expect("memory for the file");
    let _ = SealedSegment::open_sealed(&file, DISK, first);
    if let Ok(segment) = SealedSegment::open(file, DISK, first)
        && let Ok(tables) = segment.tables()
    {
        let _ = tables.heads_after(Sequence(0), usize::MAX);
        let _ = (tables.last_sequence(), tables.extent_of(Sequence(2)));
    }
}

/// What is recorded of a disk.
pub(super) fn manifest(bytes: &[u8]) {
    let _ = DiskManifest::parse(bytes);
    let mut repaired = bytes.to_vec();
    repair::manifest(&mut repaired);
    let _ = DiskManifest::parse(&repaired);
}

/// What of a log is kept; laid out like a manifest.
pub(super) fn kept(bytes: &[u8]) {
    let mut repaired = bytes.to_vec();
    repair::manifest(&mut repaired);
    for bytes in [bytes, &repaired] {
        if let Ok(kept) = Kept::parse(bytes) {
            assert_eq!(Kept::parse(&kept.to_bytes()), Ok(kept), "what was read cannot be written");
        }
    }
}

thread_local! {
    static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// An index run: its name, its header, its records, and the whole file.
pub(super) fn index_run(bytes: &[u8]) {
    let _ = RunName::parse(&String::from_utf8_lossy(bytes));
    let _ = RunRecords::parse(bytes);
    let mut repaired = bytes.to_vec();
    repair::run(&mut repaired);
    let Some(header) = RunHeader::parse(&repaired) else { return };
    FOLDER.with_borrow_mut(|folder| {
        let folder = folder.get_or_insert_with(|| TempDir::new().expect("a folder"));
        let path = header.name.path(folder.path());
        fs::write(&path, &repaired).expect("space for a run");
        if let Ok(run) = Run::open(folder.path(), header.disk, header.name) {
            let _ = run.records();
            let _ = merge(&[Layer::Run(&run), Layer::Run(&run)], &mut |entry| {
                let _ = entry.pack();
                Ok(())
            });
            for block in [0, 7, 1 << 40, u64::MAX] {
                let _ = run.position(block);
            }
            let _ = run.overlapping(BlockRange::new(3, 1 << 30), &mut |_| {});
        }
        fs::remove_file(&path).expect("the run is there");
    });
}

/// A job's event as the catalog holds it.
pub(super) fn job_event(bytes: &[u8]) {
    let body = String::from_utf8_lossy(bytes).into_owned();
    let stored = LogRecord { job: JobId::from_bytes([1; 16]), number: 1, at: Timestamp(1), body };
    if let Ok(record) = log::decode(&stored) {
        let again = log::encode(&record).expect("what was read can be stored");
        assert_eq!(log::decode(&again).expect("and read again"), record);
    }
}

/// The partition table of a disk.
pub(super) fn partition_table(bytes: &[u8]) {
    let _ = holdfast_coordinator::readiness::table::read(&bytes);
    let _ = holdfast_coordinator::readiness::volumes::probe(&bytes);
}

/// An EFI system partition.
pub(super) fn fat(bytes: &[u8]) {
    if let Ok(fat) = holdfast_coordinator::readiness::fat::Fat::open(&bytes) {
        let _ = fat.list(&["EFI", "BOOT"]);
    }
}

/// An initramfs.
pub(super) fn initramfs(bytes: &[u8]) {
    let _ = holdfast_coordinator::readiness::initramfs::modules(bytes);
}

/// A registry hive: as it comes, and with the sum of its first block made good.
pub(super) fn hive(bytes: &[u8]) {
    let mut repaired = bytes.to_vec();
    crate::hive::sealed(&mut repaired);
    for bytes in [bytes.to_vec(), repaired] {
        if let Ok(hive) = Hive::open(bytes, &[]) {
            walk(&hive);
        }
    }
}

/// The log of a hive: as it comes, and with its entries' digests made good as long as their sizes lead from one to the next.
pub(super) fn hive_log(bytes: &[u8]) {
    let mut repaired = bytes.to_vec();
    crate::hive::sealed(&mut repaired);
    let mut at = 512;
    while let Some(size) = repaired.get(at + 4..at + 8).and_then(|size| size.try_into().ok()) {
        let size = usize::try_from(u32::from_le_bytes(size)).unwrap_or(0);
        let Some(entry) = repaired.get_mut(at..at.saturating_add(size)).filter(|entry| !entry.is_empty())
        else {
            break;
        };
        crate::hive::sign(entry);
        at += size;
    }
    let torn = crate::hive::unfinished(seeds::hive(), 8);
    for log in [bytes.to_vec(), repaired] {
        let hive = Hive::open(torn.clone(), &[log]).expect("the hive itself is sound");
        walk(&hive);
    }
}

/// Two levels of keys with their values.
fn walk(hive: &Hive) {
    let _ = hive.value(r"Services\alpha", "Start").map(|value| value.map(|value| value.number()));
    let Ok(keys) = hive.root().and_then(|root| root.children()) else { return };
    for key in keys.flatten().take(16) {
        let _ = (key.name(), key.value("Start"));
        for value in key.values().into_iter().flatten() {
            let _ = (value.number(), value.text(), value.texts());
        }
    }
}
