//! What done jobs lose with time: what is due, what goes with it, and what never goes.

use std::sync::Arc;
use std::time::Duration;

use promptmill::domain::job::JobId;
use promptmill::domain::retention::{Among, DoneJob, Erasure, Retention, Rules, Sweep};
use promptmill::store::{Migrate, Store, open};
use promptmill::worker::retention::Way;
use tokio_util::sync::CancellationToken;

use super::{Bench, answer, call, end, jobs, settings};
use crate::support::{Ground, Kind, on_both};

on_both! {
    old_jobs_go_with_everything_and_young_ones_stay,
    prompts_go_first_and_what_was_paid_for_stays,
    jobs_that_are_not_done_are_never_touched,
    each_queue_keeps_its_own_time,
    a_job_run_again_between_look_and_step_stays,
    a_call_that_comes_after_its_job_is_gone_is_taken_for_late_and_leaves_nothing,
    results_out_of_order_are_found,
    many_jobs_go_in_many_steps,
    what_one_daemon_did_the_other_finds_done,
    a_clock_that_was_ahead_stops_nothing,
}

const DAY: Duration = Duration::from_hours(24);

fn sweep(what: Erasure, days: u32) -> Sweep {
    Sweep { what, age: DAY * days, queues: Among::AllBut(Vec::new()) }
}

/// Ends a claimed job of each that is pending, so many days ago.
async fn done(ground: &Ground, bench: &Bench, days: i64) {
    for claimed in bench.claim(1000).await {
        bench.settle(vec![end(claimed.lease)]).await;
        let job = claimed.lease.job.0;
        ground
            .run(&format!(
                "UPDATE results SET finished_at = {} WHERE job_id = {job}",
                ground.at(-days * 86_400)
            ))
            .await;
    }
}

async fn go(store: &dyn Store, sweep: Sweep) -> u64 {
    Way::new(sweep).go(store, &CancellationToken::new()).await.expect("the way is gone")
}

async fn left(ground: &Ground) -> String {
    ground.lines("SELECT id FROM jobs ORDER BY id").await.join(" ")
}

const PARTS: [&str; 6] = ["jobs", "job_state", "results", "calls", "checkpoints", "tool_calls"];

async fn counts(ground: &Ground) -> Vec<String> {
    let mut counts = Vec::new();
    for part in PARTS {
        counts.push(ground.line(&format!("SELECT count(*) FROM {part}")).await);
    }
    counts
}

async fn old_jobs_go_with_everything_and_young_ones_stay(ground: &Ground) {
    let bench = Bench::on(ground).await;
    jobs(ground, 2, "key", "NULL").await;
    done(ground, &bench, 31).await;
    jobs(ground, 1, "queue", "'default'").await;
    done(ground, &bench, 29).await;
    ground
        .run(
            "INSERT INTO tool_calls (job_id, claim, seq, position, run, call_id, name, worker) SELECT id, 1, 1, 0, 1, 'toolu', 'weather', 7 FROM jobs;
             INSERT INTO checkpoints (job_id, claim, seq, part, content) SELECT id, 1, 9, 1, 'left over' FROM jobs",
        )
        .await;
    assert_eq!(counts(ground).await, ["3"; 6]);
    assert_eq!(go(&*bench.store, sweep(Erasure::Jobs, 30)).await, 2);
    assert_eq!(left(ground).await, "3");
    assert_eq!(counts(ground).await, ["1"; 6]);
    assert_eq!(go(&*bench.store, sweep(Erasure::Jobs, 30)).await, 0);
}

async fn prompts_go_first_and_what_was_paid_for_stays(ground: &Ground) {
    let bench = Bench::on(ground).await;
    jobs(ground, 1, "system, params, metadata", "'be brief', '{\"top_k\": 3}', '{\"mine\": 1}'").await;
    jobs(ground, 1, "policy", "'{\"max_failures\": 2}'").await;
    done(ground, &bench, 8).await;
    assert_eq!(go(&*bench.store, sweep(Erasure::Prompts, 7)).await, 2);
    assert_eq!(
        ground.lines("SELECT id, prompt, system, params FROM jobs ORDER BY id").await,
        ["1|NULL|NULL|NULL", "2|NULL|NULL|NULL"]
    );
    let kept = "SELECT count(*) FROM jobs WHERE redacted_at IS NOT NULL AND (metadata IS NOT NULL OR policy IS NOT NULL)";
    assert_eq!(ground.line(kept).await, "2");
    assert_eq!(
        ground.line("SELECT count(*) FROM results WHERE text = 'hi' AND content IS NOT NULL").await,
        "2"
    );
    assert_eq!(ground.line("SELECT count(*) FROM calls WHERE output_tokens = 20").await, "2");
    assert_eq!(go(&*bench.store, sweep(Erasure::Prompts, 7)).await, 0, "once");
    assert_eq!(go(&*bench.store, sweep(Erasure::Jobs, 7)).await, 2, "and then they go");
}

async fn jobs_that_are_not_done_are_never_touched(ground: &Ground) {
    let bench = Bench::on(ground).await;
    jobs(ground, 1, "queue", "'default'").await;
    let running = bench.lease().await;
    jobs(ground, 2, "run_at", &ground.at(600)).await;
    ground.run("UPDATE job_state SET state = 'pending' WHERE job_id = 2").await;
    for what in [Erasure::Prompts, Erasure::Jobs] {
        assert_eq!(go(&*bench.store, sweep(what, 0)).await, 0);
        let all: Vec<DoneJob> = (1..=3).map(|job| DoneJob { job: JobId(job), seq: job, bytes: 0 }).collect();
        let erased = bench.store.erase(what, &all).await.expect("an answer").expect("nobody else is at it");
        assert_eq!(erased.jobs, []);
    }
    assert_eq!(ground.line("SELECT count(*) FROM jobs WHERE prompt IS NOT NULL").await, "3");
    bench.settle(vec![end(running)]).await;
    assert_eq!(go(&*bench.store, sweep(Erasure::Jobs, 0)).await, 1);
    assert_eq!(left(ground).await, "2 3");
}

async fn each_queue_keeps_its_own_time(ground: &Ground) {
    let bench = Bench::on(ground).await;
    for queue in ["usual", "short", "for-ever"] {
        jobs(ground, 1, "queue", &format!("'{queue}'")).await;
    }
    done(ground, &bench, 10).await;
    let retention = |prompts: Option<u32>, jobs: Option<u32>| Retention {
        prompts: prompts.map(|days| DAY * days),
        jobs: jobs.map(|days| DAY * days),
    };
    let queues = [("short", retention(None, Some(5))), ("for-ever", retention(None, None))];
    let rules = Rules {
        all: retention(Some(9), Some(30)),
        queues: queues.map(|(name, queue)| (name.to_owned(), queue)).into(),
    };
    for sweep in rules.sweeps() {
        go(&*bench.store, sweep).await;
    }
    assert_eq!(
        ground.lines("SELECT queue, prompt FROM jobs ORDER BY id").await,
        ["usual|NULL", "for-ever|say hello"]
    );
}

async fn a_job_run_again_between_look_and_step_stays(ground: &Ground) {
    let bench = Bench::on(ground).await;
    jobs(ground, 2, "queue", "'default'").await;
    done(ground, &bench, 31).await;
    let due = bench.store.due(&sweep(Erasure::Jobs, 30), 0, 100).await.expect("a look");
    assert_eq!(due.jobs.iter().map(|due| due.job.0).collect::<Vec<_>>(), [1, 2]);
    ground.run("UPDATE job_state SET state = 'pending'").await;
    let erased = bench.store.erase(Erasure::Jobs, &due.jobs).await.expect("a step").expect("alone");
    assert_eq!(erased.jobs, [], "they are pending again");
    // Both are done again: one by a new answer, one by a cancel.
    let again = bench.lease().await;
    bench.settle(vec![end(again)]).await;
    ground.run("UPDATE job_state SET state = 'cancelled' WHERE state <> 'done'").await;
    for what in [Erasure::Prompts, Erasure::Jobs] {
        let erased = bench.store.erase(what, &due.jobs).await.expect("a step").expect("alone");
        assert_eq!(erased.jobs, [], "these are other results");
    }
    assert_eq!(ground.line("SELECT count(*) FROM jobs WHERE prompt IS NOT NULL").await, "2");
}

async fn a_call_that_comes_after_its_job_is_gone_is_taken_for_late_and_leaves_nothing(ground: &Ground) {
    let bench = Bench::on(ground).await;
    jobs(ground, 1, "queue", "'default'").await;
    let lease = bench.lease().await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    assert_eq!(go(&*bench.store, sweep(Erasure::Jobs, 0)).await, 1);
    assert!(bench.append(&lease, &call(1)).await, "it is late");
    assert_eq!(bench.settle(vec![end(lease)]).await.lost, [lease]);
    assert!(!bench.store.fill(&lease, &answer("hi")).await.expect("an answer"));
    assert_eq!(counts(ground).await, ["0"; 6]);
}

async fn results_out_of_order_are_found(ground: &Ground) {
    let bench = Bench::on(ground).await;
    jobs(ground, 4, "queue", "'default'").await;
    done(ground, &bench, 31).await;
    // Written before the one after it, by a transaction that took long.
    let young = format!("UPDATE results SET finished_at = {} WHERE job_id = 2", ground.at(-86_400));
    ground.run(&young).await;
    let mut way = Way::new(sweep(Erasure::Jobs, 30));
    let stop = CancellationToken::new();
    assert_eq!(way.go(&*bench.store, &stop).await.expect("gone"), 3);
    assert_eq!(left(ground).await, "2");
    ground.run(&format!("UPDATE results SET finished_at = {}", ground.at(-31 * 86_400))).await;
    assert_eq!(way.go(&*bench.store, &stop).await.expect("gone"), 1, "the way went on from before it");
}

async fn many_jobs_go_in_many_steps(ground: &Ground) {
    let bench = Bench::on(ground).await;
    jobs(ground, 1000, "queue", "'default'").await;
    ground.run("UPDATE job_state SET state = 'cancelled' WHERE job_id <= 700").await;
    assert_eq!(go(&*bench.store, sweep(Erasure::Prompts, 0)).await, 700);
    assert_eq!(go(&*bench.store, sweep(Erasure::Jobs, 0)).await, 700);
    assert_eq!(ground.line("SELECT count(*), min(id) FROM jobs").await, "300|701");
}

async fn what_one_daemon_did_the_other_finds_done(ground: &Ground) {
    let one = Bench::on(ground).await;
    let other = Bench::on(ground).await;
    jobs(ground, 400, "queue", "'default'").await;
    ground.run("UPDATE job_state SET state = 'cancelled' WHERE job_id <= 300").await;
    let (here, there) =
        tokio::join!(go(&*one.store, sweep(Erasure::Jobs, 0)), go(&*other.store, sweep(Erasure::Jobs, 0)));
    assert_eq!(here + there, 300, "each job went once");
    assert_eq!(ground.line("SELECT count(*) FROM jobs").await, "100");
}

async fn a_clock_that_was_ahead_stops_nothing(ground: &Ground) {
    let bench = Bench::on(ground).await;
    jobs(ground, 600, "queue", "'default'").await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    ground.run(&format!("UPDATE results SET finished_at = {}", ground.at(-31 * 86_400))).await;
    let ahead = format!("UPDATE results SET finished_at = {} WHERE job_id <= 500", ground.at(999_999));
    ground.run(&ahead).await;
    assert_eq!(go(&*bench.store, sweep(Erasure::Jobs, 30)).await, 100);
    assert_eq!(ground.line("SELECT count(*), max(id) FROM jobs").await, "500|500");
}

/// One daemon erases at a time, and the lock is the schema's own and ends with the statement.
#[tokio::test]
async fn one_daemon_of_a_schema_erases_at_a_time() {
    let (ground, neighbour) = (Ground::postgres().await, Ground::postgres().await);
    let (bench, beside) = (Bench::on(&ground).await, Bench::on(&neighbour).await);
    for (ground, bench) in [(&ground, &bench), (&neighbour, &beside)] {
        jobs(ground, 1, "queue", "'default'").await;
        done(ground, bench, 1).await;
    }
    let schema = ground.schema().to_owned();
    let pool = Ground::postgres_pool(|options| options.options([("search_path", schema.as_str())])).await;
    let mut holder = pool.begin().await.expect("a transaction");
    sqlx::query("SELECT pg_advisory_xact_lock(1349676396, 'jobs'::regclass::oid::integer)")
        .execute(&mut *holder)
        .await
        .expect("the lock");
    let old = DoneJob { job: JobId(1), seq: 1, bytes: 0 };
    assert_eq!(bench.store.erase(Erasure::Jobs, &[old]).await.expect("an answer"), None);
    assert_eq!(go(&*bench.store, sweep(Erasure::Jobs, 0)).await, 0);
    assert_eq!(go(&*beside.store, sweep(Erasure::Jobs, 0)).await, 1, "another schema is another lock");
    holder.rollback().await.expect("the end");
    assert_eq!(go(&*bench.store, sweep(Erasure::Jobs, 0)).await, 1);
    pool.close().await;
    ground.close().await;
    neighbour.close().await;
}

/// A row that somebody holds is passed by, and looked at again the next time.
#[tokio::test]
async fn a_row_that_somebody_holds_stalls_nothing_and_is_not_forgotten() {
    for hold in
        ["SELECT FROM jobs WHERE id = 2 FOR UPDATE", "SELECT FROM job_state WHERE job_id = 2 FOR KEY SHARE"]
    {
        let ground = Ground::postgres().await;
        let bench = Bench::on(&ground).await;
        jobs(&ground, 3, "queue", "'default'").await;
        done(&ground, &bench, 1).await;
        let schema = ground.schema().to_owned();
        let pool = Ground::postgres_pool(|options| options.options([("search_path", schema.as_str())])).await;
        let mut holder = pool.begin().await.expect("a transaction");
        sqlx::query(hold).execute(&mut *holder).await.expect("the lock");
        let (mut way, stop) = (Way::new(sweep(Erasure::Jobs, 0)), CancellationToken::new());
        assert_eq!(way.go(&*bench.store, &stop).await.expect("gone"), 2, "{hold}");
        assert_eq!(left(&ground).await, "2");
        holder.rollback().await.expect("the end");
        assert_eq!(way.go(&*bench.store, &stop).await.expect("gone"), 1, "{hold}");
        pool.close().await;
        ground.close().await;
    }
}

/// The worker's role may erase and redact, and behind a pooler in transaction mode both work.
#[tokio::test]
async fn the_workers_role_erases_behind_a_pooler_too() {
    let ground = Ground::postgres().await;
    ground.grant_roles().await;
    let bench = Bench::on(&ground).await;
    jobs(&ground, 2, "queue", "'default'").await;
    done(&ground, &bench, 2).await;
    for (what, transaction_pooler) in
        [(Erasure::Prompts, false), (Erasure::Prompts, true), (Erasure::Jobs, true)]
    {
        let mut url = format!("{}?options[role]=promptmill_worker", ground.url());
        if transaction_pooler {
            // A pooler's server connections have the path of the role that logs in; here the URL stands for it.
            url = format!("{url}&options[search_path]={}", ground.schema());
        }
        let settings = promptmill::store::StoreSettings { transaction_pooler, ..settings(ground.schema()) };
        let opened = open(&url, &settings, Migrate::Never).await.expect("the worker may come in");
        let store: Arc<dyn Store> = opened.store;
        let expected = if what == Erasure::Prompts && transaction_pooler { 0 } else { 2 };
        assert_eq!(go(&*store, sweep(what, 1)).await, expected, "{what:?}");
    }
    assert_eq!(counts(&ground).await[..4], ["0"; 4]);
    ground.close().await;
}

/// What was erased cannot be read in the free pages of the file.
#[tokio::test]
async fn a_sqlite_file_does_not_hold_what_was_erased() {
    let ground = Ground::sqlite().await;
    assert_eq!(ground.kind(), Kind::Sqlite);
    let bench = Bench::on(&ground).await;
    let secret = "canary-of-a-prompt ".repeat(2_000);
    ground.run(&format!("INSERT INTO jobs (prompt) VALUES ('{secret}'), ('{secret}')")).await;
    done(&ground, &bench, 2).await;
    go(&*bench.store, sweep(Erasure::Prompts, 1)).await;
    ground.run("PRAGMA wal_checkpoint(TRUNCATE)").await;
    let file = std::fs::read(ground.file()).expect("the file");
    assert!(!file.windows(18).any(|bytes| bytes == b"canary-of-a-prompt"));
    ground.close().await;
}

/// The connection writes on for others, who would pay for it with every row they change.
#[tokio::test]
async fn an_erasure_that_fails_leaves_the_writer_as_it_was() {
    let ground = Ground::sqlite().await;
    jobs(&ground, 1, "queue", "'default'").await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    ground
        .run("CREATE TRIGGER no_delete BEFORE DELETE ON jobs BEGIN SELECT RAISE(ABORT, 'kept by law'); END")
        .await;
    let opened = open(&ground.url(), &settings(ground.schema()), Migrate::Never).await.expect("it is there");
    let promptmill::store::Database::Sqlite(store) = opened.database else { panic!("it is a file") };
    let due = store.due(&sweep(Erasure::Jobs, 0), 0, 100).await.expect("it is read").jobs;
    let refused = store.erase(Erasure::Jobs, &due).await.expect_err("the trigger refuses").to_string();
    assert!(refused.contains("kept by law"), "{refused}");
    let secure: i64 = sqlx::query_scalar("PRAGMA secure_delete")
        .fetch_one(&store.writer())
        .await
        .expect("the one connection that writes");
    assert_eq!(secure, 0);
    ground.close().await;
}
