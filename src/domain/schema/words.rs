//! What a schema demands, in words: for descriptions, and for people.

use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind as Kind;
use serde_json::Value;

use super::check;

/// Names the kind of a JSON value.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Says why a value is no schema that answers can be held against.
pub(super) fn not_a_schema(error: &ValidationError<'_>) -> String {
    match error.kind() {
        Kind::Referencing(why) => {
            format!("a $ref in it cannot be followed, it may only point into the schema itself: {why}")
        }
        _ => format!("it is no valid JSON Schema: {}", check::line(error)),
    }
}

/// Says what a keyword demands; `None` where it demands nothing.
pub(super) fn of(keyword: &str, value: &Value) -> Option<String> {
    let text = || value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let count = |one: &str, many: &str| format!("{value} {}", if value == 1 { one } else { many });
    Some(match keyword {
        "minimum" => format!("at least {value}"),
        "maximum" => format!("at most {value}"),
        // Draft 4 has a flag here, whose number is `minimum`.
        "exclusiveMinimum" if value.is_number() => format!("more than {value}"),
        "exclusiveMaximum" if value.is_number() => format!("less than {value}"),
        "multipleOf" => format!("a multiple of {value}"),
        "minLength" => format!("at least {}", count("character", "characters")),
        "maxLength" => format!("at most {}", count("character", "characters")),
        "pattern" => format!("matches the regular expression {}", text()),
        "format" => format!("has the format {}", text()),
        "contentEncoding" => format!("is encoded as {}", text()),
        "contentMediaType" => format!("is of the media type {}", text()),
        "minItems" => format!("at least {}", count("item", "items")),
        "maxItems" => format!("at most {}", count("item", "items")),
        "uniqueItems" if value == true => "no two items are the same".to_owned(),
        "contains" => format!("holds an item that is valid against {value}"),
        "minProperties" => format!("at least {}", count("property", "properties")),
        "maxProperties" => format!("at most {}", count("property", "properties")),
        "propertyNames" => format!("each property's name is valid against {value}"),
        "enum" => format!("one of {value}"),
        "const" => format!("exactly {value}"),
        "not" => format!("not valid against {value}"),
        "anyOf" => format!("valid against at least one of {value}"),
        "oneOf" => format!("valid against exactly one of {value}"),
        "allOf" => format!("valid against each of {value}"),
        "default" => format!("{value} unless something else is known"),
        "examples" => format!("for example {value}"),
        // They say nothing of the value.
        "uniqueItems" | "$schema" | "$id" | "$comment" | "$vocabulary" | "readOnly" | "writeOnly"
        | "deprecated" => return None,
        _ if keyword.starts_with("x-") => return None,
        _ => format!("{keyword}: {value}"),
    })
}
