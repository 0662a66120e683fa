//! Tool calls of the model, and what is answered to them.
//!
//! A turn that asks for tools of ours is one reply of the API; each of its calls is one row of
//! `tool_calls`, found by the ledger row that brought it (claim and seq) and its place among them.

use serde::{Deserialize, Serialize};

/// One call of a tool: a `tool_use` block of a reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Place among the tool calls of its reply, from 0.
    pub position: i32,
    /// `id` of the block: what the result names.
    pub call_id: String,
    /// `name`.
    pub name: String,
    /// `input`: JSON text, as it came.
    pub input: String,
}

/// The tool calls of one reply that wait for their results.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The claim that made the call to the API.
    pub claim: i64,
    /// Its number in that claim.
    pub seq: i32,
    /// In the order of the reply.
    pub tools: Vec<ToolCall>,
}

/// What a tool gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolResult {
    /// What the model is shown. An empty text is an answer.
    pub content: ToolContent,
    /// Whether it is the account of a failure.
    pub is_error: bool,
}

/// The content of a tool's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolContent {
    /// `tool_calls.result`.
    Text(String),
    /// `tool_calls.result_content`: JSON array text of content blocks, as it was written.
    Blocks(String),
}

/// A row of `tool_calls` as a resuming job finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastTool {
    /// The claim of the ledger row that brought it.
    pub claim: i64,
    /// The number of that row in its claim.
    pub seq: i32,
    /// The call.
    pub call: ToolCall,
    /// What was answered, if it was.
    pub result: Option<ToolResult>,
    /// Whether somebody began to work on it.
    pub taken: bool,
}
