//! How a job wants to be treated: its own policy over its queue's over the configured one,
//! merged per top-level field.

use std::time::Duration;

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::Invalid;

/// What to do when `max_tokens` cut an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnMaxTokens {
    /// Go on where it was cut.
    Continue,
    /// Ask again with more room.
    Regenerate,
    /// Keep what is there: `truncated`.
    Stop,
}

impl OnMaxTokens {
    /// Returns the choice of a word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "continue" => Some(Self::Continue),
            "regenerate" => Some(Self::Regenerate),
            "stop" => Some(Self::Stop),
            _ => None,
        }
    }
}

/// What to do with a call that a crash cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCrash {
    /// Go on from what was kept.
    Resume,
    /// Ask afresh.
    Retry,
    /// End the job: it is called at most once.
    Fail,
}

impl OnCrash {
    /// Returns the choice of a word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "resume" => Some(Self::Resume),
            "retry" => Some(Self::Retry),
            "fail" => Some(Self::Fail),
            _ => None,
        }
    }
}

/// What to do with an answer that calls tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnToolUse {
    /// End the job as `needs_tool`.
    Finish,
    /// Let somebody answer the calls in `tool_calls`, and go on.
    Wait,
    /// Run tools of the configuration, and go on.
    Run,
}

impl OnToolUse {
    /// Returns the choice of a word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "finish" => Some(Self::Finish),
            "wait" => Some(Self::Wait),
            "run" => Some(Self::Run),
            _ => None,
        }
    }
}

/// What to do with an input that is longer than the model's context window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnContextOverflow {
    /// Refuse it.
    Fail,
    /// Leave out the oldest turns until it fits.
    DropOldest,
}

impl OnContextOverflow {
    /// Returns the choice of a word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "fail" => Some(Self::Fail),
            "drop_oldest" => Some(Self::DropOldest),
            _ => None,
        }
    }
}

/// The rules one job is treated by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// `on_max_tokens`.
    pub on_max_tokens: OnMaxTokens,
    /// `max_continuations`; regenerations count.
    pub max_continuations: i32,
    /// `max_output_tokens`: the whole answer.
    pub max_output_tokens: i64,
    /// `on_crash`.
    pub on_crash: OnCrash,
    /// `max_failures`: the fifth of 5 ends the job.
    pub max_failures: i32,
    /// `timeout_seconds`: one call.
    pub timeout: Duration,
    /// `max_turns`: tool and pause turns.
    pub max_turns: i32,
    /// `on_tool_use`.
    pub on_tool_use: OnToolUse,
    /// `on_context_overflow`.
    pub on_context_overflow: OnContextOverflow,
    /// `output_schema`: JSON text, as it was written.
    pub output_schema: Option<String>,
    /// `max_repairs`: how often the model is shown what its structured output got wrong.
    pub max_repairs: i32,
    /// `fallback_model`: asked once after a refusal.
    pub fallback_model: Option<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            on_max_tokens: OnMaxTokens::Continue,
            max_continuations: 8,
            max_output_tokens: 256_000,
            on_crash: OnCrash::Resume,
            max_failures: 5,
            timeout: Duration::from_hours(1),
            max_turns: 20,
            on_tool_use: OnToolUse::Finish,
            on_context_overflow: OnContextOverflow::Fail,
            output_schema: None,
            max_repairs: 1,
            fallback_model: None,
        }
    }
}

/// Longest time a policy may name, in seconds: ten years. More is a slip of units.
const SECONDS_MAX: i64 = 315_360_000;

impl Policy {
    /// Lays the fields of one JSON object over this policy. `path` names the object in errors.
    pub fn overlay(&mut self, json: &str, path: &str) -> Result<(), Invalid> {
        let fields: IndexMap<String, Box<RawValue>> = serde_json::from_str(json)
            .map_err(|_| Invalid::new(path, "not_an_object", format!("{path} is not a JSON object")))?;
        for (name, value) in &fields {
            self.set(name, value.get(), &format!("{path}.{name}"))?;
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &str, path: &str) -> Result<(), Invalid> {
        match name {
            "on_max_tokens" => {
                self.on_max_tokens = choice(path, value, OnMaxTokens::parse, "continue, regenerate or stop")?;
            }
            "on_crash" => self.on_crash = choice(path, value, OnCrash::parse, "resume, retry or fail")?,
            "max_continuations" => self.max_continuations = whole(path, value, 0, 1000)? as i32,
            "max_output_tokens" => self.max_output_tokens = whole(path, value, 1, i64::from(i32::MAX))?,
            "max_failures" => self.max_failures = whole(path, value, 1, 1000)? as i32,
            "max_turns" => self.max_turns = whole(path, value, 0, 1000)? as i32,
            "timeout_seconds" => {
                self.timeout = Duration::from_secs(whole(path, value, 1, SECONDS_MAX)? as u64);
            }
            // Read by the INSERT trigger; here it is only held to be a number of seconds.
            "deadline_seconds" => {
                whole(path, value, 1, SECONDS_MAX)?;
            }
            "on_tool_use" => self.on_tool_use = choice(path, value, OnToolUse::parse, "finish, wait or run")?,
            "on_context_overflow" => {
                self.on_context_overflow =
                    choice(path, value, OnContextOverflow::parse, "fail or drop_oldest")?;
            }
            "output_schema" => self.output_schema = (value != "null").then(|| value.to_owned()),
            "max_repairs" => self.max_repairs = whole(path, value, 0, 100)? as i32,
            "fallback_model" => self.fallback_model = name_or_null(path, value)?,
            _ => {
                return Err(Invalid::new(
                    path,
                    "unknown_field",
                    format!("{path} is not a policy this version knows: take it out or correct its name"),
                ));
            }
        }
        Ok(())
    }
}

fn choice<T>(path: &str, value: &str, parse: impl Fn(&str) -> Option<T>, words: &str) -> Result<T, Invalid> {
    let word: Option<String> = serde_json::from_str(value).ok();
    word.as_deref().and_then(parse).ok_or_else(|| {
        Invalid::new(path, "wrong_value", format!("{path} is {}: it must be {words}", shown(value)))
    })
}

fn whole(path: &str, value: &str, least: i64, most: i64) -> Result<i64, Invalid> {
    serde_json::from_str(value).ok().filter(|number| (least..=most).contains(number)).ok_or_else(|| {
        let why = format!("{path} is {}: it must be a whole number from {least} to {most}", shown(value));
        Invalid::new(path, "wrong_value", why)
    })
}

fn name_or_null(path: &str, value: &str) -> Result<Option<String>, Invalid> {
    let name: Option<String> = serde_json::from_str(value).map_err(|_| {
        Invalid::new(path, "wrong_value", format!("{path} is {}: it must be a model's name", shown(value)))
    })?;
    Ok(name.filter(|name| !name.trim().is_empty()))
}

/// The start of a value, for a sentence.
pub(super) fn shown(value: &str) -> String {
    const SHOWN_MAX: usize = 60;
    if value.len() <= SHOWN_MAX {
        value.to_owned()
    } else {
        format!("{}…", &value[..value.floor_char_boundary(SHOWN_MAX)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_over_each_other_one_by_one() {
        let mut policy = Policy::default();
        policy.overlay(r#"{"max_failures":2,"on_crash":"retry"}"#, "queues.policy").expect("valid");
        policy.overlay(r#"{"max_failures":3,"deadline_seconds":60}"#, "policy").expect("valid");
        assert_eq!(policy.max_failures, 3);
        assert_eq!(policy.on_crash, OnCrash::Retry);
        assert_eq!(policy.max_continuations, 8);
    }

    #[test]
    fn what_is_unknown_or_wrong_is_refused_with_its_path() {
        for (json, code, part) in [
            (r#"{"max_failurs":2}"#, "unknown_field", "policy.max_failurs is not a policy"),
            (r#"{"max_failures":0}"#, "wrong_value", "policy.max_failures is 0"),
            (r#"{"max_failures":"2"}"#, "wrong_value", "whole number"),
            (r#"{"max_failures":1.5}"#, "wrong_value", "whole number"),
            (r#"{"on_crash":"pray"}"#, "wrong_value", "resume, retry or fail"),
            (r#"{"on_tool_use":"call"}"#, "wrong_value", "finish, wait or run"),
            (r#"{"on_context_overflow":"drop"}"#, "wrong_value", "fail or drop_oldest"),
            (r#"{"fallback_model":7}"#, "wrong_value", "a model's name"),
            ("[1]", "not_an_object", "policy is not a JSON object"),
        ] {
            let invalid = Policy::default().overlay(json, "policy").expect_err(json);
            assert_eq!(invalid.code, code, "{json}");
            assert!(invalid.why.contains(part), "{json}: {}", invalid.why);
        }
    }
}
