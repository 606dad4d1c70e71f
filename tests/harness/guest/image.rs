//! The guest image: built once per recipe from Debian packages, kept in a cache.
//!
//! Owns the cache folder and the building of the disk. Does not know machines.
//! Invariant: an image is handed out only if its marker, written last, stands beside it; it is never written again.
//! Format: a raw disk with a GPT, which boots by BIOS and by UEFI: GRUB in a partition of its own (14) and as the removable medium's
//! loader of an EFI system partition (15), settings in `/boot/grub` of the root (1), which is ext4.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
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
/// GRUB's code of the first sector (Debian package grub-pc-bin).
const BOOT_SECTOR: &str = "/usr/lib/grub/i386-pc/boot.img";
/// Bytes of it before the table of the MBR.
const BOOT_CODE_BYTES: usize = 440;
/// Where it has the number of the sector that is loaded, 8 bytes.
const BOOT_CODE_NEXT: usize = 0x5c;
/// Where the sector that it loads has the number of the next, 8 bytes.
const CORE_NEXT: usize = 0x1f4;
/// What GRUB needs to read the root and start a kernel.
const GRUB_MODULES: &[&str] = &[
    "part_gpt",
    "ext2",
    "search",
    "search_fs_uuid",
    "normal",
    "configfile",
    "linux",
    "serial",
    "terminal",
    "echo",
];
const SECTOR_BYTES: u64 = 512;
/// The kernel beside the disk.
const KERNEL: &str = "vmlinuz";
/// Its initramfs.
const INITRAMFS: &str = "initrd.img";
/// The disk.
const DISK: &str = "disk.raw";
/// The same, installed on VMware.
const VMWARE_DISK: &str = "vmware.raw";

/// A complete guest image in the cache.
#[derive(Clone, Debug)]
pub struct Image {
    path: PathBuf,
}

impl Image {
    /// Where the root file system begins on the disk, in bytes.
    pub const ROOT_OFFSET: u64 = recipe::ROOT_OFFSET;

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
        let path = folder.join(DISK);
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

    /// The same system as if it had been installed on VMware: its initramfs has the drivers of that hardware and no others.
    ///
    /// # Errors
    /// As [`Self::obtain`].
    pub fn obtain_of_vmware() -> Result<Self> {
        Ok(Self { path: Self::obtain()?.path.with_file_name(VMWARE_DISK) })
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

/// Builds the disk at `path`, and beside it what else is made of the same packages.
fn build(path: &Path) -> Result<()> {
    let folder = TempDir::with_prefix("holdfast-guest-build-")?;
    let archive = folder.path().join("root.tar");
    install_packages(folder.path(), &archive)?;
    let disk = File::create_new(path)?;
    disk.set_len(recipe::DISK_BYTES)?;
    write_partition_table(path)?;
    write_boot_loaders(&disk, folder.path())?;
    let device = LoopDevice::attach_at(path, recipe::ROOT_OFFSET)?;
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-U", recipe::ROOT_UUID])
        .arg(device.path())
        .arg(format!("{}k", recipe::ROOT_BYTES / 1024)))?;
    let root = MountPoint::new(device.path(), &[])?;
    fill_root(&archive, root.folder())?;
    for name in [KERNEL, INITRAMFS] {
        let copied = fs::copy(root.join(name), path.with_file_name(name));
        copied.with_context(|| format!("the packages have installed no /{name}"))?;
    }
    drop(root);
    drop(device);
    let vmware = path.with_file_name(VMWARE_DISK);
    run(Command::new("cp").arg("--sparse=always").arg(path).arg(&vmware))?;
    let device = LoopDevice::attach_at(&vmware, recipe::ROOT_OFFSET)?;
    let root = MountPoint::new(device.path(), &[])?;
    // The name is a link to that with the kernel's release.
    fs::copy(folder.path().join(recipe::VMWARE_INITRAMFS), fs::canonicalize(root.join(INITRAMFS))?)?;
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

/// The partitions, numbered as Debian's images for clouds have them.
fn write_partition_table(path: &Path) -> Result<()> {
    let mut sfdisk = Command::new("sfdisk")
        .arg("--quiet")
        .arg(path)
        .stdin(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let sectors = |bytes: u64| bytes / SECTOR_BYTES;
    let (bios, uefi, root) = (recipe::BIOS_OFFSET, recipe::UEFI_OFFSET, recipe::ROOT_OFFSET);
    let table = format!(
        "label: gpt\n\
         disk14 : start={}, size={}, type=21686148-6449-6E6F-744E-656564454649\n\
         disk15 : start={}, size={}, type=uefi\n\
         disk1 : start={}, size={}, type=linux\n",
        sectors(bios),
        sectors(uefi - bios),
        sectors(uefi),
        sectors(root - uefi),
        sectors(root),
        sectors(recipe::ROOT_BYTES),
    );
    sfdisk.stdin.take().context("sfdisk has no input")?.write_all(table.as_bytes())?;
    let status = sfdisk.wait()?;
    ensure!(status.success(), "sfdisk ended with {status}");
    Ok(())
}

/// GRUB for BIOS and for UEFI, as its own installer puts it there.
fn write_boot_loaders(disk: &File, folder: &Path) -> Result<()> {
    // What it does before it can read its settings.
    let begin = folder.join("begin.cfg");
    let text = format!("search.fs_uuid {} root\nset prefix=($root)/boot/grub\n", recipe::ROOT_UUID);
    fs::write(&begin, text)?;
    let make = |platform: &str, more: &[&str], to: &Path| {
        let mut grub = Command::new("grub-mkimage");
        grub.args(["-O", platform, "-p", "/boot/grub", "-c"]).arg(&begin).arg("-o").arg(to);
        run(grub.args(GRUB_MODULES).args(more)).with_context(|| format!("GRUB for {platform}")).map(drop)
    };

    let core = folder.join("core.img");
    make("i386-pc", &["biosdisk"], &core)?;
    let mut core = fs::read(core)?;
    ensure!(
        core.len() as u64 <= recipe::UEFI_OFFSET - recipe::BIOS_OFFSET,
        "GRUB is too large for its place"
    );
    let mut boot = fs::read(BOOT_SECTOR).context("no boot sector of GRUB (Debian package grub-pc-bin)")?;
    boot.truncate(BOOT_CODE_BYTES);
    let sector = recipe::BIOS_OFFSET / SECTOR_BYTES;
    put(&mut boot, BOOT_CODE_NEXT, sector)?;
    put(&mut core, CORE_NEXT, sector + 1)?;
    disk.write_all_at(&boot, 0)?;
    disk.write_all_at(&core, recipe::BIOS_OFFSET)?;

    let (loader, system) = (folder.join("loader.efi"), folder.join("efi.raw"));
    make("x86_64-efi", &[], &loader)?;
    File::create_new(&system)?.set_len(recipe::ROOT_OFFSET - recipe::UEFI_OFFSET)?;
    run(Command::new("mkfs.vfat").arg(&system))?;
    run(Command::new("mmd").arg("-i").arg(&system).args(["::/EFI", "::/EFI/BOOT"]))?;
    run(Command::new("mcopy").arg("-i").arg(&system).arg(&loader).arg("::/EFI/BOOT/BOOTX64.EFI"))?;
    disk.write_all_at(&fs::read(system)?, recipe::UEFI_OFFSET)?;
    Ok(())
}

fn put(bytes: &mut [u8], at: usize, number: u64) -> Result<()> {
    bytes.get_mut(at..at + 8).context("GRUB is shorter than it was")?.copy_from_slice(&number.to_le_bytes());
    Ok(())
}

/// Unpacks the system.
fn fill_root(archive: &Path, mount_point: &Path) -> Result<()> {
    run(Command::new("tar")
        .args(["--extract", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(mount_point)
        // Device nodes of the build; the guest has its own devtmpfs.
        .args(["--exclude=./dev/*"]))
    .map(drop)
}
