//! The file that an image is written to, and the way past the page cache where its file system has one.
//!
//! Writing through the page cache copies every byte, and lets one thread at a time write to a file; what it holds reaches the device
//! in bursts. Long runs therefore go to the device at once, several at a time. Short ones are better off in the cache, which
//! puts them in order first; so are files in memory.
//!
//! The kernel keeps both ways coherent: a direct write first writes back and then drops what the cache has of its pages (open(2), `O_DIRECT`).

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice},
    num::NonZeroU64,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use holdfast_common::units::BLOCK_BYTES;
use rustix::{
    fs::{Advice, AtFlags, CWD, FallocateFlags, OFlags, StatxFlags},
    io::Errno,
};

use super::map::CLUSTER_BYTES;

/// An image's file, open for writing.
pub(super) struct Target {
    file: File,
    direct: Option<File>,
}

impl Target {
    /// Opens `path` a second time for direct writes, if its file system says (`statx`, `STATX_DIOALIGN`, since Linux 6.1) that it
    /// takes whole blocks that way. Files in memory and network file systems do not.
    pub(super) fn new(file: File, path: &Path) -> Self {
        Self { file, direct: open_direct(path) }
    }

    /// The file, through the page cache.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Whether there is a way past the page cache.
    pub(super) fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Gives a range its place on the device, so that several threads can write into it at a time. Without one a file system would
    /// let them in one after the other.
    ///
    /// # Errors
    /// There is no space. A file system that cannot do this gives places as it is written to.
    pub(super) fn allocate(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, offset, bytes) {
            Err(Errno::NOSPC) => Err(Errno::NOSPC.into()),
            Err(Errno::DQUOT) => Err(Errno::DQUOT.into()),
            _ => Ok(()),
        }
    }

    /// Makes a range zero: a hole, where the file system can make one.
    ///
    /// # Errors
    /// The system's; some of it may be zero.
    pub(super) fn zero(&self, mut offset: u64, mut bytes: u64) -> io::Result<()> {
        match punch(&self.file, offset, bytes) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            other => return Ok(other?),
        }
        while bytes > 0 {
            let some = bytes.min(ZEROES.len() as u64);
            let zeroes = ZEROES.get(..usize::try_from(some).unwrap_or(0)).unwrap_or_default();
            self.file.write_all_at(zeroes, offset)?;
            (offset, bytes) = (offset + some, bytes - some);
        }
        Ok(())
    }

    /// Lets the system begin to write out a range, without waiting for it: nobody will look at it here soon.
    pub(super) fn write_behind(&self, offset: u64, bytes: u64) {
        // A hint: what it does not do is done by the next sync.
        let _hinted = rustix::fs::fadvise(&self.file, offset, NonZeroU64::new(bytes), Advice::DontNeed);
    }

    /// Writes all slices one behind the other from `offset` on, past the page cache if wanted and possible; bytes written.
    ///
    /// # Errors
    /// The system's; some of it may have been written.
    pub(super) fn write(
        &self,
        mut slices: &mut [IoSlice<'_>],
        mut offset: u64,
        direct: bool,
    ) -> io::Result<u64> {
        let mut file = self.direct.as_ref().filter(|_| direct).unwrap_or(&self.file);
        let mut total = 0;
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match rustix::io::pwritev(file, slices, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    IoSlice::advance_slices(&mut slices, bytes);
                    (offset, total) = (offset + bytes as u64, total + bytes as u64);
                }
                Err(Errno::INTR) => {}
                // Not aligned as the device wants it: the end of a disk that is no whole number of blocks.
                Err(Errno::INVAL) if direct => file = &self.file,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(total)
    }
}

/// Gives the space of a range back; it reads as zero then.
///
/// # Errors
/// The system's, also that this file system cannot do it.
pub(super) fn punch(file: &File, offset: u64, bytes: u64) -> rustix::io::Result<()> {
    rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, bytes)
}

fn open_direct(path: &Path) -> Option<File> {
    let status = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::DIOALIGN).ok()?;
    let fits = |align: u32| align != 0 && BLOCK_BYTES.is_multiple_of(align as usize);
    let known = StatxFlags::from_bits_retain(status.stx_mask).contains(StatxFlags::DIOALIGN);
    if !(known && fits(status.stx_dio_mem_align) && fits(status.stx_dio_offset_align)) {
        return None;
    }
    let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
    OpenOptions::new().write(true).custom_flags(flags).open(path).ok()
}

static ZEROES: [u8; CLUSTER_BYTES] = [0; CLUSTER_BYTES];
