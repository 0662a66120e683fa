//! What the stand-in was asked and what it gave out, so that a client's own books can be held
//! against it; and how often each prompt came, for markers with `xN`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::marker::Fault;

/// What was asked since the start or the last reset.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Counts {
    /// Calls of `POST /v1/messages`, refused ones too.
    pub total: u64,
    /// Calls of everything, by path.
    pub by_path: BTreeMap<String, u64>,
    /// Calls of `POST /v1/messages` by HTTP status.
    pub by_status: BTreeMap<u16, u64>,
    /// The same by how they were answered: a stop reason, `error …`, `cut`, `hang`, `garbage …`.
    pub by_answer: BTreeMap<String, u64>,
    /// Markers that took effect.
    pub by_marker: BTreeMap<String, u64>,
    /// Input tokens told to clients, cache reads and writes included.
    pub input_tokens: u64,
    /// Output tokens told to clients.
    pub output_tokens: u64,
    /// Output tokens streamed in answers whose end, with their usage, never came.
    pub output_tokens_untold: u64,
    /// Calls that go on with an answer that was cut.
    pub continued: u64,
    /// Of these, such that bring back other text than they were given: joined wrongly.
    pub lost_places: u64,
    /// Answers that are on their way now.
    pub in_flight: u64,
    /// Most answers that were on their way at once.
    pub in_flight_max: u64,
    /// Answers that the client did not wait for.
    pub hung_up: u64,
    /// The last calls of `POST /v1/messages`, oldest first.
    pub calls: VecDeque<Seen>,
}

/// One call of `POST /v1/messages`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// The `request-id` it was answered with.
    pub request_id: String,
    /// The message's id, where one was given out.
    pub message_id: Option<String>,
    /// The model that answered.
    pub model: Option<String>,
    /// The first characters of the prompt.
    pub prompt: String,
    /// `max_tokens`.
    pub max_tokens: usize,
    /// Number of messages.
    pub messages: usize,
    /// Whether it goes on with an answer that was cut.
    pub continued: bool,
    /// HTTP status.
    pub status: u16,
    /// How it was answered, as in [`Counts::by_answer`].
    pub answer: String,
    /// Markers that took effect.
    pub markers: Vec<String>,
    /// Breakpoints of the prompt cache in the request.
    pub cache_points: usize,
    /// Input tokens told, cache reads and writes included.
    pub input_tokens: u64,
    /// Of these, told as read from the cache.
    pub cache_read_tokens: u64,
    /// Of these, told as written to it.
    pub cache_write_tokens: u64,
    /// Output tokens told.
    pub output_tokens: u64,
    /// Output tokens streamed and not told.
    pub output_tokens_untold: u64,
    /// Tokens of a streamed answer that were given to the connection by now: what is paid for,
    /// however the client fares.
    pub streamed_tokens: u64,
    /// The same in bytes of text.
    pub streamed_bytes: u64,
    /// Whether the client did not wait for the end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hung_up: bool,
    /// Whether the assistant's text was not what the stand-in had said.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lost_place: bool,
}

/// How far an answer has come.
#[derive(Debug, Default)]
pub struct Said {
    tokens: AtomicU64,
    bytes: AtomicU64,
    hung_up: AtomicBool,
}

impl Said {
    /// So much more is given to the connection.
    pub fn more(&self, tokens: u64, bytes: u64) {
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Keeps the counts.
#[derive(Debug)]
pub struct Tally {
    /// But for the calls.
    counts: Mutex<Counts>,
    /// The last calls, oldest first.
    calls: Mutex<VecDeque<(Seen, Arc<Said>)>>,
    /// By prompt and position of the fault: calls let pass, calls spoilt.
    faults: Mutex<HashMap<(u64, usize), (u32, u32)>>,
    calls_kept: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counts are whole after every statement: a panic elsewhere spoils nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K) {
    *counts.entry(key).or_default() += 1;
}

impl Tally {
    /// Returns an empty tally that lists at most so many calls.
    pub fn new(calls_kept: usize) -> Self {
        Self { counts: Mutex::default(), calls: Mutex::default(), faults: Mutex::default(), calls_kept }
    }

    /// Returns the counts.
    pub fn counts(&self) -> Counts {
        let calls = lock(&self.calls)
            .iter()
            .map(|(seen, said)| Seen {
                streamed_tokens: said.tokens.load(Ordering::Relaxed),
                streamed_bytes: said.bytes.load(Ordering::Relaxed),
                hung_up: said.hung_up.load(Ordering::Relaxed),
                ..seen.clone()
            })
            .collect();
        Counts { calls, ..lock(&self.counts).clone() }
    }

    /// Forgets everything but what is on its way.
    pub fn reset(&self) {
        lock(&self.faults).clear();
        lock(&self.calls).clear();
        let mut counts = lock(&self.counts);
        let in_flight = counts.in_flight;
        *counts = Counts { in_flight, in_flight_max: in_flight, ..Counts::default() };
    }

    /// Counts a call of any path.
    pub fn path(&self, path: &'static str) {
        let mut counts = lock(&self.counts);
        match counts.by_path.get_mut(path) {
            Some(count) => *count += 1,
            None => {
                counts.by_path.insert(path.to_owned(), 1);
            }
        }
    }

    /// Returns the fault that happens to this call of a prompt, and counts it.
    pub fn fault<'a>(&self, prompt: &str, faults: &'a [Fault]) -> Option<&'a Fault> {
        if faults.is_empty() {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        prompt.hash(&mut hasher);
        let prompt = hasher.finish();
        let mut seen = lock(&self.faults);
        for (at, fault) in faults.iter().enumerate() {
            if fault.skip == 0 && fault.times.is_none() {
                return Some(fault);
            }
            let (passed, spoilt) = seen.entry((prompt, at)).or_default();
            if *passed < fault.skip {
                *passed += 1;
            } else if fault.times.is_none_or(|times| *spoilt < times) {
                *spoilt += 1;
                return Some(fault);
            }
        }
        None
    }

    /// Counts a call of `POST /v1/messages` with all that it will be given; from now on it is on
    /// its way, and what is said of it goes into what is returned.
    pub fn call(&self, seen: Seen) -> Arc<Said> {
        let mut counts = lock(&self.counts);
        counts.total += 1;
        counts.in_flight += 1;
        counts.in_flight_max = counts.in_flight_max.max(counts.in_flight);
        add(&mut counts.by_status, seen.status);
        add(&mut counts.by_answer, seen.answer.clone());
        for marker in &seen.markers {
            add(&mut counts.by_marker, marker.clone());
        }
        counts.input_tokens += seen.input_tokens;
        counts.output_tokens += seen.output_tokens;
        counts.output_tokens_untold += seen.output_tokens_untold;
        counts.continued += u64::from(seen.continued);
        counts.lost_places += u64::from(seen.lost_place);
        drop(counts);
        let said = Arc::<Said>::default();
        if self.calls_kept > 0 {
            let mut calls = lock(&self.calls);
            if calls.len() >= self.calls_kept {
                calls.pop_front();
            }
            calls.push_back((seen, Arc::clone(&said)));
        }
        said
    }

    /// Counts that an answer is no longer on its way.
    pub fn landed(&self, said: &Said, hung_up: bool) {
        said.hung_up.store(hung_up, Ordering::Relaxed);
        let mut counts = lock(&self.counts);
        counts.in_flight = counts.in_flight.saturating_sub(1);
        counts.hung_up += u64::from(hung_up);
    }
}
