//! What a fenced source and the coordinator say to each other while the source's disks are brought to what the machine at
//! the target has: the way back of a failback.
//!
//! Owns the messages. A connection of its own (ALPN [`ALPN_WRITE_BACK`](super::ALPN_WRITE_BACK), mutual TLS like a session's),
//! whose version is that of the ALPN. The agent asks: for each question it opens a bidirectional stream, sends one
//! [`WriteBackRequest`] and ends its half; the coordinator answers with one [`WriteBackReply`] and ends the other.
//! Invariants: the coordinator gives no bytes but those of the round's point; the agent writes nothing but what passed a frame's
//! digest, and only to disks that nobody else can write to while it holds them.
//! Limits: [`WRITE_BACK_STREAMS_MAX`] questions at a time, those of the messages' fields, and
//! [`MESSAGE_BYTES_MAX`](crate::codec::MESSAGE_BYTES_MAX).

use serde::{Deserialize, Serialize};

use super::{Capture, limits::SCAN_CHUNK_BLOCKS};
use crate::{
    frame::WITNESS_DIGEST_BYTES,
    ids::{DiskId, Generation, Sequence},
    units::{BlockCount, BlockIndex, BlockRange},
};

/// Questions of one connection that may be unanswered at a time.
pub const WRITE_BACK_STREAMS_MAX: u32 = 16;

/// Most ranges of one [`WriteBackReply::Ranges`].
pub const WRITE_BACK_RANGES_MAX: usize = 4096;

/// Most blocks of one [`WriteBackRequest::Compare`] (4 MiB).
pub const COMPARE_BLOCKS_MAX: u64 = 16 * SCAN_CHUNK_BLOCKS;

/// Most blocks of one [`WriteBackRequest::Fetch`] (512 KiB): so its frame fits a message.
pub const FETCH_BLOCKS_MAX: usize = 128;

/// What the agent asks. Variants are only ever appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteBackRequest {
    /// What is to be done. Answered with `Wait`, `Round` or `LetIn`, after some seconds at the latest.
    Work,
    /// Which ranges of a disk have to be looked at, from a block on.
    Ranges {
        /// The round.
        round: u64,
        /// The disk.
        disk: DiskId,
        /// Where to go on.
        from: BlockIndex,
        /// Identity of the agent's hold on the disk: as long as it is the same, nobody else has written to it.
        hold: u64,
    },
    /// Which chunks of a range differ. At most [`COMPARE_BLOCKS_MAX`] blocks.
    Compare {
        /// The round.
        round: u64,
        /// The disk.
        disk: DiskId,
        /// First block.
        start: BlockIndex,
        /// Number of blocks.
        count: BlockCount,
        /// BLAKE3 of each [`SCAN_CHUNK_BLOCKS`] blocks (the last may be fewer), a last partial block padded with zeroes.
        digests: Vec<[u8; 32]>,
    },
    /// Those of these blocks that differ. At most [`FETCH_BLOCKS_MAX`].
    Fetch {
        /// The round.
        round: u64,
        /// The disk.
        disk: DiskId,
        /// The blocks, ascending.
        blocks: Vec<BlockDigest>,
    },
    /// A disk is done, durably; or why it cannot be.
    Done {
        /// The round.
        round: u64,
        /// The disk.
        disk: DiskId,
        /// The hold under which it was done.
        hold: u64,
        /// What was written; or why it cannot go on and what to do, for people.
        result: Result<WrittenBack, String>,
    },
    /// As `Ranges`, of a disk whose changes are tracked: it holds the state at `brought_to` in the line of history `generation`, but
    /// for what the agent has found marked, and looks at by itself.
    RangesSince {
        /// The round.
        round: u64,
        /// The disk.
        disk: DiskId,
        /// Where to go on.
        from: BlockIndex,
        /// Identity of the agent's hold on the disk.
        hold: u64,
        /// The generation of the frames; zero if nothing is known of the disk.
        generation: Generation,
        /// The frame that the disk was brought to by a round; zero for the end of what the source has sent in this generation.
        brought_to: Sequence,
        /// How many blocks are marked.
        marked: BlockCount,
    },
}

/// A block as the source has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDigest {
    /// The block.
    pub block: BlockIndex,
    /// First half of the BLAKE3 of its bytes, a partial one padded with zeroes.
    pub digest: [u8; WITNESS_DIGEST_BYTES],
}

/// What was done to a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenBack {
    /// Blocks that were looked at.
    pub compared: u64,
    /// Blocks that were written.
    pub written: u64,
    /// Bytes of the frames that brought them.
    pub received_bytes: u64,
}

/// What the coordinator answers. Variants are only ever appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteBackReply {
    /// Nothing is to be done now: ask again.
    Wait,
    /// A round: these disks are to be brought to its point.
    Round {
        /// Its number.
        round: u64,
        /// The disks. `durable` is the frame of the round's point and `generation` the one that it is in, under which the
        /// source goes on if this round is the last; zero if the coordinator is of before that was told. Other positions mean
        /// nothing.
        disks: Vec<Capture>,
    },
    /// The source is the machine again: connect for a session.
    LetIn,
    /// Ranges to look at.
    Ranges {
        /// Ascending, apart from each other, not empty.
        ranges: Vec<BlockRange>,
        /// Where to ask on; `None` if these were the last.
        next: Option<BlockIndex>,
        /// Whether they are known to differ for the most part: digests of whole chunks are not worth asking for.
        known: bool,
    },
    /// For each digest, whether the chunk differs.
    Differs(Vec<bool>),
    /// One data frame with the blocks that differ; empty if none does. Its identity says the disk, nothing else.
    Blocks(Vec<u8>),
    /// Taken note of.
    Noted,
    /// The round is over: ask for work.
    Over,
    /// It cannot be answered; the text says why.
    Failed(String),
}

#[cfg(test)]
mod tests {
    use super::{
        BlockCount, BlockDigest, BlockIndex, BlockRange, DiskId, Generation, Sequence, WriteBackReply,
        WriteBackRequest, WrittenBack,
    };
    use crate::codec;

    /// Both ends may be of different versions of the program with the same ALPN.
    #[test]
    fn golden_bytes() {
        let disk = DiskId::from_bytes([7; 16]);
        let block = BlockDigest { block: BlockIndex(300), digest: [9; 16] };
        let fetch = WriteBackRequest::Fetch { round: 2, disk, blocks: vec![block] };
        let mut expected = vec![3, 2, 16];
        expected.extend([7; 16]);
        expected.extend([1, 251, 44, 1]);
        expected.extend([9; 16]);
        assert_eq!(codec::encode(&fetch).unwrap(), expected);
        let written = WrittenBack { compared: 5, written: 4, received_bytes: 3 };
        let done = WriteBackRequest::Done { round: 1, disk, hold: 6, result: Ok(written) };
        let mut expected = vec![4, 1, 16];
        expected.extend([7; 16]);
        expected.extend([6, 0, 5, 4, 3]);
        assert_eq!(codec::encode(&done).unwrap(), expected);
        let since = WriteBackRequest::RangesSince {
            round: 1,
            disk,
            from: BlockIndex(2),
            hold: 3,
            generation: Generation(4),
            brought_to: Sequence(5),
            marked: BlockCount(6),
        };
        let mut expected = vec![5, 1, 16];
        expected.extend([7; 16]);
        expected.extend([2, 3, 4, 5, 6]);
        assert_eq!(codec::encode(&since).unwrap(), expected);
        let ranges = WriteBackReply::Ranges {
            ranges: vec![BlockRange::new(1, 2)],
            next: Some(BlockIndex(3)),
            known: true,
        };
        assert_eq!(codec::encode(&ranges).unwrap(), [3, 1, 1, 2, 1, 3, 1]);
        assert_eq!(codec::encode(&WriteBackReply::Over).unwrap(), [7]);
    }
}
