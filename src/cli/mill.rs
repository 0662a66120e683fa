//! From the configuration to what the floors below take.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::exit::{Exit, Stop};
use crate::claude::http::{Auth, ClaudeSettings, HttpClaude, fingerprint};
use crate::config::{ApiSettings, Config, KeyPlace, Model};
use crate::domain::breaker::BreakerSettings;
use crate::domain::job::Defaults;
use crate::domain::model::{Catalogue, Layers, Said};
use crate::domain::pace::Each;
use crate::domain::retention::Rules;
use crate::domain::retry::Curve;
use crate::worker::Settings;
use crate::worker::gate::PaceSettings;
use crate::worker::profiles::{Profile, Profiles};
use crate::worker::tools::{Tools, ToolsSettings};

/// Longest time a probe may keep the others waiting.
const PROBE_LEASE: Duration = Duration::from_mins(1);

/// Returns how the mill runs.
pub fn settings(config: &Config) -> Settings {
    let breaker = &config.breaker;
    Settings {
        concurrency: config.worker.concurrency,
        lease: config.worker.lease,
        grace: config.worker.drain,
        drain: None,
        checkpoint: config.worker.checkpoint,
        state_dir: config.worker.state_dir.clone(),
        bytes_max: config.worker.bytes_in_flight_max,
        queues: Vec::new(),
        curve: Curve { base: config.retry.base, max: config.retry.max, still: Instant::now() },
        breaker: BreakerSettings {
            failures_in_a_row: breaker.failures_in_a_row,
            window: breaker.window,
            calls_min: breaker.calls_min,
            share: breaker.share,
            open: breaker.open,
            open_max: breaker.open_max,
            probe_lease: PROBE_LEASE,
        },
        pace: pace(config),
        models: layers(config),
        tools: Arc::new(tools(config)),
        retention: Rules {
            all: config.retention,
            queues: config.queues.0.iter().map(|(name, queue)| (name.clone(), queue.retention)).collect(),
        },
    }
}

/// Returns which models share a rate limit, and what is known of it. Where several models of a class
/// name one, the last counts.
fn pace(config: &Config) -> PaceSettings {
    let models = &config.models.0;
    let named = models.iter().filter_map(|(name, model)| Some((name.clone(), model.class.clone()?)));
    let mut pace = PaceSettings { classes: named.collect(), ..PaceSettings::default() };
    for (name, model) in models {
        let limits = Each {
            requests: model.requests_per_minute,
            input: model.input_tokens_per_minute,
            output: model.output_tokens_per_minute,
        };
        if limits.into_iter().any(|limit| limit.is_some()) {
            let class = pace.class(name);
            pace.limits.insert(class, limits.map(|limit| limit.map(|limit| limit as f64)));
        }
    }
    pace
}

/// Returns what the configuration says of models: what a person set, and what is built in.
pub fn layers(config: &Config) -> Layers {
    let models = || config.models.0.iter();
    let built_in = |model: &Model| Said {
        max_tokens: model.max_tokens,
        prefill: Some(model.prefill),
        window: model.context_tokens,
        structured: model.structured_outputs,
    };
    Layers {
        own: models().map(|(name, model)| (name.clone(), model.own)).collect(),
        // What a person set of it is looked at before.
        built_in: models().map(|(name, model)| (name.clone(), built_in(model))).collect(),
    }
}

/// Returns the tools that this daemon may run, and for which queues.
fn tools(config: &Config) -> Tools {
    let queues = config.queues.0.iter().map(|(name, queue)| (name.clone(), queue.tools.clone()));
    Tools::new(ToolsSettings {
        tools: config.tools.clone(),
        queues: queues.collect(),
        at_once_max: config.worker.tools_max,
    })
}

/// Returns what a row that does not say gets, as long as the API was not asked.
pub fn defaults(config: &Config) -> Defaults {
    Defaults {
        model: config.defaults.model.clone(),
        max_tokens: config.defaults.max_tokens,
        policy: config.defaults.policy.clone(),
        mcp_servers: config.api.mcp_servers,
        cache_turns: config.api.cache_turns,
        models: layers(config).facts(&Catalogue::default()),
        request_max: config.api.request_max_bytes,
    }
}

/// Returns the accounts of the configuration, and which queue has which. Reads the keys, calls nobody.
pub fn profiles(config: &Config) -> anyhow::Result<Profiles<Profile>> {
    let mut profiles = Profiles::new(profile(config, &config.api, Arc::new(claude(config, &config.api)?)));
    for (name, account) in &config.profiles.0 {
        let claude = claude(config, account).with_context(|| format!("failed with profile {name}"))?;
        let id = profiles.add(profile(config, account, Arc::new(claude)));
        let chosen = config.queues.0.iter().filter(|(_, queue)| queue.profile.as_ref() == Some(name));
        chosen.for_each(|(queue, _)| profiles.choose(queue, id));
    }
    Ok(profiles)
}

/// Returns an account with its API.
pub fn profile(config: &Config, api: &ApiSettings, claude: Arc<HttpClaude>) -> Profile {
    // The same key, or none, is another one at another server: what is known of it there does not hold here.
    let elsewhere = api.base_url != config.api.base_url;
    let place = elsewhere.then(|| format!("-{}", fingerprint(&api.base_url.clone().into())));
    Profile { name: api.profile.clone(), claude, place: place.unwrap_or_default() }
}

/// Returns the API of an account. Reads the key, calls nobody.
pub fn claude(config: &Config, api: &ApiSettings) -> anyhow::Result<HttpClaude> {
    HttpClaude::new(claude_settings(config, api)?).context("failed to set up the API client")
}

/// Returns how an account reaches the API.
pub fn claude_settings(config: &Config, api: &ApiSettings) -> anyhow::Result<ClaudeSettings> {
    let credential = api.key.read().map_err(|error| Stop {
        exit: Exit::Credentials,
        sentence: format!("failed to read the key: {error}"),
    })?;
    let auth = credential.as_ref().map_or(Auth::XApiKey, |credential| credential.style);
    let (key, key_file) = match &api.key.place {
        KeyPlace::Nowhere | KeyPlace::Unset { .. } => (None, None),
        KeyPlace::Variable { .. } => (credential.map(|credential| credential.secret), None),
        KeyPlace::File { path, .. } => (None, Some(path.clone())),
    };
    let versions =
        config.models.0.iter().filter_map(|(name, model)| Some((name.clone(), model.version.clone()?)));
    Ok(ClaudeSettings {
        base_url: api.base_url.clone(),
        auth,
        key,
        key_file,
        version: api.version.clone(),
        versions: versions.collect(),
        headers: api.headers.clone(),
        connect: api.connect,
        first_event: api.first_event,
        idle: api.idle,
        response_max: api.response_max_bytes,
        event_max: api.event_max_bytes,
    })
}
