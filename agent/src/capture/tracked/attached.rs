//! A disk's maps and programs: made and attached once, opened again by every later process.
//!
//! Owns making, pinning and opening them. Does not know intervals or what marks are used for.
//! Invariant: programs are attached only when every map that they write to is pinned.
//! Limit: [`BIOS_IN_FLIGHT_MAX`] bios in flight; memory is one bit per block in each of three bitmaps.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use super::{
    btf::{BtfError, KernelTypes},
    kernel,
    maps::SharedWords,
    metadata,
    pins::PinFolder,
    program::{Built, Faults, counter},
    program_bio::{BioOffsets, BioPrograms},
    program_request::{RequestOffsets, RequestPrograms},
    program_types,
    slots::{InFlight, decode},
    target::{Kind, Target, failed},
};
use crate::capture::CaptureError;

/// Bios in flight on one bio-based device that are remembered (4 MiB of kernel memory).
const BIOS_IN_FLIGHT_MAX: u32 = 32_768;
const PROGRAMS_MAX: usize = 3;

/// Where requests in flight are remembered.
#[derive(Debug)]
enum Slots {
    Table(SharedWords),
    Hash(OwnedFd),
}

/// A slot in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotInUse {
    pub(super) in_flight: InFlight,
    /// Address and serial number of a bio.
    bio: Option<(u64, u64)>,
}

/// Everything that a disk has in the kernel.
#[derive(Debug)]
pub(super) struct Attached {
    marks: SharedWords,
    taken: [SharedWords; 2],
    slots: Slots,
    counters: SharedWords,
    metadata: SharedWords,
    programs: Vec<OwnedFd>,
}

impl Attached {
    /// Makes maps, pins them, attaches programs and pins those.
    pub(super) fn create(pins: &PinFolder, target: &Target, faults: Faults) -> Result<Self, CaptureError> {
        let explain = |source| explain(target, source);
        let types = KernelTypes::of_this_kernel().map_err(|error| no_types(target, error))?;
        let mut attached = Self::create_maps(pins, target).map_err(explain)?;
        let built = attached.build(&types, target, faults)?;
        let description = kernel::load_types(&program_types::blob()).map_err(explain)?;
        for (number, program) in built.iter().enumerate() {
            let attach_to = types.typedef(program.tracepoint).map_err(|error| no_types(target, error))?;
            let loaded = kernel::load_program(&kernel::Program {
                name: program.name,
                instructions: &program.instructions,
                types: description.as_fd(),
                functions: &program.functions,
                attach_to,
            });
            let loaded = loaded.map_err(explain)?;
            pins.pin(&format!("program_{number}"), loaded.as_fd()).map_err(explain)?;
            attached.programs.push(loaded);
        }
        // Completion before issue: a slot that is filled can always be freed.
        for (number, program) in attached.programs.iter().enumerate().rev() {
            let link = kernel::attach(program.as_fd()).map_err(explain)?;
            pins.pin(&format!("link_{number}"), link.as_fd()).map_err(explain)?;
        }
        Ok(attached)
    }

    fn create_maps(pins: &PinFolder, target: &Target) -> io::Result<Self> {
        let words = words(target)?;
        let bitmap = |name| {
            let map =
                kernel::create_array(&format!("hf_{name}"), u32::try_from(words).map_err(io::Error::other)?)?;
            pins.pin(name, map.as_fd())?;
            SharedWords::map(map, words)
        };
        let slots = match target.kind {
            Kind::Requests(shape) => {
                let map = kernel::create_array("hf_slots", shape.slots())?;
                pins.pin("slots", map.as_fd())?;
                Slots::Table(SharedWords::map(map, shape.slots() as usize)?)
            }
            Kind::Bios => {
                let map = kernel::create_hash("hf_slots", BIOS_IN_FLIGHT_MAX)?;
                pins.pin("slots", map.as_fd())?;
                Slots::Hash(map)
            }
        };
        let counters = kernel::create_record("hf_counters", counter::RECORD_BYTES)?;
        pins.pin("counters", counters.as_fd())?;
        let record =
            kernel::create_array("hf_metadata", u32::try_from(metadata::WORDS).map_err(io::Error::other)?)?;
        pins.pin("metadata", record.as_fd())?;
        Ok(Self {
            marks: bitmap("marks")?,
            taken: [bitmap("even")?, bitmap("odd")?],
            slots,
            counters: SharedWords::map(counters, counter::RECORD_BYTES as usize / 8)?,
            metadata: SharedWords::map(record, metadata::WORDS)?,
            programs: vec![],
        })
    }

    /// Opens the record of an earlier process; `None` if there is none.
    pub(super) fn open_metadata(pins: &PinFolder) -> io::Result<Option<SharedWords>> {
        pins.get("metadata")?.map(|map| SharedWords::map(map, metadata::WORDS)).transpose()
    }

    /// Opens what an earlier process left; `None` if something is missing. The record must have been compared before:
    /// the maps' sizes follow from it.
    pub(super) fn open(pins: &PinFolder, target: &Target, metadata: SharedWords) -> io::Result<Option<Self>> {
        let words = words(target)?;
        let map = |name, words| pins.get(name)?.map(|map| SharedWords::map(map, words)).transpose();
        let (Some(marks), Some(even), Some(odd)) =
            (map("marks", words)?, map("even", words)?, map("odd", words)?)
        else {
            return Ok(None);
        };
        let slots = match target.kind {
            Kind::Requests(shape) => map("slots", shape.slots() as usize)?.map(Slots::Table),
            Kind::Bios => pins.get("slots")?.map(Slots::Hash),
        };
        let counters = map("counters", counter::RECORD_BYTES as usize / 8)?;
        let (Some(slots), Some(counters)) = (slots, counters) else { return Ok(None) };
        let expected = match target.kind {
            Kind::Requests(_) => PROGRAMS_MAX,
            Kind::Bios => 2,
        };
        let mut programs = vec![];
        for number in 0..expected {
            let (program, link) =
                (pins.get(&format!("program_{number}"))?, pins.get(&format!("link_{number}"))?);
            let (Some(program), Some(_)) = (program, link) else { return Ok(None) };
            programs.push(program);
        }
        Ok(Some(Self { marks, taken: [even, odd], slots, counters, metadata, programs }))
    }

    fn build(
        &self,
        types: &KernelTypes,
        target: &Target,
        faults: Faults,
    ) -> Result<Vec<Built>, CaptureError> {
        let (marks, counters) = (self.marks.as_fd(), self.counters.as_fd());
        let (window, lacks) = (target.window, |error| no_types(target, error));
        let built = match (&self.slots, target.kind) {
            (Slots::Table(slots), Kind::Requests(shape)) => RequestPrograms {
                offsets: &RequestOffsets::read(types).map_err(lacks)?,
                window,
                shape,
                has_many_ranges: target.has_many_ranges,
                faults,
                marks,
                slots: slots.as_fd(),
                counters,
            }
            .build(),
            (Slots::Hash(slots), _) => {
                let offsets = &BioOffsets::read(types).map_err(lacks)?;
                BioPrograms { offsets, window, faults, marks, slots: slots.as_fd(), counters }.build()
            }
            (Slots::Table(_), Kind::Bios) => Err("slots do not fit the device".into()),
        };
        built.map_err(|text| failed(&target.device, "this is a mistake in the agent", io::Error::other(text)))
    }

    /// The bitmap of changes.
    pub(super) fn marks(&self) -> &[AtomicU64] {
        self.marks.words()
    }

    /// The bitmap of what was taken, for even (0) and odd (1) intervals.
    pub(super) fn taken(&self, is_odd: bool) -> &[AtomicU64] {
        let [even, odd] = &self.taken;
        if is_odd { odd.words() } else { even.words() }
    }

    /// The words of the record.
    pub(super) fn metadata(&self) -> &[AtomicU64] {
        self.metadata.words()
    }

    /// One of the programs' counters.
    pub(super) fn counter(&self, offset: i16) -> u64 {
        let index = usize::from(offset.unsigned_abs()) / 8;
        self.counters.words().get(index).map_or(0, |word| word.load(SeqCst))
    }

    /// What is in flight now. A request that is in flight during the whole call is in the result.
    pub(super) fn slots_in_use(&self) -> io::Result<Vec<SlotInUse>> {
        match &self.slots {
            Slots::Table(table) => Ok(table
                .words()
                .iter()
                .filter_map(|slot| decode(slot.load(SeqCst)))
                .map(|in_flight| SlotInUse { in_flight, bio: None })
                .collect()),
            Slots::Hash(map) => Ok(kernel::read_hash(map.as_fd(), BIOS_IN_FLIGHT_MAX as usize)?
                .into_iter()
                .filter_map(|(address, [range, serial])| {
                    Some(SlotInUse { in_flight: decode(range)?, bio: Some((address, serial)) })
                })
                .collect()),
        }
    }

    /// Frees slots whose completion was lost. Requests free theirs by reusing the tag; bios need it, because their
    /// slots would fill up.
    pub(super) fn forget(&self, stale: &[SlotInUse]) -> io::Result<()> {
        let Slots::Hash(map) = &self.slots else { return Ok(()) };
        for (address, serial) in stale.iter().filter_map(|slot| slot.bio) {
            // The address may belong to another bio by now; then what was removed is put back. If that one completed
            // in between, its slot is stale, which costs only copying.
            if let Some(removed @ [_, other]) = kernel::remove_entry(map.as_fd(), address)?
                && other != serial
            {
                kernel::add_entry(map.as_fd(), address, removed)?;
            }
        }
        Ok(())
    }

    /// What the kernel counted about the programs, summed.
    pub(super) fn program_info(&self) -> io::Result<kernel::ProgramInfo> {
        let mut sum = kernel::ProgramInfo::default();
        for program in &self.programs {
            let info = kernel::program_info(program.as_fd())?;
            sum.run_time_ns += info.run_time_ns;
            sum.runs += info.runs;
            sum.recursion_misses += info.recursion_misses;
        }
        Ok(sum)
    }
}

fn words(target: &Target) -> io::Result<usize> {
    usize::try_from(target.window.blocks().div_ceil(64)).map_err(io::Error::other)
}

fn no_types(target: &Target, error: BtfError) -> CaptureError {
    let advice = "the running kernel must describe its types (CONFIG_DEBUG_INFO_BTF) and be 5.17 or newer; use `scan` \
                  capture on this machine";
    failed(&target.device, advice, io::Error::other(error))
}

fn explain(target: &Target, source: io::Error) -> CaptureError {
    failed(&target.device, advice(&source, is_locked_down()), source)
}

/// What an operator can do about an answer of bpf().
fn advice(error: &io::Error, is_locked_down: bool) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if is_locked_down => {
            "the kernel is locked down (lockdown=confidentiality), which forbids tracing; boot with lockdown=integrity \
             or use `scan` capture"
        }
        Some(libc::EPERM | libc::EACCES) => {
            "the agent needs the capabilities CAP_BPF and CAP_PERFMON, and a writable bpffs; run it as root or grant them"
        }
        Some(libc::ENOMEM) => {
            "the kernel has not enough memory for the bitmaps: three bits per 4 KiB of the disk"
        }
        Some(libc::ENOSYS) => "this kernel was built without bpf(); use `scan` capture",
        Some(libc::ENOENT) => "the kernel does not know something that is needed; it must be 5.17 or newer",
        _ => "the kernel refused it; kernels from 5.17 on are supported, else use `scan` capture",
    }
}

fn is_locked_down() -> bool {
    std::fs::read_to_string("/sys/kernel/security/lockdown")
        .is_ok_and(|text| text.contains("[confidentiality]"))
}

#[cfg(test)]
mod tests;
