//! How jobs end, are put back, and what is written down whatever happens.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use promptmill::domain::job::Lease;
use promptmill::domain::ledger::{Checkpoint, Settlement};
use promptmill::domain::outcome::Outcome;
use promptmill::store::StoreError;
use sqlx::{Connection as _, Executor as _, SqliteConnection};

use super::{Bench, answer, back, call, end, jobs, one_job};
use crate::support::{Ground, on_both};

on_both!(
    a_settle_writes_result_state_and_ledger,
    a_lost_lease_cannot_settle_but_its_call_is_kept,
    a_whole_answer_is_taken_from_a_worker_that_lost_its_lease,
    of_two_answers_to_one_job_in_a_batch_the_holders_is_taken,
    an_answer_that_comes_after_its_job_was_put_back_is_taken,
    an_answer_to_another_run_is_not_taken,
    what_somebody_may_have_gone_on_with_stays_when_the_late_call_comes,
    a_job_that_was_claimed_before_is_summed_up_from_its_ledger,
    a_settle_that_is_tried_again_is_done_once,
    a_settle_and_a_cancel_at_once_give_one_result,
    a_deleted_job_leaves_nothing_behind,
    a_release_puts_the_job_back_and_says_why,
    a_lost_lease_cannot_release,
    a_cancelled_job_is_filled_once,
    a_job_run_again_is_not_filled,
    what_the_answer_holds_is_kept_once_until_the_job_is_run_again,
    a_call_without_the_answers_request_id_keeps_what_it_said,
    a_call_keeps_what_it_said_where_the_answer_says_something_else_or_is_not_taken,
    running_again_keeps_the_ledger,
    refused_data_writes_nothing_and_says_so,
);

async fn a_settle_writes_result_state_and_ledger(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch, key) VALUES ('a', 'b', 'k'), ('b', NULL, NULL)").await;
    let bench = Bench::on(ground).await;
    let mut leases: Vec<Lease> = bench.claim(2).await.iter().map(|got| got.lease).collect();
    leases.sort_by_key(|lease| lease.job);
    let mut second = end(leases[1]);
    second.call = None;
    second.answer.failures = 4;
    let written = bench.settle(vec![second, end(leases[0])]).await;
    assert_eq!((written.done.len(), written.lost.len(), written.skipped.len()), (2, 0, 0));
    assert_eq!(
        ground
            .lines("SELECT job_id, run, batch, key, outcome, text, output_tokens, failures FROM results ORDER BY job_id")
            .await,
        ["1|1|b|k|complete|hi|20|0", "2|1|NULL|NULL|complete|hi|20|4"]
    );
    assert_eq!(
        ground.lines("SELECT state, claims, claimed_by, failures FROM job_state ORDER BY job_id").await,
        ["done|1|NULL|0", "done|1|NULL|4"]
    );
    assert_eq!(
        ground.lines("SELECT job_id, claim, seq, run, kind, late, worker, usage FROM calls").await,
        [format!(
            r#"1|1|1|1|ask|{}|{}|{{"input_tokens":10,"b":1,"a":2}}"#,
            ground.either("0", "f"),
            bench.worker
        )]
    );
    let recent = ground.either("> 1700000000000", "> now() - interval '1 minute'");
    let times = format!("SELECT count(*) FROM calls WHERE sent_at {recent} AND ended_at >= first_token_at");
    assert_eq!(ground.line(&times).await, "1");
}

/// A claim that was lost, and the claim that came after it.
async fn lost_and_held(ground: &Ground) -> (Bench, Lease, Lease) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let old = bench.lease().await;
    bench.store.rescue(bench.worker, 10).await.expect("a rescue");
    let bench = Bench::on(ground).await;
    let new = bench.lease().await;
    (bench, old, new)
}

fn failure(lease: Lease) -> Settlement {
    let mut failure = end(lease);
    failure.answer.outcome = Outcome::Failed;
    failure
}

async fn a_lost_lease_cannot_settle_but_its_call_is_kept(ground: &Ground) {
    let (bench, old, new) = lost_and_held(ground).await;
    let written = bench.settle(vec![failure(old)]).await;
    assert_eq!((written.done.len(), written.lost), (0, vec![old]));
    assert_eq!(ground.line("SELECT count(*) FROM results").await, "0");
    assert_eq!(ground.line("SELECT state, claims FROM job_state").await, format!("running|{}", new.claim));
    assert_eq!(
        ground.line("SELECT claim, seq, late, error_type, stop_reason FROM calls").await,
        ground.either("1|1|1|NULL|end_turn", "1|1|t|NULL|end_turn")
    );
    // Both in one batch: each is judged by its own claim.
    let written = bench.settle(vec![failure(old), end(new)]).await;
    assert_eq!((written.done, written.lost), (vec![new], vec![old]));
    assert_eq!(ground.line("SELECT count(*) FROM results").await, "1");
}

async fn a_whole_answer_is_taken_from_a_worker_that_lost_its_lease(ground: &Ground) {
    let (bench, old, new) = lost_and_held(ground).await;
    let part = Checkpoint { lease: new, seq: 1, part: 0, content: "{}".to_owned() };
    bench.store.checkpoint(&[Arc::new(part)]).await.expect("kept");
    let written = bench.settle(vec![end(old)]).await;
    assert_eq!((written.done, written.lost.len()), (vec![old], 0));
    assert_eq!(ground.line("SELECT state, claims, claimed_by FROM job_state").await, "done|4|NULL");
    let ledger = ground.lines("SELECT claim, late, error_type FROM calls ORDER BY claim").await.join(" ");
    let late = ground.either("1|1|NULL 3|0|lost", "1|t|NULL 3|f|lost");
    assert_eq!(ledger, late, "what the other one asks stands as lost until it says more");
    let sums = "SELECT outcome, text, calls, output_tokens FROM results";
    assert_eq!(ground.line(sums).await, "complete|hi|2|20");
    assert_eq!(ground.line("SELECT count(*) FROM checkpoints").await, "0");
    assert_eq!(bench.store.lost(&[new]).await.expect("an answer"), [new]);

    let written = bench.settle(vec![end(new)]).await;
    assert_eq!((written.done.len(), written.lost), (0, vec![new]), "one result a job");
    assert!(!bench.store.fill(&new, &answer("another")).await.expect("an answer"));
    assert_eq!(ground.line(sums).await, "complete|hi|2|40", "but both were paid");
}

async fn of_two_answers_to_one_job_in_a_batch_the_holders_is_taken(ground: &Ground) {
    let (bench, old, new) = lost_and_held(ground).await;
    let written = bench.settle(vec![end(old), end(new)]).await;
    assert_eq!((written.done, written.lost), (vec![new], vec![old]));
    assert_eq!(ground.line("SELECT calls FROM results").await, "2");
}

async fn an_answer_that_comes_after_its_job_was_put_back_is_taken(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    bench.release(back(lease, None)).await;
    let mut ending = end(lease);
    ending.answer.failures = 3;
    assert_eq!(bench.settle(vec![ending]).await.done, [lease]);
    assert_eq!(ground.line("SELECT state, failures FROM job_state").await, "done|3");
    assert_eq!(ground.line("SELECT outcome FROM results").await, "complete");
    assert_eq!(bench.settle(vec![failure(lease)]).await.lost, [lease], "it is not what was written");
}

async fn an_answer_to_another_run_is_not_taken(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let old = bench.lease().await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    assert_eq!(bench.settle(vec![end(old)]).await.lost, [old], "a done job has its result");
    ground.run("UPDATE job_state SET state = 'pending'").await;
    assert_eq!(bench.settle(vec![end(old)]).await.lost, [old]);
    assert_eq!(ground.line("SELECT state, run FROM job_state").await, "pending|2");
    assert_eq!(ground.line("SELECT count(*) FROM results").await, "0");
}

async fn what_somebody_may_have_gone_on_with_stays_when_the_late_call_comes(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let old = bench.lease().await;
    let head = r#"{"kind":"ask","model":"m","max_tokens":10,"messages":1,"request":null}"#;
    let parts = [(0, head), (1, "Once upon")]
        .map(|(part, text)| Arc::new(Checkpoint { lease: old, seq: 1, part, content: text.to_owned() }));
    bench.store.checkpoint(&parts).await.expect("kept");
    bench.store.rescue(bench.worker, 10).await.expect("a rescue");
    assert!(bench.append(&old, &call(1)).await, "it is late");
    let row = "SELECT late, partial, error_type, stop_reason, output_tokens, request_id, CAST(content AS text) LIKE '%Once upon%' FROM calls";
    let kept = ground.either("0|1|lost|NULL|20|req_1|1", "f|t|lost|NULL|20|req_1|t");
    assert_eq!(ground.line(row).await, kept, "its tokens are the call's, its text is what was gone on with");
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    assert!(bench.append(&old, &call(1)).await);
    let whole = ground.either("1|0|NULL|end_turn|20|req_1|0", "t|f|NULL|end_turn|20|req_1|f");
    assert_eq!(ground.line(row).await, whole, "nobody goes on with a done job");
}

async fn a_job_that_was_claimed_before_is_summed_up_from_its_ledger(ground: &Ground) {
    let (bench, old, new) = lost_and_held(ground).await;
    // Comes after the next claim was told what had been spent.
    bench.append(&old, &call(1)).await;
    assert_eq!(bench.settle(vec![end(new)]).await.done, [new]);
    assert_eq!(ground.line("SELECT calls, input_tokens, output_tokens FROM results").await, "2|20|40");
}

async fn a_settle_that_is_tried_again_is_done_once(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    assert_eq!(bench.settle(vec![end(lease)]).await.done, [lease]);
    assert_eq!(bench.settle(vec![end(lease)]).await.done, [lease]);
    assert_eq!(
        ground.line("SELECT (SELECT count(*) FROM results), (SELECT count(*) FROM calls)").await,
        "1|1"
    );
}

async fn a_settle_and_a_cancel_at_once_give_one_result(ground: &Ground) {
    jobs(ground, 24, "queue", "'default'").await;
    let bench = Bench::on(ground).await;
    let claimed = bench.claim(24).await;
    let cancels = claimed.iter().map(|got| {
        let cancel = format!("UPDATE job_state SET state = 'cancelled' WHERE job_id = {}", got.lease.job);
        async move {
            // A busy SQLite file is the person's to try again.
            while let Err(sentence) = ground.attempt(&cancel).await {
                assert!(sentence.contains("locked"), "{sentence}");
            }
        }
    });
    let settles = claimed.chunks(3).map(|some| bench.settle(some.iter().map(|got| end(got.lease)).collect()));
    let (_, written) =
        tokio::join!(futures_util::future::join_all(cancels), futures_util::future::join_all(settles));
    let done: usize = written.iter().map(|written| written.done.len()).sum();
    let mut again: Vec<Lease> = written.iter().flat_map(|written| written.skipped.clone()).collect();
    let written = bench.settle(again.drain(..).map(end).collect()).await;
    assert!(written.skipped.is_empty() && written.done.is_empty(), "the cancels are through: {written:?}");
    assert_eq!(ground.line("SELECT count(*), count(DISTINCT job_id) FROM results").await, "24|24");
    assert_eq!(
        ground.line("SELECT count(*) FROM results WHERE outcome = 'complete'").await,
        done.to_string()
    );
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state <> 'done'").await, "0");
}

async fn a_deleted_job_leaves_nothing_behind(ground: &Ground) {
    jobs(ground, 3, "queue", "'default'").await;
    let bench = Bench::on(ground).await;
    let leases: Vec<Lease> = bench.claim(3).await.iter().map(|got| got.lease).collect();
    ground.run("DELETE FROM jobs WHERE id < 3").await;
    let written = bench.settle(leases.iter().copied().map(end).collect()).await;
    assert_eq!((written.done.len(), written.lost.len(), written.skipped.len()), (1, 2, 0));
    assert_eq!(bench.release(back(leases[0], None)).await.lost.len(), 1);
    let gone = written.lost[0];
    assert!(bench.append(&gone, &call(2)).await);
    assert!(!bench.store.fill(&gone, &answer("x")).await.expect("an answer"));
    assert_eq!(
        ground.line("SELECT (SELECT count(*) FROM results), (SELECT count(*) FROM calls)").await,
        "1|1"
    );
}

async fn a_release_puts_the_job_back_and_says_why(ground: &Ground) {
    jobs(ground, 2, "queue", "'default'").await;
    let bench = Bench::on(ground).await;
    let (now, later) = (bench.lease().await, bench.lease().await);
    assert_eq!(bench.release(back(now, None)).await.done, [now]);
    assert_eq!(bench.release(back(later, Some(Duration::from_mins(10)))).await.done, [later]);
    assert_eq!(bench.release(back(later, Some(Duration::from_mins(10)))).await.done, [later], "tried again");
    assert_eq!(
        ground
            .lines(
                "SELECT state, claims, claimed_by, failures, deferrals, reason FROM job_state ORDER BY job_id"
            )
            .await,
        ["pending|1|NULL|1|2|overloaded", "scheduled|1|NULL|1|2|overloaded"]
    );
    let due = bench.store.next_due().await.expect("an answer").expect("a time");
    assert!(due > Duration::from_secs(500) && due <= Duration::from_mins(10), "{due:?}");
    assert_eq!(ground.line("SELECT count(*) FROM calls").await, "2");
    let absurd = bench.lease().await;
    assert_eq!(bench.release(back(absurd, Some(Duration::MAX))).await.done, [absurd]);
}

async fn a_lost_lease_cannot_release(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    assert_eq!(bench.release(back(lease, None)).await.lost, [lease]);
    assert_eq!(ground.line("SELECT state, claims FROM job_state").await, "done|2");
    assert_eq!(ground.line("SELECT late FROM calls").await, ground.either("1", "t"));
}

async fn a_cancelled_job_is_filled_once(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    bench.append(&lease, &call(1)).await;
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    assert_eq!(bench.store.lost(&[lease]).await.expect("an answer"), [lease]);
    assert!(bench.append(&lease, &call(2)).await);
    assert!(bench.store.fill(&lease, &answer("half of it")).await.expect("an answer"));
    assert!(!bench.store.fill(&lease, &answer("again")).await.expect("an answer"));
    assert_eq!(
        ground.line("SELECT outcome, text, stop_reason, model, calls, continuations, output_tokens, request_id FROM results").await,
        "cancelled|half of it|end_turn|model-a|2|1|40|req_2"
    );
}

async fn a_job_run_again_is_not_filled(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    for state in ["cancelled", "pending", "cancelled"] {
        ground.run(&format!("UPDATE job_state SET state = '{state}'")).await;
    }
    assert!(!bench.store.fill(&lease, &answer("of the run before")).await.expect("an answer"));
    assert_eq!(ground.line("SELECT run, text FROM results").await, "2|NULL");
}

async fn what_the_answer_holds_is_kept_once_until_the_job_is_run_again(ground: &Ground) {
    let said = r#"[{"type":"text","text":"hi"}]"#;
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let lease = bench.lease().await;
    bench.settle(vec![end(lease)]).await;
    let both = "SELECT CAST(r.content AS text), CAST(c.content AS text) FROM calls c JOIN results r ON r.job_id = c.job_id";
    assert_eq!(ground.line(both).await, format!("{said}|NULL"));
    ground.run("UPDATE job_state SET state = 'pending'").await;
    assert_eq!(ground.line("SELECT CAST(content AS text) FROM calls").await, said, "it was paid for");
}

async fn a_call_without_the_answers_request_id_keeps_what_it_said(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let mut unnamed = end(bench.lease().await);
    unnamed.call.as_mut().expect("a call").request_id = None;
    bench.settle(vec![unnamed]).await;
    ground.run("UPDATE job_state SET state = 'pending'").await;
    let said = ground.line("SELECT CAST(content AS text) FROM calls").await;
    assert_eq!(said, r#"[{"type":"text","text":"hi"}]"#, "nobody could say that it was this call's");
}

async fn a_call_keeps_what_it_said_where_the_answer_says_something_else_or_is_not_taken(ground: &Ground) {
    let (bench, old, new) = lost_and_held(ground).await;
    bench.settle(vec![failure(old)]).await;
    let mut longer = end(new);
    longer.answer.content = Some(r#"[{"type":"text","text":"hi there"}]"#.into());
    bench.settle(vec![longer]).await;
    let contents = ground.lines("SELECT claim, CAST(content AS text) FROM calls ORDER BY claim").await;
    assert_eq!(contents, [r#"1|[{"type":"text","text":"hi"}]"#, r#"3|[{"type":"text","text":"hi"}]"#]);
}

async fn running_again_keeps_the_ledger(ground: &Ground) {
    one_job(ground).await;
    let bench = Bench::on(ground).await;
    let first = bench.lease().await;
    bench.settle(vec![end(first)]).await;
    ground.run("UPDATE job_state SET state = 'pending'").await;
    let second = bench.lease().await;
    assert_eq!((second.run, second.claim), (2, 3));
    assert_eq!(bench.settle(vec![end(second)]).await.done, [second]);
    assert_eq!(ground.lines("SELECT run, claim, seq FROM calls ORDER BY run").await, ["1|1|1", "2|3|1"]);
    assert_eq!(ground.line("SELECT run, outcome FROM results").await, "2|complete");
}

async fn refused_data_writes_nothing_and_says_so(ground: &Ground) {
    jobs(ground, 2, "queue", "'default'").await;
    let bench = Bench::on(ground).await;
    let (good, bad) = (bench.lease().await, bench.lease().await);
    let mut culprit = end(bad);
    culprit.answer.output = Some("not JSON".to_owned());
    let both = [Arc::new(end(good)), Arc::new(culprit)];
    let refused = bench.store.settle(&both, bench.worker).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'running'").await, "2");
    assert_eq!(
        ground.line("SELECT (SELECT count(*) FROM results), (SELECT count(*) FROM calls)").await,
        "0|0"
    );
    assert_eq!(bench.store.settle(&both[..1], bench.worker).await.expect("the good one").done, [good]);
}

/// Postgres alone: on SQLite nobody can hold a single row.
#[tokio::test]
async fn a_row_that_somebody_holds_is_skipped_and_the_others_settle() {
    let ground = Ground::postgres().await;
    jobs(&ground, 3, "queue", "'default'").await;
    let bench = Bench::on(&ground).await;
    let claimed = bench.claim(3).await;
    let path = format!("{}, pg_temp", ground.schema());
    let other = Ground::postgres_pool(|options| options.options([("search_path", path)])).await;
    let mut held = other.begin().await.expect("a transaction");
    sqlx::query("SELECT FROM job_state WHERE job_id = 2 FOR UPDATE")
        .execute(&mut *held)
        .await
        .expect("the row is locked");
    let written = bench.settle(claimed.iter().map(|got| end(got.lease)).collect()).await;
    assert_eq!((written.done.len(), written.skipped.len(), written.lost.len()), (2, 1, 0));
    assert_eq!(ground.line("SELECT count(*) FROM calls").await, "2", "nothing of the skipped one");
    let late = bench.store.append(&written.skipped[0], &call(1), bench.worker).await;
    assert!(matches!(late, Err(StoreError::Locked(_))), "{late:?}");
    held.rollback().await.expect("the lock is given back");
    assert_eq!(bench.settle(written.skipped.iter().copied().map(end).collect()).await.done, written.skipped);
    other.close().await;
    ground.close().await;
}

/// SQLite alone: a transaction that has read before it writes is refused at once where somebody else
/// writes, however patient it is.
#[tokio::test]
async fn a_write_waits_for_another_programs_and_sees_what_that_one_wrote() {
    let ground = Ground::sqlite().await;
    one_job(&ground).await;
    let bench = Bench::on(&ground).await;
    let (lease, call) = (bench.lease().await, call(1));
    let mut other = SqliteConnection::connect(&ground.url()).await.expect("a file");
    other.execute("BEGIN IMMEDIATE; UPDATE job_state SET state = 'cancelled'").await.expect("a write");
    let mut append = pin!(bench.store.append(&lease, &call, bench.worker));
    // Longer than all tries of one operation together.
    let early = tokio::time::timeout(Duration::from_secs(1), &mut append).await;
    assert!(early.is_err(), "it did not wait: {early:?}");
    other.execute("COMMIT").await.expect("the other is done");
    assert!(append.await.expect("an append"), "what was cancelled meanwhile is not its own any more");
    ground.close().await;
}

/// Postgres alone: SQLite keeps U+0000.
#[tokio::test]
async fn a_text_that_postgres_cannot_hold_is_refused() {
    let ground = Ground::postgres().await;
    one_job(&ground).await;
    let bench = Bench::on(&ground).await;
    let mut bad = end(bench.lease().await);
    bad.answer.text = Some("a\0b".to_owned());
    let refused = bench.store.settle(&[Arc::new(bad)], bench.worker).await;
    assert!(matches!(refused, Err(StoreError::Refused(_))), "{refused:?}");
    ground.close().await;
}
