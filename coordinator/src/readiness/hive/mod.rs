//! Keys and values of a registry hive (REGF), read-only.
//!
//! Owns the decoding of a primary file in memory; what had not reached it is brought in from its logs ([`log`]). Does not know
//! what any key means. Invariant: every offset is checked against the file, nothing recurses, and lists are cut off at their
//! limits, so that whatever the bytes are, each call ends soon. Limits: [`HIVE_BYTES_MAX`], [`KEYS_MAX`], [`VALUES_MAX`],
//! [`VALUE_BYTES_MAX`], [`NAME_BYTES_MAX`].
//!
//! Format, after "Windows registry file format specification" by Maxim Suhanov (`msuhanov/regf`); numbers are little-endian,
//! offsets of cells count from 4096, where the bins begin:
//!
//! ```text
//! base block, 4096 bytes
//!   0 "regf"   4 u32 number at the begin of the last write   8 u32 number at its end; differ: not all was written
//!  20 u32 major version, 1   24 u32 minor version   28 u32 file type, 0   32 u32 file format, 1
//!  36 u32 root key's cell   40 u32 bytes of the bins, a multiple of 4096
//! 508 u32 exclusive or of the 127 numbers before it (0 is written as 1, all ones as all ones less one)
//! bin:  0 "hbin" ... 32 cells, one after the other
//! cell: 0 i32 its bytes with these four, a multiple of 8; negative if in use   4 content:
//! key   0 "nk"   2 u16 flags, 0x20: name is Latin-1   20 u32 keys below   28 u32 cell of their list
//!      36 u32 values   40 u32 cell of their list (u32 cells)   72 u16 bytes of the name   76 name, else UTF-16
//! keys  0 "li" u16 count, then u32 cell each; "lf" or "lh": u32 cell and u32 hint each; "ri": u32 cell of a list (none of
//!       them "ri") each
//! value 0 "vk"   2 u16 bytes of the name, 0: the key's default   4 u32 bytes of the data, top bit: they are at 8
//!       8 u32 cell of the data   12 u32 type   16 u16 flags, 1: name is Latin-1   20 name, else UTF-16
//! data of more than 16344 bytes (minor version 4 and up): 0 "db" u16 count   4 u32 cell of a list of u32 cells, 16344 bytes
//!       in each but the last
//! ```

// Changes that had not reached the file.
pub mod log;

use super::bytes::{number, utf16_units};

/// Most bytes of a hive.
pub const HIVE_BYTES_MAX: usize = 256 << 20;
/// Most keys below one key.
pub const KEYS_MAX: usize = 1 << 16;
/// Most values of a key.
pub const VALUES_MAX: usize = 1 << 14;
/// Most bytes of a value's data.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Most bytes of a name. Values with longer names, which nobody looks for, are passed over.
pub const NAME_BYTES_MAX: usize = 1024;
/// Bytes of the base block.
const BASE_BYTES: usize = 4096;
/// Data that is longer is in segments of so many bytes.
const SEGMENT_BYTES: usize = 16_344;
const REG_SZ: u32 = 1;
const REG_EXPAND_SZ: u32 = 2;
const REG_DWORD: u32 = 4;
const REG_MULTI_SZ: u32 = 7;

/// A hive.
#[derive(Debug)]
pub struct Hive {
    /// All bins.
    bins: Vec<u8>,
    root: u32,
    /// Whether values may be in segments.
    has_segments: bool,
    state: State,
}

/// Whether the file holds all that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its last write had ended.
    Whole,
    /// Its last write had not ended; its logs had the rest.
    Replayed {
        /// Entries of the logs that were applied.
        entries: usize,
    },
    /// Its last write had not ended, and the logs do not have the rest: it is as some earlier moment left it.
    Unfinished {
        /// Why not.
        reason: String,
    },
}

impl Hive {
    /// Opens a hive. Logs may be empty or missing.
    ///
    /// # Errors
    /// It is no hive, cut off, or its base block is damaged.
    pub fn open(mut file: Vec<u8>, logs: &[Vec<u8>]) -> Result<Self, String> {
        let base = file.get(..BASE_BYTES).ok_or("it is too short for a registry hive")?;
        if !base.starts_with(b"regf") || number(base, 28..32) != 0 || number(base, 32..36) != 1 {
            return Err("it is no registry hive".to_owned());
        }
        if !has_good_sum(base) {
            return Err("its first block is damaged: the sum is wrong".to_owned());
        }
        let [begun, ended, minor, root] = [4, 8, 24, 36].map(|at| word(base, at));
        let bytes = usize::try_from(number(base, 40..44)).unwrap_or(usize::MAX);
        if bytes > HIVE_BYTES_MAX || !bytes.is_multiple_of(4096) {
            return Err(format!("it would have {bytes} bytes"));
        }
        if file.len() < BASE_BYTES + bytes {
            return Err("it is cut off".to_owned());
        }
        file.truncate(BASE_BYTES + bytes);
        file.drain(..BASE_BYTES);
        let state = if begun == ended { State::Whole } else { log::replay(&mut file, begun, logs) };
        Ok(Self { bins: file, root, has_segments: minor >= 4, state })
    }

    /// Whether a file's last write had not ended, so that its logs are needed.
    #[must_use]
    pub fn lacks_changes(file: &[u8]) -> bool {
        number(file, 4..8) != number(file, 8..12)
    }

    /// Whether it holds all that was written.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The topmost key.
    ///
    /// # Errors
    /// It is damaged.
    pub fn root(&self) -> Result<Key<'_>, String> {
        self.key_at(self.root)
    }

    /// A key by its path from the topmost one, its parts separated by `\`, whatever their case; `None` if there is none.
    ///
    /// # Errors
    /// A key on the way is damaged.
    pub fn key(&self, path: &str) -> Result<Option<Key<'_>>, String> {
        let mut key = self.root()?;
        for name in path.split('\\') {
            let Some(next) = key.child(name).map_err(|error| format!("{path}: {error}"))? else {
                return Ok(None);
            };
            key = next;
        }
        Ok(Some(key))
    }

    /// A value by its key's path and its name; `None` if either is missing.
    ///
    /// # Errors
    /// Something on the way is damaged.
    pub fn value(&self, path: &str, name: &str) -> Result<Option<Value>, String> {
        let Some(key) = self.key(path)? else { return Ok(None) };
        key.value(name).map_err(|error| format!("{path}: {error}"))
    }

    /// A number by its key's path and its name; `None` if either is missing, or it is none.
    ///
    /// # Errors
    /// As [`Self::value`].
    pub fn number(&self, path: &str, name: &str) -> Result<Option<u32>, String> {
        Ok(self.value(path, name)?.and_then(|value| value.number()))
    }

    /// The content of a cell that is in use.
    fn cell(&self, offset: u32) -> Result<&[u8], String> {
        let wrong = || format!("it refers to a cell at {offset:#x}, where none is");
        let at = usize::try_from(offset).map_err(|_| wrong())?;
        let head = self.bins.get(at..).and_then(<[u8]>::first_chunk::<4>).ok_or_else(wrong)?;
        let size = i32::from_le_bytes(*head);
        let bytes = usize::try_from(size.unsigned_abs()).map_err(|_| wrong())?;
        if size >= 0 || !at.is_multiple_of(8) || bytes < 8 {
            return Err(wrong());
        }
        at.checked_add(bytes).and_then(|end| self.bins.get(at + 4..end)).ok_or_else(wrong)
    }

    fn key_at(&self, offset: u32) -> Result<Key<'_>, String> {
        let node = self.cell(offset)?;
        if !node.starts_with(b"nk") {
            return Err(format!("the cell at {offset:#x} is no key"));
        }
        let length = usize::try_from(number(node, 72..74)).unwrap_or(0);
        let name = node.get(76..76 + length).filter(|name| name.len() <= NAME_BYTES_MAX);
        let name = name.ok_or_else(|| format!("the key at {offset:#x} has a name without an end"))?;
        Ok(Key { hive: self, node, name })
    }
}

/// A key.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    hive: &'a Hive,
    node: &'a [u8],
    name: &'a [u8],
}

impl<'a> Key<'a> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        name(self.name, number(self.node, 2..4) & 0x20 != 0)
    }

    /// The keys below it.
    ///
    /// # Errors
    /// It is damaged, or has more than [`KEYS_MAX`].
    pub fn children(&self) -> Result<impl Iterator<Item = Result<Self, String>> + use<'a>, String> {
        let hive = self.hive;
        Ok(self.child_cells()?.into_iter().map(move |offset| hive.key_at(offset)))
    }

    /// A key below it, whatever the case of its name; `None` if there is none.
    ///
    /// # Errors
    /// It is damaged.
    pub fn child(&self, name: &str) -> Result<Option<Self>, String> {
        for key in self.children()? {
            let key = key?;
            if key.name().eq_ignore_ascii_case(name) {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// Its values.
    ///
    /// # Errors
    /// It is damaged, or has more than [`VALUES_MAX`].
    pub fn values(&self) -> Result<Vec<Value>, String> {
        self.values_named(|_| true)
    }

    /// A value, whatever the case of its name; `None` if there is none.
    ///
    /// # Errors
    /// It is damaged.
    pub fn value(&self, name: &str) -> Result<Option<Value>, String> {
        Ok(self.values_named(|found| found.eq_ignore_ascii_case(name))?.into_iter().next())
    }

    fn values_named(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Value>, String> {
        let count = usize::try_from(number(self.node, 36..40)).unwrap_or(usize::MAX);
        if count == 0 {
            return Ok(Vec::new());
        }
        if count > VALUES_MAX {
            return Err(format!("it has {count} values"));
        }
        let list = self.hive.cell(word(self.node, 40))?;
        let list = list.get(..count * 4).ok_or("its list of values is cut off")?;
        let mut values = Vec::new();
        for at in (0..count).map(|index| index * 4) {
            let cell = self.hive.cell(word(list, at))?;
            if !cell.starts_with(b"vk") {
                return Err("one of its values is none".to_owned());
            }
            let length = usize::try_from(number(cell, 2..4)).unwrap_or(0);
            if length > NAME_BYTES_MAX {
                continue;
            }
            let bytes = cell.get(20..20 + length).ok_or("one of its values has a name without an end")?;
            let name = name(bytes, number(cell, 16..18) & 1 != 0);
            if wanted(&name) {
                let kind = word(cell, 12);
                let data = self.data(cell).map_err(|error| format!("value {name}: {error}"))?;
                values.push(Value { name, kind, data });
            }
        }
        Ok(values)
    }

    fn data(&self, value: &[u8]) -> Result<Vec<u8>, String> {
        let size = word(value, 4);
        let bytes = usize::try_from(size & 0x7fff_ffff).unwrap_or(usize::MAX);
        let cut = "its data is cut off";
        if size & 0x8000_0000 != 0 {
            return value.get(8..12).and_then(|data| data.get(..bytes)).map(<[u8]>::to_vec).ok_or(cut.into());
        }
        if bytes > VALUE_BYTES_MAX {
            return Err(format!("it has {bytes} bytes"));
        }
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let cell = self.hive.cell(word(value, 8))?;
        if !(self.hive.has_segments && bytes > SEGMENT_BYTES && cell.starts_with(b"db")) {
            return cell.get(..bytes).map(<[u8]>::to_vec).ok_or(cut.into());
        }
        let list = self.hive.cell(word(cell, 4))?;
        let mut data = Vec::with_capacity(bytes);
        for at in (0..bytes.div_ceil(SEGMENT_BYTES)).map(|index| index * 4) {
            let segment = self.hive.cell(word(list.get(..at + 4).ok_or(cut)?, at))?;
            let wanted = SEGMENT_BYTES.min(bytes - data.len());
            data.extend_from_slice(segment.get(..wanted).ok_or(cut)?);
        }
        Ok(data)
    }

    fn child_cells(&self) -> Result<Vec<u32>, String> {
        let mut cells = Vec::new();
        if number(self.node, 20..24) == 0 {
            return Ok(cells);
        }
        let list = self.hive.cell(word(self.node, 28))?;
        if list.starts_with(b"ri") {
            for leaf in elements(list, 4)? {
                leaf_cells(self.hive.cell(leaf)?, &mut cells)?;
            }
        } else {
            leaf_cells(list, &mut cells)?;
        }
        Ok(cells)
    }
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Its name; empty for the key's default.
    pub name: String,
    /// Its type, as Windows numbers them.
    pub kind: u32,
    /// Its data.
    pub data: Vec<u8>,
}

impl Value {
    /// The number, if it is a DWORD.
    #[must_use]
    pub fn number(&self) -> Option<u32> {
        let bytes = self.data.first_chunk::<4>().filter(|_| self.kind == REG_DWORD && self.data.len() == 4);
        bytes.map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// The text, if it is one; variables in it are left as they are.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        let is_text = matches!(self.kind, REG_SZ | REG_EXPAND_SZ);
        is_text.then(|| name(&self.data, false).split('\0').next().unwrap_or_default().to_owned())
    }

    /// The texts, if it is a list of them.
    #[must_use]
    pub fn texts(&self) -> Vec<String> {
        if self.kind != REG_MULTI_SZ {
            return Vec::new();
        }
        let texts = name(&self.data, false);
        texts.split('\0').filter(|text| !text.is_empty()).map(str::to_owned).collect()
    }
}

/// The cells that a list of keys names.
fn leaf_cells(list: &[u8], cells: &mut Vec<u32>) -> Result<(), String> {
    let step = match list.get(..2) {
        Some(b"li") => 4,
        Some(b"lf" | b"lh") => 8,
        _ => return Err("its list of keys is none".to_owned()),
    };
    cells.extend(elements(list, step)?);
    if cells.len() > KEYS_MAX {
        return Err(format!("it has more than {KEYS_MAX} keys"));
    }
    Ok(())
}

/// The first number of each element.
fn elements(list: &[u8], step: usize) -> Result<impl Iterator<Item = u32>, String> {
    let count = usize::try_from(number(list, 2..4)).unwrap_or(0);
    let elements = list.get(4..4 + count * step).ok_or("its list of keys is cut off")?;
    Ok(elements.chunks_exact(step).map(|element| word(element, 0)))
}

/// The number at a place; zero beyond the end.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::try_from(number(bytes, at..at + 4)).unwrap_or(0)
}

fn name(bytes: &[u8], is_latin: bool) -> String {
    if is_latin {
        return bytes.iter().copied().map(char::from).collect();
    }
    char::decode_utf16(utf16_units(bytes)).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// The sum of a base block, as it is stored.
#[must_use]
pub fn sum(base: &[u8]) -> u32 {
    let numbers = base.get(..508).unwrap_or_default().as_chunks::<4>().0;
    match numbers.iter().fold(0, |sum, bytes| sum ^ u32::from_le_bytes(*bytes)) {
        0 => 1,
        u32::MAX => u32::MAX - 1,
        sum => sum,
    }
}

fn has_good_sum(base: &[u8]) -> bool {
    base.get(508..512).is_some() && sum(base) == word(base, 508)
}
