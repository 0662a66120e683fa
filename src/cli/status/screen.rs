//! The terminal while it is watched: another screen without a cursor, drawn as a whole, and given back.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::panic::{self, PanicHookInfo};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use console::Term;

/// The other screen, cleared, without a cursor (xterm's control sequences).
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
/// The cursor, and the screen that was there before.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// What stands between these is shown at once, where the terminal knows how to.
const TOGETHER: [&str; 2] = ["\x1b[?2026h", "\x1b[?2026l"];

/// Whether the other screen is shown: what tells of a panic must know, and a process has one terminal.
static ENTERED: AtomicBool = AtomicBool::new(false);

/// The terminal, until it is dropped.
#[derive(Debug)]
pub struct Screen {
    term: Term,
    entered: &'static AtomicBool,
}

impl Screen {
    /// Returns the terminal of standard output, if there is one that can be drawn on.
    pub fn of_stdout() -> Option<Self> {
        let term = Term::stdout();
        (term.is_term() && !console::is_dumb()).then_some(Self { term, entered: &ENTERED })
    }

    /// Gives it back, until something is drawn again.
    pub fn leave(&mut self) -> io::Result<()> {
        if self.entered.swap(false, Ordering::AcqRel) { write(LEAVE) } else { Ok(()) }
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
        if !self.entered.swap(true, Ordering::AcqRel) {
            tell_panics_on_the_first_screen();
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

/// What a panic says is gone with the other screen, if it is said there.
fn tell_panics_on_the_first_screen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| panic::set_hook(leaving_first(panic::take_hook())));
}

type Hook = Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync>;

fn leaving_first(then: Hook) -> Hook {
    Box::new(move |info| {
        if ENTERED.swap(false, Ordering::AcqRel) {
            // Past the lock of standard output: whoever panics may have it.
            rustix::io::write(io::stdout(), LEAVE.as_bytes()).ok();
        }
        then(info);
    })
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_a_panic_says_is_said_on_the_first_screen() {
        let was_left = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&was_left);
        let before = panic::take_hook();
        panic::set_hook(leaving_first(Box::new(move |_| {
            told.store(!ENTERED.load(Ordering::Acquire), Ordering::Release);
        })));
        ENTERED.store(true, Ordering::Release);
        assert!(panic::catch_unwind(|| panic!("while it is shown")).is_err());
        panic::set_hook(before);
        assert!(was_left.load(Ordering::Acquire));
    }
}
