//! Conversations that are killed at any step send what undisturbed ones send, request by request.

use std::collections::BTreeMap;

use promptmill::stand_in::Options;

use super::work;
use crate::mill::harness::Mill;
use crate::support::{Ground, on_both};

/// Where a conversation can be interrupted, and a write that only the killed one has to do.
const POINTS: [&str; 14] = [
    "claim.after",
    "resume",
    "ask.before",
    "ask.text",
    "ask.ended",
    "append.before",
    "append.after",
    "push",
    "tools.opened",
    "tool.ended",
    "release.before",
    "release.after",
    "settle.before",
    "settle.after",
];

on_both! { conversations_that_die_at_any_step_send_what_undisturbed_ones_send }

/// A request, as far as the stand-in tells: prompt, messages, `max_tokens`, tokens of input. How often.
type Sent = BTreeMap<(String, usize, usize, u64), usize>;

/// Takes the conversations to their end, with deaths on the way; returns what was sent.
async fn sent(mill: &mut Mill<'_>, deaths: &[String]) -> Sent {
    let ground = mill.ground;
    ground.run("DELETE FROM jobs").await;
    mill.api.reset();
    let jobs = work::insert(ground, &work::conversations(), 1).await;
    for death in deaths {
        mill.set("FAILPOINTS", death);
        tokio::select! {
            _ = mill.drain() => {}
            _ = work::serve(ground) => unreachable!("it serves for ever"),
        }
    }
    mill.unset("FAILPOINTS");
    let ran = work::drain(mill).await;
    assert_eq!(ran.code, 0, "{deaths:?}: {}", ran.stderr);
    let whole = ground.line("SELECT count(*) FROM results WHERE outcome = 'complete'").await;
    assert_eq!(whole, jobs.len().to_string(), "{deaths:?}");
    let mut sent = Sent::new();
    for call in mill.api.counts().calls {
        *sent.entry((call.prompt, call.messages, call.max_tokens, call.input_tokens)).or_default() += 1;
    }
    sent
}

async fn conversations_that_die_at_any_step_send_what_undisturbed_ones_send(ground: &Ground) {
    let mut mill = Mill::with(ground, Options { calls_kept: 1000, ..Options::default() }).await;
    mill.set("PROMPTMILL_WORKER__CONCURRENCY", "3");
    work::configure(&mill);
    let quiet = sent(&mut mill, &[]).await;
    assert!(quiet.len() == 18 && quiet.values().all(|times| *times == 1), "{quiet:?}");
    for point in POINTS {
        let deaths = [1, 2, 4].map(|count| format!("{point}={}*off->return(kill)", count - 1));
        let stormy = sent(&mut mill, &deaths).await;
        assert!(stormy.keys().eq(quiet.keys()), "killed at {point}: {stormy:?}\nundisturbed: {quiet:?}");
        // Each death cuts three calls at most.
        let more: usize = stormy.values().sum::<usize>() - quiet.len();
        assert!(more <= 9, "killed at {point}, {more} calls more: {stormy:?}");
    }
}
