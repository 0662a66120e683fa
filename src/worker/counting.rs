//! Having inputs counted: a few tries, a few at a time, and a word for the caller where nobody can say.
//!
//! A count is free and has rate limits of its own: nothing of it reaches gates, pace or ledger.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::claude::Claude;
use crate::domain::outcome::Failure;
use crate::domain::retry::{self, Class, Curve};
use crate::domain::talk::Request;

/// So many are counted at once: each sends a copy of its call's body, up to 32 MB.
const AT_ONCE: usize = 4;
/// So often one count is tried.
const TRIES: i32 = 4;
/// Longest wait between two tries: who is told to wait longer is better off telling the caller.
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// So long a server that cannot count is not asked again.
const UNABLE_FOR: Duration = Duration::from_hours(1);

/// What came of a count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Counted {
    /// So many tokens.
    Tokens(i64),
    /// Nobody can say. `again`: later somebody may, so that the call can wait for it; `None`: not of
    /// this input or not by this server, so that the call itself has to show whether it fits.
    Unknown {
        /// Why, in words that quote nothing.
        reason: String,
        /// How long to wait at least.
        again: Option<Duration>,
    },
    /// It was told to stop.
    Stopped,
}

/// Has inputs counted.
#[derive(Debug)]
pub struct Counting {
    turns: Semaphore,
    curve: Curve,
    /// When a server that cannot count was last asked.
    unable: Mutex<Option<Instant>>,
}

impl Counting {
    /// Waits between tries by this curve.
    pub fn new(curve: Curve) -> Self {
        Self { turns: Semaphore::new(AT_ONCE), curve, unable: Mutex::default() }
    }

    /// Has the input of a call counted.
    pub async fn count(&self, claude: &dyn Claude, request: &Request, stop: &CancellationToken) -> Counted {
        if self.is_unable(Instant::now()) {
            return Counted::Unknown { reason: "the server cannot count tokens".to_owned(), again: None };
        }
        let Some(turn) = stop.run_until_cancelled(self.turns.acquire()).await else {
            return Counted::Stopped;
        };
        let _turn = turn.expect("it is never closed");
        let mut tried = 0;
        loop {
            let failure = match claude.count_tokens(request, stop).await {
                Ok(tokens) => return Counted::Tokens(tokens),
                Err(failure) => failure,
            };
            tried += 1;
            let again = self.again(&failure, tried);
            match again {
                _ if failure == Failure::Stopped => return Counted::Stopped,
                Some(pause) if tried < TRIES && pause <= PAUSE_MAX => {
                    if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                        return Counted::Stopped;
                    }
                }
                _ => return Counted::Unknown { reason: retry::reason(&failure), again },
            }
        }
    }

    /// How long to wait before it is tried again; `None`: that cannot help.
    fn again(&self, failure: &Failure, tried: i32) -> Option<Duration> {
        let class = retry::class(failure, false);
        if class == Class::Job && is_missing(failure) || is_foreign(failure) {
            self.found_unable();
            return None;
        }
        match class {
            Class::Limit { hint, .. } | Class::Sick { hint, .. } => {
                Some(self.curve.delay(tried - 1, hint, fastrand::f64()))
            }
            Class::Job | Class::Model | Class::Prefill | Class::Account | Class::Suspect | Class::Ours => {
                None
            }
        }
    }

    fn is_unable(&self, now: Instant) -> bool {
        let unable = *self.unable.lock().unwrap_or_else(PoisonError::into_inner);
        unable.is_some_and(|since| now.saturating_duration_since(since) < UNABLE_FOR)
    }

    fn found_unable(&self) {
        let mut unable = self.unable.lock().unwrap_or_else(PoisonError::into_inner);
        if unable.replace(Instant::now()).is_none() {
            tracing::debug!("the server cannot count tokens: calls show by themselves whether they fit");
        }
    }
}

/// Whether what came back is no count: a page of something else.
fn is_foreign(failure: &Failure) -> bool {
    matches!(failure, Failure::Unreadable(_))
}

/// Whether there is nothing at the address.
fn is_missing(failure: &Failure) -> bool {
    matches!(failure, Failure::Api(error) if matches!(error.status, 404 | 405 | 501))
}
