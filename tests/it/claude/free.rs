//! What is asked for free: the list of models over all its pages, and counts of tokens.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use promptmill::claude::Claude;
use promptmill::claude::http::{Auth, ClaudeSettings, HttpClaude};
use promptmill::domain::context::Size;
use promptmill::domain::ledger::CallKind;
use promptmill::domain::outcome::Failure;
use promptmill::domain::talk::Request;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use super::server::{Server, Step, answer};

const KEY: &str = "sk-ant-test-0123456789";
const LONG: Duration = Duration::from_mins(1);
const LIST: &str =
    "GET /v1/models?limit=1000&lifecycle%5B%5D=active&lifecycle%5B%5D=deprecated&lifecycle%5B%5D=retired";

pub fn claude(server: &Server) -> HttpClaude {
    HttpClaude::new(ClaudeSettings {
        base_url: server.base.clone(),
        auth: Auth::XApiKey,
        key: Some(SecretString::from(KEY)),
        key_file: None,
        version: "2026-10-21".to_owned(),
        versions: HashMap::from([("claude-x".to_owned(), "2023-06-01".to_owned())]),
        headers: Vec::new(),
        connect: LONG,
        first_event: LONG,
        idle: LONG,
        response_max: 1 << 20,
        event_max: 1 << 18,
    })
    .expect("settings that can work")
}

pub fn request() -> Request {
    let body = br#"{"model":"claude-x-20260101","max_tokens":100,"messages":[{"role":"user","content":"Hi"}],"stream":true}"#;
    Request {
        kind: CallKind::Ask,
        model: "claude-x-20260101".to_owned(),
        body: Bytes::from_static(body).into(),
        input: Size::default(),
        max_tokens: 100,
        messages: 1,
        prefilled: false,
        timeout: LONG,
        note: None,
    }
}

pub fn json(status: &str, body: &str) -> Vec<Step> {
    answer(status, &[("content-type", "application/json")], body.as_bytes())
}

fn page(ids: &[&str], more: bool) -> Vec<Step> {
    let models: Vec<String> = ids.iter().map(|id| format!(r#"{{"id":"{id}","max_tokens":5}}"#)).collect();
    let last = ids.last().expect("a page has models");
    let body = format!(r#"{{"data":[{}],"has_more":{more},"last_id":"{last}"}}"#, models.join(","));
    answer("200 OK", &[("date", "Mon, 23 Nov 2026 12:00:00 GMT")], body.as_bytes())
}

pub fn error(status: &str, message: &str) -> Vec<Step> {
    let body = format!(
        r#"{{"type":"error","error":{{"type":"invalid_request_error","message":"{message}","details":null}}}}"#
    );
    json(status, &body)
}

#[tokio::test]
async fn all_pages_of_the_models_are_listed_and_retired_ones_are_asked_for() {
    let server = Server::start(vec![page(&["a", "b"], true), page(&["c"], true), page(&["d"], false)]).await;
    let catalogue = claude(&server).models().await.expect("a list");
    assert_eq!(catalogue.len(), 4);
    for id in ["a", "b", "c", "d"] {
        assert_eq!(catalogue.find(id).and_then(|model| model.max_tokens), Some(5), "{id}");
    }
    let asked = server.requests();
    let starts = [LIST.to_owned(), format!("{LIST}&after_id=b"), format!("{LIST}&after_id=c")];
    for (asked, start) in asked.iter().zip(&starts) {
        assert!(asked.starts_with(&format!("{start} HTTP/1.1\r\n")) && asked.contains(KEY), "{asked}");
    }
    assert_eq!(asked.len(), 3);
}

#[tokio::test]
async fn the_days_that_a_model_has_left_are_counted_by_the_servers_clock() {
    let body = r#"{"data":[{"id":"m","lifecycle":"deprecated","retires_at":"2026-11-30T12:00:00Z"}]}"#;
    let date = ("date", "Mon, 23 Nov 2026 12:00:00 GMT");
    let server = Server::always(answer("200 OK", &[date], body.as_bytes())).await;
    let catalogue = claude(&server).models().await.expect("a list");
    let told = "model m is deprecated and will be retired on 2026-11-30, in 7 days";
    assert_eq!(catalogue.decline("m").as_deref(), Some(told));
}

#[tokio::test]
async fn a_server_that_refuses_to_be_asked_for_retired_models_is_asked_without() {
    for status in ["400 Bad Request", "422 Unprocessable"] {
        let refused = error(status, "lifecycle[]: Extra inputs are not permitted");
        let server = Server::start(vec![refused, page(&["a"], false)]).await;
        assert_eq!(claude(&server).models().await.expect("a list").len(), 1);
        let asked = server.requests();
        assert!(asked[1].starts_with("GET /v1/models?limit=1000 HTTP/1.1\r\n"), "{}", asked[1]);
    }
}

#[tokio::test]
async fn a_list_without_an_end_is_left_alone() {
    let server = Server::always(page(&["a"], true)).await;
    assert_eq!(
        claude(&server).models().await.expect("a list").find("a").map(|model| model.max_tokens),
        Some(Some(5))
    );
    assert_eq!(server.requests().len(), 2, "the same page again says that there is no more");
    let next = AtomicUsize::new(0);
    let server = Server::answering(move |_| {
        let id = format!("m{}", next.fetch_add(1, Ordering::Relaxed));
        page(&[&id], true)
    })
    .await;
    assert_eq!(claude(&server).models().await.expect("a list").len(), 50);
    let server = Server::always(answer("200 OK", &[], &vec![b' '; (16 << 20) + 1])).await;
    assert!(
        matches!(claude(&server).models().await, Err(Failure::Unreadable(why)) if why.contains("16777216"))
    );
}

#[tokio::test]
async fn what_is_no_list_of_models_is_a_failure_that_tells_no_key() {
    let html = answer("200 OK", &[("content-type", "text/html")], b"<html>Please log in</html>");
    let server = Server::always(html).await;
    assert!(
        matches!(claude(&server).models().await, Err(Failure::Unreadable(why)) if why.contains("log in"))
    );
    for status in ["401 X", "404 X", "500 X"] {
        let server = Server::always(error(status, &format!("not with {KEY}"))).await;
        let failure = claude(&server).models().await.expect_err("an error");
        let Failure::Api(error) = failure else { panic!("{failure:?}") };
        assert_eq!(
            (error.status.to_string().as_str(), error.message.as_str()),
            (&status[..3], "not with ***")
        );
    }
    let cut = Server::always(
        vec![Step::Write(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"data\":[".to_vec())]
            .into_iter()
            .chain([Step::Reset])
            .collect(),
    )
    .await;
    assert!(matches!(claude(&cut).models().await, Err(Failure::Lost(..))), "a cut list is not all there is");
}

#[tokio::test]
async fn a_count_sends_what_the_model_reads_and_brings_its_tokens() {
    let server = Server::always(json("200 OK", r#"{"input_tokens":14}"#)).await;
    let counted = claude(&server).count_tokens(&request(), &CancellationToken::new()).await;
    assert_eq!(counted, Ok(14));
    let sent = server.requests().remove(0);
    assert!(sent.starts_with("POST /v1/messages/count_tokens HTTP/1.1\r\n"), "{sent}");
    assert!(sent.contains("anthropic-version: 2023-06-01"), "a dated name has its model's version: {sent}");
    let body = r#"{"model":"claude-x-20260101","messages":[{"role":"user","content":"Hi"}]}"#;
    assert!(sent.ends_with(body), "{sent}");
}

#[tokio::test]
async fn a_refusal_that_names_the_count_is_a_count() {
    let count = async |script| {
        let server = Server::always(script).await;
        claude(&server).count_tokens(&request(), &CancellationToken::new()).await
    };
    let long = "prompt is too long: 200251 tokens > 200000 maximum";
    assert_eq!(count(error("400 X", long)).await, Ok(200_251));
    assert!(matches!(count(error("500 X", long)).await, Err(Failure::Api(_))));
    assert!(matches!(count(error("400 X", "no")).await, Err(Failure::Api(_))));
    assert!(matches!(count(json("200 OK", "{}")).await, Err(Failure::Unreadable(_))));
    let stopped = CancellationToken::new();
    stopped.cancel();
    let server = Server::always(vec![Step::Hang]).await;
    let counted = claude(&server).count_tokens(&request(), &stopped).await;
    assert_eq!(counted, Err(Failure::Stopped));
}
