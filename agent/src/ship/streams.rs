//! A disk's data stream: frames in order, at the allowed rate.
//!
//! Owns one unidirectional stream. Does not know when to open or resume: the session says.

use std::sync::Arc;

use holdfast_common::{
    ids::{DiskId, Generation},
    wire::{DataStreamStart, RefusalCode, envelope},
};
use quinn::{Connection, SendStream, WriteError};

use super::{session::NextFrame, shared::Shared};

/// Sends a disk's frames until its line of history ends, the coordinator stops the stream, or the connection ends (which
/// is not an error here: the connection's own end says why).
pub(super) async fn send_disk(
    shared: Arc<Shared>,
    connection: Connection,
    disk: DiskId,
    generation: Generation,
) {
    let Ok(mut stream) = connection.open_uni().await else { return };
    match send_frames(&shared, &mut stream, disk, generation).await {
        Ok(()) => _ = stream.reset(RefusalCode::FENCED.0.into()),
        Err(WriteError::Stopped(code)) => {
            tracing::info!(%disk, %generation, %code, "the coordinator takes no more frames of this generation");
        }
        Err(error) => tracing::debug!(%disk, %generation, %error, "data stream ended"),
    }
}

async fn send_frames(
    shared: &Shared,
    stream: &mut SendStream,
    disk: DiskId,
    generation: Generation,
) -> Result<(), WriteError> {
    match envelope::seal(&DataStreamStart { disk, generation }) {
        Ok(start) => stream.write_chunk(start).await?,
        Err(error) => {
            tracing::error!(%error, "stream start cannot be encoded");
            return Ok(());
        }
    }
    loop {
        // Taken before looking, so that a push in between is not missed.
        let woken = shared.wake.notified();
        let next = shared.session().next_frame(disk, generation);
        match next {
            NextFrame::Send(frame) => {
                let pause = shared.throttle(frame.bytes.len());
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
                stream.write_chunk(frame.bytes).await?;
            }
            NextFrame::Wait => woken.await,
            NextFrame::End => return Ok(()),
        }
    }
}
