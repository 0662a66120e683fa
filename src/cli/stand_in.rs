//! `promptmill stand-in`: the stand-in API as a server of its own, until it is interrupted.
//!
//! Reads no environment and no configuration file.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;

use super::out::say;
use crate::stand_in::{Counts, Options, StandIn};

/// Serves a stand-in for the Claude Messages API on this machine.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Markers in a prompt script the answer: [[tokens 5000]], [[error 529 x2]], [[cut after=30 x1]], \
                        [[stop refusal]], … docs/stand-in.md lists them all.\nAny key is accepted but \"bad-key\". \
                        GET /stand-in/calls shows what was asked, POST /stand-in/reset forgets it."
)]
pub struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8787")]
    listen: SocketAddr,
    /// Requests a minute, for each line of models [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rpm: Option<u64>,
    /// Input tokens a minute, for each line of models [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    itpm: Option<u64>,
    /// Output tokens a minute, for each line of models [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    otpm: Option<u64>,
    /// The limits' buckets hold what comes in so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=60))]
    burst_seconds: u64,
    /// Keep the limits without a header that speaks of them, not even after a 429
    #[arg(long)]
    limits_unsaid: bool,
    /// Milliseconds before the first event of every answer
    #[arg(long, value_name = "MS", default_value_t = 0)]
    delay_ms: u64,
    /// Milliseconds between the pieces of every answer
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pace_ms: u64,
    /// List no models: 404, as compatible servers do that have no list
    #[arg(long)]
    no_models: bool,
    /// Count no tokens: 404, as compatible servers do that cannot
    #[arg(long)]
    no_count_tokens: bool,
    /// How many of the last calls /stand-in/calls lists
    #[arg(long, value_name = "N", default_value_t = 1000)]
    calls_kept: usize,
}

/// Runs until SIGINT or SIGTERM. The URL goes to stdout, for scripts; the words to stderr.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let listen = args.listen;
    let running = StandIn::start(Options {
        listen,
        rpm: args.rpm,
        itpm: args.itpm,
        otpm: args.otpm,
        burst: Duration::from_secs(args.burst_seconds),
        limits_said: !args.limits_unsaid,
        delay: Duration::from_millis(args.delay_ms),
        pace: Duration::from_millis(args.pace_ms),
        models: !args.no_models,
        count_tokens: !args.no_count_tokens,
        calls_kept: args.calls_kept,
        ..Options::default()
    })
    .await
    .with_context(|| format!("cannot listen on {listen}; choose another address with --listen"))?;
    let url = running.url();
    let mut out = std::io::stdout();
    writeln!(out, "{url}").and_then(|()| out.flush()).context("cannot write the URL to stdout")?;
    say("The stand-in is there. In another shell:\n");
    say(&format!("    ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=any promptmill run\n"));
    say(&format!("What it was asked: {url}/stand-in/calls. Stop it with Ctrl-C."));
    interrupted().await?;
    say(&summary(&running.counts()));
    Ok(())
}

async fn interrupted() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result.context("cannot wait for Ctrl-C"),
        _ = terminate.recv() => Ok(()),
    }
}

fn summary(counts: &Counts) -> String {
    let mut answers: Vec<String> =
        counts.by_answer.iter().map(|(answer, count)| format!("{count} {answer}")).collect();
    if answers.is_empty() {
        answers.push("none".to_owned());
    }
    format!(
        "{} calls ({}), {} input and {} output tokens",
        counts.total,
        answers.join(", "),
        counts.input_tokens,
        counts.output_tokens
    )
}
