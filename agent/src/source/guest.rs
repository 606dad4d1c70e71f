//! The source as a guest of QEMU on this agent's host: shut down over QEMU's control channel, and switched on again.
//!
//! Owns one connection per call. Does not start QEMU, nor end it: a guest that was shut down is switched on again only where its
//! QEMU has stayed (`-no-shutdown`).
//! Limits: [`LINE_BYTES_MAX`] per message, [`ANSWER_MAX`] per answer, the caller's limit for the guest.
//! Format: QEMU Machine Protocol, docs/interop/qmp-spec.txt: JSON objects, one per line here.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use holdfast_common::clock::Clock;
use serde_json::Value;

const LINE_BYTES_MAX: u64 = 4 << 20;
/// Longest time for QEMU to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Time between two looks whether the guest is off.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// What QEMU says of a guest that is off.
const OFF: &str = "shutdown";

/// A guest that is the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// QEMU's control channel, a unix socket of nobody else.
    pub socket: PathBuf,
    /// Longest time to shut down.
    pub limit: Duration,
}

/// Why nothing came back.
enum Lost {
    /// QEMU has ended.
    Ended,
    /// Anything else, in words.
    Other(String),
}

impl Guest {
    /// Presses its power button, and waits until it is off.
    ///
    /// # Errors
    /// It cannot be reached, or is not off in time; the text says what to do.
    pub fn shut_down(&self, at_most: Duration, clock: &dyn Clock) -> Result<String, String> {
        let limit = self.limit.min(at_most);
        let begun = clock.monotonic();
        let mut qemu = Qemu::connect(&self.socket)?;
        match qemu.status().map_err(Lost::into_text)?.as_str() {
            OFF => return Ok("its guest was off already".to_owned()),
            "running" => {}
            other => {
                return Err(format!(
                    "its guest is {other}, and cannot shut down; let it go on, or end its QEMU"
                ));
            }
        }
        qemu.execute("system_powerdown").map_err(Lost::into_text)?;
        loop {
            match qemu.status() {
                Ok(status) if status != OFF => {}
                Ok(_) | Err(Lost::Ended) => break,
                Err(lost) => return Err(lost.into_text()),
            }
            if clock.monotonic().saturating_sub(begun) >= limit {
                return Err(format!(
                    "its guest was not off {} s after its power button was pressed: something in it has to listen to that \
                     (systemd-logind, acpid), or source.shut_down_s has to be longer; it may still shut down",
                    limit.as_secs()
                ));
            }
            thread::sleep(LOOK_EVERY);
        }
        let took = clock.monotonic().saturating_sub(begun);
        Ok(format!("its guest was shut down in {:.1} s", took.as_secs_f64()))
    }

    /// Switches it on if it is off and its QEMU is there.
    ///
    /// # Errors
    /// QEMU is not there, or refuses.
    pub fn switch_on(&self) -> Result<(), String> {
        let mut qemu = Qemu::connect(&self.socket)?;
        if qemu.status().map_err(Lost::into_text)? != OFF {
            return Ok(());
        }
        qemu.execute("system_reset").map_err(Lost::into_text)?;
        qemu.execute("cont").map(drop).map_err(Lost::into_text)
    }
}

impl Lost {
    fn into_text(self) -> String {
        match self {
            Self::Ended => "QEMU has ended".to_owned(),
            Self::Other(text) => text,
        }
    }
}

/// A connection that takes commands.
struct Qemu {
    from: BufReader<UnixStream>,
    to: UnixStream,
}

impl Qemu {
    fn connect(socket: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| {
            format!("QEMU cannot be reached at {} ({error}): is it the socket of its -qmp?", socket.display())
        };
        let to = UnixStream::connect(socket).map_err(failed)?;
        to.set_read_timeout(Some(ANSWER_MAX)).map_err(failed)?;
        to.set_write_timeout(Some(ANSWER_MAX)).map_err(failed)?;
        let mut qemu = Self { from: BufReader::new(to.try_clone().map_err(failed)?), to };
        if qemu.message().map_err(Lost::into_text)?.get("QMP").is_none() {
            return Err(format!("what answers at {} does not greet as QEMU does", socket.display()));
        }
        qemu.execute("qmp_capabilities").map_err(Lost::into_text)?;
        Ok(qemu)
    }

    fn status(&mut self) -> Result<String, Lost> {
        let status = self.execute("query-status")?;
        Ok(status.get("status").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    fn execute(&mut self, command: &str) -> Result<Value, Lost> {
        let line = format!("{}\n", serde_json::json!({"execute": command}));
        self.to.write_all(line.as_bytes()).map_err(lost)?;
        loop {
            let mut message = self.message()?;
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = message.get("error") {
                let text = error.get("desc").and_then(Value::as_str).unwrap_or("an error without words");
                return Err(Lost::Other(format!("QEMU refuses {command}: {text}")));
            }
            // Events are not waited for: we ask.
        }
    }

    fn message(&mut self) -> Result<Value, Lost> {
        let mut line = String::new();
        match (&mut self.from).take(LINE_BYTES_MAX).read_line(&mut line) {
            Ok(0) => Err(Lost::Ended),
            Ok(_) => serde_json::from_str(&line)
                .map_err(|error| Lost::Other(format!("what QEMU says is no JSON: {error}"))),
            Err(error) => Err(lost(error)),
        }
    }
}

fn lost(error: std::io::Error) -> Lost {
    match error.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => Lost::Ended,
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Lost::Other(format!(
            "QEMU says nothing for {} s: somebody else may be using its control channel",
            ANSWER_MAX.as_secs()
        )),
        _ => Lost::Other(error.to_string()),
    }
}
