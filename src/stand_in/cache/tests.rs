//! What is found again, what is not, and for how long.

use serde_json::{Value, json};

use super::*;

const MODEL: &str = "claude-sonnet-5-5";
const ME: u64 = 1;
/// About a thousand tokens.
const LONG: usize = 4100;

fn words(seed: char, bytes: usize) -> String {
    seed.to_string().repeat(bytes)
}

/// A conversation of so many messages behind a long system prompt, cached as a whole.
fn conversation(messages: usize) -> Value {
    let said = |at: usize| {
        let role = if at.is_multiple_of(2) { "user" } else { "assistant" };
        json!({ "role": role, "content": format!("{at} {}", words('m', 400)) })
    };
    json!({
        "tools": [{ "name": "find", "input_schema": { "type": "object" } }],
        "system": words('s', LONG),
        "messages": (0..messages).map(said).collect::<Vec<_>>(),
        "cache_control": { "type": "ephemeral" },
    })
}

fn read(body: &Value) -> Option<Marked> {
    Marked::read(body.as_object().unwrap(), MODEL).unwrap()
}

fn marked(body: &Value) -> Marked {
    read(body).expect("it has breakpoints")
}

/// Asks: looks up, and keeps from now on.
fn ask(cache: &Cache, body: &Value, now: Instant) -> Cached {
    let marked = marked(body);
    let cached = cache.look_up(ME, &marked, now);
    cache.keep(ME, &marked, now, now);
    cached
}

fn whole(body: &Value) -> u64 {
    let marked = marked(body);
    marked.tokens(marked.blocks.len() - 1)
}

#[test]
fn what_one_call_wrote_the_next_reads_and_it_writes_only_what_is_new() {
    let (cache, now) = (Cache::default(), Instant::now());
    let [one, two, three] = [1, 3, 5].map(conversation);
    let wrote = |tokens| Cached { write: tokens, ..Cached::default() };
    assert_eq!(ask(&cache, &one, now), wrote(whole(&one)));
    assert!(whole(&one) > 1100, "{}", whole(&one));
    let second = Cached { read: whole(&one), write: whole(&two) - whole(&one), write_hour: 0 };
    assert_eq!(ask(&cache, &two, now), second);
    let third = Cached { read: whole(&two), write: whole(&three) - whole(&two), write_hour: 0 };
    assert_eq!(ask(&cache, &three, now), third);
    assert_eq!(ask(&cache, &three, now), Cached { read: whole(&three), ..Cached::default() });
}

#[test]
fn whatever_changes_in_front_of_it_a_prefix_is_not_found() {
    let now = Instant::now();
    for (field, other) in [
        ("tools", json!([{ "name": "look", "input_schema": { "type": "object" } }])),
        ("tools", json!([{ "input_schema": { "type": "object" }, "name": "find" }])),
        ("system", json!(words('t', LONG))),
        ("thinking", json!({ "type": "disabled" })),
        ("tool_choice", json!({ "type": "none" })),
        ("output_config", json!({ "effort": "low" })),
    ] {
        let cache = Cache::default();
        ask(&cache, &conversation(1), now);
        let mut changed = conversation(3);
        changed[field] = other;
        assert_eq!(ask(&cache, &changed, now).read, 0, "{field}");
    }
    let cache = Cache::default();
    ask(&cache, &conversation(1), now);
    let three = conversation(3);
    assert_eq!(cache.look_up(2, &marked(&three), now).read, 0, "another key");
    let other = Marked::read(three.as_object().unwrap(), "claude-opus-5").unwrap().unwrap();
    assert_eq!(cache.look_up(ME, &other, now).read, 0, "another model");
    // Thinking changes how messages are read, and not what stands before them.
    let mut system = conversation(1);
    system["system"] =
        json!([{ "type": "text", "text": words('s', LONG), "cache_control": { "type": "ephemeral" } }]);
    ask(&cache, &system, now);
    system["thinking"] = json!({ "type": "disabled" });
    assert!(ask(&cache, &system, now).read > 1000);
}

#[test]
fn where_the_breakpoint_stands_is_not_part_of_what_is_read() {
    let (cache, now) = (Cache::default(), Instant::now());
    let mut one = conversation(1);
    let text = one["messages"][0]["content"].clone();
    let point = json!({ "type": "ephemeral" });
    one["messages"][0]["content"] = json!([{ "type": "text", "text": text, "cache_control": point }]);
    one.as_object_mut().unwrap().remove("cache_control");
    ask(&cache, &one, now);
    assert_eq!(ask(&cache, &conversation(3), now).read, whole(&conversation(1)), "found, and counted alike");
    assert_eq!(block_bytes(&json!({ "type": "text", "cache_control": point })), 8);
}

#[test]
fn a_short_prefix_is_never_kept() {
    let (cache, now) = (Cache::default(), Instant::now());
    let mut short = conversation(1);
    for (bytes, is) in [(3600, false), (3700, true)] {
        short["system"] = json!(words('s', bytes));
        let kept = |cached: Cached| cached.write > 0;
        assert_eq!(kept(ask(&cache, &short, now)), is, "{} tokens", whole(&short));
        assert_eq!(ask(&cache, &short, now).read > 0, is);
    }
}

#[test]
fn a_prefix_lives_five_minutes_from_its_last_use_or_an_hour_where_that_was_asked() {
    let minutes = Duration::from_mins;
    let (cache, start) = (Cache::default(), Instant::now());
    let body = conversation(1);
    ask(&cache, &body, start);
    assert!(ask(&cache, &body, start + minutes(4)).read > 0);
    assert!(ask(&cache, &body, start + minutes(8)).read > 0, "reading it kept it");
    assert_eq!(ask(&cache, &body, start + minutes(13)).read, 0);

    let mut hour = conversation(1);
    hour["system"] = json!([
        { "type": "text", "text": words('h', LONG), "cache_control": { "type": "ephemeral", "ttl": "1h" } },
    ]);
    let cached = ask(&cache, &hour, start);
    assert!(cached.write_hour > 1000 && cached.write > cached.write_hour, "{cached:?}");
    assert_eq!(ask(&cache, &hour, start + minutes(59)).read, cached.write_hour, "the rest is gone");
    assert_eq!(ask(&cache, &hour, start + minutes(179)).read, 0);
}

#[test]
fn a_prefix_is_looked_for_twenty_blocks_back_and_no_further() {
    let (cache, now) = (Cache::default(), Instant::now());
    ask(&cache, &conversation(1), now);
    let look = |messages| cache.look_up(ME, &marked(&conversation(messages)), now).read;
    assert!(look(20) > 0);
    assert_eq!(look(21), 0);
}

#[test]
fn a_prefix_can_be_read_when_the_answer_that_wrote_it_has_begun() {
    let (cache, now) = (Cache::default(), Instant::now());
    let (body, second) = (marked(&conversation(1)), Duration::from_secs(1));
    cache.keep(ME, &body, now, now + second);
    assert_eq!(cache.look_up(ME, &body, now).read, 0);
    assert!(cache.look_up(ME, &body, now + second).read > 0);
}

#[test]
fn only_so_many_prefixes_are_kept_those_used_last() {
    let (cache, now) = (Cache::default(), Instant::now());
    let body = marked(&conversation(1));
    let reads = |account| cache.look_up(account, &body, now).read > 0;
    for account in 0..KEPT_MAX as u64 {
        cache.keep(account, &body, now, now);
    }
    cache.keep(0, &body, now, now);
    assert!(reads(0) && reads(1));
    cache.keep(KEPT_MAX as u64, &body, now, now);
    assert!(reads(0) && !reads(1) && reads(2), "the one used longest ago went");
    let kept = cache.kept.lock().unwrap();
    assert_eq!((kept.entries.len(), kept.order.len()), (KEPT_MAX, KEPT_MAX));
}

#[test]
fn what_has_no_breakpoint_is_not_hashed_and_what_has_wrong_ones_is_refused() {
    let mut body = conversation(1);
    body["cache_control"] = Value::Null;
    assert!(read(&body).is_none());
    let refused = |body: &Value| Marked::read(body.as_object().unwrap(), MODEL).unwrap_err().message;
    body["cache_control"] = json!({ "type": "eternal" });
    assert!(refused(&body).starts_with("cache_control: Input tag"), "{}", refused(&body));
    body["cache_control"] = json!({ "type": "ephemeral", "ttl": "2h" });
    assert_eq!(refused(&body), "cache_control.ttl: Input should be '5m' or '1h'");
    body["cache_control"] = json!({ "type": "ephemeral", "ttl": "1h" });
    let text = |at: usize| json!({ "type": "text", "text": at.to_string(), "cache_control": { "type": "ephemeral" } });
    body["system"] = (0..3).map(text).collect();
    assert!(refused(&body).starts_with("a ttl='1h' cache_control block must not"), "{}", refused(&body));
    body["cache_control"] = json!({ "type": "ephemeral" });
    assert_eq!(marked(&body).points.len(), 4);
    body["system"] = (0..4).map(text).collect();
    assert_eq!(refused(&body), "A maximum of 4 blocks with cache_control may be provided. Found 5.");
}
