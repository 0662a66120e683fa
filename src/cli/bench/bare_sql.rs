//! The other floor: the same rows moved by SQL written for nothing else, in the best batch form.
//!
//! One connection claims 256 jobs, reads their prompts, and ends them with result and ledger row;
//! each is committed. The tables are ours, with their columns, checks and indexes, but without the
//! triggers; nothing is fenced, and nobody else is expected.

use std::time::{Duration, Instant};

use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;

use super::place::{Database, Pool};
use super::prompt::MODEL;

/// Jobs of one batch.
const BATCH: i64 = 256;
/// What the stand-in says by default, about: forty words.
pub(super) const TEXT: &str = "The harbour had been quiet since the morning, and nobody who walked along the wall that day \
                    would have said that anything was about to change; the boats lay where they always lay, and \
                    the men talked of the weather, of nets and prices.";
pub(super) const USAGE: &str = r#"{"input_tokens":14,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"output_tokens":53,"service_tier":"standard"}"#;

/// What the floor came to.
#[derive(Debug, Clone)]
pub(super) struct Moved {
    /// How long it took.
    pub(super) took: Duration,
    /// How long each claim took, in milliseconds.
    pub(super) claims: Vec<f64>,
    /// Bytes of the log; `None` where nobody counts them.
    pub(super) wal: Option<i64>,
}

/// The tables whose triggers are taken away.
const TABLES: [&str; 4] = ["jobs", "job_state", "results", "calls"];

/// Takes the triggers away; returns the SQL that brings them back.
pub(super) async fn without_triggers(database: &Database) -> anyhow::Result<Vec<String>> {
    match &database.pool {
        Pool::Postgres(_) => {
            for table in TABLES {
                database.run(&format!("ALTER TABLE {table} DISABLE TRIGGER USER")).await?;
            }
            Ok(TABLES.iter().map(|table| format!("ALTER TABLE {table} ENABLE TRIGGER USER")).collect())
        }
        Pool::Sqlite(pool) => {
            let all: Vec<(String, String)> =
                sqlx::query_as("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY rowid")
                    .fetch_all(pool)
                    .await?;
            for (name, _) in &all {
                database.run(&format!("DROP TRIGGER {name}")).await?;
            }
            Ok(all.into_iter().map(|(_, sql)| sql).collect())
        }
    }
}

/// Brings them back.
pub(super) async fn with_triggers(database: &Database, triggers: &[String]) -> anyhow::Result<()> {
    for sql in triggers {
        database.run(sql).await?;
    }
    Ok(())
}

/// Moves all pending jobs from the table to the results.
pub(super) async fn run(database: &Database) -> anyhow::Result<Moved> {
    without_triggers(database).await?;
    database.rest().await?;
    let before = database.wal().await?;
    let began = Instant::now();
    let claims = match &database.pool {
        Pool::Postgres(pool) => {
            let mut conn = pool.acquire().await?;
            postgres(&mut conn).await?
        }
        Pool::Sqlite(pool) => {
            let mut conn = pool.acquire().await?;
            sqlite(&mut conn).await?
        }
    };
    let took = began.elapsed();
    let wal = database.wal().await?.zip(before).map(|(after, before)| after - before);
    Ok(Moved { took, claims, wal })
}

/// The answers to a batch: each job's text and content.
fn answers(jobs: &[(i64, String)]) -> (Vec<i64>, Vec<String>, Vec<String>) {
    let text = |job: &i64| format!("{job}: {TEXT}");
    let ids: Vec<i64> = jobs.iter().map(|(job, _)| *job).collect();
    let texts: Vec<String> = ids.iter().map(text).collect();
    let contents = texts.iter().map(|text| format!(r#"[{{"type":"text","text":"{text}"}}]"#)).collect();
    (ids, texts, contents)
}

async fn postgres(conn: &mut PgConnection) -> anyhow::Result<Vec<f64>> {
    let mut claims = Vec::new();
    loop {
        let began = Instant::now();
        let jobs: Vec<(i64, String)> = sqlx::query_as(
            "WITH claimed AS (
                 UPDATE job_state
                    SET state = 'running', claims = claims + 1, claimed_by = 1
                  WHERE job_id = ANY (ARRAY(
                        SELECT job_id FROM job_state
                         WHERE state = 'pending' AND queue = 'default' AND model = '' AND priority = 0 AND batch = ''
                         ORDER BY job_id + 0
                         LIMIT $1
                           FOR UPDATE SKIP LOCKED))
                 RETURNING job_id
             )
             SELECT j.id, j.prompt
               FROM claimed c
               JOIN jobs j ON j.id = c.job_id",
        )
        .bind(BATCH)
        .fetch_all(&mut *conn)
        .await?;
        if jobs.is_empty() {
            return Ok(claims);
        }
        claims.push(began.elapsed().as_secs_f64() * 1_000.0);
        let (ids, texts, contents) = answers(&jobs);
        sqlx::query(
            "WITH answer AS (
                 SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[]) AS a (job_id, text, content)
             ), result AS (
                 INSERT INTO results (job_id, run, queue, outcome, stop_reason, model, input_tokens, output_tokens, calls,
                                      request_id, started_at, text, content)
                 SELECT job_id, 1, 'default', 'complete', 'end_turn', $4, 14, 53, 1,
                        'req_011CT' || job_id, now(), text, content::json
                   FROM answer
             ), call AS (
                 INSERT INTO calls (job_id, claim, seq, run, kind, model, max_tokens, messages, sent_at, first_token_at,
                                    ended_at, http_status, request_id, message_id, stop_reason, input_tokens, output_tokens,
                                    worker, usage, content)
                 SELECT job_id, 1, 1, 1, 'ask', $4, 128000, 1, now(), now(), now(), 200, 'req_011CT' || job_id,
                        'msg_011CT' || job_id, 'end_turn', 14, 53, 1, $5::json, content::json
                   FROM answer
             )
             UPDATE job_state SET state = 'done', claimed_by = NULL WHERE job_id = ANY ($1)",
        )
        .bind(ids)
        .bind(texts)
        .bind(contents)
        .bind(MODEL)
        .bind(USAGE)
        .execute(&mut *conn)
        .await?;
    }
}

async fn sqlite(conn: &mut SqliteConnection) -> anyhow::Result<Vec<f64>> {
    let mut claims = Vec::new();
    loop {
        let began = Instant::now();
        let jobs = claim_sqlite(conn).await?;
        if jobs.is_empty() {
            return Ok(claims);
        }
        claims.push(began.elapsed().as_secs_f64() * 1_000.0);
        settle_sqlite(conn, &jobs).await?;
    }
}

async fn claim_sqlite(conn: &mut SqliteConnection) -> sqlx::Result<Vec<(i64, String)>> {
    let mut transaction = conn.begin_with("BEGIN IMMEDIATE").await?;
    let claimed: Vec<i64> = sqlx::query_scalar(
        "UPDATE job_state
            SET state = 'running', claims = claims + 1, claimed_by = 1
          WHERE job_id IN (
                SELECT job_id FROM job_state INDEXED BY job_state_claimable
                 WHERE state = 'pending' AND queue = 'default' AND model = '' AND priority = 0 AND batch = ''
                 ORDER BY job_id
                 LIMIT $1)
         RETURNING job_id",
    )
    .bind(BATCH)
    .fetch_all(&mut *transaction)
    .await?;
    let jobs = sqlx::query_as(
        "SELECT j.id, j.prompt
           FROM json_each($1) c
          CROSS JOIN jobs j ON j.id = c.value",
    )
    .bind(serde_json::json!(claimed).to_string())
    .fetch_all(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(jobs)
}

async fn settle_sqlite(conn: &mut SqliteConnection, jobs: &[(i64, String)]) -> sqlx::Result<()> {
    let (ids, texts, contents) = answers(jobs);
    let rows: Vec<_> =
        ids.iter().zip(&texts).zip(&contents).map(|((id, text), content)| (id, text, content)).collect();
    let rows = serde_json::json!(rows).to_string();
    let mut transaction = conn.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query(
        "INSERT INTO results (job_id, run, queue, outcome, stop_reason, model, input_tokens, output_tokens, calls,
                              request_id, started_at, text, content)
         SELECT value ->> 0, 1, 'default', 'complete', 'end_turn', $2, 14, 53, 1, 'req_011CT' || (value ->> 0),
                CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER), value ->> 1, value ->> 2
           FROM json_each($1)",
    )
    .bind(&rows)
    .bind(MODEL)
    .execute(&mut *transaction)
    .await?;
    sqlx::query(
        "INSERT INTO calls (job_id, claim, seq, run, kind, model, max_tokens, messages, sent_at, first_token_at,
                            ended_at, http_status, request_id, message_id, stop_reason, input_tokens, output_tokens,
                            worker, usage, content)
         SELECT value ->> 0, 1, 1, 1, 'ask', $2, 128000, 1, t.now, t.now, t.now, 200, 'req_011CT' || (value ->> 0),
                'msg_011CT' || (value ->> 0), 'end_turn', 14, 53, 1, $3, value ->> 2
           FROM (SELECT CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER) AS now) t
          CROSS JOIN json_each($1)",
    )
    .bind(&rows)
    .bind(MODEL)
    .bind(USAGE)
    .execute(&mut *transaction)
    .await?;
    sqlx::query(
        "UPDATE job_state SET state = 'done', claimed_by = NULL
          WHERE job_id IN (SELECT value ->> 0 FROM json_each($1))",
    )
    .bind(&rows)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await
}
