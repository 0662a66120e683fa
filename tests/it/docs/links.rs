//! The book holds together: its list names every page once, and each link leads somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{docs, names, read};

/// The links of a text, outside of code: `[…](target)`.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose(text) {
        let mut rest = without_code(line);
        while let Some(at) = rest.find("](") {
            let from = rest.split_off(at + 2);
            if let Some((target, after)) = from.split_once(')') {
                links.push(target.to_owned());
                rest = after.to_owned();
            } else {
                rest = from;
            }
        }
    }
    links
}

/// The lines that stand in no block of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// The anchors that a page's headings get.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    for line in prose(text).filter(|line| line.starts_with('#')) {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let slug: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let again = seen.entry(slug.clone()).and_modify(|again| *again += 1).or_default();
        anchors.insert(if *again == 0 { slug } else { format!("{slug}-{again}") });
    }
    anchors
}

/// What does not lead anywhere, of a text in a folder.
fn dangling(folder: &Path, name: &str, text: &str) -> Vec<String> {
    let outside = |target: &String| target.starts_with("http://") || target.starts_with("https://");
    let dangles = |target: &String| {
        let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
        let there =
            if file.is_empty() { Ok(text.to_owned()) } else { std::fs::read_to_string(folder.join(file)) };
        match there {
            Ok(there) => !anchor.is_empty() && !anchors(&there).contains(anchor),
            // A folder, or a picture.
            Err(_) => !anchor.is_empty() || !folder.join(file).exists(),
        }
    };
    let links = links(text).into_iter().filter(|target| !outside(target));
    links.filter(dangles).map(|target| format!("{name}: {target}")).collect()
}

#[test]
fn every_link_of_the_book_and_the_readmes_leads_somewhere() {
    let mut dangle = Vec::new();
    for name in names().into_iter().chain(["SUMMARY.md".to_owned()]) {
        dangle.extend(dangling(&docs(), &name, &read(&name)));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let of_examples =
        ["images", "products", "templates", "tool-server"].map(|name| format!("examples/{name}/README.md"));
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"]
        .into_iter()
        .chain(of_examples.iter().map(String::as_str))
    {
        let path = root.join(name);
        let text = std::fs::read_to_string(&path).expect("it is there");
        dangle.extend(dangling(path.parent().expect("a folder"), name, &text));
    }
    assert!(dangle.is_empty(), "these lead nowhere: {dangle:#?}");
}

#[test]
fn the_book_links_to_nothing_that_it_does_not_hold() {
    // The pages are read without the repository around them, too.
    let leads_out =
        |name: &str| links(&read(name)).into_iter().filter(|target| target.starts_with("../")).count();
    let out: Vec<_> = names().into_iter().filter(|name| leads_out(name) > 0).collect();
    assert!(out.is_empty(), "{out:?}");
}

#[test]
fn the_list_of_pages_names_each_page_once() {
    let mut listed = links(&read("SUMMARY.md"));
    listed.sort();
    assert_eq!(listed, names());
}

#[test]
fn a_link_to_nowhere_is_found() {
    let text = "# A b, `c`: d!\n\n[here](#a-b-c-d) [gone](#a) [no page](none.md) [page](links.rs#x)\n\n## A b\n## A b\n[twice](#a-b-1) `[code](none.md)`\n```text\n[block](none.md)\n```\n";
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/docs");
    assert_eq!(dangling(&folder, "p", text), ["p: #a", "p: none.md", "p: links.rs#x"]);
}
