//! The system calls of freezing that have no safe wrapper.
//!
//! Owns FIFREEZE, FITHAW (linux/fs.h), prefaulting of mapped files, and the ignoring of signals. Knows no order and no
//! policy. Invariant: [`freeze`] and [`thaw`] allocate nothing.
#![expect(unsafe_code, reason = "ioctl, madvise and signal have no safe form")]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// `_IOWR('X', 119, int)`.
const FIFREEZE: libc::c_ulong = 0xC004_5877;
/// `_IOWR('X', 120, int)`.
const FITHAW: libc::c_ulong = 0xC004_5878;
/// Advice to read a mapping's pages in now (Linux 5.14).
const MADV_POPULATE_READ: libc::c_int = 22;

/// How an attempt to freeze ended.
#[derive(Debug)]
pub(super) enum Frozen {
    /// Frozen.
    Yes,
    /// The file system knows no freezing (FAT).
    Unsupported,
    /// Somebody else has frozen it.
    ByOther,
    /// Anything else.
    Failed(io::Error),
}

/// How an attempt to thaw ended.
#[derive(Debug)]
pub(super) enum Thawed {
    /// It was frozen and is not any more.
    Yes,
    /// It was not frozen (or its freezing has only begun).
    WasNotFrozen,
    /// Anything else; it is still frozen.
    Failed(io::Error),
}

/// Freezes the file system of `folder`. Returns when all its writers have stopped and all data is on the device.
pub(super) fn freeze(folder: BorrowedFd<'_>) -> Frozen {
    // SAFETY: the descriptor is open for the length of the call; the argument is a plain integer.
    let result = unsafe { libc::ioctl(folder.as_raw_fd(), FIFREEZE, 0) };
    if result == 0 {
        return Frozen::Yes;
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => Frozen::Unsupported,
        Some(libc::EBUSY) => Frozen::ByOther,
        _ => Frozen::Failed(error),
    }
}

/// Thaws the file system of `folder`. May wait for a freeze of it that is under way.
pub(super) fn thaw(folder: BorrowedFd<'_>) -> Thawed {
    // SAFETY: as above.
    let result = unsafe { libc::ioctl(folder.as_raw_fd(), FITHAW, 0) };
    if result == 0 {
        return Thawed::Yes;
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL) => Thawed::WasNotFrozen,
        _ => Thawed::Failed(error),
    }
}

/// Reads the pages of a mapping of this process in, without changing them.
pub(super) fn populate(start: usize, bytes: usize) -> io::Result<()> {
    let address = std::ptr::with_exposed_provenance_mut::<libc::c_void>(start);
    // SAFETY: this advice only reads pages in; on an address that is not mapped it fails with ENOMEM.
    let result = unsafe { libc::madvise(address, bytes, MADV_POPULATE_READ) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes this process deaf to requests to end, so that only the end of the agent ends it.
pub(super) fn ignore_requests_to_end() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE] {
        // SAFETY: SIG_IGN runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
