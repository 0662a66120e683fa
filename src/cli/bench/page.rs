//! `page`: how long the server takes for each view of the web page, over millions of jobs.
//!
//! The jobs are of every kind that a view tells apart: done ones of many outcomes over a month, one batch of
//! a third of them, hundreds of ten thousand, ten thousands of ten, and beside them what is not done.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::history::{self, sql_now};
use super::place::{Database, Kind};
use super::report::{Of, median};
use super::{Bench, bare_loop, bare_sql};
use crate::cli::out::{number, say};

/// What is measured of each address, beside the first time.
const TIMES: usize = 5;
/// Longest time that the page may take to find its database.
const READY_MAX: Duration = Duration::from_secs(30);
/// Milliseconds between two jobs that ended.
const APART: usize = 500;
/// Bytes that a job takes on the disk with its log.
const BYTES: (usize, usize) = (700, 1_600);

/// The views; `DONE` stands for a job that is done, `MANY` for a batch of ten thousand.
const VIEWS: [&str; 46] = [
    "/",
    "/?window=15m",
    "/?window=24h",
    "/jobs",
    "/jobs?state=pending",
    "/jobs?state=scheduled",
    "/jobs?state=running",
    "/jobs?state=waiting",
    "/jobs?state=done",
    "/jobs?queue=tenant-3",
    "/jobs?model=claude-haiku-5-5",
    "/jobs?model=nothing",
    "/jobs?batch=catalogue",
    "/jobs?batch=evening",
    "/jobs?batch=MANY&state=done",
    "/jobs?batch=nowhere",
    "/jobs?state=pending&batch=evening&queue=tenant-3",
    "/jobs?outcome=failed",
    "/jobs?outcome=expired",
    "/jobs?outcome=complete",
    "/jobs?stop_reason=refusal",
    "/jobs?error_type=api_error",
    "/jobs?error_type=nothing",
    "/jobs?from=jDONE",
    "/jobs?state=done&from=rDONE",
    "/jobs/DONE",
    "/jobs/DONE?show=prompt",
    "/jobs/DONE/again",
    "/batches",
    "/batches?open=on",
    "/batches?from=nightly-",
    "/batches?from=order-",
    "/batch?name=catalogue",
    "/batch?name=evening",
    "/batch?name=MANY",
    "/queues",
    "/workers",
    "/gates?all=on",
    "/errors",
    "/audit",
    "/config?all=on",
    "/batch/results?name=catalogue&format=csv",
    "/api/v1/overview",
    "/api/v1/jobs?limit=500",
    "/api/v1/jobs/DONE?show=prompt",
    "/api/v1/jobs/DONE/partial",
];

/// Measures each address on each database.
pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let jobs = bench.jobs.unwrap_or(bench.millions as usize * 1_000_000).max(100);
    for kind in bench.kinds.clone() {
        let database = bench.place.fresh(kind, &bench.mill).await?;
        let needed = jobs * if kind == Kind::Sqlite { BYTES.0 } else { BYTES.1 };
        bench.place.has_room(&database, needed).await?;
        say(&format!("filling {}: {} jobs", kind.as_str(), number(jobs as i64)));
        fill(&database, jobs).await.context("the tables cannot be filled: is the disk full?")?;
        views(bench, &database, jobs).await?;
    }
    Ok(())
}

/// Asks each address, the first time and then [`TIMES`] more, one after the other.
async fn views(bench: &mut Bench, database: &Database, jobs: usize) -> anyhow::Result<()> {
    let vars = [("DATABASE_URL", database.url.as_str()), ("PROMPTMILL_LOG__LEVEL", "warn")];
    let mut page = bench.mill.start(&["web", "--listen", "127.0.0.1:0"], &vars)?;
    let url = page.first_line().await?;
    let http = bare_loop::client()?;
    let began = Instant::now();
    while began.elapsed() < READY_MAX && ask(&http, &format!("{url}/workers")).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (done, many) = ((jobs / 2).to_string(), format!("nightly-{}", jobs / 2 / batch(jobs)));
    for view in VIEWS {
        let address = format!("{url}{}", view.replace("DONE", &done).replace("MANY", &many));
        let of = |what: &str| Of {
            what: format!("page, {what}"),
            database: Some(database.kind),
            conditions: format!("{} jobs, {view}", number(jobs as i64)),
            unit: "ms",
        };
        let first = ask(&http, &address).await?;
        let mut again = Vec::with_capacity(TIMES);
        for _ in 0..TIMES {
            again.push(ask(&http, &address).await?);
        }
        bench.report.add(of("first time"), first, None);
        bench.report.add(of("p50"), median(&again), None);
    }
    page.stop().await.map(|_| ())
}

/// Returns the milliseconds until an answer began.
async fn ask(http: &reqwest::Client, address: &str) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut answer = http.get(address).send().await?;
    let took = began.elapsed();
    anyhow::ensure!(answer.status().is_success(), "{address} brought {}", answer.status());
    // Of a download only the beginning.
    let mut read = 0;
    while let Some(piece) = answer.chunk().await? {
        read += piece.len();
        if read > 1 << 20 {
            break;
        }
    }
    Ok(took.as_secs_f64() * 1_000.0)
}

/// Jobs of a batch of middle size.
fn batch(jobs: usize) -> usize {
    (jobs / 500).max(1)
}

/// Fills the tables of a month.
async fn fill(database: &Database, jobs: usize) -> anyhow::Result<()> {
    let triggers = bare_sql::without_triggers(database).await?;
    let mut from = 0;
    while from < jobs {
        let to = jobs.min(from + history::CHUNK);
        history::transaction(database, &rows(database.kind, jobs, from, to), to).await?;
        from = to;
    }
    let later = database.kind.either("+ 3600000", "+ interval '1 hour'");
    let now = sql_now(database.kind);
    database
        .run(&format!(
            "INSERT INTO queues (name) SELECT DISTINCT queue FROM job_state WHERE queue NOT IN (SELECT name FROM queues);
             INSERT INTO gates (scope, state, reason, until) VALUES
                 ('model:default/claude-opus-5-5', 'blocked', 'overloaded_error (529)', {now} {later}),
                 ('batch:default/evening', 'blocked', 'the API refused 20 jobs of this batch in a row', NULL),
                 ('key:5f3a91c2', 'flowing', NULL, NULL);
             INSERT INTO workers (host, boot, pid, pid_started, version) VALUES ('mill-1', 'b', 4242, 1, '0.1.0');
             INSERT INTO audit (actor, action, target) SELECT 'session', 'cancel', 'job ' || job_id FROM job_state WHERE job_id <= 1000"
        ))
        .await?;
    bare_sql::with_triggers(database, &triggers).await?;
    if database.kind == Kind::Postgres {
        database.run("VACUUM (ANALYZE)").await?;
    }
    database.rest().await
}

/// The SQL of the jobs above `from`, as far as `to`.
fn rows(kind: Kind, jobs: usize, from: usize, to: usize) -> String {
    let (done, batch, now) = (jobs * 92 / 100, batch(jobs), sql_now(kind));
    let numbers = match kind {
        Kind::Sqlite => format!(
            "WITH RECURSIVE n (i) AS (SELECT {from} + 1 UNION ALL SELECT i + 1 FROM n WHERE i < {to})"
        ),
        Kind::Postgres => format!("WITH n (i) AS (SELECT generate_series({from}::bigint + 1, {to}::bigint))"),
    };
    // Each kind of job at its own interval; of the fourth tenth every third failed, as a wrong batch does.
    let all = format!(
        "{numbers}, w AS MATERIALIZED (
             SELECT i, CASE WHEN i * 10 < {jobs} * 3 THEN 'catalogue' WHEN i * 10 < {jobs} * 7 THEN 'nightly-' || (i / {batch})
                            WHEN i * 10 < {jobs} * 8 THEN 'order-' || (i / 10) WHEN i * 10 >= {jobs} * 9 THEN 'evening' END AS batch,
                    CASE WHEN i % 10 = 0 THEN 'interactive' WHEN i % 10 < 4 THEN 'nightly' WHEN i % 10 < 9 THEN 'default'
                         ELSE 'tenant-' || (i / 10 % 20) END AS queue,
                    CASE WHEN i % 3 = 0 THEN 'claude-haiku-5-5' END AS model, CASE WHEN i % 50 = 0 THEN 5 ELSE 0 END AS priority,
                    CASE WHEN i <= {done} THEN 'done' WHEN i % 20 = 0 THEN 'scheduled' WHEN i % 50 = 1 THEN 'waiting'
                         WHEN i % 200 = 2 THEN 'running' ELSE 'pending' END AS state,
                    CASE WHEN i % 100 = 7 OR i * 10 / {jobs} = 4 AND i % 3 = 0 THEN 'failed' WHEN i % 400 = 9 THEN 'truncated'
                         WHEN i % 500 = 11 THEN 'refused' WHEN i % 5000 = 13 THEN 'invalid' WHEN i % 700 = 17 THEN 'cancelled'
                         WHEN i % 3000 = 19 THEN 'expired' WHEN i % 1100 = 23 THEN 'needs_tool' ELSE 'complete' END AS outcome,
                    CASE WHEN i > {done} THEN 0 ELSE ({done} - i) * {APART} END AS ago
               FROM n)"
    );
    let back = |ago: &str| match kind {
        Kind::Sqlite => format!("{now} - ({ago})"),
        Kind::Postgres => format!("{now} - ({ago}) * interval '1 ms'"),
    };
    let (ended, began, due) = (back("ago"), back("ago + 9000"), back("-3600000"));
    let ids = kind.either("", "OVERRIDING SYSTEM VALUE");
    format!(
        "INSERT INTO jobs (id, queue, batch, model, priority, run_at, created_at, prompt) {ids} {all}
         SELECT i, queue, batch, model, priority, {ended}, {ended}, 'Describe product ' || i || ' in two sentences that say what it is for.' FROM w;
         INSERT INTO job_state (job_id, claims, available_at, priority, state, queue, batch, model, bytes, claimed_by) {all}
         SELECT i, CASE WHEN state IN ('done', 'running') THEN 1 ELSE 0 END, CASE WHEN state = 'scheduled' THEN {due} ELSE {ended} END,
                priority, state, queue, coalesce(batch, ''), coalesce(model, ''), 80, CASE WHEN state = 'running' THEN 1 END FROM w;
         INSERT INTO results (job_id, run, queue, batch, outcome, stop_reason, model, input_tokens, output_tokens, calls,
                              error_type, error, request_id, started_at, finished_at, text) {all}
         SELECT i, 1, queue, batch, outcome,
                CASE outcome WHEN 'complete' THEN 'end_turn' WHEN 'truncated' THEN 'max_tokens' WHEN 'refused' THEN 'refusal'
                             WHEN 'needs_tool' THEN 'tool_use' END,
                coalesce(model, 'claude-sonnet-5-5'), 400 + i % 90, 200 + i * 37 % 500, 1,
                CASE WHEN outcome = 'failed' THEN CASE i % 4 WHEN 0 THEN 'api_error' WHEN 1 THEN 'timeout' ELSE 'invalid_request_error' END
                     WHEN outcome = 'invalid' THEN 'invalid_job' END,
                CASE WHEN outcome = 'failed' THEN 'max_tokens: ' || i || ' is too large' END, 'req_011CT' || i, {began}, {ended},
                CASE WHEN outcome = 'complete' THEN 'Product ' || i || ' is a sturdy thing with one moving part that you can replace yourself.' END
           FROM w WHERE state = 'done';
         INSERT INTO calls (job_id, claim, seq, run, kind, model, max_tokens, messages, sent_at, first_token_at, ended_at,
                            http_status, request_id, message_id, stop_reason, input_tokens, output_tokens, worker) {all}
         SELECT i, 1, 1, 1, 'ask', coalesce(model, 'claude-sonnet-5-5'), 8000, 1, {began}, {began}, {ended}, 200, 'req_011CT' || i,
                'msg_011CT' || i, 'end_turn', 400, 200, 1
           FROM w WHERE state = 'done';"
    )
}
