//! The page of outcomes names every outcome, every type and code of ours, and every code of the API that changes
//! what happens: no more and no less than the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use promptmill::domain::outcome::Outcome;

use super::read;

/// Written by no `Fault::new`: where they stand, and how.
const BESIDE: [(&str, &str, &str); 7] = [
    ("lost", "migrations/sqlite/0001_create_tables.sql", "'lost'"),
    ("cancelled", "migrations/sqlite/0001_create_tables.sql", "'cancelled', 'cancelled'"),
    ("expired", "src/store/sqlite/upkeep.rs", "'expired', 'expired'"),
    ("quarantined", "src/store/sqlite/upkeep.rs", "'quarantined'"),
    ("schema", "src/domain/talk.rs", "{ \"schema\" }"),
    ("not_json", "src/domain/talk.rs", "{ \"not_json\" }"),
    ("container_expired", "src/domain/retry.rs", "Some(\"container_expired\")"),
];

/// What stands in the place of a type or a code where that is said elsewhere: read there, or passed on.
const PASSED_ON: [&str; 6] =
    ["kind", "code", "self.code", "Some(self.code)", "Some(code)", "Some(lost_code(*lost))"];

/// The text of the product's sources that make a fault, without their tests.
fn sources() -> String {
    fn gather(folder: &Path, into: &mut String) {
        for entry in fs::read_dir(folder).expect("a folder of ours") {
            let path = entry.expect("a file of ours").path();
            if path.is_dir() {
                gather(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("tests.rs")
            {
                let text = fs::read_to_string(&path).expect("sources are text");
                into.push_str(text.split("#[cfg(test)]").next().unwrap_or_default());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut text = String::new();
    for part in ["domain", "worker", "claude"] {
        gather(&root.join(part), &mut text);
        text.push_str(&fs::read_to_string(root.join(part).with_extension("rs")).expect("a module"));
    }
    text
}

/// The arguments number `which` of every call of a function.
fn arguments(source: &str, call: &str, which: usize) -> Vec<String> {
    let mut found = Vec::new();
    for after in source.split(call).skip(1) {
        let (mut depth, mut quoted, mut escaped, mut number, mut argument) =
            (0, false, false, 0, String::new());
        for c in after.chars() {
            match c {
                '"' if !escaped => quoted = !quoted,
                '(' | '[' | '{' if !quoted => depth += 1,
                ')' | ']' | '}' if !quoted && depth == 0 => break,
                ')' | ']' | '}' if !quoted => depth -= 1,
                ',' if !quoted && depth == 0 => {
                    if number == which {
                        break;
                    }
                    number += 1;
                    argument.clear();
                    continue;
                }
                _ => {}
            }
            escaped = c == '\\' && !escaped;
            argument.push(c);
        }
        assert_eq!(number, which, "{call} has fewer arguments: {after:.80}");
        found.push(argument.trim().to_owned());
    }
    found
}

/// The word of a literal, bare or in `Some`.
fn word(argument: &str) -> Option<&str> {
    let inner = argument.strip_prefix("Some(").and_then(|inner| inner.strip_suffix(')')).unwrap_or(argument);
    inner.strip_prefix('"')?.strip_suffix('"')
}

/// All that the code may write as `error_type` or `error_code` by itself.
fn written() -> BTreeSet<String> {
    let source = sources();
    let places = [("Fault::new(", 0), ("Fault::new(", 1), ("Invalid::new(", 1), ("self.end_truncated(", 0)];
    let mut words: BTreeSet<String> = BTreeSet::new();
    for (call, which) in places {
        for argument in arguments(&source, call, which) {
            match word(&argument) {
                Some(word) => {
                    words.insert(word.to_owned());
                }
                None => assert!(
                    argument == "None" || PASSED_ON.contains(&argument.as_str()),
                    "{call}: where is {argument} written down? Read it here, or name it in PASSED_ON"
                ),
            }
        }
    }
    words.extend(literals(&source, "const fn lost_code("));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (word, file, how) in BESIDE {
        let text = fs::read_to_string(root.join(file)).expect("a source of ours");
        assert!(text.contains(how), "{file} does not write {word} any more");
        words.insert(word.to_owned());
    }
    words
}

/// The strings in the body of a function.
fn literals(source: &str, function: &str) -> BTreeSet<String> {
    let (_, body) = source.split_once(function).unwrap_or_else(|| panic!("no {function}"));
    let body = body.split("\n}\n").next().unwrap_or_default();
    body.split('"').skip(1).step_by(2).map(ToOwned::to_owned).collect()
}

/// The text below a heading of the page.
fn section(page: &str, heading: &str) -> String {
    let (_, rest) = page.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    rest.split("\n## ").next().unwrap_or_default().to_owned()
}

/// What stands between backticks in the first cells of the rows of a text's tables.
fn named(text: &str, cells: usize) -> BTreeSet<String> {
    let rows = text.lines().filter(|line| line.starts_with("| "));
    let cells = rows.flat_map(|row| row.split('|').skip(1).take(cells));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(ToOwned::to_owned).collect()
}

#[test]
fn the_page_names_every_outcome() {
    let documented = named(&section(&read("outcomes.md"), "## Outcomes"), 1);
    let ours: BTreeSet<String> = Outcome::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(documented, ours);
}

#[test]
fn the_page_names_every_type_and_code_of_ours() {
    let documented = named(&section(&read("outcomes.md"), "## Types and codes of promptmill"), 2);
    let written = written();
    let absent: Vec<_> = written.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(&written).collect();
    assert!(
        absent.is_empty() && invented.is_empty(),
        "not on the page: {absent:?}; not in the code: {invented:?}"
    );
}

#[test]
fn the_page_names_every_code_of_the_api_that_is_known() {
    let documented = named(&section(&read("outcomes.md"), "## Codes of the API"), 1);
    let documented: BTreeSet<String> = documented.iter().map(|code| code.replace('*', "")).collect();
    assert_eq!(documented, literals(&sources(), "fn class_of_code("));
}

#[test]
fn the_page_names_every_type_of_the_api() {
    let documented = named(&section(&read("outcomes.md"), "## Errors of the API"), 1);
    assert_eq!(documented, literals(&sources(), "fn effective_status("));
}
