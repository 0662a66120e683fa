//! The files that pages load: compiled in, asked of no other host.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::Web;

const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";

/// Their addresses.
pub fn routes() -> Router<Arc<Web>> {
    Router::new()
        .route("/assets/page.css", get(async || file(CSS, include_str!("../../assets/page.css"))))
        .route("/assets/page.js", get(async || file(JS, include_str!("../../assets/page.js"))))
        .route("/assets/uplot.css", get(async || file(CSS, include_str!("../../assets/uplot.min.css"))))
        .route("/assets/uplot.js", get(async || file(JS, include_str!("../../assets/uplot.min.js"))))
        .route(
            "/assets/uplot.LICENSE",
            get(async || file("text/plain", include_str!("../../assets/uplot.LICENSE"))),
        )
        .route("/assets/icon.svg", get(async || file("image/svg+xml", include_str!("../../assets/icon.svg"))))
}

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
