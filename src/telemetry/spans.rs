//! The way of spans out of the process: OTLP over HTTP, to where the standard variables of OpenTelemetry
//! say. Only in a build with the feature `otel`; any other says so, once, where somebody expects spans.
//!
//! Spans are nobody's work: what cannot be sent is dropped and counted, and no job waits for it.

#[cfg(feature = "otel")]
mod otlp;
#[cfg(feature = "otel")]
mod post;
#[cfg(feature = "otel")]
mod told;

use tokio_util::sync::CancellationToken;

use crate::config::OtelSettings;
use crate::worker::traces::Traces;

/// What makes spans leave.
#[derive(Debug, Default)]
pub struct Spans {
    #[cfg(feature = "otel")]
    export: Option<otlp::Export>,
}

impl Spans {
    /// Begins, where spans are wanted. What is set wrong keeps nobody from working.
    pub fn start(settings: &OtelSettings) -> Self {
        if !settings.exports {
            return Self::default();
        }
        #[cfg(feature = "otel")]
        match otlp::Export::start(settings) {
            Ok(export) => return Self { export: Some(export) },
            Err(err) => {
                tracing::warn!("no spans are exported: {err:#}");
            }
        }
        #[cfg(not(feature = "otel"))]
        tracing::warn!(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but this promptmill was built without the feature `otel`: no \
             spans are exported"
        );
        Self::default()
    }

    /// Where the worker makes them.
    pub fn traces(&self) -> Traces {
        #[cfg(feature = "otel")]
        if let Some(export) = &self.export {
            return export.traces();
        }
        Traces::default()
    }

    /// Sends what is left, for a moment; for less of one when somebody is in a hurry.
    #[cfg_attr(not(feature = "otel"), expect(clippy::unused_async, reason = "there is nothing to send"))]
    pub async fn finish(self, hurry: &CancellationToken) {
        #[cfg(feature = "otel")]
        if let Some(export) = self.export {
            export.finish(hurry).await;
        }
        #[cfg(not(feature = "otel"))]
        let _ = hurry;
    }
}
