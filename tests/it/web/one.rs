//! The page of one job, and the same job for programs: what is cut, redacted or not known is said.

use serde_json::{Value, json};

use super::{Site, settle};
use crate::support::{Ground, Kind, on_both};

on_both!(
    a_redacted_job_says_so_and_offers_nothing_that_cannot_be_done,
    what_was_left_out_of_a_conversation_is_said,
    the_copies_name_the_table_and_ask_as_the_queue_does,
    a_continued_answer_says_which_of_its_calls_is_shown,
    a_program_is_told_of_tool_calls_and_of_the_conversation,
    an_address_that_names_no_number_is_refused_in_its_own_face,
);

async fn a_redacted_job_says_so_and_offers_nothing_that_cannot_be_done(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('the secret question'), ('another')").await;
    for job in [1, 2] {
        settle(ground, job, "complete", "the answer").await;
    }
    ground.run(&format!("UPDATE jobs SET redacted_at = {} WHERE id = 1", ground.at(0))).await;
    let site = Site::on(ground).await;
    for path in ["/jobs/1", "/jobs/1?show=prompt"] {
        let page = site.get(path).await.good();
        assert!(page.contains("Redacted on") && page.contains("the answer"), "{path}: {page}");
        for offer in ["Run again", "Ask again", "Show prompt", "Copy as"] {
            assert!(!page.contains(offer), "{path} offers {offer}: {page}");
        }
    }
    let page = site.get("/jobs/2?show=prompt").await.good();
    assert!(
        page.contains("Run again") && page.contains("Copy as SQL") && !page.contains("Redacted"),
        "{page}"
    );
    let job = site.get("/api/v1/jobs/1?show=prompt").await.json();
    assert!(job["redacted_at"].is_string() && job["asked"].is_null(), "{job}");
    assert!(job["conversation"][0]["text"] == "the answer", "{job}");

    // It is told which of the chosen ones stayed as they are, and the book holds what was changed.
    let page = site.post("/act/jobs", "action=run_again&job=1&job=2&back=/jobs/1").await.good();
    assert!(page.contains("1 of 2 changed") && page.contains("1 redacted"), "{page}");
    assert!(page.contains("href=\"/jobs/1\""), "{page}");
    settle(ground, 2, "complete", "the answer").await;
    let done =
        site.post_json("/api/v1/jobs/act", &json!({"action": "run_again", "jobs": [1, 2]})).await.json();
    assert_eq!((&done["named"], &done["changed"]), (&2.into(), &1.into()));
    assert!(done["why_not"].as_str().is_some_and(|why| why.contains("1 redacted")), "{done}");
    assert_eq!(
        ground.lines("SELECT action, count FROM audit ORDER BY id").await,
        ["run_again|1", "run_again|1"]
    );
}

async fn what_was_left_out_of_a_conversation_is_said(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a'), ('b'), ('c')").await;
    let site = Site::on(ground).await;
    let cut = "The rest is left out here";
    settle(ground, 1, "complete", &"x".repeat(60_000)).await;
    assert!(!site.get("/jobs/1?show=prompt").await.good().contains(cut));
    settle(ground, 2, "complete", &"y\n".repeat(150_000)).await;
    let job = site.get("/api/v1/jobs/2?show=prompt").await.json();
    assert_eq!(
        (&job["conversation"][0]["kind"], &job["conversation"][0]["cut"]),
        (&"text".into(), &true.into())
    );
    assert!(site.get("/jobs/2?show=prompt").await.good().contains(cut));
    // What a tool gave.
    settle(ground, 3, "complete", "short").await;
    ground
        .run(&format!(
            "INSERT INTO tool_calls (job_id, claim, seq, run, position, call_id, name, input, result, answered_at, worker)
             VALUES (3, 1, 1, 1, 0, 't1', 'look', '{{}}', '{}', {now}, 1), (3, 1, 1, 1, 1, 't2', 'see', '{{}}', '{}', {now}, 1)",
            "z".repeat(4_000),
            "z".repeat(4_001),
            now = ground.at(0)
        ))
        .await;
    let job = site.get("/api/v1/jobs/3?show=prompt").await.json();
    let of = |at: usize| (job["conversation"][at]["name"].clone(), job["conversation"][at]["cut"].clone());
    assert_eq!([of(1), of(2)], [("look".into(), false.into()), ("see".into(), true.into())]);
}

async fn the_copies_name_the_table_and_ask_as_the_queue_does(ground: &Ground) {
    ground.run("INSERT INTO jobs (queue, prompt) VALUES ('slow', 'a')").await;
    ground.run("UPDATE queues SET model = 'claude-of-the-queue'").await;
    let site = Site::on(ground).await;
    let page = site.get("/jobs/1?show=prompt").await.good();
    let table = match ground.kind() {
        Kind::Sqlite => "INSERT INTO jobs (".to_owned(),
        Kind::Postgres => format!("INSERT INTO &#34;{}&#34;.jobs (", ground.schema()),
    };
    assert!(page.contains(&table), "{table}: {page}");
    for said in ["claude-of-the-queue", "anthropic-version: 2026-10-21", "# max_tokens is what is known here"]
    {
        assert!(page.contains(said), "{said}: {page}");
    }
}

async fn a_continued_answer_says_which_of_its_calls_is_shown(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    ground.run("UPDATE job_state SET state = 'running', claims = 1, claimed_by = 1").await;
    let keep = "INSERT INTO checkpoints (job_id, claim, seq, part, content) VALUES (1, 1,";
    ground.run(&format!("{keep} 1, 1, 'one')")).await;
    let site = Site::on(ground).await;
    let before = "id=\"partial-before\" hidden";
    let page = site.get("/jobs/1").await.good();
    assert!(page.contains("id=\"partial-call\">1<") && page.contains(before), "{page}");
    ground.run("DELETE FROM checkpoints").await;
    ground
        .run("INSERT INTO calls (job_id, claim, seq, run, kind, stop_reason) VALUES (1, 1, 1, 1, 'ask', 'max_tokens')")
        .await;
    ground.run(&format!("{keep} 2, 1, 'two')")).await;
    let page = site.get("/jobs/1").await.good();
    assert!(page.contains("id=\"partial-call\">2<") && !page.contains(before), "{page}");
    let partial = site.get("/api/v1/jobs/1/partial").await.json();
    assert_eq!((&partial["call"], &partial["text"]), (&2.into(), &"two".into()));
}

async fn a_program_is_told_of_tool_calls_and_of_the_conversation(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    settle(ground, 1, "complete", "what it said").await;
    ground
        .run(&format!(
            "INSERT INTO tool_calls (job_id, claim, seq, run, position, call_id, name, input, result, answered_at, worker)
             VALUES (1, 1, 1, 1, 0, 't1', 'look', '{{}}', 'what it saw', {}, 1)",
            ground.at(0)
        ))
        .await;
    let site = Site::on(ground).await;
    let hidden = site.get("/api/v1/jobs/1").await.json();
    let tool = &hidden["tool_calls"][0];
    assert_eq!(
        (&tool["name"], &tool["answered"], &tool["call_id"]),
        (&"look".into(), &true.into(), &"t1".into())
    );
    assert!(hidden["conversation"].is_null() && !hidden.to_string().contains("what it saw"), "{hidden}");
    let shown = site.get("/api/v1/jobs/1?show=prompt").await.json();
    let said: Vec<(&Value, &Value)> = shown["conversation"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|turn| (&turn["kind"], &turn["text"]))
        .collect();
    assert_eq!(
        said,
        [(&"text".into(), &"what it said".into()), (&"tool_result".into(), &"what it saw".into())]
    );
}

async fn an_address_that_names_no_number_is_refused_in_its_own_face(ground: &Ground) {
    let site = Site::on(ground).await;
    for path in ["/api/v1/jobs/nonsense", "/api/v1/jobs/1x/partial", "/api/v1/bulk/-1"] {
        let answer = site.get(path).await;
        assert_eq!(answer.status, 400, "{path}");
        assert_eq!(answer.json()["error"]["type"], "bad_request", "{path}");
    }
    for path in
        ["/jobs/nonsense", "/jobs/99999999999999999999", "/jobs/x/again", "/jobs/x/answer.txt", "/bulk/x"]
    {
        let answer = site.get(path).await;
        assert_eq!(answer.status, 400, "{path}");
        assert!(
            answer.text.contains("<!DOCTYPE html>") && answer.text.contains("by a whole number"),
            "{path}"
        );
    }
    assert!(site.post("/jobs/x/again", "prompt=a").await.text.contains("<!DOCTYPE html>"));
}
