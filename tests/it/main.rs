//! The integration tests, one binary.

mod seam_corpus;
mod tidy;
