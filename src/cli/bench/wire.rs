//! A wire between the daemon and the stand-in that tells when a call passes.
//!
//! So both ends of "from the INSERT to the call" are read from one clock, our own: a millisecond
//! column would be too coarse, and the daemon's own word is not asked.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::prompt;

/// Longest time to wait for a call.
const CALL_MAX: Duration = Duration::from_secs(30);
/// A call that passed: the number in its prompt, and when its first bytes did.
type Passed = (u64, Instant);

/// A wire. Dropping it cuts it.
pub(super) struct Wire {
    /// Where the daemon finds the stand-in now.
    pub(super) url: String,
    passed: mpsc::UnboundedReceiver<Passed>,
    _tasks: JoinSet<()>,
}

impl Wire {
    /// Puts a wire before a stand-in.
    pub(super) async fn to(api: &str) -> anyhow::Result<Self> {
        let api = api.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (tell, passed) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            // The stand-in that is gone, or a daemon that hung up, is noticed by whoever waits.
            while let Ok((daemon, _)) = listener.accept().await {
                let (api, tell) = (api.clone(), tell.clone());
                open.spawn(async move { pass(daemon, &api, &tell).await.ok() });
                while open.try_join_next().is_some() {}
            }
        });
        Ok(Self { url, passed, _tasks: tasks })
    }

    /// Waits until the call with this number passes; others are passed over.
    pub(super) async fn call(&mut self, number: u64) -> anyhow::Result<Instant> {
        let passed = async {
            loop {
                let (seen, at) = self.passed.recv().await.context("the wire is cut")?;
                if seen == number {
                    return Ok(at);
                }
            }
        };
        tokio::time::timeout(CALL_MAX, passed).await.with_context(|| format!("job {number} is not asked"))?
    }
}

async fn pass(daemon: TcpStream, api: &str, tell: &mpsc::UnboundedSender<Passed>) -> std::io::Result<()> {
    let api = TcpStream::connect(api).await?;
    daemon.set_nodelay(true)?;
    api.set_nodelay(true)?;
    let (mut asked, mut answer) = daemon.into_split();
    let (mut said, mut ask) = api.into_split();
    let there = async {
        let (mut bytes, mut seen) = (vec![0; 16 * 1024], Vec::new());
        loop {
            let many = asked.read(&mut bytes).await?;
            if many == 0 {
                return ask.shutdown().await;
            }
            let at = Instant::now();
            ask.write_all(&bytes[..many]).await?;
            seen.extend_from_slice(&bytes[..many]);
            while let Some((number, rest)) = next(&seen) {
                tell.send((number, at)).ok();
                seen.drain(..rest);
            }
            // A number may be cut by the end of what was read.
            let surplus = seen.len().saturating_sub(KEPT);
            seen.drain(..surplus);
        }
    };
    let back = copy(&mut said, &mut answer);
    tokio::select! {
        there = there => there,
        back = back => back.map(|_| ()),
    }
}

/// Bytes in which a prompt's start and number stand.
const KEPT: usize = 80;

/// Finds the next number that is whole, and the place behind it.
fn next(bytes: &[u8]) -> Option<(u64, usize)> {
    let start = memchr::memmem::find(bytes, prompt::START.as_bytes())? + prompt::START.len();
    let digits = bytes[start..].iter().position(|byte| !byte.is_ascii_digit())?;
    let number = std::str::from_utf8(&bytes[start..start + digits]).ok()?.parse().ok()?;
    Some((number, start + digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_and_a_cut_one_is_waited_for() {
        let two = b"x Say something about number 17\"} Say something about number 4";
        let (number, rest) = next(two).unwrap();
        assert_eq!(number, 17);
        assert_eq!(next(&two[rest..]), None);
        assert_eq!(next(b"Say something about number 42.").map(|(number, _)| number), Some(42));
    }
}
