//! Makes the catalog again: machines, disks, operators and recovery plans from what is kept of them, points from the logs.
//!
//! Owns the order of it. Invariant: the old catalog is not deleted but set aside.
//! What is not in store and descriptions is lost: enrolment tokens, jobs, the audit, voided cuts, the rules of groups, and
//! inventories (agents send theirs at the next connect). Groups and their machines are those of the newest group cuts.
//! [`Rebuilt::to_do`] says what of it an operator must make again.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use holdfast_common::{
    clock::{Clock, SystemClock, Timestamp},
    durable,
    entropy::{Entropy as _, SystemEntropy},
    frame::GroupMark,
    ids::{GroupId, MachineId},
};

use super::{data::DataFolder, logs::Logs, open_store};
use crate::{
    catalog::{
        Catalog, Change, ROWS_MAX, SqliteCatalog,
        record::{AuditRecord, GroupMemberRecord, PointRecord},
    },
    config::Settings,
    groups::book::default_group,
    points::catalog::PointCatalog,
    registry::operators_record::OperatorsRecord,
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
    /// Replication groups, as the newest of their cuts say.
    pub groups: usize,
    /// Operators, those included that were revoked.
    pub operators: usize,
    /// Recovery plans.
    pub plans: usize,
    /// What was left out, and why.
    pub remarks: Vec<String>,
    /// What an operator must make again, and how.
    pub to_do: Vec<String>,
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
    let (operators, remark) = operators(&data.operators());
    rebuilt.operators = operators.len();
    rebuilt.remarks.extend(remark);
    catalog.apply(operators).await.context("recording operators")?;
    let (plans, remarks) = super::plans::kept(&data.plans(), clock.wall());
    rebuilt.plans = plans.len();
    rebuilt.remarks.extend(remarks);
    catalog.apply(plans).await.context("recording plans")?;
    let (store, recoveries) = open_store(settings, &data).await?;
    for recovery in
        recoveries.iter().filter_map(|found| found.error.as_ref().map(|error| (found.disk, error)))
    {
        rebuilt.remarks.push(format!("the log of disk {} cannot be used: {}", recovery.0, recovery.1));
    }
    rebuilt.remarks.extend(recoveries.iter().flat_map(|found| found.records.iter().cloned()));
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
    let mut found = Vec::new();
    for description in &descriptions {
        let all = points.list(description.machine, ROWS_MAX).await?;
        rebuilt.points += all.len();
        found.extend(all.into_iter().filter(|point| point.more.group.is_some()));
    }
    let groups = groups_of(&found, clock.wall());
    rebuilt.to_do = to_do(&groups);
    rebuilt.groups = groups.iter().filter(|change| matches!(change, Change::PutGroup(_))).count();
    shared.apply(groups).await.context("recording groups")?;
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

/// The operators of the record, and what is wrong with it.
fn operators(path: &Path) -> (Vec<Change>, Option<String>) {
    let again = "make operators again with `holdfast operator create`";
    if !path.exists() {
        let text = format!("there is no record of operators; if there were any, {again}");
        return (Vec::new(), Some(text));
    }
    let read = std::fs::read(path).map_err(|error| error.to_string());
    match read.and_then(|bytes| OperatorsRecord::parse(&bytes)) {
        Ok(record) => {
            let (changes, strange) = record.changes();
            let named = || {
                format!("operators {} are left out: a newer version made them; {again}", strange.join(", "))
            };
            let remark = (!strange.is_empty()).then(named);
            (changes, remark)
        }
        Err(error) => (Vec::new(), Some(format!("{} cannot be used: {error}; {again}", path.display()))),
    }
}

/// What is known to be gone.
fn to_do(groups: &[Change]) -> Vec<String> {
    let mut to_do = vec![
        "enrolment tokens that were not used yet are gone; make others with `holdfast token create`"
            .to_owned(),
    ];
    for change in groups {
        let Change::PutGroup(group) = change else { continue };
        to_do.push(format!(
            "group {} is cut by the default rules again (every {} s, no app-consistent cuts by themselves); if it had others, \
             set them with `holdfast group set {}`, and look with `holdfast group show {}` whether its machines are right",
            group.name,
            group.interval_ms / 1000,
            group.name,
            group.name
        ));
    }
    to_do.push(
        "groups that were never cut, jobs, the audit and voided cuts are only in the old catalog, which is kept as \
         catalog.sqlite.old; exports of jobs are no longer served: attach points again"
            .to_owned(),
    );
    to_do
}

/// The groups that these points' marks name, each with the machines of its newest cut. How often they are cut is not in the
/// marks: the defaults hold until an operator says otherwise.
fn groups_of(points: &[PointRecord], now: Timestamp) -> Vec<Change> {
    let mut newest: BTreeMap<GroupId, (&PointRecord, &GroupMark)> = BTreeMap::new();
    for point in points {
        let Some(mark) = &point.more.group else { continue };
        let before = newest.get(&mark.group);
        if before.is_none_or(|(before, _)| before.durable_at < point.durable_at) {
            newest.insert(mark.group, (point, mark));
        }
    }
    let known: BTreeSet<MachineId> = points.iter().map(|point| point.machine).collect();
    let mut names = BTreeSet::new();
    let mut changes = Vec::new();
    for (id, (_, mark)) in newest {
        let name = if names.insert(&mark.name) { mark.name.clone() } else { format!("{}-{id}", mark.name) };
        changes.push(Change::PutGroup(default_group(id, name, now)));
        let members = mark.members.iter().filter(|machine| known.contains(machine));
        let member = |machine: &MachineId| GroupMemberRecord { machine: *machine, group: id, joined_at: now };
        changes.extend(members.map(|machine| Change::PutGroupMember(member(machine))));
    }
    changes
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

#[cfg(test)]
mod tests;
