//! What a Postgres server on this machine uses, where its processes can be seen.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::child::stat;
use super::place::Database;

/// The processes of the server, by their parent; none where they cannot be seen.
pub(super) struct Backends(Option<PathBuf>);

impl Backends {
    /// Looks for the server behind a database: ours must be one of the processes here.
    pub(super) async fn of(database: &Database) -> Self {
        Self(Self::parent(database).await)
    }

    async fn parent(database: &Database) -> Option<PathBuf> {
        database.wal().await.ok()??;
        let name = database.url.rsplit('/').next()?;
        let ours = database.number("SELECT pg_backend_pid()::bigint").await.ok()?;
        let folder = proc(ours);
        // On another machine the same number may be anything.
        let title = std::fs::read_to_string(folder.join("cmdline")).ok()?;
        if !title.starts_with("postgres") || !title.contains(name) {
            return None;
        }
        Some(proc(stat(&folder)?.parent))
    }

    /// CPU time of all its processes so far, those that ended too.
    pub(super) fn cpu(&self) -> Option<Duration> {
        let parent = self.0.as_ref()?;
        let all = stat(parent)?;
        let number: i64 = parent.file_name()?.to_str()?.parse().ok()?;
        let folders = std::fs::read_dir("/proc").ok()?;
        let children = folders
            .filter_map(|folder| stat(&folder.ok()?.path()))
            .filter(|child| child.parent == number)
            .map(|child| child.own);
        Some(all.own + all.reaped + children.sum::<Duration>())
    }
}

fn proc(pid: i64) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}
