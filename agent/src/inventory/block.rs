//! The graph of block devices: disks, partitions, and what is stacked on them.
//!
//! Owns the reading of `/sys/class/block`. Does not know file systems. Invariant: the graph is that of one reading;
//! devices that vanish meanwhile are simply not in it. Only partitions, device-mapper, md and bcache appear as `lower`;
//! a loop device's file is named in `backing_file`, and where that file lives is for the mount table to say.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{DeviceNumber, Roots, read};

/// Size of the unit in which the kernel counts sizes and starts of block devices, whatever the disk's own sectors.
pub(crate) const SECTOR_BYTES: u64 = 512;

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockNode {
    /// Kernel name ("sda1", "dm-0", "cciss!c0d0").
    pub name: String,
    /// Number.
    pub number: DeviceNumber,
    /// Size in bytes; zero for a drive without a medium.
    pub size_bytes: u64,
    /// Folder in sysfs, symbolic links resolved.
    pub folder: PathBuf,
    /// The disk that it is a partition of, and where.
    pub partition: Option<PartitionPlace>,
    /// Devices that it is built of (slaves), without the parent of a partition.
    pub lower: Vec<String>,
    /// File of a loop device.
    pub backing_file: Option<PathBuf>,
    /// Device-mapper name ("vg-root").
    pub mapper_name: Option<String>,
}

/// Where a partition lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionPlace {
    /// Kernel name of the whole disk.
    pub disk: String,
    /// Number from 1.
    pub number: u32,
    /// First byte on the disk.
    pub start_bytes: u64,
}

impl BlockNode {
    /// Device node as the kernel names it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/dev").join(self.name.replace('!', "/"))
    }

    fn read(class_folder: &Path, name: &str) -> Option<Self> {
        let folder = fs::canonicalize(class_folder.join(name)).ok()?;
        let partition = read::number(&folder.join("partition")).and_then(|number| {
            Some(PartitionPlace {
                disk: folder.parent()?.file_name()?.to_str()?.to_owned(),
                number: u32::try_from(number).ok()?,
                start_bytes: read::number(&folder.join("start"))?.checked_mul(SECTOR_BYTES)?,
            })
        });
        Some(Self {
            name: name.to_owned(),
            // Hidden path devices (nvme0c0n1) have no number and cannot be opened.
            number: DeviceNumber::parse(&read::text(&folder.join("dev"))?)?,
            size_bytes: read::number(&folder.join("size"))?.checked_mul(SECTOR_BYTES)?,
            partition,
            lower: read::names(&folder.join("slaves")),
            backing_file: backing_file(&folder),
            mapper_name: read::text(&folder.join("dm/name")),
            folder,
        })
    }
}

/// All block devices of the machine.
#[derive(Clone, Debug, Default)]
pub struct BlockGraph {
    nodes: BTreeMap<String, BlockNode>,
    upper: BTreeMap<String, Vec<String>>,
    dev: PathBuf,
}

impl BlockGraph {
    /// Reads the graph.
    ///
    /// # Errors
    /// `/sys/class/block` cannot be listed.
    pub fn read(roots: &Roots) -> io::Result<Self> {
        let class_folder = roots.sys.join("class/block");
        fs::read_dir(&class_folder)?;
        let mut graph = Self { dev: roots.dev.clone(), ..Self::default() };
        for name in read::names(&class_folder) {
            if let Some(node) = BlockNode::read(&class_folder, &name) {
                let below = node.partition.iter().map(|place| &place.disk).chain(&node.lower);
                for lower in below {
                    graph.upper.entry(lower.clone()).or_default().push(name.clone());
                }
                graph.nodes.insert(name, node);
            }
        }
        Ok(graph)
    }

    /// All devices, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &BlockNode> {
        self.nodes.values()
    }

    /// A device by kernel name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&BlockNode> {
        self.nodes.get(name)
    }

    /// A device by number.
    #[must_use]
    pub fn numbered(&self, number: DeviceNumber) -> Option<&BlockNode> {
        self.nodes.values().find(|node| node.number == number)
    }

    /// A device by its node or a symbolic link to it ("/dev/mapper/vg-root", "/dev/disk/by-uuid/...").
    #[must_use]
    pub fn at(&self, path: &Path) -> Option<&BlockNode> {
        let relative = path.strip_prefix("/dev").ok()?;
        let place = self.dev.join(relative);
        if let Ok(target) = fs::canonicalize(&place) {
            let dev = fs::canonicalize(&self.dev).ok()?;
            let name = target.strip_prefix(dev).ok()?.to_str()?.replace('/', "!");
            if let Some(node) = self.node(&name) {
                return Some(node);
            }
        }
        // Without udev the mapper's nodes are nodes of their own.
        if let Ok(mapper_name) = relative.strip_prefix("mapper") {
            let found = self
                .nodes
                .values()
                .find(|node| node.mapper_name.as_deref().is_some_and(|name| Path::new(name) == mapper_name));
            if found.is_some() {
                return found;
            }
        }
        let device = fs::metadata(place).ok()?.rdev();
        self.numbered(DeviceNumber { major: rustix::fs::major(device), minor: rustix::fs::minor(device) })
    }

    /// Devices directly on top of this one: partitions, and what is built of it.
    pub fn above(&self, name: &str) -> impl Iterator<Item = &BlockNode> {
        self.upper.get(name).into_iter().flatten().filter_map(|upper| self.nodes.get(upper))
    }

    /// Devices directly below this one.
    pub fn below<'graph>(&'graph self, node: &'graph BlockNode) -> impl Iterator<Item = &'graph BlockNode> {
        let names = node.partition.iter().map(|place| &place.disk).chain(&node.lower);
        names.filter_map(|lower| self.nodes.get(lower))
    }
}

/// File of a loop device. The kernel appends a remark when the file has been unlinked.
fn backing_file(folder: &Path) -> Option<PathBuf> {
    let text = read::text(&folder.join("loop/backing_file"))?;
    Some(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text)))
}
