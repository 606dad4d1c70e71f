//! A writer in the background, under whose load points are made.
//!
//! Owns the writing thread, ended when dropped. What is written is [`super::history`]'s.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};

use super::history::Schedule;

/// The writer's pauses.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two operations.
    pub pause: Duration,
    /// After [`BURST`] of operations; zero for none. Without freezing, a point needs a moment in which nothing is written.
    pub rest: Duration,
}

/// How long operations follow each other before a rest.
const BURST: Duration = Duration::from_millis(500);

/// Carries a schedule out in a thread of its own until told to end.
#[derive(Debug)]
pub struct BackgroundWriter {
    schedule: Schedule,
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<std::io::Result<()>>>,
}

impl BackgroundWriter {
    /// Creates the targets and starts writing at this pace.
    ///
    /// # Errors
    /// A target cannot be created or opened.
    pub fn start(schedule: Schedule, pace: Pace) -> Result<Self> {
        schedule.create().context("cannot create the files of the history")?;
        let mut writer = schedule.writer(0).context("cannot open the files of the history")?;
        let done = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (reported, stopped) = (Arc::clone(&done), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut paused = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                reported.store(writer.step()?, Ordering::Release);
                thread::sleep(pace.pause);
                paused += pace.pause;
                if !pace.rest.is_zero() && paused >= BURST {
                    thread::sleep(pace.rest);
                    paused = Duration::ZERO;
                }
            }
            Ok(())
        });
        Ok(Self { schedule, done, stop, thread: Some(thread) })
    }

    /// What is written.
    #[must_use]
    pub const fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Number of the last operation that has happened: a cut made from now on holds it.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Acquire)
    }

    /// Ends the writing and says how many operations there were.
    ///
    /// # Errors
    /// A write failed: the source was disturbed.
    pub fn finish(&mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread
                .join()
                .map_err(|_| anyhow!("the writer panicked"))?
                .context("a write to the source failed")?;
        }
        Ok(self.done())
    }
}

impl Drop for BackgroundWriter {
    fn drop(&mut self) {
        let _ended = self.finish();
    }
}
