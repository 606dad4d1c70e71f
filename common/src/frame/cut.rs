//! Records that cut and scan frames carry as payload (uncompressed bincode, see [`crate::codec`]).
//!
//! Owns the records' fields. They are persisted in the journal: fields are never reordered or removed, and a new
//! version is a new frame kind. The points of the catalog can be rebuilt from them alone.

use serde::{Deserialize, Serialize};

use crate::{
    clock::Timestamp,
    ids::{DiskId, Generation, MachineId, PointId},
    units::BlockIndex,
};

/// The end of an interval on one disk. A recovery point exists once every member disk's cut frame with the same
/// `point` is durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutRecord {
    /// The recovery point that the cut makes; the same on all members.
    pub point: PointId,
    /// The machine that was cut.
    pub machine: MachineId,
    /// The agent's wall clock at the instant of the cut.
    pub at: Timestamp,
    /// How long writes were held, in microseconds; zero for a quiet-window cut.
    pub hold_us: u64,
    /// How the instant was made.
    pub method: CutMethod,
    /// What the point may be called.
    pub consistency: Consistency,
    /// All disks of the cut, this one included, ordered by disk.
    pub members: Vec<CutMember>,
    /// Remarks an operator should see with the point (for example "swap was written while held").
    pub notes: Vec<String>,
    /// The operator's request that this cut answers, if one did.
    pub request: Option<u64>,
}

/// A disk of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutMember {
    /// The disk.
    pub disk: DiskId,
    /// Its generation at the cut.
    pub generation: Generation,
}

/// How the instant of a cut was made. Variants are only ever appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CutMethod {
    /// The file systems were frozen (FIFREEZE).
    Freeze,
    /// No write completed during the last copy pass.
    QuietWindow,
    /// The source did not change at all (a plain image file compared twice).
    Unchanged,
}

/// What is guaranteed about the data in a point. Variants are only ever appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// As after a power cut at that instant.
    Crash,
    /// Applications had written everything out (hooks and freeze proven).
    App,
}

/// How far the comparison of source and replica has got in this generation; all frames before this one in the log
/// belong to the part below `scanned_to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanRecord {
    /// First block not compared yet.
    pub scanned_to: BlockIndex,
    /// Whether the comparison has reached the end of the disk.
    pub complete: bool,
}
