//! Sessions that go well, break, and go on.

use std::{sync::Arc, thread, time::Duration};

use anyhow::{Context as _, Result};
use holdfast_agent::{
    identity::Identity,
    ship::{
        self, ShipHandle, ShipParts, ShipSettings,
        port::{Inbound, OutgoingFrame},
    },
};
use holdfast_common::{
    entropy::SystemEntropy,
    ids::{DiskId, Generation, Sequence},
    wire::{AgentMessage, PROTOCOL_VERSION, RefusalCode, TrustLoss},
};
use holdfast_tests::{
    relay::{Relay, Weather},
    transport::{TransportSite, inventory},
};
use tokio::{runtime::Handle, task::spawn_blocking};

use super::raw;

const DISK: DiskId = DiskId::from_bytes([1; 16]);

/// Longest wait for anything; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The agent's half: what capture sees.
struct Capture {
    handle: ShipHandle,
    next: Box<dyn FnMut() -> Result<Inbound> + Send>,
}

impl Capture {
    fn start(site: &TransportSite, name: &str, settings: ShipSettings) -> Result<Self> {
        let parts = ShipParts {
            store: site.identity_store(name),
            inventory: Arc::new(|| inventory("capture")),
            clock: Arc::new(site.clock.clone()),
            entropy: Arc::new(SystemEntropy::new()),
            tracked: None,
        };
        let (handle, events) = ship::start(settings, parts, &Handle::current())?;
        let next = Box::new(move || events.recv_timeout(PATIENCE).context("no event in time"));
        Ok(Self { handle, next })
    }

    /// The next event that the function picks out.
    fn wait<T>(&mut self, mut pick: impl FnMut(Inbound) -> Option<T>) -> Result<T> {
        loop {
            if let Some(picked) = pick((self.next)()?) {
                return Ok(picked);
            }
        }
    }

    fn connected(&mut self) -> Result<()> {
        self.wait(|event| matches!(event, Inbound::Connected(_)).then_some(()))
    }

    fn acknowledged(&mut self, last: u64) -> Result<()> {
        self.wait(|event| match event {
            Inbound::Acknowledged { sequence, .. } => (sequence == Sequence(last)).then_some(()),
            _ => None,
        })
    }
}

fn settings() -> ShipSettings {
    ShipSettings {
        reconnect_min: Duration::from_millis(5),
        reconnect_max: Duration::from_millis(50),
        renewal_check: Duration::from_millis(20),
        ..ShipSettings::default()
    }
}

fn outgoing(generation: Generation, sequence: u64) -> OutgoingFrame {
    let (identity, bytes) = raw::frame(DISK, generation, sequence);
    OutgoingFrame { identity, bytes }
}

/// Sends frames from a thread of its own, as capture does.
fn send(
    handle: &ShipHandle,
    generation: Generation,
    frames: std::ops::RangeInclusive<u64>,
) -> thread::JoinHandle<()> {
    let handle = handle.clone();
    thread::spawn(move || frames.for_each(|number| handle.send_frame(outgoing(generation, number)).unwrap()))
}

fn check_log(site: &TransportSite, generation: Generation, count: u64) {
    let digests = site.store.sink(DISK).digests();
    assert_eq!(digests.len() as u64, count);
    for (digest, number) in digests.iter().zip(1..) {
        let frame = holdfast_common::frame::Frame::verify(raw::frame(DISK, generation, number).1).unwrap();
        assert_eq!(*digest, frame.header().digest, "frame {number}");
    }
}

async fn protected(name: &str) -> Result<(TransportSite, Identity)> {
    let site = TransportSite::start()?;
    let identity = site.enrol(name).await?;
    site.directory.protect(identity.machine, DISK);
    Ok((site, identity))
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_arrive_and_are_acknowledged() -> Result<()> {
    let (site, identity) = protected("plain").await?;
    let mut capture = Capture::start(&site, "plain", settings())?;
    let capture = spawn_blocking(move || -> Result<Capture> {
        capture.connected()?;
        send(&capture.handle, Generation(1), 1..=3000).join().unwrap();
        capture.acknowledged(3000)?;
        Ok(capture)
    })
    .await??;
    check_log(&site, Generation(1), 3000);
    assert_eq!(capture.handle.held_bytes(), 0);
    let figures = site.links.figures(identity.machine).context("figures")?;
    assert!(figures.frame_bytes > 3000 * 4096 && figures.received_bytes > figures.frame_bytes, "{figures:?}");
    assert!(capture.handle.figures().is_some_and(|figures| figures.sent_bytes > 3000 * 4096));
    capture.handle.shutdown().await;
    assert!(site.links.figures(identity.machine).is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_lose_and_double_nothing() -> Result<()> {
    let (site, identity) = protected("breaking").await?;
    let relay = Relay::start(site.address(), 1, &Handle::current()).await?;
    let mut moved = site.identity_store("breaking").load()?;
    moved.coordinator = relay.address().to_string();
    site.identity_store("breaking").store(&moved)?;
    relay.set(Weather { delay: Duration::from_millis(2), loss_per_million: 10_000, ..Weather::default() });
    let mut capture = Capture::start(&site, "breaking", settings())?;
    let links = site.links.clone();
    let breaker = spawn_blocking(move || -> Result<()> {
        capture.connected()?;
        let sender = send(&capture.handle, Generation(1), 1..=4000);
        for round in 1..=8 {
            capture.wait(|event| match event {
                Inbound::Acknowledged { sequence, .. } => (sequence.0 >= round * 400).then_some(()),
                _ => None,
            })?;
            links.close(identity.machine, RefusalCode::BUSY, "broken on purpose");
            capture.wait(|event| matches!(event, Inbound::Disconnected).then_some(()))?;
        }
        capture.acknowledged(4000)?;
        sender.join().unwrap();
        Ok(())
    });
    breaker.await??;
    check_log(&site, Generation(1), 4000);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_was_killed_is_noticed_without_waiting_for_silence() -> Result<()> {
    let (site, identity) = protected("restarted").await?;
    let relay = Relay::start(site.address(), 1, &Handle::current()).await?;
    let mut moved = site.identity_store("restarted").load()?;
    moved.coordinator = relay.address().to_string();
    site.identity_store("restarted").store(&moved)?;
    let mut settings = settings();
    settings.link.idle_timeout = Duration::from_hours(1);
    let mut capture = Capture::start(&site, "restarted", settings)?;
    let capture = spawn_blocking(move || -> Result<Capture> {
        capture.connected()?;
        send(&capture.handle, Generation(1), 1..=10).join().unwrap();
        capture.acknowledged(10)?;
        Ok(capture)
    });
    let mut capture = capture.await??;
    let successor = site.another_endpoint()?;
    relay.replace_server(successor.local_address()?);
    let going_on = spawn_blocking(move || -> Result<()> {
        let sender = send(&capture.handle, Generation(1), 11..=20);
        capture.wait(|event| matches!(event, Inbound::Disconnected).then_some(()))?;
        capture.connected()?;
        capture.acknowledged(20)?;
        sender.join().unwrap();
        Ok(())
    });
    going_on.await??;
    check_log(&site, Generation(1), 20);
    assert!(site.links.figures(identity.machine).is_some());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_stalls_holds_the_agent_back_and_then_goes_on() -> Result<()> {
    let (site, _) = protected("stalled").await?;
    let window_bytes_max = 1 << 20;
    let mut capture = Capture::start(&site, "stalled", ShipSettings { window_bytes_max, ..settings() })?;
    let sink = site.store.sink(DISK);
    sink.stalled.send_replace(true);
    spawn_blocking(move || -> Result<()> {
        capture.connected()?;
        let sender = send(&capture.handle, Generation(1), 1..=1000);
        while capture.handle.wait_for_room(8192, Duration::ZERO) {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(!capture.handle.wait_for_room(8192, Duration::from_millis(100)));
        assert!(capture.handle.held_bytes() <= window_bytes_max);
        assert!(!sender.is_finished());
        sink.stalled.send_replace(false);
        sender.join().unwrap();
        capture.acknowledged(1000)
    })
    .await??;
    check_log(&site, Generation(1), 1000);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_tracking_begins_a_new_generation_behind_what_arrived() -> Result<()> {
    let (site, _) = protected("untrusted").await?;
    let mut capture = Capture::start(&site, "untrusted", settings())?;
    spawn_blocking(move || -> Result<()> {
        capture.connected()?;
        send(&capture.handle, Generation(1), 1..=50).join().unwrap();
        let loss = TrustLoss { disk: DISK, generation: Generation(1), reason: "test".to_owned() };
        capture.handle.send_message(AgentMessage::TrustLost(loss))?;
        let assigned = capture.wait(|event| match event {
            Inbound::Assigned(assignment) => assignment.disks.first().cloned(),
            _ => None,
        })?;
        assert_eq!(assigned.generation, Generation(2));
        let first = assigned.durable.0 + 1;
        send(&capture.handle, Generation(2), first..=first + 9).join().unwrap();
        // Frames of the old line are dropped, not refused.
        capture.handle.send_frame(outgoing(Generation(1), 51))?;
        capture.acknowledged(first + 9)
    })
    .await?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_connection_takes_over() -> Result<()> {
    let (site, identity) = protected("twice").await?;
    let (old, _old_control) = raw::session(&site, &identity, PROTOCOL_VERSION).await?;
    let (new, _new_control) = raw::session(&site, &identity, PROTOCOL_VERSION).await?;
    assert_eq!(raw::close_code(&old).await, RefusalCode::SUPERSEDED);
    assert!(new.close_reason().is_none());
    assert_eq!(site.links.all().len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reassignment_fences_the_old_generation_before_it_returns() -> Result<()> {
    let (site, identity) = protected("fenced").await?;
    let (connection, mut control) = raw::session(&site, &identity, PROTOCOL_VERSION).await?;
    let mut stream = raw::data(&connection, DISK, &raw::frame(DISK, Generation(1), 1).1).await?;
    control.hear().await?;
    site.directory.raise(identity.machine, DISK);
    site.links.reassign(identity.machine).await?;
    // The stream may be stopped already; what matters is that nothing of it is taken.
    let _stopped = stream.write_all(&raw::frame(DISK, Generation(1), 2).1).await;
    assert_eq!(stream.stopped().await?, Some(RefusalCode::FENCED.0.into()));
    assert_eq!(site.store.sink(DISK).digests().len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_renews_itself_during_a_session() -> Result<()> {
    let (site, identity) = protected("renewing").await?;
    let mut capture = Capture::start(&site, "renewing", settings())?;
    let mut capture = spawn_blocking(move || capture.connected().map(|()| capture)).await??;
    site.clock.advance(Duration::from_hours(21 * 24));
    let store = site.identity_store("renewing");
    let renewed = async {
        loop {
            let now = store.load()?;
            if now.certificate != identity.certificate {
                return anyhow::Ok(now);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let renewed = tokio::time::timeout(PATIENCE, renewed).await??;
    assert_eq!(renewed.machine, identity.machine);
    assert_ne!(renewed.key, identity.key);
    // The old one has expired; the next connection uses the new one.
    site.clock.advance(Duration::from_hours(10 * 24));
    site.links.close(identity.machine, RefusalCode::BUSY, "broken on purpose");
    spawn_blocking(move || capture.connected()).await?
}
