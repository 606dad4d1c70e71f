//! Ship: bringing sealed frames to the coordinator, once, in order, acknowledged.
//!
//! Owns the connection and what is on its way. Does not know capture or devices.
//! Invariant: a frame is forgotten only after the coordinator has acknowledged it as durable.
//! Limits: the byte budget of [`ShipSettings::window_bytes_max`]; queues of control messages as named in [`link`].

use std::{sync::Arc, time::Duration};

use holdfast_common::{clock::Clock, entropy::Entropy, wire::Inventory};
use tokio::runtime::Handle;

use crate::{
    identity::{IdentityError, IdentityStore},
    write_back::TrackedDisks,
};

pub mod port;
pub mod window;
pub mod session;
pub mod rate;
pub mod backoff;
pub mod endpoint;
mod shared;
mod link;
mod renewal;
mod streams;

pub use shared::{AgentLinkFigures, ShipError, ShipHandle};

/// Settings of the link to the coordinator.
#[derive(Clone, Copy, Debug)]
pub struct ShipSettings {
    /// Bytes of frames held until they are acknowledged. Larger rides out longer stalls of the link without a pause of
    /// capture; it is memory that is really used then.
    pub window_bytes_max: usize,
    /// Upper bound of what is sent, in bytes per second, beside the machine's policy; zero means none.
    pub send_bytes_per_second_max: u64,
    /// Shortest pause between attempts to connect.
    pub reconnect_min: Duration,
    /// Longest pause between attempts to connect.
    pub reconnect_max: Duration,
    /// How often it is checked whether the certificate is to be renewed.
    pub renewal_check: Duration,
    /// The link itself.
    pub link: endpoint::LinkSettings,
}

impl Default for ShipSettings {
    fn default() -> Self {
        Self {
            window_bytes_max: 48 << 20,
            send_bytes_per_second_max: 0,
            reconnect_min: Duration::from_millis(200),
            reconnect_max: Duration::from_secs(15),
            renewal_check: Duration::from_mins(1),
            link: endpoint::LinkSettings::default(),
        }
    }
}

/// Looks at the machine at each connect; called on a blocking thread.
pub type InventorySource = Arc<dyn Fn() -> Inventory + Send + Sync>;

/// What the link takes from its surroundings.
#[derive(Clone)]
pub struct ShipParts {
    /// Where the identity is kept; renewed certificates go there.
    pub store: IdentityStore,
    /// Looks at the machine.
    pub inventory: InventorySource,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// How disks are tracked that are written back; `None`: not at all.
    pub tracked: Option<TrackedDisks>,
}

/// Starts the link: it connects, and connects again, until [`ShipHandle::shutdown`]. Events for capture come out of
/// the receiver, which a blocking thread reads.
///
/// # Errors
/// The machine is not enrolled.
pub fn start(
    settings: ShipSettings,
    parts: ShipParts,
    runtime: &Handle,
) -> Result<(ShipHandle, crossbeam_channel::Receiver<port::Inbound>), IdentityError> {
    let identity = parts.store.load()?;
    let (events, inbound) = crossbeam_channel::bounded(port::INBOUND_MAX);
    let shared = Arc::new(shared::Shared::new(settings, Arc::clone(&parts.clock), events));
    let task = runtime.spawn(link::run(Arc::clone(&shared), settings, parts, identity));
    Ok((ShipHandle::new(shared, task), inbound))
}
