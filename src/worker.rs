//! The mill: claims what can be sent now, runs each job's attempt, and keeps the queue.
//!
//! The only place where store, claude and time meet. The loop below waits, claims and spawns; one
//! claim's way to its end is [`mod@attempt`], what may be sent is [`gate`], how ends are written is
//! [`record`], and what goes on beside is [`upkeep`].

pub mod attempt;
pub mod counting;
pub mod gate;
pub mod meters;
pub mod models;
pub mod notes;
pub mod process;
pub mod profiles;
pub mod record;
pub mod retention;
pub mod spool;
pub mod tools;
pub mod traces;
pub mod vitals;

mod checks;
mod delays;
mod drain;
mod measured;
mod seldom;
mod upkeep;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::claude::Claude;
use crate::domain::breaker::BreakerSettings;
use crate::domain::job::{Claimed, Defaults, Job, Lease, Tally, WorkerId};
use crate::domain::model::Layers;
use crate::domain::outcome::{Failure, Outcome};
use crate::domain::retention::Rules;
use crate::domain::retry::{Curve, KEY_REST};
use crate::failpoint::failpoint;
use crate::store::{AccountRow, Backlog, DEFAULT_PROFILE, Me, Store, StoreError, Wanted};

use attempt::{Ended, Rein, Why, attempt};
use checks::Checks;
use counting::Counting;
use gate::{Gates, Lane, Open, PaceSettings};
use measured::Measured;
use models::Models;
use process::Process;
use profiles::{Profile, ProfileId, Profiles};
use record::{Kept, Recorder, Restored, Unwritten};
use seldom::Seldom;
use spool::Spool;
use tools::Tools;
use traces::Traces;
use vitals::{Loop, Vitals};

/// Wakes the loop: something may be claimable.
type Wake = Arc<Notify>;

/// How long the loop sleeps at most while a gate may open at any moment.
const POLL: Duration = Duration::from_millis(200);
/// How long it sleeps at most while all gates flow: the store says when somebody inserts.
const CALM: Duration = Duration::from_secs(1);
/// Freed slots gather so long before they are claimed for together.
const GATHER: Duration = Duration::from_millis(10);
/// How long the last words to the database may take when all is written.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long the last ends may take to be written after the drain time is over.
const LAST_WRITES: Duration = Duration::from_secs(10);
/// The same where somebody is in a hurry.
const HURRIED_WRITES: Duration = Duration::from_millis(900);
/// How long the last words to the database, and the spool, may take then.
const HURRIED_WORDS: Duration = Duration::from_millis(300);
/// The loop turns at least this often, whatever it waits for.
const TURN: Duration = Duration::from_secs(1);
/// Pause between tries to enlist.
const TRY_AGAIN: Duration = Duration::from_secs(1);

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
    /// `worker.state_dir`: where answers go that the database cannot take; `None`: they are held in
    /// memory only.
    pub state_dir: Option<PathBuf>,
    /// `worker.bytes_in_flight_max`.
    pub bytes_max: i64,
    /// `--queue`: only these; empty: all.
    pub queues: Vec<String>,
    /// `[retry]`.
    pub curve: Curve,
    /// `[breaker]`.
    pub breaker: BreakerSettings,
    /// What `[models]` says of rate limits.
    pub pace: PaceSettings,
    /// What `[models]` says of what models can do.
    pub models: Layers,
    /// `[tools]`, and which of them each queue may use.
    pub tools: Arc<Tools>,
    /// `[retention]`, and what queues set themselves.
    pub retention: Rules,
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
    /// The API does not know the key: that of `[api]`, or the only one that is used.
    KeyRefused(String),
    /// Some ends could not be written in time: what is in the spool is settled at the next start,
    /// the other jobs will be rescued.
    Unwritten(Unwritten),
    /// A newer version changed the tables so that this one must not use them.
    Outdated(String),
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
    profiles: Profiles<Profile>,
    settings: Settings,
    models: Models,
    counting: Counting,
    checks: Checks,
    gates: Gates,
    /// Whether the table `accounts` says which profiles and keys these are.
    accounts_told: AtomicBool,
    recorder: Recorder,
    process: Process,
    me: Me,
    id: AtomicI64,
    running: Running,
    asleep: AtomicBool,
    tally: Outcomes,
    vitals: Arc<Vitals>,
    traces: Traces,
    /// How long jobs were put back for, by our own clock.
    delays: delays::Delays,
    /// When the database last took a beat of ours.
    beaten: Mutex<Instant>,
    /// Why this version must leave, once it must.
    outdated: OnceLock<String>,
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

    /// The API of a job: with the account of its queue.
    fn claude(&self, job: &Job) -> &dyn Claude {
        &*self.profiles[self.profiles.of(&job.queue)].claude
    }

    /// Reads all key files again; returns the profiles whose key is another one now.
    fn reload_keys(&self) -> Vec<&str> {
        let mut changed = Vec::new();
        for (id, profile) in self.profiles.iter() {
            if profile.claude.reload_key() {
                self.accounts_told.store(false, Ordering::Relaxed);
                self.gates.new_key(id, profile.key());
                let name = profile.name.as_str();
                tracing::info!(
                    profile = name,
                    "the key file of profile {name} was read again: the key is another one now"
                );
                changed.push(name);
            }
        }
        changed
    }

    /// Which account each queue has, for people to see.
    fn accounts(&self) -> Vec<AccountRow> {
        let defaults = self.defaults();
        let models = defaults.models.keys().chain([&defaults.model]);
        let classes: BTreeMap<&String, String> = models
            .map(|model| (model, self.settings.pace.class(model)))
            .filter(|(model, class)| *model != class)
            .collect();
        let classes = serde_json::to_string(&classes).ok();
        let of = |queue: &str, id: ProfileId, classes| {
            let profile = &self.profiles[id];
            AccountRow { queue: queue.to_owned(), profile: profile.name.clone(), key: profile.key(), classes }
        };
        let named = self.profiles.chosen().iter().map(|(queue, id)| of(queue, *id, None));
        [of(DEFAULT_PROFILE, ProfileId::DEFAULT, classes)].into_iter().chain(named).collect()
    }

    fn has_beaten(&self) {
        *self.beaten.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Time since the database last took a beat of ours.
    fn unheard(&self) -> Duration {
        self.beaten.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
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
    /// And stop running calls at once: what had arrived is kept.
    pub hurry: CancellationToken,
    /// Read the key file again.
    pub reload: Arc<Notify>,
    /// And what it shows to the world.
    pub vitals: Arc<Vitals>,
    /// And where it makes spans.
    pub traces: Traces,
}

/// Runs the mill until it is told to stop, or until it is drained.
///
/// A stop ends claiming at once and lets calls finish for the drain time; what runs then is kept as
/// far as it came and goes back without a failure.
pub async fn run(
    store: Arc<dyn Store>,
    profiles: Profiles<Profile>,
    settings: Settings,
    defaults: Defaults,
    signals: Signals,
) -> Result<Report, StoreError> {
    let process = Process::this();
    let me = process.me(env!("CARGO_PKG_VERSION"), &defaults.model);
    let store = Measured::over(store, Arc::clone(&signals.vitals));
    let Some(id) = enlist(&*store, &me, &signals.stop).await? else {
        return Ok(Report { end: End::Stopped, outcomes: Vec::new() });
    };
    failpoint!("enlist");
    let spool = Spool::new(settings.state_dir.clone(), store.database_id());
    let (recorder, mut recording) = Recorder::new(settings.concurrency, spool);
    let restored = recording.restore().await;
    let mill = Arc::new(Mill {
        gates: Gates::new(
            settings.breaker,
            settings.pace.clone(),
            &profiles.map(|profile| (profile.name.clone(), profile.key())),
        ),
        accounts_told: AtomicBool::new(false),
        store,
        counting: Counting::new(settings.curve),
        checks: Checks::default(),
        models: Models::new(defaults),
        profiles,
        settings,
        recorder,
        process,
        me,
        id: AtomicI64::new(id.0),
        running: Running::default(),
        asleep: AtomicBool::new(false),
        tally: Outcomes::default(),
        vitals: Arc::clone(&signals.vitals),
        traces: signals.traces,
        delays: delays::Delays::default(),
        beaten: Mutex::new(Instant::now()),
        outdated: OnceLock::new(),
        no_prefill: Mutex::default(),
    });
    // A key that rests from an earlier run, or a gate that a person blocked, is known before the first claim.
    mill.gates.sync(&*mill.store, Instant::now()).await?;
    mill.vitals.begin(&mill);
    tracing::info!(worker.id = %id, "worker {id} is ready");

    let (wake, beside) = (Wake::default(), CancellationToken::new());
    let mut upkeep: JoinSet<()> = JoinSet::new();
    upkeep.spawn(Loop::Beat.run(upkeep::beat(Arc::clone(&mill), beside.clone())));
    upkeep.spawn(Loop::Tick.run(upkeep::tick(Arc::clone(&mill), Arc::clone(&wake), beside.clone())));
    upkeep.spawn(upkeep::share_gates(Arc::clone(&mill), beside.clone()));
    upkeep.spawn(upkeep::share_rates(Arc::clone(&mill), beside.clone()));
    upkeep.spawn(models::learn_daily(Arc::clone(&mill), beside.clone()));
    upkeep.spawn(retention::keep(Arc::clone(&mill), beside.clone()));
    // It only waits and wakes: it may be dropped at any moment, the store's operations end by themselves.
    let mut watching: JoinSet<()> = JoinSet::new();
    watching.spawn(watch(Arc::clone(&mill), Arc::clone(&wake)));
    watching.spawn(opened(Arc::clone(&mill), Arc::clone(&wake)));
    upkeep.spawn(upkeep::reload(Arc::clone(&mill), Arc::clone(&signals.reload), beside.clone()));
    let at = Arc::clone(&mill);
    let mut writing: JoinSet<()> = JoinSet::new();
    writing.spawn(recording.run(Arc::clone(&mill.store), move || at.worker()));
    writing.spawn(count_restored(Arc::clone(&mill), restored));

    let mut turning = Turning {
        mill: Arc::clone(&mill),
        attempts: JoinSet::new(),
        works: HashMap::new(),
        bytes: 0,
        suspects: 0,
        ailing: None,
    };
    let mut end = Loop::Claims.run(turning.until_stopped(&wake, &signals.stop)).await;
    mill.vitals.drains();
    let written = turning.let_finish(&signals.hurry).await;
    beside.cancel();
    failpoint!("retire");
    watching.abort_all();
    let left = mill.recorder.unwritten();
    if written && left == Unwritten::default() {
        take_leave(&mill, upkeep, &signals.hurry).await;
    } else if !matches!(end, End::Outdated(_)) {
        // The database is away: nobody waits for what is under way there.
        end = End::Unwritten(left);
    }
    writing.abort_all();
    Ok(Report { end, outcomes: mill.tally.list() })
}

/// Enlists, waiting for a database that is locked or away: it was there a moment ago, when it was opened.
/// `None`: it was told to stop meanwhile.
async fn enlist(
    store: &dyn Store,
    me: &Me,
    stop: &CancellationToken,
) -> Result<Option<WorkerId>, StoreError> {
    let mut told = false;
    loop {
        // The store's operations end by themselves: they may be left alone at any moment.
        let Some(enlisted) = stop.run_until_cancelled(store.enlist(me)).await else { return Ok(None) };
        match enlisted {
            Err(StoreError::Unavailable(why)) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(error = %why, "failed to enlist: trying again until it works");
                }
            }
            other => return other.map(Some),
        }
        if stop.run_until_cancelled(tokio::time::sleep(TRY_AGAIN)).await.is_none() {
            return Ok(None);
        }
    }
}

/// How often the gates are written at the end, where somebody else writes the same rows.
const GATES_TRIES: usize = 5;

/// Tells the database what others may want to know, as long as it listens: they find out by themselves
/// that we are gone.
async fn take_leave(mill: &Mill, upkeep: JoinSet<()>, hurry: &CancellationToken) {
    let words = tokio::time::timeout(LAST_WORDS, last_words(mill, upkeep));
    let hurried = async {
        hurry.cancelled().await;
        tokio::time::sleep(HURRIED_WORDS).await;
    };
    let heard = tokio::select! {
        words = words => words.is_ok(),
        () = hurried => false,
    };
    if !heard {
        tracing::warn!("the database did not answer in time: this worker's row stays behind");
    }
}

async fn last_words(mill: &Mill, mut upkeep: JoinSet<()>) {
    while upkeep.join_next().await.is_some() {}
    // What blocks is to be read in the table also after we are gone. Somebody else may write the same rows.
    for _ in 0..GATES_TRIES {
        if let Err(err) = mill.gates.sync(&*mill.store, Instant::now()).await {
            tracing::warn!(error = %err, "failed to write the gates");
            break;
        }
        if !mill.gates.has_changes() {
            break;
        }
    }
    if let Err(err) = upkeep::tell_accounts(mill).await {
        tracing::warn!(error = %err, "failed to say whose gates are whose");
    }
    if let Err(err) = mill.store.retire(mill.worker()).await {
        tracing::warn!(error = %err, "failed to take this worker's row away");
    }
}

/// Counts the jobs that end with what an earlier process left.
async fn count_restored(mill: Arc<Mill>, restored: Vec<Restored>) {
    for Restored { lease, outcome, hear } in restored {
        match hear.await {
            Ok(Kept::Done) => mill.ended(None, outcome),
            Ok(Kept::Bare) => mill.ended(None, Outcome::Failed),
            Ok(Kept::Lost) => {
                tracing::info!(job.id = %lease.job, "job {} was taken away meanwhile", lease.job);
                continue;
            }
            Err(_) => return,
        }
        tracing::info!(job.id = %lease.job, outcome = %outcome, "job {} ended: {outcome}, as an earlier process left it", lease.job);
    }
}

/// Turns the store's hints into wake-ups. A task of its own, so that no database operation is ever
/// dropped half-way.
async fn watch(mill: Arc<Mill>, wake: Wake) {
    loop {
        let flows = mill.gates.all_flow();
        mill.store.changed(if flows { CALM } else { POLL }).await;
        // What changed may be a gate: a person's word is to be heard at once.
        mill.gates.look();
        wake.notify_one();
    }
}

/// Wakes the loop when a gate opens, or when more of a batch may run.
async fn opened(mill: Arc<Mill>, wake: Wake) {
    loop {
        mill.gates.opened().await;
        // What opens a moment later is claimed for together.
        tokio::time::sleep(GATHER).await;
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
    /// Nothing may be claimed: every key's gate, too many bytes in flight, or the database is away.
    Shut,
}

/// What an attempt works on.
struct Work {
    lease: Lease,
    bytes: i64,
    tally: Tally,
    lane: Lane,
    rein: Rein,
    since: Instant,
}

/// The loop's own state: the attempts that run.
struct Turning {
    mill: Arc<Mill>,
    attempts: JoinSet<Ended>,
    /// What each attempt works on.
    works: HashMap<Id, Work>,
    bytes: i64,
    /// How many of them are suspected of ending processes.
    suspects: usize,
    /// What the last claim failed of: said once, not five times a second.
    ailing: Option<String>,
}

impl Turning {
    async fn until_stopped(&mut self, wake: &Wake, stop: &CancellationToken) -> End {
        let mut checks = self.check_keys();
        let mut draining = self.mill.settings.drain.map(drain::Drain::new);
        loop {
            self.mill.vitals.turns(Loop::Claims);
            self.reap();
            if stop.is_cancelled() {
                return End::Stopped;
            }
            if let Some(why) = self.mill.outdated.get() {
                return End::Outdated(why.clone());
            }
            while let Some(Ok((profile, checked))) = checks.try_join_next() {
                if let Some(why) = self.key_refused(profile, checked) {
                    return End::KeyRefused(why);
                }
            }
            let found = self.claim().await;
            match found {
                // What the pace keeps back comes with the next wake-up.
                Found::Some if !self.mill.gates.is_limiting(Instant::now()) => continue,
                Found::Nothing
                    if !self.mill.gates.is_limiting(Instant::now()) && self.fall_asleep().await =>
                {
                    continue;
                }
                Found::Full | Found::Some | Found::Nothing | Found::Shut => {}
            }
            if let Some(drain) = &mut draining
                && self.attempts.is_empty()
                && !self.mill.recorder.is_stalled()
                && let Some(end) = drain.is_over(&self.mill).await
            {
                // What blocks may be the key itself, which is said by another exit code.
                while matches!(end, End::Blocked(_))
                    && let Some(Ok((profile, checked))) = checks.join_next().await
                {
                    if let Some(why) = self.key_refused(profile, checked) {
                        return End::KeyRefused(why);
                    }
                }
                return end;
            }
            self.wait(wake, stop, found == Found::Full).await;
        }
    }

    /// Asks beside the first claim whether the keys are good, each once.
    fn check_keys(&self) -> JoinSet<(ProfileId, Result<(), Failure>)> {
        let profiles = &self.mill.profiles;
        let mut asked = HashSet::new();
        let mut checks = JoinSet::new();
        for id in profiles.used(&self.mill.settings.queues) {
            if asked.insert(profiles[id].key()) {
                let mill = Arc::clone(&self.mill);
                checks.spawn(async move {
                    // Which models there are is asked of the API of `[api]`, and says as much of its key.
                    let checked = match id {
                        ProfileId::DEFAULT => models::learn(&mill).await,
                        other => mill.profiles[other].claude.check().await,
                    };
                    (id, checked)
                });
            }
        }
        checks
    }

    /// What came of it: why to leave. A refused key of one profile among several blocks its own gate, and
    /// the other queues flow on.
    fn key_refused(&self, id: ProfileId, checked: Result<(), Failure>) -> Option<String> {
        let profiles = &self.mill.profiles;
        let profile = &profiles[id];
        let name = &profile.name;
        match checked {
            Ok(()) => None,
            Err(Failure::Api(error)) if error.status == 401 && id == ProfileId::DEFAULT => Some(
                "the API refused the key (401), or was given none: set ANTHROPIC_API_KEY, or api.key_file, to one that is \
                 valid"
                    .to_owned(),
            ),
            Err(Failure::Api(error)) if error.status == 401 => {
                let why = format!("the API refused the key of profile {name} (401)");
                if profiles.used(&self.mill.settings.queues).len() == 1 {
                    return Some(format!("{why}: correct what its key_env or key_file names"));
                }
                self.mill.gates.block_key(&profile.key(), &why, KEY_REST, Instant::now());
                None
            }
            Err(failure) => {
                let reason = crate::domain::retry::reason(&failure);
                let whose =
                    if id == ProfileId::DEFAULT { String::new() } else { format!(" of profile {name}") };
                tracing::warn!("could not check the key{whose} beforehand: {reason}; going on");
                None
            }
        }
    }

    /// Waits until it is worth looking again: somebody may have inserted, or, where all slots were
    /// taken, some are free.
    async fn wait(&mut self, wake: &Wake, stop: &CancellationToken, full: bool) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = wake.notified(), if !full => return,
                () = tokio::time::sleep(TURN) => self.mill.vitals.turns(Loop::Claims),
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
        // More answers would only join those that cannot be written.
        if self.mill.recorder.is_stalled() {
            return None;
        }
        let settings = &self.mill.settings;
        let free = settings.concurrency.saturating_sub(self.attempts.len());
        let bytes_max = settings.bytes_max - self.bytes;
        if free == 0 || (bytes_max <= 0 && !self.attempts.is_empty()) {
            return None;
        }
        let Open { slots, blocked, rooms } = self.mill.gates.open(Instant::now());
        let slots = slots.min(free);
        if slots == 0 {
            return None;
        }
        Some(Wanted {
            worker: self.mill.worker(),
            slots,
            bytes_max,
            suspect: self.suspects == 0,
            queues: settings.queues.clone(),
            default_model: self.mill.me.default_model.clone(),
            profiles: self.mill.profiles.words(),
            blocked,
            rooms,
        })
    }

    async fn claim(&mut self) -> Found {
        let Some(wanted) = self.wanted() else {
            let free = self.attempts.len() < self.mill.settings.concurrency;
            return if free { Found::Shut } else { Found::Full };
        };
        failpoint!("claim.before");
        match self.mill.store.claim(&wanted).await {
            Ok(claimed) => {
                failpoint!("claim.after");
                if self.ailing.take().is_some() {
                    tracing::info!("the database is back: could claim");
                }
                let many = claimed.len();
                traces::claimed(&self.mill, &claimed);
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
        let Claimed { lease, bytes, tally, .. } = claimed;
        let rein = Rein::default();
        if tally.is_suspect() {
            tracing::warn!(job.id = %lease.job, job.crashes = tally.crashes, "job {} is run as the only suspect: {} worker processes died while they ran it", lease.job, tally.crashes);
        }
        if let Some(waited) = claimed.waited {
            self.mill.vitals.meters.waited(&claimed.queue, waited);
        }
        self.mill.running.lock().insert(lease, rein.clone());
        let mill = Arc::clone(&self.mill);
        let lane = Lane::of_row(&claimed);
        let default = &self.mill.me.default_model;
        let model = claimed.model.as_ref().or(claimed.queue_model.as_ref()).unwrap_or(default);
        self.mill.gates.claimed(lease, &lane, model, Instant::now());
        self.bytes += bytes;
        self.suspects += usize::from(tally.is_suspect());
        let work = Work { lease, bytes, tally, lane, rein: rein.clone(), since: Instant::now() };
        // In a box: the runtime would move its kilobytes about with every step from spawned to joined.
        let task = self.attempts.spawn(Box::pin(async move {
            let ended = attempt(&mill, claimed, &rein).await;
            traces::ended(&mill, lease, ended);
            ended
        }));
        self.works.insert(task.id(), work);
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
        let Some(work) = self.works.remove(&id) else { return false };
        let ended = match ended {
            Ok((_, ended)) => ended,
            Err(err) => {
                self.settle_panicked(work, &err);
                return false;
            }
        };
        self.mill.running.lock().remove(&work.lease);
        self.mill.gates.over(work.lease, &work.lane);
        self.bytes -= work.bytes;
        self.suspects -= usize::from(work.tally.is_suspect());
        self.mill.vitals.meters.attempted(&work.lane.queue, ended.as_str(), work.since.elapsed());
        if let Ended::Settled(outcome) = ended {
            self.mill.ended(Some(&work.lane.queue), outcome);
            if work.rein.why() == Some(Why::Lost) {
                self.mill.vitals.meters.was_adopted();
            }
        }
        ended == Ended::Released
    }

    /// A panic in one job's code fails that job only. It is worked on until that is written.
    fn settle_panicked(&mut self, work: Work, err: &tokio::task::JoinError) {
        let (lease, tally, rein) = (work.lease, work.tally, work.rein.clone());
        tracing::error!(job.id = %lease.job, "the attempt of job {} panicked: {err}", lease.job);
        let mill = Arc::clone(&self.mill);
        let task = self.attempts.spawn(async move {
            let ended = attempt::settle_panicked(&mill, lease, tally, &rein).await;
            traces::ended(&mill, lease, ended);
            ended
        });
        self.works.insert(task.id(), work);
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
    async fn let_finish(&mut self, hurry: &CancellationToken) -> bool {
        let grace = self.mill.settings.grace;
        if !self.attempts.is_empty() {
            tracing::info!(
                calls = self.attempts.len(),
                "waiting up to {:.0} s for running calls",
                grace.as_secs_f64()
            );
        }
        let finished = tokio::select! {
            () = self.all_reaped() => true,
            () = tokio::time::sleep(grace) => false,
            () = hurry.cancelled() => false,
        };
        if !finished {
            for rein in self.mill.running.lock().values() {
                rein.pull(Why::Shutdown);
            }
        }
        let mill = Arc::clone(&self.mill);
        let hurried = async {
            hurry.cancelled().await;
            tokio::time::sleep(HURRIED_WRITES).await;
            mill.recorder.keep_at_once();
            tokio::time::sleep(HURRIED_WORDS).await;
        };
        let written = async {
            self.all_reaped().await;
            // What an earlier process left has no attempt that waits for it.
            mill.recorder.all_written().await;
        };
        tokio::select! {
            () = written => true,
            () = tokio::time::sleep(LAST_WRITES) => false,
            () = hurried => false,
        }
    }

    async fn all_reaped(&mut self) {
        while let Some(ended) = self.attempts.join_next_with_id().await {
            self.reaped(ended);
        }
    }
}
