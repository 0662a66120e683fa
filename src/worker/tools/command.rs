//! A tool that is a program: started without a shell, in a process group of its own, and never left.
//!
//! The call's input goes to stdin, stdout is the result. Each run has a thread that waits for the
//! program's end and kills what is left of its group before the group's number can mean another one;
//! everything else happens here, beside it.

mod group;

use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::group::kill_all;

use self::group::Process;
use super::{Failing, Given, Limits, Stopped, WORDS_MAX, program, text, words};

/// How long the pipes of a program that has ended may take to be empty. Only a process that left the
/// group can hold them open longer, and what it says is not waited for.
const LAST_READ: Duration = Duration::from_secs(1);
/// How long a killed program may take to be gone: longer only where the kernel itself holds it.
const LAST_BREATH: Duration = Duration::from_secs(5);
/// Bytes of one read.
const READ: usize = 64 * 1024;

/// A program and what it is started with. Its `Debug` tells no variable's value.
#[derive(Clone)]
pub struct CommandSettings {
    /// `command`: the program and its arguments; at least the program.
    pub argv: Vec<String>,
    /// `cwd`; `None`: the daemon's own.
    pub cwd: Option<PathBuf>,
    /// The whole environment of the program.
    pub env: Vec<(String, SecretString)>,
}

impl fmt::Debug for CommandSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("CommandSettings")
            .field("argv", &self.argv)
            .field("cwd", &self.cwd)
            .field("env", &names)
            .finish()
    }
}

impl CommandSettings {
    /// Returns the file that is started, or what is amiss.
    pub fn find(&self) -> Result<PathBuf, String> {
        let program = self.argv.first().ok_or("the command is empty")?;
        let path = self.env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.expose_secret());
        program::find(program, path, self.cwd.as_deref())
    }

    fn build(&self) -> Result<std::process::Command, String> {
        use std::os::unix::process::CommandExt as _;
        use std::process::{Command, Stdio};
        let mut command = Command::new(self.find()?);
        command
            .args(self.argv.iter().skip(1))
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value.expose_secret())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        Ok(command)
    }
}

/// How the program came to its end.
enum End {
    Ended(ExitStatus),
    TooMuch,
    Late,
    Stopped,
    Unknown(String),
}

/// Runs the program once.
pub(super) async fn run(
    settings: &CommandSettings,
    limits: Limits,
    input: &str,
    stop: &CancellationToken,
) -> Result<Given, Stopped> {
    let unstarted = |why: String| Ok(Err(Failing::Unstarted(why)));
    let command = match settings.build() {
        Ok(command) => command,
        Err(why) => return unstarted(why),
    };
    let mut process = match stop.run_until_cancelled(Process::start(command)).await {
        None => return Err(Stopped),
        Some(Err(err)) => return unstarted(err.to_string()),
        Some(Ok(process)) => process,
    };
    let (mut output, mut last) = (Vec::new(), Tail::default());
    let end = match process.pipes() {
        Ok(pipes) => {
            let talk = talk(&mut process, pipes, input, (&mut output, limits.output), &mut last);
            tokio::select! {
                biased;
                () = stop.cancelled() => End::Stopped,
                () = tokio::time::sleep(limits.time) => End::Late,
                end = talk => end,
            }
        }
        Err(err) => End::Unknown(err.to_string()),
    };
    process.kill();
    if !matches!(end, End::Ended(_) | End::Unknown(_)) {
        drop(timeout(LAST_BREATH, process.end()).await);
    }
    Ok(match end {
        End::Stopped => return Err(Stopped),
        End::Ended(status) => given(status, output, &last),
        End::TooMuch => Err(Failing::TooMuch(limits.output)),
        End::Late => Err(Failing::Late(limits.time, last.words())),
        End::Unknown(why) => Err(Failing::Unstarted(why)),
    })
}

/// What a program that has ended gave. One that fails without a word on stderr has often said it on stdout.
fn given(status: ExitStatus, output: Vec<u8>, last: &Tail) -> Given {
    if status.success() {
        return text(output);
    }
    let mut said = last.words();
    if said.is_empty() {
        said = words(&output[output.len().saturating_sub(WORDS_MAX)..]);
    }
    Err(match (status.code(), status.signal()) {
        (Some(code), _) => Failing::Exit(code, said),
        (None, signal) => Failing::Signal(signal.unwrap_or_default(), said),
    })
}

/// Writes its input, reads what it says, until it has ended or said too much.
async fn talk(
    process: &mut Process,
    pipes: (pipe::Sender, pipe::Receiver, pipe::Receiver),
    input: &str,
    (output, output_max): (&mut Vec<u8>, usize),
    last: &mut Tail,
) -> End {
    let (mut stdin, stdout, stderr) = pipes;
    let feed = async move {
        // A program that does not want to read needs not: what it answers counts.
        drop(stdin.write_all(input.as_bytes()).await);
        drop(stdin);
        Ok(())
    };
    let reading = async {
        tokio::try_join!(feed, collect(stdout, output, output_max), async {
            last.follow(stderr).await;
            Ok(())
        })
    };
    tokio::pin!(reading);
    let status = tokio::select! {
        read = &mut reading => match read {
            Err(TooMuch) => return End::TooMuch,
            Ok(_) => process.end().await,
        },
        status = process.end() => {
            if let Ok(Err(TooMuch)) = timeout(LAST_READ, reading).await {
                return End::TooMuch;
            }
            status
        }
    };
    match status {
        Ok(status) => End::Ended(status),
        Err(why) => End::Unknown(why),
    }
}

/// More was said than may be.
struct TooMuch;

async fn collect(mut from: impl AsyncRead + Unpin, into: &mut Vec<u8>, max: usize) -> Result<(), TooMuch> {
    let mut buffer = vec![0; READ];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if read > max - into.len() {
            return Err(TooMuch);
        }
        into.extend_from_slice(&buffer[..read]);
    }
    Ok(())
}

/// The end of what was said.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    async fn follow(&mut self, mut from: impl AsyncRead + Unpin) {
        let mut buffer = vec![0; READ];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            self.0.extend_from_slice(&buffer[..read]);
            let surplus = self.0.len().saturating_sub(WORDS_MAX);
            self.0.drain(..surplus);
        }
    }

    fn words(&self) -> String {
        words(&self.0)
    }
}
