//! What the web page asks of Postgres reads no more than it shows, also where the statistics mislead: half of all
//! results are of one batch and complete, and all of these are old; the rare outcomes are older still.

use std::collections::BTreeSet;

use promptmill::store::board::{Board, OpenState, OpenWalk, Walk, Wish, find, speed};
use promptmill::store::{Database, Migrate, open};

use super::postgres::{faults, noticed, plan};
use super::seen::{BY_HAND, Seen};
use crate::store::settings;
use crate::support::Ground;

/// Results, nearly half of each of two batches, the others of many small ones.
const RESULTS: usize = 40_000;

/// Fills the tables as a month leaves them.
async fn month(ground: &Ground) {
    for sql in [
        format!(
            "INSERT INTO jobs (batch, prompt)
             SELECT CASE WHEN i % 10 = 0 THEN 'order-' || (i / 50) WHEN i <= {RESULTS} / 2 THEN 'old' ELSE 'new' END, 'x'
               FROM generate_series(1, {RESULTS} * 3 / 2) i"
        ),
        format!(
            "INSERT INTO results (job_id, run, queue, batch, outcome)
             SELECT id, 1, queue, batch, CASE WHEN id % 100 = 0 AND id < 9000 THEN 'expired' WHEN id % 20 = 0 THEN 'failed' ELSE 'complete' END
               FROM jobs WHERE id <= {RESULTS} ORDER BY id"
        ),
        format!("UPDATE job_state SET state = 'done', claims = 1 WHERE job_id <= {RESULTS}"),
        "VACUUM ANALYZE results".to_owned(),
        "VACUUM ANALYZE job_state".to_owned(),
        "VACUUM ANALYZE jobs".to_owned(),
    ] {
        ground.run(&format!("{BY_HAND} {sql}")).await;
    }
}

/// Asks all that goes along an index to somewhere, so often that kept plans are among those that are seen.
async fn look(board: &dyn Board) {
    let all = Wish::default();
    let of = |batch: &str| Wish { batch: Some(batch.into()), ..Wish::default() };
    let top = i64::MAX;
    for _ in 0..7 {
        for batch in ["old", "new"] {
            for outcome in ["complete", "failed", "expired", "paused"] {
                let walk = Walk::Batch(batch, outcome);
                board.results_of(walk, &of(batch), top, 50, 50).await.expect("results of a batch");
                board.batch_newest(batch, outcome, 50).await.expect("the newest of a batch");
                board.batch_results(batch, outcome, 0, 50).await.expect("a download");
            }
            for state in OpenState::ALL {
                let walk = OpenWalk::Batch(batch, state);
                board.jobs_of(walk, &of(batch), top, 50, 50).await.expect("jobs of a batch");
            }
            speed(board, batch, 50).await.expect("how fast it goes");
            find(board, &of(batch), None, 50).await.expect("a page");
        }
        for outcome in ["failed", "expired", "paused"] {
            board.results_of(Walk::Ended(outcome), &all, top, 50, 50).await.expect("results that ended so");
        }
        board.results_of(Walk::All, &all, top, 50, 50).await.expect("the newest results");
        board.jobs_of(OpenWalk::All, &all, top, 50, 50).await.expect("the newest jobs");
        board.tally(None, 500).await.expect("counts");
        board.results_count(500).await.expect("a count");
        board.batches_open("", 20).await.expect("batches");
        board.batches_done("", 20).await.expect("batches");
        board.batch_tally("old", 100).await.expect("counts of a batch");
        board.heads().await.expect("the oldest");
        board.job_lines(&[]).await.expect("no jobs");
    }
}

#[tokio::test]
async fn no_look_of_the_page_walks_past_more_rows_than_it_shows() {
    let ground = Ground::postgres().await;
    month(&ground).await;
    let opened = open(&noticed(&ground), &settings(ground.schema()), Migrate::Never).await;
    let Database::Postgres(store) = opened.expect("the ground has the tables").database else {
        unreachable!("the ground is one of Postgres")
    };
    let seen = Seen::begin();
    look(&*store).await;
    let said = seen.take();
    let plans: Vec<_> = said.notices.iter().filter_map(|notice| plan(notice)).collect();
    assert!(plans.len() > 100, "{} plans were told", plans.len());
    let wrong: BTreeSet<String> = plans.iter().flat_map(|(sql, plan)| faults(sql, plan)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    ground.close().await;
}
