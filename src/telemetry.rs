//! Logging: text or JSON, on stderr, which never holds up who logs ([`unblocked`]); and, where it was built
//! in, the export of spans ([`mod@spans`]).
//!
//! Other people's crates print what passes through them at `debug` and `trace`: headers, statements,
//! bodies. So they are capped here, whatever was asked for, and no key, prompt or password can come
//! out of them. What our own code may log is its own duty.

mod spans;
mod unblocked;

use std::io::{self, IsTerminal as _, Write};

pub use spans::Spans;
pub use unblocked::Lines;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::{FilterExt as _, Targets, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogFormat, LogSettings};

/// Our own target; all others are capped.
const OURS: &str = "promptmill";
/// Messages that a database sends along: triggers of the user's own, which may quote prompts.
const NOTICES: &str = "sqlx::postgres::notice";

/// The driver's complaints of slowness: a locked database is told by us, in words. Spoken where named.
const SLOW: [&str; 2] = ["sqlx::query", "sqlx::pool"];

/// Starts logging to stderr. Fails where logging was started before.
///
/// What it returns is to be told when the process ends, so that the last lines are written.
pub fn init(settings: &LogSettings) -> anyhow::Result<Lines> {
    let colour = settings.colour && io::stderr().is_terminal();
    let lines = Lines::start(io::stderr(), missing(settings.format))?;
    subscriber(settings, colour, lines.clone()).try_init()?;
    Ok(lines)
}

/// Returns the line that stands where others were dropped.
fn missing(format: LogFormat) -> fn(u64) -> String {
    match format {
        LogFormat::Text => {
            |many| format!("{} WARN promptmill::telemetry: {}\n", jiff::Timestamp::now(), gap(many))
        }
        LogFormat::Json => |many| {
            let line = serde_json::json!({
                "timestamp": jiff::Timestamp::now().to_string(),
                "level": "WARN",
                "message": gap(many),
                "log.dropped": many,
                "target": "promptmill::telemetry",
            });
            format!("{line}\n")
        },
    }
}

fn gap(many: u64) -> String {
    format!("{many} log lines were dropped here: nobody read them in time")
}

/// Builds what [`init`] installs, for any writer.
pub fn subscriber<W>(settings: &LogSettings, colour: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter =
        capped(&settings.level).and(filter_fn(|metadata| may_speak(metadata.target(), *metadata.level())));
    tracing_subscriber::registry().with(layer(settings.format, colour, writer).with_filter(filter))
}

fn layer<S, W>(format: LogFormat, colour: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(OneLine(writer));
    match format {
        LogFormat::Text => layer.with_ansi(colour).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).boxed(),
    }
}

/// Caps what was asked for: the general level is ours alone, others get `warn` at most, and `info`
/// at most where they are named.
fn capped(asked: &Targets) -> Targets {
    let general = asked.default_level().unwrap_or(LevelFilter::OFF);
    let mut capped = Targets::new().with_default(general.min(LevelFilter::WARN)).with_target(OURS, general);
    for target in SLOW {
        capped = capped.with_target(target, general.min(LevelFilter::ERROR));
    }
    for (target, level) in asked {
        let level = if is_ours(target) { level } else { level.min(LevelFilter::INFO) };
        capped = capped.with_target(target, level);
    }
    capped.with_target(NOTICES, LevelFilter::OFF)
}

/// The floor under all filters, which take `promptmill` for the start of any longer name too.
fn may_speak(target: &str, level: Level) -> bool {
    is_ours(target) || level <= Level::INFO
}

fn is_ours(target: &str) -> bool {
    target.strip_prefix(OURS).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Keeps one event on one line: a line end inside a model's, a queue's or a batch's name must not
/// look like a line of ours.
struct OneLine<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for OneLine<W> {
    type Writer = OneLine<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLine(self.0.make_writer())
    }

    fn make_writer_for(&'a self, metadata: &tracing::Metadata<'_>) -> Self::Writer {
        OneLine(self.0.make_writer_for(metadata))
    }
}

impl<W: Write> Write for OneLine<W> {
    /// Takes a whole event, which is what the layer writes at a time.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = event.strip_suffix(b"\n").unwrap_or(event);
        if line.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            let mut whole = String::from_utf8_lossy(line).replace('\r', "\\r").replace('\n', "\\n");
            whole.push('\n');
            self.0.write_all(whole.as_bytes())?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_is_one_line_whatever_stands_in_it() {
        for (event, line) in [
            ("plain\n", "plain\n"),
            ("model a\nINFO all is well\r\n", "model a\\nINFO all is well\\r\n"),
            ("no end", "no end"),
        ] {
            let mut written = OneLine(Vec::new());
            written.write_all(event.as_bytes()).unwrap();
            assert_eq!(written.0, line.as_bytes(), "{event:?}");
        }
    }

    fn allows(asked: &str, target: &str, level: Level) -> bool {
        capped(&asked.parse().unwrap()).would_enable(target, &level) && may_speak(target, level)
    }

    #[test]
    fn no_other_crate_logs_below_info_whatever_is_asked() {
        for asked in
            ["trace", "trace,sqlx=trace", "sqlx::query=trace,hyper=debug,h2=trace", "promptmill_=trace"]
        {
            for target in ["sqlx::query", "hyper::proto", "h2::codec", "reqwest", "rustls", "promptmill_"] {
                assert!(!allows(asked, target, Level::DEBUG), "{target} under {asked}");
            }
            assert!(!allows(asked, "sqlx::postgres::notice", Level::ERROR), "{asked}");
        }
        assert!(!allows("sqlx::postgres::notice=info", "sqlx::postgres::notice", Level::ERROR));
    }

    #[test]
    fn others_speak_up_to_warn_and_to_info_where_named() {
        assert!(allows("debug", "promptmill::worker", Level::DEBUG));
        assert!(allows("debug", "sqlx::postgres", Level::WARN));
        assert!(!allows("debug", "sqlx::postgres", Level::INFO));
        assert!(!allows("debug", "sqlx::query", Level::WARN), "slowness is told by us");
        assert!(allows("debug,sqlx::query=debug", "sqlx::query", Level::INFO));
        assert!(allows("promptmill::store=trace,warn", "promptmill::store::row", Level::TRACE));
        assert!(!allows("promptmill::store=trace,warn", "promptmill::worker", Level::INFO));
        assert!(!allows("off", "promptmill", Level::ERROR));
    }
}
