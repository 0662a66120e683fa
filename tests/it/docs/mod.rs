//! The book in `docs/`: every code block runs, its links lead somewhere, and its lists of codes are whole.

mod codes;
mod facts;
mod links;
mod page;
mod session;

use std::fs;
use std::path::{Path, PathBuf};

use page::Page;
use session::{Session, Start};

use crate::support::Kind;

/// Where the pages are.
fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")
}

fn read(name: &str) -> String {
    let path = docs().join(name);
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// The names of all pages, but for the list of them.
fn names() -> Vec<String> {
    let entries = fs::read_dir(docs()).expect("the book is there");
    let names = entries.map(|entry| entry.expect("a file").file_name().to_string_lossy().into_owned());
    let is_page = |name: &String| {
        let is_markdown = Path::new(name).extension().is_some_and(|extension| extension == "md");
        is_markdown && name != "SUMMARY.md"
    };
    let mut names: Vec<String> = names.filter(is_page).collect();
    names.sort();
    names
}

/// Makes of each page two tests, and a list of all.
macro_rules! pages {
    ($($name:ident: $start:expr, $file:literal;)+) => {
        const PAGES: &[&str] = &[$($file),+];

        mod sqlite {
            use super::Start;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::run($file, $start, super::Kind::Sqlite).await;
                }
            )+
        }
        mod postgres {
            use super::Start;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::run($file, $start, super::Kind::Postgres).await;
                }
            )+
        }
    };
}

// Start::Bare: nothing is set and nobody serves, as for who begins. Start::Tables: the database has its tables, and
// the stand-in is the API. Start::Server: as that, on a Postgres of its own, for roles belong to a server.
pages! {
    api: Start::Tables, "api.md";
    commands: Start::Tables, "commands.md";
    comparison: Start::Tables, "comparison.md";
    compatible_servers: Start::Tables, "compatible-servers.md";
    consuming: Start::Tables, "consuming.md";
    continuation: Start::Tables, "continuation.md";
    contract: Start::Tables, "contract.md";
    daemons: Start::Tables, "daemons.md";
    deploy: Start::Tables, "deploy.md";
    documents: Start::Tables, "documents.md";
    enqueuing: Start::Tables, "enqueuing.md";
    failing: Start::Tables, "failing.md";
    faults: Start::Tables, "faults.md";
    gates: Start::Tables, "gates.md";
    glossary: Start::Tables, "glossary.md";
    guarantees: Start::Tables, "guarantees.md";
    introduction: Start::Tables, "introduction.md";
    metrics: Start::Tables, "metrics.md";
    opentelemetry: Start::Tables, "opentelemetry.md";
    outcomes: Start::Tables, "outcomes.md";
    performance: Start::Tables, "performance.md";
    quick_start: Start::Bare, "quick-start.md";
    retention: Start::Tables, "retention.md";
    runbook: Start::Tables, "runbook.md";
    security: Start::Server, "security.md";
    settings: Start::Tables, "settings.md";
    stand_in: Start::Tables, "stand-in.md";
    status: Start::Tables, "status.md";
    structured_output: Start::Tables, "structured-output.md";
    supply_chain: Start::Tables, "supply-chain.md";
    templates: Start::Tables, "templates.md";
    tools: Start::Tables, "tools.md";
    tuning: Start::Tables, "tuning.md";
    upgrade: Start::Tables, "upgrade.md";
    web: Start::Tables, "web.md";
}

async fn run(file: &str, start: Start, kind: Kind) {
    let page = Page::parse(file, &read(file));
    assert!(page.faults.is_empty(), "{}", page.faults.join("\n"));
    let session = Session::start(kind, start, &page).await;
    session.run(&page);
    session.end().await;
}

/// A section of the README, on one of the databases. Returns how many blocks ran.
async fn run_readme(heading: &str, start: Start, kind: Kind) -> usize {
    let readme = read("../README.md");
    let (_, section) = readme.split_once(&format!("\n{heading}\n")).expect("the README has this section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let section = section.split("\n### ").next().unwrap_or_default();
    // Many tests run at once: the port must not be the one that everybody has.
    let section = section.replace("promptmill stand-in &", "promptmill stand-in --listen 127.0.0.1:8787 &");
    let page = Page::parse("../README.md", &section);
    assert!(page.faults.is_empty(), "{:?}", page.faults);
    let session = Session::start(kind, start, &page).await;
    session.run(&page);
    session.end().await;
    page.blocks.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quick_start_of_the_readme_runs_on_sqlite() {
    assert_eq!(run_readme("### SQLite", Start::Bare, Kind::Sqlite).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quick_start_of_the_readme_runs_on_postgres() {
    assert_eq!(run_readme("### Postgres", Start::Bare, Kind::Postgres).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sql_of_the_readme_runs_on_both_databases() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        assert_eq!(run_readme("## The SQL contract", Start::Tables, kind).await, 2);
    }
}

#[test]
fn every_page_is_run() {
    assert_eq!(names(), PAGES, "the pages of docs/ and those of tests/it/docs/mod.rs");
}

#[test]
fn a_block_that_is_not_run_says_why_and_is_rare() {
    let mut blocks = 0;
    let mut idle = Vec::new();
    for name in names() {
        let page = Page::parse(&name, &read(&name));
        blocks += page.blocks.len();
        idle.extend(page.idle.iter().map(|why| format!("{name}: {why}")));
    }
    // What is written for other programs (a unit, a manifest) is among them.
    assert!(idle.len() * 8 <= blocks + idle.len(), "of {blocks} blocks these do not run: {idle:#?}");
}
