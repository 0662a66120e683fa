//! Which process this is, and whether another one of this host still lives.

use std::fs;

use crate::store::{Me, Peer};

/// This process, among the others of its host.
#[derive(Debug, Clone)]
pub struct Process {
    host: String,
    boot: String,
    pid: i64,
    started: i64,
}

impl Process {
    /// Looks at the process we are in.
    ///
    /// The boot is the kernel's boot id and the pid namespace: two containers on one host may share
    /// a host name, and each has a process 1.
    pub fn this() -> Self {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let pid = i64::from(std::process::id());
        Self {
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            boot: format!("{} {}", boot_id.trim(), namespace.display()).trim().to_owned(),
            pid,
            started: started(pid).unwrap_or_default(),
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
        near && started(peer.pid) != Some(peer.pid_started)
    }
}

/// When a process started, in clock ticks since boot: the 22nd field of its `stat`, counted behind
/// the command's name, which may hold blanks and brackets.
fn started(pid: i64) -> Option<i64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let state = fields.split_whitespace().next()?;
    // A zombie has ended; only its parent has not noticed yet.
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.split_whitespace().nth(19)?.parse().ok()
}
