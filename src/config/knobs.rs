//! The knobs: every setting there is, read from `default.toml`, which is their only list.
//!
//! Says which keys exist, which of them was probably meant, and how the README's table reads.
//! Knows nothing of values that people set: see [`super::layers`].

use std::fmt::Write as _;
use std::sync::LazyLock;

/// The built-in defaults, as text.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

/// What stands for the model's name in the keys of `[models."NAME"]`.
pub const MODEL: &str = "NAME";

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
}

/// Returns all knobs, in the order of `default.toml`.
pub fn knobs() -> &'static [Knob] {
    static KNOBS: LazyLock<Vec<Knob>> = LazyLock::new(|| parse(DEFAULT_TOML));
    &KNOBS
}

/// Returns the knobs as a Markdown table, as it stands in the README.
pub fn table() -> String {
    let mut text = String::from("| setting | default | meaning |\n|---|---|---|\n");
    for knob in knobs() {
        let default = match knob.default.as_str() {
            "\"\"" | "{}" => "–".to_owned(),
            default => format!("`{}`", default.trim_matches('"')),
        };
        writeln!(text, "| `{}` | {default} | {} |", knob.name(), knob.why.replace('|', "\\|"))
            .expect("a String takes every write");
    }
    text
}

/// Reads the knobs and the comments above them. A knob without a comment of its own is one of a
/// model already described, and is left out.
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
            section =
                if name.starts_with("models.") { format!("models.\"{MODEL}\"") } else { name.to_owned() };
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

/// Returns the names of the sections, `models` included.
pub(super) fn sections() -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for knob in knobs() {
        let name = if knob.section.starts_with("models.") { "models" } else { &knob.section };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Says whether `section.key` is a knob; a model's keys are asked for under the section `models`.
pub(super) fn is_knob(section: &str, key: &str) -> bool {
    keys(section).any(|known| known == key)
}

fn keys(section: &str) -> impl Iterator<Item = &'static str> {
    knobs()
        .iter()
        .filter(move |knob| knob.section == section || (section == "models" && is_model(knob)))
        .map(|knob| knob.key.as_str())
}

fn is_model(knob: &Knob) -> bool {
    knob.section.starts_with("models.")
}

/// Returns the knob that was probably meant by `section` and `key`, as (section, key).
///
/// A key that stands in another section is meant there; else the closest spelling wins, if it is
/// close at all.
pub(super) fn closest(section: &str, key: &str) -> Option<(&'static str, &'static str)> {
    let candidates = knobs().iter().filter(|knob| !is_model(knob) || section == "models");
    let meant = candidates.clone().find(|knob| knob.key == key && knob.section != section).or_else(|| {
        let name = format!("{section}.{key}");
        candidates
            .map(|knob| {
                let known = if is_model(knob) { format!("models.{}", knob.key) } else { knob.name() };
                // The same section counts: its keys are nearer than equally close ones elsewhere.
                let near = strsim::normalized_damerau_levenshtein(&known, &name);
                (knob, near)
            })
            .filter(|(_, near)| *near >= 0.6)
            .max_by(|(_, a), (_, b)| a.total_cmp(b))
            .map(|(knob, _)| knob)
    })?;
    Some((if is_model(meant) { "models" } else { &meant.section }, &meant.key))
}

/// Returns the section that was probably meant.
pub(super) fn closest_section(section: &str) -> Option<&'static str> {
    sections()
        .into_iter()
        .map(|known| (known, strsim::normalized_damerau_levenshtein(known, section)))
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
        for (section, keys) in table.iter().filter(|(section, _)| *section != "models") {
            for key in keys.as_table().unwrap().keys() {
                assert!(is_knob(section, key), "{section}.{key} has no comment in default.toml");
            }
        }
        for (name, keys) in table["models"].as_table().unwrap() {
            for key in keys.as_table().unwrap().keys() {
                assert!(is_knob("models", key), "{name}.{key} is described at no model");
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
            (("zzz", "qqqqqqqqqqqqqqqqqqqqqq"), None),
        ] {
            assert_eq!(closest(section, key), meant, "{section}.{key}");
        }
    }
}
