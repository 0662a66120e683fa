//! Starts the real binary with a clean environment, and reads what it left in the tables.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child as Process, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use promptmill::stand_in::{Options, Running, StandIn};
use tempfile::TempDir;

use crate::support::{Ground, Kind};

/// Longest time that any one step of a test may take.
const STEP_MAX: Duration = Duration::from_mins(1);

/// A mill on a ground, with an API of its own.
pub struct Mill<'g> {
    pub ground: &'g Ground,
    pub api: Running,
    env: Vec<(String, String)>,
    home: TempDir,
}

/// How a run of the binary ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl<'g> Mill<'g> {
    pub async fn new(ground: &'g Ground) -> Self {
        Self::with(ground, Options::default()).await
    }

    pub async fn with(ground: &'g Ground, options: Options) -> Self {
        let api = StandIn::start(options).await.expect("the stand-in starts");
        let home = tempfile::tempdir().expect("a temporary folder");
        let mut mill = Self { ground, api, env: Vec::new(), home };
        // Fast where the product is patient; a test that is about a time sets it itself.
        mill.set("PROMPTMILL_RETRY__BASE_MS", "5");
        mill.set("PROMPTMILL_RETRY__MAX_MS", "40");
        mill.set("PROMPTMILL_BREAKER__OPEN_MS", "50");
        mill.set("PROMPTMILL_BREAKER__OPEN_MAX_MS", "200");
        mill.set("ANTHROPIC_API_KEY", "sk-ant-test");
        mill.set("ANTHROPIC_BASE_URL", &mill.api.url());
        // With the rights that a daemon is to have, and no more.
        mill.set("DATABASE_URL", &ground.worker_url().await);
        let state = mill.state().display().to_string();
        mill.set("PROMPTMILL_WORKER__STATE_DIR", &state);
        if ground.kind() == Kind::Postgres {
            mill.set("PROMPTMILL_DATABASE__SCHEMA", ground.schema());
        }
        mill
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.env.retain(|(have, _)| have != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Names a limit that nobody reaches, so that calls need not begin one at a time.
    pub fn knows_a_limit(&mut self) {
        self.set("PROMPTMILL_MODELS__CLAUDE_SONNET_5_5__REQUESTS_PER_MINUTE", "600000");
    }

    pub fn unset(&mut self, name: &str) {
        self.env.retain(|(have, _)| have != name);
    }

    pub fn home(&self) -> PathBuf {
        self.home.path().to_owned()
    }

    /// Where it keeps what the database cannot take.
    pub fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }

    /// The binary with these arguments, in a clean environment and a folder of its own.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_promptmill"));
        command.args(args).env_clear().envs(self.env.iter().cloned()).current_dir(self.home.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the binary to its end.
    pub async fn run(&self, args: &[&str]) -> Ran {
        wait(Child::start(self.command(args))).await
    }

    /// Runs `run --drain` to its end.
    pub async fn drain(&self) -> Ran {
        self.run(&["run", "--drain"]).await
    }

    /// Starts the daemon.
    pub fn start(&self) -> Daemon {
        Daemon::by(self.command(&["run"]))
    }

    /// The same mill on another ground, to look at and to insert into.
    pub fn on(self, ground: &Ground) -> Mill<'_> {
        Mill { ground, api: self.api, env: self.env, home: self.home }
    }

    /// Waits until a daemon has said this.
    pub async fn until_said(&self, daemon: &Daemon, words: &str) {
        let deadline = Instant::now() + STEP_MAX;
        loop {
            let said = daemon.said();
            if said.contains(words) {
                return;
            }
            assert!(Instant::now() < deadline, "it never said {words:?}, but:\n{said}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Inserts prompts, one job each.
    pub async fn insert(&self, prompts: &[&str]) {
        for prompt in prompts {
            self.ground
                .run(&format!("INSERT INTO jobs (prompt) VALUES ('{}')", prompt.replace('\'', "''")))
                .await;
        }
    }

    /// Waits until a query gives a line. The state of the tables is the barrier.
    pub async fn until(&self, sql: &str, line: &str) {
        let deadline = Instant::now() + STEP_MAX;
        loop {
            let now = self.ground.lines(sql).await.join("\n");
            if now == line {
                return;
            }
            assert!(Instant::now() < deadline, "still {now:?} and not {line:?}: {sql}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the stand-in has been asked so often.
    pub async fn until_asked(&self, calls: u64) {
        let deadline = Instant::now() + STEP_MAX;
        while self.api.counts().total < calls {
            assert!(Instant::now() < deadline, "asked {} times, not {calls}", self.api.counts().total);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The law of every test: each done job has one result, no other job has one, and the ledger
    /// knows every call that the stand-in was asked.
    pub async fn holds(&self) {
        let wrong = "SELECT count(*) FROM job_state s FULL JOIN results r ON r.job_id = s.job_id
                      WHERE (coalesce(s.state, '') = 'done') <> (r.job_id IS NOT NULL)";
        let wrong = self.ground.either(
            "SELECT (SELECT count(*) FROM job_state s LEFT JOIN results r ON r.job_id = s.job_id
                      WHERE (s.state = 'done') <> (r.job_id IS NOT NULL))
                  + (SELECT count(*) FROM results r WHERE r.job_id NOT IN (SELECT job_id FROM job_state))",
            wrong,
        );
        assert_eq!(self.ground.line(wrong).await, "0", "done jobs and results are not the same");
    }

    /// What the ledger knows is what the stand-in was asked, call by call.
    pub async fn ledger_is_the_stand_ins(&self) {
        let calls = self.ground.line("SELECT count(*) FROM calls").await;
        assert_eq!(calls, self.api.counts().total.to_string(), "the ledger is not what the API was asked");
    }
}

/// A daemon that runs until it is stopped; killed when it is dropped.
pub struct Daemon {
    child: Option<Child>,
}

impl Daemon {
    /// Starts one by a command made of [`Mill::command`].
    pub fn by(command: Command) -> Self {
        Self { child: Some(Child::start(command)) }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// What it has logged so far.
    pub fn said(&self) -> String {
        let heard = &self.child.as_ref().expect("it runs").heard;
        String::from_utf8_lossy(&heard.lock().expect("the reader lives")).into_owned()
    }

    /// Sends it a signal: `-STOP`.
    pub fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().expect("kill is there");
        assert!(sent.success());
    }

    /// SIGTERM, and its end.
    pub async fn stop(mut self) -> Ran {
        self.signal("-TERM");
        wait(self.child.take().expect("it runs")).await
    }

    /// SIGTERM without waiting.
    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> Ran {
        wait(self.child.take().expect("it runs")).await
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        let process = &mut self.child.as_mut().expect("it runs").process;
        process.try_wait().expect("it is our child").is_some()
    }

    /// SIGKILL: it gets to do nothing more.
    pub async fn kill(mut self) -> Ran {
        self.signal("-KILL");
        wait(self.child.take().expect("it runs")).await
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.process.kill().ok();
            child.process.wait().ok();
        }
    }
}

/// A process whose output is read as it comes: a pipe that nobody reads stops who writes into it.
struct Child {
    process: Process,
    stdout: JoinHandle<String>,
    stderr: JoinHandle<String>,
    /// What came on stderr so far.
    heard: Heard,
}

type Heard = Arc<Mutex<Vec<u8>>>;

impl Child {
    fn start(mut command: Command) -> Self {
        let mut process = command.spawn().expect("the binary starts");
        let stdout = read(process.stdout.take().expect("it is piped"), Heard::default());
        let heard = Heard::default();
        let stderr = read(process.stderr.take().expect("it is piped"), Arc::clone(&heard));
        Self { process, stdout, stderr, heard }
    }

    fn id(&self) -> u32 {
        self.process.id()
    }

    fn end(mut self) -> Ran {
        let status = self.process.wait().expect("the binary ends");
        Ran {
            code: status.code().unwrap_or(-1),
            stdout: self.stdout.join().expect("the reader lives"),
            stderr: self.stderr.join().expect("the reader lives"),
        }
    }
}

fn read(mut from: impl Read + Send + 'static, heard: Heard) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        loop {
            let many = from.read(&mut piece).expect("the pipe can be read");
            let mut heard = heard.lock().expect("who looks does not panic");
            if many == 0 {
                return String::from_utf8_lossy(&heard).into_owned();
            }
            heard.extend_from_slice(&piece[..many]);
        }
    })
}

async fn wait(child: Child) -> Ran {
    let pid = child.id();
    let mut ended = tokio::task::spawn_blocking(move || child.end());
    if let Ok(ended) = tokio::time::timeout(STEP_MAX * 2, &mut ended).await {
        return ended.expect("the waiting thread lives");
    }
    Command::new("kill").args(["-KILL", &pid.to_string()]).status().ok();
    let said = ended.await.expect("the waiting thread lives").stderr;
    panic!("the binary did not end within {} s; it said:\n{said}", STEP_MAX.as_secs() * 2);
}
