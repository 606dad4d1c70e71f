//! Every kind of file in which something lives on from one version to the next has a proof that it is still read as it was first
//! written: a committed file and what must come out of it, or a test elsewhere.
//!
//! A new kind of file in the data folder is found by the corruption test, which has it listed in `file_kinds`; a row here is then
//! missing. Fixtures are written once, by [`write_missing_fixtures`]; a new version of a format gets a row and a file of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use holdfast_agent::{
    engine::Incarnations,
    identity::{Identity, IdentityStore},
};
use holdfast_common::{
    clock::{ManualClock, Timestamp},
    entropy::SeededEntropy,
    ids::{DiskId, Generation, JobId, MachineId, PointId, Sequence},
    tls::MachineKey,
    units::BlockRange,
    wire::Firmware,
};
use holdfast_coordinator::{
    authority::{Authority, MACHINE_LIFE_DEFAULT},
    catalog::{
        Change,
        record::{OperatorRecord, Role},
    },
    compute::{
        machines::{StartedMachine, Suited},
        port::{Endpoint, ImageFile, ImageFormat},
    },
    drills::{self, Drill, DrillBook as _, DrillFolder, DrillRecord},
    failover::{
        job::{FailoverSpec, JobSpec, Mode, Output, StepKind, Target, WayBackSpec},
        log::{self, Event, Record, Then},
        plan::{
            Action, Member, MemberOutcome, MemberState, OnError, Place, PlanGroup, PlanSpec, PlanStep, What,
            When,
            course::{Course, Direction},
            file::FileTarget,
            read,
        },
        port::LogRecord,
    },
    points::selection::Selection,
    readiness::{Report, Verdict, record::ReadinessRecord},
    registry::{
        health::{Finding, Level},
        operators_record::OperatorsRecord,
    },
    store::{Alarm, Difference, DiskLog, Store},
};
use holdfast_tests::{
    file_kinds,
    journal::{DISK, settings},
    site::program,
};
use tempfile::TempDir;

use crate::promises::there_is;

const MACHINE: MachineId = MachineId::from_bytes([0x22; 16]);
const POINT: PointId = PointId::from_bytes([0x33; 16]);
const JOB: JobId = JobId::from_bytes([0x44; 16]);
const AT: Timestamp = Timestamp(1_800_000_000_000_000);

/// How it is known that old files of a kind are still read.
enum Proof {
    /// A committed file, how today's code writes one that says the same, and what must come out of both.
    Fixture { file: &'static str, write: OnFile, read: OnFile },
    /// A test elsewhere, as `file: test`.
    Test(&'static str),
}

use Proof::{Fixture, Test};

/// One row for each kind of file, and for each version of it that differs.
const PROOFS: &[(&str, Proof)] = &[
    ("authority/authority.crt", Test("tests/formats/files.rs: a_ca_folder_is_the_same_authority")),
    ("authority/authority.key", Test("tests/formats/files.rs: a_ca_folder_is_the_same_authority")),
    (
        "branches/*/vda.branch",
        Test("tests/formats/files.rs: a_branch_opens_in_its_boot_and_in_another_and_a_newer_one_does_not"),
    ),
    ("catalog.sqlite", Test("tests/formats/files.rs: a_catalog_of_the_first_version_opens")),
    ("catalog.sqlite", Fixture { file: "job-events.txt", write: write_events, read: read_events }),
    ("drills/*.json", Fixture { file: "drills.json", write: write_drills, read: read_drills }),
    (
        "machines/*.json",
        Test("tests/formats/files.rs: a_description_of_the_first_version_is_read_and_a_newer_one_is_not"),
    ),
    ("operators.json", Fixture { file: "operators.json", write: write_operators, read: read_operators }),
    ("plans/shop.toml", Fixture { file: "shop.toml", write: write_plan, read: read_plan }),
    ("readiness/*.json", Fixture { file: "readiness.json", write: write_readiness, read: read_readiness }),
    (
        "store/disks/*/audit.json",
        Test("tests/formats/files.rs: records_beside_a_log_are_read_as_they_were_first_written"),
    ),
    (
        "store/disks/*/checks.json",
        Test("tests/formats/files.rs: records_beside_a_log_are_read_as_they_were_first_written"),
    ),
    (
        "store/disks/*/damaged.json",
        Fixture { file: "damaged.json", write: write_damaged, read: read_damaged },
    ),
    (
        "store/disks/*/differs.json",
        Fixture { file: "differs.json", write: write_differs, read: read_differs },
    ),
    (
        "store/disks/*/index/*",
        Test("tests/formats/files.rs: index_runs_of_both_versions_open_and_a_newer_one_does_not"),
    ),
    (
        "store/disks/*/journal/*.segment",
        Test("tests/formats/files.rs: segments_open_with_and_without_footer"),
    ),
    (
        "store/disks/*/kept",
        Test("tests/formats/files.rs: a_record_of_what_is_kept_opens_and_a_newer_one_does_not"),
    ),
    (
        "store/disks/*/kept.copy",
        Test("tests/formats/files.rs: a_record_of_what_is_kept_opens_and_a_newer_one_does_not"),
    ),
    ("store/disks/*/manifest", Test("tests/formats/files.rs: a_manifest_opens_and_a_newer_one_does_not")),
    ("IMAGE.holdfast.json", Test("coordinator/src/compute/image/record/tests.rs: the_format_stays")),
    ("vm/*/machine.json", Test("coordinator/src/compute/vm/mod.rs: a_machine_of_the_first_version_is_read")),
    ("agent/identity.json", Fixture { file: "identity.json", write: write_identity, read: read_identity }),
    (
        "agent/incarnations.json",
        Fixture { file: "incarnations.json", write: write_incarnations, read: read_incarnations },
    ),
    ("agent/incarnations.json", Test("agent/src/engine/incarnation.rs: the_first_version_is_read")),
    (
        "agent/hooks-frozen",
        Test("tests/formats/kinds.rs: hooks_that_an_agent_of_the_first_version_left_frozen_are_thawed"),
    ),
    (
        "agent/source-stopped",
        Test("agent/src/source/tests.rs: what_an_agent_of_the_first_version_has_stopped_is_started_again"),
    ),
];

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("formats/fixtures")
}

/// What is done with a file.
type OnFile = fn(&Path);

/// The fixtures: file, writer, reader.
fn rows() -> impl Iterator<Item = (&'static str, OnFile, OnFile)> {
    PROOFS.iter().filter_map(|(_, proof)| match proof {
        Fixture { file, write, read } => Some((*file, *write, *read)),
        Test(_) => None,
    })
}

#[test]
#[ignore = "writes fixtures that are not there yet"]
fn write_missing_fixtures() {
    for (file, write, _) in rows() {
        let path = fixtures().join(file);
        if !path.exists() {
            write(&path);
        }
    }
}

#[test]
fn every_kind_of_file_is_read_as_it_was_first_written() {
    for (file, write, read) in rows() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join(file);
        fs::copy(fixtures().join(file), &path).unwrap_or_else(|error| panic!("{file}: {error}"));
        read(&path);
        // So that the row is about what is written today as well.
        fs::remove_file(&path).unwrap();
        write(&path);
        read(&path);
    }
}

#[test]
fn no_kind_of_file_is_forgotten() {
    let known: BTreeSet<&str> = file_kinds::DATA_FOLDER.into_iter().chain(file_kinds::ELSEWHERE).collect();
    let proved: BTreeSet<&str> = PROOFS.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(known, proved);
    for (kind, proof) in PROOFS {
        if let Test(named) = proof {
            there_is(kind, named);
        }
    }
}

fn operators() -> Vec<OperatorRecord> {
    let operator = |name: &str, role, revoked_at| OperatorRecord {
        name: name.to_owned(),
        role,
        hash: [name.len() as u8; 32],
        created_at: AT,
        expires_at: Timestamp(AT.0 + 5_000_000),
        revoked_at,
    };
    vec![
        operator("anna", Role::Viewer, None),
        operator("bo", Role::Operator, Some(Timestamp(AT.0 + 1))),
        operator("c", Role::Admin, None),
    ]
}

fn write_operators(path: &Path) {
    fs::write(path, serde_json::to_vec_pretty(&OperatorsRecord::new(&operators())).unwrap()).unwrap();
}

fn read_operators(path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    let (changes, strange) = OperatorsRecord::parse(text.as_bytes()).unwrap().changes();
    let expected: Vec<Change> = operators().into_iter().map(Change::PutOperator).collect();
    assert_eq!((changes, strange), (expected, Vec::new()));
    let newer = text.replacen("\"version\": 1", "\"version\": 2", 1);
    assert!(OperatorsRecord::parse(newer.as_bytes()).unwrap_err().contains("version 2"));
}

fn drill_records() -> Vec<DrillRecord> {
    let picture = PathBuf::from("/data/drills/m/j.png");
    let drill = |number: u8, ok, point, screenshot| DrillRecord {
        job: JobId::from_bytes([number; 16]),
        point,
        at: AT,
        ok,
        rto_us: u64::from(number) * 1_000_000,
        text: "it said login:".to_owned(),
        screenshot,
    };
    vec![drill(2, true, Some(POINT), Some(picture)), drill(1, false, None, None)]
}

fn write_drills(path: &Path) {
    let folder = TempDir::new().unwrap();
    let book = DrillFolder::new(folder.path().to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for drill in drill_records().into_iter().rev() {
        runtime.block_on(book.record(MACHINE, drill)).unwrap();
    }
    fs::copy(folder.path().join(format!("{MACHINE}.json")), path).unwrap();
}

fn read_drills(path: &Path) {
    let folder = TempDir::new().unwrap();
    fs::copy(path, folder.path().join(format!("{MACHINE}.json"))).unwrap();
    assert_eq!(DrillFolder::new(folder.path().to_owned()).list(MACHINE), drill_records());
    let newer = fs::read_to_string(path).unwrap().replacen("\"version\": 1", "\"version\": 2", 1);
    assert!(drills::parse(newer.as_bytes()).unwrap_err().contains("version 2"));
}

fn report() -> Report {
    let finding =
        Finding { level: Level::Warning, reason: "no driver".to_owned(), advice: "add one".to_owned() };
    Report {
        verdict: Verdict::Doubtful,
        findings: vec![finding],
        seen: vec!["Debian".to_owned()],
        not_looked_into: vec!["/dev/vdb: LUKS".to_owned()],
        suited: Suited { firmware: vec![Firmware::Uefi], disk_models: vec!["virtio".to_owned()] },
    }
}

fn write_readiness(path: &Path) {
    ReadinessRecord::new(AT, POINT.to_string(), "b1".to_owned(), report()).store(path).unwrap();
}

fn read_readiness(path: &Path) {
    let record = ReadinessRecord::load(path).unwrap();
    assert_eq!((record.at_us, record.point.clone(), record.basis.as_str()), (AT.0, POINT.to_string(), "b1"));
    assert_eq!(record.report, report());
    fs::write(path, fs::read_to_string(path).unwrap().replacen("\"version\": 1", "\"version\": 2", 1))
        .unwrap();
    assert_eq!(ReadinessRecord::load(path), None);
}

const PLAN: &str = r#"# Everything that a plan may say.
name = "shop"
description = "the shop and what it needs"
point = "latest-app-consistent"
target = "vm"

[networks]
eth0 = "br0"

[test_networks]
eth0 = "isolated"

[[group]]
name = "data"
machines = ["db-1"]
time_limit = "20m"
on_error = "continue"

[[group.before]]
script = ["/usr/local/sbin/dns", "to", "there"]
on = "coordinator"
direction = "to-target"
time_limit = "30s"
on_error = "continue"

[[group]]
name = "front"
machines = ["web-1", "web-2"]
needs = ["data"]

[[group.after]]
manual = "Look at the shop."
"#;

fn write_plan(path: &Path) {
    fs::write(path, PLAN).unwrap();
}

fn read_plan(path: &Path) {
    let (plan, mistakes) = read::read(&fs::read_to_string(path).unwrap());
    assert_eq!(mistakes, Vec::new());
    assert_eq!((plan.name.as_str(), plan.description.as_str()), ("shop", "the shop and what it needs"));
    assert_eq!(
        (plan.selection, plan.target.clone()),
        (Selection::LatestAppConsistent, FileTarget::Machine { stream: false })
    );
    assert_eq!((plan.networks["eth0"].as_str(), plan.test_networks["eth0"].as_str()), ("br0", "isolated"));
    assert_eq!(plan.machines().collect::<Vec<_>>(), ["db-1", "web-1", "web-2"]);
    let [data, front] = plan.groups.as_slice() else { panic!("{plan:?}") };
    assert_eq!(
        (data.time_limit_ms, data.on_error, front.on_error),
        (1_200_000, OnError::Continue, OnError::Stop)
    );
    assert_eq!((data.needs.clone(), front.needs.clone()), (vec![], vec![0]));
    let [before] = data.before.as_slice() else { panic!("{plan:?}") };
    assert_eq!(
        (before.direction, before.action.on_error),
        (Some(Direction::ToTarget), Some(OnError::Continue))
    );
    let command = ["/usr/local/sbin/dns", "to", "there"].map(str::to_owned).to_vec();
    assert_eq!(before.action.what, What::Script { on: Place::Coordinator, command, time_limit_ms: 30_000 });
    let [after] = front.after.as_slice() else { panic!("{plan:?}") };
    assert_eq!(after.action.what, What::Manual { text: "Look at the shop.".to_owned() });
}

/// A log of the first version with ten frames, with this file beside it.
fn open_log(folder: &TempDir, beside: Option<&Path>) -> (Arc<Store>, Arc<DiskLog>) {
    let disk = folder.path().join("disks").join(DISK.to_string());
    for name in ["journal", "index"] {
        fs::create_dir_all(disk.join(name)).unwrap();
    }
    fs::copy(fixtures().join("manifest"), disk.join("manifest")).unwrap();
    fs::copy(fixtures().join("segment-open"), disk.join("journal/0000000000000001.segment")).unwrap();
    if let Some(path) = beside {
        fs::copy(path, disk.join(path.file_name().unwrap())).unwrap();
    }
    let (store, found) = Store::open(folder.path(), settings()).unwrap();
    assert!(found.iter().all(|found| found.error.is_none() && found.records.is_empty()), "{found:?}");
    let log = store.disk(DISK).unwrap();
    assert_eq!(log.tail().sequence, Sequence(10));
    (store, log)
}

fn write_damaged(path: &Path) {
    let folder = TempDir::new().unwrap();
    let (_store, log) = open_log(&folder, None);
    log.bad_frames().note([9, 3, 40].map(Sequence));
    fs::copy(log.layout().damaged(), path).unwrap();
}

fn read_damaged(path: &Path) {
    let folder = TempDir::new().unwrap();
    let (_store, log) = open_log(&folder, Some(path));
    // The log has no frame 40: what comes there is another.
    assert_eq!(log.bad_frames().list(), [3, 9].map(Sequence));
}

fn write_differs(path: &Path) {
    let folder = TempDir::new().unwrap();
    let (_store, log) = open_log(&folder, None);
    let differences = log.differences();
    differences.note(Sequence(7), &[BlockRange::new(4, 2)], Timestamp(100));
    differences.note(Sequence(40), &[BlockRange::new(9, 1)], Timestamp(200));
    fs::copy(log.layout().differs(), path).unwrap();
}

fn read_differs(path: &Path) {
    let folder = TempDir::new().unwrap();
    let (_store, log) = open_log(&folder, Some(path));
    assert_eq!(log.differences().list(), [Difference { cut: 7, start: 4, count: 2 }]);
    assert_eq!(log.differences().alarm(), Some(Alarm { blocks: 3, first_us: 100, last_us: 200 }));
    assert!(!log.differences().overflowed());
}

fn write_identity(path: &Path) {
    let folder = TempDir::new().unwrap();
    for name in ["authority.key", "authority.crt"] {
        let to = folder.path().join(name);
        fs::copy(fixtures().join("ca").join(name), &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let clock = ManualClock::default();
    clock.step_wall(AT);
    let entropy = Arc::new(SeededEntropy::new(10));
    let authority =
        Authority::open(folder.path(), MACHINE_LIFE_DEFAULT, Arc::new(clock), entropy.clone()).unwrap();
    let key = MachineKey::generate(entropy.as_ref()).unwrap();
    let signed = authority.sign_machine(MACHINE, &key.request_der().unwrap()).unwrap();
    let trusted = authority.certificate_der().to_vec();
    let identity = Identity::new(MACHINE, "dr.example:7443".to_owned(), &key, signed.der, trusted).unwrap();
    IdentityStore::new(path.parent().unwrap()).store(&identity).unwrap();
}

fn read_identity(path: &Path) {
    let store = IdentityStore::new(path.parent().unwrap());
    let identity = store.load().unwrap();
    assert_eq!((identity.machine, identity.coordinator.as_str()), (MACHINE, "dr.example:7443"));
    let fingerprint = holdfast_common::token::Fingerprint::of(&identity.authority).to_string();
    assert_eq!(fingerprint, fs::read_to_string(fixtures().join("ca/fingerprint")).unwrap().trim_end());
    // Its certificate begins a little before it was made, and is renewed when two thirds of its life are over.
    let renewed = identity.renew_at().unwrap().since(AT);
    assert!(renewed < MACHINE_LIFE_DEFAULT * 2 / 3 && renewed > MACHINE_LIFE_DEFAULT / 2, "{renewed:?}");
    fs::write(path, fs::read_to_string(path).unwrap().replacen("\"version\": 1", "\"version\": 2", 1))
        .unwrap();
    assert!(store.load().unwrap_err().to_string().contains("version 2"));
}

fn write_incarnations(path: &Path) {
    Incarnations::load(path.to_owned()).brought(DISK, Generation(3), 5, Sequence(40)).unwrap();
}

fn read_incarnations(path: &Path) {
    let incarnations = Incarnations::load(path.to_owned());
    assert_eq!(incarnations.basis(DISK, 5), Some((Generation(3), Sequence(40))));
    assert_eq!(incarnations.basis(DISK, 6), None);
    fs::write(path, fs::read_to_string(path).unwrap().replacen("\"version\":2", "\"version\":3", 1)).unwrap();
    assert_eq!(Incarnations::load(path.to_owned()).basis(DISK, 5), None, "a newer one costs a comparison");
}

#[test]
fn hooks_that_an_agent_of_the_first_version_left_frozen_are_thawed() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    for hook in ["a", "b"] {
        fs::write(at(hook), format!("#!/bin/sh\necho {hook} $1 >> {}\n", at("called"))).unwrap();
        fs::set_permissions(at(hook), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(at("hooks-frozen"), format!("{}\n{}", at("a"), at("b"))).unwrap();
    let status = Command::new(program("holdfast-agent"))
        .args(["hook-keeper", "--folder", &at("none"), "--marker", &at("hooks-frozen")])
        .args(["--call-ms", "10000", "--bound-ms", "10000", "--thaw-only"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(fs::read_to_string(at("called")).unwrap(), "b thaw\na thaw\n");
    assert!(!folder.path().join("hooks-frozen").exists());
}

/// A job of each kind, with all kinds of steps, each way in which a step ends, and all that an operator can ask for.
fn events() -> Vec<Event> {
    let disk = DiskId::from_bytes([0x11; 16]);
    let text = |text: &str| text.to_owned();
    let networks = BTreeMap::from([(text("eth0"), text("br0"))]);
    let image = Target::Image { folder: "/images".into(), format: ImageFormat::Raw, update: true };
    let failover = |selection, target, mode, drill| {
        let networks = networks.clone();
        let stop_source = mode == Mode::Planned;
        JobSpec::Failover(FailoverSpec {
            machine: MACHINE,
            selection,
            target,
            mode,
            stop_source,
            networks,
            drill,
        })
    };
    let back = WayBackSpec { machine: MACHINE, failover: JOB, runs: true };
    let member = Member {
        machine: MACHINE,
        name: text("web-1"),
        selection: Selection::LatestMultiVm,
        target: Target::Branch,
    };
    let script = |on| What::Script { on, command: vec![text("/bin/true")], time_limit_ms: 5000 };
    let action = |what, on_error| Action { name: text("before 1"), on_error, what };
    let step = |when, action| PlanStep::Action { group: 0, when, action };
    let plan = PlanSpec {
        plan: text("shop"),
        mode: Course::Test,
        stop_source: true,
        selection: Selection::LatestMultiVmAppConsistent,
        target: Target::Machine { stream: true },
        networks: networks.clone(),
        groups: vec![PlanGroup {
            name: text("all"),
            members: vec![member],
            time_limit_ms: 7,
            on_error: OnError::Continue,
        }],
        steps: vec![
            PlanStep::Check,
            step(When::Before, action(script(Place::Source), Some(OnError::Stop))),
            step(When::Before, action(script(Place::Agent(text("dr"))), None)),
            PlanStep::Machines { groups: vec![0] },
            step(When::After, action(What::Manual { text: text("look") }, None)),
            PlanStep::End,
        ],
        agents: BTreeMap::from([(text("dr"), MACHINE)]),
    };
    let created = |spec| Event::Created { spec, by: text("root"), steps: STEPS.to_vec(), holds: true };
    let done = |output| Event::StepDone { step: 2, output };
    let outcome =
        |state, job| MemberOutcome { machine: MACHINE, name: text("web-1"), job, state, reason: text("why") };
    vec![
        created(failover(Selection::Latest, Target::Attach, Mode::Test, Some(Drill::default()))),
        created(failover(Selection::LatestProcessed, image, Mode::Unplanned, None)),
        created(failover(Selection::AtOrBefore(AT), Target::Machine { stream: false }, Mode::Planned, None)),
        created(JobSpec::Plan(Box::new(plan))),
        created(JobSpec::Reprotect(back.clone())),
        created(JobSpec::Failback(back)),
        Event::StepStarted { step: 0 },
        done(Output::Nothing),
        done(Output::Selected { point: POINT, at: AT, remarks: vec![text("a")] }),
        done(Output::Attached {
            endpoints: vec![Endpoint {
                disk,
                name: text("vda"),
                uri: text("nbd+unix:///vda"),
                size_bytes: 9,
            }],
            rto_us: 5,
        }),
        done(Output::Written {
            images: vec![ImageFile { disk, path: "/images/vda.raw".into(), size_bytes: 9, data_bytes: 8 }],
        }),
        done(Output::Told { text: text("told") }),
        done(Output::Cut { point: POINT }),
        done(Output::Started {
            machine: StartedMachine {
                runs_as: text("QEMU"),
                console: Some("/run/c".into()),
                console_log: Some("/log".into()),
                remarks: vec![text("b")],
            },
            rto_us: 6,
        }),
        done(Output::Members {
            members: vec![
                outcome(MemberState::Done, Some(JOB)),
                outcome(MemberState::Skipped, None),
                outcome(MemberState::Failed, None),
            ],
        }),
        done(Output::WrittenBack { point: POINT, compared_bytes: 3, written_bytes: 2, sent_bytes: 1 }),
        Event::StepFailed { step: 1, message: text("no"), then: Then::GoOn },
        Event::StepFailed { step: 1, message: text("no"), then: Then::Hold },
        Event::StepFailed { step: 1, message: text("no"), then: Then::Undo },
        Event::StepWaits { step: 1, reason: text("for you") },
        Event::ContinueRequested { by: text("anna") },
        Event::CancelRequested { by: text("anna") },
        Event::RetryRequested { by: text("anna") },
        Event::UndoDone { step: 1 },
        Event::UndoFailed { step: 1, message: text("no") },
        Event::PointChangeRequested { by: text("anna"), selection: Selection::Point(POINT), step: 1 },
        Event::PointChangeRequested { by: text("anna"), selection: Selection::LatestAppConsistent, step: 1 },
        Event::Message { text: text("a line") },
        Event::NothingHeld,
    ]
}

const STEPS: [StepKind; 30] = [
    StepKind::Check,
    StepKind::SelectPoint,
    StepKind::ProcessPoint,
    StepKind::Attach,
    StepKind::WriteImages,
    StepKind::ReleasePoint,
    StepKind::StopSource,
    StepKind::Synchronize,
    StepKind::Switch,
    StepKind::DefineMachine,
    StepKind::StartMachine,
    StepKind::Verify,
    StepKind::MoveMachine,
    StepKind::PlanCheck,
    StepKind::PlanScript,
    StepKind::PlanManual,
    StepKind::PlanMachines,
    StepKind::PlanEnd,
    StepKind::BeginReprotect,
    StepKind::TakeOverLog,
    StepKind::FollowTarget,
    StepKind::BeginFailback,
    StepKind::WriteBack,
    StepKind::StopTarget,
    StepKind::LastPoint,
    StepKind::WriteBackRest,
    StepKind::SwitchBack,
    StepKind::EndTarget,
    StepKind::Probe,
    StepKind::EndDrill,
];

/// Does not compile when there is an event or an output that [`events`] does not have.
fn kind(event: &Event) -> String {
    let kind = match event {
        Event::StepDone { output, .. } => match output {
            Output::Nothing => "nothing",
            Output::Selected { .. } => "selected",
            Output::Attached { .. } => "attached",
            Output::Written { .. } => "written",
            Output::Told { .. } => "told",
            Output::Cut { .. } => "cut",
            Output::Started { .. } => "started",
            Output::Members { .. } => "members",
            Output::WrittenBack { .. } => "written-back",
        },
        Event::Created { spec, .. } => match spec {
            JobSpec::Failover(_) => "failover",
            JobSpec::Plan(_) => "plan",
            JobSpec::Reprotect(_) => "reprotect",
            JobSpec::Failback(_) => "failback",
        },
        Event::StepStarted { .. } => "step-started",
        Event::StepFailed { .. } => "step-failed",
        Event::StepWaits { .. } => "step-waits",
        Event::ContinueRequested { .. } => "continue-requested",
        Event::CancelRequested { .. } => "cancel-requested",
        Event::RetryRequested { .. } => "retry-requested",
        Event::UndoDone { .. } => "undo-done",
        Event::UndoFailed { .. } => "undo-failed",
        Event::PointChangeRequested { .. } => "point-change-requested",
        Event::Message { .. } => "message",
        Event::NothingHeld => "nothing-held",
    };
    format!("\"{kind}\"")
}

fn write_events(path: &Path) {
    let bodies = (1..).zip(events()).map(|(number, event)| {
        let body = log::encode(&Record { job: JOB, number, at: AT, event }).unwrap().body;
        assert!(!body.contains('\n'));
        body + "\n"
    });
    fs::write(path, bodies.collect::<String>()).unwrap();
}

fn read_events(path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    let events = events();
    assert_eq!(text.lines().count(), events.len());
    for ((number, body), event) in (1..).zip(text.lines()).zip(events) {
        assert!(body.contains(&kind(&event)), "{body} is no {}", kind(&event));
        let stored = LogRecord { job: JOB, number, at: AT, body: body.to_owned() };
        assert_eq!(log::decode(&stored).unwrap(), Record { job: JOB, number, at: AT, event });
    }
}
