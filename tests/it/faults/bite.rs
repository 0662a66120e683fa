//! The check bites: whatever is spoilt by hand after a quiet run is found, and nothing before.

use promptmill::stand_in::Options;

use super::invariants::{Findings, Invariants};
use super::work::{self, Expect, Spec};
use crate::mill::harness::Mill;
use crate::support::{Ground, on_both};

on_both! { whatever_is_spoilt_by_hand_is_found }

async fn whatever_is_spoilt_by_hand_is_found(ground: &Ground) {
    let mill = Mill::with(ground, Options { calls_kept: 100, ..Options::default() }).await;
    Invariants::watch(ground).await;
    let spec = Spec::new("[[tokens 40]]", Expect::Whole(40), 39);
    let mut jobs = work::insert(ground, &vec![spec; 6], 1).await;
    work::configure(&mill);
    let runs = work::conversations().into_iter().find(Spec::runs_tools).expect("there is one");
    jobs.extend(work::insert(ground, &[runs], 7).await);
    assert_eq!(mill.drain().await.code, 0);
    let quiet = Invariants::check(&mill, &jobs).await;
    quiet.assert("nothing was spoilt");
    assert_eq!((quiet.calls, quiet.killed, quiet.twice), (9, 0, 0));

    let counts = |found: &Findings| (found.lost, found.duplicated, found.unknown, found.twice);
    // Each with what is found from then on, and the words for the last.
    for (spoil, found, words) in [
        (
            "UPDATE job_state SET state = 'pending' WHERE job_id = 1",
            (1, 0, 0, 0),
            "job 1 (1: [[tokens 40]]) is not done",
        ),
        ("UPDATE results SET text = 'another' WHERE job_id = 2", (1, 1, 0, 0), "did not end as it had to"),
        ("DELETE FROM calls WHERE job_id = 3", (1, 1, 1, 40), "1 calls of job 3"),
        (
            "UPDATE calls SET request_id = NULL, error_type = 'lost', content = NULL WHERE job_id = 4",
            (1, 1, 1, 80),
            "40 tokens of job 4",
        ),
        (
            "UPDATE calls SET request_id = 'req_of_nobody' WHERE job_id = 5",
            (1, 1, 2, 120),
            "that nobody made",
        ),
        ("UPDATE job_state SET claims = claims - 1 WHERE job_id = 6", (1, 1, 2, 120), "an odd move"),
        ("UPDATE job_state SET failures = 1 WHERE job_id = 6", (1, 1, 2, 120), "paid for a death"),
        (
            "UPDATE calls SET messages = 1 WHERE job_id = 7 AND messages = 3",
            (1, 1, 2, 120),
            "[1, 1, 5] messages, 3 3",
        ),
        (
            "DELETE FROM tool_calls WHERE job_id = 7 AND position = 1",
            (1, 1, 2, 120),
            "[1, 1, 5] messages, 2 2",
        ),
    ] {
        ground.run(spoil).await;
        let now = Invariants::check(&mill, &jobs).await;
        assert_eq!(counts(&now), found, "{spoil}: {}", now.wrong.join("\n"));
        assert!(now.wrong.iter().any(|wrong| wrong.contains(words)), "{spoil}: {}", now.wrong.join("\n"));
    }
}
