//! The views that people read, and the gates and queues that they turn.

use crate::support::{Ground, Kind, on_both};

on_both! {
    an_overview_shows_a_job_before_and_after,
    an_overview_resolves_the_model,
    an_overview_says_why_a_job_waits,
    an_overview_knows_whose_gate_is_whose,
    only_a_job_that_could_run_waits_for_a_gate,
    a_batch_is_counted_by_state_and_outcome,
    a_batch_is_finished_when_all_of_it_is,
    a_gate_that_a_person_changes_moves_its_generation,
    a_gate_set_flowing_forgets_why,
    a_gate_that_a_daemon_changes_is_left_as_written,
}

async fn an_overview_shows_a_job_before_and_after(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch, key, priority) VALUES ('a', 'b', 'k', 3)").await;
    let sql = "SELECT id, queue, batch, key, state, outcome, stop_reason, priority, run, claims, failures, reason, error FROM job_overview";
    assert_eq!(ground.line(sql).await, "1|default|b|k|pending|NULL|NULL|3|1|0|0|NULL|NULL");
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    assert_eq!(
        ground.line(sql).await,
        "1|default|b|k|done|cancelled|NULL|3|1|1|0|NULL|cancelled while pending"
    );
    assert_eq!(
        ground
            .line("SELECT input_tokens, output_tokens FROM job_overview WHERE finished_at IS NOT NULL")
            .await,
        "0|0"
    );
}

async fn add_worker(ground: &Ground, model: &str) {
    ground
        .run(&format!("INSERT INTO workers (host, boot, pid, pid_started, version, default_model) VALUES ('h', 'b', 1, 1, '0', '{model}')"))
        .await;
}

async fn an_overview_resolves_the_model(ground: &Ground) {
    ground.run("INSERT INTO queues (name, model) VALUES ('q', 'of-the-queue')").await;
    ground.run("INSERT INTO jobs (prompt, queue, model) VALUES ('a', 'q', 'own'), ('a', 'q', NULL), ('a', 'default', NULL)").await;
    let sql = "SELECT model FROM job_overview ORDER BY id";
    assert_eq!(ground.lines(sql).await, ["own", "of-the-queue", "NULL"]);
    add_worker(ground, "older").await;
    add_worker(ground, "newer").await;
    assert_eq!(ground.lines(sql).await, ["own", "of-the-queue", "newer"]);
}

async fn an_overview_says_why_a_job_waits(ground: &Ground) {
    add_worker(ground, "m_1").await;
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'b')").await;
    let why = async || ground.line("SELECT reason FROM job_overview WHERE id = 1").await;

    assert_eq!(why().await, "NULL");
    ground.run(&format!("UPDATE queues SET paused = {}", ground.either("1", "TRUE"))).await;
    assert_eq!(why().await, "queue paused");
    ground
        .run(
            "INSERT INTO gates (scope, state, reason) VALUES
                 ('batch:default/b', 'blocked', 'the same 400 again and again'),
                 ('batch:default/c', 'blocked', 'another batch'),
                 ('batch:other/b', 'blocked', 'another queue')",
        )
        .await;
    assert_eq!(why().await, "the same 400 again and again");
    ground
        .run("INSERT INTO gates (scope, state, reason) VALUES ('model:p/mx1', 'blocked', 'another model'), ('model:p/m_1', 'probing', 'overloaded')")
        .await;
    assert_eq!(why().await, "overloaded");
    ground.run("INSERT INTO gates (scope, state) VALUES ('key:f', 'blocked')").await;
    assert_eq!(why().await, "key:f is blocked");
    ground.run("UPDATE job_state SET reason = 'its own' WHERE job_id = 1").await;
    assert_eq!(why().await, "its own");
    ground.run("UPDATE job_state SET reason = NULL WHERE job_id = 1").await;
    ground.run("UPDATE gates SET state = 'flowing'").await;
    assert_eq!(why().await, "queue paused");
}

async fn an_overview_knows_whose_gate_is_whose(ground: &Ground) {
    add_worker(ground, "m").await;
    ground
        .run(
            r#"INSERT INTO accounts (queue, profile, key, classes)
               VALUES ('', 'default', 'k1', '{"m":"class"}'), ('q', 'p', 'k2', NULL)"#,
        )
        .await;
    ground.run("INSERT INTO jobs (prompt, queue) VALUES ('a', 'default'), ('a', 'q')").await;
    let why = async |scope: &str| {
        ground.run("DELETE FROM gates").await;
        ground
            .run(&format!("INSERT INTO gates (scope, state, reason) VALUES ('{scope}', 'blocked', 'x')"))
            .await;
        ground.lines("SELECT reason FROM job_overview ORDER BY id").await.join(" ")
    };
    for (scope, reasons) in [
        ("key:k1", "x NULL"),
        ("key:k2", "NULL x"),
        ("key:of-yesterday", "NULL NULL"),
        ("model:default/m", "x NULL"),
        ("model:p/m", "NULL x"),
        ("model:other/m", "NULL NULL"),
        ("rate:k1/class", "x NULL"),
        ("rate:k2/class", "NULL x"),
        ("rate:k2/another", "NULL NULL"),
    ] {
        assert_eq!(why(scope).await, reasons, "{scope}");
    }
    // A model that no daemon named is a class of its own.
    ground.run("INSERT INTO jobs (prompt, model) VALUES ('a', 'odd')").await;
    assert_eq!(why("rate:k1/odd").await, "NULL NULL x");
}

async fn only_a_job_that_could_run_waits_for_a_gate(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a'), ('b')").await;
    ground.run("UPDATE job_state SET state = 'cancelled' WHERE job_id = 1").await;
    ground.run("UPDATE job_state SET state = 'running', claims = 1, claimed_by = 1 WHERE job_id = 2").await;
    ground.run("INSERT INTO gates (scope, state, reason) VALUES ('key:f', 'blocked', 'no credit')").await;
    assert_eq!(ground.lines("SELECT reason FROM job_overview").await, ["NULL", "NULL"]);
}

async fn a_batch_is_counted_by_state_and_outcome(ground: &Ground) {
    ground
        .run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'b'), ('a', 'b'), ('a', 'b'), ('a', 'b'), ('a', 'b'), ('a', NULL), ('a', 'c')")
        .await;
    ground
        .run("UPDATE job_state SET state = 'running', claims = 1, claimed_by = 1 WHERE job_id IN (1, 2, 3)")
        .await;
    ground.run(&format!("UPDATE job_state SET available_at = {} WHERE job_id = 4", ground.at(60))).await;
    ground
        .run(
            "INSERT INTO results (job_id, run, queue, batch, outcome, input_tokens, output_tokens,
                                  cache_creation_input_tokens, cache_read_input_tokens)
             VALUES (1, 1, 'default', 'b', 'complete', 1, 10, 100, 1000), (2, 1, 'default', 'b', 'truncated', 2, 20, 200, 2000)",
        )
        .await;
    ground.run("UPDATE job_state SET state = 'done', claimed_by = NULL WHERE job_id IN (1, 2)").await;
    assert_eq!(
        ground
            .lines(
                "SELECT batch, total, pending, scheduled, running, waiting, done, complete, truncated, failed,
                        input_tokens, output_tokens, cache_creation_input_tokens, cache_read_input_tokens
                   FROM batch_progress ORDER BY batch"
            )
            .await,
        ["b|5|1|1|1|0|2|1|1|0|3|30|300|3000", "c|1|1|0|0|0|0|0|0|0|0|0|0|0"]
    );
}

async fn a_batch_is_finished_when_all_of_it_is(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'b'), ('a', 'b')").await;
    let finished = "SELECT count(finished_at) FROM batch_progress WHERE batch = 'b'";
    ground.run("UPDATE job_state SET state = 'cancelled' WHERE job_id = 1").await;
    assert_eq!(ground.line(finished).await, "0");
    ground.run("UPDATE job_state SET state = 'cancelled' WHERE job_id = 2").await;
    assert_eq!(ground.line(finished).await, "1");
    assert_eq!(
        ground.line("SELECT count(*) FROM batch_progress WHERE finished_at = (SELECT max(finished_at) FROM results)").await,
        "1"
    );
}

const GATE: &str = "SELECT state, reason, until, counters, generation FROM gates";

async fn block(ground: &Ground) {
    ground
        .run(&format!(
            "INSERT INTO gates (scope, state, reason, until, counters) VALUES ('key:f', 'blocked', 'why', {}, '{{}}')",
            ground.at(60)
        ))
        .await;
}

async fn a_gate_that_a_person_changes_moves_its_generation(ground: &Ground) {
    block(ground).await;
    ground.run(&format!("UPDATE gates SET changed_at = {}", ground.at(-60))).await;
    ground.run("UPDATE gates SET reason = 'by hand'").await;
    assert_eq!(
        ground.line("SELECT state, reason, counters, generation FROM gates").await,
        "blocked|by hand|{}|2"
    );
    let recent = format!("SELECT count(*) FROM gates WHERE changed_at > {}", ground.at(-30));
    assert_eq!(ground.line(&recent).await, "1");
}

async fn a_gate_set_flowing_forgets_why(ground: &Ground) {
    block(ground).await;
    ground.run("UPDATE gates SET state = 'flowing'").await;
    assert_eq!(ground.line(GATE).await, "flowing|NULL|NULL|NULL|1");
}

async fn a_gate_that_a_daemon_changes_is_left_as_written(ground: &Ground) {
    block(ground).await;
    ground
        .run(
            "UPDATE gates SET state = 'flowing', until = NULL, counters = '[1]', generation = generation + 1",
        )
        .await;
    assert_eq!(ground.line(GATE).await, "flowing|why|NULL|[1]|1");
}

#[tokio::test]
async fn sqlite_views_show_times_that_people_can_read() {
    let ground = Ground::sqlite().await;
    assert_eq!(ground.kind(), Kind::Sqlite);
    ground.run("INSERT INTO jobs (prompt, batch, run_at, created_at) VALUES ('a', 'b', 1900000000123, 1800000000000)").await;
    assert_eq!(
        ground.line("SELECT available_at_text, created_at_text, deadline_at_text, started_at_text FROM job_overview").await,
        "2030-03-17T17:46:40.123Z|2027-01-15T08:00:00.000Z|NULL|NULL"
    );
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    assert_eq!(ground.line("SELECT length(finished_at_text) FROM job_overview").await, "24");
    assert_eq!(ground.line("SELECT length(finished_at_text) FROM batch_progress").await, "24");
    ground.close().await;
}
