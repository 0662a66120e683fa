//! The page on Postgres as the roles that `promptmill roles` prints: each sees and does what is its own.

use serde_json::json;

use super::Site;
use crate::support::Ground;

/// A ground with the roles, a job that is done and one that is not, and a login with some of the roles.
async fn ground_with(login: &str, roles: &str) -> (Ground, String) {
    let ground = Ground::postgres().await;
    ground.grant_roles().await;
    ground
        .run("INSERT INTO jobs (batch, prompt) VALUES ('b', 'done'), ('b', 'pending'), ('b', 'pending too')")
        .await;
    super::settle(&ground, 1, "failed", "x").await;
    let name = format!("{}_{login}", ground.schema());
    ground.run(&format!("CREATE ROLE {name} LOGIN IN ROLE {roles}")).await;
    let url = ground.url_as(&name);
    (ground, url)
}

async fn close(ground: Ground, login: &str) {
    ground.run(&format!("DROP ROLE {}_{login}", ground.schema())).await;
    ground.close().await;
}

const VIEWS: [&str; 31] = [
    "/",
    "/jobs",
    "/jobs?state=pending",
    "/jobs?batch=b",
    "/jobs/1",
    "/jobs/1?show=prompt",
    "/jobs/1/answer.txt",
    "/jobs/2",
    "/batches",
    "/batch?name=b",
    "/queues",
    "/workers",
    "/gates?all=on",
    "/errors",
    "/audit",
    "/config",
    "/batch/results?name=b&format=jsonl",
    "/batch/results?name=b&format=csv",
    "/api/v1/overview",
    "/api/v1/jobs",
    "/api/v1/jobs?error_type=invalid_request_error",
    "/api/v1/jobs/1",
    "/api/v1/jobs/2/partial",
    "/api/v1/batches",
    "/api/v1/batch?name=b",
    "/api/v1/queues",
    "/api/v1/workers",
    "/api/v1/gates",
    "/api/v1/errors",
    "/api/v1/audit",
    "/api/v1/config",
];

/// Addresses that show something, as the sources name them; what runs in the background has none to look at
/// where nobody may begin it.
fn addresses() -> Vec<String> {
    let mut folders = vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/web")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let source = std::fs::read_to_string(&path).expect("a source");
            let routes = source.split(".route(\"").skip(1).filter_map(|rest| rest.split_once("\", get("));
            found.extend(
                routes.map(|(address, _)| address.to_owned()).filter(|address| !address.contains('"')),
            );
        }
    }
    found.retain(|address| !address.starts_with("/assets/") && !address.ends_with("/bulk/{id}"));
    found
}

/// Whether a view is shown at an address of the sources.
fn is_at(view: &str, address: &str) -> bool {
    let path = view.split('?').next().expect("it has a first part");
    path.split('/').count() == address.split('/').count()
        && path
            .split('/')
            .zip(address.split('/'))
            .all(|(said, meant)| meant.starts_with('{') || said == meant)
}

#[tokio::test]
async fn a_reader_sees_every_view_and_changes_nothing() {
    let (ground, url) = ground_with("page", "promptmill_reader").await;
    let shows = Site::at(&url, ground.schema(), |settings| settings.read_only = true).await;
    let addresses = addresses();
    assert!(addresses.len() > 20, "{addresses:?}");
    for address in addresses {
        let mut seen = VIEWS.into_iter().chain(["/jobs/1/again"]);
        assert!(seen.any(|view| is_at(view, &address)), "nobody looks at {address}");
    }
    for view in VIEWS {
        assert_eq!(shows.get(view).await.status, 200, "{view}");
    }
    // A form that leads nowhere is not shown.
    assert_eq!(shows.get("/jobs/1/again").await.status, 403);
    assert_eq!(
        shows.post_json("/api/v1/jobs/act", &json!({"action": "cancel", "jobs": [2]})).await.status,
        403
    );
    // Where nobody told the page that it only shows, the database does, in a sentence.
    let acts = Site::at(&url, ground.schema(), |_| {}).await;
    acts.get("/jobs/1/again").await.good();
    for (path, body) in [
        ("/api/v1/jobs/act", json!({"action": "cancel", "jobs": [2]})),
        ("/api/v1/jobs", json!({"like": 2})),
        ("/api/v1/queues", json!({"queue": "default", "action": "pause"})),
        ("/api/v1/batch", json!({"batch": "b", "action": "pause"})),
        ("/api/v1/gates", json!({"scope": "model:default/m", "action": "block"})),
    ] {
        let answer = acts.post_json(path, &body).await;
        assert_eq!(answer.status, 403, "{path}: {}", answer.text);
        assert!(
            answer.text.contains("\"no_right\"") && answer.text.contains("promptmill roles"),
            "{}",
            answer.text
        );
    }
    assert_eq!(
        ground.lines("SELECT DISTINCT state FROM job_state ORDER BY state").await,
        ["done", "pending"]
    );
    drop((shows, acts));
    close(ground, "page").await;
}

#[tokio::test]
async fn an_operator_does_all_but_asking_anew_which_takes_an_enqueuer() {
    let (ground, url) = ground_with("page", "promptmill_operator").await;
    let site = Site::at(&url, ground.schema(), |_| {}).await;
    let cancel = json!({"action": "cancel", "batch": "b", "count": 2, "more": false});
    for (path, body, status) in [
        ("/api/v1/jobs/act", json!({"action": "cancel", "jobs": [2]}), 200),
        ("/api/v1/jobs/act", json!({"action": "run_again", "jobs": [2]}), 200),
        ("/api/v1/jobs/act", json!({"action": "prioritise", "jobs": [2], "priority": 3}), 200),
        ("/api/v1/queues", json!({"queue": "default", "action": "pause"}), 200),
        ("/api/v1/queues", json!({"queue": "default", "action": "limit", "max_running": 3}), 200),
        ("/api/v1/batch", json!({"batch": "b", "action": "pause"}), 200),
        ("/api/v1/batch", json!({"batch": "b", "action": "resume"}), 200),
        ("/api/v1/gates", json!({"scope": "model:default/m", "action": "block"}), 200),
        ("/api/v1/gates", json!({"scope": "model:default/m", "action": "free"}), 200),
        ("/api/v1/bulk", cancel, 202),
        ("/api/v1/jobs", json!({"like": 2}), 403),
    ] {
        let answer = site.post_json(path, &body).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text);
    }
    ground.run(&format!("GRANT promptmill_enqueuer TO {}_page", ground.schema())).await;
    let answer = site.post_json("/api/v1/jobs", &json!({"like": 2, "prompt": "anew"})).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    assert_eq!(ground.line("SELECT prompt FROM jobs ORDER BY id DESC LIMIT 1").await, "anew");
    drop(site);
    close(ground, "page").await;
}
