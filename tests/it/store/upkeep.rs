//! Beats, rescue, deadlines, promotion, counts, and the knock of an INSERT.

use std::sync::Arc;
use std::time::{Duration, Instant};

use promptmill::domain::job::Lease;
use promptmill::domain::ledger::{Call, Checkpoint, Release};
use promptmill::store::{Backlog, Rescued, Wanted};

use super::{Bench, answer, back, call, ids, job, jobs, one_job};
use crate::support::{Ground, Kind, on_both};

on_both!(
    a_beat_goes_up_and_says_when_the_worker_is_gone,
    a_rescue_takes_the_jobs_of_a_dead_worker_and_writes_the_lost_call,
    a_job_that_worker_after_worker_dies_of_is_quarantined,
    progress_and_a_living_worker_clear_a_job_of_suspicion,
    one_suspect_at_a_time_is_claimed,
    a_running_job_that_is_cancelled_leaves_a_lost_call_until_its_worker_speaks,
    a_call_that_comes_after_the_rescue_takes_the_place_of_the_lost_one,
    the_rescue_folds_what_was_kept_of_a_stream_into_the_lost_call,
    parts_of_a_stream_are_kept_once_and_only_by_the_holder,
    a_calls_row_makes_its_parts_superfluous,
    jobs_of_a_worker_without_a_row_are_found,
    a_deadline_ends_jobs_wherever_they_are,
    a_round_without_work_calls_no_trigger_on_results,
    due_jobs_become_pending,
    the_backlog_counts_each_job_once,
    what_is_due_soon_behind_a_blocked_key_is_not_waited_for,
    an_insert_by_another_program_is_noticed,
);

async fn a_beat_goes_up_and_says_when_the_worker_is_gone(ground: &Ground) {
    let bench = Bench::on(ground).await;
    assert!(bench.store.beat(bench.worker, 3, false).await.expect("a beat"));
    assert_eq!(
        ground.line("SELECT beat, running, host, default_model FROM workers").await,
        "1|3|here|default-model"
    );
    ground.run("DELETE FROM workers").await;
    assert!(!bench.store.beat(bench.worker, 3, false).await.expect("a beat"));
}

async fn a_rescue_takes_the_jobs_of_a_dead_worker_and_writes_the_lost_call(ground: &Ground) {
    jobs(ground, 3, "queue", "'default'").await;
    let (dead, alive) = (Bench::on(ground).await, Bench::on(ground).await);
    let mine = alive.lease().await;
    let lost = dead.claim(5).await;
    dead.append(&lost[0].lease, &call(1)).await;
    let peers = alive.store.peers(alive.worker).await.expect("peers");
    assert_eq!(
        peers.iter().map(|peer| (peer.id, peer.beat, peer.pid)).collect::<Vec<_>>(),
        [(dead.worker, 0, 7)]
    );

    assert_eq!(alive.store.rescue(dead.worker, 1).await.expect("a rescue").len(), 1);
    assert_eq!(ground.line("SELECT count(*) FROM workers").await, "2", "it still holds one");
    assert_eq!(alive.store.rescue(dead.worker, 10).await.expect("a rescue").len(), 1);
    assert_eq!(ground.line("SELECT count(*) FROM workers").await, "1");
    assert_eq!(
        ground.lines("SELECT job_id, state, claims, crashes FROM job_state ORDER BY job_id").await,
        ["1|running|1|0", "2|pending|2|0", "3|pending|2|1"],
        "what was appended is progress"
    );
    assert_eq!(
        ground.lines("SELECT job_id, claim, seq, run, error_type FROM calls ORDER BY job_id, seq").await,
        ["2|1|1|1|NULL", "2|1|2|1|lost", "3|1|1|1|lost"]
    );
    let leases: Vec<_> = lost.iter().map(|got| got.lease).chain([mine]).collect();
    let gone = alive.store.lost(&leases).await.expect("an answer");
    assert_eq!(gone.iter().map(job).collect::<Vec<_>>(), [2, 3]);
}

/// A worker claims and dies.
async fn die(ground: &Ground) -> Vec<Rescued> {
    let bench = Bench::on(ground).await;
    bench.lease().await;
    bench.store.rescue(bench.worker, 10).await.expect("a rescue")
}

async fn a_job_that_worker_after_worker_dies_of_is_quarantined(ground: &Ground) {
    one_job(ground).await;
    for death in 1..5 {
        assert!(!die(ground).await[0].quarantined, "death {death}");
        let state = ground.line("SELECT state, crashes, reason FROM job_state").await;
        assert_eq!(state, format!("pending|{death}|its worker vanished"));
    }
    assert!(die(ground).await[0].quarantined);
    assert_eq!(
        ground.line("SELECT state, claims, claimed_by, reason FROM job_state").await,
        "done|10|NULL|NULL"
    );
    assert_eq!(
        ground
            .line("SELECT outcome, error_type, calls, text, error LIKE '%died 5 times%' FROM results")
            .await,
        ground.either("quarantined|quarantined|5|NULL|1", "quarantined|quarantined|5|NULL|t")
    );
    ground.run("UPDATE job_state SET state = 'pending'").await;
    assert_eq!(ground.line("SELECT crashes FROM job_state").await, "0", "a run again starts clean");
}

async fn progress_and_a_living_worker_clear_a_job_of_suspicion(ground: &Ground) {
    one_job(ground).await;
    let crashes = "SELECT crashes FROM job_state";
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    bench.store.checkpoint(&[part(&lease, 0, HEAD), part(&lease, 1, "as far")]).await.expect("kept");
    bench.store.rescue(bench.worker, 10).await.expect("a rescue");
    assert_eq!(ground.line(crashes).await, "0", "text came");
    for (text, counted) in [("as far", "1"), ("as", "2"), ("as far as", "0")] {
        let bench = Bench::on(ground).await;
        let lease = bench.lease().await;
        bench.store.checkpoint(&[part(&lease, 0, HEAD), part(&lease, 1, text)]).await.expect("kept");
        bench.store.rescue(bench.worker, 10).await.expect("a rescue");
        assert_eq!(ground.line(crashes).await, counted, "{text}: no longer than before is no progress");
    }

    die(ground).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    bench.append(&lease, &call(1)).await;
    assert_eq!(ground.line(crashes).await, "0", "a call in the ledger is progress");
    ground.run("UPDATE job_state SET crashes = 2").await;
    bench.release(Release { call: None, ..back(lease, None) }).await;
    assert_eq!(ground.line(crashes).await, "2", "a job put back without a call has got no further");
    let lease = bench.lease().await;
    bench.release(back(lease, None)).await;
    assert_eq!(ground.line(crashes).await, "0");

    let lease = bench.lease().await;
    bench.store.rescue(bench.worker, 10).await.expect("a rescue");
    assert_eq!(ground.line(crashes).await, "1");
    bench.store.absolve(&[lease]).await.expect("absolved");
    assert_eq!(ground.line(crashes).await, "0", "its worker lives");
}

async fn one_suspect_at_a_time_is_claimed(ground: &Ground) {
    jobs(ground, 6, "batch", "'b'").await;
    jobs(ground, 3, "batch", "'c'").await;
    ground.run("UPDATE job_state SET crashes = 3 WHERE job_id IN (1, 2, 3, 8)").await;
    let bench = Bench::on(ground).await;
    let without = Wanted { suspect: false, ..bench.wanted(10) };
    let mut ids: Vec<i64> =
        bench.store.claim(&without).await.expect("a claim").iter().map(|got| got.lease.job.0).collect();
    ids.sort_unstable();
    assert_eq!(ids, [4, 5, 6, 7, 9]);
    for _ in 0..4 {
        let got = bench.claim(10).await;
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].tally.crashes, 3);
    }
    assert!(bench.claim(10).await.is_empty());
}

async fn a_running_job_that_is_cancelled_leaves_a_lost_call_until_its_worker_speaks(ground: &Ground) {
    jobs(ground, 2, "queue", "'default'").await;
    let bench = Bench::on(ground).await;
    let held = bench.claim(2).await;
    let (asked, idle) = (held[0].lease, held[1].lease);
    bench.store.checkpoint(&[part(&asked, 0, HEAD), part(&asked, 1, "Once")]).await.expect("kept");
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    let ledger = "SELECT job_id, claim, seq, kind, error_type, worker FROM calls ORDER BY job_id";
    let worker = bench.worker;
    assert_eq!(
        ground.lines(ledger).await,
        [format!("1|1|1|continue|lost|{worker}"), format!("2|1|1|ask|lost|{worker}")],
        "whatever becomes of the worker, no call is unknown"
    );
    assert_eq!(ground.lines("SELECT calls FROM results").await, ["1", "1"]);
    assert_eq!(ground.line("SELECT count(*) FROM checkpoints").await, "0");
    bench.append(&asked, &call(1)).await;
    bench.store.fill(&asked, &answer("Once upon")).await.expect("filled");
    bench.store.fill(&idle, &answer("")).await.expect("filled");
    assert_eq!(ground.lines(ledger).await, [format!("1|1|1|ask|NULL|{worker}")]);
    assert_eq!(
        ground.lines("SELECT job_id, calls, output_tokens, text FROM results ORDER BY job_id").await,
        ["1|1|20|Once upon", "2|0|0|"]
    );
}

async fn a_call_that_comes_after_the_rescue_takes_the_place_of_the_lost_one(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    bench.store.rescue(bench.worker, 10).await.expect("a rescue");
    assert!(bench.append(&lease, &call(1)).await, "it is late");
    assert!(bench.append(&lease, &call(1)).await, "and written once");
    assert_eq!(
        ground.line("SELECT seq, late, error_type, output_tokens FROM calls").await,
        ground.either("1|1|NULL|20", "1|t|NULL|20")
    );
}

const HEAD: &str =
    r#"{"kind":"continue","model":"m","max_tokens":10,"messages":3,"request":"{\"how\":\"anchor\"}"}"#;

fn part(lease: &Lease, part: i32, content: &str) -> Arc<Checkpoint> {
    Arc::new(Checkpoint { lease: *lease, seq: 1, part, content: content.to_owned() })
}

async fn the_rescue_folds_what_was_kept_of_a_stream_into_the_lost_call(ground: &Ground) {
    jobs(ground, 2, "queue", "'default'").await;
    let bench = Bench::on(ground).await;
    let held = bench.claim(2).await;
    let (whole, gap) = (held[0].lease, held[1].lease);
    let parts = [part(&whole, 0, HEAD), part(&whole, 1, "Once \"upon"), part(&whole, 2, "\na time")];
    bench.store.checkpoint(&parts).await.expect("kept");
    bench.store.checkpoint(&[part(&gap, 0, HEAD), part(&gap, 2, "no beginning")]).await.expect("kept");
    bench.store.rescue(bench.worker, 10).await.expect("a rescue");
    assert_eq!(
        ground.lines("SELECT kind, model, max_tokens, messages, CAST(request AS text), output_tokens, error_type FROM calls ORDER BY job_id").await,
        [r#"continue|m|10|3|{"how":"anchor"}|5|lost"#, "ask|NULL|NULL|NULL|NULL|0|lost"]
    );
    let contents = ground.lines("SELECT CAST(content AS text) FROM calls WHERE partial").await;
    assert_eq!(contents.len(), 1, "a text with a gap is no text");
    let blocks = promptmill::domain::reply::Block::read_all(&contents[0]);
    assert_eq!(blocks[0].text.as_deref(), Some("Once \"upon\na time"));
    assert_eq!(ground.line("SELECT count(*) FROM checkpoints").await, "0");
}

async fn parts_of_a_stream_are_kept_once_and_only_by_the_holder(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    let parts = [part(&lease, 0, HEAD), part(&lease, 1, "one")];
    assert_eq!(bench.store.checkpoint(&parts).await.expect("kept"), [lease]);
    assert_eq!(bench.store.checkpoint(&parts).await.expect("kept again"), [lease]);
    assert_eq!(ground.lines("SELECT part, content FROM checkpoints WHERE part > 0").await, ["1|one"]);
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    assert!(bench.store.checkpoint(&[part(&lease, 2, "late")]).await.expect("an answer").is_empty());
    assert_eq!(ground.line("SELECT count(*) FROM checkpoints WHERE part > 1").await, "0");
}

async fn a_calls_row_makes_its_parts_superfluous(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    bench.store.checkpoint(&[part(&lease, 0, HEAD), part(&lease, 1, "one")]).await.expect("kept");
    bench.append(&lease, &Call { checkpointed: true, ..call(1) }).await;
    assert_eq!(ground.line("SELECT count(*) FROM checkpoints").await, "0");
    bench.store.checkpoint(&[part(&lease, 2, "a straggler")]).await.expect("an answer");
    assert_eq!(ground.line("SELECT count(*) FROM checkpoints").await, "0");
}

async fn jobs_of_a_worker_without_a_row_are_found(ground: &Ground) {
    one_job(ground).await;
    let (gone, alive) = (Bench::on(ground).await, Bench::on(ground).await);
    gone.lease().await;
    ground.run(&format!("DELETE FROM workers WHERE id = {}", gone.worker)).await;
    let peers = alive.store.peers(alive.worker).await.expect("peers");
    assert_eq!(peers.iter().map(|peer| peer.id).collect::<Vec<_>>(), [gone.worker]);
    assert_eq!(alive.store.rescue(gone.worker, 10).await.expect("a rescue").len(), 1);
    assert!(alive.store.peers(alive.worker).await.expect("peers").is_empty());
}

async fn a_round_without_work_calls_no_trigger_on_results(ground: &Ground) {
    // SQLite has triggers for rows alone; there is one all the same.
    ground
        .run(ground.either(
            "CREATE TABLE heard (n INTEGER);
             CREATE TRIGGER hear AFTER INSERT ON results BEGIN INSERT INTO heard VALUES (1); END",
            "CREATE TABLE heard (n integer);
             CREATE FUNCTION hear() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
                 AS $$ BEGIN INSERT INTO heard VALUES (1); RETURN NULL; END $$;
             CREATE TRIGGER hear AFTER INSERT ON results FOR EACH STATEMENT EXECUTE FUNCTION hear()",
        ))
        .await;
    jobs(ground, 1, "policy", r#"'{"deadline_seconds": 3600}'"#).await;
    let bench = Bench::on(ground).await;
    bench.store.promote(10).await.expect("an answer");
    bench.store.promote_answered(10).await.expect("an answer");
    assert!(bench.store.expire(10).await.expect("an answer").is_empty());
    assert_eq!(ground.line("SELECT count(*) FROM heard").await, "0");
    ground.run(&format!("UPDATE job_state SET deadline_at = {}", ground.at(-1))).await;
    assert_eq!(bench.store.expire(10).await.expect("an answer").len(), 1);
    assert_eq!(ground.line("SELECT count(*) FROM heard").await, "1");
}

async fn a_deadline_ends_jobs_wherever_they_are(ground: &Ground) {
    jobs(ground, 3, "policy", r#"'{"deadline_seconds": 3600}'"#).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    bench.append(&lease, &call(1)).await;
    assert!(bench.store.expire(10).await.expect("an answer").is_empty());
    ground.run(&format!("UPDATE job_state SET deadline_at = {} WHERE job_id < 3", ground.at(-1))).await;
    let mut ended = bench.store.expire(10).await.expect("an answer");
    ended.sort();
    assert_eq!(ended.iter().map(|job| job.0).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(
        ground
            .lines(
                "SELECT job_id, outcome, error, calls, output_tokens, request_id FROM results ORDER BY job_id"
            )
            .await,
        [
            "1|expired|its deadline passed while it was running|2|20|req_1",
            "2|expired|its deadline passed while it was pending|0|0|NULL",
        ]
    );
    assert_eq!(
        ground.lines("SELECT state, claims FROM job_state ORDER BY job_id").await,
        ["done|2", "done|1", "pending|0"]
    );
    assert!(bench.store.fill(&lease, &answer("as far as it went")).await.expect("an answer"));
    assert_eq!(
        ground.line("SELECT text, calls FROM results WHERE job_id = 1").await,
        "as far as it went|1",
        "its worker made no call beyond the first"
    );
}

async fn due_jobs_become_pending(ground: &Ground) {
    jobs(ground, 3, "run_at", &ground.at(3600)).await;
    let bench = Bench::on(ground).await;
    let due = bench.store.next_due().await.expect("an answer").expect("a time");
    assert!(due > Duration::from_mins(50) && due <= Duration::from_hours(1), "{due:?}");
    assert_eq!(bench.store.promote(10).await.expect("an answer"), 0);
    // Into the past without a person's hand: the guard would make them pending at once.
    ground
        .run(&format!(
            "UPDATE job_state SET available_at = {}, claims = claims + 1 WHERE job_id < 3",
            ground.at(-5)
        ))
        .await;
    assert_eq!(bench.store.next_due().await.expect("an answer"), Some(Duration::ZERO));
    assert_eq!(bench.store.promote(1).await.expect("an answer"), 1);
    assert_eq!(bench.store.promote(10).await.expect("an answer"), 1);
    assert_eq!(ids(&bench.claim(10).await), [1, 2]);
}

async fn the_backlog_counts_each_job_once(ground: &Ground) {
    jobs(ground, 1, "queue", "'run'").await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    jobs(ground, 2, "queue", "'default'").await;
    jobs(ground, 3, "model", "'down'").await;
    jobs(ground, 4, "batch", "'bad'").await;
    jobs(ground, 5, "run_at", &ground.at(60)).await;
    jobs(ground, 6, "run_at", &ground.at(7200)).await;
    jobs(ground, 7, "queue", "'still'").await;
    ground.run("UPDATE queues SET paused = TRUE WHERE name = 'still'").await;
    let mut wanted = bench.wanted(1);
    wanted.blocked.models = vec![super::of_default("down")];
    wanted.blocked.batches = vec![("default".to_owned(), "bad".to_owned())];
    let horizon = Duration::from_mins(15);
    let expected = Backlog { pending: 2, blocked: 7, running: 1, soon: 5, later: 6, paused: 7, waiting: 0 };
    assert_eq!(bench.store.backlog(&wanted, horizon).await.expect("counts"), expected);
    wanted.queues = vec!["run".to_owned()];
    let expected = Backlog { running: 1, ..Backlog::default() };
    assert_eq!(bench.store.backlog(&wanted, horizon).await.expect("counts"), expected);
    bench.release(back(lease, Some(Duration::from_secs(5)))).await;
    let expected = Backlog { soon: 1, ..Backlog::default() };
    assert_eq!(bench.store.backlog(&wanted, horizon).await.expect("counts"), expected);
}

async fn what_is_due_soon_behind_a_blocked_key_is_not_waited_for(ground: &Ground) {
    for queue in ["'a'", "'default'"] {
        jobs(ground, 2, "queue", queue).await;
        jobs(ground, 3, "queue, run_at", &format!("{queue}, {}", ground.at(60))).await;
        jobs(ground, 4, "queue, run_at", &format!("{queue}, {}", ground.at(7200))).await;
    }
    let bench = Bench::on(ground).await;
    let mut wanted = bench.wanted(1);
    wanted.profiles.insert("a".to_owned(), "1".to_owned());
    let count = async |wanted: &Wanted| {
        let left = bench.store.backlog(wanted, Duration::from_mins(15)).await.expect("counts");
        (left.pending, left.blocked, left.soon, left.later)
    };
    assert_eq!(count(&wanted).await, (4, 0, 6, 8));
    wanted.blocked.profiles.push("1".to_owned());
    assert_eq!(count(&wanted).await, (2, 5, 3, 8));
    // A model of it says nothing about what is scheduled: another may be asked by then.
    wanted.blocked.profiles.clear();
    wanted.blocked.models.push(("1".to_owned(), "default-model".to_owned()));
    assert_eq!(count(&wanted).await, (2, 2, 6, 8));
}

async fn an_insert_by_another_program_is_noticed(ground: &Ground) {
    let long = Duration::from_mins(1);
    let bench = Bench::on(ground).await;
    // The first wait ends at once, or when the listener stands.
    bench.store.changed(long).await;
    bench.store.sleep(bench.worker, true).await.expect("an answer");
    if ground.kind() == Kind::Sqlite {
        bench.store.changed(Duration::ZERO).await;
    }
    let quiet = Instant::now();
    bench.store.changed(Duration::from_millis(120)).await;
    assert!(quiet.elapsed() >= Duration::from_millis(120), "nothing has happened");

    let insert =
        format!("INSERT INTO {} (prompt) VALUES ('say hello')", ground.either("jobs", &ground.table("jobs")));
    ground.shell(&insert).expect("the shell inserts");
    let began = Instant::now();
    bench.store.changed(long).await;
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    assert_eq!(bench.claim(5).await.len(), 1);
}
