//! Images brought from one point to another: equal to fresh ones, also when the writer is killed on the way.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use holdfast_common::{
    entropy::{Entropy as _, SeededEntropy},
    frame::Extent,
    ids::{PointId, Sequence},
    units::{BLOCK_BYTES, BlockRange},
};
use holdfast_coordinator::{
    compute::{
        image::writer::ImageWriter,
        port::{ComputeError, DiskView, ImageFile, ImageFormat, ImageRequest, Task, WriteImage as _},
    },
    index::DiskIndex,
    store::StoreSettings,
};
use holdfast_tests::{
    history::{self, HistoryWriter},
    program::{installed, run_ok},
};
use tempfile::TempDir;

const BLOCKS: u64 = 1 << 16;
/// The last block is a partial one.
const SIZE: u64 = BLOCKS * BLOCK_BYTES as u64 - 1000;

type Cut = (PointId, Sequence);

/// A disk of 256 MiB: a full copy, then random writes, zeroes among them; three points.
fn scenery(folder: &Path) -> Vec<Cut> {
    let entropy = SeededEntropy::new(5);
    let mut writer = HistoryWriter::create(folder, SIZE, StoreSettings::default()).unwrap();
    let mut plain = vec![0; 16 * BLOCK_BYTES];
    let mut cuts = Vec::new();
    for start in (0..BLOCKS).step_by(16) {
        // A third is never written.
        if start / 16 % 3 != 2 {
            entropy.fill(&mut plain[..2 * BLOCK_BYTES]);
            writer.write(&[Extent::data(BlockRange::new(start, 16))], &plain).unwrap();
        }
    }
    cuts.push(writer.cut().unwrap());
    for _ in 0..2 {
        for _ in 0..1500 {
            let at = entropy.next_u64() % (BLOCKS - 64);
            let extents = [
                Extent::data(BlockRange::new(at, 1)),
                Extent::zero(BlockRange::new(at + 2, 20)),
                Extent::data(BlockRange::new(at + 30, 3)),
            ];
            entropy.fill(&mut plain[..100]);
            writer.write(&extents, &plain[..4 * BLOCK_BYTES]).unwrap();
        }
        writer.write(&[Extent::data(BlockRange::new(BLOCKS - 1, 1))], &plain[..BLOCK_BYTES]).unwrap();
        cuts.push(writer.cut().unwrap());
    }
    writer.finish().unwrap();
    cuts
}

fn write(
    index: &Arc<DiskIndex>,
    (point, cut): Cut,
    (folder, format): (PathBuf, ImageFormat),
    update: Option<&str>,
) -> Result<(ImageFile, u64), ComputeError> {
    let view = Arc::new(history::view(index, cut));
    let disk = DiskView { disk: history::DISK, name: "sda".into(), view };
    let owner = update.unwrap_or("first").to_owned();
    let request = ImageRequest { owner, point, disk, folder, format, update: update.is_some() };
    let task = Arc::new(Task::default());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let image = runtime.block_on(ImageWriter::new(2).write(request, Arc::clone(&task)))?;
    let progress = task.progress(Duration::from_secs(1));
    assert_eq!(progress.done_bytes, progress.total_bytes);
    Ok((image, progress.done_bytes))
}

/// Whether two images hold the same, and whether QEMU finds nothing wrong with either.
fn same(left: &Path, right: &Path) -> bool {
    if left.extension().is_some_and(|format| format == "raw") {
        return fs::read(left).unwrap() == fs::read(right).unwrap();
    }
    for image in [left, right] {
        let _text = run_ok("qemu-img", &["check", &image.display().to_string()]);
    }
    let images = [left, right].map(|path| path.display().to_string());
    let compared =
        Command::new("qemu-img").args(["compare", "-f", "qcow2", "-F", "qcow2"]).args(images).output();
    compared.unwrap().status.success()
}

/// The formats that can be checked here.
fn formats() -> Vec<ImageFormat> {
    let mut formats = vec![ImageFormat::Raw];
    if installed(&["qemu-img"]) {
        formats.push(ImageFormat::Qcow2);
    }
    formats
}

#[test]
fn an_updated_image_equals_a_fresh_one_and_costs_what_differs() {
    let folder = TempDir::new().unwrap();
    let cuts = scenery(&folder.path().join("store"));
    let (_store, log) = history::open(&folder.path().join("store"), StoreSettings::default()).unwrap();
    let index = history::index(&log);
    for format in formats() {
        let place = |name: &str| (folder.path().join(name), format);
        let fresh: Vec<PathBuf> = cuts
            .iter()
            .enumerate()
            .map(|(number, cut)| write(&index, *cut, place(&number.to_string()), None).unwrap().0.path)
            .collect();
        let (image, _) = write(&index, cuts[0], place("x"), None).unwrap();
        // Forwards over two points, back by one, and to where it is.
        for (step, target) in [2, 1, 1].into_iter().enumerate() {
            let owner = format!("job-{step}");
            let (updated, bytes) = write(&index, cuts[target], place("x"), Some(&owner)).unwrap();
            assert_eq!(updated.path, image.path);
            assert!(same(&updated.path, &fresh[target]), "{format:?} to point {target}");
            assert!(!same(&updated.path, &fresh[0]), "they differ at all");
            assert!(bytes < SIZE / 4 * 3, "{bytes} bytes were written");
        }
        // Zeroes are holes again, not only zero, and tables that are of no use any more.
        let allocated = |path: &Path| std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).unwrap());
        assert!(allocated(&image.path) <= allocated(&fresh[1]) + 1024, "{format:?}");
    }
}

#[test]
fn only_an_unchanged_image_of_the_same_disk_is_updated() {
    let folder = TempDir::new().unwrap();
    let cuts = scenery(&folder.path().join("store"));
    let (_store, log) = history::open(&folder.path().join("store"), StoreSettings::default()).unwrap();
    let index = history::index(&log);
    let place = (folder.path().join("x"), ImageFormat::Raw);
    let (image, _) = write(&index, cuts[0], place.clone(), None).unwrap();
    let refused = |cut: Cut, what: &str| {
        let error = write(&index, cut, place.clone(), Some("job-2")).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert!(image.path.exists());
    };
    let record = folder.path().join("x/sda.raw.holdfast.json");
    let good = fs::read_to_string(&record).unwrap();
    let other_disk = good.replace(&history::DISK.to_string(), "00000000-0000-0000-0000-000000000001");
    fs::write(&record, other_disk).unwrap();
    refused(cuts[1], "another disk");
    let other_point = PointId::from_bytes([7; 16]).to_string();
    fs::write(&record, good.replace(&cuts[0].0.to_string(), &other_point)).unwrap();
    refused(cuts[1], "no longer in the history");
    fs::write(&record, &good).unwrap();
    let file = fs::File::options().write(true).open(&image.path).unwrap();
    file.set_modified(std::time::SystemTime::now()).unwrap();
    refused(cuts[1], "was changed since");
    refused(cuts[0], "was changed since");
    let fresh = write(&index, cuts[0], place.clone(), None);
    assert!(fresh.is_ok(), "its owner still finds it");
}

/// Not a test by itself: the process that gets killed.
#[test]
fn update_child() {
    let Some(folder) = std::env::var_os("HOLDFAST_TEST_UPDATE_CHILD") else { return };
    let qcow2 = std::env::var_os("HOLDFAST_TEST_UPDATE_FORMAT").is_some_and(|format| format == "Qcow2");
    let format = if qcow2 { ImageFormat::Qcow2 } else { ImageFormat::Raw };
    let folder = Path::new(&folder);
    let (_store, log) = history::open(&folder.join("store"), StoreSettings::default()).unwrap();
    let index = history::index(&log);
    let cut = index.cuts()[2].clone();
    write(&index, (cut.record.point, cut.sequence), (folder.join("x"), format), Some("job-2")).unwrap();
}

#[test]
fn a_killed_update_is_continued_and_never_called_complete() {
    for format in formats() {
        killed_updates(format);
    }
}

fn killed_updates(format: ImageFormat) {
    let folder = TempDir::new().unwrap();
    let cuts = scenery(&folder.path().join("store"));
    let place = |name: &str| (folder.path().join(name), format);
    let (image, fresh) = {
        let (_store, log) = history::open(&folder.path().join("store"), StoreSettings::default()).unwrap();
        let index = history::index(&log);
        let fresh = write(&index, cuts[2], place("fresh"), None).unwrap().0.path;
        (write(&index, cuts[0], place("x"), None).unwrap().0.path, fresh)
    };
    let mut killed_half = 0;
    for round in 0..12 {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "update::update_child", "--nocapture"])
            .env("HOLDFAST_TEST_UPDATE_CHILD", folder.path())
            .env("HOLDFAST_TEST_UPDATE_FORMAT", format!("{format:?}"))
            .stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        // From the moment on at which the image has lost its name; a little later each time.
        while image.exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_millis(round * 4));
        child.kill().unwrap();
        child.wait().unwrap();
        if image.exists() {
            assert!(same(&image, &fresh), "an image with its name is complete");
            break;
        }
        killed_half += 1;
    }
    assert!(killed_half > 0, "the first kill came too late");
    let (_store, log) = history::open(&folder.path().join("store"), StoreSettings::default()).unwrap();
    let index = history::index(&log);
    let (updated, bytes) = write(&index, cuts[2], place("x"), Some("job-2")).unwrap();
    assert!(same(&updated.path, &fresh));
    assert!(bytes <= SIZE, "{bytes}");
}
