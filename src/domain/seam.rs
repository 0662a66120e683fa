//! Joins an answer that `max_tokens` cut with what the model said next, letter for letter.
//!
//! Models do not take a half-finished assistant turn any more, so they are asked in a user turn to
//! repeat an [`anchor`] and go on ([`instruction`]); [`join`] takes the anchor off again. The rule
//! behind every choice here: a piece said twice is a blemish, a piece eaten is a wrong answer, so
//! what is not certain stays. Pure, linear in the size of the text, and safe for any Unicode.
//! What a code fence does to a seam stands in [`fence`]; when to go on at all, in [`super::talk`].

mod fence;

use fence::Fence;

/// Shortest overlap that counts as a repetition, in characters.
const OVERLAP_MIN: usize = 24;
/// How far back a repetition is looked for, in characters.
const OVERLAP_WINDOW: usize = 4000;
/// Lengths to try for an anchor, in characters: the next one where the last is not clear.
const ANCHOR_LENGTHS: [usize; 3] = [60, 120, 240];
/// Letters and digits that an anchor should hold: of a row of dashes nobody knows which it is.
const ANCHOR_LETTERS_MIN: usize = 16;
/// Length of a piece that is looked up to see whether it was said before, in characters.
const SAID_PIECE: usize = 200;
/// How many such pieces of a segment are looked up.
const SAID_PIECES: usize = 8;
/// How much of its beginning an answer must repeat to count as begun again, in characters.
const RESTART: usize = 400;

/// How an answer is continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// A user turn asks for the [`anchor`] and then the rest.
    Anchor,
    /// The assistant's turn is sent as it is, and the model goes on in it.
    Prefill,
}

impl How {
    /// Returns the word in `calls.request`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anchor => "anchor",
            Self::Prefill => "prefill",
        }
    }

    /// Returns the way of a word, if it is one of ours.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Anchor, Self::Prefill].into_iter().find(|how| how.as_str() == word)
    }
}

/// How a continuation was joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seam {
    /// It began with the anchor (or, prefilled, with what was sent), which was dropped.
    Anchored,
    /// It began with another piece of the text's end, which was dropped.
    Overlap,
    /// It was taken for the very next characters.
    Plain,
}

impl Seam {
    /// Returns the word in `calls.request`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anchored => "anchored",
            Self::Overlap => "overlap",
            Self::Plain => "plain",
        }
    }
}

/// A text and its continuation, made one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The whole text.
    pub text: String,
    /// Which rule applied.
    pub seam: Seam,
    /// How many bytes at the end of `text` are new; white space at the seam does not count.
    pub added: usize,
}

impl Joined {
    /// Returns what the continuation added.
    pub fn new_text(&self) -> &str {
        &self.text[self.text.len() - self.added..]
    }
}

/// Returns the last ≈ 60 characters of the (right-trimmed) text, cut at a line or word start.
///
/// Where they hold hardly a letter (the rule of a table, closing braces) or occur before in the
/// last 4,000, it is more, up to ≈ 240, so that the model can tell what is meant. Neither end is
/// white space. That it may still occur twice does no harm: it is only ever compared with the
/// start of a reply. Empty for a text without a visible character.
pub fn anchor(text: &str) -> &str {
    let text = text.trim();
    let mut anchor = text;
    for length in ANCHOR_LENGTHS {
        anchor = tail_from_border(text, length);
        let letters = anchor.chars().filter(|c| c.is_alphanumeric()).count();
        if letters >= ANCHOR_LETTERS_MIN && occurs_once(text, anchor) {
            break;
        }
    }
    anchor
}

/// Returns the user turn that asks the model to go on.
pub fn instruction(anchor: &str) -> String {
    format!(
        "Your reply was cut off by the length limit. Go on with it: start by repeating exactly \
         these last characters of it (what stands between the marks, without the marks), then \
         continue from there as if there had been no break. No comment, no apology, no summary, \
         and do not open a code block again.\n<<<{anchor}>>>"
    )
}

/// Joins `next` to `text`.
///
/// 1. `next` starts with the anchor (white space, an echoed `<<<` or a reopened code fence may
///    stand before it): exactly the anchor is dropped.
/// 2. Else the longest overlap of at least 24 characters is dropped, unless the last 4,000 show that
///    it may follow upon itself: where text goes round, nobody knows a repetition from the rest.
/// 3. Else nothing is dropped, but for a code fence opened anew.
///
/// White space at the end of `text`, which is stripped for sending, is put back where `next`
/// brings none. Prefilled, nobody was asked for the anchor, and going on exactly is the rule: only
/// the whole text counts as repeated, by a server that sends the prefill back.
pub fn join(text: &str, next: &str, how: How) -> Joined {
    let kept = text.trim_end();
    let blank = &text[kept.len()..];
    match how {
        How::Anchor => join_asked(kept, blank, next),
        How::Prefill => match after_whole(kept, next.trim_start()) {
            Some(rest) => glue(kept, blank, rest, Seam::Anchored),
            None => glue(kept, blank, next, Seam::Plain),
        },
    }
}

/// Whether a segment says again what was already said (a loop): every piece of it that we look up
/// stands in `text`, or it begins the answer anew. Too short to tell (< 200 characters) is no.
///
/// `text` is the answer before the segment.
pub fn repeats(text: &str, segment: &str) -> bool {
    let segment = segment.trim();
    if segment.chars().nth(SAID_PIECE - 1).is_none() {
        return false;
    }
    let begin = text.trim_start();
    let begin = &begin[..nth_char(begin, RESTART)];
    if begin.chars().nth(SAID_PIECE - 1).is_some() && segment.starts_with(begin) {
        return true;
    }
    // A few pieces, spread evenly, keep this linear; a segment that goes on with something new
    // anywhere is all but sure to show it in one of them.
    let last = tail_start(segment, SAID_PIECE);
    (0..SAID_PIECES).all(|piece| {
        let from = segment.floor_char_boundary(last / (SAID_PIECES - 1) * piece);
        let from = if piece == SAID_PIECES - 1 { last } else { from };
        let piece = &segment[from..];
        text.contains(&piece[..nth_char(piece, SAID_PIECE)])
    })
}

fn join_asked(kept: &str, blank: &str, next: &str) -> Joined {
    let open = Fence::open_at_end(kept);
    let starts = [Some(next.trim_start()), open.as_ref().and_then(|_| fence::after_opener(next))];
    let starts = || starts.iter().copied().flatten();

    let anchor = anchor(kept);
    if let Some(rest) = starts().find_map(|start| after_anchor(start, anchor)) {
        return glue(kept, blank, rest, Seam::Anchored);
    }
    if let Some(rest) = starts().find_map(|start| after_overlap(kept, start)) {
        return glue(kept, blank, rest, Seam::Overlap);
    }
    match open.and_then(|open| open.opened_again(next)) {
        Some(rest) => glue(kept, blank, rest, Seam::Plain),
        None => glue(kept, blank, next, Seam::Plain),
    }
}

/// What follows the anchor, and the marks around it where the model echoed them.
fn after_anchor<'a>(start: &'a str, anchor: &str) -> Option<&'a str> {
    if anchor.is_empty() {
        return None;
    }
    // Without marks first: the anchor itself may begin with them.
    strip_words(start, anchor).or_else(|| {
        let rest = strip_words(start.strip_prefix("<<<")?.trim_start(), anchor)?;
        Some(rest.trim_start().strip_prefix(">>>").unwrap_or(rest))
    })
}

/// Takes `words` off the front of `text`, whatever white space stands between them there: a model
/// that repeats a piece over a line end may well wrap it otherwise.
fn strip_words<'a>(text: &'a str, words: &str) -> Option<&'a str> {
    let mut rest = text;
    for (at, word) in words.split_whitespace().enumerate() {
        if at > 0 {
            let next = rest.trim_start();
            if next.len() == rest.len() {
                return None;
            }
            rest = next;
        }
        rest = rest.strip_prefix(word)?;
    }
    Some(rest)
}

/// What follows a repetition of the text's end, or of the whole text.
fn after_overlap<'a>(kept: &str, start: &'a str) -> Option<&'a str> {
    if let Some(rest) = after_whole(kept, start) {
        return Some(rest);
    }
    let window = &kept[tail_start(kept, OVERLAP_WINDOW)..];
    let length = overlap(window.as_bytes(), start.as_bytes());
    // Both are UTF-8 and the overlap ends where the text ends, so both its ends are borders.
    let (said, rest) = start.split_at_checked(length)?;
    let long_enough = said.chars().nth(OVERLAP_MIN - 1).is_some();
    (long_enough && !goes_round(window, said)).then_some(rest)
}

/// Whether `said`, the end of `window`, may well follow upon itself there: it is a repetition in
/// itself, or has followed upon itself before. Then nobody knows whether the model says it again
/// or the answer goes on like this.
fn goes_round(window: &str, said: &str) -> bool {
    let period = said.len() - borders(said.as_bytes()).last().copied().unwrap_or(0);
    // A short piece comes twice by chance in any table; a whole row does not.
    let times = if period < OVERLAP_MIN { 3 } else { 2 };
    if period * times <= said.len() {
        return true;
    }
    // Occurrences of what is no repetition in itself lie apart: this is linear, too.
    let begin = &said[..nth_char(said, OVERLAP_MIN)];
    let mut from = 0;
    while let Some(at) = window[from..].find(said).map(|at| at + from) {
        if window[at + said.len()..].trim_start().starts_with(begin) {
            return true;
        }
        from = window.ceil_char_boundary(at + 1);
    }
    false
}

/// What follows the whole text, where it is long enough that no answer would go on like this.
fn after_whole<'a>(kept: &str, start: &'a str) -> Option<&'a str> {
    let whole = kept.trim_start();
    whole.chars().nth(OVERLAP_MIN - 1)?;
    strip_words(start, whole)
}

/// Whether `tail`, the end of `text`, occurs nowhere else near that end.
fn occurs_once(text: &str, tail: &str) -> bool {
    let window = &text[tail_start(text, OVERLAP_WINDOW)..];
    window.find(tail) == Some(window.len() - tail.len())
}

/// Length of the longest end of `text` that `next` begins with, in bytes (Knuth, Morris, Pratt).
fn overlap(text: &[u8], next: &[u8]) -> usize {
    let pattern = &next[..next.len().min(text.len())];
    if pattern.is_empty() {
        return 0;
    }
    let borders = borders(pattern);
    let mut matched = 0;
    for &byte in text {
        if matched == pattern.len() {
            matched = borders[matched - 1];
        }
        while matched > 0 && byte != pattern[matched] {
            matched = borders[matched - 1];
        }
        matched += usize::from(byte == pattern[matched]);
    }
    matched
}

/// For each start of `pattern`, the length of the longest piece that both begins and ends it.
fn borders(pattern: &[u8]) -> Vec<usize> {
    let mut borders = vec![0_usize; pattern.len()];
    let mut matched = 0;
    for at in 1..pattern.len() {
        while matched > 0 && pattern[at] != pattern[matched] {
            matched = borders[matched - 1];
        }
        matched += usize::from(pattern[at] == pattern[matched]);
        borders[at] = matched;
    }
    borders
}

/// Puts the pieces together: `kept`, the white space of the seam, and `rest`.
fn glue(kept: &str, blank: &str, rest: &str, seam: Seam) -> Joined {
    let body = rest.trim_start();
    let lead = &rest[..rest.len() - body.len()];
    let mut text = String::with_capacity(kept.len() + blank.len() + rest.len());
    text.push_str(kept);
    push_blank(&mut text, blank, lead, body.is_empty(), seam);
    text.push_str(body);
    Joined { text, seam, added: body.len() }
}

/// Pushes the white space of a seam: `blank` stood at the end of the text and was not sent,
/// `lead` came with the reply. A model that goes on exactly brings `blank` again, so `lead`
/// wins where there is one; a line break is kept where the reply seems to start on a new line.
fn push_blank(text: &mut String, blank: &str, lead: &str, nothing_else: bool, seam: Seam) {
    if lead.starts_with(blank) {
        return text.push_str(lead);
    }
    if lead.is_empty() || nothing_else {
        return text.push_str(blank);
    }
    let (blank_lines, blank_indent) = split_after_last_newline(blank);
    let (lead_lines, lead_indent) = split_after_last_newline(lead);
    let newlines = |lines: &str| lines.matches('\n').count();
    if !lead_lines.is_empty() {
        let lines = if newlines(lead_lines) < newlines(blank_lines) { blank_lines } else { lead_lines };
        text.push_str(lines);
    } else if seam == Seam::Plain && !blank_lines.is_empty() {
        text.push_str(blank_lines);
        if !lead.starts_with(blank_indent) {
            text.push_str(blank_indent);
        }
    }
    text.push_str(lead_indent);
}

fn split_after_last_newline(blank: &str) -> (&str, &str) {
    blank.split_at(blank.rfind('\n').map_or(0, |at| at + 1))
}

/// The end of `text` (without white space around it) that starts at the line start, else the word
/// start, nearest to `length` characters from its end; between two thirds and four thirds of it.
fn tail_from_border(text: &str, length: usize) -> &str {
    let (near, far) = (length * 2 / 3, length * 4 / 3);
    let (mut at_line, mut at_word, mut at_char) = (None, None, 0);
    let mut chars = text.char_indices().rev().peekable();
    let mut count = 0_usize;
    while let Some((at, c)) = chars.next() {
        count += 1;
        let before = chars.peek().map(|&(_, before)| before);
        if count == length {
            at_char = at;
        }
        if c.is_whitespace() || count < near {
            continue;
        }
        if count > far {
            break;
        }
        let off = count.abs_diff(length);
        let nearer = |best: Option<(usize, usize)>| best.is_none_or(|(best, _)| off < best);
        if before.is_none_or(char::is_whitespace) && nearer(at_word) {
            at_word = Some((off, at));
        }
        if starts_a_line(&text[..at]) && nearer(at_line) {
            at_line = Some((off, at));
        }
    }
    // A short text is its own anchor: no border near its start is better than the start.
    if count <= length {
        return text;
    }
    &text[at_line.or(at_word).map_or(at_char, |(_, at)| at)..]
}

/// Whether only blanks stand between the last line break (or the start) and the end of `before`.
fn starts_a_line(before: &str) -> bool {
    let bare = before.trim_end_matches([' ', '\t']);
    bare.is_empty() || bare.ends_with('\n')
}

/// Byte offset of the last `count` characters.
fn tail_start(text: &str, count: usize) -> usize {
    text.char_indices().rev().nth(count.saturating_sub(1)).map_or(0, |(at, _)| at)
}

/// Byte offset behind the first `count` characters.
fn nth_char(text: &str, count: usize) -> usize {
    text.char_indices().nth(count).map_or(text.len(), |(at, _)| at)
}

#[cfg(test)]
mod tests;
