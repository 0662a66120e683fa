//! Changes by people: cancel, retry, pause, resume.

use super::{Desk, settle};
use crate::support::{Ground, on_both};

on_both! {
    cancel_ends_what_is_not_done,
    cancel_by_batch_tells_how_many,
    a_command_that_names_nothing_is_refused,
    a_dry_run_changes_nothing,
    retry_runs_named_jobs_again,
    retry_of_a_batch_leaves_complete_and_cancelled_ones,
    retry_by_the_type_of_an_error_runs_those_again_that_failed_so,
    many_jobs_are_changed_in_pages,
    a_queue_is_paused_and_resumed,
    a_batch_is_paused_and_resumed_by_its_gate,
    batches_whose_queues_have_slashes_in_their_names_have_gates_of_their_own,
    what_is_not_there_is_told,
}

async fn states(ground: &Ground) -> String {
    ground.lines("SELECT state FROM job_state ORDER BY job_id").await.join(" ")
}

async fn cancel_ends_what_is_not_done(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a'), ('b'), ('c')").await;
    settle(ground, 1, "complete", "end_turn", "x").await;
    let desk = Desk::new(ground);
    let ran = desk.mill(&["cancel", "1", "2"]);
    assert_eq!(ran.said(0), "1 job cancelled, 1 job already done\n");
    assert_eq!(states(ground).await, "done done pending");
    assert_eq!(
        ground.lines("SELECT job_id, outcome FROM results ORDER BY job_id").await,
        ["1|complete", "2|cancelled"]
    );
}

async fn cancel_by_batch_tells_how_many(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch, queue) VALUES ('a', 'x', 'q'), ('b', 'x', 'r'), ('c', NULL, 'q')").await;
    let desk = Desk::new(ground);
    assert_eq!(desk.mill(&["cancel", "--batch", "x", "--queue", "q"]).said(0), "1 job cancelled\n");
    let json = desk.mill(&["cancel", "--batch", "x", "--json"]).json();
    assert_eq!(json["cancelled"], 1);
    assert_eq!(desk.mill(&["cancel", "--all"]).said(0), "1 job cancelled\n");
    assert_eq!(states(ground).await, "done done done");
}

async fn a_command_that_names_nothing_is_refused(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    let desk = Desk::new(ground);
    for command in ["cancel", "retry", "pause", "resume"] {
        let said = desk.mill(&[command]).said(2);
        assert!(said.contains("--all"), "{said}");
    }
    assert!(desk.mill(&["retry", "--outcome", "failed"]).said(2).contains("--all"));
    assert_eq!(states(ground).await, "pending");
}

async fn a_dry_run_changes_nothing(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a'), ('b')").await;
    let desk = Desk::new(ground);
    assert_eq!(desk.mill(&["cancel", "--all", "--dry-run"]).said(0), "2 jobs would be cancelled\n");
    assert_eq!(desk.mill(&["cancel", "1", "--dry-run"]).said(0), "1 job would be cancelled\n");
    assert_eq!(states(ground).await, "pending pending");
}

async fn retry_runs_named_jobs_again(ground: &Ground) {
    ground
        .run(&format!(
            "INSERT INTO jobs (prompt, run_at) VALUES ('a', {0}), ('b', {1}), ('c', {0})",
            ground.at(-1),
            ground.at(600)
        ))
        .await;
    settle(ground, 1, "complete", "end_turn", "x").await;
    let desk = Desk::new(ground);
    assert_eq!(states(ground).await, "done scheduled pending");
    assert_eq!(desk.mill(&["retry", "1", "2", "3"]).said(0), "2 jobs run again, 1 job not done yet\n");
    assert_eq!(states(ground).await, "pending pending pending");
    assert_eq!(ground.line("SELECT run FROM job_state WHERE job_id = 1").await, "2");
    assert_eq!(ground.line("SELECT count(*) FROM results").await, "0");
    assert_eq!(ground.line("SELECT count(*) FROM calls").await, "1", "the ledger is kept");
}

async fn retry_of_a_batch_leaves_complete_and_cancelled_ones(ground: &Ground) {
    ground
        .run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'x'), ('b', 'x'), ('c', 'x'), ('d', 'x')")
        .await;
    settle(ground, 1, "complete", "end_turn", "x").await;
    settle(ground, 2, "failed", "", "").await;
    settle(ground, 3, "refused", "refusal", "").await;
    ground.run("UPDATE job_state SET state = 'cancelled' WHERE job_id = 4").await;
    let desk = Desk::new(ground);
    assert_eq!(
        desk.mill(&["retry", "-b", "x", "--outcome", "refused", "--dry-run"]).said(0),
        "1 job would run again\n"
    );
    assert_eq!(desk.mill(&["retry", "--batch", "x"]).said(0), "2 jobs run again\n");
    assert_eq!(states(ground).await, "done pending pending done");
    assert_eq!(desk.mill(&["retry", "--all", "--outcome", "cancelled"]).said(0), "1 job runs again\n");
}

async fn retry_by_the_type_of_an_error_runs_those_again_that_failed_so(ground: &Ground) {
    ground
        .run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'x'), ('b', 'x'), ('c', 'x'), ('d', 'x'), ('e', 'y')")
        .await;
    settle(ground, 1, "complete", "end_turn", "x").await;
    for (job, error) in [(2, "overloaded_error"), (3, "stream_cut"), (5, "overloaded_error")] {
        settle(ground, job, "failed", "", "").await;
        ground.run(&format!("UPDATE results SET error_type = '{error}' WHERE job_id = {job}")).await;
    }
    settle(ground, 4, "refused", "refusal", "").await;
    let desk = Desk::new(ground);
    let both = ["retry", "--all", "--error-type", "overloaded_error,stream_cut", "--dry-run"];
    assert_eq!(desk.mill(&both).said(0), "3 jobs would run again\n");
    let narrowed = ["retry", "--all", "--error-type", "stream_cut", "--outcome", "refused"];
    assert_eq!(desk.mill(&narrowed).said(0), "0 jobs run again\n");
    assert_eq!(
        desk.mill(&["retry", "--batch", "x", "--error-type", "overloaded_error"]).said(0),
        "1 job runs again\n"
    );
    assert_eq!(states(ground).await, "done pending done done done");
    let said = desk.mill(&["retry", "--error-type", "stream_cut"]).said(2);
    assert!(said.contains("beside --error-type") && said.contains("--all"), "{said}");
    desk.mill(&["retry", "1", "--error-type", "stream_cut"]).said(2);
}

async fn many_jobs_are_changed_in_pages(ground: &Ground) {
    let many = ground.either(
        "INSERT INTO jobs (prompt) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500) SELECT 'a' FROM n",
        "INSERT INTO jobs (prompt) SELECT 'a' FROM generate_series(1, 2500)",
    );
    ground.run(many).await;
    let desk = Desk::new(ground);
    assert_eq!(desk.mill(&["cancel", "--queue", "default"]).said(0), "2,500 jobs cancelled\n");
    assert_eq!(ground.line("SELECT count(*) FROM results WHERE outcome = 'cancelled'").await, "2500");
    assert_eq!(desk.mill(&["retry", "--all", "--outcome", "cancelled"]).said(0), "2,500 jobs run again\n");
    assert_eq!(
        ground.line("SELECT count(*) FROM job_state WHERE state = 'pending' AND run = 2").await,
        "2500"
    );
}

async fn a_queue_is_paused_and_resumed(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, queue) VALUES ('a', 'q'), ('b', 'r')").await;
    let desk = Desk::new(ground);
    let paused = || async { ground.lines("SELECT name FROM queues WHERE paused ORDER BY name").await };
    assert_eq!(desk.mill(&["pause", "q"]).said(0), "1 queue paused: q\n");
    assert_eq!(paused().await, ["q"]);
    assert_eq!(desk.mill(&["pause", "--all", "--json"]).json()["queues"], serde_json::json!(["q", "r"]));
    assert_eq!(desk.mill(&["resume", "--queue", "q"]).said(0), "1 queue resumed: q\n");
    assert_eq!(paused().await, ["r"]);
    assert!(desk.mill(&["show", "2"]).good().contains("queue paused"));
}

async fn a_batch_is_paused_and_resumed_by_its_gate(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch, queue) VALUES ('a', 'x/y', 'q'), ('b', 'x/y', 'r'), ('c', 'z', 'q')").await;
    let desk = Desk::new(ground);
    let gates = || async { ground.lines("SELECT scope, state, reason FROM gates ORDER BY scope").await };
    assert_eq!(desk.mill(&["pause", "--batch", "x/y"]).said(0), "batch x/y paused in 2 queues: q, r\n");
    assert_eq!(
        gates().await,
        ["batch:q/x/y|blocked|paused by a person", "batch:r/x/y|blocked|paused by a person"]
    );
    assert!(desk.mill(&["status"]).good().contains("batch:q/x/y"));
    assert!(desk.mill(&["show", "1"]).good().contains("paused by a person"));
    assert_eq!(desk.mill(&["resume", "--batch", "x/y"]).said(0), "batch x/y resumed in 2 queues: q, r\n");
    assert_eq!(gates().await, ["batch:q/x/y|flowing|NULL", "batch:r/x/y|flowing|NULL"]);
    assert_eq!(desk.mill(&["resume", "--batch", "x/y"]).said(0), "batch x/y was not stopped\n");
    assert_eq!(desk.mill(&["pause", "--batch", "x/y"]).said(0), "batch x/y paused in 2 queues: q, r\n");
    assert_eq!(ground.line("SELECT count(*) FROM gates WHERE state = 'blocked'").await, "2");
}

async fn batches_whose_queues_have_slashes_in_their_names_have_gates_of_their_own(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, queue, batch) VALUES ('a', 'a/b', 'c'), ('b', 'a', 'b/c'), ('c', '50%', 'c')").await;
    let desk = Desk::new(ground);
    assert_eq!(desk.mill(&["pause", "--batch", "c"]).said(0), "batch c paused in 2 queues: 50%, a/b\n");
    let reasons = || async { ground.lines("SELECT id, reason FROM job_overview ORDER BY id").await };
    assert_eq!(reasons().await, ["1|paused by a person", "2|NULL", "3|paused by a person"]);
    let json = desk.mill(&["gates", "--json"]).json();
    let told: Vec<String> = json["gates"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|gate| format!("{} {} {}", gate["scope"], gate["what"], gate["pending"]))
        .collect();
    assert_eq!(
        told,
        [r#""batch:50%25/c" "batch c of queue 50%" 1"#, r#""batch:a%2Fb/c" "batch c of queue a/b" 1"#]
    );
    // What it prints is what it takes.
    let free = json["gates"][1]["ways"]["go_on"].as_str().expect("a command").replace("promptmill ", "");
    desk.mill(&free.split(' ').map(|word| word.trim_matches('\'')).collect::<Vec<_>>()).said(0);
    assert_eq!(reasons().await, ["1|NULL", "2|NULL", "3|paused by a person"]);
    desk.mill(&["gates", "block", "batch:a/b/c"]).said(0);
    assert_eq!(reasons().await, ["1|NULL", "2|blocked by a person", "3|paused by a person"]);
    assert_eq!(desk.mill(&["resume", "--batch", "c"]).said(0), "batch c resumed in 1 queue: 50%\n");
}

async fn what_is_not_there_is_told(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    let desk = Desk::new(ground);
    assert_eq!(desk.mill(&["cancel", "7"]).said(1), "job 7 does not exist\n0 jobs cancelled\n");
    assert!(desk.mill(&["cancel", "--batch", "x"]).said(1).contains("no job has batch \"x\""));
    assert!(
        desk.mill(&["retry", "--queue", "x"]).said(1).contains("no queue is named \"x\"; there are: default")
    );
    assert!(desk.mill(&["pause", "x"]).said(1).contains("no queue is named \"x\""));
    assert!(desk.mill(&["pause", "--batch", "x"]).said(1).contains("no job has batch \"x\""));
    assert_eq!(states(ground).await, "pending");
}
