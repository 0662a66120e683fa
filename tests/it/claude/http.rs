//! Every way in which an exchange over HTTP can end, against a server that misbehaves on purpose.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use promptmill::claude::http::{Auth, ClaudeSettings, HttpClaude, SetupError};
use promptmill::claude::{Claude, Listener};
use promptmill::domain::context::Size;
use promptmill::domain::ledger::CallKind;
use promptmill::domain::outcome::{Failure, Lost};
use promptmill::domain::reply::Exchange;
use promptmill::domain::stop::StopReason;
use promptmill::domain::talk::Request;
use secrecy::SecretString;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::server::{Server, Step, answer, chunk, head, last_chunk, stream, stream_head};

const KEY: &str = "sk-ant-test-0123456789";
const LONG: Duration = Duration::from_mins(1);
const SHORT: Duration = Duration::from_millis(50);

fn settings(base: &str) -> ClaudeSettings {
    ClaudeSettings {
        base_url: base.to_owned(),
        auth: Auth::XApiKey,
        key: Some(SecretString::from(KEY)),
        key_file: None,
        version: "2026-10-21".to_owned(),
        versions: HashMap::new(),
        headers: Vec::new(),
        connect: LONG,
        first_event: LONG,
        idle: LONG,
        response_max: 1 << 20,
        event_max: 1 << 18,
    }
}

fn request() -> Request {
    Request {
        kind: CallKind::Ask,
        model: "claude-x".to_owned(),
        body: Bytes::from_static(br#"{"stream":true}"#).into(),
        input: Size::default(),
        max_tokens: 100,
        messages: 1,
        prefilled: false,
        timeout: LONG,
        note: None,
    }
}

async fn ask_with(settings: ClaudeSettings, request: Request) -> (Exchange, usize) {
    let claude = HttpClaude::new(settings).unwrap();
    let (stop, heard) = (CancellationToken::new(), AtomicUsize::new(0));
    let on_content = || {
        heard.fetch_add(1, Ordering::Relaxed);
    };
    let exchange =
        claude.ask(&request, Listener { stop: &stop, on_content: &on_content, on_text: &|_| {} }).await;
    (exchange, heard.into_inner())
}

async fn ask(server: &Server) -> Exchange {
    ask_with(settings(&server.base), request()).await.0
}

async fn ask_script(script: Vec<Step>) -> Exchange {
    ask(&Server::always(script).await).await
}

fn unreadable(exchange: &Exchange) -> &str {
    match &exchange.end {
        Err(Failure::Unreadable(message)) => message,
        other => panic!("{other:?}"),
    }
}

fn too_large(exchange: &Exchange) -> &str {
    match &exchange.end {
        Err(Failure::TooLarge(message)) => message,
        other => panic!("{other:?}"),
    }
}

/// Cuts a recorded stream behind the n-th event.
fn events(stream: &str, count: usize) -> String {
    stream.split_inclusive("\n\n").take(count).collect()
}

fn text_stream() -> &'static str {
    super::STREAMS[0].0
}

#[tokio::test]
async fn a_recorded_stream_becomes_a_reply() {
    let server = Server::always(stream(text_stream())).await;
    let (exchange, heard) = ask_with(settings(&server.base), request()).await;
    assert_eq!(exchange.end, Ok(()));
    assert_eq!(exchange.reply.text(), super::STREAMS[0].1);
    assert_eq!((exchange.http_status, exchange.request_id.as_deref()), (Some(200), Some("req_head")));
    assert!(!exchange.reply.tail_missing && exchange.first_token.unwrap() >= exchange.sent);
    assert_eq!(heard, 1);
}

#[tokio::test]
async fn the_request_carries_path_prefix_key_version_and_headers() {
    let server = Server::always(stream(text_stream())).await;
    let mut with = settings(&format!("{}/prefix/anthropic/", server.base));
    with.versions.insert("claude-x".to_owned(), "2023-06-01".to_owned());
    with.headers = vec![
        ("Anthropic-Beta".to_owned(), SecretString::from("one")),
        ("anthropic-beta".to_owned(), SecretString::from("two")),
    ];
    ask_with(with, request()).await.0.end.unwrap();
    let sent = server.requests().remove(0);
    assert!(sent.starts_with("POST /prefix/anthropic/v1/messages HTTP/1.1\r\n"), "{sent}");
    for line in [
        "x-api-key: sk-ant-test-0123456789",
        "anthropic-version: 2023-06-01",
        "anthropic-beta: one",
        "anthropic-beta: two",
        "content-type: application/json",
        "accept: text/event-stream, application/json",
        "accept-encoding: identity",
    ] {
        assert!(sent.contains(&format!("\r\n{line}\r\n")), "{line} in {sent}");
    }
    assert!(sent.ends_with("\r\n\r\n{\"stream\":true}"), "{sent}");
}

#[tokio::test]
async fn bearer_no_version_and_a_header_of_ones_own_are_sent() {
    let server = Server::always(stream(text_stream())).await;
    let with = ClaudeSettings {
        auth: Auth::Bearer,
        version: String::new(),
        headers: vec![("user-agent".to_owned(), SecretString::from("mine"))],
        ..settings(&server.base)
    };
    ask_with(with, request()).await.0.end.unwrap();
    let sent = server.requests().remove(0);
    assert!(sent.contains("\r\nauthorization: Bearer sk-ant-test-0123456789\r\n"), "{sent}");
    assert!(sent.contains("\r\nuser-agent: mine\r\n") && !sent.contains("anthropic-version"), "{sent}");
}

#[tokio::test]
async fn user_and_password_in_the_address_become_a_header() {
    let server = Server::always(stream(text_stream())).await;
    let base = server.base.replace("http://", "http://ann:p%40ss@");
    ask_with(settings(&base), request()).await.0.end.unwrap();
    let sent = server.requests().remove(0);
    assert!(sent.contains("\r\nauthorization: Basic YW5uOnBAc3M=\r\n"), "{sent}");
}

#[tokio::test]
async fn connections_are_used_again() {
    let server = Server::always(stream(text_stream())).await;
    let claude = HttpClaude::new(settings(&server.base)).unwrap();
    let stop = CancellationToken::new();
    for _ in 0..5 {
        let listener = Listener { stop: &stop, on_content: &|| {}, on_text: &|_| {} };
        claude.ask(&request(), listener).await.end.unwrap();
    }
    assert_eq!((server.requests().len(), server.connections()), (5, 1));
}

#[tokio::test]
async fn a_body_left_open_behind_message_stop_holds_nobody() {
    let script = vec![stream_head(), chunk(text_stream().as_bytes()), Step::Hang];
    let exchange = ask_script(script).await;
    assert_eq!((&exchange.end, exchange.reply.tail_missing), (&Ok(()), false));
}

#[tokio::test]
async fn a_server_that_ignores_stream_is_understood() {
    let json = br#"  {"id":"m","content":[{"type":"text","text":"hi"}],"stop_reason":"end_turn","usage":{"input_tokens":3,"output_tokens":2}}"#;
    for kind in ["application/json", "text/event-stream", "text/plain"] {
        let server = Server::always(answer("200 OK", &[("content-type", kind)], json)).await;
        let (exchange, heard) = ask_with(settings(&server.base), request()).await;
        assert_eq!((&exchange.end, heard), (&Ok(()), 1));
        assert_eq!((exchange.reply.text().as_str(), exchange.reply.usage.input), ("hi", 3));
    }
    let unstopped = br#"{"content":[{"type":"text","text":"hi"}],"stop_reason":null}"#;
    let exchange = ask_script(answer("200 OK", &[], unstopped)).await;
    assert_eq!((&exchange.end, exchange.reply.text().as_str()), (&Err(Failure::Unended), "hi"));
    let error = br#"{"type":"error","error":{"type":"overloaded_error","message":"m"},"request_id":"r"}"#;
    let exchange = ask_script(answer("200 OK", &[], error)).await;
    assert!(matches!(&exchange.end, Err(Failure::Api(api)) if api.kind == "overloaded_error"));
    assert_eq!(exchange.request_id.as_deref(), Some("r"));
}

#[tokio::test]
async fn error_statuses_carry_what_the_server_said() {
    let body = br#"{"type":"error","error":{"type":"rate_limit_error","message":"slow"},"request_id":"r1"}"#;
    let headers = [("retry-after", "7"), ("x-should-retry", "true"), ("request-id", "r2")];
    let exchange = ask_script(answer("429 Too Many", &headers, body)).await;
    let Err(Failure::Api(error)) = &exchange.end else { panic!("{:?}", exchange.end) };
    assert_eq!(
        (error.status, error.kind.as_str(), error.message.as_str()),
        (429, "rate_limit_error", "slow")
    );
    assert_eq!((error.retry_after, error.should_retry), (Some(Duration::from_secs(7)), Some(true)));
    assert_eq!((exchange.http_status, exchange.request_id.as_deref()), (Some(429), Some("r2")));
    assert_eq!(ask_script(answer("500 No", &[], body)).await.request_id.as_deref(), Some("r1"));
}

#[tokio::test]
async fn rate_limits_are_told_whatever_became_of_the_call() {
    let limit = [("anthropic-ratelimit-requests-limit", "50"), ("content-length", "9")];
    for status in ["200 OK", "429 Too Many"] {
        let cut = vec![head(status, &limit), Step::Write(b"{".to_vec()), Step::Reset];
        let exchange = ask_script(cut).await;
        assert!(exchange.end.is_err());
        assert_eq!(exchange.limits.unwrap().each.requests.limit, Some(50), "{status}");
        assert!(exchange.limits.unwrap().at >= exchange.sent);
    }
    assert_eq!(ask_script(answer("500 No", &[], b"")).await.limits, None);
}

#[tokio::test]
async fn error_bodies_that_are_html_empty_huge_or_cut_classify_by_status() {
    let huge = "x".repeat(500_000);
    for (status, body) in [(403, "<html>no</html>"), (502, ""), (413, huge.as_str())] {
        let exchange = ask_script(answer(&format!("{status} X"), &[], body.as_bytes())).await;
        let Err(Failure::Api(error)) = &exchange.end else { panic!("{:?}", exchange.end) };
        assert_eq!((error.status, error.kind.as_str()), (status, ""));
        assert!(!error.message.is_empty() && error.message.len() <= 4096);
    }
    let cut = vec![head("529 X", &[("content-length", "100")]), Step::Write(b"over".to_vec()), Step::Reset];
    assert!(matches!(ask_script(cut).await.end, Err(Failure::Api(error)) if error.status == 529));
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let server = Server::always(answer("302 Found", &[("location", "http://127.0.0.1:1/")], b"")).await;
    let exchange = ask(&server).await;
    assert!(unreadable(&exchange).contains("302"));
    assert_eq!((server.requests().len(), exchange.http_status), (1, Some(302)));
}

#[tokio::test]
async fn a_200_that_is_no_reply_is_unreadable_and_quoted() {
    for (kind, body, expected) in [
        ("text/html", "<html><h1>Please log in</h1>", "Please log in"),
        ("application/json", r#"{"choices":[]}"#, "choices"),
        ("application/json", "{\"content\": [", "{\"content\": ["),
        ("text/plain", "Bad gateway", "Bad gateway"),
        ("text/event-stream", "data: not JSON\n\n", "not a JSON object"),
        ("text/event-stream", "event: nothing\n\n", "before its first event"),
    ] {
        let exchange = ask_script(answer("200 OK", &[("content-type", kind)], body.as_bytes())).await;
        assert!(unreadable(&exchange).contains(expected), "{:?}", exchange.end);
    }
    let exchange = ask_script(answer("200 OK", &[("content-encoding", "gzip")], b"\x1f\x8b")).await;
    assert!(unreadable(&exchange).contains("gzip"));
    assert_eq!(ask_script(answer("200 OK", &[], b"")).await.end, Err(Failure::Unended));
}

#[tokio::test]
async fn what_is_no_http_is_unreadable_or_lost() {
    let exchange = ask_script(vec![Step::Write(b"SSH-2.0-OpenSSH_9\r\n\r\n".to_vec()), Step::Hang]).await;
    assert!(unreadable(&exchange).contains("did not answer in HTTP"));
    let absurd = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1 << 20));
    let exchange = ask_script(vec![Step::Write(absurd.into_bytes()), Step::Hang]).await;
    assert!(matches!(exchange.end, Err(Failure::Unreadable(_) | Failure::Lost(..))), "{:?}", exchange.end);
}

#[tokio::test]
async fn garbage_in_mid_stream_keeps_what_came_before() {
    let body = events(text_stream(), 4) + "data: {\"type\":\"content_block_de\n\n";
    let exchange = ask_script(stream(&body)).await;
    assert!(unreadable(&exchange).contains("not a JSON object"));
    assert_eq!(exchange.reply.text(), "Grüße, \"Welt\"!\n");
    assert_eq!(exchange.reply.usage.input, 25);
}

#[tokio::test]
async fn an_error_event_behind_a_200_is_the_apis_and_keeps_the_text() {
    let error = r#"data: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
    for tail in ["\n\n", ""] {
        let body = format!("{}event: error\n{error}{tail}", events(text_stream(), 4));
        let exchange = ask_script(stream(&body)).await;
        let Err(Failure::Api(api)) = &exchange.end else { panic!("{:?}", exchange.end) };
        assert_eq!((api.status, api.kind.as_str()), (200, "overloaded_error"));
        assert_eq!(exchange.reply.text(), "Grüße, \"Welt\"!\n");
    }
}

#[tokio::test]
async fn streams_over_a_limit_are_refused_by_its_name() {
    let endless = "data: {\"type\":\"ping\"}\n\n".repeat(60_000);
    let exchange = ask_script(stream(&endless)).await;
    assert!(too_large(&exchange).contains("api.response_max_bytes = 1048576"));
    let line = events(text_stream(), 4) + "data: " + &"x".repeat(300_000);
    let exchange = ask_script(stream(&line)).await;
    assert!(too_large(&exchange).contains("api.event_max_bytes = 262144"));
    assert!(exchange.reply.text().starts_with("Grüße"));
    let json = format!("{{\"content\":\"{}\"}}", "x".repeat(2 << 20));
    let exchange = ask_script(answer("200 OK", &[], json.as_bytes())).await;
    assert!(too_large(&exchange).contains("response_max"));
}

#[tokio::test]
async fn an_end_behind_the_stop_reason_is_an_answer_and_before_it_is_none() {
    for end in [Step::Reset, Step::Close, last_chunk()] {
        let body = events(text_stream(), 8);
        let exchange = ask_script(vec![stream_head(), chunk(body.as_bytes()), end.clone()]).await;
        assert_eq!((&exchange.end, exchange.reply.tail_missing), (&Ok(()), true));
        assert_eq!(exchange.reply.text(), super::STREAMS[0].1);
        let body = events(text_stream(), 7);
        let exchange = ask_script(vec![stream_head(), chunk(body.as_bytes()), end]).await;
        assert!(matches!(exchange.end, Err(Failure::Unended | Failure::Lost(Lost::Reset, _))));
        assert_eq!(exchange.reply.text(), super::STREAMS[0].1);
        // 1 by the server's count; more by what arrived.
        assert!(exchange.reply.usage.output > 5);
    }
}

#[tokio::test]
async fn message_stop_without_a_stop_reason_is_no_end() {
    let body = events(text_stream(), 7) + "data: {\"type\":\"message_stop\"}\n\n";
    assert_eq!(ask_script(stream(&body)).await.end, Err(Failure::Unended));
}

#[tokio::test]
async fn a_stream_cut_at_any_byte_is_whole_or_an_error() {
    let body = text_stream().as_bytes();
    let close = head("200 OK", &[("content-type", "text/event-stream"), ("connection", "close")]);
    let scripts: Vec<Vec<Step>> = (0..=body.len())
        .map(|end| vec![close.clone(), Step::Write(body[..end].to_vec()), Step::Close])
        .collect();
    let server = Server::start(scripts).await;
    let claude = HttpClaude::new(settings(&server.base)).unwrap();
    let stop = CancellationToken::new();
    let mut answered = 0;
    for end in 0..=body.len() {
        let listener = Listener { stop: &stop, on_content: &|| {}, on_text: &|_| {} };
        let exchange = claude.ask(&request(), listener).await;
        match &exchange.end {
            Ok(()) => {
                assert_eq!(exchange.reply.text(), super::STREAMS[0].1, "cut at {end}");
                assert_eq!(exchange.reply.stop, Some(StopReason::EndTurn));
                answered += 1;
            }
            Err(Failure::Unended | Failure::Unreadable(_) | Failure::Lost(Lost::Reset, _)) => {
                assert_eq!(answered, 0, "cut at {end} after an earlier cut was whole");
            }
            other => panic!("cut at {end}: {other:?}"),
        }
    }
    assert!(answered > 100);
}

#[tokio::test]
async fn refused_connections_and_unknown_names_are_unsent() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (exchange, _) = ask_with(settings(&format!("http://{address}")), request()).await;
    let Err(Failure::Unsent(message)) = &exchange.end else { panic!("{:?}", exchange.end) };
    assert!(message.contains(&address.to_string()), "{message}");
    assert_eq!(exchange.http_status, None);
    // A TLS handshake with something that speaks none.
    let server = Server::always(vec![Step::Close]).await;
    let talker = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://{}", talker.local_addr().unwrap());
    let talking = async {
        let (mut socket, _) = talker.accept().await.unwrap();
        socket.write_all(b"HTTP/1.1 400 Bad\r\n\r\n").await.unwrap();
    };
    let ((exchange, _), ()) = tokio::join!(ask_with(settings(&base), request()), talking);
    assert!(matches!(exchange.end, Err(Failure::Unsent(_))), "{:?}", exchange.end);
    // Accepted and broken is not the same: the request may have been read.
    assert!(matches!(ask(&server).await.end, Err(Failure::Lost(Lost::Reset, _))));
}

#[tokio::test]
async fn a_connection_that_is_never_made_whole_is_unsent() {
    let talker = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://{}", talker.local_addr().unwrap());
    let with = ClaudeSettings { connect: SHORT, ..settings(&base) };
    let (exchange, _) = ask_with(with, request()).await;
    assert!(matches!(exchange.end, Err(Failure::Unsent(_))), "{:?}", exchange.end);
}

#[tokio::test]
async fn every_time_limit_ends_the_call_and_keeps_what_came() {
    let limit = |which: Lost, exchange: &Exchange| match &exchange.end {
        Err(Failure::Lost(lost, message)) => {
            assert_eq!(*lost, which);
            assert!(message.contains("50ms"), "{message}");
        }
        other => panic!("{other:?}"),
    };
    let silent = Server::always(vec![Step::Hang]).await;
    let first = ClaudeSettings { first_event: SHORT, ..settings(&silent.base) };
    limit(Lost::FirstEvent, &ask_with(first, request()).await.0);
    limit(Lost::Total, &ask_with(settings(&silent.base), Request { timeout: SHORT, ..request() }).await.0);

    let comments = Server::always(vec![stream_head(), chunk(b": wait\n\n"), Step::Hang]).await;
    let first = ClaudeSettings { first_event: SHORT, ..settings(&comments.base) };
    limit(Lost::FirstEvent, &ask_with(first, request()).await.0);

    let begun = events(text_stream(), 4);
    let stuck = Server::always(vec![stream_head(), chunk(begun.as_bytes()), Step::Hang]).await;
    let idle = ClaudeSettings { idle: SHORT, ..settings(&stuck.base) };
    let (exchange, heard) = ask_with(idle, request()).await;
    limit(Lost::Idle, &exchange);
    assert_eq!((exchange.reply.text().as_str(), heard), ("Grüße, \"Welt\"!\n", 1));
    limit(Lost::Total, &ask_with(settings(&stuck.base), Request { timeout: SHORT, ..request() }).await.0);
}

#[tokio::test]
async fn limits_longer_than_time_itself_hold() {
    let server = Server::always(stream(text_stream())).await;
    let max = Duration::MAX;
    let with = ClaudeSettings { connect: LONG, first_event: max, idle: max, ..settings(&server.base) };
    let request = Request { timeout: max, ..request() };
    assert_eq!(ask_with(with, request).await.0.end, Ok(()));
}

#[tokio::test]
async fn hanging_up_gives_what_had_arrived() {
    let said = Arc::new(Notify::new());
    let begun = events(text_stream(), 4);
    let server = Server::always(vec![stream_head(), chunk(begun.as_bytes()), Step::Hang]).await;
    let claude = HttpClaude::new(settings(&server.base)).unwrap();
    let stop = CancellationToken::new();
    let on_content = || said.notify_one();
    let request = request();
    let asking = claude.ask(&request, Listener { stop: &stop, on_content: &on_content, on_text: &|_| {} });
    let hanging_up = async {
        said.notified().await;
        stop.cancel();
    };
    let (exchange, ()) = tokio::join!(asking, hanging_up);
    assert_eq!(exchange.end, Err(Failure::Stopped));
    assert_eq!(exchange.reply.text(), "Grüße, \"Welt\"!\n");
    // Before anything was sent.
    let exchange =
        claude.ask(&request, Listener { stop: &stop, on_content: &on_content, on_text: &|_| {} }).await;
    assert_eq!((exchange.end, server.requests().len()), (Err(Failure::Stopped), 1));
}

#[tokio::test]
async fn content_is_told_when_it_comes_and_only_once() {
    let go = Arc::new(Notify::new());
    let (first, rest) = text_stream().split_at(events(text_stream(), 2).len());
    let script = vec![
        stream_head(),
        chunk(first.as_bytes()),
        Step::Wait(Arc::clone(&go)),
        chunk(rest.as_bytes()),
        last_chunk(),
    ];
    let server = Server::always(script).await;
    // The server goes on only once it was told: a late call would hang until the limit.
    let claude = HttpClaude::new(settings(&server.base)).unwrap();
    let (stop, heard) = (CancellationToken::new(), AtomicUsize::new(0));
    let on_content = || {
        heard.fetch_add(1, Ordering::Relaxed);
        go.notify_one();
    };
    let exchange =
        claude.ask(&request(), Listener { stop: &stop, on_content: &on_content, on_text: &|_| {} }).await;
    assert_eq!((exchange.end, heard.into_inner()), (Ok(()), 1));
}

#[tokio::test]
async fn no_failure_tells_the_key() {
    let echo = format!("your key {KEY} and header hush-hush-hush");
    let json = format!(r#"{{"error":{{"type":"authentication_error","message":"{echo}"}}}}"#);
    let page = format!("<html>{echo}</html>");
    for script in [
        answer("401 X", &[], json.as_bytes()),
        answer("401 X", &[], echo.as_bytes()),
        answer("200 OK", &[], page.as_bytes()),
        stream(&format!("data: {json}\n\n")),
    ] {
        let server = Server::always(script).await;
        let base = server.base.replace("http://", "http://ann:swordfish@");
        let headers = vec![("x-extra".to_owned(), SecretString::from("hush-hush-hush"))];
        let (exchange, _) = ask_with(ClaudeSettings { headers, ..settings(&base) }, request()).await;
        let shown = format!("{:?}", exchange.end);
        assert!(shown.contains("***"), "{shown}");
        assert!(!shown.contains(KEY) && !shown.contains("hush") && !shown.contains("swordfish"), "{shown}");
    }
    let with = settings("http://ann:swordfish@127.0.0.1:1");
    let shown =
        format!("{:?} {:?}", HttpClaude::new(with.clone()).unwrap(), ask_with(with, request()).await.0);
    assert!(!shown.contains(KEY), "{shown}");
    assert!(!shown.contains("swordfish"), "{shown}");
}

#[tokio::test]
async fn the_key_is_checked_for_free() {
    let good = Server::always(answer("200 OK", &[], br#"{"data":[]}"#)).await;
    let claude = HttpClaude::new(settings(&format!("{}/p", good.base))).unwrap();
    assert_eq!(claude.check().await, Ok(()));
    let sent = good.requests().remove(0);
    assert!(sent.starts_with("GET /p/v1/models?limit=1 HTTP/1.1\r\n") && sent.contains(KEY), "{sent}");
    let bad = Server::always(answer("401 X", &[], b"{}")).await;
    let end = HttpClaude::new(settings(&bad.base)).unwrap().check().await;
    assert!(matches!(end, Err(Failure::Api(error)) if error.status == 401));
    let portal = Server::always(answer("200 OK", &[], b"<html>")).await;
    let end = HttpClaude::new(settings(&portal.base)).unwrap().check().await;
    assert!(matches!(end, Err(Failure::Unreadable(_))));
}

#[tokio::test]
async fn the_key_file_is_read_again() {
    let server = Server::always(stream(text_stream())).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, "first-key\n").unwrap();
    let with = ClaudeSettings { key: None, key_file: Some(path.clone()), ..settings(&server.base) };
    let claude = HttpClaude::new(with).unwrap();
    let first = claude.fingerprint();
    assert_eq!(first, "9e24b553");
    assert!(!claude.reload_key());
    std::fs::write(&path, "second-key\r\n").unwrap();
    assert!(claude.reload_key());
    assert_ne!(claude.fingerprint(), first);
    // What cannot be used does not replace what can.
    for broken in ["", "two words\n", "tab\tkey", "new\nline\n", "kéy", "\u{7}key"] {
        std::fs::write(&path, broken).unwrap();
        assert!(!claude.reload_key(), "{broken:?}");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(!claude.reload_key());
    let stop = CancellationToken::new();
    claude.ask(&request(), Listener { stop: &stop, on_content: &|| {}, on_text: &|_| {} }).await.end.unwrap();
    assert!(server.requests()[0].contains("\r\nx-api-key: second-key\r\n"));
}

#[test]
fn settings_that_cannot_work_are_refused_in_words_without_secrets() {
    let refused = |change: &dyn Fn(&mut ClaudeSettings)| {
        let mut with = settings("http://127.0.0.1:1");
        change(&mut with);
        HttpClaude::new(with).unwrap_err()
    };
    for base in ["", "api.anthropic.com", "ftp://x", "http://", "http://a:secret@", "http://h/?q=secret"] {
        let err = refused(&|with| with.base_url = base.to_owned());
        assert!(matches!(err, SetupError::BaseUrl(_)), "{base}: {err}");
        assert!(err.to_string().contains("api.base_url") && !err.to_string().contains("secret"), "{err}");
    }
    for key in ["", "two secret", "secret\nsecond", "sécret"] {
        let err = refused(&|with| with.key = Some(SecretString::from(key)));
        assert!(matches!(err, SetupError::Key(_)) && !err.to_string().contains("ecret"), "{err}");
    }
    let missing = refused(&|with| {
        with.key = None;
        with.key_file = Some("no/such/file".into());
    });
    assert!(missing.to_string().contains("no/such/file"), "{missing}");
    for (name, value) in [("bad name", "x"), ("", "x"), ("x", "secret\n\u{1}y"), ("content-length", "5")] {
        let err = refused(&|with| with.headers = vec![(name.to_owned(), SecretString::from(value))]);
        assert!(matches!(err, SetupError::Header(..)) && !err.to_string().contains("secret"), "{err}");
    }
    let err = refused(&|with| with.version = "a\nb".to_owned());
    assert!(matches!(err, SetupError::Version(_)), "{err}");
}

#[test]
fn no_key_is_a_key_called_none() {
    let with = ClaudeSettings { key: None, ..settings("http://127.0.0.1:1") };
    assert_eq!(HttpClaude::new(with).unwrap().fingerprint(), "none");
}
