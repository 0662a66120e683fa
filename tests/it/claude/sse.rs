//! Events are the same however their bytes were cut into chunks, and none is too large.

use promptmill::claude::sse::{Parser, TooLarge};
use proptest::prelude::*;

type Events = Vec<(String, String)>;

fn parse(chunks: &[&[u8]], event_max: usize) -> Result<Events, TooLarge> {
    let mut parser = Parser::new(event_max);
    let mut events = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for chunk in chunks {
        let mut rest = *chunk;
        while let Some(event) = parser.read(&mut rest)? {
            events.push((text(event.name), text(event.data)));
        }
        assert!(rest.is_empty());
    }
    if let Some(event) = parser.finish() {
        events.push((text(event.name), text(event.data)));
    }
    Ok(events)
}

fn parse_whole(stream: &str) -> Events {
    parse(&[stream.as_bytes()], 1 << 20).unwrap()
}

fn event(name: &str, data: &str) -> (String, String) {
    (name.to_owned(), data.to_owned())
}

#[test]
fn every_line_end_means_the_same() {
    let stream = "event: a\ndata: 1\ndata: 2\n\ndata: 3\n\n";
    let expected = vec![event("a", "1\n2"), event("", "3")];
    assert_eq!(parse_whole(stream), expected);
    assert_eq!(parse_whole(&stream.replace('\n', "\r\n")), expected);
    assert_eq!(parse_whole(&stream.replace('\n', "\r")), expected);
}

#[test]
fn comments_ids_unknown_fields_and_events_without_data_are_no_events() {
    let stream = ": hi\n\nid: 7\nretry: 1\nflavour: x\n\nevent: lonely\n\ndata\n\ndata: {}\n\n";
    assert_eq!(parse_whole(stream), vec![event("", "{}")]);
}

#[test]
fn one_space_behind_the_colon_is_not_data() {
    assert_eq!(parse_whole("data:  a\ndata:b\n\n"), vec![event("", " a\nb")]);
}

#[test]
fn a_byte_order_mark_is_skipped_once() {
    assert_eq!(
        parse_whole("\u{feff}data: a\n\n\u{feff}data: b\n\ndata: c\n\n"),
        vec![event("", "a"), event("", "c")]
    );
}

#[test]
fn the_last_event_is_given_without_its_blank_line_or_line_end() {
    assert_eq!(parse_whole("data: a\n\nevent: x\ndata: b\n"), vec![event("", "a"), event("x", "b")]);
    assert_eq!(parse_whole("data: a\n\nevent: x\ndata: b"), vec![event("", "a"), event("x", "b")]);
}

#[test]
fn a_line_or_an_event_over_the_limit_is_refused_however_it_is_cut() {
    let long_line = format!("data: {}\n\n", "x".repeat(200));
    let many_lines = "data: 0123456789\n".repeat(20) + "\n";
    let comment = format!(":{}", "x".repeat(200));
    for stream in [long_line, many_lines, comment] {
        assert_eq!(parse(&[stream.as_bytes()], 100), Err(TooLarge { max: 100 }));
        let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        assert_eq!(parse(&bytes, 100), Err(TooLarge { max: 100 }));
    }
}

fn cut_at<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

#[test]
fn recorded_streams_parse_the_same_from_single_bytes() {
    for (stream, _) in super::STREAMS {
        for stream in [stream.to_owned(), format!("\u{feff}{}", stream.replace('\n', "\r\n"))] {
            let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
            assert_eq!(parse(&bytes, 1 << 20).unwrap(), parse_whole(&stream));
        }
    }
}

proptest! {
    #[test]
    fn events_do_not_depend_on_how_the_bytes_were_cut(
        lines in prop::collection::vec("(data|event|id|)(: ?[ -~é]{0,8})?(\n|\r|\r\n){1,3}", 0..20),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let stream = lines.concat();
        let pieces = cut_at(stream.as_bytes(), &cuts);
        prop_assert_eq!(parse(&pieces, 24), parse(&[stream.as_bytes()], 24));
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        drop(parse(&[&bytes], 64));
    }
}
