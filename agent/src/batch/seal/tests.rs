//! Order, content and bounds of the sealing pool.
#![expect(clippy::cast_possible_truncation, reason = "small numbers of a test")]

use crossbeam_channel::{Receiver, Sender, bounded};
use holdfast_common::{
    frame::{Extent, ExtentKind, Frame, FrameIdentity, PlainReader},
    ids::{DiskId, Generation, Interval, Sequence},
    units::{BLOCK_BYTES, BlockRange},
};

use super::{Backlog, SealPool, SealSettings};
use crate::{
    batch::{BufferPool, FramePlan, FrameSink, HandOver as _, ReadFrame, SinkClosed, queue::Payload},
    ship::port::OutgoingFrame,
};

struct ChannelSink(Sender<OutgoingFrame>);

impl FrameSink for ChannelSink {
    fn push(&mut self, frame: OutgoingFrame) -> Result<(), SinkClosed> {
        self.0.send(frame).map_err(|_| SinkClosed { reason: "stopped".into() })
    }
}

fn pool(threads: usize, slots: usize, sink_slots: usize) -> (SealPool, Receiver<OutgoingFrame>) {
    let (sink, frames) = bounded(sink_slots);
    let (wake, _) = bounded(1);
    let settings = SealSettings { threads, nice: 0, slots, level: None };
    (SealPool::new(settings, Box::new(ChannelSink(sink)), wake).unwrap(), frames)
}

fn identity(sequence: u64) -> FrameIdentity {
    FrameIdentity {
        disk: DiskId::from_bytes([1; 16]),
        generation: Generation(1),
        sequence: Sequence(sequence),
        interval: Interval(1),
    }
}

/// A frame of these blocks; a block holds its number, and zero blocks are those divisible by three.
fn read_frame(buffers: &BufferPool, runs: &[(u64, u64)]) -> ReadFrame {
    let plan =
        FramePlan { runs: runs.iter().map(|(start, count)| BlockRange::new(*start, *count)).collect() };
    let mut frame = ReadFrame::new(plan, buffers.take().unwrap());
    let fill = |run: BlockRange, bytes: &mut [u8]| -> Result<(), SinkClosed> {
        for (block, bytes) in (run.start.0..).zip(bytes.chunks_exact_mut(BLOCK_BYTES)) {
            bytes.fill(if block % 3 == 0 { 0 } else { block as u8 });
        }
        Ok(())
    };
    frame.fill(fill).unwrap();
    frame
}

#[test]
fn frames_come_out_in_order_whoever_seals_them() {
    let (mut pool, frames) = pool(3, 64, 256);
    let buffers = BufferPool::new(32, 0);
    let count = 200;
    for sequence in 1..=count {
        while pool.room().unwrap() == 0 || buffers.available() == 0 {
            std::thread::yield_now();
        }
        let payload = if sequence % 5 == 0 {
            Payload::Zeroes(vec![Extent::zero(BlockRange::new(sequence, 1))])
        } else {
            Payload::Blocks(read_frame(&buffers, &[(sequence, 1 + sequence % 16)]))
        };
        pool.submit(identity(sequence), payload).unwrap();
    }
    let sequences: Vec<u64> = frames.iter().take(count as usize).map(|f| f.identity.sequence.0).collect();
    assert_eq!(sequences, (1..=count).collect::<Vec<_>>());
    drop(pool);
    assert_eq!(buffers.available(), 32, "all buffers are back");
}

#[test]
fn zero_blocks_become_zero_extents() {
    let (mut pool, frames) = pool(1, 4, 4);
    let buffers = BufferPool::new(1, 0);
    pool.submit(identity(1), Payload::Blocks(read_frame(&buffers, &[(1, 5), (7, 3)]))).unwrap();
    let frame = Frame::verify(frames.recv().unwrap().bytes).unwrap();
    let expected = [
        Extent::data(BlockRange::new(1, 2)),
        Extent::zero(BlockRange::new(3, 1)),
        Extent::data(BlockRange::new(4, 2)),
        Extent::data(BlockRange::new(7, 2)),
        Extent::zero(BlockRange::new(9, 1)),
    ];
    assert_eq!(frame.extents(), expected);
    let mut plain = Vec::new();
    PlainReader::new().read(&frame, &mut plain).unwrap();
    let data = expected.iter().filter(|extent| extent.kind == ExtentKind::Data);
    let blocks: Vec<u64> = data.flat_map(|extent| extent.range.start.0..extent.range.end().0).collect();
    for (block, bytes) in blocks.iter().zip(plain.chunks_exact(BLOCK_BYTES)) {
        assert!(bytes.iter().all(|byte| u64::from(*byte) == *block));
    }
    assert_eq!(plain.len(), blocks.len() * BLOCK_BYTES);
}

#[test]
fn room_is_bounded_while_the_sink_waits() {
    let (mut pool, frames) = pool(1, 4, 1);
    let mut submitted = 0;
    // The sink takes one frame, the hand-over thread holds one, and the slots fill up.
    for _ in 0..10_000 {
        if pool.room().unwrap() > 0 {
            submitted += 1;
            pool.submit(identity(submitted), Payload::Zeroes(vec![Extent::zero(BlockRange::new(1, 1))]))
                .unwrap();
        } else {
            std::thread::yield_now();
        }
    }
    assert!((4..=6).contains(&submitted), "{submitted} frames were taken");
    drop(frames);
    while pool.room().is_ok() {
        std::thread::yield_now();
    }
    assert_eq!(pool.room().unwrap_err().reason, "stopped");
}

#[test]
fn a_frame_that_breaks_a_limit_ends_the_way() {
    let (mut pool, _frames) = pool(1, 4, 4);
    pool.submit(identity(9), Payload::Zeroes(Vec::new())).unwrap();
    while pool.room().is_ok() {
        std::thread::yield_now();
    }
    assert!(pool.room().unwrap_err().reason.contains("frame 9"));
}

#[test]
fn the_level_follows_the_bottleneck() {
    let level = |unsealed, sealed| Backlog { unsealed, sealed, slots: 100 }.level();
    assert_eq!([level(0, 0), level(30, 0), level(60, 0), level(10, 60), level(60, 60)], [1, -1, -5, 3, 3]);
}
