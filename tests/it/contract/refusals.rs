//! What is refused, and the sentence that says so.

use crate::support::{Ground, Kind, on_both};

on_both! {
    a_wrong_job_is_refused_by_a_named_constraint,
    nothing_else_is_refused,
    a_refused_row_refuses_its_whole_statement,
    jobs_are_not_changed,
    metadata_may_be_updated,
    the_state_does_not_come_or_go_without_its_job,
    a_done_job_keeps_its_result,
    the_state_cannot_leave_its_lane,
    queues_and_gates_have_named_constraints,
    there_is_one_row_in_meta,
}

async fn a_wrong_job_is_refused_by_a_named_constraint(ground: &Ground) {
    let long = "x".repeat(201);
    let refused = [
        ("queue", "'q'", "job_has_one_prompt"),
        ("params", r#"'{"model": "m"}'"#, "job_has_one_prompt"),
        ("prompt, params", r#"'a', '{"messages": []}'"#, "job_has_one_prompt"),
        ("prompt, params", r#"'a', '{"messages": null}'"#, "job_has_one_prompt"),
        ("params", r"'[1]'", "params_is_a_json_object"),
        ("prompt, params", "'a', '5'", "params_is_a_json_object"),
        ("prompt, policy", "'a', '[]'", "policy_is_a_json_object"),
        ("prompt, policy", "'a', 'null'", "policy_is_a_json_object"),
        ("prompt, system, params", r#"'a', 's', '{"system": "t"}'"#, "said_once"),
        ("prompt, model, params", r#"'a', 'm', '{"model": "n", "top_k": 1}'"#, "said_once"),
        ("prompt, max_tokens, params", r#"'a', 5, '{"max_tokens": 5}'"#, "said_once"),
        ("prompt, max_tokens", "'a', 0", "max_tokens_is_positive"),
        ("prompt, max_tokens", "'a', -7", "max_tokens_is_positive"),
        ("prompt, batch", &format!("'a', '{long}'"), "names_are_short"),
        ("prompt, queue", &format!("'a', '{long}'"), "names_are_short"),
        ("prompt, model", &format!("'a', '{long}'"), "names_are_short"),
    ];
    for (columns, values, constraint) in refused {
        let sentence = ground.refused(&format!("INSERT INTO jobs ({columns}) VALUES ({values})")).await;
        assert!(sentence.contains(constraint), "{columns} = {values}: {sentence}");
    }
    assert_eq!(ground.line("SELECT count(*) FROM jobs").await, "0");
}

async fn nothing_else_is_refused(ground: &Ground) {
    for (columns, values) in [
        ("prompt", "''"),
        ("prompt, params", r#"'a', '{"temperature": "hot", "betas": ["x"], "stream": true}'"#),
        ("prompt, policy", r#"'a', '{"no_such_field": 1}'"#),
        ("params", r#"'{"messages": "not an array"}'"#),
        ("prompt, system, model, params", r#"'a', 's', 'm', '{"max_tokens": 5}'"#),
        ("prompt, metadata", r#"'a', '"a string"'"#),
        ("prompt, batch, model", "'a', '', ''"),
        ("prompt, priority", "'a', -2147483648"),
        ("prompt, max_tokens", "'a', 9000000000000"),
    ] {
        ground.run(&format!("INSERT INTO jobs ({columns}) VALUES ({values})")).await;
    }
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'pending'").await, "9");
}

async fn a_refused_row_refuses_its_whole_statement(ground: &Ground) {
    ground.refused("INSERT INTO jobs (prompt, max_tokens) VALUES ('a', 1), ('b', 0), ('c', 1)").await;
    assert_eq!(ground.line("SELECT count(*) FROM jobs").await, "0");
    assert_eq!(ground.line("SELECT count(*) FROM job_state").await, "0");
}

async fn jobs_are_not_changed(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    for change in [
        "prompt = 'b'",
        "queue = 'x'",
        "priority = 5",
        "key = 'k'",
        "params = NULL",
        "id = 7",
        "system = 's'",
    ] {
        if change.starts_with("id") && ground.kind() == Kind::Postgres {
            continue; // Refused by the identity column itself.
        }
        let sentence = ground.refused(&format!("UPDATE jobs SET {change}")).await;
        assert!(sentence.contains("jobs are not changed: cancel this one and insert another"), "{sentence}");
    }
}

async fn metadata_may_be_updated(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    assert_eq!(ground.run(r#"UPDATE jobs SET metadata = '{"seen": true}'"#).await, 1);
    let sentence = ground.refused("UPDATE jobs SET metadata = '{nonsense'").await;
    assert!(
        sentence.contains(ground.either("metadata_is_json", "invalid input syntax for type json")),
        "{sentence}"
    );
}

async fn the_state_does_not_come_or_go_without_its_job(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    let sentence = ground.refused("DELETE FROM job_state").await;
    assert!(sentence.contains("DELETE FROM jobs instead"), "{sentence}");
    let insert = format!(
        "INSERT INTO job_state (job_id, queue, batch, model, priority, state, available_at) VALUES (9, 'q', '', '', 0, 'pending', {})",
        ground.at(0)
    );
    let sentence = ground.refused(&insert).await;
    assert!(sentence.contains("INSERT INTO jobs instead"), "{sentence}");
}

async fn a_done_job_keeps_its_result(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    let sentence = ground.refused("DELETE FROM results").await;
    assert!(sentence.contains("DELETE FROM jobs to remove both"), "{sentence}");
}

async fn the_state_cannot_leave_its_lane(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    for change in ["queue = 'x'", "batch = 'x'", "model = 'x'", "job_id = 9", "bytes = 0"] {
        let sentence = ground.refused(&format!("UPDATE job_state SET {change}")).await;
        assert!(sentence.contains("only state, priority and available_at may be updated"), "{sentence}");
    }
}

async fn queues_and_gates_have_named_constraints(ground: &Ground) {
    for (insert, constraint) in [
        ("queues (name, max_running) VALUES ('q', -1)", "max_running_is_not_negative"),
        ("queues (name, policy) VALUES ('q', '[]')", "queue_policy_is_a_json_object"),
        ("gates (scope, state) VALUES ('key:k', 'open')", "gate_state_is_known"),
    ] {
        let sentence = ground.refused(&format!("INSERT INTO {insert}")).await;
        assert!(sentence.contains(constraint), "{sentence}");
    }
}

async fn there_is_one_row_in_meta(ground: &Ground) {
    assert_eq!(
        ground.line("SELECT length(database_id), schema_version, schema_min FROM meta").await,
        "36|1|1"
    );
    ground.refused("INSERT INTO meta (database_id, schema_version, schema_min) VALUES ('x', 1, 1)").await;
}

mod sqlite_only {
    use super::*;

    #[tokio::test]
    async fn or_ignore_does_not_skip_a_wrong_job_silently() {
        let ground = Ground::sqlite().await;
        let sentence = ground.refused("INSERT OR IGNORE INTO jobs (params) VALUES ('{\"top_k\": 1}')").await;
        assert!(sentence.contains("give prompt, or messages in params"), "{sentence}");
        ground.close().await;
    }

    #[tokio::test]
    async fn or_ignore_passes_over_a_key_that_is_there() {
        let ground = Ground::sqlite().await;
        let insert = "INSERT OR IGNORE INTO jobs (prompt, key) VALUES ('a', 'k')";
        assert_eq!(ground.run(insert).await, 1);
        assert_eq!(ground.run(insert).await, 0);
        assert_eq!(ground.line("SELECT count(*) FROM job_state").await, "1");
        ground.close().await;
    }

    #[tokio::test]
    async fn or_replace_is_refused_and_leaves_the_old_job_alone() {
        let ground = Ground::sqlite().await;
        ground.run("INSERT INTO jobs (prompt, key) VALUES ('old', 'k')").await;
        for insert in ["jobs (prompt, key) VALUES ('new', 'k')", "jobs (id, prompt) VALUES (1, 'new')"] {
            let sentence = ground.refused(&format!("INSERT OR REPLACE INTO {insert}")).await;
            assert!(sentence.contains("use ON CONFLICT (key) DO NOTHING"), "{sentence}");
            let sentence = ground.refused(&format!("REPLACE INTO {insert}")).await;
            assert!(sentence.contains("use ON CONFLICT (key) DO NOTHING"), "{sentence}");
        }
        assert_eq!(
            ground.line("SELECT j.prompt, s.state FROM jobs j JOIN job_state s ON s.job_id = j.id").await,
            "old|pending"
        );
        ground.close().await;
    }

    #[tokio::test]
    async fn every_other_or_enqueues_as_usual() {
        let ground = Ground::sqlite().await;
        for or in ["ABORT", "FAIL", "ROLLBACK", "IGNORE", "REPLACE"] {
            for key in ["a", "b"] {
                ground
                    .run(&format!("INSERT OR {or} INTO jobs (prompt, key) VALUES ('p', '{or}-{key}')"))
                    .await;
            }
        }
        assert_eq!(ground.line("SELECT count(*) FROM job_state").await, "10");
        assert_eq!(ground.line("SELECT count(*) FROM queues").await, "1");
        ground.close().await;
    }

    #[tokio::test]
    async fn a_run_at_in_seconds_or_microseconds_is_refused() {
        let ground = Ground::sqlite().await;
        for run_at in ["1795000000", "1795000000000000", "0", "-1"] {
            let sentence =
                ground.refused(&format!("INSERT INTO jobs (prompt, run_at) VALUES ('a', {run_at})")).await;
            assert!(sentence.contains("run_at_is_milliseconds"), "{sentence}");
        }
        ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
        let sentence = ground.refused("UPDATE job_state SET available_at = 1795000000").await;
        assert!(sentence.contains("available_at_is_milliseconds"), "{sentence}");
        ground.close().await;
    }

    #[tokio::test]
    async fn a_created_at_that_is_not_milliseconds_is_refused() {
        let ground = Ground::sqlite().await;
        for created_at in ["1795000000", "9223372036854775807", "-9223372036854775807"] {
            let sentence = ground
                .refused(&format!("INSERT INTO jobs (prompt, created_at) VALUES ('a', {created_at})"))
                .await;
            assert!(sentence.contains("created_at_is_milliseconds"), "{sentence}");
        }
        ground.close().await;
    }

    #[tokio::test]
    async fn names_that_are_not_utf_8_are_refused_and_all_others_taken() {
        let ground = Ground::sqlite().await;
        for name in ["61ff62", "80", "c3", "c0af", "eda080", "e282", "c3a4c3", "f4908080", "f880808080"] {
            for column in ["queue", "batch", "model", "key"] {
                let sentence = ground
                    .refused(&format!(
                        "INSERT INTO jobs (prompt, {column}) VALUES ('a', CAST(x'{name}' AS TEXT))"
                    ))
                    .await;
                assert!(sentence.contains("names_are_text"), "{column} {name}: {sentence}");
            }
        }
        for name in
            ["", "über", "日本語", "😀 and\nmore", "\u{fffd}", "\u{7f}\u{80}\u{10fffd}", &"ж".repeat(200)]
        {
            ground
                .run(&format!(
                    "INSERT INTO jobs (prompt, queue, batch, model, key) VALUES ('a', '{name}', '{name}', '{name}', '{name}')"
                ))
                .await;
        }
        assert_eq!(ground.line("SELECT count(*) FROM job_state").await, "7");
        ground.close().await;
    }

    #[tokio::test]
    async fn a_max_running_beyond_32_bits_is_refused() {
        let ground = Ground::sqlite().await;
        let sentence =
            ground.refused("INSERT INTO queues (name, max_running) VALUES ('q', 2147483648)").await;
        assert!(sentence.contains("max_running_is_32_bits"), "{sentence}");
        ground.close().await;
    }

    #[tokio::test]
    async fn broken_json_and_big_priorities_are_refused_by_name() {
        let ground = Ground::sqlite().await;
        for (columns, values, constraint) in [
            ("prompt, params", "'a', '{nonsense'", "params_is_a_json_object"),
            ("prompt, policy", "'a', '{nonsense'", "policy_is_a_json_object"),
            ("prompt, metadata", "'a', '{nonsense'", "metadata_is_json"),
            ("prompt, priority", "'a', 2147483648", "priority_is_32_bits"),
        ] {
            let sentence = ground.refused(&format!("INSERT INTO jobs ({columns}) VALUES ({values})")).await;
            assert!(sentence.contains(constraint), "{sentence}");
        }
        ground.close().await;
    }

    #[tokio::test]
    async fn values_of_another_type_are_refused() {
        let ground = Ground::sqlite().await;
        for (columns, values) in [
            ("prompt", "x'00'"),
            ("prompt, max_tokens", "'a', 'many'"),
            ("prompt, run_at", "'a', '2030-01-01'"),
            ("prompt, priority", "'a', 1.5"),
        ] {
            ground.refused(&format!("INSERT INTO jobs ({columns}) VALUES ({values})")).await;
        }
        ground.close().await;
    }
}

mod postgres_only {
    use super::*;

    #[tokio::test]
    async fn a_time_without_an_end_is_refused() {
        let ground = Ground::postgres().await;
        let sentence = ground.refused("INSERT INTO jobs (prompt, run_at) VALUES ('a', 'infinity')").await;
        assert!(sentence.contains("run_at_is_finite"), "{sentence}");
        for created_at in ["infinity", "-infinity"] {
            let insert = format!("INSERT INTO jobs (prompt, created_at) VALUES ('a', '{created_at}')");
            let sentence = ground.refused(&insert).await;
            assert!(sentence.contains("created_at_is_finite"), "{sentence}");
        }
        ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
        let sentence = ground.refused("UPDATE job_state SET available_at = 'infinity'").await;
        assert!(sentence.contains("available_at_is_finite"), "{sentence}");
        ground.close().await;
    }

    #[tokio::test]
    async fn parts_of_a_job_are_not_truncated() {
        let ground = Ground::postgres().await;
        for table in ["job_state", "results"] {
            let sentence = ground.refused(&format!("TRUNCATE {table}")).await;
            assert!(sentence.contains("TRUNCATE jobs instead"), "{sentence}");
        }
        ground.close().await;
    }
}
