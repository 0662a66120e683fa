//! What the pages name in passing is there: settings, columns, fields of the policy, commands and their options.

use std::collections::BTreeSet;

use clap::CommandFactory as _;
use promptmill::cli::Cli;

use super::{docs, names, read};
use crate::readme::columns;

const SQLITE: &str = include_str!("../../../migrations/sqlite/0001_create_tables.sql");
const SETTINGS: &str = include_str!("../../../config/default.toml");
const RULES: &str = include_str!("../../../deploy/prometheus/alerts.yaml");
const POLICY: &str = include_str!("../../../src/domain/job/policy.rs");

/// What stands between single backticks, with the page that says it.
fn quoted() -> Vec<(String, String)> {
    let mut quoted = Vec::new();
    for name in names() {
        let text = read(&name);
        let mut inside = false;
        for line in text.lines() {
            if line.trim_start().starts_with("```") {
                inside = !inside;
            } else if !inside {
                quoted.extend(line.split('`').skip(1).step_by(2).map(|word| (name.clone(), word.to_owned())));
            }
        }
    }
    quoted
}

fn is_name(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
}

/// The settings of the configuration, as `section.key`.
fn settings() -> BTreeSet<String> {
    let mut section = "";
    let mut settings = BTreeSet::new();
    for line in SETTINGS.lines() {
        // Those of names are shown as comments.
        let line = line.trim_start_matches("# ");
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = name.split('.').next().unwrap_or_default();
        } else if let Some((key, _)) = line.split_once(" = ")
            && is_name(key)
        {
            settings.insert(format!("{section}.{key}"));
        }
    }
    settings
}

#[test]
fn every_setting_that_a_page_names_is_one() {
    let settings = settings();
    assert!(settings.contains("worker.concurrency") && settings.contains("queues.tools"), "{settings:?}");
    let sections: BTreeSet<&str> = settings.iter().filter_map(|setting| setting.split('.').next()).collect();
    let mut named = 0;
    for (page, word) in quoted() {
        let Some((section, key)) = word.split_once('.') else { continue };
        // Tables of the same name as a section have columns.
        if !sections.contains(section) || !is_name(key) || columns_of(section).contains(key) {
            continue;
        }
        named += 1;
        assert!(settings.contains(&word), "{page}: there is no setting {word}");
    }
    assert!(named > 40, "the pages name settings: {named}");
}

/// The columns of a table or a view, its own ones too.
fn columns_of(relation: &str) -> BTreeSet<&'static str> {
    let table = format!("CREATE TABLE {relation} (\n");
    let Some((_, body)) = SQLITE.split_once(table.as_str()) else { return BTreeSet::new() };
    let body = body.split("\n) STRICT").next().unwrap_or_default();
    body.lines()
        .filter_map(|line| line.strip_prefix("    ")?.split(' ').next())
        .filter(|word| is_name(word))
        .collect()
}

#[test]
fn every_column_that_a_page_names_is_there() {
    let mut named = 0;
    for (page, word) in quoted() {
        let Some((table, column)) = word.split_once('.') else { continue };
        let columns = columns_of(table);
        // A setting of a queue is no column.
        if columns.is_empty() || !is_name(column) || settings().contains(&word) {
            continue;
        }
        named += 1;
        assert!(columns.contains(column), "{page}: {table} has no column {column}");
    }
    assert!(named > 10, "the pages name columns: {named}");
}

#[test]
fn the_page_of_the_contract_names_every_promised_column() {
    let page = read("contract.md");
    for table in ["jobs", "job_state", "results", "calls", "tool_calls", "queues"] {
        let own = ["worker"];
        let absent: Vec<_> = columns(table)
            .into_iter()
            .filter(|column| !page.contains(&format!("`{column}`")) && !own.contains(column))
            .collect();
        assert!(absent.is_empty(), "{table}: {absent:?}");
    }
}

#[test]
fn the_page_of_the_contract_names_every_field_of_the_policy() {
    let (_, set) = POLICY.split_once("fn set(").expect("policies are set");
    let set = set.split("\n    }\n").next().unwrap_or_default();
    let arms = set.lines().filter_map(|line| line.trim().strip_prefix('"')?.split_once("\" =>"));
    let known: BTreeSet<&str> = arms.map(|(field, _)| field).collect();
    let page = read("contract.md");
    let (_, section) = page.split_once("\n## Policy\n").expect("the page has it");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    assert_eq!(rows.collect::<BTreeSet<_>>(), known);
}

#[test]
fn the_runbook_says_where_to_go_for_each_alert() {
    let runbook = read("runbook.md");
    let alerts = RULES.lines().filter_map(|line| line.trim_start().strip_prefix("- alert: "));
    let missing: Vec<&str> = alerts.filter(|alert| !runbook.contains(&format!("`{alert}`"))).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn every_command_that_a_page_names_is_there_with_its_options() {
    let cli = Cli::command();
    let mut named = 0;
    for (page, word) in quoted() {
        let Some(words) = word.strip_prefix("promptmill ") else { continue };
        let mut words = words.split_whitespace();
        let name = words.next().unwrap_or_default();
        if name.starts_with('-') {
            continue;
        }
        let command = cli.find_subcommand(name).unwrap_or_else(|| panic!("{page}: no command {name}"));
        let mut options: BTreeSet<&str> =
            command.get_arguments().filter_map(|option| option.get_long()).collect();
        options.extend(
            command
                .get_subcommands()
                .flat_map(|inner| inner.get_arguments().filter_map(|option| option.get_long())),
        );
        options.extend(["help", "json", "config"]);
        named += 1;
        for option in words.filter_map(|word| word.strip_prefix("--")) {
            assert!(options.contains(option), "{page}: promptmill {name} has no --{option}");
        }
    }
    assert!(named > 30, "the pages name commands: {named}");
}

/// The tags of our image that a text names; a port behind the name of a service is none.
fn tags(text: &str) -> Vec<&str> {
    let behind = text.split("promptmill:").skip(1);
    let tag =
        behind.map(|rest| rest.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default());
    tag.map(|tag| tag.trim_end_matches('.')).filter(|tag| tag.contains('.')).collect()
}

#[test]
fn every_place_that_names_a_version_names_the_one_of_the_manifest() {
    let version = env!("CARGO_PKG_VERSION");
    let root = docs();
    let root = root.parent().expect("docs is in a folder");
    for file in ["compose.yaml", "deploy/kubernetes/statefulset.yaml", "docs/deploy.md"] {
        let text = std::fs::read_to_string(root.join(file)).expect(file);
        let tags = tags(&text);
        assert!(!tags.is_empty(), "{file} names no image of ours");
        assert!(
            tags.iter().all(|&tag| tag == version),
            "{file} has the image {tags:?}, and Cargo.toml {version}"
        );
    }
    for name in names() {
        let text = read(&name);
        assert!(tags(&text).iter().all(|&tag| tag == version), "{name}: {:?}", tags(&text));
    }
    let changes = include_str!("../../../CHANGELOG.md");
    let mut released = changes.lines().filter_map(|line| line.strip_prefix("## [")?.split(']').next());
    let newest = released.find(|heading| *heading != "Unreleased");
    assert!(
        newest.is_none_or(|newest| newest == version),
        "CHANGELOG.md: {newest:?}, and Cargo.toml: {version}"
    );
    assert_eq!(tags("image promptmill:1.2.3. At promptmill:9464, promptmill:latest"), ["1.2.3"]);
}
