//! The questions that cost nothing: whether the key is good, which models there are, how many tokens
//! an input has. Whole answers with limits of their own in bytes, pages and time.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::HeaderMap;
use reqwest::{Method, Url};
use tokio_util::sync::CancellationToken;

use super::intake::{first_character, foreign};
use super::setup::Credentials;
use super::watch::{Limits, Watch};
use super::{ERROR_BODY_MAX, HttpClaude, chain, read_up_to, refused};
use crate::claude::{count, models, wire};
use crate::domain::context::{TooLong, too_long};
use crate::domain::model::{Catalogue, Listed};
use crate::domain::outcome::{Failure, Lost};
use crate::domain::talk::Request;

/// Longest time of a check of the key, and of a whole list of models.
const LIST_TIME: Duration = Duration::from_secs(30);

/// Longest time of a count: as large a body as a call's is sent.
const COUNT_TIME: Duration = Duration::from_mins(1);

/// Most pages of a list: at a thousand models each there is one.
const PAGES_MAX: usize = 50;

/// Most bytes of all pages together: a thousand models are some 2 MB.
const LIST_BYTES_MAX: usize = 16 << 20;

fn limits(time: Duration) -> Limits {
    Limits { first_event: time, idle: time, total: time }
}

impl HttpClaude {
    /// Asks whether the key is good.
    pub(super) async fn ask_for_key(&self) -> Result<(), Failure> {
        let credentials = self.credentials();
        let never = CancellationToken::new();
        let (stop, timer) = (never.cancelled(), limits(LIST_TIME).timer(Instant::now().into()));
        tokio::pin!(stop, timer);
        let mut watch = Watch::new(limits(LIST_TIME), Instant::now().into(), stop, timer);
        let get = get(list_url(&self.models_url, &[("limit", "1")], None), &credentials);
        let checked = async {
            let sent = watch.over(self.client.execute(get)).await?;
            let mut response = sent.map_err(|err| self.unanswered(err))?;
            if !response.status().is_success() {
                return Err(refused(response, &mut watch).await.0);
            }
            // A page that stands in the way (a captive portal) proves nothing.
            let body = read_up_to(&mut response, &mut watch, ERROR_BODY_MAX).await;
            match first_character(&body) {
                Some(b'{' | b'[') => Ok(()),
                _ => Err(foreign("the list of models is not JSON", &body)),
            }
        };
        checked.await.map_err(|failure: Failure| credentials.redact(failure))
    }

    /// Lists the models, retired ones too; where the server refuses to be asked for those, without them.
    pub(super) async fn list_models(&self) -> Result<Catalogue, Failure> {
        let credentials = self.credentials();
        let never = CancellationToken::new();
        let (stop, timer) = (never.cancelled(), limits(LIST_TIME).timer(Instant::now().into()));
        tokio::pin!(stop, timer);
        let mut watch = Watch::new(limits(LIST_TIME), Instant::now().into(), stop, timer);
        let mut listed = self.pages(&models::ALL, &credentials, &mut watch).await;
        if matches!(&listed, Err(Failure::Api(error)) if matches!(error.status, 400 | 422)) {
            listed = self.pages(&models::PLAIN, &credentials, &mut watch).await;
        }
        listed.map_err(|failure| credentials.redact(failure))
    }

    async fn pages(
        &self,
        query: &[(&str, &str)],
        credentials: &Credentials,
        watch: &mut Watch<'_, '_>,
    ) -> Result<Catalogue, Failure> {
        let mut all: Vec<Listed> = Vec::new();
        let (mut after, mut bytes, mut at) = (None, 0, None);
        for _ in 0..PAGES_MAX {
            let get = get(list_url(&self.models_url, query, after.as_deref()), credentials);
            let (headers, body) = self.whole(get, watch, LIST_BYTES_MAX - bytes).await?;
            bytes += body.len();
            at = at.or_else(|| models::timestamp(wire::answered(&headers)?));
            let page = models::page(&body).ok_or_else(|| foreign("the list of models is not JSON", &body))?;
            let fresh = !page.models.is_empty() && page.next != after;
            all.extend(page.models);
            after = page.next;
            // A server that gives the same page again and again has no more to say.
            if after.is_none() || !fresh {
                break;
            }
        }
        Ok(Catalogue::new(all, at))
    }

    /// Has the input of a call counted.
    pub(super) async fn count(&self, request: &Request, stop: &CancellationToken) -> Result<i64, Failure> {
        let credentials = self.credentials();
        let Some(body) = count::body(&request.body.to_vec()) else {
            return Err(Failure::Unreadable("the call's body is no JSON object".to_owned()));
        };
        let post = self.post(self.count_url.clone(), &request.model, Bytes::from(body).into(), &credentials);
        let (stop, timer) = (stop.cancelled(), limits(COUNT_TIME).timer(Instant::now().into()));
        tokio::pin!(stop, timer);
        let mut watch = Watch::new(limits(COUNT_TIME), Instant::now().into(), stop, timer);
        let answered = self.whole(post, &mut watch, ERROR_BODY_MAX).await;
        let counted = match answered {
            Ok((_, body)) => {
                count::tokens(&body).ok_or_else(|| foreign("the count of tokens holds no number", &body))
            }
            // It was counted, whatever is thought of the number.
            Err(Failure::Api(error)) => match too_long(&error.message) {
                Some(TooLong { tokens, .. }) if error.status == 400 => Ok(tokens),
                _ => Err(Failure::Api(error)),
            },
            Err(failure) => Err(failure),
        };
        counted.map_err(|failure| credentials.redact(failure))
    }

    /// Sends, and reads the whole answer of a success.
    async fn whole(
        &self,
        request: reqwest::Request,
        watch: &mut Watch<'_, '_>,
        max: usize,
    ) -> Result<(HeaderMap, Bytes), Failure> {
        let sent = watch.over(self.client.execute(request)).await?;
        let mut response = sent.map_err(|err| self.unanswered(err))?;
        if !response.status().is_success() {
            return Err(refused(response, watch).await.0);
        }
        super::check_encoding(response.headers())?;
        let headers = response.headers().clone();
        let mut body = Vec::new();
        loop {
            match watch.over(response.chunk()).await? {
                Ok(Some(chunk)) if body.len() + chunk.len() > max => {
                    return Err(Failure::Unreadable(format!("the answer is larger than {max} bytes")));
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => return Ok((headers, body.into())),
                Err(err) => return Err(Failure::Lost(Lost::Reset, chain(err))),
            }
            watch.byte_came();
        }
    }
}

fn get(url: Url, credentials: &Credentials) -> reqwest::Request {
    let mut get = reqwest::Request::new(Method::GET, url);
    *get.headers_mut() = credentials.headers.clone();
    get
}

fn list_url(models: &Url, query: &[(&str, &str)], after: Option<&str>) -> Url {
    let mut url = models.clone();
    url.query_pairs_mut().extend_pairs(query).extend_pairs(after.map(|after| ("after_id", after)));
    url
}
