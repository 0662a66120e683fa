//! One database operation, from a connection out of the pool to an answer or an error of ours.
//!
//! Every operation runs as a task of its own, so that a caller who goes away cannot leave a
//! connection in the middle of a statement; one that takes too long loses its connection, which is
//! never used again. Deadlocks, serialisation failures and a busy SQLite file are tried again here.
//! Nothing else in the store may put a time limit or a `select!` around a database future.

use std::future::Future;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::pool::PoolConnection;
use sqlx::{Connection as _, Database, Pool};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::StoreError;

/// What to do with a connection: a plain function of it and of the parameters, so that it can be
/// done again.
pub(crate) type Work<C, P, T> = for<'a> fn(&'a mut C, &'a P) -> BoxFuture<'a, sqlx::Result<T>>;

/// Tries of one operation that meets a deadlock, a serialisation failure or a busy file.
const TRIES_MAX: u32 = 6;

/// Runs an operation on a connection of the pool, within `limit`, as its own task.
///
/// # Errors
/// [`StoreError::Unavailable`] where the limit passed: what was asked may or may not have happened.
pub(crate) async fn run<DB, P, T>(
    pool: &Pool<DB>,
    limit: Duration,
    params: P,
    work: Work<DB::Connection, P, T>,
) -> Result<T, StoreError>
where
    DB: Database,
    P: Send + Sync + 'static,
    T: Send + 'static,
{
    let pool = pool.clone();
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the store's one helper; a panic is passed on below"
    )]
    let task = tokio::spawn(async move { attempts(&pool, limit, &params, work).await });
    match task.await {
        Ok(done) => done,
        Err(gone) if gone.is_panic() => std::panic::resume_unwind(gone.into_panic()),
        Err(_) => Err(StoreError::Unavailable("the process is stopping".to_owned())),
    }
}

async fn attempts<DB, P, T>(
    pool: &Pool<DB>,
    limit: Duration,
    params: &P,
    work: Work<DB::Connection, P, T>,
) -> Result<T, StoreError>
where
    DB: Database,
{
    let until = Instant::now() + limit;
    let mut tries = 1;
    loop {
        let mut conn = pool.acquire().await.map_err(said)?;
        match tokio::time::timeout_at(until, work(&mut conn, params)).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) if is_passing(&error) && tries < TRIES_MAX && Instant::now() < until => {
                drop(conn);
                let pause = Duration::from_millis(fastrand::u64(1..=10 * u64::from(tries)));
                tokio::time::sleep(pause).await;
                tries += 1;
            }
            Ok(Err(error)) => {
                // Postgres says why it refuses before it lets go of the rows: wait until it has.
                if is_final(&error)
                    || !matches!(tokio::time::timeout_at(until, conn.ping()).await, Ok(Ok(())))
                {
                    hang_up(pool, conn);
                }
                return Err(said(error));
            }
            Err(_) => {
                hang_up(pool, conn);
                return Err(StoreError::Unavailable(format!("no answer within {limit:?}")));
            }
        }
    }
}

/// Drops a connection instead of giving it back: nobody knows what it is in the middle of. Those that
/// idle beside it go too: what befell the one has most likely befallen them, and to find that out one
/// by one would cost an operation each.
fn hang_up<DB: Database>(pool: &Pool<DB>, conn: PoolConnection<DB>) {
    drop(conn.detach());
    while let Some(idle) = pool.try_acquire() {
        drop(idle.detach());
    }
}

/// Whether a connection is of no use after an error, even if it answers.
fn is_final(error: &sqlx::Error) -> bool {
    match error {
        // Read-only: the old primary of a failover goes on answering for as long as it is asked.
        sqlx::Error::Database(error) => {
            error.code().is_some_and(|code| code == "25006" || code.starts_with("57P"))
        }
        sqlx::Error::RowNotFound => false,
        _ => true,
    }
}

/// Waits for what is done on a connection that is dropped where the limit passes.
pub(crate) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(StoreError::Unavailable(format!("no answer within {limit:.1?}"))),
    }
}

/// Whether the same operation may succeed if it is simply tried again.
fn is_passing(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    match error.code().as_deref() {
        Some("40001" | "40P01") => true,
        Some(code) => matches!(sqlite_code(code), Some(5 | 6)),
        None => false,
    }
}

/// The primary result code of SQLite, where the code is one: Postgres' codes have five characters.
fn sqlite_code(code: &str) -> Option<u32> {
    if code.len() == 5 { None } else { code.parse::<u32>().ok().map(|code| code & 0xff) }
}

/// Sorts what the driver said into what a caller can do about it.
#[expect(clippy::needless_pass_by_value, reason = "stands in map_err")]
pub(crate) fn said(error: sqlx::Error) -> StoreError {
    if let Some(late) = super::timed::late(&error) {
        return late;
    }
    match &error {
        sqlx::Error::Database(inner) => {
            let text = inner.message().to_owned();
            match inner.code().as_deref() {
                Some(code) => by_code(code, text),
                None => StoreError::Database(text),
            }
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Protocol(_) => StoreError::Unavailable(error.to_string()),
        _ => StoreError::Database(error.to_string()),
    }
}

fn by_code(code: &str, text: String) -> StoreError {
    if let Some(primary) = sqlite_code(code) {
        return match primary {
            // READONLY, which a person has to mend
            8 => StoreError::Unavailable(format!(
                "{text}: see that this user may write the file and into its folder"
            )),
            // BUSY, LOCKED, NOMEM, INTERRUPT, IOERR, FULL, CANTOPEN, PROTOCOL
            5..=7 | 9..=10 | 13..=15 => StoreError::Unavailable(text),
            // TOOBIG, CONSTRAINT, MISMATCH
            18..=20 => StoreError::Refused(text),
            _ => StoreError::Database(text),
        };
    }
    match (code.get(..2), code) {
        // 57014: our own statement_timeout; 55P03: lock_timeout
        (Some("08" | "53"), _) | (_, "25006" | "57014" | "55P03" | "40001" | "40P01") => {
            StoreError::Unavailable(text)
        }
        (_, "42501") => StoreError::Denied(text),
        _ if code.starts_with("57P") => StoreError::Unavailable(text),
        (Some("28" | "3D"), _) => StoreError::NoEntry(text),
        // Beside the data's own classes: what a trigger or a check of somebody's own says of a row.
        (Some("09" | "21" | "22" | "23" | "27" | "38" | "39" | "44" | "54" | "P0"), _) => {
            StoreError::Refused(text)
        }
        _ => StoreError::Database(text),
    }
}

/// A task that ends with the store that started it.
pub(crate) struct Background(JoinHandle<()>);

impl Background {
    /// Starts it.
    #[expect(clippy::disallowed_methods, reason = "kept by its handle; it only waits and wakes")]
    pub(crate) fn start(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_says_who_must_act() {
        let kind = |code: &str| match by_code(code, String::new()) {
            StoreError::Unavailable(_) => "unavailable",
            StoreError::Refused(_) => "refused",
            StoreError::NoEntry(_) => "no entry",
            StoreError::Denied(_) => "denied",
            _ => "database",
        };
        for (code, expected) in [
            ("08006", "unavailable"),
            ("53300", "unavailable"),
            ("57P01", "unavailable"),
            ("57014", "unavailable"),
            ("25006", "unavailable"),
            ("40P01", "unavailable"),
            ("42501", "denied"),
            ("42601", "database"),
            ("28P01", "no entry"),
            ("28000", "no entry"),
            ("3D000", "no entry"),
            ("22021", "refused"),
            ("22P02", "refused"),
            ("23514", "refused"),
            ("P0001", "refused"),
            ("44000", "refused"),
            ("42P01", "database"),
            ("5", "unavailable"),
            ("261", "unavailable"),
            ("13", "unavailable"),
            ("2067", "refused"),
            ("275", "refused"),
            ("20", "refused"),
            ("1", "database"),
        ] {
            assert_eq!(kind(code), expected, "{code}");
        }
    }
}
