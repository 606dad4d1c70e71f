//! Disks as QEMU is told of them.
//!
//! Owns the translation to arguments. Does not know what is on a disk.
//! Format: `-drive` and `-device` of qemu-system-x86_64 7.2 and later.

use std::path::PathBuf;

/// How the guest reaches a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// `/dev/vda` and on, in the order of the disks on this bus.
    VirtioBlk,
    /// `/dev/nvme0n1` and on, in the order of the disks on this bus.
    Nvme,
    /// VMware's paravirtual SCSI: `/dev/sda` and on.
    Pvscsi,
}

/// Where a disk's bytes are.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file with nothing but the bytes.
    Raw(PathBuf),
    /// A qcow2 file.
    Qcow2(PathBuf),
    /// An NBD export, for example `nbd+unix:///name?socket=/run/x.sock`.
    Nbd(String),
}

/// One disk of a machine.
#[derive(Clone, Debug)]
pub struct Disk {
    source: Source,
    bus: Bus,
    serial: String,
    snapshot: bool,
    read_only: bool,
}

impl Disk {
    /// A disk that the guest reads and writes; `serial` is what the guest sees as its serial number.
    #[must_use]
    pub fn new(source: Source, bus: Bus, serial: &str) -> Self {
        Self { source, bus, serial: serial.to_owned(), snapshot: false, read_only: false }
    }

    /// Writes go to a temporary file of QEMU; the source stays as it is.
    #[must_use]
    pub fn with_snapshot(mut self) -> Self {
        self.snapshot = true;
        self
    }

    /// The guest may only read.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// How the guest reaches it.
    pub(super) fn bus(&self) -> Bus {
        self.bus
    }

    /// QEMU's arguments for the disk with this number; lower numbers are booted from first.
    pub(super) fn arguments(&self, number: usize) -> Vec<String> {
        let (format, file) = match &self.source {
            Source::Raw(path) => ("raw", path.display().to_string()),
            Source::Qcow2(path) => ("qcow2", path.display().to_string()),
            Source::Nbd(uri) => ("raw", uri.clone()),
        };
        // A comma ends an option's value unless it is doubled.
        let file = file.replace(',', ",,");
        let mut drive = format!("if=none,id=disk{number},format={format},file={file},discard=unmap");
        if self.snapshot {
            drive.push_str(",snapshot=on");
        }
        if self.read_only {
            drive.push_str(",readonly=on");
        }
        let driver = match self.bus {
            Bus::VirtioBlk => "virtio-blk-pci",
            Bus::Nvme => "nvme",
            Bus::Pvscsi => "scsi-hd,bus=pvscsi.0",
        };
        // Index 0 is taken by QEMU itself when it starts a kernel without a boot loader.
        let index = number + 1;
        let device = format!("{driver},drive=disk{number},serial={},bootindex={index}", self.serial);
        vec!["-drive".to_owned(), drive, "-device".to_owned(), device]
    }
}
