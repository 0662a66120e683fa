//! What the API says of its models: how much they answer, which are gone, which will be; and a server
//! that says nothing.

use promptmill::stand_in::Options;

use super::harness::{Daemon, Mill};
use crate::support::{Ground, on_both};

on_both! {
    a_job_that_names_a_retired_model_ends_before_any_call,
    a_queues_retired_model_blocks_its_gate_and_fails_no_job,
    max_tokens_are_what_the_api_says_unless_a_person_said_otherwise,
    a_model_near_its_end_is_warned_about_once_and_by_doctor,
    a_server_that_lists_no_models_runs_by_the_configuration,
    models_named_anywhere_are_known_to_doctor,
}

/// Starts a daemon that has read the list of models.
async fn start(mill: &mut Mill<'_>) -> Daemon {
    mill.set("PROMPTMILL_LOG__LEVEL", "debug");
    let daemon = mill.start();
    mill.until_said(&daemon, "the API lists ").await;
    daemon
}

async fn a_job_that_names_a_retired_model_ends_before_any_call(ground: &Ground) {
    // A page at a time: the retired ones are on the last.
    let options = Options { models_a_page: 3, ..Options::default() };
    let mut mill = Mill::with(ground, options).await;
    let daemon = start(&mut mill).await;
    assert!(daemon.said().contains("the API lists 20 models"), "{}", daemon.said());
    let message = r#"{"model": "stand-in-gone", "messages": [{"role": "user", "content": "x"}]}"#;
    ground.run("INSERT INTO jobs (prompt, model) VALUES ('x', 'stand-in-gone')").await;
    ground.run(&format!("INSERT INTO jobs (params) VALUES ('{message}')")).await;
    ground.run("INSERT INTO jobs (prompt, model) VALUES ('x', 'stand-in-leaving')").await;
    mill.until("SELECT count(*) FROM results", "3").await;
    let refused = "invalid|invalid_job|model_retired|model stand-in-gone was retired on 2026-07-01: insert the job \
                   again with another model";
    let ends = "SELECT outcome || '|' || error_type || '|' || error_code || '|' || error FROM results
                 WHERE job_id < 3 ORDER BY job_id";
    assert_eq!(ground.lines(ends).await, [refused, refused]);
    assert_eq!(ground.line("SELECT outcome FROM results WHERE job_id = 3").await, "complete");
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(mill.api.counts().total, 1);
    assert_eq!(mill.api.counts().by_path["/v1/models"], 7, "the list is the check of the key as well");
    mill.holds().await;
}

async fn a_queues_retired_model_blocks_its_gate_and_fails_no_job(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    let daemon = start(&mut mill).await;
    ground.run("INSERT INTO queues (name, model) VALUES ('old', 'stand-in-gone')").await;
    ground.run("INSERT INTO jobs (prompt, queue) VALUES ('x', 'old')").await;
    mill.until("SELECT state FROM gates WHERE scope = 'model:default/stand-in-gone'", "blocked").await;
    let reason = ground.line("SELECT reason FROM gates WHERE scope = 'model:default/stand-in-gone'").await;
    let expected =
        "model stand-in-gone was retired on 2026-07-01: set defaults.model, or the queue's, to another one";
    assert_eq!(reason, expected);
    mill.until("SELECT state FROM job_state", "pending").await;
    assert_eq!(ground.line("SELECT failures FROM job_state").await, "0");
    assert_eq!(mill.api.counts().total, 0);
    // What opens the gate asks nobody either, and blocks it again.
    ground.run("UPDATE gates SET state = 'flowing' WHERE scope = 'model:default/stand-in-gone'").await;
    mill.until("SELECT state FROM gates WHERE scope = 'model:default/stand-in-gone'", "blocked").await;
    ground.run("UPDATE queues SET model = 'claude-opus-5-5' WHERE name = 'old'").await;
    mill.until("SELECT outcome FROM results", "complete").await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(mill.api.counts().total, 1);
    mill.holds().await;
}

async fn max_tokens_are_what_the_api_says_unless_a_person_said_otherwise(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    // Of Haiku 4.5 the configuration says less than the API; of the others nothing.
    mill.set("PROMPTMILL_MODELS__CLAUDE_HAIKU_4_5__MAX_TOKENS", "500");
    let daemon = start(&mut mill).await;
    for (model, asked) in [
        ("stand-in-small", "NULL"),
        ("stand-in-small", "5000"),
        ("stand-in-small", "7"),
        ("claude-haiku-4-5-20251001", "NULL"),
        ("claude-haiku-4-5", "600"),
        ("claude-opus-5-5", "NULL"),
    ] {
        let row = format!("INSERT INTO jobs (prompt, model, max_tokens) VALUES ('x', '{model}', {asked})");
        ground.run(&row).await;
    }
    mill.until("SELECT count(*) FROM results", "6").await;
    assert_eq!(daemon.stop().await.code, 0);
    let sent = ground.lines("SELECT max_tokens FROM calls WHERE kind = 'ask' ORDER BY job_id").await;
    assert_eq!(sent, ["1024", "1024", "7", "500", "500", "128000"]);
}

async fn a_model_near_its_end_is_warned_about_once_and_by_doctor(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_DEFAULTS__MODEL", "stand-in-leaving");
    let daemon = start(&mut mill).await;
    let told = "model stand-in-leaving is deprecated and will be retired on ";
    mill.until_said(&daemon, told).await;
    mill.insert(&["a", "b", "c"]).await;
    mill.until("SELECT count(*) FROM results", "3").await;
    let ran = daemon.stop().await;
    assert_eq!(ran.stderr.matches(told).count(), 1, "{}", ran.stderr);
    let doctor = mill.run(&["doctor"]).await.stdout;
    let line = doctor.lines().find(|line| line.contains(told)).unwrap_or_default().to_owned();
    assert!(line.starts_with("warn  models") && line.contains("in 30 days"), "{doctor}");
    assert!(line.ends_with("set defaults.model to another one"), "{line}");
}

async fn models_named_anywhere_are_known_to_doctor(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    let fine = mill.run(&["doctor"]).await;
    let said = "ok    models         the API lists 20 models, and claude-sonnet-5-5 among them";
    assert!(fine.stdout.contains(said), "{}", fine.stdout);
    ground.run("INSERT INTO queues (name, model) VALUES ('old', 'claude-sonnet-4-5')").await;
    ground.run("INSERT INTO jobs (prompt, model) VALUES ('x', 'stand-in-gone')").await;
    let told = mill.run(&["doctor"]).await.stdout;
    let said: Vec<&str> = told.lines().filter(|line| line.starts_with("warn  models")).collect();
    assert_eq!(said.len(), 2, "{told}");
    assert!(
        said[0].contains("model claude-sonnet-4-5: model claude-sonnet-4-5-20250929 is deprecated"),
        "{told}"
    );
    assert!(
        said[1].contains("model stand-in-gone was retired on 2026-07-01, and queues or young jobs"),
        "{told}"
    );
    mill.set("PROMPTMILL_DEFAULTS__MODEL", "stand-in-gone");
    let broken = mill.run(&["doctor"]).await;
    assert!(
        broken.stdout.contains("fail  models         model stand-in-gone was retired"),
        "{}",
        broken.stdout
    );
    assert_eq!(broken.code, 1);
}

async fn a_server_that_lists_no_models_runs_by_the_configuration(ground: &Ground) {
    let options = Options { models: false, ..Options::default() };
    let mut mill = Mill::with(ground, options).await;
    mill.set("PROMPTMILL_LOG__LEVEL", "debug");
    let daemon = mill.start();
    mill.until_said(&daemon, "the API lists no models (not_found_error (404))").await;
    mill.insert(&["a"]).await;
    mill.until("SELECT max_tokens FROM calls", "128000").await;
    mill.until("SELECT outcome FROM results", "complete").await;
    let ran = daemon.stop().await;
    assert!(!ran.stderr.contains(" WARN "), "{}", ran.stderr);
    let doctor = mill.run(&["doctor"]).await;
    assert!(!doctor.stdout.contains("  models  "), "{}", doctor.stdout);
}
