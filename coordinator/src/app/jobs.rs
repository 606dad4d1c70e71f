//! Jobs: their events in the catalog, and what operators see of them.
//!
//! Owns the translation between the job engine, the catalog and the interface's shapes.

use std::{collections::BTreeMap, iter, path::Path, sync::Arc, time::Duration};

use holdfast_common::{
    clock::Timestamp,
    ids::{DiskId, JobId, MachineId, PointId},
};

use super::{checks::Checks, damage::FailedReads};
use crate::{
    api::{
        machine_shapes::RunsShape,
        port::{FailoverMode, JobControl, JobRefusal, PlanJob, PlanMember, PlanRun, WayBackVerb},
        shapes::{
            ExportShape, ImageShape, JobMachineShape, JobMessageShape, JobShape, JobStepShape, ProgressShape,
            TargetShape, VerificationShape, WrittenBackShape,
        },
        time_text,
    },
    catalog::{Catalog, CatalogError, Change, record::JobEventRow},
    compute::{
        machines::StartedMachine,
        port::{BoxFuture, Endpoint, ImageFormat, Progress},
    },
    drills::Drill,
    failover::{
        children::newest,
        job::{
            FailoverSpec, Job, JobSpec, Mode, Output, StepKind, StepRecord, StepState, Target, WayBackSpec,
        },
        machine::State,
        plan::{self, Member, MemberOutcome, MemberState, PlanGroup, course::Course},
        port::{JobStore, LogRecord, PointSource, StoreError, WayBack},
        runner::{Command, JobError, JobView, Jobs},
    },
    points::selection::{Candidate, Selection},
    registry::Registry,
    size,
};

/// The catalog as the place of jobs' events.
#[derive(Debug)]
pub(super) struct CatalogJobs(pub(super) Arc<dyn Catalog>);

fn failed(action: &'static str) -> impl Fn(CatalogError) -> StoreError {
    move |error| StoreError::Failed { action, source: Box::new(error) }
}

impl JobStore for CatalogJobs {
    fn append(&self, record: LogRecord) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let LogRecord { job, number, at, body } = record;
            let change = Change::AddJobEvent(JobEventRow { job, number, at, body });
            self.0.apply(vec![change]).await.map_err(|error| match error {
                CatalogError::Conflict(_) => StoreError::Taken { job, number },
                other => failed("store a job's event")(other),
            })
        })
    }

    fn load(&self) -> BoxFuture<'_, Result<Vec<LogRecord>, StoreError>> {
        Box::pin(async move {
            let rows = self.0.job_events().await.map_err(failed("read the jobs' events"))?;
            let record =
                |row: JobEventRow| LogRecord { job: row.job, number: row.number, at: row.at, body: row.body };
            Ok(rows.into_iter().map(record).collect())
        })
    }

    fn forget(&self, job: JobId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.0.apply(vec![Change::ForgetJob(job)]).await.map_err(failed("remove a job's events"))
        })
    }
}

/// The job engine, as operators handle it.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) jobs: Arc<Jobs>,
    pub(super) points: Arc<dyn PointSource>,
    pub(super) registry: Arc<Registry>,
    /// What could not be read of attached disks.
    pub(super) failed_reads: Arc<FailedReads>,
    pub(super) checks: Arc<Checks>,
    pub(super) way_back: Arc<dyn WayBack>,
}

impl Control {
    fn view(&self, job: JobId) -> Result<JobShape, JobRefusal> {
        let watched = self.jobs.watch(job).ok_or(JobRefusal::Unknown(job))?;
        let view = watched.borrow().clone();
        Ok(self.shape(&view))
    }

    async fn command(&self, job: JobId, command: Command, who: &str) -> Result<JobShape, JobRefusal> {
        self.jobs.command(job, command, who).await.map_err(refusal)?;
        self.view(job)
    }

    fn shape(&self, view: &JobView) -> JobShape {
        let job = &view.job;
        let (selection, target) = match &job.spec {
            JobSpec::Failover(spec) => (Some(spec.selection), Some(&spec.target)),
            JobSpec::Plan(spec) if spec.mode.failover().is_some() => {
                (Some(spec.selection), Some(&spec.target))
            }
            JobSpec::Plan(_) | JobSpec::Reprotect(_) | JobSpec::Failback(_) => (None, None),
        };
        let machine = job.spec.machine().and_then(|machine| self.registry.machine(machine));
        let plan = job.spec.plan().map(|plan| plan.plan.clone());
        let machines = self.machines(job);
        let selected = job.steps.iter().find_map(|step| match &step.output {
            Output::Selected { point, at, .. } => Some((*point, *at)),
            _ => None,
        });
        let state = job.status.state;
        JobShape {
            id: job.id.to_string(),
            kind: kind(&job.spec).to_owned(),
            machine: job.spec.machine().map(|machine| machine.to_string()).unwrap_or_default(),
            machine_name: machine
                .map(|machine| machine.record.name)
                .or_else(|| plan.clone())
                .unwrap_or_default(),
            plan,
            by: job.by.clone(),
            state: state_text(state).to_owned(),
            settled: view.is_settled(),
            ok: matches!(state, State::Succeeded | State::Holding) && !fell_short(job),
            machines,
            selection: selection.map(|selection| selection.to_string()).unwrap_or_default(),
            point: selected.map(|(point, _)| point.to_string()),
            point_at: selected.map(|(_, at)| time_text(at)),
            target: target.map(target_shape),
            created_at: time_text(job.created_at),
            changed_at: time_text(job.changed_at),
            steps: job.steps.iter().enumerate().map(|(number, step)| step_shape(job, number, step)).collect(),
            messages: self.messages(job),
            progress: view.progress.map(progress_shape),
            exports: if state == State::Holding { self.exports(job) } else { Vec::new() },
            images: self.images(job),
            runs: job.runs().filter(|_| !state.is_over()).map(runs_shape),
            written_back: job.steps.iter().filter_map(written_back).collect(),
            rto_us: rto_us(job),
            verification: selected.and_then(|(point, _)| self.verification(point)),
        }
    }

    fn verification(&self, point: PointId) -> Option<VerificationShape> {
        let found = self.checks.progress(point)?;
        let state = match found.good {
            None => "running",
            Some(true) => "good",
            Some(false) => "damaged",
        };
        Some(VerificationShape { state: state.to_owned(), progress: progress_shape(found.progress) })
    }

    /// What the job said, and what its clients could not read.
    fn messages(&self, job: &Job) -> Vec<JobMessageShape> {
        let remarks = |step: &StepRecord| match &step.output {
            Output::Selected { remarks, .. } => remarks.clone(),
            Output::Told { text } => vec![text.clone()],
            Output::Members { members } => members.iter().filter_map(told).collect(),
            Output::WrittenBack { point, compared_bytes, written_bytes, sent_bytes } => vec![format!(
                "the source's disks hold point {point}: {} compared, {} written, {} sent",
                size::show(*compared_bytes),
                size::show(*written_bytes),
                size::show(*sent_bytes)
            )],
            Output::Started { machine, .. } => iter::once(&machine.runs_as)
                .chain(&machine.remarks)
                .filter(|line| !line.is_empty())
                .cloned()
                .collect(),
            _ => Vec::new(),
        };
        // One that was taken back ended then; what it said is older than why.
        let said_at = |step: &StepRecord| match step.state {
            StepState::Done => step.ended_at,
            _ => step.started_at,
        };
        let made = job.steps.iter().flat_map(|step| {
            remarks(step).into_iter().map(move |text| (said_at(step).unwrap_or(job.created_at), text))
        });
        let said = job.messages.iter().map(|message| (message.at, message.text.clone()));
        let failed = self.failed_reads.of(&job.id.to_string());
        let mut all: Vec<(Timestamp, String)> =
            made.chain(said).chain(failed.iter().map(|read| (read.at, read.text()))).collect();
        all.sort_by_key(|(at, _)| *at);
        all.into_iter().map(|(at, text)| JobMessageShape { at: time_text(at), text }).collect()
    }

    /// The machines of a plan's run, with their jobs as they stand now.
    fn machines(&self, job: &Job) -> Vec<JobMachineShape> {
        let Some(plan) = job.spec.plan() else { return Vec::new() };
        let outcomes: Vec<&MemberOutcome> = job
            .steps
            .iter()
            .filter_map(|step| match &step.output {
                Output::Members { members } => Some(members),
                _ => None,
            })
            .flatten()
            .collect();
        let shape = |(group, member): (&PlanGroup, &Member)| {
            let newest = newest(job, member.machine, |id| self.jobs.watch(id));
            let child = newest.map(|(_, _, watched)| watched.borrow().job.clone());
            let outcome = outcomes.iter().find(|outcome| outcome.machine == member.machine);
            let state = match (&child, outcome) {
                (Some(child), _) => state_text(child.status.state),
                (None, Some(outcome)) if outcome.state == MemberState::Skipped => "skipped",
                (None, Some(outcome)) if outcome.state == MemberState::Failed => "failed",
                (None, _) => "not begun",
            };
            let last = child.as_ref().and_then(|child| child.messages.last());
            let reason = outcome.map(|outcome| outcome.reason.clone()).filter(|reason| !reason.is_empty());
            JobMachineShape {
                group: group.name.clone(),
                machine: member.machine.to_string(),
                name: member.name.clone(),
                job: child.as_ref().map(|child| child.id.to_string()),
                state: state.to_owned(),
                reason: reason.or_else(|| last.map(|message| message.text.clone())),
                point: child
                    .as_ref()
                    .and_then(|child| child.point().or_else(|| child.written_back()))
                    .map(|point| point.to_string()),
                rto_us: child.as_ref().and_then(rto_us),
            }
        };
        plan.members().map(shape).collect()
    }

    fn exports(&self, job: &Job) -> Vec<ExportShape> {
        let shape = |endpoint: &Endpoint| ExportShape {
            disk: endpoint.disk.to_string(),
            path: self.path(endpoint.disk),
            name: endpoint.name.clone(),
            uri: endpoint.uri.clone(),
            socket: endpoint.uri.split_once("?socket=").map(|(_, socket)| socket.to_owned()),
            size_bytes: endpoint.size_bytes,
        };
        let endpoints = job.steps.iter().find_map(|step| match &step.output {
            Output::Attached { endpoints, .. } => Some(endpoints),
            _ => None,
        });
        endpoints.into_iter().flatten().map(shape).collect()
    }

    fn images(&self, job: &Job) -> Vec<ImageShape> {
        let images = job.steps.iter().find_map(|step| match &step.output {
            Output::Written { images } => Some(images),
            _ => None,
        });
        let shapes = images.into_iter().flatten().map(|image| ImageShape {
            disk: image.disk.to_string(),
            path: self.path(image.disk),
            file: text(&image.path),
            size_bytes: image.size_bytes,
            data_bytes: image.data_bytes,
        });
        shapes.collect()
    }

    fn path(&self, disk: DiskId) -> String {
        self.registry.disk(disk).map(|disk| disk.record.path).unwrap_or_default()
    }
}

fn rto_us(job: &Job) -> Option<u64> {
    job.steps.iter().find_map(|step| match &step.output {
        Output::Attached { rto_us, .. } | Output::Started { rto_us, .. } => Some(*rto_us),
        _ => None,
    })
}

/// Whether a plan that came to its end did not do all that it was to do.
fn fell_short(job: &Job) -> bool {
    let fell = |step: &StepRecord| {
        let machine = |member: &MemberOutcome| member.state == MemberState::Failed;
        step.state == StepState::Failed
            || matches!(&step.output, Output::Members { members } if members.iter().any(machine))
    };
    job.spec.plan().is_some() && job.steps.iter().any(fell)
}

/// What is said of a machine of a plan whose end is not plain.
fn told(member: &MemberOutcome) -> Option<String> {
    match member.state {
        MemberState::Done => None,
        MemberState::Skipped => Some(format!("{}: {}", member.name, member.reason)),
        MemberState::Failed => Some(format!("{} failed: {}", member.name, member.reason)),
    }
}

fn written_back(step: &StepRecord) -> Option<WrittenBackShape> {
    let Output::WrittenBack { point, compared_bytes, written_bytes, sent_bytes } = step.output else {
        return None;
    };
    Some(WrittenBackShape { point: point.to_string(), compared_bytes, written_bytes, sent_bytes })
}

fn runs_shape(machine: &StartedMachine) -> RunsShape {
    RunsShape {
        runs_as: machine.runs_as.clone(),
        console: machine.console.as_deref().map(text),
        console_log: machine.console_log.as_deref().map(text),
    }
}

impl JobControl for Control {
    fn failover(
        &self,
        who: String,
        machine: MachineId,
        selection: Selection,
        target: TargetShape,
        mode: FailoverMode,
    ) -> BoxFuture<'_, Result<JobShape, JobRefusal>> {
        Box::pin(async move {
            let (target, (mode, stop_source)) = (target_of(target), mode_of(mode));
            let networks = BTreeMap::new();
            let spec = FailoverSpec { machine, selection, target, mode, stop_source, networks, drill: None };
            let spec = JobSpec::Failover(spec);
            let job = self.jobs.submit(spec, &who).await.map_err(refusal)?;
            self.view(job)
        })
    }

    fn drill(
        &self,
        who: String,
        machine: MachineId,
        selection: Selection,
        drill: Drill,
    ) -> BoxFuture<'_, Result<JobShape, JobRefusal>> {
        Box::pin(async move {
            let spec = FailoverSpec {
                machine,
                selection,
                target: Target::Machine { stream: false },
                mode: Mode::Test,
                stop_source: false,
                networks: BTreeMap::new(),
                drill: Some(drill),
            };
            let job = self.jobs.submit(JobSpec::Failover(spec), &who).await.map_err(refusal)?;
            self.view(job)
        })
    }

    fn run_plan(&self, who: String, run: PlanRun) -> BoxFuture<'_, Result<JobShape, JobRefusal>> {
        Box::pin(async move {
            let target = target_of(run.target);
            let member = |member: PlanMember| {
                let PlanMember { machine, name, selection, target } = member;
                (name.clone(), Member { machine, name, selection, target: target_of(target) })
            };
            let members = run.members.into_iter().map(member).collect();
            let PlanRun { course, stop_source, selection, agents, .. } = run;
            let asked = plan::Run { course, stop_source, selection, target, agents };
            let spec = plan::compile(&run.file, &asked, &members);
            let job = self.jobs.submit(JobSpec::Plan(Box::new(spec)), &who).await.map_err(refusal)?;
            self.view(job)
        })
    }

    fn plan_jobs(&self, plan: Option<&str>) -> Vec<PlanJob> {
        let views = self.jobs.list();
        let of_the_plan = views.iter().rev().filter_map(|view| {
            let spec = view.job.spec.plan().filter(|spec| plan.is_none_or(|plan| spec.plan == plan))?;
            let child = |(_, member): (&PlanGroup, &Member)| {
                let newest = newest(&view.job, member.machine, |id| self.jobs.watch(id));
                newest.map(|(_, id, _)| (member.machine, id))
            };
            Some(PlanJob {
                id: view.job.id,
                course: spec.mode,
                is_over: view.job.status.state.is_over(),
                is_settled: view.is_settled() && !matches!(view.job.status.state, State::Waiting { .. }),
                children: spec.members().filter_map(child).collect(),
            })
        });
        of_the_plan.collect()
    }

    fn way_back(
        &self,
        who: String,
        machine: MachineId,
        failover: JobId,
        verb: WayBackVerb,
    ) -> BoxFuture<'_, Result<JobShape, JobRefusal>> {
        Box::pin(async move {
            let of = self.jobs.watch(failover).ok_or(JobRefusal::Unknown(failover))?;
            let spec = WayBackSpec::of(&of.borrow().job).filter(|spec| spec.machine == machine);
            let spec = spec.ok_or(JobRefusal::Unknown(failover))?;
            let spec = match verb {
                WayBackVerb::Reprotect => JobSpec::Reprotect(spec),
                WayBackVerb::Failback => JobSpec::Failback(spec),
            };
            let job = self.jobs.submit(spec, &who).await.map_err(refusal)?;
            self.view(job)
        })
    }

    fn release_target(&self, machine: MachineId) -> BoxFuture<'_, ()> {
        self.way_back.release(machine)
    }

    fn candidates(&self, machine: MachineId) -> BoxFuture<'_, Result<Vec<Candidate>, JobRefusal>> {
        Box::pin(async move {
            self.points.candidates(machine).await.map_err(|error| JobRefusal::Failed(Box::new(error)))
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<JobShape>, JobRefusal>> {
        Box::pin(async move { Ok(self.jobs.list().iter().rev().map(|view| self.shape(view)).collect()) })
    }

    fn show(&self, job: JobId) -> BoxFuture<'_, Result<JobShape, JobRefusal>> {
        Box::pin(async move { self.view(job) })
    }

    fn cancel(&self, who: String, job: JobId) -> BoxFuture<'_, Result<JobShape, JobRefusal>> {
        Box::pin(async move { self.command(job, Command::Cancel, &who).await })
    }

    fn change_point(
        &self,
        who: String,
        job: JobId,
        selection: Selection,
    ) -> BoxFuture<'_, Result<JobShape, JobRefusal>> {
        Box::pin(async move { self.command(job, Command::ChangePoint(selection), &who).await })
    }

    fn end(&self, who: String, job: JobId) -> BoxFuture<'_, Result<JobShape, JobRefusal>> {
        Box::pin(async move {
            let mut watched = self.jobs.watch(job).ok_or(JobRefusal::Unknown(job))?;
            match self.jobs.command(job, Command::Cancel, &who).await {
                // Over, or being taken back already.
                Ok(()) | Err(JobError::NotNow(_)) => {}
                Err(error) => return Err(refusal(error)),
            }
            // An error means that the coordinator ends; the view says how far it got.
            let _ended = watched.wait_for(JobView::is_settled).await;
            self.view(job)
        })
    }

    fn go_on(&self, who: String, job: JobId) -> BoxFuture<'_, Result<JobShape, JobRefusal>> {
        Box::pin(async move { self.command(job, Command::Continue, &who).await })
    }

    fn retry(&self, who: String, job: JobId) -> BoxFuture<'_, Result<JobShape, JobRefusal>> {
        Box::pin(async move { self.command(job, Command::Retry, &who).await })
    }
}

fn target_of(target: TargetShape) -> Target {
    match target {
        TargetShape::Attach => Target::Attach,
        TargetShape::Branch => Target::Branch,
        TargetShape::Machine { stream } => Target::Machine { stream },
        TargetShape::Image { folder, format, update } => {
            let format = if format == "qcow2" { ImageFormat::Qcow2 } else { ImageFormat::Raw };
            Target::Image { folder, format, update }
        }
    }
}

const fn mode_of(mode: FailoverMode) -> (Mode, bool) {
    match mode {
        FailoverMode::Test => (Mode::Test, false),
        FailoverMode::Unplanned { stop_source } => (Mode::Unplanned, stop_source),
        FailoverMode::Planned => (Mode::Planned, true),
    }
}

fn refusal(error: JobError) -> JobRefusal {
    match error {
        JobError::Unknown(job) => JobRefusal::Unknown(job),
        JobError::NotNow(_) | JobError::TooMany | JobError::Stopped => JobRefusal::NotNow(error.to_string()),
        JobError::Store(_) | JobError::Log(_) => JobRefusal::Failed(Box::new(error)),
    }
}

const fn progress_shape(progress: Progress) -> ProgressShape {
    ProgressShape {
        done_bytes: progress.done_bytes,
        total_bytes: progress.total_bytes,
        bytes_per_second: progress.bytes_per_second,
        left_ms: progress.left_ms,
    }
}

fn kind(spec: &JobSpec) -> &'static str {
    match spec {
        JobSpec::Failover(FailoverSpec { drill: Some(_), .. }) => "drill",
        JobSpec::Failover(FailoverSpec { mode: Mode::Test, .. }) => "test-failover",
        JobSpec::Failover(FailoverSpec { mode: Mode::Unplanned, .. }) => "failover",
        JobSpec::Failover(FailoverSpec { mode: Mode::Planned, .. }) => "planned-failover",
        JobSpec::Reprotect(_) => "reprotect",
        JobSpec::Failback(_) => "failback",
        JobSpec::Plan(plan) => match plan.mode {
            Course::Test => "plan-test-failover",
            Course::Unplanned => "plan-failover",
            Course::Planned => "plan-planned-failover",
            Course::Reprotect => "plan-reprotect",
            Course::Failback => "plan-failback",
        },
    }
}

const fn state_text(state: State) -> &'static str {
    match state {
        State::Ready { .. } | State::Running { .. } => "running",
        State::Waiting { .. } => "waiting",
        State::Held { .. } => "held",
        State::Holding => "holding",
        State::Undoing { .. } => "cancelling",
        State::Stuck { .. } => "stuck",
        State::Succeeded => "succeeded",
        State::Cancelled => "cancelled",
        State::Failed => "failed",
    }
}

fn step_shape(job: &Job, number: usize, step: &StepRecord) -> JobStepShape {
    // The names of steps and their states are those of their persisted forms.
    let name = |value: serde_json::Result<serde_json::Value>| {
        value.ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    };
    let planned = job.spec.plan().and_then(|plan| plan.title(u32::try_from(number).unwrap_or(u32::MAX)));
    JobStepShape {
        kind: name(serde_json::to_value(step.kind)),
        state: name(serde_json::to_value(step.state)),
        started_at: step.started_at.map(time_text),
        ended_at: step.ended_at.map(time_text),
        took_ms: step.started_at.zip(step.ended_at).map(|(from, to)| millis(to.since(from))),
        title: planned.unwrap_or_else(|| title(step.kind).to_owned()),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The steps as operators know them.
const fn title(kind: StepKind) -> &'static str {
    match kind {
        StepKind::Check => "prerequisites check",
        StepKind::StopSource => "shut down source",
        StepKind::Synchronize => "synchronize",
        StepKind::SelectPoint => "choose the recovery point",
        StepKind::ProcessPoint => "process the recovery point",
        StepKind::Switch => "switch to the target",
        StepKind::Attach => "attach the disks",
        StepKind::WriteImages => "write images",
        StepKind::ReleasePoint => "release the recovery point",
        StepKind::DefineMachine => "define the machine",
        StepKind::StartMachine => "start the machine",
        StepKind::Verify => "verify",
        StepKind::MoveMachine => "move the machine to images of its own",
        StepKind::PlanCheck => "prerequisites check",
        StepKind::PlanScript => "run a script",
        StepKind::PlanManual => "manual action",
        StepKind::PlanMachines => "machines",
        StepKind::PlanEnd => "end of the plan",
        StepKind::BeginReprotect | StepKind::BeginFailback => "prerequisites check",
        StepKind::TakeOverLog => "begin a line of history of the target",
        StepKind::FollowTarget => "bring the log to the target",
        StepKind::WriteBack => "write to the source while the target runs",
        StepKind::StopTarget => "shut down the target",
        StepKind::LastPoint => "make the last point of the target",
        StepKind::WriteBackRest => "write the rest to the source",
        StepKind::SwitchBack => "switch to the source",
        StepKind::EndTarget => "remove the target",
        StepKind::Probe => "wait until it has booted",
        StepKind::EndDrill => "clean up",
    }
}

fn target_shape(target: &Target) -> TargetShape {
    match target {
        Target::Attach => TargetShape::Attach,
        Target::Branch => TargetShape::Branch,
        Target::Machine { stream } => TargetShape::Machine { stream: *stream },
        Target::Image { folder, format, update } => {
            let format = match format {
                ImageFormat::Raw => "raw",
                ImageFormat::Qcow2 => "qcow2",
            };
            TargetShape::Image { folder: folder.clone(), format: format.to_owned(), update: *update }
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
