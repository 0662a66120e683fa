//! Signals, pipes, limits and surroundings of the process.

use std::fs::File;
use std::os::unix::fs::FileTypeExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::mill::harness::{Daemon, Mill};
use crate::support::{Ground, on_both};

on_both!(
    a_daemon_that_was_stopped_for_two_leases_brings_no_second_result,
    a_second_signal_stops_running_calls_and_keeps_what_they_brought,
    an_odd_environment_changes_nothing,
);

async fn a_daemon_that_was_stopped_for_two_leases_brings_no_second_result(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "2");
    mill.set("PROMPTMILL_WORKER__CHECKPOINT_SECONDS", "1");
    // One answer is whole when the daemon is stopped, but for its last bytes; the other is in the middle.
    mill.insert(&[
        "[[seed a]] [[tokens 60]] [[delay 1500ms]]",
        "[[seed b]] [[tokens 2000]] [[delta 100]] [[pace 300ms]]",
    ])
    .await;
    let sleeper = mill.start();
    mill.until_asked(2).await;
    sleeper.signal("-STOP");
    let other = mill.start();
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "2").await;
    sleeper.signal("-CONT");
    // It learns that its row is gone, stops, and works on under a new name.
    mill.until_said(&sleeper, "this worker's row is gone").await;
    mill.until("SELECT count(*) FROM workers", "2").await;
    for ran in [sleeper.stop().await, other.stop().await] {
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    for (job, seed, tokens) in [(1, "a", 60), (2, "b", 2000)] {
        let text = ground.line(&format!("SELECT text FROM results WHERE job_id = {job}")).await;
        assert!(text == promptmill::stand_in::text(seed, tokens), "{seed} is not whole, letter for letter");
    }
    assert_eq!(ground.line("SELECT count(*) FROM results").await, "2");
    mill.holds().await;
}

async fn a_second_signal_stops_running_calls_and_keeps_what_they_brought(ground: &Ground) {
    let mill = Mill::new(ground).await;
    mill.insert(&["[[seed s]] [[tokens 4000]] [[delta 100]] [[pace 400ms]]"]).await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    mill.until("SELECT count(*) FROM job_state WHERE state = 'running'", "1").await;
    daemon.signal("-TERM");
    mill.until_said(&daemon, "a second signal stops running calls too").await;
    let began = Instant::now();
    daemon.signal("-TERM");
    let ran = daemon.ended().await;
    assert!(began.elapsed() < Duration::from_secs(2), "it took {:?}: {}", began.elapsed(), ran.stderr);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let (states, calls) = ("SELECT state, failures FROM job_state", "SELECT partial FROM calls");
    assert_eq!(ground.line(states).await, "pending|0", "{}", ran.stderr);
    assert_eq!(ground.line(calls).await, ground.either("1", "t"), "what had arrived is kept");
    assert_eq!(ground.line("SELECT count(*) FROM workers").await, "0");
    mill.holds().await;
}

async fn an_odd_environment_changes_nothing(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.unset("HOME");
    for (number, zone) in ["Nowhere/Nothing", ":/dev/null", "XYZ-27:99:99", "\u{e9}"].iter().enumerate() {
        mill.set("TZ", zone);
        mill.set("LANG", "tlh_XX.EBCDIC");
        mill.insert(&[&format!("in {number}")]).await;
        let mut command = mill.command(&["run", "--drain"]);
        // Nothing can be written there, not even by root.
        command.current_dir("/proc/self");
        let ran = Daemon::by(command).ended().await;
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    assert_eq!(ground.line("SELECT count(*) FROM results WHERE outcome = 'complete'").await, "4");
}

#[tokio::test]
async fn a_second_signal_ends_a_daemon_within_two_seconds_while_its_database_is_locked() {
    let ground = Ground::sqlite().await;
    let mill = Mill::new(&ground).await;
    mill.insert(&["[[tokens 4000]] [[delta 100]] [[pace 400ms]]"]).await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    let holder = super::sqlite::Holder::of(&ground.file());
    daemon.signal("-TERM");
    mill.until_said(&daemon, "a second signal stops running calls too").await;
    let began = Instant::now();
    daemon.signal("-TERM");
    let ran = daemon.ended().await;
    assert!(began.elapsed() < Duration::from_secs(3), "it took {:?}: {}", began.elapsed(), ran.stderr);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("the database did not take 1 answer in time: kept in"), "{}", ran.stderr);
    holder.lets_go();
    // What could not be said is found out by the next one.
    mill.api.reset();
    let next = mill.start();
    mill.until("SELECT claims > 1 FROM job_state", "1").await;
    next.kill().await;
    ground.close().await;
}

#[tokio::test]
async fn a_third_signal_exits_at_once() {
    let ground = Ground::sqlite().await;
    let mill = Mill::new(&ground).await;
    mill.insert(&["[[hang]]"]).await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    let holder = super::sqlite::Holder::of(&ground.file());
    for words in ["a second signal stops", "a third signal exits"] {
        daemon.signal("-TERM");
        mill.until_said(&daemon, words).await;
    }
    daemon.signal("-TERM");
    assert_eq!(daemon.ended().await.code, 143);
    holder.lets_go();
    ground.close().await;
}

/// Waits for a process that nobody reads from.
async fn ended(process: &mut std::process::Child) -> i32 {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(status) = process.try_wait().expect("it is ours") {
            return status.code().unwrap_or(-1);
        }
        assert!(Instant::now() < deadline, "it did not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn terminate(process: &std::process::Child) {
    let sent = Command::new("kill").arg(process.id().to_string()).status().expect("kill is there");
    assert!(sent.success());
}

#[tokio::test]
async fn a_log_that_nobody_reads_stands_no_job_still() {
    let ground = Ground::sqlite().await;
    let mut mill = Mill::new(&ground).await;
    mill.set("PROMPTMILL_LOG__LEVEL", "debug");
    let values: Vec<String> = (0..400).map(|job| format!("('job {job} [[words 3]]')")).collect();
    ground.run(&format!("INSERT INTO jobs (prompt) VALUES {}", values.join(","))).await;
    // Each job logs some hundreds of bytes, and a pipe holds 64 KiB.
    let mut process = mill.command(&["run"]).spawn().expect("the binary starts");
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "400").await;
    terminate(&process);
    assert_eq!(ended(&mut process).await, 0);
    let log = std::io::read_to_string(process.stderr.take().expect("it is piped")).expect("it can be read");
    assert!(log.len() > 60_000, "the pipe was full: {}", log.len());
    ground.close().await;
}

#[tokio::test]
async fn a_log_that_is_closed_or_on_a_full_disk_is_no_reason_to_stop() {
    let ground = Ground::sqlite().await;
    let mill = Mill::new(&ground).await;
    let full = File::options().write(true).open("/dev/full").expect("Linux has it");
    assert!(full.metadata().expect("it is there").file_type().is_char_device());
    for (number, stderr) in [Stdio::piped(), Stdio::from(full)].into_iter().enumerate() {
        mill.insert(&["one"]).await;
        let mut process = mill.command(&["run"]).stderr(stderr).spawn().expect("the binary starts");
        drop(process.stderr.take());
        mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", &(number + 1).to_string())
            .await;
        terminate(&process);
        assert_eq!(ended(&mut process).await, 0);
    }
    ground.close().await;
}

/// Starts the binary with so many files to open.
fn with_files(mill: &Mill<'_>, files: u32, args: &[&str]) -> Command {
    let inner = mill.command(args);
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={files}")).arg(inner.get_program()).args(args).env_clear();
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(mill.home()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[tokio::test]
async fn few_open_files_make_fewer_calls_at_once_and_a_sentence() {
    let ground = Ground::sqlite().await;
    let mill = Mill::new(&ground).await;
    let jobs: Vec<String> = (0..80).map(|job| format!("{job} [[tokens 20]] [[delay 300ms]]")).collect();
    mill.insert(&jobs.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let ran = Daemon::by(with_files(&mill, 64, &["run", "--drain"])).ended().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("19 calls fit: worker.concurrency 64 is more"), "{}", ran.stderr);
    assert_eq!(mill.api.counts().total, 80, "no call failed: {}", ran.stderr);
    assert_eq!(ground.line("SELECT count(*) FROM results WHERE outcome = 'complete'").await, "80");
    ground.close().await;
}
