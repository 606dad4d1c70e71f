//! What lies on the partitions: kind, identity, and files where the kind can be read.
//!
//! Owns probing by superblocks, and reading of ext2, ext3 and ext4. FAT and NTFS are read by those who look into them; others
//! (XFS, btrfs, LVM, BitLocker ...) are recognised and not read. Limit: [`FILE_BYTES_MAX`] per file.

use ext4_view::Ext4;

use super::{
    bytes::{Part, Source, number},
    table::{Partition, Table},
};

/// Most bytes of one file that are read.
pub const FILE_BYTES_MAX: u64 = 256 << 20;
/// Most entries of a directory that are looked at.
const ENTRIES_MAX: usize = 10_000;

/// What is known of a file system from its superblock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// "ext4", "vfat", "xfs", "btrfs", "swap", "LVM", "LUKS", "RAID", "ntfs",
    /// "BitLocker"; empty if unknown.
    pub kind: &'static str,
    /// As UUID= names it; empty if unknown.
    pub uuid: String,
    /// As LABEL= names it.
    pub label: String,
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    /// Its name on the source ("/dev/sda").
    pub path: String,
    /// Its partitions' table, or why it could not be read.
    pub table: Result<Table, String>,
    /// What lies on its partitions, or on itself.
    pub volumes: Vec<Volume>,
}

/// What may hold a file system.
#[derive(Debug)]
pub struct Volume {
    /// Its name on the source ("/dev/sda1").
    pub path: String,
    /// The partition; `None` if it is the whole disk.
    pub partition: Option<Partition>,
    /// Its bytes.
    pub part: Part,
    /// What it is.
    pub identity: Identity,
    /// Its files, or why they cannot be looked into.
    pub files: Result<Files, String>,
}

/// Files of a file system.
pub struct Files(Ext4);

impl std::fmt::Debug for Files {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Files")
    }
}

impl Files {
    /// Whether there is something of this name.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.0.exists(path).unwrap_or(false)
    }

    /// The content of a file; `None` if there is none.
    ///
    /// # Errors
    /// It is larger than [`FILE_BYTES_MAX`], or damaged.
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>, String> {
        if !self.has(path) {
            return Ok(None);
        }
        let length = self.0.metadata(path).map_err(|error| format!("{path}: {error}"))?.len();
        if length > FILE_BYTES_MAX {
            return Err(format!("{path} has {length} bytes, too many to be looked into"));
        }
        self.0.read(path).map(Some).map_err(|error| format!("{path}: {error}"))
    }

    /// A text file; `None` if there is none that can be read.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<String> {
        self.read(path).ok().flatten().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Names in a directory, sorted; none if it cannot be read.
    #[must_use]
    pub fn list(&self, path: &str) -> Vec<String> {
        let entries = self.0.read_dir(path).into_iter().flatten().take(ENTRIES_MAX);
        let names = entries.map_while(Result::ok).map(|entry| entry.file_name().display().to_string());
        let mut names: Vec<String> = names.filter(|name| name != "." && name != "..").collect();
        names.sort();
        names
    }
}

/// Looks at a disk.
#[must_use]
pub fn disk(path: &str, whole: &Part) -> Disk {
    let table = super::table::read(whole);
    let partitions = table.as_ref().map(|table| table.partitions.clone()).unwrap_or_default();
    let mut volumes: Vec<Volume> = partitions
        .into_iter()
        .map(|partition| {
            let part = whole.part(partition.start, partition.size);
            volume(partition_path(path, partition.number), Some(partition), part)
        })
        .collect();
    if volumes.is_empty() {
        volumes.push(volume(path.to_owned(), None, whole.clone()));
    }
    Disk { path: path.to_owned(), table, volumes }
}

fn partition_path(disk: &str, number: u32) -> String {
    let separator = if disk.ends_with(|last: char| last.is_ascii_digit()) { "p" } else { "" };
    format!("{disk}{separator}{number}")
}

fn volume(path: String, partition: Option<Partition>, part: Part) -> Volume {
    let identity = probe(&part);
    let files = match identity.kind {
        "ext4" => Ext4::load(Box::new(part.clone())).map(Files).map_err(|error| error.to_string()),
        "" => Err("nothing that is known here lies on it".to_owned()),
        kind => Err(format!("{kind} cannot be looked into")),
    };
    Volume { path, partition, part, identity, files }
}

/// Recognises what lies there by its superblock.
pub fn probe(source: &impl Source) -> Identity {
    let at = |offset: u64| source.array::<512>(offset).unwrap_or([0; 512]);
    let text = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).trim_end().to_owned()
    };
    let uuid =
        |bytes: &[u8]| bytes.try_into().map(|id| uuid::Uuid::from_bytes(id).to_string()).unwrap_or_default();
    let found =
        |sector: &[u8; 512], kind, id: std::ops::Range<usize>, label: std::ops::Range<usize>| Identity {
            kind,
            uuid: uuid(sector.get(id).unwrap_or_default()),
            label: text(sector.get(label).unwrap_or_default()),
        };
    let boot = at(0);
    let ext = at(1024);
    if ext.get(56..58) == Some(&[0x53, 0xef]) {
        return found(&ext, "ext4", 104..120, 120..136);
    }
    if boot.starts_with(b"XFSB") {
        return found(&boot, "xfs", 32..48, 108..120);
    }
    let btrfs = at(0x10000);
    if btrfs.get(64..72) == Some(b"_BHRfS_M") {
        return found(&btrfs, "btrfs", 32..48, 299..512);
    }
    let swap = at(4096 - 512);
    if swap.get(502..512) == Some(b"SWAPSPACE2") {
        return found(&at(1024), "swap", 12..28, 28..44);
    }
    let kind = |kind| Identity { kind, ..Identity::default() };
    if at(512).starts_with(b"LABELONE") || boot.starts_with(b"LABELONE") {
        return kind("LVM");
    }
    if boot.starts_with(b"LUKS\xba\xbe") {
        return Identity { uuid: text(boot.get(168..208).unwrap_or_default()), ..kind("LUKS") };
    }
    if number(&at(4096), 0..4) == 0xa92b_4efc || number(&boot, 0..4) == 0xa92b_4efc {
        return kind("RAID");
    }
    if boot.get(3..11) == Some(b"-FVE-FS-") {
        return kind("BitLocker");
    }
    if boot.get(3..7) == Some(b"NTFS") {
        return Identity { uuid: format!("{:016X}", number(&boot, 72..80)), ..kind("ntfs") };
    }
    let fat = if boot.get(82..87) == Some(b"FAT32") {
        Some((67..71, 71..82))
    } else {
        (boot.get(54..57) == Some(b"FAT")).then_some((39..43, 43..54))
    };
    if let Some((id, label)) = fat {
        let id = number(&boot, id);
        let uuid = format!("{:04X}-{:04X}", id >> 16, id & 0xffff);
        return Identity { uuid, label: text(boot.get(label).unwrap_or_default()), ..kind("vfat") };
    }
    Identity::default()
}
