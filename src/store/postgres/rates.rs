//! The shared rate budget on Postgres: `domain::pace::Budget::take` as one statement.
//!
//! A bucket that somebody else holds gives nothing this time: the next take is less than a second away,
//! and nobody waits for a lock.

use sqlx::postgres::PgConnection;

use crate::domain::pace::{Each, Grant, Take};
use crate::store::rates::{BURST_SECONDS, LEASE_SECONDS, UNUSED_MAX, asked, grants};
use crate::store::row;

/// Reads the limits that are known.
pub(super) async fn hear(conn: &mut PgConnection, scope: &str) -> sqlx::Result<Each<Option<Grant>>> {
    let rows: Vec<(String, f64, f64)> =
        sqlx::query_as("SELECT kind, 0::double precision, rate FROM rates WHERE scope = $1")
            .bind(scope)
            .fetch_all(conn)
            .await?;
    Ok(grants(&rows))
}

/// Takes from the buckets of a class, after telling them what was learnt.
pub(super) async fn take(
    conn: &mut PgConnection,
    scope: &str,
    take: &Take,
) -> sqlx::Result<Each<Option<Grant>>> {
    if take.rate.into_iter().any(|rate| rate.is_some()) {
        make(conn, scope, take).await?;
    }
    let [requests, input, output] = asked(take);
    // The clock is read once a bucket is ours: time runs on while another daemon has it. One that jumps back
    // refills nothing, and starves nobody until it is where it was.
    let rows: Vec<(String, f64, f64)> = sqlx::query_as(
        "WITH asked (kind, want, learnt, remaining) AS (
             VALUES ('requests', $2, $3, $4), ('input', $5, $6, $7), ('output', $8, $9, $10)
         ), held AS MATERIALIZED (
             SELECT kind, rate, learnt, cap, level, at FROM rates
              WHERE scope = $1
              ORDER BY kind
                FOR NO KEY UPDATE SKIP LOCKED
         ), timed AS MATERIALIZED (
             SELECT h.*, clock_timestamp() AS taken_at FROM held h
         ), filled AS (
             SELECT t.kind, t.taken_at, t.cap, a.want, a.remaining,
                    coalesce(a.learnt, t.learnt) AS learnt,
                    CASE WHEN a.learnt <> t.learnt THEN a.learnt ELSE t.rate END AS rate,
                    least(coalesce(t.cap, t.rate / 60 * $11),
                          t.level + t.rate / 60 * greatest(0, extract(epoch FROM t.taken_at - t.at)::double precision))
                        AS level
               FROM timed t
               JOIN asked a ON a.kind = t.kind
         ), capped AS (
             SELECT kind, taken_at, want, learnt, rate, coalesce(cap, rate / 60 * $11) AS cap,
                    least(level, coalesce(cap, rate / 60 * $11), remaining) AS level
               FROM filled
         ), granted AS MATERIALIZED (
             SELECT *, least(want, rate / 60 * $12, level) AS amount FROM capped
         )
         UPDATE rates r
            SET rate = g.rate, learnt = g.learnt, level = least(g.level - g.amount, g.cap), at = g.taken_at
           FROM granted g
          WHERE r.scope = $1 AND r.kind = g.kind
         RETURNING r.kind, g.amount, r.rate",
    )
    .bind(scope)
    .bind(requests.want)
    .bind(requests.learnt)
    .bind(requests.left)
    .bind(input.want)
    .bind(input.learnt)
    .bind(input.left)
    .bind(output.want)
    .bind(output.learnt)
    .bind(output.left)
    .bind(BURST_SECONDS)
    .bind(LEASE_SECONDS)
    .fetch_all(conn)
    .await?;
    Ok(grants(&rows))
}

/// Makes full buckets of limits that nobody knew, and lets old ones go, which are about as rare.
async fn make(conn: &mut PgConnection, scope: &str, take: &Take) -> sqlx::Result<()> {
    let learnt = asked(take).into_iter().filter_map(|asked| Some((asked.kind, asked.learnt?)));
    let (kinds, rates): (Vec<&str>, Vec<f64>) = learnt.unzip();
    // Not ON CONFLICT DO UPDATE: it would wait for whoever holds the row.
    sqlx::query(
        "WITH unused AS (
             DELETE FROM rates
              WHERE ctid = ANY (ARRAY(
                    SELECT ctid FROM rates
                     WHERE scope <> $1 AND at < clock_timestamp() - $5 * interval '1 millisecond'
                       AND rate = learnt AND cap IS NULL
                       FOR UPDATE SKIP LOCKED))
         )
         INSERT INTO rates (scope, kind, rate, learnt, level, at)
         SELECT $1, n.kind, n.rate, n.rate, n.rate / 60 * $4, clock_timestamp()
           FROM unnest($2::text[], $3::double precision[]) AS n(kind, rate)
          WHERE NOT EXISTS (SELECT FROM rates r WHERE r.scope = $1 AND r.kind = n.kind)
          ORDER BY n.kind
             ON CONFLICT (scope, kind) DO NOTHING",
    )
    .bind(scope)
    .bind(kinds)
    .bind(rates)
    .bind(BURST_SECONDS)
    .bind(row::ms(UNUSED_MAX))
    .execute(conn)
    .await
    .map(drop)
}
