//! Workers, promotion, deadlines, rescue and counts on SQLite.

use std::time::Duration;

use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;

use crate::domain::job::{JobId, Lease, Tally, WorkerId};
use crate::store::{Backlog, Me, Peer, Rescued, Wanted, row};

/// Registers a worker.
pub(super) async fn enlist(conn: &mut SqliteConnection, me: &Me) -> sqlx::Result<WorkerId> {
    sqlx::query_scalar(
        "INSERT INTO workers (host, boot, pid, pid_started, version, default_model)
         VALUES ($1, $2, $3, $4, $5, $6)
         RETURNING id",
    )
    .bind(&me.host)
    .bind(&me.boot)
    .bind(me.pid)
    .bind(me.pid_started)
    .bind(&me.version)
    .bind(&me.default_model)
    .fetch_one(conn)
    .await
    .map(WorkerId)
}

/// Says that a worker lives; `false` where its row is gone.
pub(super) async fn beat(
    conn: &mut SqliteConnection,
    worker: WorkerId,
    running: usize,
    asleep: bool,
) -> sqlx::Result<bool> {
    let done = sqlx::query(concat!(
        "UPDATE workers
            SET beat = beat + 1, running = $2, asleep = $3, seen_at = ",
        now!(),
        " WHERE id = $1",
    ))
    .bind(worker.0)
    .bind(running as i64)
    .bind(asleep)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Takes a worker's row away. What it still holds is found by [`peers`] and rescued.
pub(super) async fn retire(conn: &mut SqliteConnection, worker: WorkerId) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM workers WHERE id = $1").bind(worker.0).execute(conn).await.map(drop)
}

/// Returns which leases are no longer held.
pub(super) async fn lost(conn: &mut SqliteConnection, leases: &[Lease]) -> sqlx::Result<Vec<Lease>> {
    let rows: Vec<(i64, i64, i64)> = sqlx::query_as(
        "SELECT d.value ->> 'job_id', d.value ->> 'claim', d.value ->> 'run'
           FROM jsonb_each(jsonb($1)) d
          WHERE NOT EXISTS (
                SELECT 1 FROM job_state s
                 WHERE s.job_id = d.value ->> 'job_id' AND s.claims = d.value ->> 'claim'
                   AND s.run = d.value ->> 'run' AND s.state = 'running')",
    )
    .bind(row::leases(leases))
    .fetch_all(conn)
    .await?;
    Ok(row::leases_of(rows))
}

/// Makes due jobs pending.
pub(super) async fn promote(conn: &mut SqliteConnection, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query(concat!(
        "UPDATE job_state
            SET state = 'pending'
          WHERE job_id IN (
                SELECT job_id FROM job_state
                 WHERE state = 'scheduled' AND available_at <= ",
        now!(),
        " ORDER BY available_at
                 LIMIT +$1)",
    ))
    .bind(limit)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Whether [`expire`] would find anything.
pub(super) async fn is_any_expired(conn: &mut SqliteConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar(concat!(
        "SELECT EXISTS (
                SELECT 1 FROM job_state
                 WHERE deadline_at IS NOT NULL AND state <> 'done' AND deadline_at <= ",
        now!(),
        ")",
    ))
    .fetch_one(conn)
    .await
}

/// Ends jobs that are past their deadline.
pub(super) async fn expire(conn: &mut SqliteConnection, limit: i64) -> sqlx::Result<Vec<JobId>> {
    let ids: Vec<i64> = sqlx::query_scalar(concat!(
        "SELECT job_id FROM job_state
          WHERE deadline_at IS NOT NULL AND state <> 'done' AND deadline_at <= ",
        now!(),
        " ORDER BY deadline_at
          LIMIT +$1",
    ))
    .bind(limit)
    .fetch_all(&mut *conn)
    .await?;
    let due = row::ids(&ids);
    sqlx::query(
        "INSERT INTO results
                (job_id, run, queue, batch, key, outcome, error_type, error, failures, calls, continuations,
                 started_at, input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens,
                 request_id)
         SELECT s.job_id, s.run, j.queue, j.batch, j.key, 'expired', 'expired',
                'its deadline passed while it was ' || s.state, s.failures, count(c.job_id),
                coalesce(sum(c.kind IN ('continue', 'regenerate')), 0), min(c.sent_at),
                coalesce(sum(c.input_tokens), 0), coalesce(sum(c.output_tokens), 0),
                coalesce(sum(c.cache_creation_input_tokens), 0), coalesce(sum(c.cache_read_input_tokens), 0),
                (SELECT l.request_id FROM calls l
                  WHERE l.job_id = s.job_id AND l.run = s.run
                  ORDER BY l.claim DESC, l.seq DESC
                  LIMIT 1)
           FROM json_each($1) d
          CROSS JOIN job_state s ON s.job_id = d.value
           JOIN jobs j ON j.id = s.job_id
           LEFT JOIN calls c ON c.job_id = s.job_id AND c.run = s.run
          GROUP BY s.job_id",
    )
    .bind(&due)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "UPDATE job_state
            SET state = 'done', claims = claims + 1, claimed_by = NULL, reason = NULL
          WHERE job_id IN (SELECT value FROM json_each($1))",
    )
    .bind(&due)
    .execute(conn)
    .await?;
    Ok(row::jobs(ids))
}

/// Returns the other workers, and, with a beat that stands still, those that hold jobs without a row.
pub(super) async fn peers(conn: &mut SqliteConnection, me: WorkerId) -> sqlx::Result<Vec<Peer>> {
    let rows = sqlx::query(
        "SELECT id, beat, host, boot, pid, pid_started
           FROM workers
          WHERE id <> $1
          UNION ALL
         SELECT DISTINCT s.claimed_by, -1, '', '', 0, 0
           FROM job_state s
          WHERE s.state = 'running' AND s.claimed_by <> $1
            AND NOT EXISTS (SELECT 1 FROM workers w WHERE w.id = s.claimed_by)
          ORDER BY 1",
    )
    .bind(me.0)
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|peer| {
            Ok(Peer {
                id: WorkerId(peer.try_get("id")?),
                beat: peer.try_get("beat")?,
                host: peer.try_get("host")?,
                boot: peer.try_get("boot")?,
                pid: peer.try_get("pid")?,
                pid_started: peer.try_get("pid_started")?,
            })
        })
        .collect()
}

/// Takes jobs from a dead worker, and its row where it holds none any more. What the jobs may have
/// spent is written by the trigger of whatever takes a running job away.
pub(super) async fn rescue(
    conn: &mut SqliteConnection,
    dead: WorkerId,
    limit: i64,
) -> sqlx::Result<Vec<Rescued>> {
    let ids: Vec<i64> = sqlx::query_scalar(
        "SELECT job_id FROM job_state
          WHERE state = 'running' AND claimed_by = $1
          ORDER BY job_id
          LIMIT +$2",
    )
    .bind(dead.0)
    .bind(limit)
    .fetch_all(&mut *conn)
    .await?;
    let held = row::ids(&ids);
    sqlx::query(
        "UPDATE job_state AS s
            SET crashes = CASE
                WHEN EXISTS (SELECT 1 FROM calls c WHERE c.job_id = s.job_id AND c.claim = s.claims)
                     OR (SELECT sum(length(k.content)) FROM checkpoints k
                          WHERE k.job_id = s.job_id AND k.claim = s.claims AND k.part > 0)
                      > (SELECT coalesce(max(length(c.content ->> '$[0].text')), 0) FROM calls c
                          WHERE c.job_id = s.job_id AND c.run = s.run AND c.error_type = 'lost')
                THEN 0 ELSE crashes + 1 END
          WHERE job_id IN (SELECT value FROM json_each($1))",
    )
    .bind(&held)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "INSERT INTO results (job_id, run, queue, batch, key, outcome, failures, error_type, error)
         SELECT s.job_id, s.run, j.queue, j.batch, j.key, 'quarantined', s.failures, 'quarantined',
                'the worker process died ' || s.crashes || ' times while it ran this job, twice with no other suspect'
           FROM json_each($1) d
          CROSS JOIN job_state s ON s.job_id = d.value
           JOIN jobs j ON j.id = s.job_id
          WHERE s.crashes >= $2",
    )
    .bind(&held)
    .bind(Tally::QUARANTINED)
    .execute(&mut *conn)
    .await?;
    let taken: Vec<(i64, bool)> = sqlx::query_as(
        "UPDATE job_state
            SET state = CASE WHEN crashes < $2 THEN 'pending' ELSE 'done' END, claims = claims + 1, claimed_by = NULL,
                reason = CASE WHEN crashes < $2 THEN 'its worker vanished' END
          WHERE job_id IN (SELECT value FROM json_each($1))
         RETURNING job_id, state = 'done'",
    )
    .bind(&held)
    .bind(Tally::QUARANTINED)
    .fetch_all(&mut *conn)
    .await?;
    let brought: Vec<(i64, String, i64)> = sqlx::query_as(
        "SELECT c.job_id, c.model, c.output_tokens
           FROM json_each($1) d
          CROSS JOIN job_state s ON s.job_id = d.value
           JOIN calls c ON c.job_id = s.job_id AND c.claim = s.claims - 1
          WHERE c.error_type = 'lost' AND c.worker = $2 AND c.model IS NOT NULL AND c.output_tokens > 0",
    )
    .bind(&held)
    .bind(dead.0)
    .fetch_all(&mut *conn)
    .await?;
    sqlx::query(
        "DELETE FROM workers
          WHERE id = $1 AND NOT EXISTS (SELECT 1 FROM job_state WHERE state = 'running' AND claimed_by = $1)",
    )
    .bind(dead.0)
    .execute(conn)
    .await?;
    Ok(row::rescued(taken, brought))
}

/// Takes back a crash that was counted although the worker lives.
pub(super) async fn absolve(conn: &mut SqliteConnection, leases: &[Lease]) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE job_state
            SET crashes = crashes - 1
           FROM jsonb_each(jsonb($1)) d
          WHERE job_id = d.value ->> 'job_id' AND claims > d.value ->> 'claim' AND run = d.value ->> 'run'
            AND state <> 'done' AND crashes > 0",
    )
    .bind(row::leases(leases))
    .execute(conn)
    .await
    .map(drop)
}

/// Counts what is left.
pub(super) async fn backlog(
    conn: &mut SqliteConnection,
    wanted: &Wanted,
    horizon: Duration,
) -> sqlx::Result<Backlog> {
    let found = sqlx::query(concat!(
        "WITH counted AS (
             SELECT state, queue, model, batch, count(*) AS n, 0 AS later
               FROM job_state WHERE state = 'pending'
              GROUP BY queue, model, batch
              UNION ALL
             SELECT state, queue, '', '', count(*), sum(available_at > $4 + ",
        now!(),
        ") FROM job_state WHERE state = 'scheduled' GROUP BY queue
              UNION ALL
             SELECT state, queue, '', '', count(*), 0 FROM job_state WHERE state = 'running' GROUP BY queue
              UNION ALL
             SELECT state, queue, '', '', count(*), 0 FROM job_state WHERE state = 'waiting' GROUP BY queue
         ), lane AS (
             SELECT c.state, c.n, c.later, coalesce(q.paused, 0) OR coalesce(q.max_running = 0, 0) AS paused,
                    EXISTS (SELECT 1 FROM json_each($3) b
                             WHERE b.value ->> 0 = coalesce(p.value, '')
                               AND b.value ->> 1 IN ('', coalesce(nullif(c.model, ''), q.model, $2)))
                    OR EXISTS (SELECT 1 FROM json_each($5) b
                                WHERE b.value ->> 0 = c.queue AND b.value ->> 1 = c.batch) AS blocked,
                    EXISTS (SELECT 1 FROM json_each($3) b
                             WHERE b.value ->> 0 = coalesce(p.value, '') AND b.value ->> 1 = '') AS shut
               FROM counted c
               LEFT JOIN queues q ON q.name = c.queue
               LEFT JOIN json_each($6) p ON p.key = c.queue
              WHERE $1 = '[]' OR c.queue IN (SELECT value FROM json_each($1))
         )
         SELECT coalesce(sum(n) FILTER (WHERE state = 'pending' AND NOT paused AND NOT blocked), 0) AS pending,
                coalesce(sum(n) FILTER (WHERE state = 'pending' AND NOT paused AND blocked), 0)
                + coalesce(sum(n - later) FILTER (WHERE state = 'scheduled' AND NOT paused AND shut), 0) AS blocked,
                coalesce(sum(n) FILTER (WHERE state = 'running'), 0) AS running,
                coalesce(sum(n - later) FILTER (WHERE state = 'scheduled' AND NOT paused AND NOT shut), 0) AS soon,
                coalesce(sum(later) FILTER (WHERE state = 'scheduled' AND NOT paused), 0) AS later,
                coalesce(sum(n) FILTER (WHERE state IN ('pending', 'scheduled') AND paused), 0) AS paused,
                coalesce(sum(n) FILTER (WHERE state = 'waiting'), 0) AS waiting
           FROM lane",
    ))
    .bind(row::texts(&wanted.queues))
    .bind(&wanted.default_model)
    .bind(row::texts(&wanted.blocked.doors()))
    .bind(row::ms(horizon))
    .bind(row::texts(&wanted.blocked.batches))
    .bind(row::names(&wanted.profiles))
    .fetch_one(conn)
    .await?;
    Ok(Backlog {
        pending: found.try_get("pending")?,
        blocked: found.try_get("blocked")?,
        running: found.try_get("running")?,
        soon: found.try_get("soon")?,
        later: found.try_get("later")?,
        paused: found.try_get("paused")?,
        waiting: found.try_get("waiting")?,
    })
}

/// Returns the time until the next scheduled job is due.
pub(super) async fn next_due(conn: &mut SqliteConnection) -> sqlx::Result<Option<Duration>> {
    let left: Option<i64> = sqlx::query_scalar(concat!(
        "SELECT min(available_at) - ",
        now!(),
        " FROM job_state
          WHERE state = 'scheduled'",
    ))
    .fetch_one(conn)
    .await?;
    Ok(left.map(row::left))
}
