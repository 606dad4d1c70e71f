//! Golden bytes of every message, and refusal of what a newer version would send.
//!
//! `golden/messages.txt` holds a line per message: its name, and its bytes in hexadecimal. A difference is a change of the
//! protocol: it needs a new version, and the old lines must keep decoding.

use std::{collections::BTreeMap, fmt::Debug, fs, path::Path};

use holdfast_common::{codec, wire};
use holdfast_tests::samples;
use serde::{Serialize, de::DeserializeOwned};

fn file(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("formats/golden");
    fs::read_to_string(folder.join(name)).unwrap_or_default()
}

fn golden() -> BTreeMap<String, String> {
    let split = |line: &str| line.split_once(' ').map(|(name, hex)| (name.to_owned(), hex.to_owned()));
    file("messages.txt").lines().filter_map(split).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Checks a sample against its line; gives the line as it would have to be.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, sample: &T) -> Option<String> {
    let found = hex(&codec::encode(sample).unwrap());
    let golden = golden();
    let expected = golden.get(name).map(String::as_str).unwrap_or_default();
    if found != expected {
        return Some(format!("{name} {found}"));
    }
    assert_eq!(&codec::decode::<T>(&unhex(expected)).unwrap(), sample, "{name}");
    None
}

#[test]
fn every_message_keeps_its_bytes() {
    let agent = samples::agent_messages();
    let coordinator = samples::coordinator_messages();
    let replies = samples::enrol_replies();
    let mut different: Vec<String> = Vec::new();
    different.extend(agent.iter().filter_map(|message| check(samples::agent_name(message), message)));
    different
        .extend(coordinator.iter().filter_map(|message| check(samples::coordinator_name(message), message)));
    different.extend(replies.iter().filter_map(|message| check(samples::enrol_name(message), message)));
    different.extend(check("enrol/request", &samples::enrol_request()));
    different.extend(check("data-stream/start", &samples::data_stream_start()));
    assert!(different.is_empty(), "these bytes changed:\n{}", different.join("\n"));
    assert_eq!(golden().len(), agent.len() + coordinator.len() + replies.len() + 2, "samples without a line");
}

#[test]
fn variants_of_a_newer_version_are_refused() {
    assert!(codec::decode::<wire::AgentMessage>(&[11]).is_err());
    assert!(codec::decode::<wire::CoordinatorMessage>(&[12, 0]).is_err());
    assert!(codec::decode::<wire::EnrolReply>(&[2, 0]).is_err());
}

/// The catalog keeps inventory and identity as JSON: names are as fixed as bytes.
#[test]
fn the_inventory_keeps_its_names() {
    let text = serde_json::to_string(&samples::inventory()).unwrap();
    assert_eq!(text, file("inventory.json").trim_end());
    let read: wire::Inventory = serde_json::from_str(&text).unwrap();
    assert_eq!(read, samples::inventory());
}
