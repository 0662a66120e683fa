//! The ledger and the ends of jobs on Postgres: append, settle, release, fill.
//!
//! A batch travels as JSON rows (see [`row`]). In each statement `held` are the rows whose fence
//! matched, now locked; `stale` are the others, as they are now. Whoever writes anything of a job
//! holds its `job_state` row, at least against deletion: so a deleted job leaves no rows behind.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use super::PostgresStore;
use crate::domain::job::{Lease, WorkerId};
use crate::domain::ledger::{Answer, Call, Checkpoint, Release, Settlement};
use crate::store::row::{self, Row};
use crate::store::{StoreError, Written};

/// The calls of a batch, `$1`, as rows.
macro_rules! calls {
    () => {
        "call AS MATERIALIZED (
             SELECT *
               FROM json_to_recordset($1::json) AS c(
                    job_id bigint, claim bigint, run bigint, seq integer, kind text, probe boolean, model text,
                    max_tokens bigint, messages integer, sent_ago bigint, first_token_ago bigint, ended_ago bigint,
                    http_status integer, request_id text, message_id text, stop_reason text, input_tokens bigint,
                    output_tokens bigint, cache_creation_input_tokens bigint, cache_read_input_tokens bigint,
                    partial boolean, error_type text, error_code text, error text, retry_after_ms bigint,
                    stop_details text, request text, usage text, container text, content text,
                    checkpointed boolean)
         )"
    };
}

/// Locks what the fence lets through of `d`, and looks at the rest: `lost` is somebody else's now,
/// `over` is done or run again. The arguments: when a job whose lease was lost is taken all the same,
/// and what an earlier try of the same write left.
macro_rules! fence {
    ($adopted:literal, $written_before:literal) => {
        concat!(
            "locked AS MATERIALIZED (
             SELECT d.job_id, d.claim, s.own
               FROM d
              CROSS JOIN LATERAL (
                    SELECT claims = d.claim AND state = 'running' AS own FROM job_state
                     WHERE job_id = d.job_id AND run = d.run
                       AND (claims = d.claim AND state = 'running' OR ",
            $adopted,
            ")
                     LIMIT 1
                       FOR NO KEY UPDATE SKIP LOCKED) s
         ), held AS MATERIALIZED (
             SELECT DISTINCT ON (job_id) job_id, claim, own FROM locked ORDER BY job_id, own DESC, claim
         ), missed AS MATERIALIZED (
             SELECT d.job_id, d.claim, d.run
               FROM d
              WHERE NOT EXISTS (SELECT FROM held h WHERE h.job_id = d.job_id AND h.claim = d.claim)
         ), stale AS MATERIALIZED (
             SELECT m.job_id, m.claim,
                    CASE WHEN s.claims = m.claim AND s.run = m.run AND s.state = 'running' THEN 'skipped'
                         WHEN s.claims = m.claim AND s.run = m.run AND ",
            $written_before,
            " THEN 'done'
                         WHEN s.run = m.run AND s.state <> 'done' THEN 'lost'
                         ELSE 'over' END AS fate
               FROM missed m
              CROSS JOIN LATERAL (
                    SELECT claims, run, state FROM job_state
                     WHERE job_id = m.job_id
                     LIMIT 1
                       FOR KEY SHARE SKIP LOCKED) s
         ), fate AS MATERIALIZED (
             SELECT job_id, claim, CASE WHEN own THEN 'done' ELSE 'adopted' END AS fate FROM held
              UNION ALL
             SELECT job_id, claim, fate FROM stale
              UNION ALL
             SELECT m.job_id, m.claim,
                    CASE WHEN EXISTS (SELECT FROM job_state s WHERE s.job_id = m.job_id OFFSET 0)
                         THEN 'skipped' ELSE 'gone' END
               FROM missed m
              WHERE NOT EXISTS (SELECT FROM stale t WHERE t.job_id = m.job_id AND t.claim = m.claim)
         )"
        )
    };
}

/// Writes the calls of the jobs in `fate` that are still there; `$2` is the worker. What stands in
/// place of a call that was not heard of gives way to the call itself, but for content that somebody
/// may have gone on with: the second half of an answer needs its first.
macro_rules! ledger {
    () => {
        "written AS (
             INSERT INTO calls AS old
                    (job_id, claim, seq, run, kind, probe, model, max_tokens, messages, sent_at, first_token_at, ended_at,
                     http_status, request_id, message_id, stop_reason, input_tokens, output_tokens,
                     cache_creation_input_tokens, cache_read_input_tokens, partial, late, error_type, error_code, error,
                     retry_after_ms, worker, stop_details, request, usage, container, content)
             SELECT c.job_id, c.claim, c.seq, c.run, c.kind, c.probe, c.model, c.max_tokens, c.messages,
                    now() - c.sent_ago * interval '1 millisecond',
                    now() - c.first_token_ago * interval '1 millisecond',
                    now() - c.ended_ago * interval '1 millisecond',
                    c.http_status, c.request_id, c.message_id, c.stop_reason, c.input_tokens, c.output_tokens,
                    c.cache_creation_input_tokens, c.cache_read_input_tokens, c.partial, f.fate <> 'done',
                    c.error_type, c.error_code, c.error, c.retry_after_ms, $2,
                    c.stop_details::json, c.request::json, c.usage::json, c.container::json, c.content::json
               FROM call c
               JOIN fate f ON f.job_id = c.job_id AND f.claim = c.claim AND f.fate NOT IN ('skipped', 'gone')
             ON CONFLICT (job_id, claim, seq) DO UPDATE
                SET (kind, probe, model, max_tokens, messages, sent_at, first_token_at, ended_at, http_status,
                     request_id, message_id, input_tokens, output_tokens, cache_creation_input_tokens,
                     cache_read_input_tokens, retry_after_ms, worker, usage)
                  = (excluded.kind, excluded.probe, excluded.model, excluded.max_tokens, excluded.messages,
                     excluded.sent_at, excluded.first_token_at, excluded.ended_at, excluded.http_status,
                     excluded.request_id, excluded.message_id, excluded.input_tokens, excluded.output_tokens,
                     excluded.cache_creation_input_tokens, excluded.cache_read_input_tokens,
                     excluded.retry_after_ms, excluded.worker, excluded.usage),
                    (late, partial, stop_reason, error_type, error_code, error, stop_details, request, container, content)
                  = (SELECT n.*
                       FROM (SELECT EXISTS (SELECT FROM fate f WHERE f.job_id = excluded.job_id
                                               AND f.claim = excluded.claim AND f.fate = 'lost')
                                    AND old.content IS NOT NULL AS stays) w
                      CROSS JOIN LATERAL (
                            SELECT old.late, old.partial, old.stop_reason, old.error_type, old.error_code, old.error,
                                   old.stop_details, old.request, old.container, old.content
                             WHERE w.stays
                             UNION ALL
                            SELECT excluded.late, excluded.partial, excluded.stop_reason, excluded.error_type,
                                   excluded.error_code, excluded.error, excluded.stop_details, excluded.request,
                                   excluded.container, excluded.content
                             WHERE NOT w.stays) n)
              WHERE old.error_type = 'lost'
         ), swept AS (
             DELETE FROM checkpoints
              WHERE ctid = ANY (ARRAY(
                    SELECT k.ctid
                      FROM call c
                     CROSS JOIN LATERAL (
                           SELECT ctid FROM checkpoints
                            WHERE job_id = c.job_id AND claim = c.claim AND seq <= c.seq
                           OFFSET 0) k
                     WHERE c.checkpointed))
         )"
    };
}

/// A batch on its way: its rows as JSON arrays, and the leases that they are fenced by.
struct Batch {
    leases: Vec<Lease>,
    rows: String,
    calls: String,
    worker: WorkerId,
}

impl Batch {
    /// Sorts by job: everybody locks in the same order.
    fn new(mut rows: Vec<Row>, calls: &[Row], worker: WorkerId) -> Self {
        rows.sort_by_key(|row| row.lease.job);
        Self {
            leases: rows.iter().map(|row| row.lease).collect(),
            rows: row::array(&rows),
            calls: row::array(calls),
            worker,
        }
    }
}

impl PostgresStore {
    pub(super) async fn append_call(
        &self,
        lease: &Lease,
        call: &Call,
        worker: WorkerId,
    ) -> Result<bool, StoreError> {
        let job = lease.job;
        let call = row::call(lease, call, Instant::now());
        let late =
            self.run((call, worker), |conn, params| Box::pin(append(conn, &params.0, params.1))).await?;
        late.ok_or_else(|| StoreError::Locked(format!("job {job} is locked by somebody who deletes it")))
    }

    pub(super) async fn keep_parts(&self, parts: &[Arc<Checkpoint>]) -> Result<Vec<Lease>, StoreError> {
        let mut rows: Vec<Row> = parts.iter().map(|part| row::checkpoint(part)).collect();
        rows.sort_by_key(|row| row.lease.job);
        self.run(row::array(&rows), |conn, rows| Box::pin(checkpoint(conn, rows))).await
    }

    pub(super) async fn settle_jobs(
        &self,
        settlements: &[Arc<Settlement>],
        worker: WorkerId,
    ) -> Result<Written, StoreError> {
        let now = Instant::now();
        let rows = settlements.iter().map(|end| row::answer(&end.lease, &end.answer, now)).collect();
        let calls: Vec<Row> = settlements
            .iter()
            .filter_map(|end| end.call.as_ref().map(|call| row::call(&end.lease, call, now)))
            .collect();
        let batch = Batch::new(rows, &calls, worker);
        let written = self.run(batch, |conn, batch| Box::pin(settle(conn, batch))).await?;
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
        let calls: Vec<Row> = releases
            .iter()
            .filter_map(|back| back.call.as_ref().map(|call| row::call(&back.lease, call, now)))
            .collect();
        let batch = Batch::new(rows, &calls, worker);
        let written = self.run(batch, |conn, batch| Box::pin(release(conn, batch))).await?;
        self.held.drop(written.done.iter().chain(&written.lost));
        Ok(written)
    }

    pub(super) async fn fill_result(&self, lease: &Lease, answer: &Answer) -> Result<bool, StoreError> {
        let row = row::answer(lease, answer, Instant::now());
        self.run(row, |conn, row| Box::pin(fill(conn, row))).await
    }
}

/// Returns whether the call is late; `None` where the job's row is locked against us.
async fn append(conn: &mut PgConnection, call: &Row, worker: WorkerId) -> sqlx::Result<Option<bool>> {
    let lease = call.lease;
    let found = sqlx::query(concat!(
        "WITH ",
        calls!(),
        ", here AS MATERIALIZED (
             SELECT claims, run, state FROM job_state
              WHERE job_id = $3
                FOR KEY SHARE SKIP LOCKED
         ), fate AS (
             SELECT $3 AS job_id, $4 AS claim,
                    CASE WHEN claims = $4 AND run = $5 AND state = 'running' THEN 'done'
                         WHEN run = $5 AND state <> 'done' THEN 'lost' ELSE 'over' END AS fate
               FROM here
         ), calmed AS (
             UPDATE job_state SET crashes = 0
              WHERE job_id = (SELECT job_id FROM fate WHERE fate = 'done') AND crashes > 0
         ), ",
        ledger!(),
        "SELECT (SELECT fate <> 'done' FROM fate) AS late, EXISTS (SELECT FROM job_state WHERE job_id = $3) AS there",
    ))
    .bind(row::array([call]))
    .bind(worker.0)
    .bind(lease.job.0)
    .bind(lease.claim)
    .bind(lease.run)
    .fetch_one(conn)
    .await?;
    match (found.try_get::<Option<bool>, _>("late")?, found.try_get::<bool, _>("there")?) {
        (Some(late), _) => Ok(Some(late)),
        (None, true) => Ok(None),
        // The job is gone.
        (None, false) => Ok(Some(true)),
    }
}

/// Keeps parts of running streams. A job whose row somebody writes just now is passed over, be it
/// by ourselves who settle it: no part may come after the row that makes it superfluous.
async fn checkpoint(conn: &mut PgConnection, parts: &str) -> sqlx::Result<Vec<Lease>> {
    let held: Vec<(i64, i64, i64)> = sqlx::query_as(
        "WITH d AS MATERIALIZED (
             SELECT *
               FROM json_to_recordset($1::json) AS d(
                    job_id bigint, claim bigint, run bigint, seq integer, part integer, content text)
         ), held AS MATERIALIZED (
             SELECT d.job_id, d.claim, d.run
               FROM (SELECT DISTINCT job_id, claim, run FROM d ORDER BY job_id) d
              CROSS JOIN LATERAL (
                    SELECT FROM job_state
                     WHERE job_id = d.job_id AND claims = d.claim AND run = d.run AND state = 'running'
                     LIMIT 1
                       FOR SHARE SKIP LOCKED) s
         ), kept AS (
             INSERT INTO checkpoints (job_id, claim, seq, part, content)
             SELECT d.job_id, d.claim, d.seq, d.part, d.content
               FROM d
              WHERE d.job_id IN (SELECT job_id FROM held)
                AND NOT EXISTS (SELECT FROM calls c
                                 WHERE c.job_id = d.job_id AND c.claim = d.claim AND c.seq = d.seq
                                OFFSET 0)
                 ON CONFLICT DO NOTHING
         )
         SELECT job_id, claim, run FROM held",
    )
    .bind(parts)
    .fetch_all(conn)
    .await?;
    Ok(row::leases_of(held))
}

async fn settle(conn: &mut PgConnection, batch: &Batch) -> sqlx::Result<Written> {
    let rows = sqlx::query(concat!(
        "WITH d AS MATERIALIZED (
             SELECT *
               FROM json_to_recordset($3::json) AS d(
                    job_id bigint, claim bigint, run bigint, outcome text, whole boolean, stop_reason text,
                    stop_sequence text, model text, input_tokens bigint, output_tokens bigint, cache_creation_input_tokens bigint,
                    cache_read_input_tokens bigint, calls integer, continuations integer, seams integer,
                    failures integer, sanitised integer, dropped integer, error_type text, error_code text, error text,
                    request_id text, started_ago bigint, stop_details text, text text, content text, output text)
         ), ",
        calls!(),
        ", ",
        fence!("d.whole AND state <> 'done'", "s.state = 'done'"),
        ", ended AS (
             UPDATE job_state s
                SET state = 'done', claimed_by = NULL, reason = NULL, failures = d.failures,
                    claims = s.claims + (NOT h.own)::integer
               FROM held h
               JOIN d ON d.job_id = h.job_id AND d.claim = h.claim
              WHERE s.job_id = h.job_id AND s.job_id = ANY (ARRAY(SELECT job_id FROM held))
         ), kept AS (
             INSERT INTO results
                    (job_id, run, queue, batch, key, outcome, stop_reason, stop_sequence, model, input_tokens,
                     output_tokens, cache_creation_input_tokens, cache_read_input_tokens, calls, continuations, seams,
                     failures, sanitised, dropped, error_type, error_code, error, request_id, started_at, stop_details, text,
                     content, output)
             SELECT d.job_id, d.run, j.queue, j.batch, j.key, d.outcome, d.stop_reason, d.stop_sequence, d.model,
                    coalesce(a.input_tokens, d.input_tokens), coalesce(a.output_tokens, d.output_tokens),
                    coalesce(a.cache_creation_input_tokens, d.cache_creation_input_tokens),
                    coalesce(a.cache_read_input_tokens, d.cache_read_input_tokens),
                    coalesce(a.calls, d.calls), coalesce(a.continuations, d.continuations), d.seams, d.failures,
                    d.sanitised, d.dropped, d.error_type, d.error_code, d.error, d.request_id,
                    CASE WHEN a.calls IS NOT NULL THEN a.started_at
                         ELSE now() - d.started_ago * interval '1 millisecond' END, d.stop_details::json,
                    d.text, d.content::json, d.output::json
               FROM d
               JOIN held h ON h.job_id = d.job_id AND h.claim = d.claim
              CROSS JOIN LATERAL (SELECT queue, batch, key FROM jobs WHERE id = d.job_id LIMIT 1) j
               -- A job that was claimed before may have spent what its worker does not know of.
               LEFT JOIN LATERAL (
                    SELECT count(*) AS calls, count(*) FILTER (WHERE kind IN ('continue', 'regenerate')) AS continuations,
                           min(sent_at) AS started_at, coalesce(sum(input_tokens), 0) AS input_tokens,
                           coalesce(sum(output_tokens), 0) AS output_tokens,
                           coalesce(sum(cache_creation_input_tokens), 0) AS cache_creation_input_tokens,
                           coalesce(sum(cache_read_input_tokens), 0) AS cache_read_input_tokens
                      FROM (SELECT kind, sent_at, input_tokens, output_tokens, cache_creation_input_tokens,
                                   cache_read_input_tokens
                              FROM calls o
                             WHERE (NOT h.own OR d.claim > 1 OR d.calls = 0) AND o.job_id = d.job_id AND o.run = d.run
                               AND NOT EXISTS (SELECT FROM call c
                                                WHERE c.job_id = o.job_id AND c.claim = o.claim AND c.seq = o.seq)
                             UNION ALL
                            SELECT kind, now() - sent_ago * interval '1 millisecond', input_tokens, output_tokens,
                                   cache_creation_input_tokens, cache_read_input_tokens
                              FROM call c
                             WHERE (NOT h.own OR d.claim > 1 OR d.calls = 0) AND c.job_id = d.job_id) every
                    ) a ON NOT h.own OR d.claim > 1 OR d.calls = 0
         ), ",
        ledger!(),
        "SELECT job_id, claim, fate FROM fate",
    ))
    .bind(&batch.calls)
    .bind(batch.worker.0)
    .bind(&batch.rows)
    .fetch_all(conn)
    .await?;
    fates(&batch.leases, &rows)
}

async fn release(conn: &mut PgConnection, batch: &Batch) -> sqlx::Result<Written> {
    let rows = sqlx::query(concat!(
        "WITH d AS MATERIALIZED (
             SELECT *
               FROM json_to_recordset($3::json) AS d(
                    job_id bigint, claim bigint, run bigint, delay_ms bigint, failures integer, deferrals integer,
                    reason text, called boolean, asked_claim bigint, asked_seq integer, tools json)
         ), tool AS MATERIALIZED (
             SELECT d.job_id, d.claim AS by_claim, d.run, d.asked_claim AS claim, d.asked_seq AS seq, t.position,
                    t.call_id, t.name, t.input,
                    EXISTS (SELECT FROM tool_calls o
                             WHERE o.job_id = d.job_id AND o.claim = d.asked_claim AND o.seq = d.asked_seq
                               AND o.position = t.position AND o.answered_at IS NOT NULL
                            OFFSET 0) AS answered
               FROM d
              CROSS JOIN LATERAL json_to_recordset(d.tools) AS t(position integer, call_id text, name text, input text)
              WHERE d.tools IS NOT NULL
         ), ",
        calls!(),
        ", ",
        fence!("false", "s.state IN ('pending', 'scheduled', 'waiting')"),
        ", next AS MATERIALIZED (
             SELECT d.job_id, d.delay_ms, d.failures, d.deferrals, d.called, n.state,
                    CASE WHEN d.tools IS NULL OR n.state = 'waiting' THEN d.reason END AS reason
               FROM held h
               JOIN d ON d.job_id = h.job_id AND d.claim = h.claim
              CROSS JOIN LATERAL (
                    SELECT CASE WHEN d.delay_ms IS NOT NULL THEN 'scheduled'
                                WHEN EXISTS (SELECT FROM tool t
                                              WHERE t.job_id = d.job_id AND t.by_claim = d.claim AND NOT t.answered)
                                THEN 'waiting' ELSE 'pending' END AS state) n
         ), back AS (
             UPDATE job_state s
                SET state = n.state,
                    available_at = coalesce(now() + n.delay_ms * interval '1 millisecond', s.available_at),
                    claimed_by = NULL, failures = n.failures, deferrals = n.deferrals, reason = n.reason,
                    crashes = CASE WHEN n.called THEN 0 ELSE s.crashes END
               FROM next n
              WHERE s.job_id = n.job_id AND s.job_id = ANY (ARRAY(SELECT job_id FROM held))
         ), opened AS (
             INSERT INTO tool_calls (job_id, claim, seq, position, run, call_id, name, input, worker)
             SELECT t.job_id, t.claim, t.seq, t.position, t.run, t.call_id, t.name, t.input::json, $2
               FROM tool t
               JOIN held h ON h.job_id = t.job_id AND h.claim = t.by_claim
                 ON CONFLICT DO NOTHING
         ), ",
        ledger!(),
        "SELECT job_id, claim, fate FROM fate",
    ))
    .bind(&batch.calls)
    .bind(batch.worker.0)
    .bind(&batch.rows)
    .fetch_all(conn)
    .await?;
    fates(&batch.leases, &rows)
}

/// Sorts the leases by what became of them.
fn fates(leases: &[Lease], rows: &[PgRow]) -> sqlx::Result<Written> {
    let known: HashMap<(i64, i64), &Lease> =
        leases.iter().map(|lease| ((lease.job.0, lease.claim), lease)).collect();
    let mut written = Written::default();
    for fate in rows {
        let Some(lease) = known.get(&(fate.try_get("job_id")?, fate.try_get("claim")?)).copied() else {
            continue;
        };
        match fate.try_get::<&str, _>("fate")? {
            "done" | "adopted" => written.done.push(*lease),
            "skipped" => written.skipped.push(*lease),
            _ => written.lost.push(*lease),
        }
    }
    Ok(written)
}

async fn fill(conn: &mut PgConnection, answer: &Row) -> sqlx::Result<bool> {
    let filled: Option<bool> = sqlx::query_scalar(
        "WITH d AS MATERIALIZED (
             SELECT *
               FROM json_to_recordset($1::json) AS d(
                    job_id bigint, claim bigint, run bigint, stop_reason text, stop_sequence text, model text,
                    seams integer, sanitised integer, stop_details text, text text, content text)
         ), never AS (
             DELETE FROM calls c
              WHERE c.job_id = (SELECT job_id FROM d) AND c.claim = (SELECT claim FROM d)
                AND c.error_type = 'lost' AND c.sent_at IS NULL AND c.content IS NULL
         ), sums AS (
             SELECT count(*) AS calls, count(*) FILTER (WHERE c.kind IN ('continue', 'regenerate')) AS continuations,
                    min(c.sent_at) AS started_at,
                    coalesce(sum(c.input_tokens), 0) AS input_tokens,
                    coalesce(sum(c.output_tokens), 0) AS output_tokens,
                    coalesce(sum(c.cache_creation_input_tokens), 0) AS cache_creation_input_tokens,
                    coalesce(sum(c.cache_read_input_tokens), 0) AS cache_read_input_tokens,
                    (array_agg(c.request_id ORDER BY c.claim DESC, c.seq DESC))[1] AS request_id
               FROM calls c
              WHERE c.job_id = (SELECT job_id FROM d) AND c.run = (SELECT run FROM d)
                AND (c.claim <> (SELECT claim FROM d) OR c.error_type IS DISTINCT FROM 'lost'
                     OR c.sent_at IS NOT NULL OR c.content IS NOT NULL)
         ), result AS (
             SELECT r.job_id, r.run, r.outcome IN ('cancelled', 'expired') AND r.text IS NULL AS open
               FROM results r
              WHERE r.job_id = (SELECT job_id FROM d) AND r.run = (SELECT run FROM d)
         ), summed AS (
             UPDATE results r
                SET calls = s.calls, continuations = s.continuations, started_at = s.started_at,
                    input_tokens = s.input_tokens, output_tokens = s.output_tokens,
                    cache_creation_input_tokens = s.cache_creation_input_tokens,
                    cache_read_input_tokens = s.cache_read_input_tokens
               FROM result o, sums s
              WHERE r.job_id = (SELECT job_id FROM d) AND r.job_id = o.job_id AND r.run = o.run AND NOT o.open
         ), filled AS (
             UPDATE results r
                SET text = d.text, content = d.content::json, model = d.model, stop_reason = d.stop_reason,
                    stop_sequence = d.stop_sequence, stop_details = d.stop_details::json, seams = d.seams,
                    sanitised = d.sanitised, calls = s.calls, continuations = s.continuations,
                    started_at = s.started_at, input_tokens = s.input_tokens, output_tokens = s.output_tokens,
                    cache_creation_input_tokens = s.cache_creation_input_tokens,
                    cache_read_input_tokens = s.cache_read_input_tokens, request_id = s.request_id
               FROM d, result o, sums s
              WHERE r.job_id = (SELECT job_id FROM d) AND r.job_id = o.job_id AND r.run = o.run AND o.open
         )
         SELECT open FROM result",
    )
    .bind(row::array([answer]))
    .fetch_optional(conn)
    .await?;
    Ok(filled.unwrap_or(false))
}
