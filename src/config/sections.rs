//! The sections as typed fields: what the rest of the program reads.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use tracing_subscriber::filter::Targets;

use super::DatabaseUrl;
use super::key::{KeyPlace, KeySource, NO_KEY};
use crate::domain::job::Policy;
use crate::domain::model::{Said, undated};
use crate::domain::retention::Retention;
use crate::store::StoreSettings;

/// `[database]`.
#[derive(Debug, Clone)]
pub struct DatabaseSettings {
    /// `url`.
    pub url: DatabaseUrl,
    /// `direct_url`: past the pooler.
    pub direct_url: Option<DatabaseUrl>,
    /// `connect_seconds`: tried for so long at the start.
    pub connect: Duration,
    /// All that a store needs beside the URL.
    pub store: StoreSettings,
}

/// `[api]`, or an account of `[profiles]`, which is as `[api]` but for what it sets itself.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// `base_url`, without a slash at its end.
    pub base_url: String,
    /// `version`; empty: the header is not sent.
    pub version: String,
    /// Where the key is, and how it is sent.
    pub key: KeySource,
    /// `headers`: names are valid and none that we set ourselves; values fit into a header.
    pub headers: Vec<(String, SecretString)>,
    /// `profile`, or the name under `[profiles]`.
    pub profile: String,
    /// `connect_seconds`.
    pub connect: Duration,
    /// `first_event_seconds`.
    pub first_event: Duration,
    /// `idle_seconds`.
    pub idle: Duration,
    /// `request_max_bytes`.
    pub request_max_bytes: usize,
    /// `response_max_bytes`.
    pub response_max_bytes: usize,
    /// `event_max_bytes`.
    pub event_max_bytes: usize,
    /// `mcp_servers`.
    pub mcp_servers: bool,
    /// `cache_turns`.
    pub cache_turns: bool,
}

impl ApiSettings {
    /// The API of Anthropic itself, which answers nobody without a key.
    pub const ANTHROPIC: &str = "https://api.anthropic.com";

    /// Says whether a key is needed: other servers may do without.
    pub fn needs_key(&self) -> bool {
        self.base_url == Self::ANTHROPIC
    }

    /// Says why there is no key, where there should be one.
    pub fn no_key(&self) -> Option<String> {
        match &self.key.place {
            KeyPlace::Nowhere if self.needs_key() => Some(NO_KEY.to_owned()),
            KeyPlace::Unset { name } => Some(format!(
                "there is no API key: set {name}, which key_env names, or put the key into a file and name that \
                 file in key_file"
            )),
            KeyPlace::Nowhere | KeyPlace::Variable { .. } | KeyPlace::File { .. } => None,
        }
    }

    /// Says whether the key would go over the network in the clear.
    pub fn is_in_the_clear(&self) -> bool {
        let Ok(url) = reqwest::Url::parse(&self.base_url) else { return false };
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let loopback = host == "localhost"
            || host.ends_with(".localhost")
            || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        url.scheme() == "http" && !loopback
    }
}

/// `[worker]`.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// `concurrency`: at least 1.
    pub concurrency: usize,
    /// `lease_seconds`.
    pub lease: Duration,
    /// `drain_seconds`; zero: calls are cut at once.
    pub drain: Duration,
    /// `drain_horizon_seconds`.
    pub drain_horizon: Duration,
    /// `bytes_in_flight_max`.
    pub bytes_in_flight_max: i64,
    /// `checkpoint_seconds`.
    pub checkpoint: Duration,
    /// `tools_max`: at least 1.
    pub tools_max: usize,
    /// `state_dir`, or where it is by the surroundings; `None`: nowhere.
    pub state_dir: Option<PathBuf>,
}

/// `[retry]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetrySettings {
    /// `base_ms`: at most `max`.
    pub base: Duration,
    /// `max_ms`.
    pub max: Duration,
}

/// `[breaker]`.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerSettings {
    /// `failures_in_a_row`.
    pub failures_in_a_row: u32,
    /// `window_seconds`.
    pub window: Duration,
    /// `calls_min`.
    pub calls_min: u32,
    /// `share`: above 0, at most 1.
    pub share: f64,
    /// `open_ms`: at most `open_max`.
    pub open: Duration,
    /// `open_max_ms`.
    pub open_max: Duration,
}

/// `[defaults]`.
#[derive(Debug, Clone)]
pub struct DefaultSettings {
    /// `model`.
    pub model: String,
    /// `max_tokens`; `None`: the model's own maximum.
    pub max_tokens: Option<i64>,
    /// The policy of a job that has none, and whose queue has none.
    pub policy: Policy,
}

/// What is known of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    /// `max_tokens`: the most it can answer with in one call; `None`: not known.
    pub max_tokens: Option<i64>,
    /// `prefill`: whether it goes on from an assistant turn.
    pub prefill: bool,
    /// `context_tokens`.
    pub context_tokens: Option<i64>,
    /// `structured_outputs`: whether it takes a schema for its answer; `None`: not known.
    pub structured_outputs: Option<bool>,
    /// `version`: its own `anthropic-version`; `None`: `api.version`.
    pub version: Option<String>,
    /// `class`: the models of one class share a rate limit; `None`: told by the name.
    pub class: Option<String>,
    /// `requests_per_minute` of its class.
    pub requests_per_minute: Option<i64>,
    /// `input_tokens_per_minute` of its class.
    pub input_tokens_per_minute: Option<i64>,
    /// `output_tokens_per_minute` of its class.
    pub output_tokens_per_minute: Option<i64>,
    /// What of it a person set: it is over what the API says, the rest is under it.
    pub own: Said,
}

/// `[models."NAME"]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Models(pub BTreeMap<String, Model>);

impl Models {
    /// Returns what is known of a model, by its name, else by its name without the date at its end.
    pub fn get(&self, name: &str) -> Option<&Model> {
        self.0.get(name).or_else(|| self.0.get(undated(name)))
    }
}

/// `[queues."NAME"]`: what is set for the jobs of one queue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue {
    /// `tools`: what its jobs may have run; each is in `[tools]`.
    pub tools: Vec<String>,
    /// `profile`: the account that its jobs are asked with; `None`: the default one.
    pub profile: Option<String>,
    /// `redact_days` and `delete_days`, where it does not set them those of `[retention]`.
    pub retention: Retention,
}

/// `[profiles."NAME"]`: accounts beside that of `[api]`.
#[derive(Debug, Clone, Default)]
pub struct Profiles(pub BTreeMap<String, ApiSettings>);

/// The queues that something is set for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queues(pub BTreeMap<String, Queue>);

/// `[web]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WebSettings {
    /// `listen`; `None`: no page.
    pub listen: Option<SocketAddr>,
    /// `token_file`; there is one wherever others reach the address.
    pub token_file: Option<PathBuf>,
    /// `hosts`, in small letters.
    pub hosts: Vec<String>,
    /// `read_only`.
    pub read_only: bool,
}

/// `[metrics]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsSettings {
    /// `listen`; `None`: neither metrics nor health.
    pub listen: Option<SocketAddr>,
    /// `refresh_seconds`.
    pub refresh: Duration,
}

/// `log.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one object a line.
    Json,
}

/// `[log]`.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// `format`.
    pub format: LogFormat,
    /// `level`, as it was asked for: [`crate::telemetry`] caps what other crates may say.
    pub level: Targets,
    /// Whether colours are welcome on a terminal (`NO_COLOR` is not set).
    pub colour: bool,
}
