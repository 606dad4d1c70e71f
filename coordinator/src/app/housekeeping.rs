//! What is done every now and then: retention, and disks whose size was just learnt.
//!
//! Owns the rhythm; the rules are others'.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{points::catalog::PointCatalog, registry::Registry};

/// Time between two rounds.
const STEP: Duration = Duration::from_millis(500);
/// Rounds between two looks at retention.
const RETENTION_ROUNDS: u32 = 20;

/// Keeps house until told to end.
pub(super) async fn run(registry: Arc<Registry>, points: Arc<PointCatalog>, closing: CancellationToken) {
    let mut round = 0_u32;
    loop {
        tokio::select! {
            () = closing.cancelled() => return,
            () = tokio::time::sleep(STEP) => {}
        }
        if let Err(error) = registry.adopt_sizes().await {
            tracing::error!(
                error = format!("{:#}", anyhow::Error::from(error)),
                "a disk's size was not recorded"
            );
        }
        round = round.wrapping_add(1);
        if round.is_multiple_of(RETENTION_ROUNDS) {
            prune(&registry, &points).await;
        }
    }
}

async fn prune(registry: &Registry, points: &PointCatalog) {
    for machine in registry.machines() {
        let id = machine.record.id;
        let retention = Duration::from_secs(machine.policy.retention_seconds);
        match points.prune(id, retention).await {
            Ok(plan) if plan.remove.is_empty() => {}
            Ok(plan) => {
                tracing::info!(machine = %id, points = plan.remove.len(), "retention has ended points")
            }
            Err(error) => tracing::error!(machine = %id, %error, "retention failed; it is tried again"),
        }
    }
}
