//! Whether somebody wrote to the file.
//!
//! SQLite tells nobody. Asking it means two threads that wake each other and three locks, so the log
//! is looked at first, by one `stat`: each commit writes to it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use sqlx::sqlite::SqliteConnection;

/// How often the log is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(30);

/// The kernel's clock for files steps by up to 10 ms (`CONFIG_HZ=100`): two writes within one step
/// leave the same time.
const STEP: Duration = Duration::from_millis(20);

/// What was seen last.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// By the one connection that asks: another one's numbers mean something else.
    version: Option<i64>,
    /// The log from before the version was asked for.
    log: Option<Log>,
}

impl Seen {
    /// Whether nothing can have been written since: the log is the same, and was for a while when it
    /// was seen.
    pub(super) fn is_of(&self, log: Option<Log>) -> bool {
        log.is_some_and(|log| log.rested && self.log == Some(log))
    }

    /// Takes what is there now; returns whether it is another version.
    pub(super) fn take(&mut self, version: i64, log: Option<Log>) -> bool {
        let known = self.version.replace(version);
        self.log = log;
        known != Some(version)
    }
}

/// The write-ahead log, as the folder shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Log {
    inode: u64,
    bytes: u64,
    written: (i64, i64),
    /// Whether a write after this look must show in `written`.
    rested: bool,
}

impl Log {
    /// Looks at it. `None` where there is none, or where the file system keeps whole seconds only.
    ///
    /// It is not opened: to close the index or the file beside it would end SQLite's locks on them.
    #[expect(clippy::disallowed_methods, reason = "it is the file system's clock that is asked about")]
    pub(super) fn look(path: &Path) -> Option<Self> {
        Self::look_at(path, SystemTime::now())
    }

    fn look_at(path: &Path, now: SystemTime) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        let written = (found.mtime(), found.mtime_nsec());
        let age = now.duration_since(found.modified().ok()?);
        let log = Self {
            inode: found.ino(),
            bytes: found.len(),
            written,
            // A clock that was set back says nothing.
            rested: age.is_ok_and(|age| age >= STEP),
        };
        (written.1 != 0).then_some(log)
    }
}

/// Asks for the file's version: it changes with every commit of another connection, ours among them.
pub(super) async fn version(conn: &mut SqliteConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("PRAGMA data_version").fetch_one(conn).await
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// A file that was last written so long after the epoch, looked at so much later.
    fn look(written: Duration, later: Duration) -> Option<Log> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let at = SystemTime::UNIX_EPOCH + written;
        File::set_modified(file.as_file(), at).expect("its time");
        Log::look_at(file.path(), at + later).map(|log| Log { inode: 1, ..log })
    }

    const SOME: Duration = Duration::from_millis(1_700_000_000_123);

    #[test]
    fn a_log_that_rested_and_stayed_the_same_is_not_asked_about_again() {
        let mut seen = Seen::default();
        let rested = look(SOME, STEP);
        assert!(!seen.is_of(rested), "nothing was seen yet");
        assert!(seen.take(1, rested));
        assert!(seen.is_of(rested));
        assert!(!seen.is_of(look(SOME + STEP, STEP)), "it was written to");
        assert!(!seen.is_of(None), "it is gone");
    }

    #[test]
    fn a_write_within_the_same_step_of_the_clock_is_not_missed() {
        let mut seen = Seen::default();
        let fresh = look(SOME, STEP / 2);
        assert!(seen.take(1, fresh));
        assert!(!seen.is_of(fresh), "another write may have left the same time");
        assert!(!seen.is_of(look(SOME, STEP)));
        assert!(!seen.take(1, look(SOME, STEP)), "the version is the same");
        assert!(seen.is_of(look(SOME, STEP * 2)));
    }

    #[test]
    fn times_that_cannot_be_trusted_are_not() {
        assert_eq!(look(Duration::from_secs(1_700_000_000), STEP), None, "whole seconds");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let early = Log::look_at(file.path(), SystemTime::UNIX_EPOCH).expect("a log");
        assert!(!early.rested, "the clock was set back");
        assert_eq!(Log::look(&file.path().with_extension("none")), None);
    }
}
