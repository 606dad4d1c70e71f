//! From disks up to the file systems and swap areas that live on them.
//!
//! Owns the walk through partitions, device-mapper (LVM, dm-crypt, multipath), md, file systems over several disks
//! (btrfs, external logs), and loop devices whose file lies on one of those file systems. Does not know freezing.
//! Invariant: the walk only goes up from the given disks, so a file system is found if and only if a write to it can
//! end on one of them. Pure once read.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use super::{
    DeviceNumber, Roots,
    block::{BlockGraph, BlockNode},
    mounts::{self, BtrfsMembers, Mount, MountPoints, Swap},
};

/// Options of a superblock that name further devices of the file system (XFS; ext4).
const DEVICE_OPTIONS: [&str; 3] = ["logdev", "rtdev", "journal_path"];

/// Everything the walk needs, as of one reading.
#[derive(Clone, Debug, Default)]
pub struct Stack {
    /// Block devices.
    pub graph: BlockGraph,
    /// Mounted file systems with a block device below them.
    pub superblocks: Vec<Superblock>,
    /// Swap areas.
    pub swaps: Vec<Swap>,
    /// Numbers of the file systems that loop devices' files lie in, by the devices' names. Looked up once: on a host with
    /// many loop devices the walk asks for each of them at every step.
    carriers: BTreeMap<String, DeviceNumber>,
}

/// A mounted file system, with all its mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Number in the mount table.
    pub number: DeviceNumber,
    /// What it was mounted from.
    pub source: String,
    /// Type.
    pub kind: String,
    /// Kernel names of the devices it lies on.
    pub members: BTreeSet<String>,
    /// Identity and place of each mount; those of the whole file system before bind mounts of parts.
    pub mounts: Vec<(u64, PathBuf)>,
    /// Whether nothing can be written to it.
    pub read_only: bool,
}

/// What lives on some disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Above<'stack> {
    /// Kernel names of the devices reached, the disks themselves included.
    pub devices: BTreeSet<&'stack str>,
    /// File systems reached.
    pub superblocks: Vec<&'stack Superblock>,
}

impl Stack {
    /// Reads block devices, mounts and swap areas.
    ///
    /// # Errors
    /// The file or folder that could not be read or understood, and why.
    pub fn read(roots: &Roots) -> Result<Self, (PathBuf, io::Error)> {
        let graph = BlockGraph::read(roots).map_err(|error| (roots.sys.join("class/block"), error))?;
        let mounts = mounts::mounts(roots).map_err(|error| (mounts::mounts_path(roots), error))?;
        let swaps = mounts::swaps(roots).map_err(|error| (roots.proc.join("swaps"), error))?;
        Ok(Self::new(graph, mounts, &mounts::btrfs_members(roots), swaps))
    }

    fn new(graph: BlockGraph, mounts: Vec<Mount>, btrfs: &BtrfsMembers, swaps: Vec<Swap>) -> Self {
        let mut superblocks: Vec<Superblock> = Vec::new();
        for mount in &mounts {
            let place = (mount.id, mount.mount_point.clone());
            if let Some(known) = superblocks.iter_mut().find(|known| known.number == mount.number) {
                let whole_first = if mount.root == Path::new("/") { 0 } else { known.mounts.len() };
                known.mounts.insert(whole_first, place);
                continue;
            }
            let members = members(&graph, btrfs, mount);
            if !members.is_empty() {
                superblocks.push(Superblock {
                    number: mount.number,
                    source: mount.source.clone(),
                    kind: mount.kind.clone(),
                    members,
                    mounts: vec![place],
                    read_only: mount.is_read_only(),
                });
            }
        }
        superblocks.sort_by_key(|superblock| superblock.number);
        let points = MountPoints::new(&mounts);
        let carrier = |node: &BlockNode| {
            let mount = points.of(node.backing_file.as_deref()?)?;
            Some((node.name.clone(), mount.number))
        };
        let carriers = graph.nodes().filter_map(carrier).collect();
        Self { graph, superblocks, swaps, carriers }
    }

    /// What lives on these disks (kernel names).
    #[must_use]
    pub fn above<'stack>(&'stack self, disks: &[&'stack str]) -> Above<'stack> {
        let mut above = Above::default();
        let mut waiting: Vec<&str> = disks.to_vec();
        while let Some(name) = waiting.pop() {
            if !above.devices.insert(name) {
                continue;
            }
            waiting.extend(self.graph.above(name).map(|node| node.name.as_str()));
            for superblock in self.superblocks.iter().filter(|superblock| superblock.members.contains(name)) {
                if !above.superblocks.contains(&superblock) {
                    above.superblocks.push(superblock);
                    waiting.extend(self.loops_in(superblock).map(|node| node.name.as_str()));
                }
            }
        }
        above.superblocks.sort_by_key(|superblock| superblock.number);
        above
    }

    /// File systems whose files carry this one's devices: they must be able to write when this one does.
    #[must_use]
    pub fn carriers<'stack>(&'stack self, superblock: &'stack Superblock) -> Vec<&'stack Superblock> {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        let mut carriers: Vec<&Superblock> = Vec::new();
        let mut waiting: Vec<&BlockNode> =
            superblock.members.iter().filter_map(|member| self.graph.node(member)).collect();
        while let Some(node) = waiting.pop() {
            if !seen.insert(&node.name) {
                continue;
            }
            waiting.extend(self.graph.below(node));
            if let Some(carrier) = self.carrier_of(node)
                && !carriers.contains(&carrier)
            {
                carriers.push(carrier);
                waiting.extend(carrier.members.iter().filter_map(|member| self.graph.node(member)));
            }
        }
        carriers
    }

    /// Loop devices whose file lies in this file system.
    fn loops_in<'stack>(
        &'stack self,
        superblock: &'stack Superblock,
    ) -> impl Iterator<Item = &'stack BlockNode> {
        let inside = self.carriers.iter().filter(|(_, number)| **number == superblock.number);
        inside.filter_map(|(name, _)| self.graph.node(name))
    }

    /// File system that a loop device's file lies in.
    fn carrier_of(&self, node: &BlockNode) -> Option<&Superblock> {
        let number = self.carriers.get(&node.name)?;
        self.superblocks.iter().find(|superblock| superblock.number == *number)
    }
}

/// Devices that a mounted file system lies on; none for those without any (tmpfs, NFS, overlay).
fn members(graph: &BlockGraph, btrfs: &BtrfsMembers, mount: &Mount) -> BTreeSet<String> {
    let mut members = BTreeSet::new();
    if let Some(node) = graph.numbered(mount.number) {
        members.insert(node.name.clone());
        let further = DEVICE_OPTIONS.iter().flat_map(|key| mount.option(key));
        members.extend(further.filter_map(|path| Some(graph.at(Path::new(path))?.name.clone())));
    } else if matches!(mount.kind.as_str(), "btrfs" | "bcachefs") {
        // These have a number of their own; the source names one member, or all of them with colons between.
        let sources = mount.source.split(':');
        members.extend(sources.filter_map(|path| Some(graph.at(Path::new(path))?.name.clone())));
        let whole = btrfs.values().find(|devices| !devices.is_disjoint(&members));
        members.extend(whole.into_iter().flatten().cloned());
    }
    members
}
