//! The ledger and the ends of jobs on SQLite: append, settle, release, fill.
//!
//! A batch is a handful of statements inside one `BEGIN IMMEDIATE`, each over JSON rows (see
//! [`row`]): the fence, the results, the ledger. Nobody else can write in between.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use sqlx::sqlite::SqliteConnection;

use super::SqliteStore;
use crate::domain::job::{Lease, WorkerId};
use crate::domain::ledger::{Answer, Call, Checkpoint, Release, Settlement};
use crate::store::row::{self, Row};
use crate::store::{StoreError, Written};

/// A batch on its way: a row for each fenced write, and the calls that go with them.
struct Batch {
    rows: Vec<Row>,
    calls: Vec<Row>,
    worker: WorkerId,
}

/// Whether a ledger row was written by the holder of the job.
#[derive(Clone, Copy)]
enum When {
    InTime,
    Late,
}

impl SqliteStore {
    pub(super) async fn append_call(
        &self,
        lease: &Lease,
        call: &Call,
        worker: WorkerId,
    ) -> Result<bool, StoreError> {
        let call = row::call(lease, call, Instant::now());
        self.write((call, worker), |conn, params| Box::pin(append(conn, &params.0, params.1))).await
    }

    pub(super) async fn keep_parts(&self, parts: &[Arc<Checkpoint>]) -> Result<Vec<Lease>, StoreError> {
        let rows: Vec<Row> = parts.iter().map(|part| row::checkpoint(part)).collect();
        self.write(row::array(&rows), |conn, rows| Box::pin(checkpoint(conn, rows))).await
    }

    pub(super) async fn settle_jobs(
        &self,
        settlements: &[Arc<Settlement>],
        worker: WorkerId,
    ) -> Result<Written, StoreError> {
        let now = Instant::now();
        let rows = settlements.iter().map(|end| row::answer(&end.lease, &end.answer, now)).collect();
        let calls = settlements
            .iter()
            .filter_map(|end| end.call.as_ref().map(|call| row::call(&end.lease, call, now)))
            .collect();
        let batch = Batch { rows, calls, worker };
        let written = self.write(batch, |conn, batch| Box::pin(settle(conn, batch))).await?;
        self.held.drop(written.done.iter().chain(&written.lost));
        Ok(written)
    }

    pub(super) async fn release_jobs(
        &self,
        releases: &[Arc<Release>],
        worker: WorkerId,
    ) -> Result<Written, StoreError> {
        let now = Instant::now();
        let rows = releases.iter().map(|release| row::release(release)).collect();
        let calls = releases
            .iter()
            .filter_map(|back| back.call.as_ref().map(|call| row::call(&back.lease, call, now)))
            .collect();
        let batch = Batch { rows, calls, worker };
        let written = self.write(batch, |conn, batch| Box::pin(release(conn, batch))).await?;
        self.held.drop(written.done.iter().chain(&written.lost));
        Ok(written)
    }

    pub(super) async fn fill_result(&self, lease: &Lease, answer: &Answer) -> Result<bool, StoreError> {
        let row = row::answer(lease, answer, Instant::now());
        self.write(row, |conn, row| Box::pin(fill(conn, row))).await
    }
}

async fn append(conn: &mut SqliteConnection, call: &Row, worker: WorkerId) -> sqlx::Result<bool> {
    let lease = call.lease;
    let state: Option<(i64, i64, String)> =
        sqlx::query_as("SELECT claims, run, state FROM job_state WHERE job_id = $1")
            .bind(lease.job.0)
            .fetch_optional(&mut *conn)
            .await?;
    let Some((claims, run, state)) = state else { return Ok(true) };
    let late = claims != lease.claim || run != lease.run || state != "running";
    let when = if late { When::Late } else { When::InTime };
    ledger(conn, row::array([call]), worker, when).await?;
    Ok(late)
}

/// Keeps parts of running streams.
async fn checkpoint(conn: &mut SqliteConnection, parts: &str) -> sqlx::Result<Vec<Lease>> {
    let held: Vec<(i64, i64, i64)> = sqlx::query_as(
        "SELECT DISTINCT s.job_id, s.claims, s.run
           FROM jsonb_each(jsonb($1)) d
          CROSS JOIN job_state s ON s.job_id = d.value ->> 'job_id'
          WHERE s.claims = d.value ->> 'claim' AND s.run = d.value ->> 'run' AND s.state = 'running'",
    )
    .bind(parts)
    .fetch_all(&mut *conn)
    .await?;
    sqlx::query(
        "INSERT INTO checkpoints (job_id, claim, seq, part, content)
         SELECT d.value ->> 'job_id', d.value ->> 'claim', d.value ->> 'seq', d.value ->> 'part',
                d.value ->> 'content'
           FROM jsonb_each(jsonb($1)) d
          CROSS JOIN job_state s ON s.job_id = d.value ->> 'job_id'
          WHERE s.claims = d.value ->> 'claim' AND s.run = d.value ->> 'run' AND s.state = 'running'
            AND NOT EXISTS (SELECT 1 FROM calls c
                             WHERE c.job_id = s.job_id AND c.claim = s.claims AND c.seq = d.value ->> 'seq')
         ON CONFLICT DO NOTHING",
    )
    .bind(parts)
    .execute(conn)
    .await?;
    Ok(row::leases_of(held))
}

async fn settle(conn: &mut SqliteConnection, batch: &Batch) -> sqlx::Result<Written> {
    let ended: Vec<i64> = sqlx::query_scalar(
        "UPDATE job_state
            SET state = 'done', claimed_by = NULL, reason = NULL, failures = d.value ->> 'failures'
           FROM jsonb_each(jsonb($1)) d
          WHERE job_id = d.value ->> 'job_id' AND claims = d.value ->> 'claim' AND run = d.value ->> 'run'
            AND state = 'running'
         RETURNING job_id",
    )
    .bind(row::array(&batch.rows))
    .fetch_all(&mut *conn)
    .await?;
    let fates = Fates::look(conn, &batch.rows, &ended).await?;
    sqlx::query(concat!(
        "INSERT INTO results
                (job_id, run, queue, batch, key, outcome, stop_reason, stop_sequence, model, input_tokens,
                 output_tokens, cache_creation_input_tokens, cache_read_input_tokens, calls, continuations, seams,
                 failures, sanitised, error_type, error_code, error, request_id, started_at, stop_details, text,
                 content, output)
         SELECT j.id, d.value ->> 'run', j.queue, j.batch, j.key, d.value ->> 'outcome',
                d.value ->> 'stop_reason', d.value ->> 'stop_sequence', d.value ->> 'model',
                d.value ->> 'input_tokens', d.value ->> 'output_tokens',
                d.value ->> 'cache_creation_input_tokens', d.value ->> 'cache_read_input_tokens',
                d.value ->> 'calls', d.value ->> 'continuations', d.value ->> 'seams', d.value ->> 'failures',
                d.value ->> 'sanitised', d.value ->> 'error_type', d.value ->> 'error_code', d.value ->> 'error',
                d.value ->> 'request_id', ",
        now!(),
        " - (d.value ->> 'started_ago'), d.value ->> 'stop_details', d.value ->> 'text', d.value ->> 'content',
                d.value ->> 'output'
           FROM jsonb_each(jsonb($1)) d
          CROSS JOIN jobs j ON j.id = d.value ->> 'job_id'",
    ))
    .bind(fates.ended_rows(&batch.rows))
    .execute(&mut *conn)
    .await?;
    fates.write_calls(conn, batch).await?;
    Ok(fates.written)
}

async fn release(conn: &mut SqliteConnection, batch: &Batch) -> sqlx::Result<Written> {
    let back: Vec<i64> = sqlx::query_scalar(concat!(
        "UPDATE job_state
            SET state = CASE WHEN d.value ->> 'delay_ms' IS NULL THEN 'pending' ELSE 'scheduled' END,
                available_at = coalesce(",
        now!(),
        " + (d.value ->> 'delay_ms'), available_at),
                claimed_by = NULL, failures = d.value ->> 'failures', deferrals = d.value ->> 'deferrals',
                reason = d.value ->> 'reason'
           FROM jsonb_each(jsonb($1)) d
          WHERE job_id = d.value ->> 'job_id' AND claims = d.value ->> 'claim' AND run = d.value ->> 'run'
            AND state = 'running'
         RETURNING job_id",
    ))
    .bind(row::array(&batch.rows))
    .fetch_all(&mut *conn)
    .await?;
    let fates = Fates::look(conn, &batch.rows, &back).await?;
    fates.write_calls(conn, batch).await?;
    Ok(fates.written)
}

/// What became of the leases of a batch.
struct Fates {
    written: Written,
    /// Written just now.
    ended: HashSet<(i64, i64)>,
    /// The fence did not match, but the job is there.
    stale: HashSet<(i64, i64)>,
}

impl Fates {
    /// Sorts the leases, given the jobs whose fence matched.
    async fn look(conn: &mut SqliteConnection, rows: &[Row], hit: &[i64]) -> sqlx::Result<Self> {
        let hit: HashSet<i64> = hit.iter().copied().collect();
        let all: Vec<Lease> = rows.iter().map(|row| row.lease).collect();
        let there: Vec<(i64, i64, i64, bool)> = sqlx::query_as(
            "SELECT s.job_id, s.claims, s.run, s.state = 'running'
               FROM jsonb_each(jsonb($1)) d
              CROSS JOIN job_state s ON s.job_id = d.value ->> 'job_id'",
        )
        .bind(row::leases(&all))
        .fetch_all(conn)
        .await?;
        let there: HashMap<i64, (i64, i64, bool)> =
            there.into_iter().map(|(job, claims, run, running)| (job, (claims, run, running))).collect();
        let mut fates = Self { written: Written::default(), ended: HashSet::new(), stale: HashSet::new() };
        for lease in all {
            match there.get(&lease.job.0) {
                Some(&(claims, run, false)) if claims == lease.claim && run == lease.run => {
                    // Else it was written before: a second try after a lost answer.
                    if hit.contains(&lease.job.0) {
                        fates.ended.insert(key(&lease));
                    }
                    fates.written.done.push(lease);
                }
                Some(_) => {
                    fates.stale.insert(key(&lease));
                    fates.written.lost.push(lease);
                }
                None => fates.written.lost.push(lease),
            }
        }
        Ok(fates)
    }

    /// Returns the rows that were written just now.
    fn ended_rows(&self, rows: &[Row]) -> String {
        row::array(rows.iter().filter(|row| self.ended.contains(&key(&row.lease))))
    }

    /// Writes the calls of the jobs that are still there.
    async fn write_calls(&self, conn: &mut SqliteConnection, batch: &Batch) -> sqlx::Result<()> {
        for (jobs, when) in [(&self.ended, When::InTime), (&self.stale, When::Late)] {
            let calls: Vec<&Row> =
                batch.calls.iter().filter(|call| jobs.contains(&key(&call.lease))).collect();
            if !calls.is_empty() {
                ledger(conn, row::array(calls), batch.worker, when).await?;
            }
        }
        Ok(())
    }
}

fn key(lease: &Lease) -> (i64, i64) {
    (lease.job.0, lease.claim)
}

/// Writes rows of the ledger. What the rescue wrote in place of a call that was never heard of
/// gives way to the call itself.
async fn ledger(
    conn: &mut SqliteConnection,
    calls: String,
    worker: WorkerId,
    when: When,
) -> sqlx::Result<()> {
    sqlx::query(concat!(
        "INSERT INTO calls
                (job_id, claim, seq, run, kind, probe, model, max_tokens, messages, sent_at, first_token_at, ended_at,
                 http_status, request_id, message_id, stop_reason, input_tokens, output_tokens,
                 cache_creation_input_tokens, cache_read_input_tokens, partial, late, error_type, error_code, error,
                 retry_after_ms, worker, stop_details, request, usage, container, content)
         SELECT c.value ->> 'job_id', c.value ->> 'claim', c.value ->> 'seq', c.value ->> 'run',
                c.value ->> 'kind', c.value ->> 'probe', c.value ->> 'model', c.value ->> 'max_tokens',
                c.value ->> 'messages', ",
        now!(),
        " - (c.value ->> 'sent_ago'), ",
        now!(),
        " - (c.value ->> 'first_token_ago'), ",
        now!(),
        " - (c.value ->> 'ended_ago'), c.value ->> 'http_status', c.value ->> 'request_id',
                c.value ->> 'message_id', c.value ->> 'stop_reason', c.value ->> 'input_tokens',
                c.value ->> 'output_tokens', c.value ->> 'cache_creation_input_tokens',
                c.value ->> 'cache_read_input_tokens', c.value ->> 'partial', $3, c.value ->> 'error_type',
                c.value ->> 'error_code', c.value ->> 'error', c.value ->> 'retry_after_ms', $2,
                c.value ->> 'stop_details', c.value ->> 'request', c.value ->> 'usage', c.value ->> 'container',
                c.value ->> 'content'
           FROM jsonb_each(jsonb($1)) c
          WHERE true
         ON CONFLICT (job_id, claim, seq) DO UPDATE
            SET kind = excluded.kind, probe = excluded.probe, model = excluded.model,
                max_tokens = excluded.max_tokens, messages = excluded.messages, sent_at = excluded.sent_at,
                first_token_at = excluded.first_token_at, ended_at = excluded.ended_at,
                http_status = excluded.http_status, request_id = excluded.request_id,
                message_id = excluded.message_id, stop_reason = excluded.stop_reason,
                input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
                cache_creation_input_tokens = excluded.cache_creation_input_tokens,
                cache_read_input_tokens = excluded.cache_read_input_tokens, partial = excluded.partial,
                late = excluded.late, error_type = excluded.error_type, error_code = excluded.error_code,
                error = excluded.error, retry_after_ms = excluded.retry_after_ms, worker = excluded.worker,
                stop_details = excluded.stop_details, request = excluded.request, usage = excluded.usage,
                container = excluded.container, content = excluded.content
          WHERE calls.error_type = 'lost'",
    ))
    .bind(&calls)
    .bind(worker.0)
    .bind(matches!(when, When::Late))
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "DELETE FROM checkpoints
          WHERE (job_id, claim) IN (SELECT c.value ->> 'job_id', c.value ->> 'claim'
                                      FROM jsonb_each(jsonb($1)) c
                                     WHERE c.value ->> 'checkpointed')",
    )
    .bind(&calls)
    .execute(conn)
    .await
    .map(drop)
}

async fn fill(conn: &mut SqliteConnection, answer: &Row) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "WITH sums AS (
             SELECT count(*) AS calls, coalesce(sum(kind IN ('continue', 'regenerate')), 0) AS continuations,
                    min(sent_at) AS started_at,
                    coalesce(sum(input_tokens), 0) AS input_tokens,
                    coalesce(sum(output_tokens), 0) AS output_tokens,
                    coalesce(sum(cache_creation_input_tokens), 0) AS cache_creation_input_tokens,
                    coalesce(sum(cache_read_input_tokens), 0) AS cache_read_input_tokens,
                    (SELECT l.request_id FROM calls l
                      WHERE l.job_id = $1 AND l.run = $2
                      ORDER BY l.claim DESC, l.seq DESC
                      LIMIT 1) AS request_id
               FROM calls
              WHERE job_id = $1 AND run = $2
         )
         UPDATE results
            SET text = $3 ->> 'text', content = $3 ->> 'content', model = $3 ->> 'model',
                stop_reason = $3 ->> 'stop_reason', stop_sequence = $3 ->> 'stop_sequence',
                stop_details = $3 ->> 'stop_details', seams = $3 ->> 'seams', sanitised = $3 ->> 'sanitised',
                calls = sums.calls, continuations = sums.continuations, started_at = sums.started_at,
                input_tokens = sums.input_tokens, output_tokens = sums.output_tokens,
                cache_creation_input_tokens = sums.cache_creation_input_tokens,
                cache_read_input_tokens = sums.cache_read_input_tokens, request_id = sums.request_id
           FROM sums
          WHERE job_id = $1 AND run = $2 AND outcome IN ('cancelled', 'expired') AND text IS NULL",
    )
    .bind(answer.lease.job.0)
    .bind(answer.lease.run)
    .bind(&answer.json)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}
