//! Damage that is found while a point is served: named, limited to its range, and repaired from the source.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use holdfast_common::{
    frame::{Frame, FrameHeader, FrameKind, extent::ExtentKind},
    units::BLOCK_BYTES,
};
use holdfast_tests::{
    file_system::{Kind, MountedDisk, run},
    load,
    protected::{PATIENCE, Protected},
    site::{Attached, wait_for},
};

use super::{DISK_BYTES, segments, skipped, wait_for_status, write_noise};

/// A data frame in a segment file.
pub(super) struct StoredFrame {
    segment: PathBuf,
    offset: u64,
    frame: Frame,
}

impl StoredFrame {
    /// Flips a bit in its payload.
    pub(super) fn damage(&self) -> Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(&self.segment)?;
        let at = self.offset + self.frame.bytes().len() as u64 - 100;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 0x40], at)?;
        Ok(())
    }

    /// The blocks whose bytes it holds.
    fn blocks(&self) -> BTreeSet<u64> {
        let data = self.frame.extents().iter().filter(|extent| extent.kind == ExtentKind::Data);
        data.flat_map(|extent| extent.range.start.0..extent.range.end().0).collect()
    }
}

/// The largest data frame of a segment; the first of them.
pub(super) fn largest_frame(segment: &Path) -> Result<StoredFrame> {
    let bytes = Bytes::from(fs::read(segment)?);
    let mut best: Option<StoredFrame> = None;
    let mut at = 0;
    while at < bytes.len() {
        let Ok(header) = FrameHeader::parse(&bytes[at..]) else {
            at += 1;
            continue;
        };
        let length = header.frame_bytes();
        let whole = bytes.get(at..at + length).map(Bytes::copy_from_slice);
        let Some(frame) = whole.and_then(|whole| Frame::verify(whole).ok()) else {
            at += 1;
            continue;
        };
        let larger = best.as_ref().is_none_or(|best| best.frame.bytes().len() < length);
        if header.kind == FrameKind::Data && larger {
            best = Some(StoredFrame { segment: segment.to_owned(), offset: at as u64, frame });
        }
        at += length;
    }
    best.context("no data frame in the segment")
}

/// Blocks of an export that cannot be read.
fn unreadable(attached: &Attached) -> Result<BTreeSet<u64>> {
    let (_, uri) = attached.exports.first().context("an export")?;
    let program = "import nbd, sys, json\n\
                   h = nbd.NBD(); h.connect_uri(sys.argv[1]); bad = []\n\
                   for block in range(h.get_size() // 4096):\n\
                   \x20   try: h.pread(4096, block * 4096)\n\
                   \x20   except nbd.Error as error:\n\
                   \x20       assert error.errnum == 5, error\n\
                   \x20       bad.append(block)\n\
                   print(json.dumps(bad))";
    let printed = run(Command::new("/usr/bin/python3").args(["-c", program, uri]))?;
    Ok(serde_json::from_str(&printed)?)
}

/// The blocks of an export, read one by one.
fn read_blocks(attached: &Attached, blocks: &BTreeSet<u64>) -> Result<Vec<Vec<u8>>> {
    let (_, uri) = attached.exports.first().context("an export")?;
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("copy.img");
    run(Command::new("nbdcopy").arg(uri).arg(&copy))?;
    blocks_of(&copy, blocks)
}

fn blocks_of(path: &Path, blocks: &BTreeSet<u64>) -> Result<Vec<Vec<u8>>> {
    let file = File::open(path)?;
    let read = |block: &u64| {
        let mut bytes = vec![0; BLOCK_BYTES];
        file.read_exact_at(&mut bytes, block * BLOCK_BYTES as u64).map(|()| bytes)
    };
    blocks.iter().map(|block| read(block).map_err(Into::into)).collect()
}

#[test]
fn damage_found_while_serving_is_named_and_sent_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES / 4)?;
    write_noise(&disk.folder().join("noise"), 8 << 20)?;
    let mut protected = Protected::start(&[disk.device.path()])?;
    let mut writer = load::start(&[&disk], 8, std::time::Duration::from_millis(5))?;
    protected.wait_for_points(2)?;
    // While the source is away nothing is repaired, so that what damage does can be looked at.
    protected.agent.kill()?;
    let old = protected.points()?.pop().context("a point")?.id;
    let mut frames = Vec::new();
    for segment in segments(protected.site.data())? {
        frames.push(largest_frame(&segment)?);
    }
    let frame = frames.into_iter().max_by_key(|frame| frame.frame.bytes().len()).context("a frame")?;
    let path = disk.device.path().to_str().context("path")?.to_owned();

    let attached = protected.site.attach(&protected.machine, "latest")?;
    frame.damage()?;
    let bad = unreadable(&attached)?;
    ensure!(!bad.is_empty(), "the damaged frame was served");
    ensure!(bad.is_subset(&frame.blocks()), "errors beyond the damaged frame: {bad:?}");
    wait_for_status(&protected.site, &["stored data of", &path, "is damaged", "points need it", &old])?;
    let listed = protected.points()?.into_iter().find(|point| point.id == old).context("the point")?;
    assert_eq!(listed.state, "damaged", "{}", listed.all);
    let job = protected.site.cli(&["job", "show", &attached.job])?.to_string();
    assert!(job.contains("cannot be read") && job.contains("is damaged"), "the job does not say it: {job}");
    let refused =
        protected.site.attach(&protected.machine, "latest").err().context("a damaged point was chosen")?;
    assert!(format!("{refused:#}").contains("damaged"), "no reason: {refused:#}");
    protected.site.detach(&attached)?;

    protected.agent.start()?;
    wait_for_status(&protected.site, &["newer points do without it"])?;
    protected.next_point_holds(&[&disk], &writer)?;
    writer.finish()?;
    let attached = protected.site.attach(&protected.machine, "latest")?;
    assert!(unreadable(&attached)?.is_empty(), "the newest point is still damaged");
    assert_eq!(read_blocks(&attached, &bad)?, blocks_of(disk.device.backing(), &bad)?, "repaired blocks");
    protected.site.detach(&attached)?;

    // The old point stays damaged, says so, and can be had by its name only.
    let attached = protected.site.attach(&protected.machine, &old)?;
    assert_eq!(unreadable(&attached)?, bad);
    let job = protected.site.cli(&["job", "show", &attached.job])?.to_string();
    assert!(job.contains("damaged: stored data is damaged"), "the choice is not explained: {job}");
    protected.site.detach(&attached)?;
    no_image_of_what_is_damaged(&protected, &old)
}

/// An image with holes where data should be would be wrong silently: the job says what is damaged instead.
fn no_image_of_what_is_damaged(protected: &Protected, point: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let target = folder.path().to_str().context("path")?;
    let begin = ["test-failover", &protected.machine, "--point", point, "--image", target];
    let refused = protected.site.cli(&begin).err().context("an image of a damaged point was written")?;
    let said = format!("{refused:#}");
    assert!(said.contains("damaged") && said.contains("job"), "what is damaged is not said: {said}");
    let jobs = protected.site.cli(&["jobs"])?;
    let held =
        jobs.as_array().and_then(|jobs| jobs.iter().find(|job| job["ok"] == false && job["point"] == *point));
    let held = held.and_then(|job| job["id"].as_str()).with_context(|| format!("the job in {jobs}"))?;
    protected.site.cli(&["job", "cancel", held])?;
    let left = fs::read_dir(folder.path())?.count();
    assert_eq!(left, 0, "a part of an image was left behind");
    Ok(())
}

#[test]
fn what_is_known_to_be_damaged_stays_known_after_a_restart() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES / 4)?;
    write_noise(&disk.folder().join("noise"), 8 << 20)?;
    let mut protected = Protected::start(&[disk.device.path()])?;
    protected.wait_for_points(2)?;
    protected.agent.stop()?;
    let frame = largest_frame(segments(protected.site.data())?.first().context("a segment")?)?;
    frame.damage()?;
    let point = protected.points()?.pop().context("a point")?.id;
    let attached = protected.site.attach(&protected.machine, "latest")?;
    let bad = unreadable(&attached)?;
    ensure!(!bad.is_empty(), "the damaged frame was served");
    protected.site.detach(&attached)?;
    protected.site.stop_coordinator()?;
    protected.site.start_coordinator()?;
    let state = |protected: &Protected, wanted: &str| {
        wait_for(&format!("the point to be {wanted}"), PATIENCE, || {
            let points = protected.points()?;
            Ok(points.iter().any(|listed| listed.id == point && listed.state == wanted).then_some(()))
        })
    };
    state(&protected, "damaged")?;
    // A medium's errors may go away: what can be read again is good again, at the latest after a start.
    protected.site.stop_coordinator()?;
    frame.damage()?;
    protected.site.start_coordinator()?;
    state(&protected, "processed")
}
