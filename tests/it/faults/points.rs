//! The list of failpoints is what stands in the source, and a point does what it is told.

use std::collections::BTreeSet;
use std::path::Path;

use promptmill::failpoint::ALL;

use crate::mill::harness::Mill;
use crate::support::{Ground, on_both};

/// The names that stand in the source, each as often as it stands there.
fn in_the_source() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut names, mut folders) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the tree can be listed") {
            let path = entry.expect("the tree can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path != root.join("failpoint.rs") {
                let text = std::fs::read_to_string(&path).expect("the tree can be read");
                let after = text.split("failpoint!(\"").skip(1);
                names.extend(after.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            }
        }
    }
    names
}

#[test]
fn the_list_of_failpoints_is_what_stands_in_the_source() {
    let mut found = in_the_source();
    found.sort();
    let mut listed: Vec<&str> = ALL.to_vec();
    listed.sort_unstable();
    assert_eq!(found, listed, "a point is missing in src/failpoint.rs, or stands twice");
    assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), listed.len());
}

on_both! {
    a_panic_in_one_jobs_code_fails_that_job_only,
    a_point_holds_until_it_is_told_to_go_on,
    a_point_that_does_not_exist_is_refused,
    a_point_may_kill_at_one_job_only,
    what_was_paid_for_is_in_the_ledger_while_an_input_is_counted,
}

async fn what_was_paid_for_is_in_the_ledger_while_an_input_is_counted(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    // Nobody estimates a document: it is counted before the first call, and before the one that goes on.
    let asked = r#"{"messages": [{"role": "user", "content": [
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
        {"type": "text", "text": "[[tokens 60]]"}]}]}"#;
    ground.run(&format!("INSERT INTO jobs (params, max_tokens) VALUES ('{asked}', 40)")).await;
    mill.set("FAILPOINTS", "measure=1*off->return(kill)");
    assert_eq!(mill.drain().await.code, -1, "it ends by a signal");
    let ledger = "SELECT kind, stop_reason, output_tokens FROM calls";
    assert_eq!(ground.lines(ledger).await, ["ask|max_tokens|40"]);
    mill.unset("FAILPOINTS");
    assert_eq!(mill.drain().await.code, 0);
    assert_eq!(ground.line("SELECT outcome FROM results").await, "complete");
    assert_eq!(
        ground.line("SELECT count(*) FROM calls WHERE kind = 'ask' AND stop_reason IS NOT NULL").await,
        "1"
    );
}

async fn a_point_may_kill_at_one_job_only(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.insert(&["one", "two", "three"]).await;
    mill.set("PROMPTMILL_WORKER__CONCURRENCY", "1");
    mill.set("FAILPOINTS", "ask.before=return(kill 2)");
    assert_eq!(mill.drain().await.code, -1, "it ends by a signal");
    assert_eq!(ground.lines("SELECT job_id FROM results").await, ["1"]);
}

async fn a_panic_in_one_jobs_code_fails_that_job_only(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.insert(&["one", "two", "three"]).await;
    mill.set("FAILPOINTS", "push=1*off->1*panic(on purpose)");
    let ran = mill.drain().await;
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    let ends = ground.lines("SELECT outcome, error_type FROM results ORDER BY outcome").await;
    assert_eq!(ends, ["complete|NULL", "complete|NULL", "failed|internal_error"]);
}

async fn a_point_holds_until_it_is_told_to_go_on(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.insert(&["one"]).await;
    let gate = mill.home().join("gate");
    mill.set("FAILPOINTS", &format!("settle.before=return(wait {})", gate.display()));
    let daemon = mill.start();
    while !mill.home().join("gate.here").exists() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(ground.line("SELECT state FROM job_state").await, "running");
    std::fs::write(gate, "").expect("the file can be made");
    mill.until("SELECT outcome FROM results", "complete").await;
    assert_eq!(daemon.stop().await.code, 0);
}

async fn a_point_that_does_not_exist_is_refused(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("FAILPOINTS", "settle.befor=return(kill)");
    let ran = mill.drain().await;
    assert!(ran.stderr.contains("there is no failpoint settle.befor"), "{}", ran.stderr);
}
