//! Slices of a scan: reading, and asking or sending.

use std::{collections::BTreeMap, time::Duration};

use holdfast_common::{
    frame::seal,
    ids::DiskId,
    units::{BLOCK_BYTES, BlockRange},
    wire::{AgentMessage, ScanQuestion, limits::SCAN_CHUNK_BLOCKS},
};

use super::{
    Engine,
    copy::{BATCH_FRAMES, BATCH_FRAMES_MIN, Zeroes},
    disk::Disk,
};
use crate::{
    batch::{BufferPool, FRAME_BLOCKS, FramePlan, ReadError, ReadFrame, SinkClosed, queue::Payload},
    capture::{
        cycle::{Scanned, Trouble},
        scan::{ScanStep, chunks},
    },
};

/// How long to wait for answers before looking again; an answer comes earlier.
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// Frames of one chunk.
const CHUNK_FRAMES: usize = 4;
const _: () =
    assert!((CHUNK_FRAMES * FRAME_BLOCKS) as u64 == SCAN_CHUNK_BLOCKS, "a chunk is four whole frames");

/// Digests of chunks of zeroes, by number of blocks.
#[derive(Debug, Default)]
pub(super) struct ZeroDigests(BTreeMap<u64, [u8; 32]>);

impl ZeroDigests {
    fn of(&mut self, blocks: u64) -> [u8; 32] {
        *self.0.entry(blocks).or_insert_with(|| {
            let mut hasher = blake3::Hasher::new();
            for _ in 0..blocks {
                hasher.update(&[0; BLOCK_BYTES]);
            }
            *hasher.finalize().as_bytes()
        })
    }
}

impl Engine {
    /// Goes on with a disk's scan by one slice.
    pub(super) fn scan(&mut self, id: DiskId) -> Result<Result<Scanned, Trouble>, SinkClosed> {
        let now = self.clock.monotonic();
        let Some(disk) = self.disks.get_mut(&id) else { return Ok(Err(Trouble::Gone)) };
        let Some(scan) = &disk.scan else { return Ok(Ok(Scanned::Complete)) };
        match scan.step(!disk.pending.is_empty()) {
            ScanStep::Done => {
                disk.scan = None;
                Ok(Ok(Scanned::Complete))
            }
            ScanStep::AwaitAnswers => {
                let pending = disk.pending.count();
                let waits = pending.0 == 0;
                Ok(Ok(if waits {
                    Scanned::Idle { until: now + ANSWER_WAIT }
                } else {
                    Scanned::Progress { pending }
                }))
            }
            ScanStep::Record(record) => {
                if self.hand_over.room()? == 0 {
                    return Ok(Ok(Scanned::Blocked));
                }
                let identity = disk.number();
                let bytes = seal::seal_scan(identity, &record).map_err(|error| SinkClosed {
                    reason: format!("record of a scan cannot be sealed: {error}"),
                })?;
                self.hand_over.submit(identity, Payload::Sealed(bytes))?;
                if let Some(scan) = &mut disk.scan {
                    scan.recorded(&record);
                }
                Ok(Ok(Scanned::Progress { pending: disk.pending.count() }))
            }
            ScanStep::Read(range) => {
                let ready_at = self.scan_rate.ready_at(now);
                if ready_at > now {
                    return Ok(Ok(Scanned::Idle { until: ready_at }));
                }
                if scan.asks() { self.ask(id, range, now) } else { self.send_range(id, range, now) }
            }
        }
    }

    /// Reads a part of the range and sends what is not zero.
    fn send_range(
        &mut self,
        id: DiskId,
        range: BlockRange,
        now: Duration,
    ) -> Result<Result<Scanned, Trouble>, SinkClosed> {
        let room = self.hand_over.room()?.min(self.buffers.available()).min(BATCH_FRAMES);
        let Some(disk) = self.disks.get_mut(&id) else { return Ok(Err(Trouble::Gone)) };
        let plans = data_frames(disk, range);
        let all = plans.len() <= room;
        if room < plans.len().min(BATCH_FRAMES_MIN) {
            return Ok(Ok(Scanned::Blocked));
        }
        let now_planned: Vec<FramePlan> = plans.into_iter().take(room).collect();
        let last = now_planned.last().and_then(|plan| plan.runs.last());
        let end = last.map_or(range.end(), |run| if all { range.end() } else { run.end() });
        self.scan_rate.spend(now, plain_bytes(&now_planned));
        match disk.read(&self.buffers, now_planned) {
            Ok(frames) => disk.submit(self.hand_over.as_mut(), frames, Zeroes::Omit)?,
            Err(error) => return Ok(Err(disk.read_trouble(&error))),
        }
        if let Some(scan) = &mut disk.scan {
            scan.sent(BlockRange::new(range.start.0, end.0 - range.start.0));
        }
        Ok(Ok(Scanned::Progress { pending: disk.pending.count() }))
    }

    /// Reads the range and asks for its digests.
    fn ask(
        &mut self,
        id: DiskId,
        range: BlockRange,
        now: Duration,
    ) -> Result<Result<Scanned, Trouble>, SinkClosed> {
        let Some(disk) = self.disks.get_mut(&id) else { return Ok(Err(Trouble::Gone)) };
        let at_a_time = self.buffers.available().min(BATCH_FRAMES) / CHUNK_FRAMES;
        if at_a_time == 0 {
            return Ok(Ok(Scanned::Blocked));
        }
        let mut digests = Vec::new();
        for part in chunks(range).chunks(at_a_time) {
            match disk.digest(&self.buffers, part, &mut self.zeroes) {
                Ok((found, bytes)) => {
                    self.scan_rate.spend(now, bytes);
                    digests.extend(found);
                }
                Err(error) => return Ok(Err(disk.read_trouble(&error))),
            }
        }
        let generation = disk.generation();
        let Some(scan) = &mut disk.scan else { return Ok(Ok(Scanned::Complete)) };
        let question = scan.asked(range);
        let question =
            ScanQuestion { question, disk: id, generation, start: range.start, count: range.count, digests };
        self.messages.send(AgentMessage::ScanQuestion(question));
        Ok(Ok(Scanned::Progress { pending: disk.pending.count() }))
    }
}

impl Disk {
    fn read(&mut self, buffers: &BufferPool, plans: Vec<FramePlan>) -> Result<Vec<ReadFrame>, ReadError> {
        let frames = plans.into_iter().filter_map(|plan| Some(ReadFrame::new(plan, buffers.take()?)));
        self.host.reader.read(frames.collect())
    }

    /// Digests of chunks, and how many bytes were read for them.
    pub(super) fn digest(
        &mut self,
        buffers: &BufferPool,
        chunks: &[BlockRange],
        zeroes: &mut ZeroDigests,
    ) -> Result<(Vec<[u8; 32]>, u64), ReadError> {
        let with_data: Vec<bool> = chunks.iter().map(|chunk| !data_frames(self, *chunk).is_empty()).collect();
        let read = chunks.iter().zip(&with_data).filter(|(_, data)| **data);
        let plans: Vec<FramePlan> = read.flat_map(|(chunk, _)| whole_frames(*chunk)).collect();
        let bytes = plain_bytes(&plans);
        let mut frames = self.read(buffers, plans)?.into_iter().peekable();
        let mut digests = Vec::with_capacity(chunks.len());
        for (chunk, data) in chunks.iter().zip(with_data) {
            let mut own = Vec::with_capacity(CHUNK_FRAMES);
            while data
                && let Some(frame) = frames
                    .next_if(|frame| frame.plan.runs.first().is_some_and(|run| chunk.contains(run.start)))
            {
                own.push(frame);
            }
            if own.iter().all(ReadFrame::is_zero) {
                digests.push(zeroes.of(chunk.count.0));
                continue;
            }
            let mut hasher = blake3::Hasher::new();
            for frame in &own {
                hasher.update(frame.buffer.bytes(frame.plan.blocks()));
            }
            digests.push(*hasher.finalize().as_bytes());
        }
        Ok((digests, bytes))
    }
}

/// Frames of the parts of a range that are no holes.
fn data_frames(disk: &Disk, range: BlockRange) -> Vec<FramePlan> {
    let Some(file) = &disk.host.holes else { return whole_frames(range) };
    file.data_runs(range).into_iter().flat_map(whole_frames).collect()
}

/// A range in frames.
fn whole_frames(range: BlockRange) -> Vec<FramePlan> {
    let end = range.end().0;
    let frame =
        |start| FramePlan { runs: vec![BlockRange::new(start, (FRAME_BLOCKS as u64).min(end - start))] };
    (range.start.0..end).step_by(FRAME_BLOCKS).map(frame).collect()
}

fn plain_bytes(plans: &[FramePlan]) -> u64 {
    plans.iter().map(|plan| (plan.blocks() * BLOCK_BYTES) as u64).sum()
}
