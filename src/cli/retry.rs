//! `promptmill retry`: runs done jobs again, and scheduled ones now.

use serde_json::json;

use super::exit::{Exit, Stop};
use super::open::{Absent, Context};
use super::out::{Out, count, say};
use super::which::{Change, Only, Which, outcome};
use crate::domain::outcome::Outcome;

/// Runs jobs again: their result is deleted, their ledger is kept, and their run counts one more.
///
/// Jobs named by id run again however they ended, and at once where they are scheduled. With --batch,
/// --queue or --all: those that ended neither complete nor cancelled, unless --outcome says which;
/// --error-type narrows them to those that failed so. A job that was redacted has nothing to ask any more,
/// and stays as it is.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Only jobs that ended so; may be given several times
    #[arg(long, value_name = "OUTCOME", value_parser = outcome, value_delimiter = ',', conflicts_with = "jobs")]
    outcome: Vec<String>,
    /// Only jobs whose result names this type of an error, such as connection; may be given several times
    #[arg(long, value_name = "TYPE", value_delimiter = ',', conflicts_with = "jobs")]
    error_type: Vec<String>,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let narrowed = [("--outcome", &args.outcome), ("--error-type", &args.error_type)];
    if let Some((option, _)) = narrowed.into_iter().find(|(_, words)| !words.is_empty())
        && args.which.check("retry").is_err()
    {
        let whose = "--batch LABEL, --queue QUEUE, or --all";
        return Err(Stop::usage(format!("say whose jobs beside {option}: {whose}")));
    }
    args.which.check("retry")?;
    let outcomes = if args.outcome.is_empty() {
        Outcome::ALL
            .iter()
            .filter(|outcome| !matches!(outcome, Outcome::Complete | Outcome::Cancelled))
            .map(|outcome| outcome.as_str().to_owned())
            .collect()
    } else {
        args.outcome.clone()
    };
    let desk = context.desk(Absent::Refuse).await?;
    let only = Only { states: &["done"], outcomes, error_types: args.error_type.clone() };
    let changed = args.which.change(&*desk, Change::RunAgain, only).await?;
    if context.json {
        let mut out = Out::stdout();
        let missing: Vec<i64> = changed.missing.iter().map(|job| job.0).collect();
        let object = json!({
            "retried": changed.done, "still_open": changed.left, "redacted": changed.redacted, "missing": missing,
            "dry_run": args.which.dry_run,
        });
        out.line(&object.to_string())?;
        out.flush()?;
    }
    let jobs = count(changed.done as i64, "job", "jobs");
    let left = if changed.left > 0 {
        format!(", {} not done yet", count(changed.left as i64, "job", "jobs"))
    } else {
        String::new()
    };
    let redacted = if changed.redacted > 0 {
        format!(", {} redacted and left as they are", count(changed.redacted as i64, "job", "jobs"))
    } else {
        String::new()
    };
    let verb = match (args.which.dry_run, changed.done) {
        (true, _) => "would run again",
        (false, 1) => "runs again",
        (false, _) => "run again",
    };
    say(&format!("{jobs} {verb}{left}{redacted}"));
    let all_named = changed.missing.is_empty() && (args.which.jobs.is_empty() || changed.redacted == 0);
    Ok(if all_named { Exit::Good } else { Exit::Failure })
}
