//! Which process this is, and whether another one of this host still lives.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::store::{Me, Peer};

/// This process, among the others of its host.
#[derive(Debug, Clone)]
pub struct Process {
    host: String,
    /// Empty where it cannot be told: nobody is near then.
    boot: String,
    pid: i64,
    started: i64,
    /// Where the kernel tells of processes.
    proc: PathBuf,
}

/// What is seen of a process.
enum Seen {
    /// It runs, and began at this tick.
    Since(i64),
    Ended,
    /// Nothing: there is none, or it is not shown to us (`hidepid`).
    Nothing,
}

impl Process {
    /// Looks at the process we are in.
    pub fn this() -> Self {
        Self::under(Path::new("/proc"))
    }

    /// The boot is the kernel's boot id and the pid namespace: two containers on one host may share
    /// a host name, and each has a process 1. Where any of it is hidden the boot stays empty: two hosts
    /// of one name would else take each other's processes for their own, and for gone.
    fn under(proc: &Path) -> Self {
        let pid = i64::from(std::process::id());
        let boot_id = fs::read_to_string(proc.join("sys/kernel/random/boot_id")).unwrap_or_default();
        let namespace = fs::read_link(proc.join("self/ns/pid")).unwrap_or_default();
        let namespace = namespace.to_string_lossy();
        let (boot, started) = match (boot_id.trim(), &*namespace, see(proc, pid)) {
            ("", _, _) | (_, "", _) | (_, _, Seen::Ended | Seen::Nothing) => (String::new(), 0),
            (boot_id, namespace, Seen::Since(started)) => (format!("{boot_id} {namespace}"), started),
        };
        if boot.is_empty() {
            tracing::warn!(
                "the boot id, the pid namespace or this process is not shown in {}: jobs of a daemon that died \
                 on this host wait for the end of its lease",
                proc.display()
            );
        }
        Self {
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            boot,
            pid,
            started,
            proc: proc.to_owned(),
        }
    }

    /// Returns what `workers` shows of it.
    pub fn me(&self, version: &str, default_model: &str) -> Me {
        Me {
            host: self.host.clone(),
            boot: self.boot.clone(),
            pid: self.pid,
            pid_started: self.started,
            version: version.to_owned(),
            default_model: default_model.to_owned(),
        }
    }

    /// Whether a worker's process is surely gone. Only of this host and boot anything is known.
    pub fn is_gone(&self, peer: &Peer) -> bool {
        let near = !self.boot.is_empty() && peer.host == self.host && peer.boot == self.boot;
        near && match see(&self.proc, peer.pid) {
            Seen::Since(started) => started != peer.pid_started,
            Seen::Ended => true,
            Seen::Nothing => is_nobody(peer.pid),
        }
    }
}

/// Looks at a process: its state and, in clock ticks since boot, its start are the 3rd and the 22nd field
/// of its `stat`, counted behind the command's name, which may hold blanks and brackets.
fn see(proc: &Path, pid: i64) -> Seen {
    let stat = fs::read_to_string(proc.join(pid.to_string()).join("stat")).unwrap_or_default();
    let Some((_, fields)) = stat.rsplit_once(')') else { return Seen::Nothing };
    let fields: Vec<&str> = fields.split_whitespace().collect();
    match (fields.first(), fields.get(19).and_then(|started| started.parse().ok())) {
        // A zombie has ended; only its parent has not noticed yet.
        (Some(&("Z" | "X")), _) => Seen::Ended,
        (_, Some(started)) => Seen::Since(started),
        (_, None) => Seen::Nothing,
    }
}

/// Whether the kernel says that there is no such process. One of another user, whom we may not send
/// anything, is one.
fn is_nobody(pid: i64) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::domain::job::WorkerId;

    /// What `/proc` shows of us with `ProcSubset=pid`, or where processes of others are hidden.
    fn proc(with_boot_id: bool) -> tempfile::TempDir {
        let proc = tempfile::tempdir().expect("a folder");
        let at = |path: &str| proc.path().join(path);
        let me = std::process::id().to_string();
        fs::create_dir_all(at("self/ns")).expect("a folder");
        std::os::unix::fs::symlink("pid:[4026531836]", at("self/ns/pid")).expect("a link");
        fs::create_dir_all(at(&me)).expect("a folder");
        fs::copy("/proc/self/stat", at(&me).join("stat")).expect("our own");
        if with_boot_id {
            fs::create_dir_all(at("sys/kernel/random")).expect("a folder");
            fs::write(at("sys/kernel/random/boot_id"), "b\n").expect("a file");
        }
        proc
    }

    fn peer(process: &Process, pid: u32) -> Peer {
        let (host, boot) = (process.host.clone(), process.boot.clone());
        Peer { id: WorkerId(1), beat: 0, host, boot, pid: pid.into(), pid_started: 1 }
    }

    /// The number of a process that was there, and is not any more.
    fn ended() -> u32 {
        let mut child = Command::new("true").spawn().expect("it starts");
        child.wait().expect("it ends");
        child.id()
    }

    #[test]
    fn without_a_boot_id_nobody_is_near() {
        let proc = proc(false);
        let process = Process::under(proc.path());
        assert_eq!(process.me("0", "m").boot, "");
        assert!(
            !process.is_gone(&peer(&process, ended())),
            "it may be a process of another host of this name"
        );
    }

    #[test]
    fn a_process_that_is_hidden_from_us_is_not_gone_before_the_kernel_knows_none() {
        let proc = proc(true);
        let process = Process::under(proc.path());
        assert_eq!(process.me("0", "m").boot, "b pid:[4026531836]");
        let mut hidden = Command::new("sleep").arg("60").spawn().expect("it starts");
        assert!(!process.is_gone(&peer(&process, hidden.id())), "it lives");
        hidden.kill().expect("it is ours");
        hidden.wait().expect("it ends");
        assert!(process.is_gone(&peer(&process, hidden.id())));
        assert!(!process.is_gone(&peer(&process, 1)), "it lives, whoever may send it anything");
    }
}
