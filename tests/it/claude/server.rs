//! A server on a socket that answers each request with scripted bytes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// What the server does with a request.
#[derive(Clone)]
pub enum Step {
    Write(Vec<u8>),
    /// Writes nothing more until the client hangs up.
    Hang,
    /// Breaks the connection.
    Reset,
    /// Ends the connection.
    Close,
    /// Waits until the test says so.
    Wait(Arc<Notify>),
}

type Scripts = dyn Fn(&str) -> Vec<Step> + Send + Sync;

pub struct Server {
    pub base: String,
    seen: Arc<Mutex<Seen>>,
    /// Dropping it ends the server.
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    connections: usize,
    requests: Vec<String>,
}

impl Server {
    /// Starts; the n-th request gets the n-th script, later ones the last.
    pub async fn start(scripts: Vec<Vec<Step>>) -> Self {
        let next = AtomicUsize::new(0);
        Self::answering(move |_| {
            let at = next.fetch_add(1, Ordering::Relaxed);
            scripts[at.min(scripts.len() - 1)].clone()
        })
        .await
    }

    /// Starts; each request, head and body, gets the script that it is given for it.
    pub async fn answering(script: impl Fn(&str) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = Arc::clone(&seen);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            let script: Arc<Scripts> = Arc::new(script);
            while let Ok((socket, _)) = listener.accept().await {
                socket.set_nodelay(true).unwrap();
                shared.lock().unwrap().connections += 1;
                connections.spawn(serve(socket, Arc::clone(&script), Arc::clone(&shared)));
            }
        });
        Self { base, seen, _tasks: tasks }
    }

    /// Starts a server that always answers the same.
    pub async fn always(script: Vec<Step>) -> Self {
        Self::start(vec![script]).await
    }

    pub fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().requests.clone()
    }

    pub fn connections(&self) -> usize {
        self.seen.lock().unwrap().connections
    }
}

async fn serve(mut socket: TcpStream, script: Arc<Scripts>, seen: Arc<Mutex<Seen>>) {
    while let Some(request) = read_request(&mut socket).await {
        let steps = script(&request);
        seen.lock().unwrap().requests.push(request);
        for step in steps {
            match step {
                Step::Write(bytes) => {
                    if socket.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                Step::Hang => {
                    while socket.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
                    return;
                }
                Step::Reset => {
                    socket.set_zero_linger().unwrap();
                    return;
                }
                Step::Close => return,
                Step::Wait(notify) => notify.notified().await,
            }
        }
    }
}

async fn read_request(socket: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return Some(text.into_owned());
            }
        }
        let mut buffer = [0; 4096];
        match socket.read(&mut buffer).await {
            Ok(read) if read > 0 => bytes.extend_from_slice(&buffer[..read]),
            _ => return None,
        }
    }
}

/// A head and nothing else; the body is what follows until the end of the connection.
pub fn head(status: &str, headers: &[(&str, &str)]) -> Step {
    let mut head = format!("HTTP/1.1 {status}\r\n");
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str("\r\n");
    Step::Write(head.into_bytes())
}

/// A whole answer with a length.
pub fn answer(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<Step> {
    let length = body.len().to_string();
    let mut headers = headers.to_vec();
    headers.push(("content-length", &length));
    vec![head(status, &headers), Step::Write(body.to_vec())]
}

/// The head of a chunked stream of events.
pub fn stream_head() -> Step {
    head(
        "200 OK",
        &[
            ("content-type", "text/event-stream"),
            ("transfer-encoding", "chunked"),
            ("request-id", "req_head"),
        ],
    )
}

pub fn chunk(bytes: &[u8]) -> Step {
    let mut out = format!("{:x}\r\n", bytes.len()).into_bytes();
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
    Step::Write(out)
}

pub fn last_chunk() -> Step {
    Step::Write(b"0\r\n\r\n".to_vec())
}

/// A whole chunked stream.
pub fn stream(body: &str) -> Vec<Step> {
    vec![stream_head(), chunk(body.as_bytes()), last_chunk()]
}

/// A whole streamed reply of these blocks, each told by its start.
pub fn reply(stop: &str, blocks: &[&str]) -> Vec<Step> {
    let start = r#"{"type":"message_start","message":{"id":"msg_1","model":"m","role":"assistant","content":[],"usage":{"input_tokens":1,"output_tokens":1}}}"#;
    let mut events = vec![start.to_owned()];
    for (at, block) in blocks.iter().enumerate() {
        events.push(format!(r#"{{"type":"content_block_start","index":{at},"content_block":{block}}}"#));
        events.push(format!(r#"{{"type":"content_block_stop","index":{at}}}"#));
    }
    events.push(format!(
        r#"{{"type":"message_delta","delta":{{"stop_reason":"{stop}"}},"usage":{{"output_tokens":2}}}}"#
    ));
    events.push(r#"{"type":"message_stop"}"#.to_owned());
    stream(&format!("data: {}\n\n", events.join("\n\ndata: ")))
}
