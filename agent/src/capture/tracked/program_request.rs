//! The programs for request-based disks: issue, complete, requeue.
//!
//! Owns their instructions. Does not know how they are loaded.
//! Invariant, in this order and for every mutating request: it is counted, then its slot is filled, then its blocks are
//! marked; all of that before the driver sees it. `docs/tracking.md` says why the order matters.
//! Limit: [`RANGES_MAX`] ranges in one discard; more raise a flag.

use std::os::fd::BorrowedFd;

use super::{
    assembler::{
        Alu, Assembler, Atomic, Condition, Label,
        Register::{R0, R1, R2, R6, R7, R8, R9, R10},
        Width,
    },
    btf::{BtfError, KernelTypes},
    program::{
        Built, DiskOffsets, Exits, Faults, OPERATION_DISCARD, OPERATION_DRIVER_OUT, OPERATION_MASK, Window,
        count_request, counter, finish_plain, finish_with_mark, flag, leave, look_up, mark_and_leave,
        maybe_drop, only_disk, raise, to_blocks,
    },
    slots::SLOT_COUNT_BITS,
};

/// Most ranges of one discard that are looked at (NVMe allows 256).
const RANGES_MAX: i32 = 256;
/// Where the issue program keeps the number of sectors.
const STACK_SECTORS: i16 = -24;

/// Offsets in the kernel's structures.
pub(super) struct RequestOffsets {
    disk: DiskOffsets,
    cmd_flags: i16,
    queue: i16,
    sector: i16,
    data_len: i16,
    bio: i16,
    tag: i16,
    state: i16,
    hardware_queue: i16,
    queue_disk: i16,
    queue_number: i16,
    bio_next: i16,
    bio_sector: i16,
    bio_size: i16,
}

impl RequestOffsets {
    pub(super) fn read(types: &KernelTypes) -> Result<Self, BtfError> {
        let request = |member| types.offset("request", member);
        let iterator = types.offset("bio", "bi_iter")?;
        Ok(Self {
            disk: DiskOffsets::read(types)?,
            cmd_flags: request("cmd_flags")?,
            queue: request("q")?,
            sector: request("__sector")?,
            data_len: request("__data_len")?,
            bio: request("bio")?,
            tag: request("tag")?,
            state: request("state")?,
            hardware_queue: request("mq_hctx")?,
            queue_disk: types.offset("request_queue", "disk")?,
            queue_number: types.offset("blk_mq_hw_ctx", "queue_num")?,
            bio_next: types.offset("bio", "bi_next")?,
            bio_sector: iterator + types.offset("bvec_iter", "bi_sector")?,
            bio_size: iterator + types.offset("bvec_iter", "bi_size")?,
        })
    }
}

/// How the disk's slots are laid out: `hardware queue << column_bits | tag`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotShape {
    /// Hardware queues.
    pub(super) rows: u32,
    /// Tags of each, as a power of two.
    pub(super) column_bits: u32,
}

impl SlotShape {
    pub(super) fn slots(self) -> u32 {
        self.rows << self.column_bits
    }
}

/// What the programs are made for.
pub(super) struct RequestPrograms<'a> {
    pub(super) offsets: &'a RequestOffsets,
    pub(super) window: Window,
    pub(super) shape: SlotShape,
    /// The disk takes discards of several ranges in one request.
    pub(super) has_many_ranges: bool,
    pub(super) faults: Faults,
    pub(super) marks: BorrowedFd<'a>,
    pub(super) slots: BorrowedFd<'a>,
    pub(super) counters: BorrowedFd<'a>,
}

impl RequestPrograms<'_> {
    pub(super) fn build(&self) -> Result<Vec<Built>, String> {
        Ok(vec![self.issue()?, self.complete()?, self.requeue()?])
    }

    /// Counts, fills the slot, marks.
    fn issue(&self) -> Result<Built, String> {
        let mut code = Assembler::default();
        let (out, mark, many, bad_slot, passthrough) =
            (code.label(), code.label(), code.label(), code.label(), code.label());
        self.mutating_request_of_disk(&mut code, out);
        code.load(Width::Four, R8, R6, self.offsets.data_len);
        code.jump_if(Condition::Equal, R8, 0, out);
        code.jump_if(Condition::Equal, R9, OPERATION_DRIVER_OUT, passthrough);
        code.load(Width::Eight, R7, R6, self.offsets.sector);
        code.alu(Alu::ShiftRight, R8, 9);
        code.store(Width::Eight, R10, STACK_SECTORS, R8);
        if self.has_many_ranges {
            self.leave_for_many_ranges(&mut code, many);
        }
        to_blocks(&mut code, &self.window, R7, R8, out);
        maybe_drop(&mut code, self.counters, self.faults.drop_issue_every, counter::ISSUE_EVENTS, out);
        self.count(&mut code, false);
        self.find_slot(&mut code, bad_slot);
        code.copy(R1, R7);
        code.alu(Alu::ShiftLeft, R1, SLOT_COUNT_BITS.cast_signed());
        code.copy(R2, R8);
        code.alu_register(Alu::Subtract, R2, R7);
        code.alu_register(Alu::Add, R1, R2);
        fill_slot(&mut code);
        let exits = Exits { out, no_slot: (bad_slot, flag::SLOT), passthrough };
        mark_and_leave(&mut code, exits, mark, self.counters);
        // The verifier refuses code that is never reached.
        if self.has_many_ranges {
            code.place(many);
            self.mark_many_ranges(&mut code, mark, out);
        }
        let name = ("hf_issue", "btf_trace_block_rq_issue");
        finish_with_mark(code, name, mark, self.window.blocks(), self.marks, self.counters)
    }

    /// Frees the slot when the last byte is done. Marks nothing.
    fn complete(&self) -> Result<Built, String> {
        let mut code = Assembler::default();
        let out = code.label();
        // The number of bytes is an unsigned int: its upper half is not to be relied on.
        code.load(Width::Eight, R7, R1, 16);
        code.alu(Alu::ShiftLeft, R7, 32);
        code.alu(Alu::ShiftRight, R7, 32);
        code.jump_if(Condition::Equal, R7, 0, out);
        self.mutating_request_of_disk(&mut code, out);
        code.load(Width::Four, R2, R6, self.offsets.data_len);
        code.jump_if_register(Condition::Less, R7, R2, out);
        maybe_drop(
            &mut code,
            self.counters,
            self.faults.drop_completion_every,
            counter::COMPLETE_EVENTS,
            out,
        );
        self.find_slot(&mut code, out);
        code.alu(Alu::Move, R1, 0);
        fill_slot(&mut code);
        leave(&mut code, out);
        finish_plain(code, "hf_complete", "btf_trace_block_rq_complete")
    }

    /// Takes back the count of a request that will be issued again. Its slot stays: the tag may have a new owner.
    fn requeue(&self) -> Result<Built, String> {
        let mut code = Assembler::default();
        let out = code.label();
        self.mutating_request_of_disk(&mut code, out);
        // A request that the driver turned away before it was started was never counted.
        code.load(Width::Four, R1, R6, self.offsets.state);
        code.jump_if(Condition::Equal, R1, 0, out);
        code.load(Width::Four, R8, R6, self.offsets.data_len);
        code.jump_if(Condition::Equal, R8, 0, out);
        code.jump_if(Condition::Equal, R9, OPERATION_DRIVER_OUT, out);
        code.load(Width::Eight, R7, R6, self.offsets.sector);
        code.alu(Alu::ShiftRight, R8, 9);
        code.store(Width::Eight, R10, STACK_SECTORS, R8);
        to_blocks(&mut code, &self.window, R7, R8, out);
        self.count(&mut code, true);
        leave(&mut code, out);
        finish_plain(code, "hf_requeue", "btf_trace_block_rq_requeue")
    }

    /// `R6` = request, `R9` = operation; leaves to `other` if it reads or is for another disk.
    fn mutating_request_of_disk(&self, code: &mut Assembler, other: Label) {
        let is_odd = code.label();
        code.load(Width::Eight, R6, R1, 0);
        code.load(Width::Four, R9, R6, self.offsets.cmd_flags);
        code.alu(Alu::And, R9, OPERATION_MASK);
        code.jump_if(Condition::AnyBitOf, R9, 1, is_odd);
        code.jump(other);
        code.place(is_odd);
        code.load(Width::Eight, R1, R6, self.offsets.queue);
        code.load(Width::Eight, R1, R1, self.offsets.queue_disk);
        only_disk(code, &self.offsets.disk, &self.window, other);
    }

    /// `R0` = address of the request's slot; leaves to `missing` if there is none.
    fn find_slot(&self, code: &mut Assembler, missing: Label) {
        code.load(Width::Four, R1, R6, self.offsets.tag);
        code.jump_if(Condition::GreaterOrEqual, R1, 1 << self.shape.column_bits, missing);
        code.load(Width::Eight, R2, R6, self.offsets.hardware_queue);
        code.load(Width::Four, R2, R2, self.offsets.queue_number);
        code.jump_if(Condition::GreaterOrEqual, R2, self.shape.rows.cast_signed(), missing);
        code.alu(Alu::ShiftLeft, R2, self.shape.column_bits.cast_signed());
        code.alu_register(Alu::Or, R2, R1);
        code.store(Width::Four, R10, -4, R2);
        look_up(code, self.slots, -4, missing);
    }

    /// Adds the request to the counters, or takes it back.
    fn count(&self, code: &mut Assembler, take_back: bool) {
        code.map_value(R1, self.counters, 0);
        count_request(code, if take_back { -1 } else { 1 });
        code.load(Width::Eight, R2, R10, STACK_SECTORS);
        if take_back {
            code.alu(Alu::Move, R0, 0);
            code.alu_register(Alu::Subtract, R0, R2);
            code.copy(R2, R0);
        }
        code.atomic(Atomic::Add, R1, counter::SECTORS, R2);
    }

    fn leave_for_many_ranges(&self, code: &mut Assembler, many: Label) {
        let single = code.label();
        code.jump_if(Condition::NotEqual, R9, OPERATION_DISCARD, single);
        code.load(Width::Eight, R1, R6, self.offsets.bio);
        code.jump_if(Condition::Equal, R1, 0, single);
        code.load(Width::Eight, R1, R1, self.offsets.bio_next);
        code.jump_if(Condition::NotEqual, R1, 0, many);
        code.place(single);
    }

    /// Marks every range of a discard; the slot only says that there are several.
    fn mark_many_ranges(&self, code: &mut Assembler, mark: Label, out: Label) {
        let (bad_slot, walk, next, too_many) = (code.label(), code.label(), code.label(), code.label());
        let walk_start = code.label();
        self.count(code, false);
        self.find_slot(code, bad_slot);
        code.alu(Alu::Move, R1, -1);
        fill_slot(code);
        code.jump(walk_start);
        code.place(bad_slot);
        raise(code, self.counters, flag::SLOT);
        code.place(walk_start);
        code.load(Width::Eight, R9, R6, self.offsets.bio);
        code.alu(Alu::Move, R8, 0);
        code.place(walk);
        code.jump_if(Condition::Equal, R9, 0, out);
        code.jump_if(Condition::GreaterOrEqual, R8, RANGES_MAX, too_many);
        code.load(Width::Eight, R1, R9, self.offsets.bio_sector);
        code.load(Width::Four, R2, R9, self.offsets.bio_size);
        code.alu(Alu::ShiftRight, R2, 9);
        to_blocks(code, &self.window, R1, R2, next);
        code.call_function(mark);
        code.place(next);
        code.load(Width::Eight, R9, R9, self.offsets.bio_next);
        code.alu(Alu::Add, R8, 1);
        code.jump(walk);
        code.place(too_many);
        raise(code, self.counters, flag::MANY_RANGES);
        code.jump(out);
    }
}

/// Slot at `R0` = `R1`, seen by others after the count and before the marks.
fn fill_slot(code: &mut Assembler) {
    if cfg!(target_arch = "x86_64") {
        // Stores of one processor are seen in their order there, and each costs a tenth of an exchange.
        code.store(Width::Eight, R0, 0, R1);
    } else {
        code.atomic(Atomic::Exchange, R0, 0, R1);
    }
}
