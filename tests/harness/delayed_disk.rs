//! A disk whose writes reach their place late: a file in a FUSE file system of our own, under a loop device.
//!
//! Owns its content, in memory. Between a write's issue and its arrival the old content is read, as
//! on a slow disk; a tracker that forgets requests in flight loses changes here within seconds.
//! Limit: one file, of the size given.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Result;

use crate::{
    fuse_disk::{Content, FuseDisk},
    loop_device::LoopDevice,
};

/// The loop device over the delayed file.
#[derive(Debug)]
pub struct DelayedDisk {
    disk: FuseDisk,
}

impl DelayedDisk {
    /// A disk of `bytes` zeroes whose writes take `delay`.
    ///
    /// # Errors
    /// FUSE or loop devices are not to be had.
    pub fn create(bytes: usize, delay: Duration) -> Result<Self> {
        let content = Mutex::new(vec![0; bytes]);
        Ok(Self { disk: FuseDisk::create(Arc::new(DelayedFile { content, bytes: bytes as u64, delay }))? })
    }

    /// The device.
    #[must_use]
    pub const fn device(&self) -> &LoopDevice {
        self.disk.device()
    }
}

struct DelayedFile {
    content: Mutex<Vec<u8>>,
    bytes: u64,
    delay: Duration,
}

impl Content for DelayedFile {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, offset: usize, bytes: usize) -> Vec<u8> {
        let content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        let start = offset.min(content.len());
        content[start..(start + bytes).min(content.len())].to_vec()
    }

    fn write(&self, offset: usize, data: &[u8]) -> bool {
        thread::sleep(self.delay);
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        let place = content.get_mut(offset..offset + data.len());
        let fits = place.is_some();
        place.into_iter().for_each(|place| place.copy_from_slice(data));
        fits
    }

    fn sync(&self) {}
}
