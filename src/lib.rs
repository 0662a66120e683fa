//! promptmill drains prompts from a SQL table through the Claude Messages API into a results table.
//!
//! # The walk
//! claim → resume → (ask → append → push)* → decide → settle.
//!
//! # The map
//! Floors; imports only point down.
//! - floor 0, [`domain`]: pure.
//! - floor 1, the edges: [`store`] (SQL) and [`claude`] (HTTP); each knows the domain, never each other.
//! - floor 2, [`worker`]: the only place where store, claude and time meet.
//! - floor 3, the shell: [`config`], [`cli`], [`telemetry`], [`metrics`], [`systemd`], [`stand_in`], [`web`],
//!   [`listen`].
//!
//! Beside them, [`failpoint`]: where tests end the process.

pub mod claude;
pub mod cli;
pub mod config;
pub mod domain;
pub mod failpoint;
pub mod listen;
pub mod metrics;
pub mod stand_in;
pub mod store;
pub mod systemd;
pub mod telemetry;
pub mod web;
pub mod worker;
