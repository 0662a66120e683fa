//! The answer as text: the JSON in it, its value, and where in the text a value stands.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use indexmap::IndexMap;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

/// Returns the JSON of an answer: without white space around it, and without a code fence where the
/// answer is one code block and nothing else.
pub(super) fn json_of(answer: &str) -> &str {
    let bare = answer.trim().trim_start_matches('\u{feff}').trim_start();
    unfenced(bare).unwrap_or(bare)
}

fn unfenced(text: &str) -> Option<&str> {
    let inside = text.strip_prefix("```")?.strip_suffix("```")?;
    let (language, body) = inside.split_once('\n')?;
    let plain = language.trim().chars().all(|c| c.is_ascii_alphanumeric());
    // Three backticks at the start of a line are another fence: no lone one.
    let lone = !body.lines().any(|line| line.trim_start().starts_with("```"));
    (plain && lone).then(|| body.trim())
}

/// Reads JSON. A key that stands twice in an object is an error: of two values one reader takes the
/// first and another the last, and only one would have been checked.
pub(super) fn read(json: &str) -> Result<Value, String> {
    let once: Once = serde_json::from_str(json).map_err(|err| format!("it is not JSON: {err}"))?;
    Ok(once.0)
}

/// A value whose objects have each key once.
struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OnceVisitor)
    }
}

struct OnceVisitor;

impl<'de> Visitor<'de> for OnceVisitor {
    type Value = Once;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<Once, E> {
        Ok(Once(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Once, E> {
        Ok(Once(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Once, E> {
        Ok(Once(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Once, E> {
        Ok(Once(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Once, E> {
        Ok(Once(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Once, E> {
        Ok(Once(Value::String(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Once, E> {
        Ok(Once(Value::String(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Once, A::Error> {
        let mut list = Vec::new();
        while let Some(Once(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Once(Value::Array(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Once, A::Error> {
        let mut map = Map::new();
        while let Some((name, Once(value))) = fields.next_entry::<String, Once>()? {
            if map.contains_key(&name) {
                return Err(A::Error::custom(format!("the key {name:?} stands twice in one object")));
            }
            map.insert(name, value);
        }
        Ok(Once(Value::Object(map)))
    }
}

/// Values to be put in place of others, by their paths: a tree of the keys and indexes on the way.
#[derive(Debug, Default)]
pub(super) struct Mends {
    new: Option<String>,
    below: HashMap<String, Mends>,
}

impl Mends {
    /// Puts JSON text in place of the value at a path.
    pub(super) fn put(&mut self, path: &[String], json: String) {
        let mut at = self;
        for step in path {
            at = at.below.entry(step.clone()).or_default();
        }
        at.new = Some(json);
    }

    /// Returns the text with every value in its new form, all else byte for byte.
    pub(super) fn apply(&self, json: &str) -> Option<String> {
        let mut places = Vec::new();
        self.find(json, serde_json::from_str(json).ok()?, &mut places)?;
        let mut out = String::with_capacity(json.len() + 16);
        let mut from = 0;
        for (place, new) in places {
            out.push_str(json.get(from..place.start)?);
            out.push_str(new);
            from = place.end;
        }
        out.push_str(json.get(from..)?);
        Some(out)
    }

    fn find<'a>(
        &'a self,
        json: &str,
        here: &RawValue,
        places: &mut Vec<(Range<usize>, &'a str)>,
    ) -> Option<()> {
        if let Some(new) = &self.new {
            // A raw value is borrowed from the text itself, so that its address tells its place.
            let start = (here.get().as_ptr() as usize).checked_sub(json.as_ptr() as usize)?;
            places.push((start..start + here.get().len(), new));
        } else if !self.below.is_empty() {
            for (step, child) in children(here)? {
                if let Some(mends) = self.below.get(&step) {
                    mends.find(json, child, places)?;
                }
            }
        }
        Some(())
    }
}

/// The values of an object or an array, in order, each with its key or index.
fn children(value: &RawValue) -> Option<Vec<(String, &RawValue)>> {
    if value.get().starts_with('[') {
        let items: Vec<&RawValue> = serde_json::from_str(value.get()).ok()?;
        return Some(items.into_iter().enumerate().map(|(at, item)| (at.to_string(), item)).collect());
    }
    // No key stands twice here: `read` has refused that.
    let fields: IndexMap<String, &RawValue> = serde_json::from_str(value.get()).ok()?;
    Some(fields.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lone_code_fence_is_dropped() {
        for (answer, json) in [
            (" {\"a\":1}\n", "{\"a\":1}"),
            ("\u{feff}[1]", "[1]"),
            ("```json\n{\"a\":1}\n```", "{\"a\":1}"),
            ("```\n[1]\n```\n", "[1]"),
            ("``` JSON \n\n [1] \n\n```", "[1]"),
            ("\"```\"", "\"```\""),
            ("```json\n{\"a\":\"``` in a line\"}\n```", "{\"a\":\"``` in a line\"}"),
        ] {
            assert_eq!(json_of(answer), json, "{answer}");
        }
        for answer in [
            "Here it is:\n```json\n1\n```",
            "```json\n1\n```\nDone.",
            "```json\n1\n```\n```json\n2\n```",
            "```",
            "``````",
            "```not a language\n1\n```",
        ] {
            assert_eq!(json_of(answer), answer);
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_no_answer_wherever_it_stands() {
        for json in [r#"{"a":1,"a":1}"#, r#"[{"b":{"a":1,"\u0061":2}}]"#] {
            let err = read(json).expect_err(json);
            assert!(err.contains("the key \"a\" stands twice in one object"), "{err}");
        }
        let json = r#"{"a":{"a":[{"a":1},{"a":1.50}]},"b":null,"c":true,"d":-7,"e":18446744073709551615}"#;
        assert_eq!(read(json).expect("plain"), serde_json::from_str::<Value>(json).expect("plain"));
    }

    #[test]
    fn a_mend_changes_its_values_and_nothing_else() {
        let json = r#" {"a": [1, {"b/c": "x", "\u00e9": [ ] }], "": {"": 1.50}, "a2": 1e2} "#;
        let mut mends = Mends::default();
        for (path, new) in [
            (&["a", "1", "é"][..], "NEW"),
            (&["a", "0"], "0"),
            (&["a", "1", "b/c"], "\"y\""),
            (&["", ""], "2"),
        ] {
            let path: Vec<String> = path.iter().map(ToString::to_string).collect();
            mends.put(&path, new.to_owned());
        }
        mends.put(&["absent".to_owned()], "3".to_owned());
        let mended = r#" {"a": [0, {"b/c": "y", "\u00e9": NEW }], "": {"": 2}, "a2": 1e2} "#;
        assert_eq!(mends.apply(json).as_deref(), Some(mended));
        let mut whole = Mends::default();
        whole.put(&[], "null".to_owned());
        assert_eq!(whole.apply(" 7 ").as_deref(), Some(" null "));
    }
}
