//! Answers that follow a JSON schema: where it is asked for, what the API refuses of it, and a value
//! that follows it, the same for the same prompt.
//!
//! A schema stands in `output_config.format`, or, for models that do not take it there, in the system
//! prompt between `<json_schema>` and `</json_schema>`. What descriptions demand in plain words ("at
//! least 3 items; at most 10 characters") is kept as a model would; patterns are not.

use serde_json::{Map, Value, json};

use super::marker::Misshape;
use super::problem::Problem;
use super::words;

/// How deep a value nests before everything that may be left out is.
const DEPTH_USUAL: usize = 4;
/// How deep it nests at most.
const DEPTH_MAX: usize = 40;
/// The keywords that the API takes.
const TAKEN: &str = "type description title enum const properties required additionalProperties items anyOf \
     allOf $ref $defs definitions format pattern minItems default";

/// Returns the schema that a request asks for, checked as the API checks it.
pub fn asked(body: &Map<String, Value>) -> Result<Option<Value>, Problem> {
    let sent =
        [("output_config.format.schema", &body.get("output_config").unwrap_or(&Value::Null)["format"])];
    let sent =
        sent.into_iter().chain(body.get("output_format").map(|format| ("output_format.schema", format)));
    for (place, format) in sent {
        if let Some(schema) = format.get("schema") {
            check(schema).map_err(|why| Problem::invalid(format!("{place}: {why}")))?;
            return Ok(Some(schema.clone()));
        }
    }
    Ok(body.get("system").and_then(in_system))
}

fn in_system(system: &Value) -> Option<Value> {
    let last = system.as_array().and_then(|blocks| blocks.last()).map(|block| &block["text"]);
    let (_, behind) = last.unwrap_or(system).as_str()?.rsplit_once("<json_schema>")?;
    let (schema, _) = behind.rsplit_once("</json_schema>")?;
    serde_json::from_str(schema).ok()
}

/// Says what the API does not take of a schema.
fn check(schema: &Value) -> Result<(), String> {
    let Some(fields) = schema.as_object() else {
        return Err("Input should be a valid dictionary or object".to_owned());
    };
    let kind = fields.get("type").and_then(Value::as_str).unwrap_or("any");
    let refused: Vec<&str> = fields
        .keys()
        .map(String::as_str)
        .filter(|word| !TAKEN.split(' ').any(|taken| taken == *word))
        .collect();
    if !refused.is_empty() {
        return Err(format!("For '{kind}' type, properties {} are not supported", refused.join(", ")));
    }
    if kind == "object" && fields.get("additionalProperties") != Some(&Value::Bool(false)) {
        return Err("For 'object' type, 'additionalProperties' must be explicitly set to false".to_owned());
    }
    if fields.get("minItems").is_some_and(|least| least.as_u64().is_none_or(|least| least > 1)) {
        return Err("For 'array' type, 'minItems' values other than 0 or 1 are not supported".to_owned());
    }
    let maps =
        ["properties", "$defs", "definitions"].iter().filter_map(|word| fields.get(*word)?.as_object());
    let lists = ["anyOf", "allOf"].iter().filter_map(|word| fields.get(*word)?.as_array());
    let mut inner = maps.flat_map(Map::values).chain(lists.flatten()).chain(fields.get("items"));
    inner.try_for_each(check)
}

/// Returns JSON that follows a schema, or, misshapen, nearly.
pub fn json(schema: &Value, seed: &str, misshape: Option<Misshape>) -> String {
    let maker = Maker { root: schema, seed, swaps: misshape == Some(Misshape::Case) };
    let mut value = maker.value(schema, "", 0);
    if misshape == Some(Misshape::Wrong) {
        let wrong = json!({ "wrong": true });
        match value.as_object_mut().and_then(|fields| fields.values_mut().next()) {
            Some(first) => *first = wrong,
            None => value = wrong,
        }
    }
    match misshape {
        Some(Misshape::Fenced) => format!("```json\n{value:#}\n```"),
        _ => value.to_string(),
    }
}

struct Maker<'a> {
    root: &'a Value,
    seed: &'a str,
    /// Whether listed words come with their capitals swapped.
    swaps: bool,
}

impl Maker<'_> {
    fn value(&self, schema: &Value, at: &str, depth: usize) -> Value {
        let pick = |count: usize| self.number(at) as usize % count.max(1);
        if depth > DEPTH_MAX {
            return Value::Null;
        }
        if let Some(target) = schema["$ref"].as_str() {
            let target = target.strip_prefix('#').and_then(|path| self.root.pointer(path));
            return self.value(target.unwrap_or(&Value::Null), at, depth + 1);
        }
        if let Some(value) = schema.get("const") {
            return self.listed(value);
        }
        if let Some(values) = schema["enum"].as_array().filter(|values| !values.is_empty()) {
            return self.listed(&values[pick(values.len())]);
        }
        if let Some(parts) = schema["anyOf"].as_array().or(schema["oneOf"].as_array()) {
            let null = parts.iter().find(|part| depth > DEPTH_USUAL && part["type"] == "null");
            return self.value(null.or(parts.get(pick(parts.len()))).unwrap_or(&Value::Null), at, depth + 1);
        }
        let kind = match &schema["type"] {
            Value::String(kind) => kind.as_str(),
            Value::Array(kinds) => kinds[pick(kinds.len())].as_str().unwrap_or("null"),
            _ if schema.get("items").is_some() => "array",
            _ if schema.get("properties").is_some() || schema.get("allOf").is_some() => "object",
            _ => "string",
        };
        match kind {
            "object" => self.object(schema, at, depth),
            "array" => self.array(schema, at, depth),
            "integer" => json!(self.within(schema, 1.0) as i64),
            "number" => json!(self.within(schema, 0.25)),
            "boolean" => json!(self.number(at).is_multiple_of(2)),
            "null" => Value::Null,
            _ => json!(self.text(schema, at)),
        }
    }

    fn listed(&self, value: &Value) -> Value {
        let swap = |c: char| {
            if c.is_lowercase() { c.to_uppercase().to_string() } else { c.to_lowercase().to_string() }
        };
        match value.as_str().filter(|_| self.swaps) {
            Some(word) => word.chars().map(swap).collect::<String>().into(),
            None => value.clone(),
        }
    }

    /// Required properties first, as the API writes them; of the others most.
    fn object(&self, schema: &Value, at: &str, depth: usize) -> Value {
        let mut value = Map::new();
        for part in schema["allOf"].as_array().into_iter().flatten() {
            if let Value::Object(fields) = self.value(part, at, depth + 1) {
                value.extend(fields);
            }
        }
        let required =
            |name: &str| schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name));
        let properties: Vec<_> = schema["properties"].as_object().into_iter().flatten().collect();
        for wanted in [true, false] {
            for (name, property) in properties.iter().filter(|(name, _)| required(name) == wanted) {
                let at = format!("{at}/{name}");
                if wanted || (depth < DEPTH_USUAL && !self.number(&at).is_multiple_of(4)) {
                    value.insert((*name).clone(), self.value(property, &at, depth + 1));
                }
            }
        }
        if properties.is_empty() && schema["additionalProperties"].is_object() {
            for name in ["first", "second"] {
                let at = format!("{at}/{name}");
                value.insert(name.to_owned(), self.value(&schema["additionalProperties"], &at, depth + 1));
            }
        }
        Value::Object(value)
    }

    fn array(&self, schema: &Value, at: &str, depth: usize) -> Value {
        let least = demand(schema, "minItems", "at least", "item").unwrap_or(0.0) as usize;
        let most = demand(schema, "maxItems", "at most", "item").map_or(100, |most| most as usize);
        let usual = if depth > DEPTH_USUAL { 0 } else { 1 + self.number(at) as usize % 3 };
        let each = 0..usual.max(least).min(most);
        each.map(|n| self.value(&schema["items"], &format!("{at}/{n}"), depth + 1)).collect()
    }

    fn within(&self, schema: &Value, step: f64) -> f64 {
        let lowest = demand(schema, "minimum", "at least", "");
        let above = demand(schema, "exclusiveMinimum", "more than", "").map(|limit| limit + step);
        let highest = demand(schema, "maximum", "at most", "");
        let below = demand(schema, "exclusiveMaximum", "less than", "").map(|limit| limit - step);
        let step =
            demand(schema, "multipleOf", "a multiple of", "").filter(|step| *step > 0.0).unwrap_or(step);
        let low = lowest.into_iter().chain(above).fold(f64::MIN, f64::max);
        let high = highest.into_iter().chain(below).fold(f64::MAX, f64::min);
        let usual = step * (1 + self.number(&schema.to_string()) % 100) as f64;
        let value = usual.clamp(low.min(high), high);
        let rounded = (value / step).floor() * step;
        if rounded < low { rounded + step } else { rounded }
    }

    fn text(&self, schema: &Value, at: &str) -> String {
        let format = schema["format"].as_str().unwrap_or("");
        let fixed = match format {
            "date-time" => "2026-11-23T08:30:00Z",
            "date" => "2026-11-23",
            "time" => "08:30:00Z",
            "duration" => "P1DT2H",
            "email" => "someone@example.com",
            "hostname" => "www.example.com",
            "uri" => "https://www.example.com/",
            "ipv4" => "192.0.2.1",
            "ipv6" => "2001:db8::1",
            "uuid" => "0f1e2d3c-4b5a-4697-8877-665544332211",
            _ => "",
        };
        if !fixed.is_empty() {
            return fixed.to_owned();
        }
        let seed = format!("{}{at}", self.seed);
        let text = words::of_words(&seed, 2 + self.number(at) as usize % 4).text.replace('.', "");
        let least = demand(schema, "minLength", "at least", "character").unwrap_or(0.0) as usize;
        let most =
            demand(schema, "maxLength", "at most", "character").map_or(usize::MAX, |most| most as usize);
        let text: String = text.chars().take(most).collect();
        let short = least.saturating_sub(text.chars().count());
        format!("{text}{}", "e".repeat(short))
    }

    /// A number that belongs to a place in the answer to a prompt.
    fn number(&self, at: &str) -> u64 {
        // FNV-1a, as for the words: the same in every version and on every machine.
        let bytes = self.seed.bytes().chain(at.bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }) >> 20
    }
}

/// A number that a schema demands, in a keyword or in the words of its description: "at most 3 items".
fn demand(schema: &Value, keyword: &str, words: &str, unit: &str) -> Option<f64> {
    if let Some(number) = schema[keyword].as_f64() {
        return Some(number);
    }
    let clauses = schema["description"].as_str()?.split([';', ':', '\n']);
    clauses.map(|clause| clause.trim().trim_end_matches('.')).find_map(|clause| {
        let (number, behind) = match clause.strip_prefix(words)?.trim().split_once(' ') {
            Some((number, behind)) => (number, behind),
            None => (clause.strip_prefix(words)?.trim(), ""),
        };
        let fits = if unit.is_empty() { behind.is_empty() } else { behind.starts_with(unit) };
        number.parse().ok().filter(|_| fits)
    })
}
