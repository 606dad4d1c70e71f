//! The engine: all jobs of the coordinator.
//!
//! Owns the set of jobs and one task per job; `driver.rs` runs a single one. Knows no plan's content and no storage.
//! Invariant: a job is driven by at most one task, and everything it does is in its log before the next thing begins.
//! Limits: `JOBS_MAX` jobs; the oldest that are over are forgotten to make room.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use holdfast_common::{clock::Clock, entropy::Entropy, ids::JobId};
use serde::Serialize;
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    children::ChildJobs,
    driver::{Driver, Order},
    job::{Job, JobSpec},
    log::{self, Event, LogError, Record},
    machine::{State, TransitionError},
    port::{JobStore, LogRecord, StoreError},
    step::Plans,
};
use crate::{
    compute::port::{BoxFuture, Progress},
    points::selection::Selection,
};

/// What the engine is built from.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Where events are kept.
    pub store: Arc<dyn JobStore>,
    /// Steps of all kinds of jobs.
    pub plans: Arc<dyn Plans>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Ids.
    pub entropy: Arc<dyn Entropy>,
}

/// A job with the progress of the step that runs.
#[derive(Clone, Debug, Serialize)]
pub struct JobView {
    /// The job.
    pub job: Job,
    /// How far the running step is, if it counts bytes.
    pub progress: Option<Progress>,
}

/// What an operator may ask of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Take everything back. For a job that holds something: end it.
    Cancel,
    /// Go on after a failure.
    Retry,
    /// Go on after a manual step.
    Continue,
    /// Make another point usable instead of the one that the job holds.
    ChangePoint(Selection),
}

/// The request was not taken.
#[derive(Debug, Error)]
pub enum JobError {
    /// No such job.
    #[error("there is no job {0}; `holdfast jobs` lists them")]
    Unknown(JobId),
    /// Not in this state.
    #[error(transparent)]
    NotNow(#[from] TransitionError),
    /// No room.
    #[error("there are {JOBS_MAX} jobs and none is over; cancel one first")]
    TooMany,
    /// The event cannot be stored.
    #[error("the job's log cannot be written")]
    Store(#[from] StoreError),
    /// The event cannot be encoded.
    #[error("the job cannot be recorded")]
    Log(#[from] LogError),
    /// The coordinator is stopping, or another one runs the job.
    #[error("the job is not run by this coordinator any more")]
    Stopped,
}

/// The engine. Dropping it stops all jobs where they are; the next start goes on with them.
pub struct Jobs {
    engine: Arc<Engine>,
}

/// What the tasks of jobs share.
struct Engine {
    parts: Parts,
    jobs: Mutex<BTreeMap<JobId, Entry>>,
    /// Itself, for the tasks: they do not keep it.
    own: Weak<Self>,
}

struct Entry {
    orders: mpsc::Sender<Order>,
    view: watch::Receiver<JobView>,
    task: JoinHandle<()>,
}

impl Jobs {
    /// Reads all logs and goes on with every job. Must be called within a tokio runtime. A log that cannot be understood is
    /// reported and left alone.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn start(parts: Parts) -> Result<Self, StoreError> {
        let mut found: BTreeMap<JobId, Result<Job, String>> = BTreeMap::new();
        for stored in parts.store.load().await? {
            let record = log::decode(&stored).map_err(|error| error.to_string());
            let folded = match (found.remove(&stored.job), record) {
                (None, Ok(record)) => Job::begin(&record).map_err(|error| error.to_string()),
                (Some(Ok(mut job)), Ok(record)) => {
                    job.apply(&record).map(|()| job).map_err(|error| error.to_string())
                }
                (Some(Err(error)), _) | (_, Err(error)) => Err(error),
            };
            found.insert(stored.job, folded);
        }
        let engine = Arc::new_cyclic(|own| Engine { parts, jobs: Mutex::default(), own: Weak::clone(own) });
        {
            // All at once: whoever looks for a job that it began finds it.
            let mut jobs = engine.lock();
            for (id, folded) in found {
                match folded {
                    Ok(job) => _ = jobs.insert(id, engine.drive(job, None)),
                    Err(error) => {
                        tracing::error!(job = %id, error, "a job's log cannot be understood; it is left alone")
                    }
                }
            }
        }
        Ok(Self { engine })
    }

    /// Begins a job; it is durable when this returns.
    ///
    /// # Errors
    /// Nothing was begun.
    pub async fn submit(&self, spec: JobSpec, by: &str) -> Result<JobId, JobError> {
        let engine = &self.engine;
        engine.make_room().await?;
        let id = JobId(engine.parts.entropy.uuid(engine.parts.clock.wall()));
        let record = engine.first(id, spec, by);
        let job = Job::begin(&record)?;
        engine.parts.store.append(log::encode(&record)?).await?;
        let entry = engine.drive(job, None);
        engine.lock().insert(id, entry);
        Ok(id)
    }

    /// Asks something of a job; it is durable when this returns, and done soon.
    ///
    /// # Errors
    /// The job is unchanged.
    pub async fn command(&self, id: JobId, command: Command, by: &str) -> Result<(), JobError> {
        self.engine.command(id, command, by).await
    }

    /// All jobs, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<JobView> {
        self.engine.lock().values().map(|entry| entry.view.borrow().clone()).collect()
    }

    /// One job, to be followed: the receiver is notified of every event, and of progress about twice a second.
    #[must_use]
    pub fn watch(&self, id: JobId) -> Option<watch::Receiver<JobView>> {
        self.engine.lock().get(&id).map(|entry| entry.view.clone())
    }

    /// Stops all jobs where they are, as at the end of the program; they go on at the next start.
    pub async fn stop(&self) {
        let entries = std::mem::take(&mut *self.engine.lock());
        for entry in entries.into_values() {
            entry.task.abort();
            // Aborted, or over already.
            let _ended = entry.task.await;
        }
    }
}

impl Engine {
    /// The first event of a job.
    fn first(&self, id: JobId, spec: JobSpec, by: &str) -> Record {
        let plan = self.parts.plans.plan(&spec);
        let by = log::bounded(by.to_owned());
        let event = Event::Created { spec, by, steps: plan.steps, holds: plan.holds };
        Record { job: id, number: 1, at: self.parts.clock.wall(), event }
    }

    async fn command(&self, id: JobId, command: Command, by: &str) -> Result<(), JobError> {
        let orders = self.lock().get(&id).map(|entry| entry.orders.clone());
        let orders = orders.ok_or(JobError::Unknown(id))?;
        let (answer, answered) = oneshot::channel();
        let order = Order { command, by: log::bounded(by.to_owned()), answer };
        orders.send(order).await.map_err(|_| JobError::Stopped)?;
        answered.await.map_err(|_| JobError::Stopped)?
    }

    /// A task for a job; `unsaved` is its first event if that is not stored yet.
    fn drive(&self, job: Job, unsaved: Option<LogRecord>) -> Entry {
        let (orders, received) = mpsc::channel(ORDERS_MAX);
        let (publish, view) = watch::channel(JobView { job: job.clone(), progress: None });
        let children = Arc::new(Family(Weak::clone(&self.own)));
        let mut driver = Driver::new(job, self.parts.clone(), received, publish, children);
        if let Some(first) = unsaved {
            driver = driver.unsaved(first);
        }
        let task = tokio::spawn(driver.run());
        Entry { orders, view, task }
    }

    /// Forgets the oldest job that is over if there are too many.
    async fn make_room(&self) -> Result<(), JobError> {
        let oldest = {
            let jobs = self.lock();
            if jobs.len() < JOBS_MAX {
                return Ok(());
            }
            let over = |entry: &Entry| entry.view.borrow().job.status.state.is_over();
            jobs.iter().find(|(_, entry)| over(entry)).map(|(id, _)| *id).ok_or(JobError::TooMany)?
        };
        self.parts.store.forget(oldest).await?;
        if let Some(entry) = self.lock().remove(&oldest) {
            entry.task.abort();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobId, Entry>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine, for jobs that begin others.
struct Family(Weak<Engine>);

impl Family {
    fn engine(&self) -> Result<Arc<Engine>, JobError> {
        self.0.upgrade().ok_or(JobError::Stopped)
    }
}

impl ChildJobs for Family {
    fn begin(&self, id: JobId, spec: JobSpec, by: String) -> BoxFuture<'_, Result<(), JobError>> {
        Box::pin(async move {
            let engine = self.engine()?;
            engine.make_room().await?;
            let record = engine.first(id, spec, &by);
            let (job, stored) = (Job::begin(&record)?, log::encode(&record)?);
            // Nothing is awaited from here on, so it is known or it is not.
            let mut jobs = engine.lock();
            jobs.entry(id).or_insert_with(|| engine.drive(job, Some(stored)));
            Ok(())
        })
    }

    fn watch(&self, id: JobId) -> Option<watch::Receiver<JobView>> {
        self.engine().ok()?.lock().get(&id).map(|entry| entry.view.clone())
    }

    fn command(&self, id: JobId, command: Command, by: String) -> BoxFuture<'_, Result<(), JobError>> {
        Box::pin(async move { self.engine()?.command(id, command, &by).await })
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family").finish_non_exhaustive()
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.engine.lock().values().for_each(|entry| entry.task.abort());
    }
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").field("count", &self.engine.lock().len()).finish_non_exhaustive()
    }
}

impl JobView {
    /// Whether nothing more will happen by itself: the job is over, or waits for an operator.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !matches!(self.job.status.state, State::Ready { .. } | State::Running { .. } | State::Undoing { .. })
    }
}

/// Jobs kept, those that are over included.
pub const JOBS_MAX: usize = 10_000;
/// Requests to one job that wait.
const ORDERS_MAX: usize = 16;
