//! Workers, promotion, deadlines, rescue and counts on Postgres.

use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use crate::domain::job::{JobId, Lease, Tally, WorkerId};
use crate::store::{Backlog, Me, Peer, Rescued, Wanted, row};

/// Registers a worker.
pub(super) async fn enlist(conn: &mut PgConnection, me: &Me) -> sqlx::Result<WorkerId> {
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
    conn: &mut PgConnection,
    worker: WorkerId,
    running: usize,
    asleep: bool,
) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "UPDATE workers
            SET beat = beat + 1, seen_at = now(), running = $2, asleep = $3
          WHERE id = $1",
    )
    .bind(worker.0)
    .bind(running as i32)
    .bind(asleep)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Says whether inserters are to wake a worker.
pub(super) async fn sleep(conn: &mut PgConnection, worker: WorkerId, asleep: bool) -> sqlx::Result<()> {
    sqlx::query("UPDATE workers SET asleep = $2, seen_at = now() WHERE id = $1 AND asleep <> $2")
        .bind(worker.0)
        .bind(asleep)
        .execute(conn)
        .await
        .map(drop)
}

/// Takes a worker's row away. What it still holds is found by [`peers`] and rescued.
pub(super) async fn retire(conn: &mut PgConnection, worker: WorkerId) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM workers WHERE id = $1").bind(worker.0).execute(conn).await.map(drop)
}

/// Returns which leases are no longer held.
pub(super) async fn lost(conn: &mut PgConnection, leases: &[Lease]) -> sqlx::Result<Vec<Lease>> {
    let (jobs, claims, runs) = row::columns(leases);
    let rows: Vec<(i64, i64, i64)> = sqlx::query_as(
        "SELECT d.job_id, d.claim, d.run
           FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS d(job_id, claim, run)
          WHERE NOT EXISTS (
                SELECT FROM job_state s
                 WHERE s.job_id = d.job_id AND s.claims = d.claim AND s.run = d.run AND s.state = 'running'
                OFFSET 0)",
    )
    .bind(jobs)
    .bind(claims)
    .bind(runs)
    .fetch_all(conn)
    .await?;
    Ok(row::leases_of(rows))
}

/// Makes due jobs pending.
pub(super) async fn promote(conn: &mut PgConnection, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query(
        "WITH due AS MATERIALIZED (
             SELECT job_id FROM job_state
              WHERE state = 'scheduled' AND available_at <= now()
              ORDER BY available_at
              LIMIT $1
                FOR NO KEY UPDATE SKIP LOCKED
         )
         UPDATE job_state
            SET state = 'pending'
          WHERE job_id = ANY (ARRAY(SELECT job_id FROM due))",
    )
    .bind(limit)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Whether [`expire`] would find anything. An INSERT of no rows would still call the triggers that people
/// put on `results`.
pub(super) async fn is_any_expired(conn: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (
                SELECT FROM job_state
                 WHERE deadline_at IS NOT NULL AND state <> 'done' AND deadline_at <= now())",
    )
    .fetch_one(conn)
    .await
}

/// Ends jobs that are past their deadline.
pub(super) async fn expire(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<JobId>> {
    let ids = sqlx::query_scalar(
        "WITH due AS MATERIALIZED (
             SELECT job_id, state FROM job_state
              WHERE deadline_at IS NOT NULL AND state <> 'done' AND deadline_at <= now()
              ORDER BY deadline_at
              LIMIT $1
                FOR NO KEY UPDATE SKIP LOCKED
         ), ended AS (
             UPDATE job_state s
                SET state = 'done', claims = s.claims + 1, claimed_by = NULL, reason = NULL
               FROM due d
              WHERE s.job_id = d.job_id AND s.job_id = ANY (ARRAY(SELECT job_id FROM due))
             RETURNING s.job_id, s.run, s.failures, d.state
         )
         INSERT INTO results
                (job_id, run, queue, batch, key, outcome, error_type, error, failures, calls, continuations,
                 started_at, input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens,
                 request_id)
         SELECT e.job_id, e.run, j.queue, j.batch, j.key, 'expired', 'expired',
                'its deadline passed while it was ' || e.state, e.failures, c.*
           FROM ended e
          CROSS JOIN LATERAL (SELECT queue, batch, key FROM jobs WHERE id = e.job_id LIMIT 1) j
          CROSS JOIN LATERAL (
                SELECT count(*), count(*) FILTER (WHERE kind IN ('continue', 'regenerate')), min(sent_at),
                       coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),
                       coalesce(sum(cache_creation_input_tokens), 0), coalesce(sum(cache_read_input_tokens), 0),
                       (array_agg(request_id ORDER BY claim DESC, seq DESC))[1]
                  FROM calls
                 WHERE job_id = e.job_id AND run = e.run) c
         RETURNING job_id",
    )
    .bind(limit)
    .fetch_all(conn)
    .await?;
    Ok(row::jobs(ids))
}

/// Returns the other workers, and, with a beat that stands still, those that hold jobs without a row.
pub(super) async fn peers(conn: &mut PgConnection, me: WorkerId) -> sqlx::Result<Vec<Peer>> {
    let rows = sqlx::query(
        "SELECT id, beat, host, boot, pid, pid_started
           FROM workers
          WHERE id <> $1
          UNION ALL
         SELECT DISTINCT s.claimed_by, -1::bigint, '', '', 0::bigint, 0::bigint
           FROM job_state s
          WHERE s.state = 'running' AND s.claimed_by <> $1
            AND NOT EXISTS (SELECT FROM workers w WHERE w.id = s.claimed_by)
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
    conn: &mut PgConnection,
    dead: WorkerId,
    limit: i64,
) -> sqlx::Result<Vec<Rescued>> {
    let taken: Vec<(i64, i64, bool)> = sqlx::query_as(
        "WITH held AS MATERIALIZED (
             SELECT job_id, claims, run, crashes FROM job_state
              WHERE state = 'running' AND claimed_by = $1
              ORDER BY job_id
              LIMIT $2
                FOR NO KEY UPDATE SKIP LOCKED
         ), counted AS MATERIALIZED (
             SELECT h.job_id, CASE WHEN p.made THEN 0 ELSE h.crashes + 1 END AS crashes
               FROM held h
              CROSS JOIN LATERAL (
                    SELECT EXISTS (SELECT FROM calls c WHERE c.job_id = h.job_id AND c.claim = h.claims)
                           OR (SELECT sum(char_length(k.content)) FROM checkpoints k
                                WHERE k.job_id = h.job_id AND k.claim = h.claims AND k.part > 0)
                            > (SELECT coalesce(max(char_length(c.content -> 0 ->> 'text')), 0) FROM calls c
                                WHERE c.job_id = h.job_id AND c.run = h.run AND c.error_type = 'lost') AS made) p
         ), taken AS (
             UPDATE job_state s
                SET state = CASE WHEN c.crashes < $3 THEN 'pending' ELSE 'done' END,
                    claims = s.claims + 1, claimed_by = NULL, crashes = c.crashes,
                    reason = CASE WHEN c.crashes < $3 THEN 'its worker vanished' END
               FROM counted c
              WHERE s.job_id = c.job_id AND s.job_id = ANY (ARRAY(SELECT job_id FROM counted))
             RETURNING s.job_id, s.run, s.claims - 1 AS claim, s.state, s.crashes, s.failures
         ), ended AS (
             INSERT INTO results (job_id, run, queue, batch, key, outcome, failures, error_type, error)
             SELECT t.job_id, t.run, j.queue, j.batch, j.key, 'quarantined', t.failures, 'quarantined',
                    'the worker process died ' || t.crashes || ' times while it ran this job, twice with no other suspect'
               FROM taken t
              CROSS JOIN LATERAL (SELECT queue, batch, key FROM jobs WHERE id = t.job_id LIMIT 1) j
              WHERE t.state = 'done'
         )
         SELECT job_id, claim, state = 'done' FROM taken ORDER BY job_id",
    )
    .bind(dead.0)
    .bind(limit)
    .bind(Tally::QUARANTINED)
    .fetch_all(&mut *conn)
    .await?;
    let (jobs, claims): (Vec<i64>, Vec<i64>) = taken.iter().map(|(job, claim, _)| (job, claim)).unzip();
    // A statement does not see what its own triggers write.
    let brought: Vec<(i64, String, i64)> = sqlx::query_as(
        "SELECT d.job_id, c.model, c.output_tokens
           FROM unnest($1::bigint[], $2::bigint[]) AS d(job_id, claim)
          CROSS JOIN LATERAL (
                SELECT model, output_tokens
                  FROM calls
                 WHERE job_id = d.job_id AND claim = d.claim AND error_type = 'lost' AND worker = $3
                   AND model IS NOT NULL AND output_tokens > 0
                 LIMIT 1) c",
    )
    .bind(jobs)
    .bind(claims)
    .bind(dead.0)
    .fetch_all(&mut *conn)
    .await?;
    sqlx::query(
        "DELETE FROM workers
          WHERE id = $1 AND NOT EXISTS (SELECT FROM job_state WHERE state = 'running' AND claimed_by = $1)",
    )
    .bind(dead.0)
    .execute(conn)
    .await?;
    let taken = taken.into_iter().map(|(job, _, quarantined)| (job, quarantined)).collect();
    Ok(row::rescued(taken, brought))
}

/// Takes back a crash that was counted although the worker lives.
pub(super) async fn absolve(conn: &mut PgConnection, leases: &[Lease]) -> sqlx::Result<()> {
    let (jobs, claims, runs) = row::columns(leases);
    sqlx::query(
        "UPDATE job_state s
            SET crashes = s.crashes - 1
           FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS d(job_id, claim, run)
          WHERE s.job_id = d.job_id AND s.job_id = ANY ($1) AND s.claims > d.claim AND s.run = d.run
            AND s.state <> 'done' AND s.crashes > 0",
    )
    .bind(jobs)
    .bind(claims)
    .bind(runs)
    .execute(conn)
    .await
    .map(drop)
}

/// Counts what is left.
pub(super) async fn backlog(
    conn: &mut PgConnection,
    wanted: &Wanted,
    horizon: Duration,
) -> sqlx::Result<Backlog> {
    let (queues, batches): (Vec<&str>, Vec<&str>) =
        wanted.blocked.batches.iter().map(|(queue, batch)| (queue.as_str(), batch.as_str())).unzip();
    let (named, profiles): (Vec<&str>, Vec<&str>) =
        wanted.profiles.iter().map(|(queue, profile)| (queue.as_str(), profile.as_str())).unzip();
    let (shut_profiles, shut_models): (Vec<&str>, Vec<&str>) = wanted.blocked.doors().into_iter().unzip();
    let found = sqlx::query(
        "WITH counted AS (
             SELECT state, queue, model, batch, count(*) AS n, 0::bigint AS later
               FROM job_state WHERE state = 'pending'
              GROUP BY state, queue, model, batch
              UNION ALL
             SELECT state, queue, '', '', count(*),
                    count(*) FILTER (WHERE available_at > now() + $4 * interval '1 millisecond')
               FROM job_state WHERE state = 'scheduled'
              GROUP BY state, queue
              UNION ALL
             SELECT state, queue, '', '', count(*), 0 FROM job_state WHERE state = 'running' GROUP BY state, queue
              UNION ALL
             SELECT state, queue, '', '', count(*), 0 FROM job_state WHERE state = 'waiting' GROUP BY state, queue
         ), lane AS (
             SELECT c.state, c.n, c.later, coalesce(q.paused, false) OR coalesce(q.max_running = 0, false) AS paused,
                    EXISTS (SELECT FROM unnest($3::text[], $9::text[]) AS b(profile, model)
                             WHERE b.profile = coalesce(p.profile, '')
                               AND b.model IN ('', coalesce(nullif(c.model, ''), q.model, $2)))
                    OR (c.queue, c.batch) IN (SELECT * FROM unnest($5::text[], $6::text[])) AS blocked,
                    EXISTS (SELECT FROM unnest($3::text[], $9::text[]) AS b(profile, model)
                             WHERE b.profile = coalesce(p.profile, '') AND b.model = '') AS shut
               FROM counted c
               LEFT JOIN queues q ON q.name = c.queue
               LEFT JOIN unnest($7::text[], $8::text[]) AS p(queue, profile) ON p.queue = c.queue
              WHERE cardinality($1::text[]) = 0 OR c.queue = ANY ($1)
         )
         SELECT coalesce(sum(n) FILTER (WHERE state = 'pending' AND NOT paused AND NOT blocked), 0)::bigint AS pending,
                (coalesce(sum(n) FILTER (WHERE state = 'pending' AND NOT paused AND blocked), 0)
                 + coalesce(sum(n - later) FILTER (WHERE state = 'scheduled' AND NOT paused AND shut), 0))::bigint AS blocked,
                coalesce(sum(n) FILTER (WHERE state = 'running'), 0)::bigint AS running,
                coalesce(sum(n - later) FILTER (WHERE state = 'scheduled' AND NOT paused AND NOT shut), 0)::bigint AS soon,
                coalesce(sum(later) FILTER (WHERE state = 'scheduled' AND NOT paused), 0)::bigint AS later,
                coalesce(sum(n) FILTER (WHERE state IN ('pending', 'scheduled') AND paused), 0)::bigint AS paused,
                coalesce(sum(n) FILTER (WHERE state = 'waiting'), 0)::bigint AS waiting
           FROM lane",
    )
    .bind(&wanted.queues)
    .bind(&wanted.default_model)
    .bind(shut_profiles)
    .bind(row::ms(horizon))
    .bind(queues)
    .bind(batches)
    .bind(named)
    .bind(profiles)
    .bind(shut_models)
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
pub(super) async fn next_due(conn: &mut PgConnection) -> sqlx::Result<Option<Duration>> {
    let left: Option<i64> = sqlx::query_scalar(
        "SELECT ceil(extract(epoch FROM available_at - now()) * 1000)::bigint
           FROM job_state
          WHERE state = 'scheduled'
          ORDER BY available_at
          LIMIT 1",
    )
    .fetch_optional(conn)
    .await?;
    Ok(left.map(row::left))
}
