//! `docs/promises.md` names only tests that exist.

use std::{collections::BTreeSet, fs, path::Path};

#[test]
fn every_promise_is_backed_by_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("docs/promises.md")).unwrap();
    let mut backed = BTreeSet::new();
    for section in text.split("\n## ").skip(1) {
        let (title, body) = section.split_once('\n').unwrap();
        for (file, test) in body.split('`').skip(1).step_by(2).filter_map(|named| named.split_once(": ")) {
            let source = fs::read_to_string(root.join(file));
            let source = source.unwrap_or_else(|error| panic!("{title} names {file}: {error}"));
            let declared = format!("fn {test}(");
            assert!(source.contains(&declared), "{title}: there is no test {test} in {file}");
            backed.insert(title);
        }
    }
    assert_eq!(backed.len(), 9, "a promise has no test: {backed:#?}");
}
