//! Wall clocks that jump by an hour under running daemons.
//!
//! libfaketime moves the wall clock of a process and leaves its monotonic clock alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sqlx::Connection as _;
use tempfile::TempDir;

use crate::mill::harness::{Daemon, Mill};
use crate::support::{Ground, on_both};

on_both!(a_hosts_clock_that_jumps_an_hour_steals_no_lease_and_strands_no_job);

/// A wall clock for some processes.
struct Clock {
    folder: TempDir,
    library: PathBuf,
}

impl Clock {
    fn new() -> Self {
        let library = fs::read_dir("/usr/lib")
            .expect("/usr/lib is there")
            .map(|found| found.expect("a folder").path().join("faketime/libfaketimeMT.so.1"))
            .find(|library| library.exists())
            .expect("libfaketime is not installed: .ci/run does so, or apt-get install libfaketime");
        let clock = Self { folder: tempfile::tempdir().expect("a temporary folder"), library };
        clock.set(0);
        // A server runs as another user.
        Command::new("chmod").args(["-R", "a+rX"]).arg(clock.folder.path()).status().expect("chmod is there");
        clock
    }

    /// Puts the clock so many seconds before or after the real one.
    fn set(&self, seconds: i64) {
        let next = self.folder.path().join("next");
        fs::write(&next, format!("{seconds:+}\n")).expect("the folder can be written");
        // At once, or somebody reads half of it.
        fs::rename(&next, self.file()).expect("the folder can be written");
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("now")
    }

    /// What a process is to be started with to live under this clock.
    fn rules(&self) -> [(&'static str, String); 4] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file().display().to_string()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
        ]
    }
}

/// Two daemons work while the clock jumps an hour forward and two back.
async fn work_through_jumps(mill: &mut Mill<'_>, clock: &Clock, daemons_too: bool) {
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "3");
    mill.set("PROMPTMILL_RETRY__BASE_MS", "4000");
    mill.set("PROMPTMILL_RETRY__MAX_MS", "4000");
    let start = || {
        let mut command = mill.command(&["run"]);
        if daemons_too {
            command.envs(clock.rules());
        }
        Daemon::by(command)
    };
    let (one, two) = (start(), start());
    mill.until("SELECT count(*) FROM workers", "2").await;
    mill.insert(&["long [[tokens 60]] [[delay 7s]]"]).await;
    mill.until_asked(1).await;
    clock.set(3600);
    mill.insert(&["an hour later"]).await;
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "1").await;
    // A call that failed is made again within four seconds; meanwhile the clock goes back two hours.
    let failing: Vec<String> = (0..8).map(|job| format!("{job} [[error 500 x1]]")).collect();
    mill.insert(&failing.iter().map(String::as_str).collect::<Vec<_>>()).await;
    mill.until("SELECT count(*) FROM calls WHERE http_status = 500", "8").await;
    clock.set(-3600);
    mill.insert(&["an hour before"]).await;
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "11").await;
    for daemon in [one, two] {
        let ran = daemon.stop().await;
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(!ran.stderr.contains("is dead"), "{}", ran.stderr);
        assert!(!ran.stderr.contains("row is gone"), "{}", ran.stderr);
        assert!(ran.stderr.contains("clock was put back by"), "the clock did not jump: {}", ran.stderr);
    }
    assert_eq!(mill.ground.line("SELECT claims, crashes FROM job_state WHERE job_id = 1").await, "1|0");
    assert_eq!(mill.api.counts().total, 11 + 8, "one call each, and the failed ones again");
    mill.holds().await;
    mill.ledger_is_the_stand_ins().await;
}

async fn a_hosts_clock_that_jumps_an_hour_steals_no_lease_and_strands_no_job(ground: &Ground) {
    let clock = Clock::new();
    let mut mill = Mill::new(ground).await;
    if ground.kind() == crate::support::Kind::Postgres {
        // The daemon's own clock decides nothing there.
        return own_clock_decides_nothing(&mut mill, &clock).await;
    }
    work_through_jumps(&mut mill, &clock, true).await;
}

/// On Postgres the database's clock stands still while the daemon's jumps.
async fn own_clock_decides_nothing(mill: &mut Mill<'_>, clock: &Clock) {
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "2");
    let mut command = mill.command(&["run"]);
    command.envs(clock.rules());
    let (one, two) = (Daemon::by(command), mill.start());
    mill.until("SELECT count(*) FROM workers", "2").await;
    for (number, offset) in [3600, -3600, 0].into_iter().enumerate() {
        clock.set(offset);
        mill.insert(&["[[error 500 x1]]", "[[delay 1s]]"]).await;
        mill.until(
            "SELECT count(*) FROM results WHERE outcome = 'complete'",
            &(2 * (number + 1)).to_string(),
        )
        .await;
    }
    assert_eq!(mill.ground.line("SELECT max(crashes) FROM job_state").await, "0");
    let odd =
        "SELECT count(*) FROM results WHERE abs(extract(epoch FROM finished_at - clock_timestamp())) > 600";
    assert_eq!(mill.ground.line(odd).await, "0", "no clock of a daemon's is in a table");
    for daemon in [one, two] {
        let ran = daemon.stop().await;
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(!ran.stderr.contains("is dead"), "{}", ran.stderr);
    }
    mill.holds().await;
}

/// A server under a clock of its own; gone when it is dropped.
struct Server {
    process: Child,
    url: String,
    _home: TempDir,
}

impl Server {
    async fn under(clock: &Clock) -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        let path = home.path().display().to_string();
        let bin = bin();
        let root = Command::new("id").arg("-u").output().expect("id is there").stdout == b"0\n";
        // Postgres refuses root. The rules are for the server alone: what root's setpriv would make of
        // them could not be used by another user.
        let run = |rules: &[(&str, String)], program: &Path| {
            let mut command = Command::new(if root { "setpriv" } else { "env" });
            if root {
                command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "env"]);
            }
            command.args(rules.iter().map(|(name, value)| format!("{name}={value}"))).arg(program);
            command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        if root {
            Command::new("chown").args(["65534:65534", &path]).status().expect("chown is there");
        }
        let data = format!("{path}/data");
        let made = run(&[], &bin.join("initdb"))
            .args([
                "-D",
                &data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ])
            .status();
        assert!(made.expect("initdb starts").success(), "initdb failed");
        for _ in 0..8 {
            let port = fastrand::u16(20_000..32_000);
            let mut command = run(&clock.rules(), &bin.join("postgres"));
            command.args(["-D", &data, "-p", &port.to_string(), "-k", &path, "-c", "fsync=off"]);
            command.args(["-c", "listen_addresses=127.0.0.1"]);
            let log = fs::File::create(home.path().join("log")).expect("the folder can be written");
            let mut process = command.stderr(log).spawn().expect("postgres starts");
            let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
            while process.try_wait().expect("it is ours").is_none() {
                if let Ok(connection) = sqlx::PgConnection::connect(&url).await {
                    connection.close().await.expect("it closes");
                    return Self { process, url, _home: home };
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
        let log = fs::read_to_string(home.path().join("log")).unwrap_or_default();
        panic!("Postgres does not start under libfaketime: {log}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGQUIT: at once, and its children with it.
        Command::new("kill").args(["-QUIT", &self.process.id().to_string()]).status().ok();
        self.process.wait().ok();
    }
}

/// The folder with the newest server in it.
fn bin() -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .expect("Debian keeps its servers there")
        .map(|version| version.expect("a folder").path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().expect("a Postgres server: tests/run installs it")
}

#[tokio::test]
async fn a_database_whose_clock_jumps_an_hour_steals_no_lease_and_strands_no_job() {
    let clock = Clock::new();
    let server = Server::under(&clock).await;
    let ground = Ground::postgres_at(&server.url).await;
    let mut mill = Mill::new(&ground).await;
    work_through_jumps(&mut mill, &clock, false).await;
    ground.close().await;
}
