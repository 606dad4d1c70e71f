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

/// The script that commits, for the machine.
pub(super) const SCRIPT: &str = include_str!("ledger.sh");

/// Hears of commits. The thread ends with the guest's connection.
#[derive(Debug)]
pub(super) struct Ledger {
    port: u16,
    highest: Arc<AtomicU64>,
}

impl Ledger {
    pub(super) fn listen() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let highest = Arc::new(AtomicU64::new(0));
        let heard = Arc::clone(&highest);
        thread::spawn(move || {
            let Ok((stream, _)) = listener.accept() else { return };
            for number in BufReader::new(stream).lines().map_while(Result::ok).flat_map(|line| line.parse()) {
                heard.fetch_max(number, SeqCst);
            }
        });
        Ok(Self { port, highest })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The highest number that the guest has said to be committed.
    pub(super) fn committed(&self) -> u64 {
        self.highest.load(SeqCst)
    }
}
