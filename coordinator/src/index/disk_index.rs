//! The index of one disk: follows its log, and answers what the disk held at each cut and holds now.
//!
//! Owns the memory table, the parts and the ladder, and the list of cuts. Does not know threads; [`super::follower`]
//! drives it. Invariants: `processed` only grows; a cut is listed only when its run is written (after power loss it may be
//! made again: see [`super::unsynced`]); readers never wait for file writing.
//! Limits: [`SPILL_ENTRIES`] extents of the open interval in memory, and so many again as often as there is [`Room`] for them, then
//! they become a part; closed ones stay in memory as long as there is room for them and their files are not written;
//! [`OPEN_RUNS_MAX`] runs are kept open, and about [`NEWEST_RUNS_MAX`] of the newest cut.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc},
    thread,
};

use holdfast_common::{
    codec, durable,
    frame::{CutMore, CutRecord, FrameKind},
    ids::{Generation, Sequence},
    units::BlockRange,
};

use super::{
    batch::{BATCH_BYTES, Batch, Frames},
    entry::{ENTRY_BYTES, Packed, SEQUENCE_MAX},
    ladder::{FAN, Ladder, due, merged_name},
    lookup::{BlockMap, CutMap, IndexError, Piece, resolve},
    memtable::Memtable,
    merge::{Layer, merge},
    records::{CutHead, Loss, RunRecords, ScanHead},
    room::{ROOM_BYTES, Room, Share},
    run::Run,
    run_format::RunName,
    run_writer::{RunWriter, WrittenRun},
    unsynced::{UNSYNCED_MAX, Unsynced},
    visible::{RUNS_MAX, visible},
};
use crate::{
    journal::tables::FrameHead,
    store::{DiskLog, FrameSet},
};

/// Extents of an open interval that are kept in memory in any case: 4 MiB, and as much again twice while they are sorted.
pub const SPILL_ENTRIES: usize = 1 << 18;

/// Bytes that an extent of an open interval takes at most: half as much again as an entry, and one while they are sorted.
const OPEN_ENTRY_BYTES: usize = ENTRY_BYTES * 5 / 2;

/// Parts of one level that are merged into one of the next: an extent is written once per level, and a reader looks into
/// at most seven parts of each.
const PARTS_MERGED: usize = 8;

/// Runs kept open besides those that views hold.
pub const OPEN_RUNS_MAX: usize = 128;

/// Runs of the newest cut from which on whoever takes frames in merges as well: each is a mapping, of which the kernel gives a
/// process 65,530, and cuts may be pending by the ten thousand.
pub const NEWEST_RUNS_MAX: usize = 1024;

/// Threads that read tables ahead.
const AHEAD_THREADS: usize = 2;

/// Batches that wait while one is taken in.
const BATCHES_AHEAD: usize = 8;

/// How far the index is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexProgress {
    /// Last frame that is indexed.
    pub processed: Sequence,
    /// Last frame that is durable.
    pub durable: Sequence,
    /// Bytes between the two.
    pub pending_bytes: u64,
}

/// The index of one disk.
#[derive(Debug)]
pub struct DiskIndex {
    log: Arc<DiskLog>,
    folder: PathBuf,
    spill_entries: usize,
    fan: usize,
    room: Arc<Room>,
    state: RwLock<State>,
    /// One thread takes frames in at a time.
    working: Mutex<()>,
    /// One thread merges runs of cuts at a time. It may take long, and holds up nobody but who throws runs away; who needs
    /// `working` too takes it afterwards.
    merging: Mutex<()>,
    unsynced: Unsynced,
    open: Mutex<OpenRuns>,
}

/// What readers see.
#[derive(Debug, Default)]
struct State {
    processed: Sequence,
    /// Last frame that is in a run or part; the memory table has those behind.
    stored: Sequence,
    memtable: Memtable,
    /// For [`DiskIndex::spill_entries`] more entries of it each.
    memtable_shares: Vec<Share>,
    /// Records since the last run or part.
    records: RunRecords,
    /// Runs of the open interval, oldest first.
    parts: Vec<Arc<Run>>,
    ladder: Ladder,
    /// Runs of the newest cut, newest first.
    newest: Vec<Arc<Run>>,
    /// The cuts that are needed, ascending.
    cuts: Vec<Arc<CutHead>>,
    /// Number of the newest closed interval; cuts that are given up keep theirs.
    last_cut: u64,
    scan: Option<ScanHead>,
    losses: Vec<Loss>,
    unhealed: Option<Generation>,
    loss_open: bool,
}

#[derive(Debug, Default)]
struct OpenRuns {
    tick: u64,
    runs: BTreeMap<RunName, (Arc<Run>, u64)>,
}

// Giving up cuts, and what nobody needs then.
mod retire;

pub use retire::Retired;

impl DiskIndex {
    /// Opens the index of a log. Runs that are damaged, foreign or do not fit are deleted; what they held is made again, and so
    /// is everything if the folder is missing. Reads the newest cut's runs and nothing else of the history. Follows the log only
    /// when told to.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn open(log: Arc<DiskLog>) -> Result<Arc<Self>, IndexError> {
        Self::open_in(log, Room::new(ROOM_BYTES))
    }

    /// Like [`Self::open`], with room in memory that is shared with other disks.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn open_in(log: Arc<DiskLog>, room: Arc<Room>) -> Result<Arc<Self>, IndexError> {
        Self::open_with(log, SPILL_ENTRIES, FAN, room)
    }

    /// Like [`Self::open_in`], with another limit of extents of the open interval, and so many runs of a class becoming one, at
    /// least 2.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn open_with(
        log: Arc<DiskLog>,
        spill_entries: usize,
        fan: usize,
        room: Arc<Room>,
    ) -> Result<Arc<Self>, IndexError> {
        let index = Self {
            folder: log.layout().index(),
            log,
            spill_entries,
            fan: fan.max(2),
            room,
            state: RwLock::default(),
            working: Mutex::default(),
            merging: Mutex::default(),
            unsynced: Unsynced::default(),
            open: Mutex::default(),
        };
        index.load()?;
        Ok(Arc::new(index))
    }

    fn load(&self) -> Result<(), IndexError> {
        let io = |source| IndexError::Io { path: self.folder.clone(), source };
        let mut state = State::default();
        let (mut parts, mut runs) = (Vec::new(), Vec::new());
        if !self.folder.is_dir() {
            let (disk, frames) = (self.log.disk(), self.log.tail().sequence.0);
            tracing::warn!(%disk, frames, "the index's folder is missing; the index is made again from the journal");
            durable::create_folder(&self.folder).map_err(io)?;
        }
        for file in fs::read_dir(&self.folder).map_err(io)? {
            let file = file.map_err(io)?;
            match file.file_name().to_str().and_then(RunName::parse) {
                Some(name) if name.to > self.log.tail().sequence => self.delete(name),
                Some(name) if name.part => parts.push(name),
                Some(name) => runs.push(name),
                None => drop(fs::remove_file(file.path())),
            }
        }
        state.ladder.add_all(runs);
        self.load_chain(&mut state)?;
        self.load_parts(&mut state, parts)?;
        *self.write() = state;
        Ok(())
    }

    /// Opens the runs of the newest cut; a run that cannot be used is replaced by finer ones.
    fn load_chain(&self, state: &mut State) -> Result<(), IndexError> {
        'again: loop {
            state.cuts.clear();
            state.newest.clear();
            let end = state.ladder.end();
            let behind = state.ladder.behind(end);
            behind.iter().for_each(|name| self.delete(*name));
            state.ladder.remove_all(&behind);
            state.last_cut = 0;
            for name in state.ladder.chain(end).unwrap_or_default() {
                let opened = self.run(name).and_then(|run| Ok((run.records()?, run)));
                let (records, run) = match opened {
                    Err(error) if error.is_damage() => {
                        tracing::warn!(error = %error, "index");
                        self.delete(name);
                        state.ladder.remove_all(&[name]);
                        continue 'again;
                    }
                    other => other?,
                };
                state.take(&records);
                state.stored = run.to();
                state.last_cut = name.last_cut;
                state.newest.insert(0, run);
            }
            let kept = self.log.kept();
            state.cuts.retain(|cut| kept.needs_cut(cut.sequence));
            state.processed = state.stored;
            return Ok(());
        }
    }

    fn load_parts(&self, state: &mut State, mut parts: Vec<RunName>) -> Result<(), IndexError> {
        // The one that reaches furthest comes first among those that begin at one place.
        parts.sort_by_key(|name| (name.from, std::cmp::Reverse(name.to)));
        for name in parts {
            let fits = name.from == state.stored && name.last_cut == state.last_cut;
            match self.run(name).and_then(|run| Ok((run.records()?, run))) {
                Ok((records, run)) if fits => {
                    state.take(&records);
                    state.stored = run.to();
                    state.parts.push(run);
                }
                Err(error) if !error.is_damage() => return Err(error),
                _ => self.delete(name),
            }
        }
        state.processed = state.stored;
        Ok(())
    }

    /// Throws everything away; the next calls of [`Self::advance`] make it again from the journal.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn rebuild(&self) -> Result<(), IndexError> {
        let _merging = self.merging();
        let _working = self.working();
        let io = |source| IndexError::Io { path: self.folder.clone(), source };
        for file in fs::read_dir(&self.folder).map_err(io)? {
            fs::remove_file(file.map_err(io)?.path()).map_err(io)?;
        }
        self.open.lock().unwrap_or_else(PoisonError::into_inner).runs.clear();
        self.unsynced.clear();
        self.load()
    }

    /// Makes everything again if a reader has run into a damaged page since. Says whether it did.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn heal(&self) -> Result<bool, IndexError> {
        let damaged = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.runs.values().any(|(run, _)| run.is_damaged())
        };
        if damaged {
            tracing::warn!(disk = %self.log.disk(), "a page of the index is damaged; the index is made again from the journal");
            self.rebuild()?;
        }
        Ok(damaged)
    }

    /// Indexes the next frames: a few thousand extents, or a megabyte of heads. `true` if there may be more. Reads no payload. Blocks;
    /// any thread may call it, also several.
    ///
    /// # Errors
    /// The journal cannot be read or a run cannot be written; what was indexed stays.
    pub fn advance(&self) -> Result<bool, IndexError> {
        let working = self.working();
        let processed = self.read().processed;
        if processed >= *self.log.durable().borrow() {
            return Ok(false);
        }
        let mut batch = Batch::default();
        batch.read(&self.log, processed)?;
        self.take_in(&batch)?;
        drop(working);
        self.relieve()?;
        Ok(batch.up_to < *self.log.durable().borrow())
    }

    /// Indexes a batch that begins right behind the frames that are indexed, or earlier. The caller has `working`.
    pub(super) fn take_in(&self, batch: &Batch) -> Result<(), IndexError> {
        let processed = self.read().processed;
        for frames in batch.steps_behind(processed) {
            match frames {
                Frames::Data { generation, entries } => self.take_in_data(generation, entries)?,
                Frames::Other(head) => {
                    let lost_to = Sequence(head.header.sequence.0.saturating_sub(1));
                    self.account(lost_to, Some(head.header.generation));
                    self.index(head)?;
                }
            }
        }
        self.account(batch.up_to, None);
        Ok(())
    }

    /// Indexes data frames that follow each other without a gap; the first is of this generation. Frames are small, so that locks
    /// for each would cost as much as the work.
    fn take_in_data(&self, generation: Generation, entries: &[Packed]) -> Result<(), IndexError> {
        let Some(first) = entries.first() else { return Ok(()) };
        self.account(Sequence(first.sequence().0.saturating_sub(1)), Some(generation));
        let mut left = entries;
        while !left.is_empty() {
            let mut state = self.write();
            // A frame's entries stay together.
            let limit = self.spill_entries * (1 + state.memtable_shares.len());
            let room = limit.saturating_sub(state.memtable.len());
            let Some(last) = left.get(..room.min(left.len())).and_then(<[Packed]>::last) else {
                drop(state);
                self.make_room()?;
                continue;
            };
            let up_to = last.sequence();
            let (these, behind) = left.split_at(left.partition_point(|entry| entry.sequence() <= up_to));
            state.memtable.insert(these);
            state.seen(up_to);
            left = behind;
        }
        Ok(())
    }

    /// Indexes everything that is durable now. Far behind, other threads read the log meanwhile.
    ///
    /// # Errors
    /// As [`Self::advance`].
    pub fn catch_up(&self) -> Result<Sequence, IndexError> {
        while self.advance()? {
            self.advance_far()?;
        }
        Ok(self.read().processed)
    }

    /// Like [`Self::advance`] again and again, while another thread makes the next batches, and some more read the tables of the segments
    /// behind: reading and checking them takes longer than indexing them. Others may advance in between, and a rebuild
    /// ends it early.
    fn advance_far(&self) -> Result<(), IndexError> {
        let mut after = self.read().processed;
        thread::scope(|scope| {
            let (hand_over, batches) = mpsc::sync_channel(BATCHES_AHEAD);
            // What was taken in goes back, for its memory.
            let (give_back, spares) = mpsc::sync_channel::<Batch>(BATCHES_AHEAD + 2);
            let (reached, places) = crossbeam_channel::bounded(AHEAD_THREADS);
            for _ in 0..AHEAD_THREADS {
                let places = places.clone();
                let read_ahead = move || {
                    for place in places {
                        // Who comes there reads it again, and says what is wrong with it.
                        let _failed = self.log.read_tables_ahead(place);
                    }
                };
                // Without that thread the others read them.
                let _none =
                    thread::Builder::new().name("index-ahead".to_owned()).spawn_scoped(scope, read_ahead);
            }
            let read = move || {
                let mut at = after;
                while at < *self.log.durable().borrow() {
                    // They are still at the places before otherwise, and hear of the next one.
                    let _busy = reached.try_send(at);
                    let mut batch = spares.try_recv().unwrap_or_default();
                    let read = batch.read(&self.log, at);
                    let up_to = read.as_ref().map_or(at, |()| batch.up_to);
                    // Nobody takes them any more, or there is nothing behind.
                    if hand_over.send(read.map(|()| batch)).is_err() || up_to <= at {
                        return;
                    }
                    at = up_to;
                }
            };
            if thread::Builder::new().name("index-read".to_owned()).spawn_scoped(scope, read).is_err() {
                // Without a thread the caller goes on alone.
                return Ok(());
            }
            for batch in batches {
                let batch = batch?;
                let working = self.working();
                if self.read().processed < after {
                    // All was thrown away meanwhile: what lies in between is not lost, it comes again.
                    return Ok(());
                }
                self.take_in(&batch)?;
                after = batch.up_to;
                drop(working);
                self.relieve()?;
                // Who does not want it any more has ended.
                let _ended = give_back.try_send(batch);
            }
            Ok(())
        })
    }

    /// Notes that frames up to here that were not seen are lost, unless they are missing on purpose. `behind` is the generation of the frame behind them.
    fn account(&self, up_to: Sequence, behind: Option<Generation>) {
        let mut state = self.write();
        if up_to > state.processed {
            for (first, last) in self.log.kept().wanted(state.processed.next(), up_to) {
                tracing::error!(disk = %self.log.disk(), %first, %last, "frames are lost");
                state.losses.push(Loss { first, last });
                state.records.losses.push(Loss { first, last });
                state.loss_open = true;
            }
            state.processed = up_to;
        }
        if let Some(generation) = behind.filter(|_| state.loss_open) {
            state.loss_open = false;
            state.unhealed = state.unhealed.max(Some(generation));
        }
    }

    /// Indexes a frame that holds no data.
    fn index(&self, head: &FrameHead) -> Result<(), IndexError> {
        let sequence = head.header.sequence;
        if sequence.0 > SEQUENCE_MAX {
            return Err(IndexError::Sequence(sequence));
        }
        match head.header.kind {
            // Its batch has made entries of it.
            FrameKind::Data => {}
            FrameKind::Scan => match codec::decode(&head.record) {
                Ok(record) => {
                    let scan = ScanHead { sequence, generation: head.header.generation, record };
                    let mut state = self.write();
                    state.note_scan(scan);
                    state.records.scan = Some(scan);
                    state.seen(sequence);
                    return Ok(());
                }
                Err(error) => self.unreadable(sequence, &error),
            },
            // A cut that was given up closes no interval.
            FrameKind::Cut if !self.log.kept().needs_cut(sequence) => {}
            FrameKind::Cut => match CutRecord::decode(&head.record) {
                Ok(record) => return self.close(head, record),
                Err(error) => self.unreadable(sequence, &error),
            },
        }
        self.write().seen(sequence);
        Ok(())
    }

    /// A frame that passed its digest, yet holds no record: its writer is at fault. It makes no point and no progress.
    fn unreadable(&self, sequence: Sequence, error: &codec::CodecError) {
        tracing::error!(disk = %self.log.disk(), %sequence, error = %error, "a record in the log cannot be read");
    }

    /// Lets the memory table grow, as long as nothing of the interval is in a file. If it cannot, drops what was overwritten from it; if
    /// that is not enough, makes it a part.
    fn make_room(&self) -> Result<(), IndexError> {
        let mut state = self.write();
        if state.parts.is_empty()
            && let Some(share) = self.room.take(self.spill_entries * OPEN_ENTRY_BYTES)
        {
            state.memtable_shares.push(share);
            return Ok(());
        }
        state.memtable.shrink();
        let crowded = state.memtable.len() > self.spill_entries / 2;
        drop(state);
        if crowded { self.spill() } else { Ok(()) }
    }

    /// Makes the memory table a part.
    fn spill(&self) -> Result<(), IndexError> {
        let state = self.read();
        let name = RunName {
            part: true,
            level: 0,
            last_cut: state.last_cut,
            from: state.stored,
            to: state.processed,
        };
        let records = state.records_now();
        let layers: Vec<Layer<'_>> = state.memtable.layers().collect();
        self.write_run(name, &layers, &records)?;
        drop(layers);
        drop(state);
        let run = self.run(name)?;
        let mut state = self.write();
        state.memtable.clear();
        state.memtable_shares.clear();
        state.records = RunRecords::default();
        state.stored = name.to;
        state.parts.push(run);
        drop(state);
        self.merge_parts()
    }

    /// Merges the newest parts while [`PARTS_MERGED`] of one level stand side by side, so that there are few.
    fn merge_parts(&self) -> Result<(), IndexError> {
        loop {
            let state = self.read();
            let Some(parts) = state.parts.last_chunk::<PARTS_MERGED>() else { return Ok(()) };
            let level = parts[0].name().level;
            if parts.iter().any(|part| part.name().level != level) {
                return Ok(());
            }
            let parts = parts.clone();
            drop(state);
            let name = self.merge_runs(&parts)?;
            let run = self.run(name)?;
            let mut state = self.write();
            let kept = state.parts.len() - PARTS_MERGED;
            state.parts.truncate(kept);
            state.parts.push(run);
            drop(state);
            parts.iter().for_each(|part| self.delete(part.name()));
        }
    }

    /// Closes the interval: memory table and parts become a run of level 0, in memory if there is room for it.
    fn close(&self, head: &FrameHead, record: CutRecord) -> Result<(), IndexError> {
        // First: if this fails, the interval stays open.
        if self.unsynced.len() >= UNSYNCED_MAX {
            self.settle_files()?;
        }
        let (name, cut, records) = self.closing(head, record)?;
        let (mut state, run);
        if let Some(share) = self.share() {
            state = self.write();
            run = Arc::new(Run::in_memory(name, state.memtable.take(), records, share));
            self.unsynced.add_table(Arc::clone(&run));
        } else {
            run = self.close_in_file(name, &records)?;
            state = self.write();
        }
        state.ladder.add(name);
        state.newest.insert(0, run);
        state.cuts.push(cut);
        state.last_cut = name.last_cut;
        state.memtable.clear();
        state.memtable_shares.clear();
        state.records = RunRecords::default();
        state.stored = name.to;
        state.processed = name.to;
        let parts = std::mem::take(&mut state.parts);
        drop(state);
        for part in parts {
            self.delete(part.name());
        }
        Ok(())
    }

    /// Room for the open interval as a run in memory, if there is some and nothing of the interval is in a file.
    fn share(&self) -> Option<Share> {
        let mut state = self.write();
        // What it had to grow is enough for that, unless another disk takes it now.
        state.memtable_shares.clear();
        if state.parts.is_empty() { self.room.take(state.memtable.memory_bytes()) } else { None }
    }

    /// What closes the interval: its run's name and records, and the cut.
    fn closing(
        &self,
        head: &FrameHead,
        record: CutRecord,
    ) -> Result<(RunName, Arc<CutHead>, RunRecords), IndexError> {
        let state = self.read();
        let cut = Arc::new(CutHead {
            sequence: head.header.sequence,
            interval: head.header.interval,
            generation: head.header.generation,
            whole: state.unhealed.is_none() && !state.loss_open,
            // Runs do not keep it, and many cuts are in memory.
            record: CutRecord { more: CutMore::default(), ..record },
        });
        let from = state.newest.first().map_or(Sequence(0), |run| run.to());
        let last_cut = state.last_cut + 1;
        let name = RunName { part: false, level: 0, last_cut, from, to: cut.sequence };
        let mut records = RunRecords::default();
        for part in &state.parts {
            records = records.followed_by(part.records()?);
        }
        records = records.followed_by(state.records_now());
        records.cuts.push(Arc::clone(&cut));
        records.end.frames += 1;
        Ok((name, cut, records))
    }

    /// Writes the run of memory table and parts.
    fn close_in_file(&self, name: RunName, records: &RunRecords) -> Result<Arc<Run>, IndexError> {
        self.write().memtable.settle();
        // Only who has `working` changes anything; others may read while the run is written.
        let state = self.read();
        let layers = state.layers_since_cut();
        self.write_run(name, &layers, records)?;
        drop(layers);
        drop(state);
        self.run(name)
    }

    /// Does one merge of the ladder that is due; if none is, syncs new runs and gives `false`. Frames are taken in meanwhile.
    ///
    /// # Errors
    /// A run cannot be read or written. A damaged one is dropped and made again by a rebuild.
    pub fn compact(&self) -> Result<bool, IndexError> {
        let _merging = self.merging();
        let merged = self.merge_due()?;
        if !merged {
            self.settle_files()?;
        }
        Ok(merged)
    }

    /// Merges while the newest cut has more runs than it should, if nobody merges already: that may take longer than who takes
    /// frames in can wait.
    fn relieve(&self) -> Result<(), IndexError> {
        while self.read().newest.len() > NEWEST_RUNS_MAX {
            let Ok(_merging) = self.merging.try_lock() else { return Ok(()) };
            if !self.merge_due()? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Does one merge of the ladder that is due. The caller has `merging`.
    fn merge_due(&self) -> Result<bool, IndexError> {
        let stack: Vec<Arc<Run>> = self.read().newest.iter().rev().cloned().collect();
        let due = due(&stack.iter().map(|run| run.payload_bytes()).collect::<Vec<_>>(), self.fan);
        let Some(runs) = due.and_then(|places| stack.get(places)) else { return Ok(false) };
        let name = self.merge_runs(runs)?;
        let run = self.run(name)?;
        let _working = self.working();
        let mut state = self.write();
        state.ladder.add(name);
        let inputs: Vec<RunName> = runs.iter().map(|run| run.name()).collect();
        let needless = state.ladder.remove_merged(&inputs, name);
        let replaced = state.replace_newest(run);
        drop(state);
        if !replaced {
            self.renew_newest()?;
        }
        needless.into_iter().for_each(|name| self.delete(name));
        Ok(true)
    }

    /// Opens the runs that make the newest cut now.
    fn renew_newest(&self) -> Result<(), IndexError> {
        let state = self.settled();
        let chain = state.ladder.chain(state.ladder.end()).unwrap_or_default();
        drop(state);
        let newest = chain.into_iter().rev().map(|name| self.run(name)).collect::<Result<_, _>>()?;
        self.write().newest = newest;
        Ok(())
    }

    /// One run out of neighbouring ones, oldest first.
    fn merge_runs(&self, runs: &[Arc<Run>]) -> Result<RunName, IndexError> {
        let names: Vec<RunName> = runs.iter().map(|run| run.name()).collect();
        let none = || IndexError::Damaged { path: self.folder.clone() };
        let name = merged_name(&names).ok_or_else(none)?;
        let mut records = RunRecords::default();
        for run in runs {
            records = records.followed_by(run.records()?);
        }
        let layers: Vec<Layer<'_>> = runs.iter().rev().map(|run| Layer::Run(run)).collect();
        self.write_run(name, &layers, &self.needed_records(records))?;
        Ok(name)
    }

    /// Without the cuts that were given up.
    fn needed_records(&self, mut records: RunRecords) -> RunRecords {
        let kept = self.log.kept();
        records.cuts.retain(|cut| kept.needs_cut(cut.sequence));
        records
    }

    /// Writes a run, which can be used at once. If that fails, nothing of it stays.
    fn write_run(&self, name: RunName, layers: &[Layer<'_>], records: &RunRecords) -> Result<(), IndexError> {
        let written = self.write_file(name, layers, records)?;
        let opened = Run::open_at(written.temporary().to_owned(), self.log.disk(), name);
        let run = opened.inspect_err(|_error| drop(fs::remove_file(written.temporary())))?;
        self.unsynced.add(Arc::new(run), written);
        if self.unsynced.len() >= UNSYNCED_MAX { self.sync() } else { Ok(()) }
    }

    fn write_file(
        &self,
        name: RunName,
        layers: &[Layer<'_>],
        records: &RunRecords,
    ) -> Result<WrittenRun, IndexError> {
        let path = name.path(&self.folder);
        let io = |source| IndexError::Io { path: path.clone(), source };
        let mut writer = RunWriter::create(&self.folder, self.log.disk(), name).map_err(io)?;
        let temporary = writer.temporary().to_owned();
        let merged = merge(layers, &mut |entry| writer.push(entry).map_err(io));
        let written = merged.and_then(|()| writer.finish(records).map_err(io));
        // On a full disk the space is wanted back.
        written.inspect_err(|_error| drop(fs::remove_file(&temporary)))
    }

    /// Writes and syncs all runs that are not yet, and gives them their names.
    fn sync(&self) -> Result<(), IndexError> {
        let write = |run: &Run| self.write_file(run.name(), &[Layer::Run(run)], &run.records()?);
        let failed = |source| IndexError::Unsynced { path: self.folder.clone(), source };
        self.unsynced.sync(&write, &failed)
    }

    /// Like [`Self::sync`], and gives back the memory of runs that have a file now. The caller holds no lock of the state.
    fn settle_files(&self) -> Result<(), IndexError> {
        self.sync()?;
        for name in self.unsynced.take_filed() {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).runs.remove(&name);
            let run = match self.run(name) {
                Ok(run) => run,
                Err(error) if self.read().ladder.has(name) => return Err(error),
                // It is needed no more.
                Err(_) => continue,
            };
            let mut state = self.write();
            if let Some(place) = state.newest.iter_mut().find(|run| run.name() == name) {
                *place = run;
            }
        }
        Ok(())
    }

    /// A run, opened if need be.
    fn run(&self, name: RunName) -> Result<Arc<Run>, IndexError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.tick += 1;
        let tick = open.tick;
        if let Some((run, used)) = open.runs.get_mut(&name) {
            *used = tick;
            return Ok(Arc::clone(run));
        }
        let run = match self.unsynced.get(name) {
            Some(run) => run,
            None => Arc::new(Run::open(&self.folder, self.log.disk(), name)?),
        };
        if open.runs.len() >= OPEN_RUNS_MAX {
            let oldest = open.runs.iter().min_by_key(|(_, (_, used))| *used).map(|(name, _)| *name);
            oldest.and_then(|oldest| open.runs.remove(&oldest));
        }
        open.runs.insert(name, (Arc::clone(&run), tick));
        Ok(run)
    }

    fn delete(&self, name: RunName) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).runs.remove(&name);
        self.unsynced.forget(name);
        // What cannot be deleted now is found and deleted at the next start.
        let _ = fs::remove_file(name.path(&self.folder));
    }

    /// Where the disk's blocks were at the cut with this frame.
    ///
    /// # Errors
    /// There is no such cut, or a run cannot be used (a rebuild makes it again).
    pub fn at_cut(&self, cut: Sequence) -> Result<CutMap, IndexError> {
        self.runs_to(None, cut)
    }

    /// Where the blocks that were written behind the cut `older` and up to `cut` were at `cut`. May hold blocks of older
    /// frames too; all others are holes in it. Costs what was written between the two, whatever the disk's size, as long
    /// as the runs between them have not become one with older ones.
    ///
    /// # Errors
    /// There are no such cuts, or a run cannot be used (a rebuild makes it again).
    pub fn written_between(&self, older: Sequence, cut: Sequence) -> Result<CutMap, IndexError> {
        if older == cut {
            return self.read().position(cut).map(|_| CutMap { runs: Vec::new() });
        }
        self.read().position(older)?;
        self.runs_to(Some(older), cut)
    }

    fn runs_to(&self, after: Option<Sequence>, cut: Sequence) -> Result<CutMap, IndexError> {
        'again: loop {
            let state = self.settled();
            state.position(cut)?;
            let between = after.and_then(|after| state.ladder.between(after, cut));
            let chain = between.or_else(|| state.ladder.chain(cut));
            drop(state);
            let chain = chain.ok_or_else(|| IndexError::Damaged { path: self.folder.clone() })?;
            let mut runs = Vec::with_capacity(chain.len());
            for name in chain.into_iter().rev() {
                match self.run(name) {
                    // It was merged with others, and deleted, since the chain was looked up.
                    Err(error) if error.is_damage() && !self.read().ladder.has(name) => continue 'again,
                    // Finer runs may make up for it.
                    Err(error) if error.is_damage() => {
                        tracing::warn!(error = %error, "index");
                        self.write().ladder.remove_all(&[name]);
                        self.delete(name);
                        continue 'again;
                    }
                    run => runs.push(run?),
                }
            }
            return Ok(CutMap { runs });
        }
    }

    /// The frames behind `after` that the state at a cut takes something from. Frames that newer ones have covered by then
    /// are not among them. Reads the runs behind `after`, no more.
    ///
    /// # Errors
    /// There is no such cut, or a run cannot be used.
    pub fn frames_between(&self, after: Sequence, cut: Sequence) -> Result<FrameSet, IndexError> {
        let runs = match self.runs_between(after, cut) {
            Some(runs) => runs,
            None => self.at_cut(cut)?.runs,
        };
        let newer: Vec<Arc<Run>> = runs.into_iter().filter(|run| run.to() > after).collect();
        let mut frames = if newer.len() <= RUNS_MAX {
            visible(&newer, after)?
        } else {
            let mut frames = FrameSet::new(after);
            let layers: Vec<Layer<'_>> = newer.iter().map(|run| Layer::Run(run)).collect();
            merge(&layers, &mut |entry| {
                frames.insert(entry.sequence);
                Ok(())
            })?;
            frames
        };
        frames.insert(cut);
        Ok(frames)
    }

    /// The runs that lead from one frame to another, newest first, if there are some and all can be used.
    fn runs_between(&self, after: Sequence, cut: Sequence) -> Option<Vec<Arc<Run>>> {
        let steps = self.read().ladder.between(after, cut)?;
        steps.into_iter().rev().map(|name| self.run(name).ok()).collect()
    }

    /// The log that is followed.
    #[must_use]
    pub const fn log(&self) -> &Arc<DiskLog> {
        &self.log
    }

    /// The cuts, ascending. A point exists where every member disk has its cut.
    #[must_use]
    pub fn cuts(&self) -> Vec<Arc<CutHead>> {
        self.read().cuts.clone()
    }

    /// The cut with this frame.
    #[must_use]
    pub fn cut(&self, sequence: Sequence) -> Option<Arc<CutHead>> {
        let state = self.read();
        state.cuts.get(state.position(sequence).ok()?).cloned()
    }

    /// The cuts behind `after`, ascending.
    #[must_use]
    pub fn cuts_after(&self, after: Sequence) -> Vec<Arc<CutHead>> {
        let state = self.read();
        let from = state.cuts.partition_point(|cut| cut.sequence <= after);
        state.cuts.get(from..).unwrap_or_default().to_vec()
    }

    /// The newest progress of comparing source and replica.
    #[must_use]
    pub fn newest_scan(&self) -> Option<ScanHead> {
        self.read().scan
    }

    /// Frames that are missing in the log.
    #[must_use]
    pub fn losses(&self) -> Vec<Loss> {
        self.read().losses.clone()
    }

    /// The generation that must be outgrown (by a complete scan of a newer one) before cuts are whole again.
    #[must_use]
    pub fn unhealed(&self) -> Option<Generation> {
        let state = self.read();
        if state.loss_open {
            Some(state.unhealed.unwrap_or(self.log.tail().generation))
        } else {
            state.unhealed
        }
    }

    /// How far the index is.
    #[must_use]
    pub fn progress(&self) -> IndexProgress {
        let processed = self.read().processed;
        let durable = *self.log.durable().borrow();
        let pending_bytes = if processed < durable { self.log.bytes_after(processed) } else { 0 };
        IndexProgress { processed, durable, pending_bytes }
    }

    /// Whether the disk was never written to, as far as indexed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let state = self.read();
        state.memtable.is_empty() && state.parts.iter().chain(&state.newest).all(|run| run.is_empty())
    }

    /// The runs that the newest state is read from, newest first.
    #[cfg(test)]
    pub(super) fn newest_runs(&self) -> Vec<RunName> {
        self.read().newest.iter().map(|run| run.name()).collect()
    }

    /// Number of the newest cut's runs that are in memory.
    #[cfg(test)]
    pub(super) fn tables(&self) -> usize {
        self.read().newest.iter().filter(|run| run.table().is_some()).count()
    }

    #[cfg(test)]
    pub(super) fn room(&self) -> &Room {
        &self.room
    }

    /// The runs that the ladder names for the newest cut, newest first.
    #[cfg(test)]
    pub(super) fn newest_chain(&self) -> Vec<RunName> {
        let state = self.settled();
        state.ladder.chain(state.ladder.end()).unwrap_or_default().into_iter().rev().collect()
    }

    fn merging(&self) -> MutexGuard<'_, ()> {
        self.merging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn working(&self) -> MutexGuard<'_, ()> {
        self.working.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What readers see, with the fewest runs known for each cut.
    fn settled(&self) -> RwLockReadGuard<'_, State> {
        loop {
            let state = self.read();
            if state.ladder.is_settled() {
                return state;
            }
            drop(state);
            self.write().ladder.settle();
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The newest indexed state; it moves on while it is used.
impl BlockMap for DiskIndex {
    fn resolve(&self, range: BlockRange) -> Result<Vec<Piece>, IndexError> {
        loop {
            let state = self.read();
            if state.memtable.is_settled() {
                let mut layers = state.layers_since_cut();
                layers.extend(state.newest.iter().map(|run| Layer::Run(run)));
                return resolve(&layers, range);
            }
            drop(state);
            self.write().memtable.settle();
        }
    }
}

impl State {
    /// The memory table and the parts, newest first. The table must be settled.
    fn layers_since_cut(&self) -> Vec<Layer<'_>> {
        let parts = self.parts.iter().rev().map(|part| Layer::Run(part));
        self.memtable.layers().chain(parts).collect()
    }

    /// Takes over what a run or part remembers.
    fn take(&mut self, records: &RunRecords) {
        self.cuts.extend(records.cuts.iter().cloned());
        self.losses.extend(&records.losses);
        self.scan = records.scan.or(self.scan);
        self.unhealed = records.end.unhealed;
        self.loss_open = records.end.loss_open;
    }

    /// Place of a cut in the list.
    fn position(&self, cut: Sequence) -> Result<usize, IndexError> {
        self.cuts.binary_search_by_key(&cut, |cut| cut.sequence).map_err(|_| IndexError::NoCut(cut))
    }

    /// Puts a merged run in the place of those runs of the newest cut that it was made of, if they lead from its beginning
    /// to its end. Opening the whole chain again would cost as many runs as cuts are not merged yet, for each merge.
    fn replace_newest(&mut self, merged: Arc<Run>) -> bool {
        let name = merged.name();
        let first = self.newest.partition_point(|run| run.to() > name.to);
        let end = self.newest.partition_point(|run| run.to() > name.from);
        let replaced = self.newest.get(first..end).unwrap_or_default();
        let fits = replaced.first().is_some_and(|run| run.to() == name.to)
            && replaced.last().is_some_and(|run| run.name().from == name.from);
        if fits {
            self.newest.splice(first..end, [merged]);
        }
        fits
    }

    /// The records since the last run or part, with the state now.
    fn records_now(&self) -> RunRecords {
        let mut records = self.records.clone();
        records.end.unhealed = self.unhealed;
        records.end.loss_open = self.loss_open;
        records
    }

    fn note_scan(&mut self, scan: ScanHead) {
        self.scan = Some(scan);
        if scan.record.complete && Some(scan.generation) > self.unhealed {
            self.unhealed = None;
        }
    }

    /// The frames behind the last one, up to this one, were there.
    fn seen(&mut self, up_to: Sequence) {
        self.records.end.frames += up_to.0.saturating_sub(self.processed.0);
        self.processed = up_to;
    }
}
