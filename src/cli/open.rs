//! What every command starts with: the configuration, and the database behind it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::exit::{Exit, Stop};
use super::out::say;
use crate::config::{Config, Flags};
use crate::store::{self, Database, Desk, Migrate, Opened, StoreError};

/// Pause between two tries to reach the database.
const TRY_AGAIN: Duration = Duration::from_millis(500);

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
        let config = self.load()?;
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
        Ok(desk_of(&open(&config, migrate).await?))
    }
}

/// Returns the people's side of an open database.
pub fn desk_of(opened: &Opened) -> Arc<dyn Desk> {
    match &opened.database {
        Database::Sqlite(desk) => Arc::clone(desk) as Arc<dyn Desk>,
        Database::Postgres(desk) => Arc::clone(desk) as Arc<dyn Desk>,
    }
}

/// Opens the database; tries again while it is out of reach, for `database.connect_seconds`.
pub async fn open(config: &Config, migrate: Migrate) -> anyhow::Result<Opened> {
    let url = config.database.url.expose();
    let began = Instant::now();
    let mut told = false;
    loop {
        match store::open(&url, &config.database.store, migrate).await {
            Ok(opened) => return Ok(opened),
            Err(StoreError::Unavailable(why)) => {
                let place = &config.database.url;
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
