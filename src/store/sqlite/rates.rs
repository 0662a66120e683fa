//! The shared rate budget on SQLite: `domain::pace::Budget::take` inside one `BEGIN IMMEDIATE`.

use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;

use crate::domain::pace::{Each, Grant, Take};
use crate::store::rates::{BURST_SECONDS, LEASE_SECONDS, UNUSED_MAX, asked, grants};
use crate::store::row;

/// Reads the limits that are known.
pub(super) async fn hear(conn: &mut SqliteConnection, scope: &str) -> sqlx::Result<Each<Option<Grant>>> {
    let rows: Vec<(String, f64, f64)> = sqlx::query_as("SELECT kind, 0.0, rate FROM rates WHERE scope = $1")
        .bind(scope)
        .fetch_all(conn)
        .await?;
    Ok(grants(&rows))
}

/// Takes from the buckets of a class, after telling them what was learnt.
pub(super) async fn take(
    conn: &mut SqliteConnection,
    scope: &str,
    take: &Take,
) -> sqlx::Result<Each<Option<Grant>>> {
    if take.rate.into_iter().any(|rate| rate.is_some()) {
        make(conn, scope, take).await?;
    }
    let [requests, input, output] = asked(take);
    // A clock that jumps back refills nothing, and starves nobody until it is where it was.
    let rows = sqlx::query(concat!(
        "WITH asked (kind, want, learnt, remaining) AS (
             VALUES ('requests', $2, $3, $4), ('input', $5, $6, $7), ('output', $8, $9, $10)
         ), timed AS MATERIALIZED (
             SELECT kind, rate, learnt, cap, level, at, ",
        now!(),
        " AS taken_at FROM rates
              WHERE scope = $1
         ), filled AS MATERIALIZED (
             SELECT t.kind, t.taken_at, t.cap, a.want, a.remaining,
                    coalesce(a.learnt, t.learnt) AS learnt,
                    CASE WHEN a.learnt <> t.learnt THEN a.learnt ELSE t.rate END AS rate,
                    min(coalesce(t.cap, t.rate / 60 * $11), t.level + t.rate / 60 * max(0, t.taken_at - t.at) / 1000.0)
                        AS level
               FROM timed t
               JOIN asked a ON a.kind = t.kind
         ), capped AS MATERIALIZED (
             SELECT kind, taken_at, want, learnt, rate, coalesce(cap, rate / 60 * $11) AS cap,
                    min(level, coalesce(cap, rate / 60 * $11), remaining) AS level
               FROM filled
         ), granted AS MATERIALIZED (
             SELECT *, min(want, rate / 60 * $12, level) AS amount FROM capped
         )
         SELECT kind, amount, rate, learnt, min(level - amount, cap) AS level, taken_at FROM granted",
    ))
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
    .fetch_all(&mut *conn)
    .await?;
    let mut taken: Vec<(String, f64, f64)> = Vec::new();
    for bucket in &rows {
        let (kind, rate): (String, f64) = (bucket.try_get("kind")?, bucket.try_get("rate")?);
        sqlx::query(
            "UPDATE rates
                SET rate = $3, learnt = $4, level = $5, at = $6
              WHERE scope = $1 AND kind = $2",
        )
        .bind(scope)
        .bind(&kind)
        .bind(rate)
        .bind(bucket.try_get::<f64, _>("learnt")?)
        .bind(bucket.try_get::<f64, _>("level")?)
        .bind(bucket.try_get::<i64, _>("taken_at")?)
        .execute(&mut *conn)
        .await?;
        taken.push((kind, bucket.try_get("amount")?, rate));
    }
    Ok(grants(&taken))
}

/// Makes full buckets of limits that nobody knew, and lets old ones go, which are about as rare.
async fn make(conn: &mut SqliteConnection, scope: &str, take: &Take) -> sqlx::Result<()> {
    sqlx::query(concat!(
        "DELETE FROM rates
          WHERE scope <> $1 AND at < ",
        now!(),
        " - $2 AND rate = learnt AND cap IS NULL",
    ))
    .bind(scope)
    .bind(row::ms(UNUSED_MAX))
    .execute(&mut *conn)
    .await?;
    for asked in asked(take) {
        let Some(rate) = asked.learnt else { continue };
        sqlx::query(concat!(
            "INSERT INTO rates (scope, kind, rate, learnt, level, at)
             VALUES ($1, $2, $3, $3, $3 / 60 * $4, ",
            now!(),
            ") ON CONFLICT (scope, kind) DO NOTHING",
        ))
        .bind(scope)
        .bind(asked.kind)
        .bind(rate)
        .bind(BURST_SECONDS)
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}
