//! A minimal client: proves that an export serves, by reading its first block as any client would.
//!
//! Owns its connection. Invariant: it returns only after an answer to a read came. Limit: `PROBE_DEADLINE`.

use std::{io, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use super::protocol::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, MAGIC_GREETING, MAGIC_OPTION, MAGIC_REQUEST, MAGIC_SIMPLE_REPLY,
    command, option,
};

/// Reads the first `bytes` bytes of an export and gives the error number of the answer (zero: read well).
///
/// # Errors
/// The server does not answer as it should.
pub(super) async fn first_read(socket: &Path, export: &str, bytes: u32) -> io::Result<u32> {
    match tokio::time::timeout(PROBE_DEADLINE, exchange(socket, export, bytes)).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the export did not answer in time")),
    }
}

async fn exchange(socket: &Path, export: &str, bytes: u32) -> io::Result<u32> {
    let mut stream = UnixStream::connect(socket).await?;
    expect(stream.read_u64().await? == MAGIC_GREETING && stream.read_u64().await? == MAGIC_OPTION)?;
    stream.read_u16().await?;
    // EXPORT_NAME is the shortest way: size (8) and flags (2) come back.
    let mut hello = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes().to_vec();
    hello.extend_from_slice(&MAGIC_OPTION.to_be_bytes());
    hello.extend_from_slice(&option::EXPORT_NAME.to_be_bytes());
    hello.extend_from_slice(&u32::try_from(export.len()).map_err(io::Error::other)?.to_be_bytes());
    hello.extend_from_slice(export.as_bytes());
    stream.write_all(&hello).await?;
    let size_bytes = stream.read_u64().await?;
    stream.read_u16().await?;
    expect(size_bytes >= u64::from(bytes))?;
    stream.write_all(&request(command::READ, bytes)).await?;
    expect(stream.read_u32().await? == MAGIC_SIMPLE_REPLY)?;
    let error = stream.read_u32().await?;
    expect(stream.read_u64().await? == 0)?;
    if error == 0 {
        stream.read_exact(&mut vec![0; bytes as usize]).await?;
    }
    stream.write_all(&request(command::DISCONNECT, 0)).await?;
    Ok(error)
}

/// A request at offset zero with cookie zero; layout in `transmission.rs`.
fn request(command: u16, bytes: u32) -> Vec<u8> {
    let mut header = MAGIC_REQUEST.to_be_bytes().to_vec();
    header.extend_from_slice(&[0; 2]);
    header.extend_from_slice(&command.to_be_bytes());
    header.extend_from_slice(&[0; 16]);
    header.extend_from_slice(&bytes.to_be_bytes());
    header
}

fn expect(held: bool) -> io::Result<()> {
    if held {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "unexpected answer of the server"))
    }
}

/// Time for the whole exchange; the first read may have to open and verify frames.
const PROBE_DEADLINE: Duration = Duration::from_secs(30);
