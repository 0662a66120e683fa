//! A pseudo terminal with the binary in it, and what its screen shows.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::num::NonZero;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::Desk;
use crate::support::Kind;

/// How long a screen may take to show what is waited for.
const PATIENCE: Duration = Duration::from_mins(1);

/// A terminal that the binary runs in.
pub struct Terminal {
    master: File,
    child: Child,
    seen: Arc<Mutex<Seen>>,
    reader: Option<JoinHandle<()>>,
}

struct Seen {
    screen: vt100::Parser,
    bytes: Vec<u8>,
}

/// How a command in a terminal ended.
#[derive(Debug)]
pub struct Left {
    pub code: i32,
    /// What the screen shows now.
    pub screen: String,
    /// All that was ever written.
    pub bytes: String,
}

impl Terminal {
    /// Starts `promptmill` with these arguments in a terminal of this size.
    pub fn start(desk: &Desk, args: &[&str], size: (u16, u16), env: &[(&str, &str)]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo terminal");
        grantpt(&master).expect("it is ours");
        unlockpt(&master).expect("it can be opened");
        let name = ptsname(&master, Vec::new()).expect("it has a name");
        let master = File::from(master);
        resize(&master, size);
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .open(OsStr::from_bytes(name.to_bytes()))
            .expect("its other end");
        // Keys that mean a signal reach those for whom it is the controlling terminal.
        let mut command = Command::new("/usr/bin/setsid");
        command.arg("--ctty").arg(env!("CARGO_BIN_EXE_promptmill")).args(args);
        command.current_dir(desk.dir.path()).env_clear();
        command.env("TERM", "xterm-256color").env("DATABASE_URL", desk.ground.url());
        command.env("PROMPTMILL_WORKER__STATE_DIR", desk.dir.path().join("state"));
        if desk.ground.kind() == Kind::Postgres {
            command.env("PROMPTMILL_DATABASE__SCHEMA", desk.ground.schema());
        }
        command.envs(env.iter().copied());
        let end = || Stdio::from(slave.try_clone().expect("a copy"));
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("it starts");
        drop((slave, command));
        let seen = Arc::new(Mutex::new(Seen {
            screen: vt100::Parser::new(some(size.0), some(size.1), 0),
            bytes: Vec::new(),
        }));
        let (mut from, into) = (master.try_clone().expect("a copy"), Arc::clone(&seen));
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The last one that has it open went away: EIO.
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                let mut seen = into.lock().expect("nobody panics with it");
                seen.screen.process(&buffer[..n]);
                seen.bytes.extend_from_slice(&buffer[..n]);
            }
        });
        Self { master, child, seen, reader: Some(reader) }
    }

    /// Gives the terminal another size.
    pub fn resize(&self, size: (u16, u16)) {
        self.seen().screen.screen_mut().set_size(some(size.0), some(size.1));
        resize(&self.master, size);
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    /// What the screen shows.
    pub fn screen(&self) -> String {
        self.seen().screen.screen().contents()
    }

    /// Whether the other screen is shown, and whether the cursor is.
    pub fn modes(&self) -> (bool, bool) {
        let seen = self.seen();
        (seen.screen.screen().alternate_screen(), !seen.screen.screen().hide_cursor())
    }

    /// All that was written until now.
    pub fn bytes(&self) -> String {
        String::from_utf8_lossy(&self.seen().bytes).into_owned()
    }

    /// Waits until the screen shows this; returns it.
    pub async fn until(&mut self, what: impl Fn(&str) -> bool) -> String {
        let began = Instant::now();
        loop {
            let screen = self.screen();
            if what(&screen) {
                return screen;
            }
            let gone = self.child.try_wait().expect("it can be asked");
            assert!(
                began.elapsed() < PATIENCE && gone.is_none(),
                "{gone:?}, and the screen shows:\n{screen}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the command has ended.
    pub async fn ended(mut self) -> (Left, (bool, bool)) {
        let began = Instant::now();
        let code = loop {
            if let Some(status) = self.child.try_wait().expect("it can be asked") {
                break status.code().unwrap_or(-1);
            }
            assert!(began.elapsed() < PATIENCE, "it does not end, and the screen shows:\n{}", self.screen());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        self.reader.take().expect("it was not joined").join().expect("the reader ends");
        (Left { code, screen: self.screen(), bytes: self.bytes() }, self.modes())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panics with it")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn some(n: u16) -> NonZero<u16> {
    NonZero::new(n).expect("a terminal has lines and columns")
}

fn resize(master: &File, (rows, columns): (u16, u16)) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).expect("it takes a size");
}
