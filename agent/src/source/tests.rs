//! The source's states with real programs of an operator, without file systems (`tests/it/split_brain.rs` has those).

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_common::{
    clock::ManualClock,
    ids::JobId,
    wire::{AgentMessage, SourceAnswer, SourceOrder, SourceRun, SourceStep},
};
use tempfile::TempDir;

use super::{MARKER, MessageSink, SourceControl, SourceEvent, SourceParts, SourcePrograms};
use crate::{capture::freeze::FreezeSettings, engine::StatusBoard};

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<SourceAnswer>>>);

impl MessageSink for Heard {
    fn send(&mut self, message: AgentMessage) {
        let AgentMessage::Source(answer) = message else { panic!("{message:?}") };
        self.0.lock().unwrap().push(answer);
    }
}

struct Fixture {
    folder: TempDir,
    clock: ManualClock,
    heard: Heard,
    source: SourceControl,
}

impl Fixture {
    /// A source whose programs write down how they are called; `stop` ends with this code.
    fn new(exit: i32) -> Self {
        Self::start(TempDir::new().unwrap(), exit)
    }

    /// Killed, and started again.
    fn restarted(self) -> Self {
        drop(self.source);
        Self::start(self.folder, 0)
    }

    fn start(folder: TempDir, exit: i32) -> Self {
        let program = folder.path().join("program");
        let called = folder.path().join("called");
        let script = format!("#!/bin/sh\necho $1 >> {}\n[ $1 != stop ] || exit {exit}\n", called.display());
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let (clock, heard) = (ManualClock::default(), Heard::default());
        let parts = SourceParts {
            programs: SourcePrograms { stop: Some(program.clone()), fenced: Some(program), guest: None },
            state: folder.path().to_owned(),
            status: StatusBoard::default(),
            freezing: FreezeSettings::default(),
            actions: folder.path().to_owned(),
            clock: Arc::new(clock.clone()),
        };
        let source = SourceControl::new(parts, Box::new(heard.clone()));
        Self { folder, clock, heard, source }
    }

    /// Gives an order; whether it was followed.
    fn order(&mut self, step: SourceStep) -> Result<String, String> {
        self.source.take(SourceEvent::Order(SourceOrder { request: 7, step }));
        let answer = self.heard.0.lock().unwrap().pop().expect("an answer");
        assert_eq!(answer.request, 7);
        answer.result
    }

    fn stop(&mut self, hold_s: u64) -> Result<String, String> {
        self.order(SourceStep::Stop { limit_ms: 10_000, hold_ms: hold_s * 1000 })
    }

    fn called(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("called")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

const PROVE: SourceStep = SourceStep::Prove { hold_ms: 60_000 };

#[test]
fn a_stopped_source_goes_on_when_its_time_is_over() {
    let mut fixture = Fixture::new(0);
    assert!(fixture.order(PROVE).unwrap_err().contains("gone on"), "it was never stopped");
    fixture.stop(100).unwrap();
    assert!(fixture.folder.path().join(MARKER).exists());
    fixture.clock.advance(Duration::from_secs(99));
    assert_eq!(fixture.source.time_left(), Some(Duration::from_secs(1)));
    // Whoever has it proved gets time for what follows.
    fixture.order(PROVE).unwrap();
    assert_eq!(fixture.source.time_left(), Some(Duration::from_secs(60)));
    fixture.clock.advance(Duration::from_secs(60));
    assert_eq!(fixture.source.time_left(), None);
    assert!(fixture.order(PROVE).is_err());
    assert_eq!(fixture.called(), ["stop", "resume"]);
    assert!(!fixture.folder.path().join(MARKER).exists());
}

#[test]
fn a_fenced_source_stays_stopped_until_it_is_let_in() {
    let mut fixture = Fixture::new(0);
    fixture.stop(100).unwrap();
    for _ in 0..3 {
        fixture.source.take(SourceEvent::Fenced("failed over".into()));
    }
    fixture.clock.advance(Duration::from_secs(10_000));
    assert_eq!(fixture.source.time_left(), None);
    assert_eq!(fixture.called(), ["stop", "fenced"], "told once, and it does not go on");
    fixture.source.take(SourceEvent::LetIn);
    assert_eq!(fixture.called(), ["stop", "fenced", "resume"]);
    // An ordinary session means nothing.
    fixture.source.take(SourceEvent::LetIn);
    assert_eq!(fixture.called().len(), 3);
}

#[test]
fn what_an_agent_of_the_first_version_has_stopped_is_started_again() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join(MARKER), "/no/such/folder\n/nor/this\n").unwrap();
    let mut fixture = Fixture::start(folder, 0);
    assert!(fixture.called().is_empty(), "not before it is known to be the machine");
    fixture.source.take(SourceEvent::LetIn);
    assert_eq!(fixture.called(), ["resume"]);
    assert!(!fixture.folder.path().join(MARKER).exists());
}

/// What a killed agent has stopped is started again once this source is known to be the machine, and only then.
#[test]
fn a_killed_agent_s_successor_starts_what_was_stopped_when_it_is_let_in() {
    let mut fixture = Fixture::new(0);
    fixture.stop(100).unwrap();
    let mut fixture = fixture.restarted().restarted();
    assert!(fixture.order(PROVE).is_err(), "the break is noticed");
    fixture.source.take(SourceEvent::Fenced("failed over".into()));
    assert_eq!(fixture.called(), ["stop", "fenced"]);
    let mut fixture = fixture.restarted();
    for _ in 0..2 {
        fixture.source.take(SourceEvent::LetIn);
    }
    assert_eq!(fixture.called(), ["stop", "fenced", "resume"]);
    assert!(!fixture.folder.path().join(MARKER).exists());
}

#[test]
fn an_order_may_be_repeated_and_taken_back() {
    let mut fixture = Fixture::new(0);
    fixture.stop(10).unwrap();
    fixture.clock.advance(Duration::from_secs(9));
    assert!(fixture.stop(10).unwrap().contains("already"));
    assert_eq!(fixture.source.time_left(), Some(Duration::from_secs(10)));
    for _ in 0..2 {
        fixture.order(SourceStep::Resume).unwrap();
    }
    assert_eq!(fixture.called(), ["stop", "resume"]);
}

#[test]
fn a_source_whose_program_fails_is_not_stopped() {
    let mut fixture = Fixture::new(3);
    let reason = fixture.stop(10).unwrap_err();
    assert!(reason.contains("stop failed"), "{reason}");
    assert!(fixture.order(PROVE).is_err());
    assert_eq!(fixture.called(), ["stop", "resume"], "what it has ended is started again");
}

/// A program is answered when it has ended; a stop does not wait for it.
#[test]
fn a_program_of_a_plan_runs_beside_everything_else() {
    let mut fixture = Fixture::new(0);
    let place = fixture.folder.path().join("go");
    let run = |arguments: Vec<String>| {
        let (job, step, program) = (JobId::from_bytes([9; 16]), 1, "waits".to_owned());
        SourceStep::Run(SourceRun {
            job,
            step,
            program,
            arguments,
            environment: Vec::new(),
            limit_ms: 60_000,
        })
    };
    let script = "#!/bin/sh\nwhile [ ! -e $1 ]; do sleep 0.02; done; echo gone\n";
    fs::write(fixture.folder.path().join("waits"), script).unwrap();
    fs::set_permissions(fixture.folder.path().join("waits"), fs::Permissions::from_mode(0o755)).unwrap();
    let order = SourceOrder { request: 8, step: run(vec![place.display().to_string()]) };
    fixture.source.take(SourceEvent::Order(order));
    fixture.stop(100).unwrap();
    fs::write(&place, "").unwrap();
    let answer = loop {
        if let Some(answer) = fixture.heard.0.lock().unwrap().pop() {
            break answer;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!((answer.request, answer.result), (8, Ok("gone".to_owned())));
    fixture.order(SourceStep::EndRun { job: JobId::from_bytes([9; 16]), step: 1 }).unwrap();
}
