//! Having inputs counted: what is tried again, what is told to the caller, and who is not asked again.

use std::time::{Duration, Instant};

use promptmill::domain::retry::Curve;
use promptmill::worker::counting::{Counted, Counting};
use tokio_util::sync::CancellationToken;

use super::free::{claude, error, json, request};
use super::server::{Server, Step, answer};

fn counting() -> Counting {
    let (base, max) = (Duration::from_millis(1), Duration::from_millis(4));
    Counting::new(Curve { base, max, still: Instant::now() })
}

#[tokio::test]
async fn a_count_that_is_put_off_is_tried_again_and_then_told_to_the_caller() {
    let busy = || answer("429 X", &[("retry-after-ms", "1")], b"{}");
    let counted = json("200 OK", r#"{"input_tokens":14}"#);
    let stop = CancellationToken::new();
    let server = Server::start(vec![busy(), json("529 X", "{}"), counted.clone()]).await;
    assert_eq!(counting().count(&claude(&server), &request(), &stop).await, Counted::Tokens(14));

    let server = Server::always(busy()).await;
    let unknown = counting().count(&claude(&server), &request(), &stop).await;
    assert!(matches!(unknown, Counted::Unknown { again: Some(_), .. }), "{unknown:?}");
    assert_eq!(server.requests().len(), 4);

    // Who has to wait for minutes need not wait here.
    let server = Server::always(answer("429 X", &[("retry-after", "300")], b"{}")).await;
    let unknown = counting().count(&claude(&server), &request(), &stop).await;
    let Counted::Unknown { again: Some(again), .. } = unknown else { panic!("{unknown:?}") };
    assert!(again >= Duration::from_mins(5), "{again:?}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_server_that_cannot_count_is_not_asked_again() {
    let stop = CancellationToken::new();
    for script in [error("404 X", "Not found"), error("405 X", "no"), answer("200 OK", &[], b"<html>")] {
        let server = Server::always(script).await;
        let (claude, counting) = (claude(&server), counting());
        for _ in 0..3 {
            let unknown = counting.count(&claude, &request(), &stop).await;
            assert!(matches!(unknown, Counted::Unknown { again: None, .. }), "{unknown:?}");
        }
        assert_eq!(server.requests().len(), 1);
    }
    // That this model is not there says nothing about the server.
    for script in [error("404 X", "model: claude-x"), error("400 X", "no"), error("401 X", "no")] {
        let server = Server::always(script).await;
        let (claude, counting) = (claude(&server), counting());
        for _ in 0..3 {
            let unknown = counting.count(&claude, &request(), &stop).await;
            assert!(matches!(unknown, Counted::Unknown { again: None, .. }), "{unknown:?}");
        }
        assert_eq!(server.requests().len(), 3);
    }
}

#[tokio::test]
async fn a_count_ends_when_it_is_told_to_stop() {
    let server = Server::always(vec![Step::Hang]).await;
    let (claude, stop) = (claude(&server), CancellationToken::new());
    let request = request();
    let counting = counting();
    let count = counting.count(&claude, &request, &stop);
    tokio::pin!(count);
    while server.connections() == 0 {
        tokio::select! {
            ended = &mut count => panic!("{ended:?}"),
            () = tokio::task::yield_now() => {}
        }
    }
    stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), count).await;
    assert_eq!(ended, Ok(Counted::Stopped), "it goes on until the server answers");
}
