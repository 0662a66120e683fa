//! `on_tool_use = wait`: jobs that wait for tool results, which come by plain SQL.

use super::{ENDS, KINDS, OPEN, answer, ask, ask_and_wait, declare, until_done, until_open};
use crate::mill::harness::Mill;
use crate::support::{Ground, on_both};

on_both! {
    a_waiting_job_holds_no_slot_and_goes_on_with_its_results_in_order,
    turn_after_turn_is_answered,
    a_job_that_still_asks_after_its_last_turn_needs_a_tool,
    a_cancelled_job_waits_no_more_and_may_be_run_again,
    a_deadline_ends_a_job_that_waits,
    a_drain_leaves_waiting_jobs_and_counts_them,
    a_cut_call_is_asked_for_again_and_never_shown,
    what_goes_wrong_between_turns_is_tried_again,
}

/// Two calls in one turn; the answer tells what they gave.
const TWO: &str = r#"What is there? [[tool find {"q": "ä 1"}]] [[tool now]] [[thinking 20]] [[say Done.]]"#;

async fn a_waiting_job_holds_no_slot_and_goes_on_with_its_results_in_order(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__CONCURRENCY", "1");
    ask_and_wait(ground, TWO).await;
    let daemon = mill.start();
    until_open(&mill, 2).await;
    mill.insert(&["Another one"]).await;
    until_done(&mill, 1).await;
    let state = "SELECT state, claimed_by, failures, reason FROM job_state WHERE job_id = 1";
    assert_eq!(ground.line(state).await, "waiting|NULL|0|waits for 2 tool results");
    let open = ground.lines(OPEN).await;
    assert!(open[0].ends_with(r#"|find|{"q": "ä 1"}"#) && open[1].ends_with("|now|{}"), "{open:?}");
    answer(ground, 1, "noon").await;
    assert_eq!(ground.line(state).await, "waiting|NULL|0|waits for 2 tool results");
    assert_eq!(ground.line("SELECT reason FROM job_overview WHERE id = 1").await, "waits for 1 tool result");
    answer(ground, 0, "a cat").await;
    until_done(&mill, 2).await;
    assert_eq!(
        ground.line("SELECT outcome, stop_reason, calls, text FROM results WHERE job_id = 1").await,
        "complete|end_turn|2|find: a cat\nnow: noon\n\nDone."
    );
    assert_eq!(
        ground
            .lines("SELECT claim, kind, messages, stop_reason FROM calls WHERE job_id = 1 ORDER BY claim")
            .await,
        ["1|ask|1|tool_use", "2|tool|3|end_turn"]
    );
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.lines(OPEN).await, [""; 0]);
    mill.holds().await;
    mill.ledger_is_the_stand_ins().await;
}

async fn turn_after_turn_is_answered(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let prompt = "[[tool find]] [[tool now]] [[next]] [[tool now]] [[next]] [[tool find]] [[thinking 9]]";
    ask_and_wait(ground, prompt).await;
    let daemon = mill.start();
    for (turn, calls) in [2, 1, 1].into_iter().enumerate() {
        until_open(&mill, calls).await;
        for call in 0..calls {
            answer(ground, call as i32, &format!("{turn}.{call}")).await;
        }
    }
    until_done(&mill, 1).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(
        ground.line("SELECT outcome, calls, text FROM results").await,
        "complete|4|find: 0.0\nnow: 0.1\nnow: 1.0\nfind: 2.0"
    );
    assert_eq!(ground.lines(KINDS).await, ["ask", "tool", "tool", "tool"]);
    let shape = "SELECT claim, seq, position, result FROM tool_calls ORDER BY claim, seq, position";
    assert_eq!(ground.lines(shape).await, ["1|1|0|0.0", "1|1|1|0.1", "2|1|0|1.0", "3|1|0|2.0"]);
    mill.ledger_is_the_stand_ins().await;
}

async fn a_job_that_still_asks_after_its_last_turn_needs_a_tool(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let policy = r#"{"on_tool_use": "wait", "max_turns": 1}"#;
    ask(ground, "[[tool find]] [[next]] [[tool now]]", &declare(&["find", "now"]), policy).await;
    let daemon = mill.start();
    until_open(&mill, 1).await;
    answer(ground, 0, "one").await;
    until_done(&mill, 1).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(
        ground.line("SELECT outcome, calls, error_code, error FROM results").await,
        "needs_tool|2|max_turns|the model still asks for tools after max_turns = 1"
    );
    let content = ground.line("SELECT content FROM results").await;
    assert!(content.contains(r#""name":"now""#), "{content}");
    assert_eq!(ground.line("SELECT count(*) FROM tool_calls").await, "1");
    mill.holds().await;
}

async fn a_cancelled_job_waits_no_more_and_may_be_run_again(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ask_and_wait(ground, TWO).await;
    let daemon = mill.start();
    until_open(&mill, 2).await;
    answer(ground, 0, "a dog").await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    assert_eq!(ground.line("SELECT outcome, calls FROM results").await, "cancelled|1");
    let late = "UPDATE tool_calls SET result = 'late' WHERE position = 1";
    assert_eq!(ground.run(late).await, 0, "the open call is gone");
    assert_eq!(ground.lines("SELECT result FROM tool_calls").await, ["a dog"]);
    // The same prompt makes the same calls, of the same ids: nothing of the first run answers them.
    ground.run("UPDATE job_state SET state = 'pending'").await;
    until_open(&mill, 2).await;
    answer(ground, 0, "a cat").await;
    answer(ground, 1, "noon").await;
    until_done(&mill, 1).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(
        ground.line("SELECT run, outcome, calls, text FROM results").await,
        "2|complete|2|find: a cat\nnow: noon\n\nDone."
    );
    assert_eq!(ground.line("SELECT count(*) FROM calls").await, "3");
    mill.holds().await;
    mill.ledger_is_the_stand_ins().await;
}

async fn a_deadline_ends_a_job_that_waits(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let policy = r#"{"on_tool_use": "wait", "deadline_seconds": 86400}"#;
    ask(ground, TWO, &declare(&["find", "now"]), policy).await;
    let daemon = mill.start();
    until_open(&mill, 2).await;
    ground.run(&format!("UPDATE job_state SET deadline_at = {}", ground.at(-1))).await;
    until_done(&mill, 1).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.lines(ENDS).await, ["expired|1"]);
    assert_eq!(ground.line("SELECT count(*) FROM tool_calls").await, "0");
    mill.holds().await;
}

async fn a_drain_leaves_waiting_jobs_and_counts_them(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ask_and_wait(ground, TWO).await;
    ask_and_wait(ground, "[[tool now]]").await;
    mill.insert(&["plain"]).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("left: 2 waiting for tool results"), "{}", ran.stderr);
    ground.run("UPDATE tool_calls SET result = name").await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.lines(ENDS).await, ["complete|2", "complete|2", "complete|1"]);
    mill.ledger_is_the_stand_ins().await;
}

async fn a_cut_call_is_asked_for_again_and_never_shown(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let words = "word ".repeat(60);
    let prompt = format!(r#"[[tool now]] [[tool find {{"q": "{words}"}}]]"#);
    let values = [&prompt, &declare(&["find", "now"]), r#"{"on_tool_use": "wait"}"#].map(super::quoted);
    // Enough for the first call and the beginning of the second.
    let insert = "INSERT INTO jobs (prompt, params, policy, max_tokens) VALUES";
    ground.run(&format!("{insert} ({}, 40)", values.join(", "))).await;
    let daemon = mill.start();
    until_open(&mill, 2).await;
    assert_eq!(
        ground.lines("SELECT kind, stop_reason FROM calls ORDER BY seq").await,
        ["ask|max_tokens", "regenerate|tool_use"]
    );
    ground.run("UPDATE tool_calls SET result = name").await;
    until_done(&mill, 1).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.line("SELECT outcome, text FROM results").await, "complete|now: now\nfind: find");
    mill.ledger_is_the_stand_ins().await;
}

async fn what_goes_wrong_between_turns_is_tried_again(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let call = r#"[[tool find {"q": "one two three four five six seven"}]] [[thinking 9]] [[say Done.]]"#;
    ask_and_wait(ground, &format!("{call} [[error 529 skip=1 x1]]")).await;
    ask_and_wait(ground, &format!("{call} [[error 500 skip=1 x1]]")).await;
    // Its first stream is cut in the call itself, its second one in the text.
    ask_and_wait(ground, &format!("{call} [[cut after=20 x1]] [[cut after=12 skip=1 x1]]")).await;
    let daemon = mill.start();
    until_open(&mill, 3).await;
    ground.run("UPDATE tool_calls SET result = 'a cat'").await;
    until_done(&mill, 3).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(
        ground.lines("SELECT outcome, failures, text FROM results ORDER BY job_id").await,
        [
            "complete|0|find: a cat\n\nDone.",
            "complete|1|find: a cat\n\nDone.",
            "complete|2|find: a cat\n\nDone."
        ]
    );
    assert_eq!(
        ground.lines("SELECT kind, error_type FROM calls WHERE job_id = 3 ORDER BY claim, seq").await,
        ["ask|connection", "ask|NULL", "tool|connection", "tool|NULL"]
    );
    assert_eq!(ground.line("SELECT count(*) FROM tool_calls").await, "3");
    mill.ledger_is_the_stand_ins().await;
}
