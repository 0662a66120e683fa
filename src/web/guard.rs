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
use crate::store::{StoreError, within};

/// Longest time that a request may take until its answer begins.
const ANSWER_MAX: Duration = Duration::from_secs(20);

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
    let json = request.uri().path().starts_with("/api/");
    let answer = match admit(&web, peer.ip(), &request) {
        Ok(actor) => {
            request.extensions_mut().insert(actor);
            answer(&web, request, next).await
        }
        Err(refusal) => *refusal,
    };
    // Whoever waits here holds no place.
    if let Some(door::Pause(pause)) = answer.extensions().get() {
        tokio::time::sleep(*pause).await;
    }
    let answer = finish(&web, answer, json);
    with_headers(answer, web.settings.listen.ip().is_loopback())
}

/// Decides whether a request may go on.
fn admit(web: &Web, peer: IpAddr, request: &Request) -> Result<Actor, Box<Response>> {
    let fault = |status, kind, what: &str| Err(Box::new(Fault::new(status, kind, what).into_response()));
    let headers = request.headers();
    if !answers_to(web, host(request)) {
        let what = "this server does not answer to that name; list it in web.hosts, if it is yours";
        return fault(StatusCode::MISDIRECTED_REQUEST, "misdirected", what);
    }
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    if changes && !is_from_here(web, headers, host(request)) {
        let what = "the request comes from another site, and was not obeyed";
        return fault(StatusCode::FORBIDDEN, "forged", what);
    }
    if !changes && !is_led_here(headers) {
        let what = "another site asks for this; open the page itself";
        return fault(StatusCode::FORBIDDEN, "forged", what);
    }
    let path = request.uri().path();
    if path == door::PATH || path.starts_with("/assets/") {
        return Ok(Actor(format!("nobody from {peer}")));
    }
    let actor = match web.door.entry(headers, peer) {
        Entry::Open => Actor(format!("whoever, from {peer}")),
        Entry::Token => Actor(format!("token, from {peer}")),
        Entry::Session => Actor(format!("session, from {peer}")),
        Entry::TooMany(pause) => return Err(Box::new(door::after(pause, door::too_many()))),
        Entry::Shut(pause) if path.starts_with("/api/") => {
            let what = "give the token of web.token_file as Authorization: Bearer";
            let fault = Fault::new(StatusCode::UNAUTHORIZED, "unauthorised", what);
            return Err(Box::new(door::after(pause, fault.into_response())));
        }
        Entry::Shut(pause) => {
            let shown = door::show_the_way(request.method(), request.uri());
            return Err(Box::new(door::after(pause, shown)));
        }
    };
    if changes && web.settings.read_only && path != door::OUT {
        let what = "this page is read-only (web.read_only)";
        return fault(StatusCode::FORBIDDEN, "read_only", what);
    }
    Ok(actor)
}

async fn answer(web: &Arc<Web>, request: Request, next: Next) -> Response {
    // Anybody may knock, and takes nobody's place in the house.
    let places = if request.uri().path() == door::PATH { &web.knocking } else { &web.places };
    let Ok(place) = Arc::clone(places).try_acquire_owned() else {
        return Fault::busy("too many requests at once; try again in a moment").into_response();
    };
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    let read_max = web.settings.read_max;
    #[expect(clippy::disallowed_methods, reason = "awaited below; a browser that leaves must not drop it")]
    let mut answering = tokio::spawn(async move {
        // As long as it works: a client that leaves gives no place to the next.
        let _place = place;
        within(read_max, next.run(request)).await
    });
    match tokio::time::timeout(ANSWER_MAX, &mut answering).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            tracing::error!(%error, "a request of the web page failed: {error}");
            Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", "the request failed").into_response()
        }
        Err(_) => {
            // What only looks can end anywhere; what changes something is done to its end.
            if changes {
                return Fault::unheard(ANSWER_MAX).into_response();
            }
            answering.abort();
            Fault::from(StoreError::Late(ANSWER_MAX)).into_response()
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

/// Splits a host into its name and its port.
fn parts(host: &str) -> (&str, Option<&str>) {
    if let Some((inner, rest)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (inner, rest.strip_prefix(':'));
    }
    host.rsplit_once(':').map_or((host, None), |(name, port)| (name, Some(port)))
}

/// Whether a host is a name of ours. A page elsewhere whose name is led to us by DNS would else be let in
/// by the browser as its own; an address cannot be led anywhere.
fn answers_to(web: &Web, host: Option<&str>) -> bool {
    let Some(host) = host else { return false };
    let name = parts(host).0.trim_end_matches('.').to_ascii_lowercase();
    if name == "localhost" || web.settings.hosts.iter().any(|known| parts(known).0 == name) {
        return true;
    }
    let listen = web.settings.listen.ip();
    name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip == listen || listen.is_unspecified())
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).map(|value| value.to_str().unwrap_or_default())
}

const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether a change comes from a page of ours, or from no page at all.
fn is_from_here(web: &Web, headers: &HeaderMap, host: Option<&str>) -> bool {
    match (text(headers, SITE), text(headers, header::ORIGIN)) {
        (Some(site), _) if !matches!(site, "same-origin" | "none") => false,
        // Sec-Fetch-Site is the browser's own word; Origin is looked at where that is missing, or beside it.
        (site, Some(origin)) => {
            let own = host.is_some_and(|host| is_origin(origin, host));
            own || (site.is_some() && (origin == "null" || is_by_proxy(web, origin, host)))
        }
        (_, None) => true,
    }
}

/// Whether an origin is a name of ours that a proxy did not pass on: it may call us by another one, or
/// leave the port out. Its own is in `web.hosts`.
fn is_by_proxy(web: &Web, origin: &str, host: Option<&str>) -> bool {
    let passed_on = host.map(parts).filter(|(_, port)| port.is_some());
    let of_origin = origin.split_once("://").map_or("", |(_, authority)| parts(authority).0);
    // The same name on another port is another site.
    !passed_on.is_some_and(|(name, _)| name.eq_ignore_ascii_case(of_origin))
        && web.settings.hosts.iter().any(|name| is_origin(origin, name))
}

/// Whether an origin is that of a host: the same name and the same port. A port that is not said is that
/// of the origin's scheme.
fn is_origin(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let usual = match scheme {
        "http" => "80",
        "https" => "443",
        _ => return false,
    };
    let whole = |host| {
        let (name, port) = parts(host);
        (name.trim_end_matches('.').to_ascii_lowercase(), port.unwrap_or(usual).to_owned())
    };
    whole(authority) == whole(host)
}

/// Whether what is only looked at is asked for by a page of ours, by no page, or by a person who follows
/// a link: another site may lead here, and may neither frame nor fetch what is here, nor draw it.
fn is_led_here(headers: &HeaderMap) -> bool {
    match text(headers, SITE) {
        None | Some("same-origin" | "none") => true,
        Some(_) => {
            text(headers, HeaderName::from_static("sec-fetch-mode")) == Some("navigate")
                && text(headers, HeaderName::from_static("sec-fetch-dest")) == Some("document")
        }
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
