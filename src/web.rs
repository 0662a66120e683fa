//! The web page: what the mill does, as HTML that a browser reads without JavaScript, and as JSON.
//!
//! It asks [`crate::store::board`] and [`crate::store::Desk`], and knows no SQL. What a model or a row
//! says is only ever text: templates escape, the script sets `textContent`. Every request goes through
//! [`guard`]; every change through [`act`], which writes it down first.

mod act;
mod api;
mod assets;
mod bulk;
mod chart;
mod door;
mod export;
mod fault;
mod fields;
mod guard;
mod job;
mod pages;
pub(crate) mod words;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::fault::Fault;
use crate::config::{Config, WebSettings};
use crate::listen;
use crate::store::Desk;
use crate::store::board::Board;

/// Requests that are answered at once.
const AT_ONCE_MAX: usize = 64;
/// Downloads that are under way at once: each takes its time, and holds some answers in memory.
const DOWNLOADS_MAX: usize = 4;
/// Characters that a token has at least.
const TOKEN_MIN: usize = 16;
/// Longest time that one read of the page may take.
pub const READ_MAX: Duration = Duration::from_secs(5);

/// How the page is served.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What opens the door; `None`: it stands open.
    pub token: Option<SecretString>,
    /// Where the token stands: it is looked at again, and a new one ends what the old one opened.
    pub token_file: Option<PathBuf>,
    /// Names that it answers to, beside those of this machine.
    pub hosts: Vec<String>,
    /// Whether it changes nothing.
    pub read_only: bool,
    /// Longest time of one read.
    pub read_max: Duration,
}

impl Settings {
    /// Reads the token and returns the settings.
    ///
    /// # Errors
    /// One sentence for a person.
    pub fn read(web: &WebSettings, listen: SocketAddr) -> Result<Self, String> {
        let token = match &web.token_file {
            None if listen.ip().is_loopback() => None,
            None => {
                return Err(format!(
                    "other machines reach {listen}: name a file with a token in web.token_file"
                ));
            }
            Some(file) => Some(read_token(file)?),
        };
        Ok(Self {
            listen,
            token,
            token_file: web.token_file.clone(),
            hosts: web.hosts.clone(),
            read_only: web.read_only,
            read_max: READ_MAX,
        })
    }
}

/// Reads the token out of its file.
fn read_token(file: &Path) -> Result<SecretString, String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("web.token_file {} cannot be read: {error}", file.display()))?;
    let token = text.trim();
    if token.chars().count() < TOKEN_MIN || !token.chars().all(|c| c.is_ascii_graphic()) {
        return Err(format!(
            "web.token_file {} must hold one token of {TOKEN_MIN} characters or more, all of them visible ASCII",
            file.display()
        ));
    }
    Ok(SecretString::from(token))
}

/// What all requests share.
pub struct Web {
    database: OnceLock<(Arc<dyn Desk>, Arc<dyn Board>)>,
    /// Why there is no database yet.
    missing: Mutex<String>,
    config: Config,
    settings: Settings,
    door: door::Door,
    bulks: bulk::Bulks,
    forms: act::Forms,
    places: Arc<Semaphore>,
    /// Places for who is not let in yet.
    knocking: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    /// Since when the database has not answered.
    away: Mutex<Option<Instant>>,
}

impl Web {
    /// Makes the page, which says of everything that there is no database until [`Web::found`] brings one.
    pub fn new(config: Config, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            database: OnceLock::new(),
            missing: Mutex::new("the database is not open yet".to_owned()),
            config,
            door: door::Door::new(settings.token.as_ref(), settings.token_file.clone()),
            settings,
            bulks: bulk::Bulks::default(),
            forms: act::Forms::default(),
            places: Arc::new(Semaphore::new(AT_ONCE_MAX)),
            knocking: Arc::new(Semaphore::new(AT_ONCE_MAX)),
            downloads: Arc::new(Semaphore::new(DOWNLOADS_MAX)),
            away: Mutex::new(None),
        })
    }

    /// Brings the database, which is open; the first one stays.
    pub fn found(&self, desk: Arc<dyn Desk>, board: Arc<dyn Board>) {
        self.database.set((desk, board)).ok();
    }

    /// Says why there is no database yet.
    pub fn not_found(&self, why: String) {
        *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn desk(&self) -> Result<&dyn Desk, Fault> {
        self.database.get().map(|(desk, _)| &**desk).ok_or_else(|| self.no_database())
    }

    fn board(&self) -> Result<&dyn Board, Fault> {
        self.database.get().map(|(_, board)| &**board).ok_or_else(|| self.no_database())
    }

    fn no_database(&self) -> Fault {
        Fault::away(self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Serves until the stop.
pub async fn serve(listener: TcpListener, web: Arc<Web>, stop: CancellationToken) {
    listen::serve(listener, router(web), listen::Limits::PAGE, stop).await;
}

fn router(web: Arc<Web>) -> Router {
    Router::new()
        .merge(assets::routes())
        .merge(door::routes())
        .merge(pages::routes())
        .merge(job::routes())
        .merge(act::routes())
        .merge(bulk::routes())
        .merge(export::routes())
        .merge(api::routes())
        .fallback(fault::nothing_here)
        .method_not_allowed_fallback(fault::not_this_way)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&web), guard::guard))
        .with_state(web)
}
