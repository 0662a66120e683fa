//! What done jobs lose with time, and what people erase, on SQLite.
//!
//! Old results are found by walking `results` in the order of `seq`, in which they were written: no
//! index for the age, which every job would pay for. What was found is looked at again inside the
//! transaction that takes it away: it may have been run again.

use sqlx::Executor as _;
use sqlx::sqlite::SqliteConnection;

use crate::domain::job::JobId;
use crate::domain::retention::{DoneJob, Erasure, Sweep};
use crate::store::{Before, Due, PurgeFilter, StateCounts, row};

/// Finds what is due among the next results.
pub(super) async fn due(
    conn: &mut SqliteConnection,
    sweep: &Sweep,
    after: i64,
    window: i64,
) -> sqlx::Result<Due> {
    let (age, queues) = (row::ms(sweep.age), row::texts(sweep.queues.names()));
    let (until, waits): (Option<i64>, Option<i64>) = sqlx::query_as(concat!(
        "SELECT max(seq),
                min(seq) FILTER (WHERE finished_at > ",
        now!(),
        " - $3 AND finished_at <= ",
        now!(),
        ")
           FROM (SELECT seq, finished_at
                   FROM results
                  WHERE seq > $1
                  ORDER BY seq
                  LIMIT $2)",
    ))
    .bind(after)
    .bind(window)
    .bind(age)
    .fetch_one(&mut *conn)
    .await?;
    let Some(until) = until else { return Ok(Due::default()) };
    let jobs: Vec<(i64, i64, i64)> = sqlx::query_as(concat!(
        "SELECT r.job_id, r.seq,
                coalesce((SELECT s.bytes FROM job_state s WHERE s.job_id = r.job_id), 0) + 12 * r.output_tokens
           FROM results r
          WHERE r.seq > $1 AND r.seq <= $2
            AND r.finished_at <= ",
        now!(),
        " - $3
            AND (r.queue IN (SELECT value FROM json_each($4))) <> $5
            AND ($6 OR EXISTS (SELECT 1 FROM jobs j WHERE j.id = r.job_id AND j.redacted_at IS NULL))
          ORDER BY r.seq",
    ))
    .bind(after)
    .bind(until)
    .bind(age)
    .bind(&queues)
    .bind(sweep.queues.is_all_but())
    .bind(sweep.what == Erasure::Jobs)
    .fetch_all(conn)
    .await?;
    Ok(Due { jobs: row::done_jobs(jobs), until: Some(until), waits })
}

/// Takes away what goes of these jobs, where they are still done by these very results; returns which.
pub(super) async fn erase(
    conn: &mut SqliteConnection,
    what: Erasure,
    jobs: &[(i64, i64)],
) -> sqlx::Result<Vec<JobId>> {
    // What is erased must not be readable in the free pages of the file.
    conn.execute("PRAGMA secure_delete = ON").await?;
    let statement = match what {
        Erasure::Prompts => sqlx::query_scalar(concat!(
            "UPDATE jobs
                SET prompt = NULL, system = NULL, params = NULL, redacted_at = ",
            now!(),
            " WHERE redacted_at IS NULL
                AND id IN (SELECT s.job_id
                             FROM json_each($1) d
                            CROSS JOIN job_state s ON s.job_id = d.value ->> 0
                            CROSS JOIN results r ON r.job_id = s.job_id
                            WHERE s.state = 'done' AND r.seq = d.value ->> 1)
             RETURNING id",
        )),
        Erasure::Jobs => sqlx::query_scalar(
            "DELETE FROM jobs
              WHERE id IN (SELECT s.job_id
                             FROM json_each($1) d
                            CROSS JOIN job_state s ON s.job_id = d.value ->> 0
                            CROSS JOIN results r ON r.job_id = s.job_id
                            WHERE s.state = 'done' AND r.seq = d.value ->> 1)
             RETURNING id",
        ),
    };
    let erased = statement.bind(row::texts(jobs)).fetch_all(&mut *conn).await;
    // Also where that failed: the connection writes on for others, who should not pay for it.
    let restored = conn.execute("PRAGMA secure_delete = OFF").await;
    let erased = erased?;
    restored?;
    Ok(row::jobs(erased))
}

/// Finds what a person wants to be erased, in the order of ids.
pub(super) async fn purgeable(
    conn: &mut SqliteConnection,
    which: &PurgeFilter,
    what: Erasure,
) -> sqlx::Result<Vec<DoneJob>> {
    // Named jobs are few: not every result is to be looked at for them.
    let statement = if which.jobs.is_empty() {
        concat!(
            "SELECT r.job_id, r.seq,
                    coalesce((SELECT s.bytes FROM job_state s WHERE s.job_id = r.job_id), 0) + 12 * r.output_tokens
               FROM results r
              WHERE $1 = '[]'
                AND ($2 IS NULL OR r.batch = $2)
                AND ($3 IS NULL OR r.queue = $3)
                AND ($4 IS NULL OR r.finished_at < $4)
                AND ($5 IS NULL OR r.finished_at < ",
            now!(),
            " - $5)
                AND ($6 OR EXISTS (SELECT 1 FROM jobs j WHERE j.id = r.job_id AND j.redacted_at IS NULL))
              ORDER BY r.job_id",
        )
    } else {
        concat!(
            "SELECT r.job_id, r.seq,
                    coalesce((SELECT s.bytes FROM job_state s WHERE s.job_id = r.job_id), 0) + 12 * r.output_tokens
               FROM json_each($1) d
              CROSS JOIN results r ON r.job_id = d.value
              WHERE ($2 IS NULL OR r.batch = $2)
                AND ($3 IS NULL OR r.queue = $3)
                AND ($4 IS NULL OR r.finished_at < $4)
                AND ($5 IS NULL OR r.finished_at < ",
            now!(),
            " - $5)
                AND ($6 OR EXISTS (SELECT 1 FROM jobs j WHERE j.id = r.job_id AND j.redacted_at IS NULL))
              ORDER BY r.job_id",
        )
    };
    let (at, ago) = Before::bounds(which.before);
    let jobs: Vec<(i64, i64, i64)> = sqlx::query_as(statement)
        .bind(row::texts(&which.jobs))
        .bind(&which.batch)
        .bind(&which.queue)
        .bind(at)
        .bind(ago)
        .bind(what == Erasure::Jobs)
        .fetch_all(conn)
        .await?;
    Ok(row::done_jobs(jobs))
}

/// Counts the jobs that a person means and that are not done.
pub(super) async fn unfinished(
    conn: &mut SqliteConnection,
    which: &PurgeFilter,
) -> sqlx::Result<StateCounts> {
    let (pending, scheduled, running, waiting) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE state = 'pending'), count(*) FILTER (WHERE state = 'scheduled'),
                count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE state = 'waiting')
           FROM job_state
          WHERE state <> 'done'
            AND ($1 = '[]' OR job_id IN (SELECT value FROM json_each($1)))
            AND ($2 IS NULL OR (batch = $2 AND batch <> ''))
            AND ($3 IS NULL OR queue = $3)",
    )
    .bind(row::texts(&which.jobs))
    .bind(&which.batch)
    .bind(&which.queue)
    .fetch_one(conn)
    .await?;
    Ok(StateCounts { pending, scheduled, running, waiting, done: 0 })
}
