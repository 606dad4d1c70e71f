//! The agent's engine with real loop devices, tracking and freezing; only the network is replaced, by a double that applies
//! frames to a replica in memory. At each cut the whole device is hashed while it is held, and the replica must be equal.

mod double;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use holdfast_common::frame::CutMethod;
use holdfast_tests::{
    file_system::{Kind, MountedDisk},
    loop_device::{self, LoopDevice},
};

use double::Rig;

const DISK_BYTES: u64 = 96 << 20;

fn skipped() -> bool {
    let reason = loop_device::unavailable();
    if let Some(reason) = &reason {
        eprintln!("skipped: {reason}");
    }
    reason.is_some()
}

/// Writes to files or a device until dropped.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Writer {
    fn start(mut write: impl FnMut(u64) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let work = move || {
            let mut number = 0;
            while !seen.load(Ordering::Relaxed) {
                number += 1;
                write(number);
            }
        };
        Self { stop, thread: Some(thread::spawn(work)) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A position among `among` that looks random.
fn scatter(number: u64, among: u64) -> u64 {
    ((number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) & 0xffff_ffff) % among.max(1)
}

#[test]
fn every_point_of_a_busy_ext4_equals_the_frozen_disk() {
    if skipped() {
        return;
    }
    let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES).expect("ext4 on a loop device");
    let folder = disk.folder().to_owned();
    let _writer = Writer::start(move |number| {
        let path = folder.join(format!("file-{}", number % 40));
        let size = 1 + usize::try_from(scatter(number, 60_000)).unwrap_or(0) % 60_000;
        let content = vec![u8::try_from(number % 251).unwrap_or(0) + 1; size];
        fs::write(&path, content).expect("a file");
        if number.is_multiple_of(7) {
            let _ = fs::remove_file(&path);
        }
        if number.is_multiple_of(3) && path.exists() {
            File::open(&path).and_then(|file| file.sync_all()).expect("fsync");
        }
        thread::sleep(Duration::from_millis(2));
    });
    let mut rig = Rig::start(&[disk.device.path()], Duration::from_secs(1));
    rig.wait_for_points(5);
    rig.kill_and_restart();
    let points = rig.wait_for_points(10);
    assert!(points.iter().all(|point| point.record.method == CutMethod::Freeze));
    assert!(points.iter().all(|point| point.is_equal), "a point differs from the frozen disk");
    let holds: Vec<u64> = points.iter().map(|point| point.record.hold_us).collect();
    eprintln!("hold of each cut in microseconds: {holds:?}; void: {:?}", rig.voids());
}

#[test]
fn a_raw_disk_is_cut_while_its_writer_pauses() {
    if skipped() {
        return;
    }
    let device = LoopDevice::create(DISK_BYTES).expect("a loop device");
    let file = File::options().write(true).open(device.path()).expect("the device");
    let _writer = Writer::start(move |number| {
        let block = scatter(number, DISK_BYTES / 4096);
        file.write_all_at(&[u8::try_from(number % 255).unwrap_or(0); 4096], block * 4096).expect("a write");
        if number.is_multiple_of(200) {
            file.sync_data().expect("fdatasync");
            // Long enough for this test to hash the disk after the cut, also on a busy machine.
            thread::sleep(Duration::from_secs(3));
        }
    });
    let mut rig = Rig::start(&[device.path()], Duration::from_secs(1));
    let points = rig.wait_for_points(4);
    assert!(points.iter().all(|point| point.record.method == CutMethod::QuietWindow));
    assert!(points.iter().all(|point| point.is_equal), "a point differs from the disk at rest");
}

#[test]
fn an_image_file_without_root_is_cut_when_it_does_not_change() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.img");
    fs::write(&path, vec![7; 3 << 20]).expect("an image");
    let file = File::options().write(true).open(&path).expect("the image");
    file.set_len(8 << 20).expect("a hole");
    let mut rig = Rig::start(&[&path], Duration::from_secs(1));
    rig.wait_for_points(1);
    file.write_all_at(b"changed", 5 << 20).expect("a write");
    let before = rig.points().len();
    let points = rig.wait_for_points(before + 2);
    assert!(points.iter().all(|point| point.record.method == CutMethod::Unchanged && point.is_equal));
    rig.kill_and_restart();
    file.write_all_at(b"again", 6 << 20).expect("a write");
    let before = rig.points().len();
    let points = rig.wait_for_points(before + 2);
    assert!(points.iter().all(|point| point.is_equal));
    assert!(rig.generation() > 1, "a new process compares anew");
}
