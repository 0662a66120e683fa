//! What systemd is told, heard on a socket of the test's own.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{STEP_MAX, Watched};
use crate::mill::harness::{Daemon, Mill};
use crate::support::{Ground, on_both};

on_both! {
    it_is_ready_when_it_is_among_the_workers_and_stops_when_it_drains,
    a_start_that_fails_is_never_ready,
}

/// Where systemd would listen.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn of(mill: &mut Mill<'_>) -> Self {
        let path = mill.home().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket in a folder of ours");
        mill.set("NOTIFY_SOCKET", &path.display().to_string());
        Self { socket, path }
    }

    /// The next message, if one comes within this time.
    async fn hears(&self, within: Duration) -> Option<String> {
        let socket = self.socket.try_clone().expect("a second hand on it");
        let heard = tokio::task::spawn_blocking(move || {
            socket.set_read_timeout(Some(within)).expect("a time limit");
            let mut message = [0; 4096];
            socket.recv(&mut message).ok().map(|many| String::from_utf8_lossy(&message[..many]).into_owned())
        });
        heard.await.expect("it does not panic")
    }

    /// All messages up to the first that holds this line.
    async fn until(&self, line: &str) -> Vec<String> {
        let deadline = Instant::now() + STEP_MAX;
        let mut heard = Vec::new();
        loop {
            let message = self.hears(STEP_MAX).await;
            heard.extend(message);
            if heard.last().is_some_and(|message| message.lines().any(|said| said == line)) {
                return heard;
            }
            assert!(Instant::now() < deadline, "never {line:?}, but {heard:?}");
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is given away by who asks")]
fn lives(message: String) -> bool {
    message.contains("WATCHDOG=1")
}

fn status(message: &str) -> &str {
    message.lines().find_map(|line| line.strip_prefix("STATUS=")).unwrap_or_default()
}

async fn it_is_ready_when_it_is_among_the_workers_and_stops_when_it_drains(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    let manager = Manager::of(&mut mill);
    mill.insert(&["[[hang]]"]).await;
    // The database takes it for a worker, and it stands still just then.
    let file = mill.home().join("go-on");
    mill.set("FAILPOINTS", &format!("enlist=return(wait {})", file.display()));
    let daemon = Daemon::by(mill.command(&["run"]));
    mill.until("SELECT count(*) FROM workers", "1").await;
    let mut is_waited_for = false;
    while let Some(before) = manager.hears(Duration::from_millis(300)).await {
        assert!(!before.contains("READY=1"), "{before}");
        is_waited_for |= before.contains("EXTEND_TIMEOUT_USEC=40000000");
    }
    assert!(is_waited_for, "the start ends at systemd's limit");
    std::fs::write(&file, "").expect("a folder of ours");
    let heard = manager.until("READY=1").await;
    assert!(status(&heard[heard.len() - 1]).starts_with("working: "), "{heard:?}");
    mill.until_asked(1).await;
    daemon.terminate();
    let heard = manager.until("STOPPING=1").await;
    assert_eq!(status(&heard[heard.len() - 1]), "draining: 1 in flight, 0 ended", "{heard:?}");
    assert!(!heard.iter().any(|message| message.contains("WATCHDOG")), "nobody asked for it: {heard:?}");
    assert_eq!(daemon.stop().await.code, 0);
    assert!(manager.path.exists());
}

async fn a_start_that_fails_is_never_ready(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    let manager = Manager::of(&mut mill);
    ground
        .run(&format!(
            "UPDATE {} SET schema_min = 99",
            if ground.kind() == crate::support::Kind::Postgres {
                ground.table("meta")
            } else {
                "meta".to_owned()
            }
        ))
        .await;
    let ran = mill.run(&["run"]).await;
    assert_eq!(ran.code, 5, "{}", ran.stderr);
    while let Some(message) = manager.hears(Duration::from_millis(100)).await {
        assert!(!message.contains("READY=1"), "{message}");
    }
}

#[tokio::test]
async fn the_watchdog_is_told_twice_in_its_time_and_nothing_of_a_loop_that_stands_still() {
    let ground = Ground::sqlite().await;
    let mut mill = Mill::new(&ground).await;
    let manager = Manager::of(&mut mill);
    mill.set("WATCHDOG_USEC", "2000000");
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "1");
    mill.set("PROMPTMILL_DATABASE__OPERATION_SECONDS", "0.5");
    let file = mill.home().join("go-on");
    mill.set("FAILPOINTS", &format!("beat=40*off->return(wait {})", file.display()));
    let watched = Watched::start(&mut mill).await;
    manager.until("READY=1").await;
    let mut at = vec![Instant::now()];
    for _ in 0..5 {
        let message = manager.hears(Duration::from_secs(5)).await.expect("it lives");
        assert!(message.contains("WATCHDOG=1") && message.contains("STATUS="), "{message}");
        at.push(Instant::now());
    }
    // On a busy machine one or the other is late, not all of them.
    let mut between: Vec<Duration> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    between.sort_unstable();
    assert!(between[2] > Duration::from_millis(500), "more often than twice: {between:?}");
    assert!(between[2] < Duration::from_millis(1_300), "more seldom than twice in two seconds: {between:?}");
    assert_eq!(watched.get("/livez").await.status, 200);
    let here = file.with_extension("here");
    let deadline = Instant::now() + STEP_MAX;
    while !here.exists() || manager.hears(Duration::from_secs(2)).await.is_some_and(lives) {
        assert!(Instant::now() < deadline, "it is told all the time that it lives");
    }
    // The thread that stands still may be the one that the others wait for: then nothing is said at all.
    for _ in 0..4 {
        let message = manager.hears(Duration::from_secs(1)).await;
        assert!(!message.clone().is_some_and(lives), "{message:?}");
    }
    if let Ok(answer) = watched.asked("/livez").await {
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.text.contains("the heartbeat has not turned for"), "{answer:?}");
    }
    std::fs::write(&file, "").expect("a folder of ours");
    manager.until("WATCHDOG=1").await;
    watched.until("/livez", "alive", |answer| answer.status == 200).await;
    assert_eq!(watched.daemon.stop().await.code, 0);
    ground.close().await;
}

/// What the daemon reads of `/proc`, which stands in no process's own folder.
#[test]
fn the_unit_hides_nothing_from_the_daemon_that_it_reads() {
    let unit = include_str!("../../../deploy/systemd/promptmill.service");
    let hidden = unit.lines().any(|line| line.starts_with("ProcSubset="));
    assert!(!hidden, "/proc/sys/kernel/random/boot_id and /proc/locks would be gone");
}

#[tokio::test]
async fn a_database_that_is_away_is_nothing_to_be_killed_for() {
    let ground = Ground::postgres().await;
    let mut mill = Mill::new(&ground).await;
    let manager = Manager::of(&mut mill);
    let proxy = crate::faults::unplugged(&mut mill, &ground).await;
    mill.set("WATCHDOG_USEC", "400000");
    mill.set("PROMPTMILL_WORKER__LEASE_SECONDS", "1");
    mill.set("PROMPTMILL_DATABASE__OPERATION_SECONDS", "1");
    let watched = Watched::start(&mut mill).await;
    manager.until("READY=1").await;
    // It seems to be there, and says nothing: each operation takes as long as it may.
    proxy.set(crate::support::proxy::Mode::Stall);
    watched.until_unready("database").await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        let message = manager.hears(Duration::from_secs(5)).await.expect("it is told all the time");
        assert!(message.contains("WATCHDOG=1"), "{message}");
    }
    proxy.set(crate::support::proxy::Mode::Forward);
    watched.until_ready().await;
    assert_eq!(watched.daemon.stop().await.code, 0);
    ground.close().await;
}
