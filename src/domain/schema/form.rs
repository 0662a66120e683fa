//! The schema in the form that the API takes (API reference, structured outputs).
//!
//! Taken are the types, `properties`, `required`, `items`, `enum` and `const` of scalars, `anyOf`, `$ref` to
//! a definition, some formats, `minItems` of 0 or 1 and plain patterns; each object must be closed. What
//! else is demanded goes into the description. That only makes the sent schema wider than the given one
//! where words can tell the rest (`oneOf` becomes `anyOf` without any); where a part of the answer could not be written at all (a map of any keys,
//! a tree, any value), the schema is not sent.

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};

use super::shape::{Shape, is_plain_pattern, is_scalar, lone_part, names_only};
use super::survey::{Survey, pointed};
use super::words;

/// What is sent of a schema.
pub(super) enum Form {
    /// This.
    Sent(Box<RawValue>),
    /// Nothing, for a reason: it goes into the prompt.
    Said(String),
}

/// The API's limits: properties that may be left out, and values of several types, in all.
const OPTIONAL_MAX: usize = 24;
const UNIONS_MAX: usize = 16;
/// Most schemas in a schema, after definitions were written out.
const PARTS_MAX: usize = 5000;

/// The formats that the API knows.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"];
/// What describes and demands nothing: it may stand beside a `$ref`.
pub(super) const NOTES: [&str; 8] =
    ["description", "title", "default", "examples", "$comment", "readOnly", "writeOnly", "deprecated"];
/// Where definitions stand.
pub(super) const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];
/// What makes the meaning of a schema depend on more than itself, or opens an object.
const TOO_MUCH: [&str; 8] = [
    "$dynamicRef",
    "$recursiveRef",
    "$anchor",
    "$dynamicAnchor",
    "patternProperties",
    "prefixItems",
    "additionalItems",
    "unevaluatedItems",
];
/// Demands that hold beside the type of a value.
const BESIDE: [&str; 9] =
    ["anyOf", "oneOf", "allOf", "not", "if", "then", "else", "dependentSchemas", "dependentRequired"];

/// Returns what is sent of a schema.
pub(super) fn of(schema: &Value, survey: &Survey<'_>) -> Form {
    let mut work = Work { root: schema, parts: 0, optional: 0, unions: 0 };
    let sent = match survey.loops {
        Some(definition) => Err(format!("{definition} leads back to itself")),
        None => work.schema(schema, "#").and_then(|sent| work.within_limits().map(|()| sent)),
    };
    match sent {
        Ok(sent) => Form::Sent(to_raw_value(&sent).expect("a value is always JSON")),
        Err(why) => Form::Said(why),
    }
}

struct Work<'a> {
    root: &'a Value,
    parts: usize,
    optional: usize,
    unions: usize,
}

type Fields = Map<String, Value>;

impl<'a> Work<'a> {
    fn within_limits(&self) -> Result<(), String> {
        if self.optional > OPTIONAL_MAX {
            return Err(format!(
                "{} properties may be left out, the API takes {OPTIONAL_MAX}",
                self.optional
            ));
        }
        if self.unions > UNIONS_MAX {
            return Err(format!("{} values have several types, the API takes {UNIONS_MAX}", self.unions));
        }
        Ok(())
    }

    /// One schema; the error says why it cannot be sent.
    fn schema(&mut self, given: &Value, at: &str) -> Result<Value, String> {
        self.parts += 1;
        if self.parts > PARTS_MAX {
            return Err(format!("it has more than {PARTS_MAX} parts"));
        }
        let Value::Object(given) = given else {
            return Err(format!("{at} is {} in place of a schema", words::kind(given)));
        };
        if let Some(word) = TOO_MUCH.iter().find(|word| given.contains_key(**word)) {
            return Err(format!("{at} uses {word}"));
        }
        if at != "#" && given.contains_key("$id") {
            return Err(format!("{at} uses $id"));
        }
        if let Some(target) = given.get("$ref") {
            return self.reference(given, target, at);
        }
        if let Some(only) = lone_part(given) {
            return self.written_out(given, only, at);
        }
        let shape = Shape::of(given).ok_or_else(|| match given.get("allOf") {
            Some(_) => format!("{at} joins schemas with allOf"),
            None => format!("{at} allows values of any type"),
        })?;
        let mut sent = Fields::new();
        let mut demands = Vec::new();
        for (keyword, value) in given {
            match self.keyword(given, shape, keyword, value, at)? {
                Kept::As(keyword, value) => drop(sent.insert(keyword.to_owned(), value)),
                Kept::InWords => demands.extend(words::of(keyword, value)),
                Kept::Nothing => {}
            }
        }
        self.close(given, shape, &mut sent, at)?;
        describe(&mut sent, &demands);
        Ok(Value::Object(sent))
    }

    /// What becomes of one keyword.
    fn keyword<'k>(
        &mut self,
        given: &Fields,
        shape: Shape,
        keyword: &'k str,
        value: &Value,
        at: &str,
    ) -> Result<Kept<'k>, String> {
        let alternatives = shape.alternatives;
        let as_it_is = |keep: bool| if keep { Kept::As(keyword, value.clone()) } else { Kept::InWords };
        Ok(match keyword {
            "description" | "title" => as_it_is(true),
            "type" if alternatives => Kept::Nothing,
            "type" => {
                self.unions += usize::from(value.is_array());
                as_it_is(true)
            }
            "enum" => as_it_is(value.as_array().is_some_and(|values| values.iter().all(is_scalar))),
            "const" => as_it_is(is_scalar(value)),
            "$defs" | "definitions" => Kept::As(keyword, self.each(value, &format!("{at}/{keyword}"))?),
            "properties" if shape.has_object => {
                Kept::As(keyword, self.each(value, &format!("{at}/properties"))?)
            }
            "required" if shape.has_object => as_it_is(true),
            "required" | "additionalProperties" | "unevaluatedProperties" if alternatives => {
                return Err(format!("{at} has {keyword} beside its alternatives"));
            }
            "additionalProperties" | "unevaluatedProperties" => Kept::Nothing,
            "items" if shape.has_array => Kept::As(keyword, self.schema(value, &format!("{at}/items"))?),
            "anyOf" | "oneOf" if alternatives => {
                self.unions += 1;
                let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
                let each = list
                    .iter()
                    .enumerate()
                    .map(|(n, part)| self.schema(part, &format!("{at}/{keyword}/{n}")));
                Kept::As("anyOf", Value::Array(each.collect::<Result<_, _>>()?))
            }
            "format" => {
                as_it_is(shape.has_string && value.as_str().is_some_and(|name| FORMATS.contains(&name)))
            }
            "pattern" => as_it_is(shape.has_string && value.as_str().is_some_and(is_plain_pattern)),
            "minItems" => as_it_is(shape.has_array && matches!(value.as_u64(), Some(0 | 1))),
            word if BESIDE.contains(&word) => {
                if alternatives && word != "not" {
                    return Err(format!("{at} has {word} beside its alternatives"));
                }
                if shape.has_object && !names_only(value, given) {
                    return Err(format!("{at}/{word} speaks of properties that stand nowhere else"));
                }
                Kept::InWords
            }
            _ => Kept::InWords,
        })
    }

    /// Each schema of a map of them, its keys in the order they were written.
    fn each(&mut self, schemas: &Value, at: &str) -> Result<Value, String> {
        let schemas = schemas.as_object().ok_or_else(|| format!("{at} is no object"))?;
        let mut sent = Fields::new();
        for (name, schema) in schemas {
            sent.insert(name.clone(), self.schema(schema, &format!("{at}/{name}"))?);
        }
        Ok(Value::Object(sent))
    }

    /// Closes an object: the API takes no other.
    fn close(&mut self, given: &Fields, shape: Shape, sent: &mut Fields, at: &str) -> Result<(), String> {
        if shape.has_array && !given.contains_key("items") {
            return Err(format!("{at} is an array of anything"));
        }
        if !shape.has_object {
            return Ok(());
        }
        for word in ["additionalProperties", "unevaluatedProperties"] {
            let demand = given.get(word).and_then(Value::as_object);
            if demand.is_some_and(|schema| !schema.is_empty()) {
                return Err(format!("{at} is a map whose keys are not known before"));
            }
        }
        let named = sent.get("properties").and_then(Value::as_object).map_or(0, Map::len);
        if named == 0 && given.get("additionalProperties") != Some(&Value::Bool(false)) {
            return Err(format!("{at} is an object with any keys"));
        }
        let required: Vec<&Value> = given
            .get("required")
            .and_then(Value::as_array)
            .map(|list| list.iter().collect())
            .unwrap_or_default();
        let properties = given.get("properties").and_then(Value::as_object);
        let is_named = |name: &&Value| {
            name.as_str().is_some_and(|name| properties.is_some_and(|all| all.contains_key(name)))
        };
        if let Some(absent) = required.iter().find(|name| !is_named(name)) {
            return Err(format!("{at} requires {absent}, which is not among its properties"));
        }
        self.optional += named.saturating_sub(required.len());
        if !sent.contains_key("type") {
            sent.shift_insert(0, "type".to_owned(), json!("object"));
        }
        sent.insert("additionalProperties".to_owned(), Value::Bool(false));
        Ok(())
    }

    /// A `$ref`. The API takes it alone; where it is described, the definition is written out instead.
    fn reference(&mut self, given: &Fields, target: &Value, at: &str) -> Result<Value, String> {
        let definition = self.definition(target, at)?;
        let described = given.keys().any(|word| NOTES.contains(&word.as_str()));
        if described {
            return self.written_out(given, definition, at);
        }
        let mut sent = Fields::new();
        for (keyword, value) in given {
            match keyword.as_str() {
                "$ref" => drop(sent.insert(keyword.clone(), value.clone())),
                "$defs" | "definitions" => {
                    drop(sent.insert(keyword.clone(), self.each(value, &format!("{at}/{keyword}"))?));
                }
                "$schema" | "$id" => {}
                _ => return Err(format!("{at} has {keyword} beside a $ref")),
            }
        }
        Ok(Value::Object(sent))
    }

    fn definition(&self, target: &Value, at: &str) -> Result<&'a Value, String> {
        let target = target.as_str().unwrap_or_default();
        let name = DEFINITIONS.iter().find_map(|place| target.strip_prefix(&format!("#/{place}/")));
        if name.is_none_or(|name| name.is_empty() || name.contains('/')) {
            return Err(format!("{at} refers to {target}, which is no definition"));
        }
        pointed(self.root, target).ok_or_else(|| format!("{at} refers to nothing"))
    }

    /// A schema in place of a reference to it, with what was said beside the reference.
    fn written_out(&mut self, given: &Fields, schema: &Value, at: &str) -> Result<Value, String> {
        let is_bare = schema.as_object().is_some_and(|fields| fields.len() == 1);
        if let Some(target) = schema.get("$ref").filter(|_| is_bare && given.len() > 1) {
            let definition = self.definition(target, at)?;
            return self.written_out(given, definition, at);
        }
        let Value::Object(mut sent) = self.schema(schema, at)? else {
            return Err(format!("{at} refers to no schema"));
        };
        let mut demands = Vec::new();
        for (keyword, value) in given {
            match keyword.as_str() {
                "$ref" | "allOf" | "$schema" | "$id" => {}
                "$defs" | "definitions" => {
                    sent.insert(keyword.clone(), self.each(value, &format!("{at}/{keyword}"))?);
                }
                "title" => drop(sent.insert(keyword.clone(), value.clone())),
                "description" => {
                    let own = value.as_str().unwrap_or_default();
                    let both = match sent.get(keyword).and_then(Value::as_str) {
                        Some(its) if its != own => format!("{own}\n\n{its}"),
                        _ => own.to_owned(),
                    };
                    sent.insert(keyword.clone(), Value::String(both));
                }
                word if NOTES.contains(&word) => demands.extend(words::of(word, value)),
                _ => return Err(format!("{at} has {keyword} beside a $ref")),
            }
        }
        describe(&mut sent, &demands);
        Ok(Value::Object(sent))
    }
}

/// What is kept of a keyword.
enum Kept<'a> {
    As(&'a str, Value),
    InWords,
    Nothing,
}

/// Says in the description what no keyword of the API's says.
fn describe(sent: &mut Fields, demands: &[String]) {
    if demands.is_empty() {
        return;
    }
    let demands = format!("Constraints: {}.", demands.join("; "));
    let both = match sent.get("description").and_then(Value::as_str) {
        Some(said) => format!("{said}\n\n{demands}"),
        None => demands,
    };
    sent.insert("description".to_owned(), Value::String(both));
}
