//! The table `gates`: what changed here is written, what changed there is taken over, and who may
//! probe is decided.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::scope::Scope;
use super::{Gates, Inner, Refusal};
use crate::domain::gate::{Gate, State};
use crate::store::{Counters, GateRow, GateTally, IGNORED, Moment, Store, StoreError};

/// Longest block that a row can ask for; a person who means longer leaves `until` NULL.
const UNTIL_MAX: Duration = Duration::from_hours(366 * 24);

/// `gates.counters` of a gate that does not flow: how often it blocked since it last did.
const BLOCKS: &str = "blocks";
/// `gates.counters` of a gate that flows because an answer came, or because a rate limit's pause is over. A
/// person who opens one clears it, and the next call is a probe.
pub(super) const ANSWERED: &str = "answered";

/// What is said of a gate that a person blocked without a reason.
const BY_HAND: &str = "blocked by hand";
/// Why a class of models pauses.
pub(super) const RATE_LIMIT: &str = "the API's rate limit (429)";

/// All rows are read at least this often, whatever they say of their changes.
const WHOLE_EVERY: Duration = Duration::from_mins(1);
/// What changed so shortly before the last look is read again: it may not have been there yet.
const AGAIN_MS: i64 = 1000;

/// When the table was read.
#[derive(Default)]
pub(super) struct Read {
    /// By the database's clock.
    at: Option<Moment>,
    /// All of it, by ours.
    whole: Option<Instant>,
}

impl Read {
    /// From when on changes are to be read; `None`: all rows are.
    fn since(&self, now: Instant) -> Option<Moment> {
        let whole = self.whole.filter(|whole| now.saturating_duration_since(*whole) < WHOLE_EVERY);
        whole.and(self.at).map(|at| Moment(at.0 - AGAIN_MS))
    }
}

impl Gates {
    /// Takes over what others changed, then writes what changed here. A gate that both changed is
    /// theirs: a person's word stands.
    pub async fn sync(&self, store: &dyn Store, now: Instant) -> Result<(), StoreError> {
        if !self.read_news(store, now).await? {
            self.read_all(store, now).await?;
        }
        self.end_pauses(now);
        self.give_up_probes(now);
        self.write_changes(store, now).await
    }

    /// Whether something changed here that the table does not say yet.
    pub fn has_changes(&self) -> bool {
        !self.lock().changed.is_empty()
    }

    /// Writes what changed here. Where somebody was first it stays a change, until what they wrote is read:
    /// that is taken over then, or, where they only counted a refusal, written over.
    pub(super) async fn write_changes(&self, store: &dyn Store, now: Instant) -> Result<(), StoreError> {
        let changed: Vec<Scope> = self.lock().changed.iter().cloned().collect();
        for scope in changed {
            // Taken out before it is read: what changes while it is written is written again.
            if !self.lock().changed.remove(&scope) {
                continue;
            }
            let written = self.write(store, &scope, now).await;
            if !matches!(written, Ok(true)) {
                self.lock().changed.insert(scope);
            }
            written?;
        }
        Ok(())
    }

    /// Reads what changed since it was last read. Returns whether that was possible, and brought all that is
    /// new: not where a row is gone, or where a transaction took so long that its changes are older than
    /// what was read before they could be seen.
    async fn read_news(&self, store: &dyn Store, now: Instant) -> Result<bool, StoreError> {
        let Some(since) = self.lock().read.since(now) else { return Ok(false) };
        let news = store.gate_news(Some(since)).await?;
        for row in &news.rows {
            self.take_over(row, now);
        }
        let mut inner = self.lock();
        inner.read.at = Some(news.at);
        Ok(inner.seen.values().copied().collect::<GateTally>() == news.tally)
    }

    async fn read_all(&self, store: &dyn Store, now: Instant) -> Result<(), StoreError> {
        let known: Vec<(String, i64)> =
            self.lock().seen.iter().map(|(scope, generation)| (scope.clone(), *generation)).collect();
        let all = store.gate_news(None).await?;
        self.forget(known, &all.rows, now);
        for row in &all.rows {
            self.take_over(row, now);
        }
        self.lock().read = Read { at: Some(all.at), whole: Some(now) };
        Ok(())
    }

    /// Writes a gate as it is here. Returns whether that was possible: somebody else may have been first.
    async fn write(&self, store: &dyn Store, scope: &Scope, now: Instant) -> Result<bool, StoreError> {
        let row = self.sends(scope, now);
        let written = store.set_gate(&row).await;
        self.sent(row, written.as_ref().ok().copied().flatten());
        Ok(written?.is_some())
    }

    /// Returns the row of a scope, which is written now: it may be read before the database's answer is here,
    /// and is not another daemon's then.
    pub(super) fn sends(&self, scope: &Scope, now: Instant) -> GateRow {
        let row = self.row(scope, now);
        self.lock().sending.insert(row.scope.clone(), row.generation + 1);
        row
    }

    /// Notes what came of writing a row: its new generation, if it was possible.
    pub(super) fn sent(&self, row: GateRow, written: Option<i64>) {
        let mut inner = self.lock();
        inner.sending.remove(&row.scope);
        // What somebody wrote after it may have been read meanwhile.
        let is_last = inner.seen.get(&row.scope).copied().unwrap_or(0) == row.generation;
        if let Some(generation) = written.filter(|_| is_last) {
            inner.seen.insert(row.scope, generation);
        }
    }

    /// Takes the probe of a gate, where no other daemon has it: returns its number.
    pub(super) async fn take_probe(&self, store: &dyn Store, scope: &Scope) -> Result<u64, Refusal> {
        let now = Instant::now();
        let refused = || Refusal::Blocked(self.reason(scope));
        let number = {
            let mut inner = self.lock();
            let Some(gate) = inner.gate_mut(scope) else { return Err(refused()) };
            let number = gate.probe(self.settings.probe_lease, now);
            inner.changed.remove(scope);
            number
        };
        if matches!(self.write(store, scope, now).await, Ok(true)) {
            return Ok(number);
        }
        // Another daemon asks, or the table cannot be reached: what it says is taken over soon.
        if let Err(err) = self.sync(store, now).await {
            tracing::debug!(error = %err, "failed to read the gates");
        }
        if let Some(gate) = self.lock().gate_mut(scope) {
            gate.give_back(number, now + super::PROBE_PAUSE);
        }
        Err(refused())
    }

    /// A rate limit's pause that the table shows, and that is over, is to be taken out of it.
    fn end_pauses(&self, now: Instant) {
        let mut inner = self.lock();
        let over = inner.paces.end_pauses(now);
        inner.changed.extend(over.into_iter().map(Scope::Rate));
    }

    /// Probes of models that did not report in time have failed. All daemons see that at the same moment:
    /// the first that writes it decides how long the next block is.
    fn give_up_probes(&self, now: Instant) {
        let mut inner = self.lock();
        let Inner { accounts, changed, .. } = &mut *inner;
        for (profile, account) in accounts.iter_mut() {
            for (model, breaker) in &mut account.models {
                if breaker.give_up(now, fastrand::f64()) {
                    tracing::warn!(gate.model = %model, "model {model} did not answer its probe in time: blocked on");
                    changed.insert(Scope::Model(profile, model.clone()));
                }
            }
        }
    }

    /// A row that was known and is gone flows: a person deleted it, or the upkeep did because nothing
    /// came of it for a day. Its generations begin anew.
    fn forget(&self, known: Vec<(String, i64)>, rows: &[GateRow], now: Instant) {
        let there: HashSet<&str> = rows.iter().map(|row| row.scope.as_str()).collect();
        for (scope, generation) in known {
            // What was written since it was read is not gone.
            if there.contains(scope.as_str()) || self.lock().seen.get(&scope) != Some(&generation) {
                continue;
            }
            let (state, reason, until_in, counters) = ("flowing".to_owned(), None, None, None);
            let row = GateRow { scope, state, reason, until_in, generation: 0, counters };
            // A person's row has generation 0 too, and would count as known.
            self.lock().seen.remove(&row.scope);
            self.take_over(&row, now);
            self.lock().seen.remove(&row.scope);
        }
    }

    pub(super) fn take_over(&self, row: &GateRow, now: Instant) {
        let scope = self.scope(&row.scope);
        let mut inner = self.lock();
        // What is being written here may yet turn out to be another's: then the tally tells, and it is read again.
        let is_known =
            |generations: &HashMap<String, i64>| generations.get(&row.scope) == Some(&row.generation);
        if is_known(&inner.seen) || is_known(&inner.sending) {
            return;
        }
        inner.seen.insert(row.scope.clone(), row.generation);
        let Some(scope) = scope else { return };
        // A row that only counts says nothing about what we are about to write.
        let counts = row.state == "flowing"
            && row.counters.as_ref().is_some_and(|counters| counters.word != IGNORED)
            && matches!(scope, Scope::Batch(_));
        if counts && inner.changed.contains(&scope) {
            return;
        }
        let unsaid = inner.changed.remove(&scope);
        self.take_over_as(&mut inner, &scope, row, unsaid, now);
        self.opened.notify_one();
    }

    fn take_over_as(&self, inner: &mut Inner, scope: &Scope, row: &GateRow, unsaid: bool, now: Instant) {
        let until = row.until_in.map(|left| now + left.min(UNTIL_MAX));
        let blocks = row.counters.as_ref().filter(|counters| counters.word == BLOCKS);
        let blocks = blocks.map_or(0, |counters| counters.count);
        match scope {
            Scope::Batch(lane) if row.state == "flowing" => {
                inner.batches.remove(lane);
                match &row.counters {
                    Some(counters) if counters.word == IGNORED => {
                        // No answer may set back what a person said.
                        inner.counted.remove(lane);
                        inner.trust.entry(lane.clone()).or_default().vouch();
                    }
                    Some(_) => drop(inner.counted.insert(lane.clone())),
                    None => {}
                }
                return;
            }
            Scope::Rate(tier) => {
                match (row.state.as_str(), until) {
                    ("blocked", Some(until)) => inner.paces.paused_elsewhere(tier, until, unsaid, now),
                    ("blocked", None) => {
                        let reason = row.reason.clone().unwrap_or_else(|| BY_HAND.to_owned());
                        inner.paces.hold(tier, reason, now);
                    }
                    _ if is_answered(row) => inner.paces.is_over(tier, now),
                    _ => inner.paces.free(tier, now),
                }
                return;
            }
            Scope::Batch(lane) => drop(inner.batches.entry(lane.clone()).or_default()),
            Scope::Model(profile, model) => drop(inner.model(*profile, model, self.settings, now)),
            // The key may have changed since the row was read.
            Scope::Key(key) if !inner.keys.contains_key(key) => return,
            Scope::Key(_) => {}
        }
        let gate = inner.gate_mut(scope).expect("it was made above");
        let before = gate.state();
        let reason = row.reason.clone().unwrap_or_else(|| BY_HAND.to_owned());
        match row.state.as_str() {
            "blocked" => gate.blocked_elsewhere(reason, until, blocks),
            "probing" => gate.probed_elsewhere(until.unwrap_or(now), blocks),
            // By another daemon whose probe was answered, which says so in the counters, or by a person,
            // after whose word the next call is a probe.
            _ if is_answered(row) => {
                gate.flow();
                if let Scope::Model(profile, model) = scope {
                    inner.model(*profile, model, self.settings, now).flows_elsewhere();
                    let tier = (inner.accounts[*profile].key.clone(), self.classes.class(model));
                    inner.paces.resume(&tier);
                }
            }
            _ => gate.free(now),
        }
        if let Scope::Model(profile, model) = scope
            && let Some(after) = inner.gate(scope).map(Gate::state)
            && (before == State::Flowing) != (after == State::Flowing)
        {
            inner.moves_ramp(*profile, model, after, now);
        }
    }

    /// The row of a scope as this process sees it.
    fn row(&self, scope: &Scope, now: Instant) -> GateRow {
        let name = self.name(scope);
        let inner = self.lock();
        let flowing = Gate::default();
        let gate = inner.gate(scope).unwrap_or(&flowing);
        let reason = gate.reason().map(str::to_owned);
        let blocks = Some(Counters { word: BLOCKS.to_owned(), count: gate.blocks() });
        let answered = Counters { word: ANSWERED.to_owned(), count: 0 };
        let (state, reason, until, counters) = match (scope, gate.state()) {
            (Scope::Rate(tier), _) => match inner.paces.row(tier, now) {
                Some((reason, until)) => ("blocked", Some(reason), until, None),
                None => ("flowing", None, None, Some(answered)),
            },
            (Scope::Batch(_), State::Flowing) => ("flowing", None, None, None),
            (_, State::Flowing) => ("flowing", None, None, Some(answered)),
            (_, State::Blocked { until }) => ("blocked", reason, until, blocks),
            (_, State::Probing { until, .. }) => ("probing", reason, Some(until), blocks),
        };
        GateRow {
            generation: inner.seen.get(&name).copied().unwrap_or(0),
            scope: name,
            state: state.to_owned(),
            reason,
            until_in: until.map(|until| until.saturating_duration_since(now)),
            counters,
        }
    }
}

/// Whether a daemon wrote that it flows, and not a person.
fn is_answered(row: &GateRow) -> bool {
    row.counters.as_ref().is_some_and(|counters| counters.word == ANSWERED)
}
