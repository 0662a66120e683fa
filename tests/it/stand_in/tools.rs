//! Scripted tool conversations, and the API's rules for them.

use super::*;

const SCRIPT: &str = "What is there? [[tool find {\"a\": [[1, 2]], \"b\": \"ä]]\"}]] [[tool now]] [[next]] \
                      [[tool find {\"c\": 1.50}]] [[thinking 20]]";

fn request(messages: &Value) -> Value {
    let mut request = body(NEW, 1000, messages);
    request["stream"] = json!(false);
    request["tools"] = json!([
        { "name": "find", "input_schema": { "type": "object" } },
        { "name": "now", "input_schema": { "type": "object" } },
    ]);
    request
}

/// What the stand-in says to these messages.
async fn say(running: &Running, messages: &Value) -> Value {
    let heard = post(running, &request(messages)).await;
    assert_eq!(heard.status, 200, "{}", heard.json());
    heard.json()
}

fn push(messages: &mut Value, role: &str, content: &Value) {
    messages.as_array_mut().unwrap().push(json!({ "role": role, "content": content }));
}

fn result(call: &Value, text: &str) -> Value {
    json!({ "type": "tool_result", "tool_use_id": call["id"], "content": text })
}

/// The conversation up to the results of its first turn.
async fn first_turn(running: &Running) -> Value {
    let mut messages = json!([{ "role": "user", "content": SCRIPT }]);
    let said = say(running, &messages).await;
    let content = &said["content"];
    push(&mut messages, "assistant", content);
    push(&mut messages, "user", &json!([result(&content[2], "one"), result(&content[3], "two")]));
    messages
}

#[tokio::test]
async fn scripted_calls_come_turn_by_turn_and_what_they_gave_is_told_in_order() {
    let running = start().await;
    let mut messages = json!([{ "role": "user", "content": SCRIPT }]);
    let first = say(&running, &messages).await;
    assert_eq!(first["stop_reason"], "tool_use");
    let content = &first["content"];
    let kinds: Vec<&str> =
        content.as_array().unwrap().iter().map(|block| block["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["thinking", "text", "tool_use", "tool_use"]);
    assert_eq!(content[2]["input"], json!({ "a": [[1, 2]], "b": "ä]]" }));
    assert_eq!((&content[3]["name"], &content[3]["input"]), (&json!("now"), &json!({})));

    push(&mut messages, "assistant", content);
    let mut failed = result(&content[3], "no clock");
    failed["is_error"] = json!(true);
    let blocks = json!([{ "type": "text", "text": "t" }, { "type": "text", "text": "wo" }]);
    let found = json!({ "type": "tool_result", "tool_use_id": content[2]["id"], "content": blocks });
    push(&mut messages, "user", &json!([found, failed]));
    let second = say(&running, &messages).await;
    assert_eq!(second["content"][2]["input"], json!({ "c": 1.5 }));
    assert_ne!(second["content"][2]["id"], content[2]["id"]);

    push(&mut messages, "assistant", &second["content"]);
    push(&mut messages, "user", &json!([result(&second["content"][2], "")]));
    let last = say(&running, &messages).await;
    assert_eq!(last["stop_reason"], "end_turn");
    assert_eq!(last["content"][1]["text"], "find: two\nnow failed: no clock\nfind: ");
    assert_eq!(running.counts().by_marker["tool find"], 6);
}

#[tokio::test]
async fn the_order_that_is_told_is_the_order_that_was_sent() {
    let running = start().await;
    let mut messages = first_turn(&running).await;
    let second = say(&running, &messages).await;
    messages[2]["content"].as_array_mut().unwrap().reverse();
    push(&mut messages, "assistant", &second["content"]);
    push(&mut messages, "user", &json!([result(&second["content"][2], "three")]));
    let last = say(&running, &messages).await;
    assert_eq!(last["content"][1]["text"], "now: two\nfind: one\nfind: three");
}

#[tokio::test]
async fn a_scripted_input_is_streamed_as_it_is_written() {
    let running = start().await;
    let mut streamed = request(&json!([{ "role": "user", "content": SCRIPT }]));
    streamed["stream"] = json!(true);
    let heard = post(&running, &streamed).await;
    assert_eq!(heard.delta("input_json_delta", "partial_json"), r#"{"a": [[1, 2]], "b": "ä]]"}"#);
    assert_eq!(heard.stop(), "tool_use");

    // Cut in its input it cannot be read, and the next call says it again.
    streamed["max_tokens"] = json!(30);
    let cut = post(&running, &streamed).await;
    assert_eq!(cut.stop(), "max_tokens");
    assert!(serde_json::from_str::<Value>(&cut.delta("input_json_delta", "partial_json")).is_err());
}

#[tokio::test]
async fn what_was_told_goes_on_where_it_was_cut_and_more_may_follow() {
    let running = start().await;
    let mut messages =
        json!([{ "role": "user", "content": "[[tool find]] [[say And that is all.]] [[continue exact]]" }]);
    let first = say(&running, &messages).await;
    push(&mut messages, "assistant", &first["content"]);
    push(&mut messages, "user", &json!([result(&first["content"][1], "some rows, and some more of them")]));
    let mut cut = request(&messages);
    cut["max_tokens"] = json!(5);
    let start = post(&running, &cut).await.json();
    assert_eq!(start["stop_reason"], "max_tokens");
    push(&mut messages, "assistant", &start["content"]);
    push(&mut messages, "user", &json!("Please go on."));
    let rest = say(&running, &messages).await;
    let text = |message: &Value| message["content"][0]["text"].as_str().unwrap().to_owned();
    assert_eq!(text(&start) + &text(&rest), "find: some rows, and some more of them\n\nAnd that is all.");
}

#[tokio::test]
async fn results_are_held_to_the_rules_of_the_api() {
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 11] = [
        (
            |messages| drop(messages[2]["content"].as_array_mut().unwrap().pop()),
            "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: toolu_0001",
        ),
        (
            |messages| {
                let text = json!({ "type": "text", "text": "Here they are." });
                messages[2]["content"].as_array_mut().unwrap().insert(1, text);
            },
            "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: toolu_0001",
        ),
        (
            |messages| {
                let first = messages[2]["content"][0].clone();
                messages[2]["content"].as_array_mut().unwrap().push(first);
            },
            "messages.2.content.2: each tool_use must have a single result. Found multiple `tool_result` blocks with \
             id: toolu_0000",
        ),
        (
            |messages| {
                let mut other = messages[2]["content"][0].clone();
                other["tool_use_id"] = json!("toolu_other");
                messages[2]["content"].as_array_mut().unwrap().push(other);
            },
            "messages.2.content.2: unexpected `tool_use_id` found in `tool_result` blocks: toolu_other.",
        ),
        (
            |messages| messages[2]["content"][0]["content"] = json!([{ "type": "text", "text": "" }]),
            "messages: text content blocks must be non-empty",
        ),
        (
            |messages| messages[2]["role"] = json!("assistant"),
            "messages.2.content.0: `tool_result` blocks can only be in `user` messages",
        ),
        (
            |messages| messages[1]["role"] = json!("user"),
            "messages.1.content.2: `tool_use` blocks can only be in `assistant` messages",
        ),
        (
            |messages| messages[1]["content"][0]["thinking"] = json!("I thought something else."),
            "messages.1.content.0: Invalid `signature` in `thinking` block",
        ),
        (
            |messages| drop(messages[1]["content"].as_array_mut().unwrap().remove(0)),
            "messages.1.content.0.type: Expected `thinking` or `redacted_thinking`, but found `text`.",
        ),
        (
            |messages| messages[1]["content"][2]["input"]["b"] = json!("b"),
            "messages.1: the stand-in did not say this: its `tool_use` block 0 was another one",
        ),
        (
            |messages| {
                let blocks = messages[1]["content"].as_array_mut().unwrap();
                blocks.truncate(3);
                messages[2]["content"].as_array_mut().unwrap().truncate(1);
            },
            "messages.1: the stand-in did not say this: its `tool_use` block 1 was another one",
        ),
    ];
    let running = start().await;
    let good = first_turn(&running).await;
    say(&running, &good).await;
    for (change, sentence) in changes {
        let mut messages = good.clone();
        change(&mut messages);
        let heard = post(&running, &request(&messages)).await;
        assert_eq!(heard.status, 400, "{sentence}");
        assert!(heard.sentence().starts_with(sentence), "{} is not {sentence}", heard.sentence());
    }
}

#[tokio::test]
async fn tools_must_be_declared_and_well() {
    let running = start().await;
    let good = first_turn(&running).await;
    for (tools, sentence) in [
        (json!([]), "Requests which include `tool_use` or `tool_result` blocks must define tools"),
        (
            json!([{ "name": "now", "input_schema": {} }]),
            "[[tool find]]: the request declares no tool of this name",
        ),
        (
            json!([{ "name": "no name", "input_schema": {} }]),
            "tools.0.custom.name: String should match pattern",
        ),
        (json!([{ "input_schema": {} }]), "tools.0.custom.name: Field required"),
        (json!([{ "name": "find" }]), "tools.0.custom.input_schema: Field required"),
        (
            json!([{ "name": "find", "input_schema": {} }, { "name": "find", "input_schema": {} }]),
            "tools: Tool names must be unique.",
        ),
    ] {
        let mut request = request(&good);
        request["tools"] = tools;
        let heard = post(&running, &request).await;
        assert!(heard.sentence().starts_with(sentence), "{} is not {sentence}", heard.sentence());
    }
}
