//! Answers out, in each format.

use super::terminal::Terminal;
use super::{Desk, settle};
use crate::support::{Ground, on_both};

on_both! {
    a_table_shows_one_line_a_result,
    a_narrow_terminal_gets_one_line_a_result,
    json_lines_hold_every_column,
    csv_is_safe_in_a_spreadsheet,
    batch_lines_have_the_official_shape,
    filters_narrow,
    a_file_appears_whole,
    a_pipe_is_written_into_and_stays_one,
    a_batch_that_nobody_has_is_told,
    following_a_batch_ends_with_its_last_job,
    what_came_after_a_seq_is_written_in_its_order,
    a_named_job_without_a_result_is_told,
    an_outcome_that_is_none_is_a_usage_error,
}

async fn three(ground: &Ground) {
    ground
        .run("INSERT INTO jobs (prompt, batch, key) VALUES ('a', 'b', 'b/1'), ('b', 'b', 'b/2'), ('c', NULL, NULL), ('d', NULL, NULL)")
        .await;
    settle(ground, 1, "complete", "end_turn", "=SUM(1)\nline two, \"quoted\"").await;
    settle(ground, 2, "truncated", "max_tokens", "cut").await;
    ground.run("UPDATE job_state SET state = 'cancelled' WHERE job_id = 3").await;
}

async fn a_table_shows_one_line_a_result(ground: &Ground) {
    three(ground).await;
    let desk = Desk::new(ground);
    let ran = desk.mill(&["results"]);
    assert_eq!(ran.err, "3 results\n");
    let out = ran.good();
    assert_eq!(out.lines().count(), 4, "{out}");
    assert!(out.contains("=SUM(1) line two") && out.contains("cancelled while pending"), "{out}");
    let ran = desk.mill(&["results", "--limit", "1"]);
    assert_eq!(ran.good().lines().count(), 2);
}

async fn a_narrow_terminal_gets_one_line_a_result(ground: &Ground) {
    three(ground).await;
    let desk = Desk::new(ground);
    for columns in [40, 60, 80, 100, 140] {
        let left = Terminal::start(&desk, &["results"], (24, columns), &[]).ended().await.0;
        assert_eq!(left.code, 0, "{}", left.screen);
        let lines: Vec<&str> = left.screen.lines().filter(|line| !line.trim().is_empty()).collect();
        assert!(lines.len() == 5 && lines[1].contains("complete"), "{columns}: {}", left.screen);
        assert!(columns < 80 || left.screen.contains("=SUM(1) line two"), "{columns}: {}", left.screen);
    }
}

async fn json_lines_hold_every_column(ground: &Ground) {
    three(ground).await;
    let desk = Desk::new(ground);
    let out = desk.mill(&["results", "--json"]).good();
    let rows: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(rows.len(), 3);
    let mut columns = ground.columns("results").await;
    let mut keys: Vec<String> = rows[0].as_object().expect("an object").keys().cloned().collect();
    columns.sort();
    keys.sort();
    assert_eq!(keys, columns);
    assert_eq!(rows[0]["text"], "=SUM(1)\nline two, \"quoted\"");
    assert_eq!(rows[0]["content"][0]["type"], "text");
    assert_eq!(rows[2]["outcome"], "cancelled");
    let finished = rows[0]["finished_at"].as_str().expect("a time");
    assert!(finished.ends_with('Z') && finished.len() == 24, "{finished}");
}

async fn csv_is_safe_in_a_spreadsheet(ground: &Ground) {
    three(ground).await;
    let desk = Desk::new(ground);
    let out = desk.mill(&["results", "--format", "csv"]).good();
    assert!(out.starts_with("job_id,run,seq,queue,batch,key,outcome,"), "{out}");
    assert!(out.contains("\"'=SUM(1)\nline two, \"\"quoted\"\"\""), "{out}");
}

async fn batch_lines_have_the_official_shape(ground: &Ground) {
    three(ground).await;
    let desk = Desk::new(ground);
    let out = desk.mill(&["results", "--format", "batch"]).good();
    let rows: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(
        rows[0],
        serde_json::json!({"custom_id": "1", "result": {"type": "succeeded", "message": {
            "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x",
            "content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn", "stop_sequence": null,
            "usage": {"input_tokens": 10, "output_tokens": 20, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0},
        }}})
    );
    assert_eq!(rows[1]["result"]["message"]["stop_reason"], "max_tokens");
    assert_eq!(rows[2], serde_json::json!({"custom_id": "3", "result": {"type": "canceled"}}));
}

async fn filters_narrow(ground: &Ground) {
    three(ground).await;
    let desk = Desk::new(ground);
    let ids = |args: &[&str]| -> Vec<i64> {
        let mut all = vec!["results", "--json"];
        all.extend(args);
        let out = desk.mill(&all).good();
        out.lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).expect("JSON")["job_id"]
                    .as_i64()
                    .expect("an id")
            })
            .collect()
    };
    assert_eq!(ids(&["--batch", "b"]), [1, 2]);
    assert_eq!(ids(&["--outcome", "complete,cancelled"]), [1, 3]);
    assert_eq!(ids(&["--outcome", "truncated", "--outcome", "cancelled", "--batch", "b"]), [2]);
    assert_eq!(ids(&["--queue", "other"]), Vec::<i64>::new());
    assert_eq!(ids(&["2", "1"]), [1, 2]);
}

async fn a_file_appears_whole(ground: &Ground) {
    three(ground).await;
    let desk = Desk::new(ground);
    let ran = desk.mill(&["results", "--format", "jsonl", "-o", "out.jsonl"]);
    assert_eq!(ran.good(), "");
    assert_eq!(desk.read("out.jsonl").lines().count(), 3);
    let said = desk.mill(&["results", "-o", "absent/out.txt"]).said(1);
    assert!(said.contains("absent/out.txt cannot be written: there is no folder absent\n"), "{said}");
}

async fn a_pipe_is_written_into_and_stays_one(ground: &Ground) {
    three(ground).await;
    let desk = Desk::new(ground);
    let pipe = desk.dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo is there");
    assert!(made.success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read_to_string(pipe).expect("a pipe is read")
    });
    assert_eq!(desk.mill(&["results", "--format", "jsonl", "-o", "pipe"]).good(), "");
    assert!(!pipe.metadata().expect("it is there").is_file(), "a file took its place");
    assert_eq!(reader.join().expect("it was read").lines().count(), 3);
}

async fn a_batch_that_nobody_has_is_told(ground: &Ground) {
    three(ground).await;
    let desk = Desk::new(ground);
    let ran = desk.mill(&["results", "--batch", "absent"]);
    assert_eq!(ran.err, "0 results\nno job has batch \"absent\"\n");
    ran.good();
    assert_eq!(desk.mill(&["results", "--batch", "b", "--outcome", "refused"]).err, "0 results\n");
}

async fn following_a_batch_ends_with_its_last_job(ground: &Ground) {
    three(ground).await;
    let desk = Desk::new(ground);
    let out = desk.mill(&["results", "--follow", "--batch", "b", "--json"]).good();
    assert_eq!(out.lines().count(), 2);
    let said = desk.mill(&["results", "--follow", "--batch", "absent"]).said(1);
    assert!(said.contains("no job has batch \"absent\""), "{said}");
}

async fn what_came_after_a_seq_is_written_in_its_order(ground: &Ground) {
    three(ground).await;
    // Job 1 ran again, and is the newest now.
    ground.run("UPDATE job_state SET state = 'pending' WHERE job_id = 1").await;
    settle(ground, 1, "complete", "end_turn", "again").await;
    let seqs = ground.lines("SELECT seq FROM results ORDER BY seq").await;
    let desk = Desk::new(ground);
    let rows = |args: &[&str]| -> Vec<(i64, String)> {
        let out = desk.mill(&[&["results", "--json", "--after"], args].concat()).good();
        out.lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
            .map(|row| (row["job_id"].as_i64().expect("an id"), row["seq"].to_string()))
            .collect()
    };
    let jobs = |rows: Vec<(i64, String)>| rows.into_iter().map(|(job, _)| job).collect::<Vec<_>>();
    assert_eq!(jobs(rows(&["0"])), [2, 3, 1]);
    // A program that reads one at a time meets each of them once.
    let mut met = Vec::new();
    let mut last = "0".to_owned();
    while let Some((job, seq)) = rows(&[&last, "--limit", "1"]).pop() {
        met.push(job);
        assert!(met.len() <= 3, "{met:?}");
        last = seq;
    }
    assert_eq!((met, &last), (vec![2, 3, 1], seqs.last().expect("three")));
    assert_eq!(jobs(rows(&[&seqs[0], "--outcome", "complete,truncated"])), [1]);
    assert_eq!(jobs(rows(&[&seqs[0], "--batch", "b", "--follow"])), [1]);
    for (format, lines) in [("table", 3), ("csv", 3), ("batch", 2), ("jsonl", 2)] {
        let out = desk.mill(&["results", "--after", &seqs[0], "--format", format]).good();
        assert_eq!(out.lines().count(), lines, "{out}");
    }
    desk.mill(&["results", "1", "--after", "0"]).said(2);
    desk.mill(&["results", "--after", "-1"]).said(2);
}

async fn a_named_job_without_a_result_is_told(ground: &Ground) {
    three(ground).await;
    let desk = Desk::new(ground);
    let ran = desk.mill(&["results", "1", "4", "--json"]);
    assert_eq!(ran.out.lines().count(), 1);
    assert!(ran.said(1).contains("job 4 has no result; promptmill show 4 tells where it is"));
}

async fn an_outcome_that_is_none_is_a_usage_error(ground: &Ground) {
    let said = Desk::new(ground).mill(&["results", "--outcome", "fine"]).said(2);
    assert!(said.contains("known are complete, truncated"), "{said}");
}
