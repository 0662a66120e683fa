//! Whether a call may be made: gates for the key, for each model and for batches that the API
//! refuses, kept in this process and shared with all daemons through the table `gates`.
//!
//! The copy here decides, but for probes: who may probe is decided in the table, by compare-and-set.
//! [`Gates::sync`] takes over what others changed and writes what changed here. Nothing here waits for
//! a gate: a blocked job goes back to the table.

mod pace;
mod scope;
mod sync;
mod trust;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::domain::breaker::{Breaker, BreakerSettings, Health};
use crate::domain::gate::{Admission, Gate, State};
use crate::domain::job::{Job, Lease};
use crate::domain::outcome::{Fault, Usage};
use crate::domain::pace::Spent;
use crate::store::{Blocked, ClassOf, Rooms, Store};

pub use pace::PaceSettings;
use pace::{Paced, Paces};
pub use scope::Lane;
use scope::Scope;
use trust::Trust;

/// How long a model that was not there is remembered.
const MISSING_FOR: Duration = Duration::from_mins(10);
/// So many same refusals in a row, over all daemons, stop a batch.
const SAME_REFUSALS: u32 = 20;
/// Jobs without a label that meet the same refusal again and again are tried one at a time, after a
/// pause that doubles from the first of these to the second.
const REFUSED_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// So many jobs of different batches in a row whose 401, 402 or 403 nobody can explain block the key.
const SUSPECTS: usize = 3;
/// How long a gate is left alone whose probe could not be had.
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// Models and batches that are remembered; those that say nothing are forgotten beyond.
const REMEMBERED: usize = 4096;

/// All gates of this process.
pub struct Gates {
    profile: String,
    settings: BreakerSettings,
    class_of: ClassOf,
    inner: Mutex<Inner>,
    /// Something changed that the others should know at once.
    changed: Notify,
    /// Something opened: more may be claimed.
    opened: Notify,
    /// A ticket may be had now.
    moved: Notify,
    /// A limit is known that nothing was taken of yet.
    take_now: Notify,
}

struct Inner {
    fingerprint: String,
    key: Gate,
    models: HashMap<String, Breaker>,
    paces: Paces,
    /// Batches that do not flow.
    batches: HashMap<Lane, Gate>,
    /// How far each labelled batch is trusted.
    trust: HashMap<Lane, Trust>,
    missing: HashMap<String, (Instant, Fault)>,
    suspects: HashSet<String>,
    /// Generations as they were last read or written.
    seen: HashMap<String, i64>,
    /// Batches whose row counts refusals.
    counted: HashSet<Lane>,
    /// Scopes that changed here and are not in the table yet.
    changed: HashSet<Scope>,
}

/// The right to make one call. Dropped without a report, its probes are given back.
pub struct Permit<'a> {
    gates: &'a Gates,
    model: String,
    lane: Lane,
    probes: Vec<(Scope, u64)>,
    paced: Option<Paced>,
    begun: AtomicBool,
}

/// Why a call may not be made now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Behind a gate: the job goes back untouched.
    Blocked(String),
    /// The model that the job names was not there a moment ago: it ends without a call.
    Missing(Fault),
}

/// What claims may take now.
#[derive(Clone)]
pub struct Open {
    /// At most so many jobs; none where the key is blocked.
    pub slots: usize,
    /// Nothing of these lanes.
    pub blocked: Blocked,
    /// No more than this of those.
    pub rooms: Rooms,
}

impl Gates {
    /// Returns gates that all flow.
    pub fn new(settings: BreakerSettings, pace: PaceSettings, profile: &str, fingerprint: String) -> Self {
        let named = pace.clone();
        let class_of: ClassOf = Arc::new(move |model| named.class(model));
        let inner = Inner {
            fingerprint,
            key: Gate::default(),
            models: HashMap::new(),
            paces: Paces::new(pace),
            batches: HashMap::new(),
            trust: HashMap::new(),
            missing: HashMap::new(),
            suspects: HashSet::new(),
            seen: HashMap::new(),
            counted: HashSet::new(),
            changed: HashSet::new(),
        };
        Self {
            profile: profile.to_owned(),
            settings,
            class_of,
            inner: Mutex::new(inner),
            changed: Notify::new(),
            opened: Notify::new(),
            moved: Notify::new(),
            take_now: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something changed that this process or the others should know at once.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Makes the next [`Gates::sync`] come soon.
    pub fn look(&self) {
        self.changed.notify_one();
    }

    /// Waits until something opened.
    pub async fn opened(&self) {
        self.opened.notified().await;
    }

    /// What claims may take now.
    pub fn open(&self, now: Instant) -> Open {
        let inner = self.lock();
        let mut blocked = Blocked::default();
        let mut rooms = Rooms {
            batch: Some(trust::FIRST),
            class: Some(1),
            classes: inner.paces.rooms(now),
            class_of: Some(Arc::clone(&self.class_of)),
            ..Rooms::default()
        };
        for (model, breaker) in &inner.models {
            match breaker.gate().peek(now) {
                Admission::Flow => {}
                Admission::Probe => drop(rooms.models.insert(model.clone(), 1)),
                Admission::Blocked => blocked.models.push(model.clone()),
            }
        }
        for (lane, trust) in &inner.trust {
            // A batch that is not named here would get the room of one that nobody knows.
            rooms.batches.insert(lane.pair(), trust.room().unwrap_or(usize::MAX));
        }
        for (lane, gate) in &inner.batches {
            match gate.peek(now) {
                Admission::Flow => {}
                Admission::Probe => drop(rooms.batches.insert(lane.pair(), 1)),
                Admission::Blocked => blocked.batches.push(lane.pair()),
            }
        }
        let slots = match inner.key.peek(now) {
            Admission::Flow => usize::MAX,
            Admission::Probe => 1,
            Admission::Blocked => 0,
        };
        Open { slots, blocked, rooms }
    }

    /// Whether nothing is blocked that may open by itself at any moment.
    pub fn all_flow(&self) -> bool {
        let inner = self.lock();
        inner.key.state() == State::Flowing
            && inner.batches.is_empty()
            && !inner.paces.is_paused()
            && inner.models.values().all(|breaker| breaker.gate().state() == State::Flowing)
    }

    /// The lanes that only a person or a date opens, for a drain: `None` where it is the key.
    pub fn held(&self) -> Option<Blocked> {
        let inner = self.lock();
        let models = inner.models.iter().filter(|(_, breaker)| breaker.gate().is_held());
        let batches = inner.batches.iter().filter(|(_, gate)| gate.is_held());
        let held = Blocked {
            models: models.map(|(model, _)| model.clone()).collect(),
            batches: batches.map(|(lane, _)| lane.pair()).collect(),
        };
        (inner.key.state() == State::Flowing).then_some(held)
    }

    /// Whether the pace keeps jobs from being claimed just now: then it says nothing that none came.
    pub fn is_limiting(&self, now: Instant) -> bool {
        self.lock().paces.is_limiting(now)
    }

    /// Notes that a job of this lane was claimed, which will ask this model.
    pub fn claimed(&self, lease: Lease, lane: &Lane, model: &str, now: Instant) {
        let mut inner = self.lock();
        inner.paces.claimed(lease, model, now);
        if lane.is_labelled() {
            if inner.trust.len() >= REMEMBERED {
                inner.trust.retain(|_, trust| trust.is_in_use());
            }
            inner.trust.entry(lane.clone()).or_default().begin();
        }
    }

    /// Notes that it is over.
    pub fn over(&self, lease: Lease, lane: &Lane) {
        let mut inner = self.lock();
        inner.paces.waits_no_more(lease);
        if let Some(trust) = inner.trust.get_mut(lane) {
            trust.end();
        }
    }

    /// Asks to make a call of so many bytes for a job, and waits a little for its turn. Where it would be
    /// a probe, the table decides who makes it.
    pub async fn admit(
        &self,
        store: &dyn Store,
        lease: Lease,
        job: &Job,
        bytes: usize,
        stop: &CancellationToken,
    ) -> Result<Permit<'_>, Refusal> {
        let lane = Lane::of(job);
        let scopes = [Scope::Key, Scope::Model(job.model.clone()), Scope::Batch(lane.clone())];
        let class = Scope::Rate((self.class_of)(&job.model));
        // Who would only wait to be refused need not wait.
        self.is_there(job, Instant::now())?;
        for scope in scopes.iter().chain([&class]) {
            if self.peek(scope, Instant::now()) == Admission::Blocked {
                return Err(Refusal::Blocked(self.reason(scope)));
            }
        }
        let paced = self.pace(job, job.weight(bytes), stop).await;
        self.lock().paces.waits_no_more(lease);
        let mut permit = Permit {
            gates: self,
            model: job.model.clone(),
            lane,
            probes: Vec::new(),
            paced: Some(paced?),
            begun: AtomicBool::new(false),
        };
        self.is_there(job, Instant::now())?;
        for scope in scopes {
            match self.peek(&scope, Instant::now()) {
                Admission::Flow => {}
                Admission::Probe => {
                    let number = self.take_probe(store, &scope).await?;
                    permit.probes.push((scope, number));
                }
                Admission::Blocked => return Err(Refusal::Blocked(self.reason(&scope))),
            }
        }
        Ok(permit)
    }

    /// Refuses a job that names a model which was not there a moment ago.
    fn is_there(&self, job: &Job, now: Instant) -> Result<(), Refusal> {
        let mut inner = self.lock();
        if job.model_named
            && let Some((since, fault)) = inner.missing.get(&job.model)
        {
            if now.saturating_duration_since(*since) < MISSING_FOR {
                return Err(Refusal::Missing(fault.clone()));
            }
            inner.missing.remove(&job.model);
        }
        Ok(())
    }

    fn peek(&self, scope: &Scope, now: Instant) -> Admission {
        let mut inner = self.lock();
        match scope {
            Scope::Key => inner.key.peek(now),
            Scope::Model(model) => inner.model(model, self.settings, now).gate().peek(now),
            Scope::Batch(lane) => inner.batches.get(lane).map_or(Admission::Flow, |gate| gate.peek(now)),
            // Many may go when a pause is over: it is never probed.
            Scope::Rate(class) if inner.paces.row(class, now).is_some() => Admission::Blocked,
            Scope::Rate(_) => Admission::Flow,
        }
    }

    fn reason(&self, scope: &Scope) -> String {
        let inner = self.lock();
        let reason = match scope {
            Scope::Rate(class) => inner.paces.row(class, Instant::now()).map(|(reason, _)| reason),
            _ => inner.gate(scope).and_then(Gate::reason).map(str::to_owned),
        };
        reason.unwrap_or_else(|| "rate limit".to_owned())
    }

    /// The account may not use this key; after this rest one call asks again.
    pub fn block_key(&self, reason: &str, rest: Duration, now: Instant) {
        let mut inner = self.lock();
        if inner.key.state() == State::Flowing {
            tracing::error!(gate.reason = reason, "the key's gate blocks: {reason}");
        }
        inner.key.block(reason, Some(rest), now);
        self.tell(&mut inner, Scope::Key);
    }

    /// The key changed: what is known of the old one does not hold for the new.
    pub fn new_key(&self, fingerprint: String) {
        let mut inner = self.lock();
        (inner.fingerprint, inner.key) = (fingerprint, Gate::default());
        inner.paces = inner.paces.for_another_key();
        inner.suspects.clear();
        self.opened.notify_one();
    }

    /// A job met a 401, 402 or 403 that the key itself does not explain. Returns whether enough
    /// jobs of different batches did in a row to hold it against the key.
    pub fn suspect(&self, job: &Job) -> bool {
        let mut inner = self.lock();
        let label = match &job.batch {
            Some(batch) => format!("batch {}/{batch}", job.queue),
            // Rows without a label are one batch here: a handful of them must not stop everybody.
            None => format!("queue {}", job.queue),
        };
        inner.suspects.insert(label);
        inner.suspects.len() >= SUSPECTS
    }

    /// The model that jobs without one get is not there: it blocks until a person acts.
    pub fn hold_model(&self, model: &str, reason: &str, now: Instant) {
        let mut inner = self.lock();
        let gate = inner.model(model, self.settings, now).gate_mut();
        if !gate.is_held() {
            tracing::error!(gate.model = model, "the gate of model {model} blocks: {reason}");
        }
        gate.block(reason, None, now);
        self.tell(&mut inner, Scope::Model(model.to_owned()));
    }

    /// A model that a job names is not there: jobs that name it end without a call for a while.
    pub fn remember_missing(&self, model: &str, fault: Fault, now: Instant) {
        let mut inner = self.lock();
        if inner.missing.len() >= REMEMBERED {
            inner.missing.retain(|_, (since, _)| now.saturating_duration_since(*since) < MISSING_FOR);
        }
        inner.missing.insert(model.to_owned(), (now, fault));
    }

    /// The API refused a job for its own fault. The same again and again, over all daemons, stops a
    /// labelled batch until a person acts; without a label one job at a time is tried, ever more seldom.
    pub async fn refused(&self, store: &dyn Store, permit: &Permit<'_>, signature: &str) {
        let scope = Scope::Batch(permit.lane.clone());
        let word = scope::short(signature);
        let same = match store.count_refusal(&self.name(&scope), &word).await {
            Ok(same) => same,
            Err(err) => {
                tracing::debug!(error = %err, "failed to count a refusal");
                return;
            }
        };
        let now = Instant::now();
        let mut inner = self.lock();
        if same > 0 {
            inner.counted.insert(permit.lane.clone());
        }
        if let Some(trust) = inner.trust.get_mut(&permit.lane) {
            trust.refused(same);
        }
        let probe = permit.probe(&scope);
        let gate = inner.batches.entry(permit.lane.clone()).or_default();
        // While it is blocked only the probe's word counts: the others set out before.
        if gate.awaits(probe) || (same >= SAME_REFUSALS && gate.state() == State::Flowing) {
            let (reason, pause) = permit.lane.stopped(gate.blocks());
            tracing::warn!(job.queue = %permit.lane.queue, job.batch = %permit.lane.batch, "{} is stopped: {reason}", permit.lane);
            gate.block(&reason, pause, now);
            self.tell(&mut inner, scope);
        } else if gate.state() == State::Flowing {
            inner.batches.remove(&permit.lane);
        }
    }

    fn tell(&self, inner: &mut Inner, scope: Scope) {
        inner.changed.insert(scope);
        self.changed.notify_one();
    }

    fn reported(&self, permit: &Permit<'_>, health: Health, reason: &str, now: Instant, dice: f64) -> bool {
        let mut inner = self.lock();
        let scope = Scope::Model(permit.model.clone());
        let breaker = inner.model(&permit.model, self.settings, now);
        let before = breaker.gate().state();
        breaker.report(health, reason, permit.probe(&scope), now, dice);
        let after = breaker.gate().state();
        if before != after {
            match after {
                State::Flowing => {
                    tracing::info!(gate.model = %permit.model, "model {} flows again", permit.model);
                    self.opened.notify_one();
                }
                State::Blocked { until } => {
                    let pause = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
                    tracing::warn!(
                        gate.model = %permit.model,
                        breaker.pause_ms = pause.as_millis() as u64,
                        "model {} is blocked for {:.0} s: {reason}", permit.model, pause.as_secs_f64()
                    );
                }
                State::Probing { .. } => {}
            }
            self.tell(&mut inner, scope);
        }
        after != State::Flowing
    }
}

impl Inner {
    fn model(&mut self, model: &str, settings: BreakerSettings, now: Instant) -> &mut Breaker {
        if self.models.len() >= REMEMBERED {
            self.models.retain(|_, breaker| !breaker.is_idle(now));
        }
        self.models.entry(model.to_owned()).or_insert_with(|| Breaker::new(settings, now))
    }

    fn gate(&self, scope: &Scope) -> Option<&Gate> {
        match scope {
            Scope::Key => Some(&self.key),
            Scope::Model(model) => self.models.get(model).map(Breaker::gate),
            Scope::Batch(lane) => self.batches.get(lane),
            Scope::Rate(_) => None,
        }
    }

    fn gate_mut(&mut self, scope: &Scope) -> Option<&mut Gate> {
        match scope {
            Scope::Key => Some(&mut self.key),
            Scope::Model(model) => self.models.get_mut(model).map(Breaker::gate_mut),
            Scope::Batch(lane) => self.batches.get_mut(lane),
            Scope::Rate(_) => None,
        }
    }
}

impl Permit<'_> {
    /// Whether this call is a probe.
    pub fn is_probe(&self) -> bool {
        !self.probes.is_empty()
    }

    fn probe(&self, scope: &Scope) -> Option<u64> {
        self.probes.iter().find(|(mine, _)| mine == scope).map(|(_, number)| *number)
    }

    /// The first content event came: whatever this call was to find out, it may be done again.
    pub fn content(&self, now: Instant) {
        if self.begun.swap(true, Ordering::Relaxed) {
            return;
        }
        self.gates.reported(self, Health::Well, "", now, 0.0);
        let mut inner = self.gates.lock();
        self.pace_content(&mut inner, now);
        inner.suspects.clear();
        if let Some(trust) = inner.trust.get_mut(&self.lane)
            && trust.clean()
        {
            self.gates.opened.notify_one();
        }
        if inner.counted.remove(&self.lane) {
            self.gates.tell(&mut inner, Scope::Batch(self.lane.clone()));
        }
        if self.probe(&Scope::Key).is_some_and(|number| inner.key.awaits(Some(number))) {
            inner.key.flow();
            tracing::info!("the key's gate flows again");
            self.gates.tell(&mut inner, Scope::Key);
            self.gates.opened.notify_one();
        }
        let scope = Scope::Batch(self.lane.clone());
        if self.probe(&scope).is_some() && inner.batches.remove(&self.lane).is_some() {
            tracing::info!(job.queue = %self.lane.queue, job.batch = %self.lane.batch, "{} flows again", self.lane);
            self.gates.tell(&mut inner, scope);
            self.gates.opened.notify_one();
        }
    }

    /// The call was answered whole, and cost so much.
    pub fn accept(mut self, usage: Usage, now: Instant) {
        // An answer without content has begun too.
        self.content(now);
        self.spent(Spent::answered(usage), now);
    }

    /// Whether the answer has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// The call failed. `reason` is shown where that makes the breaker block. Returns whether the
    /// model's gate does not flow now.
    pub fn fail(&self, health: Health, reason: &str, now: Instant, dice: f64) -> bool {
        self.gates.reported(self, health, reason, now, dice)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        self.spent(Spent::Nothing, now);
        let mut inner = self.gates.lock();
        // A probe that found nothing out may go at once again, whoever takes it.
        for (scope, number) in &self.probes {
            if let Some(gate) = inner.gate_mut(scope)
                && gate.awaits(Some(*number))
            {
                gate.give_back(*number, now);
                self.gates.tell(&mut inner, scope.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests;
