//! Makes the sections out of merged values, and holds the bounds of every value.
//!
//! Bounds are wide: they keep out what cannot work, not what is unwise.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};
use secrecy::SecretString;
use tracing_subscriber::filter::Targets;

use super::key::{Auth, KeyPlace, KeySource};
use super::layers::{Merged, Surroundings};
use super::otel::otel;
use super::read::{MASK, Reader};
use super::sections::{
    ApiSettings, BreakerSettings, DatabaseSettings, DefaultSettings, LogFormat, LogSettings, MetricsSettings,
    Model, Models, Profiles, Queue, Queues, RetrySettings, WebSettings, WorkerSettings,
};
use super::{Config, ConfigError, DatabaseUrl, knobs};
use crate::domain::job::{OnContextOverflow, OnCrash, OnMaxTokens, OnToolUse, Policy};
use crate::domain::model::Said;
use crate::domain::retention::Retention;
use crate::store::StoreSettings;

/// A day: no wait of ours is longer.
const DAY: f64 = 86_400.0;
const MIB: u64 = 1 << 20;

/// Builds the configuration, or returns all that is wrong with it.
pub(super) fn build(merged: Merged, around: &Surroundings) -> Result<Config, ConfigError> {
    let mut r = Reader::new(merged.root, merged.problems);
    let database = database(&mut r);
    let api = api(&mut r, around);
    let worker = worker(&mut r, around);
    let retry = retry(&mut r);
    let breaker = breaker(&mut r);
    let defaults = defaults(&mut r);
    let web = web(&mut r);
    let metrics = metrics(&mut r);
    let log = log(&mut r, around);
    let models = models(&mut r);
    let profiles = profiles(&mut r, around, &api);
    let retention = retention(&mut r, &["retention"], Retention::default());
    let queues = queues(&mut r, &api, &profiles, retention);
    let tools = super::tools::tools(&mut r, around);
    super::tools::check_queues(&mut r, &queues, &tools);
    if !r.problems.is_empty() {
        return Err(ConfigError { problems: r.problems });
    }
    let used = |profile: &&String| queues.0.values().any(|queue| queue.profile.as_ref() == Some(profile));
    let idle = profiles.0.keys().filter(|profile| !used(profile));
    let idle =
        idle.map(|profile| format!("profile {profile} is used by no queue: set queues.\"NAME\".profile"));
    let unlisted = tools.iter().map(|tool| &tool.name);
    let unlisted = unlisted.filter(|name| !queues.0.values().any(|queue| queue.tools.contains(name)));
    let unlisted =
        unlisted.map(|name| format!("tool {name} may be used by no queue: list it in queues.\"NAME\".tools"));
    let vain = redacted_in_vain(retention, &queues);
    let warnings = merged.warnings.into_iter().chain(idle).chain(unlisted).chain(vain).collect();
    Ok(Config {
        database,
        api,
        worker,
        retry,
        breaker,
        defaults,
        models,
        retention,
        profiles,
        queues,
        tools,
        web,
        metrics,
        log,
        otel: otel(around),
        file: merged.file,
        entries: r.entries,
        warnings,
    })
}

fn database(r: &mut Reader) -> DatabaseSettings {
    let s = ["database"];
    let url = database_url(r, "url").unwrap_or(DatabaseUrl::Sqlite(PathBuf::new()));
    let schema = r.text(&s, "schema");
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let fits = !schema.starts_with(|c: char| c.is_ascii_digit()) && schema.len() <= 63;
    if !schema.is_empty() && (!fits || !schema.chars().all(plain) || schema.starts_with("pg_")) {
        let what =
            "must be a plain name: small letters, digits and _, at most 63, not pg_… nor a digit first";
        r.problem(&s, "schema", what);
    }
    let transaction_pooler = r.choice(&s, "pooler", &[("", false), ("transaction", true)]);
    let direct_url = database_url(r, "direct_url");
    if direct_url.as_ref().is_some_and(|url| url.file().is_some()) {
        r.problem(&s, "direct_url", "must be a Postgres URL: there is no pooler before a file");
    }
    let connections_max = r.integer(&s, "connections", &(1..=1000)) as u32;
    let connect = r.seconds(&s, "connect_seconds", &(0.0..=DAY));
    let operation_max = r.seconds(&s, "operation_seconds", &(0.1..=DAY));
    let store = StoreSettings {
        schema,
        connections_max,
        connect_max: operation_max,
        operation_max,
        answers_once: r.flag(&s, "answers_once"),
        transaction_pooler,
        listen_url: direct_url.as_ref().map(|url| url.expose().into()),
    };
    DatabaseSettings { url, direct_url, connect, store }
}

fn database_url(r: &mut Reader, key: &str) -> Option<DatabaseUrl> {
    let s = ["database"];
    let before = r.problems.len();
    let text = r.secret(&s, key);
    let url = match text.as_deref().map(DatabaseUrl::parse) {
        Some(Ok(url)) => Some(url),
        Some(Err(what)) => {
            r.problem(&s, key, what);
            None
        }
        None => None,
    };
    if url.is_none() && key == "url" && r.problems.len() == before {
        r.problem(&s, key, "must not be empty: write sqlite:FILE or a postgres:// URL");
    }
    r.note(&s, key, url.as_ref().map(ToString::to_string).unwrap_or_default().into());
    url
}

fn api(r: &mut Reader, around: &Surroundings) -> ApiSettings {
    let s = ["api"];
    let before = r.problems.len();
    let base_url = base_url(r, &s).unwrap_or_default();
    if base_url.is_empty() && r.problems.len() == before {
        r.problem(&s, "base_url", "must not be empty");
    }
    let version = version(r, &s).unwrap_or_default();
    let style = r.choice(&s, "auth", &STYLES);
    let key_file = r.optional_text(&s, "key_file");
    let key = KeySource { place: key_place(r, around, key_file), style };
    let headers = headers(r, &s);
    let profile = r.text(&s, "profile");
    if profile.contains('/') {
        r.problem(&s, "profile", "must not have a slash in it");
    }
    ApiSettings {
        base_url,
        version,
        key,
        headers,
        profile,
        connect: r.seconds(&s, "connect_seconds", &(0.1..=DAY)),
        first_event: r.seconds(&s, "first_event_seconds", &(0.1..=DAY)),
        idle: r.seconds(&s, "idle_seconds", &(0.1..=DAY)),
        request_max_bytes: r.bytes(&s, "request_max_bytes", &(1024..=4096 * MIB)) as usize,
        response_max_bytes: r.bytes(&s, "response_max_bytes", &(1024..=4096 * MIB)) as usize,
        event_max_bytes: r.bytes(&s, "event_max_bytes", &(1024..=4096 * MIB)) as usize,
        mcp_servers: r.flag(&s, "mcp_servers"),
        cache_turns: r.flag(&s, "cache_turns"),
    }
}

/// How a key may be sent.
const STYLES: [(&str, Option<Auth>); 3] =
    [("auto", None), ("x-api-key", Some(Auth::XApiKey)), ("bearer", Some(Auth::Bearer))];

fn version(r: &mut Reader, s: &[&str]) -> Option<String> {
    let version = r.optional_text(s, "version")?;
    if !version.chars().all(|letter| letter.is_ascii_graphic()) {
        r.problem(s, "version", "must be a date such as 2026-10-21");
    }
    Some(version)
}

fn base_url(r: &mut Reader, s: &[&str]) -> Option<String> {
    let text = r.optional_text(s, "base_url")?;
    let text = text.trim().trim_end_matches('/');
    if text.is_empty() {
        return None;
    }
    let scheme = "must begin with https:// or http:// and name a host";
    let what = match reqwest::Url::parse(text) {
        Err(_) if !text.contains("://") => Some(scheme.to_owned()),
        Err(error) => Some(format!("is no URL: {error}")),
        Ok(url) if !matches!(url.scheme(), "http" | "https") || url.host().is_none() => {
            Some(scheme.to_owned())
        }
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            Some("must not hold a user name or a password: use ANTHROPIC_CUSTOM_HEADERS".to_owned())
        }
        Ok(url) if url.query().is_some() || url.fragment().is_some() => {
            Some("must end with its path: leave out what follows ? or #".to_owned())
        }
        Ok(_) => None,
    };
    if let Some(what) = what {
        r.problem(s, "base_url", what);
    }
    Some(text.to_owned())
}

/// The accounts beside that of `[api]`, each as that one but for what it sets itself.
fn profiles(r: &mut Reader, around: &Surroundings, api: &ApiSettings) -> Profiles {
    let names = r.keys(&[], "profiles");
    let read = names.into_iter().map(|name| {
        if name.is_empty() || name.contains('/') {
            r.problem(&["profiles"], &name, "must not be empty nor have a slash in its name");
        } else if name == api.profile {
            let what = "is the name of [api] itself: choose another, or rename that one by api.profile";
            r.problem(&["profiles"], &name, what);
        }
        let account = profile(r, around, api, &name);
        (name, account)
    });
    Profiles(read.collect())
}

fn profile(r: &mut Reader, around: &Surroundings, api: &ApiSettings, name: &str) -> ApiSettings {
    let s = ["profiles", name];
    let base_url = base_url(r, &s).unwrap_or_else(|| {
        r.follow_api(&s, "base_url");
        api.base_url.clone()
    });
    let version = version(r, &s).unwrap_or_else(|| {
        r.follow_api(&s, "version");
        api.version.clone()
    });
    let own = STYLES.map(|(word, style)| (word, Some(style)));
    let style = r.choice(&s, "auth", &[&[("", None)], own.as_slice()].concat()).unwrap_or_else(|| {
        r.follow_api(&s, "auth");
        api.key.style
    });
    let here = base_url == api.base_url;
    let place = profile_key_place(r, around, &s).unwrap_or_else(|| {
        // Nobody's key goes to a server that it was not named for, nor do headers, which may hold one.
        if here { api.key.place.clone() } else { KeyPlace::Nowhere }
    });
    let mut headers = headers(r, &s);
    if headers.is_empty() && here {
        headers.clone_from(&api.headers);
    }
    let key = KeySource { place, style };
    ApiSettings { base_url, version, key, headers, profile: name.to_owned(), ..api.clone() }
}

/// Where a profile's own key is, if it has one.
fn profile_key_place(r: &mut Reader, around: &Surroundings, s: &[&str]) -> Option<KeyPlace> {
    let variable = key_variable(r, s);
    let file = r.optional_text(s, "key_file");
    match (variable, file) {
        (None, None) => None,
        (Some(_), Some(_)) => {
            r.problem(s, "key_file", "stands beside key_env: set one of them");
            None
        }
        (None, Some(path)) => {
            Some(KeyPlace::File { path: PathBuf::from(path), origin: r.origin(s, "key_file") })
        }
        (Some(name), None) => Some(match around.var(&name).filter(|text| !text.trim().is_empty()) {
            Some(secret) => KeyPlace::Variable { secret: secret.into(), name },
            None => KeyPlace::Unset { name },
        }),
    }
}

/// Reads `key_env`. Somebody may have put the key itself there: what is no name is not shown.
fn key_variable(r: &mut Reader, s: &[&str]) -> Option<String> {
    let name = r.secret(s, "key_env");
    let is_name = |name: &String| {
        name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
            && !name.starts_with(|first: char| first.is_ascii_digit())
    };
    let plain = name.clone().filter(is_name);
    r.note(s, "key_env", if name == plain { plain.clone().unwrap_or_default() } else { MASK.into() }.into());
    if name != plain {
        r.problem(s, "key_env", "must be the name of a variable, such as SECOND_API_KEY: no key stands here");
    }
    plain
}

/// Finds the key by the order of the layers: our own variable, the general ones, a file's setting,
/// and what systemd hands over.
fn key_place(r: &Reader, around: &Surroundings, key_file: Option<String>) -> KeyPlace {
    let origin = r.origin(&["api"], "key_file");
    let file = key_file.map(|path| KeyPlace::File { path: PathBuf::from(path), origin: origin.clone() });
    let ours_first = origin.starts_with("PROMPTMILL_") || origin.contains("flag");
    if let (Some(file), true) = (&file, ours_first) {
        return file.clone();
    }
    for name in ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"] {
        if let Some(secret) = around.var(name).filter(|text| !text.trim().is_empty()) {
            return KeyPlace::Variable { name: name.to_owned(), secret: secret.into() };
        }
    }
    file.or_else(|| {
        let path = PathBuf::from(around.var("CREDENTIALS_DIRECTORY")?).join("anthropic_api_key");
        path.exists().then(|| KeyPlace::File { path, origin: "systemd credential".to_owned() })
    })
    .unwrap_or(KeyPlace::Nowhere)
}

/// What we set ourselves: twice the same header is an error nobody finds.
const OURS: [&str; 8] = [
    "accept",
    "accept-encoding",
    "anthropic-version",
    "connection",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
];

fn headers(r: &mut Reader, s: &[&str]) -> Vec<(String, SecretString)> {
    let path = &[s, &["headers"]].concat();
    let mut headers = Vec::new();
    for name in r.keys(s, "headers") {
        let Some(text) = r.secret(path, &name) else { continue };
        r.note(path, &name, MASK.into());
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            r.problem(path, &name, "is no name of a header");
        } else if OURS.contains(&name.to_lowercase().as_str()) {
            r.problem(path, &name, "is a header of our own: take it out");
        } else if HeaderValue::from_str(&text).is_err() {
            r.problem(path, &name, "has characters in its value that no header takes");
        } else {
            headers.push((name, text.into()));
        }
    }
    headers
}

fn worker(r: &mut Reader, around: &Surroundings) -> WorkerSettings {
    let s = ["worker"];
    WorkerSettings {
        concurrency: r.integer(&s, "concurrency", &(1..=100_000)) as usize,
        lease: r.seconds(&s, "lease_seconds", &(1.0..=DAY)),
        drain: r.seconds(&s, "drain_seconds", &(0.0..=DAY)),
        drain_horizon: r.seconds(&s, "drain_horizon_seconds", &(0.0..=7.0 * DAY)),
        bytes_in_flight_max: r.bytes(&s, "bytes_in_flight_max", &(1..=1 << 50)) as i64,
        checkpoint: r.seconds(&s, "checkpoint_seconds", &(0.05..=DAY)),
        tools_max: r.integer(&s, "tools_max", &(1..=10_000)) as usize,
        state_dir: state_dir(r, around),
    }
}

/// Where state is kept: as it is set, else where systemd, the desktop or the home folder says.
fn state_dir(r: &mut Reader, around: &Surroundings) -> Option<PathBuf> {
    let (s, key) = (["worker"], "state_dir");
    if let Some(set) = r.optional_text(&s, key) {
        return Some(PathBuf::from(set));
    }
    let (name, dir) = around
        .var("STATE_DIRECTORY")
        // systemd may hand over several, with colons in between.
        .and_then(|dirs| dirs.split(':').find(|dir| !dir.is_empty()))
        .map(|dir| ("STATE_DIRECTORY", PathBuf::from(dir)))
        .or_else(|| {
            let home = around.var("XDG_STATE_HOME").filter(|home| home.starts_with('/'))?;
            Some(("XDG_STATE_HOME", PathBuf::from(home).join("promptmill")))
        })
        .or_else(|| Some(("HOME", PathBuf::from(around.var("HOME")?).join(".local/state/promptmill"))))?;
    r.overrule(&s, key, dir.display().to_string().into(), name.to_owned());
    Some(dir)
}

fn retry(r: &mut Reader) -> RetrySettings {
    let (base, max) = pair(r, "retry", "base_ms", "max_ms");
    RetrySettings { base, max }
}

fn breaker(r: &mut Reader) -> BreakerSettings {
    let s = ["breaker"];
    let failures_in_a_row = r.integer(&s, "failures_in_a_row", &(1..=1_000_000)) as u32;
    let window = r.seconds(&s, "window_seconds", &(1.0..=DAY));
    let calls_min = r.integer(&s, "calls_min", &(1..=1_000_000)) as u32;
    let share = r.number(&s, "share", &(0.01..=1.0), "");
    let (open, open_max) = pair(r, "breaker", "open_ms", "open_max_ms");
    BreakerSettings { failures_in_a_row, window, calls_min, share, open, open_max }
}

/// Reads a pause and its ceiling. Where only one of them was set and they contradict each other,
/// the other follows: who sets `max_ms = 50` does not want to hear about a default.
fn pair(r: &mut Reader, section: &str, low: &str, high: &str) -> (Duration, Duration) {
    let s = [section];
    let range = 1.0..=DAY * 1000.0;
    let (base, max) = (r.millis(&s, low, &range), r.millis(&s, high, &range));
    if base <= max {
        return (base, max);
    }
    let follows = |key: &str| format!("follows {section}.{key}");
    let number = |value: Duration| toml::Value::Integer(value.as_millis() as i64);
    match (r.is_default(&s, low), r.is_default(&s, high)) {
        (true, _) => {
            r.overrule(&s, low, number(max), follows(high));
            (max, max)
        }
        (false, true) => {
            r.overrule(&s, high, number(base), follows(low));
            (base, base)
        }
        (false, false) => {
            r.problem(&s, low, format!("must not be above {section}.{high}: change one of them"));
            (base, max)
        }
    }
}

fn defaults(r: &mut Reader) -> DefaultSettings {
    let s = ["defaults"];
    let count = 0..=i64::from(i32::MAX);
    DefaultSettings {
        model: r.text(&s, "model"),
        max_tokens: r.optional_integer(&s, "max_tokens", &(1..=i64::from(i32::MAX))),
        policy: Policy {
            on_max_tokens: r.choice(
                &s,
                "on_max_tokens",
                &[
                    ("continue", OnMaxTokens::Continue),
                    ("regenerate", OnMaxTokens::Regenerate),
                    ("stop", OnMaxTokens::Stop),
                ],
            ),
            max_continuations: r.integer(&s, "max_continuations", &count) as i32,
            max_output_tokens: r.integer(&s, "max_output_tokens", &(1..=i64::MAX)),
            on_crash: r.choice(
                &s,
                "on_crash",
                &[("resume", OnCrash::Resume), ("retry", OnCrash::Retry), ("fail", OnCrash::Fail)],
            ),
            max_failures: r.integer(&s, "max_failures", &(1..=i64::from(i32::MAX))) as i32,
            timeout: r.seconds(&s, "timeout_seconds", &(0.1..=7.0 * DAY)),
            max_turns: r.integer(&s, "max_turns", &count) as i32,
            on_tool_use: r.choice(
                &s,
                "on_tool_use",
                &[("finish", OnToolUse::Finish), ("wait", OnToolUse::Wait), ("run", OnToolUse::Run)],
            ),
            on_context_overflow: r.choice(
                &s,
                "on_context_overflow",
                &[("fail", OnContextOverflow::Fail), ("drop_oldest", OnContextOverflow::DropOldest)],
            ),
            // A schema belongs to a job or its queue.
            output_schema: None,
            max_repairs: r.integer(&s, "max_repairs", &count) as i32,
            fallback_model: r.optional_text(&s, "fallback_model"),
        },
    }
}

fn web(r: &mut Reader) -> WebSettings {
    let s = ["web"];
    let listen = listen(r, &s, "127.0.0.1:8020");
    let token_file = r.optional_text(&s, "token_file").map(PathBuf::from);
    if listen.is_some_and(|listen| !listen.ip().is_loopback()) && token_file.is_none() {
        let what = "other machines reach this address: name a file with a token of 16 characters or more in \
                    web.token_file, or listen on 127.0.0.1";
        r.problem(&s, "listen", what);
    }
    let hosts: Vec<String> = r.list(&s, "hosts").into_iter().map(|host| host.to_ascii_lowercase()).collect();
    if !hosts.is_empty() && token_file.is_none() {
        // Whoever reaches the proxy reaches the page: it is as open as an address of the network.
        let what = "a name means that others reach the page, through a proxy or the DNS: name a file with a \
                    token in web.token_file too; a proxy that knows its people may send it as Bearer";
        r.problem(&s, "hosts", what);
    }
    WebSettings { listen, token_file, hosts, read_only: r.flag(&s, "read_only") }
}

fn metrics(r: &mut Reader) -> MetricsSettings {
    let s = ["metrics"];
    MetricsSettings {
        listen: listen(r, &s, "127.0.0.1:9464"),
        refresh: r.seconds(&s, "refresh_seconds", &(0.1..=DAY)),
    }
}

/// Reads where to listen, if anywhere.
fn listen(r: &mut Reader, s: &[&str], such_as: &str) -> Option<SocketAddr> {
    let text = r.optional_text(s, "listen")?;
    // The one name that means this machine everywhere.
    let address = text.replacen("localhost:", "127.0.0.1:", 1).parse();
    if address.is_err() {
        r.problem(s, "listen", format!("must be an address and a port, such as {such_as}"));
    }
    address.ok()
}

fn log(r: &mut Reader, around: &Surroundings) -> LogSettings {
    let s = ["log"];
    let format = r.choice(&s, "format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    let text = r.text(&s, "level");
    let level = text.parse::<Targets>().unwrap_or_else(|_| {
        r.problem(
            &s,
            "level",
            "must be error, warn, info, debug or trace, or such as `info,promptmill::store=debug`",
        );
        Targets::new()
    });
    if level.default_level().is_none() && !text.contains('=') {
        // `Targets` takes any word for a part of the program.
        r.problem(&s, "level", "must be error, warn, info, debug or trace, or `part=level`");
    }
    LogSettings { format, level, colour: around.var("NO_COLOR").is_none() }
}

/// What a rate limit may be.
const PER_MINUTE: RangeInclusive<i64> = 1..=1_000_000_000_000;

fn models(r: &mut Reader) -> Models {
    let names = r.keys(&[], "models");
    let read = names.into_iter().map(|name| {
        let path = ["models", name.as_str()];
        let max_tokens = r.optional_integer(&path, "max_tokens", &(1..=i64::from(i32::MAX)));
        let prefill = r.optional_flag(&path, "prefill");
        let context_tokens = r.optional_integer(&path, "context_tokens", &(1..=i64::from(i32::MAX)));
        let structured_outputs = r.optional_flag(&path, "structured_outputs");
        let own = |key: &str| !r.is_default(&path, key);
        let own = Said {
            max_tokens: max_tokens.filter(|_| own("max_tokens")),
            prefill: prefill.filter(|_| own("prefill")),
            window: context_tokens.filter(|_| own("context_tokens")),
            structured: structured_outputs.filter(|_| own("structured_outputs")),
        };
        let model = Model {
            max_tokens,
            prefill: prefill.unwrap_or(false),
            context_tokens,
            structured_outputs,
            version: r.optional_text(&path, "version"),
            class: r.optional_text(&path, "class"),
            requests_per_minute: r.optional_integer(&path, "requests_per_minute", &PER_MINUTE),
            input_tokens_per_minute: r.optional_integer(&path, "input_tokens_per_minute", &PER_MINUTE),
            output_tokens_per_minute: r.optional_integer(&path, "output_tokens_per_minute", &PER_MINUTE),
            own,
        };
        (name, model)
    });
    Models(read.collect())
}

/// A hundred years: whoever means longer means for ever.
const DAYS_MAX: f64 = 36_500.0;

/// Reads how long done jobs are kept; what is not set is as in `usual`.
fn retention(r: &mut Reader, s: &[&str], usual: Retention) -> Retention {
    let mut days = |key, usual| match r.optional_number(s, key, &(0.0..=DAYS_MAX), " (days; 0: for ever)") {
        None => usual,
        Some(days) => (days > 0.0).then(|| Duration::from_secs_f64(days * DAY)),
    };
    Retention { prompts: days("redact_days", usual.prompts), jobs: days("delete_days", usual.jobs) }
}

/// Says where prompts would be redacted of jobs that are gone by then.
fn redacted_in_vain(all: Retention, queues: &Queues) -> Vec<String> {
    let own = queues.0.iter().filter(|(_, queue)| queue.retention != all);
    let own = own.map(|(name, queue)| (format!("queues.\"{name}\""), queue.retention));
    [("retention".to_owned(), all)]
        .into_iter()
        .chain(own)
        .filter(|(_, retention)| retention.is_redacted_in_vain())
        .map(|(section, _)| {
            format!(
                "{section}.redact_days redacts nothing: by then {section}.delete_days has deleted the jobs"
            )
        })
        .collect()
}

fn queues(r: &mut Reader, api: &ApiSettings, profiles: &Profiles, kept: Retention) -> Queues {
    let known: Vec<&str> = [&api.profile].into_iter().chain(profiles.0.keys()).map(String::as_str).collect();
    let names = r.keys(&[], "queues");
    let read = names.into_iter().map(|name| {
        let path = ["queues", name.as_str()];
        let profile = r.optional_text(&path, "profile");
        if let Some(chosen) = profile.as_deref().filter(|chosen| !known.contains(chosen)) {
            let what = match knobs::closest_word(chosen, known.iter().copied()) {
                Some(meant) => format!("there is no such profile: did you mean {meant}?"),
                None => format!("there is no such profile; there are {}", known.join(", ")),
            };
            r.problem(&path, "profile", what);
        }
        let tools = r.list(&path, "tools");
        let retention = retention(r, &path, kept);
        (name, Queue { tools, profile, retention })
    });
    Queues(read.collect())
}
