//! The terminal while it is watched: another screen without a cursor, drawn as a whole, and given back.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use console::Term;

/// The other screen, cleared, without a cursor (xterm's control sequences).
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
/// The cursor, and the screen that was there before.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// What stands between these is shown at once, where the terminal knows how to.
const TOGETHER: [&str; 2] = ["\x1b[?2026h", "\x1b[?2026l"];

/// The terminal, until it is dropped.
#[derive(Debug)]
pub struct Screen {
    term: Term,
    entered: bool,
}

impl Screen {
    /// Returns the terminal of standard output, if there is one that can be drawn on.
    pub fn of_stdout() -> Option<Self> {
        let term = Term::stdout();
        (term.is_term() && !console::is_dumb()).then_some(Self { term, entered: false })
    }

    /// Gives it back, until something is drawn again.
    pub fn leave(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.entered) { write(LEAVE) } else { Ok(()) }
    }

    /// Whether colours are wanted.
    pub fn has_colours(&self) -> bool {
        self.term.features().colors_supported()
    }

    /// Returns how many lines and columns there are.
    pub fn size(&self) -> (usize, usize) {
        match self.term.size_checked() {
            Some((rows, columns)) if rows > 0 && columns > 0 => (rows.into(), columns.into()),
            _ => (24, 80),
        }
    }

    /// Draws lines, none of them longer than the screen is wide, in place of what is there.
    pub fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        if !std::mem::replace(&mut self.entered, true) {
            write(ENTER)?;
        }
        let mut text = TOGETHER[0].to_owned();
        for (at, line) in lines.iter().enumerate() {
            // The line is cleared before it is written: behind a full one the cursor still stands in it.
            // Writing into a String cannot fail.
            write!(text, "\x1b[{};1H\x1b[2K{line}", at + 1).ok();
        }
        if lines.len() < self.size().0 {
            write!(text, "\x1b[{};1H\x1b[J", lines.len() + 1).ok();
        }
        text.push_str(TOGETHER[1]);
        write(&text)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.leave().ok();
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
