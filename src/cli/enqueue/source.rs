//! What the jobs of a file are made of: JSON lines or the rows of a table, as they are or by a template.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use super::lines::{Fault, Line, Lines};
use super::table::Table;
use super::template::Filling;
use crate::cli::exit::Stop;
use crate::store::NewJob;

/// How the file is to be read.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[expect(clippy::doc_markdown, reason = "these words are the help text, which knows no backticks")]
pub struct Args {
    /// Make each prompt of this text, {{name}} standing for a column or field
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "prompt",
        group = "templated",
        allow_hyphen_values = true
    )]
    template: Option<String>,
    /// Read the template from a file; one line end at its end is left out
    #[arg(long, value_name = "FILE", conflicts_with = "prompt", group = "templated")]
    template_file: Option<PathBuf>,
    /// Make each system prompt of this text in the same way
    #[arg(
        long,
        value_name = "TEXT",
        requires = "templated",
        conflicts_with = "system",
        allow_hyphen_values = true
    )]
    system_template: Option<String>,
    /// Column that names each row: its job gets the key BATCH/NAME [default: custom_id, where there is one]
    #[arg(long, value_name = "NAME", requires = "templated")]
    key_column: Option<String>,
    /// What FILE is [default: csv where its name ends with .csv or .tsv, else jsonl]
    #[arg(long, value_name = "FORMAT", conflicts_with = "prompt")]
    format: Option<Format>,
    /// One character between the columns of a CSV file [default: a comma; a tab in .tsv]
    #[arg(long, value_name = "CHARACTER", conflicts_with = "prompt")]
    separator: Option<String>,
}

/// What a file of jobs is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// One JSON object a line
    Jsonl,
    /// A table whose first line names the columns
    Csv,
}

/// How the file is read, understood.
#[derive(Debug)]
pub struct Source {
    format: Format,
    separator: u8,
    filling: Option<Filling>,
}

/// The jobs of a file, one after the other.
pub enum Jobs<'f> {
    /// Of JSON lines.
    Lines(Lines<'f, BufReader<&'f File>>),
    /// Of rows.
    Table(Table<'f, BufReader<&'f File>>),
}

impl Source {
    /// Understands what the command line says of the file at `path`.
    pub fn new(args: &Args, path: &Path) -> anyhow::Result<Self> {
        let ends_with = |kind: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(kind));
        let by_name = if ends_with("csv") || ends_with("tsv") { Format::Csv } else { Format::Jsonl };
        let format = args.format.unwrap_or(by_name);
        let separator = match args.separator.as_deref() {
            None if ends_with("tsv") => b'\t',
            None => b',',
            Some("\\t") => b'\t',
            Some(text) => match text.as_bytes() {
                [byte] if !matches!(byte, b'"' | b'\r' | b'\n') && byte.is_ascii() => *byte,
                _ => return Err(Stop::usage("--separator is not one character of ASCII, such as ; or \\t")),
            },
        };
        if args.separator.is_some() && format == Format::Jsonl {
            return Err(Stop::usage("--separator is of a CSV file: give --format csv, too"));
        }
        let read = match &args.template_file {
            None => None,
            Some(file) => Some(template_in(file)?),
        };
        let filling = match args.template.as_ref().or(read.as_ref()) {
            None => None,
            Some(text) => {
                let (system, key) = (args.system_template.as_deref(), args.key_column.as_deref());
                Some(Filling::new(text, system, key).map_err(Stop::usage)?)
            }
        };
        Ok(Self { format, separator, filling })
    }

    /// Returns the jobs of the file from where it stands.
    pub fn read<'f>(&'f self, file: &'f File, name: &str) -> anyhow::Result<Jobs<'f>> {
        let reader = BufReader::with_capacity(256 * 1024, file);
        let filling = self.filling.as_ref();
        if self.format == Format::Jsonl {
            return Ok(Jobs::Lines(Lines::new(reader, filling)));
        }
        match Table::open(reader, self.separator, filling)? {
            Ok(table) => Ok(Jobs::Table(table)),
            Err(Fault { number, sentence }) => {
                let end = if sentence.ends_with('?') { " Nothing" } else { "; nothing" };
                Err(Stop::failure(format!("{name}: line {number}: {sentence}{end} was enqueued")))
            }
        }
    }
}

impl Jobs<'_> {
    /// Reads the next job. `Err` outside: the file cannot be read any further.
    pub fn next_job(&mut self, fill: &NewJob) -> io::Result<Option<Result<Line, Fault>>> {
        match self {
            Self::Lines(lines) => lines.next_job(fill),
            Self::Table(table) => table.next_job(fill),
        }
    }

    /// Returns the first 12 hexadecimal digits of the SHA-256 of all that was read, and of the templates.
    pub fn digest(self) -> String {
        match self {
            Self::Lines(lines) => lines.digest(),
            Self::Table(table) => table.digest(),
        }
    }
}

fn template_in(file: &Path) -> anyhow::Result<String> {
    let mut text = std::fs::read_to_string(file)
        .map_err(|error| Stop::failure(format!("{} cannot be read: {error}", file.display())))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}
