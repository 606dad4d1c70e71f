//! The machine itself: names, processor, memory, firmware, and what it runs on.
//!
//! Owns the reading of SMBIOS (`/sys/class/dmi/id`), the processor's hypervisor leaf, and a few files of /proc and /etc.
//! Invariant: where SMBIOS and processor disagree, the processor is believed: a nested guest copies SMBIOS texts, and
//! Hyper-V's interface is offered by others beside their own.

use holdfast_common::wire::{Firmware, Platform};

use super::{Roots, read};

/// Host name.
pub(super) fn host_name(roots: &Roots) -> String {
    read::text(&roots.proc.join("sys/kernel/hostname")).unwrap_or_default()
}

/// Name of the operating system.
pub(super) fn operating_system(roots: &Roots) -> String {
    let text = read::text(&roots.etc.join("os-release")).unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim().trim_matches(['"', '\'']).to_owned())
    };
    value("PRETTY_NAME").or_else(|| value("NAME")).unwrap_or_else(|| "Linux".to_owned())
}

/// Kernel release.
pub(super) fn kernel(roots: &Roots) -> String {
    read::text(&roots.proc.join("sys/kernel/osrelease")).unwrap_or_default()
}

/// Identity of this boot.
pub(super) fn boot_id(roots: &Roots) -> String {
    read::text(&roots.proc.join("sys/kernel/random/boot_id")).unwrap_or_default()
}

/// How the machine booted.
pub(super) fn firmware(roots: &Roots) -> Firmware {
    if roots.sys.join("firmware/efi").is_dir() { Firmware::Uefi } else { Firmware::Bios }
}

/// Manufacturer and product, and the system's UUID.
pub(super) fn hardware(roots: &Roots) -> (String, String) {
    let field = |name: &str| read::text(&roots.sys.join("class/dmi/id").join(name)).unwrap_or_default();
    let name = format!("{} {}", field("sys_vendor"), field("product_name"));
    (name.trim().to_owned(), field("product_uuid").to_lowercase())
}

/// Logical processors online.
pub(super) fn processors(roots: &Roots) -> u32 {
    let list = read::text(&roots.sys.join("devices/system/cpu/online")).unwrap_or_default();
    let counts = list.split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    });
    counts.fold(0, u32::saturating_add)
}

/// Memory in bytes.
pub(super) fn memory_bytes(roots: &Roots) -> u64 {
    let text = read::text(&roots.proc.join("meminfo")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kibibytes.unwrap_or(0).saturating_mul(1024)
}

/// What the machine runs on. `leaf` is what [`hypervisor_leaf`] says.
pub(super) fn platform(roots: &Roots, leaf: Option<&str>) -> Platform {
    let (hardware, _) = hardware(roots);
    match leaf {
        Some("Microsoft Hv") if hardware.contains("QEMU") || hardware.contains("KVM") => Platform::Kvm,
        Some("Microsoft Hv") => Platform::HyperV,
        Some("VMwareVMware") => Platform::Vmware,
        Some("KVMKVMKVM" | "TCGTCGTCGTCG") => Platform::Kvm,
        Some(_) => Platform::OtherVirtual,
        // A processor that hides its hypervisor, or is not an x86.
        None => match hardware.as_str() {
            text if text.contains("VMware") => Platform::Vmware,
            text if text.contains("Microsoft") && text.contains("Virtual Machine") => Platform::HyperV,
            text if text.contains("QEMU") || text.contains("KVM") => Platform::Kvm,
            text if ["VirtualBox", "Xen", "Bochs", "Amazon EC2", "Google Compute"]
                .iter()
                .any(|name| text.contains(name)) =>
            {
                Platform::OtherVirtual
            }
            _ => Platform::Physical,
        },
    }
}

/// Signature of the hypervisor in the processor's leaf 0x40000000, if there is one.
#[cfg(target_arch = "x86_64")]
pub(super) fn hypervisor_leaf() -> Option<String> {
    use std::arch::x86_64::__cpuid;
    const HYPERVISOR_PRESENT: u32 = 1 << 31;
    if __cpuid(1).ecx & HYPERVISOR_PRESENT == 0 {
        return None;
    }
    let leaf = __cpuid(0x4000_0000);
    let bytes: Vec<u8> = [leaf.ebx, leaf.ecx, leaf.edx].iter().flat_map(|word| word.to_le_bytes()).collect();
    Some(String::from_utf8_lossy(&bytes).trim_matches(['\0', ' ']).to_owned())
}

/// Other processors have no such leaf.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn hypervisor_leaf() -> Option<String> {
    None
}
