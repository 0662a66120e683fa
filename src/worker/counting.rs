//! Having inputs counted: a few tries, a few at a time, and a word for the caller where nobody can say.
//!
//! A count is free and has rate limits of its own: nothing of it reaches gates, pace or ledger.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
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
    /// When each server that cannot count was last asked.
    unable: Mutex<HashMap<Server, Instant>>,
}

/// A host and a port, where calls have one: profiles may ask other servers.
type Server = Option<(String, u16)>;

fn server(claude: &dyn Claude) -> Server {
    claude.server().map(|(host, port)| (host.to_owned(), port))
}

impl Counting {
    /// Waits between tries by this curve.
    pub fn new(curve: Curve) -> Self {
        Self { turns: Semaphore::new(AT_ONCE), curve, unable: Mutex::default() }
    }

    /// Has the input of a call counted.
    pub async fn count(&self, claude: &dyn Claude, request: &Request, stop: &CancellationToken) -> Counted {
        if self.is_unable(claude, Instant::now()) {
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
            let again = self.again(claude, &failure, tried);
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
    fn again(&self, claude: &dyn Claude, failure: &Failure, tried: i32) -> Option<Duration> {
        let class = retry::class(failure, false);
        if class == Class::Job && is_missing(failure) || is_foreign(failure) {
            self.found_unable(claude);
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

    fn lock(&self) -> MutexGuard<'_, HashMap<Server, Instant>> {
        self.unable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_unable(&self, claude: &dyn Claude, now: Instant) -> bool {
        let since = self.lock().get(&server(claude)).copied();
        since.is_some_and(|since| now.saturating_duration_since(since) < UNABLE_FOR)
    }

    fn found_unable(&self, claude: &dyn Claude) {
        if self.lock().insert(server(claude), Instant::now()).is_none() {
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

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::claude::Listener;
    use crate::domain::model::Catalogue;
    use crate::domain::reply::Exchange;

    /// A server at this port.
    struct At(u16);

    #[async_trait]
    impl Claude for At {
        async fn ask(&self, _: &Request, _: Listener<'_>) -> Exchange {
            unreachable!("nothing is asked")
        }

        async fn check(&self) -> Result<(), Failure> {
            unreachable!("nothing is asked")
        }

        async fn models(&self) -> Result<Catalogue, Failure> {
            unreachable!("nothing is asked")
        }

        async fn count_tokens(&self, _: &Request, _: &CancellationToken) -> Result<i64, Failure> {
            unreachable!("nothing is asked")
        }

        fn reload_key(&self) -> bool {
            false
        }

        fn fingerprint(&self) -> String {
            String::new()
        }

        fn server(&self) -> Option<(&str, u16)> {
            Some(("127.0.0.1", self.0))
        }
    }

    #[test]
    fn a_server_that_cannot_count_says_nothing_of_another_profiles() {
        let now = Instant::now();
        let curve = Curve { base: Duration::from_millis(5), max: Duration::from_millis(40), still: now };
        let counting = Counting::new(curve);
        assert_eq!(counting.again(&At(1), &Failure::Unreadable("a page".to_owned()), 1), None);
        assert!(counting.is_unable(&At(1), now));
        assert!(!counting.is_unable(&At(2), now));
        assert!(!counting.is_unable(&At(1), now + UNABLE_FOR * 2), "it is asked again");
    }
}
