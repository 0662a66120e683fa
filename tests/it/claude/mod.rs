//! The client of the Messages API: events, replies, errors, and the calls themselves against a server
//! on a socket that answers with scripted bytes.

#![expect(clippy::unwrap_used, reason = "a test stops where it is surprised")]

mod counting;
mod fold;
mod free;
mod http;
pub mod server;
mod sse;
mod wire;

/// A recorded stream and the text in it.
pub const STREAMS: [(&str, &str); 4] = [
    (include_str!("../../fixtures/text.sse"), "Grüße, \"Welt\"!\n你好 😀 and C:\\temp"),
    (include_str!("../../fixtures/thinking_tool.sse"), "Let me look."),
    (include_str!("../../fixtures/unknown.sse"), "It is so."),
    (include_str!("../../fixtures/refusal.sse"), ""),
];
