//! NBD reads: our server against qemu-nbd over the equal raw file in the page cache, with fio as the client.
//!
//! Owns the two servers while it runs. Three views: the raw file itself, which shows the server's cost alone; a point of a
//! store whose frames are in the frame cache; and a point much larger than the cache, where every read finds, verifies and
//! decompresses a frame (of 64 KiB, the grain of a random read).

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use holdfast_common::{
    frame::{Extent, FRAME_PLAIN_BYTES_TARGET as FRAME_BYTES},
    units::{BLOCK_BYTES, BlockRange},
};
use holdfast_coordinator::{
    compute::nbd::server::{LogDamage, NbdServer, Settings},
    points::{
        FrameCache, PointView,
        read_ahead::ReadAhead,
        view::{BlockView, ViewError, ViewExtent},
    },
    store::StoreSettings,
};
use holdfast_tests::{
    history::{self, HistoryWriter},
    program::installed,
};
use tempfile::TempDir;

use crate::{Run, report::Row, stages};

/// A raw file as a view.
#[derive(Debug)]
struct FileView {
    file: File,
    bytes: u64,
}

impl BlockView for FileView {
    fn size_bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ViewError> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|source| ViewError::Io { place: "the raw file".into(), source })
    }

    fn extents(&self, range: BlockRange) -> Result<Vec<ViewExtent>, ViewError> {
        Ok(vec![ViewExtent { range, hole: false }])
    }
}

/// Sequential and random reads at depth 1 and 32.
pub(crate) fn nbd(run: Run) -> Result<Vec<Row>> {
    if !installed(&["fio", "qemu-nbd"]) {
        return Ok(Vec::new());
    }
    let folder = TempDir::with_prefix("holdfast-bench-nbd-")?;
    let bytes: u64 = if run.quick { 512 << 20 } else { 2 << 30 };
    let store = folder.path().join("store");
    let sample = stages::system_sample(folder.path(), bytes)?;
    let image = folder.path().join("disk.raw");
    std::fs::write(&image, &sample)?;
    let mut writer = HistoryWriter::create(&store, bytes, StoreSettings::default())?;
    for (number, plain) in (0..).zip(sample.chunks(FRAME_BYTES)) {
        let blocks = (plain.len() / BLOCK_BYTES) as u64;
        let range = BlockRange::new(number * (FRAME_BYTES / BLOCK_BYTES) as u64, blocks);
        writer.write(&[Extent::data(range)], plain)?;
    }
    let (_, cut) = writer.cut()?;
    let (_store, log) = writer.finish()?;
    drop(sample);
    let index = history::index(&log);
    let point = |cache_bytes: usize| -> Result<Arc<dyn BlockView>> {
        // As it is served: with reading ahead.
        let view = PointView::at_cut(&index, FrameCache::new(cache_bytes), cut)?;
        Ok(Arc::new(ReadAhead::new(Arc::new(view))?))
    };
    let bytes_usize = usize::try_from(bytes)?;
    let file = File::open(&image)?;
    let mut rows = Vec::new();
    for (name, view) in [
        ("raw file", Arc::new(FileView { file, bytes }) as Arc<dyn BlockView>),
        ("point, cached", point(bytes_usize * 2)?),
        ("point, 16 times the cache", point(bytes_usize / 16)?),
    ] {
        if !run.wants(&format!("nbd: {name}")) {
            continue;
        }
        rows.extend(compare(run, folder.path(), &image, name, view)?);
    }
    Ok(rows)
}

/// Both servers in turn, for each pattern.
fn compare(run: Run, folder: &Path, image: &Path, what: &str, view: Arc<dyn BlockView>) -> Result<Vec<Row>> {
    let (ours, theirs) = (folder.join("ours.sock"), folder.join("theirs.sock"));
    let runtime = tokio::runtime::Runtime::new()?;
    let server = NbdServer::new(Settings::default(), Arc::new(LogDamage));
    // Everything is read once, so that a cache that can hold it does.
    let mut buffer = vec![0; 1 << 20];
    for at in (0..view.size_bytes()).step_by(buffer.len()) {
        view.read(at, &mut buffer)?;
    }
    let export = server.export("disk", "bench", view)?;
    let listening = runtime.block_on(async { server.listen_unix(&ours) })?;
    let peer = Peer::start(image, &theirs)?;
    let (time, rounds) = if run.quick { ("400ms", 3) } else { ("3s", 5) };
    let mut rows = Vec::new();
    for (name, pattern, size, depth) in [
        ("sequential 64 KiB, depth 1", "read", "64k", 1),
        ("sequential 1 MiB, depth 4", "read", "1m", 4),
        ("random 64 KiB, depth 32", "randread", "64k", 32),
        ("random 4 KiB, depth 1", "randread", "4k", 1),
        ("random 4 KiB, depth 32", "randread", "4k", 32),
    ] {
        // Alternating, since the machine's speed drifts.
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            here.push(fio(&ours, "disk", pattern, size, depth, time)?);
            there.push(fio(&theirs, "disk", pattern, size, depth, time)?);
        }
        let row = Row::new(format!("nbd: {what}: {name}"), median(&mut here), "MB/s")
            .against(median(&mut there), "qemu-nbd on the equal raw file")
            .note(format!("fio nbd engine, one connection, files in the page cache, median of {rounds}"));
        rows.push(row);
    }
    drop(peer);
    std::fs::remove_file(theirs)?;
    drop(listening);
    runtime.block_on(export.remove());
    Ok(rows)
}

/// Megabytes per second that fio reads.
fn fio(socket: &Path, export: &str, pattern: &str, size: &str, depth: u32, time: &str) -> Result<f64> {
    let output = Command::new("fio")
        .args(["--name=x", "--ioengine=nbd", "--time_based", "--output-format=json", "--thread"])
        .arg(format!("--uri=nbd+unix:///{export}?socket={}", socket.display()))
        .arg(format!("--rw={pattern}"))
        .arg(format!("--bs={size}"))
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--runtime={time}"))
        .output()?;
    if !output.status.success() {
        bail!("fio failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    // Fio puts remarks of its engines before the report.
    let text = String::from_utf8_lossy(&output.stdout);
    let report = text.find('{').and_then(|start| text.get(start..)).unwrap_or(&text);
    let report: serde_json::Value = serde_json::from_str(report)?;
    let rate = report.pointer("/jobs/0/read/bw_bytes").and_then(serde_json::Value::as_f64);
    Ok(rate.context("fio reports no rate")? / 1e6)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// A qemu-nbd.
struct Peer(Child);

impl Peer {
    fn start(image: &Path, socket: &Path) -> Result<Self> {
        let child = Command::new("qemu-nbd")
            .args(["--read-only", "--format=raw", "--persistent", "--shared=8", "--export-name=disk"])
            .arg("--socket")
            .arg(socket)
            .arg(image)
            .spawn()?;
        let peer = Self(child);
        for _ in 0..100 {
            if socket.exists() {
                return Ok(peer);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("qemu-nbd does not listen")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}
