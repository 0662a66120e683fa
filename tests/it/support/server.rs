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
    PgConnectOptions::from_str(&url()).expect("PROMPTMILL_TEST_POSTGRES is a postgres:// URL")
}

/// Returns a name that no other test uses, in this process or beside it.
pub fn fresh_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("mill_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Runs SQL as the superuser in the server's own database.
pub async fn admin(sql: String) {
    let mut connection = PgConnection::connect_with(&options()).await.expect("the test server answers");
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.expect("the superuser's SQL runs");
    connection.close().await.expect("the connection closes");
}
