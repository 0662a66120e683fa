//! A progress bar on stderr while a drain runs and a person watches.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::store::{Desk, StateCounts};

/// How often the bar looks: counting a large queue is not free.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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

async fn follow(desk: Arc<dyn Desk>, stop: CancellationToken) {
    let style = ProgressStyle::with_template(
        "{elapsed_precise} [{bar:40}] {pos}/{len} done, {msg} ({per_sec}, {eta} left)",
    )
    .expect("the template is a constant")
    .progress_chars("=> ");
    let bar = ProgressBar::no_length().with_style(style);
    let mut before: Option<i64> = None;
    loop {
        // A database that is away shows as a bar that stands still; the log says why.
        if let Ok(queues) = desk.queue_lines().await {
            let sum =
                |count: fn(&StateCounts) -> i64| queues.iter().map(|queue| count(&queue.jobs)).sum::<i64>();
            // What was done before this drain is not its progress.
            let start = *before.get_or_insert_with(|| sum(|jobs| jobs.done));
            let done = sum(|jobs| jobs.done).saturating_sub(start).max(0);
            bar.set_length((done + sum(StateCounts::open)).max(0) as u64);
            bar.set_position(done as u64);
            bar.set_message(format!(
                "{} running, {} scheduled",
                sum(|jobs| jobs.running),
                sum(|jobs| jobs.scheduled)
            ));
        }
        if tokio::time::timeout(LOOK_EVERY, stop.cancelled()).await.is_ok() {
            bar.finish_and_clear();
            return;
        }
    }
}
