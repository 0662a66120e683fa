//! Asking whether a key is good: once for all whose calls were refused at the same moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Mutex as Turns;

use crate::claude::Claude;
use crate::domain::retry::{Blame, blame};

/// When it was last asked, and what that proved.
type Asked = Turns<Option<(Instant, Blame)>>;

/// Asks whether keys are good, one question at a time for each.
#[derive(Debug, Default)]
pub(super) struct Checks {
    keys: Mutex<HashMap<String, Arc<Asked>>>,
}

impl Checks {
    /// Whose fault it is that a call with this key was refused just now: the API is asked for free.
    pub(super) async fn blame(&self, key: &str, claude: &dyn Claude) -> Blame {
        let refused = Instant::now();
        let asked = self.of(key);
        let mut last = asked.lock().await;
        // A key may be revoked at any moment: only a question that was put after the refusal explains it.
        if let Some((at, blame)) = *last
            && at >= refused
        {
            return blame;
        }
        let at = Instant::now();
        let found = blame(&claude.check().await);
        *last = Some((at, found));
        found
    }

    fn of(&self, key: &str) -> Arc<Asked> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        // What nobody waits for any more would be asked anew.
        keys.retain(|_, asked| Arc::strong_count(asked) > 1);
        Arc::clone(keys.entry(key.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use futures_util::future::join_all;
    use tokio::sync::Semaphore;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::claude::Listener;
    use crate::domain::model::Catalogue;
    use crate::domain::outcome::{ApiError, Failure};
    use crate::domain::reply::Exchange;
    use crate::domain::talk::Request;

    /// An API that is only asked about its key, and answers one question for each permit.
    struct Api {
        asked: AtomicU32,
        answers: Semaphore,
        status: u16,
    }

    impl Api {
        fn new(status: u16, answers: usize) -> Self {
            Self { asked: AtomicU32::new(0), answers: Semaphore::new(answers), status }
        }
    }

    #[async_trait]
    impl Claude for Api {
        async fn ask(&self, _: &Request, _: Listener<'_>) -> Exchange {
            unreachable!("nothing is paid for here")
        }

        async fn check(&self) -> Result<(), Failure> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.answers.acquire().await.expect("it is never closed").forget();
            Err(Failure::Api(ApiError { status: self.status, ..ApiError::default() }))
        }

        async fn models(&self) -> Result<Catalogue, Failure> {
            unreachable!("no list is asked for here")
        }

        async fn count_tokens(&self, _: &Request, _: &CancellationToken) -> Result<i64, Failure> {
            unreachable!("nothing is counted here")
        }

        fn reload_key(&self) -> bool {
            false
        }

        fn fingerprint(&self) -> String {
            String::new()
        }

        fn server(&self) -> Option<(&str, u16)> {
            None
        }
    }

    #[tokio::test]
    async fn all_that_are_refused_at_the_same_moment_share_one_question() {
        let (checks, api) = (Checks::default(), Api::new(401, 0));
        let refused = join_all((0..50).map(|_| checks.blame("key", &api)));
        let answer = async {
            // All fifty wait by now: the join is polled before this is.
            api.answers.add_permits(50);
        };
        let (blames, ()) = tokio::join!(refused, answer);
        assert_eq!(blames, vec![Blame::Key; 50]);
        // The first had asked before the others were refused, which proves nothing of theirs.
        assert!(api.asked.load(Ordering::Relaxed) <= 2, "{} questions", api.asked.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn an_old_answer_says_nothing_of_a_new_refusal_or_of_another_key() {
        let (checks, api) = (Checks::default(), Api::new(200, 3));
        for (key, asked) in [("one", 1), ("one", 2), ("other", 3)] {
            checks.blame(key, &api).await;
            assert_eq!(api.asked.load(Ordering::Relaxed), asked, "{key}");
        }
    }
}
