//! A deleted job takes all that belongs to it along, in whatever state it is.

use crate::support::{Ground, on_both};

on_both! {
    a_deleted_job_leaves_nothing,
    a_running_job_can_be_deleted,
    a_key_is_free_again_after_its_job,
    other_jobs_stay,
}

const PARTS: [&str; 5] = ["job_state", "results", "calls", "checkpoints", "tool_calls"];

async fn whole_jobs(ground: &Ground, keys: &[&str]) {
    for key in keys {
        ground.run(&format!("INSERT INTO jobs (prompt, key) VALUES ('a', '{key}')")).await;
    }
    ground.run("INSERT INTO calls (job_id, claim, seq, run, kind) SELECT id, 1, 1, 1, 'ask' FROM jobs").await;
    ground.run("INSERT INTO checkpoints (job_id, claim, seq, part, content) SELECT id, 1, 2, 1, 'half' FROM jobs").await;
    ground
        .run(
            "INSERT INTO tool_calls (job_id, claim, seq, position, run, call_id, name, worker)
             SELECT id, 1, 1, 0, 1, 'toolu', 'weather', 7 FROM jobs",
        )
        .await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
}

async fn a_deleted_job_leaves_nothing(ground: &Ground) {
    whole_jobs(ground, &["k1", "k2"]).await;
    assert_eq!(ground.run("DELETE FROM jobs").await, 2);
    for part in PARTS {
        assert_eq!(ground.line(&format!("SELECT count(*) FROM {part}")).await, "0", "{part}");
    }
}

async fn a_running_job_can_be_deleted(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    ground.run("UPDATE job_state SET state = 'running', claims = 1, claimed_by = 1").await;
    ground.run("DELETE FROM jobs WHERE id = 1").await;
    assert_eq!(ground.line("SELECT count(*) FROM job_state").await, "0");
}

async fn a_key_is_free_again_after_its_job(ground: &Ground) {
    whole_jobs(ground, &["k1"]).await;
    ground.run("DELETE FROM jobs WHERE key = 'k1'").await;
    ground.run("INSERT INTO jobs (prompt, key) VALUES ('b', 'k1')").await;
    assert_eq!(ground.line("SELECT id, state FROM jobs JOIN job_state ON job_id = id").await, "2|pending");
}

async fn other_jobs_stay(ground: &Ground) {
    whole_jobs(ground, &["k1", "k2", "k3"]).await;
    ground.run("DELETE FROM jobs WHERE key = 'k2'").await;
    for part in PARTS {
        assert_eq!(
            ground.lines(&format!("SELECT job_id FROM {part} ORDER BY job_id")).await,
            ["1", "3"],
            "{part}"
        );
    }
}

#[tokio::test]
async fn truncate_takes_everything_along() {
    let ground = Ground::postgres().await;
    whole_jobs(&ground, &["k1", "k2"]).await;
    ground.run("TRUNCATE jobs").await;
    for part in PARTS {
        assert_eq!(ground.line(&format!("SELECT count(*) FROM {part}")).await, "0", "{part}");
    }
    ground.run("INSERT INTO jobs (prompt) VALUES ('c')").await;
    assert_eq!(ground.line("SELECT id FROM jobs").await, "3");
    ground.close().await;
}

#[tokio::test]
async fn a_sequence_of_results_never_goes_back() {
    let ground = Ground::sqlite().await;
    whole_jobs(&ground, &["k1", "k2"]).await;
    ground.run("DELETE FROM jobs").await;
    whole_jobs(&ground, &["k3"]).await;
    assert_eq!(ground.line("SELECT seq FROM results").await, "3");
    ground.close().await;
}
