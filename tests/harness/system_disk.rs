//! Disks with a system on them, made by the system's own tools without mounting anything.
//!
//! Owns the making: a table, an EFI system partition if wanted, and an ext4 root with what a look reads. Does not boot.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::file_system::run;

/// UUID of the root file system.
pub const ROOT_UUID: &str = "0b9d6f2e-5c1f-4a7e-9e54-3f0f6b1d2c3a";
/// The kernel's release.
pub const KERNEL: &str = "6.1.0-25-amd64";
const MIB: u64 = 1 << 20;
const ROOT_BYTES: u64 = 48 * MIB;
const EFI_BYTES: u64 = 16 * MIB;

/// A system's disk to be made.
#[derive(Clone, Debug)]
pub struct SystemDisk {
    /// Content of /etc/fstab.
    pub fstab: String,
    /// Content of /etc/network/interfaces.
    pub interfaces: String,
    /// What the boot loader says of the root.
    pub root: String,
    /// Modules in the initramfs.
    pub early: Vec<&'static str>,
    /// Modules of the kernel besides.
    pub installed: Vec<&'static str>,
    /// Whether the disk has an EFI system partition, and whether the loader's file is where every firmware looks.
    pub efi: Option<bool>,
}

impl Default for SystemDisk {
    /// One that boots by BIOS from virtio.
    fn default() -> Self {
        Self {
            fstab: format!("UUID={ROOT_UUID} / ext4 defaults 0 1\n"),
            interfaces: "auto eth0\niface eth0 inet dhcp\n".to_owned(),
            root: format!("UUID={ROOT_UUID}"),
            early: vec!["virtio_pci", "virtio_blk", "sd_mod", "vmw_pvscsi"],
            installed: vec!["virtio_net", "virtio_pci", "vmxnet3"],
            efi: None,
        }
    }
}

/// How an initramfs is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packed {
    /// Not at all.
    Plain,
    /// By `gzip`.
    Gzip,
    /// By `xz`, as kernels take it.
    Xz,
    /// By `zstd`.
    Zstd,
}

impl SystemDisk {
    /// Makes it.
    ///
    /// # Errors
    /// A tool is missing or fails.
    pub fn make(&self) -> Result<Vec<u8>> {
        let folder = tempfile::tempdir()?;
        let tree = folder.path().join("tree");
        self.fill(&tree)?;
        let root = folder.path().join("root.img");
        fs::File::create(&root)?.set_len(ROOT_BYTES)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-U", ROOT_UUID, "-d"]).arg(&tree).arg(&root))?;
        let efi = match self.efi {
            Some(has_loader) => efi_system(&folder.path().join("efi.img"), has_loader)?,
            None => Vec::new(),
        };
        let disk = folder.path().join("disk.img");
        fs::File::create(&disk)?.set_len(ROOT_BYTES + EFI_BYTES + 4 * MIB)?;
        let (table, root_at) = if self.efi.is_some() {
            ("label: gpt\nstart=2048,size=32768,type=U\ntype=L\n", MIB + EFI_BYTES)
        } else {
            ("label: dos\nstart=2048,type=83,bootable\n", MIB)
        };
        let file = folder.path().join("table");
        fs::write(&file, table)?;
        run(Command::new("sh").args(["-c", "sfdisk --quiet \"$1\" < \"$2\"", "sh"]).arg(&disk).arg(&file))?;
        let mut bytes = fs::read(&disk)?;
        put(&mut bytes, MIB, &efi)?;
        put(&mut bytes, root_at, &fs::read(&root)?)?;
        if self.efi.is_none() {
            // What a boot loader would install.
            put(&mut bytes, 0, &[0xeb, 0x63, 0x90])?;
        }
        Ok(bytes)
    }

    fn fill(&self, tree: &Path) -> Result<()> {
        let modules = format!("lib/modules/{KERNEL}");
        for folder in ["etc/network", "boot/grub", &modules] {
            fs::create_dir_all(tree.join(folder))?;
        }
        let grub =
            format!("menuentry 'Linux' {{\n\tlinux /boot/vmlinuz-{KERNEL} root={} ro quiet\n}}\n", self.root);
        let all = self.early.iter().chain(&self.installed);
        let dependencies: String =
            all.map(|name| format!("kernel/drivers/{name}.ko: kernel/lib/x.ko\n")).collect();
        for (path, content) in [
            ("etc/fstab", self.fstab.as_bytes()),
            ("etc/os-release", b"ID=debian\n"),
            ("etc/network/interfaces", self.interfaces.as_bytes()),
            ("boot/grub/grub.cfg", grub.as_bytes()),
            (&format!("boot/vmlinuz-{KERNEL}"), b"kernel"),
            (&format!("boot/initrd.img-{KERNEL}"), &initramfs(&self.early, Packed::Zstd)?),
            (&format!("{modules}/modules.builtin"), b"kernel/fs/ext4/ext4.ko\n"),
            (&format!("{modules}/modules.dep"), dependencies.as_bytes()),
        ] {
            fs::write(tree.join(path), content).with_context(|| format!("writing {path}"))?;
        }
        Ok(())
    }
}

fn put(disk: &mut [u8], at: u64, bytes: &[u8]) -> Result<()> {
    let at = usize::try_from(at)?;
    disk.get_mut(at..at + bytes.len()).context("a part is larger than the disk")?.copy_from_slice(bytes);
    Ok(())
}

/// An initramfs as Debian makes it: an archive of microcode, then the packed rest.
///
/// # Errors
/// The packer is missing or fails.
pub fn initramfs(modules: &[&str], packed: Packed) -> Result<Vec<u8>> {
    let names: Vec<String> =
        modules.iter().map(|name| format!("usr/lib/modules/{KERNEL}/kernel/drivers/{name}.ko")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), b"module".as_slice())).collect();
    let early = archive(&[("kernel/x86/microcode/GenuineIntel.bin", b"microcode")]);
    let rest = archive(&files);
    let program: &[&str] = match packed {
        Packed::Plain => &["cat"],
        Packed::Gzip => &["gzip", "-c"],
        Packed::Xz => &["xz", "--check=crc32", "-c"],
        Packed::Zstd => &["zstd", "-c", "-q"],
    };
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("rest");
    fs::write(&file, rest)?;
    let packer = Command::new(program.first().context("a packer")?)
        .args(program.get(1..).unwrap_or_default())
        .stdin(fs::File::open(&file)?)
        .output()?;
    anyhow::ensure!(packer.status.success(), "{packer:?}");
    Ok([early, packer.stdout].concat())
}

/// A cpio archive, "newc".
#[must_use]
pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in files.iter().chain(&[("TRAILER!!!", b"".as_slice())]) {
        let fields = [0, 0o100_644, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        bytes.extend_from_slice(b"070701");
        for field in fields {
            bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// An EFI system partition: `\EFI\BOOT` with the loader, or `\EFI\DEBIAN` only.
fn efi_system(path: &Path, has_loader: bool) -> Result<Vec<u8>> {
    fs::File::create(path)?.set_len(EFI_BYTES)?;
    run(Command::new("mkfs.vfat").args(["-F", "16", "-s", "4", "-i", "1234ABCD"]).arg(path))?;
    let mut bytes = fs::read(path)?;
    let half = |bytes: &[u8], at: usize| u64::from(bytes[at]) | u64::from(bytes[at + 1]) << 8;
    let (reserved, tables, roots, sectors) =
        (half(&bytes, 14), u64::from(bytes[16]), half(&bytes, 17), half(&bytes, 22));
    let root = (reserved + tables * sectors) * 512;
    let data = root + roots * 32;
    let entry = |name: &[u8; 11], kind: u8, cluster: u8| {
        let mut entry = [0; 32];
        entry[..11].copy_from_slice(name);
        (entry[11], entry[26]) = (kind, cluster);
        entry
    };
    let cluster = |number: u64| data + (number - 2) * 4 * 512;
    let folder: &[u8; 11] = if has_loader { b"BOOT       " } else { b"DEBIAN     " };
    put(&mut bytes, root, &entry(b"EFI        ", 0x10, 2))?;
    put(&mut bytes, cluster(2), &entry(folder, 0x10, 3))?;
    put(&mut bytes, cluster(3), &entry(b"BOOTX64 EFI", 0x20, 4))?;
    // Three chains of one cluster each, behind the two entries that are not clusters.
    put(&mut bytes, reserved * 512 + 4, &[0xff; 6])?;
    Ok(bytes)
}
