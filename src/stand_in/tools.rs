//! Tools in a conversation: what a script has the model call, and whether the client keeps the API's
//! rules. Pure.
//!
//! Sentences that the API is known to say are its own. That a turn is sent back as it was said is
//! checked only for scripted calls: what they were is known from the prompt.

use serde_json::{Map, Value};

use super::ask::{Role, Turn};
use super::problem::Problem;

/// Longest name of a tool.
const NAME_MAX: usize = 128;

/// A call that a script has the model make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scripted {
    /// The tool.
    pub name: String,
    /// Its input, as it is written; empty: none is said, which means `{}`.
    pub input: String,
}

impl Scripted {
    /// Reads what stands behind `[[tool `; also returns what stands behind the marker.
    ///
    /// An input may hold the brackets that end other markers.
    pub fn read(behind: &str) -> Result<(Self, &str), String> {
        let behind = behind.trim_start();
        let end = behind.find(|c: char| !is_plain(c)).unwrap_or(behind.len());
        let (name, rest) = behind.split_at(end);
        if !is_name(name) {
            return Err("the name of a tool is missing".to_owned());
        }
        let rest = rest.trim_start();
        if let Some(rest) = rest.strip_prefix("]]") {
            return Ok((Self { name: name.to_owned(), input: String::new() }, rest));
        }
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Map<String, Value>>();
        if let Some(Err(error)) = values.next() {
            return Err(format!("the input of {name} is no JSON object: {error}"));
        }
        let (input, rest) = rest.split_at(values.byte_offset());
        match rest.trim_start().strip_prefix("]]") {
            Some(rest) => Ok((Self { name: name.to_owned(), input: input.to_owned() }, rest)),
            None => Err("the marker is not closed with ]]".to_owned()),
        }
    }

    /// Returns the input as the API says it in a whole message.
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.input).unwrap_or_else(|_| Value::Object(Map::new()))
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

fn is_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && name.chars().all(is_plain)
}

/// A `tool_use` block that a client sent back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// Its id.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its input.
    pub input: Value,
}

/// A `tool_result` block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// Its place in the message.
    pub position: usize,
    /// The call that it answers.
    pub id: String,
    /// Its text.
    pub text: String,
    /// `is_error`.
    pub is_error: bool,
    /// Whether only other results stand before it.
    pub leads: bool,
}

impl Given {
    /// Reads a block.
    pub fn read(path: &str, position: usize, block: &Value, leads: bool) -> Result<Self, Problem> {
        let Some(id) = block.get("tool_use_id").and_then(Value::as_str) else {
            return Err(Problem::invalid(format!("{path}.tool_use_id: Field required")));
        };
        let text = match block.get("content") {
            None => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(blocks)) => blocks.iter().map(text_of).collect::<Result<Vec<_>, _>>()?.concat(),
            Some(_) => {
                return Err(Problem::invalid(format!("{path}.content: Input should be a valid array")));
            }
        };
        let is_error = block.get("is_error").and_then(Value::as_bool).unwrap_or(false);
        Ok(Self { position, id: id.to_owned(), text, is_error, leads })
    }
}

/// A block's text; other kinds are named.
fn text_of(block: &Value) -> Result<String, Problem> {
    let kind = block["type"].as_str().unwrap_or_default();
    if kind != "text" {
        return Ok(format!("<{kind}>"));
    }
    match block["text"].as_str() {
        Some(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(Problem::invalid("messages: text content blocks must be non-empty")),
    }
}

/// Checks `tools`, and that there are some where the conversation has calls. Returns their names.
pub fn declared(body: &Map<String, Value>, turns: &[Turn]) -> Result<Vec<String>, Problem> {
    let list = match body.get("tools") {
        None | Some(Value::Null) => &[],
        Some(Value::Array(list)) => list.as_slice(),
        Some(_) => return Err(Problem::invalid("tools: Input should be a valid array")),
    };
    let used = turns.iter().any(|turn| !turn.tool_uses.is_empty() || !turn.tool_results.is_empty());
    if used && list.is_empty() {
        return Err(Problem::invalid(
            "Requests which include `tool_use` or `tool_result` blocks must define tools",
        ));
    }
    let mut names: Vec<String> = Vec::new();
    for (at, tool) in list.iter().enumerate() {
        // Those with a type of their own are the API's.
        let custom = matches!(tool.get("type").and_then(Value::as_str), None | Some("custom"));
        let Some(name) = tool.get("name").and_then(Value::as_str) else {
            if custom {
                return Err(Problem::invalid(format!("tools.{at}.custom.name: Field required")));
            }
            continue;
        };
        if custom && !is_name(name) {
            return Err(Problem::invalid(format!(
                "tools.{at}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,{NAME_MAX}}}$'"
            )));
        }
        if custom && tool.get("input_schema").is_none() {
            return Err(Problem::invalid(format!("tools.{at}.custom.input_schema: Field required")));
        }
        if names.iter().any(|known| known == name) {
            return Err(Problem::invalid("tools: Tool names must be unique."));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

/// Checks that every call has its one result, first thing in the next message, and every result its call.
pub fn check_results(turns: &[Turn]) -> Result<(), Problem> {
    let mut seen: Vec<&str> = Vec::new();
    for (at, turn) in turns.iter().enumerate() {
        for call in &turn.tool_uses {
            if seen.contains(&call.id.as_str()) {
                return Err(Problem::invalid(format!("messages.{at}: `tool_use` ids must be unique")));
            }
            seen.push(&call.id);
        }
        let answered = turns.get(at + 1).map_or(&[][..], |next| &next.tool_results);
        let is_open = |call: &&Use| !answered.iter().any(|given| given.leads && given.id == call.id);
        let open: Vec<&str> = turn.tool_uses.iter().filter(is_open).map(|call| call.id.as_str()).collect();
        if !open.is_empty() {
            return Err(Problem::invalid(format!(
                "messages.{at}: `tool_use` ids were found without `tool_result` blocks immediately after: {}. Each \
                 `tool_use` block must have a corresponding `tool_result` block in the next message.",
                open.join(", ")
            )));
        }
        let calls = at.checked_sub(1).map_or(&[][..], |before| &turns[before].tool_uses);
        for (nth, Given { position, id, .. }) in turn.tool_results.iter().enumerate() {
            if !calls.iter().any(|call| call.id == *id) {
                return Err(Problem::invalid(format!(
                    "messages.{at}.content.{position}: unexpected `tool_use_id` found in `tool_result` blocks: {id}. \
                     Each `tool_result` block must have a corresponding `tool_use` block in the previous message."
                )));
            }
            if turn.tool_results[..nth].iter().any(|other| other.id == *id) {
                return Err(Problem::invalid(format!(
                    "messages.{at}.content.{position}: each tool_use must have a single result. Found multiple \
                     `tool_result` blocks with id: {id}"
                )));
            }
        }
    }
    Ok(())
}

/// Returns what the tools gave, a line each, in the order of the conversation: `NAME: text`, or
/// `NAME failed: text`.
pub fn told(turns: &[Turn]) -> String {
    let mut lines = Vec::new();
    for pair in turns.windows(2).filter(|pair| pair[0].role == Role::Assistant) {
        for given in &pair[1].tool_results {
            let call = pair[0].tool_uses.iter().find(|call| call.id == given.id);
            let name = call.map_or("", |call| call.name.as_str());
            let failed = if given.is_error { " failed" } else { "" };
            lines.push(format!("{name}{failed}: {}", given.text));
        }
    }
    lines.join("\n")
}

/// Checks that a turn with scripted calls was sent back as it was said: `thinking` stood in front of
/// `calls`. The error is the sentence.
pub fn check_echo(at: usize, turn: &Turn, thought: bool, calls: &[Use]) -> Result<(), String> {
    if thought && !turn.thinks_first {
        return Err(format!(
            "messages.{at}.content.0.type: Expected `thinking` or `redacted_thinking`, but found `{}`. When \
             `thinking` is enabled, a final `assistant` message must start with a thinking block (preceeding the \
             lastmost set of `tool_use` and `tool_result` blocks).",
            if turn.text.is_empty() { "tool_use" } else { "text" }
        ));
    }
    let kept = turn.tool_uses.len() == calls.len() && turn.tool_uses.iter().zip(calls).all(|(a, b)| a == b);
    if kept {
        return Ok(());
    }
    let wrong = turn.tool_uses.iter().zip(calls).position(|(a, b)| a != b);
    let wrong = wrong.unwrap_or(turn.tool_uses.len().min(calls.len()));
    Err(format!("messages.{at}: the stand-in did not say this: its `tool_use` block {wrong} was another one"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scripted_input_may_hold_what_ends_other_markers() {
        let (call, rest) = Scripted::read(r#"find {"a": [[1, 2]], "b": "]]"} ]] and on"#).unwrap();
        assert_eq!((call.name.as_str(), rest), ("find", " and on"));
        assert_eq!(call.input, r#"{"a": [[1, 2]], "b": "]]"}"#);
        assert_eq!(Scripted::read("find]]").unwrap().0.value(), Value::Object(Map::new()));
        for (wrong, why) in [
            ("]]", "the name of a tool is missing"),
            ("find [1]]]", "the input of find is no JSON object"),
            ("find {\"a\":]]", "the input of find is no JSON object"),
            ("find {}", "the marker is not closed with ]]"),
        ] {
            assert!(Scripted::read(wrong).unwrap_err().starts_with(why), "{wrong}");
        }
    }
}
