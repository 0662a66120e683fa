//! The configuration: what was set, checked, and typed. The only reader of the environment.
//!
//! Layers, later wins: the built-in `default.toml`, a file, the environment, flags ([`layers`]).
//! Which settings there are stands in `default.toml` alone ([`mod@knobs`]). Everything wrong is found
//! at once ([`ConfigError`]), and no secret can be printed from here ([`DatabaseUrl`], [`key`]).

mod build;
mod database_url;
mod key;
mod knobs;
mod layers;
mod names;
mod otel;
mod problem;
mod read;
mod sections;
mod tools;

use std::path::PathBuf;

pub use database_url::DatabaseUrl;
pub use key::{Auth, Credential, KeyError, KeyPlace, KeySource, NO_KEY};
pub use knobs::{DEFAULT_TOML, Knob, knobs, table};
pub use layers::Surroundings;
pub use otel::OtelSettings;
pub use problem::{ConfigError, Problem};
pub use read::{Entry, MASK, part};
pub use sections::{
    ApiSettings, BreakerSettings, DatabaseSettings, DefaultSettings, LogFormat, LogSettings, MetricsSettings,
    Model, Models, Profiles, Queue, Queues, RetrySettings, WebSettings, WorkerSettings,
};

use crate::domain::retention::Retention;
use crate::worker::tools::ToolSettings;

/// What the command line says about the configuration.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config`.
    pub config_file: Option<PathBuf>,
    /// `--concurrency`.
    pub concurrency: Option<usize>,
    /// Other settings, as (`section.key`, value).
    pub settings: Vec<(String, String)>,
}

/// The effective configuration. Its `Debug` tells no secret.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the tables are.
    pub database: DatabaseSettings,
    /// Where the API is and how to talk to it.
    pub api: ApiSettings,
    /// How much at once, and for how long.
    pub worker: WorkerSettings,
    /// Pauses between tries.
    pub retry: RetrySettings,
    /// When to stop asking.
    pub breaker: BreakerSettings,
    /// What a job that says nothing gets.
    pub defaults: DefaultSettings,
    /// What is known of models.
    pub models: Models,
    /// How long done jobs are kept.
    pub retention: Retention,
    /// More accounts.
    pub profiles: Profiles,
    /// What is set for single queues.
    pub queues: Queues,
    /// What jobs may have run.
    pub tools: Vec<ToolSettings>,
    /// The web page.
    pub web: WebSettings,
    /// Metrics and health.
    pub metrics: MetricsSettings,
    /// What is logged.
    pub log: LogSettings,
    /// What is traced.
    pub otel: OtelSettings,
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    /// All effective values in the order of `default.toml`, each with where it came from.
    pub entries: Vec<Entry>,
    /// What is probably a mistake, but no reason to stop: one sentence each.
    pub warnings: Vec<String>,
}

impl Config {
    /// Names an account that is not that of `[api]`, for the beginning of a sentence.
    pub fn whose(&self, account: &ApiSettings) -> String {
        if account.profile == self.api.profile {
            String::new()
        } else {
            format!("profile {}: ", account.profile)
        }
    }

    /// All accounts: that of `[api]`, then the others by name.
    pub fn accounts(&self) -> impl Iterator<Item = &ApiSettings> {
        [&self.api].into_iter().chain(self.profiles.0.values())
    }

    /// Loads the configuration of this process.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        Self::load_from(flags, &Surroundings::of_process())
    }

    /// Loads the configuration from given surroundings. With [`Surroundings::default`] and a flag
    /// or two it is one that nothing outside can change: what `demo` runs on.
    pub fn load_from(flags: &Flags, around: &Surroundings) -> Result<Self, ConfigError> {
        build::build(layers::merge(flags, around)?, around)
    }
}
