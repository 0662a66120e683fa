//! `[tools."NAME"]`: the programs and addresses that jobs may have run.

use std::path::PathBuf;

use reqwest::Url;
use secrecy::SecretString;

use super::knobs;
use super::layers::Surroundings;
use super::read::Reader;
use super::sections::Queues;
use crate::worker::tools::{Action, CommandSettings, EndpointSettings, Token, ToolSettings};

/// What every program gets: enough to find others, to find its own files, and to say dates and words as
/// people here do. Nothing else is passed on unasked: the daemon's variables hold keys and passwords.
const USUAL: [&str; 4] = ["PATH", "HOME", "LANG", "TZ"];
/// Longest name of a tool that the API takes.
const NAME_MAX: usize = 128;
/// Longest time of one run, in seconds: a day.
const TIME_MAX: f64 = 86_400.0;
/// Largest result: what a request to the API may hold.
const OUTPUT_MAX: u64 = 32 << 20;

pub(super) fn tools(r: &mut Reader, around: &Surroundings) -> Vec<ToolSettings> {
    let names = r.keys(&[], "tools");
    names.into_iter().map(|name| tool(r, around, name)).collect()
}

fn tool(r: &mut Reader, around: &Surroundings, name: String) -> ToolSettings {
    let s = ["tools", name.as_str()];
    let before = r.problems.len();
    let argv = r.list(&s, "command");
    let unread = r.problems.len() > before;
    let url = r.optional_text(&s, "url");
    let token = r.optional_text(&s, "token_env");
    let timeout = r.seconds(&s, "timeout_seconds", &(0.1..=TIME_MAX));
    let output_max = r.bytes(&s, "output_max_bytes", &(1..=OUTPUT_MAX)) as usize;
    let idempotent = r.flag(&s, "idempotent");
    let passed = r.list(&s, "env");
    let cwd = r.optional_text(&s, "cwd").map(PathBuf::from);
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-');
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
        r.problem(
            &s,
            "command",
            "no tool can have this name: letters, digits, _ and -, at most 128, are all the API takes",
        );
    }
    if let Some(wrong) = passed.iter().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        r.problem(
            &s,
            "env",
            format!("`{wrong}` is no name of a variable: its value comes from the daemon's own environment"),
        );
    }
    let action = match (argv.is_empty(), url) {
        (false, None) => {
            if token.is_some() {
                r.problem(
                    &s,
                    "token_env",
                    "belongs to `url`: name the variable in `env`, and the program gets it",
                );
            }
            Action::Command(CommandSettings { argv, cwd, env: environment(around, &passed) })
        }
        (true, Some(url)) => {
            for (key, set) in [("env", !passed.is_empty()), ("cwd", cwd.is_some())] {
                if set {
                    r.problem(&s, key, "belongs to `command`: nothing is started for a `url`");
                }
            }
            endpoint(r, around, &s, &url, token)
        }
        (is_none, _) => {
            let what = if is_none {
                "a tool needs one: a program and its arguments, or a `url` in its place"
            } else {
                "a tool has one or the other: take this or `url` out"
            };
            // There is a command, and what is wrong with it was said.
            if !unread {
                r.problem(&s, "command", what);
            }
            Action::Command(CommandSettings { argv, cwd, env: Vec::new() })
        }
    };
    ToolSettings { name, action, timeout, output_max, idempotent }
}

fn environment(around: &Surroundings, passed: &[String]) -> Vec<(String, SecretString)> {
    let mut names: Vec<&str> = USUAL.to_vec();
    names.extend(passed.iter().map(String::as_str));
    names.sort_unstable();
    names.dedup();
    names.into_iter().filter_map(|name| Some((name.to_owned(), around.var(name)?.into()))).collect()
}

fn endpoint(r: &mut Reader, around: &Surroundings, s: &[&str], text: &str, token: Option<String>) -> Action {
    let token = match token {
        None => Token::None,
        Some(variable) => match around.var(&variable) {
            Some(value) => Token::Known(value.into()),
            // No problem yet: who only looks at the queue from another shell need not have it.
            None => Token::Missing { variable },
        },
    };
    let url = Url::parse(text.trim()).map_err(|err| format!("is no URL: {err}")).and_then(|url| {
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err("must begin with https:// or http:// and name a host".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold a user name or a password: use `token_env`".to_owned());
        }
        Ok(url)
    });
    match url {
        Ok(url) => Action::Endpoint(EndpointSettings { url, token }),
        Err(what) => {
            r.problem(s, "url", what);
            Action::Command(CommandSettings { argv: Vec::new(), cwd: None, env: Vec::new() })
        }
    }
}

/// Checks that the tools of every queue are there.
pub(super) fn check_queues(r: &mut Reader, queues: &Queues, tools: &[ToolSettings]) {
    for (queue, settings) in &queues.0 {
        for name in settings.tools.iter().filter(|name| !tools.iter().any(|tool| tool.name == **name)) {
            let what = match knobs::closest_word(name, tools.iter().map(|tool| tool.name.as_str())) {
                Some(meant) => format!("there is no tool `{name}`: did you mean `{meant}`?"),
                None => format!("there is no tool `{name}`: describe it as [tools.\"{name}\"]"),
            };
            r.problem(&["queues", queue], "tools", what);
        }
    }
}
