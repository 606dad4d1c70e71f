//! A disk's data stream: frames are cut, verified on the pool, judged in order, appended.
//!
//! Owns one stream from its first byte to its last. Does not acknowledge; the sink's durable position does.
//! Invariant: frames reach the sink in the order of the stream, and only after verification; what was handed to the sink is
//! awaited even if the connection ends.
//! Limits: [`BATCH_BYTES_MAX`] per batch, [`BATCHES_MAX`] batches on their way, and the connection's byte budget.

use std::sync::{Arc, atomic::Ordering};

use bytes::{Bytes, BytesMut};
use holdfast_common::{
    frame::{Frame, FrameError},
    wire::{DataStreamStart, MessageBuffer, Refusal, RefusalCode},
};
use quinn::{ReadError, RecvStream};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{Context, refuse},
    cutter::FrameCutter,
    port::FrameSink,
    session::Verdict,
    verify::Verified,
};

/// Most bytes of frames in one batch, unless a single frame is larger.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Bytes of frames that are worth a batch while other batches are on their way: each is handed from thread to thread.
const BATCH_BYTES_MIN: usize = 256 << 10;

/// Most batches between the stream and the sink.
const BATCHES_MAX: usize = 4;

/// Pieces of a stream read at a time.
const PIECES: usize = 64;

/// A batch on its way through the pool. The permit is its part of the byte budget.
struct Batch {
    verified: oneshot::Receiver<Verified>,
    bytes: OwnedSemaphorePermit,
}

/// Receives one data stream.
///
/// # Errors
/// The connection is to be closed with this refusal.
pub(super) async fn receive(context: Arc<Context>, mut stream: RecvStream) -> Result<(), Refusal> {
    let mut buffer = MessageBuffer::default();
    let start: DataStreamStart = loop {
        if let Some(start) = buffer.next().map_err(|error| refuse(RefusalCode::PROTOCOL, &error))? {
            break start;
        }
        match stream.read_chunk(PIECES * 1024, true).await {
            Ok(Some(chunk)) => buffer.push(&chunk.bytes),
            _ => return Ok(()),
        }
    };
    let Some((stop, sink, _done)) = context.begin_stream(start)? else {
        let _gone = stream.stop(RefusalCode::FENCED.0.into());
        return Ok(());
    };
    let mut cutter = FrameCutter::default();
    cutter.push(&buffer.into_rest());
    let (batches, waiting) = mpsc::channel(BATCHES_MAX);
    let reading = read(&context, &mut stream, cutter, batches, &stop);
    let appending = async {
        let appended = append(&context, start, sink.as_ref(), waiting, &stop).await;
        // A reader that waits for bytes does not notice by itself that nobody wants them.
        stop.cancel();
        appended
    };
    let (read, appended) = tokio::join!(reading, appending);
    appended.and(read)
}

/// Reads until the stream ends, is stopped, or the appender is gone.
async fn read(
    context: &Context,
    stream: &mut RecvStream,
    mut cutter: FrameCutter,
    batches: mpsc::Sender<Batch>,
    stop: &CancellationToken,
) -> Result<(), Refusal> {
    let mut pieces: Vec<Bytes> = vec![Bytes::new(); PIECES];
    let mut frames: Vec<BytesMut> = Vec::new();
    let mut bytes = 0;
    loop {
        while bytes < BATCH_BYTES_MAX {
            let Some(frame) = cutter.next().map_err(|error| frame_refusal(&error))? else { break };
            bytes += frame.len();
            frames.push(frame);
        }
        // What has arrived is read first. Then a batch goes on its way if no other is, or if it is worth it.
        let worthy = bytes >= BATCH_BYTES_MIN || (!frames.is_empty() && batches.capacity() == BATCHES_MAX);
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                let _gone = stream.stop(RefusalCode::FENCED.0.into());
                return Ok(());
            }
            read = stream.read_chunks(&mut pieces), if bytes < BATCH_BYTES_MAX => match read {
                Ok(Some(count)) => {
                    pieces.iter_mut().take(count).for_each(|piece| cutter.push(&std::mem::take(piece)));
                }
                Ok(None) | Err(ReadError::Reset(_) | ReadError::ConnectionLost(_)) if frames.is_empty() => return Ok(()),
                Ok(None) | Err(_) => {
                    if let Some(batch) = context.submit(std::mem::take(&mut frames), bytes).await {
                        let _gone = batches.send(batch.into()).await;
                    }
                    return Ok(());
                }
            },
            place = batches.reserve(), if worthy => {
                let Ok(place) = place else { return Ok(()) };
                let Some(batch) = context.submit(std::mem::take(&mut frames), bytes).await else { return Ok(()) };
                place.send(batch.into());
                bytes = 0;
            }
            () = idle(&batches), if !worthy && !frames.is_empty() => {}
        }
    }
}

/// Waits until no batch is between the stream and the sink, or nobody takes them any more.
async fn idle(batches: &mpsc::Sender<Batch>) {
    // The places are given back at once; whoever waited looks again.
    let _all_free = batches.reserve_many(BATCHES_MAX).await;
}

impl From<(oneshot::Receiver<Verified>, OwnedSemaphorePermit)> for Batch {
    fn from((verified, bytes): (oneshot::Receiver<Verified>, OwnedSemaphorePermit)) -> Self {
        Self { verified, bytes }
    }
}

/// Judges and appends batches in order until there are no more.
async fn append(
    context: &Context,
    start: DataStreamStart,
    sink: &dyn FrameSink,
    mut batches: mpsc::Receiver<Batch>,
    stop: &CancellationToken,
) -> Result<(), Refusal> {
    while let Some(batch) = batches.recv().await {
        let Ok(verified) = batch.verified.await else { return Ok(()) };
        let frames = verified.map_err(|error| frame_refusal(&error))?;
        let accepted = judge(context, start, frames, stop)?;
        if !accepted.is_empty() {
            let bytes: usize = accepted.iter().map(|frame| frame.bytes().len()).sum();
            sink.append(accepted).await.map_err(|error| context.port_refusal(error))?;
            context.frame_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        drop(batch.bytes);
    }
    Ok(())
}

fn judge(
    context: &Context,
    start: DataStreamStart,
    frames: Vec<Frame>,
    stop: &CancellationToken,
) -> Result<Vec<Frame>, Refusal> {
    let mut session = context.session();
    let mut accepted = Vec::with_capacity(frames.len());
    for frame in frames {
        match session.frame(start, frame.header())? {
            Verdict::Append => accepted.push(frame),
            Verdict::Duplicate => {}
            Verdict::Fenced => {
                stop.cancel();
                break;
            }
        }
    }
    Ok(accepted)
}

fn frame_refusal(error: &FrameError) -> Refusal {
    let code = match error {
        FrameError::Digest | FrameError::Payload | FrameError::Torn { .. } => RefusalCode::DAMAGED,
        FrameError::Version(_) => RefusalCode::VERSION,
        FrameError::Magic(_) | FrameError::Extent { .. } => RefusalCode::PROTOCOL,
        FrameError::Field { field: "plain bytes" | "stored bytes" | "extent count", .. } => {
            RefusalCode::LIMIT
        }
        FrameError::Field { .. } => RefusalCode::PROTOCOL,
    };
    refuse(code, error)
}
