//! What the page asks of the database is bounded, whatever the tables hold.

use promptmill::store::{BEHIND_SCAN, Behind, Database, Desk, Flow, Waiting};

use super::Site;
use crate::support::{Ground, on_both};

on_both!(jobs_behind_a_batch_are_counted_among_so_many);

fn desk(site: &Site) -> &dyn Desk {
    match &site.database {
        Database::Sqlite(store) => &**store,
        Database::Postgres(store) => &**store,
    }
}

async fn jobs_behind_a_batch_are_counted_among_so_many(ground: &Ground) {
    let many = BEHIND_SCAN;
    let numbers = ground.either(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50010) SELECT i FROM n",
        "SELECT generate_series(1, 50010) AS i",
    );
    ground
        .run(&format!("INSERT INTO jobs (prompt, queue, batch) SELECT 'p', 'far', 'b' FROM ({numbers}) n"))
        .await;
    ground
        .run("INSERT INTO jobs (prompt, queue, batch) VALUES ('p', 'near', 'b'), ('p', 'near', 'c'), ('p', 'near', NULL), ('p', 'far', NULL)")
        .await;
    let site = Site::on(ground).await;
    let behind = async |queue: &str, batch: &str, limit| {
        let gate = Behind::Batch { queue: queue.to_owned(), batch: batch.to_owned() };
        desk(&site).jobs_behind(&gate, limit).await.expect("an answer")
    };
    assert_eq!(behind("near", "c", 10).await, Waiting { jobs: 1, more: false });
    assert_eq!(behind("near", "", 10).await, Waiting { jobs: 1, more: false });
    assert_eq!(behind("far", "b", 10).await, Waiting { jobs: 10, more: true });
    // However few of them are its own: so many are looked at, and no more.
    let near = behind("near", "b", many * 2).await;
    assert!(near.jobs <= 1 && near.more, "{near:?}");
    let all = behind("far", "b", many * 2).await;
    assert!(all.jobs <= many && all.jobs >= many - 1 && all.more, "{all:?}");
    let unnamed = behind("far", "", many * 2).await;
    assert!(unnamed.jobs <= 1 && unnamed.more, "{unnamed:?}");
}

/// Somebody holds the one lock for writing, and a batch is looked at all the same.
#[tokio::test]
async fn a_batch_is_looked_at_without_the_writer() {
    let ground = Ground::sqlite().await;
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('p', 'b')").await;
    let site = Site::on(&ground).await;
    let pool = sqlx::SqlitePool::connect(&ground.url()).await.expect("the file is there");
    let mut other = pool.acquire().await.expect("a connection");
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *other).await.expect("the lock is free");
    let none = desk(&site).set_batch("without-jobs", Flow::Paused).await.expect("nothing is written");
    assert_eq!(none, Vec::<String>::new());
    sqlx::query("ROLLBACK").execute(&mut *other).await.expect("it is open");
    assert_eq!(desk(&site).set_batch("b", Flow::Paused).await.expect("it is written"), ["default"]);
    drop(other);
    pool.close().await;
    ground.close().await;
}
