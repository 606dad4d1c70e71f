//! Makes the catalog again: machines and disks from their descriptions, points from the logs.
//!
//! Owns the order of it. Invariant: the old catalog is not deleted but set aside.
//! What is not in store and descriptions is lost: tokens, jobs, the audit, voided cuts and inventories (agents send theirs
//! at the next connect).

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result};
use holdfast_common::{
    clock::{Clock, SystemClock},
    durable,
    entropy::{Entropy as _, SystemEntropy},
};

use super::{data::DataFolder, logs::Logs, open_store};
use crate::{
    catalog::{Catalog, Change, SqliteCatalog, record::AuditRecord},
    config::Settings,
    points::catalog::PointCatalog,
};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Machines.
    pub machines: usize,
    /// Disks.
    pub disks: usize,
    /// Points.
    pub points: usize,
    /// What was left out, and why.
    pub remarks: Vec<String>,
}

/// Rebuilds the catalog of a coordinator that is not running.
///
/// # Errors
/// The data folder is in use or cannot be used; the old catalog is in place or set aside beside the new one.
pub async fn rebuild_catalog(settings: &Settings) -> Result<Rebuilt> {
    settings.check()?;
    let data = DataFolder::open(&settings.data)?;
    set_aside(&data.catalog())?;
    let catalog = Arc::new(SqliteCatalog::open(&data.catalog()).await.context("making the new catalog")?);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let (descriptions, remarks) = data.descriptions()?;
    let mut rebuilt = Rebuilt { machines: descriptions.len(), remarks, ..Rebuilt::default() };
    for description in &descriptions {
        rebuilt.disks += description.disks().len();
        catalog.apply(description.changes(clock.wall())).await.context("recording a machine")?;
    }
    let (store, recoveries) = open_store(settings, &data).await?;
    for recovery in
        recoveries.iter().filter_map(|found| found.error.as_ref().map(|error| (found.disk, error)))
    {
        rebuilt.remarks.push(format!("the log of disk {} cannot be used: {}", recovery.0, recovery.1));
    }
    let shared: Arc<dyn Catalog> = Arc::clone(&catalog) as Arc<dyn Catalog>;
    let points = Arc::new(PointCatalog::load(Arc::clone(&shared), Arc::clone(&clock)).await?);
    let logs = Logs::new(Arc::clone(&store), Arc::clone(&points))?;
    let known: Vec<_> =
        descriptions.iter().flat_map(|description| description.disks()).map(|disk| disk.id).collect();
    for log in store.disks() {
        if known.contains(&log.disk()) {
            logs.follow(log.disk()).await?;
        } else {
            let text = format!(
                "disk {} of machine {} has a log, but no description",
                log.disk(),
                log.manifest().machine
            );
            rebuilt.remarks.push(text);
        }
    }
    for description in &descriptions {
        rebuilt.points += points.list(description.machine, u32::MAX).await?.len();
    }
    let at = clock.wall();
    let detail = format!("{} machines, {} points", rebuilt.machines, rebuilt.points);
    let (who, what) = ("coordinator".to_owned(), "rebuild catalog".to_owned());
    let id = SystemEntropy::new().uuid(at);
    shared
        .apply(vec![Change::Audit(AuditRecord { id, at, who, what, subject: String::new(), detail })])
        .await?;
    logs.stop().await;
    catalog.close().await;
    Ok(rebuilt)
}

/// Moves the database and its side files out of the way.
fn set_aside(catalog: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let mut from = catalog.as_os_str().to_owned();
        from.push(suffix);
        let mut to = catalog.as_os_str().to_owned();
        to.push(".old");
        to.push(suffix);
        let (from, to) = (Path::new(&from), Path::new(&to));
        if from.exists() {
            durable::rename(from, to).with_context(|| format!("setting {} aside", from.display()))?;
        }
    }
    Ok(())
}
