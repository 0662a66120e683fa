//! On SQLite each statement that the driver logged is explained once more, and those of the triggers by the shell.

use std::collections::BTreeSet;

use super::seen::{BY_HAND, Seen};
use super::{COUNTING, GROWING, day, grown, head, is_frame, sources, written};
use crate::store::Bench;
use crate::support::Ground;

/// Statements that sort, by how they begin, and what.
const SORTING: [(&str, &str); 6] = [
    ("WITH RECURSIVE hop", "the lanes that a scan found"),
    (
        "SELECT json_group_array(json_array(job_id, bytes",
        "the oldest jobs of a lane, as many as are to be taken",
    ),
    ("SELECT c.job_id, c.claim, c.seq, c.kind", "the ledger of a batch"),
    ("SELECT t.job_id, t.claim, t.seq, t.position", "the tool calls of a batch"),
    ("WITH tally", "gates"),
    ("SELECT id, beat", "workers"),
];

/// Indexes that may be walked from end to end: what is under way just now stands in them.
const SHORT: [&str; 2] = ["job_state_running", "job_state_waiting"];

/// Returns what is wrong with a step of a plan.
fn fault(sql: &str, step: &str) -> Option<&'static str> {
    let counts = COUNTING.iter().any(|begin| sql.starts_with(begin));
    if step.contains("USE TEMP B-TREE FOR ORDER BY") {
        let known = SORTING.iter().any(|(begin, _)| sql.starts_with(begin));
        return (!known).then_some("sorts rows of a table");
    }
    let scanned = step.trim_start_matches(['|', '-', '`', ' ']).strip_prefix("SCAN ")?;
    let name = scanned.split_whitespace().next()?;
    // The streams of a scan have a letter that a table has, too.
    let grows =
        is_growing(sql, name) && !(name == "s" && scanned == "s" && sql.starts_with("WITH RECURSIVE hop"));
    let by_index = scanned.contains(" INDEX job_state_");
    let short = SHORT.iter().any(|index| scanned.ends_with(index));
    (grows && !short && !(counts && by_index)).then_some("reads a table from end to end")
}

/// Whether a name in a plan is one of the tables that grow: itself, or what the statement calls it.
fn is_growing(sql: &str, name: &str) -> bool {
    let words: Vec<&str> = sql.split_whitespace().map(|word| word.trim_matches(['(', ')', ','])).collect();
    let called =
        |at: usize| words[at + 1..].starts_with(&[name]) || words[at + 1..].starts_with(&["AS", name]);
    let named = |table: &&str| (0..words.len()).any(|at| words[at] == *table && called(at));
    GROWING.contains(&name) || GROWING.iter().any(named)
}

/// Explains a statement, after `before` on the same connection, and returns what is wrong with it.
async fn faults(ground: &Ground, before: &str, sql: &str) -> Vec<String> {
    let rows = ground.rows(&format!("{BY_HAND} {before}; EXPLAIN QUERY PLAN {sql}")).await;
    assert!(rows.iter().all(|row| row.len() == 4), "a plan: {rows:?}");
    let wrong =
        |row: &Vec<String>| fault(sql, &row[3]).map(|fault| format!("{fault}: {} in: {}", row[3], head(sql)));
    rows.iter().filter_map(wrong).collect()
}

/// SQLite looks at the value of a bare variable to plan with it, and compiles the statement anew whenever another
/// is bound (`sqlite3ExprIsInteger`, `TK_VARIABLE`). Not so where it is signed.
#[test]
fn no_statement_is_compiled_anew_for_its_limit() {
    for (name, source) in sources("sqlite") {
        assert!(!source.contains("LIMIT $"), "src/store/sqlite/{name}.rs: write LIMIT +$1 for LIMIT $1");
    }
}

#[tokio::test]
async fn each_statement_reads_by_an_index_whatever_the_statistics_are() {
    let (ground, small) = (Ground::sqlite().await, Ground::sqlite().await);
    let (bench, astray) = (Bench::on(&ground).await, Bench::on(&ground).await);
    grown::grow(&ground, grown::MANY).await;
    grown::grow(&small, grown::FEW).await;
    let seen = Seen::begin();
    day::live(&ground, &bench, &astray).await;
    let statements: BTreeSet<String> =
        seen.take().statements.into_iter().filter(|sql| !is_frame(sql)).collect();
    assert_eq!(statements.len(), written("sqlite"), "some statement was not looked at: {statements:#?}");

    let mut wrong = BTreeSet::new();
    // Never analysed, analysed as they are, and analysed when there was little yet: the plan of then is kept.
    for (ground, before) in [(&ground, "SELECT 1 LIMIT 0"), (&ground, "ANALYZE"), (&small, "ANALYZE")] {
        for sql in &statements {
            wrong.extend(faults(ground, before, sql).await);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    ground.close().await;
    small.close().await;
}

#[tokio::test]
async fn what_a_trigger_does_reads_by_an_index() {
    let ground = Ground::sqlite().await;
    grown::grow(&ground, grown::FEW).await;
    let mut shell = ".eqp trigger\n".to_owned();
    for sql in [
        "INSERT INTO jobs (prompt, queue) VALUES ('say hello', 'new');",
        "UPDATE job_state SET state = 'cancelled' WHERE job_id = 2;",
        "UPDATE job_state SET state = 'cancelled' WHERE job_id = 5;",
        "UPDATE job_state SET state = 'pending' WHERE job_id = 3;",
        "UPDATE tool_calls SET result = '' WHERE job_id = 65;",
        "DELETE FROM jobs WHERE id = 6;",
    ] {
        shell.push_str(sql);
        shell.push('\n');
    }
    let plans = ground.shell(&shell).expect("the shell tells plans");
    assert!(plans.matches("SEARCH").count() > 20, "{plans}");
    let (mut wrong, mut sql) = (Vec::new(), String::new());
    for step in plans.lines() {
        match step.strip_prefix("TRIGGER ") {
            Some(name) => {
                sql = ground.line(&format!("SELECT sql FROM sqlite_schema WHERE name = '{name}'")).await;
            }
            None => {
                wrong.extend(fault(&sql, step).map(|fault| format!("{fault}: {step} in: {}", head(&sql))));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{plans}");
    ground.close().await;
}
