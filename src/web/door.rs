//! The door: the token, the cookie of those who showed it, and a pause for those who guess.
//!
//! The cookie is an end and a signature of it by a key made of the token: it outlives a restart, and a
//! new token shuts everybody out.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use askama::Template;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::{get, post};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::Web;
use super::fault::Fault;
use super::fields::Fields;
use super::words::page;

/// Where the token is asked for.
pub const PATH: &str = "/login";
/// Where one leaves.
pub const OUT: &str = "/logout";
const COOKIE: &str = "promptmill";
/// Seconds that a cookie lasts.
const LASTS: i64 = 12 * 60 * 60;
/// Failures of one address within [`WINDOW`] after which it has to wait.
const FAILURES_MAX: u32 = 5;
const WINDOW: Duration = Duration::from_mins(1);
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 1_000;

/// How somebody was let in, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// There is no token.
    Open,
    /// By the token itself.
    Token,
    /// By the cookie.
    Session,
    /// Not.
    Shut,
    /// Not, and not for a while.
    TooMany,
}

/// The door.
pub struct Door {
    /// The token's hash: two of them are of one length, whatever is offered.
    hash: Option<[u8; 32]>,
    failures: Mutex<HashMap<IpAddr, (u32, Instant)>>,
}

impl Door {
    /// Hangs it.
    pub fn new(token: Option<&SecretString>) -> Self {
        let hash = token.map(|token| Sha256::digest(token.expose_secret()).into());
        Self { hash, failures: Mutex::default() }
    }

    /// Whether a token is asked for.
    pub fn has_lock(&self) -> bool {
        self.hash.is_some()
    }

    /// Says how a request comes in.
    pub fn entry(&self, headers: &HeaderMap, peer: IpAddr) -> Entry {
        if self.hash.is_none() {
            return Entry::Open;
        }
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(offered) = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")) {
            return self.offer(offered.trim(), peer);
        }
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs =
            cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let is_ours = pairs.any(|(name, value)| name == COOKIE && self.is_signed(value));
        if is_ours { Entry::Session } else { Entry::Shut }
    }

    /// Looks at a token that somebody offers.
    pub fn offer(&self, offered: &str, peer: IpAddr) -> Entry {
        let Some(hash) = &self.hash else { return Entry::Open };
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|_, (_, at)| at.elapsed() < WINDOW);
        if failures.get(&peer).is_some_and(|(many, _)| *many >= FAILURES_MAX)
            || failures.len() >= ADDRESSES_MAX
        {
            return Entry::TooMany;
        }
        let offered: [u8; 32] = Sha256::digest(offered).into();
        if bool::from(offered.ct_eq(hash)) {
            failures.remove(&peer);
            return Entry::Token;
        }
        let (many, at) = failures.entry(peer).or_insert((0, Instant::now()));
        (*many, *at) = (*many + 1, Instant::now());
        Entry::Shut
    }

    fn signature(&self, end: i64) -> Option<String> {
        // The message has one length: a plain hash behind the key cannot be lengthened into another end.
        let inner =
            Sha256::new().chain_update(self.hash?).chain_update(b"session").chain_update(end.to_be_bytes());
        let outer = Sha256::new().chain_update(self.hash?).chain_update(inner.finalize()).finalize();
        let mut text = String::with_capacity(64);
        for byte in outer {
            // Writing into a String cannot fail.
            write!(text, "{byte:02x}").ok();
        }
        Some(text)
    }

    fn is_signed(&self, cookie: &str) -> bool {
        let Some((end, signature)) = cookie.split_once('.') else { return false };
        let Ok(end) = end.parse::<i64>() else { return false };
        let Some(expected) = self.signature(end) else { return false };
        bool::from(expected.as_bytes().ct_eq(signature.as_bytes())) && end > now()
    }

    fn cookie(&self, secure: bool) -> Option<String> {
        let end = now() + LASTS;
        let signature = self.signature(end)?;
        let secure = if secure { "; Secure" } else { "" };
        Some(format!(
            "{COOKIE}={end}.{signature}; HttpOnly; SameSite=Strict; Path=/; Max-Age={LASTS}{secure}"
        ))
    }
}

/// Seconds since 1970 by this machine's clock: a session belongs to no table.
fn now() -> i64 {
    Timestamp::now().as_second()
}

#[derive(Template)]
#[template(path = "login.html")]
struct Login<'a> {
    to: &'a str,
    why: &'a str,
}

/// The ways to the door.
pub fn routes() -> Router<Arc<Web>> {
    Router::new().route(PATH, get(ask).post(enter)).route(OUT, post(leave))
}

async fn ask(State(web): State<Arc<Web>>, fields: Fields) -> Response {
    if !web.door.has_lock() {
        return Redirect::to("/").into_response();
    }
    page(&Login { to: own_path(fields.get("to")), why: "" })
}

/// Longest body of a login, in bytes.
const LOGIN_MAX: usize = 4096;

async fn enter(State(web): State<Arc<Web>>, request: Request) -> Result<Response, Fault> {
    let peer = request.extensions().get::<axum::extract::ConnectInfo<std::net::SocketAddr>>();
    let peer = peer.map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0.ip());
    // Only a browser that speaks TLS says so of its own page.
    let origin = request.headers().get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    let forwarded = request.headers().get("x-forwarded-proto").and_then(|proto| proto.to_str().ok());
    let secure = origin.is_some_and(|origin| origin.starts_with("https:")) || forwarded == Some("https");
    // Anybody may knock: that must not cost much.
    let fields = Fields::read_up_to(request, LOGIN_MAX).await?;
    let to = own_path(fields.get("to"));
    match web.door.offer(fields.get("token").unwrap_or_default().trim(), peer) {
        Entry::TooMany => Ok(too_many()),
        Entry::Shut | Entry::Session => {
            let mut answer = page(&Login { to, why: "That is not the token." });
            *answer.status_mut() = StatusCode::UNAUTHORIZED;
            Ok(answer)
        }
        Entry::Open | Entry::Token => {
            let mut answer = Redirect::to(to).into_response();
            if let Some(cookie) =
                web.door.cookie(secure).and_then(|cookie| HeaderValue::from_str(&cookie).ok())
            {
                answer.headers_mut().insert(header::SET_COOKIE, cookie);
            }
            Ok(answer)
        }
    }
}

async fn leave() -> Response {
    let mut answer = Redirect::to(PATH).into_response();
    let gone = "promptmill=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0";
    answer.headers_mut().insert(header::SET_COOKIE, HeaderValue::from_static(gone));
    answer
}

/// Leads to the door, and back to what was asked for.
pub fn show_the_way(uri: &Uri) -> Response {
    let to = uri.path_and_query().map_or("/", |path| path.as_str());
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("to", to).finish();
    Redirect::to(&format!("{PATH}?{query}")).into_response()
}

/// Says that somebody has guessed too often.
pub fn too_many() -> Response {
    let what = "too many wrong tokens from this address; wait a minute";
    let mut answer = Fault::new(StatusCode::TOO_MANY_REQUESTS, "too_many_failures", what).into_response();
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("60"));
    answer
}

/// Returns a path of ours; what leads elsewhere leads home.
pub fn own_path(to: Option<&str>) -> &str {
    let is_ours = |to: &&str| {
        to.starts_with('/')
            && !to.starts_with("//")
            && !to.contains('\\')
            && !to.contains(char::is_control)
            && !to.contains("://")
    };
    to.filter(is_ours).unwrap_or("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door() -> Door {
        Door::new(Some(&SecretString::from("correct horse battery")))
    }

    #[test]
    fn a_cookie_opens_until_its_end_and_only_for_its_token() {
        let door = door();
        let cookie = door.cookie(false).expect("there is a token");
        let value = cookie.split(';').next().and_then(|pair| pair.split_once('=')).expect("a pair").1;
        assert!(door.is_signed(value));
        assert!(!Door::new(Some(&SecretString::from("another token of 16"))).is_signed(value));
        let (end, signature) = value.split_once('.').expect("an end and a signature");
        let later: i64 = end.parse::<i64>().expect("seconds") + 1;
        assert!(!door.is_signed(&format!("{later}.{signature}")));
        let past = now() - 1;
        let signed = door.signature(past).expect("there is a token");
        assert!(!door.is_signed(&format!("{past}.{signed}")));
    }

    #[test]
    fn who_guesses_has_to_wait_even_with_the_right_token() {
        let (door, peer) = (door(), IpAddr::from([10, 0, 0, 1]));
        for _ in 0..FAILURES_MAX {
            assert_eq!(door.offer("wrong", peer), Entry::Shut);
        }
        assert_eq!(door.offer("correct horse battery", peer), Entry::TooMany);
        assert_eq!(door.offer("correct horse battery", IpAddr::from([10, 0, 0, 2])), Entry::Token);
    }

    #[test]
    fn one_is_led_back_to_pages_of_ours_alone() {
        for (to, led) in [
            ("/jobs?state=done", "/jobs?state=done"),
            ("//evil.example", "/"),
            ("https://evil.example", "/"),
            ("/\\evil.example", "/"),
            ("/\t/evil.example", "/"),
            ("javascript:alert(1)", "/"),
            ("", "/"),
        ] {
            assert_eq!(own_path(Some(to)), led);
        }
    }
}
