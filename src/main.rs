//! The `promptmill` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    promptmill::cli::main()
}
