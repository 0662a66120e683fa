//! Gates on Postgres: read what is new, write one by compare-and-set.

use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use crate::store::{AccountRow, Counters, GateNews, GateRow, GateTally, Moment, row};

/// Reads the gates that changed since then, and counts all, in one look.
pub(super) async fn news(conn: &mut PgConnection, since: Option<Moment>) -> sqlx::Result<GateNews> {
    let rows = sqlx::query(
        "WITH tally AS MATERIALIZED (
             SELECT count(*) AS many, coalesce(sum(generation % 1000000007), 0)::bigint AS generations,
                    floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS at
               FROM gates
         )
         SELECT t.many, t.generations, t.at, g.scope, g.state, g.reason, g.generation, g.counters,
                ceil(extract(epoch FROM g.until - clock_timestamp()) * 1000)::bigint AS until_in
           FROM tally t
           LEFT JOIN gates g ON $1::bigint IS NULL OR g.changed_at >= to_timestamp($1 / 1000.0)
          ORDER BY g.scope",
    )
    .bind(since.map(|since| since.0))
    .fetch_all(conn)
    .await?;
    let Some(first) = rows.first() else { return Err(sqlx::Error::RowNotFound) };
    let tally = GateTally { rows: first.try_get("many")?, generations: first.try_get("generations")? };
    let at = Moment(first.try_get("at")?);
    // Where no gate changed there is one row without a gate.
    let gates = rows.iter().map(gate).filter_map(Result::transpose).collect::<sqlx::Result<_>>()?;
    Ok(GateNews { rows: gates, tally, at })
}

fn gate(found: &PgRow) -> sqlx::Result<Option<GateRow>> {
    let Some(scope) = found.try_get("scope")? else { return Ok(None) };
    Ok(Some(GateRow {
        scope,
        state: found.try_get("state")?,
        reason: found.try_get("reason")?,
        until_in: found.try_get::<Option<i64>, _>("until_in")?.map(row::left),
        generation: found.try_get("generation")?,
        counters: found.try_get::<Option<&str>, _>("counters")?.and_then(Counters::parse),
    }))
}

/// Writes a gate where its generation is still the same. One that a person inserted starts at 0,
/// like one that is not there.
pub(super) async fn set(conn: &mut PgConnection, gate: &GateRow) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar(
        "WITH changed AS (
             UPDATE gates
                SET state = $2, reason = $3, until = now() + $4 * interval '1 millisecond', counters = $6,
                    generation = generation + 1, changed_at = now()
              WHERE scope = $1 AND generation = $5
             RETURNING generation
         ), made AS (
             INSERT INTO gates (scope, state, reason, until, counters, generation)
             SELECT $1, $2, $3, now() + $4 * interval '1 millisecond', $6, 1
              WHERE $5 = 0 AND NOT EXISTS (SELECT FROM changed)
             ON CONFLICT (scope) DO NOTHING
             RETURNING generation
         )
         SELECT generation FROM changed
         UNION ALL
         SELECT generation FROM made",
    )
    .bind(&gate.scope)
    .bind(&gate.state)
    .bind(&gate.reason)
    .bind(gate.until_in.map(row::ms))
    .bind(gate.generation)
    .bind(gate.counters.as_ref().map(Counters::text))
    .fetch_optional(conn)
    .await
}

/// Writes which account each queue has; what is so already is not written again.
pub(super) async fn set_accounts(conn: &mut PgConnection, accounts: &[AccountRow]) -> sqlx::Result<()> {
    let column = |of: fn(&AccountRow) -> &str| accounts.iter().map(of).collect::<Vec<&str>>();
    sqlx::query(
        "WITH gone AS (
             DELETE FROM accounts WHERE NOT queue = ANY ($1)
         )
         INSERT INTO accounts AS a (queue, profile, key, classes)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
             ON CONFLICT (queue) DO UPDATE
            SET profile = excluded.profile, key = excluded.key, classes = excluded.classes
          WHERE (a.profile, a.key, a.classes) IS DISTINCT FROM (excluded.profile, excluded.key, excluded.classes)",
    )
    .bind(column(|account| &account.queue))
    .bind(column(|account| &account.profile))
    .bind(column(|account| &account.key))
    .bind(accounts.iter().map(|account| account.classes.as_deref()).collect::<Vec<Option<&str>>>())
    .execute(conn)
    .await
    .map(drop)
}

/// Counts one more refusal, but of a batch that a person lets fail; another word, or a gate that does
/// not count, begins anew.
pub(super) async fn count_refusal(conn: &mut PgConnection, scope: &str, word: &str) -> sqlx::Result<u32> {
    let count: Option<i32> = sqlx::query_scalar(
        "INSERT INTO gates AS g (scope, state, counters, generation)
         VALUES ($1, 'flowing', $2 || ' 1', 1)
         ON CONFLICT (scope) DO UPDATE
            SET counters = $2 || ' ' || CASE WHEN split_part(g.counters, ' ', 1) = $2
                                             THEN split_part(g.counters, ' ', 2)::integer + 1 ELSE 1 END,
                generation = g.generation + 1, changed_at = now()
          WHERE g.state = 'flowing' AND split_part(coalesce(g.counters, ''), ' ', 1) <> 'ignored'
         RETURNING split_part(counters, ' ', 2)::integer",
    )
    .bind(scope)
    .bind(word)
    .fetch_optional(conn)
    .await?;
    Ok(count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0))
}

/// Takes rows away that say nothing any more. One that somebody holds stays until the next time.
pub(super) async fn prune(conn: &mut PgConnection, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query(
        "DELETE FROM gates
          WHERE scope = ANY (ARRAY (
                SELECT g.scope
                  FROM gates g
                 WHERE g.state = 'flowing' AND left(g.scope, 6) = 'batch:'
                   AND g.changed_at < clock_timestamp() - interval '1 day'
                   AND (split_part(coalesce(g.counters, ''), ' ', 1) <> 'ignored'
                        OR NOT EXISTS (
                           SELECT
                             FROM job_state s
                            WHERE s.batch = substr(g.scope, position('/' IN g.scope) + 1)
                              AND s.batch <> '' AND s.state <> 'done'
                              AND replace(replace(s.queue, '%', '%25'), '/', '%2F')
                                = substr(g.scope, 7, position('/' IN g.scope) - 7)))
                 LIMIT $1
                   FOR UPDATE OF g SKIP LOCKED))",
    )
    .bind(limit)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}
