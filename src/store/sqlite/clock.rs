//! The wall clock of the database, and what it strands when it jumps, on SQLite.

use std::time::Duration;

use sqlx::sqlite::SqliteConnection;

use crate::domain::job::Lease;
use crate::store::row;

/// Returns the time since 1970.
pub(super) async fn now(conn: &mut SqliteConnection) -> sqlx::Result<Duration> {
    let now: i64 = sqlx::query_scalar(concat!("SELECT ", now!())).fetch_one(conn).await?;
    Ok(Duration::from_millis(now.max(0) as u64))
}

/// Makes released jobs pending whose delay is over, whatever the clock says.
pub(super) async fn promote(conn: &mut SqliteConnection, released: &[Lease]) -> sqlx::Result<u64> {
    let done = sqlx::query(
        "UPDATE job_state
            SET state = 'pending'
           FROM jsonb_each(jsonb($1)) d
          WHERE job_id = d.value ->> 'job_id' AND claims = d.value ->> 'claim' AND run = d.value ->> 'run'
            AND state = 'scheduled'",
    )
    .bind(row::leases(released))
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}
