//! Named points in the code at which a test can stop, break or end the process. Release builds
//! have none: `fail` is switched on by the tests' dependencies alone.
//!
//! A point is `failpoint!("name")`, or `failpoint!("name", lease.job)` where it belongs to a job.
//! What happens there is said by the environment variable `FAILPOINTS`, in the words of the crate
//! `fail`, `;` between points; the arguments of `return` are ours:
//!
//! - `settle.before=return(kill)`: the process ends there as by SIGKILL;
//! - `settle.before=2*off->return(kill)`: at the third time;
//! - `ask.before=return(kill 7)`: whenever it is job 7;
//! - `claim.after=return(wait FILE)`: makes `FILE.here`, then holds its thread until FILE is there;
//! - `push=1*panic`: the first time panics, and nothing else happens.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// All points: `floor.step` where the step has two sides. The walk first, then what goes on beside.
/// A test holds this list against the source.
pub const ALL: &[&str] = &[
    "enlist",
    "claim.before",
    "claim.after",
    "resume",
    "measure",
    "ask.before",
    "ask.headers",
    "ask.content",
    "ask.text",
    "ask.ended",
    "append.before",
    "append.after",
    "push",
    "tools.opened",
    "tool.ended",
    "decide",
    "settle.before",
    "settle.after",
    "release.before",
    "release.after",
    "taken",
    "fill.before",
    "fill.after",
    "commit",
    "beat",
    "lost",
    "checkpoint.before",
    "checkpoint.after",
    "promote",
    "expire",
    "gates",
    "rescue.before",
    "rescue.after",
    "retire",
];

/// How often a waiting point looks for its file.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Marks a point; nothing at all in a release build.
macro_rules! failpoint {
    ($name:literal) => {
        if ::fail::has_failpoints() {
            $crate::failpoint::reach($name, None);
        }
    };
    ($name:literal, $job:expr) => {
        if ::fail::has_failpoints() {
            $crate::failpoint::reach($name, Some($job.0));
        }
    };
}
pub(crate) use failpoint;

/// Reads `FAILPOINTS`, once, at the start of the process.
///
/// # Panics
/// Where a point is named that does not exist: it would never be reached, and its test would pass.
pub fn arm() {
    if !fail::has_failpoints() {
        return;
    }
    // What was set up holds for the life of the process.
    std::mem::forget(fail::FailScenario::setup());
    for (name, _) in fail::list() {
        assert!(ALL.contains(&name.as_str()), "there is no failpoint {name}");
    }
}

/// Does at a point what `FAILPOINTS` says.
pub fn reach(name: &str, job: Option<i64>) {
    if let Some(Some(words)) = fail::eval(name, |words| words) {
        act(name, &words, job);
    }
}

fn act(name: &str, words: &str, job: Option<i64>) {
    match words.split_once(' ').unwrap_or((words, "")) {
        // No destructor runs and nothing is flushed, as if by SIGKILL.
        ("kill", "") => std::process::abort(),
        ("kill", only) if job.is_some_and(|job| job.to_string() == only) => std::process::abort(),
        ("kill", _) => {}
        ("wait", file) => {
            fs::write(format!("{file}.here"), name).expect("the folder of a waiting point's file is there");
            while !Path::new(file).exists() {
                std::thread::sleep(LOOK_EVERY);
            }
        }
        _ => panic!("failpoint {name} does not know \"{words}\""),
    }
}
