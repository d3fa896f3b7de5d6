//! The pages for users say what the program does.

use std::collections::BTreeSet;

fn text(path: &str) -> String {
    std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// The codes in `fn parts` of a file: the last texts of its tuples.
fn codes(path: &str) -> BTreeSet<String> {
    let source = text(path);
    let (_, body) = source.split_once("fn parts(").expect("the table of codes");
    let (body, _) = body.split_once("\n    }\n").expect("its end");
    let texts: Vec<_> = body.split('"').collect();
    let ends_tuple = |rest: &str| rest.trim_start_matches([',', ' ', '\n']).starts_with(')');
    let found = texts.chunks(2).zip(texts.chunks(2).skip(1)).filter_map(|(this, next)| {
        Some((*this.get(1)?).to_owned()).filter(|_| ends_tuple(next[0]))
    });
    found.collect()
}

#[test]
fn every_error_code_has_its_place_in_the_page_of_errors() {
    let mut all = codes("src/proxy/error.rs");
    all.extend(codes("src/proxy/refusal.rs"));
    assert!(all.len() > 20 && all.contains("insufficient_credits"), "{all:?}");
    all.extend(codes("src/admin/error.rs"));
    let page = text("docs/errors.md");
    let anchors: BTreeSet<_> =
        page.lines().filter_map(|line| line.strip_prefix("### ")).map(String::from).collect();
    assert_eq!(all, anchors);
    for code in all {
        let (table, _) = page.split_once("\n## ").unwrap();
        assert!(table.contains(&format!("`{code}`")), "{code} has no row");
    }
}
