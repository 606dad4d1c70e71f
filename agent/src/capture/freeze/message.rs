//! What agent and guardian say to each other, over a socket pair that keeps messages apart.
//!
//! Owns the encoding and the passing of open folders. Knows no state. Both ends are always the same program (the guardian is
//! the agent's own binary), so the format has no version.
//!
//! Format, 24 bytes, little endian: byte 0: kind; 1 - 7: zero; 8 - 15: number of the hold; 16 - 23: value of the kind.
//! `Arm` carries the descriptors of the folders, in the order of freezing.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::FILE_SYSTEMS_MAX;

/// Size of a message.
const MESSAGE_BYTES: usize = 24;
/// Space for the descriptors of one message.
const SPACE_BYTES: usize = rustix::cmsg_space!(ScmRights(FILE_SYSTEMS_MAX));

/// A message, either way. `hold` is the number of the hold that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Guardian: ready, memory locked.
    Ready,
    /// Agent: these folders are about to be frozen; thaw them when the bound is over.
    Arm {
        /// Number of the hold.
        hold: u64,
        /// Time until the guardian thaws.
        bound: Duration,
    },
    /// Guardian: the bound runs from now.
    Armed {
        /// Number of the hold.
        hold: u64,
    },
    /// Agent: the call that freezes this folder is about to be made.
    Begun {
        /// Number of the hold.
        hold: u64,
        /// Which folder.
        index: usize,
    },
    /// Agent: no call that freezes is under way any more.
    Settled {
        /// Number of the hold.
        hold: u64,
    },
    /// Agent: everything is thawed.
    Released {
        /// Number of the hold.
        hold: u64,
    },
    /// Guardian: disarmed.
    Disarmed {
        /// Number of the hold.
        hold: u64,
        /// Whether the guardian had begun to thaw.
        overran: bool,
    },
}

impl Message {
    fn encode(self) -> [u8; MESSAGE_BYTES] {
        let (kind, hold, value): (u8, u64, u64) = match self {
            Self::Ready => (1, 0, 0),
            Self::Arm { hold, bound } => (2, hold, u64::try_from(bound.as_micros()).unwrap_or(u64::MAX)),
            Self::Armed { hold } => (3, hold, 0),
            Self::Begun { hold, index } => (4, hold, index as u64),
            Self::Settled { hold } => (5, hold, 0),
            Self::Released { hold } => (6, hold, 0),
            Self::Disarmed { hold, overran } => (7, hold, u64::from(overran)),
        };
        let mut bytes = [0; MESSAGE_BYTES];
        let (head, numbers) = bytes.split_at_mut(8);
        let (first, second) = numbers.split_at_mut(8);
        head.copy_from_slice(&u64::from(kind).to_le_bytes());
        first.copy_from_slice(&hold.to_le_bytes());
        second.copy_from_slice(&value.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (numbers, rest) = bytes.as_chunks::<8>();
        let &[kind, hold, value] = numbers else { return None };
        if !rest.is_empty() {
            return None;
        }
        let (hold, value) = (u64::from_le_bytes(hold), u64::from_le_bytes(value));
        Some(match u64::from_le_bytes(kind) {
            1 => Self::Ready,
            2 => Self::Arm { hold, bound: Duration::from_micros(value) },
            3 => Self::Armed { hold },
            4 => Self::Begun { hold, index: usize::try_from(value).ok()? },
            5 => Self::Settled { hold },
            6 => Self::Released { hold },
            7 => Self::Disarmed { hold, overran: value != 0 },
            _ => return None,
        })
    }
}

/// Sends a message with open folders. Never waits: a full socket is an error.
pub(super) fn send(socket: BorrowedFd<'_>, message: Message, folders: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); SPACE_BYTES];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !folders.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(folders)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many folders for one message"));
    }
    let bytes = message.encode();
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a message; folders that come with it are added to `folders`. `None` if the other end is gone.
pub(super) fn receive(socket: BorrowedFd<'_>, folders: &mut Vec<OwnedFd>) -> io::Result<Option<Message>> {
    let mut bytes = [0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); SPACE_BYTES];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            result => break result?.bytes,
        }
    };
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            folders.extend(received);
        }
    }
    if received == 0 {
        return Ok(None);
    }
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "not a message of the guardian's protocol");
    bytes.get(..received).and_then(Message::decode).ok_or_else(malformed).map(Some)
}

#[cfg(test)]
mod tests;
