//! The API over HTTP.
//!
//! One POST a call, always read as it comes; every way it can end is mapped to a
//! [`Failure`], and whatever arrived before stands in the exchange. Time limits and cancelling are in
//! `watch`, the body of a request in `outgoing`, that of a reply in `intake`, key and client in `setup`, what
//! is asked for free in `free`. No retries here, and no message that holds a key.

mod free;
mod intake;
mod outgoing;
mod setup;
mod watch;

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use reqwest::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};
use reqwest::{Client, Method, Response, Url};
use secrecy::ExposeSecret;
use tokio_util::sync::CancellationToken;

pub(crate) use self::setup::tls;
pub use self::setup::{Auth, ClaudeSettings, SetupError, check_key, fingerprint};

use self::intake::{Intake, Progress, Sizes};
use self::setup::Credentials;
use self::watch::{Limits, Watch};
use super::fold::Ended;
use super::{Claude, Listener, wire};
use crate::domain::body::Body;
use crate::domain::model::{Catalogue, undated};
use crate::domain::outcome::{ApiError, Failure, Lost};
use crate::domain::pace::RateLimits;
use crate::domain::reply::Exchange;
use crate::domain::talk::Request;
use crate::failpoint::failpoint;

/// Longest part of an error body that is read, in bytes.
const ERROR_BODY_MAX: usize = 64 * 1024;

/// Longest time that an error body may take: the status is known, the rest is a courtesy.
const ERROR_BODY_TIME: Duration = Duration::from_secs(10);

/// Longest wait behind `message_stop` for the end of the body. A connection whose body was read to
/// its end is used again; a server that keeps the body open must not hold the call.
const TAIL_TIME: Duration = Duration::from_millis(100);

/// The Messages API of one base address, with one key.
#[derive(Debug)]
pub struct HttpClaude {
    client: Client,
    messages_url: Url,
    models_url: Url,
    count_url: Url,
    /// `host:port`, for messages.
    host: String,
    basic: Option<HeaderValue>,
    versions: HashMap<String, Option<HeaderValue>>,
    credentials: RwLock<Arc<Credentials>>,
    settings: ClaudeSettings,
}

/// What is known of a call while it runs.
struct Call {
    intake: Intake,
    first_token: Option<Instant>,
    http_status: Option<u16>,
    request_id: Option<String>,
    limits: Option<RateLimits>,
    /// When the reply said that it is over; the wait for the connection's sake does not count.
    over: Option<Instant>,
}

impl HttpClaude {
    /// Makes a client. Reads the key file, calls nobody.
    pub fn new(settings: ClaudeSettings) -> Result<Self, SetupError> {
        let client = setup::build_client(&settings)?;
        let (base, basic) = setup::read_base(&settings.base_url, &client)?;
        let key = setup::read_key(&settings)?;
        let credentials = Credentials::new(&settings, key, basic.as_ref())?;
        let versions = settings
            .versions
            .iter()
            .map(|(model, version)| Ok((model.clone(), setup::version(version)?)))
            .collect::<Result<_, SetupError>>()?;
        let port = base.port().map(|port| format!(":{port}")).unwrap_or_default();
        Ok(Self {
            client,
            messages_url: setup::join(&base, "/v1/messages"),
            models_url: setup::join(&base, "/v1/models"),
            count_url: setup::join(&base, "/v1/messages/count_tokens"),
            host: format!("{}{port}", base.host_str().unwrap_or_default()),
            basic,
            versions,
            credentials: RwLock::new(Arc::new(credentials)),
            settings,
        })
    }

    fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.credentials.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn post(&self, url: Url, model: &str, body: Body, credentials: &Credentials) -> reqwest::Request {
        let mut post = reqwest::Request::new(Method::POST, url);
        let mut headers = credentials.headers.clone();
        match self.versions.get(model).or_else(|| self.versions.get(undated(model))) {
            Some(Some(version)) => {
                headers.insert("anthropic-version", version.clone());
            }
            Some(None) => {
                headers.remove("anthropic-version");
            }
            None => {}
        }
        *post.headers_mut() = headers;
        *post.body_mut() = Some(outgoing::body(body));
        post
    }

    /// Sends and reads: `Ok` only where the reply said that it is over.
    async fn talk(
        &self,
        post: reqwest::Request,
        call: &mut Call,
        watch: &mut Watch<'_, '_>,
        listener: &Listener<'_>,
    ) -> Result<(), Failure> {
        let sent = watch.over(self.client.execute(post)).await?;
        let mut response = sent.map_err(|err| self.unanswered(err))?;
        failpoint!("ask.headers");
        call.http_status = Some(response.status().as_u16());
        call.request_id = wire::request_id(response.headers());
        call.limits = wire::rate_limits(response.headers(), Instant::now());
        if !response.status().is_success() {
            let (failure, request_id) = refused(response, watch).await;
            call.request_id = call.request_id.take().or(request_id);
            return Err(failure);
        }
        check_encoding(response.headers())?;
        loop {
            let chunk = match watch.over(response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return call.intake.end().inspect(|()| call.tell(listener)),
                Ok(Err(err)) => return call.intake.cut(Failure::Lost(Lost::Reset, chain(err))),
                Err(cut) => return call.intake.cut(cut),
            };
            watch.byte_came();
            let taken = call.intake.take(&chunk);
            call.tell(listener);
            if taken? == Progress::Over {
                call.over = Some(Instant::now());
                finish_body(&mut response, watch).await;
                return if call.intake.fold.has_stop() { Ok(()) } else { Err(Failure::Unended) };
            }
            if call.intake.first_event {
                watch.first_event_came();
            }
        }
    }

    /// Maps the failure of a request that got no answer.
    fn unanswered(&self, err: reqwest::Error) -> Failure {
        let (connect, builder) = (err.is_connect(), err.is_builder());
        let protocol = protocol_error(&err);
        let unsent = connect || builder || protocol.is_some_and(hyper::Error::is_canceled);
        let foreign = protocol.is_some_and(hyper::Error::is_parse);
        let message = chain(err);
        if unsent {
            Failure::Unsent(format!("cannot connect to {}: {message}", self.host))
        } else if foreign {
            Failure::Unreadable(format!("{} did not answer in HTTP: {message}", self.host))
        } else {
            Failure::Lost(Lost::Reset, message)
        }
    }
}

#[async_trait]
impl Claude for HttpClaude {
    async fn ask(&self, request: &Request, listener: Listener<'_>) -> Exchange {
        let credentials = self.credentials();
        let sizes = Sizes { response_max: self.settings.response_max, event_max: self.settings.event_max };
        let limits = Limits {
            first_event: self.settings.first_event,
            idle: self.settings.idle,
            total: request.timeout,
        };
        let mut call = Call {
            intake: Intake::new(sizes),
            first_token: None,
            http_status: None,
            request_id: None,
            limits: None,
            over: None,
        };
        let (url, body) = (self.messages_url.clone(), request.body.clone());
        let post = self.post(url, &request.model, body, &credentials);
        let sent = Instant::now();
        let stop = listener.stop.cancelled();
        let timer = limits.timer(sent.into());
        tokio::pin!(stop, timer);
        let mut watch = Watch::new(limits, sent.into(), stop, timer);
        let mut end = self.talk(post, &mut call, &mut watch, &listener).await;
        let ended = call.over.unwrap_or_else(Instant::now);
        // Whatever cut the tail off, the answer before it is whole and paid for.
        let cut = matches!(end, Err(Failure::Lost(..) | Failure::Unended | Failure::Stopped));
        let tail_missing = cut && call.intake.fold.settled();
        if tail_missing {
            end = Ok(());
        }
        let whole = if end.is_ok() { Ended::Whole } else { Ended::Cut };
        let mut reply = call.intake.fold.finish(whole);
        reply.tail_missing = tail_missing;
        Exchange {
            sent,
            first_token: call.first_token,
            ended,
            http_status: call.http_status,
            request_id: call.request_id.or(call.intake.request_id),
            limits: call.limits,
            reply,
            end: end.map_err(|failure| credentials.redact(failure)),
        }
    }

    async fn check(&self) -> Result<(), Failure> {
        self.ask_for_key().await
    }

    async fn models(&self) -> Result<Catalogue, Failure> {
        self.list_models().await
    }

    async fn count_tokens(&self, request: &Request, stop: &CancellationToken) -> Result<i64, Failure> {
        self.count(request, stop).await
    }

    fn server(&self) -> Option<(&str, u16)> {
        let host = self.messages_url.host_str()?.trim_matches(['[', ']']);
        Some((host, self.messages_url.port_or_known_default()?))
    }

    fn reload_key(&self) -> bool {
        let known = self.credentials();
        let made = setup::read_key(&self.settings)
            .and_then(|key| Credentials::new(&self.settings, key, self.basic.as_ref()));
        let fresh = match made {
            Ok(fresh) => fresh,
            Err(err) => {
                let cause = err.source().map(|source| format!(": {source}")).unwrap_or_default();
                tracing::warn!("keeping the known API key: {err}{cause}");
                return false;
            }
        };
        let text =
            |credentials: &Credentials| credentials.key.as_ref().map(|key| key.expose_secret().to_owned());
        if text(&fresh) == text(&known) {
            return false;
        }
        *self.credentials.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        true
    }

    fn fingerprint(&self) -> String {
        self.credentials().fingerprint.clone()
    }
}

impl Call {
    /// Tells what the last chunk brought.
    fn tell(&mut self, listener: &Listener<'_>) {
        if self.intake.content && self.first_token.is_none() {
            self.first_token = Some(Instant::now());
            failpoint!("ask.content");
            (listener.on_content)();
        }
        if let Some(text) = self.intake.fold.take_fresh_text() {
            (listener.on_text)(&text);
            failpoint!("ask.text");
        }
    }
}

/// Reads a status that is no success; also returns the `request_id` in the body.
async fn refused(mut response: Response, watch: &mut Watch<'_, '_>) -> (Failure, Option<String>) {
    let status = response.status();
    if status.is_redirection() {
        let message = format!("the server redirects ({status}), which is not followed: set api.base_url");
        return (Failure::Unreadable(message), None);
    }
    let retry_after = wire::retry_after(response.headers());
    let should_retry = wire::should_retry(response.headers());
    let reading = read_up_to(&mut response, watch, ERROR_BODY_MAX);
    let body = tokio::time::timeout(ERROR_BODY_TIME, reading).await.unwrap_or_default();
    let (error, request_id) = wire::api_error(status.as_u16(), &body);
    (Failure::Api(ApiError { retry_after, should_retry, ..error }), request_id)
}

/// Reads the start of a body; what cannot be read any more is left out.
async fn read_up_to(response: &mut Response, watch: &mut Watch<'_, '_>, max: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < max {
        let Ok(Ok(Some(chunk))) = watch.over(response.chunk()).await else { break };
        watch.byte_came();
        body.extend_from_slice(&chunk);
    }
    body.truncate(max);
    body
}

/// Reads the end of a body whose reply is over, so that its connection can be used again.
async fn finish_body(response: &mut Response, watch: &mut Watch<'_, '_>) {
    // A server that says more than this is not about to end.
    const CHUNKS_MAX: usize = 4;
    let reading = async {
        for _ in 0..CHUNKS_MAX {
            if !matches!(watch.over(response.chunk()).await, Ok(Ok(Some(_)))) {
                break;
            }
        }
    };
    // Dropping the response closes a connection whose body has not ended: no harm but to the next call.
    drop(tokio::time::timeout(TAIL_TIME, reading).await);
}

fn check_encoding(headers: &HeaderMap) -> Result<(), Failure> {
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => {
            let encoding = String::from_utf8_lossy(encoding.as_bytes());
            let encoding = wire::start_of(&encoding);
            Err(Failure::Unreadable(format!("the reply is compressed ({encoding}), which was not asked for")))
        }
        _ => Ok(()),
    }
}

fn protocol_error(err: &reqwest::Error) -> Option<&hyper::Error> {
    let mut source = err.source();
    while let Some(err) = source {
        if let Some(err) = err.downcast_ref() {
            return Some(err);
        }
        source = err.source();
    }
    None
}

/// The sentences of an error and of what caused it, without its address.
pub(crate) fn chain(err: reqwest::Error) -> String {
    let err = err.without_url();
    let mut message = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        message.push_str(": ");
        message.push_str(&err.to_string());
        source = err.source();
    }
    message
}
