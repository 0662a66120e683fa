//! The daemon's own tools, with real programs and a real server: each way a run can end, and that
//! nothing is left of it.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

mod command;
mod configured;
mod endpoint;

use std::collections::HashMap;
use std::time::Duration;

use promptmill::domain::job::JobId;
use promptmill::domain::tool::{ToolCall, ToolContent, ToolResult};
use promptmill::worker::tools::{Action, Stopped, ToolSettings, Tools, ToolsSettings};
use tokio_util::sync::CancellationToken;

/// Longer than any test takes: a run that reaches it hangs.
const LONG: Duration = Duration::from_mins(1);
const SHORT: Duration = Duration::from_millis(300);
const JOB: JobId = JobId(7);

fn tool(action: Action) -> ToolSettings {
    ToolSettings { name: "find".to_owned(), action, timeout: LONG, output_max: 1000, idempotent: false }
}

fn tools(tool: ToolSettings) -> Tools {
    let queues = HashMap::from([("default".to_owned(), vec![tool.name.clone()])]);
    Tools::new(ToolsSettings { tools: vec![tool], queues, at_once_max: 4 })
}

fn call(input: &str) -> ToolCall {
    ToolCall { position: 0, call_id: "toolu_01".to_owned(), name: "find".to_owned(), input: input.to_owned() }
}

async fn run_until(tools: &Tools, input: &str, stop: &CancellationToken) -> Result<ToolResult, Stopped> {
    let tool = tools.allowed("default", "find").unwrap();
    let call = call(input);
    let run = async {
        let place = tools.place(stop).await?;
        tools.run(place, tool, JOB, &call, stop).await
    };
    tokio::time::timeout(LONG, run).await.expect("the run ends long before this")
}

async fn run(tool: ToolSettings, input: &str) -> ToolResult {
    run_until(&tools(tool), input, &CancellationToken::new()).await.unwrap()
}

fn text(result: &ToolResult) -> &str {
    match &result.content {
        ToolContent::Text(text) => text,
        ToolContent::Blocks(blocks) => panic!("no tool of ours gives blocks: {blocks}"),
    }
}

/// The text of a result that must be an answer.
fn answer(result: &ToolResult) -> &str {
    assert!(!result.is_error, "{result:?}");
    text(result)
}

/// The sentence of a result that must be an error.
fn sentence(result: &ToolResult) -> &str {
    assert!(result.is_error, "{result:?}");
    text(result)
}

#[tokio::test]
async fn a_queue_may_use_only_the_tools_that_it_lists() {
    let tools = tools(tool(command::shell("true")));
    assert_eq!(tools.allowed("default", "find").unwrap().name(), "find");
    assert!(tools.allowed("other", "find").is_none() && tools.allowed("default", "rm").is_none());
    assert_eq!(tools.names("default"), ["find"]);
    assert!(tools.names("other").is_empty());
    assert_eq!(
        tools.refusal("other", "find"),
        "jobs of the queue \"other\" may not run the tool \"find\": [queues.\"other\"] tools does not list it"
    );
    assert_eq!(
        tools.refusal("default", "rm"),
        "the tool \"rm\" is not known to this daemon: describe it as [tools.\"rm\"], and list it in \
         [queues.\"default\"] tools"
    );
}
