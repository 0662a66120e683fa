//! A read that takes too long ends, says so, and keeps no worker waiting.

use std::time::{Duration, Instant};

use promptmill::store::{Database, Store as _};
use sqlx::AssertSqlSafe;
use tokio::task::JoinSet;

use super::Site;
use crate::support::{Ground, on_both};

on_both!(a_read_that_takes_too_long_ends_with_a_sentence, slow_pages_keep_no_worker_waiting);

/// Makes the book of what people did one that has no end.
async fn without_end(ground: &Ground) {
    // A row, or a join could end before it has begun.
    ground.run("INSERT INTO audit (actor, action, target, count) VALUES ('a', 'b', 'c', 1)").await;
    ground.run("ALTER TABLE audit RENAME TO audit_before").await;
    ground
        .run(ground.either(
            "CREATE VIEW audit AS
             WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
             SELECT i AS id, i AS at, 'a' AS actor, 'b' AS action, 'c' AS target, 1 AS count, 'd' AS detail FROM n",
            "CREATE VIEW audit AS
             SELECT b.* FROM audit_before b, pg_sleep(600)",
        ))
        .await;
}

async fn a_read_that_takes_too_long_ends_with_a_sentence(ground: &Ground) {
    without_end(ground).await;
    let site = Site::with(ground, |settings| settings.read_max = Duration::from_millis(300)).await;
    let page = site.get("/audit").await;
    assert_eq!(page.status, 503);
    assert!(page.text.contains("the database needed longer than 300ms for this"), "{page:?}");
    assert!(page.text.contains("That took too long") && !page.text.contains("is away"), "{page:?}");
    let json = site.get("/api/v1/audit").await;
    assert_eq!((json.status, json.json()["error"]["type"].as_str()), (503, Some("too_slow")));
    site.get("/jobs").await.good();
}

async fn slow_pages_keep_no_worker_waiting(ground: &Ground) {
    without_end(ground).await;
    let site = Site::with(ground, |settings| settings.read_max = Duration::from_secs(4)).await;
    let mut slow = JoinSet::new();
    for _ in 0..8 {
        let request = site.client.get(format!("{}/audit", site.url));
        slow.spawn(async move { request.send().await.expect("it answers").status().as_u16() });
    }
    let (mut longest, mut looks) = (Duration::ZERO, 0);
    while slow.try_join_next().is_none() {
        let began = Instant::now();
        match &site.database {
            Database::Sqlite(store) => store.next_due().await.expect("an answer"),
            Database::Postgres(store) => store.next_due().await.expect("an answer"),
        };
        longest = longest.max(began.elapsed());
        looks += 1;
        tokio::task::yield_now().await;
    }
    assert!(longest < Duration::from_secs(2) && looks > 1, "{looks} looks, the longest {longest:?}");
    assert!(slow.join_all().await.iter().all(|status| *status == 503));
}

/// The server would do what nobody waits for any more, and a person who was told otherwise does it again.
#[tokio::test]
async fn a_change_is_waited_for_however_long_a_read_may_take() {
    let ground = Ground::postgres().await;
    ground.run("INSERT INTO queues (name) VALUES ('q')").await;
    let read_max = Duration::from_millis(100);
    let site = Site::with(&ground, |settings| settings.read_max = read_max).await;
    let pool = Ground::postgres_pool(|options| options).await;
    let mut held = pool.begin().await.expect("a transaction");
    let row = format!("UPDATE {} SET max_running = 1 WHERE name = 'q'", ground.table("queues"));
    sqlx::raw_sql(AssertSqlSafe(row)).execute(&mut *held).await.expect("it is held");
    let change = site.post("/act/queue", "action=pause&queue=q");
    let (status, ()) = tokio::join!(async { change.await.status }, async {
        tokio::time::sleep(read_max * 6).await;
        held.rollback().await.expect("it is let go");
    });
    assert_eq!(status, 303);
    assert_eq!(ground.line("SELECT paused::text FROM queues WHERE name = 'q'").await, "true");
    ground.close().await;
}
