//! What goes wrong while group points are made, one thing after another, from a seed.

use std::{collections::BTreeMap, net::SocketAddr, sync::mpsc, thread, time::Duration};

use anyhow::{Context as _, Result};
use holdfast_common::entropy::{Entropy as _, SeededEntropy};
use holdfast_tests::{
    file_system::run,
    network::Namespace,
    relay::{Relay, Weather},
    site::Site,
};

use super::super::Member;

/// The faults, and what was done so far.
pub(super) struct Faults {
    random: SeededEntropy,
    done: BTreeMap<&'static str, usize>,
    road: Option<Relay>,
    /// Ends the relay's thread when it is dropped.
    _road_ends: Option<mpsc::Sender<()>>,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: SeededEntropy::new(seed), done: BTreeMap::new(), road: None, _road_ends: None }
    }

    /// A relay to the coordinator inside this network; gives its address there.
    pub(super) fn relay_in(&mut self, namespace: &Namespace, server: SocketAddr) -> Result<SocketAddr> {
        let (started, relay) = mpsc::channel();
        let (road_ends, ended) = mpsc::channel();
        let place = namespace.enter()?;
        thread::spawn(move || -> Result<()> {
            place()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            started.send(runtime.block_on(Relay::start(server, 7, runtime.handle()))?)?;
            runtime.block_on(async {
                while ended.try_recv() != Err(mpsc::TryRecvError::Disconnected) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
            Ok(())
        });
        let relay = relay.recv().context("a relay")?;
        let address = relay.address();
        relay.set(USUAL);
        (self.road, self._road_ends) = (Some(relay), Some(road_ends));
        Ok(address)
    }

    pub(super) fn count(&self) -> usize {
        self.done.values().sum()
    }

    pub(super) const fn done(&self) -> &BTreeMap<&'static str, usize> {
        &self.done
    }

    fn draw(&self, from: u64, to: u64) -> u64 {
        from + self.random.next_u64() % (to - from)
    }

    fn pause(&self, from: u64, to: u64) {
        thread::sleep(Duration::from_millis(self.draw(from, to)));
    }

    /// Lets some time pass, then has something go wrong for a while.
    pub(super) fn next(&mut self, site: &mut Site, members: &mut [Member]) -> Result<()> {
        self.pause(300, 2500);
        let which = usize::try_from(self.draw(0, members.len() as u64))?;
        let member = members.get_mut(which).context("a member")?;
        // Each kind once before any comes again by chance.
        let kind = if self.count() < KINDS.len() { self.count() } else { self.draw(0, 7) as usize };
        match kind {
            0 => {
                member.agent.kill()?;
                self.pause(0, 700);
                member.agent.start()?;
            }
            1 => {
                member.namespace.lose(u8::try_from(self.draw(2, 20))?)?;
                self.pause(500, 2000);
                member.namespace.lose(0)?;
            }
            2 => {
                site.kill_coordinator()?;
                self.pause(0, 400);
                site.start_coordinator()?;
            }
            3 => {
                let road = self.road.as_ref().context("a relay")?;
                let delay = Duration::from_millis(self.draw(5, 150));
                road.set(Weather { delay, loss_per_million: self.draw(0, 50_000), ..Weather::default() });
                self.pause(500, 2000);
                road.set(USUAL);
            }
            4 => {
                // Longer than any hold may last: its guardian thaws.
                let process = member.agent.process_id().to_string();
                run(std::process::Command::new("kill").args(["-STOP", &process]))?;
                self.pause(100, 3000);
                run(std::process::Command::new("kill").args(["-CONT", &process]))?;
            }
            5 => {
                member.namespace.set_link(false)?;
                self.pause(50, 1500);
                member.namespace.set_link(true)?;
                // The address stays, routes over the pair do not.
                member.namespace.forward()?;
            }
            _ => self.pause(500, 3000),
        }
        *self.done.entry(KINDS.get(kind).copied().unwrap_or("calm")).or_default() += 1;
        Ok(())
    }
}

/// The last machine is always some way off, so that holds that did not wait for each other would not overlap by chance.
const USUAL: Weather =
    Weather { delay: Duration::from_millis(6), loss_per_million: 0, bytes_per_second: 0, cut: false };

const KINDS: [&str; 7] =
    ["agent killed", "packets lost", "coordinator killed", "long way", "agent stopped", "link cut", "calm"];
