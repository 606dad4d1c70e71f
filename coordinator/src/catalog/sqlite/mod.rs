//! The catalog in SQLite.
//!
//! Owns the connections: one that writes, a few that read. The SQL (in [`write`](mod@write) and [`read`](mod@read)) is
//! what PostgreSQL runs too. Invariant: WAL and `synchronous=FULL`, so that a transaction that returned survives power
//! loss. Limit: [`READERS`] reading connections, [`BUSY_MS`] of waiting for a lock.

mod groups;
mod read;
mod row;
mod write;

use std::{borrow::Cow, path::Path, time::Duration};

use holdfast_common::{
    clock::Timestamp,
    frame::Consistency,
    ids::{DiskId, GroupId, MachineId, PointId},
};
use sqlx::{
    Connection as _, SqlSafeStr as _, SqliteConnection, SqlitePool,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    Answer, Catalog, CatalogError, Change,
    record::{
        AuditRecord, CertificateRecord, DiskRecord, GenerationRecord, GroupMemberRecord, GroupRecord,
        JobEventRow, LeaseRecord, MachineRecord, OperatorRecord, PlanRecord, PointRecord, PolicyRecord,
        TokenRecord, VoidedCutRecord, VoidedGroupCutRecord,
    },
};

/// Connections that read.
const READERS: u32 = 3;
/// How long a statement waits for another process that has the database open.
const BUSY_MS: u64 = 5_000;

/// The catalog in one SQLite file.
#[derive(Debug)]
pub struct SqliteCatalog {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteCatalog {
    /// Opens the catalog, creates it if it does not exist, and brings it to this version.
    ///
    /// # Errors
    /// The file cannot be opened or written, it is damaged, or a newer version wrote it.
    pub async fn open(path: &Path) -> Result<Self, CatalogError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_millis(BUSY_MS));
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        check(&writer).await?;
        migrations().run(&writer).await.map_err(CatalogError::Version)?;
        let readers =
            SqlitePoolOptions::new().max_connections(READERS).connect_with(options.read_only(true)).await?;
        Ok(Self { writer, readers })
    }

    /// Closes all connections; the write-ahead log is folded into the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn apply_all(&self, changes: Vec<Change>) -> Result<(), CatalogError> {
        let mut connection = self.writer.acquire().await?;
        let done = in_transaction(&mut connection, &changes).await;
        if let Err(CatalogError::Database(_)) = &done {
            // SQLite ends a transaction by itself when the disk is full, and the connection does not learn of it: it
            // would refuse every later one. The pool opens another.
            let _closed = connection.detach().close_hard().await;
        }
        done
    }
}

/// Reads all of the database, so that damage is told now and not by whatever needs it first. About two seconds per million rows.
async fn check(writer: &SqlitePool) -> Result<(), CatalogError> {
    let found: String = sqlx::query_scalar("PRAGMA integrity_check(1)").fetch_one(writer).await?;
    if found == "ok" { Ok(()) } else { Err(CatalogError::Damaged(found)) }
}

async fn in_transaction(connection: &mut SqliteConnection, changes: &[Change]) -> Result<(), CatalogError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    for change in changes {
        write::apply(&mut transaction, change).await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// All migrations, embedded. Files are only ever added.
fn migrations() -> Migrator {
    let first = include_str!("../../../migrations/0001_first.sql");
    let tiers = include_str!("../../../migrations/0002_retention_tiers.sql");
    let verified = include_str!("../../../migrations/0003_verified.sql");
    let groups = include_str!("../../../migrations/0004_groups.sql");
    let operators = include_str!("../../../migrations/0005_operators.sql");
    let lifecycles = include_str!("../../../migrations/0006_lifecycles.sql");
    let witness = include_str!("../../../migrations/0007_witness.sql");
    let group_lag = include_str!("../../../migrations/0008_group_lag.sql");
    let plans = include_str!("../../../migrations/0009_plans.sql");
    let drills = include_str!("../../../migrations/0010_drills.sql");
    let all = [
        (1, "first", first),
        (2, "retention tiers", tiers),
        (3, "verified", verified),
        (4, "groups", groups),
        (5, "operators", operators),
        (6, "lifecycles", lifecycles),
        (7, "witness", witness),
        (8, "group lag", group_lag),
        (9, "plans", plans),
        (10, "drills", drills),
    ];
    let all = all.map(|(version, name, sql)| {
        Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, sql.into_sql_str(), false)
    });
    Migrator::with_migrations(all.to_vec())
}

impl Catalog for SqliteCatalog {
    fn apply(&self, changes: Vec<Change>) -> Answer<'_, ()> {
        Box::pin(self.apply_all(changes))
    }

    fn machines(&self) -> Answer<'_, Vec<MachineRecord>> {
        Box::pin(read::machines(&self.readers))
    }

    fn certificates(&self, machine: MachineId) -> Answer<'_, Vec<CertificateRecord>> {
        Box::pin(read::certificates(&self.readers, machine))
    }

    fn certificate(&self, serial: Vec<u8>) -> Answer<'_, Option<CertificateRecord>> {
        Box::pin(read::certificate(&self.readers, serial))
    }

    fn tokens(&self) -> Answer<'_, Vec<TokenRecord>> {
        Box::pin(read::tokens(&self.readers))
    }

    fn disks(&self) -> Answer<'_, Vec<DiskRecord>> {
        Box::pin(read::disks(&self.readers))
    }

    fn generations(&self, disk: DiskId) -> Answer<'_, Vec<GenerationRecord>> {
        Box::pin(read::generations(&self.readers, disk))
    }

    fn policies(&self) -> Answer<'_, Vec<PolicyRecord>> {
        Box::pin(read::policies(&self.readers))
    }

    fn points(&self, machine: MachineId, limit: u32) -> Answer<'_, Vec<PointRecord>> {
        Box::pin(read::points(&self.readers, machine, limit))
    }

    fn point(&self, point: PointId) -> Answer<'_, Option<PointRecord>> {
        Box::pin(read::point(&self.readers, point))
    }

    fn voided_cuts(&self, machine: MachineId, limit: u32) -> Answer<'_, Vec<VoidedCutRecord>> {
        Box::pin(read::voided_cuts(&self.readers, machine, limit))
    }

    fn leases(&self) -> Answer<'_, Vec<LeaseRecord>> {
        Box::pin(read::leases(&self.readers))
    }

    fn job_events(&self) -> Answer<'_, Vec<JobEventRow>> {
        Box::pin(read::job_events(&self.readers))
    }

    fn audit(&self, since: Timestamp, limit: u32) -> Answer<'_, Vec<AuditRecord>> {
        Box::pin(read::audit(&self.readers, since, limit))
    }

    fn thresholds(&self) -> Answer<'_, Vec<(MachineId, String)>> {
        Box::pin(read::thresholds(&self.readers))
    }

    fn lifecycles(&self) -> Answer<'_, Vec<(MachineId, String)>> {
        Box::pin(read::lifecycles(&self.readers))
    }

    fn newest_point(&self, machine: MachineId, consistency: Consistency) -> Answer<'_, Option<PointRecord>> {
        Box::pin(read::newest_point(&self.readers, machine, consistency))
    }

    fn operators(&self) -> Answer<'_, Vec<OperatorRecord>> {
        Box::pin(read::operators(&self.readers))
    }

    fn plans(&self) -> Answer<'_, Vec<PlanRecord>> {
        Box::pin(read::plans(&self.readers))
    }

    fn groups(&self) -> Answer<'_, Vec<GroupRecord>> {
        Box::pin(groups::groups(&self.readers))
    }

    fn group_members(&self) -> Answer<'_, Vec<GroupMemberRecord>> {
        Box::pin(groups::members(&self.readers))
    }

    fn voided_group_cuts(&self, group: GroupId, limit: u32) -> Answer<'_, Vec<VoidedGroupCutRecord>> {
        Box::pin(groups::voided(&self.readers, group, limit))
    }
}

#[cfg(test)]
impl SqliteCatalog {
    /// The writing connection, to damage what is there.
    pub(in crate::catalog) fn writer_for_tests(&self) -> SqlitePool {
        self.writer.clone()
    }
}
