//! The contract as people meet it: in the real `sqlite3` and `psql`.

use crate::support::{Ground, Kind, on_both};

on_both! {
    a_shell_inserts_cancels_runs_again_and_deletes,
    a_shell_shows_the_sentence,
}

async fn a_shell_inserts_cancels_runs_again_and_deletes(ground: &Ground) {
    let (jobs, job_state) = (ground.table("jobs"), ground.table("job_state"));
    ground
        .shell(&format!("INSERT INTO {jobs} (prompt) VALUES ('Say hello'), ('Say goodbye');"))
        .expect("the shell takes it");
    assert_eq!(ground.lines("SELECT state FROM job_state").await, ["pending", "pending"]);
    ground.shell(&format!("UPDATE {job_state} SET state = 'cancelled';")).expect("the shell takes it");
    assert_eq!(
        ground
            .shell(&format!("SELECT job_id, outcome FROM {} ORDER BY job_id;", ground.table("results")))
            .expect("the shell takes it"),
        "1|cancelled\n2|cancelled"
    );
    ground
        .shell(&format!("UPDATE {job_state} SET state = 'pending' WHERE job_id = 1;"))
        .expect("the shell takes it");
    ground.shell(&format!("DELETE FROM {jobs} WHERE id = 2;")).expect("the shell takes it");
    assert_eq!(ground.lines("SELECT job_id, state, run FROM job_state").await, ["1|pending|2"]);
    assert_eq!(ground.line("SELECT count(*) FROM results").await, "0");
}

async fn a_shell_shows_the_sentence(ground: &Ground) {
    let jobs = ground.table("jobs");
    let complaint = ground
        .shell(&format!("INSERT INTO {jobs} (system) VALUES ('nobody asked');"))
        .expect_err("the database refuses it");
    assert!(complaint.contains("job_has_one_prompt"), "{complaint}");
    ground.shell(&format!("INSERT INTO {jobs} (prompt) VALUES ('a');")).expect("the shell takes it");
    let complaint =
        ground.shell(&format!("UPDATE {jobs} SET prompt = 'b';")).expect_err("the database refuses it");
    assert!(complaint.contains("cancel this one and insert another"), "{complaint}");
}

#[tokio::test]
async fn psql_copies_jobs_in() {
    let ground = Ground::postgres().await;
    assert_eq!(ground.kind(), Kind::Postgres);
    let copy = "COPY SCHEMA.jobs (prompt, batch, params) FROM STDIN;\nfirst\tb\t{\"top_k\": 1}\nsecond\tb\t\\N\n\\.\n";
    ground.shell(&copy.replace("SCHEMA", ground.schema())).expect("the shell takes it");
    assert_eq!(
        ground.lines("SELECT j.prompt, s.state, s.batch FROM jobs j JOIN job_state s ON s.job_id = j.id ORDER BY j.id").await,
        ["first|pending|b", "second|pending|b"]
    );
    ground.close().await;
}

#[tokio::test]
async fn the_sqlite_file_says_whose_it_is() {
    let ground = Ground::sqlite().await;
    assert_eq!(ground.shell("PRAGMA application_id;").expect("the shell takes it"), "1349676396");
    assert_eq!(u32::from_be_bytes(*b"Prml"), 1_349_676_396);
    ground.close().await;
}

#[tokio::test]
async fn a_dumped_sqlite_file_can_be_read_back() {
    let ground = Ground::sqlite().await;
    ground
        .shell("INSERT INTO jobs (prompt, key) VALUES ('a', 'k'), ('b', 'l'); DELETE FROM jobs WHERE id = 2;")
        .expect("the shell takes it");
    let dump = ground.shell(".dump").expect("the shell takes it");
    let copy = Ground::empty_sqlite().await;
    copy.shell(&dump).expect("the shell takes it");
    copy.shell("INSERT INTO jobs (prompt, key) VALUES ('c', 'l');").expect("the shell takes it");
    assert_eq!(
        copy.lines("SELECT job_id, state FROM job_state ORDER BY job_id").await,
        ["1|pending", "3|pending"]
    );
    copy.close().await;
    ground.close().await;
}
