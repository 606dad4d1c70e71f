//! A modelled machine: disks with writers, writes in flight, marks, freezing and faults.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holdfast_common::{
    clock::{Clock, ManualClock, Timestamp},
    ids::{DiskId, Generation, Interval},
    units::{BLOCK_BYTES, BlockCount, BlockRange},
    wire::Capture,
};

use crate::{
    batch::{ReadBlocks, ReadError, ReadFrame},
    capture::{
        BlockSet, CaptureError, ChangeCursor, ChangeSource, Taken, WriteCounters, cycle::Trouble,
        quiet::covered,
    },
    engine::host::{Held, HoldCheck, Host, HostDisk, Mechanism},
};

/// Blocks of a modelled disk; no multiple of a chunk.
pub(super) const BLOCKS: u64 = 600;

/// How a run goes.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) disks: usize,
    /// Writes issued or completed per call of the machine.
    pub(super) writes_per_call: u64,
    /// Whether writers pause now and then.
    pub(super) bursts: bool,
    /// Whether the disks carry file systems that are frozen.
    pub(super) freezes: bool,
    /// Whether takes mark what is in flight again (they must).
    pub(super) carries: bool,
    pub(super) swap: Option<BlockRange>,
    pub(super) interval: Duration,
    /// Chances per thousand steps.
    pub(super) kills: u64,
    pub(super) disconnects: u64,
    pub(super) losses: u64,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    SwapWhileHeld,
    WriteWhileHeld,
    Overrun,
    ReadError,
}

impl Plan {
    /// Two disks, a steady writer, nothing goes wrong.
    pub(super) const fn calm() -> Self {
        Self {
            disks: 2,
            writes_per_call: 2,
            bursts: false,
            freezes: true,
            carries: true,
            swap: None,
            interval: Duration::from_secs(1),
            kills: 0,
            disconnects: 0,
            losses: 0,
        }
    }

    /// Everything may go wrong.
    pub(super) fn random(seed: u64) -> Self {
        let mut random = Random(seed ^ 0x5eed);
        Self {
            disks: 1 + random.below(3) as usize,
            writes_per_call: random.below(4),
            bursts: true,
            freezes: random.below(3) > 0,
            kills: random.below(4),
            disconnects: random.below(6),
            losses: random.below(2),
            ..Self::calm()
        }
    }
}

/// A small generator (splitmix64).
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[derive(Debug)]
struct ModelDisk {
    blocks: Vec<u64>,
    marks: BlockSet,
    taken: [BlockSet; 2],
    in_flight: Vec<(u64, u64)>,
    requests: u64,
    incarnation: u64,
    basis: Option<(Generation, u64)>,
    /// Marks were lost while a source was open.
    lost: bool,
}

/// A look at all disks when a section began, and the writes since.
#[derive(Clone, Debug)]
pub(super) struct Window {
    state: Vec<Vec<u64>>,
    writes: Vec<(usize, u64, u64)>,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) plan: Plan,
    pub(super) fault: Option<Fault>,
    random: Random,
    disks: Vec<ModelDisk>,
    is_active: bool,
    /// Inside a section: frozen or not.
    section: Option<Window>,
    frozen: bool,
    windows: BTreeMap<Timestamp, Window>,
    version: u64,
    clock: ManualClock,
}

pub(super) type Shared = Arc<Mutex<Model>>;

pub(super) fn lock(model: &Shared) -> MutexGuard<'_, Model> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn disk_id(index: usize) -> DiskId {
    DiskId::from_bytes([index as u8 + 1; 16])
}

pub(super) fn index_of(disk: DiskId) -> usize {
    usize::from(disk.into_bytes()[0]) - 1
}

impl Model {
    pub(super) fn new(seed: u64, plan: Plan, clock: ManualClock) -> Self {
        let set = || BlockSet::new(BlockCount(BLOCKS));
        let disk = |index: usize| ModelDisk {
            // Half of it has never been written.
            blocks: (0..BLOCKS)
                .map(|block| if block % 2 == 0 { 1000 + block + index as u64 } else { 0 })
                .collect(),
            marks: set(),
            taken: [set(), set()],
            in_flight: Vec::new(),
            requests: 0,
            incarnation: 1,
            basis: None,
            lost: false,
        };
        Self {
            disks: (0..plan.disks).map(disk).collect(),
            plan,
            fault: None,
            random: Random(seed),
            is_active: true,
            section: None,
            frozen: false,
            windows: BTreeMap::new(),
            version: 1_000_000,
            clock,
        }
    }

    /// Something writes to the first disk past tracking and statistics.
    pub(super) fn write_unseen(&mut self, range: BlockRange) {
        for block in range.start.0..range.end().0 {
            self.disks[0].blocks[block as usize] = 777_000_000 + block;
        }
    }

    /// Writers issue nothing any more; what is in flight completes.
    pub(super) const fn pause_writers(&mut self) {
        self.is_active = false;
    }

    /// Tracking starts anew: what was marked is forgotten.
    pub(super) fn lose_marks(&mut self) {
        for disk in &mut self.disks {
            disk.marks.clear();
            disk.taken.iter_mut().for_each(BlockSet::clear);
            disk.incarnation += 1;
            disk.lost = true;
        }
    }

    pub(super) fn state(&self) -> Vec<Vec<u64>> {
        self.disks.iter().map(|disk| disk.blocks.clone()).collect()
    }

    /// Whether the images are a state that all disks had at one instant of the cut made at `at`.
    pub(super) fn is_a_state(&self, at: Timestamp, images: &[Vec<u64>]) -> bool {
        let Some(window) = self.windows.get(&at) else { return false };
        let swap = self.plan.swap.unwrap_or_default();
        let equal = |state: &[Vec<u64>]| {
            state.iter().zip(images).all(|(state, image)| {
                (0..).zip(state.iter().zip(image)).all(|(block, (state, image))| {
                    state == image || swap.contains(holdfast_common::units::BlockIndex(block))
                })
            })
        };
        let mut state = window.state.clone();
        let mut found = equal(&state);
        for (disk, block, value) in &window.writes {
            state[*disk][*block as usize] = *value;
            found |= equal(&state);
        }
        found
    }

    /// The machine goes on living, between any two things that the agent does.
    fn live(&mut self) {
        if self.frozen {
            return;
        }
        if self.plan.bursts && self.random.below(40) == 0 {
            self.is_active = !self.is_active;
        }
        for _ in 0..self.plan.writes_per_call {
            let disk = self.random.below(self.disks.len() as u64) as usize;
            let issue = self.is_active && self.random.below(2) == 0 && self.disks[disk].in_flight.len() < 4;
            if issue {
                // A few hot blocks, and the rest.
                let among = if self.random.below(2) == 0 { 24 } else { BLOCKS };
                let block = self.random.below(among);
                self.issue(disk, block);
            } else if !self.disks[disk].in_flight.is_empty() {
                let which = self.random.below(self.disks[disk].in_flight.len() as u64) as usize;
                self.complete(disk, which);
            }
        }
    }

    fn issue(&mut self, disk: usize, block: u64) {
        // Two writes to one block are never in flight together: which one wins would be open.
        if self.disks[disk].in_flight.iter().any(|(other, _)| *other == block) {
            return;
        }
        self.version += 1;
        let value = if self.version.is_multiple_of(7) { 0 } else { self.version };
        self.disks[disk].marks.insert(BlockRange::new(block, 1));
        self.disks[disk].in_flight.push((block, value));
    }

    fn complete(&mut self, disk: usize, which: usize) {
        let (block, value) = self.disks[disk].in_flight.swap_remove(which);
        self.disks[disk].blocks[block as usize] = value;
        self.disks[disk].requests += 1;
        if let Some(window) = &mut self.section {
            window.writes.push((disk, block, value));
        }
    }

    fn write(&mut self, disk: usize, block: u64) {
        self.issue(disk, block);
        if let Some(which) = self.disks[disk].in_flight.iter().position(|(other, _)| *other == block) {
            self.complete(disk, which);
        }
    }

    /// Faults that strike while writes are held, after something was read.
    fn strike(&mut self) {
        if self.section.is_none() {
            return;
        }
        match self.fault {
            Some(Fault::SwapWhileHeld) => {
                let swap = self.plan.swap.unwrap_or_default();
                self.write(0, swap.start.0 + self.version % swap.count.0.max(1));
            }
            Some(Fault::WriteWhileHeld) => self.write(0, 5),
            _ => {}
        }
    }
}

/// The machine as the engine sees it.
pub(super) struct ModelHost(pub(super) Shared);

struct ModelSource {
    model: Shared,
    disk: usize,
}

struct ModelReader {
    model: Shared,
    disk: usize,
}

impl Host for ModelHost {
    fn open(&mut self, capture: &Capture) -> Result<HostDisk, Trouble> {
        let mut model = lock(&self.0);
        model.live();
        let index = index_of(capture.disk);
        let disk = &mut model.disks[index];
        disk.lost = false;
        let given_back: Vec<BlockRange> =
            disk.taken.iter().flat_map(|set| set.runs().collect::<Vec<_>>()).collect();
        given_back.into_iter().for_each(|range| disk.marks.insert(range));
        disk.taken.iter_mut().for_each(BlockSet::clear);
        let basis = Some((capture.generation, disk.incarnation));
        if disk.basis != basis {
            if capture.scanned_to.0 > 0 || capture.scan_complete {
                return Err(Trouble::Distrust("the machine was rebooted".into()));
            }
            disk.basis = basis;
        }
        Ok(HostDisk {
            source: Box::new(ModelSource { model: Arc::clone(&self.0), disk: index }),
            reader: Box::new(ModelReader { model: Arc::clone(&self.0), disk: index }),
            size: BlockCount(BLOCKS),
            path: capture.path.clone(),
            mechanism: Mechanism::Tracked,
            holes: None,
        })
    }

    fn close(&mut self, _: DiskId) {}

    fn keep_only(&mut self, _: &[DiskId]) {}

    fn plan_hold(&mut self, _: &[DiskId]) -> Result<bool, String> {
        let mut model = lock(&self.0);
        model.live();
        Ok(model.plan.freezes)
    }

    fn swap_areas(&self, _: DiskId) -> Vec<BlockRange> {
        lock(&self.0).plan.swap.into_iter().collect()
    }

    fn sync(&mut self) -> Result<Duration, String> {
        lock(&self.0).live();
        Ok(Duration::from_millis(1))
    }

    fn hold(&mut self, _: Duration, section: &mut dyn FnMut(&mut HoldCheck<'_>)) -> Result<Held, String> {
        let freezes = {
            let mut model = lock(&self.0);
            model.live();
            let freezes = model.plan.freezes;
            if freezes {
                for disk in 0..model.disks.len() {
                    while !model.disks[disk].in_flight.is_empty() {
                        model.complete(disk, 0);
                    }
                }
            }
            model.frozen = freezes;
            model.section = Some(Window { state: model.state(), writes: Vec::new() });
            freezes
        };
        section(&mut || Ok(()));
        let mut model = lock(&self.0);
        let at = model.clock.wall();
        if let Some(window) = model.section.take() {
            model.windows.insert(at, window);
        }
        model.frozen = false;
        if model.fault == Some(Fault::Overrun) {
            return Err("writes were held for 3 s, over the bound of 2 s".into());
        }
        let held = if freezes { Duration::from_millis(5) } else { Duration::ZERO };
        Ok(Held { held, notes: Vec::new() })
    }
}

impl ModelSource {
    fn untrusted(model: &Model, disk: usize) -> Result<(), CaptureError> {
        if model.disks[disk].lost {
            let reason = "the bitmap is gone".into();
            return Err(CaptureError::Untrusted { device: format!("disk {disk}"), reason });
        }
        Ok(())
    }
}

impl ChangeSource for ModelSource {
    fn cursor(&self) -> ChangeCursor {
        let model = lock(&self.model);
        ChangeCursor { incarnation: model.disks[self.disk].incarnation, number: 0, trust: Ok(()) }
    }

    fn take(&mut self, interval: Interval, found: &mut dyn FnMut(BlockRange)) -> Result<Taken, CaptureError> {
        let mut model = lock(&self.model);
        model.live();
        Self::untrusted(&model, self.disk)?;
        let carries = model.plan.carries;
        let disk = &mut model.disks[self.disk];
        let blocks = disk.marks.count();
        for run in disk.marks.runs() {
            disk.taken[(interval.0 % 2) as usize].insert(run);
            found(run);
        }
        disk.marks.clear();
        if carries {
            for (block, _) in &disk.in_flight {
                disk.marks.insert(BlockRange::new(*block, 1));
            }
        }
        let in_flight = if carries { BlockCount(disk.in_flight.len() as u64) } else { BlockCount(0) };
        Ok(Taken { blocks, in_flight })
    }

    fn mark(&mut self, range: BlockRange) {
        lock(&self.model).disks[self.disk].marks.insert(range);
    }

    fn acknowledged(&mut self, interval: Interval) {
        lock(&self.model).disks[self.disk].taken[(interval.0 % 2) as usize].clear();
    }

    fn marked(&self) -> BlockCount {
        lock(&self.model).disks[self.disk].marks.count()
    }

    fn counters(&mut self) -> Result<WriteCounters, CaptureError> {
        let mut model = lock(&self.model);
        model.live();
        let disk = &model.disks[self.disk];
        let in_flight = disk.in_flight.len() as u64;
        Ok(WriteCounters { sectors: disk.requests * 8, in_flight })
    }

    fn guard(&mut self) -> Result<(), CaptureError> {
        Self::untrusted(&lock(&self.model), self.disk)
    }
}

impl ReadBlocks for ModelReader {
    fn read(&mut self, mut frames: Vec<ReadFrame>) -> Result<Vec<ReadFrame>, ReadError> {
        for frame in &mut frames {
            let disk = self.disk;
            let shared = Arc::clone(&self.model);
            frame.fill(|run, buffer| {
                let mut model = lock(&shared);
                model.live();
                if model.fault == Some(Fault::ReadError)
                    && covered(BlockRange::new(run.start.0, 1), &[BlockRange::new(0, 24)])
                {
                    let source = io::ErrorKind::Other.into();
                    return Err(ReadError { device: format!("disk {disk}"), range: run, source });
                }
                buffer.fill(0);
                for (block, bytes) in (run.start.0..).zip(buffer.chunks_exact_mut(BLOCK_BYTES)) {
                    let value = model.disks[disk].blocks[block as usize];
                    bytes[..8].copy_from_slice(&value.to_le_bytes());
                }
                Ok(())
            })?;
        }
        lock(&self.model).strike();
        Ok(frames)
    }
}
