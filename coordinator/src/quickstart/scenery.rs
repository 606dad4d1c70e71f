//! The quickstart's scenery: a real ext4 on a loop device, or a plain image file; child processes; temporary places.
//!
//! Owns what it sets up and takes it all down when dropped, in the order in which it can be taken down. Knows nothing of
//! replication. Invariant: only devices, mounts and processes that were made here are ever touched.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Runs a program to its end and returns what it printed.
///
/// # Errors
/// It cannot be started (the text names the package it is from) or fails (the text has its last words).
pub fn run<I, S>(program: &str, arguments: I) -> Result<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}; is it installed?"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} failed: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A loop device on an image file; detached when dropped.
#[derive(Debug)]
pub struct LoopDisk {
    device: PathBuf,
}

impl LoopDisk {
    /// Attaches a free loop device to `image`, with direct IO.
    ///
    /// # Errors
    /// No root, no loop devices, or none free.
    pub fn attach(image: &Path, read_only: bool) -> Result<Self> {
        Self::with(image, if read_only { "--read-only" } else { "--direct-io=on" }, 0)
    }

    /// Attaches one with direct IO to the part of `image` that begins at byte `offset`, as of a partition in it.
    ///
    /// # Errors
    /// No root, no loop devices, or none free.
    pub fn attach_at(image: &Path, offset: u64) -> Result<Self> {
        Self::with(image, "--direct-io=on", offset)
    }

    fn with(image: &Path, how: &str, offset: u64) -> Result<Self> {
        let offset = format!("--offset={offset}");
        let arguments = ["--find", "--show", how, &offset].map(OsStr::new);
        let device = run("losetup", arguments.into_iter().chain([image.as_os_str()]));
        Ok(Self { device: device.with_context(|| format!("losetup of {}", image.display()))?.into() })
    }

    /// The device node.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if let Err(error) = run("losetup", [OsStr::new("--detach"), self.device.as_os_str()]) {
            tracing::warn!("loop device {} could not be detached: {error:#}", self.device.display());
        }
    }
}

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct Mount {
    folder: PathBuf,
}

impl Mount {
    /// Mounts `device` on `folder`, which is created.
    ///
    /// # Errors
    /// The kernel refuses the file system.
    pub fn new(device: &Path, folder: &Path) -> Result<Self> {
        Self::with(device, folder, &[])
    }

    /// The same with options ("ro", "nouuid").
    ///
    /// # Errors
    /// The kernel refuses the file system.
    pub fn with(device: &Path, folder: &Path, options: &[&str]) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let options = options.join(",");
        let options = (!options.is_empty()).then_some(["-o", &options].map(OsStr::new));
        let places = [device.as_os_str(), folder.as_os_str()];
        run("mount", options.into_iter().flatten().chain(places))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = run("umount", [&self.folder]) {
            tracing::warn!("{} could not be unmounted: {error:#}", self.folder.display());
        }
    }
}

/// Makes a sparse image file of this size.
///
/// # Errors
/// The file exists or cannot be made.
pub fn create_image(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create_new(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(file.set_len(bytes)?)
}

/// A program that runs until told to end; ended (asked, then killed) when dropped.
#[derive(Debug)]
pub struct Service {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

impl Service {
    /// Starts a program, with its output in a file beside the other logs.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start<I, S>(name: &'static str, program: &Path, arguments: I, logs: &Path) -> Result<Self>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let log = logs.join(format!("{name}.log"));
        let output = File::create(&log)?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child, name, log })
    }

    /// Fails if the program has ended by itself.
    ///
    /// # Errors
    /// It has ended; the text has the end of its log.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(12).collect();
            let tail: Vec<_> = tail.into_iter().rev().collect();
            bail!("{} ended ({status}); the end of its log:\n{}", self.name, tail.join("\n"));
        }
        Ok(())
    }

    /// Asks the program to end and waits for it.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn stop(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
            }
            for _ in 0..100 {
                if self.child.try_wait()?.is_some() {
                    return Ok(());
                }
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            self.child.kill()?;
            self.child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!("{} could not be ended: {error:#}", self.name);
        }
    }
}
