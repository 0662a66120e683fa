//! [`Desk`] on SQLite. Lists of ids, names and rows travel as one JSON array.
//!
//! Each change is one statement, so it takes the writer's lock once and never upgrades to it.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{SqliteStore, retention, text};
use crate::domain::job::JobId;
use crate::domain::outcome::Usage;
use crate::domain::retention::{DoneJob, Erasure};
use crate::store::desk::{Found, TOOL_MAX, cut, fields, list, queues_of, usage};
use crate::store::op::said;
use crate::store::{
    AccountRow, BEHIND_SCAN, BatchLine, Behind, CallRow, Desk, Erased, FaultLine, Flow, Freed, GateLine,
    Inserted, JobFilter, JobRow, Listed, Moment, NewJob, OutcomeLine, PurgeFilter, QueueLine, ReasonLine,
    ResultFilter, ResultRow, StateCounts, StoreError, Texts, ToolRow, Waiting, WorkerLine, row,
};

#[async_trait]
impl Desk for SqliteStore {
    async fn insert(&self, jobs: &[NewJob]) -> Result<Vec<Inserted>, StoreError> {
        let new: Vec<_> = jobs
            .iter()
            .map(|job| {
                (
                    &job.queue,
                    &job.batch,
                    &job.key,
                    &job.model,
                    job.max_tokens,
                    job.priority,
                    job.run_at.map(|at| at.0),
                    &job.prompt,
                    &job.system,
                    &job.params,
                    &job.policy,
                    &job.metadata,
                )
            })
            .collect();
        let rows = sqlx::query(
            "INSERT INTO jobs (queue, batch, key, model, max_tokens, priority, run_at,
                               prompt, system, params, policy, metadata)
             SELECT coalesce(n.value ->> 0, 'default'), n.value ->> 1, n.value ->> 2, n.value ->> 3, n.value ->> 4,
                    coalesce(n.value ->> 5, 0),
                    coalesce(n.value ->> 6, CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)),
                    n.value ->> 7, n.value ->> 8, n.value ->> 9, n.value ->> 10, n.value ->> 11
               FROM json_each($1) n
              WHERE true
              ORDER BY n.key
                 ON CONFLICT (key) DO NOTHING
             RETURNING id, key",
        )
        .bind(list(&new))
        .fetch_all(&self.writer())
        .await
        .map_err(said)?;
        let mut found = Found::new(jobs);
        for row in rows {
            found.inserted(JobId(row.try_get("id").map_err(said)?), row.try_get("key").map_err(said)?);
        }
        let open = found.open();
        if !open.is_empty() {
            let asked: Vec<_> = open
                .iter()
                .map(|at| {
                    let job = &jobs[*at];
                    (
                        at,
                        &job.key,
                        &job.prompt,
                        &job.system,
                        &job.model,
                        job.max_tokens,
                        &job.params,
                        &job.policy,
                    )
                })
                .collect();
            let rows = sqlx::query(
                "SELECT n.value ->> 0 AS place, j.id,
                        j.redacted_at IS NOT NULL
                        OR j.prompt IS n.value ->> 2 AND j.system IS n.value ->> 3 AND j.model IS n.value ->> 4
                        AND j.max_tokens IS n.value ->> 5 AND j.params IS n.value ->> 6
                        AND j.policy IS n.value ->> 7 AS same
                   FROM json_each($1) n
                   JOIN jobs j ON j.key = n.value ->> 1",
            )
            .bind(list(&asked))
            .fetch_all(&self.reader())
            .await
            .map_err(said)?;
            for row in rows {
                let (place, job): (i64, i64) =
                    (row.try_get("place").map_err(said)?, row.try_get("id").map_err(said)?);
                found.there(place, JobId(job), row.try_get("same").map_err(said)?);
            }
        }
        found.done()
    }

    async fn outcomes(&self, jobs: &[JobId]) -> Result<Vec<(JobId, Option<String>)>, StoreError> {
        let rows: Vec<(i64, Option<String>)> = sqlx::query_as(
            "SELECT s.job_id, r.outcome
               FROM job_state s
               LEFT JOIN results r ON r.job_id = s.job_id
              WHERE s.job_id IN (SELECT value FROM json_each($1))",
        )
        .bind(ids(jobs))
        .fetch_all(&self.reader())
        .await
        .map_err(said)?;
        Ok(rows.into_iter().map(|(job, outcome)| (JobId(job), outcome)).collect())
    }

    async fn result_ids(&self, which: &ResultFilter) -> Result<Vec<JobId>, StoreError> {
        let ids: Vec<i64> = sqlx::query_scalar(
            "SELECT job_id
               FROM results
              WHERE ($1 IS NULL OR batch = $1)
                AND ($2 IS NULL OR queue = $2)
                AND ($3 = '[]' OR outcome IN (SELECT value FROM json_each($3)))
              ORDER BY job_id",
        )
        .bind(&which.batch)
        .bind(&which.queue)
        .bind(list(&which.outcomes))
        .fetch_all(&self.reader())
        .await
        .map_err(said)?;
        Ok(ids.into_iter().map(JobId).collect())
    }

    async fn results(&self, jobs: &[JobId], texts: Texts) -> Result<Vec<ResultRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT r.job_id, r.run, r.seq, r.queue, r.batch, r.key, r.outcome, r.stop_reason, r.stop_sequence,
                    r.stop_details,
                    CASE WHEN $2 THEN r.text ELSE substr(r.text, 1, 200) END AS text,
                    CASE WHEN $2 THEN r.content END AS content,
                    CASE WHEN $2 THEN r.output END AS output,
                    r.sanitised, r.dropped, r.model, r.input_tokens, r.output_tokens,
                    r.cache_creation_input_tokens, r.cache_read_input_tokens,
                    r.calls, r.continuations, r.seams, r.failures,
                    r.error_type, r.error_code, r.error, r.request_id,
                    CASE WHEN $2 THEN (SELECT c.message_id
                                         FROM calls c
                                        WHERE c.job_id = r.job_id AND c.run = r.run AND c.message_id IS NOT NULL
                                        ORDER BY c.claim DESC, c.seq DESC
                                        LIMIT 1) END AS message_id,
                    r.started_at, r.finished_at,
                    (SELECT j.redacted_at FROM jobs j WHERE j.id = r.job_id) AS redacted_at
               FROM results r
              WHERE r.job_id IN (SELECT value FROM json_each($1))
              ORDER BY r.job_id",
        )
        .bind(ids(jobs))
        .bind(texts == Texts::Whole)
        .fetch_all(&self.reader())
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
                AND ($2 IS NULL OR batch = $2)
                AND ($3 IS NULL OR queue = $3)
                AND ($4 = '[]' OR outcome IN (SELECT value FROM json_each($4)))
              ORDER BY seq
              LIMIT $5",
        )
        .bind(after)
        .bind(&which.batch)
        .bind(&which.queue)
        .bind(list(&which.outcomes))
        .bind(limit)
        .fetch_all(&self.reader())
        .await
        .map_err(said)?;
        Ok(rows.into_iter().map(|(seq, job)| (seq, JobId(job))).collect())
    }

    async fn queue_lines(&self) -> Result<Vec<QueueLine>, StoreError> {
        let rows = sqlx::query(
            "SELECT q.name, q.paused, q.max_running,
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
        .fetch_all(&self.reader())
        .await
        .map_err(said)?;
        let line = |row: &SqliteRow| {
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
        .fetch_all(&self.reader())
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
        .fetch_all(&self.reader())
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
        .fetch_all(&self.reader())
        .await
        .map_err(said)?;
        let line = |row: &SqliteRow| Ok(fields!(row => BatchLine { batch } with { jobs: states(row)? }));
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
        .fetch_one(&self.reader())
        .await
        .map_err(said)?;
        states(&row).map_err(said)
    }

    async fn outcome_lines(&self, batch: Option<&str>) -> Result<Vec<OutcomeLine>, StoreError> {
        let rows = sqlx::query(
            "SELECT outcome, count(*) AS count,
                    sum(input_tokens) AS input_tokens,
                    sum(output_tokens) AS output_tokens,
                    sum(cache_creation_input_tokens) AS cache_creation_input_tokens,
                    sum(cache_read_input_tokens) AS cache_read_input_tokens
               FROM results
              WHERE ($1 IS NULL OR batch = $1)
              GROUP BY outcome
              ORDER BY count(*) DESC, outcome",
        )
        .bind(batch)
        .fetch_all(&self.reader())
        .await
        .map_err(said)?;
        let line =
            |row: &SqliteRow| Ok(fields!(row => OutcomeLine { outcome, count } with { usage: usage!(row) }));
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
        .fetch_all(&self.reader())
        .await
        .map_err(said)?;
        let line = |row: &SqliteRow| {
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
                AND ($1 IS NULL OR batch = $1)
              GROUP BY reason
              ORDER BY count(*) DESC, reason
              LIMIT $2",
        )
        .bind(batch)
        .bind(limit)
        .fetch_all(&self.reader())
        .await
        .map_err(said)?;
        let line = |row: &SqliteRow| Ok(fields!(row => ReasonLine { reason, count }));
        rows.iter().map(line).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn worker_lines(&self) -> Result<Vec<WorkerLine>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, host, pid, version, running,
                    CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER) - seen_at AS seen_ms_ago
               FROM workers
              ORDER BY id",
        )
        .fetch_all(&self.reader())
        .await
        .map_err(said)?;
        let line =
            |row: &SqliteRow| Ok(fields!(row => WorkerLine { id, host, pid, version, running, seen_ms_ago }));
        rows.iter().map(line).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn gate_lines(&self, which: Listed) -> Result<Vec<GateLine>, StoreError> {
        let rows = sqlx::query(concat!(
            "SELECT scope, state, reason, until, until - ",
            now!(),
            " AS until_ms,
                    changed_at, ",
            now!(),
            " - changed_at AS since_ms_ago,
                    coalesce(counters, '') LIKE 'ignored %' AS ignored
               FROM gates
              WHERE $1 OR state <> 'flowing'
              ORDER BY scope",
        ))
        .bind(which == Listed::All)
        .fetch_all(&self.reader())
        .await
        .map_err(said)?;
        let line = |row: &SqliteRow| {
            Ok(fields!(row => GateLine { state, until_ms, since_ms_ago, ignored } with {
                scope: text(row, "scope")?.unwrap_or_default(),
                reason: text(row, "reason")?,
                until: moment(row, "until")?,
                since: Moment(row.try_get("changed_at")?),
            }))
        };
        rows.iter().map(line).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn account_rows(&self) -> Result<Vec<AccountRow>, StoreError> {
        let rows: Vec<(String, String, String, Option<String>)> =
            sqlx::query_as("SELECT queue, profile, key, classes FROM accounts ORDER BY queue")
                .fetch_all(&self.reader())
                .await
                .map_err(said)?;
        let account = |(queue, profile, key, classes)| AccountRow { queue, profile, key, classes };
        Ok(rows.into_iter().map(account).collect())
    }

    async fn jobs_behind(&self, gate: &Behind, limit: i64) -> Result<Waiting, StoreError> {
        // What was found, and what of a bounded number was looked at for it.
        let counted = match gate {
            Behind::Key(key) => sqlx::query_as(
                "SELECT count(*), 0
                   FROM (SELECT 1
                           FROM queues q
                          CROSS JOIN job_state s ON s.queue = q.name AND s.state = 'pending'
                          WHERE coalesce((SELECT a.key FROM accounts a WHERE a.queue = q.name),
                                         (SELECT a.key FROM accounts a WHERE a.queue = ''), $2) = $2
                          LIMIT $1)",
            )
            .bind(limit + 1)
            .bind(key),
            // CROSS JOIN: queue by queue, else every pending job is looked at.
            Behind::Model { profile, model, default_model } => sqlx::query_as(
                "SELECT count(*), 0
                   FROM (SELECT 1
                           FROM queues q
                          CROSS JOIN job_state s
                             ON s.queue = q.name AND s.state = 'pending'
                            AND s.model IN ($2, CASE WHEN coalesce(q.model, (SELECT w.default_model
                                                                                FROM workers w
                                                                               ORDER BY w.id DESC
                                                                               LIMIT 1), $3) = $2
                                                     THEN '' ELSE $2 END)
                          WHERE coalesce((SELECT a.profile FROM accounts a WHERE a.queue = q.name),
                                         (SELECT a.profile FROM accounts a WHERE a.queue = ''), $4) = $4
                          LIMIT $1)",
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
                          LIMIT $1)",
            )
            .bind(BEHIND_SCAN)
            .bind(queue),
            Behind::Batch { queue, batch } => sqlx::query_as(
                "SELECT count(*) FILTER (WHERE queue = $2), count(*)
                   FROM (SELECT queue
                           FROM job_state
                          WHERE batch = $3 AND batch <> '' AND state <> 'done' AND state = 'pending'
                          LIMIT $1)",
            )
            .bind(BEHIND_SCAN)
            .bind(queue)
            .bind(batch),
        };
        let counted = counted.fetch_one(&self.reader()).await.map_err(said)?;
        Ok(Waiting::of(counted, limit))
    }

    async fn block_gate(&self, scope: &str, reason: &str, pause: Option<Duration>) -> Result<(), StoreError> {
        sqlx::query(concat!(
            "INSERT INTO gates (scope, state, reason, until)
             VALUES ($1, 'blocked', $2, ",
            now!(),
            " + $3)
                 ON CONFLICT (scope) DO UPDATE
                SET state = 'blocked', reason = excluded.reason, until = excluded.until, counters = NULL",
        ))
        .bind(scope)
        .bind(reason)
        .bind(pause.map(row::ms))
        .execute(&self.writer())
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
            Freed::LetFail => sqlx::query(concat!(
                "INSERT INTO gates (scope, state, counters, generation)
                 VALUES ($1, 'flowing', 'ignored 0', 1)
                     ON CONFLICT (scope) DO UPDATE
                    SET state = 'flowing', reason = NULL, until = NULL, counters = excluded.counters,
                        generation = generation + 1, changed_at = ",
                now!(),
            )),
        };
        let done = statement.bind(scope).execute(&self.writer()).await.map_err(said)?;
        Ok(done.rows_affected() > 0)
    }

    async fn job(&self, job: JobId) -> Result<Option<JobRow>, StoreError> {
        let row = sqlx::query(
            "SELECT j.id, j.queue, j.batch, j.key, j.model, j.max_tokens, j.priority AS asked_priority, j.run_at,
                    substr(j.prompt, 1, 4000) AS prompt, substr(j.system, 1, 4000) AS system,
                    substr(j.params, 1, 4000) AS params, substr(j.policy, 1, 4000) AS policy,
                    substr(j.metadata, 1, 4000) AS metadata,
                    j.created_at, s.state, s.available_at, s.deadline_at, s.priority, s.run, s.claims, s.failures,
                    (SELECT o.reason FROM job_overview o WHERE o.id = j.id) AS reason,
                    (SELECT coalesce(sum(length(p.content)), 0) FROM checkpoints p
                      WHERE p.job_id = j.id AND p.claim = s.claims AND p.part > 0) AS arrived,
                    j.redacted_at
               FROM jobs j
               JOIN job_state s ON s.job_id = j.id
              WHERE j.id = $1",
        )
        .bind(job.0)
        .fetch_optional(&self.reader())
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
        .fetch_optional(&self.reader())
        .await
        .map_err(said)?;
        Ok(id.map(JobId))
    }

    async fn calls(&self, job: JobId) -> Result<Vec<CallRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT run, claim, seq, kind, probe, model, max_tokens, messages, request,
                    sent_at, first_token_at, ended_at, http_status, request_id, message_id, stop_reason,
                    input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens,
                    partial, late, error_type, error_code, error, retry_after_ms, worker
               FROM calls
              WHERE job_id = $1
              ORDER BY run, claim, seq",
        )
        .bind(job.0)
        .fetch_all(&self.reader())
        .await
        .map_err(said)?;
        rows.iter().map(call).collect::<sqlx::Result<_>>().map_err(said)
    }

    async fn tools(&self, job: JobId) -> Result<Vec<ToolRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT run, claim, seq, position, call_id, name, substr(input, 1, 4000) AS input,
                    substr(coalesce(result, result_content), 1, 4001) AS result, is_error, taken_by, taken_at,
                    created_at, answered_at
               FROM tool_calls
              WHERE job_id = $1
              ORDER BY run, claim, seq, position",
        )
        .bind(job.0)
        .fetch_all(&self.reader())
        .await
        .map_err(said)?;
        let row = |row: &SqliteRow| {
            let (result, result_cut) = cut(text(row, "result")?, TOOL_MAX);
            Ok(fields!(row => ToolRow { run, claim, seq, position, call_id, name, is_error } with {
                input: text(row, "input")?,
                result: result,
                result_cut: result_cut,
                taken_by: text(row, "taken_by")?,
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
                AND ($2 IS NULL OR s.batch = $2)
                AND ($3 IS NULL OR s.queue = $3)
                AND ($4 = '[]' OR s.state IN (SELECT value FROM json_each($4)))
                AND ($5 = '[]' OR r.outcome IN (SELECT value FROM json_each($5)))
                AND ($6 = '[]' OR r.error_type IN (SELECT value FROM json_each($6)))
              ORDER BY s.job_id
              LIMIT $7",
        )
        .bind(after.0)
        .bind(&which.batch)
        .bind(&which.queue)
        .bind(list(&which.states))
        .bind(list(&which.outcomes))
        .bind(list(&which.error_types))
        .bind(limit)
        .fetch_all(&self.reader())
        .await
        .map_err(said)?;
        Ok(ids.into_iter().map(JobId).collect())
    }

    async fn cancel(&self, jobs: &[JobId]) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "UPDATE job_state
                SET state = 'cancelled'
              WHERE job_id IN (SELECT value FROM json_each($1)) AND state <> 'done'",
        )
        .bind(ids(jobs))
        .execute(&self.writer())
        .await
        .map_err(said)?;
        Ok(done.rows_affected())
    }

    async fn run_again(&self, jobs: &[JobId]) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "UPDATE job_state
                SET state = 'pending'
              WHERE job_id IN (SELECT value FROM json_each($1)) AND state IN ('done', 'scheduled')
                AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = job_id AND j.redacted_at IS NOT NULL)",
        )
        .bind(ids(jobs))
        .execute(&self.writer())
        .await
        .map_err(said)?;
        Ok(done.rows_affected())
    }

    async fn redacted(&self, jobs: &[JobId]) -> Result<Vec<(JobId, Moment)>, StoreError> {
        let rows: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT id, redacted_at
               FROM jobs
              WHERE id IN (SELECT value FROM json_each($1)) AND redacted_at IS NOT NULL
              ORDER BY id",
        )
        .bind(ids(jobs))
        .fetch_all(&self.reader())
        .await
        .map_err(said)?;
        Ok(rows.into_iter().map(|(job, at)| (JobId(job), Moment(at))).collect())
    }

    async fn purgeable(&self, which: &PurgeFilter, what: Erasure) -> Result<Vec<DoneJob>, StoreError> {
        let params = (which.clone(), what);
        self.read(params, |conn, p| Box::pin(retention::purgeable(conn, &p.0, p.1))).await
    }

    async fn unfinished(&self, which: &PurgeFilter) -> Result<StateCounts, StoreError> {
        self.read(which.clone(), |conn, which| Box::pin(retention::unfinished(conn, which))).await
    }

    async fn purge(&self, what: Erasure, jobs: &[DoneJob]) -> Result<Erased, StoreError> {
        self.erase_jobs(what, jobs).await
    }

    async fn set_queues(&self, names: &[String], flow: Flow) -> Result<Vec<String>, StoreError> {
        let mut names: Vec<String> = sqlx::query_scalar(
            "UPDATE queues
                SET paused = $2
              WHERE $1 = '[]' OR name IN (SELECT value FROM json_each($1))
             RETURNING name",
        )
        .bind(list(names))
        .bind(flow == Flow::Paused)
        .fetch_all(&self.writer())
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
                .fetch_all(&self.reader())
                .await
                .map_err(said)?;
                if queues.is_empty() {
                    return Ok(Vec::new());
                }
                sqlx::query_scalar(
                    "INSERT INTO gates (scope, state, reason)
                 SELECT 'batch:' || replace(replace(q.value, '%', '%25'), '/', '%2F') || '/' || $2, 'blocked', 'paused by a person'
                   FROM json_each($1) q
                  WHERE true
                     ON CONFLICT (scope) DO UPDATE
                    SET state = 'blocked', reason = excluded.reason, until = NULL
                 RETURNING scope",
                )
                .bind(list(&queues))
                .bind(batch)
                .fetch_all(&self.writer())
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
            .fetch_all(&self.writer())
            .await
            .map_err(said)?,
        };
        Ok(queues_of(&scopes, batch))
    }
}

fn ids(jobs: &[JobId]) -> String {
    list(&jobs.iter().map(|job| job.0).collect::<Vec<_>>())
}

fn moment(row: &SqliteRow, column: &str) -> sqlx::Result<Option<Moment>> {
    Ok(row.try_get::<Option<i64>, _>(column)?.map(Moment))
}

fn states(row: &SqliteRow) -> sqlx::Result<StateCounts> {
    Ok(fields!(row => StateCounts { pending, scheduled, running, waiting, done }))
}

fn result(row: &SqliteRow) -> sqlx::Result<ResultRow> {
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

fn job_row(row: &SqliteRow) -> sqlx::Result<JobRow> {
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

fn call(row: &SqliteRow) -> sqlx::Result<CallRow> {
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
