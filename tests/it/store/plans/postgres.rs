//! On Postgres the server tells the plan of each statement as it ran it, those of triggers among them.

use std::collections::BTreeSet;

use promptmill::store::{Migrate, open};
use serde_json::Value;

use super::seen::{BY_HAND, Said, Seen};
use super::{COUNTING, GROWING, ROWS_MAX, day, grown, head, is_frame, written};
use crate::store::{Bench, jobs, me, settings};
use crate::support::Ground;

/// A statement runs so often before the server keeps a plan for it: five times it makes a new one.
const UNTIL_KEPT: usize = 6;

/// A URL by which the server notices the plan of every statement.
pub(super) fn noticed(ground: &Ground) -> String {
    let options = [
        ("session_preload_libraries", "auto_explain"),
        ("auto_explain.log_min_duration", "0"),
        ("auto_explain.log_level", "notice"),
        ("auto_explain.log_format", "json"),
        ("auto_explain.log_analyze", "on"),
        ("auto_explain.log_timing", "off"),
        ("auto_explain.log_nested_statements", "on"),
    ];
    let options: Vec<String> =
        options.iter().map(|(name, value)| format!("options[{name}]={value}")).collect();
    format!("{}?{}", ground.url(), options.join("&"))
}

/// A store whose server notices the plan of every statement.
async fn explained(ground: &Ground) -> Bench {
    let url = noticed(ground);
    let opened =
        open(&url, &settings(ground.schema()), Migrate::Never).await.expect("the ground has the tables");
    let worker = opened.store.enlist(&me()).await.expect("a worker enlists");
    Bench { store: opened.store, worker }
}

/// A statement and its plan.
pub(super) fn plan(notice: &str) -> Option<(String, Value)> {
    let (_, json) = notice.split_once("plan:\n")?;
    let mut explained: Value = serde_json::from_str(json).expect("a plan is JSON");
    Some((explained["Query Text"].as_str()?.to_owned(), explained["Plan"].take()))
}

/// Returns what is wrong with the steps of a plan.
pub(super) fn faults(sql: &str, step: &Value) -> Vec<String> {
    let text = |name: &str| step[name].as_str().unwrap_or_default();
    let number = |name: &str| step[name].as_f64().unwrap_or_default();
    let (kind, table, index) = (text("Node Type"), text("Relation Name"), text("Index Name"));
    let rows = (number("Actual Rows") + number("Rows Removed by Filter")) * number("Actual Loops");
    let grows = GROWING.contains(&table) || index.starts_with("job_state_");
    let counts = COUNTING.iter().any(|begin| sql.starts_with(begin));
    let fault = if grows && kind.contains("Seq Scan") {
        Some("reads a table from end to end")
    } else if grows && kind.starts_with("Index") && step["Index Cond"].is_null() && rows > ROWS_MAX && !counts
    {
        Some("walks an index from end to end")
    } else if grows && rows > ROWS_MAX && !counts {
        Some("reads too many rows")
    } else if kind.contains("Sort") && rows > ROWS_MAX && !counts {
        Some("sorts too many rows")
    } else {
        None
    };
    let own = fault.map(|fault| format!("{fault}: {kind} {table} {index} ({rows} rows) in: {}", head(sql)));
    let below = step["Plans"].as_array().into_iter().flatten().flat_map(|below| faults(sql, below));
    own.into_iter().chain(below).collect()
}

/// Each statement has to have been seen, and to have a good plan.
fn hold(said: &Said) {
    let plans: Vec<(String, Value)> = said.notices.iter().filter_map(|notice| plan(notice)).collect();
    let statements: BTreeSet<&String> = said.statements.iter().filter(|sql| !is_frame(sql)).collect();
    assert_eq!(statements.len(), written("postgres"), "some statement was not looked at: {statements:#?}");
    for sql in statements {
        assert!(plans.iter().any(|(told, _)| told == sql), "no plan of: {}", head(sql));
    }
    let wrong: BTreeSet<String> = plans.iter().flat_map(|(sql, plan)| faults(sql, plan)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn each_statement_reads_by_an_index() {
    let ground = Ground::postgres().await;
    let (bench, astray) = (explained(&ground).await, explained(&ground).await);
    grown::grow(&ground, grown::MANY).await;
    grown::analyze(&ground).await;
    let seen = Seen::begin();
    day::live(&ground, &bench, &astray).await;
    hold(&seen.take());
    ground.close().await;
}

#[tokio::test]
async fn each_statement_reads_by_an_index_where_nothing_was_analysed_yet() {
    let ground = Ground::postgres().await;
    keep_statistics(&ground).await;
    let (bench, astray) = (explained(&ground).await, explained(&ground).await);
    grown::grow(&ground, grown::MANY).await;
    let seen = Seen::begin();
    day::live(&ground, &bench, &astray).await;
    hold(&seen.take());
    ground.close().await;
}

/// A daemon that was there before the work keeps the plans that it had: they must do for what comes.
#[tokio::test]
async fn plans_of_empty_tables_do_when_they_have_grown() {
    let ground = Ground::postgres().await;
    keep_statistics(&ground).await;
    grown::analyze(&ground).await;
    let (bench, astray) = (explained(&ground).await, explained(&ground).await);
    for _ in 0..UNTIL_KEPT {
        day::idle(&bench).await;
    }
    for day in 0..=UNTIL_KEPT {
        jobs(&ground, 80, "queue, batch", "'q1', 'b1'").await;
        day::live(&ground, &bench, &astray).await;
        ground.run(&format!("{BY_HAND} DELETE FROM jobs")).await;
        if day + 1 == UNTIL_KEPT {
            // What six days left in the indexes is no fault of a plan. The last day makes the plans anew.
            for table in GROWING {
                ground.run(&format!("VACUUM {table}")).await;
            }
        }
    }
    grown::grow(&ground, grown::MANY).await;
    let seen = Seen::begin();
    day::live(&ground, &bench, &astray).await;
    hold(&seen.take());
    ground.close().await;
}

/// Lets the server neither analyse nor vacuum the tables by itself, which would come at any moment.
async fn keep_statistics(ground: &Ground) {
    for table in GROWING {
        ground.run(&format!("ALTER TABLE {table} SET (autovacuum_enabled = false)")).await;
    }
}
