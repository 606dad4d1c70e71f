//! The world of the simulation: a queue of events in real time, the machines, a coordinator, and a network between them.
//!
//! Owns what happens next and which faults strike. Everything random comes from the seed.

use std::collections::{BTreeMap, VecDeque};

use holdfast_common::{
    clock::Timestamp,
    entropy::{Entropy as _, SeededEntropy},
    ids::{GroupCutId, GroupId, MachineId, PointId},
    wire::{GroupAnswer, GroupOrder},
};
use holdfast_coordinator::groups::cut::{Group, GroupCut, Output, Terms};

use super::machine::{DriftingClock, Machine, Record, Step};

/// Time between attempts.
const CUT_EVERY_US: u64 = 300_000;
/// The guardian's bound.
const BOUND_US: u64 = 600_000;
/// Old messages that may come again.
const REMEMBERED_MAX: usize = 200;

/// Whether anything goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Faults {
    None,
    All,
    /// Nothing but that no freeze stops any write.
    NothingHeld,
}

#[derive(Clone, Debug)]
enum Event {
    Write(usize),
    Told { to: usize, what: Vec<u64> },
    Order { to: usize, order: GroupOrder },
    Answer { from: usize, answer: GroupAnswer },
    Ready { machine: usize, life: u64 },
    Frozen { machine: usize, life: u64 },
    Wait { machine: usize, life: u64, point: PointId },
    Bound { machine: usize, point: PointId },
    Durable { life: u64, record: Record },
    Cut,
    Tick,
    Fault,
}

/// Everything.
#[derive(Debug)]
pub(super) struct World {
    now_us: u64,
    number: u64,
    queue: BTreeMap<(u64, u64), Event>,
    random: SeededEntropy,
    faults: Faults,
    machines: Vec<Machine>,
    clock: DriftingClock,
    cut: Option<GroupCut>,
    /// What was on its way once, to come again.
    old: VecDeque<Event>,
    records: Vec<Record>,
    bad_network_until: u64,
}

impl World {
    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        let random = SeededEntropy::new(seed);
        let count = 2 + (random.next_u64() % 4) as usize;
        let clock = |random: &SeededEntropy| DriftingClock {
            origin_us: 1_000_000_000 + random.next_u64() % 1_000_000_000_000,
            drift_ppm: (random.next_u64() % 801) as i64 - 400,
        };
        let machine = |index| {
            let mut machine = Machine::new(index, count, clock(&random));
            machine.leaks = faults == Faults::NothingHeld;
            machine
        };
        let machines = (0..count).map(machine).collect();
        let mut world = Self {
            now_us: 0,
            number: 0,
            queue: BTreeMap::new(),
            clock: clock(&random),
            machines,
            faults,
            cut: None,
            old: VecDeque::new(),
            records: Vec::new(),
            bad_network_until: 0,
            random,
        };
        (0..count).for_each(|machine| world.after(machine as u64, Event::Write(machine)));
        world.after(1_000, Event::Cut);
        if faults == Faults::All {
            world.after(500_000, Event::Fault);
        }
        world
    }

    pub(super) fn run(&mut self, until_us: u64) {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > until_us {
                return;
            }
            self.now_us = at;
            self.happen(event);
        }
    }

    pub(super) fn records(&self) -> &[Record] {
        &self.records
    }

    pub(super) fn writes(&self) -> u64 {
        self.machines.iter().map(Machine::writes).sum()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Write(machine) => self.write(machine),
            Event::Told { to, what } => self.machines[to].hear(&what),
            Event::Order { to, order } => self.order(to, order),
            Event::Answer { from, answer } => {
                let (machine, now) = (self.machines[from].id, self.clock.at(self.now_us));
                let outputs = self.cut.as_mut().map(|cut| cut.answer(machine, &answer, now));
                self.put_out(outputs.unwrap_or_default());
            }
            Event::Ready { machine, life } => self.ready(machine, life),
            Event::Frozen { machine, life } => self.frozen(machine, life),
            Event::Wait { machine, life, point } => self.wait_over(machine, life, point),
            Event::Bound { machine, point } => self.machines[machine].overrun(point),
            Event::Durable { life, record } => {
                if self.machines[record.index].life == life {
                    self.records.push(record);
                }
            }
            Event::Cut => self.begin_cut(),
            Event::Tick => {
                let now = self.clock.at(self.now_us);
                let outputs = self.cut.as_mut().map(|cut| cut.tick(now));
                self.put_out(outputs.unwrap_or_default());
            }
            Event::Fault => self.fault(),
        }
    }

    /// The application writes, and tells another machine's what it has written.
    fn write(&mut self, machine: usize) {
        self.machines[machine].write();
        let to = self.below(self.machines.len() as u64) as usize;
        let (wait, travel) = (50 + self.below(2_000), 20 + self.below(500));
        let what = self.machines[machine].tell();
        self.after(travel, Event::Told { to, what });
        self.after(wait, Event::Write(machine));
    }

    fn begin_cut(&mut self) {
        let random = |world: &Self| world.random.uuid(Timestamp(0));
        let group = Group { id: GroupId::from_bytes([9; 16]), name: "group".into() };
        let millis = std::time::Duration::from_millis;
        let terms = Terms {
            arming: millis(150),
            holding: millis(100),
            releasing: millis(600),
            wait: millis(50 + self.below(100)),
            application: false,
        };
        if let Some(mut before) = self.cut.take() {
            let outputs = before.call_off("the next one begins");
            self.put_out(outputs);
        }
        let members: Vec<MachineId> = self.machines.iter().map(|machine| machine.id).collect();
        let now = self.clock.at(self.now_us);
        let (cut, outputs) = GroupCut::begin(GroupCutId(random(self)), group, members, terms, now);
        self.cut = Some(cut);
        self.put_out(outputs);
        self.after(CUT_EVERY_US, Event::Cut);
    }

    fn put_out(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            if let Output::Send(machine, order) = output {
                let to = self.machines.iter().position(|found| found.id == machine).expect("a member");
                self.send(Event::Order { to, order: *order });
            }
        }
        if let Some(due) = self.cut.as_ref().filter(|cut| !cut.is_over()).map(GroupCut::due) {
            let wait = self.clock.until(due, self.now_us);
            self.after(wait, Event::Tick);
        }
    }

    fn order(&mut self, to: usize, order: GroupOrder) {
        if self.machines[to].stopped_until > self.now_us {
            let wait = self.machines[to].stopped_until - self.now_us;
            return self.after(wait, Event::Order { to, order });
        }
        let life = self.machines[to].life;
        match self.machines[to].order(&order, self.now_us) {
            Step::GetReady => {
                let copying = self.below(40_000);
                self.after(copying, Event::Ready { machine: to, life });
            }
            Step::Freeze => {
                let point = PointId(self.random.uuid(Timestamp(0)));
                self.machines[to].begin_hold(point);
                let freezing = 500 + self.below(20_000);
                self.after(freezing, Event::Frozen { machine: to, life });
                self.after(BOUND_US, Event::Bound { machine: to, point });
            }
            // The residue may not be read yet.
            Step::Release => {
                let Some(point) = self.machines[to].hold.as_ref().map(|hold| hold.point) else { return };
                let reading = self.below(3_000);
                self.after(reading, Event::Wait { machine: to, life, point });
            }
            Step::Nothing => {}
        }
    }

    fn ready(&mut self, machine: usize, life: u64) {
        if self.machines[machine].life != life {
            return;
        }
        let declines = self.faults == Faults::All && self.chance(20);
        let Some(turn) = self.machines[machine].turn.as_mut() else { return };
        let answer = if declines { Some(turn.decline("a disk is missing")) } else { turn.ready() };
        if declines {
            self.machines[machine].turn = None;
        }
        if let Some(answer) = answer {
            self.send(Event::Answer { from: machine, answer });
        }
    }

    fn frozen(&mut self, machine: usize, life: u64) {
        if self.machines[machine].life != life {
            return;
        }
        let Some(answer) = self.machines[machine].held(self.now_us) else { return };
        self.send(Event::Answer { from: machine, answer });
        let Some(hold) = &self.machines[machine].hold else { return };
        let (until, point) = (hold.turn.until(), hold.point);
        let wait = self.machines[machine].clock.until(until, self.now_us);
        self.after(wait, Event::Wait { machine, life, point });
    }

    /// The agent's own timer, or the end of reading after the mark.
    fn wait_over(&mut self, machine: usize, life: u64, point: PointId) {
        let found = &mut self.machines[machine];
        if found.life != life || found.hold.as_ref().is_none_or(|hold| hold.point != point) {
            return;
        }
        if found.stopped_until > self.now_us {
            let wait = found.stopped_until - self.now_us;
            return self.after(wait, Event::Wait { machine, life, point });
        }
        let Some((answer, record)) = found.release() else { return };
        assert!(!found.is_frozen());
        self.send(Event::Answer { from: machine, answer });
        if let Some(record) = record {
            let sending = self.below(200_000);
            self.after(sending, Event::Durable { life, record });
        }
    }

    /// Something on its way: late, lost, or doubled.
    fn send(&mut self, event: Event) {
        let delay = 30 + self.below(2_000);
        if self.faults != Faults::All {
            return self.after(delay, event);
        }
        let bad = self.now_us < self.bad_network_until;
        if self.old.len() == REMEMBERED_MAX {
            self.old.pop_front();
        }
        self.old.push_back(event.clone());
        if self.chance(if bad { 5 } else { 200 }) {
            return;
        }
        let late = if self.chance(if bad { 4 } else { 100 }) { self.below(400_000) } else { 0 };
        if self.chance(if bad { 3 } else { 50 }) {
            let again = self.below(300_000);
            self.after(delay + again, event.clone());
        }
        self.after(delay + late, event);
    }

    fn fault(&mut self) {
        let machine = self.below(self.machines.len() as u64) as usize;
        match self.below(7) {
            0 | 1 => self.machines[machine].kill(),
            2 => self.machines[machine].stopped_until = self.now_us + self.below(900_000),
            3 => self.cut = None,
            4 => self.bad_network_until = self.now_us + self.below(1_500_000),
            // Something said long ago comes again, several times.
            _ => {
                for _ in 0..5 {
                    let count = self.old.len() as u64;
                    if count > 0 {
                        let event = self.old[self.below(count) as usize].clone();
                        let wait = self.below(300_000);
                        self.after(wait, event);
                    }
                }
            }
        }
        let next = self.below(250_000);
        self.after(next, Event::Fault);
    }

    fn after(&mut self, wait_us: u64, event: Event) {
        self.number += 1;
        self.queue.insert((self.now_us + wait_us, self.number), event);
    }

    /// A number below `end`.
    fn below(&self, end: u64) -> u64 {
        self.random.next_u64() % end
    }

    /// Once in `times`.
    fn chance(&self, times: u64) -> bool {
        self.below(times) == 0
    }
}
