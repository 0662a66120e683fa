//! Every stop reason, every way of going on, and the law that a resumed talk stands where an
//! undisturbed one would.

use std::collections::HashMap;

use super::*;
use crate::domain::job::{Claimed, Defaults, JobId, Lease, ModelFacts, Policy};
use crate::domain::ledger::PastCall;
use crate::domain::seam;
use crate::domain::tool::ToolContent;

fn job(params: &str, policy: &str) -> Job {
    let defaults = Defaults {
        model: "m".into(),
        max_tokens: None,
        policy: Policy::default(),
        mcp_servers: false,
        cache_turns: true,
        request_max: 1 << 25,
        models: HashMap::from([(
            "m".to_owned(),
            ModelFacts { max_tokens: 64_000, binding: false, prefill: false, window: None, structured: true },
        )]),
    };
    let claimed = Claimed {
        lease: Lease { job: JobId(1), claim: 1, run: 1 },
        queue: "default".into(),
        batch: None,
        prompt: Some("Tell me".into()),
        system: None,
        model: None,
        max_tokens: Some(1000),
        params: Some(params.into()),
        policy: Some(policy.into()),
        queue_model: None,
        queue_policy: None,
        garbled: None,
        bytes: 7,
        waited: None,
        tally: Tally::default(),
        calls: Vec::new(),
        tools: Vec::new(),
    };
    Job::read(&claimed, &defaults).expect("a valid job")
}

fn talk(params: &str, policy: &str) -> Talk {
    Talk::resume(job(params, policy), &[], &[], Instant::now())
}

fn reply(stop: &str, content: &str) -> Reply {
    Reply { content: Block::read_all(content), stop: Some(StopReason::from(stop)), ..Reply::default() }
}

fn said(stop: &str, text: &str) -> Reply {
    Reply { content: vec![Block::text(text)], stop: Some(StopReason::from(stop)), ..Reply::default() }
}

/// Pushes a reply as the next row of the first claim.
fn push(talk: &mut Talk, reply: Reply) -> Option<String> {
    talk.push(reply, 1, 1)
}

fn asked(talk: &Talk) -> Request {
    match talk.next() {
        Step::Ask(request) => request,
        other => panic!("asks nothing: {other:?}"),
    }
}

fn ended(talk: &Talk) -> Answer {
    match talk.next() {
        Step::Done(verdict) => talk.clone().answer(verdict, Tally::default()),
        other => panic!("is not over: {other:?}"),
    }
}

fn body(request: &Request) -> serde_json::Value {
    serde_json::from_slice(&request.body.to_vec()).expect("a body is JSON")
}

/// A text without repetitions, long enough to be cut anywhere.
fn prose(words: usize) -> String {
    (0..words).map(|n| format!("word{n}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn each_stop_reason_has_its_outcome_and_only_an_answer_is_complete() {
    let text = r#"[{"type":"text","text":"hi"}]"#;
    let tool = r#"[{"type":"tool_use","id":"t","name":"n","input":{}}]"#;
    for (stop, content, outcome) in [
        ("end_turn", text, Outcome::Complete),
        ("stop_sequence", text, Outcome::Complete),
        ("end_turn", r#"[{"type":"container_upload","file_id":"f"}]"#, Outcome::Complete),
        ("end_turn", tool, Outcome::NeedsTool),
        ("tool_use", tool, Outcome::NeedsTool),
        ("refusal", text, Outcome::Refused),
        ("refusal", "[]", Outcome::Refused),
        ("model_context_window_exceeded", text, Outcome::Truncated),
        ("stop_sequence", "[]", Outcome::Empty),
        ("stop_sequence", SEARCHED, Outcome::Empty),
        ("compaction", text, Outcome::Unreviewed),
        ("a_word_of_tomorrow", text, Outcome::Unreviewed),
    ] {
        let mut talk = talk("{}", "{}");
        push(&mut talk, reply(stop, content));
        let answer = ended(&talk);
        assert_eq!(answer.outcome, outcome, "{stop} {content}");
        assert_eq!(answer.stop_reason.as_deref(), Some(stop));
        assert_eq!(
            answer.fault.is_none(),
            matches!(outcome, Outcome::Complete | Outcome::NeedsTool),
            "{stop}"
        );
    }
}

#[test]
fn a_refusals_text_is_no_answer_but_stands_in_content() {
    let mut talk = talk("{}", "{}");
    push(&mut talk, said("refusal", "I was about to"));
    let answer = ended(&talk);
    assert_eq!(answer.text, None);
    assert!(answer.content.expect("kept").contains("I was about to"));
}

#[test]
fn text_after_thinking_is_the_text() {
    let mut talk = talk("{}", "{}");
    push(
        &mut talk,
        reply(
            "end_turn",
            r#"[{"type":"thinking","thinking":"hm","signature":"s"},{"type":"text","text":"a"},{"type":"text","text":"b"}]"#,
        ),
    );
    assert_eq!(ended(&talk).text.as_deref(), Some("ab"));
}

#[test]
fn an_empty_answer_is_nudged_once() {
    let mut talk = talk("{}", "{}");
    push(&mut talk, reply("end_turn", "[]"));
    let request = asked(&talk);
    assert_eq!(request.kind, CallKind::Nudge);
    assert_eq!(body(&request)["messages"][1]["content"], NUDGE);
    push(&mut talk, reply("end_turn", r#"[{"type":"text","text":""}]"#));
    assert_eq!(ended(&talk).outcome, Outcome::Empty);
}

/// A tool of the API was called and has answered, and nothing was said of it.
const SEARCHED: &str = r#"[{"type":"thinking","thinking":"hm","signature":"s"},{"type":"server_tool_use","id":"v","name":"web_search","input":{}},
    {"type":"web_search_tool_result","tool_use_id":"v","content":[]}]"#;
const SEARCHES: &str = r#"[{"type":"server_tool_use","id":"v","name":"web_search","input":{}}]"#;

#[test]
fn what_the_model_did_to_find_an_answer_is_none() {
    let container = r#"[{"type":"bash_code_execution_tool_result","tool_use_id":"v"},{"type":"mcp_tool_use","id":"w"},{"type":"mcp_tool_result"}]"#;
    let marks = r#"[{"type":"compaction","content":"so far"},{"type":"fallback"}]"#;
    for silence in [SEARCHED, SEARCHES, container, marks] {
        let mut talk = talk("{}", "{}");
        push(&mut talk, reply("end_turn", silence));
        assert_eq!(asked(&talk).kind, CallKind::Nudge, "{silence}");
        let mut spoke = talk.clone();
        push(&mut spoke, said("end_turn", "Found."));
        let answer = ended(&spoke);
        assert_eq!((answer.outcome, answer.text.as_deref()), (Outcome::Complete, Some("Found.")));
        push(&mut talk, reply("end_turn", silence));
        let answer = ended(&talk);
        assert_eq!((answer.outcome, answer.text), (Outcome::Empty, None), "{silence}");
    }
    let mut unknown = talk("{}", "{}");
    push(&mut unknown, reply("end_turn", r#"[{"type":"hologram"}]"#));
    assert_eq!(ended(&unknown).outcome, Outcome::Complete, "what nobody knows may well be an answer");
}

#[test]
fn what_was_found_is_sent_back_with_the_nudge_and_a_call_without_its_result_is_not() {
    let messages = |talk: &Talk| body(&asked(talk))["messages"].as_array().expect("messages").clone();
    let mut found = talk("{}", "{}");
    push(&mut found, reply("end_turn", SEARCHED));
    let sent = messages(&found);
    assert_eq!(sent.len(), 3);
    assert_eq!(sent[1]["content"], serde_json::from_str::<serde_json::Value>(SEARCHED).unwrap());
    assert_eq!(sent[2]["content"], NUDGE);

    let mut lost = talk("{}", "{}");
    push(&mut lost, reply("pause_turn", SEARCHES));
    push(&mut lost, reply("end_turn", "[]"));
    assert_eq!(asked(&lost).kind, CallKind::Nudge);
    assert_eq!(messages(&lost).len(), 2, "the API refuses a call that has no result");

    let mut paused = talk("{}", "{}");
    push(&mut paused, reply("pause_turn", SEARCHED));
    push(&mut paused, reply("end_turn", "[]"));
    assert_eq!(asked(&paused).kind, CallKind::Nudge);
    assert_eq!(messages(&paused).len(), 3);
    push(&mut paused, reply("end_turn", "[]"));
    assert_eq!(ended(&paused).outcome, Outcome::Empty);
}

#[test]
fn a_paused_turn_is_sent_back_verbatim_and_its_parts_are_one_turn() {
    let mut talk = talk(r#"{"tools":[{"type":"web_search"}],"container":"old"}"#, "{}");
    let paused = r#"[{"type":"text","text":"a"},{"type":"server_tool_use","id":"s","z":1.50,"name":"web","input":{}}]"#;
    push(&mut talk, Reply { container: Some(r#"{"id":"c1"}"#.into()), ..reply("pause_turn", paused) });
    let request = asked(&talk);
    assert_eq!(request.kind, CallKind::Pause);
    let sent = String::from_utf8(request.body.to_vec()).expect("utf-8");
    assert!(sent.contains(&format!(r#"{{"role":"assistant","content":{paused}}}"#)), "{sent}");
    assert!(sent.contains(r#""container":"c1""#) && !sent.contains("old"), "{sent}");
    push(&mut talk, said("end_turn", "b"));
    let answer = ended(&talk);
    assert_eq!((answer.outcome, answer.text.as_deref()), (Outcome::Complete, Some("ab")));
}

#[test]
fn pauses_end_at_max_turns() {
    let mut talk = talk("{}", r#"{"max_turns":1}"#);
    push(&mut talk, said("pause_turn", "a"));
    push(&mut talk, said("pause_turn", "b"));
    assert_eq!(ended(&talk).outcome, Outcome::Paused);
}

#[test]
fn a_cut_answer_grows_whole_with_doubling_room_and_anchored_seams() {
    let whole = prose(6000);
    let mut talk = talk("{}", "{}");
    let (mut from, mut rooms) = (0, Vec::new());
    loop {
        let request = asked(&talk);
        rooms.push(request.max_tokens);
        let sent = body(&request);
        let anchor = if request.kind == CallKind::Continue {
            assert_eq!(sent["messages"][1]["role"], "assistant");
            assert_eq!(sent["messages"][1]["content"], whole[..from].trim_end());
            assert_eq!(sent["messages"][2]["role"], "user");
            crate::domain::seam::anchor(&whole[..from])
        } else {
            ""
        };
        let to = (from + request.max_tokens as usize).min(whole.len());
        let stop = if to == whole.len() { "end_turn" } else { "max_tokens" };
        let text =
            format!("{anchor}{}", &whole[from - whole[..from].len() + whole[..from].trim_end().len()..to]);
        let note = push(&mut talk, said(stop, &text));
        if request.kind == CallKind::Continue {
            assert_eq!(note.as_deref(), Some(r#"{"how":"anchor","seam":"anchored"}"#));
        }
        from = to;
        if to == whole.len() {
            break;
        }
    }
    assert_eq!(rooms, [1000, 2000, 4000, 8000, 16000, 32000]);
    let answer = ended(&talk);
    assert_eq!(answer.text.as_deref(), Some(whole.as_str()));
    assert_eq!((answer.outcome, answer.continuations, answer.seams), (Outcome::Complete, 5, 0));
    assert_eq!(
        Block::read_all(answer.content.as_deref().unwrap_or("")).len(),
        1,
        "text at a seam is made one"
    );
}

#[test]
fn what_cannot_be_stitched_is_asked_again_with_more_room() {
    let thinking = r#"[{"type":"thinking","thinking":"hm"}]"#;
    let tool = r#"[{"type":"text","text":"let me"},{"type":"tool_use","id":"t","name":"n","input":{}}]"#;
    let text = r#"[{"type":"text","text":"{\"a\": 1, \"b"}]"#;
    let schema = r#"{"output_config":{"format":{"type":"json_schema","schema":{}}}}"#;
    for (params, policy, content) in [
        ("{}", "{}", thinking),
        (r#"{"tools":[]}"#, "{}", tool),
        (schema, "{}", text),
        ("{}", r#"{"on_max_tokens":"regenerate"}"#, text),
    ] {
        let mut talk = talk(params, policy);
        push(&mut talk, reply("max_tokens", content));
        let request = asked(&talk);
        assert_eq!(
            (request.kind, request.max_tokens, request.messages),
            (CallKind::Regenerate, 4096, 1),
            "{content}"
        );
        for _ in 0..4 {
            push(&mut talk, reply("max_tokens", content));
        }
        assert_eq!(asked(&talk).max_tokens, 64_000);
        push(&mut talk, reply("max_tokens", content));
        assert_eq!(ended(&talk).outcome, Outcome::Truncated, "{content}");
    }
}

#[test]
fn the_guards_stop_an_answer_that_does_not_end() {
    let mut stop = talk("{}", r#"{"on_max_tokens":"stop"}"#);
    push(&mut stop, said("max_tokens", "half an"));
    assert_eq!(ended(&stop).text.as_deref(), Some("half an"));

    let mut idle = talk("{}", "{}");
    push(&mut idle, said("max_tokens", &prose(300)));
    push(&mut idle, said("max_tokens", "and so"));
    assert_eq!(ended(&idle).fault.and_then(|fault| fault.code).as_deref(), Some("no_progress"));

    let mut round = talk("{}", "{}");
    push(&mut round, said("max_tokens", &prose(900)));
    push(&mut round, said("end_turn", &prose(900)[..3000]));
    let answer = ended(&round);
    assert_eq!(
        (answer.outcome, answer.text),
        (Outcome::Truncated, Some(prose(900))),
        "a loop is no whole answer"
    );

    let mut few = talk("{}", r#"{"max_continuations":1}"#);
    push(&mut few, said("max_tokens", &prose(300)));
    push(&mut few, said("max_tokens", &format!("new {}", prose(900).split_off(3000))));
    assert_eq!(ended(&few).outcome, Outcome::Truncated);

    let long_answer = |text: &str, output: i64| Reply {
        usage: Usage { output, ..Usage::default() },
        ..said("max_tokens", text)
    };
    let mut long = talk("{}", r#"{"max_output_tokens":1500}"#);
    long.count(Usage { output: 9000, ..Usage::default() }, None, Instant::now());
    push(&mut long, long_answer(&prose(300), 1000));
    assert_eq!(asked(&long).max_tokens, 500, "what other calls cost is not this answer");
    push(&mut long, long_answer("something new that is longer than the least progress", 500));
    assert_eq!(ended(&long).fault.and_then(|fault| fault.code).as_deref(), Some("max_output_tokens"));
}

fn past(seq: i32, kind: &str, stop: Option<&str>, text: &str, error: Option<&str>) -> PastCall {
    PastCall {
        claim: 1,
        seq,
        kind: kind.into(),
        model: Some("m".into()),
        max_tokens: Some(1000),
        request: None,
        stop_reason: stop.map(str::to_owned),
        stop_details: None,
        usage: Usage { output: 10, ..Usage::default() },
        content: (!text.is_empty()).then(|| Block::write_all(&[Block::text(text)])),
        container: None,
        partial: stop.is_none() && !text.is_empty(),
        late: false,
        error_type: error.map(str::to_owned),
        request_id: None,
        sent_ago: Some(Duration::from_secs(5)),
    }
}

#[test]
fn a_resumed_talk_stands_where_an_undisturbed_one_would() {
    let (first, rest) = (prose(300), format!("and {}", prose(700).split_off(2500)));
    let mut straight = talk("{}", "{}");
    push(&mut straight, said("max_tokens", &first));
    let rows = [
        past(1, "ask", None, "", Some("overloaded_error")),
        past(2, "ask", Some("max_tokens"), &first, None),
    ];
    let mut resumed = Talk::resume(job("{}", "{}"), &rows, &[], Instant::now());
    assert_eq!(asked(&resumed).body, asked(&straight).body);
    push(&mut straight, said("end_turn", &rest));
    push(&mut resumed, said("end_turn", &rest));
    assert_eq!(ended(&resumed).text, ended(&straight).text);
    assert_eq!(ended(&resumed).calls, 2, "error rows feed the counters");
}

#[test]
fn what_came_too_late_is_paid_for_but_is_no_part_of_the_talk() {
    let late = PastCall { late: true, ..past(1, "ask", Some("end_turn"), "an answer", None) };
    let talk = Talk::resume(job("{}", "{}"), std::slice::from_ref(&late), &[], Instant::now());
    assert_eq!(asked(&talk).kind, CallKind::Ask);
    let answer = talk.answer(Verdict { outcome: Outcome::Failed, fault: None }, Tally::default());
    assert_eq!((answer.calls, answer.usage.output), (1, 10));
    let forbidden = Talk::resume(job("{}", r#"{"on_crash":"fail"}"#), &[late], &[], Instant::now());
    assert_eq!(ended(&forbidden).outcome, Outcome::Failed, "a call was made, whoever heard the answer");
}

#[test]
fn white_space_is_no_answer() {
    let mut talk = talk("{}", "{}");
    push(&mut talk, said("end_turn", " \n"));
    assert_eq!(asked(&talk).kind, CallKind::Nudge);
    push(&mut talk, said("end_turn", "\n"));
    assert_eq!(ended(&talk).outcome, Outcome::Empty);
}

#[test]
fn the_text_of_a_lost_stream_is_gone_on_with_only_where_it_is_worth_it() {
    let long = prose(600);
    let row = |text: &str| vec![past(1, "ask", None, text, Some("lost"))];
    let resume = |params: &str, policy: &str, rows: &[PastCall]| {
        Talk::resume(job(params, policy), rows, &[], Instant::now())
    };
    assert_eq!(asked(&resume("{}", "{}", &row(&long))).kind, CallKind::Resume);
    assert_eq!(asked(&resume("{}", "{}", &row("short"))).kind, CallKind::Ask);
    assert_eq!(asked(&resume(r#"{"tools":[]}"#, "{}", &row(&long))).kind, CallKind::Ask);
    assert_eq!(asked(&resume("{}", r#"{"on_crash":"retry"}"#, &row(&long))).kind, CallKind::Ask);
    let failed = ended(&resume("{}", r#"{"on_crash":"fail"}"#, &row(&long)));
    assert_eq!((failed.outcome, failed.calls), (Outcome::Failed, 1));
    let mut older = row(&long);
    older.push(past(2, "ask", None, "newer", None));
    assert_eq!(asked(&resume("{}", "{}", &older)).kind, CallKind::Ask, "only the newest partial row counts");
}

#[test]
fn what_was_gone_on_with_counts_for_ever() {
    let (first, second) = (prose(600), format!("{} {}", &prose(600)[4000..], prose(900).split_off(5500)));
    let rows = [
        past(1, "ask", None, &first, Some("stream_cut")),
        past(2, "resume", None, "too short", Some("stream_cut")),
        past(3, "resume", Some("max_tokens"), &second, None),
        past(4, "continue", None, "", Some("overloaded_error")),
    ];
    let resumed = Talk::resume(job("{}", "{}"), &rows, &[], Instant::now());
    let said = body(&asked(&resumed))["messages"][1]["content"].as_str().expect("text").to_owned();
    assert!(said.starts_with("word0 word1 "), "the first half is gone: {}", &said[..40]);
    assert!(said.ends_with("word899"), "{}", &said[said.len() - 40..]);
}

#[test]
fn a_cut_continuation_is_joined_the_way_it_was_asked_for() {
    let (first, anchored) =
        (prose(600), format!("{} and on {}", seam::anchor(&prose(600)), prose(1200).split_off(7000)));
    let mut row = past(2, "continue", None, &anchored, Some("stream_cut"));
    row.request = Some(r#"{"how":"anchor"}"#.to_owned());
    let rows = [past(1, "ask", Some("max_tokens"), &first, None), row];
    let job = Job { prefill: true, ..job("{}", "{}") };
    let resumed = Talk::resume(job, &rows, &[], Instant::now());
    let said = body(&asked(&resumed))["messages"][1]["content"].as_str().expect("text").to_owned();
    assert_eq!(said.matches("word599").count(), 1, "the anchor was kept");
}

#[test]
fn a_call_that_goes_on_says_how_before_it_is_answered() {
    let mut talk = talk("{}", "{}");
    assert_eq!(asked(&talk).note, None);
    push(&mut talk, said("max_tokens", &prose(300)));
    assert_eq!(asked(&talk).note.as_deref(), Some(r#"{"how":"anchor"}"#));
}

#[test]
fn a_model_that_says_nothing_to_a_cut_answer_has_not_finished_it() {
    for silence in [reply("end_turn", "[]"), said("end_turn", " \n")] {
        let mut talk = talk("{}", "{}");
        push(&mut talk, said("max_tokens", &prose(300)));
        push(&mut talk, silence);
        let answer = ended(&talk);
        assert_eq!(answer.outcome, Outcome::Truncated);
        assert_eq!(answer.fault.and_then(|fault| fault.code).as_deref(), Some("no_progress"));
    }
    let mut talk = talk("{}", "{}");
    push(&mut talk, said("max_tokens", &prose(300)));
    push(&mut talk, said("end_turn", seam::anchor(&prose(300))));
    assert_eq!(ended(&talk).outcome, Outcome::Complete, "the anchor alone says that nothing was missing");
}

fn prefilled(rows: &[PastCall]) -> Talk {
    Talk::resume(Job { prefill: true, ..job("{}", "{}") }, rows, &[], Instant::now())
}

#[test]
fn a_prefilled_model_that_says_nothing_has_not_finished_a_cut_answer_either() {
    let silences = [reply("end_turn", "[]"), said("end_turn", " \n"), reply("end_turn", "[]")];
    let lost = [past(1, "ask", None, &prose(600), Some("lost"))];
    let mut cut = prefilled(&[]);
    push(&mut cut, said("max_tokens", &prose(300)));
    for (at, mut talk) in [cut.clone(), cut.clone(), prefilled(&lost)].into_iter().enumerate() {
        assert!(asked(&talk).prefilled);
        push(&mut talk, silences[at].clone());
        let answer = ended(&talk);
        assert_eq!(answer.outcome, Outcome::Truncated, "{at}");
        assert_eq!(answer.fault.and_then(|fault| fault.code).as_deref(), Some("no_progress"));
        assert!(answer.text.is_some_and(|text| text.starts_with("word0 ")), "what was said is kept");
    }
    push(&mut cut, reply("stop_sequence", "[]"));
    assert_eq!(ended(&cut).outcome, Outcome::Complete, "the stop sequence came where the answer was cut");
}

#[test]
fn structured_output_that_is_not_json_is_not_complete() {
    let params = r#"{"output_config":{"format":{"type":"json_schema","schema":{}}}}"#;
    let answered = |text: &str| {
        let mut talk = talk(params, "{}");
        push(&mut talk, said("end_turn", text));
        ended(&talk)
    };
    let whole = answered(r#"{"a":1}"#);
    assert_eq!((whole.outcome, whole.output.as_deref()), (Outcome::Complete, Some(r#"{"a":1}"#)));
    let torn = answered(r#"{"a":"#);
    assert_eq!(
        (torn.outcome, torn.output, torn.text.as_deref()),
        (Outcome::InvalidOutput, None, Some(r#"{"a":"#))
    );
}

#[test]
fn citations_of_both_sides_of_a_seam_are_kept() {
    let first = prose(100);
    let mut talk = talk("{}", "{}");
    let block = |text: &str, cite: i32| {
        serde_json::json!([{"type":"text","text":text,"citations":[{"n":cite}]}]).to_string()
    };
    push(&mut talk, reply("max_tokens", &block(&first, 1)));
    push(&mut talk, reply("end_turn", &block(" and then something else entirely, to the end", 2)));
    let content = ended(&talk).content.expect("content");
    assert!(content.contains(r#""citations":[{"n":1},{"n":2}]"#), "{content}");
}

#[test]
fn what_no_database_can_show_is_replaced_and_counted() {
    let mut talk = talk("{}", "{}");
    push(&mut talk, reply("end_turn", r#"[{"type":"text","text":"a\u0000b\ud83d"}]"#));
    let answer = ended(&talk);
    assert_eq!(answer.text.as_deref(), Some("a\u{fffd}b\u{fffd}"));
    assert_eq!(answer.content.as_deref(), Some(r#"[{"type":"text","text":"a\ufffdb\ufffd"}]"#));
    assert_eq!(answer.sanitised, 2);
}

const TOOL: &str = r#"{"tools":[{"name":"f","input_schema":{}}]}"#;
const TWO_CALLS: &str = r#"[{"type":"thinking","thinking":"hm","signature":"s"},{"type":"text","text":"I look. "},
    {"type":"tool_use","id":"a","name":"f","input":{ "n" : 1 }},{"type":"tool_use","id":"b","name":"f","input":{}}]"#;

fn calls_tools(talk: &Talk) -> Asked {
    match talk.next() {
        Step::Tools(asked) => asked,
        other => panic!("asks for no tools: {other:?}"),
    }
}

fn gave(text: &str) -> ToolResult {
    ToolResult { content: ToolContent::Text(text.to_owned()), is_error: false }
}

#[test]
fn tool_calls_are_answered_in_one_message_that_holds_nothing_else() {
    let mut talk = talk(TOOL, r#"{"on_tool_use":"wait"}"#);
    push(&mut talk, reply("tool_use", TWO_CALLS));
    let asked_for = calls_tools(&talk);
    assert_eq!((asked_for.claim, asked_for.seq), (1, 1));
    assert_eq!(asked_for.tools[0].input, r#"{ "n" : 1 }"#, "as it came");
    let picture = ToolContent::Blocks(r#"[{"type":"image"}]"#.to_owned());
    talk.answer_tools(&[gave(""), ToolResult { content: picture, is_error: true }]);
    let request = asked(&talk);
    assert_eq!(request.kind, CallKind::Tool);
    let body = body(&request);
    assert_eq!(body["messages"].as_array().map(Vec::len), Some(3));
    assert_eq!(body["messages"][1]["content"], serde_json::from_str::<serde_json::Value>(TWO_CALLS).unwrap());
    assert_eq!(
        body["messages"][2],
        serde_json::json!({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "a", "content": ""},
            {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "image"}], "is_error": true},
        ]})
    );
    assert_eq!(body["tools"][0]["name"], "f");
    push(&mut talk, said("end_turn", "Done."));
    let answer = ended(&talk);
    assert_eq!(answer.outcome, Outcome::Complete);
    assert_eq!(answer.text.as_deref(), Some("Done."), "the last turn alone");
}

#[test]
fn a_thought_that_was_cut_is_not_sent_back_and_a_whole_one_is() {
    for cut in
        [r#"{"type":"thinking","thinking":"so"}"#, r#"{"type":"thinking","thinking":"so","signature":""}"#]
    {
        let mut talk = talk(TOOL, r#"{"on_tool_use":"wait"}"#);
        let text = prose(40);
        let whole = r#"{"type":"thinking","thinking":"hm","signature":"s"}"#;
        push(
            &mut talk,
            reply("max_tokens", &format!(r#"[{whole},{{"type":"text","text":"{text}"}},{cut}]"#)),
        );
        let request = asked(&talk);
        assert_eq!(request.kind, CallKind::Continue);
        let sent = body(&request)["messages"].to_string();
        assert!(sent.contains(r#""signature":"s""#) && !sent.contains(r#""so""#), "{sent}");
    }
}

#[test]
fn an_error_that_says_nothing_is_sent_with_a_sentence() {
    for nothing in
        [ToolContent::Text(String::new()), ToolContent::Text(" \n".into()), ToolContent::Blocks("[]".into())]
    {
        let mut talk = talk(TOOL, r#"{"on_tool_use":"wait"}"#);
        push(&mut talk, reply("tool_use", TWO_CALLS));
        talk.answer_tools(&[ToolResult { content: nothing.clone(), is_error: true }, gave("")]);
        let results = &body(&asked(&talk))["messages"][2]["content"];
        assert_eq!(results[0]["content"], "The tool failed and gave no reason.", "{nothing:?}");
        assert_eq!(results[1]["content"], "", "an answer may be empty");
    }
}

#[test]
fn results_that_are_no_array_are_shown_as_text() {
    let mut talk = talk(TOOL, r#"{"on_tool_use":"wait"}"#);
    push(&mut talk, reply("tool_use", TWO_CALLS));
    let broken = ToolResult { content: ToolContent::Blocks("{oops".to_owned()), is_error: false };
    talk.answer_tools(&[broken, gave("x")]);
    assert_eq!(body(&asked(&talk))["messages"][2]["content"][0]["content"], "{oops");
}

#[test]
fn tools_and_pauses_end_at_max_turns() {
    let mut talk = talk(TOOL, r#"{"on_tool_use":"run","max_turns":2}"#);
    push(&mut talk, reply("pause_turn", r#"[{"type":"server_tool_use","id":"v"}]"#));
    push(&mut talk, reply("tool_use", TWO_CALLS));
    talk.answer_tools(&[gave("1"), gave("2")]);
    push(&mut talk, reply("tool_use", TWO_CALLS));
    let answer = ended(&talk);
    assert_eq!(answer.outcome, Outcome::NeedsTool);
    assert!(answer.fault.expect("says why").message.contains("max_turns = 2"));
    assert!(answer.content.expect("the calls are there").contains("tool_use"));
}

#[test]
fn a_cut_tool_call_is_asked_for_again_after_the_same_results() {
    let mut talk = talk(TOOL, r#"{"on_tool_use":"wait"}"#);
    push(&mut talk, reply("tool_use", TWO_CALLS));
    talk.answer_tools(&[gave("1"), gave("2")]);
    let before = body(&asked(&talk));
    push(&mut talk, reply("max_tokens", r#"[{"type":"tool_use","id":"c","name":"f","input":{}}]"#));
    let again = asked(&talk);
    assert_eq!(again.kind, CallKind::Regenerate);
    assert_eq!(body(&again)["messages"], before["messages"]);
    assert!(again.max_tokens > 1000);
}

#[test]
fn what_a_schema_does_not_take_is_shown_to_the_model_as_often_as_the_policy_says() {
    let mut talk = talk("{}", r#"{"output_schema":{"type":"object","required":["ok"]},"max_repairs":1}"#);
    push(&mut talk, said("end_turn", "[1]"));
    let request = asked(&talk);
    assert_eq!(request.kind, CallKind::Repair);
    let sent = body(&request);
    assert_eq!(sent["messages"][1]["content"][0]["text"], "[1]");
    assert!(sent["messages"][2]["content"].to_string().contains("is not of type"), "{sent}");
    let mut better = talk.clone();
    push(&mut better, said("end_turn", r#"{"ok":true}"#));
    let answer = ended(&better);
    assert_eq!((answer.outcome, answer.output.as_deref()), (Outcome::Complete, Some(r#"{"ok":true}"#)));
    push(&mut talk, said("end_turn", "[2]"));
    let answer = ended(&talk);
    assert_eq!((answer.outcome, answer.output), (Outcome::InvalidOutput, None));
    assert_eq!(answer.text.as_deref(), Some("[2]"), "the text is kept");
    assert!(answer.fault.expect("says why").message.contains("is not of type"));
}

#[test]
fn a_refusal_is_taken_to_the_fallback_model_once_and_without_foreign_thoughts() {
    let mut talk = talk(TOOL, r#"{"fallback_model":"other","on_tool_use":"wait"}"#);
    push(&mut talk, reply("tool_use", TWO_CALLS));
    talk.answer_tools(&[gave("1"), gave("2")]);
    push(&mut talk, said("refusal", "I was about to"));
    let request = asked(&talk);
    assert_eq!((request.kind, request.model.as_str()), (CallKind::Fallback, "other"));
    let sent = body(&request);
    assert_eq!(sent["model"], "other");
    assert_eq!(sent["messages"].as_array().map(Vec::len), Some(3), "nothing of the refusal: {sent}");
    assert!(!sent.to_string().contains("thinking"), "{sent}");
    let mut good = talk.clone();
    push(&mut good, Reply { model: Some("other".into()), ..said("end_turn", "Yes.") });
    let answer = ended(&good);
    assert_eq!((answer.outcome, answer.model.as_deref()), (Outcome::Complete, Some("other")));
    push(&mut talk, said("refusal", ""));
    assert_eq!(ended(&talk).outcome, Outcome::Refused);
}

#[test]
fn what_was_refused_is_no_answer_when_the_fallback_fails_too() {
    let mut talk = talk("{}", r#"{"fallback_model":"other"}"#);
    push(&mut talk, said("refusal", "I was about to"));
    let failed = talk.clone().answer(Verdict { outcome: Outcome::Failed, fault: None }, Tally::default());
    let cancelled = talk.interrupted(Vec::new(), Tally::default());
    for answer in [failed, cancelled] {
        assert_eq!((answer.text, answer.content), (None, None), "{}", answer.outcome);
    }
}

#[test]
fn no_model_is_its_own_fallback() {
    let mut talk = talk("{}", r#"{"fallback_model":"m"}"#);
    push(&mut talk, said("refusal", ""));
    assert_eq!(ended(&talk).outcome, Outcome::Refused);
}

#[test]
fn conversations_and_long_continuations_are_cached_unless_the_row_does_so() {
    let cached = |talk: &Talk| body(&asked(talk))["cache_control"]["type"] == "ephemeral";
    assert!(cached(&talk(TOOL, r#"{"on_tool_use":"wait"}"#)));
    assert!(!cached(&talk(TOOL, r#"{"on_tool_use":"finish"}"#)), "nothing is sent again");
    let own = r#"{"tools":[{"name":"f","input_schema":{},"cache_control":{"type":"ephemeral"}}]}"#;
    assert!(!cached(&talk(own, r#"{"on_tool_use":"wait"}"#)));
    let spoken_of = r#"{"tools":[{"name":"f","input_schema":{},"description":"sets \"cache_control\""}]}"#;
    assert!(cached(&talk(spoken_of, r#"{"on_tool_use":"wait"}"#)));
    for (tokens, is) in [(8191, false), (8192, true)] {
        let mut long = talk("{}", "{}");
        let usage = Usage { output: tokens, ..Usage::default() };
        push(&mut long, Reply { usage, ..said("max_tokens", &prose(300)) });
        assert_eq!(body(&asked(&long))["messages"][1]["content"].is_array(), is, "{tokens}");
        assert!(!cached(&long), "the text is, and not what is asked behind it");
    }
}

#[test]
fn what_was_sent_of_a_cached_text_is_sent_again_in_the_same_blocks() {
    let mut talk = talk("{}", "{}");
    let whole = prose(900);
    let (first, rest) = whole.split_at(whole.len() / 3);
    let (second, third) = rest.split_at(rest.len() / 2);
    let usage = Usage { output: 9000, ..Usage::default() };
    let mut blocks = Vec::new();
    for piece in [first, second] {
        push(&mut talk, Reply { usage, ..said("max_tokens", piece) });
        let body = body(&asked(&talk));
        let mut sent = body["messages"][1]["content"].as_array().expect("blocks").clone();
        let point = sent.last_mut().and_then(|last| last.as_object_mut()?.remove("cache_control"));
        assert_eq!(point, Some(serde_json::json!({ "type": "ephemeral" })));
        assert_eq!(body.to_string().matches("cache_control").count(), 1);
        assert_eq!(sent[..blocks.len()], blocks, "what the cache has is sent as it was");
        assert_eq!(sent.len(), blocks.len() + 1);
        blocks = sent;
    }
    let sent: String = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
    assert_eq!(sent, format!("{first}{second}").trim_end());
    push(&mut talk, Reply { usage, ..said("end_turn", third) });
    assert_eq!(ended(&talk).text.as_deref(), Some(whole.as_str()));
}

fn measured(policy: &str, params: &str, tokens: &[i64]) -> Talk {
    let mut talk = talk(params, policy);
    talk.job.facts.window = Some(1000);
    talk.job.max_tokens = 10;
    talk.room = 10;
    for tokens in tokens {
        talk.measured(*tokens, 1000);
    }
    talk
}

/// A talk of three turns, the second of them with a tool.
const TURNS: &str = r#"{"system":"stay","messages":[
    {"role":"user","content":"first"},{"role":"assistant","content":"one"},
    {"role":"user","content":"second"},
    {"role":"assistant","content":[{"type":"tool_use","id":"a","name":"f","input":{}}]},
    {"role":"user","content":[{"type":"tool_result","tool_use_id":"a","content":"r"}]},
    {"role":"assistant","content":"two"},
    {"role":"system","content":"mind this"},
    {"role":"user","content":"third"}]}"#;

#[test]
fn an_input_too_long_is_invalid_with_both_numbers() {
    let answer = ended(&measured("{}", TURNS.replace('\n', "").as_str(), &[1001]));
    assert_eq!(answer.outcome, Outcome::Invalid);
    let why = answer.fault.expect("says why").message;
    assert!(why.contains("1001 tokens") && why.contains("1000"), "{why}");
    asked(&measured("{}", TURNS, &[1000]));
}

#[test]
fn a_cut_answer_that_no_longer_fits_with_its_text_is_truncated_and_not_lost() {
    let cut = prose(300);
    for (policy, stop, kind) in [
        ("{}", "max_tokens", CallKind::Continue),
        (r#"{"on_max_tokens":"regenerate"}"#, "max_tokens", CallKind::Regenerate),
        (r#"{"on_context_overflow":"drop_oldest"}"#, "max_tokens", CallKind::Continue),
    ] {
        let mut talk = measured(policy, "{}", &[900]);
        push(&mut talk, said(stop, &cut));
        assert_eq!(asked(&talk).kind, kind);
        assert!(talk.mends());
        talk.measured(1001, 1000);
        let answer = ended(&talk);
        assert_eq!((answer.outcome, answer.text.as_deref()), (Outcome::Truncated, Some(cut.as_str())));
        let fault = answer.fault.expect("says why");
        assert_eq!((fault.kind.as_str(), fault.code.as_deref()), ("truncated", Some("context_window")));
        assert!(fault.message.contains("1001 tokens") && fault.message.contains("1000"), "{fault:?}");
    }
    let lost = [past(1, "ask", None, &prose(600), Some("lost"))];
    let mut talk = Talk::resume(job("{}", "{}"), &lost, &[], Instant::now());
    assert_eq!(asked(&talk).kind, CallKind::Resume);
    talk.measured(1001, 1000);
    assert_eq!(ended(&talk).text, Some(prose(600)));
}

#[test]
fn a_first_call_or_a_turn_with_tools_that_does_not_fit_is_no_cut_answer() {
    let mut talk = measured("{}", "{}", &[900]);
    assert!(!talk.mends());
    talk.count(Usage::default(), None, Instant::now());
    talk.measured(1001, 1000);
    assert_eq!(ended(&talk).outcome, Outcome::Failed);
    let mut talk = measured(r#"{"on_tool_use":"wait"}"#, TOOL, &[900]);
    push(&mut talk, reply("tool_use", TWO_CALLS));
    talk.answer_tools(&[gave("1"), gave("2")]);
    assert!(!talk.mends());
    talk.count(Usage::default(), None, Instant::now());
    talk.measured(1001, 1000);
    assert_eq!(ended(&talk).outcome, Outcome::Failed);
}

#[test]
fn whole_oldest_turns_are_dropped_until_it_fits() {
    let dropping = r#"{"on_context_overflow":"drop_oldest"}"#;
    let sent = |tokens: &[i64]| {
        let request = asked(&measured(dropping, TURNS, tokens));
        let body = body(&request);
        assert_eq!(body["messages"].as_array().map(Vec::len), usize::try_from(request.messages).ok());
        assert_eq!(body["system"], "stay");
        let firsts = [&body["messages"][0]["content"], &body["messages"][1]["content"]];
        (request.messages, firsts.map(ToString::to_string), request.note)
    };
    assert_eq!(sent(&[900]).0, 8, "it fits");
    let (left, firsts, note) = sent(&[1010]);
    assert_eq!((left, firsts[0].as_str()), (6, r#""second""#));
    assert_eq!(note.as_deref(), Some(r#"{"dropped":2}"#));
    let (left, firsts, note) = sent(&[1010, 1005]);
    assert_eq!(left, 2, "the result goes with its call");
    assert_eq!(firsts, [r#""mind this""#, r#""third""#], "what the system said stays");
    assert_eq!(note.as_deref(), Some(r#"{"dropped":6}"#));
    let much = sent(&[100_000]);
    assert_eq!(much.0, 2, "as much as must go goes at once");
    let over = ended(&measured(dropping, TURNS, &[100_000, 1001]));
    assert_eq!(over.outcome, Outcome::Invalid);
    assert!(over.fault.expect("says why").message.contains("even without its older turns"));
}

mod law;
