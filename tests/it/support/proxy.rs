//! A TCP proxy that misbehaves on purpose, and is told how while connections live.
//!
//! It knows nothing of what passes through. Each connection copies both ways by itself; how it
//! copies is one value that all of them watch.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

/// How the proxy treats what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Passes it on.
    Forward,
    /// Accepts connections and passes nothing on, not even an end: the other side seems to be there.
    Stall,
    /// Takes no new connection; the living ones go on.
    Refuse,
    /// Passes on so many bytes at a time, with a pause of a millisecond after each.
    Throttle(usize),
}

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

/// How a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In order, as if the other side had closed.
    Close,
    /// By a reset: what was on its way is lost.
    Reset,
    /// Not at all, but nothing passes that way any more.
    Silence,
}

/// Where connections are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    way: Way,
    bytes: u64,
    end: End,
    /// Whether the next connection alone is meant.
    once: bool,
}

/// What the proxy has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub connections: u64,
    pub to_server: u64,
    pub to_client: u64,
}

/// A proxy that runs until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

struct Shared {
    server: Mutex<SocketAddr>,
    cut: Mutex<Option<Cut>>,
    kill: broadcast::Sender<End>,
    connections: AtomicU64,
    to_server: AtomicU64,
    to_client: AtomicU64,
}

impl Proxy {
    /// Starts in front of a server.
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (mode, watched) = watch::channel(Mode::Forward);
        let shared = Arc::new(Shared {
            server: Mutex::new(server),
            cut: Mutex::new(None),
            kill: broadcast::Sender::new(4),
            connections: AtomicU64::new(0),
            to_server: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, address, watched, Arc::clone(&shared)));
        Self { address, mode, shared, _tasks: tasks }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Treats everything so from now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Leads new connections to another server.
    pub fn lead_to(&self, server: SocketAddr) {
        *lock(&self.shared.server) = server;
    }

    /// Cuts the next connection when so many bytes have passed one way; the one after it is whole again.
    pub fn cut_next(&self, way: Way, bytes: u64, end: End) {
        *lock(&self.shared.cut) = Some(Cut { way, bytes, end, once: true });
    }

    /// Cuts every connection from now on when so many bytes have passed one way.
    pub fn cut_every(&self, way: Way, bytes: u64, end: End) {
        *lock(&self.shared.cut) = Some(Cut { way, bytes, end, once: false });
    }

    /// Ends all living connections.
    pub fn end_all(&self, end: End) {
        // Nobody listens where no connection lives.
        self.shared.kill.send(end).ok();
    }

    /// Returns what passed since the start.
    pub fn seen(&self) -> Seen {
        Seen {
            connections: self.shared.connections.load(Ordering::Relaxed),
            to_server: self.shared.to_server.load(Ordering::Relaxed),
            to_client: self.shared.to_client.load(Ordering::Relaxed),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(
    listener: TcpListener,
    address: SocketAddr,
    mut mode: watch::Receiver<Mode>,
    shared: Arc<Shared>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let now = *mode.borrow_and_update();
        if now == Mode::Refuse {
            // Without a listener the kernel itself refuses.
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(address).await.ok();
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None if now == Mode::Refuse => std::future::pending().await,
                // Somebody else has the port for a moment.
                None => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Err(std::io::ErrorKind::AddrInUse.into())
                }
            }
        };
        tokio::select! {
            accepted = accepted => if let Ok((client, _)) = accepted {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(carry(client, mode.clone(), Arc::clone(&shared)));
            },
            changed = mode.changed() => if changed.is_err() {
                return;
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection to its end.
async fn carry(mut client: TcpStream, mode: watch::Receiver<Mode>, shared: Arc<Shared>) {
    let mut killed = shared.kill.subscribe();
    let cut = {
        let mut cut = lock(&shared.cut);
        if cut.is_some_and(|cut| cut.once) { cut.take() } else { *cut }
    };
    let server = *lock(&shared.server);
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    for side in [&client, &server] {
        side.set_nodelay(true).ok();
    }
    let limit = |way: Way| cut.filter(|cut| cut.way == way).map(|cut| (cut.bytes, cut.end));
    let end = {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let up = Pump { mode: mode.clone(), count: &shared.to_server, limit: limit(Way::ToServer) };
        let down = Pump { mode, count: &shared.to_client, limit: limit(Way::ToClient) };
        let both = async {
            tokio::try_join!(
                up.run(&mut from_client, &mut to_server),
                down.run(&mut from_server, &mut to_client),
            )
        };
        tokio::select! {
            ended = both => ended.err().unwrap_or(End::Close),
            end = killed.recv() => end.unwrap_or(End::Close),
        }
    };
    if end == End::Reset {
        for side in [&client, &server] {
            side.set_zero_linger().ok();
        }
    }
}

/// One direction of one connection.
struct Pump<'a> {
    mode: watch::Receiver<Mode>,
    count: &'a AtomicU64,
    limit: Option<(u64, End)>,
}

impl Pump<'_> {
    /// Copies until one side ends, which is passed on (`Ok`), or until the connection is to be ended.
    async fn run(mut self, from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>) -> Result<(), End> {
        let mut buffer = vec![0; 16 << 10];
        let mut left = self.limit.map_or(u64::MAX, |(bytes, _)| bytes);
        let cut = self.limit.map_or(End::Close, |(_, end)| end);
        loop {
            match cut {
                End::Silence if left == 0 => std::future::pending().await,
                cut if left == 0 => return Err(cut),
                _ => {}
            }
            let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let read = from.read(&mut buffer[..room]).await.map_err(|_| End::Reset)?;
            self.mode.wait_for(|mode| *mode != Mode::Stall).await.map_err(|_| End::Close)?;
            if read == 0 {
                to.shutdown().await.ok();
                return Ok(());
            }
            self.write(&buffer[..read], to).await.map_err(|_| End::Reset)?;
            left -= read as u64;
        }
    }

    async fn write(&mut self, bytes: &[u8], to: &mut WriteHalf<'_>) -> std::io::Result<()> {
        let mode = *self.mode.borrow();
        let piece = if let Mode::Throttle(bytes) = mode { bytes.max(1) } else { bytes.len() };
        for piece in bytes.chunks(piece) {
            to.write_all(piece).await?;
            self.count.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if matches!(mode, Mode::Throttle(_)) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        Ok(())
    }
}
