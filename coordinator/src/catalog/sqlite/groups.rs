//! Groups, their members, and their voided cuts: what writes and what reads.
//!
//! Owns the SQL of these tables.

use holdfast_common::ids::{GroupCutId, GroupId, MachineId};
use sqlx::{SqliteConnection, SqlitePool};

use super::{
    super::{
        CatalogError, ROWS_MAX, VOIDED_CUTS_KEPT,
        record::{GroupMemberRecord, GroupRecord, VoidedGroupCutRecord},
    },
    row::{array, number, optional_id, signed, text, time},
    write::{Statement, run},
};

pub(super) fn put(group: &GroupRecord) -> Statement<'_> {
    sqlx::query(
        "INSERT INTO groups (id, name, interval_ms, wait_ms_max, application_interval_ms, created_at, lag_warning_ms, \
         lag_critical_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO UPDATE SET name = excluded.name, \
         interval_ms = excluded.interval_ms, wait_ms_max = excluded.wait_ms_max, \
         application_interval_ms = excluded.application_interval_ms, lag_warning_ms = excluded.lag_warning_ms, \
         lag_critical_ms = excluded.lag_critical_ms",
    )
    .bind(group.id.into_bytes().to_vec())
    .bind(group.name.as_str())
    .bind(signed(group.interval_ms))
    .bind(signed(group.wait_ms_max))
    .bind(signed(group.application_interval_ms))
    .bind(group.created_at.0)
    .bind(signed(group.lag_warning_ms))
    .bind(signed(group.lag_critical_ms))
}

pub(super) fn remove(group: GroupId) -> Statement<'static> {
    sqlx::query("DELETE FROM groups WHERE id = $1").bind(group.into_bytes().to_vec())
}

pub(super) fn put_member(member: &GroupMemberRecord) -> Statement<'static> {
    sqlx::query(
        "INSERT INTO group_members (machine, group_id, joined_at) VALUES ($1, $2, $3) ON CONFLICT (machine) \
         DO UPDATE SET group_id = excluded.group_id, joined_at = excluded.joined_at",
    )
    .bind(member.machine.into_bytes().to_vec())
    .bind(member.group.into_bytes().to_vec())
    .bind(member.joined_at.0)
}

pub(super) fn remove_member(machine: MachineId) -> Statement<'static> {
    sqlx::query("DELETE FROM group_members WHERE machine = $1").bind(machine.into_bytes().to_vec())
}

pub(super) async fn add_voided(
    connection: &mut SqliteConnection,
    cut: &VoidedGroupCutRecord,
) -> Result<(), CatalogError> {
    let group = cut.group.into_bytes().to_vec();
    // A group that was deleted meanwhile has no voided cuts any more.
    let insert = sqlx::query(
        "INSERT INTO voided_group_cuts (cut, group_id, at, machine, reason) SELECT $1, $2, $3, $4, $5 \
         WHERE EXISTS (SELECT 1 FROM groups WHERE id = $2) ON CONFLICT DO NOTHING",
    )
    .bind(cut.cut.into_bytes().to_vec())
    .bind(group.clone())
    .bind(cut.at.0)
    .bind(cut.machine.map(|machine| machine.into_bytes().to_vec()))
    .bind(cut.reason.as_str());
    run(connection, insert).await?;
    let prune = sqlx::query(
        "DELETE FROM voided_group_cuts WHERE group_id = $1 AND at < (SELECT MIN(at) FROM (SELECT at FROM \
         voided_group_cuts WHERE group_id = $1 ORDER BY at DESC LIMIT $2) AS newest)",
    )
    .bind(group)
    .bind(i64::from(VOIDED_CUTS_KEPT));
    run(connection, prune).await?;
    Ok(())
}

pub(super) async fn groups(pool: &SqlitePool) -> Result<Vec<GroupRecord>, CatalogError> {
    let rows = sqlx::query("SELECT * FROM groups ORDER BY name").fetch_all(pool).await?;
    let group = |row| {
        Ok(GroupRecord {
            id: GroupId::from_bytes(array(row, "id")?),
            name: text(row, "name")?,
            interval_ms: number(row, "interval_ms")?,
            wait_ms_max: number(row, "wait_ms_max")?,
            application_interval_ms: number(row, "application_interval_ms")?,
            lag_warning_ms: number(row, "lag_warning_ms")?,
            lag_critical_ms: number(row, "lag_critical_ms")?,
            created_at: time(row, "created_at")?,
        })
    };
    rows.iter().map(group).collect()
}

pub(super) async fn members(pool: &SqlitePool) -> Result<Vec<GroupMemberRecord>, CatalogError> {
    let rows = sqlx::query("SELECT * FROM group_members ORDER BY group_id, machine").fetch_all(pool).await?;
    let member = |row| {
        Ok(GroupMemberRecord {
            machine: MachineId::from_bytes(array(row, "machine")?),
            group: GroupId::from_bytes(array(row, "group_id")?),
            joined_at: time(row, "joined_at")?,
        })
    };
    rows.iter().map(member).collect()
}

pub(super) async fn voided(
    pool: &SqlitePool,
    group: GroupId,
    limit: u32,
) -> Result<Vec<VoidedGroupCutRecord>, CatalogError> {
    let rows = sqlx::query("SELECT * FROM voided_group_cuts WHERE group_id = $1 ORDER BY at DESC LIMIT $2")
        .bind(group.into_bytes().to_vec())
        .bind(i64::from(limit.min(ROWS_MAX)))
        .fetch_all(pool)
        .await?;
    let cut = |row| {
        Ok(VoidedGroupCutRecord {
            cut: GroupCutId::from_bytes(array(row, "cut")?),
            group,
            at: time(row, "at")?,
            machine: optional_id(row, "machine")?.map(MachineId::from_bytes),
            reason: text(row, "reason")?,
        })
    };
    rows.iter().map(cut).collect()
}
