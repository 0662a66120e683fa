//! A database of its own for each test, with the tables of the migrations in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Column, Executor, Row as _, Statement};
use tempfile::TempDir;

use super::{server, shell};

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    Sqlite,
    /// A schema of the test server.
    Postgres,
}

/// A row, every value as text; `NULL` for NULL, `t`/`f` for a Postgres boolean.
pub type Row = Vec<String>;

/// The database of one test.
pub struct Ground {
    kind: Kind,
    schema: String,
    /// Of the server, where it is Postgres.
    url: String,
    pool: Pool,
    file: Option<PathBuf>,
    // Holds the file until the test is over.
    _dir: Option<TempDir>,
}

enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Ground {
    /// Makes a SQLite file with the tables in it.
    pub async fn sqlite() -> Self {
        let ground = Self::empty_sqlite().await;
        let Pool::Sqlite(pool) = &ground.pool else { unreachable!("a SQLite ground has a SQLite pool") };
        migrator(Kind::Sqlite).await.run(pool).await.expect("the migrations run");
        ground
    }

    /// Makes a SQLite file with nothing in it.
    pub async fn empty_sqlite() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let ground = Self::open_file(&dir.path().join("mill.db")).await;
        Self { _dir: Some(dir), ..ground }
    }

    /// Makes a SQLite file with the tables in it, in a folder that is there.
    pub async fn sqlite_in(folder: &Path) -> Self {
        let ground = Self::open_file(&folder.join("mill.db")).await;
        let Pool::Sqlite(pool) = &ground.pool else { unreachable!("a SQLite ground has a SQLite pool") };
        migrator(Kind::Sqlite).await.run(pool).await.expect("the migrations run");
        ground
    }

    /// Opens the SQLite file that stands there, or an empty one.
    pub async fn open_file(file: &Path) -> Self {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .foreign_keys(false)
            .journal_mode(SqliteJournalMode::Wal);
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await.expect("a file");
        let file = Some(file.to_owned());
        Self {
            kind: Kind::Sqlite,
            schema: "main".to_owned(),
            url: String::new(),
            pool: Pool::Sqlite(pool),
            file,
            _dir: None,
        }
    }

    /// Closes our own connections to a SQLite file, which stays.
    pub async fn let_go(&self) {
        if let Pool::Sqlite(pool) = &self.pool {
            pool.close().await;
        }
    }

    /// Makes a Postgres schema with the tables in it.
    pub async fn postgres() -> Self {
        Self::postgres_at(&server::url()).await
    }

    /// Makes a schema with the tables in it on the server with this superuser's URL.
    pub async fn postgres_at(url: &str) -> Self {
        let schema = server::fresh_name();
        server::admin_at(url, format!("CREATE SCHEMA {schema}")).await;
        let options = server::options_of(url);
        let pool = pool(options.options([("search_path", format!("{schema}, pg_temp"))])).await;
        // Every test has a schema of its own: the lock of the migrator would only make them wait for each other.
        migrator(Kind::Postgres).await.set_locking(false).run(&pool).await.expect("the migrations run");
        Self {
            kind: Kind::Postgres,
            schema,
            url: url.to_owned(),
            pool: Pool::Postgres(pool),
            file: None,
            _dir: None,
        }
    }

    /// Runs what `promptmill roles` prints for this schema.
    pub async fn grant_roles(&self) {
        // Roles belong to the whole server: two tests must not make them at once.
        let roles = promptmill::store::roles::roles(self.schema(), "promptmill");
        let sql = format!("SELECT pg_advisory_lock(1); {roles}; SELECT pg_advisory_unlock(1)");
        server::admin_at(&self.url, sql).await;
    }

    /// Like [`Ground::url`], for a login that is in the worker's role and may do no more.
    pub async fn worker_url(&self) -> String {
        if self.kind == Kind::Sqlite {
            return self.url();
        }
        self.grant_roles().await;
        let login = "DO $$ BEGIN CREATE ROLE promptmill_e2e LOGIN IN ROLE promptmill_worker;
                     EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$";
        server::admin_at(&self.url, login.to_owned()).await;
        self.url_as("promptmill_e2e")
    }

    /// Like [`Ground::url`] of a Postgres, for another login.
    pub fn url_as(&self, login: &str) -> String {
        let separator = if self.url.contains('?') { '&' } else { '?' };
        format!("{}{separator}user={login}", self.url)
    }

    /// Which database this is.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The Postgres schema that holds the tables.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// The file of a SQLite database.
    pub fn file(&self) -> PathBuf {
        self.file.clone().expect("a SQLite ground has a file")
    }

    /// What `DATABASE_URL` would say. On Postgres the schema is beside it: [`Ground::schema`].
    pub fn url(&self) -> String {
        match self.kind {
            Kind::Sqlite => format!("sqlite:{}", self.file().display()),
            Kind::Postgres => self.url.clone(),
        }
    }

    /// Returns `sqlite` or `postgres`, whichever is meant here.
    pub const fn either<'a>(&self, sqlite: &'a str, postgres: &'a str) -> &'a str {
        match self.kind {
            Kind::Sqlite => sqlite,
            Kind::Postgres => postgres,
        }
    }

    /// Returns the SQL for the database's time plus so many seconds.
    pub fn at(&self, seconds: i64) -> String {
        match self.kind {
            Kind::Sqlite => {
                format!(
                    "(CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER) + {})",
                    seconds * 1000
                )
            }
            Kind::Postgres => format!("(clock_timestamp() + interval '{seconds} seconds')"),
        }
    }

    /// Runs a statement, or several; returns how many rows it changed.
    pub async fn run(&self, sql: &str) -> u64 {
        self.attempt(sql).await.unwrap_or_else(|err| panic!("{err}\nin: {sql}"))
    }

    /// Runs a statement, or several; the error is what the database said.
    pub async fn attempt(&self, sql: &str) -> Result<u64, String> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        match &self.pool {
            Pool::Sqlite(pool) => {
                pool.execute(sql).await.map(|done| done.rows_affected()).map_err(|err| said(&err))
            }
            Pool::Postgres(pool) => {
                pool.execute(sql).await.map(|done| done.rows_affected()).map_err(|err| said(&err))
            }
        }
    }

    /// Runs what has to be refused; returns the sentence.
    pub async fn refused(&self, sql: &str) -> String {
        match self.attempt(sql).await {
            Ok(rows) => panic!("was not refused, but changed {rows} rows: {sql}"),
            Err(sentence) => sentence,
        }
    }

    /// Returns the rows of a query.
    pub async fn rows(&self, sql: &str) -> Vec<Row> {
        let query = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        let rows: Result<Vec<Row>, sqlx::Error> = match &self.pool {
            Pool::Sqlite(pool) => pool.fetch_all(query).await.map(|rows| {
                let text = |row: &sqlx::sqlite::SqliteRow, i| row.get_unchecked::<Option<String>, _>(i);
                rows.iter().map(|row| (0..row.len()).map(|i| or_null(text(row, i))).collect()).collect()
            }),
            Pool::Postgres(pool) => pool.fetch_all(query).await.map(|rows| {
                let text = |row: &sqlx::postgres::PgRow, i| row.get_unchecked::<Option<String>, _>(i);
                rows.iter().map(|row| (0..row.len()).map(|i| or_null(text(row, i))).collect()).collect()
            }),
        };
        rows.unwrap_or_else(|err| panic!("{}\nin: {sql}", said(&err)))
    }

    /// Returns the rows of a query, values joined with `|`.
    pub async fn lines(&self, sql: &str) -> Vec<String> {
        self.rows(sql).await.into_iter().map(|row| row.join("|")).collect()
    }

    /// Returns the one row of a query, values joined with `|`.
    pub async fn line(&self, sql: &str) -> String {
        let mut lines = self.lines(sql).await;
        assert_eq!(lines.len(), 1, "not one row, but {lines:?}: {sql}");
        lines.remove(0)
    }

    /// Returns the names of a query's columns.
    pub async fn columns(&self, relation: &str) -> Vec<String> {
        let sql = sqlx::SqlSafeStr::into_sql_str(AssertSqlSafe(format!("SELECT * FROM {relation}")));
        match &self.pool {
            Pool::Sqlite(pool) => {
                let statement = pool.prepare(sql).await.expect("the relation is there");
                statement.columns().iter().map(|column| column.name().to_owned()).collect()
            }
            Pool::Postgres(pool) => {
                let statement = pool.prepare(sql).await.expect("the relation is there");
                statement.columns().iter().map(|column| column.name().to_owned()).collect()
            }
        }
    }

    /// Feeds SQL to the shell that people have, `sqlite3` or `psql`, as they start it: nothing is set beforehand, so
    /// on Postgres tables are named with their schema.
    pub fn shell(&self, sql: &str) -> Result<String, String> {
        let command = match self.kind {
            Kind::Sqlite => {
                let mut command = Command::new("sqlite3");
                command.arg(self.file());
                command
            }
            Kind::Postgres => {
                let mut command = Command::new("psql");
                command.args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-d"]).arg(&self.url);
                command
            }
        };
        shell::feed(command, sql)
    }

    /// Returns `table` as a person names it from anywhere.
    pub fn table(&self, table: &str) -> String {
        format!("{}.{table}", self.schema)
    }

    /// Connects to the test server with other options than the ground's own.
    pub async fn postgres_pool(change: impl FnOnce(PgConnectOptions) -> PgConnectOptions) -> PgPool {
        pool(change(server::options())).await
    }

    /// Takes the database away again.
    pub async fn close(self) {
        match self.pool {
            Pool::Sqlite(pool) => pool.close().await,
            Pool::Postgres(pool) => {
                pool.close().await;
                let sql = format!("SET client_min_messages = warning; DROP SCHEMA {} CASCADE", self.schema);
                server::admin_at(&self.url, sql).await;
            }
        }
    }
}

async fn pool(options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new().max_connections(4).connect_with(options).await.expect("the test server answers")
}

async fn migrator(kind: Kind) -> Migrator {
    let folder = match kind {
        Kind::Sqlite => "migrations/sqlite",
        Kind::Postgres => "migrations/postgres",
    };
    Migrator::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
        .await
        .expect("the migrations can be read")
}

fn or_null(value: Option<String>) -> String {
    value.unwrap_or_else(|| "NULL".to_owned())
}

/// Returns what the database said, without sqlx's words around it.
fn said(err: &sqlx::Error) -> String {
    err.as_database_error().map_or_else(|| err.to_string(), |err| err.message().to_owned())
}
