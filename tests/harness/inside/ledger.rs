//! What the guest's database has committed, as the host hears of it.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
};

use anyhow::Result;

use crate::guest::{Bundle, Machine};

/// The script that commits, for the machine.
pub(super) const SCRIPT: &str = include_str!("ledger.sh");
/// Where it stands there.
pub(super) const PLACE: &str = "/usr/local/lib/holdfast-guest/ledger";

/// Hears of commits, of one machine at a time.
#[derive(Debug)]
pub struct Ledger {
    port: u16,
    newest: Arc<AtomicU64>,
}

/// What starts the database and the script at every boot.
const LIFE: &str = include_str!("life.sh");
/// Its service.
const LIFE_SERVICE: &str = include_str!("ledger.service");

impl Ledger {
    /// Listens on a port of the loopback interface.
    ///
    /// # Errors
    /// There is no port.
    pub fn listen() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let newest = Arc::new(AtomicU64::new(0));
        let heard = Arc::clone(&newest);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let numbers = BufReader::new(stream).lines().map_while(Result::ok);
                numbers.flat_map(|line| line.parse()).for_each(|number| heard.store(number, SeqCst));
            }
        });
        Ok(Self { port, newest })
    }

    /// Starts the machine's database, and what commits there.
    ///
    /// # Errors
    /// They do not start.
    pub fn start(&self, machine: &mut Machine) -> Result<()> {
        machine.run("pg_ctlcluster $(pg_lsclusters --no-header | cut -d' ' -f1) main start")?;
        let port = self.port;
        machine
            .run(&format!("systemd-run --quiet --unit=ledger runuser -u postgres -- bash {PLACE} {port}"))
            .map(drop)
    }

    /// Adds what has the ledger go on at every boot, wherever that is, and say on the console what it holds
    /// (`systemctl enable --now ledger`).
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn for_life(&self, bundle: &Bundle) -> Result<()> {
        bundle.text(LIFE_SERVICE, "/etc/systemd/system/ledger.service")?;
        bundle.text(&format!("{}\n", self.port), "/etc/holdfast-guest/ledger-port")?;
        bundle.script(LIFE, "/usr/local/lib/holdfast-guest/life")
    }

    /// The newest number that the guest has said to be committed.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.newest.load(SeqCst)
    }
}
