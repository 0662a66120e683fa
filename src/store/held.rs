//! Which leases this process was given, so that a claim whose answer was lost on the way is
//! noticed: the database says they are ours, and nobody here works on them.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::job::{Claimed, Lease};

/// A claim that is under way.
pub(crate) struct Asking<'a> {
    held: &'a Held,
    limit: Duration,
    answered: bool,
}

impl Asking<'_> {
    /// Notes that the whole answer is here.
    pub(crate) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.answered {
            let until = Instant::now() + self.limit;
            self.held.with(|inner| inner.unsure_until = Some(until));
        }
    }
}

/// The leases given out and not yet given back.
#[derive(Debug, Default)]
pub(crate) struct Held {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    leases: HashSet<(i64, i64)>,
    unsure_until: Option<Instant>,
}

impl Held {
    /// Notes what a claim brought.
    pub(crate) fn give(&self, claimed: &[Claimed]) {
        self.with(|inner| {
            inner.leases.extend(claimed.iter().map(|job| (job.lease.job.0, job.lease.claim)));
        });
    }

    /// Notes that these are not ours any more.
    pub(crate) fn drop<'a>(&self, leases: impl IntoIterator<Item = &'a Lease>) {
        self.with(|inner| {
            for lease in leases {
                inner.leases.remove(&(lease.job.0, lease.claim));
            }
        });
    }

    /// Notes that a claim is under way. Until the answer is here, it may come through unnoticed: the
    /// statement may fail after it was done, or the caller may go away.
    pub(crate) fn asking(&self, limit: Duration) -> Asking<'_> {
        Asking { held: self, limit, answered: false }
    }

    /// Returns the leases that are known, as (job, claim), while some may be unknown.
    pub(crate) fn known_while_unsure(&self) -> Option<(Vec<i64>, Vec<i64>)> {
        self.with(|inner| {
            let until = inner.unsure_until?;
            if until < Instant::now() {
                // One last look: whatever came through has come through by now.
                inner.unsure_until = None;
            }
            Some(inner.leases.iter().copied().unzip())
        })
    }

    /// Returns all leases that are known, as (job, claim).
    pub(crate) fn leases(&self) -> Vec<(i64, i64)> {
        self.with(|inner| inner.leases.iter().copied().collect())
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
