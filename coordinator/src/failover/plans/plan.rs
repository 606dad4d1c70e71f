//! Steps of a recovery plan: a job whose machines have jobs of their own.
//!
//! ```text
//!   plan-check -> (plan-script | plan-manual)* -> plan-machines -> (plan-script | plan-manual)* -> ... -> plan-end
//! ```
//!
//! | step | makes | undo | on failure |
//! |---|---|---|---|
//! | plan-check | leases on points that were chosen for several machines together | gives them back | undo |
//! | plan-script | what the program does; it is run again after an interruption | ends what is left of the program | by `on_error` |
//! | plan-manual | nothing: it waits for somebody | nothing | - |
//! | plan-machines | a job per machine (`plan_machines`) | cancels them; who went back stays there | unplanned: go on; else by `on_error` |
//! | plan-end | gives the plan's own leases back | nothing | hold |
//!
//! An unplanned failover goes on to its end whatever fails, but for an action that says itself `on_error = "stop"`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use holdfast_common::ids::MachineId;
use tokio::task::JoinSet;

use super::failover::{Services, failed};
use crate::{
    compute::port::BoxFuture,
    failover::{
        job::Output,
        log::{self, Then},
        plan::{
            Action, Member, OnError, Place, PlanGroup, PlanSpec, PlanStep, What, When,
            course::{Course, Turn},
        },
        port::{ScriptRequest, SourceError},
        step::{Context, Outcome, Step, StepError},
    },
    points::selection::Selection,
};

/// The plan that the job runs.
pub(super) fn plan(context: &Context) -> Result<&PlanSpec, StepError> {
    let missing = || StepError { message: "this job runs no plan; cancel it".into(), then: Then::Undo };
    context.job.spec.plan().ok_or_else(missing)
}

/// Whether all of a plan can be begun, as far as that can be known; an unplanned failover begins whatever it can.
#[derive(Debug)]
pub(super) struct PlanCheck(pub(super) Services);

impl PlanCheck {
    /// Why a machine cannot be moved now.
    async fn trouble(&self, context: &Context, course: Course, member: &Member) -> Option<String> {
        let machine = member.machine;
        let Some(lifecycle) = self.0.lifecycles.now(machine) else {
            return Some("it is not known any more".to_owned());
        };
        match course.turn(&lifecycle, context.job.id) {
            Turn::Stays(_) => return None,
            Turn::Cannot(why) => return Some(why),
            Turn::Goes => {}
        }
        match course {
            Course::Test | Course::Unplanned => {
                let chosen = self.0.choose(machine, member.selection, Then::Undo).await;
                chosen.err().map(|error| error.message)
            }
            Course::Planned => {
                let connected = self.0.sources.facts(machine).is_some_and(|facts| facts.connected);
                (!connected).then(|| "its source is not connected".to_owned())
            }
            Course::Reprotect | Course::Failback => {
                let failover = lifecycle.stage.failover()?;
                let checked = self.0.way_back.check(machine, failover).await;
                checked.err().map(|error| StepError::new(&error, Then::Undo).message)
            }
        }
    }

    /// Machines whose sources do not stand by to be written to, each with why; all are looked for at once, since who is lost is
    /// waited for.
    async fn without_sources(&self, context: &Context, spec: &PlanSpec) -> Vec<String> {
        let mut looking = JoinSet::new();
        for (_, member) in spec.members().filter(|_| spec.mode == Course::Failback) {
            let turn = self.0.lifecycles.now(member.machine).map(|now| spec.mode.turn(&now, context.job.id));
            if turn == Some(Turn::Goes) {
                let (way_back, machine, name) =
                    (Arc::clone(&self.0.way_back), member.machine, member.name.clone());
                looking.spawn(async move {
                    let ready = way_back.source_ready(machine, SOURCE_WAIT).await;
                    ready.err().map(|error| format!("{name}: {error}"))
                });
            }
        }
        let mut found: Vec<String> = looking.join_all().await.into_iter().flatten().collect();
        found.sort();
        found
    }
}

impl Step for PlanCheck {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let spec = plan(context)?;
            let mut troubles = Vec::new();
            for (_, member) in spec.members() {
                if let Some(trouble) = self.trouble(context, spec.mode, member).await {
                    troubles.push(format!("{}: {trouble}", member.name));
                    continue;
                }
                // What was chosen for several together may be long in coming.
                if let Selection::Point(point) = member.selection {
                    let leased = self.0.points.lease(member.machine, point, context.job.id).await;
                    if let Err(error) = leased {
                        troubles.push(format!("{}: {error}", member.name));
                    }
                }
            }
            troubles.extend(self.without_sources(context, spec).await);
            if troubles.is_empty() {
                return Ok(Outcome::Done(Output::Nothing));
            }
            let (count, all) = (troubles.len(), spec.members().count());
            let what = match spec.mode {
                Course::Test | Course::Unplanned | Course::Planned => "be failed over",
                Course::Reprotect => "be protected at their targets",
                Course::Failback => "go back",
            };
            let text = format!("{count} of {all} machines cannot {what}: {}", troubles.join("; "));
            if spec.mode == Course::Unplanned && count < all {
                return Ok(Outcome::Done(Output::Told { text: log::bounded(text) }));
            }
            Err(StepError { message: log::bounded(text), then: Then::Undo })
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move { self.0.points.release(context.job.id).await.map_err(failed(Then::Hold)) })
    }
}

/// The plan itself holds nothing more; its machines hold what they need.
#[derive(Debug)]
pub(super) struct PlanEnd(pub(super) Services);

impl Step for PlanEnd {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            self.0.points.release(context.job.id).await.map_err(failed(Then::Hold))?;
            Ok(Outcome::Done(Output::Nothing))
        })
    }

    fn undo<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Waits for somebody.
#[derive(Debug)]
pub(super) struct PlanManual;

impl Step for PlanManual {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            if context.continued {
                return Ok(Outcome::Done(Output::Nothing));
            }
            match plan(context)?.step(context.step) {
                Some(PlanStep::Action { action: Action { what: What::Manual { text }, .. }, .. }) => {
                    Ok(Outcome::Waits(format!("to do: {text}")))
                }
                _ => Err(no_such_step()),
            }
        })
    }

    fn undo<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async { Ok(()) })
    }
}

/// A script of a plan, as the step finds it.
struct Script<'c> {
    spec: &'c PlanSpec,
    group: &'c PlanGroup,
    when: When,
    on: &'c Place,
    command: &'c [String],
    limit: Duration,
    /// What follows if it fails.
    then: Then,
}

impl<'c> Script<'c> {
    fn of(context: &'c Context) -> Result<Self, StepError> {
        let spec = plan(context)?;
        let Some(PlanStep::Action { group, when, action }) = spec.step(context.step) else {
            return Err(no_such_step());
        };
        let (Some(group), What::Script { on, command, time_limit_ms }) = (spec.group(*group), &action.what)
        else {
            return Err(no_such_step());
        };
        let by_mode = if spec.mode == Course::Unplanned { OnError::Continue } else { group.on_error };
        let then = match action.on_error.unwrap_or(by_mode) {
            OnError::Stop => Then::Hold,
            OnError::Continue => Then::GoOn,
        };
        let limit = Duration::from_millis(*time_limit_ms);
        Ok(Self { spec, group, when: *when, on, command, limit, then })
    }
}

/// Runs a program: on this host, on that of another agent, or on the source of each machine of its group.
#[derive(Debug)]
pub(super) struct PlanScript(pub(super) Services);

impl PlanScript {
    fn request(&self, context: &Context, script: &Script<'_>, members: &[Member]) -> ScriptRequest {
        ScriptRequest {
            job: context.job.id,
            step: context.step,
            command: script.command.to_vec(),
            environment: self.environment(context, script.spec, (script.group, members), script.when),
            limit: script.limit,
        }
    }

    /// On every source, side by side; gives what each printed, or which of them failed.
    async fn run_on_sources(&self, context: &Context, script: &Script<'_>) -> Result<String, String> {
        let mut running = JoinSet::new();
        for member in &script.group.members {
            let request = self.request(context, script, std::slice::from_ref(member));
            let (sources, machine, name) = (Arc::clone(&self.0.sources), member.machine, member.name.clone());
            running.spawn(async move {
                (name, sources.run(machine, request).await.map_err(|error| error.to_string()))
            });
        }
        let (mut printed, mut failed) = (Vec::new(), Vec::new());
        while let Some(ended) = running.join_next().await {
            match ended {
                Ok((_, Ok(text))) if text.is_empty() => {}
                Ok((name, Ok(text))) => printed.push(format!("{name}: {text}")),
                Ok((name, Err(error))) => failed.push(format!("{name}: {error}")),
                Err(error) => failed.push(error.to_string()),
            }
        }
        printed.sort();
        failed.sort();
        if failed.is_empty() {
            return Ok(printed.join("; "));
        }
        let (count, all) = (failed.len(), script.group.members.len());
        Err(format!("failed on {count} of {all} sources: {}", failed.join("; ")))
    }

    /// What a program is told.
    fn environment(
        &self,
        context: &Context,
        spec: &PlanSpec,
        (group, members): (&PlanGroup, &[Member]),
        when: When,
    ) -> BTreeMap<String, String> {
        let (mut points, mut addresses, mut disks) = (Vec::new(), Vec::new(), Vec::new());
        for member in members {
            let name = &member.name;
            if let Some(facts) = self.0.sources.facts(member.machine)
                && let Some(inventory) = facts.inventory
            {
                let all = inventory.network_cards.iter().flat_map(|card| card.addresses.iter().cloned());
                addresses.push((name, all.collect::<Vec<_>>().join(",")));
            }
            let Some(job) = super::plan_machines::job_of(context, member.machine) else { continue };
            let point = job.point().or_else(|| job.written_back());
            points.extend(point.map(|point| (name, point.to_string())));
            for step in &job.steps {
                let Output::Attached { endpoints, .. } = &step.output else { continue };
                disks
                    .extend(endpoints.iter().map(|disk| (format!("{name}/{}", disk.name), disk.uri.clone())));
            }
        }
        let names: Vec<&str> = members.iter().map(|member| &*member.name).collect();
        let mut environment = vec![
            ("PLAN", spec.plan.clone()),
            ("GROUP", group.name.clone()),
            ("WHEN", when.name().to_owned()),
            ("MODE", spec.mode.name().to_owned()),
            ("DIRECTION", spec.mode.direction().name().to_owned()),
            ("MACHINES", names.join(" ")),
            ("POINTS", pairs(&points)),
            ("ADDRESSES", pairs(&addresses)),
            ("DISKS", pairs(&disks)),
        ];
        if let [name] = *names {
            // One machine needs no taking apart.
            let one =
                |all: &[(&String, String)]| all.first().map(|(_, value)| value.clone()).unwrap_or_default();
            environment.extend([
                ("MACHINE", name.to_owned()),
                ("POINT", one(&points)),
                ("ADDRESS", one(&addresses)),
            ]);
        }
        environment.into_iter().map(|(name, value)| (format!("HOLDFAST_{name}"), value)).collect()
    }
}

/// What an agent that is nobody's source here has answered.
fn of_agent(error: &SourceError) -> String {
    match error {
        SourceError::NotConnected => "its agent is not connected".to_owned(),
        SourceError::Refused { text } => text.clone(),
        other => StepError::new(other, Then::Hold).message,
    }
}

fn pairs<N: std::fmt::Display>(all: &[(N, String)]) -> String {
    all.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

impl Step for PlanScript {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let script = Script::of(context)?;
            let program = script.command.first().cloned().unwrap_or_default();
            let ended = match script.on {
                Place::Coordinator => {
                    let request = self.request(context, &script, &script.group.members);
                    self.0.scripts.run(request, Arc::clone(&context.task)).await
                }
                Place::Source => self.run_on_sources(context, &script).await,
                Place::Agent(name) => {
                    let request = self.request(context, &script, &script.group.members);
                    let ended = match script.spec.agents.get(name) {
                        Some(machine) => self.0.sources.run(*machine, request).await,
                        None => Err(SourceError::NotConnected),
                    };
                    ended.map_err(|error| format!("failed on {name}: {}", of_agent(&error)))
                }
            };
            match ended {
                Ok(printed) if printed.is_empty() => Ok(Outcome::Done(Output::Nothing)),
                Ok(printed) => {
                    Ok(Outcome::Done(Output::Told { text: log::bounded(format!("{program}: {printed}")) }))
                }
                Err(why) => {
                    Err(StepError { message: log::bounded(format!("{program} {why}")), then: script.then })
                }
            }
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            let script = Script::of(context)?;
            let hosts: Vec<MachineId> = match script.on {
                Place::Coordinator => {
                    self.0.scripts.end(context.job.id, context.step).await;
                    return Ok(());
                }
                Place::Source => script.group.members.iter().map(|member| member.machine).collect(),
                Place::Agent(name) => script.spec.agents.get(name).copied().into_iter().collect(),
            };
            // An agent that does not answer ends the program by its limit; that holds up no cancel.
            let mut ending = JoinSet::new();
            for machine in hosts {
                let sources = Arc::clone(&self.0.sources);
                let (job, step) = (context.job.id, context.step);
                ending.spawn(async move { sources.end_run(machine, job, step).await });
            }
            let all = async { while ending.join_next().await.is_some() {} };
            let _as_far_as_they_answer = tokio::time::timeout(END_WAIT, all).await;
            Ok(())
        })
    }
}

/// Longest wait for a source that is to be written to: it asks every second.
const SOURCE_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for sources to end a program of a plan that is taken back.
const END_WAIT: Duration = Duration::from_secs(1);

pub(super) fn no_such_step() -> StepError {
    StepError { message: "the plan has no such step; cancel this job".into(), then: Then::Hold }
}
