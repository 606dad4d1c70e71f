//! Memory that needs no disk: what runs while `/` is frozen must not wait for a page.
//!
//! Owns the locking of the agent's and the guardian's memory. Knows nothing of file systems. Invariant: after
//! [`lock_agent`], a page that was touched once stays, and the program's text is in memory; after [`lock_guardian`] all
//! pages of the process are.
//! Limit: mappings larger than [`MAPPING_BYTES_MAX`] are not read in (they are not program text).

use std::{collections::BTreeSet, fs, hint::black_box, io};

use rustix::mm::{MlockAllFlags, mlockall};

use super::{error::FreezeError, system};

/// Largest mapping that is read in.
const MAPPING_BYTES_MAX: usize = 256 << 20;

/// Stack that the frozen section may use.
const STACK_BYTES: usize = 128 << 10;

/// Locks the agent's memory: pages stay once touched, and program text is touched now.
///
/// Locking everything at once would pin every thread's whole stack and every reserved buffer; this pins what is used.
pub(super) fn lock_agent() -> Result<(), FreezeError> {
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    mlockall(flags).map_err(|error| FreezeError::MemoryNotLocked(error.into()))?;
    populate_program().map_err(FreezeError::MemoryNotLocked)
}

/// Locks everything the guardian has and will have.
pub(super) fn lock_guardian() -> io::Result<()> {
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)?;
    prefault_stack();
    Ok(())
}

/// Touches the part of this thread's stack that a frozen section uses. Call it before each hold: it costs nothing when
/// the pages are there.
#[inline(never)]
pub(super) fn prefault_stack() {
    let mut pages = [0_u8; STACK_BYTES];
    for page in pages.chunks_mut(4096) {
        if let Some(first) = page.first_mut() {
            *first = 1;
        }
    }
    black_box(&pages);
}

/// Reads in all mappings of files that hold program text.
fn populate_program() -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/maps")?;
    let mappings: Vec<Mapping<'_>> = table.lines().filter_map(Mapping::parse).collect();
    let programs: BTreeSet<&str> =
        mappings.iter().filter(|mapping| mapping.executable).map(|mapping| mapping.file).collect();
    for mapping in mappings.iter().filter(|mapping| mapping.readable && programs.contains(mapping.file)) {
        if mapping.bytes <= MAPPING_BYTES_MAX {
            match system::populate(mapping.start, mapping.bytes) {
                // Kernels before 5.14 do not know the advice; locked pages that were touched stay nevertheless.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
                result => result?,
            }
        }
    }
    Ok(())
}

/// A line of `/proc/self/maps` that maps a file.
struct Mapping<'line> {
    start: usize,
    bytes: usize,
    readable: bool,
    executable: bool,
    file: &'line str,
}

impl<'line> Mapping<'line> {
    /// `START-END PERMISSIONS OFFSET DEVICE INODE PATH`.
    fn parse(line: &'line str) -> Option<Self> {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        let permissions = fields.next()?;
        let file = fields.nth(3)?.trim_start();
        file.starts_with('/').then_some(Self {
            start,
            bytes: end.checked_sub(start)?,
            readable: permissions.starts_with('r'),
            executable: permissions.contains('x'),
            file,
        })
    }
}
