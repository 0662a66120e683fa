//! The databases of a run: a folder for SQLite files, a database of its own on a Postgres server.
//!
//! Nothing of the user's is touched, and all of it is gone at the end.

use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use tempfile::TempDir;

use super::child::Start;
use super::prompt;
use crate::cli::exit::{Exit, Stop};
use crate::cli::out::number;

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Kind {
    /// A file of its own, synchronous=FULL
    Sqlite,
    /// A database of its own on the server of --postgres
    Postgres,
}

impl Kind {
    /// Its name.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }

    /// Returns the text that is meant for this database.
    pub(super) const fn either<'a>(self, sqlite: &'a str, postgres: &'a str) -> &'a str {
        match self {
            Self::Sqlite => sqlite,
            Self::Postgres => postgres,
        }
    }
}

/// How long a server may take to answer at the start.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Where the databases are made.
pub(super) struct Place {
    folder: TempDir,
    server: Option<Server>,
    made: usize,
}

/// A database on somebody's server, and how it is made and dropped.
struct Server {
    admin: PgConnectOptions,
    url: String,
    name: String,
}

impl Place {
    /// Makes the folder, and the database where a server is named.
    pub(super) async fn make(folder: Option<&Path>, postgres: Option<&str>) -> anyhow::Result<Self> {
        let parent = folder.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let folder = tempfile::Builder::new()
            .prefix("promptmill-bench-")
            .tempdir_in(&parent)
            .with_context(|| format!("cannot make a folder in {}", parent.display()))?;
        let server = match postgres {
            Some(url) => Some(Server::make(url).await?),
            None => None,
        };
        Ok(Self { folder, server, made: 0 })
    }

    /// The folder that everything of the run is in.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Makes a database with our tables in it, and nothing else; the one before goes.
    pub(super) async fn fresh(&mut self, kind: Kind, mill: &Start) -> anyhow::Result<Database> {
        self.made += 1;
        let database = match (kind, &self.server) {
            (Kind::Postgres, Some(server)) => {
                let options = PgConnectOptions::from_str(&server.url)?;
                let mut conn = PgConnection::connect_with(&options).await?;
                // Whoever is still there, a worker that was killed, say, would be waited for.
                conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                      WHERE datname = current_database() AND pid <> pg_backend_pid()",
                )
                .await?;
                conn.execute("SET client_min_messages = warning; DROP SCHEMA IF EXISTS promptmill CASCADE")
                    .await?;
                conn.close().await?;
                Database::postgres(&server.url)?
            }
            (Kind::Postgres, None) => unreachable!("Postgres is measured only where a server is named"),
            (Kind::Sqlite, _) => {
                let file = |number: usize| self.folder.path().join(format!("bench-{number}.db"));
                for suffix in ["", "-wal", "-shm"] {
                    let mut old = file(self.made - 1).into_os_string();
                    old.push(suffix);
                    // There may be none.
                    drop(std::fs::remove_file(old));
                }
                Database::sqlite(&file(self.made))
            }
        };
        mill.start(&["migrate"], &[("DATABASE_URL", &database.url)])?.wait().await?;
        Ok(database)
    }

    /// Refuses where fewer bytes are free than a database needs; where that cannot be seen from here, nothing.
    pub(super) async fn has_room(&self, database: &Database, needed: usize) -> anyhow::Result<()> {
        let folder = match &database.pool {
            Pool::Sqlite(_) => self.folder.path().to_owned(),
            // Only some roles are told, and the folder may be another machine's.
            Pool::Postgres(pool) => {
                let folder = sqlx::query_scalar("SHOW data_directory").fetch_one(pool).await;
                PathBuf::from(folder.unwrap_or_else(|_| String::new()))
            }
        };
        let free = rustix::fs::statvfs(&folder).map_or(u64::MAX, |space| space.f_bavail * space.f_frsize);
        if free < needed as u64 {
            return Err(Stop::failure(format!(
                "{} needs about {} MB on the disk for this, and {} MB are free: fewer --millions need less",
                database.kind.as_str(),
                number(needed as i64 / 1_000_000),
                number(free as i64 / 1_000_000)
            )));
        }
        Ok(())
    }

    /// What is there, for the record: versions, and the settings that durability hangs on.
    pub(super) async fn describe(&self, kinds: &[Kind]) -> anyhow::Result<(Value, Value)> {
        let (mut versions, mut settings) = (json!({ "promptmill": env!("CARGO_PKG_VERSION") }), json!({}));
        if kinds.contains(&Kind::Sqlite) {
            let memory = SqlitePool::connect("sqlite::memory:").await?;
            let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&memory).await?;
            versions["sqlite"] = version.into();
            settings["sqlite"] = json!({ "journal_mode": "wal", "synchronous": "full" });
        }
        if let Some(server) = &self.server {
            let mut conn = PgConnection::connect_with(&server.admin).await?;
            let mut read = json!({});
            for name in ["fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size"]
            {
                let value: String =
                    sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(&mut conn).await?;
                read[name] = value.into();
            }
            let version: String =
                sqlx::query_scalar("SELECT current_setting('server_version')").fetch_one(&mut conn).await?;
            versions["postgres"] = version.into();
            settings["postgres"] = read;
            conn.close().await?;
        }
        Ok((versions, settings))
    }

    /// Takes everything away again.
    pub(super) async fn remove(self) -> anyhow::Result<()> {
        if let Some(server) = self.server {
            server.drop_database().await.with_context(|| {
                format!("the database {} is left on the server: drop it yourself", server.name)
            })?;
        }
        let folder = self.folder.path().to_owned();
        self.folder.close().with_context(|| format!("{} is left: remove it yourself", folder.display()))
    }
}

impl Server {
    async fn make(url: &str) -> anyhow::Result<Self> {
        // The driver's words may hold the password.
        let unusable = || Stop::usage("--postgres is not a Postgres URL: postgres://USER@HOST/DATABASE");
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(unusable());
        }
        let admin = PgConnectOptions::from_str(url).map_err(|_| unusable())?;
        let name = format!("promptmill_bench_{}", std::process::id());
        let mut inner = reqwest::Url::parse(url).map_err(|_| unusable())?;
        inner.set_path(&name);
        let server = Self { admin, url: inner.into(), name };
        server.admin(&format!("CREATE DATABASE {}", server.name)).await?;
        Ok(server)
    }

    async fn admin(&self, sql: &str) -> anyhow::Result<()> {
        let refused = |exit, sentence| anyhow::Error::from(Stop { exit, sentence });
        let connect = PgConnection::connect_with(&self.admin);
        let mut conn = tokio::time::timeout(CONNECT_MAX, connect)
            .await
            .map_err(|_| refused(Exit::Unreachable, "the server of --postgres does not answer".to_owned()))?
            .map_err(|error| {
                let why = said(&error);
                refused(Exit::Unreachable, format!("the server of --postgres cannot be used: {why}"))
            })?;
        conn.execute(AssertSqlSafe(sql.to_owned())).await.map_err(|error| {
            let why = said(&error);
            refused(
                Exit::Failure,
                format!("the server of --postgres gives us no database of our own: {why}; name a role that may CREATE DATABASE"),
            )
        })?;
        conn.close().await?;
        Ok(())
    }

    async fn drop_database(&self) -> anyhow::Result<()> {
        self.admin(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name)).await
    }
}

/// Returns what the database said, without the driver's words around it.
pub(super) fn said(error: &sqlx::Error) -> String {
    error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

/// A database with our tables in it.
pub(super) struct Database {
    /// Which.
    pub(super) kind: Kind,
    /// What `DATABASE_URL` says.
    pub(super) url: String,
    /// Connections of ours.
    pub(super) pool: Pool,
}

/// Connections to it, beside those of the mill.
#[derive(Clone)]
pub(super) enum Pool {
    /// To a file.
    Sqlite(SqlitePool),
    /// To a server, where our tables are found without their schema.
    Postgres(PgPool),
}

impl Database {
    fn sqlite(file: &Path) -> Self {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .foreign_keys(false)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(30));
        let pool = SqlitePoolOptions::new().max_connections(2).connect_lazy_with(options);
        Self { kind: Kind::Sqlite, url: format!("sqlite:{}", file.display()), pool: Pool::Sqlite(pool) }
    }

    fn postgres(url: &str) -> anyhow::Result<Self> {
        let options = PgConnectOptions::from_str(url)?.options([("search_path", "promptmill,pg_temp")]);
        let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(options);
        Ok(Self { kind: Kind::Postgres, url: url.to_owned(), pool: Pool::Postgres(pool) })
    }

    /// Runs a statement, or several.
    pub(super) async fn run(&self, sql: &str) -> anyhow::Result<u64> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        Ok(match &self.pool {
            Pool::Sqlite(pool) => pool.execute(sql).await?.rows_affected(),
            Pool::Postgres(pool) => pool.execute(sql).await?.rows_affected(),
        })
    }

    /// Returns the one number that a query gives.
    pub(super) async fn number(&self, sql: &str) -> anyhow::Result<i64> {
        let sql = AssertSqlSafe(sql.to_owned());
        Ok(match &self.pool {
            Pool::Sqlite(pool) => sqlx::query_scalar(sql).fetch_one(pool).await?,
            Pool::Postgres(pool) => sqlx::query_scalar(sql).fetch_one(pool).await?,
        })
    }

    /// Inserts so many jobs and lets the database come to rest.
    pub(super) async fn fill(&self, jobs: usize, bytes: usize) -> anyhow::Result<()> {
        self.insert(jobs, bytes).await?;
        self.rest().await
    }

    /// Inserts so many jobs whose prompts end with this text.
    pub(super) async fn insert_with(&self, jobs: usize, end: &str) -> anyhow::Result<()> {
        Self::insert_ending(&self.pool, jobs, end).await
    }

    /// Inserts so many jobs whose prompts have about so many bytes, as a person would: in one statement.
    pub(super) async fn insert(&self, jobs: usize, bytes: usize) -> anyhow::Result<()> {
        Self::insert_into(&self.pool, jobs, bytes).await
    }

    /// The same on connections alone.
    pub(super) async fn insert_into(pool: &Pool, jobs: usize, bytes: usize) -> anyhow::Result<()> {
        Self::insert_ending(pool, jobs, &prompt::filler(bytes)).await
    }

    async fn insert_ending(pool: &Pool, jobs: usize, end: &str) -> anyhow::Result<()> {
        const SQL: &str = "INSERT INTO jobs (prompt)
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1)
             SELECT $2 || i || $3 FROM n";
        let jobs = jobs as i64;
        match pool {
            Pool::Sqlite(pool) => {
                sqlx::query(SQL).bind(jobs).bind(prompt::START).bind(end).execute(pool).await?;
            }
            Pool::Postgres(pool) => {
                sqlx::query(SQL).bind(jobs).bind(prompt::START).bind(end).execute(pool).await?;
            }
        }
        Ok(())
    }

    /// Brings what was written to its place, so that no measurement pays for the one before.
    pub(super) async fn rest(&self) -> anyhow::Result<()> {
        match self.kind {
            Kind::Sqlite => drop(self.run("PRAGMA wal_checkpoint(TRUNCATE)").await?),
            // Not every role that may create databases may say this.
            Kind::Postgres => drop(self.run("CHECKPOINT").await),
        }
        Ok(())
    }

    /// Where the log stands, in bytes; `None` on SQLite, whose log begins anew all the time.
    pub(super) async fn wal(&self) -> anyhow::Result<Option<i64>> {
        match self.kind {
            Kind::Sqlite => Ok(None),
            Kind::Postgres => {
                self.number("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint").await.map(Some)
            }
        }
    }

    /// How many bytes it takes on the disk.
    pub(super) async fn size(&self) -> anyhow::Result<u64> {
        let sql = self.kind.either(
            "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
            "SELECT pg_database_size(current_database())::bigint",
        );
        Ok(self.number(sql).await?.unsigned_abs())
    }

    /// Holds the tables against what was to come of it: each job complete, with one call.
    pub(super) async fn check(&self, jobs: usize) -> anyhow::Result<()> {
        let complete =
            self.number("SELECT count(*) FROM results WHERE outcome = 'complete' AND text <> ''").await?;
        let calls = self.number("SELECT count(*) FROM calls WHERE stop_reason = 'end_turn'").await?;
        let all = self.number("SELECT count(*) FROM calls").await?;
        if [complete, calls, all] != [jobs as i64; 3] {
            return Err(Stop::failure(format!(
                "the run does not count: {complete} complete results and {calls} whole calls of {all} for {jobs} jobs"
            )));
        }
        Ok(())
    }
}
