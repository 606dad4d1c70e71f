//! The catalog: what the coordinator must remember besides the data itself, behind one trait.
//!
//! Owns the contract: records ([`record`]), changes and queries. Knows no business rule: those are the registry's, the
//! points' and the jobs'. Invariant: [`Catalog::apply`] is atomic and durable when it returns: all changes of a list or
//! none, the audit entry included. The catalog is derived where it can be: machines, disks and points can be rebuilt
//! from the store.
//! Limit: [`ROWS_MAX`] rows per query.

pub mod record;
pub mod sqlite;

use std::{fmt, future::Future, pin::Pin};

use holdfast_common::{
    clock::Timestamp,
    frame::Consistency,
    ids::{DiskId, GroupId, JobId, MachineId, PointId},
};
use thiserror::Error;

use record::{
    AuditRecord, CertificateRecord, DiskRecord, GenerationRecord, GroupMemberRecord, GroupRecord,
    JobEventRow, LeaseRecord, MachineRecord, OperatorRecord, PlanRecord, PointRecord, PointState,
    PolicyRecord, TokenRecord, VoidedCutRecord, VoidedGroupCutRecord, WitnessRecord,
};

pub use sqlite::SqliteCatalog;

/// Most rows that one query returns; more are cut off, newest kept.
pub const ROWS_MAX: u32 = 1_000_000;

/// Most voided cuts kept per machine; older ones make room.
pub const VOIDED_CUTS_KEPT: u32 = 1_000;

/// The answer to a query, some time later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, CatalogError>> + Send + 'a>>;

/// Something to change. "Put" inserts, or replaces the row of the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Puts a machine.
    PutMachine(MachineRecord),
    /// Puts a certificate.
    PutCertificate(CertificateRecord),
    /// Revokes all certificates of a machine that are not revoked yet.
    RevokeCertificates(MachineId, Timestamp),
    /// Puts a token.
    PutToken(TokenRecord),
    /// Marks a token as used. [`CatalogError::Conflict`] if it is unknown, used or expired at `at`.
    UseToken {
        /// `TokenHash` of the secret.
        hash: [u8; 32],
        /// Who is enrolled with it.
        machine: MachineId,
        /// When.
        at: Timestamp,
    },
    /// Puts a disk.
    PutDisk(DiskRecord),
    /// Adds a line of history. [`CatalogError::Conflict`] if the disk has that number already.
    AddGeneration(GenerationRecord),
    /// Puts a policy.
    PutPolicy(PolicyRecord),
    /// Adds a point with its disks, unless it is known already.
    AddPoint(PointRecord),
    /// Changes a point's state.
    SetPointState(PointId, PointState, Option<String>),
    /// Says since when a point is fully verified.
    SetPointVerified(PointId, Timestamp),
    /// What came of a point's witness.
    SetPointWitness(PointId, WitnessRecord),
    /// Removes points that have no lease; those with one stay. Jobs and journal are not touched.
    RemovePoints(Vec<PointId>),
    /// Adds a voided cut; the oldest beyond [`VOIDED_CUTS_KEPT`] make room.
    AddVoidedCut(VoidedCutRecord),
    /// Puts a lease.
    PutLease(LeaseRecord),
    /// Ends all leases of a holder.
    EndLeases(String),
    /// Adds an event. [`CatalogError::Conflict`] if the job has that number already.
    AddJobEvent(JobEventRow),
    /// Removes all events of a job.
    ForgetJob(JobId),
    /// Adds an audit entry.
    Audit(AuditRecord),
    /// Puts an operator.
    PutOperator(OperatorRecord),
    /// Puts a machine's thresholds, as the registry writes them.
    PutThresholds(MachineId, String),
    /// Puts where a machine stands between its sites, as the registry writes it.
    PutLifecycle(MachineId, String),
    /// Puts a group. [`CatalogError::Database`] if another one has its name.
    PutGroup(GroupRecord),
    /// Removes a group, its members and its voided cuts. The members' points stay.
    RemoveGroup(GroupId),
    /// Puts a member into a group, out of the one it was in.
    PutGroupMember(GroupMemberRecord),
    /// Takes a machine out of its group.
    RemoveGroupMember(MachineId),
    /// Adds a voided group cut; the oldest beyond [`VOIDED_CUTS_KEPT`] make room.
    AddVoidedGroupCut(VoidedGroupCutRecord),
    /// Puts a recovery plan.
    PutPlan(PlanRecord),
    /// Removes the plan of this name.
    RemovePlan(String),
}

/// What the coordinator remembers.
pub trait Catalog: fmt::Debug + Send + Sync {
    /// Makes all changes in one transaction.
    ///
    /// # Errors
    /// Nothing was changed. Cancel safe: either nothing or everything happens.
    fn apply(&self, changes: Vec<Change>) -> Answer<'_, ()>;

    /// All machines, oldest first.
    fn machines(&self) -> Answer<'_, Vec<MachineRecord>>;
    /// All certificates of a machine, oldest first.
    fn certificates(&self, machine: MachineId) -> Answer<'_, Vec<CertificateRecord>>;
    /// The certificate with this serial number.
    fn certificate(&self, serial: Vec<u8>) -> Answer<'_, Option<CertificateRecord>>;
    /// All tokens, oldest first.
    fn tokens(&self) -> Answer<'_, Vec<TokenRecord>>;
    /// All disks ever protected, in order of their ids.
    fn disks(&self) -> Answer<'_, Vec<DiskRecord>>;
    /// Lines of history of a disk, oldest first.
    fn generations(&self, disk: DiskId) -> Answer<'_, Vec<GenerationRecord>>;
    /// All policies.
    fn policies(&self) -> Answer<'_, Vec<PolicyRecord>>;
    /// Points of a machine, newest first (by the time they became durable), at most `limit`.
    fn points(&self, machine: MachineId, limit: u32) -> Answer<'_, Vec<PointRecord>>;
    /// One point.
    fn point(&self, point: PointId) -> Answer<'_, Option<PointRecord>>;
    /// Voided cuts of a machine, newest first, at most `limit`.
    fn voided_cuts(&self, machine: MachineId, limit: u32) -> Answer<'_, Vec<VoidedCutRecord>>;
    /// All leases.
    fn leases(&self) -> Answer<'_, Vec<LeaseRecord>>;
    /// Events of all jobs, by job and number.
    fn job_events(&self) -> Answer<'_, Vec<JobEventRow>>;
    /// Audit entries of this time or later, newest first, at most `limit`.
    fn audit(&self, since: Timestamp, limit: u32) -> Answer<'_, Vec<AuditRecord>>;
    /// All machines' thresholds, as the registry wrote them.
    fn thresholds(&self) -> Answer<'_, Vec<(MachineId, String)>>;
    /// Where machines stand between their sites, as the registry wrote it; those that never failed over are missing.
    fn lifecycles(&self) -> Answer<'_, Vec<(MachineId, String)>>;
    /// The newest usable point of a machine with this consistency, by the time it became durable.
    fn newest_point(&self, machine: MachineId, consistency: Consistency) -> Answer<'_, Option<PointRecord>>;
    /// All operators, by name.
    fn operators(&self) -> Answer<'_, Vec<OperatorRecord>>;
    /// All recovery plans, by name.
    fn plans(&self) -> Answer<'_, Vec<PlanRecord>>;
    /// All groups, by name.
    fn groups(&self) -> Answer<'_, Vec<GroupRecord>>;
    /// All members of all groups.
    fn group_members(&self) -> Answer<'_, Vec<GroupMemberRecord>>;
    /// Voided cuts of a group, newest first, at most `limit`.
    fn voided_group_cuts(&self, group: GroupId, limit: u32) -> Answer<'_, Vec<VoidedGroupCutRecord>>;
}

/// Why the catalog could not do it.
#[derive(Debug, Error)]
pub enum CatalogError {
    /// A condition of a change does not hold; nothing was changed.
    #[error("{0}")]
    Conflict(String),
    /// A row holds what this version cannot read.
    #[error("the catalog holds a {what} that cannot be read ({value})")]
    Unreadable {
        /// Which field.
        what: &'static str,
        /// What was found.
        value: String,
    },
    /// The catalog was written by a newer version.
    #[error("the catalog cannot be brought to this version")]
    Version(#[source] sqlx::migrate::MigrateError),
    /// The database contradicts itself.
    #[error("the catalog's database is damaged: {0}")]
    Damaged(String),
    /// The database failed (disk full, read-only, damaged).
    #[error("the catalog's database failed")]
    Database(#[from] sqlx::Error),
}

#[cfg(test)]
mod tests;
