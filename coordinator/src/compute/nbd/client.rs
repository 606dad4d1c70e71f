//! A client that reads an export, and asks which parts of it a metadata context marks.
//!
//! Owns one connection. Knows neither QEMU nor jobs. Invariants: bytes and marks come out only of whole, well-formed answers to the
//! request that was made; a connection that answered otherwise is not used again. Limits: [`PIECE_BYTES`] per read,
//! [`ANSWER_BYTES_MAX`] per chunk of an answer, [`ANSWER_MAX`] without a byte. All methods block.
//!
//! Format: doc/proto.md of the NetworkBlockDevice project, as far as it takes to read: fixed newstyle, `STRUCTURED_REPLY`,
//! `SET_META_CONTEXT`, `GO`, `READ`, `BLOCK_STATUS`. Integers are big endian.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use holdfast_common::units::{BLOCK_BYTES, BlockRange};

use super::protocol::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, MAGIC_GREETING, MAGIC_OPTION, MAGIC_OPTION_REPLY, MAGIC_REQUEST,
    MAGIC_STRUCTURED_REPLY, chunk, command, info, option, reply,
};
use crate::points::view::{BlockView, ViewError, ViewExtent};

/// Longest silence of the server.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Bytes read by one request.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes asked about by one request: the length has 32 bits.
const STATUS_BYTES: u64 = 1 << 30;
/// Most bytes of a chunk of an answer: more extents than QEMU gives at a time.
const ANSWER_BYTES_MAX: u32 = 32 << 20;

/// An export of a server on a unix socket, opened for reading.
#[derive(Debug)]
pub struct ExportView {
    place: String,
    size_bytes: u64,
    /// `None` once an answer was not whole.
    connection: Mutex<Option<Connection<UnixStream>>>,
}

impl ExportView {
    /// Opens an export; with `context` that metadata context can be [asked for](Self::marked).
    ///
    /// # Errors
    /// Nobody listens, there is no such export or context, or the server does not answer as it should.
    pub fn open(socket: &Path, export: &str, context: Option<&str>) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        let (connection, size_bytes) = Connection::open(stream, export, context)?;
        let place = format!("{export} at {}", socket.display());
        Ok(Self { place, size_bytes, connection: Mutex::new(Some(connection)) })
    }

    /// The blocks that the metadata context has flags for, ascending and apart from each other; those that it has flags for in
    /// part are among them.
    ///
    /// # Errors
    /// The server does not answer as it should, or no context was chosen.
    pub fn marked(&self) -> Result<Vec<BlockRange>, ViewError> {
        let mut marked: Vec<BlockRange> = Vec::new();
        let mut at = 0;
        while at < self.size_bytes {
            let bytes = STATUS_BYTES.min(self.size_bytes - at);
            for (extent_bytes, flags) in self.ask(|connection| connection.status(at, bytes))? {
                let end = (at + u64::from(extent_bytes)).min(self.size_bytes);
                if flags != 0 && end > at {
                    let first = at / BLOCK_BYTES as u64;
                    let range = BlockRange::new(first, end.div_ceil(BLOCK_BYTES as u64) - first);
                    match marked.last_mut().filter(|last| last.end() >= range.start) {
                        Some(last) => last.count.0 = range.end().0 - last.start.0,
                        None => marked.push(range),
                    }
                }
                at = end;
            }
        }
        Ok(marked)
    }

    fn ask<T>(&self, ask: impl FnOnce(&mut Connection<UnixStream>) -> io::Result<T>) -> Result<T, ViewError> {
        let failed = |source| ViewError::Io { place: self.place.clone(), source };
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let open = connection.as_mut().ok_or_else(|| failed(io::ErrorKind::NotConnected.into()))?;
        let answered = ask(open);
        if answered.is_err() {
            *connection = None;
        }
        answered.map_err(failed)
    }
}

impl BlockView for ExportView {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ViewError> {
        let bytes = buffer.len() as u64;
        if offset.checked_add(bytes).is_none_or(|end| end > self.size_bytes) {
            return Err(ViewError::BeyondEnd { offset, bytes });
        }
        let mut at = offset;
        for piece in buffer.chunks_mut(PIECE_BYTES) {
            self.ask(|connection| connection.read(at, piece))?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn extents(&self, range: BlockRange) -> Result<Vec<ViewExtent>, ViewError> {
        Ok(vec![ViewExtent { range, hole: false }])
    }
}

/// A connection in transmission; `S` is its stream.
#[derive(Debug)]
struct Connection<S> {
    stream: S,
    cookie: u64,
    /// Number of the metadata context.
    context: Option<u32>,
}

impl<S: Read + Write> Connection<S> {
    /// Negotiates; the export's size.
    fn open(stream: S, export: &str, context: Option<&str>) -> io::Result<(Self, u64)> {
        let mut this = Self { stream, cookie: 0, context: None };
        let greeted = this.u64()? == MAGIC_GREETING && this.u64()? == MAGIC_OPTION;
        let flags = this.u16()?;
        expect(greeted && flags & FLAG_FIXED_NEWSTYLE != 0, "it does not greet as an NBD server does")?;
        let flags = FLAG_FIXED_NEWSTYLE | (flags & FLAG_NO_ZEROES);
        this.stream.write_all(&u32::from(flags).to_be_bytes())?;
        this.option(option::STRUCTURED_REPLY, &[], |_, _| Ok(()))?;
        let name_bytes = u32::try_from(export.len()).map_err(io::Error::other)?.to_be_bytes();
        let mut name = name_bytes.to_vec();
        name.extend_from_slice(export.as_bytes());
        if let Some(context) = context {
            let mut data = name.clone();
            data.extend_from_slice(&1_u32.to_be_bytes());
            data.extend_from_slice(&u32::try_from(context.len()).map_err(io::Error::other)?.to_be_bytes());
            data.extend_from_slice(context.as_bytes());
            let mut number = None;
            this.option(option::SET_META_CONTEXT, &data, |kind, data| {
                if kind == reply::META_CONTEXT && data.get(4..) == Some(context.as_bytes()) {
                    number = data.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
                }
                Ok(())
            })?;
            expect(number.is_some(), "the export has no such metadata context")?;
            this.context = number;
        }
        let mut size = None;
        name.extend_from_slice(&0_u16.to_be_bytes());
        this.option(option::GO, &name, |kind, data| {
            if kind == reply::INFO && data.starts_with(&info::EXPORT.to_be_bytes()) {
                size = data.get(2..10).and_then(|bytes| bytes.first_chunk().copied()).map(u64::from_be_bytes);
            }
            Ok(())
        })?;
        let size = size.ok_or_else(|| broken("it does not say how large the export is"))?;
        Ok((this, size))
    }

    /// Sends an option, and gives its replies until it is done.
    fn option(
        &mut self,
        number: u32,
        data: &[u8],
        mut each: impl FnMut(u32, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut message = MAGIC_OPTION.to_be_bytes().to_vec();
        message.extend_from_slice(&number.to_be_bytes());
        message.extend_from_slice(&u32::try_from(data.len()).map_err(io::Error::other)?.to_be_bytes());
        message.extend_from_slice(data);
        self.stream.write_all(&message)?;
        loop {
            let known = self.u64()? == MAGIC_OPTION_REPLY && self.u32()? == number;
            let (kind, bytes) = (self.u32()?, self.u32()?);
            expect(known && bytes <= ANSWER_BYTES_MAX, "it answers what was not asked")?;
            let data = self.bytes(bytes)?;
            if kind == reply::ACK {
                return Ok(());
            }
            if kind >> 31 == 1 {
                let said = String::from_utf8_lossy(&data).into_owned();
                return Err(io::Error::other(format!("option {number} is refused ({kind:#x}): {said}")));
            }
            each(kind, &data)?;
        }
    }

    fn request(&mut self, command: u16, offset: u64, bytes: u32) -> io::Result<()> {
        self.cookie += 1;
        let mut message = MAGIC_REQUEST.to_be_bytes().to_vec();
        message.extend_from_slice(&0_u16.to_be_bytes());
        message.extend_from_slice(&command.to_be_bytes());
        message.extend_from_slice(&self.cookie.to_be_bytes());
        message.extend_from_slice(&offset.to_be_bytes());
        message.extend_from_slice(&bytes.to_be_bytes());
        self.stream.write_all(&message)
    }

    /// One chunk of the answer: whether it is the last, its type, and how many bytes of content follow.
    fn chunk(&mut self) -> io::Result<(bool, u16, u32)> {
        let magic = self.u32()?;
        let (flags, kind, cookie, bytes) = (self.u16()?, self.u16()?, self.u64()?, self.u32()?);
        let known = magic == MAGIC_STRUCTURED_REPLY && cookie == self.cookie;
        expect(known && bytes <= ANSWER_BYTES_MAX, "it answers what was not asked")?;
        if kind >> 15 == 1 {
            let content = self.bytes(bytes)?;
            let error = content.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
            return Err(io::Error::from_raw_os_error(i32::try_from(error).unwrap_or(libc::EIO)));
        }
        Ok((flags & chunk::FLAG_DONE != 0, kind, bytes))
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.request(command::READ, offset, u32::try_from(buffer.len()).map_err(io::Error::other)?)?;
        let (mut filled, mut done) = (0, false);
        while !done {
            let (last, kind, bytes) = self.chunk()?;
            done = last;
            if kind == chunk::NONE {
                expect(bytes == 0, "an empty chunk is not empty")?;
                continue;
            }
            let data = kind == chunk::OFFSET_DATA && bytes >= 8;
            expect(data || (kind == chunk::OFFSET_HOLE && bytes == 12), "it answers a read otherwise")?;
            let at = self.u64()?.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
            let count = if data { bytes - 8 } else { self.u32()? };
            let end = at.and_then(|at| at.checked_add(count as usize));
            let part = at.zip(end).and_then(|(at, end)| buffer.get_mut(at..end));
            let part = part.ok_or_else(|| broken("it gives bytes that were not asked for"))?;
            if data {
                self.stream.read_exact(part)?;
            } else {
                part.fill(0);
            }
            filled += part.len();
        }
        // Parts may not overlap, so what is as long as the whole is the whole.
        expect(filled == buffer.len(), "it does not give all that was asked for")
    }

    /// Extents from `offset` on: how many bytes, and their flags. At least one, and none of them empty.
    fn status(&mut self, offset: u64, bytes: u64) -> io::Result<Vec<(u32, u32)>> {
        let context = self.context.ok_or_else(|| broken("no metadata context was chosen"))?;
        self.request(command::BLOCK_STATUS, offset, u32::try_from(bytes).map_err(io::Error::other)?)?;
        let (mut extents, mut done) = (Vec::new(), false);
        while !done {
            let (last, kind, bytes) = self.chunk()?;
            done = last;
            let content = self.bytes(bytes)?;
            if kind == chunk::NONE {
                continue;
            }
            let of = content.split_first_chunk().map(|(number, rest)| (u32::from_be_bytes(*number), rest));
            let (number, rest) = of.ok_or_else(|| broken("a status without a context"))?;
            expect(kind == chunk::BLOCK_STATUS && number == context, "it answers a status otherwise")?;
            let (pairs, left) = rest.as_chunks::<8>();
            expect(left.is_empty(), "a status that ends in the middle")?;
            for pair in pairs {
                let [a, b, c, d, e, f, g, h] = *pair;
                let (length, flags) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
                expect(length > 0, "an extent without bytes")?;
                extents.push((length, flags));
            }
        }
        expect(!extents.is_empty(), "a status without extents")?;
        Ok(extents)
    }

    fn bytes(&mut self, count: u32) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        (&mut self.stream).take(u64::from(count)).read_to_end(&mut bytes)?;
        expect(bytes.len() == count as usize, "the connection ends in the middle of an answer")?;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u16(&mut self) -> io::Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the NBD server cannot be used: {what}"))
}

fn expect(held: bool, what: &str) -> io::Result<()> {
    if held { Ok(()) } else { Err(broken(what)) }
}

#[cfg(test)]
mod tests;
