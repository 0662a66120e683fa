//! `promptmill purge`: erases done jobs, or only what they asked, from the tables and the spool.
//!
//! In small steps, each a transaction of its own, so that daemons go on meanwhile; what was begun is
//! finished by the same command given again. The files of this host come last: whatever they say of a job
//! that is no longer in the table goes.

mod spool;

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, SpanRelativeTo, Timestamp};
use serde_json::json;

use self::spool::Swept;
use super::exit::{Exit, Stop};
use super::open::{Absent, Context, desk_of};
use super::out::{Out, count, number, say};
use super::which::{check_exists, job_id};
use crate::domain::job::JobId;
use crate::domain::retention::{DoneJob, Erasure, Steps};
use crate::store::{Before, Desk, Moment, PurgeFilter, StateCounts};

/// Others get at least so long between two steps.
const REST_MIN: Duration = Duration::from_millis(5);
/// Jobs that somebody holds are tried again after so long.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// How often.
const TRIES: u32 = 3;
/// Fewer jobs are gone before a bar could be read.
const BAR_MIN: usize = 2_000;

/// Erases done jobs with everything that belongs to them: what was asked, answers, ledger and tool calls,
/// also from the spool files of this host. With --redact only what was asked goes: prompt, system and
/// params; answers and ledger stay, and the job cannot run again.
///
/// Options narrow each other: --batch B --before 30d means jobs of B that ended more than 30 days ago.
/// How many that is is said first, and asked for on a terminal. Jobs that are not done are refused:
/// cancel them first, or leave them with --done-only. It cannot be undone.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Args {
    /// Jobs, by id
    #[arg(value_name = "JOB", value_parser = job_id)]
    jobs: Vec<i64>,
    /// Jobs of this batch
    #[arg(long, short, value_name = "LABEL")]
    batch: Option<String>,
    /// Jobs of this queue
    #[arg(long, value_name = "QUEUE")]
    queue: Option<String>,
    /// The job with this key; may be given several times
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
    /// Jobs that ended before a time (2026-11-01, 2026-11-01T08:00:00Z) or so long ago (30d, 12h), by the
    /// clock of the database
    #[arg(long, value_name = "TIME|DURATION", value_parser = before)]
    before: Option<Before>,
    /// Erase only what was asked, and keep answers and ledger
    #[arg(long)]
    redact: bool,
    /// Leave jobs that are not done as they are, instead of refusing
    #[arg(long)]
    done_only: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Only say how many it would be
    #[arg(long)]
    dry_run: bool,
}

/// What became of the jobs.
#[derive(Debug, Default)]
struct Purged {
    erased: u64,
    /// Jobs that somebody held all the time, or that were run again.
    left: u64,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let names_none = args.jobs.is_empty() && args.key.is_empty() && args.batch.is_none();
    if names_none && args.queue.is_none() && args.before.is_none() {
        return Err(Stop::usage(
            "say which jobs: promptmill purge JOB…, --batch LABEL, --queue QUEUE, --key KEY, or --before TIME",
        ));
    }
    let config = context.load()?;
    let opened = context.opened(&config, Absent::Refuse).await?;
    let desk = desk_of(&opened);
    let what = if args.redact { Erasure::Prompts } else { Erasure::Jobs };
    let (jobs, missing) = find(args, &*desk, what).await?;
    for sentence in &missing {
        say(sentence);
    }
    let mut purged = Purged::default();
    if !jobs.is_empty() {
        let verb = if args.dry_run { "would" } else { "will" };
        say(&announcement(jobs.len(), what, verb));
        if !args.dry_run {
            agree(args.yes)?;
            purged = erase(&*desk, what, &jobs).await?;
        }
    }
    let swept = if args.dry_run || args.redact {
        Swept::default()
    } else {
        spool::sweep(config.worker.state_dir.as_deref(), opened.store.database_id(), &*desk).await?
    };
    report(args, context, jobs.len(), &purged, &swept)?;
    let all = missing.is_empty() && purged.left == 0 && swept.is_clean();
    Ok(if all { Exit::Good } else { Exit::Failure })
}

/// Returns the jobs that are meant, and a sentence for each name that is nobody's.
async fn find(args: &Args, desk: &dyn Desk, what: Erasure) -> anyhow::Result<(Vec<DoneJob>, Vec<String>)> {
    let mut missing = Vec::new();
    let mut which = PurgeFilter {
        jobs: args.jobs.clone(),
        batch: args.batch.clone(),
        queue: args.queue.clone(),
        before: args.before,
    };
    for key in &args.key {
        match desk.job_of_key(key).await.context("failed to look for the key")? {
            Some(job) => which.jobs.push(job.0),
            None => missing.push(format!("no job has the key \"{key}\"")),
        }
    }
    which.jobs.sort_unstable();
    which.jobs.dedup();
    let is_named = !(args.jobs.is_empty() && args.key.is_empty());
    if let Err(error) = check_exists(desk, args.batch.as_deref(), args.queue.as_deref()).await {
        let Some(stop) = error.downcast_ref::<Stop>() else { return Err(error) };
        missing.push(stop.sentence.clone());
        return Ok((Vec::new(), missing));
    }
    if is_named && which.jobs.is_empty() {
        return Ok((Vec::new(), missing));
    }
    missing.extend(absent(args, desk).await?);
    if args.before.is_none() && !args.done_only {
        let open = desk.unfinished(&which).await.context("failed to look for jobs that are not done")?;
        if open.open() > 0 {
            return Err(Stop::failure(refusal(&open)));
        }
    }
    let jobs = desk.purgeable(&which, what).await.context("failed to look for the jobs")?;
    Ok((jobs, missing))
}

/// A sentence for each id that no job has.
async fn absent(args: &Args, desk: &dyn Desk) -> anyhow::Result<Vec<String>> {
    let ids: Vec<_> = args.jobs.iter().copied().map(JobId).collect();
    let there = desk.outcomes(&ids).await.context("failed to look at the jobs")?;
    let is_there = |id: &JobId| there.iter().any(|(job, _)| job == id);
    Ok(ids.iter().filter(|id| !is_there(id)).map(|id| format!("job {id} does not exist")).collect())
}

fn refusal(open: &StateCounts) -> String {
    let states = [
        (open.pending, "pending"),
        (open.scheduled, "scheduled"),
        (open.running, "running"),
        (open.waiting, "waiting"),
    ];
    let states: Vec<String> = states
        .iter()
        .filter(|(jobs, _)| *jobs > 0)
        .map(|(jobs, state)| format!("{} {state}", number(*jobs)))
        .collect();
    format!(
        "{} of these {} not done ({}): nothing was erased; end them with `promptmill cancel` first, or leave them \
         with --done-only",
        count(open.open(), "job", "jobs"),
        if open.open() == 1 { "is" } else { "are" },
        states.join(", ")
    )
}

fn announcement(jobs: usize, what: Erasure, verb: &str) -> String {
    let one = jobs == 1;
    let jobs = count(jobs as i64, "done job", "done jobs");
    match what {
        Erasure::Jobs => format!(
            "{jobs} {verb} be erased, with {} answers, ledger and all that belongs to {}",
            if one { "its" } else { "their" },
            if one { "it" } else { "them" }
        ),
        Erasure::Prompts => format!(
            "what {jobs} asked {verb} be erased; answers and ledger stay, and {} cannot run again",
            if one { "it" } else { "they" }
        ),
    }
}

/// Asks on a terminal.
fn agree(yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Stop::usage("there is no terminal to ask on: add --yes, or --dry-run to only count"));
    }
    write!(io::stderr().lock(), "It cannot be undone. Go on? Type yes: ").context("failed to ask")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("failed to read the answer")?;
    if matches!(answer.trim(), "yes" | "y") { Ok(()) } else { Err(Stop::failure("nothing was erased")) }
}

async fn erase(desk: &dyn Desk, what: Erasure, jobs: &[DoneJob]) -> anyhow::Result<Purged> {
    let bar = bar(jobs.len());
    let (mut purged, mut steps) = (Purged::default(), Steps::default());
    let mut jobs = jobs.to_vec();
    for again in 0..=TRIES {
        if again > 0 {
            tokio::time::sleep(TRY_AGAIN).await;
        }
        let mut left = Vec::new();
        let mut rest = jobs.as_slice();
        while !rest.is_empty() {
            let step = steps.next(rest);
            rest = &rest[step.len()..];
            let gone = desk.purge(what, step).await.with_context(|| {
                format!("failed after {} were erased; the same command goes on", purged.erased)
            })?;
            steps.took(gone.took, !rest.is_empty());
            purged.erased += gone.jobs.len() as u64;
            left.extend(step.iter().filter(|done| !gone.jobs.contains(&done.job)).copied());
            bar.inc(gone.jobs.len() as u64);
            tokio::time::sleep(gone.took.max(REST_MIN)).await;
        }
        jobs = left;
        if jobs.is_empty() {
            break;
        }
    }
    bar.finish_and_clear();
    purged.left = jobs.len() as u64;
    Ok(purged)
}

fn bar(jobs: usize) -> ProgressBar {
    let bar = ProgressBar::new(jobs as u64);
    if jobs < BAR_MIN || !io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {human_pos}/{human_len} jobs, {eta} left") {
        bar.set_style(style);
    }
    bar
}

fn report(
    args: &Args,
    context: &Context,
    matched: usize,
    purged: &Purged,
    swept: &Swept,
) -> anyhow::Result<()> {
    if context.json {
        let mut out = Out::stdout();
        let object = json!({
            "matched": matched, "erased": purged.erased, "left": purged.left, "redact": args.redact,
            "spool_lines": swept.lines, "spool_lines_held": swept.held, "dry_run": args.dry_run,
        });
        out.line(&object.to_string())?;
        out.flush()?;
    }
    if matched == 0 {
        say("no done job to erase");
    } else if !args.dry_run {
        let verb = if args.redact { "redacted" } else { "erased" };
        say(&format!("{} {verb}", count(purged.erased as i64, "job", "jobs")));
    }
    if purged.left > 0 {
        say(&format!(
            "{} left: somebody changes them just now, or they were run again; the same command goes on",
            count(purged.left as i64, "job is", "jobs are")
        ));
    }
    swept.tell();
    Ok(())
}

/// Reads a time or how long ago it was; for clap.
fn before(word: &str) -> Result<Before, String> {
    const KNOWN: &str =
        "give a time such as 2026-11-01 or 2026-11-01T08:00:00Z (UTC), or how long ago: 30d, 12h";
    let word = word.trim();
    if let Ok(time) = word.parse::<Timestamp>() {
        return Ok(Before::At(Moment(time.as_millisecond())));
    }
    if let Ok(date) = word.parse::<Date>()
        && let Ok(day) = date.to_zoned(TimeZone::UTC)
    {
        return Ok(Before::At(Moment(day.timestamp().as_millisecond())));
    }
    let span: Span = word.parse().map_err(|_| KNOWN.to_owned())?;
    let ago = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| format!("months and years differ in length: {KNOWN}"))?;
    Duration::try_from(ago).map(Before::Ago).map_err(|_| KNOWN.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_or_how_long_ago_is_read() {
        let day = Duration::from_hours(24);
        for (word, meant) in [
            ("30d", Before::Ago(day * 30)),
            ("2w", Before::Ago(day * 14)),
            ("1d12h", Before::Ago(day * 3 / 2)),
            ("0d", Before::Ago(Duration::ZERO)),
            ("90m", Before::Ago(Duration::from_mins(90))),
            ("1970-01-02", Before::At(Moment(86_400_000))),
            ("1970-01-01T01:00:00+01:00", Before::At(Moment(0))),
        ] {
            assert_eq!(before(word), Ok(meant), "{word}");
        }
        for word in ["", "30", "-1d", "1 month", "yesterday", "2026-13-01"] {
            assert!(before(word).is_err(), "{word}: {:?}", before(word));
        }
    }

    #[test]
    fn what_is_not_done_is_named_by_its_state() {
        let open = StateCounts { pending: 2, running: 1, ..StateCounts::default() };
        assert!(refusal(&open).starts_with("3 jobs of these are not done (2 pending, 1 running)"));
    }
}
