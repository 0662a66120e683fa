//! What the stand-in says: text that is a pure function of a seed, made of countable tokens.
//!
//! A token is one piece: a word with the space before it, the second half of a long word, or the
//! blank line between two paragraphs. So a cut at a token may fall inside a word or behind white
//! space, as with a real model, and a client that joins answers has something to get wrong.

use std::sync::LazyLock;

/// Words of the stand-in. Those of more than seven bytes are two tokens; a few hold characters of
/// more than one byte, so that chunks are cut inside of characters too.
static WORDS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    "mill stone water wheel grain flour river sluice hopper miller sack rye barley wheat bread oven \
     granary harvest meadow orchard lantern window kitchen evening morning village bridge market cart \
     horse wagon road valley mountain thunder winter summer autumn spring garden façade smörgåsbord naïve \
     Mühlrad blé🌾 the a of and to in that is was for on with as by at from this which or had not are but \
     one all were when there more than been some time very where about over first after then little old \
     great long new good quiet heavy narrow patient careful ordinary remarkable hundred thousand several \
     between without against through beneath beyond turned carried measured counted weighed written \
     answered repeated finished gathered remembered considered understood followed returned slowly \
     quickly together exactly perhaps always seldom afterwards everywhere question answer letter number \
     reason account ledger journey promise machine engine furnace workshop carpenter blacksmith neighbour \
     traveller merchant afternoon apprentice instrument government adventure particular temperature \
     conversation knowledge"
        .split(' ')
        .collect()
});

/// Longest word that is one token, in bytes.
const TOKEN_BYTES_MAX: usize = 7;

/// A text and where each of its tokens ends, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens {
    /// The text.
    pub text: String,
    /// The end of each token; grows strictly, the last one is the text's length.
    pub ends: Vec<usize>,
}

impl Tokens {
    /// Returns the number of tokens.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Cuts to at most `count` tokens.
    pub fn truncate(&mut self, count: usize) {
        self.ends.truncate(count);
        self.text.truncate(self.ends.last().copied().unwrap_or(0));
    }

    /// Cuts at a byte, which must be a character border; what is left of a token counts as one.
    pub fn truncate_bytes(&mut self, at: usize) {
        self.text.truncate(at);
        let whole = self.ends.partition_point(|&end| end < self.text.len());
        self.ends.truncate(whole);
        if !self.text.is_empty() {
            self.ends.push(self.text.len());
        }
    }

    /// Returns the tokens from a byte on; the rest of a token counts as one.
    pub fn rest_from(&self, at: usize) -> Self {
        let text = self.text[at..].to_owned();
        let ends = self.ends.iter().filter(|&&end| end > at).map(|end| end - at).collect();
        Self { text, ends }
    }

    /// Appends another text's tokens.
    pub fn append(&mut self, other: &Self) {
        let base = self.text.len();
        self.text.push_str(&other.text);
        self.ends.extend(other.ends.iter().map(|end| base + end));
    }

    /// Returns the text in pieces of so many tokens, each with its number of tokens.
    pub fn pieces(&self, tokens: usize) -> impl Iterator<Item = (&str, usize)> {
        let mut from = 0;
        self.ends.chunks(tokens.max(1)).map(move |chunk| {
            let to = chunk[chunk.len() - 1];
            let piece = &self.text[from..to];
            from = to;
            (piece, chunk.len())
        })
    }
}

/// Returns the answer to a seed, exactly so many tokens long.
///
/// The seed of an answer is the prompt's text, markers and all, unless `[[seed …]]` names another.
/// The text for fewer tokens is the start of the text for more.
pub fn text(seed: &str, tokens: usize) -> String {
    of_tokens(seed, tokens).text
}

/// The same with its token borders.
pub fn of_tokens(seed: &str, tokens: usize) -> Tokens {
    let mut writer = Writer::new(seed);
    let mut out = Tokens { text: String::with_capacity(tokens * 6), ends: Vec::with_capacity(tokens) };
    for _ in 0..tokens {
        writer.token(&mut out);
    }
    out
}

/// Returns the answer to a seed, exactly so many words long.
pub fn of_words(seed: &str, words: usize) -> Tokens {
    let mut writer = Writer::new(seed);
    let mut out = Tokens { text: String::with_capacity(words * 8), ends: Vec::with_capacity(words * 2) };
    while writer.words < words || writer.half.is_some() {
        writer.token(&mut out);
    }
    out
}

/// Returns a given text with token borders every four characters.
pub fn of_text(text: &str) -> Tokens {
    let mut ends: Vec<usize> = text
        .char_indices()
        .map(|(at, _)| at)
        .enumerate()
        .filter(|(n, _)| n % 4 == 0 && *n > 0)
        .map(|(_, at)| at)
        .collect();
    if !text.is_empty() {
        ends.push(text.len());
    }
    Tokens { text: text.to_owned(), ends }
}

struct Writer {
    random: u64,
    words: usize,
    sentence_left: u64,
    paragraph_left: u64,
    half: Option<(&'static str, &'static str)>,
    line_starts: bool,
}

impl Writer {
    fn new(seed: &str) -> Self {
        // FNV-1a: the text must be the same in every version and on every machine.
        let random = seed.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut writer =
            Self { random, words: 0, sentence_left: 0, paragraph_left: 0, half: None, line_starts: true };
        writer.begin_paragraph();
        writer
    }

    fn begin_paragraph(&mut self) {
        self.paragraph_left = 2 + self.below(4);
        self.line_starts = true;
        self.sentence_left = 0;
    }

    // SplitMix64.
    fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn token(&mut self, out: &mut Tokens) {
        if let Some((half, mark)) = self.half.take() {
            out.text.push_str(half);
            out.text.push_str(mark);
        } else if self.paragraph_left == 0 {
            out.text.push_str("\n\n");
            self.begin_paragraph();
        } else {
            self.word(&mut out.text);
        }
        out.ends.push(out.text.len());
    }

    fn word(&mut self, out: &mut String) {
        let sentence_starts = self.sentence_left == 0;
        if sentence_starts {
            self.sentence_left = 4 + self.below(9);
        }
        let word = WORDS[self.below(WORDS.len() as u64) as usize];
        self.sentence_left -= 1;
        let mark = if self.sentence_left == 0 {
            self.paragraph_left -= 1;
            "."
        } else if self.below(11) == 0 {
            ","
        } else {
            ""
        };
        if !self.line_starts {
            out.push(' ');
        }
        self.line_starts = false;
        self.words += 1;
        let cut =
            if word.len() > TOKEN_BYTES_MAX { word.floor_char_boundary(word.len() / 2) } else { word.len() };
        let (head, tail) = word.split_at(cut);
        if sentence_starts {
            out.push(head.as_bytes()[0].to_ascii_uppercase() as char);
            out.push_str(&head[1..]);
        } else {
            out.push_str(head);
        }
        if tail.is_empty() {
            out.push_str(mark);
        } else {
            self.half = Some((tail, mark));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_as_long_as_asked_and_the_start_of_every_longer_one() {
        let long = of_tokens("seed", 3000);
        assert_eq!(long.len(), 3000);
        assert_eq!(long.ends.last(), Some(&long.text.len()));
        for tokens in [0, 1, 2, 17, 500, 2999] {
            let mut cut = long.clone();
            cut.truncate(tokens);
            assert_eq!(cut, of_tokens("seed", tokens));
        }
        assert_ne!(text("seed", 50), text("other seed", 50));
    }

    #[test]
    fn words_are_counted_as_people_count_them() {
        for words in [1, 5, 40, 1000] {
            assert_eq!(of_words("seed", words).text.split_whitespace().count(), words);
        }
    }

    #[test]
    fn some_cuts_fall_inside_words_and_some_behind_white_space() {
        let tokens = of_tokens("seed", 500);
        assert!(tokens.ends.iter().any(|&end| tokens.text[..end].ends_with("\n\n")));
        assert!(
            tokens.ends.iter().any(|&end| tokens.text[end..].starts_with(|c: char| c.is_ascii_lowercase()))
        );
    }

    #[test]
    fn the_pieces_of_a_text_are_the_text() {
        let tokens = of_tokens("seed", 101);
        let pieces: Vec<(&str, usize)> = tokens.pieces(16).collect();
        assert_eq!(pieces.iter().map(|piece| piece.0).collect::<String>(), tokens.text);
        assert_eq!(pieces.iter().map(|piece| piece.1).sum::<usize>(), 101);
        assert_eq!(tokens.rest_from(tokens.ends[9]).len(), 91);
        assert_eq!(of_text("abcdefghi").ends, [4, 8, 9]);
    }
}
