//! Whether a call may be made: gates for each key, for each profile's models and for batches that the
//! API refuses, kept in this process and shared with all daemons through the table `gates`.
//!
//! The copy here decides, but for probes: who may probe is decided in the table, by compare-and-set.
//! [`Gates::sync`] takes over what others changed and writes what changed here. Nothing here waits for
//! a gate: a blocked job goes back to the table.

mod pace;
mod ramp;
mod scope;
mod sync;
mod trust;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::profiles::{ProfileId, Profiles};
use crate::domain::breaker::{Breaker, BreakerSettings, Health};
use crate::domain::gate::{Admission, Gate, State};
use crate::domain::job::{Job, Lease};
use crate::domain::outcome::{Fault, Usage};
use crate::domain::pace::Spent;
use crate::store::{Blocked, Rated, Rooms, Store};

pub use pace::PaceSettings;
use pace::{Paced, Paces, Tier};
use ramp::Ramps;
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
pub(super) const REMEMBERED: usize = 4096;

/// All gates of this process.
pub struct Gates {
    /// The profiles' names.
    names: Profiles<String>,
    settings: BreakerSettings,
    classes: Arc<PaceSettings>,
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
    accounts: Profiles<Account>,
    /// The keys in use. Profiles that have the same key share its gate, its suspects and its paces.
    keys: HashMap<String, Key>,
    paces: Paces,
    /// The models that were unwell a moment ago.
    ramps: Ramps,
    /// Batches that do not flow.
    batches: HashMap<Lane, Gate>,
    /// How far each labelled batch is trusted.
    trust: HashMap<Lane, Trust>,
    /// Generations as they were last read or written.
    seen: HashMap<String, i64>,
    /// Generations of rows that are being written here, as they will be read.
    sending: HashMap<String, i64>,
    read: sync::Read,
    /// Batches whose row counts refusals.
    counted: HashSet<Lane>,
    /// Scopes that changed here and are not in the table yet.
    changed: HashSet<Scope>,
}

/// What is known of one profile.
struct Account {
    key: String,
    models: HashMap<String, Breaker>,
    missing: HashMap<String, (Instant, Fault)>,
}

/// What is known of one key.
#[derive(Default)]
struct Key {
    gate: Gate,
    suspects: HashSet<String>,
}

/// The right to make one call. Dropped without a report, its probes are given back.
pub struct Permit<'a> {
    gates: &'a Gates,
    lease: Lease,
    profile: ProfileId,
    key: String,
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
    /// The model that the job names is gone for good: we refuse it.
    Retired(Fault),
}

/// What claims may take now.
#[derive(Clone)]
pub struct Open {
    /// At most so many jobs; none where every key is blocked.
    pub slots: usize,
    /// Nothing of these lanes.
    pub blocked: Blocked,
    /// No more than this of those.
    pub rooms: Rooms,
}

impl Gates {
    /// Returns gates that all flow, of these profiles: each a name and a key.
    pub fn new(settings: BreakerSettings, pace: PaceSettings, profiles: &Profiles<(String, String)>) -> Self {
        let account = |(_, key): &(String, String)| Account {
            key: key.clone(),
            models: HashMap::new(),
            missing: HashMap::new(),
        };
        let classes = Arc::new(pace);
        let inner = Inner {
            accounts: profiles.map(account),
            keys: profiles.iter().map(|(_, (_, key))| (key.clone(), Key::default())).collect(),
            paces: Paces::new(Arc::clone(&classes)),
            ramps: Ramps::default(),
            batches: HashMap::new(),
            trust: HashMap::new(),
            seen: HashMap::new(),
            sending: HashMap::new(),
            read: sync::Read::default(),
            counted: HashSet::new(),
            changed: HashSet::new(),
        };
        Self {
            names: profiles.map(|(name, _)| name.clone()),
            settings,
            classes,
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
            rated: Some(self.rated(&inner)),
            ..Rooms::default()
        };
        for (key, known) in &inner.keys {
            if known.gate.peek(now) == Admission::Probe {
                rooms.keys.insert(key.clone(), 1);
            }
        }
        for (id, account) in inner.accounts.iter() {
            if inner.keys[&account.key].gate.peek(now) == Admission::Blocked {
                blocked.profiles.push(id.word());
                continue;
            }
            for (model, breaker) in &account.models {
                match breaker.peek(now) {
                    Admission::Flow => {}
                    Admission::Probe => drop(rooms.models.insert((id.word(), model.clone()), 1)),
                    Admission::Blocked => blocked.models.push((id.word(), model.clone())),
                }
            }
        }
        for (profile, model, room) in inner.ramps.rooms(now) {
            // A probe's room stays its own.
            rooms.models.entry((profile.word(), model.to_owned())).or_insert(room);
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
        let all_blocked = blocked.profiles.len() == inner.accounts.iter().count();
        Open { slots: if all_blocked { 0 } else { usize::MAX }, blocked, rooms }
    }

    /// With which key a profile's calls are made, and which class a model has, as it is now.
    fn rated(&self, inner: &Inner) -> Rated {
        let keys: HashMap<String, String> =
            inner.accounts.iter().map(|(id, account)| (id.word(), account.key.clone())).collect();
        let classes = Arc::clone(&self.classes);
        Arc::new(move |profile, model| (keys.get(profile).cloned().unwrap_or_default(), classes.class(model)))
    }

    /// With which profile the jobs of a queue are asked.
    fn whose(&self, queue: &str) -> ProfileId {
        self.names.of(queue)
    }

    /// The budget that a call to a model takes from, with the key of a queue's profile.
    fn tier(&self, inner: &Inner, queue: &str, model: &str) -> Tier {
        (inner.accounts[self.whose(queue)].key.clone(), self.classes.class(model))
    }

    /// Whether nothing is blocked that may open by itself at any moment.
    pub fn all_flow(&self) -> bool {
        let inner = self.lock();
        let models = inner.accounts.iter().flat_map(|(_, account)| account.models.values());
        inner.keys.values().all(|key| key.gate.state() == State::Flowing)
            && inner.batches.is_empty()
            && !inner.paces.is_paused()
            && models.map(Breaker::gate).all(|gate| gate.state() == State::Flowing)
    }

    /// The lanes that only a person or a date opens, for a drain: a key that does not flow is such a one.
    pub fn held(&self) -> Blocked {
        self.behind(Gate::is_held)
    }

    /// The lanes that do not flow just now, for people.
    pub fn shut(&self) -> Blocked {
        self.behind(|gate| gate.state() != State::Flowing)
    }

    /// The lanes behind keys that do not flow, and behind models and batches that are so.
    fn behind(&self, is_so: impl Fn(&Gate) -> bool) -> Blocked {
        let inner = self.lock();
        let mut behind = Blocked::default();
        for (id, account) in inner.accounts.iter() {
            if inner.keys[&account.key].gate.state() != State::Flowing {
                behind.profiles.push(id.word());
            }
            let models = account.models.iter().filter(|(_, breaker)| is_so(breaker.gate()));
            behind.models.extend(models.map(|(model, _)| (id.word(), model.clone())));
        }
        let batches = inner.batches.iter().filter(|(_, gate)| is_so(gate));
        behind.batches.extend(batches.map(|(lane, _)| lane.pair()));
        behind
    }

    /// Whether the pace keeps jobs from being claimed just now, or a model that comes back: then it says nothing
    /// that none came.
    pub fn is_limiting(&self, now: Instant) -> bool {
        let inner = self.lock();
        inner.paces.is_limiting(now) || inner.ramps.rooms(now).any(|(_, _, room)| room == 0)
    }

    /// Notes that a job of this lane was claimed, which will ask this model.
    pub fn claimed(&self, lease: Lease, lane: &Lane, model: &str, now: Instant) {
        let mut inner = self.lock();
        let tier = self.tier(&inner, &lane.queue, model);
        inner.paces.claimed(lease, tier, now);
        inner.ramps.claimed(lease, self.whose(&lane.queue), model, now);
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
        if inner.ramps.heard(lease) {
            self.opened.notify_one();
        }
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
        let profile = self.whose(&job.queue);
        let tier = self.tier(&self.lock(), &job.queue, &job.model);
        let key = tier.0.clone();
        let scopes =
            [Scope::Key(key.clone()), Scope::Model(profile, job.model.clone()), Scope::Batch(lane.clone())];
        let class = Scope::Rate(tier.clone());
        // Who would only wait to be refused need not wait.
        self.is_there(job, Instant::now())?;
        for scope in scopes.iter().chain([&class]) {
            if self.peek(scope, Instant::now()) == Admission::Blocked {
                return Err(Refusal::Blocked(self.reason(scope)));
            }
        }
        let paced = self.pace(job, tier, bytes, stop).await;
        self.lock().paces.waits_no_more(lease);
        let mut permit = Permit {
            gates: self,
            lease,
            profile,
            key,
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
        let missing = &mut self.lock().accounts[self.whose(&job.queue)].missing;
        if job.model_named
            && let Some((since, fault)) = missing.get(&job.model)
        {
            if now.saturating_duration_since(*since) < MISSING_FOR {
                return Err(Refusal::Missing(fault.clone()));
            }
            missing.remove(&job.model);
        }
        Ok(())
    }

    fn peek(&self, scope: &Scope, now: Instant) -> Admission {
        let mut inner = self.lock();
        match scope {
            // A key that is not in use any more is nobody's hindrance: its calls are refused, and asked again.
            Scope::Key(key) => inner.keys.get(key).map_or(Admission::Flow, |key| key.gate.peek(now)),
            Scope::Model(profile, model) => inner.model(*profile, model, self.settings, now).peek(now),
            Scope::Batch(lane) => inner.batches.get(lane).map_or(Admission::Flow, |gate| gate.peek(now)),
            // Many may go when a pause is over: it is never probed.
            Scope::Rate(tier) if inner.paces.row(tier, now).is_some() => Admission::Blocked,
            Scope::Rate(_) => Admission::Flow,
        }
    }

    fn reason(&self, scope: &Scope) -> String {
        let inner = self.lock();
        let reason = match scope {
            Scope::Rate(tier) => inner.paces.row(tier, Instant::now()).map(|(reason, _)| reason),
            _ => inner.gate(scope).and_then(Gate::reason).map(str::to_owned),
        };
        reason.unwrap_or_else(|| "rate limit".to_owned())
    }

    /// The account may not use this key; after this rest one call asks again. Nothing where the key is
    /// not in use any more.
    pub fn block_key(&self, key: &str, reason: &str, rest: Duration, now: Instant) {
        let mut inner = self.lock();
        let Some(known) = inner.keys.get_mut(key) else { return };
        // A call that was under way already lifts no block that lasts longer, a person's least of all.
        if let State::Blocked { until } = known.gate.state()
            && until.is_none_or(|until| until >= now + rest)
        {
            return;
        }
        if known.gate.state() == State::Flowing {
            tracing::error!(gate.key = key, gate.reason = reason, "the gate of key {key} blocks: {reason}");
        }
        known.gate.block(reason, Some(rest), now);
        self.tell(&mut inner, Scope::Key(key.to_owned()));
    }

    /// A profile's key changed: what is known of the old one does not hold for the new, about which
    /// something may be known from another profile or from the table.
    pub fn new_key(&self, profile: ProfileId, key: String) {
        let mut inner = self.lock();
        let old = std::mem::replace(&mut inner.accounts[profile].key, key.clone());
        if !inner.accounts.iter().any(|(_, account)| account.key == old) {
            inner.keys.remove(&old);
            inner.paces.forget_key(&old);
            inner.changed.retain(|scope| scope.key() != Some(&old));
        }
        if !inner.keys.contains_key(&key) {
            // Its rows count as not read: nothing was taken over of a key that was not ours.
            let (gate, rates) = (format!("key:{key}"), format!("rate:{key}/"));
            inner.seen.retain(|scope, _| *scope != gate && !scope.starts_with(&rates));
            inner.keys.insert(key, Key::default());
        }
        self.changed.notify_one();
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
        let key = inner.accounts[self.whose(&job.queue)].key.clone();
        let suspects = &mut inner.keys.entry(key).or_default().suspects;
        suspects.insert(label);
        suspects.len() >= SUSPECTS
    }

    /// The model that jobs without one get is not there: it blocks until a person acts.
    pub fn hold_model(&self, job: &Job, reason: &str, now: Instant) {
        let (profile, model) = (self.whose(&job.queue), &job.model);
        let mut inner = self.lock();
        let gate = inner.model(profile, model, self.settings, now).gate_mut();
        if !gate.is_held() {
            tracing::error!(gate.model = %model, "the gate of model {model} blocks: {reason}");
        }
        gate.block(reason, None, now);
        self.tell(&mut inner, Scope::Model(profile, model.clone()));
    }

    /// A model that a job names is not there: jobs that name it end without a call for a while.
    pub fn remember_missing(&self, job: &Job, fault: Fault, now: Instant) {
        let missing = &mut self.lock().accounts[self.whose(&job.queue)].missing;
        if missing.len() >= REMEMBERED {
            missing.retain(|_, (since, _)| now.saturating_duration_since(*since) < MISSING_FOR);
        }
        missing.insert(job.model.clone(), (now, fault));
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
        // Nobody counts behind a gate that does not flow: what another daemon wrote is to be known before the
        // next job of this batch is claimed.
        if same == 0
            && !self.is_vouched(&permit.lane)
            && let Err(err) = self.sync(store, now).await
        {
            tracing::debug!(error = %err, "failed to read the gates");
        }
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

    /// Whether a batch is trusted without end, be it that a person lets it fail.
    fn is_vouched(&self, lane: &Lane) -> bool {
        self.lock().trust.get(lane).is_some_and(|trust| trust.room().is_none())
    }

    fn tell(&self, inner: &mut Inner, scope: Scope) {
        inner.changed.insert(scope);
        self.changed.notify_one();
    }

    fn reported(&self, permit: &Permit<'_>, health: Health, reason: &str, now: Instant, dice: f64) -> bool {
        let mut inner = self.lock();
        let scope = Scope::Model(permit.profile, permit.model.clone());
        let breaker = inner.model(permit.profile, &permit.model, self.settings, now);
        let before = breaker.gate().state();
        breaker.report(health, reason, permit.probe(&scope), now, dice);
        let after = breaker.gate().state();
        let makes_room = inner.ramps.heard(permit.lease);
        if inner.ramps.report(permit.profile, &permit.model, health, now) || makes_room {
            self.opened.notify_one();
        }
        if before != after {
            inner.moves_ramp(permit.profile, &permit.model, after, now);
            // The gate's rest is the pause for an overload; our own, which may be longer, would come on top of it.
            inner.paces.resume(&(permit.key.clone(), self.classes.class(&permit.model)));
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
    /// What is claimed of a model that came back, or that does not flow any more.
    fn moves_ramp(&mut self, profile: ProfileId, model: &str, state: State, now: Instant) {
        match state {
            State::Flowing => self.ramps.begin(profile, model, now),
            State::Blocked { .. } | State::Probing { .. } => self.ramps.forget(profile, model),
        }
    }

    fn model(
        &mut self,
        profile: ProfileId,
        model: &str,
        settings: BreakerSettings,
        now: Instant,
    ) -> &mut Breaker {
        let models = &mut self.accounts[profile].models;
        if models.len() >= REMEMBERED {
            models.retain(|_, breaker| !breaker.is_idle(now));
        }
        models.entry(model.to_owned()).or_insert_with(|| Breaker::new(settings, now))
    }

    fn gate(&self, scope: &Scope) -> Option<&Gate> {
        match scope {
            Scope::Key(key) => self.keys.get(key).map(|key| &key.gate),
            Scope::Model(profile, model) => self.accounts[*profile].models.get(model).map(Breaker::gate),
            Scope::Batch(lane) => self.batches.get(lane),
            Scope::Rate(_) => None,
        }
    }

    fn gate_mut(&mut self, scope: &Scope) -> Option<&mut Gate> {
        match scope {
            Scope::Key(key) => self.keys.get_mut(key).map(|key| &mut key.gate),
            Scope::Model(profile, model) => {
                self.accounts[*profile].models.get_mut(model).map(Breaker::gate_mut)
            }
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

    /// Names the key that the call is made with, as its gate is named.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether this call is to find out whether the key may be used again.
    pub fn probes_key(&self) -> bool {
        self.probe(&Scope::Key(self.key.clone())).is_some()
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
        if let Some(key) = inner.keys.get_mut(&self.key) {
            key.suspects.clear();
        }
        if let Some(trust) = inner.trust.get_mut(&self.lane)
            && trust.clean()
        {
            self.gates.opened.notify_one();
        }
        if inner.counted.remove(&self.lane) {
            self.gates.tell(&mut inner, Scope::Batch(self.lane.clone()));
        }
        let scope = Scope::Key(self.key.clone());
        if let (Some(number), Some(gate)) = (self.probe(&scope), inner.gate_mut(&scope))
            && gate.awaits(Some(number))
        {
            gate.flow();
            tracing::info!(gate.key = %self.key, "the gate of key {} flows again", self.key);
            self.gates.tell(&mut inner, scope);
            self.gates.opened.notify_one();
        }
        let scope = Scope::Batch(self.lane.clone());
        let probe = self.probe(&scope);
        if inner.batches.get(&self.lane).is_some_and(|gate| gate.awaits(probe)) {
            inner.batches.remove(&self.lane);
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
        self.end_paced(Spent::Nothing, now);
        let mut inner = self.gates.lock();
        if inner.ramps.heard(self.lease) {
            self.gates.opened.notify_one();
        }
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
