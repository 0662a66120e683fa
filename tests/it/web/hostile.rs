//! What models, rows and the API say is text on every page, whatever it looks like.

use super::{Site, settle};
use crate::support::{Ground, on_both};

on_both!(
    words_that_look_like_markup_are_text_everywhere,
    an_answer_of_a_megabyte_on_one_line_is_shown_in_part
);

/// What would run, where it was taken for markup.
const CORPUS: [&str; 8] = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</textarea></pre></bdi><svg onload=alert(1)>",
    "\" autofocus onfocus=alert(1) x=\"",
    "' onmouseover=alert(1) '",
    "[link](javascript:alert(1)) <a href=\"javascript:alert(1)\">x</a>",
    "\u{202e}txt.exe\u{2066} &lt;b&gt; {{7*7}} ${7*7}",
];

async fn words_that_look_like_markup_are_text_everywhere(ground: &Ground) {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    for (at, text) in CORPUS.iter().enumerate() {
        let job = at as i64 + 1;
        let (said, key, json) = (
            quoted(text),
            quoted(&format!("{at}{text}")),
            quoted(&serde_json::json!({"x": text}).to_string()),
        );
        ground
            .run(&format!(
                "INSERT INTO jobs (prompt, system, queue, batch, key, model, metadata)
                 VALUES ({said}, {said}, {said}, {said}, {key}, {said}, {json})"
            ))
            .await;
        settle(ground, job, if at % 2 == 0 { "complete" } else { "failed" }, text).await;
        ground.run(&format!("UPDATE results SET error_type = {said}, error = {said}, stop_reason = {said} WHERE job_id = {job}")).await;
        ground.run(&format!("UPDATE calls SET error = {said}, error_type = {said}, request_id = {said} WHERE job_id = {job}")).await;
        ground
            .run(&format!(
                "INSERT INTO gates (scope, state, reason) VALUES ({}, 'blocked', {said})",
                quoted(&format!("batch:q/{text}"))
            ))
            .await;
        ground
            .run(&format!("INSERT INTO workers (host, boot, pid, pid_started, version) VALUES ({said}, 'b', 7, 1, {said})"))
            .await;
        ground
            .run(&format!(
                "INSERT INTO audit (actor, action, target, detail) VALUES ({said}, {said}, {said}, {said})"
            ))
            .await;
    }
    ground.run("UPDATE queues SET paused = TRUE").await;
    let site = Site::on(ground).await;
    let mut paths: Vec<String> =
        ["/", "/jobs", "/batches", "/queues", "/workers", "/gates", "/errors", "/audit"]
            .map(str::to_owned)
            .to_vec();
    for (at, text) in CORPUS.iter().enumerate() {
        let text: String = form(text);
        paths.push(format!("/jobs/{}?show=prompt", at + 1));
        paths.push(format!("/jobs/{}/again", at + 1));
        paths.push(format!("/batch?name={text}"));
        paths.push(format!(
            "/jobs?batch={text}&queue={text}&model={text}&stop_reason={text}&error_type={text}"
        ));
        paths.push(format!("/jobs?state={text}"));
        paths.push(format!("/login?to={text}"));
    }
    for path in paths {
        let page = site.get(&path).await.text;
        for bad in [
            "<img",
            "<script>",
            "<svg onload",
            "onload=alert(1)>",
            "\" autofocus",
            "' onmouseover",
            "<a href=\"javascript",
            "</script><script",
        ] {
            assert!(!page.contains(bad), "{path} holds {bad}");
        }
    }
}

fn form(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

async fn an_answer_of_a_megabyte_on_one_line_is_shown_in_part(ground: &Ground) {
    ground.run("INSERT INTO jobs (prompt) VALUES ('a')").await;
    let long = "0123456789".repeat(100_000);
    settle(ground, 1, "complete", &long).await;
    let site = Site::on(ground).await;
    let page = site.get("/jobs/1").await.good();
    assert!(page.len() < 100_000 && page.contains("The first 60,000 characters"), "{}", page.len());
    assert_eq!(site.get("/jobs/1/answer.txt").await.text.len(), 1_000_000);
    assert!(site.get("/jobs/1?show=prompt").await.good().len() < 300_000);
}
