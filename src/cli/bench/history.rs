//! `history`: whether claims and settles cost the same however much lies behind and before them.
//!
//! The tables are filled by plain SQL with the triggers off, which is how millions of rows come
//! together within minutes. One database grows, and is measured on the way.

use std::time::Instant;

use anyhow::Context as _;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use super::claim::Claimer;
use super::place::{Database, Kind, Pool};
use super::prompt;
use super::report::{Floor, Of, median};
use super::{Bench, bare_sql};
use crate::cli::out::{number, say};

/// Slots of a claim.
const SLOTS: usize = 64;
/// Claims and settles of one run; their jobs are made anew before each.
const CLAIMS: usize = 100;
/// What is pending where little is.
const FEW: usize = 10_000;
/// What is scheduled where much is, as a part of what is pending.
const SCHEDULED: usize = 10;
/// Rows of one statement.
pub(super) const CHUNK: usize = 250_000;

/// What one step adds, and what it is called.
struct Step {
    name: String,
    finished: usize,
    scheduled: usize,
    pending: usize,
}

/// Bytes that a finished job takes on the disk with its log, and a pending one.
const fn bytes(kind: Kind) -> (usize, usize) {
    match kind {
        Kind::Sqlite => (600, 350),
        Kind::Postgres => (1_100, 550),
    }
}

/// Measures after each step.
pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let most = bench.jobs.unwrap_or(bench.millions as usize * 1_000_000);
    let few = bench.jobs.map_or(FEW, |_| SLOTS * 4);
    let first = most / 10;
    let step = |name: String, finished, scheduled, pending| Step { name, finished, scheduled, pending };
    let steps = [
        step(format!("{} pending", count(few)), 0, 0, 0),
        step(format!("{} pending, {} finished", count(few), count(first)), first, 0, 0),
        step(format!("{} pending, {} finished", count(few), count(most)), most - first, 0, 0),
        step(
            format!(
                "{} pending, {} scheduled, {} finished",
                count(most),
                count(most / SCHEDULED),
                count(most)
            ),
            0,
            most / SCHEDULED,
            most,
        ),
    ];
    for kind in bench.kinds.clone() {
        let database = bench.place.fresh(kind, &bench.mill).await?;
        let (finished, waiting) = bytes(kind);
        let needed = most * finished + (most + most / SCHEDULED) * waiting;
        bench.place.has_room(&database, needed).await?;
        // The queue's row comes with the first job.
        database.fill(1, 0).await?;
        let mut floors = None;
        for step in &steps {
            let began = Instant::now();
            fill(&database, step).await?;
            if step.finished + step.pending > 0 {
                let what = |unit, what: &str| Of {
                    what: format!("history, {what}"),
                    database: Some(kind),
                    conditions: step.name.clone(),
                    unit,
                };
                bench.report.add(what("s", "filled in"), began.elapsed().as_secs_f64(), None);
                bench.report.add(what("MB", "on the disk"), database.size().await? as f64 / 1e6, None);
            }
            let mut here = Vec::new();
            for _ in 0..bench.runs {
                here.push(cycle(bench, &database, step, few, floors).await?);
            }
            let middle = |which: fn(&(f64, f64)) -> f64| median(&here.iter().map(which).collect::<Vec<_>>());
            floors = floors.or(Some((middle(|took| took.0), middle(|took| took.1))));
        }
    }
    Ok(())
}

fn count(rows: usize) -> String {
    number(rows as i64)
}

/// Claims and settles some hundred times; returns the medians, in milliseconds.
async fn cycle(
    bench: &mut Bench,
    database: &Database,
    step: &Step,
    few: usize,
    floors: Option<(f64, f64)>,
) -> anyhow::Result<(f64, f64)> {
    let there = database
        .number("SELECT count(*) FROM (SELECT 1 FROM job_state WHERE state = 'pending' LIMIT 1000000) s");
    database.fill(few.saturating_sub(there.await? as usize), 0).await?;
    let claimer = Claimer::at(database, SLOTS).await?;
    let (mut claims, mut settles) = (Vec::new(), Vec::new());
    for round in 0..=CLAIMS.min(few / SLOTS - 1) {
        let (leases, took) = claimer.claim().await?;
        let began = Instant::now();
        claimer.settle(&leases).await?;
        // The first round opens connections and makes plans.
        if round > 0 {
            claims.push(took);
            settles.push(began.elapsed().as_secs_f64() * 1_000.0);
        }
    }
    let of = |what: &str| Of {
        what: what.to_owned(),
        database: Some(database.kind),
        conditions: format!("{}, {SLOTS} slots", step.name),
        unit: "ms",
    };
    let floor = |value| Floor { name: "few pending", value };
    let took = (median(&claims), median(&settles));
    bench.report.add(of("history, claim p50"), took.0, floors.map(|floors| floor(floors.0)));
    bench.report.add(of("history, settle p50"), took.1, floors.map(|floors| floor(floors.1)));
    Ok(took)
}

/// Adds what the step adds.
async fn fill(database: &Database, step: &Step) -> anyhow::Result<()> {
    if step.finished + step.scheduled + step.pending == 0 {
        return Ok(());
    }
    say(&format!("filling {}: {}", database.kind.as_str(), step.name));
    let triggers = bare_sql::without_triggers(database).await?;
    for (state, rows) in [("done", step.finished), ("scheduled", step.scheduled), ("pending", step.pending)] {
        let mut left = rows;
        while left > 0 {
            let now = left.min(CHUNK);
            add(database, state, now).await.context("the tables cannot be filled: is the disk full?")?;
            left -= now;
        }
    }
    bare_sql::with_triggers(database, &triggers).await?;
    if database.kind == Kind::Postgres {
        // What autovacuum would do a while later. Nobody does it on SQLite, whose plans are fixed.
        database.run("VACUUM (ANALYZE)").await?;
    }
    database.rest().await
}

/// The SQL of the database's time.
pub(super) const fn sql_now(kind: Kind) -> &'static str {
    kind.either("CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)", "now()")
}

/// Adds rows in one state, in one transaction.
async fn add(database: &Database, state: &str, rows: usize) -> anyhow::Result<()> {
    let from = database.number("SELECT coalesce(max(id), 0) FROM jobs").await?;
    let numbers = match database.kind {
        Kind::Sqlite => {
            format!(
                "(WITH RECURSIVE n (i) AS (SELECT {from} + 1 UNION ALL SELECT i + 1 FROM n WHERE i < {from} + {rows})
                  SELECT i FROM n)"
            )
        }
        Kind::Postgres => format!("(SELECT generate_series({from} + 1, {from} + {rows}) AS i)"),
    };
    let now = sql_now(database.kind);
    let due = match (state, database.kind) {
        ("scheduled", Kind::Sqlite) => format!("{now} + 86400000"),
        ("scheduled", Kind::Postgres) => format!("{now} + interval '1 day'"),
        _ => now.to_owned(),
    };
    let ids = database.kind.either("", "OVERRIDING SYSTEM VALUE");
    let claims = i32::from(state == "done");
    let start = prompt::START;
    let mut sql = format!(
        "INSERT INTO jobs (id, prompt, run_at) {ids} SELECT i, '{start}' || i, {due} FROM {numbers} n;
         INSERT INTO job_state (job_id, claims, available_at, priority, state, queue, batch, model, bytes)
         SELECT i, {claims}, {due}, 0, '{state}', 'default', '', '', 35 FROM {numbers} n;"
    );
    if state == "done" {
        sql.push_str(&ended(&numbers, now));
    }
    transaction(database, &sql, from as usize + rows).await
}

/// Runs what fills the tables as one transaction; `last` is the highest id that it gives.
pub(super) async fn transaction(database: &Database, sql: &str, last: usize) -> anyhow::Result<()> {
    let sql = sql.to_owned();
    match &database.pool {
        Pool::Sqlite(pool) => {
            // Nothing of this has to survive a power cut.
            let mut conn = pool.acquire().await?;
            conn.execute("PRAGMA synchronous = OFF").await?;
            let mut transaction = conn.begin().await?;
            transaction.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
            transaction.commit().await?;
            conn.execute("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA synchronous = FULL").await?;
        }
        Pool::Postgres(pool) => {
            let mut transaction = pool.begin().await?;
            transaction.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
            let restart = format!("SELECT setval(pg_get_serial_sequence('jobs', 'id'), {last})");
            transaction.execute(AssertSqlSafe(restart)).await?;
            transaction.commit().await?;
        }
    }
    Ok(())
}

/// The SQL of what finished jobs have beside their state: a result, and a call in the ledger.
fn ended(numbers: &str, now: &str) -> String {
    let model = prompt::MODEL;
    format!(
        "INSERT INTO results (job_id, run, queue, outcome, stop_reason, model, input_tokens, output_tokens, calls,
                              request_id, started_at, text)
         SELECT i, 1, 'default', 'complete', 'end_turn', '{model}', 14, 53, 1, 'req_011CT' || i, {now},
                'An answer about number ' || i
           FROM {numbers} n;
         INSERT INTO calls (job_id, claim, seq, run, kind, model, max_tokens, messages, sent_at, ended_at,
                            http_status, request_id, message_id, stop_reason, input_tokens, output_tokens, worker)
         SELECT i, 1, 1, 1, 'ask', '{model}', 128000, 1, {now}, {now}, 200, 'req_011CT' || i, 'msg_011CT' || i,
                'end_turn', 14, 53, 1
           FROM {numbers} n;"
    )
}
