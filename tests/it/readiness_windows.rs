//! Whether a Windows will boot is told from its replica: its registry, its boot manager, its drivers.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Result, ensure};
use holdfast_common::{entropy::SeededEntropy, wire::Firmware};
use holdfast_coordinator::{
    compute::machines::{Planned, PlannedCard},
    points::view::BlockView,
    readiness::{self, Report, Subject, Verdict},
};
use holdfast_tests::{
    hive::{List, binary, dword, log_of, text, texts, unfinished},
    loop_device::{self, LoopDevice},
    memory_view::MemoryView,
    protected::Protected,
    samples,
    windows_disk::{self, WindowsDisk},
};

use crate::readiness::damaged;

fn skipped() -> bool {
    let reason = windows_disk::unavailable();
    if let Some(reason) = &reason {
        eprintln!("skipped: {reason}");
    }
    reason.is_some()
}

fn planned(model: &str, firmware: Firmware) -> Planned {
    Planned {
        firmware: Some(firmware),
        disk_model: model.to_owned(),
        disk_drivers: Vec::new(),
        node_prefix: "sd".to_owned(),
        cards: vec![PlannedCard { mac: String::new(), drivers: vec!["e1000e".to_owned()] }],
        remarks: Vec::new(),
    }
}

fn look(disks: Vec<Vec<u8>>, planned: Planned) -> Report {
    let views = disks.into_iter().zip(["/dev/sda", "/dev/sdb"]).map(|(disk, name)| {
        let view: Arc<dyn BlockView> = Arc::new(MemoryView::from_bytes(disk));
        (name.to_owned(), view)
    });
    readiness::look(&Subject {
        inventory: samples::inventory(),
        planned: Ok(planned),
        controllers: Vec::new(),
        disks: views.collect(),
    })
}

fn check(what: &str, report: &Report, verdict: Verdict, says: &[&str]) -> Result<()> {
    ensure!(report.verdict == verdict, "{what}: {report:#?}");
    let lines = report.findings.iter().flat_map(|finding| [&finding.reason, &finding.advice]);
    let lines = lines.chain(&report.seen).chain(&report.not_looked_into);
    let text = lines.map(|line| format!("{line}\n")).collect::<String>();
    for says in says {
        ensure!(text.contains(says), "{what} does not say {says}: {report:#?}");
    }
    ensure!(report.findings.iter().all(|finding| !finding.advice.is_empty()), "{what}: {report:#?}");
    Ok(())
}

const SERVICES: &str = r"ControlSet001\Services";

/// A change of what is sound.
fn changed(change: impl FnOnce(&mut WindowsDisk)) -> Result<Vec<u8>> {
    let mut disk = WindowsDisk::default();
    change(&mut disk);
    disk.make()
}

#[test]
fn a_sound_windows_is_ready_and_each_fault_of_its_drivers_is_named() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let uefi = Firmware::Uefi;
    let sound = changed(|_| {})?;
    check(
        "sound",
        &look(vec![sound.clone()], planned("sata", uefi)),
        Verdict::Ready,
        &[
            "Windows on /dev/sda2",
            "Windows Server 2022 Standard, build 20348",
            "BOOTX64.EFI on /dev/sda1",
            "the boot manager of Windows and its BCD on /dev/sda1",
            "drivers of disks that start at boot: stornvme, storahci",
            "has a driver for disks on sata that starts at boot",
            "no virtio driver",
            "SAN policy OnlineAll",
            "drive letters: C: /dev/sda2",
            "network: DHCP",
        ],
    )?;
    let unfit = look(vec![sound], planned("virtio", Firmware::Bios)).suited;
    ensure!(unfit.firmware == [uefi] && unfit.disk_models == ["nvme", "sata"], "{unfit:?}");
    let sound = changed(|_| {})?;
    check(
        "virtio",
        &look(vec![sound], planned("virtio", uefi)),
        Verdict::NotReady,
        &["its driver viostor is not installed", "INACCESSIBLE_BOOT_DEVICE", "set `disk_model = \"nvme\"`"],
    )?;
    let over = changed(|disk| {
        disk.system.set(&format!(r"{SERVICES}\storahci\StartOverride"), "0", dword(3));
        disk.drivers.retain(|name| *name != "stornvme");
    })?;
    check(
        "override",
        &look(vec![over.clone()], planned("sata", uefi)),
        Verdict::NotReady,
        &[
            "its driver storahci does not start at boot (its StartOverride is 3)",
            "install virtio-win",
            "sc.exe",
        ],
    )?;
    check(
        "no file",
        &look(vec![over], planned("nvme", uefi)),
        Verdict::NotReady,
        &[r"its driver stornvme lacks its file \Windows\System32\drivers\stornvme.sys"],
    )?;
    // As a machine of VMware has it: no other driver starts.
    let lsi = |disk: &mut WindowsDisk| {
        for (name, start) in [("storahci", 3), ("stornvme", 3), ("LSI_SAS", 0)] {
            disk.system.set(&format!(r"{SERVICES}\{name}"), "Start", dword(start));
        }
    };
    let by_uefi = changed(lsi)?;
    check(
        "lsi by UEFI",
        &look(vec![by_uefi], planned("sata", uefi)),
        Verdict::NotReady,
        &["its driver storahci does not start at boot (its Start is 3)", "install virtio-win"],
    )?;
    let mut by_bios = WindowsDisk::default().by_bios();
    lsi(&mut by_bios);
    let by_bios = by_bios.make()?;
    let report = look(vec![by_bios.clone()], planned("sata", Firmware::Bios));
    check("lsi by BIOS", &report, Verdict::NotReady, &["set `disk_model = \"lsi\"`"])?;
    let report = look(vec![by_bios], planned("lsi", Firmware::Bios));
    check(
        "lsi",
        &report,
        Verdict::Ready,
        &["disks will hang on lsi, which it has", "on /dev/sda1, which is active"],
    )
}

#[test]
fn what_windows_firmware_starts_is_looked_at() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let no_list = changed(|disk| disk.efi = Some(vec!["bootmgfw.efi"]))?;
    let report = look(vec![no_list], planned("sata", Firmware::Uefi));
    check("no BCD", &report, Verdict::NotReady, &[r"has BCD in \EFI\Microsoft\Boot", "bcdboot"])?;
    let bios = WindowsDisk::default().by_bios();
    let report = look(vec![bios.make()?], planned("sata", Firmware::Bios));
    check("BIOS", &report, Verdict::Ready, &["drive letters: C: /dev/sda1", "MBR with 1 partitions"])?;
    let report =
        look(vec![WindowsDisk { is_active: false, ..bios.clone() }.make()?], planned("sata", Firmware::Bios));
    check("inactive", &report, Verdict::NotReady, &["no partition is marked as active"])?;
    let report =
        look(vec![WindowsDisk { files: Vec::new(), ..bios }.make()?], planned("sata", Firmware::Bios));
    check(
        "no boot manager",
        &report,
        Verdict::NotReady,
        &[r"/dev/sda1 has no bootmgr and no Boot\BCD", "/f BIOS"],
    )
}

#[test]
fn further_disks_letters_and_networks_are_looked_at() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let uefi = Firmware::Uefi;
    let partmgr = format!(r"{SERVICES}\partmgr\Parameters");
    let data = vec![0; 1 << 20];
    let shared = changed(|disk| {
        disk.system.remove(SERVICES, "partmgr");
        let gone = [b"DMIO:ID:".as_slice(), &[7; 16]].concat();
        disk.system.set("MountedDevices", r"\DosDevices\E:", binary(&gone));
        disk.system.set("MountedDevices", r"\DosDevices\F:", binary(b"\\\0?\0?\0"));
    })?;
    check(
        "as delivered",
        &look(vec![shared.clone(), data.clone()], planned("sata", uefi)),
        Verdict::Doubtful,
        &[
            "SAN policy OfflineShared (not set",
            "may stay offline (/dev/sdb)",
            "OnlineAll",
            "the drives E: are on no",
        ],
    )?;
    let report = look(vec![shared], planned("sata", uefi));
    check("one disk only", &report, Verdict::Ready, &["SAN policy OfflineShared"])?;
    let offline = changed(|disk| disk.system.set(&partmgr, "SanPolicy", dword(3)))?;
    let report = look(vec![offline, data], planned("sata", uefi));
    check(
        "offline",
        &report,
        Verdict::Doubtful,
        &["SAN policy is OfflineAll", "all disks but the one it boots from"],
    )?;
    let fixed = changed(|disk| {
        let card = format!(r"{SERVICES}\Tcpip\Parameters\Interfaces\{{4d36e972}}");
        disk.system.set(&card, "EnableDHCP", dword(0));
        disk.system.set(&card, "IPAddress", texts(&["10.0.0.7"]));
        disk.software.set(r"Microsoft\Windows NT\CurrentVersion", "ProductName", text("Windows 10 Pro"));
        disk.software.set(r"Microsoft\Windows NT\CurrentVersion", "CurrentBuild", text("22631"));
    })?;
    let report = look(vec![fixed.clone()], planned("sata", uefi));
    check(
        "fixed",
        &report,
        Verdict::Doubtful,
        &["its fixed addresses (10.0.0.7)", "Windows 11 Pro, build 22631"],
    )?;
    let virtio =
        PlannedCard { mac: String::new(), drivers: vec!["virtio_pci".to_owned(), "virtio_net".to_owned()] };
    let report = look(vec![fixed], Planned { cards: vec![virtio], ..planned("sata", uefi) });
    check(
        "card",
        &report,
        Verdict::Doubtful,
        &["Windows needs netkvm, which is not installed", "network_model"],
    )
}

#[test]
fn a_registry_that_was_being_written_is_read_with_its_logs_or_said_to_lack_them() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let sound = WindowsDisk::default();
    let old = sound.system.hive(List::Lh);
    let mut system = sound.system.clone();
    system.set(&format!(r"{SERVICES}\storahci"), "Start", dword(3));
    let new = system.hive(List::Lh);
    let config = Path::new("Windows/System32/config");
    let torn = (config.join("SYSTEM"), unfinished(old.clone(), 8));
    let log = (config.join("SYSTEM.LOG1"), log_of(&[&old, &new], 8));
    let alone = WindowsDisk { files: vec![torn.clone()], ..sound.clone() }.make()?;
    check(
        "without logs",
        &look(vec![alone], planned("sata", Firmware::Uefi)),
        Verdict::Unknown,
        &[
            "the newest changes of the registry SYSTEM",
            "do not have the change",
            "has a driver for disks on sata",
        ],
    )?;
    let replayed = WindowsDisk { files: vec![torn, log], ..sound }.make()?;
    check(
        "with logs",
        &look(vec![replayed], planned("sata", Firmware::Uefi)),
        Verdict::NotReady,
        &["registry SYSTEM with 1 changes from its logs", "storahci does not start at boot (its Start is 3)"],
    )
}

#[test]
fn what_is_encrypted_or_damaged_is_said_to_be_so() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let sound = changed(|_| {})?;
    let windows_at = 17 << 20;
    let mut locked = sound.clone();
    locked[windows_at + 3..windows_at + 11].copy_from_slice(b"-FVE-FS-");
    let report = look(vec![locked], planned("sata", Firmware::Uefi));
    check(
        "locked",
        &report,
        Verdict::Doubtful,
        &["/dev/sda2 is encrypted by BitLocker", "BitLocker cannot be looked into"],
    )?;
    let mut damaged = sound;
    damaged[windows_at + 48..windows_at + 56].fill(0xff);
    let report = look(vec![damaged], planned("sata", Firmware::Uefi));
    check("damaged", &report, Verdict::Doubtful, &["the file system of /dev/sda2 cannot be read", "chkdsk"])?;
    let no_registry = changed(|disk| {
        disk.files.push(("Windows/System32/config/SYSTEM".into(), vec![7; 9000]));
    })?;
    let report = look(vec![no_registry], planned("sata", Firmware::Uefi));
    check(
        "no hive",
        &report,
        Verdict::Doubtful,
        &["the registry of /dev/sda2 cannot be read", "it is no registry hive"],
    )
}

/// Changes the first part of a folder's names that holds this one.
fn change_names(disk: &mut [u8], of: &str, change: impl FnOnce(&mut [u8])) -> Result<()> {
    let name: Vec<u8> = of.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let holds = |record: &&mut [u8]| {
        record.starts_with(b"INDX") && record.windows(name.len()).any(|found| found == name)
    };
    let record = disk.chunks_exact_mut(4096).find(holds);
    change(record.ok_or_else(|| anyhow::anyhow!("no folder's names with {of}"))?);
    Ok(())
}

#[test]
fn an_ntfs_that_its_reader_panics_on_or_goes_round_in_is_said_to_be_damaged() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let sound = changed(|_| {})?;
    let field = |record: &[u8], at: usize| usize::from(u16::from_le_bytes([record[at], record[at + 1]]));
    let mut panics = sound.clone();
    change_names(&mut panics, "stornvme", |record| {
        // The first entry has no length.
        let first = 24 + field(record, 24);
        record[first + 8..first + 10].fill(0);
    })?;
    let report = look(vec![panics], planned("sata", Firmware::Uefi));
    check(
        "no length",
        &report,
        Verdict::Unknown,
        &["its drivers of disks: ", "its reader could not cope with"],
    )?;
    let mut circle = sound;
    change_names(&mut circle, "stornvme", |record| {
        // What comes before each entry is in this part again.
        let number: Vec<u8> = record[16..24].to_vec();
        let mut at = 24 + field(record, 24);
        while record[at + 12] & 2 == 0 {
            let next = at + field(record, at + 8);
            // The ends of sectors are not what they seem: they hold numbers against torn writes.
            if !(next - 8..next).chain([at + 12]).any(|byte| byte % 512 >= 510) {
                record[at + 12] |= 1;
                record[next - 8..next].copy_from_slice(&number);
            }
            at = next;
        }
    })?;
    let report = look(vec![circle], planned("sata", Firmware::Uefi));
    check("circle", &report, Verdict::Unknown, &["its drivers of disks: ", "more than any sound disk needs"])
}

/// Every look ends, with whatever it says.
#[test]
fn a_damaged_windows_is_looked_at_to_an_end() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let entropy = SeededEntropy::new(20_261_127);
    damaged(&changed(|_| {})?, 150, &entropy, |disk| {
        let _whatever = look(vec![disk], planned("sata", Firmware::Uefi));
    });
    Ok(())
}

/// The whole way: a device with a Windows on it is protected, and its replica is looked into.
#[test]
fn a_protected_windows_is_judged_from_its_replica() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("windows.raw");
    fs::write(&disk, WindowsDisk::default().by_bios().make()?)?;
    let device = LoopDevice::attach(&disk)?;
    let protected = Protected::start(&[device.path()])?;
    protected.wait_for_points(1)?;
    let machine = protected.machine.as_str();
    // The inventory is that of this host: what its disks hang on and what it boots by is told from the replica.
    let settings = "memory_mib = 512\nnetwork_model = \"e1000e\"\n";
    protected.site.set_hardware(machine, settings)?;
    let ready = protected.site.cli(&["readiness", machine, "--now"])?;
    ensure!(ready["verdict"] == "ready", "{ready}");
    ensure!(ready.to_string().contains("Windows Server 2022 Standard, build 20348"), "{ready}");
    protected.site.set_hardware(machine, &format!("{settings}disk_model = \"virtio\"\n"))?;
    let unready = protected.site.cli(&["readiness", machine, "--now"])?;
    ensure!(unready["verdict"] == "not-ready" && unready.to_string().contains("viostor"), "{unready}");
    let status = protected.site.cli(&["status"])?["machines"][0].clone();
    ensure!(status["findings"].to_string().contains("will not boot at the target"), "{status}");
    Ok(())
}
