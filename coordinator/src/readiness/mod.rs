//! Whether a machine will boot at the target, told before it matters: its inventory and a look into its replica.
//!
//! Owns the look ([`look`]) and what it says ([`Report`]). Reads a point's disks only, in this process, without mounting; does not
//! know jobs, nor how QEMU is started: what devices there will be comes as [`Planned`]. What cannot be read is said to be
//! not looked into, and never counts as good.
//! Limits: those of [`bytes`]; a look blocks, so callers run it on a pool.
//!
//! ```text
//! point's disks -> table -> volumes -> files -> facts: system, boot, fstab, network (Linux), windows -> findings
//! ```

// Bounded reading.
pub mod bytes;
// Partition tables.
pub mod table;
// What lies on partitions.
pub mod volumes;
// EFI system partitions.
pub mod fat;
// What an initramfs holds.
pub mod initramfs;
// Files of an NTFS.
pub mod ntfs;
// A registry's keys and values.
pub mod hive;
// Firmware and what it starts.
mod boot;
// Kernel, initramfs and drivers.
mod system;
// What is mounted at boot.
mod fstab;
// How the network is set up.
mod network;
// Windows by its registry.
mod windows;
// What is kept of a look.
pub mod record;

use std::{rc::Rc, sync::Arc};

use holdfast_common::wire::Inventory;
use serde::{Deserialize, Serialize};

use crate::{
    compute::machines::{Controller, Planned, Suited},
    points::view::BlockView,
    registry::health::{Finding, Level},
};
use bytes::{Budget, Part};
use volumes::{Disk, Files, Volume};

/// What is looked at.
#[derive(Debug)]
pub struct Subject {
    /// What the agent told last.
    pub inventory: Inventory,
    /// The devices that it will have, or why it cannot be run here.
    pub planned: Result<Planned, String>,
    /// What its disks could hang on instead.
    pub controllers: Vec<Controller>,
    /// Disks of the point, by their names on the source, in their order.
    pub disks: Vec<(String, Arc<dyn BlockView>)>,
}

/// Whether it will boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing was found against it, and all that matters was looked into.
    Ready,
    /// Nothing was found against it, but something that matters was not looked into.
    #[default]
    Unknown,
    /// It may not boot, or not as it should.
    Doubtful,
    /// It will not boot.
    NotReady,
}

/// What a look has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The sum.
    pub verdict: Verdict,
    /// What is wrong or worth knowing, worst first. Healthy ones are no faults.
    pub findings: Vec<Finding>,
    /// What was seen, in words.
    pub seen: Vec<String>,
    /// What matters and was not looked into, and why.
    pub not_looked_into: Vec<String>,
    /// What it would start on. Does not depend on what was planned.
    pub suited: Suited,
}

impl Report {
    pub(crate) fn say(&mut self, level: Level, reason: impl Into<String>, advice: impl Into<String>) {
        self.findings.push(Finding { level, reason: reason.into(), advice: advice.into() });
    }

    fn critical(&mut self, reason: impl Into<String>, advice: impl Into<String>) {
        self.say(Level::Critical, reason, advice);
    }

    fn warning(&mut self, reason: impl Into<String>, advice: impl Into<String>) {
        self.say(Level::Warning, reason, advice);
    }

    fn note(&mut self, reason: impl Into<String>, advice: impl Into<String>) {
        self.say(Level::Healthy, reason, advice);
    }

    /// What speaks against its booting, in short; `None` if nothing does.
    #[must_use]
    pub fn against(&self) -> Option<String> {
        let faults: Vec<&Finding> =
            self.findings.iter().filter(|finding| finding.level > Level::Healthy).collect();
        let first = faults.first()?;
        let sum = if self.verdict == Verdict::NotReady {
            "will not boot"
        } else {
            "may not boot, or not as it should,"
        };
        let more = match faults.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        Some(format!("it {sum} at the target: {}{more}", first.reason))
    }

    /// Puts the findings in order, and sums up.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
        self.verdict = match self.findings.first().map(|finding| finding.level) {
            Some(Level::Critical) => Verdict::NotReady,
            Some(Level::Warning) => Verdict::Doubtful,
            _ if self.not_looked_into.is_empty() => Verdict::Ready,
            _ => Verdict::Unknown,
        };
        self
    }
}

/// Looks at a machine. Blocks.
#[must_use]
pub fn look(subject: &Subject) -> Report {
    let mut report = Report::default();
    let budget = Rc::new(Budget::default());
    let whole = |view: &Arc<dyn BlockView>| Part::whole(Arc::clone(view), Rc::clone(&budget));
    let disks: Vec<Disk> =
        subject.disks.iter().map(|(path, view)| volumes::disk(path, &whole(view))).collect();
    describe(&disks, &mut report);
    if root(&disks).is_none() && !disks.iter().any(starts) {
        report.not_looked_into.push("the protected disks hold no system that could be booted".to_owned());
        report.note(
            "the protected disks hold data and no system: they can be attached or written to images, not booted",
            "protect the machine's system disk as well if it shall run at the target",
        );
        return report.sealed();
    }
    if let Err(reason) = &subject.planned {
        report.critical(
            format!("it cannot be run on this host: {reason}"),
            "follow the text, then `holdfast readiness MACHINE --now`",
        );
    }
    let planned = subject.planned.clone().unwrap_or_default();
    for remark in &planned.remarks {
        report.note(remark.clone(), "set it in the machine's hardware file if it should be otherwise");
    }
    boot::look(&disks, planned.firmware, &mut report);
    report.suited.firmware = boot::firmware(&disks);
    let Some(root) = root(&disks) else {
        if !windows::look(&disks, &planned, &mut report) {
            no_root(&disks, &mut report);
        }
        return report.sealed();
    };
    report.seen.push(format!("root file system on {}", root.path));
    let Ok(files) = &root.files else { return report.sealed() };
    let found = System { subject, planned: &planned, disks: &disks, root: files };
    system::look(&found, &mut report);
    fstab::look(&found, &mut report);
    network::look(&found, &mut report);
    report.sealed()
}

/// A system that can be looked into.
struct System<'a> {
    subject: &'a Subject,
    planned: &'a Planned,
    disks: &'a [Disk],
    root: &'a Files,
}

impl System<'_> {
    fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.disks.iter().flat_map(|disk| &disk.volumes)
    }

    /// Judges how something is named that has to be found again at the target.
    fn name(&self, spec: &str) -> Named {
        let quoted = |text: &str| text.trim_matches('"').to_owned();
        let is = |has: &dyn Fn(&Volume) -> bool| {
            if self.volumes().any(has) { Named::Found } else { Named::Missing }
        };
        let partition =
            |volume: &Volume, has: &dyn Fn(&Partition) -> bool| volume.partition.as_ref().is_some_and(has);
        let by_link = |kind: &str| {
            spec.strip_prefix("/dev/disk/by-").and_then(|rest| rest.strip_prefix(kind)).map(quoted)
        };
        let given = |tag: &str, link: &str| spec.strip_prefix(tag).map(quoted).or_else(|| by_link(link));
        if let Some(id) = given("UUID=", "uuid/") {
            return is(&|volume| volume.identity.uuid.eq_ignore_ascii_case(&id));
        }
        if let Some(id) = given("LABEL=", "label/") {
            return is(&|volume| volume.identity.label == id);
        }
        if let Some(id) = given("PARTUUID=", "partuuid/") {
            return is(&|volume| partition(volume, &|found| found.id.eq_ignore_ascii_case(&id)));
        }
        if let Some(id) = given("PARTLABEL=", "partlabel/") {
            return is(&|volume| partition(volume, &|found| found.label == id));
        }
        if spec.starts_with("/dev/disk/by-path/") || spec.starts_with("/dev/disk/by-id/") {
            return Named::ByPlace;
        }
        let Some(name) = spec.strip_prefix("/dev/") else { return Named::Other };
        let node = ["sd", "vd", "hd", "xvd", "nvme"].into_iter().find(|prefix| name.starts_with(prefix));
        match node {
            None => Named::Other,
            Some(prefix) if prefix == self.planned.node_prefix => {
                // Disks that are files on the source say nothing of the names inside.
                let known = self.disks.iter().any(|disk| disk.path.starts_with(&format!("/dev/{prefix}")));
                if !known || self.volumes().any(|volume| volume.path == spec) {
                    Named::ByOrder
                } else {
                    Named::Missing
                }
            }
            Some(_) => Named::ByOldName,
        }
    }
}

use table::Partition;

/// How something is named that has to be found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    /// By what stays, and it is on a protected disk.
    Found,
    /// By a name that stands for nothing on the protected disks.
    Missing,
    /// By a device's name that goes by the order of disks.
    ByOrder,
    /// By a device's name that there will not be.
    ByOldName,
    /// By where it is plugged in, or its serial number, which may change.
    ByPlace,
    /// Otherwise (LVM, RAID, tmpfs, a server).
    Other,
}

/// The volume with the system.
fn root(disks: &[Disk]) -> Option<&Volume> {
    let volumes = disks.iter().flat_map(|disk| &disk.volumes);
    let mut readable = volumes.filter(|volume| volume.files.is_ok());
    let is_root = |volume: &&Volume| {
        volume.files.as_ref().is_ok_and(|files| {
            files.has("/etc/fstab") || files.has("/etc/os-release") || files.has("/usr/lib/os-release")
        })
    };
    readable.find(is_root)
}

/// Whether a firmware may start something from the disk.
fn starts(disk: &Disk) -> bool {
    let efi = |volume: &Volume| volume.partition.as_ref().is_some_and(|found| found.is_efi);
    disk.table.as_ref().is_ok_and(|table| table.has_boot_code && !table.partitions.is_empty())
        || disk.volumes.iter().any(efi)
}

fn describe(disks: &[Disk], report: &mut Report) {
    for disk in disks {
        let table = match &disk.table {
            Err(error) => {
                let reason = format!("the partition table of {} cannot be read: {error}", disk.path);
                report.critical(
                    reason,
                    "see that the source boots from this disk; compare it with `holdfast compare start`",
                );
                continue;
            }
            Ok(table) if table.kind.is_empty() => "no partition table".to_owned(),
            Ok(table) => format!("{} with {} partitions", table.kind.to_uppercase(), table.partitions.len()),
        };
        let kinds: Vec<String> = disk
            .volumes
            .iter()
            .filter(|volume| !volume.identity.kind.is_empty())
            .map(|volume| format!("{} {}", volume.path, volume.identity.kind))
            .collect();
        report.seen.push(format!("{}: {table}; {}", disk.path, kinds.join(", ")));
    }
}

/// There is nothing that can be looked into: why.
fn no_root(disks: &[Disk], report: &mut Report) {
    let mut whys = Vec::new();
    for volume in disks.iter().flat_map(|disk| &disk.volumes) {
        match (&volume.files, volume.identity.kind) {
            (_, "" | "swap" | "vfat" | "ntfs") | (Ok(_), _) => {}
            (Err(error), "ext4") => {
                report.warning(
                    format!("the file system of {} cannot be read: {error}", volume.path),
                    "check it on the source (fsck), and compare the disk with `holdfast compare start`",
                );
            }
            (Err(error), _) => whys.push(format!("{}: {error}", volume.path)),
        }
    }
    if whys.is_empty() {
        report.not_looked_into.push("no system was found on the protected disks".to_owned());
    }
    report.not_looked_into.extend(whys);
    report.note(
        "the system itself was not looked into (its file system cannot be read here)",
        "only a drill proves that it boots: `holdfast test-failover MACHINE --vm`",
    );
}

#[cfg(test)]
mod tests;
