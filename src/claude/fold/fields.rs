//! A JSON object that deltas grow: its fields as they came, in order, as JSON text.
//!
//! Strings are joined in their escaped form: what the server sent stays what it sent, and the two
//! halves of a surrogate pair that stand in two deltas become one character again.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::domain::reply::decode_string;

/// The fields of one object.
#[derive(Debug, Default)]
pub(super) struct Fields(Vec<Field>);

#[derive(Debug)]
struct Field {
    key: String,
    /// JSON text; without its last character while it grows.
    value: String,
    grows: Grows,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grows {
    /// The value is whole JSON text.
    Not,
    /// A string without its closing quote.
    String,
    /// An array without its closing bracket.
    Array,
}

impl Fields {
    /// Reads the fields of an object; `None` where it is none (or a field's name is unreadable).
    pub(super) fn read(object: &str) -> Option<Self> {
        struct Object(Fields);
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Fields, A::Error> {
                while let Some((key, value)) = map.next_entry::<String, &RawValue>()? {
                    self.0.set(&key, value.get());
                }
                Ok(self.0)
            }
        }
        let mut json = serde_json::Deserializer::from_str(object);
        json.deserialize_map(Object(Self::default())).ok()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        self.0.iter().map(|field| (field.key.as_str(), field.json()))
    }

    /// Returns a field's JSON text.
    pub(super) fn get(&self, key: &str) -> Option<Cow<'_, str>> {
        self.0.iter().find(|field| field.key == key).map(Field::json)
    }

    /// Returns the decoded string of a field; `None` where it holds none.
    pub(super) fn string(&self, key: &str) -> Option<String> {
        self.get(key).filter(|json| json.starts_with('"')).map(|json| decode_string(&json))
    }

    /// Sets a field to JSON text.
    pub(super) fn set(&mut self, key: &str, json: &str) {
        let field = self.field(key);
        field.grows = Grows::Not;
        field.value.clear();
        field.value.push_str(json);
    }

    /// Sets the fields of `other` over these. A `null` does not hide what was known.
    pub(super) fn overlay(&mut self, other: &Self) {
        for (key, json) in other.iter() {
            if json != "null" || self.get(key).is_none() {
                self.set(key, &json);
            }
        }
    }

    /// Appends the inside of a string literal (escaped, without quotes) to a string field.
    pub(super) fn append(&mut self, key: &str, inside: &str) {
        let field = self.field(key);
        if field.grows != Grows::String {
            if field.grows == Grows::Not && field.value.len() >= 2 && field.value.starts_with('"') {
                field.value.pop();
            } else {
                field.value.clear();
                field.value.push('"');
            }
            field.grows = Grows::String;
        }
        field.value.push_str(inside);
    }

    /// Appends an item, as JSON text, to an array field.
    pub(super) fn push(&mut self, key: &str, json: &str) {
        let field = self.field(key);
        if field.grows != Grows::Array {
            if field.grows == Grows::Not && field.value.starts_with('[') {
                field.value.pop();
                field.value.truncate(field.value.trim_end().len());
            } else {
                field.value.clear();
                field.value.push('[');
            }
            field.grows = Grows::Array;
        }
        if field.value.len() > 1 {
            field.value.push(',');
        }
        field.value.push_str(json);
    }

    /// Makes every value whole.
    pub(super) fn close(&mut self) {
        for field in &mut self.0 {
            field.value.push_str(field.closing());
            field.grows = Grows::Not;
        }
    }

    /// Returns the object as JSON text.
    pub(super) fn write(&self) -> String {
        let size = self.0.iter().map(|field| field.key.len() + field.value.len() + 6).sum::<usize>();
        let mut out = String::with_capacity(size + 2);
        out.push('{');
        for (at, field) in self.0.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            push_key(&mut out, &field.key);
            out.push(':');
            out.push_str(&field.value);
            out.push_str(field.closing());
        }
        out.push('}');
        out
    }

    fn field(&mut self, key: &str) -> &mut Field {
        // An object has a handful of fields: looking at each is faster than a map.
        let at = self.0.iter().position(|field| field.key == key).unwrap_or_else(|| {
            self.0.push(Field { key: key.to_owned(), value: String::new(), grows: Grows::Not });
            self.0.len() - 1
        });
        &mut self.0[at]
    }
}

impl Field {
    fn closing(&self) -> &'static str {
        match self.grows {
            Grows::Not => "",
            Grows::String => "\"",
            Grows::Array => "]",
        }
    }

    fn json(&self) -> Cow<'_, str> {
        match self.grows {
            Grows::Not => Cow::Borrowed(&self.value),
            Grows::String | Grows::Array => Cow::Owned(format!("{}{}", self.value, self.closing())),
        }
    }
}

fn push_key(out: &mut String, key: &str) {
    if key.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        out.push('"');
        out.push_str(key);
        out.push('"');
    } else {
        out.push_str(&serde_json::Value::from(key).to_string());
    }
}

/// Returns the inside of a JSON string literal, still escaped; `None` where it is no string.
pub(super) fn inside(raw: &RawValue) -> Option<&str> {
    raw.get().strip_prefix('"')?.strip_suffix('"')
}

/// Decodes a string literal; empty where it is absent or no string.
pub(super) fn word(raw: Option<&RawValue>) -> Cow<'_, str> {
    match raw.and_then(inside) {
        Some(word) if !word.contains('\\') => Cow::Borrowed(word),
        Some(_) => Cow::Owned(decode_string(raw.map(RawValue::get).unwrap_or_default())),
        None => Cow::Borrowed(""),
    }
}
