//! The window: order, budget, resuming, and lost history.

use bytes::Bytes;
use holdfast_common::{
    frame::FrameIdentity,
    ids::{DiskId, Generation, Interval, Sequence},
};

use super::{AcknowledgedTooMuch, PushError, Pushed, Resumed, Window};
use crate::ship::port::OutgoingFrame;

const DISK: DiskId = DiskId::from_bytes([1; 16]);
const FIRST: Generation = Generation(1);

fn frame(generation: Generation, sequence: u64) -> OutgoingFrame {
    let identity =
        FrameIdentity { disk: DISK, generation, sequence: Sequence(sequence), interval: Interval(1) };
    OutgoingFrame { identity, bytes: Bytes::from_static(&[0; 100]) }
}

fn window(frames: u64) -> Window {
    let mut window = Window::new(350);
    assert_eq!(window.resume(DISK, FIRST, Sequence(0)), Resumed::Ready);
    for sequence in 1..=frames {
        assert_eq!(window.push(frame(FIRST, sequence)), Ok(Pushed::Held));
    }
    window
}

fn sent(window: &mut Window) -> Vec<u64> {
    std::iter::from_fn(|| window.next(DISK, FIRST)).map(|frame| frame.identity.sequence.0).collect()
}

#[test]
fn frames_stay_until_acknowledged() {
    let mut window = window(3);
    assert_eq!(sent(&mut window), [1, 2, 3]);
    assert_eq!(window.held_bytes(), 300);
    assert!(!window.has_room(100));
    assert_eq!(window.acknowledge(DISK, Sequence(2)), Ok(true));
    assert_eq!(window.acknowledge(DISK, Sequence(1)), Ok(false));
    assert_eq!((window.held_bytes(), window.held_bytes_of(DISK)), (100, 100));
    assert!(window.has_room(100));
    assert_eq!(window.push(frame(FIRST, 4)), Ok(Pushed::Held));
    assert_eq!(sent(&mut window), [4]);
}

#[test]
fn a_new_session_resumes_where_the_coordinator_stands() {
    let mut window = window(3);
    assert_eq!(sent(&mut window), [1, 2, 3]);
    assert_eq!(window.resume(DISK, FIRST, Sequence(1)), Resumed::Ready);
    assert_eq!(sent(&mut window), [2, 3]);
    assert_eq!(window.resume(DISK, FIRST, Sequence(3)), Resumed::Ready);
    assert_eq!(sent(&mut window), [] as [u64; 0]);
    assert_eq!(window.held_bytes(), 0);
}

#[test]
fn a_coordinator_that_forgot_or_invented_frames_is_noticed() {
    let mut forgot = window(3);
    sent(&mut forgot);
    forgot.acknowledge(DISK, Sequence(2)).unwrap();
    assert!(matches!(forgot.resume(DISK, FIRST, Sequence(1)), Resumed::HistoryLost(_)));
    assert_eq!(forgot.held_bytes(), 0);
    assert_eq!(forgot.push(frame(FIRST, 4)), Ok(Pushed::Stale));
    assert!(matches!(forgot.resume(DISK, FIRST, Sequence(3)), Resumed::HistoryLost(_)));
    assert_eq!(forgot.resume(DISK, Generation(2), Sequence(1)), Resumed::Ready);
    assert_eq!(forgot.push(frame(Generation(2), 2)), Ok(Pushed::Held));
    assert!(matches!(window(3).resume(DISK, FIRST, Sequence(4)), Resumed::HistoryLost(_)));
}

#[test]
fn gaps_and_false_acknowledgements_are_refused() {
    let mut window = window(1);
    let gap = PushError { disk: DISK, expected: Sequence(2), got: Sequence(3) };
    assert_eq!(window.push(frame(FIRST, 3)), Err(gap));
    let too_much = AcknowledgedTooMuch { disk: DISK, acknowledged: Sequence(1), sent: Sequence(0) };
    assert_eq!(window.acknowledge(DISK, Sequence(1)), Err(too_much));
}

#[test]
fn frames_of_a_replaced_generation_are_dropped() {
    let mut window = window(3);
    window.begin(DISK, Generation(2), Sequence(1));
    assert_eq!(window.held_bytes(), 0);
    assert_eq!(window.push(frame(FIRST, 4)), Ok(Pushed::Stale));
    assert!(window.next(DISK, FIRST).is_none());
    window.retain(|_| false);
    assert_eq!(window.push(frame(Generation(2), 2)), Ok(Pushed::Stale));
}
