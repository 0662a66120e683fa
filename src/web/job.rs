//! One job: where it is, what each call did, what it said, and, when asked for, what it was asked.

mod copy;
mod talk;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use askama::Template;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde_json::{Value, json};

use self::copy::Around;
use self::talk::Turn;
use super::Web;
use super::act::form_name;
use super::fault::Fault;
use super::fields::{Fields, Id, link};
use super::guard::is_there;
use super::words::{self, Frame, TEXT_MAX, between, page, start};
use crate::cli::out::{duration, time_rfc3339};
use crate::domain::job::JobId;
use crate::store::board::{Mark, Partial};
use crate::store::{CallRow, JobRow, Moment, NewJob, ResultRow, Texts, ToolRow};

/// Characters of what one call said that the conversation shows.
const SAID_MAX: usize = 200_000;

/// The addresses of a job.
pub fn routes() -> Router<Arc<Web>> {
    Router::new()
        .route("/jobs/{id}", get(show))
        .route("/jobs/{id}/answer.txt", get(answer))
        .route("/jobs/{id}/again", get(again))
}

/// A job with all that belongs to it.
pub struct Job {
    now: Moment,
    row: JobRow,
    calls: Vec<CallRow>,
    tools: Vec<ToolRow>,
    result: Option<ResultRow>,
    partial: Option<Partial>,
    asked: Option<NewJob>,
    /// Whether what it was asked, and its conversation, were asked for.
    whole: bool,
    around: Around,
    /// How anybody's statement names the table of jobs.
    table: String,
    turns: Vec<Turn>,
}

/// Asks for it; what it was asked, and its conversation, only where `whole` says so.
pub async fn load(web: &Web, id: i64, whole: bool) -> Result<Job, Fault> {
    let job = JobId(id);
    let row = web.desk()?.job(job).await?.ok_or_else(|| Fault::missing(format!("there is no job {id}")))?;
    let calls = web.desk()?.calls(job).await?;
    let tools = web.desk()?.tools(job).await?;
    let result = web.desk()?.results(&[job], Texts::Whole).await?.pop();
    let partial = match row.state.as_str() {
        "running" => web.board()?.partial(job, (0, 0, 0)).await?,
        _ => None,
    };
    let (mut asked, mut turns, mut around) = (None, Vec::new(), Around::default());
    if whole {
        // Of one that was redacted nobody knows any more what it asked.
        asked = web.board()?.asked(job).await?.filter(|_| row.redacted_at.is_none());
        let queue = row.asked.queue.as_deref().unwrap_or_default();
        around.queue = web.board()?.queue_says(queue).await?.unwrap_or_default();
        around.accounts = web.desk()?.account_rows().await?;
        turns = talk::turns(&web.board()?.said(job, SAID_MAX as i64).await?, SAID_MAX, &tools);
    }
    let (now, table) = (web.board()?.now().await?, web.board()?.name_of("jobs"));
    Ok(Job { now, row, calls, tools, result, partial, asked, whole, around, table, turns })
}

/// A call on the line of time: where its bar begins, how long it waits, and how long it streams.
struct Bar {
    x: f64,
    wait: f64,
    stream: f64,
}

impl Job {
    fn is_done(&self) -> bool {
        self.row.state == "done"
    }

    fn is_redacted(&self) -> bool {
        self.row.redacted_at.is_some()
    }

    fn is_running(&self) -> bool {
        self.row.state == "running"
    }

    /// The start of the answer, and whether that is not all of it.
    fn answer(&self) -> Option<(&str, bool)> {
        self.result.as_ref()?.text.as_deref().map(|text| start(text, TEXT_MAX))
    }

    fn output(&self) -> Option<(String, bool)> {
        let output = self.result.as_ref()?.output.as_deref()?;
        let value: Value = serde_json::from_str(output).ok()?;
        let text = format!("{value:#}");
        let (shown, more) = start(&text, TEXT_MAX);
        Some((shown.to_owned(), more))
    }

    fn wait(call: &CallRow) -> String {
        between(call.sent_at, call.first_token_at)
    }

    fn took(call: &CallRow) -> String {
        between(call.sent_at, call.ended_at)
    }

    fn tokens_in(call: &CallRow) -> i64 {
        call.usage.input + call.usage.cache_creation + call.usage.cache_read
    }

    /// How long the job took.
    fn whole(result: &ResultRow) -> String {
        between(result.started_at, Some(result.finished_at))
    }

    /// The pause before a call, since the one before it ended.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "templates hand over references")]
    fn pause(&self, at: &usize) -> Option<String> {
        let before = self.calls.get(at.checked_sub(1)?)?;
        let ms = self.calls[*at].sent_at?.0 - before.ended_at?.0;
        (ms >= 1_000).then(|| duration(ms))
    }

    /// The bar of a call, in thousandths of the time from the first call to the last.
    fn bar(&self, call: &CallRow) -> Option<Bar> {
        let first = self.calls.iter().filter_map(|call| call.sent_at).min()?.0;
        let ends = self.calls.iter().filter_map(|call| call.ended_at.or(call.sent_at));
        let span = (ends.max()?.0 - first).max(1) as f64;
        let (sent, ended) = (call.sent_at?.0, call.ended_at.or(call.sent_at)?.0);
        let begun = call.first_token_at.map_or(ended, |at| at.0.clamp(sent, ended.max(sent)));
        let share = |ms: i64| ms as f64 / span * 1000.0;
        Some(Bar { x: share(sent - first), wait: share(begun - sent), stream: share(ended - begun).max(4.0) })
    }

    fn tool_calls(&self, call: &CallRow) -> Vec<&ToolRow> {
        self.tools.iter().filter(|tool| (tool.claim, tool.seq) == (call.claim, call.seq)).collect()
    }

    fn of_batch(&self) -> Option<String> {
        self.row.asked.batch.as_deref().map(|batch| link("/batch", &[("name", batch)]))
    }

    fn of_queue(&self) -> String {
        link("/jobs", &[("queue", self.row.asked.queue.as_deref().unwrap_or_default())])
    }

    fn sql(&self) -> String {
        self.asked.as_ref().map(|asked| copy::sql(asked, &self.table)).unwrap_or_default()
    }

    fn curl(&self, web: &Web) -> String {
        self.asked.as_ref().map(|asked| copy::curl(asked, &self.around, &web.config)).unwrap_or_default()
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let row = &self.row;
        let call = |call: &CallRow| {
            json!({
                "run": call.run, "claim": call.claim, "seq": call.seq, "kind": call.kind, "probe": call.probe,
                "model": call.model, "max_tokens": call.max_tokens, "messages": call.messages,
                "sent_at": call.sent_at.map(time_rfc3339), "first_token_at": call.first_token_at.map(time_rfc3339),
                "ended_at": call.ended_at.map(time_rfc3339), "http_status": call.http_status,
                "request_id": call.request_id, "stop_reason": call.stop_reason,
                "input_tokens": call.usage.input, "output_tokens": call.usage.output,
                "cache_creation_input_tokens": call.usage.cache_creation,
                "cache_read_input_tokens": call.usage.cache_read, "partial": call.partial, "late": call.late,
                "error_type": call.error_type, "error_code": call.error_code, "error": call.error,
                "retry_after_ms": call.retry_after_ms, "worker": call.worker,
            })
        };
        let result = self.result.as_ref().map(crate::cli::results::format::json_of);
        let result = result.and_then(|result| serde_json::from_str::<Value>(&result).ok());
        let asked = self.asked.as_ref().map(|asked| {
            json!({
                "prompt": asked.prompt, "system": asked.system, "params": asked.params, "policy": asked.policy,
                "metadata": asked.metadata,
            })
        });
        let tool = |tool: &ToolRow| {
            json!({
                "run": tool.run, "claim": tool.claim, "seq": tool.seq, "position": tool.position,
                "call_id": tool.call_id, "name": tool.name, "answered": tool.result.is_some(),
                "is_error": tool.is_error, "taken_by": tool.taken_by,
                "taken_at": tool.taken_at.map(time_rfc3339), "created_at": time_rfc3339(tool.created_at),
                "answered_at": tool.answered_at.map(time_rfc3339),
            })
        };
        // As on the page: what a conversation says is hidden until it is asked for.
        let conversation = self.whole.then(|| self.turns.iter().map(Turn::json).collect::<Vec<_>>());
        json!({
            "id": row.id.0, "queue": row.asked.queue, "batch": row.asked.batch, "key": row.asked.key,
            "model": row.asked.model, "max_tokens": row.asked.max_tokens, "state": row.state,
            "reason": row.reason, "priority": row.priority, "run": row.run, "claims": row.claims,
            "failures": row.failures, "created_at": time_rfc3339(row.created_at),
            "available_at": time_rfc3339(row.available_at), "deadline_at": row.deadline_at.map(time_rfc3339),
            "redacted_at": row.redacted_at.map(time_rfc3339),
            "calls": self.calls.iter().map(call).collect::<Vec<_>>(),
            "tool_calls": self.tools.iter().map(tool).collect::<Vec<_>>(), "result": result, "asked": asked,
            "conversation": conversation,
        })
    }
}

#[derive(Template)]
#[template(path = "job.html")]
struct Page {
    frame: Frame,
    j: Job,
    sql: String,
    curl: String,
}

async fn show(
    State(web): State<Arc<Web>>,
    Id(id): Id,
    headers: HeaderMap,
    fields: Fields,
) -> Result<Response, Fault> {
    // Looked at before the rest: what changes meanwhile is found by the next look.
    let mark = web.board()?.mark(JobId(id)).await?;
    let mark = tag(&mark.ok_or_else(|| Fault::missing(format!("there is no job {id}")))?);
    is_there(&web);
    // Who has the page already is told where nothing changed, and nothing else is read: a job may hold
    // megabytes, and is looked at every few seconds.
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == mark.as_bytes()) {
        return Ok(StatusCode::NOT_MODIFIED.into_response());
    }
    let shown = fields.get("show") == Some("prompt");
    let j = load(&web, id, shown).await?;
    let frame = Frame::new(&web, format!("Job {id}"), "/jobs");
    // What runs is followed part by part; the rest is looked at again until it is done.
    let frame = if j.is_done() { frame } else { frame.every(3) };
    let frame = Frame { mark: mark.clone(), ..frame };
    let (sql, curl) = (j.sql(), j.curl(&web));
    let mut answer = page(&Page { frame, j, sql, curl });
    if let Ok(mark) = HeaderValue::from_str(&mark) {
        answer.headers_mut().insert(header::ETAG, mark);
    }
    Ok(answer)
}

/// A mark as an `ETag`, until this process ends.
fn tag(mark: &Mark) -> String {
    let mut hasher = DefaultHasher::new();
    mark.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

/// The whole text of an answer, as a file that no browser takes for a page.
async fn answer(State(web): State<Arc<Web>>, Id(id): Id) -> Result<Response, Fault> {
    let result = web.desk()?.results(&[JobId(id)], Texts::Whole).await?.pop();
    let text = result.and_then(|result| result.text);
    let text = text.ok_or_else(|| Fault::missing(format!("job {id} has no answer")))?;
    let name = format!("attachment; filename=\"job-{id}.txt\"");
    let kind = "text/plain; charset=utf-8".to_owned();
    Ok(([(header::CONTENT_TYPE, kind), (header::CONTENT_DISPOSITION, name)], text).into_response())
}

/// What is kept of a running stream after some part of it, for programs.
pub async fn partial_json(web: &Web, id: i64, fields: &Fields) -> Result<Value, Fault> {
    let number = |name: &str| fields.number::<i64>(name).map(Option::unwrap_or_default);
    let after = (number("claim")?, number("seq")?, number("part")?);
    let partial = web.board()?.partial(JobId(id), after).await?;
    let partial = partial.ok_or_else(|| Fault::missing(format!("there is no job {id}")))?;
    Ok(json!({
        "state": partial.state, "claim": partial.call.0, "seq": partial.call.1, "call": partial.number,
        "part": partial.part, "text": partial.text,
    }))
}

/// Longest text that a form brings back.
const FORM_MAX: usize = 200_000;

#[derive(Template)]
#[template(path = "again.html")]
struct AgainPage {
    frame: Frame,
    id: i64,
    /// Names this form.
    form: String,
    asked: NewJob,
    max_tokens: String,
    /// Which texts are too long for a form, and are kept as they are.
    kept: Vec<&'static str>,
}

impl AgainPage {
    fn texts(&self) -> Vec<(&'static str, &'static str, &str)> {
        let all = [
            ("prompt", "the message of the user", &self.asked.prompt),
            ("system", "the system prompt", &self.asked.system),
            ("params", "further fields of the request, as a JSON object", &self.asked.params),
            ("policy", "how it wants to be treated, as a JSON object", &self.asked.policy),
        ];
        let here = all.into_iter().filter(|(name, ..)| !self.kept.contains(name));
        here.map(|(name, what, text)| (name, what, text.as_deref().unwrap_or_default())).collect()
    }
}

/// The form of a new job that begins as this one.
async fn again(State(web): State<Arc<Web>>, Id(id): Id) -> Result<Response, Fault> {
    if web.settings.read_only {
        return Err(Fault::new(StatusCode::FORBIDDEN, "read_only", "this page is read-only (web.read_only)"));
    }
    let asked = web.board()?.asked(JobId(id)).await?;
    let asked = asked.ok_or_else(|| Fault::missing(format!("there is no job {id}")))?;
    is_there(&web);
    let texts = [
        ("prompt", &asked.prompt),
        ("system", &asked.system),
        ("params", &asked.params),
        ("policy", &asked.policy),
    ];
    let long = |text: &Option<String>| text.as_ref().is_some_and(|text| text.len() > FORM_MAX);
    let kept = texts.into_iter().filter(|(_, text)| long(text)).map(|(name, _)| name).collect();
    let max_tokens = asked.max_tokens.map(|n| n.to_string()).unwrap_or_default();
    let frame = Frame::new(&web, format!("Ask again, like job {id}"), "/jobs");
    Ok(page(&AgainPage { frame, id, form: form_name(), asked, max_tokens, kept }))
}
