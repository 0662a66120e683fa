//! Reads the source tree and says what is out of place: floors, banned words, lists that differ.
//!
//! What the compiler and clippy cannot see stands here. The rules are functions of a path and a
//! text, so that each is shown to bite.

mod code;

use std::collections::BTreeSet;
use std::path::Path;

use code::Code;

/// The modules under `src` and their floors; imports only point down.
const FLOORS: [(&str, u8); 14] = [
    ("domain", 0),
    // Below everything that acts; domain does not.
    ("failpoint", 0),
    ("store", 1),
    ("claude", 1),
    ("worker", 2),
    ("config", 3),
    ("cli", 3),
    ("telemetry", 3),
    ("stand_in", 3),
    ("web", 3),
    ("metrics", 3),
    ("listen", 3),
    ("systemd", 3),
    ("lib", 3),
];
/// The floor whose modules may know each other.
const SHELL: u8 = 3;
/// What domain must not name: it is a function of its arguments.
const WORLD: [&str; 12] = [
    "tokio",
    "sqlx",
    "reqwest",
    "axum",
    "fastrand",
    "std::env",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "SystemTime",
    "async fn",
];
/// The one file that may use the unmaintained crate that computes the delay curve.
const BACKOFF_HOME: &str = "src/domain/retry.rs";
/// Where the migrations are listed for the compiler.
const MIGRATION_LIST: &str = "src/store/migrations.rs";

/// A file of the tree: its path from the root, with `/`, and its text.
#[derive(Clone)]
struct File {
    path: String,
    text: String,
}

/// Returns what is wrong with a Rust file.
fn rust_faults(file: &File) -> Vec<String> {
    let code = Code::read(&file.text);
    let mut faults = Vec::new();
    if !file.text.trim_start().starts_with("//!") {
        faults.push("has no module doc".to_owned());
    }
    for word in ["todo!", "unimplemented!", "dbg!"] {
        if code.names(word) {
            faults.push(format!("holds a {word}"));
        }
    }
    if code.names("backoff::") && file.path != BACKOFF_HOME {
        faults.push(format!("uses backoff, which only {BACKOFF_HOME} may"));
    }
    if file.path.starts_with("src/") {
        faults.extend(floor_faults(&file.path, &code));
    }
    faults
}

fn floor_faults(path: &str, code: &Code) -> Vec<String> {
    let module: Vec<&str> = path.trim_start_matches("src/").trim_end_matches(".rs").split('/').collect();
    let Some(home) = floor(if module[0] == "main" { "lib" } else { module[0] }) else {
        return vec![format!("{} has no floor: give it one in tests/it/tidy.rs", module[0])];
    };
    let mut faults = Vec::new();
    for other in code.roots(module.len()) {
        let Some(there) = floor(&other) else { continue };
        let down = there < home || other == module[0] || (there == SHELL && home == SHELL);
        if !down {
            faults.push(format!("imports {other}, which is not below {}", module[0]));
        }
    }
    if module[0] == "domain" {
        let words = WORLD.iter().filter(|word| code.names(word));
        faults.extend(words.map(|word| format!("names {word}, but domain is pure")));
        // Tests may: an Instant has no other beginning.
        let in_tests = path.ends_with("/tests.rs") || path.contains("/tests/");
        if !in_tests && code.without_tests().names("Instant::now") {
            faults.push("reads the clock, but domain is pure".to_owned());
        }
    }
    faults
}

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// Returns what is wrong with any text of ours.
fn text_faults(file: &File) -> Vec<String> {
    let mut faults = Vec::new();
    if !file.text.ends_with('\n') {
        faults.push("does not end with a line break".to_owned());
    }
    if file.text.ends_with("\n\n") {
        faults.push("ends with an empty line".to_owned());
    }
    for (number, line) in file.text.split('\n').enumerate() {
        // A direction mark makes code read otherwise than it runs.
        let hidden = |c: char| {
            c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
        };
        if let Some(c) = line.chars().find(|&c| hidden(c)) {
            faults.push(format!("line {} holds {}", number + 1, c.escape_unicode()));
        }
        if line.ends_with(' ') && Path::new(&file.path).extension().is_none_or(|kind| kind != "md") {
            faults.push(format!("line {} ends with a blank", number + 1));
        }
    }
    faults
}

/// Returns what is wrong with the two lists of migrations, and with the list in the code.
fn migration_faults(postgres: &[String], sqlite: &[String], list: Option<&str>) -> Vec<String> {
    let mut faults = Vec::new();
    let both: [BTreeSet<&String>; 2] = [postgres.iter().collect(), sqlite.iter().collect()];
    for name in both[0].symmetric_difference(&both[1]) {
        faults.push(format!("{name} stands in one folder only"));
    }
    for (at, name) in both[0].iter().enumerate() {
        let words = name.strip_suffix(".sql").and_then(|name| name.strip_prefix(&format!("{:04}_", at + 1)));
        let plain =
            |words: &str| words.contains('_') && words.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        if !words.is_some_and(plain) {
            faults.push(format!("{name} is not {:04}_verb_noun.sql", at + 1));
        }
    }
    let Some(list) = list else {
        if !postgres.is_empty() {
            faults.push(format!("{MIGRATION_LIST} is missing"));
        }
        return faults;
    };
    if postgres.is_empty() {
        faults.push("there are no migrations".to_owned());
    }
    for (folder, names) in [("postgres", postgres), ("sqlite", sqlite)] {
        let path = format!("migrations/{folder}/");
        let quoted = list.split(&path).skip(1);
        let quoted =
            quoted.filter_map(|rest| rest.split_once(".sql\"")).map(|(name, _)| format!("{name}.sql"));
        // The doc may show the pattern of a name, too.
        let listed: Vec<String> =
            quoted.filter(|name| name.starts_with(|c: char| c.is_ascii_digit())).collect();
        if listed != names {
            faults.push(format!("{MIGRATION_LIST} lists {listed:?} of {folder}, the folder holds {names:?}"));
        }
    }
    faults
}

/// All files under `folder` of the repository, in order.
fn files(folder: &str) -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        for entry in entries {
            let path = entry.expect("the tree can be listed").path();
            let name =
                path.strip_prefix(root).expect("it is below the root").to_string_lossy().replace('\\', "/");
            if path.is_dir() {
                folders.push(path);
            } else {
                let text = std::fs::read(&path).expect("the tree can be read");
                found.push(File { path: name, text: String::from_utf8_lossy(&text).into_owned() });
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

/// The Rust files of the crate and its tests.
fn rust_files() -> Vec<File> {
    let mut files = [files("src"), files("tests/it")].concat();
    files.retain(|file| Path::new(&file.path).extension().is_some_and(|kind| kind == "rs"));
    files
}

fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "the tree is not tidy:\n{}", faults.join("\n"));
}

fn each(files: &[File], rule: fn(&File) -> Vec<String>) -> Vec<String> {
    let named = |file: &File| {
        let path = file.path.clone();
        rule(file).into_iter().map(move |fault| format!("{path}: {fault}"))
    };
    files.iter().flat_map(named).collect()
}

#[test]
fn the_floors_hold_and_nothing_is_left_to_do() {
    let files = rust_files();
    assert!(files.iter().any(|file| file.path == "src/lib.rs"), "the tree was not found");
    assert_none(&each(&files, rust_faults));
}

#[test]
fn every_text_of_ours_is_plain() {
    let mut files = [rust_files(), files("migrations"), files("config")].concat();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in
        ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "Cargo.toml", "Dockerfile"]
    {
        if let Ok(text) = std::fs::read_to_string(root.join(name)) {
            files.push(File { path: name.to_owned(), text });
        }
    }
    assert_none(&each(&files, text_faults));
}

#[test]
fn both_databases_have_the_same_migrations() {
    let names = |folder: &str| -> Vec<String> {
        let prefix = format!("{folder}/");
        files(folder)
            .into_iter()
            .filter_map(|file| file.path.strip_prefix(&prefix).map(str::to_owned))
            .collect()
    };
    let list = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(MIGRATION_LIST)).ok();
    let faults =
        migration_faults(&names("migrations/postgres"), &names("migrations/sqlite"), list.as_deref());
    assert_none(&faults);
}

fn faults_of(path: &str, text: &str) -> Vec<String> {
    rust_faults(&File { path: path.to_owned(), text: format!("//! Doc.\n{text}\n") })
}

#[test]
fn an_import_that_points_up_or_sideways_is_found() {
    let bad = [
        ("src/domain/job.rs", "use crate::store::Store;"),
        ("src/domain/job.rs", "use super::super::store::Store;"),
        ("src/domain/talk.rs", "fn f() { crate::failpoint::failpoint!(\"push\"); }"),
        ("src/domain.rs", "use super::worker;"),
        ("src/store/sqlite.rs", "use crate::{domain::job::Job, claude::{Claude, http}};"),
        ("src/claude.rs", "fn f() { crate::store::open(); }"),
        ("src/worker/gate.rs", "use crate::config::Config;"),
        ("src/store.rs", "use crate::{\n    config::Config,\n};"),
    ];
    for (path, text) in bad {
        assert_eq!(faults_of(path, text).len(), 1, "{path}: {text}");
    }
    let good = [
        ("src/domain/job.rs", "use super::stop::StopReason; use crate::domain::talk;"),
        (
            "src/domain/job.rs",
            "/// See [`crate::store`].\nconst A: &str = \"crate::store\"; // crate::worker",
        ),
        ("src/store/sqlite.rs", "use crate::{domain::job::Job, store::row};"),
        ("src/worker.rs", "use crate::{claude, domain, store};"),
        ("src/cli.rs", "use crate::{config, telemetry, worker};"),
        ("src/store/sqlite.rs", "use super::super::domain;"),
    ];
    for (path, text) in good {
        assert_none(&faults_of(path, text));
    }
    assert_eq!(faults_of("src/misc.rs", "").len(), 1, "a module without a floor");
}

#[test]
fn a_domain_that_looks_at_the_world_is_found() {
    for text in [
        "use tokio::sync::mpsc;",
        "fn f(_: sqlx::PgPool) {}",
        "use std::time::SystemTime;",
        "fn f() { std::env::var(\"HOME\").ok(); }",
        "fn f() { let _ = std::time::Instant::now(); }",
        "use std::{env, fs};",
        "async fn f() {}",
    ] {
        assert!(!faults_of("src/domain/pace.rs", text).is_empty(), "{text}");
    }
    for text in [
        "use std::time::{Duration, Instant};",
        "#[cfg(test)]\nmod tests {\n    fn f() { Instant::now(); }\n}",
        "// tokio would be wrong here\nconst A: &str = r#\"sqlx \"and\" reqwest\"#; const B: char = '\"';",
        "fn tokios<'a>(environment: &'a str) {}",
    ] {
        assert_none(&faults_of("src/domain/pace.rs", text));
    }
}

#[test]
fn what_is_left_to_do_is_found_and_backoff_stays_at_home() {
    for text in ["fn f() { todo!() }", "fn f() { unimplemented!(\"later\") }", "fn f() { dbg!(1); }"] {
        assert_eq!(faults_of("src/worker.rs", text).len(), 1, "{text}");
    }
    assert_eq!(faults_of("src/worker.rs", "use backoff::ExponentialBackoff;").len(), 1);
    assert_none(&faults_of(BACKOFF_HOME, "use backoff::ExponentialBackoff;"));
    assert_none(&faults_of("src/worker.rs", "const A: &str = \"todo!()\"; /* dbg!(x) /* nested */ */"));
    let undocumented = File { path: "src/cli.rs".to_owned(), text: "fn main() {}\n".to_owned() };
    assert_eq!(rust_faults(&undocumented), ["has no module doc"]);
}

#[test]
fn hidden_characters_and_ragged_ends_are_found() {
    let faults = |text: &str| text_faults(&File { path: "src/lib.rs".to_owned(), text: text.to_owned() });
    assert_none(&faults("//! Plain, even ≈ and “so”.\n"));
    for text in ["a", "a\n\n", "a\tb\n", "a\r\n", "a\u{0}\n", "a\u{202e}b\n", "\u{feff}a\n", "a \n"] {
        assert_eq!(faults(text).len(), 1, "{text:?}");
    }
}

#[test]
fn migrations_that_differ_are_found() {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let one = names(&["0001_create_tables.sql"]);
    let two = names(&["0001_create_tables.sql", "0002_add_tool_calls.sql"]);
    let list = |names: &[String]| {
        let lines = |folder| {
            names.iter().map(move |name| format!("include_str!(\"../../migrations/{folder}/{name}\")\n"))
        };
        lines("postgres").chain(lines("sqlite")).collect::<String>()
    };
    assert_none(&migration_faults(&two, &two, Some(&list(&two))));
    assert_none(&migration_faults(&[], &[], None));
    assert!(!migration_faults(&two, &one, Some(&list(&two))).is_empty());
    assert!(!migration_faults(&two, &two, Some(&list(&one))).is_empty());
    assert!(!migration_faults(&one, &one, None).is_empty());
    assert!(!migration_faults(&[], &[], Some("")).is_empty());
    let odd = names(&["0001_create_tables.sql", "0003_AddMore.sql"]);
    assert!(!migration_faults(&odd, &odd, Some(&list(&odd))).is_empty());
}
