//! The registry: which machines and disks are protected, by which rules, and how they are doing.
//!
//! Owns machines, disks, generations, policies, tokens, certificates' states and the reports of agents. Does not know
//! the data path: what a disk's log holds it asks through [`DiskLogs`].
//! Invariant: what is in memory equals the catalog; a change is in the catalog first, with its audit entry, and changes
//! are made one at a time. Reports are in memory only.
//! Limit: [`DISKS_PER_MACHINE_MAX`](holdfast_common::wire::limits::DISKS_PER_MACHINE_MAX) disks per machine.

pub mod access;
pub mod description;
mod directory;
pub mod health;
pub mod identity;
pub mod lifecycle;
mod operator;
pub mod operators_record;
pub mod rules;
mod state;
pub mod thresholds;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use holdfast_common::{
    clock::{Clock, Timestamp},
    entropy::Entropy,
    ids::{DiskId, Generation, Interval, JobId, MachineId, Sequence},
    units::BlockIndex,
    wire::{AuditAnswer, SourceAnswer},
};
use thiserror::Error;
use tokio::sync::broadcast;

use crate::{
    catalog::{
        Catalog, CatalogError, Change,
        record::{AuditRecord, PolicyRecord},
    },
    compute::port::BoxFuture,
    groups::inbox::GroupInbox,
    ingest::links::LiveLinks,
};

use description::Description;
use lifecycle::LifecycleRefusal;
pub use operator::{NewToken, Protect, Protected};
use operators_record::OperatorsRecord;
pub use rules::retention_rule;
use state::State;
pub use state::{DiskState, MachineStatus};

/// Answers that wait for who asked; older ones are lost to who is slow.
const SOURCE_ANSWERS_MAX: usize = 256;
/// Answers to audits that wait for whoever listens.
const AUDIT_ANSWERS_MAX: usize = 1024;

/// How far a disk's log has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogState {
    /// Last durable frame.
    pub durable: Sequence,
    /// Interval that the next frame belongs to.
    pub interval: Interval,
    /// First block that the scan of the asked generation has not compared.
    pub scanned_to: BlockIndex,
    /// Whether that scan is complete.
    pub scan_complete: bool,
}

/// What the registry asks about disks' logs.
pub trait DiskLogs: fmt::Debug + Send + Sync + 'static {
    /// How far the log has come, as of all frames that are durable now. A disk without a log is at sequence zero.
    fn state(&self, disk: DiskId, generation: Generation) -> BoxFuture<'_, anyhow::Result<LogState>>;

    /// Keeps beside the logs what is needed to rebuild the catalog without its database, and makes the logs that do not
    /// exist yet; durable when it returns.
    fn describe(&self, description: Description) -> BoxFuture<'_, anyhow::Result<()>>;

    /// Keeps beside the logs who may use the interface over the network; durable when it returns.
    fn describe_operators(&self, operators: OperatorsRecord) -> BoxFuture<'_, anyhow::Result<()>>;
}

/// Machines, disks and policies, in memory and in the catalog.
#[derive(Debug)]
pub struct Registry {
    catalog: Arc<dyn Catalog>,
    logs: Arc<dyn DiskLogs>,
    links: LiveLinks,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    state: Mutex<State>,
    /// Held during a change, so that changes are made one after another.
    changing: tokio::sync::Mutex<()>,
    /// Whoever cuts groups, and so wants to hear what machines say about it.
    group_inbox: OnceLock<GroupInbox>,
    /// What machines answer as sources of failovers.
    source_answers: broadcast::Sender<(MachineId, SourceAnswer)>,
    /// What machines answer to audits.
    audit_answers: broadcast::Sender<(MachineId, AuditAnswer)>,
}

/// What the registry is made of.
#[derive(Clone, Debug)]
pub struct RegistryParts {
    /// Where it is kept.
    pub catalog: Arc<dyn Catalog>,
    /// The disks' logs.
    pub logs: Arc<dyn DiskLogs>,
    /// The live sessions.
    pub links: LiveLinks,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

impl Registry {
    /// Reads everything from the catalog.
    ///
    /// # Errors
    /// The catalog cannot be read.
    pub async fn load(parts: RegistryParts) -> Result<Self, CatalogError> {
        let state = State::load(parts.catalog.as_ref()).await?;
        let RegistryParts { catalog, logs, links, clock, entropy } = parts;
        let (changing, group_inbox) = (tokio::sync::Mutex::new(()), OnceLock::new());
        let source_answers = broadcast::channel(SOURCE_ANSWERS_MAX).0;
        let audit_answers = broadcast::channel(AUDIT_ANSWERS_MAX).0;
        let state = Mutex::new(state);
        Ok(Self {
            catalog,
            logs,
            links,
            clock,
            entropy,
            state,
            changing,
            group_inbox,
            source_answers,
            audit_answers,
        })
    }

    /// From now on this one hears what machines say about group cuts, and when they are lost. Once only.
    pub fn set_group_inbox(&self, inbox: GroupInbox) {
        let _only_once = self.group_inbox.set(inbox);
    }

    /// What machines answer as sources of failovers, from now on.
    #[must_use]
    pub fn source_answers(&self) -> broadcast::Receiver<(MachineId, SourceAnswer)> {
        self.source_answers.subscribe()
    }

    /// What machines answer to audits, from now on. Whoever is too slow misses some, and asks again.
    #[must_use]
    pub fn audit_answers(&self) -> broadcast::Receiver<(MachineId, AuditAnswer)> {
        self.audit_answers.subscribe()
    }

    /// All machines, oldest first.
    #[must_use]
    pub fn machines(&self) -> Vec<MachineStatus> {
        let mut machines: Vec<MachineStatus> = self.state().machines.values().cloned().collect();
        machines.sort_by_key(|machine| (machine.record.enrolled_at, machine.record.id));
        machines
    }

    /// Machines that run at their targets and are replicated from there: the failover of each, and its interval.
    #[must_use]
    pub fn at_their_targets(&self) -> Vec<(MachineId, JobId, Duration)> {
        let state = self.state();
        let there = state.machines.values().filter(|machine| machine.lifecycle.stage.is_target_replicated());
        let figures = |machine: &MachineStatus| {
            let interval = Duration::from_millis(machine.policy.interval_ms);
            Some((machine.record.id, machine.lifecycle.stage.failover()?, interval))
        };
        there.filter_map(figures).collect()
    }

    /// One machine.
    #[must_use]
    pub fn machine(&self, machine: MachineId) -> Option<MachineStatus> {
        self.state().machines.get(&machine).cloned()
    }

    /// The name of a machine, as last heard.
    #[must_use]
    pub fn name(&self, machine: MachineId) -> Option<String> {
        self.state().machines.get(&machine).map(|machine| machine.record.name.clone())
    }

    /// The rules of a machine.
    #[must_use]
    pub fn policy(&self, machine: MachineId) -> Option<PolicyRecord> {
        self.state().machines.get(&machine).map(|machine| machine.policy.clone())
    }

    /// The rules of all machines.
    #[must_use]
    pub fn policies(&self) -> Vec<PolicyRecord> {
        self.state().machines.values().map(|machine| machine.policy.clone()).collect()
    }

    /// The disks of a machine that are protected now, in order of their ids.
    #[must_use]
    pub fn protected_disks(&self, machine: MachineId) -> Vec<DiskState> {
        let state = self.state();
        let disks = state.disks.values().filter(|disk| disk.record.machine == machine && disk.is_protected());
        disks.cloned().collect()
    }

    /// A disk that is or was protected.
    #[must_use]
    pub fn disk(&self, disk: DiskId) -> Option<DiskState> {
        self.state().disks.get(&disk).cloned()
    }

    /// All disks ever protected.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskState> {
        self.state().disks.values().cloned().collect()
    }

    /// The machine that an operator means by a name, an id or the beginning of an id.
    ///
    /// # Errors
    /// None or several fit; the text says what to do.
    pub fn resolve(&self, given: &str) -> Result<MachineId, RegistryError> {
        identity::resolve(self.state().machines.values().map(|machine| &machine.record), given)
    }

    /// How far the agent's clock is behind ours, in microseconds, as far as it is known.
    #[must_use]
    pub fn clock_offset_us(&self, machine: MachineId) -> i64 {
        self.state().machines.get(&machine).and_then(|machine| machine.clock_offset_us).unwrap_or(0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Timestamp {
        self.clock.wall()
    }

    fn audit(&self, who: &str, what: &str, subject: impl fmt::Display, detail: impl fmt::Display) -> Change {
        let at = self.now();
        Change::Audit(AuditRecord {
            id: self.entropy.uuid(at),
            at,
            who: who.to_owned(),
            what: what.to_owned(),
            subject: subject.to_string(),
            detail: detail.to_string(),
        })
    }

    /// Writes down what is known of a machine, beside the logs, and has its logs made.
    ///
    /// # Errors
    /// The store fails; the catalog has everything nevertheless.
    pub async fn describe(&self, machine: MachineId) -> Result<(), RegistryError> {
        let Some(status) = self.machine(machine) else { return Ok(()) };
        let disks: Vec<_> = self.disks().into_iter().map(|disk| disk.record).collect();
        let mine: Vec<_> = disks.into_iter().filter(|disk| disk.machine == machine).collect();
        let certificates = self.catalog.certificates(machine).await?;
        let described = Description::new(&status, &mine, &certificates, self.now());
        self.logs.describe(described).await.map_err(RegistryError::Store)
    }

    /// Writes down who the operators are, beside the logs.
    ///
    /// # Errors
    /// The store fails; the catalog has everything nevertheless.
    pub async fn describe_operators(&self) -> Result<(), RegistryError> {
        let operators = OperatorsRecord::new(&self.operators());
        self.logs.describe_operators(operators).await.map_err(RegistryError::Store)
    }

    /// Makes the changes in the catalog, then in memory.
    async fn commit(&self, changes: Vec<Change>) -> Result<(), CatalogError> {
        self.catalog.apply(changes.clone()).await?;
        let mut state = self.state();
        for change in changes {
            state.apply(change);
        }
        Ok(())
    }
}

/// Why the registry did not do what an operator asked. The texts say what to do.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// No machine of this name or id.
    #[error("there is no machine `{given}`; `holdfast machines` lists them")]
    MachineUnknown {
        /// What was given.
        given: String,
    },
    /// Several machines fit.
    #[error("`{given}` fits several machines ({candidates}); give more digits of the id")]
    MachineAmbiguous {
        /// What was given.
        given: String,
        /// Their ids.
        candidates: String,
    },
    /// The machine was revoked.
    #[error("machine {name} is revoked; enrol it again with `holdfast token create --machine {name}`")]
    MachineRevoked {
        /// Its name.
        name: String,
    },
    /// Nothing is known of the machine's disks.
    #[error(
        "machine {name} has not connected yet, so its disks are unknown; start `holdfast-agent run` on it"
    )]
    NeverConnected {
        /// Its name.
        name: String,
    },
    /// The machine has no such disk.
    #[error("machine {name} has no disk {path}; it has: {known}")]
    DiskUnknown {
        /// The machine.
        name: String,
        /// What was given.
        path: String,
        /// What there is.
        known: String,
    },
    /// The disk cannot be protected.
    #[error("disk {path} cannot be protected: {reason}")]
    DiskUnsuitable {
        /// The disk.
        path: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The disk is not protected.
    #[error("disk {path} of machine {name} is not protected; protected are: {known}")]
    NotProtected {
        /// The machine.
        name: String,
        /// What was given.
        path: String,
        /// What is protected.
        known: String,
    },
    /// The name is in use.
    #[error(
        "there is an operator {name} already; revoke it first with `holdfast operator revoke {name}`, or choose another \
         name"
    )]
    OperatorExists {
        /// The name.
        name: String,
    },
    /// No operator of this name.
    #[error("there is no operator `{name}`; `holdfast operator list` lists them")]
    OperatorUnknown {
        /// What was given.
        name: String,
    },
    /// Not possible where the machine stands.
    #[error(transparent)]
    Lifecycle(#[from] LifecycleRefusal),
    /// A setting is out of its range.
    #[error("{0}")]
    Setting(String),
    /// The catalog failed.
    #[error("the catalog failed; nothing was changed")]
    Catalog(#[from] CatalogError),
    /// The store failed.
    #[error("the change was recorded, but the store failed to follow; it is tried again at the next start")]
    Store(#[source] anyhow::Error),
}

#[cfg(test)]
mod tests;
