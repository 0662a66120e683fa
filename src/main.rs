//! The binary: all of it is in the library, where tests can reach it.

use std::process::ExitCode;

/// A call costs hundreds of small pieces that one thread makes and another gives back. Without `override`: what is
/// preloaded and asks for memory while it starts (libfaketime, say) would stand still.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    promptmill::cli::main()
}
