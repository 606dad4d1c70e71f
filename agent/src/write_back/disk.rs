//! A disk of this machine that is written back to.
//!
//! Owns the open device or file. Invariant: nobody else on this machine has it mounted or locked while this lives, and it is
//! written only where a verified frame says so. All methods block.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use holdfast_common::{
    durable,
    frame::{ExtentKind, Frame, PlainReader, witness_digest},
    ids::{Generation, Sequence},
    units::{BLOCK_BYTES, BlockCount, BlockIndex, BlockRange},
    wire::{BlockDigest, Capture, limits::SCAN_CHUNK_BLOCKS},
};
use rustix::{
    fs::{FallocateFlags, FlockOperation, OFlags},
    io::Errno,
};

use super::tracking::{TrackedDisks, Tracking};
use crate::{capture::BlockSet, inventory::Located};

/// A disk that is held.
#[derive(Debug)]
pub(super) struct HeldDisk {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    /// Another number at every opening.
    pub(super) hold: u64,
    tracking: Mutex<Option<Tracking>>,
    /// What was written since the disk was last brought to a point, or opened.
    written: Mutex<BlockSet>,
}

/// What a source knows of its disk.
#[derive(Debug)]
pub(super) struct Known {
    /// What it is built on; zeroes if that is not known.
    pub(super) generation: Generation,
    pub(super) brought_to: Sequence,
    /// Where it may differ from that.
    pub(super) marked: BlockSet,
}

impl HeldDisk {
    /// Takes the disk for itself.
    ///
    /// # Errors
    /// It cannot be had, or is not what the replica was made of; the text says what to do.
    pub(super) fn open(
        located: &Located,
        capture: &Capture,
        hold: u64,
        tracked: Option<&TrackedDisks>,
    ) -> Result<Self, String> {
        let (path, is_file) = match located {
            Located::Device { device, .. } => (device.path.clone(), false),
            Located::ImageFile { path, .. } => (path.clone(), true),
        };
        let mut options = OpenOptions::new();
        // On a block device: refused while it, or a part of it, is mounted or used by a layer above.
        options.read(true).write(true).custom_flags(OFlags::EXCL.bits().cast_signed());
        let file = options.open(&path).map_err(|error| cannot_open(&path, &error))?;
        if is_file {
            rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)
                .map_err(|error| cannot_open(&path, &error.into()))?;
        }
        let size_bytes =
            size_of(&file).map_err(|error| format!("cannot read the size of {}: {error}", path.display()))?;
        if size_bytes != capture.size_bytes {
            return Err(format!(
                "{} has {size_bytes} bytes and the replica {}: only a disk of the same size can be written back; attach the \
                 right one, or make it that size",
                path.display(),
                capture.size_bytes
            ));
        }
        // From here on nobody else writes; what is tracked now is tracked before the disk is let go.
        let tracking =
            tracked.filter(|_| !is_file).and_then(|disks| Tracking::open(disks, capture.disk, &path));
        let written = Mutex::new(BlockSet::new(BlockCount::covering(size_bytes)));
        Ok(Self { file, path, size_bytes, hold, tracking: Mutex::new(tracking), written })
    }

    /// What is known of the disk now.
    pub(super) fn known(&self) -> Known {
        let mut tracking = self.tracking();
        let Some(tracking) = tracking.as_mut() else {
            return Known { generation: Generation(0), brought_to: Sequence(0), marked: self.no_blocks() };
        };
        tracking.look();
        let (generation, brought_to) = tracking.basis().unwrap_or((Generation(0), Sequence(0)));
        Known { generation, brought_to, marked: tracking.marked().clone() }
    }

    /// The disk holds what the log has at this frame; durable before this is called.
    pub(super) fn brought(&self, generation: Generation, sequence: Sequence) {
        let mut written = self.written();
        if let Some(tracking) = self.tracking().as_mut() {
            tracking.brought(generation, sequence, &written);
        }
        written.clear();
    }

    /// An empty set of its blocks.
    pub(super) fn no_blocks(&self) -> BlockSet {
        BlockSet::new(BlockCount(self.blocks()))
    }

    fn tracking(&self) -> MutexGuard<'_, Option<Tracking>> {
        self.tracking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self) -> MutexGuard<'_, BlockSet> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Digests of the chunks of a range, as [`Compare`](holdfast_common::wire::WriteBackRequest::Compare) wants them.
    pub(super) fn digests(&self, range: BlockRange) -> Result<Vec<[u8; 32]>, String> {
        let mut buffer = Vec::new();
        range
            .pieces(SCAN_CHUNK_BLOCKS)
            .map(|chunk| {
                self.read(chunk, &mut buffer)?;
                Ok(*blake3::hash(&buffer).as_bytes())
            })
            .collect()
    }

    /// Digests of single blocks.
    pub(super) fn block_digests(&self, range: BlockRange) -> Result<Vec<BlockDigest>, String> {
        let mut buffer = Vec::new();
        self.read(range, &mut buffer)?;
        let (blocks, _none) = buffer.as_chunks::<BLOCK_BYTES>();
        let numbered = (range.start.0..).zip(blocks);
        Ok(numbered
            .map(|(block, bytes)| BlockDigest { block: BlockIndex(block), digest: witness_digest(bytes) })
            .collect())
    }

    /// Writes a frame's blocks; says how many.
    pub(super) fn apply(&self, frame: &Frame) -> Result<u64, String> {
        let mut plain = Vec::new();
        PlainReader::new().read(frame, &mut plain).map_err(|error| error.to_string())?;
        let (mut rest, mut blocks) = (plain.as_slice(), 0);
        for extent in frame.extents() {
            let offset = extent.range.start.byte_offset();
            let bytes = extent.range.bytes().min(self.size_bytes.saturating_sub(offset));
            match extent.kind {
                ExtentKind::Zero => self.zero(offset, bytes),
                ExtentKind::Data => {
                    let all = usize::try_from(extent.range.bytes()).unwrap_or(usize::MAX);
                    let (mine, behind) = rest.split_at(all.min(rest.len()));
                    rest = behind;
                    let on_disk = mine.get(..usize::try_from(bytes).unwrap_or(0)).unwrap_or_default();
                    self.file.write_all_at(on_disk, offset)
                }
            }
            .map_err(|error| format!("cannot write {}: {error}", self.path.display()))?;
            self.written().insert(extent.range);
            blocks += extent.range.count.0;
        }
        Ok(blocks)
    }

    /// Makes everything durable.
    pub(super) fn sync(&self) -> Result<(), String> {
        durable::sync_data(&self.file)
            .map_err(|error| format!("cannot make {} durable: {error}", self.path.display()))
    }

    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let how = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, how, offset, bytes) {
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NODEV) => {}
            done => return Ok(done?),
        }
        let zeroes = [0; BLOCK_BYTES];
        let mut at = offset;
        while at < offset + bytes {
            let part = usize::try_from(offset + bytes - at).unwrap_or(usize::MAX).min(BLOCK_BYTES);
            self.file.write_all_at(zeroes.get(..part).unwrap_or_default(), at)?;
            at += part as u64;
        }
        Ok(())
    }

    /// Whole blocks; what stands behind the disk's end is zero.
    fn read(&self, range: BlockRange, buffer: &mut Vec<u8>) -> Result<(), String> {
        buffer.clear();
        buffer.resize(usize::try_from(range.bytes()).unwrap_or(0), 0);
        let offset = range.start.byte_offset();
        let on_disk = self.size_bytes.saturating_sub(offset).min(range.bytes());
        let part = buffer.get_mut(..usize::try_from(on_disk).unwrap_or(0)).unwrap_or_default();
        self.file
            .read_exact_at(part, offset)
            .map_err(|error| format!("cannot read {} at {offset}: {error}", self.path.display()))
    }

    /// Blocks of the disk.
    pub(super) const fn blocks(&self) -> u64 {
        BlockCount::covering(self.size_bytes).0
    }
}

/// Size of a device or file: where its end is.
fn size_of(file: &File) -> io::Result<u64> {
    use std::io::{Seek as _, SeekFrom};
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

fn cannot_open(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match Errno::from_io_error(error) {
        Some(Errno::BUSY | Errno::AGAIN | Errno::ACCESS) => format!(
            "{path} is in use on the source: unmount it there (also what lies on it: LVM, md, a running guest), or boot the \
             machine from something else, then retry"
        ),
        Some(Errno::ROFS) => format!("{path} is read-only on the source; make it writable, then retry"),
        _ => format!("cannot open {path} on the source for writing: {error}"),
    }
}
