//! The names of all attributes: those of others first, then our own.
//!
//! Others' are the [GenAI semantic conventions], of which nothing is stable yet: what they rename is renamed
//! here, and in docs/opentelemetry.md. As they stand in November 2026.
//!
//! [GenAI semantic conventions]: https://github.com/open-telemetry/semantic-conventions-genai

use opentelemetry::trace::SpanKind;

/// What a call is: the conventions' word for a conversation with a model, and part of its span's name.
pub(super) const CHAT: &str = "chat";
/// Whose format is spoken, whoever answers in it.
pub(super) const ANTHROPIC: &str = "anthropic";

pub(super) const OPERATION: &str = "gen_ai.operation.name";
pub(super) const PROVIDER: &str = "gen_ai.provider.name";
pub(super) const REQUEST_MODEL: &str = "gen_ai.request.model";
pub(super) const REQUEST_MAX_TOKENS: &str = "gen_ai.request.max_tokens";
pub(super) const REQUEST_STREAM: &str = "gen_ai.request.stream";
pub(super) const RESPONSE_MODEL: &str = "gen_ai.response.model";
pub(super) const RESPONSE_ID: &str = "gen_ai.response.id";
pub(super) const FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
/// In seconds.
pub(super) const TIME_TO_FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
/// Whatever was read of it from a cache or written to one included, unlike the API's own word.
pub(super) const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
pub(super) const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
pub(super) const CACHE_READ_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
/// `cache_creation` until the summer of 2026.
pub(super) const CACHE_WRITE_TOKENS: &str = "gen_ai.usage.cache_write.input_tokens";

pub(super) const SERVER_ADDRESS: &str = "server.address";
pub(super) const SERVER_PORT: &str = "server.port";
pub(super) const HTTP_STATUS: &str = "http.response.status_code";
pub(super) const ERROR_TYPE: &str = "error.type";

/// What a run of a job is called, before the name of its queue.
pub(super) const PROCESS: &str = "process";
/// A run handles what somebody else left in a queue.
pub(super) const RUN: SpanKind = SpanKind::Consumer;

pub(super) const JOB: &str = "promptmill.job.id";
pub(super) const JOB_RUN: &str = "promptmill.job.run";
pub(super) const QUEUE: &str = "promptmill.queue";
pub(super) const BATCH: &str = "promptmill.batch";
pub(super) const CLAIM: &str = "promptmill.claim";
pub(super) const WORKER: &str = "promptmill.worker.id";
pub(super) const OUTCOME: &str = "promptmill.outcome";
pub(super) const CALLS: &str = "promptmill.calls";
/// How the claim ended: `settled`, `released`, `lost`, or `unfinished` when the process left before it.
pub(super) const END: &str = "promptmill.end";
pub(super) const ERROR_CODE: &str = "promptmill.error.code";
pub(super) const CALL_KIND: &str = "promptmill.call.kind";
pub(super) const CALL_SEQ: &str = "promptmill.call.seq";
pub(super) const CALL_PROBE: &str = "promptmill.call.probe";
/// The `request-id` that the API knows the call by.
pub(super) const REQUEST_ID: &str = "promptmill.request_id";
