//! What the driver says of the statements that it runs, and the server of their plans.
//!
//! The driver logs on the thread of the runtime and on threads of its own, but always inside the span that was
//! entered when it was asked: by that, what is seen here is told from what other tests do in this process.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Mutex, Once, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::EnteredSpan;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

/// Stands in statements of the test's own.
pub const BY_HAND: &str = "/* by hand */";

/// Everything that was said, by the span that it was said in.
static SAID: Mutex<Option<HashMap<u64, Said>>> = Mutex::new(None);

/// What was said.
#[derive(Default, Clone)]
pub struct Said {
    /// The statements, each once.
    pub statements: BTreeSet<String>,
    /// What the Postgres server had to notice.
    pub notices: Vec<String>,
}

/// Listens while it lives, on the thread where it was made.
pub struct Seen(EnteredSpan);

impl Seen {
    /// Begins to listen.
    pub fn begin() -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let subscriber = tracing_subscriber::registry().with(Listener);
            tracing::subscriber::set_global_default(subscriber).expect("nobody else listens in this process");
        });
        Self(tracing::error_span!("plans").entered())
    }

    /// Returns what was said since the last look.
    pub fn take(&self) -> Said {
        let id = self.0.id().expect("somebody listens").into_u64();
        with(|said| said.remove(&id)).unwrap_or_default()
    }
}

fn with<T>(act: impl FnOnce(&mut HashMap<u64, Said>) -> T) -> T {
    act(SAID.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

struct Listener;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Listener {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(span) = context.lookup_current().filter(|span| span.name() == "plans") else { return };
        let mut words = Words::default();
        event.record(&mut words);
        with(|said| {
            let said = said.entry(span.id().into_u64()).or_default();
            match event.metadata().target() {
                "sqlx::postgres::notice" => said.notices.push(words.message),
                "sqlx::query" if !words.statement().contains(BY_HAND) => {
                    said.statements.insert(words.statement());
                }
                _ => {}
            }
        });
    }
}

/// The fields of an event that are of interest.
#[derive(Default)]
struct Words {
    message: String,
    summary: String,
    statement: String,
}

impl Words {
    /// The driver says a statement of up to four words as its summary alone.
    fn statement(&self) -> String {
        let whole = self.statement.trim();
        if whole.is_empty() { self.summary.clone() } else { whole.to_owned() }
    }

    fn put(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            "summary" => self.summary = value,
            "db.statement" => self.statement = value,
            _ => {}
        }
    }
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, format!("{value:?}"));
    }
}
