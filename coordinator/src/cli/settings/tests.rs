//! Which coordinator is meant, and whose token is used for it.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use holdfast_common::token::{Fingerprint, OperatorToken};

use super::{File, Target, choose, read};

fn token(number: u8) -> OperatorToken {
    OperatorToken { secret: [number; 32], authority: Fingerprint([9; 32]) }
}

fn file(coordinator: &str, number: u8) -> File {
    File { coordinator: Some(coordinator.to_owned()), token: Some(token(number).to_text()) }
}

#[test]
fn what_is_given_wins_over_the_files_and_they_over_the_default() {
    let files = [file("https://a:1", 1), file("/srv/h.sock", 2)];
    let socket = |path: &str| Target::Socket(PathBuf::from(path));
    let remote = |number| Target::Remote { address: "a:1".to_owned(), token: token(number) };
    assert_eq!(choose(None, None, &[]).unwrap(), socket("/var/lib/holdfast/holdfast.sock"));
    assert_eq!(choose(None, None, &files).unwrap(), remote(1));
    assert_eq!(choose(Some("https://a:1/"), None, &files).unwrap(), remote(1));
    assert_eq!(choose(None, Some(&token(3).to_text()), &files).unwrap(), remote(3));
    assert_eq!(choose(Some("unix:///run/x.sock"), None, &files).unwrap(), socket("/run/x.sock"));
}

#[test]
fn a_token_is_used_only_for_the_coordinator_beside_it() {
    assert!(choose(Some("https://b:1"), None, &[file("https://a:1", 1)]).is_err());
    for wrong in ["https://a", "https://:1", "https://a:x", "https://a:1/path", "http://a:1", "ssh://a"] {
        assert!(choose(Some(wrong), Some(&token(1).to_text()), &[]).is_err(), "{wrong}");
    }
    assert!(choose(Some("https://a:1"), Some("hello"), &[]).is_err());
}

#[test]
fn a_file_with_a_token_that_others_can_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    fs::write(&path, toml::to_string(&file("https://a:1", 1)).unwrap()).unwrap();
    let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    assert!(read(&path).is_err());
    mode(0o600);
    assert!(read(&path).unwrap().is_some());
}
