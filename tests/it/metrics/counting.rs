//! What is counted is what happened, and no more series come of it than were promised.

use std::time::Instant;

use sqlx::Executor as _;

use super::{Answer, STEP_MAX, Samples, Watched};
use crate::faults::Held;
use crate::mill::harness::Mill;
use crate::support::{Ground, Kind, on_both};

on_both! {
    a_gate_is_counted_when_its_state_is_another_one,
    only_the_wait_for_the_first_claim_is_told,
    after_fifty_jobs_each_count_is_right_to_the_job,
    what_fails_is_counted_by_what_it_was,
    what_a_dead_daemon_was_told_is_counted_by_who_takes_its_job,
    ten_thousand_queues_and_models_make_a_bounded_page,
    the_tables_are_told_as_they_are,
    an_answer_that_is_on_its_way_does_not_wait,
}

/// The number that a query gives.
async fn number(ground: &Ground, sql: &str) -> f64 {
    ground.line(sql).await.parse().expect("a number")
}

async fn after_fifty_jobs_each_count_is_right_to_the_job(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    for job in 0..50 {
        let (queue, prompt) = match job % 10 {
            0 => ("slow", "[[stop refusal]]"),
            1 => ("slow", "[[tokens 90]]"),
            2 => ("default", "[[stop max_tokens]]"),
            _ => ("default", "hello"),
        };
        // A refusal is said by the model: each job has its own answer.
        ground.run(&format!("INSERT INTO jobs (queue, prompt) VALUES ('{queue}', '{job} {prompt}')")).await;
    }
    let watched = Watched::start(&mut mill).await;
    mill.until("SELECT count(*) FROM results", "50").await;
    // The slot is free a moment after the database has the end.
    watched.until_sample("promptmill_in_flight", 0.0).await;
    let seen = watched.samples().await;
    let ends = ground.lines("SELECT queue, outcome, count(*) FROM results GROUP BY queue, outcome").await;
    assert!(ends.len() >= 3, "{ends:?}");
    for end in ends {
        let parts: Vec<&str> = end.split('|').collect();
        let series = format!("promptmill_jobs_total{{queue=\"{}\",outcome=\"{}\"}}", parts[0], parts[1]);
        assert_eq!(seen.get(&series), parts[2].parse().ok(), "{series}");
    }
    assert_eq!(seen.sum("promptmill_jobs_total", &[]), 50.0);
    assert_eq!(seen.sum("promptmill_job_attempts_total", &["result=\"settled\""]), 50.0);
    let calls = number(ground, "SELECT count(*) FROM calls").await;
    assert_eq!(calls, mill.api.counts().total as f64);
    assert_eq!(seen.sum("promptmill_api_responses_total", &[]), calls);
    assert_eq!(seen.sum("promptmill_api_request_duration_seconds_count", &["status_class=\"2xx\""]), calls);
    let first = number(ground, "SELECT count(first_token_at) FROM calls").await;
    assert_eq!(seen.sum("promptmill_api_ttft_seconds_count", &[]), first);
    for (kind, column) in [
        ("input", "input_tokens"),
        ("output", "output_tokens"),
        ("cache_read", "cache_read_input_tokens"),
        ("cache_write", "cache_creation_input_tokens"),
    ] {
        let tokens = number(ground, &format!("SELECT sum({column}) FROM calls")).await;
        assert_eq!(seen.sum("promptmill_tokens_total", &[&format!("kind=\"{kind}\"")]), tokens, "{kind}");
    }
    for stop in ground.lines("SELECT stop_reason, count(*) FROM calls GROUP BY stop_reason").await {
        let (stop, calls) = stop.split_once('|').expect("two values");
        let label = format!("stop_reason=\"{stop}\"");
        assert_eq!(Some(seen.sum("promptmill_stop_reasons_total", &[&label])), calls.parse().ok(), "{stop}");
    }
    assert_eq!(seen.sum("promptmill_queue_wait_seconds_count", &[]), 50.0);
    assert!(seen.sum("promptmill_queue_wait_seconds_sum", &[]) > 0.0);
    let seconds = ground.either("max(finished_at) / 1000", "extract(epoch FROM max(finished_at))");
    let last = number(ground, &format!("SELECT {seconds} FROM results WHERE outcome = 'complete'")).await;
    let told = seen.get("promptmill_last_success_timestamp_seconds").expect("it is told");
    assert!((told - last).abs() < 30.0, "{told}, not {last}");
    assert_eq!(seen.sum("promptmill_wasted_tokens_total", &[]), 0.0);
    assert_eq!(seen.sum("promptmill_db_errors_total", &[]), 0.0);
    assert!(seen.sum("promptmill_db_op_duration_seconds_count", &["op=\"claim\""]) >= 1.0);
    assert_eq!(watched.daemon.stop().await.code, 0);
}

async fn what_fails_is_counted_by_what_it_was(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.insert(&[
        "[[error 529 x1 retry-after-ms=20]]",
        "[[cut after=30 x1]] [[tokens 60]]",
        "[[error 400]]",
    ])
    .await;
    let watched = Watched::start(&mut mill).await;
    mill.until("SELECT count(*) FROM results", "3").await;
    watched.until_sample("promptmill_in_flight", 0.0).await;
    let seen = watched.samples().await;
    for call in ground
        .lines("SELECT coalesce(http_status, 0), coalesce(error_type, ''), count(*) FROM calls GROUP BY 1, 2")
        .await
    {
        let parts: Vec<&str> = call.split('|').collect();
        let status = if parts[0] == "0" { "none" } else { parts[0] };
        let labels = [format!("status=\"{status}\""), format!("error_type=\"{}\"", parts[1])];
        let counted = seen.sum("promptmill_api_responses_total", &[&labels[0], &labels[1]]);
        assert_eq!(Some(counted), parts[2].parse().ok(), "{call}");
    }
    assert_eq!(seen.sum("promptmill_retries_total", &["class=\"provider\""]), 2.0);
    assert_eq!(seen.sum("promptmill_job_attempts_total", &["result=\"released\""]), 2.0);
    assert_eq!(seen.get("promptmill_retry_after_seconds_count"), Some(1.0));
    let wasted =
        number(ground, "SELECT sum(output_tokens + input_tokens) FROM calls WHERE error_type IS NOT NULL")
            .await;
    assert!(wasted > 0.0);
    assert_eq!(seen.sum("promptmill_wasted_tokens_total", &["cause=\"cut\""]), wasted);
    assert_eq!(watched.daemon.stop().await.code, 0);
}

async fn what_a_dead_daemon_was_told_is_counted_by_who_takes_its_job(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.insert(&["one", "two", "three"]).await;
    // Of the second nothing was kept, of the third not even a claim.
    let head = r#"{"kind":"ask","model":"model-of-the-dead","max_tokens":100,"messages":1}"#;
    ground
        .run(&format!(
            "UPDATE job_state SET state = 'running', claims = claims + 1, claimed_by = 4711 WHERE job_id < 3;
             INSERT INTO checkpoints (job_id, claim, seq, part, content) VALUES
                    (1, 1, 1, 0, '{head}'), (1, 1, 1, 1, '{}'), (1, 1, 1, 2, '{}')",
            "x".repeat(350),
            "y".repeat(350)
        ))
        .await;
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "1");
    let watched = Watched::start(&mut mill).await;
    mill.until("SELECT count(*) FROM results", "3").await;
    watched.until_sample("promptmill_in_flight", 0.0).await;
    let seen = watched.samples().await;
    let lost = "SELECT coalesce(sum(output_tokens), 0) FROM calls WHERE error_type = 'lost'";
    assert_eq!(number(ground, lost).await, 200.0);
    assert_eq!(seen.get("promptmill_rescues_total"), Some(2.0));
    assert_eq!(seen.sum("promptmill_tokens_total", &["model=\"model-of-the-dead\""]), 200.0);
    assert_eq!(seen.sum("promptmill_wasted_tokens_total", &[]), 200.0);
    assert_eq!(seen.sum("promptmill_wasted_tokens_total", &["cause=\"crash\""]), 200.0);
    for (kind, column) in [("input", "input_tokens"), ("output", "output_tokens")] {
        let tokens = number(ground, &format!("SELECT sum({column}) FROM calls")).await;
        assert_eq!(seen.sum("promptmill_tokens_total", &[&format!("kind=\"{kind}\"")]), tokens, "{kind}");
    }
    assert_eq!(watched.daemon.stop().await.code, 0);
}

async fn a_gate_is_counted_when_its_state_is_another_one(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    let prompts: Vec<String> = (0..25).map(|job| format!("{job} [[error 400]]")).collect();
    for prompt in &prompts {
        ground.run(&format!("INSERT INTO jobs (batch, prompt) VALUES ('mistake', '{prompt}')")).await;
    }
    let watched = Watched::start(&mut mill).await;
    let blocked = "promptmill_gate_transitions_total{kind=\"batch\",state=\"blocked\"}";
    watched.until_sample(blocked, 1.0).await;
    // What the gate of a batch counts meanwhile is written too, and is no change of its state.
    assert_eq!(watched.samples().await.sum("promptmill_gate_transitions_total", &[]), 1.0);
    watched.daemon.signal("-HUP");
    watched.until_sample("promptmill_key_reloads_total{result=\"same\"}", 1.0).await;
    assert_eq!(watched.daemon.stop().await.code, 0);
}

async fn only_the_wait_for_the_first_claim_is_told(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    let past = ground.at(-500);
    ground
        .run(&format!(
            "INSERT INTO jobs (queue, prompt, run_at) VALUES ('late', '[[error 529 x1 retry-after-ms=20]]', {past})"
        ))
        .await;
    let watched = Watched::start(&mut mill).await;
    mill.until("SELECT count(*) FROM results", "1").await;
    watched.until_sample("promptmill_in_flight", 0.0).await;
    let seen = watched.samples().await;
    assert_eq!(seen.sum("promptmill_job_attempts_total", &["queue=\"late\""]), 2.0);
    assert_eq!(seen.get("promptmill_queue_wait_seconds_count{queue=\"late\"}"), Some(1.0));
    let waited = seen.get("promptmill_queue_wait_seconds_sum{queue=\"late\"}").expect("it is told");
    assert!((500.0..560.0).contains(&waited), "{waited}");
    assert_eq!(watched.daemon.stop().await.code, 0);
}

/// Inserts so many jobs, each of a queue and a model of its own.
async fn each_its_own(ground: &Ground, jobs: usize, name: &str, run_at: &str) {
    let many = format!("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {jobs})");
    ground
        .run(&format!(
            "INSERT INTO jobs (queue, model, prompt, run_at)
             {many} SELECT '{name}-' || i, '{name}-' || i, 'job ' || i, {run_at} FROM n"
        ))
        .await;
}

async fn ten_thousand_queues_and_models_make_a_bounded_page(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.knows_a_limit();
    each_its_own(ground, 120, "now", &ground.at(-1)).await;
    each_its_own(ground, 10_000, "later", &ground.at(3600)).await;
    let watched = Watched::start(&mut mill).await;
    mill.until("SELECT count(*) FROM results", "120").await;
    watched.until_sample("promptmill_in_flight", 0.0).await;
    let page = watched.get("/metrics").await.text;
    let seen = Samples::read(&page);
    assert_eq!(seen.sum("promptmill_jobs_total", &[]), 120.0, "none is lost for want of a label");
    assert_eq!(seen.sum("promptmill_api_responses_total", &[]), mill.api.counts().total as f64);
    assert_eq!(seen.sum("promptmill_jobs_in_state", &["state=\"scheduled\""]), 10_000.0);
    assert!(seen.sum("promptmill_jobs_in_state", &["queue=\"other\"", "state=\"scheduled\""]) >= 9950.0);
    for (metric, label) in [
        ("promptmill_jobs_in_state", "queue=\""),
        ("promptmill_jobs_total", "queue=\""),
        ("promptmill_api_responses_total", "model=\""),
        ("promptmill_tokens_total", "model=\""),
    ] {
        let value =
            |series: &str| series.split_once(label)?.1.split_once('"').map(|(value, _)| value.to_owned());
        let mut values: Vec<_> = seen.of(metric).filter_map(|(series, _)| value(series)).collect();
        values.sort();
        values.dedup();
        assert!((2..=51).contains(&values.len()), "{metric} has {} values of {label}", values.len());
    }
    assert!(page.lines().count() < 4000 && page.len() < 512 << 10, "{} lines", page.lines().count());
    assert_eq!(watched.daemon.stop().await.code, 0);
}

async fn the_tables_are_told_as_they_are(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    let watched = Watched::start_by(&mut mill, &["run", "--queue", "default"]).await;
    ground
        .run(
            "INSERT INTO queues (name, paused, max_running) VALUES ('still', true, NULL), ('none', false, 0)",
        )
        .await;
    let (past, future) = (ground.at(-500), ground.at(500));
    let row = |queue: &str, at: &str| {
        format!("INSERT INTO jobs (queue, prompt, run_at) VALUES ('{queue}', 'x', {at});")
    };
    // The jobs last: they are waited for, and what was read with them holds the rest.
    ground
        .run(
            "INSERT INTO gates (scope, state) VALUES ('batch:default/b', 'blocked'), ('made-up', 'blocked'),
                ('model:default/sick', 'blocked'), ('batch:elsewhere/b', 'blocked')",
        )
        .await;
    ground
        .run(&format!(
            "INSERT INTO jobs (queue, batch, model, prompt, run_at) VALUES
                ('elsewhere', 'b', NULL, 'x', {0}), ('elsewhere', NULL, 'sick', 'x', {0}), ('none', NULL, NULL, 'x', {0})",
            ground.at(-900)
        ))
        .await;
    ground.run(&row("elsewhere", &ground.at(-300))).await;
    ground.run(&format!("{}{}{}", row("default", &future), row("still", &past), row("still", &past))).await;
    // What one page shows was not read in one moment.
    for (series, value) in [
        ("promptmill_jobs_in_state{queue=\"still\",state=\"pending\"}", 2.0),
        ("promptmill_jobs_in_state{queue=\"default\",state=\"scheduled\"}", 1.0),
        ("promptmill_queues_paused", 1.0),
        ("promptmill_workers", 1.0),
        ("promptmill_shared_up", 1.0),
        ("promptmill_gates{kind=\"batch\",state=\"blocked\"}", 2.0),
        ("promptmill_gates{kind=\"model\",state=\"blocked\"}", 1.0),
        ("promptmill_gates{kind=\"other\",state=\"blocked\"}", 1.0),
    ] {
        watched.until_sample(series, value).await;
    }
    // What waits for longer is kept back, and could not have started.
    let oldest = |answer: &Answer| Samples::read(&answer.text).get("promptmill_oldest_pending_seconds");
    let is_free = |answer: &Answer| oldest(answer).is_some_and(|age| (300.0..400.0).contains(&age));
    watched.until("/metrics", "the age of what nothing keeps back", is_free).await;
    let seen = watched.samples().await;
    let of = |queue: &str| seen.get(&format!("promptmill_queue_oldest_pending_seconds{{queue=\"{queue}\"}}"));
    assert!(of("elsewhere").is_some_and(|age| (300.0..400.0).contains(&age)), "{:?}", of("elsewhere"));
    assert_eq!((of("still"), of("default")), (Some(0.0), Some(0.0)), "nothing of these could have started");
    // A queue that is empty again says so.
    ground.run("DELETE FROM jobs").await;
    watched.until_sample("promptmill_jobs_in_state{queue=\"still\",state=\"pending\"}", 0.0).await;
    assert_eq!(watched.daemon.stop().await.code, 0);
}

async fn an_answer_that_is_on_its_way_does_not_wait(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.insert(&["[[delay 500ms]] hello"]).await;
    let watched = Watched::start(&mut mill).await;
    mill.until_asked(1).await;
    if ground.kind() == Kind::Sqlite {
        let lock = Held::of(&ground.file());
        until_it_waits(&watched).await;
        lock.lets_go();
    } else {
        let schema = ground.schema().to_owned();
        let person =
            Ground::postgres_pool(|options| options.options([("search_path", schema.as_str())])).await;
        let mut lock = person.begin().await.expect("a transaction");
        lock.execute("SELECT 1 FROM job_state FOR UPDATE").await.expect("locked");
        until_it_waits(&watched).await;
        lock.rollback().await.expect("free again");
        person.close().await;
    }
    watched.until_sample("promptmill_spool_answers{place=\"file\"}", 0.0).await;
    assert_eq!(watched.daemon.stop().await.code, 0);
}

/// Asks until the answer is in the file, as it is after two seconds; it waits nowhere before.
async fn until_it_waits(watched: &Watched) {
    let deadline = Instant::now() + STEP_MAX;
    loop {
        let seen = watched.samples().await;
        let place = |place: &str| seen.get(&format!("promptmill_spool_answers{{place=\"{place}\"}}"));
        assert_eq!(place("memory"), Some(0.0), "there is a file");
        if place("file") == Some(1.0) {
            return;
        }
        assert!(Instant::now() < deadline, "{}", watched.daemon.said());
    }
}
