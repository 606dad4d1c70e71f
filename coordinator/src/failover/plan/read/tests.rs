//! Every mistake is named with its line.

use std::{collections::BTreeMap, path::Path};

use holdfast_common::ids::MachineId;
use proptest::prelude::*;

use super::{Mistake, PLAN_BYTES_MAX, read};
use crate::failover::plan::check::{Surroundings, check};

const GOOD: &str = "name = \"shop\"\n[[group]]\nname = \"a\"\nmachines = [\"m\"]\n";

/// The mistakes, as "line: text".
fn mistakes(text: &str) -> Vec<String> {
    read(text).1.into_iter().map(|Mistake { line, text }| format!("{line}: {text}")).collect()
}

/// One mistake, which is in this line and says this.
fn is_mistaken(text: &str, line: usize, says: &str) {
    let found = mistakes(text);
    let fits = |found: &String| found.starts_with(&format!("{line}: ")) && found.contains(says);
    assert!(found.len() == 1 && found.iter().all(fits), "{text}\n-> {found:?}, not {line}: {says}");
}

#[test]
fn every_mistake_has_its_line() {
    assert_eq!(mistakes(GOOD), Vec::<String>::new());
    let with = |more: &str| format!("{GOOD}{more}");
    for (more, line, says) in [
        ("tme_limit = \"1m\"", 5, "a group has no `tme_limit`; it may have: name, needs"),
        ("time_limit = \"1 minute\"", 5, "is no time"),
        ("time_limit = \"0s\"", 5, "more than nothing"),
        ("time_limit = 5", 5, "text in quotes, not integer"),
        ("on_error = \"ignore\"", 5, "\"stop\" or \"continue\", not `ignore`"),
        ("needs = [\"z\"]", 5, "there is no group `z`"),
        ("needs = [\"a\"]", 5, "cannot need itself"),
        ("needs = \"a\"", 5, "list of texts"),
        ("\n[[group]]\nname = \"b\"", 6, "group `b` has no machine"),
        ("\n[[group]]\nname = \"b\"\nmachines = []", 8, "group `b` has no machine"),
        ("\n[[group]]\nmachines = [\"n\"]", 6, "the group has no name"),
        ("\n[[group]]\nname = \"a\"\nmachines = [\"n\"]", 6, "a group `a` already, in line 2"),
        ("[[group.before]]", 5, "either script"),
        ("[[group.before]]\nscript = [\"ls\"]", 6, "no full path"),
        ("[[group.before]]\nscript = []", 6, "names a program"),
        ("[[group.before]]\nscript = [\"/bin/ls\", 5]", 6, "not integer"),
        ("[[group.after]]\nscript = \"/bin/ls\"\non = \"target\"", 7, "on = \"agent NAME\""),
        ("[[group.after]]\nscript = \"/bin/ls\"\non = \"agent dr-host\"", 6, "no name of a program"),
        ("[[group.after]]\nscript = \"/bin/ls\"\non = \"agent \"", 7, "cannot run on `agent `"),
        ("[[group.after]]\nscript = \"/bin/ls\"\non = \"source\"", 6, "no name of a program"),
        ("[[group.after]]\nscript = \"/bin/ls\"\non = \"moon\"", 7, "cannot run on `moon`"),
        ("[[group.after]]\nscript = \"/bin/ls\"\ndirection = \"back\"", 7, "`back` is no direction"),
        ("[[group.after]]\nmanual = \"\"", 6, "what is to be done"),
        ("[[group.after]]\nmanual = \"x\"\ntime_limit = \"5m\"", 7, "has no `time_limit`"),
        ("[[group.after]]\nmanual = \"x\"\nscript = \"/bin/ls\"", 5, "either script"),
        ("[group.after]\nmanual = \"x\"", 5, "two brackets: [[group.after]]"),
        ("[networks]\neth0 = \"a-name-that-is-too-long\"", 6, "is no network"),
        ("[group.networks]", 5, "a group has no `networks`"),
        ("[[groups]]", 5, "a plan has no `groups`"),
        ("machines = [\"n\"]", 5, "duplicate key"),
    ] {
        is_mistaken(&with(more), line, says);
    }
    let group = "[[group]]\nname = \"a\"\nmachines = [\"m\"]";
    for (first, says) in [
        ("description = \"x\"", "the plan has no name"),
        ("name = \"\"", "1 to 64 letters"),
        ("name = \"../x\"", "1 to 64 letters"),
        ("name = 5", "text in quotes"),
    ] {
        assert!(
            mistakes(&format!("{first}\n{group}"))
                .iter()
                .any(|found| found.starts_with("1: ") && found.contains(says)),
            "{first}"
        );
    }
    for (second, says) in [
        ("point = \"newest\"", "newest"),
        ("target = \"tape\"", "a target is"),
        ("target = { image = \"images\" }", "full path"),
        ("target = { image = \"/images\", format = \"vhd\" }", "no image format"),
        ("target = { image = \"/images\", update = true }", "a target has no `update`"),
        ("networks = \"br0\"", "table of cards"),
        ("group = 5", "two brackets"),
    ] {
        let text = if second.starts_with("group") {
            format!("name = \"p\"\n{second}")
        } else {
            format!("name = \"p\"\n{second}\n{group}")
        };
        is_mistaken(&text, 2, says);
    }
    is_mistaken("name = \"p\"", 1, "no group");
    is_mistaken(&format!("#{}", "x".repeat(PLAN_BYTES_MAX)), 1, "more than");
}

/// Several at once, and a broken line does not hide the others.
#[test]
fn all_mistakes_are_told_at_once() {
    let text =
        "name = \"p\"\ncolour = \"red\"\n[[group]]\nname = \"a\"\nmachines = [\"m\"\non_error = \"never\"\n";
    let found = mistakes(text);
    let lines: Vec<&str> = found.iter().filter_map(|found| found.split(':').next()).collect();
    assert!(lines.contains(&"2") && lines.len() >= 2, "{found:?}");
}

proptest! {
    /// Nothing that is written in a plan's place brings the reader down.
    #[test]
    fn no_text_is_too_strange(text in "\\PC{0,200}", cut in any::<prop::sample::Index>(), drawn in "[\\[\\]{}=\",\\n a-z0-9._]{0,60}") {
        let _any = read(&text);
        let at = cut.index(GOOD.len());
        let _any = read(&format!("{}{drawn}{}", &GOOD[..at], &GOOD[at..]));
    }
}

/// Two machines, of which one has two names; one program; one bridge.
struct Here;

impl Surroundings for Here {
    fn machine(&self, name: &str) -> Result<MachineId, String> {
        match name {
            "m" | "also-m" => Ok(MachineId::from_bytes([1; 16])),
            "n" => Ok(MachineId::from_bytes([2; 16])),
            _ => Err(format!("there is no machine `{name}`")),
        }
    }

    fn agent(&self, name: &str) -> Result<MachineId, String> {
        if name == "dr-host" { Ok(MachineId::from_bytes([3; 16])) } else { Err(format!("no agent {name}")) }
    }

    fn program(&self, path: &Path) -> Result<(), String> {
        if path == Path::new("/bin/here") { Ok(()) } else { Err(format!("{} is not there", path.display())) }
    }

    fn network(&self, name: &str) -> Result<(), String> {
        if name == "br0" { Ok(()) } else { Err(format!("there is no bridge {name}")) }
    }
}

#[test]
fn what_is_not_there_has_its_line_too() {
    let text = "\
name = \"p\"
[networks]
eth0 = \"br0\"
eth1 = \"br1\"
[[group]]
name = \"a\"
machines = [\"m\", \"zz\"]
[[group.before]]
script = \"/bin/here\"
[[group.before]]
script = \"/bin/gone\"
[[group]]
name = \"b\"
needs = [\"c\"]
machines = [
  \"n\",
  \"also-m\",
]
[[group]]
name = \"c\"
needs = [\"b\"]
machines = [\"n\"]
[[group.after]]
script = \"fetch\"
on = \"agent dr-host\"
[[group.after]]
script = \"fetch\"
on = \"agent lost\"
";
    let (file, mistakes) = read(text);
    assert_eq!(mistakes, []);
    let (found, known) = check(&file, &Here);
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "line 4: there is no bridge br1",
            "line 7: there is no machine `zz`",
            "line 10: /bin/gone is not there",
            "line 12: groups b, c need each other, so none of them can be first",
            "line 17: machine also-m is in the plan already, as m in line 7",
            "line 22: machine n is in the plan already, as n in line 16",
            "line 26: no agent lost",
        ]
    );
    let expected = BTreeMap::from([
        ("m".to_owned(), MachineId::from_bytes([1; 16])),
        ("n".to_owned(), MachineId::from_bytes([2; 16])),
    ]);
    assert_eq!(known, expected);
}
