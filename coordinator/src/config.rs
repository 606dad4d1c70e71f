//! Settings of the coordinator: plain data.
//!
//! Owns names, defaults and bounds. A TOML file may set them; arguments win over the file; unknown keys are refused, since
//! a mistyped one must not be ignored. The effective settings are logged once.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::compute::vm::definition::{Accelerator, USER};

/// Where the settings are looked for if nothing is said.
pub const DEFAULT_FILE: &str = "/etc/holdfast/coordinator.toml";

/// All settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Folder of everything that is kept.
    pub data: PathBuf,
    /// UDP address for agents.
    pub listen: SocketAddr,
    /// TCP address for operators on the network (HTTPS); they are reached over the unix socket only if not set.
    pub api_listen: Option<SocketAddr>,
    /// Folders on this host below which operators on the network who are no admins may have images written.
    pub image_folders: Vec<PathBuf>,
    /// Folders on this host with programs that recovery plans of operators who are no admins may have run. Whoever can
    /// write there can run what he likes as the coordinator.
    pub script_folders: Vec<PathBuf>,
    /// Folder of what machines that run here write; `vm` in the data folder if not set.
    pub machine_folder: Option<PathBuf>,
    /// How the processors of machines that run here are run: `auto`, `kvm` or `tcg`.
    pub machine_accelerator: Accelerator,
    /// Network of machines that run here and are no tests: `user` (QEMU's own, behind this host's addresses) or a bridge's name.
    pub machine_network: String,
    /// Folder of the operator's socket and of the exports' sockets; the data folder if not set. Paths of unix sockets are
    /// short (about 100 bytes).
    pub sockets: Option<PathBuf>,
    /// Days for which a machine's certificate is valid; it renews itself after two thirds.
    pub certificate_days: u32,
    /// Async threads: connections, sessions, the operator's interface.
    pub async_threads: usize,
    /// Most threads for blocking work (files, views); they are made when needed.
    pub blocking_threads: usize,
    /// Threads that verify frames from agents.
    pub verify_threads: usize,
    /// Threads that write one image.
    pub image_threads: usize,
    /// Bytes of decompressed frames that are kept for readers of attached points, all exports together. What is read
    /// again within it costs no decompression; larger pays off for virtual machines that run from an export.
    pub frame_cache_bytes: usize,
    /// Bytes of a segment file.
    pub segment_bytes: u64,
    /// Free bytes below which nothing is taken from agents.
    pub reserve_bytes: u64,
    /// Bytes of frames that may wait for the disk, all machines together.
    pub queue_bytes: usize,
    /// Bytes of one agent's frames between network and journal.
    pub agent_budget_bytes: usize,
    /// Bytes that one agent may have sent ahead.
    pub receive_window_bytes: u32,
    /// Most connections of agents.
    pub connections_max: usize,
    /// Bytes per second that are copied at most, to free space between what is still needed.
    pub reclaim_bytes_per_second: u64,
    /// Days in which all stored data is read and checked once.
    pub scrub_days: u32,
    /// Bytes per second that this is never slower than.
    pub scrub_bytes_per_second_min: u64,
    /// Bytes per second at which new data is verified behind ingest; zero: as fast as it goes. At a failover the point's data is
    /// verified with all processors, whatever this says.
    pub verify_bytes_per_second: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            data: PathBuf::from("/var/lib/holdfast"),
            listen: SocketAddr::from(([0, 0, 0, 0], 4433)),
            api_listen: None,
            image_folders: Vec::new(),
            script_folders: Vec::new(),
            machine_folder: None,
            machine_accelerator: Accelerator::Auto,
            machine_network: USER.to_owned(),
            sockets: None,
            certificate_days: 7,
            async_threads: processors.clamp(2, 8),
            blocking_threads: 32,
            verify_threads: processors.clamp(1, 8),
            image_threads: processors.clamp(1, 4),
            frame_cache_bytes: 128 << 20,
            segment_bytes: 64 << 20,
            reserve_bytes: 64 << 20,
            queue_bytes: 32 << 20,
            agent_budget_bytes: 8 << 20,
            receive_window_bytes: 16 << 20,
            connections_max: 1024,
            reclaim_bytes_per_second: 32 << 20,
            scrub_days: 7,
            scrub_bytes_per_second_min: 8 << 20,
            verify_bytes_per_second: 256 << 20,
        }
    }
}

impl Settings {
    /// Reads a file; without one the defaults.
    ///
    /// # Errors
    /// The file is missing although it was named, or holds something unknown or out of bounds.
    pub fn load(named: Option<&Path>) -> Result<Self> {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        if named.is_none() && !path.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the settings {} cannot be read", path.display()))?;
        toml::from_str(&text).with_context(|| format!("the settings {} are wrong", path.display()))
    }

    /// Checks bounds.
    ///
    /// # Errors
    /// A value is out of its bounds; the text names it.
    pub fn check(&self) -> Result<()> {
        let within = |name: &str, value: u64, from: u64, to: u64| {
            ensure!((from..=to).contains(&value), "{name} = {value} is out of its bounds, {from} to {to}");
            Ok(())
        };
        ensure!(
            self.image_folders.iter().all(|folder| folder.is_absolute()),
            "image_folders must be full paths"
        );
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        ensure!(
            !self.machine_network.is_empty() && self.machine_network.chars().all(is_name),
            "machine_network = {:?} must be `user` or the name of a bridge",
            self.machine_network
        );
        within("certificate_days", self.certificate_days.into(), 1, 825)?;
        within("async_threads", self.async_threads as u64, 1, 64)?;
        within("blocking_threads", self.blocking_threads as u64, 4, 512)?;
        within("verify_threads", self.verify_threads as u64, 1, 64)?;
        within("image_threads", self.image_threads as u64, 1, 64)?;
        within("frame_cache_bytes", self.frame_cache_bytes as u64, 1 << 20, 1 << 40)?;
        within("segment_bytes", self.segment_bytes, 4 << 20, 4 << 30)?;
        within("reserve_bytes", self.reserve_bytes, 16 << 20, 1 << 40)?;
        within("queue_bytes", self.queue_bytes as u64, 4 << 20, 1 << 32)?;
        within("agent_budget_bytes", self.agent_budget_bytes as u64, 2 << 20, 1 << 30)?;
        within("receive_window_bytes", self.receive_window_bytes.into(), 1 << 20, 1 << 30)?;
        within("reclaim_bytes_per_second", self.reclaim_bytes_per_second, 1 << 20, 1 << 40)?;
        within("scrub_days", self.scrub_days.into(), 1, 366)?;
        within("scrub_bytes_per_second_min", self.scrub_bytes_per_second_min, 1 << 16, 1 << 40)?;
        within("verify_bytes_per_second", self.verify_bytes_per_second, 0, 1 << 40)?;
        within("connections_max", self.connections_max as u64, 1, 100_000)
    }

    /// Folder of sockets.
    #[must_use]
    pub fn sockets(&self) -> &Path {
        self.sockets.as_deref().unwrap_or(&self.data)
    }
}

#[cfg(test)]
mod tests {
    use super::Settings;

    #[test]
    fn unknown_keys_and_values_out_of_bounds_are_refused() {
        assert!(toml::from_str::<Settings>("retension = 3").is_err());
        let settings: Settings = toml::from_str("certificate_days = 0").unwrap();
        assert!(settings.check().unwrap_err().to_string().contains("certificate_days = 0"));
        Settings::default().check().unwrap();
    }

    #[test]
    fn a_named_file_must_exist() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Settings::load(Some(&folder.path().join("none.toml"))).is_err());
        let path = folder.path().join("some.toml");
        std::fs::write(&path, "listen = \"127.0.0.1:9\"\n").unwrap();
        assert_eq!(Settings::load(Some(&path)).unwrap().listen.port(), 9);
    }
}
