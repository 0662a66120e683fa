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

mod claim;
mod desk;
mod gates;
mod migrate;
mod place;
mod upkeep;
mod write;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Executor as _, Row as _};
use tokio::time::Instant;

use super::held::Held;
use super::lanes::Lanes;
use super::{
    Backlog, GateRow, Me, Migrate, Peer, Rescued, Store, StoreError, StoreSettings, Wanted, Written, op,
};
use crate::domain::job::{Claimed, JobId, Lease, WorkerId};
use crate::domain::ledger::{Answer, Call, Checkpoint, Release, Settlement};

/// A SQLite file with our schema in it.
pub struct SqliteStore {
    place: place::Place,
    writer: SqlitePool,
    reader: SqlitePool,
    beats: SqlitePool,
    watch: SqlitePool,
    limit: Duration,
    lanes: tokio::sync::Mutex<Lanes>,
    held: Held,
    version: tokio::sync::Mutex<Option<i64>>,
}

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
        migrate::prepare(file, &options, migrate).await?;
        let reading = options.clone().pragma("query_only", "ON");
        Ok(Self {
            place: place::Place::of(file)?,
            writer: pool(options.clone(), 1, limit),
            reader: pool(reading.clone(), settings.connections_max.clamp(1, 4), limit),
            beats: pool(options, 1, limit),
            watch: pool(reading, 1, limit),
            limit,
            lanes: tokio::sync::Mutex::default(),
            held: Held::default(),
            version: tokio::sync::Mutex::default(),
        })
    }

    /// Returns the connections that read.
    pub fn reader(&self) -> &SqlitePool {
        &self.reader
    }

    /// Returns the one connection that writes. Several statements need `BEGIN IMMEDIATE`.
    pub fn writer(&self) -> &SqlitePool {
        &self.writer
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
        self.place.is_the_same()?;
        op::run(&self.reader, self.limit, params, work).await
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
        self.place.is_the_same()?;
        op::run(&self.writer, self.limit, (params, work), |conn, params| {
            Box::pin(immediately(conn, &params.0, params.1))
        })
        .await
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
    let done = match work(conn, params).await {
        Ok(done) => conn.execute("COMMIT").await.map(|_| done),
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
    async fn enlist(&self, me: &Me) -> Result<WorkerId, StoreError> {
        self.write(me.clone(), |conn, me| Box::pin(upkeep::enlist(conn, me))).await
    }

    async fn beat(&self, worker: WorkerId, running: usize, asleep: bool) -> Result<bool, StoreError> {
        fn work<'a>(
            conn: &'a mut SqliteConnection,
            params: &'a (WorkerId, usize, bool),
        ) -> BoxFuture<'a, sqlx::Result<bool>> {
            Box::pin(upkeep::beat(conn, params.0, params.1, params.2))
        }
        self.place.is_the_same()?;
        op::run(&self.beats, self.limit, (worker, running, asleep), work).await
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

    async fn peers(&self, me: WorkerId) -> Result<Vec<Peer>, StoreError> {
        self.read(me, |conn, me| Box::pin(upkeep::peers(conn, *me))).await
    }

    async fn rescue(&self, dead: WorkerId, limit: i64) -> Result<Vec<Rescued>, StoreError> {
        self.write((dead, limit), |conn, params| Box::pin(upkeep::rescue(conn, params.0, params.1))).await
    }

    async fn absolve(&self, leases: &[Lease]) -> Result<(), StoreError> {
        self.write(leases.to_vec(), |conn, leases| Box::pin(upkeep::absolve(conn, leases))).await
    }

    async fn gates(&self) -> Result<Vec<GateRow>, StoreError> {
        self.read((), |conn, ()| Box::pin(gates::all(conn))).await
    }

    async fn set_gate(&self, row: &GateRow) -> Result<Option<i64>, StoreError> {
        self.write(row.clone(), |conn, row| Box::pin(gates::set(conn, row))).await
    }

    async fn count_refusal(&self, scope: &str, word: &str) -> Result<u32, StoreError> {
        let params = (scope.to_owned(), word.to_owned());
        self.write(params, |conn, params| Box::pin(gates::count_refusal(conn, &params.0, &params.1))).await
    }

    async fn prune_gates(&self, limit: i64) -> Result<u64, StoreError> {
        self.write(limit, |conn, limit| Box::pin(gates::prune(conn, *limit))).await
    }

    async fn backlog(&self, wanted: &Wanted, horizon: Duration) -> Result<Backlog, StoreError> {
        let params = (wanted.clone(), horizon);
        self.read(params, |conn, params| Box::pin(upkeep::backlog(conn, &params.0, params.1))).await
    }

    async fn next_due(&self) -> Result<Option<Duration>, StoreError> {
        self.read((), |conn, ()| Box::pin(upkeep::next_due(conn))).await
    }

    async fn changed(&self, up_to: Duration) {
        // What changed since the last wait counts, so the number is kept between two waits.
        let mut known = self.version.lock().await;
        let until = Instant::now() + up_to;
        let seen = op::run(&self.watch, self.limit + up_to, (*known, until), |conn, wait| {
            Box::pin(upkeep::changed(conn, wait.0, wait.1))
        })
        .await;
        match seen {
            Ok(seen) => *known = Some(seen),
            // The caller meets the same error where it can say something about it.
            Err(error) => {
                tracing::debug!(error = %error, "cannot watch the file; polling goes on");
                tokio::time::sleep(until.saturating_duration_since(Instant::now())).await;
            }
        }
    }
}

/// Reads a text that somebody else's program wrote: SQLite keeps any bytes in a TEXT column, and
/// one row must not stop all others.
fn text(found: &SqliteRow, column: &str) -> sqlx::Result<Option<String>> {
    let bytes: Option<&[u8]> = found.try_get(column)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
}
