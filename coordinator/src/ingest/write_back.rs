//! A fenced source's connection for the way back: its questions, each on a stream of its own.
//!
//! Owns the streams only; the answers are the desk's. Invariants: when [`serve`] returns, no question is being worked on; nothing is
//! answered to whose certificate was revoked, or who was replaced by another agent of the machine.
//! Limits: [`WRITE_BACK_STREAMS_MAX`] questions at a time, of a message each.

use std::sync::Arc;

use holdfast_common::{
    codec::MESSAGE_BYTES_MAX,
    ids::MachineId,
    wire::{
        MessageBuffer, Refusal, RefusalCode, WriteBackReply, WriteBackRequest, envelope,
        write_back::WRITE_BACK_STREAMS_MAX,
    },
};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::{sync::oneshot, task::JoinSet};

use super::{
    connection::{Hall, refuse},
    port::WriteBackDesk,
};

/// A message and its length.
const STREAM_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 4;

/// Answers until the agent or the endpoint closes, or `ended` says why the source has to go.
pub(super) async fn serve(
    hall: &Hall,
    connection: &Connection,
    machine: MachineId,
    mut ended: oneshot::Receiver<Refusal>,
) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(WRITE_BACK_STREAMS_MAX));
    tracing::info!(%machine, peer = %connection.remote_address(), "a fenced source stands by");
    let mut questions: JoinSet<Result<(), Refusal>> = JoinSet::new();
    let refusal = loop {
        tokio::select! {
            biased;
            told = &mut ended => break told.unwrap_or_else(|_| closed_in_order()),
            stream = connection.accept_bi() => match stream {
                Ok((send, receive)) => {
                    let desk = Arc::clone(&hall.ports.write_back);
                    questions.spawn(answer(desk, machine, send, receive));
                }
                Err(_closed) => break closed_in_order(),
            },
            Some(done) = questions.join_next() => match done {
                Ok(Ok(())) => {}
                Ok(Err(refusal)) => break refusal,
                Err(error) => break refuse(RefusalCode::BUSY, &error),
            },
        }
    };
    connection.close(refusal.code.0.into(), refusal.text.as_bytes());
    questions.shutdown().await;
    tracing::info!(%machine, %refusal, "a fenced source stands by no more");
}

fn closed_in_order() -> Refusal {
    Refusal::new(RefusalCode::CLOSING, "closed in order")
}

async fn answer(
    desk: Arc<dyn WriteBackDesk>,
    machine: MachineId,
    mut send: SendStream,
    mut receive: RecvStream,
) -> Result<(), Refusal> {
    let broken = |error: &dyn std::fmt::Display| refuse(RefusalCode::PROTOCOL, error);
    let bytes = receive.read_to_end(STREAM_BYTES_MAX).await.map_err(|error| broken(&error))?;
    let mut buffer = MessageBuffer::default();
    buffer.push(&bytes);
    let request: Option<WriteBackRequest> = buffer.next().map_err(|error| broken(&error))?;
    let request = request.ok_or_else(|| broken(&"a question is cut short"))?;
    let reply = desk.answer(machine, request).await;
    let sealed = envelope::seal(&reply).or_else(|error| {
        tracing::error!(%machine, %error, "an answer is too large");
        envelope::seal(&WriteBackReply::Failed(error.to_string()))
    });
    let sealed = sealed.map_err(|error| broken(&error))?;
    // The agent may have gone meanwhile; that shows at the connection.
    let _gone = send.write_chunk(sealed).await;
    let _gone = send.finish();
    Ok(())
}
