//! The web page as browsers and programs meet it: over real HTTP, on both databases.

mod absent;
mod actions;
mod api;
mod bounds;
mod browser;
mod bulk;
mod door;
mod downloads;
mod hostile;
mod lists;
mod one;
mod roles;
mod slow;
mod views;

use std::sync::Arc;
use std::time::Duration;

use promptmill::config::{Config, Flags, Surroundings};
use promptmill::store::{Database, Desk, Migrate, StoreSettings, board::Board, open};
use promptmill::web::{Settings, Web, serve};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::Ground;

/// A page that is served until it is dropped.
struct Site {
    url: String,
    client: reqwest::Client,
    database: Database,
    _serving: JoinSet<()>,
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("headers are ASCII"))
    }

    /// The body of an answer that has to be good.
    fn good(self) -> String {
        assert_eq!(self.status, 200, "{self:?}");
        self.text
    }

    fn json(self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|err| panic!("{err} in {self:?}"))
    }
}

impl Site {
    /// Serves the ground's database as it comes: on this machine, without a token.
    async fn on(ground: &Ground) -> Self {
        Self::with(ground, |_| {}).await
    }

    async fn with(ground: &Ground, change: impl FnOnce(&mut Settings)) -> Self {
        Self::at(&ground.url(), ground.schema(), change).await
    }

    /// Serves the database at a URL.
    async fn at(url: &str, schema: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let settings = [
            ("database.url", "postgres://u:canary-password@127.0.0.1/d"),
            ("api.base_url", "http://127.0.0.1:1"),
        ];
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        let config = Config::load_from(&Flags { settings, ..Flags::default() }, &Surroundings::default());
        Self::of(config.expect("the configuration is good"), url, schema, change).await
    }

    /// Serves the database at a URL by a process of this configuration.
    async fn of(config: Config, url: &str, schema: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let store = StoreSettings {
            schema: schema.to_owned(),
            connections_max: 4,
            operation_max: Duration::from_secs(10),
            answers_once: true,
            connect_max: Duration::from_secs(30),
            transaction_pooler: false,
            listen_url: None,
        };
        let opened = open(url, &store, Migrate::Never).await.expect("the ground has the tables");
        let database = opened.database;
        let (desk, board): (Arc<dyn Desk>, Arc<dyn Board>) = match &database {
            Database::Sqlite(store) => (store.clone(), store.clone()),
            Database::Postgres(store) => (store.clone(), store.clone()),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let listen = listener.local_addr().expect("it is bound");
        let mut settings = Settings {
            listen,
            token: None,
            token_file: None,
            hosts: Vec::new(),
            read_only: false,
            read_max: Duration::from_secs(10),
        };
        change(&mut settings);
        let web = Web::new(config, settings);
        web.found(desk, board);
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, web, CancellationToken::new()));
        let client = crate::stand_in::client_without_redirects();
        Self { url: format!("http://{listen}"), client, database, _serving: serving }
    }

    async fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[]).await
    }

    async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(self.client.get(format!("{}{path}", self.url)), headers).await
    }

    /// Sends a form as a browser does from a page of ours.
    async fn post(&self, path: &str, form: &str) -> Answer {
        self.post_with(path, form, &[("sec-fetch-site", "same-origin")]).await
    }

    async fn post_with(&self, path: &str, form: &str, headers: &[(&str, &str)]) -> Answer {
        let request = self.client.post(format!("{}{path}", self.url)).body(form.to_owned());
        let kind = [("content-type", "application/x-www-form-urlencoded")];
        self.send(request, &[&kind, headers].concat()).await
    }

    async fn post_json(&self, path: &str, body: &Value) -> Answer {
        let request = self.client.post(format!("{}{path}", self.url)).body(body.to_string());
        self.send(request, &[("content-type", "application/json")]).await
    }

    async fn send(&self, request: reqwest::RequestBuilder, headers: &[(&str, &str)]) -> Answer {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            map.insert(name, HeaderValue::from_str(value).expect("a value"));
        }
        let answer = request.headers(map).send().await.expect("the page answers");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Answer { status, headers, text: answer.text().await.expect("the body comes") }
    }
}

/// Ends a job as a worker would have: claims it, writes a call, and settles it.
async fn settle(ground: &Ground, job: i64, outcome: &str, text: &str) {
    let now = ground.at(0);
    let stop = if outcome == "complete" { "'end_turn'" } else { "'max_tokens'" };
    let error = match outcome {
        "complete" | "truncated" => "NULL, NULL",
        _ => "'invalid_request_error', 'max_tokens: 999999 is too large'",
    };
    let content = serde_json::json!([{"type": "text", "text": text}]).to_string();
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let (text, content) = (quoted(text), quoted(&content));
    ground
        .run(&format!(
            "UPDATE job_state SET state = 'running', claims = claims + 1, claimed_by = 1 WHERE job_id = {job};
             INSERT INTO calls (job_id, claim, seq, run, kind, model, max_tokens, messages, sent_at, first_token_at,
                                ended_at, http_status, request_id, stop_reason, input_tokens, output_tokens)
             SELECT job_id, claims, 1, run, 'ask', 'claude-x', 1000, 1, {now}, {now}, {now}, 200, 'req_{job}', {stop},
                    10, 20
               FROM job_state WHERE job_id = {job};
             INSERT INTO results (job_id, run, queue, batch, key, outcome, stop_reason, text, model, input_tokens,
                                  output_tokens, calls, error_type, error, started_at, content, request_id)
             SELECT j.id, s.run, j.queue, j.batch, j.key, '{outcome}', {stop}, {text}, 'claude-x', 10, 20, 1, {error}, {now},
                    {content}, 'req_{job}'
               FROM jobs j JOIN job_state s ON s.job_id = j.id WHERE j.id = {job};
             UPDATE job_state SET state = 'done', claimed_by = NULL WHERE job_id = {job};"
        ))
        .await;
}
