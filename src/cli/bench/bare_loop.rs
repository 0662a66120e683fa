//! The floor under every drain: a loop of plain HTTP calls, with no queue and no database.
//!
//! It asks the same prompts, as many at once, streamed, and reads each answer to its end without
//! understanding it. It runs as a process of its own, as the mill does: `promptmill bench
//! --bare-loop URL`.

use std::io::Write as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, bail};
use reqwest::Client;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::prompt::{self, Steady};
use crate::claude::http::tls;

/// What the loop is told.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Loop {
    /// Runs the loop against this address, and nothing else
    #[arg(long = "bare-loop", value_name = "URL", hide = true)]
    pub(super) url: Option<String>,
    /// Calls of the loop
    #[arg(long, hide = true, default_value_t = 0)]
    pub(super) calls: usize,
    /// Calls of it at once
    #[arg(long, hide = true, default_value_t = 1)]
    pub(super) in_flight: usize,
    /// Bytes of its prompts
    #[arg(long, hide = true, default_value_t = 0)]
    pub(super) bytes: usize,
}

/// What the loop says at its end, as JSON on stdout.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Looped {
    /// Answers that were whole.
    pub(super) whole: usize,
    /// Bytes of all answers.
    pub(super) bytes: u64,
    /// Answers a second between the first and the last part of the run.
    pub(super) steady: Option<f64>,
}

/// Where the tasks of the loop meet.
struct Shared {
    client: Client,
    url: String,
    calls: usize,
    filler: String,
    next: AtomicUsize,
    done: AtomicUsize,
    bytes: AtomicU64,
    steady: Steady,
    ends: Mutex<[Option<Instant>; 2]>,
}

/// Returns a client for what is on this machine.
pub(super) fn client() -> anyhow::Result<Client> {
    let client = Client::builder()
        .tls_backend_preconfigured(tls()?)
        .http1_only()
        .tcp_nodelay(true)
        .no_proxy()
        .pool_max_idle_per_host(usize::MAX);
    Ok(client.build()?)
}

/// Runs the loop.
pub(super) async fn run(told: &Loop) -> anyhow::Result<()> {
    let url = told.url.as_deref().unwrap_or_default();
    let shared = Arc::new(Shared {
        client: client()?,
        url: format!("{url}/v1/messages"),
        calls: told.calls,
        filler: prompt::filler(told.bytes),
        next: AtomicUsize::new(1),
        done: AtomicUsize::new(0),
        bytes: AtomicU64::new(0),
        steady: Steady::of(told.calls),
        ends: Mutex::default(),
    });
    let mut tasks = JoinSet::new();
    for _ in 0..told.in_flight {
        let shared = Arc::clone(&shared);
        tasks.spawn(async move { shared.work().await });
    }
    while let Some(done) = tasks.join_next().await {
        done.context("the loop broke")??;
    }
    let ends = *shared.ends.lock().unwrap_or_else(PoisonError::into_inner);
    let steady = match ends {
        [Some(first), Some(last)] => shared.steady.rate(last.duration_since(first)),
        _ => None,
    };
    let looped = Looped {
        whole: shared.done.load(Ordering::Relaxed),
        bytes: shared.bytes.load(Ordering::Relaxed),
        steady,
    };
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&looped)?)?;
    Ok(())
}

impl Shared {
    async fn work(&self) -> anyhow::Result<()> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number > self.calls {
                return Ok(());
            }
            self.call(number).await?;
            let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some(end) = self.steady.end(done) {
                self.ends.lock().unwrap_or_else(PoisonError::into_inner)[end] = Some(Instant::now());
            }
        }
    }

    async fn call(&self, number: usize) -> anyhow::Result<()> {
        let body = format!(
            r#"{{"model":"{}","max_tokens":128000,"messages":[{{"role":"user","content":"{}"}}],"stream":true}}"#,
            prompt::MODEL,
            prompt::text(number, &self.filler),
        );
        let mut answer = self
            .client
            .post(&self.url)
            .header("content-type", "application/json")
            .header("anthropic-version", "2026-10-21")
            .header("x-api-key", "bench")
            .body(body)
            .send()
            .await?
            .error_for_status()?;
        let (mut bytes, mut end) = (0, Vec::new());
        while let Some(chunk) = answer.chunk().await? {
            bytes += chunk.len();
            keep_end(&mut end, &chunk);
        }
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if memchr::memmem::find(&end, b"message_stop").is_none() {
            bail!("an answer of {bytes} bytes did not end with message_stop");
        }
        Ok(())
    }
}

/// Bytes at the end of an answer in which its last event stands.
const END: usize = 80;

fn keep_end(end: &mut Vec<u8>, chunk: &[u8]) {
    if chunk.len() >= END {
        end.clear();
    }
    end.extend_from_slice(&chunk[chunk.len().saturating_sub(END)..]);
    let surplus = end.len().saturating_sub(END);
    end.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_answer_is_kept_however_it_was_cut() {
        let answer: Vec<u8> = (0..=255).collect();
        for size in [1, 7, 79, 80, 81, 200] {
            let mut end = Vec::new();
            answer.chunks(size).for_each(|chunk| keep_end(&mut end, chunk));
            assert_eq!(end, answer[answer.len() - END..], "in pieces of {size}");
        }
    }
}
