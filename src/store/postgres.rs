//! The store on Postgres: any number of daemons on any number of hosts over one database.
//!
//! Claims, settles and releases are one statement each, which lock with `SKIP LOCKED`: a row that
//! somebody else holds stalls nobody. No row is locked between two statements but a limited queue's.

mod claim;
mod desk;
mod gates;
mod listen;
mod migrate;
mod upkeep;
mod write;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};

use self::listen::Listener;
use super::held::Held;
use super::lanes::Lanes;
use super::migrations::Meta;
use super::{Backlog, GateRow, Me, Migrate, Peer, Store, StoreError, StoreSettings, Wanted, Written, op};
use crate::domain::job::{Claimed, JobId, Lease, WorkerId};
use crate::domain::ledger::{Answer, Call, Checkpoint, Release, Settlement};

/// A Postgres database with our schema in it.
pub struct PostgresStore {
    pool: PgPool,
    beats: PgPool,
    meta: Arc<Meta>,
    limit: Duration,
    lanes: tokio::sync::Mutex<Lanes>,
    held: Held,
    listener: Option<Listener>,
}

impl PostgresStore {
    /// Opens the database, and makes or migrates the schema where `migrate` says so.
    ///
    /// # Errors
    /// [`StoreError::Schema`] with a sentence for a person; [`StoreError::Unavailable`] where the
    /// server cannot be reached.
    pub async fn open(url: &str, settings: &StoreSettings, migrate: Migrate) -> Result<Self, StoreError> {
        migrate::check_name(&settings.schema)?;
        // The URL may hold a password: the driver's words about it are not passed on.
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| StoreError::Unavailable("the database URL is not a Postgres URL".to_owned()))?;
        let meta = migrate::prepare(&options, settings, migrate).await?;
        let meta = Arc::new(meta);
        let options = with_start_up(options, settings);
        let pool = pool(&options, &meta, settings.connections_max.max(2), settings.operation_max);
        let beats = self::pool(&options, &meta, 1, settings.operation_max);
        let listener = (!settings.transaction_pooler).then(|| Listener::start(options, &settings.schema));
        Ok(Self {
            pool,
            beats,
            meta,
            limit: settings.operation_max,
            lanes: tokio::sync::Mutex::default(),
            held: Held::default(),
            listener,
        })
    }

    /// Returns the pool, for reads and one-statement writes.
    pub fn pool(&self) -> &PgPool {
        &self.pool
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
        op::run(&self.pool, self.limit, params, work).await
    }
}

/// Adds what each connection says when it starts. A pooler in transaction mode would show one
/// client's settings to the next, so it gets none, and no named statements.
fn with_start_up(options: PgConnectOptions, settings: &StoreSettings) -> PgConnectOptions {
    let options = options.application_name("promptmill");
    if settings.transaction_pooler {
        return options.statement_cache_capacity(0);
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
const POLL: Duration = Duration::from_millis(200);
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
        op::run(&self.beats, self.limit, (worker, running, asleep), work).await
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
        self.run(limit, |conn, limit| Box::pin(upkeep::expire(conn, *limit))).await
    }

    async fn peers(&self, me: WorkerId) -> Result<Vec<Peer>, StoreError> {
        self.run(me, |conn, me| Box::pin(upkeep::peers(conn, *me))).await
    }

    async fn rescue(&self, dead: WorkerId, limit: i64) -> Result<Vec<JobId>, StoreError> {
        self.run((dead, limit), |conn, params| Box::pin(upkeep::rescue(conn, params.0, params.1))).await
    }

    async fn gates(&self) -> Result<Vec<GateRow>, StoreError> {
        self.run((), |conn, ()| Box::pin(gates::all(conn))).await
    }

    async fn set_gate(&self, row: &GateRow) -> Result<Option<i64>, StoreError> {
        self.run(row.clone(), |conn, row| Box::pin(gates::set(conn, row))).await
    }

    async fn backlog(&self, wanted: &Wanted, horizon: Duration) -> Result<Backlog, StoreError> {
        let params = (wanted.clone(), horizon);
        self.run(params, |conn, params| Box::pin(upkeep::backlog(conn, &params.0, params.1))).await
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
