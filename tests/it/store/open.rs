//! Opening: whose tables these are, which version, and many at once.

use std::path::Path;
use std::process::Command;

use promptmill::store::migrations::{LATEST, STEPS};
use promptmill::store::{Migrate, StoreError, open};

use super::{Bench, settings};
use crate::support::{Ground, on_both};

on_both!(
    many_may_open_an_absent_database_at_once,
    an_absent_database_is_not_made_by_a_look,
    a_newer_schema_is_used_until_it_says_otherwise,
    an_older_schema_is_refused_with_the_way_out,
);

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
    let shell = Command::new("sqlite3").arg(&file).arg("CREATE TABLE theirs (a)").status().expect("sqlite3 runs");
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
    let said = sentence(open(&format!("sqlite://{}", file.display()), &settings("main"), Migrate::Serve).await);
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
    let listed: Vec<String> = STEPS.iter().map(|step| format!("{:04}_{}.sql", step.version, step.name)).collect();
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
