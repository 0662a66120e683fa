//! The `promptmill` binary.

fn main() {}
