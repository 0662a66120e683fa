//! `on_tool_use = run`: tools that the daemon runs itself, and what becomes of them when it dies.

use std::path::PathBuf;

use super::{ENDS, ask, declare, until_done};
use crate::mill::harness::Mill;
use crate::support::{Ground, on_both};

on_both! {
    a_configured_command_answers,
    a_failing_tool_is_told_to_the_model,
    a_queue_runs_no_tool_that_it_does_not_list,
    a_tool_that_a_crash_cut_is_not_started_again,
    a_tool_that_was_about_to_be_started_is_not_started_again,
    an_idempotent_tool_is_started_again_and_the_job_goes_on,
    what_was_answered_before_a_crash_is_not_run_again,
    a_stop_while_a_tool_runs_gives_the_job_back,
    a_tool_that_ends_within_the_drain_time_counts,
    a_cancel_ends_the_tool_that_runs,
    a_database_that_is_away_starts_no_tool_and_loses_no_answer,
}

const RUN: &str = r#"{"on_tool_use": "run"}"#;

/// Where each start of a tool leaves a line.
fn log(mill: &Mill<'_>) -> PathBuf {
    mill.home().join("starts")
}

/// How often tools were started.
fn starts(mill: &Mill<'_>) -> Vec<String> {
    let log = std::fs::read_to_string(log(mill)).unwrap_or_default();
    log.lines().map(str::to_owned).collect()
}

/// Describes `find`, which says what it was asked, and `now`, which does as the script says; both leave
/// a line for each start.
fn configure(mill: &Mill<'_>, now: &str, more: &str) {
    let log = log(mill).display().to_string();
    let tool = |name: &str, script: &str| {
        format!("[tools.{name}]\ncommand = ['sh', '-c', 'echo {name} >> {log}; {script}']\n{more}\n")
    };
    let queue = "[queues.default]\ntools = ['find', 'now']\n";
    let text = tool("find", "cat") + &tool("now", now) + queue;
    std::fs::write(mill.home().join("promptmill.toml"), text).expect("the folder can be written");
}

/// Inserts a job that calls `find`, then both at once.
async fn ask_both(ground: &Ground) {
    let prompt = r#"[[tool find {"q": 1}]] [[next]] [[tool find {"q": [2]}]] [[tool now]] [[thinking 9]]"#;
    ask(ground, prompt, &declare(&["find", "now"]), RUN).await;
}

async fn a_configured_command_answers(ground: &Ground) {
    let mill = Mill::new(ground).await;
    configure(&mill, "echo noon", "");
    ask_both(ground).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ground.line("SELECT outcome, calls, text FROM results").await,
        "complete|3|find: {\"q\": 1}\nfind: {\"q\": [2]}\nnow: noon\n"
    );
    let rows = "SELECT claim, seq, position, name, taken_by IS NOT NULL AND answered_at IS NOT NULL
                  FROM tool_calls ORDER BY claim, seq, position";
    let yes = ground.either("1", "t");
    let wanted = ["1|1|0|find", "1|2|0|find", "1|2|1|now"].map(|row| format!("{row}|{yes}"));
    assert_eq!(ground.lines(rows).await, wanted);
    assert_eq!(starts(&mill).len(), 3);
    mill.holds().await;
    mill.ledger_is_the_stand_ins().await;
}

async fn a_failing_tool_is_told_to_the_model(ground: &Ground) {
    let mill = Mill::new(ground).await;
    configure(&mill, "echo no clock here >&2; exit 3", "");
    ask_both(ground).await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let text = ground.line("SELECT text FROM results").await;
    assert!(
        text.ends_with("now failed: The tool now failed with exit code 3. Its own words:\nno clock here"),
        "{text}"
    );
    let failed = "SELECT name, is_error FROM tool_calls ORDER BY claim, seq, position";
    let (no, yes) = (ground.either("0", "f"), ground.either("1", "t"));
    assert_eq!(
        ground.lines(failed).await,
        [format!("find|{no}"), format!("find|{no}"), format!("now|{yes}")]
    );
}

async fn a_queue_runs_no_tool_that_it_does_not_list(ground: &Ground) {
    let mill = Mill::new(ground).await;
    configure(&mill, "echo noon", "");
    let values = ["[[tool find]]", &declare(&["find"]), RUN].map(super::quoted).join(", ");
    ground.run(&format!("INSERT INTO jobs (prompt, params, policy, queue) VALUES ({values}, 'other')")).await;
    let ran = mill.drain().await;
    assert!(starts(&mill).is_empty(), "{}", ran.stderr);
    let ended = ground.line("SELECT outcome, error_code, error FROM results").await;
    assert!(ended.starts_with("invalid|tool_not_allowed|params.tools[0]: jobs of the queue"), "{ended}");
    assert_eq!(mill.api.counts().total, 0, "nothing was paid");
    mill.holds().await;
}

/// Runs a daemon to its death at a point.
async fn die_at(mill: &mut Mill<'_>, point: &str) {
    mill.set("FAILPOINTS", point);
    let ran = mill.drain().await;
    assert_eq!(ran.code, -1, "it ends by a signal: {}", ran.stderr);
    mill.unset("FAILPOINTS");
}

/// The job failed, because nobody knows what its tool did.
async fn failed_as_interrupted(mill: &Mill<'_>, calls: u32) {
    let ran = mill.drain().await;
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    let end = "SELECT outcome, calls, error_type, error FROM results";
    assert_eq!(
        mill.ground.line(end).await,
        format!(
            "failed|{calls}|tool_interrupted|tool find was started before its daemon ended, and nobody knows what it \
             did: look, then run the job again; tools.\"find\".idempotent = true in the configuration lets it be \
             started again"
        )
    );
    mill.holds().await;
}

async fn a_tool_that_a_crash_cut_is_not_started_again(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    configure(&mill, "echo noon", "");
    ask_both(ground).await;
    die_at(&mut mill, "tool.ended=return(kill)").await;
    // The rescue cannot know that no call was under way.
    failed_as_interrupted(&mill, 2).await;
    assert_eq!(starts(&mill), ["find"]);
    assert_eq!(mill.api.counts().total, 1);
    // Run again it is asked from the beginning.
    ground.run("UPDATE job_state SET state = 'pending'").await;
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.lines("SELECT run, outcome, calls FROM results").await, ["2|complete|3"]);
}

async fn a_tool_that_was_about_to_be_started_is_not_started_again(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    configure(&mill, "echo noon", "");
    ask_both(ground).await;
    die_at(&mut mill, "tools.opened=return(kill)").await;
    failed_as_interrupted(&mill, 2).await;
    assert!(starts(&mill).is_empty());
}

async fn an_idempotent_tool_is_started_again_and_the_job_goes_on(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    configure(&mill, "echo noon", "idempotent = true");
    ask_both(ground).await;
    die_at(&mut mill, "tools.opened=return(kill)").await;
    assert!(starts(&mill).is_empty());
    die_at(&mut mill, "tool.ended=return(kill)").await;
    assert_eq!(starts(&mill), ["find"]);
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ground.line("SELECT outcome, text FROM results").await,
        "complete|find: {\"q\": 1}\nfind: {\"q\": [2]}\nnow: noon\n"
    );
    assert_eq!(starts(&mill).len(), 4);
    assert_eq!(mill.api.counts().total, 3, "what was answered is not asked again");
    let open = "SELECT count(*) FROM tool_calls WHERE answered_at IS NULL";
    assert_eq!(ground.line(open).await, "0");
    mill.holds().await;
}

async fn what_was_answered_before_a_crash_is_not_run_again(ground: &Ground) {
    let mill = Mill::new(ground).await;
    configure(&mill, "until [ -e go ]; do sleep 0.02; done; echo noon", "idempotent = true");
    ask(ground, r#"[[tool find {"q": 1}]] [[tool now]]"#, &declare(&["find", "now"]), RUN).await;
    let daemon = mill.start();
    mill.until("SELECT count(*) FROM tool_calls WHERE answered_at IS NOT NULL", "1").await;
    daemon.kill().await;
    std::fs::write(mill.home().join("go"), "").expect("the folder can be written");
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ground.line("SELECT outcome, text FROM results").await,
        "complete|find: {\"q\": 1}\nnow: noon\n"
    );
    assert_eq!(starts(&mill).iter().filter(|name| *name == "find").count(), 1, "{:?}", starts(&mill));
    assert_eq!(mill.api.counts().total, 2);
}

async fn a_stop_while_a_tool_runs_gives_the_job_back(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__DRAIN_SECONDS", "1");
    configure(&mill, "until [ -e go ]; do sleep 0.02; done; echo noon", "idempotent = true");
    ask(ground, "[[tool now]]", &declare(&["now"]), RUN).await;
    let daemon = mill.start();
    mill.until("SELECT count(*) FROM tool_calls", "1").await;
    while starts(&mill).is_empty() {
        tokio::task::yield_now().await;
    }
    let ran = daemon.stop().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.line("SELECT state, failures, crashes FROM job_state").await, "pending|0|0");
    std::fs::write(mill.home().join("go"), "").expect("the folder can be written");
    assert_eq!(mill.drain().await.code, 0);
    assert_eq!(ground.lines(ENDS).await, ["complete|2"]);
    assert_eq!(starts(&mill), ["now", "now"]);
    mill.holds().await;
    mill.ledger_is_the_stand_ins().await;
}

async fn a_tool_that_ends_within_the_drain_time_counts(ground: &Ground) {
    let mill = Mill::new(ground).await;
    configure(&mill, "until [ -e go ]; do sleep 0.02; done; echo noon", "");
    ask(ground, "[[tool now]]", &declare(&["now"]), RUN).await;
    let daemon = mill.start();
    while starts(&mill).is_empty() {
        tokio::task::yield_now().await;
    }
    daemon.terminate();
    mill.until_said(&daemon, "a second signal stops running calls too").await;
    std::fs::write(mill.home().join("go"), "").expect("the folder can be written");
    let ran = daemon.ended().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ground.line("SELECT count(*) FROM tool_calls WHERE result = 'noon\n'").await, "1");
    assert_eq!(mill.drain().await.code, 0);
    assert_eq!(ground.lines(ENDS).await, ["complete|2"]);
    assert_eq!(starts(&mill), ["now"]);
}

async fn a_cancel_ends_the_tool_that_runs(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "4");
    let alive = mill.home().join("alive");
    let script = format!("echo $$ > {}; exec sleep 600", alive.display());
    configure(&mill, &script, "");
    ask(ground, "[[tool now]]", &declare(&["now"]), RUN).await;
    let daemon = mill.start();
    let pid = loop {
        let pid = std::fs::read_to_string(&alive).unwrap_or_default();
        if pid.ends_with('\n') {
            break pid.trim().to_owned();
        }
        tokio::task::yield_now().await;
    };
    ground.run("UPDATE job_state SET state = 'cancelled'").await;
    until_done(&mill, 1).await;
    let gone = std::path::Path::new("/proc").join(pid);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while gone.exists() {
        assert!(std::time::Instant::now() < deadline, "the tool lives on");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.line("SELECT outcome, stop_reason FROM results").await, "cancelled|NULL");
    mill.holds().await;
}

async fn a_database_that_is_away_starts_no_tool_and_loses_no_answer(ground: &Ground) {
    let mill = Mill::new(ground).await;
    configure(&mill, "until [ -e go ]; do sleep 0.02; done; echo noon", "");
    ask(ground, "[[tool now]] [[delay 500ms]]", &declare(&["now"]), RUN).await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    ground.run("ALTER TABLE tool_calls RENAME TO away").await;
    mill.until_said(&daemon, "failed to write down a tool call").await;
    assert!(starts(&mill).is_empty(), "what is to be started is written down first");
    ground.run("ALTER TABLE away RENAME TO tool_calls").await;
    while starts(&mill).is_empty() {
        tokio::task::yield_now().await;
    }
    ground.run("ALTER TABLE tool_calls RENAME TO away").await;
    let before = daemon.said().matches("failed to write down a tool call").count();
    std::fs::write(mill.home().join("go"), "").expect("the folder can be written");
    while daemon.said().matches("failed to write down a tool call").count() == before {
        tokio::task::yield_now().await;
    }
    ground.run("ALTER TABLE away RENAME TO tool_calls").await;
    until_done(&mill, 1).await;
    assert_eq!(daemon.stop().await.code, 0);
    assert_eq!(ground.line("SELECT outcome, calls, text FROM results").await, "complete|2|now: noon\n");
    assert_eq!(starts(&mill), ["now"]);
    mill.ledger_is_the_stand_ins().await;
}
