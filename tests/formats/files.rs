//! Files as the first version wrote them, committed in `fixtures/`: every later version must open them, and must refuse
//! those of a version that it does not know.

use std::{fs, path::PathBuf, sync::Arc};

use holdfast_common::{
    clock::{ManualClock, Timestamp},
    entropy::SeededEntropy,
    ids::Sequence,
};
use holdfast_coordinator::{
    authority::{Authority, MACHINE_LIFE_DEFAULT},
    catalog::{Catalog as _, SqliteCatalog},
    index::{
        merge::{Layer, merge},
        run::Run,
        run_format::{RUN_HEADER_BYTES, RunHeader},
    },
    journal::{
        recovery,
        segment::{SealedSegment, SegmentError},
    },
    store::{DiskManifest, Kept},
};
use holdfast_tests::journal::{DISK, manifest};
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
fn an_index_run_opens_and_a_newer_one_does_not() {
    let mut run = bytes("index-run");
    let header = RunHeader::parse(&run).unwrap();
    assert_eq!((header.entry_count, header.disk), (300, DISK));
    let folder = TempDir::new().unwrap();
    fs::write(header.name.path(folder.path()), &run).unwrap();
    let opened = Run::open(folder.path(), DISK, header.name).unwrap();
    let mut count = 0;
    merge(&[Layer::Run(&opened)], &mut |_entry| {
        count += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(count, 300);
    assert_eq!(opened.records().unwrap().losses.len(), 1);
    // Derived, so dropped and made again: but never read as if it were known.
    run[4] = 2;
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
