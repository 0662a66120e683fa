//! How many calls may be in flight where no limit is known: found by loss, never by latency.
//!
//! One call goes first; the window doubles with each clean round, and from the first loss on grows
//! a little each round. A call is clean at its first content, so thousands of slow streams are up
//! within seconds. A loss (429, 529) lowers the window once a round and pauses; what follows is
//! spaced. For those who know TCP: slow start, congestion avoidance, one decrease a flight.

use std::time::{Duration, Instant};

use super::Hold;

/// What a loss leaves of the window.
const DECREASE: f64 = 0.85;

/// What it leaves at the end of the doubling, where growth itself is refused, and where the next loss
/// comes before the window has grown for so many rounds: it is far too large.
const HALF: f64 = 0.5;
const ROUNDS_MIN: u32 = 3;

/// Growth in the n-th clean round after a loss: n times this part of the window, one call at least. What
/// a loss took is back after a dozen rounds, which keeps refusals rare; a window that is far too small
/// (limits were raised, others went home) has doubled after thirty.
const INCREASE: f64 = 0.002;

/// A window never grows beyond: more calls than any process has.
const WINDOW_MAX: f64 = 1_000_000.0;

/// While it doubles, a window is sent in so long at least, unless the calls are shorter, and one call is
/// so long after the other: whatever is sent before the first refusal is heard is refused too. Ten
/// thousand streams are up in half a minute.
const ROUND_MIN: Duration = Duration::from_secs(1);
const SEND_MIN: Duration = Duration::from_millis(2);

/// Or as many are on their way unheard at most, where answers begin so quickly that this is more.
const UNHEARD_MAX: f64 = 100.0;

/// After so long without a call, what the window says is old: the doubling starts again.
const IDLE: Duration = Duration::from_mins(1);

/// A pause without a hint; doubled for each loss with no clean call between, up to the longest.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The most that dice add to a pause, as a part of it; the hint stays the floor.
const JITTER: f64 = 0.25;

/// Calls are spaced as if none took longer: a lost place among streams of an hour must not be an hour
/// empty.
const SPAN_MAX: Duration = Duration::from_secs(10);

/// So many calls back most of the weight of a mean lies.
const MEMORY: f64 = 50.0;

/// What kind of "too much" was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overload {
    /// A rate limit: 429.
    Limit,
    /// Grown too fast: 429 with `ramp_limit_exceeded`.
    Ramp,
    /// The API is overloaded: 529.
    Provider,
}

/// A running mean of seconds.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    seconds: f64,
    count: f64,
}

impl Mean {
    fn add(&mut self, took: Duration) {
        self.count = (self.count + 1.0).min(MEMORY);
        self.seconds += (took.as_secs_f64() - self.seconds) / self.count;
    }

    fn known(self) -> Option<f64> {
        (self.count > 0.0).then_some(self.seconds)
    }
}

/// The window of calls in flight.
#[derive(Debug, Clone)]
pub struct Loss {
    /// How many may be; infinite where limits are known and nothing was lost.
    window: f64,
    /// Below this it doubles; infinite before the first loss.
    threshold: f64,
    in_flight: usize,
    /// The number of the next call.
    next: u64,
    /// The first call of this round: when one of them is clean, the round is over.
    round: u64,
    /// Whether the window was full in this round: one that is not needed does not grow.
    full: bool,
    /// Calls before this one were sent before the last decrease: their losses are old news.
    lowered: u64,
    /// Losses with no clean call between.
    in_a_row: u32,
    /// Rounds in which it grew since the last loss.
    grown: u32,
    paused_until: Option<Instant>,
    /// The part of the pause that the server asked for.
    asked_until: Option<Instant>,
    /// Time to the first content.
    first: Mean,
    /// Time to the end.
    whole: Mean,
    last_sent: Instant,
}

impl Loss {
    /// Returns a window of one call.
    pub fn new(now: Instant) -> Self {
        Self {
            window: 1.0,
            threshold: f64::INFINITY,
            in_flight: 0,
            next: 0,
            round: 0,
            full: false,
            lowered: 0,
            in_a_row: 0,
            grown: 0,
            paused_until: None,
            asked_until: None,
            first: Mean::default(),
            whole: Mean::default(),
            last_sent: now,
        }
    }

    /// How many calls may be in flight.
    pub const fn window(&self) -> f64 {
        self.window
    }

    /// Opens the window: limits are known and keep the pace. Does nothing once something was lost.
    pub fn lift(&mut self) {
        if self.threshold.is_infinite() {
            self.window = f64::INFINITY;
        }
    }

    /// Closes the window again: what was taken for limits are none, and one call goes first.
    pub fn begin_anew(&mut self) {
        (self.window, self.threshold, self.grown, self.full) = (1.0, f64::INFINITY, 0, false);
        self.round = self.next;
    }

    /// How many more calls may begin now.
    pub fn slots(&self, now: Instant) -> usize {
        if self.paused_until.is_some_and(|until| now < until) {
            return 0;
        }
        (self.window as usize).saturating_sub(self.in_flight)
    }

    /// Whether no pause runs, nothing is in flight, and the last call was long ago.
    pub fn is_idle(&self, now: Instant) -> bool {
        self.paused_until.is_none_or(|until| now >= until)
            && self.in_flight == 0
            && now.saturating_duration_since(self.last_sent) > IDLE
    }

    /// Asks to make a call; returns its number.
    pub fn admit(&mut self, now: Instant) -> Result<u64, Hold> {
        if let Some(until) = self.paused_until
            && now < until
        {
            return Err(Hold::Until(until));
        }
        if self.is_idle(now) && self.window.is_finite() {
            self.threshold = self.threshold.max(self.window);
            self.window = 1.0;
        }
        if self.in_flight >= self.window as usize {
            return Err(Hold::Window);
        }
        self.in_flight += 1;
        self.full |= self.in_flight >= self.window as usize;
        self.last_sent = now;
        self.next += 1;
        Ok(self.next - 1)
    }

    /// Returns how long to wait after a call. While it doubles, a window is sent in the time of a
    /// round; then in the time of a call, so that refused ones, which end at once, are not followed
    /// by as many again.
    pub fn interval(&self) -> Duration {
        if self.window < 2.0 && self.window < self.threshold {
            // It waits for the first content anyway: how long that takes is not known before.
            return Duration::ZERO;
        }
        let (first, whole) = (self.first.known().unwrap_or(0.0), self.whole.known());
        let span = if self.window < self.threshold {
            first.max(whole.unwrap_or(f64::INFINITY).min(ROUND_MIN.as_secs_f64()))
        } else {
            whole.unwrap_or(first)
        };
        let interval = Duration::from_secs_f64(span.min(SPAN_MAX.as_secs_f64()) / self.window);
        if self.window < self.threshold && self.window.is_finite() {
            // Quick answers are heard quickly: so few are on their way that none need be held back.
            interval.max(SEND_MIN.min(Duration::from_secs_f64(first / UNHEARD_MAX)))
        } else {
            interval
        }
    }

    /// The first content of a call came, after such a time.
    pub fn clean(&mut self, number: u64, took: Duration) {
        self.first.add(took);
        if number >= self.lowered {
            self.in_a_row = 0;
        }
        if number < self.round {
            return;
        }
        if self.full && self.window < self.threshold {
            self.window = (self.window * 2.0).min(self.threshold).min(WINDOW_MAX);
        } else if self.full {
            self.grown = self.grown.saturating_add(1);
            let more = self.window * INCREASE * f64::from(self.grown);
            self.window = (self.window + more.max(1.0)).min(WINDOW_MAX);
        }
        (self.round, self.full) = (self.next, false);
    }

    /// A call was held back by the spacing: the window is used as far as it lets.
    pub fn wanted(&mut self) {
        self.full = true;
    }

    /// A call ended; with how long it took, where it was answered.
    pub fn ended(&mut self, took: Option<Duration>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(took) = took {
            self.whole.add(took);
        }
    }

    /// Stops for as long as the server asks, or a little.
    pub fn pause(&mut self, hint: Option<Duration>, now: Instant, dice: f64) {
        let own = PAUSE.saturating_mul(1 << self.in_a_row.min(6)).min(PAUSE_MAX);
        let pause = hint.unwrap_or(own).mul_f64(1.0 + JITTER * dice.clamp(0.0, 1.0));
        let until = now + pause;
        self.paused_until = self.paused_until.max(Some(until));
        if hint.is_some() {
            self.asked_until = self.asked_until.max(Some(until));
        }
    }

    /// Ends a pause of our own: what is refused next is refused for the first time.
    pub fn resume(&mut self) {
        self.paused_until = self.asked_until;
        self.in_a_row = 0;
    }

    /// A call was refused although a limit is kept: it was early. Pauses, once a round and ever longer while nothing
    /// gets through. To be told before it ended.
    pub fn early(&mut self, number: u64, hint: Option<Duration>, now: Instant, dice: f64) {
        let is_news = number >= self.lowered;
        if is_news || hint.is_some() {
            self.pause(hint, now, dice);
        }
        if is_news {
            self.in_a_row = self.in_a_row.saturating_add(1);
            self.lowered = self.next;
        }
    }

    /// Ends every pause, the server's too: a person says so.
    pub fn free(&mut self) {
        self.asked_until = None;
        self.resume();
    }

    /// A call was refused: pauses, and lowers the window, once a round. To be told before it ended.
    pub fn lost(&mut self, number: u64, overload: Overload, hint: Option<Duration>, now: Instant, dice: f64) {
        if number < self.lowered {
            if hint.is_some() {
                self.pause(hint, now, dice);
            }
            return;
        }
        self.pause(hint, now, dice);
        self.in_a_row = self.in_a_row.saturating_add(1);
        let grown = std::mem::take(&mut self.grown);
        (self.lowered, self.round, self.full) = (self.next, self.next, false);
        // Nothing got through since: that says how long to wait, and nothing new about how many.
        if self.in_a_row > 1 {
            return;
        }
        // A window that was not full says nothing of what is too much.
        let in_use = self.window.min(self.in_flight as f64);
        let doubling = self.window < self.threshold;
        let half = overload == Overload::Ramp || doubling || grown < ROUNDS_MIN;
        let left = if half { HALF } else { DECREASE };
        self.window = (in_use * left).max(1.0);
        self.threshold = self.window;
    }
}
