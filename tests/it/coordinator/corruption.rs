//! Damage to each kind of file in the data folder: whatever happens to it, no byte of a point is wrong, the trouble is named,
//! and what does not depend on the file goes on.
//!
//! Kinds are found: a new file of the folder is damaged here without anybody's doing, and must be listed besides. Which files, which bytes
//! and how follows from a seed; `HOLDFAST_TEST_FAULTS=all` does all kinds of damage to all kinds of files.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_common::entropy::{Entropy as _, SeededEntropy};
use holdfast_tests::{
    asked, file_kinds,
    file_system::run,
    site::{Site, wait_for},
};
use serde_json::Value;
use tempfile::TempDir;

use super::{Link, PATIENCE, processed};

/// Coordinators that run at a time.
const WORKERS: usize = 2;
/// Bytes of a branch that say of themselves whether they are whole; what clients wrote behind them is theirs.
const BRANCH_HEADER_BYTES: u64 = 96;

/// What happens to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    /// One bit is another.
    Flip,
    /// Its end is missing.
    Cut,
    /// Half a kilobyte is zero.
    Zero,
    /// Nothing is in it.
    Empty,
    /// It is something else.
    Noise,
    /// It is gone.
    Gone,
}

const DAMAGES: [Damage; 6] =
    [Damage::Flip, Damage::Cut, Damage::Zero, Damage::Empty, Damage::Noise, Damage::Gone];

/// Does it; `within` bounds the bytes that are changed.
fn harm(path: &Path, damage: Damage, within: u64, entropy: &SeededEntropy) -> Result<()> {
    let bytes = fs::metadata(path)?.len().min(within);
    let at = entropy.next_u64() % bytes.max(1);
    let file = fs::File::options().read(true).write(true).open(path)?;
    match damage {
        Damage::Flip => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at)?;
            file.write_all_at(&[byte[0] ^ 1 << (entropy.next_u64() % 8)], at)?;
        }
        Damage::Cut => file.set_len(at)?,
        Damage::Zero => file.write_all_at(&vec![0; usize::try_from((bytes - at).min(512))?], at)?,
        Damage::Empty => file.set_len(0)?,
        Damage::Noise => {
            let mut noise = vec![0; usize::try_from(bytes)?];
            blake3::Hasher::new().update(&at.to_le_bytes()).finalize_xof().fill(&mut noise);
            file.write_all_at(&noise, 0)?;
        }
        Damage::Gone => fs::remove_file(path)?,
    }
    Ok(())
}

/// A machine and what its points hold.
struct Known {
    machine: &'static str,
    /// Its id and that of its disk, which stand in the names of its files.
    ids: [String; 2],
    points: Vec<(String, Vec<u8>)>,
}

/// A data folder of a coordinator that has ended, and what was in it.
struct Template {
    folder: TempDir,
    known: Vec<Known>,
}

impl Template {
    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Two machines with points, and everything that an operator leaves in the folder.
    fn make() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("data");
        let mut site = Site::start_at("127.0.0.1", Some(&data))?;
        let mut known = Vec::new();
        for (number, machine) in (1u8..).zip(["web-1", "db-1"]) {
            let mut link = Link::open_as(&site, &folder.path().join(machine), machine)?;
            let mut points = Vec::new();
            for step in 0..3 {
                link.write(3, number * 16 + step)?;
                link.write(usize::from(step) + 4, number * 16 + step)?;
                if step == 0 {
                    link.scanned()?;
                }
                points.push((link.cut()?, link.content.clone()));
            }
            processed(&site, machine, &points.last().context("a point")?.0)?;
            link.runtime.block_on(link.handle.shutdown());
            let id = site.cli(&["machine", "show", machine])?["id"].as_str().context("id")?.to_owned();
            known.push(Known { machine, ids: [id, link.disk.disk.to_string()], points });
        }
        site.cli(&["operator", "create", "anna", "--role", "viewer"])?;
        let plan = folder.path().join("shop.toml");
        fs::write(&plan, "name = \"shop\"\n[[group]]\nname = \"all\"\nmachines = [\"web-1\"]\n")?;
        site.cli(&["plan", "apply", &plan.display().to_string()])?;
        site.cli(&["test-failover", "web-1", "--point", "latest", "--attach", "--writable"])?;
        site.cli(&["scrub", "start", "web-1"])?;
        // What is kept is recorded in rounds, of which one is at the start.
        site.stop_coordinator()?;
        site.start_coordinator()?;
        wait_for("all kinds of files to be there", PATIENCE, || {
            let kinds = kinds(&data)?;
            let there = |name: &str| kinds.keys().any(|kind| kind.contains(name));
            Ok(["kept.copy", "readiness/", "checks.json"].into_iter().all(there).then_some(()))
        })?;
        site.stop_coordinator()?;
        // What only a bad day leaves.
        let [machine, disk] = &known[0].ids;
        let beside = |name: &str| format!("store/disks/{disk}/{name}");
        for (file, text) in [
            (format!("drills/{machine}.json"), r#"{"version":1,"drills":[]}"#),
            (beside("audit.json"), r#"{"version":1,"pass":null,"last":null}"#),
            (beside("damaged.json"), "[99999999]"),
            (beside("differs.json"), r#"{"version":1,"differences":[],"alarm":null,"overflowed":false}"#),
        ] {
            fs::write(data.join(file), text)?;
        }
        Ok(Self { folder, known })
    }
}

/// The files below a folder by their kind: the path, with `*` for whatever has an id or a number in it.
fn kinds(data: &Path) -> Result<BTreeMap<String, Vec<PathBuf>>> {
    let mut kinds: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && entry.file_name() != "lock" {
                let path = entry.path();
                let words = path.strip_prefix(data)?.to_string_lossy().replace('.', "/.");
                let general = |word: &str| {
                    let id = word.len() >= 8 && word.bytes().filter(u8::is_ascii_digit).count() > 2;
                    if id { "*".to_owned() } else { word.to_owned() }
                };
                let name: Vec<String> = words.split('/').map(general).collect();
                kinds.entry(name.join("/").replace("/.", ".")).or_default().push(path);
            }
        }
    }
    kinds.values_mut().for_each(|files| files.sort());
    Ok(kinds)
}

/// Copies a point out of a coordinator. A refusal is given, bytes that are wrong are an error.
fn get(site: &Site, machine: &str, point: &str, expected: &[u8]) -> Result<Option<String>> {
    let folder = tempfile::tempdir()?;
    match site.copy_point(machine, point, folder.path()) {
        Err(error) => Ok(Some(format!("{error:#}"))),
        Ok(copies) => {
            let (_, copy) = copies.first().context("a disk")?;
            ensure!(fs::read(copy)? == expected, "point {point} of {machine} has wrong bytes");
            Ok(None)
        }
    }
}

/// Whether the log warns here.
fn is_alarm(line: &str) -> bool {
    line.contains("WARN") || line.contains("ERROR")
}

/// What status says that is wrong, one line each.
fn reasons(status: &Value) -> Vec<&str> {
    match status {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(name, value)| match value {
                Value::String(reason) if name == "reason" => vec![reason.as_str()],
                value => reasons(value),
            })
            .collect(),
        Value::Array(values) => values.iter().flat_map(reasons).collect(),
        _ => Vec::new(),
    }
}

/// Whether a file is there twice: from what is left, it is made again as it was.
fn is_copied(relative: &Path) -> bool {
    let of_catalog = ["machines", "operators.json", "plans"].iter().any(|name| relative.starts_with(name));
    of_catalog || relative.ends_with("kept") || relative.ends_with("kept.copy")
}

/// Whether a file is read on a bad day only.
fn is_beside(relative: &Path) -> bool {
    let is_record = relative.extension().is_some_and(|extension| extension == "json");
    is_record || is_copied(relative)
}

/// Whether a damaged file still says something: JSON has no digest, and a file that need not be there says nothing by being gone.
fn says_something(relative: &Path, path: &Path, damage: Damage) -> bool {
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    match damage {
        Damage::Flip => {
            is_json && fs::read(path).is_ok_and(|left| serde_json::from_slice::<Value>(&left).is_ok())
        }
        Damage::Gone => !is_copied(relative),
        _ => false,
    }
}

/// Damages one file of a copy and looks at what a coordinator makes of it; gives that for people.
fn judge(template: &Template, relative: &Path, damage: Damage, entropy: &SeededEntropy) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    run(Command::new("cp").arg("-a").arg(template.data()).arg(&data))?;
    let within = if relative.starts_with("branches") { BRANCH_HEADER_BYTES } else { u64::MAX };
    let path = data.join(relative);
    harm(&path, damage, within, entropy)?;
    let must_be_named = is_beside(relative) && !says_something(relative, &path, damage);
    let name = relative.file_name().context("a name")?.to_string_lossy().into_owned();
    let site = match Site::start_at("127.0.0.1", Some(&data)) {
        Ok(site) => site,
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(said.contains("ended by itself") && !said.contains("panicked"), "{said}");
            let named = said.contains(&name) || name == "catalog.sqlite" && said.contains("the catalog");
            ensure!(named, "it ends without naming {name}: {said}");
            return Ok(format!("refused: {}", said.lines().last().unwrap_or_default()));
        }
    };
    ensure!(
        !(relative.starts_with("authority") && damage == Damage::Gone),
        "it is another CA without {name}"
    );
    let mut lost = Vec::new();
    for known in &template.known {
        let others = template.known.iter().filter(|other| other.machine != known.machine);
        let is_of_another =
            others.flat_map(|other| &other.ids).any(|id| relative.to_string_lossy().contains(id));
        let listed = site.points(known.machine).unwrap_or_default();
        for (point, content) in &known.points {
            let trouble = if listed.iter().any(|found| found.id == *point) {
                get(&site, known.machine, point, content)?
            } else {
                Some("the point is missing".to_owned())
            };
            if let Some(trouble) = trouble {
                ensure!(!is_of_another, "{} was hit: {trouble}", known.machine);
                lost.push(format!("{}: {trouble}", known.machine));
            }
        }
    }
    let status = site.cli(&["status"])?;
    let reasons = reasons(&status).join("\n");
    let log = site.log();
    ensure!(!log.contains("panicked"), "{log}");
    let alarms: Vec<&str> = log.lines().filter(|line| is_alarm(line)).collect();
    let alarms = alarms.join("\n");
    if must_be_named {
        ensure!(reasons.contains(&name), "status does not name {name}: {status}");
        ensure!(alarms.contains(&name), "the log does not name {name}: {log}");
    }
    if is_copied(relative) {
        ensure!(fs::read(&path)? == fs::read(template.data().join(relative))?, "{name} is not as it was");
    }
    // Part of a log is named by its disk.
    let of_disk = template
        .known
        .iter()
        .flat_map(|known| &known.ids)
        .filter(|id| relative.to_string_lossy().contains(*id));
    let mut words = of_disk.chain([&name]);
    let named = words.any(|word| reasons.contains(word) || alarms.contains(word));
    ensure!(lost.is_empty() || named, "{lost:?}, and {name} is not named: {status}\n{log}");
    Ok(if lost.is_empty() { format!("all points right, named: {named}") } else { lost.join("; ") })
}

#[test]
fn damage_to_any_kind_of_file_gives_no_wrong_byte_and_is_named() -> Result<()> {
    let seed = asked::seed();
    let entropy = SeededEntropy::new(seed);
    let below = |limit: usize| usize::try_from(entropy.next_u64() % limit.max(1) as u64).unwrap_or(0);
    let all = asked::all_faults();
    let template = Template::make()?;
    let data = template.data();
    let kinds = kinds(&data)?;
    // The list is for those who have to cover every kind, as the fixtures of old formats do.
    let found: Vec<&str> = kinds.keys().map(String::as_str).collect();
    ensure!(found == file_kinds::DATA_FOLDER, "{found:?} is not what is listed");
    let mut cases = Vec::new();
    for (kind, files) in &kinds {
        let damages = if all { DAMAGES.to_vec() } else { vec![DAMAGES[below(DAMAGES.len())]] };
        for damage in damages {
            let file = files.get(below(files.len())).context("a file")?;
            cases.push((kind, file.strip_prefix(&data)?, damage, SeededEntropy::new(entropy.next_u64())));
        }
    }
    let next = Mutex::new(cases.iter());
    let wrong = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let case = next.lock().unwrap().next();
                    let Some((kind, file, damage, entropy)) = case else { return };
                    match judge(&template, file, *damage, entropy) {
                        Ok(said) => eprintln!("{damage:?} in {kind}: {said}"),
                        Err(error) => wrong.lock().unwrap().push(format!("{damage:?} in {kind}: {error:#}")),
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}
