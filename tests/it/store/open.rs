//! Opening: whose tables these are, which version, and many at once.

use std::path::Path;
use std::process::Command;

use promptmill::store::migrations::{LATEST, STEPS};
use promptmill::store::{Database, Migrate, StoreError, open};

use super::{Bench, settings};
use crate::support::{Ground, on_both};

on_both!(
    many_may_open_an_absent_database_at_once,
    an_absent_database_is_not_made_by_a_look,
    a_newer_schema_is_used_until_it_says_otherwise,
    an_older_schema_is_refused_with_the_way_out,
);

#[tokio::test]
async fn a_daemon_spills_nothing_into_temporary_files_of_the_systems() {
    let ground = Ground::sqlite().await;
    for (migrate, kept_in) in [(Migrate::Serve, 2), (Migrate::Never, 0)] {
        let opened = open(&ground.url(), &settings("main"), migrate).await.expect("it opens");
        let Database::Sqlite(store) = opened.database else { panic!("not a file") };
        let place: i64 =
            sqlx::query_scalar("PRAGMA temp_store").fetch_one(&store.writer()).await.expect("known");
        assert_eq!(place, kept_in, "2 is memory, 0 a file: {migrate:?}");
    }
    ground.close().await;
}

/// Returns the sentence of a schema error.
fn sentence<T>(opened: Result<T, StoreError>) -> String {
    match opened {
        Err(StoreError::Schema(sentence)) => sentence,
        Err(other) => panic!("not a schema error: {other:?}"),
        Ok(_) => panic!("it was opened"),
    }
}

/// A URL and a schema beside the ground's own, where nothing is yet.
fn nowhere(ground: &Ground) -> (String, String) {
    let schema = format!("{}_new", ground.schema());
    (ground.url().replace("mill.db", "new.db"), schema)
}

async fn many_may_open_an_absent_database_at_once(ground: &Ground) {
    let (url, schema) = nowhere(ground);
    let settings = settings(&schema);
    let opens = (0..6).map(|n| open(&url, &settings, if n % 2 == 0 { Migrate::Serve } else { Migrate::Now }));
    for opened in futures_util::future::join_all(opens).await {
        opened.map(drop).expect("each of them opens it");
    }
    open(&url, &settings, Migrate::Never).await.map(drop).expect("the tables are there");
    drop_new(ground, &schema).await;
}

async fn drop_new(ground: &Ground, schema: &str) {
    if ground.kind() == crate::support::Kind::Postgres {
        ground.run(&format!("SET client_min_messages = warning; DROP SCHEMA {schema} CASCADE")).await;
    }
}

async fn an_absent_database_is_not_made_by_a_look(ground: &Ground) {
    let (url, schema) = nowhere(ground);
    for _ in 0..2 {
        let said = sentence(open(&url, &settings(&schema), Migrate::Never).await);
        assert!(said.contains("promptmill migrate"), "{said}");
    }
}

async fn a_newer_schema_is_used_until_it_says_otherwise(ground: &Ground) {
    ground.run("UPDATE meta SET schema_version = 99").await;
    Bench::on(ground).await.claim(1).await;
    ground.run("UPDATE meta SET schema_min = 99").await;
    for migrate in [Migrate::Never, Migrate::Serve, Migrate::Now] {
        let said = sentence(open(&ground.url(), &settings(ground.schema()), migrate).await);
        assert!(said.contains("99") && said.contains("install a newer promptmill"), "{said}");
    }
}

async fn an_older_schema_is_refused_with_the_way_out(ground: &Ground) {
    ground.run("UPDATE meta SET schema_version = 0").await;
    let said = sentence(open(&ground.url(), &settings(ground.schema()), Migrate::Never).await);
    assert!(said.contains("run `promptmill migrate`"), "{said}");
    if ground.kind() == crate::support::Kind::Postgres {
        let said = sentence(open(&ground.url(), &settings(ground.schema()), Migrate::Serve).await);
        assert!(said.contains("run `promptmill migrate`"), "{said}");
    }
}

#[tokio::test]
async fn a_sqlite_file_with_other_tables_is_left_as_it_is() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("theirs.db");
    let shell =
        Command::new("sqlite3").arg(&file).arg("CREATE TABLE theirs (a)").status().expect("sqlite3 runs");
    assert!(shell.success());
    let before = std::fs::read(&file).expect("the file");
    for migrate in [Migrate::Never, Migrate::Serve, Migrate::Now] {
        let said = sentence(open(&format!("sqlite:{}", file.display()), &settings("main"), migrate).await);
        assert!(said.ends_with("theirs.db holds other tables; give promptmill a file of its own"), "{said}");
    }
    assert_eq!(std::fs::read(&file).expect("the file"), before);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("notes.txt");
    std::fs::write(&file, "shopping list, and so on, and so on".repeat(40)).expect("a file");
    let said =
        sentence(open(&format!("sqlite://{}", file.display()), &settings("main"), Migrate::Serve).await);
    assert!(said.contains("is not a SQLite file"), "{said}");
}

#[tokio::test]
async fn what_cannot_be_reached_is_unavailable_and_no_password_is_said() {
    let url = "postgres://somebody:hunter2@127.0.0.1:1/nowhere";
    let unreachable = open(url, &settings("promptmill"), Migrate::Never).await.map(drop);
    assert!(matches!(unreachable, Err(StoreError::Unavailable(_))), "{unreachable:?}");
    assert!(!format!("{unreachable:?}").contains("hunter2"));
    let odd = open("mysql://somebody:hunter2@h/d", &settings("promptmill"), Migrate::Never).await.map(drop);
    assert!(matches!(odd, Err(StoreError::Database(_))), "{odd:?}");
    assert!(!format!("{odd:?}").contains("hunter2"));
    let said = sentence(open(url, &settings("Prompt Mill"), Migrate::Never).await);
    assert!(said.contains("database.schema"), "{said}");
}

#[test]
fn the_list_of_migrations_is_the_folder() {
    let listed: Vec<String> =
        STEPS.iter().map(|step| format!("{:04}_{}.sql", step.version, step.name)).collect();
    for kind in ["postgres", "sqlite"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(kind);
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .expect("the folder")
            .map(|file| file.expect("a file").file_name().to_string_lossy().into_owned())
            .collect();
        files.sort();
        assert_eq!(files, listed, "{kind}");
    }
    assert_eq!(LATEST as usize, STEPS.len());
}

/// Postgres alone: what stands behind a pooler in transaction mode relies on its role.
#[tokio::test]
async fn behind_a_pooler_the_role_says_where_the_tables_are() {
    let ground = Ground::postgres().await;
    let (schema, role) = (ground.schema(), format!("{}_pooled", ground.schema()));
    ground.run(&format!("CREATE ROLE {role} LOGIN SUPERUSER")).await;
    let url = ground.url().replacen("postgres@", &format!("{role}@"), 1);
    assert_ne!(url, ground.url(), "the test server's user is postgres");
    let mut pooled = settings(schema);
    pooled.transaction_pooler = true;
    let said = sentence(open(&url, &pooled, Migrate::Serve).await);
    assert!(said.contains("search_path"), "{said}");

    ground.run(&format!("ALTER ROLE {role} SET search_path = {schema}, pg_temp")).await;
    super::one_job(&ground).await;
    let store = open(&url, &pooled, Migrate::Serve).await.expect("it is opened").store;
    let worker = store.enlist(&super::me()).await.expect("a worker enlists");
    let bench = Bench { store, worker };
    let lease = bench.lease().await;
    assert_eq!(bench.settle(vec![super::end(lease)]).await.done, [lease]);
    drop(bench);
    ground.run(&format!("DROP ROLE {role}")).await;
    ground.close().await;
}

/// Postgres alone: the daemon needs no more than the worker's rights.
#[tokio::test]
async fn the_worker_role_may_do_all_that_the_store_does() {
    let ground = Ground::postgres().await;
    ground.grant_roles().await;
    let role = format!("{}_daemon", ground.schema());
    ground.run(&format!("CREATE ROLE {role} LOGIN IN ROLE promptmill_worker")).await;
    ground.run("INSERT INTO queues (name, max_running) VALUES ('narrow', 5)").await;
    super::jobs(&ground, 3, "queue", "'narrow'").await;
    super::jobs(&ground, 2, "queue", "'default'").await;
    let url = ground.url().replacen("postgres@", &format!("{role}@"), 1);
    let store = open(&url, &settings(ground.schema()), Migrate::Serve).await.expect("it is opened").store;
    let worker = store.enlist(&super::me()).await.expect("a worker enlists");
    let bench = Bench { store, worker };
    let leases: Vec<_> = bench.claim(5).await.iter().map(|got| got.lease).collect();
    assert_eq!(leases.len(), 5);
    assert!(!bench.append(&leases[0], &super::call(1)).await);
    assert_eq!(bench.settle(vec![super::end(leases[1])]).await.done.len(), 1);
    assert_eq!(bench.release(super::back(leases[2], None)).await.done.len(), 1);
    assert_eq!(bench.claim(1).await[0].calls.len(), 1);
    let past = ground.at(-1);
    ground.run(&format!("UPDATE job_state SET deadline_at = {past} WHERE job_id = {}", leases[0].job)).await;
    let store = &bench.store;
    assert_eq!(store.expire(10).await.expect("an end").len(), 1);
    assert!(store.fill(&leases[0], &super::answer("x")).await.expect("a fill"));
    assert_eq!(store.lost(&leases).await.expect("leases").len(), 3);
    assert_eq!(store.promote(10).await.expect("a promotion"), 0);
    assert_eq!(store.next_due().await.expect("a time"), None);
    assert_eq!(store.backlog(&bench.wanted(1), std::time::Duration::ZERO).await.expect("counts").running, 3);
    assert!(store.beat(worker, 1, true).await.expect("a beat"));
    store.sleep(worker, false).await.expect("an answer");
    assert!(store.gates().await.expect("gates").is_empty());
    assert!(store.peers(worker).await.expect("peers").is_empty());
    assert_eq!(store.rescue(worker, 10).await.expect("a rescue").len(), 3);
    store.retire(worker).await.expect("it retires");
    drop(bench);
    ground.run(&format!("DROP ROLE {role}")).await;
    ground.close().await;
}

mod file {
    use super::*;

    fn unavailable<T>(done: Result<T, StoreError>) -> String {
        match done {
            Err(StoreError::Unavailable(sentence)) => sentence,
            Err(other) => panic!("another error: {other:?}"),
            Ok(_) => panic!("it was done"),
        }
    }

    #[tokio::test]
    async fn nothing_is_done_with_a_file_that_was_deleted_or_replaced_until_it_is_back() {
        let ground = Ground::sqlite().await;
        ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
        let bench = Bench::on(&ground).await;
        let file = ground.url().trim_start_matches("sqlite:").to_owned();
        let aside = format!("{file}.aside");
        std::fs::rename(&file, &aside).expect("moved");
        let said = unavailable(bench.store.claim(&bench.wanted(5)).await);
        assert!(said.contains("moved or deleted"), "{said}");
        std::fs::write(&file, "somebody's notes").expect("written");
        let said = unavailable(bench.store.claim(&bench.wanted(5)).await);
        assert!(said.contains("was replaced, and the new file cannot be read"), "{said}");
        std::fs::rename(&aside, &file).expect("moved back");
        assert_eq!(bench.store.claim(&bench.wanted(5)).await.expect("a claim").len(), 1);
        ground.close().await;
    }

    #[tokio::test]
    async fn a_file_in_a_folder_that_is_not_there_is_refused_in_words_that_help() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url = format!("sqlite:{}/nowhere/mill.db", folder.path().display());
        let said = unavailable(open(&url, &settings(""), Migrate::Now).await);
        assert!(said.contains("see that its folder exists"), "{said}");
    }
}
