//! What of a log is kept: the cuts that points stand on, and the frames that nobody needs any more.
//!
//! Owns this record and its file: the journal's own word on what is missing on purpose. Does not know points or why a
//! cut is needed. Invariants: a cut that was given up never comes back; a frame is only named as needless after it is
//! durable here that the cuts which needed it were given up; a segment loses frames only after they are named here.
//! Limit: one number per cut and two per stretch of needless frames in memory; [`KEPT_BYTES_MAX`] in the file.
//!
//! ```text
//! offset size  field
//!   0     4    magic "HKPT"
//!   4     4    version, 1
//!   8    32    BLAKE3 of the rest
//!  40     -    numbers, each as LEB128 (7 bits a byte, lowest first, the highest bit says that more follow):
//!              horizon; count of cuts; for each cut its distance from the one before (the first from 0);
//!              count of stretches; for each stretch the distance of its first frame from the end of the one
//!              before (the first from 0), and its length
//! ```
//!
//! The file is replaced as a whole, then its copy; whichever is whole is read. A reader refuses newer versions.
//! History: 1, first.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use holdfast_common::{durable, ids::Sequence};

use super::error::StoreError;

const MAGIC: [u8; 4] = *b"HKPT";
const VERSION: u32 = 1;
const PREFIX_BYTES: usize = 40;

/// Largest file that is read.
pub const KEPT_BYTES_MAX: u64 = 256 << 20;

/// The cuts of one disk that points stand on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NeededCuts {
    /// The newest of them; what lies behind belongs to points that are still to come.
    pub horizon: Sequence,
    /// All of them, ascending.
    pub cuts: Vec<Sequence>,
}

/// What of a log is kept, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    needed: NeededCuts,
    /// Stretches of needless frames as first and last, ascending, with frames between them.
    gone: Vec<(u64, u64)>,
}

impl Kept {
    /// Whether the state at a cut can still be had. Cuts behind the horizon always can.
    #[must_use]
    pub fn needs_cut(&self, cut: Sequence) -> bool {
        cut > self.needed.horizon || self.needed.cuts.binary_search(&cut).is_ok()
    }

    /// The cuts that are needed.
    #[must_use]
    pub const fn needed(&self) -> &NeededCuts {
        &self.needed
    }

    /// Whether nobody needs a frame: it may be missing.
    #[must_use]
    pub fn is_gone(&self, frame: Sequence) -> bool {
        let behind = self.gone.partition_point(|(first, _)| *first <= frame.0);
        behind.checked_sub(1).and_then(|at| self.gone.get(at)).is_some_and(|(_, last)| frame.0 <= *last)
    }

    /// The parts of `first..=last` that are not named as needless.
    #[must_use]
    pub fn wanted(&self, first: Sequence, last: Sequence) -> Vec<(Sequence, Sequence)> {
        let (mut at, mut wanted) = (first.0, Vec::new());
        let from = self.gone.partition_point(|(_, end)| *end < first.0);
        for (start, end) in self.gone.get(from..).unwrap_or_default() {
            if *start > last.0 {
                break;
            }
            if *start > at {
                wanted.push((Sequence(at), Sequence(start - 1)));
            }
            at = at.max(end.saturating_add(1));
        }
        if at <= last.0 {
            wanted.push((Sequence(at), last));
        }
        wanted
    }

    /// How many frames of `first..=last` are named as needless.
    #[must_use]
    pub fn gone_in(&self, first: Sequence, last: Sequence) -> u64 {
        let from = self.gone.partition_point(|(_, end)| *end < first.0);
        let inside = self.gone.iter().skip(from).take_while(|(start, _)| *start <= last.0);
        inside.map(|(start, end)| last.0.min(*end) - first.0.max(*start) + 1).sum()
    }

    /// Number of stretches of needless frames.
    #[must_use]
    pub fn stretches(&self) -> usize {
        self.gone.len()
    }

    /// This, with other cuts needed and more frames needless. `frames` in any order.
    #[must_use]
    pub fn with(&self, needed: NeededCuts, mut frames: Vec<Sequence>) -> Self {
        frames.sort_unstable();
        let mut all: Vec<(u64, u64)> = self.gone.clone();
        all.extend(frames.iter().map(|frame| (frame.0, frame.0)));
        all.sort_unstable();
        let mut gone: Vec<(u64, u64)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match gone.last_mut().filter(|(_, end)| first <= end.saturating_add(1)) {
                Some((_, end)) => *end = last.max(*end),
                None => gone.push((first, last)),
            }
        }
        Self { needed, gone }
    }

    /// This, as far as a log goes that ends at `last`: what lies behind is replaced by other frames.
    #[must_use]
    pub fn up_to(&self, last: Sequence) -> Self {
        let cuts: Vec<Sequence> = self.needed.cuts.iter().copied().filter(|cut| *cut <= last).collect();
        let inside = self.gone.iter().filter(|(first, _)| *first <= last.0);
        Self {
            needed: NeededCuts { horizon: self.needed.horizon.min(last), cuts },
            gone: inside.map(|(first, end)| (*first, last.0.min(*end))).collect(),
        }
    }

    /// The bytes of the file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(16 + self.needed.cuts.len() * 2 + self.gone.len() * 4);
        number(&mut body, self.needed.horizon.0);
        number(&mut body, self.needed.cuts.len() as u64);
        let mut before = 0;
        for cut in &self.needed.cuts {
            number(&mut body, cut.0 - before);
            before = cut.0;
        }
        number(&mut body, self.gone.len() as u64);
        before = 0;
        for (first, last) in &self.gone {
            number(&mut body, first - before);
            number(&mut body, last - first + 1);
            before = last + 1;
        }
        [&MAGIC, VERSION.to_le_bytes().as_slice(), blake3::hash(&body).as_bytes(), &body].concat()
    }

    /// Reads the bytes of the file.
    ///
    /// # Errors
    /// What is wrong with them, for people.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (prefix, body) = bytes.split_at_checked(PREFIX_BYTES).ok_or("it is cut short")?;
        let version = prefix.get(4..8).and_then(|four| four.try_into().ok()).map_or(0, u32::from_le_bytes);
        if prefix.get(..4) != Some(MAGIC.as_slice()) {
            return Err("it is no record of what is kept".to_owned());
        }
        if version != VERSION {
            return Err(format!("it has version {version}, this program knows {VERSION}"));
        }
        if prefix.get(8..) != Some(blake3::hash(body).as_bytes().as_slice()) {
            return Err("its digest does not match".to_owned());
        }
        Self::parse_body(body).ok_or_else(|| "it contradicts itself".to_owned())
    }

    fn parse_body(mut body: &[u8]) -> Option<Self> {
        let horizon = Sequence(take(&mut body)?);
        let (mut cuts, mut before) = (Vec::new(), 0u64);
        for position in 0..take(&mut body)? {
            let distance = take(&mut body).filter(|distance| position == 0 || *distance > 0)?;
            before = before.checked_add(distance)?;
            cuts.push(Sequence(before));
        }
        let (mut gone, mut end) = (Vec::new(), 0u64);
        for position in 0..take(&mut body)? {
            let gap = take(&mut body).filter(|gap| position == 0 || *gap > 0)?;
            let first = end.checked_add(gap)?;
            end = first.checked_add(take(&mut body).filter(|length| *length > 0)?)?;
            gone.push((first, end - 1));
        }
        body.is_empty().then_some(Self { needed: NeededCuts { horizon, cuts }, gone })
    }
}

fn number(bytes: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push((value & 0x7f) as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The record of one log, in memory and on disk.
#[derive(Debug)]
pub(super) struct KeptFile {
    /// The file and its copy.
    paths: [PathBuf; 2],
    now: RwLock<Arc<Kept>>,
    /// One change at a time.
    changing: Mutex<()>,
}

impl KeptFile {
    /// Reads the record; a log that was never pruned has none. A file that is not as the other one is made again from it, and
    /// named in `remarks` if it was damaged: what is given up from now on must stand in both.
    ///
    /// # Errors
    /// Neither the file nor its copy can be read: without it frames that are missing on purpose would count as lost, and
    /// points that were given up would come back.
    pub(super) fn load(paths: [PathBuf; 2], remarks: &mut Vec<String>) -> Result<Self, StoreError> {
        let (kept, damaged, found) = match (read(&paths[0]), read(&paths[1])) {
            (Ok(Some(kept)), found) => (kept, 1, found),
            (found, Ok(Some(kept))) => (kept, 0, found),
            (Ok(None), Ok(None)) => (Kept::default(), 1, Ok(Some(Kept::default()))),
            (Err(reason), _) => return Err(StoreError::manifest(&paths[0], &reason)),
            (Ok(None), Err(reason)) => return Err(StoreError::manifest(&paths[1], &reason)),
        };
        if !matches!(&found, Ok(Some(other)) if *other == kept) {
            let damage = match found {
                // What a crash between the two leaves.
                Ok(Some(_)) => None,
                Ok(None) => Some("it is missing".to_owned()),
                Err(reason) => Some(reason),
            };
            remarks.extend(mend(&paths[damaged], &kept, damage));
        }
        Ok(Self { paths, now: RwLock::new(Arc::new(kept)), changing: Mutex::default() })
    }

    pub(super) fn now(&self) -> Arc<Kept> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the record; durable, in both files, when it returns.
    pub(super) fn store(&self, kept: Kept) -> Result<(), StoreError> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = kept.to_bytes();
        for path in &self.paths {
            durable::replace(path, &bytes, durable::MODE_PRIVATE)
                .map_err(|error| StoreError::io("writing", path, error))?;
        }
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(kept);
        Ok(())
    }
}

/// Makes one of the files again from what the other holds; gives what to say of it.
fn mend(path: &Path, kept: &Kept, damage: Option<String>) -> Option<String> {
    let outcome = match durable::replace(path, &kept.to_bytes(), durable::MODE_PRIVATE) {
        Ok(()) => "it is made again from the other of the two".to_owned(),
        Err(error) => format!("the other of the two is used, for it cannot be made again: {error}"),
    };
    let reason = damage?;
    tracing::warn!(path = %path.display(), reason, outcome, "a record of what is kept is damaged");
    Some(format!("{} cannot be used: {reason}; {outcome}", path.display()))
}

fn read(path: &Path) -> Result<Option<Kept>, String> {
    let size = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| error.to_string())?.len(),
    };
    if size > KEPT_BYTES_MAX {
        return Err(format!("it has {size} bytes, more than {KEPT_BYTES_MAX}"));
    }
    Kept::parse(&fs::read(path).map_err(|error| error.to_string())?).map(Some)
}

#[cfg(test)]
mod tests;
