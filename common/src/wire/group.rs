//! What a group cut says to its members, and they to it.
//!
//! Owns the messages only; who says what when is in docs/consistency.md, and in the state machines of both sides.
//! Invariant: no message carries a wall-clock time. Durations are by the monotonic clock of whoever says them.
//! Limit: [`GROUP_MEMBERS_MAX`](super::limits::GROUP_MEMBERS_MAX) members in a mark.

use serde::{Deserialize, Serialize};

use crate::ids::{GroupCutId, GroupId, MachineId, PointId};

/// One order of a group cut to one member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupOrder {
    /// The group cut; orders of another one than the member takes part in mean nothing to it.
    pub cut: GroupCutId,
    /// What to do.
    pub step: OrderStep,
}

/// What a member is to do. Variants are only ever appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OrderStep {
    /// Get ready: copy until little is left, then answer `Armed`, and stay ready.
    Arm(GroupArm),
    /// Hold writes now and answer `Held`.
    Hold,
    /// Every member was held when this was sent. A member that is still in the same hold takes note of it.
    Mark(MarkOrder),
    /// The group cut is void. A member that holds goes on with its own point.
    Cancel {
        /// Why, for people.
        reason: String,
    },
}

/// Terms of a group cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupArm {
    /// The group.
    pub group: GroupId,
    /// After this long without an order to hold the member goes its own way.
    pub ready_ms_max: u64,
    /// Longest time that a held member waits for the mark; then it releases by its own timer.
    pub wait_ms_max: u64,
    /// Whether applications are to be made consistent first.
    pub application: Applications,
}

/// What is wanted of the applications of a member. Variants are only ever appended. (One byte, of which the first two values are
/// those of the flag that stood here before.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applications {
    /// Nothing: its hooks are not run.
    #[default]
    AsTheyAre,
    /// Consistent, by its hooks; if one fails the member's part is kept as a crash-consistent one.
    Consistent,
    /// Consistent, by its hooks; if one fails the member takes no part, so that the group cut is void.
    Required,
}

/// The mark, for one member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkOrder {
    /// The hold that the member had reported, and that the mark is for: no other one may take it.
    pub hold: PointId,
    /// Time from the arrival of that report until this mark was sent, by the coordinator's clock. The member has held
    /// for at least that long.
    pub since_held_us: u64,
    /// Upper bound of how far apart the beginnings of the members' holds lie, by the coordinator's clock.
    pub spread_us: u64,
    /// The group.
    pub group: GroupId,
    /// Its name, for people and for a rebuilt catalog.
    pub name: String,
    /// All members of the cut, in order of their ids.
    pub members: Vec<MachineId>,
}

/// What a member says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupAnswer {
    /// The group cut.
    pub cut: GroupCutId,
    /// How far the member is.
    pub step: AnswerStep,
}

/// How far a member is. Variants are only ever appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AnswerStep {
    /// Little is left to copy; the member can hold at once.
    Armed,
    /// No write reaches the member's disks since before this was said.
    Held {
        /// This very hold. It is also the id of the member's own point.
        hold: PointId,
        /// Time from the order until the hold stood, by the member's clock.
        took_us: u64,
    },
    /// The hold is over, and stood from its beginning to its end.
    Released {
        /// The hold.
        hold: PointId,
        /// Whether the mark came while it stood.
        marked: bool,
        /// How long writes were held in all, by the member's clock.
        held_us: u64,
    },
    /// The member cannot take part, or its hold failed. Its own points are another matter.
    Declined {
        /// Why, for people.
        reason: String,
    },
}
