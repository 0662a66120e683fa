//! `promptmill enqueue`: puts jobs into the table, from a file of JSON lines, a table as CSV, or one
//! prompt.
//!
//! A file is read twice. First it is checked whole, and nothing is inserted while any line is
//! wrong; then it is inserted, [`ROWS_MAX`] rows a statement, each statement a transaction of its
//! own. What stops that half way (a lost database, a row that the database refuses) is told with
//! its line; the keys make the same command go on from there.

mod lines;
mod source;
mod table;
mod template;
mod wait;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;

use self::lines::{Fault, Labels};
use self::source::{Jobs, Source};
use super::exit::{Exit, Stop};
use super::open::{Absent, Context};
use super::out::{Out, number, say};
use super::progress::{Beside, Progress};
use crate::domain::job::JobId;
use crate::store::{Desk, Inserted, NewJob, StoreError};

/// Rows of one statement.
const ROWS_MAX: usize = 1_000;
/// Bytes of one statement, beside a first row that may be larger.
const BYTES_MAX: usize = 4 * 1024 * 1024;
/// Wrong lines that are listed one by one.
const FAULTS_MAX: usize = 20;

/// Puts prompts into the table.
///
/// FILE has one JSON object a line: the columns of `jobs` (prompt, system, model, max_tokens, params,
/// policy, metadata, priority, run_at, queue, batch, key) or custom_id; the official batch format,
/// {"custom_id","params"}, is read too. The file is checked whole first: nothing is enqueued while
/// any line is wrong. Each job gets the key BATCH/CUSTOM_ID (without a custom_id: BATCH/ and a digest
/// of the line), so that the same file twice enqueues once.
///
/// With --template the fields are your own: each line, or each row of a CSV file whose first line names
/// the columns, makes a prompt, {{name}} standing for what its field holds, and {{{{ for {{. The row
/// itself is kept as metadata, to join the answers back. A CSV file without a template has the columns
/// of jobs.
#[derive(Debug, clap::Args)]
#[expect(clippy::doc_markdown, reason = "these words are the help text, which knows no backticks")]
pub struct Args {
    /// File of JSON lines, or CSV; - for standard input
    #[arg(value_name = "FILE", required_unless_present = "prompt", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Enqueue this one prompt; prints its job id
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    #[command(flatten)]
    source: Box<source::Args>,
    /// Label of the batch [default: file name and content hash]
    #[arg(long, short, value_name = "LABEL")]
    batch: Option<String>,
    /// Wait until every one of these jobs is done; with --prompt, print the answer.
    /// Exit code 7: not all of them are complete
    #[arg(long)]
    wait: bool,
    /// Key of the one prompt: a second job with it is not enqueued
    #[arg(long, value_name = "KEY", requires = "prompt")]
    key: Option<String>,
    /// Queue of jobs that name none
    #[arg(long, value_name = "QUEUE")]
    queue: Option<String>,
    /// Model of jobs that name none
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// System prompt of jobs that have none
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Room of one call, in tokens, of jobs that say none
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<i64>,
    /// Priority of jobs that say none; higher runs sooner
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    priority: Option<i32>,
    /// JSON object of API fields for the one prompt
    #[arg(long, value_name = "JSON", requires = "prompt")]
    params: Option<String>,
    /// JSON object: how jobs that do not say it want to be treated
    #[arg(long, value_name = "JSON")]
    policy: Option<String>,
    /// JSON of your own, kept with jobs that have none and never sent
    #[arg(long, value_name = "JSON")]
    metadata: Option<String>,
}

impl Args {
    /// Returns what the command line says for every job.
    fn defaults(&self) -> NewJob {
        NewJob {
            queue: self.queue.clone(),
            batch: self.batch.clone(),
            system: self.system.clone(),
            model: self.model.clone(),
            max_tokens: self.max_tokens,
            policy: self.policy.clone(),
            metadata: self.metadata.clone(),
            priority: self.priority,
            ..NewJob::default()
        }
    }
}

/// What became of the lines so far.
#[derive(Debug, Default)]
struct Tally {
    new: u64,
    there: u64,
    unread: u64,
    /// Lines whose key exists with other content, with the key.
    differing: Vec<(u64, String)>,
    /// The jobs in the table, where they are waited for.
    jobs: Option<Vec<JobId>>,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    if let Some(metadata) = &args.metadata
        && serde_json::from_str::<&serde_json::value::RawValue>(metadata).is_err()
    {
        return Err(Stop::usage("--metadata is not valid JSON"));
    }
    match (&args.prompt, &args.file) {
        (Some(prompt), _) => one(prompt, args, context).await,
        (None, Some(file)) => many(file, args, context).await,
        (None, None) => Err(Stop::usage("say what to enqueue: FILE, - or --prompt")),
    }
}

async fn one(prompt: &str, args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let job = NewJob {
        key: args.key.clone(),
        prompt: Some(prompt.to_owned()),
        params: args.params.clone(),
        ..args.defaults()
    };
    lines::check(&job).map_err(Stop::usage)?;
    let desk = context.desk(Absent::Create).await?;
    let found = desk.insert(std::slice::from_ref(&job)).await.context("failed to enqueue the prompt")?;
    let inserted = *found.first().context("the database answered for no job")?;
    let id = inserted.job();
    let mut out = Out::stdout();
    match inserted {
        Inserted::New(_) => say("1 new, 0 already there"),
        Inserted::There(_) => say("0 new, 1 already there"),
        Inserted::Unread(_) => {
            say("0 new, 1 already there; its content was not compared, because this role may not read jobs");
        }
        Inserted::Differs(_) => {
            let key = args.key.as_deref().unwrap_or_default();
            return Err(Stop::failure(format!(
                "key \"{key}\" exists with other content, as job {id}: use another key, or cancel and delete that job"
            )));
        }
    }
    if args.wait {
        return wait::for_answer(&*desk, id, context.json, &mut out).await;
    }
    if context.json {
        let new = matches!(inserted, Inserted::New(_));
        out.line(&json!({"job": id.0, "new": u8::from(new), "already_there": u8::from(!new)}).to_string())?;
    } else {
        out.line(&id.to_string())?;
    }
    out.flush()?;
    Ok(Exit::Good)
}

async fn many(path: &Path, args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let defaults = args.defaults();
    let source = Source::new(&args.source, path)?;
    let (mut file, name) = open(path)?;
    let (jobs, digest) = check_whole(&file, &name, &source, &defaults)?;
    let label = args.batch.clone().unwrap_or_else(|| {
        // The label has to fit its column; a file name may be longer.
        let name: String = name.chars().take(lines::NAME_MAX - digest.len() - 1).collect();
        format!("{name}-{digest}")
    });
    let desk = context.desk(Absent::Create).await?;

    file.seek(SeekFrom::Start(0)).with_context(|| format!("failed to read {name} again"))?;
    let mut progress = Progress::begin("jobs", Some(jobs), Beside::Nothing);
    let mut tally = Tally { jobs: args.wait.then(Vec::new), ..Tally::default() };
    let inserted =
        insert_all(&*desk, source.read(&file, &name)?, &name, &label, &defaults, &mut tally, &mut progress)
            .await;
    drop(progress);
    inserted.with_context(|| {
        format!(
            "failed to enqueue {name} whole: {} new, {} already there so far; the same command goes on from there",
            number(tally.new as i64),
            number(tally.there as i64)
        )
    })?;

    report(&label, &tally, context.json)?;
    if !tally.differing.is_empty() {
        return Ok(Exit::Failure);
    }
    match tally.jobs {
        Some(jobs) => wait::for_all(&*desk, jobs).await,
        None => Ok(Exit::Good),
    }
}

/// Opens a file that can be read twice: standard input and pipes are kept in an unnamed
/// temporary file, which goes away with this process.
fn open(path: &Path) -> anyhow::Result<(File, String)> {
    let keep = |mut from: Box<dyn io::Read>, name: &str| -> anyhow::Result<File> {
        let mut file = tempfile::tempfile().context("failed to make a temporary file")?;
        io::copy(&mut from, &mut file).with_context(|| format!("failed to read {name}"))?;
        file.seek(SeekFrom::Start(0))?;
        Ok(file)
    };
    if path == Path::new("-") {
        let name = "stdin".to_owned();
        return Ok((keep(Box::new(io::stdin().lock()), &name)?, name));
    }
    let shown = path.display();
    let file = File::open(path).map_err(|error| Stop::failure(format!("{shown} cannot be read: {error}")))?;
    let name = path.file_name().map_or_else(|| shown.to_string(), |name| name.to_string_lossy().into_owned());
    let kind = file.metadata().with_context(|| format!("failed to look at {shown}"))?;
    if kind.is_dir() {
        return Err(Stop::failure(format!("{shown} is a folder: name a file of JSON lines or CSV")));
    }
    if kind.is_file() { Ok((file, name)) } else { Ok((keep(Box::new(file), &name)?, name)) }
}

/// Reads all lines; returns how many jobs there are, and the digest of the file.
fn check_whole(file: &File, name: &str, source: &Source, defaults: &NewJob) -> anyhow::Result<(u64, String)> {
    let mut lines = source.read(file, name)?;
    let mut good: u64 = 0;
    let mut wrong: u64 = 0;
    let mut progress = Progress::begin("rows read", None, Beside::Nothing);
    while let Some(line) = lines.next_job(defaults).with_context(|| format!("failed to read {name}"))? {
        progress.add(1);
        match line {
            Ok(_) => good += 1,
            Err(Fault { number, sentence }) => {
                wrong += 1;
                if wrong <= FAULTS_MAX as u64 {
                    progress.say(&format!("{name}: line {number}: {sentence}"));
                }
            }
        }
    }
    drop(progress);
    if wrong > 0 {
        let more = if wrong > FAULTS_MAX as u64 {
            format!(" (the first {FAULTS_MAX} are listed)")
        } else {
            String::new()
        };
        return Err(Stop::failure(format!(
            "{name}: {} of {} lines cannot be jobs{more}; nothing was enqueued",
            number(wrong as i64),
            number((good + wrong) as i64)
        )));
    }
    Ok((good, lines.digest()))
}

async fn insert_all(
    desk: &dyn Desk,
    mut lines: Jobs<'_>,
    name: &str,
    label: &str,
    defaults: &NewJob,
    tally: &mut Tally,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let mut labels = Labels::new(label.to_owned());
    let mut numbers = Vec::with_capacity(ROWS_MAX);
    let mut jobs = Vec::with_capacity(ROWS_MAX);
    let mut bytes = 0;
    loop {
        let next = lines.next_job(defaults).with_context(|| format!("failed to read {name}"))?;
        let end = next.is_none();
        if let Some(line) = next {
            let line = line.map_err(|fault| {
                Stop::failure(format!(
                    "{name} changed while it was read: line {}: {}",
                    fault.number, fault.sentence
                ))
            })?;
            numbers.push(line.number);
            let job = labels.apply(line);
            bytes += [&job.prompt, &job.system, &job.params, &job.policy, &job.metadata]
                .into_iter()
                .flatten()
                .map(String::len)
                .sum::<usize>();
            jobs.push(job);
        }
        if end || jobs.len() == ROWS_MAX || bytes >= BYTES_MAX {
            insert(desk, &numbers, &jobs, tally).await?;
            progress.add(jobs.len() as u64);
            numbers.clear();
            jobs.clear();
            bytes = 0;
        }
        if end {
            return Ok(());
        }
    }
}

/// Inserts jobs in order; a statement that the database refuses is halved until the row stands alone.
async fn insert(desk: &dyn Desk, numbers: &[u64], jobs: &[NewJob], tally: &mut Tally) -> anyhow::Result<()> {
    let mut from = 0;
    let mut size = jobs.len();
    while from < jobs.len() {
        let to = (from + size).min(jobs.len());
        match desk.insert(&jobs[from..to]).await {
            Ok(found) => {
                for ((inserted, number), job) in
                    found.into_iter().zip(&numbers[from..to]).zip(&jobs[from..to])
                {
                    match inserted {
                        Inserted::New(_) => tally.new += 1,
                        Inserted::There(_) => tally.there += 1,
                        Inserted::Unread(_) => {
                            tally.there += 1;
                            tally.unread += 1;
                        }
                        Inserted::Differs(_) => {
                            tally.differing.push((*number, job.key.clone().unwrap_or_default()));
                        }
                    }
                    if let Some(jobs) = &mut tally.jobs {
                        jobs.push(inserted.job());
                    }
                }
                from = to;
            }
            Err(StoreError::Refused(_)) if to - from > 1 => size = (to - from) / 2,
            Err(StoreError::Refused(why)) => {
                return Err(Stop::failure(format!(
                    "line {}: {why}; the lines before it are enqueued, those after it are not",
                    numbers[from]
                )));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn report(label: &str, tally: &Tally, json: bool) -> anyhow::Result<()> {
    let mut out = Out::stdout();
    if json {
        let differing: Vec<_> =
            tally.differing.iter().map(|(line, key)| json!({"line": line, "key": key})).collect();
        let object = json!({
            "batch": label, "new": tally.new, "already_there": tally.there, "other_content": differing,
        });
        out.line(&object.to_string())?;
    } else {
        out.line(label)?;
    }
    out.flush()?;
    if tally.unread > 0 {
        say("what was already there was not compared, because this role may not read jobs");
    }
    if !tally.differing.is_empty() {
        for (line, key) in tally.differing.iter().take(FAULTS_MAX) {
            say(&format!("line {line}: key \"{key}\" exists with other content"));
        }
        say(&format!(
            "{} not enqueued: lines whose key exists with other content; use another --batch or custom_id, or delete those jobs",
            number(tally.differing.len() as i64)
        ));
    }
    say(&format!(
        "batch {label}: {} new, {} already there",
        number(tally.new as i64),
        number(tally.there as i64)
    ));
    Ok(())
}
