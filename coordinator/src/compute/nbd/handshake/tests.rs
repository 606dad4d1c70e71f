//! Negotiations byte by byte, and with arbitrary input.

use proptest::prelude::*;

use super::{
    Agreement, ExportDescription, ExportList, Handshake, HandshakeError, Next, OPTION_BYTES_MAX, OPTIONS_MAX,
};
use crate::compute::nbd::protocol::{MAGIC_OPTION, MAGIC_OPTION_REPLY, option, reply};

struct OneDisk;

impl ExportList for OneDisk {
    fn find(&self, name: &str) -> Option<ExportDescription> {
        matches!(name, "" | "sda").then(|| ExportDescription {
            name: "sda".into(),
            size_bytes: 1 << 20,
            text: "a disk".into(),
            writable: false,
        })
    }

    fn names(&self) -> Vec<String> {
        vec!["sda".into()]
    }
}

fn message(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC_OPTION.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn named(name: &str, rest: &[u8]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(rest);
    data
}

/// A handshake past the client's flags.
fn greeted(flags: u32) -> Handshake {
    let mut handshake = Handshake::default();
    let step = handshake.step(&flags.to_be_bytes(), &OneDisk, &mut Vec::new());
    assert_eq!(step, Ok((4, Next::Continue)));
    handshake
}

/// Feeds one option and gives what follows and the types of the replies.
fn feed(handshake: &mut Handshake, option: u32, data: &[u8]) -> (Next, Vec<u32>) {
    let mut output = Vec::new();
    let input = message(option, data);
    let (used, next) = handshake.step(&input, &OneDisk, &mut output).unwrap();
    assert_eq!(used, input.len());
    (next, reply_types(&output, option))
}

fn reply_types(mut output: &[u8], option: u32) -> Vec<u32> {
    let mut types = Vec::new();
    while !output.is_empty() {
        assert_eq!(output[..8], MAGIC_OPTION_REPLY.to_be_bytes());
        assert_eq!(output[8..12], option.to_be_bytes());
        types.push(u32::from_be_bytes(output[12..16].try_into().unwrap()));
        let length = u32::from_be_bytes(output[16..20].try_into().unwrap()) as usize;
        output = &output[20 + length..];
    }
    types
}

#[test]
fn a_modern_client_gets_everything() {
    let mut handshake = greeted(3);
    assert_eq!(feed(&mut handshake, option::STARTTLS, &[]), (Next::Continue, vec![reply::ERR_UNSUPPORTED]));
    assert_eq!(feed(&mut handshake, option::STRUCTURED_REPLY, &[]), (Next::Continue, vec![reply::ACK]));
    let query = named("", &[&1_u32.to_be_bytes()[..], &named("base:allocation", &[])].concat());
    let context = vec![reply::META_CONTEXT, reply::ACK];
    assert_eq!(feed(&mut handshake, option::SET_META_CONTEXT, &query), (Next::Continue, context));
    let go = named("sda", &[0, 3, 0, 1, 0, 2, 0, 3]);
    let agreed = Agreement { export: "sda".into(), structured_replies: true, allocation_context: true };
    let infos = vec![reply::INFO, reply::INFO, reply::INFO, reply::INFO, reply::ACK];
    assert_eq!(feed(&mut handshake, option::GO, &go), (Next::Transmit(agreed), infos));
}

#[test]
fn the_oldest_client_gets_size_flags_and_zeroes() {
    for (flags, expected) in [(1, 8 + 2 + 124), (3, 8 + 2)] {
        let mut output = Vec::new();
        let input = message(option::EXPORT_NAME, b"sda");
        let (_, next) = greeted(flags).step(&input, &OneDisk, &mut output).unwrap();
        assert!(matches!(next, Next::Transmit(Agreement { structured_replies: false, .. })));
        assert_eq!(output.len(), expected);
        assert_eq!(output[..8], (1_u64 << 20).to_be_bytes());
    }
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let mut handshake = greeted(3);
    let mut refused = |option, data: &[u8]| match feed(&mut handshake, option, data) {
        (Next::Continue, types) => types,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(option::GO, &named("sdb", &[0, 0])), [reply::ERR_UNKNOWN]);
    assert_eq!(refused(option::GO, &named("sda", &[0, 9])), [reply::ERR_INVALID]);
    assert_eq!(refused(option::INFO, &[]), [reply::ERR_INVALID]);
    assert_eq!(refused(option::LIST, b"x"), [reply::ERR_INVALID]);
    assert_eq!(refused(option::LIST, b""), [reply::SERVER, reply::ACK]);
    assert_eq!(refused(99, b"whatever"), [reply::ERR_UNSUPPORTED]);
    // A context without structured replies.
    let query = named("sda", &[&1_u32.to_be_bytes()[..], &named("base:allocation", &[])].concat());
    assert_eq!(refused(option::SET_META_CONTEXT, &query), [reply::ERR_INVALID]);
    assert_eq!(refused(option::LIST_META_CONTEXT, &query), [reply::META_CONTEXT, reply::ACK]);
    // A count of queries that the data cannot hold.
    assert_eq!(refused(option::LIST_META_CONTEXT, &named("sda", &[255; 4])), [reply::ERR_INVALID]);
    assert_eq!(feed(&mut handshake, option::ABORT, &[]), (Next::Close, vec![reply::ACK]));
}

#[test]
fn limits_end_the_connection() {
    let step = |handshake: &mut Handshake, input: &[u8]| handshake.step(input, &OneDisk, &mut Vec::new());
    assert_eq!(step(&mut Handshake::default(), &4_u32.to_be_bytes()), Err(HandshakeError::Flags(4)));
    assert_eq!(step(&mut greeted(3), &[0; 16]), Err(HandshakeError::Magic));
    let mut long = message(option::LIST, &[]);
    let length = u32::try_from(OPTION_BYTES_MAX).unwrap() + 1;
    long[12..].copy_from_slice(&length.to_be_bytes());
    assert_eq!(step(&mut greeted(3), &long), Err(HandshakeError::OptionLength(length)));
    let unknown = message(option::EXPORT_NAME, b"sdb");
    assert_eq!(step(&mut greeted(3), &unknown), Err(HandshakeError::ExportUnknown));
    let mut handshake = greeted(3);
    for _ in 0..OPTIONS_MAX {
        feed(&mut handshake, option::LIST, &[]);
    }
    assert_eq!(step(&mut handshake, &message(option::LIST, &[])), Err(HandshakeError::OptionCount));
}

#[test]
fn a_context_holds_for_its_export_only() {
    let mut handshake = greeted(3);
    feed(&mut handshake, option::STRUCTURED_REPLY, &[]);
    let query = named("sda", &[&1_u32.to_be_bytes()[..], &named("base:allocation", &[])].concat());
    feed(&mut handshake, option::SET_META_CONTEXT, &query);
    // A later, failed choice takes the earlier one back.
    feed(&mut handshake, option::SET_META_CONTEXT, &named("sdb", &[0; 4]));
    let (next, _) = feed(&mut handshake, option::GO, &named("sda", &[0, 0]));
    assert!(matches!(next, Next::Transmit(Agreement { allocation_context: false, .. })));
}

proptest! {
    /// No input makes it panic, and input cut anywhere gives the same result as whole.
    #[test]
    fn arbitrary_input_is_survived(
        options in prop::collection::vec((0_u32..12, prop::collection::vec(any::<u8>(), 0..40)), 0..6),
        noise in prop::collection::vec(any::<u8>(), 0..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut input = vec![0, 0, 0, 3];
        for (option, data) in &options {
            input.extend_from_slice(&message(*option, data));
        }
        input.extend_from_slice(&noise);
        let cut = cut.index(input.len());
        let run = |parts: &[&[u8]]| {
            let (mut handshake, mut output, mut pending) = (Handshake::default(), Vec::new(), Vec::new());
            for part in parts {
                pending.extend_from_slice(part);
                loop {
                    match handshake.step(&pending, &OneDisk, &mut output) {
                        Ok((0, Next::Continue)) => break,
                        Ok((used, Next::Continue)) => { pending.drain(..used); }
                        end => return (output, Some(end)),
                    }
                }
            }
            (output, None)
        };
        let (start, end) = input.split_at(cut);
        prop_assert_eq!(run(&[&input]), run(&[start, end]));
    }
}
