//! What somebody who connects can hold, and for how long.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;
use promptmill::listen::{Lasting, Limits, serve};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(10);

const LIMITS: Limits = Limits { connections: 1, head: LONG, stall: LONG, last: SHORT, ..Limits::PAGE };

/// A listener that serves until it is dropped.
struct Served {
    address: std::net::SocketAddr,
    stop: CancellationToken,
    serving: JoinSet<()>,
}

impl Served {
    async fn with(app: Router, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (stop, mut serving) = (CancellationToken::new(), JoinSet::new());
        serving.spawn(serve(listener, app, limits, stop.clone()));
        Self { address, stop, serving }
    }

    async fn says(&self, request: &str) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).await.expect("it listens");
        socket.write_all(request.as_bytes()).await.expect("it is taken");
        socket
    }
}

fn plain() -> Router {
    Router::new().route("/", get(async || "here"))
}

async fn rest(socket: &mut TcpStream) -> String {
    let mut text = String::new();
    // A reset is an end too.
    timeout(LONG, socket.read_to_string(&mut text)).await.expect("it ends").ok();
    text
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_its_connection() {
    let served = Served::with(plain(), Limits { head: SHORT, ..LIMITS }).await;
    for said in ["", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nhost: here\r\n\r\n"] {
        let mut socket = served.says(said).await;
        let answer = rest(&mut socket).await;
        assert_eq!(answer.ends_with("here"), said.ends_with("\r\n\r\n"), "{said}: {answer}");
    }
}

#[tokio::test]
async fn a_connection_for_one_request_ends_behind_it_and_when_its_time_is_over() {
    let one = |whole| Limits { lasting: Lasting::One(whole), ..LIMITS };
    let served = Served::with(plain(), one(LONG)).await;
    let mut socket =
        served.says("GET / HTTP/1.1\r\nhost: here\r\n\r\nGET / HTTP/1.1\r\nhost: here\r\n\r\n").await;
    assert_eq!(rest(&mut socket).await.matches("\r\n\r\nhere").count(), 1);
    let served = Served::with(plain(), one(SHORT)).await;
    let mut socket = served.says("GET / HTTP/1.1\r\n").await;
    assert_eq!(rest(&mut socket).await, "");
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_one_to_end() {
    let (come, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (arrived, opened) = (Arc::clone(&come), Arc::clone(&gate));
    let app = Router::new().route(
        "/",
        get(async move || {
            arrived.add_permits(1);
            opened.acquire().await.expect("it is open").forget();
            "here"
        }),
    );
    let served = Served::with(app, LIMITS).await;
    let ask = "GET / HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n";
    let mut first = served.says(ask).await;
    come.acquire().await.expect("it is open").forget();
    let mut second = served.says(ask).await;
    assert!(timeout(Duration::from_millis(300), come.acquire()).await.is_err(), "two are served at once");
    gate.add_permits(2);
    assert!(rest(&mut first).await.ends_with("here"));
    assert!(rest(&mut second).await.ends_with("here"));
}

/// Tells when it is dropped.
struct Gone(mpsc::Sender<()>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.try_send(()).ok();
    }
}

#[tokio::test]
async fn who_reads_nothing_is_cut_off() {
    let (tell, mut end) = mpsc::channel::<()>(1);
    let app = Router::new().route(
        "/",
        get(async move || {
            let pieces = stream::unfold(Gone(tell), |gone| async move {
                Some((Ok::<_, std::io::Error>(Bytes::from(vec![0_u8; 1 << 20])), gone))
            });
            Body::from_stream(pieces)
        }),
    );
    let served = Served::with(app, Limits { stall: SHORT, ..LIMITS }).await;
    let _held = served.says("GET / HTTP/1.1\r\nhost: here\r\n\r\n").await;
    assert_eq!(timeout(LONG, end.recv()).await, Ok(Some(())), "the stream goes on for nobody");
}

#[tokio::test]
async fn a_listener_that_stops_waits_for_nobody_long() {
    let mut served = Served::with(plain(), LIMITS).await;
    let _idle = served.says("").await;
    served.stop.cancel();
    timeout(LONG, served.serving.join_next()).await.expect("it ends").expect("it ran").expect("it ended");
}
