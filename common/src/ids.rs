//! Identities: machines, disks, points, jobs, and the numbers that order a disk's history.
//!
//! Owns the types only; minting is [`crate::entropy`]'s. Knows no format beyond a UUID's 16 bytes.
//! Invariant: ids of different things are different types and never mix.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// From the 16 bytes of the UUID, most significant first.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The 16 bytes of the UUID, most significant first.
            #[must_use]
            pub const fn into_bytes(self) -> [u8; 16] {
                self.0.into_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Ok(Self(text.parse()?))
            }
        }
    };
}

uuid_id!(
    /// A protected machine. Minted by the coordinator at enrolment and carried in the agent's certificate.
    MachineId
);
uuid_id!(
    /// A protected disk of a machine. Minted by the coordinator when the disk is first protected.
    DiskId
);
uuid_id!(
    /// A recovery point. Minted by the agent for each cut; the same on every disk of the machine.
    PointId
);
uuid_id!(
    /// A job of the coordinator.
    JobId
);
uuid_id!(
    /// A replication group: machines that are cut at the same instant.
    GroupId
);
uuid_id!(
    /// One attempt to cut a group. Minted by the coordinator, never used twice.
    GroupCutId
);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number after this one.
            ///
            /// # Panics
            /// Never in practice: the counters cannot be exhausted within a disk's life.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Number of a disk's line of history; raised by each failover and each loss of tracking. A frame of an
    /// older generation than the disk's current one is refused.
    Generation,
    u32
);
number!(
    /// Position of a frame in its disk's log. Starts at 1, grows by one with each frame, and goes on across
    /// generations. Zero means "before the first frame".
    Sequence,
    u64
);
number!(
    /// Number of an interval of a disk: the frames between two cuts, closed by the cut of that number.
    /// The first interval (initial copy) is 1.
    Interval,
    u64
);
