//! `promptmill pause`: keeps a queue or a batch from being claimed; what runs runs to its end.
//!
//! A queue is paused in `queues`, a batch by its gate: both are what an operator could do in SQL.

use anyhow::Context as _;
use serde_json::json;

use super::exit::{Exit, Stop};
use super::open::{Absent, Context};
use super::out::{Out, count, say};
use super::which::unknown_queue;
use crate::store::{Desk, Flow};

/// Keeps queues or a batch from being worked on. Running jobs run to their end; `promptmill resume`
/// lets the rest flow again. Daemons obey within two seconds.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    what: What,
}

/// What to pause or resume.
#[derive(Debug, clap::Args)]
pub struct What {
    /// Queues, by name
    #[arg(value_name = "QUEUE", conflicts_with_all = ["batch", "all"])]
    queues: Vec<String>,
    /// A queue, by name; may be given several times
    #[arg(long = "queue", value_name = "QUEUE", conflicts_with_all = ["batch", "all"])]
    queue: Vec<String>,
    /// A batch, by label
    #[arg(long, short, value_name = "LABEL", conflicts_with = "all")]
    batch: Option<String>,
    /// All queues
    #[arg(long)]
    all: bool,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    set(&args.what, Flow::Paused, context).await
}

/// Pauses or resumes.
pub async fn set(what: &What, flow: Flow, context: &Context) -> anyhow::Result<Exit> {
    let (command, done) = match flow {
        Flow::Paused => ("pause", "paused"),
        Flow::Flowing => ("resume", "resumed"),
    };
    let mut names: Vec<String> = what.queues.iter().chain(&what.queue).cloned().collect();
    names.sort();
    names.dedup();
    if names.is_empty() && what.batch.is_none() && !what.all {
        return Err(Stop::usage(format!("say what: promptmill {command} QUEUE…, --batch LABEL, or --all")));
    }
    let desk = context.desk(Absent::Refuse).await?;
    let (object, sentence) = if let Some(batch) = &what.batch {
        let queues = set_batch(&*desk, batch, flow).await?;
        (
            json!({"batch": batch, "queues": queues, "state": done}),
            match queues.as_slice() {
                [] => format!("batch {batch} was not stopped"),
                queues => format!(
                    "batch {batch} {done} in {}: {}",
                    count(queues.len() as i64, "queue", "queues"),
                    queues.join(", ")
                ),
            },
        )
    } else {
        let known = desk.queue_names().await.context("failed to look at the queues")?;
        if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
            return Err(unknown_queue(unknown, &known));
        }
        let queues =
            desk.set_queues(&names, flow).await.with_context(|| format!("failed to {command} queues"))?;
        let sentence =
            format!("{} {done}: {}", count(queues.len() as i64, "queue", "queues"), queues.join(", "));
        (json!({"queues": queues, "state": done}), sentence)
    };
    if context.json {
        let mut out = Out::stdout();
        out.line(&object.to_string())?;
        out.flush()?;
    }
    say(sentence.trim_end_matches(": "));
    Ok(Exit::Good)
}

async fn set_batch(desk: &dyn Desk, batch: &str, flow: Flow) -> anyhow::Result<Vec<String>> {
    let jobs = desk.batch_counts(batch).await.context("failed to look at the batch")?;
    if jobs.total() == 0 {
        return Err(Stop::failure(format!("no job has batch \"{batch}\"")));
    }
    if flow == Flow::Paused && jobs.open() == 0 {
        return Err(Stop::failure(format!(
            "all {} jobs of batch \"{batch}\" are done: nothing to pause",
            jobs.done
        )));
    }
    desk.set_batch(batch, flow).await.with_context(|| format!("failed to change batch {batch}"))
}
