//! Cuts a corpus at token-like borders, lets simulated models go on, and holds the share of seams
//! that are not the text letter for letter.
//!
//! The figures are a promise (README: "arrives whole, letter for letter"); the rules that they
//! measure stand in `promptmill::domain::seam`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use promptmill::domain::seam::{How, anchor, join};
use proptest::prelude::*;

/// Every how many borders a cut is tried; the borders themselves are some four characters apart.
const STRIDE: usize = 5;

/// What a simulated model does with the request to go on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    /// Does as it is told, more or less tidily.
    RepeatsTheAnchor,
    /// Ignores the anchor and says the very next characters.
    GoesOnExactly,
    /// Repeats something else that it said last, then goes on.
    RepeatsSomethingElse,
    /// Continues a prefilled turn, on servers that send the prefill back and on those that do not.
    Prefilled,
}

/// A text cut in two, as the simulated model sees it.
struct Cut<'a> {
    /// All that was said so far.
    text: &'a str,
    /// The same as it is sent: right-trimmed.
    sent: &'a str,
    /// What comes next, from where `sent` ends.
    rest: &'a str,
}

impl Cut<'_> {
    /// White space that was stripped for sending.
    fn blank(&self) -> &str {
        &self.text[self.sent.len()..]
    }

    /// The end of what was sent, from the last border that `is_border` accepts: at least so many
    /// characters, some of them letters or digits. (Nobody can say which dash of a rule is meant.)
    fn tail(&self, at_least: usize, is_border: impl Fn(&str) -> bool) -> &str {
        let starts = self.sent.char_indices().rev().enumerate();
        let start = starts
            .filter(|(back, _)| back + 1 >= at_least)
            .map(|(_, (at, _))| at)
            .filter(|&at| self.sent[at..].chars().filter(|c| c.is_alphanumeric()).take(8).count() == 8)
            .find(|&at| is_border(&self.sent[..at]) && !self.sent[at..].starts_with(char::is_whitespace));
        &self.sent[start.unwrap_or(0)..]
    }

    /// The first line of the code fence that the text stands in; a line that is cut opens none.
    fn open_fence(&self) -> Option<&str> {
        let lines = self.sent.lines().map(str::trim);
        let fences = lines.filter(|line| line.starts_with("```") || line.starts_with("~~~"));
        let open = fences.fold(None, |open, line| if open.is_some() { None } else { Some(line) });
        open.filter(|fence| self.blank().contains('\n') || !self.sent.ends_with(fence))
    }

    fn replies(&self, kind: Kind) -> Vec<String> {
        let rest = self.rest;
        let mut replies = match kind {
            Kind::RepeatsTheAnchor => {
                let said = anchor(self.text);
                let wrapped = said.split_whitespace().collect::<Vec<_>>().join(" ");
                vec![
                    format!("{said}{rest}"),
                    format!("\n\n{said}{rest}"),
                    format!(" {said}{rest}"),
                    format!("<<<{said}>>>{rest}"),
                    format!("{wrapped}{rest}"),
                ]
            }
            Kind::GoesOnExactly => {
                let mut replies = vec![rest.to_owned()];
                // Without the white space that it was not shown.
                let after = &rest[self.blank().len()..];
                if !after.starts_with(char::is_whitespace) {
                    replies.push(after.to_owned());
                }
                replies
            }
            Kind::RepeatsSomethingElse => {
                let line = self.tail(24, |before| before.ends_with('\n'));
                let sentence = self.tail(24, |before| {
                    before.trim_end_matches([' ', '\n', '"']).ends_with(['.', '!', '?', '。', '，', ';', ':'])
                });
                let words = |count| self.tail(count, |before| before.ends_with([' ', '\n', ',', '|', ';']));
                vec![
                    format!("{line}{rest}"),
                    format!("\n{line}{rest}"),
                    format!("{sentence}{rest}"),
                    format!("{}{rest}", words(24)),
                    format!("{}{rest}", words(100)),
                    format!("\n\n{}{rest}", words(300)),
                    format!("{}{rest}", words(1500)),
                    format!("{}{rest}", self.sent.trim_start()),
                ]
            }
            Kind::Prefilled => {
                let mut replies = vec![rest.to_owned()];
                if self.sent.chars().count() >= 24 {
                    replies.push(format!("{}{rest}", self.sent));
                }
                replies
            }
        };
        if kind != Kind::Prefilled
            && let Some(fence) = self.open_fence()
        {
            // A bare line goes only before a repetition: else nobody could tell it from the end.
            let bare = fence.chars().all(|c| c == '`' || c == '~');
            if !(bare && kind == Kind::GoesOnExactly) {
                // Where nothing stands in the block yet, `rest` has the line break.
                let fresh = kind == Kind::GoesOnExactly && self.sent.ends_with(fence);
                let end = if fresh { "" } else { "\n" };
                let again: Vec<String> = replies.iter().map(|reply| format!("{fence}{end}{reply}")).collect();
                replies.extend(again);
            }
        }
        replies
    }
}

/// Byte offsets at which a tokenizer could cut: words with the space before them, long words in
/// pieces, numbers by three digits, punctuation, line breaks with the indentation after them.
fn borders(text: &str) -> Vec<usize> {
    let mut borders = Vec::new();
    let (mut class, mut length) = (' ', 0);
    for (at, c) in text.char_indices() {
        let next = match c {
            '\n' | '\r' => 'n',
            c if c.is_whitespace() => ' ',
            c if c.is_ascii_digit() => '0',
            c if c.is_ascii_alphabetic() => 'a',
            // Wide scripts and emoji: one character or two, however they cluster.
            c if !c.is_ascii() => 'w',
            _ => '.',
        };
        let longest = match class {
            'a' => 6,
            'w' => 2,
            '0' | '.' => 3,
            _ => 16,
        };
        // One space belongs to the word behind it; of more, all but the last stay together.
        let starts_word = next == ' ' && text[at + c.len_utf8()..].starts_with(|c: char| !c.is_whitespace());
        let joins_word = class == ' ' && length == 1 && next != 'n';
        let joins_line = class == 'n' && next == ' ' && !starts_word;
        if at > 0 && (starts_word || !(next == class || joins_word || joins_line) || length >= longest) {
            borders.push(at);
            length = 0;
        }
        if !joins_line || length == 0 {
            class = next;
        }
        length += 1;
    }
    borders.push(text.len());
    borders
}

fn corpus() -> Vec<(String, String)> {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/corpus");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the corpus is there")
        .map(|entry| entry.expect("it can be listed").path())
        .collect();
    files.sort();
    let read = |path: &PathBuf| {
        let name = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        (name, std::fs::read_to_string(path).expect("the corpus is UTF-8"))
    };
    files.iter().map(read).collect()
}

/// Seams tried and seams that came out wrong.
#[derive(Default, Clone, Copy)]
struct Count {
    tried: usize,
    wrong: usize,
}

impl Count {
    fn percent(self) -> f64 {
        100.0 * self.wrong as f64 / self.tried.max(1) as f64
    }
}

fn measure(text: &str, kind: Kind, examples: &mut Vec<String>) -> Count {
    let borders = borders(text);
    let mut count = Count::default();
    for (number, pair) in borders.windows(2).enumerate().step_by(STRIDE) {
        let cut = pair[0];
        // Segments of all lengths, from a few tokens to a few hundred.
        let last = (number + 2 + number * 7 % 211).min(borders.len() - 1);
        let sent = text[..cut].trim_end();
        if sent.is_empty() {
            continue;
        }
        let whole = &text[..borders[last]];
        let cut = Cut { text: &text[..cut], sent, rest: &whole[sent.len()..] };
        let how = if kind == Kind::Prefilled { How::Prefill } else { How::Anchor };
        for reply in cut.replies(kind) {
            count.tried += 1;
            let joined = join(cut.text, &reply, how);
            if joined.text != whole {
                count.wrong += 1;
                let end = &cut.text[cut.text.floor_char_boundary(cut.text.len().saturating_sub(80))..];
                let begin = &reply[..reply.floor_char_boundary(120)];
                examples.push(format!("{kind:?} {:?}: {end:?} + {begin:?}", joined.seam));
            }
        }
    }
    count
}

#[test]
fn hardly_any_seam_of_the_corpus_is_wrong() {
    let corpus = corpus();
    assert!(corpus.iter().map(|(_, text)| text.len()).sum::<usize>() >= 30_000);
    let kinds = [Kind::RepeatsTheAnchor, Kind::GoesOnExactly, Kind::RepeatsSomethingElse, Kind::Prefilled];
    let mut counts: BTreeMap<(&str, Kind), Count> = BTreeMap::new();
    let mut examples = Vec::new();
    for (name, text) in &corpus {
        let class = name.split('_').next().expect("a name has a first part");
        for kind in kinds {
            let count = measure(text, kind, &mut examples);
            let sum = counts.entry((class, kind)).or_default();
            sum.tried += count.tried;
            sum.wrong += count.wrong;
        }
    }
    let mut table = String::from("wrong seams, per cent (tried)\n");
    for ((class, kind), count) in &counts {
        writeln!(table, "{class:<10} {:<22} {:>6.2} ({})", format!("{kind:?}"), count.percent(), count.tried)
            .expect("a string takes it");
    }
    eprintln!("{table}");
    for ((class, kind), count) in &counts {
        // Rows that come again and again cannot be told from a repetition.
        let limit = match (*class, kind) {
            ("csv", Kind::GoesOnExactly | Kind::RepeatsSomethingElse) => 1.0,
            _ => 0.0,
        };
        let shown = examples.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
        assert!(count.percent() <= limit, "{class} {kind:?}\n{table}\n{shown}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_answer_in_many_segments_arrives_letter_for_letter(
        pick in any::<prop::sample::Index>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 1..12),
    ) {
        let corpus = corpus();
        let (_, text) = pick.get(&corpus);
        let borders = borders(text);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.get(&borders)).collect();
        cuts.push(text.len());
        cuts.sort_unstable();
        let mut said = text[..cuts[0]].to_owned();
        for &cut in &cuts[1..] {
            let reply = format!("{}{}", anchor(&said), &text[said.trim_end().len()..cut]);
            said = join(&said, &reply, How::Anchor).text;
            prop_assert_eq!(&said, &text[..cut]);
        }
    }
}
