//! Code fences at a seam: is the text inside one, and does the reply open it again?
//!
//! Lines are judged as Markdown does, but for indentation, which lists make any depth. Knows
//! nothing of anchors; [`super::join`] asks.

/// The code fence that a text ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fence<'a> {
    /// Its first line, without white space around it.
    line: &'a str,
    /// `` ` `` or `~`.
    mark: char,
    /// How many marks; a closing line has at least as many.
    marks: usize,
    /// What stands behind the marks: the language, mostly.
    info: &'a str,
    /// Whether nothing follows its first line, which may itself be cut.
    fresh: bool,
}

impl<'a> Fence<'a> {
    /// Returns the fence that is still open at the end of `text`.
    pub(super) fn open_at_end(text: &'a str) -> Option<Self> {
        let mut open: Option<Self> = None;
        for line in text.lines() {
            open = match open {
                Some(fence) if fence.closed_by(line) => None,
                Some(fence) => Some(Self { fresh: false, ..fence }),
                None => Self::opened_by(line),
            };
        }
        open
    }

    /// Returns what follows in `reply` where it opens this fence once more.
    ///
    /// A bare fence line closes the block and stays, and so does a line that a Markdown block
    /// quotes, or one that something else stands before.
    pub(super) fn opened_again(&self, reply: &'a str) -> Option<&'a str> {
        let start = reply.trim_start();
        let lead = &reply[..reply.len() - start.len()];
        if !lead.is_empty() && !lead.contains('\n') {
            return None;
        }
        let (line, after) = split_line(start);
        let again = Self::opened_by(line)?;
        if again.mark != self.mark || again.marks != self.marks {
            return None;
        }
        if self.fresh && line.starts_with(self.line) {
            return Some(&start[self.line.len()..]);
        }
        let same = again.info.eq_ignore_ascii_case(self.info);
        (!again.info.is_empty() && (same || !self.holds_markdown())).then_some(after)
    }

    fn opened_by(line: &'a str) -> Option<Self> {
        let line = line.trim();
        let mark = line.chars().next().filter(|c| matches!(c, '`' | '~'))?;
        let info = line.trim_start_matches(mark);
        // The marks are ASCII: bytes are characters here.
        let marks = line.len() - info.len();
        let inline = mark == '`' && info.contains('`');
        (marks >= 3 && !inline).then_some(Self { line, mark, marks, info: info.trim(), fresh: true })
    }

    fn closed_by(&self, line: &str) -> bool {
        Self::opened_by_any(line, self.mark).is_some_and(|marks| marks >= self.marks)
    }

    /// Number of marks in a line that holds nothing else.
    fn opened_by_any(line: &str, mark: char) -> Option<usize> {
        let line = line.trim();
        line.chars().all(|c| c == mark).then_some(line.len())
    }

    fn holds_markdown(&self) -> bool {
        let language = self.info.split_whitespace().next().unwrap_or_default();
        ["markdown", "md", "mdx"].iter().any(|name| language.eq_ignore_ascii_case(name))
    }
}

/// Returns what follows a fence line, bare or not, at the start of `reply`, without the white
/// space before it.
pub(super) fn after_opener(reply: &str) -> Option<&str> {
    let (line, after) = split_line(reply.trim_start());
    Fence::opened_by(line).map(|_| after.trim_start())
}

fn split_line(text: &str) -> (&str, &str) {
    text.split_once('\n').unwrap_or((text, ""))
}
