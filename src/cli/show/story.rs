//! A job's story as text: pure, so that its sentences can be tested without a database.
//!
//! `write!` into a String cannot fail, hence the `.ok()`.

use std::fmt::Write as _;

use crate::cli::out::{cell, cell_number, count, duration, number, one_line, printable, table, time};
use crate::domain::ledger::CallKind;
use crate::domain::outcome::Outcome;
use crate::domain::seam::Seam;
use crate::store::{CallRow, JobRow, ResultRow, Texts, ToolRow};

/// Characters of a prompt or an answer, unless all of it is wanted.
const TEXT_MAX: usize = 400;
/// Characters of what a tool was asked or gave, unless all of it is wanted.
const TOOL_MAX: usize = 200;

/// Returns the whole story.
pub fn tell(
    job: &JobRow,
    calls: &[CallRow],
    tools: &[ToolRow],
    result: Option<&ResultRow>,
    texts: Texts,
) -> String {
    let mut lines = Vec::new();
    head(&mut lines, job, tools, result);
    asked(&mut lines, job, texts);
    if calls.is_empty() {
        lines.push("\nNo call was made yet.".to_owned());
    } else {
        lines.push(format!("\n{}", ledger(calls)));
        lines.push(String::new());
        for (at, call) in calls.iter().enumerate() {
            if call.run > 1 && (at == 0 || calls[at - 1].run != call.run) {
                lines.push(format!("Run {}: the job was run again.", call.run));
            }
            lines.push(format!("{:>3}. {}", at + 1, sentence(call)));
            let of_call = |tool: &&ToolRow| (tool.claim, tool.seq) == (call.claim, call.seq);
            lines.extend(
                tools.iter().filter(of_call).map(|tool| format!("     {}", tool_sentence(tool, texts))),
            );
        }
    }
    if let Some(result) = result {
        lines.push(String::new());
        end(&mut lines, result, texts);
    }
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

fn head(lines: &mut Vec<String>, job: &JobRow, tools: &[ToolRow], result: Option<&ResultRow>) {
    let open = tools.iter().filter(|tool| tool.run == job.run && tool.result.is_none()).count();
    let state = match (job.state.as_str(), result) {
        ("done", Some(result)) => format!("is done: {}", result.outcome),
        ("pending", _) => "is pending: it may be claimed now".to_owned(),
        ("scheduled", _) => format!("is scheduled: it is due at {}", time(job.available_at)),
        ("running", _) => "is running".to_owned(),
        ("waiting", _) => format!("waits for {}", count(open as i64, "tool result", "tool results")),
        (state, _) => format!("is {state}"),
    };
    // What a job waits for is all the reason there is.
    let why = job.reason.as_deref().filter(|_| job.state != "waiting");
    let why = why.map(|reason| format!(" ({})", one_line(reason, 300))).unwrap_or_default();
    lines.push(format!("Job {} {state}{why}.", job.id));
    if job.arrived > 0 {
        lines.push(format!("  arrived so far: {}", count(job.arrived, "character", "characters")));
    }
    let mut place = format!("  queue {}", job.asked.queue.as_deref().unwrap_or_default());
    for (name, value) in [("batch", &job.asked.batch), ("key", &job.asked.key)] {
        if let Some(value) = value {
            write!(place, ", {name} {value}").ok();
        }
    }
    if job.priority != 0 {
        write!(place, ", priority {}", job.priority).ok();
    }
    lines.push(printable(&place).into_owned());
    let mut times = format!("  inserted {}", time(job.created_at));
    if let Some(run_at) = job.asked.run_at.filter(|run_at| run_at.0 > job.created_at.0) {
        write!(times, ", to run at {}", time(run_at)).ok();
    }
    if let Some(deadline) = job.deadline_at {
        write!(times, ", deadline {}", time(deadline)).ok();
    }
    lines.push(times);
    lines.push(format!(
        "  run {}, claim {}, {}",
        job.run,
        number(job.claims),
        count(job.failures, "failure", "failures")
    ));
}

fn asked(lines: &mut Vec<String>, job: &JobRow, texts: Texts) {
    let max_tokens = job.asked.max_tokens.map(|tokens| tokens.to_string());
    if let Some(at) = job.redacted_at {
        lines.push(format!("  prompt, system and params were redacted at {}: it cannot run again", time(at)));
    }
    for (name, value) in [
        ("model", &job.asked.model),
        ("max_tokens", &max_tokens),
        ("system", &job.asked.system),
        ("prompt", &job.asked.prompt),
        ("params", &job.asked.params),
        ("policy", &job.asked.policy),
        ("metadata", &job.asked.metadata),
    ] {
        if let Some(value) = value {
            lines.push(format!("  {name}: {}", excerpt(value, texts)));
        }
    }
}

fn excerpt(text: &str, texts: Texts) -> String {
    excerpt_of(text, texts, TEXT_MAX)
}

fn excerpt_of(text: &str, texts: Texts, most: usize) -> String {
    if texts == Texts::Whole { printable(text).into_owned() } else { one_line(text, most) }
}

fn ledger(calls: &[CallRow]) -> String {
    let mut lines = table(&[
        "#",
        "run",
        "claim",
        "kind",
        "model",
        "room",
        "sent",
        "took",
        "in",
        "out",
        "ended",
        "request id",
    ]);
    for (at, call) in calls.iter().enumerate() {
        let took = took(call).map(duration).unwrap_or_default();
        let ended = call.error_type.as_deref().or(call.stop_reason.as_deref()).unwrap_or_default();
        lines.add_row([
            cell_number(at as i64 + 1),
            cell_number(call.run),
            cell(&format!("{}.{}", call.claim, call.seq)),
            cell(&call.kind),
            cell(call.model.as_deref().unwrap_or_default()),
            cell(&call.max_tokens.map(number).unwrap_or_default()),
            cell(&call.sent_at.map(time).unwrap_or_default()),
            cell(&took),
            cell_number(call.usage.input + call.usage.cache_creation + call.usage.cache_read),
            cell_number(call.usage.output),
            cell(ended),
            cell(call.request_id.as_deref().unwrap_or_default()),
        ]);
    }
    lines.to_string()
}

fn took(call: &CallRow) -> Option<i64> {
    Some(call.ended_at?.0 - call.sent_at?.0)
}

fn sentence(call: &CallRow) -> String {
    let model = call.model.as_deref().unwrap_or("the model");
    let mut did = match CallKind::parse(&call.kind) {
        Some(CallKind::Ask) => format!("Asked {model}"),
        Some(CallKind::Continue) => format!("Went on with the answer that the limit had cut, asking {model}"),
        Some(CallKind::Regenerate) => format!("Asked {model} again from the start, with more room"),
        Some(CallKind::Resume) => format!("Went on with the answer whose stream was lost, asking {model}"),
        Some(CallKind::Tool) => format!("Gave {model} the results of its tool calls"),
        Some(CallKind::Repair) => format!("Showed {model} what its structured output got wrong"),
        Some(CallKind::Nudge) => format!("Asked {model} for an answer after an empty one"),
        Some(CallKind::Fallback) => format!("Asked {model} after another model had refused"),
        Some(CallKind::Pause) => format!("Sent {model} its paused turn back"),
        None => format!("Made a call of kind {} to {model}", call.kind),
    };
    if let Some(room) = call.max_tokens {
        write!(did, " (room for {})", count(room, "token", "tokens")).ok();
    }
    if call.probe {
        did.push_str(", as a probe");
    }
    let after = took(call).map(|ms| format!(" after {}", duration(ms))).unwrap_or_default();
    let ended = match (&call.error_type, &call.stop_reason) {
        (Some(kind), _) => {
            let status = call.http_status.map(|status| format!(", HTTP {status}")).unwrap_or_default();
            let code = call.error_code.as_deref().map(|code| format!(", {code}")).unwrap_or_default();
            let why =
                call.error.as_deref().map(|why| format!(": {}", one_line(why, 300))).unwrap_or_default();
            format!("It failed{after} with {kind}{status}{code}{why}")
        }
        (None, Some(stop)) => format!("It ended with {stop}{after}"),
        (None, None) => format!("It ended without a stop reason{after}"),
    };
    let mut more = Vec::new();
    if call.partial {
        more.push("It was cut: its tokens are estimates.".to_owned());
    }
    if call.late {
        more.push("It came after its worker had lost the job: paid for, not used.".to_owned());
    }
    if let Some(ms) = call.retry_after_ms {
        more.push(format!("The server asked to wait {}.", duration(ms)));
    }
    if let Some(request) = &call.request {
        more.push(joint(request).map_or_else(|| format!("How: {}", one_line(request, 200)), str::to_owned));
    }
    more.insert(0, format!("{}.", ended.trim_end_matches('.')));
    printable(&format!("{did}. {}", more.join(" "))).into_owned()
}

/// What a tool was asked, and what it gave.
fn tool_sentence(tool: &ToolRow, texts: Texts) -> String {
    let input = tool.input.as_deref().map(|input| excerpt_of(input, texts, TOOL_MAX)).unwrap_or_default();
    let asked = printable(&format!("{} ({})", tool.name, tool.call_id)).into_owned();
    let by = tool.taken_by.as_deref().map(|by| printable(by).into_owned());
    let became = match (&tool.result, tool.answered_at) {
        (Some(result), at) => {
            let by = by.map(|by| format!(" by {by}")).unwrap_or_default();
            let after =
                at.map(|at| format!(" after {}", duration(at.0 - tool.created_at.0))).unwrap_or_default();
            let how = if tool.is_error { " with an error" } else { "" };
            format!("answered{by}{after}{how}: {}", excerpt_of(result, texts, TOOL_MAX))
        }
        (None, _) => match by {
            Some(by) => {
                let at = tool.taken_at.map(|at| format!(" at {}", time(at))).unwrap_or_default();
                format!("taken by {by}{at}, no result yet")
            }
            None => "no result yet".to_owned(),
        },
    };
    format!("- tool {asked} {input}: {became}")
}

/// How a continuation was joined, in words; `None` where the note says something else.
fn joint(note: &str) -> Option<&'static str> {
    let note: serde_json::Value = serde_json::from_str(note).ok()?;
    let seam = note.get("seam")?.as_str()?;
    [
        (Seam::Anchored, "It began with the characters it was to repeat: they were dropped."),
        (Seam::Overlap, "It began with another piece of the answer's end: that was dropped."),
        (Seam::Plain, "It repeated nothing: it was taken for the very next characters; look at that place."),
    ]
    .into_iter()
    .find_map(|(known, words)| (known.as_str() == seam).then_some(words))
}

fn end(lines: &mut Vec<String>, result: &ResultRow, texts: Texts) {
    let why = result.error.as_deref().map(|error| format!(": {}", excerpt(error, texts))).unwrap_or_default();
    lines.push(format!("Ended at {} as {}{why}", time(result.finished_at), result.outcome));
    let usage = &result.usage;
    lines.push(format!(
        "  {}, {}, {}, {}; tokens: {} in, {} written to the cache, {} read from it, {} out",
        count(result.calls, "call", "calls"),
        count(result.continuations, "continuation", "continuations"),
        count(result.seams, "rough seam", "rough seams"),
        count(result.failures, "failure", "failures"),
        number(usage.input),
        number(usage.cache_creation),
        number(usage.cache_read),
        number(usage.output)
    ));
    if result.sanitised > 0 {
        lines.push(format!(
            "  {} that no SQL text can hold replaced by U+FFFD",
            count(result.sanitised, "character", "characters")
        ));
    }
    if result.dropped > 0 {
        lines.push(format!(
            "  {} of the input left out, the oldest first: it was longer than the model reads",
            count(result.dropped, "message", "messages")
        ));
    }
    if let Some(output) = &result.output {
        lines.push(format!("  output: {}", excerpt(output, texts)));
    }
    if let Some(text) = &result.text {
        let name = if result.outcome == Outcome::Complete.as_str() { "text" } else { "text so far" };
        lines.push(format!("  {name}: {}", excerpt(text, texts)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::JobId;
    use crate::domain::outcome::Usage;
    use crate::store::{Moment, NewJob};

    fn call(seq: i64, kind: &str, stop: &str) -> CallRow {
        CallRow {
            run: 1,
            claim: 1,
            seq,
            kind: kind.into(),
            probe: false,
            model: Some("claude-x".into()),
            max_tokens: Some(1000 * seq),
            messages: Some(1),
            request: None,
            sent_at: Some(Moment(1_790_000_000_000)),
            first_token_at: None,
            ended_at: Some(Moment(1_790_000_002_300)),
            http_status: Some(200),
            request_id: Some("req_1".into()),
            message_id: None,
            stop_reason: Some(stop.into()),
            usage: Usage { input: 10, output: 1000, ..Usage::default() },
            partial: false,
            late: false,
            error_type: None,
            error_code: None,
            error: None,
            retry_after_ms: None,
            worker: Some(1),
        }
    }

    fn job() -> JobRow {
        JobRow {
            id: JobId(7),
            asked: NewJob {
                queue: Some("default".into()),
                batch: Some("b".into()),
                prompt: Some("Say \u{1b}[2Jhello".into()),
                ..NewJob::default()
            },
            created_at: Moment(1_790_000_000_000),
            state: "running".into(),
            available_at: Moment(1_790_000_000_000),
            deadline_at: None,
            priority: 0,
            run: 1,
            claims: 1,
            failures: 0,
            reason: None,
            arrived: 0,
            redacted_at: None,
        }
    }

    #[test]
    fn a_story_tells_each_call_in_a_sentence() {
        let mut overloaded = call(3, "resume", "");
        overloaded.stop_reason = None;
        overloaded.error_type = Some("overloaded_error".into());
        overloaded.http_status = Some(529);
        overloaded.error = Some("Overloaded.".into());
        overloaded.retry_after_ms = Some(2000);
        let calls = [call(1, "ask", "max_tokens"), call(2, "continue", "end_turn"), overloaded];
        insta::assert_snapshot!(tell(&job(), &calls, &[], None, Texts::Start));
    }

    #[test]
    fn a_tool_call_stands_under_the_reply_that_made_it_with_what_it_gave() {
        let tool = |position, result: Option<&str>| ToolRow {
            run: 1,
            claim: 1,
            seq: 1,
            position,
            call_id: format!("toolu_{position}"),
            name: "weather".into(),
            input: Some(r#"{"city":"Paris"}"#.into()),
            result: result.map(str::to_owned),
            result_cut: false,
            is_error: position == 1,
            taken_by: (position < 3).then(|| "a server".into()),
            taken_at: Some(Moment(1_790_000_003_000)),
            created_at: Moment(1_790_000_002_300),
            answered_at: result.map(|_| Moment(1_790_000_005_300)),
        };
        let tools = [
            tool(0, Some(&"sunny ".repeat(100))),
            tool(1, Some("no such city")),
            tool(2, None),
            tool(3, None),
        ];
        let waiting = JobRow { state: "waiting".into(), ..job() };
        let calls = [call(1, "ask", "tool_use"), call(2, "tool", "end_turn")];
        insta::assert_snapshot!(tell(&waiting, &calls, &tools, None, Texts::Start));
    }

    #[test]
    fn a_joint_is_told_in_words_and_any_other_note_as_it_is() {
        let mut call = call(2, "continue", "end_turn");
        for (note, told) in [
            (r#"{"how":"anchor","seam":"anchored"}"#, "they were dropped."),
            (r#"{"how":"anchor","seam":"plain"}"#, "look at that place."),
            (r#"{"dropped":2}"#, r#"How: {"dropped":2}"#),
        ] {
            call.request = Some(note.into());
            assert!(sentence(&call).ends_with(told), "{}", sentence(&call));
        }
    }

    #[test]
    fn a_job_that_was_never_asked_says_so() {
        assert!(tell(&job(), &[], &[], None, Texts::Start).contains("No call was made yet."));
    }
}
