//! Processes of our own binary, and what each of them costs.
//!
//! A process that ended is looked at before it is reaped: what it used is its own then, whatever
//! else runs. Dropping a [`Child`] ends its process.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// How often the memory of a process is looked at: what its last moment adds is not seen.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a process may take to end when it is told to.
const END_MAX: Duration = Duration::from_mins(1);
/// What of our environment a child gets: nothing that it would take as configuration.
const KEPT: [&str; 6] = ["HOME", "PATH", "PGPASSFILE", "PGPASSWORD", "PGSSLMODE", "PGSSLROOTCERT"];
/// How much of what a failed process said is repeated.
const SAID_LINES: usize = 3;

/// What a process used.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Used {
    /// CPU time, its own and the system's for it.
    pub(super) cpu: Duration,
    /// Most memory at once, in bytes.
    pub(super) peak: u64,
    /// Bytes that it had written to the disk.
    pub(super) written: u64,
}

/// A process that ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// From its start to its end.
    pub(super) took: Duration,
    /// What it used.
    pub(super) used: Used,
    /// What it wrote to stdout.
    pub(super) out: String,
}

/// A process of ours.
pub(super) struct Child {
    inner: std::process::Child,
    pid: Pid,
    name: String,
    log: PathBuf,
    began: Instant,
}

/// How a process is started: which program, in which folder.
#[derive(Debug, Clone)]
pub(super) struct Start {
    /// The binary.
    pub(super) program: PathBuf,
    /// Where it runs, and where what it says on stderr is kept.
    pub(super) folder: PathBuf,
}

impl Start {
    /// Starts the program with these arguments and variables, and nothing else of our environment.
    pub(super) fn start(&self, args: &[&str], vars: &[(&str, &str)]) -> anyhow::Result<Child> {
        let name = args.iter().find(|arg| !arg.starts_with('-')).copied().unwrap_or("promptmill").to_owned();
        let log = self.folder.join(format!("{name}-{:08x}.log", fastrand::u32(..)));
        let stderr = fs::File::create(&log).context("cannot write to the folder of the run")?;
        let kept = std::env::vars_os().filter(|(name, _)| KEPT.iter().any(|kept| name == kept));
        let mut command = Command::new(&self.program);
        command.args(args).env_clear().envs(kept).envs(vars.iter().copied()).current_dir(&self.folder);
        // Ctrl-C is for us: we end them in our own order.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let began = Instant::now();
        let inner = command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        let pid = Pid::from_child(&inner);
        Ok(Child { inner, pid, name, log, began })
    }
}

impl Child {
    /// Returns the first line that it writes to stdout.
    pub(super) async fn first_line(&mut self) -> anyhow::Result<String> {
        let out = self.inner.stdout.take().context("its output was taken already")?;
        let (line, out) = tokio::task::spawn_blocking(move || {
            let (mut out, mut line) = (BufReader::new(out), String::new());
            out.read_line(&mut line).map(|_| (line.trim().to_owned(), out.into_inner()))
        })
        .await??;
        self.inner.stdout = Some(out);
        if line.is_empty() {
            bail!("{} did not start: {}", self.name, self.said());
        }
        Ok(line)
    }

    /// When it was started.
    pub(super) const fn began(&self) -> Instant {
        self.began
    }

    /// Its CPU time so far.
    pub(super) fn cpu(&self) -> Duration {
        cpu(self.pid)
    }

    /// What it used so far.
    pub(super) fn used(&self) -> Used {
        Used { cpu: cpu(self.pid), peak: peak(self.pid), written: written(self.pid) }
    }

    /// Whether it has ended.
    pub(super) fn is_over(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        !matches!(waitid(WaitId::Pid(self.pid), look), Ok(None))
    }

    /// Waits for its end, which has to be a good one.
    pub(super) async fn wait(mut self) -> anyhow::Result<Ended> {
        let (pid, began) = (self.pid, self.began);
        let mut end = tokio::task::spawn_blocking(move || {
            let seen = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(WaitId::Pid(pid), seen), Err(Errno::INTR)) {}
            began.elapsed()
        });
        let mut used = Used::default();
        let took = loop {
            tokio::select! {
                took = &mut end => break took?,
                () = tokio::time::sleep(LOOK_EVERY) => used.peak = used.peak.max(peak(pid)),
            }
        };
        (used.cpu, used.written) = (cpu(pid), written(pid));
        let status = self.inner.wait()?;
        let mut out = String::new();
        if let Some(mut stdout) = self.inner.stdout.take() {
            stdout.read_to_string(&mut out)?;
        }
        if !status.success() {
            bail!("{} ended with {status}: {}", self.name, self.said());
        }
        Ok(Ended { took, used, out })
    }

    /// Tells it to stop, and waits until it has.
    pub(super) async fn stop(self) -> anyhow::Result<Ended> {
        // One that is gone already is what `wait` finds.
        kill_process(self.pid, Signal::TERM).ok();
        let name = self.name.clone();
        tokio::time::timeout(END_MAX, self.wait()).await.with_context(|| format!("{name} does not stop"))?
    }

    /// The last lines that it said.
    fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(SAID_LINES)..].join("; ")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail where it was reaped.
        self.inner.kill().ok();
        self.inner.wait().ok();
        fs::remove_file(&self.log).ok();
    }
}

/// CPU time of a process so far; one that ended and was not reaped still has it.
fn cpu(pid: Pid) -> Duration {
    stat(&Path::new("/proc").join(pid.as_raw_nonzero().to_string())).map_or(Duration::ZERO, |stat| stat.own)
}

/// What `/proc/PID/stat` says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stat {
    /// The process that started it.
    pub(super) parent: i64,
    /// Its CPU time.
    pub(super) own: Duration,
    /// That of its children that it has reaped.
    pub(super) reaped: Duration,
}

/// Reads `stat` in a folder of `/proc`.
pub(super) fn stat(folder: &Path) -> Option<Stat> {
    read_stat(&fs::read_to_string(folder.join("stat")).ok()?, rustix::param::clock_ticks_per_second())
}

fn read_stat(text: &str, ticks_a_second: u64) -> Option<Stat> {
    // The name, in parentheses, may hold anything.
    let fields: Vec<i64> =
        text.rsplit_once(')')?.1.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
    let ticks = |at: usize| -> Option<Duration> {
        let ticks = fields.get(at)? + fields.get(at + 1)?;
        Some(Duration::from_secs_f64(ticks as f64 / ticks_a_second as f64))
    };
    Some(Stat { parent: *fields.first()?, own: ticks(10)?, reaped: ticks(12)? })
}

/// Most memory that a process had at once, in bytes; 0 where it has ended.
fn peak(pid: Pid) -> u64 {
    number(pid, "status", "VmHWM:").map_or(0, |kib| kib * 1024)
}

/// Bytes that a process had written to the disk: SQLite's are those of its log and its file.
fn written(pid: Pid) -> u64 {
    number(pid, "io", "write_bytes:").unwrap_or(0)
}

fn number(pid: Pid, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{}/{file}", pid.as_raw_nonzero())).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_behind_a_name_that_holds_anything() {
        let text = "7 (a ) b) S 3 7 7 0 -1 4194304 1 2 3 4 150 50 20 5 20 0 1 0 99";
        let stat = read_stat(text, 100).unwrap();
        assert_eq!(
            (stat.parent, stat.own, stat.reaped),
            (3, Duration::from_secs(2), Duration::from_millis(250))
        );
        assert!(read_stat("7 (short) S 3", 100).is_none());
    }
}
