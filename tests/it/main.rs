//! The integration tests: one binary. Whatever holds for a database holds for both.

mod cli;
mod config;
mod contract;
mod support;
