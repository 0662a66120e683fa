//! The door: the token, the sessions of those who showed it, and what a wrong one costs.
//!
//! The right token always opens: nobody is shut out by somebody else's guessing. A wrong one is answered
//! later and later, by its address and by all addresses. Sessions are kept in memory alone: who leaves is
//! forgotten, and so is everybody at a restart and where the token's file holds another token.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use askama::Template;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::{get, post};
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
/// What the cookie's name begins with; see [`cookie_name`].
const COOKIE: &str = "promptmill";
/// How long a session lasts.
const LASTS: Duration = Duration::from_hours(12);
/// Sessions that are kept; the oldest one goes for a new one.
const SESSIONS_MAX: usize = 1_000;
/// Failures of one address within [`WINDOW`] after which it is told to wait.
const FAILURES_MAX: u32 = 5;
/// Failures of all addresses within [`WINDOW`] after which every wrong token is told so.
const FAILURES_OF_ALL_MAX: u32 = 60;
const WINDOW: Duration = Duration::from_mins(1);
/// Addresses that are remembered one by one.
const ADDRESSES_MAX: usize = 1_000;
/// What the first wrong token waits for its answer; each further one twice as long.
const PAUSE: Duration = Duration::from_millis(50);
const DOUBLINGS_MAX: u32 = 6;
/// How often the token's file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Lines about wrong tokens within [`WINDOW`].
const LINES_MAX: u32 = 5;

/// How somebody was let in, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// There is no token.
    Open,
    /// By the token itself.
    Token,
    /// By the cookie.
    Session,
    /// Not; it is told after so long.
    Shut(Duration),
    /// Not, and one should wait before the next try; it is told after so long.
    TooMany(Duration),
}

/// A token's hash: two of them are of one length, whatever is offered.
type Hash = [u8; 32];

fn hash(token: &str) -> Hash {
    Sha256::digest(token).into()
}

/// The door.
pub struct Door {
    file: Option<PathBuf>,
    inside: Mutex<Inside>,
}

/// What changes about it.
struct Inside {
    hash: Option<Hash>,
    looked: Instant,
    sessions: HashMap<Hash, Instant>,
    failures: HashMap<IpAddr, Failures>,
    of_all: Failures,
    lines: Failures,
}

/// How many there were, and since when they are counted.
#[derive(Debug, Clone, Copy)]
struct Failures(u32, Instant);

impl Failures {
    fn new() -> Self {
        Self(0, Instant::now())
    }

    /// Counts one more; from the beginning where the last window is over.
    fn add(&mut self) -> u32 {
        if self.1.elapsed() >= WINDOW {
            *self = Self::new();
        }
        self.0 += 1;
        self.0
    }
}

impl Door {
    /// Hangs it. Where the token stands in a file, that is looked at from time to time.
    pub fn new(token: Option<&SecretString>, file: Option<PathBuf>) -> Self {
        let inside = Inside {
            hash: token.map(|token| hash(token.expose_secret())),
            looked: Instant::now(),
            sessions: HashMap::new(),
            failures: HashMap::new(),
            of_all: Failures::new(),
            lines: Failures::new(),
        };
        Self { file, inside: Mutex::new(inside) }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &self.file
            && inside.looked.elapsed() >= LOOK_EVERY
        {
            inside.looked = Instant::now();
            inside.look_at(file);
        }
        inside
    }

    /// Whether a token is asked for.
    pub fn has_lock(&self) -> bool {
        self.inside().hash.is_some()
    }

    /// Says how a request comes in.
    pub fn entry(&self, headers: &HeaderMap, peer: IpAddr) -> Entry {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(offered) = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")) {
            return self.offer(offered.trim(), peer);
        }
        let inside = self.inside();
        if inside.hash.is_none() {
            return Entry::Open;
        }
        match session_of(headers) {
            Some(session) if inside.knows(session) => Entry::Session,
            _ => Entry::Shut(Duration::ZERO),
        }
    }

    /// Looks at a token that somebody offers.
    pub fn offer(&self, offered: &str, peer: IpAddr) -> Entry {
        let mut inside = self.inside();
        let Some(expected) = inside.hash else { return Entry::Open };
        let right = bool::from(hash(offered).ct_eq(&expected));
        let peer = network(peer);
        if right {
            inside.failures.remove(&peer);
            return Entry::Token;
        }
        inside.count(peer)
    }

    /// Begins a session; `None`: there is no lock.
    fn begin(&self, cookie: &str, secure: bool) -> Option<String> {
        let mut inside = self.inside();
        inside.hash?;
        let mut random = [0_u8; 32];
        rustls::crypto::ring::default_provider().secure_random.fill(&mut random).ok()?;
        let mut session = String::with_capacity(64);
        for byte in random {
            // Writing into a String cannot fail.
            write!(session, "{byte:02x}").ok();
        }
        inside.sessions.retain(|_, end| *end > Instant::now());
        if inside.sessions.len() >= SESSIONS_MAX
            && let Some(oldest) = inside.sessions.iter().min_by_key(|(_, end)| **end).map(|(id, _)| *id)
        {
            inside.sessions.remove(&oldest);
        }
        inside.sessions.insert(hash(&session), Instant::now() + LASTS);
        let secure = if secure { "; Secure" } else { "" };
        let lasts = LASTS.as_secs();
        Some(format!("{cookie}={session}; HttpOnly; SameSite=Strict; Path=/; Max-Age={lasts}{secure}"))
    }

    /// Forgets the session of who leaves.
    fn forget(&self, headers: &HeaderMap) {
        if let Some(session) = session_of(headers) {
            self.inside().sessions.remove(&hash(session));
        }
    }
}

impl Inside {
    fn knows(&self, session: &str) -> bool {
        // Looked up by its hash: how long that takes tells nothing of the session.
        self.sessions.get(&hash(session)).is_some_and(|end| *end > Instant::now())
    }

    /// Takes another token from the file; a file that cannot be read changes nothing.
    fn look_at(&mut self, file: &std::path::Path) {
        let Ok(token) = super::read_token(file) else { return };
        let now = hash(token.expose_secret());
        if self.hash != Some(now) {
            self.hash = Some(now);
            self.sessions.clear();
            tracing::warn!("web.token_file holds another token: all sessions of the web page are over");
        }
    }

    /// Returns how a line about a wrong token ends, where there is to be one: who guesses must not fill the log.
    fn tells(&mut self) -> Option<&'static str> {
        match self.lines.add() {
            n if n < LINES_MAX => Some(""),
            LINES_MAX => Some("; further ones of this minute are not told"),
            _ => None,
        }
    }

    /// Counts a wrong token, and says what it costs.
    fn count(&mut self, peer: IpAddr) -> Entry {
        self.failures.retain(|_, failures| failures.1.elapsed() < WINDOW);
        let room = self.failures.len() < ADDRESSES_MAX || self.failures.contains_key(&peer);
        let own = if room { self.failures.entry(peer).or_insert_with(Failures::new).add() } else { 0 };
        let all = self.of_all.add();
        if let Some(more) = self.tells() {
            tracing::warn!(%peer, "a wrong token for the web page, from {peer}{more}");
        }
        let doublings = (own.max(1) - 1).max(all / 10).min(DOUBLINGS_MAX);
        let pause = PAUSE * 2_u32.pow(doublings);
        if own > FAILURES_MAX || all > FAILURES_OF_ALL_MAX {
            Entry::TooMany(pause)
        } else {
            Entry::Shut(pause)
        }
    }
}

/// What is one household: of IPv6, somebody has a whole network to guess from.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        four @ IpAddr::V4(_) => four,
    }
}

/// The cookie's name. Browsers send a cookie to all ports of a host: two pages behind two ports, of which one
/// may be a tunnel's, would else end each other's sessions.
fn cookie_name(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    match host.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok()) {
        Some(port) => format!("{COOKIE}-{port}"),
        None => COOKIE.to_owned(),
    }
}

fn session_of(headers: &HeaderMap) -> Option<&str> {
    let own = cookie_name(headers);
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == own).map(|(_, value)| value)
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
    let cookie = cookie_name(request.headers());
    // Anybody may knock: that must not cost much.
    let fields = Fields::read_up_to(request, LOGIN_MAX).await?;
    let to = own_path(fields.get("to"));
    match web.door.offer(fields.get("token").unwrap_or_default().trim(), peer) {
        Entry::TooMany(pause) => Ok(after(pause, too_many())),
        Entry::Shut(pause) => {
            let mut answer = page(&Login { to, why: "That is not the token." });
            *answer.status_mut() = StatusCode::UNAUTHORIZED;
            Ok(after(pause, answer))
        }
        Entry::Open | Entry::Token | Entry::Session => {
            let mut answer = Redirect::to(to).into_response();
            if let Some(cookie) =
                web.door.begin(&cookie, secure).and_then(|cookie| HeaderValue::from_str(&cookie).ok())
            {
                answer.headers_mut().insert(header::SET_COOKIE, cookie);
            }
            Ok(answer)
        }
    }
}

/// What an answer waits before it is given, by whoever holds no place for it.
#[derive(Debug, Clone, Copy)]
pub struct Pause(pub Duration);

/// Returns an answer that waits for so long.
pub fn after(pause: Duration, mut answer: Response) -> Response {
    answer.extensions_mut().insert(Pause(pause));
    answer
}

async fn leave(State(web): State<Arc<Web>>, request: Request) -> Response {
    web.door.forget(request.headers());
    let mut answer = Redirect::to(PATH).into_response();
    let gone = format!("{}=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0", cookie_name(request.headers()));
    if let Ok(gone) = HeaderValue::from_str(&gone) {
        answer.headers_mut().insert(header::SET_COOKIE, gone);
    }
    answer
}

/// Leads to the door, and back to what was asked for. What was to be changed is not asked for again by
/// being looked at: from there the way leads home.
pub fn show_the_way(method: &Method, uri: &Uri) -> Response {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Redirect::to(PATH).into_response();
    }
    let to = uri.path_and_query().map_or("/", |path| path.as_str());
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("to", to).finish();
    Redirect::to(&format!("{PATH}?{query}")).into_response()
}

/// Says that somebody has guessed too often.
pub fn too_many() -> Response {
    let what = "too many wrong tokens; wait a minute, or bring the right one";
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

    const TOKEN: &str = "correct horse battery";

    fn door() -> Door {
        Door::new(Some(&SecretString::from(TOKEN)), None)
    }

    fn with_cookie(cookie: &str) -> HeaderMap {
        let pair = cookie.split(';').next().expect("a pair");
        HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(pair).expect("it is ASCII"))])
    }

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    #[test]
    fn a_session_opens_until_its_end_or_until_one_leaves() {
        let door = door();
        let (one, two) =
            (door.begin(COOKIE, false).expect("a lock"), door.begin(COOKIE, false).expect("a lock"));
        let (one, two) = (with_cookie(&one), with_cookie(&two));
        assert_eq!((door.entry(&one, PEER), door.entry(&two, PEER)), (Entry::Session, Entry::Session));
        door.forget(&one);
        assert_eq!(
            (door.entry(&one, PEER), door.entry(&two, PEER)),
            (Entry::Shut(Duration::ZERO), Entry::Session)
        );
        for end in door.inside().sessions.values_mut() {
            *end = Instant::now();
        }
        assert_eq!(door.entry(&two, PEER), Entry::Shut(Duration::ZERO));
    }

    #[test]
    fn another_token_in_the_file_ends_all_sessions() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("token");
        std::fs::write(&file, "the first of the tokens".replace(' ', "-")).expect("it can be written");
        let first = super::super::read_token(&file).expect("it is a token");
        let door = Door::new(Some(&first), Some(file.clone()));
        let session = with_cookie(&door.begin(COOKIE, false).expect("a lock"));
        let look = || door.inside().look_at(&file);
        look();
        assert_eq!(door.entry(&session, PEER), Entry::Session);
        std::fs::remove_file(&file).expect("it is there");
        look();
        assert_eq!(door.entry(&session, PEER), Entry::Session);
        std::fs::write(&file, "the-second-of-the-tokens").expect("it can be written");
        look();
        assert_eq!(door.entry(&session, PEER), Entry::Shut(Duration::ZERO));
        assert!(matches!(door.offer("the-first-of-the-tokens", PEER), Entry::Shut(_)));
        assert_eq!(door.offer("the-second-of-the-tokens", PEER), Entry::Token);
    }

    #[test]
    fn wrong_tokens_cost_more_and_more_and_the_right_one_always_opens() {
        let door = door();
        let mut before = Duration::ZERO;
        for _ in 0..FAILURES_MAX {
            let Entry::Shut(pause) = door.offer("wrong", PEER) else { panic!("it is not the token") };
            assert!(pause > before);
            before = pause;
        }
        assert!(matches!(door.offer("wrong", PEER), Entry::TooMany(pause) if pause > before));
        assert_eq!(door.offer(TOKEN, PEER), Entry::Token);
        assert!(matches!(door.offer("wrong", PEER), Entry::Shut(_)));
    }

    #[test]
    fn few_lines_a_minute_tell_of_wrong_tokens() {
        let door = door();
        let told = (0..100).filter_map(|_| door.inside().tells()).count();
        assert_eq!(told, LINES_MAX as usize);
    }

    #[test]
    fn who_guesses_from_many_addresses_is_counted_too() {
        let door = door();
        for n in 0..FAILURES_OF_ALL_MAX {
            let peer = IpAddr::from([10, 0, 1, u8::try_from(n).expect("it is small")]);
            assert!(matches!(door.offer("wrong", peer), Entry::Shut(_)), "{n}");
        }
        assert!(matches!(door.offer("wrong", PEER), Entry::TooMany(_)));
        assert_eq!(door.offer(TOKEN, PEER), Entry::Token);
        let six = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(six("2001:db8::1"), six("2001:db8::ffff:2"));
        assert_ne!(six("2001:db8::1"), six("2001:db8:0:1::1"));
        assert_eq!(six("::ffff:10.0.0.1"), PEER);
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
