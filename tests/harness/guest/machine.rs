//! One QEMU process, from boot to power cut.
//!
//! Owns the process and its folder (sockets, console log). Does not know what its disks hold.
//! Invariant: the process has ended when the [`Machine`] has been dropped, also when the test was killed.
//! Limit: boot and every command have a deadline.
//!
//! The processor is emulated (TCG): a stock kernel hangs under nested KVM on some hosts, without a word.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use holdfast_common::clock::{Clock as _, SystemClock};
use tempfile::TempDir;

use super::{
    Bus, Disk, Image,
    bundle::{Bundle, UNPACK},
    control::{Control, Outcome},
    recipe,
};

/// Longest wait for a boot: 15 s on an idle machine, many times that when all cores are busy.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// Longest wait for a command that has no limit of its own.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// How much of the console a failed test prints.
const CONSOLE_BYTES_SHOWN: usize = 8 * 1024;
/// How often a wait looks again.
const STEP: Duration = Duration::from_millis(100);
/// Where the guest finds a port of this host's loopback interface.
pub const HOST_ADDRESS: &str = "10.0.2.2";

/// What a machine is made of.
#[derive(Debug)]
pub struct MachineSpec<'a> {
    /// For messages.
    pub name: &'a str,
    /// The first is booted from.
    pub disks: Vec<Disk>,
    /// Files put into the root file system after the boot.
    pub bundle: Option<&'a Bundle>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Number of processors.
    pub processors: u32,
    /// Whose kernel is started directly, with nothing but the harness's control program.
    bare: Option<&'a Image>,
    /// Whether this host can be reached from it.
    isolated: bool,
    /// Code of its UEFI and the variables that it begins with; BIOS if none.
    uefi: Option<(&'static str, &'static str)>,
    /// Whether it looks like one of VMware's: its network card; disks say themselves what they hang on.
    vmware: bool,
    /// Socket of QEMU's control channel, if somebody wants it.
    qmp: Option<PathBuf>,
    /// Whether QEMU stays when its guest is off.
    stays: bool,
}

/// Debian's firmware (package ovmf).
const UEFI: (&str, &str) = ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd");

impl<'a> MachineSpec<'a> {
    /// A machine with one processor and 512 MiB.
    #[must_use]
    pub fn new(name: &'a str, disks: Vec<Disk>) -> Self {
        Self {
            name,
            disks,
            bundle: None,
            memory_mib: 512,
            processors: 1,
            bare: None,
            isolated: false,
            uefi: None,
            vmware: false,
            qmp: None,
            stays: false,
        }
    }

    /// The same with UEFI.
    #[must_use]
    pub fn by_uefi(mut self) -> Self {
        self.uefi = Some(UEFI);
        self
    }

    /// The same with hardware as VMware has it: vmxnet3, and not one virtio device.
    #[must_use]
    pub fn like_vmware(mut self) -> Self {
        self.vmware = true;
        self
    }

    /// The same; QEMU stays when it is off, so that it can be switched on again.
    #[must_use]
    pub fn and_stays(mut self) -> Self {
        self.stays = true;
        self
    }

    /// The same with QEMU's control channel at this socket.
    #[must_use]
    pub fn with_qmp(mut self, socket: PathBuf) -> Self {
        self.qmp = Some(socket);
        self
    }

    /// The same without boot loader, init and services: up in a third of the time, and nothing runs but the tests'
    /// commands. The first disk must hold this image.
    #[must_use]
    pub fn bare(mut self, image: &'a Image) -> Self {
        self.bare = Some(image);
        self
    }

    /// The same in a network where it is alone, as a copy of a machine must be while the machine lives.
    #[must_use]
    pub fn isolated(mut self) -> Self {
        self.isolated = true;
        self
    }

    /// The same, with files.
    #[must_use]
    pub fn with_bundle(mut self, bundle: &'a Bundle) -> Self {
        self.bundle = Some(bundle);
        self
    }

    /// The same, with this many processors.
    #[must_use]
    pub fn with_processors(mut self, processors: u32) -> Self {
        self.processors = processors;
        self
    }
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    name: String,
    qemu: Child,
    control: Control,
    folder: TempDir,
}

impl Machine {
    /// Starts a machine, waits until it takes commands, and unpacks its bundle.
    ///
    /// # Errors
    /// QEMU does not start, or the guest does not come up; the end of its console is in the error.
    pub fn boot(spec: &MachineSpec<'_>) -> Result<Self> {
        let clock = SystemClock::new();
        let folder = TempDir::with_prefix("holdfast-machine-")?;
        let mut qemu = command(spec, &folder)?.spawn().context("starting qemu-system-x86_64")?;
        let control = match Control::connect(&folder.path().join("control"), Duration::from_secs(20)) {
            Ok(control) => control,
            Err(error) => {
                let _ = qemu.kill();
                let _ = qemu.wait();
                return Err(error.context(read_lossy(&folder.path().join("qemu.log"))));
            }
        };
        let mut machine = Self { name: spec.name.to_owned(), qemu, control, folder };
        let ready = machine.control.wait_ready(BOOT_LIMIT);
        ready.with_context(|| machine.last_words())?;
        if spec.bundle.is_some() {
            machine.run(UNPACK)?;
        }
        eprintln!("{} is up after {:.1} s", machine.name, clock.monotonic().as_secs_f64());
        Ok(machine)
    }

    /// Runs a bash script in the guest and gives its output.
    ///
    /// # Errors
    /// It did not end in time, or with another code than 0; its output is in the error.
    pub fn run(&mut self, script: &str) -> Result<String> {
        let outcome = self.run_for(script, COMMAND_LIMIT)?;
        ensure!(
            outcome.code == 0,
            "in {}, code {} from: {script}\n{}",
            self.name,
            outcome.code,
            outcome.output
        );
        Ok(outcome.output)
    }

    /// Runs a bash script in the guest, whatever its exit code.
    ///
    /// # Errors
    /// It did not end within `limit`.
    pub fn run_for(&mut self, script: &str, limit: Duration) -> Result<Outcome> {
        let outcome = self.control.run(script, limit);
        outcome.with_context(|| self.last_words())
    }

    /// Everything the guest wrote to its console.
    #[must_use]
    pub fn console(&self) -> String {
        read_lossy(&self.console_path())
    }

    /// Waits until the console shows a text.
    ///
    /// # Errors
    /// It does not within the time of a boot.
    pub fn wait_for_console(&self, text: &str) -> Result<()> {
        let clock = SystemClock::new();
        while clock.monotonic() < BOOT_LIMIT {
            if self.console().contains(text) {
                return Ok(());
            }
            thread::sleep(STEP);
        }
        bail!("no {text:?} on the console; {}", self.last_words())
    }

    /// Waits until the guest takes commands again after a start that was not ours.
    ///
    /// # Errors
    /// It does not come up; the end of its console is in the error.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let ready = self.control.wait_ready(BOOT_LIMIT);
        ready.with_context(|| self.last_words())
    }

    /// Ends the machine at once, as a power cut does. What had reached its disks is kept.
    pub fn power_cut(self) {
        // The drop kills.
    }

    /// Shuts the machine down in order.
    ///
    /// # Errors
    /// It is still on after the time of a boot.
    pub fn shut_down(mut self) -> Result<()> {
        self.run("systemd-run --quiet --on-active=1s systemctl poweroff")?;
        let clock = SystemClock::new();
        while clock.monotonic() < BOOT_LIMIT {
            if self.qemu.try_wait()?.is_some() {
                return Ok(());
            }
            thread::sleep(STEP);
        }
        bail!("{} does not shut down; {}", self.name, self.last_words())
    }

    fn console_path(&self) -> PathBuf {
        self.folder.path().join("console.log")
    }

    /// The end of the console and what QEMU itself said.
    fn last_words(&self) -> String {
        let console = self.console();
        let start = console.len().saturating_sub(CONSOLE_BYTES_SHOWN);
        let start = (start..console.len()).find(|at| console.is_char_boundary(*at)).unwrap_or(0);
        let qemu = read_lossy(&self.folder.path().join("qemu.log"));
        let tail = console.get(start..).unwrap_or_default();
        format!("the end of the console of {}:\n{tail}\n(QEMU: {})", self.name, qemu.trim())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        if let Err(error) = self.qemu.wait() {
            eprintln!("QEMU of {} cannot be waited for: {error}", self.name);
        }
        if thread::panicking() {
            eprintln!("{}", self.last_words());
        }
    }
}

/// QEMU's command line. `setpriv` has the kernel end QEMU when the test's thread ends, however it ends.
fn command(spec: &MachineSpec<'_>, folder: &TempDir) -> Result<Command> {
    let mut disks = spec.disks.clone();
    if let Some(bundle) = spec.bundle {
        disks.push(bundle.disk(if spec.vmware { Bus::Pvscsi } else { Bus::VirtioBlk })?);
    }
    let log = File::create(folder.path().join("qemu.log"))?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
        .args(["-accel", "tcg,thread=multi", "-display", "none", "-nodefaults", "-no-user-config"])
        // The least that has instructions for AES and for vectors of bytes, and few that are slow to emulate.
        .args(["-cpu", "Westmere"])
        .args(["-m", &spec.memory_mib.to_string(), "-smp", &spec.processors.to_string()])
        .args(["-serial", &format!("file:{}", path("console.log"))])
        .args(["-chardev", &format!("socket,id=control,server=on,wait=off,path={}", path("control"))])
        .args(["-serial", "chardev:control"])
        .args(["-netdev", if spec.isolated { "user,id=net0,restrict=on" } else { "user,id=net0" }])
        .args([
            "-device",
            if spec.vmware { "vmxnet3,netdev=net0,romfile=" } else { "virtio-net-pci,netdev=net0,romfile=" },
        ])
        .args(
            disks
                .iter()
                .any(|disk| disk.bus() == Bus::Pvscsi)
                .then_some(["-device", "pvscsi,id=pvscsi"])
                .into_iter()
                .flatten(),
        )
        .args(disks.iter().enumerate().flat_map(|(number, disk)| disk.arguments(number)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    if !spec.vmware {
        command.args(["-device", "virtio-rng-pci"]);
    }
    if let Some((code, variables)) = spec.uefi {
        fs::copy(variables, path("variables.fd")).context("no UEFI (Debian package ovmf)")?;
        command.args(["-drive", &format!("if=pflash,format=raw,readonly=on,file={code}")]);
        command.args(["-drive", &format!("if=pflash,format=raw,file={}", path("variables.fd"))]);
    }
    if let Some(socket) = &spec.qmp {
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
    }
    if spec.stays {
        command.arg("-no-shutdown");
    }
    if let Some(image) = spec.bare {
        let (kernel, initramfs) = image.kernel();
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
        command.args(["-append", &recipe::bare_arguments()]);
    }
    Ok(command)
}

fn read_lossy(path: &std::path::Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
