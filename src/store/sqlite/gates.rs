//! Gates on SQLite: read all, write one by compare-and-set.

use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;

use super::text;
use crate::store::{AccountRow, Counters, GateRow, row};

/// Reads all gates.
pub(super) async fn all(conn: &mut SqliteConnection) -> sqlx::Result<Vec<GateRow>> {
    let rows = sqlx::query(concat!(
        "SELECT scope, state, reason, generation, counters, until - ",
        now!(),
        " AS until_in
           FROM gates
          ORDER BY scope",
    ))
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|gate| {
            Ok(GateRow {
                scope: text(gate, "scope")?.unwrap_or_default(),
                state: gate.try_get("state")?,
                reason: text(gate, "reason")?,
                until_in: gate.try_get::<Option<i64>, _>("until_in")?.map(row::left),
                generation: gate.try_get("generation")?,
                counters: text(gate, "counters")?.as_deref().and_then(Counters::parse),
            })
        })
        .collect()
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
                             FROM queues q
                             JOIN job_state s ON s.batch = substr(g.scope, length(q.name) + 8)
                                             AND s.batch <> '' AND s.state <> 'done' AND s.queue = q.name
                            WHERE substr(g.scope, 7, length(q.name) + 1) = q.name || '/'))
                 LIMIT $1)",
    ))
    .bind(limit)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}
