//! Files of an NTFS, by their paths.
//!
//! Owns the guard around the `ntfs` crate, which panics on some damage: a panic is an error here. Reads through the look's
//! budget, so that circles on the disk end; what it would allocate by the disk's word is looked at first. Does not replay
//! `$LogFile`: files are as the last whole write of their records left them. Limits: [`FILE_BYTES_MAX`] per file,
//! [`RECORD_BYTES_MAX`] per record.

use std::{
    fmt,
    io::{self, BufReader, Read, Seek, SeekFrom},
    panic::{self, AssertUnwindSafe},
};

use ::ntfs::{
    Ntfs, NtfsAttributeFlags, NtfsAttributeType, NtfsFile, NtfsFileFlags, NtfsReadSeek as _,
    indexes::NtfsFileNameIndex, structured_values::NtfsIndexRoot,
};

use super::{
    bytes::{Part, Source as _},
    volumes::FILE_BYTES_MAX,
};

/// Most bytes of a file's or a directory's record (usual are 1 and 4 KiB).
const RECORD_BYTES_MAX: u32 = 64 << 10;
/// Bytes that are read at once for small fields.
const BUFFER_BYTES: usize = 4096;

/// An NTFS.
pub struct NtfsVolume {
    ntfs: Ntfs,
    part: Part,
}

impl fmt::Debug for NtfsVolume {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("NtfsVolume")
    }
}

impl NtfsVolume {
    /// Opens it.
    ///
    /// # Errors
    /// It is no NTFS, or damaged.
    pub fn open(part: &Part) -> Result<Self, String> {
        guarded(|| {
            let mut disk = reader(part);
            let mut ntfs = Ntfs::new(&mut disk).map_err(text)?;
            sound_record(ntfs.file_record_size())?;
            ntfs.read_upcase_table(&mut disk).map_err(text)?;
            Ok(Self { ntfs, part: part.clone() })
        })
    }

    /// Whether there is something of this name; parts are separated by `\`, case does not matter.
    ///
    /// # Errors
    /// A directory on the way is damaged.
    pub fn has(&self, path: &str) -> Result<bool, String> {
        guarded(|| Ok(self.find(&mut reader(&self.part), path)?.is_some()))
    }

    /// The content of a file; `None` if there is none.
    ///
    /// # Errors
    /// It is larger than [`FILE_BYTES_MAX`], compressed, encrypted or damaged.
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>, String> {
        guarded(|| {
            let mut disk = reader(&self.part);
            let Some(file) = self.find(&mut disk, path)? else { return Ok(None) };
            let Some(item) = file.data(&mut disk, "") else { return Ok(None) };
            let item = item.map_err(text)?;
            let attribute = item.to_attribute().map_err(text)?;
            if attribute.flags().intersects(NtfsAttributeFlags::COMPRESSED | NtfsAttributeFlags::ENCRYPTED) {
                return Err("it is compressed or encrypted".to_owned());
            }
            let length = attribute.value_length();
            if length > FILE_BYTES_MAX {
                return Err(format!("it has {length} bytes, too many to be looked into"));
            }
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            let mut value = attribute.value(&mut disk).map_err(text)?;
            value.read_exact(&mut disk, &mut bytes).map_err(text)?;
            Ok(Some(bytes))
        })
        .map_err(|error| format!("{path}: {error}"))
    }

    fn find(&self, disk: &mut Reader, path: &str) -> Result<Option<NtfsFile<'_>>, String> {
        let mut file = self.ntfs.root_directory(disk).map_err(text)?;
        for name in path.split('\\').filter(|name| !name.is_empty()) {
            if !file.is_directory() {
                return Ok(None);
            }
            let next = {
                sound_index(&file, disk)?;
                let index = file.directory_index(disk).map_err(text)?;
                let mut finder = index.finder();
                let Some(entry) = NtfsFileNameIndex::find(&mut finder, &self.ntfs, disk, name) else {
                    return Ok(None);
                };
                let reference = entry.map_err(text)?.file_reference();
                let next = reference.to_file(&self.ntfs, disk).map_err(text)?;
                let is_it = next.sequence_number() == reference.sequence_number()
                    && next.flags().contains(NtfsFileFlags::IN_USE);
                if !is_it {
                    return Err(format!("the directory's entry of {name} leads to another file"));
                }
                next
            };
            file = next;
        }
        Ok(Some(file))
    }
}

/// What a directory says of its records' size is what would be allocated for each.
fn sound_index(folder: &NtfsFile<'_>, disk: &mut Reader) -> Result<(), String> {
    let mut attributes = folder.attributes();
    while let Some(item) = attributes.next(disk) {
        let item = item.map_err(text)?;
        let attribute = item.to_attribute().map_err(text)?;
        if attribute.ty().map_err(text)? == NtfsAttributeType::IndexRoot {
            let root = attribute.resident_structured_value::<NtfsIndexRoot<'_>>().map_err(text)?;
            sound_record(root.index_record_size())?;
        }
    }
    Ok(())
}

fn sound_record(bytes: u32) -> Result<(), String> {
    if bytes > RECORD_BYTES_MAX {
        return Err(format!("its records would have {bytes} bytes each"));
    }
    Ok(())
}

fn text(error: ::ntfs::NtfsError) -> String {
    error.to_string()
}

/// Turns a panic of the crate into an error. Nothing that it may have left half done is used again.
fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err("it is damaged in a way that its reader could not cope with".to_owned()))
}

type Reader = BufReader<Position>;

fn reader(part: &Part) -> Reader {
    BufReader::with_capacity(BUFFER_BYTES, Position { part: part.clone(), at: 0 })
}

/// A part of a disk with a place in it.
struct Position {
    part: Part,
    at: u64,
}

impl Read for Position {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.part.size_bytes().saturating_sub(self.at);
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let Some(buffer) = buffer.get_mut(..count).filter(|buffer| !buffer.is_empty()) else { return Ok(0) };
        self.part.read(self.at, buffer).map_err(io::Error::other)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Position {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        let at = match position {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.part.size_bytes().checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
