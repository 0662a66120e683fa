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
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, WebSettings};
use crate::store::Desk;
use crate::store::board::Board;

/// Requests that are answered at once.
const AT_ONCE_MAX: usize = 64;
/// Characters that a token has at least.
const TOKEN_MIN: usize = 16;

/// How the page is served.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What opens the door; `None`: it stands open.
    pub token: Option<SecretString>,
    /// Names that it answers to, beside those of this machine.
    pub hosts: Vec<String>,
    /// Whether it changes nothing.
    pub read_only: bool,
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
            Some(file) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|error| format!("web.token_file {} cannot be read: {error}", file.display()))?;
                let token = text.trim();
                if token.chars().count() < TOKEN_MIN || !token.chars().all(|c| c.is_ascii_graphic()) {
                    return Err(format!(
                        "web.token_file {} must hold one token of {TOKEN_MIN} characters or more, all of them visible ASCII",
                        file.display()
                    ));
                }
                Some(SecretString::from(token))
            }
        };
        Ok(Self { listen, token, hosts: web.hosts.clone(), read_only: web.read_only })
    }
}

/// What all requests share.
pub struct Web {
    desk: Arc<dyn Desk>,
    board: Arc<dyn Board>,
    config: Config,
    settings: Settings,
    door: door::Door,
    bulks: bulk::Bulks,
    places: Arc<Semaphore>,
    /// Since when the database has not answered.
    away: Mutex<Option<Instant>>,
}

impl Web {
    /// Makes the page over an open database.
    pub fn new(desk: Arc<dyn Desk>, board: Arc<dyn Board>, config: Config, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            desk,
            board,
            config,
            door: door::Door::new(settings.token.as_ref()),
            settings,
            bulks: bulk::Bulks::default(),
            places: Arc::new(Semaphore::new(AT_ONCE_MAX)),
            away: Mutex::new(None),
        })
    }
}

/// Serves until the stop.
pub async fn serve(listener: TcpListener, web: Arc<Web>, stop: CancellationToken) {
    let app = router(web).into_make_service_with_connect_info::<SocketAddr>();
    let served = axum::serve(listener, app).with_graceful_shutdown(stop.clone().cancelled_owned());
    // A browser keeps its connections: nobody waits for them.
    tokio::select! {
        served = async { served.await } => {
            if let Err(error) = served {
                tracing::error!(%error, "the web page stopped: {error}");
            }
        }
        () = async { stop.cancelled().await; tokio::time::sleep(guard::LAST_ANSWERS).await } => {}
    }
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
