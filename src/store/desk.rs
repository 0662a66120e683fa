//! What people's commands need of the database: rows in, lists and counts out, changes by hand.
//!
//! No SQL here, and no right that an operator's own `UPDATE` would not have: every change goes
//! through the triggers of the contract. Lists never load a prompt; `results` and `job` are the
//! only ones that bring an answer. Times come as [`Moment`]s of the database's clock.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;

use super::{AccountRow, Erased, StoreError};
use crate::domain::gate::batch_of_scope;
use crate::domain::job::JobId;
use crate::domain::outcome::Usage;
use crate::domain::retention::{DoneJob, Erasure};

/// A point in time by the database's clock: milliseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub i64);

/// A job that is not in the table yet. `None` leaves a column to its default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewJob {
    /// `jobs.queue`.
    pub queue: Option<String>,
    /// `jobs.batch`.
    pub batch: Option<String>,
    /// `jobs.key`.
    pub key: Option<String>,
    /// `jobs.prompt`.
    pub prompt: Option<String>,
    /// `jobs.system`.
    pub system: Option<String>,
    /// `jobs.model`.
    pub model: Option<String>,
    /// `jobs.max_tokens`.
    pub max_tokens: Option<i64>,
    /// `jobs.params`: JSON text, stored byte for byte.
    pub params: Option<String>,
    /// `jobs.policy`: JSON text.
    pub policy: Option<String>,
    /// `jobs.metadata`: JSON text.
    pub metadata: Option<String>,
    /// `jobs.priority`.
    pub priority: Option<i32>,
    /// `jobs.run_at`.
    pub run_at: Option<Moment>,
}

/// What became of one [`NewJob`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It is in the table now.
    New(JobId),
    /// A job with its key and the same content was there already.
    There(JobId),
    /// A job with its key was there, and asks something else.
    Differs(JobId),
    /// A job with its key was there; this role may not read what it asks.
    Unread(JobId),
}

impl Inserted {
    /// Returns the job in the table.
    pub const fn job(self) -> JobId {
        match self {
            Self::New(job) | Self::There(job) | Self::Differs(job) | Self::Unread(job) => job,
        }
    }
}

/// A row of `tool_calls`. What was asked and given is cut to [`TOOL_MAX`] characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolRow {
    /// `run`.
    pub run: i64,
    /// `claim` of the ledger's row that brought it.
    pub claim: i64,
    /// `seq` of that row.
    pub seq: i64,
    /// `position`, from 0.
    pub position: i64,
    /// `call_id`.
    pub call_id: String,
    /// `name`.
    pub name: String,
    /// `input`: JSON text.
    pub input: Option<String>,
    /// `result`, or `result_content`: JSON text.
    pub result: Option<String>,
    /// Whether that is not all of the result.
    pub result_cut: bool,
    /// `is_error`.
    pub is_error: bool,
    /// `taken_by`.
    pub taken_by: Option<String>,
    /// `taken_at`.
    pub taken_at: Option<Moment>,
    /// `created_at`.
    pub created_at: Moment,
    /// `answered_at`.
    pub answered_at: Option<Moment>,
}

/// Characters of what a tool was asked, and of what it gave, in a [`ToolRow`].
pub const TOOL_MAX: usize = 4_000;

/// Which results to list. Empty lists and `None` do not narrow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResultFilter {
    /// `results.batch`.
    pub batch: Option<String>,
    /// `results.queue`.
    pub queue: Option<String>,
    /// `results.outcome`, any of these.
    pub outcomes: Vec<String>,
}

/// How much of an answer's text to bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Texts {
    /// Text, content and output, whole.
    Whole,
    /// The first 200 characters of the text; no content and no output.
    Start,
}

/// A row of `results`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultRow {
    /// `job_id`.
    pub job: JobId,
    /// `run`.
    pub run: i64,
    /// `seq`.
    pub seq: i64,
    /// `queue`.
    pub queue: String,
    /// `batch`.
    pub batch: Option<String>,
    /// `key`.
    pub key: Option<String>,
    /// `outcome`, as stored.
    pub outcome: String,
    /// `stop_reason`.
    pub stop_reason: Option<String>,
    /// `stop_sequence`.
    pub stop_sequence: Option<String>,
    /// `stop_details`: JSON text.
    pub stop_details: Option<String>,
    /// `text`, as much of it as was asked for.
    pub text: Option<String>,
    /// `content`: JSON text.
    pub content: Option<String>,
    /// `output`: JSON text.
    pub output: Option<String>,
    /// `sanitised`.
    pub sanitised: i64,
    /// `dropped`.
    pub dropped: i64,
    /// `model`.
    pub model: Option<String>,
    /// The four token columns.
    pub usage: Usage,
    /// `calls`.
    pub calls: i64,
    /// `continuations`.
    pub continuations: i64,
    /// `seams`.
    pub seams: i64,
    /// `failures`.
    pub failures: i64,
    /// `error_type`.
    pub error_type: Option<String>,
    /// `error_code`.
    pub error_code: Option<String>,
    /// `error`.
    pub error: Option<String>,
    /// `request_id`.
    pub request_id: Option<String>,
    /// `calls.message_id` of the run's last call that has one.
    pub message_id: Option<String>,
    /// `started_at`.
    pub started_at: Option<Moment>,
    /// `finished_at`.
    pub finished_at: Moment,
    /// `jobs.redacted_at`.
    pub redacted_at: Option<Moment>,
}

/// How many jobs of a queue are where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueLine {
    /// `queues.name`.
    pub name: String,
    /// `queues.paused`.
    pub paused: bool,
    /// `queues.max_running`.
    pub max_running: Option<i64>,
    /// Its jobs by state.
    pub jobs: StateCounts,
}

/// Jobs by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateCounts {
    /// May be claimed now.
    pub pending: i64,
    /// Not due yet.
    pub scheduled: i64,
    /// With a worker.
    pub running: i64,
    /// For tool results.
    pub waiting: i64,
    /// Has a result.
    pub done: i64,
}

impl StateCounts {
    /// Returns how many jobs have no result yet.
    pub const fn open(&self) -> i64 {
        self.pending + self.scheduled + self.running + self.waiting
    }

    /// Returns how many jobs there are.
    pub const fn total(&self) -> i64 {
        self.open() + self.done
    }
}

/// A batch and where its jobs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchLine {
    /// The label.
    pub batch: String,
    /// Its jobs by state.
    pub jobs: StateCounts,
}

/// Results that ended alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeLine {
    /// `results.outcome`.
    pub outcome: String,
    /// How many.
    pub count: i64,
    /// Their tokens.
    pub usage: Usage,
}

/// Why results of a batch are not complete, grouped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultLine {
    /// `results.outcome`.
    pub outcome: String,
    /// `results.error_type`.
    pub error_type: Option<String>,
    /// `results.error_code`.
    pub error_code: Option<String>,
    /// How many.
    pub count: i64,
    /// The lowest job id among them, to `show`.
    pub example: JobId,
}

/// Why jobs are not running, grouped by `job_state.reason`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasonLine {
    /// In words.
    pub reason: String,
    /// How many jobs say it.
    pub count: i64,
}

/// A row of `workers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerLine {
    /// `id`.
    pub id: i64,
    /// `host`.
    pub host: String,
    /// `pid`.
    pub pid: i64,
    /// `version`.
    pub version: String,
    /// `running`: jobs in its hands.
    pub running: i64,
    /// `seen_at`, as an age in milliseconds by the database's clock.
    pub seen_ms_ago: i64,
}

impl WorkerLine {
    /// A worker that was not seen for so long is not at work: two of the leases that come by default.
    const SILENT_MS: i64 = 120_000;

    /// Whether it is taken for one that is not there any more. Its row stays until another daemon finds it.
    pub const fn is_silent(&self) -> bool {
        self.seen_ms_ago >= Self::SILENT_MS
    }
}

/// Which gates to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// Those that do not flow.
    Stopped,
    /// All that have a row.
    All,
}

/// Jobs that a gate may hold back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behind {
    /// Those that are asked with this key, as `gates.scope` names it; all, where no daemon ever said which.
    Key(String),
    /// Those that are asked of this model with this profile; whatever the profile, where no daemon ever said.
    Model {
        /// Which account.
        profile: String,
        /// Which.
        model: String,
        /// The model of a job that names none, and whose queue names none, where no daemon says so.
        default_model: String,
    },
    /// Those of this batch; `''`: those without a label.
    Batch {
        /// `jobs.queue`.
        queue: String,
        /// `jobs.batch`.
        batch: String,
    },
}

/// Pending jobs that are looked at to count those behind a batch's gate: no index knows queue and batch.
pub const BEHIND_SCAN: i64 = 50_000;

/// Jobs behind a gate, as far as they were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// So many, at least.
    pub jobs: i64,
    /// Whether there may be more.
    pub more: bool,
}

impl Waiting {
    /// Reads how many were found among how many that were looked at.
    pub(super) fn of((found, looked): (i64, i64), limit: i64) -> Self {
        Self { jobs: found.min(limit), more: found > limit || looked >= BEHIND_SCAN }
    }
}

/// How a gate is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freed {
    /// What stopped it may stop it again.
    Watched,
    /// A batch's refusals are not counted any more: nothing but a person stops it.
    LetFail,
}

/// A row of `gates`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateLine {
    /// `scope`.
    pub scope: String,
    /// `state`.
    pub state: String,
    /// `reason`.
    pub reason: Option<String>,
    /// `until`.
    pub until: Option<Moment>,
    /// Milliseconds left until then by the database's clock; negative where it has passed.
    pub until_ms: Option<i64>,
    /// `changed_at`.
    pub since: Moment,
    /// `changed_at`, as an age in milliseconds by the database's clock.
    pub since_ms_ago: i64,
    /// Whether refusals are not counted: a person lets the batch fail.
    pub ignored: bool,
}

/// A job with its state, for `show`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRow {
    /// `jobs.id`.
    pub id: JobId,
    /// What was asked. `prompt`, `system`, `params` are cut to 4,000 characters.
    pub asked: NewJob,
    /// `jobs.created_at`.
    pub created_at: Moment,
    /// `job_state.state`.
    pub state: String,
    /// `job_state.available_at`.
    pub available_at: Moment,
    /// `job_state.deadline_at`.
    pub deadline_at: Option<Moment>,
    /// `job_state.priority`: the one that counts.
    pub priority: i64,
    /// `job_state.run`.
    pub run: i64,
    /// `job_state.claims`.
    pub claims: i64,
    /// `job_state.failures`.
    pub failures: i64,
    /// `job_overview.reason`: why it waits.
    pub reason: Option<String>,
    /// Characters of the running call that are safe in `checkpoints`.
    pub arrived: i64,
    /// `jobs.redacted_at`: since then nobody knows what was asked.
    pub redacted_at: Option<Moment>,
}

/// A row of `calls`, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRow {
    /// `run`.
    pub run: i64,
    /// `claim`.
    pub claim: i64,
    /// `seq`.
    pub seq: i64,
    /// `kind`.
    pub kind: String,
    /// `probe`.
    pub probe: bool,
    /// `model`.
    pub model: Option<String>,
    /// `max_tokens`.
    pub max_tokens: Option<i64>,
    /// `messages`.
    pub messages: Option<i64>,
    /// `request`: JSON text.
    pub request: Option<String>,
    /// `sent_at`.
    pub sent_at: Option<Moment>,
    /// `first_token_at`.
    pub first_token_at: Option<Moment>,
    /// `ended_at`.
    pub ended_at: Option<Moment>,
    /// `http_status`.
    pub http_status: Option<i64>,
    /// `request_id`.
    pub request_id: Option<String>,
    /// `message_id`.
    pub message_id: Option<String>,
    /// `stop_reason`.
    pub stop_reason: Option<String>,
    /// The four token columns.
    pub usage: Usage,
    /// `partial`.
    pub partial: bool,
    /// `late`.
    pub late: bool,
    /// `error_type`.
    pub error_type: Option<String>,
    /// `error_code`.
    pub error_code: Option<String>,
    /// `error`.
    pub error: Option<String>,
    /// `retry_after_ms`.
    pub retry_after_ms: Option<i64>,
    /// `worker`.
    pub worker: Option<i64>,
}

/// Which jobs a bulk change means. Empty lists and `None` do not narrow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Label.
    pub batch: Option<String>,
    /// Queue.
    pub queue: Option<String>,
    /// `job_state.state`, any of these.
    pub states: Vec<String>,
    /// `results.outcome`, any of these; jobs without a result do not match then.
    pub outcomes: Vec<String>,
    /// `results.error_type`, any of these; jobs without one do not match then.
    pub error_types: Vec<String>,
}

/// Which jobs are to be erased. Empty lists and `None` do not narrow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PurgeFilter {
    /// Ids.
    pub jobs: Vec<i64>,
    /// Label.
    pub batch: Option<String>,
    /// Queue.
    pub queue: Option<String>,
    /// Only results that were written before.
    pub before: Option<Before>,
}

/// A time that something is older than.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// This one.
    At(Moment),
    /// So long ago, by the database's clock.
    Ago(Duration),
}

impl Before {
    /// Returns the time, or the age, in milliseconds.
    pub(super) fn bounds(before: Option<Self>) -> (Option<i64>, Option<i64>) {
        match before {
            None => (None, None),
            Some(Self::At(Moment(at))) => (Some(at), None),
            Some(Self::Ago(ago)) => (None, Some(super::row::ms(ago))),
        }
    }
}

/// Whether jobs flow or stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// They may be claimed.
    Flowing,
    /// They stay where they are.
    Paused,
}

/// What people's commands need of the database.
#[async_trait]
pub trait Desk: Send + Sync {
    /// Inserts jobs in one statement, in their order; one whose key is taken is left out. Answers
    /// in the same order. [`StoreError::Refused`]: none of them is in the table.
    async fn insert(&self, jobs: &[NewJob]) -> Result<Vec<Inserted>, StoreError>;

    /// Returns those of these jobs that exist, each with its outcome if it has one.
    async fn outcomes(&self, jobs: &[JobId]) -> Result<Vec<(JobId, Option<String>)>, StoreError>;

    /// Returns the jobs whose results match, in order of their ids.
    async fn result_ids(&self, which: &ResultFilter) -> Result<Vec<JobId>, StoreError>;

    /// Returns the results of these jobs, in order of their ids. At most a few hundred at a time:
    /// an answer may be megabytes.
    async fn results(&self, jobs: &[JobId], texts: Texts) -> Result<Vec<ResultRow>, StoreError>;

    /// Returns (`seq`, job) of matching results with `seq` above `after`, lowest first.
    async fn results_after(
        &self,
        which: &ResultFilter,
        after: i64,
        limit: i64,
    ) -> Result<Vec<(i64, JobId)>, StoreError>;

    /// Returns every queue with its jobs, by name.
    async fn queue_lines(&self) -> Result<Vec<QueueLine>, StoreError>;

    /// Returns the names of the queues, sorted.
    async fn queue_names(&self) -> Result<Vec<String>, StoreError>;

    /// Returns the models that queues name, and those that the youngest jobs do, at most `jobs` of them
    /// looked at; sorted.
    async fn models_named(&self, jobs: i64) -> Result<Vec<String>, StoreError>;

    /// Returns the youngest batches that have unfinished jobs, at most `limit`.
    async fn open_batches(&self, limit: i64) -> Result<Vec<BatchLine>, StoreError>;

    /// Returns a batch's jobs by state; all zero where nothing has that label.
    async fn batch_counts(&self, batch: &str) -> Result<StateCounts, StoreError>;

    /// Returns results by outcome, of one batch or of all.
    async fn outcome_lines(&self, batch: Option<&str>) -> Result<Vec<OutcomeLine>, StoreError>;

    /// Returns why results of a batch are not complete, the most frequent first, at most `limit`.
    async fn fault_lines(&self, batch: &str, limit: i64) -> Result<Vec<FaultLine>, StoreError>;

    /// Returns why unfinished jobs wait, the most frequent first, at most `limit`.
    async fn reason_lines(&self, batch: Option<&str>, limit: i64) -> Result<Vec<ReasonLine>, StoreError>;

    /// Returns the workers, by id.
    async fn worker_lines(&self) -> Result<Vec<WorkerLine>, StoreError>;

    /// Returns gates, by scope.
    async fn gate_lines(&self, which: Listed) -> Result<Vec<GateLine>, StoreError>;

    /// Returns with which account each queue's jobs are asked, by queue; none where no daemon ever said.
    async fn account_rows(&self) -> Result<Vec<AccountRow>, StoreError>;

    /// Counts pending jobs that a gate may hold back, at most `limit`. Of a batch it counts among the first
    /// [`BEHIND_SCAN`] pending jobs of the batch, or of the queue where it has no label.
    async fn jobs_behind(&self, gate: &Behind, limit: i64) -> Result<Waiting, StoreError>;

    /// Blocks a gate for so long, or until a person opens it; makes its row where there is none.
    async fn block_gate(&self, scope: &str, reason: &str, pause: Option<Duration>) -> Result<(), StoreError>;

    /// Opens a gate that has a row; to let a batch fail, its row is made where there is none. Returns
    /// whether there is one now.
    async fn free_gate(&self, scope: &str, how: Freed) -> Result<bool, StoreError>;

    /// Returns a job.
    async fn job(&self, job: JobId) -> Result<Option<JobRow>, StoreError>;

    /// Returns the job with a key.
    async fn job_of_key(&self, key: &str) -> Result<Option<JobId>, StoreError>;

    /// Returns the ledger of a job over all its runs, oldest first.
    async fn calls(&self, job: JobId) -> Result<Vec<CallRow>, StoreError>;

    /// Returns the tool calls of a job over all its runs, in the order of the ledger.
    async fn tools(&self, job: JobId) -> Result<Vec<ToolRow>, StoreError>;

    /// Returns matching jobs with ids above `after`, lowest first.
    async fn select(&self, which: &JobFilter, after: JobId, limit: i64) -> Result<Vec<JobId>, StoreError>;

    /// Cancels those of these jobs that are not done; returns how many.
    async fn cancel(&self, jobs: &[JobId]) -> Result<u64, StoreError>;

    /// Makes those of these jobs pending that are done (run again) or scheduled (run now); returns how
    /// many. One that was redacted cannot run again, and stays as it is.
    async fn run_again(&self, jobs: &[JobId]) -> Result<u64, StoreError>;

    /// Returns those of these jobs that were redacted, and when.
    async fn redacted(&self, jobs: &[JobId]) -> Result<Vec<(JobId, Moment)>, StoreError>;

    /// Finds done jobs to be erased, in the order of ids; of prompts, those that are still there.
    async fn purgeable(&self, which: &PurgeFilter, what: Erasure) -> Result<Vec<DoneJob>, StoreError>;

    /// Counts the jobs that are meant and not done; their age is not looked at.
    async fn unfinished(&self, which: &PurgeFilter) -> Result<StateCounts, StoreError>;

    /// Erases these jobs or their prompts, in one transaction, where they are still done by these very
    /// results and nobody else holds them.
    async fn purge(&self, what: Erasure, jobs: &[DoneJob]) -> Result<Erased, StoreError>;

    /// Lets queues flow or stand; an empty list means all. Returns those that are there, by name.
    async fn set_queues(&self, names: &[String], flow: Flow) -> Result<Vec<String>, StoreError>;

    /// Lets a batch flow or stand, through its gates: stand in every queue where it had unfinished
    /// jobs when it was looked at, flow in every queue where it stands. Returns those queues, by name.
    async fn set_batch(&self, batch: &str, flow: Flow) -> Result<Vec<String>, StoreError>;
}

/// Which of the jobs of an insert are new, there already, or not found yet. Keys are matched in
/// order: of two jobs with one key the first is the new one.
pub(super) struct Found<'a> {
    jobs: &'a [NewJob],
    inserted: Vec<Option<Inserted>>,
    keyed: HashMap<&'a str, usize>,
    /// The next job that has no key.
    keyless: usize,
}

impl<'a> Found<'a> {
    /// Returns jobs of which nothing is known.
    pub(super) fn new(jobs: &'a [NewJob]) -> Self {
        let mut keyed = HashMap::new();
        for (at, job) in jobs.iter().enumerate() {
            if let Some(key) = &job.key {
                keyed.entry(key.as_str()).or_insert(at);
            }
        }
        Self { jobs, inserted: vec![None; jobs.len()], keyed, keyless: 0 }
    }

    /// Notes a row that the statement made; those without a key come in the order of the jobs.
    pub(super) fn inserted(&mut self, job: JobId, key: Option<String>) {
        let at = if let Some(key) = key {
            self.keyed.get(key.as_str()).copied()
        } else {
            let at = (self.keyless..self.jobs.len()).find(|at| self.jobs[*at].key.is_none());
            self.keyless = at.map_or(self.jobs.len(), |at| at + 1);
            at
        };
        if let Some(at) = at {
            self.inserted[at] = Some(Inserted::New(job));
        }
    }

    /// Returns the places of the jobs that were left out.
    pub(super) fn open(&self) -> Vec<usize> {
        (0..self.jobs.len()).filter(|at| self.inserted[*at].is_none()).collect()
    }

    /// Notes what was found in place of a job that was left out: whether it is the `same`, if it
    /// could be read.
    pub(super) fn there(&mut self, place: i64, job: JobId, same: Option<bool>) {
        let Some(slot) = usize::try_from(place).ok().and_then(|at| self.inserted.get_mut(at)) else { return };
        *slot = Some(match same {
            Some(true) => Inserted::There(job),
            Some(false) => Inserted::Differs(job),
            None => Inserted::Unread(job),
        });
    }

    /// Returns what became of each.
    pub(super) fn done(self) -> Result<Vec<Inserted>, StoreError> {
        let gone = "a job with one of these keys was deleted while they were enqueued";
        self.inserted
            .into_iter()
            .map(|inserted| inserted.ok_or_else(|| StoreError::Unavailable(gone.into())))
            .collect()
    }
}

/// Returns a list as JSON, the way lists travel into SQLite.
pub(super) fn list<T: Serialize>(items: &[T]) -> String {
    serde_json::to_string(items).expect("strings and numbers always serialise")
}

/// Cuts a text that was read with one character more than is wanted, and says whether there was one.
pub(super) fn cut(text: Option<String>, most: usize) -> (Option<String>, bool) {
    match text.as_deref().and_then(|text| text.char_indices().nth(most)) {
        Some((at, _)) => (text.map(|text| text[..at].to_owned()), true),
        None => (text, false),
    }
}

/// Returns the queues of scopes `batch:<queue>/<batch>`, sorted.
pub(super) fn queues_of(scopes: &[String], batch: &str) -> Vec<String> {
    let mut queues: Vec<String> = scopes
        .iter()
        .filter_map(|scope| batch_of_scope(scope).filter(|named| named.1 == batch))
        .map(|(queue, _)| queue)
        .collect();
    queues.sort();
    queues
}

/// Reads a row into a struct: the named fields from the columns of the same name, the rest as given.
macro_rules! fields {
    ($row:expr => $type:ident { $($field:ident),* $(,)? } $(with { $($extra:ident: $value:expr),* $(,)? })?) => {
        $type {
            $($field: $row.try_get(stringify!($field))?,)*
            $($($extra: $value,)*)?
        }
    };
}

/// Reads the four token columns of a row.
macro_rules! usage {
    ($row:expr) => {
        Usage {
            input: $row.try_get("input_tokens")?,
            output: $row.try_get("output_tokens")?,
            cache_creation: $row.try_get("cache_creation_input_tokens")?,
            cache_read: $row.try_get("cache_read_input_tokens")?,
        }
    };
}

pub(super) use {fields, usage};

#[cfg(test)]
mod tests {
    use super::*;

    fn job(key: Option<&str>) -> NewJob {
        NewJob { key: key.map(str::to_owned), ..NewJob::default() }
    }

    #[test]
    fn of_two_jobs_with_one_key_the_first_is_new() {
        let jobs = [job(None), job(Some("a")), job(Some("a")), job(None), job(Some("b"))];
        let mut found = Found::new(&jobs);
        found.inserted(JobId(1), None);
        found.inserted(JobId(2), Some("a".into()));
        found.inserted(JobId(3), None);
        assert_eq!(found.open(), [2, 4]);
        found.there(2, JobId(2), Some(true));
        found.there(4, JobId(9), Some(false));
        assert_eq!(
            found.done().expect("all are found"),
            [
                Inserted::New(JobId(1)),
                Inserted::New(JobId(2)),
                Inserted::There(JobId(2)),
                Inserted::New(JobId(3)),
                Inserted::Differs(JobId(9)),
            ]
        );
    }

    #[test]
    fn a_text_of_one_character_too_many_is_cut_and_says_so() {
        assert_eq!(cut(Some("héé".to_owned()), 2), (Some("hé".to_owned()), true));
        assert_eq!(cut(Some("hé".to_owned()), 2), (Some("hé".to_owned()), false));
        assert_eq!(cut(None, 2), (None, false));
    }

    #[test]
    fn a_scope_names_its_queue_whatever_slashes_are_in_it() {
        let scopes = vec!["batch:q%2Fx/a/b".to_owned(), "batch:default/a/b".to_owned()];
        assert_eq!(queues_of(&scopes, "a/b"), ["default", "q/x"]);
    }
}
