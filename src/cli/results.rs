//! `promptmill results`: the answers, for people and for programs.
//!
//! The ids of what matches are read first, eight bytes each; the rows follow by their keys, a few
//! at a time, so that a million answers need little memory and no long-lived transaction.

mod follow;
pub(crate) mod format;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ValueEnum;
use tempfile::NamedTempFile;

use self::follow::Follow;
use super::exit::{Exit, Stop};
use super::open::{Absent, Context};
use super::out::{Out, count, number, say};
use super::progress::{Beside, Progress};
use super::which::{job_id, outcome};
use crate::domain::job::JobId;
use crate::store::{Desk, ResultFilter, ResultRow, Texts};

pub(super) use format::json_of;

/// Answers read in one statement: each may be megabytes.
const WHOLE_MAX: usize = 100;
/// Rows of a table, read in one statement.
const STARTS_MAX: usize = 1_000;
/// Rows of a table, where no other number is asked for.
const TABLE_MAX: usize = 1_000;
/// Pause between two looks of `--follow`.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Results that one look of `--follow` takes.
const FOLLOW_MAX: i64 = 1_000;

/// Shows the answers.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these jobs
    #[arg(value_name = "JOB", value_parser = job_id, conflicts_with_all = ["batch", "queue", "outcome", "after"])]
    jobs: Vec<i64>,
    /// Only this batch
    #[arg(long, short, value_name = "LABEL")]
    batch: Option<String>,
    /// Only this queue
    #[arg(long, value_name = "QUEUE")]
    queue: Option<String>,
    /// Only jobs that ended so; may be given several times
    #[arg(long, value_name = "OUTCOME", value_parser = outcome, value_delimiter = ',')]
    outcome: Vec<String>,
    /// Only results with a higher seq than this, in the order of seq: what came after those that are known
    #[arg(long, value_name = "SEQ", value_parser = clap::value_parser!(i64).range(0..))]
    after: Option<i64>,
    /// How to write them [default: table; with --json: jsonl]
    #[arg(long, short, value_enum)]
    format: Option<Format>,
    /// Write to FILE instead of standard output; FILE appears when it is whole
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Go on with results as they come: of a batch until its last job is done, else until interrupted
    #[arg(long, conflicts_with_all = ["jobs", "limit"])]
    follow: bool,
    /// At most so many [default: 1000 in a table, else all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[expect(clippy::doc_markdown, reason = "these words are the help text, which knows no backticks")]
pub enum Format {
    /// A line each, with the start of the text
    Table,
    /// All columns as one JSON object a line
    Jsonl,
    /// Columns for a spreadsheet; text that it would take for a formula gets a ' in front
    Csv,
    /// The official batch results: {"custom_id","result":{"type":…}}
    Batch,
}

/// Where results go.
enum Target {
    Stdout(Out),
    /// A file beside the wanted one, which takes its name when it is whole.
    Whole(BufWriter<NamedTempFile>, PathBuf),
    /// The wanted file itself, growing; also a device or a pipe, whose place no file may take.
    Growing(BufWriter<File>),
}

impl Target {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let Some(path) = args.output.as_deref().filter(|path| *path != Path::new("-")) else {
            return Ok(Self::Stdout(Out::stdout()));
        };
        let cannot =
            |error: io::Error| Stop::failure(format!("{} cannot be written: {error}", path.display()));
        if args.follow || path.metadata().is_ok_and(|there| !there.is_file()) {
            return Ok(Self::Growing(BufWriter::new(File::create(path).map_err(cannot)?)));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Its own words name the file beside, which nobody has heard of.
        let file = NamedTempFile::new_in(folder).map_err(|error| {
            let folder = folder.display();
            let why = match error.kind() {
                io::ErrorKind::NotFound => format!("there is no folder {folder}"),
                io::ErrorKind::PermissionDenied => {
                    format!("this user may not write into the folder {folder}")
                }
                _ => error.to_string(),
            };
            Stop::failure(format!("{} cannot be written: {why}", path.display()))
        })?;
        Ok(Self::Whole(BufWriter::new(file), path.to_owned()))
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.text(text),
            Self::Whole(file, _) => file.write_all(text.as_bytes()),
            Self::Growing(file) => file.write_all(text.as_bytes()),
        }
    }

    /// Whether a person sees the rows come.
    fn is_terminal(&self) -> bool {
        matches!(self, Self::Stdout(out) if out.is_terminal())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::Whole(file, _) => file.flush(),
            Self::Growing(file) => file.flush(),
        }
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.flush()?;
        if let Self::Whole(file, path) = self {
            let file = file.into_inner().context("failed to write the last bytes")?;
            file.persist(&path).map_err(|error| {
                Stop::failure(format!("{} cannot be written: {}", path.display(), error.error))
            })?;
        }
        Ok(())
    }
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let format = match (args.format, context.json) {
        (None, false) => Format::Table,
        (None | Some(Format::Jsonl), true) => Format::Jsonl,
        (Some(_), true) => return Err(Stop::usage("--json and --format contradict each other: give one")),
        (Some(format), false) => format,
    };
    let which =
        ResultFilter { batch: args.batch.clone(), queue: args.queue.clone(), outcomes: args.outcome.clone() };
    let desk = context.desk(Absent::Refuse).await?;
    if args.follow {
        return follow(&*desk, &which, args.after.unwrap_or(0), format, Target::new(args)?).await;
    }
    let limit = args.limit.unwrap_or(if format == Format::Table { TABLE_MAX } else { usize::MAX });
    let listed = match args.after {
        Some(after) => Listed::after(&*desk, &which, after, limit).await?,
        None => Listed::by_job(&*desk, &which, &args.jobs, limit).await?,
    };
    let (jobs, all) = (&listed.jobs, listed.all);

    let mut target = Target::new(args)?;
    let (shown, redacted) = write(&*desk, &listed, format, &mut target).await?;
    target.finish()?;
    if all > jobs.len() && args.limit.is_none() {
        let (some, all) = (number(jobs.len() as i64), number(all as i64));
        say(&format!("{some} of {all} results; --limit or another --format shows more"));
    } else if format == Format::Table {
        say(&count(shown.len() as i64, "result", "results"));
    }
    if let Some(batch) = &which.batch
        && jobs.is_empty()
        && desk.batch_counts(batch).await.context("failed to look at the batch")?.total() == 0
    {
        say(&format!("no job has batch \"{batch}\""));
    }
    if redacted > 0 && format == Format::Table {
        let prompts = if redacted == 1 { "prompt was" } else { "prompts were" };
        say(&format!("{} {prompts} redacted; promptmill show JOB tells when", number(redacted)));
    }
    if let Some(job) = jobs.iter().find(|job| !args.jobs.is_empty() && shown.binary_search(job).is_err()) {
        say(&format!("job {job} has no result; promptmill show {job} tells where it is"));
        return Ok(Exit::Failure);
    }
    Ok(Exit::Good)
}

/// Which results are written, in this order.
struct Listed {
    jobs: Vec<JobId>,
    /// How many there would be without a limit.
    all: usize,
    /// Those of the order of `seq`: the highest that is written.
    seq_max: Option<i64>,
}

impl Listed {
    /// Lists the results of these jobs, or of all that match, in the order of the jobs.
    async fn by_job(
        desk: &dyn Desk,
        which: &ResultFilter,
        jobs: &[i64],
        limit: usize,
    ) -> anyhow::Result<Self> {
        let mut jobs: Vec<JobId> = jobs.iter().copied().map(JobId).collect();
        if jobs.is_empty() {
            jobs = desk.result_ids(which).await.context("failed to list the results")?;
        }
        jobs.sort_unstable();
        jobs.dedup();
        let all = jobs.len();
        jobs.truncate(limit);
        Ok(Self { jobs, all, seq_max: None })
    }

    /// Lists those with a higher `seq`, in its order: the last that is written tells where to go on.
    async fn after(desk: &dyn Desk, which: &ResultFilter, after: i64, limit: usize) -> anyhow::Result<Self> {
        let mut found: Vec<(i64, JobId)> = Vec::new();
        loop {
            let from = found.last().map_or(after, |(seq, _)| *seq);
            let more = desk.results_after(which, from, FOLLOW_MAX).await;
            let more = more.context("failed to list the results")?;
            let is_all = (more.len() as i64) < FOLLOW_MAX;
            found.extend(more);
            if is_all {
                break;
            }
        }
        let all = found.len();
        found.truncate(limit);
        let seq_max = found.last().map_or(after, |(seq, _)| *seq);
        Ok(Self { jobs: found.into_iter().map(|(_, job)| job).collect(), all, seq_max: Some(seq_max) })
    }

    /// Reads some of them, in their order.
    async fn read(&self, desk: &dyn Desk, jobs: &[JobId], texts: Texts) -> anyhow::Result<Vec<ResultRow>> {
        let mut rows = read(desk, jobs, texts).await?;
        if let Some(seq_max) = self.seq_max {
            // One that ran again since it was listed comes with the next look: what lies between is not known yet.
            rows.retain(|row| row.seq <= seq_max);
            rows.sort_unstable_by_key(|row| row.seq);
        }
        Ok(rows)
    }
}

/// Writes these results; returns the jobs that have one, in order, and how many were redacted.
async fn write(
    desk: &dyn Desk,
    listed: &Listed,
    format: Format,
    target: &mut Target,
) -> anyhow::Result<(Vec<JobId>, i64)> {
    let jobs = &listed.jobs;
    let (mut shown, mut redacted) = (Vec::with_capacity(jobs.len()), 0);
    // A table is written when it is whole.
    let beside =
        if target.is_terminal() && format != Format::Table { Beside::Output } else { Beside::Nothing };
    let mut progress = Progress::begin("results", Some(jobs.len() as u64), beside);
    if format == Format::Table {
        let mut table = format::Lines::new();
        for jobs in jobs.chunks(STARTS_MAX) {
            for row in listed.read(desk, jobs, Texts::Start).await? {
                table.push(&row);
                redacted += i64::from(row.redacted_at.is_some());
                shown.push(row.job);
            }
            progress.add(jobs.len() as u64);
        }
        drop(progress);
        if target.is_terminal() {
            table.fit();
        }
        target.text(&table.to_text())?;
        return Ok((shown, redacted));
    }
    target.text(&format::head(format)?)?;
    for jobs in jobs.chunks(WHOLE_MAX) {
        for row in listed.read(desk, jobs, Texts::Whole).await? {
            target.text(&format::row(format, &row)?)?;
            shown.push(row.job);
        }
        progress.add(jobs.len() as u64);
    }
    Ok((shown, redacted))
}

async fn read(desk: &dyn Desk, jobs: &[JobId], texts: Texts) -> anyhow::Result<Vec<ResultRow>> {
    desk.results(jobs, texts).await.context("failed to read results")
}

async fn follow(
    desk: &dyn Desk,
    which: &ResultFilter,
    after: i64,
    format: Format,
    mut target: Target,
) -> anyhow::Result<Exit> {
    if let Some(batch) = &which.batch
        && desk.batch_counts(batch).await.context("failed to look at the batch")?.total() == 0
    {
        return Err(Stop::failure(format!("no job has batch \"{batch}\"")));
    }
    target.text(&format::head(format)?)?;
    let mut follow = Follow::after(after);
    loop {
        // Looked at before the results: what was done by then is certainly among them.
        let open = match &which.batch {
            Some(batch) => desk.batch_counts(batch).await.context("failed to look at the batch")?.open(),
            None => i64::MAX,
        };
        let mut after = follow.floor(Instant::now());
        loop {
            let found =
                desk.results_after(which, after, FOLLOW_MAX).await.context("failed to follow the results")?;
            let Some((last, _)) = found.last() else { break };
            after = *last;
            let jobs = follow.fresh(&found, Instant::now());
            for jobs in jobs.chunks(WHOLE_MAX) {
                let texts = if format == Format::Table { Texts::Start } else { Texts::Whole };
                for row in read(desk, jobs, texts).await? {
                    target.text(&format::row(format, &row)?)?;
                }
            }
            target.flush()?;
            if (found.len() as i64) < FOLLOW_MAX {
                break;
            }
        }
        if open == 0 {
            target.finish()?;
            return Ok(Exit::Good);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
