//! A writer that never waits: lines go through a bounded queue to a thread of their own.
//!
//! A pipe that nobody reads, a terminal that was stopped or a disk that hangs would else stand every
//! task still that logs, in the midst of paid calls. What does not fit into the queue is counted and
//! told about as soon as lines flow again. What cannot be written (a closed pipe, a full disk) is given up.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait: a burst of some thousand jobs that end together.
const LINES_MAX: usize = 8192;
/// Pause between two tries to hand in the last word.
const PAUSE: Duration = Duration::from_millis(5);

enum Piece {
    Line(Vec<u8>),
    /// Tells that all before it is written.
    End(SyncSender<()>),
}

/// The near end: takes whole lines, never waits.
#[derive(Clone)]
pub struct Lines {
    pieces: SyncSender<Piece>,
    dropped: Arc<AtomicU64>,
}

impl Lines {
    /// Starts the thread that writes. `missing` makes the line that tells how many were dropped.
    pub fn start(to: impl Write + Send + 'static, missing: fn(u64) -> String) -> io::Result<Self> {
        let (pieces, taken) = sync_channel(LINES_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&dropped);
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write(to, &taken, &count, missing))?;
        Ok(Self { pieces, dropped })
    }

    /// Waits until all that was logged is written, but no longer than `limit`: nobody may be reading.
    pub fn finish(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let (done, hear) = sync_channel(1);
        let mut end = Piece::End(done);
        while let Err(TrySendError::Full(back)) = self.pieces.try_send(end) {
            if Instant::now() >= until {
                return;
            }
            end = back;
            std::thread::sleep(PAUSE);
        }
        // Passing is the ordinary end where nobody reads.
        hear.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
    }

    /// Says something beside the log, in its order.
    pub fn say(&self, sentence: &str) {
        self.hand_in(format!("{sentence}\n").into_bytes());
    }

    fn hand_in(&self, line: Vec<u8>) {
        if self.pieces.try_send(Piece::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Write for Lines {
    /// Takes a whole line, which is what the layer writes at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.hand_in(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn write(mut to: impl Write, pieces: &Receiver<Piece>, dropped: &AtomicU64, missing: fn(u64) -> String) {
    for piece in pieces {
        let line = match piece {
            Piece::Line(line) => line,
            Piece::End(done) => {
                to.flush().ok();
                // Nobody listens any more where the time was over.
                done.try_send(()).ok();
                continue;
            }
        };
        // What was dropped came after this line. A line that cannot be written is lost: there is no
        // other place to say so.
        to.write_all(&line).ok();
        let many = dropped.swap(0, Ordering::Relaxed);
        if many > 0 {
            to.write_all(missing(many).as_bytes()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// A reader that reads nothing until it is told to.
    struct Stuck {
        free: Receiver<()>,
        met: Sender<()>,
        read: Arc<Mutex<Vec<u8>>>,
        first: bool,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if std::mem::replace(&mut self.first, false) {
                self.met.send(()).unwrap();
                self.free.recv().unwrap();
            }
            self.read.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_does_not_read_holds_nobody_up_and_learns_how_much_it_missed() {
        let (release, free) = channel();
        let (met, is_stuck) = channel();
        let read = Arc::new(Mutex::new(Vec::new()));
        let to = Stuck { free, met, read: Arc::clone(&read), first: true };
        let mut lines = Lines::start(to, |many| format!("{many} missing\n")).unwrap();
        lines.write_all(b"first\n").unwrap();
        is_stuck.recv().unwrap();
        for line in 0..LINES_MAX + 5 {
            lines.write_all(format!("{line}\n").as_bytes()).unwrap();
        }
        lines.finish(Duration::from_millis(20));
        release.send(()).unwrap();
        lines.finish(Duration::from_mins(1));
        let read = String::from_utf8(read.lock().unwrap().clone()).unwrap();
        assert!(read.starts_with("first\n5 missing\n0\n1\n"), "{}", &read[..60]);
        assert!(read.ends_with(&format!("{}\n", LINES_MAX - 1)));
    }

    #[test]
    fn a_closed_pipe_is_given_up_line_by_line() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let mut lines = Lines::start(Closed, |_| String::new()).unwrap();
        lines.write_all(b"lost\n").unwrap();
        lines.finish(Duration::from_mins(1));
    }
}
