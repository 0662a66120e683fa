//! The SDK of OpenTelemetry, set up: a queue with an end, a thread that sends what stands in it, and a
//! limit on its last words.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{InstrumentationScope, Key, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SdkTracerProvider};
use tokio_util::sync::CancellationToken;

use super::post::Post;
use super::told::{Told, Watched};
use crate::config::OtelSettings;
use crate::worker::traces::Traces;

/// How long the last spans may take to be sent.
const LAST_SPANS: Duration = Duration::from_secs(3);
/// The same where somebody is in a hurry.
const HURRIED_SPANS: Duration = Duration::from_millis(200);

const SERVICE_NAME: Key = Key::from_static_str("service.name");
const SERVICE_VERSION: &str = "service.version";

/// Spans on their way out.
#[derive(Debug)]
pub(super) struct Export {
    provider: SdkTracerProvider,
    traces: Traces,
    told: Arc<Told>,
}

impl Export {
    /// Starts the thread that sends. Calls nobody yet.
    pub(super) fn start(settings: &OtelSettings) -> anyhow::Result<Self> {
        let told = Arc::<Told>::default();
        let post = Post::new(settings.timeout, Arc::clone(&told))?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(post)
            .with_timeout(settings.timeout)
            .build()
            // Its own words quote the address, in which a password may stand.
            .map_err(|_| {
                anyhow!("OTEL_EXPORTER_OTLP_ENDPOINT is no address such as http://127.0.0.1:4318")
            })?;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_span_processor(
                BatchSpanProcessor::builder(Watched::over(exporter, Arc::clone(&told))).build(),
            )
            .build();
        let scope =
            InstrumentationScope::builder("promptmill").with_version(env!("CARGO_PKG_VERSION")).build();
        let traces = Traces::by(provider.tracer_with_scope(scope));
        tracing::info!("spans are exported by OTLP");
        Ok(Self { provider, traces, told })
    }

    pub(super) fn traces(&self) -> Traces {
        self.traces.clone()
    }

    /// Sends what is left, and says what did not arrive.
    pub(super) async fn finish(self, hurry: &CancellationToken) {
        let Self { provider, traces, told } = self;
        let hurried = async {
            hurry.cancelled().await;
            tokio::time::sleep(HURRIED_SPANS).await;
        };
        let flushed = async {
            traces.linked().await;
            traces.close();
            // It waits for the thread that sends.
            let flush = move || provider.shutdown_with_timeout(LAST_SPANS);
            tokio::task::spawn_blocking(flush).await.ok();
        };
        tokio::select! {
            done = tokio::time::timeout(LAST_SPANS, flushed) => { done.ok(); }
            () = hurried => {}
        }
        told.end(traces.close());
    }
}

/// Who says so: the standard variables, and by default our own name.
fn resource() -> Resource {
    let found = Resource::builder().build();
    let mut resource = Resource::builder();
    // The SDK's own default is `unknown_service:` and the name of the file.
    if found.get_ref(&SERVICE_NAME).is_none_or(|name| name.as_str().starts_with("unknown_service")) {
        resource = resource.with_service_name("promptmill");
    }
    if found.get_ref(&Key::from_static_str(SERVICE_VERSION)).is_none() {
        resource = resource.with_attribute(KeyValue::new(SERVICE_VERSION, env!("CARGO_PKG_VERSION")));
    }
    resource.build()
}
