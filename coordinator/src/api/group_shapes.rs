//! Requests and answers about groups, as JSON.
//!
//! Owns the shapes only. Within a version of the interface fields are only added. Times are RFC 3339 in UTC.

use serde::{Deserialize, Serialize};

use crate::registry::{
    health::{Finding, Level},
    thresholds::Ages,
};

/// Makes a group, has machines join or leave, or changes how it is cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupRequest {
    /// Name of a new group; not needed where the path names one.
    pub name: String,
    /// Machines that join.
    pub add: Vec<String>,
    /// Machines that leave.
    pub remove: Vec<String>,
    /// Time between group cuts.
    pub interval_ms: Option<u64>,
    /// Longest time that a held member waits for the others.
    pub wait_ms_max: Option<u64>,
    /// Time between app-consistent group cuts; zero means none by themselves.
    pub application_interval_ms: Option<u64>,
    /// Ages of its newest point that are worth a warning, and critical; zeroes: by its interval.
    pub lag: Option<Ages>,
}

/// A group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupShape {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Time between group cuts.
    pub interval_ms: u64,
    /// Longest time that a held member waits for the others.
    pub wait_ms_max: u64,
    /// Time between app-consistent group cuts; zero means none by themselves.
    pub application_interval_ms: u64,
    /// Ages of its newest point that are worth a warning, and critical, if they were set.
    #[serde(default)]
    pub lag: Option<Ages>,
    /// How it is doing.
    #[serde(default)]
    pub status: GroupStatusShape,
    /// Its machines.
    pub members: Vec<GroupMemberShape>,
    /// Its newest group point.
    pub newest: Option<GroupPointShape>,
    /// Its newest app-consistent group point.
    pub newest_application: Option<GroupPointShape>,
    /// Group cuts that all members took part in, since the coordinator was started.
    pub marked_cuts: u64,
    /// Group cuts that were void, since the coordinator was started.
    pub voided_cuts: u64,
    /// The last void ones, newest first.
    pub last_voided: Vec<VoidedGroupCutShape>,
}

/// How a group is doing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GroupStatusShape {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The worst of its findings.
    pub health: Level,
    /// What is wrong with it as a group; its machines have their own.
    pub findings: Vec<Finding>,
    /// Age of its newest point: what a failover of the whole group to one instant would lose.
    pub lag_ms: Option<u64>,
}

/// A machine of a group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupMemberShape {
    /// Its id.
    pub machine: String,
    /// Its name.
    pub name: String,
    /// Whether its agent is connected.
    pub connected: bool,
}

/// A group point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupPointShape {
    /// Its id, which is that of the group cut.
    pub id: String,
    /// The earliest of the members' cuts, by their clocks.
    pub at: String,
    /// The same in microseconds.
    pub at_us: i64,
    /// When the last member's point became durable, by the coordinator's clock.
    pub durable_at: String,
    /// "crash" or "app".
    pub consistency: String,
    /// "pending" or "processed".
    pub state: String,
    /// Upper bound of how far apart the members' holds began.
    pub spread_us: u64,
    /// The longest of the members' holds.
    pub hold_us_max: u64,
    /// The members.
    pub members: Vec<GroupPointMemberShape>,
}

/// A machine's part of a group point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupPointMemberShape {
    /// The machine's id.
    pub machine: String,
    /// Its name.
    pub name: String,
    /// Its own point.
    pub point: String,
    /// How long its writes were held.
    pub hold_us: u64,
    /// It held for at least this long before the mark, by the coordinator's clock.
    pub since_held_us: u64,
    /// It held for this long until the mark came, by its own clock.
    pub waited_us: u64,
}

/// A group cut that made no group point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VoidedGroupCutShape {
    /// When.
    pub at: String,
    /// Name of the machine it failed at, if at one.
    pub machine: Option<String>,
    /// Why.
    pub reason: String,
}

/// The points of a group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupPointsShape {
    /// The group's name.
    pub name: String,
    /// The whole ones, newest first.
    pub points: Vec<GroupPointShape>,
    /// Group cuts of which only some members have points.
    pub incomplete: usize,
    /// Void ones, newest first.
    pub voided: Vec<VoidedGroupCutShape>,
}

/// Asks for a group point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupPointRequest {
    /// Whether applications are to be made consistent first.
    pub application: bool,
    /// How long to wait for it to be durable.
    pub wait_ms: u64,
}
