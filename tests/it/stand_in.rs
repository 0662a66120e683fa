//! The stand-in over real HTTP: every marker does what its documentation says, what is handed out
//! adds up, and an answer that is cut and continued is the whole answer.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

mod cache;
mod shape;
mod tools;

use std::collections::BTreeSet;
use std::sync::Once;
use std::time::{Duration, Instant};

use promptmill::stand_in::{Options, Running, StandIn, text};
use serde_json::{Value, json};

const NEW: &str = "claude-opus-5-5";
const OLD: &str = "claude-haiku-4-5";

/// What came back.
#[derive(Debug, Default)]
struct Heard {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Vec<u8>,
    /// The body ended in the middle.
    dropped: bool,
    events: Vec<(String, Value)>,
}

impl Heard {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn sentence(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }

    fn delta(&self, kind: &str, field: &str) -> String {
        let deltas = self.events.iter().map(|event| &event.1["delta"]);
        deltas.filter(|delta| delta["type"] == kind).map(|delta| delta[field].as_str().unwrap()).collect()
    }

    fn text(&self) -> String {
        self.delta("text_delta", "text")
    }

    fn end(&self) -> &Value {
        &self.events.iter().rfind(|event| event.0 == "message_delta").unwrap().1
    }

    fn stop(&self) -> &str {
        self.end()["delta"]["stop_reason"].as_str().unwrap()
    }

    fn output(&self) -> u64 {
        self.end()["usage"]["output_tokens"].as_u64().unwrap()
    }

    fn names(&self) -> Vec<&str> {
        self.events.iter().map(|event| event.0.as_str()).collect()
    }
}

pub fn client() -> reqwest::Client {
    builder().build().unwrap()
}

/// Returns a client that shows a redirect instead of following it.
pub fn client_without_redirects() -> reqwest::Client {
    builder().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

fn builder() -> reqwest::ClientBuilder {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    reqwest::Client::builder().tls_certs_only([]).no_proxy()
}

async fn start() -> Running {
    StandIn::start(Options::default()).await.unwrap()
}

fn body(model: &str, max_tokens: u64, messages: &Value) -> Value {
    json!({ "model": model, "max_tokens": max_tokens, "messages": messages, "stream": true })
}

async fn post_with(running: &Running, body: &Value, headers: &[(&'static str, &str)]) -> Heard {
    let mut request = client().post(format!("{}/v1/messages", running.url())).body(body.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    listen(request.send().await.unwrap()).await
}

async fn post(running: &Running, body: &Value) -> Heard {
    post_with(running, body, &[("x-api-key", "any"), ("anthropic-version", "2026-10-21")]).await
}

async fn ask(running: &Running, prompt: &str, max_tokens: u64) -> Heard {
    post(running, &body(NEW, max_tokens, &json!([{ "role": "user", "content": prompt }]))).await
}

async fn listen(mut response: reqwest::Response) -> Heard {
    let mut heard =
        Heard { status: response.status().as_u16(), headers: response.headers().clone(), ..Heard::default() };
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => heard.body.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(_) => {
                heard.dropped = true;
                break;
            }
        }
    }
    heard.events = events(&String::from_utf8_lossy(&heard.body));
    heard
}

fn events(body: &str) -> Vec<(String, Value)> {
    let body = body.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let datas =
        body.split("\n\n").filter_map(|event| event.lines().find_map(|line| line.strip_prefix("data: ")));
    let values = datas.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    values.map(|value| (value["type"].as_str().unwrap_or("").to_owned(), value)).collect()
}

#[tokio::test]
async fn an_answer_is_the_text_of_its_prompt_and_its_usage_adds_up() {
    let running = start().await;
    let prompt = "Write something. [[tokens 300]]";
    let heard = ask(&running, prompt, 1000).await;
    assert_eq!(heard.status, 200);
    assert_eq!(heard.text(), text(prompt, 300));
    assert_eq!((heard.stop(), heard.output()), ("end_turn", 300));
    let start = &heard.events[0].1["message"];
    assert_eq!(start["model"], NEW);
    assert_eq!(start["stop_reason"], Value::Null);
    assert_eq!(start["usage"]["input_tokens"], heard.end()["usage"]["input_tokens"]);
    assert_eq!(heard.names()[..3], ["message_start", "content_block_start", "ping"]);
    assert!(heard.names().ends_with(&["content_block_stop", "message_delta", "message_stop"]));
    let counts = running.counts();
    assert_eq!((counts.total, counts.output_tokens), (1, 300));
    assert_eq!(counts.input_tokens, start["usage"]["input_tokens"].as_u64().unwrap());
    assert_eq!(counts.calls[0].request_id, heard.header("request-id"));
    assert_eq!(counts.calls[0].answer, "end_turn");
}

#[tokio::test]
async fn without_markers_the_answer_is_short_and_its_own_for_each_prompt() {
    let running = start().await;
    let (one, two) = (ask(&running, "One?", 1000).await, ask(&running, "Two?", 1000).await);
    assert_eq!(one.text().split_whitespace().count(), 40);
    assert_ne!(one.text(), two.text());
    assert_eq!(ask(&running, "One?", 1000).await.text(), one.text());
}

#[tokio::test]
async fn without_stream_the_answer_is_one_message() {
    let running = start().await;
    let prompt = "[[words 12]] [[thinking 5]]";
    let mut body = body(NEW, 1000, &json!([{ "role": "user", "content": prompt }]));
    body["stream"] = json!(false);
    let heard = post(&running, &body).await;
    let message = heard.json();
    assert_eq!(heard.header("content-type"), "application/json");
    assert_eq!(message["content"][0]["type"], "thinking");
    assert_eq!(message["content"][1]["text"].as_str().unwrap().split_whitespace().count(), 12);
    assert_eq!(message["stop_reason"], "end_turn");
    assert_eq!(running.counts().output_tokens, message["usage"]["output_tokens"].as_u64().unwrap());
}

/// Cuts and continues until the answer ends; returns the joined text and the number of calls.
async fn continued(
    running: &Running,
    prompt: &str,
    room: u64,
    join: fn(&str, &str, &str) -> String,
) -> (String, usize) {
    let mut messages = json!([{ "role": "user", "content": prompt }]);
    let mut heard = post(running, &body(NEW, room, &messages)).await;
    let (mut said, mut calls) = (heard.text(), 1);
    while heard.stop() == "max_tokens" {
        assert_eq!(heard.output(), room, "max_tokens is used to the last token");
        let text = said.trim_end();
        let anchor = &text[text.ceil_char_boundary(text.len().saturating_sub(60))..];
        messages = json!([
            { "role": "user", "content": prompt },
            { "role": "assistant", "content": text },
            { "role": "user", "content": format!("You were cut off. Repeat exactly this, then go on: <<<{anchor}>>>") },
        ]);
        heard = post(running, &body(NEW, room, &messages)).await;
        said = join(text, anchor, &heard.text());
        calls += 1;
    }
    assert_eq!(running.counts().lost_places, 0);
    (said, calls)
}

#[tokio::test]
async fn a_cut_answer_that_repeats_the_anchor_is_whole_when_the_anchor_is_dropped() {
    let running = start().await;
    let prompt = "[[tokens 1500]]";
    let join =
        |said: &str, anchor: &str, reply: &str| format!("{said}{}", reply.strip_prefix(anchor).unwrap());
    let (said, calls) = continued(&running, prompt, 200, join).await;
    assert_eq!(said, text(prompt, 1500));
    assert!(calls > 7);
    assert_eq!(running.counts().continued, calls as u64 - 1);
}

#[tokio::test]
async fn a_cut_answer_that_goes_on_exactly_is_whole_when_it_is_appended() {
    let running = start().await;
    let prompt = "[[tokens 1500]] [[continue exact]]";
    let join = |said: &str, _: &str, reply: &str| format!("{said}{reply}");
    assert_eq!(continued(&running, prompt, 200, join).await, (text(prompt, 1500), 8));
}

#[tokio::test]
async fn a_cut_answer_that_repeats_something_else_is_whole_when_the_overlap_is_dropped() {
    let running = start().await;
    let prompt = "[[tokens 1500]] [[continue other]]";
    let join = |said: &str, anchor: &str, reply: &str| {
        assert!(!reply.starts_with(anchor));
        let overlap =
            (24..reply.len()).rev().find(|&n| reply.is_char_boundary(n) && said.ends_with(&reply[..n]));
        format!("{said}{}", &reply[overlap.unwrap()..])
    };
    assert_eq!(continued(&running, prompt, 200, join).await.0, text(prompt, 1500));
}

#[tokio::test]
async fn an_answer_joined_wrongly_is_counted() {
    let running = start().await;
    let messages = json!([
        { "role": "user", "content": "[[tokens 200]]" },
        { "role": "assistant", "content": "this was never said" },
        { "role": "user", "content": "Go on after <<<never said>>>" },
    ]);
    post(&running, &body(NEW, 100, &messages)).await;
    assert_eq!(running.counts().lost_places, 1);
}

#[tokio::test]
async fn prefill_goes_on_for_old_models_and_is_refused_by_new_ones() {
    let running = start().await;
    let prompt = "[[tokens 120]]";
    let whole = text(prompt, 120);
    let half = whole[..whole.floor_char_boundary(300)].trim_end();
    let messages = json!([{ "role": "user", "content": prompt }, { "role": "assistant", "content": half }]);
    let heard = post(&running, &body(OLD, 1000, &messages)).await;
    assert_eq!(format!("{half}{}", heard.text()), whole);
    for model in [NEW, "claude-sonnet-4-6", "claude-opus-4-6"] {
        let refused = post(&running, &body(model, 1000, &messages)).await;
        assert_eq!(refused.status, 400);
        assert_eq!(
            refused.sentence(),
            "This model does not support assistant message prefill. The conversation must end with a user message."
        );
    }
    let blank = json!([{ "role": "user", "content": prompt }, { "role": "assistant", "content": "So " }]);
    assert!(
        post(&running, &body(OLD, 10, &blank))
            .await
            .sentence()
            .ends_with("cannot end with trailing whitespace")
    );
}

#[tokio::test]
async fn thinking_comes_first_and_eats_max_tokens() {
    let running = start().await;
    let heard = ask(&running, "[[thinking 30]] [[tokens 30]]", 40).await;
    assert_eq!(heard.delta("text_delta", "text"), text("[[thinking 30]] [[tokens 30]]", 10));
    assert!(!heard.delta("signature_delta", "signature").is_empty());
    assert_eq!(heard.end()["usage"]["output_tokens_details"]["thinking_tokens"], 30);
    let cut = ask(&running, "[[thinking 30]]", 20).await;
    assert_eq!((cut.stop(), cut.text().as_str()), ("max_tokens", ""));
    assert_eq!(
        cut.delta("signature_delta", "signature"),
        "",
        "a thinking block that was cut has no signature"
    );
}

#[tokio::test]
async fn every_stop_reason_can_be_had() {
    let running = start().await;
    for reason in ["refusal", "stop_sequence", "model_context_window_exceeded", "something_new"] {
        let heard = ask(&running, &format!("[[stop {reason}]]"), 1000).await;
        assert_eq!(heard.stop(), reason);
    }
    let refused = ask(&running, "[[stop refusal category=bio]] [[empty]]", 1000).await;
    assert_eq!(refused.end()["delta"]["stop_details"]["category"], "bio");
    assert_eq!(refused.text(), "");
    let whole = ask(&running, "Water?", 1000).await.text();
    let word = whole.split_whitespace().nth(9).unwrap();
    let mut stopped = body(NEW, 1000, &json!([{ "role": "user", "content": "Water?" }]));
    stopped["stop_sequences"] = json!(["never said", word]);
    let heard = post(&running, &stopped).await;
    assert_eq!((heard.stop(), heard.end()["delta"]["stop_sequence"].as_str()), ("stop_sequence", Some(word)));
    assert_eq!(heard.text(), whole[..whole.find(word).unwrap()]);
}

#[tokio::test]
async fn a_turn_that_pauses_is_sent_back_as_it_came_until_it_ends() {
    let running = start().await;
    let mut messages = json!([{ "role": "user", "content": "[[stop pause_turn 2]]" }]);
    let mut stops = Vec::new();
    for _ in 0..3 {
        let mut body = body(NEW, 1000, &messages);
        body["stream"] = json!(false);
        let message = post(&running, &body).await.json();
        stops.push(message["stop_reason"].as_str().unwrap().to_owned());
        messages.as_array_mut().unwrap().push(json!({ "role": "assistant", "content": message["content"] }));
    }
    assert_eq!(stops, ["pause_turn", "pause_turn", "end_turn"]);
}

#[tokio::test]
async fn tools_are_called_in_pieces_and_their_results_are_demanded() {
    let running = start().await;
    let question = json!({ "role": "user", "content": "[[stop tool_use 2]]" });
    let mut request = body(NEW, 1000, &json!([question]));
    request["tools"] = json!([{ "name": "find", "input_schema": { "type": "object" } }]);
    let heard = post(&running, &request).await;
    assert_eq!(heard.stop(), "tool_use");
    assert!(heard.events.iter().filter(|event| event.1["content_block"]["name"] == "find").count() == 2);
    let cut = post(&running, &body(NEW, 10, &json!([question]))).await;
    assert_eq!(cut.stop(), "max_tokens");
    assert!(serde_json::from_str::<Value>(&cut.delta("input_json_delta", "partial_json")).is_err());

    request["stream"] = json!(false);
    let content = post(&running, &request).await.json()["content"].clone();
    assert!(content[1]["input"]["query"].is_string());
    let results: Vec<Value> = [1, 2]
        .iter()
        .map(|&at| json!({ "type": "tool_result", "tool_use_id": content[at]["id"], "content": "42" }))
        .collect();
    request["messages"] = json!([question, { "role": "assistant", "content": content }, { "role": "user", "content": results }]);
    assert_eq!(post(&running, &request).await.json()["stop_reason"], "end_turn");
    request["messages"][2]["content"].as_array_mut().unwrap().pop();
    assert!(
        post(&running, &request).await.sentence().contains("without `tool_result` blocks immediately after")
    );
}

#[tokio::test]
async fn faults_happen_as_often_as_they_say_and_then_the_answer_comes() {
    let running = start().await;
    let prompt = "[[error 529 x2]] [[error 429 retry-after=2 x1]] [[empty once]] [[tokens 60]]";
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(ask(&running, prompt, 1000).await);
    }
    let told: Vec<u16> = statuses.iter().map(|heard| heard.status).collect();
    assert_eq!(told, [529, 529, 429, 200, 200]);
    assert_eq!(statuses[2].header("retry-after"), "2");
    assert_eq!((statuses[3].text().as_str(), statuses[3].stop()), ("", "end_turn"));
    assert_eq!(statuses[4].text(), text(prompt, 60));
    let error = statuses[0].json();
    assert_eq!(
        error["error"],
        json!({ "details": null, "type": "overloaded_error", "message": "Overloaded" })
    );
    assert_eq!(error["request_id"], statuses[0].header("request-id"));
    let counts = running.counts();
    assert_eq!(counts.by_marker["error 529"], 2);
    assert_eq!((counts.by_status[&529], counts.by_status[&429], counts.by_status[&200]), (2, 1, 2));
    running.reset();
    assert_eq!(ask(&running, prompt, 1000).await.status, 529);
    assert_eq!(running.counts().total, 1);
}

#[tokio::test]
async fn a_fault_may_wait_for_a_later_call() {
    let running = start().await;
    let prompt = "[[error 500 skip=1 x1]]";
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(ask(&running, prompt, 1000).await.status);
    }
    assert_eq!(statuses, [200, 500, 200]);
}

#[tokio::test]
async fn errors_have_the_types_codes_and_shapes_of_the_api() {
    let running = start().await;
    let types = [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (408, "timeout_error"),
        (409, "conflict_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ];
    for (status, kind) in types {
        let heard = ask(&running, &format!("[[error {status}]]"), 10).await;
        assert_eq!((heard.status, heard.json()["error"]["type"].as_str()), (status, Some(kind)));
        assert_eq!(heard.header("retry-after"), "");
    }
    let capped = ask(&running, "[[error enforced_spend_limit_reached]]", 10).await;
    assert_eq!(capped.status, 429);
    assert_eq!(capped.json()["error"]["details"]["error_code"], "enforced_spend_limit_reached");
    assert!(
        ask(&running, "[[error credit]]", 10).await.sentence().starts_with("Your credit balance is too low")
    );
    let page = ask(&running, "[[error 502 html]]", 10).await;
    assert_eq!((page.status, page.header("content-type")), (502, "text/html"));
    assert!(page.body.starts_with(b"<html>"));
    let odd = ask(&running, "[[error 503 should-retry=false retry-after-ms=70 code=x]]", 10).await;
    assert_eq!((odd.header("x-should-retry"), odd.header("retry-after-ms")), ("false", "70"));
    let dated = ask(&running, "[[error 503 retry-after-date=9]]", 10).await;
    assert!(dated.header("retry-after").ends_with(" GMT"));
}

#[tokio::test]
async fn a_stream_can_be_cut_or_fail_after_exactly_so_many_tokens() {
    let running = start().await;
    let prompt = "[[cut after=30 x1]] [[cut after=20 clean x1]] [[error-event api_error after=25 x1]] [[cut-tail clean x1]] [[cut-tail x1]] [[tokens 80]]";
    let cut = ask(&running, prompt, 1000).await;
    assert!(cut.dropped);
    assert_eq!(cut.text(), text(prompt, 30));
    let clean = ask(&running, prompt, 1000).await;
    assert!(!clean.dropped && !clean.names().contains(&"message_delta"));
    assert_eq!(clean.text(), text(prompt, 20));
    let failed = ask(&running, prompt, 1000).await;
    assert_eq!(failed.text(), text(prompt, 25));
    let (name, event) = failed.events.last().unwrap();
    assert_eq!((name.as_str(), event["error"]["type"].as_str()), ("error", Some("api_error")));
    let tail = ask(&running, prompt, 1000).await;
    assert_eq!((tail.dropped, tail.names().last()), (false, Some(&"message_delta")));
    let dropped_tail = ask(&running, prompt, 1000).await;
    assert_eq!((dropped_tail.dropped, dropped_tail.text()), (true, text(prompt, 80)));
    assert_eq!(ask(&running, prompt, 1000).await.names().last(), Some(&"message_stop"));
    let counts = running.counts();
    assert_eq!((counts.output_tokens, counts.output_tokens_untold), (240, 75));
}

#[tokio::test]
async fn garbage_that_keeps_the_answer_whole_keeps_it_whole() {
    let running = start().await;
    for shape in [
        "event",
        "block",
        "delta",
        "fields",
        "data-only",
        "crlf",
        "comments",
        "bom",
        "deltas",
        "no-usage",
        "no-start",
        "after",
        "headers",
    ] {
        let prompt = format!("[[garbage {shape}]]");
        let heard = ask(&running, &prompt, 1000).await;
        assert_eq!(heard.text().split_whitespace().count(), 40, "{shape}");
        assert_eq!(heard.stop(), "end_turn", "{shape}");
    }
}

#[tokio::test]
async fn garbage_that_spoils_the_answer_spoils_it() {
    let running = start().await;
    let body = |heard: Heard| String::from_utf8_lossy(&heard.body).into_owned();
    let utf8 = ask(&running, "[[garbage utf8]]", 1000).await;
    assert!(String::from_utf8(utf8.body.clone()).is_err());
    assert!(body(ask(&running, "[[garbage surrogate]]", 1000).await).contains(r"half: \ud83d."));
    assert!(body(ask(&running, "[[garbage nul]]", 1000).await).contains(r"nul: \u0000."));
    assert!(body(ask(&running, "[[garbage broken]]", 1000).await).contains("\"ind\n"));
    assert_eq!(body(ask(&running, "[[garbage nothing]]", 1000).await), "");
    let html = ask(&running, "[[garbage html]]", 1000).await;
    assert_eq!((html.status, html.header("content-type")), (200, "text/html"));
    assert_eq!(ask(&running, "[[garbage json]]", 1000).await.json()["stop_reason"], "end_turn");
    assert_eq!(ask(&running, "[[garbage null-stop]]", 1000).await.end()["delta"]["stop_reason"], Value::Null);
    let huge = ask(&running, "[[garbage huge mb=2]]", 1000).await;
    assert!(huge.events.iter().any(|event| event.1.to_string().len() > 2 * 1024 * 1024));
}

#[tokio::test]
async fn bytes_are_cut_anywhere_and_events_hold_as_much_as_asked() {
    let running = start().await;
    let prompt = "[[chunk 7]] [[delta 3]] [[tokens 90]]";
    let heard = ask(&running, prompt, 1000).await;
    assert_eq!(heard.text(), text(prompt, 90));
    assert_eq!(heard.names().iter().filter(|name| **name == "content_block_delta").count(), 30);
}

#[tokio::test]
async fn waits_are_kept_and_pinged_over() {
    let running = start().await;
    let began = Instant::now();
    let heard = ask(&running, "[[delay 60ms]] [[ping 20ms]] [[pace 10ms]] [[tokens 16]]", 1000).await;
    assert!(began.elapsed() >= Duration::from_millis(90), "60 ms before, 10 ms between four pieces");
    assert_eq!(heard.names()[..2], ["ping", "ping"]);
    assert_eq!(heard.stop(), "end_turn");
}

#[tokio::test]
async fn what_hangs_gives_nothing_until_the_client_leaves() {
    let running = start().await;
    for (prompt, head_comes) in [("[[hang]]", false), ("[[hang after=5]]", true)] {
        let body = body(NEW, 100, &json!([{ "role": "user", "content": prompt }]));
        let request = client()
            .post(format!("{}/v1/messages", running.url()))
            .header("x-api-key", "any")
            .header("anthropic-version", "2026-10-21")
            .timeout(Duration::from_millis(150))
            .body(body.to_string());
        match request.send().await {
            Err(error) => assert!(error.is_timeout() && !head_comes),
            Ok(response) => assert!(head_comes && response.bytes().await.unwrap_err().is_timeout()),
        }
    }
    assert_eq!(running.counts().by_answer["hang"], 2);
}

#[tokio::test]
async fn a_wrong_marker_is_a_400_that_names_it() {
    let running = start().await;
    let heard = ask(&running, "Hello [[tokns 5]]", 100).await;
    assert_eq!(
        (heard.status, heard.sentence()),
        (400, "[[tokns 5]]: there is no marker \"tokns\"".to_owned())
    );
}

#[tokio::test]
async fn requests_are_refused_in_the_words_of_the_api() {
    let running = start().await;
    let hello = json!([{ "role": "user", "content": "Hello" }]);
    let with = |change: Value| {
        let mut body = body(NEW, 100, &hello);
        for (key, value) in change.as_object().unwrap() {
            if value.is_null() {
                body.as_object_mut().unwrap().remove(key);
            } else {
                body[key] = value.clone();
            }
        }
        body
    };
    let refused = [
        (json!({ "max_tokens": null }), 400, "max_tokens: Field required"),
        (json!({ "messages": null }), 400, "messages: Field required"),
        (json!({ "messages": [] }), 400, "messages: at least one message is required"),
        (json!({ "model": "claude-3-opus" }), 404, "model: claude-3-opus"),
        (
            json!({ "max_tokens": 128_001 }),
            400,
            "max_tokens: 128001 > 128000, which is the maximum allowed number of output tokens for claude-opus-5-5",
        ),
        (json!({ "temperature": 1.0 }), 400, "temperature: Extra inputs are not permitted"),
        (json!({ "flavour": 1 }), 400, "flavour: Extra inputs are not permitted"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": "" }] }] }),
            400,
            "messages: text content blocks must be non-empty",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": " \n" }] }),
            400,
            "messages: text content blocks must contain non-whitespace text",
        ),
        (
            json!({ "messages": [{ "role": "assistant", "content": "Hi" }, { "role": "user", "content": "Ho" }] }),
            400,
            "messages: first message must use the \"user\" role",
        ),
        (
            json!({ "tool_choice": { "type": "any" } }),
            400,
            "tool_choice: forced tool use is not supported on this model",
        ),
    ];
    for (change, status, sentence) in refused {
        let heard = post(&running, &with(change)).await;
        assert_eq!((heard.status, heard.sentence().as_str()), (status, sentence));
        assert!(heard.header("request-id").starts_with("req_"));
    }
    let old = [("x-api-key", "any"), ("anthropic-version", "2023-06-01")];
    let mut warm = with(json!({ "temperature": 0.5, "model": OLD }));
    assert_eq!(post_with(&running, &warm, &old).await.status, 200);
    warm["model"] = json!(NEW);
    assert_eq!(post_with(&running, &warm, &old).await.status, 400);
}

#[tokio::test]
async fn any_key_is_good_but_none_and_the_bad_one() {
    let running = start().await;
    let hello = body(NEW, 100, &json!([{ "role": "user", "content": "Hello" }]));
    let version = ("anthropic-version", "2026-10-21");
    for (key, status) in [
        (("x-api-key", "any"), 200),
        (("authorization", "Bearer any"), 200),
        (("x-api-key", "bad-key"), 401),
        (("authorization", "Bearer bad-key"), 401),
        (("x-api-key", ""), 401),
    ] {
        let heard = post_with(&running, &hello, &[key, version]).await;
        assert_eq!(heard.status, status, "{key:?}");
    }
    running.refuse_keys(true);
    let revoked = post(&running, &hello).await;
    assert_eq!(revoked.json()["error"]["type"], "authentication_error");
    running.refuse_keys(false);
    assert_eq!(post(&running, &hello).await.status, 200);
}

#[tokio::test]
async fn rate_limits_are_buckets_with_the_real_headers() {
    let limits = Options { rpm: Some(2), itpm: Some(50_000), otpm: Some(8000), ..Options::default() };
    let running = StandIn::start(limits).await.unwrap();
    let first = ask(&running, "[[tokens 40]]", 100).await;
    assert_eq!(first.header("anthropic-ratelimit-requests-limit"), "2");
    assert_eq!(first.header("anthropic-ratelimit-requests-remaining"), "1");
    assert_eq!(first.header("anthropic-ratelimit-input-tokens-limit"), "50000");
    assert_eq!(first.header("anthropic-ratelimit-input-tokens-remaining"), "49000");
    assert_eq!(first.header("anthropic-ratelimit-output-tokens-remaining"), "8000");
    assert!(first.header("anthropic-ratelimit-tokens-reset").ends_with('Z'));
    assert_eq!(ask(&running, "[[tokens 40]]", 100).await.status, 200);
    let refused = ask(&running, "[[tokens 40]]", 100).await;
    assert_eq!(refused.status, 429);
    let seconds: u64 = refused.header("retry-after").parse().unwrap();
    assert!((29..=30).contains(&seconds), "two a minute is one in thirty seconds, not {seconds}");
    assert_eq!(refused.header("anthropic-ratelimit-requests-remaining"), "0");
    running.reset();
    assert_eq!(ask(&running, "[[tokens 40]]", 100).await.status, 200);
    let unlimited = start().await;
    assert_eq!(ask(&unlimited, "Hello", 100).await.header("anthropic-ratelimit-requests-limit"), "");
}

#[tokio::test]
async fn tokens_are_counted_as_the_answer_will_count_them_and_models_are_listed() {
    let running = start().await;
    let messages = json!([{ "role": "user", "content": "How many tokens are these?" }]);
    let get = |path: &str| client().get(format!("{}{path}", running.url())).header("x-api-key", "any");
    let counted = client()
        .post(format!("{}/v1/messages/count_tokens", running.url()))
        .header("x-api-key", "any")
        .header("anthropic-version", "2026-10-21")
        .body(json!({ "model": NEW, "messages": messages }).to_string());
    let counted = listen(counted.send().await.unwrap()).await.json();
    let heard = post(&running, &body(NEW, 100, &messages)).await;
    assert_eq!(counted["input_tokens"], heard.end()["usage"]["input_tokens"]);
    let page = listen(get("/v1/models?limit=2").send().await.unwrap()).await.json();
    assert_eq!((page["data"].as_array().unwrap().len(), page["has_more"].as_bool()), (2, Some(true)));
    let model = listen(get("/a/prefix/v1/models/claude-haiku-4-5").send().await.unwrap()).await.json();
    assert_eq!(
        (model["id"].as_str(), model["max_tokens"].as_u64()),
        (Some("claude-haiku-4-5-20251001"), Some(64_000))
    );
    assert_eq!(listen(get("/v1/models/nobody").send().await.unwrap()).await.status, 404);
    assert_eq!(
        listen(get("/v1/elsewhere").send().await.unwrap()).await.json()["error"]["type"],
        "not_found_error"
    );
    assert_eq!(running.counts().total, 1, "only /v1/messages counts as a call");
}

#[tokio::test]
async fn retired_models_are_listed_where_they_are_asked_for_and_never_answer() {
    let running = start().await;
    let list = async |query: &str| {
        let get = client().get(format!("{}/v1/models{query}", running.url())).header("x-api-key", "any");
        listen(get.send().await.unwrap()).await
    };
    let words = |heard: &Heard| {
        let models = heard.json()["data"].as_array().unwrap().clone();
        let words: BTreeSet<String> =
            models.iter().map(|model| model["lifecycle"].as_str().unwrap().to_owned()).collect();
        (models.len(), words.into_iter().collect::<Vec<_>>().join(" "))
    };
    assert_eq!(words(&list("?limit=1000").await), (17, "active deprecated".to_owned()));
    assert_eq!(words(&list("?limit=1000&lifecycle%5B%5D=retired").await), (3, "retired".to_owned()));
    let all = "?limit=1000&lifecycle[]=active&lifecycle[]=deprecated&lifecycle[]=retired";
    assert_eq!(words(&list(all).await), (20, "active deprecated retired".to_owned()));
    for wrong in ["?lifecycle[]=dead", "?limit=0", "?limit=1001"] {
        assert_eq!(list(wrong).await.status, 400, "{wrong}");
    }
    let gone = list("/stand-in-gone").await.json();
    assert_eq!(
        (gone["lifecycle"].as_str(), gone["retires_at"].as_str()),
        (Some("retired"), Some("2026-07-01T00:00:00Z"))
    );
    let leaving = list("/stand-in-leaving").await.json();
    assert_eq!(leaving["capabilities"]["structured_outputs"]["supported"], false);
    assert!(leaving["retires_at"].is_string() && leaving["deprecated_at"].is_string(), "{leaving}");
    let heard =
        post(&running, &body("stand-in-gone", 10, &json!([{ "role": "user", "content": "x" }]))).await;
    assert_eq!((heard.status, heard.sentence()), (404, "model: stand-in-gone".to_owned()));
}

#[tokio::test]
async fn pages_hold_no_more_than_they_may_and_lead_to_the_last() {
    let running = StandIn::start(Options { models_a_page: 4, ..Options::default() }).await.unwrap();
    let (mut seen, mut after) = (BTreeSet::new(), String::new());
    for _ in 0..5 {
        let url = format!("{}/v1/models?limit=1000{after}", running.url());
        let page = listen(client().get(url).header("x-api-key", "any").send().await.unwrap()).await.json();
        let ids =
            page["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned());
        seen.extend(ids);
        after = format!("&after_id={}", page["last_id"].as_str().unwrap());
        assert_eq!(page["has_more"], seen.len() < 17);
    }
    assert_eq!(seen.len(), 17);
}

#[tokio::test]
async fn an_input_beyond_the_window_is_counted_and_refused_with_both_numbers() {
    let running = start().await;
    let messages = json!([{ "role": "user", "content": "word ".repeat(4000) }]);
    let count = async |body: Value| {
        let post = client()
            .post(format!("{}/v1/messages/count_tokens", running.url()))
            .header("x-api-key", "any")
            .header("anthropic-version", "2026-10-21")
            .body(body.to_string());
        listen(post.send().await.unwrap()).await
    };
    let counted = count(json!({ "model": "stand-in-small", "messages": messages })).await.json();
    let tokens = counted["input_tokens"].as_u64().unwrap();
    let heard = post(&running, &body("stand-in-small", 10, &messages)).await;
    let sentence = format!("prompt is too long: {tokens} tokens > 4096 maximum");
    assert_eq!((heard.status, heard.sentence()), (400, sentence));
    let refused = count(json!({ "model": NEW, "messages": messages, "max_tokens": 5 })).await;
    assert_eq!(
        (refused.status, refused.sentence()),
        (400, "max_tokens: Extra inputs are not permitted".to_owned())
    );
    let thinks = json!({ "type": "enabled", "budget_tokens": 2000 });
    assert_eq!(count(json!({ "model": OLD, "messages": messages, "thinking": thinks })).await.status, 200);
}

#[tokio::test]
async fn what_compatible_servers_lack_can_be_switched_off() {
    let options = Options { models: false, count_tokens: false, ..Options::default() };
    let running = StandIn::start(options).await.unwrap();
    for path in ["/v1/models", "/v1/models/claude-opus-5-5"] {
        let get = client().get(format!("{}{path}", running.url())).header("x-api-key", "any");
        assert_eq!(listen(get.send().await.unwrap()).await.status, 404, "{path}");
    }
    let count =
        client().post(format!("{}/v1/messages/count_tokens", running.url())).header("x-api-key", "any");
    assert_eq!(listen(count.body("{}").send().await.unwrap()).await.status, 404);
    assert_eq!(ask(&running, "Hello", 100).await.status, 200);
}

#[tokio::test]
async fn programs_can_read_the_counts_and_the_whole_answer_over_http() {
    let running = start().await;
    let prompt = "[[tokens 70]]";
    ask(&running, prompt, 20).await;
    let calls = client().get(format!("{}/stand-in/calls", running.url()));
    let calls = listen(calls.send().await.unwrap()).await.json();
    assert_eq!((calls["total"].as_u64(), calls["by_answer"]["max_tokens"].as_u64()), (Some(1), Some(1)));
    assert_eq!(calls["calls"][0]["output_tokens"], 20);
    let whole = client().post(format!("{}/stand-in/answer", running.url())).body(prompt);
    assert_eq!(listen(whole.send().await.unwrap()).await.body, text(prompt, 70).as_bytes());
    let reset = client().post(format!("{}/stand-in/reset", running.url()));
    assert_eq!(listen(reset.send().await.unwrap()).await.status, 200);
    assert_eq!(running.counts().total, 0);
}

#[tokio::test]
async fn an_outage_answers_everything_with_one_error_until_it_ends() {
    let running = start().await;
    let fail = |error: &'static str| client().post(format!("{}/stand-in/fail", running.url())).body(error);
    assert_eq!(listen(fail("529").send().await.unwrap()).await.status, 200);
    assert_eq!(ask(&running, "a", 20).await.status, 529);
    running.fail(Some("credit")).unwrap();
    assert!(ask(&running, "a", 20).await.sentence().starts_with("Your credit balance is too low"));
    assert_eq!(listen(fail("700").send().await.unwrap()).await.status, 400);
    assert_eq!(listen(fail("").send().await.unwrap()).await.status, 200);
    assert_eq!(ask(&running, "a", 20).await.status, 200);
}

#[tokio::test]
async fn limits_may_be_kept_in_silence_and_let_burst_less_than_a_minutes_worth() {
    let burst = Duration::from_secs(2);
    let options = Options { rpm: Some(60), burst, limits_said: false, ..Options::default() };
    let running = StandIn::start(options).await.unwrap();
    let mut heard = Vec::new();
    for _ in 0..3 {
        heard.push(ask(&running, "a", 20).await);
    }
    assert_eq!(heard.iter().map(|heard| heard.status).collect::<Vec<_>>(), [200, 200, 429]);
    for heard in &heard {
        let spoken = heard.headers.keys().map(reqwest::header::HeaderName::as_str);
        let spoken = spoken.filter(|name| name.contains("ratelimit") || *name == "retry-after");
        assert_eq!(spoken.count(), 0);
    }
}

#[tokio::test]
async fn a_dropped_stand_in_frees_its_port() {
    let running = start().await;
    let url = running.url();
    drop(running);
    let port = url.rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_was_streamed_is_counted_also_where_the_client_left() {
    let running = start().await;
    let whole = ask(&running, "[[tokens 50]]", 1000).await;
    let prompt = "[[tokens 400]] [[delta 4]] [[pace 50ms]]";
    let body = body(NEW, 1000, &json!([{ "role": "user", "content": prompt }])).to_string();
    let post = client().post(format!("{}/v1/messages", running.url())).body(body).header("x-api-key", "any");
    let mut left = post.header("anthropic-version", "2026-10-21").send().await.unwrap();
    let mut heard = Vec::new();
    while String::from_utf8_lossy(&heard).matches("text_delta").count() < 3 {
        heard.extend(left.chunk().await.unwrap().unwrap());
    }
    drop(left);
    while running.counts().hung_up == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let calls = running.counts().calls;
    assert_eq!((calls[0].streamed_tokens, calls[0].streamed_bytes), (50, whole.text().len() as u64));
    assert!(!calls[0].hung_up && calls[1].hung_up);
    let tokens = calls[1].streamed_tokens;
    assert!((12..400).contains(&tokens), "{tokens} of 400 tokens");
    assert_eq!(calls[1].streamed_bytes, text(prompt, tokens as usize).len() as u64);
    assert_eq!(calls[1].output_tokens, 400, "what the client would have been told");
}
