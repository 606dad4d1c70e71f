//! The registry as ingest sees it: who may connect, and what they are to protect.
//!
//! Owns the translation between ingest's contract and the catalog. Invariant: nothing is answered before it is durable,
//! reports excepted.

use holdfast_common::{
    clock::Timestamp,
    ids::MachineId,
    token::TokenHash,
    wire::{
        Assignment, AuditAnswer, Capture, CutVoided, DiskReport, GroupAnswer, Hello, Inventory,
        MachineSettings, Refusal, RefusalCode, SourceAnswer, TrustLoss,
    },
};

use super::{Registry, RegistryError, operator::FENCED, rules::default_policy, state::MachineStatus};
use crate::{
    catalog::{
        CatalogError, Change,
        record::{CertificateRecord as CertificateRow, MachineRecord, MachineState, VoidedCutRecord},
    },
    groups::inbox::Heard,
    ingest::port::{CertificateRecord, CertificateSerial, Directory, Enrolment, PortError, PortFuture},
};

/// Longest reason of a voided cut or a lost trust that is kept, in characters.
const REASON_CHARS_MAX: usize = 2_000;

/// What an agent is told whose machine was enrolled again.
const TAKEN_OVER: &str = "this machine was enrolled again, by another agent or with another certificate";

impl Directory for Registry {
    fn check_token(&self, token: TokenHash) -> PortFuture<'_, Option<MachineId>> {
        Box::pin(async move {
            let tokens = self.catalog.tokens().await.map_err(failed("the look-up of a token"))?;
            let Some(found) = tokens.into_iter().find(|record| record.hash == token.0) else {
                return Err(refused(
                    RefusalCode::TOKEN,
                    "the token is unknown; ask the operator for a new one",
                ));
            };
            if found.used_at.is_some() {
                return Err(refused(RefusalCode::TOKEN, "the token was used already; each works only once"));
            }
            if found.expires_at <= self.now() {
                return Err(refused(
                    RefusalCode::TOKEN,
                    "the token has expired; ask the operator for a new one",
                ));
            }
            Ok(found.machine)
        })
    }

    fn enrol(&self, enrolment: Enrolment) -> PortFuture<'_, ()> {
        Box::pin(async move {
            let _one_at_a_time = self.changing.lock().await;
            let changes = self.enrolment_changes(&enrolment);
            self.commit(changes).await.map_err(|error| match error {
                CatalogError::Conflict(text) => refused(RefusalCode::TOKEN, &text),
                other => failed("an enrolment")(other),
            })?;
            self.links.revoke(enrolment.machine, TAKEN_OVER);
            self.describe_or_log(enrolment.machine).await;
            Ok(())
        })
    }

    fn admit(&self, machine: MachineId, serial: CertificateSerial) -> PortFuture<'_, ()> {
        Box::pin(async move {
            // Who may not speak for the machine is not told where it stands.
            self.admit_fenced(machine, serial).await?;
            self.not_fenced(machine)
        })
    }

    fn admit_fenced(&self, machine: MachineId, serial: CertificateSerial) -> PortFuture<'_, ()> {
        Box::pin(async move {
            self.not_revoked(machine)?;
            let found = self.catalog.certificate(serial.0.to_vec()).await;
            match found.map_err(failed("the look-up of a certificate"))? {
                Some(row) if row.machine == machine && row.revoked_at.is_none() => {
                    // One that asks to be let in as fenced knows that it is.
                    let _noted = self.not_fenced(machine);
                    Ok(())
                }
                Some(row) if row.machine == machine => Err(revoked()),
                _ => Err(refused(
                    RefusalCode::UNAUTHORIZED,
                    "this certificate is not known here; enrol again with a token for this machine",
                )),
            }
        })
    }

    fn record_certificate(&self, machine: MachineId, certificate: CertificateRecord) -> PortFuture<'_, ()> {
        Box::pin(async move {
            let _one_at_a_time = self.changing.lock().await;
            self.not_revoked(machine)?;
            let change = Change::PutCertificate(certificate_row(machine, &certificate));
            self.commit(vec![change]).await.map_err(failed("the record of a certificate"))?;
            self.describe_or_log(machine).await;
            Ok(())
        })
    }

    fn record_hello(&self, machine: MachineId, hello: Box<Hello>) -> PortFuture<'_, ()> {
        Box::pin(async move {
            let version = hello.agent_version.chars().take(80).collect();
            self.put_inventory(machine, &hello.inventory, Some(version)).await?;
            let now = self.now();
            if let Some(status) = self.state().machines.get_mut(&machine) {
                status.connected_since = Some(now);
                status.clock_offset_us = None;
            }
            tracing::info!(%machine, name = hello.inventory.host_name, "machine connected");
            Ok(())
        })
    }

    fn record_inventory(&self, machine: MachineId, inventory: Box<Inventory>) -> PortFuture<'_, ()> {
        Box::pin(async move { self.put_inventory(machine, &inventory, None).await })
    }

    fn assignment(&self, machine: MachineId) -> PortFuture<'_, Assignment> {
        Box::pin(async move {
            let status = self.not_revoked(machine)?;
            self.not_fenced(machine)?;
            let mut disks = Vec::new();
            for disk in self.protected_disks(machine) {
                let disk = disk.record;
                let log = self.logs.state(disk.id, disk.generation).await.map_err(|error| {
                    PortError::Failed { operation: "the look at a disk's log", source: error.into() }
                })?;
                disks.push(Capture {
                    disk: disk.id,
                    identity: disk.identity,
                    path: disk.path,
                    size_bytes: disk.size_bytes,
                    generation: disk.generation,
                    durable: log.durable,
                    interval: log.interval,
                    scanned_to: log.scanned_to,
                    scan_complete: log.scan_complete,
                    replica_empty: log.durable.0 == 0,
                });
            }
            Ok(Assignment { settings: settings_of(&status), disks })
        })
    }

    fn raise_generation(&self, machine: MachineId, loss: TrustLoss) -> PortFuture<'_, ()> {
        Box::pin(async move {
            let _one_at_a_time = self.changing.lock().await;
            let disk = self.disk(loss.disk).filter(|disk| disk.record.machine == machine);
            let Some(disk) = disk else {
                return Err(refused(RefusalCode::UNAUTHORIZED, "the disk is not this machine's"));
            };
            if loss.generation < disk.record.generation {
                return Ok(());
            }
            let reason = shortened(&loss.reason);
            tracing::warn!(%machine, disk = %loss.disk, reason, "tracking was lost: the disk is compared anew");
            let raised = self.new_generation(&format!("agent {machine}"), disk.record, reason).await;
            raised.map(|_number| ()).map_err(|error| match error {
                RegistryError::Catalog(error) => failed("a new generation")(error),
                other => PortError::Failed { operation: "a new generation", source: Box::new(other) },
            })
        })
    }

    fn record_report(&self, machine: MachineId, report: DiskReport) {
        let (now, at, disk) = (self.now(), self.clock.monotonic(), report.disk);
        if !self.state().report(machine, report, now, at) {
            tracing::warn!(%machine, %disk, "a report names a disk that is not the machine's; it is ignored");
        }
    }

    fn record_void(&self, machine: MachineId, voided: CutVoided) -> PortFuture<'_, ()> {
        Box::pin(async move {
            let _one_at_a_time = self.changing.lock().await;
            let reason = shortened(&voided.reason);
            tracing::warn!(%machine, reason, "a cut is void");
            let CutVoided { request, at, .. } = voided;
            let change = Change::AddVoidedCut(VoidedCutRecord { machine, at, request, reason });
            self.commit(vec![change]).await.map_err(failed("the record of a voided cut"))
        })
    }

    fn group_answer(&self, machine: MachineId, answer: GroupAnswer) {
        if let Some(inbox) = self.group_inbox.get() {
            inbox.put(machine, Heard::Answer(answer));
        }
    }

    fn source_answer(&self, machine: MachineId, answer: SourceAnswer) {
        // Nobody waits for it any more: it came too late.
        let _nobody = self.source_answers.send((machine, answer));
    }

    fn audit_answer(&self, machine: MachineId, answer: AuditAnswer) {
        // An audit that is over needs none.
        let _nobody = self.audit_answers.send((machine, answer));
    }

    fn record_disconnected(&self, machine: MachineId, reason: String) {
        if let Some(inbox) = self.group_inbox.get() {
            inbox.put(machine, Heard::Lost(reason.clone()));
        }
        tracing::info!(%machine, reason, "machine disconnected");
        if let Some(status) = self.state().machines.get_mut(&machine) {
            status.connected_since = None;
            status.disconnect_reason = Some(reason);
        }
    }
}

impl Registry {
    /// The description is needed only if the catalog is lost; it is written again at the next start.
    async fn describe_or_log(&self, machine: MachineId) {
        if let Err(error) = self.describe(machine).await {
            tracing::error!(%machine, %error, "the machine's description was not written");
        }
    }

    fn enrolment_changes(&self, enrolment: &Enrolment) -> Vec<Change> {
        let now = self.now();
        let before = self.machine(enrolment.machine).map(|status| status.record);
        let is_new = before.is_none();
        let machine = MachineRecord {
            id: enrolment.machine,
            name: enrolment.host_name.clone(),
            state: MachineState::Enrolled,
            enrolled_at: before.as_ref().map_or(now, |record| record.enrolled_at),
            last_seen_at: before.as_ref().and_then(|record| record.last_seen_at),
            agent_version: before.as_ref().map(|record| record.agent_version.clone()).unwrap_or_default(),
            inventory: before.and_then(|record| record.inventory),
        };
        let mut changes = vec![
            Change::UseToken { hash: enrolment.token.0, machine: enrolment.machine, at: now },
            Change::PutMachine(machine),
            // Whoever enrols a machine again takes it over: what it had before is worth nothing from now on.
            Change::RevokeCertificates(enrolment.machine, now),
            Change::PutCertificate(certificate_row(enrolment.machine, &enrolment.certificate)),
        ];
        if is_new {
            changes.push(Change::PutPolicy(default_policy(enrolment.machine)));
        }
        let who = format!("agent {}", enrolment.host_name);
        changes.push(self.audit(&who, "enrol", &enrolment.host_name, enrolment.machine));
        changes
    }

    async fn put_inventory(
        &self,
        machine: MachineId,
        inventory: &Inventory,
        version: Option<String>,
    ) -> Result<(), PortError> {
        let _one_at_a_time = self.changing.lock().await;
        let record = self.not_revoked(machine)?.record;
        let text = serde_json::to_string(inventory)
            .map_err(|error| PortError::Failed { operation: "an inventory", source: Box::new(error) })?;
        let name = match inventory.host_name.trim() {
            "" => record.name,
            name => name.chars().take(255).collect(),
        };
        let record = MachineRecord {
            name,
            last_seen_at: Some(self.now()),
            agent_version: version.unwrap_or(record.agent_version),
            inventory: Some(text.into()),
            ..record
        };
        self.commit(vec![Change::PutMachine(record)]).await.map_err(failed("the record of an inventory"))
    }

    /// A source that may not write is told so, and that it was told is remembered.
    fn not_fenced(&self, machine: MachineId) -> Result<(), PortError> {
        let now = self.now();
        let mut state = self.state();
        match state.machines.get_mut(&machine) {
            Some(status) if status.lifecycle.is_fenced() => {
                status.told_fenced_at = Some(now);
                Err(refused(RefusalCode::FENCED, FENCED))
            }
            _ => Ok(()),
        }
    }

    fn not_revoked(&self, machine: MachineId) -> Result<MachineStatus, PortError> {
        match self.machine(machine) {
            None => Err(refused(RefusalCode::UNAUTHORIZED, "this machine is not known here; enrol it")),
            Some(status) if status.record.state == MachineState::Revoked => Err(revoked()),
            Some(status) => Ok(status),
        }
    }
}

fn settings_of(status: &MachineStatus) -> MachineSettings {
    MachineSettings {
        cut_interval_ms: status.policy.interval_ms,
        hold_ms_max: status.policy.hold_ms_max,
        send_bytes_per_second_max: status.policy.send_bytes_per_second_max,
        scan_bytes_per_second_max: status.policy.scan_bytes_per_second_max,
    }
}

fn certificate_row(machine: MachineId, certificate: &CertificateRecord) -> CertificateRow {
    CertificateRow {
        serial: certificate.serial.0.to_vec(),
        machine,
        issued_at: certificate.not_before,
        expires_at: certificate.not_after,
        revoked_at: None::<Timestamp>,
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(REASON_CHARS_MAX).collect()
}

fn revoked() -> PortError {
    refused(RefusalCode::REVOKED, "the machine or its certificate was revoked; enrol it again")
}

fn refused(code: RefusalCode, text: &str) -> PortError {
    PortError::Refused(Refusal::new(code, text))
}

fn failed(operation: &'static str) -> impl Fn(CatalogError) -> PortError {
    move |error| PortError::Failed { operation, source: Box::new(error) }
}
