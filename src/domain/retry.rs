//! What a failed call means, and what to do about it. Pure: nothing here sleeps, reads a clock or
//! throws dice; the caller passes the dice in and hands the answer to the store, which turns a
//! delay into a time.
//!
//! Two steps, each one total match: [`class`] says what kind of failure it was, [`decide`] what
//! happens to the job and what its gates should know. The sources of the table are the API
//! reference's pages on errors and rate limits.

use std::time::{Duration, Instant};

use backoff::backoff::Backoff as _;

use crate::domain::breaker::Health;
use crate::domain::job::{OnCrash, Tally};
use crate::domain::outcome::{ApiError, Failure, Fault, Lost, Outcome, Usage};
use crate::domain::pace::{Overload, Spent};

/// What kind of failure a call met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    /// The request itself is at fault: no retry can succeed.
    Job,
    /// The model is not there.
    Model,
    /// The model refuses a trailing assistant message: ask again the other way, free.
    Prefill,
    /// The account may not spend or is on hold: the key's gate, until somebody acts.
    Account,
    /// 401, 402 or 403 without a known code: the key's fault or the job's own. A free question tells.
    Suspect,
    /// 429: free; `slow_down` says that growth itself was too fast.
    Limit {
        /// The server's hint.
        hint: Option<Duration>,
        /// `ramp_limit_exceeded`.
        ramp: bool,
    },
    /// The provider is unwell.
    Sick {
        /// The server's hint.
        hint: Option<Duration>,
        /// Whether it costs the job a failure. 503, 529 and what was surely not processed are free.
        costs: bool,
    },
    /// We hung up ourselves.
    Ours,
}

/// Says what kind of failure it was. `prefilled`: the request ended with an assistant message.
pub fn class(failure: &Failure, prefilled: bool) -> Class {
    match failure {
        Failure::Api(error) => class_of_error(error, prefilled),
        Failure::Unsent(_) => Class::Sick { hint: None, costs: false },
        Failure::Lost(Lost::Reset | Lost::FirstEvent | Lost::Idle | Lost::Total, _)
        | Failure::Unreadable(_)
        | Failure::Unended => Class::Sick { hint: None, costs: true },
        // The next answer would be as large, and cost as much.
        Failure::TooLarge(_) => Class::Job,
        Failure::Stopped => Class::Ours,
    }
}

/// Codes that name the cause, whatever the status (API reference, Errors: "branch on it").
fn class_of_code(code: &str, hint: Option<Duration>) -> Option<Class> {
    Some(match code {
        "linked_organization_billing_unavailable"
        | "linked_organization_spend_limit_reached"
        | "file_expired" => Class::Job,
        code if code.starts_with("user_profile_") => Class::Job,
        "organization_on_hold" | "api_key_scope_missing" | "claude_code_key_creator_not_member" => {
            Class::Account
        }
        // The keys of a customer-managed encryption are out of reach for minutes, not for good.
        "cmek_key_unreachable" | "cmek_context_unavailable" => Class::Sick { hint, costs: false },
        code if code.starts_with("cmek_") => Class::Account,
        code if code.ends_with("_spend_limit_reached") => Class::Account,
        "ramp_limit_exceeded" => Class::Limit { hint, ramp: true },
        "request_body_timeout" | "request_body_encoding_invalid" => Class::Sick { hint, costs: true },
        "request_body_too_large_after_decoding" => Class::Job,
        _ => return None,
    })
}

/// Sentences by which a 400 says that the account may not spend. Only at the very start: further in,
/// the same words may be a quotation of the prompt.
///
/// Each with our own words for it, which may stand in a gate and in a log.
const ACCOUNT_SENTENCES: [(&str, &str); 3] = [
    (
        "Your credit balance is too low",
        "the credit balance is too low: buy credits, then set this gate to 'flowing'",
    ),
    (
        "You have reached your specified API usage limits",
        "the usage limit of this account is reached: raise it, then set this gate to 'flowing'",
    ),
    (
        "You have reached your specified workspace API usage limits",
        "the usage limit of this workspace is reached: raise it, then set this gate to 'flowing'",
    ),
];

const PREFILL_SENTENCE: &str = "does not support assistant message prefill";

fn account_words(error: &ApiError) -> Option<&'static str> {
    let said = ACCOUNT_SENTENCES.iter().find(|(start, _)| error.message.starts_with(start));
    said.filter(|_| effective_status(error) == 400).map(|(_, words)| *words)
}

/// Whether a 404 says that the model is not there: `model: NAME` of the API, `The model ... does not
/// exist` or `model '...' not found` of compatible servers. A file or a skill that is missing may
/// name the model too, further in, and must not stop everybody who asks it.
fn is_about_the_model(message: &str) -> bool {
    let start: String = message.chars().take(10).flat_map(char::to_lowercase).collect();
    start.starts_with("model") || start.starts_with("the model")
}

fn class_of_error(error: &ApiError, prefilled: bool) -> Class {
    let hint = error.retry_after;
    if let Some(class) = error.code.as_deref().and_then(|code| class_of_code(code, hint)) {
        return class;
    }
    let status = effective_status(error);
    let costly = Class::Sick { hint, costs: true };
    match status {
        400 if account_words(error).is_some() => Class::Account,
        400 if prefilled && error.message.contains(PREFILL_SENTENCE) => Class::Prefill,
        401..=403 => Class::Suspect,
        404 if is_about_the_model(&error.message) => Class::Model,
        429 => Class::Limit { hint, ramp: false },
        503 | 529 => Class::Sick { hint, costs: false },
        // The server says that trying again cannot help, or that it can: it knows better than we do.
        408 | 409 | 500..=599 if error.should_retry == Some(false) => Class::Job,
        408 | 409 | 500 | 502 | 504..=599 => costly,
        400..=499 if error.should_retry == Some(true) => costly,
        501 | 400..=499 => Class::Job,
        // An `error` event of an unknown type, or a status that is no error: nobody said that the
        // request is at fault.
        _ => costly,
    }
}

/// The status that an error event inside a stream stands for; the type is what it has.
fn effective_status(error: &ApiError) -> u16 {
    if error.status >= 400 {
        return error.status;
    }
    match error.kind.as_str() {
        "invalid_request_error" => 400,
        "authentication_error" => 401,
        "billing_error" => 402,
        "permission_error" => 403,
        "not_found_error" => 404,
        "timeout_error" => 408,
        "conflict_error" => 409,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "overloaded_error" => 529,
        "api_error" => 500,
        _ => error.status,
    }
}

/// What the gates should learn from a failure, beside the provider's [`Health`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    Nothing,
    /// The key may not be used until somebody acts; after this rest one call asks again.
    KeyBlocked(Duration),
    /// The model that jobs without one get is not there.
    ModelMissing,
    /// The job's own fault: the same again and again stops its batch.
    Refused,
}

impl Class {
    /// How the call looked to the breaker: whatever was answered is healthy, but for the
    /// provider's own troubles. `None`: it says nothing.
    pub const fn health(&self) -> Option<Health> {
        match self {
            Self::Sick { .. } => Some(Health::Sick),
            Self::Ours => None,
            Self::Job | Self::Model | Self::Prefill | Self::Account | Self::Suspect | Self::Limit { .. } => {
                Some(Health::Well)
            }
        }
    }
}

/// What a failed call is to the pace: whether it was refused for going too fast, and what it cost.
/// `begun`: whether the answer had begun, so that nothing was refused.
pub fn spent(failure: &Failure, class: &Class, usage: Usage, begun: bool) -> Spent {
    match class {
        Class::Limit { hint, ramp: true } if !begun => Spent::Refused(Overload::Ramp, *hint),
        Class::Limit { hint, ramp: false } if !begun => Spent::Refused(Overload::Limit, *hint),
        Class::Sick { hint, costs: false } if !begun && matches!(failure, Failure::Api(_)) => {
            Spent::Refused(Overload::Provider, *hint)
        }
        _ if usage != Usage::default() => Spent::answered(usage),
        // What was refused before it began costs nothing; of what was sent and cut nobody knows.
        Class::Sick { costs: true, .. } | Class::Ours => Spent::Unknown,
        _ => Spent::Nothing,
    }
}

/// What the decision depends on, beside the failure.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// The job's counters before this call.
    pub tally: Tally,
    /// `max_failures` of its policy.
    pub failures_max: i32,
    /// Whether the call was a probe, or the breaker is blocked by now: free then.
    pub excused: bool,
    /// Whether the job itself names its model.
    pub model_named: bool,
    /// Whose fault a suspect answer was found to be.
    pub blame: Option<Blame>,
    /// A number in [0, 1), for the full jitter.
    pub dice: f64,
    /// The delay curve.
    pub curve: Curve,
}

/// What becomes of the job.
#[derive(Debug, Clone, PartialEq)]
pub enum Disposition {
    /// It ends.
    End {
        /// How.
        outcome: Outcome,
        /// Why.
        fault: Fault,
        /// Its counters at the end.
        tally: Tally,
    },
    /// It is put back.
    Back {
        /// How long it waits; `None`: not at all (its gate holds it).
        delay: Option<Duration>,
        /// Its counters from now on.
        tally: Tally,
        /// Why, in words that quote nothing of the job.
        reason: String,
    },
    /// It is asked again at once, by the user-turn way.
    AskAgain,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// With the job.
    pub job: Disposition,
    /// With its gates.
    pub news: News,
}

/// A job deferred so often in a row, while its gate flowed or by a failure of its own probe, starts to pay
/// for it. Rate limits never make it pay.
pub const DEFERRALS_FREE: i32 = 30;
/// So many rate limits in a row make the pauses grow: the curve of the defaults is at its top then.
const LIMITS_COUNTED: i32 = 8;

/// Decides what a failure means: one total match from the class to the job's and the gates' fate.
pub fn decide(failure: &Failure, class: &Class, with: Circumstances) -> Decision {
    match class {
        Class::Model if with.model_named => end(failure, with.tally, News::Refused),
        Class::Model => untouched(with, failure, News::ModelMissing),
        Class::Prefill => Decision { job: Disposition::AskAgain, news: News::Nothing },
        Class::Account => untouched(with, failure, News::KeyBlocked(rest(failure))),
        Class::Suspect => suspected(with, failure),
        Class::Job => end(failure, with.tally, News::Refused),
        Class::Limit { hint, .. } => hold_back(with, *hint, failure),
        Class::Sick { hint, costs: false } => defer(with, *hint, failure, News::Nothing),
        // Counted: a job that breaks whatever answers it would else be its own model's probe for ever.
        Class::Sick { hint, costs: true } if with.excused => {
            defer(Circumstances { excused: false, ..with }, *hint, failure, News::Nothing)
        }
        Class::Sick { hint, costs: true } => charge(with, *hint, failure),
        Class::Ours => untouched(with, failure, News::Nothing),
    }
}

/// How long a key that may not spend rests: credits are bought while nobody watches the queue.
pub const KEY_REST: Duration = Duration::from_mins(5);
/// How long one rests whose limit for the month is used up: it is raised seldom, and ends by a date.
pub const LIMIT_REST: Duration = Duration::from_hours(1);

fn rest(failure: &Failure) -> Duration {
    let Failure::Api(error) = failure else { return KEY_REST };
    let spent = error.code.as_deref().is_some_and(|code| code.ends_with("_spend_limit_reached"))
        || error.message.starts_with("You have reached your specified");
    let rest = if spent { LIMIT_REST } else { KEY_REST };
    // A hint of no time at all would let each job of the backlog find out anew.
    error.retry_after.map_or(rest, |hint| hint.max(rest).min(LIMIT_REST))
}

/// When the API says that a spent limit ends: `2026-12-01 at 00:00 UTC`. Nothing else of the message.
fn regained(error: &ApiError) -> Option<&str> {
    let (_, rest) = error.message.split_once("regain access on ")?;
    let said = rest.get(..23)?;
    let is_date = said.bytes().zip(*b"0000-00-00 at 00:00 UTC").all(|(is, like)| match like {
        b'0' => is.is_ascii_digit(),
        _ => is == like,
    });
    is_date.then_some(said)
}

/// Whose fault a 401, 402 or 403 without a known code is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The key's.
    Key,
    /// The job's own.
    Job,
    /// Nobody could find out; with the server's hint when to ask again.
    Nobody(Option<Duration>),
}

/// Says what came of asking for free whether the key is good (`GET /v1/models`).
pub fn blame(checked: &Result<(), Failure>) -> Blame {
    match checked {
        Ok(()) => Blame::Job,
        Err(Failure::Api(error)) => match error.status {
            401..=403 => Blame::Key,
            // A server without such a list has nothing against the key, and there is no more to find out.
            400 | 404 | 405 | 422 | 501 => Blame::Job,
            _ => Blame::Nobody(error.retry_after),
        },
        Err(
            Failure::Unsent(_)
            | Failure::Lost(..)
            | Failure::Unreadable(_)
            | Failure::TooLarge(_)
            | Failure::Unended
            | Failure::Stopped,
        ) => Blame::Nobody(None),
    }
}

fn suspected(with: Circumstances, failure: &Failure) -> Decision {
    match with.blame {
        Some(Blame::Key) => untouched(with, failure, News::KeyBlocked(KEY_REST)),
        Some(Blame::Job) | None => end(failure, with.tally, News::Refused),
        // Counted, as what breaks a probe is: a server that never tells would else be asked for ever.
        Some(Blame::Nobody(hint)) => {
            let with = Circumstances { excused: false, ..with };
            let mut decision = defer(with, hint, failure, News::Nothing);
            if let Disposition::Back { reason, .. } = &mut decision.job {
                reason.push_str(", and the API did not say whether the key is good");
            }
            decision
        }
    }
}

fn end(failure: &Failure, tally: Tally, news: News) -> Decision {
    Decision { job: Disposition::End { outcome: Outcome::Failed, fault: fault(failure), tally }, news }
}

fn untouched(with: Circumstances, failure: &Failure, news: News) -> Decision {
    let reason = reason(failure);
    Decision { job: Disposition::Back { delay: None, tally: with.tally, reason }, news }
}

/// Puts it back for a rate limit, however often: the job has nothing to do with it. The counter of
/// deferrals grows no further than the curve does, so that an overload later on is free as well.
fn hold_back(with: Circumstances, hint: Option<Duration>, failure: &Failure) -> Decision {
    let mut tally = with.tally;
    if !with.excused {
        tally.deferrals = tally.deferrals.max(LIMITS_COUNTED.min(tally.deferrals.saturating_add(1)));
    }
    back(with, tally, hint, failure)
}

fn defer(with: Circumstances, hint: Option<Duration>, failure: &Failure, news: News) -> Decision {
    let mut tally = with.tally;
    if !with.excused {
        tally.deferrals = tally.deferrals.saturating_add(1);
        if tally.deferrals > DEFERRALS_FREE {
            return Decision { news, ..charge(Circumstances { tally, ..with }, hint, failure) };
        }
    }
    Decision { news, ..back(with, tally, hint, failure) }
}

fn back(with: Circumstances, tally: Tally, hint: Option<Duration>, failure: &Failure) -> Decision {
    let delay = with.curve.delay(tally.failures + tally.deferrals.min(DEFERRALS_FREE) - 1, hint, with.dice);
    let job = Disposition::Back { delay: Some(delay), tally, reason: reason(failure) };
    Decision { job, news: News::Nothing }
}

fn charge(with: Circumstances, hint: Option<Duration>, failure: &Failure) -> Decision {
    let mut tally = with.tally;
    tally.failures = tally.failures.saturating_add(1);
    if tally.failures >= with.failures_max {
        return end(failure, tally, News::Nothing);
    }
    let delay = with.curve.delay(tally.failures - 1, hint, with.dice);
    Decision {
        job: Disposition::Back { delay: Some(delay), tally, reason: reason(failure) },
        news: News::Nothing,
    }
}

/// What a job does whose last call was lost with its worker.
pub fn after_crash(policy: OnCrash) -> Option<(Outcome, Fault)> {
    match policy {
        OnCrash::Resume | OnCrash::Retry => None,
        OnCrash::Fail => Some((
            Outcome::Failed,
            Fault::new(
                "lost",
                Some("lost_call"),
                "the worker vanished during a call, and policy.on_crash=fail forbids another: the call may have been made and paid for",
            ),
        )),
    }
}

/// Returns the fault that the tables keep. It may quote the prompt: never into a log.
pub fn fault(failure: &Failure) -> Fault {
    match failure {
        Failure::Api(error) => {
            let kind =
                if error.kind.is_empty() { format!("http_{}", error.status) } else { error.kind.clone() };
            let message = if error.message.is_empty() {
                format!("the API answered with status {} and no message", error.status)
            } else {
                error.message.clone()
            };
            let (code, hint) = match (&error.code, container_is_gone(error)) {
                (None, true) => (Some("container_expired"), CONTAINER_HINT),
                (code, _) => (code.as_deref(), sampling_hint(error)),
            };
            Fault::new(kind, code, format!("{message}{hint}"))
        }
        Failure::Unsent(why) => Fault::new("connection", Some("unsent"), why.clone()),
        Failure::Lost(lost, why) => Fault::new("connection", Some(lost_code(*lost)), why.clone()),
        Failure::Unreadable(why) => Fault::new("invalid_response", None, why.clone()),
        Failure::TooLarge(why) => Fault::new("response_too_large", None, why.clone()),
        Failure::Unended => {
            Fault::new("stream_cut", None, "the stream ended before the answer did: no stop reason came")
        }
        Failure::Stopped => {
            Fault::new("stopped", None, "the worker hung up: shutdown, cancel or a lost lease")
        }
    }
}

const CONTAINER_HINT: &str = " (promptmill: what the conversation left in its container is gone with it; run the job again to begin anew)";

/// Whether a refusal is about a container of the API that is there no more: they live for 30 days, and are
/// sometimes gone sooner. There is no code for it (API guide, Code execution tool).
fn container_is_gone(error: &ApiError) -> bool {
    let message = error.message.to_ascii_lowercase();
    let gone = ["expired", "not found", "no longer", "does not exist"];
    matches!(effective_status(error), 400 | 404 | 410)
        && message.contains("container")
        && gone.iter().any(|word| message.contains(word))
}

/// Under `anthropic-version: 2026-10-21` any sampling parameter is a 400 (API reference, migration page).
fn sampling_hint(error: &ApiError) -> &'static str {
    let named = ["temperature", "top_p", "top_k"].iter().any(|name| error.message.contains(name));
    if effective_status(error) == 400 && named {
        " (promptmill: api.version 2026-10-21 takes no sampling parameters; take them out, or set an older version \
         for this model under [models.\"NAME\"] version)"
    } else {
        ""
    }
}

const fn lost_code(lost: Lost) -> &'static str {
    match lost {
        Lost::Reset => "reset",
        Lost::FirstEvent => "first_event_timeout",
        Lost::Idle => "idle_timeout",
        Lost::Total => "call_timeout",
    }
}

/// Why a job waits, for `job_state.reason` and the log: the kind of failure, never its message.
pub fn reason(failure: &Failure) -> String {
    if let Failure::Api(error) = failure
        && error.code.is_none()
        && let Some(words) = account_words(error)
    {
        let until = regained(error).map(|until| format!("; the API says that it ends on {until}"));
        return format!("{words}{}", until.unwrap_or_default());
    }
    let fault = fault(failure);
    match (failure, &fault.code) {
        (Failure::Api(error), Some(code)) if error.status >= 400 => {
            format!("{} ({}, {code}){}", fault.kind, error.status, end_of_limit(code))
        }
        (Failure::Api(error), None) if error.status >= 400 => format!("{} ({})", fault.kind, error.status),
        (_, Some(code)) => format!("{} ({code})", fault.kind),
        (_, None) => fault.kind,
    }
}

/// When a spent limit ends whose code says it, but no message: the tier's is for the month (API guide, rate limits).
fn end_of_limit(code: &str) -> &'static str {
    match code {
        "enforced_spend_limit_reached" => {
            "; it ends with the month, on the 1st at 00:00 UTC, unless it is raised before"
        }
        _ => "",
    }
}

/// What makes two refusals the same: status, type, code, and the message with numbers and quoted
/// strings blanked.
pub fn signature(error: &ApiError) -> String {
    let mut blank = String::with_capacity(error.message.len());
    let mut quote: Option<char> = None;
    for c in error.message.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '\'' | '`') => {
                quote = Some(c);
                blank.push('…');
            }
            None if c.is_ascii_digit() && blank.ends_with('#') => {}
            None if c.is_ascii_digit() => blank.push('#'),
            None => blank.push(c),
        }
    }
    format!("{}|{}|{}|{blank}", effective_status(error), error.kind, error.code.as_deref().unwrap_or(""))
}

/// The delay curve: doubling from `base` to `max`, full jitter, a server's hint as the floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Curve {
    /// `retry.base_ms`.
    pub base: Duration,
    /// `retry.max_ms`.
    pub max: Duration,
    /// Any instant: the crate wants one to subtract from itself.
    pub still: Instant,
}

/// A clock that stands still: the crate's curve is wanted, its notion of time is not.
struct Motionless(Instant);

impl backoff::Clock for Motionless {
    fn now(&self) -> Instant {
        self.0
    }
}

impl Curve {
    /// Returns the longest wait before try `attempt + 1` (attempts count from 0).
    pub fn bound(&self, attempt: i32) -> Duration {
        let mut curve = backoff::exponential::ExponentialBackoff::<Motionless> {
            current_interval: self.base,
            initial_interval: self.base,
            randomization_factor: 0.0,
            multiplier: 2.0,
            max_interval: self.max,
            start_time: self.still,
            max_elapsed_time: None,
            clock: Motionless(self.still),
        };
        // The curve has met its maximum long before 64 doublings.
        let mut bound = self.base.min(self.max);
        for _ in 0..=attempt.clamp(0, 64) {
            bound = curve.next_backoff().unwrap_or(self.max).min(self.max);
        }
        bound
    }

    /// Returns how long to wait: anything up to the bound by the dice, and never less than the hint.
    pub fn delay(&self, attempt: i32, hint: Option<Duration>, dice: f64) -> Duration {
        let jitter = self.bound(attempt).mul_f64(dice.clamp(0.0, 1.0));
        hint.map_or(jitter, |floor| floor.saturating_add(jitter))
    }
}

#[cfg(test)]
mod tests;
