//! What the enqueuers' traces are called, on SQLite.

use sqlx::sqlite::SqliteConnection;

use crate::domain::job::JobId;
use crate::store::{TRACEPARENT_MAX, row};

/// Reads the `traceparent` of the jobs that have one.
pub(super) async fn parents(
    conn: &mut SqliteConnection,
    jobs: &[JobId],
) -> sqlx::Result<Vec<(JobId, String)>> {
    let ids: Vec<i64> = jobs.iter().map(|job| job.0).collect();
    let rows: Vec<(i64, String)> = sqlx::query_as(
        "SELECT id, substr(metadata ->> '$.traceparent', 1, $2)
           FROM jobs
          WHERE id IN (SELECT value FROM json_each($1)) AND json_valid(metadata)
            AND json_type(metadata, '$.traceparent') = 'text'",
    )
    .bind(row::ids(&ids))
    .bind(TRACEPARENT_MAX)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(job, parent)| (JobId(job), parent)).collect())
}
