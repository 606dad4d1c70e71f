//! Images against QEMU's own tools, kills and a full disk.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use holdfast_common::{
    ids::{DiskId, PointId},
    units::BlockRange,
};
use holdfast_coordinator::{
    compute::{
        image::writer::ImageWriter,
        port::{ComputeError, DiskView, ImageFile, ImageFormat, ImageRequest, Task, WriteImage as _},
    },
    points::view::{BlockView, ViewError, ViewExtent},
};
use holdfast_tests::{
    memory_view::MemoryView,
    program::{installed, run_ok},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const DISK_BYTES: usize = (40 << 20) + 512 * 9;

fn request(folder: &Path, view: Arc<dyn BlockView>, format: ImageFormat) -> ImageRequest {
    ImageRequest {
        owner: "job-1".into(),
        point: PointId::from_bytes([1; 16]),
        disk: DiskView { disk: DiskId::from_bytes([2; 16]), name: "sda".into(), view },
        folder: folder.into(),
        format,
        update: false,
    }
}

fn write(request: ImageRequest) -> Result<ImageFile, ComputeError> {
    write_with(request, Arc::new(Task::default()))
}

fn write_with(request: ImageRequest, task: Arc<Task>) -> Result<ImageFile, ComputeError> {
    Runtime::new().unwrap().block_on(ImageWriter::new(2).write(request, task))
}

fn discard(folder: &Path, owner: &str) {
    let runtime = Runtime::new().unwrap();
    runtime.block_on(ImageWriter::new(2).discard(folder.into(), owner.into())).unwrap();
}

#[test]
fn images_equal_the_disk_and_keep_its_holes() {
    if !installed(&["qemu-img"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let view = Arc::new(MemoryView::patchy(11, DISK_BYTES));
    let raw = write(request(folder.path(), view.clone(), ImageFormat::Raw)).unwrap();
    assert!(fs::read(&raw.path).unwrap() == view.bytes());
    let allocated = fs::metadata(&raw.path).unwrap().blocks() * 512;
    assert!(allocated <= raw.data_bytes + 65536, "{allocated} allocated for {} of data", raw.data_bytes);
    assert!(raw.data_bytes < DISK_BYTES as u64);

    let qcow2 = write(request(folder.path(), view.clone(), ImageFormat::Qcow2)).unwrap();
    let (raw_path, path) = (raw.path.display().to_string(), qcow2.path.display().to_string());
    let checked = run_ok("qemu-img", &["check", "--output=json", &path]);
    let checked: serde_json::Value = serde_json::from_str(&checked).unwrap();
    assert_eq!(checked["check-errors"], 0, "{checked}");
    assert!(checked.get("leaks").is_none() && checked.get("corruptions").is_none(), "{checked}");
    assert_eq!(checked["allocated-clusters"], qcow2.data_bytes / 65536);
    let _text = run_ok("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &raw_path, &path]);
    let length = fs::metadata(&qcow2.path).unwrap().len();
    assert!(length <= qcow2.data_bytes + (1 << 20), "{length} for {} of data", qcow2.data_bytes);
}

#[test]
fn odd_disks_are_written_too() {
    if !installed(&["qemu-img"]) {
        return;
    }
    for (number, size) in [512, 65536, 65536 * 3 + 512, 0].into_iter().enumerate() {
        let folder = TempDir::new().unwrap();
        let view = Arc::new(MemoryView::patchy(number as u64, size));
        let raw = write(request(folder.path(), view.clone(), ImageFormat::Raw)).unwrap();
        assert!(fs::read(&raw.path).unwrap() == view.bytes(), "{size}");
        let qcow2 = write(request(folder.path(), view, ImageFormat::Qcow2)).unwrap();
        let path = qcow2.path.display().to_string();
        let _text = run_ok("qemu-img", &["check", &path]);
        let raw = raw.path.display().to_string();
        let _text = run_ok("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &raw, &path]);
    }
}

/// A terabyte with a little data at both ends and in the middle, so that tables lie far apart.
#[derive(Debug)]
struct Wide;

impl Wide {
    const BLOCKS: [u64; 3] = [0, 100_000_000, 268_435_455];
}

impl BlockView for Wide {
    fn size_bytes(&self) -> u64 {
        1 << 40
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ViewError> {
        for (at, block) in (offset / 4096..).zip(buffer.chunks_mut(4096)) {
            block.fill(if Self::BLOCKS.contains(&at) { 7 } else { 0 });
        }
        Ok(())
    }

    fn extents(&self, range: BlockRange) -> Result<Vec<ViewExtent>, ViewError> {
        let mut extents = Vec::new();
        let mut from = range.start.0;
        for block in Self::BLOCKS
            .into_iter()
            .filter(|block| range.contains(holdfast_common::units::BlockIndex(*block)))
        {
            if block > from {
                extents.push(ViewExtent { range: BlockRange::new(from, block - from), hole: true });
            }
            extents.push(ViewExtent { range: BlockRange::new(block, 1), hole: false });
            from = block + 1;
        }
        if from < range.end().0 {
            extents.push(ViewExtent { range: BlockRange::new(from, range.end().0 - from), hole: true });
        }
        Ok(extents)
    }
}

#[test]
fn a_wide_sparse_disk_costs_its_data() {
    if !installed(&["qemu-img", "qemu-io"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let image = write(request(folder.path(), Arc::new(Wide), ImageFormat::Qcow2)).unwrap();
    assert!(fs::metadata(&image.path).unwrap().len() < 1 << 20);
    let path = image.path.display().to_string();
    let _text = run_ok("qemu-img", &["check", &path]);
    for block in Wide::BLOCKS {
        let command = format!("read -P 7 {} 4096", block * 4096);
        let text = run_ok("qemu-io", &["-r", "-f", "qcow2", "-c", &command, &path]);
        assert!(!text.contains("failed"), "{text}");
    }
}

#[test]
fn damage_stops_an_image_and_names_the_range() {
    let folder = TempDir::new().unwrap();
    let view = MemoryView::patchy(12, DISK_BYTES).with_damage(BlockRange::new(5000, 1));
    let error = write(request(folder.path(), Arc::new(view), ImageFormat::Raw)).unwrap_err();
    assert!(matches!(error, ComputeError::View { source: ViewError::Damaged { .. }, .. }), "{error:?}");
    assert!(!folder.path().join("sda.raw").exists());
}

#[test]
fn only_own_files_are_touched() {
    let folder = TempDir::new().unwrap();
    let view: Arc<dyn BlockView> = Arc::new(MemoryView::patchy(13, 1 << 20));
    let image = folder.path().join("sda.raw");
    fs::write(&image, b"somebody's").unwrap();
    let error = write(request(folder.path(), view.clone(), ImageFormat::Raw)).unwrap_err();
    assert!(matches!(error, ComputeError::Exists { .. }), "{error:?}");
    discard(folder.path(), "job-1");
    assert_eq!(fs::read(&image).unwrap(), b"somebody's");
    fs::remove_file(&image).unwrap();

    let first = write(request(folder.path(), view.clone(), ImageFormat::Raw)).unwrap();
    let again = write(request(folder.path(), view.clone(), ImageFormat::Raw)).unwrap();
    assert_eq!(first, again, "repeated");
    let other = ImageRequest { owner: "job-2".into(), ..request(folder.path(), view, ImageFormat::Raw) };
    assert!(matches!(write(other), Err(ComputeError::Exists { .. })));
    discard(folder.path(), "job-2");
    assert!(image.exists());
    discard(folder.path(), "job-1");
    discard(folder.path(), "job-1");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// More than two checkpoints.
const SLOW_BYTES: u64 = 600 << 20;

/// A view that is slow enough to be interrupted; real bytes are made from the offset.
#[derive(Debug)]
struct Slow {
    pause: Duration,
}

impl BlockView for Slow {
    fn size_bytes(&self) -> u64 {
        SLOW_BYTES
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ViewError> {
        std::thread::sleep(self.pause);
        for (at, block) in (offset / 4096..).zip(buffer.chunks_mut(4096)) {
            block.fill(u8::try_from(at % 251).unwrap() | 1);
        }
        Ok(())
    }

    fn extents(&self, range: BlockRange) -> Result<Vec<ViewExtent>, ViewError> {
        Ok(vec![ViewExtent { range, hole: false }])
    }
}

/// Not a test by itself: the process that gets killed.
#[test]
fn image_child() {
    let Some(folder) = std::env::var_os("HOLDFAST_TEST_IMAGE_CHILD") else { return };
    let view = Arc::new(Slow { pause: Duration::from_millis(4) });
    write(request(Path::new(&folder), view, ImageFormat::Qcow2)).unwrap();
}

#[test]
fn a_killed_writer_is_continued() {
    if !installed(&["qemu-img"]) {
        return;
    }
    let folder = TempDir::new().unwrap();
    let record = folder.path().join("sda.qcow2.holdfast.json");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "image::image_child"])
        .env("HOLDFAST_TEST_IMAGE_CHILD", folder.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // Killed once something is durable, and long before the end.
    let written_to = loop {
        std::thread::sleep(Duration::from_millis(5));
        assert!(child.try_wait().unwrap().is_none(), "the child has ended too early");
        let Ok(bytes) = fs::read(&record) else { continue };
        let record: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let written_to = record["written_to"].as_u64().unwrap();
        if written_to > 0 {
            break written_to;
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    let image = folder.path().join("sda.qcow2");
    assert!(!image.exists());

    let task = Arc::new(Task::default());
    let view = Arc::new(Slow { pause: Duration::ZERO });
    let written = write_with(request(folder.path(), view, ImageFormat::Qcow2), task.clone()).unwrap();
    let progress = task.progress(Duration::from_secs(1));
    assert_eq!((progress.done_bytes, progress.total_bytes), (SLOW_BYTES, SLOW_BYTES));
    assert!(
        progress.bytes_per_second <= SLOW_BYTES - written_to * 65536,
        "what was there was not written again"
    );
    let path = written.path.display().to_string();
    let _text = run_ok("qemu-img", &["check", &path]);
    let raw = folder.path().join("check.raw");
    let _text = run_ok("qemu-img", &["convert", "-O", "raw", &path, &raw.display().to_string()]);
    let (mut file, mut block) = (fs::File::open(&raw).unwrap(), [0; 4096]);
    for at in 0..SLOW_BYTES / 4096 {
        file.read_exact(&mut block).unwrap();
        let expected = u8::try_from(at % 251).unwrap() | 1;
        assert!(block.iter().all(|byte| *byte == expected), "block {at}");
    }
}

#[test]
fn a_changed_tail_is_noticed() {
    let folder = TempDir::new().unwrap();
    let view = Arc::new(Slow { pause: Duration::ZERO });
    let task = Arc::new(Task::default());
    let written = write_with(request(folder.path(), view.clone(), ImageFormat::Raw), task).unwrap();
    // As if it had been interrupted at the end, and the file spoiled since.
    let record_path = folder.path().join("sda.raw.holdfast.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&record_path).unwrap()).unwrap();
    record["complete"] = false.into();
    fs::write(&record_path, serde_json::to_vec(&record).unwrap()).unwrap();
    let good = fs::read(&written.path).unwrap();
    let mut spoiled = good.clone();
    let end = spoiled.len();
    spoiled[end - 5000] ^= 1;
    fs::write(folder.path().join("sda.raw.partial"), spoiled).unwrap();
    fs::remove_file(&written.path).unwrap();
    write(request(folder.path(), view, ImageFormat::Raw)).unwrap();
    assert!(fs::read(&written.path).unwrap() == good);
}

#[test]
fn a_full_disk_is_said_and_continued() {
    let folder = TempDir::new().unwrap();
    let place = folder.path().display().to_string();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "tmpfs", &place]).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no small file system can be mounted (not root?)");
        return;
    }
    let unmount = unmounted_later(&place);
    let view: Arc<dyn BlockView> = Arc::new(MemoryView::patchy(14, 64 << 20));
    let error = write(request(folder.path(), view.clone(), ImageFormat::Raw)).unwrap_err();
    assert!(matches!(error, ComputeError::NoSpace { missing_bytes: 1.., .. }), "{error:?}");
    assert!(error.to_string().contains("retry"), "{error}");
    let _text = run_ok("mount", &["-o", "remount,size=128m", &place]);
    let image = write(request(folder.path(), view, ImageFormat::Raw)).unwrap();
    assert!(image.path.exists());
    drop(unmount);
}

/// Unmounts when it goes.
struct Unmount(String);

fn unmounted_later(place: &str) -> Unmount {
    Unmount(place.into())
}

impl Drop for Unmount {
    fn drop(&mut self) {
        let _status = Command::new("umount").arg(&self.0).status();
    }
}
