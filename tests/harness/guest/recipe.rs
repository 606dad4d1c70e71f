//! What the guest image is made of.
//!
//! Owns the list of packages and the files laid over them. Does not know how they become a disk.
//! Invariant: two recipes with the same hash give the same image, up to the versions of the packages.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// Packages beside the minimal system: a kernel, init, what the tests do in the guest, what shuts it down when its power button
/// is pressed, and PostgreSQL.
pub(super) const PACKAGES: &[&str] = &[
    "linux-image-cloud-amd64",
    "systemd-sysv",
    "udev",
    "iproute2",
    "e2fsprogs",
    "kmod",
    "login",
    "acpid",
    "postgresql",
];

/// Files of packages that no test looks at and that would be copied by every initial copy.
pub(super) const LEFT_OUT: &[&str] = &[
    "/usr/share/man/*",
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/lib/udev/hwdb.d/*",
    // PostgreSQL's just-in-time compiler, which the image's settings turn off.
    "/usr/lib/x86_64-linux-gnu/libLLVM*",
    "/usr/lib/llvm-*",
    "/usr/lib/postgresql/*/lib/bitcode/*",
    "/usr/lib/postgresql/*/lib/llvmjit*",
];

/// UUID of the root file system, by which boot loader and fstab name it whatever bus it is on.
pub(super) const ROOT_UUID: &str = "6f1dfa57-0000-4000-8000-686f6c646661";
/// Size of the disk in bytes.
pub(super) const DISK_BYTES: u64 = 1 << 30;
/// Where the partitions begin, in bytes: GRUB's for BIOS, the one of UEFI, and the root, which is the first by number and
/// followed by the partition table's copy.
pub(super) const BIOS_OFFSET: u64 = 1 << 20;
/// See [`BIOS_OFFSET`].
pub(super) const UEFI_OFFSET: u64 = 2 << 20;
/// See [`BIOS_OFFSET`].
pub(super) const ROOT_OFFSET: u64 = 16 << 20;
/// Size of the root in bytes.
pub(super) const ROOT_BYTES: u64 = DISK_BYTES - ROOT_OFFSET - (1 << 20);

/// Name of the initramfs with VMware's drivers alone, which [`AFTER_PACKAGES`] leaves in the folder of the scripts.
pub(super) const VMWARE_INITRAMFS: &str = "initrd.vmware";

/// Hook scripts and files of the image, by name.
const FILES: &[(&str, &str)] = &[
    (BEFORE_PACKAGES, include_str!("files/before_packages.sh")),
    (AFTER_PACKAGES, include_str!("files/after_packages.sh")),
    ("control", include_str!("files/control")),
    ("holdfast-guest.service", include_str!("files/holdfast-guest.service")),
];
/// Name of the script that runs before the packages are installed.
pub(super) const BEFORE_PACKAGES: &str = "before_packages.sh";
/// Name of the script that runs after they are.
pub(super) const AFTER_PACKAGES: &str = "after_packages.sh";

/// Kernel arguments of a machine that runs [`FILES`]' control program in place of init.
pub(super) fn bare_arguments() -> String {
    format!(
        "root=UUID={ROOT_UUID} rw console=ttyS0,115200 net.ifnames=0 loglevel=5 panic=-1 \
         init=/usr/local/lib/holdfast-guest/control"
    )
}

/// Raised when the way the disk is put together changes.
const VERSION: u32 = 4;

/// Debian's name for the release of the guest. The agent that runs inside is built on this host, so where the host is
/// a Debian, the guest is the same one: its C library then is no older than the agent wants.
pub(super) fn suite() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        release
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim_matches('"').to_owned())
    };
    match (field("ID=").as_deref(), field("VERSION_CODENAME=")) {
        (Some("debian"), Some(codename)) => codename,
        _ => "bookworm".to_owned(),
    }
}

/// The host's list of Debian package sources for that release, if it has one.
pub(super) fn sources(suite: &str) -> Option<&'static str> {
    const CANDIDATES: &[&str] = &["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    CANDIDATES.iter().copied().find(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(suite)))
}

/// A name for this recipe that changes with every part of it.
pub(super) fn hash() -> String {
    let text = format!("{VERSION} {} {PACKAGES:?} {LEFT_OUT:?} {ROOT_UUID} {DISK_BYTES} {FILES:?}", suite());
    blake3::hash(text.as_bytes()).to_hex().chars().take(16).collect()
}

/// Writes scripts and files to `folder`; the scripts are executable.
///
/// # Errors
/// The folder cannot be written.
pub(super) fn write_files(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    for (name, content) in FILES {
        let path = folder.join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}
