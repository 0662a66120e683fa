//! What sort of values a schema allows, as far as that decides how it is sent.

use serde_json::{Map, Value};

use super::form::{DEFINITIONS, NOTES};

/// Most repetitions that a plain pattern may count.
const REPEAT_MAX: u32 = 32;

/// The values that a schema allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a schema may allow several types at once")]
pub(super) struct Shape {
    /// Only what one of several schemas allows.
    pub(super) alternatives: bool,
    pub(super) has_object: bool,
    pub(super) has_array: bool,
    pub(super) has_string: bool,
}

impl Shape {
    /// Returns the shape of a schema; `None` where it allows more than can be told.
    pub(super) fn of(schema: &Map<String, Value>) -> Option<Self> {
        let has = |word: &str| schema.contains_key(word);
        let mut shape = Self { alternatives: false, has_object: false, has_array: false, has_string: false };
        let own = ["properties", "items", "enum", "const"].iter().any(|word| has(word));
        if !own && has("anyOf") != has("oneOf") && branches(schema).all(stands_alone) {
            shape.alternatives = true;
        } else if let Some(types) = schema.get("type") {
            let allows = |name: &str| {
                types == name || types.as_array().is_some_and(|list| list.iter().any(|one| one == name))
            };
            shape.has_object = allows("object");
            shape.has_array = allows("array");
            shape.has_string = allows("string");
        } else if is_literal(schema) {
        } else if has("properties") {
            shape.has_object = true;
        } else {
            return None;
        }
        Some(shape)
    }
}

fn branches(schema: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    ["anyOf", "oneOf"].iter().filter_map(|word| schema.get(*word)?.as_array()).flatten()
}

/// Whether a schema says for itself what sort of value it allows.
fn stands_alone(schema: &Value) -> bool {
    let Some(schema) = schema.as_object() else { return false };
    schema.contains_key("$ref") || lone_part(schema).is_some() || Shape::of(schema).is_some()
}

fn is_literal(schema: &Map<String, Value>) -> bool {
    let listed = |list: &Vec<Value>| !list.is_empty() && list.iter().all(is_scalar);
    schema.get("enum").and_then(Value::as_array).is_some_and(listed)
        || schema.get("const").is_some_and(is_scalar)
}

/// Whether a value has no parts: only such ones may be listed for the API.
pub(super) fn is_scalar(value: &Value) -> bool {
    !value.is_array() && !value.is_object()
}

/// The one schema of an `allOf` that demands nothing beside it: some programs write a described reference so.
pub(super) fn lone_part(schema: &Map<String, Value>) -> Option<&Value> {
    let [only] = schema.get("allOf")?.as_array()?.as_slice() else { return None };
    let beside = |word: &String| {
        let word = word.as_str();
        matches!(word, "allOf" | "$schema" | "$id") || NOTES.contains(&word) || DEFINITIONS.contains(&word)
    };
    schema.keys().all(beside).then_some(only)
}

/// Whether a demand names no property but those of the schema it stands in.
pub(super) fn names_only(demand: &Value, schema: &Map<String, Value>) -> bool {
    let properties = schema.get("properties").and_then(Value::as_object);
    let known = |name: &str| properties.is_some_and(|all| all.contains_key(name));
    match demand {
        Value::Array(list) => list.iter().all(|item| names_only(item, schema)),
        Value::Object(fields) => fields.iter().all(|(word, value)| match (word.as_str(), value) {
            ("$ref", _) => false,
            ("properties", Value::Object(named)) => {
                named.iter().all(|(name, value)| known(name) && names_only(value, schema))
            }
            ("required", Value::Array(names)) => names.iter().all(|name| name.as_str().is_some_and(known)),
            // Data, not schemas.
            ("enum" | "const" | "default" | "examples", _) => true,
            (name, Value::Array(names)) if known(name) => {
                // `dependentRequired`: a property, and those that it needs.
                names.iter().all(|name| name.as_str().is_none_or(known))
            }
            _ => names_only(value, schema),
        }),
        _ => true,
    }
}

/// Whether a pattern is one of those that the API is sure to take: literals, classes, groups,
/// alternatives and small counts; nothing that looks back, ahead or at word borders.
pub(super) fn is_plain_pattern(pattern: &str) -> bool {
    let bytes = pattern.as_bytes();
    let body = pattern.strip_prefix('^').unwrap_or(pattern);
    let start = pattern.len() - body.len();
    let end = if pattern.ends_with('$') && !pattern.ends_with("\\$") { bytes.len() - 1 } else { bytes.len() };
    let mut at = start;
    let mut repeats = true;
    while at < end {
        let repeated = std::mem::replace(&mut repeats, false);
        match bytes[at] {
            b'\\' => match bytes.get(at + 1) {
                Some(b'd' | b'w' | b's' | b'D' | b'W' | b'S' | b'n' | b't') => at += 1,
                Some(escaped) if escaped.is_ascii_punctuation() && at + 1 < end => at += 1,
                _ => return false,
            },
            b'[' => match class_end(bytes, at) {
                Some(close) => at = close,
                None => return false,
            },
            // A second sign of repetition makes the first one lazy; at the start of a group it asks for more.
            b'*' | b'+' | b'?' | b'{' if repeated => return false,
            b'{' => match counted(&pattern[at..end]) {
                Some(length) => {
                    at += length - 1;
                    repeats = true;
                }
                None => return false,
            },
            b'*' | b'+' | b'?' | b'(' | b'|' => repeats = true,
            b'^' | b'$' | b'}' | b']' => return false,
            byte if byte.is_ascii_graphic() || byte == b' ' => {}
            _ => return false,
        }
        at += 1;
    }
    true
}

/// Where a character class ends.
fn class_end(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'[' | b'&' => return None,
            b']' => return (at > from + 1).then_some(at),
            byte if byte.is_ascii_graphic() || byte == b' ' => {}
            _ => return None,
        }
        at += 1;
    }
    None
}

/// The length of `{n}` or `{n,m}` of small numbers.
fn counted(pattern: &str) -> Option<usize> {
    let (inside, _) = pattern.strip_prefix('{')?.split_once('}')?;
    let (least, most) = inside.split_once(',').unwrap_or((inside, inside));
    let small = |number: &str| number.parse::<u32>().is_ok_and(|number| number <= REPEAT_MAX);
    (small(least) && small(most)).then_some(inside.len() + 2)
}
