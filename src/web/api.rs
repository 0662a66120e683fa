//! The JSON API: what the pages show and do, for programs. `docs/api.md` describes each address.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::fault::Fault;
use super::fields::{Fields, Id};
use super::guard::{Actor, is_there};
use super::pages::{batches, jobs, overview, places, rest};
use super::{Web, act, bulk, job};
use crate::store::Listed;

type Answer = Result<Response, Fault>;

/// Its addresses.
pub fn routes() -> Router<Arc<Web>> {
    Router::new()
        .route("/api/v1/overview", get(overview))
        .route("/api/v1/jobs", get(list).post(ask))
        .route("/api/v1/jobs/act", post(act_on_jobs))
        .route("/api/v1/jobs/{id}", get(one))
        .route("/api/v1/jobs/{id}/partial", get(partial))
        .route("/api/v1/bulk", post(start_bulk))
        .route("/api/v1/bulk/{id}", get(show_bulk))
        .route("/api/v1/batches", get(all_batches))
        .route("/api/v1/batch", get(one_batch).post(act_on_batch))
        .route("/api/v1/queues", get(queues).post(act_on_queue))
        .route("/api/v1/workers", get(workers))
        .route("/api/v1/gates", get(gates).post(act_on_gate))
        .route("/api/v1/errors", get(errors))
        .route("/api/v1/audit", get(audit))
        .route("/api/v1/config", get(config))
}

fn answer(web: &Web, status: StatusCode, value: &Value) -> Response {
    is_there(web);
    let mut answer = (status, value.to_string()).into_response();
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn good(web: &Web, value: &Value) -> Response {
    answer(web, StatusCode::OK, value)
}

async fn overview(State(web): State<Arc<Web>>, fields: Fields) -> Answer {
    Ok(good(&web, &overview::load(&web, &fields).await?.json()))
}

async fn list(State(web): State<Arc<Web>>, fields: Fields) -> Answer {
    let limit = jobs::limit(&fields)?;
    Ok(good(&web, &jobs::load(&web, &fields, limit).await?.json()))
}

async fn one(State(web): State<Arc<Web>>, Id(id): Id, fields: Fields) -> Answer {
    Ok(good(&web, &job::load(&web, id, fields.get("show") == Some("prompt")).await?.json()))
}

async fn partial(State(web): State<Arc<Web>>, Id(id): Id, fields: Fields) -> Answer {
    Ok(good(&web, &job::partial_json(&web, id, &fields).await?))
}

async fn ask(State(web): State<Arc<Web>>, Extension(actor): Extension<Actor>, fields: Fields) -> Answer {
    let like = fields.number("like")?.ok_or_else(|| Fault::bad("like says which job to begin from"))?;
    let job = act::again(&web, &actor, like, &fields).await?;
    Ok(answer(&web, StatusCode::CREATED, &json!({"id": job.0})))
}

async fn act_on_jobs(
    State(web): State<Arc<Web>>,
    Extension(actor): Extension<Actor>,
    fields: Fields,
) -> Answer {
    Ok(good(&web, &act::jobs(&web, &actor, &fields).await?.json()))
}

async fn start_bulk(
    State(web): State<Arc<Web>>,
    Extension(actor): Extension<Actor>,
    fields: Fields,
) -> Answer {
    let done = bulk::post_json(&web, &actor, &fields).await?;
    let status = if done["started"] == true { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok(answer(&web, status, &done))
}

async fn show_bulk(State(web): State<Arc<Web>>, Id(id): Id<u64>) -> Answer {
    Ok(good(&web, &bulk::run_json(&web, id)?))
}

async fn all_batches(State(web): State<Arc<Web>>, fields: Fields) -> Answer {
    Ok(good(&web, &batches::list_json(&web, &fields).await?))
}

async fn one_batch(State(web): State<Arc<Web>>, fields: Fields) -> Answer {
    Ok(good(&web, &batches::one_json(&web, &fields).await?))
}

async fn act_on_batch(
    State(web): State<Arc<Web>>,
    Extension(actor): Extension<Actor>,
    fields: Fields,
) -> Answer {
    Ok(good(&web, &act::batch(&web, &actor, &fields).await?))
}

async fn queues(State(web): State<Arc<Web>>) -> Answer {
    Ok(good(&web, &places::queues_json(&web).await?))
}

async fn act_on_queue(
    State(web): State<Arc<Web>>,
    Extension(actor): Extension<Actor>,
    fields: Fields,
) -> Answer {
    Ok(good(&web, &act::queue(&web, &actor, &fields).await?))
}

async fn workers(State(web): State<Arc<Web>>) -> Answer {
    Ok(good(&web, &places::workers_json(&web).await?))
}

async fn gates(State(web): State<Arc<Web>>, fields: Fields) -> Answer {
    let which = if fields.is_on("all") { Listed::All } else { Listed::Stopped };
    let (gates, more) = places::look_at_gates(&web, which, places::GATES_MAX, |_| true).await?;
    Ok(good(
        &web,
        &json!({"gates": gates.iter().map(|gate| gate.json.clone()).collect::<Vec<_>>(), "more": more}),
    ))
}

async fn act_on_gate(
    State(web): State<Arc<Web>>,
    Extension(actor): Extension<Actor>,
    fields: Fields,
) -> Answer {
    Ok(good(&web, &act::gate(&web, &actor, &fields).await?))
}

async fn errors(State(web): State<Arc<Web>>) -> Answer {
    Ok(good(&web, &rest::errors_json(&web).await?))
}

async fn audit(State(web): State<Arc<Web>>, fields: Fields) -> Answer {
    Ok(good(&web, &rest::audit_json(&web, &fields).await?))
}

async fn config(State(web): State<Arc<Web>>) -> Answer {
    Ok(good(&web, &rest::config_json(&web)))
}
