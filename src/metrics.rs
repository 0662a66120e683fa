//! `/metrics` for Prometheus, `/livez` and `/readyz` for whoever manages the process, on a listener of
//! their own.
//!
//! Nothing here says what stands in a prompt, an answer or a key: names of queues and models, words of
//! the API, and numbers. What is counted comes from [`crate::worker::vitals`], what all daemons share from
//! [`crate::store::gauges`].

mod health;
mod page;
mod shared;
mod text;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Method, Response, StatusCode, Uri};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::shared::Shared;
use crate::listen::{self, Limits};
use crate::store::gauges::Gauge;
use crate::worker::vitals::Vitals;

/// What is served.
pub struct Metrics {
    vitals: Arc<Vitals>,
    /// How long a loop may stand still before the process counts as stuck.
    patience: Duration,
    shared: Arc<Shared>,
}

impl Metrics {
    /// `refresh`: how long what was read of the database stays good.
    pub fn new(vitals: Arc<Vitals>, patience: Duration, refresh: Duration) -> Arc<Self> {
        Arc::new(Self { vitals, patience, shared: Arc::new(Shared::new(refresh)) })
    }

    /// Says where the tables are, once that is known.
    pub fn reads(&self, store: Arc<dyn Gauge>) {
        self.shared.reads(store);
    }

    async fn answer(&self, method: &Method, path: &str) -> Response<String> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match path {
            "/metrics" => {
                let seen = self.shared.look().await;
                let ready = health::faults(&self.vitals).is_empty();
                let page = page::page(&self.vitals, ready, &seen);
                response(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page)
            }
            "/livez" => told(&health::live(&self.vitals, self.patience)),
            "/readyz" => told(&health::ready(&self.vitals)),
            _ => plain(StatusCode::NOT_FOUND, "there is /metrics, /livez and /readyz\n"),
        }
    }
}

/// Answers until the stop.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, stop: CancellationToken) {
    let answer = async move |method: Method, uri: Uri| metrics.answer(&method, uri.path()).await;
    listen::serve(listener, Router::new().fallback(answer), Limits::METRICS, stop).await;
}

fn told(health: &health::Health) -> Response<String> {
    let status = if health.is_well() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    response(status, "application/json", health.json())
}

fn plain(status: StatusCode, text: &str) -> Response<String> {
    response(status, "text/plain; charset=utf-8", text.to_owned())
}

fn response(status: StatusCode, kind: &'static str, body: String) -> Response<String> {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
