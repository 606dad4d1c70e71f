//! A whole coordinator under losses of power, while operators and machines come and plans change: whatever was answered is there at
//! the next start, in the catalog and in the copies from which a catalog is made again.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::run,
    loop_device::LoopDevice,
    site::{Site, program},
};
use serde_json::Value;

use super::{WORK, disk, lose_power};

/// What was answered, in order: which list it is in, and what is there.
type Answered = Mutex<Vec<(&'static str, String)>>;

/// Has the coordinator do one thing after the other.
fn operate(
    site: &Site,
    scratch: &Path,
    answered: &Answered,
    known: &AtomicU64,
    done: &AtomicBool,
) -> Result<()> {
    let machine = site.only_machine()?;
    for number in 0_u64.. {
        if done.load(Ordering::SeqCst) {
            return Ok(());
        }
        let name = format!("n-{number}");
        let what = match number % 3 {
            1 => {
                site.cli(&["operator", "create", &name, "--role", "viewer"])?;
                ("operators", name)
            }
            2 => {
                let path = scratch.join("plan.toml");
                let machines = format!("machines = [\"{machine}\"]");
                fs::write(&path, format!("name = \"{name}\"\n[[group]]\nname = \"all\"\n{machines}\n"))?;
                site.cli(&["plan", "apply", &path.display().to_string()])?;
                ("plans", name)
            }
            _ => {
                let token = site.cli(&["token", "create"])?["token"].as_str().context("a token")?.to_owned();
                let state = scratch.join(name);
                let enrol = ["enroll", "--coordinator", site.reach(), "--token", &token];
                run(Command::new(program("holdfast-agent")).arg("--state").arg(&state).args(enrol))?;
                let identity: Value = serde_json::from_slice(&fs::read(state.join("identity.json"))?)?;
                ("machines", identity["machine"].as_str().context("its id")?.to_owned())
            }
        };
        answered.lock().unwrap().push(what);
        known.store(number + 1, Ordering::SeqCst);
    }
    Ok(())
}

/// Names and ids of everything in a list of the coordinator.
fn listed(site: &Site, list: &str) -> Result<BTreeSet<String>> {
    let command: &[&str] = match list {
        "operators" => &["operator", "list"],
        "plans" => &["plan", "list"],
        list => &[list],
    };
    let found = site.cli(command)?;
    let entries = found.as_array().with_context(|| format!("{list}: {found}"))?;
    let words =
        entries.iter().flat_map(|entry| ["name", "id"].map(|field| entry[field].as_str().map(str::to_owned)));
    Ok(words.flatten().collect())
}

/// All that was answered is there.
fn check(site: &Site, answered: &[(&'static str, String)]) -> Result<()> {
    for list in ["operators", "plans", "machines"] {
        let found = listed(site, list)?;
        let of_list = answered.iter().filter(|(of, _)| *of == list);
        let missing = of_list.map(|(_, name)| name).find(|name| !found.contains(*name));
        ensure!(missing.is_none(), "{missing:?} was acknowledged, and is not in {list}: {found:?}");
    }
    Ok(())
}

fn judge(data: &Path, answered: &[(&'static str, String)], fingerprint: &str) -> Result<()> {
    // A catalog that is lost at the same time is made again from the copies as they are.
    let elsewhere = tempfile::tempdir()?;
    let copy = elsewhere.path().join("data");
    run(Command::new("cp").arg("-a").arg(data).arg(&copy))?;
    run(Command::new(program("holdfast-coordinator")).arg("rebuild-catalog").arg("--data").arg(&copy))?;
    check(&Site::start_at("127.0.0.1", Some(&copy))?, answered).context("made again from the copies")?;
    let site = Site::start_at("127.0.0.1", Some(data))?;
    check(&site, answered)?;
    let status = site.cli(&["status"])?;
    let findings = status["findings"].as_array().context("findings")?;
    // What was not answered yet may be in the catalog and not in a copy; that there is little space is so. No file is damaged.
    let reasons = findings.iter().filter_map(|finding| finding["reason"].as_str());
    let strange = reasons
        .filter(|reason| reason.contains("cannot be"))
        .find(|reason| !reason.contains("it is missing"));
    ensure!(strange.is_none(), "{strange:?}");
    ensure!(self::fingerprint(data)? == fingerprint, "it is another CA");
    Ok(())
}

fn fingerprint(data: &Path) -> Result<String> {
    Ok(blake3::hash(&fs::read(data.join("authority/authority.crt"))?).to_string())
}

#[test]
fn a_coordinator_has_answered_nothing_that_it_forgets_with_power() -> Result<()> {
    let Some((mount, disk)) = disk()? else { return Ok(()) };
    let scratch = tempfile::tempdir()?;
    let data = mount.join(WORK);
    let site = Site::start_at("127.0.0.1", Some(&data))?;
    let fingerprint = fingerprint(&data)?;
    // Plans are of protected machines.
    let protected = LoopDevice::create(1 << 20)?;
    let agent = site.add_agent()?;
    site.protect(&site.only_machine()?, &[protected.path()], "1h")?;
    let (answered, known, done) = (Answered::default(), Arc::new(AtomicU64::new(0)), AtomicBool::new(false));
    thread::scope(|scope| {
        let operator = scope.spawn(|| operate(&site, scratch.path(), &answered, &known, &done));
        let mut going_on = || {
            ensure!(!operator.is_finished(), "the operator has stopped");
            Ok(())
        };
        let judge = |data: &Path, acknowledged: u64| {
            let count = usize::try_from(acknowledged)?;
            let answered = answered.lock().unwrap()[..count].to_vec();
            judge(data, &answered, &fingerprint)
        };
        let lost = lose_power(&disk, site.process_id(), &known, &mut going_on, &judge);
        done.store(true, Ordering::SeqCst);
        let operated = operator.join().unwrap();
        operated.and(lost)
    })?;
    drop(agent);
    drop(site);
    drop(mount);
    Ok(())
}
