//! Making, migrating and recognising the schema on Postgres.
//!
//! Our own lock in place of the driver's: it is tried for, never waited for, because a waiting lock
//! and `CREATE INDEX CONCURRENTLY` wait for each other for ever.

use std::str::FromStr as _;
use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row as _};
use tokio::time::Instant;

use crate::store::migrations::{self, LATEST, Meta, STEPS, Step};
use crate::store::op::{self, said};
use crate::store::{Migrate, StoreError, StoreSettings};

/// Longest wait for another process that migrates.
const WAIT_MAX: Duration = Duration::from_mins(2);

/// Longest wait for the lock of a table: whoever comes after a waiting migration waits with it.
const LOCK_MAX: Duration = Duration::from_millis(300);
/// So often a lock is tried for, before the caller is told who is in the way.
const LOCK_TRIES_MAX: u32 = 10;
/// About so long the others get between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(500);

/// Refuses a schema name that would need quotes: it also names a channel and stands in a search path.
pub(super) fn check_name(schema: &str) -> Result<(), StoreError> {
    let mut bytes = schema.bytes();
    let good = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && schema.len() <= 63;
    if good {
        return Ok(());
    }
    Err(StoreError::Schema(format!(
        "database.schema = {schema:?} is not a plain name: use lower-case letters, digits and underscores, at most 63"
    )))
}

/// Looks at the schema, makes or migrates it where that is asked for, and returns what it is.
pub(super) async fn prepare(
    options: &PgConnectOptions,
    settings: &StoreSettings,
    migrate: Migrate,
) -> Result<Meta, StoreError> {
    let options = if settings.transaction_pooler {
        options.clone()
    } else {
        options.clone().options([("search_path", format!("{},pg_temp", settings.schema).as_str())])
    };
    let mut conn =
        op::within(settings.connect_max, async { options.connect().await.map_err(let_in) }).await?;
    let done = prepare_on(&mut conn, settings, migrate).await;
    // The connection has no more to say; how it ends changes nothing.
    drop(conn.close().await);
    done
}

/// Sorts what was said to somebody who knocked. A database may be closed to a role by its rights.
fn let_in(error: sqlx::Error) -> StoreError {
    match said(error) {
        StoreError::Database(text) | StoreError::Denied(text) => StoreError::NoEntry(text),
        other => other,
    }
}

async fn prepare_on(
    conn: &mut PgConnection,
    settings: &StoreSettings,
    migrate: Migrate,
) -> Result<Meta, StoreError> {
    let schema = settings.schema.as_str();
    let place = place(schema);
    let found = op::within(settings.connect_max, look(conn, schema)).await?;
    match (migrate, &found) {
        (Migrate::Never, None) => {
            return Err(StoreError::Schema(format!(
                "{place} holds no promptmill tables: run `promptmill migrate`"
            )));
        }
        (Migrate::Serve, None) | (Migrate::Now, _)
            if found.as_ref().is_none_or(|meta| meta.version < LATEST) =>
        {
            if settings.transaction_pooler {
                return Err(StoreError::Schema(format!(
                    "{place} must be made or migrated past the pooler: set database.direct_url and run \
                     `promptmill migrate`"
                )));
            }
            migrate_locked(conn, schema, STEPS).await?;
        }
        _ => {}
    }
    let meta = op::within(settings.connect_max, look(conn, schema))
        .await?
        .ok_or_else(|| StoreError::Schema(format!("{place} still holds no promptmill tables")))?;
    if let Some(objection) = meta.objection(&place) {
        return Err(StoreError::Schema(objection));
    }
    if settings.transaction_pooler {
        match op::within(settings.connect_max, async { prove(conn, &meta).await.map_err(said) }).await {
            Ok(()) => {}
            Err(error @ StoreError::Unavailable(_)) => return Err(error),
            Err(_) => {
                return Err(StoreError::Schema(format!(
                    "{place} is not what connections through the pooler see: ALTER ROLE … SET search_path for \
                     promptmill's role (promptmill roles prints it)"
                )));
            }
        }
    }
    Ok(meta)
}

/// Reads `meta`, wherever the search path of this connection leads.
async fn look(conn: &mut PgConnection, schema: &str) -> Result<Option<Meta>, StoreError> {
    // In one message each: what is prepared in one and run in the next may be two servers' behind a pooler.
    let there = format!("SELECT FROM (SELECT to_regclass('{schema}.meta') AS meta) r WHERE meta IS NOT NULL");
    let there = sqlx::raw_sql(AssertSqlSafe(there)).fetch_optional(&mut *conn).await.map_err(said)?;
    if there.is_none() {
        return Ok(None);
    }
    let meta = format!("SELECT database_id, schema_version, schema_min FROM {schema}.meta");
    let row = sqlx::raw_sql(AssertSqlSafe(meta)).fetch_one(conn).await.map_err(said)?;
    read(&row).map(Some).map_err(said)
}

fn read(row: &sqlx::postgres::PgRow) -> sqlx::Result<Meta> {
    Ok(Meta {
        database_id: row.try_get("database_id")?,
        version: row.try_get("schema_version")?,
        min: row.try_get("schema_min")?,
    })
}

/// Reads `meta` as a connection sees it by its search path.
pub(super) async fn seen(conn: &mut PgConnection) -> sqlx::Result<Meta> {
    let row =
        sqlx::raw_sql("SELECT database_id, schema_version, schema_min FROM meta").fetch_one(conn).await?;
    read(&row)
}

/// Names a schema to a person.
pub(super) fn place(schema: &str) -> String {
    format!("schema \"{schema}\"")
}

/// Proves that a new connection sees the tables that were opened, and not others.
pub(super) async fn prove(conn: &mut PgConnection, meta: &Meta) -> sqlx::Result<()> {
    let seen = seen(conn).await?;
    if seen.database_id == meta.database_id {
        return Ok(());
    }
    let sentence = "this connection sees the tables of another schema: set its role's search_path \
                    (promptmill roles prints how)";
    Err(sqlx::Error::Configuration(sentence.into()))
}

/// Runs those of the steps that have not run yet, on a connection of its own.
pub(in crate::store) async fn apply(
    url: &str,
    settings: &StoreSettings,
    steps: &[Step],
) -> Result<(), StoreError> {
    check_name(&settings.schema)?;
    let options = PgConnectOptions::from_str(url)
        .map_err(|_| StoreError::Unavailable("the database URL is not a Postgres URL".to_owned()))?;
    let mut conn = options.connect().await.map_err(said)?;
    let done = migrate_locked(&mut conn, &settings.schema, steps).await;
    // The connection has no more to say; how it ends changes nothing.
    drop(conn.close().await);
    done
}

/// Migrates while holding our lock, which ends with the connection if not before.
async fn migrate_locked(conn: &mut PgConnection, schema: &str, steps: &[Step]) -> Result<(), StoreError> {
    let key = format!("promptmill migrate {schema}");
    let until = Instant::now() + WAIT_MAX;
    while !try_lock(conn, &key).await.map_err(said)? {
        if Instant::now() >= until {
            return Err(StoreError::Unavailable(format!(
                "another process has been migrating schema \"{schema}\" for {WAIT_MAX:?}"
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let done = migrate(conn, schema, steps).await;
    sqlx::query("SELECT pg_advisory_unlock(hashtextextended($1, 0))")
        .bind(&key)
        .persistent(false)
        .execute(conn)
        .await
        .map_err(said)?;
    done
}

async fn try_lock(conn: &mut PgConnection, key: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtextextended($1, 0))")
        .bind(key)
        .persistent(false)
        .fetch_one(conn)
        .await
}

async fn migrate(conn: &mut PgConnection, schema: &str, steps: &[Step]) -> Result<(), StoreError> {
    // Not IF NOT EXISTS alone: that asks for the right to create schemas even where there is one.
    let make = format!(
        "DO $$ BEGIN
             IF to_regnamespace('{schema}') IS NULL THEN CREATE SCHEMA {schema}; END IF;
         END $$"
    );
    let limit = format!("SET lock_timeout = {}", LOCK_MAX.as_millis());
    for statement in [make, format!("SET search_path = {schema}, pg_temp"), limit] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *conn).await.map_err(said)?;
    }
    let mut tries = 1;
    loop {
        let done = migrations::migrator(steps, |step| step.postgres).run_direct(None, conn, false).await;
        match done {
            Err(error) if waited_for_a_lock(&error) => {
                if tries == LOCK_TRIES_MAX {
                    return Err(StoreError::Unavailable(blocked_by(conn, schema).await));
                }
                tries += 1;
                tokio::time::sleep(LOCK_PAUSE.mul_f64(0.5 + fastrand::f64())).await;
            }
            done => return done.map_err(migrations::refused),
        }
    }
}

/// Whether a migration was ended by its `lock_timeout` (55P03).
fn waited_for_a_lock(error: &MigrateError) -> bool {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else {
        return false;
    };
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("55P03"))
}

/// Says that a lock was not to be had, and who has had one on our tables for longest.
async fn blocked_by(conn: &mut PgConnection, schema: &str) -> String {
    let holder: Option<(i32, String)> = sqlx::query_as(
        "SELECT a.pid, coalesce(nullif(a.application_name, ''), a.usename, '?')
           FROM pg_locks l
           JOIN pg_class c ON c.oid = l.relation
           JOIN pg_stat_activity a ON a.pid = l.pid
          WHERE l.granted AND c.relnamespace = to_regnamespace($1) AND a.pid <> pg_backend_pid()
          ORDER BY a.xact_start
          LIMIT 1",
    )
    .bind(schema)
    .persistent(false)
    .fetch_optional(conn)
    .await
    .ok()
    .flatten();
    let place = place(schema);
    match holder {
        Some((pid, name)) => format!(
            "{place} cannot be migrated while somebody locks its tables: the session {pid} ({name}) has had a lock \
             there for longest"
        ),
        None => format!("{place} cannot be migrated while somebody locks its tables"),
    }
}
