//! A job's story.

use super::{Desk, settle};
use crate::support::{Ground, on_both};

on_both! {
    a_story_tells_calls_and_result,
    a_story_tells_what_a_job_waits_for,
    a_job_is_found_by_its_key,
    a_job_that_is_not_there_is_told,
    control_characters_stay_out_of_sight,
}

async fn a_story_tells_calls_and_result(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch, key, policy) VALUES ('What is it?', 'b', 'b/1', '{\"max_failures\": 2}')").await;
    let desk = Desk::new(ground);
    assert!(desk.mill(&["show", "1"]).good().contains("Job 1 is pending: it may be claimed now."));
    settle(ground, 1, "truncated", "max_tokens", "It is").await;
    ground.run("UPDATE job_state SET state = 'pending' WHERE job_id = 1").await;
    settle(ground, 1, "complete", "end_turn", "It is this.").await;
    let out = desk.mill(&["show", "1"]).good();
    for part in [
        "Job 1 is done: complete.",
        "queue default, batch b, key b/1",
        "prompt: What is it?",
        "Asked claude-x (room for 1,000 tokens). It ended with max_tokens after",
        "Run 2: the job was run again.",
        "as complete",
        "text: It is this.",
    ] {
        assert!(out.contains(part), "{part} is not in:\n{out}");
    }
    let json = desk.mill(&["show", "1", "--json"]).json();
    assert_eq!(json["job"]["run"], 2);
    assert_eq!(json["calls"].as_array().expect("an array").len(), 2);
    assert_eq!(json["calls"][0]["stop_reason"], "max_tokens");
    assert_eq!(json["result"]["text"], "It is this.");
}

async fn a_story_tells_what_a_job_waits_for(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('What is the weather?')").await;
    ground
        .run(
            "UPDATE job_state SET state = 'running', claims = 1, claimed_by = 7;
             INSERT INTO calls (job_id, claim, seq, run, kind, stop_reason) VALUES (1, 1, 1, 1, 'ask', 'tool_use');
             INSERT INTO tool_calls (job_id, claim, seq, position, run, call_id, name, input, worker)
             VALUES (1, 1, 1, 0, 1, 'toolu_a', 'weather', '{\"city\":\"Paris\"}', 7),
                    (1, 1, 1, 1, 1, 'toolu_b', 'weather', '{\"city\":\"Rome\"}', 7);
             UPDATE job_state SET state = 'waiting', claimed_by = NULL",
        )
        .await;
    ground
        .run("UPDATE tool_calls SET result = 'sunny', taken_by = 'a server' WHERE call_id = 'toolu_a'")
        .await;
    let desk = Desk::new(ground);
    let out = desk.mill(&["show", "1"]).good();
    for part in [
        "Job 1 waits for 1 tool result.",
        "- tool weather (toolu_a) {\"city\":\"Paris\"}: answered by a server after",
        ": sunny",
        "- tool weather (toolu_b) {\"city\":\"Rome\"}: no result yet",
    ] {
        assert!(out.contains(part), "{part} is not in:\n{out}");
    }
    let json = desk.mill(&["show", "1", "--json"]).json();
    assert_eq!(json["tool_calls"][0]["result"], "sunny");
    assert_eq!(json["tool_calls"][1]["answered_at"], serde_json::Value::Null);
}

async fn a_job_is_found_by_its_key(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, key) VALUES ('a', 'b/1'), ('b', '1')").await;
    let desk = Desk::new(ground);
    assert_eq!(desk.mill(&["show", "b/1", "--json"]).json()["job"]["id"], 1);
    assert_eq!(desk.mill(&["show", "1", "--json"]).json()["job"]["id"], 1, "an id goes before a key");
}

async fn a_job_that_is_not_there_is_told(ground: &Ground) {
    let said = Desk::new(ground).mill(&["show", "9"]).said(1);
    assert_eq!(said, "promptmill: no job has the id or the key \"9\"\n");
}

async fn control_characters_stay_out_of_sight(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    settle(ground, 1, "complete", "end_turn", "red \u{1b}[31m alert").await;
    let desk = Desk::new(ground);
    for args in [&["show", "1"][..], &["show", "1", "--full"], &["results"]] {
        let out = desk.mill(args).good();
        assert!(out.contains("red \\u{1b}[31m alert") && !out.contains('\u{1b}'), "{out}");
    }
}
