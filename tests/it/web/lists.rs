//! The list of jobs: filters, pages by key, and that no row is lost or shown twice.

use std::collections::BTreeSet;

use super::{Site, settle};
use crate::support::{Ground, on_both};

on_both!(
    each_filter_finds_its_jobs,
    pages_show_every_job_once,
    a_batch_shows_what_is_open_before_what_is_done,
    a_word_that_is_no_state_is_refused,
    a_group_of_errors_leads_to_its_own_jobs,
    a_list_of_very_many_queues_ends_and_says_so,
);

/// Twelve jobs: two batches, two queues, all states but waiting.
async fn lay_out(ground: &Ground) {
    ground
        .run(
            "INSERT INTO jobs (prompt, queue, batch, model) VALUES
                 ('1', 'q', 'b', NULL), ('2', 'q', 'b', 'm'), ('3', 'q', 'b', NULL), ('4', 'q', 'c', NULL),
                 ('5', 'r', 'c', NULL), ('6', 'r', NULL, NULL), ('7', 'r', NULL, NULL), ('8', 'r', NULL, NULL),
                 ('9', 'q', 'b', NULL), ('10', 'q', 'b', NULL), ('11', 'q', NULL, NULL), ('12', 'q', NULL, NULL)",
        )
        .await;
    for (job, outcome) in [(1, "complete"), (3, "failed"), (5, "truncated"), (6, "complete"), (9, "complete")]
    {
        settle(ground, job, outcome, "x").await;
    }
    ground.run("UPDATE job_state SET state = 'running', claims = 1, claimed_by = 1 WHERE job_id = 10").await;
    let later = ground.at(3600);
    ground
        .run(&format!("UPDATE job_state SET state = 'scheduled', available_at = {later} WHERE job_id = 11"))
        .await;
}

/// The jobs of a list, page by page.
async fn all(site: &Site, query: &str, limit: usize) -> Vec<i64> {
    let (mut jobs, mut from) = (Vec::new(), String::new());
    for _ in 0..50 {
        let page = site.get(&format!("/api/v1/jobs?{query}&limit={limit}&from={from}")).await.json();
        let found = page["jobs"].as_array().unwrap_or_else(|| panic!("no list in {page}"));
        jobs.extend(found.iter().map(|job| job["id"].as_i64().expect("an id")));
        match page["next"].as_str() {
            Some(next) => next.clone_into(&mut from),
            None => return jobs,
        }
    }
    panic!("{query} has no end: {jobs:?}");
}

async fn each_filter_finds_its_jobs(ground: &Ground) {
    lay_out(ground).await;
    let site = Site::on(ground).await;
    for (query, expected) in [
        ("state=pending", &[12, 8, 7, 4, 2][..]),
        ("state=running", &[10]),
        ("state=scheduled", &[11]),
        ("state=waiting", &[]),
        ("state=done", &[9, 6, 5, 3, 1]),
        ("outcome=complete", &[9, 6, 1]),
        ("outcome=failed", &[3]),
        ("outcome=failed&batch=b", &[3]),
        ("outcome=failed&batch=c", &[]),
        ("stop_reason=max_tokens", &[5, 3]),
        ("stop_reason=end_turn", &[9, 6, 1]),
        ("error_type=invalid_request_error", &[3]),
        ("queue=r", &[8, 7, 6, 5]),
        ("queue=r&state=done", &[6, 5]),
        ("queue=r&state=pending", &[8, 7]),
        ("model=m", &[2]),
        ("model=claude-x", &[9, 6, 5, 3, 1]),
        ("model=claude-x&state=done&queue=q", &[9, 3, 1]),
        ("batch=b&state=pending", &[2]),
        ("batch=b&state=done", &[9, 3, 1]),
        ("batch=none", &[]),
        ("state=pending&outcome=failed", &[]),
    ] {
        for limit in [50, 1] {
            assert_eq!(all(&site, query, limit).await, expected, "{query} by {limit}");
        }
    }
}

async fn pages_show_every_job_once(ground: &Ground) {
    lay_out(ground).await;
    let site = Site::on(ground).await;
    for query in ["", "queue=q", "batch=b", "batch=c", "state=pending", "state=done", "batch=b&queue=q"] {
        let whole = all(&site, query, 50).await;
        for limit in 1..6 {
            let pages = all(&site, query, limit).await;
            assert_eq!(pages, whole, "{query} by {limit}");
        }
        assert_eq!(whole.iter().collect::<BTreeSet<_>>().len(), whole.len(), "{query}");
    }
    assert_eq!(all(&site, "", 5).await, (1..=12).rev().collect::<Vec<_>>());
    let page = site.get("/jobs").await.good();
    assert!(page.contains("/jobs/12\"") && page.contains("/jobs/1\""), "{page}");
}

async fn a_batch_shows_what_is_open_before_what_is_done(ground: &Ground) {
    lay_out(ground).await;
    let site = Site::on(ground).await;
    assert_eq!(all(&site, "batch=b", 2).await, [10, 2, 9, 3, 1]);
}

async fn a_word_that_is_no_state_is_refused(ground: &Ground) {
    let site = Site::on(ground).await;
    for query in ["state=nonsense", "outcome=nonsense", "from=nonsense", "limit=0", "limit=9999"] {
        let answer = site.get(&format!("/api/v1/jobs?{query}")).await;
        assert_eq!(answer.status, 400, "{query}");
        assert_eq!(answer.json()["error"]["type"], "bad_request");
    }
}

async fn a_group_of_errors_leads_to_its_own_jobs(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('1'), ('2'), ('3')").await;
    for job in 1..=3 {
        settle(ground, job, "failed", "").await;
    }
    ground.run("UPDATE results SET error_code = CASE WHEN job_id = 2 THEN 'b' ELSE 'a' END").await;
    let site = Site::on(ground).await;
    let page = site.get("/errors").await.good();
    let query =
        "outcome=failed&#38;error_type=invalid_request_error&#38;error_code=b&#38;stop_reason=max_tokens";
    assert!(page.contains(&format!("/jobs?{query}")), "{page}");
    assert_eq!(all(&site, &query.replace("&#38;", "&"), 50).await, [2]);
    assert_eq!(all(&site, "error_code=a", 1).await, [3, 1]);
    assert_eq!(all(&site, "error_code=a&state=pending", 50).await, Vec::<i64>::new());
    let wish = serde_json::json!({"action": "run_again", "error_code": "a"});
    assert_eq!(site.post_json("/api/v1/bulk", &wish).await.json()["counted"], 2);
}

async fn a_list_of_very_many_queues_ends_and_says_so(ground: &Ground) {
    let rows: Vec<String> = (0..500).map(|n| format!("('q{n:04}')")).collect();
    ground.run(&format!("INSERT INTO queues (name) VALUES {}", rows.join(", "))).await;
    let site = Site::on(ground).await;
    let more = "<code>SELECT * FROM queues</code>";
    assert!(!site.get("/queues").await.good().contains(more));
    ground.run("INSERT INTO queues (name) VALUES ('z')").await;
    let page = site.get("/queues").await.good();
    assert!(page.contains(more) && page.contains("The first 500") && page.contains("q0499"), "{page}");
    assert_eq!(site.get("/api/v1/queues").await.json()["more"], true);
    let page = site.get("/jobs").await.good();
    assert!(page.contains("value=\"q0499\"") && !page.contains("value=\"z\""), "{page}");
    // One that is not listed can be turned all the same.
    site.post("/act/queue", "queue=z&action=pause").await;
    assert_eq!(ground.line("SELECT name FROM queues WHERE paused").await, "z");
}
