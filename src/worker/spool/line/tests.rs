//! Round trips, cut files, and times over a restart.

use proptest::prelude::*;

use super::*;
use crate::domain::job::JobId;
use crate::domain::ledger::{Back, CallKind};
use crate::domain::outcome::{Fault, Outcome, Usage};

fn lease() -> impl Strategy<Value = Lease> {
    (any::<i64>(), any::<i64>(), any::<i64>()).prop_map(|(job, claim, run)| Lease {
        job: JobId(job),
        claim,
        run,
    })
}

fn text() -> impl Strategy<Value = Option<String>> {
    proptest::option::of(any::<String>())
}

fn usage() -> impl Strategy<Value = Usage> {
    any::<[i64; 4]>().prop_map(|[input, output, cache_creation, cache_read]| Usage {
        input,
        output,
        cache_creation,
        cache_read,
    })
}

fn fault() -> impl Strategy<Value = Option<Fault>> {
    let fault = (any::<String>(), text(), any::<String>()).prop_map(|(kind, code, message)| Fault {
        kind,
        code,
        message,
    });
    proptest::option::of(fault)
}

fn call() -> impl Strategy<Value = Call<Age>> {
    let kind = prop_oneof![
        Just(CallKind::Ask),
        Just(CallKind::Continue),
        Just(CallKind::Regenerate),
        Just(CallKind::Resume),
        Just(CallKind::Nudge)
    ];
    let numbers = (any::<[i32; 2]>(), any::<i64>(), any::<[bool; 3]>(), any::<Option<u16>>());
    let times = (any::<Age>(), any::<Option<Age>>(), any::<Age>(), any::<Option<Duration>>());
    let texts = (any::<String>(), proptest::collection::vec(text(), 8));
    (kind, numbers, times, texts, usage(), fault()).prop_map(|(kind, numbers, times, texts, usage, fault)| {
        let ([seq, messages], max_tokens, [probe, partial, checkpointed], http_status) = numbers;
        let (sent, first_token, ended, retry_after) = times;
        let (model, mut texts) = texts;
        let mut text = || texts.pop().flatten();
        Call {
            seq,
            kind,
            probe,
            model,
            max_tokens,
            messages,
            request: text(),
            sent,
            first_token,
            ended,
            http_status,
            request_id: text(),
            message_id: text(),
            stop_reason: text(),
            stop_details: text(),
            usage,
            usage_raw: text(),
            content: text().map(Into::into),
            container: text(),
            partial,
            fault,
            retry_after,
            checkpointed,
        }
    })
}

fn answer() -> impl Strategy<Value = Answer<Age>> {
    let texts = proptest::collection::vec(text(), 8);
    let numbers = (any::<[i32; 5]>(), any::<Option<Age>>());
    (proptest::sample::select(Outcome::ALL.to_vec()), texts, numbers, usage(), fault()).prop_map(
        |(outcome, mut texts, (numbers, started), usage, fault)| {
            let [sanitised, calls, continuations, seams, failures] = numbers;
            let mut text = || texts.pop().flatten();
            Answer {
                outcome,
                stop_reason: text(),
                stop_sequence: text(),
                stop_details: text(),
                text: text(),
                content: text().map(Into::into),
                output: text(),
                sanitised,
                dropped: seams,
                model: text(),
                usage,
                calls,
                continuations,
                seams,
                failures,
                fault,
                request_id: text(),
                started,
            }
        },
    )
}

fn write() -> impl Strategy<Value = Write<Age>> {
    let settle = (lease(), answer(), proptest::option::of(call()))
        .prop_map(|(lease, answer, call)| Write::Settle(Settlement { lease, answer, call }));
    let release =
        (lease(), any::<Option<Duration>>(), any::<[i32; 2]>(), text(), proptest::option::of(call()))
            .prop_map(|(lease, delay, [failures, deferrals], reason, call)| {
                let back = delay.into();
                Write::Release(Release { lease, back, failures, deferrals, reason, call })
            });
    let append = (lease(), call()).prop_map(|(lease, call)| Write::Append { lease, call });
    let fill = (lease(), answer()).prop_map(|(lease, answer)| Write::Fill { lease, answer });
    prop_oneof![settle, release, append, fill]
}

fn line() -> impl Strategy<Value = Line> {
    (any::<String>(), any::<i64>(), any::<u64>(), write()).prop_map(|(database, worker, at, write)| Line {
        database,
        worker: WorkerId(worker),
        at,
        write,
    })
}

fn some_line(job: i64) -> Line {
    let lease = Lease { job: JobId(job), claim: 1, run: 1 };
    let release = Release { lease, back: Back::Now, failures: 0, deferrals: 0, reason: None, call: None };
    Line::new("d", WorkerId(1), Write::Release(release))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_write_comes_back_as_it_was(line in line()) {
        let bytes = line.to_bytes();
        let text = bytes.strip_suffix(b"\n").unwrap();
        prop_assert!(!text.contains(&b'\n'), "a line is one line");
        prop_assert_eq!(Line::read(text), Some(line));
    }

    #[test]
    fn a_line_with_any_other_byte_in_it_is_not_read(line in line(), at in any::<prop::sample::Index>(), by in 1..=255u8) {
        let mut bytes = line.to_bytes();
        bytes.pop();
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        prop_assert_eq!(Line::read(&bytes), None);
    }
}

#[test]
fn a_file_that_is_cut_off_anywhere_gives_the_whole_lines_before() {
    let lines: Vec<Line> = (1..=3).map(some_line).collect();
    let bytes: Vec<u8> = lines.iter().flat_map(Line::to_bytes).collect();
    for cut in 0..=bytes.len() {
        // A line whose line break alone is missing is whole.
        let mut end = 0;
        let whole = lines.iter().take_while(|line| {
            end += line.to_bytes().len();
            end - 1 <= cut
        });
        let whole = whole.count();
        let contents = Contents::read(&bytes[..cut]);
        assert_eq!(contents.lines, lines[..whole], "cut at {cut}");
        assert!(contents.broken.is_empty(), "cut at {cut}");
        let read: usize = lines[..whole].iter().map(|line| line.to_bytes().len()).sum();
        assert_eq!(contents.torn, bytes[read.min(cut)..cut], "cut at {cut}");
    }
}

#[test]
fn a_broken_line_in_the_middle_costs_itself_alone() {
    let lines: Vec<Line> = (1..=3).map(some_line).collect();
    let mut bytes: Vec<u8> = lines.iter().flat_map(Line::to_bytes).collect();
    let middle = lines[0].to_bytes().len() + 30;
    bytes[middle] ^= 1;
    let contents = Contents::read(&bytes);
    assert_eq!(contents.lines, [lines[0].clone(), lines[2].clone()]);
    assert_eq!(contents.broken.len(), 1);
    assert!(contents.torn.is_empty());
}

#[test]
fn a_time_grows_older_by_what_passed_since_and_a_clock_set_back_makes_it_no_younger() {
    let lease = Lease { job: JobId(1), claim: 1, run: 1 };
    let answer = |started| {
        let line = some_line(1);
        let call = None;
        let answer = Answer { started: Some(started), ..Answer::of(Outcome::Complete) };
        Line { write: Write::Settle(Settlement { lease, answer, call }), ..line }
    };
    for (written_ago, age) in [(0, 5_000), (60_000, 65_000), (-3_600_000, 5_000)] {
        let mut line = answer(5_000);
        line.at = line.at.saturating_add_signed(-written_ago);
        let Write::Settle(settlement) = line.into_write() else { panic!("a settlement") };
        let passed = settlement.answer.started.unwrap().elapsed().as_millis();
        assert!((age..age + 2_000).contains(&passed), "{passed} and not {age}, written {written_ago} ms ago");
    }
}
