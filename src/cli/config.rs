//! `promptmill config`: the effective values, and where each came from. Prints no secret.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde_json::json;

use super::out;
use crate::config::{ApiSettings, Auth, Config, ConfigError, Entry, Flags, part};

/// Shows the effective configuration and where each value came from
#[derive(Debug, Clone, clap::Args)]
pub struct ConfigArgs {
    /// Only check it; exit code 3 where something is wrong
    #[arg(long)]
    pub check: bool,
    /// Write JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// Runs the command; returns the exit code.
#[expect(clippy::unused_async, reason = "all commands are run the same way")]
pub async fn run(args: ConfigArgs, flags: &Flags) -> anyhow::Result<u8> {
    let checked = Config::load(flags).and_then(|config| {
        config.accounts().try_for_each(|account| account.key.read().map(drop))?;
        Ok(config)
    });
    let config = match checked {
        Ok(config) => config,
        Err(error) if args.json => {
            say(&format!("{:#}\n", problems_json(&error)))?;
            return Ok(ConfigError::EXIT);
        }
        Err(error) => {
            out::say(&error.to_string());
            return Ok(ConfigError::EXIT);
        }
    };
    match (args.check, args.json) {
        (true, true) => say(&format!("{:#}\n", json!({ "ok": true, "warnings": warnings(&config) })))?,
        (_, true) => say(&format!("{:#}\n", to_json(&config)))?,
        (check, false) => {
            for warning in warnings(&config) {
                out::say(&format!("warning: {warning}"));
            }
            say(&if check { checked_sentence(&config) } else { to_toml(&config) })?;
        }
    }
    Ok(0)
}

fn checked_sentence(config: &Config) -> String {
    match &config.file {
        Some(file) => format!("the configuration is good ({})\n", file.display()),
        None => "the configuration is good (no file; defaults and environment)\n".to_owned(),
    }
}

fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = config.warnings.clone();
    for account in config.accounts() {
        let whose = config.whose(account);
        warnings.extend(account.no_key().map(|why| format!("{whose}{why}")));
        if account.is_in_the_clear() {
            warnings.push(format!(
                "{} sends key and prompts in the clear: use https, or localhost",
                account.base_url
            ));
        }
    }
    warnings
}

/// Returns the effective values as TOML that could be a file of one's own, the origins as comments.
pub fn to_toml(config: &Config) -> String {
    let mut text = String::new();
    let mut sections: Vec<&str> = Vec::new();
    for entry in &config.entries {
        if !sections.contains(&entry.section.as_str()) {
            sections.push(&entry.section);
        }
    }
    for section in sections {
        let blank = if text.is_empty() { "" } else { "\n" };
        write!(text, "{blank}[{section}]\n{}", key_comment(config, section)).expect(STRING);
        for entry in config.entries.iter().filter(|entry| entry.section == section) {
            let line = format!("{} = {}", bare(&entry.key), entry.value);
            writeln!(text, "{line:<44} # {}", entry.origin).expect(STRING);
        }
    }
    text
}

const STRING: &str = "a String takes every write";

/// The key is no setting, but people look for it here.
fn key_comment(config: &Config, section: &str) -> String {
    let is_its_own = |account: &&ApiSettings| match account.profile.as_str() {
        name if name == config.api.profile => section == "api",
        name => section == part("profiles", name),
    };
    let Some(account) = config.accounts().find(is_its_own) else { return String::new() };
    match account.key.read() {
        Ok(Some(key)) => format!(
            "# key: *** from {}, sent as {}, fingerprint {}\n",
            account.key.describe(),
            style(key.style),
            key.fingerprint()
        ),
        Ok(None) => "# key: none\n".to_owned(),
        Err(error) => format!("# key: {error}\n"),
    }
}

/// Returns how a key is sent, in words.
pub(super) fn style(style: Auth) -> &'static str {
    match style {
        Auth::XApiKey => "x-api-key",
        Auth::Bearer => "bearer",
    }
}

fn bare(key: &str) -> String {
    let plain = key.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-');
    if plain { key.to_owned() } else { format!("\"{key}\"") }
}

/// Returns the effective values for programs.
pub fn to_json(config: &Config) -> serde_json::Value {
    let settings: serde_json::Map<String, serde_json::Value> = config
        .entries
        .iter()
        .map(|Entry { section, key, value, origin }| {
            (format!("{section}.{key}"), json!({ "value": value, "from": origin }))
        })
        .collect();
    let key = |account: &ApiSettings| {
        account.key.read().ok().flatten().map(|key| {
            json!({
                "from": account.key.describe(),
                "sent_as": style(key.style),
                "fingerprint": key.fingerprint(),
            })
        })
    };
    let keys: serde_json::Map<String, serde_json::Value> =
        config.profiles.0.iter().map(|(name, account)| (name.clone(), key(account).into())).collect();
    json!({ "file": config.file, "key": key(&config.api), "profile_keys": keys, "settings": settings, "warnings": warnings(config) })
}

fn problems_json(error: &ConfigError) -> serde_json::Value {
    let problems: Vec<_> = error
        .problems
        .iter()
        .map(|problem| json!({ "key": problem.key, "from": problem.origin, "what": problem.what }))
        .collect();
    json!({ "ok": false, "problems": problems })
}

/// Writes to stdout. Whoever reads may leave early, as `head` does.
pub(super) fn say(text: &str) -> io::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
