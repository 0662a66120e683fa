//! How a command ends: the exit codes, and errors that bring their own.

use std::io;
use std::process::ExitCode;

use crate::store::StoreError;

/// The exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is well.
    Good = 0,
    /// It failed.
    Failure = 1,
    /// The command line says something impossible.
    Usage = 2,
    /// The configuration does.
    Config = 3,
    /// The database could not be reached, or does not let us in.
    Unreachable = 4,
    /// The schema is absent, older, newer or not ours.
    Schema = 5,
    /// The API refuses the credentials, or there are none.
    Credentials = 6,
    /// What was waited for ended, and not all of it is complete.
    NotComplete = 7,
    /// A drain left jobs behind a blocked gate.
    LeftBehind = 8,
}

impl Exit {
    const ALL: [Self; 9] = [
        Self::Good,
        Self::Failure,
        Self::Usage,
        Self::Config,
        Self::Unreachable,
        Self::Schema,
        Self::Credentials,
        Self::NotComplete,
        Self::LeftBehind,
    ];

    /// Returns the exit of a number; one that is none of ours is a failure.
    pub fn of_code(code: u8) -> Self {
        Self::ALL.into_iter().find(|exit| *exit as u8 == code).unwrap_or(Self::Failure)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that knows its exit code and says all there is to say.
#[derive(Debug, thiserror::Error)]
#[error("{sentence}")]
pub struct Stop {
    /// The code.
    pub exit: Exit,
    /// What happened and what to do, in one sentence.
    pub sentence: String,
}

impl Stop {
    /// Returns a plain failure.
    pub fn failure(sentence: impl Into<String>) -> anyhow::Error {
        Self { exit: Exit::Failure, sentence: sentence.into() }.into()
    }

    /// Returns a refusal of what the command line says.
    pub fn usage(sentence: impl Into<String>) -> anyhow::Error {
        Self { exit: Exit::Usage, sentence: sentence.into() }.into()
    }
}

/// Returns the exit code of an error: the innermost that brings one decides.
///
/// `None`: the reader of our output went away (`| head`), which is no error of ours.
pub fn of(error: &anyhow::Error) -> Option<Exit> {
    for cause in error.chain() {
        if let Some(stop) = cause.downcast_ref::<Stop>() {
            return Some(stop.exit);
        }
        match cause.downcast_ref::<StoreError>() {
            Some(StoreError::Schema(_)) => return Some(Exit::Schema),
            Some(StoreError::Unavailable(_) | StoreError::NoEntry(_)) => return Some(Exit::Unreachable),
            _ => {}
        }
        if let Some(error) = cause.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            return None;
        }
    }
    Some(Exit::Failure)
}

/// Returns an error and its causes as one sentence, what a cause repeats left out.
pub fn sentence(error: &anyhow::Error) -> String {
    let mut sentence = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if sentence.ends_with(&cause) {
            continue;
        }
        if !sentence.is_empty() {
            sentence.push_str(": ");
        }
        sentence.push_str(&cause);
    }
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_exit_code_under_context() {
        let error = Stop::usage("say which").context("failed to cancel");
        assert_eq!(of(&error), Some(Exit::Usage));
        let error = anyhow::Error::from(StoreError::Schema("older".into())).context("failed to open");
        assert_eq!(of(&error), Some(Exit::Schema));
        let error = anyhow::Error::from(StoreError::Unavailable("away".into())).context("failed to look");
        assert_eq!(of(&error), Some(Exit::Unreachable));
        assert_eq!(of(&anyhow::anyhow!("anything")), Some(Exit::Failure));
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let error =
            anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("failed to print");
        assert_eq!(of(&error), None);
    }
}
