//! LISTEN on a connection of its own: a hint that somebody inserted. Polling is the truth.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::Notify;

use crate::store::op::Background;

/// Longest pause between tries to connect again.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Hears the knocks of the INSERT trigger, for as long as it is kept.
pub(super) struct Listener {
    knock: Arc<Notify>,
    _task: Background,
}

impl Listener {
    /// Starts to listen on the channel that bears the schema's name.
    pub(super) fn start(options: PgConnectOptions, schema: &str) -> Self {
        let knock = Arc::new(Notify::new());
        let task = Background::start(listen(options, schema.to_owned(), Arc::clone(&knock)));
        Self { knock, _task: task }
    }

    /// Waits for a knock; one that came since the last wait counts.
    pub(super) async fn heard(&self, up_to: Duration) {
        // Passing is the ordinary end: the caller looks for itself then.
        drop(tokio::time::timeout(up_to, self.knock.notified()).await);
    }
}

async fn listen(options: PgConnectOptions, schema: String, knock: Arc<Notify>) {
    // The driver runs no statement of ours on this connection, so no time limit is needed.
    let options = options.options([("statement_timeout", "0")]);
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .connect_lazy_with(options);
    let mut pause = Duration::from_millis(100);
    loop {
        match hear(&pool, &schema, &knock, &mut pause).await {
            Ok(()) => tracing::debug!("the listening connection was closed; connecting again"),
            Err(error) => tracing::debug!(error = %error, "cannot listen for new jobs; polling goes on"),
        }
        // What was said in between was not heard.
        knock.notify_one();
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Listens until the connection ends.
async fn hear(pool: &sqlx::PgPool, schema: &str, knock: &Notify, pause: &mut Duration) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(schema).await?;
    *pause = Duration::from_millis(100);
    knock.notify_one();
    while listener.try_recv().await?.is_some() {
        knock.notify_one();
    }
    Ok(())
}
