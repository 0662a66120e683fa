//! The key: where it is, and reading it. Read when it is needed, not when the configuration is:
//! a mounted secret is replaced while we run, and most commands need no key.

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

pub use crate::claude::http::Auth;
use crate::claude::http::{check_key, fingerprint};

/// A key, and how to send it.
#[derive(Debug, Clone)]
pub struct Credential {
    /// How it is sent.
    pub style: Auth,
    /// The key: visible ASCII, so it fits into a header.
    pub secret: SecretString,
}

impl Credential {
    /// Names the key without telling it: the first 8 hex digits of its SHA-256.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.secret)
    }
}

/// A key that is there and cannot be used. Tells nothing of it.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {why}")]
pub struct KeyError {
    /// The variable or the file.
    pub place: String,
    /// What is wrong and what to do.
    pub why: String,
}

/// What to say where a key is needed and there is none.
pub const NO_KEY: &str = "there is no API key: set ANTHROPIC_API_KEY, or put the key into a file and name \
                          that file in api.key_file (PROMPTMILL_API__KEY_FILE)";

/// Where the key is.
#[derive(Debug, Clone)]
pub enum KeyPlace {
    /// Nobody gave one.
    Nowhere,
    /// A variable, read once: a process's environment does not change.
    Variable {
        /// Its name.
        name: String,
        /// Its value.
        secret: SecretString,
    },
    /// A variable that a profile names and that is not set.
    Unset {
        /// Its name.
        name: String,
    },
    /// A file, read whenever the key is asked for.
    File {
        /// Its path.
        path: PathBuf,
        /// Who named it: a variable, a file, or systemd.
        origin: String,
    },
}

/// Where the key is and how it is to be sent.
#[derive(Debug, Clone)]
pub struct KeySource {
    /// Where it is.
    pub place: KeyPlace,
    /// `api.auth`; `None` (`auto`): by what it is, which [`KeySource::read`] decides.
    pub style: Option<Auth>,
}

impl KeySource {
    /// Reads the key; `None`: nobody gave one. Reads a file anew each time.
    pub fn read(&self) -> Result<Option<Credential>, KeyError> {
        let place = self.describe();
        let fail = |why: String| KeyError { place: place.clone(), why };
        let (text, bearer) = match &self.place {
            KeyPlace::Nowhere | KeyPlace::Unset { .. } => return Ok(None),
            KeyPlace::Variable { name, secret } => {
                (secret.expose_secret().to_owned(), name == "ANTHROPIC_AUTH_TOKEN")
            }
            KeyPlace::File { path, .. } => {
                let bytes = std::fs::read(path)
                    .map_err(|error| fail(format!("the key file cannot be read: {error}")))?;
                let text = String::from_utf8(bytes).map_err(|_| fail("the key file is not text".into()))?;
                (text, false)
            }
        };
        let secret = check_key(&text).map_err(|why| fail(format!("the key is not usable: {why}")))?;
        // What the OAuth endpoint hands out is taken as Bearer only, wherever it was put.
        let bearer = bearer || secret.expose_secret().starts_with("sk-ant-oat");
        let style = self.style.unwrap_or(if bearer { Auth::Bearer } else { Auth::XApiKey });
        Ok(Some(Credential { style, secret }))
    }

    /// Returns the file that the key is read from, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match &self.place {
            KeyPlace::File { path, .. } => Some(path),
            KeyPlace::Nowhere | KeyPlace::Unset { .. } | KeyPlace::Variable { .. } => None,
        }
    }

    /// Says where the key is, for people.
    pub fn describe(&self) -> String {
        match &self.place {
            KeyPlace::Nowhere => "nowhere".to_owned(),
            KeyPlace::Variable { name, .. } => name.clone(),
            KeyPlace::Unset { name } => format!("{name}, which is not set"),
            KeyPlace::File { path, origin } => format!("{} ({origin})", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(name: &'static str, text: &str) -> KeySource {
        KeySource { place: KeyPlace::Variable { name: name.to_owned(), secret: text.into() }, style: None }
    }

    #[test]
    fn a_key_goes_as_what_it_is() {
        for (name, text, style) in [
            ("ANTHROPIC_API_KEY", "sk-ant-api03-x", Auth::XApiKey),
            ("ANTHROPIC_AUTH_TOKEN", "token", Auth::Bearer),
            ("ANTHROPIC_API_KEY", "sk-ant-oat01-x\n", Auth::Bearer),
        ] {
            assert_eq!(given(name, text).read().unwrap().unwrap().style, style);
        }
    }

    #[test]
    fn a_key_that_fits_no_header_is_refused_and_not_told() {
        for text in ["canary\nsecond", "canary key", "canäry"] {
            let error = given("ANTHROPIC_API_KEY", text).read().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("can"), "{error:?}");
        }
    }

    #[test]
    fn a_fingerprint_is_the_start_of_the_sha256() {
        let key = given("ANTHROPIC_API_KEY", "abc").read().unwrap().unwrap();
        assert_eq!(key.fingerprint(), "ba7816bf");
    }
}
