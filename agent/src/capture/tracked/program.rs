//! What all programs share: the filter for the disk, the cut to its range, counting, and marking.
//!
//! Owns the pieces and the layout of the record of counters. Does not know requests or bios.
//! Invariant: a program that cannot do its work for an event raises a flag; it never drops a change in silence.
//! Limit: ranges longer than two words are filled by the kernel's own loop, up to 2^23 words (2 TiB).
//! Format: the record of counters is described at [`counter`].

use std::os::fd::BorrowedFd;

use super::{
    assembler::{
        Alu, Assembler, Atomic, Condition, Helper, Label,
        Register::{self, R0, R1, R2, R3, R4, R5, R6, R7, R8, R10},
        Width,
    },
    btf::{BtfError, KernelTypes},
    program_types,
};

/// Raised when it is changed so that pinned programs of another version are not taken over.
pub(super) const PROGRAM_VERSION: u64 = 2;

/// Byte offsets in the record of counters.
pub(super) mod counter {
    /// Mutating requests issued, less those that were requeued; for figures only. Not exact: two processors that count at
    /// the same moment may count one.
    pub(in super::super) const REQUESTS: i16 = 0;
    /// Sectors in them.
    pub(in super::super) const SECTORS: i16 = 8;
    /// Bits of [`super::flag`].
    pub(in super::super) const FLAGS: i16 = 16;
    /// Serial number of the last bio; tells two bios at one address apart.
    pub(in super::super) const SERIAL: i16 = 24;
    /// Events counted for faults made on purpose.
    pub(in super::super) const ISSUE_EVENTS: i16 = 32;
    /// Events counted for faults made on purpose.
    pub(in super::super) const COMPLETE_EVENTS: i16 = 40;
    /// Size of the record.
    pub(in super::super) const RECORD_BYTES: u32 = 64;
}

/// Why tracking stopped being complete.
pub(super) mod flag {
    /// A request went beyond the end of the disk.
    pub(in super::super) const RANGE: i32 = 1;
    /// A request had a hardware queue or tag that there was no slot for.
    pub(in super::super) const SLOT: i32 = 2;
    /// More bios in flight than slots.
    pub(in super::super) const SLOTS_FULL: i32 = 4;
    /// A command that carries data to the disk past the block layer.
    pub(in super::super) const PASSTHROUGH: i32 = 8;
    /// A discard of more ranges than are looked at.
    pub(in super::super) const MANY_RANGES: i32 = 16;
}

/// `REQ_OP_DRV_OUT`: a command made by a program or the driver, with data to the disk.
pub(super) const OPERATION_DRIVER_OUT: i32 = 35;
/// `REQ_OP_DISCARD`
pub(super) const OPERATION_DISCARD: i32 = 3;
/// The part of the flags that names the operation.
pub(super) const OPERATION_MASK: i32 = 0xff;

/// Faults made on purpose, so that tests can see that they are noticed or survived.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Ignore every n-th completion; zero ignores none. Must be survived.
    pub drop_completion_every: u16,
    /// Ignore every n-th issued request; zero ignores none. The guard must notice.
    pub drop_issue_every: u16,
    /// Do not look at slots when taking: marks at issue alone, which loses changes.
    pub ignore_slots: bool,
}

/// Which disk, and which part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) major: u32,
    pub(super) minor: u32,
    /// First sector on the whole disk; zero unless a partition is tracked.
    pub(super) start_sector: u64,
    pub(super) sectors: u64,
    /// Requests outside of it are somebody else's instead of an alarm.
    pub(super) is_partition: bool,
}

impl Window {
    pub(super) fn blocks(&self) -> u64 {
        self.sectors.div_ceil(8)
    }
}

/// A finished program, ready for the kernel.
pub(super) struct Built {
    pub(super) name: &'static str,
    pub(super) tracepoint: &'static str,
    pub(super) instructions: Vec<[u8; 8]>,
    pub(super) functions: Vec<[u32; 2]>,
}

/// Offsets in the kernel's description of a disk.
pub(super) struct DiskOffsets {
    major: i16,
    first_minor: i16,
}

impl DiskOffsets {
    pub(super) fn read(types: &KernelTypes) -> Result<Self, BtfError> {
        Ok(Self {
            major: types.offset("gendisk", "major")?,
            first_minor: types.offset("gendisk", "first_minor")?,
        })
    }
}

/// Leaves to `other` unless the disk at `R1` is the one of the window. Uses `R2`.
pub(super) fn only_disk(code: &mut Assembler, offsets: &DiskOffsets, window: &Window, other: Label) {
    code.jump_if(Condition::Equal, R1, 0, other);
    code.load(Width::Four, R2, R1, offsets.major);
    code.jump_if(Condition::NotEqual, R2, window.major.cast_signed(), other);
    code.load(Width::Four, R2, R1, offsets.first_minor);
    code.jump_if(Condition::NotEqual, R2, window.minor.cast_signed(), other);
}

/// Turns a first sector and a number of sectors into a first block and the block after the last, counted from the
/// window's start. Leaves to `outside` if a partition is tracked and the range does not touch it. Uses `R5`.
pub(super) fn to_blocks(
    code: &mut Assembler,
    window: &Window,
    first: Register,
    length: Register,
    outside: Label,
) {
    code.alu_register(Alu::Add, length, first);
    if window.is_partition {
        let end = window.start_sector + window.sectors;
        let (starts_inside, ends_inside) = (code.label(), code.label());
        code.constant(R5, window.start_sector);
        code.jump_if_register(Condition::LessOrEqual, length, R5, outside);
        code.jump_if_register(Condition::GreaterOrEqual, first, R5, starts_inside);
        code.copy(first, R5);
        code.place(starts_inside);
        code.alu_register(Alu::Subtract, first, R5);
        code.alu_register(Alu::Subtract, length, R5);
        code.constant(R5, end - window.start_sector);
        code.jump_if_register(Condition::GreaterOrEqual, first, R5, outside);
        code.jump_if_register(Condition::LessOrEqual, length, R5, ends_inside);
        code.copy(length, R5);
        code.place(ends_inside);
    }
    code.alu(Alu::ShiftRight, first, 3);
    code.alu(Alu::Add, length, 7);
    code.alu(Alu::ShiftRight, length, 3);
}

/// Adds `amount` to the number of requests in the record at `R1`. Uses `R2`. Nothing depends on this number, so it is not
/// worth an atomic operation, which costs as much as the rest of the counting.
pub(super) fn count_request(code: &mut Assembler, amount: i32) {
    code.load(Width::Eight, R2, R1, counter::REQUESTS);
    code.alu(Alu::Add, R2, amount);
    code.store(Width::Eight, R1, counter::REQUESTS, R2);
}

/// Raises a flag. Uses `R1` and `R2`.
pub(super) fn raise(code: &mut Assembler, counters: BorrowedFd<'_>, bit: i32) {
    code.map_value(R1, counters, 0);
    code.alu(Alu::Move, R2, bit);
    code.atomic(Atomic::Or, R1, counter::FLAGS, R2);
}

/// Leaves to `dropped` at every n-th event, if a fault is wanted. Uses `R1` and `R2`.
pub(super) fn maybe_drop(
    code: &mut Assembler,
    counters: BorrowedFd<'_>,
    every: u16,
    count: i16,
    dropped: Label,
) {
    if every == 0 {
        return;
    }
    code.map_value(R1, counters, 0);
    code.alu(Alu::Move, R2, 1);
    code.atomic(Atomic::FetchAdd, R1, count, R2);
    code.alu(Alu::Modulo, R2, i32::from(every));
    code.jump_if(Condition::Equal, R2, 0, dropped);
}

/// Result zero, and out.
pub(super) fn leave(code: &mut Assembler, here: Label) {
    code.place(here);
    code.alu(Alu::Move, R0, 0);
    code.exit();
}

/// Ways out of a program that sees writes being issued.
#[derive(Clone, Copy)]
pub(super) struct Exits {
    /// Nothing is left to do.
    pub(super) out: Label,
    /// There was no slot for the write; this flag is raised, and it is marked nevertheless.
    pub(super) no_slot: (Label, i32),
    /// The command goes past the block layer: where it writes is not known.
    pub(super) passthrough: Label,
}

/// The end of a program that sees writes being issued: marks the blocks from `R7` to before `R8`, and is where its exits lead.
pub(super) fn mark_and_leave(code: &mut Assembler, exits: Exits, mark: Label, counters: BorrowedFd<'_>) {
    let mark_now = code.label();
    code.place(mark_now);
    code.copy(R1, R7);
    code.copy(R2, R8);
    code.call_function(mark);
    leave(code, exits.out);
    let (no_slot, flag_of_no_slot) = exits.no_slot;
    code.place(no_slot);
    raise(code, counters, flag_of_no_slot);
    code.jump(mark_now);
    code.place(exits.passthrough);
    raise(code, counters, flag::PASSTHROUGH);
    code.jump(exits.out);
}

/// Appends the function `mark(first block, block after the last)` and its callback; finishes the program.
pub(super) fn finish_with_mark(
    mut code: Assembler,
    (name, tracepoint): (&'static str, &'static str),
    mark: Label,
    blocks: u64,
    marks: BorrowedFd<'_>,
    counters: BorrowedFd<'_>,
) -> Result<Built, String> {
    let fill = code.label();
    let mark_at = code.position();
    code.place(mark);
    emit_mark(&mut code, fill, blocks, marks, counters);
    let fill_at = code.position();
    code.place(fill);
    emit_fill(&mut code, marks, counters);
    let place = |at: usize| u32::try_from(at).map_err(|error| error.to_string());
    let functions = vec![
        [0, program_types::MAIN],
        [place(mark_at)?, program_types::MARK],
        [place(fill_at)?, program_types::FILL],
    ];
    Ok(Built { name, tracepoint, instructions: code.finish()?, functions })
}

/// Finishes a program without further functions.
pub(super) fn finish_plain(
    code: Assembler,
    name: &'static str,
    tracepoint: &'static str,
) -> Result<Built, String> {
    Ok(Built { name, tracepoint, instructions: code.finish()?, functions: vec![[0, program_types::MAIN]] })
}

/// `mark(R1 = first block, R2 = block after the last)`.
fn emit_mark(
    code: &mut Assembler,
    fill: Label,
    blocks: u64,
    marks: BorrowedFd<'_>,
    counters: BorrowedFd<'_>,
) {
    let (out, bad, long) = (code.label(), code.label(), code.label());
    code.copy(R6, R1);
    code.copy(R7, R2);
    code.constant(R1, blocks);
    code.jump_if_register(Condition::Greater, R7, R1, bad);
    code.jump_if_register(Condition::GreaterOrEqual, R6, R7, bad);
    code.alu(Alu::Subtract, R7, 1);
    // R8 = bits from the first block to the end of its word.
    code.copy(R1, R6);
    code.alu(Alu::And, R1, 63);
    code.alu(Alu::Move, R8, -1);
    code.alu_register(Alu::ShiftLeft, R8, R1);
    look_up_word(code, marks, R6, bad);
    // R3 = bits from the start of the last word to the last block.
    code.copy(R2, R7);
    code.alu(Alu::And, R2, 63);
    code.alu(Alu::Move, R1, 63);
    code.alu_register(Alu::Subtract, R1, R2);
    code.alu(Alu::Move, R3, -1);
    code.alu_register(Alu::ShiftRight, R3, R1);
    code.copy(R4, R6);
    code.alu(Alu::ShiftRight, R4, 6);
    code.copy(R5, R7);
    code.alu(Alu::ShiftRight, R5, 6);
    code.jump_if_register(Condition::NotEqual, R4, R5, long);
    code.alu_register(Alu::And, R8, R3);
    code.atomic(Atomic::Or, R0, 0, R8);
    leave(code, out);

    code.place(long);
    code.atomic(Atomic::Or, R0, 0, R8);
    code.copy(R8, R3);
    look_up_word(code, marks, R7, bad);
    code.atomic(Atomic::Or, R0, 0, R8);
    // The words between are filled by a loop; its context is the first of them.
    code.copy(R2, R6);
    code.alu(Alu::ShiftRight, R2, 6);
    code.alu(Alu::Add, R2, 1);
    code.store(Width::Eight, R10, -16, R2);
    code.copy(R1, R7);
    code.alu(Alu::ShiftRight, R1, 6);
    code.alu_register(Alu::Subtract, R1, R2);
    code.jump_if(Condition::Equal, R1, 0, out);
    code.function(R2, fill);
    code.copy(R3, R10);
    code.alu(Alu::Add, R3, -16);
    code.alu(Alu::Move, R4, 0);
    code.call(Helper::Loop);
    // Negative if there are too many words for the loop.
    code.jump_if(Condition::AnyBitOf, R0, i32::MIN, bad);
    code.jump(out);
    code.place(bad);
    raise(code, counters, flag::RANGE);
    code.jump(out);
}

/// `fill(R1 = number of the round, R2 = context)`: sets all bits of one word.
fn emit_fill(code: &mut Assembler, marks: BorrowedFd<'_>, counters: BorrowedFd<'_>) {
    let (out, bad) = (code.label(), code.label());
    code.load(Width::Eight, R6, R2, 0);
    code.alu_register(Alu::Add, R6, R1);
    code.alu(Alu::ShiftLeft, R6, 6);
    look_up_word(code, marks, R6, bad);
    code.alu(Alu::Move, R1, -1);
    code.atomic(Atomic::Or, R0, 0, R1);
    leave(code, out);
    code.place(bad);
    raise(code, counters, flag::RANGE);
    code.jump(out);
}

/// `R0` = address of the word of marks that holds `block`. Uses `R1` and `R2` and 4 bytes of the stack.
fn look_up_word(code: &mut Assembler, marks: BorrowedFd<'_>, block: Register, missing: Label) {
    code.copy(R1, block);
    code.alu(Alu::ShiftRight, R1, 6);
    code.store(Width::Four, R10, -4, R1);
    look_up(code, marks, -4, missing);
}

/// `R0` = address of the map's value whose key stands on the stack.
pub(super) fn look_up(code: &mut Assembler, map: BorrowedFd<'_>, key: i16, missing: Label) {
    code.map(R1, map);
    code.copy(R2, R10);
    code.alu(Alu::Add, R2, i32::from(key));
    code.call(Helper::MapLookup);
    code.jump_if(Condition::Equal, R0, 0, missing);
}
