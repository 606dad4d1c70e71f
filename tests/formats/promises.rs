//! `docs/promises.md` names only tests that exist.

use std::{collections::BTreeSet, fs, path::Path};

/// A test named as `file: test` exists; `who` names it.
#[track_caller]
pub(crate) fn there_is(who: &str, named: &str) {
    let (file, test) = named.split_once(": ").unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let source = fs::read_to_string(root.join(file));
    let source = source.unwrap_or_else(|error| panic!("{who} names {file}: {error}"));
    assert!(source.contains(&format!("fn {test}(")), "{who}: there is no test {test} in {file}");
}

#[test]
fn every_promise_is_backed_by_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("docs/promises.md")).unwrap();
    let mut backed = BTreeSet::new();
    for section in text.split("\n## ").skip(1) {
        let (title, body) = section.split_once('\n').unwrap();
        for named in body.split('`').skip(1).step_by(2).filter(|named| named.contains(": ")) {
            there_is(title, named);
            backed.insert(title);
        }
    }
    assert_eq!(backed.len(), 9, "a promise has no test: {backed:#?}");
}
