//! A request to the Messages API, checked as the API checks it, in the API's own sentences.
//!
//! Only what the answer depends on is kept; everything else is let through unread.

use serde_json::{Map, Value};

use super::cache::{Cached, Marked, block_bytes};
use super::models::{self, Model, Thinking};
use super::problem::Problem;
use super::shape;
use super::tools::{self, Given, Use};

/// The API versions that the stand-in knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 2023-01-01 and 2023-06-01.
    Old,
    /// 2026-10-21: no sampling parameters any more.
    New,
}

impl Version {
    /// Reads the `anthropic-version` header.
    pub fn read(header: Option<&str>) -> Result<Self, Problem> {
        match header {
            None => Err(Problem::invalid("anthropic-version: header is required")),
            Some("2023-01-01" | "2023-06-01") => Ok(Self::Old),
            Some("2026-10-21") => Ok(Self::New),
            Some(other) => {
                Err(Problem::invalid(format!("anthropic-version: \"{other}\" is not a valid version")))
            }
        }
    }
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The user, or a tool.
    User,
    /// The model.
    Assistant,
    /// An instruction in the middle of a conversation.
    System,
}

/// One message, as far as the answer depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// Its text blocks, one after the other.
    pub text: String,
    /// Its `tool_use` blocks.
    pub tool_uses: Vec<Use>,
    /// Its `tool_result` blocks.
    pub tool_results: Vec<Given>,
    /// Whether its first block is thinking.
    pub thinks_first: bool,
    /// Number of its `server_tool_use` blocks.
    pub server_tools: usize,
}

/// A request.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The model asked.
    pub model: &'static Model,
    /// `max_tokens`.
    pub max_tokens: usize,
    /// `stream`.
    pub stream: bool,
    /// `messages`.
    pub turns: Vec<Turn>,
    /// `stop_sequences`.
    pub stop_sequences: Vec<String>,
    /// The JSON schema that the answer is to follow.
    pub schema: Option<Value>,
    /// Names of `tools`.
    pub tools: Vec<String>,
    /// Size of the input.
    pub input_tokens: u64,
    /// Where it wants the input cached.
    pub marked: Option<Marked>,
    /// What of the input the cache has, and takes.
    pub cached: Cached,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// An answer.
    Message,
    /// The number of input tokens.
    Count,
}

/// Returns the signature of a thinking block: of this text, and no other.
pub fn signature(thinking: &str) -> String {
    // FNV-1a: an older conversation must be understood by a newer version.
    let hash = thinking.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("c3RhbmQtaW4{hash:016x}0dGhvdWdodA==")
}

/// Every field of a body, those of betas too.
const FIELDS: &str = "model max_tokens messages system cache_control container context_management diagnostics \
     inference_geo metadata output_config output_format service_tier speed stop_sequences stream \
     temperature thinking tool_choice tools top_k top_p billing_policy compaction \
     fallback_credit_token fallbacks mcp_servers thread betas user_profile_id cache_hint \
     context_hint";

/// Those of them that a count takes.
const COUNT_FIELDS: &str = "model messages system cache_control context_management mcp_servers output_config \
     speed thinking tool_choice tools billing_policy compaction user_profile_id";

impl Ask {
    /// Reads and checks a body.
    pub fn read(body: &[u8], version: Version, purpose: Purpose) -> Result<Self, Problem> {
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| Problem::invalid(format!("The request body is not valid JSON: {error}")))?;
        let body = body
            .as_object()
            .ok_or_else(|| Problem::invalid("Input should be a valid dictionary or object"))?;
        let name = match body.get("model") {
            None => return Err(Problem::invalid("model: Field required")),
            Some(Value::String(name)) if !name.is_empty() => name,
            Some(Value::String(_)) => {
                return Err(Problem::invalid("model: String should have at least 1 character"));
            }
            Some(_) => return Err(Problem::invalid("model: Input should be a valid string")),
        };
        let fields = if purpose == Purpose::Count { COUNT_FIELDS } else { FIELDS };
        if let Some(unknown) = body.keys().find(|key| !fields.split(' ').any(|field| field == key.as_str())) {
            return Err(Problem::invalid(format!("{unknown}: Extra inputs are not permitted")));
        }
        let max_tokens = max_tokens(body, purpose)?;
        let turns = turns(body, version)?;
        let model = models::find_alive(name).ok_or_else(|| Problem::not_found(format!("model: {name}")))?;
        if max_tokens > model.output {
            return Err(Problem::invalid(format!(
                "max_tokens: {max_tokens} > {}, which is the maximum allowed number of output tokens for {name}",
                model.output
            )));
        }
        check_sampling(body, model, version)?;
        // A count knows no max_tokens that a budget could be above.
        let room = if purpose == Purpose::Count { usize::MAX } else { max_tokens };
        check_thinking(body, model, room)?;
        check_tools(body, model)?;
        let tools = tools::declared(body, &turns)?;
        check_end(&turns, model, body)?;
        let marked = Marked::read(body, model.id)?;
        let input_tokens = input_tokens(body);
        if purpose == Purpose::Message && input_tokens > model.context as u64 {
            return Err(Problem::invalid(format!(
                "prompt is too long: {input_tokens} tokens > {} maximum",
                model.context
            )));
        }
        Ok(Self {
            model,
            max_tokens,
            stream: flag(body, "stream")?,
            stop_sequences: stop_sequences(body)?,
            schema: shape::asked(body)?,
            tools,
            turns,
            input_tokens,
            marked,
            cached: Cached::default(),
        })
    }
}

fn max_tokens(body: &Map<String, Value>, purpose: Purpose) -> Result<usize, Problem> {
    match body.get("max_tokens") {
        None if purpose == Purpose::Count => Ok(0),
        None => Err(Problem::invalid("max_tokens: Field required")),
        Some(value) => match value.as_i64() {
            Some(0..) => Ok(value.as_u64().unwrap_or(0) as usize),
            Some(_) => Err(Problem::invalid("max_tokens: Input should be greater than or equal to 0")),
            None => Err(Problem::invalid("max_tokens: Input should be a valid integer")),
        },
    }
}

fn flag(body: &Map<String, Value>, name: &str) -> Result<bool, Problem> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(Problem::invalid(format!("{name}: Input should be a valid boolean"))),
    }
}

fn stop_sequences(body: &Map<String, Value>) -> Result<Vec<String>, Problem> {
    let Some(value) = body.get("stop_sequences").filter(|value| !value.is_null()) else {
        return Ok(Vec::new());
    };
    let list =
        value.as_array().ok_or_else(|| Problem::invalid("stop_sequences: Input should be a valid array"))?;
    list.iter()
        .enumerate()
        .map(|(at, sequence)| match sequence.as_str() {
            None => Err(Problem::invalid(format!("stop_sequences.{at}: Input should be a valid string"))),
            Some(text) if text.trim().is_empty() => {
                Err(Problem::invalid("stop_sequences: each stop sequence must contain non-whitespace"))
            }
            Some(text) => Ok(text.to_owned()),
        })
        .collect()
}

fn turns(body: &Map<String, Value>, version: Version) -> Result<Vec<Turn>, Problem> {
    let messages = body.get("messages").ok_or_else(|| Problem::invalid("messages: Field required"))?;
    let messages =
        messages.as_array().ok_or_else(|| Problem::invalid("messages: Input should be a valid array"))?;
    if messages.is_empty() {
        return Err(Problem::invalid("messages: at least one message is required"));
    }
    let turns = messages
        .iter()
        .enumerate()
        .map(|(at, message)| turn(at, message, at + 1 == messages.len(), version))
        .collect::<Result<Vec<_>, _>>()?;
    if turns.iter().find(|turn| turn.role != Role::System).is_none_or(|turn| turn.role != Role::User) {
        return Err(Problem::invalid("messages: first message must use the \"user\" role"));
    }
    tools::check_results(&turns)?;
    Ok(turns)
}

fn turn(at: usize, message: &Value, last: bool, version: Version) -> Result<Turn, Problem> {
    let role = match message.get("role").and_then(Value::as_str) {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("system") => Role::System,
        Some(_) => {
            let sentence = format!("messages.{at}.role: Input should be 'user', 'assistant' or 'system'");
            return Err(Problem::invalid(sentence));
        }
        None => return Err(Problem::invalid(format!("messages.{at}.role: Field required"))),
    };
    let mut turn = Turn {
        role,
        text: String::new(),
        tool_uses: Vec::new(),
        tool_results: Vec::new(),
        thinks_first: false,
        server_tools: 0,
    };
    let empty = match message.get("content") {
        None => return Err(Problem::invalid(format!("messages.{at}.content: Field required"))),
        Some(Value::String(text)) => {
            turn.text.clone_from(text);
            text.is_empty()
        }
        Some(Value::Array(blocks)) => {
            for (position, block) in blocks.iter().enumerate() {
                turn.block(&format!("messages.{at}.content.{position}"), position, block, version)?;
            }
            blocks.is_empty()
        }
        Some(_) => {
            return Err(Problem::invalid(format!("messages.{at}.content: Input should be a valid array")));
        }
    };
    if empty && !(last && role == Role::Assistant) {
        return Err(Problem::invalid(format!(
            "messages.{at}: all messages must have non-empty content except for the optional final assistant message"
        )));
    }
    if !turn.text.is_empty() && turn.text.trim().is_empty() {
        return Err(Problem::invalid("messages: text content blocks must contain non-whitespace text"));
    }
    Ok(turn)
}

impl Turn {
    fn block(&mut self, path: &str, position: usize, block: &Value, version: Version) -> Result<(), Problem> {
        let word = |name: &str| block.get(name).and_then(Value::as_str).unwrap_or("");
        self.thinks_first |= position == 0 && matches!(word("type"), "thinking" | "redacted_thinking");
        match word("type") {
            "" => return Err(Problem::invalid(format!("{path}.type: Field required"))),
            "text" => {
                let text = word("text");
                if text.is_empty() {
                    return Err(Problem::invalid("messages: text content blocks must be non-empty"));
                }
                if text.trim().is_empty() {
                    let sentence = "messages: text content blocks must contain non-whitespace text";
                    return Err(Problem::invalid(sentence));
                }
                let cited = block["citations"].as_array().is_some_and(|list| !list.is_empty());
                if cited && self.role == Role::User && version == Version::New {
                    return Err(Problem::invalid(format!(
                        "{path}.citations: Extra inputs are not permitted"
                    )));
                }
                if self.role == Role::User && !self.text.is_empty() {
                    self.text.push('\n');
                }
                self.text.push_str(text);
            }
            "thinking" if word("signature") != signature(word("thinking")) => {
                return Err(Problem::invalid(format!("{path}: Invalid `signature` in `thinking` block")));
            }
            "document" if self.role == Role::Assistant && version == Version::New => {
                let sentence = format!("{path}: `document` blocks are not permitted in assistant messages");
                return Err(Problem::invalid(sentence));
            }
            "tool_use" if self.role != Role::Assistant => {
                let sentence = format!("{path}: `tool_use` blocks can only be in `assistant` messages");
                return Err(Problem::invalid(sentence));
            }
            "tool_result" if self.role != Role::User => {
                let sentence = format!("{path}: `tool_result` blocks can only be in `user` messages");
                return Err(Problem::invalid(sentence));
            }
            "tool_use" => self.tool_uses.push(Use {
                id: word("id").to_owned(),
                name: word("name").to_owned(),
                input: block.get("input").cloned().unwrap_or_default(),
            }),
            "tool_result" => {
                let leads = self.tool_results.len() == position;
                self.tool_results.push(Given::read(path, position, block, leads)?);
            }
            "server_tool_use" => self.server_tools += 1,
            _ => {}
        }
        Ok(())
    }
}

fn check_sampling(body: &Map<String, Value>, model: &Model, version: Version) -> Result<(), Problem> {
    for name in ["temperature", "top_p", "top_k"] {
        let Some(value) = body.get(name) else { continue };
        if version == Version::New {
            return Err(Problem::invalid(format!("{name}: Extra inputs are not permitted")));
        }
        if !model.sampling && value.as_f64() != Some(1.0) {
            return Err(Problem::invalid(format!(
                "`{name}` may only be set to its default value for this model."
            )));
        }
    }
    Ok(())
}

fn check_thinking(body: &Map<String, Value>, model: &Model, max_tokens: usize) -> Result<(), Problem> {
    let Some(thinking) = body.get("thinking").filter(|thinking| !thinking.is_null()) else { return Ok(()) };
    let kind = thinking["type"].as_str().unwrap_or("");
    let refused = match (kind, model.thinking) {
        ("enabled", Thinking::Adaptive | Thinking::Always) => Some(
            "\"thinking.type.enabled\" is not supported for this model. Use \"thinking.type.adaptive\" and \
             \"output_config.effort\" to control thinking behavior.",
        ),
        ("disabled", Thinking::Always) => Some("\"thinking.type.disabled\" is not supported for this model."),
        ("adaptive", Thinking::Extended) => Some("adaptive thinking is not supported on this model"),
        ("enabled" | "disabled" | "adaptive" | "between_tools", _) => None,
        _ => Some("thinking: Input tag found using 'type' does not match any of the expected tags"),
    };
    if let Some(sentence) = refused {
        return Err(Problem::invalid(sentence));
    }
    if kind == "enabled" {
        let budget = thinking["budget_tokens"].as_u64().unwrap_or(0);
        if budget < 1024 {
            let sentence = "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024";
            return Err(Problem::invalid(sentence));
        }
        if budget >= max_tokens as u64 {
            return Err(Problem::invalid("`max_tokens` must be greater than `thinking.budget_tokens`."));
        }
    }
    Ok(())
}

fn check_tools(body: &Map<String, Value>, model: &Model) -> Result<(), Problem> {
    let forced = body.get("tool_choice").and_then(|choice| choice["type"].as_str());
    if matches!(forced, Some("any" | "tool")) && !model.forced_tools {
        return Err(Problem::invalid("tool_choice: forced tool use is not supported on this model"));
    }
    Ok(())
}

fn check_end(turns: &[Turn], model: &Model, body: &Map<String, Value>) -> Result<(), Problem> {
    let Some(last) = turns.last().filter(|turn| turn.role == Role::Assistant) else { return Ok(()) };
    if last.server_tools > 0 {
        // A turn that paused is sent back as it came: no prefill.
        return Ok(());
    }
    let thinks = body.get("thinking").is_some_and(|thinking| thinking["type"] != "disabled");
    let shaped = body.get("output_config").is_some_and(|config| config.get("format").is_some());
    if !model.prefill || thinks || shaped {
        return Err(Problem::prefill());
    }
    if last.text.ends_with(char::is_whitespace) {
        return Err(Problem::invalid(
            "messages: final assistant content cannot end with trailing whitespace",
        ));
    }
    Ok(())
}

/// Counts about four bytes a token over all that the model reads, and a few for the whole.
fn input_tokens(body: &Map<String, Value>) -> u64 {
    let read = ["system", "messages", "tools", "output_config"].iter().filter_map(|name| body.get(*name));
    (read.map(block_bytes).sum::<usize>().div_ceil(4) + 3) as u64
}
