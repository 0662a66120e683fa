//! What all daemons share, read from the tables no more often than it has to be: one read at a time,
//! whoever asks, and whoever asks is not kept waiting for a database that does not answer.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::store::StoreError;
use crate::store::gauges::{Gauge, Gauges, read};

/// How long whoever asks waits for a read.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// A read that takes longer is no read. One that is merely slow brings what is a little older.
const OVERDUE: Duration = Duration::from_mins(1);
/// What is older than this is told no more.
const OLD: Duration = Duration::from_mins(5);

/// The last read.
pub(super) struct Shared {
    store: OnceLock<Arc<dyn Gauge>>,
    refresh: Duration,
    held: Mutex<Held>,
    /// A read came to its end.
    done: Notify,
}

#[derive(Default)]
struct Held {
    gauges: Option<(Arc<Gauges>, Instant)>,
    /// How long the last read took that came to an end, and whether it was good.
    took: Duration,
    up: bool,
    /// When the last read began.
    began: Option<Instant>,
    /// The read that is under way. The store's operations have their limits: it ends.
    reading: JoinSet<()>,
}

/// What is known just now.
pub(super) struct Seen {
    /// What was read, and how long ago.
    pub(super) gauges: Option<(Arc<Gauges>, Duration)>,
    /// How long the last read took.
    pub(super) took: Duration,
    /// Whether the last read was good, and is not overdue.
    pub(super) up: bool,
}

impl Shared {
    pub(super) fn new(refresh: Duration) -> Self {
        Self { store: OnceLock::new(), refresh, held: Mutex::default(), done: Notify::new() }
    }

    pub(super) fn reads(&self, store: Arc<dyn Gauge>) {
        self.store.get_or_init(|| store);
    }

    /// Returns what is known, having it read anew where it is not fresh.
    pub(super) async fn look(self: &Arc<Self>) -> Seen {
        let done = self.done.notified();
        let mut done = std::pin::pin!(done);
        done.as_mut().enable();
        if self.begin() {
            // It comes, or what was known before has to do.
            tokio::time::timeout(WAIT_MAX, done).await.ok();
        }
        self.seen()
    }

    /// Begins a read where one is due; returns whether one is under way.
    fn begin(self: &Arc<Self>) -> bool {
        let Some(store) = self.store.get() else { return false };
        let mut held = self.lock();
        while held.reading.try_join_next().is_some() {}
        if !held.reading.is_empty() {
            return true;
        }
        if held.began.is_some_and(|began| began.elapsed() < self.refresh) {
            return false;
        }
        let began = Instant::now();
        held.began = Some(began);
        let (store, shared) = (Arc::clone(store), Arc::clone(self));
        held.reading.spawn(async move {
            let gauges = read(&*store).await;
            shared.take(gauges, began);
        });
        true
    }

    fn take(&self, gauges: Result<Gauges, StoreError>, began: Instant) {
        let mut held = self.lock();
        held.took = began.elapsed();
        let up = gauges.is_ok();
        let before = std::mem::replace(&mut held.up, up);
        match gauges {
            Ok(gauges) => held.gauges = Some((Arc::new(gauges), Instant::now())),
            Err(error) if before => tracing::warn!(%error, "failed to read the queue for /metrics"),
            Err(_) => {}
        }
        drop(held);
        self.done.notify_waiters();
    }

    fn seen(&self) -> Seen {
        let held = self.lock();
        let overdue = !held.reading.is_empty() && held.began.is_some_and(|began| began.elapsed() >= OVERDUE);
        let gauges = held.gauges.as_ref().map(|(gauges, at)| (Arc::clone(gauges), at.elapsed()));
        Seen { gauges: gauges.filter(|(_, age)| *age < OLD), took: held.took, up: held.up && !overdue }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_read_that_is_merely_slow_is_not_overdue() {
        let shared = Shared::new(Duration::from_secs(10));
        for (seconds, up) in [(0, true), (10, true), (59, true), (60, false)] {
            let mut held = shared.lock();
            held.up = true;
            held.began = Instant::now().checked_sub(Duration::from_secs(seconds));
            held.reading.abort_all();
            held.reading.spawn(std::future::pending());
            drop(held);
            assert_eq!(shared.seen().up, up, "after {seconds} s");
        }
    }
}
