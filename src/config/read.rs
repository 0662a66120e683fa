//! Reading merged values as what they must be. Collects every fault, and every value with its
//! origin for `promptmill config`; a secret is masked before it is kept.

use std::ops::RangeInclusive;
use std::str::FromStr as _;
use std::time::Duration;

use ::config::{Map, Value, ValueKind};

use super::knobs;
use super::layers::DEFAULT;
use super::problem::Problem;

/// What stands for a secret wherever people look.
pub const MASK: &str = "***";

/// An effective value and where it came from. Holds no secret.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its section: `worker`, `models."NAME"`.
    pub section: String,
    /// Its key there.
    pub key: String,
    /// The value as it was given; `"***"` for a secret.
    pub value: toml::Value,
    /// `default`, a file, a variable, or a flag.
    pub origin: String,
}

/// Reads settings out of the merged layers. Where one is wrong it notes why and returns something
/// of the right type, so that the rest is checked too; the caller throws all away then.
pub(super) struct Reader {
    root: Map<String, Value>,
    pub(super) problems: Vec<Problem>,
    pub(super) entries: Vec<Entry>,
}

/// Returns `worker.concurrency`, or `models."NAME".prefill`.
pub(super) fn name(path: &[&str], key: &str) -> String {
    format!("{}.{key}", section_name(path))
}

/// Returns `models."NAME"`, the name as TOML quotes it: it may hold anything.
pub fn part(section: &str, name: &str) -> String {
    format!("{section}.{}", toml::Value::from(name))
}

fn section_name(path: &[&str]) -> String {
    match path {
        [section, name, rest @ ..] if knobs::named(section).is_some() => {
            [&[part(section, name).as_str()], rest].concat().join(".")
        }
        path => path.join("."),
    }
}

impl Reader {
    pub(super) fn new(root: Map<String, Value>, problems: Vec<Problem>) -> Self {
        Self { root, problems, entries: Vec::new() }
    }

    fn look(&self, path: &[&str], key: &str) -> Option<&Value> {
        let mut table = &self.root;
        for part in path {
            let ValueKind::Table(inner) = &table.get(*part)?.kind else { return None };
            table = inner;
        }
        table.get(key)
    }

    /// Returns where a setting came from.
    pub(super) fn origin(&self, path: &[&str], key: &str) -> String {
        self.look(path, key).and_then(Value::origin).unwrap_or(DEFAULT).to_owned()
    }

    /// Says whether nobody set it.
    pub(super) fn is_default(&self, path: &[&str], key: &str) -> bool {
        self.origin(path, key) == DEFAULT
    }

    pub(super) fn problem(&mut self, path: &[&str], key: &str, what: impl Into<String>) {
        let origin = match self.origin(path, key) {
            origin if origin == DEFAULT => String::new(),
            origin => origin,
        };
        self.problems.push(Problem { key: name(path, key), origin, what: what.into() });
    }

    /// Returns a table's keys, sorted.
    pub(super) fn keys(&self, path: &[&str], key: &str) -> Vec<String> {
        let Some(ValueKind::Table(table)) = self.look(path, key).map(|value| &value.kind) else {
            return Vec::new();
        };
        let mut keys: Vec<String> = table.keys().cloned().collect();
        keys.sort();
        keys
    }

    /// Notes an effective value. `shown`: in place of the value, where that is a secret.
    pub(super) fn note(&mut self, path: &[&str], key: &str, shown: toml::Value) {
        let origin = self.origin(path, key);
        self.entries.push(Entry { section: section_name(path), key: key.to_owned(), value: shown, origin });
    }

    /// Replaces the value noted last, where another setting decided it.
    pub(super) fn overrule(&mut self, path: &[&str], key: &str, shown: toml::Value, origin: String) {
        let section = section_name(path);
        let noted = self.entries.iter_mut().find(|entry| entry.section == section && entry.key == key);
        if let Some(entry) = noted {
            entry.value = shown;
            entry.origin = origin;
        }
    }

    /// Notes that a setting of a profile is that of `[api]`.
    pub(super) fn follow_api(&mut self, path: &[&str], key: &str) {
        let of_api = self.entries.iter().find(|entry| entry.section == "api" && entry.key == key);
        if let Some(value) = of_api.map(|entry| entry.value.clone()) {
            self.overrule(path, key, value, format!("follows api.{key}"));
        }
    }

    /// Takes a value and notes it; `None`: not set, or set to nothing.
    fn take(&mut self, path: &[&str], key: &str) -> Option<ValueKind> {
        let kind = self.look(path, key).map(|value| value.kind.clone())?;
        self.note(path, key, shown(&kind));
        match kind {
            ValueKind::Nil => None,
            ValueKind::String(text) if text.is_empty() => None,
            kind => Some(kind),
        }
    }

    /// Notes the value taken last as what it was read as: in a variable everything is text.
    fn read_as(&mut self, value: impl Into<toml::Value>) {
        if let Some(entry) = self.entries.last_mut() {
            entry.value = value.into();
        }
    }

    /// Takes a text without noting it: for secrets, which the caller masks.
    pub(super) fn secret(&mut self, path: &[&str], key: &str) -> Option<String> {
        match self.look(path, key).map(|value| value.kind.clone())? {
            ValueKind::String(text) if text.is_empty() => None,
            ValueKind::String(text) => Some(text),
            _ => {
                self.problem(path, key, "must be a text in quotes");
                None
            }
        }
    }

    pub(super) fn optional_text(&mut self, path: &[&str], key: &str) -> Option<String> {
        let ValueKind::String(text) = self.take(path, key)? else {
            self.problem(path, key, "must be a text in quotes");
            return None;
        };
        Some(text)
    }

    /// Reads a list of texts; in a variable it is written as in a file.
    pub(super) fn list(&mut self, path: &[&str], key: &str) -> Vec<String> {
        let Some(kind) = self.take(path, key) else { return Vec::new() };
        let texts = match kind {
            ValueKind::Array(values) => {
                values.into_iter().map(|value| as_text(value.kind)).collect::<Option<Vec<String>>>()
            }
            ValueKind::String(text) => in_brackets(&text),
            _ => None,
        };
        let Some(texts) = texts else {
            self.problem(path, key, "must be a list of texts, such as [\"one\", \"two\"]");
            return Vec::new();
        };
        self.read_as(texts.clone());
        texts
    }

    pub(super) fn text(&mut self, path: &[&str], key: &str) -> String {
        let before = self.problems.len();
        let text = self.optional_text(path, key);
        if text.is_none() && self.problems.len() == before {
            self.problem(path, key, "must not be empty");
        }
        text.unwrap_or_default()
    }

    pub(super) fn optional_integer(
        &mut self,
        path: &[&str],
        key: &str,
        range: &RangeInclusive<i64>,
    ) -> Option<i64> {
        let kind = self.take(path, key)?;
        let number = match &kind {
            ValueKind::I64(number) => Some(*number),
            ValueKind::String(text) => text.trim().replace('_', "").parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if range.contains(&number) => {
                self.read_as(number);
                Some(number)
            }
            _ => {
                let (from, to) = range.clone().into_inner();
                let bounds = if to == i64::MAX {
                    format!("of at least {from}")
                } else {
                    format!("from {from} to {to}")
                };
                self.problem(path, key, format!("must be a whole number {bounds}{}", not(&kind)));
                None
            }
        }
    }

    pub(super) fn integer(&mut self, path: &[&str], key: &str, range: &RangeInclusive<i64>) -> i64 {
        let before = self.problems.len();
        let number = self.optional_integer(path, key, range);
        if number.is_none() && self.problems.len() == before {
            self.problem(path, key, "must not be empty");
        }
        number.unwrap_or(*range.start())
    }

    pub(super) fn number(
        &mut self,
        path: &[&str],
        key: &str,
        range: &RangeInclusive<f64>,
        unit: &str,
    ) -> f64 {
        let before = self.problems.len();
        let number = self.optional_number(path, key, range, unit);
        if number.is_none() && self.problems.len() == before {
            self.problem(path, key, "must not be empty");
        }
        number.unwrap_or(*range.start())
    }

    pub(super) fn optional_number(
        &mut self,
        path: &[&str],
        key: &str,
        range: &RangeInclusive<f64>,
        unit: &str,
    ) -> Option<f64> {
        let kind = self.take(path, key)?;
        let number = match &kind {
            ValueKind::I64(number) => Some(*number as f64),
            ValueKind::Float(number) => Some(*number),
            ValueKind::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if range.contains(&number) => {
                // Whole numbers stay whole: `30`, not `30.0`.
                let whole = number.fract() == 0.0;
                self.read_as(if whole { toml::Value::from(number as i64) } else { number.into() });
                Some(number)
            }
            _ => {
                let (from, to) = range.clone().into_inner();
                self.problem(path, key, format!("must be a number from {from} to {to}{unit}{}", not(&kind)));
                None
            }
        }
    }

    pub(super) fn seconds(&mut self, path: &[&str], key: &str, range: &RangeInclusive<f64>) -> Duration {
        Duration::from_secs_f64(self.number(path, key, range, " (seconds)"))
    }

    pub(super) fn millis(&mut self, path: &[&str], key: &str, range: &RangeInclusive<f64>) -> Duration {
        Duration::from_secs_f64(self.number(path, key, range, " (milliseconds)") / 1000.0)
    }

    /// Reads bytes: a number, or a number with `KiB`, `MiB` or `GiB`.
    pub(super) fn bytes(&mut self, path: &[&str], key: &str, range: &RangeInclusive<u64>) -> u64 {
        let kind = self.take(path, key).unwrap_or(ValueKind::Nil);
        let bytes = match &kind {
            ValueKind::I64(number) => u64::try_from(*number).ok(),
            ValueKind::String(text) => parse_bytes(text),
            _ => None,
        };
        match bytes {
            Some(bytes) if range.contains(&bytes) => bytes,
            _ => {
                let (from, to) = range.clone().into_inner();
                let what = format!(
                    "must be a number of bytes from {from} to {to}, such as 1048576 or \"1 MiB\"{}",
                    not(&kind)
                );
                self.problem(path, key, what);
                from
            }
        }
    }

    pub(super) fn flag(&mut self, path: &[&str], key: &str) -> bool {
        self.optional_flag(path, key).unwrap_or(false)
    }

    pub(super) fn optional_flag(&mut self, path: &[&str], key: &str) -> Option<bool> {
        Some(match self.take(path, key)? {
            ValueKind::Boolean(yes) => yes,
            kind => {
                let text =
                    if let ValueKind::String(text) = &kind { text.to_lowercase() } else { String::new() };
                let yes = matches!(text.as_str(), "true" | "yes" | "on" | "1");
                if !yes && !matches!(text.as_str(), "false" | "no" | "off" | "0") {
                    self.problem(path, key, format!("must be true or false{}", not(&kind)));
                }
                self.read_as(yes);
                yes
            }
        })
    }

    /// Reads one of a few words; the first is what an empty text and a wrong word stand for.
    pub(super) fn choice<T: Copy>(&mut self, path: &[&str], key: &str, words: &[(&str, T)]) -> T {
        let kind = self.take(path, key).unwrap_or_else(|| ValueKind::String(words[0].0.to_owned()));
        let found = match &kind {
            ValueKind::String(text) => words.iter().find(|(word, _)| word == text),
            _ => None,
        };
        if let Some((_, chosen)) = found {
            return *chosen;
        }
        let all: Vec<String> = words
            .iter()
            .map(|(word, _)| if word.is_empty() { "empty".to_owned() } else { format!("`{word}`") })
            .collect();
        self.problem(path, key, format!("must be {}{}", all.join(" or "), not(&kind)));
        words[0].1
    }
}

fn as_text(kind: ValueKind) -> Option<String> {
    if let ValueKind::String(text) = kind { Some(text) } else { None }
}

/// Reads a list of texts as it stands in a variable.
fn in_brackets(text: &str) -> Option<Vec<String>> {
    text.trim().starts_with('[').then(|| toml::Value::from_str(text.trim()).ok()?.try_into().ok())?
}

fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|letter: char| !letter.is_ascii_digit() && letter != '_').unwrap_or(text.len());
    let number: u64 = text[..digits].replace('_', "").parse().ok()?;
    let unit: u64 = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// Quotes a wrong value where it is short and nothing like a secret.
fn not(kind: &ValueKind) -> String {
    match kind {
        ValueKind::I64(number) => format!(", not {number}"),
        ValueKind::Float(number) => format!(", not {number}"),
        ValueKind::Boolean(yes) => format!(", not {yes}"),
        ValueKind::String(text)
            if text.len() <= 16 && text.chars().all(|c| c.is_ascii_alphanumeric() || " .-_".contains(c)) =>
        {
            format!(", not `{text}`")
        }
        _ => String::new(),
    }
}

fn shown(kind: &ValueKind) -> toml::Value {
    match kind {
        ValueKind::Boolean(yes) => (*yes).into(),
        ValueKind::I64(number) => (*number).into(),
        ValueKind::Float(number) => (*number).into(),
        ValueKind::String(text) => text.clone().into(),
        ValueKind::Array(values) => {
            toml::Value::Array(values.iter().map(|value| shown(&value.kind)).collect())
        }
        _ => toml::Value::String(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_and_without_a_unit() {
        for (text, bytes) in [
            ("16 KiB", Some(16_384)),
            ("32MiB", Some(33_554_432)),
            ("1_000", Some(1000)),
            ("2 GiB", Some(2_147_483_648)),
            ("1 MB", None),
            ("-1", None),
            ("", None),
            ("99999999999 GiB", None),
        ] {
            assert_eq!(parse_bytes(text), bytes, "{text}");
        }
    }
}
