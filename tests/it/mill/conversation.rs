//! Whole conversations: tool calls that somebody answers or that the daemon runs, answers that follow a
//! schema, and inputs that are too long.

mod falling;
mod hostile;
mod running;
mod shaped;
mod waiting;

use super::harness::Mill;
use crate::support::Ground;

/// The calls that are open, in order.
const OPEN: &str = "SELECT position, call_id, name, input FROM open_tool_calls ORDER BY job_id, position";
/// How each job ended.
const ENDS: &str = "SELECT outcome, calls FROM results ORDER BY job_id";
/// What was asked, call by call.
const KINDS: &str = "SELECT kind FROM calls ORDER BY job_id, claim, seq";

/// `params` that declare tools.
fn declare(names: &[&str]) -> String {
    let tools: Vec<String> = names
        .iter()
        .map(|name| format!(r#"{{"name": "{name}", "input_schema": {{"type": "object"}}}}"#))
        .collect();
    format!(r#"{{"tools": [{}]}}"#, tools.join(", "))
}

/// A text as SQL writes it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Inserts a job.
async fn ask(ground: &Ground, prompt: &str, params: &str, policy: &str) {
    let values = [prompt, params, policy].map(quoted).join(", ");
    ground.run(&format!("INSERT INTO jobs (prompt, params, policy) VALUES ({values})")).await;
}

/// Inserts a job that may call `find` and `now`, and waits for what they give.
async fn ask_and_wait(ground: &Ground, prompt: &str) {
    ask(ground, prompt, &declare(&["find", "now"]), r#"{"on_tool_use": "wait"}"#).await;
}

/// Answers the open call of this place in the turn.
async fn answer(ground: &Ground, position: i32, result: &str) {
    let sql = format!(
        "UPDATE tool_calls SET result = {} WHERE position = {position} AND result IS NULL AND result_content IS NULL",
        quoted(result)
    );
    assert_eq!(ground.run(&sql).await, 1, "{:?}", ground.lines(OPEN).await);
}

/// Waits until so many calls are open.
async fn until_open(mill: &Mill<'_>, calls: usize) {
    mill.until("SELECT count(*) FROM open_tool_calls", &calls.to_string()).await;
}

/// Waits until so many jobs have their results.
async fn until_done(mill: &Mill<'_>, jobs: usize) {
    mill.until("SELECT count(*) FROM results", &jobs.to_string()).await;
}
