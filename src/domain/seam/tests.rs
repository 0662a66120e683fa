//! Tests of the seam: each rule by example, the laws by property.

use proptest::prelude::*;

use super::*;

fn asked(text: &str, next: &str) -> (String, Seam) {
    let joined = join(text, next, How::Anchor);
    (joined.text, joined.seam)
}

fn whole(text: &str, seam: Seam) -> (String, Seam) {
    (text.to_owned(), seam)
}

const PROSE: &str = "The mill stands where the river bends, and in spring the water comes up to \
                     the third step. Nobody has counted the sacks that went through it, but the";

#[test]
fn an_anchor_starts_at_a_word_and_is_about_sixty_characters_long() {
    let anchor = anchor(PROSE);
    assert!(PROSE.ends_with(anchor));
    assert!((40..=80).contains(&anchor.chars().count()), "{anchor}");
    assert!(PROSE[..PROSE.len() - anchor.len()].ends_with(' '));
}

#[test]
fn an_anchor_prefers_a_line_start_and_leaves_the_indentation_out() {
    let code =
        "fn main() {\n    let first = read_the_first_line_of_the_file(path)?;\n    let second = 2;\n    go(";
    assert_eq!(
        anchor(code),
        "let first = read_the_first_line_of_the_file(path)?;\n    let second = 2;\n    go("
    );
    let code = "fn main() {\n    let first = read_the_first_line_of_the_whole_of_the_file(path)?;\n    go(first, &mut second, third_of_them, and_the_fo";
    assert_eq!(anchor(code), "go(first, &mut second, third_of_them, and_the_fo");
}

#[test]
fn an_anchor_of_mere_punctuation_grows_until_it_says_something() {
    let table = "| name of the thing | price of it |\n|-------------------------------------|-------------------------------------|\n";
    assert_eq!(anchor(table), table.trim_end());
    assert!(anchor(&"-".repeat(1000)).len() <= 320);
}

#[test]
fn a_short_text_is_its_own_anchor_and_an_empty_one_has_none() {
    assert_eq!(anchor("  One two "), "One two");
    assert_eq!(anchor(" \n"), "");
    assert_eq!(asked(" \n", " \n\nOne"), whole(" \n\nOne", Seam::Plain));
}

#[test]
fn a_repeated_anchor_is_dropped_and_what_follows_is_glued_on() {
    let said = anchor(PROSE);
    let want = format!("{PROSE} miller knows.");
    for next in [
        format!("{said} miller knows."),
        format!("\n\n {said} miller knows."),
        format!("<<<{said}>>> miller knows."),
        format!("<<<\n{said}\n>>> miller knows."),
        format!("{} miller knows.", said.replacen(' ', "\n", 2)),
    ] {
        assert_eq!(asked(PROSE, &next), whole(&want, Seam::Anchored), "{next}");
    }
    assert_eq!(asked("A half wo", "A half word"), whole("A half word", Seam::Anchored));
}

#[test]
fn an_anchor_that_looks_like_the_marks_is_dropped_as_it_is() {
    let text = "resolve the conflict\n<<<<<<< HEAD of the branch that we have been working on since";
    let next = format!("{} May>>>", anchor(text));
    assert_eq!(asked(text, &next).0, format!("{text} May>>>"));
}

#[test]
fn a_longer_or_shorter_repetition_is_dropped_where_it_is_the_only_one() {
    let from = PROSE.find("spring").expect("it is there");
    let next = format!("{} miller knows.", &PROSE[from..]);
    assert_eq!(asked(PROSE, &next), whole(&format!("{PROSE} miller knows."), Seam::Overlap));
    let next = "went through it, but the miller knows.";
    assert_eq!(asked(PROSE, next), whole(&format!("{PROSE} miller knows."), Seam::Overlap));
    let next = format!("{PROSE} miller knows.");
    assert_eq!(asked(PROSE, &next), whole(&next, Seam::Overlap));
}

#[test]
fn what_may_follow_upon_itself_is_not_taken_for_a_repetition() {
    let (row, other) = ("2026-01-03,north,ok,17.50,EUR", "2026-01-04,south,ok,18.00,EUR");
    let next = format!("\n{row}\n2026-01-05,east,ok,1.00,EUR\n");
    for rows in [format!("{row}\n{row}\n{other}\n{row}"), format!("{row}\n{row}")] {
        let text = format!("{PROSE} {PROSE}\n{rows}\n");
        assert_eq!(asked(&text, &next), whole(&format!("{}{next}", text.trim_end()), Seam::Plain));
    }
    // A cycle of rows that is all there is: the longest overlap is the whole of it.
    let text = format!("when,where,how,what,unit\n{}", format!("{row}\n{other}\n").repeat(3));
    let next = format!("\n{row}\n{other}").repeat(5);
    assert_eq!(asked(&text, &next), whole(&format!("{}{next}", text.trim_end()), Seam::Plain));
}

#[test]
fn what_occurs_twice_but_never_follows_upon_itself_is_a_repetition() {
    let (row, other) = ("2026-01-03,north,ok,17.50,EUR", "2026-01-04,south,ok,18.00,EUR");
    let text = format!("{PROSE} {PROSE}\n{row}\n{other}\n{row}\n");
    let next = format!("{row}\n{other}\n");
    assert_eq!(asked(&text, &next), whole(&format!("{text}{other}\n"), Seam::Overlap));
}

#[test]
fn stripped_white_space_comes_back_where_the_reply_brings_none() {
    let text = |blank: &str| format!("{PROSE}{blank}");
    let cases = [
        ("\n\n", "Next.", "\n\nNext."),
        (" ", "miller", " miller"),
        ("", " miller", " miller"),
        ("\n", "\n\nNext.", "\n\nNext."),
        ("\n\n", "\nNext.", "\n\nNext."),
        ("\n   ", "\n    return", "\n    return"),
        ("\n   ", " return", "\n    return"),
        ("\n   ", "    return", "\n    return"),
        ("\n        ", "\n    }", "\n    }"),
        ("\n\n", "\n", "\n\n"),
        ("\n", "", "\n"),
    ];
    for (blank, next, want) in cases {
        assert_eq!(asked(&text(blank), next), whole(&text(want), Seam::Plain), "{blank:?} {next:?}");
    }
}

#[test]
fn a_code_fence_opened_again_is_dropped_and_a_closing_one_is_kept() {
    let code = "Here:\n```rust\nfn main() {\n    let x = fo";
    assert_eq!(asked(code, "```rust\no();\n}\n```"), whole(&format!("{code}o();\n}}\n```"), Seam::Plain));
    assert_eq!(asked(code, "\n```\nDone."), whole(&format!("{code}\n```\nDone."), Seam::Plain));
    let next = format!("```\n{}o();", anchor(code));
    assert_eq!(asked(code, &next), whole(&format!("{code}o();"), Seam::Anchored));
    let closed = format!("{code}o();\n}}\n```\nAnd in another language it is not any longer than this:\n");
    assert_eq!(asked(&closed, "```python\nfoo()"), whole(&format!("{closed}```python\nfoo()"), Seam::Plain));
}

#[test]
fn a_fence_line_that_was_cut_itself_is_completed() {
    assert_eq!(asked("It is:\n\n```ru", "```rust\nfn").0, "It is:\n\n```rust\nfn");
    assert_eq!(asked("It is:\n\n```rust\n", "```rust\nfn").0, "It is:\n\n```rust\nfn");
    assert_eq!(asked("It is:\n\n```ru", "st\nfn").0, "It is:\n\n```rust\nfn");
}

#[test]
fn a_fence_that_a_markdown_block_quotes_is_kept() {
    let text = "````markdown\n# How to install it on a machine that has nothing yet\n";
    assert_eq!(asked(text, "```bash\nmake\n```\n").0, format!("{text}```bash\nmake\n```\n"));
    let text = "```markdown\n# How to install it on a machine that has nothing yet\n";
    assert_eq!(asked(text, "```bash\nmake\n```\n").0, format!("{text}```bash\nmake\n```\n"));
}

#[test]
fn a_server_that_sends_the_prefill_back_is_seen_and_no_other_overlap_is_looked_for() {
    let prefilled = |next: &str| {
        let joined = join(PROSE, next, How::Prefill);
        (joined.text, joined.seam)
    };
    let want = format!("{PROSE} miller knows.");
    assert_eq!(prefilled(" miller knows."), whole(&want, Seam::Plain));
    assert_eq!(prefilled(&want), whole(&want, Seam::Anchored));
    let next = format!("\n{}", want.replacen(' ', "\n", 3));
    assert_eq!(prefilled(&next), whole(&want, Seam::Anchored));
    let next = "went through it, but the miller knows.";
    assert_eq!(prefilled(next), whole(&format!("{PROSE}{next}"), Seam::Plain));
}

#[test]
fn what_is_new_is_counted_without_the_white_space_of_the_seam() {
    let joined = join("A half wo\n\n", "A half wo\n\u{3000}\n word", How::Anchor);
    assert_eq!((joined.added, joined.new_text()), (4, "word"));
    assert_eq!(join("One\n", "\n \n", How::Anchor).added, 0);
}

#[test]
fn a_segment_already_said_is_a_loop() {
    let verse =
        |n: usize| format!("Verse {n}: the wheel went round {} times and the flour was fine. ", n * 37);
    let text: String = (0..40).map(verse).collect();
    let fresh: String = (40..90).map(verse).collect();
    assert!(!repeats(&text, &fresh));
    assert!(repeats(&text, &text[500..1500]));
    assert!(repeats(&text, &format!("{text}{fresh}")), "begun again");
    let round = PROSE.repeat(8);
    assert!(repeats(&round, &PROSE.repeat(20)));
    assert!(!repeats(&text, &format!("{}{fresh}", &text[500..1500])), "something new follows");
    assert!(!repeats(&text, &verse(3)), "too short to tell");
    assert!(!repeats("", ""));
}

#[test]
fn the_words_of_the_ledger_are_read_again() {
    for how in [How::Anchor, How::Prefill] {
        assert_eq!(How::parse(how.as_str()), Some(how));
    }
    assert_eq!(How::parse("suffix"), None);
}

#[test]
fn megabytes_that_almost_match_are_joined_in_linear_time() {
    // Quadratic work on these would not end today.
    let text = format!("{}b", "a".repeat(4 << 20));
    let next = "a".repeat(4 << 20);
    assert_eq!(join(&text, &next, How::Anchor).text.len(), text.len() + next.len());
    assert!(repeats(&next, &next[..2 << 20]));
    let blank = " \n".repeat(2 << 20);
    let joined = join(&format!("x{blank}y{blank}"), &format!("{blank}z"), How::Anchor);
    assert_eq!(joined.text.len(), 3 + 2 * blank.len());
    let fences = "```\n".repeat(1 << 20);
    join(&fences, &fences, How::Anchor);
}

/// Text as nasty as it gets: few letters, much repetition, marks, fences, wide and odd characters.
fn nasty() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[ab \n]{0,12}",
        2 => Just("the same row,again,1\n".to_owned()),
        1 => Just("```rust\n".to_owned()),
        1 => Just("```\n".to_owned()),
        1 => Just("<<<".to_owned()),
        1 => Just(">>>".to_owned()),
        2 => "\\PC{0,8}",
        1 => "[\u{3000}\u{a0}\u{2028}\r\n\t \u{200d}\u{301}😀é中]{0,6}",
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn joining_keeps_all_that_was_said_and_counts_what_is_new(text in nasty(), next in nasty(), prefill: bool) {
        let how = if prefill { How::Prefill } else { How::Anchor };
        let joined = join(&text, &next, how);
        prop_assert!(joined.text.starts_with(text.trim_end()));
        prop_assert!(next.ends_with(joined.new_text()));
        repeats(&text, &next);
    }

    #[test]
    fn an_anchor_is_the_end_of_the_text_without_white_space_around(text in nasty()) {
        let anchor = anchor(&text);
        prop_assert!(text.trim_end().ends_with(anchor));
        prop_assert_eq!(anchor, anchor.trim());
        prop_assert_eq!(anchor.is_empty(), text.trim().is_empty());
    }

    #[test]
    fn repeating_the_anchor_restores_the_text_for_any_cuts(text in nasty(), cuts in prop::collection::vec(0..300_usize, 0..8)) {
        let mut cuts: Vec<usize> = cuts.iter().map(|&at| text.floor_char_boundary(at)).collect();
        cuts.push(text.len());
        cuts.sort_unstable();
        let mut said = text[..cuts[0]].to_owned();
        for &cut in &cuts[1..] {
            let kept = said.trim_end();
            // As far as the last call came: what the model goes on from is what was sent.
            let reply = format!("{}{}", anchor(kept), &text[kept.len()..cut]);
            let joined = join(&said, &reply, How::Anchor);
            said = joined.text;
            prop_assert_eq!(&said, &text[..cut]);
        }
    }
}
