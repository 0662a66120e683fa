//! Who gets which job, and when.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use promptmill::domain::job::Claimed;
use promptmill::store::{DEFAULT_PROFILE, Wanted};

use super::{Bench, back, call, end, ids, job, jobs, of_default, one_job};
use crate::support::{Ground, on_both};

on_both!(
    a_probe_is_made_with_a_small_job_where_there_is_one,
    claim_is_exclusive,
    a_claim_brings_the_job_and_its_queue_as_inserted,
    a_higher_priority_goes_first_even_across_batches_and_models,
    a_small_batch_takes_turns_with_a_big_one,
    single_slots_go_round_the_lanes,
    blocked_models_are_passed_by_whoever_names_them,
    a_blocked_profile_is_passed_by_and_the_queues_of_others_flow_on,
    a_model_is_blocked_for_one_profile_and_flows_for_another,
    profiles_that_share_a_key_share_its_probe,
    stopped_batches_are_passed_by_and_lower_priorities_reached,
    paused_and_unnamed_queues_are_left_alone,
    a_probed_model_gives_one_job,
    max_running_holds_over_parallel_workers,
    bytes_max_stops_a_claim_but_never_the_first_job,
    a_label_for_every_job_starves_nobody,
    more_queues_than_a_scan_reads_are_all_served,
    scheduled_jobs_are_not_claimed,
    a_worker_without_a_row_claims_nothing,
    the_next_claim_brings_what_was_already_paid_for,
    a_claim_that_nobody_waited_for_is_given_again,
    a_claimed_job_tells_its_model_wherever_it_is_named,
);

async fn a_claimed_job_tells_its_model_wherever_it_is_named(ground: &Ground) {
    ground
        .run(
            r#"INSERT INTO jobs (prompt, model, params) VALUES
               ('column', 'of-column', NULL), ('params', NULL, '{"model": "of-params"}'), ('none', NULL, '{"top_k": 1}')"#,
        )
        .await;
    let claimed = Bench::on(ground).await.claim(3).await;
    let mut told: Vec<_> =
        claimed.into_iter().map(|job| (job.prompt.unwrap_or_default(), job.model)).collect();
    told.sort();
    let told: Vec<_> = told.iter().map(|(prompt, model)| (prompt.as_str(), model.as_deref())).collect();
    assert_eq!(told, [("column", Some("of-column")), ("none", None), ("params", Some("of-params"))]);
}

async fn claim_is_exclusive(ground: &Ground) {
    jobs(ground, 150, "queue", "'default'").await;
    let (one, two) = (Bench::on(ground).await, Bench::on(ground).await);
    let drain = async |bench: &Bench| {
        let mut all: Vec<Claimed> = Vec::new();
        loop {
            let got = bench.claim(7).await;
            if got.is_empty() {
                return all;
            }
            assert!(got.len() <= 7);
            all.extend(got);
        }
    };
    let (a, b, c) = tokio::join!(drain(&one), drain(&one), drain(&two));
    let mut seen: Vec<i64> = [&a, &b, &c].into_iter().flat_map(|part| ids(part)).collect();
    seen.sort_unstable();
    assert_eq!(seen, (1..=150).collect::<Vec<i64>>());
    assert_eq!(
        ground.line("SELECT count(*), min(claims), max(claims) FROM job_state WHERE state = 'running'").await,
        "150|1|1"
    );
}

async fn a_claim_brings_the_job_and_its_queue_as_inserted(ground: &Ground) {
    ground
        .run(
            r#"INSERT INTO queues (name, model, policy) VALUES ('q', 'queue-model', '{"max_failures": 2}');
               INSERT INTO jobs (queue, batch, system, params, policy)
               VALUES ('q', 'b', 'be kind', '{ "messages":[ {"z":1,"a":"\u00e9"} ] }', '{"deadline_seconds": 100}')"#,
        )
        .await;
    let bench = Bench::on(ground).await;
    let claimed = bench.claim(5).await;
    let [got] = claimed.as_slice() else { panic!("one job, not {}", claimed.len()) };
    assert_eq!((got.lease.job.0, got.lease.claim, got.lease.run), (1, 1, 1));
    assert_eq!((got.queue.as_str(), got.batch.as_deref()), ("q", Some("b")));
    assert_eq!((got.prompt.as_deref(), got.system.as_deref()), (None, Some("be kind")));
    assert_eq!(got.params.as_deref(), Some(r#"{ "messages":[ {"z":1,"a":"\u00e9"} ] }"#));
    assert_eq!(got.policy.as_deref(), Some(r#"{"deadline_seconds": 100}"#));
    assert_eq!(got.queue_model.as_deref(), Some("queue-model"));
    assert_eq!(got.queue_policy.as_deref(), Some(r#"{"max_failures": 2}"#));
    assert_eq!(got.bytes, 7 + 39);
    assert!(got.calls.is_empty());
}

async fn a_higher_priority_goes_first_even_across_batches_and_models(ground: &Ground) {
    jobs(ground, 5, "batch, priority", "'low', 0").await;
    jobs(ground, 2, "batch, priority, model", "'high', 9, 'other'").await;
    jobs(ground, 2, "batch, priority", "'mid', 5").await;
    let bench = Bench::on(ground).await;
    assert_eq!(ids(&bench.claim(3).await), [6, 7, 8]);
    assert_eq!(ids(&bench.claim(2).await), [1, 9]);
}

async fn a_small_batch_takes_turns_with_a_big_one(ground: &Ground) {
    jobs(ground, 100, "batch", "'big'").await;
    jobs(ground, 5, "batch", "'small'").await;
    let bench = Bench::on(ground).await;
    let small = bench.claim(10).await.iter().filter(|got| got.batch.as_deref() == Some("small")).count();
    assert_eq!(small, 5);
}

async fn single_slots_go_round_the_lanes(ground: &Ground) {
    for lane in ["'q', 'a'", "'q', 'b'", "'r', 'c'"] {
        jobs(ground, 4, "queue, batch", lane).await;
    }
    let bench = Bench::on(ground).await;
    let mut turns: HashMap<String, usize> = HashMap::new();
    for _ in 0..6 {
        let got = bench.claim(1).await.remove(0);
        *turns.entry(got.batch.expect("a batch")).or_default() += 1;
    }
    assert_eq!(turns, ["a", "b", "c"].into_iter().map(|batch| (batch.to_owned(), 2)).collect());
}

async fn blocked_models_are_passed_by_whoever_names_them(ground: &Ground) {
    ground.run("INSERT INTO queues (name, model) VALUES ('q', 'down')").await;
    jobs(ground, 3, "model", "'down'").await;
    jobs(ground, 3, "queue", "'q'").await;
    jobs(ground, 1, "queue, model", "'q', 'up'").await;
    jobs(ground, 1, "queue", "'default'").await;
    let bench = Bench::on(ground).await;
    let mut wanted = bench.wanted(10);
    wanted.blocked.models = vec![of_default("down"), of_default("default-model")];
    assert_eq!(ids(&bench.store.claim(&wanted).await.expect("a claim")), [7]);
    assert_eq!(ids(&bench.claim(10).await), [1, 2, 3, 4, 5, 6, 8]);
}

/// Two queues of a second profile, among others.
fn with_profiles(mut wanted: Wanted) -> Wanted {
    wanted.profiles =
        [("a", "1"), ("b", "1"), ("c", "2")].map(|(queue, profile)| (queue.into(), profile.into())).into();
    wanted
}

async fn a_blocked_profile_is_passed_by_and_the_queues_of_others_flow_on(ground: &Ground) {
    for queue in ["'a'", "'b'", "'c'", "'default'"] {
        jobs(ground, 2, "queue", queue).await;
    }
    jobs(ground, 2, "queue, model", "'a', 'other'").await;
    let before = ground.line("SELECT sum(claims) FROM job_state WHERE queue IN ('a', 'b')").await;
    let bench = Bench::on(ground).await;
    let mut wanted = with_profiles(bench.wanted(20));
    wanted.blocked.profiles = vec!["1".to_owned()];
    assert_eq!(ids(&bench.store.claim(&wanted).await.expect("a claim")), [5, 6, 7, 8]);
    let after = ground.line("SELECT sum(claims) FROM job_state WHERE queue IN ('a', 'b')").await;
    assert_eq!(before, after, "no row that waits is written");
    wanted.blocked.profiles = vec![DEFAULT_PROFILE.to_owned()];
    assert_eq!(ids(&bench.store.claim(&wanted).await.expect("a claim")), [1, 2, 3, 4, 9, 10]);
}

async fn a_model_is_blocked_for_one_profile_and_flows_for_another(ground: &Ground) {
    for queue in ["'a'", "'default'"] {
        jobs(ground, 1, "queue, model", &format!("{queue}, 'down'")).await;
        jobs(ground, 1, "queue", queue).await;
    }
    let bench = Bench::on(ground).await;
    let mut wanted = with_profiles(bench.wanted(20));
    wanted.blocked.models = vec![("1".into(), "down".into()), of_default("default-model")];
    assert_eq!(ids(&bench.store.claim(&wanted).await.expect("a claim")), [2, 3]);
}

async fn profiles_that_share_a_key_share_its_probe(ground: &Ground) {
    for queue in ["'a'", "'b'", "'c'", "'default'"] {
        jobs(ground, 3, "queue", queue).await;
    }
    let bench = Bench::on(ground).await;
    let mut wanted = with_profiles(bench.wanted(20));
    // The first two profiles have the key k, the third another one.
    let rated = |profile: &str, model: &str| {
        (if profile == "2" { "other".to_owned() } else { "k".to_owned() }, model.to_owned())
    };
    wanted.rooms.rated = Some(Arc::new(rated));
    wanted.rooms.keys.insert("k".to_owned(), 1);
    let got = bench.store.claim(&wanted).await.expect("a claim");
    assert_eq!(got.iter().filter(|got| got.queue == "c").count(), 3);
    assert_eq!(got.len(), 4, "one job for the key, whichever profile it is of");
}

async fn stopped_batches_are_passed_by_and_lower_priorities_reached(ground: &Ground) {
    jobs(ground, 3, "batch, priority", "'bad', 9").await;
    jobs(ground, 1, "batch, priority, queue", "'bad', 9, 'q'").await;
    jobs(ground, 2, "batch, priority", "'good', 0").await;
    let bench = Bench::on(ground).await;
    let mut wanted = bench.wanted(10);
    wanted.blocked.batches = vec![("default".to_owned(), "bad".to_owned())];
    assert_eq!(ids(&bench.store.claim(&wanted).await.expect("a claim")), [4, 5, 6]);
}

async fn paused_and_unnamed_queues_are_left_alone(ground: &Ground) {
    for queue in ["'a'", "'b'", "'c'"] {
        jobs(ground, 1, "queue", queue).await;
    }
    ground.run("UPDATE queues SET paused = TRUE WHERE name = 'a'").await;
    let bench = Bench::on(ground).await;
    let mut wanted = bench.wanted(10);
    wanted.queues = vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(ids(&bench.store.claim(&wanted).await.expect("a claim")), [2]);
    assert_eq!(ids(&bench.claim(10).await), [3]);
    ground.run("UPDATE queues SET paused = FALSE").await;
    assert_eq!(ids(&Bench::on(ground).await.claim(10).await), [1]);
}

async fn a_probed_model_gives_one_job(ground: &Ground) {
    jobs(ground, 3, "model, batch", "'sick', 'a'").await;
    jobs(ground, 3, "model, batch", "'sick', 'b'").await;
    jobs(ground, 2, "model", "'well'").await;
    let bench = Bench::on(ground).await;
    let mut wanted = bench.wanted(10);
    wanted.rooms.models.insert(of_default("sick"), 1);
    let got = bench.store.claim(&wanted).await.expect("a claim");
    assert_eq!(got.iter().filter(|got| got.model.as_deref() == Some("sick")).count(), 1);
    assert_eq!(got.len(), 3);
}

async fn max_running_holds_over_parallel_workers(ground: &Ground) {
    ground.run("INSERT INTO queues (name, max_running) VALUES ('narrow', 3)").await;
    jobs(ground, 20, "queue, batch", "'narrow', 'a'").await;
    jobs(ground, 20, "queue, batch", "'narrow', 'b'").await;
    jobs(ground, 5, "queue", "'wide'").await;
    let benches = [Bench::on(ground).await, Bench::on(ground).await, Bench::on(ground).await];
    let claims = benches.iter().map(|bench| bench.claim(9));
    let got: Vec<Claimed> = futures_util::future::join_all(claims).await.into_iter().flatten().collect();
    let narrow: Vec<&Claimed> = got.iter().filter(|got| got.queue == "narrow").collect();
    assert_eq!(got.len() - narrow.len(), 5, "the wide queue is not held up");
    assert_eq!(narrow.len(), 3);
    benches[0].settle(vec![end(narrow[0].lease)]).await;
    let more: usize = benches[1].claim(9).await.len() + benches[2].claim(9).await.len();
    assert_eq!(more, 1, "one place was given back");
}

async fn bytes_max_stops_a_claim_but_never_the_first_job(ground: &Ground) {
    jobs(ground, 4, "system", "'12345678901234567890'").await;
    let bench = Bench::on(ground).await;
    let mut wanted = bench.wanted(10);
    wanted.bytes_max = 70;
    assert_eq!(bench.store.claim(&wanted).await.expect("a claim").len(), 2);
    wanted.bytes_max = 5;
    assert_eq!(bench.store.claim(&wanted).await.expect("a claim").len(), 1);
    assert_eq!(bench.store.claim(&wanted).await.expect("a claim").len(), 1);
}

async fn a_label_for_every_job_starves_nobody(ground: &Ground) {
    let rows: Vec<String> = (0..300).map(|n| format!("('say hello', 'label {n:03}')")).collect();
    ground.run(&format!("INSERT INTO jobs (prompt, batch) VALUES {}", rows.join(", "))).await;
    jobs(ground, 3, "batch", "'aaa'").await;
    let bench = Bench::on(ground).await;
    let mut seen: Vec<i64> = Vec::new();
    for _ in 0..12 {
        seen.extend(ids(&bench.claim(30).await));
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=303).collect::<Vec<i64>>());
}

async fn more_queues_than_a_scan_reads_are_all_served(ground: &Ground) {
    let rows: Vec<String> = (0..150).map(|n| format!("('say hello', 'queue {n:03}')")).collect();
    ground.run(&format!("INSERT INTO jobs (prompt, queue) VALUES {}", rows.join(", "))).await;
    let bench = Bench::on(ground).await;
    assert_eq!(ids(&bench.claim(200).await), (1..=150).collect::<Vec<i64>>());
}

async fn scheduled_jobs_are_not_claimed(ground: &Ground) {
    jobs(ground, 2, "run_at", &ground.at(3600)).await;
    assert!(Bench::on(ground).await.claim(5).await.is_empty());
}

async fn a_worker_without_a_row_claims_nothing(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    bench.store.retire(bench.worker).await.expect("it retires");
    assert!(bench.claim(5).await.is_empty());
    assert_eq!(ground.line("SELECT state, claims FROM job_state").await, "pending|0");
}

async fn the_next_claim_brings_what_was_already_paid_for(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let first = bench.lease().await;
    let mut odd = call(1);
    odd.content = Some(r#"[{"type":"text","z":1, "text":"\u0000 \ud83d"}]"#.into());
    assert!(!bench.append(&first, &odd).await);
    assert!(!bench.append(&first, &call(2)).await);
    let mut put_back = back(first, None);
    put_back.call = Some(call(3));
    bench.release(put_back).await;
    let second = bench.claim(1).await.remove(0);
    assert!(bench.append(&first, &call(4)).await, "a call of the first claim is late by now");
    bench.append(&second.lease, &call(1)).await;
    assert_eq!(
        second.calls.iter().map(|past| (past.claim, past.seq)).collect::<Vec<_>>(),
        [(1, 1), (1, 2), (1, 3)]
    );
    let past = &second.calls[0];
    assert_eq!(past.content.as_deref(), odd.content.as_deref(), "kept as received");
    assert_eq!((past.kind.as_str(), past.max_tokens, past.partial), ("ask", Some(1000), false));
    assert_eq!(past.usage, odd.usage);
    assert!(past.sent_ago.expect("a time") < Duration::from_mins(1));
    assert_eq!((second.tally.failures, second.tally.deferrals, second.tally.crashes), (1, 2, 0));

    bench.release(back(second.lease, None)).await;
    let third = bench.claim(1).await.remove(0);
    let rows: Vec<_> = third.calls.iter().map(|past| (past.claim, past.seq, past.late)).collect();
    assert_eq!(rows, [(1, 1, false), (1, 2, false), (1, 3, false), (1, 4, true), (2, 1, false)]);
    assert_eq!(third.calls[3].content, None, "what came late is paid for, but no part of the talk");

    bench.settle(vec![end(third.lease)]).await;
    ground.run("UPDATE job_state SET state = 'pending'").await;
    let again = Bench::on(ground).await.claim(1).await.remove(0);
    assert_eq!((again.lease.run, again.calls.len()), (2, 0), "a new run begins with nothing");
    assert_eq!(ground.line("SELECT count(*) FROM calls WHERE run = 1").await, "6");
    assert_eq!(job(&again.lease), 1);
}

async fn a_claim_that_nobody_waited_for_is_given_again(ground: &Ground) {
    jobs(ground, 60, "queue", "'default'").await;
    let bench = Bench::on(ground).await;
    let mut given: Vec<i64> = Vec::new();
    // Given up ever later: before it was sent, while it ran, after it was done.
    for step in 0..20 {
        let patience = Duration::from_micros(step * 300);
        if let Ok(got) = tokio::time::timeout(patience, bench.claim(3)).await {
            given.extend(ids(&got));
        }
    }
    let began = Instant::now();
    while given.len() < 60 && began.elapsed() < Duration::from_secs(20) {
        given.extend(ids(&bench.claim(9).await));
    }
    given.sort_unstable();
    assert_eq!(given, (1..=60).collect::<Vec<i64>>());
    assert!(bench.claim(9).await.is_empty());
}

async fn a_probe_is_made_with_a_small_job_where_there_is_one(ground: &Ground) {
    let big = ground.either("printf('%.40000c', 'x')", "repeat('x', 40000)");
    ground.run(&format!("INSERT INTO jobs (prompt) VALUES ({big}), ({big}), ('small'), ('small too')")).await;
    let bench = Bench::on(ground).await;
    let mut wanted = bench.wanted(10);
    wanted.rooms.models.insert(of_default("default-model"), 1);
    let probe = async || ids(&bench.store.claim(&wanted).await.expect("a claim"));
    assert_eq!(probe().await, [3]);
    // Known lanes are believed for a moment; what was passed by comes with the next look.
    ground.run("DELETE FROM jobs WHERE id = 4").await;
    wanted.blocked.batches.push(("none".to_owned(), "none".to_owned()));
    assert_eq!(ids(&bench.store.claim(&wanted).await.expect("a claim")), [1], "else the first");
    wanted.rooms.models.clear();
    wanted.blocked.batches.clear();
    assert_eq!(ids(&bench.store.claim(&wanted).await.expect("a claim")), [2]);
}
