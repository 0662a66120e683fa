//! A process and its group: started in a thread of its own, killed as a whole, reaped once.
//!
//! A group's number is free for others once its last process is reaped. So the thread waits for the end
//! *without* reaping, kills what is left of the group, and only then reaps; killing and reaping exclude
//! each other. The same thread starts the program and outlives it, so `PR_SET_PDEATHSIG` (which means
//! the thread that started it) can be used by whoever sets it.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

/// The thread does next to nothing.
const STACK: usize = 256 * 1024;

/// The groups that live.
static ALIVE: Mutex<Vec<Arc<Group>>> = Mutex::new(Vec::new());

fn alive() -> MutexGuard<'static, Vec<Arc<Group>>> {
    ALIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills all that runs: for who leaves at once, without dropping anything.
pub fn kill_all() {
    for group in alive().iter() {
        group.kill();
    }
}

/// A process group, for as long as its number means it.
#[derive(Debug)]
struct Group(Mutex<Option<Pid>>);

impl Group {
    fn kill(&self) {
        if let Some(pid) = *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            kill(pid);
        }
    }

    /// Kills what its leader left, and reaps the leader, which has ended.
    fn end(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let mut pid = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pid) = pid.take() {
            kill(pid);
        }
        child.wait()
    }
}

fn kill(pid: Pid) {
    match kill_process_group(pid, Signal::KILL) {
        // Nobody left to kill is as good.
        Ok(()) | Err(Errno::SRCH) => {}
        Err(err) => {
            tracing::warn!(error = %err, "failed to kill the process group of a tool: it may live on");
        }
    }
}

/// A process that runs. Dropping it kills its group.
#[derive(Debug)]
pub(super) struct Process {
    group: Arc<Group>,
    pipes: Option<(OwnedFd, OwnedFd, OwnedFd)>,
    ended: oneshot::Receiver<io::Result<ExitStatus>>,
    /// How it ended, once that was heard.
    end: Option<Result<ExitStatus, String>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.group.kill();
    }
}

impl Process {
    /// Starts a program, whose three pipes and group are set.
    pub(super) async fn start(command: Command) -> io::Result<Self> {
        let (say, started) = oneshot::channel();
        let (say_end, ended) = oneshot::channel();
        // Not a task: the runtime would wait for it when the daemon leaves.
        let keeper = std::thread::Builder::new().name("tool".to_owned()).stack_size(STACK);
        keeper.spawn(move || keep(command, ended, say, say_end))?;
        started.await.unwrap_or_else(|_| Err(io::Error::other("the thread that starts it is gone")))
    }

    pub(super) fn kill(&self) {
        self.group.kill();
    }

    /// Waits until nothing of its group lives, and says how it ended. May be asked again.
    pub(super) async fn end(&mut self) -> Result<ExitStatus, String> {
        if let Some(end) = &self.end {
            return end.clone();
        }
        let end = match (&mut self.ended).await {
            Ok(ended) => ended.map_err(|err| err.to_string()),
            Err(_) => Err("the thread that waits for it is gone".to_owned()),
        };
        self.end = Some(end.clone());
        end
    }

    /// Returns its stdin, stdout and stderr, once.
    pub(super) fn pipes(&mut self) -> io::Result<(pipe::Sender, pipe::Receiver, pipe::Receiver)> {
        let gone = || io::Error::other("it has no pipes");
        let (stdin, stdout, stderr) = self.pipes.take().ok_or_else(gone)?;
        Ok((
            pipe::Sender::from_owned_fd(stdin)?,
            pipe::Receiver::from_owned_fd(stdout)?,
            pipe::Receiver::from_owned_fd(stderr)?,
        ))
    }
}

/// The thread of one process, from its start to its end.
fn keep(
    mut command: Command,
    ended: oneshot::Receiver<io::Result<ExitStatus>>,
    say: oneshot::Sender<io::Result<Process>>,
    say_end: oneshot::Sender<io::Result<ExitStatus>>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(err) => {
            drop(say.send(Err(err)));
            return;
        }
    };
    let pid = Pid::from_child(&child);
    let group = Arc::new(Group(Mutex::new(Some(pid))));
    alive().push(Arc::clone(&group));
    let pipes = match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
        (Some(stdin), Some(stdout), Some(stderr)) => Some((stdin.into(), stdout.into(), stderr.into())),
        _ => None,
    };
    // Nobody there to take it: it is dropped, and with it the group is killed.
    drop(say.send(Ok(Process { group: Arc::clone(&group), pipes, ended, end: None })));
    let seen = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while matches!(waitid(WaitId::Pid(pid), seen), Err(Errno::INTR)) {}
    let status = group.end(&mut child);
    alive().retain(|other| !Arc::ptr_eq(other, &group));
    drop(say_end.send(status));
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
    use std::process::Stdio;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn who_leaves_at_once_leaves_no_process() {
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        let mut process = Process::start(command).await.unwrap();
        kill_all();
        let ended = tokio::time::timeout(Duration::from_secs(10), process.end()).await;
        let status = ended.expect("it is killed at once").unwrap();
        assert_eq!(status.signal(), Some(9));
        assert!(alive().is_empty());
    }
}
