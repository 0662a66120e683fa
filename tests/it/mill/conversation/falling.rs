//! Refusals, empty answers, pauses, and inputs that do not fit.

use super::{ENDS, KINDS, answer, ask, ask_and_wait, until_done, until_open};
use crate::mill::harness::Mill;
use crate::support::{Ground, on_both};

on_both! {
    a_refusal_is_taken_to_the_fallback_model_once,
    an_empty_answer_is_nudged_once_in_a_conversation_too,
    a_pause_and_a_tool_in_one_conversation_are_both_sent_back,
    an_input_that_does_not_fit_is_refused_before_any_call,
    the_oldest_turns_are_left_out_where_the_policy_says_so,
    a_question_that_does_not_fit_alone_is_refused,
    a_result_that_does_not_fit_ends_its_job_with_both_numbers,
}

async fn a_refusal_is_taken_to_the_fallback_model_once(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ask(ground, "[[stop refusal category=bio]]", "{}", r#"{"fallback_model": "claude-opus-5"}"#).await;
    ask(ground, "[[stop refusal]]", "{}", r#"{"fallback_model": "claude-sonnet-5-5"}"#).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    assert_eq!(ground.lines(ENDS).await, ["refused|2", "refused|1"], "itself is no other model");
    let calls = "SELECT kind, model, stop_reason FROM calls WHERE job_id = 1 ORDER BY seq";
    assert_eq!(
        ground.lines(calls).await,
        ["ask|claude-sonnet-5-5|refusal", "fallback|claude-opus-5|refusal"]
    );
    let end = ground.line("SELECT model, text, stop_details FROM results WHERE job_id = 1").await;
    assert!(end.starts_with("claude-opus-5|NULL|") && end.contains("bio"), "{end}");
    let spent =
        "SELECT r.output_tokens - sum(c.output_tokens) FROM results r JOIN calls c ON c.job_id = r.job_id
                  WHERE r.job_id = 1 GROUP BY r.output_tokens";
    assert_eq!(ground.line(spent).await, "0");
    mill.ledger_is_the_stand_ins().await;
}

async fn an_empty_answer_is_nudged_once_in_a_conversation_too(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ask_and_wait(ground, "[[tool find]] [[thinking 9]] [[empty skip=1 x1]]").await;
    let daemon = mill.start();
    until_open(&mill, 1).await;
    answer(ground, 0, "a cat").await;
    until_done(&mill, 1).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.lines(KINDS).await, ["ask", "tool", "nudge"]);
    assert_eq!(ground.line("SELECT outcome, text FROM results").await, "complete|find: a cat");
}

async fn a_pause_and_a_tool_in_one_conversation_are_both_sent_back(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ask_and_wait(ground, "[[stop pause_turn 2]] [[tool find]] [[thinking 9]]").await;
    let daemon = mill.start();
    until_open(&mill, 1).await;
    answer(ground, 0, "a cat").await;
    until_done(&mill, 1).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.lines(KINDS).await, ["ask", "pause", "pause", "tool"]);
    assert_eq!(ground.line("SELECT outcome, text FROM results").await, "complete|find: a cat");
    mill.ledger_is_the_stand_ins().await;
}

/// A conversation of so many turns of 1,000 tokens each, and a question.
fn long(turns: usize) -> String {
    let said = "word ".repeat(790);
    let turn =
        format!(r#"{{"role": "user", "content": "{said}"}}, {{"role": "assistant", "content": "Yes."}}, "#);
    format!(
        r#"{{"model": "stand-in-small", "max_tokens": 100, "messages": [{}{{"role": "user", "content": "And now?"}}]}}"#,
        turn.repeat(turns)
    )
}

async fn insert(ground: &Ground, params: &str, policy: &str) {
    let values = [params, policy].map(super::quoted).join(", ");
    ground.run(&format!("INSERT INTO jobs (params, policy) VALUES ({values})")).await;
}

/// A mill whose daemon knows how much each model reads before it asks.
async fn informed(ground: &Ground) -> Mill<'_> {
    let mill = Mill::new(ground).await;
    let facts = "[models.stand-in-small]\ncontext_tokens = 4096\n";
    std::fs::write(mill.home().join("promptmill.toml"), facts).expect("the folder can be written");
    mill
}

async fn an_input_that_does_not_fit_is_refused_before_any_call(ground: &Ground) {
    let mill = informed(ground).await;
    insert(ground, &long(5), "{}").await;
    insert(ground, &long(3), "{}").await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    assert_eq!(ground.lines(ENDS).await, ["invalid|0", "complete|1"]);
    let error = ground.line("SELECT error_type, error_code, error FROM results WHERE job_id = 1").await;
    assert!(error.starts_with("context_overflow|prompt_too_long|the input has "), "{error}");
    assert!(error.contains("stand-in-small reads at most 4096") && error.contains("drop_oldest"), "{error}");
    assert_eq!(mill.api.counts().total, 1);
    mill.holds().await;
}

async fn the_oldest_turns_are_left_out_where_the_policy_says_so(ground: &Ground) {
    let mill = informed(ground).await;
    insert(ground, &long(6), r#"{"on_context_overflow": "drop_oldest"}"#).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.lines(ENDS).await, ["complete|1"]);
    assert_eq!(ground.line("SELECT messages, request FROM calls").await, r#"7|{"dropped":6}"#);
    assert_eq!(ground.line("SELECT dropped FROM results").await, "6");
    mill.ledger_is_the_stand_ins().await;
}

async fn a_question_that_does_not_fit_alone_is_refused(ground: &Ground) {
    let mill = informed(ground).await;
    let params = r#"{"model": "stand-in-small", "max_tokens": 100}"#;
    let policy = r#"{"on_context_overflow": "drop_oldest"}"#;
    ask(ground, &"word ".repeat(6000), params, policy).await;
    mill.drain().await;
    assert_eq!(ground.lines(ENDS).await, ["invalid|0"]);
    let error = ground.line("SELECT error FROM results").await;
    assert!(error.contains("even without its older turns"), "{error}");
    assert_eq!(mill.api.counts().total, 0);
}

async fn a_result_that_does_not_fit_ends_its_job_with_both_numbers(ground: &Ground) {
    let mill = informed(ground).await;
    let params =
        super::declare(&["find"]).replacen('{', r#"{"model": "stand-in-small", "max_tokens": 100, "#, 1);
    for overflow in ["fail", "drop_oldest"] {
        let policy = format!(r#"{{"on_tool_use": "wait", "on_context_overflow": "{overflow}"}}"#);
        ask(ground, "[[tool find]]", &params, &policy).await;
    }
    let daemon = mill.start();
    until_open(&mill, 2).await;
    let large = (0..5000).map(|number| format!("{number:07} ")).collect::<Vec<_>>().concat();
    ground.run(&format!("UPDATE tool_calls SET result = '{large}'")).await;
    until_done(&mill, 2).await;
    assert_eq!(daemon.stop().await.code, 0);
    let ends = ground.lines("SELECT outcome, calls, error FROM results ORDER BY job_id").await;
    for (end, advice) in ends.iter().zip(["shorten it, or set policy", "even without its older turns"]) {
        assert!(end.starts_with("failed|1|the input has 1") && end.contains("reads at most 4096"), "{end}");
        assert!(end.contains(advice), "{end}");
    }
    assert_eq!(mill.api.counts().total, 2, "what cannot fit is not sent");
}
