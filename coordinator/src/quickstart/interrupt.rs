//! Ctrl-C during the quickstart: noted, so that everything is taken down in its order instead of being left behind.
//!
//! Owns the handlers of SIGINT and SIGTERM while it exists. Does not know what is interrupted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Whether somebody asked for the end.
#[derive(Clone, Debug)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on the two signals do not end this program, but are noted.
    ///
    /// # Errors
    /// No thread or no handler is to be had.
    pub(super) fn listen() -> Result<Self> {
        let noted = Self(Arc::new(AtomicBool::new(false)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let runtime = runtime.context("starting to listen for signals")?;
        let (mut interrupt, mut terminate) = {
            let _entered = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let seen = noted.clone();
        // Ends with the program: there is nothing that it would have to take down.
        thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                seen.0.store(true, Ordering::Relaxed);
            });
        })?;
        Ok(noted)
    }

    /// Whether the end was asked for.
    pub(super) fn happened(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
