//! Tool calls that the daemon answers itself (`on_tool_use = run`).
//!
//! A tool may do what cannot be undone, so that it is to be started is written down before it is. What was
//! answered before a crash is taken from the table; what was started and not answered is started again
//! only where the configuration says that it may be.

use std::time::Duration;

use futures_util::future::join_all;

use super::{Rein, Why};
use crate::domain::job::Job;
use crate::domain::outcome::Fault;
use crate::domain::tool::{Asked, PastTool, ToolCall, ToolContent, ToolResult};
use crate::failpoint::failpoint;
use crate::store::StoreError;
use crate::worker::Mill;
use crate::worker::tools::Tool;

/// Pause between tries to write to a database that is away.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Why tool calls were not answered.
pub(super) enum Undone {
    /// The job is not ours any more.
    Lost,
    /// The attempt was told to stop.
    Stopped(Why),
    /// A tool was started by a daemon that did not live to see its end.
    StartedBefore(Fault),
}

/// Answers the tool calls of a turn, in their order.
pub(super) async fn run(
    mill: &Mill,
    job: &Job,
    asked: &Asked,
    past: &[PastTool],
    rein: &Rein,
) -> Result<Vec<ToolResult>, Undone> {
    let before: Vec<Option<&PastTool>> = asked.tools.iter().map(|call| find(asked, call, past)).collect();
    for (call, before) in asked.tools.iter().zip(&before) {
        if before.is_some_and(|row| row.taken && row.result.is_none()) && !may_start_again(mill, job, call) {
            return Err(Undone::StartedBefore(started_before(call)));
        }
    }
    let answers = asked.tools.iter().zip(before).map(async |(call, before)| {
        match before.and_then(|row| row.result.clone()) {
            Some(result) => Ok(result),
            None => answer(mill, job, asked, call, rein).await,
        }
    });
    join_all(answers).await.into_iter().collect()
}

/// Why a job cannot be run at all: it declares a tool that its queue may not have run. What the API
/// runs itself has a `type` of its own and is not ours to judge.
pub(super) fn refused(mill: &Mill, job: &Job) -> Option<Fault> {
    #[derive(serde::Deserialize)]
    struct Declared {
        #[serde(rename = "type")]
        kind: Option<String>,
        name: Option<String>,
    }
    let (_, declared) = job.fields.iter().find(|(name, _)| name == "tools")?;
    let declared: Vec<Declared> = serde_json::from_str(declared.get()).ok()?;
    let ours = |tool: &&Declared| tool.kind.as_deref().is_none_or(|kind| kind == "custom");
    let tools = &mill.settings.tools;
    let unknown = declared.iter().enumerate().filter(|(_, tool)| ours(tool)).find_map(|(at, tool)| {
        let name = tool.name.as_deref()?;
        tools.allowed(&job.queue, name).is_none().then_some((at, name))
    });
    let (at, name) = unknown?;
    let why = format!("params.tools[{at}]: {}", tools.refusal(&job.queue, name));
    Some(Fault::new("invalid_job", Some("tool_not_allowed"), why))
}

fn find<'p>(asked: &Asked, call: &ToolCall, past: &'p [PastTool]) -> Option<&'p PastTool> {
    past.iter()
        .find(|row| row.claim == asked.claim && row.seq == asked.seq && row.call.position == call.position)
}

/// Whether a tool of this name may be started twice, as far as this daemon knows it.
fn may_start_again(mill: &Mill, job: &Job, call: &ToolCall) -> bool {
    mill.settings.tools.allowed(&job.queue, &call.name).is_some_and(Tool::is_idempotent)
}

fn started_before(call: &ToolCall) -> Fault {
    let why = format!(
        "tool {} was started before its daemon ended, and nobody knows what it did: look, then run the job again; \
         tools.\"{}\".idempotent = true in the configuration lets it be started again",
        call.name, call.name
    );
    Fault::new("tool_interrupted", None, why)
}

/// Has one call answered. What goes wrong in a tool is told to the model.
async fn answer(
    mill: &Mill,
    job: &Job,
    asked: &Asked,
    call: &ToolCall,
    rein: &Rein,
) -> Result<ToolResult, Undone> {
    let tools = &mill.settings.tools;
    let stopped = |_| Undone::Stopped(rein.why().unwrap_or(Why::Lost));
    let place = tools.place(&rein.token).await.map_err(stopped)?;
    // Only now: a tool that was never started must not count as started.
    let opened = Asked { tools: vec![call.clone()], ..*asked };
    written(rein, || mill.store.open_tools(&job.lease, &opened, mill.worker())).await?;
    failpoint!("tools.opened", job.lease.job);
    let result = match tools.allowed(&job.queue, &call.name) {
        Some(tool) => tools.run(place, tool, job.lease.job, call, &rein.token).await.map_err(stopped)?,
        None => ToolResult {
            content: ToolContent::Text(format!("There is no tool {} here.", call.name)),
            is_error: true,
        },
    };
    failpoint!("tool.ended", job.lease.job);
    let (claim, seq) = (asked.claim, asked.seq);
    written(rein, || mill.store.answer_tool(&job.lease, claim, seq, call.position, &result)).await?;
    Ok(result)
}

/// Writes until the database has taken it, or the attempt is told to stop.
async fn written<F>(rein: &Rein, mut write: impl FnMut() -> F) -> Result<(), Undone>
where
    F: Future<Output = Result<bool, StoreError>>,
{
    loop {
        match write().await {
            Ok(true) => return Ok(()),
            Ok(false) => return Err(Undone::Lost),
            Err(error) => tracing::warn!(error = %error, "failed to write down a tool call: trying again"),
        }
        if let Some(why) = rein.why() {
            return Err(Undone::Stopped(why));
        }
        rein.token.run_until_cancelled(tokio::time::sleep(TRY_AGAIN)).await;
    }
}
