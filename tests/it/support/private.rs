//! A Postgres of a test's own, which may be restarted, changed and taken away.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// The role that a password is asked of.
pub const WALLED: &str = "walled";

/// A server in a temporary folder; it goes with the value.
pub struct PrivatePostgres {
    home: TempDir,
    bin: PathBuf,
    port: u16,
    /// Run before each command: the server refuses root.
    as_nobody: bool,
}

impl PrivatePostgres {
    /// Makes a cluster and starts it. What is committed survives an immediate stop, though not a power cut.
    pub fn start() -> Self {
        // Short, because a socket's path holds 107 bytes.
        let home = tempfile::Builder::new().prefix("pm").tempdir_in("/tmp").expect("a temporary folder");
        let as_nobody = output(Command::new("id").arg("-u")) == "0";
        if as_nobody {
            output(Command::new("chown").arg("nobody").arg(home.path()));
        }
        let mut server = Self { home, bin: bin(), port: 0, as_nobody };
        let (data, hba) = (server.data(), server.data().join("pg_hba.conf"));
        server.command(
            "initdb",
            &["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
            &data,
        );
        let rules = std::fs::read_to_string(&hba).expect("initdb wrote it");
        std::fs::write(&hba, format!("host all {WALLED} 127.0.0.1/32 scram-sha-256\n{rules}"))
            .expect("it is ours");
        // A port that is free now may be taken a moment later, so several are tried.
        for _ in 0..8 {
            server.port = free_port();
            if server.control(&["start"]) {
                return server;
            }
        }
        panic!("no Postgres starts: {}", std::fs::read_to_string(server.log()).unwrap_or_default());
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// The superuser's URL.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Stops as a crash would, and starts again.
    pub fn restart_at_once(&self) {
        assert!(self.control(&["-m", "immediate", "restart"]), "the server restarts");
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.home.path().join("postgres.log")
    }

    fn control(&self, args: &[&str]) -> bool {
        let home = self.home.path().display();
        let settings = format!(
            "-c listen_addresses=127.0.0.1 -c port={} -c unix_socket_directories={home} -c fsync=off \
             -c full_page_writes=off -c shared_buffers=16MB",
            self.port
        );
        let log = self.log();
        let mut command = self.program("pg_ctl", &self.data());
        command.args(["-w", "-s", "-l"]).arg(log).args(["-o", &settings]).args(args);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    fn command(&self, program: &str, args: &[&str], data: &Path) {
        output(self.program(program, data).args(args));
    }

    fn program(&self, program: &str, data: &Path) -> Command {
        let program = self.bin.join(program);
        let mut command = if self.as_nobody {
            let mut command = Command::new("runuser");
            command.args(["-u", "nobody", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.arg("-D").arg(data).current_dir(self.home.path()).stdin(Stdio::null());
        command
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        self.control(&["-m", "immediate", "stop"]);
    }
}

/// Returns a port that nobody listens on just now.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

/// Runs a command that has to go well, and returns what it printed.
pub fn output(command: &mut Command) -> String {
    let ran = command.output().unwrap_or_else(|err| panic!("{command:?} does not start: {err}"));
    assert!(ran.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8_lossy(&ran.stdout).trim().to_owned()
}

/// The folder with initdb in it: on the path, or the newest that Debian keeps.
fn bin() -> PathBuf {
    let found = output(Command::new("sh").args([
        "-c",
        "command -v initdb || find /usr/lib/postgresql -path '*/bin/initdb' | sort -V | tail -n 1",
    ]));
    let initdb = PathBuf::from(&found);
    initdb.parent().filter(|_| !found.is_empty()).expect("initdb: tests/run installs Postgres").to_owned()
}
