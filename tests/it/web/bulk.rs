//! Changes of many jobs: no filter is taken for a wider one, and nobody's second click is a second run.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Site, settle};
use crate::store::Bench;
use crate::support::{Ground, on_both};

on_both!(
    a_filter_that_is_not_understood_changes_nothing,
    all_jobs_are_meant_only_where_that_is_said,
    a_run_changes_no_more_than_was_confirmed,
    a_run_says_which_jobs_it_could_not_change,
    a_second_click_finds_the_first_run,
    the_same_change_finds_the_run_that_is_under_way,
    a_cancel_reaches_the_jobs_that_daemons_take_meanwhile,
);

async fn ended(site: &Site, bulk: &Value) -> Value {
    for _ in 0..600 {
        let run = site.get(&format!("/api/v1/bulk/{bulk}")).await.json();
        if run["ended"] == true {
            return run;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("run {bulk} has no end");
}

async fn a_filter_that_is_not_understood_changes_nothing(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'b'), ('c', NULL)").await;
    let site = Site::on(ground).await;
    for (form, said) in [
        ("action=cancel", "say so with all=true"),
        ("action=cancel&batch=", "batch says nothing"),
        ("action=cancel&batch=b&queue=", "queue says nothing"),
        ("action=cancel&bach=b", "there is no filter bach"),
        ("action=cancel&batch=b&batch=c", "batch is said twice"),
        ("action=cancel&batch=b&all=true", "without a filter"),
        ("action=cancel&batch=b&count=0", "from 1 to 100000"),
        ("action=cancel&batch=b&count=0%2B", "whole number"),
        ("action=cancel&batch=b&count=100000%2B", "whole number"),
        ("action=cancel&batch=b&count=100001", "from 1 to 100000"),
        ("action=cancel&batch=b&count=-1", "from 1 to 100000"),
        ("action=cancel&batch=b&state=nonsense", "state is one of"),
    ] {
        let answer = site.post("/bulk", form).await;
        assert_eq!(answer.status, 400, "{form}");
        assert!(answer.text.contains(said), "{form}: {answer:?}");
    }
    for (body, said) in [
        (json!({"action": "cancel", "batch": null}), "batch says nothing"),
        (json!({"action": "cancel", "queue": "default", "batch": []}), "batch says nothing"),
        (json!({"action": "cancel", "batch": ["b", "c"]}), "batch is said twice"),
        (json!({"action": "cancel", "filter": {"batch": "b"}}), "no JSON object of texts"),
        (json!({"action": "cancel", "jobs": [1]}), "there is no filter jobs"),
    ] {
        let answer = site.post_json("/api/v1/bulk", &body).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.text.contains(said), "{body}: {answer:?}");
    }
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'pending'").await, "2");
    assert_eq!(ground.line("SELECT count(*) FROM audit").await, "0");
}

async fn all_jobs_are_meant_only_where_that_is_said(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'b'), ('c', NULL)").await;
    let site = Site::on(ground).await;
    let jobs = site.get("/jobs").await.good();
    assert!(jobs.contains("name=\"all\" value=\"true\"") && jobs.contains("With all jobs"), "{jobs}");
    let jobs = site.get("/jobs?batch=b").await.good();
    assert!(!jobs.contains("name=\"all\"") && jobs.contains("With all that match"), "{jobs}");
    let page = site.post("/bulk", "action=cancel&all=true&priority=0").await.good();
    assert!(page.contains("Yes, cancel 2 jobs") && page.contains("name=\"all\" value=\"true\""), "{page}");
    let run = site.post_json("/api/v1/bulk", &json!({"action": "cancel", "all": true, "count": 2})).await;
    assert_eq!(run.status, 202);
    assert_eq!(ended(&site, &run.json()["bulk"]).await["changed"], 2);
}

async fn a_run_changes_no_more_than_was_confirmed(ground: &Ground) {
    let rows: Vec<String> = (0..30).map(|n| format!("('{n}', 'b')")).collect();
    ground.run(&format!("INSERT INTO jobs (prompt, batch) VALUES {}", rows.join(", "))).await;
    let site = Site::on(ground).await;
    let wish = json!({"action": "cancel", "batch": "b", "count": 12, "more": true});
    let run = site.post_json("/api/v1/bulk", &wish).await.json();
    let run = ended(&site, &run["bulk"]).await;
    assert_eq!((&run["changed"], &run["looked_at"]), (&12.into(), &12.into()));
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'pending'").await, "18");
    let page = site.get("/bulk/1").await.good();
    assert!(page.contains("12 changed of 12") && page.contains("There were more"), "{page}");
}

async fn a_run_says_which_jobs_it_could_not_change(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'b'), ('c', 'b'), ('d', 'b')").await;
    for job in 1..=3 {
        settle(ground, job, "failed", "").await;
    }
    ground.run(&format!("UPDATE jobs SET redacted_at = {} WHERE id < 3", ground.at(0))).await;
    let site = Site::on(ground).await;
    let wish = json!({"action": "run_again", "batch": "b", "count": 3});
    let run = site.post_json("/api/v1/bulk", &wish).await.json();
    let run = ended(&site, &run["bulk"]).await;
    assert_eq!((&run["changed"], &run["looked_at"]), (&1.into(), &3.into()));
    assert_eq!(run["why_not"], "2 could not be: 2 redacted, so that nobody knows what to ask");
    let page = site.get("/bulk/1").await.good();
    assert!(page.contains("1 changed of 3") && page.contains("2 could not be: 2 redacted"), "{page}");
    assert_eq!(
        ground.lines("SELECT action, count FROM audit ORDER BY id").await,
        ["run_again|1", "bulk_end|1"]
    );
}

async fn a_second_click_finds_the_first_run(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'b'), ('c', 'b')").await;
    let site = Site::on(ground).await;
    let page = site.post("/bulk", "action=cancel&batch=b").await.good();
    let key = page.split("name=\"key\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    let form = format!("action=cancel&batch=b&priority=&count=2&key={}", key.expect("the form has a key"));
    let one = site.post("/bulk", &form).await;
    ended(&site, &1.into()).await;
    // Jobs that a second run would meet.
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('d', 'b')").await;
    let two = site.post("/bulk", &form).await;
    assert_eq!((one.header("location"), two.header("location")), ("/bulk/1", "/bulk/1"));
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'pending'").await, "1");
    assert_eq!(ground.line("SELECT count(*) FROM audit WHERE action = 'cancel'").await, "1");
    let other = site.post("/bulk", &form.replace("batch=b", "batch=c")).await;
    assert_eq!(other.status, 400);
    assert!(other.text.contains("key is that of another change"), "{other:?}");
}

async fn the_same_change_finds_the_run_that_is_under_way(ground: &Ground) {
    let numbers = ground.either(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) SELECT i FROM n",
        "SELECT generate_series(1, 3000) AS i",
    );
    ground.run(&format!("INSERT INTO jobs (prompt, batch) SELECT 'p', 'b' FROM ({numbers}) n")).await;
    let site = Site::on(ground).await;
    let wish = json!({"action": "prioritise", "priority": 3, "batch": "b", "count": 3000});
    let clicks = (0..4).map(|_| site.post_json("/api/v1/bulk", &wish));
    let answers = futures_util::future::join_all(clicks).await;
    let runs: Vec<Value> = answers.into_iter().map(|answer| answer.json()["bulk"].clone()).collect();
    ended(&site, &runs[0]).await;
    // Those that came while the first one was under way; none was refused.
    assert!(runs.iter().all(|run| *run == runs[0]), "{runs:?}");
    assert_eq!(ground.line("SELECT count(*) FROM audit WHERE action = 'prioritise'").await, "1");
}

async fn a_cancel_reaches_the_jobs_that_daemons_take_meanwhile(ground: &Ground) {
    let rows: Vec<String> = (0..1500).map(|n| format!("('{n}', 'b')")).collect();
    ground.run(&format!("INSERT INTO jobs (prompt, batch) VALUES {}", rows.join(", "))).await;
    let bench = Bench::on(ground).await;
    assert_eq!(bench.claim(40).await.len(), 40);
    let site = Site::on(ground).await;
    let wish = json!({"action": "cancel", "batch": "b", "count": 1500});
    let begun = site.post_json("/api/v1/bulk", &wish).await.json();
    // Each slot that is freed is filled again, from the other end of the queue.
    let claims = async {
        while site.get(&format!("/api/v1/bulk/{}", begun["bulk"])).await.json()["ended"] != true {
            bench.claim(40).await;
        }
    };
    claims.await;
    let run = ended(&site, &begun["bulk"]).await;
    assert_eq!((&run["changed"], &run["error"]), (&1500.into(), &json!(null)), "{run}");
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state <> 'done'").await, "0");
}
