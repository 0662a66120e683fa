//! The page comes up before its database does.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::private;

/// A process that is ended when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn promptmill(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_promptmill"));
    command.args(args).current_dir(dir).env_clear().env("DATABASE_URL", "sqlite:mill.db");
    command
}

async fn look(url: &str) -> (u16, String) {
    let client = crate::stand_in::client();
    for _ in 0..200 {
        if let Ok(answer) = client.get(url).send().await {
            return (answer.status().as_u16(), answer.text().await.expect("a body"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nobody answers at {url}");
}

#[tokio::test]
async fn a_page_without_its_database_says_so_and_has_it_when_it_comes() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut command = promptmill(dir.path(), &["web", "--listen", "127.0.0.1:0"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary starts");
    let mut running = Running(child);
    let mut url = String::new();
    let out = running.0.stdout.take().expect("stdout is piped");
    BufReader::new(out).read_line(&mut url).expect("it says where");
    let url = format!("{}/jobs", url.trim());
    let (status, page) = look(&url).await;
    assert_eq!(status, 503, "{page}");
    assert!(page.contains("The database is away"), "{page}");
    let made = promptmill(dir.path(), &["enqueue", "--prompt", "hello"]).output().expect("it runs");
    assert!(made.status.success(), "{made:?}");
    let mut page = String::new();
    for _ in 0..100 {
        let (status, found) = look(&url).await;
        page = found;
        if status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(page.contains("/jobs/1"), "{page}");
}

#[tokio::test]
async fn a_daemon_that_waits_for_its_database_has_its_page() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let listen = format!("127.0.0.1:{}", private::free_port());
    let mut command = promptmill(dir.path(), &["run", "--web", &listen]);
    // Nobody listens there.
    command.env("DATABASE_URL", format!("postgres://postgres@127.0.0.1:{}/postgres", private::free_port()));
    command.env("ANTHROPIC_API_KEY", "test").env("ANTHROPIC_BASE_URL", "http://127.0.0.1:1");
    let _running = Running(command.stderr(Stdio::null()).spawn().expect("the binary starts"));
    let (status, page) = look(&format!("http://{listen}/")).await;
    assert_eq!(status, 503, "{page}");
    assert!(page.contains("The database is away"), "{page}");
}
