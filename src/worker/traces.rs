//! What a tracing system hears: a span for each run of a job, from its claim to its end, and in it one for
//! each call. Never a word of a prompt, of an answer, or of what the API said of them.
//!
//! A build without the feature `otel` has the same functions, and they do nothing. Who takes the spans out
//! of the process is [`crate::telemetry::Spans`].

#[cfg(feature = "otel")]
mod names;
#[cfg(not(feature = "otel"))]
mod silent;
#[cfg(feature = "otel")]
mod spans;

#[cfg(not(feature = "otel"))]
pub use silent::Traces;
#[cfg(not(feature = "otel"))]
pub(super) use silent::{answered, called, claimed, ended};
#[cfg(feature = "otel")]
pub use spans::Traces;
#[cfg(feature = "otel")]
pub(super) use spans::{answered, called, claimed, ended};
