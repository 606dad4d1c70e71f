//! Tracked capture on real devices: source and replica are compared bit for bit.
//!
//! `HOLDFAST_TEST_SECONDS` sets how long each stress runs (default 3), `HOLDFAST_TEST_SEED` its seed.

mod identity;
mod partitions;
mod restart;
pub(crate) mod stress;
mod zram;

use std::{path::Path, time::Duration};

use anyhow::Result;
use holdfast_agent::capture::tracked::{Attachment, Faults, TrackedOptions, TrackedSource};
use holdfast_common::{
    clock::{Clock as _, SystemClock},
    entropy::{Entropy as _, SystemEntropy},
    ids::DiskId,
};
use holdfast_tests::{asked, loop_device};

/// Prints why a test is skipped; the caller returns.
fn is_skipped() -> bool {
    let reason = loop_device::unavailable().or_else(|| {
        let has_types = Path::new("/sys/kernel/btf/vmlinux").exists();
        (!has_types).then(|| "this kernel has no type information (BTF)".to_owned())
    });
    reason.inspect(|reason| eprintln!("skipped: {reason}")).is_some()
}

/// How long a stress runs.
fn stress_time() -> Duration {
    Duration::from_secs(asked::number("HOLDFAST_TEST_SECONDS").unwrap_or(3))
}

/// An id of its own, whose pins are removed on drop.
struct TestDisk {
    id: DiskId,
    options: TrackedOptions,
}

impl TestDisk {
    fn new(faults: Faults) -> Self {
        let id = DiskId(SystemEntropy::new().uuid(SystemClock::new().wall()));
        Self { id, options: TrackedOptions { faults, ..TrackedOptions::default() } }
    }

    fn open(&self, device: &Path) -> Result<(TrackedSource, Attachment)> {
        Ok(TrackedSource::open(self.id, device, &self.options, &SystemEntropy::new())?)
    }
}

impl Drop for TestDisk {
    fn drop(&mut self) {
        if let Err(error) = TrackedSource::remove(self.id, &self.options) {
            eprintln!("cannot remove the pins of {}: {error}", self.id);
        }
    }
}
