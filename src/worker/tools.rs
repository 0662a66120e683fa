//! The daemon's own tools: what `on_tool_use = run` may start, and how a run of one comes out.
//!
//! A tool is a program ([`command`]) or an address ([`endpoint`]), named in the configuration, and may
//! be used only by the queues that list it. Whatever goes wrong with it becomes an error result, for
//! the model to read: a tool cannot fail a job. Which call is run, and that it is written down before,
//! is the attempt's business; nothing here knows the database.

mod command;
mod endpoint;
mod program;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

pub use self::command::{CommandSettings, kill_all};
pub use self::endpoint::{EndpointSettings, Token};

use crate::domain::job::JobId;
use crate::domain::tool::{ToolCall, ToolContent, ToolResult};

/// Longest part of a failing tool's own words that the model is shown, in bytes.
const WORDS_MAX: usize = 2048;

/// The tools of the configuration, and who may use them.
#[derive(Debug, Clone, Default)]
pub struct ToolsSettings {
    /// `[tools."NAME"]`.
    pub tools: Vec<ToolSettings>,
    /// `[queues."NAME"] tools`: what the jobs of each queue may use.
    pub queues: HashMap<String, Vec<String>>,
    /// `worker.tools_max`: how many run at once in this process, at least 1.
    pub at_once_max: usize,
}

/// One tool of the configuration.
#[derive(Debug, Clone)]
pub struct ToolSettings {
    /// What the model calls it.
    pub name: String,
    /// What is done.
    pub action: Action,
    /// `timeout_seconds`: longest time of one run.
    pub timeout: Duration,
    /// `output_max_bytes`: longest result.
    pub output_max: usize,
    /// `idempotent`: whether it may be started again for the same call.
    pub idempotent: bool,
}

impl ToolSettings {
    /// Says what would be started or asked, or why that cannot work. Starts and asks nothing.
    pub fn check(&self) -> Result<String, String> {
        match &self.action {
            Action::Command(command) => command.find().map(|file| format!("starts {}", file.display())),
            Action::Endpoint(EndpointSettings { token: Token::Missing { variable }, .. }) => {
                Err(format!("the variable {variable}, whose value is to be its token, is not set"))
            }
            Action::Endpoint(endpoint) => {
                let origin = endpoint.url.origin().ascii_serialization();
                Ok(format!("asks {origin}{}", endpoint.url.path()))
            }
        }
    }
}

/// What a tool does.
#[derive(Debug, Clone)]
pub enum Action {
    /// Starts a program.
    Command(CommandSettings),
    /// Asks an address.
    Endpoint(EndpointSettings),
}

/// A tool that can be run.
#[derive(Debug)]
pub struct Tool(ToolSettings);

impl Tool {
    /// What the model calls it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether it may be started again for a call that it was started for before.
    pub fn is_idempotent(&self) -> bool {
        self.0.idempotent
    }
}

/// The run was given up: the daemon stops, or the job was taken away. Its processes are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tool was stopped before it had ended")]
pub struct Stopped;

/// The right to run one tool.
#[derive(Debug)]
pub struct Place<'t> {
    _permit: SemaphorePermit<'t>,
}

/// What a tool gave: text, or why there is none.
type Given = Result<String, Failing>;

/// Why a tool gave no result. Its sentence is what the model reads behind the tool's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Failing {
    #[error("could not be started: {0}.")]
    Unstarted(String),
    #[error("did not end within {limit} s and was stopped{words}", limit = .0.as_secs_f64(), words = quote(.1))]
    Late(Duration, String),
    #[error("gave more than {0} bytes, which is too much, and was stopped: nothing of it is shown.")]
    TooMuch(usize),
    #[error("gave a tool result that is not text.")]
    NotText,
    #[error("failed with exit code {0}{words}", words = quote(.1))]
    Exit(i32, String),
    #[error("was ended by signal {0}{words}", words = quote(.1))]
    Signal(i32, String),
    #[error("could not be asked: {0}.")]
    Unasked(String),
    #[error("was asked, but its answer broke off: {0}.")]
    BrokeOff(String),
    #[error("answered with status {0}{words}", words = quote(.1))]
    Status(u16, String),
}

impl Failing {
    /// One word for the log.
    fn word(&self) -> &'static str {
        match self {
            Self::Unstarted(_) => "not started",
            Self::Late(..) => "time limit",
            Self::TooMuch(_) => "output limit",
            Self::NotText => "not text",
            Self::Exit(..) => "exit code",
            Self::Signal(..) => "signal",
            Self::Unasked(_) => "not asked",
            Self::BrokeOff(_) => "broke off",
            Self::Status(..) => "status",
        }
    }
}

/// A tool's own words, behind a sentence about it.
fn quote(words: &str) -> String {
    if words.is_empty() { ".".to_owned() } else { format!(". Its own words:\n{words}") }
}

/// Returns the end of what a tool said, fit for a result.
fn words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    // Postgres has no place for it in a text.
    text.replace('\0', "\u{fffd}").trim().to_owned()
}

/// Returns a result's text. A text with a zero byte in it could not be kept: Postgres has no place for it.
fn text(bytes: Vec<u8>) -> Given {
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).ok_or(Failing::NotText)
}

/// What one run may take.
#[derive(Debug, Clone, Copy)]
struct Limits {
    time: Duration,
    output: usize,
}

/// The tools that this daemon can run, and for whom.
pub struct Tools {
    known: HashMap<String, Tool>,
    queues: HashMap<String, Vec<String>>,
    // A job in flight costs a connection; a tool costs a process, memory and cores of this machine,
    // and the model may call several at once.
    free: Arc<Semaphore>,
    /// What asks addresses; the sentence of why there is none.
    client: Result<reqwest::Client, String>,
}

impl fmt::Debug for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tools")
            .field("known", &self.known)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl Tools {
    /// Makes them ready; starts and asks nothing.
    pub fn new(settings: ToolsSettings) -> Self {
        let asks = settings.tools.iter().any(|tool| matches!(tool.action, Action::Endpoint(_)));
        // Reading the system's certificates takes its time: only for those who need them.
        let client = if asks { endpoint::client() } else { Err("no tool is an address".to_owned()) };
        let known = settings.tools.into_iter().map(|tool| (tool.name.clone(), Tool(tool))).collect();
        let free = Arc::new(Semaphore::new(settings.at_once_max.clamp(1, Semaphore::MAX_PERMITS)));
        Self { known, queues: settings.queues, free, client }
    }

    /// Returns a tool, if there is one of this name and the jobs of this queue may use it.
    pub fn allowed(&self, queue: &str, name: &str) -> Option<&Tool> {
        self.names(queue).iter().find(|allowed| *allowed == name)?;
        self.known.get(name)
    }

    /// Returns the names of the tools that the jobs of a queue may use.
    pub fn names(&self, queue: &str) -> &[String] {
        self.queues.get(queue).map_or(&[], Vec::as_slice)
    }

    /// Says why a queue's jobs cannot use a tool, and what would let them.
    pub fn refusal(&self, queue: &str, name: &str) -> String {
        if self.known.contains_key(name) {
            format!(
                "jobs of the queue {queue:?} may not run the tool {name:?}: [queues.{queue:?}] tools does not list it"
            )
        } else {
            format!(
                "the tool {name:?} is not known to this daemon: describe it as [tools.{name:?}], and list it in \
                     [queues.{queue:?}] tools"
            )
        }
    }

    /// Waits until one more tool may run; no time limit counts meanwhile.
    pub async fn place(&self, stop: &CancellationToken) -> Result<Place<'_>, Stopped> {
        let place = stop.run_until_cancelled(self.free.acquire()).await.ok_or(Stopped)?;
        Ok(Place { _permit: place.map_err(|_| Stopped)? })
    }

    /// Runs a tool for one call, in a place that was waited for. Everything that the tool does wrong is a
    /// result too. When it returns, or is dropped, nothing of the tool's process group lives.
    pub async fn run(
        &self,
        place: Place<'_>,
        tool: &Tool,
        job: JobId,
        call: &ToolCall,
        stop: &CancellationToken,
    ) -> Result<ToolResult, Stopped> {
        let started = Instant::now();
        let limits = Limits { time: tool.0.timeout, output: tool.0.output_max };
        let run = async {
            match (&tool.0.action, &self.client) {
                (Action::Command(command), _) => command::run(command, limits, &call.input, stop).await,
                (Action::Endpoint(endpoint), Ok(client)) => {
                    endpoint::run(client, endpoint, limits, job, call, stop).await
                }
                (Action::Endpoint(_), Err(why)) => Ok(Err(Failing::Unasked(why.clone()))),
            }
        };
        let given = run.await;
        drop(place);
        let ended = match &given {
            Ok(Ok(_)) => "answered",
            Ok(Err(failing)) => failing.word(),
            Err(Stopped) => "stopped",
        };
        // Neither what it was asked nor what it said: both may be anybody's secret.
        let ms = started.elapsed().as_millis() as u64;
        tracing::debug!(job.id = %job, tool.name = tool.name(), tool.ms = ms, tool.end = ended, "tool {} for job {job}: {ended} after {ms} ms", tool.name());
        Ok(match given? {
            Ok(text) => ToolResult { content: ToolContent::Text(text), is_error: false },
            Err(failing) => {
                let sentence = format!("The tool {} {failing}", tool.name());
                ToolResult { content: ToolContent::Text(sentence), is_error: true }
            }
        })
    }
}
