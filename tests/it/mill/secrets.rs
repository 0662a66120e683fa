//! What is secret stands nowhere that people, tables or files keep: each secret is a word that is looked for.

use std::fs;
use std::path::Path;

use super::harness::{Daemon, Mill};
use crate::support::{Ground, Kind, on_both};

on_both!(no_secret_is_found_anywhere, a_proxy_that_is_out_of_reach_does_not_show_its_password);

const KEY: &str = "sk-ant-canary-key";
const PROXY: &str = "http://somebody:canary-proxy@127.0.0.1:9";

/// A mill whose secrets all hold the word, and that says all it can.
async fn mill(ground: &Ground) -> Mill<'_> {
    let mut mill = Mill::new(ground).await;
    mill.set("ANTHROPIC_API_KEY", KEY);
    mill.set("ANTHROPIC_CUSTOM_HEADERS", "x-gateway: canary-header");
    mill.set("HTTP_PROXY", PROXY);
    mill.set("HTTPS_PROXY", PROXY);
    mill.set("PROMPTMILL_LOG__LEVEL", "trace");
    if ground.kind() == Kind::Postgres {
        // The server trusts its neighbours, and looks at no password.
        let url = ground.worker_url().await;
        mill.set("DATABASE_URL", &format!("{url}&password=canary-database"));
    }
    mill
}

/// All that the tables hold, as text.
async fn tables(ground: &Ground) -> String {
    if ground.kind() == Kind::Sqlite {
        let file = ground.file();
        let beside = |ending: &str| fs::read(format!("{}{ending}", file.display())).unwrap_or_default();
        let bytes = [fs::read(&file).expect("the file"), beside("-wal")].concat();
        return String::from_utf8_lossy(&bytes).into_owned();
    }
    let schema = ground.schema();
    let names = format!("SELECT tablename FROM pg_tables WHERE schemaname = '{schema}'");
    let mut rows = Vec::new();
    for table in ground.lines(&names).await {
        rows.extend(ground.lines(&format!("SELECT t::text FROM {schema}.{table} t")).await);
    }
    assert!(rows.len() > 3, "{rows:?}");
    rows.join("\n")
}

/// All that the files of a folder hold.
fn files(folder: &Path) -> String {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let text = |path: std::path::PathBuf| {
        if path.is_dir() {
            files(&path)
        } else {
            String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
        }
    };
    entries.map(text).collect()
}

fn holds_none(what: &str, text: &str) {
    let at = text.find("canary").map(|at| &text[at.saturating_sub(200)..(at + 40).min(text.len())]);
    assert_eq!(at, None, "in {what}");
}

/// What a listener of the daemon answers. `named` stands before its address in the log.
async fn shown(mill: &Mill<'_>, daemon: &Daemon, named: &str, path: &str) -> String {
    mill.until_said(daemon, named).await;
    let said = daemon.said();
    let (_, rest) = said.split_once(named).expect("it said so");
    let address: String = rest.chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
    let client = crate::stand_in::client_without_redirects();
    let answer = client.get(format!("http://{address}{path}")).send().await.expect("it answers");
    assert_eq!(answer.status(), 200, "{path}");
    answer.text().await.expect("a text")
}

async fn no_secret_is_found_anywhere(ground: &Ground) {
    let mut mill = mill(ground).await;
    mill.set("NO_PROXY", "127.0.0.1");
    mill.set("PROMPTMILL_METRICS__LISTEN", "127.0.0.1:0");
    mill.set("FAILPOINTS", "push=2*off->1*panic(on purpose)");
    mill.insert(&[
        "one",
        "two",
        "three",
        "[[error 400]]",
        "[[error 529 x1]]",
        "[[cut after=30 x1]] [[tokens 60]]",
    ])
    .await;
    let daemon = Daemon::by(mill.command(&["run", "--web", "127.0.0.1:0"]));
    mill.until("SELECT count(*) FROM results", "6").await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).expect("its limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "a core would hold them all: {core}");
    holds_none("the metrics", &shown(&mill, &daemon, "metrics are at http://", "/metrics").await);
    for path in ["/", "/config?all=on", "/gates?all=on", "/workers", "/jobs/4", "/api/v1/overview"] {
        holds_none(path, &shown(&mill, &daemon, "the web page is at http://", path).await);
    }
    let ran = daemon.stop().await;
    assert!(ran.stderr.contains("TRACE") && ran.stderr.contains("on purpose"), "it says all it can");
    holds_none("the log", &(ran.stdout + &ran.stderr));
    for args in [
        &["config"][..],
        &["config", "--json"],
        &["doctor"],
        &["status", "--json"],
        &["results", "--json"],
        &["show", "4", "--json"],
        &["gates", "--json"],
        &["run", "--help"],
        &["run", "--no-such-option"],
        &["roles"],
    ] {
        let ran = mill.run(args).await;
        holds_none(&args.join(" "), &(ran.stdout + &ran.stderr));
    }
    holds_none("the tables", &tables(ground).await);
    holds_none("its folder", &files(&mill.home()));
}

async fn a_proxy_that_is_out_of_reach_does_not_show_its_password(ground: &Ground) {
    let mut mill = mill(ground).await;
    mill.set("ANTHROPIC_BASE_URL", "http://api.example");
    mill.insert(&["one"]).await;
    let daemon = mill.start();
    mill.until("SELECT count(*) FROM job_state WHERE reason IS NOT NULL", "1").await;
    let ran = daemon.stop().await;
    assert!(ran.stderr.contains("(unsent)"), "{}", ran.stderr);
    holds_none("the log", &(ran.stdout + &ran.stderr));
    let ran = mill.run(&["doctor"]).await;
    holds_none("doctor", &(ran.stdout + &ran.stderr));
    holds_none("the tables", &tables(ground).await);
}
