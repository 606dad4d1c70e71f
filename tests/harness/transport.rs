//! Both ends of the transport over real QUIC on loopback, with registry and store in memory.
//!
//! Owns the doubles behind ingest's ports, and builders for a coordinator and its agents.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Result;
use holdfast_agent::{
    enrol::{EnrolError, enrol},
    identity::{Identity, IdentityStore},
};
use holdfast_common::{
    clock::{Clock, ManualClock, Timestamp},
    entropy::{Entropy, SystemEntropy},
    frame::Frame,
    ids::{DiskId, Generation, Interval, MachineId, Sequence},
    token::{EnrolToken, TokenHash},
    units::BlockIndex,
    wire::{
        Assignment, AuditAnswer, Capture, CutVoided, DiskIdentity, DiskReport, Firmware, GroupAnswer, Hello,
        Inventory, MachineSettings, Platform, Refusal, RefusalCode, ScanAnswer, ScanQuestion, SourceAnswer,
        TrustLoss, WriteBackReply, WriteBackRequest,
    },
};
use holdfast_coordinator::{
    authority::Authority,
    ingest::{
        Ingest, IngestSettings,
        links::LiveLinks,
        port::{
            CertificateRecord, CertificateSerial, Directory, Enrolment, FrameSink, FrameStore, PortError,
            PortFuture, Ports, ReplicaComparer, WriteBackDesk, WriteBackFuture,
        },
    },
};
use tokio::{runtime::Handle, sync::watch};

/// Time at which tests begin.
const BEGIN: Timestamp = Timestamp(1_800_000_000_000_000);

/// Machines, tokens and certificates in memory.
#[derive(Debug, Default)]
pub struct MemoryDirectory {
    state: Mutex<DirectoryState>,
    store: Arc<MemoryStore>,
    clock: ManualClock,
}

#[derive(Debug, Default)]
struct DirectoryState {
    tokens: HashMap<TokenHash, Timestamp>,
    certificates: HashMap<CertificateSerial, MachineId>,
    assigned: HashMap<MachineId, BTreeMap<DiskId, Generation>>,
    hellos: usize,
}

impl MemoryDirectory {
    /// Lets the machine protect a disk.
    pub fn protect(&self, machine: MachineId, disk: DiskId) {
        self.state.lock().unwrap().assigned.entry(machine).or_default().insert(disk, Generation(1));
    }

    /// Raises a disk's generation, as a failover does.
    pub fn raise(&self, machine: MachineId, disk: DiskId) {
        let mut state = self.state.lock().unwrap();
        let generation = state.assigned.get_mut(&machine).and_then(|disks| disks.get_mut(&disk)).unwrap();
        *generation = Generation(generation.0 + 1);
    }

    /// Revokes all certificates of the machine.
    pub fn revoke(&self, machine: MachineId) {
        self.state.lock().unwrap().certificates.retain(|_, holder| *holder != machine);
    }

    /// Number of sessions that were opened.
    pub fn hellos(&self) -> usize {
        self.state.lock().unwrap().hellos
    }
}

fn refused(code: RefusalCode, text: &str) -> PortError {
    PortError::Refused(Refusal::new(code, text))
}

impl Directory for MemoryDirectory {
    fn group_answer(&self, _machine: MachineId, _answer: GroupAnswer) {}

    fn audit_answer(&self, _machine: MachineId, _answer: AuditAnswer) {}

    fn source_answer(&self, _machine: MachineId, _answer: SourceAnswer) {}

    fn check_token(&self, token: TokenHash) -> PortFuture<'_, Option<MachineId>> {
        let now = self.clock.wall();
        let state = self.state.lock().unwrap();
        let answer = match state.tokens.get(&token) {
            Some(expires) if now < *expires => Ok(None),
            Some(_) => Err(refused(RefusalCode::TOKEN, "the token has expired")),
            None => Err(refused(RefusalCode::TOKEN, "the token is unknown or was used")),
        };
        Box::pin(async { answer })
    }

    fn enrol(&self, enrolment: Enrolment) -> PortFuture<'_, ()> {
        let mut state = self.state.lock().unwrap();
        let used = state.tokens.remove(&enrolment.token).is_none();
        if !used {
            state.certificates.insert(enrolment.certificate.serial, enrolment.machine);
        }
        Box::pin(async move { if used { Err(refused(RefusalCode::TOKEN, "used")) } else { Ok(()) } })
    }

    fn admit(&self, machine: MachineId, serial: CertificateSerial) -> PortFuture<'_, ()> {
        let known = self.state.lock().unwrap().certificates.get(&serial) == Some(&machine);
        Box::pin(async move { if known { Ok(()) } else { Err(refused(RefusalCode::REVOKED, "revoked")) } })
    }

    fn admit_fenced(&self, machine: MachineId, serial: CertificateSerial) -> PortFuture<'_, ()> {
        self.admit(machine, serial)
    }

    fn record_certificate(&self, machine: MachineId, certificate: CertificateRecord) -> PortFuture<'_, ()> {
        self.state.lock().unwrap().certificates.insert(certificate.serial, machine);
        Box::pin(async { Ok(()) })
    }

    fn record_hello(&self, _machine: MachineId, _hello: Box<Hello>) -> PortFuture<'_, ()> {
        self.state.lock().unwrap().hellos += 1;
        Box::pin(async { Ok(()) })
    }

    fn record_inventory(&self, _machine: MachineId, _inventory: Box<Inventory>) -> PortFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn assignment(&self, machine: MachineId) -> PortFuture<'_, Assignment> {
        let disks = self.state.lock().unwrap().assigned.get(&machine).cloned().unwrap_or_default();
        let durable = |disk| *self.store.sink(disk).durable.borrow();
        let captures = disks.into_iter().map(|(disk, generation)| capture(disk, generation, durable(disk)));
        let assignment = assignment(captures.collect());
        Box::pin(async { Ok(assignment) })
    }

    fn raise_generation(&self, machine: MachineId, loss: TrustLoss) -> PortFuture<'_, ()> {
        self.raise(machine, loss.disk);
        Box::pin(async { Ok(()) })
    }

    fn record_report(&self, _machine: MachineId, _report: DiskReport) {}

    fn record_void(&self, _machine: MachineId, _voided: CutVoided) -> PortFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn record_disconnected(&self, _machine: MachineId, _reason: String) {}
}

/// Logs in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    sinks: Mutex<HashMap<DiskId, Arc<MemorySink>>>,
}

/// One log: digests of its frames in order.
#[derive(Debug)]
pub struct MemorySink {
    /// Whether nothing is taken now.
    pub stalled: watch::Sender<bool>,
    log: Mutex<Vec<[u8; 32]>>,
    durable: watch::Sender<Sequence>,
}

impl MemoryStore {
    /// The log of a disk.
    pub fn sink(&self, disk: DiskId) -> Arc<MemorySink> {
        let new = || MemorySink {
            stalled: watch::Sender::new(false),
            log: Mutex::default(),
            durable: watch::Sender::new(Sequence(0)),
        };
        Arc::clone(self.sinks.lock().unwrap().entry(disk).or_insert_with(|| Arc::new(new())))
    }
}

impl MemorySink {
    /// Digests of all frames in the log.
    pub fn digests(&self) -> Vec<[u8; 32]> {
        self.log.lock().unwrap().clone()
    }
}

impl FrameStore for MemoryStore {
    fn open(&self, disk: DiskId) -> PortFuture<'_, Arc<dyn FrameSink>> {
        let sink: Arc<dyn FrameSink> = self.sink(disk);
        Box::pin(async { Ok(sink) })
    }
}

impl FrameSink for MemorySink {
    fn append(&self, frames: Vec<Frame>) -> PortFuture<'_, ()> {
        Box::pin(async move {
            let mut stalled = self.stalled.subscribe();
            let _gone = stalled.wait_for(|stalled| !*stalled).await;
            let mut log = self.log.lock().unwrap();
            for frame in &frames {
                assert_eq!(frame.header().sequence.0, log.len() as u64 + 1, "a gap reached the sink");
                log.push(frame.header().digest);
            }
            self.durable.send_replace(Sequence(log.len() as u64));
            Ok(())
        })
    }

    fn durable(&self) -> watch::Receiver<Sequence> {
        self.durable.subscribe()
    }

    fn settle(&self) -> PortFuture<'_, Sequence> {
        Box::pin(async { Ok(*self.durable.borrow()) })
    }
}

/// Finds every range different.
#[derive(Debug)]
struct AllDiffers;

impl ReplicaComparer for AllDiffers {
    fn compare(&self, question: ScanQuestion) -> PortFuture<'_, ScanAnswer> {
        let differs = vec![true; question.digests.len()];
        Box::pin(async move { Ok(ScanAnswer { question: question.question, disk: question.disk, differs }) })
    }
}

/// A coordinator's transport half.
#[derive(Debug)]
pub struct TransportSite {
    /// Time of both ends.
    pub clock: ManualClock,
    /// The CA.
    pub authority: Arc<Authority>,
    /// Machines and tokens.
    pub directory: Arc<MemoryDirectory>,
    /// Logs.
    pub store: Arc<MemoryStore>,
    /// Live links.
    pub links: LiveLinks,
    /// The endpoint.
    pub ingest: Ingest,
    folder: tempfile::TempDir,
    entropy: Arc<dyn Entropy>,
}

impl TransportSite {
    /// Starts one on a port of its own.
    pub fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let clock = ManualClock::default();
        clock.step_wall(BEGIN);
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy::new());
        let life = Duration::from_hours(30 * 24);
        let authority =
            Arc::new(Authority::open(folder.path(), life, Arc::clone(&shared), Arc::clone(&entropy))?);
        let store = Arc::new(MemoryStore::default());
        let state = Mutex::default();
        let directory = Arc::new(MemoryDirectory { state, store: Arc::clone(&store), clock: clock.clone() });
        let links = LiveLinks::default();
        let ingest = listen(&authority, &directory, &store, &links, &clock, &entropy)?;
        Ok(Self { clock, authority, directory, store, links, ingest, folder, entropy })
    }

    /// Another endpoint with the same CA and the same state: what the coordinator is after a new start.
    pub fn another_endpoint(&self) -> Result<Ingest> {
        listen(&self.authority, &self.directory, &self.store, &self.links, &self.clock, &self.entropy)
    }

    /// Where agents connect to.
    pub fn address(&self) -> SocketAddr {
        self.ingest.local_address().unwrap()
    }

    /// Makes a token that is valid for an hour.
    pub fn token(&self) -> EnrolToken {
        let token = self.authority.new_token();
        let expires = self.clock.wall().plus(Duration::from_hours(1));
        self.directory.state.lock().unwrap().tokens.insert(token.hash(), expires);
        token
    }

    /// Enrols with this token, at this address, into a folder of this name.
    pub async fn enrol_at(
        &self,
        address: SocketAddr,
        token: &EnrolToken,
        name: &str,
    ) -> Result<Identity, EnrolError> {
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        enrol(&address.to_string(), token, name, &self.identity_store(name), clock, &SystemEntropy::new())
            .await
    }

    /// Enrols a new agent.
    pub async fn enrol(&self, name: &str) -> Result<Identity, EnrolError> {
        self.enrol_at(self.address(), &self.token(), name).await
    }

    /// The identity file of an agent.
    pub fn identity_store(&self, name: &str) -> IdentityStore {
        IdentityStore::new(&self.folder.path().join(name))
    }
}

/// No machine is ever fenced.
#[derive(Debug)]
struct NoWayBack;

impl WriteBackDesk for NoWayBack {
    fn answer(&self, _machine: MachineId, _request: WriteBackRequest) -> WriteBackFuture<'_> {
        Box::pin(async { WriteBackReply::LetIn })
    }
}

fn listen(
    authority: &Arc<Authority>,
    directory: &Arc<MemoryDirectory>,
    store: &Arc<MemoryStore>,
    links: &LiveLinks,
    clock: &ManualClock,
    entropy: &Arc<dyn Entropy>,
) -> Result<Ingest> {
    let ports = Ports {
        directory: Arc::clone(directory) as Arc<dyn Directory>,
        store: Arc::clone(store) as Arc<dyn FrameStore>,
        replica: Arc::new(AllDiffers),
        write_back: Arc::new(NoWayBack),
    };
    let settings = IngestSettings {
        // No test shall pass because a dead connection was given up in the end.
        idle_timeout: Duration::from_mins(10),
        ..IngestSettings::new((Ipv4Addr::LOCALHOST, 0).into())
    };
    let clock = Arc::new(clock.clone());
    let (authority, entropy) = (Arc::clone(authority), Arc::clone(entropy));
    Ok(Ingest::start(&settings, authority, ports, links.clone(), clock, entropy, &Handle::current())?)
}

/// A disk that has been compared, and goes on behind `durable`.
#[must_use]
pub fn capture(disk: DiskId, generation: Generation, durable: Sequence) -> Capture {
    Capture {
        disk,
        identity: DiskIdentity::default(),
        path: String::new(),
        size_bytes: 1 << 30,
        generation,
        durable,
        interval: Interval(1),
        scanned_to: BlockIndex(0),
        scan_complete: true,
        replica_empty: false,
    }
}

/// These disks, without bounds of rates.
#[must_use]
pub fn assignment(disks: Vec<Capture>) -> Assignment {
    let settings = MachineSettings {
        cut_interval_ms: 10_000,
        hold_ms_max: 2_000,
        send_bytes_per_second_max: 0,
        scan_bytes_per_second_max: 0,
    };
    Assignment { settings, disks }
}

/// A machine that has nothing.
#[must_use]
pub fn inventory(host_name: &str) -> Inventory {
    Inventory {
        host_name: host_name.to_owned(),
        operating_system: String::new(),
        kernel: String::new(),
        boot_id: String::new(),
        firmware: Firmware::Bios,
        platform: Platform::Kvm,
        hardware: String::new(),
        hardware_uuid: String::new(),
        processors: 1,
        memory_bytes: 1 << 30,
        network_cards: Vec::new(),
        disks: Vec::new(),
        drivers: Vec::new(),
    }
}
