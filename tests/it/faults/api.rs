//! Faults between the daemon and the API: a recorded stream cut, reset or stalled anywhere is the
//! whole right answer or is asked for again, and never a wrong `complete`.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use promptmill::claude::http::{Auth, ClaudeSettings, HttpClaude};
use promptmill::claude::{Claude, Listener};
use promptmill::domain::job::{Claimed, Defaults, Job, JobId, Lease, Policy, Tally};
use promptmill::domain::outcome::Outcome;
use promptmill::domain::reply::Exchange;
use promptmill::domain::talk::{Request, Step as Next, Talk};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use crate::claude::STREAMS;
use crate::claude::server::{Server, Step, answer, chunk, head, last_chunk};
use crate::mill::harness::Mill;
use crate::support::proxy::{End, Mode, Proxy, Way};
use crate::support::{Ground, on_both};

on_both! {
    whatever_cuts_a_stream_the_job_ends_with_the_whole_answer,
    an_api_that_resets_every_stream_fails_the_job_and_never_completes_it,
}

/// Cuts that are tried beside each other.
const LANES: usize = 4;
/// The head of an answer; the connection is not used again.
const HEAD: [(&str, &str); 3] =
    [("content-type", "text/event-stream"), ("transfer-encoding", "chunked"), ("connection", "close")];

/// A recorded stream as it goes over the wire, each event a chunk of its own.
struct Recording {
    steps: Vec<Step>,
    length: u64,
    /// From where on the stop reason is known: its JSON, and the end of its event.
    stopped: (u64, u64),
}

impl Recording {
    fn of(stream: &str) -> Self {
        let mut recording = Self { steps: vec![head("200 OK", &HEAD)], length: 0, stopped: (0, 0) };
        recording.length = length(&recording.steps[0]);
        for event in stream.split_inclusive("\n\n") {
            let step = chunk(event.as_bytes());
            // A chunk ends with a line break of its own.
            let end = recording.length + length(&step) - 2;
            let told = event.contains("\"message_delta\"") && event.contains("\"stop_reason\":\"");
            if told && recording.stopped.1 == 0 {
                recording.stopped = (end - 2, end);
            }
            recording.length += length(&step);
            recording.steps.push(step);
        }
        recording.steps.push(last_chunk());
        recording.length += length(&last_chunk());
        recording
    }
}

fn length(step: &Step) -> u64 {
    match step {
        Step::Write(bytes) => bytes.len() as u64,
        _ => 0,
    }
}

fn claude(proxy: &Proxy) -> HttpClaude {
    let long = Duration::from_mins(1);
    HttpClaude::new(ClaudeSettings {
        base_url: format!("http://{}", proxy.address()),
        auth: Auth::XApiKey,
        key: Some(SecretString::from("sk-ant-test")),
        key_file: None,
        version: "2026-10-21".to_owned(),
        versions: HashMap::new(),
        headers: Vec::new(),
        connect: long,
        first_event: long,
        idle: long,
        response_max: 1 << 20,
        event_max: 1 << 18,
    })
    .expect("settings that can work")
}

async fn ask(claude: &HttpClaude, request: &Request) -> Exchange {
    let stop = CancellationToken::new();
    claude.ask(request, Listener { stop: &stop, on_content: &|| {}, on_text: &|_| {} }).await
}

fn talk() -> Talk {
    let claimed = Claimed {
        lease: Lease { job: JobId(1), claim: 1, run: 1 },
        queue: "default".into(),
        batch: None,
        prompt: Some("Tell me".into()),
        system: None,
        model: None,
        max_tokens: Some(1000),
        params: None,
        policy: None,
        queue_model: None,
        queue_policy: None,
        garbled: None,
        bytes: 7,
        waited: None,
        tally: Tally::default(),
        calls: Vec::new(),
        tools: Vec::new(),
    };
    let defaults = Defaults {
        model: "m".into(),
        max_tokens: None,
        policy: Policy::default(),
        mcp_servers: false,
        cache_turns: true,
        request_max: 1 << 25,
        models: HashMap::new(),
    };
    Talk::resume(Job::read(&claimed, &defaults).expect("a valid job"), &[], &[], Instant::now())
}

fn first_request() -> Request {
    match talk().next() {
        Next::Ask(request) => request,
        other => panic!("asks nothing: {other:?}"),
    }
}

/// What a job makes of an exchange that ended well: how it ends, or what it asks next; and the text.
fn made_of(exchange: Exchange) -> (Option<Outcome>, String) {
    let text = exchange.reply.text();
    let mut talk = talk();
    talk.push(exchange.reply, 1, 1);
    match talk.next() {
        Next::Tools(asked) => panic!("asks for tools: {asked:?}"),
        Next::Done(verdict) => (Some(verdict.outcome), text),
        Next::Ask(_) => (None, text),
    }
}

/// Cuts a stream at every n-th byte, in lanes beside each other, and sees what becomes of it.
async fn cut(stream: &str, end: End, step: usize) {
    let lanes = (0..LANES).map(|lane| cut_lane(stream, end, lane * step, step * LANES));
    join_all(lanes).await;
}

async fn cut_lane(stream: &str, end: End, first: usize, step: usize) {
    let recording = Recording::of(stream);
    let (json, event) = recording.stopped;
    let server = Server::always(recording.steps).await;
    let address = server.base.trim_start_matches("http://").parse().expect("an address");
    let proxy = Proxy::start(address).await;
    let (claude, request) = (claude(&proxy), first_request());
    let whole = made_of(ask(&claude, &request).await);
    let mut answered = 0;
    let mut asked = 0;
    for at in (first as u64..recording.length).step_by(step) {
        asked += 1;
        proxy.cut_next(Way::ToClient, at, end);
        let exchange = ask(&claude, &request).await;
        if exchange.end.is_ok() {
            assert!(at >= json, "cut at {at}, before its stop reason, and taken for whole");
            assert!(exchange.reply.stop.is_some(), "cut at {at}");
            assert_eq!(made_of(exchange), whole, "cut at {at}");
            answered += 1;
        } else {
            // A reset may overtake what was sent before it.
            assert!(
                at < event || end == End::Reset,
                "cut at {at}, behind its stop reason: {:?}",
                exchange.end
            );
        }
    }
    assert!(answered > 0 && answered < asked, "{answered} of {asked} were whole");
    assert_eq!(proxy.seen().connections, asked + 1, "each was asked on a connection of its own");
}

#[tokio::test]
async fn a_stream_cut_at_every_byte_is_the_whole_answer_or_an_error() {
    tokio::join!(
        cut(STREAMS[0].0, End::Close, 1),
        // The longer ones have less that is new.
        cut(STREAMS[1].0, End::Close, 3),
        cut(STREAMS[2].0, End::Close, 3),
        cut(STREAMS[3].0, End::Close, 1),
    );
}

#[tokio::test]
async fn a_stream_that_is_reset_anywhere_is_the_whole_answer_or_an_error() {
    tokio::join!(cut(STREAMS[0].0, End::Reset, 5), cut(STREAMS[1].0, End::Reset, 11));
}

#[tokio::test]
async fn a_stream_that_comes_in_small_pieces_is_the_same_answer() {
    let server = Server::always(Recording::of(STREAMS[0].0).steps).await;
    let address = server.base.trim_start_matches("http://").parse().expect("an address");
    let proxy = Proxy::start(address).await;
    let (claude, request) = (claude(&proxy), first_request());
    let whole = made_of(ask(&claude, &request).await);
    for bytes in [5, 64] {
        proxy.set(Mode::Throttle(bytes));
        assert_eq!(made_of(ask(&claude, &request).await), whole, "{bytes} at a time");
    }
}

/// Where the first answer to each prompt is cut, and how.
fn places(stream: &str) -> Vec<usize> {
    let mut borders = vec![0];
    for event in stream.split_inclusive("\n\n") {
        borders.push(borders.last().expect("one at least") + event.len());
    }
    let mut places: Vec<usize> = borders
        .iter()
        .flat_map(|&border| [border.saturating_sub(1), border, border + 1])
        .chain(borders.windows(2).map(|pair| usize::midpoint(pair[0], pair[1])))
        .filter(|&at| at < stream.len())
        .collect();
    places.sort_unstable();
    places.dedup();
    places
}

/// An API that cuts the first answer to each prompt where and how the prompt says, and counts what
/// each was asked.
struct Cutting {
    server: Server,
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Cutting {
    async fn start(stream: &'static str, always: bool) -> Self {
        let asked = Arc::new(Mutex::new(BTreeMap::new()));
        let counts = Arc::clone(&asked);
        let server = Server::answering(move |request| {
            let Some((_, rest)) = request.split_once("<<") else {
                // The look at whether the key is good.
                return answer("200 OK", &[("connection", "close")], br#"{"data":[]}"#);
            };
            let prompt = rest.split(">>").next().expect("a first part").to_owned();
            let (at, end) = prompt.split_once(' ').expect("a place and an end");
            let place: usize = at.parse().expect("a number");
            let end = match end {
                "close" => Step::Close,
                "reset" => Step::Reset,
                _ => Step::Hang,
            };
            let mut counts = counts.lock().expect("nobody panicked");
            let count = counts.entry(prompt.clone()).or_insert(0);
            *count += 1;
            let cut = if *count == 1 || always { place } else { stream.len() };
            let head = head("200 OK", &[("content-type", "text/event-stream"), ("connection", "close")]);
            let end = if cut == stream.len() { Step::Close } else { end };
            vec![head, Step::Write(stream.as_bytes()[..cut].to_vec()), end]
        })
        .await;
        Self { server, asked }
    }

    fn asked(&self) -> BTreeMap<String, usize> {
        self.asked.lock().expect("nobody panicked").clone()
    }
}

async fn mill<'g>(ground: &'g Ground, api: &Cutting) -> Mill<'g> {
    let mut mill = Mill::new(ground).await;
    mill.set("ANTHROPIC_BASE_URL", &api.server.base);
    mill.set("PROMPTMILL_API__FIRST_EVENT_SECONDS", "0.5");
    mill.set("PROMPTMILL_API__IDLE_SECONDS", "0.5");
    // The breaker is not what this is about.
    mill.set("PROMPTMILL_BREAKER__FAILURES_IN_A_ROW", "1000");
    mill.set("PROMPTMILL_BREAKER__CALLS_MIN", "1000");
    mill
}

async fn whatever_cuts_a_stream_the_job_ends_with_the_whole_answer(ground: &Ground) {
    let (stream, whole) = STREAMS[0];
    let api = Cutting::start(stream, false).await;
    let mill = mill(ground, &api).await;
    let mut jobs = 0;
    for end in ["close", "reset", "hang"] {
        for at in places(stream) {
            mill.insert(&[&format!("<<{at} {end}>>")]).await;
            jobs += 1;
        }
    }
    let ran = mill.drain().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    mill.holds().await;
    let rows = ground
        .rows(
            "SELECT j.prompt, r.outcome, r.stop_reason, r.text, r.calls,
                    (SELECT count(*) FROM calls c WHERE c.job_id = j.id)
               FROM jobs j JOIN results r ON r.job_id = j.id",
        )
        .await;
    assert_eq!(rows.len(), jobs);
    let delta = stream.find("data: {\"type\":\"message_delta\"").expect("a stop reason");
    let stopped = delta + stream[delta..].find("\n\n").expect("its end") + 2;
    let asked = api.asked();
    for row in rows {
        let prompt = row[0].trim_matches(['<', '>']);
        assert_eq!(&row[1..4], ["complete", "end_turn", whole], "{prompt}");
        let calls = asked[prompt].to_string();
        assert_eq!(&row[4..], [calls.as_str(), calls.as_str()], "{prompt}: the ledger is not what was asked");
        let (at, end) = prompt.split_once(' ').expect("a place and an end");
        let at: usize = at.parse().expect("a number");
        // Behind the stop reason nothing is missing, however the stream ends there.
        if at >= stopped {
            assert_eq!(calls, "1", "{prompt}: paid for twice");
        } else if at + 2 < stopped {
            assert_eq!(calls, "2", "{prompt}");
        }
        assert!(["close", "reset", "hang"].contains(&end));
    }
}

async fn an_api_that_resets_every_stream_fails_the_job_and_never_completes_it(ground: &Ground) {
    let stream = STREAMS[0].0;
    let api = Cutting::start(stream, true).await;
    let mut mill = mill(ground, &api).await;
    mill.set("PROMPTMILL_DEFAULTS__MAX_FAILURES", "2");
    let delta = stream.find("event: message_delta").expect("a stop reason");
    for end in ["close", "reset"] {
        for at in [0, 1, delta / 2, delta] {
            mill.insert(&[&format!("<<{at} {end}>>")]).await;
        }
    }
    let ran = mill.drain().await;
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    mill.holds().await;
    let lines = ground.lines("SELECT DISTINCT outcome, calls, failures FROM results").await;
    assert_eq!(lines, ["failed|2|2"]);
    let asked: usize = api.asked().values().sum();
    assert_eq!(ground.line("SELECT count(*) FROM calls").await, asked.to_string());
}
