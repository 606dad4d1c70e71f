//! Every decoder of bytes from outside, as a function of bytes: what fuzzing and the mutation tests drive.
//!
//! Owns the list. Formats with digests are read twice: as they come, and with their digests made good again
//! ([`repair`]), so that changed bytes get past the digest. Invariant: none may panic or take memory or time out of
//! proportion to its input, whatever the input.

// Digests made good again.
pub mod repair;
// Valid inputs to begin with.
pub mod seeds;
mod files;
mod messages;

/// A decoder.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    /// Its name.
    pub name: &'static str,
    /// Reads the bytes; what comes out is dropped.
    pub decode: fn(&[u8]),
    /// Valid inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

const fn decoder(name: &'static str, decode: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>) -> Decoder {
    Decoder { name, decode, seeds }
}

/// All of them.
pub const DECODERS: &[Decoder] = &[
    decoder("wire_frame", messages::wire_frame, seeds::frames),
    decoder("frame_stream", messages::frame_stream, seeds::frame_streams),
    decoder("control_message", messages::control_message, seeds::messages),
    decoder("message_stream", messages::message_stream, seeds::message_streams),
    decoder("certificate", messages::certificate, seeds::certificates),
    decoder("enrolment_token", messages::enrolment_token, seeds::tokens),
    decoder("nbd", messages::nbd, seeds::nbd),
    decoder("segment", files::segment, seeds::segments),
    decoder("index_run", files::index_run, seeds::runs),
    decoder("manifest", files::manifest, seeds::manifests),
    decoder("kept", files::kept, seeds::kept),
    decoder("partition_table", files::partition_table, seeds::partition_tables),
    decoder("fat", files::fat, seeds::fats),
    decoder("initramfs", files::initramfs, seeds::initramfs),
    decoder("hive", files::hive, seeds::hives),
    decoder("hive_log", files::hive_log, seeds::hive_logs),
    decoder("job_event", files::job_event, seeds::job_events),
    decoder("machine_table", holdfast_agent::inventory::decode_as_any_table, seeds::machine_tables),
    decoder(
        "tracking_record",
        holdfast_agent::capture::tracked::decode_as_any_record,
        seeds::tracking_records,
    ),
];
