//! What the daemon says: exit codes, one clear sentence, and never a secret.

use super::harness::Mill;
use crate::support::{Ground, Kind, on_both};

on_both! {
    no_log_line_holds_a_prompt_an_answer_or_a_key,
    each_finished_job_is_one_line_that_a_program_can_read,
    a_configuration_that_is_wrong_is_named,
    a_schema_that_is_not_ours_is_left_alone,
}

async fn no_log_line_holds_a_prompt_an_answer_or_a_key(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_LOG__LEVEL", "trace");
    mill.set("ANTHROPIC_API_KEY", "sk-ant-canary-key");
    mill.insert(&[
        "canary-prompt [[say canary-answer]]",
        "canary-prompt [[error 400]]",
        "canary-prompt [[error 500 x1]]",
    ])
    .await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    for secret in ["canary-prompt", "canary-answer", "canary-key"] {
        assert!(
            !ran.stderr.contains(secret) && !ran.stdout.contains(secret),
            "{secret} is in the log: {}",
            ran.stderr
        );
    }
    assert!(ran.stderr.contains("job 1 called"), "at debug there is a line a call: {}", ran.stderr);
    let tables = ["jobs", "job_state", "results", "calls", "queues", "gates", "rates", "workers", "meta"];
    for table in tables {
        for line in ground.lines(&format!("SELECT * FROM {table}")).await {
            assert!(!line.contains("canary-key"), "the key is in {table}: {line}");
        }
    }
}

async fn each_finished_job_is_one_line_that_a_program_can_read(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_LOG__FORMAT", "json");
    mill.insert(&["one", "two"]).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let ends: Vec<serde_json::Value> = ran
        .stderr
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(|line: &serde_json::Value| line.to_string().contains("outcome"))
        .collect();
    assert_eq!(ends.len(), 2, "{}", ran.stderr);
    let line = ends[0].to_string();
    for field in ["job.id", "stop.reason", "tokens.output", "call.request_id", "job.ms"] {
        assert!(line.contains(field), "{field} is missing in {line}");
    }
}

async fn a_configuration_that_is_wrong_is_named(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__CONCURENCY", "5");
    let ran = mill.drain().await;
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("PROMPTMILL_WORKER__CONCURRENCY"),
        "the closest key is named: {}",
        ran.stderr
    );
}

async fn a_schema_that_is_not_ours_is_left_alone(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    if ground.kind() == Kind::Sqlite {
        let file = mill.home().join("theirs.db");
        let made = std::process::Command::new("sqlite3").arg(&file).arg("CREATE TABLE theirs (x)").status();
        assert!(made.expect("sqlite3 is there").success());
        mill.set("DATABASE_URL", &format!("sqlite:{}", file.display()));
        let ran = mill.drain().await;
        assert_eq!(ran.code, 5, "{}", ran.stderr);
        assert!(
            ran.stderr.contains("holds other tables; give promptmill a file of its own"),
            "{}",
            ran.stderr
        );
    } else {
        ground.run("UPDATE meta SET schema_min = 999, schema_version = 999").await;
        let ran = mill.drain().await;
        assert_eq!(ran.code, 5, "{}", ran.stderr);
    }
}
