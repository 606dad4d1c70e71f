//! The step of a plan that has its machines moved: a job for each, followed until it is settled.
//!
//! Owns beginning, following and cancelling the machines' jobs. Invariants: what the step has begun it finds again, since ids
//! follow from the plan's job ([`child_id`]); a machine that is at the side already where the plan leads is left alone, and so is
//! what was committed. What a machine's job waits for, the plan waits for, when all its other machines are settled.
//! Limit: [`AT_ONCE_MAX`] machines are begun and not settled at a time.

use std::{sync::Arc, time::Duration};

use holdfast_common::ids::{JobId, MachineId};
use tokio::{sync::watch, task::JoinSet};

use super::{
    failover::Services,
    plan::{no_such_step, plan},
};
use crate::{
    compute::port::{BoxFuture, Task},
    failover::{
        children::{ChildJobs, child_id, current},
        job::{FailoverSpec, Job, JobSpec, Output, WayBackSpec},
        log::{self, Then},
        machine::State,
        plan::{
            Member, MemberOutcome, MemberState, OnError, PlanGroup, PlanSpec, PlanStep, REASON_BYTES_MAX,
            course::{Course, Turn},
        },
        runner::{Command, JobError, JobView},
        step::{Context, Outcome, Step, StepError},
    },
};

/// Moves the machines of a wave.
#[derive(Debug)]
pub(super) struct PlanMachines(pub(super) Services);

/// A machine's job as it stands.
pub(super) fn job_of(context: &Context, machine: MachineId) -> Option<Job> {
    let (_, watched) = current(&context.job, machine, |id| context.children.watch(id));
    watched.map(|watched| watched.borrow().job.clone())
}

/// Groups of this step.
fn groups<'c>(context: &'c Context, spec: &'c PlanSpec) -> Result<Vec<&'c PlanGroup>, StepError> {
    let Some(PlanStep::Machines { groups }) = spec.step(context.step) else { return Err(no_such_step()) };
    Ok(groups.iter().filter_map(|group| spec.group(*group)).collect())
}

/// A machine's job, to be begun or followed.
#[derive(Debug)]
struct Child {
    children: Arc<dyn ChildJobs>,
    parent: JobId,
    id: JobId,
    watched: Option<watch::Receiver<JobView>>,
    /// What is to be done if nothing was begun.
    todo: Todo,
    machine: MachineId,
    name: String,
    /// Whether somebody has done what it may wait for.
    continued: bool,
    limit: Duration,
}

/// What is to be done with a machine of which nothing was begun yet.
#[derive(Debug)]
enum Todo {
    Begin(Box<JobSpec>),
    /// Nothing; why.
    Stays(String),
    /// It cannot be done; why.
    Cannot(String),
}

/// A machine whose job was followed as far as it goes by itself.
#[derive(Debug)]
struct Followed {
    outcome: MemberOutcome,
    /// What somebody has to do before its job goes on.
    waits: Option<String>,
}

impl PlanMachines {
    fn child(&self, context: &Context, spec: &PlanSpec, group: &PlanGroup, member: &Member) -> Child {
        let (id, watched) = current(&context.job, member.machine, |id| context.children.watch(id));
        Child {
            children: Arc::clone(&context.children),
            parent: context.job.id,
            id,
            watched,
            todo: self.todo(context, spec, member),
            machine: member.machine,
            name: member.name.clone(),
            continued: context.continued,
            limit: Duration::from_millis(group.time_limit_ms),
        }
    }

    fn todo(&self, context: &Context, spec: &PlanSpec, member: &Member) -> Todo {
        let Some(now) = self.0.lifecycles.now(member.machine) else {
            return Todo::Cannot("it is not known any more".to_owned());
        };
        match spec.mode.turn(&now, context.job.id) {
            Turn::Stays(why) => return Todo::Stays(why),
            Turn::Cannot(why) => return Todo::Cannot(why),
            Turn::Goes => {}
        }
        let spec = match spec.mode.failover() {
            Some(mode) => Some(JobSpec::Failover(FailoverSpec {
                machine: member.machine,
                selection: member.selection,
                target: member.target.clone(),
                mode,
                stop_source: spec.stop_source,
                networks: spec.networks.clone(),
                drill: None,
            })),
            None => way_back(context, spec.mode, now.stage.failover()),
        };
        match spec {
            Some(spec) => Todo::Begin(Box::new(spec)),
            None => Todo::Cannot(format!(
                "the job of its failover is not known any more; `holdfast resume {}` gives up what the target wrote",
                member.name
            )),
        }
    }
}

/// The job that leads back what a failover has made.
fn way_back(context: &Context, course: Course, failover: Option<JobId>) -> Option<JobSpec> {
    let failover = context.children.watch(failover?)?;
    let spec = WayBackSpec::of(&failover.borrow().job)?;
    Some(if course == Course::Reprotect { JobSpec::Reprotect(spec) } else { JobSpec::Failback(spec) })
}

impl Child {
    fn ended(&self, state: MemberState, job: Option<JobId>, reason: String) -> Followed {
        let mut reason = reason;
        let end = (0..=REASON_BYTES_MAX.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
        reason.truncate(end.unwrap_or(0));
        let outcome = MemberOutcome { machine: self.machine, name: self.name.clone(), job, state, reason };
        Followed { outcome, waits: None }
    }

    /// Begins the job or has it go on, and waits until it is settled.
    async fn run(self, task: Arc<Task>) -> Followed {
        let begun = match (&self.watched, &self.todo) {
            (Some(watched), _) => self.go_on(watched).await,
            (None, Todo::Begin(spec)) => self.begin(spec).await,
            (None, Todo::Stays(why)) => return self.ended(MemberState::Skipped, None, why.clone()),
            (None, Todo::Cannot(why)) => return self.ended(MemberState::Failed, None, why.clone()),
        };
        let watched = match begun {
            Ok(watched) => watched,
            Err(error) => return self.ended(MemberState::Failed, None, error.to_string()),
        };
        let view = match settled(watched, self.limit, &task).await {
            Ok(view) => view,
            Err(why) => return self.ended(MemberState::Failed, Some(self.id), why),
        };
        let state = view.job.status.state;
        if matches!(state, State::Holding | State::Succeeded) {
            return self.ended(MemberState::Done, Some(self.id), String::new());
        }
        let why = view.job.messages.last().map_or("no reason is known", |message| &message.text);
        let reason = format!("its job is {}: {why}", state.name());
        let waits = matches!(state, State::Waiting { .. }).then(|| format!("{}: {why}", self.name));
        Followed { waits, ..self.ended(MemberState::Failed, Some(self.id), reason) }
    }

    async fn begin(&self, spec: &JobSpec) -> Result<watch::Receiver<JobView>, JobError> {
        self.children.begin(self.id, spec.clone(), self.by()).await?;
        self.children.watch(self.id).ok_or(JobError::Stopped)
    }

    /// Has a job that was begun before go on, if it does not by itself.
    async fn go_on(&self, watched: &watch::Receiver<JobView>) -> Result<watch::Receiver<JobView>, JobError> {
        let state = watched.borrow().job.status.state;
        let command = match state {
            State::Held { .. } | State::Stuck { .. } | State::Failed => Some(Command::Retry),
            State::Waiting { .. } => self.continued.then_some(Command::Continue),
            _ => None,
        };
        if let Some(command) = command {
            match self.children.command(self.id, command, self.by()).await {
                // It went on, or was cancelled, by itself meanwhile.
                Ok(()) | Err(JobError::NotNow(_)) => {}
                Err(error) => return Err(error),
            }
        }
        self.children.watch(self.id).ok_or(JobError::Stopped)
    }

    fn by(&self) -> String {
        format!("plan job {}", self.parent)
    }
}

/// The job once it is settled; or why it is not.
async fn settled(
    mut watched: watch::Receiver<JobView>,
    limit: Duration,
    task: &Task,
) -> Result<JobView, String> {
    let cancelled = async {
        while !task.is_cancelled() {
            tokio::time::sleep(CANCEL_LOOK).await;
        }
    };
    tokio::select! {
        biased;
        view = watched.wait_for(JobView::is_settled) => match view {
            Ok(view) => Ok(view.clone()),
            Err(_) => Err("its job is not run by this coordinator any more".to_owned()),
        },
        () = cancelled => Err("cancelled".to_owned()),
        () = tokio::time::sleep(limit) => {
            Err(format!("it took longer than {} s; its job goes on", limit.as_secs_f64()))
        }
    }
}

/// Runs all of them, a bounded number at a time.
async fn run_all(children: Vec<Child>, task: &Arc<Task>) -> Vec<Followed> {
    let mut running = JoinSet::new();
    let mut all = Vec::with_capacity(children.len());
    for child in children {
        if running.len() >= AT_ONCE_MAX {
            all.extend(running.join_next().await.into_iter().flatten());
        }
        running.spawn(child.run(Arc::clone(task)));
    }
    while let Some(followed) = running.join_next().await {
        all.extend(followed);
    }
    all.sort_by(|one: &Followed, other| one.outcome.name.cmp(&other.outcome.name));
    all
}

/// What follows from how the machines of the groups have ended.
fn judged(spec: &PlanSpec, groups: &[&PlanGroup], members: Vec<MemberOutcome>) -> Result<Outcome, StepError> {
    let stops = |member: &&MemberOutcome| {
        let in_group = |group: &&&PlanGroup| group.members.iter().any(|of| of.machine == member.machine);
        let stop = groups.iter().find(in_group).is_some_and(|group| group.on_error == OnError::Stop);
        member.state == MemberState::Failed && stop && spec.mode != Course::Unplanned
    };
    let stopping: Vec<String> =
        members.iter().filter(stops).map(|member| format!("{}: {}", member.name, member.reason)).collect();
    if stopping.is_empty() {
        return Ok(Outcome::Done(Output::Members { members }));
    }
    let message = format!("{} of {} machines failed: {}", stopping.len(), members.len(), stopping.join("; "));
    Err(StepError { message: log::bounded(message), then: Then::Hold })
}

impl Step for PlanMachines {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let spec = plan(context)?;
            let groups = groups(context, spec)?;
            let child = |group: &PlanGroup, member: &Member| self.child(context, spec, group, member);
            let children = groups
                .iter()
                .flat_map(|group| group.members.iter().map(|member| child(group, member)))
                .collect();
            let all = run_all(children, &context.task).await;
            if context.task.is_cancelled() {
                return Err(StepError { message: "cancelled".to_owned(), then: Then::Hold });
            }
            let waits: Vec<&str> = all.iter().filter_map(|followed| followed.waits.as_deref()).collect();
            if !waits.is_empty() {
                let job = context.job.id;
                let text = format!("to do, then `holdfast job continue {job}`: {}", waits.join("; "));
                return Ok(Outcome::Waits(text));
            }
            judged(spec, &groups, all.into_iter().map(|followed| followed.outcome).collect())
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            let spec = plan(context)?;
            let groups = groups(context, spec)?;
            let members: Vec<&Member> = groups.iter().flat_map(|group| &group.members).collect();
            self.check_none_committed(context, &members)?;
            let mut ending = JoinSet::new();
            for member in members {
                for round in 0..=context.job.retries {
                    let id = child_id(context.job.id, member.machine, round);
                    let Some(watched) = context.children.watch(id) else { continue };
                    ending.spawn(end(
                        Arc::clone(&context.children),
                        id,
                        watched,
                        member.name.clone(),
                        context.job.id,
                    ));
                }
            }
            let mut left = Vec::new();
            while let Some(ended) = ending.join_next().await {
                left.extend(ended.unwrap_or_else(|error| Some(error.to_string())));
            }
            if left.is_empty() {
                return Ok(());
            }
            left.sort();
            let message = format!("could not be taken back: {}", left.join("; "));
            Err(StepError { message: log::bounded(message), then: Then::Hold })
        })
    }
}

impl PlanMachines {
    /// What was committed is the machine: it is not ended with the plan.
    fn check_none_committed(&self, context: &Context, members: &[&Member]) -> Result<(), StepError> {
        let committed = |member: &&&Member| {
            let Some(lifecycle) = self.0.lifecycles.now(member.machine) else { return false };
            let of_the_plan = |job: JobId| {
                (0..=context.job.retries).any(|round| child_id(context.job.id, member.machine, round) == job)
            };
            lifecycle.stage.is_target_for_good() && lifecycle.stage.failover().is_some_and(of_the_plan)
        };
        let Some(member) = members.iter().find(committed) else { return Ok(()) };
        let message = format!(
            "machine {0} is committed: what its job holds is the machine; `holdfast resume {0}` gives up what it wrote, then retry",
            member.name
        );
        Err(StepError { message, then: Then::Hold })
    }
}

/// Cancels a machine's job and waits until it is taken back. Gives what is left of it, if something is.
async fn end(
    children: Arc<dyn ChildJobs>,
    id: JobId,
    mut watched: watch::Receiver<JobView>,
    name: String,
    parent: JobId,
) -> Option<String> {
    let stuck = matches!(watched.borrow().job.status.state, State::Stuck { .. });
    let command = if stuck { Command::Retry } else { Command::Cancel };
    match children.command(id, command, format!("plan job {parent}")).await {
        // Over, or being taken back already.
        Ok(()) | Err(JobError::NotNow(_)) => {}
        Err(error) => return Some(format!("{name}: {error}")),
    }
    match watched.wait_for(JobView::is_settled).await {
        Ok(view) if view.job.status.state.is_over() => None,
        Ok(view) => {
            let why = view.job.messages.last().map_or("no reason is known", |message| &message.text);
            Some(format!("{name}: job {id} is {}: {why}", view.job.status.state.name()))
        }
        Err(_) => Some(format!("{name}: job {id} is not run by this coordinator any more")),
    }
}

/// Machines that are begun and not settled at a time.
const AT_ONCE_MAX: usize = 128;
/// How often a step that waits looks whether it was cancelled.
const CANCEL_LOOK: Duration = Duration::from_millis(50);
