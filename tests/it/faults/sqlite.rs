//! The file under a running daemon: locked, full, replaced, robbed of its log.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::mill::harness::{Mill, Ran};
use crate::support::Ground;

/// `sqlite3` with an open write transaction; killed when it is dropped, which rolls back.
pub(crate) struct Holder(Child);

impl Holder {
    pub(crate) fn of(file: &Path) -> Self {
        let mut shell = Command::new("sqlite3")
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sqlite3 starts: tests/run installs it");
        let input = shell.stdin.as_mut().expect("stdin is piped");
        input
            .write_all(b".timeout 30000\nBEGIN IMMEDIATE;\nSELECT 'held';\n")
            .and_then(|()| input.flush())
            .expect("the shell reads");
        let mut said = String::new();
        BufReader::new(shell.stdout.as_mut().expect("stdout is piped"))
            .read_line(&mut said)
            .expect("it says so");
        assert_eq!(said.trim(), "held");
        Self(shell)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn lets_go(mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("it ends");
    }
}

fn beside(file: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}{ending}", file.display()))
}

/// The law of every test here, and the file is whole.
async fn all_is_well(mill: &Mill<'_>, ran: &Ran) {
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    mill.holds().await;
    let check = mill.ground.shell("PRAGMA integrity_check;").expect("the file can be read");
    assert_eq!(check, "ok");
}

#[tokio::test]
async fn another_process_that_holds_the_write_lock_is_named_and_running_calls_go_on() {
    let ground = Ground::sqlite().await;
    let mut mill = Mill::new(&ground).await;
    mill.set("PROMPTMILL_DATABASE__OPERATION_SECONDS", "4");
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "4");
    mill.knows_a_limit();
    mill.insert(&["[[tokens 60]] [[delay 2s]]", "[[tokens 60]] [[delay 3s]]", "quick"]).await;
    let (one, two) = (mill.start(), mill.start());
    mill.until_asked(3).await;
    mill.until("SELECT count(*) FROM results", "1").await;
    mill.until("SELECT count(*) FROM workers", "2").await;
    let holder = Holder::of(&ground.file());
    let pid = holder.pid();
    // It holds on for longer than an operation may take, and than two leases: neither daemon may take
    // the other for dead because its beat cannot be written.
    tokio::time::sleep(Duration::from_secs(9)).await;
    holder.lets_go();
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "3").await;
    mill.insert(&["afterwards"]).await;
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "4").await;
    for ran in [one.stop().await, two.stop().await] {
        all_is_well(&mill, &ran).await;
        assert!(
            ran.stderr.contains(&format!("process {pid} (sqlite3) holds the write lock")),
            "{}",
            ran.stderr
        );
        assert!(!ran.stderr.contains("is dead"), "{}", ran.stderr);
    }
    assert_eq!(mill.api.counts().total, 4, "no call was made twice");
    assert_eq!(ground.line("SELECT max(crashes) FROM job_state").await, "0");
    mill.ledger_is_the_stand_ins().await;
    ground.close().await;
}

#[tokio::test]
async fn a_daemon_that_starts_while_the_file_is_locked_waits_for_it() {
    let ground = Ground::sqlite().await;
    let mut mill = Mill::new(&ground).await;
    mill.set("PROMPTMILL_DATABASE__OPERATION_SECONDS", "1");
    mill.set("PROMPTMILL_DATABASE__CONNECT_SECONDS", "1");
    mill.insert(&["later"]).await;
    let holder = Holder::of(&ground.file());
    let daemon = mill.start();
    // Longer than the time to connect and the time of an operation together.
    tokio::time::sleep(Duration::from_secs(3)).await;
    holder.lets_go();
    mill.until("SELECT outcome FROM results", "complete").await;
    let ran = daemon.stop().await;
    assert!(ran.stderr.contains("failed to enlist: trying again"), "{}", ran.stderr);
    all_is_well(&mill, &ran).await;
    ground.close().await;
}

/// A small file system of its own, unmounted when it is dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    fn of(size: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path())
            .status()
            .expect("mount is there");
        assert!(
            done.success(),
            "this test fills a tmpfs of its own up: run it where mounting is allowed, as root"
        );
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0.path()).status().ok();
    }
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_is_gone_on_from_by_itself() {
    let disk = Disk::of("2m");
    let ground = Ground::sqlite_in(disk.path()).await;
    let mut mill = Mill::new(&ground).await;
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "4");
    let jobs: Vec<String> = (0..6).map(|job| format!("{job} [[tokens 2000]] [[delay 1s]]")).collect();
    mill.insert(&jobs.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let daemon = mill.start();
    mill.until_asked(6).await;
    let filler = disk.path().join("filler");
    let full = fs::write(&filler, vec![b'x'; 4 << 20]);
    assert!(full.is_err(), "the disk is not full");
    // The answers come while nothing can be written.
    mill.until_said(&daemon, "full").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    fs::remove_file(&filler).expect("the disk is emptied");
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "6").await;
    mill.insert(&["afterwards"]).await;
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "7").await;
    let ran = daemon.stop().await;
    all_is_well(&mill, &ran).await;
    assert_eq!(mill.api.counts().total, 7, "no call was made twice");
    mill.ledger_is_the_stand_ins().await;
    ground.close().await;
    drop(disk);
}

/// Makes a copy as SQLite itself does.
fn copy(file: &Path, to: &Path) {
    let done = Command::new("sqlite3").arg(file).arg(format!(".backup '{}'", to.display())).status();
    assert!(done.expect("sqlite3 is there").success());
}

#[tokio::test]
async fn a_restored_copy_of_the_file_is_gone_on_with() {
    let ground = Ground::sqlite().await;
    let mut mill = Mill::new(&ground).await;
    mill.knows_a_limit();
    mill.insert(&["[[seed s]] [[tokens 60]] [[delay 3s]]"]).await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    let file = ground.file();
    let restored = beside(&file, ".copy");
    copy(&file, &restored);
    // What is written from now on stands only in the log of the file that goes.
    mill.insert(&["unknown to the copy"]).await;
    mill.until("SELECT count(*) FROM results", "1").await;
    fs::rename(&restored, &file).expect("the copy is put in place");
    mill.until_said(&daemon, "going on with that one").await;
    let ground = Ground::open_file(&file).await;
    let mill = mill.on(&ground);
    // The job that ran is in the copy with the same claim: its answer is taken.
    mill.until("SELECT job_id, claim, outcome FROM results r JOIN calls c USING (job_id)", "1|1|complete")
        .await;
    mill.insert(&["new in the copy"]).await;
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "2").await;
    assert_eq!(
        ground.line("SELECT text FROM results WHERE job_id = 1").await,
        promptmill::stand_in::text("s", 60)
    );
    let ran = daemon.stop().await;
    assert!(ran.stderr.contains("going on with that one (the log of the file before is"), "{}", ran.stderr);
    all_is_well(&mill, &ran).await;
    ground.close().await;
}

#[tokio::test]
async fn an_answer_under_way_is_not_given_to_another_job_of_a_restored_copy() {
    let ground = Ground::sqlite().await;
    let mut mill = Mill::new(&ground).await;
    // It finds out at its next beat that the copy does not know it.
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "4");
    let file = ground.file();
    let restored = beside(&file, ".copy");
    copy(&file, &restored);
    // Job 1 here; the copy would give that number out again.
    mill.insert(&["[[seed old]] [[tokens 60]] [[delay 4s]]"]).await;
    let daemon = mill.start();
    mill.until_asked(1).await;
    fs::rename(&restored, &file).expect("the copy is put in place");
    mill.until_said(&daemon, "going on with that one").await;
    let ground = Ground::open_file(&file).await;
    let mill = mill.on(&ground);
    assert_eq!(ground.line("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'").await, "1");
    mill.insert(&["[[seed new]] [[tokens 60]]"]).await;
    mill.until("SELECT count(*) FROM results", "1").await;
    assert_eq!(
        ground.lines("SELECT job_id, text FROM results").await,
        [format!("2|{}", promptmill::stand_in::text("new", 60))]
    );
    all_is_well(&mill, &daemon.stop().await).await;
    ground.close().await;
}

#[tokio::test]
async fn another_database_at_the_path_is_left_alone_until_ours_is_back() {
    let ground = Ground::sqlite().await;
    let mill = Mill::new(&ground).await;
    let daemon = mill.start();
    mill.insert(&["heliotrope"]).await;
    mill.until("SELECT count(*) FROM results", "1").await;
    let file = ground.file();
    let folder = file.parent().expect("a folder");
    let aside = folder.join("aside");
    fs::create_dir(&aside).expect("a folder");
    let parts = ["mill.db", "mill.db-wal", "mill.db-shm"];
    for part in parts {
        fs::rename(folder.join(part), aside.join(part)).expect("moved away");
    }
    mill.until_said(&daemon, "was moved or deleted").await;
    let other = Ground::sqlite().await;
    copy(&other.file(), &file);
    other.close().await;
    mill.until_said(&daemon, "holds another database").await;
    let theirs = fs::read(&file).expect("the other file");
    fs::remove_file(&file).expect("the other file goes");
    for part in ["mill.db-wal", "mill.db-shm", "mill.db"] {
        fs::rename(aside.join(part), folder.join(part)).expect("moved back");
    }
    mill.insert(&["after"]).await;
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "2").await;
    assert!(!theirs.windows(10).any(|bytes| bytes == b"heliotrope"), "nothing of ours is in it");
    all_is_well(&mill, &daemon.stop().await).await;
    ground.close().await;
}

#[tokio::test]
async fn a_log_that_is_deleted_under_the_daemon_loses_nothing() {
    let ground = Ground::sqlite().await;
    let mill = Mill::new(&ground).await;
    let daemon = mill.start();
    mill.insert(&["before"]).await;
    mill.until("SELECT count(*) FROM results", "1").await;
    // Our own connections would see the log that is gone.
    ground.let_go().await;
    let file = ground.file();
    fs::remove_file(beside(&file, "-wal")).expect("the log was there");
    mill.until_said(&daemon, "is opened again").await;
    let ground = Ground::open_file(&file).await;
    let mill = mill.on(&ground);
    mill.insert(&["after"]).await;
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "2").await;
    all_is_well(&mill, &daemon.stop().await).await;
    ground.close().await;
}

#[tokio::test]
async fn a_log_that_is_deleted_under_two_processes_is_made_anew_only_when_both_have_let_go() {
    let ground = Ground::sqlite().await;
    let mill = Mill::new(&ground).await;
    let daemon = mill.start();
    mill.insert(&["before"]).await;
    mill.until("SELECT count(*) FROM results", "1").await;
    let file = ground.file();
    fs::remove_file(beside(&file, "-wal")).expect("the log was there");
    mill.until_said(&daemon, "has it open still").await;
    assert!(!beside(&file, "-wal").exists(), "no second log beside the one that this process has open");
    mill.insert(&["meanwhile, through the old log"]).await;
    ground.let_go().await;
    mill.until_said(&daemon, "is opened again").await;
    let ground = Ground::open_file(&file).await;
    let mill = mill.on(&ground);
    mill.until("SELECT count(*) FROM results WHERE outcome = 'complete'", "2").await;
    assert_eq!(ground.lines("PRAGMA integrity_check").await, ["ok"]);
    all_is_well(&mill, &daemon.stop().await).await;
    ground.close().await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_said_at_the_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = |args: &[&str]| {
        // Root may write anywhere.
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", env!("CARGO_BIN_EXE_promptmill")])
            .args(args)
            .env_clear()
            .env("DATABASE_URL", format!("sqlite:{}", folder.path().join("mill.db").display()))
            .env("PROMPTMILL_DATABASE__CONNECT_SECONDS", "1")
            .env("ANTHROPIC_API_KEY", "sk-ant-test")
            .current_dir("/")
            .output()
            .expect("setpriv is there")
    };
    let ran = run(&["run", "--drain"]);
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(4), "{said}");
    assert!(said.contains("see that its folder exists and that this user may write into it"), "{said}");
}
