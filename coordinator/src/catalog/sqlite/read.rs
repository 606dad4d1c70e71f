//! Queries.
//!
//! Owns the SQL that reads. Every row is converted with checks ([`super::row`]); a row that cannot be read is an error
//! that names the column.

use std::collections::HashMap;

use holdfast_common::{
    clock::Timestamp,
    frame::Consistency,
    ids::{DiskId, Generation, JobId, MachineId, PointId, Sequence},
    wire::DiskIdentity,
};
use sqlx::{SqlitePool, sqlite::SqliteRow};
use uuid::Uuid;

use super::{
    super::{
        CatalogError, ROWS_MAX,
        record::{
            AuditRecord, CertificateRecord, DiskRecord, GenerationRecord, JobEventRow, LeaseRecord,
            MachineRecord, MachineState, OperatorRecord, PlanRecord, PointDiskRecord, PointRecord,
            PointState, PolicyRecord, Role, TokenRecord, VoidedCutRecord, consistency_text,
            parse_consistency, parse_method,
        },
    },
    row::{
        array, bytes, json, number, optional_id, optional_json, optional_number, optional_text,
        optional_time, parsed, text, texts, time,
    },
};

type Rows = Result<Vec<SqliteRow>, sqlx::Error>;

fn each<T>(
    rows: Rows,
    convert: impl Fn(&SqliteRow) -> Result<T, CatalogError>,
) -> Result<Vec<T>, CatalogError> {
    rows?.iter().map(convert).collect()
}

pub(super) async fn machines(pool: &SqlitePool) -> Result<Vec<MachineRecord>, CatalogError> {
    let rows = sqlx::query("SELECT * FROM machines ORDER BY enrolled_at, id").fetch_all(pool).await;
    each(rows, |row| {
        Ok(MachineRecord {
            id: MachineId::from_bytes(array(row, "id")?),
            name: text(row, "name")?,
            state: parsed(row, "state", MachineState::parse)?,
            enrolled_at: time(row, "enrolled_at")?,
            last_seen_at: optional_time(row, "last_seen_at")?,
            agent_version: text(row, "agent_version")?,
            inventory: optional_text(row, "inventory")?.map(Into::into),
        })
    })
}

fn certificate_of(row: &SqliteRow) -> Result<CertificateRecord, CatalogError> {
    Ok(CertificateRecord {
        serial: bytes(row, "serial")?,
        machine: MachineId::from_bytes(array(row, "machine")?),
        issued_at: time(row, "issued_at")?,
        expires_at: time(row, "expires_at")?,
        revoked_at: optional_time(row, "revoked_at")?,
    })
}

pub(super) async fn certificates(
    pool: &SqlitePool,
    machine: MachineId,
) -> Result<Vec<CertificateRecord>, CatalogError> {
    let query = sqlx::query("SELECT * FROM certificates WHERE machine = $1 ORDER BY issued_at, serial");
    each(query.bind(machine.into_bytes().to_vec()).fetch_all(pool).await, certificate_of)
}

pub(super) async fn certificate(
    pool: &SqlitePool,
    serial: Vec<u8>,
) -> Result<Option<CertificateRecord>, CatalogError> {
    let query = sqlx::query("SELECT * FROM certificates WHERE serial = $1").bind(serial);
    query.fetch_optional(pool).await?.as_ref().map(certificate_of).transpose()
}

pub(super) async fn tokens(pool: &SqlitePool) -> Result<Vec<TokenRecord>, CatalogError> {
    each(sqlx::query("SELECT * FROM tokens ORDER BY created_at, hash").fetch_all(pool).await, |row| {
        Ok(TokenRecord {
            hash: array(row, "hash")?,
            label: text(row, "label")?,
            machine: optional_id(row, "machine")?.map(MachineId::from_bytes),
            created_at: time(row, "created_at")?,
            expires_at: time(row, "expires_at")?,
            used_at: optional_time(row, "used_at")?,
            used_by: optional_id(row, "used_by")?.map(MachineId::from_bytes),
        })
    })
}

pub(super) async fn disks(pool: &SqlitePool) -> Result<Vec<DiskRecord>, CatalogError> {
    each(sqlx::query("SELECT * FROM disks ORDER BY id").fetch_all(pool).await, |row| {
        Ok(DiskRecord {
            id: DiskId::from_bytes(array(row, "id")?),
            machine: MachineId::from_bytes(array(row, "machine")?),
            path: text(row, "path")?,
            identity: DiskIdentity {
                wwid: optional_text(row, "wwid")?,
                serial: optional_text(row, "serial")?,
                table_id: optional_text(row, "table_id")?,
                backing_file: optional_text(row, "backing_file")?,
                bus_path: optional_text(row, "bus_path")?,
            },
            size_bytes: number(row, "size_bytes")?,
            generation: Generation(number(row, "generation")?),
            protected_at: time(row, "protected_at")?,
            unprotected_at: optional_time(row, "unprotected_at")?,
        })
    })
}

pub(super) async fn generations(
    pool: &SqlitePool,
    disk: DiskId,
) -> Result<Vec<GenerationRecord>, CatalogError> {
    let query = sqlx::query("SELECT * FROM generations WHERE disk = $1 ORDER BY number");
    each(query.bind(disk.into_bytes().to_vec()).fetch_all(pool).await, |row| {
        Ok(GenerationRecord {
            disk,
            number: Generation(number(row, "number")?),
            reason: text(row, "reason")?,
            at: time(row, "at")?,
        })
    })
}

pub(super) async fn policies(pool: &SqlitePool) -> Result<Vec<PolicyRecord>, CatalogError> {
    each(sqlx::query("SELECT * FROM policies ORDER BY machine").fetch_all(pool).await, |row| {
        Ok(PolicyRecord {
            machine: MachineId::from_bytes(array(row, "machine")?),
            interval_ms: number(row, "interval_ms")?,
            retention_seconds: number(row, "retention_seconds")?,
            retention_tiers: json(row, "retention_tiers")?,
            hold_ms_max: number(row, "hold_ms_max")?,
            send_bytes_per_second_max: number(row, "send_bytes_per_second_max")?,
            scan_bytes_per_second_max: number(row, "scan_bytes_per_second_max")?,
            application_interval_ms: number(row, "application_interval_ms")?,
            application_strict: number::<i64>(row, "application_strict")? != 0,
            drill: json(row, "drill")?,
        })
    })
}

pub(super) async fn points(
    pool: &SqlitePool,
    machine: MachineId,
    limit: u32,
) -> Result<Vec<PointRecord>, CatalogError> {
    let machine = machine.into_bytes().to_vec();
    let limit = i64::from(limit.min(ROWS_MAX));
    let rows =
        sqlx::query("SELECT * FROM points WHERE machine = $1 ORDER BY durable_at DESC, id DESC LIMIT $2")
            .bind(machine.clone())
            .bind(limit)
            .fetch_all(pool)
            .await?;
    let disks = sqlx::query(
        "SELECT point_disks.* FROM point_disks WHERE point IN (SELECT id FROM points WHERE machine = $1 \
         ORDER BY durable_at DESC, id DESC LIMIT $2) ORDER BY point, disk",
    )
    .bind(machine)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    let mut members: HashMap<PointId, Vec<PointDiskRecord>> = HashMap::new();
    for row in &disks {
        members.entry(PointId::from_bytes(array(row, "point")?)).or_default().push(point_disk_of(row)?);
    }
    rows.iter().map(|row| point_of(row, &mut members)).collect()
}

pub(super) async fn point(pool: &SqlitePool, point: PointId) -> Result<Option<PointRecord>, CatalogError> {
    let id = point.into_bytes().to_vec();
    let Some(row) =
        sqlx::query("SELECT * FROM points WHERE id = $1").bind(id.clone()).fetch_optional(pool).await?
    else {
        return Ok(None);
    };
    let disks = sqlx::query("SELECT * FROM point_disks WHERE point = $1 ORDER BY disk")
        .bind(id)
        .fetch_all(pool)
        .await;
    let mut members = HashMap::from([(point, each(disks, point_disk_of)?)]);
    point_of(&row, &mut members).map(Some)
}

pub(super) async fn newest_point(
    pool: &SqlitePool,
    machine: MachineId,
    consistency: Consistency,
) -> Result<Option<PointRecord>, CatalogError> {
    let query = sqlx::query(
        "SELECT id FROM points WHERE machine = $1 AND consistency = $2 AND state <> $3 \
         ORDER BY durable_at DESC, id DESC LIMIT 1",
    )
    .bind(machine.into_bytes().to_vec())
    .bind(consistency_text(consistency))
    .bind(PointState::Void.text());
    match query.fetch_optional(pool).await? {
        Some(row) => point(pool, PointId::from_bytes(array(&row, "id")?)).await,
        None => Ok(None),
    }
}

fn point_of(
    row: &SqliteRow,
    members: &mut HashMap<PointId, Vec<PointDiskRecord>>,
) -> Result<PointRecord, CatalogError> {
    let id = PointId::from_bytes(array(row, "id")?);
    Ok(PointRecord {
        id,
        machine: MachineId::from_bytes(array(row, "machine")?),
        state: parsed(row, "state", PointState::parse)?,
        void_reason: optional_text(row, "void_reason")?,
        cut_at: time(row, "cut_at")?,
        durable_at: time(row, "durable_at")?,
        rpo_us: number(row, "rpo_us")?,
        method: parsed(row, "method", parse_method)?,
        consistency: parsed(row, "consistency", parse_consistency)?,
        hold_us: number(row, "hold_us")?,
        request: optional_number(row, "request")?,
        notes: texts(row, "notes")?,
        disks: members.remove(&id).unwrap_or_default(),
        verified_at: optional_time(row, "verified_at")?,
        more: optional_json(row, "more")?,
        witness: optional_json(row, "witness")?,
    })
}

fn point_disk_of(row: &SqliteRow) -> Result<PointDiskRecord, CatalogError> {
    Ok(PointDiskRecord {
        disk: DiskId::from_bytes(array(row, "disk")?),
        generation: Generation(number(row, "generation")?),
        sequence: Sequence(number(row, "sequence")?),
        stored_bytes: number(row, "stored_bytes")?,
    })
}

pub(super) async fn voided_cuts(
    pool: &SqlitePool,
    machine: MachineId,
    limit: u32,
) -> Result<Vec<VoidedCutRecord>, CatalogError> {
    let query = sqlx::query("SELECT * FROM voided_cuts WHERE machine = $1 ORDER BY at DESC LIMIT $2")
        .bind(machine.into_bytes().to_vec())
        .bind(i64::from(limit.min(ROWS_MAX)));
    each(query.fetch_all(pool).await, |row| {
        Ok(VoidedCutRecord {
            machine,
            at: time(row, "at")?,
            request: optional_number(row, "request")?,
            reason: text(row, "reason")?,
        })
    })
}

pub(super) async fn leases(pool: &SqlitePool) -> Result<Vec<LeaseRecord>, CatalogError> {
    each(sqlx::query("SELECT * FROM leases ORDER BY since, point").fetch_all(pool).await, |row| {
        Ok(LeaseRecord {
            point: PointId::from_bytes(array(row, "point")?),
            holder: text(row, "holder")?,
            since: time(row, "since")?,
        })
    })
}

pub(super) async fn job_events(pool: &SqlitePool) -> Result<Vec<JobEventRow>, CatalogError> {
    let query =
        sqlx::query("SELECT * FROM job_events ORDER BY job, number LIMIT $1").bind(i64::from(ROWS_MAX));
    each(query.fetch_all(pool).await, |row| {
        Ok(JobEventRow {
            job: JobId::from_bytes(array(row, "job")?),
            number: number(row, "number")?,
            at: time(row, "at")?,
            body: text(row, "body")?,
        })
    })
}

pub(super) async fn thresholds(pool: &SqlitePool) -> Result<Vec<(MachineId, String)>, CatalogError> {
    each(sqlx::query("SELECT * FROM thresholds ORDER BY machine").fetch_all(pool).await, |row| {
        Ok((MachineId::from_bytes(array(row, "machine")?), text(row, "body")?))
    })
}

pub(super) async fn lifecycles(pool: &SqlitePool) -> Result<Vec<(MachineId, String)>, CatalogError> {
    each(sqlx::query("SELECT * FROM lifecycles ORDER BY machine").fetch_all(pool).await, |row| {
        Ok((MachineId::from_bytes(array(row, "machine")?), text(row, "body")?))
    })
}

pub(super) async fn plans(pool: &SqlitePool) -> Result<Vec<PlanRecord>, CatalogError> {
    each(sqlx::query("SELECT * FROM plans ORDER BY name").fetch_all(pool).await, |row| {
        Ok(PlanRecord {
            name: text(row, "name")?,
            text: text(row, "body")?,
            changed_at: time(row, "changed_at")?,
            changed_by: text(row, "changed_by")?,
        })
    })
}

pub(super) async fn operators(pool: &SqlitePool) -> Result<Vec<OperatorRecord>, CatalogError> {
    each(sqlx::query("SELECT * FROM operators ORDER BY name").fetch_all(pool).await, |row| {
        Ok(OperatorRecord {
            name: text(row, "name")?,
            role: parsed(row, "role", Role::parse)?,
            hash: array(row, "hash")?,
            created_at: time(row, "created_at")?,
            expires_at: time(row, "expires_at")?,
            revoked_at: optional_time(row, "revoked_at")?,
        })
    })
}

pub(super) async fn audit(
    pool: &SqlitePool,
    since: Timestamp,
    limit: u32,
) -> Result<Vec<AuditRecord>, CatalogError> {
    let query = sqlx::query("SELECT * FROM audit WHERE at >= $1 ORDER BY at DESC, id DESC LIMIT $2")
        .bind(since.0)
        .bind(i64::from(limit.min(ROWS_MAX)));
    each(query.fetch_all(pool).await, |row| {
        Ok(AuditRecord {
            id: Uuid::from_bytes(array(row, "id")?),
            at: time(row, "at")?,
            who: text(row, "who")?,
            what: text(row, "what")?,
            subject: text(row, "subject")?,
            detail: text(row, "detail")?,
        })
    })
}
