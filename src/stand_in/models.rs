//! The models that the stand-in knows, as `GET /v1/models` lists them.
//!
//! Facts: the models overview of the API documentation, November 2026.

use serde_json::{Value, json};

use super::problem::Problem;

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

/// Where a model stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifecycle {
    /// Open to everybody.
    Active,
    /// On its way out.
    Deprecated {
        /// Since this date.
        since: &'static str,
        /// When it will be retired.
        retires: Retires,
    },
    /// Gone: calls that name it are told that there is no such model.
    Retired {
        /// Deprecated since this date.
        since: &'static str,
        /// Retired on this one.
        on: &'static str,
    },
}

/// When a model will be retired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retires {
    /// On this date.
    On(&'static str),
    /// So many days from now, whenever that is: for tests of clients.
    InDays(i64),
}

impl Lifecycle {
    /// The API's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Deprecated { .. } => "deprecated",
            Self::Retired { .. } => "retired",
        }
    }

    /// When it was deprecated, and when it is retired.
    fn times(self) -> (Option<String>, Option<String>) {
        let midnight = |date: &str| format!("{date}T00:00:00Z");
        match self {
            Self::Active => (None, None),
            Self::Deprecated { since, retires: Retires::On(date) } => {
                (Some(midnight(since)), Some(midnight(date)))
            }
            Self::Deprecated { since, retires: Retires::InDays(days) } => {
                // And a little: whole days are left also when the answer is read.
                let at = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * days + 1);
                (Some(midnight(since)), Some(at.to_string()))
            }
            Self::Retired { since, on } => (Some(midnight(since)), Some(midnight(on))),
        }
    }
}

/// A model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a capability, and none excludes another")]
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
    /// Whether it takes a schema for its answer.
    pub structured: bool,
    /// Where it stands in its life.
    pub lifecycle: Lifecycle,
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
    structured: true,
    lifecycle: Lifecycle::Active,
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
pub const MODELS: [Model; 20] = [
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
        lifecycle: Lifecycle::Deprecated { since: "2026-05-28", retires: Retires::On("2026-11-30") },
        ..OLD
    },
    Model {
        id: "claude-opus-4-1-20250805",
        alias: Some("claude-opus-4-1"),
        display_name: "Claude Opus 4.1",
        created: "2025-08-05",
        line: "opus-4",
        output: 32_000,
        structured: false,
        lifecycle: Lifecycle::Retired { since: "2026-02-05", on: "2026-08-05" },
        ..OLD
    },
    Model {
        id: "claude-3-5-sonnet-20241022",
        alias: Some("claude-3-5-sonnet-latest"),
        display_name: "Claude Sonnet 3.5",
        created: "2024-10-22",
        line: "claude-3-5-sonnet",
        output: 8192,
        structured: false,
        lifecycle: Lifecycle::Retired { since: "2025-08-13", on: "2025-10-28" },
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
    Model {
        id: "stand-in-leaving",
        display_name: "Stand-in Leaving",
        created: "2026-01-01",
        line: "stand-in",
        structured: false,
        lifecycle: Lifecycle::Deprecated { since: "2026-10-01", retires: Retires::InDays(30) },
        ..OLD
    },
    Model {
        id: "stand-in-gone",
        display_name: "Stand-in Gone",
        created: "2025-01-01",
        line: "stand-in",
        lifecycle: Lifecycle::Retired { since: "2026-01-01", on: "2026-07-01" },
        ..OLD
    },
];

/// Returns the model of a name, be it retired.
pub fn find(name: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.id == name || model.alias == Some(name))
}

/// Returns the model of a name, if it can be asked.
pub fn find_alive(name: &str) -> Option<&'static Model> {
    find(name).filter(|model| !matches!(model.lifecycle, Lifecycle::Retired { .. }))
}

/// Returns a model as `GET /v1/models/{id}` shows it.
pub fn to_json(model: &Model) -> Value {
    let thinking = model.thinking;
    let supported = |yes: bool| json!({ "supported": yes });
    let (deprecated_at, retires_at) = model.lifecycle.times();
    json!({
        "type": "model",
        "id": model.id,
        "display_name": model.display_name,
        "created_at": format!("{}T00:00:00Z", model.created),
        "lifecycle": model.lifecycle.word(),
        "deprecated_at": deprecated_at,
        "retires_at": retires_at,
        "line": model.line,
        "max_input_tokens": model.context,
        "max_tokens": model.output,
        "capabilities": {
            "batch": supported(false),
            "structured_outputs": supported(model.structured),
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

/// Which page of `GET /v1/models` is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// At most so many models.
    limit: usize,
    /// Behind this one.
    after: Option<String>,
    /// In these stages of life; empty: all but retired ones.
    lifecycles: Vec<String>,
}

impl Query {
    /// Reads a query, and refuses what the API refuses.
    pub fn read(query: &str) -> Result<Self, Problem> {
        let mut read = Self { limit: 20, ..Self::default() };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // What encoders do to the brackets of a list.
            match name.replace("%5B", "[").replace("%5D", "]").as_str() {
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=1000).contains(limit));
                    read.limit = limit
                        .ok_or_else(|| Problem::invalid("limit: Input should be a number from 1 to 1000"))?;
                }
                "after_id" => read.after = Some(value.to_owned()),
                "lifecycle[]" if matches!(value, "active" | "deprecated" | "retired") => {
                    read.lifecycles.push(value.to_owned());
                }
                "lifecycle[]" => {
                    let sentence = "lifecycle: Input should be 'active', 'deprecated' or 'retired'";
                    return Err(Problem::invalid(sentence));
                }
                _ => {}
            }
        }
        Ok(read)
    }

    fn takes(&self, model: &Model) -> bool {
        let word = model.lifecycle.word();
        if self.lifecycles.is_empty() { word != "retired" } else { self.lifecycles.iter().any(|w| w == word) }
    }

    /// Returns the page, of at most so many models whatever was asked.
    pub fn page(&self, max: usize) -> Value {
        let after = self.after.as_deref();
        let from = after.and_then(|id| MODELS.iter().position(|model| model.id == id)).map_or(0, |at| at + 1);
        let rest: Vec<&Model> = MODELS[from..].iter().filter(|model| self.takes(model)).collect();
        let shown = &rest[..self.limit.min(max).min(rest.len())];
        json!({
            "data": shown.iter().map(|model| to_json(model)).collect::<Vec<_>>(),
            "has_more": shown.len() < rest.len(),
            "first_id": shown.first().map(|model| model.id),
            "last_id": shown.last().map(|model| model.id),
        })
    }
}
