//! A small assembler for eBPF: instructions, labels, references to maps and functions.
//!
//! Owns the encoding of instructions. Does not know what programs do or how they are loaded.
//! Invariant: every label that is used is placed, or [`Assembler::finish`] says which is not.
//! Limit: a jump reaches 32767 instructions.
//! Format: RFC 9669 (BPF instruction set), in the byte order of the machine.

use std::os::fd::{AsRawFd as _, BorrowedFd};

/// A register. `R0` result, `R1`-`R5` arguments (lost in calls), `R6`-`R9` kept, `R10` end of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// Width of a load or store.
#[derive(Clone, Copy, Debug)]
pub(super) enum Width {
    Four = 0x00,
    Eight = 0x18,
}

/// Arithmetic on 64 bits.
#[derive(Clone, Copy, Debug)]
pub(super) enum Alu {
    Add = 0x00,
    Subtract = 0x10,
    Or = 0x40,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Modulo = 0x90,
    Move = 0xb0,
}

/// Condition of a jump, unsigned.
#[derive(Clone, Copy, Debug)]
pub(super) enum Condition {
    Equal = 0x10,
    Greater = 0x20,
    GreaterOrEqual = 0x30,
    AnyBitOf = 0x40,
    NotEqual = 0x50,
    Less = 0xa0,
    LessOrEqual = 0xb0,
}

/// Atomic operation on 8 bytes of memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Atomic {
    Add = 0x00,
    Or = 0x40,
    /// The register receives the old value; a full barrier.
    FetchAdd = 0x01,
    /// The register receives the old value; a full barrier.
    Exchange = 0xe1,
}

/// Functions of the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Helper {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    Loop = 181,
}

/// A place in the program, known before it is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

enum Fixup {
    Jump(usize, Label),
    Call(usize, Label),
}

/// Instructions so far.
#[derive(Default)]
pub(super) struct Assembler {
    code: Vec<[u8; 8]>,
    labels: Vec<Option<usize>>,
    fixups: Vec<Fixup>,
}

impl Assembler {
    /// A label that is placed later.
    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label stands for the next instruction.
    pub(super) fn place(&mut self, label: Label) {
        let here = self.code.len();
        if let Some(place) = self.labels.get_mut(label.0) {
            *place = Some(here);
        }
    }

    /// `to = *(from + offset)`
    pub(super) fn load(&mut self, width: Width, to: Register, from: Register, offset: i16) {
        self.emit(0x61 | width as u8, to, from, offset, 0);
    }

    /// `*(to + offset) = from`
    pub(super) fn store(&mut self, width: Width, to: Register, offset: i16, from: Register) {
        self.emit(0x63 | width as u8, to, from, offset, 0);
    }

    /// `to = to <operation> value`
    pub(super) fn alu(&mut self, operation: Alu, to: Register, value: i32) {
        self.emit(0x07 | operation as u8, to, Register::R0, 0, value);
    }

    /// `to = to <operation> from`
    pub(super) fn alu_register(&mut self, operation: Alu, to: Register, from: Register) {
        self.emit(0x0f | operation as u8, to, from, 0, 0);
    }

    /// `to = from`
    pub(super) fn copy(&mut self, to: Register, from: Register) {
        self.alu_register(Alu::Move, to, from);
    }

    /// `to = value`, all 64 bits.
    pub(super) fn constant(&mut self, to: Register, value: u64) {
        self.wide(to, 0, (value & 0xffff_ffff) as u32, (value >> 32) as u32);
    }

    /// `to = the map`
    pub(super) fn map(&mut self, to: Register, map: BorrowedFd<'_>) {
        self.wide(to, 1, map.as_raw_fd().cast_unsigned(), 0);
    }

    /// `to = address inside the only value of the map`
    pub(super) fn map_value(&mut self, to: Register, map: BorrowedFd<'_>, offset: u32) {
        self.wide(to, 2, map.as_raw_fd().cast_unsigned(), offset);
    }

    /// `to = the function at label`
    pub(super) fn function(&mut self, to: Register, label: Label) {
        self.fixups.push(Fixup::Call(self.code.len(), label));
        self.wide(to, 4, 0, 0);
    }

    /// Goes on at `target` if the condition holds.
    pub(super) fn jump_if(&mut self, condition: Condition, left: Register, right: i32, target: Label) {
        self.fixups.push(Fixup::Jump(self.code.len(), target));
        self.emit(0x05 | condition as u8, left, Register::R0, 0, right);
    }

    /// Goes on at `target` if the condition holds.
    pub(super) fn jump_if_register(
        &mut self,
        condition: Condition,
        left: Register,
        right: Register,
        target: Label,
    ) {
        self.fixups.push(Fixup::Jump(self.code.len(), target));
        self.emit(0x0d | condition as u8, left, right, 0, 0);
    }

    /// Goes on at `target`.
    pub(super) fn jump(&mut self, target: Label) {
        self.fixups.push(Fixup::Jump(self.code.len(), target));
        self.emit(0x05, Register::R0, Register::R0, 0, 0);
    }

    /// Atomic operation on `*(to + offset)` with `with`.
    pub(super) fn atomic(&mut self, operation: Atomic, to: Register, offset: i16, with: Register) {
        self.emit(0xdb, to, with, offset, operation as i32);
    }

    /// Calls a function of the kernel.
    pub(super) fn call(&mut self, helper: Helper) {
        self.emit(0x85, Register::R0, Register::R0, 0, helper as i32);
    }

    /// Calls a function of this program.
    pub(super) fn call_function(&mut self, label: Label) {
        self.fixups.push(Fixup::Call(self.code.len(), label));
        self.emit(0x85, Register::R0, Register::R1, 0, 0);
    }

    /// Returns.
    pub(super) fn exit(&mut self) {
        self.emit(0x95, Register::R0, Register::R0, 0, 0);
    }

    /// Where the next instruction stands.
    pub(super) fn position(&self) -> usize {
        self.code.len()
    }

    /// The finished instructions.
    ///
    /// # Errors
    /// A label was never placed, or a jump is too far: a mistake in the program's source.
    pub(super) fn finish(mut self) -> Result<Vec<[u8; 8]>, String> {
        for fixup in &self.fixups {
            let (Fixup::Jump(at, label) | Fixup::Call(at, label)) = *fixup;
            let place = self.labels.get(label.0).copied().flatten();
            let place = place.ok_or_else(|| format!("label {} was never placed", label.0))?;
            let distance = place.cast_signed() - at.cast_signed() - 1;
            let instruction = self.code.get_mut(at).ok_or("a reference points outside")?;
            if matches!(fixup, Fixup::Jump(..)) {
                let distance = i16::try_from(distance).map_err(|_| "a jump is too far".to_owned())?;
                instruction[2..4].copy_from_slice(&distance.to_ne_bytes());
            } else {
                let distance = i32::try_from(distance).map_err(|_| "a call is too far".to_owned())?;
                instruction[4..8].copy_from_slice(&distance.to_ne_bytes());
            }
        }
        Ok(self.code)
    }

    fn wide(&mut self, to: Register, source: u8, low: u32, high: u32) {
        self.push(0x18, to as u8 | source << 4, 0, low.cast_signed());
        self.push(0, 0, 0, high.cast_signed());
    }

    fn emit(&mut self, opcode: u8, to: Register, from: Register, offset: i16, value: i32) {
        self.push(opcode, to as u8 | (from as u8) << 4, offset, value);
    }

    fn push(&mut self, opcode: u8, registers: u8, offset: i16, value: i32) {
        let [offset_0, offset_1] = offset.to_ne_bytes();
        let [value_0, value_1, value_2, value_3] = value.to_ne_bytes();
        // On big-endian machines the two register fields change places.
        let registers = if cfg!(target_endian = "big") { registers.rotate_left(4) } else { registers };
        self.code.push([opcode, registers, offset_0, offset_1, value_0, value_1, value_2, value_3]);
    }
}

#[cfg(test)]
mod tests;
