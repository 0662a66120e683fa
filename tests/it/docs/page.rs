//! A page and its code blocks.
//!
//! The first word behind a fence is the language. After it may stand `sqlite` or `postgres`: the block is for that
//! database alone; or `norun: WHY`. A `text` block is what the block before it prints; `…` stands for anything, alone
//! on a line for any lines. What only prepares or looks stands in a comment: `<!-- run LANGUAGE`, up to `-->`.

use crate::support::Kind;

/// What a block is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Shell,
    Sql,
    Python,
    JavaScript,
    /// Settings: read by the configuration.
    Toml,
    /// Only has to be JSON, whole or a value a line.
    Json,
    /// What the block before it prints.
    Output,
}

impl Language {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "sh" | "bash" => Self::Shell,
            "sql" => Self::Sql,
            "python" => Self::Python,
            "js" => Self::JavaScript,
            "toml" => Self::Toml,
            "json" | "jsonl" => Self::Json,
            "text" => Self::Output,
            _ => return None,
        })
    }
}

/// A code block that runs.
#[derive(Debug)]
pub struct Block {
    pub language: Language,
    /// For which database; `None`: for both.
    pub only: Option<Kind>,
    pub text: String,
    /// Its first line in the page.
    pub line: usize,
}

/// A page, taken apart.
#[derive(Debug, Default)]
pub struct Page {
    pub name: String,
    pub blocks: Vec<Block>,
    /// The reasons of the blocks that do not run.
    pub idle: Vec<String>,
    /// What is wrong with its fences.
    pub faults: Vec<String>,
}

impl Page {
    pub fn parse(name: &str, text: &str) -> Self {
        let mut page = Self { name: name.to_owned(), ..Self::default() };
        let mut lines = text.lines().enumerate();
        while let Some((at, line)) = lines.next() {
            let indent = line.len() - line.trim_start().len();
            let (info, end) = if let Some(info) = line.trim_start().strip_prefix("```") {
                (info, "```")
            } else if let Some(info) = line.strip_prefix("<!-- run ") {
                (info, "-->")
            } else {
                continue;
            };
            let mut body = String::new();
            let mut closed = false;
            for (_, line) in lines.by_ref() {
                if line.trim() == end {
                    closed = true;
                    break;
                }
                body.push_str(line.get(indent..).unwrap_or_default());
                body.push('\n');
            }
            if !closed {
                page.faults.push(format!("{name}:{}: the block is not closed", at + 1));
            }
            page.take(info.trim(), body, at + 1);
        }
        page
    }

    fn take(&mut self, info: &str, text: String, line: usize) {
        let place = format!("{}:{line}", self.name);
        if let Some((_, why)) = info.split_once("norun") {
            match why.strip_prefix(": ") {
                Some(why) if !why.trim().is_empty() => self.idle.push(why.to_owned()),
                _ => {
                    self.faults
                        .push(format!("{place}: the block does not say why it is not run: norun: WHY"));
                }
            }
            return;
        }
        let mut words = info.split_whitespace();
        let first = words.next().unwrap_or_default();
        let Some(language) = Language::parse(first) else {
            self.faults.push(format!(
                "{place}: nobody runs a block of {first:?}: name its language, or say norun: WHY"
            ));
            return;
        };
        let mut only = None;
        for word in words {
            match word {
                "sqlite" => only = Some(Kind::Sqlite),
                "postgres" => only = Some(Kind::Postgres),
                _ => self.faults.push(format!("{place}: {word:?} says nothing about a block")),
            }
        }
        self.blocks.push(Block { language, only, text, line });
    }
}

/// Whether what was printed is what a page shows. Returns where they part.
pub fn differs(shown: &str, printed: &str) -> Option<String> {
    let shown: Vec<&str> = shown.lines().map(str::trim_end).collect();
    let printed: Vec<&str> = printed.lines().map(str::trim_end).collect();
    (!lines_match(&shown, &printed))
        .then(|| format!("the page shows\n{}\nand this is printed\n{}", shown.join("\n"), printed.join("\n")))
}

fn lines_match(shown: &[&str], printed: &[&str]) -> bool {
    match shown {
        [] => printed.iter().all(|line| line.is_empty()),
        ["…", rest @ ..] => (0..=printed.len()).any(|skipped| lines_match(rest, &printed[skipped..])),
        [line, rest @ ..] => printed
            .split_first()
            .is_some_and(|(first, others)| line_matches(line, first) && lines_match(rest, others)),
    }
}

fn line_matches(shown: &str, printed: &str) -> bool {
    let Some((start, rest)) = shown.split_once('…') else { return shown == printed };
    let Some(printed) = printed.strip_prefix(start) else { return false };
    printed
        .char_indices()
        .map(|(at, _)| at)
        .chain([printed.len()])
        .any(|at| line_matches(rest, &printed[at..]))
}

#[test]
fn a_block_without_a_language_or_a_reason_is_a_fault() {
    let page = |info: &str| Page::parse("p.md", &format!("text\n```{info}\nbody\n```\n"));
    for info in ["", "ini", "sql oracle", "sh norun", "sh norun: "] {
        assert_eq!(page(info).faults.len(), 1, "{info}");
    }
    assert_eq!(Page::parse("p.md", "```sh\nnever closed").faults.len(), 1);
    let good = page("sql postgres");
    assert!(good.faults.is_empty());
    assert_eq!((good.blocks[0].only, good.blocks[0].line), (Some(Kind::Postgres), 2));
    assert_eq!(page("ini norun: of PgBouncer").idle, ["of PgBouncer"]);
    assert_eq!(Page::parse("p.md", "<!-- run sh\ntrue\n-->\n").blocks[0].text, "true\n");
}

#[test]
fn what_is_shown_is_held_against_what_is_printed() {
    assert_eq!(differs("a … b\n…\nend\n", "a 1 b\n2\n3\nend\n"), None);
    assert_eq!(differs("…", ""), None);
    for (shown, printed) in
        [("a", "b"), ("a", "a\nb"), ("a\nb", "a"), ("a …b", "a c"), ("…\nend", "end\nmore")]
    {
        assert!(differs(shown, printed).is_some(), "{shown:?} {printed:?}");
    }
}
