//! Machines of recovery points in QEMU on this host.
//!
//! Owns processes, overlays and their folders; QEMU's own programs do the rest. A machine reads its disks from what the
//! coordinator serves over NBD, so it runs at once, whatever the size of its disks. It writes there too, if that is served for
//! writing; or else to overlays of its own, into which the rest can be copied behind its back ([`Machines::stream`]), and then it
//! needs the coordinator no more.
//! QEMU is a process of its own session and outlives the coordinator, which finds it again by the folder named after its owner;
//! reads wait meanwhile. (Under systemd that takes `KillMode=process` in the coordinator's unit.)
//!
//! ```text
//! FOLDER/OWNER/machine.json           what it is made of, and of which point; written last: without it there is no machine
//! FOLDER/OWNER/disk0.qcow2 ...        what it has written, and what was copied
//! FOLDER/OWNER/console.log, qemu.pid, uefi-variables.fd
//! FOLDER/OWNER/sealed                 it is not started any more
//! FOLDER/OWNER/disk0.instant.qcow2 ..., reader.pid       while an instant of it is read ([`instant`])
//! SOCKETS/vm-OWNER.qmp, .qmp2, .console      while it runs; the second control channel is for who must not wait for the first
//! SOCKETS/vm-OWNER.nbd, .read         while an instant of it is read
//! ```
//! Limits: paths of sockets are short (about 100 bytes); what is asked of QEMU's programs takes [`TOOL_MAX`] at most.

pub mod definition;
// What a machine has written to its overlays, at one instant.
mod instant;
mod planned;
mod screen;
pub mod qmp;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use holdfast_common::{durable, ids::PointId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    process::Command,
    time::{Instant, sleep, timeout},
};

use self::{
    definition::{Accelerator, Definition, Files, Host, Overrides},
    qmp::Qmp,
};
use super::{
    machines::{Controller, MachineRequest, Machines, Planned, StartedMachine, Stop},
    port::{BoxFuture, ComputeError, Task},
};

const QEMU: &str = "qemu-system-x86_64";
const QEMU_IMG: &str = "qemu-img";
/// Longest time for one of QEMU's programs to do what needs no copying.
const TOOL_MAX: Duration = Duration::from_secs(60);
/// Longest time from the start to the first block that the machine reads.
const FIRST_READ_MAX: Duration = Duration::from_secs(60);
/// Longest time to end after the power was taken away.
const END_MAX: Duration = Duration::from_secs(10);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Time between two looks at what takes long.
const LOOK_SLOW: Duration = Duration::from_millis(200);
/// Version of `machine.json`.
const VERSION: u32 = 1;
/// Longest path of a unix socket.
const SOCKET_PATH_MAX: usize = 107;
/// Where Debian and its kin install UEFI for guests: code, and variables to begin with.
const UEFI: [(&str, &str); 3] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
];

/// Settings of machines.
#[derive(Clone, Debug)]
pub struct MachineSettings {
    /// Folder of their overlays.
    pub folder: PathBuf,
    /// Folder of their sockets.
    pub sockets: PathBuf,
    /// Folder of operators' overrides.
    pub overrides: PathBuf,
    /// How their processors are run.
    pub accelerator: Accelerator,
    /// Network of those that are no tests: "user" or a bridge's name.
    pub network: String,
}

/// QEMU on this host.
#[derive(Debug)]
pub struct QemuMachines {
    settings: MachineSettings,
    /// By owner: held by who decides which program opens the images of a machine, until that one has them. QEMU lets one open
    /// them for writing only while nobody reads them.
    openings: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// What stands in `machine.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Made {
    version: u32,
    point: PointId,
    definition: Definition,
}

impl QemuMachines {
    /// Machines by these settings. Nothing is looked at yet.
    #[must_use]
    pub const fn new(settings: MachineSettings) -> Self {
        Self { settings, openings: Mutex::new(BTreeMap::new()) }
    }

    /// The right to open a machine's images.
    async fn opening(&self, owner: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let of_owner = {
            let mut openings = self.openings.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(openings.entry(owner.to_owned()).or_default())
        };
        of_owner.lock_owned().await
    }

    fn files(&self, owner: &str) -> Result<Files, ComputeError> {
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
        if owner.is_empty() || !owner.chars().all(is_plain) {
            return Err(invalid(format!("`{owner}` cannot name a machine")));
        }
        let socket = |kind: &str| self.settings.sockets.join(format!("vm-{owner}.{kind}"));
        let files = Files {
            folder: self.settings.folder.join(owner),
            control: socket("qmp"),
            console: socket("console"),
        };
        if files.console.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(invalid(format!(
                "{} is too long for a socket's path; set `sockets` in the coordinator's settings to a shorter folder",
                files.console.display()
            )));
        }
        Ok(files)
    }

    fn host(&self) -> Host {
        let kvm = match self.settings.accelerator {
            Accelerator::Kvm => true,
            Accelerator::Tcg => false,
            Accelerator::Auto => has_kvm() && !is_virtual(),
        };
        let uefi =
            UEFI.iter().find(|(code, variables)| Path::new(code).exists() && Path::new(variables).exists());
        Host {
            kvm,
            processors: std::thread::available_parallelism()
                .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
            memory_mib: memory_mib(),
            network: self.settings.network.clone(),
            uefi: uefi.map(|(code, variables)| (PathBuf::from(code), PathBuf::from(variables))),
        }
    }

    /// What the operator has set for a machine, by its name or else by its id.
    fn overrides(&self, request: &MachineRequest) -> Result<Overrides, ComputeError> {
        let by_name = (!request.name.contains('/')).then(|| request.name.clone());
        for name in by_name.into_iter().chain([request.machine.to_string()]) {
            let path = self.settings.overrides.join(format!("{name}.toml"));
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(ComputeError::Io { action: "read", path, source }),
            };
            return toml::from_str(&text)
                .map_err(|error| invalid(format!("the hardware file {} is wrong: {error}", path.display())));
        }
        Ok(Overrides::default())
    }

    async fn ready(&self) -> Result<(), ComputeError> {
        for program in [QEMU, QEMU_IMG] {
            tool(program, &["--version"]).await?;
        }
        if self.settings.accelerator == Accelerator::Kvm && !has_kvm() {
            return Err(invalid(
                "KVM cannot be used on this host (/dev/kvm); set machine_accelerator to auto or tcg, or load its module".into(),
            ));
        }
        Ok(())
    }

    async fn make(&self, request: MachineRequest) -> Result<(), ComputeError> {
        let files = self.files(&request.owner)?;
        let (overrides, host) = (self.overrides(&request)?, self.host());
        let definition = Definition::of(&request, &overrides, &host).map_err(invalid)?;
        let known = read_made(&files)?;
        let same = known.is_some_and(|known| {
            known.point == request.point && known.definition.disks.len() == definition.disks.len()
        });
        if !same {
            self.remove(&request.owner).await?;
            let io = |action, path: &Path| {
                let path = path.to_owned();
                move |source| ComputeError::Io { action, path, source }
            };
            fs::create_dir_all(&files.folder).map_err(io("create", &files.folder))?;
            for (number, disk) in definition.disks.iter().enumerate().filter(|(_, disk)| !disk.writable) {
                let overlay = files.overlay(number).display().to_string();
                let size = disk.size_bytes.to_string();
                // Not opened now: the served disk is read when the machine starts.
                let create =
                    ["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", &disk.served, &overlay, &size];
                tool(QEMU_IMG, &create).await?;
                instant::begin_record(&files.overlay(number), disk.size_bytes).await?;
            }
            if let Some((_, variables)) = host.uefi.filter(|_| definition.uefi_code.is_some()) {
                let to = files.uefi_variables();
                fs::copy(variables, &to).map_err(io("write", &to))?;
            }
        }
        let made = Made { version: VERSION, point: request.point, definition };
        let path = files.folder.join("machine.json");
        serde_json::to_vec_pretty(&made)
            .map_err(io::Error::other)
            .and_then(|bytes| durable::replace(&path, &bytes, durable::MODE_PRIVATE))
            .map_err(|source| ComputeError::Io { action: "write", path, source })
    }

    async fn run(&self, owner: String) -> Result<StartedMachine, ComputeError> {
        let files = self.files(&owner)?;
        let made =
            read_made(&files)?.ok_or_else(|| invalid(format!("there is no machine of job {owner}")))?;
        let definition = made.definition;
        let opening = self.opening(&owner).await;
        if is_sealed(&files)? {
            let remarks = vec!["it is on its way back to its source, and is not started".to_owned()];
            return Ok(StartedMachine { remarks, ..StartedMachine::default() });
        }
        if process(&files).is_none() {
            instant::end_reader(&files).await?;
            for stale in [&files.control, &files.second_control(), &files.console, &files.process_id()] {
                let _none_is_fine = fs::remove_file(stale);
            }
            let mut backed = Vec::with_capacity(definition.disks.len());
            for (number, disk) in definition.disks.iter().enumerate() {
                backed.push(!disk.writable && is_backed(&files.overlay(number)).await?);
            }
            let arguments = definition.arguments(&files, &backed);
            tracing::info!(owner, arguments = arguments.join(" "), "a machine starts");
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            tool(QEMU, &arguments).await?;
        }
        drop(opening);
        self.first_read(&files).await?;
        let accelerator = if definition.kvm { "KVM" } else { "TCG" };
        let firmware = if definition.uefi_code.is_some() { "UEFI" } else { "BIOS" };
        Ok(StartedMachine {
            runs_as: format!(
                "QEMU, {accelerator}, {firmware}, {} processors, {} MiB, disks on {}",
                definition.processors,
                definition.memory_mib,
                definition.disk_model.name()
            ),
            console: Some(files.console.clone()),
            console_log: Some(files.console_log()),
            remarks: definition.remarks,
        })
    }

    /// Waits until the machine has read from one of its disks.
    async fn first_read(&self, files: &Files) -> Result<(), ComputeError> {
        let deadline = Instant::now() + FIRST_READ_MAX;
        let mut qmp = None;
        while Instant::now() < deadline {
            if process(files).is_none() {
                return Err(invalid(format!(
                    "the machine ended before it read anything; its console is in {}",
                    files.console_log().display()
                )));
            }
            if qmp.is_none() {
                qmp = Qmp::connect(&files.control).await.ok();
            }
            if let Some(qmp) = &mut qmp {
                let statistics = qmp.execute("query-blockstats", json!({})).await.map_err(invalid)?;
                let devices = statistics.as_array().map(Vec::as_slice).unwrap_or_default();
                let read = |device: &Value| {
                    let is_disk = device["node-name"].as_str().is_some_and(|name| name.starts_with("disk"));
                    is_disk && device["stats"]["rd_operations"].as_u64() > Some(0)
                };
                if devices.iter().any(read) {
                    return Ok(());
                }
            }
            sleep(LOOK).await;
        }
        Err(invalid(format!(
            "the machine runs and has read nothing from its disks for {} s; look at its console, or choose another disk_model in \
             its hardware file",
            FIRST_READ_MAX.as_secs()
        )))
    }

    async fn end(&self, owner: String, how: Stop) -> Result<(), ComputeError> {
        let files = self.files(&owner)?;
        let Some(id) = process(&files) else { return Ok(()) };
        let connected = Qmp::connect(&files.second_control()).await;
        if let (Stop::ShutDown { limit_ms }, Ok(mut qmp)) = (how, connected) {
            let _asked = qmp.execute("system_powerdown", json!({})).await;
            if ends(&files, Duration::from_millis(limit_ms)).await {
                return Ok(());
            }
            tracing::warn!(owner, limit_ms, "the machine did not shut down; its power is taken away");
        }
        if let Ok(mut qmp) = Qmp::connect(&files.second_control()).await {
            // The connection may be lost before the answer comes.
            let _asked = qmp.execute("quit", json!({})).await;
            if ends(&files, END_MAX).await {
                return Ok(());
            }
        }
        kill(&files.process_id(), id);
        if ends(&files, END_MAX).await {
            return Ok(());
        }
        Err(invalid(format!("QEMU's process {id} does not end; look at it on this host")))
    }

    async fn copy(&self, owner: String, task: &Task) -> Result<(), ComputeError> {
        let files = self.files(&owner)?;
        let made =
            read_made(&files)?.ok_or_else(|| invalid(format!("there is no machine of job {owner}")))?;
        let connect = Qmp::connect(&files.control);
        let mut qmp = connect
            .await
            .map_err(|error| invalid(format!("the machine does not run ({error}); start it first")))?;
        task.set_total_bytes(made.definition.disks.iter().map(|disk| disk.size_bytes).sum());
        for (number, disk) in made.definition.disks.iter().enumerate() {
            if is_backed(&files.overlay(number)).await? {
                copy_disk(&mut qmp, number, task).await?;
            } else {
                task.add_resumed_bytes(disk.size_bytes);
            }
        }
        Ok(())
    }

    async fn remove(&self, owner: &str) -> Result<(), ComputeError> {
        let _opening = self.opening(owner).await;
        self.end(owner.to_owned(), Stop::PowerOff).await?;
        let files = self.files(owner)?;
        instant::end_reader(&files).await?;
        for socket in [&files.control, &files.second_control(), &files.console, &files.instant_socket()] {
            let _none_is_fine = fs::remove_file(socket);
        }
        match fs::remove_dir_all(&files.folder) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ComputeError::Io { action: "remove", path: files.folder, source })
            }
            _ => Ok(()),
        }
    }
}

impl Machines for QemuMachines {
    fn ready(&self) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(Self::ready(self))
    }

    fn controllers(&self) -> Vec<Controller> {
        planned::controllers()
    }

    fn plan(&self, request: &MachineRequest) -> Result<Planned, ComputeError> {
        let overrides = self.overrides(request)?;
        Definition::of(request, &overrides, &self.host())
            .map(|definition| definition.planned())
            .map_err(invalid)
    }

    fn define(&self, request: MachineRequest) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(self.make(request))
    }

    fn start(&self, owner: String) -> BoxFuture<'_, Result<StartedMachine, ComputeError>> {
        Box::pin(self.run(owner))
    }

    fn is_running(&self, owner: String) -> BoxFuture<'_, Result<bool, ComputeError>> {
        Box::pin(async move { Ok(process(&self.files(&owner)?).is_some()) })
    }

    fn stop(&self, owner: String, how: Stop) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(self.end(owner, how))
    }

    fn stream(&self, owner: String, task: Arc<Task>) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async move { self.copy(owner, &task).await })
    }

    fn console_text(&self, owner: String) -> BoxFuture<'_, Result<Vec<u8>, ComputeError>> {
        Box::pin(async move { screen::console_text(self.files(&owner)?.console_log()) })
    }

    fn screenshot(&self, owner: String, file: PathBuf) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async move { screen::picture(&self.files(&owner)?.second_control(), &file).await })
    }

    fn destroy(&self, owner: String) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async move { self.remove(&owner).await })
    }
}

/// Copies what a disk's overlay does not have into it.
async fn copy_disk(qmp: &mut Qmp, number: usize, task: &Task) -> Result<(), ComputeError> {
    let job = format!("stream{number}");
    let mut done = 0;
    let mut begun = find_job(qmp, &job).await?.is_some();
    loop {
        if !begun {
            let arguments = json!({"job-id": job, "device": format!("disk{number}"), "auto-dismiss": false});
            qmp.execute("block-stream", arguments).await.map_err(invalid)?;
            begun = true;
        }
        let Some(found) = find_job(qmp, &job).await? else { return Ok(()) };
        let now = found["current-progress"].as_u64().unwrap_or(0);
        task.add_done_bytes(now.saturating_sub(done));
        done = done.max(now);
        if found["status"] == "concluded" {
            qmp.execute("job-dismiss", json!({"id": job})).await.map_err(invalid)?;
            return match found["error"].as_str() {
                _ if task.is_cancelled() => Err(ComputeError::Cancelled),
                Some(error) => Err(invalid(format!(
                    "the machine's disk {number} was not copied: {error}; see that its folder has room, and retry"
                ))),
                None => Ok(()),
            };
        }
        if task.is_cancelled() {
            let _may_have_ended = qmp.execute("job-cancel", json!({"id": job})).await;
        }
        sleep(LOOK_SLOW).await;
    }
}

async fn find_job(qmp: &mut Qmp, job: &str) -> Result<Option<Value>, ComputeError> {
    let jobs = qmp.execute("query-jobs", json!({})).await.map_err(invalid)?;
    Ok(jobs.as_array().and_then(|jobs| jobs.iter().find(|found| found["id"] == job)).cloned())
}

const fn invalid(detail: String) -> ComputeError {
    ComputeError::Invalid { detail }
}

fn read_made(files: &Files) -> Result<Option<Made>, ComputeError> {
    let path = files.folder.join("machine.json");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ComputeError::Io { action: "read", path, source }),
    };
    let made: Made = serde_json::from_slice(&bytes)
        .map_err(|error| invalid(format!("{} cannot be used: {error}", path.display())))?;
    if made.version > VERSION {
        return Err(invalid(format!("{} is of a newer version of this program", path.display())));
    }
    Ok(Some(made))
}

/// Whether a machine is not to be started.
fn is_sealed(files: &Files) -> Result<bool, ComputeError> {
    let path = files.sealed();
    path.try_exists().map_err(|source| ComputeError::Io { action: "look for", path, source })
}

/// The process of a machine, if it runs.
fn process(files: &Files) -> Option<u32> {
    process_of(&files.process_id())
}

/// The process that has this file of its id among its arguments. One that was started just before the coordinator was killed has
/// not written that file yet, and is found by its arguments alone.
fn process_of(path: &Path) -> Option<u32> {
    let known = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    let path = path.display().to_string();
    let is_it = |id: &u32| {
        // The name first: it can be had of every process, while the arguments of one that hangs in its end are waited for, for ever.
        let name = fs::read(format!("/proc/{id}/comm")).unwrap_or_default();
        if !QEMU.as_bytes().starts_with(name.trim_ascii_end()) || name.is_empty() {
            return false;
        }
        let arguments = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|byte| *byte == 0);
        let is_qemu = arguments.next().is_some_and(|program| program.ends_with(QEMU.as_bytes()));
        is_qemu && arguments.any(|argument| argument == path.as_bytes())
    };
    let all = || fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut numbers = all().filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    known.filter(is_it).or_else(|| numbers.find(is_it))
}

/// Kills a process of ours, if it is still the one that has this file of its id.
fn kill(path: &Path, id: u32) {
    if process_of(path) == Some(id)
        && let Some(id) = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw)
    {
        let _ended_just_now = rustix::process::kill_process(id, rustix::process::Signal::KILL);
    }
}

/// Whether the machine ends within this time.
async fn ends(files: &Files, limit: Duration) -> bool {
    ends_of(&files.process_id(), limit).await
}

async fn ends_of(path: &Path, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while process_of(path).is_some() {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(LOOK).await;
    }
    true
}

/// Whether an overlay still needs what is below it.
async fn is_backed(overlay: &Path) -> Result<bool, ComputeError> {
    let path = overlay.display().to_string();
    let output = tool(QEMU_IMG, &["info", "-U", "--output=json", &path]).await?;
    let info: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| invalid(format!("what qemu-img says of {path} is no JSON: {error}")))?;
    Ok(info.get("backing-filename").is_some())
}

/// Runs one of QEMU's programs to its end.
async fn tool(program: &str, arguments: &[&str]) -> Result<Output, ComputeError> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Signals to the coordinator's group (Ctrl-C) are not for machines.
    command.process_group(0).kill_on_drop(true);
    keep_descriptors(&mut command);
    let started = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => invalid(format!(
            "{program} is not installed on the coordinator's host (Debian: apt-get install qemu-system-x86 qemu-utils \
             qemu-block-extra)"
        )),
        _ => ComputeError::Io { action: "start", path: program.into(), source: error },
    })?;
    let ended = timeout(TOOL_MAX, started.wait_with_output()).await;
    let output = ended
        .map_err(|_| invalid(format!("{program} did not end within {} s", TOOL_MAX.as_secs())))?
        .map_err(|source| ComputeError::Io { action: "wait for", path: program.into(), source })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    Err(invalid(format!("{program} failed ({}): {}", output.status, said.join("; "))))
}

/// A machine outlives the coordinator, and must not keep its files, sockets and locks open, nor those that it was started with.
#[expect(unsafe_code, reason = "what runs between fork and exec has no safe form")]
fn keep_descriptors(command: &mut Command) {
    let marked = || {
        // Kernels before 5.11 refuse it; there it is as it was.
        // SAFETY: the system call takes numbers only.
        let _refused =
            unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
        Ok(())
    };
    // SAFETY: one system call, which allocates nothing and takes no lock.
    unsafe { command.pre_exec(marked) };
}

/// Memory of this host in MiB; `None` if it does not say.
fn memory_mib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib >> 10)
}

fn has_kvm() -> bool {
    fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Whether this host is a virtual machine itself.
fn is_virtual() -> bool {
    fs::read_to_string("/proc/cpuinfo")
        .is_ok_and(|text| text.lines().any(|line| line.starts_with("flags") && line.contains(" hypervisor")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use holdfast_common::ids::PointId;

    use super::{
        Files,
        definition::{DiskModel, NetworkModel},
        read_made,
    };

    /// As the first version wrote it: before disks said of which protected disk they are made, and could be written to.
    const FIRST: &str = r#"{"version":1,"point":"03030303-0303-0303-0303-030303030303","definition":{"name":"web-1",
        "processors":4,"memory_mib":2048,"cpu":"max","kvm":false,"uefi_code":null,"uuid":"","disk_model":"virtio-scsi",
        "disks":[{"name":"sda","serial":"A1","served":"nbd+unix:///sda?socket=/run/s","size_bytes":4096}],
        "cards":[{"model":"e1000e","mac":"52:54:00:12:34:56","network":"isolated"}],"remarks":["one"]}}"#;

    #[test]
    fn a_machine_of_the_first_version_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let files = Files { control: path.join("control"), console: path.join("console"), folder: path };
        assert!(read_made(&files).unwrap().is_none());
        let file = files.folder.join("machine.json");
        fs::write(&file, FIRST).unwrap();
        let made = read_made(&files).unwrap().unwrap();
        let (definition, disk) = (&made.definition, &made.definition.disks[0]);
        assert_eq!(made.point, PointId::from_bytes([3; 16]));
        assert_eq!((definition.processors, definition.memory_mib, definition.kvm), (4, 2048, false));
        assert_eq!(
            (definition.disk_model, definition.cards[0].model),
            (DiskModel::VirtioScsi, NetworkModel::E1000e)
        );
        assert_eq!(
            (disk.disk, disk.writable, disk.served.as_str()),
            (None, false, "nbd+unix:///sda?socket=/run/s")
        );
        fs::write(&file, FIRST.replacen("\"version\":1", "\"version\":2", 1)).unwrap();
        assert!(read_made(&files).unwrap_err().to_string().contains("newer version"));
    }
}
