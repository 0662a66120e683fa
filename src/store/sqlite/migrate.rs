//! Making, migrating and recognising our SQLite file.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::store::migrations::{self, LATEST, Meta, STEPS, Step};
use crate::store::op::said;
use crate::store::{Migrate, StoreError, StoreSettings};

/// `PRAGMA application_id` of our files, as the first migration sets it.
const APPLICATION_ID: i64 = 1_349_676_396;

/// Tries to put the file into WAL mode while other processes open it too.
const WAL_TRIES_MAX: u32 = 100;

/// What a file is.
enum File {
    /// Nothing in it.
    Empty,
    /// Our tables.
    Ours(Meta),
    /// Somebody else's.
    Foreign,
}

/// Looks at the file, makes or migrates the tables where that is asked for, and returns what it is.
pub(super) async fn prepare(
    file: &str,
    options: &SqliteConnectOptions,
    migrate: Migrate,
) -> Result<Meta, StoreError> {
    if file.is_empty() || file == ":memory:" {
        return Err(StoreError::Schema(
            "promptmill needs a file: several connections cannot share a database in memory".to_owned(),
        ));
    }
    if migrate == Migrate::Never && !Path::new(file).exists() {
        return Err(StoreError::Schema(format!(
            "{file} does not exist: `promptmill run` or `promptmill migrate` makes it"
        )));
    }
    let options = options.clone().create_if_missing(migrate != Migrate::Never);
    let mut conn = options.connect().await.map_err(|error| sentence(file, error))?;
    let done = prepare_on(&mut conn, file, migrate).await;
    // All is written and read by now; how the connection ends changes nothing.
    drop(conn.close().await);
    done
}

async fn prepare_on(conn: &mut SqliteConnection, file: &str, migrate: Migrate) -> Result<Meta, StoreError> {
    let old = match look(conn).await.map_err(|error| sentence(file, error))? {
        File::Foreign => {
            return Err(StoreError::Schema(format!(
                "{file} holds other tables; give promptmill a file of its own"
            )));
        }
        File::Empty => true,
        File::Ours(meta) => meta.version < LATEST,
    };
    if migrate != Migrate::Never {
        wal(conn, file).await?;
        if old {
            make(conn, STEPS).await?;
        }
    }
    match look(conn).await.map_err(|error| sentence(file, error))? {
        File::Ours(meta) => match meta.objection(file) {
            Some(objection) => Err(StoreError::Schema(objection)),
            None => Ok(meta),
        },
        _ => Err(StoreError::Schema(format!("{file} holds no promptmill tables: run `promptmill migrate`"))),
    }
}

/// Returns what `meta` says in a file of ours.
pub(super) async fn ours(conn: &mut SqliteConnection) -> sqlx::Result<Option<Meta>> {
    Ok(match look(conn).await? {
        File::Ours(meta) => Some(meta),
        File::Empty | File::Foreign => None,
    })
}

/// Tells our files from others, before anything is written.
async fn look(conn: &mut SqliteConnection) -> sqlx::Result<File> {
    // In one statement: between two of them another process may make the tables.
    let (id, things): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT application_id FROM pragma_application_id()), (SELECT count(*) FROM sqlite_schema)",
    )
    .fetch_one(&mut *conn)
    .await?;
    if id != APPLICATION_ID {
        return Ok(if things == 0 && id == 0 { File::Empty } else { File::Foreign });
    }
    let (database_id, version, min) =
        sqlx::query_as("SELECT database_id, schema_version, schema_min FROM meta").fetch_one(conn).await?;
    Ok(File::Ours(Meta { database_id, version, min }))
}

/// Runs those of the steps that have not run yet, on a connection of its own.
pub(in crate::store) async fn apply(
    file: &str,
    settings: &StoreSettings,
    steps: &[Step],
) -> Result<(), StoreError> {
    let options = SqliteConnectOptions::new().filename(file).busy_timeout(settings.operation_max / 2);
    let mut conn = options.connect().await.map_err(|error| sentence(file, error))?;
    let done = make(&mut conn, steps).await;
    // All is written by now; how the connection ends changes nothing.
    drop(conn.close().await);
    done
}

/// Runs the migrations inside one transaction that nobody else can be in.
async fn make(conn: &mut SqliteConnection, steps: &[Step]) -> Result<(), StoreError> {
    let mut transaction = conn.begin_with("BEGIN IMMEDIATE").await.map_err(said)?;
    migrations::migrator(steps, |step| step.sqlite)
        .run_direct(None, &mut *transaction, false)
        .await
        .map_err(migrations::refused)?;
    transaction.commit().await.map_err(said)
}

/// Puts the file into WAL mode, once: the mode stays with the file. Another process that opens it
/// at the same moment makes that fail at once, so it is tried again.
async fn wal(conn: &mut SqliteConnection, file: &str) -> Result<(), StoreError> {
    let mut tries = 1;
    loop {
        match sqlx::query_scalar::<_, String>("PRAGMA journal_mode = WAL").fetch_one(&mut *conn).await {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(mode) => {
                return Err(StoreError::Schema(format!(
                    "{file} cannot be put into WAL mode (it stays in {mode:?}): is it on a network file system?"
                )));
            }
            Err(error) => match said(error) {
                StoreError::Unavailable(_) if tries < WAL_TRIES_MAX => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(5..=50))).await;
                }
                other => return Err(other),
            },
        }
    }
}

/// Names the file where the driver does not.
fn sentence(file: &str, error: sqlx::Error) -> StoreError {
    // 26: SQLITE_NOTADB
    let not_ours = error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("26"));
    if not_ours {
        return StoreError::Schema(format!("{file} is not a SQLite file; give promptmill a file of its own"));
    }
    // 14: SQLITE_CANTOPEN
    let closed = error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("14"));
    match said(error) {
        StoreError::Unavailable(_) if closed => StoreError::Unavailable(format!(
            "{file} cannot be opened: see that its folder exists and that this user may write into it"
        )),
        StoreError::Unavailable(why) => StoreError::Unavailable(format!("{file}: {why}")),
        other => other,
    }
}
