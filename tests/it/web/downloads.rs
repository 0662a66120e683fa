//! Downloads of a batch's results: what cannot be downloaded is said, and few go at once.

use std::collections::BTreeSet;

use super::{Site, settle};
use crate::support::{Ground, on_both};

on_both!(
    a_batch_or_an_outcome_that_is_not_there_is_said,
    the_page_and_the_command_write_the_same_columns,
    few_downloads_go_at_once_and_each_is_whole,
);

async fn a_batch_or_an_outcome_that_is_not_there_is_said(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'b'), ('c', 'open')").await;
    settle(ground, 1, "complete", "x").await;
    let site = Site::on(ground).await;
    for (query, status, said) in [
        ("name=none", 404, "no job has batch none"),
        ("name=b&outcome=nonsense", 400, "outcome is one of complete"),
        ("name=b&format=nonsense", 400, "format is jsonl or csv"),
        ("", 400, "name says which batch"),
    ] {
        let answer = site.get(&format!("/batch/results?{query}")).await;
        assert_eq!(answer.status, status, "{query}");
        assert!(answer.text.contains(said), "{query}: {answer:?}");
    }
    // A batch without such results has an empty file.
    assert_eq!(site.get("/batch/results?name=b&outcome=failed").await.good(), "");
    assert_eq!(site.get("/batch/results?name=open").await.good(), "");
    assert_eq!(site.get("/batch/results?name=open&format=csv").await.good().lines().count(), 1);
}

async fn the_page_and_the_command_write_the_same_columns(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch, key) VALUES ('a', 'b', 'b/1'), ('c', 'b', '=cmd')").await;
    settle(ground, 1, "complete", " =1+1").await;
    settle(ground, 2, "failed", "").await;
    let site = Site::on(ground).await;
    let page = site.get("/batch/results?name=b&format=csv").await.good();
    let mut lines: Vec<&str> = page.lines().collect();
    let command = crate::mill::harness::Mill::new(ground).await;
    let command = command.run(&["results", "--batch", "b", "--format", "csv"]).await;
    let mut of_command: Vec<&str> = command.stdout.lines().collect();
    lines[1..].sort_unstable();
    of_command[1..].sort_unstable();
    assert_eq!(lines, of_command);
    assert!(page.contains(",' =1+1,") && page.contains(",'=cmd,") && page.starts_with("job_id,"), "{page}");
}

async fn few_downloads_go_at_once_and_each_is_whole(ground: &Ground) {
    let rows: Vec<String> = (0..24).map(|n| format!("('{n}', 'b')")).collect();
    ground.run(&format!("INSERT INTO jobs (prompt, batch) VALUES {}", rows.join(", "))).await;
    for job in 1..=24 {
        settle(ground, job, "complete", "x").await;
    }
    // More than the buffers between us hold.
    let long = ground.either("hex(zeroblob(600000))", "repeat('x', 1200000)");
    ground.run(&format!("UPDATE results SET text = {long}")).await;
    let site = Site::on(ground).await;
    let url = format!("{}/batch/results?name=b", site.url);
    let mut under_way = Vec::new();
    for _ in 0..4 {
        let answer = site.client.get(&url).send().await.expect("it answers");
        assert_eq!(answer.status().as_u16(), 200);
        under_way.push(answer);
    }
    let refused = site.get("/batch/results?name=b").await;
    assert_eq!(refused.status, 503);
    assert!(refused.text.contains("other downloads are under way"), "{refused:?}");
    // Pages are read all the same, and a download that is given up makes room.
    site.get("/batch?name=b").await.good();
    drop(under_way.pop());
    for asked in 0.. {
        let answer = site.client.get(&url).send().await.expect("it answers");
        if answer.status().as_u16() == 200 {
            under_way.push(answer);
            break;
        }
        assert!(asked < 1_000, "nobody makes room");
    }
    for answer in under_way {
        let whole = answer.text().await.expect("it comes to its end");
        let jobs: BTreeSet<i64> = whole
            .lines()
            .map(|line| {
                line.strip_prefix("{\"job_id\":").filter(|rest| rest.ends_with('}')).expect("a whole line")
            })
            .inspect(|rest| assert!(rest.len() > 1_200_000, "{} bytes", rest.len()))
            .filter_map(|rest| rest.split_once(',').and_then(|(job, _)| job.parse().ok()))
            .collect();
        assert_eq!(jobs, (1..=24).collect());
    }
    // All four have made room.
    assert_eq!(site.get("/batch/results?name=b&outcome=failed").await.good(), "");
}
