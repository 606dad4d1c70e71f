//! Tracked capture of one disk: [`ChangeSource`] over maps that the kernel's programs fill.
//!
//! Owns the order of taking marks and looking at slots, trust, and the guard's state. Does not know programs, formats of
//! maps, or the network.
//! Invariant: what was in flight while marks were taken is marked again; `docs/tracking.md` has the argument.
//! Limit: one take is one pass over the bitmap (32 MiB per TiB) and over the slots.

use std::{io, path::Path, path::PathBuf, thread, time::Duration};

use holdfast_common::{
    entropy::Entropy,
    ids::{DiskId, Interval},
    units::{BlockCount, BlockRange},
};

use super::{
    attached::{Attached, SlotInUse},
    bitmap::{self, TouchedPages},
    guard::{self, Reading, Verdict},
    metadata::{Identity, Metadata},
    pins::{self, PinFolder},
    program::{Faults, counter, flag},
    slots::{InFlight, SLOT_BLOCKS_MAX},
    statistics::ProgramStatistics,
    target::{Target, failed},
};
use crate::capture::{CaptureError, ChangeCursor, ChangeSource, Taken, WriteCounters};

/// Readings that must agree before the disk counts as resting.
const BASELINE_READINGS: usize = 3;
/// Pause between them: longer than a completed request waits to be accounted.
const BASELINE_PAUSE: Duration = Duration::from_millis(1);
/// Attempts at a baseline when tracking starts; later, every call of the guard makes one.
const BASELINE_ATTEMPTS: usize = 20;

/// Settings of tracked capture.
#[derive(Clone, Debug)]
pub struct TrackedOptions {
    /// Folder in bpffs that keeps tracking alive without the agent. Default `/sys/fs/bpf/holdfast`.
    pub pins: PathBuf,
    /// For tests only.
    #[doc(hidden)]
    pub faults: Faults,
}

impl Default for TrackedOptions {
    fn default() -> Self {
        Self { pins: PathBuf::from("/sys/fs/bpf/holdfast"), faults: Faults::default() }
    }
}

/// How a source came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// Tracking starts now. What changed before is unknown: a new generation and a scan are needed.
    Fresh {
        /// Why nothing earlier could be used, for people.
        reason: String,
    },
    /// Tracking went on all the time. What was taken and not acknowledged is marked again.
    Resumed {
        /// Blocks given back.
        given_back: BlockCount,
    },
}

/// Change tracking of one disk.
#[derive(Debug)]
pub struct TrackedSource {
    target: Target,
    identity: Identity,
    attached: Attached,
    /// Pages in use of the taken maps, even and odd.
    touched: [TouchedPages; 2],
    distrust: Option<String>,
    ignores_slots: bool,
    _pins: PinFolder,
}

impl TrackedSource {
    /// Starts tracking `device` for `disk`, or goes on with what an earlier process left.
    ///
    /// # Errors
    /// The device cannot be tracked here; the advice says what to do.
    pub fn open(
        disk: DiskId,
        device: &Path,
        options: &TrackedOptions,
        entropy: &dyn Entropy,
    ) -> Result<(Self, Attachment), CaptureError> {
        let target = Target::find(device)?;
        if target.window.blocks() > SLOT_BLOCKS_MAX {
            let advice = "disks beyond 256 TiB are not supported";
            return Err(failed(&target.device, advice, io::ErrorKind::Unsupported.into()));
        }
        let identity = Identity::of(&target)?;
        let pins = PinFolder::open(&options.pins, disk).map_err(|error| no_pins(&target.device, error))?;
        let earlier =
            open_earlier(&pins, &target, &identity).map_err(|error| no_pins(&target.device, error))?;
        let (attached, reason) = match earlier {
            Ok(attached) => (attached, None),
            Err(reason) => {
                pins.clear().map_err(|error| no_pins(&target.device, error))?;
                (Attached::create(&pins, &target, options.faults)?, Some(reason))
            }
        };
        let words = attached.marks().len();
        let touched = [TouchedPages::new(words), TouchedPages::new(words)];
        let ignores_slots = options.faults.ignore_slots;
        let source = Self { target, identity, attached, touched, distrust: None, ignores_slots, _pins: pins };
        let attachment = match reason {
            Some(reason) => source.begin(reason, entropy)?,
            None => source.resume(),
        };
        Ok((source, attachment))
    }

    /// Ends tracking of a disk and frees its memory. `false` if it was not tracked.
    ///
    /// # Errors
    /// Another process uses it, or bpffs refuses.
    pub fn remove(disk: DiskId, options: &TrackedOptions) -> Result<bool, CaptureError> {
        let removed = PinFolder::open_existing(&options.pins, disk).and_then(|pins| match pins {
            Some(pins) => pins.remove().map(|()| true),
            None => Ok(false),
        });
        removed.map_err(|error| no_pins(&format!("disk {disk}"), error))
    }

    /// Disks for which something is pinned, also by agents that are gone.
    ///
    /// # Errors
    /// The folder of pins cannot be read.
    pub fn pinned(options: &TrackedOptions) -> Result<Vec<DiskId>, CaptureError> {
        pins::list(&options.pins).map_err(|error| no_pins("pinned disks", error))
    }

    /// Size of the disk.
    #[must_use]
    pub fn blocks(&self) -> BlockCount {
        BlockCount(self.target.window.blocks())
    }

    /// What tracking costs.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn program_statistics(&self) -> io::Result<ProgramStatistics> {
        let info = self.attached.program_info()?;
        Ok(ProgramStatistics {
            run_time_ns: info.run_time_ns,
            runs: info.runs,
            write_requests: self.attached.counter(counter::REQUESTS),
            recursion_misses: info.recursion_misses,
        })
    }

    /// First moments of fresh tracking: find a baseline, then vouch for it in the record.
    fn begin(&self, reason: String, entropy: &dyn Entropy) -> Result<Attachment, CaptureError> {
        for _ in 0..BASELINE_ATTEMPTS {
            if self.find_baseline()? {
                break;
            }
        }
        self.metadata().write(&self.identity, entropy.next_u64());
        Ok(Attachment::Fresh { reason })
    }

    fn resume(&self) -> Attachment {
        let marks = self.attached.marks();
        let blocks = [false, true].map(|is_odd| bitmap::give_back(marks, self.attached.taken(is_odd)));
        Attachment::Resumed { given_back: BlockCount(blocks.iter().sum()) }
    }

    fn metadata(&self) -> Metadata<'_> {
        Metadata(self.attached.metadata())
    }

    /// Marks what is in flight again; returns how many blocks.
    fn mark_in_flight(&self, is_odd: bool) -> Result<u64, CaptureError> {
        let in_use =
            self.attached.slots_in_use().map_err(|error| self.failed("its slots cannot be read", error))?;
        if in_use.is_empty() {
            return Ok(0);
        }
        // A lost completion leaves its slot in use. If the kernel says that everything issued is complete, it is
        // nothing else.
        if self.verdict()? == Verdict::Complete {
            let forgotten = self.attached.forget(&in_use);
            forgotten.map_err(|error| self.failed("its slots cannot be freed", error))?;
            return Ok(0);
        }
        let blocks: u64 = in_use.iter().map(|slot| self.mark_slot(slot, is_odd)).sum();
        // Something is in flight even if it lies beyond what is tracked.
        Ok(blocks.max(1))
    }

    fn mark_slot(&self, slot: &SlotInUse, is_odd: bool) -> u64 {
        let marks = self.attached.marks();
        match slot.in_flight {
            InFlight::Range(range) => bitmap::mark(marks, self.target.window.blocks(), range),
            InFlight::ManyRanges => {
                let [even, odd] = &self.touched;
                bitmap::mark_again(marks, self.attached.taken(is_odd), if is_odd { odd } else { even })
            }
        }
    }

    /// The guard's comparison. The order of the two readings is what makes it certain.
    fn verdict(&self) -> Result<Verdict, CaptureError> {
        let baseline = self.metadata().baseline().filter(|_| self.target.is_guarded);
        let completed = self.target.statistics()?.sectors;
        Ok(guard::compare(baseline, completed, self.attached.counter(counter::SECTORS)))
    }

    fn find_baseline(&self) -> Result<bool, CaptureError> {
        if !self.target.is_guarded {
            return Ok(true);
        }
        let mut readings = Vec::with_capacity(BASELINE_READINGS);
        while readings.len() < BASELINE_READINGS {
            if !readings.is_empty() {
                thread::sleep(BASELINE_PAUSE);
            }
            readings.push(self.reading()?);
            if guard::baseline(&readings).is_none() {
                return Ok(false);
            }
        }
        if let Some(baseline) = guard::baseline(&readings) {
            self.metadata().set_baseline(baseline);
        }
        Ok(true)
    }

    fn reading(&self) -> Result<Reading, CaptureError> {
        let completed = self.target.statistics()?.sectors;
        let in_flight = self.target.disk_in_flight()?;
        let slots =
            self.attached.slots_in_use().map_err(|error| self.failed("its slots cannot be read", error))?;
        let issued = self.attached.counter(counter::SECTORS);
        Ok(Reading { completed, in_flight, slots_in_use: slots.len(), issued })
    }

    /// Whether the device is still the one that was attached to, and the programs raised no flag.
    fn check(&mut self) -> Result<(), CaptureError> {
        if let Some(reason) = &self.distrust {
            return Err(self.untrusted(reason.clone()));
        }
        let sectors = self.target.sectors_now()?;
        if sectors == 0 {
            return Err(CaptureError::Missing { device: self.target.device.clone() });
        }
        let now = Identity { sectors, disk_sequence: self.target.disk_sequence()?, ..self.identity };
        let reason = self.identity.difference(&now).or_else(|| raised(self.attached.counter(counter::FLAGS)));
        match reason {
            Some(reason) => Err(self.lose_trust(reason)),
            None => Ok(()),
        }
    }

    fn lose_trust(&mut self, reason: String) -> CaptureError {
        self.metadata().distrust();
        self.distrust = Some(reason.clone());
        self.untrusted(reason)
    }

    fn untrusted(&self, reason: String) -> CaptureError {
        CaptureError::Untrusted { device: self.target.device.clone(), reason }
    }

    fn failed(&self, advice: &str, source: io::Error) -> CaptureError {
        failed(&self.target.device, advice, source)
    }
}

impl ChangeSource for TrackedSource {
    fn cursor(&self) -> ChangeCursor {
        let metadata = self.metadata();
        let flags = raised(self.attached.counter(counter::FLAGS));
        let trust = self.distrust.clone().or(flags).map_or(Ok(()), Err);
        ChangeCursor { incarnation: metadata.incarnation(), number: metadata.takes(), trust }
    }

    fn take(&mut self, interval: Interval, found: &mut dyn FnMut(BlockRange)) -> Result<Taken, CaptureError> {
        let is_odd = interval.0 % 2 == 1;
        let [even, odd] = &mut self.touched;
        let touched = if is_odd { odd } else { even };
        let blocks = bitmap::take(self.attached.marks(), self.attached.taken(is_odd), touched, found);
        self.metadata().count_take();
        // Only after the marks: what is issued from here on marks itself again.
        let in_flight = if self.ignores_slots { 0 } else { self.mark_in_flight(is_odd)? };
        self.check()?;
        Ok(Taken { blocks: BlockCount(blocks), in_flight: BlockCount(in_flight) })
    }

    fn mark(&mut self, range: BlockRange) {
        bitmap::mark(self.attached.marks(), self.target.window.blocks(), range);
    }

    fn acknowledged(&mut self, interval: Interval) {
        let is_odd = interval.0 % 2 == 1;
        let [even, odd] = &mut self.touched;
        bitmap::clear(self.attached.taken(is_odd), if is_odd { odd } else { even });
    }

    fn marked(&self) -> BlockCount {
        BlockCount(bitmap::count(self.attached.marks()))
    }

    fn counters(&mut self) -> Result<WriteCounters, CaptureError> {
        self.target.counters()
    }

    fn guard(&mut self) -> Result<(), CaptureError> {
        self.target.require_accounting()?;
        self.check()?;
        if self.target.is_guarded && self.metadata().baseline().is_none() {
            self.find_baseline()?;
        }
        match self.verdict()? {
            Verdict::Missed(sectors) => Err(self.lose_trust(format!(
                "the kernel counted at least {sectors} sectors written that tracking has not seen"
            ))),
            Verdict::Unknown | Verdict::Complete | Verdict::Outstanding(_) => Ok(()),
        }
    }
}

/// What an earlier process left, or why it cannot be used.
fn open_earlier(pins: &PinFolder, target: &Target, now: &Identity) -> io::Result<Result<Attached, String>> {
    if pins.is_empty()? {
        return Ok(Err("this disk was not tracked since the machine was started".into()));
    }
    let incomplete = || Ok(Err("an earlier start of tracking was not completed".into()));
    let Some(metadata) = Attached::open_metadata(pins)? else { return incomplete() };
    let refused = Metadata(metadata.words()).read().map_or_else(Some, |then| then.difference(now));
    if let Some(reason) = refused {
        return Ok(Err(reason));
    }
    let Some(attached) = Attached::open(pins, target, metadata)? else { return incomplete() };
    Ok(raised(attached.counter(counter::FLAGS)).map_or(Ok(attached), Err))
}

/// What the programs' flags mean; `None` if none is raised.
fn raised(flags: u64) -> Option<String> {
    let texts = [
        (flag::RANGE, "a write went beyond the size that is tracked"),
        (flag::SLOT, "the disk's hardware queues are not those that tracking was made for"),
        (flag::SLOTS_FULL, "more writes were in flight than tracking can remember"),
        (
            flag::PASSTHROUGH,
            "a command with data was sent to the disk past the block layer (SG_IO or NVMe passthrough)",
        ),
        (flag::MANY_RANGES, "a discard had more ranges than tracking looks at"),
    ];
    let raised: Vec<_> = texts
        .iter()
        .filter(|(bit, _)| flags & u64::from(bit.unsigned_abs()) != 0)
        .map(|(_, text)| *text)
        .collect();
    (!raised.is_empty()).then(|| raised.join("; "))
}

fn no_pins(device: &str, source: io::Error) -> CaptureError {
    let advice = match source.kind() {
        io::ErrorKind::ResourceBusy => "its tracking is in use",
        io::ErrorKind::PermissionDenied => "bpffs (/sys/fs/bpf) must be mounted and writable for the agent",
        _ => "its pins in bpffs (/sys/fs/bpf) cannot be used",
    };
    failed(device, advice, source)
}
