//! What people change on the page: it happens, it is written down first, and a count is confirmed.

use std::time::Duration;

use serde_json::json;

use super::{Site, settle};
use crate::support::{Ground, on_both};

on_both!(
    chosen_jobs_are_cancelled_run_again_and_prioritised,
    a_job_is_asked_again_with_changes,
    a_form_that_is_sent_twice_makes_one_job,
    queues_batches_and_gates_are_turned,
    all_jobs_of_a_filter_are_changed_after_their_count_is_confirmed,
    what_makes_no_sense_changes_nothing,
);

async fn deeds(ground: &Ground) -> Vec<String> {
    ground.lines("SELECT action, target, count, detail FROM audit ORDER BY id").await
}

async fn chosen_jobs_are_cancelled_run_again_and_prioritised(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a'), ('b'), ('c')").await;
    settle(ground, 3, "failed", "").await;
    let site = Site::on(ground).await;
    let answer =
        site.post("/act/jobs", "action=prioritise&priority=7&job=1&job=2&back=/jobs?state=pending").await;
    assert_eq!((answer.status, answer.header("location")), (303, "/jobs?state=pending"));
    let page = site.post("/act/jobs", "action=prioritise&priority=7&job=2&job=3&job=99").await.good();
    assert!(
        page.contains("1 of 3 changed</strong>; 2 could not be: 2 done already, or not there."),
        "{page}"
    );
    site.post("/act/jobs", "action=cancel&job=1&back=//evil.example").await;
    let answer =
        site.post_json("/api/v1/jobs/act", &json!({"action": "run_again", "jobs": [3, 2]})).await.json();
    assert_eq!((&answer["named"], &answer["changed"]), (&2.into(), &1.into()));
    assert_eq!(
        ground.lines("SELECT job_id, state, priority, run FROM job_state ORDER BY job_id").await,
        ["1|done|7|1", "2|pending|7|1", "3|pending|0|2"]
    );
    assert_eq!(
        deeds(ground).await,
        [
            "prioritise|jobs 1, 2|2|priority 7",
            "prioritise|jobs 2, 3, 99|1|priority 7",
            "cancel|jobs 1|1|NULL",
            "run_again|jobs 2, 3|1|NULL"
        ]
    );
    assert_eq!(ground.line("SELECT DISTINCT actor FROM audit").await, "whoever, from 127.0.0.1");
    assert!(site.get("/audit").await.good().contains("priority 7"));
    assert_eq!(site.get("/api/v1/audit").await.json()["audit"][0]["action"], "run_again");
}

async fn a_form_that_is_sent_twice_makes_one_job(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('one')").await;
    let site = Site::on(ground).await;
    let page = site.get("/jobs/1/again").await.good();
    let name = page.split("name=\"form\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    let form = format!("queue=default&prompt=two&form={}", name.expect("the form has a name"));
    let bad = site.post("/jobs/1/again", &format!("{form}&priority=x")).await;
    assert_eq!(bad.status, 400, "it made nothing, and may be sent again");
    for _ in 0..2 {
        let answer = site.post("/jobs/1/again", &form).await;
        assert_eq!((answer.status, answer.header("location")), (303, "/jobs/2"));
    }
    assert_eq!(ground.line("SELECT count(*) FROM jobs").await, "2");
}

async fn a_job_is_asked_again_with_changes(ground: &Ground) {
    ground
        .run(
            "INSERT INTO jobs (prompt, system, batch, key, params, priority)
             VALUES ('one\ntwo', 's', 'b', 'k', '{\"top_k\": 1}', 3)",
        )
        .await;
    let site = Site::on(ground).await;
    let form = site.get("/jobs/1/again").await.good();
    assert!(form.contains("one\ntwo</textarea>"), "{form}");
    let answer =
        site.post("/jobs/1/again", "queue=default&batch=c&model=m&prompt=one%0D%0Atwo&system=").await;
    assert_eq!((answer.status, answer.header("location")), (303, "/jobs/2"));
    let json = site.post_json("/api/v1/jobs", &json!({"like": 1, "prompt": "three", "max_tokens": 9})).await;
    assert_eq!((json.status, json.json()["id"].as_i64()), (201, Some(3)));
    let text = ground.either("params", "params::text");
    assert_eq!(
        ground
            .lines(&format!("SELECT id, prompt, system, batch, key, model, max_tokens, {text}, priority FROM jobs WHERE id > 1 ORDER BY id"))
            .await,
        ["2|one\ntwo|NULL|c|NULL|m|NULL|{\"top_k\": 1}|3", "3|three|s|b|NULL|NULL|9|{\"top_k\": 1}|3"]
    );
    assert_eq!(deeds(ground).await, ["ask_again|job 1|1|NULL", "ask_again|job 1|1|NULL"]);
    let taken = site.post_json("/api/v1/jobs", &json!({"like": 3, "key": "k"})).await;
    assert_eq!(taken.status, 409);
    assert!(taken.text.contains("job 1 has this key already"), "{taken:?}");
    let refused = site.post_json("/api/v1/jobs", &json!({"like": 1, "params": "{\"messages\": []}"})).await;
    assert_eq!(refused.status, 422);
    assert!(refused.json()["error"]["message"].as_str().expect("a sentence").contains("job_has_one_prompt"));
}

async fn queues_batches_and_gates_are_turned(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'b')").await;
    let site = Site::on(ground).await;
    site.post("/act/queue", "queue=default&action=pause").await;
    site.post("/act/queue", "queue=default&action=limit&max_running=5").await;
    assert_eq!(ground.line("SELECT max_running FROM queues WHERE paused").await, "5");
    site.post("/act/queue", "queue=default&action=resume").await;
    site.post("/act/queue", "queue=default&action=limit&max_running=").await;
    assert_eq!(ground.line("SELECT max_running FROM queues WHERE NOT paused").await, "NULL");
    let paused = site.post_json("/api/v1/batch", &json!({"batch": "b", "action": "pause"})).await.json();
    assert_eq!(paused["queues"], json!(["default"]));
    assert_eq!(ground.line("SELECT scope, state FROM gates").await, "batch:default/b|blocked");
    let page = site.get("/batch?name=b").await.good();
    assert!(page.contains("paused by a person"), "{page}");
    site.post("/act/batch", "batch=b&action=resume").await;
    site.post("/act/gate", "scope=model:default/m&action=block&reason=maintenance&minutes=5").await;
    assert_eq!(
        ground.lines("SELECT scope, state, reason FROM gates ORDER BY scope").await,
        ["batch:default/b|flowing|NULL", "model:default/m|blocked|maintenance"]
    );
    site.post("/act/gate", "scope=model:default/m&action=free").await;
    site.post("/act/gate", "scope=batch:default/b&action=let_fail").await;
    assert_eq!(
        ground.lines("SELECT state, counters FROM gates ORDER BY scope").await,
        ["flowing|ignored 0", "flowing|NULL"]
    );
    let actions: Vec<String> = ground.lines("SELECT action FROM audit ORDER BY id").await;
    assert_eq!(
        actions,
        ["pause", "limit", "resume", "limit", "pause", "resume", "block", "free", "let_fail"]
    );
}

async fn all_jobs_of_a_filter_are_changed_after_their_count_is_confirmed(ground: &Ground) {
    for _ in 0..3 {
        let rows: Vec<String> = (0..400).map(|n| format!("('{n}', 'b')")).collect();
        ground.run(&format!("INSERT INTO jobs (prompt, batch) VALUES {}", rows.join(", "))).await;
    }
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('other', 'c')").await;
    settle(ground, 1, "complete", "").await;
    let site = Site::on(ground).await;
    let page = site.post("/bulk", "action=cancel&batch=b").await.good();
    assert!(page.contains("Yes, cancel 1,199 jobs"), "{page}");
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'pending'").await, "1200");
    let counted = site.post_json("/api/v1/bulk", &json!({"action": "cancel", "batch": "b"})).await.json();
    assert_eq!((&counted["counted"], &counted["started"]), (&1199.into(), &false.into()));
    // There are more than somebody confirmed: the page asks again, a program is told.
    let page = site.post("/bulk", "action=cancel&batch=b&count=10").await.good();
    assert!(page.contains("You confirmed 10"), "{page}");
    let refused =
        site.post_json("/api/v1/bulk", &json!({"action": "cancel", "batch": "b", "count": 10})).await;
    assert_eq!(refused.status, 409);
    assert_eq!(deeds(ground).await, Vec::<String>::new());

    let begun = site.post("/bulk", "action=cancel&batch=b&count=1199").await;
    assert_eq!((begun.status, begun.header("location")), (303, "/bulk/1"));
    let mut run = json!(null);
    for _ in 0..600 {
        run = site.get("/api/v1/bulk/1").await.json();
        if run["ended"] == true {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!((&run["changed"], &run["error"]), (&1199.into(), &json!(null)), "{run}");
    assert!(site.get("/bulk/1").await.good().contains("Done in"));
    assert_eq!(
        ground
            .lines("SELECT batch, state, count(*) FROM job_state GROUP BY batch, state ORDER BY batch")
            .await,
        ["b|done|1200", "c|pending|1"]
    );
    assert_eq!(ground.line("SELECT count(*) FROM results WHERE outcome = 'cancelled'").await, "1199");
    assert_eq!(deeds(ground).await, ["cancel|batch b|1199|NULL", "bulk_end|cancel: batch b|1199|done"]);
}

async fn what_makes_no_sense_changes_nothing(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    let site = Site::on(ground).await;
    for (path, form, status) in [
        ("/act/jobs", "action=nonsense&job=1", 400),
        ("/act/jobs", "action=cancel", 400),
        ("/act/jobs", "action=cancel&job=x", 400),
        ("/act/jobs", "action=prioritise&job=1", 400),
        ("/act/jobs", "action=prioritise&job=1&priority=99999999999", 400),
        ("/act/queue", "action=pause&queue=none", 404),
        ("/act/queue", "action=limit&queue=default&max_running=-1", 400),
        ("/act/gate", "action=block&scope=nonsense", 404),
        ("/act/gate", "action=free&scope=model:p/m", 404),
        ("/act/gate", "action=let_fail&scope=model:p/m", 400),
        ("/act/gate", "action=let_fail&scope=batch:default/none", 404),
        ("/act/batch", "action=pause&batch=none", 404),
        ("/act/batch", "action=resume&batch=none", 404),
        ("/act/gate", "action=block&scope=model:p/m&minutes=0", 400),
        ("/jobs/99/again", "prompt=x", 404),
        ("/jobs/1/again", "params=[1]", 400),
        ("/bulk", "action=cancel&all=true&count=nonsense", 400),
    ] {
        assert_eq!(site.post(path, form).await.status, status, "{path} {form}");
    }
    let long = "x".repeat(1_001);
    for (path, form) in [
        ("/act/gate", format!("action=block&scope=model:p/m&reason={long}")),
        ("/act/gate", format!("action=block&scope=batch:default/{long}")),
        ("/act/batch", format!("action=pause&batch={long}")),
        ("/act/queue", format!("action=pause&queue={long}")),
        ("/bulk", format!("action=cancel&batch={long}")),
    ] {
        let answer = site.post(path, &form).await;
        assert_eq!(answer.status, 400, "{path}");
        assert!(answer.text.contains("is longer than 1000 characters"), "{path}: {answer:?}");
    }
    assert_eq!(site.get("/act/jobs").await.status, 405);
    assert_eq!(deeds(ground).await, Vec::<String>::new());
    assert_eq!(ground.line("SELECT state, priority FROM job_state").await, "pending|0");
}
