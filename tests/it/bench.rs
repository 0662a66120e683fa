//! `promptmill bench`: what it promises to programs, and that it leaves nothing behind. With tiny sizes:
//! the figures mean nothing here.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::Row as _;
use tempfile::TempDir;

use crate::support::{Ground, server};

/// Longest time that one run may take.
const RUN_MAX: Duration = Duration::from_mins(1);

fn bench(dir: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_promptmill"));
    command.current_dir(dir.path()).env_clear().arg("bench").args(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The same on both databases, with its files in a folder of the test's.
fn on_both(dir: &TempDir, args: &[&str]) -> Command {
    std::fs::create_dir_all(dir.path().join("disk")).expect("a folder can be made");
    let mut command = bench(dir, args);
    command.args(["--postgres", &server::url(), "--dir", "disk"]);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether the server still has the database of a run.
async fn is_there(process: u32) -> bool {
    let pool = Ground::postgres_pool(|options| options).await;
    let count = sqlx::query("SELECT count(*) FROM pg_database WHERE datname = $1")
        .bind(format!("promptmill_bench_{process}"))
        .fetch_one(&pool)
        .await
        .expect("the server tells its databases");
    pool.close().await;
    count.get::<i64, _>(0) == 1
}

/// Waits for the end of a run, and looks at what it left.
async fn ended(dir: &TempDir, child: Child) -> Output {
    let process = child.id();
    let output = tokio::task::spawn_blocking(|| child.wait_with_output()).await;
    let output = output.expect("the wait is not broken off").expect("it ends");
    assert!(!is_there(process).await, "its database is left: {}", said(&output));
    let left = std::fs::read_dir(dir.path().join("disk")).expect("the folder is there").count();
    assert_eq!(left, 0, "its files are left: {}", said(&output));
    output
}

#[tokio::test]
async fn the_json_has_every_promised_field_and_nothing_around_changes_the_run() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    // Both would end a daemon that read them.
    std::fs::write(dir.path().join("promptmill.toml"), "[worker]\nconcurrency = \"all\"\n").unwrap();
    let mut command = on_both(&dir, &["drain", "start", "--jobs", "2", "--runs", "2", "--json"]);
    command.env("PROMPTMILL_WORKER__CONCURRENCY", "all").env("DATABASE_URL", "sqlite:/nowhere/at/all.db");
    let output = ended(&dir, command.spawn().expect("the binary starts")).await;
    assert!(output.status.success(), "{}", said(&output));
    let all: Value = serde_json::from_slice(&output.stdout).expect("stdout is JSON alone");
    assert!(all["machine"]["cores"].as_u64() > Some(0) && all["machine"]["load"].is_string(), "{all}");
    assert_eq!(all["versions"]["promptmill"], env!("CARGO_PKG_VERSION"));
    assert!(all["versions"]["sqlite"].is_string() && all["versions"]["postgres"].is_string(), "{all}");
    assert!(all["settings"]["postgres"]["fsync"].is_string(), "{all}");
    assert!(all["settings"]["postgres"]["synchronous_commit"].is_string(), "{all}");
    assert_eq!(
        (&all["settings"]["sqlite"]["synchronous"], &all["settings"]["runs"]),
        (&"full".into(), &2.into())
    );
    for line in all["results"].as_array().expect("results are a list") {
        assert!(line["conditions"].is_string() && line["unit"].is_string(), "{line}");
        assert!(line["median"].is_number() && line["runs"].as_array().map(Vec::len) == Some(2), "{line}");
        assert_eq!(line["floor"].is_null(), line["floor_is"].is_null(), "a floor has a name: {line}");
        // A process this short may not have used a tick of the clock.
        let held = line["floor"].as_f64().is_some_and(|floor| floor > 0.0);
        assert!(!held || line["ratio"].is_number(), "what is held against a floor has a ratio: {line}");
    }
    for database in ["sqlite", "postgres"] {
        has(&all, database, "drain", "bare loop");
        has(&all, database, "drain, against bare SQL", "bare SQL");
        has(&all, database, "drain, CPU", "bare loop");
        has(&all, database, "drain, memory at most", "bare loop");
        has(&all, database, "start to first call, p50", "");
    }
    has(&all, "postgres", "drain, log (WAL)", "bare SQL");
}

/// Looks for a figure that is held against this, where it is held against anything.
fn has(all: &Value, database: &str, what: &str, floor: &str) {
    let is_it = |line: &&Value| line["what"] == what && line["database"] == database;
    let line = all["results"].as_array().into_iter().flatten().find(is_it);
    let line = line.unwrap_or_else(|| panic!("no {what} of {database}: {all}"));
    assert_eq!(line["floor_is"].as_str().unwrap_or_default(), floor, "{line}");
}

#[tokio::test]
async fn rows_and_claims_are_measured_on_both_databases() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut command = on_both(&dir, &["enqueue", "claim", "--jobs", "1", "--runs", "1", "--json"]);
    let output = ended(&dir, command.spawn().expect("the binary starts")).await;
    assert!(output.status.success(), "{}", said(&output));
    let all: Value = serde_json::from_slice(&output.stdout).expect("stdout is JSON alone");
    for database in ["sqlite", "postgres"] {
        has(&all, database, "enqueue", "without triggers");
        has(&all, database, "claim, p99", "");
    }
}

#[tokio::test]
async fn a_run_whose_results_are_missing_is_no_figure() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    // A mill that makes its tables and does no work.
    let mill = dir.path().join("mill");
    let real = env!("CARGO_BIN_EXE_promptmill");
    std::fs::write(&mill, format!("#!/bin/sh\n[ \"$1\" = run ] || exec {real} \"$@\"\n")).unwrap();
    std::fs::set_permissions(&mill, std::fs::Permissions::from_mode(0o755)).unwrap();
    for what in ["drain", "daemons"] {
        let mut command = on_both(&dir, &[what, "--jobs", "3", "--runs", "1", "--mill", "mill"]);
        let output = ended(&dir, command.spawn().expect("the binary starts")).await;
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("the run does not count: 0 complete results"), "{}", said(&output));
    }
}

#[tokio::test]
async fn an_interrupted_run_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let child = on_both(&dir, &["idle"]).spawn().expect("the binary starts");
    let began = Instant::now();
    while !is_there(child.id()).await {
        assert!(began.elapsed() < RUN_MAX, "it makes no database");
    }
    let stopped = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(stopped.success());
    let output = ended(&dir, child).await;
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("interrupted"), "{}", said(&output));
}

#[test]
fn what_cannot_be_measured_is_one_sentence() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let out_of_reach = "postgres://u:hunter2@127.0.0.1:1/none";
    for (args, code, sentence) in [
        (&["--database", "postgres"][..], 2, "--database postgres needs --postgres URL"),
        (&["--postgres", "http://u:hunter2@h/d"], 2, "--postgres is not a Postgres URL"),
        (&["--postgres", out_of_reach], 4, "the server of --postgres cannot be used"),
        (&["--dir", "absent"], 1, "cannot make a folder in absent"),
    ] {
        let output = bench(&dir, args).output().expect("the binary runs");
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        let last = said.lines().last().unwrap_or_default();
        assert!(last.starts_with(&format!("promptmill: {sentence}")), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn without_a_server_only_sqlite_is_measured_and_that_is_said() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let output = bench(&dir, &["drain", "--jobs", "2", "--runs", "1"]).output().expect("the binary runs");
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).starts_with("only SQLite is measured: --postgres URL"), "{}", said(&output));
    let table = String::from_utf8(output.stdout).expect("it prints UTF-8");
    assert!(table.contains("bare loop: ") && table.contains("machine: {"), "{table}");
    assert!(!table.contains("postgres"), "{table}");
}

#[test]
fn the_help_says_what_each_measures_and_how_long_it_takes() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let output = bench(&dir, &["--help"]).output().expect("the binary runs");
    let help = String::from_utf8(output.stdout).expect("it prints UTF-8");
    for what in [
        "enqueue", "drain", "latency", "prompts", "claim", "wake", "start", "idle", "slow", "history",
        "daemons",
    ] {
        let (_, rest) = help.split_once(&format!("- {what}:")).unwrap_or_else(|| panic!("no {what}: {help}"));
        let line = rest.split("\n\n").next().and_then(|list| list.split("  - ").next()).unwrap_or_default();
        assert!(line.trim().len() > 20 && line.trim_end().ends_with(" min)"), "{what}: {line}");
    }
    assert!(!help.contains("--bare-loop"), "{help}");
}

#[tokio::test]
async fn each_view_of_the_page_is_measured_on_both_databases() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut command = on_both(&dir, &["page", "--jobs", "2000", "--runs", "1", "--json"]);
    let output = ended(&dir, command.spawn().expect("the binary starts")).await;
    assert!(output.status.success(), "{}", said(&output));
    let all: Value = serde_json::from_slice(&output.stdout).expect("stdout is JSON alone");
    for database in ["sqlite", "postgres"] {
        let of = |line: &&Value| line["what"] == "page, p50" && line["database"] == database;
        let views: Vec<&Value> = all["results"].as_array().into_iter().flatten().filter(of).collect();
        assert!(views.len() > 40, "{database}: {}", views.len());
        for view in ["/", "/jobs?batch=evening", "/batch?name=catalogue", "/errors", "/api/v1/overview"] {
            let conditions = format!("2,000 jobs, {view}");
            assert!(views.iter().any(|line| line["conditions"] == conditions.as_str()), "{database}: {view}");
        }
    }
}
