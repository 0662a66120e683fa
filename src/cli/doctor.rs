//! `promptmill doctor`: looks at everything a run needs, and says what to do about what is amiss.
//!
//! Knows the configuration, files and libraries itself; what needs the API or the tables is asked
//! through [`Outside`]. Changes nothing, and tells no secret.

use std::fmt::{self, Write as _};
use std::path::Path;

use async_trait::async_trait;
use secrecy::ExposeSecret as _;
use serde_json::json;

use super::config::{say, style};
use crate::config::{ApiSettings, Config, ConfigError, Flags};

mod host;
mod models;

pub use models::InUse;

/// Checks configuration, key, database and libraries, and says what to do
#[derive(Debug, Clone, clap::Args)]
pub struct DoctorArgs {
    /// Write JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// What the API says of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyCheck {
    /// It is good.
    Accepted,
    /// It is not: the sentence says why.
    Refused(String),
    /// Nobody knows: no network, a server without `/v1/models`, an overload.
    Unclear(String),
}

/// What doctor cannot see by itself.
#[async_trait]
pub trait Outside: Send + Sync {
    /// Asks an account's API, for free, whether its key is good.
    async fn key(&self, config: &Config, api: &ApiSettings) -> KeyCheck;

    /// Connects to the database; returns what stands there (`schema 3 in promptmill.db`), or why
    /// it cannot be used and what to do. Must quote no password.
    async fn database(&self, config: &Config) -> Result<String, String>;

    /// Asks the API which models it has, and the database which are named there; `None`: the API does
    /// not say.
    async fn models(&self, config: &Config) -> Option<InUse>;
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Good.
    Ok,
    /// It works, but somebody should look.
    Warn,
    /// It cannot work.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub verdict: Verdict,
    /// What was looked at.
    pub subject: &'static str,
    /// What was found, and what to do.
    pub says: String,
}

impl Finding {
    fn ok(subject: &'static str, says: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, subject, says: says.into() }
    }

    fn warn(subject: &'static str, says: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, subject, says: says.into() }
    }

    fn fail(subject: &'static str, says: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, subject, says: says.into() }
    }
}

/// Runs the command; returns 0, or 1 where something cannot work.
pub async fn run(args: DoctorArgs, flags: &Flags, outside: &dyn Outside) -> anyhow::Result<u8> {
    let findings = match Config::load(flags) {
        Ok(config) => examine(&config, outside).await,
        Err(error) => broken(&error),
    };
    say(&if args.json { to_json(&findings) } else { to_text(&findings) })?;
    Ok(u8::from(findings.iter().any(|finding| finding.verdict == Verdict::Fail)))
}

/// Looks at everything, in the order in which a run would meet it.
pub async fn examine(config: &Config, outside: &dyn Outside) -> Vec<Finding> {
    let mut findings = configuration(config);
    for account in config.accounts() {
        findings.extend(key(config, account, outside).await);
        findings.extend(base_url(config, account));
    }
    findings.push(state_dir(config));
    findings.extend(config.tools.iter().map(|tool| match tool.check() {
        Ok(found) => Finding::ok("tool", format!("{}: {found}", tool.name)),
        Err(why) => Finding::fail("tool", format!("{}: cannot be run: {why}", tool.name)),
    }));
    let url = &config.database.url;
    // Drivers' errors are other people's words.
    let masked = |text: String| text.replace(&url.expose(), &url.to_string());
    findings.push(match outside.database(config).await {
        Ok(found) => Finding::ok("database", masked(found)),
        Err(why) => Finding::fail("database", masked(why)),
    });
    if let Some(in_use) = outside.models(config).await {
        findings.extend(models::findings(&config.defaults.model, &in_use));
    }
    if let Some(file) = url.file() {
        findings.extend(network_file(file));
        findings.extend(host::sqlite_versions().await);
    }
    findings
}

fn broken(error: &ConfigError) -> Vec<Finding> {
    error.problems.iter().map(|problem| Finding::fail("configuration", problem.to_string())).collect()
}

fn configuration(config: &Config) -> Vec<Finding> {
    let found = match &config.file {
        Some(file) => format!("good, with {}", file.display()),
        None => "good, without a file".to_owned(),
    };
    let mut findings = vec![Finding::ok("configuration", found)];
    findings.extend(config.warnings.iter().map(|warning| Finding::warn("configuration", warning)));
    if let Some(file) = &config.file {
        let path = file.display().to_string();
        let secret_inside = config.entries.iter().any(|entry| {
            entry.origin == path && entry.value.as_str().is_some_and(|text| text.contains("***"))
        });
        if secret_inside && host::mode(file).is_some_and(|mode| mode & 0o044 != 0) {
            findings.push(Finding::warn(
                "configuration",
                format!("{path} holds a password or a header and others may read it: chmod 600 {path}"),
            ));
        }
    }
    findings
}

async fn key(config: &Config, api: &ApiSettings, outside: &dyn Outside) -> Vec<Finding> {
    let source = &api.key;
    let whose = config.whose(api);
    let key = match source.read() {
        Ok(Some(key)) => key,
        Ok(None) => {
            let none = Finding::ok("key", format!("{whose}none, and {} may need none", api.base_url));
            return vec![api.no_key().map_or(none, |why| Finding::fail("key", format!("{whose}{why}")))];
        }
        Err(error) => return vec![Finding::fail("key", format!("{whose}{error}"))],
    };
    let found = format!(
        "{whose}{}, fingerprint {}, sent as {}",
        source.describe(),
        key.fingerprint(),
        style(key.style)
    );
    let mut findings = vec![Finding::ok("key", found)];
    if let Some(path) = source.file()
        // A group may be how the daemon reads it: a cluster's secrets are mounted so.
        && host::mode(path).is_some_and(|mode| mode & 0o007 != 0)
    {
        let path = path.display();
        let said = format!("{whose}every user of this host may read {path}: let the daemon's alone read it");
        findings.push(Finding::warn("key", said));
    }
    // What a server says may repeat what it was sent.
    let masked = |why: String| format!("{whose}{}", why.replace(key.secret.expose_secret(), "***"));
    findings.push(match outside.key(config, api).await {
        KeyCheck::Accepted => Finding::ok("key", format!("{whose}{} accepts it", api.base_url)),
        KeyCheck::Refused(why) => Finding::fail("key", masked(why)),
        KeyCheck::Unclear(why) => Finding::warn("key", masked(why)),
    });
    findings
}

fn base_url(config: &Config, api: &ApiSettings) -> Option<Finding> {
    api.is_in_the_clear().then(|| {
        Finding::warn(
            "base URL",
            format!(
                "{}{} sends key and prompts in the clear: use https, or a server on this host",
                config.whose(api),
                api.base_url
            ),
        )
    })
}

fn state_dir(config: &Config) -> Finding {
    let subject = "state";
    let Some(dir) = &config.worker.state_dir else {
        return Finding::warn(
            subject,
            "no folder for answers that the database cannot take: set worker.state_dir, or they are held in \
             memory only",
        );
    };
    match host::unwritable(dir) {
        None => {
            Finding::ok(subject, format!("answers that the database cannot take go to {}", dir.display()))
        }
        Some(why) => Finding::warn(
            subject,
            format!(
                "{} cannot be written ({why}): set worker.state_dir to a folder of this user, or answers that \
                 the database cannot take are held in memory only",
                dir.display()
            ),
        ),
    }
}

fn network_file(file: &Path) -> Option<Finding> {
    let kind = host::network_filesystem(file)?;
    Some(Finding::warn(
        "database",
        format!(
            "{} is on a network filesystem ({kind}), where SQLite's locks and WAL are not safe: move it to a \
             local disk, or use Postgres",
            file.display()
        ),
    ))
}

fn to_text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { verdict, subject, says } in findings {
        writeln!(text, "{verdict:<4}  {subject:<13}  {says}").expect("a String takes every write");
    }
    text
}

fn to_json(findings: &[Finding]) -> String {
    let lines: Vec<_> = findings
        .iter()
        .map(|Finding { verdict, subject, says }| {
            json!({ "verdict": verdict.to_string(), "subject": subject, "says": says })
        })
        .collect();
    format!("{:#}\n", json!(lines))
}
