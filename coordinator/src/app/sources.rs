//! Machines between their sites, and their sources, as jobs see them.
//!
//! Owns the translation between the job engine's contracts, the registry and the live sessions of agents.

use std::{sync::Arc, time::Duration};

use holdfast_common::{
    clock::Clock,
    ids::{JobId, MachineId, PointId},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    catalog::{Catalog, CatalogError},
    compute::port::BoxFuture,
    failover::port::{LifecycleError, Lifecycles, SourceError, SourceFacts, Sources},
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
}

impl AgentSources {
    fn push(&self, machine: MachineId, push: Push) -> Result<(), SourceError> {
        self.links.push(machine, push).map_err(|error| match error {
            PushError::NotConnected => SourceError::NotConnected,
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
        Some(SourceFacts { name: status.record.name, connected, inventory: status.inventory })
    }

    fn cut(&self, machine: MachineId, limit: Duration) -> BoxFuture<'_, Result<PointId, SourceError>> {
        Box::pin(self.ask_cut(machine, limit))
    }

    fn stop(
        &self,
        _machine: MachineId,
        _limit: Duration,
        _hold: Duration,
    ) -> BoxFuture<'_, Result<String, SourceError>> {
        Box::pin(async { Err(SourceError::Refused { text: "it cannot be stopped".into() }) })
    }

    fn resume(&self, _machine: MachineId) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async { Ok(()) })
    }

    fn prove_last(&self, _machine: MachineId, _point: PointId) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(async { Err(SourceError::Refused { text: "it cannot be stopped".into() }) })
    }
}

/// Points looked through for the one that answers a request.
const RECENT: u32 = 50;
/// Longest time between two looks for it.
const LOOK: Duration = Duration::from_millis(200);
