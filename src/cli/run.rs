//! `promptmill run`: the daemon, or with `--drain` one pass.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::exit::{Exit, Stop};
use super::mill;
use super::watch::Watch;
use crate::claude::Claude;
use crate::config::{Config, NO_KEY};
use crate::domain::outcome::Outcome;
use crate::store::{Backlog, Migrate};
use crate::worker::{End, Report, Signals};

/// Takes prompts from `jobs` to the API and brings the answers to `results`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Leave when nothing is pending or running, nor due within `worker.drain_horizon_seconds`
    #[arg(long)]
    pub drain: bool,
    /// Only this queue; may be given several times
    #[arg(long = "queue", value_name = "QUEUE")]
    pub queues: Vec<String>,
    /// Calls in flight, over `worker.concurrency`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub concurrency: Option<u32>,
}

/// Runs until told to stop, or until drained.
pub async fn run(args: &RunArgs, config: &Config) -> anyhow::Result<Exit> {
    if config.api.needs_key() && config.api.key.read().context("failed to read the key")?.is_none() {
        return Err(Stop { exit: Exit::Credentials, sentence: NO_KEY.to_owned() }.into());
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let signals = Signals::default();
    listen(&signals)?;
    let claude: Arc<dyn Claude> = Arc::new(mill::claude(config)?);
    let opened = super::open::open(config, Migrate::Serve).await?;
    let mut settings = mill::settings(config);
    settings.drain = args.drain.then_some(config.worker.drain_horizon);
    settings.queues.clone_from(&args.queues);
    if let Some(concurrency) = args.concurrency {
        settings.concurrency = concurrency as usize;
    }
    let watch = (args.drain && std::io::stderr().is_terminal()).then(|| Watch::start(opened.desk.clone()));
    let started = Instant::now();
    let report = crate::worker::run(opened.store, claude, settings, mill::defaults(config), signals).await;
    if let Some(watch) = watch {
        watch.finish().await;
    }
    let report = report.context("failed to start the worker")?;
    Ok(tell(&report, started.elapsed()))
}

/// The first SIGTERM or SIGINT stops, the second exits at once; SIGHUP reads the key file again.
fn listen(signals: &Signals) -> anyhow::Result<()> {
    let what = "failed to listen for signals";
    let mut term = signal(SignalKind::terminate()).context(what)?;
    let mut int = signal(SignalKind::interrupt()).context(what)?;
    let mut hup = signal(SignalKind::hangup()).context(what)?;
    let signals = signals.clone();
    // It lives as long as the process does; what it holds is a token and a bell.
    #[expect(clippy::disallowed_methods, reason = "ends with the process, and cannot panic")]
    tokio::spawn(async move {
        loop {
            let stop = tokio::select! {
                _ = term.recv() => 143,
                _ = int.recv() => 130,
                _ = hup.recv() => {
                    signals.reload.notify_one();
                    continue;
                }
            };
            if signals.stop.is_cancelled() {
                std::process::exit(stop);
            }
            tracing::info!("stopping: nothing more is claimed; a second signal exits at once");
            signals.stop.cancel();
        }
    });
    Ok(())
}

/// Says what came of it in one or two lines, and with which code to exit.
fn tell(report: &Report, took: Duration) -> Exit {
    let total: u64 = report.outcomes.iter().map(|(_, many)| many).sum();
    let list: Vec<String> = report.outcomes.iter().map(|(outcome, many)| format!("{many} {outcome}")).collect();
    let list = if list.is_empty() { String::new() } else { format!(": {}", list.join(", ")) };
    eprintln!("{total} {} ended in {:.1} s{list}", if total == 1 { "job" } else { "jobs" }, took.as_secs_f64());
    let complete = report.outcomes.iter().all(|(outcome, _)| *outcome == Outcome::Complete);
    match &report.end {
        End::Stopped => Exit::Good,
        End::Drained(left) => {
            say_left(left);
            if complete { Exit::Good } else { Exit::NotComplete }
        }
        End::Blocked(left) => {
            say_left(left);
            eprintln!("what is left stands behind a blocked gate: see the table gates for the reason");
            Exit::LeftBehind
        }
        End::KeyRefused(why) => {
            eprintln!("{why}");
            Exit::Credentials
        }
        End::Unwritten => {
            eprintln!("some jobs could not be written to the database in time: they will be run again");
            Exit::Failure
        }
    }
}

fn say_left(left: &Backlog) {
    let kinds = [
        (left.pending + left.blocked, "behind a gate"),
        (left.soon + left.later, "scheduled for later"),
        (left.paused, "in paused queues"),
        (left.waiting, "waiting for tool results"),
    ];
    let list: Vec<String> =
        kinds.iter().filter(|(many, _)| *many > 0).map(|(many, what)| format!("{many} {what}")).collect();
    if !list.is_empty() {
        eprintln!("left: {}", list.join(", "));
    }
}
