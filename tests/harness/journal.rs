//! Frames, disks and stores for tests of the journal: each frame's content follows from its sequence alone.

use std::sync::Arc;

use holdfast_common::{
    clock::Timestamp,
    frame::{
        Consistency, CutMember, CutMethod, CutMore, CutRecord, Extent, Frame, FrameIdentity, FrameSealer,
        seal::seal_cut,
    },
    ids::{DiskId, Generation, Interval, MachineId, PointId, Sequence},
    units::{BLOCK_BYTES, BlockRange},
};
use holdfast_coordinator::store::{DiskLog, DiskManifest, StoreSettings};

/// The disk of these tests.
pub const DISK: DiskId = DiskId::from_bytes([0x77; 16]);

/// Blocks of the disk.
pub const BLOCKS: u64 = 256;

/// Every so many frames one is a cut.
pub const CUT_EVERY: u64 = 10;

/// What the disk is.
#[must_use]
pub const fn manifest() -> DiskManifest {
    DiskManifest {
        disk: DISK,
        machine: MachineId::from_bytes([0x70; 16]),
        size_bytes: BLOCKS * BLOCK_BYTES as u64,
    }
}

/// Small segments, so that tests see many; no reserve, so that they see a file system that is really full.
#[must_use]
pub fn settings() -> StoreSettings {
    StoreSettings { segment_bytes: 100_000, reserve_bytes: 0, ..StoreSettings::default() }
}

/// Whether the frame of this sequence is a cut.
#[must_use]
pub const fn is_cut(sequence: u64) -> bool {
    sequence.is_multiple_of(CUT_EVERY)
}

/// The block that a data frame writes, and the byte it is filled with. Most write over one of few blocks, so that a log of which cuts
/// are given up has much that nobody needs.
#[must_use]
pub fn content(sequence: u64) -> (u64, u8) {
    let fill = u8::try_from(sequence % 255).unwrap_or(0) + 1;
    let spread = sequence.wrapping_mul(37) % BLOCKS;
    (if sequence % 4 == 1 { spread } else { BLOCKS / 2 + sequence.wrapping_mul(5) % 16 }, fill)
}

/// The frame of a sequence.
///
/// # Panics
/// Never: the content is valid.
#[must_use]
pub fn frame(sequence: u64) -> Frame {
    let identity = FrameIdentity {
        disk: DISK,
        generation: Generation(1),
        sequence: Sequence(sequence),
        interval: Interval((sequence - 1) / CUT_EVERY + 1),
    };
    let bytes = if is_cut(sequence) {
        let point = PointId::from_bytes([u8::try_from(sequence % 256).unwrap_or(0); 16]);
        let at = Timestamp(1_000_000 * i64::try_from(sequence).unwrap_or(0));
        seal_cut(identity, &cut_record(point, at, manifest().machine, DISK)).expect("a cut can be sealed")
    } else {
        let (block, fill) = content(sequence);
        let extents = [Extent::data(BlockRange::new(block, 1))];
        let mut sealer = FrameSealer::new(None).expect("a sealer without compression");
        sealer.seal_data(identity, &extents, &[fill; BLOCK_BYTES]).expect("a block can be sealed")
    };
    Frame::verify(bytes).expect("a sealed frame verifies")
}

/// The record of a cut of a machine whose only disk, in its first generation, is in raw use.
#[must_use]
pub fn cut_record(point: PointId, at: Timestamp, machine: MachineId, disk: DiskId) -> CutRecord {
    CutRecord {
        point,
        machine,
        at,
        hold_us: 0,
        method: CutMethod::QuietWindow,
        consistency: Consistency::Crash,
        members: vec![CutMember { disk, generation: Generation(1) }],
        notes: Vec::new(),
        request: None,
        more: CutMore::default(),
    }
}

/// What the disk holds after this frame, one byte per block.
#[must_use]
pub fn model(sequence: u64) -> Vec<u8> {
    let mut blocks = vec![0; usize::try_from(BLOCKS).unwrap_or(0)];
    for (block, fill) in (1..=sequence).filter(|sequence| !is_cut(*sequence)).map(content) {
        if let Some(byte) = usize::try_from(block).ok().and_then(|block| blocks.get_mut(block)) {
            *byte = fill;
        }
    }
    blocks
}

/// Appends frames one by one group after the other and waits until they are durable.
///
/// # Errors
/// The log's.
pub async fn append(
    log: &Arc<DiskLog>,
    sequences: std::ops::RangeInclusive<u64>,
    group: usize,
) -> Result<(), holdfast_coordinator::store::StoreError> {
    let sink = log.sink()?;
    let all: Vec<u64> = sequences.collect();
    for some in all.chunks(group) {
        sink.append(some.iter().map(|sequence| frame(*sequence)).collect()).await?;
        sink.settle().await?;
    }
    Ok(())
}
