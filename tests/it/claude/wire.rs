//! Error bodies and headers, as servers and what stands before them write them.

use std::time::{Duration, Instant};

use promptmill::claude::wire::{RESET_MAX, api_error, rate_limits, request_id, retry_after, should_retry};
use promptmill::domain::outcome::Fault;
use promptmill::domain::pace::Limit;
use reqwest::header::{HeaderMap, HeaderName};

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn headers(pairs: Pairs<'_>) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
}

#[test]
fn waits_are_read_from_every_form_and_clamped() {
    let hour = Duration::from_hours(1);
    let date = ("date", "Tue, 10 Nov 2026 08:00:00 GMT");
    let table: [(Pairs, Option<Duration>); 23] = [
        (&[], None),
        (&[("retry-after", "0")], Some(Duration::ZERO)),
        (&[("retry-after", "1")], Some(Duration::from_secs(1))),
        (&[("retry-after", " 30 ")], Some(Duration::from_secs(30))),
        (&[("retry-after", "0.5")], Some(Duration::from_millis(500))),
        (&[("retry-after", "3600")], Some(hour)),
        (&[("retry-after", "1e9")], Some(hour)),
        (&[("retry-after", "999999999999999999999999")], Some(hour)),
        (&[("retry-after", "-5")], Some(Duration::ZERO)),
        (&[("retry-after", "abc")], None),
        (&[("retry-after", "")], None),
        (&[("retry-after", "NaN")], None),
        (&[("retry-after", "inf")], None),
        (&[("retry-after-ms", "1500")], Some(Duration::from_millis(1500))),
        (&[("retry-after-ms", "250.5")], Some(Duration::from_micros(250_500))),
        (&[("retry-after-ms", "-1")], Some(Duration::ZERO)),
        (&[("retry-after-ms", "20"), ("retry-after", "30")], Some(Duration::from_millis(20))),
        (&[("retry-after-ms", "soon"), ("retry-after", "30")], Some(Duration::from_secs(30))),
        (&[date, ("retry-after", "Tue, 10 Nov 2026 08:00:42 GMT")], Some(Duration::from_secs(42))),
        (&[date, ("retry-after", "Tue, 10 Nov 2026 07:00:00 GMT")], Some(Duration::ZERO)),
        (&[date, ("retry-after", "Tue, 10 Nov 2099 08:00:42 GMT")], Some(hour)),
        (&[("retry-after", "Tue, 10 Nov 2026 08:00:42 GMT")], None),
        (&[("date", "yesterday"), ("retry-after", "Tue, 10 Nov 2026 08:00:42 GMT")], None),
    ];
    for (pairs, expected) in table {
        assert_eq!(retry_after(&headers(pairs)), expected, "{pairs:?}");
    }
}

#[test]
fn header_bytes_that_are_no_text_do_not_count() {
    let mut map = HeaderMap::new();
    map.insert("retry-after", reqwest::header::HeaderValue::from_bytes(b"\xff\xfe").unwrap());
    map.insert("request-id", reqwest::header::HeaderValue::from_bytes(b"req_\xff").unwrap());
    assert_eq!(retry_after(&map), None);
    assert_eq!(request_id(&map).as_deref(), Some("req_\u{fffd}"));
}

#[test]
fn x_should_retry_is_true_false_or_nothing() {
    for (value, expected) in
        [("true", Some(true)), ("false", Some(false)), ("TRUE", Some(true)), ("1", None), ("", None)]
    {
        assert_eq!(should_retry(&headers(&[("x-should-retry", value)])), expected, "{value:?}");
    }
}

#[test]
fn rate_limits_are_read_with_their_reset_by_the_responses_own_date() {
    let at = Instant::now();
    let told = headers(&[
        ("date", "Mon, 23 Nov 2026 10:00:00 GMT"),
        ("anthropic-ratelimit-requests-limit", "4000"),
        ("anthropic-ratelimit-requests-remaining", "3999"),
        ("anthropic-ratelimit-requests-reset", "2026-11-23T10:00:07Z"),
        ("anthropic-ratelimit-input-tokens-limit", "2000000"),
        ("anthropic-ratelimit-input-tokens-remaining", "0"),
        ("anthropic-ratelimit-input-tokens-reset", "2026-11-23T11:00:30+01:00"),
        ("anthropic-ratelimit-tokens-limit", "7"),
        ("anthropic-priority-output-tokens-limit", "8"),
        ("anthropic-fast-output-tokens-limit", "9"),
    ]);
    let limits = rate_limits(&told, at).unwrap();
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    assert_eq!(limits.at, at);
    let requests = Limit { limit: Some(4000), remaining: Some(3999), reset: seconds(7) };
    assert_eq!(limits.each.requests, requests);
    let input = Limit { limit: Some(2_000_000), remaining: Some(0), reset: seconds(30) };
    assert_eq!(limits.each.input, input);
    assert_eq!(limits.each.output, Limit::default(), "other tiers' limits are not these");
}

#[test]
fn rate_limits_that_make_no_sense_do_not_count() {
    let odd =
        |pairs: Pairs<'_>| rate_limits(&headers(pairs), Instant::now()).map(|limits| limits.each.requests);
    assert_eq!(odd(&[]), None);
    assert_eq!(odd(&[("anthropic-ratelimit-tokens-limit", "7")]), None);
    for word in ["", "0", "-5", "1e3", "many", "99999999999999999999"] {
        assert_eq!(odd(&[("anthropic-ratelimit-requests-limit", word)]), None, "{word}");
    }
    let dated = |reset| {
        let date = ("date", "Mon, 23 Nov 2026 10:00:00 GMT");
        odd(&[
            date,
            ("anthropic-ratelimit-requests-limit", "5"),
            ("anthropic-ratelimit-requests-reset", reset),
        ])
        .unwrap()
        .reset
    };
    assert_eq!(dated("2026-11-23T09:00:00Z"), Some(Duration::ZERO), "it has passed");
    assert_eq!(dated("2999-12-31T00:00:00Z"), Some(RESET_MAX));
    assert_eq!(dated("soon"), None);
    let dateless = [
        ("anthropic-ratelimit-requests-limit", "5"),
        ("anthropic-ratelimit-requests-reset", "2026-11-23T09:00:00Z"),
    ];
    assert_eq!(odd(&dateless).unwrap().reset, None, "no clock of ours is asked");
}

#[test]
fn request_ids_are_bounded() {
    let long = "r".repeat(5000);
    assert_eq!(request_id(&headers(&[("request-id", &long)])).unwrap().len(), 256);
    assert_eq!(request_id(&headers(&[("request-id", "")])), None);
}

#[test]
fn another_servers_request_id_is_read_where_the_api_has_given_none() {
    for (set, read) in [
        (&[("x-request-id", "theirs")][..], "theirs"),
        (&[("x-request-id", "a proxy's"), ("request-id", "the API's")], "the API's"),
        (&[("x-request-id", "theirs"), ("request-id", " ")], "theirs"),
    ] {
        assert_eq!(request_id(&headers(set)).as_deref(), Some(read));
    }
}

#[test]
fn the_errors_shape_is_read() {
    let body = br#"{"type":"error","error":{"type":"rate_limit_error","message":"slow \ud83d down",
        "details":{"error_code":"ramp_limit_exceeded"}},"request_id":"req_9"}"#;
    let (error, id) = api_error(429, body);
    assert_eq!((error.status, error.kind.as_str()), (429, "rate_limit_error"));
    assert_eq!(error.code.as_deref(), Some("ramp_limit_exceeded"));
    assert_eq!(error.message, "slow \u{fffd} down");
    assert_eq!(id.as_deref(), Some("req_9"));
}

#[test]
fn other_bodies_leave_the_kind_empty_and_give_their_start() {
    let table: [(&[u8], &str, &str); 9] = [
        (b"<html>\n<h1>502 Bad\x1b[31m Gateway</h1>", "", "<html> <h1>502 Bad [31m Gateway</h1>"),
        (b"", "", "the body is empty"),
        (b"\xff\xfe nonsense", "", "\u{fffd}\u{fffd} nonsense"),
        (br#"{"error":"no such route"}"#, "", "no such route"),
        (br#"{"detail":"Not Found"}"#, "", "Not Found"),
        (br#"{"message":"Forbidden"}"#, "", "Forbidden"),
        (br#"{"error":{"message":"m","type":null,"details":null}}"#, "", "m"),
        (br#"{"error":{"type":"api_error"}}"#, "api_error", r#"{"error":{"type":"api_error"}}"#),
        (br#"{"error":{"type":"x","message":"cut"#, "", r#"{"error":{"type":"x","message":"cut"#),
    ];
    for (body, kind, message) in table {
        let (error, _) = api_error(502, body);
        assert_eq!((error.kind.as_str(), error.message.as_str()), (kind, message));
    }
}

#[test]
fn messages_are_cut_and_hold_no_null_character() {
    let body = format!(r#"{{"error":{{"type":"t","message":"\u0000{}"}}}}"#, "ü".repeat(5000));
    let (error, _) = api_error(400, body.as_bytes());
    assert!(error.message.len() <= Fault::MESSAGE_MAX && error.message.starts_with("\u{fffd}ü"));
    let (error, _) = api_error(400, "y".repeat(60_000).as_bytes());
    assert_eq!(error.message.len(), Fault::MESSAGE_MAX);
}
