//! Rust text without its comments and literals, and the few questions that tidiness asks of it.
//!
//! A reader of words, not a parser: good enough to find a name, and shown to be by the tests.

/// What is left of a file when comments and literals are blanked.
pub struct Code(String);

impl Code {
    /// Blanks comments, strings and character literals.
    pub fn read(text: &str) -> Self {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let blank = blank_at(rest, out.chars().next_back());
            if blank == 0 {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            } else {
                // Line breaks stay, and so does a border between words.
                out.push(' ');
                out.extend(rest[..blank].chars().filter(|&c| c == '\n'));
                rest = &rest[blank..];
            }
        }
        Self(out)
    }

    /// Returns the code before the tests at the end of the file.
    pub fn without_tests(&self) -> Self {
        let end = self.0.match_indices("#[cfg(test)]").find(|(at, mark)| {
            let after = self.0[at + mark.len()..].trim_start();
            after.starts_with("mod ")
                && after.split(['{', ';']).next().is_some_and(|name| after[name.len()..].starts_with('{'))
        });
        Self(self.0[..end.map_or(self.0.len(), |(at, _)| at)].to_owned())
    }

    /// Whether a word or path stands in the code. Of `std::env`, `use std::{env, fs}` is found too.
    pub fn names(&self, name: &str) -> bool {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let direct = self.0.match_indices(name).any(|(at, _)| {
            let before = self.0[..at].chars().next_back();
            let after = self.0[at + name.len()..].chars().next();
            !(before.is_some_and(word) || name.ends_with(word) && after.is_some_and(word))
        });
        let grouped = || {
            let (root, leaf) = name.split_once("::").unwrap_or((name, ""));
            !leaf.is_empty() && self.heads(root).iter().any(|head| head == leaf)
        };
        direct || grouped()
    }

    /// Returns the modules of the crate that the code names, from a file `depth` modules deep.
    pub fn roots(&self, depth: usize) -> Vec<String> {
        let climb = vec!["super"; depth].join("::");
        let mut roots = self.heads("crate");
        roots.extend(self.heads(&climb));
        roots.sort();
        roots.dedup();
        roots
    }

    /// Returns the names that follow `root::`, alone or in braces.
    fn heads(&self, root: &str) -> Vec<String> {
        let path = format!("{root}::");
        let whole =
            |at: usize| !self.0[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | ':'));
        let starts = self.0.match_indices(&path).filter(|(at, _)| whole(*at));
        starts.flat_map(|(at, _)| heads_of(&self.0[at + path.len()..])).collect()
    }
}

/// The first names of a path's tail: `a` of `a::b`, `a` and `c` of `{a::b, c}`.
fn heads_of(tail: &str) -> Vec<String> {
    let name = |text: &str| {
        let text = text.trim_start();
        let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
        text[..end].to_owned()
    };
    let Some(group) = tail.trim_start().strip_prefix('{') else {
        return vec![name(tail)];
    };
    let mut heads = vec![name(group)];
    let mut depth = 1;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => heads.push(name(&group[at + 1..])),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

/// How many bytes at the start of `rest` are a comment or a literal.
fn blank_at(rest: &str, before: Option<char>) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment(rest);
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let literal = if in_word { rest } else { rest.trim_start_matches(['b', 'c']) };
    if let Some(raw) = literal.strip_prefix('r').filter(|_| !in_word) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = &raw[hashes + 1..];
            let length = body.find(&end).map_or(body.len(), |at| at + end.len());
            return rest.len() - body.len() + length;
        }
    }
    let prefix = rest.len() - literal.len();
    if literal.starts_with('"') {
        return prefix + quoted(literal, '"');
    }
    // A lifetime has no closing quote one character (or one escape) further on.
    let mut chars = literal.chars();
    if chars.next() == Some('\'') {
        let escaped = chars.next() == Some('\\');
        if escaped || chars.next() == Some('\'') {
            return prefix + quoted(literal, '\'');
        }
    }
    0
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let bytes = rest.as_bytes();
    let mut at = 0;
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// Length of a quoted literal that starts at the quote.
fn quoted(literal: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in literal.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    literal.len()
}
