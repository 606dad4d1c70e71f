//! Holding: no write reaches the protected disks while the last marks are taken.
//!
//! Owns which file systems are frozen ([`FreezePlan`]), the guardian process, and the hold itself. Does not know marks,
//! frames or the network. Invariant: whatever was frozen is thawed within the bound, also if this process is killed.
//! Limit: [`FILE_SYSTEMS_MAX`] file systems. Description: docs/cuts.md; rules for whoever holds: `hold.rs`.

mod error;
mod stacking;
mod plan;
mod system;
mod memory;
mod rcu;
mod held_log;
mod message;
mod watch;
mod guardian;
mod link;
mod hold;
mod stopped;

use std::{
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use holdfast_common::clock::{Clock, SystemClock};

pub use error::FreezeError;
pub use guardian::guardian_main;
pub use held_log::{HELD_BYTES_MAX, HeldBackLog};
pub use hold::{Hold, HoldReport};
pub use link::GuardianCommand;
pub use plan::{FreezePlan, HeldFileSystem};
pub use stopped::{StoppedFileSystems, thaw_left_behind};

use self::{link::GuardianLink, rcu::RcuExpedited, stacking::Stacking};
use crate::inventory::{DeviceNumber, DiskDevice, Roots, stack::Stack};

/// Most file systems in one hold (the kernel passes at most 253 descriptors in one message).
pub const FILE_SYSTEMS_MAX: usize = 250;

/// The kernel's switch for expedited grace periods.
const RCU_EXPEDITED: &str = "/sys/kernel/rcu_expedited";

/// How long a start waits for another living agent that is holding, before it takes what it sees for what it is.
const ABANDONED_WAIT: Duration = Duration::from_secs(3);

/// How the freezer is set up.
#[derive(Clone, Debug)]
pub struct FreezeSettings {
    /// How the guardian is started.
    pub guardian: GuardianCommand,
    /// Where /sys and /proc are.
    pub roots: Roots,
    /// The program's log, so that its lines wait while something is frozen.
    pub log: Option<Arc<HeldBackLog>>,
    /// What measures holds. Not the guardian's clock: that is always the system's.
    pub clock: Arc<dyn Clock>,
    /// Whether this process keeps file systems frozen beyond a cut ([`StoppedFileSystems`]): then they are held already.
    /// Counts how often that began and ended, so it is odd while they are.
    pub stopped: Arc<AtomicU64>,
}

impl Default for FreezeSettings {
    fn default() -> Self {
        Self {
            guardian: GuardianCommand::default(),
            roots: Roots::default(),
            log: None,
            clock: Arc::new(SystemClock::new()),
            stopped: Arc::default(),
        }
    }
}

/// Freezes and thaws; owns the guardian process. One per agent; lives on the capture thread.
#[derive(Debug)]
pub struct Freezer {
    settings: FreezeSettings,
    guardian: GuardianLink,
    rcu: RcuExpedited,
    last_hold: u64,
}

impl Freezer {
    /// Cleans up what a killed predecessor may have left, locks memory, and starts the guardian.
    ///
    /// # Errors
    /// Nothing may be frozen: the reason says what to do.
    pub fn start(settings: FreezeSettings) -> Result<Self, FreezeError> {
        let rcu = RcuExpedited::open(Path::new(RCU_EXPEDITED));
        thaw_abandoned(&settings, &rcu)?;
        memory::lock_agent()?;
        let guardian = GuardianLink::start(&settings.guardian)?;
        Ok(Self { settings, guardian, rcu, last_hold: 0 })
    }

    /// Finds the file systems on these disks, anew.
    ///
    /// # Errors
    /// A disk is gone, or a file system on it cannot be reached.
    pub fn plan(&self, disks: &[DiskDevice]) -> Result<FreezePlan, FreezeError> {
        let stack = read_stack(&self.settings)?;
        let numbers: Vec<DeviceNumber> = disks.iter().map(|disk| disk.number).collect();
        let stacking = Stacking::plan(&stack, &numbers).map_err(|missing| FreezeError::DiskMissing {
            device: disks
                .iter()
                .find(|disk| disk.number == missing)
                .map_or_else(|| missing.to_string(), |disk| disk.path.display().to_string()),
        })?;
        FreezePlan::open(stacking, Arc::clone(&self.settings.clock))
    }

    /// Freezes everything in the plan. From here to the release the caller follows the rules of a frozen section.
    ///
    /// # Errors
    /// Everything is thawed again; the cut is void.
    pub fn hold<'held>(
        &'held mut self,
        plan: &'held FreezePlan,
        bound: Duration,
    ) -> Result<Hold<'held>, FreezeError> {
        if self.guardian.is_lost() {
            tracing::warn!("the guardian of frozen file systems died; starting another");
            self.guardian = GuardianLink::start(&self.settings.guardian)?;
        }
        self.last_hold += 1;
        let held = Hold::begin(self, plan, self.last_hold, bound);
        if let Err(error) = &held {
            tracing::debug!(%error, "writes could not be held");
        }
        held
    }

    /// Process number of the guardian, for people and tests.
    #[must_use]
    pub fn guardian_process_id(&self) -> u32 {
        self.guardian.process_id()
    }
}

fn read_stack(settings: &FreezeSettings) -> Result<Stack, FreezeError> {
    Stack::read(&settings.roots).map_err(|(path, source)| FreezeError::Unreadable { path, source })
}

/// If agent and guardian were both killed while holding, the kernel's switch still bears the mark of a hold and nobody
/// alive claims it. Then the file systems may still be frozen, and before anything is written they are thawed.
fn thaw_abandoned(settings: &FreezeSettings, rcu: &RcuExpedited) -> Result<(), FreezeError> {
    let start = settings.clock.monotonic();
    while rcu.is_marked() && !rcu.was_abandoned() {
        // Another agent of this machine is holding; it will be done within its bound.
        if settings.clock.monotonic().saturating_sub(start) > ABANDONED_WAIT {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    if !rcu.is_marked() {
        return Ok(());
    }
    let stack = read_stack(settings)?;
    let mut thawed: Vec<PathBuf> = Vec::new();
    // Carriers first, as always when thawing.
    let mut superblocks: Vec<_> = stack.superblocks.iter().collect();
    superblocks.sort_by_key(|superblock| stack.carriers(superblock).len());
    for superblock in superblocks {
        if let Ok((mount_point, folder)) = plan::open_any(superblock)
            && matches!(system::thaw(folder.as_fd()), system::Thawed::Yes)
        {
            thawed.push(mount_point);
        }
    }
    rcu.lower();
    if thawed.is_empty() {
        tracing::info!("an agent was killed during a cut; nothing was left frozen");
    } else {
        tracing::warn!(
            ?thawed,
            "an agent was killed together with its guardian while it held writes; thawed again"
        );
    }
    Ok(())
}
