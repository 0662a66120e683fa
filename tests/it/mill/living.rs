//! A daemon's life: start, idle, signals, kill, cancel, two at once.

use std::time::Duration;

use super::harness::Mill;
use crate::support::{Ground, Kind, on_both};

on_both! {
    what_another_program_inserts_is_picked_up_by_an_idle_daemon,
    a_killed_daemon_loses_no_job_and_its_successor_goes_on_at_once,
    what_a_killed_daemon_had_heard_is_gone_on_with,
    a_dead_workers_jobs_are_taken_over_after_its_lease,
    a_stop_lets_calls_finish_and_gives_the_rest_back_without_a_failure,
    a_cancelled_jobs_running_call_is_hung_up_and_what_was_said_is_kept,
    a_job_that_is_deleted_while_it_runs_leaves_nothing_behind,
    two_daemons_take_no_job_twice,
    a_queue_that_may_run_nothing_holds_no_drain_up,
    priorities_pauses_and_times_are_kept,
    deadlines_end_what_waits_and_what_runs,
    a_job_run_again_is_a_run_of_its_own,
    a_waiting_job_that_was_not_sent_on_is_found,
    a_claim_that_fails_is_said_once_and_the_daemon_goes_on,
}

async fn a_waiting_job_that_was_not_sent_on_is_found(ground: &Ground) {
    let mill = Mill::new(ground).await;
    mill.insert(&["one"]).await;
    // As two servers leave it that each took the other's answer for missing: no call of it is open.
    ground
        .run(
            "UPDATE job_state SET state = 'running', claims = claims + 1, claimed_by = 7;
             UPDATE job_state SET state = 'waiting', claimed_by = NULL",
        )
        .await;
    let daemon = mill.start();
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "1").await;
    assert_eq!(daemon.stop().await.code, 0);
}

async fn a_claim_that_fails_is_said_once_and_the_daemon_goes_on(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "8");
    let daemon = mill.start();
    mill.insert(&["one"]).await;
    mill.until("SELECT count(*) FROM results", "1").await;
    // A claim is tried five times a second, the beat goes on every other second.
    let beats = ground.line("SELECT max(beat) + 2 FROM workers").await;
    ground.run("ALTER TABLE queues RENAME TO away").await;
    mill.until(&format!("SELECT max(beat) >= {beats} FROM workers"), ground.either("1", "t")).await;
    ground.run("ALTER TABLE away RENAME TO queues").await;
    mill.insert(&["two"]).await;
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "2").await;
    let ran = daemon.stop().await;
    assert_eq!(ran.stderr.matches("failed to claim").count(), 1, "{}", ran.stderr);
}

async fn what_another_program_inserts_is_picked_up_by_an_idle_daemon(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let daemon = mill.start();
    mill.until(
        ground.either("SELECT count(*) FROM workers", "SELECT count(*) FROM workers WHERE asleep"),
        "1",
    )
    .await;
    let jobs = ground.either("jobs", &ground.table("jobs")).to_owned();
    for calls in 1..=3 {
        // The shell of SQLite gives up at once where somebody writes just now, if it is not told to wait.
        let patience = ground.either(".timeout 30000\n", "");
        let insert = format!("{patience}INSERT INTO {jobs} (prompt) VALUES ('from a shell {calls}');");
        ground.shell(&insert).expect("inserted");
        mill.until_asked(calls).await;
    }
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "3").await;
    let ran = daemon.stop().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.line("SELECT count(*) FROM workers").await, "0", "a clean end takes its row along");
}

async fn a_killed_daemon_loses_no_job_and_its_successor_goes_on_at_once(ground: &Ground) {
    let mill = Mill::new(ground).await;
    for job in 0..20 {
        mill.insert(&[&format!("{job} [[tokens 40]] [[pace 2s]]"), &format!("{job} quick")]).await;
    }
    let daemon = mill.start();
    mill.until_asked(40).await;
    mill.until("SELECT count(*) FROM results", "20").await;
    daemon.kill().await;
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'running'").await, "20");
    // The slow ones hang in the first life only.
    mill.api.reset();
    ground.run("UPDATE queues SET paused = paused").await;
    let successor = mill.start();
    mill.until("SELECT count(*) FROM job_state WHERE claims > 1", "20").await;
    assert_eq!(
        ground.line("SELECT count(*) FROM calls WHERE error_type = 'lost'").await,
        "20",
        "nobody knows whether they were answered"
    );
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "40").await;
    assert_eq!(successor.stop().await.code, 0);
    mill.holds().await;
}

async fn what_a_killed_daemon_had_heard_is_gone_on_with(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__CHECKPOINT_SECONDS", "0.05");
    // Two thirds come at once, then nothing; of the second half of a cut answer too.
    ground
        .run("INSERT INTO jobs (prompt) VALUES ('[[seed ask]] [[tokens 1500]] [[hang after=1000 x1]]')")
        .await;
    ground.run("INSERT INTO jobs (prompt, max_tokens) VALUES ('[[seed go on]] [[tokens 2900]] [[hang after=1500 skip=1 x1]]', 1000)").await;
    let daemon = mill.start();
    mill.until(
        "SELECT count(DISTINCT job_id) FROM checkpoints WHERE part > 0 AND (SELECT count(*) FROM calls) = 1",
        "2",
    )
    .await;
    daemon.kill().await;
    let kept = ground.line("SELECT count(*) FROM checkpoints WHERE part = 0").await;
    assert_eq!(kept, "2");
    let successor = mill.start();
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "2").await;
    assert_eq!(successor.stop().await.code, 0);
    assert_eq!(
        ground.lines("SELECT job_id, kind, error_type FROM calls ORDER BY job_id, claim, seq").await,
        ["1|ask|lost", "1|resume|NULL", "2|ask|NULL", "2|continue|lost", "2|resume|NULL"]
    );
    for (job, seed, tokens) in [(1, "ask", 1500), (2, "go on", 2900)] {
        let text = ground.line(&format!("SELECT text FROM results WHERE job_id = {job}")).await;
        assert!(text == promptmill::stand_in::text(seed, tokens), "{seed} is not whole, letter for letter");
    }
    assert_eq!(ground.line("SELECT count(*) FROM checkpoints").await, "0");
    mill.holds().await;
}

async fn a_dead_workers_jobs_are_taken_over_after_its_lease(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "2");
    mill.insert(&["left behind"]).await;
    ground.run("INSERT INTO workers (host, boot, pid, pid_started, version) VALUES ('elsewhere', 'b', 1, 1, '0')").await;
    ground
        .run("UPDATE job_state SET state = 'running', claims = 1, claimed_by = (SELECT max(id) FROM workers)")
        .await;
    let daemon = mill.start();
    mill.until("SELECT outcome FROM results", "complete").await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.line("SELECT count(*) FROM workers").await, "0");
    assert_eq!(ground.line("SELECT claim, error_type FROM calls WHERE error_type = 'lost'").await, "1|lost");
}

async fn a_stop_lets_calls_finish_and_gives_the_rest_back_without_a_failure(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__DRAIN_SECONDS", "1");
    mill.insert(&[
        "[[seed f]] [[tokens 20]] [[delay 300ms]]",
        "[[seed s]] [[tokens 4000]] [[delta 100]] [[pace 400ms]]",
    ])
    .await;
    let daemon = mill.start();
    mill.until_asked(2).await;
    mill.insert(&["too late"]).await;
    daemon.terminate();
    let ran = daemon.ended().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let states = ground.lines("SELECT state, failures FROM job_state ORDER BY job_id").await;
    assert_eq!(states[..2], ["done|0", "pending|0"]);
    assert_eq!(
        ground.line("SELECT partial, error_type FROM calls WHERE job_id = 2").await,
        ground.either("1|stopped", "t|stopped")
    );
    assert_eq!(
        ground.line("SELECT reason FROM job_state WHERE job_id = 2").await,
        "its worker was shut down"
    );
    mill.holds().await;
}

async fn a_cancelled_jobs_running_call_is_hung_up_and_what_was_said_is_kept(ground: &Ground) {
    let mill = Mill::new(ground).await;
    mill.insert(&["[[seed c]] [[tokens 900]] [[delta 100]] [[pace 1s]]"]).await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    // Some of the answer has come when the first event is seen; a cancel before that keeps nothing.
    tokio::time::timeout(Duration::from_secs(30), async {
        while mill.api.counts().in_flight == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it streams");
    mill.until("SELECT state FROM job_state", "running").await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    assert_eq!(ground.line("SELECT outcome FROM results").await, "cancelled");
    mill.until("SELECT count(*) FROM calls WHERE late", "1").await;
    mill.until("SELECT calls FROM results", "1").await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.line("SELECT outcome, calls FROM results").await, "cancelled|1");
    assert_eq!(mill.api.counts().hung_up, 1);
    mill.holds().await;
}

async fn a_job_that_is_deleted_while_it_runs_leaves_nothing_behind(ground: &Ground) {
    let mill = Mill::new(ground).await;
    mill.insert(&["[[tokens 900]] [[delta 100]] [[pace 1s]]"]).await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    ground.run("DELETE FROM jobs").await;
    mill.insert(&["the next one"]).await;
    mill.until("SELECT job_id, outcome FROM results", "2|complete").await;
    let ran = daemon.stop().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.line("SELECT count(*) FROM calls WHERE job_id = 1").await, "0");
    mill.holds().await;
}

async fn two_daemons_take_no_job_twice(ground: &Ground) {
    let mill = Mill::new(ground).await;
    let values: Vec<String> = (0..400).map(|job| format!("('job {job} [[words 3]]')")).collect();
    ground.run(&format!("INSERT INTO jobs (prompt) VALUES {}", values.join(","))).await;
    let (one, two) = (mill.start(), mill.start());
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "400").await;
    for ran in [one.stop().await, two.stop().await] {
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    assert_eq!(mill.api.counts().total, 400);
    assert_eq!(ground.line("SELECT max(claims) FROM job_state").await, "1");
    mill.ledger_is_the_stand_ins().await;
}

async fn a_queue_that_may_run_nothing_holds_no_drain_up(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ground.run("INSERT INTO jobs (prompt, queue) VALUES ('goes', 'default'), ('stays', 'none')").await;
    ground.run("UPDATE queues SET max_running = 0 WHERE name = 'none'").await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("left: 1 in paused queues"), "{}", ran.stderr);
}

async fn priorities_pauses_and_times_are_kept(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__CONCURRENCY", "1");
    let later = ground.at(3600);
    ground.run("INSERT INTO jobs (prompt, priority) VALUES ('low', 0), ('high', 9), ('middle', 5)").await;
    ground.run("INSERT INTO jobs (prompt, queue) VALUES ('paused', 'night')").await;
    ground.run("UPDATE queues SET paused = TRUE WHERE name = 'night'").await;
    ground.run(&format!("INSERT INTO jobs (prompt, run_at) VALUES ('later', {later})")).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let order =
        ground.lines("SELECT j.prompt FROM results r JOIN jobs j ON j.id = r.job_id ORDER BY r.seq").await;
    assert_eq!(order, ["high", "middle", "low"]);
    assert!(ran.stderr.contains("1 scheduled for later"), "{}", ran.stderr);
    ground.run("UPDATE job_state SET state = 'pending' WHERE state = 'scheduled'").await;
    ground.run("UPDATE queues SET paused = FALSE").await;
    mill.drain().await;
    assert_eq!(ground.line("SELECT count(*) FROM results WHERE outcome = 'complete'").await, "5");
}

async fn deadlines_end_what_waits_and_what_runs(ground: &Ground) {
    let mill = Mill::new(ground).await;
    ground.run(r#"INSERT INTO jobs (prompt, policy) VALUES ('[[hang]]', '{"deadline_seconds":2}')"#).await;
    let daemon = mill.start();
    mill.until("SELECT outcome FROM results", "expired").await;
    mill.until("SELECT count(*) FROM calls WHERE late", "1").await;
    assert_eq!(daemon.stop().await.code, 0);
    mill.holds().await;
}

async fn a_job_run_again_is_a_run_of_its_own(ground: &Ground) {
    let mill = Mill::new(ground).await;
    mill.insert(&["[[seed a]] [[tokens 30]]"]).await;
    mill.drain().await;
    ground.run("UPDATE job_state SET state = 'pending'").await;
    assert_eq!(ground.line("SELECT count(*) FROM results").await, "0");
    mill.drain().await;
    assert_eq!(ground.line("SELECT run, calls, outcome FROM results").await, "2|1|complete");
    assert_eq!(ground.line("SELECT count(*) FROM calls").await, "2", "the ledger keeps both");
    assert!(matches!(ground.kind(), Kind::Sqlite | Kind::Postgres));
}
