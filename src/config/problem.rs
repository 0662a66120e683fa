//! What is wrong with a configuration: all of it at once, each with its key and what to do.
//!
//! Never holds a secret: whoever makes a [`Problem`] quotes no value that could be one.

use std::fmt;

use super::KeyError;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The setting as the person wrote it: `worker.concurency`, `PROMPTMILL_WORKER__CONCURENCY`.
    pub key: String,
    /// Where it was set: a file, `the environment`, a flag. Empty where the key says it.
    pub origin: String,
    /// What is wrong and what to do, read after the key.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        // A variable's name says where it was set.
        if !self.origin.is_empty() && self.origin != self.key {
            write!(f, " ({})", self.origin)?;
        }
        write!(f, ": {}", self.what)
    }
}

/// The configuration cannot be used. Ends the process with [`ConfigError::EXIT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// All that was found, at least one.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// The exit code of a process that cannot be configured.
    pub const EXIT: u8 = 3;

    pub(super) fn one(key: impl Into<String>, origin: impl Into<String>, what: impl Into<String>) -> Self {
        Self { problems: vec![Problem { key: key.into(), origin: origin.into(), what: what.into() }] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [problem] => write!(f, "configuration: {problem}"),
            problems => {
                write!(f, "configuration: {} things are wrong", problems.len())?;
                for problem in problems {
                    write!(f, "\n  {problem}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl From<KeyError> for ConfigError {
    fn from(error: KeyError) -> Self {
        Self::one(error.place, "", error.why)
    }
}
