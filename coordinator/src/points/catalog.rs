//! The catalog of points: which recovery points each machine has, and how far each has come.
//!
//! Owns the way from durable cut frames to points, their states, and their end. Does not know logs, views or jobs.
//! Invariant: a point is in the catalog before anybody is told of it; in it only when all its disks' cuts are durable;
//! `processed` only when the index has all its frames. `durable_at` grows from point to point of a machine, also when
//! the wall clock steps, so it orders them as the logs do.
//! Limit: one small entry in memory per point kept (see [`super::known`]).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holdfast_common::{
    clock::{Clock, Timestamp},
    frame::{CutMore, CutRecord, WITNESS_BLOCKS_MAX, WitnessBlock},
    ids::{DiskId, GroupId, MachineId, PointId, Sequence},
};
use tokio::sync::watch;

use super::{
    assembler::{Arriving, Assembler, CutSeen, MemberSeen, Outcome},
    known::{Known, KnownPoint},
    marks::Marks,
    retention::{self, RetentionPlan, RetentionRule, Subject, Verdict},
};
use crate::{
    catalog::{
        Catalog, CatalogError, Change, ROWS_MAX,
        record::{LeaseRecord, PointDiskRecord, PointRecord, PointState, VoidedCutRecord, WitnessRecord},
    },
    store::NeededCuts,
};

/// How the time at which a point became durable is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It just became durable; our wall clock minus the agent's is this many microseconds.
    Now {
        /// The clocks' difference.
        clock_offset_us: i64,
    },
    /// It was found in the store: the cut's own time is the best that is known.
    Found,
}

/// Points removed in one transaction.
const REMOVED_AT_ONCE: usize = 1000;

/// The points of all machines.
#[derive(Debug)]
pub struct PointCatalog {
    catalog: Arc<dyn Catalog>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Held during a change, so that changes are made one after another.
    changing: tokio::sync::Mutex<()>,
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    assembler: Assembler,
    known: Known,
    marks: Marks,
    /// Points that wait for the index.
    pending: BTreeMap<PointId, PointRecord>,
    newest: HashMap<MachineId, PointRecord>,
    /// Points whose data was not all verified yet.
    unverified: BTreeMap<PointId, PointRecord>,
    /// Points whose witness was not compared yet.
    unwitnessed: BTreeMap<PointId, PointRecord>,
    /// How far the index is, per disk.
    indexed: HashMap<DiskId, Sequence>,
}

impl PointCatalog {
    /// Reads what is known.
    ///
    /// # Errors
    /// The catalog cannot be read.
    pub async fn load(catalog: Arc<dyn Catalog>, clock: Arc<dyn Clock>) -> Result<Self, CatalogError> {
        let mut state = State::default();
        for machine in catalog.machines().await? {
            for point in catalog.points(machine.id, ROWS_MAX).await?.into_iter().rev() {
                state.take_in(point);
            }
        }
        let (version, _) = watch::channel(0);
        let (state, changing) = (Mutex::new(state), tokio::sync::Mutex::new(()));
        Ok(Self { catalog, clock, state, changing, version })
    }

    /// A durable cut frame. Frames of one disk come in order; the same frame may come again after a restart.
    ///
    /// # Errors
    /// The catalog fails. The cut is not lost: it comes again from the log.
    pub async fn observe(&self, cut: CutSeen, arrival: Arrival) -> Result<Option<PointRecord>, CatalogError> {
        let _one_at_a_time = self.changing.lock().await;
        {
            let known = &self.state().known;
            if known.contains(cut.record.point) || known.is_past(cut.disk, cut.sequence) {
                return Ok(None);
            }
        }
        let outcomes = self.state().assembler.observe(cut);
        let mut made = None;
        for outcome in outcomes {
            match outcome {
                Outcome::Complete { record, members } => {
                    let point = self.point_of(*record, &members, arrival);
                    self.catalog.apply(vec![Change::AddPoint(point.clone())]).await?;
                    self.state().take_in(point.clone());
                    made = Some(point);
                }
                Outcome::GivenUp { record, reason } => self.record_given_up(&record, reason).await?,
            }
        }
        self.tell();
        match made {
            // The index may be further than the cut already.
            Some(point) => Ok(Some(self.settle(point).await?)),
            None => Ok(None),
        }
    }

    /// The index holds all frames of the disk up to this one.
    ///
    /// # Errors
    /// The catalog fails; the points stay pending until the next call.
    pub async fn indexed(&self, disk: DiskId, up_to: Sequence) -> Result<(), CatalogError> {
        let _one_at_a_time = self.changing.lock().await;
        let ready: Vec<PointRecord> = {
            let mut state = self.state();
            state.indexed.insert(disk, up_to);
            state.pending.values().filter(|point| state.is_indexed(point)).cloned().collect()
        };
        if ready.is_empty() {
            return Ok(());
        }
        for point in ready {
            self.settle(point).await?;
        }
        self.tell();
        Ok(())
    }

    /// A point must not be used any more.
    ///
    /// # Errors
    /// The catalog fails.
    pub async fn void(&self, point: PointId, reason: String) -> Result<(), CatalogError> {
        let _one_at_a_time = self.changing.lock().await;
        let known = self.catalog.point(point).await?;
        let Some(known) = known.filter(|known| known.state != PointState::Void) else { return Ok(()) };
        tracing::warn!(machine = %known.machine, %point, reason, "a point is void");
        let reason = self.voided_here(&reason);
        self.catalog.apply(vec![Change::SetPointState(point, PointState::Void, Some(reason))]).await?;
        self.forget_void(&[point]).await?;
        self.tell();
        Ok(())
    }

    /// The reason of a point that is voided now, with by whom and when.
    fn voided_here(&self, reason: &str) -> String {
        let now = self.clock.wall();
        let when = jiff::Timestamp::from_microsecond(now.0)
            .map_or_else(|_| now.0.to_string(), |at| format!("{at:.0}"));
        format!("{reason} (voided by the coordinator at {when})")
    }

    /// Takes void points out of the memory, and finds each machine's newest again.
    async fn forget_void(&self, points: &[PointId]) -> Result<(), CatalogError> {
        let machines: Vec<MachineId> = {
            let mut state = self.state();
            for point in points {
                state.pending.remove(point);
                state.known.set_state(*point, PointState::Void);
                state.marks.remove(*point);
                state.unverified.remove(point);
                state.unwitnessed.remove(point);
            }
            let newest = state.newest.iter().filter(|(_, newest)| points.contains(&newest.id));
            newest.map(|(machine, _)| *machine).collect()
        };
        for machine in machines {
            let newest = {
                let state = self.state();
                state
                    .known
                    .of(machine)
                    .rev()
                    .find(|point| point.state != PointState::Void)
                    .map(|point| point.id)
            };
            let newest = match newest {
                Some(newest) => self.catalog.point(newest).await?,
                None => None,
            };
            let mut state = self.state();
            match newest {
                Some(newest) => state.newest.insert(machine, newest),
                None => state.newest.remove(&machine),
            };
        }
        Ok(())
    }

    /// One point.
    ///
    /// # Errors
    /// The catalog cannot be read.
    pub async fn get(&self, point: PointId) -> Result<Option<PointRecord>, CatalogError> {
        self.catalog.point(point).await
    }

    /// Whether a point is known, void or not.
    #[must_use]
    pub fn is_known(&self, point: PointId) -> bool {
        self.state().known.contains(point)
    }

    /// A disk's log ends at `durable`: points that lie beyond have lost their data.
    ///
    /// # Errors
    /// The catalog fails.
    pub async fn void_beyond(&self, disk: DiskId, durable: Sequence) -> Result<Vec<PointId>, CatalogError> {
        let _one_at_a_time = self.changing.lock().await;
        let voided = self.state().known.beyond(disk, durable);
        if voided.is_empty() {
            return Ok(voided);
        }
        let reason = self.voided_here(&format!("the log of disk {disk} ends before it"));
        let changes = voided
            .iter()
            .map(|point| Change::SetPointState(*point, PointState::Void, Some(reason.clone())))
            .collect();
        self.catalog.apply(changes).await?;
        self.forget_void(&voided).await?;
        Ok(voided)
    }

    /// All points of a machine, newest first, at most `limit`.
    ///
    /// # Errors
    /// The catalog cannot be read.
    pub async fn list(&self, machine: MachineId, limit: u32) -> Result<Vec<PointRecord>, CatalogError> {
        self.catalog.points(machine, limit).await
    }

    /// The parts of a group's newest whole cuts, at most so many cuts; only of app-consistent ones if `application`. However many
    /// points its machines have made by themselves since.
    ///
    /// # Errors
    /// The catalog cannot be read.
    pub async fn group_parts(
        &self,
        group: GroupId,
        application: bool,
        cuts: usize,
    ) -> Result<Vec<PointRecord>, CatalogError> {
        let parts: Vec<PointId> =
            self.state().marks.newest(group, application).take(cuts).flatten().collect();
        let mut records = Vec::with_capacity(parts.len());
        for part in parts {
            records.extend(self.catalog.point(part).await?);
        }
        Ok(records)
    }

    /// How many cuts of a group are there in part only.
    #[must_use]
    pub fn incomplete_group_cuts(&self, group: GroupId) -> usize {
        self.state().marks.incomplete(group)
    }

    /// Cuts of a machine that have not arrived on all disks, oldest first.
    #[must_use]
    pub fn arriving(&self, machine: MachineId) -> Vec<Arriving> {
        self.state().assembler.arriving(machine)
    }

    /// The newest complete point of a machine.
    #[must_use]
    pub fn newest(&self, machine: MachineId) -> Option<PointRecord> {
        self.state().newest.get(&machine).cloned()
    }

    /// Number of points that wait for the index.
    #[must_use]
    pub fn pending_count(&self, machine: MachineId) -> usize {
        self.state().pending.values().filter(|point| point.machine == machine).count()
    }

    /// Points whose data was not all verified yet, in the order of their ids.
    #[must_use]
    pub fn unverified(&self) -> Vec<PointRecord> {
        self.state().unverified.values().cloned().collect()
    }

    /// All data of these points was read and found good; durable when it returns.
    ///
    /// # Errors
    /// The catalog fails; the points stay unverified.
    pub async fn verified(&self, points: &[PointId]) -> Result<(), CatalogError> {
        let _one_at_a_time = self.changing.lock().await;
        let at = self.clock.wall();
        let changes = points.iter().map(|point| Change::SetPointVerified(*point, at)).collect();
        self.catalog.apply(changes).await?;
        let mut state = self.state();
        for point in points {
            state.unverified.remove(point);
            if let Some(newest) = state.newest.values_mut().find(|newest| newest.id == *point) {
                newest.verified_at = Some(at);
            }
        }
        drop(state);
        self.tell();
        Ok(())
    }

    /// Points whose witness was not compared yet, in the order of their ids.
    #[must_use]
    pub fn unwitnessed(&self) -> Vec<PointRecord> {
        self.state().unwitnessed.values().cloned().collect()
    }

    /// What came of these points' witnesses; durable when it returns.
    ///
    /// # Errors
    /// The catalog fails; they are compared again.
    pub async fn witnessed(&self, points: &[(PointId, WitnessRecord)]) -> Result<(), CatalogError> {
        let _one_at_a_time = self.changing.lock().await;
        let changes =
            points.iter().map(|(point, witness)| Change::SetPointWitness(*point, *witness)).collect();
        self.catalog.apply(changes).await?;
        let mut state = self.state();
        for (point, witness) in points {
            state.unwitnessed.remove(point);
            if let Some(newest) = state.newest.values_mut().find(|newest| newest.id == *point) {
                newest.witness = *witness;
            }
        }
        drop(state);
        self.tell();
        Ok(())
    }

    /// Changes whenever a point was made or has changed.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Keeps a point from retention; durable when it returns. Gives false if the point is gone.
    ///
    /// # Errors
    /// The catalog fails.
    pub async fn lease(&self, point: PointId, holder: String) -> Result<bool, CatalogError> {
        // Not while retention is at work.
        let _one_at_a_time = self.changing.lock().await;
        if self.catalog.point(point).await?.is_none() {
            return Ok(false);
        }
        let since = self.clock.wall();
        self.catalog.apply(vec![Change::PutLease(LeaseRecord { point, holder, since })]).await?;
        Ok(true)
    }

    /// Ends all leases of a holder; durable when it returns.
    ///
    /// # Errors
    /// The catalog fails.
    pub async fn release(&self, holder: String) -> Result<(), CatalogError> {
        self.catalog.apply(vec![Change::EndLeases(holder)]).await
    }

    /// Ends all leases of a holder but the one on this point, at once; durable when it returns.
    ///
    /// # Errors
    /// The catalog fails, or the point is gone.
    pub async fn keep(&self, holder: String, point: PointId) -> Result<(), CatalogError> {
        let _one_at_a_time = self.changing.lock().await;
        let lease = LeaseRecord { point, holder: holder.clone(), since: self.clock.wall() };
        self.catalog.apply(vec![Change::EndLeases(holder), Change::PutLease(lease)]).await
    }

    /// What retention would do with the points of a machine now, oldest first. `damaged` tells whether the state of a disk at
    /// a cut needs a damaged frame.
    ///
    /// # Errors
    /// The catalog cannot be read.
    pub async fn plan(
        &self,
        machine: MachineId,
        rule: &RetentionRule,
        damaged: &(dyn Fn(DiskId, Sequence) -> bool + Sync),
    ) -> Result<Vec<(KnownPoint, Verdict)>, CatalogError> {
        let leased = self.leased().await?;
        let known: Vec<KnownPoint> = self.state().known.of(machine).cloned().collect();
        let subjects: Vec<Subject> = known.iter().map(|point| point.subject(damaged)).collect();
        let plan = retention::plan(&subjects, &leased, rule, self.clock.wall());
        // Both are in the order of durability.
        Ok(known.into_iter().zip(plan.verdicts.into_iter().map(|(_, verdict)| verdict)).collect())
    }

    /// Ends the points of a machine whose time is over, and says what it did.
    ///
    /// # Errors
    /// The catalog fails.
    pub async fn prune(
        &self,
        machine: MachineId,
        rule: &RetentionRule,
        damaged: &(dyn Fn(DiskId, Sequence) -> bool + Sync),
    ) -> Result<RetentionPlan, CatalogError> {
        let _one_at_a_time = self.changing.lock().await;
        let leased = self.leased().await?;
        let subjects: Vec<Subject> =
            self.state().known.of(machine).map(|point| point.subject(damaged)).collect();
        let plan = retention::plan(&subjects, &leased, rule, self.clock.wall());
        let removed = plan.removed();
        for some in removed.chunks(REMOVED_AT_ONCE) {
            self.catalog.apply(vec![Change::RemovePoints(some.to_vec())]).await?;
            let mut state = self.state();
            for point in some {
                state.pending.remove(point);
                state.known.remove(*point);
                state.marks.remove(*point);
                state.unverified.remove(point);
                state.unwitnessed.remove(point);
            }
        }
        Ok(plan)
    }

    /// The cuts of a disk that points stand on: what its log must keep.
    ///
    /// # Errors
    /// The catalog cannot be read.
    pub async fn needed(&self, disk: DiskId) -> Result<NeededCuts, CatalogError> {
        let _one_at_a_time = self.changing.lock().await;
        let leased = self.leased().await?;
        Ok(self.state().known.needed(disk, &leased))
    }

    async fn leased(&self) -> Result<HashSet<PointId>, CatalogError> {
        Ok(self.catalog.leases().await?.iter().map(|lease| lease.point).collect())
    }

    /// Marks a point as processed if the index has all of it.
    async fn settle(&self, point: PointRecord) -> Result<PointRecord, CatalogError> {
        if point.state != PointState::Pending || !self.state().is_indexed(&point) {
            return Ok(point);
        }
        self.catalog.apply(vec![Change::SetPointState(point.id, PointState::Processed, None)]).await?;
        let point = PointRecord { state: PointState::Processed, ..point };
        let mut state = self.state();
        state.pending.remove(&point.id);
        state.known.set_state(point.id, PointState::Processed);
        if let Some(newest) = state.newest.get_mut(&point.machine).filter(|newest| newest.id == point.id) {
            newest.state = PointState::Processed;
        }
        Ok(point)
    }

    fn point_of(
        &self,
        record: CutRecord,
        members: &BTreeMap<DiskId, MemberSeen>,
        arrival: Arrival,
    ) -> PointRecord {
        let last = self.newest(record.machine).map_or(Timestamp(i64::MIN), |newest| newest.durable_at);
        let (arrived, cut_here) = match arrival {
            Arrival::Now { clock_offset_us } => {
                (self.clock.wall(), Timestamp(record.at.0.saturating_add(clock_offset_us)))
            }
            Arrival::Found => (record.at, record.at),
        };
        let durable_at = arrived.max(Timestamp(last.0.saturating_add(1)));
        PointRecord {
            id: record.point,
            machine: record.machine,
            state: PointState::Pending,
            void_reason: None,
            cut_at: record.at,
            durable_at,
            rpo_us: u64::try_from(arrived.since(cut_here).as_micros()).unwrap_or(u64::MAX),
            method: record.method,
            consistency: record.consistency,
            hold_us: record.hold_us,
            request: record.request,
            notes: record.notes,
            disks: members.iter().map(|(disk, seen)| member_record(*disk, seen)).collect(),
            verified_at: None,
            witness: WitnessRecord {
                blocks: record.more.witness.as_ref().map_or(0, |witness| counted(&witness.blocks)),
                ..WitnessRecord::default()
            },
            more: CutMore { witness: None, ..record.more },
        }
    }

    async fn record_given_up(&self, record: &CutRecord, reason: String) -> Result<(), CatalogError> {
        tracing::warn!(machine = %record.machine, point = %record.point, reason, "a cut will not become a point");
        let machine = record.machine;
        let reason = format!("the cut did not arrive on all disks: {reason}");
        let cut = VoidedCutRecord { machine, at: record.at, request: record.request, reason };
        self.catalog.apply(vec![Change::AddVoidedCut(cut)]).await?;
        Ok(())
    }

    fn tell(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take_in(&mut self, point: PointRecord) {
        self.known.insert(&point);
        self.marks.insert(&point);
        if point.state == PointState::Pending {
            self.pending.insert(point.id, point.clone());
        }
        if point.state != PointState::Void {
            if point.verified_at.is_none() {
                self.unverified.insert(point.id, point.clone());
            }
            if point.witness.is_open() {
                self.unwitnessed.insert(point.id, point.clone());
            }
            self.newest.insert(point.machine, point);
        }
    }

    fn is_indexed(&self, point: &PointRecord) -> bool {
        point
            .disks
            .iter()
            .all(|member| self.indexed.get(&member.disk).is_some_and(|indexed| *indexed >= member.sequence))
    }
}

/// Blocks of a witness that are looked at.
fn counted(blocks: &[WitnessBlock]) -> u32 {
    u32::try_from(blocks.len().min(WITNESS_BLOCKS_MAX)).unwrap_or(u32::MAX)
}

fn member_record(disk: DiskId, seen: &MemberSeen) -> PointDiskRecord {
    let MemberSeen { generation, sequence, stored_bytes } = *seen;
    PointDiskRecord { disk, generation, sequence, stored_bytes }
}

#[cfg(test)]
mod tests;
