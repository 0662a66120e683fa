//! The integration tests: one binary. Whatever holds for a database holds for both.

mod contract;
mod store;
mod support;
