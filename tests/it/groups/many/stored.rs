//! Points read from a stopped coordinator's store, by views: what costs is the block that is read, not the disk.

use std::{collections::HashMap, path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use holdfast_common::ids::Sequence;
use holdfast_coordinator::{
    index::DiskIndex,
    points::{FrameCache, PointView, view::BlockView as _},
    store::{Store, StoreSettings},
};
use serde_json::Value;

use super::super::ping_pong::PingPong;

/// The machines' logs, in the machines' order.
pub(super) struct Stored {
    disks: Vec<Disk>,
    cache: Arc<FrameCache>,
    /// Owns the logs' lock.
    _store: Arc<Store>,
}

struct Disk {
    machine: String,
    index: Arc<DiskIndex>,
    /// Cuts by their points.
    cuts: HashMap<String, Sequence>,
    /// Where the machine's counter lies.
    offset: u64,
}

impl Stored {
    pub(super) fn open(data: &Path, machines: &[String], writer: &PingPong) -> Result<Self> {
        let (store, _) = Store::open(&data.join("store"), StoreSettings::default())?;
        let logs = store.disks();
        let mut disks = Vec::new();
        for (number, machine) in machines.iter().enumerate() {
            let log = logs.iter().find(|log| log.manifest().machine.to_string() == *machine);
            let index = DiskIndex::open(Arc::clone(log.context("the machine's log")?))?;
            index.catch_up()?;
            let cuts = index.cuts().iter().map(|cut| (cut.record.point.to_string(), cut.sequence)).collect();
            disks.push(Disk { machine: machine.clone(), index, cuts, offset: writer.offset(number) });
        }
        Ok(Self { disks, cache: FrameCache::new(16 << 20), _store: store })
    }

    /// The counters in a group point.
    pub(super) fn counters(&self, point: &Value) -> Result<Vec<u64>> {
        let parts = point["members"].as_array().context("members")?;
        let counter = |disk: &Disk| {
            let part = parts.iter().find(|part| part["machine"] == disk.machine.as_str());
            let own = part.and_then(|part| part["point"].as_str()).context("the machine's part")?;
            let cut = disk.cuts.get(own).context("the part's cut")?;
            let view = PointView::at_cut(&disk.index, Arc::clone(&self.cache), *cut)?;
            let mut block = vec![0; 4096];
            view.read(disk.offset, &mut block)?;
            Ok(u64::from_le_bytes(block[..8].try_into()?))
        };
        self.disks.iter().map(counter).collect()
    }
}
