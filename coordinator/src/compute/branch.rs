//! A writable branch of a view: what was written lies in a file, everything else is read from the view.
//!
//! Owns that file and the map of the blocks in it. Knows neither NBD nor jobs. Invariants: a write that returned survives the
//! end of this program; one that a [`Branch::flush`] followed survives power loss; after a loss of power any other block reads
//! as before or as it was written, never as anything else. [`Branch::written`] names every block that can
//! differ from the view: what a way back has to move.
//! Limits: the map takes one bit per block in memory, and twice that in the file; the file grows with what is written only.
//!
//! # Format (version 1; integers are little endian)
//!
//! | offset | bytes | meaning |
//! |---|---|---|
//! | 0 | 8 | `HFBRANCH` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | turn: which change of its job's point it belongs to |
//! | 16 | 16 | the point |
//! | 32 | 8 | size of the disk in bytes |
//! | 40 | 40 | identity of the boot in which the live map holds, as text, filled up with zeroes |
//! | 80 | 16 | first half of the BLAKE3 digest of bytes 0 to 79 |
//! | 4096 | M | live map: bit `n % 64` of the 8-byte word `n / 64` is set if block `n` is in this file; M is a multiple of 4096 |
//! | 4096 + M | M | durable map |
//! | 4096 + 2 M | size | the disk's bytes; only those of blocks in the map mean anything |
//!
//! The live map is written before a write returns and never synced: it is right as long as the system's own memory
//! lives, which is what the boot says. In another boot the durable map is taken, into which bits come only after the
//! blocks' bytes were synced. Bits are only ever set, so a torn word is of no consequence. The file is made under another
//! name, so one whose header is not whole was damaged: a reader refuses it. Other versions are refused too.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use holdfast_common::{
    durable,
    ids::PointId,
    units::{BLOCK_BYTES, BlockCount, BlockIndex, BlockRange},
};
use rustix::{fs::FallocateFlags, io::Errno};
use thiserror::Error;

use crate::{
    compute::port::ComputeError,
    points::view::{BlockView, ViewError, ViewExtent},
};

/// Where a branch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The point.
    pub point: PointId,
    /// Which change of its job's point this is. One that is there of another turn, or of another point, is begun anew.
    /// `None` if it must be there already: it is never begun anew then.
    pub turn: Option<u32>,
}

/// A branch. All methods block; callers run them on a pool.
#[derive(Debug)]
pub struct Branch {
    path: PathBuf,
    file: File,
    base: Arc<dyn BlockView>,
    layout: Layout,
    map: RwLock<Map>,
    /// Shared by writes, held alone by those that first have to fetch the rest of a block from the view.
    gate: RwLock<()>,
    /// Held by the flush that is under way.
    flushing: Mutex<()>,
    /// A sync failed: nothing is known of what the file holds durably.
    failed: AtomicBool,
    /// Nothing may be written any more. Changed only while the gate is held alone.
    sealed: AtomicBool,
    /// Blocks written since they were last taken, if somebody takes them: bit `n % 64` of word `n / 64`.
    changed: Mutex<Option<Vec<u64>>>,
}

/// Writes to a branch wait while this lives.
#[derive(Debug)]
#[must_use = "writes go on when it is dropped"]
pub struct HeldWrites<'branch>(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'branch, ()>);

/// A change was not made, or not made durable.
#[derive(Debug, Error)]
pub enum WriteError {
    /// No space is left for it.
    #[error("no space is left for {}; make room, then write again", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
    },
    /// It is not on the disk.
    #[error("range {offset}+{bytes} is beyond the end of the disk")]
    BeyondEnd {
        /// First byte.
        offset: u64,
        /// Bytes.
        bytes: u64,
    },
    /// Part of a block was to be written and the rest of it cannot be read.
    #[error("the rest of a block that was to be written cannot be read")]
    View(#[source] ViewError),
    /// The system refused.
    #[error("cannot write {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// An earlier sync failed.
    #[error("an earlier sync of {} failed: what it holds durably is not known; restart the coordinator", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
    },
    /// Its machine has gone back to its source.
    #[error("{} takes no more writes: the machine is on its way back to its source, or there already", path.display())]
    Sealed {
        /// The file.
        path: PathBuf,
    },
}

/// Where things are in the file.
#[derive(Clone, Copy, Debug)]
struct Layout {
    size_bytes: u64,
    map_bytes: u64,
}

impl Layout {
    fn of(size_bytes: u64) -> Self {
        let words = BlockCount::covering(size_bytes).0.div_ceil(64);
        Self { size_bytes, map_bytes: (words * 8).next_multiple_of(BLOCK_BYTES as u64) }
    }

    const fn live(self) -> u64 {
        BLOCK_BYTES as u64
    }

    const fn durable(self) -> u64 {
        self.live() + self.map_bytes
    }

    const fn data(self) -> u64 {
        self.durable() + self.map_bytes
    }
}

/// Which blocks are in the file.
#[derive(Debug, Default)]
struct Map {
    words: Vec<u64>,
    /// Words with bits that the durable map does not have.
    unsaved: BTreeSet<usize>,
}

impl Map {
    fn has(&self, block: u64) -> bool {
        let word = usize::try_from(block / 64).ok().and_then(|word| self.words.get(word));
        word.is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    /// Whether `block` is in the file, and the end of the blocks from it on, below `end`, of which the same is true.
    fn run(&self, block: u64, end: u64) -> (bool, u64) {
        let has = self.has(block);
        let mut next = block + 1;
        while next < end {
            let word = usize::try_from(next / 64).ok().and_then(|word| self.words.get(word)).copied();
            // Ones where it is otherwise; the lowest of them ends the run.
            let other = if has { !word.unwrap_or(0) } else { word.unwrap_or(0) } >> (next % 64);
            if other != 0 {
                return (has, (next + u64::from(other.trailing_zeros())).min(end));
            }
            next = (next / 64 + 1) * 64;
        }
        (has, end)
    }
}

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    turn: u32,
    point: PointId,
    size_bytes: u64,
    boot: String,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut boot = [0; BOOT_BYTES];
        for (to, from) in boot.iter_mut().zip(self.boot.bytes()) {
            *to = from;
        }
        let fields = MAGIC
            .into_iter()
            .chain(VERSION.to_le_bytes())
            .chain(self.turn.to_le_bytes())
            .chain(self.point.into_bytes())
            .chain(self.size_bytes.to_le_bytes())
            .chain(boot);
        for (to, from) in bytes.iter_mut().zip(fields) {
            *to = from;
        }
        let (body, digest) = bytes.split_at_mut(HEADER_BODY_BYTES);
        for (to, from) in digest.iter_mut().zip(blake3::hash(body).as_bytes()) {
            *to = *from;
        }
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let (body, digest) = bytes.split_at_checked(HEADER_BODY_BYTES)?;
        if blake3::hash(body).as_bytes().get(..digest.len())? != digest {
            return None;
        }
        let (magic, rest) = body.split_first_chunk::<8>()?;
        let (version, rest) = rest.split_first_chunk()?;
        let (turn, rest) = rest.split_first_chunk()?;
        let (point, rest) = rest.split_first_chunk()?;
        let (size, boot) = rest.split_first_chunk()?;
        if *magic != MAGIC || u32::from_le_bytes(*version) != VERSION {
            return None;
        }
        let boot = boot.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Self {
            turn: u32::from_le_bytes(*turn),
            point: PointId::from_bytes(*point),
            size_bytes: u64::from_le_bytes(*size),
            boot: std::str::from_utf8(boot).ok()?.to_owned(),
        })
    }
}

impl Branch {
    /// Opens the branch in this file, or begins it. `boot` is the identity of the system's present boot; empty if it is not
    /// known, which is taken for another one each time.
    ///
    /// # Errors
    /// The file cannot be made, read or synced, is damaged, or had to be there and is not.
    pub fn open(
        path: &Path,
        origin: Origin,
        base: Arc<dyn BlockView>,
        boot: &str,
    ) -> Result<Self, ComputeError> {
        let failed = |action| move |source| ComputeError::Io { action, path: path.into(), source };
        let invalid = |detail: String| ComputeError::Invalid { detail };
        let boot: String = boot.chars().filter(char::is_ascii_graphic).take(BOOT_BYTES).collect();
        let layout = Layout::of(base.size_bytes());
        let found = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("open")(error)),
        };
        if let Some(file) = found {
            let mut bytes = [0; HEADER_BYTES];
            file.read_exact_at(&mut bytes, 0).map_err(failed("read"))?;
            let header = Header::decode(&bytes).filter(|header| header.size_bytes == layout.size_bytes);
            let Some(header) = header else {
                return Err(invalid(format!(
                    "{} is damaged, or of another version of Holdfast: what was written to the disk is in it; put it \
                     right and retry, or cancel the job, which gives it up",
                    path.display()
                )));
            };
            if header.point == origin.point && origin.turn.is_none_or(|turn| turn == header.turn) {
                let map = read_map(&file, layout, header, &boot).map_err(failed("read"))?;
                return Ok(Self::new(path, file, base, layout, map));
            }
        }
        let Some(turn) = origin.turn else {
            return Err(invalid(format!(
                "what was written to the disk since the failover is not in {} any more; bring the file back and retry, or \
                 cancel the job, which gives it up",
                path.display()
            )));
        };
        let header = Header { turn, point: origin.point, size_bytes: layout.size_bytes, boot };
        let file = create(path, layout, &header).map_err(failed("create"))?;
        let words = vec![0; usize::try_from(layout.map_bytes / 8).unwrap_or(usize::MAX)];
        Ok(Self::new(path, file, base, layout, Map { words, unsaved: BTreeSet::new() }))
    }

    fn new(path: &Path, file: File, base: Arc<dyn BlockView>, layout: Layout, map: Map) -> Self {
        Self {
            path: path.into(),
            file,
            base,
            layout,
            map: RwLock::new(map),
            gate: RwLock::default(),
            flushing: Mutex::default(),
            failed: AtomicBool::new(false),
            sealed: AtomicBool::new(false),
            changed: Mutex::default(),
        }
    }

    /// From now on the blocks that are written are remembered for [`take_changed`](Self::take_changed); what was remembered
    /// before is forgotten.
    pub fn track(&self) {
        let words = usize::try_from(self.layout.map_bytes / 8).unwrap_or(usize::MAX);
        *lock(&self.changed) = Some(vec![0; words]);
    }

    /// The blocks that were written since they were last taken, ascending and apart from each other. One whose write is
    /// under way may be among them, and is there again once that is done: taken while [writes are held](Self::hold), they
    /// and no others differ from what was read of the branch after they were taken before. Empty without
    /// [`track`](Self::track).
    #[must_use]
    pub fn take_changed(&self) -> Vec<BlockRange> {
        let mut changed = lock(&self.changed);
        let mut taken: Vec<BlockRange> = Vec::new();
        for (at, word) in changed.iter_mut().flatten().enumerate().filter(|(_, word)| **word != 0) {
            let mut bits = std::mem::take(word);
            while bits != 0 {
                let from = bits.trailing_zeros();
                let count = (bits >> from).trailing_ones();
                let start = at as u64 * 64 + u64::from(from);
                match taken.last_mut().filter(|last| last.end().0 == start) {
                    Some(last) => last.count.0 += u64::from(count),
                    None => taken.push(BlockRange::new(start, u64::from(count))),
                }
                bits &= (u64::MAX << from).checked_shl(count).unwrap_or(0);
            }
        }
        taken
    }

    /// Has writes wait until the guard is dropped; none is under way when this returns. Blocks for as long as a write takes.
    pub fn hold(&self) -> HeldWrites<'_> {
        HeldWrites(self.gate.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on every write fails, or with `false` none does any more. None is under way when this returns.
    pub fn seal(&self, sealed: bool) {
        let _alone = self.hold();
        self.sealed.store(sealed, Ordering::Release);
    }

    /// Whether every write fails.
    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    /// The blocks that were written, ascending and apart from each other. All others are as the view has them.
    #[must_use]
    pub fn written(&self) -> Vec<BlockRange> {
        let (map, end) = (self.map(), BlockCount::covering(self.layout.size_bytes).0);
        let (mut written, mut block) = (Vec::new(), 0);
        while block < end {
            let (has, next) = map.run(block, end);
            if has {
                written.push(BlockRange::new(block, next - block));
            }
            block = next;
        }
        written
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// They were not written, or in part.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), WriteError> {
        self.change(offset, bytes.len() as u64, || self.file.write_all_at(bytes, self.layout.data() + offset))
    }

    /// Writes zeroes. With `keep_space` the file keeps space for the range, else it gives it up.
    ///
    /// # Errors
    /// They were not written, or in part.
    pub fn write_zeroes(&self, offset: u64, bytes: u64, keep_space: bool) -> Result<(), WriteError> {
        let how = if keep_space { FallocateFlags::ZERO_RANGE } else { FallocateFlags::PUNCH_HOLE };
        self.change(offset, bytes, || {
            let place = self.layout.data() + offset;
            match rustix::fs::fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, place, bytes) {
                Err(Errno::OPNOTSUPP) => {}
                done => return Ok(done?),
            }
            let zeroes = [0; ZEROES_BYTES];
            let mut done = 0;
            while done < bytes {
                let part = usize::try_from(bytes - done).unwrap_or(usize::MAX).min(ZEROES_BYTES);
                self.file.write_all_at(zeroes.get(..part).unwrap_or_default(), place + done)?;
                done += part as u64;
            }
            Ok(())
        })
    }

    /// Makes everything durable that was written before.
    ///
    /// # Errors
    /// It may not be durable. After a failed sync every further write and flush fails.
    pub fn flush(&self) -> Result<(), WriteError> {
        let _one = lock(&self.flushing);
        self.check_failed()?;
        let words: Vec<(usize, u64)> = {
            let mut map = self.map_mut();
            let unsaved = std::mem::take(&mut map.unsaved);
            unsaved.into_iter().filter_map(|at| Some((at, *map.words.get(at)?))).collect()
        };
        // The blocks first: a bit of the durable map says that they are there.
        self.sync()?;
        if words.is_empty() {
            return Ok(());
        }
        for (at, word) in &words {
            let place = self.layout.durable() + *at as u64 * 8;
            if let Err(error) = self.file.write_all_at(&word.to_le_bytes(), place) {
                self.map_mut().unsaved.extend(words.iter().map(|(at, _)| *at));
                return Err(self.io_failed(error));
            }
        }
        self.sync()
    }

    fn sync(&self) -> Result<(), WriteError> {
        durable::sync_data(&self.file).map_err(|source| {
            self.failed.store(true, Ordering::Release);
            self.io_failed(source)
        })
    }

    /// Has `put` change a range of the file, whose blocks belong to the branch from then on.
    fn change(
        &self,
        offset: u64,
        bytes: u64,
        put: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), WriteError> {
        self.check_failed()?;
        let end = offset.checked_add(bytes).filter(|end| *end <= self.layout.size_bytes);
        let Some(end) = end else { return Err(WriteError::BeyondEnd { offset, bytes }) };
        if bytes == 0 {
            return Ok(());
        }
        let blocks = BlockRange::covering(offset, bytes);
        let (shared, alone);
        if self.edges(blocks, offset, end).is_empty() {
            // Nothing but a write adds blocks and nothing takes them out, so this stays true.
            shared = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            let _held = &shared;
            return self.put(blocks, put);
        }
        alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let _held = &alone;
        for block in self.edges(blocks, offset, end) {
            self.fetch(block)?;
        }
        self.put(blocks, put)
    }

    /// Called with the gate held, shared or alone.
    fn put(&self, blocks: BlockRange, put: impl FnOnce() -> io::Result<()>) -> Result<(), WriteError> {
        if self.sealed.load(Ordering::Acquire) {
            return Err(WriteError::Sealed { path: self.path.clone() });
        }
        let done = put().and_then(|()| self.mark(blocks));
        // Behind the write, also behind one that failed half-way: who takes the blocks before it reads them old, and takes
        // them again.
        if let Some(changed) = lock(&self.changed).as_mut() {
            for (at, bits) in words(blocks) {
                if let Some(word) = changed.get_mut(at) {
                    *word |= bits;
                }
            }
        }
        done.map_err(|error| self.io_failed(error))
    }

    /// Those of these blocks that are changed in part only and are not in the file: at most the first and the last.
    fn edges(&self, blocks: BlockRange, offset: u64, end: u64) -> Vec<BlockIndex> {
        let map = self.map();
        let last = BlockIndex(blocks.end().0 - 1);
        let last_end = blocks.end().byte_offset().min(self.layout.size_bytes);
        let first_is_cut = blocks.start.byte_offset() < offset || (last == blocks.start && end < last_end);
        let last_is_cut = last != blocks.start && end < last_end;
        let cut = [(blocks.start, first_is_cut), (last, last_is_cut)];
        cut.into_iter().filter(|(block, cut)| *cut && !map.has(block.0)).map(|(block, _)| block).collect()
    }

    /// Brings a block of the view into the file.
    fn fetch(&self, block: BlockIndex) -> Result<(), WriteError> {
        let offset = block.byte_offset();
        let bytes = usize::try_from(self.layout.size_bytes - offset).unwrap_or(usize::MAX).min(BLOCK_BYTES);
        let mut content = [0; BLOCK_BYTES];
        let content = content.get_mut(..bytes).unwrap_or_default();
        self.base.read(offset, content).map_err(WriteError::View)?;
        let put = self.file.write_all_at(content, self.layout.data() + offset);
        put.map_err(|error| self.io_failed(error))
    }

    /// The blocks are in the file from now on.
    fn mark(&self, blocks: BlockRange) -> io::Result<()> {
        let end = blocks.end().0;
        if self.map().run(blocks.start.0, end) == (true, end) {
            return Ok(());
        }
        let mut map = self.map_mut();
        let (mut changed, mut bytes) = (Vec::new(), Vec::new());
        for (at, bits) in words(blocks) {
            let word = map.words.get(at).copied().unwrap_or(0);
            changed.push((at, word | bits, word & bits != bits));
            bytes.extend((word | bits).to_le_bytes());
        }
        // On file before it counts: where the file's map cannot be written, the write has failed.
        self.file.write_all_at(&bytes, self.layout.live() + blocks.start.0 / 64 * 8)?;
        for (at, word, is_new) in changed {
            if let Some(place) = map.words.get_mut(at) {
                *place = word;
            }
            if is_new {
                map.unsaved.insert(at);
            }
        }
        Ok(())
    }

    fn check_failed(&self) -> Result<(), WriteError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(WriteError::Failed { path: self.path.clone() });
        }
        Ok(())
    }

    fn io_failed(&self, source: io::Error) -> WriteError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => WriteError::NoSpace { path },
            _ => WriteError::Io { path, source },
        }
    }

    fn map(&self) -> RwLockReadGuard<'_, Map> {
        self.map.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_mut(&self) -> RwLockWriteGuard<'_, Map> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockView for Branch {
    fn size_bytes(&self) -> u64 {
        self.layout.size_bytes
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ViewError> {
        let bytes = buffer.len() as u64;
        let end = offset.checked_add(bytes).filter(|end| *end <= self.layout.size_bytes);
        let end = end.ok_or(ViewError::BeyondEnd { offset, bytes })?;
        let (mut position, mut rest) = (offset, buffer);
        while position < end {
            let (has, run_end) =
                self.map().run(BlockIndex::containing(position).0, BlockCount::covering(end).0);
            let until = BlockIndex(run_end).byte_offset().min(end);
            let (part, behind) =
                rest.split_at_mut(usize::try_from(until - position).unwrap_or(0).min(rest.len()));
            if has {
                self.file
                    .read_exact_at(part, self.layout.data() + position)
                    .map_err(|source| ViewError::Io { place: self.path.display().to_string(), source })?;
            } else {
                self.base.read(position, part)?;
            }
            (position, rest) = (until, behind);
        }
        Ok(())
    }

    fn extents(&self, range: BlockRange) -> Result<Vec<ViewExtent>, ViewError> {
        let (mut extents, mut block, end) = (Vec::new(), range.start.0, range.end().0);
        while block < end && extents.len() < EXTENTS_MAX {
            let (has, run_end) = self.map().run(block, end);
            let run = BlockRange::new(block, run_end - block);
            block = run_end;
            if has {
                extents.push(ViewExtent { range: run, hole: false });
                continue;
            }
            let below = self.base.extents(run)?;
            let reached = below.last().map_or(run.start.0, |extent| extent.range.end().0);
            extents.extend(below);
            if reached < run_end {
                // The view gave as much as it wants to give at a time.
                break;
            }
        }
        Ok(extents)
    }

    fn prefetch(&self, bytes: std::ops::Range<u64>) {
        self.base.prefetch(bytes);
    }
}

/// Makes an empty branch, whole and durable before it takes its name.
fn create(path: &Path, layout: Layout, header: &Header) -> io::Result<File> {
    let begun = path.with_extension("begun");
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(true).mode(FILE_MODE).open(&begun)?;
    file.set_len(layout.data() + layout.size_bytes)?;
    file.write_all_at(&header.encode(), 0)?;
    durable::sync_all(&file)?;
    durable::rename(&begun, path)?;
    Ok(file)
}

/// The map that holds now; that of a former boot is made to hold in this one.
fn read_map(file: &File, layout: Layout, mut header: Header, boot: &str) -> io::Result<Map> {
    let is_live = !boot.is_empty() && header.boot == boot;
    let live = read_words(file, layout.live(), layout)?;
    let durable = read_words(file, layout.durable(), layout)?;
    if is_live {
        let unsaved = live.iter().zip(&durable).enumerate();
        let unsaved = unsaved.filter(|(_, (live, durable))| live != durable).map(|(at, _)| at).collect();
        return Ok(Map { words: live, unsaved });
    }
    let bytes: Vec<u8> = durable.iter().flat_map(|word| word.to_le_bytes()).collect();
    file.write_all_at(&bytes, layout.live())?;
    durable::sync_data(file)?;
    boot.clone_into(&mut header.boot);
    file.write_all_at(&header.encode(), 0)?;
    durable::sync_data(file)?;
    Ok(Map { words: durable, unsaved: BTreeSet::new() })
}

fn read_words(file: &File, place: u64, layout: Layout) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; usize::try_from(layout.map_bytes).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, place)?;
    let (words, _none) = bytes.as_chunks::<8>();
    Ok(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

/// Numbers of the map's words that these blocks have bits in, each with those bits. There is at least one block.
fn words(blocks: BlockRange) -> impl Iterator<Item = (usize, u64)> {
    let end = blocks.end().0;
    (blocks.start.0 / 64..=(end - 1) / 64).map(move |at| {
        let from = blocks.start.0.max(at * 64) - at * 64;
        let count = end.min((at + 1) * 64) - at * 64 - from;
        (usize::try_from(at).unwrap_or(usize::MAX), (u64::MAX >> (64 - count)) << from)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const MAGIC: [u8; 8] = *b"HFBRANCH";
const VERSION: u32 = 1;
const BOOT_BYTES: usize = 40;
const HEADER_BODY_BYTES: usize = 80;
const HEADER_BYTES: usize = 96;
/// Extents given at a time, about.
const EXTENTS_MAX: usize = 1024;
/// Zeroes written at once where the file system has no better way.
const ZEROES_BYTES: usize = 64 << 10;
/// The disk's bytes are for the coordinator's user only.
const FILE_MODE: u32 = 0o600;

#[cfg(test)]
mod tests;
