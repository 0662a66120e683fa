//! A job that ends whatever process works on it.

use crate::mill::harness::Mill;
use crate::support::{Ground, on_both};

on_both! { a_job_that_ends_its_process_is_quarantined_and_its_neighbours_finish }

async fn a_job_that_ends_its_process_is_quarantined_and_its_neighbours_finish(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    // Its answer comes first: all the others are in flight then.
    let delay = |job| if job == 7 { "100ms" } else { "400ms" };
    let jobs: Vec<String> = (1..=20).map(|job| format!("{job} [[delay {}]]", delay(job))).collect();
    mill.insert(&jobs.iter().map(String::as_str).collect::<Vec<_>>()).await;
    mill.set("FAILPOINTS", "ask.ended=return(kill 7)");
    let mut deaths = 0;
    let ran = loop {
        let ran = mill.drain().await;
        if ran.code != -1 {
            break ran;
        }
        deaths += 1;
        assert!(deaths < 20, "it is never given up: {}", ran.stderr);
    };
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    assert_eq!(deaths, 5);
    assert_eq!(
        ground.lines("SELECT job_id, outcome FROM results WHERE outcome <> 'complete'").await,
        ["7|quarantined"]
    );
    assert_eq!(ground.line("SELECT count(*) FROM results WHERE outcome = 'complete'").await, "19");
    assert!(ran.stderr.contains("job 7 ended: quarantined"), "{}", ran.stderr);
    mill.holds().await;
}
