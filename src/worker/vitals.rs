//! What a running mill shows of itself: how far it is, what it counted, and whether its loops turn.
//!
//! The shell makes it, hands it in with the [`super::Signals`] and reads it; nothing here waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Mill;
use super::meters::Meters;
use super::record::Unwritten;
use crate::domain::outcome::Outcome;
use crate::store::DEFAULT_PROFILE;

tokio::task_local! {
    static TURNING: Loop;
}

/// How far the mill is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It is not among the workers yet.
    Starting,
    /// It works.
    Working,
    /// It claims nothing more and lets calls finish.
    Draining,
    /// It is over.
    Over,
}

/// A loop that has to turn as long as the mill works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loop {
    /// The one that claims.
    Claims,
    /// The heartbeat.
    Beat,
    /// The tick.
    Tick,
}

impl Loop {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Claims, Self::Beat, Self::Tick];

    /// Runs a loop. It turns with each operation of the database that ends: a round of it may take a hundred
    /// of them, and none of them is the one that hangs.
    pub(super) async fn run<F: Future>(self, turning: F) -> F::Output {
        TURNING.scope(self, turning).await
    }

    /// What it is, for a sentence.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Claims => "the loop that claims",
            Self::Beat => "the heartbeat",
            Self::Tick => "the tick",
        }
    }
}

/// What is blocked just now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocks {
    /// Profiles whose key may not be used.
    pub profiles: Vec<String>,
    /// Models, with their profile.
    pub models: Vec<(String, String)>,
    /// How many batches.
    pub batches: usize,
}

/// How a mill is just now.
#[derive(Debug, Clone)]
pub struct State {
    /// Attempts that run.
    pub in_flight: usize,
    /// `worker.concurrency`, as it is kept to.
    pub concurrency: usize,
    /// Since the database last took a beat.
    pub unheard: Duration,
    /// `worker.lease_seconds`.
    pub lease: Duration,
    /// What the database has not taken.
    pub unwritten: Unwritten,
    /// Whether nothing is claimed for that.
    pub stalled: bool,
    /// Why this version must leave.
    pub outdated: Option<String>,
    /// What is blocked.
    pub blocks: Blocks,
    /// Jobs that ended here.
    pub ended: u64,
}

/// What a mill shows.
pub struct Vitals {
    /// What it counted.
    pub meters: Meters,
    born: Instant,
    phase: watch::Sender<Phase>,
    mill: OnceLock<Weak<Mill>>,
    /// When each loop last turned, and when the database last said something, in milliseconds of our life.
    turned: [AtomicU64; Loop::ALL.len()],
    heard: AtomicU64,
    /// When a job last ended as complete; 0: none did.
    succeeded: AtomicU64,
}

impl std::fmt::Debug for Vitals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vitals").field("phase", &*self.phase.borrow()).finish_non_exhaustive()
    }
}

impl Default for Vitals {
    fn default() -> Self {
        Self {
            meters: Meters::default(),
            born: Instant::now(),
            phase: watch::Sender::new(Phase::Starting),
            mill: OnceLock::new(),
            turned: Default::default(),
            heard: AtomicU64::new(0),
            succeeded: AtomicU64::new(0),
        }
    }
}

impl Vitals {
    /// Follows how far it is.
    pub fn follow(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Time since the process began.
    pub fn age(&self) -> Duration {
        self.born.elapsed()
    }

    /// Time since the database last answered anything.
    pub fn silence(&self) -> Duration {
        self.since(&self.heard)
    }

    /// Time since a job ended here as complete; `None`: none did.
    pub fn success(&self) -> Option<Duration> {
        (self.succeeded.load(Ordering::Relaxed) > 0).then(|| self.since(&self.succeeded))
    }

    /// Says that nothing more comes.
    pub fn over(&self) {
        self.phase.send_replace(Phase::Over);
    }

    /// Returns the loops that have not turned for so long. While it drains they end one after the other,
    /// and what stops a drain is a time limit.
    pub fn stuck(&self, patience: Duration) -> Vec<(Loop, Duration)> {
        if self.phase() != Phase::Working {
            return Vec::new();
        }
        let still = Loop::ALL.map(|of| (of, self.since(&self.turned[of as usize])));
        still.into_iter().filter(|(_, still)| *still > patience).collect()
    }

    /// Looks at the mill; `None`: there is none yet, or any more.
    pub fn state(&self) -> Option<State> {
        let mill = self.mill.get()?.upgrade()?;
        let held = mill.gates.shut();
        let name = |word: &String| {
            let own = mill.profiles.iter().find(|(id, _)| id.word() == *word);
            own.map_or_else(|| DEFAULT_PROFILE.to_owned(), |(_, profile)| profile.name.clone())
        };
        Some(State {
            in_flight: mill.running.lock().len(),
            concurrency: mill.settings.concurrency,
            unheard: mill.unheard(),
            lease: mill.settings.lease,
            unwritten: mill.recorder.unwritten(),
            stalled: mill.recorder.is_stalled(),
            outdated: mill.outdated.get().cloned(),
            blocks: Blocks {
                profiles: held.profiles.iter().map(name).collect(),
                models: held.models.iter().map(|(word, model)| (name(word), model.clone())).collect(),
                batches: held.batches.len(),
            },
            ended: mill.tally.list().iter().map(|(_, many)| many).sum(),
        })
    }

    /// The mill is among the workers, and begins.
    pub(super) fn begin(&self, mill: &Arc<Mill>) {
        self.mill.get_or_init(|| Arc::downgrade(mill));
        for of in Loop::ALL {
            self.turns(of);
        }
        self.phase.send_replace(Phase::Working);
    }

    /// It claims nothing more.
    pub(super) fn drains(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    /// A loop has turned once more.
    pub(super) fn turns(&self, which: Loop) {
        self.turned[which as usize].store(self.now(), Ordering::Relaxed);
    }

    /// An operation of the database ended, whose loop goes on.
    pub(super) fn went_on(&self) {
        if let Ok(which) = TURNING.try_with(|which| *which) {
            self.turns(which);
        }
    }

    /// The database said something.
    pub(super) fn heard(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }

    fn since(&self, then: &AtomicU64) -> Duration {
        Duration::from_millis(self.now().saturating_sub(then.load(Ordering::Relaxed)))
    }
}

impl Mill {
    /// Counts a job that ended, whatever its queue was.
    pub(super) fn ended(&self, queue: Option<&str>, outcome: Outcome) {
        self.tally.count(outcome);
        if outcome == Outcome::Complete {
            self.vitals.succeeded.store(self.vitals.now().max(1), Ordering::Relaxed);
        }
        self.vitals.meters.ended(queue, outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_operation_that_ends_is_a_turn_of_the_loop_that_asked_and_of_no_other() {
        let hour = Duration::from_hours(1);
        let born = Instant::now().checked_sub(hour).expect("an hour ago");
        let vitals = Vitals { born, phase: watch::Sender::new(Phase::Working), ..Vitals::default() };
        let stuck = || vitals.stuck(hour / 2).into_iter().map(|(which, _)| which).collect::<Vec<_>>();
        vitals.went_on();
        assert_eq!(stuck(), Loop::ALL, "nobody's operation is nobody's turn");
        Loop::Tick.run(async { vitals.went_on() }).await;
        assert_eq!(stuck(), [Loop::Claims, Loop::Beat]);
    }
}
