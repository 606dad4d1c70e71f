//! The catalog's contract, against SQLite in a real file.

use holdfast_common::{
    clock::Timestamp,
    frame::{Consistency, CutMethod, CutMore, GroupMark},
    ids::{DiskId, Generation, GroupCutId, GroupId, JobId, MachineId, PointId, Sequence},
    wire::DiskIdentity,
};
use uuid::Uuid;

use super::{
    Catalog, CatalogError, Change, SqliteCatalog, VOIDED_CUTS_KEPT,
    record::{
        AuditRecord, CertificateRecord, DiskRecord, GenerationRecord, GroupMemberRecord, GroupRecord,
        JobEventRow, LeaseRecord, MachineRecord, MachineState, PlanRecord, PointDiskRecord, PointRecord,
        PointState, PolicyRecord, RetentionTier, TokenRecord, VoidedCutRecord, VoidedGroupCutRecord,
        WitnessRecord,
    },
};

const MACHINE: MachineId = MachineId::from_bytes([1; 16]);
const DISK: DiskId = DiskId::from_bytes([2; 16]);

async fn open(folder: &tempfile::TempDir) -> SqliteCatalog {
    SqliteCatalog::open(&folder.path().join("catalog.sqlite")).await.unwrap()
}

fn machine() -> MachineRecord {
    MachineRecord {
        id: MACHINE,
        name: "web-1".to_owned(),
        state: MachineState::Enrolled,
        enrolled_at: Timestamp(100),
        last_seen_at: None,
        agent_version: String::new(),
        inventory: None,
    }
}

fn disk() -> DiskRecord {
    DiskRecord {
        id: DISK,
        machine: MACHINE,
        path: "/dev/vda".to_owned(),
        identity: DiskIdentity { serial: Some("S1".to_owned()), ..DiskIdentity::default() },
        size_bytes: 1 << 40,
        generation: Generation(1),
        protected_at: Timestamp(101),
        unprotected_at: None,
    }
}

fn point(number: u8) -> PointRecord {
    PointRecord {
        id: PointId::from_bytes([number; 16]),
        machine: MACHINE,
        state: PointState::Pending,
        void_reason: None,
        cut_at: Timestamp(1000 + i64::from(number)),
        durable_at: Timestamp(2000),
        rpo_us: 7,
        method: CutMethod::QuietWindow,
        consistency: Consistency::Crash,
        hold_us: 5,
        request: Some(3),
        notes: vec!["swap was written".to_owned()],
        disks: vec![PointDiskRecord {
            disk: DISK,
            generation: Generation(1),
            sequence: Sequence(9),
            stored_bytes: 512,
        }],
        verified_at: None,
        witness: WitnessRecord::default(),
        more: CutMore::default(),
    }
}

async fn with_machine(folder: &tempfile::TempDir) -> SqliteCatalog {
    let catalog = open(folder).await;
    catalog.apply(vec![Change::PutMachine(machine()), Change::PutDisk(disk())]).await.unwrap();
    catalog
}

#[tokio::test]
async fn everything_is_read_back_as_written_also_by_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = CertificateRecord {
        serial: vec![9; 20],
        machine: MACHINE,
        issued_at: Timestamp(1),
        expires_at: Timestamp(2),
        revoked_at: None,
    };
    let generation =
        GenerationRecord { disk: DISK, number: Generation(1), reason: "first".to_owned(), at: Timestamp(5) };
    let policy = PolicyRecord {
        machine: MACHINE,
        interval_ms: 10_000,
        retention_seconds: 86_400,
        retention_tiers: vec![RetentionTier { every_seconds: 3_600, until_seconds: 2_592_000 }],
        hold_ms_max: 2_000,
        send_bytes_per_second_max: 0,
        scan_bytes_per_second_max: 1,
        application_interval_ms: 60_000,
        application_strict: true,
        drill: crate::drills::DrillPolicy { every_ms: 86_400_000, ..Default::default() },
    };
    let event =
        JobEventRow { job: JobId::from_bytes([4; 16]), number: 1, at: Timestamp(3), body: "{}".to_owned() };
    let entry = AuditRecord {
        id: Uuid::from_bytes([8; 16]),
        at: Timestamp(6),
        who: "operator root".to_owned(),
        what: "protect".to_owned(),
        subject: "web-1".to_owned(),
        detail: "/dev/vda".to_owned(),
    };
    let lease = LeaseRecord { point: point(1).id, holder: "job".to_owned(), since: Timestamp(4) };
    let catalog = with_machine(&folder).await;
    let changes = vec![
        Change::PutCertificate(certificate.clone()),
        Change::AddGeneration(generation.clone()),
        Change::PutPolicy(policy.clone()),
        Change::AddPoint(point(1)),
        Change::AddJobEvent(event.clone()),
        Change::Audit(entry.clone()),
        Change::PutLease(lease.clone()),
    ];
    catalog.apply(changes).await.unwrap();
    catalog.close().await;

    let catalog = open(&folder).await;
    assert_eq!(catalog.machines().await.unwrap(), [machine()]);
    assert_eq!(catalog.disks().await.unwrap(), [disk()]);
    assert_eq!(catalog.certificates(MACHINE).await.unwrap(), std::slice::from_ref(&certificate));
    assert_eq!(catalog.certificate(vec![9; 20]).await.unwrap(), Some(certificate));
    assert_eq!(catalog.certificate(vec![9; 19]).await.unwrap(), None);
    assert_eq!(catalog.generations(DISK).await.unwrap(), [generation]);
    assert_eq!(catalog.policies().await.unwrap(), [policy]);
    assert_eq!(catalog.points(MACHINE, 10).await.unwrap(), [point(1)]);
    assert_eq!(catalog.point(point(1).id).await.unwrap(), Some(point(1)));
    assert_eq!(catalog.job_events().await.unwrap(), std::slice::from_ref(&event));
    catalog.apply(vec![Change::ForgetJob(event.job)]).await.unwrap();
    assert!(catalog.job_events().await.unwrap().is_empty());
    assert_eq!(catalog.audit(Timestamp(6), 10).await.unwrap(), [entry]);
    assert!(catalog.audit(Timestamp(7), 10).await.unwrap().is_empty());
    assert_eq!(catalog.leases().await.unwrap(), [lease]);
}

#[tokio::test]
async fn a_list_of_changes_is_made_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = open(&folder).await;
    let use_token = Change::UseToken { hash: [7; 32], machine: MACHINE, at: Timestamp(1) };
    let refused = catalog.apply(vec![Change::PutMachine(machine()), use_token]).await;
    assert!(matches!(refused, Err(CatalogError::Conflict(_))), "{refused:?}");
    assert!(catalog.machines().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_token_works_once_and_not_after_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = with_machine(&folder).await;
    let token = |hash, expires_at| TokenRecord {
        hash: [hash; 32],
        label: String::new(),
        machine: None,
        created_at: Timestamp(0),
        expires_at: Timestamp(expires_at),
        used_at: None,
        used_by: None,
    };
    catalog.apply(vec![Change::PutToken(token(1, 100)), Change::PutToken(token(2, 50))]).await.unwrap();
    let use_it = |hash| Change::UseToken { hash: [hash; 32], machine: MACHINE, at: Timestamp(50) };
    catalog.apply(vec![use_it(1)]).await.unwrap();
    assert!(matches!(catalog.apply(vec![use_it(1)]).await, Err(CatalogError::Conflict(_))));
    assert!(matches!(catalog.apply(vec![use_it(2)]).await, Err(CatalogError::Conflict(_))));
    let tokens = catalog.tokens().await.unwrap();
    assert_eq!(tokens.first().unwrap().used_by, Some(MACHINE));
    assert_eq!(tokens.last().unwrap().used_by, None);
}

#[tokio::test]
async fn points_come_newest_first_and_a_leased_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = with_machine(&folder).await;
    for number in [2, 1, 3] {
        catalog.apply(vec![Change::AddPoint(point(number)), Change::AddPoint(point(number))]).await.unwrap();
    }
    let ids =
        |points: Vec<PointRecord>| points.iter().map(|point| point.id.0.as_bytes()[0]).collect::<Vec<_>>();
    assert_eq!(ids(catalog.points(MACHINE, 2).await.unwrap()), [3, 2]);
    let lease = LeaseRecord { point: point(1).id, holder: "job".to_owned(), since: Timestamp(4) };
    let all = (1..=3).map(|number| point(number).id).collect();
    catalog.apply(vec![Change::PutLease(lease), Change::RemovePoints(all)]).await.unwrap();
    assert_eq!(ids(catalog.points(MACHINE, 9).await.unwrap()), [1]);
    let state = Change::SetPointState(point(1).id, PointState::Void, Some("damaged".to_owned()));
    let end = Change::EndLeases("job".to_owned());
    catalog.apply(vec![state, end]).await.unwrap();
    let found = catalog.point(point(1).id).await.unwrap().unwrap();
    assert_eq!((found.state, found.void_reason.as_deref()), (PointState::Void, Some("damaged")));
    catalog.apply(vec![Change::RemovePoints(vec![point(1).id])]).await.unwrap();
    assert_eq!(catalog.point(point(1).id).await.unwrap(), None);
}

#[tokio::test]
async fn voided_cuts_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = with_machine(&folder).await;
    let cut = |at| {
        let reason = "frozen too long".to_owned();
        Change::AddVoidedCut(VoidedCutRecord { machine: MACHINE, at: Timestamp(at), request: None, reason })
    };
    let total = i64::from(VOIDED_CUTS_KEPT) + 5;
    catalog.apply((0..total).map(cut).collect()).await.unwrap();
    let kept = catalog.voided_cuts(MACHINE, u32::MAX).await.unwrap();
    assert_eq!(kept.len(), VOIDED_CUTS_KEPT as usize);
    assert_eq!(kept.first().unwrap().at, Timestamp(total - 1));
}

#[tokio::test]
async fn numbers_that_are_taken_are_a_conflict() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = with_machine(&folder).await;
    let generation = Change::AddGeneration(GenerationRecord {
        disk: DISK,
        number: Generation(2),
        reason: "reboot".to_owned(),
        at: Timestamp(1),
    });
    catalog.apply(vec![generation.clone()]).await.unwrap();
    assert!(matches!(catalog.apply(vec![generation]).await, Err(CatalogError::Conflict(_))));
}

#[tokio::test]
async fn a_catalog_of_a_newer_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = open(&folder).await;
    sqlx::query("INSERT INTO _sqlx_migrations VALUES (999, 'later', '2030-01-01', 1, x'00', 0)")
        .execute(&catalog.writer_for_tests())
        .await
        .unwrap();
    catalog.close().await;
    let refused = SqliteCatalog::open(&folder.path().join("catalog.sqlite")).await;
    assert!(matches!(refused, Err(CatalogError::Version(_))), "{refused:?}");
}

#[tokio::test]
async fn a_damaged_page_is_told_when_the_catalog_is_opened() {
    const PAGE: usize = 4096;
    let folder = tempfile::tempdir().unwrap();
    with_machine(&folder).await.close().await;
    let path = folder.path().join("catalog.sqlite");
    let good = std::fs::read(&path).unwrap();
    for page in 0..good.len() / PAGE {
        let mut bytes = good.clone();
        bytes[page * PAGE..page * PAGE + 512].fill(0);
        std::fs::write(&path, bytes).unwrap();
        assert!(SqliteCatalog::open(&path).await.is_err(), "page {page} is not missed");
    }
}

fn group(name: &str, number: u8) -> GroupRecord {
    GroupRecord {
        id: GroupId::from_bytes([number; 16]),
        name: name.to_owned(),
        interval_ms: 10_000,
        wait_ms_max: 500,
        application_interval_ms: 0,
        lag_warning_ms: 30_000,
        lag_critical_ms: 60_000 * u64::from(number),
        created_at: Timestamp(7),
    }
}

#[tokio::test]
async fn groups_have_members_and_voided_cuts_until_they_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = with_machine(&folder).await;
    let (shop, other) = (group("shop", 5), group("other", 6));
    let member = |group: &GroupRecord| GroupMemberRecord {
        machine: MACHINE,
        group: group.id,
        joined_at: Timestamp(8),
    };
    let void = VoidedGroupCutRecord {
        cut: GroupCutId::from_bytes([4; 16]),
        group: shop.id,
        at: Timestamp(9),
        machine: Some(MACHINE),
        reason: "it was not ready in time".to_owned(),
    };
    let changes = vec![
        Change::PutGroup(shop.clone()),
        Change::PutGroup(other.clone()),
        Change::PutGroupMember(member(&shop)),
        Change::AddVoidedGroupCut(void.clone()),
    ];
    catalog.apply(changes).await.unwrap();
    assert_eq!(catalog.groups().await.unwrap(), [other.clone(), shop.clone()]);
    assert_eq!(catalog.group_members().await.unwrap(), [member(&shop)]);
    assert_eq!(catalog.voided_group_cuts(shop.id, 10).await.unwrap(), [void]);
    // A machine is in one group at most.
    catalog.apply(vec![Change::PutGroupMember(member(&other))]).await.unwrap();
    assert_eq!(catalog.group_members().await.unwrap(), [member(&other)]);
    assert!(catalog.apply(vec![Change::PutGroup(group("shop", 7))]).await.is_err(), "the name is taken");
    catalog.apply(vec![Change::RemoveGroup(other.id), Change::RemoveGroup(shop.id)]).await.unwrap();
    assert_eq!(catalog.group_members().await.unwrap(), []);
    assert_eq!(catalog.voided_group_cuts(shop.id, 10).await.unwrap(), []);
    assert_eq!(catalog.machines().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_point_keeps_the_mark_of_its_group_cut() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = with_machine(&folder).await;
    let mark = GroupMark {
        cut: GroupCutId::from_bytes([4; 16]),
        group: GroupId::from_bytes([5; 16]),
        name: "shop".to_owned(),
        members: vec![MACHINE],
        since_held_us: 1,
        waited_us: 2,
        spread_us: 3,
    };
    let marked = PointRecord { more: CutMore { group: Some(mark), ..CutMore::default() }, ..point(1) };
    catalog.apply(vec![Change::AddPoint(marked.clone()), Change::AddPoint(point(2))]).await.unwrap();
    assert_eq!(catalog.point(marked.id).await.unwrap(), Some(marked));
    assert_eq!(catalog.point(point(2).id).await.unwrap(), Some(point(2)));
}

#[tokio::test]
async fn a_plan_is_replaced_by_the_one_of_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = open(&folder).await;
    let plan = |name: &str, text: &str, at: i64| PlanRecord {
        name: name.into(),
        text: text.into(),
        changed_at: Timestamp(at),
        changed_by: "operator anna".into(),
    };
    let (shop, older, mail) = (plan("shop", "new", 2), plan("shop", "old", 1), plan("mail", "text", 3));
    for put in [&older, &mail, &shop] {
        catalog.apply(vec![Change::PutPlan(put.clone())]).await.unwrap();
    }
    assert_eq!(catalog.plans().await.unwrap(), [mail, shop.clone()]);
    for _ in 0..2 {
        catalog.apply(vec![Change::RemovePlan("mail".into())]).await.unwrap();
    }
    assert_eq!(catalog.plans().await.unwrap(), [shop]);
}
