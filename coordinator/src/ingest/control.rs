//! The control stream: reading, writing, and answering what an agent asks.
//!
//! Owns both halves of the stream. What a message means is decided by [`super::session`].
//! Limit: the queues of [`super::connection`]; acknowledgements are not queued, the newest one per disk is sent.

use std::sync::Arc;

use holdfast_common::wire::{
    AgentMessage, ControlBuffer, ControlError, CoordinatorMessage, Refusal, RefusalCode, RenewReply,
    RenewRequest, ScanAnswer, ScanQuestion, TrustLoss, envelope,
};
use quinn::{RecvStream, SendStream};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    connection::{Context, lost, refuse},
    enrolment,
    session::{self, Request},
};

/// Reads messages until the stream or the connection ends.
pub(super) async fn read(
    context: Arc<Context>,
    mut stream: RecvStream,
    requests: mpsc::Sender<Request>,
) -> Result<(), Refusal> {
    let mut buffer = ControlBuffer::default();
    loop {
        while let Some(message) = buffer.next::<AgentMessage>().map_err(unreadable)? {
            let request = context.session().message(message)?;
            if let Request::GroupCut(answer) = request {
                // At once: machines hold writes meanwhile.
                context.hall.ports.directory.group_answer(context.machine, answer);
                continue;
            }
            if request != Request::Nothing && requests.send(request).await.is_err() {
                return Ok(());
            }
        }
        let chunk = tokio::select! {
            () = context.ending.asked() => return Ok(()),
            chunk = stream.read_chunk(usize::MAX, true) => chunk,
        };
        match chunk {
            Ok(Some(chunk)) => buffer.push(&chunk.bytes),
            // Without its control stream a session has no meaning; the agent closes the connection itself.
            Ok(None) | Err(_) => return Err(lost(context.connection.closed().await)),
        }
    }
}

fn unreadable(error: ControlError) -> Refusal {
    match error {
        ControlError::Version { theirs } => session::version(theirs),
        ControlError::Codec(error) => refuse(RefusalCode::PROTOCOL, &error),
    }
}

/// Writes messages, and acknowledgements as they become possible.
pub(super) async fn write(
    context: Arc<Context>,
    mut stream: SendStream,
    mut messages: mpsc::Receiver<CoordinatorMessage>,
) -> Result<(), Refusal> {
    loop {
        let batch = tokio::select! {
            biased;
            () = context.ending.asked() => return Ok(()),
            message = messages.recv() => message.into_iter().collect(),
            () = context.acknowledge.notified() => context.session().acknowledgements(),
        };
        for message in batch {
            let bytes = envelope::seal(&message).map_err(|error| refuse(RefusalCode::LIMIT, &error))?;
            if stream.write_chunk(bytes).await.is_err() {
                return Err(lost(context.connection.closed().await));
            }
        }
    }
}

/// Does what the agent asks, one request after the other; only comparisons run beside each other.
pub(super) async fn answer(
    context: &Arc<Context>,
    tasks: &mut JoinSet<Result<(), Refusal>>,
    request: Request,
) -> Result<(), Refusal> {
    let directory = &context.hall.ports.directory;
    let machine = context.machine;
    match request {
        Request::Report(report) => directory.record_report(machine, report),
        Request::Voided(voided) => note(directory.record_void(machine, voided).await),
        Request::Inventory(inventory) => note(directory.record_inventory(machine, inventory).await),
        Request::TrustLost(loss) => return trust_lost(context, tasks, loss).await,
        Request::Renew(request) => return renew(context, &request).await,
        Request::Compare(question) => _ = tasks.spawn(compare(Arc::clone(context), question)),
        // The agent closes the connection itself; whatever it sent before is on its way to the sinks.
        Request::Close | Request::Prepare(_) | Request::GroupCut(_) | Request::Nothing => {}
        Request::Audited(answer) => directory.audit_answer(machine, answer),
        Request::Source(answer) => context.hall.ports.directory.source_answer(context.machine, answer),
    }
    Ok(())
}

/// Failures that do not end a session are logged where the refusal's text is made.
fn note(result: Result<(), super::port::PortError>) {
    if let Err(error) = result {
        let refusal = enrolment::told(error);
        tracing::warn!(%refusal, "an agent's message was not recorded");
    }
}

async fn trust_lost(
    context: &Arc<Context>,
    tasks: &mut JoinSet<Result<(), Refusal>>,
    loss: TrustLoss,
) -> Result<(), Refusal> {
    tracing::warn!(machine = %context.machine, disk = %loss.disk, reason = %loss.reason, "tracking was lost");
    let raised = context.hall.ports.directory.raise_generation(context.machine, loss).await;
    raised.map_err(|error| context.port_refusal(error))?;
    context.reassign(tasks).await
}

/// Signs the session's own machine a new certificate.
async fn renew(context: &Context, request: &RenewRequest) -> Result<(), Refusal> {
    let signed = context.hall.authority.sign_machine(context.machine, &request.request_der);
    let signed = signed.map_err(|error| refuse(RefusalCode::PROTOCOL, &error))?;
    let recorded = context.hall.ports.directory.record_certificate(context.machine, signed.record).await;
    recorded.map_err(|error| context.port_refusal(error))?;
    context.say(CoordinatorMessage::Renewed(RenewReply { certificate_der: signed.der }));
    tracing::info!(machine = %context.machine, serial = %signed.record.serial, "certificate renewed");
    Ok(())
}

async fn compare(context: Arc<Context>, question: ScanQuestion) -> Result<(), Refusal> {
    let (disk, number, count) = (question.disk, question.question, question.digests.len());
    let answer = context.hall.ports.replica.compare(question).await.unwrap_or_else(|error| {
        let refusal = enrolment::told(error);
        tracing::warn!(%disk, %refusal, "replica cannot be compared: everything is sent");
        ScanAnswer { question: number, disk, differs: vec![true; count] }
    });
    context.session().answered(disk);
    context.say(CoordinatorMessage::ScanAnswer(answer));
    Ok(())
}
