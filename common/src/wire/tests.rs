//! Golden bytes of control messages: a change here is a change of the protocol and needs a new version.

use crate::{
    codec::{decode, encode},
    ids::{DiskId, Sequence},
    wire::{AgentMessage, CoordinatorMessage, Refusal, RefusalCode},
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_bytes_of_an_acknowledgement() {
    let message =
        CoordinatorMessage::Acknowledge { disk: DiskId::from_bytes([0xaa; 16]), sequence: Sequence(300) };
    let bytes = encode(&message).unwrap();
    assert_eq!(hex(&bytes), "0210aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaafb2c01");
    assert_eq!(decode::<CoordinatorMessage>(&bytes).unwrap(), message);
}

#[test]
fn golden_bytes_of_a_refusal() {
    let message = CoordinatorMessage::Refused(Refusal::new(RefusalCode::FENCED, "no"));
    assert_eq!(hex(&encode(&message).unwrap()), "0706026e6f");
}

#[test]
fn the_last_variants_keep_their_numbers() {
    assert_eq!(encode(&AgentMessage::Closing).unwrap(), [7]);
    assert_eq!(encode(&CoordinatorMessage::MakePoint { request: 1 }).unwrap(), [4, 1]);
}

#[test]
fn bytes_after_a_message_are_refused() {
    assert!(decode::<AgentMessage>(&[7, 0]).is_err());
}
