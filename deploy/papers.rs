//! Writes the man pages and the shells' completions of the command line: `cargo run --example papers DIR`.

use std::path::PathBuf;

use clap::CommandFactory as _;
use clap_complete::Shell;
use promptmill::cli::Cli;

fn main() -> std::io::Result<()> {
    let dir = PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "target/papers".into()));
    let man = dir.join("man");
    std::fs::create_dir_all(&man)?;
    clap_mangen::generate_to(Cli::command(), man)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "promptmill", &dir)?;
    }
    Ok(())
}
