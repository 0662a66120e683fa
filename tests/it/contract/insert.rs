//! Every way to put a job in.

use crate::support::{Ground, on_both};

on_both! {
    a_prompt_alone_is_a_complete_job,
    many_rows_of_one_insert_are_many_jobs,
    insert_select_enqueues,
    a_key_that_is_there_is_passed_over,
    a_conversation_in_params_is_a_job,
    params_are_kept_byte_for_byte,
    odd_escapes_in_params_are_no_reason_to_refuse,
    a_later_run_at_is_scheduled,
    an_earlier_run_at_is_pending,
    the_model_of_the_state_is_the_columns_or_the_params,
    bytes_are_octets_of_the_input,
    a_deadline_counts_from_the_later_of_run_at_and_created_at,
    the_queues_deadline_holds_where_the_job_has_none,
    a_deadline_that_is_no_positive_number_is_passed_over,
    an_insert_adds_its_queue_once,
    an_upsert_may_change_metadata,
    ids_never_come_back,
}

async fn a_prompt_alone_is_a_complete_job(ground: &Ground) {
    assert_eq!(ground.run("INSERT INTO jobs (prompt) VALUES ('Say hello')").await, 1);
    assert_eq!(
        ground.line("SELECT queue, batch, key, model, max_tokens, priority, prompt FROM jobs").await,
        "default|NULL|NULL|NULL|NULL|0|Say hello"
    );
    assert_eq!(
        ground
            .line("SELECT job_id, run, claims, priority, failures, state, queue, batch, model, reason, claimed_by, bytes, crashes, deferrals, deadline_at FROM job_state")
            .await,
        "1|1|0|0|0|pending|default|||NULL|NULL|9|0|0|NULL"
    );
}

async fn many_rows_of_one_insert_are_many_jobs(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, priority) VALUES ('a', 1), ('b', 2), ('c', 3)").await;
    assert_eq!(
        ground.lines("SELECT job_id, priority FROM job_state ORDER BY job_id").await,
        ["1|1", "2|2", "3|3"]
    );
}

async fn insert_select_enqueues(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a'), ('b')").await;
    ground.run("INSERT INTO jobs (prompt, batch) SELECT prompt, 'again' FROM jobs").await;
    assert_eq!(
        ground.lines("SELECT batch, count(*) FROM job_state GROUP BY batch ORDER BY batch").await,
        ["|2", "again|2"]
    );
}

async fn a_key_that_is_there_is_passed_over(ground: &Ground) {
    let insert =
        "INSERT INTO jobs (prompt, key) VALUES ('a', 'k1'), ('b', 'k2') ON CONFLICT (key) DO NOTHING";
    assert_eq!(ground.run(insert).await, 2);
    assert_eq!(ground.run(insert).await, 0);
    assert_eq!(
        ground
            .run(
                "INSERT INTO jobs (prompt, key) VALUES ('a', 'k2'), ('c', 'k3') ON CONFLICT (key) DO NOTHING"
            )
            .await,
        1
    );
    assert_eq!(
        ground.lines("SELECT j.key, j.prompt, s.state FROM jobs j JOIN job_state s ON s.job_id = j.id ORDER BY j.key").await,
        ["k1|a|pending", "k2|b|pending", "k3|c|pending"]
    );
    assert_eq!(ground.line("SELECT count(*) FROM job_state").await, "3");
}

async fn a_conversation_in_params_is_a_job(ground: &Ground) {
    ground
        .run(r#"INSERT INTO jobs (params) VALUES ('{"messages": [{"role": "user", "content": "hi"}]}')"#)
        .await;
    assert_eq!(ground.line("SELECT state, model FROM job_state").await, "pending|");
}

async fn params_are_kept_byte_for_byte(ground: &Ground) {
    let params = r#"{ "z": 1.10, "a": [ 1e3 ],  "z": "\u00e9", "messages":[]}"#;
    ground.run(&format!("INSERT INTO jobs (params) VALUES ('{params}')")).await;
    assert_eq!(ground.line("SELECT params FROM jobs").await, params);
}

async fn odd_escapes_in_params_are_no_reason_to_refuse(ground: &Ground) {
    let odd = r#"{"messages": ["\u0000 \ud83d \\u0000 \\\u0000 \ud83d\ude00"], "model": "m\u0061"}"#;
    ground.run(&format!("INSERT INTO jobs (params) VALUES ('{odd}')")).await;
    assert_eq!(
        ground.line("SELECT j.params, s.model FROM jobs j JOIN job_state s ON s.job_id = j.id").await,
        format!("{odd}|ma")
    );
    let policy = r#"{"note": "\u0000", "deadline_seconds": 60}"#;
    ground.run(&format!("INSERT INTO jobs (prompt, policy) VALUES ('a', '{policy}')")).await;
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE deadline_at IS NOT NULL").await, "1");
}

async fn a_later_run_at_is_scheduled(ground: &Ground) {
    ground.run(&format!("INSERT INTO jobs (prompt, run_at) VALUES ('a', {})", ground.at(60))).await;
    assert_eq!(
        ground
            .line(
                "SELECT s.state FROM job_state s JOIN jobs j ON j.id = s.job_id AND j.run_at = s.available_at"
            )
            .await,
        "scheduled"
    );
}

async fn an_earlier_run_at_is_pending(ground: &Ground) {
    ground.run(&format!("INSERT INTO jobs (prompt, run_at) VALUES ('a', {})", ground.at(-60))).await;
    assert_eq!(ground.line("SELECT state FROM job_state").await, "pending");
}

async fn the_model_of_the_state_is_the_columns_or_the_params(ground: &Ground) {
    let long = "m".repeat(300);
    for (columns, values, model) in [
        ("prompt", "'a'".to_owned(), ""),
        ("prompt, model", "'a', 'm1'".to_owned(), "m1"),
        ("prompt, params", r#"'a', '{"model": "m2"}'"#.to_owned(), "m2"),
        ("prompt, params", r#"'a', '{"model": 5}'"#.to_owned(), ""),
        ("prompt, params", r#"'a', '{"model": null}'"#.to_owned(), ""),
        ("prompt, params", format!(r#"'a', '{{"model": "{long}"}}'"#), &long[..200]),
    ] {
        ground.run(&format!("INSERT INTO jobs ({columns}) VALUES ({values})")).await;
        assert_eq!(
            ground.line("SELECT model FROM job_state ORDER BY job_id DESC LIMIT 1").await,
            model,
            "{columns}: {values}"
        );
    }
}

async fn bytes_are_octets_of_the_input(ground: &Ground) {
    ground.run(r#"INSERT INTO jobs (prompt, system, params) VALUES ('é', 'abc', '{"top_k": 1}')"#).await;
    assert_eq!(ground.line("SELECT bytes FROM job_state").await, "17");
}

/// Seconds from `from` to the deadline of the newest job, rounded.
async fn deadline(ground: &Ground, from: &str) -> String {
    let sql = match ground.kind() {
        crate::support::Kind::Sqlite => format!("CAST(ROUND((s.deadline_at - {from}) / 1000.0) AS INTEGER)"),
        crate::support::Kind::Postgres => {
            format!("round(extract(epoch FROM s.deadline_at - {from}))::bigint")
        }
    };
    ground
        .line(&format!(
            "SELECT {sql} FROM job_state s JOIN jobs j ON j.id = s.job_id ORDER BY s.job_id DESC LIMIT 1"
        ))
        .await
}

async fn a_deadline_counts_from_the_later_of_run_at_and_created_at(ground: &Ground) {
    let policy = r#"'{"deadline_seconds": 90}'"#;
    ground
        .run(&format!(
            "INSERT INTO jobs (prompt, policy, run_at) VALUES ('a', {policy}, {})",
            ground.at(-500)
        ))
        .await;
    assert_eq!(deadline(ground, "j.created_at").await, "90");
    ground
        .run(&format!("INSERT INTO jobs (prompt, policy, run_at) VALUES ('a', {policy}, {})", ground.at(500)))
        .await;
    assert_eq!(deadline(ground, "j.run_at").await, "90");
}

async fn the_queues_deadline_holds_where_the_job_has_none(ground: &Ground) {
    ground.run(r#"INSERT INTO queues (name, policy) VALUES ('q', '{"deadline_seconds": 30}')"#).await;
    ground.run("INSERT INTO jobs (prompt, queue) VALUES ('a', 'q')").await;
    assert_eq!(deadline(ground, "j.created_at").await, "30");
    ground
        .run(r#"INSERT INTO jobs (prompt, queue, policy) VALUES ('a', 'q', '{"deadline_seconds": 2.5e1}')"#)
        .await;
    assert_eq!(deadline(ground, "j.created_at").await, "25");
}

async fn a_deadline_that_is_no_positive_number_is_passed_over(ground: &Ground) {
    for wrong in [
        "0",
        "-1",
        "\"60\"",
        "null",
        "true",
        "[60]",
        "1e300",
        "1e999999",
        "1e-999999",
        "99999999999999999999",
    ] {
        ground
            .run(&format!(
                "INSERT INTO jobs (prompt, policy) VALUES ('a', '{{\"deadline_seconds\": {wrong}}}')"
            ))
            .await;
        assert_eq!(deadline(ground, "j.created_at").await, "NULL", "{wrong}");
    }
}

async fn an_insert_adds_its_queue_once(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, queue) VALUES ('a', 'x'), ('b', 'y'), ('c', 'x')").await;
    assert_eq!(
        ground
            .run(&format!("UPDATE queues SET paused = {} WHERE name = 'x'", ground.either("1", "TRUE")))
            .await,
        1
    );
    ground.run("INSERT INTO jobs (prompt, queue) VALUES ('a', 'x'), ('b', 'z')").await;
    let yes = ground.either("1", "t");
    let no = ground.either("0", "f");
    assert_eq!(
        ground.lines("SELECT name, paused FROM queues ORDER BY name").await,
        [format!("x|{yes}"), format!("y|{no}"), format!("z|{no}")]
    );
}

async fn an_upsert_may_change_metadata(ground: &Ground) {
    let upsert = |value: u8| {
        format!(
            "INSERT INTO jobs (prompt, key, metadata) VALUES ('a', 'k', '{{\"n\": {value}}}')
                 ON CONFLICT (key) DO UPDATE SET metadata = excluded.metadata"
        )
    };
    ground.run(&upsert(1)).await;
    ground.run(&upsert(2)).await;
    assert_eq!(ground.line("SELECT id, metadata FROM jobs").await, r#"1|{"n": 2}"#);
    assert_eq!(ground.line("SELECT count(*) FROM job_state").await, "1");
}

async fn ids_never_come_back(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a'), ('b')").await;
    ground.run("DELETE FROM jobs").await;
    ground.run("INSERT INTO jobs (prompt) VALUES ('c')").await;
    assert_eq!(ground.line("SELECT id FROM jobs").await, "3");
    let sentence =
        ground.refused("INSERT INTO jobs (id, prompt) VALUES (1, 'late answers would meet it')").await;
    assert!(
        sentence.contains(
            ground
                .either("leave id out of the INSERT", "cannot insert a non-DEFAULT value into column \"id\"")
        ),
        "{sentence}"
    );
    assert_eq!(ground.line("SELECT id FROM jobs").await, "3");
}
