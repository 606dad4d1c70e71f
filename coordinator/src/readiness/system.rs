//! Kernel, initramfs, and whether they have drivers for what the machine will have.
//!
//! Owns the rules. The kernel is the one that the source runs, else the newest; its files are in `/boot` of the root or at the top of
//! a file system of their own.

use std::collections::BTreeSet;

use super::{
    Named, Report, System,
    initramfs::{self, Modules},
    volumes::Files,
};
use crate::compute::machines::Controller;

/// Where boot loaders keep what they hand to the kernel.
const LOADERS: [&str; 6] = [
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/grub/grub.cfg",
    "/grub2/grub.cfg",
    "/boot/extlinux/extlinux.conf",
    "/extlinux/extlinux.conf",
];

pub(super) fn look(system: &System<'_>, report: &mut Report) {
    let kernels = kernels(system);
    let running = &system.subject.inventory.kernel;
    let kernel = kernels.iter().find(|kernel| kernel.release == *running).or_else(|| kernels.last());
    let Some(kernel) = kernel else {
        report.not_looked_into.push("no kernel was found in a /boot that can be read".to_owned());
        return;
    };
    report.seen.push(format!("kernel {}", kernel.release));
    drivers(system, kernel, report);
    root_name(system, report);
}

/// A kernel, and where its initramfs is.
struct Kernel<'a> {
    release: String,
    files: &'a Files,
    initramfs: Option<String>,
}

/// Kernels of all file systems, oldest first.
fn kernels<'a>(system: &'a System<'_>) -> Vec<Kernel<'a>> {
    let mut found = Vec::new();
    for files in system.volumes().filter_map(|volume| volume.files.as_ref().ok()) {
        for folder in ["/boot", ""] {
            let names = files.list(if folder.is_empty() { "/" } else { folder });
            for name in &names {
                let Some(release) =
                    name.strip_prefix("vmlinuz-").filter(|release| !release.contains("rescue"))
                else {
                    continue;
                };
                let wanted = [
                    format!("initrd.img-{release}"),
                    format!("initramfs-{release}.img"),
                    format!("initrd-{release}"),
                ];
                let initramfs = wanted
                    .iter()
                    .find(|wanted| names.contains(wanted))
                    .map(|name| format!("{folder}/{name}"));
                found.push(Kernel { release: release.to_owned(), files, initramfs });
            }
        }
    }
    found.sort_by_key(|kernel| version(&kernel.release));
    found
}

/// The numbers of a release, so that 6.10 comes after 6.9.
fn version(release: &str) -> Vec<u64> {
    release.split(|letter: char| !letter.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn drivers(system: &System<'_>, kernel: &Kernel<'_>, report: &mut Report) {
    let modules = ["/lib/modules", "/usr/lib/modules"].map(|folder| format!("{folder}/{}", kernel.release));
    let list = |name: &str| {
        let text = modules
            .iter()
            .find_map(|folder| system.root.text(&format!("{folder}/{name}")))
            .unwrap_or_default();
        text.lines()
            .filter_map(|line| initramfs::module(line.split(':').next()?))
            .collect::<BTreeSet<String>>()
    };
    let (mut built_in, installed) = (list("modules.builtin"), list("modules.dep"));
    let early = match &kernel.initramfs {
        None => Ok(Modules::default()),
        Some(path) => {
            kernel.files.read(path).and_then(|bytes| initramfs::modules(&bytes.unwrap_or_default()))
        }
    };
    match early {
        Err(error) => {
            report.not_looked_into.push(format!("the initramfs of kernel {}: {error}", kernel.release))
        }
        Ok(early) => {
            if built_in.is_empty() && early.built_in.is_empty() {
                report.not_looked_into.push(format!("which drivers are in kernel {} itself", kernel.release));
            }
            built_in.extend(early.built_in.iter().cloned());
            disk_drivers(system, kernel, &early, &built_in, report);
        }
    }
    for card in &system.planned.cards {
        let lacks = |driver: &&String| !installed.contains(*driver) && !built_in.contains(*driver);
        if let Some(driver) = card.drivers.iter().find(lacks).filter(|_| !installed.is_empty()) {
            report.warning(
                format!("its network card will be of a kind that needs {driver}, which kernel {} does not have", kernel.release),
                "install the driver on the source, or set `network_model` in its hardware file to one that it has",
            );
        }
    }
}

fn disk_drivers(
    system: &System<'_>,
    kernel: &Kernel<'_>,
    early: &Modules,
    built_in: &BTreeSet<String>,
    report: &mut Report,
) {
    let has = |driver: &str| early.files.contains(driver) || built_in.contains(driver);
    let where_it_is = if kernel.initramfs.is_some() { "its initramfs" } else { "a kernel without initramfs" };
    let planned = system.planned;
    if !built_in.is_empty() {
        let suits = |controller: &&Controller| controller.drivers.iter().all(|driver| has(driver));
        let suited = system.subject.controllers.iter().filter(suits);
        report.suited.disk_models = suited.map(|controller| controller.model.clone()).collect();
        let missing: Vec<&str> =
            planned.disk_drivers.iter().map(String::as_str).filter(|driver| !has(driver)).collect();
        if missing.is_empty() {
            report.seen.push(format!(
                "drivers for disks on {} ({})",
                planned.disk_model,
                planned.disk_drivers.join(", ")
            ));
        } else {
            report.critical(
                format!(
                    "its disks will hang on {}, and {where_it_is} (kernel {}) lacks {}: it will not find its root",
                    planned.disk_model, kernel.release, missing.join(", ")
                ),
                format!(
                    "add {} to its initramfs (Debian: /etc/initramfs-tools/modules and `update-initramfs -u`; others: \
                     `dracut --add-drivers`), or set `disk_model` in its hardware file to one that it has",
                    missing.join(" ")
                ),
            );
        }
    }
    let lacks_virtio = !has("virtio_blk") && !has("virtio_scsi");
    if lacks_virtio
        && !built_in.is_empty()
        && !planned.disk_drivers.iter().any(|driver| driver.starts_with("virtio"))
    {
        report.note(
            format!(
                "{where_it_is} has no virtio driver; disks will hang on {}, which it has",
                planned.disk_model
            ),
            "nothing has to be done; with virtio its disks would be faster",
        );
    }
}

/// How the kernel is told where its root is.
fn root_name(system: &System<'_>, report: &mut Report) {
    let files = system.volumes().filter_map(|volume| volume.files.as_ref().ok());
    let mut texts: Vec<String> = Vec::new();
    for files in files {
        texts.extend(LOADERS.iter().filter_map(|path| files.text(path)));
        for folder in ["/boot/loader/entries", "/loader/entries"] {
            texts
                .extend(files.list(folder).iter().filter_map(|name| files.text(&format!("{folder}/{name}"))));
        }
    }
    if texts.is_empty() {
        report.not_looked_into.push("no settings of a known boot loader were found".to_owned());
        return;
    }
    let advice =
        "name it by UUID (GRUB: remove GRUB_DISABLE_LINUX_UUID from /etc/default/grub and run `update-grub`)";
    for spec in roots(&texts) {
        let what = format!("the boot loader tells the kernel that its root is {spec}");
        match system.name(&spec) {
            Named::Found => report.seen.push(format!("root={spec}")),
            Named::Other => report.not_looked_into.push(format!("root={spec}")),
            Named::Missing => report.critical(
                format!("{what}, which is on no protected disk"),
                "protect the disk that it is on, or run the boot loader's update",
            ),
            Named::ByOldName => {
                report.critical(
                    format!("{what}, a name that there will not be (/dev/{}...)", system.planned.node_prefix),
                    advice,
                );
            }
            Named::ByOrder => {
                report.warning(format!("{what}, a name that goes by the order of disks"), advice)
            }
            Named::ByPlace => {
                report.warning(format!("{what}, which goes by its connection or serial number"), advice)
            }
        }
    }
}

/// What follows `root=` on the lines that start kernels.
fn roots(texts: &[String]) -> BTreeSet<String> {
    let lines = texts.iter().flat_map(|text| text.lines().map(str::trim));
    let starts = ["linux", "append", "options", "kernel"];
    let starting = lines.filter(|line| starts.iter().any(|word| line.to_ascii_lowercase().starts_with(word)));
    let words = starting.flat_map(str::split_whitespace);
    words
        .filter_map(|word| word.strip_prefix("root="))
        .filter(|spec| !spec.starts_with('$'))
        .map(str::to_owned)
        .collect()
}
