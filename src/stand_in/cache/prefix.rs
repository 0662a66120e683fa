//! The prefixes of a request, block by block, and where it wants them kept.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::stand_in::problem::Problem;

/// Most breakpoints in a request.
const POINTS_MAX: usize = 4;
const MINUTES: Duration = Duration::from_mins(5);
const HOUR: Duration = Duration::from_hours(1);
/// The field that makes a breakpoint. It is not part of what is read.
const FIELD: &str = "cache_control";

/// A request that has breakpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// All its blocks, in the order in which they are read.
    pub blocks: Vec<Prefix>,
    /// Its breakpoints.
    pub points: Vec<Point>,
}

/// A prefix that ends with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Of all that was read up to here, and of what changes how it is read.
    pub hash: u64,
    bytes: usize,
}

/// A breakpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The block that it stands on.
    pub block: usize,
    /// How long the prefix is kept.
    pub life: Duration,
}

impl Point {
    /// Whether the prefix is kept for an hour.
    pub fn is_hour(self) -> bool {
        self.life == HOUR
    }
}

/// One block of a request.
struct Block<'a> {
    /// Where it stands: `messages.2.content.0`.
    path: String,
    /// What it belongs to: two blocks of one role in two messages are read as one message.
    part: &'static str,
    value: &'a Value,
    /// Bytes that count for it: its own, and of the message that it opens.
    bytes: usize,
}

impl Marked {
    /// Reads a request; `None` where nothing of it is to be cached.
    pub fn read(body: &Map<String, Value>, model: &str) -> Result<Option<Self>, Problem> {
        let blocks = blocks(body);
        let mut points = Vec::new();
        for (at, block) in blocks.iter().enumerate() {
            let own = life(block.value, &block.path)?;
            // What a tool gave may mark blocks of its own: they end no prefix but its.
            let inner = block.value.get("content").and_then(Value::as_array).into_iter().flatten();
            let inner =
                inner.filter_map(|inner| life(inner, &block.path).transpose()).next_back().transpose()?;
            points.extend(own.or(inner).map(|life| Point { block: at, life }));
        }
        if let Some(life) = life_of(body.get(FIELD), "")? {
            let last = blocks.iter().rposition(|block| !is_thinking(block.value));
            let marked = |at: usize| points.iter().any(|point| point.block == at);
            points.extend(last.filter(|at| !marked(*at)).map(|block| Point { block, life }));
        }
        if points.len() > POINTS_MAX {
            let found = points.len();
            return Err(Problem::invalid(format!(
                "A maximum of {POINTS_MAX} blocks with cache_control may be provided. Found {found}."
            )));
        }
        if points.is_sorted_by(|a, b| a.life >= b.life) {
            return Ok((!points.is_empty()).then(|| Self { blocks: prefixes(body, model, &blocks), points }));
        }
        Err(Problem::invalid(
            "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block",
        ))
    }

    /// Tokens of the prefix that ends with a block.
    pub fn tokens(&self, block: usize) -> u64 {
        self.blocks[block].bytes as u64 / 4
    }
}

/// Returns how many bytes of a value count; breakpoints are not read.
///
/// As much for any image or document as for one of a megapixel or so, whatever its file's size.
pub fn block_bytes(value: &Value) -> usize {
    const MEDIUM: usize = 1_600;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(block_bytes).sum(),
        Value::Object(fields) if fields.get("type").is_some_and(|kind| kind == "base64") => MEDIUM * 4,
        Value::Object(fields) => {
            let read = fields.iter().filter(|(key, _)| *key != FIELD);
            read.map(|(key, value)| key.len() + block_bytes(value)).sum()
        }
    }
}

/// Everything that is read, in its order.
fn blocks(body: &Map<String, Value>) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let field = |name: &str| body.get(name).unwrap_or(&Value::Null);
    push(&mut blocks, "tools", "tools", field("tools"), 0);
    push(&mut blocks, "system", "system", field("system"), 0);
    for (at, message) in field("messages").as_array().into_iter().flatten().enumerate() {
        let part = match message["role"].as_str() {
            Some("assistant") => "assistant",
            Some("system") => "instruction",
            _ => "user",
        };
        let content = &message["content"];
        let frame = block_bytes(message) - block_bytes(content);
        push(&mut blocks, &format!("messages.{at}.content"), part, content, frame);
    }
    if let Some(first) = blocks.first_mut() {
        first.bytes += block_bytes(field("output_config"));
    }
    blocks
}

/// `frame`: bytes around all these blocks, which the first of them opens.
fn push<'a>(
    blocks: &mut Vec<Block<'a>>,
    path: &str,
    part: &'static str,
    content: &'a Value,
    mut frame: usize,
) {
    let list = match content {
        Value::Array(list) => list.as_slice(),
        Value::Null => &[],
        text => std::slice::from_ref(text),
    };
    for (at, value) in list.iter().enumerate() {
        let bytes = block_bytes(value) + std::mem::take(&mut frame);
        blocks.push(Block { path: format!("{path}.{at}"), part, value, bytes });
    }
}

/// The hashes; what changes the reading of all, or of the messages, stands in front of them.
fn prefixes(body: &Map<String, Value>, model: &str, blocks: &[Block<'_>]) -> Vec<Prefix> {
    let mut hasher = DefaultHasher::new();
    model.hash(&mut hasher);
    for name in ["output_config", "output_format", "speed"] {
        feed(body.get(name).unwrap_or(&Value::Null), &mut hasher);
    }
    let mut bytes = 0;
    let mut in_messages = false;
    let mut prefixes = Vec::with_capacity(blocks.len());
    for block in blocks {
        if !in_messages && !matches!(block.part, "tools" | "system") {
            in_messages = true;
            for name in ["thinking", "tool_choice"] {
                feed(body.get(name).unwrap_or(&Value::Null), &mut hasher);
            }
        }
        block.part.hash(&mut hasher);
        match block.value {
            // The short form of one block of text.
            Value::String(text) => feed(&serde_json::json!({ "type": "text", "text": text }), &mut hasher),
            value => feed(value, &mut hasher),
        }
        bytes += block.bytes;
        prefixes.push(Prefix { hash: hasher.finish(), bytes });
    }
    prefixes
}

fn feed(value: &Value, hasher: &mut DefaultHasher) {
    std::mem::discriminant(value).hash(hasher);
    match value {
        Value::Null => {}
        Value::Bool(flag) => flag.hash(hasher),
        Value::Number(number) => number.hash(hasher),
        Value::String(text) => text.hash(hasher),
        Value::Array(list) => {
            list.len().hash(hasher);
            for value in list {
                feed(value, hasher);
            }
        }
        Value::Object(fields) => {
            // In their order: it is part of what is read.
            let read = || fields.iter().filter(|(key, _)| *key != FIELD);
            read().count().hash(hasher);
            for (key, value) in read() {
                key.hash(hasher);
                feed(value, hasher);
            }
        }
    }
}

fn is_thinking(block: &Value) -> bool {
    matches!(block["type"].as_str(), Some("thinking" | "redacted_thinking"))
}

fn life(block: &Value, path: &str) -> Result<Option<Duration>, Problem> {
    life_of(block.get(FIELD), path)
}

fn life_of(control: Option<&Value>, path: &str) -> Result<Option<Duration>, Problem> {
    let Some(control) = control.filter(|control| !control.is_null()) else { return Ok(None) };
    let place = if path.is_empty() { FIELD.to_owned() } else { format!("{path}.{FIELD}") };
    if control["type"] != "ephemeral" {
        return Err(Problem::invalid(format!(
            "{place}: Input tag found using 'type' does not match any of the expected tags: 'ephemeral'"
        )));
    }
    match control.get("ttl").map(Value::as_str) {
        None | Some(Some("5m")) => Ok(Some(MINUTES)),
        Some(Some("1h")) => Ok(Some(HOUR)),
        Some(_) => Err(Problem::invalid(format!("{place}.ttl: Input should be '5m' or '1h'"))),
    }
}
