//! Tools that are programs.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use promptmill::worker::tools::{Action, CommandSettings, Stopped, ToolSettings, Tools, ToolsSettings};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{LONG, SHORT, answer, run, run_until, sentence, tool, tools};

/// A tool whose program is a line of shell.
pub fn shell(script: &str) -> Action {
    command(&["sh", "-c", script])
}

fn command(argv: &[&str]) -> Action {
    Action::Command(CommandSettings {
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        cwd: None,
        env: vec![("PATH".to_owned(), "/usr/bin:/bin".into()), ("KEPT".to_owned(), "kept".into())],
    })
}

fn brief(tool: ToolSettings) -> ToolSettings {
    ToolSettings { timeout: SHORT, ..tool }
}

/// Waits until a script has written its process ids into a file, one a line.
async fn pids(file: &Path, many: usize) -> Vec<i32> {
    until(|| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        (text.ends_with('\n') && pids.len() == many).then_some(pids)
    })
    .await
}

/// Waits until something is so.
async fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, looking).await.expect("it is so long before this")
}

/// Whether a process lives; a zombie does not: its parent has only not noticed yet.
fn lives(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().next());
    !matches!(state, None | Some("Z" | "X"))
}

async fn all_gone(pids: &[i32]) {
    until(|| (!pids.iter().any(|&pid| lives(pid))).then_some(())).await;
}

/// A script that starts a child which starts a child, all of which note their ids and never end.
fn family(dir: &TempDir) -> (String, std::path::PathBuf) {
    let file = dir.path().join("pids");
    let inner = format!("echo $$ >> {0}; sh -c 'echo $$ >> {0}; exec sleep 1000' & wait", file.display());
    (format!("echo $$ >> {}; sh -c \"{}\" & wait", file.display(), inner.replace('$', "\\$")), file)
}

#[tokio::test]
async fn the_input_comes_on_stdin_and_stdout_is_the_result_as_it_is() {
    let input = r#"{"a": 1, "b": "ä"}"#;
    assert_eq!(answer(&run(tool(command(&["cat"])), input).await), input);
    // No shell looks at the arguments.
    let result = run(tool(command(&["printf", "%s", "$HOME; * `id`\n"])), "{}").await;
    assert_eq!(answer(&result), "$HOME; * `id`\n");
}

#[tokio::test]
async fn nothing_on_stdout_is_an_answer() {
    assert_eq!(answer(&run(tool(shell("echo careful >&2")), "{}").await), "");
}

#[tokio::test]
async fn a_program_needs_not_read_its_input() {
    let long = format!("\"{}\"", "x".repeat(1 << 20));
    for script in ["echo done", "exec <&-; sleep 0.05; echo done", "head -c 5 > /dev/null; echo done"] {
        assert_eq!(answer(&run(tool(shell(script)), &long).await), "done\n", "{script}");
    }
}

#[tokio::test]
async fn a_program_sees_only_the_environment_that_it_is_given() {
    let result = run(tool(command(&["env"])), "{}").await;
    let mut lines: Vec<&str> = answer(&result).lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["KEPT=kept", "PATH=/usr/bin:/bin"]);
}

#[tokio::test]
async fn a_program_is_started_in_its_folder_and_found_from_there() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine");
    fs::write(&file, "#!/bin/sh\npwd -P\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let Action::Command(settings) = command(&["./mine"]) else { unreachable!() };
    let settings = CommandSettings { cwd: Some(dir.path().to_owned()), ..settings };
    let result = run(tool(Action::Command(settings)), "{}").await;
    assert_eq!(Path::new(answer(&result).trim_end()), dir.path().canonicalize().unwrap());
}

#[tokio::test]
async fn an_exit_code_or_a_signal_is_an_error_with_its_last_words() {
    let said =
        |script: &'static str| async move { sentence(&run(tool(shell(script)), "{}").await).to_owned() };
    assert_eq!(said("exit 3").await, "The tool find failed with exit code 3.");
    assert_eq!(
        said("echo half; echo no such row >&2; exit 1").await,
        "The tool find failed with exit code 1. Its own words:\nno such row"
    );
    assert_eq!(
        said("echo said on stdout; exit 1").await,
        "The tool find failed with exit code 1. Its own words:\nsaid on stdout"
    );
    assert_eq!(said("kill -9 $$").await, "The tool find was ended by signal 9.");
    let long = said("yes noise | head -c 100000 >&2; printf 'the \\0 end' >&2; exit 1").await;
    assert!(long.len() < 2200 && long.ends_with("the \u{fffd} end"), "{long}");
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_an_error_that_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("plain.py");
    fs::write(&file, "print()").unwrap();
    let file = file.to_str().unwrap();
    for (argv, why) in [
        (vec!["no-such-program"], "there is no program no-such-program in PATH".to_owned()),
        (vec!["/no/such/file"], "there is no file /no/such/file".to_owned()),
        (vec![file], format!("{file} cannot be started: chmod +x it, or name its interpreter")),
    ] {
        let result = run(tool(command(&argv)), "{}").await;
        assert_eq!(sentence(&result), format!("The tool find could not be started: {why}."));
    }
    let Action::Command(settings) = command(&["true"]) else { unreachable!() };
    let settings = CommandSettings { cwd: Some("/no/such/folder".into()), ..settings };
    let result = run(tool(Action::Command(settings)), "{}").await;
    assert!(sentence(&result).contains("there is no folder /no/such/folder to start it in"), "{result:?}");
}

#[tokio::test]
async fn a_result_that_is_not_text_is_an_error() {
    for script in ["printf '\\377\\376'", "printf 'a\\0b'"] {
        let result = run(tool(shell(script)), "{}").await;
        assert_eq!(sentence(&result), "The tool find gave a tool result that is not text.", "{script}");
    }
}

#[tokio::test]
async fn a_result_may_be_exactly_as_long_as_its_limit() {
    let at_limit = run(tool(shell("yes | head -c 1000")), "{}").await;
    assert_eq!(answer(&at_limit).len(), 1000);
    let above = run(tool(shell("yes | head -c 1001")), "{}").await;
    assert_eq!(
        sentence(&above),
        "The tool find gave more than 1000 bytes, which is too much, and was stopped: nothing of it is shown."
    );
}

#[tokio::test]
async fn a_result_that_is_too_long_is_so_also_when_it_is_read_after_the_program_ended() {
    let (result, ()) = tokio::join!(run(tool(shell("yes | head -c 1001")), "{}"), async {
        // The one thread of this test is away while the program writes and ends.
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(10));
            tokio::task::yield_now().await;
        }
    });
    assert!(sentence(&result).contains("gave more than 1000 bytes"), "{result:?}");
}

#[tokio::test]
async fn a_gigabyte_is_cut_at_the_limit_and_its_printers_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    let before = peak_kib();
    // Whoever it is that prints, it would go on for ever. Neither prints before both are noted down: the
    // first one's output is enough to have the second killed.
    let script = format!(
        "echo $$ >> {0}; sh -c 'echo $$ >> {0}; exec yes' & while [ $(wc -l < {0}) -lt 2 ]; do sleep 0.01; done; \
         exec yes",
        file.display()
    );
    let settings = ToolSettings { output_max: 1 << 20, ..tool(shell(&script)) };
    let result = run(settings, "{}").await;
    assert!(sentence(&result).contains("gave more than 1048576 bytes"), "{result:?}");
    all_gone(&pids(&file, 2).await).await;
    // As much on stderr is read and forgotten.
    let result = run(tool(shell("head -c 1000000000 /dev/zero >&2; echo done")), "{}").await;
    assert_eq!(answer(&result), "done\n");
    assert!(peak_kib() - before < 64 * 1024, "{} KiB more than before", peak_kib() - before);
}

/// The most memory that this process has had.
fn peak_kib() -> i64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_program_that_never_ends_is_killed_with_its_children_at_its_limit() {
    let dir = tempfile::tempdir().unwrap();
    let (script, file) = family(&dir);
    // Long enough for three shells to start on a busy machine.
    let time = Duration::from_secs(2);
    let settings = ToolSettings { timeout: time, ..tool(shell(&format!("echo begun >&2; {script}"))) };
    let result = run(settings, "{}").await;
    assert_eq!(
        sentence(&result),
        "The tool find did not end within 2 s and was stopped. Its own words:\nbegun"
    );
    all_gone(&pids(&file, 3).await).await;
}

#[tokio::test]
async fn a_program_that_closes_its_pipes_and_stays_is_killed_at_its_limit() {
    let result = run(brief(tool(shell("exec <&- >&- 2>&-; exec sleep 1000"))), "{}").await;
    assert!(sentence(&result).contains("did not end within 0.3 s"), "{result:?}");
}

#[tokio::test]
async fn a_program_killed_half_way_is_an_error_and_its_children_die() {
    let dir = tempfile::tempdir().unwrap();
    let (script, file) = family(&dir);
    let tools = tools(tool(shell(&format!("echo half; {script}"))));
    let stop = CancellationToken::new();
    let (result, pids) = tokio::join!(run_until(&tools, "{}", &stop), async {
        let pids = pids(&file, 3).await;
        let pid = rustix::process::Pid::from_raw(pids[0]).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        pids
    });
    assert_eq!(sentence(&result.unwrap()), "The tool find was ended by signal 9. Its own words:\nhalf");
    all_gone(&pids).await;
}

#[tokio::test]
async fn what_a_program_leaves_running_ends_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    // The child holds stdout open: its end is not waited for.
    let script = format!(
        "sh -c 'echo $$ >> {0}; exec sleep 1000' & while ! [ -s {0} ]; do sleep 0.01; done; echo done",
        file.display()
    );
    assert_eq!(answer(&run(tool(shell(&script)), "{}").await), "done\n");
    all_gone(&pids(&file, 1).await).await;
}

#[tokio::test]
async fn a_process_that_leaves_the_group_lives_on_but_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    let script = format!(
        "setsid sh -c 'echo $$ >> {0}; exec sleep 1000' & while ! [ -s {0} ]; do sleep 0.01; done; echo done",
        file.display()
    );
    // It holds stdout open, so more may come; what came counts.
    assert_eq!(answer(&run(tool(shell(&script)), "{}").await), "done\n");
    let pid = pids(&file, 1).await[0];
    assert!(lives(pid));
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_stop_ends_the_run_and_leaves_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let (script, file) = family(&dir);
    let tools = tools(tool(shell(&script)));
    let stop = CancellationToken::new();
    let (result, pids) = tokio::join!(run_until(&tools, "{}", &stop), async {
        let pids = pids(&file, 3).await;
        stop.cancel();
        pids
    });
    assert_eq!(result, Err(Stopped));
    // The program itself is reaped before the run is over.
    assert!(!lives(pids[0]));
    all_gone(&pids).await;
    // Nothing is started any more.
    fs::remove_file(&file).unwrap();
    assert_eq!(run_until(&tools, "{}", &stop).await, Err(Stopped));
    assert!(!file.exists());
}

#[tokio::test]
async fn a_run_that_is_dropped_leaves_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let (script, file) = family(&dir);
    let tools = tools(tool(shell(&script)));
    let stop = CancellationToken::new();
    let pids = tokio::select! {
        result = run_until(&tools, "{}", &stop) => panic!("it does not end by itself: {result:?}"),
        pids = pids(&file, 3) => pids,
    };
    all_gone(&pids).await;
}

#[tokio::test]
async fn no_more_run_at_once_than_may_and_waiting_costs_no_time_limit() {
    let dir = tempfile::tempdir().unwrap();
    // Each sees the folder of the one that runs beside it.
    let script = format!("mkdir {0} || exit 9; sleep 0.5; rmdir {0}", dir.path().join("one").display());
    let find = ToolSettings { timeout: Duration::from_millis(2500), ..tool(shell(&script)) };
    let queues = [("default".to_owned(), vec!["find".to_owned()])].into();
    let tools = Arc::new(Tools::new(ToolsSettings { tools: vec![find], queues, at_once_max: 1 }));
    let mut runs = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let tools = Arc::clone(&tools);
        runs.spawn(async move { run_until(&tools, "{}", &CancellationToken::new()).await });
    }
    for result in runs.join_all().await {
        assert_eq!(answer(&result.unwrap()), "");
    }
}
