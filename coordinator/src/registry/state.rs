//! The registry's memory: a mirror of the catalog, and what agents last reported.
//!
//! Owns the model only; pure but for loading. Invariant: applying the changes that the catalog applied keeps both equal.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use holdfast_common::{
    clock::Timestamp,
    ids::{DiskId, MachineId},
    wire::{DiskReport, Inventory},
};

use super::{lifecycle::Lifecycle, rules::default_policy, thresholds::Thresholds};
use crate::catalog::{
    Catalog, CatalogError, Change,
    record::{DiskRecord, MachineRecord, OperatorRecord, PolicyRecord},
};

/// A machine and what is known of it now.
#[derive(Clone, Debug)]
pub struct MachineStatus {
    /// As the catalog has it.
    pub record: MachineRecord,
    /// Its rules.
    pub policy: PolicyRecord,
    /// When its state is worth a warning.
    pub thresholds: Thresholds,
    /// Where it stands between its two sites.
    pub lifecycle: Lifecycle,
    /// When its source was last told that it is fenced.
    pub told_fenced_at: Option<Timestamp>,
    /// Its last inventory. Shared: whoever asks for a machine gets a copy of all this.
    pub inventory: Option<Arc<Inventory>>,
    /// When its session was opened, if one is open.
    pub connected_since: Option<Timestamp>,
    /// Why the last session ended.
    pub disconnect_reason: Option<String>,
    /// Our wall clock minus the agent's, as small as it was seen in this session (the rest is the way here).
    pub clock_offset_us: Option<i64>,
}

/// A disk and what is known of it now.
#[derive(Clone, Debug)]
pub struct DiskState {
    /// As the catalog has it.
    pub record: DiskRecord,
    /// What the agent last reported, and when that came in (monotonic clock).
    pub report: Option<(DiskReport, Duration)>,
    /// Bytes written per second on the source, between the last two reports.
    pub written_bytes_per_second: u64,
}

impl DiskState {
    /// Whether it is protected now.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.record.unprotected_at.is_none()
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) machines: BTreeMap<MachineId, MachineStatus>,
    pub(super) disks: BTreeMap<DiskId, DiskState>,
    pub(super) operators: BTreeMap<String, OperatorRecord>,
}

impl State {
    pub(super) async fn load(catalog: &dyn Catalog) -> Result<Self, CatalogError> {
        let mut state = Self::default();
        for machine in catalog.machines().await? {
            state.apply(Change::PutMachine(machine));
        }
        for policy in catalog.policies().await? {
            state.apply(Change::PutPolicy(policy));
        }
        for disk in catalog.disks().await? {
            state.apply(Change::PutDisk(disk));
        }
        for (machine, body) in catalog.thresholds().await? {
            state.apply(Change::PutThresholds(machine, body));
        }
        for (machine, body) in catalog.lifecycles().await? {
            // Never taken for protected: an old source would be let in.
            if serde_json::from_str::<Lifecycle>(&body).is_err() {
                return Err(CatalogError::Unreadable { what: "lifecycle of a machine", value: body });
            }
            state.apply(Change::PutLifecycle(machine, body));
        }
        for operator in catalog.operators().await? {
            state.apply(Change::PutOperator(operator));
        }
        Ok(state)
    }

    /// Mirrors a change; those that are not kept in memory are passed over.
    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::PutMachine(record) => self.put_machine(record),
            Change::PutPolicy(policy) => {
                if let Some(machine) = self.machines.get_mut(&policy.machine) {
                    machine.policy = policy;
                }
            }
            Change::PutThresholds(machine, body) => {
                if let Some(machine) = self.machines.get_mut(&machine) {
                    // What a newer version wrote and this one cannot read counts as not set.
                    machine.thresholds = serde_json::from_str(&body).unwrap_or_default();
                }
            }
            Change::PutLifecycle(machine, body) => {
                if let Some(machine) = self.machines.get_mut(&machine)
                    && let Ok(lifecycle) = serde_json::from_str::<Lifecycle>(&body)
                {
                    machine.lifecycle = lifecycle;
                    if !machine.lifecycle.is_fenced() {
                        machine.told_fenced_at = None;
                    }
                }
            }
            Change::PutOperator(operator) => {
                self.operators.insert(operator.name.clone(), operator);
            }
            Change::PutDisk(record) => match self.disks.get_mut(&record.id) {
                Some(disk) => disk.record = record,
                None => {
                    let disk = DiskState { record, report: None, written_bytes_per_second: 0 };
                    self.disks.insert(disk.record.id, disk);
                }
            },
            _ => {}
        }
    }

    fn put_machine(&mut self, record: MachineRecord) {
        if let Some(machine) = self.machines.get_mut(&record.id) {
            if record.inventory != machine.record.inventory {
                machine.inventory = inventory_of(&record);
            }
            machine.record = record;
            return;
        }
        let machine = MachineStatus {
            policy: default_policy(record.id),
            thresholds: Thresholds::default(),
            lifecycle: Lifecycle::default(),
            told_fenced_at: None,
            inventory: inventory_of(&record),
            connected_since: None,
            disconnect_reason: None,
            clock_offset_us: None,
            record,
        };
        self.machines.insert(machine.record.id, machine);
    }

    /// Takes in a report; gives false if the disk is not the machine's.
    pub(super) fn report(
        &mut self,
        machine: MachineId,
        report: DiskReport,
        now: Timestamp,
        at: Duration,
    ) -> bool {
        let Some(disk) = self.disks.get_mut(&report.disk).filter(|disk| disk.record.machine == machine)
        else {
            return false;
        };
        if let Some((_, before)) = &disk.report {
            let millis = at.saturating_sub(*before).as_millis().max(1);
            let rate = u128::from(report.written_bytes) * 1000 / millis;
            disk.written_bytes_per_second = u64::try_from(rate).unwrap_or(u64::MAX);
        }
        let offset = now.0.saturating_sub(report.at.0);
        disk.report = Some((report, at));
        if let Some(machine) = self.machines.get_mut(&machine) {
            machine.clock_offset_us = Some(machine.clock_offset_us.map_or(offset, |known| known.min(offset)));
        }
        true
    }
}

/// The inventory of a record; one that another version wrote and that cannot be read counts as none, until the next
/// session brings it anew.
fn inventory_of(record: &MachineRecord) -> Option<Arc<Inventory>> {
    let read = record.inventory.as_deref().and_then(|text| serde_json::from_str::<Inventory>(text).ok());
    read.map(Arc::new)
}
