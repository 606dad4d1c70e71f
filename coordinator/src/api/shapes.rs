//! Requests and answers as JSON; also what `holdfast --json` prints.
//!
//! Owns the names. They are a stable interface: within `/v1` fields are only added. Times are given twice where programs
//! calculate: as RFC 3339 text and in microseconds since 1970 UTC (`_us`). Sizes are in bytes, durations say their unit.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::catalog::record::RetentionTier;
use crate::drills::DrillPolicy;
use crate::registry::{
    health::{Finding, Level},
    thresholds::Thresholds,
};

/// An error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorShape {
    /// For programs; never changes for the same cause.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do; may be empty.
    pub advice: String,
}

/// Asks for an enrolment token.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenRequest {
    /// What the operator calls it.
    pub label: String,
    /// A machine that is to be enrolled again, by name or id; none for a new machine.
    pub machine: Option<String>,
    /// How long it may be used; an hour if not given.
    pub life_seconds: Option<u64>,
}

/// A token. Shown once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenShape {
    /// The text for `holdfast-agent enroll --token`.
    pub token: String,
    /// When it ends.
    pub expires_at: String,
    /// Fingerprint of the coordinator's CA, which the token carries.
    pub fingerprint: String,
    /// Where the coordinator listens.
    pub coordinator: String,
}

/// A machine in the list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineShape {
    /// Its id.
    pub id: String,
    /// Host name.
    pub name: String,
    /// "enrolled" or "revoked".
    pub state: String,
    /// Whether its agent is connected.
    pub connected: bool,
    /// Address of the agent, if it is connected.
    pub address: Option<String>,
    /// Why the last session ended, if none is open and this coordinator saw it end.
    pub disconnect_reason: Option<String>,
    /// Health of machine and disks together.
    pub health: Level,
    /// When it was enrolled.
    pub enrolled_at: String,
    /// When it last opened a session.
    pub last_seen_at: Option<String>,
    /// Version of its agent.
    pub agent_version: String,
    /// Operating system.
    pub operating_system: String,
    /// Number of protected disks.
    pub protected_disks: usize,
}

/// All of a machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineDetailShape {
    /// As in the list.
    #[serde(flatten)]
    pub machine: MachineShape,
    /// Its rules.
    pub policy: PolicyShape,
    /// Its protected disks.
    pub disks: Vec<DiskStatusShape>,
    /// Its last inventory, as the agent sent it; null before the first session.
    pub inventory: serde_json::Value,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Rules of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyShape {
    /// Time between cuts.
    pub interval_ms: u64,
    /// How long every point is kept.
    pub retention_seconds: u64,
    /// What is kept of older ones, by ascending age.
    #[serde(default)]
    pub retention_tiers: Vec<RetentionTier>,
    /// Both as the operator writes them.
    #[serde(default)]
    pub retention: String,
    /// Longest hold.
    pub hold_ms_max: u64,
    /// Bound of sending; zero means none.
    pub send_bytes_per_second_max: u64,
    /// Bound of scanning; zero means none.
    pub scan_bytes_per_second_max: u64,
    /// Time between app-consistent points; zero means none by themselves.
    #[serde(default)]
    pub application_interval_ms: u64,
    /// Whether such a point is void if a freeze hook fails; else it is kept as a crash-consistent one.
    #[serde(default)]
    pub application_strict: bool,
    /// When it is drilled, and what proves that it boots.
    #[serde(default)]
    pub drill: DrillPolicy,
}

/// Disks to protect, rules to change.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProtectRequest {
    /// Device nodes.
    pub disks: Vec<String>,
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
    /// Whether such a point is void if a freeze hook fails.
    pub application_strict: Option<bool>,
    /// New time between drills; zero means none by themselves.
    pub drill_every_ms: Option<u64>,
    /// What the console says when the machine has booted.
    pub drill_probe: Option<String>,
    /// How long that may take.
    pub drill_limit_ms: Option<u64>,
}

/// What is protected now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProtectShape {
    /// The machine's id.
    pub machine: String,
    /// The named disks.
    pub disks: Vec<DiskShape>,
    /// The rules now.
    pub policy: PolicyShape,
}

/// Disks to protect no more; all if none is named.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnprotectRequest {
    /// Device nodes or ids.
    pub disks: Vec<String>,
}

/// What is protected no more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UnprotectShape {
    /// The machine's id.
    pub machine: String,
    /// The disks.
    pub disks: Vec<DiskShape>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskShape {
    /// Its id.
    pub id: String,
    /// Device node when it was protected.
    pub path: String,
    /// Size of the replica.
    pub size_bytes: u64,
    /// Line of history.
    pub generation: u32,
}

/// Everything at a glance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusShape {
    /// Version of the coordinator.
    pub version: String,
    /// When it was started.
    pub started_at: String,
    /// Where agents connect to.
    pub listen: String,
    /// The worst of all.
    pub health: Level,
    /// What is wrong with the coordinator itself.
    pub findings: Vec<Finding>,
    /// Space of its data folder.
    pub space: Option<SpaceShape>,
    /// The machines.
    pub machines: Vec<MachineStatusShape>,
    /// The groups.
    #[serde(default)]
    pub groups: Vec<super::group_shapes::GroupStatusShape>,
}

/// Space of the data folder.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SpaceShape {
    /// Free bytes.
    pub free_bytes: u64,
    /// All bytes.
    pub total_bytes: u64,
}

/// How a machine is doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineStatusShape {
    /// Its id.
    pub id: String,
    /// Host name.
    pub name: String,
    /// Health of machine and disks together.
    pub health: Level,
    /// What is wrong with the machine as a whole.
    pub findings: Vec<Finding>,
    /// Where it stands between its two sites.
    #[serde(default)]
    pub lifecycle: LifecycleShape,
    /// Whether its agent is connected.
    pub connected: bool,
    /// Time between cuts.
    pub interval_ms: u64,
    /// The newest complete point.
    pub newest_point: Option<PointShape>,
    /// Age of its cut, the clocks' difference taken out: what a failover now would lose.
    pub lag_ms: Option<u64>,
    /// The last drill in which it has booted.
    #[serde(default)]
    pub drill: Option<super::drills::DrillShape>,
    /// How long ago that was.
    #[serde(default)]
    pub drill_age_ms: Option<u64>,
    /// Age of the newest app-consistent point; null if there is none.
    #[serde(default)]
    pub app_age_ms: Option<u64>,
    /// Cuts that were void since the newest point.
    #[serde(default)]
    pub voided_since: usize,
    /// Times without points among the last few hundred, newest first.
    #[serde(default)]
    pub gaps: Vec<GapShape>,
    /// When these are worth a warning.
    #[serde(default)]
    pub thresholds: Thresholds,
    /// Points that are not in the index yet.
    pub pending_points: usize,
    /// Cuts that have not arrived on all disks.
    pub arriving_points: usize,
    /// Bytes of its disks' logs.
    pub stored_bytes: u64,
    /// Of these, bytes that the newest state needs.
    #[serde(default)]
    pub live_bytes: u64,
    /// Bytes that only older points need.
    #[serde(default)]
    pub history_bytes: u64,
    /// Bytes that nobody needs any more; they are given back by and by, but for a rest that is too dear to free.
    #[serde(default)]
    pub reclaimable_bytes: u64,
    /// Bytes of them that are not in the index yet.
    pub pending_bytes: u64,
    /// Its link, if it is up.
    pub link: Option<LinkShape>,
    /// Its protected disks.
    pub disks: Vec<DiskStatusShape>,
}

/// Where a machine stands between its two sites.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LifecycleShape {
    /// "protected", "failing-over", "failed-over", "committed", "re-protecting", "protected-reversed", "failing-back".
    pub stage: String,
    /// Whether the source is refused.
    pub fenced: bool,
    /// When the source last tried to go on and was told that it is fenced.
    pub source_told_at: Option<String>,
    /// The failover that made the target the machine, or is about to.
    pub job: Option<String>,
    /// The point where the target's branch begins.
    pub point: Option<String>,
    /// The test failovers that are under way or stand.
    pub tests: Vec<String>,
}

/// A link, from the agent's side: "sent" is what the agent sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkShape {
    /// Address of the agent.
    pub address: String,
    /// When the session was opened.
    pub connected_at: String,
    /// Round-trip time.
    pub rtt_us: u64,
    /// UDP payload bytes from the agent.
    pub sent_bytes: u64,
    /// UDP payload bytes to the agent.
    pub received_bytes: u64,
    /// Bytes of frames accepted.
    pub frame_bytes: u64,
    /// Packets to the agent that were lost.
    pub lost_packets: u64,
    /// Congestion window towards the agent.
    pub congestion_window_bytes: u64,
    /// Size of packets that the path carries.
    pub mtu_bytes: u16,
}

/// How a disk is doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskStatusShape {
    /// Its id.
    pub id: String,
    /// Device node now, or when it was protected.
    pub path: String,
    /// Size of the replica.
    pub size_bytes: u64,
    /// Line of history.
    pub generation: u32,
    /// "protected", "scanning", "missing", "resized", "failed", or "unknown" before the first report.
    pub state: String,
    /// Health.
    pub health: Level,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Mechanism of capture.
    pub capture: String,
    /// Bytes marked as changed on the source and not captured.
    pub marked_bytes: u64,
    /// Bytes captured and not acknowledged.
    pub unacknowledged_bytes: u64,
    /// Bytes written per second on the source.
    pub written_bytes_per_second: u64,
    /// How much of the disk has been compared, in percent; 100 if no scan is running.
    pub scanned_percent: u8,
    /// Bytes of its log.
    pub stored_bytes: u64,
    /// Of these, bytes that the newest state needs.
    #[serde(default)]
    pub live_bytes: u64,
    /// Bytes that only older points need.
    #[serde(default)]
    pub history_bytes: u64,
    /// Bytes that nobody needs any more.
    #[serde(default)]
    pub reclaimable_bytes: u64,
    /// Bytes of it that are not in the index yet.
    pub pending_bytes: u64,
    /// Bytes of it that were not read again since they were written.
    #[serde(default)]
    pub unverified_bytes: u64,
    /// When all of it was last read and checked.
    #[serde(default)]
    pub scrubbed_at: Option<String>,
}

/// A recovery point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PointShape {
    /// Its id.
    pub id: String,
    /// The machine's id.
    pub machine: String,
    /// "pending", "processed", "damaged" (parts of it give IO errors) or "void".
    pub state: String,
    /// The instant of the cut, by the source's clock.
    pub at: String,
    /// The same in microseconds.
    pub at_us: i64,
    /// When it became durable, by the coordinator's clock.
    pub durable_at: String,
    /// The same in microseconds.
    pub durable_at_us: i64,
    /// From the cut until it was durable.
    pub rpo_us: u64,
    /// How long writes were held.
    pub hold_us: u64,
    /// "crash" or "app".
    pub consistency: String,
    /// "freeze", "quiet-window" or "unchanged".
    pub method: String,
    /// Bytes of its interval, all disks together.
    pub stored_bytes: u64,
    /// The operator's request it answers.
    pub request: Option<u64>,
    /// Remarks.
    pub notes: Vec<String>,
    /// Why it is void.
    pub void_reason: Option<String>,
    /// What of it is damaged, if something is.
    #[serde(default)]
    pub damage: Option<String>,
    /// Its disks.
    pub disks: Vec<PointDiskShape>,
    /// When all data that it needs had been read and found good for the first time; none until then.
    #[serde(default)]
    pub verified_at: Option<String>,
    /// When a drill has last booted it.
    #[serde(default)]
    pub booted_at: Option<String>,
    /// From that drill's trigger until it had booted, in microseconds.
    #[serde(default)]
    pub booted_rto_us: Option<u64>,
    /// What its witness says, if it has one.
    #[serde(default)]
    pub witness: Option<WitnessShape>,
    /// The group cut that it is a part of.
    #[serde(default)]
    pub group_cut: Option<String>,
    /// The freeze hooks that made it app-consistent.
    #[serde(default)]
    pub hooks: Vec<String>,
    /// How long applications were frozen by them.
    #[serde(default)]
    pub application_frozen_us: Option<u64>,
}

/// Blocks that the agent hashed while writes were held, and what came of comparing them with the copy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WitnessShape {
    /// How many.
    pub blocks: u32,
    /// When they were compared; none until then.
    pub compared_at: Option<String>,
    /// Blocks that the copy has otherwise.
    pub differed: u32,
}

/// A disk of a point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PointDiskShape {
    /// Its id.
    pub id: String,
    /// Device node when it was protected.
    pub path: String,
    /// Line of history.
    pub generation: u32,
    /// Its cut frame in the log.
    pub sequence: u64,
    /// Bytes of its interval.
    pub stored_bytes: u64,
}

/// A machine's points.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PointsShape {
    /// The machine's id.
    pub machine: String,
    /// Its host name.
    pub name: String,
    /// Complete points, newest first.
    pub points: Vec<PointShape>,
    /// Points that may not be used any more, newest first.
    pub void_points: Vec<PointShape>,
    /// Cuts that have not arrived on all disks, oldest first.
    pub arriving: Vec<ArrivingShape>,
    /// Cuts that could not be made, newest first.
    pub voided_cuts: Vec<VoidedCutShape>,
    /// Times without points between those listed, newest first.
    #[serde(default)]
    pub gaps: Vec<GapShape>,
}

/// A time without points. A failover to an instant inside goes back to its beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapShape {
    /// The last cut before it, by the source's clock.
    pub from: String,
    /// The first cut after it.
    pub to: String,
    /// How long it is.
    pub length_ms: u64,
    /// Cuts that were void in it.
    pub voided: usize,
    /// Why the last of them was.
    pub reason: Option<String>,
}

/// A cut that has not arrived on all disks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArrivingShape {
    /// The point it will be.
    pub id: String,
    /// The instant of the cut.
    pub at: String,
    /// Device nodes of the disks that lack it.
    pub missing_disks: Vec<String>,
}

/// A cut that could not be made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VoidedCutShape {
    /// When it was tried.
    pub at: String,
    /// The operator's request it was for.
    pub request: Option<u64>,
    /// Why.
    pub reason: String,
}

/// Asks for a point now.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PointRequest {
    /// How long to wait for it; zero to return at once.
    pub wait_ms: u64,
    /// Whether applications are to be made consistent first; if they cannot be, there is no point.
    pub application: bool,
}

/// A point that was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PointRequestShape {
    /// The request's number; the point carries it.
    pub request: u64,
    /// The point, if it came in time.
    pub point: Option<PointShape>,
}

/// What a point is made into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum TargetShape {
    /// Devices, served until the job is cancelled.
    Attach,
    /// Images in a folder on the coordinator's host.
    Image {
        /// The folder, absolute.
        folder: PathBuf,
        /// "raw" or "qcow2".
        format: String,
        /// Whether images of another point that are there already are updated, writing only what differs.
        #[serde(default)]
        update: bool,
    },
    /// A machine that runs on the coordinator's host.
    Machine {
        /// Whether it is moved to images of its own behind its back.
        #[serde(default)]
        stream: bool,
    },
    /// Devices that are written to, served until the job is cancelled; what is written is given up then.
    Branch,
}

/// What a failover means for its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModeShape {
    /// Nothing: on a copy, while it goes on.
    Test,
    /// It is not the machine any more.
    #[default]
    Failover,
    /// It stops, gives everything that it has written, and is not the machine any more.
    Planned,
}

/// Asks for another point.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangePointRequest {
    /// As in [`FailoverRequest`].
    pub point: String,
}

/// Asks for a failover.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverRequest {
    /// "latest", "latest-processed", "latest-app-consistent", "latest-multi-vm", "latest-multi-vm-app-consistent", a
    /// point's id, or a time (the newest point at or before it).
    pub point: String,
    /// What to make of it.
    pub target: TargetShape,
    /// What it means for the source.
    #[serde(default)]
    pub mode: ModeShape,
    /// Whether the source is asked to stop first; a planned failover always does.
    #[serde(default)]
    pub stop_source: bool,
}

/// A job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobShape {
    /// Its id.
    pub id: String,
    /// "failover", "planned-failover", "test-failover", "reprotect", "failback"; of a plan the first three with "plan-"
    /// before them.
    pub kind: String,
    /// The machine's id; empty for a plan.
    pub machine: String,
    /// Its host name; of a plan, its name.
    pub machine_name: String,
    /// The plan that it runs.
    #[serde(default)]
    pub plan: Option<String>,
    /// The machines of the plan, with their own jobs.
    #[serde(default)]
    pub machines: Vec<JobMachineShape>,
    /// Who asked for it.
    pub by: String,
    /// Where it stands: "running", "waiting" (for a manual step), "holding" (serving until cancelled), "held" (a step
    /// failed; retry or cancel), "cancelling", "stuck" (an undo failed; retry), "succeeded", "failed", "cancelled".
    pub state: String,
    /// Whether it is over, or holds and needs nothing more to be useful.
    pub settled: bool,
    /// Whether it did what was asked.
    pub ok: bool,
    /// What was asked for; empty where no point is chosen.
    #[serde(default)]
    pub selection: String,
    /// The point that was chosen.
    pub point: Option<String>,
    /// The instant of its cut.
    pub point_at: Option<String>,
    /// What is made of it, if something is.
    #[serde(default)]
    pub target: Option<TargetShape>,
    /// When it was made.
    pub created_at: String,
    /// When it last changed.
    pub changed_at: String,
    /// Its steps.
    pub steps: Vec<JobStepShape>,
    /// What operators should read, oldest first.
    pub messages: Vec<JobMessageShape>,
    /// How far the running step is.
    pub progress: Option<ProgressShape>,
    /// Devices that are served.
    pub exports: Vec<ExportShape>,
    /// Images that were written.
    pub images: Vec<ImageShape>,
    /// The machine that runs from its point.
    #[serde(default)]
    pub runs: Option<super::machine_shapes::RunsShape>,
    /// What was written to the source's disks by a failback, round by round.
    #[serde(default)]
    pub written_back: Vec<WrittenBackShape>,
    /// From the trigger to the first byte served.
    pub rto_us: Option<u64>,
    /// How the verification of all data of its point is going, which goes on beside the steps.
    #[serde(default)]
    pub verification: Option<VerificationShape>,
}

/// A machine of a plan's run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct JobMachineShape {
    /// Its group in the plan.
    pub group: String,
    /// Its id.
    pub machine: String,
    /// Its name in the plan.
    pub name: String,
    /// Its own job, once that was begun.
    pub job: Option<String>,
    /// Where that stands (as a job's `state`); or "not begun", "skipped" (it was at its target already), "failed".
    pub state: String,
    /// What was said of it last.
    pub reason: Option<String>,
    /// Its point, once that is chosen.
    pub point: Option<String>,
    /// From the begin of its job to the first byte served.
    pub rto_us: Option<u64>,
}

/// A round of a failback.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WrittenBackShape {
    /// The point that the source's disks hold then.
    pub point: String,
    /// Bytes that were compared.
    pub compared_bytes: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
    /// Bytes that were sent for that, digests left out.
    pub sent_bytes: u64,
}

/// The verification of a point's data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerificationShape {
    /// "running", "good", or "damaged" (`holdfast points` says what).
    pub state: String,
    /// How far it is; bytes as stored.
    pub progress: ProgressShape,
}

/// Begins a pass over all stored data.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ScrubRequest {
    /// Name or id; all machines if not given.
    #[serde(default)]
    pub machine: Option<String>,
}

/// How far a disk's stored data was checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckShape {
    /// The machine's id.
    pub machine: String,
    /// Its host name.
    pub machine_name: String,
    /// The disk's id.
    pub disk: String,
    /// Its device node when it was protected.
    pub path: String,
    /// "running" while a pass over all stored data is under way, else "idle".
    pub state: String,
    /// All points up to this position of the disk's log were verified once.
    pub verified_sequence: u64,
    /// Bytes of the log behind it.
    pub unverified_bytes: u64,
    /// Bytes of the log.
    pub stored_bytes: u64,
    /// Bytes that the pass under way still has to read, about.
    pub left_bytes: Option<u64>,
    /// How long that takes at its rate.
    pub left_ms: Option<u64>,
    /// Its rate; none for as fast as it goes.
    pub bytes_per_second: Option<u64>,
    /// The pass under way.
    pub pass: Option<PassShape>,
    /// The last one that ended.
    pub last: Option<PassShape>,
    /// When the next one is due.
    pub next_at: Option<String>,
    /// Frames that are known to be damaged.
    pub damaged_frames: u64,
}

/// A pass over all stored data of a disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PassShape {
    /// When it began.
    pub started_at: String,
    /// When it ended.
    pub ended_at: Option<String>,
    /// Bytes found good.
    pub good_bytes: u64,
    /// Frames found damaged.
    pub bad_frames: u64,
}

/// A step of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobStepShape {
    /// "check", "select-point", "process-point", "attach", "write-images".
    pub kind: String,
    /// "waiting", "running", "done", "failed", "undone".
    pub state: String,
    /// When it began.
    pub started_at: Option<String>,
    /// When it ended.
    pub ended_at: Option<String>,
    /// How long it took, if it has ended.
    #[serde(default)]
    pub took_ms: Option<u64>,
    /// What it is, for people.
    #[serde(default)]
    pub title: String,
}

/// A line for the operator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobMessageShape {
    /// When.
    pub at: String,
    /// What.
    pub text: String,
}

/// How far a step is.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ProgressShape {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all; zero if there is nothing to count.
    pub total_bytes: u64,
    /// Bytes per second.
    pub bytes_per_second: u64,
    /// Milliseconds left, if known.
    pub left_ms: Option<u64>,
}

/// A device that is served.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExportShape {
    /// The disk's id.
    pub disk: String,
    /// Its device node on the source.
    pub path: String,
    /// Name of the export.
    pub name: String,
    /// What NBD clients open.
    pub uri: String,
    /// The unix socket, if it is one.
    pub socket: Option<String>,
    /// Size.
    pub size_bytes: u64,
}

/// An image that was written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageShape {
    /// The disk's id.
    pub disk: String,
    /// Its device node on the source.
    pub path: String,
    /// The image file.
    pub file: String,
    /// Size of the disk.
    pub size_bytes: u64,
    /// Bytes of data in it.
    pub data_bytes: u64,
}

/// An entry of the audit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AuditShape {
    /// When.
    pub at: String,
    /// Who.
    pub who: String,
    /// What.
    pub what: String,
    /// To what.
    pub subject: String,
    /// Particulars.
    pub detail: String,
}

/// What retention would do with a machine's points now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionPlanShape {
    /// The machine's id.
    pub machine: String,
    /// Its name.
    pub name: String,
    /// The rule that the plan was made with, as operators write it.
    pub retention: String,
    /// Whether it is the machine's own rule, which is applied by itself; otherwise nothing happens.
    pub own_rule: bool,
    /// When the plan was made.
    pub at: String,
    /// Points that stay.
    pub kept_points: u64,
    /// Bytes of the intervals that they end, as stored.
    pub kept_bytes: u64,
    /// Points that go.
    pub removed_points: u64,
    /// Bytes of the intervals that they end, as stored: what at most becomes free, since the points behind them may still
    /// need some of it.
    pub removed_bytes: u64,
    /// All points, oldest first.
    pub points: Vec<PlannedPointShape>,
}

/// What becomes of a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedPointShape {
    /// The point.
    pub id: String,
    /// The instant of the cut.
    pub at: String,
    /// In microseconds.
    pub at_us: i64,
    /// "crash" or "app".
    pub consistency: String,
    /// Whether it stays.
    pub kept: bool,
    /// "dense", "chosen", "newest", "held", "thinned", "expired" or "void".
    pub reason: String,
    /// For "chosen" and "thinned": length of the stretch of which one point stays.
    pub every_seconds: Option<u64>,
    /// For "thinned": the point that stays instead.
    pub instead: Option<String>,
    /// Bytes of the interval that it ends, as stored.
    pub stored_bytes: u64,
}

/// Asks for an operator's token.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorRequest {
    /// The operator's name, for the audit.
    pub name: String,
    /// "viewer", "operator" or "admin".
    pub role: String,
    /// How long the token may be used; 90 days if not given.
    pub life_seconds: Option<u64>,
}

/// An operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorShape {
    /// Its name.
    pub name: String,
    /// "viewer", "operator" or "admin".
    pub role: String,
    /// "valid", "expired" or "revoked".
    pub state: String,
    /// When its token was made.
    pub created_at: String,
    /// When its token stops working.
    pub expires_at: String,
    /// When it was revoked, if it was.
    pub revoked_at: Option<String>,
}

/// An operator's token. Shown once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OperatorTokenShape {
    /// Whose it is.
    #[serde(flatten)]
    pub operator: OperatorShape,
    /// The text for `holdfast login --token`.
    pub token: String,
    /// Fingerprint of the coordinator's CA, which the token carries.
    pub fingerprint: String,
    /// Where the coordinator listens for operators; null if it does not.
    pub coordinator: Option<String>,
}

/// Who asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhoShape {
    /// As it stands in the audit.
    pub name: String,
    /// "viewer", "operator" or "admin".
    pub role: String,
    /// Version of the coordinator.
    pub version: String,
    /// Fingerprint of the coordinator's CA.
    pub fingerprint: String,
}

/// What a choice would give a machine, and what it would lose.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ForecastShape {
    /// The machine's id.
    pub machine: String,
    /// Its host name.
    pub name: String,
    /// What was asked for.
    pub selection: String,
    /// The point that it would get; null if none.
    pub point: Option<PointShape>,
    /// Why it would get none.
    pub refusal: Option<String>,
    /// Of a plan: why nothing would be done with the machine; null if something would.
    #[serde(default)]
    pub left_alone: Option<String>,
    /// Whether the point would have to be processed first.
    pub pending: bool,
    /// Age of the point's cut, the clocks' difference taken out: everything written since then would be lost.
    pub loses_ms: Option<u64>,
    /// What the operator should know about the choice.
    pub remarks: Vec<String>,
    /// Cuts that are newer, newest first (the newest of them, if there are many).
    pub newer: Vec<NewerShape>,
    /// Number of all cuts that are newer.
    pub newer_count: usize,
}

/// A cut that is newer than the chosen one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewerShape {
    /// The point that it makes or would make; null if the source voided it.
    pub point: Option<String>,
    /// The instant of the cut, by the source's clock.
    pub at: String,
    /// Why it was not chosen.
    pub why: String,
}

/// The newest point of each kind of a machine, or of a group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OverviewShape {
    /// The machine's id; empty for a group.
    pub machine: String,
    /// The group's id; null for a machine.
    #[serde(default)]
    pub group: Option<String>,
    /// Its host name, or the group's name.
    pub name: String,
    /// For each selection what it would give.
    pub kinds: Vec<KindShape>,
}

/// What a selection would give a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindShape {
    /// The selection: "latest", "latest-processed", "latest-app-consistent", "latest-multi-vm",
    /// "latest-multi-vm-app-consistent".
    pub kind: String,
    /// The point; null if there is none.
    pub point: Option<String>,
    /// The instant of its cut, by the source's clock.
    pub at: Option<String>,
    /// Age of its cut, the clocks' difference taken out.
    pub age_ms: Option<u64>,
    /// Why there is none.
    pub refusal: Option<String>,
}

/// Asks for the failover of several machines together.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetFailoverRequest {
    /// Names or ids.
    pub machines: Vec<String>,
    /// As in [`FailoverRequest`].
    pub point: String,
    /// What to make of each; images of several machines go into a folder of the machine's name below the one given.
    pub target: TargetShape,
    /// What it means for the sources.
    #[serde(default)]
    pub mode: ModeShape,
    /// Whether the sources are asked to stop first; a planned failover always does.
    #[serde(default)]
    pub stop_source: bool,
}

/// What differs between two points.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffShape {
    /// The machine's id.
    pub machine: String,
    /// The one point.
    pub from: String,
    /// Its cut.
    pub from_at: String,
    /// The other.
    pub to: String,
    /// Its cut.
    pub to_at: String,
    /// Bytes in blocks that were written between the two, on all disks.
    pub changed_bytes: u64,
    /// The disks of `to`.
    pub disks: Vec<DiskDiffShape>,
    /// Paths of disks that only `from` has.
    pub disks_only_in_from: Vec<String>,
}

/// What differs on one disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDiffShape {
    /// The disk's id.
    pub disk: String,
    /// Its path on the machine.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
    /// Whether both points have it; if not, all of it counts as changed.
    pub in_both: bool,
    /// Bytes in blocks that were written between the two points.
    pub changed_bytes: u64,
    /// Number of ranges; `ranges` may hold fewer.
    pub ranges_total: u64,
    /// The first ranges, ascending.
    pub ranges: Vec<RangeShape>,
}

/// Some neighbouring bytes of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeShape {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}
