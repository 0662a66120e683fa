//! The prompt cache over HTTP: what usage says of it, and what it spares.

use super::*;

fn cached(messages: &Value) -> Value {
    let mut request = body(NEW, 1000, messages);
    request["system"] = json!("You are thorough. ".repeat(300));
    request["cache_control"] = json!({ "type": "ephemeral" });
    request
}

fn said(role: &str, text: &str) -> Value {
    json!({ "role": role, "content": text })
}

/// Input, written to the cache, read from it.
fn input(heard: &Heard) -> [u64; 3] {
    let usage = &heard.end()["usage"];
    assert_eq!(
        usage["cache_read_input_tokens"],
        heard.events[0].1["message"]["usage"]["cache_read_input_tokens"]
    );
    ["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"]
        .map(|field| usage[field].as_u64().unwrap())
}

#[tokio::test]
async fn usage_says_what_was_written_to_the_cache_and_read_from_it_and_adds_up() {
    let running = start().await;
    let first = cached(&json!([said("user", "One?")]));
    let [rest, wrote, read] = input(&post(&running, &first).await);
    assert!(rest <= 4 && wrote > 1300 && read == 0, "{rest} {wrote} {read}");
    let mut messages = json!([said("user", "One?"), said("assistant", "Two."), said("user", "Three?")]);
    let second = input(&post(&running, &cached(&messages)).await);
    assert!(second[0] <= 4 && second[1] > 0 && second[2] == wrote, "{second:?} after {wrote}");

    let mut other = cached(&messages);
    other["cache_control"] = Value::Null;
    let plain = input(&post(&running, &other).await);
    assert_eq!(plain, [second.iter().sum(), 0, 0], "who asks for no cache has none");
    let mut other = cached(&messages);
    other["thinking"] = json!({ "type": "adaptive" });
    assert_eq!(input(&post(&running, &other).await)[2], 0);
    messages[2] = said("user", "Three? [[cache read=7 write=5]]");
    assert_eq!(input(&post(&running, &cached(&messages)).await)[1..], [5, 7], "a marker says it all");

    let counts = running.counts();
    assert_eq!((counts.calls[1].cache_points, counts.calls[2].cache_points), (1, 0));
    assert_eq!([counts.calls[1].cache_write_tokens, counts.calls[1].cache_read_tokens], second[1..]);
    assert_eq!(counts.calls[1].input_tokens, second.iter().sum::<u64>());
    running.reset();
    assert_eq!(input(&post(&running, &first).await)[2], 0, "a reset empties the cache");
}

#[tokio::test]
async fn a_refused_call_writes_nothing_and_another_key_reads_nothing() {
    let running = start().await;
    let refused = cached(&json!([said("user", "[[error 529 x1]] One?")]));
    assert_eq!(post(&running, &refused).await.status, 529);
    assert_eq!(input(&post(&running, &refused).await)[2], 0);
    let headers = [("x-api-key", "another"), ("anthropic-version", "2026-10-21")];
    assert_eq!(input(&post_with(&running, &refused, &headers).await)[2], 0);
    assert!(input(&post(&running, &refused).await)[2] > 0);
}

#[tokio::test]
async fn what_is_read_from_the_cache_does_not_count_against_the_limit_of_input() {
    let limits = Options { itpm: Some(3000), ..Options::default() };
    let running = StandIn::start(limits).await.unwrap();
    let first = cached(&json!([said("user", "One?")]));
    for call in 1..=5 {
        assert_eq!(post(&running, &first).await.status, 200, "call {call} of 1,350 tokens and a few");
    }
    let mut plain = first;
    plain["cache_control"] = Value::Null;
    assert_eq!(post(&running, &plain).await.status, 200);
    assert_eq!(post(&running, &plain).await.status, 429);
}
