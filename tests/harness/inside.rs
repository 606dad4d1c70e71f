//! An agent inside a machine in QEMU, and a database beside it.
//!
//! Owns the files for that and what is said to the machine. Does not own the machine or the coordinator.

mod ledger;

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};

pub use self::ledger::Ledger;
use crate::{
    guest::{Bundle, HOST_ADDRESS, Machine},
    site::{self, Site},
};

/// The first copy of some 500 MB, and every other wait for what a machine on an emulated processor does, with much room for busy
/// hosts.
pub const LIMIT: Duration = Duration::from_secs(300);
/// The agent's service in the machine.
const SERVICE: &str = include_str!("inside/holdfast-agent.service");

/// The agent, optimized, its service, and the ledger's script.
///
/// # Errors
/// A file cannot be written.
pub fn bundle() -> Result<Bundle> {
    let bundle = Bundle::new()?;
    bundle.program(&site::fast_program("holdfast-agent"), "/usr/local/bin/holdfast-agent")?;
    bundle.text(SERVICE, "/etc/systemd/system/holdfast-agent.service")?;
    bundle.text(ledger::SCRIPT, ledger::PLACE)?;
    Ok(bundle)
}

/// Enrols the machine by a token and starts its agent.
///
/// # Errors
/// The agent refuses, or does not connect in time.
pub fn enrol(site: &Site, machine: &mut Machine, token: &[&str]) -> Result<()> {
    let created = site.cli(&[&["token", "create"], token].concat())?;
    let token = created["token"].as_str().context("token in the answer")?;
    let (_, port) = site.address().rsplit_once(':').context("the coordinator's port")?;
    machine.run(&format!(
        "systemctl stop holdfast-agent; holdfast-agent enroll --coordinator {HOST_ADDRESS}:{port} --token {token} && \
         systemctl enable --quiet --now holdfast-agent"
    ))?;
    site.wait_until_connected(LIMIT).with_context(|| log(machine))
}

/// Enrols the only machine, protects one of its disks, and waits for the first point. Gives its id.
///
/// # Errors
/// Any of it fails; the text has the agent's log.
pub fn protect(site: &Site, machine: &mut Machine, disk: &str, interval: &str) -> Result<String> {
    enrol(site, machine, &[])?;
    let id = site.only_machine()?;
    site.protect(&id, &[Path::new(disk)], interval)?;
    site.wait_for_points(&id, 1, LIMIT).with_context(|| log(machine))?;
    Ok(id)
}

/// Has the machine's processor at its target be one that is emulated fast; everything else follows its inventory, but for `more`.
///
/// # Errors
/// It cannot be written.
pub fn set_hardware(site: &Site, machine: &str, more: &str) -> Result<()> {
    site.set_hardware(machine, &format!("cpu = \"Westmere\"\n{more}"))
}

/// What the agent has said, for messages.
pub fn log(machine: &mut Machine) -> String {
    let log = machine.run("journalctl --unit=holdfast-agent --no-pager --lines=60");
    format!("the agent's log:\n{}", log.unwrap_or_else(|error| format!("{error:#}")))
}
