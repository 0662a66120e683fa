//! A row of `jobs`: its policy, its params, and behind them the prompt and the queue's policy.

use std::collections::HashMap;
use std::time::Instant;

use promptmill::domain::job::{Claimed, Defaults, Job, JobId, Lease, Policy, Raw, Tally};
use promptmill::domain::talk::{Request, Step, Talk};
use serde_json::value::RawValue;

fn defaults() -> Defaults {
    Defaults {
        model: "claude-default".to_owned(),
        max_tokens: None,
        policy: Policy::default(),
        mcp_servers: false,
        cache_turns: true,
        request_max: 1 << 25,
        models: HashMap::new(),
    }
}

/// Reads a row; `None` where it is refused, which has to name a place and say why.
pub(crate) fn read(policy: &str, params: &str, prompt: &str, queue_policy: Option<&str>) -> Option<Job> {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let claimed = Claimed {
        lease: Lease { job: JobId(1), claim: 1, run: 1 },
        queue: "default".to_owned(),
        batch: None,
        prompt: given(prompt),
        system: None,
        model: None,
        max_tokens: None,
        params: given(params).map(Raw::from),
        policy: given(policy),
        queue_model: None,
        queue_policy: queue_policy.and_then(given),
        garbled: None,
        bytes: 0,
        waited: None,
        tally: Tally::default(),
        calls: Vec::new(),
        tools: Vec::new(),
    };
    match Job::read(&claimed, &defaults()) {
        Ok(job) => Some(job),
        Err(refused) => {
            assert!(!refused.path.is_empty() && !refused.why.is_empty() && !refused.code.is_empty());
            None
        }
    }
}

/// The body of a request is JSON, asks for a stream, and says what the request says of it.
pub(crate) fn check(request: &Request) -> String {
    let body = String::from_utf8(request.body.to_vec()).expect("a body is UTF-8");
    let fields: HashMap<String, &RawValue> = serde_json::from_str(&body).expect("a body is a JSON object");
    assert_eq!(fields["stream"].get(), "true");
    assert_eq!(fields["max_tokens"].get(), request.max_tokens.to_string());
    let messages: Vec<&RawValue> =
        serde_json::from_str(fields["messages"].get()).expect("messages are an array");
    assert_eq!(messages.len(), request.messages as usize);
    let model: String = serde_json::from_str(fields["model"].get()).expect("the model is a string");
    assert_eq!(model, request.model);
    if let Some(note) = &request.note {
        let _: &RawValue = serde_json::from_str(note).expect("the note is JSON");
    }
    body
}

/// A row that is taken makes a body that is JSON, with every message and field in it byte for byte.
pub fn params(data: &[u8]) {
    let Some(mut parts) = super::parts(data) else { return };
    let mut part = || parts.next().unwrap_or_default();
    let (policy, params, prompt, queue_policy) = (part(), part(), part(), part());
    let Some(job) = read(policy, params, prompt, Some(queue_policy)) else { return };
    let talk = Talk::resume(job.clone(), &[], &[], Instant::now());
    let Step::Ask(request) = talk.next() else { panic!("a new conversation asks") };
    let body = check(&request);
    for message in &job.messages {
        assert!(body.contains(message.get()), "a message was changed");
    }
    let asked: HashMap<String, &RawValue> = serde_json::from_str(&body).expect("seen above");
    for (name, value) in &job.fields {
        // The schema of `policy` goes into one of these.
        if job.schema.is_none() || !["output_config", "system"].contains(&name.as_str()) {
            assert_eq!(asked[name].get(), value.get(), "{name} was changed");
        }
    }
}
