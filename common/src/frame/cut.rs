//! Records that cut and scan frames carry as payload (uncompressed bincode, see [`crate::codec`]).
//!
//! Owns the records' fields. They are persisted in the journal: fields are never reordered or removed; what is new of a
//! cut goes into [`CutMore`], which stands behind the record. The points of the catalog can be rebuilt from them alone.

use serde::{Deserialize, Serialize};

use crate::{
    clock::Timestamp,
    codec::{self, CodecError},
    ids::{DiskId, Generation, GroupCutId, GroupId, MachineId, PointId},
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
    /// What later versions know more of the cut.
    #[serde(skip)]
    pub more: CutMore,
}

/// What is known of a cut beyond [`CutRecord`]'s own fields. Encoded behind them, and only if there is something
/// ([`CutRecord::encode`]); fields are only ever appended, together with a new variant of `MoreForm`. A record that has
/// nothing in the newer fields keeps the older form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutMore {
    /// The group cut that this one was a part of: the machine was held when its mark came.
    pub group: Option<GroupMark>,
    /// How the applications were made consistent, if they were.
    pub application: Option<ApplicationFreeze>,
    /// Blocks that the agent hashed while writes were held, for the coordinator to compare its copy with. Never in the
    /// catalog, which keeps what came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<Witness>,
}

/// Blocks of the machine's disks as they were at the cut, chosen at random among all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// The blocks, ascending by disk and number; at most [`WITNESS_BLOCKS_MAX`].
    pub blocks: Vec<WitnessBlock>,
}

/// One block of a witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessBlock {
    /// Its disk.
    pub disk: DiskId,
    /// The block.
    pub block: BlockIndex,
    /// [`witness_digest`] of its bytes.
    pub digest: [u8; WITNESS_DIGEST_BYTES],
}

/// Most blocks of one witness.
pub const WITNESS_BLOCKS_MAX: usize = 64;

/// Bytes of a witness's digest: it tells accidents apart, not forgeries, and stands in every cut.
pub const WITNESS_DIGEST_BYTES: usize = 16;

/// The first half of the BLAKE3 digest of a block's plain bytes; what stands behind the disk's end counts as zeroes.
#[must_use]
pub fn witness_digest(block: &[u8]) -> [u8; WITNESS_DIGEST_BYTES] {
    let digest = blake3::hash(block);
    let mut first = [0; WITNESS_DIGEST_BYTES];
    first.iter_mut().zip(digest.as_bytes()).for_each(|(to, from)| *to = *from);
    first
}

/// Proof that a machine was held when the mark of a group cut was made. With it in the durable cut records of all
/// `members`, a group point exists; nothing else is needed for it (docs/consistency.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMark {
    /// The group cut.
    pub cut: GroupCutId,
    /// The group.
    pub group: GroupId,
    /// Its name at that time.
    pub name: String,
    /// All machines of the group cut, in order of their ids.
    pub members: Vec<MachineId>,
    /// Time from the hold's report until the mark, by the coordinator's clock: it held for at least that long.
    pub since_held_us: u64,
    /// Time from the hold's report until the mark came, by the machine's clock.
    pub waited_us: u64,
    /// Upper bound of how far apart the beginnings of all members' holds lie.
    pub spread_us: u64,
}

/// How applications were made consistent for a cut. Only in records of cuts for which all of it went well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationFreeze {
    /// The hooks that ran, in the order of freezing.
    pub hooks: Vec<String>,
    /// From the first hook's `freeze` until the last one's `thaw` had ended, in microseconds.
    pub frozen_us: u64,
}

/// Forms in which [`CutMore`] is encoded: the variant's number, then its fields. History: 1, witness; 0, first.
#[derive(Serialize, Deserialize)]
enum MoreForm {
    First { group: Option<GroupMark>, application: Option<ApplicationFreeze> },
    Witnessed { group: Option<GroupMark>, application: Option<ApplicationFreeze>, witness: Witness },
}

impl MoreForm {
    fn of(more: &CutMore) -> Self {
        let CutMore { group, application, witness } = more.clone();
        match witness {
            None => Self::First { group, application },
            Some(witness) => Self::Witnessed { group, application, witness },
        }
    }

    fn into_more(self) -> CutMore {
        match self {
            Self::First { group, application } => CutMore { group, application, witness: None },
            Self::Witnessed { group, application, witness } => {
                CutMore { group, application, witness: Some(witness) }
            }
        }
    }
}

impl CutRecord {
    /// The payload of a cut frame: the record as bincode; behind it, if there is more, a `MoreForm` as bincode.
    ///
    /// # Errors
    /// The record is too large.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let mut bytes = codec::encode(self)?;
        if self.more != CutMore::default() {
            bytes.extend(codec::encode(&MoreForm::of(&self.more))?);
        }
        Ok(bytes)
    }

    /// Reads the payload of a cut frame.
    ///
    /// # Errors
    /// It is not one, or one of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let (mut record, used) = codec::decode_prefix::<Self>(bytes)?;
        match bytes.get(used..) {
            None | Some([]) => {}
            Some(rest) => {
                let form: MoreForm = codec::decode(rest)?;
                record.more = form.into_more();
            }
        }
        Ok(record)
    }
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
    /// Whoever serves the disks held the writes to them.
    Held,
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
