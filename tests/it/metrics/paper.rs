//! What is written of the metrics is so: the page of the documentation, the dashboard, the alert rules.
//! A machine without promtool fails, and is not passed by.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::Watched;
use crate::mill::harness::Mill;
use crate::support::Ground;

const DOCS: &str = include_str!("../../../docs/metrics.md");
const DASHBOARD: &str = include_str!("../../../deploy/grafana/promptmill.json");
const RULES: &str = include_str!("../../../deploy/prometheus/alerts.yaml");
const MISSING: &str = "the rules are tried with promtool: .ci/packages prometheus";

/// A page of a daemon that has met something of everything.
async fn page() -> String {
    let ground = Ground::sqlite().await;
    let mut mill = Mill::new(&ground).await;
    mill.insert(&[
        "hello \"quoted\"",
        "[[error 529 x1 retry-after-ms=20]]",
        "[[cut after=30 x1]] [[tokens 60]]",
    ])
    .await;
    ground.run("INSERT INTO jobs (queue, prompt) VALUES ('a \"q\\ueue\"\nof two lines{}', 'x')").await;
    let watched = Watched::start(&mut mill).await;
    mill.until("SELECT count(*) FROM results", "4").await;
    watched.until_sample("promptmill_in_flight", 0.0).await;
    watched.until_sample("promptmill_shared_up", 1.0).await;
    let page = watched.get("/metrics").await.text;
    assert_eq!(watched.daemon.stop().await.code, 0);
    ground.close().await;
    page
}

/// Each metric of a page with its type.
fn metrics(page: &str) -> BTreeMap<String, String> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .filter_map(|line| line.split_once(' '))
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect()
}

/// The labels of each metric of a page that has a sample.
fn labels(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let kinds = metrics(page);
    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').expect("a series and a value");
        let name = series.split('{').next().expect("a name");
        let ends = ["_bucket", "_sum", "_count"];
        let whole =
            ends.iter().filter_map(|end| name.strip_suffix(end)).find(|name| kinds.contains_key(*name));
        let found = labels.entry(whole.unwrap_or(name).to_owned()).or_default();
        let inside = series.split_once('{').map_or("", |(_, labels)| labels);
        let names = inside.split("=\"").filter_map(|part| part.rsplit(['{', ',']).next());
        let plain =
            |name: &&str| name.chars().all(|c| c.is_ascii_lowercase() || c == '_') && !name.is_empty();
        found.extend(names.filter(plain).filter(|name| *name != "le").map(str::to_owned));
    }
    labels
}

/// The names of ours that stand in a text.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("promptmill_")).collect()
}

/// Runs promtool; what it is given goes to its stdin.
fn promtool(args: &[&str], input: &str) -> Output {
    let mut command = Command::new("promtool");
    command.args(args).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect(MISSING);
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).ok();
    child.wait_with_output().expect("it ends")
}

fn is_fine(output: &Output) {
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{complained}");
}

#[tokio::test]
async fn the_page_of_the_documentation_lists_the_metrics_that_there_are_with_type_and_labels() {
    let page = page().await;
    let mut listed = BTreeMap::new();
    for row in DOCS.lines().filter(|line| line.starts_with("| `promptmill_")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels: BTreeSet<String> = cells[3].split('`').skip(1).step_by(2).map(str::to_owned).collect();
        listed.insert(cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), labels));
    }
    let labels = labels(&page);
    let given: BTreeMap<_, _> = metrics(&page)
        .into_iter()
        .map(|(name, kind)| {
            let labels = labels.get(&name).unwrap_or_else(|| panic!("{name} has no value")).clone();
            (name, (kind, labels))
        })
        .collect();
    assert_eq!(listed, given);
}

#[tokio::test]
async fn dashboard_and_rules_name_only_metrics_that_there_are() {
    let page = page().await;
    let mut there: BTreeSet<String> = metrics(&page).into_keys().collect();
    let buckets: Vec<String> = there
        .iter()
        .flat_map(|name| ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")))
        .collect();
    there.extend(buckets.into_iter().filter(|name| page.contains(&format!("\n{name}"))));
    for (what, text) in [("the dashboard", DASHBOARD), ("the rules", RULES)] {
        let named = named(text);
        assert!(named.len() > 10, "{what} name {named:?}");
        let unknown: Vec<_> = named.into_iter().filter(|name| !there.contains(*name)).collect();
        assert!(unknown.is_empty(), "{what} name what there is not: {unknown:?}");
    }
}

#[tokio::test]
async fn promtool_finds_nothing_to_say_of_the_page() {
    is_fine(&promtool(&["check", "metrics"], &page().await));
}

#[test]
fn the_rules_speak_where_they_must_and_nowhere_else() {
    is_fine(&promtool(&["check", "rules", "alerts.yaml"], ""));
    is_fine(&promtool(&["test", "rules", "alerts_test.yaml"], ""));
    let alerts = RULES.matches("- alert: ").count();
    assert_eq!(RULES.matches("          runbook: ").count(), alerts, "a rule says what to do");
    let tried = include_str!("../../../deploy/prometheus/alerts_test.yaml");
    for alert in RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tried.matches(alert).count() >= 2, "{alert} is not tried both ways");
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("it is JSON");
    let panels = dashboard["panels"].as_array().expect("a list");
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().expect("a number")), "two panels have one id: {panel}");
        let queries = panel["targets"].as_array().map_or(0, Vec::len);
        assert!(queries > 0 || panel["type"] == "row", "{} asks nothing", panel["title"]);
    }
}
