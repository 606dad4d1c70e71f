//! Windows, as its registry tells: whether it will start at the target, and with all of its disks.
//!
//! Owns finding the system and its registry. The rules are in the files below this one. What cannot be read is said to be not
//! looked into. Does not know Linux.

// What the firmware starts.
mod loader;
// Drivers of disks.
mod drivers;
// Data disks and drive letters.
mod disks;
// Network cards and addresses.
mod network;

use super::{
    Report,
    hive::{Hive, State},
    ntfs::NtfsVolume,
    volumes::{Disk, Volume},
};
use crate::compute::machines::Planned;

/// Where the registry's files are.
const CONFIG: &str = r"Windows\System32\config";
/// Builds from here on are Windows 11, whatever the registry calls them.
const FIRST_BUILD_OF_11: u32 = 22_000;

/// A Windows that can be looked into.
struct Windows<'a> {
    disks: &'a [Disk],
    volume: &'a Volume,
    files: NtfsVolume,
    system: Hive,
    /// The set of settings that it starts with ("ControlSet001").
    control: String,
    /// "Server", "Server Core" or "Client"; empty if unknown.
    installation: String,
}

/// Looks at the first Windows on the disks; `false` if there is none that can be looked into.
pub(super) fn look(disks: &[Disk], planned: &Planned, report: &mut Report) -> bool {
    locked(disks, report);
    let Some((volume, files)) = find(disks, report) else { return false };
    report.seen.push(format!("Windows on {} (NTFS, its journal not replayed)", volume.path));
    loader::look(disks, planned.firmware, report);
    let system = match registry(&files, "SYSTEM", report) {
        Ok(Some(system)) => system,
        Ok(None) => return true,
        Err(error) => {
            report.warning(
                format!("the registry of {} cannot be read: {error}", volume.path),
                "see that the source starts (`chkdsk` there), and compare the disk with `holdfast compare start`",
            );
            return true;
        }
    };
    let installation = version(&files, report);
    let control = match control(&system) {
        Ok(control) => control,
        Err(error) => {
            report.not_looked_into.push(format!("the settings of Windows: {error}"));
            return true;
        }
    };
    let windows = Windows { disks, volume, files, system, control, installation };
    for (what, looked) in [
        ("its drivers of disks", drivers::look(&windows, planned, report)),
        ("what it does with further disks", disks::look(&windows, report)),
        ("its network", network::look(&windows, planned, report)),
    ] {
        if let Err(error) = looked {
            report.not_looked_into.push(format!("{what}: {error}"));
        }
    }
    true
}

impl Windows<'_> {
    /// The path of a key below the settings that it starts with.
    fn setting(&self, path: &str) -> String {
        format!(r"{}\{path}", self.control)
    }

    /// A service's key.
    fn service(&self, name: &str) -> String {
        self.setting(&format!(r"Services\{name}"))
    }

    /// Whether a service of this name is installed.
    fn has_service(&self, name: &str) -> Result<bool, String> {
        Ok(self.system.key(&self.service(name))?.is_some())
    }
}

/// Volumes that only open with a key.
fn locked(disks: &[Disk], report: &mut Report) {
    let volumes = disks.iter().flat_map(|disk| &disk.volumes);
    let locked: Vec<&str> = volumes
        .filter(|volume| volume.identity.kind == "BitLocker")
        .map(|volume| volume.path.as_str())
        .collect();
    if !locked.is_empty() {
        report.warning(
            format!(
                "{} is encrypted by BitLocker: without the source's TPM the machine will wait for its recovery key",
                locked.join(", ")
            ),
            "have the recovery key at hand (`manage-bde -protectors -get C:`), or suspend BitLocker while the machine runs at the \
             target",
        );
    }
}

fn find<'a>(disks: &'a [Disk], report: &mut Report) -> Option<(&'a Volume, NtfsVolume)> {
    let volumes = disks.iter().flat_map(|disk| &disk.volumes);
    for volume in volumes.filter(|volume| volume.identity.kind == "ntfs") {
        let opened = NtfsVolume::open(&volume.part)
            .and_then(|files| Ok(files.has(&format!(r"{CONFIG}\SYSTEM"))?.then_some(files)));
        match opened {
            Ok(Some(files)) => return Some((volume, files)),
            Ok(None) => {}
            Err(error) => report.warning(
                format!("the file system of {} cannot be read: {error}", volume.path),
                "check it on the source (chkdsk), and compare the disk with `holdfast compare start`",
            ),
        }
    }
    None
}

/// A file of the registry with what its logs have.
fn registry(files: &NtfsVolume, name: &str, report: &mut Report) -> Result<Option<Hive>, String> {
    let path = format!(r"{CONFIG}\{name}");
    let Some(file) = files.read(&path)? else { return Ok(None) };
    let log = |ending: &str| files.read(&format!("{path}.{ending}")).ok().flatten();
    let logs = if Hive::lacks_changes(&file) {
        ["LOG1", "LOG2"].into_iter().filter_map(log).collect()
    } else {
        Vec::new()
    };
    let hive = Hive::open(file, &logs).map_err(|error| format!("{path}: {error}"))?;
    match hive.state() {
        State::Whole => {}
        State::Replayed { entries } => {
            report.seen.push(format!("registry {name} with {entries} changes from its logs"));
        }
        State::Unfinished { reason } => report.not_looked_into.push(format!(
            "the newest changes of the registry {name}: it was being written to, and {reason}; what is said goes by what it had before"
        )),
    }
    Ok(Some(hive))
}

/// Says which Windows it is; what kind of installation.
fn version(files: &NtfsVolume, report: &mut Report) -> String {
    let told = registry(files, "SOFTWARE", report).and_then(|software| {
        let key =
            software.as_ref().map(|hive| hive.key(r"Microsoft\Windows NT\CurrentVersion")).transpose()?;
        let Some(key) = key.flatten() else { return Ok(None) };
        let text = |name: &str| Ok::<_, String>(key.value(name)?.and_then(|value| value.text()));
        Ok(Some((text("ProductName")?, text("CurrentBuild")?, text("InstallationType")?)))
    });
    match told {
        Ok(Some((product, build, installation))) => {
            let build = build.unwrap_or_default();
            let is_11 = build.parse::<u32>().is_ok_and(|build| build >= FIRST_BUILD_OF_11);
            let product = product.unwrap_or_else(|| "Windows".to_owned());
            let product = if is_11 { product.replace("Windows 10", "Windows 11") } else { product };
            report.seen.push(format!("{product}, build {build}"));
            installation.unwrap_or_default()
        }
        Ok(None) => String::new(),
        Err(error) => {
            report.seen.push(format!("a Windows of unknown version ({error})"));
            String::new()
        }
    }
}

/// The set of settings that it starts with.
fn control(system: &Hive) -> Result<String, String> {
    let current = system.number("Select", "Current")?;
    let current = current.ok_or(r"the registry has no Select\Current")?;
    let control = format!("ControlSet{current:03}");
    system.key(&control)?.map(|_| control.clone()).ok_or_else(|| format!("the registry has no {control}"))
}
