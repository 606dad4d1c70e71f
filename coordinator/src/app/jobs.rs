//! Jobs: their events in the catalog, and what operators see of them.
//!
//! Owns the translation between the job engine, the catalog and the interface's shapes.

use std::{iter, path::Path, sync::Arc, time::Duration};

use holdfast_common::ids::{DiskId, JobId, MachineId, PointId};

use super::{checks::Checks, damage::FailedReads};
use crate::{
    api::{
        machine_shapes::RunsShape,
        port::{FailoverMode, JobControl, JobRefusal},
        shapes::{
            ExportShape, ImageShape, JobMessageShape, JobShape, JobStepShape, ProgressShape, TargetShape,
            VerificationShape,
        },
        time_text,
    },
    catalog::{Catalog, CatalogError, Change, record::JobEventRow},
    compute::{
        machines::StartedMachine,
        port::{BoxFuture, Endpoint, ImageFormat, Progress},
    },
    failover::{
        job::{FailoverSpec, Job, JobSpec, Mode, Output, StepKind, StepRecord, Target},
        machine::State,
        port::{JobStore, LogRecord, PointSource, StoreError},
        runner::{Command, JobError, JobView, Jobs},
    },
    points::selection::{Candidate, Selection},
    registry::Registry,
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
        let machine = job.spec.machine();
        let JobSpec::Failover(spec) = &job.spec;
        let selected = job.steps.iter().find_map(|step| match &step.output {
            Output::Selected { point, at, .. } => Some((*point, *at)),
            _ => None,
        });
        let state = job.status.state;
        JobShape {
            id: job.id.to_string(),
            kind: kind(spec.mode).to_owned(),
            machine: machine.to_string(),
            machine_name: self
                .registry
                .machine(machine)
                .map(|machine| machine.record.name)
                .unwrap_or_default(),
            by: job.by.clone(),
            state: state_text(state).to_owned(),
            settled: view.is_settled(),
            ok: matches!(state, State::Succeeded | State::Holding),
            selection: spec.selection.to_string(),
            point: selected.map(|(point, _)| point.to_string()),
            point_at: selected.map(|(_, at)| time_text(at)),
            target: target_shape(&spec.target),
            created_at: time_text(job.created_at),
            changed_at: time_text(job.changed_at),
            steps: job.steps.iter().map(step_shape).collect(),
            messages: self.messages(job),
            progress: view.progress.map(progress_shape),
            exports: if state == State::Holding { self.exports(job) } else { Vec::new() },
            images: self.images(job),
            runs: job.runs().filter(|_| state != State::Cancelled).map(runs_shape),
            rto_us: job.steps.iter().find_map(|step| match &step.output {
                Output::Attached { rto_us, .. } | Output::Started { rto_us, .. } => Some(*rto_us),
                _ => None,
            }),
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
        let shape = |at, text: &str| JobMessageShape { at: time_text(at), text: text.to_owned() };
        let remarks = job.steps.iter().flat_map(|step| match &step.output {
            Output::Selected { remarks, .. } => remarks.clone(),
            Output::Told { text } => vec![text.clone()],
            Output::Started { machine, .. } => iter::once(&machine.runs_as)
                .chain(&machine.remarks)
                .filter(|line| !line.is_empty())
                .cloned()
                .collect(),
            _ => Vec::new(),
        });
        let chosen = remarks.map(|remark| shape(job.created_at, &remark));
        let said = job.messages.iter().map(|message| shape(message.at, &message.text));
        let failed = self.failed_reads.of(&job.id.to_string());
        chosen.chain(said).chain(failed.iter().map(|read| shape(read.at, &read.text()))).collect()
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
            let target = match target {
                TargetShape::Attach => Target::Attach,
                TargetShape::Branch => Target::Branch,
                TargetShape::Machine { stream } => Target::Machine { stream },
                TargetShape::Image { folder, format, update } => {
                    let format = if format == "qcow2" { ImageFormat::Qcow2 } else { ImageFormat::Raw };
                    Target::Image { folder, format, update }
                }
            };
            let (mode, stop_source) = match mode {
                FailoverMode::Test => (Mode::Test, false),
                FailoverMode::Unplanned { stop_source } => (Mode::Unplanned, stop_source),
                FailoverMode::Planned => (Mode::Planned, true),
            };
            let spec = FailoverSpec { machine, selection, target, mode, stop_source };
            let spec = JobSpec::Failover(spec);
            let job = self.jobs.submit(spec, &who).await.map_err(refusal)?;
            self.view(job)
        })
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

const fn kind(mode: Mode) -> &'static str {
    match mode {
        Mode::Test => "test-failover",
        Mode::Unplanned => "failover",
        Mode::Planned => "planned-failover",
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

fn step_shape(step: &StepRecord) -> JobStepShape {
    // The names of steps and their states are those of their persisted forms.
    let name = |value: serde_json::Result<serde_json::Value>| {
        value.ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    };
    JobStepShape {
        kind: name(serde_json::to_value(step.kind)),
        state: name(serde_json::to_value(step.state)),
        started_at: step.started_at.map(time_text),
        ended_at: step.ended_at.map(time_text),
        took_ms: step.started_at.zip(step.ended_at).map(|(from, to)| millis(to.since(from))),
        title: title(step.kind).to_owned(),
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
