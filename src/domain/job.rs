//! A job: its ids, the row a claim brings, and the same row understood ([`Job::read`]).
//!
//! Reading is where everything that no call could mend is refused, with the path of the fault.

mod fields;
mod policy;
mod raw;
mod read;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::ledger::PastCall;
use crate::domain::tool::PastTool;

pub use fields::Field;
pub use policy::{OnContextOverflow, OnCrash, OnMaxTokens, OnToolUse, Policy};
pub use raw::Raw;
pub use read::{Defaults, Invalid, Job, ModelFacts};
pub(crate) use read::{json_string, message, user_message};

/// Identifies a job: `jobs.id`. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(pub i64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identifies a worker: `workers.id`, new at every start of a daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkerId(pub i64);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The right to write a job's end: the job, and the number of the claim that took it.
///
/// The claim is the fence: it grows at every claim and at every change that takes a job from its
/// worker, so a write that names an old one hits no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// The job.
    pub job: JobId,
    /// `job_state.claims` as this claim left it.
    pub claim: i64,
    /// `job_state.run`: 1, then +1 each time the job is run again.
    pub run: i64,
}

/// What the job has been through in this run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tries that count against `max_failures`.
    pub failures: i32,
    /// Times in a row that it was put back without a failure.
    pub deferrals: i32,
    /// Process deaths in a row that it lived through without progress.
    pub crashes: i32,
}

impl Tally {
    /// From so many deaths on a job is a suspect: of these one at a time runs in a process.
    pub const SUSPECT: i32 = 3;
    /// At so many it ends as `quarantined`: twice it was the only suspect in a process that died.
    pub const QUARANTINED: i32 = 5;

    /// What counts from now on where a call was answered: what happened in a row is over.
    #[must_use]
    pub const fn after_answer(self) -> Self {
        Self { deferrals: 0, ..self }
    }

    /// Whether the job may be what ends the processes that it runs in.
    pub const fn is_suspect(self) -> bool {
        self.crashes >= Self::SUSPECT
    }
}

/// A job as the claim brings it: the user's row, its queue's settings, and what was already paid for.
///
/// Nothing in it has been looked into, so one unreadable row cannot stop a claim.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The fence for every later write.
    pub lease: Lease,
    /// `jobs.queue`.
    pub queue: String,
    /// `jobs.batch`.
    pub batch: Option<String>,
    /// `jobs.prompt`.
    pub prompt: Option<String>,
    /// `jobs.system`.
    pub system: Option<String>,
    /// `jobs.model`, else the model that `params` name.
    pub model: Option<String>,
    /// `jobs.max_tokens`.
    pub max_tokens: Option<i64>,
    /// `jobs.params`: JSON text, byte for byte as inserted.
    pub params: Option<Raw>,
    /// `jobs.policy`: JSON text.
    pub policy: Option<String>,
    /// `queues.model`.
    pub queue_model: Option<String>,
    /// `queues.policy`: JSON text.
    pub queue_policy: Option<String>,
    /// A column whose bytes are no UTF-8, so that what is here of it is not what was written.
    pub garbled: Option<&'static str>,
    /// Size of the input in bytes: prompt, system and params.
    pub bytes: i64,
    /// How long it could have been claimed, by the database's clock; of a first claim.
    pub waited: Option<Duration>,
    /// Counters of this run.
    pub tally: Tally,
    /// The ledger of this run (`late = false`), oldest first. Empty at a first claim.
    pub calls: Vec<PastCall>,
    /// The tool calls of this run, in the order of the ledger.
    pub tools: Vec<PastTool>,
}
