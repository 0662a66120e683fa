//! What `status --watch` draws: lines that fit a terminal of any size. Pure.
//!
//! Names and reasons are other people's words: they pass through [`one_line`], which escapes what a
//! terminal would obey, before anything of ours is put around them.

use console::{Style, measure_text_width, truncate_str};

use super::batch::Batch;
use super::lens::Look;
use super::pace::{a_second, rough};
use crate::cli::out::{count, one_line, time};
use crate::store::GateLine;
use crate::web::words::short;

/// Columns of what a line is about.
const LABEL: usize = 9;
/// The shortest bar, the shortest one beside more than a time, and the longest.
const BAR: (usize, usize, usize) = (6, 10, 60);
/// Blanks between two columns.
const GAP: usize = 2;
/// Fewer lines than this are few.
const FEW: usize = 16;
/// Lines of a gate's reason.
const REASON_LINES: usize = 2;
/// Characters of a name or a reason that are looked at.
const WORDS_MAX: usize = 300;

/// A terminal.
#[derive(Debug, Clone, Copy)]
pub struct Canvas {
    /// Lines.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Whether it has colours.
    pub colour: bool,
}

/// What there is to draw.
#[derive(Debug, Clone, Default)]
pub struct Scene {
    /// Which database.
    pub place: String,
    /// The one batch that is watched.
    pub batch: Option<String>,
    /// What was seen last.
    pub look: Option<Look>,
    /// What keeps us from seeing more, since how many seconds.
    pub trouble: Option<(u64, String)>,
}

impl Canvas {
    fn paint(self, style: Style, text: &str) -> String {
        style.force_styling(self.colour).apply_to(text).to_string()
    }

    fn good(self, text: &str) -> String {
        self.paint(Style::new().green(), text)
    }

    fn bad(self, text: &str) -> String {
        self.paint(Style::new().red().bold(), text)
    }

    fn warn(self, text: &str) -> String {
        self.paint(Style::new().yellow(), text)
    }

    fn dim(self, text: &str) -> String {
        self.paint(Style::new().dim(), text)
    }

    fn strong(self, text: &str) -> String {
        self.paint(Style::new().bold(), text)
    }

    fn cut(self, text: &str) -> String {
        truncate_str(text, self.columns, "…").into_owned()
    }
}

/// Returns how many batches there is room for.
pub fn room(rows: usize) -> usize {
    rows.saturating_sub(8).clamp(3, 20)
}

/// Returns the lines, no more and no longer than there is room for.
pub fn render(scene: &Scene, canvas: Canvas) -> Vec<String> {
    let mut blocks = vec![vec![head(scene, canvas)]];
    if let Some((seconds, why)) = &scene.trouble {
        let since =
            if *seconds > 0 { format!(" for {}", rough(*seconds as i64 * 1_000)) } else { String::new() };
        let sentence =
            format!("no answer from the database{since}, trying again: {}", one_line(why, WORDS_MAX));
        blocks.push(wrap(&sentence, canvas, REASON_LINES).iter().map(|line| canvas.bad(line)).collect());
    }
    if let Some(look) = &scene.look {
        // On few lines, what comes first is what matters.
        let most = if canvas.rows < FEW { 2 } else { usize::MAX };
        let mut now = flow("jobs", &jobs(look, canvas), canvas);
        now.truncate(most);
        now.extend(flow("pace", &pace(look, canvas), canvas).into_iter().take(most));
        let outcomes = outcomes(scene, look, canvas);
        let workers = flow("workers", &workers(look, canvas), canvas);
        let gates = gates(look, canvas);
        let needed = blocks.iter().map(Vec::len).sum::<usize>() + now.len() + gates.len();
        let batches_min = look.batches.len().min(3);
        // What is said of the past and of the daemons gives way first.
        let has_room = needed + batches_min + outcomes.len() + workers.len() <= canvas.rows;
        if has_room {
            now.extend(outcomes);
            now.extend(workers);
        }
        blocks.extend([now, gates]);
        let left = canvas.rows.saturating_sub(blocks.iter().map(Vec::len).sum());
        blocks.push(batches(look, scene.batch.is_some(), left, canvas));
    }
    blocks.retain(|block| !block.is_empty());
    let lines: usize = blocks.iter().map(Vec::len).sum();
    let apart = lines + blocks.len() - 1 <= canvas.rows;
    let mut all = Vec::new();
    for block in blocks {
        if apart && !all.is_empty() {
            all.push(String::new());
        }
        all.extend(block.iter().map(|line| canvas.cut(line)));
    }
    all.truncate(canvas.rows);
    all
}

fn head(scene: &Scene, canvas: Canvas) -> String {
    let at = scene.look.as_ref().and_then(|look| look.at).map(time).unwrap_or_default();
    let what = match &scene.batch {
        Some(batch) => format!("batch {}", one_line(batch, WORDS_MAX)),
        None => one_line(&scene.place, WORDS_MAX),
    };
    let clock = at.split_once(' ').map_or("", |(_, clock)| clock);
    let room = canvas.columns.saturating_sub(clock.len() + GAP);
    let left = format!("promptmill  {what}");
    let left = truncate_str(&left, room, "…");
    let blanks = canvas.columns.saturating_sub(measure_text_width(&left) + clock.len());
    format!("{}{}{}", canvas.strong(&left), " ".repeat(blanks), canvas.dim(clock))
}

fn jobs(look: &Look, canvas: Canvas) -> Vec<String> {
    let mut chips: Vec<String> =
        look.jobs.iter().map(|(state, count)| format!("{count} {}", canvas.dim(state))).collect();
    if let Some(oldest) = look.oldest {
        chips.push(format!("{} {}", canvas.dim("oldest due for"), rough(oldest.age_ms)));
    }
    for queue in &look.paused {
        chips.push(canvas.warn(&format!("queue {} is paused", one_line(queue, 60))));
    }
    chips
}

fn pace(look: &Look, canvas: Canvas) -> Vec<String> {
    let pace = look.pace;
    if pace.jobs == 0.0 {
        return vec![canvas.dim("no answer in the last minute")];
    }
    let mut chips = vec![
        format!("{} {}", a_second(pace.jobs), canvas.dim("jobs/s")),
        format!("{} {}", a_second(pace.calls), canvas.dim("calls/s")),
    ];
    let (next, eta) = look.eta_ms();
    if let Some(eta) = eta {
        let over = if next.more { "over" } else { "about" };
        chips.push(canvas.strong(&format!("{over} {} left", rough(eta))));
    }
    let (tokens_in, tokens_out) = (short(pace.tokens_in * 60.0), short(pace.tokens_out * 60.0));
    let words = [canvas.dim("in,"), canvas.dim("out tokens/min")];
    chips.push(format!("{tokens_in} {} {tokens_out} {}", words[0], words[1]));
    chips
}

fn outcomes(scene: &Scene, look: &Look, canvas: Canvas) -> Vec<String> {
    let chip = |(word, count): &(String, super::batch::Count)| {
        let text = format!("{count} {word}");
        if word == "complete" { canvas.good(&text) } else { canvas.warn(&text) }
    };
    let chips: Vec<String> = look.outcomes.iter().map(chip).collect();
    if chips.is_empty() {
        return Vec::new();
    }
    flow(if scene.batch.is_some() { "ended" } else { "last hour" }, &chips, canvas)
}

fn workers(look: &Look, canvas: Canvas) -> Vec<String> {
    match look.workers {
        0 => vec![canvas.warn("no daemon is at work: promptmill run starts one")],
        n => vec![count(n as i64, "daemon is at work", "daemons are at work")],
    }
}

fn gates(look: &Look, canvas: Canvas) -> Vec<String> {
    // A long list must not hide the rest.
    let most = (canvas.rows / 6).max(1);
    let shown = if look.gates.len() > most { most.saturating_sub(1).max(1) } else { most };
    let mut lines = Vec::new();
    for gate in look.gates.iter().take(shown) {
        let room = if canvas.rows >= 20 { REASON_LINES } else { 1 };
        let mut wrapped = wrap(&sentence(gate), canvas, room).into_iter();
        lines.extend(wrapped.next().map(|line| canvas.warn(&line)));
        lines.extend(wrapped);
    }
    let more = look.gates.len().saturating_sub(shown) + look.more_gates;
    if more > 0 && most > 1 {
        lines.push(canvas.dim(&format!("{more} more stopped: promptmill gates")));
    }
    lines
}

/// Returns which gate stands how, until when and why.
pub fn sentence(gate: &GateLine) -> String {
    let until = match (gate.until, gate.until_ms) {
        (Some(at), Some(ms)) if ms > 0 => format!(" until {} ({} left)", time(at), rough(ms)),
        (Some(_), _) => ", about to be tried".to_owned(),
        (None, _) if gate.state == "blocked" => ", a person opens it".to_owned(),
        (None, _) => String::new(),
    };
    let reason = gate.reason.as_deref().map(|reason| one_line(reason, WORDS_MAX)).unwrap_or_default();
    let colon = if reason.is_empty() { "" } else { ": " };
    format!(
        "gate {} is {}{until}{colon}{reason}",
        one_line(&gate.scope, WORDS_MAX),
        one_line(&gate.state, 60)
    )
}

/// A batch as a row: what stands behind its bar, the most useful first.
struct Row {
    name: String,
    percent: String,
    shares: Option<(f64, f64)>,
    behind: [String; 4],
}

impl Row {
    fn new(batch: &Batch) -> Self {
        let (left, ended) = (batch.left(), batch.ended());
        let shares = batch.shares();
        let counts = match shares {
            Some(_) => format!("{ended} of {}", batch.total()),
            None => format!("{ended} done, {left} left"),
        };
        let otherwise = batch.otherwise();
        Self {
            name: one_line(&batch.name, WORDS_MAX),
            // All but done is not done.
            percent: shares.map_or_else(|| "?".to_owned(), |(done, _)| format!("{}%", (done * 100.0) as i64)),
            shares,
            behind: [
                batch.eta_ms().map(|ms| format!("{} left", rough(ms))).unwrap_or_default(),
                counts,
                if otherwise.n > 0 { format!("{otherwise} not complete") } else { String::new() },
                if left.n > 0 && batch.a_second > 0.0 {
                    format!("{}/s", a_second(batch.a_second))
                } else {
                    String::new()
                },
            ],
        }
    }
}

fn batches(look: &Look, alone: bool, room: usize, canvas: Canvas) -> Vec<String> {
    let rows: Vec<Row> = look.batches.iter().take(room).map(Row::new).collect();
    let widest = |of: &dyn Fn(&Row) -> usize| rows.iter().map(of).max().unwrap_or(0);
    // The head of the screen names the one.
    let name = if alone {
        0
    } else {
        widest(&|row| measure_text_width(&row.name)).clamp(5, (canvas.columns / 4).max(8))
    };
    let mut used = name + if alone { 0 } else { GAP } + 4 + GAP;
    let mut columns = Vec::new();
    for at in 0..4 {
        let width = widest(&|row| measure_text_width(&row.behind[at]));
        // How long it takes is worth a short bar.
        let bar = if at == 0 { BAR.0 } else { BAR.1 };
        if width > 0 && used + GAP + width + bar <= canvas.columns {
            used += GAP + width;
            columns.push((at, width));
        }
    }
    // As they are read: so many, how fast, how long.
    columns.sort_by_key(|(at, _)| [3, 0, 1, 2][*at]);
    let bar_width = canvas.columns.saturating_sub(used).clamp(1, BAR.2);
    let line = |row: &Row| {
        let mut line = String::new();
        if !alone {
            let name_cut = truncate_str(&row.name, name, "…");
            line.push_str(&pad(&name_cut, name, false));
            line.push_str(&" ".repeat(GAP));
        }
        line.push_str(&bar(row.shares, bar_width, canvas));
        line.push_str(&" ".repeat(GAP));
        line.push_str(&pad(&row.percent, 4, true));
        for (at, width) in &columns {
            line.push_str(&" ".repeat(GAP));
            let text = pad(&row.behind[*at], *width, true);
            line.push_str(&if *at == 2 { canvas.warn(&text) } else { text });
        }
        line.truncate(line.trim_end().len());
        line
    };
    rows.iter().map(line).collect()
}

/// Returns a bar: what is complete, what ended otherwise, and the rest.
fn bar(shares: Option<(f64, f64)>, width: usize, canvas: Canvas) -> String {
    let (done, complete) = shares.unwrap_or_default();
    let cells = |share: f64| ((share * width as f64) as usize).min(width);
    let (done, complete) = (cells(done), cells(complete));
    format!(
        "{}{}{}",
        canvas.good(&"━".repeat(complete)),
        canvas.warn(&"━".repeat(done - complete)),
        canvas.dim(&"─".repeat(width - done))
    )
}

fn pad(text: &str, width: usize, right: bool) -> String {
    let blanks = " ".repeat(width.saturating_sub(measure_text_width(text)));
    if right { format!("{blanks}{text}") } else { format!("{text}{blanks}") }
}

/// Puts chips behind a label, on as many lines as they need.
fn flow(label: &str, chips: &[String], canvas: Canvas) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = canvas.dim(&pad(label, LABEL, false));
    let mut empty = true;
    for chip in chips {
        let width = measure_text_width(chip);
        if !empty && measure_text_width(&line) + GAP + width > canvas.columns {
            lines.push(std::mem::replace(&mut line, " ".repeat(LABEL)));
            empty = true;
        }
        line.push_str(&" ".repeat(if empty { 1 } else { GAP }));
        line.push_str(chip);
        empty = false;
    }
    lines.push(line);
    lines
}

/// Breaks a sentence between words into at most `most` lines; what is too long is cut.
fn wrap(text: &str, canvas: Canvas, most: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let fits = |line: &String| measure_text_width(line) + 1 + measure_text_width(word) <= canvas.columns;
        let full = lines.len() == most;
        match lines.last_mut() {
            Some(line) if full || fits(line) => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) => lines.push(format!("  {word}")),
            None => lines.push(word.to_owned()),
        }
    }
    lines.iter().map(|line| canvas.cut(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::batch::Count;
    use crate::cli::status::pace::Pace;
    use crate::domain::job::JobId;
    use crate::store::Moment;
    use crate::store::board::{BatchTally, Oldest};

    fn batch(name: &str, open: &[(&str, i64)], done: &[(&str, i64)], a_second: f64) -> Batch {
        let own = |list: &[(&str, i64)]| list.iter().map(|(word, n)| ((*word).to_owned(), *n)).collect();
        let tally = BatchTally { open: own(open), done: own(done) };
        Batch { a_second, ..Batch::new(name.to_owned(), &tally, 2_000, None) }
    }

    fn scene() -> Scene {
        let all = |n| Count { n, more: false };
        let gate = GateLine {
            scope: "model:default/claude-sonnet-5".to_owned(),
            state: "blocked".to_owned(),
            reason: Some("the API is overloaded: 9 of the last 20 calls failed".to_owned()),
            until: Some(Moment(3_600_000)),
            until_ms: Some(75_000),
            since: Moment(0),
            since_ms_ago: 1,
            ignored: false,
        };
        let look = Look {
            at: Some(Moment(3_525_000)),
            jobs: vec![
                ("running", all(256)),
                ("waiting", all(0)),
                ("pending", Count { n: 10_000, more: true }),
                ("scheduled", all(3)),
            ],
            oldest: Some(Oldest { job: JobId(1), age_ms: 182_000 }),
            pace: Pace { jobs: 12.3, calls: 13.1, tokens_in: 20_000.0, tokens_out: 5_750.0 },
            stands: false,
            outcomes: vec![("complete".to_owned(), all(12_345)), ("failed".to_owned(), all(12))],
            batches: vec![
                batch(
                    "orders",
                    &[("pending", 400), ("running", 20)],
                    &[("complete", 570), ("failed", 10)],
                    7.0,
                ),
                batch("rhymes about the sea and the moon", &[("pending", 2_001)], &[("complete", 12)], 5.3),
                batch("done", &[], &[("complete", 33)], 0.0),
            ],
            gates: vec![gate],
            more_gates: 0,
            paused: vec!["nightly".to_owned()],
            workers: 2,
        };
        Scene { place: "sqlite:promptmill.db".to_owned(), look: Some(look), ..Scene::default() }
    }

    fn drawn(scene: &Scene, rows: usize, columns: usize) -> Vec<String> {
        render(scene, Canvas { rows, columns, colour: false })
    }

    #[test]
    fn eighty_columns_show_all_there_is() {
        insta::assert_snapshot!(drawn(&scene(), 24, 80).join("\n"), @r"
        promptmill  sqlite:promptmill.db                                       00:58:45Z

        jobs      256 running  0 waiting  10,000+ pending  3 scheduled
                  oldest due for 3 min 0 s  queue nightly is paused
        pace      12.3 jobs/s  13.1 calls/s  over 13 min left
                  1.2M in, 345k out tokens/min
        last hour 12,345 complete  12 failed
        workers   2 daemons are at work

        gate model:default/claude-sonnet-5 is blocked until 1970-01-01 01:00:00Z (1 min
          10 s left): the API is overloaded: 9 of the last 20 calls failed

        orders                ━━━━━━━━──────   57%          580 of 1,000  1 min 0 s left
        rhymes about the se…  ──────────────     ?  12 done, 2,000+ left
        done                  ━━━━━━━━━━━━━━  100%              33 of 33
        ");
    }

    #[test]
    fn forty_columns_and_ten_lines_keep_what_matters() {
        insta::assert_snapshot!(drawn(&scene(), 10, 40).join("\n"), @r"
        promptmill  sqlite:promptmil…  00:58:45Z
        jobs      256 running  0 waiting
                  10,000+ pending  3 scheduled
        pace      12.3 jobs/s  13.1 calls/s
                  over 13 min left
        gate model:default/claude-sonnet-5 is b…
        orders      ━━━───   57%  1 min 0 s left
        rhymes ab…  ──────     ?
        done        ━━━━━━  100%
        ");
    }

    #[test]
    fn no_line_is_longer_than_the_terminal_and_there_are_no_more_than_it_has() {
        let mut scene = scene();
        scene.look.as_mut().expect("it has one").batches[0].name =
            "漢字 e\u{301}\u{200d}\u{1b}[31m".repeat(9);
        scene.trouble = Some((75, "connection refused \u{7}".to_owned()));
        for colour in [false, true] {
            for (rows, columns) in
                (1..40).flat_map(|rows| (1..130).step_by(3).map(move |columns| (rows, columns)))
            {
                let lines = render(&scene, Canvas { rows, columns, colour });
                assert!(lines.len() <= rows, "{rows}x{columns}: {lines:#?}");
                for line in &lines {
                    assert!(measure_text_width(line) <= columns, "{rows}x{columns}: {line:?}");
                    let plain = console::strip_ansi_codes(line);
                    assert!(!plain.chars().any(char::is_control), "{line:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_kept_back_has_no_time() {
        let mut scene = scene();
        let look = scene.look.as_mut().expect("it has one");
        look.stands = true;
        look.batches[0].stands = true;
        let text = drawn(&scene, 24, 80).join("\n");
        assert!(!text.contains("min left") && !text.contains("s left\n"), "{text}");
        assert!(text.contains("12.3 jobs/s") && text.contains("580 of 1,000"), "{text}");
    }

    #[test]
    fn a_database_that_is_away_is_told_above_what_was_seen_last() {
        let trouble = Some((12, "connection refused".to_owned()));
        let text = drawn(&Scene { trouble: trouble.clone(), ..scene() }, 24, 80).join("\n");
        assert!(
            text.contains("no answer from the database for 12 s, trying again: connection refused"),
            "{text}"
        );
        assert!(text.contains("256 running"), "{text}");
        let never = Scene { trouble, ..Scene::default() };
        assert_eq!(drawn(&never, 24, 80).len(), 3, "head, blank, trouble");
    }
}
