//! The wall clock of the database, and what it strands when it jumps, on Postgres.

use std::time::Duration;

use sqlx::postgres::PgConnection;

use crate::domain::job::Lease;
use crate::store::row;

/// Returns the time since 1970.
pub(super) async fn now(conn: &mut PgConnection) -> sqlx::Result<Duration> {
    let now: i64 = sqlx::query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        .fetch_one(conn)
        .await?;
    Ok(Duration::from_millis(now.max(0) as u64))
}

/// Makes released jobs pending whose delay is over, whatever the clock says. A row that somebody
/// locks is passed by.
pub(super) async fn promote(conn: &mut PgConnection, released: &[Lease]) -> sqlx::Result<u64> {
    let (jobs, claims, runs) = row::columns(released);
    let done = sqlx::query(
        "WITH due AS MATERIALIZED (
             SELECT s.job_id
               FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS d(job_id, claim, run)
               JOIN job_state s ON s.job_id = d.job_id AND s.claims = d.claim AND s.run = d.run
              WHERE s.state = 'scheduled' AND s.job_id = ANY ($1)
              ORDER BY s.job_id
                FOR UPDATE OF s SKIP LOCKED)
         UPDATE job_state s
            SET state = 'pending'
           FROM due
          WHERE s.job_id = due.job_id AND s.job_id = ANY ($1)",
    )
    .bind(jobs)
    .bind(claims)
    .bind(runs)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}
