//! The integration tests: one binary. Whatever holds for a database holds for both.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops where it stands")]

mod cli;
mod config;
mod contract;
mod support;
