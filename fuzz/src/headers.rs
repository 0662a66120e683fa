//! What stands around a reply: headers, one `name: value` a line, and behind a line `---` the body.

use std::time::Instant;

use promptmill::claude::wire;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

/// Waits and ids have their limits, and an error's message fits into a row, whatever a server says.
pub fn headers(data: &[u8]) {
    let (head, body) = match data.windows(5).position(|five| five == b"\n---\n") {
        Some(at) => (&data[..at], &data[at + 5..]),
        None => (data, &b""[..]),
    };
    let mut headers = HeaderMap::new();
    for line in head.split(|&byte| byte == b'\n') {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let value = line[colon + 1..].trim_ascii();
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(value))
        {
            headers.append(name, value);
        }
    }
    if let Some(wait) = wire::retry_after(&headers) {
        assert!(wait <= wire::RETRY_AFTER_MAX);
    }
    if let Some(limits) = wire::rate_limits(&headers, Instant::now()) {
        for limit in [limits.each.requests, limits.each.input, limits.each.output] {
            assert!(limit.reset.is_none_or(|reset| reset <= wire::RESET_MAX));
            assert_ne!(limit.limit, Some(0));
        }
    }
    let _ = (wire::should_retry(&headers), wire::answered(&headers));
    if let Some(id) = wire::request_id(&headers) {
        assert!((1..=256).contains(&id.len()));
    }
    let (error, request_id) = wire::api_error(400, body);
    assert!(!error.message.is_empty() && error.message.len() <= 4096);
    assert!(!error.message.contains('\0'), "no database takes it");
    assert!(request_id.is_none_or(|id| id.len() <= 256));
}
