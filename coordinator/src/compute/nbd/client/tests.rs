//! Answers as a server gives them, and as none should.

use std::io::{self, Cursor, Read, Write};

use super::{
    Connection, MAGIC_GREETING, MAGIC_OPTION, MAGIC_OPTION_REPLY, MAGIC_STRUCTURED_REPLY, chunk, reply,
};

/// A server that says what it was told to say, whatever it hears.
#[derive(Debug)]
struct Said(Cursor<Vec<u8>>);

impl Read for Said {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC_OPTION_REPLY.to_be_bytes().to_vec();
    for number in [option, kind, u32::try_from(data.len()).unwrap()] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    bytes.extend_from_slice(data);
    bytes
}

fn greeting() -> Vec<u8> {
    [&MAGIC_GREETING.to_be_bytes()[..], &MAGIC_OPTION.to_be_bytes(), &[0, 3]].concat()
}

/// A chunk of the answer to the first request.
fn a_chunk(flags: u16, kind: u16, content: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC_STRUCTURED_REPLY.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&1_u64.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(content.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(content);
    bytes
}

fn connected(answers: &[Vec<u8>]) -> Connection<Said> {
    Connection { stream: Said(Cursor::new(answers.concat())), cookie: 0, context: Some(7) }
}

fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], bytes].concat()
}

fn hole(offset: u64, bytes: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &bytes.to_be_bytes()].concat()
}

#[test]
fn an_export_is_opened_with_its_context_and_refusals_are_told() {
    let mut size = 0_u16.to_be_bytes().to_vec();
    size.extend_from_slice(&4096_u64.to_be_bytes());
    size.extend_from_slice(&[0, 1]);
    let meta = [&9_u32.to_be_bytes()[..], b"qemu:dirty-bitmap:b"].concat();
    let good = [
        greeting(),
        option_reply(8, reply::ACK, &[]),
        option_reply(10, reply::META_CONTEXT, &meta),
        option_reply(10, reply::ACK, &[]),
        option_reply(7, reply::INFO, &[0, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]),
        option_reply(7, reply::INFO, &size),
        option_reply(7, reply::ACK, &[]),
    ];
    let open = |answers: &[Vec<u8>]| {
        Connection::open(Said(Cursor::new(answers.concat())), "disk0", Some("qemu:dirty-bitmap:b"))
    };
    let (connection, bytes) = open(&good).unwrap();
    assert_eq!((connection.context, bytes), (Some(9), 4096));

    let mut without_context = good.to_vec();
    without_context.remove(2);
    assert!(open(&without_context).unwrap_err().to_string().contains("no such metadata context"));
    let mut without_size = good.to_vec();
    without_size.remove(5);
    assert!(open(&without_size).unwrap_err().to_string().contains("how large"));
    let mut refused = good.to_vec();
    refused[4] = option_reply(7, reply::ERR_UNKNOWN, b"no such export");
    assert!(open(&refused).unwrap_err().to_string().contains("no such export"));
    for cut in 0..good.concat().len() {
        assert!(open(&[good.concat()[..cut].to_vec()]).is_err(), "{cut} bytes are no handshake");
    }
}

#[test]
fn a_read_takes_data_and_holes_in_any_order_and_nothing_else() {
    let read = |chunks: &[Vec<u8>]| {
        let mut buffer = [9; 8];
        connected(chunks).read(100, &mut buffer).map(|()| buffer)
    };
    let (data_kind, hole_kind) = (chunk::OFFSET_DATA, chunk::OFFSET_HOLE);
    let whole = [a_chunk(0, hole_kind, &hole(104, 4)), a_chunk(1, data_kind, &data(100, b"abcd"))];
    assert_eq!(read(&whole).unwrap(), *b"abcd\0\0\0\0");
    let ends_apart = [&whole[..], &[a_chunk(1, chunk::NONE, &[])]].concat();
    assert_eq!(
        read(&[ends_apart[0].clone(), a_chunk(0, data_kind, &data(100, b"abcd")), ends_apart[2].clone()])
            .unwrap(),
        *b"abcd\0\0\0\0"
    );
    for wrong in [
        vec![a_chunk(1, data_kind, &data(100, b"abcd"))],
        vec![a_chunk(1, data_kind, &data(99, b"abcdefgh"))],
        vec![a_chunk(1, data_kind, &data(101, b"abcdefgh"))],
        vec![a_chunk(1, hole_kind, &hole(100, 9))],
        vec![a_chunk(1, hole_kind, &hole(u64::MAX, 8))],
        vec![a_chunk(1, data_kind, &[0; 7])],
        vec![a_chunk(1, 77, &hole(100, 8))],
        vec![a_chunk(1, chunk::ERROR, &[0, 0, 0, 5, 0, 0])],
        vec![a_chunk(0, data_kind, &data(100, b"abcdefgh"))],
    ] {
        assert!(read(&wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_status_is_of_the_chosen_context_and_goes_on() {
    let pair = |bytes: u32, flags: u32| [bytes.to_be_bytes(), flags.to_be_bytes()].concat();
    let of = |context: u32, pairs: &[Vec<u8>]| [&context.to_be_bytes()[..], &pairs.concat()].concat();
    let ask = |content: Vec<u8>| connected(&[a_chunk(1, chunk::BLOCK_STATUS, &content)]).status(0, 8192);
    assert_eq!(ask(of(7, &[pair(4096, 1), pair(512, 0)])).unwrap(), [(4096, 1), (512, 0)]);
    for wrong in [of(8, &[pair(4096, 1)]), of(7, &[pair(0, 1)]), of(7, &[]), of(7, &[vec![0; 7]]), vec![0, 0]]
    {
        assert!(ask(wrong.clone()).is_err(), "{wrong:?}");
    }
}
