//! Reading a claimed row: what is sent on stays byte for byte, what no call could mend is refused.

use std::collections::HashMap;

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::media::file_bytes;
use super::policy::shown;
use super::{Claimed, Lease, Policy, Raw};
use crate::domain::outcome::Fault;

/// What a model can do, as far as it changes what we send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// The most output tokens one call may have.
    pub max_tokens: i64,
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
    /// `api.request_max_bytes`: the largest body that the API takes.
    pub request_max: usize,
    /// `[models]`.
    pub models: HashMap<String, ModelFacts>,
}

impl Defaults {
    /// Maximum output of a model that the configuration does not know: what every current model
    /// of the first party can do at least (API reference, model overview).
    pub const MAX_TOKENS_UNKNOWN: i64 = 32_000;

    /// Returns what is known of a model.
    pub fn facts(&self, model: &str) -> ModelFacts {
        self.models.get(model).cloned().unwrap_or(ModelFacts {
            max_tokens: Self::MAX_TOKENS_UNKNOWN,
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
    /// Its rules.
    pub policy: Policy,
    /// The user's messages, each as it was inserted.
    pub messages: Vec<Raw>,
    /// Every other body field, in order, as it was inserted.
    pub fields: Vec<(String, Raw)>,
    /// How many of its bytes are images and documents.
    pub files: usize,
    /// Whether a schema binds the answer, so that it cannot be stitched.
    pub structured: bool,
    /// Whether tools are declared, so that turns are sent back verbatim.
    pub tools: bool,
    /// Whether the row asks for thinking.
    pub thinking: bool,
}

impl Job {
    /// Understands a claimed row. Nothing is sent for a row that this refuses.
    pub fn read(claimed: &Claimed, defaults: &Defaults) -> Result<Self, Invalid> {
        if let Some(column) = claimed.garbled {
            let why =
                format!("{column} holds bytes that are not UTF-8: insert the job again, written in UTF-8");
            return Err(Invalid::new(column, "not_utf8", why));
        }
        let mut policy = defaults.policy.clone();
        if let Some(json) = &claimed.queue_policy {
            policy.overlay(json, "queues.policy")?;
        }
        if let Some(json) = &claimed.policy {
            policy.overlay(json, "policy")?;
        }
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

        let own_model = match params.shift_remove("model") {
            Some(raw) => Some(text("params.model", raw)?),
            None => claimed.model.clone(),
        };
        let model_named = own_model.is_some();
        let model =
            own_model.or_else(|| claimed.queue_model.clone()).unwrap_or_else(|| defaults.model.clone());
        if model.trim().is_empty() {
            return Err(Invalid::new(
                "model",
                "wrong_value",
                "model is empty: name one, or leave it NULL for the default",
            ));
        }
        let facts = defaults.facts(&model);
        let own_room = match params.shift_remove("max_tokens") {
            Some(raw) => Some(room(raw)?),
            None => claimed.max_tokens,
        };
        let max_tokens = own_room.or(defaults.max_tokens).unwrap_or(facts.max_tokens);

        // What is large is not copied: it stays where the claim put it.
        let part = |raw: &RawValue| match &claimed.params {
            Some(json) => json.part(raw.get()),
            None => Raw::from(raw.get()),
        };
        let messages = match (params.shift_remove("messages"), &claimed.prompt) {
            (Some(raw), _) => read_messages(raw)?.into_iter().map(part).collect(),
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

        let texts = messages.iter().chain(fields.iter().map(|(_, value)| value));
        let files = texts.map(|text| file_bytes(text.get())).sum();
        let has = |name: &str| fields.iter().any(|(field, value)| field == name && value.get() != "null");
        let structured = has("output_format") || asks_for_schema(&fields);
        let tools = has("tools") || has("mcp_servers");
        let thinking = has("thinking");
        let job = Self {
            lease: claimed.lease,
            queue: claimed.queue.clone(),
            batch: claimed.batch.clone(),
            model_named,
            max_tokens,
            max_tokens_ceiling: facts.max_tokens.max(max_tokens),
            prefill: facts.prefill && !structured && !thinking,
            policy,
            messages,
            files,
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

    /// Returns what a body of so many bytes for this job weighs, in bytes of text: what a model reads of an
    /// image or a page is about a tenth of a kilobyte of its file a token.
    pub const fn weight(&self, bytes: usize) -> usize {
        const FILE_SHARE: usize = 32;
        bytes.saturating_sub(self.files - self.files / FILE_SHARE)
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
            request_max: 1 << 25,
            models: HashMap::from([(
                "claude-default".to_owned(),
                ModelFacts { max_tokens: 128_000, prefill: false, window: None, structured: true },
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
            let Step::Ask(request) = Talk::resume(job, &[], std::time::Instant::now()).next() else {
                panic!("nothing was asked yet");
            };
            assert_eq!(size, request.body.len());
        }
    }

    #[test]
    fn an_image_weighs_less_than_its_bytes() {
        let mut row = claimed();
        assert_eq!(Job::read(&row, &defaults()).expect("valid").weight(1000), 1000);
        row.prompt = None;
        let data = "iVBO".repeat(80_000);
        row.params = Some(
            format!(
                r#"{{"messages":[{{"role":"user","content":[{{"type":"image","source":{{"data":"{data}"}}}}]}}]}}"#
            )
            .into(),
        );
        let job = Job::read(&row, &defaults()).expect("valid");
        assert_eq!(job.weight(data.len() + 700), data.len() / 32 + 700);
    }

    #[test]
    fn nesting_too_deep_to_read_is_refused_and_does_not_end_the_process() {
        let mut row = claimed();
        row.prompt = None;
        row.params = Some(format!(r#"{{"messages":{}{}}}"#, "[".repeat(5000), "]".repeat(5000)).into());
        let invalid = Job::read(&row, &defaults()).expect_err("too deep");
        assert_eq!(invalid.path, "params.messages[0]");
    }
}
