//! Who holds the write lock of the file, where the kernel tells.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The byte of the log's index that a writer locks.
const WRITER: u64 = 120;

/// Another process that holds the lock of the one writer.
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
    let pid = writer(&fs::read_to_string("/proc/locks").ok()?, inode)?;
    if pid == std::process::id() {
        return None;
    }
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    // A process may call itself anything.
    let name = name.trim().chars().filter(|c| !c.is_control()).collect();
    Some(Holder { pid, name })
}

/// Reads the kernel's list: `1: POSIX  ADVISORY  WRITE 1234 08:01:5678 120 120`. Waiting locks have
/// an arrow behind the number and are none.
fn writer(locks: &str, inode: u64) -> Option<u32> {
    let inode = inode.to_string();
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, kind, _, "WRITE", pid, place, from, to] = words[..] else { return None };
        let here = matches!(kind, "POSIX" | "OFDLCK") && place.rsplit(':').next() == Some(inode.as_str());
        let to = if to == "EOF" { u64::MAX } else { to.parse().ok()? };
        let covers = (from.parse::<u64>().ok()?..=to).contains(&WRITER);
        // 0 and -1: a process that is not in our namespace.
        if here && covers { pid.parse().ok().filter(|pid| *pid > 0) } else { None }
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
}
