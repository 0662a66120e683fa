//! Takes connections, a bounded number of them, for a bounded time: whoever holds one open or dribbles
//! a request keeps nobody else out.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Connections at once.
const CONNECTIONS_MAX: usize = 32;
/// Longest time that a request's head may take to come.
const HEAD_MAX: Duration = Duration::from_secs(5);
/// Longest time that a connection may take in all: it is for one request.
const CONNECTION_MAX: Duration = Duration::from_secs(15);
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Pause where no connection can be taken: this process has no file left for one, say.
const PAUSE: Duration = Duration::from_millis(200);
/// How long answers under way may take when it is over.
const LAST_ANSWERS: Duration = Duration::from_millis(200);

/// Answers until the stop.
pub(super) async fn serve<F, A>(listener: TcpListener, answer: F, stop: CancellationToken)
where
    F: Fn(Method, String) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<String>> + Send,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let taking = async {
        // It is never closed.
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let answer = answer.clone();
                    connections.spawn(async move {
                        one(stream, answer).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "the metrics listener took no connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    };
    stop.run_until_cancelled(taking).await;
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    // Who is slower than that is cut off.
    tokio::time::timeout(LAST_ANSWERS, ended).await.ok();
}

async fn one<F, A>(stream: TcpStream, answer: F)
where
    F: Fn(Method, String) -> A,
    A: Future<Output = Response<String>>,
{
    let service = service_fn(|request: Request<Incoming>| {
        let answered = answer(request.method().clone(), request.uri().path().to_owned());
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // What goes wrong with a connection is its client's affair.
    tokio::time::timeout(CONNECTION_MAX, connection).await.ok();
}
