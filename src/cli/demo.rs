//! `promptmill demo`: a few hundred prompts through the stand-in API, without key or network.
//!
//! Reads no environment and no configuration file. The prompts are inserted by the very SQL that
//! is shown, the calls go over real HTTP, and what is shown at the end is read from the tables.
//! How tables are made and drained is handed in.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};

use super::exit::Stop;
use super::out::say;
use crate::stand_in::{Counts, Options, StandIn};

/// The jobs, as they are shown and inserted.
pub const SQL: &str = include_str!("demo.sql");

/// How often the progress is read.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Time to the first event: about that of a real model.
const DELAY: Duration = Duration::from_millis(400);
/// Time between pieces: with it one answer takes about a second.
const PACE: Duration = Duration::from_millis(35);
/// Most characters of an answer in the samples.
const SAMPLE_CHARS: i64 = 56;

/// Shows promptmill at work, without key or network: a few hundred prompts, with trouble among them.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Keep the database file, under this name, to look into it afterwards
    #[arg(long, value_name = "FILE")]
    pub keep: Option<PathBuf>,
}

/// Runs the demo.
///
/// `prepare` gets the database's URL and makes the tables; `drain` gets that and the API's base URL
/// and works until nothing is left.
pub async fn run<P, D>(args: Args, prepare: P, drain: D) -> anyhow::Result<()>
where
    P: AsyncFnOnce(&str) -> anyhow::Result<()>,
    D: AsyncFnOnce(&str, &str) -> anyhow::Result<()>,
{
    let file = File::new(args.keep)?;
    let database = format!("sqlite:{}", file.path.display());
    let options = Options { delay: DELAY, pace: PACE, calls_kept: 0, ..Options::default() };
    let api = StandIn::start(options).await.context("cannot start the stand-in API on 127.0.0.1")?;
    prepare(&database).await?;
    let pool = open(&file.path).await?;
    let mut out = std::io::stdout();
    writeln!(out, "{SQL}")?;
    sqlx::raw_sql(SQL).execute(&pool).await.context("cannot insert the demo's jobs")?;
    say(&format!(
        "These prompts stand in {} now. The stand-in API at {} answers them.\n",
        file.path.display(),
        api.url()
    ));

    let began = Instant::now();
    let url = api.url();
    tokio::select! {
        drained = drain(&database, &url) => drained?,
        watched = watch(&pool) => watched?,
        // So that the file goes, too.
        asked = tokio::signal::ctrl_c() => {
            asked.context("cannot wait for Ctrl-C")?;
            return Err(Stop::failure("interrupted"));
        }
    }
    let took = began.elapsed();
    writeln!(out, "{}", outcomes(&pool).await?)?;
    writeln!(out, "{}", samples(&pool).await?)?;
    writeln!(out, "{}", books(&pool, &api.counts(), took).await?)?;
    pool.close().await;
    say(&next_steps(&file, &called()));
    Ok(())
}

/// The demo's database, removed at the end where nobody asked to keep it.
struct File {
    path: PathBuf,
    keep: bool,
}

impl File {
    fn new(keep: Option<PathBuf>) -> anyhow::Result<Self> {
        let keeps = keep.is_some();
        let unique = format!("promptmill-demo-{}-{:08x}.db", std::process::id(), fastrand::u32(..));
        let path = keep.unwrap_or_else(|| std::env::temp_dir().join(unique));
        if path.exists() {
            bail!("{} exists already: name a file that is not there yet", path.display());
        }
        Ok(Self { path, keep: keeps })
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        for suffix in ["", "-wal", "-shm"] {
            let mut name = self.path.clone().into_os_string();
            name.push(suffix);
            // What cannot be removed from the temporary folder is nobody's loss.
            drop(std::fs::remove_file(name));
        }
    }
}

async fn open(path: &Path) -> anyhow::Result<SqlitePool> {
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(Duration::from_secs(30));
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await;
    pool.with_context(|| format!("cannot open {}", path.display()))
}

/// Shows the progress for as long as it is polled; ends only where the database cannot be read.
async fn watch(pool: &SqlitePool) -> anyhow::Result<()> {
    let jobs: i64 = sqlx::query_scalar("SELECT count(*) FROM jobs").fetch_one(pool).await?;
    let bar = Bar::new(jobs as u64);
    loop {
        let (done, good): (i64, i64) = sqlx::query_as(
            "SELECT count(*), count(CASE outcome WHEN 'complete' THEN 1 END)
               FROM results",
        )
        .fetch_one(pool)
        .await
        .context("cannot read the progress")?;
        bar.0.set_position(done as u64);
        bar.0.set_message(format!("{good} complete"));
        tokio::time::sleep(PROGRESS_EVERY).await;
    }
}

/// A progress bar that is gone when its owner is.
struct Bar(ProgressBar);

impl Bar {
    fn new(length: u64) -> Self {
        let bar =
            if std::io::stderr().is_terminal() { ProgressBar::new(length) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{elapsed} {wide_bar} {pos}/{len}  {msg}")
            .expect("the template is right");
        Self(bar.with_style(style))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn table(header: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    for &at in numbers {
        if let Some(column) = table.column_mut(at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

async fn outcomes(pool: &SqlitePool) -> anyhow::Result<Table> {
    let rows: Vec<(String, i64, i64, i64, i64, i64)> = sqlx::query_as(
        "SELECT outcome, count(*), sum(calls), sum(continuations), sum(failures), sum(output_tokens)
           FROM results
          GROUP BY outcome
          ORDER BY count(*) DESC, outcome",
    )
    .fetch_all(pool)
    .await
    .context("cannot read the results")?;
    let mut table =
        table(&["outcome", "jobs", "calls", "continuations", "failures", "output tokens"], &[1, 2, 3, 4, 5]);
    for (outcome, jobs, calls, continuations, failures, tokens) in rows {
        let numbers = [jobs, calls, continuations, failures, tokens].map(|number| number.to_string());
        table.add_row(std::iter::once(outcome).chain(numbers));
    }
    Ok(table)
}

async fn samples(pool: &SqlitePool) -> anyhow::Result<Table> {
    let rows: Vec<(i64, String, Option<String>, i64, String)> = sqlx::query_as(
        "SELECT job_id, outcome, stop_reason, calls,
                substr(replace(coalesce(text, error, ''), char(10), ' '), 1, $1)
           FROM results
          WHERE job_id IN (SELECT min(job_id) FROM results GROUP BY outcome)
             OR job_id = (SELECT job_id FROM results ORDER BY continuations DESC, job_id LIMIT 1)
          ORDER BY job_id",
    )
    .bind(SAMPLE_CHARS)
    .fetch_all(pool)
    .await
    .context("cannot read the results")?;
    let mut table = table(&["job", "outcome", "stop_reason", "calls", "text, else error"], &[0, 3]);
    for (job, outcome, stop, calls, text) in rows {
        table.add_row([job.to_string(), outcome, stop.unwrap_or_default(), calls.to_string(), text]);
    }
    Ok(table)
}

/// One line that holds the ledger against what the API counted.
async fn books(pool: &SqlitePool, counts: &Counts, took: Duration) -> anyhow::Result<String> {
    let (calls, failed): (i64, i64) =
        sqlx::query_as("SELECT count(*), count(error_type) FROM calls").fetch_one(pool).await?;
    Ok(format!(
        "{:.1} s. The API counted {} calls; the ledger holds {calls}, of which {failed} failed.",
        took.as_secs_f64(),
        counts.total,
    ))
}

/// How this program was called: what a person can type again, also where it is not on the path.
fn called() -> String {
    std::env::args_os()
        .next()
        .map_or_else(|| "promptmill".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn next_steps(file: &File, promptmill: &str) -> String {
    let look = if file.keep {
        let path = file.path.display();
        format!(
            "Look into it:\n\
             \x20   sqlite3 {path} \"SELECT * FROM job_overview LIMIT 5\"\n\
             \x20   DATABASE_URL=sqlite:{path} {promptmill} status"
        )
    } else {
        format!("Look into the tables yourself:\n    {promptmill} demo --keep demo.db")
    };
    format!(
        "{look}\n\
         Then with your own prompts and key:\n\
         \x20   {promptmill} migrate\n\
         \x20   sqlite3 promptmill.db \"INSERT INTO jobs (prompt) VALUES ('Say hello')\"\n\
         \x20   ANTHROPIC_API_KEY=… {promptmill} run --drain\n\
         \x20   {promptmill} results"
    )
}
