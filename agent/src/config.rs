//! Settings of the agent: a TOML file, plain data. Flags of the command line win over it.
//!
//! Owns names, units, defaults and bounds. A key that is not known is an error: a mistyped limit must not be ignored.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use thiserror::Error;

use crate::{
    batch::SealSettings,
    engine::Budget,
    hooks::HookSettings,
    ship::{
        ShipSettings,
        endpoint::{Congestion, LinkSettings},
    },
    source::{Guest, SourcePrograms},
};

/// Default state folder.
pub const STATE_DEFAULT: &str = "/var/lib/holdfast-agent";

/// Default settings file; it need not exist.
pub const CONFIG_DEFAULT: &str = "/etc/holdfast/agent.toml";

/// Default folder of freeze hooks.
pub const HOOKS_DEFAULT: &str = "/etc/holdfast/freeze-hook.d";

/// Default folder of programs of recovery plans.
pub const ACTIONS_DEFAULT: &str = "/etc/holdfast/actions.d";

/// Bytes in a MiB.
const MIB: usize = 1 << 20;

/// Settings of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Folder for identity and small records. Default `/var/lib/holdfast-agent`.
    pub state: PathBuf,
    /// Plain disk-image files that may be protected beside the machine's block devices. Default none.
    pub images: Vec<PathBuf>,
    /// Use of the processor.
    pub processor: Processor,
    /// Use of memory.
    pub memory: Memory,
    /// The link to the coordinator.
    pub link: Link,
    /// Freeze hooks of applications.
    pub hooks: Hooks,
    /// What is done when the machine fails over.
    pub source: Source,
    /// Folder of programs that recovery plans may have run on this machine, by their names; with all rights of the agent.
    /// Default `/etc/holdfast/actions.d`.
    pub actions: PathBuf,
}

/// What is done when the machine fails over. Programs are given as full paths, and called without a shell.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Source {
    /// Called with `stop` before a planned failover, to end what writes to the protected disks, and with `resume` if it
    /// does not happen. Default none: only the file systems are frozen.
    pub stop: Option<PathBuf>,
    /// Called with `fenced`, once, when the machine runs elsewhere; may stop services or the whole machine. Default none.
    pub fenced: Option<PathBuf>,
    /// QEMU's control channel (`-qmp unix:...,server=on,wait=off`), where the machine is a guest on this host and its disks are
    /// protected from here: before a planned failover it is shut down as by its power button. Default none.
    pub qmp: Option<PathBuf>,
    /// Longest time for that guest to shut down, in seconds. Default 90; a failover waits two minutes at most.
    pub shut_down_s: u64,
}

impl Default for Source {
    fn default() -> Self {
        Self { stop: None, fenced: None, qmp: None, shut_down_s: 90 }
    }
}

/// Use of the processor and of the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Processor {
    /// Threads that compress and hash. 0 means half of the logical processors, at least one, at most four.
    pub sealing_threads: usize,
    /// Nice level of these threads, 0 to 19. Default 10: the machine's own work comes first.
    pub nice: i32,
    /// Threads that read disks, so many reads at a time. Default 16: reads of single blocks mostly wait.
    pub reading_threads: usize,
    /// Fixed zstd level, -7 to 19; without it the level follows the backlog (-5 to 3).
    pub compression_level: Option<i32>,
}

/// Use of memory. The defaults keep the agent below 128 MiB with 64 GiB of disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// Frames that are sent and not acknowledged, in MiB. Default 32. More rides out longer stalls of the link.
    pub window_mib: usize,
    /// Blocks on their way to sealing, and sealed frames on their way to the window, in MiB each. Default 8.
    pub batch_mib: usize,
    /// What is read while writes are held, at most, in MiB. Default 40. More lets cuts succeed under heavier load.
    pub residue_mib: usize,
}

/// The link to the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Link {
    /// Congestion control: "cubic" (default), "bbr" or "newreno".
    pub congestion: Congestion,
    /// Upper bound of what is sent, in bytes per second, beside the machine's policy; 0 means none.
    pub send_bytes_per_second_max: u64,
    /// Seconds between packets that keep an idle link alive. Default 5.
    pub keep_alive_s: u64,
    /// Seconds of silence after which the link is given up and made anew. Default 30.
    pub idle_timeout_s: u64,
}

/// Freeze hooks of applications.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hooks {
    /// Folder of the hooks. Default `/etc/holdfast/freeze-hook.d`.
    pub folder: PathBuf,
    /// Longest time of one call of a hook, in seconds. Default 30. Then it is killed, and the freeze has failed.
    pub call_s: u64,
    /// Longest time that applications may be frozen, in seconds. Default 60. Then they are thawed whatever happens.
    pub frozen_s: u64,
}

impl Default for Hooks {
    fn default() -> Self {
        Self { folder: PathBuf::from(HOOKS_DEFAULT), call_s: 30, frozen_s: 60 }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            state: PathBuf::from(STATE_DEFAULT),
            images: Vec::new(),
            processor: Processor::default(),
            memory: Memory::default(),
            link: Link::default(),
            hooks: Hooks::default(),
            source: Source::default(),
            actions: PathBuf::from(ACTIONS_DEFAULT),
        }
    }
}

impl Default for Processor {
    fn default() -> Self {
        Self { sealing_threads: 0, nice: 10, reading_threads: 16, compression_level: None }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self { window_mib: 32, batch_mib: 8, residue_mib: 40 }
    }
}

impl Default for Link {
    fn default() -> Self {
        let link = LinkSettings::default();
        Self {
            congestion: link.congestion,
            send_bytes_per_second_max: 0,
            keep_alive_s: link.keep_alive.as_secs(),
            idle_timeout_s: link.idle_timeout.as_secs(),
        }
    }
}

/// Why settings cannot be used.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("settings file {} cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("settings file {} is not valid: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line and reason.
        reason: String,
    },
    /// A value is out of its range.
    #[error("setting {name} is {value}; it must be {range}")]
    Range {
        /// The setting.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is possible.
        range: &'static str,
    },
}

impl Settings {
    /// Reads the file, or gives the defaults if `path` is `None` and there is no file at the usual place.
    ///
    /// # Errors
    /// The file is missing though it was named, cannot be read, or is not valid.
    pub fn load(path: Option<&Path>) -> Result<Self, SettingsError> {
        let file = path.unwrap_or(Path::new(CONFIG_DEFAULT));
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(source) => return Err(SettingsError::Unreadable { path: file.to_owned(), source }),
        };
        let settings: Self = toml::from_str(&text)
            .map_err(|error| SettingsError::Invalid { path: file.to_owned(), reason: error.to_string() })?;
        settings.check()?;
        Ok(settings)
    }

    /// Checks ranges.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn check(&self) -> Result<(), SettingsError> {
        let Self { processor, memory, link, hooks, source, .. } = self;
        range("processor.sealing_threads", processor.sealing_threads, 0..=64, "0 (automatic) to 64")?;
        range("processor.nice", processor.nice, 0..=19, "0 to 19")?;
        range("processor.reading_threads", processor.reading_threads, 1..=64, "1 to 64")?;
        range("processor.compression_level", processor.compression_level.unwrap_or(1), -7..=19, "-7 to 19")?;
        range("memory.window_mib", memory.window_mib, 4..=65536, "4 to 65536")?;
        range("memory.batch_mib", memory.batch_mib, 4..=1024, "4 to 1024")?;
        range("memory.residue_mib", memory.residue_mib, 4..=16384, "4 to 16384")?;
        range("link.keep_alive_s", link.keep_alive_s, 1..=600, "1 to 600")?;
        range("link.idle_timeout_s", link.idle_timeout_s, 2..=3600, "2 to 3600")?;
        range("hooks.call_s", hooks.call_s, 1..=3600, "1 to 3600")?;
        range("hooks.frozen_s", hooks.frozen_s, 1..=3600, "1 to 3600")?;
        range("source.shut_down_s", source.shut_down_s, 1..=3600, "1 to 3600")?;
        let paths =
            [("source.stop", &source.stop), ("source.fenced", &source.fenced), ("source.qmp", &source.qmp)];
        for (name, program) in paths {
            if let Some(program) = program.as_ref().filter(|program| !program.is_absolute()) {
                let value = program.display().to_string();
                return Err(SettingsError::Range { name, value, range: "a full path" });
            }
        }
        Ok(())
    }

    /// What is done with a source that fails over.
    #[must_use]
    pub fn source(&self) -> SourcePrograms {
        let Source { stop, fenced, qmp, shut_down_s } = self.source.clone();
        let limit = Duration::from_secs(shut_down_s);
        SourcePrograms { stop, fenced, guest: qmp.map(|socket| Guest { socket, limit }) }
    }

    /// How freeze hooks are run.
    #[must_use]
    pub fn hooks(&self) -> HookSettings {
        HookSettings {
            call_max: Duration::from_secs(self.hooks.call_s),
            bound: Duration::from_secs(self.hooks.frozen_s),
            ..HookSettings::new(self.hooks.folder.clone(), &self.state)
        }
    }

    /// Sealing threads to start.
    #[must_use]
    pub fn seal(&self) -> SealSettings {
        let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let automatic = (available / 2).clamp(1, 4);
        let threads =
            if self.processor.sealing_threads == 0 { automatic } else { self.processor.sealing_threads };
        SealSettings {
            threads,
            nice: self.processor.nice,
            slots: buffers(self.memory.batch_mib),
            level: self.processor.compression_level,
        }
    }

    /// Memory for blocks.
    #[must_use]
    pub const fn budget(&self) -> Budget {
        Budget {
            copy_buffers: buffers(self.memory.batch_mib),
            residue_buffers: buffers(self.memory.residue_mib),
        }
    }

    /// Settings of the link.
    #[must_use]
    pub fn ship(&self) -> ShipSettings {
        ShipSettings {
            window_bytes_max: self.memory.window_mib * MIB,
            send_bytes_per_second_max: self.link.send_bytes_per_second_max,
            link: LinkSettings {
                congestion: self.link.congestion,
                keep_alive: Duration::from_secs(self.link.keep_alive_s),
                idle_timeout: Duration::from_secs(self.link.idle_timeout_s),
                ..LinkSettings::default()
            },
            ..ShipSettings::default()
        }
    }
}

/// Buffers of 64 KiB in so many MiB.
const fn buffers(mib: usize) -> usize {
    mib * MIB / holdfast_common::frame::FRAME_PLAIN_BYTES_TARGET
}

fn range<T: PartialOrd + ToString>(
    name: &'static str,
    value: T,
    allowed: std::ops::RangeInclusive<T>,
    range: &'static str,
) -> Result<(), SettingsError> {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(SettingsError::Range { name, value: value.to_string(), range })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::Settings;

    fn load(text: &str) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        fs::write(&path, text).unwrap();
        Settings::load(Some(&path)).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(load("").unwrap(), Settings::default());
        let budget = Settings::default().budget();
        assert_eq!((budget.copy_buffers, budget.residue_buffers), (128, 640));
    }

    #[test]
    fn an_unknown_key_and_a_value_out_of_range_are_refused_by_name() {
        assert!(load("[memory]\nwindow_mb = 5\n").unwrap_err().contains("window_mb"));
        assert!(
            load("[processor]\nnice = 40\n")
                .unwrap_err()
                .contains("processor.nice is 40; it must be 0 to 19")
        );
        assert!(Settings::load(Some("/nonexistent/agent.toml".as_ref())).is_err());
    }

    #[test]
    fn values_arrive_where_they_are_used() {
        let settings = load("[link]\ncongestion = \"bbr\"\n[processor]\nsealing_threads = 3\n").unwrap();
        assert_eq!(settings.seal().threads, 3);
        assert_eq!(settings.ship().link.congestion, crate::ship::endpoint::Congestion::Bbr);
    }
}
