//! The Claude Messages API: one call, streamed, folded into a reply.
//!
//! Knows HTTP and the domain, never the database. One exchange in, everything that came back out,
//! with how it ended: no retries, no opinions about errors (see [`crate::domain::retry`]).

pub mod count;
pub mod fold;
pub mod http;
pub mod models;
pub mod sse;
pub mod wire;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::domain::model::Catalogue;
use crate::domain::outcome::Failure;
use crate::domain::reply::Exchange;
use crate::domain::talk::Request;

/// Who listens while a call runs.
pub struct Listener<'a> {
    /// Hangs up: the exchange ends with [`Failure::Stopped`] and what had arrived.
    pub stop: &'a CancellationToken,
    /// Called once, at the first content event: a probe has succeeded then.
    pub on_content: &'a (dyn Fn() + Send + Sync),
    /// Called with text as it comes: what text blocks gained since the last time, in order.
    pub on_text: &'a (dyn Fn(&str) + Send + Sync),
}

/// The API.
#[async_trait]
pub trait Claude: Send + Sync {
    /// Asks once. Never fails: a failure is the exchange's end.
    async fn ask(&self, request: &Request, listener: Listener<'_>) -> Exchange;

    /// Asks whether the key is good, for free (`GET /v1/models`).
    async fn check(&self) -> Result<(), Failure>;

    /// Lists the models of the API, the retired ones too, for free (`GET /v1/models`): it says whether the
    /// key is good as [`Claude::check`] does. Servers without such a list answer with a failure.
    async fn models(&self) -> Result<Catalogue, Failure>;

    /// Has the input of a call counted, for free and by limits of its own (`POST
    /// /v1/messages/count_tokens`): it says nothing about the pace of calls, nor about the model's
    /// health. Asks once; [`Failure::Stopped`] where it was told to stop.
    async fn count_tokens(&self, request: &Request, stop: &CancellationToken) -> Result<i64, Failure>;

    /// Reads the key file again; returns whether the key changed.
    fn reload_key(&self) -> bool;

    /// Names the key without telling it: the first 8 hex digits of its SHA-256.
    fn fingerprint(&self) -> String;

    /// Which host and port calls go to, where there is one.
    fn server(&self) -> Option<(&str, u16)>;
}
