//! Gates on SQLite: read what is new, write one by compare-and-set.

use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::text;
use crate::store::{AccountRow, Counters, GateNews, GateRow, GateTally, Moment, row};

/// Reads the gates that changed since then, and counts all, in one look.
pub(super) async fn news(conn: &mut SqliteConnection, since: Option<Moment>) -> sqlx::Result<GateNews> {
    let rows = sqlx::query(concat!(
        "WITH tally AS MATERIALIZED (
             SELECT count(*) AS many, coalesce(sum(generation % 1000000007), 0) AS generations, ",
        now!(),
        " AS at
               FROM gates
         )
         SELECT t.many, t.generations, t.at, g.scope, g.state, g.reason, g.generation, g.counters,
                g.until - t.at AS until_in
           FROM tally t
           LEFT JOIN gates g ON $1 IS NULL OR g.changed_at >= $1
          ORDER BY g.scope",
    ))
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

fn gate(found: &SqliteRow) -> sqlx::Result<Option<GateRow>> {
    let Some(scope) = text(found, "scope")? else { return Ok(None) };
    Ok(Some(GateRow {
        scope,
        state: found.try_get("state")?,
        reason: text(found, "reason")?,
        until_in: found.try_get::<Option<i64>, _>("until_in")?.map(row::left),
        generation: found.try_get("generation")?,
        counters: text(found, "counters")?.as_deref().and_then(Counters::parse),
    }))
}

/// Writes a gate where its generation is still the same. One that a person inserted starts at 0,
/// like one that is not there.
pub(super) async fn set(conn: &mut SqliteConnection, gate: &GateRow) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar(concat!(
        "INSERT INTO gates (scope, state, reason, until, counters, generation)
         SELECT $1, $2, $3, ",
        now!(),
        " + $4, $6, 1
          WHERE $5 = 0 OR EXISTS (SELECT 1 FROM gates WHERE scope = $1 AND generation = $5)
         ON CONFLICT (scope) DO UPDATE
            SET state = excluded.state, reason = excluded.reason, until = excluded.until,
                counters = excluded.counters, generation = generation + 1, changed_at = ",
        now!(),
        " WHERE generation = $5
         RETURNING generation",
    ))
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
pub(super) async fn set_accounts(conn: &mut SqliteConnection, accounts: &[AccountRow]) -> sqlx::Result<()> {
    let rows = row::texts(accounts);
    sqlx::query("DELETE FROM accounts WHERE queue NOT IN (SELECT value ->> 'queue' FROM json_each($1))")
        .bind(&rows)
        .execute(&mut *conn)
        .await?;
    sqlx::query(
        "INSERT INTO accounts (queue, profile, key, classes)
         SELECT value ->> 'queue', value ->> 'profile', value ->> 'key', value ->> 'classes'
           FROM json_each($1)
          WHERE true
             ON CONFLICT (queue) DO UPDATE
            SET profile = excluded.profile, key = excluded.key, classes = excluded.classes
          WHERE (profile, key, classes) IS NOT (excluded.profile, excluded.key, excluded.classes)",
    )
    .bind(&rows)
    .execute(conn)
    .await
    .map(drop)
}

/// Counts one more refusal, but of a batch that a person lets fail; another word, or a gate that does
/// not count, begins anew.
pub(super) async fn count_refusal(conn: &mut SqliteConnection, scope: &str, word: &str) -> sqlx::Result<u32> {
    let counters: Option<String> = sqlx::query_scalar(concat!(
        "INSERT INTO gates (scope, state, counters, generation)
         VALUES ($1, 'flowing', $2 || ' 1', 1)
         ON CONFLICT (scope) DO UPDATE
            SET counters = $2 || ' ' || CASE WHEN counters LIKE $2 || ' %'
                                             THEN substr(counters, length($2) + 2) + 1 ELSE 1 END,
                generation = generation + 1, changed_at = ",
        now!(),
        " WHERE state = 'flowing' AND coalesce(counters, '') NOT LIKE 'ignored %'
         RETURNING counters",
    ))
    .bind(scope)
    .bind(word)
    .fetch_optional(conn)
    .await?;
    Ok(counters.as_deref().and_then(Counters::parse).map_or(0, |counters| counters.count))
}

/// Takes rows away that say nothing any more.
pub(super) async fn prune(conn: &mut SqliteConnection, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query(concat!(
        "DELETE FROM gates
          WHERE scope IN (
                SELECT g.scope
                  FROM gates g
                 WHERE g.state = 'flowing' AND substr(g.scope, 1, 6) = 'batch:' AND g.changed_at < ",
        now!(),
        " - 86400000
                   AND (coalesce(g.counters, '') NOT LIKE 'ignored %'
                        OR NOT EXISTS (
                           SELECT 1
                             FROM job_state s
                            WHERE s.batch = substr(g.scope, instr(g.scope, '/') + 1)
                              AND s.batch <> '' AND s.state <> 'done'
                              AND replace(replace(s.queue, '%', '%25'), '/', '%2F')
                                = substr(g.scope, 7, instr(g.scope, '/') - 7)))
                 LIMIT +$1)",
    ))
    .bind(limit)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}
