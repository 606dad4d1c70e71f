//! Requests from bytes and the decision about each.

use proptest::prelude::*;

use super::{
    Action, REQUEST_HEADER_BYTES, Request, Terms, TransmissionError, check, decode, payload_bytes, push_error,
};
use crate::compute::nbd::protocol::{MAGIC_REQUEST, REQUEST_BYTES_MAX, command, command_flag, error};

const SIZE: u64 = 1 << 30;

fn request(command: u16, offset: u64, length: u32) -> Request {
    Request { flags: 0, command, cookie: 7, offset, length }
}

fn terms(structured: bool, allocation_context: bool) -> Terms {
    Terms { size_bytes: SIZE, writable: false, structured, allocation_context }
}

fn refused(request: Request, structured: bool, context: bool) -> u32 {
    match check(request, terms(structured, context)) {
        Action::Refuse(number, _) => number,
        other => panic!("{other:?}"),
    }
}

#[test]
fn ranges_inside_the_export_are_read() {
    assert_eq!(check(request(command::READ, 0, 1), terms(false, false)), Action::Read);
    assert_eq!(check(request(command::READ, SIZE - 5, 5), terms(true, false)), Action::Read);
    assert_eq!(check(request(command::READ, 0, REQUEST_BYTES_MAX), terms(true, false)), Action::Read);
    assert_eq!(check(request(command::BLOCK_STATUS, 0, 1 << 30), terms(true, true)), Action::BlockStatus);
}

#[test]
fn what_cannot_be_done_is_refused() {
    assert_eq!(refused(request(command::READ, SIZE - 4, 5), true, true), error::INVALID);
    assert_eq!(refused(request(command::READ, u64::MAX, 1), true, true), error::INVALID);
    assert_eq!(refused(request(command::READ, 0, 0), true, true), error::INVALID);
    assert_eq!(refused(request(command::READ, 0, REQUEST_BYTES_MAX + 1), true, true), error::INVALID);
    assert_eq!(refused(request(command::BLOCK_STATUS, 0, 1), true, false), error::INVALID);
    assert_eq!(refused(request(command::WRITE, 0, 1), true, false), error::PERMISSION);
    assert_eq!(refused(request(command::TRIM, 0, 1), true, false), error::PERMISSION);
    assert_eq!(refused(request(99, 0, 1), true, false), error::INVALID);
    let unsplit = Request { flags: command_flag::DONT_FRAGMENT, ..request(command::READ, 0, 2 << 20) };
    assert_eq!(refused(unsplit, true, false), error::OVERFLOW);
    let unknown_flag = Request { flags: 1 << 9, ..request(command::READ, 0, 1) };
    assert_eq!(refused(unknown_flag, true, false), error::INVALID);
}

#[test]
fn a_write_is_read_over_within_the_limit() {
    assert_eq!(payload_bytes(request(command::WRITE, 0, 9)), Ok(9));
    assert_eq!(payload_bytes(request(command::READ, 0, 9)), Ok(0));
    let long = REQUEST_BYTES_MAX + 1;
    assert_eq!(payload_bytes(request(command::WRITE, 0, long)), Err(TransmissionError::PayloadTooLong(long)));
}

#[test]
fn an_error_says_where() {
    let mut output = Vec::new();
    push_error(&mut output, 7, true, error::IO, "bad", Some(0x0102));
    let expected: &[u8] = &[
        0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 2, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 17, 0, 0, 0, 5, 0, 3, b'b',
        b'a', b'd', 0, 0, 0, 0, 0, 0, 1, 2,
    ];
    assert_eq!(output, expected);
}

#[test]
fn a_writable_export_takes_changes_inside_it() {
    let terms = Terms { writable: true, ..terms(true, true) };
    let flagged = |flags, request| Request { flags, ..request };
    for (command, most, expected) in [
        (command::WRITE, REQUEST_BYTES_MAX, Action::Write),
        (command::TRIM, u32::MAX, Action::Zero),
        (command::WRITE_ZEROES, u32::MAX, Action::Zero),
    ] {
        let longest = request(command, 0, most.min(u32::try_from(SIZE).unwrap()));
        assert_eq!(check(longest, terms), expected);
        assert_eq!(check(flagged(command_flag::FUA, longest), terms), expected);
        for bad in [
            request(command, SIZE - 5, 6),
            request(command, 0, 0),
            flagged(command_flag::DONT_FRAGMENT, longest),
        ] {
            assert!(matches!(check(bad, terms), Action::Refuse(error::INVALID, _)), "{bad:?}");
        }
    }
    assert_eq!(
        check(flagged(command_flag::NO_HOLE, request(command::WRITE_ZEROES, 0, 1)), terms),
        Action::Zero
    );
    assert_eq!(check(request(command::FLUSH, 0, 0), terms), Action::Flush);
    assert_eq!(check(flagged(command_flag::FUA, request(command::READ, 0, 1)), terms), Action::Read);
}

proptest! {
    /// Arbitrary headers are decoded to what they say or refused, and what passes the check lies inside the export.
    #[test]
    fn what_passes_is_inside(mut header in prop::array::uniform28(any::<u8>()), magic in any::<bool>()) {
        if magic {
            header[..4].copy_from_slice(&MAGIC_REQUEST.to_be_bytes());
            header[6] = 0;
            header[7] &= 7;
            header[16..20].fill(0);
        }
        let header: [u8; REQUEST_HEADER_BYTES] = header;
        let Ok(request) = decode(&header) else { return Ok(()) };
        for writable in [false, true] {
            let action = check(request, Terms { writable, ..terms(true, true) });
            if matches!(action, Action::Read | Action::BlockStatus | Action::Write | Action::Zero) {
                prop_assert!(request.length > 0 && request.offset + u64::from(request.length) <= SIZE);
            }
        }
    }
}
