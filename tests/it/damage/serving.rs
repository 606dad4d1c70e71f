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
    load::{self, check_point},
    site::{Attached, Site, wait_for},
};

use super::{DISK_BYTES, PATIENCE, segments, skipped, wait_for_status, write_noise};

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
    let site = Site::start()?;
    let mut agent = site.add_agent()?;
    let machine = site.only_machine()?;
    site.protect(&machine, &[disk.device.path()], "1s")?;
    let mut writer = load::start(&[&disk], 8, std::time::Duration::from_millis(5))?;
    site.wait_for_points(&machine, 2, PATIENCE)?;
    // While the source is away nothing is repaired, so that what damage does can be looked at.
    agent.kill()?;
    let old = site.points(&machine)?.pop().context("a point")?.id;
    let mut frames = Vec::new();
    for segment in segments(site.data())? {
        frames.push(largest_frame(&segment)?);
    }
    let frame = frames.into_iter().max_by_key(|frame| frame.frame.bytes().len()).context("a frame")?;
    let path = disk.device.path().to_str().context("path")?.to_owned();

    let attached = site.attach(&machine, "latest")?;
    frame.damage()?;
    let bad = unreadable(&attached)?;
    ensure!(!bad.is_empty(), "the damaged frame was served");
    ensure!(bad.is_subset(&frame.blocks()), "errors beyond the damaged frame: {bad:?}");
    wait_for_status(&site, &["stored data of", &path, "is damaged", "points need it", &old])?;
    let listed = site.points(&machine)?.into_iter().find(|point| point.id == old).context("the point")?;
    assert_eq!(listed.state, "damaged", "{}", listed.all);
    let job = site.cli(&["job", "show", &attached.job])?.to_string();
    assert!(job.contains("cannot be read") && job.contains("is damaged"), "the job does not say it: {job}");
    let refused = site.attach(&machine, "latest").err().context("a damaged point was chosen")?;
    assert!(format!("{refused:#}").contains("damaged"), "no reason: {refused:#}");
    site.detach(&attached)?;

    let before = writer.done();
    agent.start()?;
    wait_for_status(&site, &["newer points do without it"])?;
    let point = site.wait_for_new_point(&machine, PATIENCE)?;
    let operations = check_point(&site, &machine, &point.id, &[&disk], writer.schedule())?;
    assert!(operations >= before, "the point after the repair lacks operation {before}");
    writer.finish()?;
    let attached = site.attach(&machine, "latest")?;
    assert!(unreadable(&attached)?.is_empty(), "the newest point is still damaged");
    assert_eq!(read_blocks(&attached, &bad)?, blocks_of(disk.device.backing(), &bad)?, "repaired blocks");
    site.detach(&attached)?;

    // The old point stays damaged, says so, and can be had by its name only.
    let attached = site.attach(&machine, &old)?;
    assert_eq!(unreadable(&attached)?, bad);
    let job = site.cli(&["job", "show", &attached.job])?.to_string();
    assert!(job.contains("damaged: stored data is damaged"), "the choice is not explained: {job}");
    site.detach(&attached)
}

#[test]
fn what_is_known_to_be_damaged_stays_known_after_a_restart() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES / 4)?;
    write_noise(&disk.folder().join("noise"), 8 << 20)?;
    let mut site = Site::start()?;
    let mut agent = site.add_agent()?;
    let machine = site.only_machine()?;
    site.protect(&machine, &[disk.device.path()], "1s")?;
    site.wait_for_points(&machine, 2, PATIENCE)?;
    agent.stop()?;
    let frame = largest_frame(segments(site.data())?.first().context("a segment")?)?;
    frame.damage()?;
    let point = site.points(&machine)?.pop().context("a point")?.id;
    let attached = site.attach(&machine, "latest")?;
    let bad = unreadable(&attached)?;
    ensure!(!bad.is_empty(), "the damaged frame was served");
    site.detach(&attached)?;
    site.stop_coordinator()?;
    site.start_coordinator()?;
    let state = |site: &Site, wanted: &str| {
        wait_for(&format!("the point to be {wanted}"), PATIENCE, || {
            let points = site.points(&machine)?;
            Ok(points.iter().any(|listed| listed.id == point && listed.state == wanted).then_some(()))
        })
    };
    state(&site, "damaged")?;
    // A medium's errors may go away: what can be read again is good again, at the latest after a start.
    site.stop_coordinator()?;
    frame.damage()?;
    site.start_coordinator()?;
    state(&site, "processed")
}
