//! The store as ingest needs it.
//!
//! Owns the translation of errors into refusals, and the step off the async threads. The only file here that knows
//! [`crate::ingest::port`].

use std::sync::Arc;

use tokio::sync::watch;

use holdfast_common::{
    frame::Frame,
    ids::{DiskId, Sequence},
};

use super::{append::LogSink, disks::Store, error::StoreError};
use crate::ingest::port::{FrameSink, FrameStore, PortError, PortFuture};

impl FrameStore for Store {
    fn open(&self, disk: DiskId) -> PortFuture<'_, Arc<dyn FrameSink>> {
        let log = self.disk(disk);
        Box::pin(async move {
            let log = log.ok_or_else(|| refused(&StoreError::UnknownDisk(disk)))?;
            // Opening may recover a segment: file work.
            let opened = tokio::task::spawn_blocking(move || log.sink()).await;
            let opened = opened.map_err(|error| PortError::Failed {
                operation: "opening a disk's log",
                source: Box::new(error),
            })?;
            let sink: Arc<dyn FrameSink> = opened.map_err(|error| refused(&error))?;
            Ok(sink)
        })
    }
}

impl FrameSink for LogSink {
    fn append(&self, frames: Vec<Frame>) -> PortFuture<'_, ()> {
        Box::pin(async move { Self::append(self, frames).await.map_err(|error| refused(&error)) })
    }

    fn durable(&self) -> watch::Receiver<Sequence> {
        Self::durable(self)
    }

    fn settle(&self) -> PortFuture<'_, Sequence> {
        Box::pin(async move { Self::settle(self).await.map_err(|error| refused(&error)) })
    }
}

fn refused(error: &StoreError) -> PortError {
    PortError::Refused(error.refusal())
}
