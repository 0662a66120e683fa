//! Errors of the API: what each does to the job, to its gate, and to the others.

use std::sync::atomic::{AtomicU32, Ordering};

use super::harness::Mill;
use crate::claude::server::{Server, answer, reply};
use crate::support::{Ground, on_both};

on_both! {
    what_passes_is_waited_for_and_what_cannot_succeed_is_not_repeated,
    limits_and_overload_cost_no_failure,
    overloads_between_answers_are_no_row,
    an_answer_larger_than_we_take_is_paid_for_once_and_says_which_limit,
    a_key_that_nobody_could_check_fails_no_job,
    failures_run_out_at_max_failures,
    an_exhausted_credit_stops_everything_and_one_update_lets_it_go_on,
    a_refused_key_ends_the_run_and_touches_no_job,
    an_overload_blocks_the_model_and_shows_in_gates,
    a_long_rate_limit_shows_in_gates_and_goes_with_its_end,
    a_typing_error_in_a_labelled_batch_does_not_become_a_call_a_row,
    a_model_that_is_not_there_fails_the_jobs_that_name_it_with_one_call,
    a_blocked_gate_of_a_person_is_left_alone,
    an_answer_that_the_database_refuses_fails_alone_and_the_others_settle,
    what_the_database_refuses_altogether_waits_until_it_does_not,
    a_rotated_key_costs_no_job_and_blocks_nothing,
}

async fn what_passes_is_waited_for_and_what_cannot_succeed_is_not_repeated(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let passing = ["500", "502 html", "503", "504", "529", "408", "409", "429", "429 retry-after-ms=20"];
    for error in passing {
        mill.insert(&[&format!("{error} [[error {error} x1]]")]).await;
    }
    let lasting = ["400", "404", "413 html", "422", "501", "418"];
    for error in lasting {
        mill.insert(&[&format!("{error} [[error {error}]]")]).await;
    }
    mill.insert(&[
        "event [[error-event overloaded_error after=20 x1]]",
        "event [[error-event api_error after=3 x1]]",
    ])
    .await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    let rows = ground
        .rows(
            "SELECT j.prompt, r.outcome, r.calls FROM results r JOIN jobs j ON j.id = r.job_id ORDER BY j.id",
        )
        .await;
    assert_eq!(rows.len(), passing.len() + lasting.len() + 2);
    for row in &rows {
        let lasts = lasting.iter().any(|error| row[0].starts_with(error));
        let wanted = if lasts { ("failed", "1") } else { ("complete", "2") };
        assert_eq!((row[1].as_str(), row[2].as_str()), wanted, "{}", row[0]);
    }
    mill.holds().await;
    mill.ledger_is_the_stand_ins().await;
}

async fn limits_and_overload_cost_no_failure(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_DEFAULTS__MAX_FAILURES", "1");
    mill.insert(&["[[error 429 retry-after-ms=10 x5]]", "[[error 529 x3]]", "[[error 503 x3]]"]).await;
    // The thirty-first limit, and those behind the hundredth, as little as the first.
    for (job, deferrals) in [(4, 30), (5, 100)] {
        mill.insert(&[&format!("{job} [[error 429 retry-after-ms=10 x2]]")]).await;
        put_back_before(ground, job, deferrals).await;
    }
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.lines("SELECT outcome, failures FROM results").await, ["complete|0"; 5]);
}

/// Counts a job as put back so often, as its worker does.
async fn put_back_before(ground: &Ground, job: i64, deferrals: i32) {
    let sql =
        format!("UPDATE job_state SET deferrals = {deferrals}, claims = claims + 1 WHERE job_id = {job}");
    assert_eq!(ground.run(&sql).await, 1);
}

async fn overloads_between_answers_are_no_row(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_DEFAULTS__MAX_FAILURES", "1");
    mill.set("PROMPTMILL_BREAKER__FAILURES_IN_A_ROW", "1000");
    mill.set("PROMPTMILL_BREAKER__CALLS_MIN", "1000");
    // An answer that is cut, and two overloads before its end.
    let prompt = "[[seed o]] [[tokens 900]] [[error 529 retry-after-ms=1 skip=1 x2]]";
    ground.run(&format!("INSERT INTO jobs (prompt, max_tokens) VALUES ('{prompt}', 500)")).await;
    put_back_before(ground, 1, 30).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.line("SELECT outcome, failures, calls FROM results").await, "complete|0|4");
    mill.ledger_is_the_stand_ins().await;
}

async fn an_answer_larger_than_we_take_is_paid_for_once_and_says_which_limit(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_BREAKER__FAILURES_IN_A_ROW", "1");
    mill.set("PROMPTMILL_API__EVENT_MAX_BYTES", "65536");
    mill.insert(&["[[garbage huge mb=1]]", "fine"]).await;
    assert_eq!(mill.drain().await.code, 7);
    assert_eq!(
        ground.lines("SELECT outcome, error_type, calls, failures FROM results ORDER BY job_id").await,
        ["failed|response_too_large|1|0", "complete|NULL|1|0"]
    );
    let error = ground.line("SELECT error FROM results WHERE job_id = 1").await;
    assert!(error.contains("api.event_max_bytes = 65536"), "{error}");
    assert_eq!(ground.lines("SELECT scope FROM gates WHERE state <> 'flowing'").await, [""; 0]);
    mill.ledger_is_the_stand_ins().await;
}

async fn a_key_that_nobody_could_check_fails_no_job(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_DEFAULTS__MAX_FAILURES", "1");
    let asked = AtomicU32::new(0);
    let forbidden = br#"{"type":"error","error":{"type":"permission_error","message":"not now"}}"#;
    let server = Server::answering(move |request| {
        if request.starts_with("GET") {
            return answer("503 Service Unavailable", &[], b"{}");
        }
        match asked.fetch_add(1, Ordering::Relaxed) {
            0..3 => answer("403 Forbidden", &[], forbidden),
            _ => reply("end_turn", &[r#"{"type":"text","text":"Yes."}"#]),
        }
    })
    .await;
    mill.set("ANTHROPIC_BASE_URL", &server.base);
    mill.insert(&["may I?"]).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.line("SELECT outcome, failures, calls FROM results").await, "complete|0|4");
    assert_eq!(ground.lines("SELECT scope FROM gates WHERE state <> 'flowing'").await, [""; 0]);
}

async fn failures_run_out_at_max_failures(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_BREAKER__FAILURES_IN_A_ROW", "1000");
    mill.set("PROMPTMILL_BREAKER__CALLS_MIN", "1000");
    mill.insert(&["[[error 500]]"]).await;
    ground.run(r#"INSERT INTO jobs (prompt, policy) VALUES ('[[error 500]]', '{"max_failures":2}')"#).await;
    assert_eq!(mill.drain().await.code, 7);
    assert_eq!(
        ground.lines("SELECT outcome, failures, calls, error_type FROM results ORDER BY job_id").await,
        ["failed|5|5|api_error", "failed|2|2|api_error"]
    );
}

async fn an_exhausted_credit_stops_everything_and_one_update_lets_it_go_on(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__CONCURRENCY", "4");
    for job in 0..50 {
        mill.insert(&[&format!("{job} [[error credit x1]]")]).await;
    }
    let ran = mill.drain().await;
    assert_eq!(ran.code, 8, "jobs are left behind a blocked gate: {}", ran.stderr);
    let calls = mill.api.counts().total;
    assert!(calls <= 6, "the backlog was not burnt, but {calls} calls were made");
    assert_eq!(ground.line("SELECT count(*) FROM results").await, "0", "no job fails for it");
    assert_eq!(
        ground.line("SELECT count(*) FROM job_state WHERE failures > 0 OR state <> 'pending'").await,
        "0"
    );
    let gate = ground.line("SELECT state, reason FROM gates WHERE scope LIKE 'key:%'").await;
    assert_eq!(gate, "blocked|the credit balance is too low: buy credits, then set this gate to 'flowing'");
    assert_eq!(
        ground.line("SELECT count(*) FROM job_overview WHERE reason IS NULL").await,
        "0",
        "each job says why it waits"
    );
    ground.run("UPDATE gates SET state = 'flowing' WHERE scope LIKE 'key:%'").await;
    mill.api.reset();
    ground.run("DELETE FROM jobs").await;
    mill.insert(&["after the bill was paid"]).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.line("SELECT state, reason FROM gates WHERE scope LIKE 'key:%'").await, "flowing|NULL");
}

async fn a_refused_key_ends_the_run_and_touches_no_job(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("ANTHROPIC_API_KEY", "bad-key");
    mill.insert(&["one", "two"]).await;
    let ran = mill.run(&["run"]).await;
    assert_eq!(ran.code, 6, "{}", ran.stderr);
    assert!(ran.stderr.contains("the API refused the key (401)"), "{}", ran.stderr);
    assert_eq!(ground.lines("SELECT DISTINCT state, failures FROM job_state").await, ["pending|0"]);
    mill.unset("ANTHROPIC_API_KEY");
    mill.unset("ANTHROPIC_BASE_URL");
    let ran = mill.run(&["run"]).await;
    assert_eq!(ran.code, 6);
    assert!(ran.stderr.contains("ANTHROPIC_API_KEY") && ran.stderr.contains("key_file"), "{}", ran.stderr);
    mill.set("PROMPTMILL_API__KEY_FILE", "absent");
    let ran = mill.run(&["run"]).await;
    assert_eq!(ran.code, 6, "{}", ran.stderr);
    assert!(ran.stderr.contains("absent (PROMPTMILL_API__KEY_FILE)"), "{}", ran.stderr);
}

async fn an_overload_blocks_the_model_and_shows_in_gates(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_BREAKER__OPEN_MS", "600000");
    mill.set("PROMPTMILL_BREAKER__OPEN_MAX_MS", "600000");
    for job in 0..40 {
        mill.insert(&[&format!("{job} [[error 529]]")]).await;
    }
    ground.run("INSERT INTO jobs (prompt, model, run_at) SELECT 'well', 'claude-haiku-4-5', run_at FROM jobs WHERE id = 1").await;
    let daemon = mill.start();
    mill.until(
        "SELECT state, reason FROM gates WHERE scope LIKE 'model:%'",
        "blocked|overloaded_error (529)",
    )
    .await;
    mill.until("SELECT outcome FROM results", "complete").await;
    let ran = daemon.stop().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE failures > 0").await, "0");
    mill.ledger_is_the_stand_ins().await;
}

async fn a_long_rate_limit_shows_in_gates_and_goes_with_its_end(ground: &Ground) {
    let mill = Mill::new(ground).await;
    mill.insert(&["[[error 429 retry-after=3 x1]]"]).await;
    let daemon = mill.start();
    mill.until("SELECT state, reason FROM gates", "blocked|the API's rate limit (429)").await;
    mill.until("SELECT reason IS NOT NULL FROM job_overview", ground.either("1", "t")).await;
    mill.until("SELECT outcome, failures FROM results", "complete|0").await;
    mill.until("SELECT state, reason FROM gates", "flowing|NULL").await;
    assert_eq!(daemon.stop().await.code, 0);
}

async fn a_typing_error_in_a_labelled_batch_does_not_become_a_call_a_row(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__CONCURRENCY", "4");
    for job in 0..60 {
        ground.run(&format!("INSERT INTO jobs (prompt, batch) VALUES ('{job} [[error 400]]', 'typo')")).await;
    }
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('fine', 'other')").await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 8, "{}", ran.stderr);
    assert!(mill.api.counts().total <= 25, "{} calls", mill.api.counts().total);
    assert_eq!(ground.line("SELECT outcome FROM results WHERE batch = 'other'").await, "complete");
    assert_eq!(ground.line("SELECT state FROM gates WHERE scope = 'batch:default/typo'").await, "blocked");
}

async fn a_model_that_is_not_there_fails_the_jobs_that_name_it_with_one_call(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__CONCURRENCY", "1");
    for _ in 0..5 {
        ground.run("INSERT INTO jobs (prompt, model) VALUES ('x', 'claude-3-opus-20240229')").await;
    }
    assert_eq!(mill.drain().await.code, 7);
    assert_eq!(
        ground.lines("SELECT DISTINCT outcome, error_type FROM results").await,
        ["failed|not_found_error"]
    );
    assert_eq!(mill.api.counts().total, 1);
    mill.set("PROMPTMILL_DEFAULTS__MODEL", "claude-3-opus-20240229");
    mill.insert(&["by default"]).await;
    assert_eq!(mill.drain().await.code, 8, "the default model's gate blocks: no job is at fault");
    assert_eq!(
        ground.line("SELECT count(*) FROM job_state WHERE state = 'pending' AND failures = 0").await,
        "1"
    );
}

async fn a_blocked_gate_of_a_person_is_left_alone(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_DEFAULTS__MODEL", "claude-sonnet-5");
    ground.run("INSERT INTO gates (scope, state, reason) VALUES ('model:default/claude-sonnet-5', 'blocked', 'by hand')").await;
    mill.insert(&["waits"]).await;
    ground.run("INSERT INTO jobs (prompt, model) VALUES ('goes', 'claude-haiku-4-5')").await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 8, "{}", ran.stderr);
    assert_eq!(ground.lines("SELECT job_id FROM results").await, ["2"]);
}

async fn a_rotated_key_costs_no_job_and_blocks_nothing(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    let file = mill.home().join("key");
    // Blank lines at the end are nobody's key.
    std::fs::write(&file, "sk-ant-old\n\n").expect("the key is written");
    mill.unset("ANTHROPIC_API_KEY");
    mill.set("PROMPTMILL_API__KEY_FILE", file.to_str().expect("a plain path"));
    mill.insert(&["is under way [[delay 1s]]"]).await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    std::fs::write(&file, "sk-ant-new\n").expect("the key is written");
    mill.insert(&["is refused once [[error 401 x1]]"]).await;
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "2").await;
    let ran = daemon.stop().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.lines("SELECT scope FROM gates WHERE state <> 'flowing'").await, [""; 0]);
    mill.ledger_is_the_stand_ins().await;
}

/// Makes the database refuse results by a rule of somebody's own.
async fn refuse_results(ground: &Ground, when: &str) {
    let sqlite = format!(
        "CREATE TRIGGER theirs BEFORE INSERT ON results WHEN {when} BEGIN SELECT RAISE(ABORT, 'not here'); END"
    );
    let postgres = format!(
        "CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not here'; END $$;
         CREATE TRIGGER theirs BEFORE INSERT ON results FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION theirs()"
    );
    ground.run(ground.either(&sqlite, &postgres)).await;
}

async fn an_answer_that_the_database_refuses_fails_alone_and_the_others_settle(ground: &Ground) {
    let mill = Mill::new(ground).await;
    refuse_results(ground, "NEW.text LIKE 'forbidden%'").await;
    mill.insert(&["one", "[[say forbidden words]]", "two"]).await;
    assert_eq!(mill.drain().await.code, 7);
    assert_eq!(
        ground.lines("SELECT outcome, error_type FROM results ORDER BY job_id").await,
        ["complete|NULL", "failed|unstorable", "complete|NULL"]
    );
    mill.holds().await;
    mill.ledger_is_the_stand_ins().await;
}

async fn what_the_database_refuses_altogether_waits_until_it_does_not(ground: &Ground) {
    let mill = Mill::new(ground).await;
    refuse_results(ground, "NEW.job_id > 0").await;
    mill.insert(&["one"]).await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    mill.insert(&[r"[[error 500]]"]).await;
    // Once it is asked again it was put back, behind the answer that was refused.
    mill.until_asked(3).await;
    ground.run(ground.either("DROP TRIGGER theirs", "DROP TRIGGER theirs ON results")).await;
    mill.until("SELECT outcome FROM results WHERE job_id = 1", "failed").await;
    assert_eq!(daemon.stop().await.code, 0);
    mill.holds().await;
}
