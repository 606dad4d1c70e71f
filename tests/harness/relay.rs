//! A relay for UDP in user space: a bad network between two ends on one machine.
//!
//! Owns delay, loss, rate and cuts, each changeable while it runs. One relay serves any number of clients of one server;
//! each gets an own socket towards it.
//! Limit: [`QUEUE_BYTES_MAX`] waiting for the rate; more are dropped, as a router would.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_common::entropy::{Entropy as _, SeededEntropy};
use tokio::{net::UdpSocket, runtime::Handle, sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

/// Bytes that wait for the rate in each direction.
const QUEUE_BYTES_MAX: u64 = 1 << 20;

/// Packets on their way in each direction.
const PACKETS_MAX: usize = 65_536;

/// What the network does to packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Delay in each direction.
    pub delay: Duration,
    /// Packets lost, per million.
    pub loss_per_million: u64,
    /// Bytes per second in each direction; zero means no bound.
    pub bytes_per_second: u64,
    /// Nothing gets through.
    pub cut: bool,
}

/// A running relay. Dropping it ends it.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    weather: Arc<Mutex<Weather>>,
    server: Arc<Mutex<SocketAddr>>,
    _end: tokio_util::sync::DropGuard,
}

impl Relay {
    /// Starts a relay to this server on a port of its own; the seed decides which packets are lost.
    pub async fn start(server: SocketAddr, seed: u64, runtime: &Handle) -> io::Result<Self> {
        let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        let address = front.local_addr()?;
        let weather = Arc::new(Mutex::new(Weather::default()));
        let end = CancellationToken::new();
        let server = Arc::new(Mutex::new(server));
        let task = run(front, Arc::clone(&server), Arc::clone(&weather), seed, end.clone());
        runtime.spawn(task);
        Ok(Self { address, weather, server, _end: end.drop_guard() })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads all packets to another server from now on; what the one before still says is lost. To clients this is one
    /// server that was killed and started again.
    pub fn replace_server(&self, server: SocketAddr) {
        *self.server.lock().unwrap() = server;
    }

    /// Changes the weather.
    pub fn set(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
    }
}

async fn run(
    front: Arc<UdpSocket>,
    server: Arc<Mutex<SocketAddr>>,
    weather: Arc<Mutex<Weather>>,
    seed: u64,
    end: CancellationToken,
) {
    let random = Arc::new(SeededEntropy::new(seed));
    let mut clients: HashMap<SocketAddr, (Arc<UdpSocket>, Direction)> = HashMap::new();
    let mut bytes = vec![0; 65_536];
    loop {
        let received = tokio::select! {
            () = end.cancelled() => return,
            received = front.recv_from(&mut bytes) => received,
        };
        let Ok((length, client)) = received else { continue };
        if let Entry::Vacant(vacant) = clients.entry(client) {
            let Ok(back) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.map(Arc::new) else { continue };
            let up = Direction::start(Arc::clone(&back), &server, &weather, &random);
            let to_client = Arc::new(Mutex::new(client));
            let down = Direction::start(Arc::clone(&front), &to_client, &weather, &random);
            tokio::spawn(answers(Arc::clone(&back), Arc::clone(&server), down, end.clone()));
            vacant.insert((back, up));
        }
        if let Some((_, up)) = clients.get_mut(&client) {
            up.send(&bytes[..length]);
        }
    }
}

/// Carries what the server says back to one client.
async fn answers(
    back: Arc<UdpSocket>,
    server: Arc<Mutex<SocketAddr>>,
    mut down: Direction,
    end: CancellationToken,
) {
    let mut bytes = vec![0; 65_536];
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            received = back.recv_from(&mut bytes) => match received {
                Ok((length, from)) if from == *server.lock().unwrap() => down.send(&bytes[..length]),
                _ => {}
            },
        }
    }
}

/// One direction of one client: packets in order, each at its time.
struct Direction {
    packets: mpsc::Sender<(Instant, Vec<u8>)>,
    weather: Arc<Mutex<Weather>>,
    random: Arc<SeededEntropy>,
    /// When the wire is free again, under the rate.
    free_at: Instant,
}

impl Direction {
    fn start(
        socket: Arc<UdpSocket>,
        to: &Arc<Mutex<SocketAddr>>,
        weather: &Arc<Mutex<Weather>>,
        random: &Arc<SeededEntropy>,
    ) -> Self {
        let (packets, mut waiting) = mpsc::channel::<(Instant, Vec<u8>)>(PACKETS_MAX);
        let to = Arc::clone(to);
        tokio::spawn(async move {
            while let Some((at, bytes)) = waiting.recv().await {
                tokio::time::sleep_until(at).await;
                let to = *to.lock().unwrap();
                let _lost = socket.send_to(&bytes, to).await;
            }
        });
        let (weather, random) = (Arc::clone(weather), Arc::clone(random));
        Self { packets, weather, random, free_at: Instant::now() }
    }

    fn send(&mut self, bytes: &[u8]) {
        let weather = *self.weather.lock().unwrap();
        if weather.cut || self.random.next_u64() % 1_000_000 < weather.loss_per_million {
            return;
        }
        let now = Instant::now();
        let mut at = now;
        if weather.bytes_per_second > 0 {
            let time = |bytes: u64| Duration::from_micros(bytes * 1_000_000 / weather.bytes_per_second);
            let start = self.free_at.max(now);
            if start - now > time(QUEUE_BYTES_MAX) {
                return;
            }
            self.free_at = start + time(bytes.len() as u64);
            at = self.free_at;
        }
        let _full = self.packets.try_send((at + weather.delay, bytes.to_vec()));
    }
}
