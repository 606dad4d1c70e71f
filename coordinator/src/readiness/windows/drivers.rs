//! Whether Windows finds its disks: drivers that start at boot.
//!
//! Owns the names of Windows' services for controllers. A driver helps if its service starts at boot (`Start` is 0, and so is
//! `StartOverride\0` if there is one) and its file exists. Whether Windows ties it to the device is its own affair: only a drill
//! proves that.

use holdfast_common::wire::Firmware;

use super::{super::Report, Windows};
use crate::compute::machines::Planned;

/// A driver starts at boot.
const BOOT_START: u32 = 0;

/// A controller that a hardware file can ask for.
struct Controller {
    /// Its name there.
    model: &'static str,
    /// Whether UEFI as hosts have it starts from it, as far as is known.
    is_read_by_uefi: bool,
    /// What it takes: of each line one.
    services: &'static [&'static [&'static str]],
}

/// The faster ones first.
const CONTROLLERS: [Controller; 7] = [
    Controller { model: "virtio", is_read_by_uefi: true, services: &[&["viostor"]] },
    Controller { model: "virtio-scsi", is_read_by_uefi: true, services: &[&["vioscsi"]] },
    Controller { model: "nvme", is_read_by_uefi: true, services: &[&["stornvme"]] },
    Controller { model: "sata", is_read_by_uefi: true, services: &[&["storahci", "msahci"]] },
    Controller { model: "pvscsi", is_read_by_uefi: false, services: &[&["pvscsi", "pvscsii"]] },
    Controller { model: "lsi", is_read_by_uefi: false, services: &[&["LSI_SAS"]] },
    Controller { model: "ide", is_read_by_uefi: true, services: &[&["atapi"], &["intelide", "pciide"]] },
];

/// Further ones, of hardware and hypervisors that it may have come from.
const OTHERS: [&str; 10] = [
    "storvsc",
    "LSI_SAS2i",
    "LSI_SAS3i",
    "LSI_SCSI",
    "megasas",
    "megasas2i",
    "iaStorV",
    "iaStorAC",
    "HpCISSs3",
    "arcsas",
];

/// What Windows does with a driver.
enum Driver {
    Starts,
    Not(String),
}

pub(super) fn look(windows: &Windows<'_>, planned: &Planned, report: &mut Report) -> Result<(), String> {
    let known = CONTROLLERS.iter().flat_map(|controller| controller.services.iter().copied().flatten());
    let mut starting = Vec::new();
    for name in known.copied().chain(OTHERS) {
        if matches!(driver(windows, name)?, Driver::Starts) {
            starting.push(name);
        }
    }
    let all = if starting.is_empty() { "none that is known here".to_owned() } else { starting.join(", ") };
    report.seen.push(format!("drivers of disks that start at boot: {all}"));
    let suits = |controller: &&Controller| {
        controller.services.iter().all(|names| names.iter().any(|name| starting.contains(name)))
    };
    report.suited.disk_models =
        CONTROLLERS.iter().filter(suits).map(|controller| controller.model.to_owned()).collect();
    let Some(controller) = CONTROLLERS.iter().find(|controller| controller.model == planned.disk_model)
    else {
        if !planned.disk_model.is_empty() {
            report
                .not_looked_into
                .push(format!("which driver Windows needs for disks on {}", planned.disk_model));
        }
        return Ok(());
    };
    if suits(&controller) {
        report
            .seen
            .push(format!("Windows has a driver for disks on {} that starts at boot", controller.model));
        let is_virtio = controller.model.starts_with("virtio");
        let has_virtio = starting.contains(&"viostor") || starting.contains(&"vioscsi");
        if !is_virtio && !has_virtio {
            report.note(
                format!(
                    "Windows has no virtio driver that starts at boot; disks will hang on {}, which it has",
                    controller.model
                ),
                "nothing has to be done; with virtio its disks would be faster",
            );
        }
        return Ok(());
    }
    let mut reasons = Vec::new();
    for names in controller.services.iter().filter(|names| !names.iter().any(|name| starting.contains(name)))
    {
        reasons.push(lacking(windows, names)?);
    }
    let by_uefi = planned.firmware == Some(Firmware::Uefi);
    let other = CONTROLLERS.iter().filter(|other| !by_uefi || other.is_read_by_uefi).find(suits);
    let advice = match other {
        Some(other) => format!(
            "set `disk_model = \"{}\"` in its hardware file: for that Windows has a driver that starts at boot. Or install the \
             missing one on the source",
            other.model
        ),
        None => "install virtio-win's drivers on the source, or have one that it has start at boot there (`sc.exe config storahci \
                 start= boot`, and delete `StartOverride` below its key)"
            .to_owned(),
    };
    report.critical(
        format!(
            "its disks will hang on {}, and {}: Windows will stop with INACCESSIBLE_BOOT_DEVICE",
            controller.model,
            reasons.join(", and ")
        ),
        advice,
    );
    Ok(())
}

/// Why none of these helps: what is known of the one that comes nearest.
fn lacking(windows: &Windows<'_>, names: &[&str]) -> Result<String, String> {
    for name in names {
        if windows.has_service(name)?
            && let Driver::Not(reason) = driver(windows, name)?
        {
            return Ok(format!("its driver {name} {reason}"));
        }
    }
    Ok(format!("its driver {} is not installed", names.join(" or ")))
}

fn driver(windows: &Windows<'_>, name: &str) -> Result<Driver, String> {
    let key = windows.service(name);
    let Some(start) = windows.system.number(&key, "Start")? else {
        return Ok(Driver::Not("is not installed".to_owned()));
    };
    if start != BOOT_START {
        return Ok(Driver::Not(format!("does not start at boot (its Start is {start})")));
    }
    // Windows sets these when a driver that it has had no device for.
    let over = windows.system.number(&format!(r"{key}\StartOverride"), "0")?;
    if let Some(over) = over.filter(|over| *over != BOOT_START) {
        return Ok(Driver::Not(format!("does not start at boot (its StartOverride is {over})")));
    }
    let image = windows.system.value(&key, "ImagePath")?.and_then(|value| value.text());
    let path = image_path(image.as_deref(), name);
    if !windows.files.has(&path)? {
        return Ok(Driver::Not(format!(r"lacks its file \{path}")));
    }
    Ok(Driver::Starts)
}

/// Where a driver's file is, from the top of Windows' volume.
fn image_path(image: Option<&str>, service: &str) -> String {
    let image = image.filter(|image| !image.is_empty()).map_or_else(
        || format!(r"System32\drivers\{service}.sys"),
        |image| image.trim_matches('"').to_owned(),
    );
    // "\??\C:\Windows\..."
    if let Some((_, path)) = image.split_once(r":\") {
        return path.to_owned();
    }
    let lower = image.to_ascii_lowercase();
    for root in [r"\systemroot\", r"%systemroot%\"] {
        if lower.starts_with(root) {
            return format!(r"Windows\{}", image.get(root.len()..).unwrap_or_default());
        }
    }
    format!(r"Windows\{}", image.trim_start_matches('\\'))
}

#[cfg(test)]
mod tests {
    use super::image_path;

    #[test]
    fn a_drivers_file_is_found_however_it_is_written() {
        let expected = r"Windows\System32\drivers\a.sys";
        for image in [
            r"System32\drivers\a.sys",
            r"\SystemRoot\System32\drivers\a.sys",
            r"%SystemRoot%\System32\drivers\a.sys",
            r"\??\C:\Windows\System32\drivers\a.sys",
        ] {
            assert_eq!(image_path(Some(image), "x"), expected, "{image}");
        }
        assert_eq!(image_path(None, "a"), expected);
    }
}
