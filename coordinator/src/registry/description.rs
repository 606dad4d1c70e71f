//! What is kept of a machine beside the disks' logs, so that the catalog can be rebuilt without its database.
//!
//! Owns the persisted form: JSON, one file per machine, replaced whole at every change. A reader refuses newer versions
//! and ignores fields that it does not know. Version history: 1, first.

use holdfast_common::{
    clock::Timestamp,
    ids::{DiskId, Generation, MachineId},
    wire::DiskIdentity,
};
use serde::{Deserialize, Serialize};

use super::{lifecycle::Lifecycle, state::MachineStatus, thresholds::Thresholds};
use crate::catalog::{
    Change,
    record::{
        CertificateRecord, DiskRecord, GenerationRecord, MachineRecord, MachineState, PolicyRecord,
        RetentionTier,
    },
};
use crate::drills::DrillPolicy;
use crate::json_record;

/// Version that this program writes.
const VERSION: u32 = 1;

/// A machine with all that belongs to it, points excepted: those are in the logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    version: u32,
    /// The machine.
    pub machine: MachineId,
    name: String,
    revoked: bool,
    enrolled_at: Timestamp,
    agent_version: String,
    interval_ms: u64,
    retention_seconds: u64,
    #[serde(default)]
    retention_tiers: Vec<RetentionTier>,
    hold_ms_max: u64,
    send_bytes_per_second_max: u64,
    scan_bytes_per_second_max: u64,
    disks: Vec<DescribedDisk>,
    certificates: Vec<DescribedCertificate>,
    #[serde(default)]
    application_interval_ms: u64,
    #[serde(default)]
    application_strict: bool,
    #[serde(default)]
    drill: DrillPolicy,
    #[serde(default)]
    lifecycle: Lifecycle,
    #[serde(default)]
    thresholds: Thresholds,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DescribedDisk {
    disk: DiskId,
    path: String,
    identity: DiskIdentity,
    size_bytes: u64,
    generation: Generation,
    protected_at: Timestamp,
    unprotected_at: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DescribedCertificate {
    serial: Vec<u8>,
    issued_at: Timestamp,
    expires_at: Timestamp,
    revoked_at: Option<Timestamp>,
}

impl Description {
    /// The description of a machine. Certificates that have expired before `now` are left out.
    #[must_use]
    pub fn new(
        status: &MachineStatus,
        disks: &[DiskRecord],
        certificates: &[CertificateRecord],
        now: Timestamp,
    ) -> Self {
        let (machine, policy) = (&status.record, &status.policy);
        Self {
            version: VERSION,
            machine: machine.id,
            name: machine.name.clone(),
            revoked: machine.state == MachineState::Revoked,
            enrolled_at: machine.enrolled_at,
            agent_version: machine.agent_version.clone(),
            interval_ms: policy.interval_ms,
            retention_seconds: policy.retention_seconds,
            retention_tiers: policy.retention_tiers.clone(),
            hold_ms_max: policy.hold_ms_max,
            send_bytes_per_second_max: policy.send_bytes_per_second_max,
            scan_bytes_per_second_max: policy.scan_bytes_per_second_max,
            disks: disks.iter().map(DescribedDisk::new).collect(),
            certificates: certificates
                .iter()
                .filter(|certificate| certificate.expires_at > now)
                .map(DescribedCertificate::new)
                .collect(),
            application_interval_ms: policy.application_interval_ms,
            application_strict: policy.application_strict,
            drill: policy.drill.clone(),
            lifecycle: status.lifecycle.clone(),
            thresholds: status.thresholds,
        }
    }

    /// Reads a file's content.
    ///
    /// # Errors
    /// It is no description, or a newer version wrote it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        json_record::parse(bytes, VERSION, |description: &Self| description.version)
    }

    /// The disks that are or were protected.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskRecord> {
        self.disks.iter().map(|disk| disk.record(self.machine)).collect()
    }

    /// What brings a catalog to what is described.
    #[must_use]
    pub fn changes(&self, now: Timestamp) -> Vec<Change> {
        let machine = MachineRecord {
            id: self.machine,
            name: self.name.clone(),
            state: if self.revoked { MachineState::Revoked } else { MachineState::Enrolled },
            enrolled_at: self.enrolled_at,
            last_seen_at: None,
            agent_version: self.agent_version.clone(),
            inventory: None,
        };
        let policy = PolicyRecord {
            machine: self.machine,
            interval_ms: self.interval_ms,
            retention_seconds: self.retention_seconds,
            retention_tiers: self.retention_tiers.clone(),
            hold_ms_max: self.hold_ms_max,
            send_bytes_per_second_max: self.send_bytes_per_second_max,
            scan_bytes_per_second_max: self.scan_bytes_per_second_max,
            application_interval_ms: self.application_interval_ms,
            application_strict: self.application_strict,
            drill: self.drill.clone(),
        };
        let mut changes = vec![Change::PutMachine(machine), Change::PutPolicy(policy)];
        // An old source stays fenced, whatever became of the jobs.
        if let Ok(lifecycle) = serde_json::to_string(&self.lifecycle) {
            changes.push(Change::PutLifecycle(self.machine, lifecycle));
        }
        if self.thresholds != Thresholds::default()
            && let Ok(thresholds) = serde_json::to_string(&self.thresholds)
        {
            changes.push(Change::PutThresholds(self.machine, thresholds));
        }
        for disk in self.disks() {
            let (id, number) = (disk.id, disk.generation);
            changes.push(Change::PutDisk(disk));
            let reason = "the catalog was rebuilt".to_owned();
            changes.push(Change::AddGeneration(GenerationRecord { disk: id, number, reason, at: now }));
        }
        changes.extend(self.certificates.iter().map(|certificate| {
            Change::PutCertificate(CertificateRecord {
                serial: certificate.serial.clone(),
                machine: self.machine,
                issued_at: certificate.issued_at,
                expires_at: certificate.expires_at,
                revoked_at: certificate.revoked_at,
            })
        }));
        changes
    }
}

impl DescribedDisk {
    fn new(record: &DiskRecord) -> Self {
        Self {
            disk: record.id,
            path: record.path.clone(),
            identity: record.identity.clone(),
            size_bytes: record.size_bytes,
            generation: record.generation,
            protected_at: record.protected_at,
            unprotected_at: record.unprotected_at,
        }
    }

    fn record(&self, machine: MachineId) -> DiskRecord {
        DiskRecord {
            id: self.disk,
            machine,
            path: self.path.clone(),
            identity: self.identity.clone(),
            size_bytes: self.size_bytes,
            generation: self.generation,
            protected_at: self.protected_at,
            unprotected_at: self.unprotected_at,
        }
    }
}

impl DescribedCertificate {
    fn new(record: &CertificateRecord) -> Self {
        Self {
            serial: record.serial.clone(),
            issued_at: record.issued_at,
            expires_at: record.expires_at,
            revoked_at: record.revoked_at,
        }
    }
}
