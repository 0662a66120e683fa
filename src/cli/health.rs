//! `promptmill health`: whether the daemon beside this command lives, or works, for programs that can only run
//! a program to learn it, as containers do.
//!
//! Asks the daemon's own listener and nothing else: neither the database nor the API.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use super::exit::{Exit, Stop};
use super::open::Context;
use super::out::{Out, say};

/// Longest time that the daemon may take. It looks at its own memory; who asks has patience of its own.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Says whether the daemon on this host lives: its loops turn. Exits with 0 where it does, else with 1.
///
/// Asks the address in metrics.listen, which has to be set, of the same configuration as the daemon's.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whether it works, too: it reaches its database, and was not told to stop
    #[arg(long)]
    ready: bool,
}

/// What the daemon says of itself, as in `docs/metrics.md`.
#[derive(Debug, Deserialize)]
struct Said {
    reasons: Vec<Reason>,
    #[serde(default)]
    notes: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Reason {
    reason: String,
    message: String,
}

/// Runs the command.
pub async fn run(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let Some(listen) = context.load()?.metrics.listen else {
        let sentence =
            "nobody can be asked: set metrics.listen for the daemon and for this command, such as \
                        127.0.0.1:9464"
                .to_owned();
        return Err(Stop { exit: Exit::Config, sentence }.into());
    };
    if listen.port() == 0 {
        let sentence = format!("metrics.listen is {listen}, a port that only the daemon knows: name one");
        return Err(Stop { exit: Exit::Config, sentence }.into());
    }
    let (path, well, unwell) =
        if args.ready { ("/readyz", "ready", "not ready") } else { ("/livez", "alive", "stuck") };
    let (place, status, text) = first(&places(listen), path).await?;
    let said = match status {
        StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE => serde_json::from_str::<Said>(&text).ok(),
        _ => None,
    };
    let Some(said) = said else {
        return Err(Stop::failure(format!(
            "what answers at http://{place}{path} is no promptmill: it says {status}"
        )));
    };
    if context.json {
        let mut out = Out::stdout();
        out.line(text.trim_end())?;
        out.flush()?;
    }
    if status == StatusCode::OK {
        say(&format!("the daemon at {place} is {well}{}", noted(&said.notes)));
        return Ok(Exit::Good);
    }
    let why: Vec<String> =
        said.reasons.iter().map(|reason| format!("{} ({})", reason.message, reason.reason)).collect();
    Err(Stop::failure(format!("the daemon at {place} is {unwell}: {}", why.join("; "))))
}

fn noted(notes: &[String]) -> String {
    if notes.is_empty() { String::new() } else { format!("; {}", notes.join("; ")) }
}

/// Where to ask one that listens there: every address of a host has its loopback among them.
fn places(listen: SocketAddr) -> Vec<SocketAddr> {
    let at = |ip: IpAddr| SocketAddr::new(ip, listen.port());
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![at(Ipv4Addr::LOCALHOST.into())],
        // It takes both kinds, and the loopback may have one alone.
        IpAddr::V6(ip) if ip.is_unspecified() => {
            vec![at(Ipv6Addr::LOCALHOST.into()), at(Ipv4Addr::LOCALHOST.into())]
        }
        _ => vec![listen],
    }
}

/// Asks the first place that takes a connection.
async fn first(places: &[SocketAddr], path: &str) -> anyhow::Result<(SocketAddr, StatusCode, String)> {
    let (mut place, mut why) = (places[0], String::new());
    for tried in places {
        place = *tried;
        match tokio::time::timeout(ANSWER_MAX, TcpStream::connect(place)).await {
            Ok(Ok(stream)) => {
                let asked = tokio::time::timeout(ANSWER_MAX, ask(stream, place, path)).await;
                let (status, text) = asked
                    .unwrap_or_else(|_| anyhow::bail!("no answer for {} s", ANSWER_MAX.as_secs()))
                    .with_context(|| format!("the daemon at {place} does not answer"))?;
                return Ok((place, status, text));
            }
            Ok(Err(error)) => why = error.to_string(),
            Err(_) => why = format!("no connection for {} s", ANSWER_MAX.as_secs()),
        }
    }
    Err(Stop::failure(format!("no daemon listens at {place}: {why}")))
}

/// Asks one question. No client with a proxy, redirects or certificates: this is between two processes here.
async fn ask(stream: TcpStream, place: SocketAddr, path: &str) -> anyhow::Result<(StatusCode, String)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header(header::HOST, place.to_string()).body(Body::empty())?;
    let asked = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let bytes = axum::body::to_bytes(Body::new(answer.into_body()), ANSWER_BYTES_MAX).await?;
        Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
    };
    // The answer may be whole before the connection is done; what becomes of that is nobody's concern.
    tokio::pin!(asked);
    tokio::select! {
        answer = &mut asked => answer,
        ended = connection => match ended {
            Ok(()) => asked.await,
            Err(error) => Err(error.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_asked_over_loopback() {
        let asked = |listen: &str| {
            let places = places(listen.parse().expect("an address"));
            places.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(asked("0.0.0.0:9464"), ["127.0.0.1:9464"]);
        assert_eq!(asked("[::]:9464"), ["[::1]:9464", "127.0.0.1:9464"]);
        assert_eq!(asked("127.0.0.1:9464"), ["127.0.0.1:9464"]);
        assert_eq!(asked("10.1.2.3:9464"), ["10.1.2.3:9464"]);
    }
}
