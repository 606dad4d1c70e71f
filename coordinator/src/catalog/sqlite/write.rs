//! Changes, one statement or two each.
//!
//! Owns the SQL that writes; runs inside the caller's transaction. Knows no rule besides the conditions that
//! [`Change`] states.

use holdfast_common::frame::CutMore;
use sqlx::{
    Sqlite, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteQueryResult},
};

use super::{
    super::{
        CatalogError, Change, VOIDED_CUTS_KEPT,
        record::{
            CertificateRecord, DiskRecord, GenerationRecord, JobEventRow, MachineRecord, OperatorRecord,
            PointDiskRecord, PointRecord, PolicyRecord, TokenRecord, VoidedCutRecord, WitnessRecord,
            consistency_text, method_text,
        },
    },
    groups,
    row::signed,
};

pub(super) type Statement<'q> = Query<'q, Sqlite, SqliteArguments>;

/// Makes one change.
pub(super) async fn apply(connection: &mut SqliteConnection, change: &Change) -> Result<(), CatalogError> {
    match change {
        Change::AddPoint(point) => add_point(connection, point).await,
        Change::AddVoidedCut(cut) => add_voided_cut(connection, cut).await,
        Change::AddVoidedGroupCut(cut) => groups::add_voided(connection, cut).await,
        Change::RemovePoints(points) => {
            for point in points {
                run(connection, remove_point().bind(point.into_bytes().to_vec())).await?;
            }
            Ok(())
        }
        Change::UseToken { hash, machine, at } => {
            let statement = use_token().bind(at.0).bind(machine.into_bytes().to_vec()).bind(hash.to_vec());
            expect_one(run(connection, statement).await?, "the token is unknown, used or expired")
        }
        Change::AddGeneration(generation) => {
            let done = run(connection, add_generation(generation)).await?;
            expect_one(done, "the disk already has that generation")
        }
        Change::AddJobEvent(event) => {
            let done = run(connection, add_job_event(event)).await?;
            expect_one(done, "the job already has an event of that number")
        }
        single => run(connection, statement(single)?).await.map(|_done| ()),
    }
}

/// Changes that are one statement without a condition.
fn statement(change: &Change) -> Result<Statement<'_>, CatalogError> {
    Ok(match change {
        Change::PutMachine(machine) => put_machine(machine),
        Change::PutCertificate(certificate) => put_certificate(certificate),
        Change::RevokeCertificates(machine, at) => {
            sqlx::query("UPDATE certificates SET revoked_at = $1 WHERE machine = $2 AND revoked_at IS NULL")
                .bind(at.0)
                .bind(machine.into_bytes().to_vec())
        }
        Change::PutToken(token) => put_token(token),
        Change::PutDisk(disk) => put_disk(disk),
        Change::PutPolicy(policy) => put_policy(policy),
        Change::SetPointState(point, state, reason) => {
            sqlx::query("UPDATE points SET state = $1, void_reason = $2 WHERE id = $3")
                .bind(state.text())
                .bind(reason.as_deref())
                .bind(point.into_bytes().to_vec())
        }
        Change::SetPointVerified(point, at) => {
            sqlx::query("UPDATE points SET verified_at = $1 WHERE id = $2")
                .bind(at.0)
                .bind(point.into_bytes().to_vec())
        }
        Change::SetPointWitness(point, witness) => {
            sqlx::query("UPDATE points SET witness = $1 WHERE id = $2")
                // Numbers always have a text.
                .bind(serde_json::to_string(witness).unwrap_or_default())
                .bind(point.into_bytes().to_vec())
        }
        Change::PutLease(lease) => sqlx::query(
            "INSERT INTO leases (point, holder, since) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        )
        .bind(lease.point.into_bytes().to_vec())
        .bind(lease.holder.as_str())
        .bind(lease.since.0),
        Change::EndLeases(holder) => {
            sqlx::query("DELETE FROM leases WHERE holder = $1").bind(holder.as_str())
        }
        Change::ForgetJob(job) => {
            sqlx::query("DELETE FROM job_events WHERE job = $1").bind(job.into_bytes().to_vec())
        }
        Change::Audit(entry) => sqlx::query(
            "INSERT INTO audit (id, at, who, what, subject, detail) VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(entry.id.as_bytes().to_vec())
        .bind(entry.at.0)
        .bind(entry.who.as_str())
        .bind(entry.what.as_str())
        .bind(entry.subject.as_str())
        .bind(entry.detail.as_str()),
        Change::PutOperator(operator) => put_operator(operator),
        Change::PutThresholds(machine, body) => sqlx::query(
            "INSERT INTO thresholds (machine, body) VALUES ($1, $2) \
             ON CONFLICT (machine) DO UPDATE SET body = excluded.body",
        )
        .bind(machine.into_bytes().to_vec())
        .bind(body.as_str()),
        Change::PutLifecycle(machine, body) => sqlx::query(
            "INSERT INTO lifecycles (machine, body) VALUES ($1, $2) \
             ON CONFLICT (machine) DO UPDATE SET body = excluded.body",
        )
        .bind(machine.into_bytes().to_vec())
        .bind(body.as_str()),
        Change::PutPlan(plan) => sqlx::query(
            "INSERT INTO plans (name, body, changed_at, changed_by) VALUES ($1, $2, $3, $4) ON CONFLICT (name) \
             DO UPDATE SET body = excluded.body, changed_at = excluded.changed_at, changed_by = excluded.changed_by",
        )
        .bind(plan.name.as_str())
        .bind(plan.text.as_str())
        .bind(plan.changed_at.0)
        .bind(plan.changed_by.as_str()),
        Change::RemovePlan(name) => sqlx::query("DELETE FROM plans WHERE name = $1").bind(name.as_str()),
        Change::PutGroup(group) => groups::put(group),
        Change::RemoveGroup(group) => groups::remove(*group),
        Change::PutGroupMember(member) => groups::put_member(member),
        Change::RemoveGroupMember(machine) => groups::remove_member(*machine),
        Change::AddPoint(_)
        | Change::AddVoidedGroupCut(_)
        | Change::AddVoidedCut(_)
        | Change::RemovePoints(_)
        | Change::UseToken { .. }
        | Change::AddGeneration(_)
        | Change::AddJobEvent(_) => {
            return Err(CatalogError::Conflict("this change is more than one statement".to_owned()));
        }
    })
}

pub(super) async fn run(
    connection: &mut SqliteConnection,
    statement: Statement<'_>,
) -> Result<SqliteQueryResult, CatalogError> {
    Ok(statement.execute(connection).await?)
}

fn expect_one(done: SqliteQueryResult, otherwise: &str) -> Result<(), CatalogError> {
    if done.rows_affected() == 1 { Ok(()) } else { Err(CatalogError::Conflict(otherwise.to_owned())) }
}

fn put_machine(machine: &MachineRecord) -> Statement<'_> {
    sqlx::query(
        "INSERT INTO machines (id, name, state, enrolled_at, last_seen_at, agent_version, inventory) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO UPDATE SET name = excluded.name, \
         state = excluded.state, last_seen_at = excluded.last_seen_at, \
         agent_version = excluded.agent_version, inventory = excluded.inventory",
    )
    .bind(machine.id.into_bytes().to_vec())
    .bind(machine.name.as_str())
    .bind(machine.state.text())
    .bind(machine.enrolled_at.0)
    .bind(machine.last_seen_at.map(|at| at.0))
    .bind(machine.agent_version.as_str())
    .bind(machine.inventory.as_deref())
}

fn put_operator(operator: &OperatorRecord) -> Statement<'_> {
    sqlx::query(
        "INSERT INTO operators (name, role, hash, created_at, expires_at, revoked_at) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (name) DO UPDATE SET role = excluded.role, \
         hash = excluded.hash, created_at = excluded.created_at, expires_at = excluded.expires_at, \
         revoked_at = excluded.revoked_at",
    )
    .bind(operator.name.as_str())
    .bind(operator.role.text())
    .bind(operator.hash.to_vec())
    .bind(operator.created_at.0)
    .bind(operator.expires_at.0)
    .bind(operator.revoked_at.map(|at| at.0))
}

fn put_certificate(certificate: &CertificateRecord) -> Statement<'_> {
    sqlx::query(
        "INSERT INTO certificates (serial, machine, issued_at, expires_at, revoked_at) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (serial) DO UPDATE SET revoked_at = excluded.revoked_at",
    )
    .bind(certificate.serial.as_slice())
    .bind(certificate.machine.into_bytes().to_vec())
    .bind(certificate.issued_at.0)
    .bind(certificate.expires_at.0)
    .bind(certificate.revoked_at.map(|at| at.0))
}

fn put_token(token: &TokenRecord) -> Statement<'_> {
    sqlx::query(
        "INSERT INTO tokens (hash, label, created_at, expires_at, used_at, used_by, machine) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (hash) DO UPDATE SET expires_at = excluded.expires_at",
    )
    .bind(token.hash.to_vec())
    .bind(token.label.as_str())
    .bind(token.created_at.0)
    .bind(token.expires_at.0)
    .bind(token.used_at.map(|at| at.0))
    .bind(token.used_by.map(|machine| machine.into_bytes().to_vec()))
    .bind(token.machine.map(|machine| machine.into_bytes().to_vec()))
}

fn use_token() -> Statement<'static> {
    sqlx::query(
        "UPDATE tokens SET used_at = $1, used_by = $2 WHERE hash = $3 AND used_at IS NULL AND expires_at > $1",
    )
}

fn put_disk(disk: &DiskRecord) -> Statement<'_> {
    sqlx::query(
        "INSERT INTO disks (id, machine, path, wwid, serial, table_id, backing_file, bus_path, size_bytes, \
         generation, protected_at, unprotected_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
         ON CONFLICT (id) DO UPDATE SET path = excluded.path, wwid = excluded.wwid, serial = excluded.serial, \
         table_id = excluded.table_id, backing_file = excluded.backing_file, bus_path = excluded.bus_path, \
         size_bytes = excluded.size_bytes, generation = excluded.generation, \
         protected_at = excluded.protected_at, unprotected_at = excluded.unprotected_at",
    )
    .bind(disk.id.into_bytes().to_vec())
    .bind(disk.machine.into_bytes().to_vec())
    .bind(disk.path.as_str())
    .bind(disk.identity.wwid.as_deref())
    .bind(disk.identity.serial.as_deref())
    .bind(disk.identity.table_id.as_deref())
    .bind(disk.identity.backing_file.as_deref())
    .bind(disk.identity.bus_path.as_deref())
    .bind(signed(disk.size_bytes))
    .bind(i64::from(disk.generation.0))
    .bind(disk.protected_at.0)
    .bind(disk.unprotected_at.map(|at| at.0))
}

fn add_generation(generation: &GenerationRecord) -> Statement<'_> {
    sqlx::query(
        "INSERT INTO generations (disk, number, reason, at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(generation.disk.into_bytes().to_vec())
    .bind(i64::from(generation.number.0))
    .bind(generation.reason.as_str())
    .bind(generation.at.0)
}

fn put_policy(policy: &PolicyRecord) -> Statement<'_> {
    sqlx::query(
        "INSERT INTO policies (machine, interval_ms, retention_seconds, hold_ms_max, \
         send_bytes_per_second_max, scan_bytes_per_second_max, retention_tiers, application_interval_ms, \
         application_strict, drill) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
         ON CONFLICT (machine) DO UPDATE SET interval_ms = excluded.interval_ms, \
         retention_seconds = excluded.retention_seconds, hold_ms_max = excluded.hold_ms_max, \
         send_bytes_per_second_max = excluded.send_bytes_per_second_max, \
         scan_bytes_per_second_max = excluded.scan_bytes_per_second_max, \
         retention_tiers = excluded.retention_tiers, \
         application_interval_ms = excluded.application_interval_ms, \
         application_strict = excluded.application_strict, drill = excluded.drill",
    )
    .bind(policy.machine.into_bytes().to_vec())
    .bind(signed(policy.interval_ms))
    .bind(signed(policy.retention_seconds))
    .bind(signed(policy.hold_ms_max))
    .bind(signed(policy.send_bytes_per_second_max))
    .bind(signed(policy.scan_bytes_per_second_max))
    // Numbers always have a text.
    .bind(serde_json::to_string(&policy.retention_tiers).unwrap_or_default())
    .bind(signed(policy.application_interval_ms))
    .bind(i64::from(policy.application_strict))
    .bind(serde_json::to_string(&policy.drill).unwrap_or_default())
}

async fn add_point(connection: &mut SqliteConnection, point: &PointRecord) -> Result<(), CatalogError> {
    let notes = serde_json::to_string(&point.notes)
        .map_err(|error| CatalogError::Unreadable { what: "notes", value: error.to_string() })?;
    let more = (point.more != CutMore::default()).then(|| serde_json::to_string(&point.more)).transpose();
    let more = more.map_err(|error| CatalogError::Unreadable { what: "more", value: error.to_string() })?;
    let witness = (point.witness != WitnessRecord::default())
        .then(|| serde_json::to_string(&point.witness).unwrap_or_default());
    let insert = sqlx::query(
        "INSERT INTO points (id, machine, state, void_reason, cut_at, durable_at, rpo_us, method, consistency, \
         hold_us, request, notes, verified_at, more, witness) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(point.id.into_bytes().to_vec())
    .bind(point.machine.into_bytes().to_vec())
    .bind(point.state.text())
    .bind(point.void_reason.as_deref())
    .bind(point.cut_at.0)
    .bind(point.durable_at.0)
    .bind(signed(point.rpo_us))
    .bind(method_text(point.method))
    .bind(consistency_text(point.consistency))
    .bind(signed(point.hold_us))
    .bind(point.request.map(signed))
    .bind(notes)
    .bind(point.verified_at.map(|at| at.0))
    .bind(more)
    .bind(witness);
    if run(connection, insert).await?.rows_affected() == 0 {
        return Ok(());
    }
    for disk in &point.disks {
        run(connection, add_point_disk(point, disk)).await?;
    }
    Ok(())
}

fn add_point_disk<'q>(point: &PointRecord, disk: &PointDiskRecord) -> Statement<'q> {
    sqlx::query(
        "INSERT INTO point_disks (point, disk, generation, sequence, stored_bytes) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(point.id.into_bytes().to_vec())
    .bind(disk.disk.into_bytes().to_vec())
    .bind(i64::from(disk.generation.0))
    .bind(signed(disk.sequence.0))
    .bind(signed(disk.stored_bytes))
}

fn remove_point() -> Statement<'static> {
    sqlx::query(
        "DELETE FROM points WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM leases WHERE leases.point = points.id)",
    )
}

async fn add_voided_cut(
    connection: &mut SqliteConnection,
    cut: &VoidedCutRecord,
) -> Result<(), CatalogError> {
    let machine = cut.machine.into_bytes().to_vec();
    let insert = sqlx::query(
        "INSERT INTO voided_cuts (machine, at, request, reason) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (machine, at) DO UPDATE SET request = excluded.request, reason = excluded.reason",
    )
    .bind(machine.clone())
    .bind(cut.at.0)
    .bind(cut.request.map(signed))
    .bind(cut.reason.as_str());
    run(connection, insert).await?;
    let prune = sqlx::query(
        "DELETE FROM voided_cuts WHERE machine = $1 AND at < (SELECT MIN(at) FROM (SELECT at FROM voided_cuts \
         WHERE machine = $1 ORDER BY at DESC LIMIT $2) AS newest)",
    )
    .bind(machine)
    .bind(i64::from(VOIDED_CUTS_KEPT));
    run(connection, prune).await?;
    Ok(())
}

fn add_job_event(event: &JobEventRow) -> Statement<'_> {
    sqlx::query(
        "INSERT INTO job_events (job, number, at, body) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(event.job.into_bytes().to_vec())
    .bind(signed(event.number))
    .bind(event.at.0)
    .bind(event.body.as_str())
}
