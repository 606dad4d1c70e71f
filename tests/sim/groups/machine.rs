//! One simulated machine: an application that writes, an agent with the real state machines, and a guardian.
//!
//! Owns what a machine does by itself. Time is real time in microseconds; the agent only ever sees its own clock.

use std::time::Duration;

use holdfast_agent::group::{Heard, HeldTurn, Turn};
use holdfast_common::{
    frame::GroupMark,
    ids::{MachineId, PointId},
    wire::{GroupAnswer, GroupOrder},
};

/// A monotonic clock with its own speed and beginning.
#[derive(Clone, Copy, Debug)]
pub(super) struct DriftingClock {
    pub(super) origin_us: u64,
    /// Parts per million that it runs too fast.
    pub(super) drift_ppm: i64,
}

impl DriftingClock {
    pub(super) fn at(self, now_us: u64) -> Duration {
        let drift = i128::from(now_us) * i128::from(self.drift_ppm) / 1_000_000;
        let shown = i128::from(self.origin_us) + i128::from(now_us) + drift;
        Duration::from_micros(u64::try_from(shown).expect("clocks start well above zero"))
    }

    /// Real time that passes until the clock shows `shown`.
    pub(super) fn until(self, shown: Duration, now_us: u64) -> u64 {
        let left = shown.saturating_sub(self.at(now_us)).as_micros() as i128;
        let real = left * 1_000_000 / (1_000_000 + i128::from(self.drift_ppm));
        u64::try_from(real).unwrap_or(0) + 1
    }
}

/// A point that became durable.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) machine: MachineId,
    pub(super) index: usize,
    /// Writes of each machine that the image knows of; of its own machine: that it has.
    pub(super) seen: Vec<u64>,
    pub(super) mark: Option<GroupMark>,
}

/// A hold under way.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) point: PointId,
    pub(super) turn: HeldTurn,
    /// The image, once the freeze is complete.
    pub(super) image: Option<Vec<u64>>,
    /// The guardian has thawed: the hold does not stand.
    pub(super) broken: bool,
}

/// One machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) id: MachineId,
    pub(super) index: usize,
    pub(super) clock: DriftingClock,
    /// Tells lives of the agent apart: what was begun in an earlier one is forgotten.
    pub(super) life: u64,
    /// Its freeze stops nothing: what the oracle must notice.
    pub(super) leaks: bool,
    /// The agent does nothing until then.
    pub(super) stopped_until: u64,
    pub(super) turn: Option<Turn>,
    pub(super) hold: Option<Hold>,
    /// Writes of each machine that the last own write knows of.
    written: Vec<u64>,
    /// What the application has heard of, and has not yet written.
    heard: Vec<u64>,
    frozen: bool,
}

impl Machine {
    pub(super) fn new(index: usize, count: usize, clock: DriftingClock) -> Self {
        Self {
            id: MachineId::from_bytes([index as u8 + 1; 16]),
            index,
            clock,
            life: 0,
            leaks: false,
            stopped_until: 0,
            turn: None,
            hold: None,
            written: vec![0; count],
            heard: vec![0; count],
            frozen: false,
        }
    }

    /// The application writes what it knows, unless writes are held.
    pub(super) fn write(&mut self) {
        if self.frozen {
            return;
        }
        for (written, heard) in self.written.iter_mut().zip(&self.heard) {
            *written = (*written).max(*heard);
        }
        self.written[self.index] += 1;
    }

    /// What the application can tell others: its completed writes. Telling needs no write, so a frozen one does it too.
    pub(super) fn tell(&self) -> Vec<u64> {
        self.written.clone()
    }

    pub(super) fn hear(&mut self, told: &[u64]) {
        for (heard, told) in self.heard.iter_mut().zip(told) {
            *heard = (*heard).max(*told);
        }
    }

    pub(super) fn writes(&self) -> u64 {
        self.written[self.index]
    }

    /// An order reaches the agent. Says whether it is to get ready, to hold, or to end the wait of its hold.
    pub(super) fn order(&mut self, order: &GroupOrder, now_us: u64) -> Step {
        let now = self.clock.at(now_us);
        if let Some(hold) = &mut self.hold {
            let decided = hold.image.is_some() && hold.turn.order(order, now);
            return if decided { Step::Release } else { Step::Nothing };
        }
        match Turn::hear(self.turn.as_mut(), order, now) {
            Heard::Begin(turn) => {
                self.turn = Some(turn);
                Step::GetReady
            }
            Heard::Hold => Step::Freeze,
            Heard::Over(_) => {
                self.turn = None;
                Step::Nothing
            }
            Heard::Nothing => Step::Nothing,
        }
    }

    /// The freeze begins: a turn is used up by it.
    pub(super) fn begin_hold(&mut self, point: PointId) {
        let turn = self.turn.take().and_then(|turn| turn.hold());
        self.hold = turn.map(|turn| Hold { point, turn, image: None, broken: false });
    }

    /// The freeze is complete: from now on the application's writes wait.
    pub(super) fn held(&mut self, now_us: u64) -> Option<GroupAnswer> {
        let now = self.clock.at(now_us);
        let hold = self.hold.as_mut()?;
        self.frozen = !hold.broken && !self.leaks;
        hold.image = Some(self.written.clone());
        Some(hold.turn.held(hold.point, now))
    }

    /// Everything is thawed, by whomever.
    pub(super) fn thaw(&mut self) {
        self.frozen = false;
    }

    pub(super) const fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// The guardian's bound is over.
    pub(super) fn overrun(&mut self, point: PointId) {
        if let Some(hold) = self.hold.as_mut().filter(|hold| hold.point == point) {
            hold.broken = true;
            self.frozen = false;
        }
    }

    /// The agent releases. If the hold stood, the machine has a point of its own, with or without a mark.
    pub(super) fn release(&mut self) -> Option<(GroupAnswer, Option<Record>)> {
        let hold = self.hold.take()?;
        self.thaw();
        let Some(image) = hold.image.filter(|_| !hold.broken) else {
            return Some((hold.turn.failed("the bound was exceeded"), None));
        };
        let mark = hold.turn.verdict().ok().cloned();
        let record = Record { machine: self.id, index: self.index, seen: image, mark };
        Some((hold.turn.released(Duration::ZERO), Some(record)))
    }

    /// The agent is killed; its guardian thaws.
    pub(super) fn kill(&mut self) {
        self.life += 1;
        self.turn = None;
        self.hold = None;
        self.thaw();
    }
}

/// What an order asks of the machine's surroundings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    GetReady,
    Freeze,
    Release,
    Nothing,
}
