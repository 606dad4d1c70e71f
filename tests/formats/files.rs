//! Files as the first version wrote them, committed in `fixtures/`: every later version must open them, and must refuse
//! those of a version that it does not know.

use std::{fs, path::PathBuf, sync::Arc};

use holdfast_common::{
    clock::{ManualClock, Timestamp},
    entropy::SeededEntropy,
    ids::{PointId, Sequence},
};
use holdfast_coordinator::{
    authority::{Authority, MACHINE_LIFE_DEFAULT},
    catalog::{Catalog as _, SqliteCatalog},
    compute::branch::{Branch, Origin},
    index::{
        merge::{Layer, merge},
        run::Run,
        run_format::{RUN_HEADER_BYTES, RunHeader},
    },
    journal::{
        recovery,
        segment::{SealedSegment, SegmentError},
    },
    points::view::BlockView,
    registry::description::Description,
    store::{AuditRecord, CheckRecord, DiskManifest, Kept},
};
use holdfast_tests::{
    journal::{DISK, manifest},
    memory_view::MemoryView,
};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("formats/fixtures").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    fs::read(fixture(name)).unwrap()
}

#[test]
fn segments_open_with_and_without_footer() {
    let plan = recovery::plan(bytes("segment-open").as_slice(), DISK, Sequence(1)).unwrap();
    assert_eq!((plan.keep_bytes, plan.last_sequence), (plan.file_bytes, Sequence(10)));
    assert_eq!((plan.damage.len(), plan.tables.entries().len()), (0, 3));
    let file = fs::File::open(fixture("segment-sealed")).unwrap();
    let segment = SealedSegment::open(file, DISK, Sequence(1)).unwrap();
    assert!(segment.has_footer());
    assert_eq!(segment.last_sequence(), Some(Sequence(11)));
    assert_eq!(segment.tables().unwrap().entries().len(), 4);
}

#[test]
fn a_newer_segment_is_refused_and_not_cut() {
    let mut newer = bytes("segment-open");
    newer[4] = 2;
    let refusal = recovery::plan(newer.as_slice(), DISK, Sequence(1)).unwrap_err();
    assert!(matches!(refusal, SegmentError::Format(_)), "{refusal:?}");
    assert!(refusal.to_string().contains("version 2"), "{refusal}");
}

#[test]
fn index_runs_of_both_versions_open_and_a_newer_one_does_not() {
    let of_version = |name: &str| {
        let run = bytes(name);
        let header = RunHeader::parse(&run).unwrap();
        assert_eq!((header.entry_count, header.disk), (300, DISK));
        assert_eq!(header.to_bytes(), run[..RUN_HEADER_BYTES]);
        let folder = TempDir::new().unwrap();
        fs::write(header.name.path(folder.path()), &run).unwrap();
        let opened = Run::open(folder.path(), DISK, header.name).unwrap();
        let mut entries = Vec::new();
        merge(&[Layer::Run(&opened)], &mut |entry| {
            entries.push(entry);
            Ok(())
        })
        .unwrap();
        assert_eq!(opened.records().unwrap().losses.len(), 1);
        (header.version, entries, run)
    };
    let (first, second) = (of_version("index-run"), of_version("index-run-2"));
    assert_eq!((first.0, second.0, first.1.len()), (1, 2, 300));
    assert_eq!(first.1, second.1);
    // Derived, so dropped and made again: but never read as if it were known.
    let mut run = second.2;
    run[4] = 3;
    let digest = *blake3::hash(&run[..160]).as_bytes();
    run[160..RUN_HEADER_BYTES].copy_from_slice(&digest);
    assert!(RunHeader::parse(&run).is_none());
}

#[test]
fn a_manifest_opens_and_a_newer_one_does_not() {
    let mut bytes = bytes("manifest");
    assert_eq!(DiskManifest::parse(&bytes).unwrap(), manifest());
    bytes[4] = 2;
    assert!(DiskManifest::parse(&bytes).unwrap_err().contains("version 2"));
}

#[test]
fn a_record_of_what_is_kept_opens_and_a_newer_one_does_not() {
    let mut bytes = bytes("kept");
    let kept = Kept::parse(&bytes).unwrap();
    assert_eq!(kept.needed().cuts, [7, 300].map(Sequence));
    assert!(kept.is_gone(Sequence(4)) && kept.is_gone(Sequence(1000)) && !kept.is_gone(Sequence(6)));
    bytes[4] = 2;
    assert!(Kept::parse(&bytes).unwrap_err().contains("version 2"));
}

#[test]
fn a_ca_folder_is_the_same_authority() {
    let folder = TempDir::new().unwrap();
    for name in ["authority.key", "authority.crt"] {
        let path = folder.path().join(name);
        fs::write(&path, bytes(&format!("ca/{name}"))).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&path, mode).unwrap();
    }
    let clock = ManualClock::default();
    clock.step_wall(Timestamp(1_800_000_000_000_000));
    let entropy = Arc::new(SeededEntropy::new(9));
    let authority = Authority::open(folder.path(), MACHINE_LIFE_DEFAULT, Arc::new(clock), entropy).unwrap();
    let expected = String::from_utf8(bytes("ca/fingerprint")).unwrap();
    assert_eq!(authority.fingerprint().to_string(), expected.trim_end());
}

/// A branch of four blocks of zeroes, byte by byte as its format says: blocks 1 and 2 were written, block 2 after the last flush.
fn branch_bytes() -> Vec<u8> {
    let mut header = b"HFBRANCH".to_vec();
    header.extend(1u32.to_le_bytes());
    header.extend(3u32.to_le_bytes());
    header.extend([0x44; 16]);
    header.extend((4 * 4096u64).to_le_bytes());
    header.extend(b"boot-1");
    header.resize(80, 0);
    header.extend(&blake3::hash(&header).as_bytes()[..16]);
    let mut bytes = header;
    for (map, next) in [(0b0110u64, 8192), (0b0010, 12_288)] {
        bytes.resize(next - 4096, 0);
        bytes.extend(map.to_le_bytes());
    }
    bytes.resize(12_288, 0);
    bytes.extend((0..4u8).flat_map(|block| [0xb0 + block; 4096]));
    bytes
}

#[test]
fn a_branch_opens_in_its_boot_and_in_another_and_a_newer_one_does_not() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("branch");
    let origin = Origin { point: PointId::from_bytes([0x44; 16]), turn: Some(3) };
    let open = |boot| {
        let base: Arc<dyn BlockView> = Arc::new(MemoryView::from_bytes(vec![0; 4 * 4096]));
        Branch::open(&path, origin, base, boot)
    };
    for (boot, written) in [("boot-1", vec![1, 2]), ("boot-2", vec![1])] {
        fs::write(&path, branch_bytes()).unwrap();
        let branch = open(boot).unwrap();
        let mut found = vec![0xee; 4 * 4096];
        branch.read(0, &mut found).unwrap();
        for (number, block) in found.chunks(4096).enumerate() {
            let fill = if written.contains(&number) { 0xb0 + number as u8 } else { 0 };
            assert!(block.iter().all(|byte| *byte == fill), "block {number} in {boot}");
        }
    }
    let mut newer = branch_bytes();
    newer[8] = 2;
    let digest = *blake3::hash(&newer[..80]).as_bytes();
    newer[80..96].copy_from_slice(&digest[..16]);
    fs::write(&path, newer).unwrap();
    let refusal = open("boot-1").unwrap_err().to_string();
    assert!(refusal.contains("version") && refusal.contains("cancel the job"), "{refusal}");
}

#[test]
fn records_beside_a_log_are_read_as_they_were_first_written() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("record.json");
    let pass = r#"{"started_us":20,"ended_us":0,"position":60,"up_to":100,"good_bytes":1000,"bad_frames":2,"asked":true}"#;
    fs::write(&path, format!(r#"{{"version":1,"verified_to":90,"pass":{pass},"last":null,"since_us":5}}"#))
        .unwrap();
    let checks = CheckRecord::load(&path, Sequence(100), Timestamp(1000));
    let found = checks.pass.unwrap();
    assert_eq!((checks.verified_to, checks.since_us, checks.last), (90, 5, None));
    assert_eq!((found.started_us, found.position, found.good_bytes, found.bad_frames), (20, 60, 1000, 2));
    let pass = r#"{"started_us":7,"ended_us":9,"cancelled":true,"size":64,"position":32,"sent_anew":3,"differed":1,"unreadable":2}"#;
    fs::write(&path, format!(r#"{{"version":1,"pass":null,"last":{pass}}}"#)).unwrap();
    let audit = AuditRecord::load(&path);
    let last = audit.last.unwrap();
    assert!(audit.pass.is_none() && last.cancelled);
    assert_eq!((last.size, last.position, last.sent_anew, last.differed, last.unreadable), (64, 32, 3, 1, 2));
}

#[test]
fn a_description_of_the_first_version_is_read_and_a_newer_one_is_not() {
    let text = r#"{"version":1,"machine":"22222222-2222-2222-2222-222222222222","name":"web-1","revoked":false,
        "enrolled_at":1800000000000000,"agent_version":"0.1.0","interval_ms":10000,"retention_seconds":86400,
        "hold_ms_max":1000,"send_bytes_per_second_max":0,"scan_bytes_per_second_max":0,"disks":[
        {"disk":"11111111-1111-1111-1111-111111111111","path":"/dev/vda","identity":{"wwid":null,"serial":"A1","table_id":null,
        "backing_file":null,"bus_path":null},"size_bytes":21474836480,
        "generation":3,"protected_at":1800000000000000,"unprotected_at":null}],"certificates":[]}"#;
    let description = Description::parse(text.as_bytes()).unwrap();
    let disks = description.disks();
    assert_eq!((disks.len(), disks[0].path.as_str(), disks[0].size_bytes), (1, "/dev/vda", 20 << 30));
    assert_eq!((disks[0].generation.0, disks[0].unprotected_at), (3, None));
    assert!(!description.changes(Timestamp(1_800_000_000_000_000)).is_empty());
    let newer = text.replacen(r#""version":1"#, r#""version":2"#, 1);
    assert!(Description::parse(newer.as_bytes()).unwrap_err().contains("version 2"));
}

#[tokio::test]
async fn a_catalog_of_the_first_version_opens() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("catalog.sqlite");
    fs::write(&path, bytes("catalog.sqlite")).unwrap();
    let catalog = SqliteCatalog::open(&path).await.unwrap();
    let machines = catalog.machines().await.unwrap();
    assert_eq!(machines.len(), 1);
    assert_eq!(machines[0].name, "web-1");
    assert_eq!(catalog.disks().await.unwrap().len(), 1);
    assert_eq!(catalog.job_events().await.unwrap().len(), 1);
    assert_eq!(catalog.audit(Timestamp(0), 10).await.unwrap().len(), 1);
    assert!(catalog.policies().await.unwrap().is_empty());
    catalog.close().await;
}
