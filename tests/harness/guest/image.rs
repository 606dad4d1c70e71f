//! The guest image: built once per recipe from Debian packages, kept in a cache.
//!
//! Owns the cache folder and the building of the disk. Does not know machines.
//! Invariant: an image is handed out only if its marker, written last, stands beside it; it is never written again.
//! Format: a raw disk, BIOS: MBR code of syslinux, one active partition with ext4, extlinux in `/boot/extlinux`. The
//! file system is made without 64bit and metadata_csum, which extlinux cannot read.

use std::{
    fs::{self, File},
    io::{Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_common::clock::{Clock as _, SystemClock};
use tempfile::TempDir;

use super::recipe;
use crate::{
    file_system::{MountPoint, run},
    loop_device::LoopDevice,
};

/// Environment variable that names the folder for what tests build once, instead of one in cargo's target folder.
pub const CACHE_VARIABLE: &str = "HOLDFAST_TEST_CACHE";
/// Where Debian's package syslinux-common and extlinux keep the MBR code.
const MBR_CODE: &[&str] = &["/usr/lib/syslinux/mbr/mbr.bin", "/usr/lib/EXTLINUX/mbr.bin"];
/// The kernel beside the disk.
const KERNEL: &str = "vmlinuz";
/// Its initramfs.
const INITRAMFS: &str = "initrd.img";

/// A complete guest image in the cache.
#[derive(Clone, Debug)]
pub struct Image {
    path: PathBuf,
}

impl Image {
    /// Where the root file system begins on the disk, in bytes.
    pub const ROOT_OFFSET: u64 = recipe::PARTITION_OFFSET;

    /// The image of the present recipe, built if the cache does not have it (one to two minutes).
    ///
    /// Tests that ask at the same time wait for the one that builds.
    ///
    /// # Errors
    /// The packages cannot be fetched, or a tool failed; its words are in the error.
    pub fn obtain() -> Result<Self> {
        let cache = cache_folder()?;
        fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
        let name = format!("debian-{}", recipe::hash());
        let lock = File::create(cache.join(format!("{name}.lock")))?;
        lock.lock().context("waiting for another test that builds the guest image")?;
        let folder = cache.join(&name);
        let path = folder.join("disk.raw");
        let marker = folder.join("complete");
        if !marker.exists() {
            let clock = SystemClock::new();
            eprintln!("building the guest image {name} from Debian packages");
            if folder.exists() {
                fs::remove_dir_all(&folder).context("removing a guest image that was not finished")?;
            }
            fs::create_dir_all(&folder)?;
            build(&path)?;
            File::create(&marker)?;
            eprintln!("built the guest image in {:.0} s", clock.monotonic().as_secs_f64());
        }
        Ok(Self { path })
    }

    /// The raw disk. Never write to it: see [`Self::overlay`].
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel of this image and its initramfs, for machines that are started without a boot loader.
    pub(super) fn kernel(&self) -> (PathBuf, PathBuf) {
        (self.path.with_file_name(KERNEL), self.path.with_file_name(INITRAMFS))
    }

    /// Makes a qcow2 file that begins as this image and takes the writes.
    ///
    /// # Errors
    /// `qemu-img` failed.
    pub fn overlay(&self, path: &Path) -> Result<()> {
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(&self.path)
            .arg(path))
        .map(drop)
    }
}

/// The folder of the environment variable, else one in the target folder that this test was built into.
fn cache_folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os(CACHE_VARIABLE) {
        return Ok(folder.into());
    }
    let program = std::env::current_exe()?;
    let target = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    let target = target.with_context(|| {
        format!("{} is in no target folder of cargo: set {CACHE_VARIABLE}", program.display())
    })?;
    Ok(target.join("guest-cache"))
}

/// Builds the disk at `path`.
fn build(path: &Path) -> Result<()> {
    let folder = TempDir::with_prefix("holdfast-guest-build-")?;
    let archive = folder.path().join("root.tar");
    install_packages(folder.path(), &archive)?;
    let disk = File::create_new(path)?;
    disk.set_len(recipe::DISK_BYTES)?;
    write_partition_table(&disk, path)?;
    let device = LoopDevice::attach_at(path, recipe::PARTITION_OFFSET)?;
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-O", "^64bit,^metadata_csum", "-U", recipe::ROOT_UUID])
        .arg(device.path()))?;
    let root = MountPoint::new(device.path(), &[])?;
    fill_root(&archive, root.folder())?;
    for name in [KERNEL, INITRAMFS] {
        let copied = fs::copy(root.join(name), path.with_file_name(name));
        copied.with_context(|| format!("the packages have installed no /{name}"))?;
    }
    Ok(())
}

/// Has mmdebstrap install the packages into `archive`.
fn install_packages(folder: &Path, archive: &Path) -> Result<()> {
    recipe::write_files(folder)?;
    let suite = recipe::suite();
    let hook = |kind: &str, script: &str| format!("--{kind}-hook={}", folder.join(script).display());
    // It hands descriptors to `sh`, which knows only those of one digit: none that we were started with may be in the way.
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; exec mmdebstrap \"$@\"", "mmdebstrap"])
        .env("HOLDFAST_GUEST_FILES", folder)
        .env("HOLDFAST_ROOT_UUID", recipe::ROOT_UUID)
        .args(["--quiet", "--variant=minbase", "--aptopt=Acquire::Languages \"none\""])
        .arg(format!("--include={}", recipe::PACKAGES.join(",")))
        .args(recipe::LEFT_OUT.iter().map(|pattern| format!("--dpkgopt=path-exclude={pattern}")))
        .arg(hook("essential", recipe::BEFORE_PACKAGES))
        .arg(hook("customize", recipe::AFTER_PACKAGES))
        .arg(&suite)
        .arg(archive)
        .args(recipe::sources(&suite))
        .stdin(Stdio::null());
    run(&mut command).context("installing Debian packages for the guest image").map(drop)
}

/// MBR code and one active Linux partition up to the end.
fn write_partition_table(mut disk: &File, path: &Path) -> Result<()> {
    let code = MBR_CODE.iter().find_map(|path| fs::read(path).ok());
    let code =
        code.context("no MBR code of syslinux found (Debian packages extlinux and syslinux-common)")?;
    ensure!(code.len() <= 440, "the MBR code of syslinux has {} bytes, at most 440 fit", code.len());
    let mut sfdisk = Command::new("sfdisk")
        .arg("--quiet")
        .arg(path)
        .stdin(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let table = format!("label: dos\nstart={}, type=83, bootable\n", recipe::PARTITION_OFFSET / 512);
    sfdisk.stdin.take().context("sfdisk has no input")?.write_all(table.as_bytes())?;
    let status = sfdisk.wait()?;
    ensure!(status.success(), "sfdisk ended with {status}");
    disk.seek(SeekFrom::Start(0))?;
    disk.write_all(&code)?;
    Ok(())
}

/// Unpacks the system and installs the boot loader.
fn fill_root(archive: &Path, mount_point: &Path) -> Result<()> {
    run(Command::new("tar")
        .args(["--extract", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(mount_point)
        // Device nodes of the build; the guest has its own devtmpfs.
        .args(["--exclude=./dev/*"]))?;
    run(Command::new("extlinux").arg("--install").arg(mount_point.join("boot/extlinux"))).map(drop)
}
