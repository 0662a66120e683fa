//! What is said of spans that do not arrive: the first time, then once in a while, and when they arrive
//! again. A collector that is away for a night must not fill the log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

/// While nothing arrives, this is said so often.
const EVERY: Duration = Duration::from_mins(10);

/// What became of the spans.
#[derive(Debug, Default)]
pub(super) struct Told {
    sent: AtomicU64,
    trouble: Mutex<Trouble>,
}

#[derive(Debug, Default)]
struct Trouble {
    /// When it was last said that nothing arrives; `None`: all is well.
    said: Option<Instant>,
    /// Spans that were lost since.
    lost: u64,
    /// Why the last request had no answer.
    cause: Option<String>,
}

impl Told {
    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes why there was no answer.
    pub(super) fn cause(&self, why: String) {
        self.trouble().cause = Some(why);
    }

    /// Takes note of a batch.
    fn exported(&self, spans: u64, done: &OTelSdkResult) {
        let mut trouble = self.trouble();
        let cause = trouble.cause.take();
        match done {
            Ok(()) => {
                self.sent.fetch_add(spans, Ordering::Relaxed);
                if trouble.said.is_some() {
                    tracing::info!(spans.lost = trouble.lost, "spans are exported again");
                    *trouble = Trouble::default();
                }
            }
            Err(err) => {
                trouble.lost += spans;
                if trouble.said.is_none_or(|said| said.elapsed() >= EVERY) {
                    trouble.said = Some(Instant::now());
                    let error = cause.unwrap_or_else(|| err.to_string());
                    tracing::warn!(
                        error,
                        spans.lost = trouble.lost,
                        "failed to export spans: they are dropped until the collector takes them; jobs go on"
                    );
                }
            }
        }
    }

    /// Says at the end how many of all spans never arrived.
    pub(super) fn end(&self, made: u64) {
        let missing = made.saturating_sub(self.sent.load(Ordering::Relaxed));
        if missing > 0 {
            tracing::warn!(spans.lost = missing, "{missing} of {made} spans did not reach the collector");
        }
    }
}

/// An exporter whose success is watched.
#[derive(Debug)]
pub(super) struct Watched<E> {
    exporter: E,
    told: Arc<Told>,
}

impl<E: SpanExporter> Watched<E> {
    pub(super) fn over(exporter: E, told: Arc<Told>) -> Self {
        Self { exporter, told }
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let done = self.exporter.export(batch).await;
        self.told.exported(spans, &done);
        done
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
