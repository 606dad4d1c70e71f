//! Tests of the messages between agent and guardian.

use std::{
    fs::File,
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::{FILE_SYSTEMS_MAX, Message, receive, send};

#[test]
fn every_message_comes_back_as_it_was() {
    for message in [
        Message::Ready,
        Message::Arm { hold: 7, bound: Duration::from_micros(2_000_001) },
        Message::Armed { hold: u64::MAX },
        Message::Begun { hold: 7, index: 249 },
        Message::Settled { hold: 7 },
        Message::Released { hold: 7 },
        Message::Disarmed { hold: 7, overran: true },
        Message::Disarmed { hold: 7, overran: false },
    ] {
        assert_eq!(Message::decode(&message.encode()), Some(message));
        assert_eq!(Message::decode(&message.encode()[1..]), None);
    }
    assert_eq!(Message::decode(&[9; 24]), None);
}

#[test]
fn the_largest_number_of_folders_travels_in_one_message() {
    let kind = SocketType::SEQPACKET;
    let (here, there) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    let folder = File::open("/").unwrap();
    let folders: Vec<BorrowedFd<'_>> = vec![folder.as_fd(); FILE_SYSTEMS_MAX];
    let arm = Message::Arm { hold: 1, bound: Duration::from_secs(2) };
    send(here.as_fd(), arm, &folders).unwrap();
    let mut received = Vec::new();
    assert_eq!(receive(there.as_fd(), &mut received).unwrap(), Some(arm));
    assert_eq!(received.len(), FILE_SYSTEMS_MAX);
    drop(here);
    assert_eq!(receive(there.as_fd(), &mut received).unwrap(), None);
}
