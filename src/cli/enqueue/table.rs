//! Reading rows from a CSV file: the first line names the columns, each further record is a row.
//!
//! Where a record ends is found here, line by line, so that a quote that is never closed is told
//! with its place and does not take the rest of the file into memory; the fields are the `csv`
//! crate's. Without a template the columns are those of `jobs`.

use std::io::{self, BufRead};

use csv::{ByteRecord, ReaderBuilder, Terminator};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::lines::{self, Fault, LINE_MAX, Line};
use super::template::Filling;
use crate::store::NewJob;

/// The columns of `jobs` whose cells are JSON already, or numbers.
const JSON_COLUMNS: [&str; 5] = ["params", "policy", "metadata", "max_tokens", "priority"];

/// The rows of a table.
pub struct Table<'f, R> {
    records: Records<R>,
    columns: Vec<String>,
    filling: Option<&'f Filling>,
    /// Nothing behind a quote that is never closed can be told apart.
    over: bool,
}

impl<'f, R: BufRead> Table<'f, R> {
    /// Reads the header. `Err` inside: the file is no table, or not the one that is meant.
    pub fn open(reader: R, separator: u8, filling: Option<&'f Filling>) -> io::Result<Result<Self, Fault>> {
        let mut records = Records { reader, separator, number: 0, buffer: Vec::new(), digest: Sha256::new() };
        let header = match records.next()? {
            Some(Ok(number)) => records.fields().map_err(|sentence| Fault { number, sentence }),
            Some(Err(fault)) => Err(fault),
            None => Err(Fault {
                number: 1,
                sentence: "the file is empty: its first line has to name the columns".to_owned(),
            }),
        };
        Ok(header.and_then(|header| {
            let columns = names(&header, separator, filling)
                .map_err(|sentence| Fault { number: records.number, sentence })?;
            Ok(Self { records, columns, filling, over: false })
        }))
    }

    /// Returns the first 12 hexadecimal digits of the SHA-256 of all that was read, and of the templates.
    pub fn digest(self) -> String {
        lines::short_digest(self.records.digest, self.filling)
    }

    /// Reads the next job. `Err` outside: the file cannot be read any further.
    pub fn next_job(&mut self, fill: &NewJob) -> io::Result<Option<Result<Line, Fault>>> {
        if self.over {
            return Ok(None);
        }
        let number = match self.records.next()? {
            None => return Ok(None),
            Some(Ok(number)) => number,
            Some(Err(fault)) => {
                self.over = true;
                return Ok(Some(Err(fault)));
            }
        };
        let read = self.records.fields().and_then(|record| self.job(&record, fill));
        Ok(Some(match read {
            Ok((job, custom_id)) => {
                Ok(Line { number, job, custom_id, digest: lines::half_digest(&self.records.buffer) })
            }
            Err(sentence) => Err(Fault { number, sentence }),
        }))
    }

    fn job(&self, record: &ByteRecord, fill: &NewJob) -> Result<(NewJob, Option<String>), String> {
        let (found, wanted) = (record.len(), self.columns.len());
        if found != wanted {
            let why = match self.columns.get(found) {
                Some(missing) => format!("column \"{missing}\" is missing"),
                None => "a comma in a text needs quotes around the text".to_owned(),
            };
            return Err(format!("{found} fields where the header has {wanted}: {why}"));
        }
        let mut values = Vec::with_capacity(wanted);
        for (name, value) in self.columns.iter().zip(record) {
            let value = std::str::from_utf8(value)
                .map_err(|_| format!("column \"{name}\" is not valid UTF-8: save the file as UTF-8"))?;
            if value.contains('\0') {
                return Err(format!("column \"{name}\" holds U+0000, which a SQL text cannot: take it out"));
            }
            values.push(value);
        }
        match self.filling {
            Some(filling) => filling.table_job(&self.columns, &values, fill),
            None => self.plain_job(&values, fill),
        }
    }

    /// The job of a row whose columns are those of `jobs`; an empty cell says nothing.
    fn plain_job(&self, values: &[&str], fill: &NewJob) -> Result<(NewJob, Option<String>), String> {
        let said = self.columns.iter().zip(values).filter(|(_, value)| !value.is_empty());
        let fields: Vec<String> = said
            .map(|(name, value)| {
                let is_json = JSON_COLUMNS.contains(&name.as_str());
                let is_ms = name == "run_at" && value.bytes().all(|byte| byte.is_ascii_digit());
                if is_json && serde_json::from_str::<&serde_json::value::RawValue>(value).is_err() {
                    return Err(format!("column \"{name}\" is not valid JSON"));
                }
                Ok(format!(
                    "{}:{}",
                    json!(name),
                    if is_json || is_ms { (*value).to_owned() } else { json!(value).to_string() }
                ))
            })
            .collect::<Result<_, String>>()?;
        lines::read_job(&format!("{{{}}}", fields.join(",")), fill)
    }
}

/// Reads the names of the columns, and holds them against what is asked of them.
fn names(header: &ByteRecord, separator: u8, filling: Option<&Filling>) -> Result<Vec<String>, String> {
    let mut columns: Vec<String> = Vec::with_capacity(header.len());
    for name in header {
        let name = std::str::from_utf8(name)
            .map_err(|_| "the header is not valid UTF-8: save the file as UTF-8".to_owned())?
            .trim();
        if name.contains('\r') {
            return Err("the lines end with a lone carriage return: save the file with line feeds".to_owned());
        }
        if name.is_empty() {
            return Err(format!("column {} of the header has no name", columns.len() + 1));
        }
        if columns.iter().any(|known| known == name) {
            return Err(format!("the header names column \"{name}\" twice"));
        }
        columns.push(name.to_owned());
    }
    let checked = match filling {
        Some(filling) => filling.check(&columns),
        None => columns.iter().try_for_each(|name| lines::known(name)).map_err(|why| {
            let stop = if why.ends_with('?') { "" } else { "." };
            format!("{why}{stop} To make prompts of columns of your own, give --template")
        }),
    };
    checked.map_err(|why| match other_separator(&columns, separator) {
        Some(other) => format!("{why}. Is the separator another one? Try --separator '{other}'"),
        None if why.ends_with('?') => why,
        None => format!("{why}. The first line has to name the columns"),
    })?;
    Ok(columns)
}

/// What separates the columns of a header that seems to have one only.
fn other_separator(columns: &[String], separator: u8) -> Option<char> {
    let [only] = columns else { return None };
    [';', '\t', '|', ','].into_iter().find(|&c| c as u8 != separator && only.contains(c))
}

/// The records of a file: where each begins and ends.
struct Records<R> {
    reader: R,
    separator: u8,
    /// Lines read so far.
    number: u64,
    /// The record, without its line end.
    buffer: Vec<u8>,
    digest: Sha256,
}

impl<R: BufRead> Records<R> {
    /// Reads the next record into the buffer; returns the number of its first line. A fault is the
    /// last that can be told of the file.
    fn next(&mut self) -> io::Result<Option<Result<u64, Fault>>> {
        loop {
            self.buffer.clear();
            let first = self.number + 1;
            let mut scan = Scan::new(self.separator, first);
            loop {
                let start = self.buffer.len();
                let whole = lines::read_line(&mut self.reader, &mut self.buffer, LINE_MAX, &mut self.digest)?;
                let fault = |number, sentence| Ok(Some(Err(Fault { number, sentence })));
                if !whole {
                    return fault(
                        first,
                        format!("longer than {} MiB{}", LINE_MAX / 1024 / 1024, scan.doubt()),
                    );
                }
                if self.buffer.len() == start {
                    if start == 0 {
                        return Ok(None);
                    }
                    return fault(
                        scan.line,
                        format!("the quote that opens field {} is never closed", scan.field),
                    );
                }
                self.number += 1;
                if self.number == 1 {
                    if self.buffer.starts_with(b"\xff\xfe") || self.buffer.starts_with(b"\xfe\xff") {
                        return fault(1, "the file is UTF-16: save it as UTF-8".to_owned());
                    }
                    // Spreadsheets put a byte order mark there.
                    if self.buffer.starts_with(b"\xef\xbb\xbf") {
                        self.buffer.drain(..3);
                    }
                }
                if let Err(sentence) = scan.line(&self.buffer[start..], self.number) {
                    return fault(self.number, sentence);
                }
                if !scan.is_open() {
                    break;
                }
            }
            let end = self.buffer.strip_suffix(b"\n").map_or(self.buffer.len(), <[u8]>::len);
            let end = self.buffer[..end].strip_suffix(b"\r").map_or(end, <[u8]>::len);
            self.buffer.truncate(end);
            if !self.buffer.trim_ascii().is_empty() {
                return Ok(Some(Ok(first)));
            }
        }
    }

    /// Returns the fields of the record in the buffer.
    fn fields(&self) -> Result<ByteRecord, String> {
        let mut record = ByteRecord::new();
        ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(self.separator)
            .terminator(Terminator::Any(b'\n'))
            .buffer_capacity(self.buffer.len().clamp(1, 64 * 1024))
            .from_reader(self.buffer.as_slice())
            .read_byte_record(&mut record)
            .map_err(|error| error.to_string())?;
        Ok(record)
    }
}

/// Where in a record a reader stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Start,
    Plain,
    Quoted,
    /// Behind a quote inside quotes: the end, or the first of two that mean one.
    Quote,
}

/// Follows quotes over the lines of one record.
struct Scan {
    separator: u8,
    at: At,
    /// The field it stands in, from 1.
    field: usize,
    /// The line on which the last quote was opened.
    line: u64,
}

impl Scan {
    fn new(separator: u8, line: u64) -> Self {
        Self { separator, at: At::Start, field: 1, line }
    }

    fn is_open(&self) -> bool {
        self.at == At::Quoted
    }

    /// Follows one line more.
    fn line(&mut self, bytes: &[u8], number: u64) -> Result<(), String> {
        for &byte in bytes {
            self.at = match (self.at, byte) {
                (At::Quoted, b'"') => At::Quote,
                (At::Quoted, _) => At::Quoted,
                (_, byte) if byte == self.separator => {
                    self.field += 1;
                    At::Start
                }
                (At::Start, b'"') => {
                    self.line = number;
                    At::Quoted
                }
                (At::Quote, b'"') => At::Quoted,
                (At::Quote, b'\r' | b'\n') => At::Quote,
                (At::Quote, _) => {
                    return Err(format!(
                        "field {} goes on behind its closing quote: a quote inside a quoted text is written twice",
                        self.field
                    ));
                }
                (At::Start | At::Plain, _) => At::Plain,
            };
        }
        Ok(())
    }

    /// What a record that is too long may have suffered.
    fn doubt(&self) -> String {
        if self.is_open() {
            format!(": is the quote that opens field {} on line {} closed?", self.field, self.line)
        } else {
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The prompts of a table, or what is wrong with its lines.
    fn read(bytes: &[u8], template: &str) -> Result<Vec<String>, Vec<String>> {
        let filling = Filling::new(template, None, None).expect("a template");
        let mut table = match Table::open(bytes, b',', Some(&filling)).expect("memory can be read") {
            Ok(table) => table,
            Err(fault) => return Err(vec![format!("{}: {}", fault.number, fault.sentence)]),
        };
        let (mut prompts, mut faults) = (Vec::new(), Vec::new());
        while let Some(line) = table.next_job(&NewJob::default()).expect("memory can be read") {
            match line {
                Ok(line) => prompts.push(format!("{}: {}", line.number, line.job.prompt.expect("a prompt"))),
                Err(fault) => faults.push(format!("{}: {}", fault.number, fault.sentence)),
            }
        }
        if faults.is_empty() { Ok(prompts) } else { Err(faults) }
    }

    #[test]
    fn rows_are_read_as_spreadsheets_write_them() {
        for (text, prompts) in [
            ("a,b\n1,2\n3,4\n", vec!["2: 1|2", "3: 3|4"]),
            ("\u{feff}a,b\r\n1,2\r\n\r\n3,4", vec!["2: 1|2", "4: 3|4"]),
            ("a,b\n\"x, \"\"y\"\"\nz\",2\n5\" disk,\n", vec!["2: x, \"y\"\nz|2", "4: 5\" disk|"]),
            ("a,b\r\n\"x\r\ny\",\"\"\r\n", vec!["2: x\r\ny|"]),
            ("\"a\", b \n1,2", vec!["2: 1|2"]),
            ("a,b\n", vec![]),
        ] {
            assert_eq!(read(text.as_bytes(), "{{a}}|{{b}}").expect(text), prompts, "{text:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_column() {
        for (text, faults) in [
            (&b""[..], vec!["1: the file is empty: its first line has to name the columns"]),
            (
                b"a,b\n1,2,3\n4\n",
                vec![
                    "2: 3 fields where the header has 2: a comma in a text needs quotes around the text",
                    "3: 1 fields where the header has 2: column \"b\" is missing",
                ],
            ),
            (b"a,b\n1,\"2\n3,4\n", vec!["2: the quote that opens field 2 is never closed"]),
            (
                b"a,b\n1,\"2\n\"3,4\n5,6\n",
                vec![
                    "3: field 2 goes on behind its closing quote: a quote inside a quoted text is written twice",
                ],
            ),
            (b"a,b\n1,\xff\n2,3\n", vec!["2: column \"b\" is not valid UTF-8: save the file as UTF-8"]),
            (b"a,b\n1,\0\n", vec!["2: column \"b\" holds U+0000, which a SQL text cannot: take it out"]),
            (b"\xff\xfea\0", vec!["1: the file is UTF-16: save it as UTF-8"]),
            (b"a,b,a\n", vec!["1: the header names column \"a\" twice"]),
            (b"a,,b\n", vec!["1: column 2 of the header has no name"]),
            (
                b"a,b\r1,2\r",
                vec!["1: the lines end with a lone carriage return: save the file with line feeds"],
            ),
            (
                b"a;b\n1;2\n",
                vec![
                    "1: {{a}} of the template is none of the columns: there are \"a;b\". Is the separator another one? Try --separator ';'",
                ],
            ),
            (
                b"1,2\n3,4\n",
                vec![
                    "1: {{a}} of the template is none of the columns: there are \"1\", \"2\". The first line has to name the columns",
                ],
            ),
        ] {
            let shown = String::from_utf8_lossy(text);
            assert_eq!(read(text, "{{a}}|{{b}}").expect_err(&shown), faults, "{shown:?}");
        }
    }

    #[test]
    fn a_quote_that_is_never_closed_takes_no_more_than_the_longest_line_into_memory() {
        use std::io::Read as _;
        let start = &b"a,b\n1,\"2\n"[..];
        let endless = io::BufReader::new(start.chain(io::repeat(b'x')).take(3 * LINE_MAX as u64));
        let filling = Filling::new("{{a}}{{b}}", None, None).expect("a template");
        let mut table =
            Table::open(endless, b',', Some(&filling)).expect("memory can be read").expect("a header");
        let line = table.next_job(&NewJob::default()).expect("memory can be read").expect("a line");
        assert_eq!(
            line.expect_err("it is too long").sentence,
            "longer than 64 MiB: is the quote that opens field 2 on line 2 closed?"
        );
        assert!(table.records.buffer.len() <= LINE_MAX, "{}", table.records.buffer.len());
        assert!(table.next_job(&NewJob::default()).expect("memory can be read").is_none());
    }
}
