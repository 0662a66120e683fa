//! What the enqueuers' traces are called, on Postgres.

use sqlx::postgres::PgConnection;

use crate::domain::job::JobId;
use crate::store::TRACEPARENT_MAX;

/// Reads the `traceparent` of the jobs that have one.
pub(super) async fn parents(conn: &mut PgConnection, jobs: &[JobId]) -> sqlx::Result<Vec<(JobId, String)>> {
    let rows: Vec<(i64, String)> = sqlx::query_as(
        "SELECT id, left(metadata ->> 'traceparent', $2)
           FROM jobs
          WHERE id = ANY ($1) AND jsonb_typeof(metadata -> 'traceparent') = 'string'",
    )
    .bind(jobs.iter().map(|job| job.0).collect::<Vec<i64>>())
    .bind(TRACEPARENT_MAX)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(job, parent)| (JobId(job), parent)).collect())
}
