//! What doctor reads off the host: file modes, filesystems, libraries.

use std::path::Path;
use std::process::Command;

use sqlx::ConnectOptions as _;
use sqlx::sqlite::SqliteConnectOptions;

use super::Finding;

/// The first version whose tables can be STRICT, as ours are.
const STRICT: Version = Version(3, 37, 0);

/// A version of the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split_whitespace().next()?.split('.').map(|part| part.parse().ok());
        Some(Self(parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)))
    }

    /// Says whether this version can damage a WAL file when two processes checkpoint it at once.
    fn has_the_wal_reset_bug(self) -> bool {
        self >= Self(3, 7, 0) && self < Self(3, 51, 3)
    }
}

/// Tells the versions of the built-in library and of the `sqlite3` shell, if there is one.
pub(super) async fn sqlite_versions() -> Vec<Finding> {
    let mut findings = Vec::new();
    match built_in().await {
        Ok(version) => findings.push(Finding::ok("SQLite", format!("{version} is built in"))),
        Err(error) => {
            findings.push(Finding::fail("SQLite", format!("the built-in one does not start: {error}")));
        }
    }
    let shell = tokio::task::spawn_blocking(|| Command::new("sqlite3").arg("--version").output()).await;
    if let Ok(Ok(output)) = shell
        && output.status.success()
    {
        findings.push(shell_finding(&String::from_utf8_lossy(&output.stdout)));
    }
    findings
}

async fn built_in() -> Result<String, sqlx::Error> {
    let mut connection = SqliteConnectOptions::new().in_memory(true).connect().await?;
    sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut connection).await
}

fn shell_finding(says: &str) -> Finding {
    let word = says.split_whitespace().next().unwrap_or_default();
    match Version::parse(says) {
        None => Finding::ok("SQLite", "the sqlite3 shell is there; its version is not readable"),
        Some(version) if version < STRICT => Finding::warn(
            "SQLite",
            format!("the sqlite3 shell is {word} and cannot open our tables: use 3.37 or newer"),
        ),
        Some(version) if version.has_the_wal_reset_bug() => Finding::warn(
            "SQLite",
            format!(
                "the sqlite3 shell is {word}; versions before 3.51.3 can, very rarely, damage a file that two \
                 processes checkpoint at once: begin with `PRAGMA wal_autocheckpoint = 0` before big inserts \
                 beside a running daemon, and leave checkpoints to it"
            ),
        ),
        Some(_) => Finding::ok("SQLite", format!("the sqlite3 shell is {word}")),
    }
}

/// Returns a file's mode bits; `None`: there is no such file, or the system has no modes.
#[cfg(unix)]
pub(super) fn mode(path: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt as _;
    Some(std::fs::metadata(path).ok()?.permissions().mode())
}

/// Returns a file's mode bits; `None`: there is no such file, or the system has no modes.
#[cfg(not(unix))]
pub(super) fn mode(_path: &Path) -> Option<u32> {
    None
}

/// Returns why nothing can be written into a folder, or, where it is not there yet, into the one
/// that it would be made in. What is tried leaves nothing behind.
pub(super) fn unwritable(folder: &Path) -> Option<String> {
    let folder =
        folder.ancestors().find(|folder| folder.symlink_metadata().is_ok()).unwrap_or(Path::new("."));
    tempfile::tempfile_in(folder).err().map(|error| error.to_string())
}

/// Returns the kind of the network filesystem that a file is (or would be) on.
pub(super) fn network_filesystem(file: &Path) -> Option<String> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = folder.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    filesystem(&mounts, &folder).filter(|kind| is_network(kind)).map(ToOwned::to_owned)
}

fn is_network(kind: &str) -> bool {
    const KINDS: [&str; 14] = [
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
        "virtiofs",
    ];
    KINDS.contains(&kind)
        || ["fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.ceph"].contains(&kind)
}

/// Finds the kind of the filesystem of a folder: the longest mount point above it, the last of
/// equals (a mount hides the one below).
fn filesystem<'a>(mountinfo: &'a str, folder: &Path) -> Option<&'a str> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, source) = line.split_once(" - ")?;
            // Spaces stand as \040 there.
            let point = mount.split(' ').nth(4)?.replace("\\040", " ");
            let depth = folder.starts_with(&point).then(|| Path::new(&point).components().count())?;
            Some((depth, source.split(' ').next()?))
        })
        .max_by_key(|(depth, _)| *depth)
        .map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn a_file_is_on_the_nearest_mount_above_it() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      40 22 0:40 / /mnt/team\\040share rw shared:1 - nfs4 server:/x rw\n\
                      41 22 0:41 / /mnt rw - tmpfs tmpfs rw\n";
        for (folder, kind) in
            [("/mnt/team share/a", "nfs4"), ("/mnt/other", "tmpfs"), ("/srv", "ext4"), ("/mntx", "ext4")]
        {
            assert_eq!(filesystem(mounts, Path::new(folder)), Some(kind), "{folder}");
        }
        assert!(is_network("nfs4") && !is_network("ext4") && !is_network("tmpfs"));
    }

    #[test]
    fn an_old_shell_is_told_apart_from_a_good_one() {
        for (says, verdict, word) in [
            ("3.34.1 2021-01-20 14:10:07", Verdict::Warn, "3.37"),
            ("3.40.1 2022-12-28 14:03:47", Verdict::Warn, "wal_autocheckpoint"),
            ("3.51.3 2026-03-13", Verdict::Ok, "3.51.3"),
        ] {
            let finding = shell_finding(says);
            assert_eq!(finding.verdict, verdict, "{says}");
            assert!(finding.says.contains(word), "{}", finding.says);
        }
    }
}
