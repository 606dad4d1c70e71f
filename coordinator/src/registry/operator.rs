//! What operators do: tokens, protection, revocation.
//!
//! Owns the rules of these acts. Invariant: each is one transaction with its audit entry; the live session is told
//! after it is durable.

use std::time::Duration;

use holdfast_common::{
    ids::{DiskId, Generation, MachineId},
    token::TokenHash,
    units::{BLOCKS_MAX, BlockCount},
    wire::{
        DiskHealth, DiskIdentity, DiskInventory, PartitionTable, RefusalCode, limits::DISKS_PER_MACHINE_MAX,
    },
};

use super::{
    Registry, RegistryError,
    identity::{find_disk, is_telling, same_disk},
    lifecycle::{Lifecycle, LifecycleEvent, SourceLine},
    rules::check_policy,
    state::MachineStatus,
    thresholds::Thresholds,
};
use crate::catalog::{
    Change,
    record::{
        DiskRecord, GenerationRecord, MachineRecord, MachineState, PolicyRecord, RetentionTier, TokenRecord,
    },
};
use crate::drills::{Drill, DrillPolicy};

/// Longest life of a token.
const TOKEN_LIFE_MAX: Duration = Duration::from_hours(24 * 30);
/// Longest label of a token, in bytes.
const LABEL_BYTES_MAX: usize = 200;

/// A token to be recorded.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// Hash of its secret.
    pub hash: TokenHash,
    /// What the operator calls it.
    pub label: String,
    /// The machine that it enrols again; none for a new one.
    pub machine: Option<MachineId>,
    /// How long it may be used.
    pub life: Duration,
}

/// Disks to protect and rules to change.
#[derive(Clone, Debug, Default)]
pub struct Protect {
    /// Device nodes (or backing files) as the machine's inventory has them.
    pub paths: Vec<String>,
    /// New time between cuts.
    pub interval_ms: Option<u64>,
    /// New time that every point is kept.
    pub retention_seconds: Option<u64>,
    /// What is kept of older ones from now on.
    pub retention_tiers: Option<Vec<RetentionTier>>,
    /// New longest hold.
    pub hold_ms_max: Option<u64>,
    /// New bound of sending; zero means none.
    pub send_bytes_per_second_max: Option<u64>,
    /// New bound of scanning; zero means none.
    pub scan_bytes_per_second_max: Option<u64>,
    /// New time between app-consistent points; zero means none by themselves.
    pub application_interval_ms: Option<u64>,
    /// Whether such a point is void if a hook fails.
    pub application_strict: Option<bool>,
    /// New time between drills; zero means none by themselves.
    pub drill_every_ms: Option<u64>,
    /// What the console says when the machine has booted.
    pub drill_probe: Option<String>,
    /// How long that may take.
    pub drill_limit_ms: Option<u64>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protected {
    /// All named disks, as they are protected now.
    pub disks: Vec<DiskRecord>,
    /// The machine's rules now.
    pub policy: PolicyRecord,
}

impl Registry {
    /// Records a token and says when it ends.
    ///
    /// # Errors
    /// Its life or label is out of bounds, or the catalog fails.
    pub async fn create_token(&self, who: &str, token: NewToken) -> Result<TokenRecord, RegistryError> {
        if token.life.is_zero() || token.life > TOKEN_LIFE_MAX {
            let text = format!("a token's life of {} s is out of range; use 1s to 30d", token.life.as_secs());
            return Err(RegistryError::Setting(text));
        }
        if token.label.len() > LABEL_BYTES_MAX {
            return Err(RegistryError::Setting(format!("a label has at most {LABEL_BYTES_MAX} bytes")));
        }
        let _one_at_a_time = self.changing.lock().await;
        let now = self.now();
        let record = TokenRecord {
            hash: token.hash.0,
            label: token.label,
            machine: token.machine,
            created_at: now,
            expires_at: now.plus(token.life),
            used_at: None,
            used_by: None,
        };
        let subject = token.machine.map_or_else(|| "a new machine".to_owned(), |machine| machine.to_string());
        let audit = self.audit(who, "token create", subject, &record.label);
        self.commit(vec![Change::PutToken(record.clone()), audit]).await?;
        Ok(record)
    }

    /// Protects disks of a machine, or changes its rules (with no disk named). A disk that is protected already stays as
    /// it is, unless its size on the source has changed: then it is protected as a new disk of the new size, and the old
    /// one's points stay.
    ///
    /// # Errors
    /// Nothing was changed; the text says why and what to do.
    pub async fn protect(
        &self,
        who: &str,
        machine: MachineId,
        wanted: Protect,
    ) -> Result<Protected, RegistryError> {
        let changing = self.changing.lock().await;
        let status = self.usable(machine)?;
        let policy = changed_policy(&status.policy, &wanted);
        check_policy(&policy)?;
        let mut changes = vec![Change::PutPolicy(policy.clone())];
        let mut disks = Vec::new();
        for path in &wanted.paths {
            let found = self.inventory_disk(&status, path)?;
            if disks.iter().any(|disk: &DiskRecord| disk.path == found.path) {
                continue;
            }
            let (disk, replaced, reason) = self.disk_to_protect(machine, &found);
            changes.extend(replaced.map(Change::PutDisk));
            if let Some(reason) = reason {
                changes.push(Change::PutDisk(disk.clone()));
                changes.push(Change::AddGeneration(GenerationRecord {
                    disk: disk.id,
                    number: disk.generation,
                    reason,
                    at: self.now(),
                }));
            }
            disks.push(disk);
        }
        self.check_count(&status, &disks)?;
        let detail = format!("{} every {} ms", wanted.paths.join(" "), policy.interval_ms);
        changes.push(self.audit(who, "protect", &status.record.name, detail));
        self.commit(changes).await?;
        let described = self.describe(machine).await;
        drop(changing);
        described?;
        self.reassign(machine).await;
        Ok(Protected { disks, policy })
    }

    /// Sets when a machine's state is worth a warning.
    ///
    /// # Errors
    /// A value is out of its bounds, or the catalog or the store fails.
    pub async fn set_thresholds(
        &self,
        who: &str,
        machine: MachineId,
        thresholds: Thresholds,
    ) -> Result<(), RegistryError> {
        thresholds.check()?;
        let _one_at_a_time = self.changing.lock().await;
        let name = self.known(machine)?.record.name;
        let body =
            serde_json::to_string(&thresholds).map_err(|error| RegistryError::Setting(error.to_string()))?;
        let audit = self.audit(who, "thresholds", name, &body);
        self.commit(vec![Change::PutThresholds(machine, body), audit]).await?;
        self.describe(machine).await
    }

    /// Ends the protection of disks; all of the machine's if none is named. Their history stays until retention ends it.
    ///
    /// # Errors
    /// Nothing was changed; a named disk is not protected.
    pub async fn unprotect(
        &self,
        who: &str,
        machine: MachineId,
        paths: &[String],
    ) -> Result<Vec<DiskRecord>, RegistryError> {
        let changing = self.changing.lock().await;
        let name = self.known(machine)?.record.name;
        let protected: Vec<DiskRecord> =
            self.protected_disks(machine).into_iter().map(|disk| disk.record).collect();
        let known = protected.iter().map(|disk| disk.path.as_str()).collect::<Vec<_>>().join(", ");
        for path in paths {
            if !protected.iter().any(|disk| is_meant(disk, path)) {
                return Err(RegistryError::NotProtected { name, path: path.clone(), known });
            }
        }
        let now = self.now();
        let ended: Vec<DiskRecord> = protected
            .into_iter()
            .filter(|disk| paths.is_empty() || paths.iter().any(|path| is_meant(disk, path)))
            .map(|disk| DiskRecord { unprotected_at: Some(now), ..disk })
            .collect();
        let mut changes: Vec<Change> = ended.iter().cloned().map(Change::PutDisk).collect();
        let detail = ended.iter().map(|disk| disk.path.as_str()).collect::<Vec<_>>().join(" ");
        changes.push(self.audit(who, "unprotect", name, detail));
        self.commit(changes).await?;
        let described = self.describe(machine).await;
        drop(changing);
        self.reassign(machine).await;
        described?;
        Ok(ended)
    }

    /// Refuses a machine from now on: its certificates are revoked and what it has open is closed. What it has sent stays.
    ///
    /// # Errors
    /// The machine is unknown, or the catalog fails.
    pub async fn revoke(&self, who: &str, machine: MachineId) -> Result<MachineRecord, RegistryError> {
        let changing = self.changing.lock().await;
        let record = MachineRecord { state: MachineState::Revoked, ..self.known(machine)?.record };
        let changes = vec![
            Change::PutMachine(record.clone()),
            Change::RevokeCertificates(machine, self.now()),
            self.audit(who, "revoke", &record.name, machine),
        ];
        self.commit(changes).await?;
        let described = self.describe(machine).await;
        drop(changing);
        let text = "the operator has revoked this machine; enrol it again with a new token";
        self.links.revoke(machine, text);
        described?;
        Ok(record)
    }

    /// Takes over the sizes of disks that were protected without one, from the agents' reports. Called every second or so.
    ///
    /// # Errors
    /// The catalog or the store fails; tried again at the next call.
    pub async fn adopt_sizes(&self) -> Result<(), RegistryError> {
        for disk in self.disks().into_iter().filter(|disk| disk.is_protected() && disk.record.size_bytes == 0)
        {
            let Some(DiskHealth::Resized { size_bytes }) = disk.report.map(|(report, _)| report.health)
            else {
                continue;
            };
            let machine = disk.record.machine;
            let changing = self.changing.lock().await;
            self.commit(vec![Change::PutDisk(DiskRecord { size_bytes, ..disk.record })]).await?;
            self.describe(machine).await?;
            drop(changing);
            self.reassign(machine).await;
        }
        Ok(())
    }

    /// Something happens to a machine between its two sites: durable when this returns. Once the source is fenced here,
    /// nothing more of it is taken when this returns; once it is not any more, it connects again by itself. A source that is the
    /// machine again without having been written back gets a new line of history: what it holds is compared. One that was goes
    /// on in the target's, if its agent knows that its disk holds the end of it.
    ///
    /// # Errors
    /// Not possible in the machine's stage, or the catalog fails; nothing was changed.
    pub async fn advance(
        &self,
        who: &str,
        machine: MachineId,
        event: LifecycleEvent,
    ) -> Result<Lifecycle, RegistryError> {
        let changing = self.changing.lock().await;
        let status = self.known(machine)?;
        let after = status.lifecycle.after(event)?;
        let before = status.lifecycle;
        if before == after {
            drop(changing);
            self.fence(machine, &after).await;
            return Ok(after);
        }
        let detail = event.to_string();
        let mut changes = vec![put_lifecycle(machine, &after)?];
        let is_written_back = matches!(event, LifecycleEvent::FailedBack(_));
        if before.stage.is_target_for_good() && !after.is_fenced() && !is_written_back {
            for disk in self.protected_disks(machine) {
                let number = disk.record.generation.next();
                let reason = "its machine ran at the target meanwhile".to_owned();
                changes.push(Change::AddGeneration(GenerationRecord {
                    disk: disk.record.id,
                    number,
                    reason,
                    at: self.now(),
                }));
                changes.push(Change::PutDisk(DiskRecord { generation: number, ..disk.record }));
            }
        }
        let stage = format!("machine {}", after.stage.name());
        changes.push(self.audit(who, &stage, &status.record.name, detail));
        self.commit(changes).await?;
        let described = self.describe(machine).await;
        drop(changing);
        described?;
        self.fence(machine, &after).await;
        Ok(after)
    }

    /// Ends the session of a machine that is fenced, and waits until nothing more of it is taken.
    async fn fence(&self, machine: MachineId, lifecycle: &Lifecycle) {
        if !lifecycle.is_fenced() {
            return;
        }
        self.links.close(machine, RefusalCode::FENCED, FENCED);
        for _ in 0..FENCE_LOOKS_MAX {
            if self.links.figures(machine).is_none() {
                return;
            }
            tokio::time::sleep(FENCE_LOOK).await;
        }
        tracing::warn!(%machine, "the session of a fenced machine does not end; what it sends is refused");
    }

    /// Begins a new line of history of a disk whose log has lost frames.
    ///
    /// # Errors
    /// The catalog or the store fails, or the disk is unknown.
    pub async fn history_lost(&self, disk: DiskId, reason: String) -> Result<(), RegistryError> {
        let _one_at_a_time = self.changing.lock().await;
        let known = self.disk(disk).map(|disk| disk.record);
        let Some(known) = known.filter(|disk| disk.unprotected_at.is_none()) else { return Ok(()) };
        let mut lifecycle = self.known(known.machine)?.lifecycle;
        if lifecycle.lines.remove(&disk).is_some() {
            self.commit(vec![put_lifecycle(known.machine, &lifecycle)?]).await?;
        }
        self.new_generation("coordinator", known, reason).await.map(drop)
    }

    /// Begins a new line of history of all protected disks of a fenced machine, whose writer is the coordinator. Where the
    /// source's lines end is remembered first.
    ///
    /// # Errors
    /// The catalog or a log fails.
    pub async fn take_over(&self, machine: MachineId, reason: String) -> Result<(), RegistryError> {
        let _one_at_a_time = self.changing.lock().await;
        let mut lifecycle = self.known(machine)?.lifecycle;
        for disk in self.protected_disks(machine) {
            let (id, generation) = (disk.record.id, disk.record.generation);
            let log = self.logs.state(id, generation).await.map_err(RegistryError::Store)?;
            // Begun once already: the newest line is the coordinator's.
            if log.scan_complete {
                let line = SourceLine { generation, end: log.durable };
                lifecycle.lines.entry(id).or_insert(line);
            }
        }
        self.commit(vec![put_lifecycle(machine, &lifecycle)?]).await?;
        for disk in self.protected_disks(machine) {
            self.new_generation("coordinator", disk.record, reason.clone()).await?;
        }
        Ok(())
    }

    /// Begins a new line of history of a disk.
    pub(super) async fn new_generation(
        &self,
        who: &str,
        disk: DiskRecord,
        reason: String,
    ) -> Result<Generation, RegistryError> {
        let number = disk.generation.next();
        let generation = GenerationRecord { disk: disk.id, number, reason: reason.clone(), at: self.now() };
        let audit = self.audit(who, "new generation", &disk.path, format!("{number}: {reason}"));
        let disk = DiskRecord { generation: number, ..disk };
        let machine = disk.machine;
        self.commit(vec![Change::PutDisk(disk), Change::AddGeneration(generation), audit]).await?;
        self.describe(machine).await?;
        Ok(number)
    }

    /// Tells the live session, if there is one; the agent gets the assignment at its next connect otherwise.
    async fn reassign(&self, machine: MachineId) {
        if let Err(error) = self.links.reassign(machine).await {
            tracing::warn!(%machine, %error, "the session was not told of its new assignment; it ends");
            self.links.close(machine, RefusalCode::BUSY, "the assignment changed; connect again");
        }
    }

    fn known(&self, machine: MachineId) -> Result<MachineStatus, RegistryError> {
        self.machine(machine).ok_or_else(|| RegistryError::MachineUnknown { given: machine.to_string() })
    }

    fn usable(&self, machine: MachineId) -> Result<MachineStatus, RegistryError> {
        let status = self.known(machine)?;
        if status.record.state == MachineState::Revoked {
            return Err(RegistryError::MachineRevoked { name: status.record.name });
        }
        Ok(status)
    }

    fn inventory_disk(&self, status: &MachineStatus, path: &str) -> Result<DiskInventory, RegistryError> {
        let name = status.record.name.clone();
        let inventory = status.inventory.as_ref().ok_or(RegistryError::NeverConnected { name })?;
        if let Some(image) = image_file(&inventory.disks, path) {
            return Ok(image);
        }
        let found = find_disk(&inventory.disks, path).ok_or_else(|| RegistryError::DiskUnknown {
            name: status.record.name.clone(),
            path: path.to_owned(),
            known: inventory.disks.iter().map(|disk| disk.path.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        let unsuitable =
            |reason: &str| RegistryError::DiskUnsuitable { path: path.to_owned(), reason: reason.to_owned() };
        if found.size_bytes == 0 {
            return Err(unsuitable("it has no medium (its size is zero)"));
        }
        if BlockCount::covering(found.size_bytes).0 > BLOCKS_MAX {
            return Err(unsuitable("it is larger than 16 PiB"));
        }
        Ok(found.clone())
    }

    /// The record to write for a disk, the record of the disk that it takes the place of, and the reason of its new
    /// generation; no reason if nothing is to be written.
    fn disk_to_protect(
        &self,
        machine: MachineId,
        found: &DiskInventory,
    ) -> (DiskRecord, Option<DiskRecord>, Option<String>) {
        let now = self.now();
        let fresh = |id, generation| DiskRecord {
            id,
            machine,
            path: found.path.clone(),
            identity: found.identity.clone(),
            size_bytes: found.size_bytes,
            generation,
            protected_at: now,
            unprotected_at: None,
        };
        let same: Vec<DiskRecord> = self.same_disks(machine, found);
        let protected = same.iter().find(|disk| disk.unprotected_at.is_none());
        let usable = |disk: &&DiskRecord| disk.size_bytes == found.size_bytes || disk.size_bytes == 0;
        if let Some(disk) = protected.filter(usable) {
            return (disk.clone(), None, None);
        }
        let replaced = protected.map(|disk| DiskRecord { unprotected_at: Some(now), ..disk.clone() });
        // The newest of those that were protected before and still fit.
        if let Some(disk) = same.iter().rev().find(|disk| disk.size_bytes == found.size_bytes) {
            let reason = "protected again".to_owned();
            return (fresh(disk.id, disk.generation.next()), replaced, Some(reason));
        }
        let reason = match &replaced {
            None => "protected for the first time".to_owned(),
            Some(old) => format!("resized from {} to {} bytes", old.size_bytes, found.size_bytes),
        };
        (fresh(DiskId(self.entropy.uuid(now)), Generation(1)), replaced, Some(reason))
    }

    /// All records of a disk of the machine, in order of their ids, which is the order of their making.
    fn same_disks(&self, machine: MachineId, found: &DiskInventory) -> Vec<DiskRecord> {
        let state = self.state();
        let mine = state.disks.values().map(|disk| &disk.record).filter(|disk| disk.machine == machine);
        let same = mine.filter(|disk| {
            if is_telling(&found.identity) && is_telling(&disk.identity) {
                same_disk(&disk.identity, &found.identity)
            } else {
                disk.path == found.path
            }
        });
        same.cloned().collect()
    }

    fn check_count(&self, status: &MachineStatus, named: &[DiskRecord]) -> Result<(), RegistryError> {
        let mut ids: Vec<DiskId> =
            self.protected_disks(status.record.id).iter().map(|disk| disk.record.id).collect();
        ids.extend(named.iter().map(|disk| disk.id));
        ids.sort_unstable();
        ids.dedup();
        if ids.len() > DISKS_PER_MACHINE_MAX {
            let text = format!("a machine has at most {DISKS_PER_MACHINE_MAX} protected disks");
            return Err(RegistryError::Setting(text));
        }
        Ok(())
    }
}

/// A plain file that is to be protected as a disk: it is in no inventory, and its size is learnt from the agent's first
/// report.
fn image_file(disks: &[DiskInventory], path: &str) -> Option<DiskInventory> {
    let is_file = path.starts_with('/') && !path.starts_with("/dev/") && find_disk(disks, path).is_none();
    is_file.then(|| DiskInventory {
        path: path.to_owned(),
        identity: DiskIdentity { backing_file: Some(path.to_owned()), ..DiskIdentity::default() },
        size_bytes: 0,
        logical_block_bytes: 512,
        read_only: false,
        model: "image file".to_owned(),
        driver: String::new(),
        table: PartitionTable::None,
        partitions: Vec::new(),
        file_systems: Vec::new(),
    })
}

fn is_meant(disk: &DiskRecord, given: &str) -> bool {
    disk.path == given || disk.identity.backing_file.as_deref() == Some(given) || disk.id.to_string() == given
}

fn changed_policy(policy: &PolicyRecord, wanted: &Protect) -> PolicyRecord {
    PolicyRecord {
        machine: policy.machine,
        interval_ms: wanted.interval_ms.unwrap_or(policy.interval_ms),
        retention_seconds: wanted.retention_seconds.unwrap_or(policy.retention_seconds),
        retention_tiers: wanted.retention_tiers.clone().unwrap_or_else(|| policy.retention_tiers.clone()),
        hold_ms_max: wanted.hold_ms_max.unwrap_or(policy.hold_ms_max),
        send_bytes_per_second_max: wanted
            .send_bytes_per_second_max
            .unwrap_or(policy.send_bytes_per_second_max),
        scan_bytes_per_second_max: wanted
            .scan_bytes_per_second_max
            .unwrap_or(policy.scan_bytes_per_second_max),
        application_interval_ms: wanted.application_interval_ms.unwrap_or(policy.application_interval_ms),
        application_strict: wanted.application_strict.unwrap_or(policy.application_strict),
        drill: DrillPolicy {
            every_ms: wanted.drill_every_ms.unwrap_or(policy.drill.every_ms),
            drill: Drill {
                probe: wanted.drill_probe.clone().unwrap_or_else(|| policy.drill.drill.probe.clone()),
                limit_ms: wanted.drill_limit_ms.unwrap_or(policy.drill.drill.limit_ms),
            },
        },
    }
}

/// What a fenced source is told.
pub(super) const FENCED: &str = "this machine was failed over: its source must not write any more, and nothing of it is taken \
                                 until `holdfast cancel` or a failback";
/// How often it is looked whether a fenced session has ended, and how many times.
const FENCE_LOOK: Duration = Duration::from_millis(5);
const FENCE_LOOKS_MAX: u32 = 1000;

fn put_lifecycle(machine: MachineId, lifecycle: &Lifecycle) -> Result<Change, RegistryError> {
    let body = serde_json::to_string(lifecycle).map_err(|error| RegistryError::Setting(error.to_string()))?;
    Ok(Change::PutLifecycle(machine, body))
}
