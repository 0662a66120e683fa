//! The file itself: whether what stands at the path is still what was opened.
//!
//! A file that was deleted or replaced lives on for whoever has it open: jobs would be taken from
//! it, and their answers written into it, where nobody finds them. So nothing is done until it is
//! back, or until the process is started again.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use crate::store::StoreError;

/// Where our file stands, and which one it is.
pub(super) struct Place {
    file: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl Place {
    /// Remembers the file that stands there now.
    pub(super) fn of(file: &str) -> Result<Self, StoreError> {
        let found =
            fs::metadata(file).map_err(|error| StoreError::Unavailable(format!("{file}: {error}")))?;
        Ok(Self { file: file.into(), id: (found.dev(), found.ino()) })
    }

    /// Refuses to go on where it is another file now, or none.
    pub(super) fn is_the_same(&self) -> Result<(), StoreError> {
        let what = match fs::metadata(&self.file) {
            Ok(found) if (found.dev(), found.ino()) == self.id => return Ok(()),
            Ok(_) => "replaced by another file",
            Err(_) => "moved or deleted",
        };
        Err(StoreError::Unavailable(format!(
            "{} was {what} while promptmill had it open: put it back, or stop promptmill and start it again",
            self.file.display()
        )))
    }
}
