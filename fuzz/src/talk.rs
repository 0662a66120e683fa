//! A conversation: the row's policy and params, then one stream for each reply.

use std::time::Instant;

use promptmill::claude::fold::Ended;
use promptmill::domain::job::Job;
use promptmill::domain::ledger::PastCall;
use promptmill::domain::reply::{Block, Reply};
use promptmill::domain::talk::{Step, Talk};
use promptmill::domain::tool::{PastTool, ToolContent, ToolResult};

use crate::{row, stream};

/// More steps than any script is long: behind its end every reply is the same short answer.
const STEPS_MAX: usize = 200;

const ANSWER: &str = r#"data: {"type":"message_start","message":{"id":"m","model":"c","content":[]}}

data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"It is so."}}

data: {"type":"content_block_stop","index":0}

data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}

data: {"type":"message_stop"}

"#;

/// A conversation with its ledger beside it.
struct Run<'a> {
    job: &'a Job,
    talk: Talk,
    calls: Vec<PastCall>,
    tools: Vec<PastTool>,
    asked: Vec<String>,
}

impl<'a> Run<'a> {
    fn new(job: &'a Job) -> Self {
        let talk = Talk::resume(job.clone(), &[], &[], Instant::now());
        Self { job, talk, calls: Vec::new(), tools: Vec::new(), asked: Vec::new() }
    }

    /// Makes one step; returns whether there was one.
    fn step(&mut self, replies: &[Reply]) -> bool {
        match self.talk.next() {
            Step::Done(_) => return false,
            Step::Tools(asked) => {
                let results =
                    vec![
                        ToolResult { content: ToolContent::Text("a result".to_owned()), is_error: false };
                        asked.tools.len()
                    ];
                for (call, result) in asked.tools.iter().zip(&results) {
                    let (call, result) = (call.clone(), Some(result.clone()));
                    self.tools.push(PastTool {
                        claim: asked.claim,
                        seq: asked.seq,
                        call,
                        result,
                        taken: true,
                    });
                }
                self.talk.answer_tools(&results);
            }
            Step::Ask(request) => {
                self.asked.push(row::check(&request));
                let reply = replies.get(self.calls.len()).cloned();
                let reply = reply.unwrap_or_else(|| answered(ANSWER).expect("it has a stop reason"));
                let seq = self.calls.len() as i32 + 1;
                let mut call = PastCall {
                    claim: 1,
                    seq,
                    kind: request.kind.to_string(),
                    model: Some(request.model.clone()),
                    max_tokens: Some(request.max_tokens),
                    request: None,
                    stop_reason: reply.stop.as_ref().map(|stop| stop.as_str().to_owned()),
                    stop_details: reply.stop_details.clone(),
                    usage: reply.usage,
                    content: Some(Block::write_all(&reply.content)),
                    container: reply.container.clone(),
                    partial: false,
                    late: false,
                    error_type: None,
                    request_id: None,
                    sent_ago: None,
                };
                self.talk.count(reply.usage, None, Instant::now());
                call.request = self.talk.push(reply, 1, seq).or(request.note);
                self.calls.push(call);
            }
        }
        true
    }

    /// The process ends, and another one goes on from the ledger.
    fn interrupt(&mut self) {
        self.talk = Talk::resume(self.job.clone(), &self.calls, &self.tools, Instant::now());
    }
}

/// Reads a stream as a worker does; `None` where it is a failure and no reply.
fn answered(stream: &str) -> Option<Reply> {
    let (fold, over) = stream::folded(stream.as_bytes());
    (fold.has_stop() && (over || fold.settled())).then(|| fold.finish(Ended::Whole))
}

/// Every request is JSON, every conversation ends, and one that is read back from the ledger between any
/// two steps asks what an undisturbed one asks.
pub fn talk(data: &[u8]) {
    let Some(mut parts) = super::parts(data) else { return };
    let (policy, params) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let prompt = if params.contains("messages") { "" } else { "Say hello" };
    let Some(job) = row::read(policy, params, prompt, None) else { return };
    let replies: Vec<Reply> = parts.take(12).filter_map(answered).collect();
    let (mut straight, mut torn) = (Run::new(&job), Run::new(&job));
    for at in 0.. {
        assert!(at < STEPS_MAX, "a conversation without an end");
        let on = straight.step(&replies);
        torn.interrupt();
        assert_eq!(torn.step(&replies), on, "an interrupted conversation ends elsewhere");
        if !on {
            break;
        }
    }
    assert_eq!(torn.asked, straight.asked);
}
