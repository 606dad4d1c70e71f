//! A file system with one file, whose reads, writes and syncs a test decides upon, under a loop device.
//!
//! Owns the FUSE side. Does not know what the file does. Limit: one file, of one size.

use std::{
    ffi::OsStr,
    io,
    sync::Arc,
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

/// What the file does.
pub(crate) trait Content: Send + Sync + 'static {
    /// Its size.
    fn bytes(&self) -> u64;
    /// The bytes at an offset; fewer behind the end.
    fn read(&self, offset: usize, bytes: usize) -> Vec<u8>;
    /// Writes; takes as long as it likes. `false` behind the end.
    fn write(&self, offset: usize, data: &[u8]) -> bool;
    /// Everything whose write has returned is to be durable.
    fn sync(&self);
}

/// The loop device over the file.
#[derive(Debug)]
pub(crate) struct FuseDisk {
    // In this order: the device lets go of the file before the file system ends.
    device: LoopDevice,
    _session: BackgroundSession,
    _folder: TempDir,
}

impl FuseDisk {
    /// Mounts the file and attaches a device to it.
    ///
    /// # Errors
    /// FUSE or loop devices are not to be had.
    pub(crate) fn create(content: Arc<dyn Content>) -> Result<Self> {
        let folder = TempDir::with_prefix("holdfast-fuse-")?;
        let session = fuser::spawn_mount(OneFile { content }, folder.path(), &Config::default())
            .context("mounting a FUSE file system")?;
        let device = LoopDevice::attach(&folder.path().join(FILE_NAME))?;
        Ok(Self { device, _session: session, _folder: folder })
    }

    /// The device.
    pub(crate) const fn device(&self) -> &LoopDevice {
        &self.device
    }
}

struct OneFile {
    content: Arc<dyn Content>,
}

impl OneFile {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_folder = inode == INodeNo::ROOT;
        FileAttr {
            ino: inode,
            size: if is_folder { 0 } else { self.content.bytes() },
            blocks: self.content.bytes() / 512,
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

impl Filesystem for OneFile {
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
        // Without this flag the page cache would stand between.
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
        reply.data(&self.content.read(offset as usize, size as usize));
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
        let (content, data) = (Arc::clone(&self.content), data.to_vec());
        thread::spawn(move || {
            if content.write(offset as usize, &data) {
                reply.written(data.len() as u32);
            } else {
                reply.error(Errno::EFBIG);
            }
        });
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.content.sync();
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
