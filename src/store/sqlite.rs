//! The store on SQLite: one file, one machine, one writer at a time.
//!
//! One connection writes, each time inside `BEGIN IMMEDIATE`; others read; the beat and the watch
//! for other people's changes have connections of their own. The file is in WAL mode, and a commit
//! is on the disk when it is acknowledged.

/// The time, as the defaults and triggers of the schema take it: milliseconds since 1970.
macro_rules! now {
    () => {
        "CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"
    };
}

mod board;
mod claim;
mod clock;
mod desk;
mod gates;
mod gauges;
mod holder;
mod migrate;
mod place;
mod rates;
mod reopen;
mod retention;
mod tools;
mod traces;
mod upkeep;
mod watch;
mod write;

pub(super) use migrate::apply;

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Executor as _, Row as _, Sqlite};
use tokio::time::Instant;

use super::held::Held;
use super::lanes::Lanes;
use super::timed::{Ends as _, Timed, ended};
use super::{
    AccountRow, Backlog, Due, Erased, GateNews, GateRow, Me, Migrate, Moment, Peer, Rescued, Store,
    StoreError, StoreSettings, Wanted, Written, op, row,
};
use crate::domain::job::{Claimed, JobId, Lease, WorkerId};
use crate::domain::ledger::{Answer, Call, Checkpoint, Release, Settlement};
use crate::domain::pace::{Each, Grant, Take};
use crate::domain::retention::{DoneJob, Erasure, Sweep};
use crate::domain::tool::{Asked, ToolResult};
use crate::failpoint::failpoint;

/// A SQLite file with our schema in it.
pub struct SqliteStore {
    place: place::Place,
    database_id: String,
    options: SqliteConnectOptions,
    readers_max: u32,
    pools: RwLock<Arc<Pools>>,
    reopening: tokio::sync::Mutex<reopen::Refused>,
    /// Whether it was said who keeps us from writing.
    told: AtomicBool,
    /// The last worker that enlisted here.
    enlisted: AtomicI64,
    limit: Duration,
    answers_once: bool,
    lanes: tokio::sync::Mutex<Lanes>,
    held: Held,
    seen: tokio::sync::Mutex<watch::Seen>,
}

/// The connections to one file.
pub(crate) struct Pools {
    writer: SqlitePool,
    reader: SqlitePool,
    /// For people: what they ask may take long, and must not keep a worker waiting.
    people: SqlitePool,
    beats: SqlitePool,
    watch: SqlitePool,
}

impl Pools {
    fn new(options: &SqliteConnectOptions, readers_max: u32, limit: Duration) -> Self {
        let reading = options.clone().pragma("query_only", "ON");
        Self {
            writer: pool(options.clone(), 1, limit),
            reader: pool(reading.clone(), readers_max, limit),
            people: pool(reading.clone(), readers_max, limit),
            beats: pool(options.clone(), 1, limit),
            watch: pool(reading, 1, limit),
        }
    }

    const fn all(&self) -> [&SqlitePool; 5] {
        [&self.watch, &self.beats, &self.people, &self.reader, &self.writer]
    }
}

/// Longest time of one look for people, as of the page's other ones.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// After so long it is said who keeps us from writing.
const PATIENCE: Duration = Duration::from_secs(2);

impl SqliteStore {
    /// Opens a file, and makes or migrates the tables where `migrate` says so.
    ///
    /// # Errors
    /// [`StoreError::Schema`] with a sentence for a person, also where the file is not ours;
    /// [`StoreError::Unavailable`] where it is locked or cannot be opened.
    pub async fn open(file: &str, settings: &StoreSettings, migrate: Migrate) -> Result<Self, StoreError> {
        let file = file.split_once('?').map_or(file, |(file, _)| file);
        let limit = settings.operation_max;
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(false)
            .foreign_keys(false)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5).min(limit / 2));
        let meta = migrate::prepare(file, &options, migrate).await?;
        // What a daemon does at once is bounded. Where that spills, answers would stand in the system's
        // folder for temporary files, which a read-only root does not even have.
        let options = match migrate {
            Migrate::Serve => options.pragma("temp_store", "MEMORY"),
            Migrate::Never | Migrate::Now => options,
        };
        let readers_max = settings.connections_max.clamp(1, 4);
        Ok(Self {
            place: place::Place::of(file)?,
            database_id: meta.database_id,
            pools: RwLock::new(Arc::new(Pools::new(&options, readers_max, limit))),
            options,
            readers_max,
            reopening: tokio::sync::Mutex::default(),
            told: AtomicBool::new(false),
            enlisted: AtomicI64::new(0),
            limit,
            answers_once: settings.answers_once,
            lanes: tokio::sync::Mutex::default(),
            held: Held::default(),
            seen: tokio::sync::Mutex::default(),
        })
    }

    async fn version(&self) -> Result<i64, StoreError> {
        let pools = self.pools().await?;
        op::run(&pools.watch, self.limit, (), |conn, ()| Box::pin(watch::version(conn))).await
    }

    fn opened(&self) -> Arc<Pools> {
        Arc::clone(&self.pools.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn open_anew(&self) -> Arc<Pools> {
        let pools = Arc::new(Pools::new(&self.options, self.readers_max, self.limit));
        *self.pools.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&pools);
        pools
    }

    /// Returns the connections that read for people.
    pub fn reader(&self) -> Timed<Sqlite> {
        Timed::new(self.opened().people.clone())
    }

    /// Returns the one connection that writes. Several statements need `BEGIN IMMEDIATE`.
    pub fn writer(&self) -> SqlitePool {
        self.opened().writer.clone()
    }

    /// Returns the longest time that one operation may take.
    pub fn operation_max(&self) -> Duration {
        self.limit
    }

    async fn read<P, T>(&self, params: P, work: op::Work<SqliteConnection, P, T>) -> Result<T, StoreError>
    where
        P: Send + Sync + 'static,
        T: Send + 'static,
    {
        let pools = self.pools().await?;
        let done = op::run(&pools.reader, self.limit, params, work).await;
        self.place.opened();
        done
    }

    /// Runs a look of people at what workers read too: on connections of their own, and not for long.
    async fn read_for_people<P, T>(
        &self,
        params: P,
        work: op::Work<SqliteConnection, P, T>,
    ) -> Result<T, StoreError>
    where
        P: Send + Sync + 'static,
        T: Send + 'static,
    {
        let pools = self.pools().await?;
        let limit = self.limit.min(LOOK_MAX);
        op::run(&pools.people, self.limit, (params, work, limit), |conn, (params, work, limit)| {
            Box::pin(async move {
                Sqlite::until(conn, Some(Instant::now() + *limit)).await?;
                work(conn, params).await.map_err(|error| ended::<Sqlite>(error, *limit))
            })
        })
        .await
    }

    /// Runs an operation inside one `BEGIN IMMEDIATE`.
    pub(crate) async fn write<P, T>(
        &self,
        params: P,
        work: op::Work<SqliteConnection, P, T>,
    ) -> Result<T, StoreError>
    where
        P: Send + Sync + 'static,
        T: Send + 'static,
    {
        let pools = self.pools().await?;
        let done = op::run(&pools.writer, self.limit, (params, work), |conn, params| {
            Box::pin(immediately(conn, &params.0, params.1))
        });
        self.patiently(done).await
    }

    async fn erase_jobs(&self, what: Erasure, jobs: &[DoneJob]) -> Result<Erased, StoreError> {
        let jobs: Vec<(i64, i64)> = jobs.iter().map(|done| (done.job.0, done.seq)).collect();
        let pools = self.pools().await?;
        let done = op::run(&pools.writer, self.limit, (what, jobs), |conn, params| {
            Box::pin(async move {
                conn.execute("BEGIN IMMEDIATE").await?;
                let began = Instant::now();
                let jobs = until_commit(conn, params, |conn, p| Box::pin(retention::erase(conn, p.0, &p.1)));
                Ok(Erased { jobs: jobs.await?, took: began.elapsed() })
            })
        });
        self.patiently(done).await
    }

    /// Waits for a write, says after a while who keeps us from it, and holds the file against what
    /// was done: a file that was replaced meanwhile may have been the wrong one.
    async fn patiently<T>(&self, done: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let mut done = pin!(done);
        let done = if let Ok(done) = tokio::time::timeout(PATIENCE, &mut done).await {
            done
        } else {
            self.tell_holder();
            done.await
        };
        self.place.opened();
        if done.is_ok() {
            self.still_there()?;
            if self.told.swap(false, Ordering::Relaxed) {
                tracing::info!("{} can be written to again", self.place.path().display());
            }
        }
        done
    }

    /// Says once who holds the lock of the one writer, where it can be seen.
    fn tell_holder(&self) {
        let Some(holder) = holder::of(&self.place.index()) else { return };
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                lock.pid = holder.pid,
                "process {} ({}) holds the write lock of {}: nothing can be written until it lets go",
                holder.pid,
                holder.name,
                self.place.path().display()
            );
        }
    }
}

fn pool(options: SqliteConnectOptions, connections_max: u32, wait_max: Duration) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(wait_max)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_lazy_with(options)
}

async fn immediately<P: Sync, T>(
    conn: &mut SqliteConnection,
    params: &P,
    work: op::Work<SqliteConnection, P, T>,
) -> sqlx::Result<T> {
    conn.execute("BEGIN IMMEDIATE").await?;
    until_commit(conn, params, work).await
}

/// Runs an operation to the end of the transaction that it is in.
async fn until_commit<P: Sync, T>(
    conn: &mut SqliteConnection,
    params: &P,
    work: op::Work<SqliteConnection, P, T>,
) -> sqlx::Result<T> {
    let done = match work(conn, params).await {
        Ok(done) => {
            failpoint!("commit");
            conn.execute("COMMIT").await.map(|_| done)
        }
        Err(error) => Err(error),
    };
    let Err(error) = done else { return done };
    match conn.execute("ROLLBACK").await {
        Ok(_) => Err(error),
        // SQLite has rolled back by itself, as it does when the disk is full.
        Err(left) if left.to_string().contains("no transaction is active") => Err(error),
        // Nobody may get a connection that is still inside a transaction.
        Err(left) => Err(sqlx::Error::Protocol(format!("{error}; then rolling back failed: {left}"))),
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn database_id(&self) -> &str {
        &self.database_id
    }

    async fn enlist(&self, me: &Me) -> Result<WorkerId, StoreError> {
        let id = self.write(me.clone(), |conn, me| Box::pin(upkeep::enlist(conn, me))).await?;
        self.enlisted.store(id.0, Ordering::Relaxed);
        Ok(id)
    }

    async fn beat(&self, worker: WorkerId, running: usize, asleep: bool) -> Result<bool, StoreError> {
        fn work<'a>(
            conn: &'a mut SqliteConnection,
            params: &'a (WorkerId, usize, bool),
        ) -> BoxFuture<'a, sqlx::Result<bool>> {
            Box::pin(upkeep::beat(conn, params.0, params.1, params.2))
        }
        let pools = self.pools().await?;
        self.patiently(op::run(&pools.beats, self.limit, (worker, running, asleep), work)).await
    }

    /// Nobody knocks on SQLite: the file is looked at.
    async fn sleep(&self, _worker: WorkerId, _asleep: bool) -> Result<(), StoreError> {
        Ok(())
    }

    async fn retire(&self, worker: WorkerId) -> Result<(), StoreError> {
        self.write(worker, |conn, worker| Box::pin(upkeep::retire(conn, *worker))).await
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
        if !self.read((), |conn, ()| Box::pin(tools::is_any_answered(conn))).await? {
            return Ok(0);
        }
        self.write(limit, |conn, limit| Box::pin(tools::promote_answered(conn, *limit))).await
    }

    async fn fill(&self, lease: &Lease, answer: &Answer) -> Result<bool, StoreError> {
        self.fill_result(lease, answer).await
    }

    async fn lost(&self, leases: &[Lease]) -> Result<Vec<Lease>, StoreError> {
        let lost = self.read(leases.to_vec(), |conn, leases| Box::pin(upkeep::lost(conn, leases))).await?;
        self.held.drop(&lost);
        Ok(lost)
    }

    async fn promote(&self, limit: i64) -> Result<u64, StoreError> {
        // Looking costs no lock; writing would, although there is nothing to write.
        if self.next_due().await?.is_none_or(|left| !left.is_zero()) {
            return Ok(0);
        }
        self.write(limit, |conn, limit| Box::pin(upkeep::promote(conn, *limit))).await
    }

    async fn expire(&self, limit: i64) -> Result<Vec<JobId>, StoreError> {
        if !self.read((), |conn, ()| Box::pin(upkeep::is_any_expired(conn))).await? {
            return Ok(Vec::new());
        }
        self.write(limit, |conn, limit| Box::pin(upkeep::expire(conn, *limit))).await
    }

    async fn outdated(&self) -> Result<Option<String>, StoreError> {
        let meta = self.read((), |conn, ()| Box::pin(migrate::ours(conn))).await?;
        Ok(meta.and_then(|meta| meta.outgrown(&self.place.path().display().to_string())))
    }

    async fn clock(&self) -> Result<Duration, StoreError> {
        self.read((), |conn, ()| Box::pin(clock::now(conn))).await
    }

    async fn promote_overdue(&self, released: &[Lease]) -> Result<u64, StoreError> {
        self.write(released.to_vec(), |conn, released| Box::pin(clock::promote(conn, released))).await
    }

    async fn peers(&self, me: WorkerId) -> Result<Vec<Peer>, StoreError> {
        self.read(me, |conn, me| Box::pin(upkeep::peers(conn, *me))).await
    }

    async fn rescue(&self, dead: WorkerId, limit: i64) -> Result<Vec<Rescued>, StoreError> {
        self.write((dead, limit), |conn, params| Box::pin(upkeep::rescue(conn, params.0, params.1))).await
    }

    async fn absolve(&self, leases: &[Lease]) -> Result<(), StoreError> {
        self.write(leases.to_vec(), |conn, leases| Box::pin(upkeep::absolve(conn, leases))).await
    }

    async fn gate_news(&self, since: Option<Moment>) -> Result<GateNews, StoreError> {
        self.read(since, |conn, since| Box::pin(gates::news(conn, *since))).await
    }

    async fn set_gate(&self, row: &GateRow) -> Result<Option<i64>, StoreError> {
        self.write(row.clone(), |conn, row| Box::pin(gates::set(conn, row))).await
    }

    async fn set_accounts(&self, accounts: &[AccountRow]) -> Result<(), StoreError> {
        self.write(accounts.to_vec(), |conn, rows| Box::pin(gates::set_accounts(conn, rows))).await
    }

    async fn count_refusal(&self, scope: &str, word: &str) -> Result<u32, StoreError> {
        let params = (scope.to_owned(), word.to_owned());
        self.write(params, |conn, params| Box::pin(gates::count_refusal(conn, &params.0, &params.1))).await
    }

    async fn take_rates(&self, scope: &str, take: &Take) -> Result<Each<Option<Grant>>, StoreError> {
        let params = (scope.to_owned(), *take);
        // Looking costs no lock.
        if take.is_empty() {
            return self.read(params, |conn, p| Box::pin(rates::hear(conn, &p.0))).await;
        }
        self.write(params, |conn, p| Box::pin(rates::take(conn, &p.0, &p.1))).await
    }

    async fn prune_gates(&self, limit: i64) -> Result<u64, StoreError> {
        self.write(limit, |conn, limit| Box::pin(gates::prune(conn, *limit))).await
    }

    async fn due(&self, sweep: &Sweep, after: i64, window: i64) -> Result<Due, StoreError> {
        let params = (sweep.clone(), after, window);
        self.read(params, |conn, p| Box::pin(retention::due(conn, &p.0, p.1, p.2))).await
    }

    async fn erase(&self, what: Erasure, jobs: &[DoneJob]) -> Result<Option<Erased>, StoreError> {
        // Two daemons on one file take turns: it has one writer.
        self.erase_jobs(what, jobs).await.map(Some)
    }

    async fn backlog(&self, wanted: &Wanted, horizon: Duration) -> Result<Backlog, StoreError> {
        let params = (wanted.clone(), horizon);
        self.read(params, |conn, params| Box::pin(upkeep::backlog(conn, &params.0, params.1))).await
    }

    async fn traceparents(&self, jobs: &[JobId]) -> Result<Vec<(JobId, String)>, StoreError> {
        self.read(jobs.to_vec(), |conn, jobs| Box::pin(traces::parents(conn, jobs))).await
    }

    async fn next_due(&self) -> Result<Option<Duration>, StoreError> {
        self.read((), |conn, ()| Box::pin(upkeep::next_due(conn))).await
    }

    async fn changed(&self, up_to: Duration) {
        // What changed since the last wait counts, so what was seen is kept between two waits.
        let mut seen = self.seen.lock().await;
        let until = Instant::now() + up_to;
        loop {
            let log = watch::Log::look(&self.place.log());
            if !seen.is_of(log) {
                match self.version().await {
                    Ok(version) if seen.take(version, log) => return,
                    Ok(_) => {}
                    // The caller meets the same error where it can say something about it.
                    Err(error) => {
                        tracing::debug!(error = %error, "cannot watch the file; polling goes on");
                        return tokio::time::sleep_until(until).await;
                    }
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(watch::LOOK_EVERY.min(left)).await;
        }
    }
}

/// Reads a text that somebody else's program wrote: SQLite keeps any bytes in a TEXT column, and
/// one row must not stop all others.
fn text(found: &SqliteRow, column: &str) -> sqlx::Result<Option<String>> {
    let bytes: Option<&[u8]> = found.try_get(column)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
}
