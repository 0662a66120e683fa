//! Where the database is. Holds a password, so it tells itself only to [`DatabaseUrl::expose`].

use std::fmt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use super::read::MASK;

/// A database: a file, or a Postgres URL. `Display` and `Debug` mask the password.
#[derive(Clone)]
pub enum DatabaseUrl {
    /// A file, relative to the working folder.
    Sqlite(PathBuf),
    /// A URL as libpq knows it.
    Postgres(SecretString),
}

/// Parameters of a Postgres URL that are understood; others would be dropped without a word.
const PARAMETERS: [&str; 17] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
];

impl DatabaseUrl {
    /// Reads a URL. The error says what to do and quotes nothing that could be a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(file) = text.strip_prefix("sqlite:") {
            return sqlite(file.strip_prefix("//").unwrap_or(file));
        }
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err("must begin with sqlite:, postgres:// or postgresql://".into());
        }
        let url = reqwest::Url::parse(text).map_err(|error| {
            format!("is no URL ({error}): special characters in its password are written as %XX")
        })?;
        for (name, _) in url.query_pairs() {
            if !PARAMETERS.contains(&&*name) && name != "options" && !name.starts_with("options[") {
                let plain = name.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '-');
                // Not plain: perhaps the rest of a password with a question mark in it.
                let which = if plain { format!("the parameter {name}") } else { "a parameter".to_owned() };
                return Err(format!("has {which} that is not known: take it out of the URL"));
            }
        }
        Ok(Self::Postgres(text.into()))
    }

    /// Returns the whole URL, password and all, for connecting and nothing else.
    pub fn expose(&self) -> String {
        match self {
            Self::Sqlite(file) => format!("sqlite:{}", file.display()),
            Self::Postgres(url) => url.expose_secret().to_owned(),
        }
    }

    /// Returns the file, where the database is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(file) => Some(file),
            Self::Postgres(_) => None,
        }
    }

    /// Says whether a password stands in it.
    pub fn has_password(&self) -> bool {
        self.to_string() != self.expose()
    }
}

fn sqlite(file: &str) -> Result<DatabaseUrl, String> {
    if file.is_empty() {
        return Err("names no file: write sqlite:FILE".into());
    }
    if file.contains(":memory:") {
        return Err("must name a file: other programs cannot write into this one's memory".into());
    }
    if file.contains('?') {
        return Err("takes a file name only: leave out what follows the question mark".into());
    }
    Ok(DatabaseUrl::Sqlite(PathBuf::from(file)))
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(file) => write!(f, "sqlite:{}", file.display()),
            Self::Postgres(url) => f.write_str(&mask(url.expose_secret())),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Masks a URL's password, and its `password` parameter. Rather masks too much: whatever stands
/// between the first colon after the scheme and the last `@` of all.
fn mask(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = url.split_at(start);
    let rest = match rest.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((name, _)) => format!("{name}:{MASK}@{host}"),
            None => rest.to_owned(),
        },
        None => rest.to_owned(),
    };
    let Some((place, query)) = rest.split_once('?') else { return format!("{scheme}{rest}") };
    let pairs: Vec<String> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, _)) if is_secret(name) => format!("{name}={MASK}"),
            _ => pair.to_owned(),
        })
        .collect();
    format!("{scheme}{place}?{}", pairs.join("&"))
}

/// `options` may hold anything, and a name with escapes in it is read after they are undone.
fn is_secret(name: &str) -> bool {
    name.contains('%') || name.to_lowercase().contains("pass") || name.starts_with("options")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_masked_wherever_it_stands() {
        for (url, masked) in [
            ("postgres://u:hunter2@h:5432/db", "postgres://u:***@h:5432/db"),
            ("postgresql://u:p%40hunter2@h/db", "postgresql://u:***@h/db"),
            ("postgres://h/db?user=u&password=hunter2", "postgres://h/db?user=u&password=***"),
            ("postgres://h/db?p%61ssword=hunter2", "postgres://h/db?p%61ssword=***"),
            ("postgres://u:hunter2@h/db?application_name=a@b", "postgres://u:***@b"),
            ("postgres://u@h/db", "postgres://u@h/db"),
            ("postgres:///db?host=/run/postgresql", "postgres:///db?host=/run/postgresql"),
        ] {
            let parsed = DatabaseUrl::parse(url).unwrap();
            assert_eq!(parsed.to_string(), masked);
            assert_eq!(format!("{parsed:?}"), masked);
            assert_eq!(parsed.expose(), url);
            assert_eq!(parsed.has_password(), url.contains("hunter2"), "{url}");
        }
    }

    #[test]
    fn a_refused_url_is_not_quoted() {
        for url in [
            "hunter2",
            "mysql://u:hunter2@h/db",
            "postgres://u:hun/ter2@h:x/db",
            "postgres://u:12?hunter2@h/db",
            "postgres://h/db?pasword=hunter2",
            "sqlite:f?hunter2",
        ] {
            let sentence = DatabaseUrl::parse(url).unwrap_err();
            assert!(!sentence.contains("hunter2") && !sentence.contains("ter2"), "{sentence}");
        }
    }

    #[test]
    fn a_sqlite_file_is_taken_as_written() {
        for (url, file) in [
            ("sqlite:a.db", "a.db"),
            ("sqlite://a.db", "a.db"),
            ("sqlite:///var/lib/a.db", "/var/lib/a.db"),
            ("sqlite:/var/lib/a b%.db", "/var/lib/a b%.db"),
        ] {
            assert_eq!(DatabaseUrl::parse(url).unwrap().file(), Some(Path::new(file)));
        }
        for url in ["sqlite:", "sqlite://", "sqlite::memory:", "sqlite:a.db?mode=ro"] {
            assert!(DatabaseUrl::parse(url).is_err(), "{url}");
        }
    }
}
