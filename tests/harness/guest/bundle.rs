//! Files that a machine is given: a tar archive that the guest sees as a read-only disk.
//!
//! Owns the archive. Does not know what the files are for.
//! Invariant: the archive is complete before a machine starts with it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::{Bus, Disk, Source};
use crate::file_system::run;

/// Serial number of the disk that holds the archive.
const SERIAL: &str = "bundle";

/// A set of files for a machine.
#[derive(Debug)]
pub struct Bundle {
    folder: TempDir,
}

impl Bundle {
    /// An empty set.
    ///
    /// # Errors
    /// No temporary folder can be made.
    pub fn new() -> Result<Self> {
        let folder = TempDir::with_prefix("holdfast-bundle-")?;
        fs::create_dir(folder.path().join("root"))?;
        Ok(Self { folder })
    }

    /// Adds a program of this host without its debugging information, to be found at `to` in the guest.
    ///
    /// # Errors
    /// It cannot be read, or `strip` is missing and it cannot be copied.
    pub fn program(&self, from: &Path, to: &str) -> Result<()> {
        let place = self.place(to)?;
        let stripped = Command::new("strip").arg("--output-file").arg(&place).arg(from).status();
        // Without binutils it is copied as it is: only larger.
        if !stripped.is_ok_and(|status| status.success()) {
            fs::copy(from, &place).with_context(|| format!("copying {}", from.display()))?;
        }
        Ok(())
    }

    /// Adds a file with this content.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn text(&self, content: &str, to: &str) -> Result<()> {
        fs::write(self.place(to)?, content).with_context(|| format!("writing {to} of a guest"))
    }

    /// Adds a script, which can be run.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn script(&self, content: &str, to: &str) -> Result<()> {
        self.text(content, to)?;
        fs::set_permissions(self.place(to)?, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// The archive as a disk on this bus. It must be the last there, so that the names of the others do not change.
    ///
    /// # Errors
    /// `tar` failed.
    pub fn disk(&self, bus: Bus) -> Result<Disk> {
        let archive = self.folder.path().join("bundle.tar");
        run(Command::new("tar")
            .args(["--create", "--owner=0", "--group=0", "--file"])
            .arg(&archive)
            .arg("--directory")
            .arg(self.folder.path().join("root"))
            .arg("."))?;
        Ok(Disk::new(Source::Raw(archive), bus, SERIAL).read_only())
    }

    /// Where a file of the guest stands in our folder.
    fn place(&self, to: &str) -> Result<PathBuf> {
        let place = self.folder.path().join("root").join(to.trim_start_matches('/'));
        fs::create_dir_all(place.parent().context("a file name is missing")?)?;
        Ok(place)
    }
}

/// What the guest runs to unpack the archive; does not touch the modes of folders that are there.
pub(super) const UNPACK: &str = "for disk in /sys/block/vd* /sys/block/sd*; do \
         if cat $disk/serial $disk/device/vpd_pg80 2>/dev/null | grep -q bundle; then \
             tar --extract --no-overwrite-dir --file /dev/${disk##*/} --directory / && sync && exit 0; \
         fi; \
     done; echo 'no disk with a bundle'; exit 1";
