//! Many small protected machines on this host: an agent and a disk each, and one coordinator.
//!
//! Owns them all. Each disk begins with a mark of its own, so that one can tell whose a copy is.

use std::{fs::File, io::Write as _, os::unix::fs::FileExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::{
    loop_device::LoopDevice,
    protected::PATIENCE,
    site::{Agent, Site, wait_for},
};

/// Bytes of each disk.
pub const DISK_BYTES: u64 = 8 << 20;

/// The machines. Agents end before the coordinator, and disks outlive both.
#[derive(Debug)]
pub struct Crowd {
    /// Their agents, in the order of `machines`.
    pub agents: Vec<Agent>,
    /// The coordinator.
    pub site: Site,
    /// Their ids; all have this host's name.
    pub machines: Vec<String>,
    /// Their disks.
    pub disks: Vec<LoopDevice>,
}

impl Crowd {
    /// So many machines with a point each, which make another one every `interval`; with these lines in their agents' settings.
    ///
    /// # Errors
    /// One does not start, cannot be protected or gets no point.
    pub fn start(count: usize, interval: &str, settings: &str) -> Result<Self> {
        let mut crowd =
            Self { agents: Vec::new(), site: Site::start()?, machines: Vec::new(), disks: Vec::new() };
        for number in 0..count {
            let disk = LoopDevice::create(DISK_BYTES)?;
            let mut file = File::options().write(true).open(disk.path())?;
            file.write_all(&mark(number))?;
            file.sync_all()?;
            crowd.agents.push(crowd.site.add_agent_with(&[], settings)?);
            let listed = crowd.site.cli(&["machines"])?;
            let all = listed.as_array().context("a list of machines")?.iter();
            let mut ids = all.filter_map(|machine| machine["id"].as_str().map(str::to_owned));
            let new = ids.find(|id| !crowd.machines.contains(id)).context("a new machine")?;
            crowd.site.protect(&new, &[disk.path()], interval)?;
            crowd.machines.push(new);
            crowd.disks.push(disk);
        }
        for machine in &crowd.machines {
            crowd.site.wait_for_points(machine, 1, PATIENCE)?;
        }
        Ok(crowd)
    }

    /// Whether all machines are protected by their sources, and connected, within this time.
    ///
    /// # Errors
    /// One is not.
    pub fn wait_until_all_replicate(&self) -> Result<()> {
        wait_for("all machines to be protected and connected", PATIENCE, || {
            let status = self.site.cli(&["status"])?;
            let machines = status["machines"].as_array().context("machines of the status")?;
            let good = machines.iter().filter(|machine| {
                machine["lifecycle"]["stage"] == "protected" && machine["connected"] == true
            });
            Ok((good.count() == self.machines.len()).then_some(()))
        })
    }

    /// Writes to the disk of a machine, durably.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, number: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let disk = self.disks.get(number).context("such a machine")?;
        let file = File::options().write(true).open(disk.path())?;
        file.write_all_at(bytes, offset)?;
        file.sync_all()?;
        Ok(())
    }

    /// Checks that a copy begins with the mark of this machine.
    ///
    /// # Errors
    /// It does not, or cannot be read.
    pub fn check_copy(&self, number: usize, copy: &Path) -> Result<()> {
        let mut found = [0; MARK_BYTES];
        File::open(copy)?.read_exact_at(&mut found, 0)?;
        ensure!(found == mark(number), "{} is no copy of machine {number}", copy.display());
        Ok(())
    }
}

fn mark(number: usize) -> [u8; MARK_BYTES] {
    let text = format!("machine {number} ");
    let mut mark = [0; MARK_BYTES];
    for (byte, letter) in mark.iter_mut().zip(text.bytes().cycle()) {
        *byte = letter;
    }
    mark
}

const MARK_BYTES: usize = 4096;
