//! The registry against a real catalog: enrolment, protection, generations, revocation, restarts; and the pure rules.

use std::{sync::Arc, time::Duration};

use holdfast_common::{
    clock::{Clock as _, ManualClock, Timestamp},
    entropy::SeededEntropy,
    ids::{DiskId, Generation, Interval, JobId, MachineId, PointId, Sequence},
    token::TokenHash,
    units::{BlockCount, BlockIndex},
    wire::{
        CutVoided, DiskHealth, DiskIdentity, DiskInventory, DiskReport, Firmware, Hello, Inventory,
        PartitionTable, Platform, RefusalCode, TrustLoss,
    },
};

use super::{
    Description, DiskLogs, LogState, NewToken, Protect, Registry, RegistryError, RegistryParts,
    health::{DiskFacts, FailedOver, Level, MachineFacts, disk_findings, machine_findings, worst},
    identity::same_disk,
    lifecycle::{LifecycleEvent, Stage},
    operators_record::OperatorsRecord,
    thresholds::{Ages, Thresholds},
};
use crate::{
    catalog::{
        Change, SqliteCatalog,
        record::{DiskRecord, MachineState},
    },
    compute::port::BoxFuture,
    ingest::{
        links::LiveLinks,
        port::{CertificateRecord, CertificateSerial, Directory as _, Enrolment, PortError},
    },
};

const MACHINE: MachineId = MachineId::from_bytes([1; 16]);
const SERIAL: CertificateSerial = CertificateSerial([7; 16]);

#[derive(Debug)]
struct FixedLogs;

impl DiskLogs for FixedLogs {
    fn state(&self, _disk: DiskId, generation: Generation) -> BoxFuture<'_, anyhow::Result<LogState>> {
        let scan_complete = generation == Generation(1);
        Box::pin(async move {
            let (durable, interval, scanned_to) = (Sequence(41), Interval(5), BlockIndex(64));
            Ok(LogState { durable, interval, scanned_to, scan_complete })
        })
    }

    fn describe(&self, _description: Description) -> BoxFuture<'_, anyhow::Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn describe_operators(&self, _operators: OperatorsRecord) -> BoxFuture<'_, anyhow::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

pub(super) struct Fixture {
    folder: tempfile::TempDir,
    pub(super) clock: ManualClock,
    pub(super) registry: Registry,
}

impl Fixture {
    pub(super) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::default();
        clock.advance(Duration::from_secs(1_000_000));
        let registry = load(&folder, &clock).await;
        Self { folder, clock, registry }
    }

    /// With a machine that has connected once.
    async fn connected() -> Self {
        let fixture = Self::new().await;
        fixture.enrol(1).await.unwrap();
        fixture.hello(vec![disk("/dev/vda", "A", 1 << 30), disk("/dev/vdb", "B", 1 << 20)]).await;
        fixture
    }

    async fn enrol(&self, token: u8) -> Result<(), PortError> {
        let hash = TokenHash([token; 32]);
        let new = NewToken { hash, label: String::new(), machine: None, life: Duration::from_secs(60) };
        self.registry.create_token("operator", new).await.unwrap();
        self.registry.enrol(enrolment(token)).await
    }

    async fn hello(&self, disks: Vec<DiskInventory>) {
        let hello = Hello {
            protocol_version: 1,
            agent_version: "0.1.0".to_owned(),
            inventory: inventory(disks),
            disks: Vec::new(),
        };
        self.registry.record_hello(MACHINE, Box::new(hello)).await.unwrap();
    }

    async fn protect(&self, paths: &[&str]) -> Result<Vec<DiskRecord>, RegistryError> {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let protected =
            self.registry.protect("operator", MACHINE, Protect { paths, ..Protect::default() }).await?;
        Ok(protected.disks)
    }

    pub(super) async fn restarted(self) -> Self {
        // The seeded ids must not come a second time.
        self.clock.advance(Duration::from_secs(1));
        let registry = load(&self.folder, &self.clock).await;
        Self { registry, ..self }
    }
}

async fn load(folder: &tempfile::TempDir, clock: &ManualClock) -> Registry {
    let catalog = SqliteCatalog::open(&folder.path().join("catalog.sqlite")).await.unwrap();
    Registry::load(RegistryParts {
        catalog: Arc::new(catalog),
        logs: Arc::new(FixedLogs),
        links: LiveLinks::default(),
        clock: Arc::new(clock.clone()),
        entropy: Arc::new(SeededEntropy::new(1)),
    })
    .await
    .unwrap()
}

fn enrolment(token: u8) -> Enrolment {
    let (not_before, not_after) = (Timestamp(0), Timestamp(i64::MAX));
    Enrolment {
        token: TokenHash([token; 32]),
        machine: MACHINE,
        host_name: "web-1".to_owned(),
        certificate: CertificateRecord { serial: SERIAL, not_before, not_after },
    }
}

fn disk(path: &str, serial: &str, size_bytes: u64) -> DiskInventory {
    DiskInventory {
        path: path.to_owned(),
        identity: DiskIdentity { serial: Some(serial.to_owned()), ..DiskIdentity::default() },
        size_bytes,
        logical_block_bytes: 512,
        read_only: false,
        model: String::new(),
        driver: String::new(),
        table: PartitionTable::None,
        partitions: Vec::new(),
        file_systems: Vec::new(),
    }
}

fn inventory(disks: Vec<DiskInventory>) -> Inventory {
    Inventory {
        host_name: "web-1".to_owned(),
        operating_system: String::new(),
        kernel: String::new(),
        boot_id: String::new(),
        firmware: Firmware::Bios,
        platform: Platform::Kvm,
        hardware: String::new(),
        hardware_uuid: String::new(),
        processors: 1,
        memory_bytes: 1,
        network_cards: Vec::new(),
        disks,
        drivers: Vec::new(),
    }
}

fn code(result: Result<impl std::fmt::Debug, PortError>) -> RefusalCode {
    match result {
        Err(PortError::Refused(refusal)) => refusal.code,
        other => panic!("expected a refusal, not {other:?}"),
    }
}

#[tokio::test]
async fn a_token_enrols_once_and_says_why_not_again() {
    let fixture = Fixture::new().await;
    assert_eq!(code(fixture.registry.check_token(TokenHash([1; 32])).await), RefusalCode::TOKEN);
    fixture.enrol(1).await.unwrap();
    assert_eq!(code(fixture.registry.check_token(TokenHash([1; 32])).await), RefusalCode::TOKEN);
    assert_eq!(code(fixture.registry.enrol(enrolment(1)).await), RefusalCode::TOKEN);
    let hash = TokenHash([2; 32]);
    let new = NewToken { hash, label: String::new(), machine: None, life: Duration::from_secs(60) };
    fixture.registry.create_token("operator", new).await.unwrap();
    assert_eq!(fixture.registry.check_token(hash).await.unwrap(), None);
    fixture.clock.advance(Duration::from_secs(60));
    assert_eq!(code(fixture.registry.check_token(hash).await), RefusalCode::TOKEN);
    assert_eq!(code(fixture.registry.enrol(enrolment(2)).await), RefusalCode::TOKEN);
}

#[tokio::test]
async fn an_assignment_is_made_of_the_catalog_and_the_logs() {
    let fixture = Fixture::connected().await;
    assert!(fixture.registry.assignment(MACHINE).await.unwrap().disks.is_empty());
    let disks = fixture.protect(&["/dev/vda", "/dev/vda"]).await.unwrap();
    assert_eq!(disks.len(), 1);
    let assignment = fixture.registry.assignment(MACHINE).await.unwrap();
    assert_eq!(assignment.settings.cut_interval_ms, 10_000);
    let capture = assignment.disks.first().unwrap();
    assert_eq!((capture.durable, capture.interval), (Sequence(41), Interval(5)));
    assert_eq!((capture.size_bytes, capture.generation), (1 << 30, Generation(1)));
    assert!(capture.scan_complete && !capture.replica_empty);

    let fixture = fixture.restarted().await;
    assert_eq!(fixture.registry.assignment(MACHINE).await.unwrap(), assignment);
}

#[tokio::test]
async fn protecting_again_keeps_the_disk_and_raises_its_generation() {
    let fixture = Fixture::connected().await;
    let first = fixture.protect(&["/dev/vda"]).await.unwrap().remove(0);
    assert_eq!(fixture.protect(&["/dev/vda"]).await.unwrap(), std::slice::from_ref(&first));
    fixture.registry.unprotect("operator", MACHINE, &["/dev/vda".to_owned()]).await.unwrap();
    assert!(fixture.registry.protected_disks(MACHINE).is_empty());
    let again = fixture.protect(&["/dev/vda"]).await.unwrap().remove(0);
    assert_eq!((again.id, again.generation), (first.id, Generation(2)));
    // The disk has another name after a reboot, and has grown.
    fixture.hello(vec![disk("/dev/vdc", "A", 2 << 30)]).await;
    let grown = fixture.protect(&["/dev/vdc"]).await.unwrap().remove(0);
    // A resized disk is another disk; the points of the old one stay.
    assert_ne!(grown.id, first.id);
    assert_eq!((grown.generation, grown.size_bytes), (Generation(1), 2 << 30));
    assert_eq!(fixture.registry.protected_disks(MACHINE).len(), 1);
    assert_eq!(fixture.registry.catalog.generations(first.id).await.unwrap().len(), 2);
    let reasons = fixture.registry.catalog.generations(grown.id).await.unwrap();
    assert!(reasons.last().unwrap().reason.starts_with("resized from"));
}

#[tokio::test]
async fn what_cannot_be_protected_is_refused_whole() {
    let fixture = Fixture::connected().await;
    let refused = fixture.protect(&["/dev/vda", "/dev/nope"]).await.unwrap_err().to_string();
    assert!(refused.contains("/dev/vda, /dev/vdb"), "{refused}");
    assert!(fixture.registry.protected_disks(MACHINE).is_empty());
    let wanted = Protect { interval_ms: Some(999), ..Protect::default() };
    let refused = fixture.registry.protect("operator", MACHINE, wanted).await.unwrap_err();
    assert!(matches!(refused, RegistryError::Setting(_)), "{refused}");
    let refused = fixture.registry.unprotect("operator", MACHINE, &["/dev/vdb".to_owned()]).await;
    assert!(matches!(refused, Err(RegistryError::NotProtected { .. })));
}

#[tokio::test]
async fn a_lost_trust_raises_the_generation_once() {
    let fixture = Fixture::connected().await;
    let disk = fixture.protect(&["/dev/vda"]).await.unwrap().remove(0);
    let loss = TrustLoss { disk: disk.id, generation: Generation(1), reason: "reboot".to_owned() };
    fixture.registry.raise_generation(MACHINE, loss.clone()).await.unwrap();
    fixture.registry.raise_generation(MACHINE, loss.clone()).await.unwrap();
    assert_eq!(fixture.registry.disk(disk.id).unwrap().record.generation, Generation(2));
    assert!(!fixture.registry.assignment(MACHINE).await.unwrap().disks.first().unwrap().scan_complete);
    let other = MachineId::from_bytes([9; 16]);
    assert_eq!(code(fixture.registry.raise_generation(other, loss).await), RefusalCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_revoked_machine_is_refused_until_it_enrols_again() {
    let fixture = Fixture::connected().await;
    fixture.registry.admit(MACHINE, SERIAL).await.unwrap();
    assert_eq!(
        code(fixture.registry.admit(MACHINE, CertificateSerial([8; 16])).await),
        RefusalCode::UNAUTHORIZED
    );
    fixture.registry.revoke("operator", MACHINE).await.unwrap();
    assert_eq!(code(fixture.registry.admit(MACHINE, SERIAL).await), RefusalCode::REVOKED);
    assert_eq!(code(fixture.registry.assignment(MACHINE).await), RefusalCode::REVOKED);
    let fixture = fixture.restarted().await;
    assert_eq!(code(fixture.registry.admit(MACHINE, SERIAL).await), RefusalCode::REVOKED);
    let mut anew = enrolment(3);
    anew.certificate.serial = CertificateSerial([9; 16]);
    let new = NewToken {
        hash: anew.token,
        label: String::new(),
        machine: Some(MACHINE),
        life: Duration::from_secs(60),
    };
    fixture.registry.create_token("operator", new).await.unwrap();
    assert_eq!(fixture.registry.check_token(anew.token).await.unwrap(), Some(MACHINE));
    fixture.registry.enrol(anew.clone()).await.unwrap();
    fixture.registry.admit(MACHINE, anew.certificate.serial).await.unwrap();
    assert_eq!(code(fixture.registry.admit(MACHINE, SERIAL).await), RefusalCode::REVOKED);
}

#[tokio::test]
async fn every_change_is_in_the_audit() {
    let fixture = Fixture::connected().await;
    fixture.protect(&["/dev/vda"]).await.unwrap();
    fixture.registry.unprotect("operator", MACHINE, &[]).await.unwrap();
    fixture.registry.revoke("operator", MACHINE).await.unwrap();
    let audit = fixture.registry.catalog.audit(Timestamp(0), 10).await.unwrap();
    let mut acts: Vec<&str> = audit.iter().map(|entry| entry.what.as_str()).collect();
    acts.sort_unstable();
    assert_eq!(acts, ["enrol", "protect", "revoke", "token create", "unprotect"]);
}

#[tokio::test]
async fn reports_and_voided_cuts_are_kept() {
    let fixture = Fixture::connected().await;
    let disk = fixture.protect(&["/dev/vda"]).await.unwrap().remove(0);
    let report = |at_us| DiskReport {
        disk: disk.id,
        health: DiskHealth::Protected,
        capture: "tracked".to_owned(),
        path: "/dev/vda".to_owned(),
        marked: BlockCount(3),
        unacknowledged_bytes: 0,
        scanned_to: BlockIndex(0),
        written_bytes: 4_000_000,
        at: Timestamp(at_us),
    };
    let now = fixture.clock.wall().0;
    fixture.registry.record_report(MACHINE, report(now - 500));
    fixture.clock.advance(Duration::from_secs(2));
    fixture.registry.record_report(MACHINE, report(now + 2_000_000 - 200));
    assert_eq!(fixture.registry.disk(disk.id).unwrap().written_bytes_per_second, 2_000_000);
    assert_eq!(fixture.registry.clock_offset_us(MACHINE), 200);
    let voided = CutVoided { request: Some(4), at: Timestamp(9), reason: "frozen too long".to_owned() };
    fixture.registry.record_void(MACHINE, voided).await.unwrap();
    let kept = fixture.registry.catalog.voided_cuts(MACHINE, 10).await.unwrap();
    assert_eq!(kept.first().unwrap().request, Some(4));
}

#[test]
fn the_first_common_field_decides_whether_disks_are_the_same() {
    let identity = |wwid: Option<&str>, serial: Option<&str>, bus: Option<&str>| DiskIdentity {
        wwid: wwid.map(str::to_owned),
        serial: serial.map(str::to_owned),
        bus_path: bus.map(str::to_owned),
        ..DiskIdentity::default()
    };
    assert!(same_disk(&identity(Some("w"), Some("1"), None), &identity(Some("w"), Some("2"), None)));
    assert!(!same_disk(&identity(Some("w"), Some("1"), None), &identity(Some("x"), Some("1"), None)));
    assert!(same_disk(&identity(Some("w"), Some("1"), None), &identity(None, Some("1"), Some("p"))));
    assert!(!same_disk(&identity(Some("w"), None, None), &identity(None, Some("1"), None)));
    assert!(!same_disk(&DiskIdentity::default(), &DiskIdentity::default()));
}

#[tokio::test]
async fn machines_are_found_by_name_id_and_beginning() {
    let fixture = Fixture::connected().await;
    let resolve = |given: &str| fixture.registry.resolve(given);
    assert_eq!(resolve("web-1").unwrap(), MACHINE);
    assert_eq!(resolve(&MACHINE.to_string()).unwrap(), MACHINE);
    assert_eq!(resolve("0101").unwrap(), MACHINE);
    assert!(matches!(resolve("010"), Err(RegistryError::MachineUnknown { .. })));
    assert!(matches!(resolve("web-2"), Err(RegistryError::MachineUnknown { .. })));
    assert_eq!(fixture.registry.machine(MACHINE).unwrap().record.state, MachineState::Enrolled);
}

#[test]
fn health_says_what_is_wrong() {
    let good = MachineFacts {
        revoked: false,
        connected: true,
        ever_connected: true,
        disk_count: 1,
        scans_complete: true,
        point_age: Some(Duration::from_secs(12)),
        interval: Duration::from_secs(10),
        rpo: Some(Duration::from_secs(2)),
        ..MachineFacts::default()
    };
    let level = |facts: MachineFacts| worst(&machine_findings(&facts));
    assert_eq!(level(good.clone()), Level::Healthy);
    assert_eq!(level(MachineFacts { revoked: true, ..good.clone() }), Level::Critical);
    assert_eq!(level(MachineFacts { connected: false, ..good.clone() }), Level::Critical);
    assert_eq!(level(MachineFacts { ever_connected: false, ..good.clone() }), Level::Warning);
    assert_eq!(level(MachineFacts { disk_count: 0, ..good.clone() }), Level::Warning);
    assert_eq!(level(MachineFacts { point_age: None, ..good.clone() }), Level::Warning);
    assert_eq!(
        level(MachineFacts { point_age: None, scans_complete: false, ..good.clone() }),
        Level::Healthy
    );
    assert_eq!(
        level(MachineFacts { point_age: Some(Duration::from_secs(40)), ..good.clone() }),
        Level::Warning
    );
    assert_eq!(
        level(MachineFacts { point_age: Some(Duration::from_secs(106)), ..good.clone() }),
        Level::Critical
    );
    assert_eq!(level(MachineFacts { voided_since: 3, ..good.clone() }), Level::Warning);

    let because = Some("frozen too long".to_owned());
    let voided = machine_findings(&MachineFacts { voided_since: 4, voided_because: because, ..good.clone() });
    assert!(
        voided[0].reason.contains("4 cuts") && voided[0].reason.contains("frozen too long"),
        "{voided:?}"
    );
    let gap = |ended| Some(("no points between a and b".to_owned(), Duration::from_secs(ended)));
    assert_eq!(level(MachineFacts { gap: gap(60), ..good.clone() }), Level::Warning);
    assert_eq!(level(MachineFacts { gap: gap(3_600), ..good.clone() }), Level::Healthy);

    let disk = |health, age| {
        let report = Some((health, Duration::from_secs(age)));
        let facts = DiskFacts { connected: true, report, size_bytes: 5, compared_anew_because: None };
        worst(&disk_findings(&facts))
    };
    assert_eq!(disk(DiskHealth::Protected, 1), Level::Healthy);
    assert_eq!(disk(DiskHealth::Protected, 61), Level::Warning);
    assert_eq!(disk(DiskHealth::Scanning, 1), Level::Warning);
    assert_eq!(disk(DiskHealth::Missing, 1), Level::Critical);
    assert_eq!(disk(DiskHealth::Resized { size_bytes: 6 }, 1), Level::Critical);
    assert_eq!(disk(DiskHealth::Failed("no BTF".to_owned()), 1), Level::Critical);
}

/// A machine at its target is said to be as well protected as it is, and no better.
#[test]
fn a_machine_at_its_target_is_judged_by_the_points_that_are_made_there() {
    let (job, by, point) =
        (JobId::from_bytes([8; 16]), JobId::from_bytes([7; 16]), PointId::from_bytes([9; 16]));
    let committed = Stage::Committed { job, point };
    let reversed = Stage::ProtectedReversed { job, point };
    let on_its_way = Stage::FailingBack { job, point, by };
    let found = |stage, age| {
        let failed_over = FailedOver { stage, told: None };
        let facts = MachineFacts {
            ever_connected: true,
            disk_count: 1,
            interval: Duration::from_secs(10),
            point_age: Some(Duration::from_secs(age)),
            failed_over: Some(failed_over),
            ..MachineFacts::default()
        };
        let findings = machine_findings(&facts);
        (worst(&findings), findings.into_iter().map(|finding| finding.reason).collect::<String>())
    };
    let (level, text) = found(committed, 1000);
    assert!(level == Level::Warning && text.contains("is not replicated"), "{text}");
    assert_eq!(found(reversed, 12), (Level::Healthy, String::new()));
    let (level, text) = found(reversed, 106);
    assert!(level == Level::Critical && text.contains("106 s old"), "{text}");
    let (level, text) = found(on_its_way, 12);
    assert!(level == Level::Warning && text.contains("is replicated from there"), "{text}");
}

#[test]
fn thresholds_decide_what_is_worth_a_warning() {
    let ages =
        |warning: u64, critical: u64| Some(Ages { warning_ms: warning * 1000, critical_ms: critical * 1000 });
    let seconds = |number| Some(Duration::from_secs(number));
    let level = |thresholds, point_age, rpo, app_age| {
        let facts = MachineFacts {
            connected: true,
            ever_connected: true,
            disk_count: 1,
            scans_complete: true,
            interval: Duration::from_secs(10),
            thresholds,
            point_age: seconds(point_age),
            rpo: seconds(rpo),
            app_age,
            ..MachineFacts::default()
        };
        worst(&machine_findings(&facts))
    };
    let none = Thresholds::default();
    assert_eq!(level(none, 30, 100, None), Level::Healthy);
    let lag = Thresholds { lag: ages(20, 40), ..none };
    assert_eq!([level(lag, 20, 0, None), level(lag, 21, 0, None)], [Level::Healthy, Level::Warning]);
    assert_eq!(level(lag, 41, 0, None), Level::Critical);
    let rpo = Thresholds { rpo: ages(5, 50), ..none };
    assert_eq!([level(rpo, 1, 6, None), level(rpo, 1, 51, None)], [Level::Warning, Level::Critical]);
    let app = Thresholds { app: ages(60, 600), ..none };
    assert_eq!([level(app, 1, 1, None), level(app, 1, 1, seconds(60))], [Level::Warning, Level::Healthy]);
    assert_eq!(level(app, 1, 1, seconds(601)), Level::Critical);
    for wrong in [ages(0, 1), ages(2, 1), ages(1, 400 * 86_400)] {
        assert!(Thresholds { lag: wrong, ..none }.check().is_err(), "{wrong:?}");
    }
    assert!(Thresholds { voided: Some(0), ..none }.check().is_err());
    assert!(lag.check().is_ok());
}

#[tokio::test]
async fn thresholds_are_kept() {
    let fixture = Fixture::connected().await;
    let thresholds = Thresholds { voided: Some(7), ..Thresholds::default() };
    fixture.registry.set_thresholds("operator", MACHINE, thresholds).await.unwrap();
    let fixture = fixture.restarted().await;
    assert_eq!(fixture.registry.machine(MACHINE).unwrap().thresholds, thresholds);
}

#[tokio::test]
async fn the_source_of_a_failed_over_machine_is_fenced_until_the_failover_is_taken_back() {
    let fixture = Fixture::connected().await;
    let disk = fixture.protect(&["/dev/vda"]).await.unwrap().remove(0);
    let (job, point) = (JobId::from_bytes([8; 16]), PointId::from_bytes([9; 16]));
    let advance = async |fixture: &Fixture, event| fixture.registry.advance("operator", MACHINE, event).await;
    advance(&fixture, LifecycleEvent::BeginFailover(job)).await.unwrap();
    fixture.registry.admit(MACHINE, SERIAL).await.unwrap();
    advance(&fixture, LifecycleEvent::Switch(job, point)).await.unwrap();
    // Whatever restarts: nothing of the old source is taken, and its tries are seen.
    let fixture = fixture.restarted().await;
    assert_eq!(code(fixture.registry.admit(MACHINE, SERIAL).await), RefusalCode::FENCED);
    assert_eq!(code(fixture.registry.assignment(MACHINE).await), RefusalCode::FENCED);
    assert!(fixture.registry.machine(MACHINE).unwrap().told_fenced_at.is_some());
    // One that stands by as fenced knows it as well.
    let fixture = fixture.restarted().await;
    fixture.registry.admit_fenced(MACHINE, SERIAL).await.unwrap();
    assert!(fixture.registry.machine(MACHINE).unwrap().told_fenced_at.is_some());
    let refused = advance(&fixture, LifecycleEvent::BeginFailover(JobId::from_bytes([7; 16]))).await;
    assert!(matches!(refused, Err(RegistryError::Lifecycle(_))), "{refused:?}");
    // Taken back: the same line of history goes on, so nothing is compared.
    advance(&fixture, LifecycleEvent::Unswitch(job)).await.unwrap();
    let assigned = fixture.registry.assignment(MACHINE).await.unwrap();
    assert_eq!(assigned.disks[0].generation, disk.generation);
    fixture.registry.admit(MACHINE, SERIAL).await.unwrap();
    // Committed: what the source holds is of an old line from then on, also when it comes back.
    for event in [LifecycleEvent::Switch(job, point), LifecycleEvent::Commit, LifecycleEvent::Resume] {
        advance(&fixture, event).await.unwrap();
    }
    let assigned = fixture.registry.assignment(MACHINE).await.unwrap();
    assert_eq!(assigned.disks[0].generation, disk.generation.next());
}

#[tokio::test]
async fn a_rebuilt_catalog_keeps_the_fence_and_the_thresholds() {
    let fixture = Fixture::connected().await;
    let thresholds = Thresholds { voided: Some(7), ..Thresholds::default() };
    fixture.registry.set_thresholds("operator", MACHINE, thresholds).await.unwrap();
    let (job, point) = (JobId::from_bytes([8; 16]), PointId::from_bytes([9; 16]));
    for event in [LifecycleEvent::BeginFailover(job), LifecycleEvent::Switch(job, point)] {
        fixture.registry.advance("operator", MACHINE, event).await.unwrap();
    }
    let status = fixture.registry.machine(MACHINE).unwrap();
    let described = Description::new(&status, &[], &[], Timestamp(0));
    let described = Description::parse(&serde_json::to_vec(&described).unwrap()).unwrap();
    let body = serde_json::to_string(&status.lifecycle).unwrap();
    let changes = described.changes(Timestamp(0));
    assert!(changes.contains(&Change::PutLifecycle(MACHINE, body)));
    let body = serde_json::to_string(&thresholds).unwrap();
    assert!(changes.contains(&Change::PutThresholds(MACHINE, body)));
}
