//! Both databases have the same tables, columns, views and constraints, and the same migrations.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::Ground;

/// Of `SQLite` alone: refuses INSERT OR REPLACE.
const SQLITE_ONLY: &str = "job_keys";

async fn relations(ground: &Ground, kind: &str) -> BTreeSet<String> {
    let sql = match ground.kind() {
        crate::support::Kind::Sqlite => format!(
            "SELECT name FROM sqlite_master WHERE type = '{kind}' AND name NOT LIKE 'sqlite%' AND name NOT LIKE '\\_sqlx%' ESCAPE '\\'"
        ),
        crate::support::Kind::Postgres => format!(
            "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace
                AND relkind = '{}' AND relname NOT LIKE '\\_sqlx%'",
            if kind == "view" { 'v' } else { 'r' }
        ),
    };
    ground.lines(&sql).await.into_iter().filter(|name| name != SQLITE_ONLY).collect()
}

#[tokio::test]
async fn both_databases_have_the_same_tables_and_columns() {
    let (sqlite, postgres) = (Ground::sqlite().await, Ground::postgres().await);
    let tables = relations(&sqlite, "table").await;
    assert_eq!(tables, relations(&postgres, "table").await);
    let expected = [
        "accounts",
        "audit",
        "calls",
        "checkpoints",
        "gates",
        "job_state",
        "jobs",
        "meta",
        "queues",
        "rates",
        "results",
        "tool_calls",
        "workers",
    ];
    assert_eq!(tables.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    for table in &tables {
        assert_eq!(sqlite.columns(table).await, postgres.columns(table).await, "{table}");
    }
    sqlite.close().await;
    postgres.close().await;
}

#[tokio::test]
async fn sqlite_views_add_only_readable_times() {
    let (sqlite, postgres) = (Ground::sqlite().await, Ground::postgres().await);
    let views = relations(&sqlite, "view").await;
    assert_eq!(views, relations(&postgres, "view").await);
    assert_eq!(
        views.iter().map(String::as_str).collect::<Vec<_>>(),
        ["batch_progress", "job_overview", "open_tool_calls"]
    );
    for view in &views {
        let (more, same): (Vec<String>, Vec<String>) =
            sqlite.columns(view).await.into_iter().partition(|column| column.ends_with("_text"));
        assert_eq!(same, postgres.columns(view).await, "{view}");
        assert!(!more.is_empty(), "{view}");
    }
    sqlite.close().await;
    postgres.close().await;
}

#[tokio::test]
async fn every_sqlite_table_is_strict() {
    let ground = Ground::sqlite().await;
    let loose = ground
        .lines("SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND NOT strict AND name NOT LIKE 'sqlite%' AND name NOT LIKE '%sqlx%'")
        .await;
    assert_eq!(loose, Vec::<String>::new());
    ground.close().await;
}

#[test]
fn both_databases_have_the_same_migrations() {
    let names = |kind: &str| -> BTreeSet<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(kind);
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(names("sqlite"), names("postgres"));
}

/// What runs in other people's `SQLite` must not be newer than 3.37.
#[test]
fn the_sqlite_schema_uses_no_functions_newer_than_3_37() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/sqlite");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let sql: String = std::fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| line.split("--").next().unwrap_or_default().to_lowercase() + "\n")
            .collect::<String>()
            .replace("group_concat(", "");
        for new in
            ["unixepoch(", "->", "format(", "timediff(", "jsonb", "iif(", "string_agg", "concat(", "subsec"]
        {
            assert!(!sql.contains(new), "{} uses {new}", path.display());
        }
    }
}
