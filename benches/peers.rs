//! Holdfast beside the tools that people recover disks with, on the same real change: a Debian root file system before and
//! after installing some hundred MB of packages.
//!
//! Owns the list of peers and their scenery in a temporary folder; the two images come from [`crate::debian`]. Every result
//! is synced within its time and compared with the image afterwards, outside of it. Tools that are not installed are
//! skipped with a word.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_common::{
    frame::{Extent, FRAME_PLAIN_BYTES_TARGET as FRAME_BYTES},
    ids::{PointId, Sequence},
    units::{BLOCK_BYTES, BlockRange},
};
use holdfast_coordinator::{index::DiskIndex, store::StoreSettings};
use holdfast_tests::{
    file_system::run,
    history::{self, HistoryWriter},
    program::installed,
};
use tempfile::TempDir;

use crate::{
    Run, debian,
    machine::Meter,
    materialize::write_image,
    plot::{self, Bar, Limit},
    report::{Row, percentile},
};

/// Blocks of a usual frame.
const FRAME_BLOCKS: usize = FRAME_BYTES / BLOCK_BYTES;

/// A way to get the disk as it was after the change.
struct Way {
    /// Who and how.
    name: &'static str,
    /// Whether it starts from the disk before the change and brings only what differs.
    differential: bool,
    /// Programs it needs.
    needs: &'static [&'static str],
    /// Makes what it starts from, outside of its time.
    prepare: fn(&Scenery) -> Result<()>,
    /// The recovery itself; gives the file that holds the disk then.
    recover: fn(&Scenery) -> Result<PathBuf>,
}

const WAYS: &[Way] = &[
    Way {
        name: "holdfast, onto the older image",
        differential: true,
        needs: &[],
        prepare: |scenery| {
            write_image(&scenery.index, scenery.before_point, &scenery.path("update"), None).map(drop)
        },
        recover: |scenery| {
            write_image(&scenery.index, scenery.after_point, &scenery.path("update"), Some("peers"))?;
            Ok(scenery.path("update/disk.raw"))
        },
    },
    Way {
        name: "holdfast, whole image",
        differential: false,
        needs: &[],
        prepare: |_| Ok(()),
        recover: |scenery| {
            write_image(&scenery.index, scenery.after_point, &scenery.path("whole"), None)?;
            Ok(scenery.path("whole/disk.raw"))
        },
    },
    Way {
        name: "qemu-img commit, zstd overlay",
        differential: true,
        needs: &["qemu-img"],
        prepare: |scenery| {
            scenery.copy_of_before("base.raw")?;
            scenery.overlay()?;
            let (base, overlay) = (scenery.path("base.raw"), scenery.path("overlay.qcow2"));
            // The overlay is of the image before; the copy of it takes its place.
            let mut rebase = Command::new("qemu-img");
            run(rebase.args(["rebase", "-u", "-F", "raw", "-b"]).arg(&base).arg(&overlay)).map(drop)
        },
        recover: |scenery| {
            let (base, overlay) = (scenery.path("base.raw"), scenery.path("overlay.qcow2"));
            run(Command::new("qemu-img").args(["commit", "-q", "-d"]).arg(&overlay))?;
            Ok(base)
        },
    },
    Way {
        name: "qemu-img convert, zstd overlay",
        differential: false,
        needs: &["qemu-img"],
        prepare: Scenery::overlay,
        recover: |scenery| {
            let (overlay, target) = (scenery.path("overlay.qcow2"), scenery.path("converted.raw"));
            let mut convert = Command::new("qemu-img");
            run(convert.args(["convert", "-O", "raw"]).arg(overlay).arg(&target))?;
            Ok(target)
        },
    },
    Way {
        name: "rsync --inplace",
        differential: true,
        needs: &["rsync"],
        prepare: |scenery| scenery.copy_of_before("rsync.raw"),
        recover: |scenery| {
            let target = scenery.path("rsync.raw");
            let mut rsync = Command::new("rsync");
            run(rsync.args(["--inplace", "--no-whole-file"]).arg(&scenery.after).arg(&target))?;
            Ok(target)
        },
    },
    Way {
        name: "restic restore",
        differential: false,
        needs: &["restic"],
        prepare: |scenery| {
            run(scenery.restic().arg("init"))?;
            run(scenery.restic().arg("backup").arg(&scenery.before).arg(&scenery.after)).map(drop)
        },
        recover: |scenery| {
            let target = scenery.path("restored");
            let mut restore = scenery.restic();
            restore.args(["restore", "latest", "--include"]).arg(&scenery.after);
            run(restore.arg("--target").arg(&target))?;
            Ok(target.join(scenery.after.strip_prefix("/")?))
        },
    },
    Way {
        name: "borg extract",
        differential: false,
        needs: &["borg"],
        prepare: |scenery| {
            run(scenery.borg().args(["init", "--encryption=none"]).arg(scenery.path("borg")))?;
            let archive = format!("{}::all", scenery.path("borg").display());
            let mut create = scenery.borg();
            create.args(["create", "--sparse", "--compression=zstd,1"]).arg(archive);
            run(create.arg(&scenery.before).arg(&scenery.after)).map(drop)
        },
        recover: |scenery| {
            let target = scenery.path("extracted");
            fs::create_dir_all(&target)?;
            let archive = format!("{}::all", scenery.path("borg").display());
            let inside = scenery.after.strip_prefix("/")?;
            let mut extract = scenery.borg();
            run(extract.current_dir(&target).args(["extract", "--sparse"]).arg(archive).arg(inside))?;
            Ok(target.join(inside))
        },
    },
    Way {
        name: "casync extract",
        differential: false,
        needs: &["casync"],
        prepare: |scenery| {
            let (store, index) = (scenery.path("chunks"), scenery.path("after.caibx"));
            let mut make = Command::new("casync");
            make.arg("make").arg(format!("--store={}", store.display()));
            run(make.arg(index).arg(&scenery.after)).map(drop)
        },
        recover: |scenery| {
            let (store, index) = (scenery.path("chunks"), scenery.path("after.caibx"));
            let target = scenery.path("casync.raw");
            let mut extract = Command::new("casync");
            extract.arg("extract").arg(format!("--store={}", store.display()));
            run(extract.arg(index).arg(&target))?;
            Ok(target)
        },
    },
    Way {
        name: "zstd -d",
        differential: false,
        needs: &["zstd"],
        prepare: |scenery| {
            let packed = scenery.path("after.zst");
            run(Command::new("zstd").args(["-q", "-1", "-T0"]).arg(&scenery.after).arg("-o").arg(packed))
                .map(drop)
        },
        recover: |scenery| {
            let target = scenery.path("unpacked.raw");
            let mut unpack = Command::new("zstd");
            unpack.args(["-q", "-d", "--sparse"]).arg(scenery.path("after.zst")).arg("-o");
            run(unpack.arg(&target))?;
            Ok(target)
        },
    },
];

/// The two images, and a store that has a point of each.
struct Scenery {
    folder: TempDir,
    before: PathBuf,
    after: PathBuf,
    index: Arc<DiskIndex>,
    before_point: (PointId, Sequence),
    after_point: (PointId, Sequence),
    /// Bytes of the disk after the change that are not zero.
    live_bytes: u64,
    /// Bytes in blocks that differ.
    changed_bytes: u64,
}

/// Every way in turn.
pub(crate) fn peers(run: Run) -> Result<Vec<Row>> {
    if !installed(&["mmdebstrap", "mkfs.ext4"]) {
        return Ok(Vec::new());
    }
    let rounds = if run.quick { 1 } else { 3 };
    let images = debian::images()?;
    let (mut rows, mut bars) = (Vec::new(), Vec::new());
    let scenery = Scenery::new(images)?;
    for way in WAYS.iter().filter(|way| installed(way.needs)) {
        let (mut seconds, mut processor) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let (elapsed, spent) = scenery.measure(way).with_context(|| way.name)?;
            seconds.push(elapsed);
            processor.push(spent);
        }
        let (seconds, processor) = (percentile(&seconds, 50.0), percentile(&processor, 50.0));
        let bytes = if way.differential { scenery.changed_bytes } else { scenery.live_bytes };
        let what = if way.differential { "differ" } else { "live" };
        let rate = bytes as f64 / seconds / 1e9;
        let note = format!(
            "{processor:.2} processor seconds; {rate:.2} GB/s of the {} MiB {what}; synced and compared equal, median of {rounds}",
            bytes >> 20
        );
        rows.push(Row::new(format!("peers: {}", way.name), seconds, "s").note(note));
        bars.push(Bar { name: way.name.to_owned(), value: seconds, ours: way.needs.is_empty() });
    }
    if let Some(path) = run.plot {
        let title = "Seconds until the disk is as it was after the change";
        let text = format!(
            "{} MiB of live data, {} MiB of it differ. Shorter is better.\nThe line is a copy of the whole disk with cp, synced.",
            scenery.live_bytes >> 20,
            scenery.changed_bytes >> 20
        );
        let limit = Limit { value: scenery.copy_seconds()?, name: "cp".to_owned() };
        fs::write(path, plot::bars(title, &text, "seconds", &bars, &[limit]))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(rows)
}

impl Scenery {
    fn new((before, after): (PathBuf, PathBuf)) -> Result<Self> {
        let folder = TempDir::with_prefix("holdfast-bench-")?;
        let size = fs::metadata(&after)?.len();
        let store = folder.path().join("store");
        let mut writer = HistoryWriter::create(&store, size, StoreSettings::default())?;
        let (old, new) = (fs::read(&before)?, fs::read(&after)?);
        let live_bytes = ship(&mut writer, &old, |_, block| !is_zero(block))?;
        let before_point = writer.cut()?;
        let changed_bytes =
            ship(&mut writer, &new, |at, block| old.get(at..at + BLOCK_BYTES) != Some(block))?;
        let after_point = writer.cut()?;
        let (_, log) = writer.finish()?;
        ensure!(live_bytes > 0 && changed_bytes > 0, "the images are empty or equal");
        let live_bytes =
            new.chunks(BLOCK_BYTES).filter(|block| !is_zero(block)).count() as u64 * BLOCK_BYTES as u64;
        let index = history::index(&log);
        Ok(Self { folder, before, after, index, before_point, after_point, live_bytes, changed_bytes })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("work").join(name)
    }

    fn copy_of_before(&self, name: &str) -> Result<()> {
        run(Command::new("cp").arg("--sparse=always").arg(&self.before).arg(self.path(name))).map(drop)
    }

    /// Seconds of copying the image after the change, synced: what no way that writes all of it can be faster than.
    fn copy_seconds(&self) -> Result<f64> {
        let work = self.folder.path().join("work");
        fs::create_dir_all(&work)?;
        rustix::fs::sync();
        let started = std::time::Instant::now();
        let target = self.path("copied.raw");
        run(Command::new("cp").arg("--sparse=always").arg(&self.after).arg(&target))?;
        holdfast_common::durable::sync_all(&File::open(&target)?)?;
        let seconds = started.elapsed().as_secs_f64();
        fs::remove_dir_all(&work)?;
        Ok(seconds)
    }

    /// What differs, as a compressed overlay on the image before.
    fn overlay(&self) -> Result<()> {
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", "-F", "raw", "-B"]);
        run(convert.arg(&self.before).arg(&self.after).arg(self.path("overlay.qcow2"))).map(drop)
    }

    fn restic(&self) -> Command {
        let mut command = Command::new("restic");
        command.arg("--quiet").arg("--no-cache").env("RESTIC_PASSWORD", "bench");
        command.env("RESTIC_REPOSITORY", self.path("restic")).stdin(Stdio::null());
        command
    }

    fn borg(&self) -> Command {
        let mut command = Command::new("borg");
        command.env("BORG_BASE_DIR", self.path("borg-home"));
        command.env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes").stdin(Stdio::null());
        command
    }

    /// Seconds and processor seconds of one recovery.
    fn measure(&self, way: &Way) -> Result<(f64, f64)> {
        let work = self.folder.path().join("work");
        fs::create_dir_all(&work)?;
        (way.prepare)(self)?;
        rustix::fs::sync();
        let children = children_seconds();
        let meter = Meter::start(&[])?;
        let result = (way.recover)(self)?;
        holdfast_common::durable::sync_all(&File::open(&result)?)?;
        let cost = meter.stop()?;
        let spent = cost.spent + children_seconds() - children;
        ensure!(same(&result, &self.after)?, "{} gave another disk", way.name);
        fs::remove_dir_all(&work)?;
        Ok((cost.elapsed.as_secs_f64(), spent))
    }
}

/// Processor seconds of all programs that were run and have ended.
fn children_seconds() -> f64 {
    let Ok(stat) = fs::read_to_string("/proc/self/stat") else { return 0.0 };
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    // After the name: 13 cutime, 14 cstime (proc(5)).
    let ticks = fields.split(' ').skip(13).take(2).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

/// Appends the wanted blocks in frames of the usual size; gives their bytes.
fn ship(writer: &mut HistoryWriter, image: &[u8], wanted: impl Fn(usize, &[u8]) -> bool) -> Result<u64> {
    let (mut extents, mut plain, mut blocks, mut total) = (Vec::<Extent>::new(), Vec::new(), 0, 0);
    for (number, block) in (0u64..).zip(image.chunks_exact(BLOCK_BYTES)) {
        let at = usize::try_from(number)? * BLOCK_BYTES;
        if !wanted(at, block) {
            continue;
        }
        let range = BlockRange::new(number, 1);
        let extent = if is_zero(block) { Extent::zero(range) } else { Extent::data(range) };
        if extent.plain_bytes() > 0 {
            plain.extend_from_slice(block);
        }
        match extents.last_mut() {
            Some(last) if last.kind == extent.kind && last.range.end() == range.start => {
                last.range.count.0 += 1
            }
            _ => extents.push(extent),
        }
        (blocks, total) = (blocks + 1, total + BLOCK_BYTES as u64);
        if blocks == FRAME_BLOCKS {
            writer.write(&extents, &plain)?;
            (blocks, extents, plain) = (0, Vec::new(), Vec::new());
        }
    }
    if blocks > 0 {
        writer.write(&extents, &plain)?;
    }
    Ok(total)
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

fn same(left: &Path, right: &Path) -> Result<bool> {
    Ok(Command::new("cmp").arg("--quiet").arg(left).arg(right).status()?.success())
}
