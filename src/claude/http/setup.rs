//! What a client is made of: settings, the key, the headers, the roots of trust.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
};
use reqwest::{Client, Url};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::domain::outcome::Failure;

/// How the key travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    /// `x-api-key: KEY`.
    XApiKey,
    /// `authorization: Bearer KEY`.
    Bearer,
}

/// How to reach the API. Its `Debug` leaves out the address: a password may stand in it.
#[derive(Clone)]
pub struct ClaudeSettings {
    /// `http` or `https`; a path in it is kept: calls go to `{base_url}/v1/messages`. A user name and
    /// password in it become a Basic `authorization`, where nothing else sets one.
    pub base_url: String,
    /// How the key travels.
    pub auth: Auth,
    /// The key; wins over `key_file`.
    pub key: Option<SecretString>,
    /// A file that holds the key and nothing else.
    pub key_file: Option<PathBuf>,
    /// `anthropic-version`; empty: not sent.
    pub version: String,
    /// Another `anthropic-version` for some models.
    pub versions: HashMap<String, String>,
    /// More headers, sent with every call; they replace ours of the same name.
    pub headers: Vec<(String, SecretString)>,
    /// Longest time for name, connection and TLS.
    pub connect: Duration,
    /// Longest time from sending to the first event.
    pub first_event: Duration,
    /// Longest time between two bytes after that; pings count.
    pub idle: Duration,
    /// Largest body of a reply, in bytes.
    pub response_max: usize,
    /// Largest event of a stream, in bytes.
    pub event_max: usize,
}

impl fmt::Debug for ClaudeSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClaudeSettings")
            .field("auth", &self.auth)
            .field("key_file", &self.key_file)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// Why no client could be made. No message holds a key or what a header says.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// `base_url` cannot be called.
    #[error("api.base_url is not an http or https address: {0}")]
    BaseUrl(String),
    /// The key has characters that no key has.
    #[error("the API key is not usable: {0}")]
    Key(&'static str),
    /// The key file cannot be read.
    #[error("the key file {} cannot be read", path.display())]
    KeyFile {
        /// `api.key_file`.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The key file holds something else.
    #[error("the key file {} is not usable: {why}", path.display())]
    KeyInFile {
        /// `api.key_file`.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A header cannot be sent.
    #[error("the header {0:?} cannot be sent: {1}")]
    Header(String, &'static str),
    /// An `anthropic-version` cannot be sent.
    #[error("the API version {0:?} is not a header value")]
    Version(String),
    /// The HTTP client cannot be built.
    #[error("the HTTP client cannot be built")]
    Client(#[source] reqwest::Error),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// The key, and all headers of a call made from it.
#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) key: Option<SecretString>,
    /// Names the key: asked for at every call, so hashed once.
    pub(super) fingerprint: String,
    /// What must not be seen in a message: the key, and what the configured headers say.
    secrets: Vec<SecretString>,
    /// Every header of a call but a model's own version.
    pub(super) headers: HeaderMap,
}

impl Credentials {
    /// Makes the headers of every call.
    pub(super) fn new(
        settings: &ClaudeSettings,
        key: Option<SecretString>,
        basic: Option<&HeaderValue>,
    ) -> Result<Self, SetupError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream, application/json"));
        // A compressed stream would be unpacked before its size is known.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(version) = version(&settings.version)? {
            headers.insert("anthropic-version", version);
        }
        if let Some(basic) = basic {
            headers.insert(AUTHORIZATION, basic.clone());
        }
        if let Some(key) = &key {
            let (name, value) = match settings.auth {
                Auth::XApiKey => (HeaderName::from_static("x-api-key"), key.expose_secret().to_owned()),
                Auth::Bearer => (AUTHORIZATION, format!("Bearer {}", key.expose_secret())),
            };
            let refused = SetupError::Key("it is not a header value");
            headers.insert(name, secret_value(&value).ok_or(refused)?);
        }
        let mut own: Vec<HeaderName> = Vec::new();
        for (name, value) in &settings.headers {
            let refused = |why| SetupError::Header(name.clone(), why);
            let name: HeaderName = name.trim().parse().map_err(|_| refused("it is not a header name"))?;
            if matches!(name.as_str(), "content-length" | "transfer-encoding" | "connection" | "expect") {
                return Err(refused("it belongs to the connection"));
            }
            let value = secret_value(value.expose_secret().trim())
                .ok_or_else(|| refused("its value has characters that a header must not have"))?;
            // The first of a name replaces ours, the next ones stand beside it.
            if own.contains(&name) {
                headers.append(name, value);
            } else {
                own.push(name.clone());
                headers.insert(name, value);
            }
        }
        let secrets = settings.headers.iter().map(|(_, value)| value.clone()).chain(key.clone()).collect();
        let fingerprint = key.as_ref().map_or_else(|| "none".to_owned(), fingerprint);
        Ok(Self { key, fingerprint, secrets, headers })
    }

    /// Takes the secrets out of a failure's message: some servers repeat the key they refuse, and a
    /// page may repeat the whole request.
    pub(super) fn redact(&self, failure: Failure) -> Failure {
        match failure {
            Failure::Api(mut error) => {
                error.message = self.hide(error.message);
                Failure::Api(error)
            }
            Failure::Unsent(message) => Failure::Unsent(self.hide(message)),
            Failure::Lost(lost, message) => Failure::Lost(lost, self.hide(message)),
            Failure::Unreadable(message) => Failure::Unreadable(self.hide(message)),
            Failure::TooLarge(_) | Failure::Unended | Failure::Stopped => failure,
        }
    }

    fn hide(&self, mut message: String) -> String {
        /// A shorter value is no secret, and would tear holes into any sentence.
        const SECRET_MIN: usize = 8;
        for secret in &self.secrets {
            let secret = secret.expose_secret().trim();
            if secret.len() >= SECRET_MIN && message.contains(secret) {
                message = message.replace(secret, "***");
            }
        }
        message
    }
}

/// Returns a version as a header's value; `None` for an empty one.
pub(super) fn version(version: &str) -> Result<Option<HeaderValue>, SetupError> {
    if version.is_empty() {
        return Ok(None);
    }
    version.parse().map(Some).map_err(|_| SetupError::Version(version.to_owned()))
}

/// Reads the key of the settings: the one given, else the file's.
pub(super) fn read_key(settings: &ClaudeSettings) -> Result<Option<SecretString>, SetupError> {
    match (&settings.key, &settings.key_file) {
        (Some(key), _) => check_key(key.expose_secret()).map(Some).map_err(SetupError::Key),
        (None, Some(path)) => read_key_file(path).map(Some),
        (None, None) => Ok(None),
    }
}

fn read_key_file(path: &Path) -> Result<SecretString, SetupError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SetupError::KeyFile { path: path.to_owned(), source })?;
    check_key(&text).map_err(|why| SetupError::KeyInFile { path: path.to_owned(), why })
}

/// Names a key without telling it: the first 8 hex digits of its SHA-256.
pub fn fingerprint(key: &SecretString) -> String {
    let digest = Sha256::digest(key.expose_secret().as_bytes());
    format!("{:02x}{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2], digest[3])
}

/// Returns the key in a text that holds nothing else but white space around it. The error says what
/// is wrong, and nothing of the key.
pub fn check_key(text: &str) -> Result<SecretString, &'static str> {
    let key = text.trim();
    if key.is_empty() {
        return Err("it is empty");
    }
    if key.chars().any(char::is_whitespace) {
        return Err("it holds white space; it must be one word on one line");
    }
    if !key.chars().all(|c| c.is_ascii_graphic()) {
        return Err("it holds characters that no header may have");
    }
    Ok(SecretString::from(key.to_owned()))
}

fn secret_value(value: &str) -> Option<HeaderValue> {
    let mut value: HeaderValue = value.parse().ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Returns the base address without a trailing slash, and the Basic authorization that stood in it.
pub(super) fn read_base(base: &str, client: &Client) -> Result<(Url, Option<HeaderValue>), SetupError> {
    // The address may hold a password: no message quotes it.
    let refused = |why: &str| SetupError::BaseUrl(why.to_owned());
    let url: Url = base.trim().parse().map_err(|_| refused("it cannot be read"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(refused("it must begin with http:// or https:// and name a host"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refused("it must not hold a question mark or a hash"));
    }
    // reqwest takes user name and password out of an address when a request is built.
    let request = client.get(url).build().map_err(SetupError::Client)?;
    let basic = request.headers().get(AUTHORIZATION).cloned();
    let mut url = request.url().clone();
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok((url, basic))
}

/// Returns an address below the base, whose path is kept.
pub(super) fn join(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    url
}

/// Builds the HTTP client.
///
/// HTTP/1.1, as the official SDKs speak it: a connection a call. Thousands of streams over one HTTP/2
/// connection would queue behind the server's limit of concurrent streams, and break all at once.
/// No retries and no redirects of its own: a call that may have been paid for is never made again
/// behind our back, and the key stays with its host.
pub(super) fn build_client(settings: &ClaudeSettings) -> Result<Client, SetupError> {
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls()?)
        .user_agent(concat!("promptmill/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(settings.connect)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .http1_only()
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_mins(1))
        .tcp_keepalive_interval(Duration::from_secs(30))
        .tcp_keepalive_retries(4)
        .pool_max_idle_per_host(usize::MAX)
        // Shorter than what servers keep: a connection closed under a request costs a failure.
        .pool_idle_timeout(Duration::from_secs(45));
    if is_local(&settings.base_url) {
        builder = builder.no_proxy();
    }
    builder.build().map_err(SetupError::Client)
}

/// Whether the address is this machine's: no proxy stands in between then.
fn is_local(base: &str) -> bool {
    let Ok(url) = base.trim().parse::<Url>() else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// TLS with the roots that were built in and those of the system: a container without a CA store
/// still reaches the API, and a company's own root is still trusted.
pub(crate) fn tls() -> Result<rustls::ClientConfig, SetupError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(error = %error, "a certificate of the system's store was not read");
    }
    roots.add_parsable_certificates(system.certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(SetupError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}
