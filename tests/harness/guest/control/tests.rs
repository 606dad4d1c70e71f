//! The line protocol against a guest that is only a thread.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixListener,
    thread,
    time::Duration,
};

use tempfile::TempDir;

use super::{Control, Outcome, base64_decode, base64_encode};

#[test]
fn base64_is_that_of_rfc_4648() {
    for (plain, encoded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
        assert_eq!(base64_encode(plain.as_bytes()), encoded);
        assert_eq!(base64_decode(encoded).unwrap(), plain.as_bytes());
    }
    assert!(base64_decode("Zm9*").is_err());
}

/// A guest that answers each request with these lines.
fn control_with(answer: &'static str) -> (TempDir, Control) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("serial");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut requests = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while requests.read_line(&mut line).unwrap_or(0) > 0 {
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    let control = Control::connect(&path, Duration::from_secs(5)).unwrap();
    (folder, control)
}

#[test]
fn a_late_answer_is_not_taken_for_the_next() {
    let (_folder, mut control) = control_with("noise\r\ndone 7 1 bGF0ZQ==\r\ndone 1 3 Zm9v\r\n");
    let outcome = control.run("true", Duration::from_secs(5)).unwrap();
    assert_eq!(outcome, Outcome { code: 3, output: "foo".to_owned() });
}

#[test]
fn a_guest_that_starts_anew_is_told_from_a_slow_one() {
    let (_folder, mut control) = control_with("ready 1234\r\n");
    let error = control.run("true", Duration::from_secs(5)).unwrap_err();
    assert!(error.to_string().contains("started anew"), "{error}");
    let (_folder, mut control) = control_with("");
    let error = control.run("true", Duration::from_millis(10)).unwrap_err();
    assert!(format!("{error:#}").contains("time limit"), "{error:#}");
}
