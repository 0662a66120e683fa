//! The same streamed calls over HTTP/1.1 and HTTP/2, with and without TLS: which costs less?
//!
//! ```sh
//! cargo run --release --manifest-path benches/http-versions/Cargo.toml
//! ```
//!
//! A server of its own process answers like the Messages API does, first at once, then slowly. Client and server
//! run on the same machine. Four ways take turns, so that a noisy machine is noisy for all.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Calls at once, where they are answered at once.
const IN_FLIGHT: usize = 256;
/// Calls of a run, likewise.
const CALLS: usize = 30_000;
/// Slow streams at once.
const STREAMS: usize = 2_000;
/// Events of a slow stream, one each quarter of a second.
const SLOW_EVENTS: usize = 24;
const SLOW_PAUSE: Duration = Duration::from_millis(250);
/// Runs of each way.
const RUNS: usize = 3;

/// A way to speak with the server.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Way {
    http2: bool,
    tls: bool,
}

const WAYS: [Way; 4] = [
    Way { http2: false, tls: false },
    Way { http2: true, tls: false },
    Way { http2: false, tls: true },
    Way { http2: true, tls: true },
];

impl Way {
    fn name(self) -> String {
        let version = if self.http2 { "HTTP/2" } else { "HTTP/1.1" };
        format!("{version}{}", if self.tls { " over TLS" } else { "" })
    }
}

/// What a run of a client came to.
struct Run {
    seconds: f64,
    cpu: f64,
    memory_mb: f64,
    connections: usize,
}

fn main() -> Result<()> {
    rustls::crypto::ring::default_provider().install_default().ok();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    runtime.block_on(async {
        match words[..] {
            ["serve", tls] => serve(tls == "tls").await,
            ["call", address, http2, tls, slow] => {
                let way = Way { http2: http2 == "true", tls: tls == "true" };
                call(address.parse()?, way, slow == "true").await
            }
            [] => compare().await,
            _ => bail!("no arguments are known"),
        }
    })
}

/// Runs all ways in turns, each in a process of its own, and prints the medians.
async fn compare() -> Result<()> {
    let mut servers = Vec::new();
    for tls in ["plain", "tls"] {
        servers.push(Server::start(tls)?);
    }
    println!(
        "| | calls a second | CPU seconds a thousand | connections | {STREAMS} slow streams: memory, MB | CPU seconds |"
    );
    println!("|---|---|---|---|---|---|");
    let mut quick: Vec<Vec<Run>> = WAYS.map(|_| Vec::new()).into();
    let mut slow: Vec<Vec<Run>> = WAYS.map(|_| Vec::new()).into();
    for _ in 0..RUNS {
        for (at, way) in WAYS.into_iter().enumerate() {
            let address = servers[usize::from(way.tls)].address;
            quick[at].push(run(address, way, false).await?);
            slow[at].push(run(address, way, true).await?);
        }
    }
    for (at, way) in WAYS.into_iter().enumerate() {
        let rate = median(quick[at].iter().map(|run| CALLS as f64 / run.seconds));
        let cpu = median(quick[at].iter().map(|run| run.cpu / CALLS as f64 * 1_000.0));
        let connections = quick[at][0].connections;
        let memory = median(slow[at].iter().map(|run| run.memory_mb));
        let slow_cpu = median(slow[at].iter().map(|run| run.cpu));
        let name = way.name();
        println!("| {name} | {rate:.0} | {cpu:.4} | {connections} | {memory:.0} | {slow_cpu:.2} |");
    }
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A server of its own process, which ends with this one.
struct Server {
    address: SocketAddr,
    child: std::process::Child,
}

impl Server {
    fn start(tls: &str) -> Result<Self> {
        use std::io::BufRead as _;
        let mut child = std::process::Command::new(std::env::current_exe()?)
            .args(["serve", tls])
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        Ok(Self { address: line.trim().parse()?, child })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

async fn run(address: SocketAddr, way: Way, slow: bool) -> Result<Run> {
    let told = [address.to_string(), way.http2.to_string(), way.tls.to_string(), slow.to_string()];
    let done = tokio::process::Command::new(std::env::current_exe()?).arg("call").args(told).output().await?;
    let said = String::from_utf8(done.stdout)?;
    let said: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [seconds, cpu, memory_mb, connections] = said[..] else {
        bail!("{}: {}", way.name(), String::from_utf8_lossy(&done.stderr))
    };
    Ok(Run { seconds, cpu, memory_mb, connections: connections as usize })
}

/// The client: makes all calls, and prints what they cost.
async fn call(address: SocketAddr, way: Way, slow: bool) -> Result<()> {
    let client = reqwest::Client::builder()
        .tls_danger_accept_invalid_certs(true)
        .tcp_nodelay(true)
        .no_proxy()
        .pool_max_idle_per_host(usize::MAX);
    let client = if way.http2 { client.http2_prior_knowledge() } else { client.http1_only() };
    let client = client.build()?;
    let scheme = if way.tls { "https" } else { "http" };
    let url = format!("{scheme}://localhost:{}/{}", address.port(), if slow { "slow" } else { "quick" });
    let (at_once, calls) = if slow { (STREAMS, STREAMS) } else { (IN_FLIGHT, CALLS) };
    let (next, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let mut tasks = JoinSet::new();
    for _ in 0..at_once {
        let (client, url, next) = (client.clone(), url.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < calls {
                let body = r#"{"model":"m","max_tokens":128000,"messages":[{"role":"user","content":"Say something about number 1"}],"stream":true}"#;
                let answer = client.post(&url).header("x-api-key", "bench").body(body).send().await?;
                let mut answer = answer.error_for_status()?.bytes_stream();
                // A piece may be any part of it, and empty.
                let mut whole = Vec::new();
                while let Some(piece) = answer.next().await {
                    whole.extend_from_slice(&piece?);
                }
                if !whole.ends_with(b"\"message_stop\"}\n\n") {
                    bail!("an answer was cut");
                }
            }
            Ok(())
        });
    }
    let mut connections = 0;
    while let Some(done) = tasks.join_next().await {
        done??;
        connections = connections.max(connected(address.port())?);
    }
    let (cpu, memory) = (cpu()?, memory()?);
    println!("{} {cpu} {memory} {connections}", began.elapsed().as_secs_f64());
    Ok(())
}

/// CPU seconds of this process, of Linux' hundred ticks each.
fn cpu() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("a name")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
}

/// The most memory that this process held, in MB.
fn memory() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("a peak")?;
    Ok(peak.trim().trim_end_matches(" kB").parse::<f64>()? / 1_000.0)
}

/// Connections to a port that are open. Looked at when a call has ended, but not each time.
fn connected(port: u16) -> Result<usize> {
    static LOOKED: AtomicUsize = AtomicUsize::new(0);
    if LOOKED.fetch_add(1, Ordering::Relaxed) > 0 {
        return Ok(0);
    }
    let (tail, established) = (format!(":{port:04X}"), "01");
    let mut open = 0;
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let is = |line: &&str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.len() > 3 && fields[2].ends_with(&tail) && fields[3] == established
        };
        open += std::fs::read_to_string(table)?.lines().filter(is).count();
    }
    Ok(open)
}

/// The server: says its address, and answers until it is killed.
async fn serve(tls: bool) -> Result<()> {
    let acceptor = if tls { Some(acceptor()?) } else { None };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let mut server = auto::Builder::new(TokioExecutor::new());
            server.http2().max_concurrent_streams(1_000);
            // A client that is done hangs up in the middle of things.
            match acceptor {
                None => server.serve_connection(TokioIo::new(socket), service_fn(answer)).await.ok(),
                Some(acceptor) => match acceptor.accept(socket).await {
                    Ok(socket) => {
                        server.serve_connection(TokioIo::new(socket), service_fn(answer)).await.ok()
                    }
                    Err(_) => None,
                },
            }
        });
    }
}

fn acceptor() -> Result<tokio_rustls::TlsAcceptor> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der())
        .map_err(|why| anyhow::anyhow!(why))?;
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tokio_rustls::TlsAcceptor::from(Arc::new(config)))
}

type Answer = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>;

/// About forty words, in as many events as the API makes of them: at once in one piece, or slowly one by one.
async fn answer(request: Request<Incoming>) -> Result<Answer, hyper::Error> {
    let slow = request.uri().path() == "/slow";
    request.into_body().collect().await?;
    let delta = |n: usize| {
        format!(
            "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"type\":\"text_delta\",\"text\":\"four words of it {n} \"}}}}\n\n"
        )
    };
    let stop = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    let body = if slow {
        let events = stream::unfold(0, move |n| async move {
            if n > SLOW_EVENTS {
                return None;
            }
            tokio::time::sleep(SLOW_PAUSE).await;
            let event = if n == SLOW_EVENTS { stop.to_owned() } else { delta(n) };
            Some((Ok(Frame::data(Bytes::from(event))), n + 1))
        });
        StreamBody::new(events).boxed_unsync()
    } else {
        let whole: String = (0..10).map(delta).chain([stop.to_owned()]).collect();
        StreamBody::new(stream::iter([Ok(Frame::data(Bytes::from(whole)))])).boxed_unsync()
    };
    let answer = Response::builder().header("content-type", "text/event-stream").body(body);
    Ok(answer.unwrap_or_default())
}
