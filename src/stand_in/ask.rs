//! A request to the Messages API, checked as the API checks it, in the API's own sentences.
//!
//! Only what the answer depends on is kept; everything else is let through unread.

use serde_json::{Map, Value};

use super::models::{self, Model, Thinking};
use super::problem::Problem;

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
    /// Ids of its `tool_use` blocks.
    pub tool_uses: Vec<String>,
    /// Ids that its `tool_result` blocks answer.
    pub tool_results: Vec<String>,
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
    /// Name of the first of `tools`.
    pub tool: Option<String>,
    /// Size of the input.
    pub input_tokens: u64,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// An answer.
    Message,
    /// The number of input tokens.
    Count,
}

/// Starts every signature of a thinking block that the stand-in writes.
pub const SIGNATURE: &str = "c3RhbmQtaW4";

/// Every field of a body, those of betas too.
const FIELDS: &str = "model max_tokens messages system cache_control container context_management diagnostics \
     inference_geo metadata output_config output_format service_tier speed stop_sequences stream \
     temperature thinking tool_choice tools top_k top_p billing_policy compaction \
     fallback_credit_token fallbacks mcp_servers thread betas user_profile_id cache_hint \
     context_hint";

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
        if let Some(unknown) = body.keys().find(|key| !FIELDS.split(' ').any(|field| field == key.as_str())) {
            return Err(Problem::invalid(format!("{unknown}: Extra inputs are not permitted")));
        }
        let max_tokens = max_tokens(body, purpose)?;
        let turns = turns(body, version)?;
        let model = models::find(name).ok_or_else(|| Problem::not_found(format!("model: {name}")))?;
        if max_tokens > model.output {
            return Err(Problem::invalid(format!(
                "max_tokens: {max_tokens} > {}, which is the maximum allowed number of output tokens for {name}",
                model.output
            )));
        }
        check_sampling(body, model, version)?;
        check_thinking(body, model, max_tokens)?;
        check_tools(body, model)?;
        check_end(&turns, model, body)?;
        let input_tokens = input_tokens(body);
        if input_tokens > model.context as u64 {
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
            tool: body.get("tools").and_then(|tools| tools[0]["name"].as_str()).map(str::to_owned),
            turns,
            input_tokens,
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
    for (at, pair) in turns.windows(2).enumerate() {
        let open: Vec<&str> = pair[0]
            .tool_uses
            .iter()
            .filter(|id| !pair[1].tool_results.contains(id))
            .map(String::as_str)
            .collect();
        if !open.is_empty() {
            return Err(Problem::invalid(format!(
                "messages.{at}: `tool_use` ids were found without `tool_result` blocks immediately after: {}. Each \
                 `tool_use` block must have a corresponding `tool_result` block in the next message.",
                open.join(", ")
            )));
        }
    }
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
    let mut turn =
        Turn { role, text: String::new(), tool_uses: Vec::new(), tool_results: Vec::new(), server_tools: 0 };
    let empty = match message.get("content") {
        None => return Err(Problem::invalid(format!("messages.{at}.content: Field required"))),
        Some(Value::String(text)) => {
            turn.text.clone_from(text);
            text.is_empty()
        }
        Some(Value::Array(blocks)) => {
            for (position, block) in blocks.iter().enumerate() {
                turn.block(&format!("messages.{at}.content.{position}"), block, version)?;
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
    fn block(&mut self, path: &str, block: &Value, version: Version) -> Result<(), Problem> {
        let word = |name: &str| block.get(name).and_then(Value::as_str).unwrap_or("");
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
            "thinking" if !word("signature").starts_with(SIGNATURE) => {
                return Err(Problem::invalid(format!("{path}: Invalid `signature` in `thinking` block")));
            }
            "document" if self.role == Role::Assistant && version == Version::New => {
                let sentence = format!("{path}: `document` blocks are not permitted in assistant messages");
                return Err(Problem::invalid(sentence));
            }
            "tool_use" => self.tool_uses.push(word("id").to_owned()),
            "tool_result" => self.tool_results.push(word("tool_use_id").to_owned()),
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

/// Counts about four bytes a token over all that the model reads, as much for any image or document, and
/// a few for each message.
fn input_tokens(body: &Map<String, Value>) -> u64 {
    /// Tokens of an image of a megapixel or so, whatever its file's size.
    const MEDIUM: usize = 1_600;
    fn bytes(value: &Value) -> usize {
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => 1,
            Value::String(text) => text.len(),
            Value::Array(list) => list.iter().map(bytes).sum(),
            Value::Object(fields) if fields.get("type").is_some_and(|kind| kind == "base64") => MEDIUM * 4,
            Value::Object(fields) => fields.iter().map(|(key, value)| key.len() + bytes(value)).sum(),
        }
    }
    let read = ["system", "messages", "tools", "output_config"].iter().filter_map(|name| body.get(*name));
    (read.map(bytes).sum::<usize>().div_ceil(4) + 3) as u64
}
