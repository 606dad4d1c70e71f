//! Disks with what is looked at of a Windows, made by mkntfs, ntfs-3g (FUSE), mkfs.vfat, mtools and sfdisk.
//!
//! Owns the making: a table, an EFI system partition or an active partition, an NTFS with the registry's files and drivers. Does
//! not boot, and holds nothing of Windows itself.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    file_system::run,
    hive::{List, Tree, binary, dword, path, text},
};

/// Id of the partition with Windows, on a GPT.
pub const WINDOWS_ID: &str = "00112233-4455-6677-8899-aabbccddeeff";
/// Signature of an MBR.
pub const SIGNATURE: u32 = 0x1234_5678;
const MIB: u64 = 1 << 20;
const EFI_BYTES: u64 = 16 * MIB;
const NTFS_BYTES: u64 = 24 * MIB;

/// Why such disks cannot be made here; `None` if they can.
#[must_use]
pub fn unavailable() -> Option<String> {
    let tools = ["mkntfs", "ntfs-3g", "mkfs.vfat", "mcopy", "mmd", "sfdisk"];
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let is_there = |tool: &str| folders.iter().any(|folder| Path::new(folder).join(tool).exists());
    if let Some(tool) = tools.into_iter().find(|tool| !is_there(tool)) {
        return Some(format!("no {tool} (Debian: ntfs-3g, dosfstools, mtools, fdisk)"));
    }
    (!Path::new("/dev/fuse").exists()).then(|| "no /dev/fuse".to_owned())
}

/// A Windows to be made.
#[derive(Clone, Debug)]
pub struct WindowsDisk {
    /// The registry's SYSTEM.
    pub system: Tree,
    /// The registry's SOFTWARE.
    pub software: Tree,
    /// Files in `System32\drivers`.
    pub drivers: Vec<&'static str>,
    /// What is in `\EFI\Microsoft\Boot` of a GPT's EFI system partition; `None` for an MBR.
    pub efi: Option<Vec<&'static str>>,
    /// Whether an MBR's partition is active.
    pub is_active: bool,
    /// Further files by their paths from the top of the NTFS, written over what is there.
    pub files: Vec<(PathBuf, Vec<u8>)>,
}

impl Default for WindowsDisk {
    /// A server that starts by UEFI from SATA or NVMe, as it is right after its installation.
    fn default() -> Self {
        let mut system = Tree::default();
        system.set("Select", "Current", dword(1));
        system.set(r"ControlSet001\Services\partmgr\Parameters", "SanPolicy", dword(1));
        for (name, start) in [("storahci", 0), ("stornvme", 0), ("LSI_SAS", 3), ("e1iexpress", 3)] {
            let key = format!(r"ControlSet001\Services\{name}");
            system.set(&key, "Start", dword(start));
            system.set(&key, "ImagePath", path(&format!(r"System32\drivers\{name}.sys")));
        }
        system.set(r"ControlSet001\Services\Tcpip\Parameters\Interfaces\{4d36e972}", "EnableDHCP", dword(1));
        let id = uuid::Uuid::parse_str(WINDOWS_ID).expect("an id").to_bytes_le();
        system.set("MountedDevices", r"\DosDevices\C:", binary(&[b"DMIO:ID:".as_slice(), &id].concat()));
        let mut software = Tree::default();
        let key = r"Microsoft\Windows NT\CurrentVersion";
        software.set(key, "ProductName", text("Windows Server 2022 Standard"));
        software.set(key, "CurrentBuild", text("20348"));
        software.set(key, "InstallationType", text("Server"));
        Self {
            system,
            software,
            drivers: vec!["storahci", "stornvme", "LSI_SAS"],
            efi: Some(vec!["bootmgfw.efi", "BCD"]),
            is_active: true,
            files: Vec::new(),
        }
    }
}

impl WindowsDisk {
    /// The same as one that starts by BIOS.
    #[must_use]
    pub fn by_bios(mut self) -> Self {
        self.efi = None;
        let place = [SIGNATURE.to_le_bytes().as_slice(), &MIB.to_le_bytes()].concat();
        self.system.set("MountedDevices", r"\DosDevices\C:", binary(&place));
        self.files.push((PathBuf::from("bootmgr"), b"boot manager".to_vec()));
        self.files.push((PathBuf::from("Boot/BCD"), b"regf".to_vec()));
        self
    }

    /// Makes it.
    ///
    /// # Errors
    /// A tool is missing or fails.
    pub fn make(&self) -> Result<Vec<u8>> {
        let folder = tempfile::tempdir()?;
        let ntfs = folder.path().join("ntfs.img");
        fs::File::create(&ntfs)?.set_len(NTFS_BYTES)?;
        run(Command::new("mkntfs").args(["-q", "-F", "-Q", "-L", "Windows"]).arg(&ntfs))?;
        {
            let mounted = Mounted::new(&ntfs, folder.path())?;
            self.fill(&mounted.folder)?;
        }
        let efi = self.efi.as_ref().map(|names| efi_system(folder.path(), names)).transpose()?;
        let disk = folder.path().join("disk.img");
        fs::File::create(&disk)?.set_len(MIB + EFI_BYTES + NTFS_BYTES + MIB)?;
        let sectors = NTFS_BYTES / 512;
        let table = if efi.is_some() {
            let data = "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7";
            format!(
                "label: gpt\nstart=2048,size=32768,type=U\nsize={sectors},type={data},uuid={WINDOWS_ID}\n"
            )
        } else {
            let active = if self.is_active { ",bootable" } else { "" };
            format!("label: dos\nlabel-id: {SIGNATURE:#x}\nstart=2048,size={sectors},type=7{active}\n")
        };
        let file = folder.path().join("table");
        fs::write(&file, table)?;
        run(Command::new("sh").args(["-c", "sfdisk --quiet \"$1\" < \"$2\"", "sh"]).arg(&disk).arg(&file))?;
        let mut bytes = fs::read(&disk)?;
        let mut put = |at: u64, part: &[u8]| -> Result<()> {
            let at = usize::try_from(at)?;
            bytes
                .get_mut(at..at + part.len())
                .context("a part is larger than the disk")?
                .copy_from_slice(part);
            Ok(())
        };
        let windows_at = if let Some(efi) = &efi {
            put(MIB, efi)?;
            MIB + EFI_BYTES
        } else {
            // What Windows' setup writes there.
            put(0, &[0x33, 0xc0, 0x8e])?;
            MIB
        };
        put(windows_at, &fs::read(&ntfs)?)?;
        Ok(bytes)
    }

    fn fill(&self, top: &Path) -> Result<()> {
        let config = top.join("Windows/System32/config");
        let drivers = top.join("Windows/System32/drivers");
        for folder in [&config, &drivers] {
            fs::create_dir_all(folder)?;
        }
        // So many that the folder's names do not fit into its own record.
        for number in 0..200 {
            fs::write(drivers.join(format!("filler-{number:03}.sys")), b"driver")?;
        }
        for name in &self.drivers {
            fs::write(drivers.join(format!("{name}.sys")), b"driver")?;
        }
        fs::write(config.join("SYSTEM"), self.system.hive(List::Lh))?;
        fs::write(config.join("SOFTWARE"), self.software.hive(List::Ri))?;
        for (path, content) in &self.files {
            let path = top.join(path);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            fs::write(path, content)?;
        }
        Ok(())
    }
}

/// An NTFS in a file, mounted by ntfs-3g.
struct Mounted {
    folder: PathBuf,
    server: Child,
}

impl Mounted {
    fn new(image: &Path, folder: &Path) -> Result<Self> {
        let folder = folder.join("mounted");
        fs::create_dir(&folder)?;
        let outside = fs::metadata(&folder)?.dev();
        // In the foreground: its end says that all is written.
        let mut command = Command::new("ntfs-3g");
        let server = command.args(["-o", "no_detach"]).arg(image).arg(&folder).spawn()?;
        let mut mounted = Self { folder, server };
        let deadline = Instant::now() + Duration::from_secs(30);
        while fs::metadata(&mounted.folder)?.dev() == outside {
            ensure!(mounted.server.try_wait()?.is_none(), "ntfs-3g ended");
            ensure!(Instant::now() < deadline, "ntfs-3g does not mount");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Nothing may hold it by now; if something does, the test fails by what is missing.
        let _ = run(Command::new("umount").arg(&self.folder));
        let _ = self.server.wait();
    }
}

/// An EFI system partition as Windows makes it: its loader where every firmware looks, and its own folder.
fn efi_system(folder: &Path, names: &[&str]) -> Result<Vec<u8>> {
    let (image, file) = (folder.join("efi.img"), folder.join("file"));
    fs::File::create(&image)?.set_len(EFI_BYTES)?;
    fs::write(&file, b"file")?;
    run(Command::new("mkfs.vfat").args(["-F", "16"]).arg(&image))?;
    let folders = ["::EFI", "::EFI/Microsoft", "::EFI/Microsoft/Boot", "::EFI/Boot"];
    run(Command::new("mmd").arg("-i").arg(&image).args(folders))?;
    let files = names.iter().map(|name| format!("::EFI/Microsoft/Boot/{name}"));
    for path in files.chain(["::EFI/Boot/bootx64.efi".to_owned()]) {
        run(Command::new("mcopy").arg("-i").arg(&image).arg(&file).arg(path))?;
    }
    Ok(fs::read(&image)?)
}
