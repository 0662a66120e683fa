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
             SELECT d.job_id
               FROM (SELECT *
                       FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS d(job_id, claim, run)
                      ORDER BY job_id) d
              CROSS JOIN LATERAL (
                    SELECT state FROM job_state
                     WHERE job_id = d.job_id AND claims = d.claim AND run = d.run
                     LIMIT 1
                       FOR NO KEY UPDATE SKIP LOCKED) s
              -- Here, or all that is scheduled might be read to find these.
              WHERE s.state = 'scheduled')
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
