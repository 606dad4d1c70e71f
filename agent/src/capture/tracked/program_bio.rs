//! The programs for bio-based devices (device mapper, md, zram), which have no requests: queue and complete.
//!
//! Owns their instructions. Does not know how they are loaded.
//! Invariant: as for requests, a bio is counted, then remembered as in flight, then marked, before the device sees it.
//! Limit: as many bios in flight as the map of slots has entries; one more raises a flag.

use std::os::fd::BorrowedFd;

use super::{
    assembler::{
        Alu, Assembler, Atomic, Condition, Helper,
        Register::{R0, R1, R2, R3, R4, R6, R7, R8, R9, R10},
        Width,
    },
    btf::{BtfError, KernelTypes},
    program::{
        Built, DiskOffsets, Exits, Faults, OPERATION_DRIVER_OUT, OPERATION_MASK, Window, count_request,
        counter, finish_plain, finish_with_mark, flag, leave, mark_and_leave, maybe_drop, only_disk,
        to_blocks,
    },
    slots::SLOT_COUNT_BITS,
};

/// Key of the bio's slot on the stack: its address.
const STACK_KEY: i16 = -8;
/// Value of the slot: range, then serial number.
const STACK_RANGE: i16 = -24;
const STACK_SERIAL: i16 = -16;

/// Offsets in the kernel's structures.
pub(super) struct BioOffsets {
    disk: DiskOffsets,
    operation: i16,
    device: i16,
    device_disk: i16,
    sector: i16,
    size: i16,
}

impl BioOffsets {
    pub(super) fn read(types: &KernelTypes) -> Result<Self, BtfError> {
        let iterator = types.offset("bio", "bi_iter")?;
        Ok(Self {
            disk: DiskOffsets::read(types)?,
            operation: types.offset("bio", "bi_opf")?,
            device: types.offset("bio", "bi_bdev")?,
            device_disk: types.offset("block_device", "bd_disk")?,
            sector: iterator + types.offset("bvec_iter", "bi_sector")?,
            size: iterator + types.offset("bvec_iter", "bi_size")?,
        })
    }
}

/// What the programs are made for.
pub(super) struct BioPrograms<'a> {
    pub(super) offsets: &'a BioOffsets,
    pub(super) window: Window,
    pub(super) faults: Faults,
    pub(super) marks: BorrowedFd<'a>,
    pub(super) slots: BorrowedFd<'a>,
    pub(super) counters: BorrowedFd<'a>,
}

impl BioPrograms<'_> {
    pub(super) fn build(&self) -> Result<Vec<Built>, String> {
        Ok(vec![self.queue()?, self.complete()?])
    }

    fn queue(&self) -> Result<Built, String> {
        let mut code = Assembler::default();
        let (out, mark, is_odd, full, passthrough) =
            (code.label(), code.label(), code.label(), code.label(), code.label());
        code.load(Width::Eight, R6, R1, 0);
        code.load(Width::Four, R9, R6, self.offsets.operation);
        code.alu(Alu::And, R9, OPERATION_MASK);
        code.jump_if(Condition::AnyBitOf, R9, 1, is_odd);
        code.jump(out);
        code.place(is_odd);
        code.load(Width::Eight, R1, R6, self.offsets.device);
        code.load(Width::Eight, R1, R1, self.offsets.device_disk);
        only_disk(&mut code, &self.offsets.disk, &self.window, out);
        code.load(Width::Four, R8, R6, self.offsets.size);
        code.jump_if(Condition::Equal, R8, 0, out);
        code.jump_if(Condition::Equal, R9, OPERATION_DRIVER_OUT, passthrough);
        code.load(Width::Eight, R7, R6, self.offsets.sector);
        code.alu(Alu::ShiftRight, R8, 9);
        code.copy(R9, R8);
        to_blocks(&mut code, &self.window, R7, R8, out);
        maybe_drop(&mut code, self.counters, self.faults.drop_issue_every, counter::ISSUE_EVENTS, out);
        // Count.
        code.map_value(R1, self.counters, 0);
        count_request(&mut code, 1);
        code.atomic(Atomic::Add, R1, counter::SECTORS, R9);
        code.alu(Alu::Move, R2, 1);
        code.atomic(Atomic::FetchAdd, R1, counter::SERIAL, R2);
        // Remember as in flight.
        code.store(Width::Eight, R10, STACK_SERIAL, R2);
        code.copy(R1, R7);
        code.alu(Alu::ShiftLeft, R1, SLOT_COUNT_BITS.cast_signed());
        code.copy(R2, R8);
        code.alu_register(Alu::Subtract, R2, R7);
        code.alu_register(Alu::Add, R1, R2);
        code.store(Width::Eight, R10, STACK_RANGE, R1);
        code.store(Width::Eight, R10, STACK_KEY, R6);
        code.map(R1, self.slots);
        code.copy(R2, R10);
        code.alu(Alu::Add, R2, i32::from(STACK_KEY));
        code.copy(R3, R10);
        code.alu(Alu::Add, R3, i32::from(STACK_RANGE));
        code.alu(Alu::Move, R4, 0);
        code.call(Helper::MapUpdate);
        code.jump_if(Condition::NotEqual, R0, 0, full);
        let exits = Exits { out, no_slot: (full, flag::SLOTS_FULL), passthrough };
        mark_and_leave(&mut code, exits, mark, self.counters);
        let name = ("hf_bio_queue", "btf_trace_block_bio_queue");
        finish_with_mark(code, name, mark, self.window.blocks(), self.marks, self.counters)
    }

    /// Forgets the bio. Not filtered by disk: a driver may have pointed the bio at the disk below, and an address in
    /// the map belongs to a bio of ours until it completes.
    fn complete(&self) -> Result<Built, String> {
        let mut code = Assembler::default();
        let out = code.label();
        // The bio is the second argument (after its queue).
        code.load(Width::Eight, R6, R1, 8);
        code.load(Width::Four, R2, R6, self.offsets.operation);
        let is_odd = code.label();
        code.jump_if(Condition::AnyBitOf, R2, 1, is_odd);
        code.jump(out);
        code.place(is_odd);
        maybe_drop(
            &mut code,
            self.counters,
            self.faults.drop_completion_every,
            counter::COMPLETE_EVENTS,
            out,
        );
        code.store(Width::Eight, R10, STACK_KEY, R6);
        code.map(R1, self.slots);
        code.copy(R2, R10);
        code.alu(Alu::Add, R2, i32::from(STACK_KEY));
        code.call(Helper::MapDelete);
        leave(&mut code, out);
        finish_plain(code, "hf_bio_complete", "btf_trace_block_bio_complete")
    }
}
