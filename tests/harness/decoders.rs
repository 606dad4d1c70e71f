//! Every decoder of bytes from outside, as a function of bytes: what fuzzing and the mutation tests drive.
//!
//! Invariant: none may panic or take memory or time out of proportion to its input, whatever the input.

use bytes::Bytes;
use holdfast_common::{codec, frame::Frame, ids::Sequence, wire};
use holdfast_coordinator::{
    index::{records::RunRecords, run_format::RunHeader},
    journal::{format, recovery, segment, tables},
    store::DiskManifest,
};

/// A decoder and its name.
pub type Decoder = (&'static str, fn(&[u8]));

/// All of them.
pub const DECODERS: &[Decoder] = &[
    ("wire_frame", wire_frame),
    ("control_message", control_message),
    ("segment", segment_file),
    ("manifest", manifest),
    ("index_run", index_run),
];

/// A frame as it arrives or is read.
pub fn wire_frame(bytes: &[u8]) {
    if let Ok(frame) = Frame::verify(Bytes::copy_from_slice(bytes)) {
        let _ = frame.cut_record();
        let _ = frame.scan_record();
        let _ = holdfast_common::frame::PlainReader::new().read(&frame, &mut Vec::new());
    }
    let _ = tables::FrameHead::parse(bytes);
}

/// Control messages of both directions.
pub fn control_message(bytes: &[u8]) {
    let _ = codec::decode::<wire::AgentMessage>(bytes);
    let _ = codec::decode::<wire::CoordinatorMessage>(bytes);
    let _ = codec::decode::<wire::DataStreamStart>(bytes);
    let _ = codec::decode::<wire::EnrolRequest>(bytes);
}

/// A segment file as recovery and readers see it.
pub fn segment_file(bytes: &[u8]) {
    let _ = format::SegmentHeader::parse(bytes);
    let _ = recovery::plan(bytes, super::journal::DISK, Sequence(1));
    if let Ok((_, entries)) = segment::read_footer(bytes, Sequence(1)) {
        let _ = tables::find_entry(&entries, Sequence(1), Sequence(3));
    }
    let _ = tables::SegmentTables::parse(Sequence(1), bytes.get(..16).unwrap_or_default(), bytes.to_vec());
    let _ = segment::read_frame(bytes, super::journal::DISK, Sequence(1), 160, Some(9000));
}

/// What is recorded of a disk.
pub fn manifest(bytes: &[u8]) {
    let _ = DiskManifest::parse(bytes);
}

/// Header and records of an index run.
pub fn index_run(bytes: &[u8]) {
    let _ = RunHeader::parse(bytes);
    let _ = RunRecords::parse(bytes);
}
