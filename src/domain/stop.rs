//! Why the model stopped.
//!
//! The API says that new words will come, so a word that this version does not know is kept
//! as it came and never taken for success.

use std::fmt;

/// A `stop_reason` of the Messages API.
///
/// Source: the Messages API reference, `stop_reason`; unknown words round-trip through
/// [`StopReason::Other`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The model finished its turn.
    EndTurn,
    /// One of `stop_sequences` was met.
    StopSequence,
    /// The call's `max_tokens` were used up.
    MaxTokens,
    /// The model waits for the results of its tool calls.
    ToolUse,
    /// A server-side tool loop paused; the same content sent back goes on.
    PauseTurn,
    /// The safety classifiers stopped the answer. HTTP 200: not an error.
    Refusal,
    /// The context window is full. Never appended to.
    ContextWindow,
    /// A word this version does not know, as it came.
    Other(String),
}

impl StopReason {
    /// Returns the API's word.
    pub fn as_str(&self) -> &str {
        match self {
            Self::EndTurn => "end_turn",
            Self::StopSequence => "stop_sequence",
            Self::MaxTokens => "max_tokens",
            Self::ToolUse => "tool_use",
            Self::PauseTurn => "pause_turn",
            Self::Refusal => "refusal",
            Self::ContextWindow => "model_context_window_exceeded",
            Self::Other(word) => word,
        }
    }
}

impl From<&str> for StopReason {
    fn from(word: &str) -> Self {
        match word {
            "end_turn" => Self::EndTurn,
            "stop_sequence" => Self::StopSequence,
            "max_tokens" => Self::MaxTokens,
            "tool_use" => Self::ToolUse,
            "pause_turn" => Self::PauseTurn,
            "refusal" => Self::Refusal,
            "model_context_window_exceeded" => Self::ContextWindow,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
