//! `promptmill show JOB`: a job's whole story: what was asked, each call, and how it ended.

mod story;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::exit::{Exit, Stop};
use super::open::{Absent, Context};
use super::out::{Out, time_rfc3339};
use super::results::json_of;
use crate::domain::job::JobId;
use crate::store::{CallRow, Desk, JobRow, Texts, ToolRow};

/// Tells a job's whole story: what was asked, each call to the API, and how it ended.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job: its id, or its key
    #[arg(value_name = "JOB")]
    job: String,
    /// Show prompt (its first 4,000 characters) and answer whole instead of their beginning
    #[arg(long)]
    full: bool,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let desk = context.desk(Absent::Refuse).await?;
    let job = find(&*desk, &args.job).await?;
    let id = job.id;
    let calls = desk.calls(id).await.with_context(|| format!("failed to read the calls of job {id}"))?;
    let tools = desk.tools(id).await.with_context(|| format!("failed to read the tool calls of job {id}"))?;
    let result = desk
        .results(&[id], Texts::Whole)
        .await
        .with_context(|| format!("failed to read the result of job {id}"))?
        .pop();
    let texts = if args.full { Texts::Whole } else { Texts::Start };
    let mut out = Out::stdout();
    if context.json {
        let result = match &result {
            Some(row) => serde_json::from_str(&json_of(row)).context("failed to write the result as JSON")?,
            None => Value::Null,
        };
        let calls: Vec<Value> = calls.iter().map(call_json).collect();
        let tools: Vec<Value> = tools.iter().map(tool_json).collect();
        let all = json!({"job": job_json(&job), "calls": calls, "tool_calls": tools, "result": result});
        out.line(&all.to_string())?;
    } else {
        out.text(&story::tell(&job, &calls, &tools, result.as_ref(), texts))?;
    }
    out.flush()?;
    Ok(Exit::Good)
}

/// An id is tried first: keys are free text, and may look like one.
async fn find(desk: &dyn Desk, name: &str) -> anyhow::Result<JobRow> {
    let by_id = match name.parse() {
        Ok(id) => desk.job(JobId(id)).await.with_context(|| format!("failed to read job {name}"))?,
        Err(_) => None,
    };
    if let Some(job) = by_id {
        return Ok(job);
    }
    let by_key = desk.job_of_key(name).await.context("failed to look for the key")?;
    if let Some(id) = by_key
        && let Some(job) = desk.job(id).await.with_context(|| format!("failed to read job {id}"))?
    {
        return Ok(job);
    }
    Err(Stop::failure(format!("no job has the id or the key \"{name}\"")))
}

fn job_json(job: &JobRow) -> Value {
    json!({
        "id": job.id.0, "queue": job.asked.queue, "batch": job.asked.batch, "key": job.asked.key,
        "state": job.state, "reason": job.reason, "run": job.run, "claims": job.claims, "failures": job.failures,
        "priority": job.priority, "model": job.asked.model, "max_tokens": job.asked.max_tokens,
        "prompt": job.asked.prompt, "system": job.asked.system, "params": job.asked.params,
        "policy": job.asked.policy, "metadata": job.asked.metadata,
        "created_at": time_rfc3339(job.created_at), "run_at": job.asked.run_at.map(time_rfc3339),
        "available_at": time_rfc3339(job.available_at), "deadline_at": job.deadline_at.map(time_rfc3339),
        "redacted_at": job.redacted_at.map(time_rfc3339),
    })
}

fn tool_json(tool: &ToolRow) -> Value {
    json!({
        "run": tool.run, "claim": tool.claim, "seq": tool.seq, "position": tool.position,
        "call_id": tool.call_id, "name": tool.name, "input": tool.input, "result": tool.result,
        "is_error": tool.is_error, "taken_by": tool.taken_by, "taken_at": tool.taken_at.map(time_rfc3339),
        "created_at": time_rfc3339(tool.created_at), "answered_at": tool.answered_at.map(time_rfc3339),
    })
}

fn call_json(call: &CallRow) -> Value {
    json!({
        "run": call.run, "claim": call.claim, "seq": call.seq, "kind": call.kind, "probe": call.probe,
        "model": call.model, "max_tokens": call.max_tokens, "messages": call.messages,
        "request": call.request.as_deref().map(|text| {
            serde_json::from_str::<Value>(text).unwrap_or_else(|_| text.into())
        }),
        "sent_at": call.sent_at.map(time_rfc3339), "first_token_at": call.first_token_at.map(time_rfc3339),
        "ended_at": call.ended_at.map(time_rfc3339), "http_status": call.http_status,
        "request_id": call.request_id, "message_id": call.message_id, "stop_reason": call.stop_reason,
        "input_tokens": call.usage.input, "output_tokens": call.usage.output,
        "cache_creation_input_tokens": call.usage.cache_creation,
        "cache_read_input_tokens": call.usage.cache_read,
        "partial": call.partial, "late": call.late, "error_type": call.error_type,
        "error_code": call.error_code, "error": call.error, "retry_after_ms": call.retry_after_ms,
        "worker": call.worker,
    })
}
