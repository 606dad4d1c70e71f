//! A minimal NBD client: reads an export from start to end.
//!
//! Owns the client side of the fixed newstyle handshake and simple reads (NBD protocol document, sections "Fixed newstyle
//! negotiation" and "Transmission phase"). Knows nothing of points. It exists so that the quickstart needs no NBD package;
//! the tests read exports with the NBD project's own clients.
//! Limit: [`READ_BYTES`] per request.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::unix::{fs::FileExt as _, net::UnixStream},
    path::Path,
};

/// Bytes asked for at a time.
pub const READ_BYTES: usize = 1 << 20;

const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const FLAG_FIXED_NEWSTYLE: u16 = 1;
const CLIENT_FIXED_NEWSTYLE: u32 = 1;
const OPTION_GO: u32 = 7;
const REPLY_ACKNOWLEDGED: u32 = 1;
const REPLY_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
const COMMAND_READ: u16 = 0;
const COMMAND_DISCONNECT: u16 = 2;

/// A connection in its transmission phase.
#[derive(Debug)]
pub struct NbdReader {
    stream: UnixStream,
    size_bytes: u64,
}

impl NbdReader {
    /// Connects to an export on a unix socket.
    ///
    /// # Errors
    /// The socket cannot be reached, the server speaks another protocol, or it does not have the export.
    pub fn connect(socket: &Path, export: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        if read_u64(&mut stream)? != INIT_MAGIC || read_u64(&mut stream)? != OPTION_MAGIC {
            return Err(protocol("the server does not speak NBD"));
        }
        if read_u16(&mut stream)? & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(protocol("the server does not speak fixed newstyle NBD"));
        }
        let mut hello = CLIENT_FIXED_NEWSTYLE.to_be_bytes().to_vec();
        let name_bytes = u32::try_from(export.len()).map_err(|_| protocol("export name is too long"))?;
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(OPTION_GO.to_be_bytes());
        hello.extend((name_bytes + 6).to_be_bytes());
        hello.extend(name_bytes.to_be_bytes());
        hello.extend(export.as_bytes());
        hello.extend(0u16.to_be_bytes());
        stream.write_all(&hello)?;
        let size_bytes = read_go_reply(&mut stream)?;
        Ok(Self { stream, size_bytes })
    }

    /// Size of the export in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// The server reports an error for the range, or the connection broke.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let length = u32::try_from(buffer.len()).map_err(|_| protocol("read is too long"))?;
        self.request(COMMAND_READ, offset, length)?;
        if read_u32(&mut self.stream)? != SIMPLE_REPLY_MAGIC {
            return Err(protocol("unexpected reply"));
        }
        let error = read_u32(&mut self.stream)?;
        read_u64(&mut self.stream)?;
        if error != 0 {
            let code = i32::try_from(error).unwrap_or(i32::MAX);
            return Err(io::Error::from_raw_os_error(code));
        }
        self.stream.read_exact(buffer)
    }

    /// Copies the whole export into a new file and leaves zeroes as holes.
    ///
    /// # Errors
    /// Reading or writing failed.
    pub fn copy_to(&mut self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        file.set_len(self.size_bytes)?;
        let mut buffer = vec![0; READ_BYTES];
        let mut offset = 0;
        while offset < self.size_bytes {
            let length = (self.size_bytes - offset).min(READ_BYTES as u64);
            let part = buffer.get_mut(..usize::try_from(length).unwrap_or(READ_BYTES)).unwrap_or_default();
            self.read(offset, part)?;
            if part.iter().any(|byte| *byte != 0) {
                file.write_all_at(part, offset)?;
            }
            offset += length;
        }
        self.request(COMMAND_DISCONNECT, 0, 0)
    }

    fn request(&mut self, command: u16, offset: u64, length: u32) -> io::Result<()> {
        let mut request = REQUEST_MAGIC.to_be_bytes().to_vec();
        request.extend(0u16.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        self.stream.write_all(&request)
    }
}

/// Reads replies to the GO option until it is acknowledged; returns the export's size.
fn read_go_reply(stream: &mut UnixStream) -> io::Result<u64> {
    let mut size_bytes = None;
    loop {
        if read_u64(stream)? != OPTION_REPLY_MAGIC {
            return Err(protocol("unexpected reply to the option"));
        }
        read_u32(stream)?;
        let kind = read_u32(stream)?;
        let length = read_u32(stream)?;
        let mut payload = vec![0; usize::try_from(length.min(1 << 16)).unwrap_or(0)];
        stream.read_exact(&mut payload)?;
        match kind {
            REPLY_ACKNOWLEDGED => return size_bytes.ok_or_else(|| protocol("the server gave no size")),
            REPLY_INFO if payload.starts_with(&INFO_EXPORT.to_be_bytes()) => {
                let size = payload.get(2..10).and_then(|bytes| bytes.try_into().ok());
                size_bytes = size.map(u64::from_be_bytes);
            }
            REPLY_INFO => {}
            _ => return Err(protocol(&format!("refused: {}", String::from_utf8_lossy(&payload)))),
        }
    }
}

fn protocol(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

fn read_u16(stream: &mut UnixStream) -> io::Result<u16> {
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}

fn read_u32(stream: &mut UnixStream) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u64(stream: &mut UnixStream) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}
