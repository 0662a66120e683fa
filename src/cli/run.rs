//! `promptmill run`: the daemon, or with `--drain` one pass.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Stop};
use super::files;
use super::mill;
use super::open::{Context, desk_of, open};
use super::watch::Watch;
use crate::claude::http::{ClaudeSettings, HttpClaude};
use crate::config::{Config, Flags, Surroundings};
use crate::domain::outcome::Outcome;
use crate::store::{Backlog, Migrate};
use crate::telemetry::{Lines, Spans};
use crate::worker::profiles::{Profile, Profiles};
use crate::worker::record::Unwritten;
use crate::worker::{End, Report, Signals};

/// How long the last lines may take to be written: nobody may be reading them.
const LAST_LINES: Duration = Duration::from_millis(500);

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
    /// Show the web page, over `web.listen` [without an address: 127.0.0.1:8020]
    #[arg(long, value_name = "ADDRESS:PORT", num_args = 0..=1, default_missing_value = super::web::LISTEN)]
    pub web: Option<String>,
}

/// Runs until told to stop, or until drained.
pub async fn run(args: &RunArgs, context: &Context) -> anyhow::Result<Exit> {
    let concurrency = args.concurrency.map(|calls| calls as usize);
    let settings = args.web.iter().map(|listen| ("web.listen".to_owned(), listen.clone())).collect();
    let config = &context.load_with(&Flags { concurrency, settings, ..context.flags() })?;
    let log = crate::telemetry::init(&config.log)?;
    // Boxed: the whole mill is in this future.
    let done = Box::pin(run_on(args, config, &log)).await;
    // The sentence of an error is said after all that was logged.
    log.finish(LAST_LINES);
    done
}

async fn run_on(args: &RunArgs, config: &Config, log: &Lines) -> anyhow::Result<Exit> {
    let profiles = mill::profiles(config)?;
    if let Some(sentence) = no_key(config, &profiles, &args.queues) {
        return Err(Stop { exit: Exit::Credentials, sentence }.into());
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let signals = Signals::default();
    listen(&signals)?;
    let face = super::metrics::Face::show(config, Arc::clone(&signals.vitals)).await?;
    let stop = signals.stop.clone();
    let page_stop = CancellationToken::new();
    let (to_page, daemons) = oneshot::channel();
    let mut pages = JoinSet::new();
    // Before the database: while that is not there, the page says so.
    if let Some(page) = super::web::bind(config).await? {
        tracing::info!("the web page is at {}", page.url());
        let (config, stop) = (config.clone(), page_stop.clone());
        pages.spawn(async move { page.serve_beside(&config, daemons, stop).await });
    }
    // Nothing was begun that could be left half-way: a connection that is being opened is just closed.
    let Some(opened) = stop.run_until_cancelled(open(config, Migrate::Serve)).await else {
        return Ok(Exit::Good);
    };
    let opened = opened?;
    // Nobody waits for it where there is no page.
    to_page.send(opened.database.clone()).ok();
    face.reads(&opened.database);
    let mut settings = mill::settings(config);
    if let Some(calls) = files::calls_max(config.database.store.connections_max)
        && calls < settings.concurrency
    {
        tracing::warn!(
            "this process may open only so many files (ulimit -n) that {calls} calls fit: worker.concurrency \
             {} is more than that",
            settings.concurrency
        );
        settings.concurrency = calls;
    }
    settings.drain = args.drain.then_some(config.worker.drain_horizon);
    settings.queues.clone_from(&args.queues);
    // What the watch asks is not fit for a pooler in transaction mode.
    let watched = args.drain && std::io::stderr().is_terminal() && !config.database.store.transaction_pooler;
    let watch = watched.then(|| Watch::start(desk_of(&opened)));
    let spans = Spans::start(&config.otel);
    let signals = Signals { traces: spans.traces(), ..signals };
    let hurry = signals.hurry.clone();
    let started = Instant::now();
    let report = crate::worker::run(opened.store, profiles, settings, mill::defaults(config), signals).await;
    spans.finish(&hurry).await;
    page_stop.cancel();
    face.end().await;
    // Its readers have had their answer, or go without.
    tokio::time::timeout(LAST_LINES, pages.join_all()).await.ok();
    if let Some(watch) = watch {
        watch.finish().await;
    }
    let report = report.context("failed to start the worker")?;
    Ok(tell(log, &report, started.elapsed()))
}

/// Says which of the accounts that are used has no key and needs one.
fn no_key(config: &Config, profiles: &Profiles<Profile>, queues: &[String]) -> Option<String> {
    let used = profiles.used(queues);
    config
        .accounts()
        .filter(|account| used.iter().any(|&id| profiles[id].name == account.profile))
        .find_map(|account| Some(format!("{}{}", config.whose(account), account.no_key()?)))
}

/// Runs the demo on the built-in configuration: nothing of the environment, no file.
pub async fn demo(args: super::demo::Args) -> anyhow::Result<()> {
    let config = |database: &str, api: &str| {
        let settings = [("database.url", database), ("api.base_url", api), ("retry.base_ms", "200")];
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        Config::load_from(&Flags { settings, ..Flags::default() }, &Surroundings::default())
    };
    let prepare = async |database: &str| -> anyhow::Result<()> {
        open(&config(database, "http://127.0.0.1:1")?, Migrate::Serve).await?;
        Ok(())
    };
    let drain = async |database: &str, api: &str| -> anyhow::Result<()> {
        let config = config(database, api)?;
        let opened = open(&config, Migrate::Never).await?;
        // The stand-in takes any key, but it wants one.
        let claude =
            ClaudeSettings { key: Some("demo".into()), ..mill::claude_settings(&config, &config.api)? };
        let claude = Arc::new(HttpClaude::new(claude)?);
        let profiles = Profiles::new(mill::profile(&config, &config.api, claude));
        let mut settings = mill::settings(&config);
        settings.drain = Some(config.worker.drain_horizon);
        let defaults = mill::defaults(&config);
        let report =
            crate::worker::run(opened.store, profiles, settings, defaults, Signals::default()).await?;
        match report.end {
            End::Drained(_) => Ok(()),
            other => anyhow::bail!("the drain did not end as it should: {other:?}"),
        }
    };
    super::demo::run(args, prepare, drain).await
}

/// The first SIGTERM or SIGINT stops, the second stops running calls too, the third exits at once;
/// SIGHUP reads the key file again.
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
            if signals.hurry.is_cancelled() {
                crate::worker::tools::kill_all();
                std::process::exit(stop);
            }
            if signals.stop.is_cancelled() {
                tracing::info!(
                    "stopping running calls: what had arrived is kept; a third signal exits at once"
                );
                signals.hurry.cancel();
                continue;
            }
            tracing::info!("stopping: nothing more is claimed; a second signal stops running calls too");
            signals.stop.cancel();
        }
    });
    Ok(())
}

/// Says what came of it in one or two lines, and with which code to exit.
fn tell(log: &Lines, report: &Report, took: Duration) -> Exit {
    let total: u64 = report.outcomes.iter().map(|(_, many)| many).sum();
    let list: Vec<String> =
        report.outcomes.iter().map(|(outcome, many)| format!("{many} {outcome}")).collect();
    let list = if list.is_empty() { String::new() } else { format!(": {}", list.join(", ")) };
    log.say(&format!(
        "{total} {} ended in {:.1} s{list}",
        if total == 1 { "job" } else { "jobs" },
        took.as_secs_f64()
    ));
    let complete = report.outcomes.iter().all(|(outcome, _)| *outcome == Outcome::Complete);
    match &report.end {
        End::Stopped => Exit::Good,
        End::Drained(left) => {
            say_left(log, left);
            if complete { Exit::Good } else { Exit::NotComplete }
        }
        End::Blocked(left) => {
            say_left(log, left);
            log.say("what is left stands behind a blocked gate: see the table gates for the reason");
            Exit::LeftBehind
        }
        End::KeyRefused(why) => {
            log.say(why);
            Exit::Credentials
        }
        End::Outdated(why) => {
            log.say(why);
            Exit::Schema
        }
        End::Unwritten(left) => {
            say_unwritten(log, left);
            Exit::Failure
        }
    }
}

/// Says where what was paid for is now.
fn say_unwritten(log: &Lines, left: &Unwritten) {
    if left.in_file > 0 {
        let file = left.file.as_deref().unwrap_or(Path::new("the spool")).display();
        log.say(&format!(
            "the database did not take {} in time: kept in {file}, and settled at the next start",
            answers(left.in_file)
        ));
    }
    let lost = left.in_no_file();
    if lost > 0 {
        let whose = if lost == 1 { "its job" } else { "their jobs" };
        log.say(&format!("{} could not be kept: {whose} will be run again", answers(lost)));
    }
    if left.in_file + lost == 0 {
        log.say("some calls could not be ended in time: their jobs will be run again");
    }
}

fn answers(many: usize) -> String {
    if many == 1 { "1 answer".to_owned() } else { format!("{many} answers") }
}

fn say_left(log: &Lines, left: &Backlog) {
    let kinds = [
        (left.pending + left.blocked, "behind a gate"),
        (left.soon + left.later, "scheduled for later"),
        (left.paused, "in paused queues"),
        (left.waiting, "waiting for tool results"),
    ];
    let list: Vec<String> =
        kinds.iter().filter(|(many, _)| *many > 0).map(|(many, what)| format!("{many} {what}")).collect();
    if !list.is_empty() {
        log.say(&format!("left: {}", list.join(", ")));
    }
}
