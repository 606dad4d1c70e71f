//! What sysfs says about the device that is to be tracked.
//!
//! Owns the reading of sysfs: numbers, sizes, queues, statistics. Does not know programs or maps.
//! Invariant: what is read again and again (statistics, size, identity) is read through files opened at the start, so that
//! no path is walked while file systems are frozen.
//! Limit: each file read is at most [`FILE_BYTES_MAX`] bytes.
//! Format: Linux, Documentation/ABI/stable/sysfs-block.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{btf::KernelTypes, program::Window, program_request::SlotShape};
use crate::capture::{CaptureError, WriteCounters};

const FILE_BYTES_MAX: usize = 512;
/// More tags than this in one hardware queue are not known of any driver.
const TAGS_MAX: u32 = 1 << 16;
/// Bio-based drivers whose bios are known to complete under the address that was queued.
const BIO_DRIVERS: [&str; 3] = ["dm-", "md", "zram"];
/// Of those, the drivers whose statistics count exactly what was queued (or less).
const BIO_DRIVERS_GUARDED: [&str; 2] = ["dm-", "zram"];
/// Ends the accounting of a bio. Kernels that count a bio's sectors there give them as one parameter more than those that
/// have counted them at its start.
const ACCOUNTING_END: &str = "bdev_end_io_acct";
const ACCOUNTING_END_PARAMETERS: usize = 4;

/// How the device takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Through requests, with these slots.
    Requests(SlotShape),
    /// Through bios only.
    Bios,
}

/// The kernel's counts for the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Statistics {
    pub(super) sectors: u64,
    pub(super) in_flight: u64,
}

/// A device, found.
#[derive(Debug)]
pub(super) struct Target {
    /// As the caller named it.
    pub(super) device: String,
    /// The device's own number, as `stat` gives it.
    pub(super) device_number: u64,
    pub(super) window: Window,
    pub(super) kind: Kind,
    pub(super) has_many_ranges: bool,
    /// Whether the statistics can be held against the program's counts.
    pub(super) is_guarded: bool,
    statistics: File,
    size: File,
    disk_statistics: File,
    accounting: Option<File>,
    disk_sequence: Option<File>,
    /// Of a loop device that is not to be detached by itself: whether that has changed. `losetup -d` does no more than
    /// that while somebody has the device open, and we have.
    detaching: Option<File>,
}

impl Target {
    /// Finds the device behind a path.
    pub(super) fn find(path: &Path) -> Result<Self, CaptureError> {
        let device = path.display().to_string();
        let missing = || CaptureError::Missing { device: device.clone() };
        let metadata = fs::metadata(path).map_err(|_| missing())?;
        if !metadata.file_type().is_block_device() {
            let advice = "it is not a block device; use `scan` capture for files";
            return Err(failed(&device, advice, io::ErrorKind::InvalidInput.into()));
        }
        let number = metadata.rdev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        let folder = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).map_err(|_| missing())?;
        let is_partition = folder.join("partition").exists();
        let disk = if is_partition { parent(&folder) } else { folder.clone() };
        let explain = |source| failed(&device, "sysfs lacks what is needed about it", source);
        let (disk_major, disk_minor) = numbers(&read_path(&disk.join("dev")).map_err(explain)?)
            .ok_or_else(|| explain(io::ErrorKind::InvalidData.into()))?;
        let start_sector = if is_partition { number_in(&folder.join("start")).map_err(explain)? } else { 0 };
        let sectors = number_in(&folder.join("size")).map_err(explain)?;
        if sectors == 0 {
            return Err(failed(
                &device,
                "it has no size: nothing is attached to it",
                io::ErrorKind::NotFound.into(),
            ));
        }
        let name = disk.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let target = Self {
            kind: kind(&device, &disk, &name)?,
            window: Window { major: disk_major, minor: disk_minor, start_sector, sectors, is_partition },
            has_many_ranges: number_in(&disk.join("queue/max_discard_segments")).unwrap_or(1) > 1,
            is_guarded: disk.join("mq").is_dir()
                || (BIO_DRIVERS_GUARDED.iter().any(|start| name.starts_with(start))
                    && counts_finished_bios()),
            statistics: File::open(folder.join("stat")).map_err(explain)?,
            size: File::open(folder.join("size")).map_err(explain)?,
            disk_statistics: File::open(disk.join("stat")).map_err(explain)?,
            accounting: accounting(&disk, &name),
            disk_sequence: File::open(disk.join("diskseq")).ok(),
            detaching: stays_attached(&disk),
            device_number: number,
            device,
        };
        target.require_accounting()?;
        Ok(target)
    }

    /// The kernel's counts of this device (a partition's own, if it is one).
    pub(super) fn statistics(&self) -> Result<Statistics, CaptureError> {
        self.parse(&self.statistics)
    }

    /// Requests in flight on the whole disk.
    pub(super) fn disk_in_flight(&self) -> Result<u64, CaptureError> {
        Ok(self.parse(&self.disk_statistics)?.in_flight)
    }

    /// For the caller of capture.
    pub(super) fn counters(&self) -> Result<WriteCounters, CaptureError> {
        let Statistics { sectors, in_flight } = self.statistics()?;
        Ok(WriteCounters { sectors, in_flight })
    }

    /// Size now, in sectors; zero if the device is gone, or only still there because we have it open.
    pub(super) fn sectors_now(&self) -> Result<u64, CaptureError> {
        // The switch itself goes with a detach; whether it was attached anew, the disk's sequence number tells.
        let detaching = self.detaching.as_ref().and_then(|file| self.read(file).ok());
        if detaching.is_some_and(|switch| switch.trim() == "1") {
            return Ok(0);
        }
        self.read(&self.size)?.trim().parse().map_err(|_| self.missing())
    }

    /// Number that the kernel changes whenever another medium or backing file appears under the same device; zero where
    /// the kernel (before 5.15) has none.
    pub(super) fn disk_sequence(&self) -> Result<u64, CaptureError> {
        let Some(file) = &self.disk_sequence else { return Ok(0) };
        self.read(file)?.trim().parse().map_err(|_| self.missing())
    }

    /// The kernel must count for the guard and the quiet window to mean anything.
    pub(super) fn require_accounting(&self) -> Result<(), CaptureError> {
        let Some(file) = &self.accounting else { return Ok(()) };
        if self.read(file)?.trim() != "0" {
            return Ok(());
        }
        let advice = "the kernel does not count its requests; write 1 to its queue/iostats in sysfs";
        Err(failed(&self.device, advice, io::ErrorKind::Unsupported.into()))
    }

    fn parse(&self, file: &File) -> Result<Statistics, CaptureError> {
        parse_statistics(&self.read(file)?).ok_or_else(|| self.missing())
    }

    fn read(&self, file: &File) -> Result<String, CaptureError> {
        let mut buffer = [0; FILE_BYTES_MAX];
        let length = file.read_at(&mut buffer, 0).map_err(|_| self.missing())?;
        Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
    }

    fn missing(&self) -> CaptureError {
        CaptureError::Missing { device: self.device.clone() }
    }
}

/// Fields of `stat`, counted from zero: 6 write sectors, 8 in flight, 13 discard sectors.
fn parse_statistics(text: &str) -> Option<Statistics> {
    let fields: Vec<u64> = text.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
    let field = |at: usize| fields.get(at).copied();
    // Kernels before 4.18 had no discards; they have no programs such as ours either.
    Some(Statistics { sectors: field(6)?.wrapping_add(field(13).unwrap_or(0)), in_flight: field(8)? })
}

/// The switch of a loop device that was not set when we came.
fn stays_attached(disk: &Path) -> Option<File> {
    let path = disk.join("loop/autoclear");
    let set = read_path(&path).ok()?.trim() == "1";
    if set { None } else { File::open(path).ok() }
}

/// The switch of the disk's statistics, on if it can be.
fn accounting(disk: &Path, name: &str) -> Option<File> {
    // zram counts whatever this switch says, and shows it as off.
    if name.starts_with("zram") {
        return None;
    }
    let path = disk.join("queue/iostats");
    // So does device mapper of older kernels (6.1 is one). Newer ones obey it, and have it on unless somebody switched it
    // off. From outside the two cannot be told apart; switched on, it is right for both.
    if read_path(&path).is_ok_and(|text| text.trim() == "0") {
        match fs::write(&path, "1") {
            Ok(()) => tracing::info!(disk = name, "switched the kernel's statistics of the disk on"),
            Err(error) => tracing::warn!(disk = name, %error, "the kernel's statistics stay off"),
        }
    }
    File::open(path).ok()
}

/// Whether this kernel counts a bio when it is done. Those that count it when it begins cannot be asked what is in flight.
fn counts_finished_bios() -> bool {
    let types = KernelTypes::of_this_kernel();
    types.is_ok_and(|types| types.parameters(ACCOUNTING_END) == Some(ACCOUNTING_END_PARAMETERS))
}

fn kind(device: &str, disk: &Path, name: &str) -> Result<Kind, CaptureError> {
    let queues = disk.join("mq");
    if queues.is_dir() {
        return slot_shape(&queues)
            .map(Kind::Requests)
            .map_err(|source| failed(device, "its hardware queues cannot be told from sysfs", source));
    }
    if BIO_DRIVERS.iter().any(|start| name.starts_with(start)) {
        return Ok(Kind::Bios);
    }
    let advice = "its driver passes bios on in a way that hides their completion; protect the disks below it";
    Err(failed(device, advice, io::ErrorKind::Unsupported.into()))
}

fn slot_shape(queues: &Path) -> io::Result<SlotShape> {
    let (mut rows, mut tags) = (0, 0);
    for entry in fs::read_dir(queues)? {
        let entry = entry?;
        let Some(row) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        rows = rows.max(row + 1);
        let count = number_in(&entry.path().join("nr_tags"))?;
        tags = tags.max(u32::try_from(count).unwrap_or(u32::MAX));
    }
    if rows == 0 || tags == 0 || tags > TAGS_MAX {
        return Err(io::Error::other(format!("{rows} hardware queues with {tags} tags")));
    }
    Ok(SlotShape { rows, column_bits: tags.next_power_of_two().trailing_zeros() })
}

fn parent(folder: &Path) -> PathBuf {
    folder.parent().unwrap_or(folder).to_owned()
}

fn numbers(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn number_in(path: &Path) -> io::Result<u64> {
    read_path(path)?.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn read_path(path: &Path) -> io::Result<String> {
    fs::read_to_string(path)
}

/// An error with advice.
pub(super) fn failed(device: &str, advice: &str, source: io::Error) -> CaptureError {
    CaptureError::Failed {
        device: device.to_owned(),
        operation: "tracking",
        advice: advice.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
