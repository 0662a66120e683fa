//! The queue in a database: what the worker needs ([`Store`]) and what people's commands need
//! ([`Desk`]), each written twice, once a database, with the same statements in the same order.
//!
//! A store knows SQL and the domain, never the API. Wall time is the database's: delays go in as
//! durations. Every write that follows a claim carries its [`Lease`]; the ledger's append is the
//! one that is not fenced, because money spent is written down whoever spent it.

pub mod board;
pub mod gauges;
pub mod postgres;
pub mod roles;
pub mod sqlite;

mod desk;
mod held;
mod lanes;
pub mod migrations;
mod op;
mod rates;
mod row;
mod timed;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use secrecy::SecretString;

pub use desk::*;
pub use timed::{Timed, within};

use self::migrations::Step;
use self::postgres::PostgresStore;
use self::sqlite::SqliteStore;

use crate::domain::job::{Claimed, JobId, Lease, WorkerId};
use crate::domain::ledger::{Answer, Call, Checkpoint, Release, Settlement};
use crate::domain::pace::{Each, Grant, Take};
use crate::domain::retention::{DoneJob, Erasure, Sweep};
use crate::domain::tool::{Asked, ToolResult};

/// Why a database operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, is locked, full, read-only, or took too long: try again.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// A read took longer than the limit that it had.
    #[error("the database needed longer than {0:?} for this: ask for less, or try again later")]
    Late(Duration),
    /// The server is there and lets us not in: no such database or role, or the wrong password. A
    /// person must act, and may do so while we run. Exit code 4.
    #[error("{0}")]
    NoEntry(String),
    /// Somebody else locks the row that this is about: it alone has to wait.
    #[error("{0}")]
    Locked(String),
    /// The schema is absent, older, newer or not ours: a person must act. Exit code 5.
    #[error("{0}")]
    Schema(String),
    /// The database refused the data of a statement. Halve the batch until the culprit stands alone.
    #[error("the database refused the data: {0}")]
    Refused(String),
    /// A column holds what it cannot hold.
    #[error("{table}.{column} of row {row} is not readable: {why}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// The row's id.
        row: i64,
        /// What was found.
        why: String,
    },
    /// The role that is logged in has no right to this: a person must act.
    #[error("the database said: {0}: `promptmill roles` prints which role may do what")]
    Denied(String),
    /// Anything else the database said: a bug of ours.
    #[error("the database said: {0}")]
    Database(String),
}

/// How to reach the database. Built by the configuration.
#[derive(Debug, Clone)]
pub struct StoreSettings {
    /// `database.schema`: the Postgres schema that holds the tables.
    pub schema: String,
    /// Connections in the pool, beside the beat's own and the listener's.
    pub connections_max: u32,
    /// Longest time one try of opening may take, but for a migration.
    pub connect_max: Duration,
    /// Longest time one operation may take before its connection is dropped.
    pub operation_max: Duration,
    /// `database.answers_once`: what an answer holds just as its last call said it is not kept in the
    /// ledger too.
    pub answers_once: bool,
    /// Whether a pooler in transaction mode stands between: no start-up options, each operation in
    /// one transaction, no LISTEN.
    pub transaction_pooler: bool,
    /// Postgres URL past the pooler, to LISTEN on.
    pub listen_url: Option<SecretString>,
}

/// What opening may do to a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migrate {
    /// Nothing: an absent or older schema is refused, with a sentence that names `promptmill migrate`.
    Never,
    /// What `promptmill run` does: makes absent tables, migrates a SQLite file of ours; an older
    /// Postgres schema is refused, because other daemons may be running on it.
    Serve,
    /// What `promptmill migrate` does: makes and migrates.
    Now,
}

/// An open database.
#[derive(Clone)]
pub enum Database {
    /// A SQLite file.
    Sqlite(Arc<SqliteStore>),
    /// A Postgres schema.
    Postgres(Arc<PostgresStore>),
}

/// What [`open`] gives.
#[derive(Clone)]
pub struct Opened {
    /// What the worker needs.
    pub store: Arc<dyn Store>,
    /// The database behind it.
    pub database: Database,
}

/// Opens a database: `sqlite:FILE`, `sqlite://FILE`, `postgres://…` or `postgresql://…`.
///
/// # Errors
/// [`StoreError::Schema`] where a person must act, [`StoreError::Unavailable`] where trying again
/// may help, [`StoreError::Database`] where the URL is none of ours.
pub async fn open(url: &str, settings: &StoreSettings, migrate: Migrate) -> Result<Opened, StoreError> {
    if let Some(file) = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")) {
        let store = Arc::new(SqliteStore::open(file, settings, migrate).await?);
        return Ok(Opened { store: store.clone(), database: Database::Sqlite(store) });
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        let store = Arc::new(PostgresStore::open(url, settings, migrate).await?);
        return Ok(Opened { store: store.clone(), database: Database::Postgres(store) });
    }
    // Not repeated: it may hold a password.
    Err(StoreError::Database(
        "the database URL starts with neither sqlite: nor postgres:// nor postgresql://".to_owned(),
    ))
}

/// Runs those of the steps that have not run yet. Several processes may do so at once, and beside
/// running daemons: no lock of a table is waited for longer than a moment at a time.
///
/// # Errors
/// [`StoreError::Unavailable`] where somebody keeps a table locked; trying again may help.
pub async fn migrate(url: &str, settings: &StoreSettings, steps: &[Step]) -> Result<(), StoreError> {
    match url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")) {
        Some(file) => sqlite::apply(file, settings, steps).await,
        None => postgres::apply(url, settings, steps).await,
    }
}

/// This process, as `workers` shows it.
#[derive(Debug, Clone)]
pub struct Me {
    /// Host name.
    pub host: String,
    /// `/proc/sys/kernel/random/boot_id`: tells one boot of a host from the next.
    pub boot: String,
    /// Process id.
    pub pid: i64,
    /// Start time of the process in clock ticks since boot: with the pid it names one process.
    pub pid_started: i64,
    /// Version of the binary.
    pub version: String,
    /// `defaults.model`: what a job without a model gets, so that views can say why it waits.
    pub default_model: String,
}

/// A worker as another one sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its id.
    pub id: WorkerId,
    /// `workers.beat`: goes up every lease / 4.
    pub beat: i64,
    /// Its host.
    pub host: String,
    /// Its host's boot.
    pub boot: String,
    /// Its process.
    pub pid: i64,
    /// When that process started, in ticks since boot.
    pub pid_started: i64,
}

/// What a claim may take.
#[derive(Clone)]
pub struct Wanted {
    /// Who claims.
    pub worker: WorkerId,
    /// At most so many jobs: what can be sent now, never more.
    pub slots: usize,
    /// At most so many bytes of input, but always one job.
    pub bytes_max: i64,
    /// Only these queues; empty: all.
    pub queues: Vec<String>,
    /// Whether one job may be taken that is suspected of ending processes; never more than one.
    pub suspect: bool,
    /// The model of a job that names none, and whose queue names none.
    pub default_model: String,
    /// With which profile a queue's jobs are asked; those that are not among them with [`DEFAULT_PROFILE`].
    pub profiles: BTreeMap<String, String>,
    /// Lanes to pass by.
    pub blocked: Blocked,
    /// Where fewer may be taken than there are slots.
    pub rooms: Rooms,
}

impl Wanted {
    /// With which profile a queue's jobs are asked.
    fn profile(&self, queue: &str) -> &str {
        self.profiles.get(queue).map_or(DEFAULT_PROFILE, String::as_str)
    }
}

/// How claims name the profile of `[api]`, whatever people call it: they may call it as they like.
pub const DEFAULT_PROFILE: &str = "";

/// So much of a `traceparent` is read: it has 55 characters, those of later versions may have more.
pub const TRACEPARENT_MAX: i32 = 256;

/// Lanes behind blocked gates. A job's model is its own, else its queue's, else the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocked {
    /// Profiles whose key may not be used: all that their queues have.
    pub profiles: Vec<String>,
    /// Models behind a breaker or a pause, as (profile, model).
    pub models: Vec<(String, String)>,
    /// Stopped batches, as (queue, batch).
    pub batches: Vec<(String, String)>,
}

impl Blocked {
    /// Profiles and models as the statements take them: a profile that is blocked as a whole has an empty
    /// model.
    fn doors(&self) -> Vec<(&str, &str)> {
        let whole = self.profiles.iter().map(|profile| (profile.as_str(), ""));
        whole.chain(self.models.iter().map(|(profile, model)| (profile.as_str(), model.as_str()))).collect()
    }
}

/// How many jobs a claim may bring at most where it is not its slots that decide. Of several rooms
/// the smallest counts.
#[derive(Clone, Default)]
pub struct Rooms {
    /// By (profile, model); a probe is a room of one.
    pub models: HashMap<(String, String), usize>,
    /// By key; a probe is a room of one. Profiles may share a key.
    pub keys: HashMap<String, usize>,
    /// By batch, as (queue, batch).
    pub batches: HashMap<(String, String), usize>,
    /// Of a labelled batch that is not among them.
    pub batch: Option<usize>,
    /// By key and class of models: those share a rate limit.
    pub classes: HashMap<(String, String), usize>,
    /// Of a class that is not among them.
    pub class: Option<usize>,
    /// The key and the class that a profile and a model come to; where it is not known, neither counts.
    pub rated: Option<Rated>,
}

/// Says with which key a profile's calls are made, and which class of models a model belongs to.
pub type Rated = Arc<dyn Fn(&str, &str) -> (String, String) + Send + Sync>;

impl Rooms {
    fn of(&mut self, lane: &LaneAsked) -> [Option<&mut usize>; 4] {
        if let Some(room) = self.batch
            && !lane.batch.1.is_empty()
            && !self.batches.contains_key(&lane.batch)
        {
            self.batches.insert(lane.batch.clone(), room);
        }
        let (profile, model) = &lane.model;
        let rated = self.rated.as_ref().map(|rated| rated(profile, model));
        if let (Some(class), Some(room)) = (&rated, self.class)
            && !self.classes.contains_key(class)
        {
            self.classes.insert(class.clone(), room);
        }
        let of_key = rated.as_ref().and_then(|(key, _)| self.keys.get_mut(key));
        let of_class = rated.as_ref().and_then(|class| self.classes.get_mut(class));
        [of_key, self.models.get_mut(&lane.model), self.batches.get_mut(&lane.batch), of_class]
    }

    /// How many more jobs may be taken of a lane.
    fn left(&mut self, lane: &LaneAsked) -> usize {
        self.of(lane).into_iter().flatten().map(|room| *room).min().unwrap_or(usize::MAX)
    }

    /// Notes that so many were.
    fn take(&mut self, lane: &LaneAsked, jobs: usize) {
        self.of(lane).into_iter().flatten().for_each(|room| *room -= jobs);
    }

    /// Whether a job of this lane would be a probe.
    fn is_probed(&self, lane: &LaneAsked) -> bool {
        let (profile, model) = &lane.model;
        let key = self.rated.as_ref().map(|rated| rated(profile, model).0);
        self.models.contains_key(&lane.model) || key.is_some_and(|key| self.keys.contains_key(&key))
    }
}

/// What a lane's jobs ask for: what rooms go by.
struct LaneAsked {
    /// (profile, model)
    model: (String, String),
    /// (queue, batch)
    batch: (String, String),
}

/// A row of `gates` as this version reads and writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateRow {
    /// `key:<fingerprint>`, `model:<profile>/<model>`, `rate:…`, `batch:<queue>/<batch>`.
    pub scope: String,
    /// `flowing`, `blocked` or `probing`: it alone decides.
    pub state: String,
    /// Why, in words.
    pub reason: Option<String>,
    /// Time left until it opens by itself, by the database's clock; `None`: only a person opens it.
    pub until_in: Option<Duration>,
    /// Grows with every change by a daemon or a person: how a change by another is seen.
    pub generation: i64,
    /// What is counted: a person who sets `flowing` clears it.
    pub counters: Option<Counters>,
}

/// Rows of `gates`, and what tells whether they are all that is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateNews {
    /// The rows, by scope.
    pub rows: Vec<GateRow>,
    /// All rows that there are.
    pub tally: GateTally,
    /// When that was, by the database's clock.
    pub at: Moment,
}

/// How many gates there are, and a sum of their generations: who knows every row gets the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GateTally {
    /// Rows.
    pub rows: i64,
    /// Sum of the generations, each modulo [`GateTally::MODULUS`], so that no number of a person's overflows it.
    pub generations: i64,
}

impl GateTally {
    /// A prime that the statements name too.
    const MODULUS: i64 = 1_000_000_007;
}

impl FromIterator<i64> for GateTally {
    /// Of the rows with these generations.
    fn from_iter<I: IntoIterator<Item = i64>>(generations: I) -> Self {
        generations.into_iter().fold(Self::default(), |all, generation| Self {
            rows: all.rows + 1,
            generations: all.generations + generation % Self::MODULUS,
        })
    }
}

/// `gates.counters` of a batch whose refusals are not counted: a person lets it fail.
pub(crate) const IGNORED: &str = "ignored";

/// What a gate counts: `gates.counters`, a word and a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    /// What is counted; holds no blank.
    pub word: String,
    /// How often.
    pub count: u32,
}

impl Counters {
    fn parse(text: &str) -> Option<Self> {
        let (word, count) = text.split_once(' ')?;
        Some(Self { word: word.to_owned(), count: count.parse().ok()? })
    }

    fn text(&self) -> String {
        format!("{} {}", self.word, self.count)
    }
}

/// With which account the jobs of a queue are asked, as the daemons have it: for people, who see in
/// `job_overview` why a job waits. A row of `accounts`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct AccountRow {
    /// Which queue; `''`: all that have no row.
    pub queue: String,
    /// Its profile, as `gates.scope` names it.
    pub profile: String,
    /// Its key, as `gates.scope` names it.
    pub key: String,
    /// In the row of `''`: a JSON object of models and their classes, where those are not the same.
    pub classes: Option<String>,
}

/// What a drain still has before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Pending in queues that are not paused and not in stopped lanes.
    pub pending: i64,
    /// Pending behind blocked gates (those passed in), and scheduled within the horizon behind a blocked key.
    pub blocked: i64,
    /// Running anywhere.
    pub running: i64,
    /// Scheduled within the horizon.
    pub soon: i64,
    /// Scheduled later.
    pub later: i64,
    /// Pending or scheduled in paused queues (looked at only where queues are named).
    pub paused: i64,
    /// Waiting for tool results.
    pub waiting: i64,
}

/// A job that was taken from a dead worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rescued {
    /// Which.
    pub job: JobId,
    /// Whether it ended so: it is suspected of having ended the workers that ran it.
    pub quarantined: bool,
    /// What its call had brought by the last checkpoint, if any: the model, and tokens out as the ledger has them.
    pub brought: Option<(String, i64)>,
}

/// What a look for old results found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Due {
    /// The jobs that are due, in the order of `seq`.
    pub jobs: Vec<DoneJob>,
    /// The last `seq` that was looked at; `None`: there is none after where the look began.
    pub until: Option<i64>,
    /// The first `seq` that is too young yet.
    pub waits: Option<i64>,
}

/// What was taken away in one step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Erased {
    /// Of which jobs.
    pub jobs: Vec<JobId>,
    /// How long the database was at it, waiting for our turn not counted.
    pub took: Duration,
}

/// What became of a batch of fenced writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// Written.
    pub done: Vec<Lease>,
    /// Not written: the fence did not match (another claim, another run, done, deleted).
    pub lost: Vec<Lease>,
    /// Not written: somebody holds the row's lock. Try again alone, later.
    pub skipped: Vec<Lease>,
}

/// What the worker needs of the database.
#[async_trait]
pub trait Store: Send + Sync {
    /// Returns `meta.database_id`, as it was when the database was opened.
    fn database_id(&self) -> &str;

    /// Registers this process; the id is new each time.
    async fn enlist(&self, me: &Me) -> Result<WorkerId, StoreError>;

    /// Says that this worker lives: `beat + 1` on a connection of its own. `false`: the row is
    /// gone, so the worker is no worker any more.
    async fn beat(&self, worker: WorkerId, running: usize, asleep: bool) -> Result<bool, StoreError>;

    /// Tells inserters whether to wake this worker (Postgres: NOTIFY only when somebody sleeps).
    async fn sleep(&self, worker: WorkerId, asleep: bool) -> Result<(), StoreError>;

    /// Takes the worker's row away at a clean end.
    async fn retire(&self, worker: WorkerId) -> Result<(), StoreError>;

    /// Claims jobs: one statement, higher priority first, lanes in turns.
    async fn claim(&self, wanted: &Wanted) -> Result<Vec<Claimed>, StoreError>;

    /// Appends a call to the ledger. Not fenced: a late row is written with `late = true`, which
    /// the answer says.
    async fn append(&self, lease: &Lease, call: &Call, worker: WorkerId) -> Result<bool, StoreError>;

    /// Keeps parts of running streams, fenced; a part that is there already stays as it is. They go
    /// when the call's row is written, or are folded into the `lost` row by the rescue. Returns the
    /// leases whose parts are kept; the others are lost, or somebody writes them just now.
    async fn checkpoint(&self, parts: &[Arc<Checkpoint>]) -> Result<Vec<Lease>, StoreError>;

    /// Ends jobs: result, ledger row and state together, fenced. An answer of the model is also taken
    /// from a worker that lost its lease, where the job is not done and the run is the same: jobs are
    /// immutable, so it is as good as anyone's. The ledger row of a lost lease is written in any case,
    /// as late.
    async fn settle(&self, settlements: &[Arc<Settlement>], worker: WorkerId) -> Result<Written, StoreError>;

    /// Puts jobs back, with the ledger row of the call that led there, fenced. One that waits for tools
    /// ([`Back::Waiting`](crate::domain::ledger::Back::Waiting)) has its calls in `tool_calls` from then
    /// on; it is pending at once where each of them has its result already.
    async fn release(&self, releases: &[Arc<Release>], worker: WorkerId) -> Result<Written, StoreError>;

    /// Says, before this worker starts tools, that it does: their calls stand in `tool_calls`, taken by
    /// it, fenced. One that stands there already keeps what it has; one that is answered stays as it is.
    /// `false`: the lease is lost, and nothing may be started.
    ///
    /// # Errors
    /// [`StoreError::Locked`] where somebody else holds the job's row just now.
    async fn open_tools(&self, lease: &Lease, asked: &Asked, worker: WorkerId) -> Result<bool, StoreError>;

    /// Writes what a tool gave, fenced; the first result of a call stays. The call is found by the
    /// ledger's row of its reply (claim and seq) and its place there. `false`: the lease is lost.
    ///
    /// # Errors
    /// [`StoreError::Locked`] where somebody else holds the job's row just now, [`StoreError::Refused`]
    /// where blocks are not a JSON array.
    async fn answer_tool(
        &self,
        lease: &Lease,
        claim: i64,
        seq: i32,
        position: i32,
        result: &ToolResult,
    ) -> Result<bool, StoreError>;

    /// Makes waiting jobs pending whose tool calls are all answered, at most `limit`; returns how many.
    /// The answers do so themselves: this finds what slipped through.
    async fn promote_answered(&self, limit: i64) -> Result<u64, StoreError>;

    /// Adds what a worker had from the API to the result of a job that was taken from it: text and
    /// content where it was cancelled or expired, once, and the sums over the ledger in any case, which
    /// no longer holds a call as lost that this worker never made. Nothing where the job is not done or
    /// was run again since. Returns whether text and content were added.
    async fn fill(&self, lease: &Lease, answer: &Answer) -> Result<bool, StoreError>;

    /// Returns which of these leases are no longer held.
    async fn lost(&self, leases: &[Lease]) -> Result<Vec<Lease>, StoreError>;

    /// Makes due jobs pending, at most `limit`; returns how many.
    async fn promote(&self, limit: i64) -> Result<u64, StoreError>;

    /// Ends jobs past their deadline as `expired`, at most `limit`; returns which.
    async fn expire(&self, limit: i64) -> Result<Vec<JobId>, StoreError>;

    /// Says why this binary must leave, where a newer one made a change to the tables that it cannot
    /// live with: `meta.schema_min` is above what it knows.
    async fn outdated(&self) -> Result<Option<String>, StoreError>;

    /// Returns the database's wall clock, as the time since 1970. To be compared with itself.
    async fn clock(&self) -> Result<Duration, StoreError>;

    /// Makes jobs pending that were released under these leases and are still scheduled as they
    /// were; returns how many. For delays that are over while the database's clock, which jumped
    /// back, says otherwise.
    async fn promote_overdue(&self, released: &[Lease]) -> Result<u64, StoreError>;

    /// Returns the other workers.
    async fn peers(&self, me: WorkerId) -> Result<Vec<Peer>, StoreError>;

    /// Takes at most `limit` jobs from a worker that is dead: pending again, claims + 1, a `lost` row in
    /// the ledger each. `crashes` + 1, or 0 where the job got further than before; one that has
    /// [`Tally::QUARANTINED`](crate::domain::job::Tally::QUARANTINED) of them is done as `quarantined`.
    /// Removes the worker's row when none are left.
    async fn rescue(&self, dead: WorkerId, limit: i64) -> Result<Vec<Rescued>, StoreError>;

    /// Takes the crash back that a rescue counted against these leases: their worker lives.
    async fn absolve(&self, leases: &[Lease]) -> Result<(), StoreError>;

    /// Returns all gates.
    async fn gates(&self) -> Result<Vec<GateRow>, StoreError> {
        Ok(self.gate_news(None).await?.rows)
    }

    /// Returns the gates that say they changed since then, `None`: all. What a transaction changed that took
    /// long is older than it says, and what was deleted says nothing: the tally tells.
    async fn gate_news(&self, since: Option<Moment>) -> Result<GateNews, StoreError>;

    /// Writes a gate, where its generation is still `row.generation` (0: it does not exist yet);
    /// returns the new generation, or `None` where somebody else was first.
    async fn set_gate(&self, row: &GateRow) -> Result<Option<i64>, StoreError>;

    /// Says with which account each queue's jobs are asked, in place of what was said before.
    async fn set_accounts(&self, accounts: &[AccountRow]) -> Result<(), StoreError>;

    /// Counts one more refusal of a batch whose gate flows; its signature is this word. Returns how
    /// many there were in a row with the same over all daemons, 0 where the gate does not flow or a person
    /// lets the batch fail.
    async fn count_refusal(&self, scope: &str, word: &str) -> Result<u32, StoreError>;

    /// Takes from the rate budget that all daemons share (`rate:<fingerprint>/<class>`), and tells it
    /// what was learnt: [`Budget::take`](crate::domain::pace::Budget::take) by the database's clock.
    /// `None` where no limit is known, or somebody holds that bucket's lock just now.
    async fn take_rates(&self, scope: &str, take: &Take) -> Result<Each<Option<Grant>>, StoreError>;

    /// Takes at most `limit` rows away of batches that flow and that nobody touched for a day: each
    /// batch that ever met a refusal leaves one. Where a person lets the batch fail, its row stays while
    /// a job of it is open. Returns how many.
    async fn prune_gates(&self, limit: i64) -> Result<u64, StoreError>;

    /// Looks at the next `window` results after this `seq` for what is due, by the database's clock.
    async fn due(&self, sweep: &Sweep, after: i64, window: i64) -> Result<Due, StoreError>;

    /// Takes away what goes of these jobs, in one transaction, where they are still done by these very
    /// results and nobody else holds them. `None`: another daemon is at it.
    async fn erase(&self, what: Erasure, jobs: &[DoneJob]) -> Result<Option<Erased>, StoreError>;

    /// Counts what is left for a drain.
    async fn backlog(&self, wanted: &Wanted, horizon: Duration) -> Result<Backlog, StoreError>;

    /// Reads the `traceparent` in the metadata of these jobs, where one stands there, up to
    /// [`TRACEPARENT_MAX`] characters of it. Whether it can be read is for the caller to see.
    async fn traceparents(&self, jobs: &[JobId]) -> Result<Vec<(JobId, String)>, StoreError>;

    /// Returns the time until the next scheduled job is due, if there is one.
    async fn next_due(&self) -> Result<Option<Duration>, StoreError>;

    /// Waits until somebody may have inserted or changed something, or `up_to` has passed, or
    /// sooner where the store cannot be sure to be told.
    /// SQLite: `PRAGMA data_version` every 50 ms. Postgres: LISTEN, or just the time.
    async fn changed(&self, up_to: Duration);
}
