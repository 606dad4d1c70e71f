//! A disk's history, written straight through the store: frames with whatever content, and cuts.
//!
//! Owns the log's writer and its numbering. Invariant: what was written is durable when [`HistoryWriter::finish`] or
//! [`HistoryWriter::settle`] returns.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use holdfast_common::{
    clock::Timestamp,
    frame::{Extent, Frame, FrameIdentity, FrameSealer, seal::seal_cut},
    ids::{DiskId, Generation, Interval, MachineId, PointId, Sequence},
};
use holdfast_coordinator::{
    index::DiskIndex,
    points::{FrameCache, PointView},
    store::{DiskLog, DiskManifest, LogSink, Store, StoreError, StoreSettings},
};
use tokio::runtime::Runtime;

use crate::journal::cut_record;

/// The disk of these histories.
pub const DISK: DiskId = DiskId::from_bytes([0x55; 16]);
/// Its machine.
pub const MACHINE: MachineId = MachineId::from_bytes([0x50; 16]);
/// Frames handed to the log together.
const GROUP_FRAMES: usize = 64;

/// Writes one disk's log.
#[derive(Debug)]
pub struct HistoryWriter {
    runtime: Runtime,
    store: Arc<Store>,
    log: Arc<DiskLog>,
    sink: Arc<LogSink>,
    sealer: FrameSealer,
    waiting: Vec<Frame>,
    identity: FrameIdentity,
}

impl HistoryWriter {
    /// A new disk of this size in a store in this folder.
    ///
    /// # Errors
    /// The store's.
    ///
    /// # Panics
    /// The system gives no threads.
    pub fn create(folder: &Path, size_bytes: u64, settings: StoreSettings) -> Result<Self, StoreError> {
        let (store, _) = Store::open(folder, settings)?;
        let log = store.create_disk(&DiskManifest { disk: DISK, machine: MACHINE, size_bytes })?;
        let sink = log.sink()?;
        let identity = FrameIdentity {
            disk: DISK,
            generation: Generation(1),
            sequence: Sequence(0),
            interval: Interval(1),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let sealer = FrameSealer::new(Some(1)).expect("a sealer");
        Ok(Self { runtime, store, log, sink, sealer, waiting: Vec::new(), identity })
    }

    /// Appends a frame of these extents; `plain` are the bytes of those that are data.
    ///
    /// # Errors
    /// The store's.
    ///
    /// # Panics
    /// Extents and bytes do not fit together.
    pub fn write(&mut self, extents: &[Extent], plain: &[u8]) -> Result<(), StoreError> {
        self.identity.sequence = self.identity.sequence.next();
        let sealed = self.sealer.seal_data(self.identity, extents, plain).expect("extents that fit");
        self.push(sealed)
    }

    /// Appends a cut; gives its point and its frame.
    ///
    /// # Errors
    /// The store's.
    ///
    /// # Panics
    /// Never: the record is small.
    pub fn cut(&mut self) -> Result<(PointId, Sequence), StoreError> {
        self.identity.sequence = self.identity.sequence.next();
        let sequence = self.identity.sequence;
        let point = PointId::from_bytes(u128::from(sequence.0).to_be_bytes());
        let record = cut_record(point, Timestamp(i64::try_from(sequence.0).unwrap_or(0)), MACHINE, DISK);
        self.push(seal_cut(self.identity, &record).expect("a small record"))?;
        self.identity.interval = self.identity.interval.next();
        Ok((point, sequence))
    }

    fn push(&mut self, sealed: Bytes) -> Result<(), StoreError> {
        self.waiting.push(Frame::verify(sealed).expect("a sealed frame verifies"));
        if self.waiting.len() < GROUP_FRAMES {
            return Ok(());
        }
        self.runtime.block_on(self.sink.append(std::mem::take(&mut self.waiting)))
    }

    /// Waits until everything is durable.
    ///
    /// # Errors
    /// The store's.
    pub fn settle(&mut self) -> Result<(), StoreError> {
        let waiting = std::mem::take(&mut self.waiting);
        self.runtime.block_on(async {
            self.sink.append(waiting).await?;
            self.sink.settle().await.map(drop)
        })
    }

    /// The log, and the store that owns its lock, while writing goes on.
    #[must_use]
    pub fn open_log(&self) -> (Arc<Store>, Arc<DiskLog>) {
        (Arc::clone(&self.store), Arc::clone(&self.log))
    }

    /// Makes everything durable, closes the store and goes on in it when it is opened again. Nobody else may have its log.
    ///
    /// # Errors
    /// The store's.
    ///
    /// # Panics
    /// The folder is not that of this history.
    pub fn reopen(mut self, folder: &Path, settings: StoreSettings) -> Result<Self, StoreError> {
        self.settle()?;
        let Self { runtime, store, log, sink, sealer, waiting, identity } = self;
        drop(sink);
        // The log's thread ends by itself.
        while Arc::strong_count(&log) > 2 {
            std::thread::yield_now();
        }
        drop((log, store));
        let (store, log) = open(folder, settings)?;
        let sink = log.sink()?;
        Ok(Self { runtime, store, log, sink, sealer, waiting, identity })
    }

    /// Makes everything durable and gives the log, and the store that owns its lock.
    ///
    /// # Errors
    /// The store's.
    pub fn finish(mut self) -> Result<(Arc<Store>, Arc<DiskLog>), StoreError> {
        self.settle()?;
        Ok((self.store, self.log))
    }
}

/// Opens the store of a history again.
///
/// # Errors
/// The store's.
///
/// # Panics
/// The folder holds no history.
pub fn open(folder: &Path, settings: StoreSettings) -> Result<(Arc<Store>, Arc<DiskLog>), StoreError> {
    let (store, _) = Store::open(folder, settings)?;
    let log = store.disk(DISK).expect("the disk of a history");
    Ok((store, log))
}

/// The index of a log, up to its end.
///
/// # Panics
/// It cannot be used.
#[must_use]
pub fn index(log: &Arc<DiskLog>) -> Arc<DiskIndex> {
    let index = DiskIndex::open(Arc::clone(log)).expect("an index");
    index.catch_up().expect("a readable log");
    index
}

/// The disk at a cut.
///
/// # Panics
/// There is no such cut.
#[must_use]
pub fn view(index: &Arc<DiskIndex>, cut: Sequence) -> PointView {
    PointView::at_cut(index, FrameCache::new(16 << 20), cut).expect("a view")
}
