//! NBD reads: our server against qemu-nbd, both over the same raw file in the page cache, with fio as the client.
//!
//! Owns the two servers while it runs. The view here is the file itself, so the figure is the server's cost alone; what
//! finding and verifying frames costs is measured with the store.

use std::{
    fs::File,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use holdfast_common::{
    entropy::{Entropy as _, SeededEntropy},
    units::BlockRange,
};
use holdfast_coordinator::{
    compute::nbd::server::{LogDamage, NbdServer, Settings},
    points::view::{BlockView, ViewError, ViewExtent},
};
use holdfast_tests::program::installed;

use crate::{Run, report::Row};

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
    let folder = tempfile_folder()?;
    let image = folder.join("disk.raw");
    let bytes: u64 = if run.quick { 512 << 20 } else { 2 << 30 };
    write_image(&image, bytes)?;
    let (ours, theirs) = (folder.join("ours.sock"), folder.join("theirs.sock"));
    let runtime = tokio::runtime::Runtime::new()?;
    let server = NbdServer::new(Settings::default(), Arc::new(LogDamage));
    let view = FileView { file: File::open(&image)?, bytes };
    let export = server.export("disk", "bench", Arc::new(view))?;
    let listening = runtime.block_on(async { server.listen_unix(&ours) })?;
    let peer = Peer::start(&image, &theirs)?;

    let mut rows = Vec::new();
    let seconds = if run.quick { 2 } else { 10 };
    let rounds = if run.quick { 3 } else { 7 };
    for (name, pattern, size, depth) in [
        ("sequential 1 MiB, depth 4", "read", "1m", 4),
        ("random 64 KiB, depth 1", "randread", "64k", 1),
        ("random 64 KiB, depth 32", "randread", "64k", 32),
        ("random 4 KiB, depth 1", "randread", "4k", 1),
        ("random 4 KiB, depth 32", "randread", "4k", 32),
    ] {
        // Alternating, since the machine's speed drifts.
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            here.push(fio(&ours, "disk", pattern, size, depth, seconds)?);
            there.push(fio(&theirs, "disk", pattern, size, depth, seconds)?);
        }
        let row = Row::new(format!("nbd: {name}"), median(&mut here), "MB/s")
            .against(median(&mut there), "qemu-nbd on the equal raw file")
            .note(format!("fio nbd engine, one connection, file in the page cache, median of {rounds}"));
        rows.push(row);
    }
    drop(peer);
    drop(listening);
    runtime.block_on(export.remove());
    std::fs::remove_dir_all(&folder)?;
    Ok(rows)
}

fn tempfile_folder() -> Result<std::path::PathBuf> {
    let folder = std::env::temp_dir().join(format!("holdfast-bench-nbd-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn write_image(path: &Path, bytes: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let mut block = vec![0; 1 << 20];
    SeededEntropy::new(1).fill(&mut block);
    for number in 0..bytes >> 20 {
        block.get_mut(..8).context("a block")?.copy_from_slice(&number.to_le_bytes());
        file.write_all(&block)?;
    }
    Ok(())
}

/// Megabytes per second that fio reads.
fn fio(socket: &Path, export: &str, pattern: &str, size: &str, depth: u32, seconds: u32) -> Result<f64> {
    let output = Command::new("fio")
        .args(["--name=x", "--ioengine=nbd", "--time_based", "--output-format=json", "--thread"])
        .arg(format!("--uri=nbd+unix:///{export}?socket={}", socket.display()))
        .arg(format!("--rw={pattern}"))
        .arg(format!("--bs={size}"))
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--runtime={seconds}"))
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
