//! The models that the stand-in knows, as `GET /v1/models` lists them.
//!
//! Facts: the models overview of the API documentation, November 2026.

use serde_json::{Value, json};

/// How a model thinks, which decides what `thinking` it accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinking {
    /// `enabled` with a budget, or none.
    Extended,
    /// `adaptive`, and still `enabled`.
    Both,
    /// `adaptive` or `disabled`.
    Adaptive,
    /// Always on.
    Always,
}

/// A model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    /// The name that replies carry.
    pub id: &'static str,
    /// A shorter name that means the same.
    pub alias: Option<&'static str>,
    /// Name for people.
    pub display_name: &'static str,
    /// Release date.
    pub created: &'static str,
    /// The pool that rate limits are counted in.
    pub line: &'static str,
    /// Context window, tokens.
    pub context: usize,
    /// Largest `max_tokens`.
    pub output: usize,
    /// Whether a conversation may end with an assistant message.
    pub prefill: bool,
    /// Whether `temperature`, `top_p` and `top_k` may be set at all (under an old API version).
    pub sampling: bool,
    /// Whether `tool_choice` may force a tool.
    pub forced_tools: bool,
    /// How it thinks.
    pub thinking: Thinking,
}

const NEW: Model = Model {
    id: "",
    alias: None,
    display_name: "",
    created: "",
    line: "",
    context: 1_000_000,
    output: 128_000,
    prefill: false,
    sampling: false,
    forced_tools: true,
    thinking: Thinking::Adaptive,
};

const OLD: Model = Model {
    context: 200_000,
    output: 64_000,
    prefill: true,
    sampling: true,
    thinking: Thinking::Extended,
    ..NEW
};

const fn new(
    id: &'static str,
    display_name: &'static str,
    created: &'static str,
    line: &'static str,
) -> Model {
    Model { id, display_name, created, line, ..NEW }
}

/// Every model, newest first.
pub const MODELS: [Model; 16] = [
    Model {
        forced_tools: false,
        thinking: Thinking::Always,
        ..new("claude-fable-5-2", "Claude Fable 5.2", "2026-11-09", "fable-5")
    },
    Model { forced_tools: false, ..new("claude-haiku-5-5", "Claude Haiku 5.5", "2026-10-07", "haiku-5") },
    Model { forced_tools: false, ..new("claude-sonnet-5-5", "Claude Sonnet 5.5", "2026-09-28", "sonnet-5") },
    Model {
        forced_tools: false,
        thinking: Thinking::Always,
        ..new("claude-opus-5-5", "Claude Opus 5.5", "2026-09-22", "opus-5")
    },
    Model {
        forced_tools: false,
        thinking: Thinking::Always,
        ..new("claude-fable-5-1", "Claude Fable 5.1", "2026-09-01", "fable-5")
    },
    new("claude-opus-5", "Claude Opus 5", "2026-07-24", "opus-5"),
    new("claude-sonnet-5", "Claude Sonnet 5", "2026-06-30", "sonnet-5"),
    Model { thinking: Thinking::Always, ..new("claude-fable-5", "Claude Fable 5", "2026-06-09", "fable-5") },
    new("claude-opus-4-8", "Claude Opus 4.8", "2026-05-12", "opus-4"),
    new("claude-opus-4-7", "Claude Opus 4.7", "2026-04-16", "opus-4"),
    Model {
        sampling: true,
        thinking: Thinking::Both,
        ..new("claude-sonnet-4-6", "Claude Sonnet 4.6", "2026-02-17", "sonnet-4")
    },
    Model {
        sampling: true,
        thinking: Thinking::Both,
        ..new("claude-opus-4-6", "Claude Opus 4.6", "2026-02-05", "opus-4")
    },
    Model {
        id: "claude-opus-4-5-20251101",
        alias: Some("claude-opus-4-5"),
        display_name: "Claude Opus 4.5",
        created: "2025-11-24",
        line: "opus-4",
        ..OLD
    },
    Model {
        id: "claude-haiku-4-5-20251001",
        alias: Some("claude-haiku-4-5"),
        display_name: "Claude Haiku 4.5",
        created: "2025-10-15",
        line: "haiku-4",
        ..OLD
    },
    Model {
        id: "claude-sonnet-4-5-20250929",
        alias: Some("claude-sonnet-4-5"),
        display_name: "Claude Sonnet 4.5",
        created: "2025-09-29",
        line: "sonnet-4",
        ..OLD
    },
    // For tests of clients: small limits are soon reached.
    Model {
        id: "stand-in-small",
        display_name: "Stand-in Small",
        created: "2026-11-01",
        line: "stand-in",
        context: 4096,
        output: 1024,
        ..OLD
    },
];

/// Returns the model of a name.
pub fn find(name: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.id == name || model.alias == Some(name))
}

/// Returns a model as `GET /v1/models/{id}` shows it.
pub fn to_json(model: &Model) -> Value {
    let thinking = model.thinking;
    let supported = |yes: bool| json!({ "supported": yes });
    json!({
        "type": "model",
        "id": model.id,
        "display_name": model.display_name,
        "created_at": format!("{}T00:00:00Z", model.created),
        "lifecycle": "active",
        "deprecated_at": null,
        "retires_at": null,
        "line": model.line,
        "max_input_tokens": model.context,
        "max_tokens": model.output,
        "capabilities": {
            "batch": supported(false),
            "structured_outputs": supported(true),
            "thinking": {
                "supported": true,
                "types": {
                    "adaptive": supported(thinking != Thinking::Extended),
                    "enabled": supported(matches!(thinking, Thinking::Extended | Thinking::Both)),
                    "disabled": supported(thinking != Thinking::Always),
                },
            },
        },
    })
}

/// Returns a page of `GET /v1/models`: at most `limit` models behind `after`.
pub fn page(limit: usize, after: Option<&str>) -> Value {
    let from = after.and_then(|id| MODELS.iter().position(|model| model.id == id)).map_or(0, |at| at + 1);
    let rest = &MODELS[from..];
    let shown = &rest[..limit.min(rest.len())];
    json!({
        "data": shown.iter().map(to_json).collect::<Vec<_>>(),
        "has_more": shown.len() < rest.len(),
        "first_id": shown.first().map(|model| model.id),
        "last_id": shown.last().map(|model| model.id),
    })
}
