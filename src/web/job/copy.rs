//! A job as something to paste elsewhere: an INSERT, and a call of the API without its key.
//!
//! The call is made by the rules that a daemon makes it by, from what this process was configured with.
//! What a daemon may know better is said in comments above it.

use std::time::Instant;

use serde_json::{Map, Value};

use crate::cli::gates::scope::quoted;
use crate::cli::mill::defaults;
use crate::cli::out::one_line;
use crate::config::{ApiSettings, Auth, Config};
use crate::domain::job::{Claimed, Job, JobId, Lease, Raw, Tally};
use crate::domain::talk::{Step, Talk};
use crate::store::board::QueueSays;
use crate::store::{AccountRow, DEFAULT_PROFILE, NewJob};

/// Returns the statement that asks the same again, of the table that is named so. `key` is left out: it is
/// taken.
pub fn sql(asked: &NewJob, table: &str) -> String {
    let max_tokens = asked.max_tokens.map(|n| n.to_string());
    let priority = asked.priority.filter(|n| *n != 0).map(|n| n.to_string());
    let text = |text: &Option<String>| text.as_deref().map(|text| format!("'{}'", text.replace('\'', "''")));
    let queue = asked.queue.clone().filter(|queue| queue != "default");
    let columns = [
        ("queue", text(&queue)),
        ("batch", text(&asked.batch)),
        ("model", text(&asked.model)),
        ("max_tokens", max_tokens),
        ("priority", priority),
        ("prompt", text(&asked.prompt)),
        ("system", text(&asked.system)),
        ("params", text(&asked.params)),
        ("policy", text(&asked.policy)),
        ("metadata", text(&asked.metadata)),
    ];
    let said: Vec<(&str, String)> =
        columns.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let names: Vec<&str> = said.iter().map(|(name, _)| *name).collect();
    let values: Vec<&str> = said.iter().map(|(_, value)| value.as_str()).collect();
    format!("INSERT INTO {table} ({})\nVALUES ({});", names.join(", "), values.join(", "))
}

/// What the tables say of how a job is asked, beside its own row.
#[derive(Debug, Clone, Default)]
pub struct Around {
    /// Its queue.
    pub queue: QueueSays,
    /// With which account daemons ask each queue, as they said.
    pub accounts: Vec<AccountRow>,
}

/// Returns the first call of a job for a shell; the key comes from its environment.
pub fn curl(asked: &NewJob, around: &Around, config: &Config) -> String {
    let job = match Job::read(&claimed(asked, &around.queue), &defaults(config)) {
        Ok(job) => job,
        Err(invalid) => return comment(&format!("no call is made for this job: {}", invalid.why)),
    };
    let (model, queue) = (job.model.clone(), job.queue.clone());
    let Step::Ask(request) = Talk::resume(job, &[], &[], Instant::now()).next() else {
        return comment("no call is made for this job");
    };
    let mut notes = vec![
        "The first call, as the process of this page is configured; others may be otherwise.".to_owned(),
    ];
    if !names_max_tokens(asked) && config.defaults.max_tokens.is_none() {
        notes.push(
            "max_tokens is what is known here of the model's own; a daemon asks the API for it.".to_owned(),
        );
    }
    let (told, configured) = (profile_told(around, &queue), account(config, &queue));
    let account = told.and_then(|told| config.accounts().find(|other| other.profile == told));
    let account = account.unwrap_or(configured);
    let url = match told.filter(|told| *told != account.profile) {
        Some(told) => {
            notes.push(format!(
                "Daemons ask this queue with profile {}; its address is not known here.",
                one_line(told, 100)
            ));
            "\"$ANTHROPIC_BASE_URL\"/v1/messages".to_owned()
        }
        None => quoted(&format!("{}/v1/messages", account.base_url)),
    };
    if !account.headers.is_empty() {
        let names: Vec<&str> = account.headers.iter().map(|(name, _)| name.as_str()).collect();
        notes.push(format!("Also sent, and left out here: {}.", one_line(&names.join(", "), 200)));
    }
    let mut lines: Vec<String> = notes.iter().map(|note| comment(note)).collect();
    lines.push(format!("curl -N {url} \\"));
    lines.push(format!("  -H \"{}\" \\", key(account)));
    let version = config.models.get(&model).and_then(|model| model.version.as_deref());
    let version = version.unwrap_or(&account.version);
    if !version.is_empty() {
        lines.push(format!("  -H {} \\", shell(&format!("anthropic-version: {version}"))));
    }
    lines.push("  -H 'content-type: application/json' \\".to_owned());
    lines.push(format!("  -d {}", shell(&String::from_utf8_lossy(&request.body.to_vec()))));
    lines.join("\n")
}

/// The row as a claim would bring it.
fn claimed(asked: &NewJob, queue: &QueueSays) -> Claimed {
    Claimed {
        lease: Lease { job: JobId(0), claim: 1, run: 1 },
        queue: asked.queue.clone().unwrap_or_else(|| "default".to_owned()),
        batch: asked.batch.clone(),
        prompt: asked.prompt.clone(),
        system: asked.system.clone(),
        model: asked.model.clone(),
        max_tokens: asked.max_tokens,
        params: asked.params.clone().map(Raw::from),
        policy: asked.policy.clone(),
        queue_model: queue.model.clone(),
        queue_policy: queue.policy.clone(),
        garbled: None,
        bytes: 0,
        waited: None,
        tally: Tally::default(),
        calls: Vec::new(),
        tools: Vec::new(),
    }
}

fn names_max_tokens(asked: &NewJob) -> bool {
    let params =
        asked.params.as_deref().and_then(|json| serde_json::from_str::<Map<String, Value>>(json).ok());
    asked.max_tokens.is_some() || params.is_some_and(|params| params.contains_key("max_tokens"))
}

/// The account of a queue by the configuration.
fn account<'a>(config: &'a Config, queue: &str) -> &'a ApiSettings {
    let named = config.queues.0.get(queue).and_then(|queue| queue.profile.as_ref());
    named.and_then(|name| config.profiles.0.get(name)).unwrap_or(&config.api)
}

/// The profile of a queue as daemons said last; `None`: none did.
fn profile_told<'a>(around: &'a Around, queue: &str) -> Option<&'a str> {
    let of = |queue: &str| around.accounts.iter().find(|account| account.queue == queue);
    of(queue).or_else(|| of(DEFAULT_PROFILE)).map(|account| account.profile.as_str())
}

/// The header of the key, which the shell fills in.
fn key(account: &ApiSettings) -> &'static str {
    let used = account.key.read().ok().flatten().map(|credential| credential.style);
    match used.or(account.key.style).unwrap_or(Auth::XApiKey) {
        Auth::XApiKey => "x-api-key: $ANTHROPIC_API_KEY",
        Auth::Bearer => "authorization: Bearer $ANTHROPIC_AUTH_TOKEN",
    }
}

/// A line that a shell passes by, whatever is in it.
fn comment(text: &str) -> String {
    format!("# {}", one_line(text, 1_000))
}

fn shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, Surroundings};

    fn asked() -> NewJob {
        NewJob {
            queue: Some("default".to_owned()),
            batch: Some("it's".to_owned()),
            prompt: Some("Say 'hi'; DROP TABLE".to_owned()),
            params: Some(r#"{"stop_sequences":["x"]}"#.to_owned()),
            ..NewJob::default()
        }
    }

    fn config(settings: &[(&str, &str)]) -> Config {
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let flags = Flags { settings, ..Flags::default() };
        Config::load_from(&flags, &Surroundings::default()).expect("the configuration is good")
    }

    #[test]
    fn sql_quotes_and_leaves_defaults_out() {
        assert_eq!(
            sql(&asked(), "\"other\".jobs"),
            "INSERT INTO \"other\".jobs (batch, prompt, params)\nVALUES ('it''s', 'Say ''hi''; DROP TABLE', \
             '{\"stop_sequences\":[\"x\"]}');"
        );
    }

    #[test]
    fn a_call_can_be_pasted_into_a_shell_and_holds_no_key() {
        let config = config(&[("api.base_url", "https://api.example/x"), ("defaults.model", "m")]);
        let curl = curl(&asked(), &Around::default(), &config);
        assert!(curl.contains("$ANTHROPIC_API_KEY"), "{curl}");
        assert!(curl.contains("\ncurl -N https://api.example/x/v1/messages \\\n"), "{curl}");
        assert!(
            curl.ends_with(concat!(
                r#"-d '{"model":"m","max_tokens":32000,"messages":[{"role":"user","content":"Say '\''hi'\''; DROP TABLE"}],"#,
                r#""stop_sequences":["x"],"stream":true}'"#
            )),
            "{curl}"
        );
    }

    #[test]
    fn a_call_is_what_a_daemon_would_send() {
        let config = config(&[
            ("api.version", "2030-01-01"),
            ("defaults.max_tokens", "700"),
            ("profiles.other.base_url", "https://other.example"),
            ("profiles.other.version", "2031-01-01"),
            ("queues.slow.profile", "other"),
            ("models.old.version", "2023-06-01"),
        ]);
        let around = |model: Option<&str>, profile: Option<&str>| Around {
            queue: QueueSays { model: model.map(str::to_owned), policy: None },
            accounts: profile
                .map(|profile| AccountRow {
                    queue: "slow".to_owned(),
                    profile: profile.to_owned(),
                    key: "k".to_owned(),
                    classes: None,
                })
                .into_iter()
                .collect(),
        };
        let slow =
            NewJob { queue: Some("slow".to_owned()), prompt: Some("p".to_owned()), ..NewJob::default() };
        let made = curl(&slow, &around(Some("queues-own"), None), &config);
        for said in [
            "curl -N https://other.example/v1/messages",
            "'anthropic-version: 2031-01-01'",
            r#"{"model":"queues-own","max_tokens":700,"#,
        ] {
            assert!(made.contains(said), "{said}: {made}");
        }
        assert!(!made.contains("max_tokens is what"), "{made}");
        let own = NewJob { model: Some("old".to_owned()), max_tokens: Some(9), ..slow.clone() };
        let made = curl(&own, &around(None, None), &config);
        assert!(
            made.contains("'anthropic-version: 2023-06-01'") && made.contains(r#""max_tokens":9"#),
            "{made}"
        );
        // What daemons said goes before what this process would do, and what it does not know it says.
        let made = curl(&slow, &around(None, Some("default")), &config);
        assert!(
            made.contains("https://api.anthropic.com/v1/messages") && made.contains("2030-01-01"),
            "{made}"
        );
        let made = curl(&slow, &around(None, Some("far\nrm -r")), &config);
        assert!(
            made.contains("# Daemons ask this queue with profile far rm -r; its address is not known here."),
            "{made}"
        );
        assert!(made.contains("curl -N \"$ANTHROPIC_BASE_URL\"/v1/messages"), "{made}");
    }

    #[test]
    fn a_job_that_is_never_sent_says_why() {
        let config = config(&[]);
        let broken = NewJob { params: Some("[1]".to_owned()), ..asked() };
        let made = curl(&broken, &Around::default(), &config);
        assert!(made.starts_with("# no call is made for this job: params"), "{made}");
    }
}
