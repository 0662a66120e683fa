//! [`Board`] on Postgres. Each walk takes so many rows along an index first, and narrows them then.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::PostgresStore;
use crate::domain::job::JobId;
use crate::domain::outcome::{Outcome, Usage};
use crate::store::board::{
    BatchTally, Beat, Board, Deed, FAULTS_MAX, FaultCard, Head, JobLine, Mark, Oldest, OpenState, OpenWalk,
    Part, Partial, Pulse, QueueCard, QueueSays, Said, Stretch, Tally, Walk, Wish, stretch,
};
use crate::store::desk::{fields, usage};
use crate::store::op::said;
use crate::store::{Moment, NewJob, StoreError};

/// Takes rows of `job_state` as the clause says, then narrows them.
macro_rules! jobs {
    ($where:literal) => {
        concat!(
            "WITH seen AS MATERIALIZED (
                 SELECT job_id, queue, batch, model, state
                   FROM job_state
                  WHERE ",
            $where,
            "
                  LIMIT $2)
             SELECT m.looked, m.reached, h.job_id AS at, h.job_id
               FROM (SELECT count(*) AS looked, min(job_id) AS reached FROM seen) m
               LEFT JOIN (SELECT s.job_id
                            FROM seen s
                           WHERE s.job_id < $1
                             AND ($4::text IS NULL OR s.queue = $4)
                             AND ($5::text IS NULL OR $5 = coalesce(
                                 (SELECT r.model FROM results r WHERE r.job_id = s.job_id), nullif(s.model, ''),
                                 (SELECT q.model FROM queues q WHERE q.name = s.queue),
                                 (SELECT w.default_model FROM workers w ORDER BY w.id DESC LIMIT 1)))
                             AND ($6::text IS NULL OR s.state = $6)
                             AND ($7::text IS NULL OR s.batch = $7)
                           ORDER BY s.job_id DESC
                           LIMIT $3) h ON true
              ORDER BY h.job_id DESC"
        )
    };
}

/// Takes rows of `results` as the source says, then narrows them.
///
/// Walks along an index of more than `seq` take its other columns from a list beside it. Of a batch that it knows to be
/// a third of all the server thinks that its rows stand everywhere, and looks for them along `seq` alone, which takes
/// seconds where they are all old; of one that it does not know it takes the index.
macro_rules! results {
    ($from:literal) => {
        concat!(
            "WITH seen AS MATERIALIZED (
                 SELECT seq, job_id, queue, batch, outcome, stop_reason, model, error_type, error_code
                   FROM ",
            $from,
            ")
             SELECT m.looked, m.reached, h.seq AS at, h.job_id
               FROM (SELECT count(*) AS looked, min(seq) AS reached FROM seen) m
               LEFT JOIN (SELECT s.seq, s.job_id
                            FROM seen s
                           WHERE ($4::text IS NULL OR s.queue = $4)
                             AND ($5::text IS NULL OR s.model = $5)
                             AND ($6::text IS NULL OR s.outcome = $6)
                             AND ($7::text IS NULL OR s.batch = $7)
                             AND ($8::text IS NULL OR s.stop_reason = $8)
                             AND ($9::text IS NULL OR s.error_type = $9)
                             AND ($10::text IS NULL OR s.error_code = $10)
                           ORDER BY s.seq DESC
                           LIMIT $3) h ON true
              ORDER BY h.seq DESC"
        )
    };
}

#[async_trait]
impl Board for PostgresStore {
    fn name_of(&self, table: &str) -> String {
        // A plain name, but it may be a word of SQL.
        match self.schema.as_str() {
            "promptmill" => format!("promptmill.{table}"),
            schema => format!("\"{schema}\".{table}"),
        }
    }

    async fn now(&self) -> Result<Moment, StoreError> {
        sqlx::query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
            .fetch_one(self.looks())
            .await
            .map(Moment)
            .map_err(said)
    }

    async fn results_of(
        &self,
        walk: Walk<'_>,
        wish: &Wish,
        before: i64,
        scan: i64,
        limit: i64,
    ) -> Result<Stretch, StoreError> {
        let (query, batch, outcome) = match walk {
            Walk::All => {
                let query = sqlx::query(results!("results WHERE seq < $1 ORDER BY seq DESC LIMIT $2"));
                (query, wish.batch.as_deref(), wish.outcome.as_deref())
            }
            Walk::Ended(outcome) => {
                let query = sqlx::query(results!(
                    "(SELECT r.seq
                      FROM unnest(ARRAY[$6::text]) w (ended)
                     CROSS JOIN LATERAL (SELECT seq
                                           FROM results
                                          WHERE outcome = w.ended AND outcome <> 'complete' AND seq < $1
                                          ORDER BY seq DESC
                                          LIMIT $2) r) n
                   JOIN results USING (seq)"
                ));
                (query, wish.batch.as_deref(), Some(outcome))
            }
            Walk::Batch(batch, outcome) => {
                let query = sqlx::query(results!(
                    "(SELECT r.seq
                      FROM unnest(ARRAY[$7::text], ARRAY[$6::text]) w (label, ended)
                     CROSS JOIN LATERAL (SELECT seq
                                           FROM results
                                          WHERE batch = w.label AND outcome = w.ended AND seq < $1
                                          ORDER BY seq DESC
                                          LIMIT $2) r) n
                   JOIN results USING (seq)"
                ));
                (query, Some(batch), Some(outcome))
            }
        };
        let rows = query
            .bind(before)
            .bind(scan)
            .bind(limit)
            .bind(&wish.queue)
            .bind(&wish.model)
            .bind(outcome)
            .bind(batch)
            .bind(&wish.stop_reason)
            .bind(&wish.error_type)
            .bind(&wish.error_code)
            .fetch_all(self.looks())
            .await
            .map_err(said)?;
        walked(&rows, scan, limit).map_err(said)
    }

    async fn jobs_of(
        &self,
        walk: OpenWalk<'_>,
        wish: &Wish,
        before: i64,
        scan: i64,
        limit: i64,
    ) -> Result<Stretch, StoreError> {
        // The states stand in the statements: an index over some of the rows is found by them.
        let (query, batch, state) = match walk {
            OpenWalk::All => {
                let query = sqlx::query(jobs!("job_id < $1 ORDER BY job_id DESC"));
                (query, wish.batch.as_deref(), wish.state.as_deref())
            }
            OpenWalk::Batch(batch, state) => {
                let query = sqlx::query(jobs!(
                    "batch = $7 AND batch <> '' AND state <> 'done' AND state = $6 AND job_id < $1
                  ORDER BY job_id DESC"
                ));
                (query, Some(batch), Some(state.as_str()))
            }
            OpenWalk::Few(state) => {
                let query = match state {
                    OpenState::Pending => {
                        sqlx::query(jobs!("state = 'pending' ORDER BY queue, model, priority DESC"))
                    }
                    OpenState::Scheduled => sqlx::query(jobs!("state = 'scheduled' ORDER BY available_at")),
                    OpenState::Running => sqlx::query(jobs!("state = 'running' ORDER BY claimed_by")),
                    OpenState::Waiting => sqlx::query(jobs!("state = 'waiting' ORDER BY queue")),
                };
                (query, wish.batch.as_deref(), Some(state.as_str()))
            }
        };
        let rows = query
            .bind(before)
            .bind(scan)
            .bind(limit)
            .bind(&wish.queue)
            .bind(&wish.model)
            .bind(state)
            .bind(batch)
            .fetch_all(self.looks())
            .await
            .map_err(said)?;
        // The few are sorted when all of them are seen: a full page is no reason to look further.
        let limit = if matches!(walk, OpenWalk::Few(_)) { i64::MAX } else { limit };
        walked(&rows, scan, limit).map_err(said)
    }

    async fn job_lines(&self, jobs: &[JobId]) -> Result<Vec<JobLine>, StoreError> {
        let rows = sqlx::query(
            "SELECT j.id, j.queue, j.batch, j.key, s.state, r.outcome, r.stop_reason,
                    coalesce(r.model, nullif(s.model, '')) AS model,
                    s.priority::bigint AS priority, s.failures::bigint AS failures, r.error_type,
                    coalesce(r.input_tokens, 0) AS input_tokens, coalesce(r.output_tokens, 0) AS output_tokens,
                    coalesce(r.cache_creation_input_tokens, 0) AS cache_creation_input_tokens,
                    coalesce(r.cache_read_input_tokens, 0) AS cache_read_input_tokens,
                    (extract(epoch FROM j.created_at) * 1000)::bigint AS created_at,
                    (extract(epoch FROM s.available_at) * 1000)::bigint AS available_at,
                    (extract(epoch FROM r.finished_at) * 1000)::bigint AS finished_at
               FROM jobs j
               JOIN job_state s ON s.job_id = j.id
               LEFT JOIN results r ON r.job_id = j.id
              WHERE j.id = ANY ($1)",
        )
        .bind(ids(jobs))
        .fetch_all(self.looks())
        .await
        .map_err(said)?;
        let line = |row: &PgRow| {
            Ok(fields!(row => JobLine {
                queue, batch, key, state, outcome, stop_reason, model, priority, failures, error_type,
            } with {
                id: JobId(row.try_get("id")?),
                usage: usage!(row),
                created_at: Moment(row.try_get("created_at")?),
                available_at: Moment(row.try_get("available_at")?),
                finished_at: row.try_get::<Option<i64>, _>("finished_at")?.map(Moment),
            }))
        };
        rows.iter().map(line).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn tally(&self, batch: Option<&str>, limit: i64) -> Result<Tally, StoreError> {
        let query = match batch {
            None => sqlx::query(
                "SELECT (SELECT count(*)
                           FROM (SELECT
                                   FROM queues q
                                  CROSS JOIN LATERAL (SELECT
                                                        FROM job_state s
                                                       WHERE s.queue = q.name AND s.state = 'pending'
                                                       ORDER BY s.model, s.priority DESC
                                                       LIMIT $1) s
                                  LIMIT $1) p) AS pending,
                        (SELECT count(*)
                           FROM (SELECT FROM job_state WHERE state = 'scheduled' ORDER BY available_at LIMIT $1) p) AS scheduled,
                        (SELECT count(*)
                           FROM (SELECT FROM job_state WHERE state = 'running' ORDER BY claimed_by LIMIT $1) p) AS running,
                        (SELECT count(*)
                           FROM (SELECT FROM job_state WHERE state = 'waiting' ORDER BY queue LIMIT $1) p) AS waiting",
            )
            .bind(limit),
            Some(batch) => sqlx::query(
                "SELECT (SELECT count(*)
                           FROM (SELECT FROM job_state
                                  WHERE batch = $2 AND batch <> '' AND state <> 'done' AND state = 'pending' LIMIT $1) p) AS pending,
                        (SELECT count(*)
                           FROM (SELECT FROM job_state
                                  WHERE batch = $2 AND batch <> '' AND state <> 'done' AND state = 'scheduled' LIMIT $1) p) AS scheduled,
                        (SELECT count(*)
                           FROM (SELECT FROM job_state
                                  WHERE batch = $2 AND batch <> '' AND state <> 'done' AND state = 'running' LIMIT $1) p) AS running,
                        (SELECT count(*)
                           FROM (SELECT FROM job_state
                                  WHERE batch = $2 AND batch <> '' AND state <> 'done' AND state = 'waiting' LIMIT $1) p) AS waiting",
            )
            .bind(limit)
            .bind(batch),
        };
        let row = query.fetch_one(self.looks()).await.map_err(said)?;
        tally(&row).map_err(said)
    }

    async fn results_count(&self, limit: i64) -> Result<i64, StoreError> {
        sqlx::query_scalar("SELECT count(*) FROM (SELECT FROM results ORDER BY seq DESC LIMIT $1) r")
            .bind(limit)
            .fetch_one(self.looks())
            .await
            .map_err(said)
    }

    async fn pulse(&self, window: Duration, most: i64) -> Result<Pulse, StoreError> {
        let window_ms = crate::store::row::ms(window);
        // Steps back that double: the first that leads out of the window is at most twice too far.
        let (top, steps): (Option<i64>, Option<i64>) = sqlx::query_as(
            "SELECT t.top,
                    (SELECT min(1::bigint << k)
                       FROM generate_series(6, 50) k
                      WHERE coalesce((SELECT r.finished_at FROM results r
                                       WHERE r.seq <= t.top - (1::bigint << k)
                                       ORDER BY r.seq DESC
                                       LIMIT 1) < clock_timestamp() - $1 * interval '1 millisecond', true))
               FROM (SELECT max(seq) AS top FROM results) t",
        )
        .bind(window_ms)
        .fetch_one(self.looks())
        .await
        .map_err(said)?;
        let (Some(top), Some(steps)) = (top, steps) else { return Ok(Pulse { beats: Vec::new(), step: 1 }) };
        let step = if steps <= most * 2 { 1 } else { steps / most };
        // One of each step, as if by chance: jobs that fail by a pattern would else be all met, or none. The
        // same ones each time: the next look finds their pages in memory.
        let rows = sqlx::query(
            "SELECT (extract(epoch FROM clock_timestamp() - r.finished_at) * 1000)::bigint AS age_ms,
                    r.outcome, r.stop_reason, r.tokens_in, r.tokens_out, r.calls, r.batch
               FROM (SELECT s + ((s / $3 & 1048575) * 2654435761 >> 8) % $3 AS seq
                       FROM generate_series(greatest($1 - $2, 0) / $3 * $3, $1, $3) s) g
              CROSS JOIN LATERAL (SELECT finished_at, outcome, stop_reason, calls::bigint, batch, output_tokens AS tokens_out,
                                         input_tokens + cache_creation_input_tokens + cache_read_input_tokens AS tokens_in
                                    FROM results
                                   WHERE seq = g.seq
                                   LIMIT 1) r
              WHERE r.finished_at > clock_timestamp() - $4 * interval '1 millisecond'",
        )
        .bind(top)
        .bind(steps)
        .bind(step)
        .bind(window_ms)
        .fetch_all(self.looks())
        .await
        .map_err(said)?;
        let beat = |row: &PgRow| {
            Ok(fields!(row => Beat { age_ms, outcome, stop_reason, tokens_in, tokens_out, calls, batch }))
        };
        let beats = rows.iter().map(beat).collect::<sqlx::Result<_>>().map_err(said)?;
        Ok(Pulse { beats, step })
    }

    async fn heads(&self) -> Result<Vec<Head>, StoreError> {
        self.run_on(self.looks.plain(), (), |conn, ()| Box::pin(heads(conn))).await
    }

    async fn first_queues(&self, limit: i64) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar(
            "SELECT name
               FROM queues
              ORDER BY name
              LIMIT $1",
        )
        .bind(limit)
        .fetch_all(self.looks())
        .await
        .map_err(said)
    }

    async fn queue_says(&self, name: &str) -> Result<Option<QueueSays>, StoreError> {
        let says: Option<(Option<String>, Option<String>)> = sqlx::query_as(
            "SELECT model, policy::text
               FROM queues
              WHERE name = $1",
        )
        .bind(name)
        .fetch_optional(self.looks())
        .await
        .map_err(said)?;
        Ok(says.map(|(model, policy)| QueueSays { model, policy }))
    }

    async fn queue_cards(&self, limit: i64) -> Result<Vec<QueueCard>, StoreError> {
        self.run_on(self.looks.plain(), limit, |conn, limit| Box::pin(queue_cards(conn, *limit))).await
    }

    async fn paused_queues(&self, limit: i64) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar(
            "SELECT name
               FROM queues
              WHERE paused
              ORDER BY name
              LIMIT $1",
        )
        .bind(limit)
        .fetch_all(self.looks())
        .await
        .map_err(said)
    }

    async fn batches_open(&self, after: &str, limit: i64) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar(
            "WITH RECURSIVE b (batch, n) AS (
                 (SELECT batch, 1 FROM job_state WHERE batch > $1 AND batch <> '' AND state <> 'done' ORDER BY batch LIMIT 1)
                 UNION ALL
                 SELECT (SELECT s.batch FROM job_state s
                          WHERE s.batch > b.batch AND s.batch <> '' AND s.state <> 'done'
                          ORDER BY s.batch
                          LIMIT 1), b.n + 1
                   FROM b
                  WHERE b.batch IS NOT NULL AND b.n < $2)
             SELECT batch
               FROM b
              WHERE batch IS NOT NULL",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(self.looks())
        .await
        .map_err(said)
    }

    async fn batches_done(&self, after: &str, limit: i64) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar(
            "WITH RECURSIVE b (batch, n) AS (
                 (SELECT batch, 1 FROM results WHERE batch > $1 ORDER BY batch LIMIT 1)
                 UNION ALL
                 SELECT (SELECT r.batch FROM results r WHERE r.batch > b.batch ORDER BY r.batch LIMIT 1), b.n + 1
                   FROM b
                  WHERE b.batch IS NOT NULL AND b.n < $2)
             SELECT batch
               FROM b
              WHERE batch IS NOT NULL",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(self.looks())
        .await
        .map_err(said)
    }

    async fn batch_tally(&self, batch: &str, limit: i64) -> Result<BatchTally, StoreError> {
        let open: Vec<(String, i64)> = sqlx::query_as(
            "SELECT w.state, c.n
               FROM unnest($2::text[]) w (state)
              CROSS JOIN LATERAL (SELECT count(*) AS n
                                    FROM (SELECT FROM job_state s
                                           WHERE s.batch = $1 AND s.batch <> '' AND s.state <> 'done' AND s.state = w.state
                                           LIMIT $3) p) c
              WHERE c.n > 0",
        )
        .bind(batch)
        .bind(OpenState::ALL.map(OpenState::as_str))
        .bind(limit)
        .fetch_all(self.looks())
        .await
        .map_err(said)?;
        let done: Vec<(String, i64)> = sqlx::query_as(
            "SELECT w.outcome, c.n
               FROM unnest($2::text[]) w (outcome)
              CROSS JOIN LATERAL (SELECT count(*) AS n
                                    FROM (SELECT FROM results r
                                           WHERE r.batch = $1 AND r.outcome = w.outcome
                                           LIMIT $3) p) c
              WHERE c.n > 0",
        )
        .bind(batch)
        .bind(Outcome::ALL.map(Outcome::as_str))
        .bind(limit)
        .fetch_all(self.looks())
        .await
        .map_err(said)?;
        Ok(BatchTally { open, done })
    }

    async fn batch_newest(
        &self,
        batch: &str,
        outcome: &str,
        most: i64,
    ) -> Result<Vec<(i64, i64)>, StoreError> {
        sqlx::query_as(
            "SELECT r.seq, (extract(epoch FROM clock_timestamp() - r.finished_at) * 1000)::bigint
               FROM unnest(ARRAY[$1::text], ARRAY[$2::text]) w (label, ended)
              CROSS JOIN LATERAL (SELECT seq
                                    FROM results
                                   WHERE batch = w.label AND outcome = w.ended
                                   ORDER BY seq DESC
                                   LIMIT $3) n
               JOIN results r ON r.seq = n.seq",
        )
        .bind(batch)
        .bind(outcome)
        .bind(most)
        .fetch_all(self.looks())
        .await
        .map_err(said)
    }

    async fn batch_results(
        &self,
        batch: &str,
        outcome: &str,
        after: i64,
        limit: i64,
    ) -> Result<Vec<(i64, JobId)>, StoreError> {
        let rows: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT r.seq, r.job_id
               FROM unnest(ARRAY[$1::text], ARRAY[$2::text]) w (label, ended)
              CROSS JOIN LATERAL (SELECT seq
                                    FROM results
                                   WHERE batch = w.label AND outcome = w.ended AND seq > $3
                                   ORDER BY seq
                                   LIMIT $4) n
               JOIN results r ON r.seq = n.seq
              ORDER BY r.seq",
        )
        .bind(batch)
        .bind(outcome)
        .bind(after)
        .bind(limit)
        .fetch_all(self.looks())
        .await
        .map_err(said)?;
        Ok(rows.into_iter().map(|(seq, job)| (seq, JobId(job))).collect())
    }

    async fn faults(&self) -> Result<Vec<FaultCard>, StoreError> {
        let rows = sqlx::query(
            "SELECT g.outcome, g.error_type, g.error_code, g.stop_reason, g.count, n.job_id,
                    (extract(epoch FROM n.finished_at) * 1000)::bigint AS finished_at, left(n.error, 300) AS error
               FROM (SELECT f.outcome, f.error_type, f.error_code, f.stop_reason, count(*) AS count, max(f.seq) AS newest
                       FROM unnest($1::text[]) w (outcome)
                      CROSS JOIN LATERAL (SELECT seq, outcome, error_type, error_code, stop_reason
                                            FROM results r
                                           WHERE r.outcome = w.outcome AND r.outcome <> 'complete'
                                           ORDER BY r.seq DESC
                                           LIMIT $2) f
                      GROUP BY f.outcome, f.error_type, f.error_code, f.stop_reason) g
               JOIN results n ON n.seq = g.newest
              ORDER BY g.count DESC, g.newest DESC
              LIMIT 200",
        )
        .bind(Outcome::ALL.map(Outcome::as_str))
        .bind(FAULTS_MAX)
        .fetch_all(self.looks())
        .await
        .map_err(said)?;
        let card = |row: &PgRow| {
            Ok(fields!(row => FaultCard { outcome, error_type, error_code, stop_reason, count, error } with {
                newest: JobId(row.try_get("job_id")?),
                at: Moment(row.try_get("finished_at")?),
            }))
        };
        rows.iter().map(card).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn asked(&self, job: JobId) -> Result<Option<NewJob>, StoreError> {
        let row = sqlx::query(
            "SELECT queue, batch, key, prompt, system, model, max_tokens, params::text AS params,
                    policy::text AS policy, metadata::text AS metadata, priority
               FROM jobs
              WHERE id = $1",
        )
        .bind(job.0)
        .fetch_optional(self.looks())
        .await
        .map_err(said)?;
        let asked = |row: &PgRow| {
            Ok(fields!(row => NewJob {
                queue, batch, key, prompt, system, model, max_tokens, params, policy, metadata, priority,
            } with { run_at: None }))
        };
        row.as_ref().map(asked).transpose().map_err(said)
    }

    async fn said(&self, job: JobId, most: i64) -> Result<Vec<Said>, StoreError> {
        let rows = sqlx::query(
            "SELECT c.claim, c.seq::bigint AS seq, left(coalesce(c.content, r.content)::text, $2::integer) AS content
               FROM calls c
               LEFT JOIN results r ON r.job_id = c.job_id AND r.run = c.run AND c.content IS NULL AND c.error_type IS NULL
                AND r.request_id IS NOT DISTINCT FROM c.request_id
              WHERE c.job_id = $1 AND coalesce(c.content, r.content) IS NOT NULL
              ORDER BY c.run, c.claim, c.seq",
        )
        .bind(job.0)
        .bind(i32::try_from(most).unwrap_or(i32::MAX))
        .fetch_all(self.looks())
        .await
        .map_err(said)?;
        let one = |row: &PgRow| Ok(fields!(row => Said { claim, seq, content }));
        rows.iter().map(one).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn mark(&self, job: JobId) -> Result<Option<Mark>, StoreError> {
        let row = sqlx::query(
            "SELECT s.state, s.run::bigint AS run, s.claims, s.failures::bigint AS failures, s.priority::bigint AS priority,
                    (extract(epoch FROM s.available_at) * 1000)::bigint AS available_at, (extract(epoch FROM j.redacted_at) * 1000)::bigint AS redacted_at,
                    (SELECT o.reason FROM job_overview o WHERE o.id = s.job_id) AS reason,
                    (SELECT count(*) FROM calls c WHERE c.job_id = s.job_id) AS calls,
                    (SELECT count(t.taken_at) + count(t.answered_at) + count(*) FROM tool_calls t WHERE t.job_id = s.job_id) AS tools
               FROM job_state s
               JOIN jobs j ON j.id = s.job_id
              WHERE s.job_id = $1",
        )
        .bind(job.0)
        .fetch_optional(self.looks())
        .await
        .map_err(said)?;
        let mark = |row: &PgRow| {
            Ok(fields!(row => Mark {
                state, run, claims, failures, priority, available_at, redacted_at, reason, calls, tools,
            }))
        };
        row.as_ref().map(mark).transpose().map_err(said)
    }

    async fn partial(&self, job: JobId, after: (i64, i64, i64)) -> Result<Option<Partial>, StoreError> {
        let rows: Vec<Part> = sqlx::query_as(
            "SELECT s.state, s.claims,
                    (SELECT count(*) + 1 FROM calls c
                      WHERE c.job_id = s.job_id AND (p.seq IS NULL OR (c.claim, c.seq) < (s.claims, p.seq))),
                    p.seq::bigint, p.part::bigint, p.content
               FROM job_state s
               LEFT JOIN checkpoints p
                 ON p.job_id = s.job_id AND p.claim = s.claims AND p.part > 0
                AND p.seq = (SELECT max(l.seq) FROM checkpoints l WHERE l.job_id = s.job_id AND l.claim = s.claims)
                AND ((s.claims, p.seq) <> ($2, $3) OR p.part > $4)
              WHERE s.job_id = $1
              ORDER BY p.part",
        )
        .bind(job.0)
        .bind(after.0)
        .bind(after.1)
        .bind(after.2)
        .fetch_all(self.looks())
        .await
        .map_err(said)?;
        Ok(crate::store::board::parts(rows, after))
    }

    async fn prioritise(&self, jobs: &[JobId], priority: i32) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "WITH picked AS MATERIALIZED (
                 SELECT job_id
                   FROM job_state
                  WHERE job_id = ANY ($1) AND state <> 'done'
                  ORDER BY job_id
                    FOR UPDATE)
             UPDATE job_state s
                SET priority = $2
               FROM picked p
              WHERE s.job_id = p.job_id",
        )
        .bind(ids(jobs))
        .bind(priority)
        .execute(self.writes())
        .await
        .map_err(said)?;
        Ok(done.rows_affected())
    }

    async fn limit_queue(&self, name: &str, max_running: Option<i32>) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE queues
                SET max_running = $2
              WHERE name = $1",
        )
        .bind(name)
        .bind(max_running)
        .execute(self.writes())
        .await
        .map_err(said)?;
        Ok(done.rows_affected() > 0)
    }

    async fn write_down(
        &self,
        actor: &str,
        action: &str,
        target: &str,
        count: i64,
        detail: Option<&str>,
    ) -> Result<i64, StoreError> {
        sqlx::query_scalar(
            "INSERT INTO audit (actor, action, target, count, detail)
             VALUES ($1, $2, $3, $4, $5)
             RETURNING id",
        )
        .bind(actor)
        .bind(action)
        .bind(target)
        .bind(count)
        .bind(detail)
        .fetch_one(self.writes())
        .await
        .map_err(said)
    }

    async fn correct(&self, deed: i64, count: i64) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE audit
                SET count = $2
              WHERE id = $1",
        )
        .bind(deed)
        .bind(count)
        .execute(self.writes())
        .await
        .map_err(said)?;
        Ok(())
    }

    async fn deeds(&self, before: i64, limit: i64) -> Result<Vec<Deed>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, (extract(epoch FROM at) * 1000)::bigint AS at, actor, action, target, count, detail
               FROM audit
              WHERE id < $1
              ORDER BY id DESC
              LIMIT $2",
        )
        .bind(before)
        .bind(limit)
        .fetch_all(self.looks())
        .await
        .map_err(said)?;
        let deed = |row: &PgRow| {
            Ok(fields!(row => Deed { id, actor, action, target, count, detail } with {
                at: Moment(row.try_get("at")?),
            }))
        };
        rows.iter().map(deed).collect::<sqlx::Result<_>>().map_err(said)
    }
}

async fn heads(conn: &mut PgConnection) -> sqlx::Result<Vec<Head>> {
    let rows: Vec<(String, String, i64, i64, bool)> = sqlx::query_as(
        "WITH RECURSIVE lane (job_id, n) AS (
             (SELECT job_id, 1 FROM job_state WHERE state = 'pending'
               ORDER BY queue, model, priority DESC, batch DESC, (job_id + 0)
               LIMIT 1)
             UNION ALL
             SELECT coalesce(
                    (SELECT n.job_id FROM job_state n
                      WHERE n.state = 'pending' AND n.queue = s.queue AND n.model = s.model
                        AND n.priority = s.priority AND n.batch < s.batch
                      ORDER BY n.batch DESC, (n.job_id + 0)
                      LIMIT 1),
                    (SELECT n.job_id FROM job_state n
                      WHERE n.state = 'pending' AND n.queue = s.queue AND n.model = s.model AND n.priority < s.priority
                      ORDER BY n.priority DESC, n.batch DESC, (n.job_id + 0)
                      LIMIT 1),
                    (SELECT n.job_id FROM job_state n
                      WHERE n.state = 'pending' AND n.queue = s.queue AND n.model > s.model
                      ORDER BY n.model, n.priority DESC, n.batch DESC, (n.job_id + 0)
                      LIMIT 1),
                    (SELECT n.job_id FROM job_state n
                      WHERE n.state = 'pending' AND n.queue > s.queue
                      ORDER BY n.queue, n.model, n.priority DESC, n.batch DESC, (n.job_id + 0)
                      LIMIT 1)), lane.n + 1
               FROM lane
               JOIN job_state s ON s.job_id = lane.job_id
              WHERE lane.n < 500)
         SELECT s.queue, s.batch, lane.job_id, (extract(epoch FROM clock_timestamp() - s.available_at) * 1000)::bigint,
                NOT coalesce(q.paused OR q.max_running = 0, FALSE)
                AND NOT EXISTS (SELECT 1 FROM gates g
                                 WHERE g.state <> 'flowing'
                                   AND g.scope IN ('key:' || a.key,
                                                   'model:' || a.profile || '/'
                                                       || coalesce(nullif(s.model, ''), q.model,
                                                                   (SELECT w.default_model FROM workers w ORDER BY w.id DESC LIMIT 1)),
                                                   'batch:' || replace(replace(s.queue, '%', '%25'), '/', '%2F') || '/' || s.batch)) AS free
           FROM lane
          CROSS JOIN LATERAL (SELECT queue, batch, model, available_at FROM job_state WHERE job_id = lane.job_id LIMIT 1) s
           LEFT JOIN queues q ON q.name = s.queue
           LEFT JOIN accounts a ON a.queue = CASE WHEN EXISTS (SELECT 1 FROM accounts WHERE queue = s.queue) THEN s.queue ELSE '' END
          ORDER BY s.available_at, lane.job_id",
    )
    .fetch_all(conn)
    .await?;
    let head = |(queue, batch, job, age_ms, free)| Head {
        queue,
        batch,
        oldest: Oldest { job: JobId(job), age_ms },
        free,
    };
    Ok(rows.into_iter().map(head).collect())
}

async fn queue_cards(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<QueueCard>> {
    let rows = sqlx::query(
        "WITH later AS MATERIALIZED (
             SELECT queue, count(*) AS n
               FROM (SELECT queue FROM job_state WHERE state = 'scheduled' ORDER BY available_at LIMIT $1) s
              GROUP BY queue
         ), held AS MATERIALIZED (
             SELECT queue, count(*) AS n
               FROM (SELECT queue FROM job_state WHERE state = 'running' ORDER BY claimed_by LIMIT $1) s
              GROUP BY queue)
         SELECT q.name, q.paused, q.max_running::bigint AS max_running, q.model,
                (SELECT count(*)
                   FROM (SELECT FROM job_state s WHERE s.queue = q.name AND s.state = 'pending'
                          ORDER BY s.model, s.priority DESC LIMIT $1) p) AS pending,
                coalesce((SELECT n FROM later l WHERE l.queue = q.name), 0) AS scheduled,
                coalesce((SELECT n FROM held h WHERE h.queue = q.name), 0) AS running,
                (SELECT count(*)
                   FROM (SELECT FROM job_state s WHERE s.queue = q.name AND s.state = 'waiting'
                          ORDER BY s.job_id LIMIT $1) p) AS waiting
           FROM queues q
          ORDER BY q.name
          LIMIT 500",
    )
    .bind(limit + 1)
    .fetch_all(conn)
    .await?;
    let card = |row: &PgRow| {
        Ok(fields!(row => QueueCard { name, paused, max_running, model } with { jobs: tally(row)? }))
    };
    rows.iter().map(card).collect()
}

fn ids(jobs: &[JobId]) -> Vec<i64> {
    jobs.iter().map(|job| job.0).collect()
}

fn tally(row: &PgRow) -> sqlx::Result<Tally> {
    Ok(fields!(row => Tally { pending, scheduled, running, waiting }))
}

fn walked(rows: &[PgRow], scan: i64, limit: i64) -> sqlx::Result<Stretch> {
    let mut hits = Vec::with_capacity(rows.len());
    let (mut looked, mut reached) = (0, None);
    for row in rows {
        (looked, reached) = (row.try_get("looked")?, row.try_get("reached")?);
        if let (Some(at), Some(job)) =
            (row.try_get::<Option<i64>, _>("at")?, row.try_get::<Option<i64>, _>("job_id")?)
        {
            hits.push((at, job));
        }
    }
    Ok(stretch(hits, looked, reached, scan, limit))
}
