//! One attempt to cut a group, without IO and without a clock: answers in, orders out.
//!
//! Owns who has answered what. Does not know how orders travel, nor what becomes of the members' points: whether a group
//! point exists is decided by the members' durable cut records alone.
//! Invariant: [`OrderStep::Mark`] goes out only when every member's `Held` has arrived, once, and to each member with the
//! hold that it had reported.
//! Limits: [`Terms`]; every phase ends by its own time limit.
//!
//! ```text
//! Arming --all Armed--> Holding --all Held: mark--> Releasing --all Released, or late--> Over(marked)
//!    \---- declined, lost or late ----+------------------/----> Over(void), Cancel to those who may still hold
//! ```

use std::{collections::BTreeMap, fmt, time::Duration};

use holdfast_common::{
    ids::{GroupCutId, GroupId, MachineId, PointId},
    wire::{AnswerStep, Applications, GroupAnswer, GroupArm, GroupOrder, MarkOrder, OrderStep},
};

/// Most that two monotonic clocks may run apart, in parts per million; more is taken for a broken clock.
pub const DRIFT_PPM_MAX: u64 = 1_000;

/// What a duration may be off by besides (rounding, and timers that are read one after another).
pub const CLOCK_SLACK: Duration = Duration::from_millis(1);

/// Time limits of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// For all members to be armed.
    pub arming: Duration,
    /// For all members to be held, from the order on.
    pub holding: Duration,
    /// For all members to have released, from the mark on.
    pub releasing: Duration,
    /// Longest time that a held member waits for the mark.
    pub wait: Duration,
    /// Whether applications are made consistent first.
    pub application: bool,
}

/// The group, as it is at the beginning of the attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The group.
    pub id: GroupId,
    /// Its name.
    pub name: String,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Tell this member. What is lost on the way costs the attempt, nothing else.
    Send(MachineId, Box<GroupOrder>),
    /// The attempt is over; nothing comes after this.
    Over(Outcome),
}

/// How an attempt ended, as far as the exchange can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The mark was made, and no member has said that it missed it: the group point exists when the records of all are
    /// durable with the mark in them.
    Marked(Vec<MemberHold>),
    /// No group point.
    Void(Void),
}

/// What was measured of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberHold {
    /// The machine.
    pub machine: MachineId,
    /// Its own point.
    pub point: PointId,
    /// How long writes were held in all, by its clock, in microseconds; zero if it has not said so.
    pub held_us: u64,
    /// From the order to hold until its hold stood, by its clock, in microseconds.
    pub took_us: u64,
}

/// Why there is no group point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Void {
    /// The member whose fault it is, if it is one's.
    pub member: Option<MachineId>,
    /// Why, for people.
    pub reason: VoidReason,
}

/// Kinds of reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VoidReason {
    /// The member said so.
    Declined(String),
    /// The member's session ended, or an order could not be sent.
    Lost(String),
    /// The member did not answer in time.
    Late(&'static str),
    /// The member's clock and ours disagree about the same exchange.
    Clock,
    /// The mark did not reach the member while it held.
    Unmarked,
    /// It was called off by us.
    CalledOff(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Arming,
    Holding { ordered_at: Duration },
    Releasing,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Asked,
    Armed,
    Held { hold: PointId, at: Duration, took: Duration },
    Released(MemberHold),
}

/// One attempt.
#[derive(Debug)]
pub struct GroupCut {
    id: GroupCutId,
    group: Group,
    terms: Terms,
    members: BTreeMap<MachineId, Standing>,
    phase: Phase,
    /// When the phase is over.
    until: Duration,
}

impl GroupCut {
    /// Begins an attempt. `id` must never have been used before.
    pub fn begin(
        id: GroupCutId,
        group: Group,
        members: impl IntoIterator<Item = MachineId>,
        terms: Terms,
        now: Duration,
    ) -> (Self, Vec<Output>) {
        let members: BTreeMap<_, _> = members.into_iter().map(|machine| (machine, Standing::Asked)).collect();
        let until = now + terms.arming;
        let cut = Self { id, group, terms, members, phase: Phase::Arming, until };
        let arm = OrderStep::Arm(GroupArm {
            group: cut.group.id,
            ready_ms_max: millis(terms.arming + terms.holding),
            wait_ms_max: millis(terms.wait),
            application: if terms.application { Applications::Consistent } else { Applications::AsTheyAre },
        });
        let orders = cut.tell_all(&arm);
        (cut, orders)
    }

    /// Which attempt it is.
    #[must_use]
    pub const fn id(&self) -> GroupCutId {
        self.id
    }

    /// Whether nothing comes any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// When [`Self::tick`] must be called at the latest.
    #[must_use]
    pub const fn due(&self) -> Duration {
        self.until
    }

    /// A member said something; answers of other attempts, and of machines that are no members, mean nothing.
    pub fn answer(&mut self, machine: MachineId, answer: &GroupAnswer, now: Duration) -> Vec<Output> {
        if answer.cut != self.id || self.is_over() || !self.members.contains_key(&machine) {
            return Vec::new();
        }
        match &answer.step {
            AnswerStep::Armed => self.armed(machine, now),
            AnswerStep::Held { hold, took_us } => {
                self.held(machine, *hold, Duration::from_micros(*took_us), now)
            }
            AnswerStep::Released { hold, marked, held_us } => {
                self.released(machine, *hold, *marked, *held_us)
            }
            AnswerStep::Declined { reason } => self.void(Some(machine), VoidReason::Declined(reason.clone())),
        }
    }

    /// A member cannot be reached. After the mark that changes nothing: its record decides.
    pub fn lost(&mut self, machine: MachineId, why: &str) -> Vec<Output> {
        let waiting = matches!(self.phase, Phase::Arming | Phase::Holding { .. });
        if waiting && self.members.contains_key(&machine) {
            return self.void(Some(machine), VoidReason::Lost(why.to_owned()));
        }
        Vec::new()
    }

    /// Ends the attempt from our side (members changed, shutdown).
    pub fn call_off(&mut self, why: &str) -> Vec<Output> {
        if self.is_over() { Vec::new() } else { self.void(None, VoidReason::CalledOff(why.to_owned())) }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) -> Vec<Output> {
        if now < self.until || self.is_over() {
            return Vec::new();
        }
        if self.phase == Phase::Releasing {
            // The mark was made; a word that is missing proves nothing, the members' records decide.
            return self.marked();
        }
        let arming = self.phase == Phase::Arming;
        let late = |standing: &Standing| match standing {
            Standing::Asked => true,
            Standing::Armed => !arming,
            Standing::Held { .. } | Standing::Released(_) => false,
        };
        let member = self.members.iter().find(|(_, standing)| late(standing)).map(|(machine, _)| *machine);
        let what = if arming { "it was not ready in time" } else { "it did not hold in time" };
        self.void(member, VoidReason::Late(what))
    }

    fn armed(&mut self, machine: MachineId, now: Duration) -> Vec<Output> {
        if self.phase != Phase::Arming {
            return Vec::new();
        }
        self.members.insert(machine, Standing::Armed);
        if !self.members.values().all(|standing| *standing == Standing::Armed) {
            return Vec::new();
        }
        self.phase = Phase::Holding { ordered_at: now };
        self.until = now + self.terms.holding;
        self.tell_all(&OrderStep::Hold)
    }

    fn held(&mut self, machine: MachineId, hold: PointId, took: Duration, now: Duration) -> Vec<Output> {
        // A second report (sent twice, or of a second hold) never replaces the first one: should the first hold be over,
        // its mark will find nobody, and there is no group point.
        let first = self.members.get(&machine) == Some(&Standing::Armed);
        let Phase::Holding { ordered_at } = self.phase else { return Vec::new() };
        if !first {
            return Vec::new();
        }
        if took > stretched(now.saturating_sub(ordered_at)) {
            return self.void(Some(machine), VoidReason::Clock);
        }
        self.members.insert(machine, Standing::Held { hold, at: now, took });
        if self.members.values().all(|standing| matches!(standing, Standing::Held { .. })) {
            return self.mark(ordered_at, now);
        }
        Vec::new()
    }

    /// All hold, right now: whoever takes this mark in the hold that it reported held at this instant.
    fn mark(&mut self, ordered_at: Duration, now: Duration) -> Vec<Output> {
        self.phase = Phase::Releasing;
        self.until = now + self.terms.releasing;
        let spread_us = micros(self.spread(ordered_at));
        let members: Vec<MachineId> = self.members.keys().copied().collect();
        let marks = self.members.iter().filter_map(|(machine, standing)| {
            let Standing::Held { hold, at, .. } = standing else { return None };
            let mark = MarkOrder {
                hold: *hold,
                since_held_us: micros(now.saturating_sub(*at)),
                spread_us,
                group: self.group.id,
                name: self.group.name.clone(),
                members: members.clone(),
            };
            let order = GroupOrder { cut: self.id, step: OrderStep::Mark(mark) };
            Some(Output::Send(*machine, Box::new(order)))
        });
        marks.collect()
    }

    /// Every hold began between (the order, plus what the member says it took) and the arrival of its report.
    fn spread(&self, ordered_at: Duration) -> Duration {
        let mut earliest = Duration::MAX;
        let mut latest = Duration::ZERO;
        for standing in self.members.values() {
            let Standing::Held { at, took, .. } = standing else { continue };
            earliest = earliest.min(ordered_at + shrunk(*took));
            latest = latest.max(*at);
        }
        latest.saturating_sub(earliest)
    }

    fn released(&mut self, machine: MachineId, hold: PointId, marked: bool, held_us: u64) -> Vec<Output> {
        let Some(Standing::Held { hold: reported, took, .. }) = self.members.get(&machine) else {
            return Vec::new();
        };
        if *reported != hold {
            return Vec::new();
        }
        if !marked {
            return self.void(Some(machine), VoidReason::Unmarked);
        }
        let done = MemberHold { machine, point: hold, held_us, took_us: micros(*took) };
        self.members.insert(machine, Standing::Released(done));
        if self.members.values().all(|standing| matches!(standing, Standing::Released(_))) {
            return self.marked();
        }
        Vec::new()
    }

    fn marked(&mut self) -> Vec<Output> {
        self.phase = Phase::Over;
        let hold = |(machine, standing): (&MachineId, &Standing)| match *standing {
            Standing::Released(hold) => Some(hold),
            Standing::Held { hold, took, .. } => {
                Some(MemberHold { machine: *machine, point: hold, held_us: 0, took_us: micros(took) })
            }
            Standing::Asked | Standing::Armed => None,
        };
        vec![Output::Over(Outcome::Marked(self.members.iter().filter_map(hold).collect()))]
    }

    fn void(&mut self, member: Option<MachineId>, reason: VoidReason) -> Vec<Output> {
        self.phase = Phase::Over;
        let cancel = OrderStep::Cancel { reason: reason.to_string() };
        let mut outputs = self.tell_all(&cancel);
        outputs.push(Output::Over(Outcome::Void(Void { member, reason })));
        outputs
    }

    /// To all members that are not through with it.
    fn tell_all(&self, step: &OrderStep) -> Vec<Output> {
        let open = self.members.iter().filter(|(_, standing)| !matches!(standing, Standing::Released(_)));
        let order = |machine: &MachineId| {
            Output::Send(*machine, Box::new(GroupOrder { cut: self.id, step: step.clone() }))
        };
        open.map(|(machine, _)| order(machine)).collect()
    }
}

impl fmt::Display for VoidReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Declined(reason) => f.write_str(reason),
            Self::Lost(why) => write!(f, "it cannot be reached ({why})"),
            Self::Late(what) => f.write_str(what),
            Self::Clock => f.write_str("its monotonic clock and ours disagree about the same exchange"),
            Self::Unmarked => f.write_str("the mark did not come while it held"),
            Self::CalledOff(why) => f.write_str(why),
        }
    }
}

/// The longest that another clock may show for what ours showed.
#[must_use]
pub fn stretched(time: Duration) -> Duration {
    time + drift(time) + CLOCK_SLACK
}

/// The shortest that another clock may show for what ours showed.
#[must_use]
pub fn shrunk(time: Duration) -> Duration {
    time.saturating_sub(drift(time) + CLOCK_SLACK)
}

fn drift(time: Duration) -> Duration {
    Duration::from_micros(micros(time) / 1_000_000 * DRIFT_PPM_MAX + micros(time) % 1_000_000 / 1_000)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
