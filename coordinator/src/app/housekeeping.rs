//! What is done every now and then: retention, and disks whose size was just learnt.
//!
//! Owns the rhythm; the rules are others'.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    points::{catalog::PointCatalog, damage::DamageLedger},
    registry::{Registry, retention_rule},
};

/// Time between two rounds.
const STEP: Duration = Duration::from_millis(500);
/// Rounds between two looks at retention.
const RETENTION_ROUNDS: u32 = 20;

/// Keeps house until told to end.
pub(super) async fn run(
    registry: Arc<Registry>,
    points: Arc<PointCatalog>,
    damage: Arc<DamageLedger>,
    closing: CancellationToken,
) {
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
            prune(&registry, &points, &damage).await;
        }
    }
}

async fn prune(registry: &Registry, points: &PointCatalog, damage: &DamageLedger) {
    for machine in registry.machines() {
        let id = machine.record.id;
        let rule = match retention_rule(&machine.policy) {
            Ok(rule) => rule,
            Err(error) => {
                tracing::error!(machine = %id, %error, "a policy's retention is wrong; nothing is removed");
                continue;
            }
        };
        match points.prune(id, &rule, &|disk, cut| damage.hits(disk, cut)).await {
            Ok(plan) => match plan.removed().len() {
                0 => {}
                points => tracing::info!(machine = %id, points, "retention has ended points"),
            },
            Err(error) => tracing::error!(machine = %id, %error, "retention failed; it is tried again"),
        }
    }
}
