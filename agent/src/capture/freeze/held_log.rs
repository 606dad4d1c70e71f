//! Log lines are held back while something is frozen: standard error may lead to a file on a frozen file system.
//!
//! Owns the buffer. Does not know what a line says. Invariants: while holding, writing a line takes no lock that somebody
//! could keep while blocked on a frozen file system, and allocates nothing; lines keep their order.
//! Limit: [`HELD_BYTES_MAX`]; what does not fit is counted and said.

use std::{
    fmt,
    io::{self, Write},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Most bytes held back.
pub const HELD_BYTES_MAX: usize = 256 << 10;

/// Where the program's log goes. Give `Arc<HeldBackLog>` to `telemetry::start`, and to [`super::FreezeSettings`].
pub struct HeldBackLog {
    holding: AtomicBool,
    held: Mutex<Held>,
    target: Mutex<Box<dyn Write + Send>>,
}

struct Held {
    /// Allocated and touched once; never grows.
    bytes: Vec<u8>,
    dropped_lines: u64,
}

impl HeldBackLog {
    /// A log that ends in `target`.
    #[must_use]
    pub fn new(target: Box<dyn Write + Send>) -> Self {
        let mut bytes = vec![1; HELD_BYTES_MAX];
        bytes.clear();
        Self {
            holding: AtomicBool::new(false),
            held: Mutex::new(Held { bytes, dropped_lines: 0 }),
            target: Mutex::new(target),
        }
    }

    /// A log that ends in standard error.
    #[must_use]
    pub fn to_standard_error() -> Self {
        Self::new(Box::new(io::stderr()))
    }

    /// From now on lines wait.
    pub(super) fn hold(&self) {
        self.holding.store(true, Ordering::SeqCst);
    }

    /// Lets the lines go. Nothing may be frozen.
    pub(super) fn release(&self) {
        let mut target = lock(&self.target);
        let mut held = lock(&self.held);
        if !held.bytes.is_empty() {
            let _nobody_to_tell = target.write_all(&held.bytes);
            held.bytes.clear();
        }
        if held.dropped_lines > 0 {
            let count = std::mem::take(&mut held.dropped_lines);
            let _nobody_to_tell = writeln!(target, "{count} log lines were dropped while writes were held");
        }
        self.holding.store(false, Ordering::SeqCst);
    }
}

impl Write for &HeldBackLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.holding.load(Ordering::SeqCst) {
            let mut held = lock(&self.held);
            // Asked again under the lock: the lines may just have been let go.
            if self.holding.load(Ordering::SeqCst) {
                if held.bytes.len() + line.len() <= HELD_BYTES_MAX {
                    held.bytes.extend_from_slice(line);
                } else {
                    held.dropped_lines += 1;
                }
                return Ok(line.len());
            }
        }
        lock(&self.target).write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.holding.load(Ordering::SeqCst) { Ok(()) } else { lock(&self.target).flush() }
    }
}

impl fmt::Debug for HeldBackLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldBackLog").field("holding", &self.holding).finish_non_exhaustive()
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
