//! A disk whose writes reach their place late: a file in a FUSE file system of our own, under a loop device.
//!
//! Owns the file system and its content, in memory. Between a write's issue and its arrival the old content is read, as
//! on a slow disk; a tracker that forgets requests in flight loses changes here within seconds.
//! Limit: one file, of the size given.

use std::{
    ffi::OsStr,
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use tempfile::TempDir;

use crate::loop_device::LoopDevice;

const FILE_NAME: &str = "disk.img";
const FILE: INodeNo = INodeNo(2);
/// How long the kernel may keep what it was told; nothing changes.
const KEEP: Duration = Duration::from_secs(3600);

/// The loop device over the delayed file.
#[derive(Debug)]
pub struct DelayedDisk {
    // In this order: the device lets go of the file before the file system ends.
    device: LoopDevice,
    _session: BackgroundSession,
    _folder: TempDir,
}

impl DelayedDisk {
    /// A disk of `bytes` zeroes whose writes take `delay`.
    ///
    /// # Errors
    /// FUSE or loop devices are not to be had.
    pub fn create(bytes: usize, delay: Duration) -> Result<Self> {
        let folder = TempDir::with_prefix("holdfast-delayed-")?;
        let files = DelayedFile { content: Arc::new(Mutex::new(vec![0; bytes])), bytes: bytes as u64, delay };
        let session = fuser::spawn_mount(files, folder.path(), &Config::default())
            .context("mounting a FUSE file system")?;
        let device = LoopDevice::attach(&folder.path().join(FILE_NAME))?;
        Ok(Self { device, _session: session, _folder: folder })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &LoopDevice {
        &self.device
    }
}

struct DelayedFile {
    content: Arc<Mutex<Vec<u8>>>,
    bytes: u64,
    delay: Duration,
}

impl DelayedFile {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_folder = inode == INodeNo::ROOT;
        FileAttr {
            ino: inode,
            size: if is_folder { 0 } else { self.bytes },
            blocks: self.bytes / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_folder { FileType::Directory } else { FileType::RegularFile },
            perm: if is_folder { 0o755 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for DelayedFile {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without it the loop device waits for each write before it looks at the next request, reads included.
        config
            .add_capabilities(InitFlags::FUSE_ASYNC_DIO)
            .map_err(|_| io::Error::other("this kernel's FUSE has no asynchronous direct IO"))
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == FILE_NAME {
            reply.entry(&KEEP, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&KEEP, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Without this flag the page cache would hide the delay.
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        let start = (offset as usize).min(content.len());
        let end = (start + size as usize).min(content.len());
        reply.data(&content[start..end]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (content, data, delay) = (Arc::clone(&self.content), data.to_vec(), self.delay);
        thread::spawn(move || {
            thread::sleep(delay);
            let start = offset as usize;
            let mut content = content.lock().unwrap_or_else(PoisonError::into_inner);
            match content.get_mut(start..start + data.len()) {
                Some(place) => {
                    place.copy_from_slice(&data);
                    reply.written(data.len() as u32);
                }
                None => reply.error(Errno::EFBIG),
            }
        });
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
