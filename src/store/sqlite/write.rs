//! The ledger and the ends of jobs on SQLite: append, settle, release, fill.
//!
//! A batch is a handful of statements inside one `BEGIN IMMEDIATE`, each over JSON rows (see
//! [`row`]): the fence, the results, the ledger. Nobody else can write in between.

use std::collections::{BTreeSet, HashMap, HashSet};
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
    /// Jobs that may have spent what their worker does not know of.
    recount: Vec<i64>,
}

/// What a worker is to the job whose ledger row it writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// It holds the job.
    InTime,
    /// The job is somebody else's now.
    Late,
    /// The job is done, or was run again.
    Over,
}

impl When {
    /// Returns what the holder of a lease is to a job that is not its own any more.
    fn without_lease(lease: Lease, run: i64, state: &str) -> Self {
        if run == lease.run && state != "done" { Self::Late } else { Self::Over }
    }
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
        let recount = settlements
            .iter()
            .filter(|end| end.lease.claim > 1 || end.answer.calls == 0)
            .map(|end| end.lease.job.0)
            .collect();
        let batch = Batch { rows, calls, worker, recount };
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
        let batch = Batch { rows, calls, worker, recount: Vec::new() };
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
    let when = if late { When::without_lease(lease, run, &state) } else { When::InTime };
    if !late {
        sqlx::query("UPDATE job_state SET crashes = 0 WHERE job_id = $1 AND crashes > 0")
            .bind(lease.job.0)
            .execute(&mut *conn)
            .await?;
    }
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
    let mut fates = Fates::look(conn, &batch.rows, &ended, |state| state == "done").await?;
    let adopted = adoptable(conn, &fates.late_rows(&batch.rows)).await?;
    if !adopted.is_empty() {
        fates.adopt(&adopted);
        adopt(conn, &fates.adopted_rows(&batch.rows)).await?;
    }
    sqlx::query(concat!(
        "INSERT INTO results
                (job_id, run, queue, batch, key, outcome, stop_reason, stop_sequence, model, input_tokens,
                 output_tokens, cache_creation_input_tokens, cache_read_input_tokens, calls, continuations, seams,
                 failures, sanitised, dropped, error_type, error_code, error, request_id, started_at, stop_details,
                 text, content, output)
         SELECT j.id, d.value ->> 'run', j.queue, j.batch, j.key, d.value ->> 'outcome',
                d.value ->> 'stop_reason', d.value ->> 'stop_sequence', d.value ->> 'model',
                d.value ->> 'input_tokens', d.value ->> 'output_tokens',
                d.value ->> 'cache_creation_input_tokens', d.value ->> 'cache_read_input_tokens',
                d.value ->> 'calls', d.value ->> 'continuations', d.value ->> 'seams', d.value ->> 'failures',
                d.value ->> 'sanitised', d.value ->> 'dropped', d.value ->> 'error_type', d.value ->> 'error_code',
                d.value ->> 'error',
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
    // What was ended by somebody else is summed up when its worker fills it.
    let ended = batch.recount.iter().filter(|job| fates.ended.iter().any(|(ended, _)| ended == *job));
    let recount: BTreeSet<i64> = ended.copied().chain(adopted.into_iter().map(|(job, _)| job)).collect();
    if !recount.is_empty() {
        self::recount(conn, &row::texts(&Vec::from_iter(recount))).await?;
    }
    Ok(fates.written)
}

/// Returns which of these answers of lost leases are taken, as (job, claim): where the job is not
/// done and the run is the same.
async fn adoptable(conn: &mut SqliteConnection, late: &str) -> sqlx::Result<Vec<(i64, i64)>> {
    if late == "[]" {
        return Ok(Vec::new());
    }
    sqlx::query_as(
        "SELECT s.job_id, min(d.value ->> 'claim')
           FROM jsonb_each(jsonb($1)) d
          CROSS JOIN job_state s ON s.job_id = d.value ->> 'job_id'
          WHERE d.value ->> 'whole' AND s.run = d.value ->> 'run' AND s.state <> 'done'
          GROUP BY s.job_id",
    )
    .bind(late)
    .fetch_all(conn)
    .await
}

async fn adopt(conn: &mut SqliteConnection, answers: &str) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE job_state
            SET state = 'done', claims = claims + 1, claimed_by = NULL, reason = NULL,
                failures = d.value ->> 'failures'
           FROM jsonb_each(jsonb($1)) d
          WHERE job_id = d.value ->> 'job_id'",
    )
    .bind(answers)
    .execute(conn)
    .await
    .map(drop)
}

/// Takes the sums of results from the ledger.
async fn recount(conn: &mut SqliteConnection, jobs: &str) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE results AS r
            SET calls = c.calls, continuations = c.continuations, started_at = c.started_at,
                input_tokens = c.input_tokens, output_tokens = c.output_tokens,
                cache_creation_input_tokens = c.cache_creation_input_tokens,
                cache_read_input_tokens = c.cache_read_input_tokens
           FROM (SELECT e.job_id, count(l.job_id) AS calls,
                        coalesce(sum(l.kind IN ('continue', 'regenerate')), 0) AS continuations,
                        min(l.sent_at) AS started_at, coalesce(sum(l.input_tokens), 0) AS input_tokens,
                        coalesce(sum(l.output_tokens), 0) AS output_tokens,
                        coalesce(sum(l.cache_creation_input_tokens), 0) AS cache_creation_input_tokens,
                        coalesce(sum(l.cache_read_input_tokens), 0) AS cache_read_input_tokens
                   FROM json_each($1) d
                  CROSS JOIN results e ON e.job_id = d.value
                   LEFT JOIN calls l ON l.job_id = e.job_id AND l.run = e.run
                  GROUP BY e.job_id) c
          WHERE r.job_id = c.job_id",
    )
    .bind(jobs)
    .execute(conn)
    .await
    .map(drop)
}

/// Whether a job that is put back, `d`, waits for a tool.
macro_rules! unanswered {
    () => {
        "d.value ->> 'asked_claim' IS NOT NULL
         AND EXISTS (SELECT 1 FROM json_each(d.value -> 'tools') t
                  WHERE NOT EXISTS (SELECT 1 FROM tool_calls o
                                     WHERE o.job_id = d.value ->> 'job_id' AND o.claim = d.value ->> 'asked_claim'
                                       AND o.seq = d.value ->> 'asked_seq' AND o.position = t.value ->> 'position'
                                       AND o.answered_at IS NOT NULL))"
    };
}

async fn release(conn: &mut SqliteConnection, batch: &Batch) -> sqlx::Result<Written> {
    let back: Vec<i64> = sqlx::query_scalar(concat!(
        "UPDATE job_state
            SET state = CASE WHEN d.value ->> 'delay_ms' IS NOT NULL THEN 'scheduled'
                             WHEN ",
        unanswered!(),
        " THEN 'waiting' ELSE 'pending' END,
                available_at = coalesce(",
        now!(),
        " + (d.value ->> 'delay_ms'), available_at),
                claimed_by = NULL, failures = d.value ->> 'failures', deferrals = d.value ->> 'deferrals',
                reason = CASE WHEN d.value ->> 'asked_claim' IS NULL OR ",
        unanswered!(),
        " THEN d.value ->> 'reason' END,
                crashes = CASE WHEN d.value ->> 'called' THEN 0 ELSE crashes END
           FROM jsonb_each(jsonb($1)) d
          WHERE job_id = d.value ->> 'job_id' AND claims = d.value ->> 'claim' AND run = d.value ->> 'run'
            AND state = 'running'
         RETURNING job_id",
    ))
    .bind(row::array(&batch.rows))
    .fetch_all(&mut *conn)
    .await?;
    let fates =
        Fates::look(conn, &batch.rows, &back, |state| matches!(state, "pending" | "scheduled" | "waiting"))
            .await?;
    fates.write_calls(conn, batch).await?;
    open_tools(conn, &fates.ended_rows(&batch.rows), batch.worker).await?;
    Ok(fates.written)
}

/// Puts down what jobs wait for from now on.
async fn open_tools(conn: &mut SqliteConnection, back: &str, worker: WorkerId) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO tool_calls (job_id, claim, seq, position, run, call_id, name, input, worker)
         SELECT d.value ->> 'job_id', d.value ->> 'asked_claim', d.value ->> 'asked_seq', t.value ->> 'position',
                d.value ->> 'run', t.value ->> 'call_id', t.value ->> 'name', t.value ->> 'input', $2
           FROM json_each($1) d
          CROSS JOIN json_each(d.value, '$.tools') t
          WHERE d.value ->> 'asked_claim' IS NOT NULL
         ON CONFLICT DO NOTHING",
    )
    .bind(back)
    .bind(worker.0)
    .execute(conn)
    .await
    .map(drop)
}

/// What became of the leases of a batch.
struct Fates {
    written: Written,
    /// The results that are written now.
    ended: HashSet<(i64, i64)>,
    /// What each worker is to its job, where the job is there and the row was not written before.
    when: HashMap<(i64, i64), When>,
}

impl Fates {
    /// Sorts the leases, given the jobs whose fence matched.
    ///
    /// `written_before` says whether a state is what the same write left at an earlier try.
    async fn look(
        conn: &mut SqliteConnection,
        rows: &[Row],
        hit: &[i64],
        written_before: fn(&str) -> bool,
    ) -> sqlx::Result<Self> {
        let hit: HashSet<i64> = hit.iter().copied().collect();
        let all: Vec<Lease> = rows.iter().map(|row| row.lease).collect();
        let there: Vec<(i64, i64, i64, String)> = sqlx::query_as(
            "SELECT s.job_id, s.claims, s.run, s.state
               FROM jsonb_each(jsonb($1)) d
              CROSS JOIN job_state s ON s.job_id = d.value ->> 'job_id'",
        )
        .bind(row::leases(&all))
        .fetch_all(conn)
        .await?;
        let there: HashMap<i64, (i64, i64, String)> =
            there.into_iter().map(|(job, claims, run, state)| (job, (claims, run, state))).collect();
        let mut fates = Self { written: Written::default(), ended: HashSet::new(), when: HashMap::new() };
        for lease in all {
            match there.get(&lease.job.0) {
                Some((claims, run, state))
                    if *claims == lease.claim
                        && *run == lease.run
                        && (hit.contains(&lease.job.0) || written_before(state)) =>
                {
                    // Else it is a second try after a lost answer.
                    if hit.contains(&lease.job.0) {
                        fates.ended.insert(key(&lease));
                        fates.when.insert(key(&lease), When::InTime);
                    }
                    fates.written.done.push(lease);
                }
                Some((_, run, state)) => {
                    fates.when.insert(key(&lease), When::without_lease(lease, *run, state));
                    fates.written.lost.push(lease);
                }
                None => fates.written.lost.push(lease),
            }
        }
        Ok(fates)
    }

    /// Notes that these leases, as (job, claim), brought their jobs' answers although they were lost.
    fn adopt(&mut self, adopted: &[(i64, i64)]) {
        for lease in adopted {
            self.ended.insert(*lease);
            self.when.insert(*lease, When::Over);
        }
        let is_adopted = |lease: &Lease| adopted.contains(&key(lease));
        let taken: Vec<Lease> = self.written.lost.iter().copied().filter(is_adopted).collect();
        self.written.lost.retain(|lease| !is_adopted(lease));
        self.written.done.extend(taken);
    }

    /// Returns the rows that are written now.
    fn ended_rows(&self, rows: &[Row]) -> String {
        row::array(rows.iter().filter(|row| self.ended.contains(&key(&row.lease))))
    }

    /// Returns the answers that were taken from lost leases.
    fn adopted_rows(&self, rows: &[Row]) -> String {
        let is = |row: &&Row| {
            self.ended.contains(&key(&row.lease)) && self.when.get(&key(&row.lease)) == Some(&When::Over)
        };
        row::array(rows.iter().filter(is))
    }

    /// Returns the rows of jobs that are somebody else's now.
    fn late_rows(&self, rows: &[Row]) -> String {
        row::array(rows.iter().filter(|row| self.when.get(&key(&row.lease)) == Some(&When::Late)))
    }

    /// Writes the calls of the jobs that are still there.
    async fn write_calls(&self, conn: &mut SqliteConnection, batch: &Batch) -> sqlx::Result<()> {
        for when in [When::InTime, When::Late, When::Over] {
            let is = |call: &&Row| self.when.get(&key(&call.lease)) == Some(&when);
            let calls: Vec<&Row> = batch.calls.iter().filter(is).collect();
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

/// Writes rows of the ledger. What stands in place of a call that was not heard of gives way to the
/// call itself, but for content that somebody may have gone on with: the second half of an answer
/// needs its first.
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
                message_id = excluded.message_id, input_tokens = excluded.input_tokens,
                output_tokens = excluded.output_tokens,
                cache_creation_input_tokens = excluded.cache_creation_input_tokens,
                cache_read_input_tokens = excluded.cache_read_input_tokens,
                retry_after_ms = excluded.retry_after_ms, worker = excluded.worker, usage = excluded.usage,
                (late, partial, stop_reason, error_type, error_code, error, stop_details, request, container, content)
                = (SELECT old.late, old.partial, old.stop_reason, old.error_type, old.error_code, old.error,
                          old.stop_details, old.request, old.container, old.content
                     FROM calls old
                    WHERE old.job_id = excluded.job_id AND old.claim = excluded.claim AND old.seq = excluded.seq
                      AND $4 AND old.content IS NOT NULL
                    UNION ALL
                   SELECT excluded.late, excluded.partial, excluded.stop_reason, excluded.error_type,
                          excluded.error_code, excluded.error, excluded.stop_details, excluded.request,
                          excluded.container, excluded.content
                    LIMIT 1)
          WHERE calls.error_type = 'lost'",
    ))
    .bind(&calls)
    .bind(worker.0)
    .bind(when != When::InTime)
    .bind(when == When::Late)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "DELETE FROM checkpoints
          WHERE rowid IN (SELECT k.rowid
                            FROM jsonb_each(jsonb($1)) c
                           CROSS JOIN checkpoints k ON k.job_id = c.value ->> 'job_id'
                           WHERE c.value ->> 'checkpointed' AND k.claim = c.value ->> 'claim'
                             AND k.seq <= c.value ->> 'seq')",
    )
    .bind(&calls)
    .execute(conn)
    .await
    .map(drop)
}

async fn fill(conn: &mut SqliteConnection, answer: &Row) -> sqlx::Result<bool> {
    let lease = answer.lease;
    sqlx::query(
        "DELETE FROM calls
          WHERE job_id = $1 AND claim = $2 AND error_type = 'lost' AND sent_at IS NULL AND content IS NULL",
    )
    .bind(lease.job.0)
    .bind(lease.claim)
    .execute(&mut *conn)
    .await?;
    let filled = sqlx::query(
        "UPDATE results
            SET text = $3 ->> 'text', content = $3 ->> 'content', model = $3 ->> 'model',
                stop_reason = $3 ->> 'stop_reason', stop_sequence = $3 ->> 'stop_sequence',
                stop_details = $3 ->> 'stop_details', seams = $3 ->> 'seams', sanitised = $3 ->> 'sanitised',
                request_id = (SELECT l.request_id FROM calls l
                               WHERE l.job_id = $1 AND l.run = $2
                               ORDER BY l.claim DESC, l.seq DESC
                               LIMIT 1)
          WHERE job_id = $1 AND run = $2 AND outcome IN ('cancelled', 'expired') AND text IS NULL",
    )
    .bind(lease.job.0)
    .bind(lease.run)
    .bind(&answer.json)
    .execute(&mut *conn)
    .await?;
    let jobs: Vec<i64> = sqlx::query_scalar("SELECT job_id FROM results WHERE job_id = $1 AND run = $2")
        .bind(lease.job.0)
        .bind(lease.run)
        .fetch_all(&mut *conn)
        .await?;
    recount(conn, &row::ids(&jobs)).await?;
    Ok(filled.rows_affected() == 1)
}
