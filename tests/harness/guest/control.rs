//! Commands inside a machine, over its second serial line.
//!
//! Owns the socket and the line protocol; the other end is `files/control`. Does not know QEMU or disks.
//! Invariant: an answer is matched to its request by number, so that a late one is not taken for the next.
//! Limit: a request is one line of at most [`LINE_BYTES_MAX`]; the guest cuts the output to its last 256 KiB.
//! Format: see `files/control`.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use holdfast_common::clock::{Clock as _, SystemClock};

/// What a command in the guest came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Exit code of the script.
    pub code: i32,
    /// Both its streams.
    pub output: String,
}

/// Longest request: the guest's serial line has no flow control, so that a line must fit into the kernel's buffers.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// How often a wait looks at its deadline.
const STEP: Duration = Duration::from_millis(100);

/// Our end of the second serial line.
#[derive(Debug)]
pub(super) struct Control {
    stream: UnixStream,
    received: Vec<u8>,
    next_number: u64,
    clock: SystemClock,
}

impl Control {
    /// Connects to QEMU's socket, which appears a moment after its start.
    pub(super) fn connect(socket: &Path, limit: Duration) -> Result<Self> {
        let clock = SystemClock::new();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if clock.monotonic() >= limit => {
                    return Err(error).context("QEMU did not open its serial line");
                }
                Err(_) => thread::sleep(STEP),
            }
        };
        stream.set_read_timeout(Some(STEP))?;
        Ok(Self { stream, received: Vec::new(), next_number: 1, clock })
    }

    /// Waits until the guest takes commands.
    pub(super) fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let deadline = self.clock.monotonic() + limit;
        // A firmware may have written to this line before, without an end.
        while !self.line(deadline).context("waiting for the guest to come up")?.contains("ready ") {}
        Ok(())
    }

    /// Runs a bash script in the guest to its end.
    pub(super) fn run(&mut self, script: &str, limit: Duration) -> Result<Outcome> {
        let number = self.next_number;
        self.next_number += 1;
        let request = format!("run {number} {}\n", base64_encode(script.as_bytes()));
        ensure!(request.len() <= LINE_BYTES_MAX, "a guest script of {} bytes is too long", script.len());
        self.stream.write_all(request.as_bytes()).context("sending a command to the guest")?;
        let deadline = self.clock.monotonic() + limit;
        loop {
            let line = self.line(deadline).with_context(|| format!("waiting for the guest's: {script}"))?;
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("done"), Some(answered), Some(code), Some(output))
                    if answered == number.to_string() =>
                {
                    let output = if output == "-" { Vec::new() } else { base64_decode(output)? };
                    let output = String::from_utf8_lossy(&output).into_owned();
                    return Ok(Outcome { code: code.parse().context("an exit code")?, output });
                }
                (Some("ready"), ..) => bail!("the guest started anew while it ran: {script}"),
                _ => {}
            }
        }
    }

    /// The next line from the guest, without its end.
    fn line(&mut self, deadline: Duration) -> Result<String> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim().to_owned());
            }
            ensure!(self.clock.monotonic() < deadline, "no answer within the time limit");
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!("QEMU has ended"),
                Ok(count) => self.received.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error).context("reading the guest's serial line"),
            }
        }
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648 base64 with padding.
fn base64_encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for position in 0..4 {
            let digit = (group >> (18 - 6 * position)) & 63;
            text.push(if position <= chunk.len() { char::from(ALPHABET[digit as usize]) } else { '=' });
        }
    }
    text
}

/// The reverse; padding and other characters end the text.
fn base64_decode(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut group, mut bits) = (0_u32, 0);
    for character in text.bytes().take_while(|character| *character != b'=') {
        let digit = ALPHABET.iter().position(|letter| *letter == character);
        let digit = digit.with_context(|| format!("byte {character:#x} in the guest's base64"))?;
        group = group << 6 | u32::try_from(digit)?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from((group >> bits) & 255)?);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
