//! The table of transitions: what people may do to `job_state`, with no daemon anywhere, and that the worker's own
//! changes never meet the guard.

use crate::support::{Ground, Kind, on_both};

on_both! {
    a_pending_job_can_be_cancelled,
    a_scheduled_job_can_be_cancelled,
    a_running_job_is_taken_from_its_worker_by_a_cancel,
    a_waiting_job_can_be_cancelled,
    a_cancelled_run_is_summed_up_from_its_ledger,
    cancelling_a_done_job_changes_nothing,
    a_bulk_cancel_passes_over_what_is_done,
    a_scheduled_job_can_be_run_now,
    a_scheduled_job_moved_into_the_past_is_pending,
    a_pending_job_moved_into_the_future_is_scheduled,
    a_scheduled_job_can_be_moved,
    moving_a_job_does_not_move_its_deadline,
    pending_on_a_pending_job_changes_nothing,
    a_done_job_can_be_run_again,
    a_done_job_can_be_run_again_later,
    running_again_restarts_the_deadline,
    a_bulk_run_again_passes_over_what_is_pending,
    priority_may_change_in_every_state,
    everything_else_is_refused_with_a_sentence,
    available_at_of_a_job_that_is_not_waiting_its_turn_is_refused,
    a_claim_and_a_settle_do_not_meet_the_guard,
    a_release_and_a_rescue_do_not_meet_the_guard,
    a_deadline_ends_a_job_without_meeting_the_guard,
    promotion_makes_due_jobs_pending,
    a_running_job_has_a_worker,
    run_again_after_cancel_is_fenced_from_the_old_worker,
}

const CLAIM: &str =
    "UPDATE job_state SET state = 'running', claims = claims + 1, claimed_by = 7 WHERE job_id = ";
const STATE: &str = "SELECT state, run, claims, claimed_by FROM job_state WHERE job_id = 1";

async fn insert(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, key, batch) VALUES ('a', 'k', 'b')").await;
}

/// As a worker does: state and result together.
async fn settle(ground: &Ground, outcome: &str) {
    ground.run(&format!("{CLAIM} 1")).await;
    ground
        .run(&format!(
            "INSERT INTO results (job_id, run, queue, batch, key, outcome, text)
             SELECT j.id, s.run, j.queue, j.batch, j.key, '{outcome}', 'said'
               FROM jobs j JOIN job_state s ON s.job_id = j.id WHERE j.id = 1"
        ))
        .await;
    ground.run("UPDATE job_state SET state = 'done', claimed_by = NULL, failures = 2, crashes = 1, deferrals = 3 WHERE job_id = 1").await;
}

async fn cancel(ground: &Ground) {
    assert_eq!(ground.run("UPDATE job_state SET state = 'cancelled' WHERE job_id = 1").await, 1);
    assert!(ground.line(STATE).await.starts_with("done|"));
}

async fn a_pending_job_can_be_cancelled(ground: &Ground) {
    insert(ground).await;
    cancel(ground).await;
    assert_eq!(ground.line(STATE).await, "done|1|1|NULL");
    assert_eq!(
        ground.line("SELECT job_id, run, queue, batch, key, outcome, text, stop_reason, calls, error, started_at FROM results").await,
        "1|1|default|b|k|cancelled|NULL|NULL|0|cancelled while pending|NULL"
    );
    assert_eq!(
        ground.line("SELECT count(*) FROM results WHERE finished_at IS NOT NULL AND seq IS NOT NULL").await,
        "1"
    );
}

async fn a_scheduled_job_can_be_cancelled(ground: &Ground) {
    ground.run(&format!("INSERT INTO jobs (prompt, run_at) VALUES ('a', {})", ground.at(60))).await;
    cancel(ground).await;
    assert_eq!(
        ground.line("SELECT outcome, error FROM results").await,
        "cancelled|cancelled while scheduled"
    );
}

async fn a_running_job_is_taken_from_its_worker_by_a_cancel(ground: &Ground) {
    insert(ground).await;
    ground.run(&format!("{CLAIM} 1")).await;
    assert_eq!(ground.line(STATE).await, "running|1|1|7");
    cancel(ground).await;
    assert_eq!(ground.line(STATE).await, "done|1|2|NULL");
    assert_eq!(ground.line("SELECT outcome, error FROM results").await, "cancelled|cancelled while running");
}

async fn a_waiting_job_can_be_cancelled(ground: &Ground) {
    insert(ground).await;
    ground.run(&format!("{CLAIM} 1")).await;
    ground.run("UPDATE job_state SET state = 'waiting', claimed_by = NULL WHERE job_id = 1").await;
    cancel(ground).await;
    assert_eq!(ground.line("SELECT outcome, error FROM results").await, "cancelled|cancelled while waiting");
}

async fn a_cancelled_run_is_summed_up_from_its_ledger(ground: &Ground) {
    insert(ground).await;
    ground.run("UPDATE job_state SET claims = 1 WHERE job_id = 1").await;
    ground
        .run(&format!(
            "INSERT INTO calls (job_id, claim, seq, run, kind, sent_at, request_id,
                                input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens)
             VALUES (1, 1, 1, 1, 'ask', {}, 'r1', 10, 20, 1, 2), (1, 1, 2, 1, 'continue', {}, 'r2', 30, 40, 3, 4),
                    (1, 1, 3, 2, 'ask', {}, 'another run', 1000, 1000, 1000, 1000),
                    (2, 1, 1, 1, 'ask', {}, 'another job', 1000, 1000, 1000, 1000)",
            ground.at(-60),
            ground.at(-30),
            ground.at(-90),
            ground.at(-90)
        ))
        .await;
    ground.run("UPDATE job_state SET failures = 2 WHERE job_id = 1").await;
    cancel(ground).await;
    assert_eq!(
        ground
            .line("SELECT calls, continuations, failures, input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens, request_id FROM results")
            .await,
        "2|1|2|40|60|4|6|r2"
    );
    assert_eq!(
        ground.line("SELECT count(*) FROM results r JOIN calls c ON c.sent_at = r.started_at WHERE c.request_id = 'r1'").await,
        "1"
    );
}

async fn cancelling_a_done_job_changes_nothing(ground: &Ground) {
    insert(ground).await;
    settle(ground, "complete").await;
    let before = ground.line("SELECT state, run, claims, failures, available_at FROM job_state").await;
    assert_eq!(ground.run("UPDATE job_state SET state = 'cancelled'").await, 0);
    assert_eq!(ground.line("SELECT state, run, claims, failures, available_at FROM job_state").await, before);
    assert_eq!(ground.line("SELECT outcome, text FROM results").await, "complete|said");
}

async fn a_bulk_cancel_passes_over_what_is_done(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a'), ('b'), ('c'), ('d')").await;
    settle(ground, "complete").await;
    ground.run(&format!("{CLAIM} 3")).await;
    assert_eq!(ground.run("UPDATE job_state SET state = 'cancelled'").await, 3);
    assert_eq!(
        ground.lines("SELECT job_id, outcome FROM results ORDER BY job_id").await,
        ["1|complete", "2|cancelled", "3|cancelled", "4|cancelled"]
    );
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'done'").await, "4");
}

async fn schedule(ground: &Ground) {
    ground.run(&format!("INSERT INTO jobs (prompt, run_at) VALUES ('a', {})", ground.at(600))).await;
}

async fn due(ground: &Ground) -> bool {
    let sql = format!("SELECT count(*) FROM job_state WHERE available_at <= {}", ground.at(0));
    ground.line(&sql).await == "1"
}

async fn a_scheduled_job_can_be_run_now(ground: &Ground) {
    schedule(ground).await;
    assert_eq!(ground.run("UPDATE job_state SET state = 'pending' WHERE job_id = 1").await, 1);
    assert_eq!(ground.line(STATE).await, "pending|1|0|NULL");
    assert!(due(ground).await);
}

async fn a_scheduled_job_moved_into_the_past_is_pending(ground: &Ground) {
    schedule(ground).await;
    ground.run(&format!("UPDATE job_state SET available_at = {} WHERE job_id = 1", ground.at(-5))).await;
    assert_eq!(ground.line(STATE).await, "pending|1|0|NULL");
    assert!(due(ground).await);
}

async fn a_pending_job_moved_into_the_future_is_scheduled(ground: &Ground) {
    insert(ground).await;
    ground.run(&format!("UPDATE job_state SET available_at = {} WHERE job_id = 1", ground.at(60))).await;
    assert_eq!(ground.line(STATE).await, "scheduled|1|0|NULL");
    ground.run("UPDATE job_state SET state = 'pending' WHERE job_id = 1").await;
    ground
        .run(&format!(
            "UPDATE job_state SET state = 'scheduled', available_at = {} WHERE job_id = 1",
            ground.at(60)
        ))
        .await;
    assert_eq!(ground.line(STATE).await, "scheduled|1|0|NULL");
    assert!(!due(ground).await);
}

async fn a_scheduled_job_can_be_moved(ground: &Ground) {
    schedule(ground).await;
    ground.run(&format!("UPDATE job_state SET available_at = {} WHERE job_id = 1", ground.at(60))).await;
    assert_eq!(ground.line(STATE).await, "scheduled|1|0|NULL");
    let sooner = format!("SELECT count(*) FROM job_state WHERE available_at < {}", ground.at(120));
    assert_eq!(ground.line(&sooner).await, "1");
    ground
        .run(&format!(
            "UPDATE job_state SET state = 'pending', available_at = {} WHERE job_id = 1",
            ground.at(30)
        ))
        .await;
    assert_eq!(ground.line(STATE).await, "scheduled|1|0|NULL");
}

async fn moving_a_job_does_not_move_its_deadline(ground: &Ground) {
    ground.run(r#"INSERT INTO jobs (prompt, policy) VALUES ('a', '{"deadline_seconds": 60}')"#).await;
    let before = ground.line("SELECT deadline_at FROM job_state").await;
    ground.run(&format!("UPDATE job_state SET available_at = {}", ground.at(600))).await;
    assert_eq!(ground.line("SELECT deadline_at FROM job_state").await, before);
}

async fn pending_on_a_pending_job_changes_nothing(ground: &Ground) {
    insert(ground).await;
    let before = ground.line("SELECT state, run, claims, available_at FROM job_state").await;
    assert_eq!(ground.run("UPDATE job_state SET state = 'pending'").await, 1);
    assert_eq!(ground.line("SELECT state, run, claims, available_at FROM job_state").await, before);
}

async fn a_done_job_can_be_run_again(ground: &Ground) {
    insert(ground).await;
    ground.run("INSERT INTO calls (job_id, claim, seq, run, kind) VALUES (1, 1, 1, 1, 'ask')").await;
    ground
        .run("INSERT INTO checkpoints (job_id, claim, seq, part, content) VALUES (1, 1, 1, 1, 'half')")
        .await;
    settle(ground, "failed").await;
    ground.run("UPDATE job_state SET reason = 'old' WHERE job_id = 1").await;
    let seq = ground.line("SELECT seq FROM results").await;
    assert_eq!(ground.run("UPDATE job_state SET state = 'pending' WHERE job_id = 1").await, 1);
    assert_eq!(
        ground
            .line(
                "SELECT state, run, claims, failures, crashes, deferrals, reason, claimed_by FROM job_state"
            )
            .await,
        "pending|2|2|0|0|0|NULL|NULL"
    );
    assert!(due(ground).await);
    assert_eq!(ground.line("SELECT count(*) FROM results").await, "0");
    assert_eq!(ground.line("SELECT count(*) FROM checkpoints").await, "0");
    assert_eq!(ground.line("SELECT count(*) FROM calls").await, "1");
    settle(ground, "complete").await;
    let again: i64 = ground.line("SELECT seq FROM results").await.parse().expect("a number");
    assert!(again > seq.parse().expect("a number"), "{again} after {seq}");
    assert_eq!(ground.line("SELECT run, outcome FROM results").await, "2|complete");
}

async fn a_done_job_can_be_run_again_later(ground: &Ground) {
    insert(ground).await;
    settle(ground, "failed").await;
    ground
        .run(&format!(
            "UPDATE job_state SET state = 'pending', available_at = {} WHERE job_id = 1",
            ground.at(60)
        ))
        .await;
    assert_eq!(ground.line(STATE).await, "scheduled|2|2|NULL");
    assert_eq!(ground.line("SELECT count(*) FROM results").await, "0");
}

async fn running_again_restarts_the_deadline(ground: &Ground) {
    ground.run(r#"INSERT INTO jobs (prompt, policy) VALUES ('a', '{"deadline_seconds": 100}')"#).await;
    settle(ground, "failed").await;
    ground.run(&format!("UPDATE job_state SET deadline_at = {} WHERE job_id = 1", ground.at(-600))).await;
    ground.run("UPDATE job_state SET state = 'pending' WHERE job_id = 1").await;
    let ahead = format!(
        "SELECT count(*) FROM job_state WHERE deadline_at > {} AND deadline_at <= {}",
        ground.at(90),
        ground.at(100)
    );
    assert_eq!(ground.line(&ahead).await, "1");
}

async fn a_bulk_run_again_passes_over_what_is_pending(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a'), ('b')").await;
    schedule(ground).await;
    settle(ground, "failed").await;
    ground.run("UPDATE job_state SET state = 'pending'").await;
    assert_eq!(
        ground.lines("SELECT job_id, state, run FROM job_state ORDER BY job_id").await,
        ["1|pending|2", "2|pending|1", "3|pending|1"]
    );
}

async fn priority_may_change_in_every_state(ground: &Ground) {
    insert(ground).await;
    assert_eq!(ground.run("UPDATE job_state SET priority = 1").await, 1);
    ground.run(&format!("{CLAIM} 1")).await;
    assert_eq!(ground.run("UPDATE job_state SET priority = 2").await, 1);
    cancel(ground).await;
    assert_eq!(ground.run("UPDATE job_state SET priority = 3").await, 1);
    assert_eq!(ground.line("SELECT priority, state, claims FROM job_state").await, "3|done|2");
}

async fn everything_else_is_refused_with_a_sentence(ground: &Ground) {
    insert(ground).await;
    let to = async |state: &str| {
        ground.refused(&format!("UPDATE job_state SET state = '{state}' WHERE job_id = 1")).await
    };

    for state in ["running", "waiting", "done", "canceled", ""] {
        let sentence = to(state).await;
        assert!(sentence.contains("'cancelled'"), "{state}: {sentence}");
    }
    assert!(to("scheduled").await.contains("set available_at to a later time"));

    ground.run(&format!("{CLAIM} 1")).await;
    for state in ["pending", "scheduled", "waiting", "done"] {
        let sentence = to(state).await;
        assert!(sentence.contains("'cancelled'"), "{state}: {sentence}");
    }
    ground
        .run(
            "INSERT INTO tool_calls (job_id, claim, seq, position, run, call_id, name, worker)
             VALUES (1, 1, 1, 0, 1, 'toolu', 'weather', 7)",
        )
        .await;
    ground.run("UPDATE job_state SET state = 'waiting', claimed_by = NULL WHERE job_id = 1").await;
    for state in ["pending", "scheduled", "running", "done"] {
        let sentence = to(state).await;
        assert!(sentence.contains("'cancelled'"), "{state}: {sentence}");
    }
    cancel(ground).await;
    for state in ["scheduled", "running", "waiting"] {
        let sentence = to(state).await;
        assert!(sentence.contains("'pending'"), "{state}: {sentence}");
    }
    assert_eq!(ground.line(STATE).await, "done|1|2|NULL");
}

async fn available_at_of_a_job_that_is_not_waiting_its_turn_is_refused(ground: &Ground) {
    insert(ground).await;
    let move_it = format!("UPDATE job_state SET available_at = {}", ground.at(60));
    ground.run(&format!("{CLAIM} 1")).await;
    assert!(ground.refused(&move_it).await.contains("AND state IN ('pending', 'scheduled')"));
    cancel(ground).await;
    assert!(ground.refused(&move_it).await.contains("AND state IN ('pending', 'scheduled')"));
}

async fn a_claim_and_a_settle_do_not_meet_the_guard(ground: &Ground) {
    insert(ground).await;
    settle(ground, "complete").await;
    assert_eq!(ground.line(STATE).await, "done|1|1|NULL");
    assert_eq!(ground.line("SELECT outcome FROM results").await, "complete");
}

async fn a_release_and_a_rescue_do_not_meet_the_guard(ground: &Ground) {
    insert(ground).await;
    ground.run(&format!("{CLAIM} 1")).await;
    ground
        .run(&format!(
            "UPDATE job_state SET state = 'scheduled', claimed_by = NULL, available_at = {}, failures = failures + 1 WHERE job_id = 1",
            ground.at(-1)
        ))
        .await;
    assert_eq!(ground.line(STATE).await, "scheduled|1|1|NULL");
    ground.run("UPDATE job_state SET state = 'pending' WHERE job_id = 1").await;
    ground.run(&format!("{CLAIM} 1")).await;
    ground
        .run("UPDATE job_state SET state = 'pending', claimed_by = NULL, claims = claims + 1, crashes = crashes + 1 WHERE job_id = 1")
        .await;
    assert_eq!(ground.line(STATE).await, "pending|1|3|NULL");
}

async fn a_deadline_ends_a_job_without_meeting_the_guard(ground: &Ground) {
    insert(ground).await;
    ground.run("UPDATE job_state SET state = 'done', claims = claims + 1 WHERE job_id = 1").await;
    assert_eq!(ground.line(STATE).await, "done|1|1|NULL");
}

async fn promotion_makes_due_jobs_pending(ground: &Ground) {
    insert(ground).await;
    ground.run(&format!("{CLAIM} 1")).await;
    let past = ground.at(-1);
    ground
        .run(&format!("UPDATE job_state SET state = 'scheduled', claimed_by = NULL, available_at = {past} WHERE job_id = 1"))
        .await;
    let before = ground.line("SELECT available_at FROM job_state").await;
    ground
        .run(&format!(
            "UPDATE job_state SET state = 'pending' WHERE state = 'scheduled' AND available_at <= {}",
            ground.at(0)
        ))
        .await;
    assert_eq!(ground.line(STATE).await, "pending|1|1|NULL");
    assert_eq!(ground.line("SELECT available_at FROM job_state").await, before);
}

async fn a_running_job_has_a_worker(ground: &Ground) {
    insert(ground).await;
    let sentence = ground.refused("UPDATE job_state SET state = 'running', claims = claims + 1").await;
    assert!(sentence.contains("running_has_a_worker"), "{sentence}");
}

async fn run_again_after_cancel_is_fenced_from_the_old_worker(ground: &Ground) {
    insert(ground).await;
    ground.run(&format!("{CLAIM} 1")).await;
    cancel(ground).await;
    ground.run("UPDATE job_state SET state = 'pending' WHERE job_id = 1").await;
    ground.run(&format!("{CLAIM} 1")).await;
    assert_eq!(ground.line(STATE).await, "running|2|4|7");
    let settled = "UPDATE job_state SET state = 'done', claimed_by = NULL WHERE job_id = 1 AND claims = 1 AND state = 'running'";
    assert_eq!(ground.run(settled).await, 0);
}

#[tokio::test]
async fn sqlite_triggers_hold_with_recursive_triggers_too() {
    let ground = Ground::sqlite().await;
    ground.run("INSERT INTO jobs (prompt) VALUES ('a'), ('b')").await;
    schedule(&ground).await;
    assert_eq!(ground.kind(), Kind::Sqlite);
    let all = "PRAGMA recursive_triggers = ON;";
    ground.run(&format!("{all} UPDATE job_state SET state = 'cancelled'")).await;
    assert_eq!(ground.line("SELECT count(*) FROM results").await, "3");
    ground.run(&format!("{all} UPDATE job_state SET state = 'pending'")).await;
    assert_eq!(
        ground
            .line("SELECT count(*) FROM job_state WHERE state = 'pending' AND run = 2 AND claims = 2")
            .await,
        "3"
    );
    ground.run(&format!("{all} UPDATE job_state SET available_at = {}", ground.at(60))).await;
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'scheduled'").await, "3");
    ground.run(&format!("{all} UPDATE job_state SET state = 'pending'")).await;
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'pending'").await, "3");
    ground.run(&format!("{all} INSERT INTO gates (scope, state) VALUES ('key:k', 'blocked'); UPDATE gates SET state = 'flowing'")).await;
    assert_eq!(ground.line("SELECT state, generation FROM gates").await, "flowing|1");
    let sentence =
        ground.refused(&format!("{all} INSERT OR REPLACE INTO jobs (id, prompt) VALUES (1, 'new')")).await;
    assert!(sentence.contains("ids are never used twice"), "{sentence}");
    ground.run(&format!("{all} UPDATE job_state SET state = 'cancelled'")).await;
    ground.run(&format!("{all} UPDATE jobs SET redacted_at = {}", ground.at(0))).await;
    assert_eq!(ground.line("SELECT count(redacted_at), count(prompt) FROM jobs").await, "3|0");
    ground.run(&format!("{all} DELETE FROM jobs")).await;
    assert_eq!(ground.line("SELECT count(*) FROM job_state").await, "0");
    ground.close().await;
}
