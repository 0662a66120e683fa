//! The binary: all of it is in the library, where tests can reach it.

use std::process::ExitCode;

/// Half of what a call costs here is small pieces that one thread makes and another gives back; `override`
/// gives the same to SQLite, which is C and would go on with the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    promptmill::cli::main()
}
