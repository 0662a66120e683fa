//! The shells that people use: `sqlite3` and `psql`.

use std::io::Write as _;
use std::process::{Command, Stdio};

/// Feeds `input` to a shell and returns what it printed, or what it complained about.
pub fn feed(mut command: Command, input: &str) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|err| panic!("{program} does not start ({err}): tests/run installs it"));
    // The shells read all of their input before they print more than a pipe holds.
    child.stdin.take().expect("stdin is piped").write_all(input.as_bytes()).expect("the shell reads");
    let output = child.wait_with_output().expect("the shell ends");
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() && complaints.is_empty() {
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    } else {
        Err(complaints)
    }
}
