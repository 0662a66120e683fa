//! What a gate's scope means to a person: in words, and as the jobs that it holds back.

use crate::domain::gate::batch_of_scope;
use crate::store::Behind;

/// A scope, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// `key:<fingerprint>`.
    Key(String),
    /// `model:<profile>/<model>`.
    Model {
        /// Whose account.
        profile: String,
        /// Which model.
        model: String,
    },
    /// `batch:<queue>/<batch>`; `''`: the jobs without a label.
    Batch {
        /// `jobs.queue`.
        queue: String,
        /// `jobs.batch`.
        batch: String,
    },
    /// `rate:<fingerprint>/<class>`.
    Rate {
        /// Which key.
        key: String,
        /// Which class of models.
        class: String,
    },
    /// None of these.
    Other,
}

impl Scope {
    /// How scopes are written, for a sentence.
    pub const FORMS: &str =
        "key:FINGERPRINT, model:PROFILE/NAME, batch:QUEUE/BATCH or rate:FINGERPRINT/CLASS";

    /// Reads a scope.
    pub fn parse(text: &str) -> Self {
        let Some((kind, name)) = text.split_once(':') else { return Self::Other };
        let parted = name.split_once('/').filter(|(left, right)| !left.is_empty() && !right.is_empty());
        let parted = parted.map(|(left, right)| (left.to_owned(), right.to_owned()));
        match (kind, parted) {
            ("key", _) if !name.is_empty() => Self::Key(name.to_owned()),
            ("model", Some((profile, model))) => Self::Model { profile, model },
            ("rate", Some((key, class))) => Self::Rate { key, class },
            ("batch", _) => match batch_of_scope(text) {
                Some((queue, batch)) if !queue.is_empty() => Self::Batch { queue, batch },
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }

    /// What goes through the gate, in words.
    pub fn words(&self) -> String {
        match self {
            Self::Key(fingerprint) => format!("every call with the key of fingerprint {fingerprint}"),
            Self::Model { profile, model } => format!("calls to model {model} with profile {profile}"),
            Self::Batch { queue, batch } if batch.is_empty() => {
                format!("the jobs of queue {queue} that have no batch")
            }
            Self::Batch { queue, batch } => format!("batch {batch} of queue {queue}"),
            Self::Rate { key, class } => {
                format!("the pace of {class} calls with the key of fingerprint {key}")
            }
            Self::Other => "unknown to this version".to_owned(),
        }
    }

    /// The jobs that it may hold back, where that can be told.
    pub fn behind(&self, default_model: &str) -> Option<Behind> {
        match self {
            Self::Key(key) => Some(Behind::Key(key.clone())),
            Self::Model { profile, model } => Some(Behind::Model {
                profile: profile.clone(),
                model: model.clone(),
                default_model: default_model.to_owned(),
            }),
            Self::Batch { queue, batch } => {
                Some(Behind::Batch { queue: queue.clone(), batch: batch.clone() })
            }
            Self::Rate { .. } | Self::Other => None,
        }
    }
}

/// Writes a word as a shell takes it.
pub fn quoted(word: &str) -> String {
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | ',' | '@' | '+');
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Writes an option with its value as a shell takes it.
pub fn option(name: &str, value: &str) -> String {
    let between = if value.starts_with('-') { '=' } else { ' ' };
    format!("{name}{between}{}", quoted(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(queue: &str, batch: &str) -> Scope {
        Scope::Batch { queue: queue.to_owned(), batch: batch.to_owned() }
    }

    #[test]
    fn a_scope_is_read_as_daemons_mean_it() {
        assert_eq!(Scope::parse("key:12ab"), Scope::Key("12ab".to_owned()));
        assert_eq!(
            Scope::parse("model:default/vendor/claude"),
            Scope::Model { profile: "default".to_owned(), model: "vendor/claude".to_owned() }
        );
        assert_eq!(Scope::parse("batch:q/2026/11"), batch("q", "2026/11"));
        assert_eq!(Scope::parse("batch:q/"), batch("q", ""));
        assert_eq!(Scope::parse("batch:team%2Fetl/a/b"), batch("team/etl", "a/b"));
        for odd in [
            "",
            "key:",
            "model:claude",
            "model:/claude",
            "model:p/",
            "batch:b",
            "batch:/b",
            "batch:50%/b",
            "rate:k",
            "x:y/z",
        ] {
            assert_eq!(Scope::parse(odd), Scope::Other, "{odd}");
        }
    }

    #[test]
    fn a_command_can_be_pasted_into_a_shell() {
        assert_eq!(quoted("batch:q/b-1.jsonl"), "batch:q/b-1.jsonl");
        assert_eq!(quoted("batch:q/it's"), r"'batch:q/it'\''s'");
        assert_eq!(quoted("$(rm -r)"), "'$(rm -r)'");
        assert_eq!(quoted(""), "''");
        assert_eq!(option("--batch", "-x y"), "--batch='-x y'");
        assert_eq!(option("--batch", "x"), "--batch x");
    }
}
