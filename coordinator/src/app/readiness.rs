//! Looks into replicas: after a machine's first point, daily, and when what it is has changed.
//!
//! Owns the rhythm, the records and their files; what is found is [`crate::readiness`]'s. Invariant: a look that fails or panics
//! (the disk may hold anything) is a record that says so, and nothing else. Limits: one look at a time; at most one per machine
//! in [`APART`] unasked.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use holdfast_common::{clock::Clock, ids::MachineId, wire::Inventory};
use tokio_util::sync::CancellationToken;

use super::points::Source;
use crate::{
    api::readiness::Looks,
    catalog::record::{PointRecord, PointState},
    compute::{
        machines::{MachineRequest, Machines, Planned, Suited},
        port::{BoxFuture, Endpoint},
    },
    points::view::BlockView,
    readiness::{self, Report, Subject, record::ReadinessRecord},
    registry::MachineStatus,
};

/// Time between two rounds.
const ROUND: Duration = Duration::from_secs(5);
/// A record is good for so long.
const GOOD_FOR: Duration = Duration::from_hours(24);
/// Least time between two looks at a machine that nobody asked for.
const APART: Duration = Duration::from_mins(1);
/// Newest points among which a processed one is looked for.
const POINTS_LOOKED_AT: u32 = 100;

/// The looks.
#[derive(Debug)]
pub(super) struct Readiness {
    source: Arc<Source>,
    machines: Arc<dyn Machines>,
    clock: Arc<dyn Clock>,
    folder: PathBuf,
    records: Mutex<HashMap<MachineId, ReadinessRecord>>,
    one_at_a_time: tokio::sync::Mutex<()>,
}

impl Readiness {
    pub(super) fn new(
        source: Arc<Source>,
        machines: Arc<dyn Machines>,
        clock: Arc<dyn Clock>,
        folder: PathBuf,
    ) -> Arc<Self> {
        let ids = source.registry.machines().into_iter().map(|machine| machine.record.id);
        let load = |id: MachineId| Some((id, ReadinessRecord::load(&folder.join(format!("{id}.json")))?));
        let records = Mutex::new(ids.filter_map(load).collect());
        Arc::new(Self {
            source,
            machines,
            clock,
            folder,
            records,
            one_at_a_time: tokio::sync::Mutex::default(),
        })
    }

    /// Looks until told to end.
    pub(super) async fn run(self: Arc<Self>, closing: CancellationToken) {
        loop {
            tokio::select! {
                () = closing.cancelled() => return,
                () = tokio::time::sleep(ROUND) => {}
            }
            for machine in self.source.registry.machines() {
                if closing.is_cancelled() {
                    return;
                }
                if !self.is_due(&machine) {
                    continue;
                }
                if let Err(error) = self.look_at(machine.record.id).await {
                    tracing::debug!(machine = %machine.record.id, error, "not looked at now");
                }
            }
        }
    }

    fn is_due(&self, machine: &MachineStatus) -> bool {
        let Some(inventory) = &machine.inventory else { return false };
        if machine.lifecycle.is_fenced() || self.source.points.newest(machine.record.id).is_none() {
            return false;
        }
        let Some(record) = self.record(machine.record.id) else { return true };
        let age = self.clock.wall().since(holdfast_common::clock::Timestamp(record.at_us));
        let planned = self.planned(machine, inventory, &record.report.suited);
        age > GOOD_FOR || (age > APART && record.basis != basis(inventory, &planned))
    }

    fn planned(
        &self,
        machine: &MachineStatus,
        inventory: &Inventory,
        suited: &Suited,
    ) -> Result<Planned, String> {
        let disks = self.source.registry.protected_disks(machine.record.id);
        let disks = disks.into_iter().map(|disk| Endpoint {
            disk: disk.record.id,
            name: disk.record.path.trim_start_matches("/dev/").to_owned(),
            uri: String::new(),
            size_bytes: disk.record.size_bytes,
        });
        let request = MachineRequest {
            owner: "readiness".to_owned(),
            machine: machine.record.id,
            point: holdfast_common::ids::PointId(uuid::Uuid::nil()),
            name: machine.record.name.clone(),
            inventory: inventory.clone(),
            suited: suited.clone(),
            disks: disks.collect(),
            isolated: false,
            writable: false,
            networks: std::collections::BTreeMap::new(),
        };
        self.machines.plan(&request).map_err(|error| error.to_string())
    }

    /// Looks at a machine's newest processed point now.
    async fn look_at(&self, id: MachineId) -> Result<ReadinessRecord, String> {
        let _one_at_a_time = self.one_at_a_time.lock().await;
        let machine = self.source.registry.machine(id).ok_or("there is no such machine")?;
        let inventory =
            machine.inventory.clone().ok_or("its agent has not told yet what it is; start the agent")?;
        let holder = format!("readiness {id}");
        let words = |error: crate::catalog::CatalogError| error.to_string();
        // What a killed coordinator may have left.
        self.source.points.release(holder.clone()).await.map_err(words)?;
        let points = self.source.points.list(id, POINTS_LOOKED_AT).await.map_err(words)?;
        let point = points.into_iter().find(|point| point.state == PointState::Processed);
        let point = point.ok_or("it has no processed point yet; wait for one (`holdfast points MACHINE`)")?;
        if !self.source.points.lease(point.id, holder.clone()).await.map_err(words)? {
            return Err("the point was removed meanwhile; try again".to_owned());
        }
        let known = self.record(id).map(|record| record.report.suited).unwrap_or_default();
        let mut planned = self.planned(&machine, &inventory, &known);
        let mut report = self.report(&point, &inventory, &planned, known).await;
        let again = self.planned(&machine, &inventory, &report.suited);
        if again != planned {
            // What was found changes what it will be made of.
            planned = again;
            report = self.report(&point, &inventory, &planned, report.suited).await;
        }
        let basis = basis(&inventory, &planned);
        self.source.points.release(holder).await.map_err(words)?;
        let record = ReadinessRecord::new(self.clock.wall(), point.id.to_string(), basis, report);
        let path = self.folder.join(format!("{id}.json"));
        let stored = record.clone();
        let stored = tokio::task::spawn_blocking(move || stored.store(&path)).await;
        if let Ok(Err(error)) = stored {
            tracing::error!(machine = %id, %error, "what was found about a machine's readiness cannot be kept");
        }
        self.records.lock().unwrap_or_else(PoisonError::into_inner).insert(id, record.clone());
        tracing::info!(machine = %id, verdict = ?record.report.verdict, "looked whether the machine will boot");
        Ok(record)
    }

    async fn report(
        &self,
        point: &PointRecord,
        inventory: &Inventory,
        planned: &Result<Planned, String>,
        known: Suited,
    ) -> Report {
        let failed = |reason: String| {
            let mut report = Report { suited: known, ..Report::default() };
            report.not_looked_into.push(reason);
            report.sealed()
        };
        let views = match self.source.views(point) {
            Ok(views) => views,
            Err(error) => return failed(format!("the point cannot be opened: {error}")),
        };
        let path = |disk| self.source.registry.disk(disk).map(|disk| disk.record.path).unwrap_or_default();
        let disks =
            views.into_iter().map(|view| (path(view.disk), view.view as Arc<dyn BlockView>)).collect();
        let subject = Subject {
            inventory: inventory.clone(),
            planned: planned.clone(),
            controllers: self.machines.controllers(),
            disks,
        };
        match tokio::task::spawn_blocking(move || readiness::look(&subject)).await {
            Ok(report) => report,
            Err(_) => failed(
                "the look came upon something that it could not cope with (see the coordinator's log)"
                    .to_owned(),
            ),
        }
    }
}

impl Looks for Readiness {
    fn record(&self, machine: MachineId) -> Option<ReadinessRecord> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).get(&machine).cloned()
    }

    fn look(&self, machine: MachineId) -> BoxFuture<'_, Result<ReadinessRecord, String>> {
        Box::pin(self.look_at(machine))
    }
}

/// What a report depends on besides the disks; addresses, which come and go, are left out.
fn basis(inventory: &Inventory, planned: &Result<Planned, String>) -> String {
    let cards: Vec<_> =
        inventory.network_cards.iter().map(|card| (&card.name, &card.mac, &card.driver)).collect();
    let text = format!(
        "{} {:?} {:?} {cards:?} {planned:?}",
        inventory.kernel, inventory.firmware, inventory.drivers
    );
    blake3::hash(text.as_bytes()).to_hex().to_string()
}
