//! The ledger and the ends of jobs on Postgres: append, settle, release, fill.
//!
//! A batch travels as an array a column: JSON would cost more than the writing. In each statement `held` are the rows whose fence
//! matched, now locked; `stale` are the others, as they are now. Whoever writes anything of a job
//! holds its `job_state` row, at least against deletion: so a deleted job leaves no rows behind.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::{Postgres, Row as _, query::Query};

use super::PostgresStore;
use crate::domain::job::{Lease, WorkerId};
use crate::domain::ledger::{Answer, Call, Checkpoint, Release, Settlement};
use crate::store::row::{self, AnswerRow, CallRow, Row};
use crate::store::{StoreError, Written};

/// The calls of a batch, `$1` to `$32`, as rows; see [`bind_calls`].
macro_rules! calls {
    () => {
        "call AS MATERIALIZED (
             SELECT *
               FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::integer[], $5::text[], $6::boolean[], $7::text[],
                           $8::bigint[], $9::integer[], $10::bigint[], $11::bigint[], $12::bigint[], $13::integer[],
                           $14::text[], $15::text[], $16::text[], $17::bigint[], $18::bigint[], $19::bigint[],
                           $20::bigint[], $21::boolean[], $22::text[], $23::text[], $24::text[], $25::bigint[],
                           $26::text[], $27::text[], $28::text[], $29::text[], $30::text[], $31::boolean[],
                           $32::boolean[])
                    AS c(job_id, claim, run, seq, kind, probe, model, max_tokens, messages, sent_ago, first_token_ago,
                         ended_ago, http_status, request_id, message_id, stop_reason, input_tokens, output_tokens,
                         cache_creation_input_tokens, cache_read_input_tokens, partial, error_type, error_code, error,
                         retry_after_ms, stop_details, request, usage, container, content, once, checkpointed)
         )"
    };
}

/// Binds an array for each of these fields of the rows, in their order.
macro_rules! bind_columns {
    ($query:expr, $rows:expr, $($field:ident),+ $(,)?) => {
        $query$(.bind($rows.iter().map(|row| row.$field).collect::<Vec<_>>()))+
    };
}

type Writing<'q> = Query<'q, Postgres, PgArguments>;

/// Binds `$1` to `$33`.
fn bind_calls<'q>(query: Writing<'q>, calls: &[CallRow<'q>], worker: WorkerId) -> Writing<'q> {
    bind_columns!(
        query,
        calls,
        job_id,
        claim,
        run,
        seq,
        kind,
        probe,
        model,
        max_tokens,
        messages,
        sent_ago,
        first_token_ago,
        ended_ago,
        http_status,
        request_id,
        message_id,
        stop_reason,
        input_tokens,
        output_tokens,
        cache_creation_input_tokens,
        cache_read_input_tokens,
        partial,
        error_type,
        error_code,
        error,
        retry_after_ms,
        stop_details,
        request,
        usage,
        container,
        content,
        once,
        checkpointed,
    )
    .bind(worker.0)
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
            " THEN 'before'
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

/// Writes the calls of the jobs in `fate` that are still there; `$33` is the worker. What stands in
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
                    c.cache_creation_input_tokens, c.cache_read_input_tokens, c.partial, f.fate NOT IN ('done', 'before'),
                    c.error_type, c.error_code, c.error, c.retry_after_ms, $33,
                    c.stop_details::json, c.request::json, c.usage::json, c.container::json,
                    CASE WHEN NOT c.once OR f.fate NOT IN ('done', 'adopted') THEN c.content::json END
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
                     WHERE c.checkpointed
                       AND EXISTS (SELECT FROM fate f WHERE f.job_id = c.job_id AND f.claim = c.claim
                                      AND f.fate NOT IN ('skipped', 'gone'))))
         )"
    };
}

/// Binds `$34` to `$60`.
fn bind_answers<'q>(query: Writing<'q>, answers: &[AnswerRow<'q>]) -> Writing<'q> {
    bind_columns!(
        query,
        answers,
        job_id,
        claim,
        run,
        outcome,
        whole,
        stop_reason,
        stop_sequence,
        model,
        input_tokens,
        output_tokens,
        cache_creation_input_tokens,
        cache_read_input_tokens,
        calls,
        continuations,
        seams,
        failures,
        sanitised,
        dropped,
        error_type,
        error_code,
        error,
        request_id,
        started_ago,
        stop_details,
        text,
        content,
        output,
    )
}

/// Jobs on their way to their end, or back.
struct Batch<T> {
    /// Sorted by job: everybody locks in the same order.
    rows: Vec<Arc<T>>,
    worker: WorkerId,
    at: Instant,
}

impl PostgresStore {
    pub(super) async fn append_call(
        &self,
        lease: &Lease,
        call: &Call,
        worker: WorkerId,
    ) -> Result<bool, StoreError> {
        let job = lease.job;
        let params = (*lease, call.clone(), Instant::now(), worker);
        let late =
            self.run(params, |conn, p| Box::pin(append(conn, row::call(&p.0, &p.1, p.2), p.3))).await?;
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
        let mut rows = settlements.to_vec();
        rows.sort_by_key(|end| end.lease.job);
        let batch = (Batch { rows, worker, at: Instant::now() }, self.answers_once);
        let written = self.run(batch, |conn, p| Box::pin(settle(conn, &p.0, p.1))).await?;
        self.held.drop(written.done.iter().chain(&written.lost));
        Ok(written)
    }

    pub(super) async fn release_jobs(
        &self,
        releases: &[Arc<Release>],
        worker: WorkerId,
    ) -> Result<Written, StoreError> {
        let mut rows = releases.to_vec();
        rows.sort_by_key(|back| back.lease.job);
        let batch = Batch { rows, worker, at: Instant::now() };
        let written = self.run(batch, |conn, batch| Box::pin(release(conn, batch))).await?;
        self.held.drop(written.done.iter().chain(&written.lost));
        Ok(written)
    }

    pub(super) async fn fill_result(&self, lease: &Lease, answer: &Answer) -> Result<bool, StoreError> {
        let row = row::object(&row::answer(lease, answer, Instant::now()));
        self.run(row, |conn, row| Box::pin(fill(conn, row))).await
    }
}

/// Returns whether the call is late; `None` where the job's row is locked against us.
async fn append(conn: &mut PgConnection, call: CallRow<'_>, worker: WorkerId) -> sqlx::Result<Option<bool>> {
    let lease = call.lease();
    let append = sqlx::query(concat!(
        "WITH ",
        calls!(),
        ", here AS MATERIALIZED (
             SELECT claims, run, state FROM job_state
              WHERE job_id = $34
                FOR KEY SHARE SKIP LOCKED
         ), fate AS (
             SELECT $34 AS job_id, $35 AS claim,
                    CASE WHEN claims = $35 AND run = $36 AND state = 'running' THEN 'done'
                         WHEN run = $36 AND state <> 'done' THEN 'lost' ELSE 'over' END AS fate
               FROM here
         ), calmed AS (
             UPDATE job_state SET crashes = 0
              WHERE job_id = (SELECT job_id FROM fate WHERE fate = 'done') AND crashes > 0
         ), ",
        ledger!(),
        "SELECT (SELECT fate <> 'done' FROM fate) AS late, EXISTS (SELECT FROM job_state WHERE job_id = $34) AS there",
    ));
    let found = bind_calls(append, &[call], worker)
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

/// Ends jobs. `once`: see [`row::last_calls`].
async fn settle(conn: &mut PgConnection, batch: &Batch<Settlement>, once: bool) -> sqlx::Result<Written> {
    let ends = || batch.rows.iter().map(|end| &**end);
    let calls = row::last_calls(ends(), batch.at, once);
    let answers: Vec<AnswerRow<'_>> =
        ends().map(|end| row::answer(&end.lease, &end.answer, batch.at)).collect();
    let settle = sqlx::query(concat!(
        "WITH d AS MATERIALIZED (
             SELECT *
               FROM unnest($34::bigint[], $35::bigint[], $36::bigint[], $37::text[], $38::boolean[], $39::text[],
                           $40::text[], $41::text[], $42::bigint[], $43::bigint[], $44::bigint[], $45::bigint[],
                           $46::integer[], $47::integer[], $48::integer[], $49::integer[], $50::integer[],
                           $51::integer[], $52::text[], $53::text[], $54::text[], $55::text[], $56::bigint[],
                           $57::text[], $58::text[], $59::text[], $60::text[])
                    AS d(job_id, claim, run, outcome, whole, stop_reason, stop_sequence, model, input_tokens,
                         output_tokens, cache_creation_input_tokens, cache_read_input_tokens, calls, continuations,
                         seams, failures, sanitised, dropped, error_type, error_code, error, request_id, started_ago,
                         stop_details, text, content, output)
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
    ));
    let settle = bind_answers(bind_calls(settle, &calls, batch.worker), &answers);
    let rows = settle.fetch_all(conn).await?;
    let leases: Vec<Lease> = ends().map(|end| end.lease).collect();
    fates(&leases, &rows)
}

async fn release(conn: &mut PgConnection, batch: &Batch<Release>) -> sqlx::Result<Written> {
    let calls: Vec<CallRow<'_>> = batch
        .rows
        .iter()
        .filter_map(|back| Some(row::call(&back.lease, back.call.as_ref()?, batch.at)))
        .collect();
    let released: Vec<Row> = batch.rows.iter().map(|back| row::release(back)).collect();
    let release = sqlx::query(concat!(
        "WITH d AS MATERIALIZED (
             SELECT *
               FROM json_to_recordset($34::json) AS d(
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
             SELECT t.job_id, t.claim, t.seq, t.position, t.run, t.call_id, t.name, t.input::json, $33
               FROM tool t
               JOIN held h ON h.job_id = t.job_id AND h.claim = t.by_claim
                 ON CONFLICT DO NOTHING
         ), ",
        ledger!(),
        "SELECT job_id, claim, fate FROM fate",
    ));
    let rows = bind_calls(release, &calls, batch.worker).bind(row::array(&released)).fetch_all(conn).await?;
    let leases: Vec<Lease> = batch.rows.iter().map(|back| back.lease).collect();
    fates(&leases, &rows)
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
            "done" | "adopted" | "before" => written.done.push(*lease),
            "skipped" => written.skipped.push(*lease),
            _ => written.lost.push(*lease),
        }
    }
    Ok(written)
}

async fn fill(conn: &mut PgConnection, answer: &str) -> sqlx::Result<bool> {
    let filled: Option<bool> = sqlx::query_scalar(
        "WITH d AS MATERIALIZED (
             SELECT *
               FROM json_to_record($1::json) AS d(
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
    .bind(answer)
    .fetch_optional(conn)
    .await?;
    Ok(filled.unwrap_or(false))
}
