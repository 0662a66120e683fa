//! The demo's own part: its jobs stand in the tables as shown, every marker in them is one, and
//! what it tells at the end is read from the tables.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

use promptmill::cli::demo::{self, Args};
use promptmill::stand_in::{Options, StandIn};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

/// The contract's tables, as the product makes them.
const TABLES: &str = include_str!("../../migrations/sqlite/0001_create_tables.sql");

async fn open(path: &std::path::Path) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    SqlitePool::connect_with(options).await.unwrap()
}

#[tokio::test]
async fn the_jobs_of_the_demo_are_accepted_and_their_markers_understood() {
    let folder = tempfile::tempdir().unwrap();
    let pool = open(&folder.path().join("demo.db")).await;
    sqlx::raw_sql(TABLES).execute(&pool).await.unwrap();
    sqlx::raw_sql(demo::SQL).execute(&pool).await.unwrap();
    let prompts: Vec<String> = sqlx::query_scalar("SELECT prompt FROM jobs").fetch_all(&pool).await.unwrap();
    assert_eq!(prompts.len(), 300);
    let api = StandIn::start(Options::default()).await.unwrap();
    let client = crate::stand_in::client();
    for prompt in prompts {
        let answer = client.post(format!("{}/stand-in/answer", api.url())).body(prompt.clone());
        assert_eq!(answer.send().await.unwrap().status().as_u16(), 200, "{prompt}");
    }
}

#[tokio::test]
async fn the_demo_keeps_its_file_where_that_was_asked_and_overwrites_none() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kept.db");
    let args = Args { keep: Some(file.clone()) };
    let pool = async || open(&file).await;
    let prepare = async |url: &str| {
        assert_eq!(url, format!("sqlite:{}", file.display()));
        sqlx::raw_sql(TABLES).execute(&pool().await).await?;
        Ok(())
    };
    // Cancelling needs no daemon: every job gets its result from the tables' own triggers.
    let cancel = async |_: &str, base_url: &str| {
        assert!(base_url.starts_with("http://127.0.0.1:"));
        sqlx::raw_sql("UPDATE job_state SET state = 'cancelled'").execute(&pool().await).await?;
        Ok(())
    };
    demo::run(args.clone(), prepare, cancel).await.unwrap();
    let count = "SELECT count(*) FROM results WHERE outcome = 'cancelled'";
    let results: i64 = sqlx::query_scalar(count).fetch_one(&pool().await).await.unwrap();
    assert_eq!(results, 300);
    let again = demo::run(args, prepare, cancel).await.unwrap_err();
    assert!(again.to_string().ends_with("exists already: name a file that is not there yet"));
}
