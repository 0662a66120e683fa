//! A collector that is away, deaf or refuses: nobody waits for it, and it is told once.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::mill::harness::{Mill, Ran};
use crate::support::Ground;
use crate::support::private::free_port;

/// How long the last spans may take, and the rest of an end.
const END_MAX: Duration = Duration::from_secs(10);

/// Runs some jobs beside such a collector, and looks how they did.
async fn drained(url: &str) -> Ran {
    const JOBS: usize = 40;
    let ground = Ground::sqlite().await;
    let mut mill = Mill::new(&ground).await;
    mill.knows_a_limit();
    mill.set("OTEL_EXPORTER_OTLP_ENDPOINT", url);
    // Fewer than there are spans, so that some find no place.
    mill.set("OTEL_BSP_MAX_QUEUE_SIZE", "8");
    mill.set("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4");
    mill.set("OTEL_BSP_SCHEDULE_DELAY", "20");
    mill.insert(&["hello"; JOBS]).await;
    let began = Instant::now();
    let ran = mill.drain().await;
    assert!(began.elapsed() < END_MAX, "{:?}: {}", began.elapsed(), ran.stderr);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ground.line("SELECT count(*) FROM results WHERE outcome = 'complete'").await,
        JOBS.to_string()
    );
    let told = format!("{0} of {0} spans did not reach the collector", 2 * JOBS);
    assert!(ran.stderr.contains(&told), "{}", ran.stderr);
    ground.close().await;
    ran
}

fn warnings(ran: &Ran) -> Vec<&str> {
    ran.stderr.lines().filter(|line| line.contains("failed to export spans")).collect()
}

#[tokio::test]
async fn a_collector_that_is_away_slows_nobody_and_is_told_once() {
    let ran = drained(&format!("http://127.0.0.1:{}", free_port())).await;
    let warned = warnings(&ran);
    assert_eq!(warned.len(), 1, "{}", ran.stderr);
    assert!(warned[0].contains("Connection refused") && warned[0].contains("jobs go on"), "{}", warned[0]);
}

#[tokio::test]
async fn a_collector_that_never_answers_slows_nobody() {
    // The system takes the connections, and nobody ever reads.
    let deaf = TcpListener::bind("127.0.0.1:0").expect("a free port");
    drained(&format!("http://{}", deaf.local_addr().expect("it is bound"))).await;
}

#[tokio::test]
async fn a_collector_that_refuses_is_told_once_with_its_status_and_without_its_password() {
    let ground = Ground::sqlite().await;
    // The stand-in knows no such path.
    let other = Mill::new(&ground).await;
    let url = other.api.url().replace("http://", "http://user:hushhush@");
    let ran = drained(&url).await;
    let warned = warnings(&ran);
    assert_eq!(warned.len(), 1, "{}", ran.stderr);
    assert!(warned[0].contains("404"), "{}", warned[0]);
    assert!(!ran.stderr.contains("hushhush"), "{}", ran.stderr);
    ground.close().await;
}
