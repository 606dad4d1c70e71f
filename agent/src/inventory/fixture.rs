//! Builds trees like /sys, /proc and /dev in a temporary folder, for tests.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::Roots;

/// A machine made of files.
pub(crate) struct Fixture {
    folder: TempDir,
    mounts: String,
    swaps: String,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        for name in
            ["sys/class/block", "sys/class/net", "sys/devices", "sys/fs/btrfs", "proc/self", "dev/mapper"]
        {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let swaps = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n".to_owned();
        Self { folder, mounts: String::new(), swaps }
    }

    pub(crate) fn roots(&self) -> Roots {
        Roots::below(self.folder.path())
    }

    /// Writes a file below the machine's root, with the folders above it.
    pub(crate) fn file(&self, path: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// Makes a symbolic link below the machine's root; both ends as paths from there.
    pub(crate) fn link(&self, from: &str, to: &str) -> &Self {
        let from = self.folder.path().join(from);
        fs::create_dir_all(from.parent().unwrap()).unwrap();
        fs::create_dir_all(self.folder.path().join(to)).unwrap();
        symlink(self.folder.path().join(to), from).unwrap();
        self
    }

    fn block(&self, device: &str, name: &str, number: &str, bytes: u64) {
        let folder = format!("sys/devices/{device}");
        self.file(&format!("{folder}/dev"), format!("{number}\n"));
        self.file(&format!("{folder}/size"), format!("{}\n", bytes / 512));
        self.file(&format!("{folder}/ro"), "0\n");
        self.link(&format!("sys/class/block/{name}"), &folder);
        self.file(&format!("dev/{name}"), "");
    }

    /// A whole disk at a place in the device tree ("pci0000:00/0000:00:04.0/virtio1").
    pub(crate) fn disk(&self, place: &str, name: &str, number: &str, bytes: u64) -> &Self {
        self.block(&format!("{place}/block/{name}"), name, number, bytes);
        self.file(&format!("sys/devices/{place}/block/{name}/queue/logical_block_size"), "512\n");
        self.link(&format!("sys/class/block/{name}/device"), &format!("sys/devices/{place}"));
        self
    }

    pub(crate) fn partition(
        &self,
        place: &str,
        disk: &str,
        name: &str,
        number: &str,
        at: (u32, u64, u64),
    ) -> &Self {
        let (index, start, bytes) = at;
        let device = format!("{place}/block/{disk}/{name}");
        self.block(&device, name, number, bytes);
        self.file(&format!("sys/devices/{device}/partition"), format!("{index}\n"));
        self.file(&format!("sys/devices/{device}/start"), format!("{}\n", start / 512));
        self
    }

    /// A virtual device (dm, md, loop) built of others.
    pub(crate) fn stacked(&self, name: &str, number: &str, bytes: u64, slaves: &[&str]) -> &Self {
        self.block(&format!("virtual/block/{name}"), name, number, bytes);
        for slave in slaves {
            self.file(&format!("sys/devices/virtual/block/{name}/slaves/{slave}"), "");
        }
        self
    }

    pub(crate) fn mapper(&self, name: &str, mapper_name: &str) -> &Self {
        self.file(&format!("sys/devices/virtual/block/{name}/dm/name"), mapper_name);
        let link = self.folder.path().join("dev/mapper").join(mapper_name);
        symlink(format!("../{name}"), link).unwrap();
        self
    }

    pub(crate) fn loop_file(&self, name: &str, number: &str, bytes: u64, file: &str) -> &Self {
        self.stacked(name, number, bytes, &[]);
        self.file(&format!("sys/devices/virtual/block/{name}/loop/backing_file"), format!("{file}\n"))
    }

    /// A driver behind a link such as `sys/devices/.../driver`.
    pub(crate) fn driver(&self, place: &str, driver: &str) -> &Self {
        self.link(&format!("sys/devices/{place}/driver"), &format!("sys/bus/any/drivers/{driver}"))
    }

    pub(crate) fn mount(&mut self, line: &str) -> &mut Self {
        self.mounts.push_str(line);
        self.mounts.push('\n');
        let mounts = self.mounts.clone();
        self.file("proc/self/mountinfo", mounts);
        self
    }

    pub(crate) fn swap(&mut self, path: &str, kind: &str) -> &mut Self {
        self.swaps.push_str(&format!("{path}\t\t\t{kind}\t1048572\t\t0\t\t-2\n"));
        let swaps = self.swaps.clone();
        self.file("proc/swaps", swaps);
        self
    }

    pub(crate) fn btrfs(&self, uuid: &str, devices: &[&str]) -> &Self {
        for device in devices {
            self.file(&format!("sys/fs/btrfs/{uuid}/devices/{device}"), "");
        }
        self.file(&format!("sys/fs/btrfs/{uuid}/label"), "\n")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(Path::new(name))
    }
}
