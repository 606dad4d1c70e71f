//! The task that cuts the groups, and asks machines for the app-consistent points of their policies: timers, orders out,
//! answers in.
//!
//! Owns which group is cut when. What a group cut is, is decided by [`super::cut`]; which group points exist, by the members'
//! durable records. Invariant: of a group one attempt is under way at a time. The newest group point's parts are leased, so
//! that retention keeps a group's last common point whole.
//! Limits: [`ASKED_MAX`] requests, [`AWAITED_MAX`] marked cuts whose records have not arrived.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holdfast_common::{
    clock::{Clock, Timestamp},
    entropy::Entropy,
    ids::{GroupCutId, GroupId, MachineId, PointId},
    wire::{Applications, OrderStep},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    book::{GroupBook, GroupStatus, holder_prefix},
    cut::{Group, GroupCut, Outcome, Output, Terms, Void},
    inbox::{Heard, HeardQueue},
};
use crate::{
    catalog::{Catalog, Change, record::VoidedGroupCutRecord},
    ingest::links::{LiveLinks, Push},
    points::{catalog::PointCatalog, request::next_request},
    registry::Registry,
};

/// Requests of operators that wait.
pub const ASKED_MAX: usize = 64;
/// Marked cuts whose records are waited for.
pub const AWAITED_MAX: usize = 64;
/// Results on their way to the catalog.
const RESULTS_MAX: usize = 256;
/// Shortest and longest time for all members to be armed.
const ARMING: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(1));
/// Longest time to hold, beyond what a held member waits anyhow: the slowest freeze.
const HOLDING: Duration = Duration::from_secs(2);
/// Longest time for the word that all have released.
const RELEASING: Duration = Duration::from_secs(5);
/// Time from the start to the first cuts: agents connect meanwhile.
const FIRST: Duration = Duration::from_secs(2);
/// Longest sleep.
const NAP: Duration = Duration::from_secs(1);
/// Time between two looks for the records of marked cuts.
const LOOK: Duration = Duration::from_millis(200);

/// What the task works with.
#[derive(Clone, Debug)]
pub struct DriverParts {
    /// The groups.
    pub book: Arc<GroupBook>,
    /// Policies of machines.
    pub registry: Arc<Registry>,
    /// The members' sessions.
    pub links: LiveLinks,
    /// The members' points.
    pub points: Arc<PointCatalog>,
    /// For voided group cuts.
    pub catalog: Arc<dyn Catalog>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Ids of group cuts.
    pub entropy: Arc<dyn Entropy>,
}

/// An operator's handle on the task.
#[derive(Clone, Debug)]
pub struct GroupCuts {
    asked: mpsc::Sender<Asked>,
    figures: Arc<Mutex<BTreeMap<GroupId, GroupFigures>>>,
}

/// What became of a group's cuts since the coordinator was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupFigures {
    /// Attempts whose mark was made, and which no member has said to have missed.
    pub marked: u64,
    /// Attempts without a group point.
    pub voided: u64,
    /// The last attempt that was void, and why.
    pub last_void: Option<VoidedGroupCutRecord>,
}

/// What an operator's request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The group cut.
    pub cut: GroupCutId,
    /// How it ended.
    pub outcome: Outcome,
}

#[derive(Debug)]
struct Asked {
    group: GroupId,
    application: bool,
    answer: oneshot::Sender<Answered>,
}

/// The task.
#[derive(Debug)]
pub struct Driver {
    parts: DriverParts,
    heard: HeardQueue,
    asked: mpsc::Receiver<Asked>,
    results: mpsc::Sender<(GroupId, GroupCutId, Outcome)>,
    keeper: Keeper,
    running: BTreeMap<GroupId, Running>,
    figures: Arc<Mutex<BTreeMap<GroupId, GroupFigures>>>,
}

/// One group.
#[derive(Debug)]
struct Running {
    due: Duration,
    application_due: Duration,
    wanted: VecDeque<Asked>,
    attempt: Option<Attempt>,
}

#[derive(Debug)]
struct Attempt {
    cut: GroupCut,
    answers: Vec<oneshot::Sender<Answered>>,
}

impl Driver {
    /// The task, to be run; and the handle on it.
    #[must_use]
    pub fn new(parts: DriverParts, heard: HeardQueue) -> (Self, GroupCuts) {
        let (sender, asked) = mpsc::channel(ASKED_MAX);
        let (results, finished) = mpsc::channel(RESULTS_MAX);
        let figures: Arc<Mutex<BTreeMap<_, _>>> = Arc::default();
        let handle = GroupCuts { asked: sender, figures: Arc::clone(&figures) };
        let keeper = Keeper { parts: parts.clone(), finished, awaited: VecDeque::new() };
        (Self { parts, heard, asked, results, keeper, running: BTreeMap::new(), figures }, handle)
    }

    /// Cuts until told to end.
    pub async fn run(self, closing: CancellationToken) {
        let Self { parts, heard, asked, results, keeper, running, figures } = self;
        let first = parts.clock.monotonic() + FIRST;
        let applications = BTreeMap::new();
        let applications_due = Duration::ZERO;
        let mut cutter =
            Cutter { parts, heard, asked, results, running, figures, first, applications, applications_due };
        // The keeper ends when the cutter has, and its queue is empty.
        let cutting = async move { cutter.run(closing).await };
        tokio::join!(cutting, keeper.run());
    }
}

/// The half that talks to members; nothing in it waits for the catalog.
struct Cutter {
    parts: DriverParts,
    heard: HeardQueue,
    asked: mpsc::Receiver<Asked>,
    results: mpsc::Sender<(GroupId, GroupCutId, Outcome)>,
    running: BTreeMap<GroupId, Running>,
    figures: Arc<Mutex<BTreeMap<GroupId, GroupFigures>>>,
    /// No cut before this.
    first: Duration,
    /// When machines are asked for their next app-consistent point, with the interval that this comes from.
    applications: BTreeMap<MachineId, (Duration, Duration)>,
    /// When to look through the policies for that again. Not with every answer of a member: others hold meanwhile.
    applications_due: Duration,
}

impl Cutter {
    async fn run(&mut self, closing: CancellationToken) {
        let mut changes = self.parts.book.subscribe();
        self.follow_book();
        loop {
            let wait = self.due().saturating_sub(self.now()).min(NAP);
            tokio::select! {
                () = closing.cancelled() => break,
                heard = self.heard.recv() => match heard {
                    Some((machine, heard)) => {
                        self.hear(machine, &heard);
                        // Members often speak at once; what their answers lead to waits for nothing else.
                        while let Ok((machine, heard)) = self.heard.try_recv() {
                            self.hear(machine, &heard);
                        }
                    }
                    None => break,
                },
                Some(asked) = self.asked.recv() => self.ask(asked),
                changed = changes.changed() => match changed {
                    Ok(()) => self.follow_book(),
                    Err(_) => break,
                },
                () = tokio::time::sleep(wait) => {}
            }
            self.look_at_clock();
            self.ask_for_applications();
        }
        let groups: Vec<GroupId> = self.running.keys().copied().collect();
        groups.into_iter().for_each(|group| self.call_off(group, "the coordinator is stopped"));
    }

    fn now(&self) -> Duration {
        self.parts.clock.monotonic()
    }

    /// When something is to be done next.
    fn due(&self) -> Duration {
        let due = |running: &Running| match &running.attempt {
            Some(attempt) => attempt.cut.due(),
            None if !running.wanted.is_empty() => Duration::ZERO,
            None => running.due.min(running.application_due),
        };
        self.running.values().map(due).min().unwrap_or(Duration::MAX)
    }

    /// Groups were made, changed or deleted.
    fn follow_book(&mut self) {
        let all = self.parts.book.all();
        let gone: Vec<GroupId> = self
            .running
            .keys()
            .copied()
            .filter(|group| !all.iter().any(|status| status.record.id == *group))
            .collect();
        for group in gone {
            self.call_off(group, "the group was deleted");
            self.running.remove(&group);
        }
        let soon = self.first.max(self.now());
        for status in all {
            let running = self.running.entry(status.record.id).or_insert_with(|| Running {
                due: soon,
                application_due: application_due(&status, soon),
                wanted: VecDeque::new(),
                attempt: None,
            });
            running.due = running.due.min(soon + status.interval());
            running.application_due = running.application_due.min(application_due(&status, soon));
            if status.record.application_interval_ms == 0 {
                running.application_due = Duration::MAX;
            }
        }
    }

    fn ask(&mut self, asked: Asked) {
        if let Some(running) = self.running.get_mut(&asked.group) {
            running.wanted.push_back(asked);
        }
    }

    fn look_at_clock(&mut self) {
        let now = self.now();
        let groups: Vec<GroupId> = self.running.keys().copied().collect();
        for group in groups {
            let Some(running) = self.running.get_mut(&group) else { continue };
            if let Some(attempt) = &mut running.attempt {
                let outputs = attempt.cut.tick(now);
                self.put_out(group, outputs);
                continue;
            }
            let wanted = !running.wanted.is_empty();
            let application = now >= running.application_due;
            if (wanted || application || now >= running.due)
                && let Some(status) = self.parts.book.get(group)
            {
                self.begin(&status, application, now);
            }
        }
    }

    /// Asks machines for the app-consistent points that their policies want.
    fn ask_for_applications(&mut self) {
        let now = self.now();
        if now < self.applications_due {
            return;
        }
        let mut wanted = BTreeMap::new();
        for policy in self.parts.registry.policies() {
            let id = policy.machine;
            if policy.application_interval_ms == 0 {
                continue;
            }
            let interval = Duration::from_millis(policy.application_interval_ms);
            let before = self.applications.get(&id).filter(|(_, of)| *of == interval);
            let mut due = before.map_or(self.first.max(now), |(due, _)| *due);
            if now >= due {
                let (request, strict) = (next_request(self.parts.clock.as_ref()), policy.application_strict);
                // A machine that is not there makes its next one when it is.
                let order = Push::MakeApplicationPoint { request, strict };
                due = if self.parts.links.push(id, order).is_ok() { now + interval } else { now + NAP };
            }
            wanted.insert(id, (due, interval));
        }
        self.applications_due = wanted.values().map(|(due, _)| *due).fold(now + NAP, Duration::min);
        self.applications = wanted;
    }

    fn begin(&mut self, status: &GroupStatus, application: bool, now: Duration) {
        let group = status.record.id;
        let Some(running) = self.running.get_mut(&group) else { return };
        let asked: Vec<Asked> = running.wanted.drain(..).collect();
        let application = application || asked.iter().any(|asked| asked.application);
        running.due = now + status.interval();
        if application {
            running.application_due = application_due(status, now);
        }
        if status.members.is_empty() {
            return;
        }
        let terms = Terms {
            arming: status.interval().clamp(ARMING.0, ARMING.1),
            holding: HOLDING + status.wait(),
            releasing: RELEASING + status.wait(),
            wait: status.wait(),
            application,
        };
        let id = GroupCutId(self.parts.entropy.uuid(self.parts.clock.wall()));
        let named = Group { id: group, name: status.record.name.clone() };
        let (cut, outputs) = GroupCut::begin(id, named, status.members.iter().copied(), terms, now);
        let answers = asked.into_iter().map(|asked| asked.answer).collect();
        running.attempt = Some(Attempt { cut, answers });
        self.put_out(group, outputs);
    }

    fn hear(&mut self, machine: MachineId, heard: &Heard) {
        let now = self.now();
        let groups: Vec<GroupId> = self.running.keys().copied().collect();
        for group in groups {
            let attempt = self.running.get_mut(&group).and_then(|running| running.attempt.as_mut());
            let Some(attempt) = attempt else { continue };
            let outputs = match heard {
                Heard::Answer(answer) => attempt.cut.answer(machine, answer, now),
                Heard::Lost(why) => attempt.cut.lost(machine, why),
            };
            self.put_out(group, outputs);
        }
    }

    fn call_off(&mut self, group: GroupId, why: &str) {
        let attempt = self.running.get_mut(&group).and_then(|running| running.attempt.as_mut());
        let outputs = attempt.map(|attempt| attempt.cut.call_off(why)).unwrap_or_default();
        self.put_out(group, outputs);
    }

    /// What becomes of the group's cut if a hook fails is the machine's own policy.
    fn apply_policy(&self, machine: MachineId, step: &mut OrderStep) {
        if let OrderStep::Arm(arm) = step
            && arm.application == Applications::Consistent
            && self.parts.registry.policy(machine).is_some_and(|policy| policy.application_strict)
        {
            arm.application = Applications::Required;
        }
    }

    /// Sends orders; an order that cannot be sent is an answer too.
    fn put_out(&mut self, group: GroupId, outputs: Vec<Output>) {
        let mut outputs = VecDeque::from(outputs);
        while let Some(output) = outputs.pop_front() {
            match output {
                Output::Send(machine, mut order) => {
                    self.apply_policy(machine, &mut order.step);
                    let Err(error) = self.parts.links.push(machine, Push::GroupCut(order)) else { continue };
                    let attempt = self.running.get_mut(&group).and_then(|running| running.attempt.as_mut());
                    outputs.extend(
                        attempt
                            .map(|attempt| attempt.cut.lost(machine, &error.to_string()))
                            .unwrap_or_default(),
                    );
                }
                Output::Over(outcome) => self.over(group, outcome),
            }
        }
    }

    fn over(&mut self, group: GroupId, outcome: Outcome) {
        let Some(attempt) = self.running.get_mut(&group).and_then(|running| running.attempt.take()) else {
            return;
        };
        let cut = attempt.cut.id();
        {
            let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
            let figures = figures.entry(group).or_default();
            match &outcome {
                Outcome::Marked(_) => figures.marked += 1,
                Outcome::Void(void) => {
                    figures.voided += 1;
                    figures.last_void = Some(void_record(group, cut, void, self.parts.clock.wall()));
                }
            }
        }
        for answer in attempt.answers {
            // Whoever asked may have gone.
            let _gone = answer.send(Answered { cut, outcome: outcome.clone() });
        }
        if self.results.try_send((group, cut, outcome)).is_err() {
            tracing::warn!(%group, %cut, "the result of a group cut was not recorded: the catalog is slow");
        }
    }
}

impl GroupCuts {
    /// Cuts a group as soon as can be; resolves when that is over.
    ///
    /// # Errors
    /// Too many ask, the group was deleted, or the coordinator ends.
    pub async fn ask(&self, group: GroupId, application: bool) -> Result<Answered, &'static str> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked { group, application, answer };
        self.asked.try_send(asked).map_err(|_| "too many group points are asked for at a time")?;
        answered.await.map_err(|_| "the group was deleted, or the coordinator is stopped")
    }

    /// What became of a group's cuts since the start.
    #[must_use]
    pub fn figures(&self, group: GroupId) -> GroupFigures {
        self.all().get(&group).cloned().unwrap_or_default()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<GroupId, GroupFigures>> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The half that writes into the catalog.
#[derive(Debug)]
struct Keeper {
    parts: DriverParts,
    finished: mpsc::Receiver<(GroupId, GroupCutId, Outcome)>,
    awaited: VecDeque<(GroupId, GroupCutId, Vec<PointId>)>,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            let result = if self.awaited.is_empty() {
                self.finished.recv().await
            } else {
                match tokio::time::timeout(LOOK, self.finished.recv()).await {
                    Ok(result) => result,
                    Err(_elapsed) => {
                        self.look().await;
                        continue;
                    }
                }
            };
            match result {
                None => return,
                Some((group, cut, Outcome::Void(void))) => self.record(group, cut, &void).await,
                Some((group, cut, Outcome::Marked(holds))) => {
                    if self.awaited.len() == AWAITED_MAX {
                        self.awaited.pop_front();
                    }
                    self.awaited.push_back((group, cut, holds.iter().map(|hold| hold.point).collect()));
                }
            }
        }
    }

    async fn record(&self, group: GroupId, cut: GroupCutId, void: &Void) {
        let record = void_record(group, cut, void, self.parts.clock.wall());
        tracing::warn!(%group, %cut, machine = ?record.machine, reason = record.reason, "a group cut is void");
        if let Err(error) = self.parts.catalog.apply(vec![Change::AddVoidedGroupCut(record)]).await {
            tracing::error!(%error, "a voided group cut was not recorded");
        }
    }

    /// Whose records have all arrived is the group's newest common point.
    async fn look(&mut self) {
        let complete = |points: &[PointId]| points.iter().all(|point| self.parts.points.is_known(*point));
        let Some(newest) = self.awaited.iter().rposition(|(_, _, points)| complete(points)) else { return };
        let Some((group, cut, points)) = self.awaited.remove(newest) else { return };
        // Older ones of the same group are no newest any more.
        let mut position = 0;
        self.awaited.retain(|(of, _, _)| {
            position += 1;
            *of != group || position > newest
        });
        if let Err(error) = self.keep(group, cut, &points).await {
            tracing::error!(%error, %group, "a group's newest point is not kept from retention");
        }
    }

    async fn keep(
        &self,
        group: GroupId,
        cut: GroupCutId,
        points: &[PointId],
    ) -> Result<(), crate::catalog::CatalogError> {
        let holder = format!("{}{cut}", holder_prefix(group));
        for point in points {
            self.parts.points.lease(*point, holder.clone()).await?;
        }
        for lease in self.parts.catalog.leases().await? {
            if lease.holder.starts_with(&holder_prefix(group)) && lease.holder != holder {
                self.parts.points.release(lease.holder).await?;
            }
        }
        Ok(())
    }
}

fn void_record(group: GroupId, cut: GroupCutId, void: &Void, at: Timestamp) -> VoidedGroupCutRecord {
    VoidedGroupCutRecord { cut, group, at, machine: void.member, reason: void.reason.to_string() }
}

fn application_due(status: &GroupStatus, now: Duration) -> Duration {
    match status.record.application_interval_ms {
        0 => Duration::MAX,
        interval => now + Duration::from_millis(interval),
    }
}
