//! Tests of the holding back of log lines.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use super::{HELD_BYTES_MAX, HeldBackLog};

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

#[test]
fn lines_wait_while_held_and_keep_their_order() {
    let sink = Sink::default();
    let log = HeldBackLog::new(Box::new(sink.clone()));
    writeln!(&log, "before").unwrap();
    log.hold();
    writeln!(&log, "during").unwrap();
    assert_eq!(sink.text(), "before\n");
    log.release();
    writeln!(&log, "after").unwrap();
    assert_eq!(sink.text(), "before\nduring\nafter\n");
}

#[test]
fn a_held_line_does_not_wait_for_a_writer_that_is_blocked() {
    let log = HeldBackLog::new(Box::new(io::sink()));
    // Somebody is stuck in the target.
    let stuck = log.target.lock().unwrap();
    log.hold();
    writeln!(&log, "goes through").unwrap();
    assert_eq!(log.held.lock().unwrap().bytes, b"goes through\n");
    drop(stuck);
}

#[test]
fn what_does_not_fit_is_counted_and_memory_does_not_grow() {
    let sink = Sink::default();
    let log = HeldBackLog::new(Box::new(sink.clone()));
    log.hold();
    let line = [b'x'; 1024];
    for _ in 0..HELD_BYTES_MAX / 1024 + 3 {
        (&log).write_all(&line).unwrap();
    }
    assert_eq!(log.held.lock().unwrap().bytes.capacity(), HELD_BYTES_MAX);
    log.release();
    assert!(sink.text().ends_with("3 log lines were dropped while writes were held\n"));
}
