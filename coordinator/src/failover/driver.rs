//! Drives one job: does what its state asks for, records what happened, and so on until it waits or is over.
//!
//! Owns the job. Knows no step's content. Invariant: nothing follows from an event before the store has it; when the store
//! refuses, the job stands still.
//! Limits: a cancelled step has `CANCEL_GRACE` to end by itself; a failing store is asked again every `STORE_PAUSE`.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};

use super::{
    children::{ChildJobs, all_over},
    job::{Job, StepKind, StepState},
    log::{self, Event, LogError, Record},
    machine::{self, State},
    port::{LogRecord, StoreError},
    runner::{Command, JobError, JobView, Parts},
    step::{Context, Outcome, StepError},
};
use crate::compute::port::Task;

/// A request of an operator to one job.
#[derive(Debug)]
pub(super) struct Order {
    pub command: Command,
    pub by: String,
    pub answer: oneshot::Sender<Result<(), JobError>>,
}

/// Another coordinator has the job, or the engine is gone: nothing more to do here.
struct Stopped;

/// One job being driven.
#[derive(Debug)]
pub(super) struct Driver {
    job: Job,
    parts: Parts,
    orders: mpsc::Receiver<Order>,
    publish: watch::Sender<JobView>,
    children: Arc<dyn ChildJobs>,
    /// Its first event, while that is not stored.
    unsaved: Option<LogRecord>,
    /// The operator has answered the step that waits.
    continued: bool,
}

impl Driver {
    pub(super) fn new(
        job: Job,
        parts: Parts,
        orders: mpsc::Receiver<Order>,
        publish: watch::Sender<JobView>,
        children: Arc<dyn ChildJobs>,
    ) -> Self {
        Self { job, parts, orders, publish, children, unsaved: None, continued: false }
    }

    /// The job's first event is not stored yet: that is the first thing that it does.
    pub(super) fn unsaved(mut self, first: LogRecord) -> Self {
        self.unsaved = Some(first);
        self
    }

    /// Drives until the job is taken away. Dropping it at any moment is a restart.
    pub(super) async fn run(mut self) {
        if let Some(first) = self.unsaved.take()
            && self.store(&first).await.is_err()
        {
            return;
        }
        let state = self.job.status.state;
        if !state.is_over() && !matches!(state, State::Undoing { .. } | State::Stuck { .. }) {
            self.restore().await;
        }
        while self.advance().await.is_ok() {}
    }

    async fn advance(&mut self) -> Result<(), Stopped> {
        match self.job.status.state {
            State::Ready { step } | State::Running { step } => self.forward(step).await,
            State::Undoing { step, .. } => self.backward(step).await,
            State::Holding => {
                let order = tokio::select! {
                    biased;
                    order = self.orders.recv() => order.ok_or(Stopped)?,
                    () = all_over(&self.job, &*self.children) => return self.record(Event::NothingHeld).await,
                };
                self.obey(order).await.map(drop)
            }
            _ => {
                let order = self.orders.recv().await.ok_or(Stopped)?;
                self.obey(order).await.map(drop)
            }
        }
    }

    /// Runs a step, listening to orders meanwhile.
    async fn forward(&mut self, step: u32) -> Result<(), Stopped> {
        if !self.continued {
            self.record(Event::StepStarted { step }).await?;
        }
        let context = self.context(step);
        self.continued = false;
        let implementation = match self.kind(step) {
            Some(kind) => self.parts.plans.step(kind),
            None => return Err(Stopped),
        };
        let mut running = implementation.run(&context);
        let began = self.parts.clock.monotonic();
        let mut ticks = time::interval(PROGRESS_INTERVAL);
        let outcome = loop {
            tokio::select! {
                biased;
                outcome = &mut running => break outcome,
                order = self.orders.recv() => {
                    if self.obey(order.ok_or(Stopped)?).await? {
                        context.task.cancel();
                        // What it answers does not matter any more: it is taken back.
                        let _outcome = time::timeout(CANCEL_GRACE, running).await;
                        return Ok(());
                    }
                }
                _ = ticks.tick() => {
                    let elapsed = self.parts.clock.monotonic().saturating_sub(began);
                    let progress = context.task.progress(elapsed);
                    self.publish.send_modify(|view| view.progress = Some(progress));
                }
            }
        };
        drop(running);
        self.record(ended(step, outcome)).await
    }

    async fn backward(&mut self, step: u32) -> Result<(), Stopped> {
        let context = self.context(step);
        let Some(kind) = self.kind(step) else { return Err(Stopped) };
        let undone = self.parts.plans.step(kind).undo(&context).await;
        let event = match undone {
            Ok(()) => Event::UndoDone { step },
            Err(StepError { message, .. }) => Event::UndoFailed { step, message },
        };
        self.record(event).await
    }

    /// Brings back what steps that are done keep up: the steps after them, and the operator, count on it. What cannot be brought back is said; cancel still works, and a restart tries again.
    async fn restore(&mut self) {
        for index in 0..self.job.steps.len() {
            let context = self.context(u32::try_from(index).unwrap_or(u32::MAX));
            let Some(record) = self.job.steps.get(index) else { continue };
            if record.state != StepState::Done || self.is_outdated(index) {
                continue;
            }
            let restored = self.parts.plans.step(record.kind).restore(&context).await;
            if let Err(StepError { message, .. }) = restored {
                tracing::error!(job = %self.job.id, message, "what a job holds could not be brought back");
                let text = log::bounded(format!("could not be brought back after a restart: {message}"));
                if self.record(Event::Message { text }).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Does what an operator wants, if it is possible now. Gives whether the job was cancelled.
    async fn obey(&mut self, order: Order) -> Result<bool, Stopped> {
        let by = order.by;
        let event = match order.command {
            Command::Cancel => Event::CancelRequested { by },
            Command::Retry => Event::RetryRequested { by },
            Command::Continue => Event::ContinueRequested { by },
            Command::ChangePoint(selection) => {
                Event::PointChangeRequested { by, selection, step: self.choosing() }
            }
        };
        if let Err(error) = machine::next(&self.job.status, &event) {
            // The one who asked may have gone.
            let _gone = order.answer.send(Err(error.into()));
            return Ok(false);
        }
        self.record(event).await?;
        self.continued = order.command == Command::Continue;
        let _gone = order.answer.send(Ok(()));
        Ok(order.command == Command::Cancel)
    }

    /// Makes an event durable, then takes it in.
    async fn record(&mut self, event: Event) -> Result<(), Stopped> {
        let record =
            Record { job: self.job.id, number: self.job.last_event + 1, at: self.parts.clock.wall(), event };
        let mut after = self.job.clone();
        if let Err(error) = after.apply(&record) {
            tracing::error!(job = %self.job.id, %error, "a job stands still: its next event does not fit");
            return Err(Stopped);
        }
        let stored = log::encode(&record).map_err(|error| self.unstorable(&error))?;
        self.store(&stored).await?;
        self.job = after;
        self.publish.send_replace(JobView { job: self.job.clone(), progress: None });
        Ok(())
    }

    /// Makes a record durable; a store that fails is asked again.
    async fn store(&self, record: &LogRecord) -> Result<(), Stopped> {
        loop {
            match self.parts.store.append(record.clone()).await {
                Ok(()) => return Ok(()),
                Err(StoreError::Taken { number, .. }) => {
                    tracing::error!(job = %self.job.id, number, "a job stands still: somebody else runs it");
                    return Err(Stopped);
                }
                Err(error @ StoreError::Failed { .. }) => {
                    tracing::error!(job = %self.job.id, %error, "a job waits for the catalog");
                    time::sleep(STORE_PAUSE).await;
                }
            }
        }
    }

    fn unstorable(&self, error: &LogError) -> Stopped {
        tracing::error!(job = %self.job.id, %error, "a job stands still: its next event cannot be stored");
        Stopped
    }

    fn context(&self, step: u32) -> Context {
        Context {
            job: self.job.clone(),
            step,
            children: Arc::clone(&self.children),
            task: Arc::new(Task::default()),
            continued: self.continued,
            clock: Arc::clone(&self.parts.clock),
        }
    }

    /// Whether a step was done for another point than the one that is chosen now: it is run again soon.
    fn is_outdated(&self, index: usize) -> bool {
        let at = match self.job.status.state {
            State::Ready { step }
            | State::Running { step }
            | State::Waiting { step }
            | State::Held { step } => step,
            _ => return false,
        };
        at > self.choosing() && u32::try_from(index).is_ok_and(|index| index >= at)
    }

    /// The step that chooses the point; one that is not there if the job chooses none, which no state accepts.
    fn choosing(&self) -> u32 {
        let chooses = self.job.steps.iter().position(|step| step.kind == StepKind::SelectPoint);
        chooses.and_then(|step| u32::try_from(step).ok()).unwrap_or(u32::MAX)
    }

    fn kind(&self, step: u32) -> Option<StepKind> {
        self.job.steps.get(usize::try_from(step).ok()?).map(|step| step.kind)
    }
}

/// The event that a step's end makes.
fn ended(step: u32, outcome: Result<Outcome, StepError>) -> Event {
    match outcome {
        Ok(Outcome::Done(output)) => Event::StepDone { step, output },
        Ok(Outcome::Waits(reason)) => Event::StepWaits { step, reason: log::bounded(reason) },
        Err(StepError { message, then }) => Event::StepFailed { step, message, then },
    }
}

/// Time that a cancelled step has to end by itself before it is dropped.
const CANCEL_GRACE: Duration = Duration::from_secs(3);
/// How often progress is published.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// Pause before a failed append is tried again.
const STORE_PAUSE: Duration = Duration::from_secs(1);
