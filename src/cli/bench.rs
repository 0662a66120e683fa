//! `promptmill bench`: what the mill does on this machine and on this database.
//!
//! Everything is measured from outside: the binary runs as a process of its own against the
//! stand-in, on a database made for it that is gone afterwards. Beside it, in turns, runs what it is
//! held against: [`bare_loop`], plain HTTP calls with no queue and no database, and [`bare_sql`],
//! the same rows moved by plain SQL. Nothing of the user's environment or configuration is read.

mod bare_loop;
mod bare_sql;
mod child;
mod claim;
mod daemons;
mod drain;
mod enqueue;
mod history;
mod latency;
mod page;
mod place;
mod prompt;
mod report;
mod server;
mod slow;
mod wake;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum as _;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use self::bare_loop::Loop;
use self::child::{Child, Ended, Start};
use self::place::{Database, Kind, Place};
use self::report::Report;
use super::exit::{Exit, Stop};
use super::files;
use super::open::Context;
use super::out::{Out, say};

/// Measures what the mill does here: on this machine, and on this database.
///
/// Each measurement runs the daemon as a process of its own against the stand-in API, on a database that is made
/// for it and dropped at the end: a SQLite file (synchronous=FULL), and with --postgres a database on that server,
/// with the server's own settings, which are told. In turns with it run what it is held against: a bare loop of
/// streamed HTTP calls without queue and database, and the same rows moved by bare SQL in batches of 256.
/// Take the figures on a machine that does nothing else; the load at the start is told too.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// What to measure [default: all but history and page]
    #[arg(value_name = "WHAT", value_enum)]
    what: Vec<What>,
    /// Only on this database; may be given twice [default: sqlite, and postgres where --postgres is given]
    #[arg(long = "database", value_name = "DATABASE", value_enum)]
    databases: Vec<Kind>,
    /// Postgres server to measure on too, as a role that may create databases
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// Folder for the SQLite files: on the disk that is to be measured [default: the system's temporary folder]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
    /// Runs of each measurement; what is shown is the one in the middle
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Millions of jobs that `history` fills in, finished and pending each, and `page` in all
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    millions: u32,
    /// Smaller and shorter: a look within minutes
    #[arg(long)]
    quick: bool,
    /// Another build of promptmill to measure in place of this one
    #[arg(long, value_name = "FILE", hide = true)]
    mill: Option<PathBuf>,
    /// Jobs of each measurement
    #[arg(long, value_name = "N", hide = true, value_parser = clap::value_parser!(u64).range(1..))]
    jobs: Option<u64>,
    #[command(flatten)]
    bare: Loop,
}

/// Calls a minute that nobody reaches here.
const NO_LIMIT: (&str, &str) = ("PROMPTMILL_MODELS__CLAUDE_SONNET_5_5__REQUESTS_PER_MINUTE", "60000000");

const AFTER_HELP: &str = "\
Figures go to stdout as a table, or with --json as {machine, versions, settings, results}; progress goes to stderr.
A password does not belong on a command line: PGPASSWORD and ~/.pgpass are read.";

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Rows a second into the table: one INSERT … SELECT, single INSERTs, `promptmill enqueue` (2 min)
    Enqueue,
    /// Jobs a second from the table to the results without latency, CPU, memory, bytes of log (2 min)
    Drain,
    /// Jobs a second where each call takes 0, 20 or 200 ms and 1, 64, 256 or 4096 are in flight (15 min)
    Latency,
    /// Jobs and bytes a second with prompts of 1, 20 and 200 KB (4 min)
    Prompts,
    /// How long a claim takes, idle and while another task settles (1 min)
    Claim,
    /// From an INSERT to the call, idle and under load (5 min)
    Wake,
    /// From the start of the daemon to its first call (1 min)
    Start,
    /// CPU and memory of a daemon with nothing to do (3 min)
    Idle,
    /// 10,000 slow streams at once: memory, CPU, the heartbeat; requests of 5 and 30 MB (15 min)
    Slow,
    /// Claims and settles with millions of jobs finished, pending and scheduled; only where it is named (40 min)
    History,
    /// Time of each view of the web page over --millions of jobs; only where it is named (20 min)
    Page,
    /// 1, 2, 4 and 8 daemons over one Postgres, and where the time goes (3 min)
    Daemons,
}

impl What {
    /// All, in the order in which they are measured.
    const ALL: [Self; 12] = [
        Self::Enqueue,
        Self::Drain,
        Self::Latency,
        Self::Prompts,
        Self::Claim,
        Self::Wake,
        Self::Start,
        Self::Idle,
        Self::Slow,
        Self::Daemons,
        Self::History,
        Self::Page,
    ];

    /// Whether it is measured where this was asked for.
    fn is_among(self, asked: &[Self]) -> bool {
        asked.contains(&self) || asked.is_empty() && !matches!(self, Self::History | Self::Page)
    }
}

/// A run: where, with what, and what came of it.
struct Bench {
    place: Place,
    /// The binary that is measured.
    mill: Start,
    /// This binary: it brings the stand-in and the bare loop.
    own: Start,
    kinds: Vec<Kind>,
    runs: u32,
    quick: bool,
    jobs: Option<usize>,
    millions: u32,
    report: Report,
}

/// A stand-in of our own.
struct Api {
    child: Child,
    url: String,
    http: reqwest::Client,
}

/// What the bare loop came to.
struct Looped {
    /// Calls a second over the whole run.
    rate: f64,
    /// Calls a second in its steady part, where there is one.
    steady: Option<f64>,
    /// CPU seconds of the loop for a thousand calls.
    cpu_a_thousand: f64,
    /// The same of the stand-in.
    api_a_thousand: f64,
    /// Most memory, in MB.
    peak_mb: f64,
}

/// Measures what was asked for.
pub(super) async fn run(args: Args, context: &Context) -> anyhow::Result<Exit> {
    if args.bare.url.is_some() {
        return bare_loop::run(&args.bare).await.map(|()| Exit::Good);
    }
    let kinds = kinds(&args)?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let place = Place::make(
        args.dir.as_deref(),
        args.postgres.as_deref().filter(|_| kinds.contains(&Kind::Postgres)),
    );
    let mut bench = Bench::new(&args, kinds, place.await?)?;
    files::raise();
    let machine = report::machine();
    let done = tokio::select! {
        biased;
        _ = interrupt.recv() => Err(Stop::failure("interrupted: what was measured until then is above")),
        _ = terminate.recv() => Err(Stop::failure("stopped: what was measured until then is above")),
        done = bench.measure(&args.what) => done.map_err(plainly),
    };
    let described = bench.place.describe(&bench.kinds).await;
    let removed = bench.place.remove().await;
    let (versions, settings) = described?;
    let mut out = Out::stdout();
    if context.json {
        let mut settings = settings;
        settings["runs"] = args.runs.into();
        settings["quick"] = args.quick.into();
        let all = json!({ "machine": machine, "versions": versions, "settings": settings, "results": bench.report.json() });
        out.line(&serde_json::to_string_pretty(&all)?)?;
    } else {
        bench.report.table(&mut out)?;
        out.line(&format!("machine: {machine}\nversions: {versions}\nsettings: {settings}"))?;
    }
    out.flush()?;
    done.and(removed).map(|()| Exit::Good)
}

/// What the database said, of an error that is its own, a full disk, say.
fn plainly(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<sqlx::Error>() {
        Some(said) => {
            Stop::failure(format!("the measurement broke off; the database said: {}", place::said(said)))
        }
        None => error,
    }
}

fn kinds(args: &Args) -> anyhow::Result<Vec<Kind>> {
    let mut kinds = args.databases.clone();
    if kinds.is_empty() {
        kinds.push(Kind::Sqlite);
        if args.postgres.is_some() {
            kinds.push(Kind::Postgres);
        } else {
            say("only SQLite is measured: --postgres URL names a server to measure on too");
        }
    }
    if kinds.contains(&Kind::Postgres) && args.postgres.is_none() {
        return Err(Stop::usage(
            "--database postgres needs --postgres URL: a server on which a database can be made",
        ));
    }
    kinds.sort_unstable();
    kinds.dedup();
    Ok(kinds)
}

impl Bench {
    fn new(args: &Args, kinds: Vec<Kind>, place: Place) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this very program")?;
        let own = Start { program, folder: place.folder().to_owned() };
        let mill = match &args.mill {
            Some(other) => {
                let program = other.canonicalize().with_context(|| format!("no {}", other.display()))?;
                Start { program, ..own.clone() }
            }
            None => own.clone(),
        };
        Ok(Self {
            place,
            mill,
            own,
            kinds,
            runs: args.runs,
            quick: args.quick,
            jobs: args.jobs.map(|jobs| jobs as usize),
            millions: args.millions,
            report: Report::default(),
        })
    }

    async fn measure(&mut self, asked: &[What]) -> anyhow::Result<()> {
        for what in What::ALL {
            if !what.is_among(asked) {
                continue;
            }
            if let Some(name) = what.to_possible_value() {
                say(name.get_name());
            }
            match what {
                What::Enqueue => enqueue::measure(self).await?,
                What::Drain => drain::measure(self).await?,
                What::Latency => latency::latency(self).await?,
                What::Prompts => latency::prompts(self).await?,
                What::Claim => claim::measure(self).await?,
                What::Wake => wake::wake(self).await?,
                What::Start => wake::start(self).await?,
                What::Idle => wake::idle(self).await?,
                What::Slow => slow::measure(self).await?,
                What::Daemons => daemons::measure(self).await?,
                What::History => history::measure(self).await?,
                What::Page => page::measure(self).await?,
            }
        }
        Ok(())
    }

    /// How many jobs a measurement has.
    fn size(&self, usual: usize, quick: usize) -> usize {
        self.jobs.unwrap_or(if self.quick { quick } else { usual })
    }

    /// Starts a stand-in.
    async fn api(&self, options: &[&str]) -> anyhow::Result<Api> {
        let args = [&["stand-in", "--listen", "127.0.0.1:0", "--calls-kept", "1"], options].concat();
        let mut child = self.own.start(&args, &[])?;
        let url = child.first_line().await?;
        Ok(Api { child, url, http: bare_loop::client()? })
    }

    /// Runs the bare loop.
    async fn bare_loop(
        &self,
        api: &Api,
        calls: usize,
        in_flight: usize,
        bytes: usize,
    ) -> anyhow::Result<Looped> {
        let [many, at_once, bytes] = [calls, in_flight, bytes].map(|number| number.to_string());
        let args =
            ["bench", "--bare-loop", &api.url, "--calls", &many, "--in-flight", &at_once, "--bytes", &bytes];
        let before = api.child.cpu();
        let ended = self.own.start(&args, &[])?.wait().await?;
        let api_cpu = api.child.cpu().saturating_sub(before);
        let said: bare_loop::Looped =
            serde_json::from_str(&ended.out).context("the bare loop is not understood")?;
        anyhow::ensure!(said.whole == calls, "the bare loop brought {} of {calls} answers", said.whole);
        let a_thousand = |cpu: Duration| cpu.as_secs_f64() * 1_000.0 / calls as f64;
        Ok(Looped {
            rate: calls as f64 / ended.took.as_secs_f64(),
            steady: said.steady,
            cpu_a_thousand: a_thousand(ended.used.cpu),
            api_a_thousand: a_thousand(api_cpu),
            peak_mb: ended.used.peak as f64 / 1e6,
        })
    }

    /// Starts the daemon.
    fn daemon(
        &self,
        database: &Database,
        url: &str,
        args: &[&str],
        vars: &[(&str, &str)],
    ) -> anyhow::Result<Child> {
        let own = [
            ("DATABASE_URL", database.url.as_str()),
            ("ANTHROPIC_BASE_URL", url),
            ("ANTHROPIC_API_KEY", "bench"),
            ("PROMPTMILL_LOG__LEVEL", "warn"),
            ("PROMPTMILL_WORKER__STATE_DIR", &self.place.folder().join("state").display().to_string()),
        ];
        self.mill.start(&[&["run"], args].concat(), &[&own, vars].concat())
    }

    /// Runs the daemon until nothing is left, with a limit that nobody reaches: where none is known calls are
    /// spaced as long as none was refused, and what is measured is that.
    async fn drain(
        &self,
        database: &Database,
        api: &Api,
        in_flight: usize,
        vars: &[(&str, &str)],
    ) -> anyhow::Result<Ended> {
        let args = ["--drain", "--concurrency", &in_flight.to_string()];
        self.daemon(database, &api.url, &args, &[&[NO_LIMIT], vars].concat())?.wait().await
    }
}

impl Api {
    /// Returns a number that it counts.
    async fn counted(&self, name: &str) -> anyhow::Result<u64> {
        let counts = self.http.get(format!("{}/stand-in/calls", self.url)).send().await?.bytes().await?;
        let counts: serde_json::Value = serde_json::from_slice(&counts)?;
        counts[name].as_u64().with_context(|| format!("the stand-in counts no {name}"))
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.child.stop().await.map(|_| ())
    }
}
