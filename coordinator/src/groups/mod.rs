//! Replication groups: machines that are cut at the same instant.
//!
//! Owns the groups and their members ([`book`]), the cut protocol ([`cut`], without IO) and the task that runs it
//! ([`driver`]), and the rule by which the members' points make group points ([`points`]). Does not know journals or SQL.
//! Invariant: a mark is sent only after every member has reported a hold, and names each member's hold; a group point
//! exists only where every member's durable cut record has the mark of the same group cut.
//! Limit: [`GROUP_MEMBERS_MAX`](holdfast_common::wire::limits::GROUP_MEMBERS_MAX) members. Proof: docs/consistency.md.

pub mod book;
pub mod cut;
pub mod driver;
pub mod inbox;
pub mod points;
