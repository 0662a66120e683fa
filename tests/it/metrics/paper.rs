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

/// A question that the dashboard asks: of which panel, how it is named there, and what it asks.
struct Query {
    panel: u64,
    legend: String,
    expr: String,
}

impl Query {
    /// The labels that its answer has, as far as the question names them.
    fn kept(&self) -> BTreeSet<&str> {
        let lists = self.expr.split(" by (").skip(1).filter_map(|rest| rest.split_once(')'));
        let kept: BTreeSet<&str> = lists.flat_map(|(list, _)| list.split(',').map(str::trim)).collect();
        let sums = ["sum(", "max(", "min("].iter().any(|word| self.expr.contains(word));
        if kept.is_empty() && !sums { BTreeSet::from(["instance"]) } else { kept }
    }

    /// The labels that it narrows by.
    fn narrowed(&self) -> BTreeSet<&str> {
        let lists = self.expr.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
        lists
            .flat_map(|(list, _)| list.split(',').filter_map(|label| label.split(['=', '!']).next()))
            .collect()
    }

    /// The labels that its legend shows.
    fn shown(&self) -> BTreeSet<&str> {
        self.legend
            .split("{{")
            .skip(1)
            .filter_map(|rest| rest.split_once("}}"))
            .map(|(label, _)| label)
            .collect()
    }
}

fn dashboard() -> serde_json::Value {
    serde_json::from_str(DASHBOARD).expect("it is JSON")
}

fn panels(dashboard: &serde_json::Value) -> Vec<&serde_json::Value> {
    let panels: Vec<_> = dashboard["panels"].as_array().expect("a list").iter().collect();
    // A row that is folded would hold the panels under it itself.
    assert!(panels.iter().all(|panel| panel["panels"].as_array().is_none_or(Vec::is_empty)));
    panels
}

fn queries(dashboard: &serde_json::Value) -> Vec<Query> {
    let of_panel = |panel: &serde_json::Value| {
        let id = panel["id"].as_u64().expect("a number");
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        let word =
            |target: &serde_json::Value, name: &str| target[name].as_str().unwrap_or_default().to_owned();
        let query = move |target: serde_json::Value| Query {
            panel: id,
            legend: word(&target, "legendFormat"),
            expr: word(&target, "expr"),
        };
        targets.into_iter().map(query).collect::<Vec<_>>()
    };
    let queries: Vec<Query> = panels(dashboard).into_iter().flat_map(of_panel).collect();
    assert_eq!(queries.len(), DASHBOARD.matches("\"expr\": ").count(), "some are asked elsewhere");
    queries
}

#[test]
fn promtool_understands_each_question_of_the_dashboard() {
    let dashboard = dashboard();
    let rule = |(at, query): (usize, Query)| {
        let expr = query.expr.replace("$instance", ".*").replace("$__rate_interval", "5m");
        assert!(!expr.contains('$'), "panel {} has a variable that nobody gives: {expr}", query.panel);
        serde_json::json!({"record": format!("panel_{}:{at}", query.panel), "expr": expr})
    };
    let rules: Vec<_> = queries(&dashboard).into_iter().enumerate().map(rule).collect();
    assert!(rules.len() > 30, "{} questions", rules.len());
    // Each JSON text is YAML.
    let file = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]});
    is_fine(&promtool(&["check", "rules", "/dev/stdin"], &file.to_string()));
}

#[tokio::test]
async fn the_dashboard_goes_by_labels_that_there_are() {
    let page = page().await;
    let mut there: BTreeSet<String> = labels(&page).into_values().flatten().collect();
    // Given by Prometheus, and to buckets.
    there.extend(["instance", "le"].map(str::to_owned));
    for query in queries(&dashboard()) {
        let named = &query.kept() | &query.narrowed();
        let unknown: Vec<_> = named.into_iter().filter(|label| !there.contains(*label)).collect();
        assert!(unknown.is_empty(), "panel {} goes by {unknown:?}: {}", query.panel, query.expr);
        let kept = query.kept();
        let lost: Vec<_> = query.shown().into_iter().filter(|label| !kept.contains(label)).collect();
        assert!(lost.is_empty(), "panel {} shows {lost:?}, which is not in: {}", query.panel, query.expr);
    }
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard = dashboard();
    let variables: Vec<&str> = dashboard["templating"]["list"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|variable| variable["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(variables, ["datasource", "instance"]);
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().filter(|title| !title.is_empty()).expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("a number")), "two panels have one id: {title}");
        let side =
            |name: &str| panel["gridPos"][name].as_u64().unwrap_or_else(|| panic!("{title}: no {name}"));
        assert!(side("x") + side("w") <= 24, "{title} reaches beyond the page");
        for cell in (side("x")..side("x") + side("w")).flat_map(|x| (0..side("h")).map(move |y| (x, y))) {
            assert!(taken.insert((cell.0, side("y") + cell.1)), "{title} lies on another panel");
        }
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().expect("a list");
        assert!(!targets.is_empty(), "{title} asks nothing");
        let names: BTreeSet<_> = targets.iter().map(|target| target["refId"].as_str()).collect();
        assert!(names.len() == targets.len() && !names.contains(&None), "{title}: {names:?}");
        for asked in targets.iter().chain([panel]) {
            assert_eq!(asked["datasource"]["uid"], "${datasource}", "{title} asks another one's data");
        }
        for target in targets {
            for name in ["expr", "legendFormat"] {
                assert!(target[name].as_str().is_some_and(|text| !text.is_empty()), "{title}: no {name}");
            }
        }
    }
}
