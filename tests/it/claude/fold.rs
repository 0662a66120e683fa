//! Odd and hostile streams, event by event: what they become, and that none passes for a whole answer.

use promptmill::claude::fold::{Broken, Ended, Fold, Seen};
use promptmill::claude::sse::Parser;
use promptmill::domain::outcome::Usage;
use promptmill::domain::reply::Reply;
use promptmill::domain::stop::StopReason;
use proptest::prelude::*;

/// Folds a stream; the flag says whether `message_stop` came with a stop reason.
fn fold_chunks(chunks: &[&[u8]]) -> (Fold, bool) {
    let (mut parser, mut fold, mut over) = (Parser::new(1 << 20), Fold::new(), false);
    for chunk in chunks {
        let mut rest = *chunk;
        while let Some(event) = parser.read(&mut rest).unwrap() {
            over |= fold.event(event.name, event.data).unwrap() == Seen::End;
        }
    }
    if let Some(event) = parser.finish() {
        over |= fold.event(event.name, event.data) == Ok(Seen::End);
    }
    let over = over && fold.has_stop();
    (fold, over)
}

fn fold_stream(stream: &str) -> Reply {
    fold_chunks(&[stream.as_bytes()]).0.finish(Ended::Whole)
}

/// Folds events given as data alone.
fn fold_events(events: &[&str]) -> Result<Fold, Broken> {
    let mut fold = Fold::new();
    for data in events {
        fold.event(b"", data.as_bytes())?;
    }
    Ok(fold)
}

fn shown(reply: &Reply) -> String {
    format!("{reply:?}")
}

const START: &str = r#"{"type":"message_start","message":{"id":"m","model":"c","content":[],"usage":{"input_tokens":10,"output_tokens":1}}}"#;
const TEXT: &str = r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#;
const HELLO: &str =
    r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"hello"}}"#;
const CLOSE: &str = r#"{"type":"content_block_stop","index":0}"#;
const END_TURN: &str =
    r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":5}}"#;
const STOP: &str = r#"{"type":"message_stop"}"#;

#[test]
fn recorded_streams_fold_into_their_text() {
    for (stream, text) in super::STREAMS {
        let (fold, over) = fold_chunks(&[stream.as_bytes()]);
        assert!(over);
        let reply = fold.finish(Ended::Whole);
        assert_eq!(reply.text(), text);
        assert!(reply.content.iter().all(|block| block.whole));
    }
}

#[test]
fn a_text_block_keeps_what_was_sent_and_joins_a_split_surrogate_pair() {
    let reply = fold_stream(super::STREAMS[0].0);
    assert_eq!(
        reply.content[0].json,
        r#"{"type":"text","text":"Grüße, \"Welt\"!\n\u4f60\u597d \ud83d\ude00 and C:\\temp"}"#
    );
    assert_eq!(
        (reply.message_id.as_deref(), reply.model.as_deref()),
        (Some("msg_01"), Some("claude-sonnet-5-5"))
    );
    assert_eq!(reply.stop, Some(StopReason::EndTurn));
    assert_eq!(reply.stop_sequence, None);
}

#[test]
fn usage_is_overwritten_by_what_comes_later_and_keeps_what_does_not() {
    let reply = fold_stream(super::STREAMS[0].0);
    assert_eq!(reply.usage, Usage { input: 25, output: 15, cache_creation: 3, cache_read: 7 });
    assert_eq!(
        reply.usage_raw.as_deref(),
        Some(concat!(
            r#"{"input_tokens":25,"cache_creation_input_tokens":3,"cache_read_input_tokens":7,"#,
            r#""cache_creation":{"ephemeral_5m_input_tokens":3,"ephemeral_1h_input_tokens":0},"#,
            r#""output_tokens":15,"service_tier":"standard"}"#
        ))
    );
    // A null says nothing.
    assert_eq!(fold_stream(super::STREAMS[1].0).usage.input, 472);
}

#[test]
fn absurd_token_counts_are_bounded() {
    let count = |json: &str| {
        let start = format!(r#"{{"type":"message_start","message":{{"usage":{{"input_tokens":{json}}}}}}}"#);
        fold_events(&[&start]).unwrap().finish(Ended::Whole).usage.input
    };
    let table = [("-5", 0), ("1e300", 1_000_000_000_000), ("3.9", 3), ("\"7\"", 0), ("null", 0), ("[]", 0)];
    for (json, expected) in table {
        assert_eq!(count(json), expected, "{json}");
    }
}

#[test]
fn thinking_tools_and_the_container_are_kept() {
    let reply = fold_stream(super::STREAMS[1].0);
    let json: Vec<&str> = reply.content.iter().map(|block| block.json.as_str()).collect();
    assert_eq!(
        json,
        [
            r#"{"type":"thinking","thinking":"The user wants the weather.","signature":"EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pk="}"#,
            r#"{"type":"text","text":"Let me look."}"#,
            r#"{"type":"tool_use","id":"toolu_01","name":"get_weather","input":{"location": "Zürich", "days": [1, 2]},"caller":{"type":"direct"}}"#,
            r#"{"type":"tool_use","id":"toolu_02","name":"now","input":{}}"#,
        ]
    );
    assert_eq!(
        reply.container.as_deref(),
        Some(r#"{"id":"container_1","expires_at":"2026-12-01T00:00:00Z"}"#)
    );
}

#[test]
fn unknown_blocks_deltas_fields_and_stop_reasons_survive() {
    let reply = fold_stream(super::STREAMS[2].0);
    let json: Vec<&str> = reply.content.iter().map(|block| block.json.as_str()).collect();
    assert_eq!(
        json,
        [
            r#"{"type":"server_tool_use","id":"srvtoolu_1","name":"web_search","input":{"query":"x"}}"#,
            r#"{"type":"hologram","z":1.50,"note":"\ud83d","parts":[],"colour":"red","depth":4}"#,
            r#"{"type":"text","text":"It is so.","citations":[{"type":"char_location","cited_text":"a"},{"type":"char_location","cited_text":"b"}]}"#,
        ]
    );
    assert_eq!(reply.stop, Some(StopReason::Other("tea_time".to_owned())));
    assert_eq!(reply.stop_sequence.as_deref(), Some("##"));
    assert_eq!(reply.stop_details.as_deref(), Some(r#"{"type":"tea","cups":2}"#));
}

#[test]
fn the_type_in_the_data_decides_and_the_events_name_stands_in_for_it() {
    let mut fold = fold_events(&[START, TEXT, HELLO, CLOSE]).unwrap();
    assert_eq!(fold.event(b"ping", END_TURN.as_bytes()), Ok(Seen::Frame));
    assert_eq!(fold.event(b"message_stop", b"{}"), Ok(Seen::End));
    assert_eq!(fold.finish(Ended::Whole).text(), "hello");
}

#[test]
fn pings_in_words_and_foreign_sentinels_are_skipped() {
    let mut fold = Fold::new();
    for (name, data) in [("ping", "alive"), ("", "[DONE]"), ("", r#"{"type":"ping"}"#), ("", "{}")] {
        assert_eq!(fold.event(name.as_bytes(), data.as_bytes()), Ok(Seen::Nothing));
    }
}

#[test]
fn unreadable_events_are_broken() {
    let deep =
        format!(r#"{{"type":"content_block_delta","delta":{}1{}"#, "[".repeat(10_000), "]".repeat(10_000));
    for data in [
        "garbage",
        "[1]",
        "5",
        r#"{"type":"message_delta""#,
        r#"{"type":"a","type":"b"}"#,
        r#"{"type":"content_block_delta","index":0}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":5}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"text":"no type"}}"#,
        r#"{"type":"message_start","message":{"content":5}}"#,
        &deep,
    ] {
        assert!(fold_events(&[data]).is_err(), "{}", &data[..data.len().min(80)]);
    }
}

#[test]
fn deep_nesting_in_what_is_not_read_is_kept() {
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let block =
        format!(r#"{{"type":"content_block_start","index":0,"content_block":{{"type":"odd","x":{deep}}}}}"#);
    let reply = fold_events(&[&block]).unwrap().finish(Ended::Whole);
    assert_eq!(reply.content[0].json, format!(r#"{{"type":"odd","x":{deep}}}"#));
}

#[test]
fn text_for_a_block_that_holds_none_does_not_pass_for_an_answer_without_it() {
    let thinking = TEXT.replace(r#""type":"text","text":"""#, r#""type":"thinking","thinking":"""#);
    assert!(fold_events(&[START, &thinking, HELLO]).is_err());
}

#[test]
fn invalid_utf8_becomes_a_replacement_character() {
    let mut fold = fold_events(&[START, TEXT]).unwrap();
    let delta = b"{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"a\xffb\"}}";
    fold.event(b"", delta).unwrap();
    assert_eq!(fold.finish(Ended::Whole).text(), "a\u{fffd}b");
}

#[test]
fn a_lone_surrogate_beside_or_in_the_text_does_not_lose_it() {
    let delta = r#"{"type":"content_block_delta","index":0,"note":"\ud800","delta":{"type":"text_delta","text":"x\ud800y"}}"#;
    let reply = fold_events(&[START, TEXT, delta, CLOSE]).unwrap().finish(Ended::Whole);
    assert_eq!(reply.text(), "x\u{fffd}y");
    assert_eq!(reply.content[0].json, r#"{"type":"text","text":"x\ud800y"}"#);
}

#[test]
fn deltas_without_a_start_imply_their_block() {
    let reply = fold_events(&[START, HELLO, CLOSE, END_TURN, STOP]).unwrap().finish(Ended::Whole);
    assert_eq!((reply.text().as_str(), reply.content[0].whole), ("hello", true));
    let tool =
        r#"{"type":"content_block_delta","index":7,"delta":{"type":"input_json_delta","partial_json":"{}"}}"#;
    let reply = fold_events(&[START, tool, &CLOSE.replace('0', "7")]).unwrap().finish(Ended::Whole);
    assert_eq!((reply.content[0].kind.as_str(), reply.content[0].whole), ("tool_use", false));
}

#[test]
fn blocks_stand_in_the_order_of_their_indices_and_none_is_lost() {
    let one = |event: &str, n: &str| event.replace(r#""index":0"#, &format!(r#""index":{n}"#));
    let world = HELLO.replace("hello", " world");
    // Started in the wrong order.
    let events = [START, &one(TEXT, "1"), &one(&world, "1"), &one(CLOSE, "1"), TEXT, HELLO, CLOSE];
    assert_eq!(fold_events(&events).unwrap().finish(Ended::Whole).text(), "hello world");
    // Every block under the same index.
    let events = [START, TEXT, HELLO, CLOSE, TEXT, &world, CLOSE];
    let reply = fold_events(&events).unwrap().finish(Ended::Whole);
    assert_eq!((reply.text().as_str(), reply.content.len()), ("hello world", 2));
    // No index, and indices that are none.
    for n in ["null", "-1", "\"x\"", "1e99", "99999999999999999999"] {
        let events = [START, &one(TEXT, n), &one(HELLO, n), &one(&world, n), &one(CLOSE, n)];
        let reply = fold_events(&events).unwrap().finish(Ended::Whole);
        assert_eq!((reply.text().as_str(), reply.content.len()), ("hello world", 1), "{n}");
        assert!(reply.content[0].whole);
    }
}

#[test]
fn a_second_message_start_is_broken_behind_content_and_harmless_before_it() {
    assert!(fold_events(&[START, TEXT, HELLO, START]).is_err());
    assert!(fold_events(&[START, END_TURN, START]).is_err());
    let again = START.replace("\"m\"", "\"m2\"");
    let reply = fold_events(&[START, &again, TEXT, HELLO]).unwrap().finish(Ended::Whole);
    assert_eq!((reply.message_id.as_deref(), reply.text().as_str()), (Some("m2"), "hello"));
}

#[test]
fn content_in_message_start_counts_and_a_start_of_the_same_index_replaces_it() {
    let start = START.replace(r#""content":[]"#, r#""content":[{"type":"text","text":"hel"}]"#);
    let more = HELLO.replace("hello", "lo");
    let reply = fold_events(&[&start, &more, CLOSE]).unwrap().finish(Ended::Whole);
    assert_eq!(reply.content[0].json, r#"{"type":"text","text":"hello"}"#);
    let reply = fold_events(&[&start, TEXT, HELLO, CLOSE]).unwrap().finish(Ended::Whole);
    assert_eq!((reply.text().as_str(), reply.content.len()), ("hello", 1));
}

#[test]
fn without_message_stop_only_a_closed_answer_with_nothing_behind_its_stop_reason_is_settled() {
    let settled = |events: &[&str]| fold_events(events).unwrap().settled();
    assert!(settled(&[START, TEXT, HELLO, CLOSE, END_TURN]));
    assert!(!settled(&[START, TEXT, HELLO, CLOSE]));
    assert!(!settled(&[START, TEXT, HELLO, END_TURN]));
    assert!(settled(&[START, TEXT, HELLO, END_TURN, CLOSE]));
    assert!(!settled(&[START, TEXT, HELLO, CLOSE, END_TURN, HELLO]));
    assert!(!settled(&[START, TEXT, HELLO, CLOSE, END_TURN, HELLO, CLOSE]));
    assert!(settled(&[START, TEXT, HELLO, CLOSE, END_TURN, &HELLO.replace("hello", "")]));
    let early = START.replace(r#""content""#, r#""stop_reason":"end_turn","content""#);
    assert!(!settled(&[&early, TEXT, HELLO, CLOSE]));
    let fold = fold_events(&[&early, TEXT, HELLO, CLOSE, STOP]).unwrap();
    assert_eq!(fold.finish(Ended::Whole).stop, Some(StopReason::EndTurn));
}

#[test]
fn empty_and_odd_stop_reasons_are_no_stop_reasons() {
    for stop in ["null", "\"\"", "5", "{}"] {
        let event = END_TURN.replace("\"end_turn\"", stop);
        assert!(!fold_events(&[START, &event]).unwrap().has_stop(), "{stop}");
    }
}

#[test]
fn broken_tool_input_is_kept_as_text_and_not_whole() {
    let start = r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","name":"n","input":{}}}"#;
    let piece = r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{\"a\": [1, "}}"#;
    let reply = fold_events(&[START, start, piece, CLOSE]).unwrap().finish(Ended::Whole);
    assert_eq!(reply.content[0].json, r#"{"type":"tool_use","id":"t","name":"n","input":"{\"a\": [1, "}"#);
    assert!(!reply.content[0].whole);
}

#[test]
fn blocks_that_were_not_closed_are_not_whole() {
    let reply = fold_events(&[START, TEXT, HELLO]).unwrap().finish(Ended::Cut);
    assert_eq!((reply.text().as_str(), reply.content[0].whole), ("hello", false));
    // Again open by what came behind its stop.
    let reply = fold_events(&[START, TEXT, HELLO, CLOSE, HELLO]).unwrap().finish(Ended::Cut);
    assert_eq!((reply.text().as_str(), reply.content[0].whole), ("hellohello", false));
}

#[test]
fn output_of_a_cut_call_is_estimated_from_what_arrived() {
    let long = HELLO.replace("hello", &"x".repeat(700));
    let events = [START, TEXT, &long];
    let cut = fold_events(&events).unwrap().finish(Ended::Cut).usage;
    assert_eq!(cut, Usage { input: 10, output: 200, ..Usage::default() });
    assert_eq!(fold_events(&events).unwrap().finish(Ended::Whole).usage.output, 1);
    let counted = END_TURN.replace(":5", ":900");
    let cut = fold_events(&[START, TEXT, &long, &counted]).unwrap().finish(Ended::Cut).usage;
    assert_eq!(cut.output, 900);
}

#[test]
fn errors_are_seen_with_and_without_a_type() {
    let error =
        r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"r1"}"#;
    for data in [error.to_owned(), error.replace(r#""type":"error","#, "")] {
        let Ok(Seen::Error(error, id)) = Fold::new().event(b"", data.as_bytes()) else { panic!("{data}") };
        assert_eq!((error.status, error.kind.as_str()), (200, "overloaded_error"));
        assert_eq!(id.as_deref(), Some("r1"));
    }
}

#[test]
fn a_whole_message_is_read_like_its_stream() {
    let json = r#"{"id":"m","type":"message","model":"c","content":[{"type":"thinking","thinking":"t","signature":"s"},{"type":"text","text":"hi"}],
        "stop_reason":"max_tokens","stop_sequence":null,"usage":{"input_tokens":1,"output_tokens":2}}"#;
    let mut fold = Fold::new();
    assert_eq!(fold.whole_message(json.as_bytes()), Ok(Seen::End));
    let reply = fold.finish(Ended::Whole);
    assert_eq!((reply.text().as_str(), reply.stop), ("hi", Some(StopReason::MaxTokens)));
    assert_eq!((reply.content.len(), reply.usage.output), (2, 2));
    assert!(reply.content.iter().all(|block| block.whole));
    for broken in ["", "null", "[]", "{}", r#"{"id":"m"}"#, r#"{"content":[1]}"#] {
        assert!(Fold::new().whole_message(broken.as_bytes()).is_err(), "{broken}");
    }
}

#[test]
fn a_stream_cut_at_any_byte_never_passes_for_whole_with_something_missing() {
    for (stream, _) in super::STREAMS {
        let whole = shown(&fold_stream(stream));
        let crlf = stream.replace('\n', "\r\n");
        for stream in [stream, crlf.as_str()] {
            for end in 0..=stream.len() {
                let (fold, over) = fold_chunks(&[&stream.as_bytes()[..end]]);
                if !over && !fold.settled() {
                    continue;
                }
                let reply = fold.finish(Ended::Whole);
                // Behind the stop reason only the usage may still grow.
                let unfinished = shown(&reply).replace("output: 12", "output: 15");
                let unfinished = unfinished.replace(r#"output_tokens\":12"#, r#"output_tokens\":15"#);
                assert_eq!(unfinished, whole, "cut at {end}");
            }
        }
    }
}

/// Something like an event: valid pieces in any order, with any index.
fn any_event() -> impl Strategy<Value = String> {
    let index = prop_oneof![Just("0"), Just("1"), Just("5"), Just("-1"), Just("null")];
    let event = prop::sample::select(vec![START, TEXT, HELLO, CLOSE, END_TURN, STOP]);
    (event, index).prop_map(|(event, index)| event.replace(r#""index":0"#, &format!(r#""index":{index}"#)))
}

proptest! {
    #[test]
    fn the_reply_does_not_depend_on_how_the_stream_was_cut(
        which in 0..super::STREAMS.len(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let stream = super::STREAMS[which].0.as_bytes();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
        let reply = fold_chunks(&chunks).0.finish(Ended::Whole);
        prop_assert_eq!(shown(&reply), shown(&fold_stream(super::STREAMS[which].0)));
    }

    #[test]
    fn events_in_any_order_keep_every_piece_of_text_or_are_broken(
        events in prop::collection::vec(any_event(), 0..25),
    ) {
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        if let Ok(fold) = fold_events(&events) {
            let said = events.iter().filter(|event| event.contains("hello")).count();
            prop_assert_eq!(fold.finish(Ended::Cut).text(), "hello".repeat(said));
        }
    }

    #[test]
    fn text_comes_back_however_it_was_escaped_and_cut(
        text in "\\PC{0,40}",
        ascii in any::<bool>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        // The pieces of the escaped form, cut between code units.
        let mut pieces: Vec<String> = if ascii {
            text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect()
        } else {
            text.chars().map(|c| {
                let json = serde_json::Value::from(c.to_string()).to_string();
                json[1..json.len() - 1].to_owned()
            }).collect()
        };
        let mut fold = fold_events(&[START, TEXT]).unwrap();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(pieces.len() + 1)).collect();
        cuts.sort_unstable();
        let mut deltas = Vec::new();
        while let Some(cut) = cuts.pop() {
            deltas.push(pieces.split_off(cut.min(pieces.len())).concat());
        }
        deltas.push(pieces.concat());
        for delta in deltas.iter().rev() {
            fold.event(b"", HELLO.replace("hello", delta).as_bytes()).unwrap();
        }
        prop_assert_eq!(fold.finish(Ended::Whole).text(), text);
    }

    #[test]
    fn unknown_stop_reasons_survive(word in "[a-z_]{1,30}") {
        let event = END_TURN.replace("end_turn", &word);
        let reply = fold_events(&[START, &event, STOP]).unwrap().finish(Ended::Whole);
        let stop = reply.stop.unwrap();
        prop_assert_eq!(stop.as_str(), word.as_str());
    }
}
