//! Two images of one disk: a Debian root file system before and after installing some hundred MB of packages.
//!
//! Owns the cache folder: that of [`CACHE_VARIABLE`], or one beside the system's temporary files. Invariant: images are handed out only if their
//! marker, written last, stands beside them. Needs root, the network once, and about 4 GiB.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use holdfast_tests::{
    file_system::{MountPoint, run},
    loop_device::LoopDevice,
};

/// Environment variable that names the folder for what benches build once.
const CACHE_VARIABLE: &str = "HOLDFAST_BENCH_CACHE";
/// Size of the disk.
const DISK_BYTES: u64 = 3 << 30;
/// Debian's release.
const SUITE: &str = "bookworm";
/// What the change installs: compilers, languages, documents; about 400 MB in many thousands of files.
const PACKAGES: &[&str] =
    &["build-essential", "git", "vim", "python3-dev", "perl-doc", "postgresql", "nginx"];

/// The images before and after, made if they are not there.
pub(crate) fn images() -> Result<(PathBuf, PathBuf)> {
    let cache = env::var_os(CACHE_VARIABLE).map_or_else(env::temp_dir, PathBuf::from);
    let folder = cache.join("holdfast-bench-debian");
    let (before, after) = (folder.join("before.raw"), folder.join("after.raw"));
    let marker = folder.join("complete");
    if !marker.exists() {
        eprintln!("building two Debian images in {} (some minutes)", folder.display());
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        build(&before, &after)?;
        File::create(marker)?;
    }
    Ok((before, after))
}

fn build(before: &Path, after: &Path) -> Result<()> {
    let file = File::create_new(before)?;
    file.set_len(DISK_BYTES)?;
    run(Command::new("mkfs.ext4").arg("-qF").arg(before))?;
    let archive = before.with_file_name("root.tar");
    let mut bootstrap = Command::new("mmdebstrap");
    bootstrap.args(["--quiet", "--variant=apt", SUITE]).arg(&archive).stdin(Stdio::null());
    run(&mut bootstrap).context("installing a Debian system")?;
    within(before, |root| {
        let mut unpack = Command::new("tar");
        unpack.args(["--extract", "--numeric-owner", "--exclude=./dev/*", "--file"]).arg(&archive);
        run(unpack.arg("--directory").arg(root)).map(drop)
    })?;
    fs::remove_file(archive)?;
    run(Command::new("cp").arg("--sparse=always").arg(before).arg(after))?;
    within(after, |root| {
        fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf"))?;
        // Packages must not start their services here.
        fs::write(root.join("usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 101\n")?;
        run(Command::new("chmod").arg("755").arg(root.join("usr/sbin/policy-rc.d")))?;
        let mut install = Command::new("chroot");
        install.arg(root).args([
            "/usr/bin/env",
            "DEBIAN_FRONTEND=noninteractive",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "sh",
            "-c",
        ]);
        let packages = PACKAGES.join(" ");
        install.arg(format!("apt-get -q update && apt-get -qy install {packages}"));
        let _devices = Devices::bind(root)?;
        run(install.stdin(Stdio::null())).context("installing packages").map(drop)
    })
}

/// This machine's devices, seen in a root file system until dropped.
struct Devices(PathBuf);

impl Devices {
    fn bind(root: &Path) -> Result<Self> {
        let place = root.join("dev");
        run(Command::new("mount").args(["--bind", "/dev"]).arg(&place))?;
        Ok(Self(place))
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(&self.0)) {
            eprintln!("{error:#}");
        }
    }
}

/// Does something in the file system of an image.
fn within(image: &Path, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let device = LoopDevice::attach(image)?;
    let mount = MountPoint::new(device.path(), &[])?;
    let done = work(mount.folder());
    drop(mount);
    drop(device);
    done
}
