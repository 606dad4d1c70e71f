//! Decoders of what peers send.
//!
//! Owns how bytes are given to them. A stream's first byte says in pieces of which size the rest arrives.

use bytes::Bytes;
use holdfast_common::{
    codec,
    frame::Frame,
    tls,
    token::{EnrolToken, OperatorToken},
    wire,
};
use holdfast_coordinator::{
    compute::nbd::{
        handshake::{ExportDescription, ExportList, Handshake, Next},
        transmission::{
            self,
            Action::{BlockStatus, Read, Write, Zero},
            REQUEST_HEADER_BYTES,
        },
    },
    ingest::cutter::FrameCutter,
    journal::tables::FrameHead,
};

use super::repair;

/// A frame as it arrives or is read.
pub(super) fn wire_frame(bytes: &[u8]) {
    read_frame(Bytes::copy_from_slice(bytes));
    let mut repaired = bytes.to_vec();
    repair::frames(&mut repaired);
    read_frame(repaired.into());
    let _ = FrameHead::parse(bytes);
}

fn read_frame(bytes: Bytes) {
    if let Ok(frame) = Frame::verify(bytes) {
        let _ = frame.cut_record();
        let _ = frame.scan_record();
        let _ = holdfast_common::frame::PlainReader::new().read(&frame, &mut Vec::new());
        let _ = FrameHead::from(&frame);
    }
}

/// The pieces in which a stream arrives.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (size, rest) = bytes.split_first().unwrap_or((&0, &[]));
    rest.chunks(usize::from(*size) * 16 + 1)
}

/// A data stream: what starts it, then frames.
pub(super) fn frame_stream(bytes: &[u8]) {
    let mut repaired = bytes.to_vec();
    repair::frames(&mut repaired);
    let mut cutter = FrameCutter::default();
    for piece in pieces(&repaired) {
        cutter.push(piece);
        loop {
            match cutter.next() {
                Ok(Some(frame)) => read_frame(frame.freeze()),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// Messages of every kind, each as a whole.
pub(super) fn control_message(bytes: &[u8]) {
    let _ = codec::decode::<wire::AgentMessage>(bytes);
    let _ = codec::decode::<wire::CoordinatorMessage>(bytes);
    let _ = codec::decode::<wire::DataStreamStart>(bytes);
    let _ = codec::decode::<wire::EnrolRequest>(bytes);
    let _ = codec::decode::<wire::EnrolReply>(bytes);
    let _ = codec::decode::<wire::WriteBackRequest>(bytes);
    let _ = codec::decode::<wire::WriteBackReply>(bytes);
}

/// A control stream of either direction.
pub(super) fn message_stream(bytes: &[u8]) {
    one_direction::<wire::AgentMessage>(bytes);
    one_direction::<wire::CoordinatorMessage>(bytes);
    one_direction::<wire::EnrolRequest>(bytes);
    one_direction::<wire::EnrolReply>(bytes);
    one_direction::<wire::DataStreamStart>(bytes);
}

fn one_direction<T: serde::de::DeserializeOwned>(bytes: &[u8]) {
    let mut buffer = wire::MessageBuffer::default();
    for piece in pieces(bytes) {
        buffer.push(piece);
        loop {
            match buffer.next::<T>() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// A peer's certificate.
pub(super) fn certificate(bytes: &[u8]) {
    let _ = tls::PeerIdentity::of(bytes);
    let _ = tls::public_key(bytes);
}

/// What an operator pastes.
pub(super) fn enrolment_token(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(token) = text.parse::<EnrolToken>() {
        assert_eq!(token.to_text().parse(), Ok(token));
    }
    if let Ok(token) = text.parse::<OperatorToken>() {
        assert_eq!(token.to_text().parse(), Ok(token));
    }
}

struct OneExport;

impl ExportList for OneExport {
    fn find(&self, name: &str) -> Option<ExportDescription> {
        let known = name.is_empty() || name == NBD_EXPORT;
        known.then(|| ExportDescription {
            name: NBD_EXPORT.to_owned(),
            size_bytes: NBD_BYTES,
            text: String::new(),
            writable: true,
        })
    }

    fn names(&self) -> Vec<String> {
        vec![NBD_EXPORT.to_owned()]
    }
}

/// The export of the NBD decoder.
pub(super) const NBD_EXPORT: &str = "disk";
/// Its size.
const NBD_BYTES: u64 = 1 << 30;

/// A whole NBD connection: negotiation, then requests.
pub(super) fn nbd(bytes: &[u8]) {
    let mut handshake = Handshake::default();
    let mut input = bytes;
    let mut output = Vec::new();
    let agreement = loop {
        let Ok((consumed, next)) = handshake.step(input, &OneExport, &mut output) else { return };
        input = &input[consumed..];
        match next {
            Next::Continue if consumed == 0 => return,
            Next::Continue => {}
            Next::Transmit(agreement) => break agreement,
            Next::Close => return,
        }
    };
    assert!(output.len() <= 1024 * (bytes.len() + 1), "an answer out of proportion");
    while let Some((header, rest)) = input.split_first_chunk::<REQUEST_HEADER_BYTES>() {
        let Ok(request) = transmission::decode(header) else { return };
        let Ok(payload) = transmission::payload_bytes(request) else { return };
        let (structured, contexts) = (agreement.structured_replies, agreement.allocation_context);
        let terms = transmission::Terms {
            size_bytes: NBD_BYTES,
            writable: true,
            structured,
            allocation_context: contexts,
        };
        if matches!(transmission::check(request, terms), Read | BlockStatus | Write | Zero) {
            assert!(request.offset + u64::from(request.length) <= NBD_BYTES, "beyond the end");
        }
        input = rest.get(payload..).unwrap_or_default();
    }
}
