//! What was said in a conversation after the job's own messages, as it is sent again.

use serde_json::value::RawValue;

use crate::domain::job::{json_string, message};
use crate::domain::reply::Block;
use crate::domain::tool::{Asked, ToolContent, ToolResult};

/// One message of a conversation.
#[derive(Debug, Clone)]
pub enum Spoken {
    /// What the model said, as it came.
    Assistant(Vec<Block>),
    /// What was said to it.
    User(Box<RawValue>),
}

impl Spoken {
    /// The message as it is sent, `None` where nothing of it may be: a block that was cut (thinking
    /// without its signature) and an empty text are refused. `last`: it is the last message, which may
    /// not end in white space.
    pub fn message(&self, last: bool) -> Option<Box<RawValue>> {
        match self {
            Self::User(message) => Some(message.clone()),
            Self::Assistant(blocks) => {
                let mut sent: Vec<Block> =
                    blocks.iter().filter(|block| may_be_sent(block)).cloned().collect();
                if last
                    && let Some(block) = sent.last_mut()
                    && let Some(text) = &block.text
                    && text.trim_end().len() < text.len()
                {
                    *block = Block::text(text.trim_end());
                }
                (!sent.is_empty()).then(|| message("assistant", &Block::write_all(&sent)))
            }
        }
    }

    /// Leaves out what the model thought: another model could not read it.
    pub fn forget_thinking(&mut self) {
        if let Self::Assistant(blocks) = self {
            blocks.retain(|block| !block.is_thinking());
        }
    }
}

fn may_be_sent(block: &Block) -> bool {
    match &block.text {
        Some(text) => !text.trim().is_empty(),
        None => block.whole,
    }
}

/// The user message that answers tool calls: nothing but their results, in the order of the calls
/// (API reference, Tool use: results come first, one for each call).
pub fn results_message(asked: &Asked, results: &[ToolResult]) -> Box<RawValue> {
    let blocks: Vec<String> = asked
        .tools
        .iter()
        .zip(results)
        .map(|(call, result)| {
            let id = json_string(&call.call_id);
            let content = match &result.content {
                _ if result.is_error && is_empty(&result.content) => {
                    json_string(SILENT_ERROR).get().to_owned()
                }
                ToolContent::Blocks(json) if is_array(json) => json.clone(),
                ToolContent::Text(text) | ToolContent::Blocks(text) => json_string(text).get().to_owned(),
            };
            let error = if result.is_error { r#","is_error":true"# } else { "" };
            format!(
                r#"{{"type":"tool_result","tool_use_id":{id},"content":{content}{error}}}"#,
                id = id.get()
            )
        })
        .collect();
    message("user", &format!("[{}]", blocks.join(",")))
}

/// What is sent of an error that says nothing: the API refuses empty ones.
const SILENT_ERROR: &str = "The tool failed and gave no reason.";

fn is_empty(content: &ToolContent) -> bool {
    match content {
        ToolContent::Text(text) => text.trim().is_empty(),
        ToolContent::Blocks(json) => {
            serde_json::from_str::<Vec<serde::de::IgnoredAny>>(json).is_ok_and(|blocks| blocks.is_empty())
        }
    }
}

fn is_array(json: &str) -> bool {
    serde_json::from_str::<Vec<serde::de::IgnoredAny>>(json).is_ok()
}
