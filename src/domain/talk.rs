//! The conversation of one job, as a state machine without IO.

use std::time::Duration;

use bytes::Bytes;

use crate::domain::ledger::CallKind;

/// One request to the API, ready to be sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// Why it is made.
    pub kind: CallKind,
    /// The model asked.
    pub model: String,
    /// The JSON body, `"stream":true` in it.
    pub body: Bytes,
    /// `max_tokens` in it.
    pub max_tokens: i64,
    /// Number of messages in it.
    pub messages: i32,
    /// For `calls.request`: how an answer is continued.
    pub note: Option<String>,
    /// Longest time the call may take in all.
    pub timeout: Duration,
}
