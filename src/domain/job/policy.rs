//! How a job wants to be treated.

use std::time::Duration;

/// What to do when `max_tokens` cut an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnMaxTokens {
    /// Go on where it was cut.
    Continue,
    /// Ask again with more room.
    Regenerate,
    /// Keep what is there: `truncated`.
    Stop,
}

/// What to do with a call that a crash cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCrash {
    /// Go on from what was kept.
    Resume,
    /// Ask afresh.
    Retry,
    /// End the job: it is called at most once.
    Fail,
}

/// `jobs.policy` over the queue's over the configured defaults, merged per top-level field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `on_max_tokens`.
    pub on_max_tokens: OnMaxTokens,
    /// `max_continuations`; regenerations count.
    pub max_continuations: i32,
    /// `max_output_tokens`: the whole answer.
    pub max_output_tokens: i64,
    /// `on_crash`.
    pub on_crash: OnCrash,
    /// `max_failures`: the fifth of 5 ends the job.
    pub max_failures: i32,
    /// `timeout_seconds`: one call.
    pub timeout: Duration,
    /// `max_turns`: tool and pause turns.
    pub max_turns: i32,
}
