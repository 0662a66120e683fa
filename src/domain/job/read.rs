//! Reading a claimed row: what is sent on stays byte for byte, what no call could mend is refused.

use std::collections::HashMap;

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::policy::shown;
use super::{Claimed, Lease, OnToolUse, Policy, Raw};
use crate::domain::model::undated;
use crate::domain::outcome::Fault;
use crate::domain::schema::Schema;

/// What a model can do, as far as it changes what we send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// The most output tokens one call may have.
    pub max_tokens: i64,
    /// Whether that is the API's word or the operator's, so that a row that asks for more gets this.
    /// What is built in may be behind the times.
    pub binding: bool,
    /// Whether it accepts a trailing assistant message.
    pub prefill: bool,
    /// The most input tokens it reads; `None`: not known.
    pub window: Option<i64>,
    /// Whether it takes a schema for its answer (`output_config.format`).
    pub structured: bool,
}

/// What a row that does not say gets. Built by the configuration.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// `defaults.model`.
    pub model: String,
    /// `defaults.max_tokens`; `None`: the model's own maximum.
    pub max_tokens: Option<i64>,
    /// `[defaults]`'s policy.
    pub policy: Policy,
    /// Whether rows may name `mcp_servers`.
    pub mcp_servers: bool,
    /// Whether what is sent again is put into the prompt cache.
    pub cache_turns: bool,
    /// `api.request_max_bytes`: the largest body that the API takes.
    pub request_max: usize,
    /// What is known of models, by name: [`Layers::facts`](crate::domain::model::Layers::facts).
    pub models: HashMap<String, ModelFacts>,
}

impl Defaults {
    /// Maximum output of a model that the configuration does not know: what every current model
    /// of the first party can do at least (API reference, model overview).
    pub const MAX_TOKENS_UNKNOWN: i64 = 32_000;

    /// Returns what is known of a model, by its name, else by its name without the date at its end.
    pub fn facts(&self, model: &str) -> ModelFacts {
        let known = self.models.get(model).or_else(|| self.models.get(undated(model)));
        known.cloned().unwrap_or(ModelFacts {
            max_tokens: Self::MAX_TOKENS_UNKNOWN,
            binding: false,
            prefill: false,
            window: None,
            structured: true,
        })
    }
}

/// Why a job cannot be asked at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// Where: `params.messages[2].role`.
    pub path: String,
    /// Our code: `unknown_field`, `wrong_type`, …
    pub code: &'static str,
    /// One sentence that names the path and says what to do.
    pub why: String,
}

impl Invalid {
    pub(super) fn new(path: &str, code: &'static str, why: impl Into<String>) -> Self {
        Self { path: path.to_owned(), code, why: why.into() }
    }

    /// Returns the fault for the result row.
    pub fn fault(&self) -> Fault {
        Fault::new("invalid_job", Some(self.code), self.why.clone())
    }
}

/// A job that can be asked.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of the row, and none excludes another")]
pub struct Job {
    /// The fence.
    pub lease: Lease,
    /// Its queue.
    pub queue: String,
    /// Its label.
    pub batch: Option<String>,
    /// The model to ask.
    pub model: String,
    /// Whether the job itself names the model; else the queue or the configuration does.
    pub model_named: bool,
    /// `max_tokens` of the first call.
    pub max_tokens: i64,
    /// The most one call of this job may be given.
    pub max_tokens_ceiling: i64,
    /// Whether a cut answer may be continued by a trailing assistant message.
    pub prefill: bool,
    /// What the model can do.
    pub facts: ModelFacts,
    /// The model that is asked once after a refusal, with what it can do.
    pub fallback: Option<(String, ModelFacts)>,
    /// Its rules.
    pub policy: Policy,
    /// The user's messages, each as it was inserted.
    pub messages: Vec<Raw>,
    /// Every other body field, in order, as it was inserted.
    pub fields: Vec<(String, Raw)>,
    /// `policy.output_schema`: what the answer is held to. It is not among the fields: whether it is sent
    /// beside the prompt or in it depends on the model ([`Job::fields_for`]).
    pub schema: Option<Schema>,
    /// Whether a schema binds the answer, so that it cannot be stitched.
    pub structured: bool,
    /// Whether tools are declared, so that turns are sent back verbatim.
    pub tools: bool,
    /// Whether the row asks for thinking.
    pub thinking: bool,
    /// Whether what is sent again is to be cached; a row that caches by itself is left alone.
    pub cache_turns: bool,
}

impl Job {
    /// Understands a claimed row. Nothing is sent for a row that this refuses.
    pub fn read(claimed: &Claimed, defaults: &Defaults) -> Result<Self, Invalid> {
        if let Some(column) = claimed.garbled {
            let why =
                format!("{column} holds bytes that are not UTF-8: insert the job again, written in UTF-8");
            return Err(Invalid::new(column, "not_utf8", why));
        }
        let (policy, schema_path) = policy_of(claimed, defaults)?;
        let schema = schema_of(&policy, schema_path)?;
        let mut params: IndexMap<String, &RawValue> = match &claimed.params {
            Some(json) => serde_json::from_str(json.get()).map_err(|err| {
                Invalid::new(
                    "params",
                    "not_an_object",
                    format!("params cannot be read as a JSON object: {err}"),
                )
            })?,
            None => IndexMap::new(),
        };
        params.shift_remove("stream");
        check_fields(&params, defaults)?;

        let (model, model_named) = model_of(claimed, &mut params, defaults)?;
        let facts = defaults.facts(&model);
        let own_room = match params.shift_remove("max_tokens") {
            Some(raw) => Some(room(raw)?),
            None => claimed.max_tokens,
        };
        let wanted = own_room.or(defaults.max_tokens).unwrap_or(facts.max_tokens);
        // More than the model has is a 400 of every call.
        let max_tokens = if facts.binding { wanted.min(facts.max_tokens) } else { wanted };

        // What is large is not copied: it stays where the claim put it.
        let part = |raw: &RawValue| match &claimed.params {
            Some(json) => json.part(raw.get()),
            None => Raw::from(raw.get()),
        };
        let messages = match (params.shift_remove("messages"), &claimed.prompt) {
            (Some(raw), _) => read_messages(raw)?.into_iter().map(part).collect(),
            (None, Some(prompt)) if prompt.trim().is_empty() => {
                // The API refuses text of white space alone (API reference, errors of Messages: 400).
                let why = "prompt holds no text: say in it what is asked";
                return Err(Invalid::new("prompt", "missing", why));
            }
            (None, Some(prompt)) => vec![Raw::from(user_message(prompt))],
            (None, None) => {
                return Err(Invalid::new("prompt", "missing", "prompt and params.messages are both missing"));
            }
        };
        let mut fields: Vec<(String, Raw)> = Vec::with_capacity(params.len() + 1);
        if let Some(system) = &claimed.system {
            fields.push(("system".to_owned(), Raw::from(json_string(system))));
        }
        fields.extend(params.into_iter().map(|(name, raw)| (name, part(raw))));

        let has = |name: &str| fields.iter().any(|(field, value)| field == name && value.get() != "null");
        let shaped = if has("output_format") {
            Some("params.output_format")
        } else {
            asks_for_schema(&fields).then_some("params.output_config.format")
        };
        if let (Some(place), Some(_)) = (shaped, &schema) {
            return Err(Invalid::new(
                schema_path,
                "said_twice",
                format!("{schema_path} and {place} both say what the answer looks like: say it once"),
            ));
        }
        let structured = shaped.is_some() || schema.is_some();
        let tools = has("tools") || has("mcp_servers");
        let thinking = has("thinking");
        // Text that speaks of it has its quotes escaped.
        let caches = claimed.params.as_deref().is_some_and(|params| params.contains("\"cache_control\""));
        let fallback = fallback_of(&policy, &model, defaults)?;
        let job = Self {
            lease: claimed.lease,
            queue: claimed.queue.clone(),
            batch: claimed.batch.clone(),
            model_named,
            max_tokens,
            max_tokens_ceiling: facts.max_tokens.max(max_tokens),
            prefill: facts.prefill && !structured && !thinking,
            facts,
            fallback,
            cache_turns: defaults.cache_turns && !caches,
            policy,
            messages,
            schema,
            structured,
            tools,
            thinking,
            fields,
            model,
        };
        job.check_size(claimed, defaults.request_max)?;
        Ok(job)
    }

    /// Returns the size of the first body that is sent for this job, in bytes.
    pub fn size(&self) -> usize {
        const FRAME: usize = r#"{"model":,"max_tokens":,"messages":[],"stream":true}"#.len();
        let messages = self.messages.iter().map(|message| message.get().len()).sum::<usize>();
        let commas = self.messages.len().saturating_sub(1);
        let field = |(name, value): &(String, Raw)| json_string(name).get().len() + value.get().len() + 2;
        let model = json_string(&self.model).get().len();
        let room = self.max_tokens.to_string().len();
        FRAME + model + room + messages + commas + self.fields.iter().map(field).sum::<usize>()
    }

    /// Refuses what the API would refuse unread, and names the part that is largest.
    fn check_size(&self, claimed: &Claimed, max: usize) -> Result<(), Invalid> {
        let size = self.size();
        if size <= max {
            return Ok(());
        }
        let messages = self.messages.iter().enumerate().map(|(at, message)| {
            let in_params = claimed.prompt.is_none();
            let path = if in_params { format!("params.messages[{at}]") } else { "prompt".to_owned() };
            (path, message.get().len())
        });
        let fields = self.fields.iter().map(|(name, value)| {
            let is_column = name == "system" && claimed.system.is_some();
            let path = if is_column { name.clone() } else { format!("params.{name}") };
            (path, value.get().len())
        });
        let (path, largest) = messages.chain(fields).max_by_key(|(_, size)| *size).unwrap_or_default();
        let why = format!(
            "the request would be {} large, {} of it {path}, and the API takes {} (api.request_max_bytes): send less, \
             or name the images and documents by URL or file id",
            mib(size),
            mib(largest),
            mib(max)
        );
        Err(Invalid::new(&path, "too_large", why))
    }
}

/// A size for people. With three digits behind the point: what is a little too large must not look equal.
fn mib(bytes: usize) -> String {
    format!("{:.3} MiB", bytes as f64 / (1024.0 * 1024.0))
}

/// The model to ask, and whether the job itself names it.
fn model_of(
    claimed: &Claimed,
    params: &mut IndexMap<String, &RawValue>,
    defaults: &Defaults,
) -> Result<(String, bool), Invalid> {
    let (path, named, model) = match (params.shift_remove("model"), &claimed.model, &claimed.queue_model) {
        (Some(raw), _, _) => ("params.model", true, text("params.model", raw)?),
        (None, Some(model), _) => ("model", true, model.clone()),
        (None, None, Some(model)) => ("queues.model", false, model.clone()),
        (None, None, None) => ("defaults.model", false, defaults.model.clone()),
    };
    if model.trim().is_empty() {
        let why = "model is empty: name one, or leave it NULL for the default";
        return Err(Invalid::new("model", "wrong_value", why));
    }
    check_name(path, &model)?;
    Ok((model, named))
}

/// The model that is asked once after a refusal, with what it can do; no model is its own.
fn fallback_of(
    policy: &Policy,
    model: &str,
    defaults: &Defaults,
) -> Result<Option<(String, ModelFacts)>, Invalid> {
    let Some(other) = policy.fallback_model.clone().filter(|other| other != model) else { return Ok(None) };
    check_name("policy.fallback_model", &other)?;
    let facts = defaults.facts(&other);
    Ok(Some((other, facts)))
}

/// Refuses a model's name that would be more than a name where it is shown: in logs, on terminals.
fn check_name(path: &str, model: &str) -> Result<(), Invalid> {
    if model.chars().any(char::is_control) {
        let why = format!(
            "{path} holds control characters (a line break, a tab, an escape): no model is called so"
        );
        return Err(Invalid::new(path, "wrong_value", why));
    }
    Ok(())
}

/// The policy of a row over its queue's over the configured one, and where its schema was said.
fn policy_of(claimed: &Claimed, defaults: &Defaults) -> Result<(Policy, &'static str), Invalid> {
    let mut policy = defaults.policy.clone();
    if let Some(json) = &claimed.queue_policy {
        policy.overlay(json, "queues.policy")?;
    }
    let Some(json) = &claimed.policy else {
        return Ok((policy, "queues.policy.output_schema"));
    };
    let queues = policy.output_schema.take();
    policy.overlay(json, "policy")?;
    if policy.output_schema.is_some() {
        return Ok((policy, "policy.output_schema"));
    }
    // Nothing was said, or null: only the latter takes the queue's away.
    if !names_schema(json) {
        policy.output_schema = queues;
    }
    Ok((policy, "queues.policy.output_schema"))
}

fn names_schema(policy: &str) -> bool {
    serde_json::from_str::<IndexMap<String, &RawValue>>(policy)
        .is_ok_and(|fields| fields.contains_key("output_schema"))
}

fn schema_of(policy: &Policy, path: &str) -> Result<Option<Schema>, Invalid> {
    let Some(json) = &policy.output_schema else { return Ok(None) };
    let schema = Schema::read(json)
        .map_err(|why| Invalid::new(path, "wrong_schema", format!("{path} cannot be used: {why}")))?;
    Ok(Some(schema))
}

impl Job {
    /// Whether calls of tools are answered, so that the conversation goes on after them.
    pub fn converses(&self) -> bool {
        self.tools && self.policy.on_tool_use != OnToolUse::Finish
    }

    /// From now on another model is asked.
    pub fn ask_instead(&mut self, (model, facts): (String, ModelFacts)) {
        self.max_tokens_ceiling = facts.max_tokens;
        self.prefill = facts.prefill && !self.structured && !self.thinking;
        self.model_named = true;
        self.model = model;
        self.facts = facts;
    }
}

/// What the SDKs take beside the body: no row chooses a header, a URL or a key.
const NOT_BODY: [&str; 13] = [
    "betas",
    "extra_headers",
    "extra_query",
    "extra_body",
    "headers",
    "workspace_id",
    "user_profile_id",
    "anthropic_version",
    "anthropic_beta",
    "timeout",
    "max_retries",
    "api_key",
    "base_url",
];

fn check_fields(params: &IndexMap<String, &RawValue>, defaults: &Defaults) -> Result<(), Invalid> {
    for (name, value) in params {
        let path = format!("params.{name}");
        if NOT_BODY.contains(&name.as_str()) || name.starts_with("anthropic-") || name.starts_with("x-") {
            return Err(Invalid::new(
                &path,
                "a_header",
                format!("{path} is a header: set it in the configuration"),
            ));
        }
        if name == "mcp_servers" && !defaults.mcp_servers {
            let why = "params.mcp_servers is refused: rows choose no URL; api.mcp_servers = true in the configuration allows it";
            return Err(Invalid::new(&path, "mcp_servers", why));
        }
        // The types of the Messages API's own fields (API reference, Create a Message). Fields that
        // we do not know pass: the list changes monthly.
        let wanted: &[Json] = match name.as_str() {
            "system" => &[Json::Text, Json::Array],
            "messages" | "tools" | "stop_sequences" | "mcp_servers" => &[Json::Array],
            "thinking" | "output_config" | "output_format" | "tool_choice" | "metadata" | "cache_control"
            | "context_management" | "diagnostics" => &[Json::Object],
            "temperature" | "top_p" | "top_k" => &[Json::Number],
            "service_tier" | "speed" | "inference_geo" => &[Json::Text],
            "container" => &[Json::Text, Json::Object],
            _ => continue,
        };
        let found = Json::of(value.get());
        if found != Json::Null && !wanted.contains(&found) {
            let words: Vec<&str> = wanted.iter().map(|kind| kind.word()).collect();
            let why = format!("{path} is {}: it must be {}", found.word(), words.join(" or "));
            return Err(Invalid::new(&path, "wrong_type", why));
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Json {
    Null,
    Bool,
    Number,
    Text,
    Array,
    Object,
}

impl Json {
    fn of(raw: &str) -> Self {
        match raw.as_bytes().first() {
            Some(b'{') => Self::Object,
            Some(b'[') => Self::Array,
            Some(b'"') => Self::Text,
            Some(b't' | b'f') => Self::Bool,
            Some(b'n') | None => Self::Null,
            Some(_) => Self::Number,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "true or false",
            Self::Number => "a number",
            Self::Text => "a string",
            Self::Array => "an array",
            Self::Object => "an object",
        }
    }
}

fn text(path: &str, raw: &RawValue) -> Result<String, Invalid> {
    serde_json::from_str(raw.get()).map_err(|_| {
        Invalid::new(path, "wrong_type", format!("{path} is {}: it must be a string", shown(raw.get())))
    })
}

fn room(raw: &RawValue) -> Result<i64, Invalid> {
    let most = i64::from(i32::MAX);
    serde_json::from_str(raw.get()).ok().filter(|n| (1..=most).contains(n)).ok_or_else(|| {
        let why =
            format!("params.max_tokens is {}: it must be a whole number of at least 1", shown(raw.get()));
        Invalid::new("params.max_tokens", "wrong_value", why)
    })
}

fn read_messages(raw: &RawValue) -> Result<Vec<&RawValue>, Invalid> {
    let messages: Vec<&RawValue> = serde_json::from_str(raw.get()).map_err(|err| {
        let why = match Json::of(raw.get()) {
            Json::Array => format!("params.messages cannot be read as an array: {err}"),
            other => format!("params.messages is {}: it must be an array", other.word()),
        };
        Invalid::new("params.messages", "wrong_type", why)
    })?;
    if messages.is_empty() {
        return Err(Invalid::new(
            "params.messages",
            "wrong_value",
            "params.messages is empty: one message is needed",
        ));
    }
    for (at, message) in messages.iter().enumerate() {
        check_message(message, &format!("params.messages[{at}]"))?;
    }
    Ok(messages)
}

fn check_message(message: &RawValue, path: &str) -> Result<(), Invalid> {
    let fields: IndexMap<String, &RawValue> = serde_json::from_str(message.get()).map_err(|_| {
        let why = format!(
            "{path} is {}: it must be an object with role and content",
            Json::of(message.get()).word()
        );
        Invalid::new(path, "wrong_type", why)
    })?;
    for (name, wanted) in [("role", &[Json::Text][..]), ("content", &[Json::Text, Json::Array][..])] {
        let path = format!("{path}.{name}");
        let Some(value) = fields.get(name) else {
            return Err(Invalid::new(&path, "missing", format!("{path} is missing")));
        };
        if !wanted.contains(&Json::of(value.get())) {
            let words: Vec<&str> = wanted.iter().map(|kind| kind.word()).collect();
            let why =
                format!("{path} is {}: it must be {}", Json::of(value.get()).word(), words.join(" or "));
            return Err(Invalid::new(&path, "wrong_type", why));
        }
    }
    Ok(())
}

fn asks_for_schema(fields: &[(String, Raw)]) -> bool {
    fields.iter().filter(|(name, _)| name == "output_config").any(|(_, value)| {
        serde_json::from_str::<IndexMap<String, &RawValue>>(value.get())
            .is_ok_and(|config| config.get("format").is_some_and(|format| format.get() != "null"))
    })
}

/// Returns a JSON string literal.
pub(crate) fn json_string(text: &str) -> Box<RawValue> {
    serde_json::value::to_raw_value(text).expect("a string is always JSON")
}

/// Returns a user message with one text.
pub(crate) fn user_message(text: &str) -> Box<RawValue> {
    message("user", json_string(text).get())
}

/// Returns a message with content given as JSON text.
pub(crate) fn message(role: &str, content: &str) -> Box<RawValue> {
    let json = format!(r#"{{"role":"{role}","content":{content}}}"#);
    RawValue::from_string(json).expect("role is a plain word and content is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::{JobId, Tally};

    fn defaults() -> Defaults {
        Defaults {
            model: "claude-default".into(),
            max_tokens: None,
            policy: Policy::default(),
            mcp_servers: false,
            cache_turns: true,
            request_max: 1 << 25,
            models: HashMap::from([(
                "claude-default".to_owned(),
                ModelFacts {
                    max_tokens: 128_000,
                    binding: true,
                    prefill: false,
                    window: None,
                    structured: true,
                },
            )]),
        }
    }

    fn claimed() -> Claimed {
        Claimed {
            lease: Lease { job: JobId(1), claim: 1, run: 1 },
            queue: "default".into(),
            batch: None,
            prompt: Some("Say hello".into()),
            system: None,
            model: None,
            max_tokens: None,
            params: None,
            policy: None,
            queue_model: None,
            queue_policy: None,
            garbled: None,
            bytes: 9,
            waited: None,
            tally: Tally::default(),
            calls: Vec::new(),
            tools: Vec::new(),
        }
    }

    #[test]
    fn a_bare_prompt_is_a_complete_job() {
        let job = Job::read(&claimed(), &defaults()).expect("valid");
        assert_eq!(job.model, "claude-default");
        assert!(!job.model_named);
        assert_eq!(job.max_tokens, 128_000);
        assert_eq!(job.messages[0].get(), r#"{"role":"user","content":"Say hello"}"#);
    }

    #[test]
    fn a_models_name_with_a_control_character_is_refused_and_its_place_is_named() {
        let refused = |row: &Claimed, path: &str| {
            let invalid = Job::read(row, &defaults()).expect_err("no model is called so");
            assert_eq!((invalid.path.as_str(), invalid.code), (path, "wrong_value"));
            assert!(invalid.why.starts_with(&format!("{path} holds control characters")), "{}", invalid.why);
        };
        for name in ["m\n", "m\u{1b}[2J", "m\0", "m\u{85}"] {
            let json = serde_json::json!({ "model": name }).to_string();
            refused(&Claimed { params: Some(json.as_str().into()), ..claimed() }, "params.model");
            refused(&Claimed { model: Some(name.into()), ..claimed() }, "model");
            refused(&Claimed { queue_model: Some(name.into()), ..claimed() }, "queues.model");
            let policy = serde_json::json!({ "fallback_model": name }).to_string();
            refused(&Claimed { policy: Some(policy), ..claimed() }, "policy.fallback_model");
        }
        let odd = Claimed { model: Some("vendor/m 1.5:latest é".into()), ..claimed() };
        assert!(Job::read(&odd, &defaults()).is_ok());
    }

    #[test]
    fn the_jobs_model_comes_before_the_queues_before_the_default() {
        let mut row = claimed();
        row.queue_model = Some("q".into());
        assert_eq!(Job::read(&row, &defaults()).expect("valid").model, "q");
        row.model = Some("m".into());
        let job = Job::read(&row, &defaults()).expect("valid");
        assert_eq!(
            (job.model.as_str(), job.model_named, job.max_tokens),
            ("m", true, Defaults::MAX_TOKENS_UNKNOWN)
        );
    }

    #[test]
    fn max_tokens_is_at_most_the_models_own_where_that_is_known_for_sure() {
        for (model, asked, binding, sent) in [
            ("claude-default", Some(200_000), true, 128_000),
            ("claude-default-20260101", Some(200_000), true, 128_000),
            ("claude-default", Some(1000), true, 1000),
            ("claude-default", None, true, 128_000),
            ("claude-default", Some(200_000), false, 200_000),
            ("claude-default", None, false, 128_000),
            ("nobody-knows", Some(200_000), true, 200_000),
            ("nobody-knows", None, true, Defaults::MAX_TOKENS_UNKNOWN),
        ] {
            let mut defaults = defaults();
            defaults.models.get_mut("claude-default").expect("it is there").binding = binding;
            let row = Claimed { model: Some(model.into()), max_tokens: asked, ..claimed() };
            let job = Job::read(&row, &defaults).expect("valid");
            assert_eq!(job.max_tokens, sent, "{model} {asked:?} {binding}");
            assert!(job.max_tokens_ceiling >= sent);
            let in_params = format!(r#"{{"max_tokens":{}}}"#, asked.unwrap_or(200_000));
            let row = Claimed { max_tokens: None, params: Some(Raw::from(in_params)), ..row };
            let job = Job::read(&row, &defaults).expect("valid");
            assert!(asked.is_none() || job.max_tokens == sent, "{model} {asked:?} {binding} in params");
        }
        let mut defaults = defaults();
        defaults.max_tokens = Some(500_000);
        assert_eq!(Job::read(&claimed(), &defaults).expect("valid").max_tokens, 128_000);
    }

    #[test]
    fn params_pass_byte_for_byte_and_stream_is_dropped() {
        let mut row = claimed();
        row.prompt = None;
        row.params = Some(
            r#"{"stream":false,"messages":[{"role":"user","content":"x","cache_control":{"b":1,"a":1.50}}],"zeta":1e2,"tools":[ {"z":1} ]}"#.into(),
        );
        let job = Job::read(&row, &defaults()).expect("valid");
        assert_eq!(
            job.messages[0].get(),
            r#"{"role":"user","content":"x","cache_control":{"b":1,"a":1.50}}"#
        );
        let fields: Vec<(&str, &str)> = job.fields.iter().map(|(n, v)| (n.as_str(), v.get())).collect();
        assert_eq!(fields, [("zeta", "1e2"), ("tools", r#"[ {"z":1} ]"#)]);
        assert!(job.tools);
    }

    #[test]
    fn what_no_call_could_mend_is_refused_with_its_path() {
        for (params, path) in [
            (r#"{"messages":"hi"}"#, "params.messages"),
            (r#"{"messages":[]}"#, "params.messages"),
            (
                r#"{"messages":[{"role":"user","content":"a"},{"role":5,"content":"b"}]}"#,
                "params.messages[1].role",
            ),
            (r#"{"messages":[{"role":"user"}]}"#, "params.messages[0].content"),
            (r#"{"messages":["hi"]}"#, "params.messages[0]"),
            (r#"{"messages":[{"role":"user","content":"a"}],"betas":["x"]}"#, "params.betas"),
            (r#"{"messages":[{"role":"user","content":"a"}],"max_tokens":"12"}"#, "params.max_tokens"),
            (r#"{"messages":[{"role":"user","content":"a"}],"max_tokens":1.5}"#, "params.max_tokens"),
            (r#"{"messages":[{"role":"user","content":"a"}],"temperature":"hot"}"#, "params.temperature"),
            (r#"{"messages":[{"role":"user","content":"a"}],"model":7}"#, "params.model"),
            (r#"{"messages":[{"role":"user","content":"a"}],"mcp_servers":[]}"#, "params.mcp_servers"),
            (r#"{"messages":[{"role":"user","content":"a"}],"tools":{}}"#, "params.tools"),
            (r#"{"messages":null}"#, "params.messages is null: it must be an array"),
            ("[1]", "params"),
        ] {
            let mut row = claimed();
            row.prompt = None;
            row.params = Some(params.into());
            let invalid = Job::read(&row, &defaults()).expect_err(params);
            assert!(path.starts_with(&invalid.path), "{params}: {}", invalid.path);
            assert!(invalid.why.contains(path), "{params}: {}", invalid.why);
        }
    }

    #[test]
    fn a_prompt_without_text_asks_nothing() {
        for prompt in ["", " \n\t"] {
            let row = Claimed { prompt: Some(prompt.into()), ..claimed() };
            let invalid = Job::read(&row, &defaults()).expect_err("nothing to send");
            assert_eq!((invalid.path.as_str(), invalid.code), ("prompt", "missing"));
        }
    }

    #[test]
    fn what_the_row_brought_is_not_copied() {
        let mut row = claimed();
        row.prompt = None;
        row.params = Some(r#"{"messages":[{"role":"user","content":"x"}],"tools":[{"name":"t"}]}"#.into());
        let job = Job::read(&row, &defaults()).expect("valid");
        let text = row.params.as_ref().expect("it was set").get();
        let within = |part: &str| text.as_bytes().as_ptr_range().contains(&part.as_ptr());
        assert!(within(job.messages[0].get()));
        assert!(within(job.fields[0].1.get()));
    }

    #[test]
    fn what_the_api_would_refuse_unread_is_refused_with_its_largest_part() {
        let limit = Defaults { request_max: 2000, ..defaults() };
        let text = |size: usize| "x".repeat(size);
        let in_params = |params: String| Claimed { prompt: None, params: Some(params.into()), ..claimed() };
        let user = |size: usize| format!(r#"{{"role":"user","content":"{}"}}"#, text(size));
        let rows = [
            (Claimed { prompt: Some(text(2000)), ..claimed() }, "prompt"),
            (Claimed { system: Some(text(2000)), ..claimed() }, "system"),
            (in_params(format!(r#"{{"messages":[{},{}]}}"#, user(900), user(1100))), "params.messages[1]"),
            (
                in_params(format!(r#"{{"messages":[{}],"system":"{}"}}"#, user(10), text(2000))),
                "params.system",
            ),
        ];
        for (row, path) in rows {
            let invalid = Job::read(&row, &limit).expect_err(path);
            assert_eq!((invalid.path.as_str(), invalid.code), (path, "too_large"));
            let small = format!("the API takes {} (api.request_max_bytes)", mib(2000));
            assert!(invalid.why.contains(path) && invalid.why.contains(&small), "{}", invalid.why);
            Job::read(&row, &defaults()).expect("the API takes it");
        }
        // Quotes are sent as two characters each.
        let quotes = Claimed { prompt: Some("\"".repeat(1000)), ..claimed() };
        assert_eq!(Job::read(&quotes, &limit).expect_err("it grows").code, "too_large");
    }

    #[test]
    fn the_size_of_a_job_is_that_of_its_first_body() {
        use crate::domain::talk::{Step, Talk};
        let mut row = claimed();
        row.prompt = Some("\"é漢\"\n".into());
        row.system = Some("s".into());
        let bare = row.clone();
        row.params =
            Some(r#"{"tools":[{"a": 1}],"stop_sequences":["é"],"max_tokens":12,"model":"\"m"}"#.into());
        for row in [bare, row] {
            let job = Job::read(&row, &defaults()).expect("valid");
            let size = job.size();
            let Step::Ask(request) = Talk::resume(job, &[], &[], std::time::Instant::now()).next() else {
                panic!("nothing was asked yet");
            };
            assert_eq!(size, request.body.len());
        }
    }

    #[test]
    fn nesting_too_deep_to_read_is_refused_and_does_not_end_the_process() {
        let mut row = claimed();
        row.prompt = None;
        row.params = Some(format!(r#"{{"messages":{}{}}}"#, "[".repeat(5000), "]".repeat(5000)).into());
        let invalid = Job::read(&row, &defaults()).expect_err("too deep");
        assert_eq!(invalid.path, "params.messages[0]");
    }

    const SCHEMA: &str = r#"{"type":"object","properties":{"b":{"type":"string","maxLength":9},"a":{"type":"null"}},"required":["b","a"]}"#;

    fn facts(structured: bool) -> ModelFacts {
        ModelFacts { max_tokens: 1, binding: false, prefill: true, window: None, structured }
    }

    #[test]
    fn a_schema_goes_beside_the_prompt_or_into_it_as_the_model_takes_it() {
        let mut row = claimed();
        row.system = Some("Be brief.".into());
        row.params = Some(r#"{"output_config":{"effort":"low"},"top_k":1}"#.into());
        row.policy = Some(format!(r#"{{"output_schema": {SCHEMA}}}"#));
        let job = Job::read(&row, &defaults()).expect("valid");
        assert!(job.structured && !job.prefill);
        let beside = job.fields_for(&facts(true));
        let names: Vec<&str> = beside.iter().map(|field| field.0).collect();
        assert_eq!(names, ["system", "output_config", "top_k"]);
        assert_eq!(beside[0].1.get(), "\"Be brief.\"");
        assert!(beside[1].1.starts_with(r#"{"effort":"low","format":{"type":"json_schema","schema":{"type":"object","properties":{"b":"#), "{:?}", beside[1].1);
        let inside = job.fields_for(&facts(false));
        assert_eq!(inside[1].1.get(), r#"{"effort":"low"}"#);
        let system: String = serde_json::from_str(&inside[0].1).expect("a string");
        assert!(
            system.starts_with("Be brief.\n\nAnswer with one JSON value") && system.contains(SCHEMA),
            "{system}"
        );
        row.policy =
            Some(r#"{"output_schema": {"type":"object","additionalProperties":{"type":"null"}}}"#.into());
        let map = Job::read(&row, &defaults()).expect("valid");
        assert!(map.fields_for(&facts(true))[0].1.contains("additionalProperties"), "a map cannot be sent");
    }

    #[test]
    fn a_job_without_a_schema_sends_its_fields_as_they_are() {
        let mut row = claimed();
        row.params = Some(r#"{"system":null,"output_config":{"effort":"low"}}"#.into());
        let job = Job::read(&row, &defaults()).expect("valid");
        for structured in [true, false] {
            let fields = job.fields_for(&facts(structured));
            let own = fields.iter().zip(&job.fields);
            assert!(own.clone().all(|(sent, own)| sent.1.as_ptr() == own.1.as_ptr()), "not copied");
            assert_eq!(fields.iter().map(|f| f.1.get()).collect::<Vec<_>>(), ["null", r#"{"effort":"low"}"#]);
        }
    }

    #[test]
    fn a_schema_that_cannot_be_used_is_refused_where_it_was_said() {
        let bad = r#"{"output_schema":{"type":"strin"}}"#;
        let good = format!(r#"{{"output_schema":{SCHEMA}}}"#);
        for (queue, own, path) in [
            (Some(bad), None, Some("queues.policy.output_schema")),
            (None, Some(bad), Some("policy.output_schema")),
            (Some(good.as_str()), Some(bad), Some("policy.output_schema")),
            (Some(bad), Some(r#"{"max_repairs":2}"#), Some("queues.policy.output_schema")),
            (Some(bad), Some(r#"{"output_schema":null}"#), None),
            (Some(bad), Some(good.as_str()), None),
        ] {
            let mut row = claimed();
            row.queue_policy = queue.map(str::to_owned);
            row.policy = own.map(str::to_owned);
            let read = Job::read(&row, &defaults());
            assert_eq!(read.as_ref().err().map(|invalid| invalid.path.as_str()), path, "{queue:?} {own:?}");
            if let Err(invalid) = read {
                assert_eq!(invalid.code, "wrong_schema");
                assert!(
                    invalid.why.starts_with(&invalid.path) && invalid.why.contains("/type"),
                    "{}",
                    invalid.why
                );
            }
        }
    }

    #[test]
    fn what_the_answer_looks_like_is_said_once() {
        for (params, place) in [
            (r#"{"output_config":{"format":{"type":"json_schema"}}}"#, "params.output_config.format"),
            (r#"{"output_format":{"type":"json_schema"}}"#, "params.output_format"),
        ] {
            let mut row = claimed();
            row.params = Some(params.into());
            assert!(Job::read(&row, &defaults()).expect("valid").structured);
            row.policy = Some(format!(r#"{{"output_schema":{SCHEMA}}}"#));
            let invalid = Job::read(&row, &defaults()).expect_err("said twice");
            assert_eq!((invalid.path.as_str(), invalid.code), ("policy.output_schema", "said_twice"));
            assert!(invalid.why.contains(place), "{}", invalid.why);
        }
    }
}
