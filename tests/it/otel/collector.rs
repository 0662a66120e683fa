//! A collector: takes what the exporter sends, and shows it span by span.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Attributes by their names; every value as text.
pub type Attributes = BTreeMap<String, String>;

/// Listens until it is dropped.
pub struct Collector {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<Request>>>,
    _serving: JoinSet<()>,
}

/// One request, as it came.
#[derive(Clone)]
pub struct Request {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// One span, with what was said of who sent it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub name: String,
    /// 3: client; 5: consumer.
    pub kind: i32,
    pub trace: String,
    pub id: String,
    /// Empty: a root.
    pub parent: String,
    /// Trace and span, as in a `traceparent`.
    pub links: Vec<String>,
    pub failed: bool,
    pub began: u64,
    pub ended: u64,
    pub attributes: Attributes,
    pub resource: Attributes,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let heard = Arc::<Mutex<Vec<Request>>>::default();
        let hear =
            async |State(heard): State<Arc<Mutex<Vec<Request>>>>, uri: Uri, headers: HeaderMap, body| {
                let request = Request { path: uri.path().to_owned(), headers, body };
                heard.lock().expect("nobody panics").push(request);
            };
        let router = Router::new().fallback(hear).with_state(Arc::clone(&heard));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { address, heard, _serving: serving }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.heard.lock().expect("nobody panics").clone()
    }

    /// All spans that came, by the time they began.
    pub fn spans(&self) -> Vec<Seen> {
        let mut spans: Vec<Seen> =
            self.requests().iter().flat_map(|request| spans_of(&request.body)).collect();
        spans.sort_by_key(|span| span.began);
        spans
    }
}

impl Seen {
    /// An attribute; what is not there is empty.
    pub fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

fn spans_of(body: &[u8]) -> Vec<Seen> {
    let request = ExportTraceServiceRequest::decode(body).expect("it is OTLP");
    let mut seen = Vec::new();
    for resource in request.resource_spans {
        let told = attributes(&resource.resource.expect("who sends says who it is").attributes);
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            seen.push(read(span, told.clone()));
        }
    }
    seen
}

fn read(span: Span, resource: Attributes) -> Seen {
    Seen {
        kind: span.kind,
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        links: span
            .links
            .iter()
            .map(|link| format!("{}-{}", hex(&link.trace_id), hex(&link.span_id)))
            .collect(),
        failed: span.status.is_some_and(|status| status.code == 2),
        began: span.start_time_unix_nano,
        ended: span.end_time_unix_nano,
        attributes: attributes(&span.attributes),
        resource,
        name: span.name,
    }
}

fn attributes(list: &[KeyValue]) -> Attributes {
    let texts = list.iter().map(|pair| (pair.key.clone(), pair.value.as_ref().map(text).unwrap_or_default()));
    texts.collect()
}

fn text(value: &AnyValue) -> String {
    match value.value.as_ref().expect("a value") {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        Value::ArrayValue(list) => {
            format!("[{}]", list.values.iter().map(text).collect::<Vec<_>>().join(","))
        }
        other => panic!("nobody sends {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}
