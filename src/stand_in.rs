//! A stand-in for the Claude Messages API: speaks the real protocol, answers by script.
//!
//! People test their own programs with it, `promptmill demo` drains against it, and so do our own
//! tests. What it says is a pure function of the prompt ([`text`]), and what it does is scripted by
//! `[[markers]]` in the prompt ([`marker`]). It must not know anything of the daemon: whatever they
//! agree on, they agree on over HTTP.

mod answer;
mod ask;
mod cache;
mod marker;
mod meter;
mod models;
mod problem;
mod render;
mod serve;
mod shape;
mod tally;
mod tools;
mod words;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use serve::Shared;
pub use tally::{Counts, Seen};
pub use words::text;

/// How the stand-in behaves where no marker says otherwise.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Requests a minute, for each model line; `None`: no limit, and no header that speaks of one.
    pub rpm: Option<u64>,
    /// Input tokens a minute, for each model line.
    pub itpm: Option<u64>,
    /// Output tokens a minute, for each model line.
    pub otpm: Option<u64>,
    /// The limits' buckets hold what comes in this time.
    pub burst: Duration,
    /// Whether headers speak of the limits, and of when to come back after a 429.
    pub limits_said: bool,
    /// Wait before the first event of every answer.
    pub delay: Duration,
    /// Wait between the pieces of every answer.
    pub pace: Duration,
    /// Whether it lists its models; compatible servers may not.
    pub models: bool,
    /// Most models on a page, however many are asked for.
    pub models_a_page: usize,
    /// Whether it counts tokens; compatible servers may not.
    pub count_tokens: bool,
    /// How many of the last calls [`Running::counts`] lists.
    pub calls_kept: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            rpm: None,
            itpm: None,
            otpm: None,
            burst: Duration::from_mins(1),
            limits_said: true,
            delay: Duration::ZERO,
            pace: Duration::ZERO,
            models: true,
            models_a_page: 1000,
            count_tokens: true,
            calls_kept: 1000,
        }
    }
}

/// Starts stand-ins.
#[derive(Debug, Clone, Copy)]
pub struct StandIn;

impl StandIn {
    /// Binds and serves on the current runtime, until the returned [`Running`] is dropped.
    pub async fn start(options: Options) -> std::io::Result<Running> {
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared::new(options, stop.clone()));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve::serve(listener, Arc::clone(&shared), stop.clone()));
        Ok(Running { address, shared, stop, _tasks: tasks })
    }
}

/// A stand-in that runs. Dropping it stops it: nothing new is accepted, what hangs is let go.
#[derive(Debug)]
pub struct Running {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    // Dropped with us: the accept loop ends at once and the port is free again.
    _tasks: JoinSet<()>,
}

impl Running {
    /// Returns the base URL to give to a client, without a slash at its end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns what it was asked since the start or the last reset.
    pub fn counts(&self) -> Counts {
        self.shared.tally.counts()
    }

    /// Forgets all counts, how often each prompt was asked and what is cached; fills the rate limits up
    /// again.
    pub fn reset(&self) {
        self.shared.reset();
    }

    /// Refuses every key from now on, as if it had been revoked, or accepts them again.
    pub fn refuse_keys(&self, refuse: bool) {
        self.shared.refuse_keys(refuse);
    }

    /// Answers every message with this error from now on, before any limit or marker counts: a status, or
    /// the name of an error, as in `[[error …]]`. `None`: no more.
    pub fn fail(&self, error: Option<&str>) -> Result<(), String> {
        self.shared.fail(error)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
