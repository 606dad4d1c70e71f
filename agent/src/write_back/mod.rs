//! A fenced source stands by: its disks are brought to what the machine at the target has, when the coordinator wants it.
//!
//! Owns the connection for that and the disks while they are written. Does not know sessions or capture. Invariants: a disk is
//! written only while it is held ([`disk::HeldDisk`]), and only with what passed a frame's digest; the coordinator hears that a
//! disk is done only after everything is durable; a hold ends with the connection.
//! Limits: [`PIECES_MAX`] pieces of a disk are under way at a time, each of up to 4 MiB.

mod disk;
// What is marked of a disk.
mod tracking;

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use holdfast_common::{
    codec::{CodecError, MESSAGE_BYTES_MAX},
    entropy::Entropy,
    frame::{Frame, FrameError},
    ids::DiskId,
    units::{BlockIndex, BlockRange},
    wire::{
        BlockDigest, Capture, Inventory, MessageBuffer, WriteBackReply, WriteBackRequest, WrittenBack,
        envelope,
        limits::SCAN_CHUNK_BLOCKS,
        write_back::{COMPARE_BLOCKS_MAX, FETCH_BLOCKS_MAX},
    },
};
use quinn::{Connection, ConnectionError};
use thiserror::Error;
use tokio::task::{JoinSet, spawn_blocking};

pub use self::tracking::TrackedDisks;

use self::disk::{HeldDisk, Known};
use crate::{
    capture::BlockSet,
    inventory::{Roots, locate},
};

/// Pieces of one disk under way at a time.
const PIECES_MAX: usize = 4;
/// Pause before work is asked for again that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// A message and its length.
const STREAM_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 4;

/// Why the source stands by no more.
#[derive(Debug, Error)]
pub enum WriteBackError {
    /// The connection is gone.
    #[error("the connection is lost")]
    Lost(#[from] ConnectionError),
    /// A stream broke.
    #[error("a question was not answered")]
    Stream(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A message cannot be read or made.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The answer does not fit the question.
    #[error("the coordinator answered something else than was asked")]
    Answer,
    /// A task died.
    #[error("a task died")]
    Task(#[from] tokio::task::JoinError),
}

/// Why a disk is not done.
enum Stopped {
    /// The round is over.
    Over,
    /// It cannot go on; the text says what to do.
    Here(String),
    /// The connection is of no use any more.
    Link(WriteBackError),
}

impl<E: Into<WriteBackError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Link(error.into())
    }
}

/// Stands by until the coordinator lets the source in again; then it is to connect for a session. `begins` is called whenever
/// disks are about to be written: capture is to let them go. `tracked` says how they are tracked, if they are.
///
/// # Errors
/// The connection is lost. What was written so far is found by the next comparison.
pub async fn stand_by(
    connection: Connection,
    inventory: Arc<dyn Fn() -> Inventory + Send + Sync>,
    tracked: Option<TrackedDisks>,
    entropy: &dyn Entropy,
    begins: impl Fn(),
) -> Result<(), WriteBackError> {
    let mut held: HashMap<DiskId, Arc<HeldDisk>> = HashMap::new();
    loop {
        match ask(&connection, &WriteBackRequest::Work).await? {
            WriteBackReply::Wait => {}
            WriteBackReply::LetIn => return Ok(()),
            WriteBackReply::Round { round, disks } => {
                begins();
                let inventory = Arc::clone(&inventory);
                let inventory = spawn_blocking(move || inventory()).await?;
                let mut working = JoinSet::new();
                for capture in disks {
                    let mut number = [0; 8];
                    entropy.fill(&mut number);
                    let before = held.get(&capture.disk).cloned();
                    let (connection, tracked) = (connection.clone(), tracked.clone());
                    let hold = u64::from_le_bytes(number);
                    let (opening, inventory) = (capture.clone(), inventory.clone());
                    let open = move || open(&opening, &inventory, hold, tracked.as_ref());
                    working.spawn(work(connection, round, capture, before, open));
                }
                while let Some(done) = working.join_next().await {
                    if let (disk, Some(hold)) = done?? {
                        held.insert(disk, hold);
                    }
                }
            }
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Brings one disk to the round's point and says so, or why not.
async fn work(
    connection: Connection,
    round: u64,
    capture: Capture,
    before: Option<Arc<HeldDisk>>,
    open: impl FnOnce() -> Result<HeldDisk, String> + Send + 'static,
) -> Result<(DiskId, Option<Arc<HeldDisk>>), WriteBackError> {
    let disk = capture.disk;
    let opened = match before {
        Some(held) => Ok(held),
        None => spawn_blocking(open).await?.map(Arc::new),
    };
    let (result, hold) = match opened {
        Err(text) => (Err(text), None),
        Ok(held) => match bring(&connection, round, &capture, &held).await {
            Ok(written) => (Ok(written), Some(held)),
            Err(Stopped::Over) => return Ok((disk, Some(held))),
            Err(Stopped::Here(text)) => (Err(text), Some(held)),
            Err(Stopped::Link(error)) => return Err(error),
        },
    };
    match &result {
        Ok(written) => {
            tracing::info!(%disk, round, written.written, written.compared, "a disk is written back")
        }
        Err(text) => tracing::error!(%disk, round, text, "a disk cannot be written back"),
    }
    let failed = result.is_err();
    let number = hold.as_ref().map_or(0, |held| held.hold);
    ask(&connection, &WriteBackRequest::Done { round, disk, hold: number, result }).await?;
    if failed {
        tokio::time::sleep(PAUSE).await;
    }
    Ok((disk, hold))
}

fn open(
    capture: &Capture,
    inventory: &Inventory,
    hold: u64,
    tracked: Option<&TrackedDisks>,
) -> Result<HeldDisk, String> {
    let located = locate(&Roots::default(), &capture.identity, &capture.path, inventory);
    // A coordinator of before marks were told says nothing of positions.
    let tracked = tracked.filter(|_| capture.durable.0 > 0);
    HeldDisk::open(&located.map_err(|error| error.to_string())?, capture, hold, tracked)
}

async fn bring(
    connection: &Connection,
    round: u64,
    capture: &Capture,
    held: &Arc<HeldDisk>,
) -> Result<WrittenBack, Stopped> {
    let (disk, looking) = (capture.disk, Arc::clone(held));
    let known = spawn_blocking(move || looking.known()).await?;
    let (blocks, whole) = ranges(connection, round, capture, held, &known).await?;
    let mut written = WrittenBack::default();
    let mut pieces: JoinSet<Result<WrittenBack, Stopped>> = JoinSet::new();
    for piece in blocks.runs().flat_map(|range| range.pieces(COMPARE_BLOCKS_MAX)) {
        if pieces.len() >= PIECES_MAX
            && let Some(done) = pieces.join_next().await
        {
            add(&mut written, done??);
        }
        pieces.spawn(bring_piece(connection.clone(), round, disk, Arc::clone(held), piece, !whole));
    }
    while let Some(done) = pieces.join_next().await {
        add(&mut written, done??);
    }
    let (syncing, point) = (Arc::clone(held), (capture.generation, capture.durable));
    let synced = spawn_blocking(move || {
        syncing.sync()?;
        let (generation, sequence) = point;
        if sequence.0 > 0 {
            syncing.brought(generation, sequence);
        }
        Ok(())
    });
    synced.await?.map_err(Stopped::Here)?;
    Ok(written)
}

/// The blocks that have to be looked at, and whether they are all of the disk, since nothing is known of it.
async fn ranges(
    connection: &Connection,
    round: u64,
    capture: &Capture,
    held: &HeldDisk,
    known: &Known,
) -> Result<(BlockSet, bool), Stopped> {
    let (disk, hold) = (capture.disk, held.hold);
    let (mut blocks, mut whole) = (held.no_blocks(), false);
    let mut from = Some(BlockIndex(0));
    while let Some(at) = from {
        let asked = if capture.durable.0 > 0 {
            WriteBackRequest::RangesSince {
                round,
                disk,
                from: at,
                hold,
                generation: known.generation,
                brought_to: known.brought_to,
                marked: known.marked.count(),
            }
        } else {
            WriteBackRequest::Ranges { round, disk, from: at, hold }
        };
        let WriteBackReply::Ranges { ranges, next, known } = answer(connection, &asked).await? else {
            return Err(WriteBackError::Answer.into());
        };
        let on_disk = |range: &BlockRange| range.end().0 <= held.blocks();
        if next.is_some_and(|next| next <= at) || !ranges.iter().all(on_disk) {
            return Err(WriteBackError::Answer.into());
        }
        ranges.into_iter().for_each(|range| blocks.insert(range));
        whole |= !known;
        from = next;
    }
    known.marked.runs().for_each(|range| blocks.insert(range));
    Ok((blocks, whole))
}

async fn bring_piece(
    connection: Connection,
    round: u64,
    disk: DiskId,
    held: Arc<HeldDisk>,
    piece: BlockRange,
    known: bool,
) -> Result<WrittenBack, Stopped> {
    let mut written = WrittenBack { compared: piece.count.0, ..WrittenBack::default() };
    let differing: Vec<BlockRange> = if known {
        vec![piece]
    } else {
        let reading = Arc::clone(&held);
        let digests = spawn_blocking(move || reading.digests(piece)).await?.map_err(Stopped::Here)?;
        let asked =
            WriteBackRequest::Compare { round, disk, start: piece.start, count: piece.count, digests };
        let WriteBackReply::Differs(differs) = answer(&connection, &asked).await? else {
            return Err(WriteBackError::Answer.into());
        };
        piece
            .pieces(SCAN_CHUNK_BLOCKS)
            .zip(differs)
            .filter_map(|(chunk, differs)| differs.then_some(chunk))
            .collect()
    };
    for range in differing.into_iter().flat_map(|range| range.pieces(FETCH_RANGE_BLOCKS)) {
        let reading = Arc::clone(&held);
        let blocks: Vec<BlockDigest> =
            spawn_blocking(move || reading.block_digests(range)).await?.map_err(Stopped::Here)?;
        let asked = WriteBackRequest::Fetch { round, disk, blocks };
        let WriteBackReply::Blocks(bytes) = answer(&connection, &asked).await? else {
            return Err(WriteBackError::Answer.into());
        };
        if bytes.is_empty() {
            continue;
        }
        written.received_bytes += bytes.len() as u64;
        let frame = Frame::verify(Bytes::from(bytes))
            .map_err(|error: FrameError| Stopped::Here(error.to_string()))?;
        let asked_for = frame.header().disk == disk
            && frame.extents().iter().all(|extent| range.intersection(extent.range) == Some(extent.range));
        if !asked_for {
            return Err(WriteBackError::Answer.into());
        }
        let writing = Arc::clone(&held);
        written.written += spawn_blocking(move || writing.apply(&frame)).await?.map_err(Stopped::Here)?;
    }
    Ok(written)
}

const fn add(sum: &mut WrittenBack, part: WrittenBack) {
    sum.compared += part.compared;
    sum.written += part.written;
    sum.received_bytes += part.received_bytes;
}

/// Asks about the round.
async fn answer(connection: &Connection, request: &WriteBackRequest) -> Result<WriteBackReply, Stopped> {
    match ask(connection, request).await? {
        WriteBackReply::Over => Err(Stopped::Over),
        WriteBackReply::Failed(text) => Err(Stopped::Here(text)),
        reply => Ok(reply),
    }
}

async fn ask(connection: &Connection, request: &WriteBackRequest) -> Result<WriteBackReply, WriteBackError> {
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_chunk(envelope::seal(request)?).await.map_err(|error| WriteBackError::Stream(error.into()))?;
    send.finish().map_err(|error| WriteBackError::Stream(error.into()))?;
    let bytes = receive.read_to_end(STREAM_BYTES_MAX).await;
    let bytes = bytes.map_err(|error| WriteBackError::Stream(error.into()))?;
    let mut buffer = MessageBuffer::default();
    buffer.push(&bytes);
    buffer.next()?.ok_or(WriteBackError::Answer)
}

/// Blocks asked for at a time.
const FETCH_RANGE_BLOCKS: u64 = FETCH_BLOCKS_MAX as u64;

const _: () = assert!(FETCH_RANGE_BLOCKS.is_multiple_of(SCAN_CHUNK_BLOCKS));
