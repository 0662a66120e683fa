//! The commands that people type, through the real binary, on both databases.

mod change;
mod enqueue;
mod gates;
mod purge;
mod results;
mod roles;
mod show;
mod status;
mod template;
mod terminal;
mod watch;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::support::{Ground, Kind};

/// What a command did.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    /// Returns standard output of a command that went well.
    fn good(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// Returns what was said beside the data by a command that ended with `code`.
    fn said(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        self.err
    }

    /// Returns standard output as JSON.
    fn json(self) -> serde_json::Value {
        let out = self.good();
        serde_json::from_str(&out).unwrap_or_else(|err| panic!("{err} in {out}"))
    }
}

/// A folder to work in, and the binary on a ground's database.
struct Desk<'a> {
    ground: &'a Ground,
    dir: TempDir,
}

impl<'a> Desk<'a> {
    fn new(ground: &'a Ground) -> Self {
        Self { ground, dir: tempfile::tempdir().expect("a temporary folder") }
    }

    /// Runs `promptmill` with these arguments.
    fn mill(&self, args: &[&str]) -> Ran {
        self.mill_with(args, "")
    }

    /// Runs `promptmill` with these arguments and this on its standard input.
    fn mill_with(&self, args: &[&str], input: &str) -> Ran {
        let mut command = command(self.dir.path());
        command.args(args).env("DATABASE_URL", self.ground.url());
        command.env("PROMPTMILL_WORKER__STATE_DIR", self.dir.path().join("state"));
        if self.ground.kind() == Kind::Postgres {
            command.env("PROMPTMILL_DATABASE__SCHEMA", self.ground.schema());
        }
        run(command, input)
    }

    /// Writes a file in the folder; returns its name.
    fn file<'b>(&self, name: &'b str, text: &str) -> &'b str {
        std::fs::write(self.dir.path().join(name), text).expect("the folder can be written");
        name
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).expect("the file is there")
    }
}

/// The binary, in a folder, with nothing of this machine's environment that it would read.
fn command(dir: &Path) -> Command {
    // A command that would wait for ever fails its test instead.
    let mut command = Command::new("/usr/bin/timeout");
    command.args(["100", env!("CARGO_BIN_EXE_promptmill")]).current_dir(dir).env_clear();
    command
}

fn run(mut command: Command, input: &str) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // A command that reads nothing may be gone already.
    child.stdin.take().expect("stdin is piped").write_all(input.as_bytes()).ok();
    let output = child.wait_with_output().expect("the binary ends");
    Ran {
        code: output.status.code().expect("it was not killed"),
        out: String::from_utf8(output.stdout).expect("it prints UTF-8"),
        err: String::from_utf8(output.stderr).expect("it says UTF-8"),
    }
}

/// Ends a job as a worker would have: claims it, writes a call, and settles it.
async fn settle(ground: &Ground, job: i64, outcome: &str, stop: &str, text: &str) {
    let now = ground.at(0);
    let (stop, text) = (quoted(stop), quoted(text));
    ground
        .run(&format!(
            "UPDATE job_state SET state = 'running', claims = claims + 1, claimed_by = 1 WHERE job_id = {job};
             INSERT INTO calls (job_id, claim, seq, run, kind, model, max_tokens, messages, sent_at, ended_at,
                                http_status, request_id, message_id, stop_reason, input_tokens, output_tokens)
             SELECT job_id, claims, 1, run, 'ask', 'claude-x', 1000, 1, {now}, {now}, 200, 'req_1', 'msg_1', {stop}, 10, 20
               FROM job_state WHERE job_id = {job};
             INSERT INTO results (job_id, run, queue, batch, key, outcome, stop_reason, text, content, model,
                                  input_tokens, output_tokens, calls)
             SELECT j.id, s.run, j.queue, j.batch, j.key, '{outcome}', {stop}, {text}, '[{{\"type\":\"text\",\"text\":\"x\"}}]',
                    'claude-x', 10, 20, 1
               FROM jobs j JOIN job_state s ON s.job_id = j.id WHERE j.id = {job};
             UPDATE job_state SET state = 'done', claimed_by = NULL WHERE job_id = {job};"
        ))
        .await;
}

fn quoted(text: &str) -> String {
    if text.is_empty() { "NULL".to_owned() } else { format!("'{}'", text.replace('\'', "''")) }
}

#[test]
fn no_database_is_made_by_asking_about_one() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for args in [&["status"][..], &["results"], &["show", "1"], &["cancel", "1"], &["pause", "--all"]] {
        let mut command = command(dir.path());
        command.args(args);
        let said = run(command, "").said(5);
        assert_eq!(
            said,
            "promptmill: no database at promptmill.db: `promptmill run` or `promptmill enqueue` creates it\n"
        );
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("the folder can be read").count(), 0);
}

#[test]
fn enqueue_makes_the_database_where_none_is() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut command = command(dir.path());
    command.args(["enqueue", "--prompt", "Say hello"]);
    let ran = run(command, "");
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "1\n", "1 new, 0 already there\n"));
}

#[test]
fn migrate_makes_the_tables_and_may_run_again() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for _ in 0..2 {
        let mut command = command(dir.path());
        command.arg("migrate").env("DATABASE_URL", "sqlite:a.db");
        assert_eq!(run(command, "").said(0), "sqlite:a.db is at schema version 1\n");
    }
    let mut command = command(dir.path());
    command.args(["status", "--json"]).env("DATABASE_URL", "sqlite:a.db");
    assert_eq!(run(command, "").json()["queues"], serde_json::json!([]));
}

#[test]
fn a_file_of_others_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(
        dir.path().join("promptmill.db"),
        "this is no database, and long enough to be read as one",
    )
    .unwrap();
    let mut command = command(dir.path());
    command.args(["enqueue", "--prompt", "a"]);
    let ran = run(command, "");
    assert!(ran.code == 5, "{ran:?}");
}

#[test]
fn a_database_out_of_reach_is_exit_4_and_hides_its_password() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut command = command(dir.path());
    command
        .arg("status")
        .env("DATABASE_URL", "postgres://u:hunter2@127.0.0.1:1/none")
        .env("PROMPTMILL_DATABASE__CONNECT_SECONDS", "1");
    let said = run(command, "").said(4);
    assert!(said.contains("postgres://u:***@127.0.0.1:1/none cannot be reached"), "{said}");
    assert!(!said.contains("hunter2"));
}

#[test]
fn a_wrong_configuration_is_exit_3() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut command = command(dir.path());
    command.args(["status", "--config", "absent.toml"]);
    assert!(run(command, "").said(3).contains("absent.toml"));
}

#[test]
fn help_names_only_what_works() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut help = command(dir.path());
    help.arg("--help")
        .env("ANTHROPIC_API_KEY", "sk-ant-hunter2")
        .env("DATABASE_URL", "postgres://u:hunter2@h/d");
    let help = run(help, "").good();
    assert!(!help.contains("hunter2"), "{help}");
    assert!(!help.lines().any(|line| line.trim_start().starts_with("top")), "{help}");
}
