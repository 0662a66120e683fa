//! The configuration as people meet it: layers, names, secrets, and the two commands that show it.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use promptmill::cli;
use promptmill::cli::config::{ConfigArgs, to_json, to_toml};
use promptmill::cli::doctor::{DoctorArgs, Finding, InUse, KeyCheck, Outside, Verdict, examine};
use promptmill::config::{
    ApiSettings, Auth, Config, ConfigError, Flags, LogFormat, Surroundings, knobs, table,
};
use promptmill::domain::job::OnMaxTokens;
use promptmill::domain::model::Said;
use promptmill::domain::retention::Retention;
use promptmill::telemetry;
use secrecy::ExposeSecret;
use tempfile::TempDir;

const KEY: &str = "sk-ant-api03-canary-key";
const PASSWORD: &str = "canary-password";

/// A folder with or without a `promptmill.toml`, an environment, and flags.
struct Place {
    dir: TempDir,
    vars: Vec<(String, String)>,
    flags: Flags,
}

fn place() -> Place {
    Place { dir: tempfile::tempdir().unwrap(), vars: Vec::new(), flags: Flags::default() }
}

impl Place {
    fn file(self, text: &str) -> Self {
        fs::write(self.dir.path().join("promptmill.toml"), text).unwrap();
        self
    }

    fn var(mut self, name: &str, value: &str) -> Self {
        self.vars.push((name.into(), value.into()));
        self
    }

    fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.settings.push((name.into(), value.into()));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load_from(&self.flags, &Surroundings::new(self.vars.clone(), self.dir.path()))
    }

    fn good(&self) -> Config {
        self.load().unwrap()
    }

    fn refused(&self) -> String {
        self.load().unwrap_err().to_string()
    }
}

fn origin(config: &Config, name: &str) -> String {
    let entry = config.entries.iter().find(|entry| format!("{}.{}", entry.section, entry.key) == name);
    entry.unwrap().origin.clone()
}

#[test]
fn later_layers_win_and_say_so() {
    let (key, name) = ("worker.concurrency", "PROMPTMILL_WORKER__CONCURRENCY");
    let bare = place();
    assert_eq!(bare.good().worker.concurrency, 64);
    assert_eq!(origin(&bare.good(), key), "default");

    let in_file = bare.file("[worker]\nconcurrency = 8\n");
    assert_eq!(in_file.good().worker.concurrency, 8);
    assert_eq!(origin(&in_file.good(), key), in_file.path("promptmill.toml").display().to_string());

    let in_env = in_file.var(name, "16");
    assert_eq!(in_env.good().worker.concurrency, 16);
    assert_eq!(origin(&in_env.good(), key), name);

    let mut flagged = in_env.flag("worker.concurrency", "24");
    assert_eq!(flagged.good().worker.concurrency, 24);
    flagged.flags.concurrency = Some(32);
    assert_eq!(flagged.good().worker.concurrency, 32);
    assert_eq!(origin(&flagged.good(), key), "--concurrency");
    // The rest of a section stays what the lower layers say.
    assert_eq!(flagged.good().worker.lease, Duration::from_mins(1));
}

#[test]
fn a_named_file_replaces_the_one_beside_you() {
    let mut place = place().file("[worker]\nconcurrency = 8\n");
    for (name, count) in [("env.toml", 9), ("flag.toml", 10)] {
        fs::write(place.path(name), format!("[worker]\nconcurrency = {count}\n")).unwrap();
    }
    let named = place.path("env.toml").display().to_string();
    place = place.var("PROMPTMILL_CONFIG", &named);
    assert_eq!(place.good().worker.concurrency, 9);
    place.flags.config_file = Some(place.path("flag.toml"));
    assert_eq!(place.good().worker.concurrency, 10);
    place.flags.config_file = Some(place.path("absent.toml"));
    assert!(place.refused().contains("absent.toml (--config): there is no such file"));
    place.flags.config_file = Some(place.path("."));
    assert!(place.refused().contains("(--config): is no file"));
    // What stands below a file is not absent: nobody can tell.
    place.flags.config_file = Some(place.path("env.toml/below.toml"));
    assert!(place.refused().contains("(--config): cannot be read by this user"));
}

#[test]
fn an_address_without_its_scheme_is_told_what_it_lacks() {
    let place = place().var("ANTHROPIC_BASE_URL", "127.0.0.1:8787");
    assert!(place.refused().contains("must begin with https:// or http:// and name a host"));
}

#[test]
fn our_variables_win_over_the_general_ones() {
    let place = place()
        .file("[database]\nurl = 'sqlite:file.db'\n[api]\nbase_url = 'https://file.example'\n")
        .var("DATABASE_URL", "sqlite:general.db")
        .var("ANTHROPIC_BASE_URL", "https://gateway.example/team/anthropic/");
    assert_eq!(place.good().database.url.file(), Some(Path::new("general.db")));
    assert_eq!(place.good().api.base_url, "https://gateway.example/team/anthropic");
    let place = place.var("PROMPTMILL_DATABASE__URL", "sqlite:ours.db");
    assert_eq!(place.good().database.url.file(), Some(Path::new("ours.db")));
}

#[test]
fn an_empty_variable_is_not_set() {
    let place = place()
        .var("DATABASE_URL", "")
        .var("ANTHROPIC_API_KEY", "")
        .var("PROMPTMILL_WORKER__CONCURRENCY", "")
        .var("PROMPTMILL_CONFIG", "");
    let config = place.good();
    assert_eq!(config.database.url.file(), Some(Path::new("promptmill.db")));
    assert_eq!(config.worker.concurrency, 64);
    assert!(config.api.key.read().unwrap().is_none() && config.api.needs_key());
}

#[test]
fn names_without_two_underscores_are_not_ours() {
    let config = place()
        .var("PROMPTMILL_PORT", "tcp://10.0.0.1:80")
        .var("PROMPTMILL_PORT_80_TCP_ADDR", "10.0.0.1")
        .var("PROMPTMILL_SERVICE_HOST", "10.0.0.1")
        .good();
    assert!(config.warnings.is_empty());
    let config = place().var("PROMPTMILL_WORKER_CONCURRENCY", "5").good();
    assert_eq!(config.worker.concurrency, 64);
    assert!(config.warnings[0].contains("did you mean PROMPTMILL_WORKER__CONCURRENCY"));
}

#[test]
fn an_unknown_name_points_to_the_one_meant() {
    for (place, says) in [
        (place().file("[worker]\nconcurency = 5"), "worker.concurency"),
        (place().file("[worker]\nconcurency = 5"), "did you mean worker.concurrency?"),
        (place().file("[worker]\nmax_failures = 5"), "did you mean defaults.max_failures?"),
        (place().file("[wroker]\nconcurrency = 5"), "did you mean [worker]?"),
        (place().file("concurrency = 5"), "did you mean worker.concurrency?"),
        (place().file("worker = 5"), "is a section: write [worker]"),
        (place().file("[models.m]\nmax_token = 5"), "did you mean models.\"NAME\".max_tokens?"),
        (
            place().var("PROMPTMILL_WORKER__CONCURENCY", "5"),
            "PROMPTMILL_WORKER__CONCURENCY: is not a setting: did you mean PROMPTMILL_WORKER__CONCURRENCY?",
        ),
        (place().var("PROMPTMILL__WORKER__CONCURRENCY", "5"), "did you mean PROMPTMILL_WORKER__CONCURRENCY?"),
        (place().var("PROMPTMILL_RETRY__BASE__MS", "5"), "did you mean PROMPTMILL_RETRY__"),
        (place().flag("worker.lease", "5"), "did you mean worker.lease_seconds?"),
    ] {
        assert!(place.refused().contains(says), "{} | {says}", place.refused());
    }
}

#[test]
fn everything_wrong_is_told_at_once() {
    let place = place()
        .file("[worker]\nlease_seconds = 0\nconcurency = 5\n[log]\nformat = 'xml'\n[api]\nbase_url = 'ftp://x'\n")
        .var("PROMPTMILL_DEFAULTS__MAX_FAILURES", "many")
        .var("PROMPTMILL_LOG__LEVEL", "loud");
    let error = place.load().unwrap_err();
    assert_eq!(error.problems.len(), 6, "{error}");
    let text = error.to_string();
    for says in [
        "worker.lease_seconds (",
        "must be a number from 1 to 86400 (seconds), not 0",
        "must be `text` or `json`, not `xml`",
        "defaults.max_failures (PROMPTMILL_DEFAULTS__MAX_FAILURES): must be a whole number",
        "not `many`",
        "must begin with https:// or http://",
        "log.level (PROMPTMILL_LOG__LEVEL)",
    ] {
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn variables_are_read_as_what_the_setting_is() {
    let config = place()
        .var("PROMPTMILL_WORKER__CHECKPOINT_SECONDS", "0.5")
        .var("PROMPTMILL_WORKER__DRAIN_SECONDS", "2")
        .var("PROMPTMILL_WORKER__BYTES_IN_FLIGHT_MAX", "1 MiB")
        .var("PROMPTMILL_DEFAULTS__MODEL", "007")
        .var("PROMPTMILL_DEFAULTS__MAX_TOKENS", "1000")
        .var("PROMPTMILL_DEFAULTS__ON_MAX_TOKENS", "stop")
        .var("PROMPTMILL_BREAKER__SHARE", "1")
        .var("PROMPTMILL_API__MCP_SERVERS", "true")
        .var("PROMPTMILL_LOG__FORMAT", "json")
        .good();
    assert_eq!(config.worker.checkpoint, Duration::from_millis(500));
    assert_eq!(config.worker.drain, Duration::from_secs(2));
    assert_eq!(config.worker.bytes_in_flight_max, 1_048_576);
    assert_eq!(config.defaults.model, "007");
    assert_eq!(config.defaults.max_tokens, Some(1000));
    assert_eq!(config.defaults.policy.on_max_tokens, OnMaxTokens::Stop);
    assert!(config.api.mcp_servers);
    assert_eq!(config.log.format, LogFormat::Json);
    let shown = to_json(&config);
    assert_eq!(shown["settings"]["worker.checkpoint_seconds"]["value"], 0.5);
    assert_eq!(shown["settings"]["worker.drain_seconds"]["value"], 2);
    assert_eq!(shown["settings"]["defaults.model"]["value"], "007");
    assert_eq!(shown["settings"]["api.mcp_servers"]["value"], true);
}

#[test]
fn a_pause_and_its_ceiling_follow_each_other_unless_both_are_set() {
    let config = place().var("PROMPTMILL_RETRY__MAX_MS", "50").good();
    assert_eq!((config.retry.base, config.retry.max), (Duration::from_millis(50), Duration::from_millis(50)));
    assert_eq!(origin(&config, "retry.base_ms"), "follows retry.max_ms");
    let config = place().var("PROMPTMILL_BREAKER__OPEN_MS", "90000").good();
    assert_eq!(config.breaker.open_max, Duration::from_secs(90));
    let both = place().var("PROMPTMILL_RETRY__MAX_MS", "50").var("PROMPTMILL_RETRY__BASE_MS", "51");
    assert!(both.refused().contains("must not be above retry.max_ms"));
}

#[test]
fn a_models_name_may_have_dots_and_dashes() {
    let config = place()
        .file("[models.\"vendor/model-1.5\"]\nmax_tokens = 4096\nprefill = true\n")
        .var("PROMPTMILL_MODELS__CLAUDE_SONNET_5_5__VERSION", "2023-06-01")
        .var("PROMPTMILL_MODELS__VENDOR_MODEL_1_5__MAX_TOKENS", "8192")
        .var("PROMPTMILL_MODELS__other-2.0__MAX_TOKENS", "10")
        .flag("models.other-2.0.prefill", "true")
        .good();
    let model = config.models.get("vendor/model-1.5").unwrap();
    assert_eq!((model.max_tokens, model.prefill), (Some(8192), true));
    let model = config.models.get("other-2.0").unwrap();
    assert_eq!((model.max_tokens, model.prefill), (Some(10), true));
    assert_eq!(config.models.get("claude-sonnet-5-5").unwrap().version.as_deref(), Some("2023-06-01"));
    let unknown = place().var("PROMPTMILL_MODELS__NOBODY__PREFILL", "true");
    assert!(unknown.refused().contains("NOBODY is no known model"), "{}", unknown.refused());
}

#[test]
fn a_queue_is_named_as_people_name_queues() {
    let config = place()
        .file("[queues.\"big/jobs\"]\n[queues.bulk]\nprofile = 'default'\n[queues.\"say \\\"x\\\"\"]\n")
        .var("PROMPTMILL_QUEUES__BIG_JOBS__PROFILE", "default")
        .var("PROMPTMILL_QUEUES__DEFAULT__PROFILE", "default")
        .var("PROMPTMILL_QUEUES__a__b__PROFILE", "default")
        .flag("queues.later.profile", "default")
        .good();
    let names: Vec<&str> = config.queues.0.keys().map(String::as_str).collect();
    assert_eq!(names, ["a__b", "big/jobs", "bulk", "default", "later", "say \"x\""]);
    assert!(config.queues.0.iter().all(|(name, queue)| queue.profile.is_some() != name.contains('x')));
    assert_eq!(origin(&config, "queues.\"big/jobs\".profile"), "PROMPTMILL_QUEUES__BIG_JOBS__PROFILE");
    assert_eq!(place().file(&to_toml(&config)).good().queues, config.queues);
    // What stands for any name in the list of defaults is none.
    assert!(place().good().queues.0.is_empty());
}

#[test]
fn everything_is_kept_unless_days_are_set_and_a_queue_may_keep_its_own_time() {
    assert_eq!(place().good().retention, Retention::default());
    let config = place()
        .file("[retention]\nredact_days = 7\n[queues.short]\ndelete_days = 0.5\n[queues.kept]\nredact_days = 0\n[queues.usual]")
        .var("PROMPTMILL_RETENTION__DELETE_DAYS", "30")
        .var("PROMPTMILL_QUEUES__KEPT__DELETE_DAYS", "0")
        .good();
    let days = |days: f64| Some(Duration::from_secs_f64(days * 86_400.0));
    let usual = Retention { prompts: days(7.0), jobs: days(30.0) };
    assert_eq!(config.retention, usual);
    assert_eq!(config.queues.0["usual"].retention, usual);
    assert_eq!(config.queues.0["kept"].retention, Retention::default());
    assert_eq!(config.queues.0["short"].retention, Retention { jobs: days(0.5), ..usual });
    let vain = "queues.\"short\".redact_days redacts nothing: by then queues.\"short\".delete_days has deleted the jobs";
    assert!(config.warnings.contains(&vain.to_owned()), "{:?}", config.warnings);
    assert_eq!(config.warnings.iter().filter(|warning| warning.contains("redacts nothing")).count(), 1);
}

#[test]
fn days_that_cannot_be_are_refused() {
    for (days, name) in
        [("-1", "redact_days"), ("\"soon\"", "delete_days"), ("40000", "delete_days"), ("inf", "redact_days")]
    {
        let told = place().file(&format!("[retention]\n{name} = {days}")).refused();
        assert!(
            told.contains(&format!("retention.{name}"))
                && told.contains("must be a number from 0 to 36500 (days"),
            "{told}"
        );
    }
    let told = place().file("[queues.q]\ndelete_days = -3").refused();
    assert!(told.contains("must be a number from 0 to 36500"), "{told}");
}

#[test]
fn a_profile_is_as_the_api_but_for_what_it_sets() {
    let place = place()
        .file(
            "[api]\nversion = '2025-01-01'\nfirst_event_seconds = 7\n[api.headers]\nx-team = 'mill'\n\
             [profiles.same]\n[profiles.own]\nkey_env = 'OTHER_KEY'\nauth = 'bearer'\n\
             [profiles.own.headers]\nx-team = 'own'\n\
             [profiles.far]\nbase_url = 'https://far.example/'\nversion = '2023-06-01'\n\
             [profiles.\"a b\"]\nkey_file = 'absent'\n\
             [queues.q]\nprofile = 'own'\n[queues.r]\nprofile = 'default'\n",
        )
        .var("ANTHROPIC_API_KEY", "sk-first")
        .var("OTHER_KEY", "sk-canary")
        .var("PROMPTMILL_PROFILES__A_B__BASE_URL", "http://127.0.0.1:9");
    let config = place.good();
    let names: Vec<&str> = config.accounts().map(|account| account.profile.as_str()).collect();
    assert_eq!(names, ["default", "a b", "far", "own", "same"]);
    let key = |name: &str| {
        let read = config.profiles.0[name].key.read().unwrap();
        read.map(|key| (key.secret.expose_secret().to_owned(), key.style))
    };
    assert_eq!(key("same"), Some(("sk-first".into(), Auth::XApiKey)));
    assert_eq!(key("own"), Some(("sk-canary".into(), Auth::Bearer)));
    assert_eq!(key("far"), None, "no server gets a key that was not named for it");
    let headers = |name: &str| {
        let headers = &config.profiles.0[name].headers;
        headers.iter().map(|(_, value)| value.expose_secret().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        (headers("same"), headers("own"), headers("far")),
        (vec!["mill".into()], vec!["own".into()], vec![])
    );
    let far = &config.profiles.0["far"];
    assert_eq!((far.base_url.as_str(), far.version.as_str()), ("https://far.example", "2023-06-01"));
    assert_eq!(
        (far.first_event, config.profiles.0["same"].version.as_str()),
        (Duration::from_secs(7), "2025-01-01")
    );
    assert_eq!(config.profiles.0["a b"].base_url, "http://127.0.0.1:9");
    assert_eq!(origin(&config, "profiles.\"same\".base_url"), "follows api.base_url");
    let shown = to_toml(&config);
    assert!(shown.contains("[profiles.\"own\"]\n# key: *** from OTHER_KEY, sent as bearer"), "{shown}");
    assert!(!format!("{config:?} {shown} {}", to_json(&config)).contains("canary"));
    let idle: Vec<_> =
        config.warnings.iter().filter(|warning| warning.contains("used by no queue")).collect();
    assert_eq!(idle.len(), 3, "{idle:?}");
}

#[test]
fn what_is_set_in_the_tables_is_not_taken_for_a_misspelt_setting() {
    for (text, says) in [
        ("[queues.q]\nmax_running = 3", "is not set here: it is a column of the table queues"),
        ("[queues.q]\nmodel = 'm'", "UPDATE queues SET model = … WHERE name = …"),
        ("[defaults]\noutput_schema = 's'", "output_schema belongs to the policy of a job, or of its queue"),
        ("[queues]\nprofile = 'p'", "is set for one queue: write [queues.\"NAME\"]"),
        ("[queues]\nbulk = 'p'", "is a queue: write [queues.\"NAME\"]"),
    ] {
        let wrong = place().file(text).refused();
        assert!(wrong.contains(says), "{text}: {wrong}");
    }
}

#[test]
fn a_profile_that_cannot_be_is_refused_and_a_key_in_it_not_told() {
    for (text, says) in [
        ("[profiles.bulk]\n[queues.q]\nprofile = 'bluk'", "there is no such profile: did you mean bulk?"),
        ("[queues.q]\nprofile = 'zzzzzz'", "there is no such profile; there are default"),
        ("[profiles.default]", "is the name of [api] itself"),
        ("[profiles.\"a/b\"]", "must not be empty nor have a slash"),
        ("[profiles.p]\nkey_env = 'canary-key'", "must be the name of a variable"),
        (
            "[profiles.p]\nkey = 'canary'",
            "a key does not belong here: put it into a variable that key_env names",
        ),
        ("[profiles.p]\nkey_env = 'K'\nkey_file = 'f'", "stands beside key_env: set one of them"),
        ("[profiles.p]\nbase_url = 'ftp://x'", "profiles.\"p\".base_url ("),
        ("[profiles.p]\nheaders = 'x'", "write [profiles.\"p\".headers]"),
        ("[profiles.p]\nconnect_seconds = 5", "did you mean api.connect_seconds?"),
    ] {
        let refused = place().file(text).refused();
        assert!(refused.contains(says) && !refused.contains("canary"), "{refused} | {says}");
    }
    let unset = place().file("[profiles.p]\nkey_env = 'NOT_THERE'").good();
    let why = unset.profiles.0["p"].no_key().unwrap();
    assert!(why.contains("set NOT_THERE"), "{why}");
}

#[tokio::test]
async fn doctor_looks_at_the_key_of_each_profile() {
    let outside = Says { key: KeyCheck::Refused("401".into()), database: Ok("schema 1".into()) };
    let place =
        place().var("ANTHROPIC_API_KEY", KEY).file("[profiles.b]\n[profiles.c]\nkey_env = 'NOT_THERE'");
    let findings = examine(&place.good(), &outside).await;
    let keys = [Verdict::Ok, Verdict::Fail, Verdict::Ok, Verdict::Fail, Verdict::Fail];
    assert_eq!(verdicts(&findings, "key"), keys);
    let says: Vec<&str> = findings.iter().map(|finding| finding.says.as_str()).collect();
    assert!(says.contains(&"profile b: 401"), "{says:?}");
    assert!(
        says.iter().any(|says| says.starts_with("profile c: there is no API key: set NOT_THERE")),
        "{says:?}"
    );
}

#[test]
fn a_named_section_refuses_what_it_does_not_know() {
    for (place, says) in [
        (place().file("[queues.bulk]\nprofil = 'x'"), "did you mean queues.\"NAME\".profile?"),
        (place().file("[queues]\nprofile = 'x'"), "queues.profile ("),
        (place().file("[queues]\nprofile = 'x'"), "is set for one queue: write [queues.\"NAME\"]"),
        (place().file("[queue.bulk]\nprofile = 'x'"), "did you mean [queues]?"),
        (place().var("PROMPTMILL_QUEUES__BULK__PROFILE", "x"), "BULK is no known queue"),
        (place().var("PROMPTMILL_QUEUES__PROFILE", "x"), "did you mean PROMPTMILL_QUEUES__NAME__PROFILE?"),
        (
            place().var("PROMPTMILL_QUEUES__DEFAULT__PROFIL", "x"),
            "did you mean PROMPTMILL_QUEUES__NAME__PROFILE?",
        ),
        (place().flag("queues.profile", "x"), "did you mean queues.\"NAME\".profile?"),
    ] {
        assert!(place.refused().contains(says), "{} | {says}", place.refused());
    }
}

#[test]
fn known_models_come_with_their_facts_and_without_their_dates() {
    let config = place().good();
    assert!(config.models.get("claude-haiku-4-5-20251001").unwrap().prefill);
    assert_eq!(config.models.get("claude-haiku-4-5-20251001").unwrap().max_tokens, Some(64_000));
    assert!(!config.models.get("claude-sonnet-4-6").unwrap().prefill);
    assert_eq!(config.models.get(&config.defaults.model).unwrap().max_tokens, Some(128_000));
    assert!(config.models.get("claude-haiku-4").is_none());
    assert_eq!(config.models.get("claude-opus-5-5").unwrap().structured_outputs, None, "the API says it");
}

#[test]
fn what_a_person_said_of_a_model_is_told_apart_from_what_is_built_in() {
    let config = place()
        .file("[models.claude-opus-5-5]\nmax_tokens = 128000\nprefill = false\n[models.own]\nversion = 'x'\n")
        .var("PROMPTMILL_MODELS__CLAUDE_HAIKU_4_5__STRUCTURED_OUTPUTS", "no")
        .flag("models.own.context_tokens", "5000")
        .good();
    let own = |name: &str| config.models.get(name).unwrap().own;
    let opus = Said { max_tokens: Some(128_000), prefill: Some(false), ..Said::default() };
    assert_eq!(own("claude-opus-5-5"), opus, "the same as the default, but said");
    assert_eq!(own("claude-haiku-4-5"), Said { structured: Some(false), ..Said::default() });
    assert_eq!(own("own"), Said { window: Some(5000), ..Said::default() });
    assert_eq!(own("claude-sonnet-5-5"), Said::default());
}

#[test]
fn the_key_comes_from_the_highest_layer_that_has_one() {
    let read = |place: &Place| {
        let key = place.good().api.key.read().unwrap().unwrap();
        (key.secret.expose_secret().to_owned(), key.style)
    };
    let place = place();
    fs::write(place.path("anthropic_api_key"), "from-systemd\n").unwrap();
    fs::write(place.path("key"), "from-file\n").unwrap();
    let folder = place.dir.path().display().to_string();
    let file = place.path("key").display().to_string();

    let place = place.var("CREDENTIALS_DIRECTORY", &folder);
    assert_eq!(read(&place), ("from-systemd".into(), Auth::XApiKey));
    let place = place.file(&format!("[api]\nkey_file = '{file}'\n"));
    assert_eq!(read(&place), ("from-file".into(), Auth::XApiKey));
    let place = place.var("ANTHROPIC_AUTH_TOKEN", "from-token");
    assert_eq!(read(&place), ("from-token".into(), Auth::Bearer));
    let place = place.var("ANTHROPIC_API_KEY", "from-env");
    assert_eq!(read(&place), ("from-env".into(), Auth::XApiKey));
    let place = place.var("PROMPTMILL_API__KEY_FILE", &file).var("PROMPTMILL_API__AUTH", "bearer");
    assert_eq!(read(&place), ("from-file".into(), Auth::Bearer));
    // A mounted secret is replaced while we run.
    let source = place.good().api.key;
    fs::write(&file, "rotated").unwrap();
    assert_eq!(source.read().unwrap().unwrap().secret.expose_secret(), "rotated");
}

#[test]
fn a_key_in_a_file_of_settings_is_refused_and_not_told() {
    for text in [
        format!("[api]\nkey = '{KEY}'\n"),
        format!("[api]\nversion = '{KEY}'\n"),
        format!("[api.headers]\nx-api-key = '{KEY}'\n"),
        format!("[api.headers]\nx-team = '{KEY}'\n"),
        format!("anthropic_api_key = '{KEY}'\n"),
    ] {
        let says = place().file(&text).refused();
        assert!(says.contains("ANTHROPIC_API_KEY") && !says.contains("canary"), "{says}");
    }
}

#[test]
fn a_broken_file_is_named_by_its_line_and_not_quoted() {
    let place = place().file(&format!("[database]\nurl = 'postgres://u:{PASSWORD}@h/db\n"));
    let says = place.refused();
    assert!(says.contains("promptmill.toml (line 2): not TOML"), "{says}");
    assert!(!says.contains("canary"), "{says}");
}

#[test]
fn headers_add_up_and_none_of_our_own_is_taken() {
    let config = place()
        .file("[api.headers]\nx-team = 'mill'\n")
        .var("ANTHROPIC_CUSTOM_HEADERS", "x-gateway: canary-header\nanthropic-beta: a,b\n")
        .good();
    let mut headers: Vec<_> =
        config.api.headers.iter().map(|(name, value)| (name.as_str(), value.expose_secret())).collect();
    headers.sort_unstable();
    assert_eq!(headers, [("anthropic-beta", "a,b"), ("x-gateway", "canary-header"), ("x-team", "mill")]);
    for (text, says) in [
        ("content-type: text/plain", "a header of our own"),
        ("no colon", "line 1 is not `Name: value`"),
        ("bad name: x", "is no name of a header"),
    ] {
        let place = place().var("ANTHROPIC_CUSTOM_HEADERS", text);
        assert!(place.refused().contains(says), "{}", place.refused());
    }
}

#[test]
fn no_secret_is_printed_by_anything() {
    let place = place()
        .var("DATABASE_URL", &format!("postgres://mill:{PASSWORD}@db.example/app?password={PASSWORD}"))
        .var("PROMPTMILL_DATABASE__DIRECT_URL", &format!("postgres://mill:{PASSWORD}@direct.example/app"))
        .var("ANTHROPIC_API_KEY", KEY)
        .var("ANTHROPIC_CUSTOM_HEADERS", "x-gateway: canary-header");
    let config = place.good();
    let around = Surroundings::new(place.vars.clone(), place.dir.path());
    for printed in [
        format!("{config:?}"),
        format!("{config:#?}"),
        to_toml(&config),
        to_json(&config).to_string(),
        format!("{around:?}"),
    ] {
        assert!(!printed.contains("canary"), "{printed}");
    }
    let shown = to_toml(&config);
    assert!(shown.contains("url = \"postgres://mill:***@db.example/app?password=***\""), "{shown}");
    assert!(shown.contains("# key: *** from ANTHROPIC_API_KEY, sent as x-api-key"), "{shown}");
    assert!(shown.contains("x-gateway = \"***\""), "{shown}");
    // The secrets are there all the same.
    assert!(config.database.url.expose().contains(PASSWORD));

    let wrong = place
        .var("PROMPTMILL_DATABASE__URL", &format!("mysql://u:{PASSWORD}@h/db"))
        .var("PROMPTMILL_API__BASE_URL", &format!("https://u:{PASSWORD}@h"))
        .var("PROMPTMILL_WORKER__CONCURRENCY", &format!("postgres://u:{PASSWORD}@h/db"));
    assert!(!wrong.refused().contains("canary"), "{}", wrong.refused());
    assert!(!format!("{:?}", wrong.load().unwrap_err()).contains("canary"));
}

#[test]
fn what_config_prints_is_a_file_that_says_the_same() {
    let first = place().var("PROMPTMILL_WORKER__CONCURRENCY", "7").good();
    let again = place().file(&to_toml(&first)).good();
    let values = |config: &Config| -> Vec<(String, String, String)> {
        let value = |entry: &promptmill::config::Entry| {
            (entry.section.clone(), entry.key.clone(), entry.value.to_string())
        };
        config.entries.iter().map(value).collect()
    };
    assert_eq!(values(&first), values(&again));
    assert!(again.entries.iter().all(|entry| entry.origin.ends_with("promptmill.toml")));
}

#[test]
fn every_knob_is_read_by_somebody() {
    // One of each kind, of a name that all of them may have.
    let named: BTreeSet<&str> =
        knobs().iter().filter_map(|knob| knob.section.strip_suffix(".\"NAME\"")).collect();
    let part = |section: &&str| {
        // A tool that does nothing is refused.
        let least = if *section == "tools" { "\ncommand = ['true']" } else { "" };
        format!("[{section}.claude-sonnet-5-5]{least}")
    };
    let parts: Vec<String> = named.iter().map(part).collect();
    let config = place().file(&parts.join("\n")).good();
    for knob in knobs() {
        let section = knob.section.replace("NAME", "claude-sonnet-5-5");
        let read = config.entries.iter().any(|entry| entry.section == section && entry.key == knob.key);
        // A table without entries has no line of its own.
        assert!(read || knob.key == "headers", "{} is read by nobody", knob.name());
    }
}

#[test]
fn the_documented_table_is_the_one_of_the_file() {
    let documented = include_str!("../../docs/settings.md");
    assert!(documented.contains(&table()), "write this into it:\n\n{}", table());
}

#[test]
fn nothing_outside_reaches_an_isolated_configuration() {
    let flags = Flags { concurrency: Some(3), ..Flags::default() };
    let config = Config::load_from(&flags, &Surroundings::default()).unwrap();
    assert_eq!(config.worker.concurrency, 3);
    assert!(config.file.is_none() && config.api.key.read().unwrap().is_none());
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_ends_the_commands_with_their_codes() {
    let flags = Flags { config_file: Some(PathBuf::from("absent.toml")), ..Flags::default() };
    let shown = cli::config::run(ConfigArgs { check: true, json: false }, &flags).await.unwrap();
    assert_eq!(shown, ConfigError::EXIT);
    let outside = Says { key: KeyCheck::Accepted, database: Ok("schema 1".into()) };
    let examined = cli::doctor::run(DoctorArgs { json: true }, &flags, &outside).await.unwrap();
    assert_eq!(examined, 1);
}

/// An API and a database that say what they are told to.
struct Says {
    key: KeyCheck,
    database: Result<String, String>,
}

#[async_trait]
impl Outside for Says {
    async fn key(&self, _config: &Config, _api: &ApiSettings) -> KeyCheck {
        self.key.clone()
    }

    async fn database(&self, _config: &Config) -> Result<String, String> {
        self.database.clone()
    }

    async fn models(&self, _config: &Config) -> Option<InUse> {
        None
    }
}

fn verdicts(findings: &[Finding], subject: &str) -> Vec<Verdict> {
    findings.iter().filter(|finding| finding.subject == subject).map(|finding| finding.verdict).collect()
}

#[tokio::test]
async fn a_healthy_place_has_nothing_that_fails() {
    let place = place().var("ANTHROPIC_API_KEY", KEY);
    let outside = Says { key: KeyCheck::Accepted, database: Ok("schema 1".into()) };
    let findings = examine(&place.good(), &outside).await;
    assert!(findings.iter().all(|finding| finding.verdict != Verdict::Fail), "{findings:?}");
    assert_eq!(verdicts(&findings, "key"), [Verdict::Ok, Verdict::Ok]);
    let sqlite = findings.iter().find(|finding| finding.subject == "SQLite").unwrap();
    assert!(sqlite.says.contains("3.") && sqlite.says.contains("built in"), "{sqlite:?}");
    assert!(!format!("{findings:?}").contains("canary"));
}

#[test]
fn state_is_kept_where_the_setting_says_else_systemd_else_the_desktop_else_the_home_folder() {
    let places = [
        ("PROMPTMILL_WORKER__STATE_DIR", "here/state", "here/state"),
        ("STATE_DIRECTORY", "/var/lib/mill:/var/lib/other", "/var/lib/mill"),
        ("XDG_STATE_HOME", "/xdg", "/xdg/promptmill"),
        ("HOME", "/home/miller", "/home/miller/.local/state/promptmill"),
    ];
    for (first, (name, _, dir)) in places.iter().enumerate() {
        let place = places[first..].iter().fold(place(), |place, (name, value, _)| place.var(name, value));
        let config = place.good();
        assert_eq!(config.worker.state_dir.as_deref(), Some(Path::new(dir)), "{name}");
        assert_eq!(origin(&config, "worker.state_dir"), *name);
        assert!(to_toml(&config).contains(&format!("state_dir = \"{dir}\"")), "{name}");
    }
    let relative = place().var("XDG_STATE_HOME", "not/absolute").good();
    assert_eq!(relative.worker.state_dir, None, "the standard says to ignore it");
    assert_eq!(origin(&relative, "worker.state_dir"), "default");
}

#[tokio::test]
async fn a_state_folder_that_cannot_be_made_is_a_warning_and_looking_makes_none() {
    let outside = Says { key: KeyCheck::Accepted, database: Ok("schema 1".into()) };
    let place = place().file("");
    let (good, bad) = (place.path("a/b"), place.path("promptmill.toml/state"));
    let asked = async |dir: &Path| {
        let setting = ("worker.state_dir".to_owned(), dir.display().to_string());
        let flags = Flags { settings: vec![setting], ..Flags::default() };
        let config = Config::load_from(&flags, &Surroundings::default()).unwrap();
        verdicts(&examine(&config, &outside).await, "state")
    };
    assert_eq!(asked(&good).await, [Verdict::Ok]);
    assert!(!place.path("a").exists());
    assert_eq!(asked(&bad).await, [Verdict::Warn]);
    assert_eq!(asked(Path::new("")).await, [Verdict::Warn]);
}

#[tokio::test]
async fn what_cannot_work_fails_and_tells_no_secret() {
    let url = format!("postgres://mill:{PASSWORD}@db.example/app");
    let place = place()
        .var("ANTHROPIC_API_KEY", KEY)
        .var("ANTHROPIC_BASE_URL", "http://gateway.example")
        .var("DATABASE_URL", &url);
    let outside = Says {
        key: KeyCheck::Refused(format!("401: {KEY} is no key")),
        database: Err(format!("cannot connect to {url}")),
    };
    let findings = examine(&place.good(), &outside).await;
    assert_eq!(verdicts(&findings, "key"), [Verdict::Ok, Verdict::Fail]);
    assert_eq!(verdicts(&findings, "database"), [Verdict::Fail]);
    assert_eq!(verdicts(&findings, "base URL"), [Verdict::Warn]);
    assert!(!format!("{findings:?}").contains("canary"), "{findings:?}");
}

#[tokio::test]
async fn a_missing_key_fails_only_where_one_is_needed() {
    let outside = Says { key: KeyCheck::Accepted, database: Ok("schema 1".into()) };
    let findings = examine(&place().good(), &outside).await;
    assert_eq!(verdicts(&findings, "key"), [Verdict::Fail]);
    let local = place().var("ANTHROPIC_BASE_URL", "http://127.0.0.1:8080").good();
    let findings = examine(&local, &outside).await;
    assert_eq!(verdicts(&findings, "key"), [Verdict::Ok]);
    assert_eq!(verdicts(&findings, "base URL"), []);
}

#[cfg(unix)]
#[tokio::test]
async fn files_with_secrets_that_others_may_read_are_told() {
    use std::os::unix::fs::PermissionsExt;

    let place = place();
    let key = place.path("key");
    fs::write(&key, KEY).unwrap();
    let text = format!(
        "[api]\nkey_file = '{}'\n[database]\nurl = 'postgres://mill:{PASSWORD}@db.example/app'\n",
        key.display()
    );
    let place = place.file(&text);
    let outside = Says { key: KeyCheck::Accepted, database: Ok("schema 1".into()) };
    for (mode, configuration, about_key) in [
        (0o644, vec![Verdict::Ok, Verdict::Warn], vec![Verdict::Ok, Verdict::Warn, Verdict::Ok]),
        (0o600, vec![Verdict::Ok], vec![Verdict::Ok, Verdict::Ok]),
    ] {
        for path in [&key, &place.path("promptmill.toml")] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let findings = examine(&place.good(), &outside).await;
        assert_eq!(verdicts(&findings, "configuration"), configuration, "{mode:o}");
        assert_eq!(verdicts(&findings, "key"), about_key, "{mode:o}");
    }
}

/// A writer that keeps what is written.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn json_logs_are_one_object_a_line_and_hold_no_other_crates_details() {
    let config = place().var("PROMPTMILL_LOG__FORMAT", "json").var("PROMPTMILL_LOG__LEVEL", "trace").good();
    let kept = Kept::default();
    let writer = kept.clone();
    let subscriber = telemetry::subscriber(&config.log, false, move || writer.clone());
    tracing::subscriber::with_default(subscriber, || {
        tracing::info!(target: "promptmill::worker", { job.id = 7 }, "job 7 answered");
        tracing::debug!(target: "sqlx::query", statement = "canary");
        tracing::trace!(target: "hyper::proto::h1", "x-api-key: canary");
    });
    let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 1, "{text}");
    assert_eq!(lines[0]["message"], "job 7 answered");
    assert_eq!(lines[0]["job.id"], 7);
}
