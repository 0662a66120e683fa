//! What people and programs do that nobody asked them to.

use super::{ENDS, OPEN, answer, ask, ask_and_wait, declare, quoted, until_done, until_open};
use crate::mill::harness::Mill;
use crate::support::{Ground, on_both};

on_both! {
    a_result_of_a_megabyte_is_taken_whole,
    blocks_empty_texts_and_failures_are_results,
    a_call_is_answered_once,
    a_job_that_is_deleted_while_it_waits_leaves_nothing,
    a_queue_that_waits_no_more_ends_its_job_as_needs_tool,
    two_jobs_of_the_same_words_do_not_mix,
    names_that_are_no_names_come_through_as_text,
    an_input_with_a_zero_in_it_is_shown_without_and_sent_back_with_it,
    a_job_that_declares_no_tools_is_asked_as_it_stands,
    two_servers_that_answer_the_last_two_calls_at_once_send_the_job_on,
}

async fn a_result_of_a_megabyte_is_taken_whole(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let policy = r#"{"on_tool_use": "wait", "max_output_tokens": 1000000}"#;
    ask(ground, "[[tool find]] [[tool now]] [[say Done.]]", &declare(&["find", "now"]), policy).await;
    let daemon = mill.start();
    until_open(&mill, 2).await;
    // Nothing in it repeats: a model that repeats itself is stopped.
    let large = (0..131_072).map(|number| format!("{number:07} ")).collect::<Vec<_>>().concat();
    answer(ground, 0, &large).await;
    answer(ground, 1, "x").await;
    until_done(&mill, 1).await;
    assert_eq!(daemon.stop().await.code, 0);
    // The stand-in says it back, as far as one answer goes, and nothing of it is cut on the way there.
    assert_eq!(ground.lines(ENDS).await, ["complete|4"]);
    let text = ground.line("SELECT text FROM results").await;
    assert!(text == format!("find: {large}\nnow: x\n\nDone."), "{} bytes", text.len());
}

async fn blocks_empty_texts_and_failures_are_results(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let prompt = "[[tool find]] [[tool now]] [[next]] [[tool find]] [[tool now]] [[say Done.]]";
    ask_and_wait(ground, prompt).await;
    let daemon = mill.start();
    until_open(&mill, 2).await;
    let blocks = r#"[{"type": "text", "text": "two "}, {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}, {"type": "text", "text": "cats"}]"#;
    let sql = format!("UPDATE tool_calls SET result_content = {} WHERE position = 0", quoted(blocks));
    assert_eq!(ground.run(&sql).await, 1);
    answer(ground, 1, "").await;
    until_open(&mill, 2).await;
    ground.run("UPDATE tool_calls SET result = 'no clock', is_error = TRUE WHERE name = 'now' AND result IS NULL").await;
    ground
        .run("UPDATE tool_calls SET result_content = '[]' WHERE result IS NULL AND result_content IS NULL")
        .await;
    until_done(&mill, 1).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(
        ground.line("SELECT outcome, error, text FROM results").await,
        "complete|NULL|find: two <image>cats\nnow: \nfind: \nnow failed: no clock\n\nDone."
    );
    mill.ledger_is_the_stand_ins().await;
}

async fn a_call_is_answered_once(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ask_and_wait(ground, "[[tool find]] [[tool now]]").await;
    let daemon = mill.start();
    until_open(&mill, 2).await;
    answer(ground, 0, "one").await;
    let again = "UPDATE tool_calls SET result = 'two' WHERE position = 0";
    assert!(ground.refused(again).await.contains("is answered, and an answered call is not changed"));
    assert_eq!(ground.run("UPDATE tool_calls SET result = 'one' WHERE position = 0").await, 1, "the same");
    answer(ground, 1, "now").await;
    until_done(&mill, 1).await;
    assert!(ground.refused(again).await.contains("is answered, and an answered call is not changed"));
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.line("SELECT outcome, text FROM results").await, "complete|find: one\nnow: now");
}

async fn a_job_that_is_deleted_while_it_waits_leaves_nothing(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ask_and_wait(ground, "[[tool find]]").await;
    ask_and_wait(ground, "[[tool now]]").await;
    let daemon = mill.start();
    until_open(&mill, 2).await;
    ground.run("DELETE FROM jobs WHERE id = 1").await;
    assert_eq!(ground.run("UPDATE tool_calls SET result = name").await, 1);
    until_done(&mill, 1).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.line("SELECT job_id, outcome FROM results").await, "2|complete");
    let left = "SELECT (SELECT count(*) FROM calls WHERE job_id = 1) + (SELECT count(*) FROM tool_calls WHERE job_id = 1)";
    assert_eq!(ground.line(left).await, "0");
}

async fn a_queue_that_waits_no_more_ends_its_job_as_needs_tool(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ground.run(r#"INSERT INTO queues (name, policy) VALUES ('q', '{"on_tool_use": "wait"}')"#).await;
    let values = ["[[tool find]]", &declare(&["find"])].map(quoted).join(", ");
    ground.run(&format!("INSERT INTO jobs (prompt, params, queue) VALUES ({values}, 'q')")).await;
    let daemon = mill.start();
    until_open(&mill, 1).await;
    ground.run(r#"UPDATE queues SET policy = '{"on_tool_use": "finish"}'"#).await;
    answer(ground, 0, "a cat").await;
    until_done(&mill, 1).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.lines(ENDS).await, ["needs_tool|1"]);
    // Nothing is lost: as the queue says again, the job begins anew.
    assert_eq!(ground.lines("SELECT result FROM tool_calls").await, ["a cat"]);
    mill.holds().await;
    mill.ledger_is_the_stand_ins().await;
}

async fn two_jobs_of_the_same_words_do_not_mix(ground: &Ground) {
    let mill = Mill::new(ground).await;
    for _ in 0..2 {
        ask_and_wait(ground, "[[tool find]] [[next]] [[tool find]]").await;
    }
    let daemon = mill.start();
    for turn in 1..=2 {
        until_open(&mill, 2).await;
        assert_eq!(
            ground.line("SELECT count(DISTINCT call_id) FROM open_tool_calls").await,
            "1",
            "the ids of their calls are the same"
        );
        for job in [2, 1] {
            let sql = format!(
                "UPDATE tool_calls SET result = '{job}.{turn}' WHERE job_id = {job} AND result IS NULL"
            );
            assert_eq!(ground.run(&sql).await, 1);
        }
    }
    until_done(&mill, 2).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(
        ground.lines("SELECT text FROM results ORDER BY job_id").await,
        ["find: 1.1\nfind: 1.2", "find: 2.1\nfind: 2.2"]
    );
    mill.ledger_is_the_stand_ins().await;
}

async fn names_that_are_no_names_come_through_as_text(ground: &Ground) {
    let mill = Mill::new(ground).await;
    // The real API refuses such names; a compatible server may not.
    let odd = r#"Robert'); DROP TABLE jobs;-- \"茶\""#;
    ask(ground, "[[stop tool_use]]", &declare(&[odd]), r#"{"on_tool_use": "wait"}"#).await;
    let ran = mill.drain().await;
    let ends = ground.lines("SELECT outcome, error FROM results").await;
    if let Some(end) = ends.first() {
        assert!(end.starts_with("failed|"), "{end}");
    } else {
        assert!(ran.stderr.contains("1 waiting for tool results"), "{}", ran.stderr);
        let name = ground.line("SELECT name FROM open_tool_calls").await;
        assert_eq!(name, r#"Robert'); DROP TABLE jobs;-- "茶""#);
    }
    mill.holds().await;
}

async fn an_input_with_a_zero_in_it_is_shown_without_and_sent_back_with_it(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let input = r#"{"q": "a\u0000b \ud83d\ude00 \\ ' \""}"#;
    ask_and_wait(ground, &format!("[[tool find {input}]]")).await;
    let daemon = mill.start();
    until_open(&mill, 1).await;
    let shown = input.replace("u0000", "ufffd");
    assert_eq!(ground.line("SELECT input FROM open_tool_calls").await, shown);
    answer(ground, 0, "fine").await;
    until_done(&mill, 1).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.line("SELECT outcome, text FROM results").await, "complete|find: fine");
}

async fn a_job_that_declares_no_tools_is_asked_as_it_stands(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ask(ground, "plain", r#"{"tools": []}"#, r#"{"on_tool_use": "wait"}"#).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.lines(ENDS).await, ["complete|1"]);
}

async fn two_servers_that_answer_the_last_two_calls_at_once_send_the_job_on(ground: &Ground) {
    let mill = Mill::new(ground).await;
    for job in 0..20 {
        ask_and_wait(ground, &format!("{job} [[tool find]] [[tool now]]")).await;
    }
    let daemon = mill.start();
    until_open(&mill, 40).await;
    let serve = async |name: &str| {
        for job in 1..=20 {
            let sql = format!("UPDATE tool_calls SET result = name WHERE job_id = {job} AND name = '{name}'");
            crate::faults::work::patiently(ground, &sql).await;
        }
    };
    tokio::join!(serve("find"), serve("now"));
    // By the trigger alone: upkeep would find them later.
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'waiting'").await, "0");
    until_done(&mill, 20).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.lines(OPEN).await, [""; 0]);
    let right = "SELECT count(*) FROM results WHERE text = 'find: find\nnow: now'";
    assert_eq!(ground.line(right).await, "20");
    mill.ledger_is_the_stand_ins().await;
}

/// SQLite keeps any bytes in a TEXT column; Postgres refuses them itself.
#[tokio::test]
async fn a_result_that_is_not_utf_8_is_told_as_a_failure_and_zeros_come_through() {
    let ground = Ground::sqlite().await;
    let mill = Mill::new(&ground).await;
    ask_and_wait(&ground, "[[tool find]] [[tool now]] [[say Done.]]").await;
    ask_and_wait(&ground, "[[tool find]]").await;
    let daemon = mill.start();
    until_open(&mill, 3).await;
    ground
        .run("UPDATE tool_calls SET result = CAST(x'61ff62' AS TEXT) WHERE job_id = 1 AND position = 0")
        .await;
    ground.run("UPDATE tool_calls SET result = 'a' || char(0) || 'b' WHERE position = 1").await;
    ground.run("UPDATE tool_calls SET result = 'fine' WHERE job_id = 2").await;
    until_done(&mill, 2).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(
        ground.lines("SELECT outcome, text FROM results ORDER BY job_id").await,
        [
            "complete|find failed: the tool's result cannot be shown: it is not UTF-8\nnow: a\u{fffd}b\n\nDone.",
            "complete|find: fine"
        ]
    );
    mill.holds().await;
    drop(mill);
    ground.close().await;
}
