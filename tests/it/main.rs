//! The integration tests: one binary. Whatever holds for a database holds for both.

mod bench;
mod claude;
mod cli;
mod config;
mod contract;
mod demo;
mod docs;
mod examples;
mod faults;
mod listen;
mod metrics;
mod mill;
mod otel;
mod pace_sim;
mod products;
mod readme;
mod seam_corpus;
mod stand_in;
mod store;
mod support;
mod tidy;
mod tools;
mod web;
