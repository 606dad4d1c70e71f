//! What an initramfs holds: the kernel modules in it.
//!
//! Owns the decoding of archives one after the other (early microcode, then the rest), each plain or compressed. Limits:
//! [`UNPACKED_BYTES_MAX`] unpacked, [`NAMES_MAX`] names.
//! Format: the kernel's buffer-format.rst: cpio "newc" (070701, 070702), padded to 4; zstd, gzip, xz around it.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, BufReader, Read},
};

/// Most bytes that are unpacked.
pub const UNPACKED_BYTES_MAX: u64 = 1 << 30;
/// Most names.
const NAMES_MAX: usize = 100_000;
/// Most bytes of a name.
const NAME_BYTES_MAX: u64 = 4096;
/// Memory for unpacking, in KiB.
const XZ_MEMORY_KIB: u32 = 128 << 10;
/// 2 to this power is the longest distance that zstd may look back.
const ZSTD_WINDOW_LOG: u32 = 27;
/// Most bytes of a list of built-in modules.
const LIST_BYTES_MAX: u64 = 1 << 20;
/// Bytes of an entry's head.
const HEAD: usize = 110;

/// The modules in an initramfs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modules {
    /// Names as the kernel has them ("virtio_blk").
    pub files: BTreeSet<String>,
    /// Those that its own lists say are in the kernel.
    pub built_in: BTreeSet<String>,
}

/// Finds the modules.
///
/// # Errors
/// It is packed in a way that is not known here, or damaged.
pub fn modules(bytes: &[u8]) -> Result<Modules, String> {
    let mut found = Modules::default();
    let mut rest = bytes;
    let mut archives = 0;
    loop {
        // Archives are padded with zeroes to where the next one begins.
        let zeroes = rest.iter().take_while(|byte| **byte == 0).count();
        rest = rest.get(zeroes..).unwrap_or_default();
        if rest.is_empty() {
            return if archives == 0 { Err("it is empty".to_owned()) } else { Ok(found) };
        }
        archives += 1;
        if rest.starts_with(b"07070") {
            let mut plain = rest;
            archive(&mut plain, &mut found)?;
            rest = plain;
            continue;
        }
        // A compressed part is the last one that matters.
        let mut unpacked = unpacker(rest)?.take(UNPACKED_BYTES_MAX);
        while next_archive(&mut unpacked)? {
            archive(&mut unpacked, &mut found)?;
        }
        return Ok(found);
    }
}

fn unpacker(bytes: &[u8]) -> Result<BufReader<Box<dyn Read + '_>>, String> {
    let reader: Box<dyn Read + '_> = if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::stream::read::Decoder::new(bytes).map_err(text)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(text)?;
        Box::new(decoder)
    } else if bytes.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::read::MultiGzDecoder::new(bytes))
    } else if bytes.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        Box::new(lzma_rust2::XzReader::new_mem_limit(bytes, true, XZ_MEMORY_KIB))
    } else {
        return Err(
            "it is packed in a way that is not known here (known are zstd, gzip, xz and none)".to_owned()
        );
    };
    Ok(BufReader::with_capacity(64 << 10, reader))
}

fn text(error: io::Error) -> String {
    format!("it cannot be unpacked: {error}")
}

/// Passes over padding; whether an archive follows.
fn next_archive(reader: &mut impl BufRead) -> Result<bool, String> {
    loop {
        let buffer = match reader.fill_buf() {
            Ok(buffer) => buffer,
            // What follows the last archive is nobody's (a signature, padding of the medium).
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(false),
            Err(error) => return Err(text(error)),
        };
        if buffer.is_empty() {
            return Ok(false);
        }
        let zeroes = buffer.iter().take_while(|byte| **byte == 0).count();
        if zeroes < buffer.len() {
            reader.consume(zeroes);
            return Ok(true);
        }
        reader.consume(zeroes);
    }
}

/// Reads one archive to its end.
fn archive(reader: &mut impl Read, found: &mut Modules) -> Result<(), String> {
    for _ in 0..NAMES_MAX {
        let mut head = [0; HEAD];
        reader.read_exact(&mut head).map_err(text)?;
        if !head.starts_with(b"070701") && !head.starts_with(b"070702") {
            return Err("it is no archive that a kernel knows".to_owned());
        }
        let (size, name_bytes) = (field(&head, 6)?, field(&head, 11)?);
        if name_bytes > NAME_BYTES_MAX {
            return Err("it has a name without an end".to_owned());
        }
        // Head and name together are padded to 4, and so is the content.
        let padded = (HEAD as u64 + name_bytes).next_multiple_of(4) - HEAD as u64;
        let mut name = vec![0; usize::try_from(padded).unwrap_or(0)];
        reader.read_exact(&mut name).map_err(text)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        if name == "TRAILER!!!" {
            return Ok(());
        }
        let is_list = name.ends_with("/modules.builtin") && size <= LIST_BYTES_MAX;
        let mut content = Vec::new();
        let padded = size.next_multiple_of(4);
        let passed = if is_list {
            reader.by_ref().take(padded).read_to_end(&mut content).map(|read| read as u64)
        } else {
            io::copy(&mut reader.by_ref().take(padded), &mut io::sink())
        };
        if passed.map_err(text)? < padded {
            return Err("it ends in the middle of a file".to_owned());
        }
        found.built_in.extend(String::from_utf8_lossy(&content).lines().filter_map(module));
        found.files.extend(module(&name));
    }
    Err(format!("it has more than {NAMES_MAX} files"))
}

/// A field of an entry's head: eight hexadecimal digits.
fn field(head: &[u8], number: usize) -> Result<u64, String> {
    let digits = head.get(6 + number * 8..14 + number * 8).unwrap_or_default();
    let digits = std::str::from_utf8(digits).map_err(|_| "a number in it is none")?;
    u64::from_str_radix(digits, 16).map_err(|_| "a number in it is none".to_owned())
}

/// The module of a file ("kernel/drivers/block/virtio_blk.ko.xz").
#[must_use]
pub fn module(path: &str) -> Option<String> {
    let name = path.trim().rsplit('/').next()?;
    let (stem, packed) = name.split_once(".ko")?;
    matches!(packed, "" | ".xz" | ".zst" | ".gz").then(|| stem.replace('-', "_"))
}
