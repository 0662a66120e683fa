//! The store on Postgres: any number of daemons on any number of hosts over one database.
//!
//! Claims, settles and releases are one statement each, which lock with `SKIP LOCKED`: a row that
//! somebody else holds stalls nobody. No row is locked between two statements but a limited queue's.

mod board;
mod claim;
mod clock;
mod desk;
mod gates;
mod gauges;
mod listen;
mod migrate;
mod rates;
mod retention;
mod tools;
mod traces;
mod upkeep;
mod write;

pub(super) use migrate::apply;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use secrecy::ExposeSecret as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, Postgres};

use self::listen::Listener;
use super::held::Held;
use super::lanes::Lanes;
use super::migrations::Meta;
use super::timed::Timed;
use super::{
    AccountRow, Backlog, Due, Erased, GateNews, GateRow, Me, Migrate, Moment, Peer, Rescued, Store,
    StoreError, StoreSettings, Wanted, Written, op, row,
};
use crate::domain::job::{Claimed, JobId, Lease, WorkerId};
use crate::domain::ledger::{Answer, Call, Checkpoint, Release, Settlement};
use crate::domain::pace::{Each, Grant, Take};
use crate::domain::retention::{DoneJob, Erasure, Sweep};
use crate::domain::tool::{Asked, ToolResult};

/// A Postgres database with our schema in it.
pub struct PostgresStore {
    /// For people: its plans are the server's own affair.
    pool: Timed<Postgres>,
    /// For the page and for metrics.
    looks: Timed<Postgres>,
    work: PgPool,
    beats: PgPool,
    meta: Arc<Meta>,
    limit: Duration,
    answers_once: bool,
    lanes: tokio::sync::Mutex<Lanes>,
    held: Held,
    schema: String,
    listener: Option<Listener>,
    /// How an operation begins behind a pooler in transaction mode.
    begin: Option<Arc<str>>,
}

impl PostgresStore {
    /// Opens the database, and makes or migrates the schema where `migrate` says so.
    ///
    /// # Errors
    /// [`StoreError::Schema`] with a sentence for a person; [`StoreError::Unavailable`] where the
    /// server cannot be reached.
    pub async fn open(url: &str, settings: &StoreSettings, migrate: Migrate) -> Result<Self, StoreError> {
        migrate::check_name(&settings.schema)?;
        let options = read_url(url)?;
        let meta = migrate::prepare(&options, settings, migrate).await?;
        let meta = Arc::new(meta);
        let options = with_start_up(options, settings);
        let connections_max = settings.connections_max.max(2);
        let people = pool(&options, &meta, connections_max, settings.operation_max);
        let (ours, looking) = if settings.transaction_pooler {
            (options.clone(), options.clone())
        } else {
            (by_index(options.clone()), in_order(by_index(options.clone())))
        };
        let looks = pool(&looking, &meta, connections_max, settings.operation_max);
        let work = pool(&ours, &meta, connections_max, settings.operation_max);
        let beats = pool(&ours, &meta, 1, settings.operation_max);
        let listen = match &settings.listen_url {
            Some(url) => Some(read_url(url.expose_secret())?.application_name("promptmill")),
            None => (!settings.transaction_pooler).then_some(options),
        };
        let listener =
            listen.map(|options| Listener::start(options, &settings.schema, settings.operation_max));
        Ok(Self {
            pool: Timed::new(people),
            looks: Timed::new(looks),
            work,
            beats,
            meta,
            limit: settings.operation_max,
            answers_once: settings.answers_once,
            lanes: tokio::sync::Mutex::default(),
            held: Held::default(),
            schema: settings.schema.clone(),
            listener,
            begin: settings.transaction_pooler.then(|| begin_pinned(settings.operation_max)),
        })
    }

    /// Returns the pool of people's commands, for reads.
    pub fn pool(&self) -> &Timed<Postgres> {
        &self.pool
    }

    /// Returns the pool of the page and of metrics, whose reads show the first few rows of many.
    fn looks(&self) -> &Timed<Postgres> {
        &self.looks
    }

    /// Returns the connections of people's commands for writes of one statement. No limit of ours cuts
    /// these: the server would finish what nobody waits for any more, and whoever asked would ask again.
    fn writes(&self) -> &PgPool {
        self.pool.plain()
    }

    /// Returns the longest time that one operation may take.
    pub fn operation_max(&self) -> Duration {
        self.limit
    }

    async fn run<P, T>(&self, params: P, work: op::Work<PgConnection, P, T>) -> Result<T, StoreError>
    where
        P: Send + Sync + 'static,
        T: Send + 'static,
    {
        self.run_on(&self.work, params, work).await
    }

    async fn run_on<P, T>(
        &self,
        pool: &PgPool,
        params: P,
        work: op::Work<PgConnection, P, T>,
    ) -> Result<T, StoreError>
    where
        P: Send + Sync + 'static,
        T: Send + 'static,
    {
        match &self.begin {
            None => op::run(pool, self.limit, params, work).await,
            Some(begin) => {
                let params = (Arc::clone(begin), params, work);
                op::run(pool, self.limit, params, |conn, p| Box::pin(pinned(conn, &p.0, &p.1, p.2))).await
            }
        }
    }
}

/// How an operation begins behind a pooler, where no start-up option says these things: until its end,
/// and for nobody else.
fn begin_pinned(limit: Duration) -> Arc<str> {
    let limit = limit.as_millis();
    format!(
        "BEGIN; SET LOCAL statement_timeout = {limit}; SET LOCAL idle_in_transaction_session_timeout = {limit}; \
         SET LOCAL jit = off; SET LOCAL enable_seqscan = off"
    )
    .into()
}

/// Tells the server to plan the worker's statements by their indexes, which all of them have. A plan is
/// kept: one that was made while a table was empty would read it from end to end when it is not any more.
fn by_index(options: PgConnectOptions) -> PgConnectOptions {
    options.options([("enable_seqscan", "off")])
}

/// Tells the server to read an index in its order, and to stop where enough was seen. Of a batch that it
/// takes for a small one it would else fetch all rows first, to sort them: half of all results may be one.
fn in_order(options: PgConnectOptions) -> PgConnectOptions {
    options.options([("enable_bitmapscan", "off")])
}

/// Runs an operation in one transaction, and leaves nothing behind on the server connection.
///
/// The driver prepares a statement in one round and runs it in the next. Between the two a pooler in
/// transaction mode may lead us to another server connection, which does not know the statement, or
/// knows another one by its name.
async fn pinned<P: Sync, T>(
    conn: &mut PgConnection,
    begin: &str,
    params: &P,
    work: op::Work<PgConnection, P, T>,
) -> sqlx::Result<T> {
    let mut transaction = conn.begin_with(AssertSqlSafe(begin.to_owned())).await?;
    match work(&mut transaction, params).await {
        Ok(done) => {
            transaction.clear_cached_statements().await?;
            transaction.commit().await?;
            Ok(done)
        }
        Err(error @ sqlx::Error::Database(_)) => {
            transaction.clear_cached_statements().await?;
            transaction.rollback().await?;
            Err(error)
        }
        // The connection is not used again.
        Err(error) => Err(error),
    }
}

/// Reads a Postgres URL. It may hold a password: the driver's words about it are not passed on.
fn read_url(url: &str) -> Result<PgConnectOptions, StoreError> {
    PgConnectOptions::from_str(url)
        .map_err(|_| StoreError::Unavailable("the database URL is not a Postgres URL".to_owned()))
}

/// Adds what each connection says when it starts. A pooler in transaction mode would show one
/// client's settings to the next, so it gets none.
fn with_start_up(options: PgConnectOptions, settings: &StoreSettings) -> PgConnectOptions {
    let options = options.application_name("promptmill");
    if settings.transaction_pooler {
        // Statements that are not kept would be named all the same, and never be let go of: see `pinned`.
        return options.statement_cache_capacity(100);
    }
    let limit = settings.operation_max.as_millis().to_string();
    options.options([
        ("search_path", format!("{},pg_temp", settings.schema).as_str()),
        ("statement_timeout", &limit),
        ("idle_in_transaction_session_timeout", &limit),
        // The estimates of our unnested arrays are far off, and compiling a plan costs more than running it.
        ("jit", "off"),
    ])
}

/// Nobody who inserts waits longer than this, whatever became of the notification.
const POLL: Duration = Duration::from_millis(250);
/// How long one operation waits for a connection. What waits longer is tried again anyway.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Returns a pool whose every new connection proves that it sees the right tables.
fn pool(options: &PgConnectOptions, meta: &Arc<Meta>, connections_max: u32, wait_max: Duration) -> PgPool {
    let meta = Arc::clone(meta);
    PgPoolOptions::new()
        .max_connections(connections_max)
        // The pauses between tries to connect grow to a fifth of this: a server that is back is found within a second.
        .acquire_timeout(wait_max.min(CONNECT_MAX))
        // A ping a statement; a dead connection is found by the statement itself.
        .test_before_acquire(false)
        .after_connect(move |conn, _| {
            let meta = Arc::clone(&meta);
            Box::pin(async move { migrate::prove(conn, &meta).await })
        })
        .connect_lazy_with(options.clone())
}

#[async_trait]
impl Store for PostgresStore {
    fn database_id(&self) -> &str {
        &self.meta.database_id
    }

    async fn enlist(&self, me: &Me) -> Result<WorkerId, StoreError> {
        self.run(me.clone(), |conn, me| Box::pin(upkeep::enlist(conn, me))).await
    }

    async fn beat(&self, worker: WorkerId, running: usize, asleep: bool) -> Result<bool, StoreError> {
        fn work<'a>(
            conn: &'a mut PgConnection,
            params: &'a (WorkerId, usize, bool),
        ) -> BoxFuture<'a, sqlx::Result<bool>> {
            Box::pin(upkeep::beat(conn, params.0, params.1, params.2))
        }
        self.run_on(&self.beats, (worker, running, asleep), work).await
    }

    async fn sleep(&self, worker: WorkerId, asleep: bool) -> Result<(), StoreError> {
        self.run((worker, asleep), |conn, params| Box::pin(upkeep::sleep(conn, params.0, params.1))).await
    }

    async fn retire(&self, worker: WorkerId) -> Result<(), StoreError> {
        self.run(worker, |conn, worker| Box::pin(upkeep::retire(conn, *worker))).await
    }

    async fn claim(&self, wanted: &Wanted) -> Result<Vec<Claimed>, StoreError> {
        self.claim_jobs(wanted).await
    }

    async fn append(&self, lease: &Lease, call: &Call, worker: WorkerId) -> Result<bool, StoreError> {
        self.append_call(lease, call, worker).await
    }

    async fn checkpoint(&self, parts: &[Arc<Checkpoint>]) -> Result<Vec<Lease>, StoreError> {
        self.keep_parts(parts).await
    }

    async fn settle(&self, settlements: &[Arc<Settlement>], worker: WorkerId) -> Result<Written, StoreError> {
        self.settle_jobs(settlements, worker).await
    }

    async fn release(&self, releases: &[Arc<Release>], worker: WorkerId) -> Result<Written, StoreError> {
        self.release_jobs(releases, worker).await
    }

    async fn open_tools(&self, lease: &Lease, asked: &Asked, worker: WorkerId) -> Result<bool, StoreError> {
        self.open_tool_calls(lease, asked, worker).await
    }

    async fn answer_tool(
        &self,
        lease: &Lease,
        claim: i64,
        seq: i32,
        position: i32,
        result: &ToolResult,
    ) -> Result<bool, StoreError> {
        self.answer_tool_call(lease, row::tool_answer(claim, seq, position, result)).await
    }

    async fn promote_answered(&self, limit: i64) -> Result<u64, StoreError> {
        self.run(limit, |conn, limit| Box::pin(tools::promote_answered(conn, *limit))).await
    }

    async fn fill(&self, lease: &Lease, answer: &Answer) -> Result<bool, StoreError> {
        self.fill_result(lease, answer).await
    }

    async fn lost(&self, leases: &[Lease]) -> Result<Vec<Lease>, StoreError> {
        let lost = self.run(leases.to_vec(), |conn, leases| Box::pin(upkeep::lost(conn, leases))).await?;
        self.held.drop(&lost);
        Ok(lost)
    }

    async fn promote(&self, limit: i64) -> Result<u64, StoreError> {
        self.run(limit, |conn, limit| Box::pin(upkeep::promote(conn, *limit))).await
    }

    async fn expire(&self, limit: i64) -> Result<Vec<JobId>, StoreError> {
        if !self.run((), |conn, ()| Box::pin(upkeep::is_any_expired(conn))).await? {
            return Ok(Vec::new());
        }
        self.run(limit, |conn, limit| Box::pin(upkeep::expire(conn, *limit))).await
    }

    async fn outdated(&self) -> Result<Option<String>, StoreError> {
        let meta = self.run((), |conn, ()| Box::pin(migrate::seen(conn))).await?;
        Ok(meta.outgrown(&migrate::place(&self.schema)))
    }

    async fn clock(&self) -> Result<Duration, StoreError> {
        self.run((), |conn, ()| Box::pin(clock::now(conn))).await
    }

    async fn promote_overdue(&self, released: &[Lease]) -> Result<u64, StoreError> {
        self.run(released.to_vec(), |conn, released| Box::pin(clock::promote(conn, released))).await
    }

    async fn peers(&self, me: WorkerId) -> Result<Vec<Peer>, StoreError> {
        self.run(me, |conn, me| Box::pin(upkeep::peers(conn, *me))).await
    }

    async fn rescue(&self, dead: WorkerId, limit: i64) -> Result<Vec<Rescued>, StoreError> {
        self.run((dead, limit), |conn, params| Box::pin(upkeep::rescue(conn, params.0, params.1))).await
    }

    async fn absolve(&self, leases: &[Lease]) -> Result<(), StoreError> {
        self.run(leases.to_vec(), |conn, leases| Box::pin(upkeep::absolve(conn, leases))).await
    }

    async fn gate_news(&self, since: Option<Moment>) -> Result<GateNews, StoreError> {
        self.run(since, |conn, since| Box::pin(gates::news(conn, *since))).await
    }

    async fn set_gate(&self, row: &GateRow) -> Result<Option<i64>, StoreError> {
        self.run(row.clone(), |conn, row| Box::pin(gates::set(conn, row))).await
    }

    async fn set_accounts(&self, accounts: &[AccountRow]) -> Result<(), StoreError> {
        self.run(accounts.to_vec(), |conn, rows| Box::pin(gates::set_accounts(conn, rows))).await
    }

    async fn count_refusal(&self, scope: &str, word: &str) -> Result<u32, StoreError> {
        let params = (scope.to_owned(), word.to_owned());
        self.run(params, |conn, params| Box::pin(gates::count_refusal(conn, &params.0, &params.1))).await
    }

    async fn take_rates(&self, scope: &str, take: &Take) -> Result<Each<Option<Grant>>, StoreError> {
        let params = (scope.to_owned(), *take);
        if take.is_empty() {
            return self.run(params, |conn, p| Box::pin(rates::hear(conn, &p.0))).await;
        }
        self.run(params, |conn, p| Box::pin(rates::take(conn, &p.0, &p.1))).await
    }

    async fn prune_gates(&self, limit: i64) -> Result<u64, StoreError> {
        self.run(limit, |conn, limit| Box::pin(gates::prune(conn, *limit))).await
    }

    async fn due(&self, sweep: &Sweep, after: i64, window: i64) -> Result<Due, StoreError> {
        let params = (sweep.clone(), after, window);
        self.run(params, |conn, p| Box::pin(retention::due(conn, &p.0, p.1, p.2))).await
    }

    async fn erase(&self, what: Erasure, jobs: &[DoneJob]) -> Result<Option<Erased>, StoreError> {
        let jobs = retention::Jobs::new(jobs);
        self.run((what, jobs), |conn, p| Box::pin(retention::erase_alone(conn, p.0, &p.1))).await
    }

    async fn backlog(&self, wanted: &Wanted, horizon: Duration) -> Result<Backlog, StoreError> {
        let params = (wanted.clone(), horizon);
        self.run(params, |conn, params| Box::pin(upkeep::backlog(conn, &params.0, params.1))).await
    }

    async fn traceparents(&self, jobs: &[JobId]) -> Result<Vec<(JobId, String)>, StoreError> {
        self.run(jobs.to_vec(), |conn, jobs| Box::pin(traces::parents(conn, jobs))).await
    }

    async fn next_due(&self) -> Result<Option<Duration>, StoreError> {
        self.run((), |conn, ()| Box::pin(upkeep::next_due(conn))).await
    }

    async fn changed(&self, up_to: Duration) {
        // A notification is a hint, and a pooler brings none: the poll is the truth.
        let up_to = up_to.min(POLL);
        match &self.listener {
            Some(listener) => listener.heard(up_to).await,
            None => tokio::time::sleep(up_to).await,
        }
    }
}
