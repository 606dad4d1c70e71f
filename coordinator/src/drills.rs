//! Drills: test failovers that prove that a machine boots, and end by themselves.
//!
//! Owns what is asked of a drill ([`Drill`]), what is kept of it ([`DrillRecord`]), and the file of a machine's drills. Does not
//! know jobs or hypervisors. Invariant: a drill's record is written before its machine is taken away, once per job however often
//! a step is repeated. Limits: [`KEPT_MAX`] records and screenshots per machine.
//! Format: `drills/MACHINE.json` in the data folder: one JSON object, `version` and `drills`, newest first, replaced as a
//! whole; unknown fields are ignored, missing ones have their defaults. Beside it `drills/MACHINE/JOB.png`, the screen when the
//! drill ended. History of `version`: 1, first.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use holdfast_common::{
    clock::Timestamp,
    durable,
    ids::{JobId, MachineId, PointId},
};
use serde::{Deserialize, Serialize};

use crate::{compute::port::BoxFuture, json_record};

/// Version of the file.
const VERSION: u32 = 1;
/// Drills of a machine that are remembered.
pub const KEPT_MAX: usize = 100;
/// What a machine that has booted says on its serial console.
pub const PROBE_DEFAULT: &str = "login:";
/// How long it may take to say it.
pub const LIMIT_MS_DEFAULT: u64 = 600_000;
/// Longest regular expression.
pub const PROBE_CHARS_MAX: usize = 1000;

/// What is asked of a drill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drill {
    /// A regular expression that the console's text has to match.
    pub probe: String,
    /// Longest time from the start of the machine until it does.
    pub limit_ms: u64,
}

impl Default for Drill {
    fn default() -> Self {
        Self { probe: PROBE_DEFAULT.to_owned(), limit_ms: LIMIT_MS_DEFAULT }
    }
}

impl Drill {
    /// The expression, ready for use.
    ///
    /// # Errors
    /// It is none; the text says what is wrong with it.
    pub fn expression(&self) -> Result<regex::bytes::Regex, String> {
        if self.probe.len() > PROBE_CHARS_MAX {
            return Err(format!("a probe has {PROBE_CHARS_MAX} letters at most"));
        }
        let built = regex::bytes::RegexBuilder::new(&self.probe).multi_line(true).size_limit(1 << 20).build();
        built.map_err(|error| format!("the probe is no regular expression: {error}"))
    }
}

/// When a machine is drilled. Persisted as JSON with its policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DrillPolicy {
    /// Time between drills; zero means none by themselves.
    pub every_ms: u64,
    /// What is asked of each.
    pub drill: Drill,
}

/// A drill that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillRecord {
    /// Its job.
    pub job: JobId,
    /// The point that was booted; none if it did not come so far.
    #[serde(default)]
    pub point: Option<PointId>,
    /// When it ended.
    pub at: Timestamp,
    /// Whether the machine has said what was asked for.
    pub ok: bool,
    /// From the trigger until it did, in microseconds.
    #[serde(default)]
    pub rto_us: u64,
    /// What happened, for people.
    #[serde(default)]
    pub text: String,
    /// A picture of its screen then, on the coordinator's host.
    #[serde(default)]
    pub screenshot: Option<PathBuf>,
}

/// Keeps drills.
pub trait DrillBook: std::fmt::Debug + Send + Sync {
    /// Where a job's picture goes; its folder exists.
    ///
    /// # Errors
    /// The folder cannot be made.
    fn screenshot(&self, machine: MachineId, job: JobId) -> io::Result<PathBuf>;

    /// Keeps a drill; another record of the same job is replaced.
    fn record(&self, machine: MachineId, drill: DrillRecord) -> BoxFuture<'_, io::Result<()>>;

    /// A machine's drills, newest first.
    fn list(&self, machine: MachineId) -> Vec<DrillRecord>;
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Book {
    version: u32,
    drills: Vec<DrillRecord>,
}

/// Drills in a folder.
#[derive(Debug)]
pub struct DrillFolder {
    folder: PathBuf,
    /// What the files hold, of those that were read.
    known: Mutex<HashMap<MachineId, Vec<DrillRecord>>>,
}

impl DrillFolder {
    /// Drills in this folder, which exists.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, known: Mutex::default() }
    }

    fn file(&self, machine: MachineId) -> PathBuf {
        self.folder.join(format!("{machine}.json"))
    }

    fn add(&self, machine: MachineId, drill: DrillRecord) -> io::Result<()> {
        // Held while the file is written, so that one record follows the other.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.file(machine);
        let mut drills = known.remove(&machine).unwrap_or_else(|| load(&path));
        drills.retain(|known| known.job != drill.job);
        drills.insert(0, drill);
        for old in drills.drain(drills.len().min(KEPT_MAX)..).filter_map(|old| old.screenshot) {
            let _gone_already = fs::remove_file(old);
        }
        let book = Book { version: VERSION, drills };
        let bytes = serde_json::to_vec_pretty(&book).map_err(io::Error::other)?;
        durable::replace(&path, &bytes, durable::MODE_PRIVATE)?;
        known.insert(machine, book.drills);
        Ok(())
    }
}

fn load(path: &Path) -> Vec<DrillRecord> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "the record of drills cannot be read");
            }
            return Vec::new();
        }
    };
    parse(&bytes).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), error, "the record of drills cannot be read");
        Vec::new()
    })
}

/// The drills in a file's content, newest first.
///
/// # Errors
/// It is no record of drills, or a newer version wrote it.
pub fn parse(bytes: &[u8]) -> Result<Vec<DrillRecord>, String> {
    json_record::parse(bytes, VERSION, |book: &Book| book.version).map(|book| book.drills)
}

impl DrillBook for DrillFolder {
    fn screenshot(&self, machine: MachineId, job: JobId) -> io::Result<PathBuf> {
        let folder = self.folder.join(machine.to_string());
        durable::create_folder(&folder)?;
        Ok(folder.join(format!("{job}.png")))
    }

    fn record(&self, machine: MachineId, drill: DrillRecord) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.add(machine, drill) })
    }

    fn list(&self, machine: MachineId) -> Vec<DrillRecord> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(machine).or_insert_with(|| load(&self.file(machine))).clone()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_common::{
        clock::Timestamp,
        ids::{JobId, MachineId},
    };
    use uuid::Uuid;

    use super::{Drill, DrillBook as _, DrillFolder, DrillRecord, KEPT_MAX};

    fn record(number: u128, at: i64) -> DrillRecord {
        DrillRecord {
            job: JobId(Uuid::from_u128(number)),
            point: None,
            at: Timestamp(at),
            ok: true,
            rto_us: 5,
            text: String::new(),
            screenshot: None,
        }
    }

    #[tokio::test]
    async fn a_job_has_one_record_and_old_ones_go_with_their_pictures() {
        let folder = tempfile::tempdir().unwrap();
        let machine = MachineId(Uuid::from_u128(1));
        let book = DrillFolder::new(folder.path().to_owned());
        assert!(book.list(machine).is_empty());
        let picture = book.screenshot(machine, JobId(Uuid::from_u128(1))).unwrap();
        std::fs::write(&picture, b"picture").unwrap();
        let first = DrillRecord { screenshot: Some(picture.clone()), ..record(1, 1) };
        book.record(machine, first.clone()).await.unwrap();
        book.record(machine, first.clone()).await.unwrap();
        assert_eq!(DrillFolder::new(folder.path().to_owned()).list(machine), [first]);
        for number in 2..KEPT_MAX as u128 + 2 {
            book.record(machine, record(number, 2)).await.unwrap();
        }
        assert_eq!(book.list(machine).len(), KEPT_MAX);
        assert!(!picture.exists());
    }

    #[test]
    fn probes_are_checked() {
        assert!(Drill::default().expression().unwrap().is_match(b"debian login: "));
        let drill = |probe: &str| Drill { probe: probe.to_owned(), ..Drill::default() };
        assert!(drill("(").expression().is_err() && drill(&"a".repeat(2000)).expression().is_err());
    }
}
