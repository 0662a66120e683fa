//! What every request goes through: which name it calls us by, where it comes from, whether it may,
//! how long it may take, and the headers of the answer.
//!
//! Each request runs in a task of its own: a browser that goes away leaves no database operation
//! half-way.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::Web;
use super::door::{self, Entry};
use super::fault::{self, Fault};

/// Longest time that a request may take until its answer begins.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How long answers that are on their way get when the process ends.
pub const LAST_ANSWERS: Duration = Duration::from_millis(300);

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                      connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'self'; \
                      frame-ancestors 'none'";

/// Who asks, as `audit.actor` names them.
#[derive(Debug, Clone)]
pub struct Actor(pub String);

/// Lets a request through, or says why not.
pub async fn guard(
    State(web): State<Arc<Web>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().to_owned();
    let json = path.starts_with("/api/");
    let answer = match admit(&web, peer.ip(), &request) {
        Ok(actor) => {
            request.extensions_mut().insert(actor);
            answer(&web, request, next).await
        }
        Err(refusal) => *refusal,
    };
    let answer = finish(&web, answer, json);
    with_headers(answer, web.settings.listen.ip().is_loopback())
}

/// Decides whether a request may go on.
fn admit(web: &Web, peer: IpAddr, request: &Request) -> Result<Actor, Box<Response>> {
    let headers = request.headers();
    let refuse = |fault: Fault| Box::new(fault.into_response());
    if !answers_to(web, host(request)) {
        let what = "this server does not answer to that name; list it in web.hosts, if it is yours";
        return Err(refuse(Fault::new(StatusCode::MISDIRECTED_REQUEST, "misdirected", what)));
    }
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    if changes && !is_from_here(web, headers, host(request)) {
        let what = "the request comes from another site, and was not obeyed";
        return Err(refuse(Fault::new(StatusCode::FORBIDDEN, "forged", what)));
    }
    let path = request.uri().path();
    if path == door::PATH || path.starts_with("/assets/") {
        return Ok(Actor(format!("nobody from {peer}")));
    }
    let entry = web.door.entry(headers, peer);
    let actor = match entry {
        Entry::Open => Actor(format!("whoever, from {peer}")),
        Entry::Token => Actor(format!("token, from {peer}")),
        Entry::Session => Actor(format!("session, from {peer}")),
        Entry::TooMany => return Err(Box::new(door::too_many())),
        Entry::Shut if path.starts_with("/api/") => {
            let what = "give the token of web.token_file as Authorization: Bearer";
            return Err(refuse(Fault::new(StatusCode::UNAUTHORIZED, "unauthorised", what)));
        }
        Entry::Shut => return Err(Box::new(door::show_the_way(request.uri()))),
    };
    if changes && web.settings.read_only && path != door::OUT {
        let what = "this page is read-only (web.read_only)";
        return Err(refuse(Fault::new(StatusCode::FORBIDDEN, "read_only", what)));
    }
    Ok(actor)
}

async fn answer(web: &Arc<Web>, request: Request, next: Next) -> Response {
    let Ok(place) = Arc::clone(&web.places).try_acquire_owned() else {
        let what = "too many requests at once; try again in a moment";
        return Fault::new(StatusCode::SERVICE_UNAVAILABLE, "busy", what).into_response();
    };
    #[expect(clippy::disallowed_methods, reason = "awaited below; a browser that leaves must not drop it")]
    let answering = tokio::spawn(async move {
        // As long as it works: a client that leaves gives no place to the next.
        let _place = place;
        next.run(request).await
    });
    match tokio::time::timeout(ANSWER_MAX, answering).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tracing::error!(%error, "a request of the web page failed: {error}");
            Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", "the request failed").into_response()
        }
        Err(_) => {
            let what = "the database did not answer in time";
            Fault::new(StatusCode::SERVICE_UNAVAILABLE, fault::AWAY, what).into_response()
        }
    }
}

/// Gives a fault its face, and notes whether the database is there.
fn finish(web: &Web, answer: Response, json: bool) -> Response {
    let Some(fault) = answer.extensions().get::<Fault>().cloned() else { return answer };
    let mut away = web.away.lock().unwrap_or_else(PoisonError::into_inner);
    let since =
        if fault.kind == fault::AWAY { Some(away.get_or_insert_with(Instant::now).elapsed()) } else { None };
    drop(away);
    let mut faced = if json { fault.to_json() } else { fault.page(web, since) };
    if let Some(after) = answer.headers().get(header::RETRY_AFTER) {
        faced.headers_mut().insert(header::RETRY_AFTER, after.clone());
    }
    faced
}

/// Notes that the database answered.
pub fn is_there(web: &Web) {
    *web.away.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

fn host(request: &Request) -> Option<&str> {
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    // HTTP/2 and proxies name it in the line of the request.
    request.uri().authority().map(axum::http::uri::Authority::as_str).or(named)
}

/// Whether a host is a name of ours. A page elsewhere whose name is led to us by DNS would else be let in
/// by the browser as its own; an address cannot be led anywhere.
fn answers_to(web: &Web, host: Option<&str>) -> bool {
    let Some(host) = host else { return false };
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inner, _)) => inner,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if name == "localhost" || web.settings.hosts.contains(&name) {
        return true;
    }
    let listen = web.settings.listen.ip();
    name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip == listen || listen.is_unspecified())
}

/// Whether a change comes from a page of ours, or from no page at all.
fn is_from_here(web: &Web, headers: &HeaderMap, host: Option<&str>) -> bool {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    match (text(HeaderName::from_static("sec-fetch-site")), text(header::ORIGIN)) {
        (Some(site), _) if !matches!(site, "same-origin" | "none") => false,
        // Sec-Fetch-Site is the browser's own word; Origin is looked at where that is missing, or beside it.
        (site, Some(origin)) => {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            // A proxy may call us by another name than browsers call it; its own is in web.hosts.
            let by_proxy = || web.settings.hosts.iter().any(|name| authority == Some(name));
            let own = authority.is_some() && authority == host;
            own || (site.is_some() && (origin == "null" || by_proxy()))
        }
        (_, None) => true,
    }
}

fn with_headers(mut answer: Response, local: bool) -> Response {
    let headers = answer.headers_mut();
    // Where TLS is not in front, a browser tells other machines no Sec-Fetch-Site, and with `no-referrer`
    // no Origin either: there a form could not be told from a forged one.
    let referrer = if local { "no-referrer" } else { "same-origin" };
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, referrer),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}
