//! The live view: on a terminal, in a pipe, for programs, and while the database is away.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::terminal::Terminal;
use super::{Desk, settle};
use crate::support::proxy::{End, Mode, Proxy};
use crate::support::{Ground, Kind, on_both, server};

on_both! {
    a_watched_batch_ends_with_7_where_not_all_of_it_is_complete,
    a_pipe_gets_a_line_at_each_change,
    a_program_gets_an_object_at_each_look,
    the_time_left_is_that_of_what_runs_or_is_next_and_what_is_kept_back_has_none,
    a_screen_shows_bars_and_gates_and_is_given_back,
    a_watched_batch_ends_by_itself_and_its_last_view_stays,
    names_and_reasons_cannot_steer_the_terminal,
    a_screen_of_another_size_is_drawn_anew,
    a_terminal_has_no_colours_where_none_are_wanted,
    a_database_that_goes_away_is_told_of_and_waited_for,
    waiting_shows_how_many_are_done,
}

/// Keys of a terminal.
const CTRL_C: &str = "\x03";
const CTRL_BACKSLASH: &str = "\x1c";
const FOUR_JOBS: &str = "INSERT INTO jobs (prompt, batch) VALUES ('a', 'orders'), ('b', 'orders'), ('c', 'orders'), ('d', 'orders')";

/// A command without a terminal, what it says in files.
struct Piped {
    child: Child,
    dir: std::path::PathBuf,
}

impl Piped {
    fn start(desk: &Desk, args: &[&str], env: &[(&str, &str)]) -> Self {
        let file = |name: &str| std::fs::File::create(desk.dir.path().join(name)).expect("a file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_promptmill"));
        command.args(args).current_dir(desk.dir.path()).env_clear().env("DATABASE_URL", desk.ground.url());
        if desk.ground.kind() == Kind::Postgres {
            command.env("PROMPTMILL_DATABASE__SCHEMA", desk.ground.schema());
        }
        command.envs(env.iter().copied());
        command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err"));
        Self { child: command.spawn().expect("it starts"), dir: desk.dir.path().to_owned() }
    }

    /// Waits until one of its files says this; returns all of it.
    async fn until(&self, file: &str, words: &str) -> String {
        let began = Instant::now();
        loop {
            let said = read(&self.dir.join(file));
            if said.contains(words) {
                return said;
            }
            assert!(
                began.elapsed() < Duration::from_mins(1),
                "no {words:?} in:\n{said}{}",
                read(&self.dir.join("err"))
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Interrupts it; returns its exit code, and what it wrote.
    async fn interrupted(mut self) -> (Option<i32>, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it is there");
        (self.code().await, read(&self.dir.join("out")))
    }

    /// Waits until it ends by itself.
    async fn code(&mut self) -> Option<i32> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be asked") {
                return status.code();
            }
            assert!(began.elapsed() < Duration::from_mins(1), "it does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

async fn a_watched_batch_ends_with_7_where_not_all_of_it_is_complete(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'x'), ('b', 'x')").await;
    settle(ground, 1, "complete", "end_turn", "x").await;
    settle(ground, 2, "failed", "", "").await;
    let desk = Desk::new(ground);
    let ran = desk.mill(&["status", "--watch", "--batch", "x"]);
    assert_eq!(ran.code, 7, "{ran:?}");
    assert!(ran.out.contains("x: 2 of 2 done; 1 complete, 1 failed"), "{ran:?}");
    let json = desk.mill(&["status", "--json", "--watch", "--batch", "x"]);
    assert_eq!((json.code, json.out.lines().count()), (7, 1), "{json:?}");
    assert!(desk.mill(&["status", "--watch", "-b", "y"]).said(1).contains("no job has batch \"y\""));
    assert!(desk.mill(&["status", "--interval", "1"]).said(2).contains("--watch"));
    assert!(desk.mill(&["status", "--watch", "--interval", "0"]).said(2).contains("from 0.1 to 3600"));
}

async fn a_pipe_gets_a_line_at_each_change(ground: &Ground) {
    ground.run(FOUR_JOBS).await;
    let desk = Desk::new(ground);
    let piped = Piped::start(&desk, &["status", "--watch", "--interval", "0.1"], &[]);
    piped.until("out", "4 pending").await;
    settle(ground, 1, "complete", "end_turn", "x").await;
    piped.until("out", "3 pending").await;
    ground
        .run("INSERT INTO gates (scope, state, reason) VALUES ('model:p/m', 'blocked', 'too many errors')")
        .await;
    piped.until("out", "gate model:p/m is blocked, a person opens it: too many errors\n").await;
    ground.run("UPDATE gates SET state = 'flowing'").await;
    piped.until("out", "gate model:p/m flows\n").await;
    let (code, out) = piped.interrupted().await;
    assert_eq!(code, Some(0));
    assert!(!out.contains('\x1b'), "{out}");
}

async fn a_program_gets_an_object_at_each_look(ground: &Ground) {
    ground.run(FOUR_JOBS).await;
    settle(ground, 1, "complete", "end_turn", "x").await;
    settle(ground, 2, "failed", "", "").await;
    let desk = Desk::new(ground);
    let piped = Piped::start(&desk, &["status", "--json", "--watch", "--interval", "0.1"], &[]);
    piped.until("out", "\n{").await;
    let (code, out) = piped.interrupted().await;
    assert_eq!(code, Some(0));
    let first: serde_json::Value = serde_json::from_str(out.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["jobs"]["pending"], 2, "{first}");
    assert_eq!(first["outcomes_last_hour"], serde_json::json!({"complete": 1, "failed": 1}), "{first}");
    let batch = &first["batches"][0];
    assert_eq!((&batch["batch"], &batch["done"], &batch["total"]), (&"orders".into(), &2.into(), &4.into()));
    assert_eq!(batch["outcomes"], serde_json::json!({"complete": 1, "failed": 1}), "{first}");
    // Two jobs of one call each ended within the last minute.
    assert!(first["calls_a_second"].as_f64().is_some_and(|rate| rate > 0.0 && rate < 3.0), "{first}");
    assert_eq!(first["jobs_a_second"], first["calls_a_second"], "{first}");
}

/// What one look says of the time left: of all jobs, of the batch among them, and of the batch alone.
async fn times_left(desk: &Desk<'_>) -> [Option<i64>; 3] {
    // However slow the machine is, they ended within the minute that is looked at.
    desk.ground.run(&format!("UPDATE results SET finished_at = {}", desk.ground.at(0))).await;
    let mut looks = Vec::new();
    for args in [&[][..], &["--batch", "orders"]] {
        let args = [&["status", "--json", "--watch", "--interval", "600"], args].concat();
        let piped = Piped::start(desk, &args, &[]);
        let line = piped.until("out", "\n").await;
        assert_eq!(piped.interrupted().await.0, Some(0));
        looks.push(serde_json::from_str::<serde_json::Value>(&line).expect("JSON"));
    }
    let batch = &looks[0]["batches"][0];
    assert_eq!(batch["batch"], "orders", "{}", looks[0]);
    [&looks[0], batch, &looks[1]].map(|seen| seen["eta_seconds"].as_i64())
}

async fn the_time_left_is_that_of_what_runs_or_is_next_and_what_is_kept_back_has_none(ground: &Ground) {
    ground.run(FOUR_JOBS).await;
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('e', 'orders'), ('f', 'orders')").await;
    ground.run("INSERT INTO accounts (queue, profile, key) VALUES ('', 'default', 'abc')").await;
    for job in 1..=3 {
        settle(ground, job, "complete", "end_turn", "x").await;
    }
    let desk = Desk::new(ground);
    // Three in a minute: one takes twenty seconds.
    assert_eq!(times_left(&desk).await, [Some(60); 3]);
    let tomorrow = ground.at(86_400);
    ground.run(&format!("UPDATE job_state SET available_at = {tomorrow} WHERE job_id = 6")).await;
    assert_eq!(ground.line("SELECT state FROM job_state WHERE job_id = 6").await, "scheduled");
    assert_eq!(times_left(&desk).await, [Some(40); 3]);
    for (stop, flow) in [
        ("UPDATE queues SET paused = TRUE", "UPDATE queues SET paused = FALSE"),
        ("INSERT INTO gates (scope, state) VALUES ('batch:default/orders', 'blocked')", "DELETE FROM gates"),
        ("INSERT INTO gates (scope, state) VALUES ('key:abc', 'blocked')", "DELETE FROM gates"),
    ] {
        ground.run(stop).await;
        assert_eq!(times_left(&desk).await, [None; 3], "{stop}");
        ground.run(flow).await;
    }
    // What stands elsewhere is no matter of this batch's, nor is a pause of nothing.
    ground.run("INSERT INTO queues (name, paused) VALUES ('nightly', TRUE)").await;
    assert_eq!(times_left(&desk).await, [Some(40); 3]);
    ground.run("INSERT INTO jobs (queue, prompt) VALUES ('nightly', 'g')").await;
    assert_eq!(times_left(&desk).await, [None, Some(40), Some(40)]);
}

async fn a_screen_shows_bars_and_gates_and_is_given_back(ground: &Ground) {
    ground.run(FOUR_JOBS).await;
    settle(ground, 1, "complete", "end_turn", "x").await;
    let until = ground.at(3_600);
    ground
        .run(&format!(
            "INSERT INTO gates (scope, state, reason, until) VALUES ('key:abc', 'blocked', 'no credit', {until})"
        ))
        .await;
    let desk = Desk::new(ground);
    let args = ["status", "--watch", "--interval", "0.1"];
    let mut terminal = Terminal::start(&desk, &args, (24, 80), &[]);
    let screen = terminal.until(|screen| screen.contains("25%")).await;
    assert_eq!(terminal.modes(), (true, false), "the other screen, without a cursor");
    let bar = screen.lines().find(|line| line.contains("25%")).expect("it is there");
    assert!(bar.starts_with("orders  ━") && bar.contains("─") && bar.contains("1 of 4"), "{screen}");
    assert!(screen.contains("gate key:abc is blocked until") && screen.contains("no credit"), "{screen}");
    assert!(screen.contains("3 pending") && screen.contains("no daemon is at work"), "{screen}");
    settle(ground, 2, "failed", "", "").await;
    let screen = terminal.until(|screen| screen.contains("50%")).await;
    assert!(screen.contains("1 not complete"), "{screen}");
    assert!(!screen.contains("25%"), "drawn in place:\n{screen}");
    terminal.press(CTRL_C);
    let (left, modes) = terminal.ended().await;
    assert_eq!((left.code, modes), (0, (false, true)), "{}", left.screen);
    assert!(left.screen.contains("50%"), "what was seen last stays:\n{}", left.screen);
}

#[tokio::test]
async fn who_quits_is_given_the_screen_back() {
    let ground = Ground::sqlite().await;
    ground.run(FOUR_JOBS).await;
    let desk = Desk::new(&ground);
    let mut terminal = Terminal::start(&desk, &["status", "--watch", "--interval", "0.1"], (24, 80), &[]);
    terminal.until(|screen| screen.contains("4 pending")).await;
    terminal.press(CTRL_BACKSLASH);
    let (left, modes) = terminal.ended().await;
    assert_eq!((left.code, modes), (0, (false, true)), "{}", left.screen);
    drop(desk);
    ground.close().await;
}

async fn a_watched_batch_ends_by_itself_and_its_last_view_stays(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'orders'), ('b', 'orders')").await;
    settle(ground, 1, "complete", "end_turn", "x").await;
    let desk = Desk::new(ground);
    let args = ["status", "--watch", "--batch", "orders", "--interval", "0.1"];
    let mut terminal = Terminal::start(&desk, &args, (24, 80), &[]);
    let screen = terminal.until(|screen| screen.contains("50%")).await;
    assert!(screen.starts_with("promptmill  batch orders"), "{screen}");
    settle(ground, 2, "complete", "end_turn", "x").await;
    let (left, modes) = terminal.ended().await;
    assert_eq!((left.code, modes), (0, (false, true)), "{}", left.screen);
    assert!(left.screen.contains("100%") && left.screen.contains("2 complete"), "{}", left.screen);
}

async fn names_and_reasons_cannot_steer_the_terminal(ground: &Ground) {
    let esc = ground.either("char(27)", "chr(27)");
    ground.run(&format!("INSERT INTO jobs (prompt, batch) VALUES ('a', 'x' || {esc} || '[2Jy')")).await;
    ground
        .run(&format!(
            "INSERT INTO gates (scope, state, reason) VALUES ('model:p/m', 'blocked', 'see ' || {esc} || ']0;owned' || {esc} || '\\')"
        ))
        .await;
    let desk = Desk::new(ground);
    let mut terminal = Terminal::start(&desk, &["status", "--watch", "--interval", "0.1"], (24, 100), &[]);
    let screen = terminal.until(|screen| screen.contains("x\\u{1b}[2Jy")).await;
    assert!(screen.contains("see \\u{1b}]0;owned\\u{1b}\\"), "{screen}");
    terminal.press(CTRL_C);
    let (left, _) = terminal.ended().await;
    assert!(!left.bytes.contains("x\x1b") && !left.bytes.contains("\x1b]0"), "{:?}", left.bytes);
    let piped = Piped::start(&desk, &["status", "--watch", "--interval", "0.1"], &[]);
    piped.until("out", "1 pending").await;
    let (_, out) = piped.interrupted().await;
    assert!(out.contains("see \\u{1b}]0;owned") && !out.contains('\x1b'), "{out:?}");
}

async fn a_screen_of_another_size_is_drawn_anew(ground: &Ground) {
    for batch in 0..30 {
        ground
            .run(&format!(
                "INSERT INTO jobs (prompt, batch) VALUES ('a', 'a batch of a long name, number {batch}')"
            ))
            .await;
    }
    ground.run("INSERT INTO gates (scope, state, reason) SELECT 'model:p/' || id, 'blocked', 'a long story of one error after the other, told until nobody listens' FROM jobs").await;
    let desk = Desk::new(ground);
    // Nothing is looked at again: what is drawn is drawn for the size alone.
    let mut terminal = Terminal::start(&desk, &["status", "--watch", "--interval", "600"], (24, 80), &[]);
    terminal.until(|screen| screen.contains("batch of a l")).await;
    for (rows, columns) in [(10, 40), (50, 200), (1, 5), (24, 80)] {
        terminal.resize((rows, columns));
        // The clock stands at the end of the first line.
        let wide = |screen: &str| {
            screen.lines().next().is_some_and(|line| {
                line.chars().count() == usize::from(columns) && (columns == 5 || line.ends_with('Z'))
            })
        };
        let screen = terminal.until(wide).await;
        let full: Vec<&str> = screen.lines().filter(|line| !line.is_empty()).collect();
        assert!(full.len() <= rows.into(), "{screen}");
        // A line that is too long would go on in the next one.
        let begins = ["promptmill", "jobs", "pace", "last hour", "workers", "gate", "a batch", " "];
        let known = |line: &&str| begins.iter().any(|begin| line.starts_with(begin));
        assert!(
            columns == 5 || full.iter().all(|line| known(line) || line.ends_with("promptmill gates")),
            "{screen}"
        );
        assert!(columns == 5 || screen.contains("a batch o"), "{screen}");
    }
    terminal.press(CTRL_C);
    assert_eq!(terminal.ended().await.0.code, 0);
}

async fn a_terminal_has_no_colours_where_none_are_wanted(ground: &Ground) {
    ground.run(FOUR_JOBS).await;
    let desk = Desk::new(ground);
    let args = ["status", "--watch", "--interval", "0.1"];
    let colour = |bytes: &str| {
        bytes
            .split("\x1b[")
            .skip(1)
            .any(|code| code.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'))
    };
    for (env, screen, coloured) in
        [(&[][..], true, true), (&[("NO_COLOR", "1")], true, false), (&[("TERM", "dumb")], false, false)]
    {
        let mut terminal = Terminal::start(&desk, &args, (24, 80), env);
        terminal.until(|screen| screen.contains("4 pending")).await;
        terminal.press(CTRL_C);
        let (left, _) = terminal.ended().await;
        assert_eq!(left.code, 0);
        assert_eq!(
            (left.bytes.contains("\x1b[?1049h"), colour(&left.bytes)),
            (screen, coloured),
            "{:?}",
            left.bytes
        );
    }
}

async fn a_database_that_goes_away_is_told_of_and_waited_for(ground: &Ground) {
    ground.run(FOUR_JOBS).await;
    let desk = Desk::new(ground);
    let args = ["status", "--watch", "--interval", "0.1"];
    if ground.kind() == Kind::Sqlite {
        let mut terminal = Terminal::start(&desk, &args, (24, 200), &[]);
        terminal.until(|screen| screen.contains("4 pending")).await;
        let file = ground.file();
        let aside = file.with_extension("aside");
        std::fs::rename(&file, &aside).expect("it can be moved");
        let screen = terminal.until(|screen| screen.contains("no answer from the database")).await;
        assert!(screen.contains("there is no file") && screen.contains("4 pending"), "{screen}");
        std::fs::rename(&aside, &file).expect("it can be moved");
        terminal.until(|screen| !screen.contains("no answer from the database")).await;
        return;
    }
    let options = server::options_of(&ground.url());
    let server = format!("{}:{}", options.get_host(), options.get_port());
    let proxy = Proxy::start(server.parse().expect("the test server has a number")).await;
    let (_, database) =
        ground.url().rsplit_once('/').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("a database");
    let url = format!("postgres://{}@{}/{database}", options.get_username(), proxy.address());
    // One that is cut off, and one that is there and says nothing.
    for vanish in [
        &(|| {
            proxy.set(Mode::Refuse);
            proxy.end_all(End::Reset);
        }) as &dyn Fn(),
        &|| proxy.set(Mode::Stall),
    ] {
        let env = [("DATABASE_URL", url.as_str()), ("PROMPTMILL_DATABASE__OPERATION_SECONDS", "1")];
        let piped = Piped::start(&desk, &args, &env);
        piped.until("out", "4 pending").await;
        vanish();
        piped.until("err", "no answer from the database, trying again").await;
        // Connections that hang are given up for new ones.
        proxy.end_all(End::Silence);
        proxy.set(Mode::Forward);
        piped.until("err", "the database answers again").await;
        let (code, _) = piped.interrupted().await;
        assert_eq!(code, Some(0));
    }
}

async fn waiting_shows_how_many_are_done(ground: &Ground) {
    let desk = Desk::new(ground);
    desk.file("two.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n");
    let mut terminal =
        Terminal::start(&desk, &["enqueue", "two.jsonl", "--batch", "x", "--wait"], (24, 80), &[]);
    terminal.until(|screen| screen.contains("0 of 2 jobs done")).await;
    settle(ground, 1, "complete", "end_turn", "x").await;
    terminal.until(|screen| screen.contains("1 of 2 jobs done")).await;
    settle(ground, 2, "complete", "end_turn", "x").await;
    let (left, _) = terminal.ended().await;
    assert_eq!(left.code, 0, "{}", left.screen);
    assert!(left.screen.contains("2 jobs done: 2 complete"), "{}", left.screen);
    assert!(!left.screen.contains(" of 2 jobs"), "the line is gone:\n{}", left.screen);
}
