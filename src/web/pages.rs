//! The views that only show, each a page and an object for programs made of the same answers.

pub mod batches;
pub mod jobs;
pub mod overview;
pub mod places;
pub mod rest;

use std::sync::Arc;

use axum::Router;
use axum::routing::get;

use super::Web;

/// Their addresses.
pub fn routes() -> Router<Arc<Web>> {
    Router::new()
        .route("/", get(overview::show))
        .route("/jobs", get(jobs::show))
        .route("/batches", get(batches::list))
        .route("/batch", get(batches::show))
        .route("/queues", get(places::queues))
        .route("/workers", get(places::workers))
        .route("/gates", get(places::gates))
        .route("/errors", get(rest::errors))
        .route("/audit", get(rest::audit))
        .route("/config", get(rest::config))
}
