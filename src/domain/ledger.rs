//! The rows of the ledger: one a call to the API, written once, read again when a job resumes.
//!
//! What is written can also be put on paper (serde): a time is a `T` there, an [`Instant`] of this
//! process or its age. A field that a later version adds needs a default, or old paper is unreadable.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::domain::job::Lease;
use crate::domain::outcome::{Fault, Outcome, Usage};
use crate::domain::tool::Asked;

/// Why a call was made: `calls.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallKind {
    /// The job's own question.
    Ask,
    /// Goes on with an answer that `max_tokens` cut.
    Continue,
    /// Asks again with more room, dropping what was cut.
    Regenerate,
    /// Goes on with an answer whose stream was lost.
    Resume,
    /// Answers tool calls.
    Tool,
    /// Shows the model what its structured output got wrong.
    Repair,
    /// Asks for an answer after an empty one.
    Nudge,
    /// Asks another model after a refusal.
    Fallback,
    /// Sends a paused turn back.
    Pause,
}

impl CallKind {
    const ALL: [Self; 9] = [
        Self::Ask,
        Self::Continue,
        Self::Regenerate,
        Self::Resume,
        Self::Tool,
        Self::Repair,
        Self::Nudge,
        Self::Fallback,
        Self::Pause,
    ];

    /// Returns the word in `calls.kind`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ask => "ask",
            Self::Continue => "continue",
            Self::Regenerate => "regenerate",
            Self::Resume => "resume",
            Self::Tool => "tool",
            Self::Repair => "repair",
            Self::Nudge => "nudge",
            Self::Fallback => "fallback",
            Self::Pause => "pause",
        }
    }

    /// Returns the kind of a word, if it is one of ours.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

impl fmt::Display for CallKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One call to the API, as it goes into the ledger.
///
/// Times are [`Instant`]s of this process: the store turns them into the database's time when it
/// writes (`now() - elapsed`), so no wall clock of ours enters a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call<T = Instant> {
    /// From 1 in each claim.
    pub seq: i32,
    /// Why it was made.
    pub kind: CallKind,
    /// Whether it was a breaker's probe.
    pub probe: bool,
    /// The model that was asked, or, once known, that answered.
    pub model: String,
    /// Room it was given, in tokens.
    pub max_tokens: i64,
    /// Number of messages sent.
    pub messages: i32,
    /// JSON: only what cannot be computed again (how it was continued, the seam, what was dropped).
    pub request: Option<String>,
    /// When the request was sent.
    pub sent: T,
    /// When the first content event came.
    pub first_token: Option<T>,
    /// When the last byte came.
    pub ended: T,
    /// HTTP status, where there was one.
    pub http_status: Option<u16>,
    /// `request-id`.
    pub request_id: Option<String>,
    /// The message's id.
    pub message_id: Option<String>,
    /// The API's word.
    pub stop_reason: Option<String>,
    /// JSON text as received.
    pub stop_details: Option<String>,
    /// The four token columns; an estimate where `partial`.
    pub usage: Usage,
    /// JSON text as received: the billing truth.
    pub usage_raw: Option<String>,
    /// JSON array text of the content blocks; of a cut call, what had arrived.
    pub content: Option<Arc<str>>,
    /// JSON text of the container.
    pub container: Option<String>,
    /// Whether the call was cut, so that tokens are estimates and content is not whole.
    pub partial: bool,
    /// Why it is not whole.
    pub fault: Option<Fault>,
    /// The server's hint.
    pub retry_after: Option<Duration>,
    /// Whether parts of it stand in `checkpoints`, which this row makes superfluous.
    pub checkpointed: bool,
}

/// A part of a running stream's text, kept so that a crash does not lose it: only what came since
/// the part before. Part 0 is the head: what the ledger's row of this call has to know if nobody
/// else is left to write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The fence.
    pub lease: Lease,
    /// The call's number in this claim.
    pub seq: i32,
    /// From 0.
    pub part: i32,
    /// Part 0: JSON with `kind`, `model`, `max_tokens`, `messages` and `request`. Else text.
    pub content: String,
}

/// A row of the ledger as a resuming job needs it.
#[derive(Debug, Clone)]
pub struct PastCall {
    /// Which claim made it.
    pub claim: i64,
    /// Its number in that claim.
    pub seq: i32,
    /// `calls.kind`, as stored.
    pub kind: String,
    /// `calls.model`.
    pub model: Option<String>,
    /// `calls.max_tokens`.
    pub max_tokens: Option<i64>,
    /// `calls.request`: JSON text.
    pub request: Option<String>,
    /// `calls.stop_reason`; `None` where the call did not end.
    pub stop_reason: Option<String>,
    /// `calls.stop_details`: JSON text.
    pub stop_details: Option<String>,
    /// Tokens.
    pub usage: Usage,
    /// `calls.content`: JSON array text.
    pub content: Option<String>,
    /// `calls.container`: JSON text.
    pub container: Option<String>,
    /// `calls.partial`.
    pub partial: bool,
    /// `calls.late`: it came after the job was taken away. Paid for, but no part of the talk.
    pub late: bool,
    /// `calls.error_type`.
    pub error_type: Option<String>,
    /// `calls.request_id`.
    pub request_id: Option<String>,
    /// How long before the claim it was sent.
    pub sent_ago: Option<Duration>,
}

/// The row of `results` that a settle writes. Queue, batch and key come from `jobs` in the statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer<T = Instant> {
    /// How the job ended.
    pub outcome: Outcome,
    /// The API's word.
    pub stop_reason: Option<String>,
    /// Which stop sequence was met.
    pub stop_sequence: Option<String>,
    /// JSON text.
    pub stop_details: Option<String>,
    /// Text of the last assistant turn, over its continuations; no U+0000.
    pub text: Option<String>,
    /// JSON array text: the blocks of that turn, text at a seam made one.
    pub content: Option<Arc<str>>,
    /// JSON text: the parsed structured output.
    pub output: Option<String>,
    /// How many characters had to be replaced by U+FFFD.
    pub sanitised: i32,
    /// How many of the job's messages were left out, so that the input fits into the model's window.
    #[serde(default)]
    pub dropped: i32,
    /// The model that answered.
    pub model: Option<String>,
    /// Summed over all calls of this run.
    pub usage: Usage,
    /// How many calls this run made.
    pub calls: i32,
    /// How many of them went on with a cut answer.
    pub continuations: i32,
    /// Joins that were neither anchored nor overlapped.
    pub seams: i32,
    /// Tries that counted.
    pub failures: i32,
    /// Why it is not complete.
    pub fault: Option<Fault>,
    /// Of the last call.
    pub request_id: Option<String>,
    /// When the first call of this run was sent.
    pub started: Option<T>,
}

/// The end of a job: its result and the ledger row of its last call, written in one statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement<T = Instant> {
    /// The fence.
    pub lease: Lease,
    /// The result.
    pub answer: Answer<T>,
    /// The last call, where it is not in the ledger yet.
    pub call: Option<Call<T>>,
}

/// Where a job goes back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Back {
    /// It may be claimed at once.
    Now,
    /// It is retried after so long.
    After(Duration),
    /// It waits until somebody has answered these tool calls.
    Waiting(Asked),
}

impl Back {
    /// Returns how long it is until the job may be claimed, where that is a matter of time.
    pub const fn delay(&self) -> Option<Duration> {
        match self {
            Self::After(delay) => Some(*delay),
            Self::Now | Self::Waiting(_) => None,
        }
    }
}

impl From<Option<Duration>> for Back {
    fn from(delay: Option<Duration>) -> Self {
        delay.map_or(Self::Now, Self::After)
    }
}

/// A job put back: retried later, waiting for tools, or given up untouched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release<T = Instant> {
    /// The fence.
    pub lease: Lease,
    /// Where to.
    pub back: Back,
    /// `job_state.failures` from now on.
    pub failures: i32,
    /// `job_state.deferrals` from now on.
    pub deferrals: i32,
    /// Why it waits, in words that quote nothing of the job.
    pub reason: Option<String>,
    /// The call that led here, where it is not in the ledger yet.
    pub call: Option<Call<T>>,
}

impl<T> Call<T> {
    /// Returns the same with other times.
    pub fn map<U>(self, mut time: impl FnMut(T) -> U) -> Call<U> {
        Call {
            sent: time(self.sent),
            first_token: self.first_token.map(&mut time),
            ended: time(self.ended),
            seq: self.seq,
            kind: self.kind,
            probe: self.probe,
            model: self.model,
            max_tokens: self.max_tokens,
            messages: self.messages,
            request: self.request,
            http_status: self.http_status,
            request_id: self.request_id,
            message_id: self.message_id,
            stop_reason: self.stop_reason,
            stop_details: self.stop_details,
            usage: self.usage,
            usage_raw: self.usage_raw,
            content: self.content,
            container: self.container,
            partial: self.partial,
            fault: self.fault,
            retry_after: self.retry_after,
            checkpointed: self.checkpointed,
        }
    }
}

impl<T> Answer<T> {
    /// Returns an end of which nothing else is known: no word, no call.
    pub fn of(outcome: Outcome) -> Self {
        Self {
            outcome,
            stop_reason: None,
            stop_sequence: None,
            stop_details: None,
            text: None,
            content: None,
            output: None,
            sanitised: 0,
            dropped: 0,
            model: None,
            usage: Usage::default(),
            calls: 0,
            continuations: 0,
            seams: 0,
            failures: 0,
            fault: None,
            request_id: None,
            started: None,
        }
    }

    /// Returns the same with other times.
    pub fn map<U>(self, time: impl FnMut(T) -> U) -> Answer<U> {
        Answer {
            started: self.started.map(time),
            outcome: self.outcome,
            stop_reason: self.stop_reason,
            stop_sequence: self.stop_sequence,
            stop_details: self.stop_details,
            text: self.text,
            content: self.content,
            output: self.output,
            sanitised: self.sanitised,
            dropped: self.dropped,
            model: self.model,
            usage: self.usage,
            calls: self.calls,
            continuations: self.continuations,
            seams: self.seams,
            failures: self.failures,
            fault: self.fault,
            request_id: self.request_id,
        }
    }
}

impl<T> Settlement<T> {
    /// Returns the end of a job. What its answer and its last call say alike is held once, for as long as
    /// the database lets it wait.
    pub fn new(lease: Lease, mut answer: Answer<T>, call: Option<Call<T>>) -> Self {
        let said = call.as_ref().and_then(|call| call.content.as_ref());
        if answer.content.as_ref() == said {
            answer.content = said.cloned();
        }
        Self { lease, answer, call }
    }

    /// Returns the same with other times.
    pub fn map<U>(self, mut time: impl FnMut(T) -> U) -> Settlement<U> {
        Settlement {
            lease: self.lease,
            answer: self.answer.map(&mut time),
            call: self.call.map(|call| call.map(time)),
        }
    }
}

impl<T> Release<T> {
    /// Returns the same with other times.
    pub fn map<U>(self, time: impl FnMut(T) -> U) -> Release<U> {
        Release {
            lease: self.lease,
            back: self.back,
            failures: self.failures,
            deferrals: self.deferrals,
            reason: self.reason,
            call: self.call.map(|call| call.map(time)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_the_same_word_on_paper_as_in_the_table() {
        for kind in CallKind::ALL {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
        }
    }
}
