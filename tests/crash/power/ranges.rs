//! Syncing a part of a file, on a real ext4 whose disk loses power.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{Arc, atomic::AtomicU64},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_common::{
    durable,
    entropy::{Entropy as _, SeededEntropy},
};
use holdfast_tests::asked;

use super::{WORK, disk, judge_left};

const RANGE_BYTES: usize = 300_000;
const BLOCK_BYTES: usize = 4096;
const ROUNDS: u64 = 8;

/// What the range of a round holds.
fn content(round: u64) -> Vec<u8> {
    let mut bytes = vec![0; RANGE_BYTES];
    SeededEntropy::new(round).fill(&mut bytes);
    bytes
}

#[test]
fn a_synced_range_survives_the_loss_of_power() -> Result<()> {
    let Some((mount, disk)) = disk()? else { return Ok(()) };
    let entropy = SeededEntropy::new(asked::seed());
    let folder = mount.join(WORK);
    durable::create_folder(&folder)?;
    let path = folder.join("image");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    file.set_len(ROUNDS * RANGE_BYTES as u64)?;
    durable::sync_all(&file)?;
    durable::sync_parent(&path)?;
    for round in 0..ROUNDS {
        // Blocks of later ranges, which stay in memory.
        for _ in 0..20 {
            let at = entropy.next_u64() % (ROUNDS * RANGE_BYTES as u64 - BLOCK_BYTES as u64);
            file.write_all_at(&[0xee; BLOCK_BYTES], at.max((round + 1) * RANGE_BYTES as u64))?;
        }
        let start = round * RANGE_BYTES as u64;
        file.write_all_at(&content(round), start)?;
        let end = if round + 1 == ROUNDS { u64::MAX } else { start + RANGE_BYTES as u64 };
        durable::sync_range(&file, start..end)?;
        disk.lose_power_in(0, &Arc::new(AtomicU64::new(0)));
        // Power fails while another file is synced.
        let other = File::create(folder.join("other"))?;
        other.write_all_at(&[1; BLOCK_BYTES], 0)?;
        durable::sync_all(&other)?;
        let (left, _, _) = disk.lost(&entropy).context("nothing was flushed")?;
        judge_left(&left, &|folder| judge(folder, round)).with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

/// All ranges up to this round's are in what the loss of power has left.
fn judge(folder: &Path, round: u64) -> Result<()> {
    let found = fs::read(folder.join("image"))?;
    for (number, found) in (0..=round).zip(found.chunks(RANGE_BYTES)) {
        ensure!(found == content(number), "range {number} is not there");
    }
    Ok(())
}
