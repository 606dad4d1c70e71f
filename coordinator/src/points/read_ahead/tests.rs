//! The detector against readers of known kinds, and the view's thread.

use std::{
    ops::Range,
    sync::{Arc, Barrier, Mutex},
    time::Duration,
};

use holdfast_common::{
    entropy::{Entropy as _, SeededEntropy},
    units::BlockRange,
};
use proptest::prelude::{ProptestConfig, any, proptest};

use super::{Detector, READS_MIN, ReadAhead, STREAMS, WINDOW_BYTES};
use crate::points::view::{BlockView, ViewError, ViewExtent};

const SIZE: u64 = 1 << 30;
/// Reads from here on last until they are let go.
const HELD_FROM: u64 = 512 << 20;
const ALONE_FROM: u64 = 256 << 20;

#[test]
fn a_sequential_reader_has_everything_fetched_once_and_in_time() {
    for (read, size) in [(4096, SIZE), (64 << 10, SIZE), (1 << 20, SIZE), (64 << 10, (64 << 20) + 777)] {
        let (mut detector, mut fetched_to) = (Detector::default(), 0);
        for number in 0..size / read {
            let offset = number * read;
            if number >= u64::from(READS_MIN) && fetched_to > 0 {
                assert!(
                    fetched_to >= offset + read.min(size - offset),
                    "read {number} of {read} is not there"
                );
            }
            if let Some(order) = detector.read(offset, read, size) {
                assert!(order.start >= fetched_to && order.start >= offset + read && order.end > order.start);
                assert!(order.end <= (offset + read + WINDOW_BYTES).min(size));
                fetched_to = order.end;
            }
        }
        assert_eq!(fetched_to, size, "{read}");
    }
}

#[test]
fn several_readers_are_told_apart() {
    let mut detector = Detector::default();
    let mut fetched = [0; STREAMS];
    for number in 0..200 {
        for (reader, fetched) in fetched.iter_mut().enumerate() {
            let start = reader as u64 * (SIZE / 16);
            if let Some(order) = detector.read(start + number * 65536, 65536, SIZE) {
                *fetched += order.end - order.start;
            }
        }
    }
    assert!(fetched.iter().all(|bytes| *bytes >= 150 * 65536), "{fetched:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn requests_out_of_order_still_count(seed in any::<u64>()) {
        // As many are under way as one connection has threads.
        let (entropy, mut detector) = (SeededEntropy::new(seed), Detector::default());
        let mut fetched = 0;
        for block in 0..250 {
            let mut numbers: Vec<u64> = (block * 8..block * 8 + 8).collect();
            numbers.sort_by_cached_key(|_| entropy.next_u64());
            for number in numbers {
                if let Some(order) = detector.read(number * 4096, 4096, SIZE) {
                    fetched += order.end - order.start;
                }
            }
        }
        assert!((1900 * 4096..=2000 * 4096 + WINDOW_BYTES).contains(&fetched), "{fetched}");
    }

    #[test]
    fn a_random_reader_has_next_to_nothing_fetched(seed in any::<u64>()) {
        let (entropy, mut detector) = (SeededEntropy::new(seed), Detector::default());
        let reads = 10_000;
        let ordered = (0..reads).filter(|_| {
            let offset = entropy.next_u64() % (SIZE / 4096) * 4096;
            detector.read(offset, 4096, SIZE).is_some()
        });
        assert!(ordered.count() < 10);
    }
}

/// Notes what is fetched, and holds some reads.
#[derive(Debug)]
struct Noting(Mutex<Vec<Range<u64>>>, Barrier);

impl BlockView for Noting {
    fn size_bytes(&self) -> u64 {
        SIZE
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ViewError> {
        if offset >= HELD_FROM {
            self.1.wait();
            self.1.wait();
        }
        buffer.fill(7);
        Ok(())
    }

    fn extents(&self, range: BlockRange) -> Result<Vec<ViewExtent>, ViewError> {
        Ok(vec![ViewExtent { range, hole: false }])
    }

    fn prefetch(&self, bytes: Range<u64>) {
        self.0.lock().unwrap().push(bytes);
    }
}

#[test]
fn the_thread_fetches_and_ends_with_the_view() {
    let inner = Arc::new(Noting(Mutex::default(), Barrier::new(1)));
    let view = ReadAhead::new(Arc::clone(&inner) as Arc<dyn BlockView>).unwrap();
    let mut buffer = [0; 65536];
    for number in 0..4 {
        view.read(number * 65536, &mut buffer).unwrap();
        assert_eq!(buffer, [7; 65536]);
    }
    // Whatever it is told, it begins right behind the read that showed the pattern.
    while inner.0.lock().unwrap().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(inner.0.lock().unwrap()[0].start, 3 * 65536);
    drop(view);
    assert_eq!(Arc::strong_count(&inner), 1, "nobody reads the view any more");
}

#[test]
fn nothing_is_fetched_while_reads_keep_all_processors_busy() {
    let others = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).max(2) - 1;
    let inner = Arc::new(Noting(Mutex::default(), Barrier::new(others + 1)));
    let view = ReadAhead::new(Arc::clone(&inner) as Arc<dyn BlockView>).unwrap();
    let mut buffer = [0; 65536];
    std::thread::scope(|scope| {
        for other in 0..others as u64 {
            let view = &view;
            // Far apart, so that they are no reader in a row.
            scope.spawn(move || view.read(HELD_FROM + other * (8 << 20), &mut [0; 512]).unwrap());
        }
        inner.1.wait();
        for number in 0..8 {
            view.read(number * 65536, &mut buffer).unwrap();
        }
        inner.1.wait();
    });
    // Orders are done one after the other: what comes first was the first.
    for number in 0..4 {
        view.read(ALONE_FROM + number * 65536, &mut buffer).unwrap();
    }
    while inner.0.lock().unwrap().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(inner.0.lock().unwrap()[0].start, ALONE_FROM + 3 * 65536);
}
