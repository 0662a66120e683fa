//! How fast one (key, model class) is asked, so that every allowed token is used and none refused.
//!
//! Three limits count: requests, input tokens, output tokens, each a minute ([`Each`]). Where they
//! are known, all daemons share one [`Budget`] in the database and each spends a second's worth of it
//! ([`allowance`]), by what a call will likely cost ([`estimate`]). Where they are not, and against
//! overload, the number of calls in flight is found by loss ([`loss`]). [`Pace`] is the two together;
//! which models share a limit stands in [`mod@class`]. Pure: instants and dice are passed in.

pub mod allowance;
pub mod bucket;
pub mod class;
pub mod estimate;
pub mod limits;
pub mod loss;

use std::time::{Duration, Instant};

use super::outcome::Usage;

pub use allowance::{Allowance, TAKE_EVERY};
pub use bucket::{Bucket, Budget, Grant, Take};
pub use class::class;
pub use estimate::Estimates;
pub use limits::{Each, Limit, RateLimits};
pub use loss::{Loss, Overload};

/// A call that is late by so much does not push back those behind it: a loop wakes a little late each
/// time, and would never use all it may.
const CATCH_UP: Duration = Duration::from_millis(50);

/// A limit that the configuration names and no answer is doubted after so many refusals, of which each so many
/// calls that begin to be answered take one back: it may be set too high.
const DOUBTED: u32 = 20;
const ANSWERS_A_REFUSAL: u32 = 20;

/// The pace of one (key, model class) in this process.
#[derive(Debug, Clone)]
pub struct Pace {
    allowance: Allowance,
    loss: Loss,
    doubt: Doubt,
    next_send: Instant,
}

/// Whether the limits that are known are not those that the API keeps.
#[derive(Debug, Clone, Copy, Default)]
struct Doubt {
    /// Refusals, in parts of the answers that take one back.
    parts: u32,
    /// Whether there were too many: nothing but the API's own word ends that.
    there_is: bool,
    /// Whether the API named a limit: its 429 says nothing against that.
    told: bool,
}

impl Doubt {
    /// Returns whether this one was too many.
    fn refused(&mut self) -> bool {
        self.parts += if self.told { 0 } else { ANSWERS_A_REFUSAL };
        self.there_is = self.parts >= DOUBTED * ANSWERS_A_REFUSAL;
        self.there_is
    }

    fn answered(&mut self) {
        self.parts = self.parts.saturating_sub(1);
    }

    fn told(&mut self) {
        *self = Self { told: true, ..Self::default() };
    }
}

/// The right to make one call, and what was set aside for it. Goes back to [`Pace::end`].
#[derive(Debug)]
#[must_use = "what was set aside is not free again before the ticket is handed back"]
pub struct Ticket {
    number: u64,
    estimate: Each<f64>,
    sent: Instant,
}

/// Why a call may not be made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// It may at this instant, unless something else comes between.
    Until(Instant),
    /// As many as may be are in flight: one must end, or bring its first content.
    Window,
    /// The allowance is used up: the next take brings more.
    Allowance,
}

/// How a call ended, as the pace sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Spent {
    /// It was answered, or cut with this known of it: tokens that count (input without cache reads).
    Answered {
        /// Input tokens, those written to the cache included.
        input: f64,
        /// Output tokens.
        output: f64,
    },
    /// It was sent, and nobody knows what it cost: what was set aside is gone.
    Unknown,
    /// It was never sent, or refused for its own fault: costs nothing, says nothing.
    Nothing,
    /// 429 or 529, with the wait that the server named.
    Refused(Overload, Option<Duration>),
}

impl Spent {
    /// What a call cost that was answered, at least in part: what is read from the cache is free.
    pub fn answered(usage: Usage) -> Self {
        Self::Answered { input: (usage.input + usage.cache_creation) as f64, output: usage.output as f64 }
    }
}

impl Pace {
    /// Returns a pace that knows no limit: one call goes first.
    pub fn new(now: Instant) -> Self {
        Self {
            allowance: Allowance::default(),
            loss: Loss::new(now),
            doubt: Doubt::default(),
            next_send: now,
        }
    }

    /// Asks to make a call that will likely cost so much.
    pub fn admit(&mut self, estimate: Each<f64>, now: Instant) -> Result<Ticket, Hold> {
        if now < self.next_send {
            self.loss.wanted();
            return Err(Hold::Until(self.next_send));
        }
        if !self.allowance.admits(estimate) {
            return Err(Hold::Allowance);
        }
        let number = self.loss.admit(now)?;
        self.allowance.spend(estimate);
        let interval = self.allowance.interval(estimate).max(self.loss.interval());
        let due = now.checked_sub(CATCH_UP).unwrap_or(now).max(self.next_send);
        self.next_send = due + interval;
        Ok(Ticket { number, estimate, sent: now })
    }

    /// How many calls of this cost may be begun until the next take: no more need be claimed.
    pub fn slots(&self, estimate: Each<f64>, now: Instant) -> usize {
        self.allowance.slots(estimate).min(self.loss.slots(now))
    }

    /// The first content of a call came.
    pub fn content(&mut self, ticket: &Ticket, now: Instant) {
        self.loss.clean(ticket.number, now.saturating_duration_since(ticket.sent));
        self.doubt.answered();
    }

    /// A call ended. `dice` in [0, 1) spreads the end of a pause.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is used up")]
    pub fn end(&mut self, ticket: Ticket, spent: Spent, now: Instant, dice: f64) {
        let Ticket { number, estimate, sent } = ticket;
        let took = now.saturating_duration_since(sent);
        let cost = match spent {
            Spent::Answered { input, output } => {
                self.loss.ended(Some(took));
                Each { requests: 1.0, input, output }
            }
            Spent::Unknown => {
                self.loss.ended(None);
                estimate
            }
            Spent::Nothing => {
                self.loss.ended(None);
                Each::default()
            }
            Spent::Refused(overload, hint) => {
                // A limit that is known is kept by the budget: its 429 only says that we were early. Where they
                // do not cease it is not the API's, and what that allows is found by loss.
                if overload == Overload::Limit && self.trusts_limits() {
                    self.loss.early(number, hint, now, dice);
                    if self.doubt.refused() {
                        self.loss.begin_anew();
                    }
                } else {
                    self.loss.lost(number, overload, hint, now, dice);
                }
                self.loss.ended(None);
                Each::default()
            }
        };
        self.allowance.correct(estimate, cost);
    }

    /// Takes in what the headers of a response said. Told to the budget with the next take.
    pub fn learn(&mut self, limits: &RateLimits, now: Instant) {
        self.allowance.learn(limits, now);
        if limits.each.into_iter().any(|said| said.limit.is_some()) {
            self.doubt.told();
        }
        self.know();
    }

    /// Takes over limits that the configuration names, a minute.
    pub fn configure(&mut self, limits: Each<Option<f64>>) {
        self.allowance.configure(limits);
        self.know();
    }

    /// What to ask of the shared budget now, every [`TAKE_EVERY`]. A daemon that knows no limit asks for
    /// nothing and hears what the others know.
    pub fn take(&mut self, now: Instant) -> Take {
        self.allowance.take(now)
    }

    /// Stops for as long as the hint says, or a little: another daemon was refused. `dice` in [0, 1) spreads
    /// the end.
    pub fn pause(&mut self, hint: Option<Duration>, now: Instant, dice: f64) {
        self.loss.pause(hint, now, dice);
    }

    /// A gate rests in place of our own pause, or another call found the API well again: only what the
    /// server asked for is waited for.
    pub fn resume(&mut self) {
        self.loss.resume();
    }

    /// A person lets calls flow: nothing is waited for, not even what the server asked for.
    pub fn free(&mut self) {
        self.loss.free();
    }

    /// Whether it may be forgotten: nothing is in flight, owed or paused, and the last call was so long ago
    /// that what was found by loss is old. A limit that was learnt stands in the shared budget.
    pub fn is_idle(&self, now: Instant) -> bool {
        self.loss.is_idle(now) && !self.allowance.owes()
    }

    /// Takes in what the shared budget gave; all `None` where it could not be asked: what it was to be told
    /// goes with the next take.
    pub fn granted(&mut self, grants: Each<Option<Grant>>) {
        self.allowance.granted(grants);
        self.know();
    }

    /// Whether any limit is known.
    pub fn knows_limits(&self) -> bool {
        self.allowance.knows_limits()
    }

    fn know(&mut self) {
        if self.trusts_limits() {
            self.loss.lift();
        }
    }

    fn trusts_limits(&self) -> bool {
        self.allowance.knows_limits() && !self.doubt.there_is
    }
}

#[cfg(test)]
mod tests;
