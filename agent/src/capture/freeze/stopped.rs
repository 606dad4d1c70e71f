//! File systems that stay frozen from one cut to another, for a failover without loss.
//!
//! Owns freezing, looking and thawing. Knows no time limit: whoever stops them has one. Invariant: dropped means thawed.
//! While they are frozen, a hold of the same process takes them for held (`FreezeSettings::stopped`).

use std::{os::fd::AsFd as _, path::PathBuf, sync::atomic::Ordering, time::Duration};

use super::{
    FreezeError, FreezePlan, FreezeSettings, read_stack,
    stacking::Stacking,
    system::{self, Frozen},
};
use crate::inventory::{DeviceNumber, DiskDevice};

/// Longest wait for a cut that holds the file systems now, and how often it is looked.
const CUT_WAIT: Duration = Duration::from_secs(30);
const CUT_LOOK: Duration = Duration::from_millis(2);

/// Frozen file systems. Dropping it thaws them.
#[derive(Debug)]
pub struct StoppedFileSystems {
    settings: FreezeSettings,
    plan: FreezePlan,
    frozen: Vec<bool>,
    /// Whether holds were told.
    counted: bool,
}

impl StoppedFileSystems {
    /// Opens the file systems on these disks, without freezing them yet.
    ///
    /// # Errors
    /// A disk is gone, or a file system on it cannot be reached.
    pub fn plan(settings: FreezeSettings, disks: &[DiskDevice]) -> Result<Self, FreezeError> {
        let stack = read_stack(&settings)?;
        let numbers: Vec<DeviceNumber> = disks.iter().map(|disk| disk.number).collect();
        let stacking = Stacking::plan(&stack, &numbers)
            .map_err(|missing| FreezeError::DiskMissing { device: missing.to_string() })?;
        let plan = FreezePlan::open(stacking, settings.clock.clone())?;
        let frozen = vec![false; plan.file_systems().len()];
        Ok(Self { settings, plan, frozen, counted: false })
    }

    /// Where they are mounted.
    #[must_use]
    pub fn mount_points(&self) -> Vec<PathBuf> {
        self.plan.file_systems().iter().map(|held| held.mount_point.clone()).collect()
    }

    /// Writes out what is dirty, then freezes all, carried ones first.
    ///
    /// # Errors
    /// All are thawed again.
    pub fn freeze(&mut self) -> Result<(), FreezeError> {
        self.plan.sync()?;
        for index in 0..self.frozen.len() {
            if let Err(error) = self.freeze_one(index) {
                self.thaw();
                return Err(error);
            }
        }
        // From here on a cut's hold takes them for held; one that was on its way is void, and tried again.
        self.settings.stopped.fetch_add(1, Ordering::SeqCst);
        self.counted = true;
        Ok(())
    }

    fn freeze_one(&mut self, index: usize) -> Result<(), FreezeError> {
        let (Some(folder), Some(frozen)) = (self.plan.folders().get(index), self.frozen.get_mut(index))
        else {
            return Ok(());
        };
        let start = self.settings.clock.monotonic();
        loop {
            match system::freeze(folder.as_fd()) {
                Frozen::Yes => *frozen = true,
                Frozen::Unsupported => {}
                // A cut of ours, most likely: it is over soon.
                Frozen::ByOther if self.settings.clock.monotonic().saturating_sub(start) < CUT_WAIT => {
                    std::thread::sleep(CUT_LOOK);
                    continue;
                }
                Frozen::ByOther => {
                    return Err(FreezeError::FrozenByOther { mount_point: self.plan.mount_point(index) });
                }
                Frozen::Failed(source) => {
                    let mount_point = self.plan.mount_point(index);
                    return Err(FreezeError::FileSystem { mount_point, operation: "freeze", source });
                }
            }
            return Ok(());
        }
    }

    /// Whether all are frozen still. One that was thawed by somebody else is named.
    ///
    /// # Errors
    /// It was thawed meanwhile; it is frozen again, but writes may have gone through.
    pub fn check(&self) -> Result<(), FreezeError> {
        for (index, folder) in self.plan.folders().iter().enumerate() {
            // The only way to ask: whoever is frozen cannot be frozen again.
            if self.frozen.get(index) == Some(&true) && matches!(system::freeze(folder.as_fd()), Frozen::Yes)
            {
                return Err(FreezeError::ThawedByOther { mount_point: self.plan.mount_point(index) });
            }
        }
        Ok(())
    }

    /// Thaws all, carriers first. Repeated is harmless.
    pub fn thaw(&mut self) {
        // First, so that a hold that counts on them sees it.
        if std::mem::take(&mut self.counted) {
            self.settings.stopped.fetch_add(1, Ordering::SeqCst);
        }
        for (folder, frozen) in self.plan.folders().iter().zip(&mut self.frozen).rev() {
            if std::mem::take(frozen) {
                let thawed = system::thaw(folder.as_fd());
                tracing::debug!(?thawed, "a stopped file system goes on");
            }
        }
    }
}

impl Drop for StoppedFileSystems {
    fn drop(&mut self) {
        self.thaw();
    }
}

/// Thaws what a killed agent has left frozen at these mount points.
pub fn thaw_left_behind(mount_points: &[PathBuf]) {
    for mount_point in mount_points.iter().rev() {
        match std::fs::File::open(mount_point) {
            Ok(folder) => {
                let thawed = system::thaw(folder.as_fd());
                tracing::warn!(path = %mount_point.display(), ?thawed, "thawed what a killed agent had stopped");
            }
            Err(error) => tracing::error!(path = %mount_point.display(), %error, "cannot be thawed"),
        }
    }
}
