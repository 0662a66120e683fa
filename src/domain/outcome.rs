//! How a job ended, what it cost, and what went wrong.

use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a job ended, apart from the API's stop reason. Only [`Outcome::Complete`] is success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// `end_turn` or `stop_sequence`, with text or tool-free content.
    Complete,
    /// Cut by `max_tokens` or the context window, after all that the policy allows.
    Truncated,
    /// Refused by the API's safety classifiers.
    Refused,
    /// Waits for tool results that nobody here gives.
    NeedsTool,
    /// Paused by a server tool more often than the policy allows.
    Paused,
    /// No text, after one nudge.
    Empty,
    /// Does not match its schema, after repair.
    InvalidOutput,
    /// Ended with a stop reason that this version does not know; the answer is kept.
    Unreviewed,
    /// Refused by us: no call was made.
    Invalid,
    /// Refused by the API, or the failures ran out.
    Failed,
    /// Its deadline passed.
    Expired,
    /// Cancelled by a person.
    Cancelled,
    /// It killed the worker.
    Quarantined,
}

impl Outcome {
    /// Every outcome, in the order of the documentation.
    pub const ALL: [Self; 13] = [
        Self::Complete,
        Self::Truncated,
        Self::Refused,
        Self::NeedsTool,
        Self::Paused,
        Self::Empty,
        Self::InvalidOutput,
        Self::Unreviewed,
        Self::Invalid,
        Self::Failed,
        Self::Expired,
        Self::Cancelled,
        Self::Quarantined,
    ];

    /// Returns the word in `results.outcome`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Truncated => "truncated",
            Self::Refused => "refused",
            Self::NeedsTool => "needs_tool",
            Self::Paused => "paused",
            Self::Empty => "empty",
            Self::InvalidOutput => "invalid_output",
            Self::Unreviewed => "unreviewed",
            Self::Invalid => "invalid",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Quarantined => "quarantined",
        }
    }

    /// Whether it is what the model made of the job, as any worker would have it: such an end is taken
    /// also from a worker that lost its lease. The others say what one claim met, and another may not.
    pub const fn is_an_answer(self) -> bool {
        match self {
            Self::Complete
            | Self::Truncated
            | Self::Refused
            | Self::NeedsTool
            | Self::Paused
            | Self::Empty
            | Self::InvalidOutput
            | Self::Unreviewed => true,
            Self::Invalid | Self::Failed | Self::Expired | Self::Cancelled | Self::Quarantined => false,
        }
    }

    /// Returns the outcome of a word, if it is one of ours.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == word)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Tokens, as the API counts them. Sums over calls are plain additions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Input after the last cache breakpoint.
    pub input: i64,
    /// Output, thinking included.
    pub output: i64,
    /// Input written to the prompt cache.
    pub cache_creation: i64,
    /// Input read from the prompt cache.
    pub cache_read: i64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.input = self.input.saturating_add(other.input);
        self.output = self.output.saturating_add(other.output);
        self.cache_creation = self.cache_creation.saturating_add(other.cache_creation);
        self.cache_read = self.cache_read.saturating_add(other.cache_read);
    }
}

/// Why a job or a call is not whole: the API's type and code, or ours, and one sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// `error.type` of the API (`overloaded_error`), or ours (`connection`, `stream_cut`).
    pub kind: String,
    /// `error.details.error_code` of the API, or ours (`unknown_field`).
    pub code: Option<String>,
    /// One readable sentence. May quote a prompt: it goes to the tables, never to a log.
    pub message: String,
}

impl Fault {
    /// Longest stored message, in bytes: `calls.error` is documented as ≤ 4 KiB.
    pub const MESSAGE_MAX: usize = 4096;

    /// Returns a fault whose message is cut to [`Fault::MESSAGE_MAX`] at a character border.
    pub fn new(kind: impl Into<String>, code: Option<&str>, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > Self::MESSAGE_MAX {
            message.truncate(message.floor_char_boundary(Self::MESSAGE_MAX));
        }
        Self { kind: kind.into(), code: code.map(str::to_owned), message }
    }
}

/// How one API call failed. What to do about it is decided in [`crate::domain::retry`].
#[derive(Debug, Clone, PartialEq)]
pub enum Failure {
    /// The API said no: an HTTP error status, or an `error` event inside a stream.
    Api(ApiError),
    /// The request was surely not processed: connect, DNS or TLS failed, or it was never written.
    Unsent(String),
    /// Sent, and then lost: nobody knows whether it was answered.
    Lost(Lost, String),
    /// An answer came that is not a Messages reply: HTML with a 200, broken JSON.
    Unreadable(String),
    /// An answer came that is larger than we take, by a limit of the configuration that the sentence names.
    TooLarge(String),
    /// The stream ended without a stop reason.
    Unended,
    /// We hung up ourselves: shutdown, cancel, a lost lease.
    Stopped,
}

/// How a sent request was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The connection broke.
    Reset,
    /// No event within the first-event limit.
    FirstEvent,
    /// No byte within the idle limit.
    Idle,
    /// Longer than `timeout_seconds` in all.
    Total,
}

/// An error that the API reported.
///
/// Shape of the body: `{"type":"error","error":{"type","message","details":{"error_code"}},"request_id"}`
/// (API reference, Errors). A body that is not JSON leaves `kind` empty and puts its start into
/// `message`; the status alone decides then.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ApiError {
    /// HTTP status; 200 when the error came as an event inside a stream.
    pub status: u16,
    /// `error.type`, or empty.
    pub kind: String,
    /// `error.details.error_code`.
    pub code: Option<String>,
    /// The API's sentence (≤ [`Fault::MESSAGE_MAX`] bytes). May quote the prompt.
    pub message: String,
    /// `retry-after-ms`, else `retry-after` (seconds or date), at least 0, at most 1 h.
    pub retry_after: Option<Duration>,
    /// `x-should-retry`, obeyed before our own opinion of what is not about the moment alone.
    pub should_retry: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_the_same_word_on_paper_as_in_the_table() {
        for outcome in Outcome::ALL {
            assert_eq!(serde_json::to_string(&outcome).unwrap(), format!("\"{outcome}\""));
        }
    }
}
