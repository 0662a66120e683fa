//! Listening for HTTP with a bound on everything that somebody who connects could hold for ever: the page,
//! the metrics.
//!
//! It knows nothing of what is served. How long a body may take to come, and an answer to begin, is the
//! router's own affair.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

/// Pause after a connection could not be taken: most often for want of files.
const PAUSE: Duration = Duration::from_millis(200);

/// What a listener allows.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; more wait until one ends.
    pub connections: usize,
    /// How long the head of a request may take to come, from when it is waited for: a connection that
    /// says nothing ends then.
    pub head: Duration,
    /// Bytes of a head.
    pub head_bytes: usize,
    /// How long a connection lives.
    pub lasting: Lasting,
    /// How long somebody may read nothing of an answer.
    pub stall: Duration,
    /// How long answers that are on their way get when the listener stops.
    pub last: Duration,
}

/// How long a connection lives.
#[derive(Debug, Clone, Copy)]
pub enum Lasting {
    /// While requests come.
    Kept,
    /// For one request, and so long in all.
    One(Duration),
}

impl Limits {
    /// For people's browsers, which keep their connections.
    pub const PAGE: Self = Self {
        connections: 256,
        head: Duration::from_secs(15),
        head_bytes: 64 << 10,
        lasting: Lasting::Kept,
        stall: Duration::from_secs(30),
        last: Duration::from_millis(300),
    };
    /// For machines that ask one thing now and then.
    pub const METRICS: Self = Self {
        connections: 32,
        head: Duration::from_secs(5),
        head_bytes: 16 << 10,
        lasting: Lasting::One(Duration::from_secs(15)),
        stall: Duration::from_secs(15),
        last: Duration::from_millis(200),
    };
}

/// Serves until the stop. Handlers find who asks in `ConnectInfo<SocketAddr>`.
pub async fn serve(listener: TcpListener, app: Router, limits: Limits, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        let taken = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, taken) = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            taken = taken => taken,
        };
        match taken {
            Ok((socket, peer)) => {
                let (app, stop) = (app.clone(), stop.clone());
                connections.spawn(async move {
                    let _place = place;
                    converse(socket, peer, app, limits, stop).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    // A browser keeps its connections: nobody waits longer for them.
    tokio::time::timeout(limits.last, connections.join_all()).await.ok();
}

/// Answers what comes over one connection.
async fn converse(socket: TcpStream, peer: SocketAddr, app: Router, limits: Limits, stop: CancellationToken) {
    let app = TowerToHyperService::new(app);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        app.call(request)
    });
    let (kept, whole) = match limits.lasting {
        Lasting::Kept => (true, Duration::MAX),
        Lasting::One(whole) => (false, whole),
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.head_bytes)
        .keep_alive(kept)
        .serve_connection(TokioIo::new(Patient::new(socket, limits.stall)), service);
    let mut connection = std::pin::pin!(connection);
    // How a connection ends is the other side's affair.
    tokio::select! {
        done = &mut connection => drop(done),
        () = tokio::time::sleep(whole) => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await.ok();
        }
    }
}

/// A socket that is given up where nobody takes what is written into it.
struct Patient {
    socket: TcpStream,
    stall: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(socket: TcpStream, stall: Duration) -> Self {
        Self { socket, stall, waiting: None }
    }

    /// Passes on what writing brought; an error where it has brought nothing for too long.
    fn hold<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let stall = self.stall;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, into)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.hold(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bytes);
        self.hold(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.hold(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.socket).poll_shutdown(cx);
        self.hold(shut, cx)
    }
}
