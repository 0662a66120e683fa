//! How many calls fit into the files that this process may open, and that it leaves none of its memory.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What else is open: standard streams, the runtime's own, the log of SQLite and its index, and a
/// handful for what comes and goes (the key file, a name that is looked up).
const BESIDE: usize = 24;
/// Files of one connection to the database: SQLite opens three.
const A_CONNECTION: usize = 3;

/// Returns how many calls may run at once, a connection each, beside the database's; `None`: no
/// limit is known.
pub(super) fn calls_max(database: u32) -> Option<usize> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    Some(calls(open_max(&limits)?, database))
}

/// Lets this process, and those that it starts, open as many files as it may at all.
pub(super) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    // Where that is refused it is as before.
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).ok();
}

/// Lets no core of this process be written, nor of those that it starts: keys and prompts are in it. Who
/// needs one raises the limit of the running process: `prlimit --core=unlimited --pid PID`.
pub(super) fn leave_no_core() {
    let limit = getrlimit(Resource::Core);
    setrlimit(Resource::Core, Rlimit { current: Some(0), ..limit }).ok();
}

fn calls(open_max: usize, database: u32) -> usize {
    // SQLite reads with four connections at most, and has three more.
    let database = A_CONNECTION * (database.min(4) as usize + 3);
    open_max.saturating_sub(BESIDE + database).max(1)
}

/// Reads the soft limit: `Max open files            1024                 524288               files`.
fn open_max(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_get_what_the_rest_leaves_and_always_one() {
        let limits = |soft: &str| {
            format!("Max cpu time  unlimited unlimited seconds\nMax open files  {soft}  4096 files\n")
        };
        assert_eq!(open_max(&limits("1024")), Some(1024));
        assert_eq!(open_max(&limits("unlimited")), None);
        assert_eq!(open_max(""), None);
        assert_eq!(calls(64, 8), 19);
        assert_eq!(calls(10, 8), 1);
    }
}
