//! Reading a claimed row.

/// To be written.
#[derive(Debug)]
pub struct Defaults;
/// To be written.
#[derive(Debug)]
pub struct Invalid;
/// To be written.
#[derive(Debug)]
pub struct Job;
/// To be written.
#[derive(Debug)]
pub struct ModelFacts;
