//! What the catalog keeps: one plain struct per table.
//!
//! Owns the records only; they are what is persisted, so they name every field and hold nothing in memory only.
//! Knows no SQL and no rule. Texts of enums are in their `text`/`parse` functions and never change.

use std::sync::Arc;

use holdfast_common::{
    clock::Timestamp,
    frame::{Consistency, CutMethod, CutMore},
    ids::{DiskId, Generation, GroupCutId, GroupId, JobId, MachineId, PointId, Sequence},
    wire::DiskIdentity,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::drills::DrillPolicy;

macro_rules! text_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$item:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$item])* $variant,)*
        }

        impl $name {
            /// The persisted text.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// From the persisted text.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

text_enum!(
    /// Whether a machine may connect.
    MachineState {
        /// It may.
        Enrolled = "enrolled",
        /// Its certificates are refused; what it has sent is kept.
        Revoked = "revoked",
    }
);

text_enum!(
    /// What can be done with a point.
    PointState {
        /// Durable on all disks, not yet in the index.
        Pending = "pending",
        /// In the index: attachable at once.
        Processed = "processed",
        /// Not to be used; the reason stands beside it.
        Void = "void",
    }
);

text_enum!(
    /// What an operator may do; each role may do what those before it may.
    #[derive(PartialOrd, Ord)]
    Role {
        /// Look.
        Viewer = "viewer",
        /// Protect, make points, fail over.
        Operator = "operator",
        /// Make tokens, revoke, shorten history.
        Admin = "admin",
    }
);

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineRecord {
    /// Minted at enrolment.
    pub id: MachineId,
    /// Host name, as last heard.
    pub name: String,
    /// Whether it may connect.
    pub state: MachineState,
    /// When it was enrolled.
    pub enrolled_at: Timestamp,
    /// When its last session began or ended.
    pub last_seen_at: Option<Timestamp>,
    /// Version of its agent, empty before the first session.
    pub agent_version: String,
    /// Its last inventory as JSON (the fields of `wire::Inventory`). Shared: records are copied often, and this is long.
    pub inventory: Option<Arc<str>>,
}

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRecord {
    /// Serial number, as in the certificate.
    pub serial: Vec<u8>,
    /// Whom it identifies.
    pub machine: MachineId,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A one-time enrolment token; the secret itself is never kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    /// `TokenHash` of the secret.
    pub hash: [u8; 32],
    /// What the operator calls it.
    pub label: String,
    /// The machine that it enrols again; none for a new machine.
    pub machine: Option<MachineId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working.
    pub expires_at: Timestamp,
    /// When it was used.
    pub used_at: Option<Timestamp>,
    /// Who was enrolled with it.
    pub used_by: Option<MachineId>,
}

/// A disk that is or was protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRecord {
    /// Minted when it was first protected.
    pub id: DiskId,
    /// Its machine.
    pub machine: MachineId,
    /// Device node when it was protected.
    pub path: String,
    /// What identifies it on the source.
    pub identity: DiskIdentity,
    /// Size of the replica in bytes.
    pub size_bytes: u64,
    /// Line of history that may be written.
    pub generation: Generation,
    /// When it was (last) protected.
    pub protected_at: Timestamp,
    /// When protection ended, if it has.
    pub unprotected_at: Option<Timestamp>,
}

/// A line of history of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationRecord {
    /// The disk.
    pub disk: DiskId,
    /// Its number.
    pub number: Generation,
    /// Why it was begun.
    pub reason: String,
    /// When it was begun.
    pub at: Timestamp,
}

/// Settings of a machine's protection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRecord {
    /// The machine.
    pub machine: MachineId,
    /// Time between cuts.
    pub interval_ms: u64,
    /// How long every point is kept.
    pub retention_seconds: u64,
    /// What is kept of older ones, by ascending age.
    pub retention_tiers: Vec<RetentionTier>,
    /// Longest time that writes may be held.
    pub hold_ms_max: u64,
    /// Bound of what is sent; zero means none.
    pub send_bytes_per_second_max: u64,
    /// Bound of what a scan reads; zero means none.
    pub scan_bytes_per_second_max: u64,
    /// Time between app-consistent points; zero means none by themselves.
    pub application_interval_ms: u64,
    /// Whether such a point is void if a freeze hook fails; else it is kept as a crash-consistent one.
    pub application_strict: bool,
    /// When it is drilled, and what proves that it boots.
    pub drill: DrillPolicy,
}

/// What is kept of points that are no longer all kept: one of each stretch. Persisted as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionTier {
    /// Length of a stretch.
    pub every_seconds: u64,
    /// Age at which the tier ends; it begins where the one before ends.
    pub until_seconds: u64,
}

/// A recovery point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointRecord {
    /// Minted by the agent.
    pub id: PointId,
    /// Its machine.
    pub machine: MachineId,
    /// What can be done with it.
    pub state: PointState,
    /// Why it is void.
    pub void_reason: Option<String>,
    /// The instant of the cut (agent's wall clock).
    pub cut_at: Timestamp,
    /// When its last disk became durable (our wall clock).
    pub durable_at: Timestamp,
    /// From the cut until it was durable, the clocks' difference taken out.
    pub rpo_us: u64,
    /// How the instant was made.
    pub method: CutMethod,
    /// What it guarantees.
    pub consistency: Consistency,
    /// How long writes were held.
    pub hold_us: u64,
    /// The operator's request it answers.
    pub request: Option<u64>,
    /// Remarks for operators.
    pub notes: Vec<String>,
    /// Its disks, ordered by disk.
    pub disks: Vec<PointDiskRecord>,
    /// When all data that it needs had been read and found good for the first time.
    pub verified_at: Option<Timestamp>,
    /// The mark of a group cut, and how applications were made consistent; never a witness's digests.
    pub more: CutMore,
    /// Blocks that the agent hashed at the cut, and what came of them.
    pub witness: WitnessRecord,
}

/// What came of a point's witness. Persisted as JSON; fields are only added, and one that is missing has its default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WitnessRecord {
    /// Blocks that the agent hashed while writes were held.
    pub blocks: u32,
    /// When they were compared with the copy here; none until then.
    pub compared_at: Option<Timestamp>,
    /// Blocks that the copy has otherwise.
    pub differed: u32,
}

impl WitnessRecord {
    /// Whether there are blocks to compare.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.blocks > 0 && self.compared_at.is_none()
    }
}

/// A disk of a recovery point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointDiskRecord {
    /// The disk.
    pub disk: DiskId,
    /// Its line of history.
    pub generation: Generation,
    /// Its cut frame.
    pub sequence: Sequence,
    /// Bytes of the frames since the disk's last cut, as stored.
    pub stored_bytes: u64,
}

/// A cut that could not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoidedCutRecord {
    /// The machine.
    pub machine: MachineId,
    /// When it was tried (agent's wall clock).
    pub at: Timestamp,
    /// The operator's request it was for.
    pub request: Option<u64>,
    /// Why.
    pub reason: String,
}

/// Something depends on a point; it is never pruned by age while this stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// The point.
    pub point: PointId,
    /// Who needs it ("job 0192...").
    pub holder: String,
    /// Since when.
    pub since: Timestamp,
}

/// An event of a job; its body is the job engine's own record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobEventRow {
    /// The job.
    pub job: JobId,
    /// From 1, without gaps.
    pub number: u64,
    /// When it happened.
    pub at: Timestamp,
    /// The engine's record.
    pub body: String,
}

/// Somebody who may use the interface over the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorRecord {
    /// Unique; stands in the audit.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// `TokenHash` of the token's secret.
    pub hash: [u8; 32],
    /// When the token was made.
    pub created_at: Timestamp,
    /// When it stops working.
    pub expires_at: Timestamp,
    /// When it was revoked, if it was.
    pub revoked_at: Option<Timestamp>,
}

/// Who changed what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// Time-ordered.
    pub id: Uuid,
    /// When.
    pub at: Timestamp,
    /// Who ("operator root", "agent web-1", "coordinator").
    pub who: String,
    /// What ("protect", "revoke").
    pub what: String,
    /// What it was done to.
    pub subject: String,
    /// Particulars, for people.
    pub detail: String,
}

/// A replication group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRecord {
    /// Minted when it was made.
    pub id: GroupId,
    /// What the operator calls it; no two are the same.
    pub name: String,
    /// Time between group cuts.
    pub interval_ms: u64,
    /// Longest time that a held member waits for the mark.
    pub wait_ms_max: u64,
    /// Time between app-consistent group cuts; zero means none by themselves.
    pub application_interval_ms: u64,
    /// Age of its newest point that is worth a warning; zero if that goes by its interval.
    pub lag_warning_ms: u64,
    /// The same for what is critical.
    pub lag_critical_ms: u64,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A member of a group. A machine is in one group at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupMemberRecord {
    /// The machine.
    pub machine: MachineId,
    /// Its group.
    pub group: GroupId,
    /// Since when.
    pub joined_at: Timestamp,
}

/// A recovery plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanRecord {
    /// Its name.
    pub name: String,
    /// Its file.
    pub text: String,
    /// When it was last applied.
    pub changed_at: Timestamp,
    /// By whom.
    pub changed_by: String,
}

/// A group cut that made no group point. The members' own points are another matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoidedGroupCutRecord {
    /// The attempt.
    pub cut: GroupCutId,
    /// The group.
    pub group: GroupId,
    /// When (our wall clock).
    pub at: Timestamp,
    /// The member that it failed at, if at one.
    pub machine: Option<MachineId>,
    /// Why.
    pub reason: String,
}

/// The persisted text of a method.
#[must_use]
pub const fn method_text(method: CutMethod) -> &'static str {
    match method {
        CutMethod::Freeze => "freeze",
        CutMethod::QuietWindow => "quiet-window",
        CutMethod::Unchanged => "unchanged",
        CutMethod::Held => "held",
    }
}

/// The method of a persisted text.
#[must_use]
pub fn parse_method(text: &str) -> Option<CutMethod> {
    match text {
        "freeze" => Some(CutMethod::Freeze),
        "quiet-window" => Some(CutMethod::QuietWindow),
        "unchanged" => Some(CutMethod::Unchanged),
        "held" => Some(CutMethod::Held),
        _ => None,
    }
}

/// The persisted text of a consistency.
#[must_use]
pub const fn consistency_text(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Crash => "crash",
        Consistency::App => "app",
    }
}

/// The consistency of a persisted text.
#[must_use]
pub fn parse_consistency(text: &str) -> Option<Consistency> {
    match text {
        "crash" => Some(Consistency::Crash),
        "app" => Some(Consistency::App),
        _ => None,
    }
}
