//! Jobs in, from files and from the command line.

use super::Desk;
use crate::support::{Ground, on_both};

on_both! {
    a_prompt_becomes_a_job_and_prints_its_id,
    the_same_file_twice_enqueues_once,
    a_file_without_a_label_is_named_after_itself,
    the_official_batch_format_is_read,
    columns_arrive_as_they_are_written,
    a_wrong_line_is_named_and_nothing_is_enqueued,
    a_key_with_other_content_is_told_with_its_line,
    a_file_of_many_statements_arrives_whole_and_in_order,
    standard_input_is_a_file_too,
    what_only_the_database_refuses_is_told_with_its_line,
    waiting_ends_when_the_job_does,
    waiting_for_a_file_ends_with_7_where_not_all_is_complete,
}

async fn a_prompt_becomes_a_job_and_prints_its_id(ground: &Ground) {
    let desk = Desk::new(ground);
    let ran =
        desk.mill(&["enqueue", "--prompt", "Say hello", "--model", "m", "--queue", "q", "--priority", "-3"]);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("1\n", "1 new, 0 already there\n"), "{ran:?}");
    assert_eq!(
        ground.line("SELECT id, queue, batch, key, prompt, model, priority FROM jobs").await,
        "1|q|NULL|NULL|Say hello|m|-3"
    );
    assert_eq!(
        desk.mill(&["enqueue", "--prompt", "Say hello"]).good(),
        "2\n",
        "a prompt alone is new each time"
    );
    assert_eq!(desk.mill(&["--json", "enqueue", "--prompt", "a", "--key", "k"]).json()["job"], 3);
    let again = desk.mill(&["enqueue", "--json", "--prompt", "a", "--key", "k"]).json();
    assert_eq!(again, serde_json::json!({"job": 3, "new": 0, "already_there": 1}));
    let other = desk.mill(&["enqueue", "--prompt", "b", "--key", "k"]).said(1);
    assert!(other.contains("key \"k\" exists with other content, as job 3"), "{other}");
}

async fn the_same_file_twice_enqueues_once(ground: &Ground) {
    let desk = Desk::new(ground);
    let text = "{\"prompt\":\"a\",\"custom_id\":\"1\"}\n{\"prompt\":\"b\"}\n{\"prompt\":\"b\"}\n";
    let file = desk.file("jobs.jsonl", text);
    let ran = desk.mill(&["enqueue", file, "--batch", "nightly"]);
    assert_eq!(
        (ran.out.as_str(), ran.err.as_str()),
        ("nightly\n", "batch nightly: 3 new, 0 already there\n")
    );
    desk.file("jobs.jsonl", &format!("{text}{{\"prompt\":\"c\"}}\n"));
    let said = desk.mill(&["enqueue", file, "--batch", "nightly"]).said(0);
    assert_eq!(said, "batch nightly: 1 new, 3 already there\n");
    assert_eq!(
        ground.lines("SELECT batch, prompt FROM jobs ORDER BY id").await,
        ["nightly|a", "nightly|b", "nightly|b", "nightly|c"]
    );
    assert_eq!(ground.line("SELECT key FROM jobs WHERE id = 1").await, "nightly/1");
}

async fn a_file_without_a_label_is_named_after_itself(ground: &Ground) {
    let desk = Desk::new(ground);
    let file = desk.file("jobs.jsonl", "{\"prompt\":\"a\",\"custom_id\":\"x\"}\n");
    let label = desk.mill(&["enqueue", file]).good();
    let label = label.trim_end();
    assert!(label.starts_with("jobs.jsonl-") && label.len() == "jobs.jsonl-".len() + 12, "{label}");
    assert_eq!(ground.line("SELECT batch, key FROM jobs").await, format!("{label}|{label}/x"));
    assert!(desk.mill(&["enqueue", file]).said(0).contains("0 new, 1 already there"));
    desk.file("jobs.jsonl", "{\"prompt\":\"b\",\"custom_id\":\"x\"}\n");
    assert_ne!(desk.mill(&["enqueue", file]).good().trim_end(), label, "other content is another batch");
}

async fn the_official_batch_format_is_read(ground: &Ground) {
    let desk = Desk::new(ground);
    let params =
        r#"{"model":"claude-x","max_tokens":10,"messages":[{"role":"user","content":"Hi \u0000"}],"a":1.0}"#;
    let file = desk.file("batch.jsonl", &format!("{{\"custom_id\":\"r-1\",\"params\":{params}}}"));
    desk.mill(&["enqueue", file, "--batch", "b", "--model", "not-for-this-one"]).good();
    assert_eq!(ground.line("SELECT key, params, model FROM jobs").await, format!("b/r-1|{params}|NULL"));
    assert_eq!(ground.line("SELECT model FROM job_state").await, "claude-x");
    assert!(desk.mill(&["enqueue", file, "--batch", "b"]).said(0).contains("0 new, 1 already there"));
}

async fn columns_arrive_as_they_are_written(ground: &Ground) {
    let desk = Desk::new(ground);
    let line = r#"{"prompt":"a\n\"é漢\"","system":"s","model":"m","max_tokens":7,"params":{ "stop_sequences" : ["x"] },"policy":{"max_failures":2},"metadata":{"mine":1},"priority":4,"run_at":"2099-01-01T00:00:00Z","queue":"q","key":"k","batch":"own"}"#;
    let file = desk.file("jobs.jsonl", line);
    desk.mill(&["enqueue", file]).good();
    assert_eq!(
        ground.line("SELECT queue, batch, key, prompt, system, model, max_tokens, params, policy, priority FROM jobs").await,
        "q|own|k|a\n\"é漢\"|s|m|7|{ \"stop_sequences\" : [\"x\"] }|{\"max_failures\":2}|4"
    );
    assert_eq!(ground.line("SELECT state FROM job_state").await, "scheduled");
    let run_at = ground
        .either("SELECT run_at FROM jobs", "SELECT (extract(epoch FROM run_at) * 1000)::bigint FROM jobs");
    assert_eq!(ground.line(run_at).await, "4070908800000");
}

async fn a_wrong_line_is_named_and_nothing_is_enqueued(ground: &Ground) {
    let desk = Desk::new(ground);
    let file = desk.file("jobs.jsonl", "{\"prompt\":\"a\"}\n\n{\"promt\":\"b\"}\n{\"prompt\":\"c\"}\n{}\n");
    let ran = desk.mill(&["enqueue", file]);
    assert_eq!(ran.out, "");
    assert_eq!(
        ran.said(1),
        "jobs.jsonl: line 3: unknown field \"promt\": did you mean \"prompt\"?\n\
         jobs.jsonl: line 5: neither prompt nor params.messages: give one\n\
         promptmill: jobs.jsonl: 2 of 4 lines cannot be jobs; nothing was enqueued\n"
    );
    assert_eq!(ground.line("SELECT count(*) FROM jobs").await, "0");
}

async fn a_key_with_other_content_is_told_with_its_line(ground: &Ground) {
    let desk = Desk::new(ground);
    let file = desk
        .file("a.jsonl", "{\"prompt\":\"a\",\"custom_id\":\"1\"}\n{\"prompt\":\"b\",\"custom_id\":\"2\"}\n");
    desk.mill(&["enqueue", file, "-b", "n"]).good();
    let file = desk.file(
        "b.jsonl",
        "{\"prompt\":\"a\",\"custom_id\":\"1\"}\n{\"prompt\":\"other\",\"custom_id\":\"2\"}\n{\"prompt\":\"c\",\"custom_id\":\"3\"}\n{\"prompt\":\"d\",\"custom_id\":\"3\"}\n",
    );
    let said = desk.mill(&["enqueue", file, "-b", "n"]).said(1);
    assert!(said.contains("line 2: key \"n/2\" exists with other content\n"), "{said}");
    assert!(said.contains("line 4: key \"n/3\" exists with other content\n"), "{said}");
    assert!(said.ends_with("batch n: 1 new, 1 already there\n"), "{said}");
    assert_eq!(ground.lines("SELECT prompt FROM jobs ORDER BY id").await, ["a", "b", "c"]);
}

async fn a_file_of_many_statements_arrives_whole_and_in_order(ground: &Ground) {
    let desk = Desk::new(ground);
    let lines: Vec<String> =
        (0..2_500).map(|n| format!("{{\"prompt\":\"p{n}\",\"custom_id\":\"{n}\"}}\n")).collect();
    let file = desk.file("many.jsonl", &lines.concat());
    let json = desk.mill(&["enqueue", file, "-b", "m", "--json"]).json();
    assert_eq!(json, serde_json::json!({"batch": "m", "new": 2500, "already_there": 0, "other_content": []}));
    assert_eq!(
        ground.line("SELECT count(*) FROM job_state WHERE batch = 'm' AND state = 'pending'").await,
        "2500"
    );
    assert_eq!(ground.line("SELECT prompt FROM jobs ORDER BY id LIMIT 1").await, "p0");
    assert_eq!(ground.line("SELECT prompt FROM jobs ORDER BY id DESC LIMIT 1").await, "p2499");
}

async fn standard_input_is_a_file_too(ground: &Ground) {
    let desk = Desk::new(ground);
    let said =
        desk.mill_with(&["enqueue", "-", "-b", "s"], "{\"prompt\":\"a\"}\r\n{\"prompt\":\"a\"}").said(0);
    assert_eq!(said, "batch s: 2 new, 0 already there\n");
    assert_eq!(ground.line("SELECT count(*) FROM jobs").await, "2");
    assert!(desk.mill(&["enqueue"]).said(2).contains("FILE"));
}

async fn what_only_the_database_refuses_is_told_with_its_line(ground: &Ground) {
    let refuse = ground.either(
        "CREATE TRIGGER no_pears BEFORE INSERT ON jobs WHEN NEW.prompt = 'pear' BEGIN SELECT RAISE(ABORT, 'no pears'); END",
        "ALTER TABLE jobs ADD CONSTRAINT no_pears CHECK (prompt <> 'pear')",
    );
    ground.run(refuse).await;
    let desk = Desk::new(ground);
    let lines =
        "{\"prompt\":\"a\"}\n".repeat(600) + "{\"prompt\":\"pear\"}\n" + &"{\"prompt\":\"b\"}\n".repeat(600);
    let file = desk.file("jobs.jsonl", &lines);
    let said = desk.mill(&["enqueue", file, "-b", "n"]).said(1);
    assert!(said.contains("line 601: ") && said.contains("pears"), "{said}");
    assert!(said.contains("600 new, 0 already there so far"), "{said}");
    assert_eq!(ground.line("SELECT count(*) FROM jobs").await, "600");
}

async fn waiting_ends_when_the_job_does(ground: &Ground) {
    let desk = Desk::new(ground);
    desk.mill(&["enqueue", "--prompt", "a", "--key", "k"]).good();
    super::settle(ground, 1, "complete", "end_turn", "hello").await;
    assert_eq!(desk.mill(&["enqueue", "--prompt", "a", "--key", "k", "--wait"]).good(), "hello\n");
    let id = desk.mill(&["enqueue", "--prompt", "b", "--key", "l"]).good();
    let id = id.trim_end();
    super::settle(ground, id.parse().expect("an id"), "truncated", "max_tokens", "hel").await;
    let ran = desk.mill(&["enqueue", "--prompt", "b", "--key", "l", "--wait"]);
    assert_eq!(ran.out, "", "a cut answer is not passed off as one");
    assert!(ran.said(7).contains(&format!("job {id} ended as truncated")));
}

async fn waiting_for_a_file_ends_with_7_where_not_all_is_complete(ground: &Ground) {
    let desk = Desk::new(ground);
    let file = desk.file("a.jsonl", "{\"prompt\":\"a\"}\n{\"prompt\":\"b\"}\n");
    desk.mill(&["enqueue", file, "-b", "n"]).good();
    super::settle(ground, 1, "complete", "end_turn", "x").await;
    super::settle(ground, 2, "complete", "end_turn", "x").await;
    assert!(
        desk.mill(&["enqueue", file, "-b", "n", "--wait"]).said(0).ends_with("2 jobs done: 2 complete\n")
    );
    ground.run("UPDATE job_state SET state = 'pending' WHERE job_id = 2").await;
    ground.run("UPDATE job_state SET state = 'cancelled' WHERE job_id = 2").await;
    let said = desk.mill(&["enqueue", file, "-b", "n", "--wait"]).said(7);
    assert!(said.ends_with("2 jobs done: 1 cancelled, 1 complete\n"), "{said}");
}
