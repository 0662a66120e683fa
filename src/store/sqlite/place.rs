//! The file itself: whether what stands at the path is still what was opened.
//!
//! A file that was deleted or replaced lives on for whoever has it open: jobs would be taken from
//! it, and their answers written into it, where nobody finds them. So nothing is done until a file
//! with the same database in it stands there; [`super::reopen`] goes on with it then.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::store::StoreError;

/// Device and inode: one file, whatever its name.
pub(super) type Id = (u64, u64);

/// What stands at the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// What was opened, with the log that was opened with it.
    Same,
    /// The file that was opened, but its write-ahead log was taken away.
    WithoutLog,
    /// Another file.
    Another(Id),
    /// None.
    Nothing,
}

/// Where our file stands, and which one it is.
pub(super) struct Place {
    file: PathBuf,
    known: Mutex<Known>,
}

struct Known {
    file: Id,
    /// The write-ahead log, once a connection of ours has opened it.
    log: Option<Id>,
    /// Its index, with its birth: the number of one that is gone may be given to the next.
    index: Option<(Id, Option<SystemTime>)>,
}

impl Place {
    /// Remembers the file that stands there now.
    pub(super) fn of(file: &str) -> Result<Self, StoreError> {
        let file = PathBuf::from(file);
        let id =
            id_of(&file).map_err(|error| StoreError::Unavailable(format!("{}: {error}", file.display())))?;
        Ok(Self { file, known: Mutex::new(Known::new(id)) })
    }

    /// Returns the path.
    pub(super) fn path(&self) -> &Path {
        &self.file
    }

    /// Returns the path of the write-ahead log.
    pub(super) fn log(&self) -> PathBuf {
        beside(&self.file, "-wal")
    }

    /// Returns the path of the log's index.
    pub(super) fn index(&self) -> PathBuf {
        beside(&self.file, "-shm")
    }

    /// Looks at what stands there now.
    pub(super) fn look(&self) -> Standing {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match id_of(&self.file) {
            Ok(id) if id == known.file => {}
            Ok(id) => return Standing::Another(id),
            Err(_) => return Standing::Nothing,
        }
        match known.log {
            Some(log) if id_of(&self.log()).ok() != Some(log) => Standing::WithoutLog,
            _ => Standing::Same,
        }
    }

    /// Remembers the log: to be said while a connection of ours has the file open.
    pub(super) fn opened(&self) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.log.is_none() && id_of(&self.file).is_ok_and(|id| id == known.file) {
            known.log = id_of(&self.log()).ok();
            known.index = birth_of(&self.index());
        }
    }

    /// Whether the index at the path is the one that was opened with the log, and not one that
    /// somebody made anew.
    pub(super) fn has_its_index(&self) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.index.is_some() && birth_of(&self.index()) == known.index
    }

    /// Takes another file for ours, all connections to the one before being closed.
    pub(super) fn take(&self, id: Id) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Known::new(id);
    }

    /// Whether the log at the path is the one that was opened with the file before: it belongs to
    /// that file, and would be played into any other one that is opened under this name.
    pub(super) fn has_stale_log(&self) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.log.is_some() && id_of(&self.log()).ok() == known.log
    }

    /// Puts a stale log aside, beside the file, and takes away its index. Several processes may do
    /// so at once: they take turns by a lock on the folder, and each looks again once it has it.
    ///
    /// The lock is on the folder because one on the file would end SQLite's own locks when it is let go.
    pub(super) fn put_log_aside(&self) -> io::Result<Option<PathBuf>> {
        let folder = match self.file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let turn = File::open(folder)?;
        turn.lock()?;
        if !self.has_stale_log() {
            return Ok(None);
        }
        let aside = beside(&self.file, &format!("-wal.{}", self.file_id().1));
        fs::rename(self.log(), &aside)?;
        match fs::remove_file(self.index()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(Some(aside)),
        }
    }

    /// Returns which file was opened.
    pub(super) fn file_id(&self) -> Id {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).file
    }
}

impl Known {
    const fn new(file: Id) -> Self {
        Self { file, log: None, index: None }
    }
}

fn birth_of(path: &Path) -> Option<(Id, Option<SystemTime>)> {
    let found = fs::metadata(path).ok()?;
    Some(((found.dev(), found.ino()), found.created().ok()))
}

fn id_of(path: &Path) -> io::Result<Id> {
    fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}
