//! The transmission phase of one connection, on threads.
//!
//! Owns the connection's socket from the end of negotiation on. A few threads take turns: one takes the next request,
//! hands the reading on and serves its request to the end, answer included. Of short reads that have come in together it takes
//! its share at once and answers them with one system call. What a write brings goes into the thread's own buffer, piece by
//! piece if it is longer, each written before the next one is taken. So no request crosses a queue, what is in flight is bounded
//! by the number of threads, and each thread reuses one buffer. Knows no listening and no set of exports.
//! Invariant: chunks of different replies may interleave, bytes of one chunk never do (the writing lock).
//! Limits: `Settings::threads_per_connection_max` turns of `TURN_REQUESTS_MAX` requests in flight; memory of
//! `BATCH_BYTES` per thread, and `REQUEST_BYTES_MAX` once per connection for clients without structured replies.

use std::{
    io::{self, IoSlice, Read as _, Write as _},
    net::Shutdown,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use socket2::Socket;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{
    handshake::Agreement,
    pieces,
    protocol::{REQUEST_BYTES_MAX, command, command_flag, error},
    reply::Batch,
    server::DamageSink,
    transmission::{self, Action, REQUEST_HEADER_BYTES, Request, Terms},
};
use crate::{
    compute::branch::{Branch, WriteError},
    points::view::BlockView,
};

/// What a connection serves.
pub(super) struct Exported {
    pub(super) view: Arc<dyn BlockView>,
    /// The same, if it can be written to.
    pub(super) branch: Option<Arc<Branch>>,
    pub(super) alarm: Arc<dyn DamageSink>,
}

/// A connection in transmission.
pub(super) struct Connection {
    socket: Socket,
    agreement: Agreement,
    view: Arc<dyn BlockView>,
    /// The same, if it can be written to.
    branch: Option<Arc<Branch>>,
    alarm: Arc<dyn DamageSink>,
    threads_max: usize,
    /// Held by the thread that reads the next request.
    input: Mutex<Input>,
    /// Held while a chunk is written.
    output: Mutex<()>,
    /// For long reads without structured replies; one at a time.
    long_buffer: Mutex<Vec<u8>>,
    threads: AtomicUsize,
    threads_idle: AtomicUsize,
    ended: AtomicBool,
    /// Dropped with the last thread: the export learns that nobody reads it any more, and the place becomes free.
    _over: (mpsc::Sender<()>, OwnedSemaphorePermit),
}

impl Connection {
    /// Takes over a blocking socket whose negotiation is done; `input` is what was read too far.
    pub(super) fn new(
        socket: Socket,
        agreement: Agreement,
        Exported { view, branch, alarm }: Exported,
        (threads_max, input): (usize, Vec<u8>),
        over: (mpsc::Sender<()>, OwnedSemaphorePermit),
    ) -> Arc<Self> {
        Arc::new(Self {
            socket,
            agreement,
            view,
            branch,
            alarm,
            threads_max,
            input: Mutex::new(Input { bytes: input, start: 0 }),
            output: Mutex::new(()),
            long_buffer: Mutex::new(Vec::new()),
            threads: AtomicUsize::new(0),
            threads_idle: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            _over: over,
        })
    }

    /// Starts the first thread; more follow as requests overlap.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start(self: &Arc<Self>) -> io::Result<()> {
        self.threads.fetch_add(1, Ordering::AcqRel);
        self.threads_idle.fetch_add(1, Ordering::AcqRel);
        let connection = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name("nbd".into())
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || connection.run_thread());
        if spawned.is_err() {
            self.threads.fetch_sub(1, Ordering::AcqRel);
            self.threads_idle.fetch_sub(1, Ordering::AcqRel);
        }
        spawned.map(drop)
    }

    /// Breaks the connection off; its threads end.
    pub(super) fn break_off(&self) {
        self.ended.store(true, Ordering::Release);
        // It may be closed already.
        let _closed = self.socket.shutdown(Shutdown::Both);
    }

    fn run_thread(self: &Arc<Self>) {
        let (mut batch, mut requests) = (Batch::default(), Vec::with_capacity(TURN_REQUESTS_MAX));
        loop {
            match self.next_requests(&mut requests, &mut batch) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::debug!(%error, export = self.agreement.export, "NBD connection ended");
                    break;
                }
            }
            self.keep_one_reading();
            if let Err(error) = self.serve_all(&requests, &mut batch) {
                tracing::debug!(%error, export = self.agreement.export, "NBD answer could not be sent");
                self.break_off();
            }
            self.threads_idle.fetch_add(1, Ordering::AcqRel);
        }
        self.ended.store(true, Ordering::Release);
        self.threads_idle.fetch_sub(1, Ordering::AcqRel);
        if self.threads.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _closed = self.socket.shutdown(Shutdown::Both);
        }
    }

    /// Sees to it that another thread reads on while this one serves.
    fn keep_one_reading(self: &Arc<Self>) {
        let idle_before = self.threads_idle.fetch_sub(1, Ordering::AcqRel);
        if idle_before == 1 && self.threads.load(Ordering::Acquire) < self.threads_max {
            // Without it the requests are served one after the other; nothing is lost.
            if let Err(error) = self.start() {
                tracing::warn!(%error, "no further thread for an NBD connection");
            }
        }
    }

    /// Takes the next request that needs an answer, and this thread's share of the short reads that came in right behind
    /// it. `false` when the client has gone or said goodbye.
    fn next_requests(&self, requests: &mut Vec<Request>, batch: &mut Batch) -> io::Result<bool> {
        requests.clear();
        let mut input = lock(&self.input);
        if self.ended.load(Ordering::Acquire) {
            return Ok(false);
        }
        match self.read_request(&mut input, batch) {
            Ok(Some(request)) => requests.push(request),
            other => {
                // Seen by the next thread before it would read on.
                self.ended.store(true, Ordering::Release);
                return other.map(|_| false);
            }
        }
        if self.agreement.structured_replies && requests.iter().all(is_short_read) {
            // Half of them: two threads keep the client busy, and what is slow for one is not slow for all.
            let share = (input.headers() / 2).min(TURN_REQUESTS_MAX - 1);
            requests.extend(std::iter::from_fn(|| input.next_if(is_short_read)).take(share));
        }
        Ok(true)
    }

    /// Reads a request; what it brings is written, but for the last piece, which is left in the batch's buffer for
    /// [`write`](Self::write).
    fn read_request(&self, input: &mut Input, batch: &mut Batch) -> io::Result<Option<Request>> {
        let Some(header) = input.header(&self.socket)? else { return Ok(None) };
        let request = transmission::decode(&header).map_err(io::Error::other)?;
        let payload = transmission::payload_bytes(request).map_err(io::Error::other)?;
        match &self.branch {
            Some(branch) if transmission::check(request, self.terms()) == Action::Write => {
                batch.written = Ok(());
                let (mut offset, mut left) = (request.offset, payload);
                while left > 0 {
                    let part = left.min(BATCH_BYTES);
                    let buffer = batch.buffer().get_mut(..part).unwrap_or_default();
                    input.take(&self.socket, buffer)?;
                    left -= part;
                    if left > 0 && batch.written.is_ok() {
                        let buffer = batch.buffer().get(..part).unwrap_or_default();
                        batch.written = branch.write(offset, buffer);
                        offset += part as u64;
                    }
                }
            }
            _ => input.skip(&self.socket, payload)?,
        }
        Ok((request.command != command::DISCONNECT).then_some(request))
    }

    fn serve_all(&self, requests: &[Request], batch: &mut Batch) -> io::Result<()> {
        batch.clear();
        for request in requests {
            self.serve(*request, batch)?;
        }
        self.flush(batch)
    }

    /// Serves a request; the end of its answer may stay in the batch.
    fn serve(&self, request: Request, batch: &mut Batch) -> io::Result<()> {
        let structured_replies = self.agreement.structured_replies;
        match transmission::check(request, self.terms()) {
            Action::Write => {
                let written = self.write(request, batch);
                self.answer_change(request, written)
            }
            Action::Zero => {
                let keep_space = request.flags & command_flag::NO_HOLE != 0;
                let zero = |branch: &Branch| {
                    branch.write_zeroes(request.offset, u64::from(request.length), keep_space)
                };
                self.answer_change(request, self.branch.as_deref().map_or(Ok(()), zero))
            }
            Action::Flush => {
                let flushed = self.branch.as_deref().map_or(Ok(()), Branch::flush);
                self.answer_change(request, flushed)
            }
            Action::Read if structured_replies => self.read_structured(request, batch),
            Action::Read => self.read_simple(request, batch),
            Action::BlockStatus => self.block_status(request, batch),
            Action::Succeed => self.send_simple(request.cookie, 0),
            Action::Refuse(number, text) if structured_replies && request.command == command::READ => {
                batch.begin_reply();
                batch.error(request.cookie, number, text, None);
                batch.mark_done(request.cookie);
                Ok(())
            }
            Action::Refuse(number, _) => self.send_simple(request.cookie, number),
            Action::Disconnect => Ok(()),
        }
    }

    fn terms(&self) -> Terms {
        let Agreement { structured_replies, allocation_context, .. } = self.agreement;
        let (size_bytes, writable) = (self.view.size_bytes(), self.branch.is_some());
        Terms { size_bytes, writable, structured: structured_replies, allocation_context }
    }

    /// Writes the last piece of what a request brought.
    fn write(&self, request: Request, batch: &mut Batch) -> Result<(), WriteError> {
        std::mem::replace(&mut batch.written, Ok(()))?;
        let Some(branch) = &self.branch else { return Ok(()) };
        let length = request.length as usize;
        // All pieces but the last one are full.
        let before = (length - 1) / BATCH_BYTES * BATCH_BYTES;
        let piece = batch.buffer().get(..length - before).unwrap_or_default();
        branch.write(request.offset + before as u64, piece)
    }

    /// Answers a change, made durable first if the client wants that.
    fn answer_change(&self, request: Request, made: Result<(), WriteError>) -> io::Result<()> {
        let wants_durable = request.flags & command_flag::FUA != 0;
        let made = made.and_then(|()| match &self.branch {
            Some(branch) if wants_durable => branch.flush(),
            _ => Ok(()),
        });
        let Err(error) = made else { return self.send_simple(request.cookie, 0) };
        self.alarm.cannot_write(&self.agreement.export, &error);
        let number = match error {
            WriteError::NoSpace { .. } => error::NO_SPACE,
            WriteError::BeyondEnd { .. } => error::INVALID,
            WriteError::Sealed { .. } => error::PERMISSION,
            WriteError::View(_) | WriteError::Io { .. } | WriteError::Failed { .. } => error::IO,
        };
        self.send_simple(request.cookie, number)
    }

    /// Answers in chunks: data, holes, and an error for each range that cannot be read.
    fn read_structured(&self, request: Request, batch: &mut Batch) -> io::Result<()> {
        batch.begin_reply();
        let end = request.offset + u64::from(request.length);
        let whole = request.flags & command_flag::DONT_FRAGMENT != 0 || request.length < EXTENTS_BYTES_MIN;
        let mut position = request.offset;
        while position < end {
            let parts = if whole {
                vec![(position..end, false)]
            } else {
                // A broken index shows as damage when the data is read.
                pieces::extents_of(self.view.as_ref(), &(position..end))
                    .unwrap_or_else(|_| vec![(position..end, false)])
            };
            for (mut part, hole) in parts {
                position = part.end;
                if hole {
                    batch.hole(request.cookie, part);
                    continue;
                }
                while part.start < part.end {
                    if batch.is_full() {
                        self.flush(batch)?;
                    }
                    let step = part.start..part.end.min(part.start + batch.room());
                    part.start = step.end;
                    batch.read(request.cookie, self.view.as_ref(), step, |failure| self.report(failure));
                }
            }
        }
        batch.mark_done(request.cookie);
        Ok(())
    }

    /// Answers with all bytes or, since the protocol has nothing finer here, one error for all.
    fn read_simple(&self, request: Request, batch: &mut Batch) -> io::Result<()> {
        if request.length as usize <= BATCH_BYTES {
            return self.read_simple_into(request, batch.buffer());
        }
        let mut buffer = lock(&self.long_buffer);
        if buffer.is_empty() {
            buffer.resize(REQUEST_BYTES_MAX as usize, 0);
        }
        self.read_simple_into(request, &mut buffer)
    }

    fn read_simple_into(&self, request: Request, buffer: &mut [u8]) -> io::Result<()> {
        let Some(buffer) = buffer.get_mut(..request.length as usize) else {
            return self.send_simple(request.cookie, error::INVALID);
        };
        let failures = pieces::read_around_damage(self.view.as_ref(), request.offset, buffer);
        failures.iter().for_each(|failure| self.report(failure));
        if !failures.is_empty() {
            return self.send_simple(request.cookie, error::IO);
        }
        let header = transmission::simple_header(request.cookie, 0);
        self.write_all(&mut [IoSlice::new(&header), IoSlice::new(buffer)])
    }

    fn block_status(&self, request: Request, batch: &mut Batch) -> io::Result<()> {
        batch.begin_reply();
        let one = request.flags & command_flag::REQUEST_ONE != 0;
        let end = request.offset + u64::from(request.length);
        match block_status_extents(self.view.as_ref(), request.offset..end, one) {
            Ok(extents) => batch.block_status(request.cookie, &extents),
            Err(failure) => {
                self.report(&pieces::Failure { range: request.offset..end, error: failure });
                batch.error(request.cookie, error::IO, "the index cannot be read", None);
            }
        }
        batch.mark_done(request.cookie);
        Ok(())
    }

    fn report(&self, failure: &pieces::Failure) {
        self.alarm.cannot_read(&self.agreement.export, failure.range.clone(), &failure.error);
    }

    fn send_simple(&self, cookie: u64, number: u32) -> io::Result<()> {
        self.write_all(&mut [IoSlice::new(&transmission::simple_header(cookie, number))])
    }

    /// Sends what the batch holds.
    fn flush(&self, batch: &mut Batch) -> io::Result<()> {
        self.write_all(&mut batch.slices())?;
        batch.clear();
        Ok(())
    }

    fn write_all(&self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let _turn = lock(&self.output);
        while !slices.is_empty() {
            let some = slices.len().min(SLICES_MAX);
            let written = (&self.socket).write_vectored(slices.get(..some).unwrap_or_default());
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => IoSlice::advance_slices(&mut slices, bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Extents with their flags, merged, at most [`STATUS_EXTENTS_MAX`]; they may cover less than was asked for.
fn block_status_extents(
    view: &dyn BlockView,
    range: std::ops::Range<u64>,
    one: bool,
) -> Result<Vec<(u32, u32)>, crate::points::view::ViewError> {
    let mut extents: Vec<(u32, u32)> = Vec::new();
    let mut position = range.start;
    'all: while position < range.end {
        for (part, hole) in pieces::extents_of(view, &(position..range.end))? {
            let flags = if hole { super::protocol::EXTENT_HOLE } else { 0 };
            // The request's length is 32 bits wide, so its parts are too.
            let bytes = u32::try_from(part.end - part.start).unwrap_or(u32::MAX);
            position = part.end;
            let full = one || extents.len() == STATUS_EXTENTS_MAX;
            match extents.last_mut() {
                Some((last, last_flags)) if *last_flags == flags => *last += bytes,
                Some(_) if full => break 'all,
                _ => extents.push((bytes, flags)),
            }
        }
    }
    Ok(extents)
}

/// Bytes received and not yet understood.
struct Input {
    bytes: Vec<u8>,
    start: usize,
}

impl Input {
    /// The next header; `None` at a clean end.
    fn header(&mut self, socket: &Socket) -> io::Result<Option<[u8; REQUEST_HEADER_BYTES]>> {
        loop {
            let rest = self.bytes.get(self.start..).unwrap_or_default();
            if let Some(header) = rest.first_chunk() {
                let header = *header;
                self.start += REQUEST_HEADER_BYTES;
                return Ok(Some(header));
            }
            let clean = rest.is_empty();
            if self.fill(socket)? == 0 {
                return if clean { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Whole headers that are here already.
    fn headers(&self) -> usize {
        (self.bytes.len() - self.start) / REQUEST_HEADER_BYTES
    }

    /// The next request, if it is here already and fits.
    fn next_if(&mut self, fits: impl Fn(&Request) -> bool) -> Option<Request> {
        let header = self.bytes.get(self.start..)?.first_chunk()?;
        let request = transmission::decode(header).ok().filter(fits)?;
        self.start += REQUEST_HEADER_BYTES;
        Some(request)
    }

    /// Fills `buffer`.
    fn take(&mut self, mut socket: &Socket, buffer: &mut [u8]) -> io::Result<()> {
        let here = self.bytes.get(self.start..).unwrap_or_default();
        let count = here.len().min(buffer.len());
        let (front, rest) = buffer.split_at_mut(count);
        front.copy_from_slice(here.get(..count).unwrap_or_default());
        self.start += count;
        // Not through the small buffer: each byte is copied once.
        socket.read_exact(rest)
    }

    /// Reads over `count` bytes.
    fn skip(&mut self, socket: &Socket, mut count: usize) -> io::Result<()> {
        loop {
            let here = count.min(self.bytes.len() - self.start);
            self.start += here;
            count -= here;
            if count == 0 {
                return Ok(());
            }
            if self.fill(socket)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Moves the rest to the front and appends what the socket has.
    fn fill(&mut self, mut socket: &Socket) -> io::Result<usize> {
        self.bytes.drain(..self.start);
        self.start = 0;
        let filled = self.bytes.len();
        self.bytes.resize(filled + INPUT_BYTES, 0);
        let result = loop {
            match socket.read(self.bytes.get_mut(filled..).unwrap_or_default()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.bytes.truncate(filled + result.as_ref().copied().unwrap_or(0));
        result
    }
}

/// Whether a request is a read that is worth answering together with others.
fn is_short_read(request: &Request) -> bool {
    request.command == command::READ && request.length <= SHORT_READ_BYTES_MAX
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of data that one thread collects before it sends them.
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// Requests that a thread takes at a time, and the longest read of which it takes more than one.
const TURN_REQUESTS_MAX: usize = 16;
const SHORT_READ_BYTES_MAX: u32 = 64 << 10;
const _: () =
    assert!(TURN_REQUESTS_MAX * SHORT_READ_BYTES_MAX as usize <= BATCH_BYTES, "no read of a turn is split");
/// Reads shorter than this are not asked about holes: filling zeroes costs less than the question.
const EXTENTS_BYTES_MIN: u32 = 64 << 10;
/// Extents in one answer to block status.
const STATUS_EXTENTS_MAX: usize = 4096;
/// Bytes asked of the socket at once: room for over a hundred requests.
const INPUT_BYTES: usize = 4096;
/// Slices in one system call (the system's limit is 1024).
const SLICES_MAX: usize = 512;
/// Stack of a thread; views may decompress on it.
const THREAD_STACK_BYTES: usize = 512 << 10;
