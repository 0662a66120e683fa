//! The integration tests: one binary.

mod config;
mod seam_corpus;
