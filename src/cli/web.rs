//! `promptmill web`: the page alone, over a database that daemons elsewhere work on; and, for
//! `promptmill run --web`, what the two have in common.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
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

/// Serves until SIGINT or SIGTERM. The URL goes to stdout, for scripts.
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
    let opened = open_directly(&config, Migrate::Never).await?;
    let Some(page) = bind(&config).await? else { return Ok(Exit::Good) };
    let mut out = super::out::Out::stdout();
    out.line(&page.url())?;
    out.flush()?;
    let stop = CancellationToken::new();
    let mut int = signal(SignalKind::interrupt()).context("failed to listen for signals")?;
    let mut term = signal(SignalKind::terminate()).context("failed to listen for signals")?;
    let serving = page.serve(&config, &opened.database, stop.clone());
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

    /// Answers until the stop.
    pub async fn serve(self, config: &Config, database: &Database, stop: CancellationToken) {
        let (desk, board): (Arc<dyn crate::store::Desk>, Arc<dyn Board>) = match database {
            Database::Sqlite(store) => (store.clone(), store.clone()),
            Database::Postgres(store) => (store.clone(), store.clone()),
        };
        crate::web::serve(self.listener, Web::new(desk, board, config.clone(), self.settings), stop).await;
    }

    /// Answers beside a daemon: on Postgres over connections of its own, past the pooler if there is one.
    pub async fn serve_beside(self, config: &Config, database: &Database, stop: CancellationToken) {
        let database = match database {
            Database::Sqlite(_) => database.clone(),
            Database::Postgres(_) => {
                let mut config = config.clone();
                config.database.store.connections_max = CONNECTIONS;
                match open_directly(&config, Migrate::Never).await {
                    Ok(opened) => opened.database,
                    Err(error) => {
                        say(&format!("the web page has no database: {error:#}"));
                        return;
                    }
                }
            }
        };
        self.serve(config, &database, stop).await;
    }
}
