//! `promptmill cancel`: ends jobs that are not done, with the outcome `cancelled`.
//!
//! No daemon is needed for it; one that is talking for such a job stops within a heartbeat.

use serde_json::json;

use super::exit::Exit;
use super::open::{Absent, Context};
use super::out::{Out, count, say};
use super::which::{Change, Only, Which};

/// Cancels jobs that are not done: pending, scheduled, running and waiting ones. Done ones are left
/// as they are.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: Which,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    args.which.check("cancel")?;
    let desk = context.desk(Absent::Refuse).await?;
    let open = Only { states: &["pending", "scheduled", "running", "waiting"], ..Only::default() };
    let changed = args.which.change(&*desk, Change::Cancel, open).await?;
    if context.json {
        let mut out = Out::stdout();
        let missing: Vec<i64> = changed.missing.iter().map(|job| job.0).collect();
        let object = json!({
            "cancelled": changed.done, "already_done": changed.left, "missing": missing, "dry_run": args.which.dry_run,
        });
        out.line(&object.to_string())?;
        out.flush()?;
    }
    let jobs = count(changed.done as i64, "job", "jobs");
    let left = if changed.left > 0 {
        format!(", {} already done", count(changed.left as i64, "job", "jobs"))
    } else {
        String::new()
    };
    let verb = if args.which.dry_run { "would be cancelled" } else { "cancelled" };
    say(&format!("{jobs} {verb}{left}"));
    Ok(if changed.missing.is_empty() { Exit::Good } else { Exit::Failure })
}
