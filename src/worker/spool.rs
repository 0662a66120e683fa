//! The spool: one append-only file in `worker.state_dir` for what was paid for and the database
//! cannot take now.
//!
//! Knows files and lines, not the database: [`super::record`] says what is kept and when it may go.
//! A file belongs to the process that holds its lock, and a process appends only to a file that it
//! found empty; so each file holds the lines of one process, and with it of one database. A file
//! that was made stays and is emptied: another process may be waiting for its lock.

pub mod erase;
pub mod line;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use line::{Contents, Line};

/// So many processes of one host may share a folder.
const FILES_MAX: u32 = 1000;
/// What the database refused to store, for people to look at.
const UNSTORABLE: &str = "unstorable.jsonl";

/// Where a process keeps what the database cannot take.
#[derive(Debug)]
pub struct Spool {
    dir: Option<PathBuf>,
    database: String,
    own: Option<Own>,
}

/// The file of this process.
#[derive(Debug)]
struct Own {
    file: File,
    path: PathBuf,
    /// Up to here it is written and on the disk.
    len: u64,
}

impl Spool {
    /// Returns a spool that has no file yet. `dir`: `None` where there is no place for one.
    pub fn new(dir: Option<PathBuf>, database: &str) -> Self {
        Self { dir, database: database.to_owned(), own: None }
    }

    /// Returns the database whose lines it keeps.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Appends lines; when it returns they are on the disk, all or none. Makes folder and file
    /// where they are not there yet. Returns the file's path.
    pub fn keep(&mut self, lines: &[Line]) -> io::Result<PathBuf> {
        let own = match &mut self.own {
            Some(own) if own.is_in_place() => own,
            // Somebody deleted or moved it: what stands in it is nowhere else, and goes along.
            Some(own) => {
                let mut anew = Own::open(self.dir.as_deref().ok_or_else(no_dir)?)?;
                anew.append(&own.contents()?)?;
                *own = anew;
                own
            }
            none => none.insert(Own::open(self.dir.as_deref().ok_or_else(no_dir)?)?),
        };
        let bytes: Vec<u8> = lines.iter().flat_map(Line::to_bytes).collect();
        own.append(&bytes)?;
        Ok(own.path.clone())
    }

    /// Empties the file: the database has all that it holds.
    pub fn clear(&mut self) -> io::Result<()> {
        let Some(own) = self.own.as_mut().filter(|own| own.len > 0) else { return Ok(()) };
        own.len = 0;
        own.file.set_len(0)?;
        own.file.sync_all()
    }

    /// Puts what the database refused where people find it; returns the file's path. It is never
    /// read by us.
    pub fn set_aside(&self, line: &Line) -> io::Result<PathBuf> {
        let dir = self.dir.as_deref().ok_or_else(no_dir)?;
        make_dir(dir)?;
        let path = dir.join(UNSTORABLE);
        append_to(&path, &line.to_bytes())?;
        sync_dir(dir)?;
        Ok(path)
    }

    /// Returns what earlier processes left, each file locked until it is dropped. What cannot be
    /// read is said in the log.
    pub fn left(&self) -> Vec<Left> {
        let Some(dir) = &self.dir else { return Vec::new() };
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(err) => {
                tracing::warn!(error = %err, "failed to look for answers left in {}", dir.display());
                return Vec::new();
            }
        };
        let mut paths: Vec<PathBuf> =
            entries.flatten().map(|entry| entry.path()).filter(|path| is_spool(path)).collect();
        paths.sort();
        let looked = paths.into_iter().filter_map(|path| {
            Left::open(&path, &self.database).unwrap_or_else(|err| {
                tracing::warn!(error = %err, "failed to read the answers left in {}", path.display());
                None
            })
        });
        looked.collect()
    }
}

impl Own {
    /// Takes the first file that is empty and nobody's. What is no file, or may not be written by us,
    /// is passed by.
    fn open(dir: &Path) -> io::Result<Self> {
        make_dir(dir)?;
        for number in 1..=FILES_MAX {
            let name = if number == 1 { "spool.jsonl".into() } else { format!("spool-{number}.jsonl") };
            let path = dir.join(name);
            if path.exists() && !path.is_file() {
                continue;
            }
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path);
            let file = match opened {
                Ok(file) => file,
                Err(_) if path.symlink_metadata().is_ok() => continue,
                Err(err) => return Err(err),
            };
            match file.try_lock() {
                Ok(()) if file.metadata()?.len() == 0 => {
                    file.set_permissions(fs::Permissions::from_mode(0o600))?;
                    sync_dir(dir)?;
                    return Ok(Self { file, path, len: 0 });
                }
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(err)) => return Err(err),
            }
        }
        Err(io::Error::other(format!("{FILES_MAX} spool files in {} are in use", dir.display())))
    }

    /// Whether the file is still the one at its path: what is written into another is found by nobody.
    fn is_in_place(&self) -> bool {
        match (self.file.metadata(), fs::metadata(&self.path)) {
            (Ok(own), Ok(there)) => (own.dev(), own.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }

    /// Returns what stands in it.
    fn contents(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(0))?;
        (&self.file).take(self.len).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Whatever a write that failed left behind goes first.
        self.file.set_len(self.len)?;
        self.file.seek(SeekFrom::Start(self.len))?;
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        if written.is_err() {
            self.file.set_len(self.len).ok();
            return written;
        }
        self.len += bytes.len() as u64;
        Ok(())
    }
}

/// A file with lines of our database that an earlier process left.
#[derive(Debug)]
pub struct Left {
    /// Its path.
    pub path: PathBuf,
    /// The lines of our database.
    pub lines: Vec<Line>,
    file: File,
    /// What could not be read.
    broken: Vec<Vec<u8>>,
    /// Whether there are lines of other databases, which keep the file from being emptied.
    mixed: bool,
}

impl Left {
    /// Opens a file; `None` where nothing in it is for us to do, or another process is at it.
    fn open(path: &Path, database: &str) -> io::Result<Option<Self>> {
        // Opening a pipe waits for somebody who writes, and a device may have no end.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
        }
        // First without the lock, so that whose file it is may take it meanwhile.
        let contents = Contents::read(&fs::read(path)?);
        if contents == Contents::default() {
            return Ok(None);
        }
        let foreign = contents.lines.iter().filter(|line| line.database != database).count();
        if foreign > 0 {
            tracing::warn!(
                "{foreign} {} of another database ({}) are left in {}: a daemon on that database takes them up",
                if foreign == 1 { "answer" } else { "answers" },
                others(&contents.lines, database),
                path.display()
            );
            if foreign == contents.lines.len() {
                return Ok(None);
            }
        }
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(err)) => return Err(err),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some(Self::sort(path, file, Contents::read(&bytes), database)))
    }

    fn sort(path: &Path, file: File, contents: Contents, database: &str) -> Self {
        let Contents { lines, mut broken, torn } = contents;
        if !torn.is_empty() {
            tracing::warn!(
                "the last line of {} was cut off while it was written: {} bytes are set aside",
                path.display(),
                torn.len()
            );
        }
        if !broken.is_empty() {
            tracing::warn!(
                "{} lines of {} are broken: they are set aside in {}",
                broken.len(),
                path.display(),
                beside(path).display()
            );
        }
        broken.extend((!torn.is_empty()).then_some(torn));
        let all = lines.len();
        let lines: Vec<Line> = lines.into_iter().filter(|line| line.database == database).collect();
        Self { path: path.to_owned(), mixed: lines.len() < all, lines, file, broken }
    }

    /// Empties the file: the database has all that was in it. What could not be read goes into a
    /// file beside it first.
    pub fn clear(self) -> io::Result<()> {
        if self.mixed {
            return Ok(());
        }
        if !self.broken.is_empty() {
            let mut bytes = self.broken.join(&b'\n');
            bytes.push(b'\n');
            append_to(&beside(&self.path), &bytes)?;
        }
        self.file.set_len(0)?;
        self.file.sync_all()
    }
}

/// The other databases that lines name.
fn others(lines: &[Line], database: &str) -> String {
    let mut names: Vec<&str> =
        lines.iter().map(|line| line.database.as_str()).filter(|name| *name != database).collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

fn is_spool(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("spool") && name.ends_with(".jsonl")
}

/// `spool.jsonl.broken` of `spool.jsonl`.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".broken");
    PathBuf::from(name)
}

fn no_dir() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "worker.state_dir is not set")
}

fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Makes a new file's name last as long as what is in it.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Appends to a file that several processes write to.
fn append_to(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.lock()?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests;
