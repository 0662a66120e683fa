//! What a person sees: data on stdout, words on stderr, times, numbers and tables.
//!
//! Prompts and answers are other people's words. Nothing of them reaches a terminal as a control
//! character, or a row could move the cursor, set the title or reprogram keys.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;

use crate::store::Moment;

/// Standard output: buffered, and safe where it is a terminal.
#[derive(Debug)]
pub struct Out {
    inner: io::BufWriter<io::Stdout>,
    terminal: bool,
}

impl Out {
    /// Returns this process's standard output.
    pub fn stdout() -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Self { inner: io::BufWriter::with_capacity(64 * 1024, stdout), terminal }
    }

    /// Tells whether a person looks at it.
    pub const fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Writes text and a line end.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        self.text(text)?;
        self.inner.write_all(b"\n")
    }

    /// Writes text; control characters are escaped where a terminal would obey them.
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        let text = if self.terminal { printable(text) } else { Cow::Borrowed(text) };
        self.inner.write_all(text.as_bytes())
    }

    /// Hands everything over.
    pub fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Says something to the person, on stderr. A closed stderr is no reason to stop.
pub fn say(sentence: &str) {
    writeln!(io::stderr().lock(), "{}", printable(sentence)).ok();
}

/// Returns the text with control characters (but line end and tab) and direction overrides escaped.
pub fn printable(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| {
        c == '\n'
            || c == '\t'
            || !(c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
    };
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if harmless(c) {
            safe.push(c);
        } else {
            // Writing into a String cannot fail.
            write!(safe, "\\u{{{:x}}}", c as u32).ok();
        }
    }
    Cow::Owned(safe)
}

/// Returns the start of a text on one line: at most `max` characters, white space as single blanks.
pub fn one_line(text: &str, max: usize) -> String {
    let mut line = String::new();
    let mut count = 0;
    for word in text.split_whitespace() {
        let blank = usize::from(count > 0);
        let length = word.chars().count();
        if count + blank + length > max {
            let room = max.saturating_sub(count + blank + 1);
            if blank == 1 && room > 0 {
                line.push(' ');
            }
            line.extend(word.chars().take(room));
            line.push('…');
            break;
        }
        if blank == 1 {
            line.push(' ');
        }
        line.push_str(word);
        count += blank + length;
    }
    printable(&line).into_owned()
}

/// Returns a time to the second, in UTC.
pub fn time(moment: Moment) -> String {
    Timestamp::from_millisecond(moment.0)
        .map_or_else(|_| format!("{} ms", moment.0), |at| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
}

/// Returns a time for programs: RFC 3339, UTC, milliseconds.
pub fn time_rfc3339(moment: Moment) -> String {
    Timestamp::from_millisecond(moment.0)
        .map_or_else(|_| moment.0.to_string(), |at| at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string())
}

/// Returns a length of time in the unit that suits it.
pub fn duration(ms: i64) -> String {
    match ms {
        ..1_000 => format!("{} ms", ms.max(0)),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms / 1_000 % 60),
        _ => format!("{} h {} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}

/// Returns a number with its thousands apart.
pub fn number(n: i64) -> String {
    let digits = n.unsigned_abs().to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if n < 0 {
        text.push('-');
    }
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns "1 job", "2 jobs".
pub fn count(n: i64, one: &str, many: &str) -> String {
    format!("{} {}", number(n), if n == 1 { one } else { many })
}

/// Returns an empty table with these headings; it keeps to the width of a terminal.
pub fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headings.to_vec());
    table.set_content_arrangement(if io::stdout().is_terminal() {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    });
    table
}

/// Returns a cell of text.
pub fn cell(text: &str) -> Cell {
    Cell::new(printable(text))
}

/// Returns a cell of a number, to the right.
pub fn cell_number(n: i64) -> Cell {
    Cell::new(number(n)).set_alignment(CellAlignment::Right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_never_reach_a_terminal() {
        assert_eq!(
            printable("a\x1b[2Jb\u{9b}c\u{7f}\r\u{202e}"),
            "a\\u{1b}[2Jb\\u{9b}c\\u{7f}\\u{d}\\u{202e}"
        );
        assert_eq!(printable("line\n\ttab é 漢"), "line\n\ttab é 漢");
    }

    #[test]
    fn a_long_text_is_cut_to_one_line() {
        assert_eq!(one_line("a  b\n c", 10), "a b c");
        assert_eq!(one_line("abcdef", 4), "abc…");
        assert_eq!(one_line("ab cdef", 5), "ab c…");
        assert_eq!(one_line("", 5), "");
    }

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!(number(-1_234_567), "-1,234,567");
        assert_eq!(number(0), "0");
        assert_eq!(number(100), "100");
        assert_eq!(time(Moment(0)), "1970-01-01 00:00:00Z");
        assert_eq!(time_rfc3339(Moment(1)), "1970-01-01T00:00:00.001Z");
        assert_eq!(duration(61_500), "1 min 1 s");
        assert_eq!(duration(2_340), "2.3 s");
    }
}
