//! The mill: claims what can be sent now, runs each job's attempt, and keeps the queue.
//!
//! The only place where store, claude and time meet. The loop below waits, claims and spawns; one
//! claim's way to its end is [`mod@attempt`], what may be sent is [`gate`], how ends are written is
//! [`record`], and what goes on beside is [`upkeep`].

pub mod attempt;
pub mod gate;
pub mod notes;
pub mod process;
pub mod record;

mod drain;
mod upkeep;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::claude::Claude;
use crate::domain::breaker::BreakerSettings;
use crate::domain::job::{Claimed, Defaults, Lease, WorkerId};
use crate::domain::outcome::{Failure, Outcome};
use crate::domain::retry::Curve;
use crate::store::{Backlog, Blocked, Me, Store, StoreError, Wanted};

use attempt::{Ended, Rein, Why, attempt};
use gate::{Gates, Open};
use process::Process;
use record::Recorder;

/// Wakes the loop: something may be claimable.
type Wake = Arc<Notify>;

/// How long the loop sleeps at most while a gate may open at any moment.
const POLL: Duration = Duration::from_millis(200);
/// How long it sleeps at most while all gates flow: the store says when somebody inserts.
const CALM: Duration = Duration::from_secs(1);
/// Freed slots gather so long before they are claimed for together.
const GATHER: Duration = Duration::from_millis(10);
/// How long the last ends may take to be written after the drain time is over.
const LAST_WRITES: Duration = Duration::from_secs(10);

/// How the mill runs. Built by the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `worker.concurrency`: calls in flight.
    pub concurrency: usize,
    /// `worker.lease_seconds`.
    pub lease: Duration,
    /// `worker.drain_seconds`: how long running calls may go on after a stop.
    pub grace: Duration,
    /// `--drain`: leave when nothing is left within this horizon.
    pub drain: Option<Duration>,
    /// `worker.checkpoint_seconds`.
    pub checkpoint: Duration,
    /// `worker.bytes_in_flight_max`.
    pub bytes_max: i64,
    /// `--queue`: only these; empty: all.
    pub queues: Vec<String>,
    /// `[retry]`.
    pub curve: Curve,
    /// `[breaker]`.
    pub breaker: BreakerSettings,
    /// `api.profile`.
    pub profile: String,
}

/// Why the mill stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was told to.
    Stopped,
    /// Its queues are empty.
    Drained(Backlog),
    /// What is left stands behind gates that only a person or a date opens.
    Blocked(Backlog),
    /// The API does not know the key.
    KeyRefused(String),
    /// Some ends could not be written in time: those jobs will be rescued.
    Unwritten,
}

/// What a run of the mill came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Why it stopped.
    pub end: End,
    /// How many jobs ended how, here.
    pub outcomes: Vec<(Outcome, u64)>,
}

/// Counts how jobs ended.
#[derive(Debug, Default)]
struct Outcomes(Mutex<HashMap<Outcome, u64>>);

impl Outcomes {
    fn count(&self, outcome: Outcome) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(outcome).or_default() += 1;
    }

    fn list(&self) -> Vec<(Outcome, u64)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Outcome::ALL.into_iter().filter_map(|outcome| Some((outcome, *counts.get(&outcome)?))).collect()
    }
}

/// The attempts that run, by their leases.
#[derive(Debug, Default)]
struct Running(Mutex<HashMap<Lease, Rein>>);

impl Running {
    fn lock(&self) -> MutexGuard<'_, HashMap<Lease, Rein>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What every attempt and the upkeep share.
pub struct Mill {
    store: Arc<dyn Store>,
    claude: Arc<dyn Claude>,
    settings: Settings,
    defaults: Defaults,
    gates: Gates,
    recorder: Recorder,
    process: Process,
    me: Me,
    id: AtomicI64,
    running: Running,
    asleep: AtomicBool,
    tally: Outcomes,
    /// Models that refused a trailing assistant message since the start.
    no_prefill: Mutex<HashSet<String>>,
}

impl Mill {
    fn worker(&self) -> WorkerId {
        WorkerId(self.id.load(Ordering::Relaxed))
    }

    fn set_worker(&self, id: WorkerId) {
        self.id.store(id.0, Ordering::Relaxed);
    }

    fn refuses_prefill(&self, model: &str) -> bool {
        self.no_prefill.lock().unwrap_or_else(PoisonError::into_inner).contains(model)
    }

    fn remember_prefill_refused(&self, model: &str) {
        self.no_prefill.lock().unwrap_or_else(PoisonError::into_inner).insert(model.to_owned());
    }
}

/// What the world tells a running mill.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// Stop: claim nothing more.
    pub stop: CancellationToken,
    /// Read the key file again.
    pub reload: Arc<Notify>,
}

/// Runs the mill until it is told to stop, or until it is drained.
///
/// A stop ends claiming at once and lets calls finish for the drain time; what runs then is kept as
/// far as it came and goes back without a failure.
pub async fn run(
    store: Arc<dyn Store>,
    claude: Arc<dyn Claude>,
    settings: Settings,
    defaults: Defaults,
    signals: Signals,
) -> Result<Report, StoreError> {
    let process = Process::this();
    let me = process.me(env!("CARGO_PKG_VERSION"), &defaults.model);
    let id = store.enlist(&me).await?;
    crate::failpoint::failpoint!("enlist");
    let (recorder, recording) = Recorder::new(settings.concurrency);
    let mill = Arc::new(Mill {
        gates: Gates::new(settings.breaker, &settings.profile, claude.fingerprint()),
        store,
        claude,
        settings,
        defaults,
        recorder,
        process,
        me,
        id: AtomicI64::new(id.0),
        running: Running::default(),
        asleep: AtomicBool::new(false),
        tally: Outcomes::default(),
        no_prefill: Mutex::default(),
    });
    // A key that rests from an earlier run, or a gate that a person blocked, is known before the first claim.
    mill.gates.sync(&*mill.store, Instant::now()).await?;
    tracing::info!(worker.id = %id, "worker {id} is ready");

    let (wake, beside) = (Wake::default(), CancellationToken::new());
    let mut upkeep: JoinSet<()> = JoinSet::new();
    upkeep.spawn(upkeep::beat(Arc::clone(&mill), beside.clone()));
    upkeep.spawn(upkeep::tick(Arc::clone(&mill), Arc::clone(&wake), beside.clone()));
    // It only waits and wakes: it may be dropped at any moment, the store's operations end by themselves.
    let mut watching: JoinSet<()> = JoinSet::new();
    watching.spawn(watch(Arc::clone(&mill), Arc::clone(&wake)));
    upkeep.spawn(upkeep::reload(Arc::clone(&mill), Arc::clone(&signals.reload), beside.clone()));
    let at = Arc::clone(&mill);
    let mut writing: JoinSet<()> = JoinSet::new();
    writing.spawn(recording.run(Arc::clone(&mill.store), move || at.worker()));

    let mut turning = Turning {
        mill: Arc::clone(&mill),
        attempts: JoinSet::new(),
        ids: HashMap::new(),
        bytes: 0,
        ailing: None,
    };
    let mut end = turning.until_stopped(&wake, &signals.stop).await;
    if !turning.let_finish().await {
        end = End::Unwritten;
    }
    beside.cancel();
    crate::failpoint::failpoint!("retire");
    watching.abort_all();
    while upkeep.join_next().await.is_some() {}
    writing.abort_all();
    // What blocks is to be read in the table also after we are gone.
    if let Err(err) = mill.gates.sync(&*mill.store, Instant::now()).await {
        tracing::warn!(error = %err, "failed to write the gates");
    }
    if end != End::Unwritten
        && let Err(err) = mill.store.retire(mill.worker()).await
    {
        tracing::warn!(error = %err, "failed to take this worker's row away");
    }
    Ok(Report { end, outcomes: mill.tally.list() })
}

/// Turns the store's hints into wake-ups. A task of its own, so that no database operation is ever
/// dropped half-way.
async fn watch(mill: Arc<Mill>, wake: Wake) {
    loop {
        let flows =
            matches!(mill.gates.open(Instant::now()), Open::All(blocked) if blocked == Blocked::default());
        mill.store.changed(if flows { CALM } else { POLL }).await;
        wake.notify_one();
    }
}

/// What a look into the queue brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// As many jobs as there were slots, or there was no slot.
    Full,
    /// Fewer.
    Some,
    /// None.
    Nothing,
    /// Nothing may be claimed: the key's gate, too many bytes in flight, or the database is away.
    Shut,
}

/// The loop's own state: the attempts that run.
struct Turning {
    mill: Arc<Mill>,
    attempts: JoinSet<Ended>,
    /// Lease and input size of each attempt, for the one that panics.
    ids: HashMap<Id, (Lease, i64)>,
    bytes: i64,
    /// What the last claim failed of: said once, not five times a second.
    ailing: Option<String>,
}

impl Turning {
    async fn until_stopped(&mut self, wake: &Wake, stop: &CancellationToken) -> End {
        let mut check = JoinSet::new();
        let claude = Arc::clone(&self.mill.claude);
        check.spawn(async move { claude.check().await });
        let mut draining = self.mill.settings.drain.map(drain::Drain::new);
        loop {
            self.reap();
            if stop.is_cancelled() {
                return End::Stopped;
            }
            if let Some(Ok(checked)) = check.try_join_next()
                && let Some(why) = key_refused(checked)
            {
                return End::KeyRefused(why);
            }
            let found = self.claim().await;
            match found {
                Found::Some => continue,
                Found::Nothing if self.fall_asleep().await => continue,
                Found::Full | Found::Nothing | Found::Shut => {}
            }
            if let Some(drain) = &mut draining
                && self.attempts.is_empty()
                && let Some(end) = drain.is_over(&self.mill).await
            {
                // What blocks may be the key itself, which is said by another exit code.
                if matches!(end, End::Blocked(_))
                    && let Some(Ok(checked)) = check.join_next().await
                    && let Some(why) = key_refused(checked)
                {
                    return End::KeyRefused(why);
                }
                return end;
            }
            self.wait(wake, stop, found == Found::Full).await;
        }
    }

    /// Waits until it is worth looking again: somebody may have inserted, or, where all slots were
    /// taken, some are free.
    async fn wait(&mut self, wake: &Wake, stop: &CancellationToken, full: bool) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = wake.notified(), if !full => return,
                Some(ended) = self.attempts.join_next_with_id(), if !self.attempts.is_empty() => {
                    let again = self.reaped(ended);
                    if full {
                        return self.gather().await;
                    }
                    if again || self.attempts.is_empty() {
                        return;
                    }
                }
            }
        }
    }

    /// Lets freed slots gather for a moment: a claim for each would cost a statement a job.
    async fn gather(&mut self) {
        let deadline = tokio::time::Instant::now() + GATHER;
        let enough = self.mill.settings.concurrency.div_ceil(4);
        while self.mill.settings.concurrency.saturating_sub(self.attempts.len()) < enough {
            match tokio::time::timeout_at(deadline, self.attempts.join_next_with_id()).await {
                Ok(Some(ended)) => {
                    self.reaped(ended);
                }
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// What may be claimed now; `None`: nothing.
    fn wanted(&self) -> Option<Wanted> {
        let settings = &self.mill.settings;
        let free = settings.concurrency.saturating_sub(self.attempts.len());
        let bytes_max = settings.bytes_max - self.bytes;
        if free == 0 || (bytes_max <= 0 && !self.attempts.is_empty()) {
            return None;
        }
        let (slots, blocked) = match self.mill.gates.open(Instant::now()) {
            Open::All(blocked) => (free, blocked),
            Open::Probe(blocked) => (1, blocked),
            Open::Nothing => return None,
        };
        Some(Wanted {
            worker: self.mill.worker(),
            slots,
            bytes_max,
            queues: settings.queues.clone(),
            default_model: self.mill.defaults.model.clone(),
            blocked,
        })
    }

    async fn claim(&mut self) -> Found {
        let Some(wanted) = self.wanted() else {
            let free = self.attempts.len() < self.mill.settings.concurrency;
            return if free { Found::Shut } else { Found::Full };
        };
        crate::failpoint::failpoint!("claim.before");
        match self.mill.store.claim(&wanted).await {
            Ok(claimed) => {
                crate::failpoint::failpoint!("claim.after");
                if self.ailing.take().is_some() {
                    tracing::info!("the database is back: could claim");
                }
                let many = claimed.len();
                for job in claimed {
                    self.spawn(job);
                }
                if many == 0 {
                    return Found::Nothing;
                }
                self.wake_up().await;
                // Where it came short, more may be pending in lanes that this claim did not reach.
                if many < wanted.slots { Found::Some } else { Found::Full }
            }
            Err(err) => {
                let why = err.to_string();
                if self.ailing.as_ref() != Some(&why) {
                    tracing::warn!(error = %why, "failed to claim: trying again until it works");
                    self.ailing = Some(why);
                }
                tokio::time::sleep(POLL).await;
                Found::Shut
            }
        }
    }

    fn spawn(&mut self, claimed: Claimed) {
        let (lease, bytes) = (claimed.lease, claimed.bytes);
        let rein = Rein::default();
        self.mill.running.lock().insert(lease, rein.clone());
        self.bytes += bytes;
        let mill = Arc::clone(&self.mill);
        let task = self.attempts.spawn(async move { attempt(&mill, claimed, &rein).await });
        self.ids.insert(task.id(), (lease, bytes));
    }

    fn reap(&mut self) {
        while let Some(ended) = self.attempts.try_join_next_with_id() {
            self.reaped(ended);
        }
    }

    /// Takes note of an attempt's end; returns whether its job went back and may be claimed again.
    fn reaped(&mut self, ended: Result<(Id, Ended), tokio::task::JoinError>) -> bool {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(err) => err.id(),
        };
        let Some((lease, bytes)) = self.ids.remove(&id) else { return false };
        self.mill.running.lock().remove(&lease);
        self.bytes -= bytes;
        match ended {
            Ok((_, Ended::Settled(outcome))) => self.mill.tally.count(outcome),
            Ok((_, Ended::Released)) => return true,
            Ok((_, Ended::Lost)) => {}
            Err(err) => self.settle_panicked(lease, &err),
        }
        false
    }

    /// A panic in one job's code fails that job only.
    fn settle_panicked(&mut self, lease: Lease, err: &tokio::task::JoinError) {
        tracing::error!(job.id = %lease.job, "the attempt of job {} panicked: {err}", lease.job);
        let mill = Arc::clone(&self.mill);
        let task = self.attempts.spawn(async move { attempt::settle_panicked(&mill, lease).await });
        self.ids.insert(task.id(), (lease, 0));
    }

    /// Nothing is pending: tells inserters to wake us. Returns whether to look once more, since an
    /// insert may have come just before.
    async fn fall_asleep(&self) -> bool {
        if self.mill.asleep.swap(true, Ordering::Relaxed) {
            return false;
        }
        self.mill.store.sleep(self.mill.worker(), true).await.is_ok()
    }

    async fn wake_up(&self) {
        if self.mill.asleep.swap(false, Ordering::Relaxed)
            && let Err(err) = self.mill.store.sleep(self.mill.worker(), false).await
        {
            tracing::debug!(error = %err, "failed to say that this worker is awake");
        }
    }

    /// Lets calls finish for the drain time, then stops the rest and waits until their ends are
    /// written. Returns whether they were.
    async fn let_finish(&mut self) -> bool {
        let grace = self.mill.settings.grace;
        if !self.attempts.is_empty() {
            tracing::info!(
                calls = self.attempts.len(),
                "waiting up to {:.0} s for running calls",
                grace.as_secs_f64()
            );
        }
        let finished = tokio::time::timeout(grace, self.all_reaped()).await.is_ok();
        if finished {
            return true;
        }
        for rein in self.mill.running.lock().values() {
            rein.pull(Why::Shutdown);
        }
        tokio::time::timeout(LAST_WRITES, self.all_reaped()).await.is_ok()
    }

    async fn all_reaped(&mut self) {
        while let Some(ended) = self.attempts.join_next_with_id().await {
            self.reaped(ended);
        }
    }
}

fn key_refused(checked: Result<(), Failure>) -> Option<String> {
    match checked {
        Ok(()) => None,
        Err(Failure::Api(error)) if error.status == 401 => Some(
            "the API refused the key (401): set ANTHROPIC_API_KEY, or api.key_file, to one that is valid"
                .to_owned(),
        ),
        Err(failure) => {
            let reason = crate::domain::retry::reason(&failure);
            tracing::warn!("could not check the key beforehand: {reason}; going on");
            None
        }
    }
}
