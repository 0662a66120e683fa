//! The example of examples/products, as a person runs it: shell, `sqlite3`, and the stand-in.

use std::path::Path;
use std::process::Command;

/// Runs the example in a folder; returns what it printed.
fn run(folder: &Path) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/products/run.sh");
    // A script that would wait for ever fails its test instead.
    let mut command = Command::new("/usr/bin/timeout");
    command.arg("100").arg(script).arg(folder).env_clear();
    command.env("PATH", std::env::var_os("PATH").expect("a path"));
    command.env("PROMPTMILL", env!("CARGO_BIN_EXE_promptmill"));
    let output = command.output().expect("the script starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{:?}: {said}", output.status);
    String::from_utf8(output.stdout).expect("it prints UTF-8")
}

fn query(folder: &Path, sql: &str) -> String {
    let output = Command::new("sqlite3").arg(folder.join("products.db")).arg(sql).output();
    let output = output.expect("sqlite3 starts: tests/run installs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

#[test]
fn a_thousand_product_texts_become_a_table_by_their_schemas() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let printed = run(folder.path());
    assert!(printed.lines().any(|line| line.starts_with("complete  1000")), "{printed}");
    let facts = "SELECT count(*), count(DISTINCT product_id), sum(kind = 'Lamp' AND warranty_years >= 0), count(warranty_years), count(tags) FROM facts";
    assert_eq!(query(folder.path(), facts), "1000|1000|250|250|750");
    let kinds = "SELECT group_concat(kind) FROM (SELECT DISTINCT kind FROM facts ORDER BY kind)";
    assert_eq!(query(folder.path(), kinds), "Chair,Lamp,Shelf,Table");
    assert_eq!(
        query(
            folder.path(),
            "SELECT min(n), max(n) <= 3 FROM (SELECT count(*) n FROM tags GROUP BY product_id)"
        ),
        "1|1"
    );
    // Run again: nothing is asked twice.
    let calls = "ATTACH '{}' AS mill; SELECT count(*) FROM mill.calls";
    let calls = calls.replace("{}", &folder.path().join("promptmill.db").display().to_string());
    let before = query(folder.path(), &calls);
    run(folder.path());
    assert_eq!(query(folder.path(), &calls), before);
    assert!(!folder.path().join("stand-in.url").exists(), "the stand-in is stopped");
}
