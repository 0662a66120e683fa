//! Who has the file open, and who holds its write lock, where the kernel tells.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The kernel's list of locks. A process that sees only processes in `/proc` does not see it.
const LOCKS: &str = "/proc/locks";
/// The byte of the log's index that a writer locks.
const WRITER: u64 = 120;

/// A process that has a lock on the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    /// Its number.
    pub(super) pid: u32,
    /// What it is called.
    pub(super) name: String,
}

/// Finds the holder of the write lock. `None`: nobody, ourselves, or nobody that can be seen from
/// here (another container).
pub(super) fn of(index: &Path) -> Option<Holder> {
    let inode = fs::metadata(index).ok()?.ino();
    let pid = writer(&fs::read_to_string(LOCKS).ok()?, inode)?;
    if pid == std::process::id() { None } else { Some(Holder::named(pid)) }
}

/// Finds who has the file open, ourselves among them: each connection to it keeps a lock on the
/// log's index for as long as it lives. Fails where that cannot be seen, which is not nobody.
pub(super) fn users(index: &Path) -> io::Result<Vec<Holder>> {
    users_by(LOCKS, index)
}

fn users_by(locks: &str, index: &Path) -> io::Result<Vec<Holder>> {
    let inode = match fs::metadata(index) {
        Ok(found) => found.ino(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let locks = fs::read_to_string(locks)?;
    Ok(pids(&locks, inode).into_iter().map(Holder::named).collect())
}

impl Holder {
    fn named(pid: u32) -> Self {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        // A process may call itself anything.
        let name = name.trim().chars().filter(|c| !c.is_control()).collect();
        Self { pid, name }
    }
}

fn writer(locks: &str, inode: u64) -> Option<u32> {
    let covers = |lock: &Lock| lock.is_write && (lock.from..=lock.to).contains(&WRITER);
    // 0 and -1: a process that is not in our namespace.
    locks_on(locks, inode).find(covers).and_then(|lock| lock.pid)
}

fn pids(locks: &str, inode: u64) -> BTreeSet<u32> {
    // One that cannot be seen from here has it open all the same.
    locks_on(locks, inode).map(|lock| lock.pid.unwrap_or(0)).collect()
}

/// A line of the kernel's list.
struct Lock {
    pid: Option<u32>,
    is_write: bool,
    from: u64,
    to: u64,
}

/// Reads the kernel's list: `1: POSIX  ADVISORY  WRITE 1234 08:01:5678 120 120`. Waiting locks have
/// an arrow behind the number and are none.
fn locks_on(locks: &str, inode: u64) -> impl Iterator<Item = Lock> {
    let inode = inode.to_string();
    locks.lines().filter_map(move |line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "POSIX" | "OFDLCK", _, how, pid, place, from, to] = words[..] else { return None };
        if place.rsplit(':').next() != Some(inode.as_str()) {
            return None;
        }
        Some(Lock {
            pid: pid.parse().ok().filter(|pid| *pid > 0),
            is_write: how == "WRITE",
            from: from.parse().ok()?,
            to: if to == "EOF" { u64::MAX } else { to.parse().ok()? },
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writer_is_told_from_readers_waiters_and_other_files() {
        let locks = "1: POSIX  ADVISORY  READ  11 00:2f:77 123 123\n\
                     2: POSIX  ADVISORY  WRITE 12 00:2f:78 120 120\n\
                     3: -> POSIX  ADVISORY  WRITE 13 00:2f:77 120 120\n\
                     4: POSIX  ADVISORY  WRITE 14 00:2f:77 121 121\n\
                     5: FLOCK  ADVISORY  WRITE 15 00:2f:77 0 EOF\n";
        assert_eq!(writer(locks, 77), None);
        assert_eq!(writer(&format!("{locks}6: POSIX  ADVISORY  WRITE 16 00:2f:77 120 120\n"), 77), Some(16));
        assert_eq!(writer("1: POSIX  ADVISORY  WRITE 0 00:2f:77 120 120", 77), None);
        assert_eq!(writer("1: POSIX ADVISORY WRITE 17 00:2f:77 0 EOF", 77), Some(17));
    }

    #[test]
    fn a_list_that_cannot_be_read_does_not_mean_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("mill.db-shm");
        let absent = folder.path().join("locks").display().to_string();
        assert!(users_by(&absent, &index).unwrap().is_empty(), "nothing is there to be open");
        fs::write(&index, "").unwrap();
        assert_eq!(users_by(&absent, &index).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(users_by(LOCKS, &index).unwrap().is_empty());
    }

    #[test]
    fn whoever_has_any_lock_on_it_has_it_open() {
        let locks = "1: POSIX  ADVISORY  READ  11 00:2f:77 128 128\n\
                     2: POSIX  ADVISORY  READ  12 00:2f:77 128 128\n\
                     3: POSIX  ADVISORY  WRITE 12 00:2f:77 120 120\n\
                     4: POSIX  ADVISORY  READ  13 00:2f:78 128 128\n\
                     5: -> POSIX  ADVISORY  WRITE 14 00:2f:77 120 120\n\
                     6: POSIX  ADVISORY  READ  -1 00:2f:77 128 128\n";
        assert_eq!(pids(locks, 77), BTreeSet::from([0, 11, 12]));
        assert!(pids(locks, 79).is_empty());
    }
}
