//! Machines between their sites, and their sources, as jobs see them.
//!
//! Owns the translation between the job engine's contracts, the registry and the live sessions of agents.

use std::{sync::Arc, time::Duration};

use holdfast_common::{
    clock::Clock,
    ids::{JobId, MachineId, PointId, Sequence},
    wire::{SourceOrder, SourceRun, SourceStep},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    api::readiness::Looks,
    catalog::{Catalog, CatalogError},
    compute::port::BoxFuture,
    failover::port::{LifecycleError, Lifecycles, ScriptRequest, SourceError, SourceFacts, Sources},
    ingest::links::{LiveLinks, Push, PushError},
    points::{catalog::PointCatalog, request::next_request},
    registry::{
        Registry, RegistryError,
        lifecycle::{Lifecycle, LifecycleEvent},
    },
};

/// The registry as the place where machines stand.
#[derive(Debug)]
pub(super) struct RegistryLifecycles(pub(super) Arc<Registry>);

impl Lifecycles for RegistryLifecycles {
    fn now(&self, machine: MachineId) -> Option<Lifecycle> {
        self.0.machine(machine).map(|status| status.lifecycle)
    }

    fn advance(
        &self,
        machine: MachineId,
        event: LifecycleEvent,
        job: JobId,
    ) -> BoxFuture<'_, Result<Lifecycle, LifecycleError>> {
        Box::pin(async move {
            let advanced = self.0.advance(&format!("job {job}"), machine, event).await;
            advanced.map_err(|error| match error {
                RegistryError::Lifecycle(refusal) => refusal.into(),
                other => LifecycleError::Failed(Box::new(other)),
            })
        })
    }
}

/// Machines whose job is not known any more (the catalog was made anew from what the logs say): a failover that had not
/// switched is given up; one that had stays what it is.
pub(super) async fn forget_lost_jobs(
    registry: &Registry,
    is_known: impl Fn(JobId) -> bool,
) -> Result<(), RegistryError> {
    for machine in registry.machines() {
        let (id, lifecycle) = (machine.record.id, machine.lifecycle);
        let failover = lifecycle.stage.failover().filter(|job| !lifecycle.is_fenced() && !is_known(*job));
        let given_up = failover.map(LifecycleEvent::AbandonFailover);
        let ended =
            lifecycle.tests.iter().filter(|job| !is_known(**job)).copied().map(LifecycleEvent::EndTest);
        for event in given_up.into_iter().chain(ended) {
            tracing::warn!(machine = %id, ?event, "a machine's job is lost; it is over");
            registry.advance("coordinator", id, event).await?;
        }
    }
    Ok(())
}

/// Sources through their agents' sessions.
#[derive(Debug)]
pub(super) struct AgentSources {
    pub(super) registry: Arc<Registry>,
    pub(super) links: LiveLinks,
    pub(super) points: Arc<PointCatalog>,
    pub(super) catalog: Arc<dyn Catalog>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) looks: Arc<dyn Looks>,
}

impl AgentSources {
    fn push(&self, machine: MachineId, push: Push) -> Result<(), SourceError> {
        self.links.push(machine, push).map_err(|error| match error {
            PushError::NotConnected | PushError::Silent => SourceError::NotConnected,
            PushError::Busy => SourceError::Refused { text: error.to_string() },
        })
    }

    async fn ask_cut(&self, machine: MachineId, limit: Duration) -> Result<PointId, SourceError> {
        let mut changes = self.points.subscribe();
        let request = next_request(self.clock.as_ref());
        let deadline = Instant::now() + limit;
        self.push(machine, Push::MakePoint { request })?;
        loop {
            if let Some(answer) = self.answer(machine, request).await? {
                return answer;
            }
            if self.links.figures(machine).is_none() {
                return Err(SourceError::NotConnected);
            }
            // Voided cuts come on another way: look again after a while in any case.
            let look = deadline.min(Instant::now() + LOOK);
            let _changed_or_time = timeout_at(look, changes.changed()).await;
            if Instant::now() >= deadline {
                return Err(SourceError::Late { action: "make a cut", limit });
            }
        }
    }

    /// The point that carries the request's number, or why there is none.
    async fn answer(
        &self,
        machine: MachineId,
        request: u64,
    ) -> Result<Option<Result<PointId, SourceError>>, SourceError> {
        let recent = self.points.list(machine, RECENT).await.map_err(failed)?;
        if let Some(point) = recent.iter().find(|point| point.request == Some(request)) {
            return Ok(Some(Ok(point.id)));
        }
        let voided = self.catalog.voided_cuts(machine, RECENT).await.map_err(failed)?;
        let voided = voided.into_iter().find(|cut| cut.request == Some(request));
        Ok(voided.map(|cut| Err(SourceError::Refused { text: format!("the cut is void: {}", cut.reason) })))
    }
}

fn failed(error: CatalogError) -> SourceError {
    SourceError::Failed { action: "look for the cut", source: Box::new(error) }
}

impl Sources for AgentSources {
    fn facts(&self, machine: MachineId) -> Option<SourceFacts> {
        let status = self.registry.machine(machine)?;
        let connected = self.links.figures(machine).is_some();
        Some(SourceFacts {
            name: status.record.name,
            connected,
            inventory: status.inventory.map(Arc::unwrap_or_clone),
            suited: self.looks.record(machine).map(|record| record.report.suited).unwrap_or_default(),
        })
    }

    fn cut(&self, machine: MachineId, limit: Duration) -> BoxFuture<'_, Result<PointId, SourceError>> {
        Box::pin(self.ask_cut(machine, limit))
    }

    fn stop(
        &self,
        machine: MachineId,
        limit: Duration,
        hold: Duration,
    ) -> BoxFuture<'_, Result<String, SourceError>> {
        let step = SourceStep::Stop { limit_ms: millis(limit), hold_ms: millis(hold) };
        Box::pin(self.order(machine, step, "stop", limit + ANSWER))
    }

    fn resume(&self, machine: MachineId) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move { self.order(machine, SourceStep::Resume, "go on", ANSWER).await.map(drop) })
    }

    fn run(&self, machine: MachineId, request: ScriptRequest) -> BoxFuture<'_, Result<String, SourceError>> {
        let mut words = request.command.into_iter();
        let step = SourceStep::Run(SourceRun {
            job: request.job,
            step: request.step,
            program: words.next().unwrap_or_default(),
            arguments: words.collect(),
            environment: request.environment.into_iter().collect(),
            limit_ms: millis(request.limit),
        });
        Box::pin(self.order(machine, step, "say how the program has ended", request.limit + ANSWER))
    }

    fn end_run(&self, machine: MachineId, job: JobId, step: u32) -> BoxFuture<'_, Result<(), SourceError>> {
        let order = SourceStep::EndRun { job, step };
        Box::pin(async move { self.order(machine, order, "end the program", ANSWER).await.map(drop) })
    }

    fn prove_last(&self, machine: MachineId, point: PointId) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async move {
            let before = SourceStep::Prove { hold_ms: millis(PROVED_FOR) };
            self.order(machine, before, "say whether it is stopped", ANSWER).await?;
            // What is written past file systems is not held: it must not happen for a while.
            tokio::time::sleep(QUIET).await;
            let again = self.ask_cut(machine, CUT_AGAIN).await?;
            self.nothing_between(machine, point, again).await?;
            let after = SourceStep::Prove { hold_ms: millis(PROVED_FOR) };
            self.order(machine, after, "say whether it is stopped", ANSWER).await.map(drop)
        })
    }
}

impl AgentSources {
    /// Gives an order and waits for the answer.
    async fn order(
        &self,
        machine: MachineId,
        step: SourceStep,
        action: &'static str,
        limit: Duration,
    ) -> Result<String, SourceError> {
        let mut answers = self.registry.source_answers();
        let request = next_request(self.clock.as_ref());
        let deadline = Instant::now() + limit;
        self.push(machine, Push::Source(SourceOrder { request, step }))?;
        loop {
            match timeout_at(deadline.min(Instant::now() + LOOK), answers.recv()).await {
                Ok(Ok((of, answer))) if of == machine && answer.request == request => {
                    return answer.result.map_err(|text| SourceError::Refused { text });
                }
                // Of others, or so many that some were missed.
                Ok(_) => {}
                Err(_elapsed) if self.links.figures(machine).is_none() => {
                    return Err(SourceError::NotConnected);
                }
                Err(_elapsed) if Instant::now() >= deadline => {
                    return Err(SourceError::Late { action, limit });
                }
                Err(_elapsed) => {}
            }
        }
    }

    /// Whether the logs of all disks hold nothing but cuts between two points: the second cut followed the first
    /// without a single block having been written.
    async fn nothing_between(
        &self,
        machine: MachineId,
        first: PointId,
        second: PointId,
    ) -> Result<(), SourceError> {
        let points = self.points.list(machine, RECENT).await.map_err(failed)?;
        let find = |id: PointId| points.iter().find(|point| point.id == id);
        let (Some(first), Some(second)) = (find(first), find(second)) else {
            return Err(SourceError::Refused {
                text: "its last points are not known here; try again".into(),
            });
        };
        for member in &second.disks {
            let cuts = points.iter().flat_map(|point| &point.disks).filter(|of| of.disk == member.disk);
            let from = first.disks.iter().find(|of| of.disk == member.disk).map(|of| of.sequence);
            let between = |cut: Sequence| from.is_some_and(|from| cut > from && cut <= member.sequence);
            let count = cuts.filter(|cut| between(cut.sequence)).count() as u64;
            let path = || self.registry.disk(member.disk).map(|disk| disk.record.path).unwrap_or_default();
            if from.is_none_or(|from| member.sequence.0 != from.0 + count) {
                let path = path();
                let text = format!(
                    "{path} was written to after the last point; end what writes to it (setting `source.stop` of its agent)"
                );
                return Err(SourceError::Refused { text });
            }
        }
        Ok(())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How long a source stays stopped for certain after it was proved: the switch follows at once.
const PROVED_FOR: Duration = Duration::from_secs(60);
/// Time in which nothing may be written between the last cut and the one that shows it.
const QUIET: Duration = Duration::from_secs(1);
/// Longest wait for an answer that needs no work.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest wait for the cut that shows that nothing was written.
const CUT_AGAIN: Duration = Duration::from_secs(60);
/// Points looked through for the one that answers a request.
const RECENT: u32 = 50;
/// Longest time between two looks for it.
const LOOK: Duration = Duration::from_millis(200);
