//! Whether a call may be made: breakers, pauses and blocks, kept in this process and shown in the
//! table `gates`.
//!
//! The copy here decides; [`Gates::sync`] writes what changed and takes over what a person (or
//! another daemon) changed in the table. Nothing here waits: a blocked job goes back to the table.

mod sync;

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::domain::breaker::{Admission, Breaker, BreakerSettings, Health, State};
use crate::domain::job::Job;
use crate::domain::outcome::Fault;
use crate::store::Blocked;

/// How long a key that may not spend rests before one call finds out whether it may again.
const KEY_REST: Duration = Duration::from_mins(5);
/// How long a model that was not there is remembered.
const MISSING_FOR: Duration = Duration::from_mins(10);
/// So many same refusals in a row stop a labelled batch.
const SAME_REFUSALS: u32 = 20;
/// So many jobs of different batches in a row whose 401, 402 or 403 nobody can explain block the key.
const SUSPECTS: usize = 3;
/// A rate limit's pause of this length shows in the table: nobody would see a shorter one.
const LIMIT_SHOWN: Duration = Duration::from_secs(2);
/// How long a rate limit without a hint holds its model back.
const LIMIT_PAUSE: Duration = Duration::from_secs(1);

/// All gates of this process.
pub struct Gates {
    profile: String,
    settings: BreakerSettings,
    inner: Mutex<Inner>,
}

struct Inner {
    key: KeyGate,
    models: HashMap<String, ModelGate>,
    /// Stopped batches, by (queue, batch), with the reason.
    batches: HashMap<(String, String), String>,
    refusals: HashMap<(String, String), (String, u32)>,
    missing: HashMap<String, (Instant, Fault)>,
    suspects: HashSet<String>,
    /// Generations as they were last read or written.
    seen: HashMap<String, i64>,
    /// Scopes that changed here and are not in the table yet.
    changed: HashSet<String>,
}

struct KeyGate {
    fingerprint: String,
    block: Option<Block>,
    probing: bool,
}

#[derive(Clone)]
struct Block {
    reason: String,
    /// `None`: until a person opens it.
    until: Option<Instant>,
}

struct ModelGate {
    breaker: Breaker,
    /// Why the breaker blocks.
    reason: Option<String>,
    /// A block that only a person opens: the default model is missing, or somebody says so.
    held: Option<String>,
    /// A rate limit's pause.
    paused: Option<Instant>,
    /// Whether the table says so.
    limit_shown: bool,
}

/// The right to make one call. Dropped without a report, a probe is given back.
pub struct Permit<'a> {
    gates: &'a Gates,
    model: String,
    probe: Option<u64>,
    key_probe: bool,
    done: bool,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Open {
    /// Anything but these lanes.
    All(Blocked),
    /// One job, to find out whether the key may spend again.
    Probe(Blocked),
    /// Nothing.
    Nothing,
}

impl Gates {
    /// Returns gates that all flow.
    pub fn new(settings: BreakerSettings, profile: &str, fingerprint: String) -> Self {
        Self {
            profile: profile.to_owned(),
            settings,
            inner: Mutex::new(Inner {
                key: KeyGate { fingerprint, block: None, probing: false },
                models: HashMap::new(),
                batches: HashMap::new(),
                refusals: HashMap::new(),
                missing: HashMap::new(),
                suspects: HashSet::new(),
                seen: HashMap::new(),
                changed: HashSet::new(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What claims may take now.
    pub fn open(&self, now: Instant) -> Open {
        let inner = self.lock();
        let mut blocked = Blocked { batches: inner.batches.keys().cloned().collect(), ..Blocked::default() };
        for (model, gate) in &inner.models {
            match gate.peek(now) {
                Admission::Flow => {}
                Admission::Probe(_) => blocked.probes.push(model.clone()),
                Admission::Blocked => blocked.models.push(model.clone()),
            }
        }
        match &inner.key.block {
            None => Open::All(blocked),
            Some(Block { until: Some(until), .. }) if now >= *until && !inner.key.probing => {
                Open::Probe(blocked)
            }
            Some(_) => Open::Nothing,
        }
    }

    /// The lanes that only a person or a date opens, for a drain: `None` where it is the key.
    pub fn held(&self) -> Option<Blocked> {
        let inner = self.lock();
        let models =
            inner.models.iter().filter(|(_, gate)| gate.held.is_some()).map(|(model, _)| model.clone());
        let held = Blocked {
            models: models.collect(),
            probes: Vec::new(),
            batches: inner.batches.keys().cloned().collect(),
        };
        inner.key.block.is_none().then_some(held)
    }

    /// Asks to make a call for a job.
    pub fn admit(&self, job: &Job, now: Instant) -> Result<Permit<'_>, Refusal> {
        let mut inner = self.lock();
        if job.model_named
            && let Some((since, fault)) = inner.missing.get(&job.model)
        {
            if now.saturating_duration_since(*since) < MISSING_FOR {
                return Err(Refusal::Missing(fault.clone()));
            }
            inner.missing.remove(&job.model);
        }
        let mut key_probe = false;
        if let Some(block) = &inner.key.block {
            let due = block.until.is_some_and(|until| now >= until);
            if !due || inner.key.probing {
                return Err(Refusal::Blocked(block.reason.clone()));
            }
            key_probe = true;
        }
        let scope = self.model_scope(&job.model);
        let gate =
            inner.models.entry(job.model.clone()).or_insert_with(|| ModelGate::new(self.settings, now));
        let probe = match gate.admit(now) {
            Admission::Flow => None,
            Admission::Probe(number) => Some(number),
            Admission::Blocked => return Err(Refusal::Blocked(gate.reason())),
        };
        if probe.is_some() {
            inner.changed.insert(scope);
        }
        inner.key.probing |= key_probe;
        Ok(Permit { gates: self, model: job.model.clone(), probe, key_probe, done: false })
    }

    /// A model answered 429.
    pub fn limited(&self, model: &str, hint: Option<Duration>, now: Instant) {
        let mut inner = self.lock();
        if let Some(gate) = inner.models.get_mut(model) {
            let until = now + hint.unwrap_or(LIMIT_PAUSE);
            gate.paused = Some(gate.paused.map_or(until, |paused| paused.max(until)));
            if until.saturating_duration_since(now) >= LIMIT_SHOWN {
                gate.limit_shown = true;
                inner.changed.insert(self.model_scope(model));
            }
        }
    }

    /// The account may not use this key.
    pub fn block_key(&self, reason: &str, now: Instant) {
        let mut inner = self.lock();
        if inner.key.block.is_none() {
            tracing::error!(gate.reason = reason, "the key's gate blocks: {reason}");
        }
        inner.key.block = Some(Block { reason: reason.to_owned(), until: Some(now + KEY_REST) });
        inner.key.probing = false;
        let scope = key_scope(&inner.key.fingerprint);
        inner.changed.insert(scope);
    }

    /// The key changed: what is known of the old one does not hold for the new.
    pub fn new_key(&self, fingerprint: String) {
        let mut inner = self.lock();
        inner.key = KeyGate { fingerprint, block: None, probing: false };
        inner.suspects.clear();
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
        let gate = inner.models.entry(model.to_owned()).or_insert_with(|| ModelGate::new(self.settings, now));
        if gate.held.replace(reason.to_owned()).is_none() {
            tracing::error!(gate.model = model, "the gate of model {model} blocks: {reason}");
        }
        let scope = self.model_scope(model);
        inner.changed.insert(scope);
    }

    /// A model that a job names is not there: jobs that name it end without a call for a while.
    pub fn remember_missing(&self, model: &str, fault: Fault, now: Instant) {
        self.lock().missing.insert(model.to_owned(), (now, fault));
    }

    /// The API refused a job of a labelled batch. The same again and again stops the batch.
    pub fn refused(&self, job: &Job, signature: String) {
        let Some(batch) = &job.batch else { return };
        let lane = (job.queue.clone(), batch.clone());
        let mut inner = self.lock();
        let seen = inner.refusals.entry(lane.clone()).or_insert_with(|| (signature.clone(), 0));
        if seen.0 == signature {
            seen.1 += 1;
        } else {
            *seen = (signature, 1);
        }
        if seen.1 < SAME_REFUSALS || inner.batches.contains_key(&lane) {
            return;
        }
        let reason = format!(
            "the API refused {SAME_REFUSALS} jobs of this batch in a row with the same error; see results.error. \
             Set this gate to 'flowing' to go on, or cancel the batch"
        );
        tracing::warn!(job.queue = %lane.0, job.batch = %lane.1, "batch {} is stopped: {reason}", lane.1);
        inner.changed.insert(batch_scope(&lane));
        inner.batches.insert(lane, reason);
    }

    /// A call was answered: whatever is held against key and batch is off.
    fn accepted(&self, permit: &Permit<'_>, job: &Job) {
        let mut inner = self.lock();
        inner.suspects.clear();
        if let Some(batch) = &job.batch
            && !inner.refusals.is_empty()
        {
            inner.refusals.remove(&(job.queue.clone(), batch.clone()));
        }
        if permit.key_probe {
            inner.key.block = None;
            inner.key.probing = false;
            let scope = key_scope(&inner.key.fingerprint);
            inner.changed.insert(scope);
            tracing::info!("the key's gate flows again");
        }
    }

    fn reported(&self, permit: &Permit<'_>, health: Health, reason: &str, now: Instant, dice: f64) {
        let mut inner = self.lock();
        let Some(gate) = inner.models.get_mut(&permit.model) else { return };
        let before = gate.breaker.state();
        gate.breaker.report(health, permit.probe, now, dice);
        let after = gate.breaker.state();
        if matches!(after, State::Blocked { .. }) {
            gate.reason = Some(reason.to_owned());
        }
        if before != after {
            match after {
                State::Flowing => {
                    tracing::info!(gate.model = %permit.model, "model {} flows again", permit.model);
                }
                State::Blocked { until } => {
                    let pause = until.saturating_duration_since(now);
                    tracing::warn!(
                        gate.model = %permit.model,
                        breaker.pause_ms = pause.as_millis() as u64,
                        "model {} is blocked for {:.0} s: {reason}", permit.model, pause.as_secs_f64()
                    );
                }
                State::Probing { .. } => {}
            }
            let scope = self.model_scope(&permit.model);
            inner.changed.insert(scope);
        }
    }

    fn model_scope(&self, model: &str) -> String {
        format!("model:{}/{model}", self.profile)
    }
}

impl ModelGate {
    fn new(settings: BreakerSettings, now: Instant) -> Self {
        Self {
            breaker: Breaker::new(settings, now),
            reason: None,
            held: None,
            paused: None,
            limit_shown: false,
        }
    }

    fn peek(&self, now: Instant) -> Admission {
        if self.held.is_some() || self.paused.is_some_and(|until| now < until) {
            Admission::Blocked
        } else {
            self.breaker.peek(now)
        }
    }

    fn admit(&mut self, now: Instant) -> Admission {
        match self.peek(now) {
            Admission::Blocked => Admission::Blocked,
            Admission::Flow | Admission::Probe(_) => self.breaker.admit(now),
        }
    }

    fn reason(&self) -> String {
        let reason = self.held.as_ref().or(self.reason.as_ref());
        reason.cloned().unwrap_or_else(|| "rate limit".to_owned())
    }
}

impl Permit<'_> {
    /// Whether this call is a probe.
    pub fn is_probe(&self) -> bool {
        self.probe.is_some() || self.key_probe
    }

    /// The first content event came: a probe has succeeded, whatever follows.
    pub fn content(&self, now: Instant) {
        if self.probe.is_some() {
            self.gates.reported(self, Health::Well, "", now, 0.0);
        }
    }

    /// The call was answered whole.
    pub fn accept(mut self, job: &Job, now: Instant) {
        self.gates.accepted(&self, job);
        self.gates.reported(&self, Health::Well, "", now, 0.0);
        self.done = true;
    }

    /// The call failed. `reason` is shown where that makes the breaker block. Returns whether the
    /// model's gate is blocked now.
    pub fn fail(mut self, health: Health, reason: &str, now: Instant, dice: f64) -> bool {
        self.gates.reported(&self, health, reason, now, dice);
        // The model's probe has reported; the key's is given back below, whatever became of it.
        self.probe = None;
        let inner = self.gates.lock();
        inner.models.get(&self.model).is_some_and(|gate| gate.breaker.state() != State::Flowing)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.done || !self.is_probe() {
            return;
        }
        let mut inner = self.gates.lock();
        inner.key.probing &= !self.key_probe;
        // A probe that was given back may go at once, whoever takes it.
        if let Some(number) = self.probe
            && let Some(gate) = inner.models.get_mut(&self.model)
            && let State::Probing { until, .. } = gate.breaker.state()
        {
            let since = until.checked_sub(self.gates.settings.probe_lease).unwrap_or(until);
            gate.breaker.give_back(number, since);
            inner.changed.insert(self.gates.model_scope(&self.model));
        }
    }
}

fn key_scope(fingerprint: &str) -> String {
    format!("key:{fingerprint}")
}

fn batch_scope(lane: &(String, String)) -> String {
    format!("batch:{}/{}", lane.0, lane.1)
}

#[cfg(test)]
mod tests;
