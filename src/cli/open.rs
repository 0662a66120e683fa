//! What every command starts with: the configuration, and the database behind it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::exit::{Exit, Stop};
use super::out::say;
use crate::config::{Config, DatabaseUrl, Flags};
use crate::store::{self, Database, Desk, Migrate, Opened, StoreError, StoreSettings};

/// Pause between two tries to reach the database.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// Shortest time that one try gets, however little of `database.connect_seconds` is left.
const TRY_MIN: Duration = Duration::from_secs(1);
/// Longest time of a try that another follows.
const TRY_MAX: Duration = Duration::from_secs(5);

/// What the global options say.
#[derive(Debug)]
pub struct Context {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--json`.
    pub json: bool,
}

/// What to do about a SQLite file that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// Make it.
    Create,
    /// Say so.
    Refuse,
}

impl Context {
    /// Returns what the global options say.
    pub const fn new(config: Option<PathBuf>, json: bool) -> Self {
        Self { config, json }
    }

    /// Returns what the configuration is to be loaded with.
    pub fn flags(&self) -> Flags {
        Flags { config_file: self.config.clone(), ..Flags::default() }
    }

    /// Loads the configuration.
    pub fn load(&self) -> anyhow::Result<Config> {
        self.load_with(&self.flags())
    }

    /// Loads the configuration with more flags than the global ones.
    pub fn load_with(&self, flags: &Flags) -> anyhow::Result<Config> {
        Config::load(flags).map_err(|error| Stop { exit: Exit::Config, sentence: error.to_string() }.into())
    }

    /// Opens the database of the configuration for a command.
    pub async fn desk(&self, absent: Absent) -> anyhow::Result<Arc<dyn Desk>> {
        Ok(desk_of(&self.opened(&self.load()?, absent).await?))
    }

    /// Opens the database of a configuration.
    pub async fn opened(&self, config: &Config, absent: Absent) -> anyhow::Result<Opened> {
        let mut migrate = Migrate::Never;
        if let Some(file) = config.database.url.file() {
            // An empty file is what a failed start, or `touch`, leaves behind.
            let there = file.metadata().is_ok_and(|file| file.len() > 0);
            match absent {
                Absent::Create if !there => migrate = Migrate::Serve,
                Absent::Refuse if !there => {
                    return Err(Stop {
                        exit: Exit::Schema,
                        sentence: format!(
                            "no database at {}: `promptmill run` or `promptmill enqueue` creates it",
                            file.display()
                        ),
                    }
                    .into());
                }
                _ => {}
            }
        }
        open_directly(config, migrate).await
    }
}

/// Returns the people's side of an open database.
pub fn desk_of(opened: &Opened) -> Arc<dyn Desk> {
    match &opened.database {
        Database::Sqlite(desk) => Arc::clone(desk) as Arc<dyn Desk>,
        Database::Postgres(desk) => Arc::clone(desk) as Arc<dyn Desk>,
    }
}

/// Opens the database as the daemon does, through the pooler if there is one.
pub async fn open(config: &Config, migrate: Migrate) -> anyhow::Result<Opened> {
    open_at(config, &config.database.url, &config.database.store, migrate).await
}

/// Opens the database past the pooler: what people's commands and migrations leave on a connection
/// must not meet the daemon.
pub async fn open_directly(config: &Config, migrate: Migrate) -> anyhow::Result<Opened> {
    let database = &config.database;
    let settings = StoreSettings { transaction_pooler: false, ..database.store.clone() };
    match &database.direct_url {
        Some(url) => open_at(config, url, &settings, migrate).await,
        None if database.store.transaction_pooler => {
            let sentence =
                "this command goes past the pooler: set database.direct_url to a Postgres URL that \
                            leads to the server itself"
                    .to_owned();
            Err(Stop { exit: Exit::Config, sentence }.into())
        }
        None => open_at(config, &database.url, &settings, migrate).await,
    }
}

/// Opens the database of a configuration past the pooler, in one try, for who tries again by himself.
pub async fn once(config: &Config) -> Result<Opened, StoreError> {
    let database = &config.database;
    if let Some(file) = database.url.file().filter(|file| !file.is_file()) {
        return Err(StoreError::Unavailable(format!("there is no file {}", file.display())));
    }
    let place = database.direct_url.as_ref().unwrap_or(&database.url);
    let connect_max = TRY_MAX.min(database.store.operation_max);
    let settings = StoreSettings { transaction_pooler: false, connect_max, ..database.store.clone() };
    store::open(&place.expose(), &settings, Migrate::Never).await
}

/// Opens a database; tries again while it is out of reach, for `database.connect_seconds`.
async fn open_at(
    config: &Config,
    place: &DatabaseUrl,
    settings: &StoreSettings,
    migrate: Migrate,
) -> anyhow::Result<Opened> {
    let url = place.expose();
    let began = Instant::now();
    let mut told = false;
    loop {
        let left = config.database.connect.saturating_sub(began.elapsed());
        let connect_max = left.max(TRY_MIN).min(settings.operation_max);
        match store::open(&url, &StoreSettings { connect_max, ..settings.clone() }, migrate).await {
            Ok(opened) => return Ok(opened),
            Err(StoreError::NoEntry(why)) => {
                let sentence = format!("the database {place} does not let us in: {why}");
                return Err(Stop { exit: Exit::Unreachable, sentence }.into());
            }
            Err(StoreError::Unavailable(why)) => {
                if began.elapsed() + TRY_AGAIN > config.database.connect {
                    let sentence = format!("the database {place} cannot be reached: {why}");
                    return Err(Stop { exit: Exit::Unreachable, sentence }.into());
                }
                if !told {
                    told = true;
                    let seconds = config.database.connect.as_secs();
                    say(&format!(
                        "the database {place} cannot be reached yet ({why}); trying for {seconds} s"
                    ));
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}
