//! A progress bar on stderr while a drain runs and a person watches.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::store::Desk;

/// How often the bar looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A bar that follows the queue until it is told to stop.
pub struct Watch {
    task: JoinSet<()>,
    stop: CancellationToken,
}

impl Watch {
    /// Starts to watch.
    pub fn start(desk: Arc<dyn Desk>) -> Self {
        let stop = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(follow(desk, stop.clone()));
        Self { task, stop }
    }

    /// Ends the bar.
    pub async fn finish(mut self) {
        self.stop.cancel();
        while self.task.join_next().await.is_some() {}
    }
}
