//! The server: which path is what, keys, headers, and acting out the steps of an answer.
//!
//! Paths are matched by their end, so that a base URL with a path prefix works.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use axum::serve::ListenerExt as _;
use bytes::Bytes;
use futures_util::stream;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Options;
use super::answer::{self, Talk};
use super::ask::{Ask, Purpose, Version};
use super::cache::Cache;
use super::marker::{self, FaultKind, Garbage, RETRY_AFTER_DATE};
use super::meter::{Headers, Limits, Meter};
use super::models;
use super::problem::{self, Problem};
use super::render::{self, Rendering, Step, Tempo};
use super::tally::{Said, Seen, Tally};

/// Largest body of a request: the API's own limit.
const BODY_MAX: usize = 32 * 1024 * 1024;
/// How much of a prompt the list of calls shows, in bytes.
const PROMPT_SHOWN: usize = 80;
/// The key that is refused.
const BAD_KEY: &str = "bad-key";

/// What all connections share.
#[derive(Debug)]
pub struct Shared {
    pub(super) tally: Tally,
    meter: Meter,
    cache: Cache,
    options: Options,
    stop: CancellationToken,
    /// Tells the ids of one start from those of the next.
    run: u64,
    next: AtomicU64,
    keys_refused: AtomicBool,
    failing: Mutex<Option<Problem>>,
}

impl Shared {
    pub(super) fn new(options: Options, stop: CancellationToken) -> Self {
        let limits =
            Limits { requests: options.rpm, input: options.itpm, output: options.otpm, burst: options.burst };
        Self {
            tally: Tally::new(options.calls_kept),
            meter: Meter::new(limits),
            cache: Cache::default(),
            options,
            stop,
            run: fastrand::u64(..) & 0xff_ffff_ffff,
            next: AtomicU64::new(1),
            keys_refused: AtomicBool::new(false),
            failing: Mutex::default(),
        }
    }

    pub(super) fn reset(&self) {
        self.tally.reset();
        self.meter.reset();
        self.cache.reset();
        self.keys_refused.store(false, Ordering::Relaxed);
        *self.failing() = None;
    }

    fn failing(&self) -> MutexGuard<'_, Option<Problem>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn fail(&self, error: Option<&str>) -> Result<(), String> {
        let problem = error.map(marker::problem).transpose()?;
        *self.failing() = problem;
        Ok(())
    }

    pub(super) fn refuse_keys(&self, refuse: bool) {
        self.keys_refused.store(refuse, Ordering::Relaxed);
    }
}

/// Serves until the stop; what waits or hangs is let go then.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let app = Router::new().fallback(handle).with_state(shared);
    // Small writes must not wait for acknowledgements of the ones before.
    let listener = listener.tap_io(|socket| drop(socket.set_nodelay(true)));
    let served = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "the stand-in stopped: {error}");
    }
}

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint<'a> {
    Messages,
    CountTokens,
    Models,
    Model(&'a str),
    /// The stand-in's own, for which no key is needed.
    Own(&'a str),
}

impl<'a> Endpoint<'a> {
    fn find(method: &Method, path: &'a str) -> Option<Self> {
        let path = path.trim_end_matches('/');
        if let Some((_, own)) = path.split_once("/stand-in/") {
            let get = own == "calls";
            return (*method == if get { Method::GET } else { Method::POST }).then_some(Self::Own(own));
        }
        match *method {
            Method::POST if path.ends_with("/v1/messages") => Some(Self::Messages),
            Method::POST if path.ends_with("/v1/messages/count_tokens") => Some(Self::CountTokens),
            Method::GET if path.ends_with("/v1/models") => Some(Self::Models),
            Method::GET => path.rsplit_once("/v1/models/").map(|split| Self::Model(split.1)),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Messages => "/v1/messages",
            Self::CountTokens => "/v1/messages/count_tokens",
            Self::Models => "/v1/models",
            Self::Model(_) => "/v1/models/{id}",
            Self::Own(_) => "/stand-in",
        }
    }
}

/// One call being answered.
struct Call {
    shared: Arc<Shared>,
    request_id: String,
    number: u64,
    limits: Headers,
}

async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Infallible> {
    let number = shared.next.fetch_add(1, Ordering::Relaxed);
    let request_id = format!("req_{:010x}{number:010x}", shared.run);
    let call = Call { shared, request_id, number, limits: Headers::new() };
    Ok(call.route(request).await)
}

impl Call {
    async fn route(self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let tally = &self.shared.tally;
        let Some(endpoint) = Endpoint::find(&parts.method, parts.uri.path()) else {
            tally.path("other");
            return self.refuse(&Problem::not_found("Not found"));
        };
        tally.path(endpoint.name());
        if let Endpoint::Own(path) = endpoint {
            return self.own(path, body).await;
        }
        if let Err(problem) = check_key(&parts.headers, self.shared.keys_refused.load(Ordering::Relaxed)) {
            return match endpoint {
                Endpoint::Messages => self.refuse_message(&problem, Seen::default()),
                _ => self.refuse(&problem),
            };
        }
        let options = &self.shared.options;
        let purpose = match endpoint {
            Endpoint::Models | Endpoint::Model(_) if !options.models => {
                return self.refuse(&Problem::not_found("Not found"));
            }
            Endpoint::CountTokens if !options.count_tokens => {
                return self.refuse(&Problem::not_found("Not found"));
            }
            Endpoint::Models => {
                return match models::Query::read(parts.uri.query().unwrap_or("")) {
                    Ok(query) => self.json(StatusCode::OK, query.page(options.models_a_page).to_string()),
                    Err(problem) => self.refuse(&problem),
                };
            }
            Endpoint::Model(name) => {
                return match models::find(name) {
                    Some(model) => self.json(StatusCode::OK, models::to_json(model).to_string()),
                    None => self.refuse(&Problem::not_found(format!("model: {name}"))),
                };
            }
            Endpoint::CountTokens => Purpose::Count,
            Endpoint::Messages | Endpoint::Own(_) => Purpose::Message,
        };
        let version = Version::read(header_text(&parts.headers, "anthropic-version"));
        let body = to_bytes(body, BODY_MAX).await.map_err(|_| Problem::of_status(413));
        match (version.and_then(|version| Ask::read(&body?, version, purpose)), purpose) {
            (Ok(mut ask), Purpose::Message) => {
                let account = account_of(&parts.headers);
                if let Some(marked) = &ask.marked {
                    ask.cached = self.shared.cache.look_up(account, marked, Instant::now());
                }
                self.message(&ask, account).await
            }
            (Err(problem), Purpose::Message) => self.refuse_message(&problem, Seen::default()),
            (Ok(ask), Purpose::Count) => {
                self.json(StatusCode::OK, format!(r#"{{"input_tokens":{}}}"#, ask.input_tokens))
            }
            (Err(problem), Purpose::Count) => self.refuse(&problem),
        }
    }

    /// The stand-in's own paths, for which no key is needed.
    async fn own(self, path: &str, body: Body) -> Response {
        match path {
            "calls" => {
                let counts = serde_json::to_string_pretty(&self.shared.tally.counts());
                self.json(StatusCode::OK, counts.expect("counts are plain data") + "\n")
            }
            "reset" => {
                self.shared.reset();
                self.json(StatusCode::OK, "{\"reset\":true}\n".to_owned())
            }
            "keys/refuse" | "keys/accept" => {
                self.shared.refuse_keys(path == "keys/refuse");
                self.json(StatusCode::OK, format!("{{\"refused\":{}}}\n", path == "keys/refuse"))
            }
            "fail" => {
                let error = to_bytes(body, BODY_MAX).await.unwrap_or_default();
                let error = String::from_utf8_lossy(&error);
                let error = Some(error.trim()).filter(|error| !error.is_empty());
                match self.shared.fail(error) {
                    Ok(()) => {
                        let failing = serde_json::json!({ "failing": error });
                        self.json(StatusCode::OK, format!("{failing}\n"))
                    }
                    Err(why) => self.refuse(&Problem::invalid(why)),
                }
            }
            "answer" => {
                let prompt = to_bytes(body, BODY_MAX).await.unwrap_or_default();
                match answer::whole(&String::from_utf8_lossy(&prompt)) {
                    Ok(text) => self.respond(StatusCode::OK, "text/plain; charset=utf-8", text.into()),
                    Err(why) => self.refuse(&Problem::invalid(why)),
                }
            }
            _ => self.refuse(&Problem::not_found("Not found")),
        }
    }

    async fn message(mut self, ask: &Ask, account: u64) -> Response {
        let shared = Arc::clone(&self.shared);
        let mut seen = Seen {
            model: Some(ask.model.id.to_owned()),
            max_tokens: ask.max_tokens,
            messages: ask.turns.len(),
            cache_points: ask.marked.as_ref().map_or(0, |marked| marked.points.len()),
            ..Seen::default()
        };
        let mut talk = match Talk::read(&ask.turns, ask.schema.as_ref()) {
            Ok(talk) => talk,
            Err(why) => return self.refuse_message(&Problem::invalid(why), seen),
        };
        if let Some(name) = talk.undeclared(&ask.tools) {
            let why = format!("[[tool {name}]]: the request declares no tool of this name");
            return self.refuse_message(&Problem::invalid(why), seen);
        }
        talk.prompt[..talk.prompt.floor_char_boundary(PROMPT_SHOWN)].clone_into(&mut seen.prompt);
        seen.continued = talk.continues();
        seen.lost_place = talk.lost;
        let failing = shared.failing().clone();
        if let Some(problem) = failing {
            return self.refuse_message(&problem, seen);
        }
        // What is read from the cache does not count.
        let counted = ask.input_tokens - talk.usage(ask).cache_read;
        let (admitted, limits) = shared.meter.admit(ask.model.line, counted, Instant::now());
        let said = shared.options.limits_said;
        self.limits = if said { limits } else { Headers::new() };
        if let Err(mut problem) = admitted {
            problem.headers.retain(|_| said);
            return self.refuse_message(&problem, seen);
        }
        let fault = shared.tally.fault(talk.prompt, &talk.script.faults);
        seen.markers.clone_from(&talk.script.names);
        seen.markers.extend(fault.map(|fault| fault.name.clone()));
        let kind = fault.map(|fault| fault.kind.clone());
        let kind = kind.as_ref();
        talk.misshape(kind);
        let tempo = Tempo {
            delay: talk.script.delay.unwrap_or(shared.options.delay),
            pace: talk.script.pace.unwrap_or(shared.options.pace),
            ping: talk.script.ping,
        };
        let refused = match kind {
            Some(FaultKind::Error(problem)) => Some(problem),
            // There is no stream to put the event into.
            Some(FaultKind::ErrorEvent(problem, _)) if !ask.stream => Some(problem),
            _ => None,
        };
        if let Some(problem) = refused {
            shared.wait(tempo.delay).await;
            return self.refuse_message(problem, seen);
        }
        if let Some(marked) = &ask.marked {
            let now = Instant::now();
            shared.cache.keep(account, marked, now, now + tempo.delay);
        }
        let empty = kind == Some(&FaultKind::Empty);
        let mut answer = if empty { talk.empty_answer(ask) } else { talk.answer(ask) };
        // What is only another answer spoils nothing on its way.
        let spoilt = kind.filter(|kind| !matches!(kind, FaultKind::Empty | FaultKind::Misshape(_)));
        answer.usage.output += render::garbage_tokens(kind);
        shared.meter.spend(ask.model.line, answer.usage.output, Instant::now());
        let message_id = format!("msg_{:010x}{:010x}", shared.run, self.number);
        let rendering = Rendering {
            answer: &answer,
            script: &talk.script,
            fault: spoilt,
            tempo,
            model: ask.model.id,
            message_id: &message_id,
            request_id: &self.request_id,
        };
        enter(&mut seen, &rendering, ask.stream);
        seen.message_id = Some(message_id.clone());
        self.act(&rendering, ask.stream, seen).await
    }

    /// Sends an answer.
    async fn act(&self, rendering: &Rendering<'_>, streamed: bool, seen: Seen) -> Response {
        let garbage = match rendering.fault {
            Some(FaultKind::Garbage(garbage, _)) => Some(*garbage),
            _ => None,
        };
        let flight = self.fly(seen, StatusCode::OK);
        if rendering.fault == Some(&FaultKind::Hang(None)) {
            self.shared.stop.cancelled().await;
        }
        let (content_type, steps) = match garbage {
            Some(Garbage::Html) => ("text/html", vec![Step::Send(problem::html(200).into())]),
            _ if streamed && garbage != Some(Garbage::Json) => {
                ("text/event-stream; charset=utf-8", rendering.stream_steps())
            }
            _ => {
                self.shared.wait(rendering.tempo.delay).await;
                ("application/json", rendering.json_steps())
            }
        };
        let mut response = self.respond(StatusCode::OK, content_type, Body::empty());
        if garbage == Some(Garbage::Headers) {
            put_absurd(response.headers_mut());
        }
        if streamed {
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        }
        *response.body_mut() = body_of(steps, flight);
        response
    }

    /// Counts the call; it is on its way until the returned flight is dropped.
    fn fly(&self, mut seen: Seen, status: StatusCode) -> Flight {
        seen.status = status.as_u16();
        self.request_id.clone_into(&mut seen.request_id);
        let said = self.shared.tally.call(seen);
        Flight { shared: Arc::clone(&self.shared), said, landed: false }
    }

    fn refuse_message(self, problem: &Problem, mut seen: Seen) -> Response {
        seen.answer = match &problem.code {
            Some(code) => format!("error {} {code}", problem.status),
            None => format!("error {} {}", problem.status, problem.kind),
        };
        let status =
            StatusCode::from_u16(problem.status).expect("problems have a status between 400 and 599");
        self.fly(seen, status).landed = true;
        self.refuse(problem)
    }

    fn refuse(self, problem: &Problem) -> Response {
        let status =
            StatusCode::from_u16(problem.status).expect("problems have a status between 400 and 599");
        let (content_type, body) = problem.body(&self.request_id);
        let mut response = self.respond(status, content_type, body.into());
        for (name, value) in &problem.headers {
            let (name, value) = match *name {
                RETRY_AFTER_DATE => ("retry-after", date_in(value.parse().unwrap_or(0))),
                name => (name, value.clone()),
            };
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
        response
    }

    fn json(&self, status: StatusCode, body: String) -> Response {
        self.respond(status, "application/json", body.into())
    }

    fn respond(&self, status: StatusCode, content_type: &'static str, body: Body) -> Response {
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        let id = HeaderValue::from_str(&self.request_id).expect("a request id is hex digits");
        headers.insert("request-id", id);
        headers.insert("anthropic-organization-id", HeaderValue::from_static("stand-in"));
        for (name, value) in &self.limits {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("names of limits are plain");
            headers.insert(name, HeaderValue::from_str(value).expect("limits are numbers and times"));
        }
        response
    }
}

impl Shared {
    /// Waits, but not beyond the stop.
    async fn wait(&self, wait: Duration) {
        if !wait.is_zero() {
            drop(tokio::time::timeout(wait, self.stop.cancelled()).await);
        }
    }
}

/// Enters what the client will be told, and what only streamed.
fn enter(seen: &mut Seen, rendering: &Rendering<'_>, streamed: bool) {
    let usage = &rendering.answer.usage;
    let output = usage.output;
    let input = usage.input + usage.cache_read + usage.cache_write;
    let upto = |after: usize| (after as u64).min(output);
    let stop = rendering.answer.stop_reason.clone();
    let (answer, told, untold, heard) = match rendering.fault {
        Some(FaultKind::Hang(None)) => ("hang".to_owned(), 0, 0, false),
        Some(FaultKind::Hang(Some(after))) => ("hang".to_owned(), 0, upto(*after), streamed),
        Some(FaultKind::Cut(after, _)) => ("cut".to_owned(), 0, upto(*after), streamed),
        Some(FaultKind::CutTail(_)) if !streamed => ("cut".to_owned(), 0, 0, false),
        Some(FaultKind::ErrorEvent(problem, after)) => {
            (format!("error event {}", problem.kind), 0, upto(*after), true)
        }
        Some(FaultKind::Garbage(garbage, _)) => {
            let word = Garbage::ALL.iter().find(|known| known.1 == *garbage).map_or("", |known| known.0);
            let told = !matches!(garbage, Garbage::Html | Garbage::Nothing | Garbage::NoUsage);
            let told_output = if told { output } else { 0 };
            (format!("garbage {word}"), told_output, 0, told)
        }
        _ => (stop, output, 0, true),
    };
    seen.answer = answer;
    seen.output_tokens = told;
    seen.output_tokens_untold = untold;
    if heard {
        seen.input_tokens = input;
        seen.cache_read_tokens = usage.cache_read;
        seen.cache_write_tokens = usage.cache_write;
    }
}

/// An answer on its way: dropped by the server when it was sent, or when the client left.
struct Flight {
    shared: Arc<Shared>,
    said: Arc<Said>,
    landed: bool,
}

impl Flight {
    /// Notes that all was sent that should be.
    fn land(&mut self) {
        self.landed = true;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.shared.tally.landed(&self.said, !self.landed);
    }
}

fn body_of(steps: Vec<Step>, mut flight: Flight) -> Body {
    if let [Step::Send(only)] = steps.as_slice() {
        flight.landed = true;
        return Body::from(only.clone());
    }
    let state = (VecDeque::from(steps), flight);
    Body::from_stream(stream::unfold(state, |(mut steps, mut flight)| async move {
        loop {
            let Some(step) = steps.pop_front() else {
                flight.land();
                return None;
            };
            match step {
                Step::Send(bytes) => {
                    // The server does not ask again once it has what it was promised.
                    flight.landed = steps.is_empty();
                    return Some((Ok::<Bytes, io::Error>(bytes), (steps, flight)));
                }
                Step::Say(tokens, bytes) => flight.said.more(tokens, bytes),
                Step::Wait(wait) => flight.shared.wait(wait).await,
                Step::Hang => {
                    flight.shared.stop.cancelled().await;
                    return None;
                }
                Step::Drop => {
                    // Lets the server write out what it holds before the connection goes.
                    tokio::task::yield_now().await;
                    flight.land();
                    let gone = io::Error::new(io::ErrorKind::ConnectionReset, "dropped by a marker");
                    return Some((Err(gone), (steps, flight)));
                }
            }
        }
    }))
}

/// Returns the date so many seconds from now, as headers write it.
#[expect(clippy::disallowed_methods, reason = "the API that we stand in for reads its own clock")]
fn date_in(seconds: u32) -> String {
    httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(seconds.into()))
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Tells those apart who may not read each other's prefixes: the key as it was sent.
fn account_of(headers: &HeaderMap) -> u64 {
    let mut hasher = DefaultHasher::new();
    header_text(headers, "x-api-key").or_else(|| header_text(headers, "authorization")).hash(&mut hasher);
    hasher.finish()
}

fn check_key(headers: &HeaderMap, all_refused: bool) -> Result<(), Problem> {
    let bearer = header_text(headers, "authorization").and_then(|value| value.strip_prefix("Bearer "));
    let key = header_text(headers, "x-api-key").filter(|key| !key.is_empty());
    let refused = |key: &str| all_refused || key == BAD_KEY;
    match (key, bearer.filter(|token| !token.is_empty())) {
        (Some(key), _) if refused(key) => Err(Problem::unauthenticated("invalid x-api-key")),
        (None, Some(token)) if refused(token) => Err(Problem::unauthenticated("Invalid bearer token")),
        (None, None) => Err(Problem::unauthenticated("x-api-key header is required")),
        _ => Ok(()),
    }
}

fn put_absurd(headers: &mut HeaderMap) {
    headers.insert("retry-after", HeaderValue::from_static("soon"));
    headers.insert("x-should-retry", HeaderValue::from_static("perhaps"));
    headers.insert("anthropic-ratelimit-requests-remaining", HeaderValue::from_static("-many"));
    headers.insert("anthropic-ratelimit-requests-reset", HeaderValue::from_static("yesterday"));
    let latin = HeaderValue::from_bytes(b"caf\xe9").expect("obs-text is allowed in a header");
    headers.insert("x-greeting", latin);
    headers.insert("x-long", HeaderValue::from_str(&"x".repeat(8000)).expect("letters are plain"));
}
