//! How the fixtures were made that seeds of fuzzing do not give (a CA, a catalog), and those that came later.
//!
//! Invariant: a fixture that is there is never replaced; a new format gets a new file.

use std::{fs, path::PathBuf, sync::Arc};

use holdfast_common::{
    clock::{ManualClock, Timestamp},
    entropy::SeededEntropy,
    ids::{DiskId, Generation, JobId, MachineId, Sequence},
};
use holdfast_coordinator::{
    authority::{Authority, MACHINE_LIFE_DEFAULT},
    catalog::{
        Catalog as _, Change, SqliteCatalog,
        record::{AuditRecord, DiskRecord, JobEventRow, MachineRecord, MachineState},
    },
    store::{Kept, NeededCuts},
};
use holdfast_tests::{decoders::DECODERS, samples};
use uuid::Uuid;

const MACHINE: MachineId = MachineId::from_bytes([0x22; 16]);
const AT: Timestamp = Timestamp(1_800_000_000_000_000);

fn changes() -> Vec<Change> {
    vec![
        Change::PutMachine(MachineRecord {
            id: MACHINE,
            name: "web-1".into(),
            state: MachineState::Enrolled,
            enrolled_at: AT,
            last_seen_at: Some(AT),
            agent_version: "0.1.0".into(),
            inventory: Some(serde_json::to_string(&samples::inventory()).unwrap().into()),
        }),
        Change::PutDisk(DiskRecord {
            id: DiskId::from_bytes([0x11; 16]),
            machine: MACHINE,
            path: "/dev/vda".into(),
            identity: samples::identity(),
            size_bytes: 20 << 30,
            generation: Generation(3),
            protected_at: AT,
            unprotected_at: None,
        }),
        Change::AddJobEvent(JobEventRow {
            job: JobId::from_bytes([1; 16]),
            number: 1,
            at: AT,
            body: r#"{"version":1,"event":{"type":"message","text":"a"}}"#.into(),
        }),
        Change::Audit(AuditRecord {
            id: Uuid::from_bytes([5; 16]),
            at: AT,
            who: "operator root".into(),
            what: "protect".into(),
            subject: "web-1".into(),
            detail: String::new(),
        }),
    ]
}

#[tokio::test]
#[ignore = "writes fixtures that are not there yet"]
async fn write_fixtures() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("formats/fixtures");
    let catalog = folder.join("catalog.sqlite");
    if !catalog.exists() {
        let open = SqliteCatalog::open(&catalog).await.unwrap();
        open.apply(changes()).await.unwrap();
        open.close().await;
    }
    let kept = folder.join("kept");
    if !kept.exists() {
        let needed = NeededCuts { horizon: Sequence(300), cuts: [7, 300].map(Sequence).to_vec() };
        let gone = [3, 4, 5, 1000].map(Sequence).to_vec();
        fs::write(kept, Kept::default().with(needed, gone).to_bytes()).unwrap();
    }
    let run = folder.join("index-run-2");
    if !run.exists() {
        let runs = DECODERS.iter().find(|decoder| decoder.name == "index_run").unwrap();
        fs::write(run, (runs.seeds)().pop().unwrap()).unwrap();
    }
    let authority = folder.join("ca");
    if !authority.join("authority.key").exists() {
        let clock = ManualClock::default();
        clock.step_wall(AT);
        let entropy = Arc::new(SeededEntropy::new(8));
        let made = Authority::open(&authority, MACHINE_LIFE_DEFAULT, Arc::new(clock), entropy).unwrap();
        fs::write(authority.join("fingerprint"), format!("{}\n", made.fingerprint())).unwrap();
    }
}
