//! The knobs: every setting there is, read from `default.toml`, which is their only list.
//!
//! Says which keys exist, which of them was probably meant, and how the book's table of them reads.
//! Knows nothing of values that people set: see [`super::layers`].

use std::fmt::Write as _;
use std::sync::LazyLock;

/// The built-in defaults, as text.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

/// What stands for a name in the keys of sections such as `[models."NAME"]`. Where `default.toml` has a
/// part of this name, it is none itself: its values are the defaults of every part that people name.
pub const NAME: &str = "NAME";

/// A section whose parts people name.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    /// `models`.
    pub section: &'static str,
    /// What one part is, for a sentence.
    pub one: &'static str,
    /// Names that are there without anybody's saying so.
    pub always: &'static [&'static str],
}

/// All sections whose parts people name.
pub const NAMED: [Named; 4] = [
    Named { section: "models", one: "model", always: &[] },
    Named { section: "profiles", one: "profile", always: &[] },
    // The queue of a job that names none.
    Named { section: "queues", one: "queue", always: &["default"] },
    Named { section: "tools", one: "tool", always: &[] },
];

/// Returns the named section of this name, if it is one.
pub(super) fn named(section: &str) -> Option<&'static Named> {
    NAMED.iter().find(|named| named.section == section)
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Knob {
    /// `worker`, or `models."NAME"`.
    pub section: String,
    /// `lease_seconds`.
    pub key: String,
    /// The default, as TOML.
    pub default: String,
    /// Its unit and why one would turn it.
    pub why: String,
}

impl Knob {
    /// Returns `worker.lease_seconds`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.section, self.key)
    }

    /// The section it is asked for under: `worker`, `models`.
    fn group(&self) -> &str {
        self.section.split_once('.').map_or(&self.section, |(group, _)| group)
    }
}

/// Returns all knobs, in the order of `default.toml`.
pub fn knobs() -> &'static [Knob] {
    static KNOBS: LazyLock<Vec<Knob>> = LazyLock::new(|| parse(DEFAULT_TOML));
    &KNOBS
}

/// Returns the knobs as a Markdown table, as it stands in `docs/settings.md`.
pub fn table() -> String {
    let mut text = String::from("| setting | default | meaning |\n|---|---|---|\n");
    for knob in knobs() {
        let default = match knob.default.as_str() {
            "\"\"" | "{}" | "[]" => "–".to_owned(),
            default => format!("`{}`", default.trim_matches('"')),
        };
        writeln!(text, "| `{}` | {default} | {} |", knob.name(), knob.why.replace('|', "\\|"))
            .expect("a String takes every write");
    }
    text
}

/// Reads the knobs and the comments above them. A knob without a comment of its own is one of a
/// part already described, and is left out.
fn parse(text: &str) -> Vec<Knob> {
    let mut section = String::new();
    let mut why: Vec<&str> = Vec::new();
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix('#') {
            why.push(comment.trim());
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = match name.split_once('.') {
                Some((group, _)) => format!("{group}.\"{NAME}\""),
                None => name.to_owned(),
            };
        } else if let Some((key, default)) = line.split_once(" = ")
            && !why.is_empty()
        {
            found.push(Knob {
                section: section.clone(),
                key: key.to_owned(),
                default: default.to_owned(),
                why: why.join(" "),
            });
        }
        why.clear();
    }
    found
}

/// Returns the names of the sections, those with named parts included.
pub(super) fn sections() -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for name in knobs().iter().map(Knob::group) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Says whether `section.key` is a knob; the keys of a named part are asked for under its section.
pub(super) fn is_knob(section: &str, key: &str) -> bool {
    knobs().iter().any(|knob| knob.group() == section && knob.key == key)
}

/// Returns the knob that was probably meant by `section` and `key`, as (section, key).
///
/// A key that stands in another section is meant there; else the closest spelling wins, if it is
/// close at all. The keys of named parts are meant only there: without the name they say nothing.
pub(super) fn closest(section: &str, key: &str) -> Option<(&'static str, &'static str)> {
    let candidates = knobs().iter().filter(|knob| named(knob.group()).is_none() || knob.group() == section);
    // A key of this section stands here where its part has no name.
    let here = |knob: &&Knob| knob.key == key && knob.group() == section;
    // What a profile does not have, `[api]` has for all of them.
    let of_api = |knob: &&Knob| knob.key == key && section == "profiles" && knob.group() == "api";
    let there = |knob: &&Knob| knob.key == key && knob.group() != section;
    let exact = [&here as &dyn Fn(&&Knob) -> bool, &of_api, &there];
    let exact = exact.iter().find_map(|is_meant| candidates.clone().find(is_meant));
    let meant = exact.or_else(|| {
        let name = format!("{section}.{key}");
        candidates
            .map(|knob| {
                let known = format!("{}.{}", knob.group(), knob.key);
                // The same section counts: its keys are nearer than equally close ones elsewhere.
                let near = strsim::normalized_damerau_levenshtein(&known, &name);
                (knob, near)
            })
            .filter(|(_, near)| *near >= 0.6)
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
            .map(|(knob, _)| knob)
    })?;
    Some((meant.group(), &meant.key))
}

/// Returns the section that was probably meant.
pub(super) fn closest_section(section: &str) -> Option<&'static str> {
    closest_word(section, sections())
}

/// Returns the one of these words that was probably meant.
pub(super) fn closest_word<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|known| (known, strsim::normalized_damerau_levenshtein(known, word)))
        .filter(|(_, near)| *near >= 0.5)
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(known, _)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_knob_has_its_comment() {
        let table: toml::Table = toml::from_str(DEFAULT_TOML).unwrap();
        let described = |section: &str, keys: &toml::Value| {
            for key in keys.as_table().unwrap().keys() {
                assert!(is_knob(section, key), "{section}.{key} has no comment in default.toml");
            }
        };
        for (section, keys) in &table {
            match named(section) {
                Some(_) => keys.as_table().unwrap().values().for_each(|keys| described(section, keys)),
                None => described(section, keys),
            }
        }
        assert!(knobs().iter().all(|knob| knob.why.ends_with('.')), "a comment is a sentence");
    }

    #[test]
    fn the_closest_knob_is_the_one_meant() {
        for ((section, key), meant) in [
            (("worker", "concurency"), Some(("worker", "concurrency"))),
            (("worker", "lease_secs"), Some(("worker", "lease_seconds"))),
            (("wroker", "lease_seconds"), Some(("worker", "lease_seconds"))),
            (("worker", "max_failures"), Some(("defaults", "max_failures"))),
            (("models", "max_token"), Some(("models", "max_tokens"))),
            (("queues", "profle"), Some(("queues", "profile"))),
            (("worker", "prefill"), None),
            (("zzz", "qqqqqqqqqqqqqqqqqqqqqq"), None),
        ] {
            assert_eq!(closest(section, key), meant, "{section}.{key}");
        }
    }
}
