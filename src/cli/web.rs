//! `promptmill web`: the page alone, over a database that daemons elsewhere work on; and, for
//! `promptmill run --web`, what the two have in common.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Stop};
use super::open::{Context, open_directly};
use super::out::say;
use crate::config::{Config, Flags};
use crate::store::board::Board;
use crate::store::{Database, Migrate};
use crate::web::{Settings, Web};

/// Where `--web` alone listens.
pub const LISTEN: &str = "127.0.0.1:8020";
/// Connections of the page, where it has its own: it never takes one from the daemon.
const CONNECTIONS: u32 = 4;
/// Pause between two tries to open the database.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Serves the web page over the database, and works on no job.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to listen, over `web.listen`; port 0 takes a free one [default: 127.0.0.1:8020]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Only show, and change nothing
    #[arg(long)]
    pub read_only: bool,
}

/// Serves until SIGINT or SIGTERM. The URL goes to stdout, for scripts. A database that is not there is
/// told on the page, until it is.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let mut settings = Vec::new();
    if let Some(listen) = &args.listen {
        settings.push(("web.listen".to_owned(), listen.clone()));
    }
    if args.read_only {
        settings.push(("web.read_only".to_owned(), "true".to_owned()));
    }
    let mut config = context.load_with(&Flags { settings, ..context.flags() })?;
    config.web.listen = config.web.listen.or_else(|| LISTEN.parse().ok());
    let log = crate::telemetry::init(&config.log)?;
    let Some(page) = bind(&config).await? else { return Ok(Exit::Good) };
    let mut out = super::out::Out::stdout();
    out.line(&page.url())?;
    out.flush()?;
    let stop = CancellationToken::new();
    let mut int = signal(SignalKind::interrupt()).context("failed to listen for signals")?;
    let mut term = signal(SignalKind::terminate()).context("failed to listen for signals")?;
    let serving = page.serve(&config, stop.clone());
    tokio::pin!(serving);
    tokio::select! {
        () = &mut serving => {}
        _ = int.recv() => stop.cancel(),
        _ = term.recv() => stop.cancel(),
    }
    if stop.is_cancelled() {
        serving.await;
    }
    log.finish(std::time::Duration::from_millis(500));
    Ok(Exit::Good)
}

/// A page that has its address and does not answer yet.
pub struct Page {
    listener: TcpListener,
    settings: Settings,
}

/// Takes the address of the page, if the configuration has one.
pub async fn bind(config: &Config) -> anyhow::Result<Option<Page>> {
    let Some(listen) = config.web.listen else { return Ok(None) };
    let settings =
        Settings::read(&config.web, listen).map_err(|sentence| Stop { exit: Exit::Config, sentence })?;
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        Stop::failure(format!("the web page cannot listen on {listen}: {error}; choose another web.listen"))
    })?;
    let listen = listener.local_addr().context("failed to read the page's address")?;
    Ok(Some(Page { listener, settings: Settings { listen, ..settings } }))
}

impl Page {
    /// Returns where it can be seen.
    pub fn url(&self) -> String {
        format!("http://{}", self.settings.listen)
    }

    /// Answers until the stop, over connections of its own, past the pooler if there is one.
    pub async fn serve(self, config: &Config, stop: CancellationToken) {
        let web = Web::new(config.clone(), self.settings);
        let finding = stop.run_until_cancelled(Box::pin(find(&web, config)));
        let serving = Box::pin(crate::web::serve(self.listener, Arc::clone(&web), stop.clone()));
        tokio::join!(finding, serving);
    }

    /// Answers beside a daemon. On SQLite the page shares its file: there a process has one set of
    /// connections, which it closes and opens together.
    pub async fn serve_beside(
        self,
        config: &Config,
        daemons: oneshot::Receiver<Database>,
        stop: CancellationToken,
    ) {
        if config.database.url.file().is_none() {
            let mut config = config.clone();
            config.database.store.connections_max = CONNECTIONS;
            return self.serve(&config, stop).await;
        }
        let web = Web::new(config.clone(), self.settings);
        let finding = async {
            if let Ok(database) = daemons.await {
                bring(&web, database);
            }
        };
        tokio::join!(finding, Box::pin(crate::web::serve(self.listener, Arc::clone(&web), stop)));
    }
}

/// Brings the page the database as soon as it can be opened; until then the page says why it cannot.
async fn find(web: &Web, config: &Config) {
    let mut config = config.clone();
    // One try at a time: the page says what became of each.
    config.database.connect = Duration::ZERO;
    let store = &mut config.database.store;
    store.operation_max = store.operation_max.min(crate::web::READ_MAX);
    let mut told = String::new();
    loop {
        match open_directly(&config, Migrate::Never).await {
            Ok(opened) => {
                if !told.is_empty() {
                    say("the web page has its database");
                }
                return bring(web, opened.database);
            }
            Err(error) => {
                let why = format!("{error:#}");
                if why != told {
                    say(&format!("the web page has no database yet: {why}"));
                    told.clone_from(&why);
                }
                web.not_found(why);
            }
        }
        tokio::time::sleep(TRY_AGAIN).await;
    }
}

fn bring(web: &Web, database: Database) {
    let (desk, board): (Arc<dyn crate::store::Desk>, Arc<dyn Board>) = match database {
        Database::Sqlite(store) => (store.clone(), store),
        Database::Postgres(store) => (store.clone(), store),
    };
    web.found(desk, board);
}
