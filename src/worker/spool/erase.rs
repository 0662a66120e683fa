//! Takes what stands in the files of this host about jobs that are erased, out of them.
//!
//! A line is overwritten with blanks where it stands: no file changes its name or its length while
//! others may wait for its lock, and a crash half-way leaves every other line whole. A file whose process
//! lives is left to it: it is emptied as soon as the database answers.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::line::Line;
use super::{UNSTORABLE, is_spool};
use crate::domain::job::JobId;

/// What became of the files.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Blanked {
    /// Lines that are gone.
    pub lines: usize,
    /// Files whose process lives, and how many such lines are in each.
    pub held: Vec<(PathBuf, usize)>,
    /// Files with something in them that cannot be read: nobody knows whose it is.
    pub unreadable: Vec<PathBuf>,
}

/// Returns the jobs of this database that files of the folder have lines of.
pub fn jobs(dir: &Path, database: &str) -> io::Result<BTreeSet<JobId>> {
    let mut jobs = BTreeSet::new();
    for path in files(dir)? {
        let bytes = fs::read(&path)?;
        jobs.extend(lines(&bytes).filter_map(|(_, text)| job_of(text, database)));
    }
    Ok(jobs)
}

/// Takes the lines of these jobs away.
pub fn erase(dir: &Path, database: &str, gone: &BTreeSet<JobId>) -> io::Result<Blanked> {
    let mut blanked = Blanked::default();
    for path in files(dir)? {
        let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
        let is_held = match file.try_lock() {
            Ok(()) => false,
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(err)) => return Err(err),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let of_gone = |text: &[u8]| job_of(text, database).is_some_and(|job| gone.contains(&job));
        let found: Vec<(usize, usize)> =
            lines(&bytes).filter(|(_, text)| of_gone(text)).map(|(at, text)| (at, text.len())).collect();
        if lines(&bytes).any(|(_, text)| !is_blank(text) && Line::read(text).is_none()) {
            blanked.unreadable.push(path.clone());
        }
        if found.is_empty() {
            continue;
        }
        if is_held {
            blanked.held.push((path, found.len()));
            continue;
        }
        blank(&file, &mut bytes, &found)?;
        blanked.lines += found.len();
    }
    blanked.unreadable.extend(broken(dir)?);
    Ok(blanked)
}

fn blank(file: &File, bytes: &mut [u8], lines: &[(usize, usize)]) -> io::Result<()> {
    for &(at, length) in lines {
        let line = &mut bytes[at..at + length];
        line.fill(b' ');
        file.write_all_at(line, at as u64)?;
    }
    // On the disk before the file gets shorter: else what stood there might stay in free blocks.
    file.sync_data()?;
    if self::lines(bytes).all(|(_, text)| is_blank(text)) {
        file.set_len(0)?;
    }
    file.sync_all()
}

/// The files with lines, sorted; none where there is no folder.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let is_ours = |path: &Path| is_spool(path) || path.file_name().is_some_and(|name| name == UNSTORABLE);
    Ok(entries(dir)?.into_iter().filter(|path| is_ours(path) && path.is_file()).collect())
}

/// What was set aside because it could not be read.
fn broken(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let is_broken = |path: &Path| path.extension().is_some_and(|ending| ending == "broken");
    Ok(entries(dir)?.into_iter().filter(|path| is_broken(path) && path.is_file()).collect())
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(err),
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
    paths.sort();
    Ok(paths)
}

/// The lines of a file without their ends, each with where it stands.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    bytes.split_inclusive(|&byte| byte == b'\n').map(move |piece| {
        let began = at;
        at += piece.len();
        (began, piece.strip_suffix(b"\n").unwrap_or(piece))
    })
}

/// Whether a line was blanked, or is empty.
pub(super) fn is_blank(text: &[u8]) -> bool {
    text.iter().all(|&byte| byte == b' ')
}

fn job_of(text: &[u8], database: &str) -> Option<JobId> {
    let line = Line::read(text).filter(|line| line.database == database)?;
    Some(line.write.lease().job)
}
