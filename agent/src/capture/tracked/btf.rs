//! Reads the kernel's own type information (BTF), so that programs fit the kernel that runs.
//!
//! Owns the parsing of `/sys/kernel/btf/vmlinux`. Does not know programs or maps.
//! Invariant: every offset comes from the running kernel; nothing is guessed. Damaged input gives an error, no panic.
//! Limit: [`BTF_BYTES_MAX`] bytes are read.
//! Format: Linux, Documentation/bpf/btf.rst; little or big endian as the machine.

use std::{fs::File, io::Read as _, path::Path};

use thiserror::Error;

/// Where the kernel shows its types.
pub(super) const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";
/// Kernels of today have 5 to 10 MB.
const BTF_BYTES_MAX: u64 = 128 << 20;
const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNCTION: u32 = 12;
const KIND_PROTOTYPE: u32 = 13;
/// Anonymous members inside anonymous members; the kernel's structs need two or three.
const NESTING_MAX: u32 = 8;

/// Why the kernel's types cannot be used.
#[derive(Debug, Error)]
pub(super) enum BtfError {
    #[error("cannot read {BTF_PATH}")]
    Read(#[source] std::io::Error),
    #[error("the kernel's type information is damaged: {0}")]
    Damaged(&'static str),
    #[error("this kernel has no type `{0}`")]
    TypeMissing(String),
    #[error("this kernel's `{structure}` has no usable member `{member}`")]
    MemberMissing { structure: String, member: String },
}

/// The kernel's types.
#[derive(Debug)]
pub(super) struct KernelTypes {
    bytes: Vec<u8>,
    strings_start: usize,
    /// Position of each type record; the index is the type's id, id 0 (void) included.
    positions: Vec<usize>,
}

/// The three words that begin every type record.
struct Record {
    name: usize,
    kind: u32,
    length: usize,
    has_bit_fields: bool,
}

impl KernelTypes {
    /// Reads the types of the running kernel.
    pub(super) fn of_this_kernel() -> Result<Self, BtfError> {
        let mut bytes = Vec::new();
        File::open(Path::new(BTF_PATH))
            .and_then(|file| file.take(BTF_BYTES_MAX).read_to_end(&mut bytes))
            .map_err(BtfError::Read)?;
        Self::parse(bytes)
    }

    /// Finds all type records.
    pub(super) fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let damaged = BtfError::Damaged;
        let magic = bytes.get(0..2).and_then(|two| two.try_into().ok()).map(u16::from_ne_bytes);
        if magic != Some(MAGIC) {
            return Err(damaged("it does not begin with the magic number"));
        }
        let header =
            |at| word(&bytes, at).map(|value| value as usize).ok_or(damaged("its header is cut short"));
        let (header_bytes, types_offset, types_bytes, strings_offset) =
            (header(4)?, header(8)?, header(12)?, header(16)?);
        let start = header_bytes + types_offset;
        let end = start + types_bytes;
        if end > bytes.len() {
            return Err(damaged("its types are cut short"));
        }
        let mut types =
            Self { strings_start: header_bytes + strings_offset, positions: vec![usize::MAX], bytes };
        let mut position = start;
        while position < end {
            types.positions.push(position);
            let record = types.record(position).ok_or(damaged("a type is cut short"))?;
            position += 12 + trailing_bytes(&record).ok_or(damaged("it has an unknown kind of type"))?;
        }
        Ok(types)
    }

    /// Byte offset of a member in a struct, looked for through anonymous structs and unions.
    pub(super) fn offset(&self, structure: &str, member: &str) -> Result<i16, BtfError> {
        let id = self.find(structure, KIND_STRUCT)?;
        self.bit_offset(id, member, NESTING_MAX)
            .filter(|bits| bits % 8 == 0)
            .and_then(|bits| i16::try_from(bits / 8).ok())
            .ok_or_else(|| BtfError::MemberMissing { structure: structure.into(), member: member.into() })
    }

    /// Id of a typedef.
    pub(super) fn typedef(&self, name: &str) -> Result<u32, BtfError> {
        let id = self.find(name, KIND_TYPEDEF)?;
        u32::try_from(id).map_err(|_| BtfError::Damaged("it has too many types"))
    }

    /// Number of a function's parameters; `None` if the kernel names no such function.
    pub(super) fn parameters(&self, function: &str) -> Option<usize> {
        let at = *self.positions.get(self.find(function, KIND_FUNCTION).ok()?)?;
        let prototype = *self.positions.get(word(&self.bytes, at.checked_add(8)?)? as usize)?;
        self.record(prototype).filter(|record| record.kind == KIND_PROTOTYPE).map(|record| record.length)
    }

    fn find(&self, name: &str, kind: u32) -> Result<usize, BtfError> {
        self.positions
            .iter()
            .skip(1)
            .position(|&at| {
                self.record(at).is_some_and(|record| record.kind == kind && self.is_named(record.name, name))
            })
            .map(|index| index + 1)
            .ok_or_else(|| BtfError::TypeMissing(name.into()))
    }

    /// Bit offset of `member`; members that are bit fields are not found.
    fn bit_offset(&self, id: usize, member: &str, nesting: u32) -> Option<u32> {
        let at = *self.positions.get(id)?;
        let record = self.record(at).filter(|record| matches!(record.kind, KIND_STRUCT | KIND_UNION))?;
        (0..record.length).find_map(|index| {
            let entry = at + 12 + index * 12;
            let name = word(&self.bytes, entry)? as usize;
            let kind = word(&self.bytes, entry + 4)? as usize;
            let packed = word(&self.bytes, entry + 8)?;
            let (bits, is_bit_field) = if record.has_bit_fields {
                (packed & 0x00ff_ffff, packed >> 24 != 0)
            } else {
                (packed, false)
            };
            if name != 0 && self.is_named(name, member) {
                return (!is_bit_field).then_some(bits);
            }
            let is_anonymous = self.is_named(name, "");
            let inner = (is_anonymous && nesting > 0).then(|| self.bit_offset(kind, member, nesting - 1));
            inner.flatten().and_then(|inner| bits.checked_add(inner))
        })
    }

    fn record(&self, at: usize) -> Option<Record> {
        let info = word(&self.bytes, at.checked_add(4)?)?;
        Some(Record {
            name: word(&self.bytes, at)? as usize,
            kind: info >> 24 & 0x1f,
            length: (info & 0xffff) as usize,
            has_bit_fields: info >> 31 == 1,
        })
    }

    fn is_named(&self, offset: usize, name: &str) -> bool {
        let from = self.strings_start + offset;
        self.bytes.get(from..from + name.len()) == Some(name.as_bytes())
            && self.bytes.get(from + name.len()) == Some(&0)
    }
}

/// Reads bytes as a kernel's types, and looks for what programs look for.
pub(super) fn decode_any(bytes: &[u8]) {
    if let Ok(types) = KernelTypes::parse(bytes.to_vec()) {
        let _ = types.offset("request", "bio");
        let _ = types.typedef("btf_trace_block_rq_issue");
        let _ = types.parameters("bdev_end_io_acct");
    }
}

/// Bytes that follow the three common words, by kind.
fn trailing_bytes(record: &Record) -> Option<usize> {
    Some(match record.kind {
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Struct, union, section, 64-bit enumeration.
        KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * record.length,
        // Enumeration, function prototype.
        6 | KIND_PROTOTYPE => 8 * record.length,
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=KIND_FUNCTION | 16 | 18 => 0,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests;
