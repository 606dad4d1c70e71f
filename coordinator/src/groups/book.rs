//! The groups and who is in them.
//!
//! Owns groups and memberships, in memory and in the catalog. Does not know cuts. Invariant: what is in memory equals the
//! catalog; a change is in the catalog first, with its audit entry, and changes are made one at a time. A machine is in one
//! group at most; joining and leaving touch nothing of its own replication.
//! Limits: [`GROUP_MEMBERS_MAX`] members, [`GROUPS_MAX`] groups.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holdfast_common::{
    clock::{Clock, Timestamp},
    entropy::Entropy,
    ids::{GroupId, MachineId},
    wire::limits::{
        CUT_INTERVAL_MS_DEFAULT, CUT_INTERVAL_MS_MIN, GROUP_MEMBERS_MAX, GROUP_WAIT_MS_DEFAULT,
        GROUP_WAIT_MS_MAX,
    },
};
use thiserror::Error;
use tokio::sync::watch;

use crate::{
    catalog::{
        Catalog, CatalogError, Change,
        record::{AuditRecord, GroupMemberRecord, GroupRecord},
    },
    registry::thresholds::{Ages, Thresholds},
};

/// Most groups.
pub const GROUPS_MAX: usize = 1_000;
/// Longest name, in characters.
pub const NAME_CHARS_MAX: usize = 64;
/// Longest interval of group cuts.
const INTERVAL_MS_MAX: u64 = 24 * 3600 * 1000;
/// Shortest interval of app-consistent group cuts.
const APPLICATION_INTERVAL_MS_MIN: u64 = 60_000;
/// Shortest wait for a mark.
const WAIT_MS_MIN: u64 = 10;

/// Groups and members.
#[derive(Debug)]
pub struct GroupBook {
    catalog: Arc<dyn Catalog>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    state: Mutex<State>,
    changing: tokio::sync::Mutex<()>,
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    groups: BTreeMap<GroupId, GroupRecord>,
    members: BTreeMap<MachineId, GroupMemberRecord>,
}

/// A group as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group.
    pub record: GroupRecord,
    /// Its machines.
    pub members: BTreeSet<MachineId>,
}

/// How a group is cut; what is `None` stays as it is, or becomes the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupRules {
    /// Time between group cuts, in milliseconds.
    pub interval_ms: Option<u64>,
    /// Longest time that a held member waits for the mark, in milliseconds.
    pub wait_ms_max: Option<u64>,
    /// Time between app-consistent group cuts, in milliseconds; zero means none by themselves.
    pub application_interval_ms: Option<u64>,
    /// Ages of its newest point that are worth a warning, and critical; zeroes: by its interval.
    pub lag: Option<Ages>,
}

/// Why it was not done. The texts say what to do.
#[derive(Debug, Error)]
pub enum GroupError {
    /// No group of this name or id.
    #[error("there is no group `{0}`; `holdfast group show` lists them")]
    Unknown(String),
    /// The name is taken, or no name.
    #[error("{0}")]
    Name(String),
    /// A machine is in another group.
    #[error(
        "machine {machine} is in group {group}; take it out first: holdfast group remove {group} {machine}"
    )]
    Elsewhere {
        /// The machine.
        machine: MachineId,
        /// Its group.
        group: String,
    },
    /// The machine is not in the group.
    #[error("machine {machine} is not in group {group}; `holdfast group show {group}` lists its machines")]
    NoMember {
        /// The machine.
        machine: MachineId,
        /// The group.
        group: String,
    },
    /// Too many groups or members, or a setting out of its range.
    #[error("{0}")]
    Setting(String),
    /// The catalog failed.
    #[error("the catalog failed; nothing was changed")]
    Catalog(#[from] CatalogError),
}

impl GroupBook {
    /// Reads what is known.
    ///
    /// # Errors
    /// The catalog cannot be read.
    pub async fn load(
        catalog: Arc<dyn Catalog>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, CatalogError> {
        let groups = catalog.groups().await?.into_iter().map(|group| (group.id, group)).collect();
        let members =
            catalog.group_members().await?.into_iter().map(|member| (member.machine, member)).collect();
        let (version, _) = watch::channel(0);
        let changing = tokio::sync::Mutex::new(());
        Ok(Self { catalog, clock, entropy, state: Mutex::new(State { groups, members }), changing, version })
    }

    /// All groups, by name.
    #[must_use]
    pub fn all(&self) -> Vec<GroupStatus> {
        let state = self.state();
        let mut all: Vec<GroupStatus> = state.groups.values().map(|group| state.status(group)).collect();
        all.sort_by(|one, other| one.record.name.cmp(&other.record.name));
        all
    }

    /// The group that an operator means by a name or an id.
    ///
    /// # Errors
    /// There is none.
    pub fn resolve(&self, given: &str) -> Result<GroupStatus, GroupError> {
        let state = self.state();
        let found = state
            .groups
            .values()
            .find(|group| group.name == given || group.id.to_string() == given)
            .ok_or_else(|| GroupError::Unknown(given.chars().take(80).collect()))?;
        Ok(state.status(found))
    }

    /// A group.
    #[must_use]
    pub fn get(&self, group: GroupId) -> Option<GroupStatus> {
        let state = self.state();
        state.groups.get(&group).map(|group| state.status(group))
    }

    /// The group of a machine.
    #[must_use]
    pub fn of(&self, machine: MachineId) -> Option<GroupStatus> {
        let state = self.state();
        let member = state.members.get(&machine)?;
        state.groups.get(&member.group).map(|group| state.status(group))
    }

    /// Changes with every change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Makes a group.
    ///
    /// # Errors
    /// The name is taken or no name, a machine is in another group, a rule is out of its range.
    pub async fn create(
        &self,
        who: &str,
        name: &str,
        machines: &[MachineId],
        rules: GroupRules,
    ) -> Result<GroupStatus, GroupError> {
        let _one_at_a_time = self.changing.lock().await;
        check_name(name)?;
        if self.resolve(name).is_ok() {
            return Err(GroupError::Name(format!(
                "there is a group {name} already; add to it, or take another name"
            )));
        }
        if self.state().groups.len() >= GROUPS_MAX {
            return Err(GroupError::Setting(format!(
                "there are {GROUPS_MAX} groups already; delete one first"
            )));
        }
        let now = self.clock.wall();
        let record = default_group(GroupId(self.entropy.uuid(now)), name.to_owned(), now);
        let record = rules.apply_to(record)?;
        let id = record.id;
        let mut changes = vec![Change::PutGroup(record.clone())];
        changes.extend(self.joining(&record, machines)?);
        changes.push(self.audit(who, "create group", name, &listed(machines)));
        self.commit(changes).await?;
        self.resolve(&id.to_string())
    }

    /// Has machines join, and changes rules.
    ///
    /// # Errors
    /// As with [`Self::create`].
    pub async fn add(
        &self,
        who: &str,
        group: &str,
        machines: &[MachineId],
        rules: GroupRules,
    ) -> Result<GroupStatus, GroupError> {
        let _one_at_a_time = self.changing.lock().await;
        let found = self.resolve(group)?;
        let record = rules.apply_to(found.record)?;
        let mut changes = vec![Change::PutGroup(record.clone())];
        changes.extend(self.joining(&record, machines)?);
        changes.push(self.audit(who, "add to group", &record.name, &listed(machines)));
        self.commit(changes).await?;
        self.resolve(&record.id.to_string())
    }

    /// Has machines leave.
    ///
    /// # Errors
    /// One is not in the group; then none leaves.
    pub async fn remove(
        &self,
        who: &str,
        group: &str,
        machines: &[MachineId],
    ) -> Result<GroupStatus, GroupError> {
        let _one_at_a_time = self.changing.lock().await;
        let found = self.resolve(group)?;
        if let Some(machine) = machines.iter().find(|machine| !found.members.contains(machine)) {
            return Err(GroupError::NoMember { machine: *machine, group: found.record.name });
        }
        let mut changes: Vec<Change> =
            machines.iter().map(|machine| Change::RemoveGroupMember(*machine)).collect();
        changes.push(self.audit(who, "remove from group", &found.record.name, &listed(machines)));
        self.commit(changes).await?;
        self.resolve(&found.record.id.to_string())
    }

    /// Ends a group. Its machines and all points stay; group points are shown no more.
    ///
    /// # Errors
    /// There is no such group.
    pub async fn delete(&self, who: &str, group: &str) -> Result<GroupStatus, GroupError> {
        let _one_at_a_time = self.changing.lock().await;
        let found = self.resolve(group)?;
        let mut changes = vec![Change::RemoveGroup(found.record.id)];
        let prefix = holder_prefix(found.record.id);
        let leases = self.catalog.leases().await?;
        let held = leases.into_iter().map(|lease| lease.holder).filter(|holder| holder.starts_with(&prefix));
        changes.extend(held.collect::<BTreeSet<_>>().into_iter().map(Change::EndLeases));
        changes.push(self.audit(who, "delete group", &found.record.name, ""));
        self.commit(changes).await?;
        Ok(found)
    }

    fn joining(&self, record: &GroupRecord, machines: &[MachineId]) -> Result<Vec<Change>, GroupError> {
        let state = self.state();
        let mut members = state.status(record).members;
        for machine in machines {
            let elsewhere = state.members.get(machine).filter(|member| member.group != record.id);
            if let Some(group) = elsewhere.and_then(|member| state.groups.get(&member.group)) {
                return Err(GroupError::Elsewhere { machine: *machine, group: group.name.clone() });
            }
            members.insert(*machine);
        }
        if members.len() > GROUP_MEMBERS_MAX {
            let text = format!("a group has at most {GROUP_MEMBERS_MAX} machines; make another group");
            return Err(GroupError::Setting(text));
        }
        let joined_at = self.clock.wall();
        let new = machines.iter().filter(|machine| !state.members.contains_key(machine));
        let member =
            |machine: &MachineId| GroupMemberRecord { machine: *machine, group: record.id, joined_at };
        Ok(new.map(|machine| Change::PutGroupMember(member(machine))).collect())
    }

    fn audit(&self, who: &str, what: &str, subject: &str, detail: &str) -> Change {
        let at = self.clock.wall();
        let (who, what, subject) = (who.to_owned(), what.to_owned(), subject.to_owned());
        Change::Audit(AuditRecord {
            id: self.entropy.uuid(at),
            at,
            who,
            what,
            subject,
            detail: detail.to_owned(),
        })
    }

    async fn commit(&self, changes: Vec<Change>) -> Result<(), CatalogError> {
        self.catalog.apply(changes.clone()).await?;
        let mut state = self.state();
        for change in changes {
            match change {
                Change::PutGroup(record) => _ = state.groups.insert(record.id, record),
                Change::RemoveGroup(group) => {
                    state.groups.remove(&group);
                    state.members.retain(|_, member| member.group != group);
                }
                Change::PutGroupMember(member) => _ = state.members.insert(member.machine, member),
                Change::RemoveGroupMember(machine) => _ = state.members.remove(&machine),
                _ => {}
            }
        }
        drop(state);
        self.version.send_modify(|version| *version += 1);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn status(&self, record: &GroupRecord) -> GroupStatus {
        let members = self.members.values().filter(|member| member.group == record.id);
        GroupStatus { record: record.clone(), members: members.map(|member| member.machine).collect() }
    }
}

impl GroupStatus {
    /// Time between group cuts.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        Duration::from_millis(self.record.interval_ms)
    }

    /// Ages of its newest point that are worth a warning, and critical, if they were set.
    #[must_use]
    pub fn lag(&self) -> Option<Ages> {
        lag_of(&self.record)
    }

    /// Longest time that a held member waits for the mark.
    #[must_use]
    pub const fn wait(&self) -> Duration {
        Duration::from_millis(self.record.wait_ms_max)
    }
}

impl GroupRules {
    fn apply_to(self, record: GroupRecord) -> Result<GroupRecord, GroupError> {
        let record = GroupRecord {
            interval_ms: self.interval_ms.unwrap_or(record.interval_ms),
            wait_ms_max: self.wait_ms_max.unwrap_or(record.wait_ms_max),
            application_interval_ms: self.application_interval_ms.unwrap_or(record.application_interval_ms),
            lag_warning_ms: self.lag.map_or(record.lag_warning_ms, |lag| lag.warning_ms),
            lag_critical_ms: self.lag.map_or(record.lag_critical_ms, |lag| lag.critical_ms),
            ..record
        };
        let out_of_range = |what, range| Err(GroupError::Setting(format!("{what} must lie between {range}")));
        if !(CUT_INTERVAL_MS_MIN..=INTERVAL_MS_MAX).contains(&record.interval_ms) {
            return out_of_range("the interval", "1s and 24h");
        }
        if !(WAIT_MS_MIN..=GROUP_WAIT_MS_MAX).contains(&record.wait_ms_max) {
            return out_of_range("the longest wait of a held member", "10ms and 2s");
        }
        let application = record.application_interval_ms;
        if application != 0 && !(APPLICATION_INTERVAL_MS_MIN..=INTERVAL_MS_MAX).contains(&application) {
            let what = "the interval of app-consistent points (0 for none)";
            return out_of_range(what, "1m and 24h");
        }
        let lag = Thresholds { lag: lag_of(&record), ..Thresholds::default() };
        lag.check().map_err(|error| GroupError::Setting(error.to_string()))?;
        Ok(record)
    }
}

fn lag_of(record: &GroupRecord) -> Option<Ages> {
    let lag = Ages { warning_ms: record.lag_warning_ms, critical_ms: record.lag_critical_ms };
    Some(lag).filter(|lag| *lag != Ages { warning_ms: 0, critical_ms: 0 })
}

/// A group for which nothing was said but its name.
#[must_use]
pub fn default_group(id: GroupId, name: String, created_at: Timestamp) -> GroupRecord {
    GroupRecord {
        id,
        name,
        interval_ms: CUT_INTERVAL_MS_DEFAULT,
        wait_ms_max: GROUP_WAIT_MS_DEFAULT,
        application_interval_ms: 0,
        lag_warning_ms: 0,
        lag_critical_ms: 0,
        created_at,
    }
}

/// How the holders of leases on a group's newest point begin.
pub(super) fn holder_prefix(group: GroupId) -> String {
    format!("group {group} point ")
}

fn check_name(name: &str) -> Result<(), GroupError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || !name.chars().all(plain) {
        return Err(GroupError::Name(format!(
            "a group's name has 1 to {NAME_CHARS_MAX} letters, digits, dots, dashes or underscores"
        )));
    }
    Ok(())
}

fn listed(machines: &[MachineId]) -> String {
    machines.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
