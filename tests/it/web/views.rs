//! Each view shows what the tables hold.

use promptmill::config::{Config, Flags, Surroundings};

use super::{Site, settle};
use crate::support::proxy::{End, Mode, Proxy};
use crate::support::{Ground, on_both, server};

on_both!(
    the_overview_tells_what_runs_and_what_is_in_the_way,
    a_worker_that_says_nothing_any_more_is_not_at_work,
    a_job_tells_its_story_and_hides_its_prompt,
    the_text_of_a_running_stream_comes_part_by_part,
    a_job_that_did_not_change_is_not_sent_again,
    batches_tell_their_progress_and_are_downloaded,
    what_is_left_of_a_batch_has_no_time_while_it_stands,
    queues_workers_gates_and_errors_are_listed,
    empty_tables_make_pages_that_say_so,
    secrets_are_masked_in_the_configuration,
    many_results_are_told_from_a_sample_of_them,
);

async fn the_overview_tells_what_runs_and_what_is_in_the_way(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a'), ('b'), ('c')").await;
    settle(ground, 1, "complete", "x").await;
    settle(ground, 2, "failed", "x").await;
    ground
        .run("INSERT INTO gates (scope, state, reason) VALUES ('key:12ab', 'blocked', 'out of credit')")
        .await;
    ground.run("UPDATE queues SET paused = TRUE").await;
    let site = Site::on(ground).await;
    let page = site.get("/").await.good();
    for said in [
        "out of credit",
        "1 pending job waits",
        "<bdi>default</bdi>: nothing is claimed",
        "No worker is here",
    ] {
        assert!(page.contains(said), "{said}: {page}");
    }
    let json = site.get("/api/v1/overview?window=15m").await.json();
    assert_eq!(json["jobs"]["pending"], 1);
    assert_eq!(json["jobs"]["done"], 2);
    assert_eq!(json["oldest_pending"]["job"], 3);
    assert_eq!(json["window"]["jobs"], 2);
    assert_eq!(json["window"]["outcomes"]["failed"], 1);
    assert_eq!(json["window"]["sampled"], false);
    assert_eq!(json["stopped_gates"][0]["reason"], "out of credit");
    // Two jobs in the last slot of six minutes, which is one of the six that "of late" means.
    let long = site.get("/api/v1/overview?window=6h").await.json()["window"].clone();
    assert_eq!(long["jobs_a_minute"], 0.06);
    assert_eq!((&long["jobs_series"][1][59], &long["jobs_series"][2][59]), (&0.17.into(), &0.17.into()));
    assert!(site.get("/?window=6h").await.good().contains("<dd>0.06</dd>"));
    assert_eq!(site.get("/?window=1y").await.status, 400);
}

async fn a_worker_that_says_nothing_any_more_is_not_at_work(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    let worker = "INSERT INTO workers (host, boot, pid, pid_started, version, seen_at) VALUES ('box', 'b',";
    ground.run(&format!("{worker} 1, 1, '0', {})", ground.at(-121))).await;
    let site = Site::on(ground).await;
    let page = site.get("/").await.good();
    for said in ["No worker is here", "1 worker has been silent", "0 workers, 1 silent"] {
        assert!(page.contains(said), "{said}: {page}");
    }
    let json = site.get("/api/v1/overview").await.json();
    assert_eq!((&json["workers"], &json["silent_workers"]), (&0.into(), &1.into()));
    assert!(site.get("/workers").await.good().contains(">silent<"));
    assert_eq!(site.get("/api/v1/workers").await.json()["workers"][0]["silent"], true);
    ground.run(&format!("{worker} 2, 1, '0', {})", ground.at(-100))).await;
    let page = site.get("/").await.good();
    assert!(page.contains("1 worker, 1 silent") && !page.contains("No worker is here"), "{page}");
}

async fn a_job_tells_its_story_and_hides_its_prompt(ground: &Ground) {
    ground
        .run("INSERT INTO jobs (prompt, system, key) VALUES ('the secret question', 'be brief', 'k1')")
        .await;
    settle(ground, 1, "complete", "the answer").await;
    let site = Site::on(ground).await;
    let page = site.get("/jobs/1").await.good();
    for said in ["the answer", "req_1", "k1", "end_turn"] {
        assert!(page.contains(said), "{said}: {page}");
    }
    assert!(!page.contains("the secret question") && !page.contains("be brief"), "{page}");
    let page = site.get("/jobs/1?show=prompt").await.good();
    for said in ["the secret question", "be brief", "INSERT INTO ", "$ANTHROPIC_API_KEY"] {
        assert!(page.contains(said), "{said}: {page}");
    }
    let hidden = site.get("/api/v1/jobs/1").await.json();
    assert_eq!(
        (&hidden["asked"], &hidden["result"]["text"]),
        (&serde_json::Value::Null, &"the answer".into())
    );
    let shown = site.get("/api/v1/jobs/1?show=prompt").await.json();
    assert_eq!(shown["asked"]["prompt"], "the secret question");
    let text = site.get("/jobs/1/answer.txt").await;
    assert_eq!(
        (text.header("content-type"), text.text.as_str()),
        ("text/plain; charset=utf-8", "the answer")
    );
    assert_eq!(site.get("/jobs/999").await.status, 404);
    assert_eq!(site.get("/jobs/nonsense").await.status, 400);
}

async fn the_text_of_a_running_stream_comes_part_by_part(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    ground.run("UPDATE job_state SET state = 'running', claims = 1, claimed_by = 1").await;
    ground
        .run("INSERT INTO checkpoints (job_id, claim, seq, part, content) VALUES (1, 1, 1, 0, '{}'), (1, 1, 1, 1, 'one ')")
        .await;
    let site = Site::on(ground).await;
    assert!(site.get("/jobs/1").await.good().contains(">one </pre>"));
    let first = site.get("/api/v1/jobs/1/partial").await.json();
    assert_eq!(
        (&first["text"], &first["part"], &first["state"]),
        (&"one ".into(), &1.into(), &"running".into())
    );
    ground
        .run("INSERT INTO checkpoints (job_id, claim, seq, part, content) VALUES (1, 1, 1, 2, 'two')")
        .await;
    let more = site.get("/api/v1/jobs/1/partial?claim=1&seq=1&part=1").await.json();
    assert_eq!((&more["text"], &more["part"]), (&"two".into(), &2.into()));
    let same = site.get("/api/v1/jobs/1/partial?claim=1&seq=1&part=2").await.json();
    assert_eq!((&same["text"], &same["part"], &same["seq"]), (&"".into(), &2.into(), &1.into()));
}

async fn a_job_that_did_not_change_is_not_sent_again(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    ground.run("UPDATE job_state SET state = 'running', claims = 1, claimed_by = 1").await;
    let site = Site::on(ground).await;
    let mut mark = site.get("/jobs/1").await.header("etag").to_owned();
    assert!(mark.len() > 10, "{mark}");
    let look = async |mark: &str| site.get_with("/jobs/1?show=prompt", &[("if-none-match", mark)]).await;
    // What streams comes by another way.
    ground
        .run("INSERT INTO checkpoints (job_id, claim, seq, part, content) VALUES (1, 1, 1, 1, 'one ')")
        .await;
    let same = look(&mark).await;
    assert_eq!((same.status, same.text.len()), (304, 0));
    let gate = "INSERT INTO gates (scope, state, reason) VALUES ('batch:default/b', 'blocked', 'x')";
    for change in [
        "INSERT INTO calls (job_id, claim, seq, run, kind, model, max_tokens, messages) VALUES (1, 1, 1, 1, 'ask', 'm', 1, 1)",
        "UPDATE job_state SET failures = 1, claims = 2",
        "UPDATE job_state SET priority = 4",
        "UPDATE job_state SET state = 'scheduled', claimed_by = NULL, reason = 'so', claims = 3",
        "UPDATE job_state SET state = 'pending'",
    ] {
        ground.run(change).await;
        let answer = look(&mark).await;
        assert_eq!(answer.status, 200, "{change}");
        let next = answer.header("etag").to_owned();
        assert_ne!(next, mark, "{change}");
        mark = next;
    }
    ground.run(gate).await;
    assert_eq!(look(&mark).await.status, 304, "a gate before others is nothing to it");
    assert_eq!(site.get("/jobs/9").await.status, 404);
}

async fn batches_tell_their_progress_and_are_downloaded(ground: &Ground) {
    ground
        .run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'monday/1'), ('b', 'monday/1'), ('c', 'monday/1'), ('d', 'tuesday')")
        .await;
    settle(ground, 1, "complete", "=1+1").await;
    settle(ground, 2, "failed", "").await;
    let site = Site::on(ground).await;
    let list = site.get("/api/v1/batches").await.json();
    assert_eq!(list["batches"][0]["batch"], "monday/1");
    assert_eq!((&list["batches"][0]["done"], &list["batches"][0]["total"]), (&2.into(), &3.into()));
    assert_eq!(list["batches"][1]["batch"], "tuesday");
    let pages = site.get("/batches?open=on&from=a").await.good();
    assert!(pages.contains("<a href=\"/batches?open=on\">First</a>"), "{pages}");
    assert_eq!(site.get("/api/v1/batches?from=monday/1").await.json()["batches"][0]["batch"], "tuesday");
    let page = site.get("/batch?name=monday%2F1").await.good();
    for said in ["66 %", "invalid_request_error", "of 3"] {
        assert!(page.contains(said), "{said}: {page}");
    }
    let one = site.get("/api/v1/batch?name=monday%2F1").await.json();
    assert_eq!((&one["outcomes"]["failed"], &one["not_complete"][0]["example"]), (&1.into(), &2.into()));
    assert_eq!(site.get("/batch?name=none").await.status, 404);
    let lines = site.get("/batch/results?name=monday/1").await.good();
    let jobs: Vec<i64> = lines
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).expect("a line of JSON")["job_id"]
                .as_i64()
                .expect("an id")
        })
        .collect();
    assert_eq!(jobs, [1, 2]);
    let csv = site.get("/batch/results?name=monday/1&format=csv").await;
    assert!(csv.header("content-disposition").contains("monday_1.csv"), "{csv:?}");
    assert!(csv.text.starts_with("job_id,run,seq,queue,batch,key,outcome"), "{}", csv.text);
    assert!(csv.text.contains(",'=1+1,"), "{}", csv.text);
    let only = site.get("/batch/results?name=monday/1&outcome=failed").await.good();
    assert_eq!(only.lines().count(), 1);
}

async fn what_is_left_of_a_batch_has_no_time_while_it_stands(ground: &Ground) {
    ground.run("INSERT INTO jobs (batch, prompt) VALUES ('b', '1'), ('b', '2'), ('b', '3'), ('b', '4'), ('b', '5')").await;
    for job in 1..=3 {
        settle(ground, job, "complete", "x").await;
    }
    ground.run(&format!("UPDATE results SET finished_at = {} WHERE job_id = 1", ground.at(-60))).await;
    let site = Site::on(ground).await;
    let rest = "the rest in about";
    assert!(site.get("/batch?name=b").await.good().contains(rest));
    let json = site.get("/api/v1/batches").await.json()["batches"][0].clone();
    // Two more, at three a minute.
    assert!(json["rest_in_ms"].as_i64().is_some_and(|ms| (35_000..50_000).contains(&ms)), "{json}");
    assert!(json["gate"].is_null(), "{json}");
    ground.run("INSERT INTO gates (scope, state) VALUES ('batch:default/b', 'blocked')").await;
    let json = site.get("/api/v1/batch?name=b").await.json();
    assert_eq!((&json["gate"], &json["rest_in_ms"]), (&"blocked".into(), &serde_json::Value::Null));
    assert!(!site.get("/batch?name=b").await.good().contains(rest));
    let list = site.get("/batches").await.good();
    assert!(list.contains("<span class=\"badge bad\">blocked</span>"), "{list}");
    ground.run("DELETE FROM gates").await;
    // When these are due is no matter of pace.
    ground
        .run(&format!("UPDATE job_state SET available_at = {} WHERE state = 'pending'", ground.at(3600)))
        .await;
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'scheduled'").await, "2");
    assert!(!site.get("/batch?name=b").await.good().contains(rest));
}

async fn queues_workers_gates_and_errors_are_listed(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, queue) VALUES ('a', 'night'), ('b', 'day'), ('c', 'day')").await;
    ground.run("UPDATE queues SET paused = TRUE, max_running = 3 WHERE name = 'night'").await;
    ground
        .run("INSERT INTO workers (host, boot, pid, pid_started, version) VALUES ('box', 'b', 7, 1, '0.1.0')")
        .await;
    ground.run("INSERT INTO gates (scope, state) VALUES ('model:default/claude-x', 'flowing')").await;
    settle(ground, 3, "failed", "").await;
    let site = Site::on(ground).await;
    let queues = site.get("/api/v1/queues").await.json();
    assert_eq!(queues["queues"][0]["name"], "day");
    assert_eq!(queues["queues"][0]["pending"], 1);
    assert_eq!(
        (&queues["queues"][1]["paused"], &queues["queues"][1]["max_running"]),
        (&true.into(), &3.into())
    );
    assert!(site.get("/queues").await.good().contains("paused"));
    assert_eq!(site.get("/api/v1/workers").await.json()["workers"][0]["host"], "box");
    assert!(site.get("/workers").await.good().contains("box"));
    assert_eq!(site.get("/api/v1/gates").await.json()["gates"], serde_json::json!([]));
    assert_eq!(site.get("/api/v1/gates?all=on").await.json()["gates"][0]["scope"], "model:default/claude-x");
    assert!(site.get("/gates").await.good().contains("All gates flow"));
    let errors = site.get("/api/v1/errors").await.json();
    assert_eq!(errors["errors"][0]["error_type"], "invalid_request_error");
    assert_eq!((&errors["errors"][0]["jobs"], &errors["errors"][0]["newest_job"]), (&1.into(), &3.into()));
    let page = site.get("/errors").await.good();
    assert!(page.contains("max_tokens: 999999 is too large"), "{page}");
}

async fn empty_tables_make_pages_that_say_so(ground: &Ground) {
    let site = Site::on(ground).await;
    for (path, said) in [
        ("/", "Nothing ended in this window"),
        ("/jobs", "No job was inserted yet"),
        ("/jobs?batch=none", "No job matches"),
        ("/batches", "No job has a batch"),
        ("/batches?open=on", "No batch has unfinished jobs"),
        ("/queues", "There is no queue yet"),
        ("/workers", "No daemon works on this database"),
        ("/gates", "All gates flow"),
        ("/errors", "All that is done is complete"),
        ("/audit", "Nobody changed anything here yet"),
    ] {
        let page = site.get(path).await.good();
        assert!(page.contains(said), "{path}: {page}");
    }
}

async fn secrets_are_masked_in_the_configuration(ground: &Ground) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("the folder can be written");
        path.display().to_string()
    };
    let token = "canary-of-the-web-token";
    let vars = [
        ("DATABASE_URL", "postgres://u:canary-password@127.0.0.1/d".to_owned()),
        ("PROMPTMILL_DATABASE__DIRECT_URL", "postgres://direct:canary-of-it@127.0.0.1/d".to_owned()),
        ("PROMPTMILL_API__KEY_FILE", file("key-file", "sk-ant-canary-of-a-file\n")),
        ("ANTHROPIC_CUSTOM_HEADERS", "X-Department: canary-of-a-header".to_owned()),
        ("PROMPTMILL_WEB__TOKEN_FILE", file("token-file", token)),
        ("SECOND_KEY", "sk-ant-canary-of-a-variable".to_owned()),
    ];
    let settings = [
        ("profiles.second.base_url", "http://127.0.0.1:1"),
        ("profiles.second.key_env", "SECOND_KEY"),
        ("profiles.second.headers", "X-Cost-Centre: canary-of-a-profile"),
    ];
    let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let around = Surroundings::new(vars, "");
    let config = Config::load_from(&Flags { settings, ..Flags::default() }, &around).expect("it is good");
    let site = Site::of(config, &ground.url(), ground.schema(), |settings| {
        settings.token = Some(token.into());
    })
    .await;
    let bearer = [("authorization", &*format!("Bearer {token}"))];
    for path in ["/config", "/config?all=on", "/api/v1/config"] {
        let page = site.get_with(path, &bearer).await.good();
        // Each is there, and its secret is not.
        for told in [
            "postgres://u:***@127.0.0.1/d",
            "postgres://direct:***@127.0.0.1/d",
            "key-file",
            "token-file",
            "SECOND_KEY",
            "X-Department",
            "X-Cost-Centre",
        ] {
            assert!(page.contains(told), "{path}: no {told} in {page}");
        }
        assert!(!page.contains("canary"), "{path}: {page}");
    }
    assert!(site.get_with("/config?all=on", &bearer).await.good().contains("worker.concurrency"));
}

async fn many_results_are_told_from_a_sample_of_them(ground: &Ground) {
    let numbers = ground.either(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 12000) SELECT i FROM n",
        "SELECT generate_series(1, 12000) AS i",
    );
    ground.run(&format!("INSERT INTO jobs (prompt) SELECT 'p' FROM ({numbers}) n")).await;
    ground.run("UPDATE job_state SET state = 'running', claims = claims + 1, claimed_by = 1").await;
    // By a pattern that steps of a fixed length would meet always or never.
    ground
        .run(
            "INSERT INTO results (job_id, run, queue, outcome, output_tokens)
             SELECT job_id, 1, queue, CASE WHEN job_id % 4 = 0 THEN 'failed' ELSE 'complete' END, 100 FROM job_state",
        )
        .await;
    ground.run("UPDATE job_state SET state = 'done', claimed_by = NULL").await;
    let site = Site::on(ground).await;
    let window = site.get("/api/v1/overview").await.json()["window"].clone();
    assert_eq!(window["sampled"], true);
    let about = |name: &str, got: &serde_json::Value, wanted: f64| {
        let got = got.as_f64().unwrap_or_else(|| panic!("no {name} in {window}"));
        assert!((got - wanted).abs() < wanted * 0.2, "{name}: {got}, not about {wanted}");
    };
    about("jobs", &window["jobs"], 12_000.0);
    about("failed", &window["outcomes"]["failed"], 3_000.0);
    assert!(site.get("/").await.good().contains("from a sample"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_is_told_and_found_again() {
    let ground = Ground::postgres().await;
    let options = server::options();
    let behind = format!("{}:{}", options.get_host(), options.get_port()).parse().expect("an address");
    let proxy = Proxy::start(behind).await;
    let url = format!("postgres://postgres@{}/postgres", proxy.address());
    let site = Site::at(&url, ground.schema(), |_| {}).await;
    site.get("/").await.good();
    proxy.set(Mode::Refuse);
    proxy.end_all(End::Reset);
    let answer = site.get("/").await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.text.contains("The database has not answered for"), "{answer:?}");
    let answer = site.get("/api/v1/jobs").await;
    assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (503, Some("database_away")));
    // What needs no database is there all the same.
    site.get("/assets/page.css").await.good();
    proxy.set(Mode::Forward);
    let mut status = 0;
    for _ in 0..100 {
        status = site.get("/queues").await.status;
        if status == 200 {
            break;
        }
    }
    assert_eq!(status, 200);
    ground.close().await;
}
