//! `enqueue`: rows a second into `jobs`, the three ways in which people insert them.

use std::fmt::Write as _;
use std::time::Instant;

use serde_json::json;

use super::place::{Database, Kind, Pool};
use super::report::{Floor, Of};
use super::{Bench, bare_sql, prompt};

/// Bytes of a prompt.
const BYTES: usize = 1_000;
/// Single INSERTs in one transaction.
const TRANSACTION: usize = 1_000;
/// What one INSERT says.
const INSERT: &str = "INSERT INTO jobs (prompt) VALUES ($1)";

/// Measures each way on each database, and the first two without our triggers.
pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let rows = bench.size(20_000, 4_000);
    let file = bench.place.folder().join("jobs.jsonl");
    std::fs::write(&file, lines(rows))?;
    for _ in 0..bench.runs {
        for kind in bench.kinds.clone() {
            let of = |way: &str| Of {
                what: "enqueue".to_owned(),
                database: Some(kind),
                conditions: format!("{way}, {rows} rows of 1 KB"),
                unit: "rows/s",
            };
            let floor = |name, value| Some(Floor { name, value });
            let bare = "without triggers";
            let at_once = [at_once(bench, kind, rows, false).await?, at_once(bench, kind, rows, true).await?];
            bench.report.add(of("one INSERT … SELECT"), at_once[0], floor(bare, at_once[1]));
            let singly = [singly(bench, kind, rows, false).await?, singly(bench, kind, rows, true).await?];
            let way = format!("single INSERTs, {TRANSACTION} a transaction");
            bench.report.add(of(&way), singly[0], floor(bare, singly[1]));
            let database = bench.place.fresh(kind, &bench.mill).await?;
            let name = file.display().to_string();
            let vars = [("DATABASE_URL", database.url.as_str())];
            let ended = bench.mill.start(&["enqueue", &name], &vars)?.wait().await?;
            all_there(&database, rows).await?;
            let rate = rows as f64 / ended.took.as_secs_f64();
            bench.report.add(
                of("promptmill enqueue of JSON lines"),
                rate,
                floor("INSERT … SELECT", at_once[0]),
            );
        }
    }
    Ok(())
}

/// The rows as JSON lines.
fn lines(rows: usize) -> String {
    let filler = prompt::filler(BYTES);
    let mut lines = String::new();
    for row in 1..=rows {
        // Writing into a String cannot fail.
        writeln!(lines, "{}", json!({ "custom_id": row.to_string(), "prompt": prompt::text(row, &filler) }))
            .ok();
    }
    lines
}

async fn fresh(bench: &mut Bench, kind: Kind, bare: bool) -> anyhow::Result<Database> {
    let database = bench.place.fresh(kind, &bench.mill).await?;
    if bare {
        bare_sql::without_triggers(&database).await?;
    }
    // Connects, too.
    database.rest().await?;
    database.number("SELECT count(*) FROM jobs").await?;
    Ok(database)
}

async fn all_there(database: &Database, rows: usize) -> anyhow::Result<()> {
    let there = database.number("SELECT count(*) FROM jobs").await?;
    anyhow::ensure!(there == rows as i64, "{there} rows came of {rows}");
    Ok(())
}

async fn at_once(bench: &mut Bench, kind: Kind, rows: usize, bare: bool) -> anyhow::Result<f64> {
    let database = fresh(bench, kind, bare).await?;
    let began = Instant::now();
    database.insert(rows, BYTES).await?;
    let took = began.elapsed();
    all_there(&database, rows).await?;
    Ok(rows as f64 / took.as_secs_f64())
}

async fn singly(bench: &mut Bench, kind: Kind, rows: usize, bare: bool) -> anyhow::Result<f64> {
    let database = fresh(bench, kind, bare).await?;
    let filler = prompt::filler(BYTES);
    let began = Instant::now();
    let numbers: Vec<usize> = (1..=rows).collect();
    for numbers in numbers.chunks(TRANSACTION) {
        match &database.pool {
            Pool::Sqlite(pool) => {
                let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
                for &number in numbers {
                    sqlx::query(INSERT)
                        .bind(prompt::text(number, &filler))
                        .execute(&mut *transaction)
                        .await?;
                }
                transaction.commit().await?;
            }
            Pool::Postgres(pool) => {
                let mut transaction = pool.begin().await?;
                for &number in numbers {
                    sqlx::query(INSERT)
                        .bind(prompt::text(number, &filler))
                        .execute(&mut *transaction)
                        .await?;
                }
                transaction.commit().await?;
            }
        }
    }
    let took = began.elapsed();
    all_there(&database, rows).await?;
    Ok(rows as f64 / took.as_secs_f64())
}
