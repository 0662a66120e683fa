//! What `promptmill run` serves and says beside its work: metrics and health, and a word to systemd.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::exit::Stop;
use crate::config::Config;
use crate::metrics::{Metrics, serve};
use crate::store::Database;
use crate::store::gauges::Gauge;
use crate::systemd;
use crate::worker::vitals::Vitals;

/// Longest time that the last words may take.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What shows a daemon to the outside, until it is told to end.
pub struct Face {
    vitals: Arc<Vitals>,
    metrics: Option<Arc<Metrics>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Face {
    /// Takes the address, if the configuration has one, and begins.
    pub async fn show(config: &Config, vitals: Arc<Vitals>) -> anyhow::Result<Self> {
        let patience = patience(config);
        let stop = CancellationToken::new();
        let mut tasks = systemd::follow(Arc::clone(&vitals), patience);
        // What a person named is not to be pushed out by what rows name.
        for queue in config.queues.0.keys() {
            vitals.meters.queues.label(queue);
        }
        let mut metrics = None;
        if let Some(listen) = config.metrics.listen {
            // Not the configuration's code: at boot the host may not have the address yet, and what
            // starts daemons does not try again what the configuration got wrong.
            let listener = TcpListener::bind(listen).await.map_err(|error| {
                Stop::failure(format!(
                    "metrics cannot listen on {listen}: {error}; choose another metrics.listen"
                ))
            })?;
            let listen = listener.local_addr().context("failed to read the address of the metrics")?;
            tracing::info!("metrics are at http://{listen}/metrics, health at /livez and /readyz");
            let served = Metrics::new(Arc::clone(&vitals), patience, config.metrics.refresh);
            tasks.spawn(serve(listener, Arc::clone(&served), stop.clone()));
            metrics = Some(served);
        }
        Ok(Self { vitals, metrics, stop, tasks })
    }

    /// Says where the tables are.
    pub fn reads(&self, database: &Database) {
        let Some(metrics) = &self.metrics else { return };
        metrics.reads(match database {
            Database::Sqlite(store) => Arc::clone(store) as Arc<dyn Gauge>,
            Database::Postgres(store) => Arc::clone(store) as Arc<dyn Gauge>,
        });
    }

    /// Says the last words.
    pub async fn end(self) {
        self.vitals.over();
        self.stop.cancel();
        // Whoever does not listen is not waited for.
        tokio::time::timeout(LAST_WORDS, self.tasks.join_all()).await.ok();
    }
}

/// How long a loop may stand still: a database that says nothing may hold an operation for twice its time
/// limit, once until there is a connection, and the heartbeat sleeps for a quarter of the lease.
fn patience(config: &Config) -> Duration {
    config.worker.lease / 4 + config.database.store.operation_max * 3 + Duration::from_secs(5)
}
