//! Jobs made of rows: tables and objects of the user's own, and a template.

use serde_json::{Value, json};

use super::Desk;
use crate::support::{Ground, on_both};

on_both! {
    rows_of_a_table_become_prompts_and_are_kept_as_metadata,
    the_same_table_twice_enqueues_once_and_another_template_is_another_batch,
    a_column_names_the_jobs,
    json_lines_are_filled_too,
    templates_stand_in_files_and_make_system_prompts,
    a_table_without_a_template_has_the_columns_of_jobs,
    a_table_may_have_another_separator_and_come_from_standard_input,
    a_bad_table_is_told_in_one_sentence_and_nothing_is_enqueued,
    a_table_of_many_statements_arrives_whole_and_in_order,
}

const PRODUCTS: &str =
    "\u{feff}id,title,body\r\n7,\"Shoe, red\",\"Says \"\"hi\"\"\nand {{title}}\"\r\n\r\n8,Tea,100 % 漢\r\n";

/// A JSON column as JSON: Postgres spells `jsonb` anew.
async fn metadata(ground: &Ground, id: i64) -> Value {
    let text = ground.line(&format!("SELECT metadata FROM jobs WHERE id = {id}")).await;
    serde_json::from_str(&text).unwrap_or_else(|err| panic!("{err} in {text}"))
}

async fn rows_of_a_table_become_prompts_and_are_kept_as_metadata(ground: &Ground) {
    let desk = Desk::new(ground);
    let file = desk.file("products.csv", PRODUCTS);
    let ran = desk.mill(&["enqueue", file, "--template", "Summarise {{title}}: {{ body }}", "-b", "p"]);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("p\n", "batch p: 2 new, 0 already there\n"), "{ran:?}");
    assert_eq!(
        ground.lines("SELECT prompt FROM jobs ORDER BY id").await,
        ["Summarise Shoe, red: Says \"hi\"\nand {{title}}", "Summarise Tea: 100 % 漢"]
    );
    assert_eq!(
        metadata(ground, 1).await,
        json!({"id": "7", "title": "Shoe, red", "body": "Says \"hi\"\nand {{title}}"})
    );
    // The way back: from an answer to the row that it is about.
    super::settle(ground, 2, "complete", "end_turn", "Short.").await;
    let id = ground.either("j.metadata ->> '$.id'", "j.metadata ->> 'id'");
    let joined = format!("SELECT {id}, r.text FROM results r JOIN jobs j ON j.id = r.job_id");
    assert_eq!(ground.lines(&joined).await, ["8|Short."]);
    desk.mill(&["enqueue", file, "--template", "{{id}}", "-b", "own", "--metadata", "{\"mine\":1}"]).good();
    assert_eq!(metadata(ground, 3).await, json!({"mine": 1}));
}

async fn the_same_table_twice_enqueues_once_and_another_template_is_another_batch(ground: &Ground) {
    let desk = Desk::new(ground);
    let file = desk.file("products.csv", PRODUCTS);
    let label = desk.mill(&["enqueue", file, "--template", "Summarise {{body}}"]).good();
    let again = desk.mill(&["enqueue", file, "--template", "Summarise {{body}}"]);
    assert_eq!(again.out, label);
    assert!(again.said(0).contains("0 new, 2 already there"));
    let other = desk.mill(&["enqueue", file, "--template", "Translate {{body}}"]);
    assert_ne!(other.out, label);
    assert!(other.said(0).contains("2 new, 0 already there"));
    let said =
        desk.mill(&["enqueue", file, "--template", "Shorten {{body}}", "-b", label.trim_end()]).said(1);
    assert!(said.contains("line 2: key") && said.contains("line 5: key"), "{said}");
    // Line ends are no content: a file saved anew by another program is the same rows.
    desk.file("products.csv", &PRODUCTS.replace("\r\n", "\n").replace('\u{feff}', ""));
    let said =
        desk.mill(&["enqueue", file, "--template", "Summarise {{body}}", "-b", label.trim_end()]).said(0);
    assert!(said.contains("0 new, 2 already there"), "{said}");
}

async fn a_column_names_the_jobs(ground: &Ground) {
    let desk = Desk::new(ground);
    let file = desk.file("products.csv", PRODUCTS);
    desk.mill(&["enqueue", file, "--template", "{{body}}", "--key-column", "id", "-b", "p"]).good();
    assert_eq!(ground.lines("SELECT key FROM jobs ORDER BY id").await, ["p/7", "p/8"]);
    let file = desk.file("named.csv", "custom_id,text\na,x\nb,y\n");
    desk.mill(&["enqueue", file, "--template", "{{text}}", "-b", "n"]).good();
    assert_eq!(ground.lines("SELECT key FROM jobs WHERE batch = 'n' ORDER BY id").await, ["n/a", "n/b"]);
    let file = desk.file("unnamed.csv", "id,text\n,x\n");
    let said = desk.mill(&["enqueue", file, "--template", "{{text}}", "--key-column", "id"]).said(1);
    assert!(said.starts_with("unnamed.csv: line 2: id is empty"), "{said}");
    let said = desk.mill(&["enqueue", file, "--template", "{{text}}", "--key-column", "idd"]).said(1);
    assert!(said.contains("--key-column idd is none of the columns: did you mean \"id\"?"), "{said}");
}

async fn json_lines_are_filled_too(ground: &Ground) {
    let desk = Desk::new(ground);
    let file = desk.file(
        "rows.jsonl",
        "{\"n\":1.50,\"t\":\"a\\nb\",\"tags\":[1, 2],\"custom_id\":\"k\"}\n{\"t\":null,\"n\":2,\"tags\":{}}\n{\"n\":3}\n",
    );
    let said = desk.mill(&["enqueue", file, "--template", "{{n}} {{t}} {{tags}}"]).said(1);
    assert_eq!(
        said,
        "rows.jsonl: line 2: \"t\" is null: the template needs it\n\
         rows.jsonl: line 3: {{t}} of the template is none of the fields: there are \"n\"\n\
         promptmill: rows.jsonl: 2 of 3 lines cannot be jobs; nothing was enqueued\n"
    );
    desk.mill(&["enqueue", file, "--template", "{{n}}", "-b", "b"]).good();
    desk.file("rows.jsonl", "{\"n\":1.50,\"t\":\"a\\nb\",\"tags\":[1, 2],\"custom_id\":\"k\"}\n");
    desk.mill(&["enqueue", file, "--template", "{{n}} {{t}} {{tags}}", "-b", "c"]).good();
    assert_eq!(ground.line("SELECT key, prompt FROM jobs WHERE batch = 'c'").await, "c/k|1.50 a\nb [1, 2]");
    assert_eq!(metadata(ground, 4).await, json!({"n": 1.5, "t": "a\nb", "tags": [1, 2], "custom_id": "k"}));
}

async fn templates_stand_in_files_and_make_system_prompts(ground: &Ground) {
    let desk = Desk::new(ground);
    let file = desk.file("products.csv", "lang,body\nGerman,x\n");
    let template = desk.file("prompt.txt", "First\n\n{{body}}\n");
    let system = "Answer in {{lang}}. {{{{";
    desk.mill(&["enqueue", file, "--template-file", template, "--system-template", system, "--model", "m"])
        .good();
    assert_eq!(
        ground.line("SELECT prompt, system, model FROM jobs").await,
        "First\n\nx|Answer in German. {{|m"
    );
    for (args, says) in [
        (&["--template", "{{x"][..], "is never closed"),
        (&["--template", "x"], "names no column"),
        (&["--template", "{{body}}", "--template-file", template], "cannot be used with"),
        (&["--system-template", "{{lang}}"], "--template"),
        (
            &["--template", "{{body}}", "--system-template", "{{lang}}", "--system", "s"],
            "cannot be used with",
        ),
        (&["--template", "{{body}}", "--separator", ";;"], "not one character"),
    ] {
        let said = desk.mill(&[&["enqueue", file], args].concat()).said(2);
        assert!(said.contains(says), "{args:?}: {said}");
    }
    assert!(
        desk.mill(&["enqueue", "--prompt", "a", "--template", "{{b}}"])
            .said(2)
            .contains("cannot be used with")
    );
}

async fn a_table_without_a_template_has_the_columns_of_jobs(ground: &Ground) {
    let desk = Desk::new(ground);
    let file = desk.file(
        "jobs.csv",
        "custom_id,prompt,max_tokens,policy,run_at\na,\"Say \"\"hi\"\"\",7,\"{\"\"max_failures\"\":2}\",2099-01-01T00:00:00Z\nb,Bye,,,4070908800000\n",
    );
    desk.mill(&["enqueue", file, "-b", "c"]).good();
    assert_eq!(
        ground.lines("SELECT key, prompt, max_tokens, policy FROM jobs ORDER BY id").await,
        ["c/a|Say \"hi\"|7|{\"max_failures\":2}", "c/b|Bye|NULL|NULL"]
    );
    assert_eq!(ground.line("SELECT count(*) FROM job_state WHERE state = 'scheduled'").await, "2");
    let file = desk.file("bad.csv", "promt\nx\n");
    let said = desk.mill(&["enqueue", file]).said(1);
    assert!(said.contains("did you mean \"prompt\"?") && said.contains("give --template"), "{said}");
    let file = desk.file("bad.csv", "prompt,max_tokens\nx,seven\n");
    let said = desk.mill(&["enqueue", file]).said(1);
    assert!(said.starts_with("bad.csv: line 2: column \"max_tokens\" is not valid JSON"), "{said}");
}

async fn a_table_may_have_another_separator_and_come_from_standard_input(ground: &Ground) {
    let desk = Desk::new(ground);
    let file = desk.file("german.csv", "Titel;Preis\nTee;1,50\n");
    let said = desk.mill(&["enqueue", file, "--template", "{{Titel}}"]).said(1);
    assert!(said.contains("Try --separator ';'"), "{said}");
    desk.mill(&["enqueue", file, "--template", "{{Titel}}: {{Preis}}", "--separator", ";"]).good();
    let file = desk.file("tabs.tsv", "a\tb\n1,5\t2\n");
    desk.mill(&["enqueue", file, "--template", "{{a}}|{{b}}"]).good();
    let args = ["enqueue", "-", "--format", "csv", "--template", "{{a}}", "-b", "s"];
    assert_eq!(desk.mill_with(&args, "a\nx\ny").said(0), "batch s: 2 new, 0 already there\n");
    assert_eq!(ground.lines("SELECT prompt FROM jobs ORDER BY id").await, ["Tee: 1,50", "1,5|2", "x", "y"]);
}

async fn a_bad_table_is_told_in_one_sentence_and_nothing_is_enqueued(ground: &Ground) {
    let desk = Desk::new(ground);
    for (text, sentence) in [
        (
            "",
            "t.csv: line 1: the file is empty: its first line has to name the columns; nothing was enqueued",
        ),
        (
            "titel,body\n1,2\n",
            "t.csv: line 1: {{title}} of the template is none of the columns: did you mean \"titel\"? Nothing was enqueued",
        ),
        ("title,body\n1,2\n3,\"4\n", "t.csv: line 3: the quote that opens field 2 is never closed"),
        (
            "title,body\n1,2\n3\n",
            "t.csv: line 3: 1 fields where the header has 2: column \"body\" is missing",
        ),
    ] {
        let file = desk.file("t.csv", text);
        let ran = desk.mill(&["enqueue", file, "--template", "{{title}}"]);
        assert_eq!(ran.out, "");
        let said = ran.said(1);
        assert!(said.contains(sentence), "{said}");
        assert!(said.to_lowercase().contains("nothing was enqueued"), "{said}");
    }
    assert_eq!(ground.line("SELECT count(*) FROM jobs").await, "0");
}

async fn a_table_of_many_statements_arrives_whole_and_in_order(ground: &Ground) {
    let desk = Desk::new(ground);
    let rows: Vec<String> = (0..2_500).map(|n| format!("{n},\"row\n{n}\"\n")).collect();
    let file = desk.file("many.csv", &format!("n,text\n{}", rows.concat()));
    let json = desk.mill(&["enqueue", file, "--template", "{{text}}", "-b", "m", "--json"]).json();
    assert_eq!(json, json!({"batch": "m", "new": 2500, "already_there": 0, "other_content": []}));
    assert_eq!(ground.line("SELECT prompt FROM jobs ORDER BY id DESC LIMIT 1").await, "row\n2499");
}
