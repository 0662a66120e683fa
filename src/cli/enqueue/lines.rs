//! Reading jobs from JSON lines: one object a line, the columns of `jobs` as its fields.
//!
//! The official batch format, `{"custom_id","params"}`, is the same thing with two fields only. With
//! a template the fields are the user's own.
//! What the database would refuse is refused here first, with the field's name, so that a file
//! can be checked whole before anything is inserted. `params` and `policy` keep their bytes.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, BufRead};

use jiff::Timestamp;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::template::Filling;
use crate::store::{Moment, NewJob};

/// Longest line, in bytes: twice what the API takes as one request.
pub const LINE_MAX: usize = 64 * 1024 * 1024;

/// Longest queue, batch, model or `custom_id`, in characters: an index entry has room for no more.
pub const NAME_MAX: usize = 200;
/// Longest key: batch, slash and `custom_id` fit.
const KEY_MAX: usize = 500;

const FIELDS: [&str; 13] = [
    "queue",
    "batch",
    "key",
    "custom_id",
    "prompt",
    "system",
    "model",
    "max_tokens",
    "params",
    "policy",
    "metadata",
    "priority",
    "run_at",
];

/// A line, or a row of a table, understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number in the file, from 1.
    pub number: u64,
    /// What it asks.
    pub job: NewJob,
    /// `custom_id`, not yet part of a key.
    pub custom_id: Option<String>,
    /// The first half of the line's SHA-256: its name where it gives itself none.
    pub digest: [u8; 16],
}

/// A line that cannot be a job.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its number in the file, from 1.
    pub number: u64,
    /// What is wrong and what to do.
    pub sentence: String,
}

/// The lines of a file, empty ones left out, and the digest of what was read.
pub struct Lines<'f, R> {
    reader: R,
    filling: Option<&'f Filling>,
    number: u64,
    buffer: Vec<u8>,
    digest: Sha256,
}

impl<'f, R: BufRead> Lines<'f, R> {
    /// Returns the lines of `reader`.
    pub fn new(reader: R, filling: Option<&'f Filling>) -> Self {
        Self { reader, filling, number: 0, buffer: Vec::new(), digest: Sha256::new() }
    }

    /// Returns the first 12 hexadecimal digits of the SHA-256 of all that was read, and of the templates.
    pub fn digest(self) -> String {
        short_digest(self.digest, self.filling)
    }

    /// Reads the next job. `Err` outside: the file cannot be read any further.
    pub fn next_job(&mut self, fill: &NewJob) -> io::Result<Option<Result<Line, Fault>>> {
        loop {
            self.buffer.clear();
            let whole = read_line(&mut self.reader, &mut self.buffer, LINE_MAX, &mut self.digest)?;
            if self.buffer.is_empty() {
                return Ok(None);
            }
            self.number += 1;
            let number = self.number;
            let fault = |sentence: String| Fault { number, sentence };
            if !whole {
                return Ok(Some(Err(fault(format!("longer than {} MiB", LINE_MAX / 1024 / 1024)))));
            }
            let mut bytes = self.buffer.as_slice();
            if number == 1 {
                // Windows editors put a byte order mark there.
                bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            }
            let bytes = bytes.trim_ascii();
            if bytes.is_empty() {
                continue;
            }
            let read =
                std::str::from_utf8(bytes).map_err(|_| "not valid UTF-8".to_owned()).and_then(|text| {
                    match self.filling {
                        Some(filling) => filling.object_job(&object("the line", text)?, text, fill),
                        None => read_job(text, fill),
                    }
                });
            return Ok(Some(match read {
                Ok((job, custom_id)) => Ok(Line { number, job, custom_id, digest: half_digest(bytes) }),
                Err(sentence) => Err(fault(sentence)),
            }));
        }
    }
}

/// Returns the first 12 hexadecimal digits of the digest of a file and of the templates that make
/// jobs of it: other templates make another batch.
pub fn short_digest(mut digest: Sha256, filling: Option<&Filling>) -> String {
    if let Some(filling) = filling {
        digest.update(&filling.source);
    }
    hex(&digest.finalize()[..6])
}

/// Returns the first half of the SHA-256 of a line.
pub fn half_digest(bytes: &[u8]) -> [u8; 16] {
    let mut digest = [0; 16];
    digest.copy_from_slice(&Sha256::digest(bytes)[..16]);
    digest
}

/// Reads up to and including the next line end behind what the buffer holds, which may hold `max`
/// bytes in all; digests what it takes. `false`: the line is longer, and the rest of it was skipped.
pub fn read_line(
    reader: &mut impl BufRead,
    buffer: &mut Vec<u8>,
    max: usize,
    digest: &mut Sha256,
) -> io::Result<bool> {
    let mut whole = true;
    loop {
        let available = match reader.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if available.is_empty() {
            return Ok(whole);
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = &available[..end.map_or(available.len(), |at| at + 1)];
        digest.update(taken);
        if buffer.len() + taken.len() > max {
            whole = false;
        } else {
            buffer.extend_from_slice(taken);
        }
        let length = taken.len();
        reader.consume(length);
        if end.is_some() {
            return Ok(whole);
        }
    }
}

/// Gives jobs of a file their batch and their key, so that the same file twice is the same jobs.
#[derive(Debug)]
pub struct Labels {
    label: String,
    /// How often a line stood in the file, by the hash of its batch and name: eight bytes a line, so that
    /// ten million of them have room.
    seen: HashMap<u64, u32>,
}

impl Labels {
    /// Returns labels for a file; `label` is the batch of lines that name none.
    pub fn new(label: String) -> Self {
        Self { label, seen: HashMap::new() }
    }

    /// Returns the job with batch and key: its own key, else `batch/custom_id`, else `batch/` and
    /// the digest of the line, counted where a line stands in the file several times.
    pub fn apply(&mut self, line: Line) -> NewJob {
        let mut job = line.job;
        let batch = job.batch.get_or_insert_with(|| self.label.clone());
        if job.key.is_none() {
            job.key = Some(if let Some(id) = line.custom_id {
                format!("{batch}/{id}")
            } else {
                let name = hex(&line.digest[..8]);
                let mut hash = DefaultHasher::new();
                (&*batch, &name).hash(&mut hash);
                let times = self.seen.entry(hash.finish()).or_default();
                *times += 1;
                if *times == 1 { format!("{batch}/{name}") } else { format!("{batch}/{name}-{times}") }
            });
        }
        job
    }
}

/// Refuses what the constraints of `jobs` would refuse, in their order.
pub fn check(job: &NewJob) -> Result<(), String> {
    let params =
        job.params.as_deref().map(|params| object("params", params)).transpose()?.unwrap_or_default();
    if let Some(policy) = &job.policy {
        object("policy", policy)?;
    }
    let said = |name: &str| params.iter().any(|(field, _)| field == name);
    match (job.prompt.is_some(), said("messages")) {
        (true, true) => return Err("prompt and params.messages both: give one".into()),
        (false, false) => return Err("neither prompt nor params.messages: give one".into()),
        _ => {}
    }
    for (column, set) in [
        ("system", job.system.is_some()),
        ("model", job.model.is_some()),
        ("max_tokens", job.max_tokens.is_some()),
    ] {
        if set && said(column) {
            return Err(format!("{column} and params.{column} both: give one"));
        }
    }
    if job.max_tokens.is_some_and(|room| room < 1) {
        return Err("max_tokens is less than 1".into());
    }
    for (column, value) in [
        ("queue", &job.queue),
        ("batch", &job.batch),
        ("key", &job.key),
        ("prompt", &job.prompt),
        ("system", &job.system),
        ("model", &job.model),
    ] {
        if value.as_ref().is_some_and(|text| text.contains('\0')) {
            return Err(format!("{column} holds U+0000, which a SQL text cannot: take it out"));
        }
        let is_name = column != "prompt" && column != "system";
        if is_name && value.as_ref().is_some_and(String::is_empty) {
            return Err(format!("{column} is empty: leave it out"));
        }
        let max = if column == "key" { KEY_MAX } else { NAME_MAX };
        if is_name && value.as_ref().is_some_and(|name| name.chars().count() > max) {
            return Err(format!("{column} is longer than {max} characters: shorten it"));
        }
    }
    Ok(())
}

/// Refuses a name that no column of `jobs` has.
pub fn known(name: &str) -> Result<(), String> {
    if FIELDS.contains(&name) { Ok(()) } else { Err(unknown(name)) }
}

/// Reads a job from a JSON object whose fields are the columns of `jobs`.
pub fn read_job(text: &str, fill: &NewJob) -> Result<(NewJob, Option<String>), String> {
    let fields = object("the line", text)?;
    let mut job = NewJob::default();
    let mut custom_id = None;
    for (name, value) in &fields {
        let name = name.as_str();
        let value = value.get();
        known(name)?;
        if value == "null" {
            continue;
        }
        match name {
            "queue" => job.queue = Some(string(name, value)?),
            "batch" => job.batch = Some(string(name, value)?),
            "key" => job.key = Some(string(name, value)?),
            "custom_id" => custom_id = Some(string(name, value)?),
            "prompt" => job.prompt = Some(string(name, value)?),
            "system" => job.system = Some(string(name, value)?),
            "model" => job.model = Some(string(name, value)?),
            "max_tokens" => job.max_tokens = Some(integer(name, value)?),
            "params" => job.params = Some(value.to_owned()),
            "policy" => job.policy = Some(value.to_owned()),
            "metadata" => job.metadata = Some(value.to_owned()),
            "priority" => {
                let priority = integer(name, value)?;
                job.priority = Some(i32::try_from(priority).map_err(|_| "priority does not fit 32 bits")?);
            }
            _ => job.run_at = Some(moment(value)?),
        }
    }
    if custom_id.is_some() && job.key.is_some() {
        return Err("key and custom_id both: give one".into());
    }
    finish(job, custom_id, "custom_id", fill)
}

/// Makes a job whole with what the command line says, and refuses what the table would refuse. The
/// name that it gives itself stands in the column `named`.
pub fn finish(
    mut job: NewJob,
    custom_id: Option<String>,
    named: &str,
    fill: &NewJob,
) -> Result<(NewJob, Option<String>), String> {
    if custom_id.as_ref().is_some_and(|id| id.is_empty() || id.contains('\0')) {
        return Err(format!("{named} is empty or holds U+0000: give it a name, or leave it out"));
    }
    if custom_id.as_ref().is_some_and(|id| id.chars().count() > NAME_MAX) {
        return Err(format!("{named} is longer than {NAME_MAX} characters: shorten it"));
    }
    fill_in(&mut job, fill)?;
    check(&job)?;
    Ok((job, custom_id))
}

/// Puts in what the command line says and the line does not.
fn fill_in(job: &mut NewJob, fill: &NewJob) -> Result<(), String> {
    if let (Some(here), Some(there)) = (&job.batch, &fill.batch)
        && here != there
    {
        return Err(format!("batch is \"{here}\" here and \"{there}\" on the command line: give one"));
    }
    let params =
        job.params.as_deref().map(|params| object("params", params)).transpose()?.unwrap_or_default();
    let said = |name: &str| params.iter().any(|(field, _)| field == name);
    let system = if said("system") { &None } else { &fill.system };
    let model = if said("model") { &None } else { &fill.model };
    let max_tokens = if said("max_tokens") { None } else { fill.max_tokens };
    for (here, there) in [
        (&mut job.batch, &fill.batch),
        (&mut job.queue, &fill.queue),
        (&mut job.system, system),
        (&mut job.model, model),
        (&mut job.policy, &fill.policy),
        (&mut job.metadata, &fill.metadata),
    ] {
        if here.is_none() {
            here.clone_from(there);
        }
    }
    job.max_tokens = job.max_tokens.or(max_tokens);
    job.priority = job.priority.or(fill.priority);
    job.run_at = job.run_at.or(fill.run_at);
    Ok(())
}

fn unknown(name: &str) -> String {
    let closest =
        FIELDS.iter().max_by(|a, b| strsim::jaro_winkler(name, a).total_cmp(&strsim::jaro_winkler(name, b)));
    match closest {
        Some(field) if strsim::jaro_winkler(name, field) > 0.8 => {
            format!("unknown field \"{name}\": did you mean \"{field}\"?")
        }
        _ if name == "messages" => "messages belongs into params: {\"params\":{\"messages\":[…]}}".into(),
        _ => format!(
            "unknown field \"{name}\": fields of the API go into params; known are {}",
            FIELDS.join(", ")
        ),
    }
}

/// Reads a JSON string.
pub fn string(name: &str, value: &str) -> Result<String, String> {
    serde_json::from_str(value).map_err(|_| match value.as_bytes().first() {
        Some(b'[') if name == "system" => "system is text here: blocks go into params.system".to_owned(),
        Some(b'"') => format!("{name} holds half a character (a lone surrogate)"),
        _ => format!("{name} is not a string"),
    })
}

fn integer(name: &str, value: &str) -> Result<i64, String> {
    serde_json::from_str(value).map_err(|_| format!("{name} is not a whole number"))
}

/// Reads a time: RFC 3339 text, or milliseconds since 1970.
pub fn moment(value: &str) -> Result<Moment, String> {
    const WRONG: &str = "run_at is neither a time like \"2026-12-01T08:00:00Z\" nor milliseconds since 1970";
    if let Ok(ms) = value.parse::<i64>() {
        // Seconds since 1970 would be a day in January 1970, and the job would run at once.
        return if (100_000_000_000..=253_402_300_799_999).contains(&ms) {
            Ok(Moment(ms))
        } else {
            Err(WRONG.into())
        };
    }
    let text: String = serde_json::from_str(value).map_err(|_| WRONG)?;
    let at: Timestamp = text.parse().map_err(|_| WRONG)?;
    Ok(Moment(at.as_millisecond()))
}

/// The fields of an object, in order, values untouched.
pub type Fields<'a> = Vec<(String, &'a RawValue)>;

fn object<'a>(what: &str, text: &'a str) -> Result<Fields<'a>, String> {
    if !text.trim_start().starts_with('{') {
        return Err(format!("{what} is not a JSON object"));
    }
    match serde_json::from_str::<Object<'a>>(text) {
        Ok(object) => Ok(object.0),
        Err(error) if error.is_data() => {
            let text = error.to_string();
            Err(format!(
                "{what}: {}",
                text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message)
            ))
        }
        Err(error) => Err(format!("{what} is not valid JSON: {}", bare(&error))),
    }
}

/// Returns the message with the column only: the parser sees one line and always calls it 1.
fn bare(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((message, _)) => format!("{message} at column {}", error.column()),
        None => text,
    }
}

/// The fields of an object, in order, values untouched; a name that stands twice is an error.
struct Object<'a>(Fields<'a>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields: Fields<'de> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    if fields.iter().any(|(known, _)| *known == name) {
                        return Err(serde::de::Error::custom(format_args!("\"{name}\" stands there twice")));
                    }
                    fields.push((name, value));
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Reader).map(Object)
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").ok();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Line, String> {
        let read =
            Lines::new(text.as_bytes(), None).next_job(&NewJob::default()).expect("memory can be read");
        read.expect("there is a line").map_err(|fault| fault.sentence)
    }

    #[test]
    fn params_keep_their_bytes() {
        let line =
            one(r#"{"custom_id":"a","params":{"z":1.0, "messages":[],"a":{"y":1,"b":2}}}"#).expect("a job");
        assert_eq!(line.job.params.as_deref(), Some(r#"{"z":1.0, "messages":[],"a":{"y":1,"b":2}}"#));
        assert_eq!(line.custom_id.as_deref(), Some("a"));
    }

    #[test]
    fn a_bad_line_is_told_what_is_wrong_with_it() {
        for (line, sentence) in [
            ("{}", "neither prompt nor params.messages: give one"),
            (r#"{"prompt":"a","params":{"messages":[]}}"#, "prompt and params.messages both: give one"),
            (r#"{"prompt":"a","model":"m","params":{"model":"m"}}"#, "model and params.model both: give one"),
            (r#"{"promt":"a"}"#, "unknown field \"promt\": did you mean \"prompt\"?"),
            (r#"{"prompt":7}"#, "prompt is not a string"),
            (r#"{"prompt":"a","max_tokens":0}"#, "max_tokens is less than 1"),
            (r#"{"prompt":"a","max_tokens":1.5}"#, "max_tokens is not a whole number"),
            (r#"{"prompt":"a","prompt":"b"}"#, "the line: \"prompt\" stands there twice"),
            (r#"{"prompt":"a","params":[]}"#, "params is not a JSON object"),
            (r#"{"prompt":"a\u0000"}"#, "prompt holds U+0000, which a SQL text cannot: take it out"),
            (r#"{"prompt":"a","key":"k","custom_id":"c"}"#, "key and custom_id both: give one"),
            (r#"["prompt"]"#, "the line is not a JSON object"),
            (r#"{"prompt":"a""#, "the line is not valid JSON: EOF while parsing an object at column 13"),
        ] {
            assert_eq!(one(line).expect_err(line), sentence);
        }
        assert!(one(r#"{"prompt":"a","run_at":1790000000}"#).is_err(), "seconds are not milliseconds");
    }

    #[test]
    fn times_are_text_or_milliseconds() {
        assert_eq!(moment("1790000000000"), Ok(Moment(1_790_000_000_000)));
        assert_eq!(moment(r#""2026-09-21T13:33:20Z""#), Ok(Moment(1_789_997_600_000)));
        assert_eq!(moment(r#""2026-09-21T15:33:20+02:00""#), Ok(Moment(1_789_997_600_000)));
    }

    #[test]
    fn lines_keep_their_numbers_over_empty_ones_and_marks() {
        let text = "\u{feff}{\"prompt\":\"a\"}\r\n\n  \n{\"prompt\":\"b\"}";
        let mut lines = Lines::new(text.as_bytes(), None);
        let mut numbers = Vec::new();
        while let Some(line) = lines.next_job(&NewJob::default()).expect("memory can be read") {
            numbers.push(line.expect("a job").number);
        }
        assert_eq!(numbers, [1, 4]);
        assert_eq!(lines.digest(), hex(&Sha256::digest(text.as_bytes())[..6]));
    }

    #[test]
    fn the_command_line_fills_in_what_a_line_does_not_say() {
        let fill = NewJob { model: Some("m".into()), queue: Some("q".into()), ..NewJob::default() };
        let (job, _) = read_job(r#"{"params":{"model":"own","messages":[]}}"#, &fill).expect("a job");
        assert_eq!((job.model, job.queue), (None, Some("q".into())));
        let (job, _) = read_job(r#"{"prompt":"a"}"#, &fill).expect("a job");
        assert_eq!(job.model.as_deref(), Some("m"));
    }

    #[test]
    fn the_same_file_twice_has_the_same_keys_and_a_line_twice_has_two() {
        let keys = || {
            let mut labels = Labels::new("b".into());
            ["{\"prompt\":\"a\"}", "{\"prompt\":\"a\"}", r#"{"prompt":"c","custom_id":"x"}"#]
                .map(|line| labels.apply(one(line).expect("a job")).key.expect("a key"))
        };
        let first = keys();
        assert_eq!(first, keys());
        assert_eq!(first[1], format!("{}-2", first[0]));
        assert_eq!(first[2], "b/x");
    }
}
