//! What is stopped, and what one may do about it.

use super::Desk;
use crate::mill::harness::Mill;
use crate::support::{Ground, on_both};

on_both! {
    nothing_stopped_is_one_friendly_line,
    gates_tells_what_is_stopped_why_until_when_and_for_how_many,
    jobs_are_counted_behind_the_gate_that_holds_them,
    jobs_are_counted_behind_the_gate_of_their_own_profile,
    a_gate_is_named_by_a_part_of_its_scope_that_only_it_has,
    an_unknown_gate_is_made_where_its_scope_is_well_formed,
    a_block_with_an_end_says_when,
    a_running_daemon_obeys_within_two_seconds,
    a_stopped_batch_shows_its_ways_and_let_fail_lets_it_fail,
}

async fn nothing_stopped_is_one_friendly_line(ground: &Ground) {
    ground.run("INSERT INTO gates (scope, state, counters) VALUES ('batch:q/b', 'flowing', 'a1 3')").await;
    let desk = Desk::new(ground);
    let ran = desk.mill(&["gates"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""));
    assert_eq!(ran.err, "all gates flow: nothing is stopped\n");
    assert_eq!(desk.mill(&["gates", "--json"]).json(), serde_json::json!({"gates": []}));
    assert!(desk.mill(&["gates", "--all"]).good().starts_with("batch:q/b  flowing\n"));
}

async fn gates_tells_what_is_stopped_why_until_when_and_for_how_many(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch, queue) VALUES ('a', 'it''s', 'q'), ('b', 'x', 'q')").await;
    ground
        .run(&format!(
            "INSERT INTO gates (scope, state, reason, until, changed_at) VALUES
             ('batch:q/it''s', 'blocked', 'all refused', NULL, {0}), ('key:12', 'blocked', 'no credit', {1}, {0})",
            ground.at(-120),
            ground.at(90)
        ))
        .await;
    let desk = Desk::new(ground);
    let out = desk.mill(&["gates"]).good();
    for line in [
        "batch:q/it's  blocked\n",
        "  what:  batch it's of queue q; 1 pending job waits behind it\n",
        "  why:   all refused\n",
        " (2 min 0 s ago)\n",
        "  until: a person opens it\n",
        "  go on:           promptmill gates free 'batch:q/it'\\''s'\n",
        "  cancel the rest: promptmill cancel --batch 'it'\\''s' --queue q\n",
        "  let it fail:     promptmill gates free 'batch:q/it'\\''s' --let-fail\n",
        "  what:  every call with the key of fingerprint 12; 2 pending jobs wait behind it\n",
        " (in 1 min ",
        "then one call asks whether it flows again\n",
        "  open it: promptmill gates free key:12\n",
    ] {
        assert!(out.contains(line), "{line:?} is not in\n{out}");
    }
    let json = desk.mill(&["gates", "--json"]).json();
    let gate = &json["gates"][1];
    assert_eq!(
        (&gate["scope"], &gate["state"], &gate["reason"]),
        (&"key:12".into(), &"blocked".into(), &"no credit".into())
    );
    assert_eq!((&gate["pending"], &gate["pending_more"]), (&2.into(), &false.into()));
    let left = gate["until_ms"].as_i64().expect("a number");
    assert!((60_000..=90_000).contains(&left), "{left}");
    assert_eq!(
        json["gates"][0]["ways"]["let_it_fail"],
        "promptmill gates free 'batch:q/it'\\''s' --let-fail"
    );
}

async fn jobs_are_counted_behind_the_gate_that_holds_them(ground: &Ground) {
    ground.run("INSERT INTO queues (name, model) VALUES ('own', 'm'), ('t/e', NULL)").await;
    ground
        .run(&format!(
            "INSERT INTO jobs (prompt, queue, model, batch, run_at) VALUES
             ('by its queue', 'own', NULL, NULL, {now}), ('of its own', 'q', 'm', NULL, {now}),
             ('later', 'q', 'm', NULL, {later}), ('another', 'own', 'o', 'x', {now}),
             ('slash', 't/e', 'o', 'x/y', {now}), ('the default', 'q', NULL, 'x', {now})",
            now = ground.at(-1),
            later = ground.at(600)
        ))
        .await;
    ground.run("INSERT INTO gates (scope, state) VALUES ('batch:own/', 'blocked'), ('batch:t%2Fe/x/y', 'blocked'), ('key:k', 'blocked'), ('model:p/d', 'probing'), ('model:p/m', 'blocked'), ('rate:k/o', 'blocked')").await;
    let desk = Desk::new(ground);
    let counts = || -> Vec<String> {
        let json = desk.mill(&["gates", "--json"]).json();
        let gates = json["gates"].as_array().expect("a list");
        gates.iter().map(|gate| format!("{} {}", gate["scope"], gate["pending"])).collect()
    };
    ground.run("INSERT INTO workers (host, boot, pid, pid_started, version, default_model) VALUES ('h', 'b', 1, 1, '0', 'd')").await;
    assert_eq!(
        counts(),
        [
            "\"batch:own/\" 1",
            "\"batch:t%2Fe/x/y\" 1",
            "\"key:k\" 5",
            "\"model:p/d\" 1",
            "\"model:p/m\" 2",
            "\"rate:k/o\" null"
        ]
    );
    let many = ground.either(
        "INSERT INTO jobs (prompt, model) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10001) SELECT 'a', 'm' FROM n",
        "INSERT INTO jobs (prompt, model) SELECT 'a', 'm' FROM generate_series(1, 10001)",
    );
    ground.run(many).await;
    let out = desk.mill(&["gates"]).good();
    assert!(out.contains("calls to model m with profile p; 10,000+ pending jobs wait behind it"), "{out}");
}

async fn jobs_are_counted_behind_the_gate_of_their_own_profile(ground: &Ground) {
    ground.run("INSERT INTO accounts (queue, profile, key) VALUES ('', 'p', 'k'), ('q', 'p2', 'k2'), ('r', 'p3', 'k2')").await;
    ground.run("INSERT INTO jobs (prompt, queue, model) VALUES ('a', 'default', 'm'), ('a', 'q', 'm'), ('a', 'q', 'n'), ('a', 'r', 'm')").await;
    ground.run("INSERT INTO gates (scope, state) VALUES ('key:k', 'blocked'), ('key:k2', 'blocked'), ('key:old', 'blocked'), ('model:p/m', 'blocked'), ('model:p2/m', 'blocked'), ('rate:k2/c', 'blocked')").await;
    let desk = Desk::new(ground);
    let json = desk.mill(&["gates", "--json"]).json();
    let gates = json["gates"].as_array().expect("a list");
    let told: Vec<String> = gates
        .iter()
        .map(|gate| format!("{} {} {}", gate["scope"], gate["pending"], gate["profiles"]))
        .collect();
    assert_eq!(
        told,
        [
            r#""key:k" 1 ["p"]"#,
            r#""key:k2" 3 ["p2","p3"]"#,
            r#""key:old" 0 []"#,
            r#""model:p/m" 1 null"#,
            r#""model:p2/m" 1 null"#,
            r#""rate:k2/c" null ["p2","p3"]"#,
        ]
    );
    let out = desk.mill(&["gates"]).good();
    assert!(out.contains("fingerprint k2, profiles p2, p3; 3 pending jobs"), "{out}");
    assert!(out.contains("fingerprint old, which no profile has now; 0 pending jobs"), "{out}");
}

async fn a_gate_is_named_by_a_part_of_its_scope_that_only_it_has(ground: &Ground) {
    ground.run("INSERT INTO gates (scope, state) VALUES ('model:p/claude', 'blocked'), ('model:p/claude-2', 'blocked'), ('batch:q/old-2', 'flowing')").await;
    let desk = Desk::new(ground);
    let states = async || ground.lines("SELECT scope, state FROM gates ORDER BY scope").await.join(" ");
    let said = desk.mill(&["gates", "free", "claude"]).said(1);
    assert!(said.contains("several gates: model:p/claude, model:p/claude-2"), "{said}");
    assert!(desk.mill(&["gates", "free", "model:p/cla"]).said(1).contains("no gate is named model:p/cla"));
    assert!(desk.mill(&["gates", "free", "nothing"]).said(1).contains("no gate has \"nothing\""));
    assert!(desk.mill(&["gates", "free", "claude-2", "--let-fail"]).said(1).contains("is no batch"));
    assert!(desk.mill(&["gates", "free", "claude-2", "nothing"]).said(1).contains("nothing"));
    assert_eq!(
        states().await,
        "batch:q/old-2|flowing model:p/claude|blocked model:p/claude-2|blocked",
        "all or none"
    );
    let said = desk.mill(&["gates", "free", "-2"]).said(2);
    assert!(said.contains("-2"), "{said}");
    let said = desk.mill(&["gates", "free", "--", "-2"]).said(0);
    assert!(
        said.starts_with("model:p/claude-2 is free: the next call is a probe"),
        "what is stopped: {said}"
    );
    assert_eq!(desk.mill(&["gates", "free", "old"]).said(0), "batch:q/old-2 flows already\n");
    let json = desk.mill(&["gates", "free", "model:p/claude", "--json"]).json();
    assert_eq!(
        (&json["gates"][0]["scope"], &json["gates"][0]["state"]),
        (&"model:p/claude".into(), &"flowing".into())
    );
    assert_eq!(states().await, "batch:q/old-2|flowing model:p/claude|flowing model:p/claude-2|flowing");
}

async fn an_unknown_gate_is_made_where_its_scope_is_well_formed(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt, batch) VALUES ('a', 'b')").await;
    let desk = Desk::new(ground);
    let said = desk.mill(&["gates", "block", "batch:default/b", "--reason", "wrong prompts"]).said(0);
    assert_eq!(
        said,
        "batch:default/b is blocked until a person opens it: promptmill gates free batch:default/b; 1 pending job waits behind it\n"
    );
    let gate = "SELECT scope, state, reason, until FROM gates";
    assert_eq!(ground.line(gate).await, "batch:default/b|blocked|wrong prompts|NULL");
    assert!(desk.mill(&["status"]).good().contains("wrong prompts"));
    assert!(desk.mill(&["show", "1"]).good().contains("wrong prompts"));
    let said = desk.mill(&["gates", "block", "claude"]).said(1);
    assert!(said.contains("model:PROFILE/NAME"), "{said}");
    assert!(desk.mill(&["gates", "block", "default/b"]).said(0).starts_with("batch:default/b is blocked"));
    assert_eq!(ground.line(gate).await, "batch:default/b|blocked|blocked by a person|NULL");
}

async fn a_block_with_an_end_says_when(ground: &Ground) {
    let desk = Desk::new(ground);
    let said = desk.mill(&["gates", "block", "model:p/m", "--for", "1h30m"]).said(0);
    assert!(said.contains("blocked for 1 h 30 min, then one call asks"), "{said}");
    let gate = &desk.mill(&["gates", "--json"]).json()["gates"][0];
    let left = gate["until_ms"].as_i64().expect("a number");
    assert!((5_300_000..=5_400_000).contains(&left), "{left}");
    assert!(
        desk.mill(&["gates", "block", "model:p/m", "--for", "soon"])
            .said(2)
            .contains("a number and its unit")
    );
}

async fn a_running_daemon_obeys_within_two_seconds(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    // So few at once that they would go on for longer than the test.
    mill.set("PROMPTMILL_WORKER__CONCURRENCY", "4");
    for job in 0..300 {
        ground
            .run(&format!("INSERT INTO jobs (prompt, batch) VALUES ('{job} [[say x]] [[delay 100ms]]', 'b')"))
            .await;
    }
    let daemon = mill.start();
    mill.until_asked(3).await;
    let desk = Desk::new(ground);
    desk.mill(&["gates", "block", "batch:default/b"]).said(0);
    // While this one is answered, the others have time to stop.
    ground.run("INSERT INTO jobs (prompt) VALUES ('[[say x]] [[delay 3s]]')").await;
    mill.until("SELECT count(*) FROM results WHERE job_id = 301", "1").await;
    let late = format!(
        "SELECT count(*) FROM calls c, gates g WHERE c.job_id <> 301 AND c.sent_at > g.changed_at + {}",
        ground.either("2000", "interval '2 seconds'")
    );
    mill.until("SELECT count(*) FROM job_state WHERE state = 'running'", "0").await;
    assert_eq!(ground.line(&late).await, "0");
    assert_ne!(
        ground.line("SELECT count(*) FROM job_state WHERE state = 'pending'").await,
        "0",
        "it was stopped"
    );
    let calls = mill.api.counts().total;
    assert!(desk.mill(&["gates", "free", "batch:default/b"]).said(0).contains("its jobs run on"));
    mill.until_asked(calls + 5).await;
    assert_eq!(daemon.stop().await.code, 0);
}

async fn a_stopped_batch_shows_its_ways_and_let_fail_lets_it_fail(ground: &Ground) {
    let mut mill = Mill::new(ground).await;
    mill.set("PROMPTMILL_WORKER__CONCURRENCY", "4");
    for job in 0..120 {
        // One that is answered in the middle of the rest starts no count anew.
        let prompt = if job == 70 { "fine".to_owned() } else { format!("{job} [[error 400]]") };
        ground.run(&format!("INSERT INTO jobs (prompt, batch) VALUES ('{prompt}', 'typo')")).await;
    }
    assert_eq!(mill.drain().await.code, 8, "it is stopped");
    let failed = "SELECT outcome, count(*) FROM results GROUP BY outcome ORDER BY outcome";
    let before = mill.api.counts().total;
    assert!(before <= 25, "{before} calls");
    let desk = Desk::new(ground);
    let gate = desk.mill(&["gates", "--json"]).json()["gates"][0].clone();
    let ways = gate["ways"].as_object().expect("its ways");
    assert_eq!(
        ways.keys().map(String::as_str).collect::<Vec<_>>(),
        ["go_on", "cancel_the_rest", "let_it_fail"]
    );
    assert_eq!(gate["pending"], 120 - before as i64);
    let dry = format!("{} --dry-run", ways["cancel_the_rest"].as_str().expect("a command"));
    let dry: Vec<&str> = dry.split(' ').skip(1).collect();
    assert_eq!(desk.mill(&dry).said(0), format!("{} jobs would be cancelled\n", 120 - before));
    let let_fail: Vec<&str> = ways["let_it_fail"].as_str().expect("a command").split(' ').skip(1).collect();
    assert!(desk.mill(&let_fail).said(0).contains("those that the API refuses fail"));
    let ran = mill.drain().await;
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    assert_eq!(ground.lines(failed).await, ["complete|1", "failed|119"]);
    assert_eq!(ground.line("SELECT state, reason, counters FROM gates").await, "flowing|NULL|ignored 0");
    assert!(desk.mill(&["gates", "--all"]).good().contains("refusals do not stop it"));
    assert!(desk.mill(&["gates", "free", "typo"]).said(0).contains("stops it again"));
    assert_eq!(ground.line("SELECT counters FROM gates").await, "NULL");
}
