//! Whether a session's peer is still heard, and what it was told since.
//!
//! Owns the time of the last packet and the requests for points that were told behind it. Does not know connections: how
//! many packets came in, it asks a function. Pure but for the clock.
//! Invariant: what is taken out by [`Ear::unheard`] was told after the last packet came in, so the peer cannot have
//! answered it.
//! Limit: [`ORDERS_MAX`] requests are remembered, the newest.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holdfast_common::clock::Clock;

use super::links::{ORDERS_MAX, Push};

/// Listens to one session's peer.
pub(super) struct Ear {
    packets: Box<dyn Fn() -> u64 + Send + Sync>,
    clock: Arc<dyn Clock>,
    silence_max: Duration,
    heard: Mutex<Heard>,
}

struct Heard {
    packets: u64,
    /// When that count was first seen.
    at: Duration,
    told: VecDeque<Push>,
}

impl Ear {
    /// Listens from now on; `packets` counts those that came in.
    pub(super) fn new(
        packets: impl Fn() -> u64 + Send + Sync + 'static,
        clock: Arc<dyn Clock>,
        silence_max: Duration,
    ) -> Self {
        let heard = Heard { packets: packets(), at: clock.monotonic(), told: VecDeque::new() };
        Self { packets: Box::new(packets), clock, silence_max, heard: Mutex::new(heard) }
    }

    /// Looks whether something came in. Called every second or so; what came in between two looks counts as of the second.
    pub(super) fn listen(&self) {
        let _looked = self.heard();
    }

    /// Whether nothing came in for longer than a session that is well is ever silent.
    pub(super) fn is_silent(&self) -> bool {
        self.clock.monotonic().saturating_sub(self.heard().at) > self.silence_max
    }

    /// The peer is being told this. Only requests for points are remembered: whoever asks for the others asks again.
    pub(super) fn told(&self, push: &Push) {
        if !matches!(push, Push::MakePoint { .. } | Push::MakeApplicationPoint { .. }) {
            return;
        }
        let mut heard = self.heard();
        if heard.told.len() == ORDERS_MAX {
            heard.told.pop_front();
        }
        heard.told.push_back(push.clone());
    }

    /// What was told behind the last packet.
    pub(super) fn unheard(&self) -> Vec<Push> {
        self.heard().told.drain(..).collect()
    }

    /// What was heard, up to date.
    fn heard(&self) -> MutexGuard<'_, Heard> {
        let packets = (self.packets)();
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.packets != packets {
            heard.packets = packets;
            heard.at = self.clock.monotonic();
            heard.told.clear();
        }
        heard
    }
}

impl fmt::Debug for Ear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ear").field("silence_max", &self.silence_max).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
