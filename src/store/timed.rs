//! Reads of people, each within a time limit, where somebody set one.
//!
//! [`within`] sets the limit for whatever is asked inside a future; a command sets none. A read that
//! takes longer is ended where it runs: SQLite is interrupted, a Postgres connection is dropped. Then
//! the answer is [`StoreError::Late`], which says so.

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use sqlx::pool::PoolConnection;
use sqlx::{Database, Either, Execute, Executor, Pool, Postgres, SqlStr, Sqlite};
use tokio::time::Instant;

use super::StoreError;

tokio::task_local! {
    static LIMIT: Duration;
}

/// Runs what asks the database, each of its reads within a limit.
pub async fn within<F: Future>(limit: Duration, asking: F) -> F::Output {
    LIMIT.scope(limit, asking).await
}

/// Steps of SQLite's machine between two looks at the clock: some 50 µs.
const STEPS: i32 = 2_000;
/// SQLite is ended by its own look at the clock, Postgres by its own limit: this is for the case that
/// neither says anything any more.
const GRACE: Duration = Duration::from_millis(250);

/// A pool whose reads end in time.
pub struct Timed<DB: Database>(Pool<DB>);

/// What a database can do to end a read.
pub trait Ends: Database {
    /// Tells a connection until when its next read may last; `None`: as long as it takes.
    fn until(conn: &mut Self::Connection, until: Option<Instant>) -> BoxFuture<'_, sqlx::Result<()>>;

    /// Whether an error says that a read was ended.
    fn was_ended(code: &str) -> bool;

    /// Gives up a connection that is in the middle of a read.
    fn give_up(conn: PoolConnection<Self>)
    where
        Self: Sized;
}

impl Ends for Sqlite {
    fn until(conn: &mut Self::Connection, until: Option<Instant>) -> BoxFuture<'_, sqlx::Result<()>> {
        Box::pin(async move {
            let mut handle = conn.lock_handle().await?;
            match until {
                Some(until) => handle.set_progress_handler(STEPS, move || Instant::now() < until),
                None => handle.remove_progress_handler(),
            }
            Ok(())
        })
    }

    fn was_ended(code: &str) -> bool {
        code == "9"
    }

    /// It keeps its place in the pool until it is closed: a file is opened anew only once nobody of ours has
    /// the one before.
    fn give_up(mut conn: PoolConnection<Self>) {
        conn.close_on_drop();
    }
}

impl Ends for Postgres {
    fn until(_: &mut Self::Connection, _: Option<Instant>) -> BoxFuture<'_, sqlx::Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn was_ended(code: &str) -> bool {
        code == "57014"
    }

    /// Its socket is closed at once: to take leave of a server that still works would take as long as that.
    fn give_up(conn: PoolConnection<Self>) {
        drop(conn.detach());
    }
}

/// Says in an error of the driver that a limit passed.
#[derive(Debug)]
struct Passed(Duration);

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer within {:?}", self.0)
    }
}

impl std::error::Error for Passed {}

fn passed(limit: Duration) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, Passed(limit)))
}

/// Returns an error that says so, where a database ended a read for this limit.
pub(super) fn ended<DB: Ends>(error: sqlx::Error, limit: Duration) -> sqlx::Error {
    match &error {
        sqlx::Error::Database(why) if why.code().is_some_and(|code| DB::was_ended(&code)) => passed(limit),
        _ => error,
    }
}

/// Returns what an error of the driver says, where a limit passed.
pub(super) fn late(error: &sqlx::Error) -> Option<StoreError> {
    let sqlx::Error::Io(error) = error else { return None };
    error.get_ref()?.downcast_ref::<Passed>().map(|passed| StoreError::Late(passed.0))
}

/// A connection that is closed unless what was asked of it was answered: nobody would know what it is in
/// the middle of.
struct Lent<DB: Ends>(Option<PoolConnection<DB>>);

impl<DB: Ends> Drop for Lent<DB> {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take() {
            DB::give_up(conn);
        }
    }
}

type Step<DB> = Either<<DB as Database>::QueryResult, <DB as Database>::Row>;

impl<DB: Ends> Timed<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    /// Makes it of a pool.
    pub fn new(pool: Pool<DB>) -> Self {
        Self(pool)
    }

    /// Returns the pool itself, for an operation that ends in time by other means.
    pub(super) const fn plain(&self) -> &Pool<DB> {
        &self.0
    }

    async fn all<'q, E: Execute<'q, DB> + 'q>(pool: Pool<DB>, query: E) -> sqlx::Result<Vec<Step<DB>>> {
        let Ok(limit) = LIMIT.try_with(|limit| *limit) else {
            let mut lent = Lent(Some(pool.acquire().await?));
            return Self::ask(&mut lent, None, query).await;
        };
        let until = Instant::now() + limit;
        let asking = async {
            let mut lent = Lent(Some(pool.acquire().await?));
            Self::ask(&mut lent, Some(until), query).await
        };
        match tokio::time::timeout_at(until + GRACE, asking).await {
            Ok(done) => done.map_err(|error| ended::<DB>(error, limit)),
            Err(_) => Err(passed(limit)),
        }
    }

    async fn ask<'q, E: Execute<'q, DB> + 'q>(
        lent: &mut Lent<DB>,
        until: Option<Instant>,
        query: E,
    ) -> sqlx::Result<Vec<Step<DB>>> {
        let Some(conn) = lent.0.as_mut() else { return Ok(Vec::new()) };
        DB::until(conn, until).await?;
        let done = conn.fetch_many(query).try_collect().await;
        // What the database said itself leaves the connection as it was.
        if matches!(done, Ok(_) | Err(sqlx::Error::Database(_))) {
            drop(lent.0.take());
        }
        done
    }
}

impl<DB: Database> Clone for Timed<DB> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<DB: Database> fmt::Debug for Timed<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Timed")
    }
}

impl<'p, DB: Ends> Executor<'p> for &'_ Timed<DB>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    type Database = DB;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Step<DB>>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let asking = Timed::all(self.0.clone(), query);
        let rows = stream::once(asking).map_ok(|rows| stream::iter(rows.into_iter().map(Ok)));
        rows.try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<DB::Row>>>
    where
        'p: 'e,
        E: 'q + Execute<'q, DB>,
    {
        let asking = Timed::all(self.0.clone(), query);
        Box::pin(async move { Ok(asking.await?.into_iter().find_map(Either::right)) })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [DB::TypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<DB::Statement>>
    where
        'p: 'e,
    {
        let pool = self.0.clone();
        Box::pin(async move { pool.acquire().await?.prepare_with(sql, parameters).await })
    }
}
