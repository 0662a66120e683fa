//! Rows on their way in and out: what both databases read and write in the same shape.
//!
//! Batches travel as one JSON array, whose field names are the columns' names; the ends of jobs and
//! their calls, which are the most, travel to Postgres as an array a column. Times travel as milliseconds ago: the database's clock turns them into times.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::domain::job::{Claimed, JobId, Lease};
use crate::domain::ledger::{Answer, Back, Call, Checkpoint, PastCall, Release, Settlement};
use crate::domain::reply::{sanitise, sanitise_json};
use crate::domain::retention::DoneJob;
use crate::domain::tool::{Asked, PastTool, ToolCall, ToolContent, ToolResult};
use crate::store::Rescued;

/// Longest delay that is written: far beyond any hint of a server, and no overflow in a database.
const DELAY_MAX: Duration = Duration::from_hours(10 * 365 * 24);

/// A row of `calls`.
#[derive(Debug, Clone, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "they are columns")]
pub(crate) struct CallRow<'a> {
    pub(crate) job_id: i64,
    pub(crate) claim: i64,
    pub(crate) run: i64,
    pub(crate) seq: i32,
    pub(crate) kind: &'static str,
    pub(crate) probe: bool,
    pub(crate) model: &'a str,
    pub(crate) max_tokens: i64,
    pub(crate) messages: i32,
    pub(crate) sent_ago: i64,
    pub(crate) first_token_ago: Option<i64>,
    pub(crate) ended_ago: i64,
    pub(crate) http_status: Option<i32>,
    pub(crate) request_id: Option<&'a str>,
    pub(crate) message_id: Option<&'a str>,
    pub(crate) stop_reason: Option<&'a str>,
    pub(crate) input_tokens: i64,
    pub(crate) output_tokens: i64,
    pub(crate) cache_creation_input_tokens: i64,
    pub(crate) cache_read_input_tokens: i64,
    pub(crate) partial: bool,
    pub(crate) error_type: Option<&'a str>,
    pub(crate) error_code: Option<&'a str>,
    pub(crate) error: Option<&'a str>,
    pub(crate) retry_after_ms: Option<i64>,
    pub(crate) stop_details: Option<&'a str>,
    pub(crate) request: Option<&'a str>,
    pub(crate) usage: Option<&'a str>,
    pub(crate) container: Option<&'a str>,
    pub(crate) content: Option<&'a str>,
    /// The answer says the same: it need not be kept twice where the answer is written.
    #[serde(skip)]
    pub(crate) once: bool,
    pub(crate) checkpointed: bool,
}

/// A part of a running stream.
#[derive(Debug, Serialize)]
struct CheckpointRow<'a> {
    job_id: i64,
    claim: i64,
    run: i64,
    seq: i32,
    part: i32,
    content: &'a str,
}

/// A row of `results`, but for what comes from `jobs`.
#[derive(Debug, Serialize)]
pub(crate) struct AnswerRow<'a> {
    pub(crate) job_id: i64,
    pub(crate) claim: i64,
    pub(crate) run: i64,
    pub(crate) outcome: &'static str,
    pub(crate) whole: bool,
    pub(crate) stop_reason: Option<&'a str>,
    pub(crate) stop_sequence: Option<&'a str>,
    pub(crate) model: Option<&'a str>,
    pub(crate) input_tokens: i64,
    pub(crate) output_tokens: i64,
    pub(crate) cache_creation_input_tokens: i64,
    pub(crate) cache_read_input_tokens: i64,
    pub(crate) calls: i32,
    pub(crate) continuations: i32,
    pub(crate) seams: i32,
    pub(crate) failures: i32,
    pub(crate) sanitised: i32,
    pub(crate) dropped: i32,
    pub(crate) error_type: Option<&'a str>,
    pub(crate) error_code: Option<&'a str>,
    pub(crate) error: Option<&'a str>,
    pub(crate) request_id: Option<&'a str>,
    pub(crate) started_ago: Option<i64>,
    pub(crate) stop_details: Option<&'a str>,
    pub(crate) text: Option<&'a str>,
    pub(crate) content: Option<&'a str>,
    pub(crate) output: Option<&'a str>,
}

/// A job put back.
#[derive(Debug, Serialize)]
struct ReleaseRow<'a> {
    job_id: i64,
    claim: i64,
    run: i64,
    delay_ms: Option<i64>,
    failures: i32,
    deferrals: i32,
    reason: Option<&'a str>,
    called: bool,
    asked_claim: Option<i64>,
    asked_seq: Option<i32>,
    tools: Option<Vec<ToolRow>>,
}

/// A row of `tool_calls`, but for what says where it belongs. Read by people, so without what no SQL
/// text can hold; what the API sent stands in the ledger.
#[derive(Debug, Serialize)]
struct ToolRow {
    position: i32,
    call_id: String,
    name: String,
    input: String,
}

/// A result on its way into `tool_calls`.
#[derive(Debug)]
pub(crate) struct ToolAnswer {
    /// Of the ledger's row.
    pub(crate) claim: i64,
    /// Of the ledger's row.
    pub(crate) seq: i32,
    /// Place among its calls.
    pub(crate) position: i32,
    /// `result`.
    pub(crate) result: Option<String>,
    /// `result_content`.
    pub(crate) result_content: Option<String>,
    /// `is_error`.
    pub(crate) is_error: bool,
}

#[derive(Debug, Serialize)]
struct LeaseRow {
    job_id: i64,
    claim: i64,
    run: i64,
}

/// One row as JSON text, with the lease that it belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// Whose it is.
    pub(crate) lease: Lease,
    /// A JSON object.
    pub(crate) json: String,
}

impl CallRow<'_> {
    /// Whose it is.
    pub(crate) const fn lease(&self) -> Lease {
        Lease { job: JobId(self.job_id), claim: self.claim, run: self.run }
    }
}

/// Returns the rows as one JSON array.
pub(crate) fn array<'a>(rows: impl IntoIterator<Item = &'a Row>) -> String {
    let mut out = String::from("[");
    for row in rows {
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str(&row.json);
    }
    out.push(']');
    out
}

/// Returns leases as one JSON array of objects with `job_id`, `claim` and `run`.
pub(crate) fn leases(leases: &[Lease]) -> String {
    let rows: Vec<LeaseRow> = leases
        .iter()
        .map(|lease| LeaseRow { job_id: lease.job.0, claim: lease.claim, run: lease.run })
        .collect();
    json(&rows)
}

/// Returns leases out of their columns.
pub(crate) fn leases_of(rows: Vec<(i64, i64, i64)>) -> Vec<Lease> {
    rows.into_iter().map(|(job, claim, run)| Lease { job: JobId(job), claim, run }).collect()
}

/// Returns the row of a call.
pub(crate) fn call<'a>(lease: &Lease, call: &'a Call, now: Instant) -> CallRow<'a> {
    let fault = call.fault.as_ref();
    CallRow {
        job_id: lease.job.0,
        claim: lease.claim,
        run: lease.run,
        seq: call.seq,
        kind: call.kind.as_str(),
        probe: call.probe,
        model: &call.model,
        max_tokens: call.max_tokens,
        messages: call.messages,
        sent_ago: ago(now, call.sent),
        first_token_ago: call.first_token.map(|at| ago(now, at)),
        ended_ago: ago(now, call.ended),
        http_status: call.http_status.map(i32::from),
        request_id: call.request_id.as_deref(),
        message_id: call.message_id.as_deref(),
        stop_reason: call.stop_reason.as_deref(),
        input_tokens: call.usage.input,
        output_tokens: call.usage.output,
        cache_creation_input_tokens: call.usage.cache_creation,
        cache_read_input_tokens: call.usage.cache_read,
        partial: call.partial,
        error_type: fault.map(|fault| fault.kind.as_str()),
        error_code: fault.and_then(|fault| fault.code.as_deref()),
        error: fault.map(|fault| fault.message.as_str()),
        retry_after_ms: call.retry_after.map(ms),
        stop_details: call.stop_details.as_deref(),
        request: call.request.as_deref(),
        usage: call.usage_raw.as_deref(),
        container: call.container.as_deref(),
        content: call.content.as_deref(),
        once: false,
        checkpointed: call.checkpointed,
    }
}

/// Returns the rows of the calls that come with the ends of jobs. `once`: what the answer holds as it
/// came need not be kept in the ledger too.
pub(crate) fn last_calls<'a>(
    ends: impl IntoIterator<Item = &'a Settlement>,
    now: Instant,
    once: bool,
) -> Vec<CallRow<'a>> {
    let row = |end: &'a Settlement| {
        let call = end.call.as_ref()?;
        let alike = call.content.is_some() && call.fault.is_none() && call.content == end.answer.content;
        // A job that runs again gives the ledger back what the result held: by the request's id.
        let once = once && alike && call.request_id == end.answer.request_id;
        Some(CallRow { once, ..self::call(&end.lease, call, now) })
    };
    ends.into_iter().filter_map(row).collect()
}

/// Returns the row of a checkpoint.
pub(crate) fn checkpoint(part: &Checkpoint) -> Row {
    let lease = part.lease;
    let json = json(&CheckpointRow {
        job_id: lease.job.0,
        claim: lease.claim,
        run: lease.run,
        seq: part.seq,
        part: part.part,
        content: &part.content,
    });
    Row { lease, json }
}

/// Returns the row of a result.
pub(crate) fn answer<'a>(lease: &Lease, answer: &'a Answer, now: Instant) -> AnswerRow<'a> {
    let fault = answer.fault.as_ref();
    AnswerRow {
        job_id: lease.job.0,
        claim: lease.claim,
        run: lease.run,
        outcome: answer.outcome.as_str(),
        whole: answer.outcome.is_an_answer(),
        stop_reason: answer.stop_reason.as_deref(),
        stop_sequence: answer.stop_sequence.as_deref(),
        model: answer.model.as_deref(),
        input_tokens: answer.usage.input,
        output_tokens: answer.usage.output,
        cache_creation_input_tokens: answer.usage.cache_creation,
        cache_read_input_tokens: answer.usage.cache_read,
        calls: answer.calls,
        continuations: answer.continuations,
        seams: answer.seams,
        failures: answer.failures,
        sanitised: answer.sanitised,
        dropped: answer.dropped,
        error_type: fault.map(|fault| fault.kind.as_str()),
        error_code: fault.and_then(|fault| fault.code.as_deref()),
        error: fault.map(|fault| fault.message.as_str()),
        request_id: answer.request_id.as_deref(),
        started_ago: answer.started.map(|at| ago(now, at)),
        stop_details: answer.stop_details.as_deref(),
        text: answer.text.as_deref(),
        content: answer.content.as_deref(),
        output: answer.output.as_deref(),
    }
}

/// Returns the row of a release.
pub(crate) fn release(release: &Release) -> Row {
    let lease = release.lease;
    let asked = match &release.back {
        Back::Waiting(asked) => Some(asked),
        Back::Now | Back::After(_) => None,
    };
    let json = json(&ReleaseRow {
        job_id: lease.job.0,
        claim: lease.claim,
        run: lease.run,
        delay_ms: release.back.delay().map(|delay| ms(delay.min(DELAY_MAX))),
        failures: release.failures,
        deferrals: release.deferrals,
        reason: release.reason.as_deref(),
        called: release.call.is_some(),
        asked_claim: asked.map(|asked| asked.claim),
        asked_seq: asked.map(|asked| asked.seq),
        tools: asked.map(tool_rows),
    });
    Row { lease, json }
}

/// Returns the calls of a reply as one JSON array.
pub(crate) fn tools(asked: &Asked) -> String {
    json(&tool_rows(asked))
}

fn tool_rows(asked: &Asked) -> Vec<ToolRow> {
    let row = |call: &ToolCall| ToolRow {
        position: call.position,
        call_id: sanitise(&call.call_id).0,
        name: sanitise(&call.name).0,
        input: sanitise_json(&call.input).0,
    };
    asked.tools.iter().map(row).collect()
}

/// Returns a result as it is written.
pub(crate) fn tool_answer(claim: i64, seq: i32, position: i32, result: &ToolResult) -> ToolAnswer {
    let (text, blocks) = match &result.content {
        ToolContent::Text(text) => (Some(sanitise(text).0), None),
        ToolContent::Blocks(blocks) => (None, Some(sanitise_json(blocks).0)),
    };
    ToolAnswer { claim, seq, position, result: text, result_content: blocks, is_error: result.is_error }
}

/// Returns the result of a tool call as other people's programs wrote it, if they did. What cannot be
/// shown to the model is the account of a failure: one row must not stop a claim, nor send what the
/// API refuses.
pub(crate) fn tool_result(
    result: Option<&[u8]>,
    result_content: Option<&[u8]>,
    is_error: bool,
) -> Option<ToolResult> {
    let failed = |why: &str| ToolResult { content: ToolContent::Text(why.to_owned()), is_error: true };
    if let Some(bytes) = result_content {
        return Some(match std::str::from_utf8(bytes) {
            Ok(json) if is_blocks(json) => {
                ToolResult { content: ToolContent::Blocks(json.to_owned()), is_error }
            }
            Ok(_) => failed("the tool's result cannot be shown: it is not a JSON array of content blocks"),
            Err(_) => failed("the tool's result cannot be shown: it is not UTF-8"),
        });
    }
    Some(match std::str::from_utf8(result?) {
        Ok(text) => ToolResult { content: ToolContent::Text(text.to_owned()), is_error },
        Err(_) => failed("the tool's result cannot be shown: it is not UTF-8"),
    })
}

fn is_blocks(json: &str) -> bool {
    serde_json::from_str::<Vec<&RawValue>>(json)
        .is_ok_and(|blocks| blocks.iter().all(|block| block.get().starts_with('{')))
}

/// Returns a duration in whole milliseconds, at most some 292 million years.
pub(crate) fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Returns what the database says is left, as a duration that is never negative.
pub(crate) fn left(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// Returns how long a job could have been claimed that is claimed for the first time.
pub(crate) fn waited(claim: i64, ms: i64) -> Option<Duration> {
    (claim == 1).then(|| left(ms))
}

/// Returns the leases as (jobs, claims, runs), for Postgres' `unnest`.
pub(crate) fn columns(leases: &[Lease]) -> (Vec<i64>, Vec<i64>, Vec<i64>) {
    let jobs = leases.iter().map(|lease| lease.job.0).collect();
    let claims = leases.iter().map(|lease| lease.claim).collect();
    (jobs, claims, leases.iter().map(|lease| lease.run).collect())
}

/// Gives each claimed job its part of the ledger, in the order it came.
pub(crate) fn hand_out(claimed: &mut [Claimed], calls: Vec<(JobId, PastCall)>) {
    let at: HashMap<JobId, usize> = claimed.iter().enumerate().map(|(at, job)| (job.lease.job, at)).collect();
    for (job, call) in calls {
        if let Some(&at) = at.get(&job) {
            claimed[at].calls.push(call);
        }
    }
}

/// Gives each claimed job its tool calls, in the order they came.
pub(crate) fn hand_out_tools(claimed: &mut [Claimed], tools: Vec<(JobId, PastTool)>) {
    let at: HashMap<JobId, usize> = claimed.iter().enumerate().map(|(at, job)| (job.lease.job, at)).collect();
    for (job, tool) in tools {
        if let Some(&at) = at.get(&job) {
            claimed[at].tools.push(tool);
        }
    }
}

/// Returns a row as a JSON object.
pub(crate) fn object(row: &impl Serialize) -> String {
    json(row)
}

/// Returns ids as a JSON array.
pub(crate) fn ids(ids: &[i64]) -> String {
    json(&ids)
}

/// Returns names, or pairs of names, as a JSON array.
pub(crate) fn texts<T: Serialize>(names: &[T]) -> String {
    json(&names)
}

/// Reads rows that came as one JSON array.
pub(crate) fn read<T: serde::de::DeserializeOwned>(rows: &str) -> sqlx::Result<Vec<T>> {
    serde_json::from_str(rows).map_err(|err| sqlx::Error::Decode(Box::new(err)))
}

/// Returns names by names as a JSON object.
pub(crate) fn names(names: &BTreeMap<String, String>) -> String {
    json(names)
}

/// Returns rows of (job, `seq`, bytes) as done jobs.
pub(crate) fn done_jobs(rows: Vec<(i64, i64, i64)>) -> Vec<DoneJob> {
    rows.into_iter().map(|(job, seq, bytes)| DoneJob { job: JobId(job), seq, bytes }).collect()
}

/// Returns the ids as jobs.
pub(crate) fn jobs(ids: Vec<i64>) -> Vec<JobId> {
    ids.into_iter().map(JobId).collect()
}

/// Returns jobs with whether they are quarantined, and what their calls brought: rows of (job, model, tokens out).
pub(crate) fn rescued(taken: Vec<(i64, bool)>, brought: Vec<(i64, String, i64)>) -> Vec<Rescued> {
    let mut brought: HashMap<i64, (String, i64)> =
        brought.into_iter().map(|(job, model, tokens)| (job, (model, tokens))).collect();
    let rescued =
        |(job, quarantined)| Rescued { job: JobId(job), quarantined, brought: brought.remove(&job) };
    taken.into_iter().map(rescued).collect()
}

fn ago(now: Instant, then: Instant) -> i64 {
    ms(now.saturating_duration_since(then))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("rows are structs of strings and numbers: they have a JSON form")
}
