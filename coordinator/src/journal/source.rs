//! Positioned reading, from a file or from memory.
//!
//! Owns the trait and nothing else; recovery and readers are written against it, so that they can be tested and fuzzed
//! on bytes in memory. Invariant: reading changes nothing, not even a file position.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use bytes::BytesMut;

/// Bytes that can be read at any offset.
pub trait ReadAt {
    /// Number of bytes now.
    ///
    /// # Errors
    /// The file's metadata cannot be read.
    fn length(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// Fewer bytes are there ([`io::ErrorKind::UnexpectedEof`]), or they cannot be read.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Up to `count` bytes from `offset`; fewer at the end.
    ///
    /// # Errors
    /// The bytes cannot be read.
    fn read_up_to(&self, offset: u64, count: usize) -> io::Result<Vec<u8>> {
        let left = self.length()?.saturating_sub(offset);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(count);
        let mut bytes = vec![0; count];
        self.read_exact_at(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Like [`Self::read_up_to`], into memory that is there already: fresh memory costs more than reading.
    ///
    /// # Errors
    /// The bytes cannot be read.
    fn read_up_to_into(&self, offset: u64, count: usize, bytes: &mut BytesMut) -> io::Result<()> {
        let read = self.read_up_to(offset, count)?;
        bytes.clear();
        bytes.extend_from_slice(&read);
        Ok(())
    }
}

impl ReadAt for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, offset)
    }

    fn read_up_to(&self, offset: u64, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        let filled = fill(self, offset, &mut bytes)?;
        bytes.truncate(filled);
        Ok(bytes)
    }

    fn read_up_to_into(&self, offset: u64, count: usize, bytes: &mut BytesMut) -> io::Result<()> {
        bytes.resize(count, 0);
        let filled = fill(self, offset, bytes)?;
        bytes.truncate(filled);
        Ok(())
    }
}

/// Reads until the buffer is full or the file ends; gives the bytes read.
fn fill(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl ReadAt for [u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        let found = self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }
}
