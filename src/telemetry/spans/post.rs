//! The HTTP client of the exporter: the one that is here anyway, with the same TLS and the same roots.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response, ResponseBodyTooLarge};
use tokio::runtime::Handle;

use super::told::Told;
use crate::claude::http::{chain, tls};

/// Longest answer of a collector that is read: it says how many spans it did not take, and why.
const ANSWER_MAX: usize = 64 * 1024;

/// Sends batches.
pub(super) struct Post {
    client: reqwest::Client,
    /// The thread that exports has no runtime of its own.
    runtime: Handle,
    told: Arc<Told>,
}

impl fmt::Debug for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Post").finish_non_exhaustive()
    }
}

impl Post {
    /// Calls nobody yet. Has to be called inside a runtime.
    pub(super) fn new(timeout: Duration, told: Arc<Told>) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls().context("TLS")?)
            .user_agent(concat!("promptmill/", env!("CARGO_PKG_VERSION")))
            .timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .http1_only()
            .build()
            .context("the HTTP client")?;
        Ok(Self { client, runtime: Handle::current(), told })
    }
}

#[async_trait]
impl HttpClient for Post {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answered = self.runtime.spawn(send(self.client.clone(), request)).await?;
        answered.inspect_err(|error| self.told.cause(error.to_string()))
    }
}

async fn send(client: reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    // The address may hold a password: no message names it.
    let failed = |error| HttpError::from(chain(error));
    let request = reqwest::Request::try_from(request).map_err(failed)?;
    let mut response = client.execute(request).await.map_err(failed)?;
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        if body.len() + piece.len() > ANSWER_MAX {
            return Err(ResponseBodyTooLarge::new().into());
        }
        body.extend_from_slice(&piece);
    }
    let mut answer = Response::new(Bytes::from(body));
    *answer.status_mut() = response.status();
    *answer.headers_mut() = std::mem::take(response.headers_mut());
    Ok(answer)
}
