//! A tool that is an address: one POST a call, and the body of a 2xx is the result.
//!
//! No redirects, no retries, no proxies: what the configuration names is what is asked, once.

use std::fmt;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Method, Response, Url};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use super::{Failing, Given, Limits, Stopped, WORDS_MAX, text, words};
use crate::claude::http::{chain, tls};
use crate::domain::job::JobId;
use crate::domain::tool::ToolCall;

/// Longest time for name, connection and TLS; the tool's own limit may be shorter.
const CONNECT: Duration = Duration::from_secs(10);

/// An address and how to ask it. Its `Debug` tells no token.
#[derive(Clone)]
pub struct EndpointSettings {
    /// `url`: http or https.
    pub url: Url,
    /// Sent as `authorization: Bearer …`.
    pub token: Token,
}

impl fmt::Debug for EndpointSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointSettings").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

/// Who we say that we are.
#[derive(Clone)]
pub enum Token {
    /// Nobody.
    None,
    /// This.
    Known(SecretString),
    /// What a variable holds that is not set.
    Missing {
        /// Its name.
        variable: String,
    },
}

/// What is sent.
#[derive(Serialize)]
struct Question<'a> {
    tool: &'a str,
    job_id: i64,
    /// The same for a call that is run again, and for no other.
    call_id: &'a str,
    input: &'a RawValue,
}

/// Returns the client of all tools.
pub(super) fn client() -> Result<Client, String> {
    let roots = tls().map_err(|err| err.to_string())?;
    Client::builder()
        .tls_backend_preconfigured(roots)
        .user_agent(concat!("promptmill/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        .http1_only()
        .build()
        .map_err(chain)
}

/// Asks once.
pub(super) async fn run(
    client: &Client,
    settings: &EndpointSettings,
    limits: Limits,
    job: JobId,
    call: &ToolCall,
    stop: &CancellationToken,
) -> Result<Given, Stopped> {
    let post = match post(settings, job, call) {
        Ok(post) => post,
        Err(why) => return Ok(Err(Failing::Unasked(why))),
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(Stopped),
        given = tokio::time::timeout(limits.time, ask(client, post, limits.output)) => {
            Ok(given.unwrap_or_else(|_| Err(Failing::Late(limits.time, String::new()))))
        }
    }
}

fn post(settings: &EndpointSettings, job: JobId, call: &ToolCall) -> Result<reqwest::Request, String> {
    let input: &RawValue =
        serde_json::from_str(&call.input).map_err(|err| format!("its input is not JSON: {err}"))?;
    let question = Question { tool: &call.name, job_id: job.0, call_id: &call.call_id, input };
    let body = serde_json::to_vec(&question).map_err(|err| err.to_string())?;
    let mut post = reqwest::Request::new(Method::POST, settings.url.clone());
    let headers: &mut HeaderMap = post.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // A compressed body would be unpacked before its size is known.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    match &settings.token {
        Token::None => {}
        Token::Known(token) => {
            let bearer = format!("Bearer {}", token.expose_secret().trim());
            let mut bearer: HeaderValue =
                bearer.parse().map_err(|_| "its token has characters that no header takes".to_owned())?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        Token::Missing { variable } => return Err(format!("the variable {variable} is not set")),
    }
    *post.body_mut() = Some(body.into());
    Ok(post)
}

async fn ask(client: &Client, post: reqwest::Request, output_max: usize) -> Given {
    let response = client.execute(post).await.map_err(|err| Failing::Unasked(chain(err)))?;
    let status = response.status();
    if status.is_success() {
        let (body, whole) = read(response, output_max).await.map_err(|err| Failing::BrokeOff(chain(err)))?;
        return if whole { text(body) } else { Err(Failing::TooMuch(output_max)) };
    }
    // The status is known, its words are a courtesy.
    let body = read(response, WORDS_MAX).await.map(|(body, _)| body).unwrap_or_default();
    Err(Failing::Status(status.as_u16(), words(&body)))
}

/// Reads up to so many bytes of a body; also returns whether that was all.
async fn read(mut response: Response, max: usize) -> reqwest::Result<(Vec<u8>, bool)> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = max - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            return Ok((body, false));
        }
    }
    Ok((body, true))
}
