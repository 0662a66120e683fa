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
    written(rein, || mill.store.open_tools(&job.lease, asked, mill.worker())).await?;
    failpoint!("tools.opened", job.lease.job);
    let answers = asked.tools.iter().zip(before).map(async |(call, before)| {
        if let Some(result) = before.and_then(|row| row.result.clone()) {
            return Ok(result);
        }
        let result = answer(mill, job, call, rein).await?;
        failpoint!("tool.ended", job.lease.job);
        let at = (asked.claim, asked.seq, call.position);
        written(rein, || mill.store.answer_tool(&job.lease, at.0, at.1, at.2, &result)).await?;
        Ok(result)
    });
    join_all(answers).await.into_iter().collect()
}

fn find<'p>(asked: &Asked, call: &ToolCall, past: &'p [PastTool]) -> Option<&'p PastTool> {
    past.iter()
        .find(|row| row.claim == asked.claim && row.seq == asked.seq && row.call.position == call.position)
}

/// Whether a tool of this name may be started twice. One that this daemon does not have was not started
/// by it, and is not started now.
fn may_start_again(mill: &Mill, job: &Job, call: &ToolCall) -> bool {
    mill.settings.tools.allowed(&job.queue, &call.name).is_none_or(|tool| tool.is_idempotent())
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
async fn answer(mill: &Mill, job: &Job, call: &ToolCall, rein: &Rein) -> Result<ToolResult, Undone> {
    let Some(tool) = mill.settings.tools.allowed(&job.queue, &call.name) else {
        let text = format!("there is no tool {} here", call.name);
        return Ok(ToolResult { content: ToolContent::Text(text), is_error: true });
    };
    let ran = mill.settings.tools.run(tool, job.lease.job, call, &rein.token).await;
    ran.map_err(|_| Undone::Stopped(rein.why().unwrap_or(Why::Lost)))
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
