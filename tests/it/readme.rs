//! The README and the book say what is so: the two commands, the tests they name, and tables that leave nothing out.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::CommandFactory;
use promptmill::cli::{Cli, Exit};
use promptmill::domain::outcome::Outcome;

const README: &str = include_str!("../../README.md");
const COMMANDS: &str = include_str!("../../docs/commands.md");
const CONTRACT: &str = include_str!("../../docs/contract.md");
const FAULTS: &str = include_str!("../../docs/faults.md");
const GUARANTEES: &str = include_str!("../../docs/guarantees.md");
const SQLITE: &str = include_str!("../../migrations/sqlite/0001_create_tables.sql");

/// The part of a text from a heading to the next one of its level or above.
fn section(text: &'static str, heading: &str) -> &'static str {
    let start = text.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no section {heading}")) + 1;
    let rest = &text[start + heading.len()..];
    let level = heading.find(' ').expect("a heading has marks and words");
    let end = (2..=level)
        .filter_map(|level| rest.find(&format!("\n{} ", "#".repeat(level))))
        .min()
        .unwrap_or(rest.len());
    &rest[..end]
}

/// What stands between single backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// What stands between single backticks in one cell of each row of the tables in a text.
fn cells(text: &'static str, column: usize) -> BTreeSet<&'static str> {
    text.lines()
        .filter(|line| line.starts_with('|'))
        .filter_map(|line| line.split('|').nth(column + 1))
        .flat_map(quoted)
        .collect()
}

/// Every source file of ours: its module, without `crate` and `it`, and its text.
fn sources() -> Vec<(String, String)> {
    fn read(folder: &Path, module: &str, into: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).expect("a folder of ours") {
            let path = entry.expect("a file of ours").path();
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let inner = if module.is_empty() { name } else { format!("{module}::{name}") };
            if path.is_dir() {
                read(&path, &inner, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let module = inner.strip_suffix("::mod").map_or(inner.clone(), ToOwned::to_owned);
                into.push((module, fs::read_to_string(&path).expect("sources are text")));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    read(&root.join("src"), "", &mut sources);
    read(&root.join("tests/it"), "", &mut sources);
    sources
}

/// Whether there is such a test: a name alone, or behind its module.
fn is_there(sources: &[(String, String)], name: &str) -> bool {
    let (module, test) = name.rsplit_once("::").unwrap_or(("", name));
    sources.iter().any(|(place, text)| {
        let inside = if module.is_empty() { Some("") } else { module.strip_prefix(place.as_str()) };
        let Some(inside) = inside else { return false };
        // What is left are modules inside of the file.
        inside.split("::").skip(1).all(|inner| text.contains(&format!("mod {inner} {{")))
            && (inside.is_empty() || inside.starts_with("::"))
            && text.contains(&format!("fn {test}("))
    })
}

/// The columns of a table, as the migration makes it.
pub fn columns(table: &str) -> BTreeSet<&'static str> {
    let start = SQLITE.find(&format!("CREATE TABLE {table} (")).expect("the table is made");
    let body = &SQLITE[start..][..SQLITE[start..].find("\n) STRICT").expect("tables are strict")];
    body.lines()
        .skip(1)
        .filter_map(|line| line.strip_prefix("    "))
        .take_while(|line| !line.starts_with("-- The worker's own"))
        .filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase()))
        .filter_map(|line| line.split(' ').next())
        .collect()
}

#[test]
fn the_readme_begins_with_exactly_two_commands() {
    let section = section(README, "## Two commands");
    let blocks: Vec<&str> = section.split("```").skip(1).step_by(2).collect();
    assert_eq!(blocks, ["sh\ncargo run --release -- demo\ntests/run\n"]);
    assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run").exists());
}

#[test]
fn every_test_that_the_guarantees_name_is_there() {
    let sources = sources();
    let named = cells(section(GUARANTEES, "## What is promised"), 1);
    assert!(named.len() >= 20, "the table of guarantees names its tests: {named:?}");
    let absent: Vec<_> = named.iter().filter(|name| !is_there(&sources, name)).collect();
    assert!(absent.is_empty(), "no such tests: {absent:?}");
}

#[test]
fn every_promise_names_a_test() {
    let section = section(GUARANTEES, "## What is promised");
    let table = section.lines().skip_while(|line| !line.starts_with("| promised |"));
    let promises: Vec<&str> = table.take_while(|line| line.starts_with('|')).skip(2).collect();
    assert!(promises.len() >= 20, "the table of guarantees has {} rows", promises.len());
    for promise in promises {
        let tests = promise.split('|').nth(2).map_or(0, |cell| quoted(cell).count());
        assert!(tests > 0, "no test holds this: {promise}");
    }
}

#[test]
fn every_fault_names_its_tests_with_their_modules_and_they_are_there() {
    let sources = sources();
    let faults: Vec<&str> = FAULTS
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| what goes wrong |"))
        .collect();
    assert!(faults.len() >= 60, "the table of faults has {} rows", faults.len());
    for fault in faults {
        let named: Vec<&str> = fault.split('|').nth(3).map(quoted).into_iter().flatten().collect();
        assert!(!named.is_empty(), "no test holds this: {fault}");
        let absent: Vec<_> =
            named.iter().filter(|name| !name.contains("::") || !is_there(&sources, name)).collect();
        assert!(absent.is_empty(), "no such tests: {absent:?}");
    }
}

#[test]
fn the_table_of_commands_is_the_help() {
    let commands = Cli::command();
    let helped: BTreeSet<&str> = commands.get_subcommands().map(clap::Command::get_name).collect();
    assert_eq!(cells(COMMANDS.split("\n## ").next().unwrap_or_default(), 0), helped);
}

#[test]
fn the_table_of_exit_codes_is_whole() {
    let section = section(COMMANDS, "## Exit codes");
    let codes = (0..=u8::MAX).filter(|&code| Exit::of_code(code) as u8 == code);
    let documented = section.lines().filter_map(|line| line.split('|').nth(1)?.trim().parse::<u8>().ok());
    assert_eq!(documented.collect::<Vec<_>>(), codes.collect::<Vec<_>>());
}

#[test]
fn the_table_of_outcomes_is_whole() {
    let documented = section(README, "## Outcomes")
        .lines()
        .skip_while(|line| !line.starts_with("| outcome |"))
        .filter_map(|line| quoted(line.split('|').nth(1)?).next());
    assert_eq!(documented.collect::<Vec<_>>(), Outcome::ALL.map(Outcome::as_str));
}

#[test]
fn the_tables_of_columns_are_whole() {
    for (heading, table) in [
        ("## `jobs`: what you ask", "jobs"),
        ("## `job_state`: where each job is", "job_state"),
        ("## `results`: what you get", "results"),
    ] {
        let documented = cells(section(CONTRACT, heading), 0);
        let absent: Vec<_> =
            columns(table).into_iter().filter(|column| !documented.contains(column)).collect();
        assert!(absent.is_empty(), "columns of {table} that the contract leaves out: {absent:?}");
    }
}
