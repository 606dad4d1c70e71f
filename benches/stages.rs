//! The stages' own costs: each part of the path from disk to journal done alone, in processor seconds per byte.
//!
//! Owns the single passes that serve as limits. All passes work on the same bytes: files of this system, as a disk holds them.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use holdfast_common::{
    frame::{Extent, FRAME_PLAIN_BYTES_TARGET, Frame, FrameIdentity, FrameSealer},
    ids::{DiskId, Generation, Interval, Sequence},
    units::{BLOCK_BYTES, BlockRange},
};

use crate::machine::{Cost, measure};

/// Frames of a sample, sealed at a compression level.
pub(crate) struct Sealed {
    /// The frames.
    pub(crate) frames: Vec<Bytes>,
    /// Their size together.
    pub(crate) bytes: u64,
}

/// Disk of the sealed frames.
pub(crate) const DISK: [u8; 16] = [1; 16];

/// So many bytes of this system's files.
pub(crate) fn system_sample(folder: &Path, bytes: u64) -> Result<Vec<u8>> {
    let path = folder.join("sample");
    fill_with_system_files(&path, bytes)?;
    let sample = fs::read(&path)?;
    fs::remove_file(path)?;
    Ok(sample)
}

/// Fills `path` with `bytes` bytes of this system's files (programs, libraries, documents), the way a disk holds them.
pub(crate) fn fill_with_system_files(path: &Path, bytes: u64) -> Result<()> {
    let mut output = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    let mut left = bytes;
    let mut folders = vec![PathBuf::from("/usr")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && left > 0 {
                left -= append(&entry.path(), &mut output, left)?;
            }
        }
    }
    ensure!(left == 0, "this system's /usr holds {left} bytes too few");
    Ok(holdfast_common::durable::sync_all(&output)?)
}

/// Appends a file, padded to whole blocks as a file system would; returns the bytes written.
fn append(source: &Path, output: &mut File, most: u64) -> Result<u64> {
    let Ok(mut file) = File::open(source) else { return Ok(0) };
    let mut content = Vec::new();
    if std::io::Read::by_ref(&mut file).take(most.min(64 << 20)).read_to_end(&mut content).is_err() {
        return Ok(0);
    }
    content.resize(content.len().next_multiple_of(BLOCK_BYTES), 0);
    content.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    output.write_all(&content)?;
    Ok(content.len() as u64)
}

/// Direct reads of the whole file or device, 1 MiB at a time.
pub(crate) fn read_pass(path: &Path) -> Result<Cost> {
    const STEP: usize = 1 << 20;
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    let mut space = vec![0u8; STEP + BLOCK_BYTES];
    let misaligned = space.as_ptr().align_offset(BLOCK_BYTES);
    let buffer = space.get_mut(misaligned..misaligned + STEP).context("buffer")?;
    let (_, cost) = measure(|| {
        while file.read(buffer)? > 0 {}
        Ok(())
    })?;
    Ok(cost)
}

/// The test of every block for zeroes.
pub(crate) fn zero_pass(sample: &[u8]) -> Result<Cost> {
    let (zeroes, cost) = measure(|| {
        let is_zero = |block: &&[u8]| block.iter().all(|byte| *byte == 0);
        Ok(sample.chunks_exact(BLOCK_BYTES).filter(is_zero).count())
    })?;
    ensure!(zeroes < sample.len() / BLOCK_BYTES, "the sample is all zeroes");
    Ok(cost)
}

/// Sealing at a level: zero test is left out, compression and hashing are in.
pub(crate) fn seal_pass(sample: &[u8], level: Option<i32>) -> Result<(Sealed, Cost)> {
    measure(|| {
        let mut sealer = FrameSealer::new(level)?;
        let mut frames = Vec::new();
        for (index, plain) in sample.chunks_exact(FRAME_PLAIN_BYTES_TARGET).enumerate() {
            let blocks = (FRAME_PLAIN_BYTES_TARGET / BLOCK_BYTES) as u64;
            let identity = FrameIdentity {
                disk: DiskId::from_bytes(DISK),
                generation: Generation(1),
                sequence: Sequence(index as u64 + 1),
                interval: Interval(1),
            };
            let extent = Extent::data(BlockRange::new(index as u64 * blocks, blocks));
            frames.push(sealer.seal_data(identity, &[extent], plain)?);
        }
        let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
        Ok(Sealed { frames, bytes })
    })
}

/// Sealing as it is done for random writes: sixteen extents of one block per frame.
pub(crate) fn scattered(sample: &[u8]) -> Result<Sealed> {
    let mut sealer = FrameSealer::new(Some(1))?;
    let mut frames = Vec::new();
    for (index, plain) in sample.chunks_exact(FRAME_PLAIN_BYTES_TARGET).enumerate() {
        let identity = FrameIdentity {
            disk: DiskId::from_bytes(DISK),
            generation: Generation(1),
            sequence: Sequence(index as u64 + 1),
            interval: Interval(1),
        };
        let blocks = (FRAME_PLAIN_BYTES_TARGET / BLOCK_BYTES) as u64;
        let place = |block: u64| (block << 20) + index as u64 * 2;
        let extents: Vec<Extent> =
            (0..blocks).map(|block| Extent::data(BlockRange::new(place(block), 1))).collect();
        frames.push(sealer.seal_data(identity, &extents, plain)?);
    }
    let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
    Ok(Sealed { frames, bytes })
}

/// Verification of frames, as ingest does it.
pub(crate) fn verify_pass(sealed: &Sealed) -> Result<Cost> {
    let (_, cost) = measure(|| {
        for frame in &sealed.frames {
            Frame::verify(frame.clone())?;
        }
        Ok(())
    })?;
    Ok(cost)
}

/// Appending to a file with fdatasync after every `group_bytes`.
pub(crate) fn append_pass(sealed: &Sealed, folder: &Path, group_bytes: u64) -> Result<Cost> {
    let path = folder.join("append-pass");
    let mut file = File::create(&path)?;
    let (_, cost) = measure(|| {
        let mut since = 0;
        for frame in &sealed.frames {
            file.write_all(frame)?;
            since += frame.len() as u64;
            if since >= group_bytes {
                holdfast_common::durable::sync_data(&file)?;
                since = 0;
            }
        }
        Ok(holdfast_common::durable::sync_data(&file)?)
    })?;
    fs::remove_file(path)?;
    Ok(cost)
}
