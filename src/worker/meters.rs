//! What this process counts of its own work, for whoever asks. Knows nothing of how it is shown.
//!
//! Each count is a number in a map behind a lock that is held for some tens of nanoseconds, a few times
//! a call. Labels are bounded here, where names come in: what rows and servers say could be anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::outcome::{Failure, Lost, Outcome, Usage};
use crate::domain::reply::Exchange;
use crate::domain::retry::Class;
use crate::domain::stop::StopReason;

/// A label's value.
pub type Name = Arc<str>;

/// Different names of one kind: what comes after them is [`OTHER`].
pub const NAMES_MAX: usize = 50;
/// Characters of a name: names that differ behind them are one.
const NAME_MAX: usize = 80;
/// What stands for every name beyond the limit.
pub const OTHER: &str = "other";

/// Upper bounds of how long jobs wait, in seconds.
pub const WAIT_BOUNDS: &[f64] =
    &[0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0];
/// Upper bounds of what a call takes, in seconds.
pub const CALL_BOUNDS: &[f64] =
    &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1800.0];
/// Upper bounds of the wait for the first token, in seconds.
pub const FIRST_BOUNDS: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0];
/// Upper bounds of what the server asks to wait, in seconds.
pub const HINT_BOUNDS: &[f64] = &[1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0];
/// Upper bounds of a database operation, in seconds.
pub const DATABASE_BOUNDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0, 30.0];

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The names of one kind that have a label of their own: the first that came, while the process lives.
#[derive(Debug, Default)]
pub struct Names(Mutex<BTreeSet<Name>>);

impl Names {
    /// Returns the label of a name.
    pub fn label(&self, name: &str) -> Name {
        let cut = name.char_indices().nth(NAME_MAX).map_or(name, |(at, _)| &name[..at]);
        let mut known = lock(&self.0);
        if let Some(label) = known.get(cut) {
            return Arc::clone(label);
        }
        if known.len() >= NAMES_MAX {
            return OTHER.into();
        }
        let label: Name = cut.into();
        known.insert(Arc::clone(&label));
        label
    }

    /// Returns the names that have one, in their order.
    pub fn list(&self) -> Vec<Name> {
        lock(&self.0).iter().cloned().collect()
    }
}

/// Numbers that only grow, by label.
#[derive(Debug)]
pub struct Counts<K>(Mutex<BTreeMap<K, u64>>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord + Clone> Counts<K> {
    fn add(&self, label: K, many: u64) {
        *lock(&self.0).entry(label).or_default() += many;
    }

    /// Returns them, by label.
    pub fn list(&self) -> Vec<(K, u64)> {
        lock(&self.0).iter().map(|(label, count)| (label.clone(), *count)).collect()
    }
}

/// How values of one label spread.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    /// How many were at most each bound, and above the one before; the last: above all.
    pub counts: Vec<u64>,
    /// Their sum.
    pub sum: f64,
}

/// How values spread, by label.
#[derive(Debug)]
pub struct Spreads<K> {
    /// Upper bounds, growing.
    pub bounds: &'static [f64],
    spreads: Mutex<BTreeMap<K, Spread>>,
}

impl<K: Ord + Clone> Spreads<K> {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, spreads: Mutex::default() }
    }

    fn add(&self, label: K, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = self.bounds.partition_point(|bound| *bound < seconds);
        let mut spreads = lock(&self.spreads);
        let spread = spreads
            .entry(label)
            .or_insert_with(|| Spread { counts: vec![0; self.bounds.len() + 1], sum: 0.0 });
        spread.counts[at] += 1;
        spread.sum += seconds;
    }

    /// Returns them, by label.
    pub fn list(&self) -> Vec<(K, Spread)> {
        lock(&self.spreads).iter().map(|(label, spread)| (label.clone(), spread.clone())).collect()
    }
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Meters {
    /// Queues that have a label.
    pub queues: Names,
    /// Models that have one.
    pub models: Names,
    errors: Names,
    stops: Names,
    /// How long jobs waited for their first claim, by queue.
    pub waits: Spreads<Name>,
    /// Jobs that ended, by queue and outcome.
    pub jobs: Counts<(Name, &'static str)>,
    /// Claims that ended, by queue and how.
    pub attempts: Counts<(Name, &'static str)>,
    /// How long they took, by queue.
    pub attempt_time: Spreads<Name>,
    /// Calls, by model, status and type of the error.
    pub responses: Counts<(Name, Name, Name)>,
    /// How long they took, by model and class of the status.
    pub call_time: Spreads<(Name, &'static str)>,
    /// Time to the first token, by model.
    pub first_token: Spreads<Name>,
    /// Stop reasons, by model.
    pub stop_reasons: Counts<(Name, Name)>,
    /// Tokens, by model and kind.
    pub tokens: Counts<(Name, &'static str)>,
    /// Tokens of calls that were cut, by what cut them.
    pub wasted: Counts<&'static str>,
    /// Failed calls whose jobs went back, by class.
    pub retries: Counts<&'static str>,
    /// What servers asked to wait.
    pub hints: Spreads<()>,
    /// Times that this worker's row was gone.
    pub leases_lost: Counts<()>,
    /// Jobs taken from dead workers.
    pub rescues: Counts<()>,
    /// Answers that ended their jobs although these had been taken away.
    pub adopted: Counts<()>,
    /// Changes of gates that this process made, by kind and state.
    pub gates: Counts<(&'static str, &'static str)>,
    /// Times that a person had the key files read again, by what came of it.
    pub key_reloads: Counts<&'static str>,
    /// Bytes written to checkpoints.
    pub checkpoint_bytes: Counts<()>,
    /// How long operations of the database took, by name.
    pub database_time: Spreads<&'static str>,
    /// Operations that failed, by class.
    pub database_errors: Counts<&'static str>,
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            queues: Names::default(),
            models: Names::default(),
            errors: Names::default(),
            stops: Names::default(),
            waits: Spreads::new(WAIT_BOUNDS),
            jobs: Counts::default(),
            attempts: Counts::default(),
            attempt_time: Spreads::new(CALL_BOUNDS),
            responses: Counts::default(),
            call_time: Spreads::new(CALL_BOUNDS),
            first_token: Spreads::new(FIRST_BOUNDS),
            stop_reasons: Counts::default(),
            tokens: Counts::default(),
            wasted: Counts::default(),
            retries: Counts::default(),
            hints: Spreads::new(HINT_BOUNDS),
            leases_lost: Counts::default(),
            rescues: Counts::default(),
            adopted: Counts::default(),
            gates: Counts::default(),
            key_reloads: Counts::default(),
            checkpoint_bytes: Counts::default(),
            database_time: Spreads::new(DATABASE_BOUNDS),
            database_errors: Counts::default(),
        }
    }
}

impl Meters {
    /// A job was claimed for the first time.
    pub(super) fn waited(&self, queue: &str, time: Duration) {
        self.waits.add(self.queues.label(queue), time);
    }

    /// A job ended here. `queue`: where it is not known, [`OTHER`].
    pub(super) fn ended(&self, queue: Option<&str>, outcome: Outcome) {
        let queue = queue.map_or_else(|| OTHER.into(), |queue| self.queues.label(queue));
        self.jobs.add((queue, outcome.as_str()), 1);
    }

    /// A claim came to its end.
    pub(super) fn attempted(&self, queue: &str, how: &'static str, took: Duration) {
        let queue = self.queues.label(queue);
        self.attempts.add((Arc::clone(&queue), how), 1);
        self.attempt_time.add(queue, took);
    }

    /// A call came to its end; `error`: the type of its error.
    pub(super) fn called(&self, model: &str, exchange: &Exchange, error: Option<&str>) {
        let model = self.models.label(model);
        let status = exchange.http_status;
        let word: Name = status.map_or_else(|| "none".into(), |status| status.to_string().into());
        let error = error.map_or_else(|| "".into(), |error| self.errors.label(error));
        self.responses.add((Arc::clone(&model), word, error), 1);
        self.call_time.add((Arc::clone(&model), class_of(status)), exchange.took());
        if let Some(first) = exchange.first_token {
            self.first_token.add(Arc::clone(&model), first.saturating_duration_since(exchange.sent));
        }
        if let Some(stop) = exchange.reply.stop.as_ref().map(StopReason::as_str) {
            self.stop_reasons.add((Arc::clone(&model), self.stops.label(stop)), 1);
        }
        for (kind, tokens) in kinds(exchange.reply.usage) {
            self.tokens.add((Arc::clone(&model), kind), tokens);
        }
        if let Err(Failure::Api(error)) = &exchange.end
            && let Some(hint) = error.retry_after
        {
            self.hints.add((), hint);
        }
    }

    /// A call was cut: what it said was paid for, and may or may not be gone on with.
    pub(super) fn cut(&self, failure: &Failure, taken_away: bool, usage: Usage) {
        let cause = match failure {
            Failure::Stopped if taken_away => "taken_away",
            Failure::Stopped => "shutdown",
            Failure::Lost(Lost::FirstEvent | Lost::Idle | Lost::Total, _) => "timeout",
            Failure::Api(_)
            | Failure::Unsent(_)
            | Failure::Lost(Lost::Reset, _)
            | Failure::Unreadable(_)
            | Failure::TooLarge(_)
            | Failure::Unended => "cut",
        };
        self.wasted.add(cause, kinds(usage).into_iter().map(|(_, tokens)| tokens).sum());
    }

    /// A call that a dead worker made had brought so many tokens: nobody else counts them.
    pub(super) fn crashed(&self, model: &str, output: i64) {
        let output = output.max(0).unsigned_abs();
        self.tokens.add((self.models.label(model), "output"), output);
        self.wasted.add("crash", output);
    }

    /// A job went back for a failed call.
    pub(super) fn retried(&self, class: &Class) {
        let word = match class {
            Class::Job => "job",
            Class::Model => "model",
            Class::Prefill => "prefill",
            Class::Account => "account",
            Class::Suspect => "credentials",
            Class::Limit { .. } => "rate_limit",
            Class::Sick { .. } => "provider",
            Class::Ours => "ours",
        };
        self.retries.add(word, 1);
    }

    /// This worker's row was gone.
    pub(super) fn lease_lost(&self) {
        self.leases_lost.add((), 1);
    }

    /// Jobs were taken from a dead worker.
    pub(super) fn rescued(&self, jobs: usize) {
        self.rescues.add((), jobs as u64);
    }

    /// An answer was taken although its job had been taken away.
    pub(super) fn was_adopted(&self) {
        self.adopted.add((), 1);
    }

    /// A gate was brought into another state.
    pub(super) fn turned(&self, scope: &str, state: &'static str) {
        let kind = scope.split_once(':').map_or(OTHER, |(kind, _)| kind);
        let kind = ["batch", "key", "model", "rate"].into_iter().find(|known| *known == kind);
        self.gates.add((kind.unwrap_or(OTHER), state), 1);
    }

    /// The key files were read again, as a person wished.
    pub(super) fn keys_read(&self, changed: bool) {
        self.key_reloads.add(if changed { "changed" } else { "same" }, 1);
    }

    /// Text of running streams was kept.
    pub(super) fn kept(&self, bytes: usize) {
        self.checkpoint_bytes.add((), bytes as u64);
    }

    /// The database did something, or did not.
    pub(super) fn asked(&self, operation: &'static str, took: Duration, error: Option<&'static str>) {
        self.database_time.add(operation, took);
        if let Some(class) = error {
            self.database_errors.add(class, 1);
        }
    }
}

/// Tokens by kind, of those that there are.
fn kinds(usage: Usage) -> [(&'static str, u64); 4] {
    [
        ("input", usage.input),
        ("output", usage.output),
        ("cache_read", usage.cache_read),
        ("cache_write", usage.cache_creation),
    ]
    .map(|(kind, tokens)| (kind, tokens.max(0).unsigned_abs()))
}

fn class_of(status: Option<u16>) -> &'static str {
    match status.map(|status| status / 100) {
        None => "none",
        Some(2) => "2xx",
        Some(4) => "4xx",
        Some(5) => "5xx",
        Some(_) => OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beyond_the_limit_are_one_label_and_those_before_keep_theirs() {
        let names = Names::default();
        for name in 0..10_000 {
            names.label(&format!("queue-{name:05}"));
        }
        assert_eq!(names.list().len(), NAMES_MAX);
        assert_eq!(&*names.label("queue-00003"), "queue-00003");
        assert_eq!(&*names.label("queue-00050"), OTHER);
    }

    #[test]
    fn a_long_name_is_cut_at_a_character_and_stays_one_label() {
        let names = Names::default();
        let long = "ü".repeat(200);
        assert_eq!(names.label(&long), names.label(&format!("{long}x")));
        assert_eq!(names.label(&long).chars().count(), NAME_MAX);
    }

    #[test]
    fn a_value_counts_under_the_first_bound_that_it_is_not_above() {
        let spreads = Spreads::new(&[1.0, 2.0]);
        for ms in [500, 1000, 1001, 2000, 9000] {
            spreads.add((), Duration::from_millis(ms));
        }
        let ((), spread) = spreads.list().remove(0);
        assert_eq!(spread.counts, [2, 2, 1]);
        assert!((spread.sum - 13.501).abs() < 1e-9, "{}", spread.sum);
    }
}
