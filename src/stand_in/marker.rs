//! The script in a prompt: `[[name argument… option=value… xN]]`, read in this one place.
//!
//! Two sorts. *Settings* say what the answer is like. *Faults* spoil calls: with `xN` the first N
//! calls of this prompt (`skip=N`: the N after so many), without it every one; the first fault in
//! the prompt that has calls left is the one that happens. `docs/stand-in.md` lists every marker.

use std::time::Duration;

use super::cache::Cached;
use super::problem::{Problem, Shape};
use super::tools::Scripted;

/// Longest answer that may be asked for, in tokens or words.
const LENGTH_MAX: usize = 1_000_000;
/// Longest wait.
const WAIT_MAX: Duration = Duration::from_hours(1);

/// All that a prompt's markers ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Script {
    /// What the answer is.
    pub length: Length,
    /// `seed`: in place of the prompt's text.
    pub seed: Option<String>,
    /// `stop`.
    pub stop: Option<Stop>,
    /// `tool`: the calls of each turn, `next` between turns.
    pub tools: Vec<Vec<Scripted>>,
    /// `thinking`: tokens of thinking before the answer.
    pub thinking: usize,
    /// `continue`.
    pub continues: Continues,
    /// `delay`: before the first event.
    pub delay: Option<Duration>,
    /// `pace`: before each further piece.
    pub pace: Option<Duration>,
    /// `ping`: a ping so often while it waits.
    pub ping: Option<Duration>,
    /// `delta`: tokens in one event.
    pub delta: Option<usize>,
    /// `chunk`: bytes in one write, wherever that cuts.
    pub chunk: Option<usize>,
    /// `cache`: what counts as read from the cache and written to it, whatever the request asks for.
    pub cache: Option<Cached>,
    /// Everything that spoils calls, in the order of the prompt.
    pub faults: Vec<Fault>,
    /// The settings' names, for the counts.
    pub names: Vec<String>,
}

/// What the answer is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Length {
    /// Nothing was said: a short one.
    #[default]
    Usual,
    /// So many words.
    Words(usize),
    /// So many tokens.
    Tokens(usize),
    /// This text.
    Say(String),
}

/// How a whole answer ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// The stop reason, any word.
    pub reason: String,
    /// `pause_turn`: how often; `tool_use`: how many calls.
    pub count: usize,
    /// `tool_use`: in how many turns. `refusal`: unused.
    pub turns: usize,
    /// `refusal`: its category.
    pub category: String,
}

/// How an answer that was cut goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Continues {
    /// Repeats the anchor, then goes on.
    #[default]
    Anchor,
    /// Goes on with the very next character.
    Exact,
    /// Goes on with the next character that is not white space.
    Bare,
    /// Repeats the last two hundred characters or so, from the start of a sentence.
    Other,
}

/// Something that spoils a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What happens.
    pub kind: FaultKind,
    /// How often; `None`: always.
    pub times: Option<u32>,
    /// Calls of the prompt that it lets pass first.
    pub skip: u32,
    /// Its name in the counts.
    pub name: String,
}

/// What spoils a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// An error status.
    Error(Problem),
    /// An `error` event after so many tokens.
    ErrorEvent(Problem, usize),
    /// The stream ends after so many tokens, without a stop reason.
    Cut(usize, End),
    /// The stream ends after the stop reason, without `message_stop`.
    CutTail(End),
    /// An answer without content.
    Empty,
    /// Nothing comes any more after so many tokens; `None`: nothing comes at all.
    Hang(Option<usize>),
    /// Bytes that no client should have to meet.
    Garbage(Garbage, usize),
    /// JSON that does not quite follow the schema that was asked for.
    Misshape(Misshape),
}

/// What is amiss with an answer that should follow a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misshape {
    /// A value in it is of another type.
    Wrong,
    /// `enum` and `const` values have other capitals.
    Case,
    /// It stands in a code fence.
    Fenced,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is dropped in the middle of the body.
    Dropped,
    /// The body ends as if it were whole.
    Clean,
}

macro_rules! garbage {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)*) => {
        /// Malformed or unusual streams.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Garbage { $($(#[$doc])* $variant,)* }

        impl Garbage {
            /// Every shape with its word.
            pub const ALL: &'static [(&'static str, Self)] = &[$(($word, Self::$variant),)*];
        }
    };
}

garbage! {
    /// Bytes in the text that are not UTF-8.
    Utf8 = "utf8",
    /// Half of a surrogate pair in the text.
    Surrogate = "surrogate",
    /// U+0000 in the text.
    Nul = "nul",
    /// An event of an unknown type; the answer is whole.
    Event = "event",
    /// A content block of an unknown type; the answer is whole.
    Block = "block",
    /// A delta of an unknown type; the answer is whole.
    Delta = "delta",
    /// Unknown fields everywhere; the answer is whole.
    Fields = "fields",
    /// A page of HTML with a 200.
    Html = "html",
    /// The whole message as JSON, though a stream was asked for.
    Json = "json",
    /// An event whose data is not JSON.
    Broken = "broken",
    /// One event of `mb` megabytes.
    Huge = "huge",
    /// A 200 with an empty body.
    Nothing = "nothing",
    /// No `event:` lines, only `data:`; the answer is whole.
    DataOnly = "data-only",
    /// CRLF line ends; the answer is whole.
    Crlf = "crlf",
    /// Comment lines between events; the answer is whole.
    Comments = "comments",
    /// A byte order mark in front; the answer is whole.
    Bom = "bom",
    /// Several `message_delta`s, their usage cumulative; the answer is whole.
    Deltas = "deltas",
    /// No `usage` anywhere; the answer is whole.
    NoUsage = "no-usage",
    /// No `message_start`.
    NoStart = "no-start",
    /// A whole stream whose stop reason is null.
    NullStop = "null-stop",
    /// More events behind `message_stop`; the answer is whole.
    After = "after",
    /// Headers that make no sense; the answer is whole.
    Headers = "headers",
}

/// One marker, taken apart.
struct Marker<'a> {
    name: &'a str,
    rest: &'a str,
    words: Vec<&'a str>,
    options: Vec<(&'a str, &'a str)>,
    times: Option<u32>,
}

/// Reads a prompt's markers; the error names the marker that is wrong.
pub fn read(prompt: &str) -> Result<Script, String> {
    let mut script = Script::default();
    let mut rest = prompt;
    while let Some((_, behind)) = rest.split_once("[[") {
        rest = behind;
        if !behind.starts_with(|c: char| c.is_ascii_lowercase()) {
            continue;
        }
        if let Some(tool) = behind.strip_prefix("tool ") {
            let (call, behind) =
                Scripted::read(tool).map_err(|why| format!("[[{}: {why}", start_of(behind)))?;
            rest = behind;
            script.call(call);
            continue;
        }
        let Some((inside, behind)) = behind.split_once("]]") else {
            return Err(format!("[[{}: the marker is not closed with ]]", start_of(behind)));
        };
        rest = behind;
        let marker = Marker::split(inside);
        script.take(&marker).map_err(|why| format!("[[{}]]: {why}", start_of(inside)))?;
    }
    if script.tools.last().is_some_and(Vec::is_empty) {
        return Err("[[next]]: there is no [[tool …]] behind it".to_owned());
    }
    Ok(script)
}

/// Reads what stands behind `error` in a marker.
pub fn problem(words: &str) -> Result<Problem, String> {
    error(&Marker::split(&format!("error {words}")))
}

/// Whether a text holds a marker.
pub fn has_marker(text: &str) -> bool {
    text.split("[[").skip(1).any(|behind| behind.starts_with(|c: char| c.is_ascii_lowercase()))
}

fn start_of(text: &str) -> &str {
    &text[..text.floor_char_boundary(60)]
}

impl<'a> Marker<'a> {
    fn split(inside: &'a str) -> Self {
        let (name, rest) = inside.split_once(char::is_whitespace).unwrap_or((inside, ""));
        let mut marker =
            Self { name, rest: rest.trim(), words: Vec::new(), options: Vec::new(), times: None };
        for word in rest.split_whitespace() {
            if let Some(pair) = word.split_once('=') {
                marker.options.push(pair);
            } else if let Some(times) = word.strip_prefix('x').and_then(|times| times.parse().ok()) {
                marker.times = Some(times);
            } else if word == "once" {
                marker.times = Some(1);
            } else {
                marker.words.push(word);
            }
        }
        marker
    }

    /// Refuses options and words that the marker does not know.
    fn only(&self, options: &[&str], words_max: usize) -> Result<(), String> {
        if let Some((name, _)) = self.options.iter().find(|(name, _)| !options.contains(name)) {
            return Err(format!("{name}= is no option of this marker"));
        }
        match self.words.get(words_max) {
            Some(word) => Err(format!("\"{word}\" is not understood")),
            None => Ok(()),
        }
    }

    fn option(&self, name: &str) -> Option<&'a str> {
        self.options.iter().find(|option| option.0 == name).map(|option| option.1)
    }

    fn number(&self, name: &str) -> Result<Option<usize>, String> {
        self.option(name).map(|value| number(value, name)).transpose()
    }

    fn word_number(&self, at: usize) -> Result<Option<usize>, String> {
        self.words.get(at).map(|word| number(word, self.name)).transpose()
    }

    fn required_number(&self) -> Result<usize, String> {
        self.word_number(0)?.ok_or_else(|| "a number is missing".to_owned())
    }

    fn end(&self, at: usize) -> Result<End, String> {
        match self.words.get(at) {
            None => Ok(End::Dropped),
            Some(&"clean") => Ok(End::Clean),
            Some(word) => Err(format!("\"{word}\" is not understood; \"clean\" is")),
        }
    }

    fn duration(&self) -> Result<Duration, String> {
        let word = self.words.first().ok_or("a time is missing, such as 200ms or 2s")?;
        let wrong = || format!("\"{word}\" is not a time such as 200ms or 2s, at most one hour");
        let (digits, unit) = word.split_at(word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len()));
        let count: u64 = digits.parse().map_err(|_| wrong())?;
        let duration = match unit {
            "ms" => Duration::from_millis(count),
            "s" => Duration::from_secs(count),
            _ => return Err(wrong()),
        };
        if duration > WAIT_MAX { Err(wrong()) } else { Ok(duration) }
    }
}

fn number(value: &str, name: &str) -> Result<usize, String> {
    match value.parse() {
        Ok(number) if number <= LENGTH_MAX => Ok(number),
        _ => Err(format!("\"{value}\" is not a number for {name} between 0 and {LENGTH_MAX}")),
    }
}

impl Script {
    fn call(&mut self, call: Scripted) {
        self.names.push(name_of("tool", Some(&call.name)));
        match self.tools.last_mut() {
            Some(turn) => turn.push(call),
            None => self.tools.push(vec![call]),
        }
    }

    fn take(&mut self, marker: &Marker<'_>) -> Result<(), String> {
        if self.setting(marker)? {
            if marker.times.is_some() && !matches!(marker.name, "say" | "seed") {
                return Err("only faults can be counted with xN".to_owned());
            }
            let what = if marker.name == "stop" { marker.words.first() } else { None };
            self.names.push(name_of(marker.name, what.copied()));
            return Ok(());
        }
        let kind = fault(marker)?;
        let what = match marker.name {
            "error" | "error-event" | "garbage" | "json" => marker.words.first().copied(),
            _ => None,
        };
        self.faults.push(Fault {
            kind,
            times: marker.times,
            skip: marker.number("skip")?.unwrap_or(0) as u32,
            name: name_of(marker.name, what),
        });
        Ok(())
    }

    /// Takes a setting; `false` where the marker is none.
    fn setting(&mut self, marker: &Marker<'_>) -> Result<bool, String> {
        match marker.name {
            "say" => self.length = Length::Say(marker.rest.to_owned()),
            "seed" => self.seed = Some(marker.rest.to_owned()),
            "stop" => self.stop = Some(stop(marker)?),
            "next" => {
                marker.only(&[], 0)?;
                if self.tools.last().is_none_or(Vec::is_empty) {
                    return Err("there is no [[tool …]] before it".to_owned());
                }
                self.tools.push(Vec::new());
            }
            "cache" => {
                marker.only(&["read", "write"], 0)?;
                let tokens = |name| Ok::<_, String>(marker.number(name)?.unwrap_or(0) as u64);
                self.cache = Some(Cached { read: tokens("read")?, write: tokens("write")?, write_hour: 0 });
            }
            "words" | "tokens" | "thinking" | "delta" | "chunk" => {
                marker.only(&[], 1)?;
                let number = marker.required_number()?;
                match marker.name {
                    "words" => self.length = Length::Words(number),
                    "tokens" => self.length = Length::Tokens(number),
                    "thinking" => self.thinking = number,
                    "delta" => self.delta = Some(number.max(1)),
                    _ => self.chunk = Some(number.max(1)),
                }
            }
            "delay" | "pace" | "ping" => {
                marker.only(&[], 1)?;
                let wait = Some(marker.duration()?);
                match marker.name {
                    "delay" => self.delay = wait,
                    "pace" => self.pace = wait,
                    _ => self.ping = wait.filter(|wait| !wait.is_zero()),
                }
            }
            "continue" => {
                marker.only(&[], 1)?;
                self.continues = match marker.words.first() {
                    Some(&"anchor") => Continues::Anchor,
                    Some(&"exact") => Continues::Exact,
                    Some(&"bare") => Continues::Bare,
                    Some(&"other") => Continues::Other,
                    _ => return Err("one of anchor, exact, bare, other is meant".to_owned()),
                };
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn name_of(name: &str, what: Option<&str>) -> String {
    what.map_or_else(|| name.to_owned(), |what| format!("{name} {what}"))
}

fn stop(marker: &Marker<'_>) -> Result<Stop, String> {
    marker.only(&["turns", "category"], 2)?;
    let reason = marker.words.first().ok_or("a stop reason is missing")?;
    if !reason.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(format!("\"{reason}\" is not a word"));
    }
    Ok(Stop {
        reason: (*reason).to_owned(),
        count: marker.word_number(1)?.unwrap_or(1).min(100),
        turns: marker.number("turns")?.unwrap_or(1),
        category: marker.option("category").unwrap_or("cyber").to_owned(),
    })
}

fn fault(marker: &Marker<'_>) -> Result<FaultKind, String> {
    Ok(match marker.name {
        "error" => FaultKind::Error(error(marker)?),
        "error-event" => {
            marker.only(&["after", "code", "skip"], 1)?;
            let kind = marker.words.first().copied().unwrap_or("overloaded_error");
            let mut problem = Problem::of_kind(kind);
            problem.code = marker.option("code").map(str::to_owned);
            FaultKind::ErrorEvent(problem, marker.number("after")?.unwrap_or(0))
        }
        "cut" => {
            marker.only(&["after", "skip"], 1)?;
            FaultKind::Cut(marker.number("after")?.unwrap_or(0), marker.end(0)?)
        }
        "cut-tail" => {
            marker.only(&["skip"], 1)?;
            FaultKind::CutTail(marker.end(0)?)
        }
        "empty" => {
            marker.only(&["skip"], 0)?;
            FaultKind::Empty
        }
        "hang" => {
            marker.only(&["after", "skip"], 0)?;
            FaultKind::Hang(marker.number("after")?)
        }
        "garbage" => {
            marker.only(&["mb", "skip"], 1)?;
            let word = marker.words.first().copied().unwrap_or("");
            let shape = Garbage::ALL.iter().find(|known| known.0 == word).ok_or_else(|| {
                let words: Vec<&str> = Garbage::ALL.iter().map(|known| known.0).collect();
                format!("one of {} is meant", words.join(", "))
            })?;
            FaultKind::Garbage(shape.1, marker.number("mb")?.unwrap_or(9).min(256))
        }
        "json" => {
            marker.only(&["skip"], 1)?;
            FaultKind::Misshape(match marker.words.first() {
                Some(&"wrong") => Misshape::Wrong,
                Some(&"case") => Misshape::Case,
                Some(&"fenced") => Misshape::Fenced,
                _ => return Err("one of wrong, case, fenced is meant".to_owned()),
            })
        }
        other => return Err(format!("there is no marker \"{other}\"")),
    })
}

fn error(marker: &Marker<'_>) -> Result<Problem, String> {
    let options =
        ["type", "code", "retry-after", "retry-after-ms", "retry-after-date", "should-retry", "skip"];
    marker.only(&options, 2)?;
    let what = marker.words.first().ok_or("a status or the name of an error is missing")?;
    let mut problem = match (what.parse::<u16>(), marker.option("code").and_then(Problem::of_name)) {
        (Ok(status @ 400..=599), Some(named)) => Problem { status, ..named },
        (Ok(status @ 400..=599), None) => Problem::of_status(status),
        (Ok(_), _) => return Err(format!("{what} is not a status between 400 and 599")),
        (Err(_), _) => {
            Problem::of_name(what).ok_or_else(|| format!("\"{what}\" is not the name of an error"))?
        }
    };
    if let Some(kind) = marker.option("type") {
        kind.clone_into(&mut problem.kind);
    }
    if let Some(code) = marker.option("code") {
        problem.code = Some(code.to_owned());
    }
    for (option, header) in [
        ("retry-after", "retry-after"),
        ("retry-after-ms", "retry-after-ms"),
        ("should-retry", "x-should-retry"),
        // Turned into a date when it is sent.
        ("retry-after-date", RETRY_AFTER_DATE),
    ] {
        if let Some(value) = marker.option(option) {
            if value.bytes().any(|byte| !byte.is_ascii_graphic()) {
                return Err(format!("{option} cannot stand in a header"));
            }
            problem.headers.push((header, value.to_owned()));
        }
    }
    problem.shape = match marker.words.get(1) {
        None => Shape::Json,
        Some(&"html") => Shape::Html,
        Some(&"nothing") => Shape::Empty,
        Some(&"broken") => Shape::Broken,
        Some(word) => return Err(format!("\"{word}\" is not understood; html, nothing and broken are")),
    };
    Ok(problem)
}

/// Stands for a `retry-after` header that is a date so many seconds from now.
pub const RETRY_AFTER_DATE: &str = "retry-after-date";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_in_the_order_of_the_prompt() {
        let script =
            read("Hi [[tokens 400]] [[error 529 x2]] and [[cut after=30 clean skip=1 x1]] [[delay 2s]]")
                .unwrap();
        assert_eq!(script.length, Length::Tokens(400));
        assert_eq!(script.delay, Some(Duration::from_secs(2)));
        assert_eq!(script.faults[0].times, Some(2));
        assert_eq!(script.faults[0].name, "error 529");
        assert_eq!(script.faults[1].kind, FaultKind::Cut(30, End::Clean));
        assert_eq!(script.faults[1].skip, 1);
    }

    #[test]
    fn a_wrong_marker_is_named_with_what_is_wrong() {
        let wrong = [
            ("[[wrods 4]]", "[[wrods 4]]: there is no marker \"wrods\""),
            ("[[words]]", "[[words]]: a number is missing"),
            ("[[words 4 5]]", "[[words 4 5]]: \"5\" is not understood"),
            ("[[error 200]]", "[[error 200]]: 200 is not a status between 400 and 599"),
            ("[[delay 5]]", "[[delay 5]]: \"5\" is not a time such as 200ms or 2s, at most one hour"),
            ("[[cut before=3]]", "[[cut before=3]]: before= is no option of this marker"),
            ("[[next]] [[tool a]]", "[[next]]: there is no [[tool …]] before it"),
            ("[[tool a]] [[next]]", "[[next]]: there is no [[tool …]] behind it"),
            ("[[tool a {}", "[[tool a {}: the marker is not closed with ]]"),
            ("[[words 4", "[[words 4: the marker is not closed with ]]"),
            ("[[words 4 x2]]", "[[words 4 x2]]: only faults can be counted with xN"),
        ];
        for (prompt, sentence) in wrong {
            assert_eq!(read(prompt), Err(sentence.to_owned()));
        }
    }

    #[test]
    fn brackets_that_are_no_markers_are_left_alone() {
        for prompt in ["[[1,2],[3,4]]", "a[[0]]", "[[Wiki Link]]", "[ [words 3] ]"] {
            assert_eq!(read(prompt), Ok(Script::default()), "{prompt}");
        }
    }

    #[test]
    fn an_error_may_be_named_by_its_status_or_by_its_code() {
        let by_code = read("[[error enforced_spend_limit_reached]]").unwrap();
        let by_both = read("[[error 429 code=enforced_spend_limit_reached]]").unwrap();
        assert_eq!(by_code.faults[0].kind, by_both.faults[0].kind);
        let FaultKind::Error(problem) = &by_code.faults[0].kind else { panic!("an error is meant") };
        assert_eq!((problem.status, problem.kind.as_str()), (429, "rate_limit_error"));
        assert_eq!(problem.code.as_deref(), Some("enforced_spend_limit_reached"));
    }
}
