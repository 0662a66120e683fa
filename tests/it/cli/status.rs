//! Where jobs are.

use super::{Desk, settle};
use crate::support::{Ground, on_both};

on_both! {
    status_counts_jobs_by_queue_and_batch,
    the_status_of_a_batch_tells_why_jobs_failed,
    an_empty_database_says_how_to_begin,
    a_daemon_that_is_silent_is_not_at_work,
    watching_a_batch_ends_with_its_last_job,
}

async fn status_counts_jobs_by_queue_and_batch(ground: &Ground) {
    ground
        .run(&format!(
            "INSERT INTO jobs (prompt, queue, batch, run_at) VALUES ('a', 'q', 'x', {0}), ('b', 'q', 'x', {0}), ('c', 'r', NULL, {1})",
            ground.at(-1),
            ground.at(600)
        ))
        .await;
    settle(ground, 1, "complete", "end_turn", "x").await;
    ground
        .run("INSERT INTO gates (scope, state, reason) VALUES ('model:p/m', 'blocked', 'too many errors')")
        .await;
    let desk = Desk::new(ground);
    let json = desk.mill(&["status", "--json"]).json();
    assert_eq!(
        json["queues"],
        serde_json::json!([
            {"queue": "q", "paused": false, "max_running": null, "profile": null, "pending": 1, "scheduled": 0, "running": 0, "waiting": 0, "done": 1},
            {"queue": "r", "paused": false, "max_running": null, "profile": null, "pending": 0, "scheduled": 1, "running": 0, "waiting": 0, "done": 0},
        ])
    );
    assert_eq!(
        json["open_batches"],
        serde_json::json!([{"batch": "x", "pending": 1, "scheduled": 0, "running": 0, "waiting": 0, "done": 1}])
    );
    assert_eq!(json["outcomes"][0]["outcome"], "complete");
    assert_eq!(json["outcomes"][0]["input_tokens"], 10);
    assert_eq!(json["gates"][0]["reason"], "too many errors");
    let out = desk.mill(&["status"]).good();
    assert!(out.contains("too many errors") && out.contains("a person opens it"), "{out}");
    assert!(out.contains("no daemon is at work"), "{out}");
}

async fn the_status_of_a_batch_tells_why_jobs_failed(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'x'), ('b', 'x'), ('c', 'x')").await;
    settle(ground, 2, "failed", "", "").await;
    settle(ground, 3, "failed", "", "").await;
    ground.run("UPDATE results SET error_type = 'invalid_request_error'").await;
    let desk = Desk::new(ground);
    let json = desk.mill(&["status", "--batch", "x", "--json"]).json();
    assert_eq!((&json["total"], &json["pending"], &json["done"]), (&3.into(), &1.into(), &2.into()));
    assert_eq!(
        json["faults"],
        serde_json::json!([{"outcome": "failed", "error_type": "invalid_request_error", "error_code": null, "jobs": 2, "example": 2}])
    );
    assert!(desk.mill(&["status", "-b", "x"]).good().contains("promptmill show 2"));
    assert!(desk.mill(&["status", "-b", "y"]).said(1).contains("no job has batch \"y\""));
}

async fn an_empty_database_says_how_to_begin(ground: &Ground) {
    assert!(Desk::new(ground).mill(&["status"]).good().starts_with("no jobs yet: INSERT INTO jobs"));
}

async fn a_daemon_that_is_silent_is_not_at_work(ground: &Ground) {
    let worker = "INSERT INTO workers (host, boot, pid, pid_started, version, seen_at) VALUES ('box', 'b',";
    ground.run(&format!("{worker} 1, 1, '0', {})", ground.at(-121))).await;
    let desk = Desk::new(ground);
    let out = desk.mill(&["status"]).good();
    assert!(
        out.contains("no daemon is at work; 1 is silent: promptmill run") && out.contains("silent for 2 min"),
        "{out}"
    );
    assert_eq!(desk.mill(&["status", "--json"]).json()["workers"][0]["silent"], true);
    ground.run(&format!("{worker} 2, 1, '0', {})", ground.at(-100))).await;
    let out = desk.mill(&["status"]).good();
    assert!(
        !out.contains("no daemon is at work") && out.contains("1 min 4") && out.contains("silent for"),
        "{out}"
    );
}

async fn watching_a_batch_ends_with_its_last_job(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'x')").await;
    settle(ground, 1, "complete", "end_turn", "x").await;
    let out = Desk::new(ground).mill(&["status", "--watch", "--batch", "x"]).good();
    assert!(out.contains("complete"), "{out}");
}
