//! What stands around a reply: error bodies and the headers that matter.
//!
//! Reads only; what an error means is decided in [`crate::domain::retry`].

use std::time::{Duration, Instant, SystemTime};

use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::domain::outcome::{ApiError, Fault};
use crate::domain::pace::{Each, Limit, RateLimits};
use crate::domain::reply::{decode_string, sanitise};

/// Longest wait that a server may ask for; more is taken for this.
pub const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);

/// Longest time until a limit is whole again; more is taken for this.
pub const RESET_MAX: Duration = Duration::from_hours(1);

/// Longest `request-id` kept, in bytes.
const REQUEST_ID_MAX: usize = 256;

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    detail: Option<&'a RawValue>,
    #[serde(borrow)]
    request_id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ErrorObject<'a> {
    #[serde(rename = "type", borrow)]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    message: Option<&'a RawValue>,
    #[serde(borrow)]
    details: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Details<'a> {
    #[serde(borrow)]
    error_code: Option<&'a RawValue>,
}

/// Reads an error body, or the data of an `error` event; also returns the `request_id` in it.
///
/// A body of another shape gives its start as the message and leaves `kind` empty.
pub fn api_error(status: u16, body: &[u8]) -> (ApiError, Option<String>) {
    let text = String::from_utf8_lossy(body);
    let read = serde_json::from_str::<Body<'_>>(text.trim_start_matches('\u{feff}')).ok();
    let request_id = read.as_ref().and_then(|body| string(body.request_id)).map(cut_request_id);
    let object =
        read.as_ref().and_then(|body| body.error).and_then(|raw| serde_json::from_str(raw.get()).ok());
    let (mut kind, mut code, mut message) = (String::new(), None, None);
    if let Some(ErrorObject { kind: word, message: sentence, details }) = object {
        kind = string(word).unwrap_or_default();
        message = string(sentence);
        code = details
            .and_then(|raw| serde_json::from_str::<Details<'_>>(raw.get()).ok())
            .and_then(|details| string(details.error_code))
            .filter(|code| !code.is_empty());
    } else if let Some(body) = &read {
        // Shapes of compatible servers and of what stands before them.
        message = string(body.error).or_else(|| string(body.message)).or_else(|| string(body.detail));
    }
    let message = message.filter(|message| !message.is_empty()).unwrap_or_else(|| start_of(&text));
    let error = ApiError { status, kind, code, message: cut(message), ..ApiError::default() };
    (error, request_id)
}

/// Returns how long the server asks us to wait: `retry-after-ms`, else `retry-after` in seconds or as
/// a date, which is relative to the reply's own `date`, so that no clock of ours is asked.
///
/// Between 0 and [`RETRY_AFTER_MAX`]; what cannot be read does not count.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str, unit: f64| {
        let number: f64 = header(headers, name)?.parse().ok()?;
        let seconds = (number * unit).clamp(0.0, RETRY_AFTER_MAX.as_secs_f64());
        number.is_finite().then(|| Duration::from_secs_f64(seconds))
    };
    number("retry-after-ms", 0.001).or_else(|| number("retry-after", 1.0)).or_else(|| {
        let at = date(headers, "retry-after")?;
        let now = date(headers, "date")?;
        Some(at.duration_since(now).unwrap_or_default().min(RETRY_AFTER_MAX))
    })
}

/// Returns what `x-should-retry` says; `None` where it says neither `true` nor `false`.
pub fn should_retry(headers: &HeaderMap) -> Option<bool> {
    match header(headers, "x-should-retry")? {
        word if word.eq_ignore_ascii_case("true") => Some(true),
        word if word.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// Returns the `request-id` header, else `x-request-id`, which is what most other servers call it.
pub fn request_id(headers: &HeaderMap) -> Option<String> {
    ["request-id", "x-request-id"].into_iter().find_map(|name| {
        let id = String::from_utf8_lossy(headers.get(name)?.as_bytes()).trim().to_owned();
        Some(cut_request_id(id)).filter(|id| !id.is_empty())
    })
}

/// Returns the rate limits that the headers tell; `None` where they tell none. `at`: when they came.
///
/// Left out are `anthropic-ratelimit-tokens-*`, which repeat the scarcest of the others, and the limits of
/// priority tier and fast mode, which are apart from these. A limit of 0 makes no sense and does not count.
pub fn rate_limits(headers: &HeaderMap, at: Instant) -> Option<RateLimits> {
    let now = date(headers, "date");
    let limit = |what: &str| {
        let of = |part: &str| header(headers, &format!("anthropic-ratelimit-{what}-{part}"));
        Limit {
            limit: of("limit").and_then(|number| number.parse().ok()).filter(|limit| *limit > 0),
            remaining: of("remaining").and_then(|number| number.parse().ok()),
            reset: of("reset").and_then(|time| {
                let full = SystemTime::from(time.parse::<jiff::Timestamp>().ok()?);
                Some(full.duration_since(now?).unwrap_or_default().min(RESET_MAX))
            }),
        }
    };
    let each =
        Each { requests: limit("requests"), input: limit("input-tokens"), output: limit("output-tokens") };
    (each != Each::default()).then_some(RateLimits { at, each })
}

/// Returns when the server answered, by its own clock.
pub fn answered(headers: &HeaderMap) -> Option<SystemTime> {
    date(headers, "date")
}

/// Returns the start of a body in one line, without control characters: it is shown on terminals.
pub fn start_of(body: &str) -> String {
    let mut out = String::new();
    for word in body.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
        if out.len() > Fault::MESSAGE_MAX {
            break;
        }
    }
    if out.is_empty() { "the body is empty".to_owned() } else { cut(out) }
}

fn cut(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(Fault::MESSAGE_MAX));
    message
}

fn cut_request_id(mut id: String) -> String {
    id.truncate(id.floor_char_boundary(REQUEST_ID_MAX));
    id
}

fn string(raw: Option<&RawValue>) -> Option<String> {
    let raw = raw?.get();
    raw.starts_with('"').then(|| sanitise(decode_string(raw)).0)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn date(headers: &HeaderMap, name: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(header(headers, name)?).ok()
}
