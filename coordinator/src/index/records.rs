//! What the index remembers besides extents: cuts, scans, and losses.
//!
//! Owns the records that runs carry, so that starting needs neither the history's runs nor the journal. Does not know
//! where they are stored. Invariant: a cut is `whole` only if no frame up to it was lost, or a scan of a newer generation
//! has compared everything since.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use holdfast_common::{
    codec,
    frame::{CutRecord, ScanRecord},
    ids::{Generation, Interval, Sequence},
};

/// A cut of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutHead {
    /// Position of its frame in the log.
    pub sequence: Sequence,
    /// Interval that it closes.
    pub interval: Interval,
    /// Generation it was made in.
    pub generation: Generation,
    /// Whether the log up to here is complete; if not, the point must not be offered.
    pub whole: bool,
    /// What the agent said of it, but for what stands behind the record's own fields (`more`): that is in the log alone.
    pub record: CutRecord,
}

/// The newest progress of comparing source and replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanHead {
    /// Position of its frame in the log.
    pub sequence: Sequence,
    /// Generation it was made in.
    pub generation: Generation,
    /// How far it got.
    pub record: ScanRecord,
}

/// Frames that are missing in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// First missing frame.
    pub first: Sequence,
    /// Last missing frame.
    pub last: Sequence,
}

/// State at the end of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndState {
    /// Generation of a loss that no scan has made good yet: only a complete scan of a newer one does.
    pub unhealed: Option<Generation>,
    /// Whether the log ends with a loss; its generation is that of the next frame.
    pub loss_open: bool,
    /// Number of frames covered.
    pub frames: u64,
}

/// All records of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunRecords {
    /// Cuts, ascending.
    pub cuts: Vec<Arc<CutHead>>,
    /// The newest scan in the run.
    pub scan: Option<ScanHead>,
    /// Losses, ascending.
    pub losses: Vec<Loss>,
    /// State at the end.
    pub end: EndState,
}

const TAG_CUT: u8 = 1;
const TAG_SCAN: u8 = 2;
const TAG_LOSS: u8 = 3;
const TAG_END: u8 = 4;

impl RunRecords {
    /// The records of `self` followed by those of `newer`.
    #[must_use]
    pub fn followed_by(mut self, newer: Self) -> Self {
        self.cuts.extend(newer.cuts);
        self.losses.extend(newer.losses);
        self.scan = newer.scan.or(self.scan);
        self.end = EndState { frames: self.end.frames + newer.end.frames, ..newer.end };
        self
    }

    /// The bytes of the records.
    ///
    /// # Errors
    /// A record is too large to encode.
    pub fn to_bytes(&self) -> Result<Vec<u8>, codec::CodecError> {
        let mut bytes = Vec::new();
        for cut in &self.cuts {
            push(&mut bytes, TAG_CUT, &codec::encode(cut.as_ref())?);
        }
        for loss in &self.losses {
            push(&mut bytes, TAG_LOSS, &codec::encode(loss)?);
        }
        if let Some(scan) = &self.scan {
            push(&mut bytes, TAG_SCAN, &codec::encode(scan)?);
        }
        push(&mut bytes, TAG_END, &codec::encode(&self.end)?);
        Ok(bytes)
    }

    /// Reads records; `None` if the bytes are none.
    #[must_use]
    pub fn parse(mut bytes: &[u8]) -> Option<Self> {
        let mut records = Self::default();
        while let Some((tag, rest)) = bytes.split_first() {
            let (length, rest) = rest.split_first_chunk::<4>()?;
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            let (record, rest) = rest.split_at_checked(length)?;
            match *tag {
                TAG_CUT => records.cuts.push(Arc::new(codec::decode(record).ok()?)),
                TAG_SCAN => records.scan = Some(codec::decode(record).ok()?),
                TAG_LOSS => records.losses.push(codec::decode(record).ok()?),
                TAG_END => records.end = codec::decode(record).ok()?,
                _ => return None,
            }
            bytes = rest;
        }
        Some(records)
    }
}

fn push(bytes: &mut Vec<u8>, tag: u8, record: &[u8]) {
    // The codec's limit is far below.
    let length = u32::try_from(record.len()).unwrap_or(u32::MAX);
    bytes.push(tag);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(record);
}
