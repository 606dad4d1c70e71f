//! Debian machines in QEMU, for tests with a real kernel, a real boot and a real power cut.
//!
//! Owns what such a test needs: an image built from Debian packages, a machine that boots from it or from anything
//! else that QEMU opens, and a way to run commands inside. Does not know Holdfast.
//! Invariant: no QEMU outlives its [`Machine`]; the image in the cache is never written after it is complete.
//! Limit: every wait has a deadline.

use std::path::Path;

// The image that machines boot from.
mod image;
// What stands in the image, and the hash that says when it must be built anew.
mod recipe;
// Disks as QEMU is told of them.
mod disk;
// Files that a machine is given, as a disk that holds a tar archive.
mod bundle;
// Commands inside a machine, over its second serial line.
mod control;
// One QEMU process, from boot to power cut.
mod machine;

pub use bundle::Bundle;
pub use control::Outcome;
pub use disk::{Bus, Disk, Source};
pub use image::{CACHE_VARIABLE, Image};
pub use machine::{HOST_ADDRESS, Machine, MachineSpec};

/// Why machines cannot be built or started here, or `None` if they can. Tests print it as `skipped: ...`.
#[must_use]
pub fn unavailable() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("building a guest image needs root".to_owned());
    }
    if let Some(reason) = crate::loop_device::unavailable() {
        return Some(reason);
    }
    PROGRAMS
        .iter()
        .find(|(program, _)| !in_path(program))
        .map(|(program, package)| format!("{program} is not installed (Debian package {package})"))
}

/// Programs that building and running a machine needs, with the Debian packages they come from.
const PROGRAMS: &[(&str, &str)] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("grub-mkimage", "grub-common"),
    ("sfdisk", "fdisk"),
    ("mkfs.vfat", "dosfstools"),
    ("mcopy", "mtools"),
    ("mkfs.ext4", "e2fsprogs"),
    ("setpriv", "util-linux"),
];

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
        || Path::new("/usr/sbin").join(program).exists()
}
