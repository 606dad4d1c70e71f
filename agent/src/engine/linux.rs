//! The machine as it is: disks found by path and identity, tracked capture, freezing.
//!
//! Owns the freezer, the plan of the next hold and the record of incarnations. Block devices are tracked; plain files
//! are compared. Does not know the cycle.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use holdfast_common::{
    causes::in_one_line, clock::Clock, entropy::Entropy, frame::ApplicationFreeze, ids::DiskId,
    units::BlockRange, wire::Capture,
};

use super::{
    host::{Held, HoldCheck, Host, HostDisk, Mechanism, trouble},
    incarnation::Incarnations,
};
use crate::{
    batch::{DiskFile, ReaderPool},
    capture::{
        ChangeSource,
        cycle::Trouble,
        freeze::{FreezePlan, FreezeSettings, Freezer},
        image_file::ImageFile,
        tracked::{Attachment, TrackedOptions, TrackedSource},
    },
    hooks::{self, HookLink, HookSettings, HookState},
    inventory::{self, DiskDevice, LocateError, Located},
};

/// What the host is made of.
#[derive(Debug)]
pub struct LinuxParts {
    /// What each disk's generation is built on.
    pub incarnations: Incarnations,
    /// Plain files that may be protected.
    pub images: Vec<PathBuf>,
    /// Reading threads.
    pub readers: ReaderPool,
    /// How tracking is set up.
    pub tracking: TrackedOptions,
    /// How freezing is set up.
    pub freezing: FreezeSettings,
    /// How freeze hooks are run.
    pub hooks: HookSettings,
    /// Clocks.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

/// This machine.
#[derive(Debug)]
pub struct LinuxHost {
    parts: LinuxParts,
    /// Started with the first disk that may have to be frozen: it locks memory, which an agent that only compares files
    /// may not be allowed to.
    freezer: Option<Freezer>,
    devices: BTreeMap<DiskId, DiskDevice>,
    plan: Option<FreezePlan>,
    /// Hooks that are frozen, or on the way.
    hooks: Option<HookLink>,
}

impl LinuxHost {
    /// A host that has nothing open.
    #[must_use]
    pub fn new(parts: LinuxParts) -> Self {
        hooks::link::thaw_abandoned(&parts.hooks);
        Self { parts, freezer: None, devices: BTreeMap::new(), plan: None, hooks: None }
    }

    fn open_device(&mut self, capture: &Capture, device: DiskDevice) -> Result<HostDisk, Trouble> {
        let path = device.path.as_path();
        let file = Arc::new(DiskFile::open(path).map_err(|error| cannot_open(path, &error))?);
        check_size(capture, file.size_bytes())?;
        let entropy = self.parts.entropy.as_ref();
        let opened = TrackedSource::open(capture.disk, path, &self.parts.tracking, entropy);
        let (source, attachment) = opened.map_err(|error| trouble(&error))?;
        let why = match attachment {
            Attachment::Fresh { reason } => reason,
            Attachment::Resumed { .. } => "tracking went on from another generation's scan".into(),
        };
        self.check_incarnation(capture, &source, &why)?;
        let shown = path.display().to_string();
        self.devices.insert(capture.disk, device);
        if self.freezer.is_none() {
            match Freezer::start(self.parts.freezing.clone()) {
                Ok(freezer) => self.freezer = Some(freezer),
                // The first cut tries again, and is void with this reason if it fails then.
                Err(error) => tracing::error!(error = in_one_line(&error), "file systems cannot be frozen"),
            }
        }
        Ok(HostDisk {
            source: Box::new(source),
            reader: self.parts.readers.reader(Arc::clone(&file)),
            size: file.size(),
            path: shown,
            mechanism: Mechanism::Tracked,
            holes: None,
        })
    }

    fn open_file(&mut self, capture: &Capture, path: &Path) -> Result<HostDisk, Trouble> {
        let size = fs::metadata(path).map_err(|error| cannot_open(path, &error))?.len();
        check_size(capture, size)?;
        let clock = Arc::clone(&self.parts.clock);
        let source =
            ImageFile::open(path, clock, self.parts.entropy.as_ref()).map_err(|error| trouble(&error))?;
        self.check_incarnation(capture, &source, "the agent was restarted")?;
        let file = source.disk();
        Ok(HostDisk {
            source: Box::new(source),
            reader: self.parts.readers.reader(Arc::clone(&file)),
            size: file.size(),
            path: path.display().to_string(),
            mechanism: Mechanism::Compared,
            holes: Some(file),
        })
    }

    /// Changes must have been seen without a break since the scan of this generation began.
    fn check_incarnation(
        &self,
        capture: &Capture,
        source: &dyn ChangeSource,
        why: &str,
    ) -> Result<(), Trouble> {
        let cursor = source.cursor();
        cursor.trust.map_err(Trouble::Distrust)?;
        let (disk, generation) = (capture.disk, capture.generation);
        let incarnations = &self.parts.incarnations;
        let matches = incarnations.matches(disk, generation, cursor.incarnation, capture.durable);
        if !matches && (capture.scanned_to.0 > 0 || capture.scan_complete) {
            return Err(Trouble::Distrust(format!(
                "changes of {} may have been missed: {why}",
                capture.path
            )));
        }
        incarnations.begin(disk, generation, cursor.incarnation).map_err(|error| {
            Trouble::Failed(format!(
                "the agent's state folder cannot be written ({error}): make room in it, or make it writable"
            ))
        })
    }

    fn freezer(&mut self) -> Result<&mut Freezer, String> {
        match &mut self.freezer {
            Some(freezer) => Ok(freezer),
            empty => {
                let started =
                    Freezer::start(self.parts.freezing.clone()).map_err(|error| in_one_line(&error))?;
                Ok(empty.insert(started))
            }
        }
    }
}

impl Host for LinuxHost {
    fn open(&mut self, capture: &Capture) -> Result<HostDisk, Trouble> {
        let roots = &self.parts.freezing.roots;
        let inventory = inventory::collect(roots, &self.parts.images).map_err(|(path, error)| {
            Trouble::Failed(format!(
                "{} cannot be read ({error}): the agent needs /proc and /sys",
                path.display()
            ))
        })?;
        match inventory::locate(roots, &capture.identity, &capture.path, &inventory) {
            Ok(Located::Device { device, .. }) => self.open_device(capture, device),
            Ok(Located::ImageFile { path, .. }) => self.open_file(capture, &path),
            Err(LocateError::Missing { .. }) => Err(Trouble::Gone),
            Err(ambiguous @ LocateError::Ambiguous { .. }) => Err(Trouble::Failed(ambiguous.to_string())),
        }
    }

    fn close(&mut self, disk: DiskId) {
        self.devices.remove(&disk);
    }

    fn keep_only(&mut self, disks: &[DiskId]) {
        let others = match TrackedSource::pinned(&self.parts.tracking) {
            Ok(pinned) => pinned.into_iter().filter(|disk| !disks.contains(disk)).collect(),
            Err(error) => {
                tracing::debug!(%error, "pinned disks cannot be listed");
                Vec::new()
            }
        };
        for disk in others {
            // Only what this agent has begun: another agent on this machine may have disks of its own.
            if !self.parts.incarnations.knows(disk) {
                continue;
            }
            match TrackedSource::remove(disk, &self.parts.tracking) {
                Ok(_) => tracing::info!(%disk, "no longer tracked"),
                Err(error) => tracing::warn!(%disk, error = in_one_line(&error), "tracking cannot be ended"),
            }
        }
        if let Err(error) = self.parts.incarnations.keep(disks) {
            tracing::warn!(%error, "the state folder cannot be written");
        }
    }

    fn distrust(&mut self, disk: DiskId) {
        if let Err(error) = self.parts.incarnations.distrust(disk) {
            tracing::warn!(%disk, %error, "the state folder cannot be written");
        }
    }

    fn plan_hold(&mut self, disks: &[DiskId]) -> Result<bool, String> {
        self.plan = None;
        let devices: Vec<DiskDevice> =
            disks.iter().filter_map(|disk| self.devices.get(disk)).cloned().collect();
        if devices.is_empty() {
            return Ok(false);
        }
        let plan = self.freezer()?.plan(&devices).map_err(|error| in_one_line(&error))?;
        let freezes = !plan.is_empty();
        self.plan = Some(plan);
        Ok(freezes)
    }

    fn swap_areas(&self, disk: DiskId) -> Vec<BlockRange> {
        let (Some(plan), Some(device)) = (&self.plan, self.devices.get(&disk)) else { return Vec::new() };
        plan.swap_ranges(device.number).to_vec()
    }

    fn sync(&mut self) -> Result<Duration, String> {
        let sync = |plan: &FreezePlan| plan.sync().map_err(|error| in_one_line(&error));
        self.plan.as_ref().map_or(Ok(Duration::ZERO), sync)
    }

    fn hold(&mut self, bound: Duration, section: &mut dyn FnMut(&mut HoldCheck<'_>)) -> Result<Held, String> {
        let Some(plan) = self.plan.take().filter(|plan| !plan.is_empty()) else {
            section(&mut || Ok(()));
            return Ok(Held::default());
        };
        let freezer = self.freezer.as_mut().ok_or("file systems cannot be frozen")?;
        let hold = freezer.hold(&plan, bound).map_err(|error| in_one_line(&error))?;
        // Its text is made only when the hold is already void, and everything thawed.
        section(&mut || hold.check().map_err(|error| in_one_line(&error)));
        let report = hold.release().map_err(|error| in_one_line(&error))?;
        let alone = report.left_alone.iter().map(|path| {
            format!("{} cannot be frozen and was left alone; nothing was written to it", path.display())
        });
        Ok(Held { held: report.held, notes: alone.collect() })
    }

    fn freeze_hooks(&mut self) -> HookState {
        match HookLink::start(&self.parts.hooks) {
            Ok(link) => self.hooks.insert(link).poll(),
            Err(reason) => HookState::Failed(reason),
        }
    }

    fn ask_hooks(&mut self) -> HookState {
        match &mut self.hooks {
            Some(link) => link.poll(),
            None => HookState::Failed("no hooks were asked to freeze".into()),
        }
    }

    fn thaw_hooks(&mut self) -> Option<Result<ApplicationFreeze, String>> {
        self.hooks.take().map(HookLink::thaw)
    }
}

fn check_size(capture: &Capture, size_bytes: u64) -> Result<(), Trouble> {
    if size_bytes == capture.size_bytes { Ok(()) } else { Err(Trouble::Resized(size_bytes)) }
}

/// What became of a disk that cannot be opened.
fn cannot_open(path: &Path, error: &io::Error) -> Trouble {
    let advice = match error.kind() {
        io::ErrorKind::NotFound => return Trouble::Gone,
        io::ErrorKind::PermissionDenied => "the agent must be allowed to read it; run the agent as root",
        _ if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM)) => {
            return Trouble::Gone;
        }
        _ => "check the device",
    };
    Trouble::Failed(format!("disk {} cannot be opened ({error}): {advice}", path.display()))
}
