//! The private Postgres server that `tests/run` starts.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection, Executor};

/// Returns the URL of the test server, with a superuser in it.
///
/// # Panics
/// Where it is not set: a test on Postgres that is skipped would pass for one that was run.
#[expect(
    clippy::disallowed_methods,
    reason = "the runner says it by this variable, and no configuration is read here"
)]
pub fn url() -> String {
    match std::env::var("PROMPTMILL_TEST_POSTGRES") {
        Ok(url) if !url.is_empty() => url,
        _ => panic!(
            "PROMPTMILL_TEST_POSTGRES is not set: run the tests with tests/run, which starts a private Postgres, or set it to a superuser's URL of a server made for tests"
        ),
    }
}

/// Returns how to reach the test server.
pub fn options() -> PgConnectOptions {
    options_of(&url())
}

/// Returns how to reach a server by its URL.
pub fn options_of(url: &str) -> PgConnectOptions {
    PgConnectOptions::from_str(url).expect("a postgres:// URL, such as PROMPTMILL_TEST_POSTGRES")
}

/// Returns a name that no other test uses, in this process or beside it.
pub fn fresh_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("mill_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Runs SQL in a connection of its own, as the user of the URL. Again, where it met a deadlock: what a
/// process was at when it was killed goes on in the server for a moment, and a schema is dropped table by
/// table.
pub async fn admin_at(url: &str, sql: String) {
    let mut connection = connect(url).await;
    let deadlock = |error: &sqlx::Error| {
        error.as_database_error().is_some_and(|error| error.code() == Some("40P01".into()))
    };
    loop {
        match connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.clone()))).await {
            Err(error) if deadlock(&error) => {}
            done => {
                done.expect("the superuser's SQL runs");
                break;
            }
        }
    }
    connection.close().await.expect("the connection closes");
}

/// Connects as the user of the URL.
pub async fn connect(url: &str) -> PgConnection {
    PgConnection::connect_with(&options_of(url)).await.expect("the test server answers")
}
