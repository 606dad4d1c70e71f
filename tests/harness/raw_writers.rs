//! Writers that stamp sequence numbers all over a block device, and the replica that follows them.
//!
//! Owns the load and the comparison. Does not know how changes are tracked beyond [`ChangeSource`].
//! Invariant: every block written carries a number that no other write carries, so an old block is never taken for a new one.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_agent::capture::{ChangeSource, Taken};
use holdfast_common::{
    entropy::{Entropy as _, SeededEntropy},
    ids::Interval,
    units::{BLOCK_BYTES, BlockRange},
};
use rustix::fs::{FallocateFlags, fallocate};

/// Largest single write, in blocks.
const WRITE_BLOCKS_MAX: u64 = 8;
/// Largest discard, in blocks: longer than two words of the bitmap.
const DISCARD_BLOCKS_MAX: u64 = 300;
/// `_IO(0x12, 119)` of linux/fs.h.
const BLKDISCARD: libc::Ioctl = 0x1277;
/// Rounds that a disk at rest may need.
const ROUNDS_MAX: usize = 1000;

/// Memory aligned for direct IO.
#[derive(Debug)]
pub struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    /// Zeroed memory.
    #[must_use]
    pub fn new(length: usize) -> Self {
        let memory = vec![0; length + BLOCK_BYTES];
        let start = memory.as_ptr().addr().wrapping_neg() % BLOCK_BYTES;
        Self { memory, start, length }
    }

    /// The first `length` bytes.
    pub fn first(&mut self, length: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + length.min(self.length)]
    }
}

/// Opens a device for direct IO.
///
/// # Errors
/// It cannot be opened.
pub fn open_direct(device: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    options.open(device).with_context(|| format!("opening {}", device.display()))
}

/// What the writers do.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Number of writers.
    pub writers: u64,
    /// First seed; each writer adds its number.
    pub seed: u64,
    /// One in this many operations discards, another unmaps to zeroes, another writes zeroes; zero for none.
    pub discard_every: u64,
}

/// Writers at work.
#[derive(Debug)]
pub struct RawWriters {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
    written: Arc<AtomicU64>,
}

impl RawWriters {
    /// Starts writing to a device of `blocks` blocks.
    #[must_use]
    pub fn start(device: &Path, blocks: u64, load: Load) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(1)));
        let spawn = |number| {
            let (stop, written, device) = (Arc::clone(&stop), Arc::clone(&written), device.to_owned());
            thread::spawn(move || write_until(&stop, &written, device, blocks, load, number))
        };
        let threads = (0..load.writers).map(spawn).collect();
        Self { stop, threads, written }
    }

    /// Ends all writers and returns how many operations they made.
    ///
    /// # Errors
    /// A writer failed.
    pub fn finish(self) -> Result<u64> {
        self.stop.store(true, SeqCst);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
        }
        Ok(self.written.load(SeqCst) - 1)
    }
}

fn write_until(
    stop: &AtomicBool,
    written: &AtomicU64,
    device: PathBuf,
    blocks: u64,
    load: Load,
    number: u64,
) -> Result<()> {
    let file = open_direct(&device)?;
    let random = SeededEntropy::new(load.seed.wrapping_add(number));
    let mut buffer = AlignedBuffer::new(WRITE_BLOCKS_MAX as usize * BLOCK_BYTES);
    while !stop.load(SeqCst) {
        let sequence = written.fetch_add(1, SeqCst);
        let what = if load.discard_every == 0 { 3 } else { random.next_u64() % load.discard_every };
        let longest = if what < 3 { DISCARD_BLOCKS_MAX } else { WRITE_BLOCKS_MAX };
        let count = (1 + random.next_u64() % longest).min(blocks);
        let start = random.next_u64() % (blocks - count + 1);
        let range = BlockRange::new(start, count);
        match what {
            0 => discard(&file, range).context("discarding")?,
            1 => zero(&file, FallocateFlags::PUNCH_HOLE, range).context("unmapping")?,
            2 => zero(&file, FallocateFlags::ZERO_RANGE, range).context("writing zeroes")?,
            _ => {}
        }
        if what < 3 {
            continue;
        }
        let bytes = buffer.first(range.bytes() as usize);
        for stamp in bytes.chunks_mut(16) {
            stamp[..8].copy_from_slice(&sequence.to_le_bytes());
            stamp[8..].copy_from_slice(&number.to_le_bytes());
        }
        file.write_all_at(bytes, range.start.byte_offset()).context("writing")?;
    }
    Ok(())
}

/// Zeroes a range of a device with `flag`'s request, or by writing where it knows no such request (md).
fn zero(file: &File, flag: FallocateFlags, range: BlockRange) -> io::Result<()> {
    let call = |flag| {
        fallocate(file, flag | FallocateFlags::KEEP_SIZE, range.start.byte_offset(), range.bytes())
            .map_err(io::Error::from)
    };
    call(flag).or_else(|error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) if flag == FallocateFlags::PUNCH_HOLE => call(FallocateFlags::ZERO_RANGE),
        _ => Err(error),
    })
}

/// Discards a range of a device: `fallocate` makes zeroes of it, which is another request.
#[expect(unsafe_code, reason = "the ioctl has no safe form")]
fn discard(file: &File, range: BlockRange) -> io::Result<()> {
    let arguments = [range.start.byte_offset(), range.bytes()];
    // SAFETY: the call reads two numbers from where the pointer points.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, arguments.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A copy of a device, kept by rounds of take and read.
#[derive(Debug)]
pub struct Replica {
    device: File,
    bytes: Vec<u8>,
    buffer: AlignedBuffer,
}

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

impl Replica {
    /// A first full copy. Tracking must be on already.
    ///
    /// # Errors
    /// The device cannot be read.
    pub fn copy(device: &Path, blocks: u64) -> Result<Self> {
        let length = blocks as usize * BLOCK_BYTES;
        let mut replica = Self {
            device: open_direct(device)?,
            bytes: vec![0; length],
            buffer: AlignedBuffer::new(READ_BYTES),
        };
        replica.read(BlockRange::new(0, blocks))?;
        Ok(replica)
    }

    /// One round: takes the marks of `interval` and reads what they say.
    ///
    /// # Errors
    /// Trust is lost, or the device cannot be read.
    pub fn round(&mut self, source: &mut dyn ChangeSource, interval: Interval) -> Result<Taken> {
        let mut ranges = vec![];
        let taken = source.take(interval, &mut |range| ranges.push(range))?;
        for range in ranges {
            self.read(range)?;
        }
        Ok(taken)
    }

    /// Rounds until nothing is marked and nothing in flight.
    ///
    /// # Errors
    /// As [`Self::round`]; or the disk does not come to rest.
    pub fn catch_up(&mut self, source: &mut dyn ChangeSource, interval: Interval) -> Result<()> {
        for _ in 0..ROUNDS_MAX {
            let taken = self.round(source, interval)?;
            if taken.blocks.0 == 0 && taken.in_flight.0 == 0 {
                return Ok(());
            }
        }
        anyhow::bail!("something is in flight after {ROUNDS_MAX} rounds without a writer")
    }

    /// Blocks in which the device and the replica differ.
    ///
    /// # Errors
    /// The device cannot be read.
    pub fn differences(&mut self) -> Result<usize> {
        let mut wrong = 0;
        for (index, expected) in self.bytes.chunks(READ_BYTES).enumerate() {
            let got = self.buffer.first(expected.len());
            self.device.read_exact_at(got, (index * READ_BYTES) as u64)?;
            wrong +=
                got.chunks(BLOCK_BYTES).zip(expected.chunks(BLOCK_BYTES)).filter(|(a, b)| a != b).count();
        }
        Ok(wrong)
    }

    fn read(&mut self, range: BlockRange) -> Result<()> {
        let (start, end) = (range.start.byte_offset() as usize, range.end().byte_offset() as usize);
        ensure!(end <= self.bytes.len(), "{range} lies beyond the end");
        for (index, target) in self.bytes[start..end].chunks_mut(READ_BYTES).enumerate() {
            let got = self.buffer.first(target.len());
            self.device.read_exact_at(got, (start + index * READ_BYTES) as u64)?;
            target.copy_from_slice(got);
        }
        Ok(())
    }
}
