//! LISTEN on a connection of its own: a hint that somebody inserted. Polling is the truth.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{Acquire as _, Connection as _};
use tokio::sync::Notify;

use crate::store::StoreError;
use crate::store::op::{Background, said, within};

/// Shortest pause between tries to connect again; it doubles.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between tries to connect again.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// After so long without a knock the server is asked whether it is still there: of a host that
/// vanished nobody says a word.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Hears the knocks of the INSERT trigger, for as long as it is kept.
pub(super) struct Listener {
    knock: Arc<Notify>,
    _task: Background,
}

impl Listener {
    /// Starts to listen on the channel that bears the schema's name. `limit`: how long the server
    /// may take for an answer.
    pub(super) fn start(options: PgConnectOptions, schema: &str, limit: Duration) -> Self {
        let knock = Arc::new(Notify::new());
        let task = Background::start(listen(options, schema.to_owned(), limit, Arc::clone(&knock)));
        Self { knock, _task: task }
    }

    /// Waits for a knock; one that came since the last wait counts.
    pub(super) async fn heard(&self, up_to: Duration) {
        // Passing is the ordinary end: the caller looks for itself then.
        drop(tokio::time::timeout(up_to, self.knock.notified()).await);
    }
}

async fn listen(options: PgConnectOptions, schema: String, limit: Duration, knock: Arc<Notify>) {
    let mut pause = PAUSE;
    loop {
        match hear(&options, &schema, limit, &knock, &mut pause).await {
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
async fn hear(
    options: &PgConnectOptions,
    schema: &str,
    limit: Duration,
    knock: &Notify,
    pause: &mut Duration,
) -> Result<(), StoreError> {
    // A pool for each connection: the driver gives a listener's connection back once the server has
    // answered, and of one that does not answer the next would have to wait for the place.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(limit)
        .max_lifetime(None)
        .idle_timeout(None)
        .connect_lazy_with(options.clone());
    let mut listener = PgListener::connect_with(&pool).await.map_err(said)?;
    listener.eager_reconnect(false);
    within(limit, async { listener.listen(schema).await.map_err(said) }).await?;
    *pause = PAUSE;
    knock.notify_one();
    loop {
        match tokio::time::timeout(SILENCE_MAX.min(limit), listener.try_recv()).await {
            Ok(Ok(Some(_))) => knock.notify_one(),
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return Err(said(error)),
            Err(_) => {
                within(limit, async {
                    (&mut listener).acquire().await.map_err(said)?.ping().await.map_err(said)
                })
                .await?;
            }
        }
    }
}
