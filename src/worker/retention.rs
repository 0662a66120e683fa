//! Takes away what done jobs are not to keep any longer, beside everything else and in small steps.
//!
//! What is too old is decided by the database's clock; how much goes at once by [`Steps`], so that a
//! claim that comes in between waits for one short step. The way through `results` is remembered in
//! memory only: a daemon that starts goes it from its beginning, and so does each once a day, for rows
//! that were passed by (written out of order, or by a clock that was wrong).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::upkeep::paused;
use super::{Mill, Seldom};
use crate::domain::retention::{DoneJob, Erasure, Steps, Sweep};
use crate::store::{Store, StoreError};

/// How often it is looked for what is too old.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// How often the whole way is gone.
const ANEW_EVERY: Duration = Duration::from_hours(24);
/// Fewest results that one look reads, and most, while there is nothing for it on the way.
const WINDOW: (i64, i64) = (256, 16_384);
/// Others get so many times what a step took until the next, and at least [`REST_MIN`]: they wait for the
/// disk too, which a million rows that go keep busy.
const REST: u32 = 3;
/// The shortest rest.
const REST_MIN: Duration = Duration::from_millis(5);

/// Keeps to the rules until told to stop; returns at once where there are none.
pub async fn keep(mill: Arc<Mill>, stop: CancellationToken) {
    let mut ways: Vec<Way> = mill.settings.retention.sweeps().into_iter().map(Way::new).collect();
    let (mut anew, mut ailing) = (Seldom::default(), false);
    while !ways.is_empty() {
        if anew.is_due(ANEW_EVERY) {
            for way in &mut ways {
                way.from = 0;
            }
        }
        // What was paid for goes first, and tables of a newer version are not ours to change.
        if !mill.recorder.is_stalled() && mill.outdated.get().is_none() {
            match go(&mut ways, &*mill.store, &stop).await {
                Ok(()) => ailing = false,
                Err(err) => {
                    if !std::mem::replace(&mut ailing, true) {
                        tracing::warn!(error = %err, "failed to erase what is too old: trying again every minute");
                    }
                }
            }
        }
        if paused(&stop, LOOK_EVERY).await {
            return;
        }
    }
}

async fn go(ways: &mut [Way], store: &dyn Store, stop: &CancellationToken) -> Result<(), StoreError> {
    for way in ways {
        let erased = way.go(store, stop).await?;
        if erased > 0 {
            let (jobs, s) = (erased, if erased == 1 { "" } else { "s" });
            match way.sweep.what {
                Erasure::Jobs => tracing::info!(jobs, "{jobs} old job{s} deleted"),
                Erasure::Prompts => tracing::info!(jobs, "the prompt{s} of {jobs} old job{s} redacted"),
            }
        }
    }
    Ok(())
}

/// A way through `results`, in the order of `seq`.
pub struct Way {
    sweep: Sweep,
    /// Up to here nothing is left to do.
    from: i64,
    steps: Steps,
    window: i64,
}

impl Way {
    /// Returns the whole way.
    pub fn new(sweep: Sweep) -> Self {
        Self { sweep, from: 0, steps: Steps::default(), window: WINDOW.0 }
    }

    /// Goes on to where the results are too young, and takes away what is due; returns from how many jobs.
    ///
    /// # Errors
    /// What the store says; what was done before is done.
    pub async fn go(&mut self, store: &dyn Store, stop: &CancellationToken) -> Result<u64, StoreError> {
        let (mut at, mut erased, mut open) = (self.from, 0, None);
        while !stop.is_cancelled() {
            let began = Instant::now();
            let due = store.due(&self.sweep, at, self.window).await?;
            let Some(until) = due.until else { break };
            let is_over = due.jobs.is_empty() && due.waits.is_some();
            self.window = if due.jobs.is_empty() && !is_over {
                (self.window * 2).min(WINDOW.1)
            } else {
                (self.steps.room() as i64).max(WINDOW.0)
            };
            let taken = self.take(store, &due.jobs, stop).await?;
            erased += taken.jobs;
            if taken.by_another {
                break;
            }
            open = [open, taken.open, due.waits].into_iter().flatten().min();
            self.from = open.map_or(until, |seq| seq - 1);
            at = until;
            // What has nothing to do is in no hurry.
            if is_over || (due.jobs.is_empty() && paused(stop, began.elapsed() * 3).await) {
                break;
            }
        }
        Ok(erased)
    }

    /// Takes away what is due, step by step.
    async fn take(
        &mut self,
        store: &dyn Store,
        due: &[DoneJob],
        stop: &CancellationToken,
    ) -> Result<Taken, StoreError> {
        let mut taken = Taken::default();
        let mut rest = due;
        while !rest.is_empty() && !stop.is_cancelled() {
            let now = self.steps.next(rest);
            rest = &rest[now.len()..];
            let Some(erased) = store.erase(self.sweep.what, now).await? else {
                taken.by_another = true;
                return Ok(taken);
            };
            taken.jobs += erased.jobs.len() as u64;
            // One that somebody holds is looked at again the next time.
            let held = now.iter().filter(|done| !erased.jobs.contains(&done.job)).map(|done| done.seq);
            taken.open = taken.open.into_iter().chain(held).min();
            self.steps.took(erased.took, !rest.is_empty() || now.len() as u64 >= self.steps.room());
            // Others get their turn: other processes share the one writer of a SQLite file, too.
            tokio::time::sleep((erased.took * REST).max(REST_MIN)).await;
        }
        taken.open = taken.open.into_iter().chain(rest.first().map(|done| done.seq)).min();
        Ok(taken)
    }
}

/// What became of what was due.
#[derive(Debug, Default)]
struct Taken {
    /// So many jobs lost what they had to lose.
    jobs: u64,
    /// The lowest `seq` that is left.
    open: Option<i64>,
    /// Another daemon is at it, and will have done the rest.
    by_another: bool,
}
