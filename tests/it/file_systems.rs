//! Real file systems under load: every attached point passes a file system check after journal replay, and mounts.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::{Kind, MountPoint, MountedDisk, run},
    loop_device::{self, LoopDevice},
    protected::Protected,
    site::Site,
};

/// Points looked at per file system.
const POINTS: usize = 4;

/// Writers that run until dropped: fio with buffered and direct writes, and a tree of many small files that is made,
/// changed and deleted as a compilation of a kernel does. Some 10 MB/s in all, which a debug build on a busy machine keeps up
/// with.
struct Writers(Vec<Child>);

impl Writers {
    fn start(folder: &Path) -> Result<Self> {
        let fio = |name: &str, more: &[&str]| {
            Command::new("fio")
                // Threads, since processes that fio forks would outlive it when it is killed.
                .args(["--thread", "--name", name, "--size=48m", "--bs=4k-64k", "--rw=randwrite"])
                .args(["--time_based", "--runtime=600", "--rate_iops=100", "--norandommap", "--directory"])
                .arg(folder)
                .args(more)
                .stdout(Stdio::null())
                .spawn()
                .context("starting fio")
        };
        let tree = "i=0; while :; do d=tree/$((i % 40)); mkdir -p $d; \
            for f in 1 2 3 4 5 6 7 8; do head -c $((f * 700)) /dev/urandom > $d/$f.o; mv $d/$f.o $d/$f.c; done; \
            [ $((i % 7)) = 0 ] && rm -rf tree/$(((i + 20) % 40)); i=$((i + 1)); sleep 0.05; done";
        let tree = Command::new("sh").args(["-c", tree]).current_dir(folder).stderr(Stdio::null()).spawn()?;
        Ok(Self(vec![
            fio("buffered", &["--fsync=64"])?,
            fio("direct", &["--direct=1", "--ioengine=libaio"])?,
            tree,
        ]))
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ended = child.kill().and_then(|()| child.wait());
        }
    }
}

#[test]
fn ext4_points_pass_e2fsck() -> Result<()> {
    points_are_clean(Kind::Ext4)
}

#[test]
fn xfs_points_pass_xfs_repair() -> Result<()> {
    points_are_clean(Kind::Xfs)
}

/// A flush that has nothing to write reaches a frozen disk, and the kernel counts it among the writes. Databases make many.
#[test]
fn who_flushes_a_clean_file_does_not_void_cuts() -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let disk = MountedDisk::create(Kind::Ext4, 64 << 20)?;
    let protected = Protected::start(&[disk.device.path()])?;
    let path = disk.folder().join("clean");
    fs::write(&path, b"written once")?;
    protected.wait_for_points(1)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let flusher = scope.spawn(|| -> Result<u64> {
            let (file, mut flushes) = (fs::File::open(&path)?, 0);
            while !stop.load(SeqCst) {
                file.sync_all()?;
                flushes += 1;
            }
            Ok(flushes)
        });
        let made = protected.points()?.len();
        let waited = protected.wait_for_points(made + 6);
        stop.store(true, SeqCst);
        let flushes = flusher.join().map_err(|_| anyhow::anyhow!("the flusher panicked"))??;
        ensure!(waited.is_ok() && flushes > 1000, "{flushes} flushes; {waited:?}");
        Ok(())
    })?;
    let voided = protected.site.cli(&["points", &protected.machine])?["voided_cuts"].clone();
    ensure!(voided == serde_json::json!([]), "{voided}");
    Ok(())
}

fn points_are_clean(kind: Kind) -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let disk = MountedDisk::create(kind, 512 << 20)?;
    let site = Site::start()?;
    let agent = site.add_agent()?;
    let machine = site.only_machine()?;
    let writers = Writers::start(disk.folder())?;
    site.protect(&machine, &[disk.device.path()], "1s")?;
    for _ in 0..POINTS {
        let point = site.wait_for_new_point(&machine, Duration::from_secs(90));
        let point = point.with_context(|| format!("the agent's log: {}", agent.log()))?;
        let folder = tempfile::TempDir::with_prefix("holdfast-fs-")?;
        let copies = site.copy_point(&machine, &point.id, folder.path())?;
        let (_, copy) = copies.first().context("a disk")?;
        check(kind, copy)?;
    }
    drop(writers);
    Ok(())
}

/// Mounts the copy (which replays the journal), looks at every file, unmounts, and has the file system checked.
fn check(kind: Kind, copy: &Path) -> Result<()> {
    let device = LoopDevice::attach(copy)?;
    // The source is mounted on this host with the same UUID, which XFS refuses by default.
    let options: &[&str] = if kind == Kind::Xfs { &["nouuid"] } else { &[] };
    let mount = MountPoint::new(device.path(), options)?;
    let files = read_all(mount.folder())?;
    ensure!(files > 1, "the point holds no files");
    drop(mount);
    match kind {
        Kind::Ext4 => run(Command::new("e2fsck").arg("-fn").arg(device.path())),
        Kind::Xfs => run(Command::new("xfs_repair").arg("-n").arg(device.path())),
    }?;
    Ok(())
}

fn read_all(folder: &Path) -> Result<u64> {
    let mut files = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files += read_all(&entry.path())?;
        } else {
            fs::read(entry.path())?;
            files += 1;
        }
    }
    Ok(files)
}
