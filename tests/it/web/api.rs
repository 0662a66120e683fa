//! The JSON API is what `docs/api.md` says, and `promptmill web` serves it.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use crate::mill::harness::Mill;
use crate::support::{Ground, Kind, on_both, private};

const SOURCE: &str = include_str!("../../../src/web/api.rs");
const DOCUMENT: &str = include_str!("../../../docs/api.md");

on_both!(the_page_is_served_without_a_mill, a_daemon_shows_what_it_does_and_ends_with_its_page);

#[test]
fn each_address_of_the_api_is_in_its_document() {
    let mut routes = BTreeSet::new();
    for line in SOURCE.lines().filter_map(|line| line.trim().strip_prefix(".route(\"")) {
        let (path, methods) = line.split_once('"').expect("a path has an end");
        for method in ["get", "post"] {
            if methods.contains(&format!("{method}(")) {
                routes.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
    }
    let said =
        DOCUMENT.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|line| line.split_once('`'));
    let said: BTreeSet<String> = said.map(|(route, _)| route.to_owned()).collect();
    assert!(routes.len() > 15, "{routes:?}");
    assert_eq!(routes, said);
}

#[test]
fn each_kind_of_fault_is_in_the_document() {
    for file in ["guard", "fault", "fields", "act", "bulk", "door"] {
        let path = format!("{}/src/web/{file}.rs", env!("CARGO_MANIFEST_DIR"));
        let source = std::fs::read_to_string(path).expect("the file is there");
        let after_status = source.split("StatusCode::").skip(1).filter_map(|rest| rest.split_once(", \""));
        let plain = |status: &str| status.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        let kinds = after_status.filter(|(status, _)| plain(status));
        for kind in kinds.filter_map(|(_, rest)| rest.split('"').next()) {
            assert!(DOCUMENT.contains(&format!("`{kind}`")), "{kind} of {file}.rs");
        }
    }
}

async fn a_daemon_shows_what_it_does_and_ends_with_its_page(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    let listen = format!("127.0.0.1:{}", private::free_port());
    mill.set("PROMPTMILL_WEB__LISTEN", &listen);
    mill.insert(&["Say hello"]).await;
    let daemon = mill.start();
    mill.until("SELECT count(*) FROM results", "1").await;
    let client = crate::stand_in::client();
    let jobs =
        client.get(format!("http://{listen}/api/v1/jobs?state=done")).send().await.expect("it answers");
    let jobs: serde_json::Value = serde_json::from_str(&jobs.text().await.expect("a body")).expect("JSON");
    assert_eq!(jobs["jobs"][0]["outcome"], "complete", "{jobs}");
    // The client's connection is still open: nobody waits for it.
    let ran = daemon.stop().await;
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("the web page is at http://{listen}")), "{}", ran.stderr);
}

async fn the_page_is_served_without_a_mill(ground: &Ground) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_promptmill"));
    command.args(["web", "--listen", "127.0.0.1:0", "--read-only"]).current_dir(dir.path()).env_clear();
    command.env("DATABASE_URL", ground.url()).stdout(Stdio::piped()).stderr(Stdio::null());
    if ground.kind() == Kind::Postgres {
        command.env("PROMPTMILL_DATABASE__SCHEMA", ground.schema());
    }
    let mut child = command.spawn().expect("the binary starts");
    let mut url = String::new();
    BufReader::new(child.stdout.take().expect("stdout is piped")).read_line(&mut url).expect("it says where");
    let client = crate::stand_in::client();
    let page = client.get(url.trim()).send().await.expect("it answers").text().await.expect("a page");
    assert!(page.contains("Overview") && page.contains("read-only"), "{page}");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(child.id()).expect("a pid")).expect("a pid"),
        rustix::process::Signal::TERM,
    )
    .expect("it is there");
    assert!(child.wait().expect("it ends").success());
}
