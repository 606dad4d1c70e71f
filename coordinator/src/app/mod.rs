//! The coordinator as a running program: everything is built and wired here.
//!
//! Owns the order of starting and stopping, pools, and the tasks that belong to no part. Knows no business rule.
//! Order: data folder (locked) -> CA, catalog, store (recovered) -> points, logs, registry -> jobs -> ingest -> operators'
//! interface. Stopping goes the other way: no frame that was taken is dropped.
//! Pools: async threads, blocking threads (files, views), `verify` threads (frames), one `index` thread; sizes are settings.

mod adapters;
mod audits;
mod checks;
mod copies;
mod damage;
mod data;
mod diff;
mod drills;
mod housekeeping;
mod jobs;
mod logs;
mod plans;
mod points;
mod readiness;
mod rebuild;
mod reclaim;
mod scripts;
mod reverse;
mod sources;

use std::{future::Future, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use holdfast_common::{
    causes::in_one_line,
    clock::{Clock, SystemClock},
    entropy::{Entropy, SystemEntropy},
    ids::DiskId,
};
use tokio::{
    net::{TcpListener, UnixListener},
    runtime::Handle,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use adapters::{Comparer, Figures, IngestStore, RegistryLogs, Trouble};
use audits::{AuditControl, Audits};
use checks::Checks;
use damage::{FailedReads, Repair};
use data::DataFolder;
use logs::Logs;
use reclaim::{Reclaimer, SpaceFigures};
use reverse::{Reverse, ReverseParts};

use crate::{
    api::{self, ApiState, Peer, remote::Limits},
    authority::Authority,
    catalog::{Catalog, SqliteCatalog, record::MachineState},
    compute::{
        image::writer::ImageWriter,
        machines::{Machines, OwnImages},
        nbd::{
            attach::NbdAttach,
            server::{DamageSink, Settings as NbdSettings},
        },
        port::{Attach, Branches},
        vm::{MachineSettings, QemuMachines},
    },
    config::Settings,
    drills::{DrillBook, DrillFolder},
    failover::{
        plans::failover::Services,
        port::{PointSource, WayBack},
        runner::{Jobs, Parts},
    },
    groups::{
        book::GroupBook,
        driver::{Driver, DriverParts},
        inbox::GroupInbox,
    },
    ingest::{
        Ingest, IngestSettings,
        links::LiveLinks,
        port::{Directory, FrameStore, Ports, ReplicaComparer},
    },
    points::{
        catalog::PointCatalog,
        checks::CheckPolicy,
        damage::{DamageLedger, DamagedFrame, Differing, DiskDamage},
        frame_cache::FrameCache,
    },
    registry::{Registry, RegistryParts},
    reverse::desk::Desk,
    store::{DiskRecovery, Store, StoreSettings},
};

pub use rebuild::{Rebuilt, rebuild_catalog};

/// Name of the operators' socket.
pub const SOCKET: &str = "holdfast.sock";
/// Bytes of decompressed frames kept for comparing replicas with their sources, which reads each frame about once.
const COMPARE_CACHE_BYTES: usize = 8 << 20;
/// How long requests of operators may go on when the coordinator ends.
const DRAIN: Duration = Duration::from_secs(5);

/// Everything that runs.
struct Running {
    catalog: Arc<SqliteCatalog>,
    logs: Arc<Logs>,
    checks: Arc<Checks>,
    audits: Arc<Audits>,
    readiness: Arc<readiness::Readiness>,
    jobs: Arc<Jobs>,
    ingest: Ingest,
    state: ApiState,
    space: Arc<SpaceFigures>,
    reverse: Arc<Reverse>,
}

/// Runs the coordinator until `stop` resolves.
///
/// # Errors
/// It cannot start; the text says why and what to do. Nothing was changed then but for what recovery did.
pub async fn serve(settings: Settings, stop: impl Future<Output = ()>) -> Result<()> {
    settings.check()?;
    tracing::info!(settings = serde_json::to_string(&settings)?, "effective settings");
    let opening = settings.data.clone();
    let data = tokio::task::spawn_blocking(move || DataFolder::open(&opening)).await??;
    let (running, driver) = start(&settings, &data).await?;
    let socket = settings.sockets().join(SOCKET);
    let listener = listen(&socket)?;
    let closing = CancellationToken::new();
    let remote = match settings.api_listen {
        None => None,
        Some(address) => Some(serve_remote(address, &running.state, closing.clone()).await?),
    };
    let keeping = tokio::spawn(housekeeping::run(
        Arc::clone(&running.state.registry),
        Arc::clone(&running.state.points),
        Arc::clone(&running.state.damage),
        closing.clone(),
    ));
    let repair = Repair {
        logs: Arc::clone(&running.logs),
        registry: Arc::clone(&running.state.registry),
        links: running.state.links.clone(),
        ledger: Arc::clone(&running.state.damage),
        clock: Arc::clone(&running.state.clock),
    };
    let repairing = tokio::spawn(repair.run(closing.clone()));
    let reclaimer = Reclaimer {
        logs: Arc::clone(&running.logs),
        points: Arc::clone(&running.state.points),
        clock: Arc::clone(&running.state.clock),
        bytes_per_second: settings.reclaim_bytes_per_second,
        segment_bytes: settings.segment_bytes,
        figures: Arc::clone(&running.space),
    };
    let reclaiming = tokio::spawn(reclaimer.run(closing.clone()));
    let checking = tokio::spawn(Arc::clone(&running.checks).run(closing.clone()));
    let drilling = tokio::spawn(drills::run(running.state.clone(), closing.clone()));
    let looking = tokio::spawn(Arc::clone(&running.readiness).run(closing.clone()));
    let cutting = tokio::spawn(driver.run(closing.clone()));
    let following = tokio::spawn(Arc::clone(&running.reverse).run(closing.clone()));
    let service = api::router(running.state.clone()).into_make_service_with_connect_info::<Peer>();
    let drained = closing.clone();
    let server = tokio::spawn(async move {
        axum::serve(listener, service).with_graceful_shutdown(drained.cancelled_owned()).await
    });
    tracing::info!(agents = running.state.listen, operators = %socket.display(), "the coordinator is running");
    stop.await;
    tracing::info!("stopping");
    closing.cancel();
    let _removed = std::fs::remove_file(&socket);
    // A request that waits for a point must not hold the end up.
    let _drained = tokio::time::timeout(DRAIN, async {
        let _ended = server.await;
        if let Some(remote) = remote {
            let _ended = remote.await;
        }
    })
    .await;
    keeping.await?;
    repairing.await?;
    reclaiming.await?;
    checking.await?;
    looking.await?;
    drilling.await?;
    cutting.await?;
    following.await?;
    finish(running).await;
    Ok(())
}

async fn start(settings: &Settings, data: &DataFolder) -> Result<(Running, Driver)> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy::new());
    let started_at = clock.wall();
    let life = Duration::from_hours(24) * settings.certificate_days;
    // There is a catalog only behind a CA.
    if data.catalog().exists() {
        Authority::check_whole(&data.authority()).context("opening the coordinator's CA")?;
    }
    let authority = Authority::open(&data.authority(), life, Arc::clone(&clock), Arc::clone(&entropy));
    let authority = Arc::new(authority.context("opening the coordinator's CA")?);
    let catalog = open_catalog(data).await?;
    let (store, recoveries) = open_store(settings, data).await?;
    let shared: Arc<dyn Catalog> = Arc::clone(&catalog) as Arc<dyn Catalog>;
    let points = Arc::new(PointCatalog::load(Arc::clone(&shared), Arc::clone(&clock)).await?);
    let logs = Logs::new(store, Arc::clone(&points))?;
    let links = LiveLinks::default();
    let registry_logs =
        RegistryLogs { logs: Arc::clone(&logs), machines: data.machines(), operators: data.operators() };
    let registry = Registry::load(RegistryParts {
        catalog: Arc::clone(&shared),
        logs: Arc::new(registry_logs),
        links: links.clone(),
        clock: Arc::clone(&clock),
        entropy: Arc::clone(&entropy),
    });
    let registry = Arc::new(registry.await?);
    // Before anything is written anew.
    let damaged = copies::look(data, &registry, &logs, &shared).await?;
    let mut trouble = recover(&registry, &logs, &recoveries).await?;
    trouble.extend(damaged.into_iter().map(Trouble::beside));
    logs.set_registry(Arc::clone(&registry));
    let cache = FrameCache::new(settings.frame_cache_bytes);
    let damage = ledger(&logs);
    let failed_reads = FailedReads::new(Arc::clone(&clock));
    let checks = Checks::new(
        Arc::clone(&logs),
        Arc::clone(&points),
        Arc::clone(&damage),
        Arc::clone(&clock),
        check_policy(settings),
        settings.verify_threads,
    );
    let audits = Audits::new(Arc::clone(&logs), Arc::clone(&registry), links.clone(), Arc::clone(&clock));
    let source = Arc::new(points::Source {
        points: Arc::clone(&points),
        registry: Arc::clone(&registry),
        logs: Arc::clone(&logs),
        cache,
        damage: Arc::clone(&damage),
        checks: Arc::clone(&checks),
    });
    let attach = Arc::new(attach(settings, data, Arc::clone(&failed_reads) as Arc<dyn DamageSink>)?);
    let fenced = Arc::clone(&registry);
    let is_fenced = move |machine| {
        fenced.machine(machine).is_some_and(|status| {
            status.lifecycle.is_fenced() && status.record.state != MachineState::Revoked
        })
    };
    let desk = Arc::new(Desk::new(Arc::new(is_fenced), Arc::clone(&clock)));
    let qemu = Arc::new(QemuMachines::new(machine_settings(settings, data)));
    let reverse = Reverse::new(ReverseParts {
        registry: Arc::clone(&registry),
        logs: Arc::clone(&logs),
        points: Arc::clone(&points),
        source: Arc::clone(&source) as Arc<dyn PointSource>,
        branches: Arc::clone(&attach) as Arc<dyn Branches>,
        images: Arc::clone(&qemu) as Arc<dyn OwnImages>,
        desk: Arc::clone(&desk),
        clock: Arc::clone(&clock),
        entropy: Arc::clone(&entropy),
    });
    let machines: Arc<dyn Machines> = qemu;
    let running_machines = Arc::clone(&machines);
    let readiness = readiness::Readiness::new(
        Arc::clone(&source),
        Arc::clone(&machines),
        Arc::clone(&clock),
        data.readiness(),
    );
    let book_of_drills: Arc<dyn DrillBook> = Arc::new(DrillFolder::new(data.drills()));
    let services = Services {
        points: Arc::clone(&source) as Arc<dyn PointSource>,
        attach: Arc::clone(&attach) as Arc<dyn Attach>,
        images: Arc::new(ImageWriter::new(settings.image_threads)),
        machines,
        lifecycles: Arc::new(sources::RegistryLifecycles(Arc::clone(&registry))),
        sources: Arc::new(sources::AgentSources {
            registry: Arc::clone(&registry),
            links: links.clone(),
            points: Arc::clone(&points),
            catalog: Arc::clone(&shared),
            clock: Arc::clone(&clock),
            looks: Arc::clone(&readiness) as Arc<dyn api::readiness::Looks>,
        }),
        scripts: Arc::new(scripts::HostScripts),
        way_back: Arc::clone(&reverse) as Arc<dyn WayBack>,
        drills: Arc::clone(&book_of_drills) as Arc<dyn DrillBook>,
    };
    let jobs = Arc::new(
        Jobs::start(Parts {
            store: Arc::new(jobs::CatalogJobs(Arc::clone(&shared))),
            plans: Arc::new(services),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
        })
        .await
        .context("going on with jobs")?,
    );
    let _set_once = reverse.jobs.set(Arc::downgrade(&jobs));
    sources::forget_lost_jobs(&registry, |job| jobs.watch(job).is_some()).await?;
    let (inbox, heard) = GroupInbox::new();
    registry.set_group_inbox(inbox);
    let book = GroupBook::load(Arc::clone(&shared), Arc::clone(&clock), Arc::clone(&entropy)).await?;
    let book = Arc::new(book);
    let (driver, group_cuts) = Driver::new(
        DriverParts {
            book: Arc::clone(&book),
            registry: Arc::clone(&registry),
            links: links.clone(),
            points: Arc::clone(&points),
            catalog: Arc::clone(&shared),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
        },
        heard,
    );
    let ports = Ports {
        directory: Arc::clone(&registry) as Arc<dyn Directory>,
        store: Arc::new(IngestStore(Arc::clone(&logs.store))) as Arc<dyn FrameStore>,
        replica: Arc::new(Comparer { logs: Arc::clone(&logs), cache: FrameCache::new(COMPARE_CACHE_BYTES) })
            as Arc<dyn ReplicaComparer>,
        write_back: desk,
    };
    let ingest = Ingest::start(
        &ingest_settings(settings),
        Arc::clone(&authority),
        ports,
        links.clone(),
        Arc::clone(&clock),
        entropy,
        &Handle::current(),
    )?;
    let space = Arc::new(SpaceFigures::default());
    let state = ApiState {
        jobs: Arc::new(jobs::Control {
            jobs: Arc::clone(&jobs),
            points: Arc::clone(&source) as Arc<dyn PointSource>,
            registry: Arc::clone(&registry),
            failed_reads,
            checks: Arc::clone(&checks),
            way_back: Arc::clone(&reverse) as Arc<dyn WayBack>,
        }),
        damage,
        checks: Arc::clone(&checks) as Arc<dyn api::port::StoreChecks>,
        audits: Arc::new(AuditControl(Arc::clone(&audits))),
        readiness: Arc::clone(&readiness) as Arc<dyn api::readiness::Looks>,
        drills: book_of_drills,
        machines: running_machines,
        diff: source,
        store: Arc::new(Figures { logs: Arc::clone(&logs), trouble, space: Arc::clone(&space) }),
        listen: ingest.local_address()?.to_string(),
        api_listen: settings.api_listen.map(|address| address.to_string()),
        image_folders: settings.image_folders.clone(),
        script_folders: settings.script_folders.clone(),
        plan_host: Arc::new(plans::Host { folder: data.plans() }),
        logins: api::Logins::default(),
        registry,
        points,
        catalog: shared,
        authority,
        links,
        clock,
        started_at,
        groups: book,
        group_cuts,
    };
    Ok((Running { catalog, logs, checks, audits, readiness, jobs, ingest, state, space, reverse }, driver))
}

/// Opens the catalog. One that is new beside machines that are not has been lost: to go on would be to forget them.
async fn open_catalog(data: &DataFolder) -> Result<Arc<SqliteCatalog>> {
    let path = data.catalog();
    let advice = || {
        format!(
            "the catalog {} cannot be used; `holdfast-coordinator rebuild-catalog` sets it aside and makes it again from the logs",
            path.display()
        )
    };
    let catalog = SqliteCatalog::open(&path).await.with_context(advice)?;
    if catalog.machines().await.with_context(advice)?.is_empty() {
        let (described, unreadable) = data.descriptions()?;
        let count = described.len() + unreadable.len();
        if count > 0 {
            catalog.close().await;
            return Err(anyhow::anyhow!(
                "it knows no machine, but {count} are described in {}",
                data.machines().display()
            ))
            .with_context(advice);
        }
    }
    Ok(Arc::new(catalog))
}

fn machine_settings(settings: &Settings, data: &DataFolder) -> MachineSettings {
    MachineSettings {
        folder: settings.machine_folder.clone().unwrap_or_else(|| data.virtual_machines()),
        sockets: settings.sockets().to_owned(),
        overrides: data.hardware(),
        accelerator: settings.machine_accelerator,
        network: settings.machine_network.clone(),
    }
}

/// Ends everything in order: agents first, so that what they sent is durable; then what looks at it.
async fn finish(running: Running) {
    running.ingest.shutdown().await;
    running.audits.stop().await;
    running.jobs.stop().await;
    running.logs.stop().await;
    running.catalog.close().await;
    tracing::info!("stopped");
}

async fn open_store(settings: &Settings, data: &DataFolder) -> Result<(Arc<Store>, Vec<DiskRecovery>)> {
    let folder = data.store();
    let store_settings = StoreSettings {
        segment_bytes: settings.segment_bytes,
        store_queue_bytes: settings.queue_bytes,
        disk_queue_bytes: settings.queue_bytes.min(16 << 20),
        reserve_bytes: settings.reserve_bytes,
        ..StoreSettings::default()
    };
    let opened = tokio::task::spawn_blocking(move || Store::open(&folder, store_settings)).await?;
    opened.context("opening the store")
}

/// Brings registry and logs together, and says what recovery found. Disks that lost frames are compared anew.
async fn recover(registry: &Registry, logs: &Logs, recoveries: &[DiskRecovery]) -> Result<Vec<Trouble>> {
    let mut trouble = Vec::new();
    let lasting = |text| Trouble::new(text, None);
    for machine in registry.machines() {
        let id = machine.record.id;
        if let Err(error) = registry.describe(id).await {
            tracing::error!(machine = %id, error = format!("{:#}", anyhow::Error::from(error)), "a machine's logs cannot be used");
            let name = &machine.record.name;
            trouble.push(lasting(format!("the logs of machine {name} cannot be used; see the log")));
        }
    }
    // Older coordinators kept no such record. Operators are never forgotten, so without any there is nothing to keep; and
    // the record of before a database was lost stays for the rebuild.
    if !registry.operators().is_empty()
        && let Err(error) = registry.describe_operators().await
    {
        let error = format!("{:#}", anyhow::Error::from(error));
        tracing::error!(error, "the record of operators was not written");
        trouble.push(lasting("the record of operators cannot be written; see the log".to_owned()));
    }
    for found in recoveries {
        let disk = found.disk;
        tracing::info!(%disk, torn_bytes = found.torn_bytes, damaged_parts = found.damage.len(), "recovered a disk's log");
        if let Some(error) = &found.error {
            let path = path_of(registry, disk);
            let text = in_one_line(error);
            trouble.push(lasting(format!("the log of disk {path} ({disk}) cannot be used: {text}")));
        }
        trouble.extend(found.records.iter().cloned().map(Trouble::beside));
        if !found.damage.is_empty() {
            let files: Vec<String> = found.damage.iter().map(|(path, _)| file_name(path)).collect();
            let reason = format!("its log is damaged in {}", files.join(", "));
            tracing::error!(%disk, reason, "stored data is damaged; the disk is compared with its source anew");
            trouble.push(begin_anew(registry, disk, reason).await?);
        } else if logs.shortened().contains(&disk) {
            let reason = "the end of its log, with points that were complete, is gone".to_owned();
            tracing::error!(%disk, reason, "stored data is lost; the disk is compared with its source anew");
            trouble.push(begin_anew(registry, disk, reason).await?);
        }
    }
    Ok(trouble)
}

/// Has a disk compared with its source anew; the trouble is over when that is done.
async fn begin_anew(registry: &Registry, disk: DiskId, reason: String) -> Result<Trouble> {
    registry.history_lost(disk, reason.clone()).await?;
    let path = path_of(registry, disk);
    let text = format!(
        "disk {path} ({disk}): {reason}; it is compared with its source anew, and what is missing is sent again"
    );
    Ok(Trouble::new(text, registry.disk(disk).map(|state| (disk, state.record.generation))))
}

fn path_of(registry: &Registry, disk: DiskId) -> String {
    registry.disk(disk).map_or_else(|| "unknown".to_owned(), |state| state.record.path)
}

/// What is known to be damaged counts against all points behind it until it is assessed.
fn ledger(logs: &Logs) -> Arc<DamageLedger> {
    let ledger = DamageLedger::default();
    for log in logs.store.disks() {
        let frames = log.bad_frames().list().into_iter().map(DamagedFrame::unassessed).collect();
        let differing = damage::differing(&log);
        let differing =
            differing.into_iter().map(|(cut, ranges)| Differing::unassessed(cut, ranges)).collect();
        ledger.set(log.disk(), DiskDamage { frames, differing });
    }
    Arc::new(ledger)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

const fn check_policy(settings: &Settings) -> CheckPolicy {
    CheckPolicy {
        scrub_days: settings.scrub_days,
        scrub_bytes_per_second_min: settings.scrub_bytes_per_second_min,
        verify_bytes_per_second: settings.verify_bytes_per_second,
    }
}

fn ingest_settings(settings: &Settings) -> IngestSettings {
    IngestSettings {
        connections_max: settings.connections_max,
        receive_window_bytes: settings.receive_window_bytes,
        agent_budget_bytes: settings.agent_budget_bytes,
        verify_threads: settings.verify_threads,
        ..IngestSettings::new(settings.listen)
    }
}

/// Serves exports on sockets in a folder that only the coordinator's user may enter.
fn attach(settings: &Settings, data: &DataFolder, alarm: Arc<dyn DamageSink>) -> Result<NbdAttach> {
    let folder = settings.sockets().join("nbd");
    let made = holdfast_common::durable::create_folder(&folder);
    made.with_context(|| format!("making the folder {}", folder.display()))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&folder, mode)?;
    Ok(NbdAttach::new(folder, data.branches(), NbdSettings::default(), alarm))
}

/// Lets operators in over the network.
async fn serve_remote(
    address: SocketAddr,
    state: &ApiState,
    closing: CancellationToken,
) -> Result<JoinHandle<()>> {
    let tls = state.authority.operator_server_config().context("TLS for operators")?;
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("listening for operators on TCP {address} (choose another address with --api-listen)")
    })?;
    tracing::info!(%address, "operators may connect over the network");
    Ok(tokio::spawn(api::remote::serve(
        listener,
        Arc::new(tls),
        api::router(state.clone()),
        Limits::default(),
        closing,
    )))
}

/// The operators' socket; what a killed coordinator left is removed (the data folder is locked by us).
fn listen(socket: &Path) -> Result<UnixListener> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing the old {}", socket.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).with_context(|| {
        format!("listening on {} (paths of sockets are short; see the setting `sockets`)", socket.display())
    })?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(socket, mode)?;
    Ok(listener)
}
