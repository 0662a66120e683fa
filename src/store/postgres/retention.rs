//! What done jobs lose with time, and what people erase, on Postgres.
//!
//! Old results are found by walking `results` in the order of `seq`, in which they were written: no
//! index for the age, which every job would pay for. What was found is looked at again by the statement
//! that takes it away, which locks it and passes by what others hold: it stalls nobody, and it cannot
//! be part of a deadlock.

use sqlx::Row as _;
use sqlx::postgres::PgConnection;
use tokio::time::Instant;

use crate::domain::retention::{DoneJob, Erasure, Sweep};
use crate::store::{Before, Due, Erased, PurgeFilter, StateCounts, row};

/// One daemon erases at a time: the first number of its advisory lock, `Prml`; the second is the table's.
const LOCK: i32 = 1_349_676_396;

/// Jobs as columns.
pub(super) struct Jobs {
    jobs: Vec<i64>,
    seqs: Vec<i64>,
}

impl Jobs {
    pub(super) fn new(jobs: &[DoneJob]) -> Self {
        // Everybody locks in the same order.
        let mut jobs: Vec<(i64, i64)> = jobs.iter().map(|done| (done.job.0, done.seq)).collect();
        jobs.sort_unstable();
        let (jobs, seqs) = jobs.into_iter().unzip();
        Self { jobs, seqs }
    }
}

/// Finds what is due among the next results.
pub(super) async fn due(
    conn: &mut PgConnection,
    sweep: &Sweep,
    after: i64,
    window: i64,
) -> sqlx::Result<Due> {
    let age = row::ms(sweep.age);
    let (until, waits): (Option<i64>, Option<i64>) = sqlx::query_as(
        "SELECT max(seq),
                min(seq) FILTER (WHERE finished_at > now() - $3 * interval '1 millisecond' AND finished_at <= now())
           FROM (SELECT seq, finished_at
                   FROM results
                  WHERE seq > $1
                  ORDER BY seq
                  LIMIT $2) w",
    )
    .bind(after)
    .bind(window)
    .bind(age)
    .fetch_one(&mut *conn)
    .await?;
    let Some(until) = until else { return Ok(Due::default()) };
    let jobs: Vec<(i64, i64, i64)> = sqlx::query_as(
        "SELECT r.job_id, r.seq,
                coalesce((SELECT s.bytes FROM job_state s WHERE s.job_id = r.job_id), 0) + 12 * r.output_tokens
           FROM results r
          WHERE r.seq > $1 AND r.seq <= $2
            AND r.finished_at <= now() - $3 * interval '1 millisecond'
            AND (r.queue = ANY ($4)) <> $5
            AND ($6 OR EXISTS (SELECT FROM jobs j WHERE j.id = r.job_id AND j.redacted_at IS NULL))
          ORDER BY r.seq",
    )
    .bind(after)
    .bind(until)
    .bind(age)
    .bind(sweep.queues.names())
    .bind(sweep.queues.is_all_but())
    .bind(sweep.what == Erasure::Jobs)
    .fetch_all(conn)
    .await?;
    Ok(Due { jobs: row::done_jobs(jobs), until: Some(until), waits })
}

/// Erases as [`erase`] does, where no other daemon does so just now. The lock ends with the transaction,
/// so it works behind a pooler too.
pub(super) async fn erase_alone(
    conn: &mut PgConnection,
    what: Erasure,
    jobs: &Jobs,
) -> sqlx::Result<Option<Erased>> {
    erase_if(conn, what, jobs, true).await
}

/// Takes away what goes of these jobs, where they are still done by these very results and nobody holds
/// them.
pub(super) async fn erase(conn: &mut PgConnection, what: Erasure, jobs: &Jobs) -> sqlx::Result<Erased> {
    Ok(erase_if(conn, what, jobs, false).await?.unwrap_or_default())
}

/// Locks what goes: the job before its state, as a DELETE by hand does.
macro_rules! held {
    () => {
        "WITH alone AS MATERIALIZED (
             SELECT CASE WHEN $4 THEN pg_try_advisory_xact_lock($5, 'jobs'::regclass::oid::integer) ELSE true END AS got
         ), held AS MATERIALIZED (
             SELECT d.job_id
               FROM unnest($1::bigint[], $2::bigint[]) AS d(job_id, seq)
              CROSS JOIN LATERAL (
                    SELECT run FROM results WHERE job_id = d.job_id AND seq = d.seq LIMIT 1) r
              CROSS JOIN LATERAL (
                    SELECT FROM jobs
                     WHERE id = d.job_id AND ($3 OR redacted_at IS NULL)
                     LIMIT 1
                       FOR UPDATE SKIP LOCKED) j
              CROSS JOIN LATERAL (
                    SELECT FROM job_state
                     WHERE job_id = d.job_id AND state = 'done' AND run = r.run
                     LIMIT 1
                       FOR UPDATE SKIP LOCKED) s
              WHERE (SELECT got FROM alone)
         )"
    };
}

async fn erase_if(
    conn: &mut PgConnection,
    what: Erasure,
    jobs: &Jobs,
    alone: bool,
) -> sqlx::Result<Option<Erased>> {
    let began = Instant::now();
    let statement = match what {
        Erasure::Prompts => sqlx::query(concat!(
            held!(),
            ", erased AS (
             UPDATE jobs
                SET redacted_at = now()
              WHERE id = ANY (ARRAY(SELECT job_id FROM held))
             RETURNING id
         )
         SELECT (SELECT got FROM alone) AS got, ARRAY(SELECT id FROM erased) AS erased",
        )),
        Erasure::Jobs => sqlx::query(concat!(
            held!(),
            ", erased AS (
             DELETE FROM jobs
              WHERE id = ANY (ARRAY(SELECT job_id FROM held))
             RETURNING id
         )
         SELECT (SELECT got FROM alone) AS got, ARRAY(SELECT id FROM erased) AS erased",
        )),
    };
    let done = statement
        .bind(&jobs.jobs)
        .bind(&jobs.seqs)
        .bind(what == Erasure::Jobs)
        .bind(alone)
        .bind(LOCK)
        .fetch_one(conn)
        .await?;
    let erased = Erased { jobs: row::jobs(done.try_get("erased")?), took: began.elapsed() };
    Ok(done.try_get::<bool, _>("got")?.then_some(erased))
}

/// Finds what a person wants to be erased, in the order of ids.
pub(super) async fn purgeable(
    conn: &mut PgConnection,
    which: &PurgeFilter,
    what: Erasure,
) -> sqlx::Result<Vec<DoneJob>> {
    let (at, ago) = Before::bounds(which.before);
    let jobs: Vec<(i64, i64, i64)> = sqlx::query_as(
        "SELECT r.job_id, r.seq,
                coalesce((SELECT s.bytes FROM job_state s WHERE s.job_id = r.job_id), 0) + 12 * r.output_tokens
           FROM results r
          WHERE (cardinality($1::bigint[]) = 0 OR r.job_id = ANY ($1))
            AND ($2::text IS NULL OR r.batch = $2)
            AND ($3::text IS NULL OR r.queue = $3)
            AND ($4::bigint IS NULL OR r.finished_at < 'epoch'::timestamptz + $4 * interval '1 millisecond')
            AND ($5::bigint IS NULL OR r.finished_at < now() - $5 * interval '1 millisecond')
            AND ($6 OR EXISTS (SELECT FROM jobs j WHERE j.id = r.job_id AND j.redacted_at IS NULL))
          ORDER BY r.job_id",
    )
    .bind(&which.jobs)
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
pub(super) async fn unfinished(conn: &mut PgConnection, which: &PurgeFilter) -> sqlx::Result<StateCounts> {
    let (pending, scheduled, running, waiting) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE state = 'pending'), count(*) FILTER (WHERE state = 'scheduled'),
                count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE state = 'waiting')
           FROM job_state
          WHERE state <> 'done'
            AND (cardinality($1::bigint[]) = 0 OR job_id = ANY ($1))
            AND ($2::text IS NULL OR (batch = $2 AND batch <> ''))
            AND ($3::text IS NULL OR queue = $3)",
    )
    .bind(&which.jobs)
    .bind(&which.batch)
    .bind(&which.queue)
    .fetch_one(conn)
    .await?;
    Ok(StateCounts { pending, scheduled, running, waiting, done: 0 })
}
