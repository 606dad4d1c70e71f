//! Registry hives: read however they are written, with the changes in their logs, and as an independent program writes them.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};
use holdfast_coordinator::readiness::hive::{Hive, State};
use holdfast_tests::{
    file_system::run,
    hive::{List, Tree, binary, dword, log_of, path, text, texts, unfinished},
};

/// Keys and values of all kinds.
fn tree() -> Tree {
    let mut tree = Tree::default();
    tree.set("Select", "Current", dword(1));
    for name in ["alpha", "Beta", "gamma", "Änderung", "Ωmega"] {
        tree.set(&format!(r"Services\{name}"), "Start", dword(3));
    }
    tree.set(r"Services\alpha", "ImagePath", path(r"\SystemRoot\alpha.sys"));
    tree.set(r"Services\alpha", "", text("the default"));
    tree.set(r"Services\alpha", "Two", texts(&["one", "two"]));
    tree.set(r"Services\alpha", "Short", binary(&[1, 2]));
    tree.set(r"Services\alpha", "Long", binary(&long()));
    tree
}

fn long() -> Vec<u8> {
    (0..40_000_u32).flat_map(|number| number.to_le_bytes()).take(40_000).collect()
}

fn open(bytes: Vec<u8>, logs: &[Vec<u8>]) -> Result<Hive> {
    Hive::open(bytes, logs).map_err(anyhow::Error::msg)
}

#[test]
fn hives_are_read_however_their_lists_are_written() -> Result<()> {
    for list in [List::Li, List::Lf, List::Lh, List::Ri] {
        let hive = open(tree().hive(list), &[])?;
        let words = |error: String| anyhow::anyhow!("{list:?}: {error}");
        let value = |key: &str, name: &str| hive.value(key, name).map_err(words);
        ensure!(value("select", "CURRENT")?.and_then(|value| value.number()) == Some(1), "{list:?}");
        ensure!(value(r"Services\Ωmega", "Start")?.and_then(|value| value.number()) == Some(3), "{list:?}");
        let alpha = r"services\ALPHA";
        let image = value(alpha, "ImagePath")?.and_then(|value| value.text());
        ensure!(image.as_deref() == Some(r"\SystemRoot\alpha.sys"), "{list:?}: {image:?}");
        ensure!(
            value(alpha, "")?.and_then(|value| value.text()).as_deref() == Some("the default"),
            "{list:?}"
        );
        ensure!(
            value(alpha, "two")?.map(|value| value.texts()) == Some(vec!["one".into(), "two".into()]),
            "{list:?}"
        );
        ensure!(value(alpha, "short")?.map(|value| value.data) == Some(vec![1, 2]), "{list:?}");
        ensure!(value(alpha, "long")?.map(|value| value.data) == Some(long()), "{list:?}");
        ensure!(value(alpha, "none")?.is_none() && value("none", "none")?.is_none(), "{list:?}");
        let services = hive.key("Services").map_err(words)?;
        let names = services.map(|key| key.children().map(|keys| keys.filter_map(Result::ok).count()));
        ensure!(names.transpose().map_err(words)? == Some(5), "{list:?}");
    }
    Ok(())
}

#[test]
fn changes_are_replayed_in_their_order_up_to_the_first_gap() -> Result<()> {
    let step = |start: u32| {
        let mut tree = tree();
        tree.set(r"Services\alpha", "Start", dword(start));
        tree.hive(List::Lh)
    };
    let steps = [step(3), step(4), step(5), step(6)];
    let parts: Vec<&[u8]> = steps.iter().map(Vec::as_slice).collect();
    let (first, second) = (log_of(&parts[..2], 8), log_of(&parts[1..], 9));
    let start =
        |hive: &Hive| hive.value(r"Services\alpha", "Start").ok().flatten().and_then(|value| value.number());
    let torn = unfinished(steps[0].clone(), 8);
    let check = |what: &str, logs: &[Vec<u8>], expected: Option<u32>, state: &str| -> Result<()> {
        let hive = open(torn.clone(), logs)?;
        let said = format!("{:?}", hive.state());
        ensure!(start(&hive) == expected && said.contains(state), "{what}: {said}, {:?}", start(&hive));
        Ok(())
    };
    check("all", &[first.clone(), second.clone()], Some(6), "Replayed { entries: 3 }")?;
    check("the other way round", &[second.clone(), first.clone()], Some(6), "Replayed { entries: 3 }")?;
    check("the first only", std::slice::from_ref(&first), Some(4), "Replayed { entries: 1 }")?;
    check("a gap", std::slice::from_ref(&second), Some(3), "lack change 8")?;
    check("none", &[], Some(3), "do not have")?;
    let mut torn_log = second.clone();
    let last = torn_log.len() - 1;
    torn_log[last] ^= 1;
    check("a torn entry", &[first.clone(), torn_log], Some(5), "Replayed { entries: 2 }")?;
    // Nothing is applied to what is whole.
    let whole = open(steps[0].clone(), &[first])?;
    ensure!(*whole.state() == State::Whole && start(&whole) == Some(3));
    let mut damaged = steps[0].clone();
    damaged[200] ^= 1;
    ensure!(Hive::open(damaged, &[]).unwrap_err().contains("the sum is wrong"));
    ensure!(Hive::open(steps[0][..8000].to_vec(), &[]).unwrap_err().contains("cut off"));
    Ok(())
}

/// hivex, which has nothing to do with this reader or this writer.
#[test]
fn hivex_reads_what_is_written_here_and_what_it_writes_is_read() -> Result<()> {
    if !["/usr/bin/hivexsh", "/usr/bin/hivexget"].iter().all(|tool| Path::new(tool).exists()) {
        eprintln!("skipped: no hivexsh (Debian: libhivex-bin)");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let (file, script) = (folder.path().join("SYSTEM"), folder.path().join("script"));
    for list in [List::Li, List::Lf, List::Lh, List::Ri] {
        fs::write(&file, tree().hive(list))?;
        let said = run(Command::new("hivexget").arg(&file).args([r"\Services\alpha", "ImagePath"]))?;
        ensure!(said.contains(r"\SystemRoot\alpha.sys"), "{list:?}: {said}");
        let said = run(Command::new("hivexget").arg(&file).args([r"\Services\gamma", "Start"]))?;
        ensure!(said.contains('3'), "{list:?}: {said}");
    }
    // From an almost empty one it makes a whole registry.
    fs::write(&file, Tree::default().hive(List::Lh))?;
    let mut commands =
        String::from("add Select\ncd Select\nsetval 1\nCurrent\ndword:0x2\ncd \\\nadd ControlSet002\n");
    commands.push_str("cd ControlSet002\nadd Services\ncd Services\n");
    for number in 0..300 {
        commands.push_str(&format!("add Service{number:03}\n"));
    }
    commands.push_str(
        "cd Service123\nsetval 3\nStart\ndword:0x0\nImagePath\nexpandstring:System32\\drivers\\x.sys\n",
    );
    commands.push_str("Blob\nhex:3:01,02,03,04,05,06\ncommit\n");
    fs::write(&script, commands)?;
    run(Command::new("hivexsh").arg("-w").arg("-f").arg(&script).arg(&file))?;
    let hive = open(fs::read(&file)?, &[])?;
    ensure!(*hive.state() == State::Whole, "{:?}", hive.state());
    let key = r"controlset002\services\service123";
    let value = |key: &str, name: &str| hive.value(key, name).map_err(anyhow::Error::msg);
    ensure!(value("Select", "Current")?.and_then(|value| value.number()) == Some(2));
    ensure!(value(key, "Start")?.and_then(|value| value.number()) == Some(0));
    let image = value(key, "ImagePath")?.and_then(|value| value.text());
    ensure!(image.as_deref() == Some(r"System32\drivers\x.sys"), "{image:?}");
    ensure!(value(key, "blob")?.map(|value| value.data) == Some(vec![1, 2, 3, 4, 5, 6]));
    let services = hive.key(r"ControlSet002\Services").map_err(anyhow::Error::msg)?;
    let count =
        services.map(|key| key.children().map(Iterator::count)).transpose().map_err(anyhow::Error::msg)?;
    ensure!(count == Some(300), "{count:?}");
    Ok(())
}
