//! An ear, and the table of links above it, without a connection.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use holdfast_common::{
    clock::{ManualClock, Timestamp},
    ids::MachineId,
};
use tokio::sync::mpsc;

use super::*;
use crate::ingest::links::{LinkFigures, Live, LiveLinks, Order, PushError};

const MACHINE: MachineId = MachineId::from_bytes([1; 16]);
const SILENCE_MAX: Duration = Duration::from_secs(12);

struct Peer {
    packets: Arc<AtomicU64>,
    orders: mpsc::Receiver<Order>,
}

impl Peer {
    fn speaks(&self) {
        self.packets.fetch_add(1, SeqCst);
    }

    fn told(&mut self) -> Vec<u64> {
        let mut requests = Vec::new();
        while let Ok(Order::Push(Push::MakePoint { request })) = self.orders.try_recv() {
            requests.push(request);
        }
        requests
    }
}

fn connect(links: &LiveLinks, clock: &ManualClock, number: u64) -> Peer {
    let packets = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&packets);
    let ear = Arc::new(Ear::new(move || count.load(SeqCst), Arc::new(clock.clone()), SILENCE_MAX));
    let (sender, orders) = mpsc::channel(ORDERS_MAX);
    let figures = LinkFigures {
        machine: MACHINE,
        peer: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        agent_version: String::new(),
        connected_at: Timestamp(0),
        rtt_us: 0,
        lost_packets: 0,
        sent_packets: 0,
        congestion_window_bytes: 0,
        sent_bytes: 0,
        received_bytes: 0,
        mtu_bytes: 0,
        black_holes: 0,
        frame_bytes: 0,
    };
    let gauge = Arc::new(move || figures.clone());
    links.insert(MACHINE, Live { number, orders: sender, gauge, ear });
    Peer { packets, orders }
}

fn ask(links: &LiveLinks, request: u64) -> Result<(), PushError> {
    links.push(MACHINE, Push::MakePoint { request })
}

#[test]
fn a_session_that_is_not_heard_is_told_nothing() {
    let (links, clock) = (LiveLinks::default(), ManualClock::default());
    let mut peer = connect(&links, &clock, 1);
    assert_eq!(ask(&links, 1), Ok(()));
    clock.advance(SILENCE_MAX);
    assert_eq!(ask(&links, 2), Ok(()));
    clock.advance(Duration::from_secs(1));
    assert_eq!(ask(&links, 3), Err(PushError::Silent));
    peer.speaks();
    assert_eq!(ask(&links, 4), Ok(()));
    assert_eq!(peer.told(), [1, 2, 4]);
}

#[test]
fn looks_in_between_tell_when_the_last_packet_came() {
    let (links, clock) = (LiveLinks::default(), ManualClock::default());
    let peer = connect(&links, &clock, 1);
    peer.speaks();
    links.listen(MACHINE);
    clock.advance(SILENCE_MAX + Duration::from_secs(1));
    assert_eq!(ask(&links, 1), Err(PushError::Silent));
}

#[test]
fn what_a_dead_session_was_told_is_told_to_the_one_that_takes_over() {
    let (links, clock) = (LiveLinks::default(), ManualClock::default());
    let old = connect(&links, &clock, 1);
    ask(&links, 1).unwrap();
    old.speaks();
    ask(&links, 2).unwrap();
    ask(&links, 3).unwrap();
    links.hand_over(MACHINE, 1);
    assert_eq!(ask(&links, 4), Err(PushError::NotConnected));
    // The first was heard: its answer comes, or the agent knew better.
    assert_eq!(connect(&links, &clock, 2).told(), [2, 3]);
    // And only once.
    links.hand_over(MACHINE, 2);
    assert_eq!(connect(&links, &clock, 3).told(), [2, 3]);
}

#[test]
fn what_a_lost_session_was_told_is_forgotten() {
    let (links, clock) = (LiveLinks::default(), ManualClock::default());
    let _old = connect(&links, &clock, 1);
    ask(&links, 1).unwrap();
    links.remove(MACHINE, 1);
    let mut next = connect(&links, &clock, 2);
    assert!(next.told().is_empty(), "nobody waits for it any more");
    ask(&links, 2).unwrap();
    links.hand_over(MACHINE, 2);
    links.remove(MACHINE, 3);
    assert!(connect(&links, &clock, 4).told().is_empty(), "the one that was to take over was refused");
}
