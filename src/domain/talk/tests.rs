//! Every stop reason, every way of going on, and the law that a resumed talk stands where an
//! undisturbed one would.

use std::collections::HashMap;

use super::*;
use crate::domain::job::{Claimed, Defaults, JobId, Lease, ModelFacts, Policy};
use crate::domain::seam;

fn job(params: &str, policy: &str) -> Job {
    let defaults = Defaults {
        model: "m".into(),
        max_tokens: None,
        policy: Policy::default(),
        mcp_servers: false,
        request_max: 1 << 25,
        models: HashMap::from([(
            "m".to_owned(),
            ModelFacts { max_tokens: 64_000, prefill: false, window: None, structured: true },
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
        tally: Tally::default(),
        calls: Vec::new(),
        tools: Vec::new(),
    };
    Job::read(&claimed, &defaults).expect("a valid job")
}

fn talk(params: &str, policy: &str) -> Talk {
    Talk::resume(job(params, policy), &[], Instant::now())
}

fn reply(stop: &str, content: &str) -> Reply {
    Reply { content: Block::read_all(content), stop: Some(StopReason::from(stop)), ..Reply::default() }
}

fn said(stop: &str, text: &str) -> Reply {
    Reply { content: vec![Block::text(text)], stop: Some(StopReason::from(stop)), ..Reply::default() }
}

fn asked(talk: &Talk) -> Request {
    match talk.next() {
        Step::Ask(request) => request,
        Step::Done(verdict) => panic!("over already: {verdict:?}"),
    }
}

fn ended(talk: &Talk) -> Answer {
    match talk.next() {
        Step::Done(verdict) => talk.answer(verdict, Tally::default()),
        Step::Ask(request) => panic!("still asks: {:?}", request.kind),
    }
}

fn body(request: &Request) -> serde_json::Value {
    serde_json::from_slice(&request.body).expect("a body is JSON")
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
        ("compaction", text, Outcome::Unreviewed),
        ("a_word_of_tomorrow", text, Outcome::Unreviewed),
    ] {
        let mut talk = talk("{}", "{}");
        talk.push(reply(stop, content));
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
    talk.push(said("refusal", "I was about to"));
    let answer = ended(&talk);
    assert_eq!(answer.text, None);
    assert!(answer.content.expect("kept").contains("I was about to"));
}

#[test]
fn text_after_thinking_is_the_text() {
    let mut talk = talk("{}", "{}");
    talk.push(reply("end_turn", r#"[{"type":"thinking","thinking":"hm","signature":"s"},{"type":"text","text":"a"},{"type":"text","text":"b"}]"#));
    assert_eq!(ended(&talk).text.as_deref(), Some("ab"));
}

#[test]
fn an_empty_answer_is_nudged_once() {
    let mut talk = talk("{}", "{}");
    talk.push(reply("end_turn", "[]"));
    let request = asked(&talk);
    assert_eq!(request.kind, CallKind::Nudge);
    assert_eq!(body(&request)["messages"][1]["content"], NUDGE);
    talk.push(reply("end_turn", r#"[{"type":"text","text":""}]"#));
    assert_eq!(ended(&talk).outcome, Outcome::Empty);
}

#[test]
fn a_paused_turn_is_sent_back_verbatim_and_its_parts_are_one_turn() {
    let mut talk = talk(r#"{"tools":[{"type":"web_search"}],"container":"old"}"#, "{}");
    let paused = r#"[{"type":"text","text":"a"},{"type":"server_tool_use","id":"s","z":1.50,"name":"web","input":{}}]"#;
    talk.push(Reply { container: Some(r#"{"id":"c1"}"#.into()), ..reply("pause_turn", paused) });
    let request = asked(&talk);
    assert_eq!(request.kind, CallKind::Pause);
    let sent = String::from_utf8(request.body.to_vec()).expect("utf-8");
    assert!(sent.contains(&format!(r#"{{"role":"assistant","content":{paused}}}"#)), "{sent}");
    assert!(sent.contains(r#""container":"c1""#) && !sent.contains("old"), "{sent}");
    talk.push(said("end_turn", "b"));
    let answer = ended(&talk);
    assert_eq!((answer.outcome, answer.text.as_deref()), (Outcome::Complete, Some("ab")));
}

#[test]
fn pauses_end_at_max_turns() {
    let mut talk = talk("{}", r#"{"max_turns":1}"#);
    talk.push(said("pause_turn", "a"));
    talk.push(said("pause_turn", "b"));
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
        let note = talk.push(said(stop, &text));
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
        talk.push(reply("max_tokens", content));
        let request = asked(&talk);
        assert_eq!(
            (request.kind, request.max_tokens, request.messages),
            (CallKind::Regenerate, 4096, 1),
            "{content}"
        );
        for _ in 0..4 {
            talk.push(reply("max_tokens", content));
        }
        assert_eq!(asked(&talk).max_tokens, 64_000);
        talk.push(reply("max_tokens", content));
        assert_eq!(ended(&talk).outcome, Outcome::Truncated, "{content}");
    }
}

#[test]
fn the_guards_stop_an_answer_that_does_not_end() {
    let mut stop = talk("{}", r#"{"on_max_tokens":"stop"}"#);
    stop.push(said("max_tokens", "half an"));
    assert_eq!(ended(&stop).text.as_deref(), Some("half an"));

    let mut idle = talk("{}", "{}");
    idle.push(said("max_tokens", &prose(300)));
    idle.push(said("max_tokens", "and so"));
    assert_eq!(ended(&idle).fault.and_then(|fault| fault.code).as_deref(), Some("no_progress"));

    let mut round = talk("{}", "{}");
    round.push(said("max_tokens", &prose(900)));
    round.push(said("end_turn", &prose(900)[..3000]));
    let answer = ended(&round);
    assert_eq!(
        (answer.outcome, answer.text),
        (Outcome::Truncated, Some(prose(900))),
        "a loop is no whole answer"
    );

    let mut few = talk("{}", r#"{"max_continuations":1}"#);
    few.push(said("max_tokens", &prose(300)));
    few.push(said("max_tokens", &format!("new {}", prose(900).split_off(3000))));
    assert_eq!(ended(&few).outcome, Outcome::Truncated);

    let long_answer = |text: &str, output: i64| Reply {
        usage: Usage { output, ..Usage::default() },
        ..said("max_tokens", text)
    };
    let mut long = talk("{}", r#"{"max_output_tokens":1500}"#);
    long.count(Usage { output: 9000, ..Usage::default() }, None, Instant::now());
    long.push(long_answer(&prose(300), 1000));
    assert_eq!(asked(&long).max_tokens, 500, "what other calls cost is not this answer");
    long.push(long_answer("something new that is longer than the least progress", 500));
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
    straight.push(said("max_tokens", &first));
    let rows = [
        past(1, "ask", None, "", Some("overloaded_error")),
        past(2, "ask", Some("max_tokens"), &first, None),
    ];
    let mut resumed = Talk::resume(job("{}", "{}"), &rows, Instant::now());
    assert_eq!(asked(&resumed).body, asked(&straight).body);
    straight.push(said("end_turn", &rest));
    resumed.push(said("end_turn", &rest));
    assert_eq!(ended(&resumed).text, ended(&straight).text);
    assert_eq!(ended(&resumed).calls, 2, "error rows feed the counters");
}

#[test]
fn what_came_too_late_is_paid_for_but_is_no_part_of_the_talk() {
    let late = PastCall { late: true, ..past(1, "ask", Some("end_turn"), "an answer", None) };
    let talk = Talk::resume(job("{}", "{}"), std::slice::from_ref(&late), Instant::now());
    assert_eq!(asked(&talk).kind, CallKind::Ask);
    let answer = talk.answer(Verdict { outcome: Outcome::Failed, fault: None }, Tally::default());
    assert_eq!((answer.calls, answer.usage.output), (1, 10));
    let forbidden = Talk::resume(job("{}", r#"{"on_crash":"fail"}"#), &[late], Instant::now());
    assert_eq!(ended(&forbidden).outcome, Outcome::Failed, "a call was made, whoever heard the answer");
}

#[test]
fn white_space_is_no_answer() {
    let mut talk = talk("{}", "{}");
    talk.push(said("end_turn", " \n"));
    assert_eq!(asked(&talk).kind, CallKind::Nudge);
    talk.push(said("end_turn", "\n"));
    assert_eq!(ended(&talk).outcome, Outcome::Empty);
}

#[test]
fn the_text_of_a_lost_stream_is_gone_on_with_only_where_it_is_worth_it() {
    let long = prose(600);
    let row = |text: &str| vec![past(1, "ask", None, text, Some("lost"))];
    let resume = |params: &str, policy: &str, rows: &[PastCall]| {
        Talk::resume(job(params, policy), rows, Instant::now())
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
    let resumed = Talk::resume(job("{}", "{}"), &rows, Instant::now());
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
    let resumed = Talk::resume(job, &rows, Instant::now());
    let said = body(&asked(&resumed))["messages"][1]["content"].as_str().expect("text").to_owned();
    assert_eq!(said.matches("word599").count(), 1, "the anchor was kept");
}

#[test]
fn a_call_that_goes_on_says_how_before_it_is_answered() {
    let mut talk = talk("{}", "{}");
    assert_eq!(asked(&talk).note, None);
    talk.push(said("max_tokens", &prose(300)));
    assert_eq!(asked(&talk).note.as_deref(), Some(r#"{"how":"anchor"}"#));
}

#[test]
fn a_model_that_says_nothing_to_a_cut_answer_has_not_finished_it() {
    for silence in [reply("end_turn", "[]"), said("end_turn", " \n")] {
        let mut talk = talk("{}", "{}");
        talk.push(said("max_tokens", &prose(300)));
        talk.push(silence);
        let answer = ended(&talk);
        assert_eq!(answer.outcome, Outcome::Truncated);
        assert_eq!(answer.fault.and_then(|fault| fault.code).as_deref(), Some("no_progress"));
    }
    let mut talk = talk("{}", "{}");
    talk.push(said("max_tokens", &prose(300)));
    talk.push(said("end_turn", seam::anchor(&prose(300))));
    assert_eq!(ended(&talk).outcome, Outcome::Complete, "the anchor alone says that nothing was missing");
}

#[test]
fn structured_output_that_is_not_json_is_not_complete() {
    let params = r#"{"output_config":{"format":{"type":"json_schema","schema":{}}}}"#;
    let answered = |text: &str| {
        let mut talk = talk(params, "{}");
        talk.push(said("end_turn", text));
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
    talk.push(reply("max_tokens", &block(&first, 1)));
    talk.push(reply("end_turn", &block(" and then something else entirely, to the end", 2)));
    let content = ended(&talk).content.expect("content");
    assert!(content.contains(r#""citations":[{"n":1},{"n":2}]"#), "{content}");
}

#[test]
fn what_no_database_can_show_is_replaced_and_counted() {
    let mut talk = talk("{}", "{}");
    talk.push(reply("end_turn", r#"[{"type":"text","text":"a\u0000b\ud83d"}]"#));
    let answer = ended(&talk);
    assert_eq!(answer.text.as_deref(), Some("a\u{fffd}b\u{fffd}"));
    assert_eq!(answer.content.as_deref(), Some(r#"[{"type":"text","text":"a\ufffdb\ufffd"}]"#));
    assert_eq!(answer.sanitised, 2);
}
