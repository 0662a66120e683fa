//! [`Desk`] on Postgres. Lists of ids, names and columns travel as arrays.
//!
//! Each change is one statement that locks its rows in the order of their ids, so that two of them
//! cannot wait for each other.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{PostgresStore, retention};
use crate::domain::job::JobId;
use crate::domain::outcome::Usage;
use crate::domain::retention::{DoneJob, Erasure};
use crate::store::desk::{Found, TOOL_MAX, cut, fields, queues_of, usage};
use crate::store::op::said;
use crate::store::{
    AccountRow, BEHIND_SCAN, BatchLine, Behind, CallRow, Desk, Erased, FaultLine, Flow, Freed, GateLine,
    Inserted, JobFilter, JobRow, Listed, Moment, NewJob, OutcomeLine, PurgeFilter, QueueLine, ReasonLine,
    ResultFilter, ResultRow, StateCounts, StoreError, Texts, ToolRow, Waiting, WorkerLine, row,
};

/// SQLSTATE `insufficient_privilege`.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

#[async_trait]
impl Desk for PostgresStore {
    async fn insert(&self, jobs: &[NewJob]) -> Result<Vec<Inserted>, StoreError> {
        let rows = sqlx::query(
            "INSERT INTO jobs (queue, batch, key, model, max_tokens, priority, run_at,
                               prompt, system, params, policy, metadata)
             SELECT coalesce(n.queue, 'default'), n.batch, n.key, n.model, n.max_tokens,
                    coalesce(n.priority, 0),
                    coalesce('epoch'::timestamptz + n.run_at * interval '1 millisecond', now()),
                    n.prompt, n.system, n.params::json, n.policy::json, n.metadata::jsonb
               FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::integer[], $7::bigint[],
                           $8::text[], $9::text[], $10::text[], $11::text[], $12::text[])
                    WITH ORDINALITY AS n (queue, batch, key, model, max_tokens, priority, run_at,
                                          prompt, system, params, policy, metadata, place)
              ORDER BY n.place
                 ON CONFLICT (key) DO NOTHING
             RETURNING id, key",
        )
        .bind(texts(jobs, |job| &job.queue))
        .bind(texts(jobs, |job| &job.batch))
        .bind(texts(jobs, |job| &job.key))
        .bind(texts(jobs, |job| &job.model))
        .bind(jobs.iter().map(|job| job.max_tokens).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.priority).collect::<Vec<_>>())
        .bind(jobs.iter().map(|job| job.run_at.map(|at| at.0)).collect::<Vec<_>>())
        .bind(texts(jobs, |job| &job.prompt))
        .bind(texts(jobs, |job| &job.system))
        .bind(texts(jobs, |job| &job.params))
        .bind(texts(jobs, |job| &job.policy))
        .bind(texts(jobs, |job| &job.metadata))
        .fetch_all(self.writes())
        .await
        .map_err(said)?;
        let mut found = Found::new(jobs);
        for row in rows {
            found.inserted(JobId(row.try_get("id").map_err(said)?), row.try_get("key").map_err(said)?);
        }
        let open = found.open();
        if !open.is_empty() {
            for (place, job, same) in self.compare(jobs, &open).await? {
                found.there(place, job, same);
            }
        }
        found.done()
    }

    async fn outcomes(&self, jobs: &[JobId]) -> Result<Vec<(JobId, Option<String>)>, StoreError> {
        let rows: Vec<(i64, Option<String>)> = sqlx::query_as(
            "SELECT s.job_id, r.outcome
               FROM job_state s
               LEFT JOIN results r ON r.job_id = s.job_id
              WHERE s.job_id = ANY ($1)",
        )
        .bind(ids(jobs))
        .fetch_all(self.pool())
        .await
        .map_err(said)?;
        Ok(rows.into_iter().map(|(job, outcome)| (JobId(job), outcome)).collect())
    }

    async fn result_ids(&self, which: &ResultFilter) -> Result<Vec<JobId>, StoreError> {
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT job_id
               FROM results
              WHERE ($1::text IS NULL OR batch = $1)
                AND ($2::text IS NULL OR queue = $2)
                AND (cardinality($3::text[]) = 0 OR outcome = ANY ($3))
              ORDER BY job_id",
        )
        .bind(&which.batch)
        .bind(&which.queue)
        .bind(&which.outcomes)
        .fetch_all(self.pool())
        .await
        .map_err(said)?;
        Ok(ids.into_iter().map(JobId).collect())
    }

    async fn results(&self, jobs: &[JobId], texts: Texts) -> Result<Vec<ResultRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT r.job_id, r.run, r.seq, r.queue, r.batch, r.key, r.outcome, r.stop_reason, r.stop_sequence,
                    r.stop_details::text AS stop_details,
                    CASE WHEN $2 THEN r.text ELSE left(r.text, 200) END AS text,
                    CASE WHEN $2 THEN r.content::text END AS content,
                    CASE WHEN $2 THEN r.output::text END AS output,
                    r.sanitised::bigint AS sanitised, r.dropped::bigint AS dropped, r.model, r.input_tokens, r.output_tokens,
                    r.cache_creation_input_tokens, r.cache_read_input_tokens,
                    r.calls::bigint AS calls, r.continuations::bigint AS continuations, r.seams::bigint AS seams,
                    r.failures::bigint AS failures,
                    r.error_type, r.error_code, r.error, r.request_id,
                    CASE WHEN $2 THEN (SELECT c.message_id
                                         FROM calls c
                                        WHERE c.job_id = r.job_id AND c.run = r.run AND c.message_id IS NOT NULL
                                        ORDER BY c.claim DESC, c.seq DESC
                                        LIMIT 1) END AS message_id,
                    (extract(epoch FROM r.started_at) * 1000)::bigint AS started_at,
                    (extract(epoch FROM r.finished_at) * 1000)::bigint AS finished_at,
                    (SELECT (extract(epoch FROM j.redacted_at) * 1000)::bigint FROM jobs j WHERE j.id = r.job_id) AS redacted_at
               FROM results r
              WHERE r.job_id = ANY ($1)
              ORDER BY r.job_id",
        )
        .bind(ids(jobs))
        .bind(texts == Texts::Whole)
        .fetch_all(self.pool())
        .await
        .map_err(said)?;
        rows.iter().map(result).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn results_after(
        &self,
        which: &ResultFilter,
        after: i64,
        limit: i64,
    ) -> Result<Vec<(i64, JobId)>, StoreError> {
        let rows: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT seq, job_id
               FROM results
              WHERE seq > $1
                AND ($2::text IS NULL OR batch = $2)
                AND ($3::text IS NULL OR queue = $3)
                AND (cardinality($4::text[]) = 0 OR outcome = ANY ($4))
              ORDER BY seq
              LIMIT $5",
        )
        .bind(after)
        .bind(&which.batch)
        .bind(&which.queue)
        .bind(&which.outcomes)
        .bind(limit)
        .fetch_all(self.pool())
        .await
        .map_err(said)?;
        Ok(rows.into_iter().map(|(seq, job)| (seq, JobId(job))).collect())
    }

    async fn queue_lines(&self) -> Result<Vec<QueueLine>, StoreError> {
        let rows = sqlx::query(
            "SELECT q.name, q.paused, q.max_running::bigint AS max_running,
                    count(*) FILTER (WHERE s.state = 'pending') AS pending,
                    count(*) FILTER (WHERE s.state = 'scheduled') AS scheduled,
                    count(*) FILTER (WHERE s.state = 'running') AS running,
                    count(*) FILTER (WHERE s.state = 'waiting') AS waiting,
                    count(*) FILTER (WHERE s.state = 'done') AS done
               FROM queues q
               LEFT JOIN job_state s ON s.queue = q.name
              GROUP BY q.name
              ORDER BY q.name",
        )
        .fetch_all(self.pool())
        .await
        .map_err(said)?;
        let line = |row: &PgRow| {
            Ok(fields!(row => QueueLine { name, paused, max_running } with { jobs: states(row)? }))
        };
        rows.iter().map(line).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn queue_names(&self) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar(
            "SELECT name
               FROM queues
              ORDER BY name",
        )
        .fetch_all(self.pool())
        .await
        .map_err(said)
    }

    async fn models_named(&self, jobs: i64) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar(
            "SELECT model
               FROM queues
              WHERE model <> ''
              UNION
             SELECT young.model
               FROM (SELECT model FROM job_state ORDER BY job_id DESC LIMIT $1) young
              WHERE young.model <> ''
              ORDER BY 1",
        )
        .bind(jobs)
        .fetch_all(self.pool())
        .await
        .map_err(said)
    }

    async fn open_batches(&self, limit: i64) -> Result<Vec<BatchLine>, StoreError> {
        let rows = sqlx::query(
            "WITH young AS (
                 SELECT batch, max(job_id) AS newest
                   FROM job_state
                  WHERE batch <> '' AND state <> 'done'
                  GROUP BY batch
                  ORDER BY newest DESC
                  LIMIT $1)
             SELECT y.batch,
                    count(*) FILTER (WHERE s.state = 'pending') AS pending,
                    count(*) FILTER (WHERE s.state = 'scheduled') AS scheduled,
                    count(*) FILTER (WHERE s.state = 'running') AS running,
                    count(*) FILTER (WHERE s.state = 'waiting') AS waiting,
                    (SELECT count(*) FROM results r WHERE r.batch = y.batch) AS done
               FROM young y
               JOIN job_state s ON s.batch = y.batch AND s.batch <> '' AND s.state <> 'done'
              GROUP BY y.batch
              ORDER BY max(y.newest) DESC",
        )
        .bind(limit)
        .fetch_all(self.pool())
        .await
        .map_err(said)?;
        let line = |row: &PgRow| Ok(fields!(row => BatchLine { batch } with { jobs: states(row)? }));
        rows.iter().map(line).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn batch_counts(&self, batch: &str) -> Result<StateCounts, StoreError> {
        let row = sqlx::query(
            "SELECT count(*) FILTER (WHERE s.state = 'pending') AS pending,
                    count(*) FILTER (WHERE s.state = 'scheduled') AS scheduled,
                    count(*) FILTER (WHERE s.state = 'running') AS running,
                    count(*) FILTER (WHERE s.state = 'waiting') AS waiting,
                    (SELECT count(*) FROM results r WHERE r.batch = $1) AS done
               FROM job_state s
              WHERE s.batch = $1 AND s.batch <> '' AND s.state <> 'done'",
        )
        .bind(batch)
        .fetch_one(self.pool())
        .await
        .map_err(said)?;
        states(&row).map_err(said)
    }

    async fn outcome_lines(&self, batch: Option<&str>) -> Result<Vec<OutcomeLine>, StoreError> {
        let rows = sqlx::query(
            "SELECT outcome, count(*) AS count,
                    sum(input_tokens)::bigint AS input_tokens,
                    sum(output_tokens)::bigint AS output_tokens,
                    sum(cache_creation_input_tokens)::bigint AS cache_creation_input_tokens,
                    sum(cache_read_input_tokens)::bigint AS cache_read_input_tokens
               FROM results
              WHERE ($1::text IS NULL OR batch = $1)
              GROUP BY outcome
              ORDER BY count(*) DESC, outcome",
        )
        .bind(batch)
        .fetch_all(self.pool())
        .await
        .map_err(said)?;
        let line =
            |row: &PgRow| Ok(fields!(row => OutcomeLine { outcome, count } with { usage: usage!(row) }));
        rows.iter().map(line).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn fault_lines(&self, batch: &str, limit: i64) -> Result<Vec<FaultLine>, StoreError> {
        let rows = sqlx::query(
            "SELECT outcome, error_type, error_code, count(*) AS count, min(job_id) AS example
               FROM results
              WHERE batch = $1 AND outcome <> 'complete'
              GROUP BY outcome, error_type, error_code
              ORDER BY count(*) DESC, min(job_id)
              LIMIT $2",
        )
        .bind(batch)
        .bind(limit)
        .fetch_all(self.pool())
        .await
        .map_err(said)?;
        let line = |row: &PgRow| {
            Ok(fields!(row => FaultLine { outcome, error_type, error_code, count }
                with { example: JobId(row.try_get("example")?) }))
        };
        rows.iter().map(line).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn reason_lines(&self, batch: Option<&str>, limit: i64) -> Result<Vec<ReasonLine>, StoreError> {
        let rows = sqlx::query(
            "SELECT reason, count(*) AS count
               FROM job_state
              WHERE state <> 'done' AND reason IS NOT NULL
                AND ($1::text IS NULL OR batch = $1)
              GROUP BY reason
              ORDER BY count(*) DESC, reason
              LIMIT $2",
        )
        .bind(batch)
        .bind(limit)
        .fetch_all(self.pool())
        .await
        .map_err(said)?;
        let line = |row: &PgRow| Ok(fields!(row => ReasonLine { reason, count }));
        rows.iter().map(line).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn worker_lines(&self) -> Result<Vec<WorkerLine>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, host, pid, version, running::bigint AS running,
                    (extract(epoch FROM clock_timestamp() - seen_at) * 1000)::bigint AS seen_ms_ago
               FROM workers
              ORDER BY id",
        )
        .fetch_all(self.pool())
        .await
        .map_err(said)?;
        let line =
            |row: &PgRow| Ok(fields!(row => WorkerLine { id, host, pid, version, running, seen_ms_ago }));
        rows.iter().map(line).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn gate_lines(&self, which: Listed) -> Result<Vec<GateLine>, StoreError> {
        let rows = sqlx::query(
            "SELECT scope, state, reason, (extract(epoch FROM until) * 1000)::bigint AS until,
                    (extract(epoch FROM until - clock_timestamp()) * 1000)::bigint AS until_ms,
                    (extract(epoch FROM changed_at) * 1000)::bigint AS changed_at,
                    (extract(epoch FROM clock_timestamp() - changed_at) * 1000)::bigint AS since_ms_ago,
                    coalesce(counters, '') LIKE 'ignored %' AS ignored
               FROM gates
              WHERE $1 OR state <> 'flowing'
              ORDER BY scope",
        )
        .bind(which == Listed::All)
        .fetch_all(self.pool())
        .await
        .map_err(said)?;
        let line = |row: &PgRow| {
            Ok(fields!(row => GateLine { scope, state, reason, until_ms, since_ms_ago, ignored } with {
                until: moment(row, "until")?,
                since: Moment(row.try_get("changed_at")?),
            }))
        };
        rows.iter().map(line).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn account_rows(&self) -> Result<Vec<AccountRow>, StoreError> {
        let rows: Vec<(String, String, String, Option<String>)> =
            sqlx::query_as("SELECT queue, profile, key, classes FROM accounts ORDER BY queue")
                .fetch_all(self.pool())
                .await
                .map_err(said)?;
        let account = |(queue, profile, key, classes)| AccountRow { queue, profile, key, classes };
        Ok(rows.into_iter().map(account).collect())
    }

    async fn jobs_behind(&self, gate: &Behind, limit: i64) -> Result<Waiting, StoreError> {
        // What was found, and what of a bounded number was looked at for it.
        let counted = match gate {
            // Queue by queue and in the order of the index: else all that is done is read, to find out
            // that none of it is pending.
            Behind::Key(key) => sqlx::query_as(
                "SELECT count(*), CAST(0 AS bigint)
                   FROM (SELECT
                           FROM queues q
                          CROSS JOIN LATERAL (SELECT
                                                FROM job_state s
                                               WHERE s.queue = q.name AND s.state = 'pending'
                                               ORDER BY s.model, s.priority DESC
                                               LIMIT $1) s
                          WHERE coalesce((SELECT a.key FROM accounts a WHERE a.queue = q.name),
                                         (SELECT a.key FROM accounts a WHERE a.queue = ''), $2) = $2
                          LIMIT $1) b",
            )
            .bind(limit + 1)
            .bind(key),
            Behind::Model { profile, model, default_model } => sqlx::query_as(
                "SELECT count(*), CAST(0 AS bigint)
                   FROM (SELECT
                           FROM (SELECT q.name, $2::text AS model
                                   FROM queues q
                                  UNION ALL
                                 SELECT q.name, ''
                                   FROM queues q
                                  WHERE coalesce(q.model, (SELECT w.default_model
                                                             FROM workers w
                                                            ORDER BY w.id DESC
                                                            LIMIT 1), $3) = $2) q
                          CROSS JOIN LATERAL (SELECT
                                                FROM job_state s
                                               WHERE s.queue = q.name AND s.model = q.model AND s.state = 'pending'
                                               ORDER BY s.priority DESC
                                               LIMIT $1) s
                          WHERE coalesce((SELECT a.profile FROM accounts a WHERE a.queue = q.name),
                                         (SELECT a.profile FROM accounts a WHERE a.queue = ''), $4) = $4
                          LIMIT $1) b",
            )
            .bind(limit + 1)
            .bind(model)
            .bind(default_model)
            .bind(profile),
            Behind::Batch { queue, batch } if batch.is_empty() => sqlx::query_as(
                "SELECT count(*) FILTER (WHERE batch = ''), count(*)
                   FROM (SELECT batch
                           FROM job_state
                          WHERE queue = $2 AND state = 'pending'
                          ORDER BY model, priority DESC
                          LIMIT $1) b",
            )
            .bind(BEHIND_SCAN)
            .bind(queue),
            Behind::Batch { queue, batch } => sqlx::query_as(
                "SELECT count(*) FILTER (WHERE queue = $2), count(*)
                   FROM (SELECT queue
                           FROM job_state
                          WHERE batch = $3 AND batch <> '' AND state <> 'done' AND state = 'pending'
                          LIMIT $1) b",
            )
            .bind(BEHIND_SCAN)
            .bind(queue)
            .bind(batch),
        };
        let counted = counted.fetch_one(self.pool()).await.map_err(said)?;
        Ok(Waiting::of(counted, limit))
    }

    async fn block_gate(&self, scope: &str, reason: &str, pause: Option<Duration>) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO gates (scope, state, reason, until)
             VALUES ($1, 'blocked', $2, clock_timestamp() + $3 * interval '1 millisecond')
                 ON CONFLICT (scope) DO UPDATE
                SET state = 'blocked', reason = excluded.reason, until = excluded.until, counters = NULL",
        )
        .bind(scope)
        .bind(reason)
        .bind(pause.map(row::ms))
        .execute(self.writes())
        .await
        .map_err(said)?;
        Ok(())
    }

    async fn free_gate(&self, scope: &str, how: Freed) -> Result<bool, StoreError> {
        let statement = match how {
            Freed::Watched => sqlx::query(
                "UPDATE gates
                    SET state = 'flowing'
                  WHERE scope = $1",
            ),
            // Moves the generation itself: else the trigger would take it for a plain opening.
            Freed::LetFail => sqlx::query(
                "INSERT INTO gates AS g (scope, state, counters, generation)
                 VALUES ($1, 'flowing', 'ignored 0', 1)
                     ON CONFLICT (scope) DO UPDATE
                    SET state = 'flowing', reason = NULL, until = NULL, counters = excluded.counters,
                        generation = g.generation + 1, changed_at = clock_timestamp()",
            ),
        };
        let done = statement.bind(scope).execute(self.writes()).await.map_err(said)?;
        Ok(done.rows_affected() > 0)
    }

    async fn job(&self, job: JobId) -> Result<Option<JobRow>, StoreError> {
        let row = sqlx::query(
            "SELECT j.id, j.queue, j.batch, j.key, j.model, j.max_tokens, j.priority AS asked_priority,
                    (extract(epoch FROM j.run_at) * 1000)::bigint AS run_at,
                    left(j.prompt, 4000) AS prompt, left(j.system, 4000) AS system,
                    left(j.params::text, 4000) AS params, left(j.policy::text, 4000) AS policy,
                    left(j.metadata::text, 4000) AS metadata,
                    (extract(epoch FROM j.created_at) * 1000)::bigint AS created_at,
                    s.state,
                    (extract(epoch FROM s.available_at) * 1000)::bigint AS available_at,
                    (extract(epoch FROM s.deadline_at) * 1000)::bigint AS deadline_at,
                    s.priority::bigint AS priority, s.run, s.claims, s.failures::bigint AS failures,
                    (SELECT o.reason FROM job_overview o WHERE o.id = j.id) AS reason,
                    (SELECT coalesce(sum(length(p.content)), 0) FROM checkpoints p
                      WHERE p.job_id = j.id AND p.claim = s.claims AND p.part > 0) AS arrived,
                    (extract(epoch FROM j.redacted_at) * 1000)::bigint AS redacted_at
               FROM jobs j
               JOIN job_state s ON s.job_id = j.id
              WHERE j.id = $1",
        )
        .bind(job.0)
        .fetch_optional(self.pool())
        .await
        .map_err(said)?;
        row.as_ref().map(job_row).transpose().map_err(said)
    }

    async fn job_of_key(&self, key: &str) -> Result<Option<JobId>, StoreError> {
        let id: Option<i64> = sqlx::query_scalar(
            "SELECT id
               FROM jobs
              WHERE key = $1",
        )
        .bind(key)
        .fetch_optional(self.pool())
        .await
        .map_err(said)?;
        Ok(id.map(JobId))
    }

    async fn calls(&self, job: JobId) -> Result<Vec<CallRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT run, claim, seq::bigint AS seq, kind, probe, model, max_tokens, messages::bigint AS messages,
                    request::text AS request,
                    (extract(epoch FROM sent_at) * 1000)::bigint AS sent_at,
                    (extract(epoch FROM first_token_at) * 1000)::bigint AS first_token_at,
                    (extract(epoch FROM ended_at) * 1000)::bigint AS ended_at,
                    http_status::bigint AS http_status, request_id, message_id, stop_reason,
                    input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens,
                    partial, late, error_type, error_code, error, retry_after_ms, worker
               FROM calls
              WHERE job_id = $1
              ORDER BY run, claim, seq",
        )
        .bind(job.0)
        .fetch_all(self.pool())
        .await
        .map_err(said)?;
        rows.iter().map(call).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn tools(&self, job: JobId) -> Result<Vec<ToolRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT run, claim, seq::bigint AS seq, position::bigint AS position, call_id, name,
                    left(input::text, 4000) AS input, left(coalesce(result, result_content::text), 4001) AS result,
                    is_error, taken_by,
                    (extract(epoch FROM taken_at) * 1000)::bigint AS taken_at,
                    (extract(epoch FROM created_at) * 1000)::bigint AS created_at,
                    (extract(epoch FROM answered_at) * 1000)::bigint AS answered_at
               FROM tool_calls
              WHERE job_id = $1
              ORDER BY run, claim, seq, position",
        )
        .bind(job.0)
        .fetch_all(self.pool())
        .await
        .map_err(said)?;
        let row = |row: &PgRow| {
            let (result, result_cut) = cut(row.try_get("result")?, TOOL_MAX);
            Ok(fields!(row => ToolRow {
                run, claim, seq, position, call_id, name, input, is_error, taken_by,
            } with {
                result: result,
                result_cut: result_cut,
                taken_at: moment(row, "taken_at")?,
                created_at: Moment(row.try_get("created_at")?),
                answered_at: moment(row, "answered_at")?,
            }))
        };
        rows.iter().map(row).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn select(&self, which: &JobFilter, after: JobId, limit: i64) -> Result<Vec<JobId>, StoreError> {
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT s.job_id
               FROM job_state s
               LEFT JOIN results r ON r.job_id = s.job_id
              WHERE s.job_id > $1
                AND ($2::text IS NULL OR s.batch = $2)
                AND ($3::text IS NULL OR s.queue = $3)
                AND (cardinality($4::text[]) = 0 OR s.state = ANY ($4))
                AND (cardinality($5::text[]) = 0 OR r.outcome = ANY ($5))
                AND (cardinality($6::text[]) = 0 OR r.error_type = ANY ($6))
              ORDER BY s.job_id
              LIMIT $7",
        )
        .bind(after.0)
        .bind(&which.batch)
        .bind(&which.queue)
        .bind(&which.states)
        .bind(&which.outcomes)
        .bind(&which.error_types)
        .bind(limit)
        .fetch_all(self.pool())
        .await
        .map_err(said)?;
        Ok(ids.into_iter().map(JobId).collect())
    }

    async fn cancel(&self, jobs: &[JobId]) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "WITH picked AS MATERIALIZED (
                 SELECT job_id
                   FROM job_state
                  WHERE job_id = ANY ($1) AND state <> 'done'
                  ORDER BY job_id
                    FOR UPDATE)
             UPDATE job_state s
                SET state = 'cancelled'
               FROM picked p
              WHERE s.job_id = p.job_id",
        )
        .bind(ids(jobs))
        .execute(self.writes())
        .await
        .map_err(said)?;
        Ok(done.rows_affected())
    }

    async fn run_again(&self, jobs: &[JobId]) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "WITH picked AS MATERIALIZED (
                 SELECT job_id
                   FROM job_state
                  WHERE job_id = ANY ($1) AND state IN ('done', 'scheduled')
                    AND NOT EXISTS (SELECT FROM jobs j WHERE j.id = job_id AND j.redacted_at IS NOT NULL)
                  ORDER BY job_id
                    FOR UPDATE)
             UPDATE job_state s
                SET state = 'pending'
               FROM picked p
              WHERE s.job_id = p.job_id",
        )
        .bind(ids(jobs))
        .execute(self.writes())
        .await
        .map_err(said)?;
        Ok(done.rows_affected())
    }

    async fn redacted(&self, jobs: &[JobId]) -> Result<Vec<(JobId, Moment)>, StoreError> {
        let rows: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT id, (extract(epoch FROM redacted_at) * 1000)::bigint
               FROM jobs
              WHERE id = ANY ($1) AND redacted_at IS NOT NULL
              ORDER BY id",
        )
        .bind(ids(jobs))
        .fetch_all(self.pool())
        .await
        .map_err(said)?;
        Ok(rows.into_iter().map(|(job, at)| (JobId(job), Moment(at))).collect())
    }

    async fn purgeable(&self, which: &PurgeFilter, what: Erasure) -> Result<Vec<DoneJob>, StoreError> {
        let params = (which.clone(), what);
        self.run(params, |conn, p| Box::pin(retention::purgeable(conn, &p.0, p.1))).await
    }

    async fn unfinished(&self, which: &PurgeFilter) -> Result<StateCounts, StoreError> {
        self.run(which.clone(), |conn, which| Box::pin(retention::unfinished(conn, which))).await
    }

    async fn purge(&self, what: Erasure, jobs: &[DoneJob]) -> Result<Erased, StoreError> {
        let jobs = retention::Jobs::new(jobs);
        self.run((what, jobs), |conn, p| Box::pin(retention::erase(conn, p.0, &p.1))).await
    }

    async fn set_queues(&self, names: &[String], flow: Flow) -> Result<Vec<String>, StoreError> {
        let mut names: Vec<String> = sqlx::query_scalar(
            "UPDATE queues
                SET paused = $2
              WHERE cardinality($1::text[]) = 0 OR name = ANY ($1)
             RETURNING name",
        )
        .bind(names)
        .bind(flow == Flow::Paused)
        .fetch_all(self.writes())
        .await
        .map_err(said)?;
        names.sort();
        Ok(names)
    }

    async fn set_batch(&self, batch: &str, flow: Flow) -> Result<Vec<String>, StoreError> {
        let scopes: Vec<String> = match flow {
            Flow::Paused => {
                // Read apart: all of a batch is looked at, and what writes must not wait for that.
                let queues: Vec<String> = sqlx::query_scalar(
                    "SELECT DISTINCT queue
                       FROM job_state
                      WHERE batch = $1 AND batch <> '' AND state <> 'done'",
                )
                .bind(batch)
                .fetch_all(self.pool())
                .await
                .map_err(said)?;
                if queues.is_empty() {
                    return Ok(Vec::new());
                }
                sqlx::query_scalar(
                    "INSERT INTO gates (scope, state, reason)
                 SELECT 'batch:' || replace(replace(q.name, '%', '%25'), '/', '%2F') || '/' || $2, 'blocked', 'paused by a person'
                   FROM unnest($1::text[]) q (name)
                     ON CONFLICT (scope) DO UPDATE
                    SET state = 'blocked', reason = excluded.reason, until = NULL
                 RETURNING scope",
                )
                .bind(&queues)
                .bind(batch)
                .fetch_all(self.writes())
                .await
                .map_err(said)?
            }
            Flow::Flowing => sqlx::query_scalar(
                "UPDATE gates
                    SET state = 'flowing'
                  WHERE state <> 'flowing'
                    AND scope IN (SELECT 'batch:' || replace(replace(name, '%', '%25'), '/', '%2F') || '/' || $1 FROM queues)
                 RETURNING scope",
            )
            .bind(batch)
            .fetch_all(self.writes())
            .await
            .map_err(said)?,
        };
        Ok(queues_of(&scopes, batch))
    }
}

impl PostgresStore {
    /// Returns, for each of the `open` places whose key is taken, its place, the job that has the
    /// key, and whether that asks the same, if this role may read it.
    async fn compare(
        &self,
        jobs: &[NewJob],
        open: &[usize],
    ) -> Result<Vec<(i64, JobId, Option<bool>)>, StoreError> {
        let places: Vec<i64> = open.iter().map(|at| *at as i64).collect();
        let asked: Vec<&NewJob> = open.iter().map(|at| &jobs[*at]).collect();
        let keys: Vec<Option<&str>> = asked.iter().map(|job| job.key.as_deref()).collect();
        let compared: sqlx::Result<Vec<(i64, i64, bool)>> = sqlx::query_as(
            "SELECT n.place, j.id,
                    j.redacted_at IS NOT NULL
                    OR j.prompt IS NOT DISTINCT FROM n.prompt
                    AND j.system IS NOT DISTINCT FROM n.system
                    AND j.model IS NOT DISTINCT FROM n.model
                    AND j.max_tokens IS NOT DISTINCT FROM n.max_tokens
                    AND j.params::text IS NOT DISTINCT FROM n.params
                    AND j.policy::text IS NOT DISTINCT FROM n.policy
               FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[],
                           $8::text[])
                    AS n (place, key, prompt, system, model, max_tokens, params, policy)
               JOIN jobs j ON j.key = n.key",
        )
        .bind(&places)
        .bind(&keys)
        .bind(asked.iter().map(|job| job.prompt.as_deref()).collect::<Vec<_>>())
        .bind(asked.iter().map(|job| job.system.as_deref()).collect::<Vec<_>>())
        .bind(asked.iter().map(|job| job.model.as_deref()).collect::<Vec<_>>())
        .bind(asked.iter().map(|job| job.max_tokens).collect::<Vec<_>>())
        .bind(asked.iter().map(|job| job.params.as_deref()).collect::<Vec<_>>())
        .bind(asked.iter().map(|job| job.policy.as_deref()).collect::<Vec<_>>())
        .fetch_all(self.pool())
        .await;
        match compared {
            Ok(rows) => {
                Ok(rows.into_iter().map(|(place, job, same)| (place, JobId(job), Some(same))).collect())
            }
            // The enqueuer role may see that a key is taken, not what for.
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(INSUFFICIENT_PRIVILEGE) => {
                let rows: Vec<(i64, i64)> = sqlx::query_as(
                    "SELECT n.place, j.id
                       FROM unnest($1::bigint[], $2::text[]) AS n (place, key)
                       JOIN jobs j ON j.key = n.key",
                )
                .bind(&places)
                .bind(&keys)
                .fetch_all(self.pool())
                .await
                .map_err(said)?;
                Ok(rows.into_iter().map(|(place, job)| (place, JobId(job), None)).collect())
            }
            Err(error) => Err(said(error)),
        }
    }
}

fn texts(jobs: &[NewJob], column: impl Fn(&NewJob) -> &Option<String>) -> Vec<Option<&str>> {
    jobs.iter().map(|job| column(job).as_deref()).collect()
}

fn ids(jobs: &[JobId]) -> Vec<i64> {
    jobs.iter().map(|job| job.0).collect()
}

fn moment(row: &PgRow, column: &str) -> sqlx::Result<Option<Moment>> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(Moment))
}

fn states(row: &PgRow) -> sqlx::Result<StateCounts> {
    Ok(fields!(row => StateCounts { pending, scheduled, running, waiting, done }))
}

fn result(row: &PgRow) -> sqlx::Result<ResultRow> {
    Ok(fields!(row => ResultRow {
        run, seq, queue, batch, key, outcome, stop_reason, stop_sequence, stop_details, text, content, output,
        sanitised, dropped, model, calls, continuations, seams, failures, error_type, error_code, error, request_id,
        message_id,
    } with {
        job: JobId(row.try_get("job_id")?),
        usage: usage!(row),
        started_at: moment(row, "started_at")?,
        finished_at: Moment(row.try_get("finished_at")?),
        redacted_at: moment(row, "redacted_at")?,
    }))
}

fn job_row(row: &PgRow) -> sqlx::Result<JobRow> {
    let asked = fields!(row => NewJob {
        queue, batch, key, prompt, system, model, max_tokens, params, policy, metadata,
    } with {
        priority: row.try_get("asked_priority")?,
        run_at: moment(row, "run_at")?,
    });
    Ok(fields!(row => JobRow { state, priority, run, claims, failures, reason, arrived } with {
        id: JobId(row.try_get("id")?),
        asked: asked,
        created_at: Moment(row.try_get("created_at")?),
        available_at: Moment(row.try_get("available_at")?),
        deadline_at: moment(row, "deadline_at")?,
        redacted_at: moment(row, "redacted_at")?,
    }))
}

fn call(row: &PgRow) -> sqlx::Result<CallRow> {
    Ok(fields!(row => CallRow {
        run, claim, seq, kind, probe, model, max_tokens, messages, request, http_status, request_id, message_id,
        stop_reason, partial, late, error_type, error_code, error, retry_after_ms, worker,
    } with {
        sent_at: moment(row, "sent_at")?,
        first_token_at: moment(row, "first_token_at")?,
        ended_at: moment(row, "ended_at")?,
        usage: usage!(row),
    }))
}
